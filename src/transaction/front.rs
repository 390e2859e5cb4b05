//! Beginning a transaction, and handing it to the worker.

use std::time::{Duration, Instant};

use super::guard::{self, worker_unit};
use super::journal::{self, Journal, Record, Terms};
use super::lock::Lock;
use super::machine::{Machine, RealMachine};
use super::{run, state};
use crate::error::{Error, Refusal};
use crate::observe::Observed;
use crate::plan::Plan;
use crate::sys::SysError;
use crate::sys::fault::point;

/// How long whoever begins a transaction may take until its worker runs; a killed one too, until the
/// kernel has taken its lock away: that waits for what it was writing.
const BEGINNING: Duration = Duration::from_secs(10);

/// Begins a transaction: from here on the worker does it, whatever becomes of this process.
///
/// Returns the transaction's id.
///
/// # Errors
/// Where the worker cannot be started; then nothing was changed, and the transaction is closed.
pub fn begin(
    machine: &RealMachine,
    lock: Lock,
    observed: &Observed,
    plan: &Plan,
    terms: Terms,
) -> Result<String, Error> {
    let begin = Record::Begin {
        format: journal::FORMAT,
        steps: plan.steps.clone(),
        expect: plan.expect.clone(),
        before: Box::new(observed.clone()),
        terms: Some(Box::new(terms)),
    };
    state::refuse_open(machine.files(), "")?;
    state::refuse_volatile(machine.files())?;
    let journal = Journal::create(machine.files(), &begin)?;
    let id = journal.id().to_owned();
    let started = point(format_args!("front.journal"))
        .and_then(|()| guard::pin(machine, &id))
        .and_then(|_| point(format_args!("front.pinned")))
        .and_then(|()| start(machine, &id));
    if let Err(error) = started {
        guard::discard(machine, &id, &error.to_string())?;
        return Err(error.into());
    }
    // The worker waits for the lock; until it runs, nobody else may take it.
    drop(lock);
    Ok(id)
}

/// Lets a transaction that did not end go on: its process was killed and did not come back, or the
/// power was cut and recovery did not run. One that nobody had taken on yet has changed nothing, and
/// is closed.
///
/// # Errors
/// A refusal where somebody works on it; failures to start the worker.
pub fn resume(machine: &RealMachine, lock: Lock, id: &str) -> Result<(), Error> {
    if guard::is_worked_on(machine, id)? {
        return Err(Refusal::new(
            "locked",
            format!("transaction {id} is under way"),
            "`harden status` shows what it does; `harden rollback` takes it back",
        )
        .into());
    }
    go_on(machine, lock, id)
}

/// Lets an open transaction come to its end: by whoever works on it, else as [`resume`] does. Somebody
/// who has only begun it is waited for.
///
/// # Errors
/// A refusal where the lock's holder neither hands it to a worker nor lets go; failures to start the
/// worker.
pub fn see_through(machine: &RealMachine, id: &str) -> Result<(), Error> {
    let deadline = Instant::now() + BEGINNING;
    loop {
        let lock = Lock::try_take(machine.files())?;
        if guard::is_worked_on(machine, id)? {
            return Ok(());
        }
        match lock {
            Some(lock) => return go_on(machine, lock, id),
            None if Instant::now() > deadline => {
                return Lock::take(machine.files()).and_then(|lock| go_on(machine, lock, id));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn go_on(machine: &RealMachine, lock: Lock, id: &str) -> Result<(), Error> {
    state::refuse_open(machine.files(), id)?;
    let records = journal::read(machine.files(), id)?;
    if !journal::is_open(&records) {
        return Ok(());
    }
    if !records.iter().any(|record| matches!(record, Record::Taken { .. })) {
        // Whoever asked for it is gone, and may want something else by now.
        guard::discard(machine, id, "it was interrupted before it began")?;
        return Ok(());
    }
    start(machine, id)?;
    drop(lock);
    Ok(())
}

fn start(machine: &RealMachine, id: &str) -> Result<(), SysError> {
    machine.start_worker(&worker_unit(id), &run::command(machine, "worker", id))
}
