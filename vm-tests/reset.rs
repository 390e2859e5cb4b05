//! Virtual machines: the power is cut at a random instant of a change, where what was not fsynced is
//! lost; and the clock is set forwards and back while a change waits. One cut in every test run, a
//! hundred with `vm-tests/campaign`.

use std::time::{Duration, Instant};

use crate::random::{bound, seed};
use crate::vm::Vm;

/// Everything that is the state, as the machine's own tools have it.
const STATE: &str = "cd /etc; find . -printf '%p %m %U:%G %l\\n' | sort; \
                     find . -type f -print0 | sort -z | xargs -0 sha256sum; \
                     systemctl is-active ssh.socket; systemctl is-enabled ssh.socket ssh.service; \
                     ss -Htln | awk '{print $4}' | sort; true";

fn wait_for_the_end(vm: &Vm) {
    vm.sh("for i in $(seq 300); do harden status | grep -q 'no transaction' && exit; sleep 0.5; \
           done; harden history | tail -n 9; exit 1");
}

/// Where the change stands that is made and undone.
struct Ground {
    vm: Vm,
    states: [String; 2],
    moved: bool,
    span: Duration,
    random: fastrand::Rng,
    ends: [usize; 2],
}

impl Ground {
    fn new(name: &str, seed: u64) -> Self {
        let vm = Vm::boot(name);
        let old = vm.sh(STATE);
        let started = Instant::now();
        vm.ssh(22, "harden apply -y spec.yaml").ok();
        let span = started.elapsed().mul_f64(1.1);
        let new = vm.ssh(2222, STATE).ok();
        vm.ssh(2222, "harden rollback -y").ok();
        assert_eq!(vm.sh(STATE), old);
        println!("{name}: seed {seed}, cuts within {span:?}");
        let random = fastrand::Rng::with_seed(seed);
        Self { vm, states: [old, new], moved: false, span, random, ends: [0, 0] }
    }

    fn run(&mut self) {
        let earlier = self.id();
        let verb = if self.moved { "rollback" } else { "apply spec.yaml" };
        self.vm.sh(&format!("setsid harden {verb} -y > run.log 2>&1 < /dev/null &"));
        let at = self.span.mul_f64(self.random.f64());
        std::thread::sleep(at);
        self.vm.reset();
        // What was cut off before it began, the next harden clears up.
        self.vm.sh("sleep 1; harden status | grep -q trial && ! ls \
                    /usr/local/lib/systemd/system/sysinit.target.wants/harden-recovery* \
                    2>/dev/null && harden rollback; true");
        wait_for_the_end(&self.vm);
        let id = self.id();
        let now = self.vm.sh(STATE);
        let new = self.states[usize::from(!self.moved)] == now;
        let old = self.states[usize::from(self.moved)] == now;
        assert!(old || new, "cut after {at:?}: a mixture:\n{now}");
        let decision = self.vm.sh(&format!("cat /var/lib/harden/{id}.decision 2>/dev/null; true"));
        if id != earlier {
            assert_eq!(new, decision.contains("commit"), "cut after {at:?}: {decision}");
        }
        self.ends[usize::from(new)] += 1;
        self.moved ^= new;
    }

    fn id(&self) -> String {
        self.vm.sh("ls /var/lib/harden | sed -n 's/.journal$//p' | tail -n 1").trim().to_owned()
    }
}

fn resets(name: &str, count: usize) -> [usize; 2] {
    let mut ground = Ground::new(name, seed());
    for number in 0..count {
        ground.run();
        println!("{name}: {} cuts, {:?} old and new", number + 1, ground.ends);
    }
    ground.ends
}

#[test]
fn the_power_of_a_virtual_machine_is_cut() {
    resets("cut", 1);
}

/// Fault 24: the deadline is a time span, whatever the clock says.
#[test]
fn the_clock_is_set_while_it_waits() {
    let vm = Vm::boot("clock");
    let old = vm.sh(STATE);
    vm.sh(
        "timedatectl set-ntp false 2>/dev/null; systemctl stop systemd-timesyncd 2>/dev/null; true",
    );
    vm.ssh(
        22,
        "setsid harden apply -y --confirm operator --timeout 45s spec.yaml > run.log 2>&1 \
                < /dev/null &",
    )
    .ok();
    vm.ssh(
        22,
        "for i in $(seq 100); do harden status | grep -q 'to confirm:' && exit; sleep 0.5; \
                done; cat run.log; exit 1",
    )
    .ok();
    let began = Instant::now();
    for step in ["+2 days", "-4 days"] {
        vm.ssh(22, &format!("date -s '{step}'")).ok();
        let status = vm.ssh(22, "harden status").ok();
        assert!(status.contains("to confirm:"), "{step}: {status}");
    }
    wait_for_the_end(&vm);
    // It was armed before it waited.
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(10) && waited < Duration::from_secs(120), "{waited:?}");
    assert!(vm.sh("harden history").contains("nobody confirmed in time"));
    assert_eq!(vm.sh(STATE), old);
}

/// An error of the disk makes it read-only while a confirmed change becomes permanent: what is decided waits until it
/// can be written down, and is done then.
#[test]
fn the_disk_becomes_read_only_after_the_decision() {
    let vm = Vm::boot("read-only");
    vm.sh(
        "mkdir -p /etc/systemd/system/ssh.service.d; printf '[Service]\\nExecStartPre=/bin/sh -c \"grep -rqs ^Port.2222 \
         /etc/ssh && sleep 9; true\"\\n' > /etc/systemd/system/ssh.service.d/own.conf; systemctl daemon-reload; \
         setsid harden apply -y --confirm probe spec.yaml > /run/apply.log 2>&1 < /dev/null & \
         for i in $(seq 300); do [ $(systemctl is-active ssh.service) = activating ] && break; sleep 0.1; done; \
         echo u > /proc/sysrq-trigger; sleep 2; ! touch /var/lib/harden/new 2> /dev/null",
    );
    vm.sh("for i in $(seq 60); do grep -q read-only /run/apply.log && exit; sleep 1; done; cat /run/apply.log; exit 1");
    assert!(vm.sh("harden status").contains("permanent"));
    vm.sh("mount -o remount,rw /");
    wait_for_the_end(&vm);
    assert!(vm.sh("harden history | head -n 1").contains("applied"));
    vm.ssh(2222, "harden verify spec.yaml").ok();
}

#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn a_hundred_power_cuts() {
    let count = std::env::var("HARDEN_RESETS").ok().and_then(|count| count.parse().ok());
    let count: usize = count.unwrap_or(100);
    let ends = std::thread::scope(|scope| {
        let machines =
            ["one", "two"].map(|name| scope.spawn(move || resets(name, count.div_ceil(2))));
        machines.map(|machine| machine.join().unwrap())
    });
    let (old, new) = (ends[0][0] + ends[1][0], ends[0][1] + ends[1][1]);
    println!(
        "{} power cuts: {old} old, {new} new, 0 mixed; 95 % bound {:.2} %",
        old + new,
        bound(old + new) * 100.0
    );
}
