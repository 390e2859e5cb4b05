//! The host that harden runs on: systemd, the file system, sshd.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{JOB, LISTENERS, Machine, STEADY};
use crate::error::Error;
use crate::lockout;
use crate::observe::{self, Ahead, Observed, PRIVSEP};
use crate::step::Expectation;
use crate::sys::probe::Visitor;
use crate::sys::process::Process;
use crate::sys::service::StopRequest;
use crate::sys::systemd::{GONE, Start, Systemd};
use crate::sys::transient::{self, OwnSshd};
use crate::sys::units::Unit;
use crate::sys::{Command, Files, Result, SysError, boot_id, sockets};
use crate::verify::logins::{self, Treated};
use crate::verify::{self, Fault};

/// The host that harden runs on.
#[derive(Debug)]
pub struct RealMachine {
    files: Files,
    connect: fn() -> Result<Systemd>,
    systemd: RefCell<Systemd>,
    stop: StopRequest,
}

/// How often a question is put again whose answer was lost.
const TRIES: u32 = 3;
/// How often a listener of a trial may be spoken to before it counts as one that does not answer.
const GREETINGS: u32 = 6;
/// How long a stopped sshd's listener may stay open in a child of it.
const CLOSED: Duration = Duration::from_secs(2);

impl RealMachine {
    /// Uses systemd over the connection that `connect` makes, now and whenever it has to be made
    /// anew.
    ///
    /// # Errors
    /// Those of `connect`.
    pub fn new(connect: fn() -> Result<Systemd>) -> Result<Self> {
        let systemd = RefCell::new(connect()?);
        Ok(Self { files: Files::at("/"), connect, systemd, stop: StopRequest::default() })
    }

    /// From now on a request to end is heeded.
    pub fn heed(&mut self, stop: StopRequest) {
        self.stop = stop;
    }

    /// Keeps what the bridges need while this process lives.
    pub fn keep_bridges(&self) {
        if let Err(error) = self.files.keep_folder(Path::new(PRIVSEP)) {
            tracing::warn!(%error, "the bridges may miss it");
        }
    }

    /// Looks at the host, with an answer of sshd's that was asked for earlier.
    ///
    /// # Errors
    /// As [`observe::observe`].
    pub fn observe_with(&self, ahead: Ahead) -> std::result::Result<Observed, Error> {
        let mut seen = observe::observe(&self.files, &self.systemd.borrow(), ahead);
        for _ in 0..TRIES {
            match &seen {
                Err(Error::System(error)) if error.is_silence() => {}
                _ => break,
            }
            self.reconnect()?;
            seen = observe::observe(&self.files, &self.systemd.borrow(), Ahead::ask());
        }
        seen
    }

    /// Starts a transient service that does the rest of a transaction, anew where it hangs.
    ///
    /// # Errors
    /// Where systemd does not start it.
    pub fn start_worker(&self, unit: &str, command: &[String]) -> Result<()> {
        let result = self.with(|systemd| transient::start_worker(systemd, unit, command));
        // Where the question was put again, the first one may have been heard.
        if result.is_err() && self.unit(unit)?.is_active() {
            return Ok(());
        }
        job_result("start", unit, &result?)
    }

    /// Kills a unit's main process.
    ///
    /// # Errors
    /// Where systemd cannot.
    pub fn kill(&self, unit: &str) -> Result<()> {
        self.with(|systemd| systemd.kill(unit, nix::sys::signal::Signal::SIGKILL as i32))
    }

    /// Runs `ask`; a connection that gave no answer is left to itself and replaced, so that a job
    /// that never ends cannot hold up the way back. Where the connection broke (systemd executed
    /// itself anew, the bus restarted), the question is put again: its answer is not known.
    fn with<T>(&self, ask: impl Fn(&Systemd) -> Result<T>) -> Result<T> {
        let mut answer = ask(&self.systemd.borrow());
        for _ in 0..TRIES {
            let Some(error) = answer.as_ref().err().filter(|error| error.is_silence()) else {
                break;
            };
            let is_gone = error.answer == GONE;
            self.reconnect()?;
            if !is_gone {
                break;
            }
            answer = ask(&self.systemd.borrow());
        }
        answer
    }

    /// Systemd may take a moment to come back.
    fn reconnect(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match (self.connect)() {
                Ok(systemd) => {
                    self.systemd.replace(systemd);
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

impl RealMachine {
    /// Watches a service for a moment: whether its sshd has ended meanwhile.
    fn ended(&self, service: &str) -> Result<Vec<Fault>> {
        let before = self.unit(service)?;
        let begun = Instant::now();
        while begun.elapsed() < STEADY && service.ends_with(".service") {
            std::thread::sleep(Duration::from_millis(50));
            let now = self.unit(service)?;
            if !now.is_active() || now.main_pid != before.main_pid {
                return Ok(vec![format!("{service} has ended just after it had started")]);
            }
        }
        Ok(Vec::new())
    }

    /// Asks for the start of a service, and waits until its first check (`ExecStartPre=`) has ended well;
    /// until its main process wants the port, sshd takes as long again. Where a unit has no checks,
    /// nothing is asked.
    fn await_checks(&self, service: &str, limit: Duration) -> Result<()> {
        let before = self.unit(service)?;
        if !before.checks || !service.ends_with(".service") {
            return Ok(());
        }
        // systemd forgets the last main process where there is a new one to come.
        let has_run = |now: &Unit| now.started != 0 && now.started != before.started;
        self.enqueue("StartUnit", service)?;
        let deadline = Instant::now() + limit;
        let over = loop {
            match self.with(|systemd| systemd.start_of(service))? {
                Start::Checked(_) if Instant::now() > deadline => break "its check does not end",
                Start::Checked(pid) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    // Where systemd was faster than this look, it says how it went.
                    let passed = |check: Process| check.await_end(left) && check.has_succeeded();
                    if Process::read(pid).is_some_and(passed) {
                        return Ok(());
                    }
                }
                Start::Runs => return Ok(()),
                Start::Over if has_run(&self.unit(service)?) => return Ok(()),
                Start::Over => break "its check failed",
                Start::Awaited if Instant::now() > deadline => break "it waits for something else",
                Start::Awaited => {}
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let why = format!("{over}; see journalctl -u {service}");
        Err(SysError::new(format!("start {service} failed"), why))
    }
}

fn job_result(verb: &str, unit: &str, result: &str) -> Result<()> {
    if result == "done" {
        return Ok(());
    }
    Err(SysError::new(
        format!("{verb} {unit} failed"),
        format!("systemd's job ended as `{result}`; see journalctl -u {unit}"),
    ))
}

impl Machine for RealMachine {
    fn files(&self) -> &Files {
        &self.files
    }

    fn job(&self, method: &'static str, unit: &str, limit: Duration) -> Result<()> {
        // What a stopped sshd held must be free before anybody else may take it.
        let held = match method {
            "StopUnit" => sockets::inodes_of(self.unit(unit)?.main_pid)?,
            _ => BTreeSet::new(),
        };
        let result = self.with(|systemd| systemd.job(method, unit, limit.min(JOB)));
        if method == "StopUnit" && result.as_ref().is_err_and(SysError::is_silence) {
            // Else it would be carried out when nobody expects it any more.
            self.cancel_job(unit)?;
        }
        let result = result?;
        if !held.is_empty() && !sockets::await_closed(&held, CLOSED)? {
            tracing::warn!("{unit} has stopped, and somebody still holds its listener");
        }
        job_result(&method.trim_end_matches("Unit").to_lowercase(), unit, &result)
    }

    fn let_go(&self, unit: &str) -> Result<()> {
        if self.unit(unit)?.active == "inactive" {
            return Ok(());
        }
        match self.enqueue("StopUnit", unit) {
            Err(_) if !self.unit(unit)?.exists() => Ok(()),
            other => other,
        }
    }

    fn cancel_job(&self, unit: &str) -> Result<()> {
        self.with(|systemd| systemd.cancel_job(unit))
    }

    fn make_way(&self, bridge: &str, taker: &str, limit: Duration) -> Result<()> {
        let now = self.unit(bridge)?;
        let Some(sshd) = Process::read(now.main_pid).filter(|_| now.is_active()) else {
            // systemd may be about to start it again.
            return self.let_go(bridge);
        };
        let held = sockets::inodes_of(sshd.pid)?;
        self.await_checks(taker, limit.min(JOB))?;
        sshd.terminate()?;
        if !sockets::await_closed(&held, CLOSED)? {
            tracing::warn!("{bridge} was told to end, and somebody still holds its listener");
        }
        Ok(())
    }

    fn holds(&self, service: &str, endpoints: &[SocketAddr]) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let held = sockets::held_by(self.unit(service)?.main_pid)?;
            let all = endpoints.iter().all(|endpoint| held.contains(endpoint));
            if all || Instant::now() > deadline {
                return Ok(all);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
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
        let unit = self.unit(&process.unit)?;
        if unit.main_pid == process.pid && !unit.is_active() {
            // systemd 257 does not survive that.
            let lost = format!("systemd has lost track of {}, whose main process it is", unit.name);
            return Err(SysError::new(format!("cannot end pid {}", process.pid), lost));
        }
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
                let faults = if faults.is_empty() { self.ended(&expect.owner)? } else { faults };
                ("the new listener does not answer", faults, Duration::from_secs(1))
            } else {
                ("the new listener is not there", missing, Duration::from_millis(20))
            };
            if faults.is_empty() {
                return Ok(());
            }
            let owner = [&observed.socket, &observed.service].into_iter();
            let has_failed = |unit: &Unit| unit.active == "failed" && unit.job.is_empty();
            let in_vain = owner.filter(|unit| unit.name == expect.owner).any(has_failed);
            if in_vain || Instant::now() + pause > deadline {
                return Err(SysError::new(what, faults.join("; ")));
            }
            std::thread::sleep(pause);
        }
    }

    fn runs(&self, program: &Path) -> Result<()> {
        let ran = Command::new(program).arg("--version").run()?;
        if ran.status == 0 {
            return Ok(());
        }
        Err(SysError::new(format!("cannot run {}", program.display()), ran.stderr.trim()))
    }

    fn greet(
        &self,
        endpoints: &[SocketAddr],
        before: &Observed,
    ) -> std::result::Result<Vec<Fault>, Error> {
        let expect = Expectation { endpoints: endpoints.to_vec(), ..Expectation::default() };
        let mut tries = GREETINGS;
        loop {
            let (faults, notes) = verify::answers(&self.files, &expect, before)?;
            tries -= 1;
            if faults.is_empty() || tries == 0 {
                for note in notes {
                    tracing::warn!("{note}");
                }
                return Ok(faults);
            }
            // Nothing that happens once counts: on Debian 11 a connection to ssh.socket that ends takes
            // sshd's folder away from under this one.
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn other_host_key(
        &self,
        folder: &Path,
        before: &Observed,
    ) -> std::result::Result<Option<Fault>, Error> {
        verify::other_host_key(&self.files, folder, before)
    }

    fn log_in(
        &self,
        asked: logins::Asked,
    ) -> JoinHandle<std::result::Result<logins::Answer, Error>> {
        logins::begin(&self.files, asked)
    }

    fn compare(&self, asked: &logins::Asked, at: &[SocketAddr]) -> Vec<(String, Treated)> {
        logins::compare(&self.files, asked, at)
    }

    fn listen(&self, sshd: &OwnSshd) -> Result<Process> {
        let OwnSshd { unit, at, .. } = sshd;
        let what = format!("{unit} does not listen");
        if !self.unit(unit)?.is_active() {
            let program = observe::sshd_program().ok_or_else(|| SysError::new(&what, "no sshd"))?;
            let mut command = vec![program.display().to_string()];
            command.extend(sshd.args.iter().cloned());
            let started = self.with(|systemd| transient::start_sshd(systemd, sshd, &command));
            if let Err(error) = &started
                && error.is_silence()
            {
                // A start that waits would come at a time when nobody wants it any more.
                self.cancel_job(unit)?;
                self.silence(unit)?;
            }
            tracing::debug!("start {unit}: {}", started?);
        }
        let deadline = Instant::now() + LISTENERS;
        loop {
            let now = self.unit(unit)?;
            let held = sockets::held_by(now.main_pid)?;
            if let Some(process) = Process::read(now.main_pid)
                && at.iter().all(|endpoint| held.contains(endpoint))
            {
                return Ok(process);
            }
            // After a first try that failed it is "activating" for a moment: it is tried again.
            if matches!(now.active.as_str(), "inactive" | "failed") {
                return Err(SysError::new(what, format!("sshd ended; see journalctl -u {unit}")));
            }
            if Instant::now() > deadline {
                let missing: Vec<String> =
                    at.iter().filter(|at| !held.contains(at)).map(ToString::to_string).collect();
                return Err(SysError::new(what, format!("nothing on {}", missing.join(", "))));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn accepts(&self, sshd: &OwnSshd) -> Result<()> {
        let what = format!("{} would not start", sshd.unit);
        let program = observe::sshd_program().ok_or_else(|| SysError::new(&what, "no sshd"))?;
        let ran = Command::new(&program).arg("-t").args(&sshd.args).run()?;
        // Its unit makes that.
        if ran.status == 0 || ran.stderr.contains(observe::NO_FOLDER) {
            Ok(())
        } else {
            Err(SysError::new(what, ran.stderr.trim()))
        }
    }

    fn shut_out(&self, then: &Observed, now: &Observed, admins: &[String]) -> Option<String> {
        lockout::shut_out_since(&self.files, then, now, admins)
    }

    fn silence(&self, unit: &str) -> Result<()> {
        // One that does not run may still be about to start.
        if !self.unit(unit)?.exists() {
            return Ok(());
        }
        match self.job("StopUnit", unit, JOB) {
            // It has gone of itself in between.
            Err(_) if !self.unit(unit)?.exists() => Ok(()),
            other => other,
        }
    }

    fn units(&self, state: &str, patterns: &[&str]) -> Result<Vec<String>> {
        self.with(|systemd| systemd.units(state, patterns))
    }

    fn knock(&self, at: &SocketAddr) -> Option<Visitor> {
        Visitor::knock(*at)
    }

    fn keep(&self, unit: &str, command: &[String]) -> Result<()> {
        if self.unit(unit)?.is_active() {
            return Ok(());
        }
        let result = self.with(|systemd| transient::start_keeper(systemd, unit, command))?;
        job_result("start", unit, &result)
    }

    fn arm(&self, name: &str, command: &[String], after: Duration) -> Result<()> {
        let result = self.with(|systemd| transient::arm(systemd, name, command, after))?;
        job_result("start", &format!("{name}.timer"), &result)
    }

    fn is_armed(&self, name: &str) -> Result<bool> {
        self.with(|systemd| transient::is_armed(systemd, name))
    }

    fn disarm(&self, name: &str) -> Result<()> {
        let timer = format!("{name}.timer");
        if self.unit(&timer)?.active == "inactive" {
            return Ok(());
        }
        self.job("StopUnit", &timer, JOB)
    }

    fn boot(&self) -> String {
        boot_id()
    }

    fn stop_requested(&self) -> bool {
        self.stop.is_made()
    }

    fn goes_down(&self) -> bool {
        self.with(Systemd::is_stopping).unwrap_or(false)
    }

    fn enqueue(&self, method: &'static str, unit: &str) -> Result<()> {
        self.with(|systemd| systemd.enqueue(method, unit))
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
