//! `harden doctor`.

use std::path::PathBuf;

use harden::doctor::{Case, Finding, GENERATORS, Running, diagnose};
use harden::error::{Error, exit};
use harden::observe::{self, Ahead};
use harden::report::{human, json};
use harden::sys::Files;
use harden::sys::process::Process;
use harden::sys::units::Unit;
use harden::validate;

use super::plan::refuse_open;
use super::{complain, need_root, print_json, say};
use crate::cli::Format;

/// `harden doctor`.
pub(crate) fn doctor_command(format: Format) -> u8 {
    match diagnosed() {
        Ok((findings, unseen)) => {
            let written = match format {
                Format::Human => say(|out| human::diagnosis(out, &findings, &unseen)),
                Format::Json => print_json(&json::DoctorReport::of(&findings, &unseen)),
            };
            match (written, findings.is_empty()) {
                (false, _) => exit::REFUSED,
                (true, true) => exit::OK,
                (true, false) => exit::PENDING,
            }
        }
        Err(error) => {
            if format == Format::Json {
                print_json(&json::DoctorReport::failed(error.report()));
            }
            complain(&error);
            error.exit_code()
        }
    }
}

/// What is wrong, and what could not be seen.
fn diagnosed() -> Result<(Vec<Finding>, Vec<String>), Error> {
    let files = Files::at("/");
    need_root("see who listens")?;
    observe::check_host()?;
    refuse_open(&files)?;
    let systemd = observe::connect()?;
    let observed = observe::observe(&files, &systemd, Ahead::ask())?;
    validate::answers(&observed)?;
    let unseen = observed.unseen.clone();
    let generator = GENERATORS.map(PathBuf::from).into_iter().find(|path| files.exists(path));
    let says = if observed.command_line.settings().is_empty() {
        observed.effective.clone()
    } else {
        observe::ask_sshd(None, &[])
    };
    let ungenerated = observe::last_change(&files, &observed.config, None) > systemd.generated()?;
    let running = Process::read(observed.service.main_pid)
        .map(|sshd| Running { apart: sshd.has_own_network(), program: sshd.program });
    let has_failed =
        |name: &&String| Unit::read(&systemd, name).is_ok_and(|unit| unit.active == "failed");
    let failed = observed.service.requires.iter().filter(has_failed).cloned().collect();
    let case = Case { observed, files: says, generator, ungenerated, running, failed };
    Ok((diagnose(&case), unseen))
}
