//! What systemd does to the sshd of a unit (systemd.exec(5)), and to none of harden's own.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sshd::ConfigFile;
use crate::sys::units::Unit;
use crate::sys::{self, Files};

/// Directives that decide who gets in, or what somebody who is in may do.
const DECIDE: [&str; 20] = [
    "BindPaths",
    "BindReadOnlyPaths",
    "CapabilityBoundingSet",
    "DynamicUser",
    "InaccessibleDirectories",
    "InaccessiblePaths",
    "IPAddressDeny",
    "NoExecPaths",
    "NoNewPrivileges",
    "PrivateNetwork",
    "PrivateUsers",
    "ProtectHome",
    "RestrictSUIDSGID",
    "RootDirectory",
    "RootImage",
    "SocketBindDeny",
    "SystemCallFilter",
    "TemporaryFileSystem",
    "User",
    "NetworkNamespacePath",
];

/// A directive with which no sshd of a unit has run yet, as far as can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untried {
    /// The unit.
    pub unit: String,
    /// `ProtectHome=yes`.
    pub directive: String,
    /// The file in which it stands.
    pub path: PathBuf,
}

/// The first such directive of a unit.
///
/// `texts`: the unit's files, among others. `tried`: whether people come in by it now, each by an sshd of their own.
pub(super) fn untried(
    files: &Files,
    unit: &Unit,
    texts: &BTreeMap<PathBuf, ConfigFile>,
    tried: bool,
) -> Option<Untried> {
    let mut said: BTreeMap<&str, (String, PathBuf)> = BTreeMap::new();
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
            let Some(key) = DECIDE.into_iter().find(|known| *known == key.trim()) else { continue };
            let value = value.trim();
            if matches!(value, "" | "no" | "false" | "off" | "0" | "read-only" | "root") {
                said.remove(key);
            } else {
                said.insert(key, (format!("{key}={value}"), file.path.clone()));
            }
        }
    }
    let has_run = tried || unit.started > newest;
    let (directive, path) = said.into_values().next().filter(|_| !has_run)?;
    Some(Untried { unit: unit.name.clone(), directive, path })
}
