//! Behind a socket nothing has to run: that it listens says nothing of the sshd that it would start for whoever
//! connects. So somebody does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::machine::{JOB, LISTENERS, Machine};
use crate::observe::Observed;
use crate::sys::SysError;
use crate::sys::probe::{Heard, Visitor};
use crate::sys::units::Unit;

/// Why a start counts as failed; `Ok` where it does not.
type Judged = Result<(), &'static str>;

/// Connects where the socket of a host listens, and sees whether that starts sshd. That nobody takes the
/// connection says nothing, where a packet filter lets nobody in from here; nor does a start that waits for other
/// units, as for the network at boot. That it fails does, or does not come to an end. An address that only
/// another host has (`FreeBind=`) would lead to that one.
///
/// # Errors
/// Where what the socket starts does not start.
pub(super) fn starts(machine: &dyn Machine, host: &Observed) -> Result<(), SysError> {
    let (socket, service) = (&host.socket, &host.service);
    if !socket.is_active() {
        return Ok(());
    }
    let now = machine.observe();
    let has = |at: &SocketAddr| now.as_ref().unwrap_or(host).has(at.ip());
    let own: Vec<_> = host.held().into_iter().filter(has).collect();
    let knock = || own.iter().find_map(|at| machine.knock(at));
    let (name, judged) = if socket.accept {
        (socket.name.replace(".socket", "@.service"), instance_starts(machine, socket, knock))
    } else {
        (service.name.clone(), service_starts(machine, service, knock))
    };
    judged.map_err(|why| {
        let units = name.replace("@.", "@*.");
        SysError::new(format!("{name} {why}"), format!("see journalctl -u '{units}'"))
    })
}

/// One sshd for all connections (systemd.socket(5), `Accept=no`).
fn service_starts(
    machine: &dyn Machine,
    service: &Unit,
    knock: impl Fn() -> Option<Visitor>,
) -> Judged {
    let look = || machine.unit(&service.name);
    let fails = |unit: &Unit| unit.active == "failed" || unit.sub.starts_with("auto-restart");
    // What had failed before is tried anew.
    let mut is_old = match look() {
        Ok(now) if now.is_active() => return Ok(()),
        now => now.is_ok_and(|now| fails(&now)),
    };
    let Some(_visitor) = knock() else { return Ok(()) };
    let waits = |unit: &Unit| unit.active == "inactive" && unit.job == "start";
    let starts = || look().is_ok_and(|now| now.active == "activating" && !fails(&now));
    let judged = watch(starts, || {
        let now = look().ok()?;
        is_old &= fails(&now);
        if now.is_active() {
            return Some(Ok(()));
        }
        (fails(&now) && !is_old).then_some(Err("does not start when somebody connects"))
    });
    if judged.is_err() && look().is_ok_and(|now| waits(&now)) { Ok(()) } else { judged }
}

/// An sshd for each connection (`Accept=yes`).
fn instance_starts(
    machine: &dyn Machine,
    socket: &Unit,
    knock: impl Fn() -> Option<Visitor>,
) -> Judged {
    let instances = socket.name.replace(".socket", "@*.service");
    let failed = || -> BTreeSet<String> {
        machine.units("failed", &[&instances]).unwrap_or_default().into_iter().collect()
    };
    let before = failed();
    let Some(visitor) = knock() else { return Ok(()) };
    let starts = || machine.units("activating", &[&instances]).is_ok_and(|all| !all.is_empty());
    watch(starts, || match visitor.hears() {
        Heard::Something => Some(Ok(())),
        Heard::End if failed().is_subset(&before) => Some(Ok(())),
        Heard::End => Some(Err("ends at once when somebody connects")),
        Heard::NothingYet => None,
    })
}

/// Looks until it is plain, for as long as listeners may take once nothing `starts` any more, which may take as long
/// as a job. What has started has not spoken yet.
fn watch(starts: impl Fn() -> bool, mut look: impl FnMut() -> Option<Judged>) -> Judged {
    let begun = Instant::now();
    let mut rests = begun;
    loop {
        if let Some(judged) = look() {
            return judged;
        }
        if starts() && begun.elapsed() < JOB {
            rests = Instant::now();
        }
        if begun.elapsed() > JOB || rests.elapsed() > LISTENERS {
            return Err("does not come up when somebody connects");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
