//! After the decision to commit: the change goes on disk, and the units take over.
//!
//! Begun again after a crash it goes on where it was; after a reboot, when nothing of the trial is
//! left, it starts over, unless everything is already as it should be.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::journal::Record;
use super::run::Run;
use super::steps;
use crate::observe::Observed;

/// How long it may take: as long as the confirmation, within reason.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// After so many starts it is taken back.
const ATTEMPTS: usize = 3;

/// Makes the change permanent and proves it.
pub(super) fn make(run: &mut Run) -> Result<(), String> {
    let attempts = run.times(|record| *record == Record::Permanent);
    if attempts >= ATTEMPTS {
        return Err(format!("making it permanent died {attempts} times"));
    }
    if attempts > 0 && prove(run).is_ok() {
        return Ok(());
    }
    if attempts == 0 {
        refuse_edited(run)?;
    }
    run.record(Record::Permanent).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + run.limit().clamp(SHORTEST, LONGEST);
    let done = done_in_this_boot(run);
    for (index, step) in run.permanent() {
        if done.contains(&index) {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        steps::execute(run, index, &step, left).map_err(|error| error.to_string())?;
    }
    prove(run)
}

/// An edit of any file that was planned with makes the plan stale: what sshd will be is no longer
/// what was tried.
fn refuse_edited(run: &Run) -> Result<(), String> {
    let now = run.machine.observe().map_err(|error| error.to_string())?;
    let edited: Vec<String> =
        Observed::edited(&run.before, &now).iter().map(|path| path.display().to_string()).collect();
    if edited.is_empty() {
        return Ok(());
    }
    Err(format!("somebody changed {} during the trial", edited.join(", ")))
}

fn prove(run: &mut Run) -> Result<(), String> {
    run.note("proving the new state");
    let (faults, notes) = run.machine.prove(&run.expect).map_err(|error| error.to_string())?;
    for note in notes {
        run.note(&note);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// Steps that need not be done again; after a reboot that is none of them.
fn done_in_this_boot(run: &Run) -> BTreeSet<usize> {
    let boots: BTreeSet<&String> = run
        .records()
        .iter()
        .filter_map(|record| match record {
            Record::Taken { boot } => Some(boot),
            _ => None,
        })
        .collect();
    if boots.len() > 1 {
        return BTreeSet::new();
    }
    let done = run.records().iter().filter_map(|record| match record {
        Record::Done { index } => Some(*index),
        _ => None,
    });
    done.collect()
}
