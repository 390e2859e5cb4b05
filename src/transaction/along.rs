//! What stands beside sshd: units that systemd stops along with one of the two, and that run again in the end.

use std::time::{Duration, Instant};

use super::journal::Record;
use super::run::Run;
use crate::sys::Result;
use crate::sys::units::Unit;

/// How long what stops along with sshd may take to start again.
const ALONG: Duration = Duration::from_secs(10);

/// Journals what stops along with a unit of sshd's, before the first one is touched. What somebody has stopped
/// by then is theirs.
pub(super) fn remember(run: &mut Run) -> Result<()> {
    if run.before.dependents.is_empty() || remembered(run).is_some() {
        return Ok(());
    }
    let mut units = run.before.dependents.clone();
    units.retain(|name| run.machine.unit(name).is_ok_and(|unit| unit.is_up()));
    run.record(Record::Along { units })
}

/// The same on the way back, where a unit of sshd's does not run any more that harden has not touched: these
/// have stopped along with it.
pub(super) fn remember_all(run: &mut Run) {
    let units = run.before.dependents.clone();
    if !units.is_empty() && remembered(run).is_none() {
        run.record_if_possible(Record::Along { units });
    }
}

fn remembered(run: &Run) -> Option<Vec<String>> {
    run.records().iter().find_map(|record| match record {
        Record::Along { units } => Some(units.clone()),
        _ => None,
    })
}

/// Starts what systemd has stopped along with a unit of sshd's. That is somebody else's: where it does not start
/// it is told, and no more.
pub(super) fn start(run: &mut Run) {
    let machine = run.machine;
    let names = remembered(run).unwrap_or_default();
    let runs = |unit: &Unit| unit.is_up() && unit.job != "stop";
    let rests = |name: &&String| machine.unit(name).is_ok_and(|unit| !runs(&unit));
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

/// Why a unit is not started again: it would end what runs of sshd's now, itself or by what it needs.
fn in_the_way(run: &Run, name: &str) -> Option<String> {
    let machine = run.machine;
    let unit = machine.unit(name).ok()?;
    let (service, socket) = (&run.before.service.name, &run.before.socket.name);
    let runs = |name: &str| machine.unit(name).is_ok_and(|unit| unit.is_active());
    let ends = |name: &&&String| unit.conflicts.contains(name) && runs(name);
    if let Some(ended) = [service, socket].iter().find(ends) {
        return Some(format!("{name} would end {ended}, and is not started again"));
    }
    let pairs = [(service, socket), (socket, service)];
    let other = pairs.into_iter().find(|(needed, other)| {
        let conflicts = machine.unit(other).is_ok_and(|other| other.conflicts.contains(*needed));
        unit.requires.contains(*needed) && !runs(needed) && conflicts && runs(other)
    });
    other.map(|(needed, _)| format!("{name} needs {needed}, which does not run any more"))
}
