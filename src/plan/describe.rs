//! What a plan changes, for a reader: files, units, listeners, processes; before and after.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Change;
use crate::concern::units::Transition;
use crate::observe::{Listener, Observed};
use crate::step::{Expectation, FileChange, Op};

/// Lists the changes in the order in which a reader wants them.
pub(super) fn changes(
    observed: &Observed,
    expect: &Expectation,
    files: &[FileChange],
    units: &Transition,
) -> Vec<Change> {
    let mut changes: Vec<Change> = files.iter().chain(&units.files).map(file).collect();
    changes.extend(unit_changes(observed, expect, units));
    if units.steps().next().is_some() {
        changes.extend(listener_changes(observed, expect));
    }
    changes.extend(units.leftovers.iter().map(|(process, endpoints)| Change {
        id: format!("process:{}", process.pid),
        concern: "listeners".into(),
        action: "end".into(),
        target: format!("{} (pid {})", process.name, process.pid),
        before: Some(format!("listens on {}", join(endpoints))),
        after: None,
        diff: None,
        reason: format!(
            "systemd lost track of this sshd: it is not {}'s main process, and has an old \
             configuration.",
            observed.service.name
        ),
    }));
    changes
}

fn join(endpoints: &[SocketAddr]) -> String {
    endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn file(file: &FileChange) -> Change {
    let path = file.path.display().to_string();
    let action = match (&file.before, &file.after) {
        (None, _) => "create",
        (Some(_), None) => "remove",
        (Some(_), Some(_)) => "modify",
    };
    let name = |text: &Option<String>| match text {
        Some(_) => path.clone(),
        None => "/dev/null".to_owned(),
    };
    let before = file.before.clone().unwrap_or_default();
    let after = file.after.clone().unwrap_or_default();
    let diff = similar::TextDiff::from_lines(&before, &after)
        .unified_diff()
        .context_radius(2)
        .header(&name(&file.before), &name(&file.after))
        .to_string();
    Change {
        id: format!("file:{path}"),
        concern: file.concern.into(),
        action: action.into(),
        target: path,
        before: file.before.as_deref().map(size),
        after: file.after.as_deref().map(size),
        diff: Some(diff),
        reason: file.reason.clone(),
    }
}

fn size(text: &str) -> String {
    let lines = text.lines().count();
    format!("{lines} line{}", if lines == 1 { "" } else { "s" })
}

/// Units whose running state or enablement the steps change.
fn unit_changes(observed: &Observed, expect: &Expectation, units: &Transition) -> Vec<Change> {
    let mut changes = Vec::new();
    for unit in [&observed.socket, &observed.service] {
        let mut active = unit.active.clone();
        let mut file = if unit.is_masked() { "masked".to_owned() } else { unit.file.clone() };
        let mut touched = false;
        let mut started = false;
        let mut stopped = false;
        for op in units.steps().map(|step| &step.op) {
            let (changed, name) = match op {
                // Stopped in case a connection starts it meanwhile.
                Op::Stop(name) if *name == unit.name && !unit.is_active() => continue,
                Op::Stop(name) => ((Some("inactive"), None), name),
                Op::Start(name) | Op::Restart(name) => ((Some("active"), None), name),
                Op::Enable(name) => ((None, Some("enabled")), name),
                Op::Disable(name) | Op::Unmask(name) => ((None, Some("disabled")), name),
                _ => continue,
            };
            if *name != unit.name {
                continue;
            }
            touched = true;
            started |= matches!(op, Op::Start(_) | Op::Restart(_));
            stopped |= matches!(op, Op::Stop(_) | Op::Restart(_));
            active = changed.0.map_or(active, str::to_owned);
            file = changed.1.map_or(file, str::to_owned);
        }
        if !touched {
            continue;
        }
        // Links that an undo puts back enable and disable too.
        let enabled = expect.units.iter().find(|is| is.name == unit.name).map(|is| is.enabled);
        if enabled.is_some_and(|enabled| enabled != (file == "enabled")) {
            file = if enabled == Some(true) { "enabled" } else { "disabled" }.to_owned();
        }
        let reason = units.reasons.iter().find(|(name, _)| *name == unit.name);
        let action = match (started, stopped) {
            (true, true) => "restart",
            (true, false) if unit.is_active() => "restart",
            (true, false) => "start",
            (false, true) => "stop",
            (false, false) => "enablement",
        };
        changes.push(Change {
            id: format!("unit:{}", unit.name),
            concern: "units".into(),
            action: action.into(),
            target: unit.name.clone(),
            before: Some(unit.summary()),
            after: Some(format!("{active}, {file}")),
            diff: None,
            reason: reason.map(|(_, reason)| reason.clone()).unwrap_or_default(),
        });
    }
    changes
}

/// Endpoints that open, close, or change hands.
fn listener_changes(observed: &Observed, expect: &Expectation) -> Vec<Change> {
    let mut table: BTreeMap<SocketAddr, (Option<String>, Option<String>)> = BTreeMap::new();
    for listener in observed.listeners.iter().filter(|listener| listener.ssh) {
        for endpoint in Listener::serves(listener) {
            table.entry(endpoint).or_default().0 = Some(listener.owner.to_string());
        }
    }
    for endpoint in &expect.endpoints {
        table.entry(*endpoint).or_default().1 = Some(expect.owner.clone());
    }
    table
        .into_iter()
        .filter(|(_, (before, after))| before != after)
        .map(|(endpoint, (before, after))| {
            let (action, reason) = match (&before, &after) {
                (None, _) => ("open", "The spec names this address and port."),
                (_, None) => ("close", "The spec does not name this address and port."),
                _ => ("hand-over", "The port stays; another unit holds it."),
            };
            Change {
                id: format!("listener:{endpoint}"),
                concern: "listeners".into(),
                action: action.into(),
                target: endpoint.to_string(),
                before,
                after,
                diff: None,
                reason: reason.into(),
            }
        })
        .collect()
}
