//! Listeners of harden's own: an sshd in a unit of its own, with a configuration from /run, that
//! carries the endpoints from one owner to the next. A reboot takes it away.
//!
//! The trial has the planned configuration; whoever logs in through it has shown that the change
//! lets them in. The rescue has the old one.

use std::path::{Path, PathBuf};

use super::RUNTIME;
use super::run::Run;
use crate::observe::{Listener, Observed, Owner};
use crate::sshd::options;
use crate::step::{Bridge, Role};
use crate::sys::Result;
use crate::sys::process::Process;
use crate::sys::transient::OwnSshd;
use crate::sys::units::Unit;

/// Where it listens is said on the command line, and no process id is left in a file.
const REPLACED: [&str; 4] = ["Port", "ListenAddress", "AddressFamily", "PidFile"];

/// The unit of a transaction's bridge.
pub(super) fn unit(id: &str, role: Role) -> String {
    format!("harden-{role}-{id}.service")
}

/// The units of all bridges.
pub(super) const PATTERNS: [&str; 2] = ["harden-trial-*.service", "harden-rescue-*.service"];

/// The transaction whose bridge a unit is.
pub(super) fn id_of(unit: &str) -> Option<String> {
    let of = |role: Role| unit.strip_prefix(&format!("harden-{role}-"))?.strip_suffix(".service");
    [Role::Trial, Role::Rescue].into_iter().find_map(of).map(str::to_owned)
}

/// The unit that keeps what a lasting rescue needs.
pub(super) fn keeper(id: &str) -> String {
    format!("harden-keep-{id}.service")
}

/// The folder of everything volatile of a transaction.
pub(super) fn folder(id: &str) -> PathBuf {
    Path::new(RUNTIME).join(id)
}

/// Starts a bridge, or finds it running.
pub(super) fn listen(run: &Run, bridge: &Bridge) -> Result<Process> {
    run.machine.listen(&sshd(run, bridge)?)
}

/// Starts a rescue that is the only way in: it is tried again for ever where it does not come up.
pub(super) fn listen_at_last(run: &Run, bridge: &Bridge) -> Result<Process> {
    // One that is about to give up would be in the way of one that does not.
    if !run.machine.unit(&unit(&run.id, bridge.role))?.is_active() {
        silence(run, bridge.role)?;
    }
    // It outlives this process, and so has what it needs to.
    let command = [run.pinned().display().to_string(), "keep".to_owned(), run.id.clone()];
    if let Err(error) = run.machine.keep(&keeper(&run.id), &command) {
        tracing::warn!(%error, "the rescue may miss sshd's folder");
    }
    run.machine.listen(&OwnSshd { keeps_trying: true, ..sshd(run, bridge)? })
}

/// Whether sshd would start with what a bridge gives it (sshd(8), -t).
pub(super) fn check(run: &Run, bridge: &Bridge) -> Result<()> {
    run.machine.accepts(&sshd(run, bridge)?)
}

fn sshd(run: &Run, bridge: &Bridge) -> Result<OwnSshd> {
    // Only the trial takes a port from a unit, or gives it one. A rescue must not wait for any.
    let units = match bridge.role {
        Role::Trial => vec![&run.before.service, &run.before.socket],
        Role::Rescue => Vec::new(),
    };
    let units = units.into_iter().filter(|unit| unit.exists());
    Ok(OwnSshd {
        unit: unit(&run.id, bridge.role),
        args: args(run, bridge)?,
        at: bridge.endpoints.clone(),
        takes_turns: units.map(|unit| unit.name.clone()).collect(),
        keeps_trying: false,
    })
}

/// A bridge as it runs, of which no journal tells any more; such that it may be the only way in from now on.
pub(super) fn seen(unit: &Unit, now: &Observed) -> Option<OwnSshd> {
    let is_its = |listener: &&Listener| match &listener.owner {
        Owner::Process(process) => process.unit == unit.name,
        _ => false,
    };
    let at = now.listeners.iter().filter(is_its);
    let (_, args) = unit.exec_start.split_first()?;
    Some(OwnSshd {
        unit: unit.name.clone(),
        args: args.to_vec(),
        at: at.flat_map(Listener::serves).collect(),
        takes_turns: Vec::new(),
        keeps_trying: true,
    })
}

/// Ends a bridge where it runs.
pub(super) fn silence(run: &Run, role: Role) -> Result<()> {
    if role == Role::Rescue {
        run.machine.silence(&keeper(&run.id))?;
    }
    run.machine.silence(&unit(&run.id, role))
}

/// sshd's arguments (sshd(8)).
fn args(run: &Run, bridge: &Bridge) -> Result<Vec<String>> {
    let before = || (run.before.config.clone(), run.before.command_line.settings());
    let (config, words) = match (&run.terms, bridge.role) {
        (Some(terms), Role::Trial) => (terms.candidate.clone(), terms.options.clone()),
        _ => before(),
    };
    let folder = folder(&run.id).join(bridge.role.to_string());
    let (copies, main) = config.mirrored(&folder, &REPLACED);
    for (path, text) in copies {
        run.machine.files().scratch(&path, text.as_bytes())?;
    }
    let replaced = REPLACED.map(str::to_owned);
    let mut args = vec!["-D".to_owned(), "-f".to_owned(), main.display().to_string()];
    args.extend(["-o".to_owned(), "PidFile=none".to_owned()]);
    args.extend(["-o".to_owned(), "AddressFamily=any".to_owned()]);
    for endpoint in &bridge.endpoints {
        args.extend(["-o".to_owned(), format!("ListenAddress={endpoint}")]);
    }
    args.extend(options::without(&words, &replaced));
    Ok(args)
}
