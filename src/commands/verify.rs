//! `harden verify`.

use harden::error::{Error, Refusal, exit};
use harden::observe::{self, PRIVSEP};
use harden::plan::Change;
use harden::report::{human, json};
use harden::spec::{self, Spec};
use harden::sys::Files;
use harden::verify;

use super::input::read_input;
use super::plan::{ahead, examined, refuse_open};
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
    /// What to do about it.
    hint: Option<String>,
}

/// `harden verify`.
pub(crate) fn verify_command(args: &VerifyArgs, format: Format) -> u8 {
    match verified(args) {
        Ok(Found { faults, changes, notes, hint }) => {
            let holds = faults.is_empty() && changes.is_empty();
            let written = match format {
                Format::Human => {
                    let hint = hint.as_deref();
                    say(|out| human::verified(out, &faults, &changes, &notes, hint))
                }
                Format::Json => print_json(&json::VerifyReport::of(faults, changes, notes, hint)),
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
    let (plan, risks) = match examined(files, spec, &observed) {
        Ok(examined) => examined,
        // It cannot even be made so.
        Err(Error::Refused(Refusal { message, hint, .. })) => {
            let (changes, notes) = (Vec::new(), Vec::new());
            return Ok(Found { faults: vec![message], changes, notes, hint: Some(hint) });
        }
        Err(error) => return Err(error),
    };
    let hint = risks.first().map(|risk| risk.fix.clone());
    let mut faults = verify::state(&plan.expect, &observed);
    faults.extend(verify::settings(&plan.expect, &observed));
    faults.extend(risks.into_iter().map(|risk| risk.message));
    if observed.run_folder_gone() {
        faults.push(format!("{PRIVSEP} was gone, and without it sshd turns everybody away"));
    }
    if observed.stale {
        faults.push("sshd's files changed after it started".to_owned());
    }
    let (silent, mut notes) = verify::answers(files, &plan.expect, &observed)?;
    faults.extend(silent);
    notes.extend(plan.warnings);
    Ok(Found { faults, changes: plan.changes, notes, hint })
}
