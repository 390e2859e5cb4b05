//! What stands beside sshd: units that systemd stops along with one of the two, and that run again in the end.

use std::time::{Duration, Instant};

use super::run::Run;
use crate::plan::Op;

/// How long what stops along with sshd may take to start again.
const ALONG: Duration = Duration::from_secs(10);

/// The units that stop along with sshd's. What somebody has stopped before any of those was touched is theirs.
pub(super) fn stopped(run: &Run, is_first: bool) -> Vec<String> {
    let mut along = run.before.dependents.clone();
    let untouched = is_first && !run.trial().iter().any(|(_, step)| matches!(step.op, Op::Stop(_)));
    if untouched {
        along.retain(|name| run.machine.unit(name).is_ok_and(|unit| unit.is_active()));
    }
    along
}

/// Starts what systemd has stopped along with a unit of sshd's. That is somebody else's: where it does not start
/// it is told, and no more.
pub(super) fn start(run: &mut Run, names: &[String]) {
    let machine = run.machine;
    let rests = |name: &&String| {
        machine.unit(name).is_ok_and(|unit| !unit.is_active() && unit.active != "activating")
    };
    let mut waiting: Vec<&String> = names.iter().filter(rests).collect();
    let mut told = Vec::new();
    waiting.retain(|name| {
        let asked = || machine.enqueue("StartUnit", name).err().map(|error| error.to_string());
        let why = in_the_way(run, name).or_else(asked);
        told.extend(why.clone());
        why.is_none()
    });
    let deadline = Instant::now() + ALONG;
    let is_over = |name: &String| machine.unit(name).is_ok_and(|unit| !unit.is_on_its_way());
    // What has just been asked for has not begun yet.
    let mut goes_on = !waiting.is_empty();
    while goes_on && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        goes_on = !waiting.iter().all(|name| is_over(name));
    }
    for name in waiting {
        // Nothing runs any more of a unit that only does something when it starts.
        match machine.unit(name) {
            Ok(unit) if unit.is_active() || unit.active == "inactive" => {}
            Ok(unit) => {
                told.push(format!("{name}, which stopped along with sshd, is {}", unit.active));
            }
            Err(error) => told.push(error.to_string()),
        }
    }
    for text in told {
        run.note(&text);
    }
}

/// Why a unit is not started again: it needs one of sshd's that does not run, and would end the other one.
fn in_the_way(run: &Run, name: &str) -> Option<String> {
    let machine = run.machine;
    let unit = machine.unit(name).ok()?;
    let (service, socket) = (&run.before.service.name, &run.before.socket.name);
    let pairs = [(service, socket), (socket, service)];
    let other = pairs.into_iter().find(|(needed, other)| {
        let runs = |name: &str| machine.unit(name).is_ok_and(|unit| unit.is_active());
        let conflicts = machine.unit(other).is_ok_and(|other| other.conflicts.contains(*needed));
        unit.requires.contains(*needed) && !runs(needed) && conflicts && runs(other)
    });
    other.map(|(needed, _)| format!("{name} needs {needed}, which does not run any more"))
}
