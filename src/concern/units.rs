//! ssh.service and ssh.socket: the steps from one owner of the port to the other.
//!
//! Two orders matter. A socket is stopped before anything makes systemd reload: a reload after its
//! `ListenStream=` changed closes the descriptors and opens none. And ssh.service is stopped
//! before its unit files change: enabling makes the alias sshd.service, and systemd 257 loses the
//! running process in the reload that follows, so that a restart leaves the old sshd listening.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::listening::{Listening, Mode, configured};
use crate::error::Refusal;
use crate::observe::{Listener, Observed, Owner, UNIT_FOLDER};
use crate::plan::{FileChange, Op, Step, UnitExpectation};
use crate::sys::files::Meta;
use crate::sys::process::Process;
use crate::sys::units::{Unit, directives};

/// Sorts behind generators' and packages' drop-ins, so that its `ListenStream=` reset counts.
const DROP_IN: &str = "zz-harden.conf";

/// How the units change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transition {
    /// Steps, in order; sshd's own files are already in place when they run.
    pub steps: Vec<Step>,
    /// Unit files that differ, for the report; the steps write them.
    pub files: Vec<FileChange>,
    /// What must hold of each unit afterwards.
    pub expect: Vec<UnitExpectation>,
    /// Processes that systemd lost track of and that have to end.
    pub leftovers: Vec<(Process, Vec<SocketAddr>)>,
    /// Why each unit changes: name and sentence.
    pub reasons: Vec<(String, String)>,
    /// What the reader should know.
    pub warnings: Vec<String>,
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
    refuse_blocked(observed)?;
    let leftovers = leftovers(observed, listening)?;
    refuse_taken(observed, listening)?;
    let planner = Planner { observed, listening, files_change: !files.is_empty(), leftovers };
    match listening.mode {
        Mode::Service => planner.to_service(),
        Mode::Socket => planner.to_socket(),
    }
}

fn refuse_blocked(observed: &Observed) -> Result<(), Refusal> {
    if observed.not_to_be_run {
        return Err(Refusal::new(
            "not-to-be-run",
            "/etc/ssh/sshd_not_to_be_run exists, so systemd would not start sshd",
            "remove that file if sshd shall run here",
        ));
    }
    Ok(())
}

/// sshd processes that listen outside their unit: orphans of ssh.service are ended, others are
/// somebody's and are not harden's to end.
fn leftovers(
    observed: &Observed,
    listening: &Listening,
) -> Result<Vec<(Process, Vec<SocketAddr>)>, Refusal> {
    let mut found: Vec<(Process, Vec<SocketAddr>)> = Vec::new();
    for listener in observed.listeners.iter().filter(|listener| listener.ssh) {
        match &listener.owner {
            Owner::Process(process) if process.unit == observed.service.name => {
                match found.iter_mut().find(|(other, _)| other == process) {
                    Some((_, endpoints)) => endpoints.extend(listener.serves()),
                    None => found.push((process.clone(), listener.serves())),
                }
            }
            Owner::Process(process) => return Err(other_sshd(listener, process)),
            Owner::Unit(unit)
                if *unit != observed.service.name && *unit != observed.socket.name =>
            {
                let at = SocketAddr::new(listener.address, listener.port);
                return Err(Refusal::new(
                    "other-listener",
                    format!("{unit} also listens for SSH, on {at}"),
                    format!(
                        "harden proves that {} alone does: systemctl disable --now {unit}",
                        listening.owner
                    ),
                ));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn other_sshd(listener: &Listener, process: &Process) -> Refusal {
    let at = SocketAddr::new(listener.address, listener.port);
    let Process { name, pid, unit, .. } = process;
    let (place, hint) = if unit.ends_with(".service") {
        (format!(" of {unit}"), format!("systemctl disable --now {unit}"))
    } else {
        (String::new(), format!("kill {pid}"))
    };
    Refusal::new(
        "other-listener",
        format!("another SSH server listens on {at}: {name} (pid {pid}){place}"),
        format!("end it first if you do not need it: {hint}"),
    )
}

/// A port that a program other than sshd holds cannot be had.
fn refuse_taken(observed: &Observed, listening: &Listening) -> Result<(), Refusal> {
    let taken = |listener: &&Listener| {
        !listener.ssh && listening.endpoints.iter().any(|endpoint| collides(listener, endpoint))
    };
    // Without root nobody's sockets can be told apart: leave it to the run that has root.
    let Some(listener) =
        observed.listeners.iter().filter(|listener| listener.owner != Owner::Unseen).find(taken)
    else {
        return Ok(());
    };
    let at = SocketAddr::new(listener.address, listener.port);
    let unit = match &listener.owner {
        Owner::Process(process) if !process.unit.is_empty() => format!(" of {}", process.unit),
        _ => String::new(),
    };
    Err(Refusal::new(
        "port-taken",
        format!("port {} is taken: {} listens on {at}{unit}", listener.port, listener.owner),
        "choose another port, or stop that program first",
    ))
}

/// Whether two sockets cannot exist at the same time (ip(7), bind(2)).
fn collides(listener: &Listener, endpoint: &SocketAddr) -> bool {
    listener.serves().iter().any(|served| {
        served.port() == endpoint.port()
            && served.is_ipv4() == endpoint.is_ipv4()
            && (served.ip() == endpoint.ip()
                || served.ip().is_unspecified()
                || endpoint.ip().is_unspecified())
    })
}

struct Planner<'a> {
    observed: &'a Observed,
    listening: &'a Listening,
    files_change: bool,
    leftovers: Vec<(Process, Vec<SocketAddr>)>,
}

impl Planner<'_> {
    fn to_service(self) -> Result<Transition, Refusal> {
        let (service, socket) = (&self.observed.service, &self.observed.socket);
        let mut transition = Transition {
            files: self.service_files()?,
            expect: self.expectation(service, socket),
            ..Transition::default()
        };
        let release = self.socket_holds_on();
        let unlink = release && (socket.is_enabled() || self.pulled_in_by_link());
        let enable = !service.is_enabled();
        let unit_files = !transition.files.is_empty() || unlink || enable || service.is_masked();
        let reload = unit_files || service.needs_reload;
        let restart = self.files_change
            || reload
            || (release && socket.is_active())
            || !service.is_active()
            || self.observed.stale
            || !self.listens(&service.name);

        let port = self.first_port();
        let why_socket = if socket.is_active() {
            let held = configured(self.observed).first().map_or(22, SocketAddr::port);
            format!(
                "{} holds port {held}, so `Port {port}` in sshd_config is ignored.",
                socket.name
            )
        } else {
            format!("{} would take the port at the next boot.", socket.name)
        };
        let why_service = self.why_service(port, release && socket.is_active(), enable);
        let mut steps = Steps::default();
        if release && socket.is_active() {
            steps.push(Op::Stop(socket.name.clone()), &why_socket);
        }
        let stop_first = service.is_active() && (reload || (release && socket.is_active()));
        if stop_first {
            let why = "An sshd that runs while its unit files change is lost to systemd, and would \
                       go on with the old port.";
            steps.push(Op::Stop(service.name.clone()), why);
        }
        steps.files(self.observed, &transition.files);
        if unlink && socket.is_masked() {
            let why =
                format!("{} requires it, and a masked unit cannot be taken out.", service.name);
            steps.push(Op::Unmask(socket.name.clone()), &why);
        }
        if unlink {
            steps.push(Op::Disable(socket.name.clone()), &why_socket);
        }
        if service.is_masked() {
            steps.push(Op::Unmask(service.name.clone()), "A masked unit cannot start.");
        }
        if enable {
            steps.push(Op::Enable(service.name.clone()), "sshd has to come back after a reboot.");
        }
        if reload {
            steps.push(Op::Reload, "systemd reads changed unit files only when told.");
        }
        self.end_leftovers(&mut steps, true);
        if service.active == "failed" {
            steps.push(
                Op::ResetFailed(service.name.clone()),
                "Earlier failures count against a start.",
            );
        }
        if restart && service.is_active() && !stop_first {
            steps.push(Op::Restart(service.name.clone()), &why_service);
        } else if restart {
            steps.push(Op::Start(service.name.clone()), &why_service);
        }
        self.prove_and_end(&mut steps);
        if release {
            transition.reasons.push((socket.name.clone(), why_socket));
        }
        transition.reasons.push((service.name.clone(), why_service));
        transition.steps = steps.0;
        transition.leftovers = self.leftovers;
        Ok(transition)
    }

    fn to_socket(self) -> Result<Transition, Refusal> {
        let (service, socket) = (&self.observed.service, &self.observed.socket);
        let mut transition = Transition {
            files: self.socket_files()?,
            expect: self.expectation(service, socket),
            ..Transition::default()
        };
        let disable = service.is_enabled();
        let enable = !socket.is_enabled();
        let unit_files = !transition.files.is_empty() || disable || enable || socket.is_masked();
        let reload = unit_files || socket.needs_reload || service.needs_reload;
        let rebind = reload || !socket.is_active() || !self.listens(&socket.name);
        // With Accept=yes every connection starts an sshd of its own and reads the files anew.
        let restart = !rebind
            && service.is_active()
            && !socket.accept
            && (self.files_change || self.observed.stale);

        let why_socket =
            format!("{} takes the port and starts sshd when somebody connects.", socket.name);
        let why_service = if disable {
            format!("At the next boot {} must not start beside {}.", service.name, socket.name)
        } else {
            "The sshd that runs now holds the old socket and the old configuration.".to_owned()
        };
        let mut steps = Steps::default();
        if rebind && socket.is_active() {
            let why = "A reload would close its descriptors and open none.";
            steps.push(Op::Stop(socket.name.clone()), why);
        }
        if rebind && service.is_active() {
            steps.push(Op::Stop(service.name.clone()), &why_service);
        }
        steps.files(self.observed, &transition.files);
        if disable {
            steps.push(Op::Disable(service.name.clone()), &why_service);
        }
        if socket.is_masked() {
            steps.push(Op::Unmask(socket.name.clone()), "A masked unit cannot start.");
        }
        if enable {
            let why = "The socket has to come back after a reboot.";
            steps.push(Op::Enable(socket.name.clone()), why);
        }
        if reload {
            steps.push(Op::Reload, "systemd reads changed unit files only when told.");
        }
        self.end_leftovers(&mut steps, true);
        for unit in [service, socket].into_iter().filter(|unit| unit.active == "failed") {
            steps.push(
                Op::ResetFailed(unit.name.clone()),
                "Earlier failures count against a start.",
            );
        }
        if rebind {
            steps.push(Op::Start(socket.name.clone()), &why_socket);
        } else if restart {
            steps.push(Op::Restart(service.name.clone()), "sshd reads its files when it starts.");
        }
        self.prove_and_end(&mut steps);
        transition.reasons.push((socket.name.clone(), why_socket));
        transition.reasons.push((service.name.clone(), why_service));
        transition.steps = steps.0;
        transition.leftovers = self.leftovers;
        Ok(transition)
    }

    fn first_port(&self) -> u16 {
        self.listening.endpoints.first().map_or(22, SocketAddr::port)
    }

    fn why_service(&self, port: u16, released: bool, enable: bool) -> String {
        let name = &self.observed.service.name;
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

    /// Drop-ins that tie ssh.service to the socket, without the ties.
    fn service_files(&self) -> Result<Vec<FileChange>, Refusal> {
        let (service, socket) = (&self.observed.service, &self.observed.socket);
        let mut files = Vec::new();
        for path in &service.drop_ins {
            let Some(file) = self.observed.unit_files.get(path) else { continue };
            let ties = |line: &str| {
                directives(line).iter().any(|(key, value)| {
                    matches!(*key, "Requires" | "BindsTo" | "Requisite") && *value == socket.name
                })
            };
            if !socket.exists() || !file.text.lines().any(ties) {
                continue;
            }
            if !path.starts_with(UNIT_FOLDER) {
                return Err(Refusal::new(
                    "shadowed",
                    format!("{} ties {} to {}", path.display(), service.name, socket.name),
                    "that drop-in is not the administrator's: remove the package or generator \
                     that makes it, or use `socket: enabled`",
                ));
            }
            let kept: String = file
                .text
                .split_inclusive('\n')
                .filter(|line| !ties(line))
                .filter(|line| line.trim() != format!("After={}", socket.name))
                .collect();
            let empty = directives(&kept).is_empty();
            files.push(FileChange {
                path: file.real.clone(),
                before: Some(file.text.clone()),
                after: (!empty).then_some(kept),
                meta: file.meta.clone(),
                concern: "units",
                reason: format!("It would start {} again with {}.", socket.name, service.name),
            });
        }
        files.extend(self.own_drop_in().map(|own| self.without(own)));
        Ok(files)
    }

    fn without(&self, (path, text, meta): (PathBuf, String, Meta)) -> FileChange {
        FileChange {
            path,
            before: Some(text),
            after: None,
            meta,
            concern: "units",
            reason: format!("{} no longer holds the port.", self.observed.socket.name),
        }
    }

    fn own_drop_in(&self) -> Option<(PathBuf, String, Meta)> {
        let path = self.drop_in_path();
        let file = self.observed.unit_files.get(&path)?;
        Some((path, file.text.clone(), file.meta.clone()))
    }

    fn drop_in_path(&self) -> PathBuf {
        Path::new(UNIT_FOLDER).join(format!("{}.d", self.observed.socket.name)).join(DROP_IN)
    }

    /// The socket's drop-in, where its own addresses are not the wanted ones.
    ///
    /// Each address stands alone with `BindIPv6Only=ipv6-only`, which is right for Debian's unit
    /// (one dual-stack `ListenStream=22`) as for Ubuntu's (one for each family).
    fn socket_files(&self) -> Result<Vec<FileChange>, Refusal> {
        let own = self.own_drop_in();
        let wanted = &self.listening.endpoints;
        if own.is_none() && configured(self.observed) == *wanted {
            return Ok(Vec::new());
        }
        self.refuse_later_drop_in()?;
        let specific = wanted.iter().any(|endpoint| !endpoint.ip().is_unspecified());
        let mut text = "# Written by harden. `harden apply` replaces this file: change the spec \
                        instead.\n[Socket]\nListenStream=\nBindIPv6Only=ipv6-only\n"
            .to_owned();
        if specific {
            // Sockets are bound before the network is up (systemd.socket(5), FreeBind=).
            text.push_str("FreeBind=yes\n");
        }
        for endpoint in wanted {
            text.push_str(&format!("ListenStream={endpoint}\n"));
        }
        let before = own.map(|(_, text, _)| text);
        if before.as_ref() == Some(&text) {
            return Ok(Vec::new());
        }
        Ok(vec![FileChange {
            path: self.drop_in_path(),
            before,
            after: Some(text),
            meta: Meta::root(0o644),
            concern: "units",
            reason: format!(
                "{} listens where its own unit says, whatever sshd_config says.",
                self.observed.socket.name
            ),
        }])
    }

    fn refuse_later_drop_in(&self) -> Result<(), Refusal> {
        let later = self.observed.socket.drop_ins.iter().find(|path| {
            let name = path.file_name().unwrap_or_default();
            let text = self.observed.unit_files.get(*path).map(|file| file.text.as_str());
            name > std::ffi::OsStr::new(DROP_IN)
                && directives(text.unwrap_or_default())
                    .iter()
                    .any(|(key, _)| *key == "ListenStream")
        });
        let Some(path) = later else { return Ok(()) };
        Err(Refusal::new(
            "shadowed",
            format!("{} is read after {DROP_IN} and sets ListenStream= too", path.display()),
            "rename it so that it sorts before zz-harden.conf, or remove it",
        ))
    }

    /// Ends leftovers that hold a wanted port (before the start) or any other (after the proof).
    fn end_leftovers(&self, steps: &mut Steps, in_the_way: bool) {
        for (process, endpoints) in &self.leftovers {
            let blocks = endpoints.iter().any(|held| {
                self.listening.endpoints.iter().any(|wanted| wanted.port() == held.port())
            });
            if blocks == in_the_way {
                steps.push(
                    Op::End(process.clone()),
                    "This sshd is no part of ssh.service any more and has the old configuration.",
                );
            }
        }
    }

    fn prove_and_end(&self, steps: &mut Steps) {
        if steps.0.is_empty() && self.leftovers.is_empty() && !self.files_change {
            return;
        }
        let why = "Nothing else is touched before the new listener is proven.";
        steps.push(Op::AwaitListeners, why);
        self.end_leftovers(steps, false);
    }
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn push(&mut self, op: Op, why: &str) {
        self.0.push(Step { op, why: why.to_owned() });
    }

    fn files(&mut self, observed: &Observed, files: &[FileChange]) {
        for file in files {
            let folder = file.path.parent().unwrap_or(Path::new("/"));
            if file.before.is_none() && observed.missing_folders.iter().any(|m| m == folder) {
                self.0.push(super::folder_step(folder));
            }
            self.0.push(file.step());
        }
    }
}
