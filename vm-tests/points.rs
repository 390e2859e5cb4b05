//! Faults at named points: a build with the feature `faults` dies, fails or hangs at each boundary of a
//! step, in all four phases: apply, confirm, rollback, recovery. Some of the points in every test run,
//! all of them with `vm-tests/campaign`.

use std::path::PathBuf;

use crate::machine::{Machine, Suite};
use crate::operator::MOVE;
use crate::state::{Whole, assert_closed};

const ACTIONS: [&str; 3] = ["kill", "error", "hang"];
const FOLDER: &str = "/var/lib/harden-faults";

/// The binary with the points.
fn binary() -> PathBuf {
    let path = std::env::var_os("HARDEN_FAULTS_BIN");
    PathBuf::from(path.expect("HARDEN_FAULTS_BIN: run these by vm-tests/test"))
}

/// How a case begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// harden confirms by itself.
    Apply,
    /// A person confirms.
    Confirm,
    /// The proof fails, so it is taken back.
    Rollback,
    /// The power is cut in the middle of making it permanent.
    RecoverForward,
    /// The power is cut in the middle of taking it back.
    RecoverBackward,
}

struct Points {
    machine: Machine,
    old: Whole,
    new: Whole,
    ends: [usize; 2],
}

impl Points {
    fn new() -> Self {
        let suite = Suite::Trixie;
        let machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
        machine.root().install(&binary(), "/usr/local/bin/harden");
        machine.spec(MOVE);
        machine.ssh(22, "true").ok();
        let old = Whole::of(&machine);
        machine.apply().code(0);
        let new = Whole::of(&machine);
        machine.exec("harden rollback -y").code(0);
        Self { machine, old, new, ends: [0, 0] }
    }

    fn plan(&self, lines: &[String]) {
        self.machine.sh(&format!("rm -rf {FOLDER}; mkdir -p {FOLDER}"));
        self.machine.root().write(&format!("{FOLDER}/plan"), &format!("{}\n", lines.join("\n")));
    }

    /// Begins a case with faults to come; the faults of the phase itself come first.
    fn begin(&mut self, phase: Phase, fault: Option<String>) {
        let lead = match phase {
            Phase::Apply | Phase::Confirm => None,
            Phase::Rollback => Some("permanent.proof error"),
            Phase::RecoverForward => Some("step-6.after hang"),
            Phase::RecoverBackward => Some("permanent.proof error\nrollback.path-2 hang"),
        };
        let lead = lead.map(str::to_owned);
        self.plan(&lead.into_iter().chain(fault).collect::<Vec<_>>());
        let by = if phase == Phase::Confirm { "operator" } else { "probe" };
        self.machine.start_apply(&format!("--timeout 4s --confirm {by}"));
        match phase {
            Phase::Apply | Phase::Rollback => {}
            Phase::Confirm => {
                let seen = "test -e apply.end || grep -qs trial.waiting";
                self.machine.wait_for("the trial", &format!("{seen} {FOLDER}/passed"));
                self.machine.ssh(2222, "timeout 3 harden confirm");
            }
            Phase::RecoverForward => {
                self.machine.wait_for("hang", &format!("grep -q step-6.after {FOLDER}/passed"));
                self.machine.cut_power_and_wait(60);
            }
            Phase::RecoverBackward => {
                self.machine.wait_for("hang", &format!("grep -q rollback.path-2 {FOLDER}/passed"));
                self.machine.cut_power_and_wait(60);
            }
        }
    }

    /// Every point that a phase passes.
    fn points_of(&mut self, phase: Phase) -> Vec<String> {
        self.begin(phase, None);
        self.settle(phase, "no fault");
        let passed = self.machine.root().read(&format!("{FOLDER}/passed"));
        let mut points: Vec<String> = Vec::new();
        for point in passed.lines() {
            let of_phase = match phase {
                Phase::Apply => true,
                Phase::Confirm => point.starts_with("decision"),
                Phase::Rollback => point.starts_with("rollback"),
                Phase::RecoverForward | Phase::RecoverBackward => point.starts_with("recovery"),
            };
            if of_phase && !points.iter().any(|known| known == point) {
                points.push(point.to_owned());
            }
        }
        println!("{phase:?}: {} points", points.len());
        points
    }

    /// Whoever comes next goes on; the state is one of the two, and the one that was decided.
    fn settle(&mut self, phase: Phase, what: &str) {
        let what = format!("{phase:?}, {what}");
        let machine = &self.machine;
        // Before the guard is armed only systemd ends a worker that hangs: in this build after a minute.
        let tries = if what.ends_with(" hang") { 1800 } else { 900 };
        let wait = |test: &str| {
            let loops =
                format!("for i in $(seq {tries}); do {test} && exit; sleep 0.1; done; exit 1");
            let ended = machine.exec(&loops).code == 0;
            assert!(ended, "{what}: no end: {}", machine.exec("harden history | tail").stdout);
        };
        // Killed before systemd had anything to start again: the next harden clears up.
        if what.contains("front.") {
            wait(&format!("grep -q front. {FOLDER}/passed"));
            machine.exec("sleep 0.2; pkill -9 -f '^harden apply'; harden rollback");
        } else if matches!(phase, Phase::Apply | Phase::Confirm | Phase::Rollback) {
            wait("test -e apply.end");
        }
        wait("harden status | grep -q 'no transaction is open'");
        assert_closed(machine);
        machine.exec("pkill -9 -f '^harden (apply|confirm)'");
        let id = machine.sh("ls /var/lib/harden | sed -n 's/.journal$//p' | tail -n 1");
        let applied = machine.sh("harden history").contains(&format!("{} applied", id.trim()));
        let decision = machine.root().read(&format!("/var/lib/harden/{}.decision", id.trim()));
        if what.ends_with(" kill") && phase != Phase::Rollback && phase != Phase::RecoverBackward {
            assert_eq!(applied, decision.contains("commit"), "{what}");
        }
        let now = Whole::of(machine);
        assert_eq!(now, *if applied { &self.new } else { &self.old }, "{what}");
        let port = if applied { 2222 } else { 22 };
        assert_eq!(machine.ssh(port, "echo in").stdout, "in\n", "{what}");
        self.ends[usize::from(applied)] += 1;
        if applied {
            let passed = machine.root().read(&format!("{FOLDER}/passed"));
            machine.sh(&format!("rm -rf {FOLDER}"));
            machine.exec("harden rollback -y").code(0);
            assert_eq!(Whole::of(machine), self.old, "{what}: undone");
            machine.root().write(&format!("{FOLDER}/passed"), &passed);
        }
    }
}

/// Faults at every `stride`-th point of some phases, the actions in turn; with a stride of 1 every
/// action at every point.
fn faults(phases: &[Phase], actions: &[&str], stride: usize) {
    let mut points = Points::new();
    let mut count = 0;
    for phase in phases {
        let all = points.points_of(*phase);
        for (turn, point) in all.iter().skip(stride / 2).step_by(stride).enumerate() {
            for (number, action) in actions.iter().enumerate() {
                if stride > 1 && turn % actions.len() != number {
                    continue;
                }
                let fault = format!("{point} {action}");
                println!("{phase:?}: {fault}");
                points.begin(*phase, Some(fault.clone()));
                points.settle(*phase, &fault);
                count += 1;
            }
        }
    }
    println!("{count} faults: {} ended old, {} new", points.ends[0], points.ends[1]);
}

#[test]
fn faults_at_some_points_of_apply() {
    faults(&[Phase::Apply], &["kill", "error"], 5);
}

#[test]
fn faults_at_some_points_of_confirm() {
    faults(&[Phase::Confirm], &["kill", "error"], 1);
}

#[test]
fn faults_at_some_points_of_the_rollback() {
    faults(&[Phase::Rollback], &["kill", "error"], 5);
}

#[test]
fn faults_at_some_points_of_recovery() {
    faults(&[Phase::RecoverForward, Phase::RecoverBackward], &["kill", "error"], 5);
}

/// Somebody wants it back who is faster than the process that begins it: that has the lock still, and is
/// killed only now.
#[test]
fn a_rollback_while_it_begins() {
    let points = Points::new();
    let machine = &points.machine;
    points.plan(&["front.pinned hang".to_owned()]);
    machine.start_apply("--confirm operator");
    machine.wait_for("the journal", &format!("grep -qs front.pinned {FOLDER}/passed"));
    machine.sh("(harden rollback; echo $? > back.end) > back.log 2>&1 < /dev/null &");
    machine.exec("sleep 1; pkill -9 -f '^harden apply'");
    machine.wait_for("the end", "test -s back.end");
    assert_eq!(machine.root().read("/root/back.end"), "0\n", "{}", machine.sh("cat back.log"));
    assert_closed(machine);
    assert_eq!(Whole::of(machine), points.old);
}

/// Neither the guard nor the next boot would come: only systemd knows that it hangs.
#[test]
fn a_hang_before_the_guard_is_armed() {
    let mut points = Points::new();
    let fault = "guard.units hang";
    points.begin(Phase::Apply, Some(fault.to_owned()));
    points.settle(Phase::Apply, fault);
    assert_eq!(points.ends, [1, 0]);
}

#[test]
fn hangs_at_some_points() {
    faults(&[Phase::Apply], &["hang"], 20);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn faults_at_every_point_of_the_way_there() {
    faults(&[Phase::Apply, Phase::Confirm], &ACTIONS, 1);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn faults_at_every_point_of_the_way_back() {
    faults(&[Phase::Rollback, Phase::RecoverForward, Phase::RecoverBackward], &ACTIONS, 1);
}

/// A release has none of this.
#[test]
fn a_release_has_no_faults() {
    let release = std::fs::read(crate::machine::binary()).unwrap();
    let holds = |bytes: &[u8]| bytes.windows(13).any(|window| window == b"harden-faults");
    assert!(!holds(&release));
    assert!(holds(&std::fs::read(binary()).unwrap()));
}
