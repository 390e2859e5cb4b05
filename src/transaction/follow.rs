//! Following a transaction from its journal: the terminal that began it does, and any other may.

use std::path::Path;
use std::time::{Duration, Instant};

use super::journal::{self, Record, Terms};
use super::run::outcome_of;
use super::{Outcome, STATE, decision};
use crate::step::Step;
use crate::sys::{Files, SysError, monotonic_usec};

/// What is left of a transaction that nobody works on any more.
pub const IS_OPEN: &str = " is open";

/// How often the journal is looked at.
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is asked whether anybody still works on it.
const ALIVE: Duration = Duration::from_secs(2);

/// Told what happens, as it happens.
pub trait Watcher {
    /// A step begins.
    fn step(&mut self, number: usize, total: usize, step: &Step);
    /// Something happened between steps.
    fn note(&mut self, text: &str);
    /// A person is asked to confirm, within a time.
    fn waiting(&mut self, id: &str, terms: &Terms, left: Duration);
    /// Called again and again; the time that is left for a confirmation, while one is waited for.
    /// Answers whether to go on watching.
    fn tick(&mut self, id: &str, left: Option<Duration>) -> bool;
}

/// What a transaction is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is being made ready, or tried.
    Trial,
    /// It waits to be confirmed.
    Waiting,
    /// It is being made permanent.
    Permanent,
    /// It is being taken back.
    RollingBack,
    /// It could not be taken back.
    Stuck,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Trial => "trial",
            Self::Waiting => "waiting",
            Self::Permanent => "permanent",
            Self::RollingBack => "rolling-back",
            Self::Stuck => "needs-operator",
        })
    }
}

/// What an open transaction is doing, from its records.
pub fn phase(records: &[Record]) -> Phase {
    records
        .iter()
        .rev()
        .find_map(|record| match record {
            Record::Stuck { .. } => Some(Phase::Stuck),
            Record::Rollback { .. } => Some(Phase::RollingBack),
            Record::Permanent => Some(Phase::Permanent),
            Record::Waiting => Some(Phase::Waiting),
            _ => None,
        })
        .unwrap_or(Phase::Trial)
}

/// How long the confirmation may still take; zero where the time is over.
pub fn left(records: &[Record]) -> Option<Duration> {
    let until = records.iter().rev().find_map(|record| match record {
        Record::Armed { until } => Some(*until),
        _ => None,
    })?;
    Some(Duration::from_micros(until.saturating_sub(monotonic_usec())))
}

/// Follows until the transaction ends, or the watcher has seen enough (`None`). Records before the
/// byte `from` are not told.
///
/// # Errors
/// Where the journal cannot be read.
pub fn follow(
    files: &Files,
    id: &str,
    from: usize,
    watcher: &mut dyn Watcher,
    is_worked_on: &dyn Fn() -> bool,
) -> Result<Option<Outcome>, SysError> {
    let path = journal::path(id);
    let mut told = from;
    let mut records = Vec::new();
    let mut idle = Instant::now();
    let mut doubts = 0;
    loop {
        let bytes = read(files, &path)?;
        let new = journal::decode(bytes.get(told..).unwrap_or_default());
        if !new.is_empty() || records.is_empty() {
            records = journal::decode(&bytes);
        }
        told = bytes.len();
        for record in &new {
            tell(watcher, id, record, &records);
            if let Record::Stuck { cause, left } = record {
                let (cause, left) = (cause.clone(), left.clone());
                return Ok(Some(Outcome::NeedsOperator { cause, left }));
            }
        }
        if let Some(outcome) = outcome_of(&records) {
            return Ok(Some(outcome));
        }
        let decided = || decision::read(files, id).is_ok_and(|stands| stands.is_some());
        if !new.is_empty() {
            (idle, doubts) = (Instant::now(), 0);
        } else if idle.elapsed() > ALIVE {
            idle = Instant::now();
            let read_only = files.is_read_only(Path::new(STATE));
            let worked_on = is_worked_on();
            // Who cannot go on is started again and again.
            doubts = if worked_on && !(read_only && decided()) { 0 } else { doubts + 1 };
            if doubts > 1 {
                let cause = if worked_on {
                    "the transaction cannot go on"
                } else {
                    "nobody works on the transaction any more"
                };
                let mut left = vec![format!("transaction {id}{IS_OPEN}")];
                if read_only {
                    left.push(format!("its journal cannot be written: {}", journal::read_only()));
                }
                return Ok(Some(Outcome::NeedsOperator { cause: cause.to_owned(), left }));
            }
        }
        let waiting = phase(&records) == Phase::Waiting;
        let left = left(&records).filter(|_| waiting && !decided());
        if !watcher.tick(id, left) {
            return Ok(None);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The whole lines of the journal.
fn read(files: &Files, path: &Path) -> Result<Vec<u8>, SysError> {
    let mut bytes = files.read(path)?.unwrap_or_default();
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.truncate(whole);
    Ok(bytes)
}

fn tell(watcher: &mut dyn Watcher, id: &str, record: &Record, records: &[Record]) {
    let Some(Record::Begin { steps, terms, .. }) = records.first() else { return };
    let trial = terms.iter().flat_map(|terms| &terms.trial);
    match record {
        Record::Step { index, .. } => {
            let all: Vec<&Step> = trial.chain(steps).collect();
            if let Some(step) = all.get(*index) {
                watcher.step(index + 1, all.len() + 1, step);
            }
        }
        Record::Note { text } => watcher.note(text),
        Record::Waiting => {
            if let (Some(terms), Some(left)) = (terms, left(records)) {
                watcher.waiting(id, terms, left);
            }
        }
        _ => {}
    }
}
