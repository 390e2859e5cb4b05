//! Processes, as proc(5) shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Result, SysError};

/// A process that holds a listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of proc_pid_stat(5)): with the id it
    /// names one process for ever.
    pub start: u64,
    /// Command name, at most 15 characters.
    pub name: String,
    /// File name of the executable, empty where it cannot be read.
    pub program: String,
    /// The systemd unit whose control group it is in, empty where there is none.
    pub unit: String,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// The process that it is a child of.
    #[serde(default)]
    pub parent: u32,
}

impl Process {
    /// Whether it runs in a unit of harden's own.
    pub fn is_of_harden(&self) -> bool {
        self.unit.starts_with("harden-")
    }

    /// When it was started, in microseconds since the epoch, by the clock as it is; 0 where that cannot be told.
    pub fn since(&self) -> u64 {
        use nix::time::{ClockId, clock_gettime};
        // In clock ticks, of which every Linux has a hundred a second for programs (time(7)). A container's
        // /proc/uptime may be its own, and these are the host's.
        let Ok(uptime) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
        let uptime = super::usec(uptime.tv_sec(), uptime.tv_nsec());
        match uptime.checked_sub(self.start.saturating_mul(10_000)) {
            Some(age) => super::now_usec().saturating_sub(age),
            None => 0,
        }
    }

    /// Whether it is of a container of its own: another namespace of processes (pid_namespaces(7)).
    pub fn is_contained(&self) -> bool {
        differ(std::process::id(), self.pid, "pid") == Some(true)
    }

    /// Reads a process; `None` where it is gone.
    pub fn read(pid: u32) -> Option<Self> {
        let Stat { name, parent, start, .. } = stat(pid)?;
        let program = fs::read_link(format!("/proc/{pid}/exe"))
            .ok()
            .and_then(|exe| Some(exe.file_name()?.to_str()?.to_owned()))
            .unwrap_or_default();
        let program = program.trim_end_matches(" (deleted)").to_owned();
        let unit = fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .map(|text| unit_of_cgroup(&text))
            .unwrap_or_default();
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let args = command_line
            .split(|byte| *byte == 0)
            .filter(|arg| !arg.is_empty())
            .map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect();
        Some(Self { pid, start, name, program, unit, args, parent })
    }

    /// This process and those that it descends from, up to the first one that cannot be read.
    pub fn ancestry() -> Vec<Self> {
        let mut line = Vec::new();
        let mut pid = std::process::id();
        while pid > 0
            && let Some(process) = Self::read(pid)
        {
            pid = process.parent;
            line.push(process);
        }
        line
    }

    /// A variable of the environment that it was started with.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        environment.split(|byte| *byte == 0).find_map(|pair| {
            let (key, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
            (key == name).then(|| value.to_owned())
        })
    }

    /// A variable of this process's environment, or of the nearest ancestor that has it: sudo(8)
    /// takes most of them away.
    pub fn inherited_variable(name: &str) -> Option<String> {
        let own = std::env::var(name).ok();
        own.or_else(|| Self::ancestry().iter().skip(1).find_map(|process| process.variable(name)))
    }

    /// Whether it is in another network namespace than this process (network_namespaces(7)).
    pub fn has_own_network(&self) -> bool {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let (own, theirs) = (of("self"), of(&self.pid.to_string()));
        own.is_some() && theirs.is_some() && own != theirs
    }

    /// Whether two readings are of the same process.
    pub fn is(&self, other: &Self) -> bool {
        (self.pid, self.start) == (other.pid, other.start)
    }

    /// Whether this very process still runs: it has not ended, and the id was not given to another one.
    pub fn lives(&self) -> bool {
        stat(self.pid).is_some_and(|now| now.start == self.start && now.state != "Z")
    }

    /// Ends it with SIGTERM and waits for it to be gone.
    ///
    /// # Errors
    /// Where it cannot be signalled, or is still there after five seconds.
    pub fn end(&self) -> Result<()> {
        self.terminate()?;
        if self.await_end(Duration::from_secs(5)) {
            return Ok(());
        }
        Err(SysError::new(self.cannot_end(), "still running 5 s after SIGTERM"))
    }

    /// Whether it has ended well; it cannot be told any more once its parent has read that.
    pub fn has_succeeded(&self) -> bool {
        stat(self.pid).is_some_and(|now| {
            (now.start, now.state.as_str()) == (self.start, "Z") && now.exit_code == 0
        })
    }

    /// Waits for it to end, at most `limit`; says whether it has.
    pub fn await_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.lives() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// Sends it SIGTERM where it lives, and waits for nothing.
    ///
    /// # Errors
    /// Where it cannot be signalled.
    pub fn terminate(&self) -> Result<()> {
        if !self.lives() {
            return Ok(());
        }
        let pid = Pid::from_raw(i32::try_from(self.pid).unwrap_or(i32::MAX));
        kill(pid, Signal::SIGTERM).map_err(|error| SysError::new(self.cannot_end(), error))
    }

    fn cannot_end(&self) -> String {
        format!("cannot end {} (pid {})", self.name, self.pid)
    }
}

/// The connection of an SSH session (`SSH_CONNECTION` in ssh(1)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Where it came from.
    pub client: SocketAddr,
    /// Where it came in.
    pub server: SocketAddr,
}

impl Session {
    /// The one in which this process runs.
    pub fn present() -> Option<Self> {
        Self::parse(&Process::inherited_variable("SSH_CONNECTION")?)
    }

    /// The one that a process was started in.
    pub fn of(process: &Process) -> Option<Self> {
        Self::parse(&process.variable("SSH_CONNECTION")?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut end = || {
            let (address, port) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(SocketAddr::new(address, port))
        };
        Some(Self { client: end()?, server: end()? })
    }
}

/// What the kernel says of a process (proc_pid_stat(5)).
struct Stat {
    name: String,
    /// One letter; `Z` for one that has ended and that its parent has not read yet.
    state: String,
    parent: u32,
    start: u64,
    /// As in wait(2); 0 for one that runs.
    exit_code: i32,
}

fn stat(pid: u32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold spaces: count fields behind the last one.
    let (head, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| fields.split_whitespace().nth(number);
    Some(Stat {
        name: head.split_once('(')?.1.to_owned(),
        state: field(0)?.to_owned(),
        parent: field(1)?.parse().ok()?,
        start: field(19)?.parse().ok()?,
        exit_code: field(49)?.parse().ok()?,
    })
}

/// The root of a process that has a mount namespace of its own (`/proc/PID/root`); `None` where it shares
/// this one's, or cannot be seen.
pub fn other_root(pid: u32) -> Option<std::path::PathBuf> {
    let is_other = differ(std::process::id(), pid, "mnt")?;
    is_other.then(|| format!("/proc/{pid}/root").into())
}

/// Whether a process has a namespace of its own (namespaces(7): `mnt`, `net`, `user`), and not the init system's; also
/// where that cannot be seen, without root.
pub fn has_own_namespace(pid: u32, kind: &str) -> bool {
    differ(1, pid, kind).unwrap_or_else(|| !super::is_root())
}

/// Whether two processes are in different namespaces of a kind; `None` where that cannot be seen.
fn differ(one: u32, other: u32, kind: &str) -> Option<bool> {
    let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    Some(of(one)? != of(other)?)
}

/// A field of a process's status (proc_pid_status(5)); `None` where it cannot be read.
pub fn status(pid: u32, field: &str) -> Option<String> {
    let all = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut lines = all.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| *name == field).map(|(_, value)| value.trim().to_owned())
}

/// Whether there are capabilities that a process can never have (capabilities(7), bounding set); also where that cannot
/// be read.
pub fn lacks_capabilities(pid: u32) -> bool {
    let bounding = status(pid, "CapBnd").and_then(|set| u64::from_str_radix(&set, 16).ok());
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
    let last = last.and_then(|number| number.trim().parse::<u32>().ok());
    bounding.zip(last).is_none_or(|(bounding, last)| bounding.count_ones() <= last)
}

/// The program of a process (`/proc/PID/exe`); `None` where it cannot be read.
pub fn program(pid: u32) -> Option<std::path::PathBuf> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(exe.to_string_lossy().trim_end_matches(" (deleted)").into())
}

/// The processes that hold each of the given socket inodes.
pub(super) fn holders_of(inodes: &BTreeSet<u64>) -> BTreeMap<u64, Vec<Process>> {
    let mut holders: BTreeMap<u64, Vec<Process>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let held = held_sockets(pid, inodes);
        if let Some(process) = (!held.is_empty()).then(|| Process::read(pid)).flatten() {
            for inode in held {
                holders.entry(inode).or_default().push(process.clone());
            }
        }
    }
    holders
}

pub(super) fn held_sockets(pid: u32, inodes: &BTreeSet<u64>) -> BTreeSet<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            inode.parse().ok()
        })
        .filter(|inode| inodes.contains(inode))
        .collect()
}

/// The innermost unit in `/proc/PID/cgroup` (cgroups(7)): version 2's `0::` line, else
/// version 1's `name=systemd` line.
fn unit_of_cgroup(text: &str) -> String {
    let path = |prefix: &str| {
        text.lines()
            .find_map(|line| line.split_once(':').map(|(_, rest)| rest)?.strip_prefix(prefix))
    };
    path(":")
        .filter(|path| *path != "/")
        .or_else(|| path("name=systemd:"))
        .unwrap_or_default()
        .rsplit('/')
        .find(|part| [".service", ".socket", ".scope"].iter().any(|end| part.ends_with(end)))
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_session() {
        let session = Session::parse("fd77::1 4242 fd77::2 22").unwrap();
        assert_eq!(session.client, "[fd77::1]:4242".parse().unwrap());
        assert_eq!(session.server.port(), 22);
        for no in ["", "10.0.0.1 4242", "UNKNOWN 65535 UNKNOWN 65535"] {
            assert_eq!(Session::parse(no), None, "{no}");
        }
    }

    #[test]
    fn unit_of_a_control_group() {
        assert_eq!(unit_of_cgroup("0::/system.slice/ssh.service\n"), "ssh.service");
        let hybrid = "1:name=systemd:/system.slice/ssh.service\n0::/\n";
        assert_eq!(unit_of_cgroup(hybrid), "ssh.service");
        let session = "0::/user.slice/user-0.slice/session-3.scope\n";
        assert_eq!(unit_of_cgroup(session), "session-3.scope");
        assert_eq!(unit_of_cgroup("0::/init.scope\n"), "init.scope");
        assert_eq!(unit_of_cgroup(""), "");
    }

    #[test]
    fn ancestry_leads_from_this_process_upwards() {
        let line = Process::ancestry();
        assert_eq!(line.first().unwrap().pid, std::process::id());
        assert_eq!(line.get(1).map(|parent| parent.pid), Some(std::os::unix::process::parent_id()));
    }

    #[test]
    fn a_process_that_ended_does_not_live() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = Process::read(child.id()).unwrap();
        assert!(process.lives() && !process.has_succeeded());
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
        assert!(process.await_end(Duration::from_secs(10)));
        assert!(!process.lives() && !process.has_succeeded());
        child.wait().unwrap();
        assert!(!process.lives() && !process.has_succeeded());
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let process = Process::read(child.id()).unwrap();
        assert!(process.await_end(Duration::from_secs(10)) && process.has_succeeded());
        child.wait().unwrap();
    }
}
