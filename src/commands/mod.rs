//! The commands: each runs the pipeline as far as it needs it, and reports.

mod agent;
mod apply;
mod confirm;
mod doctor;
mod input;
mod plan;
mod rollback;
mod status;
mod terminal;
mod verify;

use std::io::Write;

use anstream::AutoStream;
use harden::error::{Error, ErrorReport, Refusal};
use harden::report::{human, json};
use harden::sys;

pub(crate) use agent::{guard_command, keep_command, recover_command, worker_command};
pub(crate) use apply::apply_command;
pub(crate) use confirm::confirm_command;
pub(crate) use doctor::doctor_command;
pub(crate) use plan::plan_command;
pub(crate) use rollback::rollback_command;
pub(crate) use status::{history_command, status_command};
pub(crate) use verify::verify_command;

/// Refuses whoever is not root.
fn need_root(what: &str) -> Result<(), Refusal> {
    if sys::is_root() {
        return Ok(());
    }
    Err(Refusal::new("not-root", format!("only root can {what}"), "run it with sudo"))
}

fn complain(error: &Error) {
    match error {
        Error::Spec(spec) => tell(|out| writeln!(out, "{}", spec.rendered)),
        other => tell(|out| human::error(out, &other.report())),
    }
}

/// Writes to standard output, in colour where it is a terminal that wants it; says whether that
/// worked. A reader that has read enough (`| head`) is no failure.
fn say(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> bool {
    let mut out = AutoStream::auto(std::io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            tell(|err| writeln!(err, "cannot write to standard output: {error}"));
            false
        }
        _ => true,
    }
}

/// Writes to standard error.
fn tell(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) {
    let mut out = AutoStream::auto(std::io::stderr().lock());
    let _ = write(&mut out);
}

fn print_json(report: &impl serde::Serialize) -> bool {
    say(|out| {
        let text = serde_json::to_string(report)?;
        writeln!(out, "{text}")
    })
}

/// Wrong usage, for programs: one JSON object like any other end.
pub(crate) fn usage_report(message: &str) {
    let report = ErrorReport {
        code: "usage".to_owned(),
        message: message.trim().to_owned(),
        hint: Some("harden --help".to_owned()),
    };
    print_json(&json::ApplyReport::new("refused", None, None).with_error(report));
}
