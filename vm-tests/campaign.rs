//! System calls of the release binary that fail, or at which it is killed: every k-th one. The short
//! forms take some of them, the long ones (`vm-tests/campaign`) take all.
//!
//! The worker runs under strace(1) here, not under systemd, so that its calls can be counted from
//! the first one; what systemd would do when it dies is done by hand.

use crate::machine::{Machine, Suite};
use crate::operator::MOVE;
use crate::state::{Want, Whole, assert_closed, assert_state};

/// Calls that change files.
const FILES: &str = "write,rename,unlink,mkdir,rmdir,symlink,link,chmod,fchmod,chown,fsync,\
                     fallocate,?openat,?unlinkat,?linkat";
/// Those, and what is sent to systemd.
const ALL: &str = "write,rename,unlink,mkdir,rmdir,symlink,link,chmod,fchmod,chown,fsync,\
                   fallocate,?unlinkat,?linkat,sendmsg,sendto";

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

    /// Runs a program of the transaction with a fault at one call; says whether it was killed.
    fn run(&self, id: &str, verb: &str, calls: &str, fault: &str, at: usize) -> bool {
        let ran = self.machine.exec(&format!(
            "timeout -s KILL 60 strace -f -qq -o /dev/null -e trace={calls} \
             -e inject={calls}:{fault}:when={at} /var/lib/harden/{id}.harden {verb} {id}"
        ));
        ran.code == 137
    }

    /// Whoever comes next goes on; afterwards the state is whole.
    fn settle(&mut self, id: &str, case: &str) {
        let machine = &self.machine;
        machine.exec(&format!("harden worker {id}"));
        machine.exec(&format!("harden worker {id}"));
        assert_closed(machine);
        let applied = machine.sh("harden history").contains(&format!("{id} applied"));
        let decision = machine.root().read(&format!("/var/lib/harden/{id}.decision"));
        if case.contains("SIGKILL") {
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

/// Kills the worker before every `stride`-th call, until it has none left.
fn killed(stride: usize) {
    let mut campaign = Campaign::new();
    for at in (1..).step_by(stride) {
        let id = begin(&campaign.machine);
        let killed = campaign.run(&id, "worker", ALL, "signal=SIGKILL", at);
        campaign.settle(&id, &format!("SIGKILL at call {at}"));
        if !killed {
            break;
        }
    }
    campaign.end();
}

/// Kills it on the way back too.
fn killed_on_the_way_back(stride: usize) {
    let mut campaign = Campaign::new();
    let decide = "{\"verdict\":\"rollback\",\"why\":\"a test\"}";
    for at in (1..).step_by(stride) {
        let id = begin(&campaign.machine);
        // It dies when it has begun to make the change permanent; the decision is forged after that.
        campaign.run(&id, "worker", "rename", "signal=SIGKILL", 5);
        campaign.machine.root().write(&format!("/var/lib/harden/{id}.decision"), decide);
        let killed = campaign.run(&id, "worker", ALL, "signal=SIGKILL", at);
        campaign.settle(&id, &format!("killed on the way back at call {at}"));
        if !killed {
            break;
        }
    }
    assert!(campaign.ends[0] > 0);
}

/// Lets every `stride`-th call that changes files fail.
fn failing(stride: usize) {
    for error in ["ENOSPC", "EIO", "EROFS"] {
        let mut campaign = Campaign::new();
        for at in (1..160).step_by(stride) {
            let id = begin(&campaign.machine);
            campaign.run(&id, "worker", FILES, &format!("error={error}"), at);
            campaign.settle(&id, &format!("{error} at call {at}"));
        }
        campaign.end();
    }
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
