//! Units as systemd reports them, in harden's own words.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zbus::{ObjectPath, OwnedVariant, Variant};

use super::systemd::{Properties, Systemd};
use super::{Image, Result};

/// The state of one unit (org.freedesktop.systemd1(5), unit, service and socket properties).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unit {
    /// Name with suffix (`ssh.service`).
    pub name: String,
    /// `LoadState`: `loaded`, `not-found`, `masked`, `bad-setting`, ...
    pub load: String,
    /// `ActiveState`: `active`, `inactive`, `failed`, `activating`, `deactivating`, ...
    pub active: String,
    /// `SubState`: `running`, `listening`, `dead`, ...
    pub sub: String,
    /// What systemd is about to do with it (`start`, `stop`, `restart`, ...); empty where that is nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub job: String,
    /// `UnitFileState`: `enabled`, `disabled`, `masked`, `static`, ...; `enabled-alias` where it is said to be enabled,
    /// and nothing pulls it in: a link with another name counts there too (systemctl(1), `is-enabled`).
    pub file: String,
    /// Result of the last run (`success`, `exit-code`, `start-limit-hit`, ...).
    pub result: String,
    /// The unit file.
    pub fragment: PathBuf,
    /// Drop-ins, in the order in which they apply.
    pub drop_ins: Vec<PathBuf>,
    /// Units that starting this one pulls in or is bound to (`Requires=`, `BindsTo=`, `Requisite=`).
    pub requires: Vec<String>,
    /// Units that pull this one in (`WantedBy`, `RequiredBy`, `BoundBy`, `UpheldBy`).
    pub wanted_by: Vec<String>,
    /// Units that stop when this one does (`RequiredBy`, `BoundBy`, `ConsistsOf`, `RequisiteOf`,
    /// `PropagatesStopTo`).
    pub takes_along: Vec<String>,
    /// Units that stop when this one starts, and the other way round (`Conflicts=`).
    pub conflicts: Vec<String>,
    /// Units after which systemd starts it, where they start too (`After=`).
    #[serde(skip)]
    pub after: Vec<String>,
    /// Nobody may start or stop it by hand (`RefuseManualStart=`, `RefuseManualStop=`).
    pub refuses: bool,
    /// Nobody may start it by hand.
    pub refuses_start: bool,
    /// Units that this one starts (`Service=` of a socket).
    pub triggers: Vec<String>,
    /// Conditions and assertions that did not hold at the last start (`ConditionPathExists=!/x`).
    pub unmet: Vec<String>,
    /// `RestrictAddressFamilies=` of a service, where it leaves out families; `~` in front of those that it
    /// forbids.
    pub families: Vec<String>,
    /// systemd knows that a unit file changed on disk (generators' inputs excluded).
    pub needs_reload: bool,
    /// Main process of a service, 0 where there is none.
    pub main_pid: u32,
    /// When the main process started, in microseconds since the epoch.
    pub started: u64,
    /// When the last command of a service's last reload started (`ExecReload=`), in microseconds since the epoch; 0
    /// where there was none.
    #[serde(skip)]
    pub reloaded: u64,
    /// `ExecStart=` of a service, unexpanded, the program first.
    pub exec_start: Vec<String>,
    /// Whether a service has any `ExecStartPre=`.
    pub checks: bool,
    /// `EnvironmentFile=` of a service.
    pub environment_files: Vec<PathBuf>,
    /// `Environment=` of a service, as `NAME=value`.
    pub environment: Vec<String>,
    /// `ListenStream=` addresses of a socket: configuration, not reality.
    pub listen: Vec<String>,
    /// `Accept=` of a socket: true starts one instance for each connection.
    pub accept: bool,
    /// `BindIPv6Only=` of a socket: `default`, `both`, `ipv6-only`.
    pub bind_ipv6_only: String,
    /// `BindToDevice=` of a socket: the only interface on which it takes connections; empty for all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
}

impl Unit {
    /// Reads a unit; one that does not exist has `load` = `not-found`.
    pub fn read(systemd: &Systemd, name: &str) -> Result<Self> {
        let properties = systemd.properties(name)?;
        let job =
            properties.get("Job").and_then(|job| job.downcast_ref::<(u32, ObjectPath)>().ok());
        let job = job.filter(|(id, _)| *id != 0).map(|(_, path)| path.to_string());
        let job = job.map(|path| systemd.job_type(&path)).transpose()?.unwrap_or_default();
        Ok(Self { job, ..Self::from_properties(name, &properties) })
    }

    fn from_properties(name: &str, all: &Properties) -> Self {
        let named = |properties: &[&str]| -> Vec<String> {
            properties.iter().flat_map(|property| strings(all, property)).collect()
        };
        let wanted_by = named(&["WantedBy", "RequiredBy", "BoundBy", "UpheldBy"]);
        let file = match string(all, "UnitFileState") {
            file if file == "enabled" && wanted_by.is_empty() => "enabled-alias".to_owned(),
            file => file,
        };
        Self {
            name: name.to_owned(),
            load: string(all, "LoadState"),
            active: string(all, "ActiveState"),
            sub: string(all, "SubState"),
            job: String::new(),
            file,
            result: string(all, "Result"),
            fragment: string(all, "FragmentPath").into(),
            drop_ins: strings(all, "DropInPaths").into_iter().map(PathBuf::from).collect(),
            requires: named(&["Requires", "BindsTo", "Requisite"]),
            wanted_by,
            takes_along: named(&[
                "RequiredBy",
                "BoundBy",
                "ConsistsOf",
                "RequisiteOf",
                "PropagatesStopTo",
            ]),
            conflicts: named(&["Conflicts", "ConflictedBy"]),
            after: strings(all, "After"),
            refuses: boolean(all, "RefuseManualStart") || boolean(all, "RefuseManualStop"),
            refuses_start: boolean(all, "RefuseManualStart"),
            triggers: strings(all, "Triggers"),
            unmet: ["Condition", "Assert"].iter().flat_map(|kind| unmet(all, kind)).collect(),
            families: families(all).unwrap_or_default(),
            needs_reload: boolean(all, "NeedDaemonReload"),
            main_pid: all
                .get("MainPID")
                .and_then(|value| value.downcast_ref::<u32>().ok())
                .unwrap_or_default(),
            started: all
                .get("ExecMainStartTimestamp")
                .and_then(|value| value.downcast_ref::<u64>().ok())
                .unwrap_or_default(),
            reloaded: reloaded(all).unwrap_or_default(),
            exec_start: exec_start(all).unwrap_or_default(),
            checks: all.get("ExecStartPre").is_some_and(|value| !items(value).is_empty()),
            environment_files: first_of_each(all, "EnvironmentFiles")
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            environment: strings(all, "Environment"),
            listen: streams(all),
            accept: boolean(all, "Accept"),
            bind_ipv6_only: string(all, "BindIPv6Only"),
            device: string(all, "BindToDevice"),
        }
    }

    /// Whether there is such a unit at all.
    pub fn exists(&self) -> bool {
        !self.load.is_empty() && self.load != "not-found"
    }

    /// Whether it runs or listens now.
    pub fn is_active(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading" | "refreshing")
    }

    /// Whether it neither runs nor is about to.
    pub fn rests(&self) -> bool {
        matches!(self.active.as_str(), "inactive" | "failed") && self.job.is_empty()
    }

    /// Whether it runs, or is to run: what is starting, or waits to be started again, too.
    pub fn is_up(&self) -> bool {
        self.is_active() || self.active == "activating"
    }

    /// Whether it starts, stops or reloads just now, is about to, or waits to be started again.
    pub fn is_on_its_way(&self) -> bool {
        let moves = matches!(
            self.active.as_str(),
            "activating" | "deactivating" | "reloading" | "refreshing"
        );
        moves || !self.job.is_empty()
    }

    /// Its state, and what systemd is about to do with it.
    pub fn doing(&self) -> String {
        match self.job.as_str() {
            "" => self.active.clone(),
            job => format!("{} (systemd is about to {job} it)", self.active),
        }
    }

    /// Whether systemd has found files of it that it cannot read (`LoadState`).
    pub fn is_broken(&self) -> bool {
        matches!(self.load.as_str(), "bad-setting" | "error")
    }

    /// Whether it is masked, persistently or until the next boot.
    pub fn is_masked(&self) -> bool {
        self.load == "masked" || self.file.starts_with("masked")
    }

    /// Whether it starts at boot: not where it is enabled until then (`enabled-runtime`), or by an alias alone.
    pub fn is_enabled(&self) -> bool {
        self.file == "enabled"
    }

    /// The port of a socket that is bound for IPv4, and for IPv6 in a way that takes IPv4 too: so neither start
    /// comes to anything (systemd.socket(5), BindIPv6Only=).
    pub fn collision(&self) -> Option<&str> {
        let any = |start| self.listen.iter().filter_map(move |at| at.strip_prefix(start));
        let shared = any("0.0.0.0:").find(|port| any("[::]:").any(|other| other == *port));
        shared.filter(|_| self.bind_ipv6_only != "ipv6-only")
    }

    /// What a socket listens on besides addresses: sockets in the file system and of virtual machines.
    pub fn not_of_ip(&self) -> Vec<&str> {
        let is_one = |at: &&str| at.starts_with(['/', '@']) || at.starts_with("vsock:");
        self.listen.iter().map(String::as_str).filter(is_one).collect()
    }

    /// Whether it may use a family of addresses (`AF_INET`, `AF_INET6`).
    pub fn may_use(&self, family: &str) -> bool {
        let forbidden = |word: &String| word.strip_prefix('~') == Some(family);
        let allows = self.families.iter().any(|word| !word.starts_with('~'));
        !self.families.iter().any(forbidden)
            && (!allows || self.families.iter().any(|word| word == family))
    }

    /// "active, enabled": the two facts that a plan shows.
    pub fn summary(&self) -> String {
        if !self.exists() {
            return "absent".to_owned();
        }
        let file = if self.is_masked() { "masked" } else { self.file.as_str() };
        format!("{}, {}", self.active, file)
    }
}

/// Whether what is at the path of a unit or a link is what enabling, disabling and unmasking never make: a unit
/// file, a mask, or a link in place of the unit file (systemctl(1), `link`).
pub fn is_made_by_hand(path: &Path, image: &Image) -> bool {
    match image {
        Image::File { .. } => true,
        Image::Symlink { target } => {
            let of_wants = path.parent().and_then(Path::extension).is_some();
            image.is_mask() || (!of_wants && target.file_name() == path.file_name())
        }
        _ => false,
    }
}

fn string(all: &Properties, name: &str) -> String {
    all.get(name).and_then(|value| value.downcast_ref::<&str>().ok()).unwrap_or_default().to_owned()
}

fn boolean(all: &Properties, name: &str) -> bool {
    all.get(name).and_then(|value| value.downcast_ref::<bool>().ok()).unwrap_or_default()
}

fn items(value: &OwnedVariant) -> Vec<&Variant<'_>> {
    match &**value {
        Variant::Array(array) => array.iter().collect(),
        _ => Vec::new(),
    }
}

fn text(value: &Variant<'_>) -> Option<String> {
    value.downcast_ref::<&str>().ok().map(str::to_owned)
}

fn strings(all: &Properties, name: &str) -> Vec<String> {
    all.get(name).map(items).unwrap_or_default().into_iter().filter_map(text).collect()
}

/// The first field of each structure in an array: paths of `EnvironmentFiles`, `a(sb)`.
fn first_of_each(all: &Properties, name: &str) -> Vec<String> {
    let rows = all.get(name).map(items).unwrap_or_default();
    rows.into_iter()
        .filter_map(|row| match row {
            Variant::Structure(fields) => text(fields.fields().first()?),
            _ => None,
        })
        .collect()
}

/// Conditions that did not hold: `Conditions`, `a(sbbsi)`, with the kind, whether one of several is enough
/// (`|`), whether it is negated (`!`), the parameter, and what came of it (negative: it did not hold).
fn unmet(all: &Properties, kind: &str) -> Vec<String> {
    let rows = all.get(&format!("{kind}s")).map(items).unwrap_or_default();
    let one = |row: &Variant<'_>| {
        let Variant::Structure(fields) = row else { return None };
        let [kind, any, not, parameter, state] = fields.fields() else { return None };
        let sign = |value: &Variant<'_>, sign| match value.downcast_ref::<bool>() {
            Ok(true) => sign,
            _ => "",
        };
        let failed = state.downcast_ref::<i32>().is_ok_and(|state| state < 0);
        let (any, not) = (sign(any, "|"), sign(not, "!"));
        failed.then(|| Some(format!("{}={any}{not}{}", text(kind)?, text(parameter)?)))?
    };
    rows.into_iter().filter_map(one).collect()
}

/// `RestrictAddressFamilies`, `(bas)`: whether the list allows, and the list.
fn families(all: &Properties) -> Option<Vec<String>> {
    let Variant::Structure(fields) = &**all.get("RestrictAddressFamilies")? else { return None };
    let [allows, Variant::Array(list)] = fields.fields() else { return None };
    let sign = if allows.downcast_ref::<bool>() == Ok(true) { "" } else { "~" };
    Some(list.iter().filter_map(text).map(|family| format!("{sign}{family}")).collect())
}

/// Arguments of the first `ExecStart`, `a(sasbttttuii)`.
fn exec_start(all: &Properties) -> Option<Vec<String>> {
    let rows = items(all.get("ExecStart")?);
    let Variant::Structure(fields) = rows.into_iter().next()? else { return None };
    let Variant::Array(args) = fields.fields().get(1)? else { return None };
    Some(args.iter().filter_map(text).collect())
}

/// When the last `ExecReload` was started, `a(sasbttttuii)`.
fn reloaded(all: &Properties) -> Option<u64> {
    let rows = items(all.get("ExecReload")?);
    let Variant::Structure(fields) = rows.into_iter().last()? else { return None };
    fields.fields().get(3)?.downcast_ref::<u64>().ok()
}

/// Addresses of the stream sockets in `Listen`, `a(ss)`.
fn streams(all: &Properties) -> Vec<String> {
    let rows = all.get("Listen").map(items).unwrap_or_default();
    rows.into_iter()
        .filter_map(|row| match row {
            Variant::Structure(fields) => {
                let kind = text(fields.fields().first()?)?;
                (kind == "Stream").then(|| text(fields.fields().get(1)?))?
            }
            _ => None,
        })
        .collect()
}

/// The `Key=Value` pairs of a unit file, lists split at blanks (systemd.syntax(7)).
pub fn directives(text: &str) -> Vec<(&str, &str)> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';', '[']))
        .filter_map(|line| line.split_once('='))
        .flat_map(|(key, value)| value.split_whitespace().map(move |word| (key.trim(), word)))
        .collect()
}
