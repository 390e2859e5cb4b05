//! What has to be undone, worked out from the records, and how a path is put back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::step::Op;
use crate::sys::fault::point;
use crate::sys::units::is_made_by_hand;
use crate::sys::{Files, Image, Result};
use crate::transaction::journal::Record;
use crate::transaction::run::{self, Run};

/// What has to be undone, worked out from the records alone. Pure.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Undo {
    /// Some unit was stopped, started or restarted.
    pub(super) units: bool,
    /// Some unit file or link may have changed.
    pub(super) unit_files: bool,
    /// A process was ended that cannot be brought back.
    pub(super) ended: bool,
    /// Paths and what was there, in the order in which to put them back.
    pub(super) paths: Vec<(PathBuf, Image)>,
    /// What was written to each path.
    pub(super) written: BTreeMap<PathBuf, Vec<Image>>,
}

/// What a transaction found at the paths that it changed, and what it wrote there.
pub fn changed(records: &[Record]) -> (Vec<(PathBuf, Image)>, BTreeMap<PathBuf, Image>) {
    let undo = undo(records);
    let last =
        |(path, images): (PathBuf, Vec<Image>)| Some((path, images.into_iter().next_back()?));
    (undo.paths, undo.written.into_iter().filter_map(last).collect())
}

/// Every step that was begun, or may have been, with what was at its paths.
fn begun(records: &[Record]) -> Vec<(Op, Vec<(PathBuf, Image)>)> {
    let begun = records.iter().filter_map(|record| match record {
        Record::Step { op, before, .. } => Some((op.clone(), before.clone())),
        _ => None,
    });
    let lost = if records.contains(&Record::Damaged) { run::planned(records) } else { Vec::new() };
    begun.chain(lost).collect()
}

/// The units whose start at boot a transaction has changed.
pub(in crate::transaction) fn enabled_or_disabled(records: &[Record]) -> BTreeSet<String> {
    let unit = |(op, _)| match op {
        Op::Enable(unit) | Op::Disable(unit) | Op::Unmask(unit) => Some(unit),
        _ => None,
    };
    begun(records).into_iter().filter_map(unit).collect()
}

pub(super) fn undo(records: &[Record]) -> Undo {
    let mut undo = Undo::default();
    let begun = begun(records);
    let mut seen = BTreeSet::new();
    let mut folders = Vec::new();
    let mut others = Vec::new();
    for (op, before) in &begun {
        undo.units |= op.runs_unit().is_some();
        if let Op::Put { path, image } = op {
            undo.written.entry(path.clone()).or_default().push(image.clone());
        }
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
    // A boot began with units as the files were then; one that somebody had started by hand does not run.
    let rebooted = run::boots(records) > 1;
    undo.units |= rebooted;
    undo.unit_files |= rebooted && !seen.is_empty();
    // Folders that were there come first; what was not there goes last, deepest path first.
    others.sort_by_key(|(path, image)| {
        (*image == Image::Absent, std::cmp::Reverse(path.components().count()))
    });
    undo.paths = folders.into_iter().chain(others).collect();
    undo
}

/// Puts every path back that nobody else has changed meanwhile.
pub(in crate::transaction) fn files(run: &Run) -> Result<()> {
    let undo = undo(run.records());
    for (number, (path, image)) in undo.paths.iter().enumerate() {
        point(format_args!("recovery.path-{}", number + 1))?;
        if !is_edited(run.machine.files(), path, image, undo.written.get(path)) {
            run.machine.files().put_back(path, image)?;
        }
    }
    Ok(())
}

/// Whether there is something at a path that is neither what was there nor what harden wrote.
pub(super) fn is_edited(
    files: &Files,
    path: &Path,
    image: &Image,
    written: Option<&Vec<Image>>,
) -> bool {
    let Ok(now) = files.image(path) else { return false };
    let is_ours = match written {
        Some(written) => written.iter().any(|written| now.is_like(written)),
        // To enable and disable makes links, and takes them away.
        None => !is_made_by_hand(path, &now),
    };
    !now.is_like(image) && !is_ours
}
