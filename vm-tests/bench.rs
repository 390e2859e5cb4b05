//! Benchmarks: ratios in one run, never asserted. Run by `vm-tests/bench`.

use std::time::{Duration, Instant};

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
