//! The journal: one file for each transaction, appended to and fsynced before each step.
//!
//! Each line is a checksum and a JSON record. A line that is torn or corrupt is dropped: a crash
//! can only damage the line being written, and a step whose record is damaged never began.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::STATE;
use crate::observe::Observed;
use crate::plan::{Expectation, Op, Step};
use crate::sys::{self, Files, Image, SysError};

/// The format that is written now; older ones are read for ever.
pub const FORMAT: u32 = 1;

/// One entry of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// The transaction begins; nothing has changed.
    Begin {
        /// Format of the records.
        format: u32,
        /// What will be done.
        steps: Vec<Step>,
        /// What will be proven.
        expect: Expectation,
        /// The whole state from before.
        before: Box<Observed>,
    },
    /// A step is about to run.
    Step {
        /// Its place in the plan, from 0.
        index: usize,
        /// What it does.
        op: Op,
        /// What is at the paths that it may change, in order.
        before: Vec<(PathBuf, Image)>,
    },
    /// A step is done.
    Done {
        /// Its place in the plan, from 0.
        index: usize,
    },
    /// The way back begins.
    Rollback {
        /// Why.
        cause: String,
    },
    /// The transaction is over.
    Closed {
        /// `applied` or `rolled-back`.
        outcome: String,
    },
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    id: String,
    file: File,
}

impl Journal {
    /// Creates the journal of a new transaction with its first record, on disk.
    pub fn create(files: &Files, begin: &Record) -> Result<Self, SysError> {
        let folder = Path::new(STATE);
        files.create_folders(folder, 0o700)?;
        if let Some(above) = folder.parent() {
            files.sync_folder(above)?;
        }
        let id = new_id()?;
        let mut journal = Self { file: files.append(&path(&id))?, id };
        journal.write(begin)?;
        files.sync_folder(folder)?;
        Ok(journal)
    }

    /// Opens the journal of an earlier transaction to go on with it.
    pub fn reopen(files: &Files, id: &str) -> Result<Self, SysError> {
        // A torn tail has no line end; what comes next must not be glued to it.
        let mut journal = Self { file: files.append(&path(id))?, id: id.to_owned() };
        journal.put(b"\n")?;
        Ok(journal)
    }

    /// The transaction's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Appends a record; it is on disk when this returns.
    pub fn write(&mut self, record: &Record) -> Result<(), SysError> {
        let line =
            encode(record).map_err(|error| SysError::new("cannot write the journal", error))?;
        self.put(line.as_bytes())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SysError> {
        self.file
            .write_all(bytes)
            .and_then(|()| self.file.sync_all())
            .map_err(|error| SysError::new("cannot write the journal", error))
    }
}

fn path(id: &str) -> PathBuf {
    Path::new(STATE).join(format!("{id}.journal"))
}

/// Time and chance: sorts by age, never repeats.
fn new_id() -> Result<String, SysError> {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    Ok(format!("{now}-{}", sys::random_hex(3)?))
}

fn encode(record: &Record) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{} {json}\n", checksum(&json)))
}

fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a journal; lines that are torn or corrupt are dropped.
pub fn decode(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split_once(' '))
            .filter(|(sum, json)| *sum == checksum(json))
            .and_then(|(_, json)| serde_json::from_str(json).ok());
        match record {
            Some(record) => records.push(record),
            // What follows a torn record was written after the crash: it is whole again.
            None => tracing::warn!("a torn record in a journal was dropped"),
        }
    }
    records
}

/// The newest transaction that did not end, with its records.
pub fn find_open(files: &Files) -> Result<Option<(String, Vec<Record>)>, SysError> {
    for path in files.list(Path::new(STATE)).into_iter().rev() {
        let Some(id) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(".journal")) else {
            continue;
        };
        let records = decode(&files.read(&path)?.unwrap_or_default());
        let began = matches!(records.first(), Some(Record::Begin { .. }));
        let ended = matches!(records.last(), Some(Record::Closed { .. }));
        if began && !ended {
            return Ok(Some((id.to_owned(), records)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(index: usize) -> Record {
        Record::Done { index }
    }

    #[test]
    fn a_torn_tail_is_dropped_and_what_follows_is_read() {
        let mut bytes = encode(&done(1)).unwrap().into_bytes();
        let torn = encode(&done(2)).unwrap().into_bytes();
        bytes.extend(&torn[..torn.len() / 2]);
        assert_eq!(decode(&bytes), vec![done(1)]);
        bytes.push(b'\n');
        bytes.extend(encode(&done(3)).unwrap().into_bytes());
        assert_eq!(decode(&bytes), vec![done(1), done(3)]);
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut bytes = encode(&done(1)).unwrap().into_bytes();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        assert_eq!(decode(&bytes), Vec::new());
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
