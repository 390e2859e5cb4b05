//! The JSON contract: one object on standard output.

use serde::Serialize;

use crate::error::ErrorReport;
use crate::plan::{Change, Plan};

/// Version of the contract.
const VERSION: u32 = 1;

/// `plan --output json`.
#[derive(Debug, Serialize)]
pub struct PlanReport<'a> {
    version: u32,
    changes: &'a [Change],
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorReport>,
}

impl<'a> PlanReport<'a> {
    /// Reports a plan.
    pub fn of(plan: &'a Plan) -> Self {
        Self { version: VERSION, changes: &plan.changes, warnings: &plan.warnings, error: None }
    }

    /// Reports that there is no plan.
    pub fn failed(error: ErrorReport) -> Self {
        Self { version: VERSION, changes: &[], warnings: &[], error: Some(error) }
    }
}

/// `apply --output json`.
#[derive(Debug, Serialize)]
pub struct ApplyReport {
    version: u32,
    outcome: &'static str,
    transaction: Option<String>,
    changed: bool,
    changes: Vec<Change>,
    warnings: Vec<String>,
    error: Option<ErrorReport>,
}

impl ApplyReport {
    /// Reports the end of an apply; `changed` says whether the host is different now.
    pub fn new(outcome: &'static str, transaction: Option<String>, plan: Option<&Plan>) -> Self {
        Self {
            version: VERSION,
            outcome,
            transaction,
            changed: matches!(outcome, "applied" | "needs-operator"),
            changes: plan.map(|plan| plan.changes.clone()).unwrap_or_default(),
            warnings: plan.map(|plan| plan.warnings.clone()).unwrap_or_default(),
            error: None,
        }
    }

    /// Adds what went wrong.
    #[must_use]
    pub fn with_error(mut self, error: ErrorReport) -> Self {
        self.error = Some(error);
        self
    }
}
