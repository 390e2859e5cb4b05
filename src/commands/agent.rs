//! What systemd runs: the worker, the guard, and recovery at boot. They say what they do in
//! systemd's journal; who follows a transaction reads the transaction's own.

use std::path::Path;
use std::time::Duration;

use harden::error::{Error, exit};
use harden::sys::Files;
use harden::sys::service;
use harden::sys::systemd::Systemd;
use harden::transaction::machine::RealMachine;
use harden::transaction::{Outcome, STATE, worker};

/// How long one rests that cannot write down what it does: to mend that may take hours.
const AGAIN: Duration = Duration::from_secs(2);

/// Does a transaction.
pub(crate) fn worker_command(id: &str) -> u8 {
    let longest = worker::longest(&Files::at("/"), id);
    ended(attended(longest).and_then(|machine| worker::work(&machine, id)))
}

/// Undoes what nobody has confirmed.
pub(crate) fn guard_command(id: &str) -> u8 {
    ended(attended(worker::GUARD).and_then(|machine| worker::guard(&machine, id)))
}

/// Keeps sshd's folder until systemd ends it.
pub(crate) fn keep_command() -> u8 {
    match machine() {
        Ok(_machine) => loop {
            std::thread::park();
        },
        Err(error) => ended(Err(error)),
    }
}

/// Puts files right before sshd starts.
pub(crate) fn recover_command(id: &str) -> u8 {
    match machine().and_then(|machine| worker::recover(&machine, id)) {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!(%error, "recovery of transaction {id}");
            exit::REFUSED
        }
    }
}

/// One who wants the service to end gets what it has begun ended, unless the system goes down.
fn attended(longest: Duration) -> Result<RealMachine, Error> {
    let going_down = || Systemd::connect_directly().and_then(|systemd| systemd.is_stopping());
    let stop = service::attend(longest, move || going_down().unwrap_or(true))?;
    let mut machine = machine()?;
    machine.heed(stop);
    Ok(machine)
}

fn machine() -> Result<RealMachine, Error> {
    let machine = RealMachine::new(Systemd::connect_directly)?;
    machine.keep_bridges();
    Ok(machine)
}

/// An end of any kind is an end; only what has to be tried again is a failure.
fn ended(outcome: Result<Outcome, Error>) -> u8 {
    match outcome {
        Ok(_) => exit::OK,
        Err(error) => {
            tracing::error!(%error, "to be tried again");
            // systemd starts it again at once.
            if Files::at("/").is_read_only(Path::new(STATE)) {
                std::thread::sleep(AGAIN);
            }
            exit::REFUSED
        }
    }
}
