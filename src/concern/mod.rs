//! One file for each managed thing: what it should be, and the steps that make it so.
//!
//! Concerns are pure. They see the spec and what was observed, and emit the plan's own kinds of
//! step; none of them touches the host.

pub mod command_line;
pub mod listening;
pub mod profile;
pub mod sshd_config;
pub mod units;

use crate::step::FileChange;

/// What one concern contributes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// Files that change.
    pub files: Vec<FileChange>,
    /// What the reader should know.
    pub warnings: Vec<String>,
}
