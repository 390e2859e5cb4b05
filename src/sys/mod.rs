//! The host: files, processes, systemd over D-Bus, the kernel's socket table.
//!
//! This folder is the only place that touches the machine; everything else is handed what it
//! needs. `clippy.toml` forbids the direct calls elsewhere.
#![allow(clippy::disallowed_methods)]

pub mod command;
mod direct;
pub mod fault;
pub mod files;
pub mod mounts;
pub mod names;
pub mod probe;
pub mod process;
pub mod service;
pub mod sockets;
pub mod systemd;
pub mod transient;
pub mod units;
pub mod users;

pub use command::Command;
pub use files::{Files, Image};

use std::path::PathBuf;

/// Something the machine would not do: what was asked of it, and what it answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: {answer}")]
pub struct SysError {
    /// What was attempted, with the path or unit ("cannot replace /etc/ssh/sshd_config").
    pub what: String,
    /// What the system answered, in its own words.
    pub answer: String,
}

impl SysError {
    /// Joins what was attempted and the answer to it, without the number that Rust adds to a reason.
    pub fn new(what: impl Into<String>, answer: impl std::fmt::Display) -> Self {
        let answer = answer.to_string();
        let reason = answer.split_once(" (os error ").map_or(answer.as_str(), |(reason, _)| reason);
        Self { what: what.into(), answer: reason.to_owned() }
    }
}

impl SysError {
    /// Whether nobody answered, so that nothing is known of what happened.
    pub fn is_silence(&self) -> bool {
        self.answer == systemd::GONE || self.answer.starts_with("no answer in")
    }
}

/// Result of an operation on the machine.
pub type Result<T> = std::result::Result<T, SysError>;

/// Whether this process may change the system (effective user id 0).
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether PID 1 is systemd: `sd_booted(3)` tests for this folder.
pub fn booted_with_systemd() -> bool {
    std::path::Path::new("/run/systemd/system").is_dir()
}

/// The host's name, for the heading of a plan.
pub fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// `PRETTY_NAME` of os-release(5), or "this system".
pub fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "this system".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The addresses of this host's interfaces.
pub fn addresses() -> Vec<std::net::IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
        })
        .collect()
}

/// Whether the kernel has IPv6 at all (`ipv6.disable=1` removes this file).
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

/// Wall-clock time in microseconds since the epoch, the unit systemd's timestamps use.
pub fn now_usec() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The monotonic clock in microseconds, the unit systemd's timers use (clock_gettime(2)): no step
/// of the wall clock moves it.
pub fn monotonic_usec() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// A time of stat(2), in microseconds since the epoch.
pub fn usec(seconds: i64, nanoseconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or_default() * 1_000_000
        + u64::try_from(nanoseconds).unwrap_or_default() / 1000
}

/// The wall-clock time some time from now (RFC 3339, UTC, whole seconds).
pub fn time_after(time: std::time::Duration) -> Option<String> {
    let time = jiff::SignedDuration::try_from(time).ok()?;
    let then = jiff::Timestamp::now().checked_add(time).ok()?;
    Some(then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Where this program is.
pub fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("harden"))
}

/// How this program is called in a session that ssh(1) opens: by its name where it is found (not by sudo, for
/// which /usr/local may be missing: sudoers(5), secure_path), else by its path.
pub fn own_remote_command(has_path: bool) -> String {
    let path = own_path();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    match (path.parent().and_then(|folder| folder.to_str()), path.file_name()) {
        (Some(folder), Some(name)) if has_path && usual.contains(&folder) => {
            name.to_string_lossy().into_owned()
        }
        // One shell here, and one there.
        _ => command::shell_word(&command::shell_word(&path.display().to_string())),
    }
}

/// What this boot is called (random(4), boot_id).
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

/// Some bytes nobody can guess, in hexadecimal: transaction ids must never repeat.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0_u8; bytes];
    fill_randomly(&mut buffer)?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut buffer = [0; N];
    fill_randomly(&mut buffer)?;
    Ok(buffer)
}

fn fill_randomly(buffer: &mut [u8]) -> Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(buffer))
        .map_err(|error| SysError::new("cannot read /dev/urandom", error))
}

/// The first of `candidates` that is an executable file; system tools are found by fixed path.
pub fn find_program(candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(PathBuf::from).find(|path| is_program(path))
}

/// Whether there is a program that may be executed.
pub fn is_program(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
