//! What systemd does to the sshd of a unit (systemd.exec(5)), and to none of harden's own.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sshd::ConfigFile;
use crate::sys::units::Unit;
use crate::sys::{self, Files, process};

/// Directives that decide who gets in, or what somebody who is in may do; and by what it shows that a process has it.
const DECIDE: [(&str, Shows); 23] = [
    ("BindPaths", Shows::In("mnt")),
    ("BindReadOnlyPaths", Shows::In("mnt")),
    ("CapabilityBoundingSet", Shows::Capabilities),
    ("DynamicUser", Shows::As("Uid")),
    ("IPAddressDeny", Shows::ByItself),
    ("InaccessibleDirectories", Shows::In("mnt")),
    ("InaccessiblePaths", Shows::In("mnt")),
    ("NetworkNamespacePath", Shows::In("net")),
    ("NoExecPaths", Shows::In("mnt")),
    ("NoNewPrivileges", Shows::As("NoNewPrivs")),
    ("PrivateNetwork", Shows::In("net")),
    ("PrivateUsers", Shows::In("user")),
    ("ProtectHome", Shows::In("mnt")),
    ("ProtectSystem", Shows::In("mnt")),
    ("ReadOnlyDirectories", Shows::In("mnt")),
    ("ReadOnlyPaths", Shows::In("mnt")),
    ("RestrictSUIDSGID", Shows::As("Seccomp")),
    ("RootDirectory", Shows::In("mnt")),
    ("RootImage", Shows::In("mnt")),
    ("SocketBindDeny", Shows::ByItself),
    ("SystemCallFilter", Shows::As("Seccomp")),
    ("TemporaryFileSystem", Shows::In("mnt")),
    ("User", Shows::As("Uid")),
];

/// By what proc(5) shows that a process has a directive.
#[derive(Debug, Clone, Copy)]
enum Shows {
    /// A namespace of its own.
    In(&'static str),
    /// A field of its status that is not zero.
    As(&'static str),
    /// Capabilities that it can never have; everybody lacks some in most containers.
    Capabilities,
    /// Not at all; and it is for listeners that the process has opened itself.
    ByItself,
}

impl Shows {
    /// Whether the process has something that the directive would give it.
    fn in_process(self, pid: u32, by_itself: bool) -> bool {
        match self {
            Self::In(namespace) => process::has_own_namespace(pid, namespace),
            Self::As(field) => {
                process::status(pid, field).is_none_or(|value| !value.starts_with('0'))
            }
            Self::Capabilities => process::lacks_capabilities(pid),
            Self::ByItself => by_itself,
        }
    }
}

/// A directive with which no sshd of a unit has run yet, as far as can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untried {
    /// The unit.
    pub unit: String,
    /// `ProtectHome=yes`.
    pub directive: String,
    /// The file in which it stands.
    pub path: PathBuf,
    /// It is about listeners that the unit's sshd opens itself.
    #[serde(default)]
    pub of_listeners: bool,
}

/// Such directives of a unit.
///
/// `texts`: the unit's files, among others. `by_itself`: whether its sshd has its listeners from nobody.
pub(super) fn untried(
    files: &Files,
    unit: &Unit,
    texts: &BTreeMap<PathBuf, ConfigFile>,
    by_itself: bool,
) -> Vec<Untried> {
    let mut said: BTreeMap<&str, (String, PathBuf, Shows)> = BTreeMap::new();
    let mut newest = 0;
    for file in
        [&unit.fragment].into_iter().chain(&unit.drop_ins).filter_map(|path| texts.get(path))
    {
        let changed =
            files.metadata(&file.real).map(|meta| sys::usec(meta.ctime(), meta.ctime_nsec()));
        // A time in the future says nothing: the clock was set back.
        let changed = changed.filter(|time| *time <= sys::now_usec());
        newest = newest.max(changed.unwrap_or_default());
        for line in file.text.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let known = DECIDE.into_iter().find(|(known, _)| *known == key.trim());
            let Some((key, shows)) = known else { continue };
            let value = value.trim();
            // An empty list of capabilities is none of them.
            let none = value.is_empty() && key != "CapabilityBoundingSet";
            if none || is_off(value) || matches!(value, "read-only" | "root") {
                said.remove(key);
            } else {
                said.insert(key, (format!("{key}={value}"), file.path.clone(), shows));
            }
        }
    }
    // systemd reads a file when it is asked to: a start since then does not mean that it was one with it.
    let runs_since = unit.is_active() && unit.main_pid > 1 && unit.started > newest;
    let missing = said
        .into_iter()
        .filter(|(_, (.., shows))| !(runs_since && shows.in_process(unit.main_pid, by_itself)));
    let untried = |(_, (directive, path, shows)): (_, (String, PathBuf, Shows))| Untried {
        unit: unit.name.clone(),
        directive,
        path,
        of_listeners: matches!(shows, Shows::ByItself),
    };
    missing.map(untried).collect()
}

/// systemd's words for no (systemd.syntax(7)).
fn is_off(value: &str) -> bool {
    let words = ["no", "n", "false", "f", "off", "0"];
    words.iter().any(|word| value.eq_ignore_ascii_case(word))
}
