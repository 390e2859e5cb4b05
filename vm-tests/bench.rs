//! Benchmarks: ratios in one run, never asserted. Run by `vm-tests/bench`.

use std::time::{Duration, Instant};

use crate::hostile::large;
use crate::machine::{Machine, Suite};

const MOVE: &str = "version: 1\nssh:\n  port: 2222\n  socket: disabled\n";
const RECIPE: &str = "systemctl stop ssh.socket && systemctl disable ssh.socket && \
                      systemctl enable ssh.service && systemctl daemon-reload && \
                      systemctl restart ssh.service";

fn boot() -> Machine {
    let machine = Machine::boot(Suite::Trixie, |root| root.socket_owns_port(Suite::Trixie));
    machine.spec(MOVE);
    machine.ssh(22, "true").ok();
    machine
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Inside the machine, in milliseconds: the median of many runs of a command.
fn inside(machine: &Machine, command: &str, runs: u32) -> f64 {
    let script = format!(
        "for i in $(seq {runs}); do a=$(date +%s%N); {command} >/dev/null 2>&1; b=$(date +%s%N); \
         echo $((b - a)); done | sort -n | sed -n {}p",
        runs / 2
    );
    machine.sh(&script).trim().parse::<f64>().unwrap() / 1e6
}

#[test]
#[ignore = "a benchmark"]
fn ratios() {
    let machine = boot();
    machine.apply().code(0);
    let (mut ours, mut theirs) = (0.0, 0.0);
    for _ in 0..3 {
        theirs += inside(&machine, "sshd -T", 41) / 3.0;
        ours += inside(&machine, "harden apply --yes /root/spec.yaml", 41) / 3.0;
    }
    println!("converged apply {ours:.1} ms / sshd -T {theirs:.1} ms = {:.2}", ours / theirs);
    drop(machine);

    let (mut applies, mut recipes) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let machine = boot();
        let started = Instant::now();
        machine.apply().code(0);
        applies.push(started.elapsed());
        drop(machine);
        let machine = boot();
        machine.root().write("/etc/ssh/sshd_config.d/00-port.conf", "Port 2222\n");
        let started = Instant::now();
        machine.sh(RECIPE);
        recipes.push(started.elapsed());
    }
    let (ours, theirs) = (median(applies).as_secs_f64(), median(recipes).as_secs_f64());
    println!("apply {:.0} ms / recipe {:.0} ms = {:.2}", ours * 1e3, theirs * 1e3, ours / theirs);
}

/// A plan against one look of sshd's at the same 10,000 lines.
#[test]
#[ignore = "a benchmark"]
fn ten_thousand_lines() {
    let machine = Machine::boot(Suite::Trixie, |root| large(&|path, text| root.write(path, text)));
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    let (mut ours, mut theirs) = (0.0, 0.0);
    for _ in 0..3 {
        theirs += inside(&machine, "sshd -T", 21) / 3.0;
        ours += inside(&machine, "harden plan /root/spec.yaml", 21) / 3.0;
    }
    let ratio = ours / theirs;
    println!("plan of 10,000 lines {ours:.1} ms / sshd -T {theirs:.1} ms = {ratio:.2}");
}

/// From the worker's death to a whole system, against a restart of sshd: during the trial (back to the
/// old state) and while it becomes permanent (on to the new one).
#[test]
#[ignore = "a benchmark"]
fn after_a_kill() {
    let machine = boot();
    let nanoseconds = |text: &str| text.trim().parse::<f64>().unwrap() / 1e6;
    let ended = "until harden status | grep -q 'no transaction is open'; do :; done";
    let clock = |command: &str| {
        nanoseconds(
            &machine.sh(&format!("a=$(date +%s%N); {command}; echo $(($(date +%s%N) - a))")),
        )
    };
    let (mut back, mut forth, mut restart) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        machine.apply_in_background("60s");
        back.push(clock(&format!("pkill -9 -f '[.]harden worker'; {ended}")));
        machine.background_end();
        let decisions = "ls /var/lib/harden/*.decision | wc -l";
        let before = machine.sh(decisions).trim().to_owned();
        machine.start_apply("--confirm probe");
        machine.wait_for("decision", &format!("[ $({decisions}) -gt {before} ]"));
        forth.push(clock(&format!("pkill -9 -f '[.]harden worker'; {ended}")));
        machine.background_end();
        restart.push(clock("systemctl reset-failed ssh.service; systemctl restart ssh.service"));
        machine.exec("harden rollback -y").code(0);
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (back, forth, restart) = (median(back), median(forth), median(restart));
    println!(
        "whole after a kill: back {back:.0} ms, forth {forth:.0} ms; restart of ssh.service {restart:.0} \
         ms = {:.1}, {:.1}",
        back / restart,
        forth / restart
    );
}
