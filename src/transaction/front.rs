//! Beginning a transaction, and handing it to the worker.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::guard::{self, worker_unit};
use super::journal::{self, Journal, Record, Terms};
use super::lock::Lock;
use super::machine::{Machine, RealMachine};
use super::{STATE, worker};
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
    refuse_open_state(machine, "")?;
    refuse_volatile_state(machine)?;
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

/// What is in the folder runs as root: nobody else may write there, nor to what is in it of a transaction
/// (or of any, where its id is empty).
fn refuse_open_state(machine: &RealMachine, id: &str) -> Result<(), Refusal> {
    let (files, state) = (machine.files(), Path::new(STATE));
    let Some(folder) = files.metadata(state) else { return Ok(()) };
    let is_its = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(id))
    };
    let within = files.list(state).into_iter().filter(is_its);
    let within = within.filter_map(|path| Some((files.own_metadata(&path)?, path)));
    let hint = "it runs as root: see who has put it there, and remove it or give it to root alone";
    let all = [(folder, state.to_owned())].into_iter().chain(within);
    for (meta, path) in all {
        let what = if meta.uid() != 0 {
            format!("belongs to another user than root (uid {})", meta.uid())
        } else if meta.mode() & 0o022 != 0 && !meta.is_symlink() {
            format!("can be written by others than root (mode {:04o})", meta.mode() & 0o7777)
        } else {
            continue;
        };
        let hint = match path == state {
            true => format!(
                "what is in it runs as root: remove what is not root's (ls -l {STATE}), then \
                 chown root: {STATE}; chmod 700 {STATE}"
            ),
            false => hint.to_owned(),
        };
        return Err(Refusal::new("writable-by-others", format!("{} {what}", path.display()), hint));
    }
    Ok(())
}

/// A journal in memory is gone after a power cut, and what is half done stays so; unless /etc goes with it.
fn refuse_volatile_state(machine: &RealMachine) -> Result<(), Refusal> {
    let files = machine.files();
    let there = Path::new(STATE).ancestors().find(|path| files.exists(path));
    if there.is_some_and(|there| files.is_volatile(there)) && !files.is_volatile(Path::new("/etc"))
    {
        return Err(Refusal::new(
            "volatile-state",
            format!("{STATE} is in memory (tmpfs): a power cut would lose what has to be undone"),
            "keep it on a disk: unmount what is mounted there, or mount a disk",
        ));
    }
    Ok(())
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
    refuse_open_state(machine, id)?;
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
    machine.start_worker(&worker_unit(id), &worker::command(machine, id))
}
