//! Where sshd shall listen, and which unit shall hold the sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::Refusal;
use crate::observe::{Observed, Owner, Verdict};
use crate::spec::{Setting, SocketMode, Spec};
use crate::sshd::effective::{addresses, ports};
use crate::sshd::reading::Effect;
use crate::sshd::{Effective, options};

/// sshd serves at most this many sockets (servconf.h, `MAX_LISTEN_SOCKS`).
pub const MAX_SOCKETS: usize = 16;

/// Who binds the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// sshd itself, in ssh.service.
    Service,
    /// systemd, for ssh.socket.
    Socket,
}

/// The listeners that the spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// Who binds the port.
    pub mode: Mode,
    /// The unit of that mode.
    pub owner: String,
    /// All endpoints, sorted.
    pub endpoints: Vec<SocketAddr>,
    /// `Port` lines to write; empty leaves sshd's own lines alone.
    pub ports: Vec<u16>,
    /// `ListenAddress` lines to write; empty leaves sshd's own lines alone.
    pub addresses: Vec<IpAddr>,
    /// `AddressFamily any` has to be written, because another line narrows it.
    pub any_family: bool,
}

impl Listening {
    /// The keywords that these listeners take over from other files.
    pub fn keywords(&self) -> Vec<String> {
        let mut keywords = Vec::new();
        if !self.ports.is_empty() {
            keywords.push("Port".to_owned());
        }
        if !self.addresses.is_empty() {
            keywords.push("ListenAddress".to_owned());
        }
        if self.any_family {
            keywords.push("AddressFamily".to_owned());
        }
        keywords
    }

    /// A family over which sshd is reached now, and would not be any more.
    pub(crate) fn lost_family(&self, observed: &Observed) -> Option<String> {
        let reached = |endpoints: &[SocketAddr], v4: bool| {
            endpoints.iter().any(|at| at.is_ipv4() == v4 && !at.ip().is_loopback())
        };
        let before = observed.held();
        let lost = |v4: &bool| reached(&before, *v4) && !reached(&self.endpoints, *v4);
        let family = if [true, false].into_iter().find(lost)? { "IPv4" } else { "IPv6" };
        let list: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        let there = list.join(" and ");
        Some(format!(
            "nobody reaches sshd over {family} any more: it would listen on {there} alone"
        ))
    }

    /// What ssh.socket listens on besides addresses, where it goes.
    pub(crate) fn gone_with_socket(&self, observed: &Observed) -> Option<String> {
        let socket = &observed.socket;
        let gone = socket.not_of_ip();
        let goes = self.owner != socket.name && socket.is_active() && !gone.is_empty();
        goes.then(|| format!("{} listens on {} too, which ends", socket.name, gone.join(" and ")))
    }

    /// Addresses that sshd would bind from now on, and that have to be there when it starts: it does without those
    /// that are not, and ends where none is; systemd does not start it again (`RestartPreventExitStatus=255`).
    pub fn late(&self, observed: &Observed) -> Option<String> {
        let service = Owner::Unit(observed.service.name.clone());
        let holds = |at: &SocketAddr| {
            let held = observed.listeners.iter().filter(|listener| listener.owner == service);
            held.flat_map(crate::observe::Listener::serves).any(|held| held.ip() == at.ip())
        };
        let fixed = |at: &&SocketAddr| !at.ip().is_unspecified() && !at.ip().is_loopback();
        let all = self.endpoints.iter().all(|at| fixed(&at));
        let new = self.endpoints.iter().filter(fixed).find(|at| !holds(at))?;
        let (alone, outcome) = if all {
            (" alone", "sshd does not come up")
        } else {
            ("", "sshd does not listen there until it is restarted")
        };
        (self.mode == Mode::Service).then(|| {
            format!(
                "sshd would listen on {}{alone}. Where an address comes after the start of {} at boot \
                 (DHCP, IPv6), {outcome}; `socket: enabled` binds it beforehand",
                new.ip(),
                observed.service.name
            )
        })
    }

    /// The lines of sshd_config that ask for them.
    pub fn lines(&self) -> Vec<String> {
        let family = self.any_family.then(|| "AddressFamily any".to_owned());
        let ports = self.ports.iter().map(|port| format!("Port {port}"));
        let addresses = self.addresses.iter().map(|address| format!("ListenAddress {address}"));
        family.into_iter().chain(ports).chain(addresses).collect()
    }
}

/// Works out the endpoints from the spec, and from the host where the spec is silent.
///
/// What an earlier spec said of ports and addresses stands until another one says otherwise: a
/// spec about keys must not move the port back.
pub(crate) fn desired(
    spec: &Spec,
    observed: &Observed,
    globally: &Effect,
) -> Result<Listening, Refusal> {
    let asked = Asked::new(spec, observed);
    let mode = mode(spec.ssh.socket, observed);
    if mode == Mode::Socket && !observed.socket.exists() {
        return Err(Refusal::new(
            "no-socket-unit",
            format!(
                "`socket: enabled`, but there is no socket unit beside {}",
                observed.service.name
            ),
            "this distribution does not ship one: use `socket: disabled`",
        ));
    }
    let owner = match mode {
        Mode::Service => observed.service.name.clone(),
        Mode::Socket => observed.socket.name.clone(),
    };
    let effective = effective(observed, globally);
    let all_named = asked.listen.is_some() && asked.ports.is_some();
    let mut addresses = effective.get("listenaddress").iter();
    if let Some(scoped) = addresses.find(|at| at.contains('%') && !all_named) {
        return Err(Refusal::new(
            "scoped-address",
            format!("sshd listens on {scoped}, an address with a zone, and harden knows none"),
            "take that ListenAddress away, or name `port`, and addresses without a zone in `listen`",
        ));
    }
    let now = present(mode, observed, &effective);
    let family = family(spec, &asked, observed, globally);
    let mut endpoints = wanted(&asked, observed, &now)?;
    endpoints.retain(|endpoint| family.allows(endpoint.ip()));
    endpoints.sort();
    check(&endpoints)?;
    refuse_foreign_address(observed, &endpoints)?;

    let managed = asked.ports.is_some() || asked.listen.is_some();
    if mode == Mode::Service && !managed {
        refuse_unread_listeners(observed, &endpoints)?;
    }
    let ports = match &asked.ports {
        _ if !managed => Vec::new(),
        Some(ports) => ports.clone(),
        None => ports(&endpoints),
    };
    let addresses = addresses_to_write(&asked, globally, managed, &endpoints);
    let any_family = family == Family::MustBeAny;
    Ok(Listening { mode, owner, endpoints, ports, addresses, any_family })
}

/// What sshd counts its connections by, and the sshd of a single one has nothing to count (sshd(8), `-i`).
const COUNTS: [&str; 5] = [
    "MaxStartups",
    "PerSourceMaxStartups",
    "PerSourceNetBlockSize",
    "PerSourcePenalties",
    "PerSourcePenaltyExemptList",
];

/// Behind a socket with `Accept=yes` sshd counts no connections. Leaves what a profile says of that out of the spec,
/// and says so.
///
/// # Errors
/// Where the spec itself says it.
pub(crate) fn leave_uncounted(
    asked: &Spec,
    spec: &mut Spec,
    listening: &Listening,
    observed: &Observed,
) -> Result<Option<String>, Refusal> {
    let counts = |setting: &Setting| {
        COUNTS.iter().any(|keyword| setting.keyword.eq_ignore_ascii_case(keyword))
    };
    let socket = &observed.socket;
    if listening.mode != Mode::Socket || !socket.accept {
        return Ok(None);
    }
    if let Some(setting) = asked.ssh.settings.iter().find(|setting| counts(setting)) {
        let (keyword, name) = (&setting.keyword, &socket.name);
        return Err(Refusal::new(
            "no-effect",
            format!(
                "`{keyword}` has no effect behind {name}, which starts an sshd for each connection"
            ),
            format!("use `socket: disabled`, or MaxConnections= of {name} in place of it"),
        ));
    }
    let left_out: Vec<String> =
        spec.ssh.settings.extract_if(.., |setting| counts(setting)).map(|s| s.keyword).collect();
    Ok((!left_out.is_empty())
        .then(|| format!("left out {}: no effect behind {}", left_out.join(", "), socket.name)))
}

/// Ports and addresses that the spec, or else an earlier one, asks for.
struct Asked {
    ports: Option<Vec<u16>>,
    listen: Option<Vec<IpAddr>>,
}

impl Asked {
    fn new(spec: &Spec, observed: &Observed) -> Self {
        let earlier = super::sshd_config::own::earlier_lines(&observed.config);
        let values = |keyword: &str| -> Vec<String> {
            let lines = earlier.iter().filter(|line| line.is(keyword));
            lines.filter_map(|line| line.args.first().cloned()).collect()
        };
        let ports: Vec<u16> = values("Port").iter().filter_map(|p| p.parse().ok()).collect();
        let listen: Vec<IpAddr> =
            values("ListenAddress").iter().filter_map(|a| a.parse().ok()).collect();
        Self {
            ports: spec.ssh.ports.clone().or(Some(ports).filter(|ports| !ports.is_empty())),
            listen: spec.ssh.listen.clone().or(Some(listen).filter(|listen| !listen.is_empty())),
        }
    }
}

fn mode(asked: SocketMode, observed: &Observed) -> Mode {
    let socket_now = observed.socket.is_active()
        || (!observed.service.is_active() && observed.socket.is_enabled());
    match asked {
        SocketMode::Disabled => Mode::Service,
        SocketMode::Enabled => Mode::Socket,
        SocketMode::Keep if socket_now => Mode::Socket,
        SocketMode::Keep => Mode::Service,
    }
}

/// What sshd says is in effect; from its files where harden wrote the present values itself, so
/// that a spec which no longer asks for them is not held to them, or where sshd cannot be asked.
fn effective(observed: &Observed, globally: &Effect) -> Effective {
    let own = super::sshd_config::own::earlier_lines(&observed.config);
    let narrowed = own.iter().any(|line| line.is("AddressFamily") || line.is("ListenAddress"));
    match &observed.effective {
        Verdict::Valid(effective) if !narrowed => effective.clone(),
        _ => from_files(globally),
    }
}

/// The listeners that the files ask for, had harden never written to them.
fn from_files(globally: &Effect) -> Effective {
    let values = |keyword: &str| Some(globally.first_args(keyword)).filter(|all| !all.is_empty());
    let hosts = values("ListenAddress").unwrap_or_else(|| vec!["0.0.0.0", "::"]);
    let mut output = String::new();
    for port in values("Port").unwrap_or_else(|| vec!["22"]) {
        for host in &hosts {
            let address = match host.parse::<IpAddr>() {
                Ok(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
                Ok(IpAddr::V4(v4)) => format!("{v4}:{port}"),
                Err(_) => (*host).to_owned(),
            };
            output.push_str(&format!("listenaddress {address}\n"));
        }
    }
    Effective::parse(&output)
}

/// Somebody has changed where sshd listens, and it has not read that: a spec that says nothing of it moves nothing.
fn refuse_unread_listeners(observed: &Observed, endpoints: &[SocketAddr]) -> Result<(), Refusal> {
    let held = observed.held();
    let differs = held.iter().any(|at| !endpoints.contains(at));
    if !differs || !observed.is_unread() || observed.socket.is_active() {
        return Ok(());
    }
    let list =
        |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Err(Refusal::new(
        "unread-listeners",
        format!(
            "sshd listens on {}, and its files, which were changed since it started, say {}",
            list(&held),
            list(endpoints)
        ),
        "say in the spec what you mean (`port`, `listen`), or undo what was changed",
    ))
}

/// sshd binds only addresses that the host has (ip(7), ip_nonlocal_bind).
fn refuse_foreign_address(observed: &Observed, endpoints: &[SocketAddr]) -> Result<(), Refusal> {
    let foreign = endpoints.iter().map(SocketAddr::ip).find(|address| !observed.has(*address));
    let Some(address) = foreign else { return Ok(()) };
    Err(Refusal::new(
        "no-such-address",
        format!("sshd would listen on {address}, which no interface of this host has"),
        "correct `ssh.listen`, or bring the interface up first (ip address)",
    ))
}

/// The endpoints from which a silent spec inherits.
///
/// While systemd holds the port, sshd_config's addresses are ignored, and the socket's count; on
/// the way to ssh.service, sshd_config's count again.
fn present(mode: Mode, observed: &Observed, effective: &Effective) -> Vec<SocketAddr> {
    let held: Vec<SocketAddr> = observed
        .listeners
        .iter()
        .filter(|listener| listener.owner == Owner::Unit(observed.socket.name.clone()))
        .flat_map(crate::observe::Listener::serves)
        .collect();
    let configured = configured(observed);
    let mut now = match mode {
        Mode::Socket if !held.is_empty() => held,
        Mode::Socket if observed.socket.is_active() && !configured.is_empty() => configured,
        _ => effective.listen(),
    };
    if !observed.ipv6 {
        now.retain(SocketAddr::is_ipv4);
    }
    now
}

/// The endpoints that ssh.socket would serve as it is configured (systemd.socket(5)).
pub(crate) fn configured(observed: &Observed) -> Vec<SocketAddr> {
    let dual = observed.socket.bind_ipv6_only != "ipv6-only";
    let mut endpoints = Vec::new();
    for endpoint in observed.socket.listen.iter().filter_map(|at| at.parse::<SocketAddr>().ok()) {
        if endpoint.is_ipv6() && endpoint.ip().is_unspecified() && dual {
            endpoints.push(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), endpoint.port()));
        }
        endpoints.push(endpoint);
    }
    endpoints.sort();
    endpoints.dedup();
    endpoints
}

fn wanted(
    asked: &Asked,
    observed: &Observed,
    now: &[SocketAddr],
) -> Result<Vec<SocketAddr>, Refusal> {
    if asked.ports.is_none() && asked.listen.is_none() {
        return Ok(now.to_vec());
    }
    let listen = match &asked.listen {
        Some(listen) => listen.clone(),
        None => addresses(now),
    };
    if let Some(v6) = listen.iter().find(|address| address.is_ipv6() && !observed.ipv6) {
        return Err(Refusal::new(
            "no-ipv6",
            format!("the spec listens on {v6}, but this kernel has no IPv6"),
            "remove the address from `ssh.listen`, or enable IPv6 (kernel parameter ipv6.disable)",
        ));
    }
    let ports = asked.ports.clone().unwrap_or_else(|| ports(now));
    let all = ports.iter().flat_map(|port| listen.iter().map(|ip| SocketAddr::new(*ip, *port)));
    Ok(all.collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
    /// An existing `AddressFamily` excludes an address of the spec and has to be overruled.
    MustBeAny,
}

impl Family {
    fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Any | Self::MustBeAny => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// The address family that sshd will have: the spec's, else what stands on its command line or in
/// others' files.
fn family(spec: &Spec, asked: &Asked, observed: &Observed, globally: &Effect) -> Family {
    let of = |value: &str| match value.to_ascii_lowercase().as_str() {
        "inet" => Family::V4,
        "inet6" => Family::V6,
        _ => Family::Any,
    };
    let setting =
        spec.ssh.settings.iter().find(|s| s.keyword.eq_ignore_ascii_case("AddressFamily"));
    if let Some(value) = setting.and_then(|setting| setting.lines.first()) {
        return of(value);
    }
    let options = options::parse(&observed.command_line.all());
    let option = options.iter().filter(|_| spec.ssh.listen.is_none()).find_map(|option| {
        let (keyword, value) = option.sets.as_ref()?;
        keyword.eq_ignore_ascii_case("AddressFamily").then(|| of(value))
    });
    let file = || globally.first_args("AddressFamily").first().map(|value| of(value));
    let base = option.or_else(file).unwrap_or(Family::Any);
    let excluded =
        asked.listen.as_ref().is_some_and(|listen| listen.iter().any(|ip| !base.allows(*ip)));
    if excluded { Family::MustBeAny } else { base }
}

/// Whether two sockets cannot exist at the same time: all addresses of a family take the single ones in (ip(7),
/// bind(2)).
pub(crate) fn collide(one: &SocketAddr, other: &SocketAddr) -> bool {
    let all = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port()
        && one.is_ipv4() == other.is_ipv4()
        && (all || one.ip() == other.ip())
}

fn check(endpoints: &[SocketAddr]) -> Result<(), Refusal> {
    if endpoints.is_empty() {
        return Err(Refusal::new(
            "no-endpoint",
            "sshd would listen nowhere: no address is left",
            "give `ssh.listen` an address of the family that `AddressFamily` allows",
        ));
    }
    if endpoints.len() > MAX_SOCKETS {
        let count = endpoints.len();
        return Err(Refusal::new(
            "too-many-endpoints",
            format!("{count} addresses and ports, but sshd serves at most {MAX_SOCKETS}"),
            "shorten `ssh.port` or `ssh.listen`",
        ));
    }
    for all in endpoints.iter().filter(|at| at.ip().is_unspecified()) {
        if let Some(one) = endpoints.iter().find(|one| *one != all && collide(all, one)) {
            return Err(Refusal::new(
                "overlap",
                format!("{all} takes {one} in, and only one of the two can be had"),
                format!(
                    "leave {} or {} out (`ssh.listen`, or ListenAddress in sshd_config)",
                    all.ip(),
                    one.ip()
                ),
            ));
        }
    }
    Ok(())
}

/// `ListenAddress` lines are written where the spec gives addresses, or where an existing line
/// carries a port of its own and would ignore `Port`.
fn addresses_to_write(
    asked: &Asked,
    globally: &Effect,
    managed: bool,
    endpoints: &[SocketAddr],
) -> Vec<IpAddr> {
    if let Some(listen) = &asked.listen {
        return listen.clone();
    }
    let own_port = |text: &str| {
        text.parse::<SocketAddr>().is_ok()
            || (text.parse::<Ipv6Addr>().is_err() && text.contains(':'))
    };
    let bound = globally.first_args("ListenAddress").into_iter().any(own_port);
    if managed && bound { addresses(endpoints) } else { Vec::new() }
}
