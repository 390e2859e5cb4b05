//! A plan on disk: what was reviewed, and the state of the host that it was made for.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Refusal};
use crate::observe::Observed;
use crate::plan::{Change, Plan, plan};
use crate::spec::{self, Spec};

/// `plan --out FILE`. The steps are not stored: they are planned again from the same spec and the
/// same state, so a file that was tampered with cannot smuggle one in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedPlan {
    /// Format of this file.
    pub harden_plan: u32,
    /// Name of the spec.
    pub spec_name: String,
    /// Text of the spec.
    pub spec_text: String,
    /// The changes that were shown.
    pub changes: Vec<Change>,
    /// The host as it was.
    pub observed: Observed,
    /// Checksum of all the above: an edit shows, though not one by somebody who makes it anew.
    #[serde(default)]
    pub checksum: String,
}

impl SavedPlan {
    /// Saves a plan.
    pub fn new(spec: &Spec, observed: &Observed, plan: &Plan) -> Self {
        let mut saved = Self {
            harden_plan: 1,
            spec_name: spec.source.name.clone(),
            spec_text: spec.source.text.clone(),
            changes: plan.changes.clone(),
            observed: observed.clone(),
            checksum: String::new(),
        };
        saved.checksum = saved.sum();
        saved
    }

    fn sum(&self) -> String {
        let bare = Self { checksum: String::new(), ..self.clone() };
        let text = serde_json::to_string(&bare).unwrap_or_default();
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether a file that begins so was written by harden.
    pub fn is_one(start: &[u8]) -> bool {
        start.starts_with(b"{\"harden_plan\"")
    }

    /// Reads a saved plan; `None` where the bytes are something else (a spec).
    ///
    /// # Errors
    /// A plan of another format.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Option<Self>, Error> {
        #[derive(Deserialize)]
        struct Header {
            harden_plan: u32,
        }
        if !Self::is_one(bytes) {
            return Ok(None);
        }
        let header = serde_json::from_slice::<Header>(bytes).map_err(|error| {
            let hint = "make a new plan: harden plan SPEC --out FILE";
            Refusal::new("damaged-plan", format!("{name} is a damaged plan: {error}"), hint)
        })?;
        if header.harden_plan != 1 {
            return Err(other_version(name));
        }
        serde_json::from_slice(bytes).map(Some).map_err(|_| other_version(name))
    }

    /// The spec that the plan was made from.
    ///
    /// # Errors
    /// As [`spec::parse`].
    pub fn spec(&self) -> Result<Spec, Error> {
        Ok(spec::parse(&self.spec_name, self.spec_text.as_bytes())?)
    }

    /// Refuses a host that is no longer the one that was planned for.
    ///
    /// # Errors
    /// A refusal that names what moved.
    pub fn check_host(&self, now: &Observed) -> Result<(), Refusal> {
        if self.observed.host != now.host {
            return Err(Refusal::new(
                "another-host",
                format!("the plan was made on {}, and this is {}", self.observed.host, now.host),
                "make a plan here: harden plan SPEC --out FILE",
            ));
        }
        let moved = self.observed.differences(now, false);
        if moved.is_empty() {
            return Ok(());
        }
        Err(stale(&format!("\n- {}", moved.join("\n- "))))
    }

    /// Refuses a plan for the host as it is that is not the one that was reviewed: another sshd knows other algorithms,
    /// for one. What units do in between may differ: behind a socket, sshd comes and goes.
    ///
    /// # Errors
    /// A refusal that names what moved.
    pub fn check_changes(&self, now: &Plan) -> Result<(), Refusal> {
        let shown = |changes: &[Change]| {
            let counts = |change: &&Change| change.concern != "units";
            changes.iter().filter(counts).cloned().collect::<Vec<_>>()
        };
        let (then, now) = (shown(&self.changes), shown(&now.changes));
        let mut all = then.iter().chain(&now);
        match all.find(|change| !(then.contains(change) && now.contains(change))) {
            None => Ok(()),
            Some(moved) => {
                let target = &moved.target;
                Err(stale(&format!(" what it does with {target} would be something else now")))
            }
        }
    }

    /// Refuses a file that this harden would not have written for that spec and that host: another
    /// version made it, or somebody edited it.
    ///
    /// # Errors
    /// A refusal.
    pub fn check_origin(&self, name: &str, spec: &Spec) -> Result<(), Error> {
        if self.checksum != self.sum() {
            let hint = "make a new plan: harden plan SPEC --out FILE";
            let message = format!("{name} was changed after harden wrote it");
            return Err(Refusal::new("edited-plan", message, hint).into());
        }
        let again = plan(spec, &self.observed)?;
        if self.changes == again.changes { Ok(()) } else { Err(other_version(name)) }
    }
}

fn stale(how: &str) -> Refusal {
    Refusal::new(
        "stale-plan",
        format!("the host has changed since the plan was made:{how}"),
        "make a new plan and review it: harden plan SPEC --out FILE",
    )
}

fn other_version(name: &str) -> Error {
    Refusal::new(
        "foreign-plan",
        format!("{name} is not a plan that this version of harden makes"),
        "make a new plan: harden plan SPEC --out FILE",
    )
    .into()
}
