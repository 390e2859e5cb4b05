//! The operator's confirmation: it counts only from a session that came in through the trial's own
//! listener, because only such a session shows that the change lets its owner in.

use std::net::IpAddr;

use super::decision::{self, Verdict};
use super::journal::{self, Record, Terms};
use super::run::cause_of;
use super::{Outcome, outcome};
use crate::error::{Error, Refusal};
use crate::step::Op;
use crate::sys::Files;
use crate::sys::process::Process;
use crate::sys::sockets;

/// What the decision says where a person has made it.
const CONFIRMED: &str = "confirmed from a new session through the trial's listener";

/// The part of a transaction's id that a confirmation names.
pub fn token(id: &str) -> &str {
    id.rsplit('-').next().unwrap_or(id)
}

/// The command that confirms a transaction, from the operator's own machine.
pub fn command(terms: &Terms, id: &str) -> String {
    format!("{} {}", terms.login.join(" "), token(id))
}

/// Who confirms: the processes that it descends from, and the addresses of this host.
#[derive(Debug, Clone)]
pub struct Confirmer {
    /// This process first.
    pub ancestry: Vec<Process>,
    /// What counts as this host itself, besides loopback.
    pub addresses: Vec<IpAddr>,
}

/// Confirms the open transaction; returns its id. Confirming again changes nothing.
///
/// # Errors
/// A refusal that says why this confirmation does not count.
pub fn confirm(files: &Files, given: Option<&str>, who: &Confirmer) -> Result<String, Error> {
    let open = journal::find_open(files)?;
    let Some((id, records)) = open else { return confirmed_before(files, given) };
    if let Some(given) = given.filter(|given| *given != token(&id)) {
        return Err(Refusal::new(
            "stale-token",
            format!("`{given}` does not belong to the transaction that waits ({id})"),
            "use the command that this transaction printed; `harden status` shows it",
        )
        .into());
    }
    if let Some(why) = cause_of(&records) {
        return Err(too_late(&id, &why));
    }
    if let Some(stands) = decision::read(files, &id)? {
        return match stands.verdict {
            Verdict::Commit => Ok(id),
            Verdict::Rollback => Err(too_late(&id, &stands.why)),
        };
    }
    let Some(Record::Begin { terms: Some(terms), .. }) = records.first() else {
        return Err(nothing("the transaction that is open waits for nobody"));
    };
    let listener = records.iter().rev().find_map(|record| match record {
        Record::Trial { listener } => Some(listener),
        _ => None,
    });
    let waits = records.contains(&Record::Waiting);
    let Some(listener) = listener.filter(|_| waits) else {
        return Err(nothing("the trial has not come so far"));
    };
    let Some(depth) = who.ancestry.iter().position(|process| process.is(listener)) else {
        return Err(not_through(&id, terms));
    };
    who.refuse_this_host(depth, terms, &id)?;
    let stands = decision::decide(files, &id, Verdict::Commit, CONFIRMED)?;
    // On a full disk the way back begins without a decision.
    if let Some(why) = cause_of(&journal::read(files, &id)?) {
        return Err(too_late(&id, &why));
    }
    match stands.verdict {
        Verdict::Commit => Ok(id),
        Verdict::Rollback => Err(too_late(&id, &stands.why)),
    }
}

impl Confirmer {
    /// A session from the host itself shows nothing of the way to it; unless that is how its owner
    /// comes in (a tunnel that ends on the host).
    fn refuse_this_host(&self, depth: usize, terms: &Terms, id: &str) -> Result<(), Error> {
        let ports = terms.trial.iter().flat_map(|step| match &step.op {
            Op::Listen(bridge) => bridge.endpoints.as_slice(),
            _ => &[],
        });
        let ports = ports.map(std::net::SocketAddr::port).collect();
        let session = self.ancestry.get(..depth).unwrap_or_default();
        let pids: Vec<u32> = session.iter().map(|process| process.pid).collect();
        let is_here = |address: &IpAddr| address.is_loopback() || self.addresses.contains(address);
        let from_here = sockets::peers(&pids, &ports)?.into_iter().find(is_here);
        let Some(address) = from_here.filter(|_| !terms.from.as_ref().is_some_and(is_here)) else {
            return Ok(());
        };
        Err(Refusal::new(
            "from-this-host",
            format!(
                "this session comes from the host itself ({address}), so it does not show that you \
                 get in from outside"
            ),
            format!("from your own machine: {}", command(terms, id)),
        )
        .into())
    }
}

/// No transaction is open: was the last one confirmed?
fn confirmed_before(files: &Files, given: Option<&str>) -> Result<String, Error> {
    let last = journal::ids(files).pop();
    let Some(id) = last.filter(|id| given.is_none_or(|given| given == token(id))) else {
        return Err(nothing("no transaction is open"));
    };
    let confirmed = decision::read(files, &id)?.is_some_and(|stands| stands.why == CONFIRMED);
    match outcome(&journal::read(files, &id)?) {
        // Nobody has to confirm what harden has confirmed itself; but who names it is told.
        Some(Outcome::Applied) if confirmed || given.is_some() => Ok(id),
        Some(Outcome::RolledBack { cause }) => Err(too_late(&id, &cause)),
        _ => Err(nothing("no transaction is open")),
    }
}

fn nothing(why: &str) -> Error {
    Refusal::new(
        "nothing-to-confirm",
        format!("there is nothing to confirm: {why}"),
        "`harden status` shows what is open, `harden history` what was done",
    )
    .into()
}

fn too_late(id: &str, why: &str) -> Error {
    Refusal::new(
        "too-late",
        format!("transaction {id} is taken back: {why}"),
        "nothing is changed; apply again when you are ready",
    )
    .into()
}

fn not_through(id: &str, terms: &Terms) -> Error {
    Refusal::new(
        "not-through-the-trial",
        "this session did not come in through the new listener, so it proves nothing",
        format!(
            "open a new session through it, one that ssh does not share with an older one (-S none): {}",
            command(terms, id).replacen("ssh ", "ssh -S none ", 1)
        ),
    )
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_end_of_the_id() {
        assert_eq!(token("20261123T101112Z-a1b2c3"), "a1b2c3");
    }
}
