//! The right to change this host: one process at a time.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{RUNTIME, journal};
use crate::error::{Error, Refusal};
use crate::sys::{Files, SysError};

/// The right to change this host. The kernel takes it back when its holder dies.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    /// The journal of the transaction that its holder goes on with.
    _journal: Option<File>,
}

impl Lock {
    /// Takes the lock, if nobody has it.
    ///
    /// # Errors
    /// Where the lock file cannot be made.
    pub fn try_take(files: &Files) -> Result<Option<Self>, SysError> {
        files.create_folders(Path::new(RUNTIME), 0o700)?;
        let file = files.try_lock(&Path::new(RUNTIME).join("lock"))?;
        Ok(file.map(|file| Self { _file: file, _journal: None }))
    }

    /// Takes the lock.
    ///
    /// # Errors
    /// A refusal where another harden holds it.
    pub fn take(files: &Files) -> Result<Self, Error> {
        Self::try_take(files)?.ok_or_else(|| {
            let holder = files.lock_holder(&Path::new(RUNTIME).join("lock"));
            let holder = holder.map_or_else(String::new, |id| format!(" (process {id})"));
            Refusal::new(
                "locked",
                format!("another harden is changing this host{holder}"),
                "`harden status` shows what it does; where it shows nothing, the other one waits for \
                 an answer on its terminal",
            )
            .into()
        })
    }

    /// Takes the lock as soon as its holder lets go, if that is within `limit`.
    ///
    /// # Errors
    /// Where the lock file cannot be made.
    pub fn wait(files: &Files, limit: Duration) -> Result<Option<Self>, SysError> {
        within(limit, || Self::try_take(files))
    }

    /// The same, to go on with a transaction. Its journal is locked as well: a lock file below /run is soon
    /// removed, and then made anew.
    ///
    /// # Errors
    /// Where the lock file cannot be made, or the journal not be opened.
    pub fn wait_for(files: &Files, id: &str, limit: Duration) -> Result<Option<Self>, SysError> {
        let path = journal::path(id);
        within(limit, || {
            let Some(lock) = Self::try_take(files)? else { return Ok(None) };
            if !files.exists(&path) {
                return Ok(Some(lock));
            }
            let journal = files.try_lock(&path)?;
            Ok(journal.map(|journal| Self { _journal: Some(journal), ..lock }))
        })
    }
}

fn within(
    limit: Duration,
    mut take: impl FnMut() -> Result<Option<Lock>, SysError>,
) -> Result<Option<Lock>, SysError> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(lock) = take()? {
            return Ok(Some(lock));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
