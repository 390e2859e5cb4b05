//! Why harden stops: one type for each kind of end, and the exit code that goes with it.

use serde::Serialize;

use crate::sys::SysError;

/// Exit codes of the command line.
pub mod exit {
    /// Done, or nothing to do.
    pub const OK: u8 = 0;
    /// Failed or refused; nothing changed.
    pub const REFUSED: u8 = 1;
    /// Wrong usage or an invalid spec.
    pub const USAGE: u8 = 2;
    /// Changes are pending (`plan --exit-code`).
    pub const PENDING: u8 = 3;
    /// Rolled back to the state before.
    pub const ROLLED_BACK: u8 = 4;
    /// The rollback is incomplete; the operator is needed.
    pub const NEEDS_OPERATOR: u8 = 5;
}

/// An end before anything was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The spec does not say something that can be applied.
    #[error("{0}")]
    Spec(SpecError),
    /// The host is in a state in which going on would be wrong; expected, and explained.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The machine would not do what was asked of it.
    #[error("{0}")]
    System(#[from] SysError),
}

/// What is wrong with a spec, with the text around it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{rendered}")]
pub struct SpecError {
    /// `FILE:LINE:COLUMN: what is wrong`, on one line.
    pub message: String,
    /// The message with a snippet and a caret.
    pub rendered: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A refusal: what stands in the way, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A stable word for programs (`port-taken`, `stale-plan`).
    pub code: &'static str,
    /// What is in the way, with file and line or process where there is one.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Refusal {
    /// Builds a refusal.
    pub fn new(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::Spec(error)
    }
}

impl Error {
    /// The exit code for this end.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Spec(_) => exit::USAGE,
            Self::Refused(_) | Self::System(_) => exit::REFUSED,
        }
    }

    /// The error as the JSON contract has it.
    pub fn report(&self) -> ErrorReport {
        match self {
            Self::Spec(error) => ErrorReport {
                code: "invalid-spec".to_owned(),
                message: error.message.clone(),
                hint: error.hint.clone(),
            },
            Self::Refused(refusal) => ErrorReport {
                code: refusal.code.to_owned(),
                message: refusal.message.clone(),
                hint: Some(refusal.hint.clone()),
            },
            Self::System(error) => {
                ErrorReport { code: "system".to_owned(), message: error.to_string(), hint: None }
            }
        }
    }
}

/// `error` in JSON output: `{"code","message","hint"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorReport {
    /// A stable word for programs.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}
