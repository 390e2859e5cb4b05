//! What the executor needs of a host: a trait, so that a test can fail any step of it.

mod real;

use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

pub use real::RealMachine;

use crate::error::Error;
use crate::observe::Observed;
use crate::step::Expectation;
use crate::sys::probe::Visitor;
use crate::sys::process::Process;
use crate::sys::transient::OwnSshd;
use crate::sys::units::Unit;
use crate::sys::{Files, Result};
use crate::verify::Fault;
use crate::verify::logins::{self, Treated};

/// The longest that one job may take. sshd starts and stops in well under a second; while a start hangs on
/// an unchanged port nobody listens, so it is not waited for as long as systemd would.
pub(super) const JOB: Duration = Duration::from_secs(30);
/// How long listeners may take to appear after a start, or to come back.
pub(super) const LISTENERS: Duration = Duration::from_secs(10);
/// How long an sshd that listens has to do so before another listener goes for it: some end just after they have
/// said that they have started.
pub(super) const STEADY: Duration = Duration::from_millis(500);

/// systemd, files and proof, as the executor uses them.
pub trait Machine {
    /// The file system.
    fn files(&self) -> &Files;
    /// Runs a job (`StartUnit`, `StopUnit`, `RestartUnit`) to its end; any result but `done` fails.
    fn job(&self, method: &'static str, unit: &str, limit: Duration) -> Result<()>;
    /// Asks for a unit to stop, without waiting: what is started next and comes after it waits for it.
    fn let_go(&self, unit: &str) -> Result<()>;
    /// Calls off what systemd is about to do with a unit, and has not begun.
    fn cancel_job(&self, unit: &str) -> Result<()>;
    /// Has an sshd of harden's own hang up for a unit that takes its port, and that is asked to start: as
    /// late as it may be, where the unit checks something first. Its own unit ends by itself.
    fn make_way(&self, bridge: &str, taker: &str, limit: Duration) -> Result<()>;
    /// Whether the main process of a service listens on these endpoints, now or within a second.
    fn holds(&self, service: &str, endpoints: &[SocketAddr]) -> Result<bool>;
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
    /// Clears the start counter, and that of the service that a socket starts: five starts in ten seconds, harden's own among them, would make
    /// systemd refuse the next one (`StartLimitBurst=`), the way back's too.
    fn forgive(&self, unit: &str) {
        let behind = || self.unit(unit).map(|socket| socket.triggers).unwrap_or_default();
        let behind = if unit.ends_with(".socket") { behind() } else { Vec::new() };
        for unit in behind.iter().map(String::as_str).chain([unit]) {
            if let Err(error) = self.reset_failed(unit) {
                tracing::debug!(%error, "the start counter stays");
            }
        }
    }
    /// Ends a process.
    fn end(&self, process: &Process) -> Result<()>;
    /// Waits until the expected endpoints are held by the expected unit.
    fn await_listeners(&self, expect: &Expectation, limit: Duration) -> Result<()>;
    /// Proves an expectation: faults, and notes.
    fn prove(&self, expect: &Expectation) -> std::result::Result<(Vec<Fault>, Vec<String>), Error>;
    /// Speaks to endpoints that any sshd holds: a key exchange with a host key of this host.
    fn greet(
        &self,
        endpoints: &[SocketAddr],
        before: &Observed,
    ) -> std::result::Result<Vec<Fault>, Error>;
    /// Why every client would refuse the sshd that comes next, where it has other host keys than the one that runs.
    fn other_host_key(
        &self,
        folder: &Path,
        before: &Observed,
    ) -> std::result::Result<Option<Fault>, Error>;
    /// Tries logins under the planned configuration, meanwhile.
    fn log_in(
        &self,
        asked: logins::Asked,
    ) -> JoinHandle<std::result::Result<logins::Answer, Error>>;
    /// How a listener treats administrators who have keys, as against an sshd of harden's own with the same files.
    fn compare(&self, asked: &logins::Asked, at: &[SocketAddr]) -> Vec<(String, Treated)>;
    /// Makes sure that a program runs.
    fn runs(&self, program: &Path) -> Result<()>;
    /// Starts an sshd of harden's own, or finds it running; it holds all its endpoints when this
    /// returns.
    fn listen(&self, sshd: &OwnSshd) -> Result<Process>;
    /// Makes sure that sshd would start with these arguments.
    fn accepts(&self, sshd: &OwnSshd) -> Result<()>;
    /// Whom sshd's files shut out since somebody has edited them, of these or of those who are logged in.
    fn shut_out(&self, then: &Observed, now: &Observed, admins: &[String]) -> Option<String>;
    /// Ends such an sshd where it runs; its sessions live on.
    fn silence(&self, unit: &str) -> Result<()>;
    /// The units in a state (`active`, `failed`) whose names match any of the patterns.
    fn units(&self, state: &str, patterns: &[&str]) -> Result<Vec<String>>;
    /// Connects to an endpoint, a wildcard over loopback; `None` where nobody takes the connection.
    fn knock(&self, at: &SocketAddr) -> Option<Visitor>;
    /// Starts a service that runs for as long as a bridge that outlives this process, or finds it running.
    fn keep(&self, unit: &str, command: &[String]) -> Result<()>;
    /// Arms a timer that runs a command after some time, whatever becomes of this process.
    fn arm(&self, name: &str, command: &[String], after: Duration) -> Result<()>;
    /// Whether that timer is armed.
    fn is_armed(&self, name: &str) -> Result<bool>;
    /// Disarms it.
    fn disarm(&self, name: &str) -> Result<()>;
    /// Asks for a job without waiting for it.
    fn enqueue(&self, method: &'static str, unit: &str) -> Result<()>;
    /// What this boot is called.
    fn boot(&self) -> String;
    /// Whether somebody wants this process to end, and what it has begun with it.
    fn stop_requested(&self) -> bool;
    /// Whether the whole system goes down: then nothing that fails means anything.
    fn goes_down(&self) -> bool;
    /// Looks at the whole host again.
    fn observe(&self) -> std::result::Result<Observed, Error>;
}
