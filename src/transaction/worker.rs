//! The process that does a transaction: a service of systemd's, outside any session. It can die at
//! any instant; whoever goes on finds in the journal and the decision what there is to do.

use std::time::Duration;

use super::decision::{self, Decision, Verdict};
use super::guard::{self, worker_unit};
use super::journal::{self, Record};
use super::lock::Lock;
use super::machine::{Machine, RealMachine};
use super::run::{Run, cause_of, limit_of};
use super::trial::Ended;
use super::{Outcome, leftovers, permanent, rollback, steps, trial};
use crate::error::Error;
use crate::step::Op;
use crate::sys::fault::point;
use crate::sys::{Files, SysError};

/// How long the one who began may keep the lock.
const HANDOVER: Duration = Duration::from_secs(60);
/// How long the guard gives a worker to act on a decision to take back; to make permanent may take
/// as long as [`permanent::longest`] besides.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long besides to one that is on its way back: what starts slowly there is waited for. (A build with faults
/// need not wait for that.)
const WAY_BACK: Duration = Duration::from_secs(if cfg!(feature = "faults") { 0 } else { 90 });
/// A worker that has not come to an end so long after the time for the confirmation hangs, and so does a
/// guard twice as long after it has begun: systemd kills it and starts it again. Nothing that they do takes
/// so long, and all of it can be resumed. (A build with faults need not wait for that long.)
const SPARE: Duration = Duration::from_secs(if cfg!(feature = "faults") { 60 } else { 300 });

/// The longest that the worker of a transaction may take.
pub fn longest(files: &Files, id: &str) -> Duration {
    let records = journal::read(files, id).unwrap_or_default();
    limit_of(&records) + SPARE
}

/// The longest that a guard may take.
pub const GUARD: Duration = SPARE.saturating_mul(2);

/// Does a transaction, from wherever it is to its end.
///
/// # Errors
/// Where it could not be taken on, or its journal not be closed: it has to be tried again.
pub fn work(machine: &dyn Machine, id: &str) -> Result<Outcome, Error> {
    let Some(lock) = Lock::wait_for(machine.files(), id, HANDOVER)? else {
        return Err(SysError::new(format!("cannot go on with {id}"), "the lock is taken").into());
    };
    work_locked(machine, id, &lock)
}

fn work_locked(machine: &dyn Machine, id: &str, _lock: &Lock) -> Result<Outcome, Error> {
    if !journal::has_begun(&journal::read(machine.files(), id)?) {
        // It was torn when it began, or somebody has removed it: there is nothing to go on with.
        let cause = "its journal is gone".to_owned();
        tracing::error!("transaction {id}: {cause}");
        if let Err(error) = leftovers::without_a_journal(machine, id) {
            tracing::error!(%error, "what listens stays");
        }
        return Ok(Outcome::Refused { cause });
    }
    let mut run = Run::open(machine, id)?;
    if let Some(outcome) = run.outcome() {
        guard::stand_down(machine, id, run.records());
        return Ok(outcome);
    }
    let taken_before = run.has(|record| matches!(record, Record::Taken { .. }));
    run.record_if_possible(Record::Taken { boot: machine.boot() });
    point(format_args!("worker.taken"))?;
    if let Some(cause) = cause_of(run.records()) {
        return Ok(rollback::run(&mut run, &cause));
    }
    let decision = match decision::read(machine.files(), id)? {
        Some(decision) => decision,
        None if taken_before || run.terms.is_none() => {
            let why = "it was interrupted before anybody had confirmed";
            go_back(machine, id, why)
        }
        None => match trial::run(&mut run) {
            Ended::Refused(why) => {
                guard::close(&mut run, "refused", Some(&why))?;
                return Ok(Outcome::Refused { cause: why });
            }
            Ended::Failed(why) => go_back(machine, id, &why),
            Ended::Decided(decision) => decision,
        },
    };
    carry_out(&mut run, &decision)
}

/// Decides to go back, unless somebody has decided already. On a full disk no decision can be made;
/// then the record of the rollback, for which the journal has room, stands for it.
fn go_back(machine: &dyn Machine, id: &str, why: &str) -> Decision {
    decision::decide(machine.files(), id, Verdict::Rollback, why).unwrap_or_else(|error| {
        tracing::warn!(%error, "going back without it");
        Decision { verdict: Verdict::Rollback, why: why.to_owned() }
    })
}

fn carry_out(run: &mut Run, decision: &Decision) -> Result<Outcome, Error> {
    if decision.verdict == Verdict::Rollback {
        return Ok(rollback::run(run, &decision.why));
    }
    run.refuse_read_only()?;
    match permanent::make(run) {
        Ok(()) => {
            guard::close(run, "applied", None)?;
            Ok(Outcome::Applied)
        }
        // systemd cancels jobs when it goes down; the next boot goes on with it, as after a power cut.
        Err(cause) if run.machine.goes_down() => {
            Err(SysError::new("the system goes down meanwhile", cause).into())
        }
        Err(cause) => {
            // Nor could it be written down that it is taken back: what is decided stands.
            run.refuse_read_only()?;
            Ok(rollback::run(run, &cause))
        }
    }
}

/// The guard: its time has come. Undoes what nobody has confirmed, whatever has become of the
/// worker.
///
/// # Errors
/// Where that cannot be done: it has to be tried again.
pub fn guard(machine: &RealMachine, id: &str) -> Result<Outcome, Error> {
    let files = machine.files();
    let records = journal::read(files, id)?;
    let mut patience = PATIENCE;
    if journal::is_open(&records) {
        match decision::decide(files, id, Verdict::Rollback, decision::NOT_IN_TIME) {
            Ok(stands) if stands.verdict == Verdict::Commit => {
                patience += permanent::longest(limit_of(&records));
            }
            Ok(_) => {}
            // The worker finds none either, and goes back.
            Err(error) => tracing::warn!(%error, "nothing is decided"),
        }
    }
    let seen = records.iter().filter(|record| is_stuck(record)).count();
    let mut waited = Duration::ZERO;
    loop {
        if let Some(lock) = Lock::wait_for(files, id, patience)? {
            // The worker has just gone the way back to where it can: another try would take away what listens.
            let now = journal::read(files, id)?;
            if let Some(Record::Stuck { cause, left }) = now.into_iter().filter(is_stuck).nth(seen)
            {
                return Ok(Outcome::NeedsOperator { cause, left });
            }
            return work_locked(machine, id, &lock);
        }
        if cause_of(&journal::read(files, id)?).is_some() && waited < WAY_BACK {
            waited += patience;
            continue;
        }
        tracing::warn!("the worker of transaction {id} does not come to an end; killing it");
        for unit in [worker_unit(id), guard::RESUME.to_owned()] {
            if let Err(error) = machine.kill(&unit) {
                tracing::debug!(%error, "not killed");
            }
        }
    }
}

fn is_stuck(record: &Record) -> bool {
    matches!(record, Record::Stuck { .. })
}

/// At boot, before anything of sshd's has started: makes the files those of one state, and tells
/// systemd which units that state has. The rest is done, and proven, once sshd runs.
///
/// # Errors
/// Where the files cannot be made so.
pub fn recover(machine: &dyn Machine, id: &str) -> Result<(), Error> {
    let Some(_lock) = Lock::wait_for(machine.files(), id, HANDOVER)? else { return Ok(()) };
    if !journal::has_begun(&journal::read(machine.files(), id)?) {
        // Nothing is known; what runs later clears up.
        return Ok(());
    }
    let mut run = Run::open(machine, id)?;
    if run.outcome().is_some() {
        return Ok(());
    }
    run.record_if_possible(Record::Taken { boot: machine.boot() });
    point(format_args!("recovery.taken"))?;
    let decision = decision::read(machine.files(), id)?;
    let forward = cause_of(run.records()).is_none()
        && decision.is_some_and(|decision| decision.verdict == Verdict::Commit);
    if forward {
        run.refuse_read_only()?;
    }
    let put = if forward { forward_files(&mut run) } else { rollback::files(&run) };
    put?;
    point(format_args!("recovery.files"))?;
    let mut done = machine.reload();
    point(format_args!("recovery.reloaded"))?;
    // The jobs that this boot began with were made from the files as they were.
    for (unit, active) in running_units(&run, forward) {
        let method = if active { "StartUnit" } else { "StopUnit" };
        done = done.and(machine.enqueue(method, &unit));
    }
    point(format_args!("recovery.enqueued"))?;
    Ok(done?)
}

/// Every file and link of the new state; what failed is for the way back, once sshd runs.
fn forward_files(run: &mut Run) -> Result<(), SysError> {
    let machine = run.machine;
    run.record_if_possible(Record::Permanent);
    for (index, step) in run.permanent() {
        point(format_args!("recovery.step-{}", index + 1))?;
        if matches!(step.op, Op::Put { .. } | Op::Enable(_) | Op::Disable(_) | Op::Unmask(_)) {
            let begun = steps::begun(run, index, &step.op);
            run.record_if_possible(begun);
        }
        match &step.op {
            Op::Put { path, image } => match steps::refuse_edited(run, path, image) {
                Ok(()) => machine.files().put_back(path, image)?,
                // Their edit stays; whether it fits is for the proof to say.
                Err(error) => tracing::warn!(%error, "during recovery"),
            },
            Op::Enable(unit) => machine.enable(unit)?,
            Op::Disable(unit) => machine.disable(unit)?,
            Op::Unmask(unit) => machine.unmask(unit)?,
            _ => {}
        }
    }
    Ok(())
}

/// Which units the state has, and whether they run. On the way back nothing is said of a unit that harden
/// has not touched and that is not enabled: another one may start it.
fn running_units(run: &Run, forward: bool) -> Vec<(String, bool)> {
    if forward {
        let expected = run.expect.units.iter();
        return expected.map(|unit| (unit.name.clone(), unit.active.unwrap_or(false))).collect();
    }
    let touched = rollback::enabled_or_disabled(run.records());
    [&run.before.socket, &run.before.service]
        .into_iter()
        .filter(|unit| unit.exists() && touched.contains(&unit.name))
        .map(|unit| (unit.name.clone(), unit.is_enabled()))
        .collect()
}
