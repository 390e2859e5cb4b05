//! Whose keys the listeners take: the one from before, the trial, and who takes their places.
//!
//! What is known of units and configurations says who gets in; this is whether they do.

use super::journal::{Listener, Record};
use super::run::Run;
use crate::step::Role;
use crate::sys::{Result, SysError};
use crate::verify::logins::Asked;
use crate::verify::welcome::Shown;

/// Asks the listener from before, where sshd runs already: asking must not start one behind a socket.
pub(super) fn ask_before(run: &mut Run, asked: &Asked) {
    if run.before.service.is_active() {
        let keys = run.machine.taken(asked, &run.before.held());
        run.record_if_possible(Record::Takes { by: Listener::Before, keys });
    }
}

/// Asks the trial.
pub(super) fn ask_trial(run: &mut Run, asked: &Asked) {
    let Some(bridge) = run.bridge(Role::Trial) else { return };
    let keys = run.machine.taken(asked, &bridge.endpoints);
    run.record_if_possible(Record::Takes { by: Listener::Trial, keys });
}

/// Makes sure that the new owner takes the keys that the trial took.
///
/// # Errors
/// Where it turns any of them away.
pub(super) fn refuse_turned_away(run: &Run) -> Result<()> {
    let Some(bridge) = run.bridge(Role::Trial) else { return Ok(()) };
    let keys = taken_by(run, Listener::Trial);
    let lost = run.machine.turned_away(&run.before, &bridge.endpoints, &keys);
    if lost.is_empty() {
        return Ok(());
    }
    let owner = &run.expect.owner;
    Err(SysError::new(
        format!("the sshd of {owner} turns away whom the trial let in"),
        format!("it takes no key of {}; what does {owner} do to it? (systemctl cat)", names(&lost)),
    ))
}

/// Why the old listener is back in vain: of those whose keys it took, it lets nobody in.
pub(super) fn lets_nobody_in(run: &Run) -> Option<String> {
    let keys = taken_by(run, Listener::Before);
    let lost = run.machine.turned_away(&run.before, &run.before.held(), &keys);
    (!lost.is_empty() && lost.len() == keys.len()).then(|| {
        format!("sshd is back where it was, and takes no key of {} any more", names(&lost))
    })
}

fn taken_by(run: &Run, listener: Listener) -> Vec<Shown> {
    let taken = run.records().iter().rev().find_map(|record| match record {
        Record::Takes { by, keys } if *by == listener => Some(keys.clone()),
        _ => None,
    });
    taken.unwrap_or_default()
}

fn names(keys: &[Shown]) -> String {
    let names: Vec<&str> = keys.iter().map(|shown| shown.user.as_str()).collect();
    names.join(" and ")
}
