//! The third stage: Spec x Observed -> Plan. Pure: nothing here reads or changes the host.

mod arrange;
mod describe;
mod undo;

pub(crate) use arrange::held;
pub(crate) use undo::sparing_sessions;
pub use undo::{Earlier, undo};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::concern;
use crate::error::Refusal;
use crate::observe::Observed;
use crate::spec::{Spec, Values};
use crate::sshd::ConfigTree;
use crate::sys::Image;
use crate::sys::process::Process;

/// What has to happen, in order, and what must hold afterwards.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What a reader wants to know: files, units, listeners, before and after.
    pub changes: Vec<Change>,
    /// What the reader should know and harden does not change.
    pub warnings: Vec<String>,
    /// What brings up the new listener with nothing changed on disk: a reboot takes it back.
    pub trial: Vec<Step>,
    /// What makes it permanent, in order; with `trial` empty when converged.
    pub steps: Vec<Step>,
    /// What must hold afterwards.
    pub expect: Expectation,
    /// sshd's configuration files as they will be.
    pub candidate: ConfigTree,
    /// sshd's command line as it will be.
    pub options: Vec<String>,
}

/// One thing that will be different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Stable name within the plan (`file:/etc/ssh/sshd_config`).
    pub id: String,
    /// Which managed thing it belongs to: `sshd`, `units`, `listeners`.
    pub concern: String,
    /// `create`, `modify`, `remove`, `start`, `stop`, `restart`, `end`, ...
    pub action: String,
    /// File, unit, address or process.
    pub target: String,
    /// What is there now, in a few words; null where nothing is.
    pub before: Option<String>,
    /// What will be there; null where nothing will be.
    pub after: Option<String>,
    /// Unified diff, for files.
    pub diff: Option<String>,
    /// Why, in one sentence.
    pub reason: String,
}

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

/// Whether a listener on any of these endpoints takes connections to an address.
pub fn serves(endpoints: &[SocketAddr], address: IpAddr) -> bool {
    endpoints
        .iter()
        .map(SocketAddr::ip)
        .any(|ip| ip == address || (ip.is_unspecified() && ip.is_ipv4() == address.is_ipv4()))
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.trial.is_empty() && self.steps.is_empty()
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
    pub meta: crate::sys::files::Meta,
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

/// What one concern contributes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// Files that change.
    pub files: Vec<FileChange>,
    /// What the reader should know.
    pub warnings: Vec<String>,
}

/// Plans the way from what is observed to what the spec asks for.
///
/// # Errors
/// A refusal where no way is safe: the reason, and what to do.
pub fn plan(spec: &Spec, observed: &Observed) -> Result<Plan, Refusal> {
    let (spec, about_profile) = concern::profile::resolve(spec, observed)?;
    let spec = &spec;
    concern::units::refuse_unread(observed)?;
    let bare = concern::sshd_config::without_harden(observed)?;
    let reading = concern::sshd_config::read(&bare, &observed.release)?;
    let globally = reading.globally()?;
    let listening = concern::listening::desired(spec, observed, &globally)?;
    let config = concern::sshd_config::rewrite(spec, observed, &reading, &globally, &listening)?;
    let options = concern::command_line::rewrite(spec, observed, &listening)?;

    let mut warnings = unseen(observed);
    warnings.extend(about_profile);
    warnings.extend(listening.late(observed));
    warnings.extend(listening.lost_family(observed));
    warnings.extend(config.part.warnings);
    let mut files = config.part.files;
    files.extend(options.part.files);

    let units = concern::units::transition(observed, &listening, &files)?;
    let expect = Expectation {
        endpoints: listening.endpoints.clone(),
        owner: listening.owner.clone(),
        units: units.expect.clone(),
        settings: spec.ssh.values(),
        at_least: spec.ssh.of_profile(),
        matches: spec.ssh.blocks(),
        keywords: listening
            .keywords()
            .into_iter()
            .chain(spec.ssh.settings.iter().map(|setting| setting.keyword.clone()))
            .collect(),
    };
    let stops = units.release.iter().any(|step| matches!(step.op, Op::Stop(_)));
    warnings.extend(
        observed.dependents.iter().filter(|_| stops).map(|name| {
            format!("{name} stops when sshd's unit does; it is started again in the end")
        }),
    );
    let changes = describe::changes(observed, &expect, &files, &units);
    let (trial, steps) = arrange::arrange(observed, &expect, file_steps(observed, &files), &units);
    Ok(Plan {
        changes,
        warnings,
        trial,
        steps,
        expect,
        candidate: config.candidate,
        options: options.words,
    })
}

fn unseen(observed: &Observed) -> Vec<String> {
    observed.unseen.iter().map(|what| format!("could not see {what}")).collect()
}

/// Writes files, each after its folder where that is missing.
pub(crate) fn file_steps(observed: &Observed, files: &[FileChange]) -> Vec<Step> {
    let mut steps = Vec::new();
    for file in files {
        let folder = file.path.parent().filter(|_| file.before.is_none());
        if let Some(folder) =
            folder.filter(|folder| observed.missing_folders.contains(&(*folder).to_owned()))
        {
            steps.push(concern::folder_step(folder));
        }
        steps.push(file.step());
    }
    steps
}
