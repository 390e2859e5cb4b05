//! `harden verify`.

use harden::error::{Error, exit};
use harden::observe;
use harden::plan::Change;
use harden::report::{human, json};
use harden::spec::{self, Spec};
use harden::sys::Files;
use harden::verify;

use super::input::read_input;
use super::plan::{ahead, checked_plan, refuse_open};
use super::{complain, need_root, print_json, say};
use crate::cli::{Format, VerifyArgs};

/// What differs from the spec.
struct Found {
    /// What does not hold.
    faults: Vec<String>,
    /// What `harden apply` would change.
    changes: Vec<Change>,
    /// What could not be said.
    notes: Vec<String>,
}

/// `harden verify`.
pub(crate) fn verify_command(args: &VerifyArgs, format: Format) -> u8 {
    match verified(args) {
        Ok(Found { faults, changes, notes }) => {
            let holds = faults.is_empty() && changes.is_empty();
            let written = match format {
                Format::Human => say(|out| human::verified(out, &faults, &changes, &notes)),
                Format::Json => print_json(&json::VerifyReport::of(faults, changes, notes)),
            };
            match (written, holds) {
                (false, _) => exit::REFUSED,
                (true, true) => exit::OK,
                (true, false) => exit::PENDING,
            }
        }
        Err(error) => {
            if format == Format::Json {
                print_json(&json::VerifyReport::failed(error.report()));
            }
            complain(&error);
            error.exit_code()
        }
    }
}

fn verified(args: &VerifyArgs) -> Result<Found, Error> {
    let files = Files::at("/");
    let bytes = read_input(&files, &args.spec, spec::MAX_SIZE)?;
    let spec = spec::parse(&args.spec.to_string_lossy(), &bytes)?;
    need_root("see who listens")?;
    observe::check_host()?;
    observe::check_clients()?;
    refuse_open(&files)?;
    proven(&files, &spec)
}

/// The proof that an apply makes in the end, and what an apply would do now.
fn proven(files: &Files, spec: &Spec) -> Result<Found, Error> {
    let ahead = ahead(spec);
    let observed = observe::observe(files, &observe::connect()?, ahead)?;
    let plan = match checked_plan(files, spec, &observed) {
        Ok(plan) => plan,
        // It cannot even be made so.
        Err(Error::Refused(refusal)) => {
            let faults = vec![refusal.message];
            return Ok(Found { faults, changes: Vec::new(), notes: vec![refusal.hint] });
        }
        Err(error) => return Err(error),
    };
    let mut faults = verify::state(&plan.expect, &observed);
    faults.extend(verify::settings(&plan.expect, &observed));
    if observed.stale {
        faults.push("sshd's files changed after it started".to_owned());
    }
    let (silent, mut notes) = verify::answers(files, &plan.expect, &observed)?;
    faults.extend(silent);
    notes.extend(plan.warnings);
    Ok(Found { faults, changes: plan.changes, notes })
}
