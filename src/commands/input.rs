//! What is read from the command line: specs and saved plans, and who may have written them.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use harden::error::{Error, Refusal};
use harden::sys::{self, Files, users};

/// A saved plan holds the files that it was made for.
pub(super) const MAX_PLAN: u64 = 64 * 1024 * 1024;

/// Reads a spec or a plan, and refuses one that somebody else could have written.
pub(super) fn read_input(files: &Files, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let absolute = std::path::absolute(path)
        .map_err(|error| sys::SysError::new(format!("cannot read {}", path.display()), error))?;
    // A device never ends, and a pipe that nobody writes to never begins.
    let is_input = absolute.starts_with("/dev/fd") || absolute == Path::new("/dev/stdin");
    if let Some(meta) = files.metadata(&absolute).filter(|meta| !meta.is_file() && !is_input) {
        let what = if meta.is_dir() { "a folder" } else { "no regular file" };
        return Err(Refusal::new(
            "no-file",
            format!("{} is {what}", path.display()),
            "name a YAML file, or /dev/stdin",
        )
        .into());
    }
    let (bytes, meta) = files.read_limited(&absolute, limit + 1)?;
    refuse_others(&meta, path)?;
    if let Some(folder) = files.resolve(&absolute).parent()
        && let Some(meta) = files.metadata(folder)
        && meta.mode() & 0o1002 == 0o002
        && !is_input
    {
        return Err(Refusal::new(
            "writable-by-others",
            format!("everybody may put another file in place of {}", path.display()),
            format!("keep it elsewhere, or: chmod o-w {}", folder.display()),
        )
        .into());
    }
    Ok(bytes)
}

/// Whoever can change a spec decides how one logs in: root, who runs harden, behind sudo(8) too, and nobody else.
fn refuse_others(meta: &Metadata, path: &Path) -> Result<(), Refusal> {
    let me = nix::unistd::geteuid().as_raw();
    let operator = users::named(&users::operator()).map(|user| user.uid);
    let shown = path.display();
    let owner = users::with_id(meta.uid());
    let alone = owner.is_some_and(|owner| users::is_alone_in(&owner, meta.gid()));
    let open = if alone { 0o002 } else { 0o022 };
    if meta.mode() & open != 0 {
        return Err(Refusal::new(
            "writable-by-others",
            format!("{shown} can be written by others (mode {:04o})", meta.mode() & 0o7777),
            format!("whoever can change it decides how you log in: chmod go-w {shown}"),
        ));
    }
    if ![Some(me), Some(0), operator].contains(&Some(meta.uid())) {
        return Err(Refusal::new(
            "owned-by-another",
            format!("{shown} belongs to another user (uid {})", meta.uid()),
            format!("make it yours after reading it: chown root {shown}"),
        ));
    }
    Ok(())
}
