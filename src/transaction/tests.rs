//! A fake host that fails at any chosen operation: whatever fails, the files come back.
#![allow(clippy::disallowed_methods)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::plan::Expectation;
use crate::sys::process::Process;
use crate::sys::units::Unit;
use crate::sys::{Image, Result as SysResult, files::Meta};

/// A host in a temporary folder with two units, which fails its n-th operation.
struct Fake {
    files: Files,
    active: RefCell<BTreeMap<String, bool>>,
    operations: Cell<usize>,
    fail_at: Option<usize>,
    log: RefCell<Vec<String>>,
}

const LINK: &str = "/etc/systemd/system/multi-user.target.wants/ssh.service";

impl Fake {
    fn new(root: &Path, fail_at: Option<usize>) -> Self {
        for folder in ["etc/ssh", "etc/systemd/system", "run", "var/lib"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("etc/ssh/sshd_config"), "Port 22\n").unwrap();
        Self {
            files: Files::at(root),
            active: RefCell::new(BTreeMap::from([
                ("ssh.socket".into(), true),
                ("ssh.service".into(), false),
            ])),
            operations: Cell::new(0),
            fail_at,
            log: RefCell::default(),
        }
    }

    fn operation(&self, what: String) -> SysResult<()> {
        self.log.borrow_mut().push(what.clone());
        self.operations.set(self.operations.get() + 1);
        if Some(self.operations.get()) == self.fail_at {
            return Err(SysError::new(what, "failed on purpose"));
        }
        Ok(())
    }
}

impl Machine for Fake {
    fn files(&self) -> &Files {
        &self.files
    }

    fn job(&self, method: &'static str, unit: &str, _: Duration) -> SysResult<()> {
        self.operation(format!("{method} {unit}"))?;
        self.active.borrow_mut().insert(unit.into(), method != "StopUnit");
        Ok(())
    }

    fn unit(&self, name: &str) -> SysResult<Unit> {
        let active = self.active.borrow().get(name).copied().unwrap_or_default();
        Ok(Unit {
            name: name.into(),
            load: "loaded".into(),
            active: if active { "active" } else { "inactive" }.into(),
            ..Unit::default()
        })
    }

    fn enable(&self, unit: &str) -> SysResult<()> {
        self.files.create_folders(Path::new(LINK).parent().unwrap(), 0o755)?;
        self.files.put(Path::new(LINK), &Image::Symlink { target: "/x".into() })?;
        self.operation(format!("enable {unit}"))
    }

    fn disable(&self, unit: &str) -> SysResult<()> {
        self.operation(format!("disable {unit}"))
    }

    fn unmask(&self, unit: &str) -> SysResult<()> {
        self.operation(format!("unmask {unit}"))
    }

    fn reload(&self) -> SysResult<()> {
        self.operation("reload".into())
    }

    fn reset_failed(&self, unit: &str) -> SysResult<()> {
        // Failing here is forgiven, so it is no operation of its own.
        self.log.borrow_mut().push(format!("reset {unit}"));
        Ok(())
    }

    fn end(&self, process: &Process) -> SysResult<()> {
        self.operation(format!("end {}", process.pid))
    }

    fn await_listeners(&self, _: &Expectation, _: Duration) -> SysResult<()> {
        self.operation("await".into())
    }

    fn prove(
        &self,
        _: &Expectation,
    ) -> std::result::Result<(Vec<Fault>, Vec<String>), crate::error::Error> {
        self.operation("prove".into())?;
        Ok((Vec::new(), Vec::new()))
    }

    fn observe(&self) -> std::result::Result<Observed, crate::error::Error> {
        let target = match self.files.image(Path::new(LINK))? {
            Image::Symlink { target } => Some(target),
            _ => None,
        };
        Ok(Observed {
            service: self.unit("ssh.service")?,
            socket: self.unit("ssh.socket")?,
            links: BTreeMap::from([(LINK.into(), target)]),
            ..Observed::default()
        })
    }
}

struct Quiet;

impl Progress for Quiet {
    fn step(&mut self, _: usize, _: usize, _: &Step) {}
    fn note(&mut self, _: &str) {}
}

fn a_plan() -> Plan {
    let file = |text: &str| Image::File { content: text.into(), meta: Meta::root(0o644) };
    let put = |path: &str, image| Op::Put { path: path.into(), image };
    let ops = [
        put("/etc/ssh/sshd_config", file("Port 2222\n")),
        put("/etc/ssh/new.conf", file("Banner none\n")),
        Op::Stop("ssh.socket".into()),
        put("/etc/systemd/system/d", Image::Directory { meta: Meta::root(0o755) }),
        put("/etc/systemd/system/d/x.conf", file("[Socket]\n")),
        Op::Disable("ssh.socket".into()),
        Op::Enable("ssh.service".into()),
        Op::Reload,
        Op::Start("ssh.service".into()),
        Op::AwaitListeners,
    ];
    let steps = ops.into_iter().map(|op| Step { op, why: String::new() }).collect();
    Plan { steps, ..Plan::default() }
}

/// Every path below /etc with its image.
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

fn running(fake: &Fake) -> Vec<String> {
    let active = fake.active.borrow();
    active.iter().filter(|(_, active)| **active).map(|(name, _)| name.clone()).collect()
}

fn apply_on(fake: &Fake) -> Outcome {
    let lock = Lock::take(fake.files()).unwrap();
    let observed = fake.observe().unwrap();
    apply(fake, &lock, &observed, &a_plan(), Duration::from_secs(60), &mut Quiet).unwrap().1
}

#[test]
fn a_plan_that_works_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path(), None);
    assert_eq!(apply_on(&fake), Outcome::Applied { notes: vec![] });
    assert_eq!(running(&fake), ["ssh.service"]);
    assert!(journal::find_open(fake.files()).unwrap().is_none());
}

#[test]
fn whatever_operation_fails_the_state_from_before_comes_back() {
    let total = {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::new(folder.path(), None);
        apply_on(&fake);
        fake.operations.get()
    };
    assert!(total >= 7, "the plan has to reach every operation");
    for fail_at in 1..=total {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::new(folder.path(), Some(fail_at));
        let before = tree(fake.files(), "/etc");
        let outcome = apply_on(&fake);
        assert!(matches!(outcome, Outcome::RolledBack { .. }), "{fail_at}: {outcome:?}");
        assert_eq!(tree(fake.files(), "/etc"), before, "operation {fail_at}");
        assert_eq!(running(&fake), ["ssh.socket"], "operation {fail_at}: {:?}", fake.log.borrow());
    }
}

#[test]
fn a_run_that_died_is_taken_back_by_the_next_one() {
    for dead_after in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::new(folder.path(), None);
        let before = tree(fake.files(), "/etc");
        die_after(&fake, dead_after);
        let lock = Lock::take(fake.files()).unwrap();
        let (_, outcome) = resolve_open(&fake, &lock, &mut Quiet).unwrap().unwrap();
        assert!(matches!(outcome, Outcome::RolledBack { .. }), "{dead_after}: {outcome:?}");
        assert_eq!(tree(fake.files(), "/etc"), before, "died after {dead_after}");
        assert_eq!(running(&fake), ["ssh.socket"]);
        assert!(resolve_open(&fake, &lock, &mut Quiet).unwrap().is_none());
    }
}

/// What a process leaves that is killed between a step's record and its end.
fn die_after(fake: &Fake, steps: usize) {
    let plan = a_plan();
    let observed = fake.observe().unwrap();
    let begin = Record::Begin {
        format: journal::FORMAT,
        steps: plan.steps.clone(),
        expect: plan.expect.clone(),
        before: Box::new(observed.clone()),
    };
    let mut journal = Journal::create(fake.files(), &begin).unwrap();
    for (index, step) in plan.steps.iter().enumerate().take(steps + 1) {
        let before = rollback::images(fake, &observed, &step.op).unwrap();
        journal.write(&Record::Step { index, op: step.op.clone(), before }).unwrap();
        if index < steps {
            execute(fake, &plan, &step.op, Duration::from_secs(1)).unwrap();
        }
    }
}

#[test]
fn a_rollback_that_fails_is_never_called_success() {
    let folder = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(folder.path(), None);
    // Operation 8 is the proof; the start of ssh.socket on the way back fails too.
    fake.fail_at = Some(9);
    let lock = Lock::take(fake.files()).unwrap();
    let observed = fake.observe().unwrap();
    let mut plan = a_plan();
    plan.steps.push(Step { op: Op::Start("broken.service".into()), why: String::new() });
    let broken = Broken(fake);
    let (_, outcome) =
        apply(&broken, &lock, &observed, &plan, Duration::from_secs(60), &mut Quiet).unwrap();
    assert!(matches!(outcome, Outcome::NeedsOperator { .. }), "{outcome:?}");
    assert!(journal::find_open(broken.files()).unwrap().is_some(), "the journal stays open");
}

/// A host on which nothing starts any more.
struct Broken(Fake);

impl Machine for Broken {
    fn files(&self) -> &Files {
        self.0.files()
    }
    fn job(&self, method: &'static str, unit: &str, limit: Duration) -> SysResult<()> {
        if method == "StartUnit" {
            return Err(SysError::new(format!("{method} {unit}"), "failed on purpose"));
        }
        self.0.job(method, unit, limit)
    }
    fn unit(&self, name: &str) -> SysResult<Unit> {
        self.0.unit(name)
    }
    fn enable(&self, unit: &str) -> SysResult<()> {
        self.0.enable(unit)
    }
    fn disable(&self, unit: &str) -> SysResult<()> {
        self.0.disable(unit)
    }
    fn unmask(&self, unit: &str) -> SysResult<()> {
        self.0.unmask(unit)
    }
    fn reload(&self) -> SysResult<()> {
        self.0.reload()
    }
    fn reset_failed(&self, unit: &str) -> SysResult<()> {
        self.0.reset_failed(unit)
    }
    fn end(&self, process: &Process) -> SysResult<()> {
        self.0.end(process)
    }
    fn await_listeners(&self, expect: &Expectation, limit: Duration) -> SysResult<()> {
        self.0.await_listeners(expect, limit)
    }
    fn prove(
        &self,
        expect: &Expectation,
    ) -> std::result::Result<(Vec<Fault>, Vec<String>), crate::error::Error> {
        self.0.prove(expect)
    }
    fn observe(&self) -> std::result::Result<Observed, crate::error::Error> {
        self.0.observe()
    }
}
