//! The way back: from a journal to the state before, and the proof of it.
//!
//! It goes by state, not by inverse of each step: stop what was started, put every path back, make
//! systemd read it, start what ran. So it can be begun again from any point, any number of times.
//! Meanwhile the bridges listen: the rescue on the old port until its owner comes back, the trial
//! on the new one while the rescue makes room for it.

mod undo;
mod way;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use self::undo::changed;
use self::undo::{Undo, undo};
pub(super) use self::undo::{enabled_or_disabled, files};
use self::way::{Way, listen_where_nobody_does, trial_listens};
use super::comeback::RESTART;
use super::journal::Record;
use super::machine::LISTENERS;
use super::run::Run;
use super::{Outcome, guard};
use crate::error::Error;
use crate::observe::{Listener, Observed, Owner};
use crate::sys::units::Unit;

/// Takes a transaction back and proves it.
pub(super) fn run(run: &mut Run, cause: &str) -> Outcome {
    // A journal on a full disk must not stop the way back.
    if !run.has(|record| matches!(record, Record::Rollback { .. })) {
        run.record_if_possible(Record::Rollback { cause: cause.to_owned() });
    }
    run.note(&format!("taking everything back: {cause}"));
    let undo = undo(run.records());
    let (failures, kept) = Way::new(run).go(&undo);
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
        let theirs =
            |at: &Listener| is_strange(&run.before, at) || (!kept.is_empty() && is_added(run, at));
        let (strangers, rest): (Vec<_>, _) = now.listeners.drain(..).partition(theirs);
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
        Owner::Process(process) => process.unit == *service || process.is_of_harden(),
        Owner::Unseen => true,
    };
    listener.ssh && !own && !was_served(before, listener)
}

/// Whether a unit of sshd's has a listener that neither was before nor is of this change.
fn is_added(run: &Run, listener: &Listener) -> bool {
    let units = [&run.before.service.name, &run.before.socket.name];
    let own = matches!(&listener.owner, Owner::Unit(unit) if units.contains(&unit));
    let planned = run.expect.endpoints.iter().any(|at| at.port() == listener.port);
    own && !planned && !was_served(&run.before, listener)
}

fn was_served(before: &Observed, listener: &Listener) -> bool {
    let ssh = before.listeners.iter().filter(|was| was.ssh);
    let served: Vec<_> = ssh.flat_map(Listener::serves).collect();
    listener.serves().iter().any(|at| served.contains(at))
}

/// The host when no unit of sshd's is on its way any more: somebody may restart it just now.
fn settled(run: &Run) -> std::result::Result<Observed, Error> {
    let deadline = Instant::now() + LISTENERS;
    loop {
        let now = run.observe()?;
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

/// Nothing can be promised any more but a way in: the rescue listens wherever the old listeners
/// should and do not.
fn stuck(run: &mut Run, cause: &str, left: Vec<String>) -> Outcome {
    match listen_where_nobody_does(run) {
        Ok(false) => {}
        Ok(true) => run.note("a rescue listener with the old configuration holds the old port"),
        Err(error) => {
            tracing::error!(%error, "no rescue listener");
            run.note(if trial_listens(run) {
                "no rescue listener comes up; the new listener stays"
            } else {
                "a rescue listener with the old configuration waits for the old port"
            });
        }
    }
    tracing::error!("transaction {} could not be taken back: {}", run.id, left.join("; "));
    tracing::error!(
        "keep your session open; see `systemctl status ssh.service ssh.socket`, then run `harden \
         rollback`"
    );
    run.record_if_possible(Record::Stuck { cause: cause.to_owned(), left: left.clone() });
    Outcome::NeedsOperator { cause: cause.to_owned(), left }
}
