//! Why sshd does not listen where its configuration says: the cause, what shows it, and what mends it.
//! Pure: it judges what was observed.

mod causes;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use crate::concern::sshd_config::own::is_own;
use crate::observe::{Listener, Observed, Owner, Verdict};
use crate::sshd::Effective;
use crate::sshd::effective::ports;
use crate::sshd::reading::Reading;
use crate::sys::units::Unit;

/// What is known of a host.
#[derive(Debug, Clone)]
pub struct Case {
    /// The host.
    pub observed: Observed,
    /// What sshd makes of its files, without its command line.
    pub files: Verdict,
    /// A generator that makes ssh.socket from sshd_config at each daemon-reload (Ubuntu, from 24.04 on).
    pub generator: Option<std::path::PathBuf>,
    /// Whether sshd_config has changed since that last ran.
    pub ungenerated: bool,
    /// What ssh.service runs.
    pub running: Option<Running>,
    /// Units without which ssh.service does not start, and that have failed.
    pub failed: Vec<String>,
}

/// The main process of ssh.service.
#[derive(Debug, Clone)]
pub struct Running {
    /// File name of its program.
    pub program: String,
    /// Whether it has a network namespace of its own.
    pub apart: bool,
}

/// Where Ubuntu's openssh-server has its generator.
pub const GENERATORS: [&str; 2] = [
    "/usr/lib/systemd/system-generators/sshd-socket-generator",
    "/lib/systemd/system-generators/sshd-socket-generator",
];

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable name: `socket-owns-port`, `orphan`, ...
    pub cause: &'static str,
    /// What is wrong, in one sentence.
    pub message: String,
    /// What shows it, one fact each.
    pub evidence: Vec<String>,
    /// What mends it.
    pub fix: Fix,
}

/// What mends a fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fix {
    /// A command.
    Command(String),
    /// The `ssh` section of a spec for `harden apply`.
    Spec(String),
    /// Something that only a person can decide.
    Advice(String),
}

/// Finds what is wrong, the most fundamental first; nothing on a healthy host.
pub fn diagnose(case: &Case) -> Vec<Finding> {
    let sight = Sight::new(case);
    if sight.is_somebody_elses() {
        return causes::shadowed(case);
    }
    let mut findings = causes::folder_gone(case);
    findings.extend(causes::configuration(case));
    findings.extend(causes::other_file(case));
    findings.extend(causes::orphans(&sight));
    // What follows from those is none of its own.
    let units = [&case.observed.service, &case.observed.socket];
    let runs = units.into_iter().any(Unit::is_active);
    if findings.is_empty() {
        findings.extend(causes::blocked(&sight));
    }
    if findings.is_empty() {
        findings.extend(causes::one_interface(&sight));
    }
    if findings.is_empty() && !(runs && sight.agrees()) {
        findings.extend(causes::listeners(&sight));
    }
    findings.extend(causes::shadowed(case));
    if findings.is_empty() {
        findings.extend(causes::not_enabled(&sight).or_else(|| causes::other_at_boot(&sight)));
    }
    findings
}

/// Where sshd should listen, and where it does.
struct Sight<'c> {
    case: &'c Case,
    /// Every endpoint that the files ask for.
    wanted: Vec<SocketAddr>,
    /// Of those, the ones at which no sshd of the two units listens.
    missing: Vec<SocketAddr>,
    /// Whether one listens where the files do not ask for it.
    astray: bool,
    /// The lines of the files that say where to listen, with their places; none leaves it to sshd.
    lines: Vec<String>,
}

impl<'c> Sight<'c> {
    fn new(case: &'c Case) -> Self {
        let observed = &case.observed;
        let mut wanted = case.files.valid().map(Effective::listen).unwrap_or_default();
        let lines = lines(observed, &causes::LISTENING);
        let (service, socket) = (&observed.service, &observed.socket);
        let socket_owns = socket.is_active()
            || (!service.is_active() && socket.is_enabled() && !service.is_enabled());
        if socket_owns && case.generator.is_none() && lines.is_empty() {
            // Then the socket says it all; of the families, both.
            wanted = both_families(crate::concern::listening::configured(observed));
        }
        wanted.retain(|at| observed.ipv6 || at.is_ipv4());
        // Sockets and services of other names are somebody's own.
        let ours = [&observed.service.name, &observed.socket.name];
        let held = |listener: &&Listener| match &listener.owner {
            Owner::Unit(unit) => listener.ssh && ours.contains(&unit),
            _ => false,
        };
        let listeners = observed.listeners.iter().filter(held);
        let served: Vec<SocketAddr> = listeners.flat_map(Listener::serves).collect();
        let missing = wanted.iter().filter(|at| !served.contains(at)).copied().collect();
        // An address with a zone is none that can be compared.
        let has_zone = |at: &SocketAddr| match at.ip() {
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
            IpAddr::V4(_) => false,
        };
        let astray = served.iter().any(|at| !wanted.contains(at) && !has_zone(at));
        Self { case, wanted, missing, astray, lines }
    }

    /// A remedy that is a spec: sshd listens as the files ask for, and not ssh.socket.
    fn by_service(&self) -> Fix {
        self.where_wanted("socket: disabled")
    }

    /// The same, with something else to say. A spec has each of its ports on each of its addresses.
    fn where_wanted(&self, rest: &str) -> Fix {
        let ports = ports(&self.wanted);
        let addresses: BTreeSet<IpAddr> = self.wanted.iter().map(SocketAddr::ip).collect();
        let list = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let rest = if rest.is_empty() { String::new() } else { format!(", {rest}") };
        let section = format!("{{port: [{list}]{rest}}}");
        if self.wanted.len() == ports.len() * addresses.len() {
            return self.spec(section);
        }
        Fix::Advice(format!(
            "apply a spec with the `port` and `listen` that you mean{rest}: each port is on each address \
             then, and the files ask for other pairs"
        ))
    }

    /// A remedy that is a spec. Where another one stands already it has to be part of that: a spec is the whole
    /// truth, and this one alone would take back what that says.
    fn spec(&self, section: String) -> Fix {
        if self.case.observed.config.files.iter().any(|file| is_own(&file.path)) {
            return Fix::Advice(format!(
                "let the `ssh` section of your spec say `{section}`, and apply it"
            ));
        }
        Fix::Spec(section)
    }

    /// Somebody has put units of their own in the place of the two, and an sshd of theirs is wherever the files want
    /// one.
    fn is_somebody_elses(&self) -> bool {
        let Observed { service, socket, listeners, .. } = &self.case.observed;
        let is_in_use = |unit: &Unit| unit.is_up() || unit.is_enabled();
        let is_theirs = |listener: &&Listener| match &listener.owner {
            Owner::Unit(unit) => ![&service.name, &socket.name].contains(&unit),
            // A rescue of harden's own is none that may stay.
            Owner::Process(process) => {
                !is_orphan(listener, &service.name) && !process.is_of_harden()
            }
            Owner::Unseen => false,
        };
        let theirs = listeners.iter().filter(|listener| listener.ssh).filter(is_theirs);
        let theirs: Vec<SocketAddr> = theirs.flat_map(Listener::serves).collect();
        let rest = ![service, socket].into_iter().any(is_in_use);
        rest && !self.wanted.is_empty() && self.wanted.iter().all(|at| theirs.contains(at))
    }

    fn agrees(&self) -> bool {
        self.missing.is_empty() && !self.astray && self.closed().is_empty()
    }

    /// Where ssh.socket should listen, runs, and does not.
    fn closed(&self) -> Vec<SocketAddr> {
        let observed = &self.case.observed;
        let socket = &observed.socket;
        if !socket.is_active() {
            return Vec::new();
        }
        let is_its = |owner: &Owner| *owner == Owner::Unit(socket.name.clone());
        let held = observed.listeners.iter().filter(|listener| is_its(&listener.owner));
        let held: Vec<SocketAddr> = held.flat_map(Listener::serves).collect();
        let mut closed = crate::concern::listening::configured(observed);
        closed.retain(|at| !held.contains(at) && (observed.ipv6 || at.is_ipv4()));
        closed
    }
}

fn both_families(mut endpoints: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let all = endpoints.clone().into_iter().filter(|at| at.ip().is_unspecified());
    endpoints.extend(all.flat_map(|at| {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        any.map(|ip| SocketAddr::new(ip, at.port()))
    }));
    endpoints.sort();
    endpoints.dedup();
    endpoints
}

/// The lines that set any of these keywords for everybody, with their places.
fn lines(observed: &Observed, keywords: &[&str]) -> Vec<String> {
    let reading = Reading::new(&observed.config, observed.release.clone()).ok();
    let globally = reading.as_ref().and_then(|reading| reading.globally().ok());
    let of = |keyword: &&str| Some(globally.as_ref()?.of(keyword)?.followed.clone());
    let places = keywords.iter().filter_map(of).flatten();
    places.map(|place| format!("`{}` ({place})", causes::shown(&place))).collect()
}

/// An sshd that ssh.service has lost, or that nobody has started as a unit; one in a unit of its own is
/// somebody's.
fn is_orphan(listener: &Listener, service: &str) -> bool {
    let Owner::Process(process) = &listener.owner else { return false };
    let unit = &process.unit;
    let of_session = unit.starts_with("session-") && unit.ends_with(".scope");
    listener.ssh && (unit == service || unit.is_empty() || of_session)
}
