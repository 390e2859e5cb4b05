//! The second stage: what the host is like now, and what differs between two looks at it.
//! Reads, and changes nothing.

mod ask;
mod listeners;
mod obstacles;
mod read;
mod stale;
mod untried;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use ask::NO_FOLDER;
pub use ask::{Ahead, ask_sshd, sshd_program};
pub use read::{
    check_clients, check_host, config_tree, connect, no_bus, observe, sessions_drop_in,
};

pub use stale::last_change;
pub use untried::Untried;

use crate::sshd::algorithms::Algorithms;
use crate::sshd::release::Release;
use crate::sshd::{ConfigFile, ConfigTree, Effective, options};
use crate::sys::process::Process;
use crate::sys::units::{Unit, directives};

/// The main configuration file that Debian's and most other sshd builds read.
pub const MAIN_CONFIG: &str = "/etc/ssh/sshd_config";
/// The folder in which sshd confines what speaks to a client before the login (sshd(8), FILES). ssh.service
/// takes it away when it stops or does not start, and so does each connection of ssh.socket that ends (Debian
/// 11); an sshd that serves meanwhile needs it for every connection.
pub const PRIVSEP: &str = "/run/sshd";
/// Debian's and Ubuntu's units do not start sshd while this file exists.
pub const NOT_TO_BE_RUN: &str = "/etc/ssh/sshd_not_to_be_run";
/// Where administrators' unit files, drop-ins and enablement links are.
pub const UNIT_FOLDER: &str = "/etc/systemd/system";

/// Everything about a host that a plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Observed {
    /// Host name.
    pub host: String,
    /// Distribution, as it calls itself.
    pub os: String,
    /// Whether the kernel has IPv6.
    pub ipv6: bool,
    /// The release of sshd.
    pub release: Release,
    /// What OpenSSH can do here; empty where the spec does not need to know.
    pub algorithms: Algorithms,
    /// sshd's configuration files.
    pub config: ConfigTree,
    /// What sshd makes of them.
    pub effective: Verdict,
    /// ssh.service's sshd started before a file that it reads last changed.
    pub stale: bool,
    /// When the sshd of the service that runs has read its files, in microseconds since the epoch; 0 where none runs.
    #[serde(default)]
    pub read: u64,
    /// `/etc/ssh/sshd_not_to_be_run` exists.
    pub not_to_be_run: bool,
    /// sshd's command line, as ssh.service starts it.
    pub command_line: CommandLine,
    /// ssh.service, or sshd.service where that is its name.
    pub service: Unit,
    /// The socket unit of the same name; absent on some distributions.
    pub socket: Unit,
    /// Other units that run and that stop when one of the two does.
    pub dependents: Vec<String>,
    /// Sessions that ssh.socket has started one by one, and that take sshd's folder away when they end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lingering: Vec<String>,
    /// Whether sshd's folder was there before sshd was asked, who has it made.
    #[serde(default)]
    pub had_run_folder: bool,
    /// What the two units need to start (`Requires=` and its like, the service of a socket), and what is masked
    /// or missing: the unit, and what it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_needs: Vec<(String, String)>,
    /// Units that start just now, and after which alone systemd would start one of the two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaited: Vec<String>,
    /// What the units would do to an sshd that they start, and no sshd has run with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub untried: Vec<Untried>,
    /// Of a socket with `Accept=yes`: the command line of the sshd that each connection starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_connection: Option<CommandLine>,
    /// The texts of that template's files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub template_files: BTreeMap<PathBuf, String>,
    /// The program of sshd that the service runs or would run, where it is not the one that harden asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_program: Option<PathBuf>,
    /// Files of other units in which it stands that they pull the socket in.
    pub pulled_in_by: Vec<PathBuf>,
    /// Text of the two units' own files and drop-ins.
    pub unit_files: BTreeMap<PathBuf, ConfigFile>,
    /// Enablement links and aliases of the two units: those that are there, with their targets,
    /// and those that enabling would make.
    pub links: BTreeMap<PathBuf, Option<PathBuf>>,
    /// Listening TCP sockets.
    pub listeners: Vec<Listener>,
    /// Addresses of the host's interfaces.
    pub addresses: Vec<IpAddr>,
    /// Folders that a plan may need and that are not there.
    pub missing_folders: Vec<PathBuf>,
    /// Files of sshd's that the running sshd sees otherwise.
    pub seen_otherwise: Vec<PathBuf>,
    /// What could not be seen, and why.
    pub unseen: Vec<String>,
}

/// What `sshd -T` says of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is valid, and these values are in effect.
    Valid(Effective),
    /// sshd refuses it, in these words.
    Invalid(String),
    /// sshd could not be asked, for this reason.
    Unseen(String),
}

impl Verdict {
    /// The values in effect, where it is valid.
    pub fn valid(&self) -> Option<&Effective> {
        match self {
            Self::Valid(effective) => Some(effective),
            Self::Invalid(_) | Self::Unseen(_) => None,
        }
    }
}

impl Default for Verdict {
    fn default() -> Self {
        Self::Valid(Effective::default())
    }
}

/// sshd's command line: what stands there wins over every file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandLine {
    /// Words that stand in the unit itself.
    pub fixed: Vec<String>,
    /// Words that come from the environment file.
    pub words: Vec<String>,
    /// The variable that holds them (`SSHD_OPTS`, `OPTIONS`).
    pub variable: String,
    /// The environment file, where there is one.
    pub file: Option<ConfigFile>,
    /// The words that the running sshd was really started with; empty where none runs.
    pub running: Vec<String>,
}

impl CommandLine {
    /// All words, in order of appearance.
    pub fn all(&self) -> Vec<String> {
        self.fixed.iter().chain(&self.words).cloned().collect()
    }

    /// Another configuration file that sshd is told to read, and the words that say so.
    pub fn other_file(&self) -> Option<String> {
        let options = options::parse(&self.all()).into_iter();
        let mut options = options.chain(options::parse(&self.running));
        let is_other =
            |option: &options::Opt| option.file().is_some_and(|file| file != MAIN_CONFIG);
        options.find(is_other).map(|option| option.words.join(" "))
    }

    /// The options that set a keyword, in the form that `sshd -T` takes too.
    pub fn settings(&self) -> Vec<String> {
        options::parse(&self.all())
            .into_iter()
            .filter(|option| option.sets.is_some())
            .flat_map(|option| option.words)
            .collect()
    }

    /// Whether the sshd that runs has these settings.
    fn is_running(&self) -> bool {
        // How the words are quoted, and in which order they stand, a process does not show.
        let sets = |words: &[String]| {
            let mut sets: Vec<_> =
                options::parse(words).into_iter().filter_map(|o| o.sets).collect();
            sets.sort();
            sets
        };
        self.running.is_empty() || sets(&self.running) == sets(&self.all())
    }
}

/// What a socket with `Accept=yes` starts for each connection (systemd.socket(5)).
fn template(socket: &str) -> String {
    socket.replace(".socket", "@.service")
}

/// A listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Local address; unspecified for all.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// An IPv6 socket that serves IPv6 alone (`IPV6_V6ONLY`); true for IPv4.
    pub v6only: bool,
    /// Who holds it.
    pub owner: Owner,
    /// Whether sshd answers here.
    pub ssh: bool,
}

/// Who holds a listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// A unit: a socket that systemd holds, or a service's main process.
    Unit(String),
    /// A process that is no unit's main process, an orphaned sshd for one.
    Process(Process),
    /// Nobody that this user may see.
    Unseen,
}

/// Whether a listener on any of these endpoints takes connections to an address.
pub fn serves(endpoints: &[SocketAddr], address: IpAddr) -> bool {
    endpoints
        .iter()
        .map(SocketAddr::ip)
        .any(|ip| ip == address || (ip.is_unspecified() && ip.is_ipv4() == address.is_ipv4()))
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unit(name) => f.write_str(name),
            Self::Process(process) => write!(f, "{} (pid {})", process.name, process.pid),
            Self::Unseen => f.write_str("unknown"),
        }
    }
}

impl Listener {
    /// The endpoints it serves: a dual-stack socket serves IPv4 too.
    pub fn serves(&self) -> Vec<SocketAddr> {
        let own = SocketAddr::new(self.address, self.port);
        let dual = self.address.is_ipv6() && self.address.is_unspecified() && !self.v6only;
        let v4 = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), self.port);
        if dual { vec![v4, own] } else { vec![own] }
    }
}

impl Observed {
    /// The unit of sshd's that starts, stops or reloads just now: what runs then is not known yet. Or one that systemd
    /// would start it after. And what it does.
    pub fn on_its_way(&self) -> Option<(&str, String)> {
        let units = [&self.service, &self.socket];
        let own = units.into_iter().find(|unit| unit.is_on_its_way());
        let own = own.map(|unit| (unit.name.as_str(), format!("{}, {}", unit.doing(), unit.sub)));
        let name = &self.service.name;
        let first = self.awaited.first();
        own.or_else(|| {
            first.map(|unit| (unit.as_str(), format!("starting, and {name} would start after it")))
        })
    }

    /// Whether the sshd that runs has not read what stands on disk, as far as can be told: who gets in with that
    /// is not known by whom it lets in.
    pub fn is_unread(&self) -> bool {
        self.service.is_active() && (self.stale || !self.command_line.is_running())
    }

    /// A unit that runs or would, whose files systemd has not read since they changed. One that it cannot read stays
    /// unread.
    pub fn unread_unit(&self) -> Option<&str> {
        let counts =
            |unit: &Unit| unit.name == self.service.name || unit.is_active() || unit.is_enabled();
        let is_unread = |unit: &&Unit| unit.needs_reload && !unit.is_broken() && counts(unit);
        [&self.service, &self.socket].into_iter().find(is_unread).map(|unit| unit.name.as_str())
    }

    /// What a unit would do to its sshd by now, and did not before, or not in these words.
    pub fn untried_since(&self, before: &Self, unit: &str) -> Option<&Untried> {
        let text = |host: &Self, path: &Path| {
            let files = host.unit_files.get(path).map(|file| file.text.clone());
            files.or_else(|| host.template_files.get(path).cloned())
        };
        let is_new = |untried: &&Untried| {
            untried.unit == unit && text(before, &untried.path) != text(self, &untried.path)
        };
        self.untried.iter().find(is_new)
    }

    /// The unit whose sshd serves the connections of the socket.
    pub fn behind_socket(&self) -> String {
        if self.socket.accept { template(&self.socket.name) } else { self.service.name.clone() }
    }

    /// Where the two units themselves listen now.
    pub fn held(&self) -> Vec<SocketAddr> {
        let units = [&self.service.name, &self.socket.name];
        let mut held: Vec<SocketAddr> = self
            .listeners
            .iter()
            .filter(|listener| match &listener.owner {
                Owner::Unit(name) => units.contains(&name),
                _ => false,
            })
            .flat_map(Listener::serves)
            .collect();
        held.sort();
        held.dedup();
        held
    }

    /// Whether this host has an address just now, as far as is known.
    pub fn has(&self, address: IpAddr) -> bool {
        let always = address.is_unspecified() || address.is_loopback();
        always || self.addresses.is_empty() || self.addresses.contains(&address)
    }

    /// What differs between two observations, one sentence each. Process ids and start times do
    /// not count, nor do other programs' listeners: a restart that changes nothing else is no
    /// difference.
    ///
    /// With `orphans_gone`, listeners of orphaned processes in `self` need not be there again.
    pub fn differences(&self, now: &Self, orphans_gone: bool) -> Vec<String> {
        let mut moved = self.differences_beside(now, orphans_gone, &BTreeSet::new());
        // Where no file says so that is looked at.
        if moved.is_empty() {
            moved.extend(self.options_since(now));
        }
        moved
    }

    /// The same, without the files at some paths: edits that are known of.
    pub fn differences_beside(
        &self,
        now: &Self,
        orphans_gone: bool,
        known: &BTreeSet<PathBuf>,
    ) -> Vec<String> {
        let mut moved = Vec::new();
        let texts = |of: &Self, other: &Self| {
            let mut texts = of.texts_beside(other);
            texts.retain(|path, file| !known.contains(path) && !known.contains(&file.real));
            texts
        };
        moved.extend(compare(&texts(self, now), &texts(now, self), |path, was, is| {
            match (was, is) {
                (Some(_), None) => format!("{} is gone", path.display()),
                (None, Some(_)) => format!("{} is new", path.display()),
                _ => format!("{} changed", path.display()),
            }
        }));
        let links = |of: &Self| {
            // Which paths are looked at depends on folders that come and go.
            let mut links = of.links.clone();
            links.retain(|path, target| target.is_some() && !known.contains(path));
            links
        };
        moved.extend(compare(&links(self), &links(now), |path, _, _| {
            format!("the link {} changed", path.display())
        }));
        // Who changes a link enables or disables a unit with it.
        let told = |unit: &Unit| {
            known.iter().any(|path| {
                path.file_name().is_some_and(|name| *name == *unit.name)
                    && path.starts_with(UNIT_FOLDER)
            })
        };
        for (was, is) in [(&self.socket, &now.socket), (&self.service, &now.service)] {
            // In socket mode sshd comes and goes with the connections.
            let on_demand = self.socket.is_active() && now.socket.is_active();
            let comes_and_goes =
                matches!(is.active.as_str(), "active" | "inactive" | "activating" | "deactivating");
            // Nobody can make a unit fail that did not run: it is as good as never started.
            let rests = |unit: &Unit| matches!(unit.active.as_str(), "failed" | "inactive");
            let same_run = was.active == is.active
                || (rests(was) && rests(is))
                || (on_demand && was.name == self.service.name && comes_and_goes);
            let same_file = (was.exists(), was.is_masked(), &was.file)
                == (is.exists(), is.is_masked(), &is.file)
                || told(was);
            if !same_file || !same_run {
                moved.push(format!("{} was {}, is {}", was.name, was.summary(), is.summary()));
            }
        }
        moved.extend(compare(
            &self.sockets(orphans_gone),
            &now.sockets(orphans_gone),
            |at, was, is| {
                let who = |owner: Option<&String>| owner.map_or("nobody".to_owned(), Clone::clone);
                format!("{at} was held by {}, is held by {}", who(was), who(is))
            },
        ));
        moved
    }

    /// Whether systemd makes a folder for sshd when ssh.service starts, and takes it away with it
    /// (`RuntimeDirectory=`): without it sshd turns everybody away.
    pub fn has_run_folder(&self) -> bool {
        let files = std::iter::once(&self.service.fragment).chain(&self.service.drop_ins);
        let texts = files.filter_map(|path| self.unit_files.get(path));
        texts
            .flat_map(|file| directives(&file.text))
            .any(|(key, value)| key == "RuntimeDirectory" && value == "sshd")
    }

    /// Whether the sshd that runs turned everybody away, for want of it, until it was asked.
    pub fn run_folder_gone(&self) -> bool {
        !self.had_run_folder && self.service.is_active() && self.has_run_folder()
    }

    /// The units that have to be stopped before anything else may listen, the socket first: those
    /// that run, and ssh.service where the next connection may start it at any moment.
    pub fn to_release(&self) -> Vec<&Unit> {
        let on_demand = self.socket.is_active() && !self.socket.accept;
        let mut units: Vec<&Unit> =
            Some(&self.socket).filter(|unit| unit.is_active()).into_iter().collect();
        if self.service.exists() && (self.service.is_active() || on_demand) {
            units.push(&self.service);
        }
        units
    }

    /// Files of sshd and of the two units, and links of these, that are not as they were.
    pub fn edited(&self, now: &Self) -> BTreeSet<PathBuf> {
        let (was, is) = (self.texts_beside(now), now.texts_beside(self));
        let paths = was.keys().chain(is.keys());
        let mut edited: BTreeSet<PathBuf> =
            paths.filter(|path| was.get(*path) != is.get(*path)).cloned().collect();
        let links = self.links.keys().chain(now.links.keys());
        let target = |of: &Self, path: &PathBuf| of.links.get(path).cloned().flatten();
        edited.extend(links.filter(|path| target(self, path) != target(now, path)).cloned());
        edited
    }

    /// How the options of sshd's command line differ, from wherever they come.
    pub fn options_since(&self, now: &Self) -> Option<String> {
        let (was, is) = (self.command_line.settings(), now.command_line.settings());
        let told = |options: Vec<String>| match options.as_slice() {
            [] => "none".to_owned(),
            options => format!("`{}`", options.join(" ")),
        };
        (was != is).then(|| {
            format!("the options of sshd's command line were {}, are {}", told(was), told(is))
        })
    }

    /// The files that count in a comparison with another host. Where a unit is masked, gone or unreadable there
    /// alone, systemd does not name its files: nobody has changed them.
    fn texts_beside(&self, other: &Self) -> BTreeMap<PathBuf, ConfigFile> {
        let units = [(&self.service, &other.service), (&self.socket, &other.socket)];
        let named_there =
            units.iter().all(|(own, theirs)| theirs.load == own.load || theirs.load == "loaded");
        let named = |host: &Self| {
            let files = host.unit_files.values().chain(&host.command_line.file);
            files.map(|file| (file.path.clone(), file.clone())).collect::<BTreeMap<_, _>>()
        };
        let theirs = named(other);
        let units =
            named(self).into_iter().filter(|(path, _)| named_there || theirs.contains_key(path));
        let sshd = self.config.files.iter().map(|file| (file.path.clone(), file.clone()));
        sshd.chain(units).collect()
    }

    /// Who holds each SSH endpoint, without process ids.
    fn sockets(&self, without_orphans: bool) -> BTreeMap<SocketAddr, String> {
        let orphan =
            |listener: &&Listener| matches!(listener.owner, Owner::Process(_)) && without_orphans;
        let mut holders: BTreeMap<SocketAddr, String> = BTreeMap::new();
        for listener in self.listeners.iter().filter(|listener| listener.ssh && !orphan(listener)) {
            let holder = match &listener.owner {
                Owner::Process(process) => process.name.clone(),
                other => other.to_string(),
            };
            for at in listener.serves() {
                let all = holders.entry(at).or_default();
                *all = if all.is_empty() { holder.clone() } else { format!("{all}, {holder}") };
            }
        }
        holders
    }
}

/// One sentence for each key whose value differs between two maps.
fn compare<K: Ord + Clone, V: PartialEq>(
    was: &BTreeMap<K, V>,
    is: &BTreeMap<K, V>,
    say: impl Fn(&K, Option<&V>, Option<&V>) -> String,
) -> Vec<String> {
    let keys: BTreeSet<&K> = was.keys().chain(is.keys()).collect();
    keys.into_iter()
        .filter(|key| was.get(key) != is.get(key))
        .map(|key| say(key, was.get(key), is.get(key)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ssh.socket starts sshd for a connection at any moment: that is no difference. Without it, it is one.
    #[test]
    fn sshd_comes_and_goes_in_socket_mode() {
        let unit = |name: &str, active: &str| Unit {
            name: name.to_owned(),
            active: active.to_owned(),
            ..Unit::default()
        };
        let host = |socket: &str, service: &str| Observed {
            socket: unit("ssh.socket", socket),
            service: unit("ssh.service", service),
            ..Observed::default()
        };
        for now in ["active", "activating", "deactivating", "inactive"] {
            let was = host("active", "inactive");
            assert_eq!(was.differences(&host("active", now), false), Vec::<String>::new(), "{now}");
        }
        assert_eq!(
            host("active", "inactive").differences(&host("active", "failed"), false).len(),
            0
        );
        assert_eq!(
            host("inactive", "active").differences(&host("inactive", "activating"), false).len(),
            1
        );
    }
}
