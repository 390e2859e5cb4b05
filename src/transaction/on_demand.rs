//! Behind a socket nothing has to run: that it listens says nothing of the sshd that it would start for whoever
//! connects. So somebody does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::machine::{LISTENERS, Machine};
use crate::observe::Observed;
use crate::plan::held;
use crate::sys::SysError;
use crate::sys::probe::Heard;
use crate::sys::units::Unit;

/// Connects where the socket of a host listens, and sees whether that starts sshd. That nobody takes the
/// connection says nothing, where a packet filter lets nobody in from here; nor does a start that waits for other
/// units, as for the network at boot. That it fails does, or does not come to an end.
///
/// # Errors
/// Where what the socket starts does not start.
pub(super) fn starts(machine: &dyn Machine, host: &Observed) -> Result<(), SysError> {
    let (socket, service) = (&host.socket, &host.service);
    let look = |unit: &Unit| machine.unit(&unit.name);
    let fails = |unit: &Unit| unit.active == "failed" || unit.sub.starts_with("auto-restart");
    let failed = || {
        let instances = socket.name.replace(".socket", "@*.service");
        let failed = machine.units("failed", &[&instances]).unwrap_or_default();
        failed.into_iter().collect::<BTreeSet<String>>()
    };
    if !socket.is_active() || (!socket.accept && look(service).is_ok_and(|unit| unit.is_active())) {
        return Ok(());
    }
    // What had failed before is tried anew.
    let mut is_old = look(service).is_ok_and(|unit| fails(&unit));
    let failed_before = if socket.accept { failed() } else { BTreeSet::new() };
    let Some(visitor) = held(host).iter().find_map(|at| machine.knock(at)) else { return Ok(()) };
    let deadline = Instant::now() + LISTENERS;
    let why = loop {
        if socket.accept {
            match visitor.hears() {
                Heard::Something => return Ok(()),
                Heard::End if failed().is_subset(&failed_before) => return Ok(()),
                Heard::End => break "ends at once when somebody connects",
                Heard::NothingYet => {}
            }
        } else if let Ok(now) = look(service) {
            is_old &= fails(&now);
            let waits = now.active == "inactive" && now.job == "start" && Instant::now() > deadline;
            if now.is_active() || waits {
                return Ok(());
            }
            if fails(&now) && !is_old {
                break "does not start when somebody connects";
            }
        }
        if Instant::now() > deadline {
            break "does not come up when somebody connects";
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let name = if socket.accept {
        socket.name.replace(".socket", "@.service")
    } else {
        service.name.clone()
    };
    Err(SysError::new(
        format!("{name} {why}"),
        format!("see journalctl -u '{}'", name.replace("@.", "@*.")),
    ))
}
