//! The model of a host: files below a temporary folder, units that listen, operations that fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::panic_any;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::machine::Machine;
use super::super::{guard, worker};
use crate::error::Error;
use crate::observe::{Listener, Observed, Owner, Verdict as Effect};
use crate::sshd::{ConfigFile, ConfigTree, Effective};
use crate::step::Expectation;
use crate::sys::fault;
use crate::sys::files::Meta;
use crate::sys::probe::Visitor;
use crate::sys::process::Process;
use crate::sys::transient::OwnSshd;
use crate::sys::units::Unit;
use crate::sys::{Files, Image, Result, SysError};
use crate::verify::logins::{self, Treated};
use crate::verify::{self, Fault};

pub(super) const CONFIG: &str = "/etc/ssh/sshd_config";
pub(super) const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/ssh.service";
pub(super) const SOCKETS: &str = "/etc/systemd/system/sockets.target.wants/ssh.socket";
pub(super) const SERVICE: &str = "ssh.service";
pub(super) const SOCKET: &str = "ssh.socket";

/// What befalls the n-th operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mishap {
    /// It fails and does nothing.
    Fails,
    /// It fails, and has done its work all the same.
    FailsLate,
    /// The process dies before it.
    DiesBefore,
    /// The process dies after it.
    DiesAfter,
}

/// The process is dead; thrown through everything.
pub(super) struct Dead;

#[derive(Default)]
pub(super) struct Host {
    /// Running units, with the ports on which they listen.
    pub(super) active: BTreeMap<String, Vec<u16>>,
    /// Units that were told to stop, and that nobody waits for.
    pub(super) going: Vec<String>,
    /// When each of the two units was started last, as a main process id.
    pub(super) pids: BTreeMap<String, u32>,
    pub(super) armed: bool,
    pub(super) boots: u32,
    /// Operations at which nobody listened.
    pub(super) deaf: Vec<String>,
}

/// Operations and named points, counted; one of them may be struck.
#[derive(Default)]
pub(super) struct Fate {
    pub(super) operations: Cell<usize>,
    pub(super) fault: Cell<Option<(usize, Mishap)>>,
    pub(super) log: RefCell<Vec<String>>,
}

impl Fate {
    /// What befalls this operation.
    pub(super) fn next(&self, what: &str) -> Option<Mishap> {
        self.log.borrow_mut().push(what.to_owned());
        self.operations.set(self.operations.get() + 1);
        let struck = self.fault.get().filter(|(at, _)| *at == self.operations.get());
        struck.map(|(_, mishap)| mishap)
    }
}

pub(super) struct Fake {
    pub(super) files: Files,
    pub(super) host: RefCell<Host>,
    pub(super) fate: Rc<Fate>,
    /// Nothing is ever proven, and the old owners do not start again.
    pub(super) stubborn: Cell<bool>,
    /// Nobody can log in under the new configuration.
    pub(super) unwelcome: Cell<bool>,
    /// Whether that has been asked.
    pub(super) is_asked: Cell<bool>,
    /// How many more times those who had access are turned away.
    pub(super) turns_away: Cell<usize>,
    /// Nothing is ever proven.
    pub(super) doubtful: Cell<bool>,
}

impl Fake {
    /// ssh.socket holds port 22, somebody has logged in, so ssh.service runs too.
    pub(super) fn new(root: &Path) -> Self {
        for folder in ["etc/ssh", "etc/systemd/system/sockets.target.wants", "usr/local/lib"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        for folder in ["run", "var/lib"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let fake = Self {
            files: Files::at(root),
            host: RefCell::default(),
            fate: Rc::default(),
            stubborn: Cell::new(false),
            unwelcome: Cell::new(false),
            is_asked: Cell::new(false),
            turns_away: Cell::new(0),
            doubtful: Cell::new(false),
        };
        std::fs::write(root.join("etc/ssh/sshd_config"), "PermitRootLogin no\n").unwrap();
        fake.files.put(Path::new(SOCKETS), &link(SOCKET)).unwrap();
        fake.start(SOCKET);
        fake.start(SERVICE);
        let fate = fake.fate.clone();
        fault::tell(Some(Rc::new(move |point| match fate.next(point) {
            None => Ok(()),
            Some(Mishap::Fails | Mishap::FailsLate) => {
                Err(SysError::new(point, "failed on purpose"))
            }
            Some(Mishap::DiesBefore | Mishap::DiesAfter) => panic_any(Dead),
        })));
        fake
    }

    /// The port that sshd_config says.
    pub(super) fn configured(&self) -> u16 {
        let text = self.files.read(Path::new(CONFIG)).unwrap().unwrap_or_default();
        let text = String::from_utf8(text).unwrap();
        let port = text.lines().find_map(|line| line.strip_prefix("Port "));
        port.map_or(22, |port| port.parse().unwrap())
    }

    pub(super) fn start(&self, unit: &str) {
        let ports = match unit {
            SOCKET => vec![22],
            // An sshd that the socket started has no port of its own.
            SERVICE if self.host.borrow().active.contains_key(SOCKET) => vec![],
            _ => vec![self.configured()],
        };
        let mut host = self.host.borrow_mut();
        if !host.active.contains_key(unit) {
            let pid = host.pids.values().max().copied().unwrap_or(100) + 1;
            host.pids.insert(unit.to_owned(), pid);
            host.active.insert(unit.to_owned(), ports);
        }
    }

    pub(super) fn stop(&self, unit: &str) {
        self.host.borrow_mut().active.remove(unit);
    }

    /// Whatever is going has gone.
    fn settle(&self) {
        let going = std::mem::take(&mut self.host.borrow_mut().going);
        going.iter().for_each(|unit| self.stop(unit));
    }

    /// Something starts on some ports: of the units that are going, those have stopped that systemd keeps in
    /// order with it. The others go on holding their ports until it has failed.
    fn take(&self, unit: &str, ports: &[u16], in_order: impl Fn(&str) -> bool) -> Result<()> {
        let (gone, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.host.borrow_mut().going)
            .into_iter()
            .partition(|going| in_order(going));
        gone.iter().for_each(|unit| self.stop(unit));
        let host = self.host.borrow();
        let mut others = host.active.iter().filter(|(name, _)| *name != unit);
        let taken = others.find(|(_, held)| held.iter().any(|port| ports.contains(port)));
        let taken = taken.map(|(name, _)| SysError::new(unit, format!("{name} holds the port")));
        drop(host);
        going.iter().for_each(|unit| self.stop(unit));
        taken.map_or(Ok(()), Err)
    }

    /// One operation: it may be the one that a fault befalls.
    pub(super) fn operation<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let failed = || Err(SysError::new(what, "failed on purpose"));
        let befalls = self.fate.next(what);
        // Only what takes a port at once may find it still held.
        if befalls.is_some() || !(what.starts_with("StartUnit") || what.starts_with("listen")) {
            self.settle();
        }
        let done = match befalls {
            None => work(),
            Some(Mishap::Fails) => failed(),
            Some(Mishap::FailsLate) => work().and_then(|_| failed()),
            Some(Mishap::DiesBefore) => panic_any(Dead),
            Some(Mishap::DiesAfter) => {
                let _ = work();
                self.settle();
                self.listen_in(what);
                panic_any(Dead)
            }
        };
        self.listen_in(what);
        done
    }

    /// Somebody listens at every instant between two operations.
    pub(super) fn listen_in(&self, what: &str) {
        let mut host = self.host.borrow_mut();
        if host.active.values().all(Vec::is_empty) {
            host.deaf.push(what.to_owned());
        }
    }

    /// The power is cut, and comes back; recovery runs before sshd if it was installed.
    pub(super) fn reboot(&self, id: &str) {
        self.fate.fault.set(None);
        {
            let mut host = self.host.borrow_mut();
            host.active.clear();
            host.armed = false;
            host.boots += 1;
        }
        std::fs::remove_dir_all(self.files.real(Path::new("/run/harden"))).unwrap_or_default();
        let recovery =
            Path::new("/usr/local/lib/systemd/system/sysinit.target.wants").join(guard::RECOVERY);
        if self.files.exists(&recovery) {
            worker::recover(self, id).unwrap();
        }
        for (path, unit) in [(SOCKETS, SOCKET), (WANTS, SERVICE)] {
            if self.files.exists(Path::new(path)) {
                self.start(unit);
            }
        }
        // A login starts it.
        if self.host.borrow().active.contains_key(SOCKET) {
            self.start(SERVICE);
        }
        self.host.borrow_mut().deaf.clear();
    }

    /// Everything that is the state: files, units, who listens where.
    pub(super) fn state(&self) -> (BTreeMap<String, Image>, BTreeMap<String, Vec<u16>>) {
        let mut files = tree(&self.files, "/etc");
        files.extend(tree(&self.files, "/usr"));
        (files, self.host.borrow().active.clone())
    }
}

pub(super) fn link(unit: &str) -> Image {
    Image::Symlink { target: Path::new("/lib/systemd/system").join(unit) }
}

pub(super) fn file(path: &str, text: String) -> ConfigFile {
    ConfigFile { path: path.into(), real: path.into(), text, meta: Meta::of_this_process(0o644) }
}

impl Machine for Fake {
    fn files(&self) -> &Files {
        &self.files
    }

    fn job(&self, method: &'static str, unit: &str, _: Duration) -> Result<()> {
        self.operation(&format!("{method} {unit}"), || {
            if self.stubborn.get() && method == "StartUnit" && self.configured() == 22 {
                return Err(SysError::new(format!("start {unit}"), "failed on purpose"));
            }
            if method != "StartUnit" {
                self.stop(unit);
            }
            if method != "StopUnit" {
                let socket = self.host.borrow().active.contains_key(SOCKET);
                let ports = match unit {
                    SOCKET => vec![22],
                    _ if socket => vec![],
                    _ => vec![self.configured()],
                };
                self.take(unit, &ports, |going| going.starts_with("harden-trial"))?;
                self.start(unit);
            }
            Ok(())
        })
    }

    fn let_go(&self, unit: &str) -> Result<()> {
        self.operation(&format!("let go {unit}"), || {
            self.host.borrow_mut().going.push(unit.to_owned());
            Ok(())
        })
    }

    fn cancel_job(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn make_way(&self, bridge: &str, _: &str, _: Duration) -> Result<()> {
        self.let_go(bridge)
    }

    fn holds(&self, _: &str, _: &[SocketAddr]) -> Result<bool> {
        Ok(true)
    }

    fn unit(&self, name: &str) -> Result<Unit> {
        let host = self.host.borrow();
        let active = host.active.contains_key(name);
        let enabled = match name {
            SERVICE => self.files.exists(Path::new(WANTS)),
            _ => self.files.exists(Path::new(SOCKETS)),
        };
        Ok(Unit {
            name: name.into(),
            load: "loaded".into(),
            active: if active { "active" } else { "inactive" }.into(),
            file: if enabled { "enabled" } else { "disabled" }.into(),
            main_pid: host.pids.get(name).copied().filter(|_| active).unwrap_or_default(),
            listen: if name == SOCKET { vec!["0.0.0.0:22".into()] } else { vec![] },
            ..Unit::default()
        })
    }

    fn enable(&self, unit: &str) -> Result<()> {
        self.operation(&format!("enable {unit}"), || {
            self.files.create_folders(Path::new(WANTS).parent().unwrap(), 0o755)?;
            self.files.put(Path::new(WANTS), &link(SERVICE))
        })
    }

    fn disable(&self, unit: &str) -> Result<()> {
        self.operation(&format!("disable {unit}"), || {
            self.files.put(Path::new(SOCKETS), &Image::Absent)?;
            self.files.put(Path::new(SOCKETS).parent().unwrap(), &Image::Absent)
        })
    }

    fn unmask(&self, unit: &str) -> Result<()> {
        self.operation(&format!("unmask {unit}"), || Ok(()))
    }

    fn reload(&self) -> Result<()> {
        self.operation("reload", || Ok(()))
    }

    fn reset_failed(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn end(&self, process: &Process) -> Result<()> {
        self.operation(&format!("end {}", process.pid), || Ok(()))
    }

    fn await_listeners(&self, expect: &Expectation, _: Duration) -> Result<()> {
        self.operation("await", || {
            let missing = verify::missing(expect, &self.observe().unwrap());
            let missing = missing.first().map(|fault| SysError::new("await", fault));
            missing.map_or(Ok(()), Err)
        })
    }

    fn prove(&self, expect: &Expectation) -> std::result::Result<(Vec<Fault>, Vec<String>), Error> {
        self.operation("prove", || Ok(()))?;
        if self.stubborn.get() || self.doubtful.get() {
            return Ok((vec!["failed on purpose".to_owned()], Vec::new()));
        }
        Ok((verify::state(expect, &self.observe()?), Vec::new()))
    }

    fn greet(&self, _: &[SocketAddr], _: &Observed) -> std::result::Result<Vec<Fault>, Error> {
        self.operation("greet", || Ok(()))?;
        Ok(Vec::new())
    }

    fn other_host_key(&self, _: &Path, _: &Observed) -> std::result::Result<Option<Fault>, Error> {
        Ok(None)
    }

    fn log_in(&self, _: logins::Asked) -> JoinHandle<std::result::Result<logins::Answer, Error>> {
        let faults =
            if self.unwelcome.get() { vec!["failed on purpose".to_owned()] } else { vec![] };
        std::thread::spawn(|| Ok(logins::Answer { faults, ..logins::Answer::default() }))
    }

    fn compare(&self, _: &logins::Asked, _: &[SocketAddr]) -> Vec<(String, Treated)> {
        // Before anything begins it is asked too.
        let left = if self.is_asked.replace(true) { self.turns_away.get() } else { 0 };
        self.turns_away.set(self.turns_away.get().saturating_sub(left.min(1)));
        let treated = if left > 0 { Treated::TurnedAway } else { Treated::Alike };
        vec![("root".to_owned(), treated)]
    }

    fn runs(&self, _: &Path) -> Result<()> {
        Ok(())
    }

    fn listen(&self, sshd: &OwnSshd) -> Result<Process> {
        let OwnSshd { unit, at, takes_turns, .. } = sshd;
        self.operation(&format!("listen {unit}"), || {
            let ports: Vec<u16> = at.iter().map(SocketAddr::port).collect();
            self.take(unit, &ports, |going| takes_turns.iter().any(|unit| unit == going))?;
            self.host.borrow_mut().active.insert(unit.into(), ports);
            Ok(this_process())
        })
    }

    fn accepts(&self, _: &OwnSshd) -> Result<()> {
        Ok(())
    }

    fn shut_out(&self, _: &Observed, _: &Observed, _: &[String]) -> Option<String> {
        None
    }

    fn silence(&self, unit: &str) -> Result<()> {
        if !self.host.borrow().active.contains_key(unit) {
            return Ok(());
        }
        self.operation(&format!("silence {unit}"), || {
            self.stop(unit);
            Ok(())
        })
    }

    fn units(&self, _: &str, _: &[&str]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn knock(&self, _: &SocketAddr) -> Option<Visitor> {
        None
    }

    fn keep(&self, unit: &str, _: &[String]) -> Result<()> {
        self.operation(&format!("keep {unit}"), || Ok(()))
    }

    fn arm(&self, name: &str, _: &[String], _: Duration) -> Result<()> {
        self.operation(&format!("arm {name}"), || {
            self.host.borrow_mut().armed = true;
            Ok(())
        })
    }

    fn is_armed(&self, _: &str) -> Result<bool> {
        Ok(self.host.borrow().armed)
    }

    fn disarm(&self, name: &str) -> Result<()> {
        self.operation(&format!("disarm {name}"), || {
            self.host.borrow_mut().armed = false;
            Ok(())
        })
    }

    fn boot(&self) -> String {
        self.host.borrow().boots.to_string()
    }

    fn stop_requested(&self) -> bool {
        false
    }

    fn goes_down(&self) -> bool {
        false
    }

    fn enqueue(&self, method: &'static str, unit: &str) -> Result<()> {
        let _ = (method, unit);
        Ok(())
    }

    fn observe(&self) -> std::result::Result<Observed, Error> {
        let text = String::from_utf8(self.files.read(Path::new(CONFIG))?.unwrap_or_default());
        let config = ConfigTree {
            main: CONFIG.into(),
            files: vec![file(CONFIG, text.unwrap())],
            includes: BTreeMap::new(),
        };
        let target = |path: &str| match self.files.image(Path::new(path)) {
            Ok(Image::Symlink { target }) => Some(target),
            _ => None,
        };
        let paths = [WANTS, SOCKETS].map(|path| (PathBuf::from(path), target(path)));
        let listener = |(name, port): (String, u16)| {
            let owner = match name.as_str() {
                SERVICE | SOCKET => Owner::Unit(name),
                _ => Owner::Process(Process { unit: name, ..this_process() }),
            };
            Listener { address: [0, 0, 0, 0].into(), port, v6only: true, owner, ssh: true }
        };
        let host = self.host.borrow();
        let ports = host
            .active
            .iter()
            .flat_map(|(name, ports)| ports.iter().map(move |port| (name.clone(), *port)));
        let listeners = ports.map(listener).collect();
        drop(host);
        let effective = format!("listenaddress 0.0.0.0:{}\n", self.configured());
        Ok(Observed {
            config,
            effective: Effect::Valid(Effective::parse(&effective)),
            service: self.unit(SERVICE)?,
            socket: self.unit(SOCKET)?,
            links: BTreeMap::from(paths),
            listeners,
            ..Observed::default()
        })
    }
}

pub(super) fn this_process() -> Process {
    Process::read(std::process::id()).unwrap()
}

/// Every path below a folder with its image.
pub(super) fn tree(files: &Files, folder: &str) -> BTreeMap<String, Image> {
    let mut all = BTreeMap::new();
    for path in files.list(Path::new(folder)) {
        let name = path.to_string_lossy().into_owned();
        let image = files.image(&path).unwrap();
        if matches!(image, Image::Directory { .. }) {
            all.extend(tree(files, &name));
        }
        all.insert(name, image);
    }
    all
}
