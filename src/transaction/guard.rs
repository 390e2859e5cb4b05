//! What brings the old state back when nobody else does: a timer of systemd's, outside this
//! process, the session and the installed binary; and, for the next boot, two units.
//!
//! The units lie below /usr/local, because nothing below /etc may change before the new listener
//! is proven; below /usr/lib where /usr/local is mounted so late at boot that systemd would not find them.
//! They are there while the transaction is open, and gone when it is closed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::journal::{self, Record};
use super::machine::Machine;
use super::run::{Run, pinned};
use super::{STATE, bridge};
use crate::step::Role;
use crate::sys::fault::point;
use crate::sys::files::Meta;
use crate::sys::mounts::is_early;
use crate::sys::{self, Files, Image, Result, SysError};

/// Where units of the local administrator are that no package owns (systemd.unit(5)).
const UNITS: &str = "/usr/local/lib/systemd/system";
/// Where those of packages are.
const PACKAGED: &str = "/usr/lib/systemd/system";
/// Puts the files of an open transaction right before sshd starts.
pub const RECOVERY: &str = "harden-recovery.service";
/// Proves what recovery did, and closes the transaction.
pub const RESUME: &str = "harden-resume.service";

/// How long after the deadline the guard waits for the worker to see it too.
const GRACE: Duration = Duration::from_secs(5);

/// The worker's unit.
pub fn worker_unit(id: &str) -> String {
    format!("harden-{id}.service")
}

/// The guard's name, without the suffixes of its two units.
pub fn guard_name(id: &str) -> String {
    format!("harden-guard-{id}")
}

/// Copies this program beside the journal, and makes sure that it runs from there.
///
/// # Errors
/// Where there is no room, or nothing may be executed there.
pub fn pin(machine: &dyn Machine, id: &str) -> Result<PathBuf> {
    let files = machine.files();
    let this = Path::new("/proc/self/exe");
    let content = files.read(this)?.ok_or_else(|| SysError::new("cannot read harden", "gone"))?;
    let path = pinned(id);
    files.put(&path, &Image::File { content, meta: Meta::of_this_process(0o700) })?;
    machine.runs(&path)?;
    Ok(path)
}

/// The folder for the units, such that systemd finds them when it starts.
fn units(files: &Files) -> Result<&'static Path> {
    let found = [UNITS, PACKAGED].map(Path::new).into_iter().find(|path| is_early(files, path));
    found.ok_or_else(|| {
        SysError::new(
            "recovery at boot cannot be made ready",
            format!("{UNITS} and {PACKAGED} are mounted after systemd starts"),
        )
    })
}

/// The transaction's own paths: folders first, then the units, then the links that start them.
fn own_files(units: &Path, id: &str) -> Vec<(PathBuf, Image)> {
    let early = units.join("sysinit.target.wants");
    let late = units.join("multi-user.target.wants");
    let folder = || Image::Directory { meta: Meta::root(0o755) };
    let unit = |text: String| Image::File { content: text.into_bytes(), meta: Meta::root(0o644) };
    let link = |name: &str| Image::Symlink { target: Path::new("..").join(name) };
    let mut all = Vec::new();
    for path in [units.parent().unwrap_or(units), units, &early, &late] {
        all.push((path.to_owned(), folder()));
    }
    all.push((units.join(RECOVERY), unit(recovery_unit(units, id))));
    all.push((units.join(RESUME), unit(resume_unit(id))));
    all.push((early.join(RECOVERY), link(RECOVERY)));
    all.push((late.join(RESUME), link(RESUME)));
    all
}

/// Without the pinned copy the transaction is closed, and systemd may not have been told yet that the
/// units are gone. Ordered before everything of sshd's, but nothing requires it, and it may take 30 seconds at
/// most: it never blocks the boot.
fn recovery_unit(units: &Path, id: &str) -> String {
    let program = pinned(id);
    format!(
        "# Written by harden for transaction {id}, which is open; removed when it is closed.\n\
         [Unit]\n\
         Description=harden: sshd's files, of an interrupted change\n\
         DefaultDependencies=no\n\
         ConditionPathExists={0}\n\
         RequiresMountsFor={STATE} {1} /etc/ssh /etc/systemd/system\n\
         After=local-fs.target\n\
         Before=ssh.service ssh.socket sshd.service sshd.socket shutdown.target\n\
         Conflicts=shutdown.target\n\n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={0} recover {id}\n\
         TimeoutStartSec=30\n",
        program.display(),
        units.display()
    )
}

fn resume_unit(id: &str) -> String {
    let program = pinned(id);
    format!(
        "# Written by harden for transaction {id}, which is open; removed when it is closed.\n\
         [Unit]\n\
         Description=harden: ends an interrupted change\n\
         ConditionPathExists={0}\n\
         After={RECOVERY} ssh.service ssh.socket sshd.service sshd.socket\n\
         IgnoreOnIsolate=yes\n\
         StartLimitIntervalSec=0\n\n\
         [Service]\n\
         Type=exec\n\
         ExecStart={0} worker {id}\n\
         Restart=on-failure\n\
         RestartSec=1\n\
         NotifyAccess=main\n\
         WatchdogSec=10\n\
         WatchdogSignal=SIGKILL\n\
         KillMode=mixed\n\
         TimeoutStopSec=240\n",
        program.display(),
    )
}

/// What is at the transaction's own paths now.
pub(super) fn own_images(files: &Files, id: &str) -> Result<Vec<(PathBuf, Image)>> {
    let own = own_files(units(files)?, id).into_iter();
    own.map(|(path, _)| Ok((path.clone(), files.image(&path)?))).collect()
}

/// Makes recovery at boot ready, then arms the timer and reads it back.
///
/// # Errors
/// Where either cannot be had: then nothing may be changed.
pub(super) fn arm(run: &mut Run) -> Result<()> {
    let files = run.machine.files();
    for (path, image) in own_files(units(files)?, &run.id) {
        let there = matches!(image, Image::Directory { .. })
            && matches!(files.image(&path)?, Image::Directory { .. });
        if !there {
            files.put(&path, &image)?;
        }
    }
    point(format_args!("guard.units"))?;
    let limit = run.limit();
    let until = sys::monotonic_usec() + u64::try_from(limit.as_micros()).unwrap_or(u64::MAX / 2);
    set_timer(run, limit + GRACE)?;
    point(format_args!("guard.timer"))?;
    run.record(Record::Armed { until })
}

/// Arms the timer again where it is gone.
pub(super) fn keep_armed(run: &mut Run, left: Duration) -> Result<()> {
    if run.machine.is_armed(&guard_name(&run.id))? {
        return Ok(());
    }
    set_timer(run, left + GRACE)?;
    run.note("the guard's timer was gone, and is armed again");
    Ok(())
}

fn set_timer(run: &Run, after: Duration) -> Result<()> {
    let name = guard_name(&run.id);
    let command = [run.pinned().display().to_string(), "guard".to_owned(), run.id.clone()];
    run.machine.arm(&name, &command, after)?;
    if run.machine.is_armed(&name)? {
        return Ok(());
    }
    Err(SysError::new("cannot arm the guard", format!("{name}.timer does not run")))
}

/// Takes away everything that an ended transaction needs no more. What cannot be taken away is
/// harmless: it finds the transaction closed, and tries again.
pub(super) fn stand_down(machine: &dyn Machine, id: &str, records: &[Record]) {
    let heed = |result: Result<()>| {
        if let Err(error) = result {
            tracing::warn!(%error, "after transaction {id}");
        }
    };
    for role in [Role::Trial, Role::Rescue] {
        heed(machine.silence(&bridge::unit(id, role)));
    }
    heed(machine.silence(&bridge::keeper(id)));
    heed(machine.disarm(&guard_name(id)));
    let own = records.iter().find_map(|record| match record {
        Record::Images { own, .. } => Some(own.clone()),
        _ => None,
    });
    // Without a journal it is not known what was there; nobody else has files of these names.
    let all_gone = || {
        let own = [UNITS, PACKAGED].map(|units| own_files(Path::new(units), id));
        own.into_iter().flatten().map(|(path, _)| (path, Image::Absent)).collect()
    };
    let own =
        own.unwrap_or_else(|| if journal::has_begun(records) { Vec::new() } else { all_gone() });
    for (path, image) in own.iter().rev() {
        heed(machine.files().put_back(path, image));
    }
    for unit in [RECOVERY, RESUME] {
        // One that timed out at boot would be shown as failed for ever.
        machine.forgive(unit);
    }
    heed(machine.files().remove_tree(&bridge::folder(id)));
    heed(machine.files().put(&pinned(id), &Image::Absent));
    heed(discard_unmade(machine.files(), id));
}

/// What is left of decisions that were killed before they were made.
pub(super) fn unmade(files: &Files) -> Vec<PathBuf> {
    let mut paths = files.list(Path::new(STATE));
    paths.retain(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    });
    paths
}

pub(super) fn discard_unmade(files: &Files, id: &str) -> Result<()> {
    let of_it = |path: &&PathBuf| path.to_string_lossy().contains(id);
    unmade(files).iter().filter(of_it).try_for_each(|path| files.put(path, &Image::Absent))
}

/// Whether a process that systemd knows of works on a transaction.
pub fn is_worked_on(machine: &dyn Machine, id: &str) -> Result<bool> {
    for unit in [&worker_unit(id), RESUME, &format!("{}.service", guard_name(id))] {
        let active = machine.unit(unit)?.active;
        if matches!(active.as_str(), "active" | "activating" | "deactivating" | "reloading") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Closes a transaction in its journal, then takes its safeguards away. What it changed is on disk
/// before that: systemd's own links too, and what a process renamed that died before it could fsync
/// the folder.
///
/// # Errors
/// Where the journal cannot be written; then the safeguards stay.
pub(super) fn close(run: &mut Run, outcome: &str, cause: Option<&str>) -> Result<()> {
    let images = run.images();
    let folders: BTreeSet<&Path> = images.keys().filter_map(|path| path.parent()).collect();
    for folder in folders.into_iter().filter(|folder| run.machine.files().exists(folder)) {
        run.machine.files().sync_folder(folder)?;
    }
    point(format_args!("close.before"))?;
    run.record(Record::Closed { outcome: outcome.to_owned(), cause: cause.map(str::to_owned) })?;
    point(format_args!("close.after"))?;
    stand_down(run.machine, &run.id, run.records());
    Ok(())
}

/// Closes a transaction that never began to change anything.
///
/// # Errors
/// Where its journal cannot be written.
pub fn discard(machine: &dyn Machine, id: &str, cause: &str) -> Result<()> {
    let mut journal = journal::Journal::reopen(machine.files(), id)?;
    let records = journal::read(machine.files(), id)?;
    journal
        .write(&Record::Closed { outcome: "refused".to_owned(), cause: Some(cause.to_owned()) })?;
    stand_down(machine, id, &records);
    Ok(())
}
