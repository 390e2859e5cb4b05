//! The journal: one file for each transaction, appended to and fsynced before each step.
//!
//! Each line is a checksum and a JSON record. A crash can only damage the line being written, and a step
//! whose record is torn never began. A disk can damage any line: so where one is damaged, every step
//! counts as begun.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::STATE;
use crate::observe::Observed;
use crate::plan::Change;
use crate::spec::Confirm;
use crate::sshd::ConfigTree;
use crate::step::{Expectation, Op, Step};
use crate::sys::process::Process;
use crate::sys::{self, Files, Image, SysError};

/// The format that is written now; older ones are read for ever.
pub const FORMAT: u32 = 2;

/// Room that is kept for the journal, in bytes, so that a full disk cannot stop the way back.
const RESERVE: i64 = 256 * 1024;

/// How much of a journal's end is looked at to see whether it is closed, in bytes.
const END: u64 = 4096;

/// One entry of a journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// The transaction begins; nothing has changed.
    Begin {
        /// Format of the records.
        format: u32,
        /// What makes the change permanent.
        steps: Vec<Step>,
        /// What will be proven.
        expect: Expectation,
        /// The whole state from before.
        before: Box<Observed>,
        /// How it is tried and confirmed; absent in format 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        terms: Option<Box<Terms>>,
    },
    /// A process has taken the transaction on.
    Taken {
        /// What the boot is called in which it did.
        boot: String,
    },
    /// What is at every path that the transaction may change.
    Images {
        /// Paths of the host's own configuration.
        paths: Vec<(PathBuf, Image)>,
        /// Paths of the transaction's own units.
        own: Vec<(PathBuf, Image)>,
    },
    /// The guard is armed.
    Armed {
        /// When it undoes what nobody has confirmed, in microseconds of the monotonic clock.
        until: u64,
    },
    /// A unit of sshd's is about to be stopped, and these run that stop along with it.
    Along {
        /// Their names.
        units: Vec<String>,
    },
    /// A step is about to run.
    Step {
        /// Its place in the trial and the plan, from 0.
        index: usize,
        /// What it does.
        op: Op,
        /// What was at the paths that it may change, in order.
        before: Vec<(PathBuf, Image)>,
    },
    /// A step is done.
    Done {
        /// Its place in the trial and the plan, from 0.
        index: usize,
    },
    /// The trial listens.
    Trial {
        /// The sshd that does.
        listener: Process,
    },
    /// Administrators whom the unit of sshd's has turned away before anything began, and its files would let in.
    TurnedAway {
        /// Their names.
        users: Vec<String>,
    },
    /// The trial is proven, and waits for the decision.
    Waiting,
    /// The decision is on disk, and the change becomes permanent.
    Permanent,
    /// The way back begins.
    Rollback {
        /// Why.
        cause: String,
    },
    /// The way back is incomplete; somebody has to look.
    Stuck {
        /// What failed first.
        cause: String,
        /// What is not as it was.
        left: Vec<String>,
    },
    /// Something worth telling whoever follows.
    Note {
        /// One sentence.
        text: String,
    },
    /// A line that is torn or corrupt stands here.
    #[serde(skip)]
    Damaged,
    /// The transaction is over.
    Closed {
        /// `applied`, `rolled-back` or `refused`.
        outcome: String,
        /// Why it was taken back or refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
}

/// How a change is tried and confirmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// The steps of the trial.
    pub trial: Vec<Step>,
    /// sshd's configuration files as they will be.
    pub candidate: ConfigTree,
    /// sshd's command line as it will be.
    pub options: Vec<String>,
    /// Who confirms.
    pub confirm: Confirm,
    /// How long the confirmation may take, in seconds.
    pub limit: u64,
    /// The command that opens a new session, for the operator; without the confirmation.
    pub login: Vec<String>,
    /// Who runs harden, behind sudo(8) too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Where the session came from in which harden was run, if from anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<std::net::IpAddr>,
    /// The address of this host on which that session came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<std::net::IpAddr>,
    /// What is changed, as it was shown.
    pub changes: Vec<Change>,
    /// Name of the spec, or what else asked for it.
    pub spec: String,
    /// The transaction that this one undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<String>,
    /// Who has to be able to log in, and become root, afterwards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub admins: Vec<String>,
    /// Whom it locks out, and that this was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forced: Vec<String>,
}

/// Why a journal takes no records.
pub(super) fn read_only() -> String {
    format!("the file system of {STATE} is read-only")
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    id: String,
    /// None where its file system has become read-only.
    file: Option<File>,
}

impl Journal {
    /// Creates the journal of a new transaction with its first record, on disk.
    pub fn create(files: &Files, begin: &Record) -> Result<Self, SysError> {
        let folder = Path::new(STATE);
        files.create_folders(folder, 0o700)?;
        if let Some(above) = folder.parent() {
            files.sync_folder(above)?;
        }
        let id = new_id(files)?;
        let mut journal = Self { file: Some(files.append(&path(&id))?), id };
        journal.write(begin)?;
        journal.reserve();
        files.sync_folder(folder)?;
        Ok(journal)
    }

    /// Keeps room for what is still to come.
    fn reserve(&self) {
        let Some(file) = &self.file else { return };
        let length = file.metadata().map_or(0, |meta| meta.len());
        let flags = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let from = i64::try_from(length).unwrap_or_default();
        if let Err(error) = nix::fcntl::fallocate(file, flags, from, RESERVE) {
            tracing::debug!(%error, "no room is kept for the journal");
        }
    }

    /// Opens the journal of an earlier transaction to go on with it; on a file system that has become read-only
    /// (an error on the disk, as a rule) it takes no records.
    pub fn reopen(files: &Files, id: &str) -> Result<Self, SysError> {
        let id = id.to_owned();
        let file = match files.append(&path(&id)) {
            Err(error) if !files.is_read_only(Path::new(STATE)) => return Err(error),
            file => file.ok(),
        };
        let mut journal = Self { id, file };
        if journal.file.is_some() {
            // A torn tail has no line end; what comes next must not be glued to it.
            journal.put(b"\n")?;
        }
        Ok(journal)
    }

    /// The transaction's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Appends a record; it is on disk when this returns.
    pub fn write(&mut self, record: &Record) -> Result<(), SysError> {
        let line = encode(record).map_err(cannot_write)?;
        self.put(line.as_bytes())
    }

    /// Notes something for whoever follows. It need not be on disk.
    pub fn note(&mut self, text: &str) {
        let record = Record::Note { text: text.to_owned() };
        let written =
            encode(&record).map(|line| self.file.as_mut()?.write_all(line.as_bytes()).ok());
        if !matches!(written, Ok(Some(()))) {
            tracing::warn!("not in the journal: {text}");
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SysError> {
        let Some(file) = &mut self.file else { return Err(cannot_write(read_only())) };
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(cannot_write)
    }
}

fn cannot_write(why: impl std::fmt::Display) -> SysError {
    SysError::new("cannot write the journal", why)
}

/// Where a transaction's journal is.
pub fn path(id: &str) -> PathBuf {
    Path::new(STATE).join(format!("{id}.journal"))
}

/// Time, to the millisecond, and chance: sorts by age, never repeats. Where the clock was set back since the
/// last transaction, the time is the next one after that.
fn new_id(files: &Files) -> Result<String, SysError> {
    let last = ids(files).last().and_then(|id| time_of(id));
    let next = last.and_then(|last| last.checked_add(jiff::SignedDuration::from_millis(1)).ok());
    let now = jiff::Timestamp::now();
    let now = next.filter(|next| *next > now).unwrap_or(now);
    let millisecond = now.subsec_millisecond();
    let time = now.strftime("%Y%m%dT%H%M%S");
    Ok(format!("{time}.{millisecond:03}Z-{}", sys::random_hex(3)?))
}

/// The time in a transaction's id.
fn time_of(id: &str) -> Option<jiff::Timestamp> {
    let (time, _) = id.split_once('Z')?;
    let time = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S%.f", time).ok()?;
    jiff::tz::TimeZone::UTC.to_timestamp(time).ok()
}

fn encode(record: &Record) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(record)?;
    Ok(format!("{} {json}\n", checksum(&json)))
}

fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a journal.
pub fn decode(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.split_once(' '))
            .filter(|(sum, json)| *sum == checksum(json))
            .and_then(|(_, json)| serde_json::from_str(json).ok());
        // What follows a torn record was written after the crash: it is whole again.
        records.push(record.unwrap_or(Record::Damaged));
    }
    records
}

/// The whole records in the last bytes of a journal.
fn decode_end(bytes: &[u8]) -> Vec<Record> {
    let from = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    decode(bytes.get(from..).unwrap_or_default())
}

/// Reads the records of one transaction; none where there is no such journal.
pub fn read(files: &Files, id: &str) -> Result<Vec<Record>, SysError> {
    Ok(decode(&files.read(&path(id))?.unwrap_or_default()))
}

/// The ids of all transactions, oldest first.
pub fn ids(files: &Files) -> Vec<String> {
    ids_of(files, ".journal")
}

/// The ids of those of which there is a file with this suffix.
pub(super) fn ids_of(files: &Files, suffix: &str) -> Vec<String> {
    let paths = files.list(Path::new(STATE)).into_iter();
    let is_file = |path: &PathBuf| files.metadata(path).is_some_and(|meta| meta.is_file());
    paths
        .filter(is_file)
        .filter_map(|path| Some(path.file_name()?.to_str()?.strip_suffix(suffix)?.to_owned()))
        .collect()
}

/// Whether these are the records of a transaction from its beginning on.
pub fn has_begun(records: &[Record]) -> bool {
    matches!(records.first(), Some(Record::Begin { .. }))
}

/// Whether these are the records of a transaction that began and did not end.
pub fn is_open(records: &[Record]) -> bool {
    has_begun(records) && !records.iter().any(|record| matches!(record, Record::Closed { .. }))
}

/// The newest transaction that did not end, with its records.
pub fn find_open(files: &Files) -> Result<Option<(String, Vec<Record>)>, SysError> {
    for id in ids(files).into_iter().rev() {
        // The last record tells; a host with a long history has a lot of journals.
        let end = files.read_end(&path(&id), END)?;
        if decode_end(&end).iter().any(|record| matches!(record, Record::Closed { .. })) {
            continue;
        }
        let records = read(files, &id)?;
        if is_open(&records) {
            return Ok(Some((id, records)));
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
    fn a_torn_tail_is_told_and_what_follows_is_read() {
        let mut bytes = encode(&done(1)).unwrap().into_bytes();
        let torn = encode(&done(2)).unwrap().into_bytes();
        bytes.extend(&torn[..torn.len() / 2]);
        assert_eq!(decode(&bytes), vec![done(1), Record::Damaged]);
        bytes.push(b'\n');
        bytes.extend(encode(&done(3)).unwrap().into_bytes());
        assert_eq!(decode(&bytes), vec![done(1), Record::Damaged, done(3)]);
    }

    /// The clock may be set back between two transactions.
    #[test]
    fn the_next_id_sorts_last() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::at(folder.path());
        let journal = |id: &str| files.scratch(&path(id), b"").unwrap();
        let first = new_id(&files).unwrap();
        assert!(first.as_str() < "2100", "{first}");
        journal("21001231T235959.999Z-abcdef");
        let next = new_id(&files).unwrap();
        assert!(next.starts_with("21010101T000000.000Z-"), "{next}");
        journal("mine");
        assert!(new_id(&files).is_ok());
    }

    /// Journals of older versions are read for ever.
    #[test]
    fn a_journal_of_format_1_is_read() {
        let records = decode(include_bytes!("../../tests/journals/format-1.journal"));
        let Some(Record::Begin { format: 1, steps, terms: None, .. }) = records.first() else {
            panic!("{:?}", records.first())
        };
        let done = records.iter().filter(|record| matches!(record, Record::Done { .. })).count();
        assert_eq!(done, steps.len());
        assert!(!is_open(&records));
    }

    #[test]
    fn the_end_of_a_journal_is_read_from_its_first_whole_line() {
        let mut bytes = encode(&done(1)).unwrap().into_bytes();
        bytes.extend(encode(&done(2)).unwrap().into_bytes());
        assert_eq!(decode_end(&bytes[5..]), vec![done(2)]);
        assert_eq!(decode_end(b"torn"), Vec::new());
    }

    #[test]
    fn of_many_journals_the_open_one_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::at(folder.path());
        files.create_folders(Path::new(STATE), 0o700).unwrap();
        let begin = decode(include_bytes!("../../tests/journals/format-1.journal")).remove(0);
        let cause = |length: usize| Some("c".repeat(length));
        let closed = |cause| Record::Closed { outcome: "rolled-back".to_owned(), cause };
        let mut open = Journal::create(&files, &begin).unwrap();
        for length in [0, 3000, 9000] {
            let mut other = Journal::create(&files, &begin).unwrap();
            other.write(&closed(cause(length))).unwrap();
            other.note("and a note");
        }
        assert_eq!(find_open(&files).unwrap().unwrap().0, open.id());
        open.write(&closed(None)).unwrap();
        assert_eq!(find_open(&files).unwrap(), None);
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut bytes = encode(&done(1)).unwrap().into_bytes();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        assert_eq!(decode(&bytes), vec![Record::Damaged]);
    }

    proptest::proptest! {
        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
