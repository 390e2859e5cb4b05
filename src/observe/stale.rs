//! When sshd's files changed, and when the sshd that runs has read them.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::CommandLine;
use crate::sshd::{ConfigFile, ConfigTree};
use crate::sys::units::Unit;
use crate::sys::{self, Files};

/// Where sshd writes its process id unless it is told otherwise (sshd_config(5), PidFile).
const PID_FILE: &str = "/run/sshd.pid";

/// Whether a file that sshd reads changed after sshd read it.
pub(super) fn is_stale(
    files: &Files,
    config: &ConfigTree,
    line: &CommandLine,
    service: &Unit,
) -> bool {
    let newest = last_change(files, config, line.file.as_ref());
    service.is_active() && service.started > 0 && newest > read_at(files, service)
}

/// When the sshd that runs has read its files, in microseconds since the epoch; 0 where none runs.
pub(super) fn read_at(files: &Files, service: &Unit) -> u64 {
    if !service.is_active() || service.started == 0 {
        return 0;
    }
    service.started.max(service.reloaded).max(reloaded(files, service))
}

/// When sshd was asked to read its files anew (sshd(8), SIGHUP), by whoever: it writes its process id again, after it
/// has read them. In microseconds since the epoch, a second early; 0 where it was not asked.
fn reloaded(files: &Files, service: &Unit) -> u64 {
    let path = Path::new(PID_FILE);
    let own = service.main_pid.to_string();
    let is_its = |text: Vec<u8>| String::from_utf8_lossy(&text).trim() == own;
    if !files.read(path).ok().flatten().is_some_and(is_its) {
        return 0;
    }
    let written = files.metadata(path).map(|meta| content_changed(&meta));
    written.unwrap_or_default().saturating_sub(1_000_000)
}

fn changed(meta: &Metadata) -> u64 {
    sys::usec(meta.ctime(), meta.ctime_nsec())
}

fn content_changed(meta: &Metadata) -> u64 {
    sys::usec(meta.mtime(), meta.mtime_nsec())
}

/// When any file that sshd reads last changed, in microseconds since the epoch.
///
/// Times in the future say nothing (a clock that was set back), and must not cause a restart on
/// every run.
pub fn last_change(files: &Files, config: &ConfigTree, other: Option<&ConfigFile>) -> u64 {
    let patterns = || config.includes.keys().map(Path::new);
    // A file that was removed shows in its folder alone; one that is gone with its folder, in the one above.
    let folders: BTreeSet<PathBuf> =
        patterns().flat_map(|pattern| looked_through(files, pattern)).collect();
    let real = config.files.iter().chain(other).map(|file| file.real.as_path());
    let folders = || folders.iter().map(PathBuf::as_path);
    let read = real.chain(folders()).filter_map(|path| Some(changed(&files.metadata(path)?)));
    let named = config.files.iter().map(|file| file.path.as_path());
    let named = named.chain(patterns()).chain(folders());
    let on_the_way: BTreeSet<&Path> = named.flat_map(Path::ancestors).collect();
    let now = sys::now_usec();
    read.chain(on_the_way.into_iter().filter_map(|path| moved(files, path)))
        .filter(|time| *time <= now)
        .max()
        .unwrap_or_default()
}

/// When a path came to lead where it does. A link shows it in itself, and so does a folder that has another name now:
/// what is in it has not changed since. Nobody moves the folders of the root.
fn moved(files: &Files, path: &Path) -> Option<u64> {
    let link = files.own_metadata(path).filter(Metadata::is_symlink);
    let folder = files.metadata(path).filter(|meta| {
        meta.is_dir() && path.components().count() > 2 && changed(meta) > content_changed(meta)
    });
    link.iter().chain(&folder).map(changed).max()
}

/// The folders in which a pattern looks for names; where a name is missing that it asks for, the last one that is
/// there.
fn looked_through(files: &Files, pattern: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut there = vec![PathBuf::new()];
    let is_folder = |path: &PathBuf| files.metadata(path).is_some_and(|meta| meta.is_dir());
    for name in pattern.components().map(|name| name.as_os_str().to_owned()) {
        let is_glob = name.to_string_lossy().contains(['*', '?', '[']);
        let mut next = Vec::new();
        for folder in there {
            let path = folder.join(&name);
            if is_glob {
                found.push(folder.clone());
                next.extend(files.list(&folder).into_iter().filter(is_folder));
            } else if files.exists(&path) {
                next.push(path);
            } else {
                found.push(folder);
            }
        }
        there = next;
    }
    found
}
