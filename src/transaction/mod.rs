//! The fourth stage: the plan's steps as one transaction.
//!
//! Every step is in the journal, with what it is about to replace, before it runs. A step or a
//! proof that fails takes the whole transaction back, and the way back is proven too. The journal
//! alone is enough to do that: a run that died is taken back by the next one, from its journal.

pub mod journal;
pub mod machine;
mod rollback;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use journal::{Journal, Record};
use machine::Machine;

use crate::error::{Error, Refusal};
use crate::observe::Observed;
use crate::plan::{Op, Plan, Step};
use crate::sys::{Files, SysError};
use crate::verify::Fault;

/// Where journals are kept.
pub const STATE: &str = "/var/lib/harden";
const RUNTIME: &str = "/run/harden";

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that the spec asks for holds and is proven.
    Applied {
        /// Things worth telling.
        notes: Vec<String>,
    },
    /// It failed, and the state from before is back and proven.
    RolledBack {
        /// What failed.
        cause: String,
    },
    /// It failed, and the state from before is not back.
    NeedsOperator {
        /// What failed first.
        cause: String,
        /// What is not as it was.
        left: Vec<Fault>,
    },
}

/// Told what happens, as it happens.
pub trait Progress {
    /// A step begins.
    fn step(&mut self, number: usize, total: usize, step: &Step);
    /// Something happened between steps.
    fn note(&mut self, text: &str);
}

/// The right to change this host; one process at a time.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// A refusal where another harden holds it.
    pub fn take(files: &Files) -> Result<Self, Error> {
        files.create_folders(Path::new(RUNTIME), 0o700)?;
        match files.try_lock(&Path::new(RUNTIME).join("lock"))? {
            Some(file) => Ok(Self { _file: file }),
            None => Err(Refusal::new(
                "locked",
                "another harden is changing this host",
                "wait until it is done, then run the command again",
            )
            .into()),
        }
    }
}

/// Takes back a transaction that never ended: its process was killed, or the power was cut.
///
/// Returns its id and how taking it back went, or `None` where there is none.
///
/// # Errors
/// Where the journals cannot be read.
pub fn resolve_open(
    machine: &dyn Machine,
    _lock: &Lock,
    progress: &mut dyn Progress,
) -> Result<Option<(String, Outcome)>, Error> {
    let Some((id, records)) = journal::find_open(machine.files())? else { return Ok(None) };
    progress.note(&format!("transaction {id} did not end; taking it back first"));
    let mut journal = Journal::reopen(machine.files(), &id)?;
    let cause = format!("transaction {id} was interrupted");
    let outcome = rollback::run(machine, &mut journal, &records, &cause, progress);
    Ok(Some((id, outcome)))
}

/// Runs a plan.
///
/// # Errors
/// Only where nothing was changed yet; after that, failures end in an [`Outcome`].
pub fn apply(
    machine: &dyn Machine,
    _lock: &Lock,
    observed: &Observed,
    plan: &Plan,
    limit: Duration,
    progress: &mut dyn Progress,
) -> Result<(String, Outcome), Error> {
    let begin = Record::Begin {
        format: journal::FORMAT,
        steps: plan.steps.clone(),
        expect: plan.expect.clone(),
        before: Box::new(observed.clone()),
    };
    let mut journal = Journal::create(machine.files(), &begin)?;
    let id = journal.id().to_owned();
    let mut records = vec![begin];
    let deadline = Instant::now() + limit;
    let done = run(machine, &mut journal, &mut records, observed, plan, deadline, progress);
    let outcome = match done {
        Ok(notes) => match journal.write(&Record::Closed { outcome: "applied".into() }) {
            Ok(()) => Outcome::Applied { notes },
            Err(error) => {
                let cause = error.to_string();
                rollback::run(machine, &mut journal, &records, &cause, progress)
            }
        },
        Err(cause) => rollback::run(machine, &mut journal, &records, &cause, progress),
    };
    Ok((id, outcome))
}

fn run(
    machine: &dyn Machine,
    journal: &mut Journal,
    records: &mut Vec<Record>,
    observed: &Observed,
    plan: &Plan,
    deadline: Instant,
    progress: &mut dyn Progress,
) -> Result<Vec<String>, String> {
    let total = plan.steps.len() + 1;
    for (index, step) in plan.steps.iter().enumerate() {
        progress.step(index + 1, total, step);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the time limit is over".to_owned());
        }
        let begun = Record::Step {
            index,
            op: step.op.clone(),
            before: rollback::images(machine, observed, &step.op).map_err(|e| e.to_string())?,
        };
        journal.write(&begun).map_err(|error| error.to_string())?;
        records.push(begun);
        execute(machine, plan, &step.op, left).map_err(|error| error.to_string())?;
        journal.write(&Record::Done { index }).map_err(|error| error.to_string())?;
    }
    progress.note("proving the new state");
    let (faults, notes) = machine.prove(&plan.expect).map_err(|error| error.to_string())?;
    if faults.is_empty() { Ok(notes) } else { Err(faults.join("; ")) }
}

/// Does one step. A job's success is not a running unit, so the state is read again.
fn execute(machine: &dyn Machine, plan: &Plan, op: &Op, left: Duration) -> Result<(), SysError> {
    match op {
        Op::Put { path, image } => machine.files().put(path, image),
        Op::Stop(unit) => {
            machine.job("StopUnit", unit, left)?;
            expect_active(machine, unit, false)
        }
        Op::Start(unit) => {
            start(machine, "StartUnit", unit, left)?;
            expect_active(machine, unit, true)
        }
        Op::Restart(unit) => {
            start(machine, "RestartUnit", unit, left)?;
            expect_active(machine, unit, true)
        }
        Op::Enable(unit) => machine.enable(unit),
        Op::Disable(unit) => machine.disable(unit),
        Op::Unmask(unit) => machine.unmask(unit),
        Op::Reload => machine.reload(),
        Op::ResetFailed(unit) => machine.reset_failed(unit),
        Op::AwaitListeners => machine.await_listeners(&plan.expect, left),
        Op::End(process) => machine.end(process),
    }
}

/// Starts or restarts a unit. Where the first try fails and systemd tries again by itself
/// (`Restart=on-failure`), its next tries count too.
fn start(
    machine: &dyn Machine,
    method: &'static str,
    unit: &str,
    left: Duration,
) -> Result<(), SysError> {
    forgive(machine, unit);
    let first = machine.job(method, unit, left);
    let Err(error) = first else { return Ok(()) };
    let deadline = Instant::now() + left.min(Duration::from_secs(3));
    while !error.is_silence() && Instant::now() < deadline {
        let now = machine.unit(unit)?;
        if now.is_active() {
            return Ok(());
        }
        if now.active != "activating" {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(error)
}

/// Clears the start counter: five starts in ten seconds, harden's own among them, would make
/// systemd refuse the next one (`StartLimitBurst=`), the way back's too.
fn forgive(machine: &dyn Machine, unit: &str) {
    if let Err(error) = machine.reset_failed(unit) {
        tracing::debug!(%error, "the start counter stays");
    }
}

fn expect_active(machine: &dyn Machine, unit: &str, active: bool) -> Result<(), SysError> {
    let now = machine.unit(unit)?;
    if now.is_active() == active {
        return Ok(());
    }
    let wanted = if active { "start" } else { "stop" };
    let state = format!("it is {} ({}), result {}", now.active, now.sub, now.result);
    Err(SysError::new(format!("{unit} did not {wanted}"), state))
}
