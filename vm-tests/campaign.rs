//! System calls of the release binary that fail, or at which it is killed: every k-th one. The short
//! forms take some of them, the long ones (`vm-tests/campaign`) take all.
//!
//! The worker runs under strace(1) here, not under systemd, so that its calls can be counted from
//! the first one; what systemd would do when it dies is done by hand. Recovery runs under strace(1) at
//! a real boot, after a power cut in the middle of a change.

use crate::machine::{Machine, Suite};
use crate::operator::MOVE;
use crate::state::{Want, Whole, assert_closed, assert_state, wait_until_idle};

/// The calls of a program's first thread that change files or tell of it. Other threads of it only wait
/// for systemd, and what it starts is not harden.
const FILES: Calls = Calls {
    names: "write,rename,unlink,mkdir,rmdir,symlink,link,chmod,fchmod,chown,fsync,fallocate,?openat,\
            ?unlinkat,?linkat",
    threads: "",
};
/// What is asked of systemd, by whichever thread.
const SENT: Calls = Calls { names: "sendmsg", threads: "-f" };

/// Which calls are counted.
#[derive(Debug, Clone, Copy)]
struct Calls {
    names: &'static str,
    threads: &'static str,
}

impl Calls {
    /// A command under strace(1) that does something to its `at`-th call, and notes in /root/trace
    /// whether that came to pass.
    fn traced(self, fault: &str, at: usize, command: &str) -> String {
        let Self { names, threads } = self;
        format!(
            "strace {threads} -qq -o /root/trace -e trace={names} -e inject={names}:{fault}:when={at} \
             {command}"
        )
    }
}

/// The fsync(2) calls of a worker, by number, between the first record of making the change permanent
/// and the proof of it: each step has two, and a file two more.
const DEPTHS: [usize; 7] = [22, 25, 28, 31, 34, 37, 40];

/// A transaction that nobody works on: its front was killed right after the first record.
pub(crate) fn begin(machine: &Machine) -> String {
    machine.exec(
        "strace -f -o /dev/null -e trace=fallocate \
         -e inject=fallocate:signal=SIGKILL:when=1 harden apply -y spec.yaml",
    );
    let id = "cd /var/lib/harden; id=$(ls *.journal | tail -n 1); id=${id%.journal}; \
              install -m 700 /usr/local/bin/harden $id.harden; echo $id";
    machine.sh(id).trim().to_owned()
}

/// Which way a change that was cut off has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

struct Campaign {
    machine: Machine,
    old: Whole,
    new: Whole,
    ends: [usize; 2],
}

impl Campaign {
    fn new() -> Self {
        let suite = Suite::Trixie;
        let machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
        machine.spec(MOVE);
        machine.apply().code(0);
        let new = Whole::of(&machine);
        machine.exec("harden rollback -y").code(0);
        let old = Whole::of(&machine);
        Self { machine, old, new, ends: [0, 0] }
    }

    /// Runs the worker with a fault at one call; says whether it came so far.
    fn run(&self, id: &str, calls: Calls, fault: &str, at: usize) -> bool {
        let worker = format!("/var/lib/harden/{id}.harden worker {id}");
        self.machine.exec(&format!("timeout -s KILL 60 {}", calls.traced(fault, at, &worker)));
        self.came_to_pass()
    }

    fn came_to_pass(&self) -> bool {
        let trace = self.machine.root().read("/root/trace");
        trace.contains("(INJECTED)") || trace.contains("killed by SIGKILL")
    }

    /// Whoever systemd would start next goes on; afterwards the state is whole.
    fn go_on(&mut self, id: &str, case: &str) {
        for _ in 0..2 {
            self.machine.exec(&format!("harden worker {id}"));
        }
        self.settle(id, case);
    }

    /// A transaction that was killed somewhere while it became permanent; it is to be taken back
    /// where that is asked for.
    fn cut_off(&self, way: Way, turn: usize) -> String {
        let id = begin(&self.machine);
        let depth = DEPTHS[turn % DEPTHS.len()];
        self.run(&id, Calls { names: "fsync", threads: "" }, "signal=SIGKILL", depth);
        let records = self.machine.root().read(&format!("/var/lib/harden/{id}.journal"));
        assert!(records.contains("\"permanent\"") && !records.contains("\"closed\""), "{records}");
        if way == Way::Back {
            let decide = "{\"verdict\":\"rollback\",\"why\":\"a test\"}";
            self.machine.root().write(&format!("/var/lib/harden/{id}.decision"), decide);
        }
        id
    }

    /// The power is cut in the middle of a change, and recovery has a fault at the boot that follows;
    /// says whether it came so far.
    fn recover(&mut self, way: Way, calls: Calls, fault: &str, at: usize) -> bool {
        let id = self.cut_off(way, at);
        let recover = calls.traced(fault, at, &format!("/usr/local/bin/harden recover {id}"));
        let pinned = format!("/var/lib/harden/{id}.harden");
        let script = format!(
            "#!/bin/sh\n[ $1 = recover ] && exec {recover}\nexec /usr/local/bin/harden \"$@\"\n"
        );
        self.machine.root().write(&pinned, &script);
        self.machine.root().make_program(&pinned);
        self.machine.root().remove("/root/trace");
        self.machine.cut_power_and_wait(60);
        wait_until_idle(&self.machine);
        self.settle(&id, &format!("{way:?}: recovery with {fault} at call {at} of {calls:?}"));
        assert!(self.machine.root().exists("/root/trace"), "recovery did not run");
        self.came_to_pass()
    }

    /// Afterwards the state is whole.
    fn settle(&mut self, id: &str, case: &str) {
        let machine = &self.machine;
        assert_closed(machine);
        let applied = machine.sh("harden history").contains(&format!("{id} applied"));
        let decision = machine.root().read(&format!("/var/lib/harden/{id}.decision"));
        if case.contains("SIGKILL") || decision.contains("a test") {
            assert_eq!(applied, decision.contains("commit"), "{case}");
        }
        let now = Whole::of(machine);
        assert_eq!(now, *if applied { &self.new } else { &self.old }, "{case}");
        let port = if applied { 2222 } else { 22 };
        assert_eq!(machine.ssh(port, "echo in").stdout, "in\n", "{case}");
        self.ends[usize::from(applied)] += 1;
        if applied {
            machine.exec("harden rollback -y").code(0);
            assert_eq!(Whole::of(machine), self.old, "{case}: undone");
        }
    }

    fn end(self) {
        assert_state(&self.machine, &Want::socket(22));
        println!("ended in the old state: {}, in the new one: {}", self.ends[0], self.ends[1]);
        assert!(self.ends.iter().all(|count| *count > 0), "{:?}", self.ends);
    }
}

/// Something at every `stride`-th call, until there are none left.
fn each(stride: usize, mut fault: impl FnMut(usize) -> bool) {
    let mut at = 1 + stride / 2;
    while fault(at) {
        at += stride;
    }
    println!("{} calls at the most", at - 1);
    assert!(at > 2, "no call was met");
}

/// Kills the worker before every `stride`-th call.
fn killed(stride: usize) {
    let mut campaign = Campaign::new();
    for calls in [FILES, SENT] {
        each(stride, |at| {
            let id = begin(&campaign.machine);
            let killed = campaign.run(&id, calls, "signal=SIGKILL", at);
            campaign.go_on(&id, &format!("SIGKILL at call {at} of {calls:?}"));
            killed
        });
    }
    campaign.end();
}

/// Kills it on the way back too.
fn killed_on_the_way_back(stride: usize) {
    let mut campaign = Campaign::new();
    for calls in [FILES, SENT] {
        each(stride, |at| {
            let id = campaign.cut_off(Way::Back, at);
            let killed = campaign.run(&id, calls, "signal=SIGKILL", at);
            campaign.go_on(&id, &format!("SIGKILL on the way back at call {at} of {calls:?}"));
            killed
        });
    }
    assert!(campaign.ends[0] > 0);
}

const ERRORS: [&str; 3] = ["ENOSPC", "EIO", "EROFS"];

/// Lets every `stride`-th call that changes files fail.
fn failing(stride: usize) {
    for error in ERRORS {
        let mut campaign = Campaign::new();
        each(stride, |at| {
            let id = begin(&campaign.machine);
            let failed = campaign.run(&id, FILES, &format!("error={error}"), at);
            campaign.go_on(&id, &format!("{error} at call {at}"));
            failed
        });
        campaign.end();
    }
}

/// Kills recovery before every `stride`-th call, both ways.
fn killed_in_recovery(stride: usize) {
    let mut campaign = Campaign::new();
    for way in [Way::There, Way::Back] {
        for calls in [FILES, SENT] {
            each(stride, |at| campaign.recover(way, calls, "signal=SIGKILL", at));
        }
    }
    campaign.end();
}

/// Lets every `stride`-th call of recovery that changes files fail, both ways.
fn failing_in_recovery(stride: usize) {
    let mut campaign = Campaign::new();
    for way in [Way::There, Way::Back] {
        for error in ERRORS {
            each(stride, |at| campaign.recover(way, FILES, &format!("error={error}"), at));
        }
    }
    campaign.end();
}

#[test]
fn killed_at_some_calls() {
    killed(23);
}

#[test]
fn killed_at_some_calls_of_the_way_back() {
    killed_on_the_way_back(29);
}

#[test]
fn some_calls_fail() {
    failing(53);
}

#[test]
fn recovery_is_killed_at_some_calls() {
    killed_in_recovery(17);
}

#[test]
fn some_calls_of_recovery_fail() {
    failing_in_recovery(13);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn recovery_is_killed_at_every_call() {
    killed_in_recovery(1);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn every_call_of_recovery_fails() {
    failing_in_recovery(1);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn killed_at_every_call() {
    killed(1);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn killed_at_every_call_of_the_way_back() {
    killed_on_the_way_back(1);
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn every_call_fails() {
    failing(1);
}
