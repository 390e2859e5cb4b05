//! What the executor needs of a host: a trait, so that a test can fail any step of it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::observe::{self, Ahead, Observed};
use crate::plan::Expectation;
use crate::sys::process::Process;
use crate::sys::systemd::Systemd;
use crate::sys::units::Unit;
use crate::sys::{Files, Result, SysError};
use crate::verify::{self, Fault};

/// systemd, files and proof, as the executor uses them.
pub trait Machine {
    /// The file system.
    fn files(&self) -> &Files;
    /// Runs a job (`StartUnit`, `StopUnit`, `RestartUnit`) to its end; any result but `done` fails.
    fn job(&self, method: &'static str, unit: &str, limit: Duration) -> Result<()>;
    /// Reads a unit's state.
    fn unit(&self, name: &str) -> Result<Unit>;
    /// Enables a unit file.
    fn enable(&self, unit: &str) -> Result<()>;
    /// Disables a unit file.
    fn disable(&self, unit: &str) -> Result<()>;
    /// Unmasks a unit file.
    fn unmask(&self, unit: &str) -> Result<()>;
    /// Makes systemd read its unit files again.
    fn reload(&self) -> Result<()>;
    /// Clears a unit's failed state.
    fn reset_failed(&self, unit: &str) -> Result<()>;
    /// Ends a process.
    fn end(&self, process: &Process) -> Result<()>;
    /// Waits until the expected endpoints are held by the expected unit.
    fn await_listeners(&self, expect: &Expectation, limit: Duration) -> Result<()>;
    /// Proves an expectation: faults, and notes.
    fn prove(&self, expect: &Expectation) -> std::result::Result<(Vec<Fault>, Vec<String>), Error>;
    /// Looks at the whole host again.
    fn observe(&self) -> std::result::Result<Observed, Error>;
}

/// The host that harden runs on.
#[derive(Debug)]
pub struct RealMachine {
    files: Files,
    systemd: RefCell<Systemd>,
}

/// The longest that one job may take: Debian's default `TimeoutStopSec` and `TimeoutStartSec`.
const JOB: Duration = Duration::from_secs(90);
/// How long after a start listeners may take to appear.
const LISTENERS: Duration = Duration::from_secs(10);

impl RealMachine {
    /// Uses a connection to systemd.
    pub fn new(systemd: Systemd) -> Self {
        Self { files: Files::at("/"), systemd: RefCell::new(systemd) }
    }

    /// Looks at the host, with an answer of sshd's that was asked for earlier.
    ///
    /// # Errors
    /// As [`observe::observe`].
    pub fn observe_with(&self, ahead: Ahead) -> std::result::Result<Observed, Error> {
        observe::observe(&self.files, &self.systemd.borrow(), ahead)
    }

    /// Runs `ask`; a connection that gave no answer is left to itself and replaced, so that a job
    /// that never ends cannot hold up the way back.
    fn with<T>(&self, ask: impl Fn(&Systemd) -> Result<T>) -> Result<T> {
        let answer = ask(&self.systemd.borrow());
        let Err(error) = &answer else { return answer };
        if !error.is_silence() {
            return answer;
        }
        let fresh = Systemd::connect()?;
        let gone = error.answer == crate::sys::systemd::GONE;
        let answer = if gone { ask(&fresh) } else { answer };
        self.systemd.replace(fresh);
        answer
    }
}

impl Machine for RealMachine {
    fn files(&self) -> &Files {
        &self.files
    }

    fn job(&self, method: &'static str, unit: &str, limit: Duration) -> Result<()> {
        let result = self.with(|systemd| systemd.job(method, unit, limit.min(JOB)))?;
        if result == "done" {
            return Ok(());
        }
        let what = format!("{} {unit} failed", method.trim_end_matches("Unit").to_lowercase());
        Err(SysError::new(
            what,
            format!("systemd's job ended as `{result}`; see journalctl -u {unit}"),
        ))
    }

    fn unit(&self, name: &str) -> Result<Unit> {
        self.with(|systemd| Unit::read(systemd, name))
    }

    fn enable(&self, unit: &str) -> Result<()> {
        self.with(|systemd| systemd.enable(unit))
    }

    fn disable(&self, unit: &str) -> Result<()> {
        self.with(|systemd| systemd.disable(unit))
    }

    fn unmask(&self, unit: &str) -> Result<()> {
        self.with(|systemd| systemd.unmask(unit))
    }

    fn reload(&self) -> Result<()> {
        self.with(Systemd::reload)
    }

    fn reset_failed(&self, unit: &str) -> Result<()> {
        self.with(|systemd| systemd.reset_failed(unit))
    }

    fn end(&self, process: &Process) -> Result<()> {
        process.end()
    }

    fn await_listeners(&self, expect: &Expectation, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit.min(LISTENERS);
        loop {
            let observed =
                self.observe().map_err(|error| SysError::new("cannot look at the host", error))?;
            let missing = verify::missing(expect, &observed);
            let (what, faults, pause) = if missing.is_empty() {
                let (faults, notes) = verify::answers(&self.files, expect, &observed)
                    .map_err(|error| SysError::new("cannot speak to the new listener", error))?;
                for note in notes {
                    tracing::warn!("{note}");
                }
                // Sparingly: sshd counts attempts that come to nothing (PerSourcePenalties).
                ("the new listener does not answer", faults, Duration::from_secs(1))
            } else {
                ("the new listener is not there", missing, Duration::from_millis(20))
            };
            if faults.is_empty() {
                return Ok(());
            }
            if Instant::now() + pause > deadline {
                return Err(SysError::new(what, faults.join("; ")));
            }
            std::thread::sleep(pause);
        }
    }

    fn prove(&self, expect: &Expectation) -> std::result::Result<(Vec<Fault>, Vec<String>), Error> {
        let observed = self.observe()?;
        let mut faults = verify::state(expect, &observed);
        faults.extend(verify::settings(expect, &observed));
        if observed.stale {
            faults.push("sshd's files changed after it started".to_owned());
        }
        Ok((faults, Vec::new()))
    }

    fn observe(&self) -> std::result::Result<Observed, Error> {
        self.observe_with(Ahead::ask())
    }
}
