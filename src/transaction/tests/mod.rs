//! A model of a host, on which a transaction fails, dies or loses power at every single operation:
//! afterwards the state is the old one or the new one, whole, and at no instant nobody listened.
#![allow(clippy::disallowed_methods)]

mod host;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use self::host::*;
use super::decision::Verdict;
use super::journal::{Journal, Record, Terms};
use super::machine::Machine;
use super::*;
use crate::error::Error;
use crate::observe::Observed;
use crate::plan::{Plan, plan};
use crate::spec::Confirm;
use crate::step::Role;
use crate::sys::Image;

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
        at: None,
        trial: plan.trial.clone(),
        candidate: plan.candidate.clone(),
        options: plan.options.clone(),
        confirm,
        limit: 60,
        login: Vec::new(),
        changes: Vec::new(),
        spec: "spec.yaml".into(),
        undoes: None,
        admins: Vec::new(),
        forced: Vec::new(),
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

/// The new owner answers, and takes no key that its files take; where the old one does not either, a rescue does. Whom
/// the unit has turned away all along is no fault of a change.
#[test]
fn whom_the_new_owner_turns_away_gets_in() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    let ends = Ends { old: fake.state(), new: fake.state(), operations: 0 };
    fake.turns_away.set(1);
    let id = begin(&fake, 2222, Confirm::Probe);
    let outcome = work(&fake, &id).unwrap().unwrap();
    let Outcome::RolledBack { cause } = &outcome else { panic!("{outcome:?}") };
    assert!(cause.contains("no key of root"), "{cause}");
    assert!(committed(&fake, &id));
    assert_over(&fake, &id, &ends, false, "turned away");

    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    fake.turns_away.set(2);
    let id = begin(&fake, 2222, Confirm::Probe);
    let outcome = worker::work(&fake, &id).unwrap();
    assert!(matches!(outcome, Outcome::NeedsOperator { .. }), "{outcome:?}");
    let rescue = fake.host.borrow().active.get(&bridge::unit(&id, Role::Rescue)).cloned();
    assert_eq!(rescue, Some(vec![22]), "{:?}", fake.fate.log.borrow());

    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    fake.is_asked.set(true);
    fake.turns_away.set(99);
    let id = begin(&fake, 2222, Confirm::Probe);
    assert_eq!(worker::work(&fake, &id).unwrap(), Outcome::Applied);
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

/// Who came too late to decide, and was killed then, leaves a file: the next harden takes it away, unless its
/// transaction is open.
#[test]
fn decisions_that_were_never_made_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::new(folder.path());
    let id = begin(&fake, 2222, Confirm::Probe);
    let left = Path::new(STATE).join(format!("..{id}.decision.harden-new.0e.harden-new"));
    let leave = || fake.files().scratch(&left, b"x").unwrap();
    leave();
    leftovers::clear_up(&fake).unwrap();
    assert!(fake.files().exists(&left), "it is open");
    work(&fake, &id).unwrap().unwrap();
    leave();
    leftovers::clear_up(&fake).unwrap();
    assert!(!fake.files().exists(&left));
}
