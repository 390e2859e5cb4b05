//! The JSON contract: one object on standard output.

use serde::Serialize;

use crate::doctor::Finding;
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

/// `verify --output json`.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    version: u32,
    holds: bool,
    faults: Vec<String>,
    changes: Vec<Change>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    error: Option<ErrorReport>,
}

impl VerifyReport {
    /// Reports what does not hold, what an apply would change, and what else to do.
    pub fn of(
        faults: Vec<String>,
        changes: Vec<Change>,
        warnings: Vec<String>,
        hint: Option<String>,
    ) -> Self {
        let holds = faults.is_empty() && changes.is_empty();
        Self { version: VERSION, holds, faults, changes, warnings, hint, error: None }
    }

    /// Reports that nothing can be said.
    pub fn failed(error: ErrorReport) -> Self {
        Self {
            error: Some(error),
            holds: false,
            ..Self::of(Vec::new(), Vec::new(), Vec::new(), None)
        }
    }
}

/// `doctor --output json`.
#[derive(Debug, Serialize)]
pub struct DoctorReport<'f> {
    version: u32,
    healthy: bool,
    findings: &'f [Finding],
    warnings: &'f [String],
    error: Option<ErrorReport>,
}

impl<'f> DoctorReport<'f> {
    /// Reports what is wrong, and what could not be seen.
    pub fn of(findings: &'f [Finding], warnings: &'f [String]) -> Self {
        Self { version: VERSION, healthy: findings.is_empty(), findings, warnings, error: None }
    }

    /// Reports that nothing can be said.
    pub fn failed(error: ErrorReport) -> Self {
        Self { error: Some(error), healthy: false, ..Self::of(&[], &[]) }
    }
}

/// `status --output json`.
#[derive(Debug, Serialize)]
pub struct StatusReport {
    version: u32,
    transaction: Option<OpenTransaction>,
    error: Option<ErrorReport>,
}

/// The transaction that is open.
#[derive(Debug, Serialize)]
pub struct OpenTransaction {
    /// Its id.
    pub id: String,
    /// `trial`, `waiting`, `permanent`, `rolling-back` or `needs-operator`.
    pub state: String,
    /// Whether a process works on it, or the guard will.
    pub worked_on: bool,
    /// When it is taken back if nobody confirms (RFC 3339), while that counts.
    pub deadline: Option<String>,
    /// The command that confirms it, while that counts.
    pub confirm: Option<String>,
}

impl StatusReport {
    /// Reports what is open.
    pub fn of(transaction: Option<OpenTransaction>) -> Self {
        Self { version: VERSION, transaction, error: None }
    }

    /// Reports that it cannot be seen.
    pub fn failed(error: ErrorReport) -> Self {
        Self { version: VERSION, transaction: None, error: Some(error) }
    }
}

/// `history --output json`.
#[derive(Debug, Serialize)]
pub struct HistoryReport {
    version: u32,
    transactions: Vec<PastTransaction>,
    error: Option<ErrorReport>,
}

/// One transaction of the past, or the open one.
#[derive(Debug, Serialize)]
pub struct PastTransaction {
    /// Its id; it begins with the time (UTC).
    pub id: String,
    /// `applied`, `rolled-back`, `refused`, `needs-operator`, or what an open one is doing.
    pub outcome: String,
    /// Name of the spec, or what else asked for it.
    pub spec: String,
    /// What was changed, a few words each.
    pub changes: Vec<String>,
    /// Why it was taken back or refused.
    pub cause: Option<String>,
}

impl HistoryReport {
    /// Reports transactions, oldest first.
    pub fn of(transactions: Vec<PastTransaction>) -> Self {
        Self { version: VERSION, transactions, error: None }
    }

    /// Reports that they cannot be seen.
    pub fn failed(error: ErrorReport) -> Self {
        Self { version: VERSION, transactions: Vec::new(), error: Some(error) }
    }
}
