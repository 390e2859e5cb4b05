//! The third stage: Spec x Observed -> Plan. Pure: nothing here reads or changes the host.

mod arrange;
mod describe;
mod undo;

pub(crate) use arrange::rescued;
pub(crate) use undo::sparing_sessions;
pub use undo::{Earlier, undo};

use serde::{Deserialize, Serialize};

use crate::concern;
use crate::error::Refusal;
use crate::observe::Observed;
use crate::spec::Spec;
use crate::sshd::ConfigTree;
use crate::step::{Expectation, Op, Step, file_steps};

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

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.trial.is_empty() && self.steps.is_empty()
    }
}

/// Plans the way from what is observed to what the spec asks for.
///
/// # Errors
/// A refusal where no way is safe: the reason, and what to do.
pub fn plan(spec: &Spec, observed: &Observed) -> Result<Plan, Refusal> {
    let asked = spec;
    let (mut spec, mut about_spec) = concern::profile::resolve(asked, observed)?;
    about_spec.extend(concern::sshd_config::switch_keyboard_off(&mut spec, &observed.release));
    concern::units::refuse_unread(observed)?;
    let bare = concern::sshd_config::without_harden(observed)?;
    let reading = concern::sshd_config::read(&bare, &observed.release)?;
    let globally = reading.globally()?;
    let listening = concern::listening::desired(&spec, observed, &globally)?;
    let uncounted = concern::listening::leave_uncounted(asked, &mut spec, &listening, observed)?;
    about_spec.extend(uncounted);
    let spec = &spec;
    let config = concern::sshd_config::rewrite(spec, observed, &reading, &globally, &listening)?;
    let options = concern::command_line::rewrite(spec, observed, &listening)?;

    let mut warnings = unseen(observed);
    warnings.extend(about_spec);
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
    warnings.extend(listening.gone_with_socket(observed));
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
