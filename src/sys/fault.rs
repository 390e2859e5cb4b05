//! Faults on purpose, at named points, for tests: absent from a build without the feature `faults`.
//!
//! `/var/lib/harden-faults/plan` has lines `POINT ACTION`: a process that comes to the point takes the
//! line away, then kills itself (`kill`), fails (`error`) or does nothing more (`hang`). Each point
//! that is passed is noted in `passed` beside it.

use super::Result;

/// A point has been reached.
///
/// # Errors
/// Where a test wants it to fail here.
#[cfg(not(any(feature = "faults", test)))]
#[inline]
pub fn point(_: std::fmt::Arguments) -> Result<()> {
    Ok(())
}

/// A point has been reached.
///
/// # Errors
/// Where a test wants it to fail here.
#[cfg(test)]
pub fn point(name: std::fmt::Arguments) -> Result<()> {
    let hook = HOOK.with(|hook| hook.borrow().clone());
    hook.map_or(Ok(()), |hook| hook(&name.to_string()))
}

#[cfg(test)]
type Hook = std::rc::Rc<dyn Fn(&str) -> Result<()>>;

#[cfg(test)]
thread_local! {
    static HOOK: std::cell::RefCell<Option<Hook>> = const { std::cell::RefCell::new(None) };
}

/// Unit tests are told of each point that this thread passes.
#[cfg(test)]
pub(crate) fn tell(hook: Option<Hook>) {
    HOOK.with(|told| *told.borrow_mut() = hook);
}

/// A point has been reached.
///
/// # Errors
/// Where a test wants it to fail here.
#[cfg(all(feature = "faults", not(test)))]
pub fn point(name: std::fmt::Arguments) -> Result<()> {
    use std::io::Write;
    let folder = std::path::Path::new("/var/lib/harden-faults");
    if !folder.exists() {
        return Ok(());
    }
    let name = name.to_string();
    let failed = |error| super::SysError::new("faults", error);
    let mut passed = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("passed"))
        .map_err(failed)?;
    writeln!(passed, "{name}").map_err(failed)?;
    let plan = std::fs::read_to_string(folder.join("plan")).unwrap_or_default();
    let is_here = |line: &&str| line.split_once(' ').is_some_and(|(point, _)| point == name);
    let Some(here) = plan.lines().find(is_here) else { return Ok(()) };
    let rest: String =
        plan.lines().filter(|line| *line != here).map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("plan"), rest).map_err(failed)?;
    match here.split_once(' ').map(|(_, action)| action) {
        Some("kill") => {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
        Some("hang") => loop {
            std::thread::sleep(std::time::Duration::from_secs(1000));
        },
        _ => {}
    }
    Err(super::SysError::new(name, "failed on purpose"))
}
