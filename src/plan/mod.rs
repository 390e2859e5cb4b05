//! The third stage: Spec x Observed -> Plan. Pure: nothing here reads or changes the host.

mod describe;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::concern;
use crate::error::Refusal;
use crate::observe::Observed;
use crate::spec::{Setting, Spec};
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
    /// What the executor does, in order; empty when converged.
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
    pub settings: Vec<(String, Vec<String>)>,
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
    let listening = concern::listening::desired(spec, observed)?;
    let config = concern::sshd_config::rewrite(spec, observed, &listening)?;
    let options = concern::command_line::rewrite(spec, observed, &listening)?;

    let mut warnings = unseen(observed);
    warnings.extend(config.part.warnings);
    let mut files = config.part.files;
    files.extend(options.part.files);

    let units = concern::units::transition(observed, &listening, &files)?;
    let changes = describe::changes(observed, &listening, &files, &units);
    Ok(Plan {
        changes,
        warnings,
        steps: steps(observed, &files, &units),
        expect: Expectation {
            endpoints: listening.endpoints.clone(),
            owner: listening.owner.clone(),
            units: units.expect,
            settings: spec.ssh.settings.iter().map(in_effect).collect(),
            keywords: listening
                .keywords()
                .into_iter()
                .chain(spec.ssh.settings.iter().map(|setting| setting.keyword.clone()))
                .collect(),
        },
        candidate: config.candidate,
        options: options.words,
    })
}

fn in_effect(setting: &Setting) -> (String, Vec<String>) {
    (setting.keyword.clone(), setting.lines.clone())
}

fn unseen(observed: &Observed) -> Vec<String> {
    observed.unseen.iter().map(|what| format!("could not see {what}")).collect()
}

/// sshd's files first: they do nothing until sshd starts again. Then the units.
fn steps(
    observed: &Observed,
    files: &[FileChange],
    units: &concern::units::Transition,
) -> Vec<Step> {
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
    steps.extend(units.steps.iter().cloned());
    steps
}
