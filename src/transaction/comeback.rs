//! Whether the old owners of the port are back, and last. What listens while its start does not come to an end,
//! or ends again and again, is no way in that lasts.

use std::time::{Duration, Instant};

use super::machine::STEADY;
use super::rollback::LISTENERS;
use super::run::Run;
use crate::observe::Observed;
use crate::plan::held;
use crate::sys::units::Unit;

/// How long a service that listens already may take to say that it has started: somewhat longer than systemd
/// waits by default (systemd-system.conf(5), DefaultTimeoutStartSec=).
const STARTED: Duration = Duration::from_secs(100);
/// How long a unit rests at most that somebody restarts: it is stopped first. (A model of a host waits for
/// nothing.)
pub(super) const RESTART: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 1000 });
/// How long systemd's own next tries count after a start that has failed.
const TRIES: Duration = Duration::from_secs(3);
/// How often an sshd may end before it is one that comes and goes.
const ENDS: u32 = 3;
/// How long an sshd has to last after one that has ended or failed. (A model of a host waits for nothing.)
const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 2000 });

/// What has become of the old owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Back {
    /// They have started, hold their listeners, and last.
    Lasting,
    /// They run, and something is missing; or nothing is known of them.
    Partly,
    /// They have not started, or come and go.
    Unsteady,
}

/// Waits until they are, or it is plain that they are not. `has_failed`: something has, on the way back.
pub(super) fn wait(run: &mut Run, before: &Observed, has_failed: bool) -> Back {
    let begun = Instant::now();
    let mut comeback = Comeback::new(has_failed, begun);
    let mut is_told = false;
    loop {
        let Ok(now) = run.machine.observe() else { return Back::Partly };
        let seen = Seen::of(before, &now);
        if let Some(back) = comeback.judge(&seen, Instant::now()) {
            return back;
        }
        let hangs = seen.listens && now.service.active == "activating";
        if hangs && !is_told && begun.elapsed() > TRIES {
            run.note(&format!(
                "{} listens, and has not said that it has started: waiting {} s at most",
                before.service.name,
                STARTED.as_secs()
            ));
            is_told = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a look at the host shows.
struct Seen {
    /// An owner does not even try.
    rests: bool,
    /// Every old listener is there.
    listens: bool,
    /// Every owner has started.
    active: bool,
    /// sshd's process id, 0 where there is none.
    sshd: u32,
}

impl Seen {
    fn of(before: &Observed, now: &Observed) -> Self {
        let owners = [(&before.socket, &now.socket), (&before.service, &now.service)];
        let owners = || owners.iter().filter(|(was, _)| was.is_active()).map(|(_, is)| *is);
        let rests = |unit: &Unit| matches!(unit.active.as_str(), "failed" | "inactive");
        let held_now = held(now);
        Self {
            rests: owners().any(rests),
            listens: held(before).iter().all(|at| held_now.contains(at)),
            active: owners().all(Unit::is_active),
            sshd: now.service.main_pid,
        }
    }
}

/// What the looks so far have shown.
struct Comeback {
    has_failed: bool,
    /// Since when is waited: somebody may restart it, and that takes as long as a start.
    since: Instant,
    /// Since when the same sshd is back.
    steady: Instant,
    /// The first sshd that listened, and the last that was back.
    first: Option<u32>,
    last: Option<u32>,
    resting: Option<Instant>,
    /// How often one that was back has ended.
    ended: u32,
}

impl Comeback {
    fn new(has_failed: bool, now: Instant) -> Self {
        let (since, steady) = (now, now);
        Self { has_failed, since, steady, first: None, last: None, resting: None, ended: 0 }
    }

    /// What has become of them; `None` where that is not plain yet. Pure.
    fn judge(&mut self, seen: &Seen, now: Instant) -> Option<Back> {
        if !seen.rests {
            self.resting = None;
        } else if now - *self.resting.get_or_insert(now) >= RESTART {
            return Some(self.given_up());
        }
        // Behind a socket there may be none yet.
        if self.last.is_some_and(|last| last != seen.sshd && last != 0) {
            self.ended += 1;
            self.since = now;
            self.last = None;
        }
        let is_back = seen.listens && seen.active;
        if !is_back || self.last.is_none() {
            self.steady = now;
        }
        if is_back {
            self.last = Some(seen.sshd);
        }
        // An sshd that has ended may do so again.
        let lasts = if self.is_unsteady() { AGAIN } else { STEADY };
        if is_back && now - self.steady >= lasts {
            return Some(Back::Lasting);
        }
        if self.ended >= ENDS {
            return Some(Back::Unsteady);
        }
        let limit = match self.has_failed {
            // Somewhat later than systemd, which may call it off itself.
            _ if seen.listens && *self.first.get_or_insert(seen.sshd) == seen.sshd => STARTED,
            true => TRIES,
            false => LISTENERS,
        };
        // Who is back in time may show that it lasts.
        let is_late = !is_back || self.steady > self.since + limit;
        (now - self.since > limit && is_late).then(|| self.given_up())
    }

    fn is_unsteady(&self) -> bool {
        self.has_failed || self.ended > 0
    }

    fn given_up(&self) -> Back {
        if self.is_unsteady() { Back::Unsteady } else { Back::Partly }
    }
}
