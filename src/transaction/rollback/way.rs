//! The way back as it is gone: on past failures, which are kept.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::undo::{Undo, is_edited};
use crate::concern::listening::configured;
use crate::error::Error;
use crate::observe::{Observed, Owner, Untried};
use crate::plan::{self};
use crate::step::{Bridge, Op, Role, file_steps};
use crate::sys::fault::point;
use crate::sys::units::Unit;
use crate::sys::{Image, Result};
use crate::transaction::comeback::{self, Back};
use crate::transaction::journal::Record;
use crate::transaction::machine::JOB;
use crate::transaction::run::Run;
use crate::transaction::{along, bridge, on_demand, welcome};

/// The way back as it is gone: on past failures, which are kept.
pub(super) struct Way<'r, 'm> {
    run: &'r mut Run<'m>,
    failures: Vec<String>,
    kept: BTreeSet<PathBuf>,
}

impl<'r, 'm> Way<'r, 'm> {
    pub(super) fn new(run: &'r mut Run<'m>) -> Self {
        Self { run, failures: Vec::new(), kept: BTreeSet::new() }
    }

    /// Goes it to the end. Returns what failed on it, and the paths that somebody else has edited.
    pub(super) fn go(mut self, undo: &Undo) -> (Vec<String>, BTreeSet<PathBuf>) {
        self.restore(undo);
        (self.failures, self.kept)
    }

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
        // A worker that died may have started the socket, and not seen whether anybody gets in.
        let is_back = self.still_runs(&before, undo.ended)
            && (!undo.units || on_demand::starts(self.run.machine, &before).is_ok());
        let units = !is_back && (undo.units || !self.holds(&before));
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
        // What keeps it from ending may be mended, and systemd has not read it yet.
        let again = self.run.has(|record| matches!(record, Record::Stuck { .. }));
        if undo.unit_files || spared || again {
            let reloaded = self.run.machine.reload();
            self.attempt(reloaded);
        }
        self.pass(format_args!("rollback.reloaded"));
        // Then nothing would listen until a start has failed.
        let refused = units && self.is_refused();
        if !(apart || refused && self.is_last(&before)) {
            self.drop_bridge(Role::Trial);
        }
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
        let vain = (back == Back::Lasting).then(|| welcome::lets_nobody_in(self.run)).flatten();
        let back = vain.map_or(back, Back::Mute);
        if let Back::Mute(why) = &back {
            self.failures.push(why.clone());
        }
        if back != Back::Lasting {
            self.call_off(before, &back);
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

    /// Where neither the old sshd would start nor a rescue, the trial is the last that listens.
    fn is_last(&self, before: &Observed) -> bool {
        let rescue = Bridge { role: Role::Rescue, endpoints: before.held() };
        match bridge::check(self.run, &rescue) {
            Ok(()) => false,
            Err(error) => {
                tracing::error!(%error, "a rescue listener would not start either");
                true
            }
        }
    }

    /// Somebody has edited files of sshd's or its unit's meanwhile so that it does not start any more.
    fn is_refused(&mut self) -> bool {
        let now = match self.run.observe() {
            Ok(now) => now,
            // What becomes of a start could not be seen either.
            Err(error) => {
                self.failures.push(error.to_string());
                return true;
            }
        };
        let mut why = self.obstacle(&now);
        // Mended, perhaps, and systemd has not read it yet.
        if why.is_some() {
            let reloaded = self.run.machine.reload();
            self.attempt(reloaded);
            why = self.run.observe().ok().and_then(|now| self.obstacle(&now));
        }
        let why = why.or_else(|| self.shut_out(&now));
        let is_refused = why.is_some();
        self.failures.extend(why);
        is_refused
    }

    fn obstacle(&self, now: &Observed) -> Option<String> {
        let owners = [&self.run.before.socket, &self.run.before.service].into_iter();
        let owners = owners.filter(|unit| unit.is_active()).map(|unit| unit.name.as_str());
        let owners: Vec<_> = owners.collect();
        let owner = owners.first()?;
        now.obstacle(&owners)
            .or_else(|| self.elsewhere(now, owner))
            .or_else(|| self.shut_in(now, owner))
    }

    /// Somebody has written into its unit what keeps people out, or from what they may do.
    fn shut_in(&self, now: &Observed, owner: &str) -> Option<String> {
        let before = &self.run.before;
        let serving =
            if owner == before.socket.name { before.behind_socket() } else { owner.into() };
        let Untried { unit, directive, path, .. } = now.untried_since(before, &serving)?;
        Some(format!(
            "{unit} has `{directive}` by now ({}), and no sshd has run with that: take it out there, and \
             systemctl daemon-reload",
            path.display()
        ))
    }

    /// Somebody has edited sshd's files so that it would start, and turn people away.
    fn shut_out(&self, now: &Observed) -> Option<String> {
        let admins = self.run.terms.as_ref().map(|terms| terms.admins.as_slice());
        self.run.machine.shut_out(&self.run.before, now, admins.unwrap_or_default())
    }

    /// Somebody has edited where sshd listens: it would start, and not be back.
    fn elsewhere(&self, now: &Observed, owner: &str) -> Option<String> {
        let before = &self.run.before;
        let would_listen = |host: &Observed| match host.effective.valid() {
            _ if owner == before.socket.name => configured(host),
            Some(effective) => effective.listen(),
            None => Vec::new(),
        };
        let (then, there) = (would_listen(before), would_listen(now));
        let is_lost = |at: &SocketAddr| then.contains(at) && !there.contains(at);
        let lost = before.held().into_iter().find(is_lost).filter(|_| !there.is_empty())?;
        let there: Vec<String> = there.iter().map(ToString::to_string).collect();
        Some(format!(
            "{owner} would listen on {}, and not on {lost} any more: put Port, ListenAddress, AddressFamily and \
             sshd's options back as they were",
            there.join(", ")
        ))
    }

    /// The old owners have never let go; or, after a reboot, the old state is back already.
    fn still_runs(&self, before: &Observed, ended: bool) -> bool {
        let Ok(now) = self.run.observe() else { return false };
        let same_run = now.service.main_pid == before.service.main_pid
            && now.service.active == before.service.active
            && now.socket.active == before.socket.active
            && now.held() == before.held();
        same_run || (!now.stale && before.differences(&now, ended).is_empty())
    }

    /// Whether the old listeners are all there.
    fn holds(&self, before: &Observed) -> bool {
        let Ok(now) = self.run.observe() else { return true };
        // ssh.service goes on with the listener of a socket that was stopped, and one that just stops holds its own
        // until then: neither is for good.
        let owner = |host: &Observed| {
            let by = if before.socket.is_active() { &host.socket } else { &host.service };
            by.is_active()
        };
        let holds = now.held();
        (owner(&now) || !owner(before)) && before.held().iter().all(|at| holds.contains(at))
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
        let Ok(now) = self.run.observe() else { return };
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
        let done = files.put_back(path, image);
        self.attempt(done);
    }

    /// Sessions that ssh.socket has started meanwhile must not take sshd's folder away from ssh.service. Tells
    /// whether there is something new for systemd to read.
    fn spare_sessions(&mut self, before: &Observed) -> bool {
        let machine = self.run.machine;
        if !before.socket.accept {
            return false;
        }
        let Ok(now) = self.run.observe() else { return false };
        let drop_in = plan::sparing_sessions(before, &now);
        let steps = file_steps(&now, drop_in.as_slice());
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
        // A unit that was stopped half-way is "failed" where it was "inactive" before.
        let rested = |unit: &Unit| unit.exists() && unit.active == "inactive";
        for unit in units.into_iter().filter(|unit| unit.is_active() || rested(unit)) {
            machine.forgive(&unit.name);
        }
        for unit in units.into_iter().filter(|unit| unit.is_active()) {
            self.attempt(machine.job("StartUnit", &unit.name, JOB));
        }
        // An orphaned sshd that was ended cannot come back; never leave the host without any.
        if ended && units.into_iter().all(|unit| !unit.is_active()) {
            self.attempt(machine.job("StartUnit", &before.service.name, JOB));
        }
    }

    /// Calls off what systemd still tries to start, or starts again and again: it would be in the way of the
    /// rescue, and take its port.
    fn call_off(&mut self, before: &Observed, back: &Back) {
        // Behind a socket sshd comes and goes with the connections.
        let comes_and_goes = *back == Back::Unsteady && !before.socket.is_active();
        for unit in [&before.socket, &before.service].into_iter().filter(|unit| unit.exists()) {
            let now = self.run.machine.unit(&unit.name);
            let ends =
                |now: &Unit| now.is_active() && (comes_and_goes || matches!(back, Back::Mute(_)));
            if now.is_ok_and(|now| now.is_on_its_way() || ends(&now)) {
                let stopped = self.run.machine.job("StopUnit", &unit.name, JOB);
                self.attempt(stopped);
            }
        }
    }
}

/// Has the rescue listen wherever the old listeners should and do not; tells whether that is anywhere.
pub(super) fn listen_where_nobody_does(run: &Run) -> std::result::Result<bool, Error> {
    let mut endpoints;
    match run.observe() {
        Ok(now) => {
            let held = held_for_good(&now);
            endpoints = plan::rescued(&run.before, &now);
            endpoints.retain(|at| !held.contains(at));
        }
        // Nobody can tell whose listener it is; a rescue would be in the way of one.
        Err(error) => {
            tracing::warn!(%error, "looking for somebody who listens");
            endpoints = run.before.held();
            endpoints.retain(|at| run.machine.knock(at).is_none());
        }
    }
    let is_needed = !endpoints.is_empty();
    if is_needed {
        let rescue = Bridge { role: Role::Rescue, endpoints };
        // It is tried for ever, which is in vain where the trial has its port, and stays.
        if trial_listens(run) && run.bridge(Role::Rescue).is_none() {
            bridge::check(run, &rescue)?;
        }
        bridge::listen_at_last(run, &rescue)?;
    }
    Ok(is_needed)
}

/// Whether the trial does still.
pub(super) fn trial_listens(run: &Run) -> bool {
    run.machine.unit(&bridge::unit(&run.id, Role::Trial)).is_ok_and(|unit| unit.is_active())
}

/// Where the two units listen, without one that just stops: that takes its time, and then nobody does.
fn held_for_good(now: &Observed) -> Vec<SocketAddr> {
    let leaves = |unit: &Unit| unit.active == "deactivating" || unit.job == "stop";
    let mut staying = now.clone();
    for unit in [&now.socket, &now.service].into_iter().filter(|unit| leaves(unit)) {
        staying.listeners.retain(|listener| listener.owner != Owner::Unit(unit.name.clone()));
    }
    staying.held()
}
