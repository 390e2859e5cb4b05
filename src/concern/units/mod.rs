//! ssh.service and ssh.socket: the steps from one owner of the port to the other.
//!
//! Two orders matter. A socket is stopped before anything makes systemd reload: a reload after its
//! `ListenStream=` changed closes the descriptors and opens none. And ssh.service is stopped
//! before its unit files change: enabling makes the alias sshd.service, and systemd 257 loses the
//! running process in the reload that follows, so that a restart leaves the old sshd listening.

mod conflicts;
mod drop_ins;

pub(crate) use conflicts::{
    refuse_blocked, refuse_other_options, refuse_refusing, refuse_taken, refuse_unread,
    refuse_untried,
};
pub(crate) use drop_ins::sparing_sessions;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use super::listening::{Listening, Mode, configured};
use crate::error::Refusal;
use crate::observe::{Listener, Observed, Owner, UNIT_FOLDER};
use crate::step::{FileChange, Op, Step, UnitExpectation, file_steps};
use crate::sys::process::Process;
use crate::sys::units::Unit;

/// How the units change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transition {
    /// What lets go of the endpoints first.
    pub release: Vec<Step>,
    /// Unit files and links, once nothing runs.
    pub settle: Vec<Step>,
    /// What takes the endpoints then; `None` where the one that holds them may go on.
    pub take: Option<Step>,
    /// Unit files that differ, for the report; `settle` writes them.
    pub files: Vec<FileChange>,
    /// What must hold of each unit afterwards.
    pub expect: Vec<UnitExpectation>,
    /// Processes that systemd lost track of and that have to end.
    pub leftovers: Vec<(Process, Vec<SocketAddr>)>,
    /// Why each unit changes: name and sentence.
    pub reasons: Vec<(String, String)>,
}

impl Transition {
    /// All steps of the units themselves, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.release.iter().chain(&self.settle).chain(&self.take)
    }
}

/// Works out the steps.
///
/// # Errors
/// Refuses where the port is taken, another sshd runs on purpose, or the unit may not start.
pub(crate) fn transition(
    observed: &Observed,
    listening: &Listening,
    files: &[FileChange],
) -> Result<Transition, Refusal> {
    conflicts::refuse_blocked(observed)?;
    let leftovers = conflicts::leftovers(observed, listening)?;
    conflicts::refuse_taken(observed, &listening.endpoints)?;
    let planner = Planner { observed, listening, files_change: !files.is_empty(), leftovers };
    let transition = match listening.mode {
        Mode::Service => planner.toward_service(),
        Mode::Socket => planner.toward_socket(),
    }?;
    conflicts::refuse_refusing(observed, transition.steps())?;
    Ok(transition)
}

struct Planner<'a> {
    observed: &'a Observed,
    listening: &'a Listening,
    files_change: bool,
    leftovers: Vec<(Process, Vec<SocketAddr>)>,
}

impl Planner<'_> {
    /// ssh.socket lets go of the port, and ssh.service takes it.
    fn toward_service(self) -> Result<Transition, Refusal> {
        let (service, socket) = (&self.observed.service, &self.observed.socket);
        let files = self.service_files()?;
        let release = self.socket_holds_on();
        if release {
            conflicts::refuse_wanted(self.observed, &files)?;
        }
        let unlink = release && (socket.is_enabled() || self.pulled_in_by_link());
        let enable = !service.is_enabled();
        let reload = !files.is_empty() || unlink || enable || service.is_masked();
        let close = release && socket.is_active();
        let restart = self.files_change
            || reload
            || close
            || !service.is_active()
            || self.observed.stale
            || !self.listens(&service.name);
        if restart {
            conflicts::refuse_untried(self.observed, &service.name, false)?;
        }
        let why_socket = self.why_socket_goes();
        let why_service = self.why_service_starts(close, enable);

        let why_stop = "An sshd that runs while its unit files change is lost to systemd, and \
                        would go on with the old port.";
        let mut settle = Steps::default();
        settle.files(self.observed, &files);
        if unlink && socket.is_masked() {
            let why =
                format!("{} requires it, and a masked unit cannot be taken out.", service.name);
            settle.push(Op::Unmask(socket.name.clone()), &why);
        }
        if unlink {
            settle.push(Op::Disable(socket.name.clone()), &why_socket);
        }
        settle.bring_up(service, enable, reload);
        settle.reset_failed(&[service]);
        let take = restart.then(|| step(Op::Start(service.name.clone()), &why_service));
        let mut reasons = vec![(service.name.clone(), why_service)];
        if release {
            reasons.push((socket.name.clone(), why_socket.clone()));
        }
        Ok(self.transition(settle, take, files, reasons, (&why_socket, why_stop)))
    }

    /// ssh.service lets go of the port, and ssh.socket takes it.
    fn toward_socket(self) -> Result<Transition, Refusal> {
        conflicts::refuse_one_interface(self.observed)?;
        conflicts::refuse_other_options(self.observed)?;
        let (service, socket) = (&self.observed.service, &self.observed.socket);
        let files = self.socket_files()?;
        let disable = service.is_enabled();
        let enable = !socket.is_enabled();
        let reload =
            !files.is_empty() || disable || enable || socket.is_masked() || socket.needs_reload;
        let rebind = reload || !socket.is_active() || !self.listens(&socket.name);
        let why_socket =
            format!("{} takes the port and starts sshd when somebody connects.", socket.name);
        let why_service = self.why_service_goes(disable);
        let mut settle = Steps::default();
        settle.files(self.observed, &files);
        if disable {
            settle.push(Op::Disable(service.name.clone()), &why_service);
        }
        settle.bring_up(socket, enable, reload);
        settle.reset_failed(&[service, socket]);
        let begins = rebind || self.files_change || self.observed.stale;
        if begins {
            conflicts::refuse_untried(self.observed, &self.observed.behind_socket(), true)?;
        }
        let take = begins.then(|| step(Op::Start(socket.name.clone()), &why_socket));
        let reasons =
            vec![(socket.name.clone(), why_socket), (service.name.clone(), why_service.clone())];
        let why_stop = "A reload would close its descriptors and open none.";
        Ok(self.transition(settle, take, files, reasons, (why_stop, &why_service)))
    }

    /// `why`: the reasons why the socket and the service stop.
    fn transition(
        self,
        settle: Steps,
        take: Option<Step>,
        files: Vec<FileChange>,
        reasons: Vec<(String, String)>,
        why: (&str, &str),
    ) -> Transition {
        let (service, socket) = (&self.observed.service, &self.observed.socket);
        let mut release = Steps::default();
        for unit in self.observed.to_release().into_iter().filter(|_| take.is_some()) {
            let why = if unit.name == socket.name { why.0 } else { why.1 };
            release.push(Op::Stop(unit.name.clone()), why);
        }
        Transition {
            release: release.0,
            settle: settle.0,
            take,
            files,
            expect: self.expectation(service, socket),
            leftovers: self.leftovers,
            reasons,
        }
    }

    fn why_socket_goes(&self) -> String {
        let socket = &self.observed.socket;
        let port = self.listening.endpoints.first().map_or(22, SocketAddr::port);
        if !socket.is_active() {
            return format!("{} would take the port at the next boot.", socket.name);
        }
        let held = configured(self.observed).first().map_or(22, SocketAddr::port);
        if held == port {
            format!("{} holds port {held}; the spec wants sshd to.", socket.name)
        } else {
            format!(
                "{} holds port {held}, so `Port {port}` in sshd_config is ignored.",
                socket.name
            )
        }
    }

    fn why_service_goes(&self, disable: bool) -> String {
        let (service, socket) = (&self.observed.service.name, &self.observed.socket.name);
        if disable {
            format!("At the next boot {service} must not start beside {socket}.")
        } else {
            "The sshd that runs now holds the old socket and the old configuration.".to_owned()
        }
    }

    fn why_service_starts(&self, released: bool, enable: bool) -> String {
        let name = &self.observed.service.name;
        let port = self.listening.endpoints.first().map_or(22, SocketAddr::port);
        if released {
            format!("Only an sshd that starts after the socket is gone binds port {port} itself.")
        } else if !self.observed.service.is_active() {
            format!("{name} does not run.")
        } else if self.files_change {
            "sshd reads its files when it starts.".to_owned()
        } else if enable {
            format!("{name} would not come back after a reboot.")
        } else if self.observed.stale {
            "sshd's files changed after it started.".to_owned()
        } else {
            format!("{name} does not listen where its configuration says.")
        }
    }

    fn expectation(&self, service: &Unit, socket: &Unit) -> Vec<UnitExpectation> {
        let by_service = self.listening.mode == Mode::Service;
        let of = |unit: &Unit, active: Option<bool>, enabled: bool| UnitExpectation {
            name: unit.name.clone(),
            active,
            enabled,
        };
        let mut units = vec![of(service, by_service.then_some(true), by_service)];
        if socket.exists() {
            units.push(of(socket, Some(!by_service), !by_service));
        }
        units
    }

    /// Whether the unit holds exactly the wanted endpoints, in the kernel's own table.
    fn listens(&self, unit: &str) -> bool {
        let held: BTreeSet<SocketAddr> = self
            .observed
            .listeners
            .iter()
            .filter(|listener| listener.owner == Owner::Unit(unit.to_owned()))
            .flat_map(Listener::serves)
            .collect();
        // Without root the owners cannot be seen; the units' states have to do.
        let blind = self.observed.listeners.iter().all(|l| l.owner == Owner::Unseen);
        blind || held == self.listening.endpoints.iter().copied().collect()
    }

    fn socket_holds_on(&self) -> bool {
        let socket = &self.observed.socket;
        socket.exists() && (socket.is_active() || socket.is_enabled() || self.pulled_in_by_link())
    }

    /// Ubuntu's `RequiredBy=ssh.service`: a link that starts the socket with the service.
    fn pulled_in_by_link(&self) -> bool {
        let link = Path::new(UNIT_FOLDER)
            .join(format!("{}.requires", self.observed.service.name))
            .join(&self.observed.socket.name);
        self.observed.links.get(&link).is_some_and(Option::is_some)
    }
}

fn step(op: Op, why: &str) -> Step {
    Step { op, why: why.to_owned() }
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn push(&mut self, op: Op, why: &str) {
        self.0.push(step(op, why));
    }

    /// Unmasks and enables a unit, and makes systemd read what changed.
    fn bring_up(&mut self, unit: &Unit, enable: bool, reload: bool) {
        if unit.is_masked() {
            self.push(Op::Unmask(unit.name.clone()), "A masked unit cannot start.");
        }
        if enable {
            let why = format!("{} has to come back after a reboot.", unit.name);
            self.push(Op::Enable(unit.name.clone()), &why);
        }
        if reload {
            self.push(Op::Reload, "systemd reads changed unit files only when told.");
        }
    }

    fn reset_failed(&mut self, units: &[&Unit]) {
        for unit in units.iter().filter(|unit| unit.active == "failed") {
            let why = "Earlier failures count against a start.";
            self.push(Op::ResetFailed(unit.name.clone()), why);
        }
    }

    fn files(&mut self, observed: &Observed, files: &[FileChange]) {
        self.0.extend(file_steps(observed, files));
    }
}
