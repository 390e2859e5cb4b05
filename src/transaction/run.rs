//! One open transaction: its journal, and what the journal says so far.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::journal::{self, Journal, Record, Terms};
use super::machine::Machine;
use super::{Outcome, STATE};
use crate::error::Error;
use crate::observe::Observed;
use crate::step::{Bridge, Expectation, Op, Role, Step};
use crate::sys::{Image, SysError};

/// A transaction that this process works on.
pub(super) struct Run<'a> {
    pub(super) machine: &'a dyn Machine,
    pub(super) id: String,
    pub(super) expect: Expectation,
    pub(super) before: Observed,
    pub(super) terms: Option<Terms>,
    permanent: Vec<Step>,
    journal: Journal,
    records: Vec<Record>,
}

impl<'a> Run<'a> {
    /// Goes on with a transaction from its journal.
    pub(super) fn open(machine: &'a dyn Machine, id: &str) -> Result<Self, SysError> {
        let records = journal::read(machine.files(), id)?;
        let Some(Record::Begin { steps, expect, before, terms, .. }) = records.first().cloned()
        else {
            return Err(SysError::new(format!("cannot read transaction {id}"), "no such journal"));
        };
        Ok(Self {
            machine,
            id: id.to_owned(),
            expect,
            before: *before,
            terms: terms.map(|terms| *terms),
            permanent: steps,
            journal: Journal::reopen(machine.files(), id)?,
            records,
        })
    }

    /// The host as it is. Which links are looked at depends on what the unit files say by now; those that were
    /// looked at before count in any case.
    pub(super) fn observe(&self) -> Result<Observed, Error> {
        let mut now = self.machine.observe()?;
        for path in self.before.links.keys() {
            let there = || match self.machine.files().image(path) {
                Ok(Image::Symlink { target }) => Some(target),
                _ => None,
            };
            now.links.entry(path.clone()).or_insert_with(there);
        }
        Ok(now)
    }

    /// Appends a record; it is on disk when this returns.
    pub(super) fn record(&mut self, record: Record) -> Result<(), SysError> {
        self.journal.write(&record)?;
        self.records.push(record);
        Ok(())
    }

    /// As [`Run::record`], where going on matters more than the record.
    pub(super) fn record_if_possible(&mut self, record: Record) {
        if let Err(error) = self.journal.write(&record) {
            tracing::warn!(%error, "going on without the record");
        }
        self.records.push(record);
    }

    /// Refuses to go on where nothing can be written down any more: what is decided waits.
    pub(super) fn refuse_read_only(&self) -> Result<(), SysError> {
        if !self.machine.files().is_read_only(Path::new(STATE)) {
            return Ok(());
        }
        Err(SysError::new(format!("cannot go on with {}", self.id), journal::read_only()))
    }

    /// Tells whoever follows.
    pub(super) fn note(&mut self, text: &str) {
        self.journal.note(text);
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn has(&self, is: impl Fn(&Record) -> bool) -> bool {
        self.records.iter().any(is)
    }

    /// How often a process has taken the transaction on.
    pub(super) fn times(&self, is: impl Fn(&Record) -> bool) -> usize {
        self.records.iter().filter(|record| is(record)).count()
    }

    /// How it ended, where it has.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        outcome_of(&self.records)
    }

    /// Steps of the trial, numbered.
    pub(super) fn trial(&self) -> Vec<(usize, Step)> {
        let steps = self.terms.iter().flat_map(|terms| &terms.trial);
        steps.cloned().enumerate().collect()
    }

    /// Steps that make the change permanent, numbered on.
    pub(super) fn permanent(&self) -> Vec<(usize, Step)> {
        let first = self.trial().len();
        self.permanent.iter().cloned().enumerate().map(|(at, step)| (first + at, step)).collect()
    }

    /// The bridge of a role, as the plan has it.
    pub(super) fn bridge(&self, role: Role) -> Option<Bridge> {
        let steps = self.trial().into_iter().chain(self.permanent());
        steps.into_iter().find_map(|(_, step)| match step.op {
            Op::Listen(bridge) if bridge.role == role => Some(bridge),
            _ => None,
        })
    }

    /// What was at each path before anything changed.
    pub(super) fn images(&self) -> BTreeMap<PathBuf, Image> {
        images_of(&self.records)
    }

    /// How long the confirmation may take.
    pub(super) fn limit(&self) -> Duration {
        limit_of(&self.records)
    }

    /// The copy of harden that belongs to this transaction.
    pub(super) fn pinned(&self) -> PathBuf {
        pinned(&self.id)
    }
}

/// How long the confirmation may take.
pub(super) fn limit_of(records: &[Record]) -> Duration {
    let limit = match records.first() {
        Some(Record::Begin { terms: Some(terms), .. }) => terms.limit,
        _ => 0,
    };
    Duration::from_secs(limit)
}

/// The copy of harden that belongs to a transaction: whatever happens to the installed one, the
/// way back still runs.
pub(super) fn pinned(id: &str) -> PathBuf {
    Path::new(STATE).join(format!("{id}.harden"))
}

/// The command line of a process that goes on with a transaction: its own copy of harden, or,
/// where that is gone, this program.
pub(super) fn command(machine: &dyn Machine, what: &str, id: &str) -> Vec<String> {
    let pinned = pinned(id);
    let program = if machine.files().exists(&pinned) {
        pinned
    } else {
        std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/local/bin/harden"))
    };
    vec![program.display().to_string(), what.to_owned(), id.to_owned()]
}

/// In how many boots somebody has worked on it.
pub(super) fn boots(records: &[Record]) -> usize {
    let boots = records.iter().filter_map(|record| match record {
        Record::Taken { boot } => Some(boot),
        _ => None,
    });
    boots.collect::<BTreeSet<_>>().len()
}

/// How a transaction ended, as its records say.
pub(super) fn outcome_of(records: &[Record]) -> Option<Outcome> {
    records.iter().rev().find_map(|record| match record {
        Record::Closed { outcome, cause } => {
            let cause = cause.clone().or_else(|| cause_of(records)).unwrap_or_default();
            Some(match outcome.as_str() {
                "applied" => Outcome::Applied,
                "refused" => Outcome::Refused { cause },
                _ => Outcome::RolledBack { cause },
            })
        }
        _ => None,
    })
}

/// Every step that was planned, and what was at its paths before any of them.
pub(super) fn planned(records: &[Record]) -> Vec<(Op, Vec<(PathBuf, Image)>)> {
    let Some(Record::Begin { steps, before, terms, .. }) = records.first() else {
        return Vec::new();
    };
    let images = images_of(records);
    let trial = terms.iter().flat_map(|terms| &terms.trial);
    let with_images = |step: &Step| {
        let paths = step.op.paths(before).into_iter();
        let there = paths.filter_map(|path| Some((path.clone(), images.get(&path)?.clone())));
        (step.op.clone(), there.collect())
    };
    trial.chain(steps).map(with_images).collect()
}

fn images_of(records: &[Record]) -> BTreeMap<PathBuf, Image> {
    let paths = records.iter().flat_map(|record| match record {
        Record::Images { paths, .. } => paths.as_slice(),
        _ => &[],
    });
    paths.cloned().collect()
}

/// Why the way back began, where it has.
pub(super) fn cause_of(records: &[Record]) -> Option<String> {
    records.iter().find_map(|record| match record {
        Record::Rollback { cause } => Some(cause.clone()),
        _ => None,
    })
}
