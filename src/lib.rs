//! harden moves and hardens sshd on a systemd host in one transaction.
//!
//! The pipeline, in order:
//!
//! ```text
//! spec --parse--> Spec --observe--> Observed --plan--> Plan --validate--> --transaction--> Outcome
//!       pure            reads               pure        sshd itself         writes, proves, takes back
//! ```
//!
//! Stages are functions between named types. [`plan`] is pure; only [`sys`] touches the host; only
//! [`transaction`] changes it. A managed thing is one file in [`concern`]. [`lockout`] stands between plan
//! and transaction: who would be shut out. [`doctor`] judges an observation, and changes nothing.

pub mod concern;
pub mod doctor;
pub mod error;
pub mod lockout;
pub mod observe;
pub mod plan;
pub mod report;
pub mod saved;
pub mod spec;
pub mod sshd;
pub mod step;
pub mod sys;
pub mod transaction;
pub mod validate;
pub mod verify;
