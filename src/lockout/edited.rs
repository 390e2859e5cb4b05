//! Files of sshd's that somebody has edited, and that the sshd that lets people in has not read: what comes of them
//! shows at its next start.

use super::keys::Keys;
use super::view::{View, Way};
use super::{Admin, Guards, Risk, admins, contradicts, gets_in, shut_out, sorted};
use crate::error::{Error, Refusal};
use crate::observe::Observed;
use crate::plan::Plan;
use crate::sys::{self, Files, users};
use crate::validate::Scratch;

/// Whom sshd's files as they are would shut out, which the sshd that runs has not read: a change that is taken
/// back leads there.
pub(super) fn unread_shut_out(
    admins: &[Admin],
    now: &View,
    keys: &Keys,
    may_enter: impl Fn(&Admin) -> bool,
) -> Option<Risk> {
    let (_, lost) = sorted(admins, now, keys, |admin, _| may_enter(admin));
    let (admin, found) = lost.into_iter().next()?;
    let Risk { message, fix } = shut_out(admin, found, now, keys);
    Some(Risk {
        message: format!(
            "the sshd that runs has not read its files since they were changed, and with them as they \
             are {message}"
        ),
        fix: format!("{fix}; or undo what was changed"),
    })
}

/// Refuses a way on which sshd would read files that it has not read yet, and that would shut somebody out.
///
/// # Errors
/// A refusal that names who, and why.
pub fn refuse_unread_files(files: &Files, observed: &Observed, plan: &Plan) -> Result<(), Error> {
    if !sys::is_root() {
        return Ok(());
    }
    let scratch = Scratch::of(files, &plan.candidate)?;
    let guards = Guards::new(files, &[], observed, plan, &scratch);
    let Guards { admins, now, keys, .. } = &guards;
    if !observed.is_unread() && !contradicts(observed, admins, now, keys) {
        return Ok(());
    }
    let risks = guards.risks();
    let Some(Risk { message, fix }) = risks.into_iter().next() else { return Ok(()) };
    Err(Refusal::new("lockout", message, fix).into())
}

/// Whom sshd's files shut out who got in before somebody has edited them, and what to do about it; of these, or
/// of those who are logged in.
pub fn shut_out_since(
    files: &Files,
    then: &Observed,
    now: &Observed,
    listed: &[String],
) -> Option<String> {
    let settings = |host: &Observed| host.command_line.settings();
    if then.config == now.config && settings(then) == settings(now) {
        return None;
    }
    let scratch = Scratch::of(files, &then.config).ok()?;
    let keys = Keys::new(files, scratch.folder(), &now.release);
    let way = Way::now(then);
    let was = View::new(Some(scratch.main()), settings(then), way);
    let is = View::new(None, settings(now), way);
    let admins = admins(listed);
    let (enters, lost) = sorted(&admins, &is, &keys, |admin, _| gets_in(admin, &was, &keys));
    // Whom somebody has shut out on purpose is theirs to let in, as long as others can.
    let can_mend = enters.iter().any(|admin| users::becomes_root(&admin.user));
    let is_asked_for = |(admin, _): &(&Admin, _)| admin.is_listed() || !can_mend;
    let (admin, found) = lost.into_iter().find(is_asked_for)?;
    let Risk { message, fix } = shut_out(admin, found, &is, &keys);
    Some(format!("{message}; {fix}"))
}
