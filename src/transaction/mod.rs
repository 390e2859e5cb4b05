//! The fourth stage: the plan's steps as one transaction.
//!
//! ```text
//! front --journal, pinned copy--> worker: guard -> trial -> decision -> permanent -> proof -> closed
//!   |                                |                          |           |          |
//!   '-- follows the journal          '------- any failure ------'-----------'--> rollback -> proof
//! ```
//!
//! The front only begins it and follows: the worker is a service of systemd's. What is to be done
//! is in the journal before it is done; which way it goes is one file, the decision. From these two
//! any process can go on after a crash: the worker that systemd starts again, the guard when its
//! time comes, recovery at the next boot, the next harden.

mod along;
mod bridge;
mod comeback;
pub mod confirm;
pub mod decision;
pub mod follow;
pub mod front;
pub mod guard;
pub mod journal;
pub mod leftovers;
pub mod lock;
pub mod machine;
mod on_demand;
mod permanent;
mod rollback;
mod run;
mod state;
mod steps;
mod trial;
mod welcome;
pub mod worker;

#[cfg(test)]
mod tests;

pub use lock::Lock;
pub use rollback::changed;

use crate::verify::Fault;

/// Where journals are kept.
pub const STATE: &str = "/var/lib/harden";
/// What ends with the boot: the lock, the bridges' configuration.
const RUNTIME: &str = "/run/harden";

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that the spec asks for holds and is proven.
    Applied,
    /// Nothing was changed.
    Refused {
        /// Why.
        cause: String,
    },
    /// It failed, and the state from before is back and proven.
    RolledBack {
        /// What failed.
        cause: String,
    },
    /// It failed, and the state from before is not back.
    NeedsOperator {
        /// What failed first.
        cause: String,
        /// What is not as it was.
        left: Vec<Fault>,
    },
}

/// How a transaction ended, as its records say; `None` while it is open.
pub fn outcome(records: &[journal::Record]) -> Option<Outcome> {
    run::outcome_of(records)
}
