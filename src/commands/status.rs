//! `harden status` and `harden history`.

use harden::error::{Error, exit};
use harden::report::json::{HistoryReport, OpenTransaction, PastTransaction, StatusReport};
use harden::report::{human, json};
use harden::sys::systemd::Systemd;
use harden::sys::{self, Files};
use harden::transaction::follow::{Phase, left, phase};
use harden::transaction::journal::{self, Record, Terms};
use harden::transaction::machine::{Machine, RealMachine};
use harden::transaction::{self, Outcome, confirm, decision, guard};

use super::{complain, need_root, print_json, say};
use crate::cli::Format;

/// `harden status`.
pub(crate) fn status_command(format: Format) -> u8 {
    let shown = need_root("see transactions").map_err(Error::from).and_then(|()| open());
    match (shown, format) {
        (Ok(open), Format::Human) => {
            say(|out| human::status(out, open.as_ref()));
            exit::OK
        }
        (Ok(open), Format::Json) => {
            print_json(&StatusReport::of(open));
            exit::OK
        }
        (Err(error), format) => {
            if format == Format::Json {
                print_json(&StatusReport::failed(error.report()));
            }
            complain(&error);
            error.exit_code()
        }
    }
}

fn open() -> Result<Option<OpenTransaction>, Error> {
    let files = Files::at("/");
    let Some((id, records)) = journal::find_open(&files)? else { return Ok(None) };
    let phase = phase(&records);
    let undecided =
        matches!(phase, Phase::Trial | Phase::Waiting) && decision::read(&files, &id)?.is_none();
    let worked_on = is_worked_on(&id);
    let left = left(&records).filter(|left| undecided && worked_on && !left.is_zero());
    let deadline = left.and_then(sys::time_after);
    let waits = deadline.is_some() && phase == Phase::Waiting;
    let command = terms(&records).map(|terms| confirm::command(terms, &id));
    Ok(Some(OpenTransaction {
        id,
        state: phase.to_string(),
        worked_on,
        deadline,
        confirm: command.filter(|_| waits),
    }))
}

/// Whether somebody works on it, or will when the guard's time comes; where that cannot be asked, it
/// is assumed.
fn is_worked_on(id: &str) -> bool {
    let asked = RealMachine::new(Systemd::connect_directly).and_then(|machine| {
        Ok(guard::is_worked_on(&machine, id)? || machine.is_armed(&guard::guard_name(id))?)
    });
    asked.unwrap_or(true)
}

fn terms(records: &[Record]) -> Option<&Terms> {
    match records.first() {
        Some(Record::Begin { terms, .. }) => terms.as_deref(),
        _ => None,
    }
}

/// `harden history`.
pub(crate) fn history_command(format: Format) -> u8 {
    let listed = need_root("see transactions").map_err(Error::from).and_then(|()| past());
    match (listed, format) {
        (Ok(past), Format::Human) => {
            say(|out| human::history(out, &past));
            exit::OK
        }
        (Ok(past), Format::Json) => {
            print_json(&HistoryReport::of(past));
            exit::OK
        }
        (Err(error), format) => {
            if format == Format::Json {
                print_json(&json::HistoryReport::failed(error.report()));
            }
            complain(&error);
            error.exit_code()
        }
    }
}

fn past() -> Result<Vec<PastTransaction>, Error> {
    let files = Files::at("/");
    let mut past = Vec::new();
    for id in journal::ids(&files) {
        let records = journal::read(&files, &id)?;
        if records.is_empty() {
            continue;
        }
        let outcome = transaction::outcome(&records);
        let word = match &outcome {
            Some(Outcome::Applied) => "applied".to_owned(),
            Some(Outcome::Refused { .. }) => "refused".to_owned(),
            Some(_) => "rolled-back".to_owned(),
            None if !journal::has_begun(&records) => "unreadable".to_owned(),
            None => phase(&records).to_string(),
        };
        let cause = match outcome {
            Some(Outcome::Refused { cause } | Outcome::RolledBack { cause }) => Some(cause),
            _ => None,
        };
        let changes = terms(&records).map(|terms| &terms.changes).into_iter().flatten();
        past.push(PastTransaction {
            outcome: word,
            spec: terms(&records).map(|terms| terms.spec.clone()).unwrap_or_default(),
            changes: changes.map(|change| format!("{} {}", change.action, change.target)).collect(),
            cause,
            id,
        });
    }
    Ok(past)
}
