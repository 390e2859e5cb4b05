//! What plans are made of: steps, and what must hold after them. Concerns emit them, the planner puts them in
//! order, the transaction executes them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::observe::Observed;
use crate::spec::Values;
use crate::sys::Image;
use crate::sys::files::Meta;
use crate::sys::process::Process;

/// One step of the executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is done.
    pub op: Op,
    /// Why, in one sentence.
    pub why: String,
}

/// The kinds of step: each is the smallest thing that can be undone by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Make a path equal to an image.
    Put {
        /// The path.
        path: PathBuf,
        /// What it becomes.
        image: Image,
    },
    /// Stop a unit.
    Stop(String),
    /// Start a unit.
    Start(String),
    /// Restart a unit.
    Restart(String),
    /// Enable a unit file.
    Enable(String),
    /// Disable a unit file.
    Disable(String),
    /// Unmask a unit file.
    Unmask(String),
    /// Make systemd read its unit files again.
    Reload,
    /// Clear a unit's failed state.
    ResetFailed(String),
    /// Wait until every expected endpoint is held by the expected unit and answers.
    AwaitListeners,
    /// End a process that systemd lost track of.
    End(Process),
    /// Start an sshd of harden's own, outside ssh.service, until it is silenced.
    Listen(Bridge),
    /// End that sshd; its sessions live on.
    Silence(Role),
}

/// An sshd that carries listeners from one owner to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// What it is for.
    pub role: Role,
    /// Where it listens.
    pub endpoints: Vec<SocketAddr>,
}

/// What a bridging sshd is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It shows that the new configuration lets its owner in.
    Trial,
    /// It keeps the old configuration reachable while the units change.
    Rescue,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Trial => "trial",
            Self::Rescue => "rescue",
        })
    }
}

impl Op {
    /// The unit whose running state the step changes.
    pub fn runs_unit(&self) -> Option<&str> {
        match self {
            Self::Stop(unit) | Self::Start(unit) | Self::Restart(unit) => Some(unit),
            _ => None,
        }
    }

    /// Paths that a step may change, folders first.
    pub(crate) fn paths(&self, observed: &Observed) -> Vec<PathBuf> {
        match self {
            Self::Put { path, .. } => vec![path.clone()],
            Self::Enable(_) | Self::Disable(_) | Self::Unmask(_) => {
                // Disabling removes a folder of links that becomes empty, enabling makes it.
                let folders: BTreeSet<PathBuf> = observed
                    .links
                    .keys()
                    .filter_map(|link| Some(link.parent()?.to_owned()))
                    .collect();
                folders.into_iter().chain(observed.links.keys().cloned()).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What must hold when the transaction is over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation {
    /// Every endpoint on which sshd must answer, and no other.
    pub endpoints: Vec<SocketAddr>,
    /// The unit that must hold them.
    pub owner: String,
    /// Units, and whether they must be active and enabled.
    pub units: Vec<UnitExpectation>,
    /// Values that must be in effect.
    pub settings: Values,
    /// Keywords of these for which a Match block may ask for more.
    #[serde(default)]
    pub at_least: Vec<String>,
    /// Values that must be in effect for some: what stands behind `Match`, and the values.
    #[serde(default)]
    pub matches: Vec<(String, Values)>,
    /// Keywords that must not stand on sshd's command line, where they would win.
    #[serde(default)]
    pub keywords: Vec<String>,
}

/// What must hold of one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitExpectation {
    /// Its name.
    pub name: String,
    /// Whether it must run; `None` where either is right.
    pub active: Option<bool>,
    /// Whether it must start at boot.
    pub enabled: bool,
}

/// A file of the plan, before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// Path of the bytes (symbolic links followed).
    pub path: PathBuf,
    /// Text now; `None` where there is no file.
    pub before: Option<String>,
    /// Text afterwards; `None` removes the file.
    pub after: Option<String>,
    /// Owner, mode and extended attributes afterwards.
    pub meta: Meta,
    /// Which managed thing it belongs to.
    pub concern: &'static str,
    /// Why.
    pub reason: String,
}

impl FileChange {
    pub(crate) fn step(&self) -> Step {
        let image = match &self.after {
            None => Image::Absent,
            Some(text) => {
                Image::File { content: text.clone().into_bytes(), meta: self.meta.clone() }
            }
        };
        Step { op: Op::Put { path: self.path.clone(), image }, why: self.reason.clone() }
    }
}

/// Writes files, each after its folder where that is missing.
pub(crate) fn file_steps(observed: &Observed, files: &[FileChange]) -> Vec<Step> {
    let mut steps = Vec::new();
    for file in files {
        let folder = file.path.parent().filter(|_| file.before.is_none());
        if let Some(folder) =
            folder.filter(|folder| observed.missing_folders.contains(&(*folder).to_owned()))
        {
            steps.push(folder_step(folder));
        }
        steps.push(file.step());
    }
    steps
}

/// The step that makes a folder for a file that comes next.
fn folder_step(folder: &Path) -> Step {
    Step {
        op: Op::Put {
            path: folder.to_owned(),
            image: Image::Directory { meta: Meta::root(0o755) },
        },
        why: "The folder for the next file does not exist.".to_owned(),
    }
}
