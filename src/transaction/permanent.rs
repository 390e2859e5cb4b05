//! After the decision to commit: the change goes on disk, and the units take over.
//!
//! Begun again after a crash it goes on where it was; after a reboot, when nothing of the trial is
//! left, it starts over, unless everything is already as it should be.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::journal::Record;
use super::run::{Run, boots};
use super::{along, steps, welcome};
use crate::observe::Observed;
use crate::sys::fault::point;

/// How long it may take: as long as the confirmation, within reason.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// After so many starts it is taken back: somebody may kill it a few times, but a process that dies
/// each time must not go on for ever.
const ATTEMPTS: usize = 10;

/// How long a file may look edited before it counts as such.
const LOOKS_EDITED: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 1 });

/// How long it may take where a confirmation may take `limit`.
pub(super) fn longest(limit: Duration) -> Duration {
    limit.clamp(SHORTEST, LONGEST)
}

/// Makes the change permanent and proves it.
pub(super) fn make(run: &mut Run) -> Result<(), String> {
    let attempts = run.times(|record| *record == Record::Permanent);
    if attempts >= ATTEMPTS {
        return Err(format!("making it permanent died {attempts} times"));
    }
    if attempts > 0 && prove(run).is_ok() && welcome::refuse_turned_away(run).is_ok() {
        along::start(run);
        return Ok(());
    }
    if attempts == 0 {
        // systemd empties its generators' folder for a moment when it reads everything anew.
        let deadline = Instant::now() + LOOKS_EDITED;
        while let Err(why) = refuse_edited(run) {
            if Instant::now() > deadline {
                return Err(why);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    run.record(Record::Permanent).map_err(|error| error.to_string())?;
    point(format_args!("permanent.begun")).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + longest(run.limit());
    let done = done_in_this_boot(run);
    let mut steps = run.permanent();
    steps.retain(|(index, _)| !done.contains(index));
    steps::execute(run, &steps, deadline).map_err(|error| error.to_string())?;
    along::start(run);
    prove(run)
}

/// An edit of any file that was planned with makes the plan stale: what sshd will be is no longer
/// what was tried.
fn refuse_edited(run: &Run) -> Result<(), String> {
    let now = run.observe().map_err(|error| error.to_string())?;
    let units = [(&run.before.service, &now.service), (&run.before.socket, &now.socket)];
    if let Some((was, is)) = units.into_iter().find(|(was, is)| was.load != is.load) {
        return Err(format!(
            "somebody changed {} during the trial: it was {}, is {}",
            was.name,
            was.summary(),
            is.summary()
        ));
    }
    let edited: Vec<String> =
        Observed::edited(&run.before, &now).iter().map(|path| path.display().to_string()).collect();
    if !edited.is_empty() {
        return Err(format!("somebody changed {} during the trial", edited.join(", ")));
    }
    // What systemd has not read yet, it will have by the time that the unit starts.
    let unread = now.unread_unit().map(|unit| format!("the files of {unit}"));
    if let Some(unread) = unread.filter(|_| run.before.unread_unit().is_none()) {
        return Err(format!("somebody changed {unread} during the trial"));
    }
    match run.before.options_since(&now) {
        Some(moved) => Err(format!("{moved}: somebody changed that during the trial")),
        None => Ok(()),
    }
}

fn prove(run: &mut Run) -> Result<(), String> {
    run.note("proving the new state");
    point(format_args!("permanent.proof")).map_err(|error| error.to_string())?;
    let (faults, notes) = run.machine.prove(&run.expect).map_err(|error| error.to_string())?;
    for note in notes {
        run.note(&note);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// Steps that need not be done again; after a reboot that is none of them.
fn done_in_this_boot(run: &Run) -> BTreeSet<usize> {
    if boots(run.records()) > 1 {
        return BTreeSet::new();
    }
    let done = run.records().iter().filter_map(|record| match record {
        Record::Done { index } => Some(*index),
        _ => None,
    });
    done.collect()
}
