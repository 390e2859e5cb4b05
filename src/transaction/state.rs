//! Whether the folder that journals, decisions and pinned copies are in can be relied on.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::STATE;
use crate::error::Refusal;
use crate::sys::Files;

/// What is in the folder runs as root: nobody else may write there, nor to what is in it of a transaction (of any,
/// where its `id` is empty).
///
/// # Errors
/// A refusal that names the first path at fault.
pub(super) fn refuse_open(files: &Files, id: &str) -> Result<(), Refusal> {
    let state = Path::new(STATE);
    let refuse = |path: &Path, why: String, hint: String| {
        Err(Refusal::new("writable-by-others", format!("{} {why}", path.display()), hint))
    };
    if let Some(why) = files.metadata(state).and_then(|meta| open_to_others(&meta)) {
        let hint = format!(
            "what is in it runs as root: remove what is not root's (ls -l {STATE}), then \
             chown root: {STATE}; chmod 700 {STATE}"
        );
        return refuse(state, why, hint);
    }
    let is_its =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(id));
    for path in files.list(state).iter().filter(|path| is_its(path)) {
        if let Some(why) = files.own_metadata(path).and_then(|meta| open_to_others(&meta)) {
            let hint =
                "it runs as root: see who has put it there, and remove it or give it to root alone";
            return refuse(path, why, hint.to_owned());
        }
    }
    Ok(())
}

fn open_to_others(meta: &Metadata) -> Option<String> {
    if meta.uid() != 0 {
        return Some(format!("belongs to another user than root (uid {})", meta.uid()));
    }
    let open = meta.mode() & 0o022 != 0 && !meta.is_symlink();
    open.then(|| format!("can be written by others than root (mode {:04o})", meta.mode() & 0o7777))
}

/// A journal in memory is gone after a power cut, and what is half done stays so; unless /etc goes with it.
///
/// # Errors
/// A refusal.
pub(super) fn refuse_volatile(files: &Files) -> Result<(), Refusal> {
    let there = Path::new(STATE).ancestors().find(|path| files.exists(path));
    let is_volatile = there.is_some_and(|there| files.is_volatile(there));
    if !is_volatile || files.is_volatile(Path::new("/etc")) {
        return Ok(());
    }
    Err(Refusal::new(
        "volatile-state",
        format!("{STATE} is in memory (tmpfs): a power cut would lose what has to be undone"),
        "keep it on a disk: unmount what is mounted there, or mount a disk",
    ))
}
