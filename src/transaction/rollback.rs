//! The way back: from a journal to the state before, and the proof of it.
//!
//! It goes by state, not by inverse of each step: stop what was started, put every path back, make
//! systemd read it, start what ran. So it can be begun again from any point, any number of times.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::journal::{Journal, Record};
use super::machine::Machine;
use super::{Outcome, Progress};
use crate::observe::Observed;
use crate::plan::Op;
use crate::sys::{Image, Result};

const JOB: Duration = Duration::from_secs(90);

/// What is at the paths that a step may change, folders first.
pub(super) fn images(
    machine: &dyn Machine,
    observed: &Observed,
    op: &Op,
) -> Result<Vec<(PathBuf, Image)>> {
    let paths: Vec<PathBuf> = match op {
        Op::Put { path, .. } => vec![path.clone()],
        Op::Enable(_) | Op::Disable(_) | Op::Unmask(_) => {
            // Disabling removes a folder of links that becomes empty, enabling makes it.
            let folders: BTreeSet<PathBuf> =
                observed.links.keys().filter_map(|link| Some(link.parent()?.to_owned())).collect();
            folders.into_iter().chain(observed.links.keys().cloned()).collect()
        }
        _ => Vec::new(),
    };
    paths.into_iter().map(|path| Ok((path.clone(), machine.files().image(&path)?))).collect()
}

/// What has to be undone, worked out from the records alone. Pure.
#[derive(Debug, Default, PartialEq)]
struct Undo {
    /// Some unit was stopped, started or restarted.
    units: bool,
    /// Some unit file or link may have changed.
    unit_files: bool,
    /// A process was ended that cannot be brought back.
    ended: bool,
    /// Paths and what was there, in the order in which to put them back.
    paths: Vec<(PathBuf, Image)>,
}

fn undo(records: &[Record]) -> Undo {
    let mut undo = Undo::default();
    let begun = records.iter().filter_map(|record| match record {
        Record::Step { op, before, .. } => Some((op, before)),
        _ => None,
    });
    let mut seen = BTreeSet::new();
    let mut folders = Vec::new();
    let mut others = Vec::new();
    for (op, before) in begun {
        undo.units |= op.runs_unit().is_some();
        undo.ended |= matches!(op, Op::End(_));
        undo.unit_files |= matches!(op, Op::Enable(_) | Op::Disable(_) | Op::Unmask(_));
        for (path, image) in before {
            undo.unit_files |= path.starts_with("/etc/systemd");
            // The first image of a path is the state from before.
            if seen.insert(path.clone()) {
                match image {
                    Image::Directory { .. } => folders.push((path.clone(), image.clone())),
                    _ => others.push((path.clone(), image.clone())),
                }
            }
        }
    }
    // Folders that were there come first; what was not there goes last, deepest path first.
    others.sort_by_key(|(path, image)| {
        (*image == Image::Absent, std::cmp::Reverse(path.components().count()))
    });
    undo.paths = folders.into_iter().chain(others).collect();
    undo
}

/// Takes a transaction back and proves it.
pub(super) fn run(
    machine: &dyn Machine,
    journal: &mut Journal,
    records: &[Record],
    cause: &str,
    progress: &mut dyn Progress,
) -> Outcome {
    let cause = cause.to_owned();
    let Some(Record::Begin { before, .. }) = records.first() else {
        let left = vec!["the journal does not say what was there before".to_owned()];
        return Outcome::NeedsOperator { cause, left };
    };
    progress.note(&format!("failed: {cause}"));
    progress.note("rolling back");
    // A journal on a full disk must not stop the way back.
    let mut left = Vec::new();
    if let Err(error) = journal.write(&Record::Rollback { cause: cause.clone() }) {
        tracing::warn!(%error, "the rollback is not in the journal");
    }
    let undo = undo(records);
    left.extend(restore(machine, before, &undo));
    match machine.observe() {
        Ok(now) => {
            let moved = before.differences(&now, undo.ended);
            if moved.is_empty() {
                left.clear();
            } else {
                left.extend(moved);
            }
        }
        Err(error) => left.push(error.to_string()),
    }
    if !left.is_empty() {
        return Outcome::NeedsOperator { cause, left };
    }
    match journal.write(&Record::Closed { outcome: "rolled-back".into() }) {
        Ok(()) => Outcome::RolledBack { cause },
        Err(error) => Outcome::NeedsOperator { cause, left: vec![error.to_string()] },
    }
}

/// Puts everything back, going on past failures; returns them.
fn restore(machine: &dyn Machine, before: &Observed, undo: &Undo) -> Vec<String> {
    let mut failures = Vec::new();
    let mut attempt = |result: Result<()>| {
        if let Err(error) = result {
            tracing::warn!(%error, "during the rollback");
            failures.push(error.to_string());
        }
    };
    let units = [&before.socket, &before.service];
    if undo.units {
        for unit in units.into_iter().filter(|unit| unit.exists()) {
            let now = machine.unit(&unit.name);
            if now.map_or(true, |now| now.active != "inactive" && now.active != "failed") {
                attempt(machine.job("StopUnit", &unit.name, JOB));
            }
        }
    }
    for (path, image) in &undo.paths {
        attempt(put_back(machine, path, image));
    }
    if undo.unit_files {
        attempt(machine.reload());
    }
    if undo.units {
        for unit in units.into_iter().filter(|unit| unit.is_active()) {
            super::forgive(machine, &unit.name);
            attempt(machine.job("StartUnit", &unit.name, JOB));
        }
    }
    // A unit that was stopped half-way is "failed" where it was "inactive" before.
    for unit in units.into_iter().filter(|unit| unit.exists() && unit.active == "inactive") {
        super::forgive(machine, &unit.name);
    }
    // An orphaned sshd that was ended cannot come back; never leave the host without any.
    if undo.ended && units.into_iter().all(|unit| !unit.is_active()) {
        attempt(machine.job("StartUnit", &before.service.name, JOB));
    }
    failures
}

/// A folder that was absent goes only when it is empty again.
fn put_back(machine: &dyn Machine, path: &Path, image: &Image) -> Result<()> {
    let files = machine.files();
    let now = files.image(path)?;
    if now == *image {
        return Ok(());
    }
    if *image == Image::Absent
        && matches!(now, Image::Directory { .. })
        && !files.list(path).is_empty()
    {
        return Ok(());
    }
    files.put(path, image)
}
