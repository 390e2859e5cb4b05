//! What has to be on disk is on disk: the release binary's own system calls, in their order, held
//! against the rules by which a power cut can do no harm. A virtual machine whose plug is pulled finds
//! a missing fsync(2) once in a while; this finds it every time.
//!
//! 1. A file is fsynced before it is renamed or linked to its name.
//! 2. A folder whose entries changed is fsynced before the journal goes on.
//! 3. A record of the journal is fsynced before anything else is changed.
//! 4. Before the last record, every folder is fsynced in which systemd may have made links.

use std::collections::{BTreeMap, BTreeSet};

use crate::campaign::begin;
use crate::machine::{Machine, Suite};
use crate::operator::MOVE;

const CALLS: &str = "openat,write,fsync,fdatasync,rename,?renameat,?renameat2,link,?linkat,unlink,\
                     ?unlinkat,mkdir,?mkdirat,rmdir,symlink,?symlinkat";
/// What outlives a boot and is harden's to change.
const KEPT: [&str; 3] = ["/etc", "/usr/local/lib", "/var/lib"];

/// One call that succeeded: its name and its arguments.
type Call = (String, Vec<String>);

/// strace's lines, those of calls that were interrupted by another thread's put together.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: BTreeMap<&str, String> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let (pid, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        let whole = if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            open.insert(pid, begun.trim_end().to_owned());
            continue;
        } else if rest.starts_with("<... ") {
            let end = rest.split_once("resumed>").map_or("", |(_, end)| end);
            format!("{}{end}", open.remove(pid).unwrap_or_default())
        } else {
            rest.to_owned()
        };
        let Some((name, rest)) = whole.split_once('(') else { continue };
        let Some((args, result)) = rest.rsplit_once(" = ") else { continue };
        if result.starts_with('-') {
            continue;
        }
        let args = args.trim_end().trim_end_matches(')').split(", ").map(str::to_owned).collect();
        calls.push((name.to_owned(), args));
    }
    calls
}

/// The path in `5</etc/x>` or `"/etc/x"`.
fn path(text: &str) -> Option<&str> {
    let inner = match text.split_once('<') {
        Some((_, rest)) => rest.trim_end_matches('>'),
        None => text.trim_matches('"'),
    };
    let is_kept = |kept: &&str| {
        inner.strip_prefix(*kept).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    KEPT.iter().any(is_kept).then_some(inner)
}

fn folder(path: &str) -> String {
    path.rsplit_once('/').map_or("/", |(folder, _)| folder).to_owned()
}

/// A file that nobody misses: harden's own, on its way to its name, or left behind by that.
fn is_temporary(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with('.'))
}

/// What is not on disk yet, and the rules that were broken so far.
#[derive(Default)]
struct Disk {
    known: BTreeSet<String>,
    files: BTreeSet<String>,
    folders: BTreeSet<String>,
    /// Since the last record.
    synced: BTreeSet<String>,
    /// The first record has just been written; its folder follows.
    begun: bool,
    broken: Vec<String>,
}

impl Disk {
    fn see(&mut self, name: &str, args: &[String]) {
        let target = match name {
            "rename" | "link" | "symlink" => args.get(1),
            "renameat" | "renameat2" | "linkat" => args.get(3),
            _ if name.ends_with("at") => args.get(1),
            _ => args.first(),
        };
        let Some(target) = target.and_then(|target| path(target)).map(str::to_owned) else {
            return;
        };
        match name {
            "openat" => self.opened(&target, args.get(2).map_or("", String::as_str)),
            "fsync" | "fdatasync" => {
                self.files.remove(&target);
                self.folders.remove(&target);
                self.synced.insert(target);
            }
            "write" if target.ends_with(".journal") => self.record(target, &args[1]),
            _ => self.changed(name, target, args),
        }
    }

    fn opened(&mut self, target: &str, flags: &str) {
        let new = flags.contains("O_CREAT") && self.known.insert(target.to_owned());
        if new {
            self.goes_on(target);
        }
        if new && !is_temporary(target) {
            self.folders.insert(folder(target));
        }
    }

    /// Notes are only for whoever follows, and an empty line parts a torn record from the next.
    fn record(&mut self, journal: String, text: &str) {
        if text.contains("\\\"note\\\"") || text == "\"\\n\"" {
            return;
        }
        self.begun = text.contains("{\\\"begin\\\"");
        let folders = self.folders.iter().filter(|_| !self.begun);
        let late = folders.map(|folder| format!("{folder} is not on disk before {text:.80}"));
        self.broken.extend(late);
        if text.contains("\\\"closed\\\"") {
            for links in ["/etc/systemd/system", "/etc/ssh/sshd_config.d"] {
                if !self.synced.contains(links) {
                    self.broken.push(format!("{links} is not on disk when it is closed"));
                }
            }
        }
        self.synced.clear();
        self.files.insert(journal);
    }

    /// Whoever writes the first record changes nothing more until its folder is on disk.
    fn goes_on(&mut self, target: &str) {
        if std::mem::take(&mut self.begun) {
            let late = self.folders.iter();
            let late = late.map(|folder| format!("{folder} is not on disk before {target}"));
            self.broken.extend(late);
        }
    }

    fn changed(&mut self, name: &str, target: String, args: &[String]) {
        if let Some(record) = self.files.iter().find(|file| file.ends_with(".journal")) {
            self.broken.push(format!("{name} {target} before the record in {record} is on disk"));
        }
        self.goes_on(&target);
        match name {
            "write" => drop(self.files.insert(target)),
            _ if name.starts_with("rename") || name.starts_with("link") => {
                let source = args[usize::from(args.len() > 2)].trim_matches('"');
                if self.files.contains(source) {
                    self.broken.push(format!("{name} {target} before its content is on disk"));
                }
                self.folders.insert(folder(&target));
            }
            _ if is_temporary(&target) => {}
            _ => drop(self.folders.insert(folder(&target))),
        }
    }
}

fn boot() -> Machine {
    let suite = Suite::Trixie;
    let machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
    machine.spec(MOVE);
    machine.ssh(22, "true").ok();
    machine
}

/// Runs a command under strace(1), and asserts that it keeps the rules.
#[track_caller]
fn keeps_the_rules(machine: &Machine, command: &str) {
    let list = machine.exec("find /etc /usr/local/lib /var/lib/harden").stdout;
    let mut disk = Disk { known: list.lines().map(str::to_owned).collect(), ..Disk::default() };
    machine.exec(&format!("strace -f -y -qq -s 4000 -o trace -e trace={CALLS} {command}"));
    let trace = machine.root().read("/root/trace");
    let calls = calls(&trace);
    assert!(calls.len() > 20, "{trace}");
    for (name, args) in calls {
        disk.see(&name, &args);
    }
    assert!(disk.broken.is_empty(), "{command}: {:#?}", disk.broken);
}

#[test]
fn the_front_is_on_disk_in_time() {
    let machine = boot();
    keeps_the_rules(&machine, "harden apply -y spec.yaml");
}

#[test]
fn the_worker_is_on_disk_in_time() {
    let machine = boot();
    let id = begin(&machine);
    keeps_the_rules(&machine, &format!("/var/lib/harden/{id}.harden worker {id}"));
    assert!(machine.sh("harden history").contains(&format!("{id} applied")));
}

#[test]
fn the_way_back_is_on_disk_in_time() {
    let machine = boot();
    // ssh.service does not start with the new port.
    let unwilling = "[Service]\nExecStartPre=/bin/sh -c '! grep -rqs ^Port.2222 /etc/ssh'\n";
    machine.root().write("/etc/systemd/system/ssh.service.d/no.conf", unwilling);
    machine.sh("systemctl daemon-reload");
    let id = begin(&machine);
    keeps_the_rules(&machine, &format!("/var/lib/harden/{id}.harden worker {id}"));
    assert!(machine.sh("harden history").contains(&format!("{id} rolled-back")));
}
