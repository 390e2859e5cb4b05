//! What transactions have left that are over, or whose journal is lost.

use std::collections::BTreeSet;

use super::machine::{JOB, Machine};
use super::run::command;
use super::{bridge, guard, journal, on_demand};
use crate::error::Error;
use crate::observe::Observed;
use crate::step::Role;
use crate::sys::units::Unit;
use crate::sys::{Result, SysError};

/// Clears away what closed transactions have left, where the power was cut just then; or where somebody who
/// came too late to decide was killed meanwhile.
///
/// Where the journal of one is lost whose listeners are there still, sshd's own unit takes their place: returns
/// which those are.
///
/// # Errors
/// Where it does not; then they stay.
pub fn clear_up(machine: &dyn Machine) -> std::result::Result<Vec<String>, Error> {
    let files = machine.files();
    let ids = if guard::unmade(files).is_empty() { Vec::new() } else { journal::ids(files) };
    for id in ids {
        let closed = journal::read(files, &id).is_ok_and(|all| !journal::is_open(&all));
        if closed && let Err(error) = guard::discard_unmade(files, &id) {
            tracing::debug!(%error, "left of {id}");
        }
    }
    let bridges = machine.units("active", &bridge::PATTERNS)?;
    let listening: BTreeSet<String> =
        bridges.iter().filter_map(|unit| bridge::id_of(unit)).collect();
    let mut left: BTreeSet<String> = journal::ids_of(files, ".harden").into_iter().collect();
    left.extend(listening.iter().cloned());
    let mut taken_over = Vec::new();
    for id in left {
        let Ok(records) = journal::read(files, &id) else { continue };
        if journal::is_open(&records) {
            continue;
        }
        // Of a journal that is lost it is not known whether the change was over.
        if !journal::has_begun(&records) && listening.contains(&id) {
            without_a_journal(machine, &id)?;
            taken_over.push(id);
        } else {
            guard::stand_down(machine, &id, &records);
        }
    }
    Ok(taken_over)
}

/// The journal is gone, and with it what there was before. What listens goes on listening unless
/// a unit of sshd's takes its place, and lets somebody in: one that is enabled, or else ssh.service.
///
/// # Errors
/// Why what listens stays.
pub(super) fn without_a_journal(machine: &dyn Machine, id: &str) -> std::result::Result<(), Error> {
    let now = machine.observe()?;
    let units = [&now.socket, &now.service];
    if units.into_iter().any(Unit::is_active) {
        on_demand::starts(machine, &now)?;
    } else {
        let owner = units.into_iter().find(|unit| unit.is_enabled()).unwrap_or(&now.service);
        if let Some(why) = now.obstacle(&[&owner.name]) {
            return Err(SysError::new(format!("cannot start {}", owner.name), why).into());
        }
        take_over(machine, id, &now, &owner.name)?;
    }
    guard::stand_down(machine, id, &[]);
    Ok(())
}

/// Has a unit take the place of the bridges; where it does not come up, they listen again.
fn take_over(
    machine: &dyn Machine,
    id: &str,
    now: &Observed,
    owner: &str,
) -> std::result::Result<(), Error> {
    let mut silenced = Vec::new();
    for role in [Role::Trial, Role::Rescue] {
        let unit = bridge::unit(id, role);
        silenced.extend(bridge::seen(&machine.unit(&unit)?, now));
    }
    let started = (|| {
        for sshd in &silenced {
            machine.silence(&sshd.unit)?;
        }
        machine.forgive(owner);
        machine.job("StartUnit", owner, JOB)?;
        on_demand::starts(machine, &machine.observe()?)?;
        Ok(())
    })();
    if started.is_ok() || silenced.is_empty() {
        return started;
    }
    let heed = |result: Result<()>| {
        if let Err(error) = result {
            tracing::error!(%error, "bringing back what listened");
        }
    };
    for unit in [&now.socket, &now.service].into_iter().filter(|unit| unit.exists()) {
        heed(machine.job("StopUnit", &unit.name, JOB));
    }
    heed(machine.keep(&bridge::keeper(id), &command(machine, "keep", id)));
    for sshd in &silenced {
        heed(machine.listen(sshd).map(drop));
    }
    started
}
