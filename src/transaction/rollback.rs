//! The way back: from a journal to the state before, and the proof of it.
//!
//! It goes by state, not by inverse of each step: stop what was started, put every path back, make
//! systemd read it, start what ran. So it can be begun again from any point, any number of times.
//! Meanwhile the bridges listen: the rescue on the old port until its owner comes back, the trial
//! on the new one while the rescue makes room for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::comeback::{Back, RESTART};
use super::journal::Record;
use super::machine::{JOB, LISTENERS, Machine};
use super::run::Run;
use super::steps::forgive;
use super::{Outcome, along, bridge, comeback, guard, run};
use crate::error::Error;
use crate::observe::{Listener, NOT_TO_BE_RUN, Observed, Owner, Verdict};
use crate::plan::{self, Bridge, Op, Role, held};
use crate::sys::fault::point;
use crate::sys::units::Unit;
use crate::sys::{Files, Image, Result};

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
    /// What was written to each path.
    written: BTreeMap<PathBuf, Vec<Image>>,
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
pub(super) fn enabled_or_disabled(records: &[Record]) -> BTreeSet<String> {
    let unit = |(op, _)| match op {
        Op::Enable(unit) | Op::Disable(unit) | Op::Unmask(unit) => Some(unit),
        _ => None,
    };
    begun(records).into_iter().filter_map(unit).collect()
}

fn undo(records: &[Record]) -> Undo {
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
pub(super) fn files(run: &Run) -> Result<()> {
    let undo = undo(run.records());
    for (number, (path, image)) in undo.paths.iter().enumerate() {
        point(format_args!("recovery.path-{}", number + 1))?;
        if !is_edited(run.machine.files(), path, image, undo.written.get(path)) {
            put_back(run.machine.files(), path, image)?;
        }
    }
    Ok(())
}

/// Takes a transaction back and proves it.
pub(super) fn run(run: &mut Run, cause: &str) -> Outcome {
    // A journal on a full disk must not stop the way back.
    if !run.has(|record| matches!(record, Record::Rollback { .. })) {
        run.record_if_possible(Record::Rollback { cause: cause.to_owned() });
    }
    run.note(&format!("taking everything back: {cause}"));
    let undo = undo(run.records());
    let mut way = Way { run, failures: Vec::new(), kept: BTreeSet::new() };
    way.restore(&undo);
    let (failures, kept) = (way.failures, way.kept);
    let left = left(run, &undo, kept, failures);
    if left.is_empty() {
        match guard::close(run, "rolled-back", Some(cause)) {
            Ok(()) => return Outcome::RolledBack { cause: cause.to_owned() },
            Err(error) => return stuck(run, cause, vec![error.to_string()]),
        }
    }
    stuck(run, cause, left)
}

/// What is not as it was; edits that somebody else made meanwhile are theirs, and are only told.
fn left(
    run: &mut Run,
    undo: &Undo,
    mut kept: BTreeSet<PathBuf>,
    mut failures: Vec<String>,
) -> Vec<String> {
    let ours: BTreeSet<&PathBuf> = undo.paths.iter().map(|(path, _)| path).collect();
    // (A model of a host changes by what is done to it alone.)
    let deadline = Instant::now() + if cfg!(test) { Duration::ZERO } else { RESTART };
    let (strangers, moved) = loop {
        let mut now = match settled(run) {
            Ok(now) => now,
            Err(error) => {
                failures.push(error.to_string());
                return failures;
            }
        };
        kept.extend(run.before.edited(&now).into_iter().filter(|path| !ours.contains(path)));
        let (strangers, rest): (Vec<_>, _) =
            now.listeners.drain(..).partition(|at| is_strange(&run.before, at));
        now.listeners = rest;
        let mut moved = run.before.differences_beside(&now, undo.ended, &kept);
        let leaving = [&now.socket, &now.service].into_iter().filter(|unit| unit.job == "stop");
        moved.extend(leaving.map(|unit| format!("{} is {}", unit.name, unit.doing())));
        // A unit that somebody restarts rests for a moment.
        if moved.is_empty() || Instant::now() >= deadline {
            break (strangers, moved);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    for path in &kept {
        run.note(&format!("somebody else changed {}; their edit stays", path.display()));
    }
    for stranger in strangers {
        let Listener { owner, address, port, .. } = stranger;
        let at = SocketAddr::new(address, port);
        run.note(&format!("{owner} listens for SSH on {at}; it is somebody's own, and stays"));
    }
    if moved.is_empty() {
        // What failed on the way did not matter.
        return Vec::new();
    }
    failures.extend(moved);
    failures
}

/// Whether somebody has started an sshd of their own meanwhile, where none was before.
fn is_strange(before: &Observed, listener: &Listener) -> bool {
    let (service, socket) = (&before.service.name, &before.socket.name);
    let own = match &listener.owner {
        Owner::Unit(unit) => unit == service || unit == socket,
        Owner::Process(process) => process.unit == *service || process.unit.starts_with("harden-"),
        Owner::Unseen => true,
    };
    let was_served = |at: &SocketAddr| {
        before.listeners.iter().any(|listener| listener.ssh && listener.serves().contains(at))
    };
    listener.ssh && !own && !listener.serves().iter().any(was_served)
}

/// The host when no unit of sshd's is on its way any more: somebody may restart it just now.
fn settled(run: &Run) -> std::result::Result<Observed, Error> {
    let deadline = Instant::now() + LISTENERS;
    loop {
        let now = run.machine.observe()?;
        let before = |unit: &Unit| {
            [&run.before.socket, &run.before.service]
                .into_iter()
                .any(|was| was.name == unit.name && was.active == unit.active)
        };
        let moving = [&now.socket, &now.service]
            .into_iter()
            .any(|unit| !unit.job.is_empty() || (unit.is_on_its_way() && !before(unit)));
        if !moving || Instant::now() > deadline {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The journal is gone, and with it what there was before. What listens goes on listening unless
/// a unit of sshd's takes its place: one that is enabled, or else ssh.service.
pub(super) fn without_a_journal(machine: &dyn Machine, id: &str) {
    if let Err(error) = start_what_is_enabled(machine, id) {
        tracing::error!(%error, "what listens stays");
        return;
    }
    guard::stand_down(machine, id, &[]);
}

fn start_what_is_enabled(machine: &dyn Machine, id: &str) -> std::result::Result<(), Error> {
    let now = machine.observe()?;
    let units = [&now.socket, &now.service];
    if units.into_iter().any(Unit::is_active) {
        return Ok(());
    }
    let owner = units.into_iter().find(|unit| unit.is_enabled()).unwrap_or(&now.service);
    for role in [Role::Trial, Role::Rescue] {
        machine.silence(&bridge::unit(id, role))?;
    }
    machine.silence(&bridge::keeper(id))?;
    Ok(machine.job("StartUnit", &owner.name, JOB)?)
}

/// Nothing can be promised any more but a way in: the rescue listens wherever the old listeners
/// should and do not.
fn stuck(run: &mut Run, cause: &str, left: Vec<String>) -> Outcome {
    if let Err(error) = listen_where_nobody_does(run) {
        tracing::error!(%error, "no rescue listener");
    }
    tracing::error!("transaction {} could not be taken back: {}", run.id, left.join("; "));
    tracing::error!(
        "keep your session open; see `systemctl status ssh.service ssh.socket`, then run `harden \
         rollback`"
    );
    run.record_if_possible(Record::Stuck { cause: cause.to_owned(), left: left.clone() });
    Outcome::NeedsOperator { cause: cause.to_owned(), left }
}

fn listen_where_nobody_does(run: &mut Run) -> std::result::Result<(), Error> {
    let now = held_for_good(&run.machine.observe()?);
    let endpoints: Vec<_> = held(&run.before).into_iter().filter(|at| !now.contains(at)).collect();
    if !endpoints.is_empty() {
        let rescue = Bridge { role: Role::Rescue, endpoints };
        if let Err(error) = bridge::listen_at_last(run, &rescue) {
            run.note("a rescue listener with the old configuration waits for the old port");
            return Err(error.into());
        }
        run.note("a rescue listener with the old configuration holds the old port");
    }
    Ok(())
}

/// Where the two units listen, without one that just stops: that takes its time, and then nobody does.
fn held_for_good(now: &Observed) -> Vec<SocketAddr> {
    let leaves = |unit: &Unit| unit.active == "deactivating" || unit.job == "stop";
    let mut staying = now.clone();
    for unit in [&now.socket, &now.service].into_iter().filter(|unit| leaves(unit)) {
        staying.listeners.retain(|listener| listener.owner != Owner::Unit(unit.name.clone()));
    }
    held(&staying)
}

/// The way back as it is gone: on past failures, which are kept.
struct Way<'r, 'm> {
    run: &'r mut Run<'m>,
    failures: Vec<String>,
    kept: BTreeSet<PathBuf>,
}

impl Way<'_, '_> {
    fn attempt(&mut self, result: Result<()>) {
        if let Err(error) = result {
            tracing::warn!(%error, "during the rollback");
            self.failures.push(error.to_string());
        }
    }

    /// Brings a bridge up; where that fails there is a gap, and nothing worse.
    fn carry(&self, role: Role) {
        let Some(bridge) = self.run.bridge(role) else { return };
        if let Err(error) = bridge::listen(self.run, &bridge) {
            tracing::warn!(%error, "no bridge during the rollback");
        }
    }

    fn drop_bridge(&mut self, role: Role) {
        let silenced = bridge::silence(self.run, role);
        self.attempt(silenced);
    }

    /// A named point, which only a test makes fail.
    fn pass(&mut self, name: std::fmt::Arguments) {
        let passed = point(name);
        self.attempt(passed);
    }

    fn restore(&mut self, undo: &Undo) {
        let before = self.run.before.clone();
        self.pass(format_args!("rollback.begun"));
        self.withdraw(&before);
        // Somebody may have stopped the old owner, which nothing of harden's has touched yet.
        let units = !self.still_runs(&before, undo.ended) && (undo.units || !self.holds(&before));
        if units {
            along::remember_all(self.run);
        }
        let apart = self.run.bridge(Role::Rescue).is_some();
        if units && apart {
            self.carry(Role::Rescue);
        }
        self.pass(format_args!("rollback.rescue"));
        if units {
            self.stop_units(&before);
        }
        self.pass(format_args!("rollback.stopped"));
        if units && apart {
            self.carry(Role::Trial);
        }
        for (number, (path, image)) in undo.paths.iter().enumerate() {
            self.pass(format_args!("rollback.path-{}", number + 1));
            self.put_back(path, image, undo.written.get(path));
        }
        // On a full disk there may be room once the new files are gone.
        for (path, image) in &undo.paths {
            self.put_back(path, image, undo.written.get(path));
        }
        let spared = self.spare_sessions(&before);
        if undo.unit_files || spared {
            let reloaded = self.run.machine.reload();
            self.attempt(reloaded);
        }
        self.pass(format_args!("rollback.reloaded"));
        if !apart {
            self.drop_bridge(Role::Trial);
        }
        // Then nothing would listen until a start has failed.
        let refused = units && self.is_refused();
        if !refused {
            self.drop_bridge(Role::Rescue);
        }
        self.pass(format_args!("rollback.silenced"));
        if units && !self.bring_back(&before, undo.ended, refused) {
            return;
        }
        along::start(self.run);
        self.drop_bridge(Role::Trial);
        self.pass(format_args!("rollback.done"));
    }

    /// Starts the old owners, unless they `refused` to already, and waits until they are back; else a rescue
    /// listens, and where that does not come up either, not all is done: the trial stays.
    fn bring_back(&mut self, before: &Observed, ended: bool, refused: bool) -> bool {
        if !refused {
            self.start_units(before, ended);
        }
        self.pass(format_args!("rollback.started"));
        let has_failed = !self.failures.is_empty();
        let back = match refused {
            true => Back::Unsteady,
            false => comeback::wait(self.run, before, has_failed),
        };
        if back != Back::Lasting {
            self.call_off(before, back);
            if let Err(error) = listen_where_nobody_does(self.run) {
                tracing::error!(%error, "no rescue listener; the trial stays");
                self.failures.push(error.to_string());
                return false;
            }
        }
        true
    }

    /// Calls off stops of sshd's units that somebody has asked for, a worker before this one as a rule, and that
    /// systemd has not carried out: they would be when nobody expects it any more.
    fn withdraw(&mut self, before: &Observed) {
        for unit in [&before.socket, &before.service] {
            if self.run.machine.unit(&unit.name).is_ok_and(|now| now.job == "stop") {
                self.run
                    .note(&format!("systemd was about to stop {}; that is called off", unit.name));
                // What stops along with it may have done so.
                along::remember_all(self.run);
                let withdrawn = self.run.machine.cancel_job(&unit.name);
                self.attempt(withdrawn);
            }
        }
    }

    /// Somebody has edited files of sshd's or its unit's meanwhile so that it does not start any more.
    fn is_refused(&mut self) -> bool {
        let Ok(now) = self.run.machine.observe() else { return false };
        let owners =
            [(&self.run.before.socket, &now.socket), (&self.run.before.service, &now.service)];
        let owners = owners.into_iter().filter(|(was, _)| was.is_active()).map(|(_, is)| is);
        let why = match &now.effective {
            Verdict::Invalid(said) => Some(format!("sshd refuses its configuration: {said}")),
            _ if now.not_to_be_run => Some(format!("{NOT_TO_BE_RUN} exists: remove it")),
            _ => owners.filter_map(|unit| cannot_start(self.run.machine, unit)).next(),
        };
        let is_refused = why.is_some();
        self.failures.extend(why);
        is_refused
    }

    /// The old owners have never let go; or, after a reboot, the old state is back already.
    fn still_runs(&self, before: &Observed, ended: bool) -> bool {
        let Ok(now) = self.run.machine.observe() else { return false };
        let same_run = now.service.main_pid == before.service.main_pid
            && now.service.active == before.service.active
            && now.socket.active == before.socket.active
            && held(&now) == held(before);
        same_run || (!now.stale && before.differences(&now, ended).is_empty())
    }

    /// Whether the old listeners are all there.
    fn holds(&self, before: &Observed) -> bool {
        let Ok(now) = self.run.machine.observe() else { return true };
        // ssh.service goes on with the listener of a socket that was stopped, and ends with its last session.
        let owner = |host: &Observed| {
            let by = if before.socket.is_active() { &host.socket } else { &host.service };
            by.is_active()
        };
        let staying = held_for_good(&now);
        (owner(&now) || !owner(before)) && held(before).iter().all(|at| staying.contains(at))
    }

    fn stop_units(&mut self, before: &Observed) {
        for unit in [&before.socket, &before.service].into_iter().filter(|unit| unit.exists()) {
            let now = self.run.machine.unit(&unit.name);
            if now.map_or(true, |now| !now.rests()) {
                let stopped = self.run.machine.job("StopUnit", &unit.name, JOB);
                self.attempt(stopped);
            }
        }
        self.end_orphans(before);
    }

    /// An sshd that ssh.service left behind meanwhile was not there before.
    fn end_orphans(&mut self, before: &Observed) {
        let Ok(now) = self.run.machine.observe() else { return };
        for listener in now.listeners.iter().filter(|listener| listener.ssh) {
            let Owner::Process(process) = &listener.owner else { continue };
            let known = before.listeners.iter().any(|listener| match &listener.owner {
                Owner::Process(other) => other.is(process),
                _ => false,
            });
            if process.unit == before.service.name && !known {
                let ended = self.run.machine.end(process);
                self.attempt(ended);
            }
        }
    }

    fn put_back(&mut self, path: &Path, image: &Image, written: Option<&Vec<Image>>) {
        let files = self.run.machine.files();
        if is_edited(files, path, image, written) {
            self.kept.insert(path.to_owned());
            return;
        }
        let done = put_back(files, path, image);
        self.attempt(done);
    }

    /// Sessions that ssh.socket has started meanwhile must not take sshd's folder away from ssh.service. Tells
    /// whether there is something new for systemd to read.
    fn spare_sessions(&mut self, before: &Observed) -> bool {
        let machine = self.run.machine;
        if !before.socket.accept {
            return false;
        }
        let Ok(now) = machine.observe() else { return false };
        let drop_in = plan::sparing_sessions(before, &now);
        let steps = plan::file_steps(&now, drop_in.as_slice());
        for step in &steps {
            if let Op::Put { path, image } = &step.op {
                self.attempt(machine.files().put(path, image));
            }
        }
        !steps.is_empty()
    }

    fn start_units(&mut self, before: &Observed, ended: bool) {
        let machine = self.run.machine;
        let units = [&before.socket, &before.service];
        for unit in units.into_iter().filter(|unit| unit.is_active()) {
            forgive(machine, &unit.name);
            self.attempt(machine.job("StartUnit", &unit.name, JOB));
        }
        // A unit that was stopped half-way is "failed" where it was "inactive" before.
        for unit in units.into_iter().filter(|unit| unit.exists() && unit.active == "inactive") {
            forgive(machine, &unit.name);
        }
        // An orphaned sshd that was ended cannot come back; never leave the host without any.
        if ended && units.into_iter().all(|unit| !unit.is_active()) {
            self.attempt(machine.job("StartUnit", &before.service.name, JOB));
        }
    }

    /// Calls off what systemd still tries to start, or starts again and again: it would be in the way of the
    /// rescue, and take its port.
    fn call_off(&mut self, before: &Observed, back: Back) {
        // Behind a socket sshd comes and goes with the connections.
        let comes_and_goes = back == Back::Unsteady && !before.socket.is_active();
        for unit in [&before.socket, &before.service].into_iter().filter(|unit| unit.exists()) {
            let now = self.run.machine.unit(&unit.name);
            if now.is_ok_and(|now| now.is_on_its_way() || (comes_and_goes && now.is_active())) {
                let stopped = self.run.machine.job("StopUnit", &unit.name, JOB);
                self.attempt(stopped);
            }
        }
    }
}

/// Why systemd will not start a unit that somebody has changed meanwhile, and what helps.
fn cannot_start(machine: &dyn Machine, unit: &Unit) -> Option<String> {
    let name = &unit.name;
    let is_lost =
        |name: &&String| machine.unit(name).is_ok_and(|unit| !unit.exists() || unit.is_masked());
    if unit.is_masked() {
        Some(format!("{name} is masked: systemctl unmask {name}"))
    } else if unit.is_broken() {
        Some(format!("systemd cannot read {name} ({}): see systemctl status {name}", unit.load))
    } else if unit.refuses {
        Some(format!(
            "{name} may not be started by hand (RefuseManualStart=): systemctl cat {name}"
        ))
    } else {
        let lost = unit.requires.iter().find(is_lost)?;
        Some(format!("{name} requires {lost}, which is masked or missing"))
    }
}

/// Whether there is something at a path that is neither what was there nor what harden wrote.
fn is_edited(files: &Files, path: &Path, image: &Image, written: Option<&Vec<Image>>) -> bool {
    let (Some(written), Ok(now)) = (written, files.image(path)) else { return false };
    !now.is_like(image) && !written.iter().any(|written| now.is_like(written))
}

/// Puts one path back. A folder that was absent goes only when it is empty again.
pub(super) fn put_back(files: &Files, path: &Path, image: &Image) -> Result<()> {
    files.clear_beside(path);
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
