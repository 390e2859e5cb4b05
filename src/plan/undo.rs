//! The plan that undoes an earlier transaction: the images from before it, put back the same safe
//! way. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Change, Plan, arrange, describe};
use crate::concern;
use crate::concern::units::Transition;
use crate::error::Refusal;
use crate::observe::{CommandLine, Observed, UNIT_FOLDER};
use crate::sshd::{ConfigFile, ConfigTree};
use crate::step::{Expectation, FileChange, Op, Step, UnitExpectation, file_steps};
use crate::sys::Image;
use crate::sys::files::Meta;
use crate::sys::units::{directives, is_made_by_hand};

/// What an earlier transaction found, and what it wrote.
#[derive(Debug, Clone, Copy)]
pub struct Earlier<'a> {
    /// Its id.
    pub id: &'a str,
    /// The host before it.
    pub before: &'a Observed,
    /// What was at each path that it could change, in an order in which they can be put back.
    pub images: &'a [(PathBuf, Image)],
    /// What it wrote to paths.
    pub written: &'a BTreeMap<PathBuf, Image>,
}

/// Plans the way back to the state before an earlier transaction.
///
/// `present` is what is at each of its paths now.
///
/// # Errors
/// A refusal where somebody has changed one of its files since, or the state before it had no
/// listener to go back to.
pub fn undo(
    earlier: Earlier,
    observed: &Observed,
    present: &BTreeMap<PathBuf, Image>,
) -> Result<Plan, Refusal> {
    concern::units::refuse_unread(observed)?;
    let at = |path: &Path| present.get(path).unwrap_or(&Image::Absent);
    // What was for that boot alone is gone, or does no harm.
    let lasts = |path: &Path| !path.starts_with("/run");
    for (path, written) in earlier.written.iter().filter(|(path, _)| lasts(path)) {
        if !at(path).is_like(written) {
            return Err(Refusal::new(
                "edited-since",
                format!("{} was changed after transaction {}", path.display(), earlier.id),
                "undo what changed it first, or edit the file by hand",
            ));
        }
    }
    refuse_units_since(earlier, at)?;
    refuse_addresses_since(earlier, observed)?;
    concern::units::refuse_blocked(observed)?;
    if !observed.held().is_empty() {
        concern::sshd_config::refuse_invalid(observed)?;
    }
    let changed: Vec<&(PathBuf, Image)> = earlier
        .images
        .iter()
        .filter(|(path, image)| lasts(path) && !at(path).is_like(image))
        .collect();
    let is_unit = |path: &Path| path.starts_with(UNIT_FOLDER);
    let (units, sshd): (Vec<_>, Vec<_>) = changed.iter().partition(|(path, _)| is_unit(path));
    let why = format!("It was so before transaction {}.", earlier.id);
    let put = |(path, image): &&(PathBuf, Image)| Step {
        op: Op::Put { path: path.clone(), image: image.clone() },
        why: why.clone(),
    };
    let texts = |paths: &[&(PathBuf, Image)], concern| -> Vec<FileChange> {
        paths
            .iter()
            .filter_map(|(path, image)| file(path, at(path), image, concern, &why))
            .collect()
    };
    let sparing = sparing_sessions(earlier.before, observed);
    let mut settle = file_steps(observed, sparing.as_slice());
    settle.extend(units.iter().map(put));
    let transition = transition(earlier, observed, settle, &why)?;
    concern::units::refuse_refusing(observed, transition.steps())?;
    concern::units::refuse_taken(observed, &earlier.before.held())?;
    refuse_untried_since(earlier.before, observed)?;
    let unit_texts = texts(&units, "units").into_iter().chain(sparing).collect();
    let transition = Transition { files: unit_texts, ..transition };
    let expect = expectation(earlier.before, &transition);
    let files = texts(&sshd, "sshd");
    let changes: Vec<Change> = describe::changes(observed, &expect, &files, &transition);
    let steps = sshd.iter().map(put).collect();
    let (trial, steps) = arrange::arrange(observed, &expect, steps, &transition);
    let options = command_line(earlier, observed).settings();
    let candidate = candidate(earlier.before, observed, &sshd);
    let warnings = at_boot(earlier, &expect);
    Ok(Plan { changes, warnings, trial, steps, expect, candidate, options })
}

/// What a unit does to its sshd was tried then, unless somebody has written it since; and so were the options of each
/// connection's.
fn refuse_untried_since(before: &Observed, observed: &Observed) -> Result<(), Refusal> {
    let by_socket = before.socket.is_active();
    let name = if by_socket { before.behind_socket() } else { before.service.name.clone() };
    if by_socket {
        concern::units::refuse_other_options(observed)?;
    }
    match observed.untried_since(before, &name) {
        None => Ok(()),
        Some(_) => concern::units::refuse_untried(observed, &name, by_socket),
    }
}

/// What the next boot would make of the state before.
fn at_boot(earlier: Earlier, expect: &Expectation) -> Vec<String> {
    let Earlier { id, before, .. } = earlier;
    let Expectation { owner, .. } = expect;
    let starts = |name: &str| expect.units.iter().any(|unit| unit.name == name && unit.enabled);
    let other = &before.socket.name;
    let is_left_out = !starts(owner) && !starts(other);
    let is_left_out = is_left_out.then(|| {
        format!(
            "before transaction {id} {owner} was not enabled: it would not start at the next boot"
        )
    });
    let is_taken = (owner != other && starts(other)).then(|| {
        format!("before transaction {id} {other} was enabled: it would have the port after the next boot")
    });
    is_left_out.into_iter().chain(is_taken).collect()
}

/// The command line that sshd will have: the present one, with the words from the environment file as they were
/// where the transaction has changed that, and the unit still reads it.
fn command_line(earlier: Earlier, observed: &Observed) -> CommandLine {
    let then = &earlier.before.command_line;
    let comes_back = |file: &&ConfigFile| {
        let reads = observed.service.environment_files.contains(&file.path);
        reads && earlier.images.iter().any(|(path, _)| *path == file.real)
    };
    let names = [format!("${}", then.variable), format!("${{{}}}", then.variable)];
    let is_used = observed.service.exec_start.iter().any(|word| names.contains(word));
    let mut line = observed.command_line.clone();
    if is_used && then.file.as_ref().filter(comes_back).is_some() {
        line.words.clone_from(&then.words);
    }
    line
}

/// A unit file or a mask where the transaction has made links alone is somebody's, and stays theirs.
fn refuse_units_since<'i>(
    earlier: Earlier,
    at: impl Fn(&Path) -> &'i Image,
) -> Result<(), Refusal> {
    let links = earlier.images.iter().filter(|(path, _)| !earlier.written.contains_key(path));
    let is_new = |(path, image): &&(PathBuf, Image)| {
        is_made_by_hand(path, at(path)) && !at(path).is_like(image)
    };
    let Some((path, _)) = links.into_iter().find(is_new) else { return Ok(()) };
    let unit = path.file_name().unwrap_or_default().to_string_lossy();
    let (what, hint) = if at(path).is_mask() {
        let hint = "if it shall start again, and then `harden rollback`";
        (format!("{unit} was masked"), format!("systemctl unmask {unit}, {hint}"))
    } else {
        let hint = "move it away, or keep it, and undo the rest by hand".to_owned();
        (format!("{} was made or changed", path.display()), hint)
    };
    let message = format!("{what} after transaction {}", earlier.id);
    Err(Refusal::new("edited-since", message, hint))
}

/// Where the socket to go back to listens stands in drop-ins that somebody may have edited since.
fn refuse_addresses_since(earlier: Earlier, observed: &Observed) -> Result<(), Refusal> {
    let Earlier { id, before, images, .. } = earlier;
    let comes_back = |path: &Path| images.iter().any(|(other, _)| other == path);
    let says = |host: &Observed, path: &Path| -> Vec<String> {
        let text = host.unit_files.get(path).map(|file| file.text.as_str()).unwrap_or_default();
        let streams = directives(text).into_iter().filter(|(key, _)| *key == "ListenStream");
        streams.map(|(_, value)| value.to_owned()).collect()
    };
    let mut drop_ins = before.socket.drop_ins.iter().chain(&observed.socket.drop_ins);
    let is_edited = |path: &&PathBuf| {
        path.starts_with(UNIT_FOLDER)
            && !comes_back(path)
            && says(before, path) != says(observed, path)
    };
    let Some(path) = drop_ins.find(is_edited).filter(|_| before.socket.is_active()) else {
        return Ok(());
    };
    let said = match says(observed, path).as_slice() {
        [] => "no longer says ListenStream".to_owned(),
        streams => format!("says ListenStream={}", streams.join(" ")),
    };
    Err(Refusal::new(
        "edited-since",
        format!(
            "{} would listen elsewhere: {} {said} since transaction {id}",
            before.socket.name,
            path.display()
        ),
        "undo that edit first, or apply a spec that says where sshd shall listen",
    ))
}

fn file(
    path: &Path,
    now: &Image,
    then: &Image,
    concern: &'static str,
    why: &str,
) -> Option<FileChange> {
    let text = |image: &Image| match image {
        Image::File { content, .. } => Some(String::from_utf8_lossy(content).into_owned()),
        _ => None,
    };
    let meta = |image: &Image| match image {
        Image::File { meta, .. } => Some(meta.clone()),
        _ => None,
    };
    let (before, after) = (text(now), text(then));
    if before.is_none() && after.is_none() {
        return None;
    }
    Some(FileChange {
        path: path.to_owned(),
        before,
        after,
        meta: meta(then).unwrap_or_else(|| Meta::root(0o644)),
        concern,
        reason: why.to_owned(),
    })
}

/// The units let go, their files and links come back, and the old owner starts.
fn transition(
    earlier: Earlier,
    observed: &Observed,
    mut settle: Vec<Step>,
    why: &str,
) -> Result<Transition, Refusal> {
    let before = earlier.before;
    let owner = [&before.socket, &before.service].into_iter().find(|unit| unit.is_active());
    let Some(owner) = owner.filter(|_| !before.held().is_empty()) else {
        return Err(Refusal::new(
            "no-listener-before",
            format!("before transaction {} nothing listened for SSH", earlier.id),
            "going back there would lock you out; apply a spec that says what you want",
        ));
    };
    let step = |op| Step { op, why: why.to_owned() };
    let release = observed.to_release().into_iter();
    let release = release.map(|unit| step(Op::Stop(unit.name.clone())));
    if !settle.is_empty() {
        settle.push(step(Op::Reload));
    }
    let reasons =
        [&before.socket, &before.service].map(|unit| (unit.name.clone(), why.to_owned())).to_vec();
    Ok(Transition {
        release: release.collect(),
        settle,
        take: Some(step(Op::Start(owner.name.clone()))),
        reasons,
        ..Transition::default()
    })
}

/// Where ssh.service takes over again: what keeps sessions of the socket from taking its folder away.
pub(crate) fn sparing_sessions(before: &Observed, observed: &Observed) -> Option<FileChange> {
    let by_service = before.service.is_active() && !before.socket.is_active();
    concern::units::sparing_sessions(observed).filter(|_| by_service)
}

fn expectation(before: &Observed, transition: &Transition) -> Expectation {
    let owner = transition.take.as_ref().and_then(|step| step.op.runs_unit()).unwrap_or_default();
    let units = [&before.service, &before.socket].into_iter().filter(|unit| unit.exists());
    let units = units.map(|unit| UnitExpectation {
        name: unit.name.clone(),
        // In socket mode sshd comes and goes with the connections.
        active: if unit.name == owner {
            Some(true)
        } else {
            (unit.name == before.socket.name).then_some(false)
        },
        enabled: unit.is_enabled(),
    });
    Expectation {
        endpoints: before.held(),
        owner: owner.to_owned(),
        units: units.collect(),
        ..Expectation::default()
    }
}

/// sshd's files as they are, with those of the earlier transaction as they were.
fn candidate(then: &Observed, now: &Observed, sshd: &[&(PathBuf, Image)]) -> ConfigTree {
    let mut tree = now.config.clone();
    let is = |file: &ConfigFile, path: &Path| file.path == path || file.real == path;
    for (path, image) in sshd {
        tree.files.retain(|file| !is(file, path));
        let old = then.config.files.iter().find(|file| is(file, path));
        if let (Image::File { .. }, Some(old)) = (image, old) {
            tree.files.push(old.clone());
        } else {
            for found in tree.includes.values_mut() {
                found.retain(|found| found != path);
            }
        }
    }
    for (pattern, found) in &then.config.includes {
        let present = tree.includes.entry(pattern.clone()).or_default();
        for path in found.iter().filter(|path| tree.files.iter().any(|file| is(file, path))) {
            if !present.contains(path) {
                present.push(path.clone());
            }
        }
        present.sort();
    }
    tree
}
