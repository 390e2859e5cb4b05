//! What keeps systemd from starting the two units.

use super::ask::NO_SSHD;
use super::{NOT_TO_BE_RUN, Observed, Verdict};
use crate::sys::units::Unit;

impl Observed {
    /// Why systemd would not start these of the two units, by name, and what helps. A service beside its socket
    /// is started by that.
    pub fn obstacle(&self, names: &[&str]) -> Option<String> {
        match &self.effective {
            Verdict::Invalid(said) => {
                return Some(format!("sshd refuses its configuration: {said}"));
            }
            Verdict::Unseen(why) if why == NO_SSHD => {
                return Some(format!("{why}: install openssh-server"));
            }
            _ => {}
        }
        if self.not_to_be_run {
            return Some(format!("{NOT_TO_BE_RUN} exists: remove it"));
        }
        let is_named = |unit: &Unit| names.contains(&unit.name.as_str());
        let by_socket = is_named(&self.socket);
        let by_hand = |unit: &Unit| unit.name == self.socket.name || !by_socket;
        let starts = |unit: &Unit| is_named(unit) || (by_socket && self.is_started_by_socket(unit));
        let units = [&self.socket, &self.service].into_iter().filter(|unit| starts(unit));
        units.into_iter().find_map(|unit| self.obstacle_of(unit, by_hand(unit)))
    }

    /// Whether the socket starts it, for whoever connects.
    pub(crate) fn is_started_by_socket(&self, unit: &Unit) -> bool {
        self.socket.triggers.contains(&unit.name)
    }

    fn obstacle_of(&self, unit: &Unit, by_hand: bool) -> Option<String> {
        let name = &unit.name;
        if unit.is_masked() {
            return Some(format!("{name} is masked: systemctl unmask {name}"));
        }
        if unit.is_broken() {
            let load = &unit.load;
            return Some(format!(
                "systemd cannot read {name} ({load}): see systemctl status {name}"
            ));
        }
        if unit.refuses_start && by_hand {
            return Some(format!(
                "{name} may not be started by hand (RefuseManualStart=): systemctl cat {name}"
            ));
        }
        let needed = self.lost_needs_of(name).next()?;
        Some(format!(
            "{name} needs {needed}, which is masked or missing: systemctl status {needed}"
        ))
    }

    /// What a unit needs to start, and what is masked or missing.
    pub(crate) fn lost_needs_of<'o>(&'o self, name: &'o str) -> impl Iterator<Item = &'o String> {
        self.lost_needs.iter().filter(move |(unit, _)| unit == name).map(|(_, needed)| needed)
    }
}
