//! A model of a host, on which a transaction fails, dies or loses power at every single operation:
//! afterwards the state is the old one or the new one, whole, and at no instant nobody listened.
#![allow(clippy::disallowed_methods)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::decision::Verdict;
use super::journal::{Journal, Record, Terms};
use super::machine::Machine;
use super::*;
use crate::error::Error;
use crate::observe::{Listener, Observed, Owner, Verdict as Effect};
use crate::plan::{Expectation, Plan, Role, plan};
use crate::spec::Confirm;
use crate::sshd::{ConfigFile, ConfigTree, Effective};
use crate::sys::fault;
use crate::sys::files::Meta;
use crate::sys::process::Process;
use crate::sys::units::Unit;
use crate::sys::{Files, Image, Result, SysError};
use crate::verify::{self, Fault, logins};

const CONFIG: &str = "/etc/ssh/sshd_config";
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/ssh.service";
const SOCKETS: &str = "/etc/systemd/system/sockets.target.wants/ssh.socket";
const SERVICE: &str = "ssh.service";
const SOCKET: &str = "ssh.socket";

/// What befalls the n-th operation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
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
struct Dead;

#[derive(Default)]
struct Host {
    /// Running units, with the ports on which they listen.
    active: BTreeMap<String, Vec<u16>>,
    /// When each of the two units was started last, as a main process id.
    pids: BTreeMap<String, u32>,
    armed: bool,
    boots: u32,
    /// Operations at which nobody listened.
    deaf: Vec<String>,
}

/// Operations and named points, counted; one of them may be struck.
#[derive(Default)]
struct Fate {
    operations: Cell<usize>,
    fault: Cell<Option<(usize, Mishap)>>,
    log: RefCell<Vec<String>>,
}

impl Fate {
    /// What befalls this operation.
    fn next(&self, what: &str) -> Option<Mishap> {
        self.log.borrow_mut().push(what.to_owned());
        self.operations.set(self.operations.get() + 1);
        let struck = self.fault.get().filter(|(at, _)| *at == self.operations.get());
        struck.map(|(_, mishap)| mishap)
    }
}

struct Fake {
    files: Files,
    host: RefCell<Host>,
    fate: Rc<Fate>,
    /// Nothing is ever proven, and the old owners do not start again.
    stubborn: Cell<bool>,
    /// Nobody can log in under the new configuration.
    unwelcome: Cell<bool>,
    /// Nothing is ever proven.
    doubtful: Cell<bool>,
}

impl Fake {
    /// ssh.socket holds port 22, somebody has logged in, so ssh.service runs too.
    fn new(root: &Path) -> Self {
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
    fn configured(&self) -> u16 {
        let text = self.files.read(Path::new(CONFIG)).unwrap().unwrap_or_default();
        let text = String::from_utf8(text).unwrap();
        let port = text.lines().find_map(|line| line.strip_prefix("Port "));
        port.map_or(22, |port| port.parse().unwrap())
    }

    fn start(&self, unit: &str) {
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

    fn stop(&self, unit: &str) {
        self.host.borrow_mut().active.remove(unit);
    }

    /// One operation: it may be the one that a fault befalls.
    fn operation<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let failed = || Err(SysError::new(what, "failed on purpose"));
        let done = match self.fate.next(what) {
            None => work(),
            Some(Mishap::Fails) => failed(),
            Some(Mishap::FailsLate) => work().and_then(|_| failed()),
            Some(Mishap::DiesBefore) => panic_any(Dead),
            Some(Mishap::DiesAfter) => {
                let _ = work();
                self.listen_in(what);
                panic_any(Dead)
            }
        };
        self.listen_in(what);
        done
    }

    /// Somebody listens at every instant between two operations.
    fn listen_in(&self, what: &str) {
        let mut host = self.host.borrow_mut();
        if host.active.values().all(Vec::is_empty) {
            host.deaf.push(what.to_owned());
        }
    }

    /// The power is cut, and comes back; recovery runs before sshd if it was installed.
    fn reboot(&self, id: &str) {
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
    fn state(&self) -> (BTreeMap<String, Image>, BTreeMap<String, Vec<u16>>) {
        let mut files = tree(&self.files, "/etc");
        files.extend(tree(&self.files, "/usr"));
        (files, self.host.borrow().active.clone())
    }
}

fn link(unit: &str) -> Image {
    Image::Symlink { target: Path::new("/lib/systemd/system").join(unit) }
}

fn file(path: &str, text: String) -> ConfigFile {
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
                self.start(unit);
            }
            Ok(())
        })
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

    fn log_in(&self, _: logins::Asked) -> JoinHandle<logins::Answer> {
        let refused =
            if self.unwelcome.get() { vec!["failed on purpose".to_owned()] } else { vec![] };
        std::thread::spawn(|| Ok((refused, Vec::new())))
    }

    fn runs(&self, _: &Path) -> Result<()> {
        Ok(())
    }

    fn listen(&self, unit: &str, _: &[String], at: &[SocketAddr]) -> Result<Process> {
        self.operation(&format!("listen {unit}"), || {
            let ports: Vec<u16> = at.iter().map(SocketAddr::port).collect();
            let mut host = self.host.borrow_mut();
            let taken = host
                .active
                .iter()
                .find(|(name, held)| *name != unit && held.iter().any(|port| ports.contains(port)));
            if let Some((name, _)) = taken {
                return Err(SysError::new(unit, format!("{name} holds the port")));
            }
            host.active.insert(unit.into(), ports);
            Ok(this_process())
        })
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

fn this_process() -> Process {
    Process::read(std::process::id()).unwrap()
}

/// Every path below a folder with its image.
fn tree(files: &Files, folder: &str) -> BTreeMap<String, Image> {
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

fn a_plan(observed: &Observed, port: u16) -> Plan {
    let text = format!("version: 1\nssh: {{port: {port}, socket: disabled}}\n");
    let spec = crate::spec::parse("spec.yaml", text.as_bytes()).unwrap();
    plan(&spec, observed).unwrap()
}

/// Writes the journal of a transaction that nobody has begun to work on.
fn begin(fake: &Fake, port: u16, confirm: Confirm) -> String {
    let observed = fake.observe().unwrap();
    let plan = a_plan(&observed, port);
    let terms = Terms {
        operator: None,
        from: None,
        trial: plan.trial.clone(),
        candidate: plan.candidate.clone(),
        options: plan.options.clone(),
        confirm,
        limit: 60,
        login: Vec::new(),
        changes: Vec::new(),
        spec: "spec.yaml".into(),
        undoes: None,
    };
    let begin = Record::Begin {
        format: journal::FORMAT,
        steps: plan.steps,
        expect: plan.expect,
        before: Box::new(observed),
        terms: Some(Box::new(terms)),
    };
    Journal::create(fake.files(), &begin).unwrap().id().to_owned()
}

/// Runs the worker; `None` where it died. One that fails is started again, as systemd does.
fn work(fake: &Fake, id: &str) -> Option<std::result::Result<Outcome, Error>> {
    for _ in 0..3 {
        match catch_unwind(AssertUnwindSafe(|| worker::work(fake, id))) {
            Ok(Err(_)) => {}
            Ok(outcome) => return Some(outcome),
            Err(thrown) => {
                assert!(thrown.is::<Dead>(), "a real panic: {:?}", fake.fate.log.borrow());
                return None;
            }
        }
    }
    Some(worker::work(fake, id))
}

/// Only real panics are shown.
fn quiet() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<Dead>() {
            usual(info);
        }
    }));
}

/// What the state is before and after, and how many operations lie between.
struct Ends {
    old: (BTreeMap<String, Image>, BTreeMap<String, Vec<u16>>),
    new: (BTreeMap<String, Image>, BTreeMap<String, Vec<u16>>),
    operations: usize,
}

fn ends(port: u16) -> Ends {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    let old = fake.state();
    let id = begin(&fake, port, Confirm::Probe);
    assert_eq!(
        work(&fake, &id).unwrap().unwrap(),
        Outcome::Applied,
        "{:?}",
        fake.fate.log.borrow()
    );
    assert_eq!(fake.host.borrow().active, BTreeMap::from([(SERVICE.into(), vec![port])]));
    if port != 22 {
        assert_eq!(fake.host.borrow().deaf, Vec::<String>::new());
    }
    Ends { old, new: fake.state(), operations: fake.fate.operations.get() }
}

fn committed(fake: &Fake, id: &str) -> bool {
    let decision = decision::read(fake.files(), id).unwrap();
    decision.is_some_and(|decision| decision.verdict == Verdict::Commit)
}

/// The transaction is over: closed, nothing of it is left, the state is whole.
fn assert_over(fake: &Fake, id: &str, ends: &Ends, new: bool, case: &str) {
    let records = journal::read(fake.files(), id).unwrap();
    assert!(!journal::is_open(&records), "{case}: open: {:?}", fake.fate.log.borrow());
    assert!(!fake.host.borrow().armed, "{case}: the guard is armed");
    let wanted = if new { &ends.new } else { &ends.old };
    assert_eq!(fake.state(), *wanted, "{case}: {:?}", fake.fate.log.borrow());
}

#[test]
fn whatever_fails_the_old_state_comes_back_and_somebody_listens() {
    for port in [2222, 22] {
        let ends = ends(port);
        assert!(ends.operations > 10, "the plan has to reach every operation");
        for fault in [Mishap::Fails, Mishap::FailsLate] {
            for at in 1..=ends.operations {
                let folder = tempfile::tempdir().unwrap();
                let fake = Fake::new(folder.path());
                fake.fate.fault.set(Some((at, fault)));
                let id = begin(&fake, port, Confirm::Probe);
                let outcome = work(&fake, &id).unwrap().unwrap();
                let case = format!("port {port}, operation {at} {fault:?}: {outcome:?}");
                let applied = outcome == Outcome::Applied;
                // After the proof only leftovers remain to be cleared.
                if applied {
                    fake.fate.fault.set(None);
                    work(&fake, &id).unwrap().unwrap();
                }
                assert_over(&fake, &id, &ends, applied, &case);
                if port != 22 {
                    let deaf = fake.host.borrow().deaf.clone();
                    assert_eq!(deaf, Vec::<String>::new(), "{case} {:?}", fake.fate.log.borrow());
                }
            }
        }
    }
}

#[test]
fn a_worker_that_dies_anywhere_is_gone_on_with() {
    quiet();
    for port in [2222, 22] {
        let ends = ends(port);
        for fault in [Mishap::DiesBefore, Mishap::DiesAfter] {
            for at in 1..=ends.operations {
                let folder = tempfile::tempdir().unwrap();
                let fake = Fake::new(folder.path());
                fake.fate.fault.set(Some((at, fault)));
                let id = begin(&fake, port, Confirm::Probe);
                assert!(work(&fake, &id).is_none(), "it dies");
                let new = committed(&fake, &id);
                let case = format!("port {port}, operation {at} {fault:?}, committed: {new}");
                work(&fake, &id).unwrap().unwrap();
                assert_over(&fake, &id, &ends, new, &case);
                if port != 22 {
                    let deaf = fake.host.borrow().deaf.clone();
                    assert_eq!(deaf, Vec::<String>::new(), "{case} {:?}", fake.fate.log.borrow());
                }
            }
        }
    }
}

/// It dies, and whoever goes on with it dies too.
#[test]
fn a_worker_may_die_twice() {
    quiet();
    let ends = ends(2222);
    for at in 1..=ends.operations {
        for again in ((at + 1)..=(at + ends.operations + 8)).step_by(3) {
            let folder = tempfile::tempdir().unwrap();
            let fake = Fake::new(folder.path());
            fake.fate.fault.set(Some((at, Mishap::DiesAfter)));
            let id = begin(&fake, 2222, Confirm::Probe);
            assert!(work(&fake, &id).is_none(), "it dies");
            fake.fate.fault.set(Some((again, Mishap::DiesAfter)));
            let _ = work(&fake, &id);
            fake.fate.fault.set(None);
            let new = committed(&fake, &id);
            work(&fake, &id).unwrap().unwrap();
            let case = format!("operations {at} and {again}, committed: {new}");
            assert_over(&fake, &id, &ends, new, &case);
            let deaf = fake.host.borrow().deaf.clone();
            assert_eq!(deaf, Vec::<String>::new(), "{case} {:?}", fake.fate.log.borrow());
        }
    }
}

#[test]
fn after_a_power_cut_the_boot_ends_in_one_state() {
    quiet();
    for port in [2222, 22] {
        let ends = ends(port);
        for fault in [Mishap::DiesBefore, Mishap::DiesAfter] {
            for at in 1..=ends.operations {
                let folder = tempfile::tempdir().unwrap();
                let fake = Fake::new(folder.path());
                fake.fate.fault.set(Some((at, fault)));
                let id = begin(&fake, port, Confirm::Probe);
                assert!(work(&fake, &id).is_none(), "it dies");
                let new = committed(&fake, &id);
                fake.reboot(&id);
                let case = format!("port {port}, operation {at} {fault:?}, committed: {new}");
                work(&fake, &id).unwrap().unwrap();
                assert_over(&fake, &id, &ends, new, &case);
                fake.reboot(&id);
                assert_over(&fake, &id, &ends, new, &case);
            }
        }
    }
}

/// Recovery has put every file on the new side; then going forward fails after all. Everything that
/// recovery wrote goes back too.
#[test]
fn after_a_power_cut_the_way_forward_may_fail() {
    quiet();
    for port in [2222, 22] {
        let ends = ends(port);
        for at in 1..=ends.operations {
            let folder = tempfile::tempdir().unwrap();
            let fake = Fake::new(folder.path());
            fake.fate.fault.set(Some((at, Mishap::DiesAfter)));
            let id = begin(&fake, port, Confirm::Probe);
            assert!(work(&fake, &id).is_none(), "it dies");
            let open = journal::is_open(&journal::read(fake.files(), &id).unwrap());
            fake.reboot(&id);
            let new = committed(&fake, &id);
            if new {
                let records = journal::read(fake.files(), &id).unwrap();
                let undone: Vec<PathBuf> =
                    changed(&records).0.into_iter().map(|(path, _)| path).collect();
                for path in [CONFIG, WANTS, SOCKETS] {
                    assert!(undone.iter().any(|undone| undone == Path::new(path)), "{path}");
                }
            }
            // The proof fails, from now on until the files are the old ones again.
            fake.doubtful.set(true);
            let outcome = work(&fake, &id).unwrap().unwrap();
            let case = format!("port {port}, operation {at}, committed: {new}: {outcome:?}");
            assert_eq!(outcome == Outcome::Applied, !open, "{case}");
            assert_over(&fake, &id, &ends, !open, &case);
        }
    }
}

/// The port answers, and nobody could log in: no decision to commit is ever made.
#[test]
fn who_could_not_log_in_is_not_shut_out() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    fake.unwelcome.set(true);
    let ends = Ends { old: fake.state(), new: fake.state(), operations: 0 };
    let id = begin(&fake, 2222, Confirm::Probe);
    let outcome = work(&fake, &id).unwrap().unwrap();
    assert_eq!(outcome, Outcome::RolledBack { cause: "failed on purpose".to_owned() });
    assert!(!committed(&fake, &id));
    assert_over(&fake, &id, &ends, false, "unwelcome");
}

/// The way back fails too: nobody calls that success, and the rescue listens on the old port.
#[test]
fn a_way_back_that_fails_leaves_a_way_in() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    let id = begin(&fake, 2222, Confirm::Probe);
    // The new owner holds the port; then its proof fails, and so does the old owners' start.
    fake.stubborn.set(true);
    let outcome = worker::work(&fake, &id).unwrap();
    assert!(matches!(outcome, Outcome::NeedsOperator { .. }), "{outcome:?}");
    let rescue = fake.host.borrow().active.get(&bridge::unit(&id, Role::Rescue)).cloned();
    assert_eq!(rescue, Some(vec![22]), "{:?}", fake.fate.log.borrow());
    assert!(journal::is_open(&journal::read(fake.files(), &id).unwrap()));
    // The next try finds nothing in its way.
    fake.stubborn.set(false);
    assert!(matches!(worker::work(&fake, &id), Ok(Outcome::RolledBack { .. })));
    assert!(fake.host.borrow().active.contains_key(SOCKET));
    assert_eq!(fake.host.borrow().deaf, Vec::<String>::new());
}
