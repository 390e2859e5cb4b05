//! Whether who has a listener's place lets in whom its files let in. What is known of units says what they do; this is
//! what comes of it.

use std::net::SocketAddr;

use super::journal::Record;
use super::run::Run;
use super::trial::logins_of;
use crate::observe::Observed;
use crate::sys::{Result, SysError};
use crate::verify::logins::{Asked, Treated};

/// Makes sure that the sshd that runs has read its files, as far as they decide who gets in. Where none runs, none is
/// started to ask.
///
/// # Errors
/// Where it lets somebody in whom its files shut out.
pub(super) fn refuse_unread(run: &mut Run, now: &Observed) -> std::result::Result<(), String> {
    // What shows by the times of its files has been judged already.
    if !now.service.is_active() || now.is_unread() {
        return Ok(());
    }
    let all = compared(run, now, &now.held());
    // Whom its unit has turned away all along is no fault of this change.
    let users: Vec<String> = having(&all, Treated::TurnedAway).map(str::to_owned).collect();
    if !users.is_empty() {
        run.record_if_possible(Record::TurnedAway { users });
    }
    let let_in = named(&all, Treated::LetIn);
    let service = &now.service.name;
    if let_in.is_empty() {
        return Ok(());
    }
    Err(format!(
        "sshd takes a key of {let_in}, and with its files as they are it would not: it has not read them since \
         they were changed. Undo that, or keep this session open and see that you get in after a systemctl restart \
         {service}"
    ))
}

/// Makes sure that the new owner takes the keys that its files have it take.
///
/// # Errors
/// Where it turns anybody away.
pub(super) fn refuse_turned_away(run: &Run) -> Result<()> {
    let now = run.observe().map_err(|error| SysError::new("cannot look at the host", error))?;
    let lost = named(&compared(run, &now, &run.expect.endpoints), Treated::TurnedAway);
    if lost.is_empty() {
        return Ok(());
    }
    let owner = &run.expect.owner;
    Err(SysError::new(
        format!("the sshd of {owner} turns away whom its files let in"),
        format!("it takes no key of {lost}; what does {owner} do to it? (systemctl cat {owner})"),
    ))
}

/// Why the old listener is back in vain: it lets nobody in of those whom its files let in.
pub(super) fn lets_nobody_in(run: &Run) -> Option<String> {
    let now = run.observe().ok()?;
    let all = compared(run, &now, &run.before.held());
    let nobody = !all.is_empty() && all.iter().all(|(_, treated)| *treated == Treated::TurnedAway);
    nobody.then(|| {
        let names = named(&all, Treated::TurnedAway);
        let unit = &now.service.name;
        format!(
            "sshd is back where it was, and takes no key of {names}, as its files would have it: what does {unit} do \
             to it? (systemctl cat {unit})"
        )
    })
}

fn compared(run: &Run, now: &Observed, at: &[SocketAddr]) -> Vec<(String, Treated)> {
    let options = now.command_line.settings();
    let asked =
        Asked { candidate: now.config.clone(), options, before: now.clone(), ..logins_of(run) };
    let mut all = run.machine.compare(&asked, at);
    let was = |name: &String| {
        run.has(|record| matches!(record, Record::TurnedAway { users } if users.contains(name)))
    };
    all.retain(|(name, treated)| *treated != Treated::Unknown && !was(name));
    all
}

fn having(all: &[(String, Treated)], wanted: Treated) -> impl Iterator<Item = &str> {
    all.iter().filter(move |(_, treated)| *treated == wanted).map(|(name, _)| name.as_str())
}

fn named(all: &[(String, Treated)], wanted: Treated) -> String {
    having(all, wanted).collect::<Vec<_>>().join(" and ")
}
