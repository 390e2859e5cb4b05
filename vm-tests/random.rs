//! Faults at random instants: everything of harden's is killed, once or again and again, or the power
//! is cut; and a confirmation races with the guard. The change goes there and back again, so that
//! each run begins where the last one ended. A few runs in every test run, thousands of them with
//! `vm-tests/campaign`.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{Machine, Session, Suite, V4};
use crate::operator::socket_system;
use crate::state::{Whole, assert_closed, list_units, wait_until_idle};

/// What happens in the middle of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Every process of harden's is killed.
    Kill,
    /// And so is whoever goes on with it.
    KillAgain,
    /// And so are the listeners of the transaction.
    KillAll,
    /// Everything is gone at once.
    PowerCut,
}

const FAULTS: [Fault; 4] = [Fault::Kill, Fault::KillAgain, Fault::KillAll, Fault::PowerCut];

/// Every harden, by whatever name; `[.]` keeps the pattern from matching itself.
const KILL: &str =
    "pkill -9 -f '(^|/|[.])harden (apply|rollback|confirm|worker|guard|recover)( |$)'";
const KILL_LISTENERS: &str = "pkill -9 -f '^/usr/sbin/sshd -D -f /run/[h]arden/'";

/// How the runs with one fault ended.
#[derive(Debug, Default, Clone)]
struct Tally {
    old: usize,
    new: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} old, {} new, 0 mixed", self.old, self.new)
    }
}

/// The 95 % upper bound of a probability that was never met in n independent runs.
pub(crate) fn bound(runs: usize) -> f64 {
    1.0 - 0.05_f64.powf(1.0 / f64::from(u32::try_from(runs).unwrap()))
}

/// A machine on which the same change is made and undone.
struct Ground {
    machine: Machine,
    random: fastrand::Rng,
    /// Before the change, and after it.
    states: [Whole; 2],
    moved: bool,
    /// How long an undisturbed change takes.
    span: Duration,
    session: Session,
    tallies: [Tally; FAULTS.len()],
}

impl Ground {
    fn new(suite: Suite, seed: u64) -> Self {
        let machine = socket_system(suite);
        machine.root().write("/root/same.yaml", "version: 1\nssh: {}\n");
        machine.ssh(22, "true").ok();
        let old = Whole::of(&machine);
        let started = Instant::now();
        machine.exec("harden apply -y spec.yaml").code(0);
        let span = started.elapsed().mul_f64(1.1);
        let states = [old, Whole::of(&machine)];
        machine.exec("harden rollback -y").code(0);
        assert_eq!(Whole::of(&machine), states[0]);
        let session = machine.session(22);
        let random = fastrand::Rng::with_seed(seed);
        println!("{suite:?}: seed {seed}, faults within {span:?}");
        Self { machine, random, states, moved: false, span, session, tallies: Default::default() }
    }

    /// The port before this change, and the one after it.
    fn ports(&self) -> (u16, u16) {
        if self.moved { (2222, 22) } else { (22, 2222) }
    }

    fn sometime(&mut self, within: Duration) -> Duration {
        within.mul_f64(self.random.f64())
    }

    /// Begins the change in the direction that is next.
    fn begin(&self, options: &str) {
        let verb = if self.moved { "rollback" } else { "apply spec.yaml" };
        self.machine.sh(&format!("setsid harden {verb} -y {options} > run.log 2>&1 < /dev/null &"));
    }

    /// The transaction that is the newest.
    fn id(&self) -> String {
        self.machine
            .sh("ls /var/lib/harden | sed -n 's/.journal$//p' | tail -n 1")
            .trim()
            .to_owned()
    }

    /// One change with one fault in the middle of it.
    fn run(&mut self, fault: Fault) {
        let (_, after) = self.ports();
        let by_person = self.random.u8(..3) == 0;
        let earlier = self.id();
        self.begin(if by_person { "--confirm operator --timeout 20s" } else { "--confirm probe" });
        let mut person = by_person.then(|| {
            let late = self.sometime(self.span).as_secs_f64();
            let login = self.machine.ssh_args(V4, after, "root").join(" ");
            let command = format!("sleep {late}; ip {login} harden confirm");
            let mut sh = Command::new("setsid");
            sh.args(["sh", "-c", &command]).stdin(Stdio::null()).stderr(Stdio::null());
            sh.spawn().unwrap()
        });
        let at = self.sometime(self.span);
        std::thread::sleep(at);
        self.befall(fault);
        if let Some(person) = &mut person {
            let _ = person.kill();
            let _ = person.wait();
        }
        let what = format!("{fault:?} after {at:?}, by a person: {by_person}");
        let changed = self.settle(&earlier, &what);
        let tally = &mut self.tallies[FAULTS.iter().position(|other| *other == fault).unwrap()];
        if changed {
            tally.new += 1;
        } else {
            tally.old += 1;
        }
        if fault == Fault::PowerCut {
            self.session = self.machine.session(self.ports().0);
        }
        assert!(self.session.lives(), "{what}: an open session died");
    }

    fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => drop(self.machine.exec(KILL)),
            Fault::KillAgain => {
                for _ in 0..self.random.u8(2..4) {
                    self.machine.exec(KILL);
                    let pause = self.sometime(self.span / 2);
                    std::thread::sleep(pause);
                }
            }
            Fault::KillAll => drop(self.machine.exec(&format!("{KILL}; {KILL_LISTENERS}"))),
            Fault::PowerCut => self.machine.cut_power(),
        }
    }

    /// Waits for the end, and holds the state against both states; says whether it is the new one.
    fn settle(&mut self, earlier: &str, what: &str) -> bool {
        // One that was not killed goes on to its end.
        self.machine.wait_for("end", &format!("! {}", KILL.replace("pkill -9", "pgrep")));
        let id = self.id();
        if id == earlier {
            // It was killed before it had begun.
            assert_eq!(Whole::of(&self.machine), self.states[usize::from(self.moved)], "{what}");
            return false;
        }
        let journal = format!("/var/lib/harden/{id}.journal");
        // Killed before systemd had a worker to start again, or cut off before the guard was armed:
        // nothing was changed, and the next harden clears up.
        let units = list_units();
        let nobody = format!(
            "! harden status | grep -q 'no transaction' && ! {units} | grep -q '[.]service'"
        );
        if self.machine.exec(&format!("{nobody} && sleep 0.5 && {nobody}")).code == 0 {
            let records = self.machine.root().read(&journal);
            assert!(!records.contains("\"armed\""), "{what}: nobody goes on with {id}");
            assert_eq!(Whole::of(&self.machine), self.states[usize::from(self.moved)], "{what}");
            self.machine.exec("harden rollback").code(0);
        }
        wait_until_idle(&self.machine);
        // What a power cut leaves of a closed transaction, the next harden clears away.
        let again = self.machine.exec("harden apply -y --output json same.yaml").code(0);
        assert!(again.stdout.contains("\"converged\""), "{what}: {again:?}");
        assert_closed(&self.machine);
        let now = Whole::of(&self.machine);
        let old = self.states[usize::from(self.moved)] == now;
        let new = self.states[usize::from(!self.moved)] == now;
        assert!(old || new, "{what}: a mixture: {now:#?}");
        let decision = self.machine.root().read(&format!("/var/lib/harden/{id}.decision"));
        let told = || self.machine.sh("harden history | tail -n 12");
        assert_eq!(new, decision.contains("commit"), "{what}: {decision}\n{}", told());
        self.moved ^= new;
        let (port, _) = self.ports();
        let mut logins = (0..3).map(|_| self.machine.ssh(port, "echo in").stdout);
        assert!(logins.any(|login| login == "in\n"), "{what}: no login");
        new
    }

    /// A confirmation and the guard, at the same instant; says whether the confirmation won.
    fn race(&mut self) -> bool {
        let (_, after) = self.ports();
        let earlier = self.id();
        self.begin("--confirm operator --timeout 60s");
        self.machine.wait_for("the confirmation", "harden status | grep -q 'to confirm:'");
        let id = self.id();
        let mut person = self.machine.session_with(after, "sh");
        person.say("echo ready");
        assert_eq!(person.hear(), "ready");
        let guard = format!("sleep 0.05; /var/lib/harden/{id}.harden guard {id}");
        let guard = std::thread::scope(|scope| {
            let guard = scope.spawn(|| self.machine.exec(&guard));
            std::thread::sleep(Duration::from_millis(self.random.u64(35..75)));
            person.say("harden confirm 2>/dev/null; echo $?");
            guard.join().unwrap()
        });
        let said = person.hear();
        guard.code(0);
        let confirmed = self.settle(&earlier, "the race");
        assert_eq!(said, if confirmed { "0" } else { "1" }, "what confirm said");
        confirmed
    }
}

/// So many runs on one machine.
fn campaign(suite: Suite, runs: usize, seed: u64) -> [Tally; FAULTS.len()] {
    let mut ground = Ground::new(suite, seed);
    for number in 0..runs {
        ground.run(FAULTS[number % FAULTS.len()]);
        if number % 50 == 49 {
            // Still so after one more boot.
            ground.machine.cut_power();
            assert_eq!(Whole::of(&ground.machine), ground.states[usize::from(ground.moved)]);
            ground.session = ground.machine.session(ground.ports().0);
            println!("{suite:?}: {} runs", number + 1);
        }
    }
    ground.tallies
}

pub(crate) fn seed() -> u64 {
    let given = std::env::var("HARDEN_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| fastrand::u64(..))
}

fn races(count: usize) {
    let mut ground = Ground::new(Suite::Trixie, seed());
    let won = (0..count).filter(|_| ground.race()).count();
    println!("of {count} races the confirmation won {won}, the guard {}", count - won);
    assert!(won > 0 && won < count, "it was no race");
}

#[test]
fn some_faults_at_random() {
    campaign(Suite::Trixie, 16, seed());
}

#[test]
fn confirm_and_guard_race() {
    races(12);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn five_hundred_races() {
    races(500);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn thousands_of_faults_at_random() {
    let runs = std::env::var("HARDEN_RUNS").ok().and_then(|runs| runs.parse().ok());
    let runs: usize = runs.unwrap_or(3000);
    let suites = [Suite::Trixie, Suite::Bookworm, Suite::Bullseye, Suite::Testing];
    let tallies: Vec<_> = std::thread::scope(|scope| {
        let machines = suites.map(|suite| {
            scope.spawn(move || (suite, campaign(suite, runs.div_ceil(suites.len()), seed())))
        });
        machines.into_iter().map(|machine| machine.join().unwrap()).collect()
    });
    let mut all = [0, 0];
    for (suite, tallies) in tallies {
        for (fault, tally) in FAULTS.iter().zip(tallies) {
            println!("{suite:?} {fault:?}: {tally}");
            all = [all[0] + tally.old, all[1] + tally.new];
        }
    }
    let runs = all[0] + all[1];
    println!(
        "{runs} runs: {} old, {} new, 0 mixed; 95 % bound {:.2} %",
        all[0],
        all[1],
        bound(runs) * 100.0
    );
}
