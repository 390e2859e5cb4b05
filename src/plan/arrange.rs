//! The order of steps: first a trial that leaves the disk alone, then what makes it permanent.
//!
//! With a new port the trial listens beside the old listener, and while the units change hands a
//! rescue listener holds the old port: at no instant is there none. On an unchanged port the trial
//! takes the port over, which costs as long as a restart.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::concern::units::Transition;
use crate::observe::Observed;
use crate::step::{Bridge, Expectation, Op, Role, Step};

/// Splits the way into the trial's steps and the permanent ones.
pub(super) fn arrange(
    observed: &Observed,
    expect: &Expectation,
    files: Vec<Step>,
    units: &Transition,
) -> (Vec<Step>, Vec<Step>) {
    let held = observed.held();
    let (in_the_way, on_the_old_port, others) = leftovers(expect, units, &held);
    let Some(take) = &units.take else {
        let mut steps = files;
        steps.extend(units.settle.iter().cloned());
        if !steps.is_empty() || !units.leftovers.is_empty() {
            steps.push(await_listeners());
            steps.extend(on_the_old_port.into_iter().chain(others));
        }
        return (Vec::new(), steps);
    };
    let free: Vec<SocketAddr> =
        expect.endpoints.iter().copied().filter(|at| !on_port_of(at, &held)).collect();
    // Nothing of the new listener can be tried beside the old one.
    let swap = free.is_empty();
    let apart = !held.is_empty() && expect.endpoints.iter().all(|at| !on_port_of(at, &held));

    let mut trial = Vec::new();
    let mut steps = files;
    if swap {
        trial.extend(units.release.iter().cloned());
    } else {
        steps.extend(units.release.iter().cloned());
    }
    trial.extend(in_the_way);
    trial.push(listen(Role::Trial, if swap { expect.endpoints.clone() } else { free }, swap));
    // The trial listens meanwhile.
    steps.extend(on_the_old_port);
    if apart {
        steps.push(listen(Role::Rescue, rescued(observed, observed), false));
    }
    steps.extend(units.settle.iter().cloned());
    steps.push(silence(Role::Trial, &expect.owner));
    steps.push(take.clone());
    steps.push(await_listeners());
    if apart {
        steps.push(silence(Role::Rescue, &expect.owner));
    }
    steps.extend(others);
    (trial, steps)
}

/// Where a rescue listens in the place of the old listeners. No sshd can bind an address that a socket has and
/// another host has just now (`FreeBind=`); one that is gone for a moment is waited for.
pub(crate) fn rescued(before: &Observed, now: &Observed) -> Vec<SocketAddr> {
    let all = before.held();
    let here: Vec<SocketAddr> = all.iter().copied().filter(|at| now.has(at.ip())).collect();
    if before.socket.is_active() && !here.is_empty() { here } else { all }
}

fn on_port_of(at: &SocketAddr, others: &[SocketAddr]) -> bool {
    others.iter().any(|other| other.port() == at.port())
}

/// Leftover sshds: those that hold a wanted port end before the trial, those on the units' present port
/// before the rescue, the others at the end.
fn leftovers(
    expect: &Expectation,
    units: &Transition,
    held: &[SocketAddr],
) -> (Vec<Step>, Vec<Step>, Vec<Step>) {
    let ports: BTreeSet<u16> = expect.endpoints.iter().map(SocketAddr::port).collect();
    let (mut before, mut old, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for (process, endpoints) in &units.leftovers {
        let step = Step {
            op: Op::End(process.clone()),
            why: "This sshd is no part of ssh.service any more and has the old configuration."
                .to_owned(),
        };
        if endpoints.iter().any(|held| ports.contains(&held.port())) {
            before.push(step);
        } else if endpoints.iter().any(|at| on_port_of(at, held)) {
            old.push(step);
        } else {
            after.push(step);
        }
    }
    (before, old, after)
}

fn listen(role: Role, endpoints: Vec<SocketAddr>, swap: bool) -> Step {
    let why = match role {
        Role::Trial if swap => {
            "The planned configuration is tried on the port itself; a reboot takes it back."
        }
        Role::Trial => "The planned configuration is tried beside the old listener.",
        Role::Rescue => "The old port stays open until the new owner holds the new one.",
    };
    Step { op: Op::Listen(Bridge { role, endpoints }), why: why.to_owned() }
}

fn silence(role: Role, owner: &str) -> Step {
    let why = match role {
        Role::Trial => format!("{owner} takes its place."),
        Role::Rescue => format!("{owner} is proven; nothing else may listen for SSH."),
    };
    Step { op: Op::Silence(role), why }
}

fn await_listeners() -> Step {
    Step {
        op: Op::AwaitListeners,
        why: "Nothing else is touched before the new listener is proven.".to_owned(),
    }
}
