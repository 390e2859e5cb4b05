//! Whether the old owners of the port are back, and last. What listens while its start does not come to an end,
//! or ends again and again, is no way in that lasts.

use std::time::{Duration, Instant};

use super::machine::{LISTENERS, STEADY};
use super::on_demand;
use super::run::Run;
use crate::observe::Observed;
use crate::sys::units::Unit;

/// How long a service that listens already may take to say that it has started: somewhat longer than systemd
/// waits by default (systemd-system.conf(5), DefaultTimeoutStartSec=).
const STARTED: Duration = Duration::from_secs(100);
/// How long a unit rests at most that somebody restarts: it is stopped first.
pub(super) const RESTART: Duration = Duration::from_secs(1);
/// How long systemd's own next tries count after a start that has failed.
const TRIES: Duration = Duration::from_secs(3);
/// How often an sshd may end before it is one that comes and goes.
const ENDS: u32 = 3;

/// How long is looked at what does not change.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// An sshd has to last as long.
    steady: Duration,
    /// As long after one that has ended or failed, which may happen again.
    again: Duration,
    /// A unit that rests as long is not just being restarted.
    rest: Duration,
}

const PATIENCE: Patience =
    Patience { steady: STEADY, again: Duration::from_secs(2), rest: RESTART };
/// A model of a host changes by what is done to it alone.
const NONE: Patience =
    Patience { steady: Duration::ZERO, again: Duration::ZERO, rest: Duration::ZERO };

/// What has become of the old owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Back {
    /// They have started, hold their listeners, and last.
    Lasting,
    /// They run, and something is missing; or nothing is known of them.
    Partly,
    /// They have not started, or come and go.
    Unsteady,
    /// They listen, and nobody gets in: behind a socket no sshd starts when somebody connects, or sshd takes no key.
    Mute(String),
}

/// Waits until they are, or it is plain that they are not. `has_failed`: something has, on the way back.
pub(super) fn wait(run: &mut Run, before: &Observed, has_failed: bool) -> Back {
    let begun = Instant::now();
    let patience = if cfg!(test) { NONE } else { PATIENCE };
    let mut comeback = Comeback::new(patience, has_failed, begun);
    let mut is_told = false;
    loop {
        let Ok(now) = run.observe() else { return Back::Partly };
        let seen = Seen::of(before, &now);
        match comeback.judge(&seen, Instant::now()) {
            Some(Back::Lasting) => match on_demand::starts(run.machine, before) {
                Ok(()) => return Back::Lasting,
                Err(error) => return Back::Mute(error.to_string()),
            },
            Some(back) => return back,
            None => {}
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
        let held_now = now.held();
        Self {
            rests: owners().any(Unit::rests),
            listens: before.held().iter().all(|at| held_now.contains(at)),
            active: owners().all(Unit::is_active),
            sshd: now.service.main_pid,
        }
    }
}

/// What the looks so far have shown.
struct Comeback {
    patience: Patience,
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
    fn new(patience: Patience, has_failed: bool, now: Instant) -> Self {
        let (since, steady) = (now, now);
        Self {
            patience,
            has_failed,
            since,
            steady,
            first: None,
            last: None,
            resting: None,
            ended: 0,
        }
    }

    /// What has become of them; `None` where that is not plain yet. Pure.
    fn judge(&mut self, seen: &Seen, now: Instant) -> Option<Back> {
        if !seen.rests {
            self.resting = None;
        } else if now - *self.resting.get_or_insert(now) >= self.patience.rest {
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
        let lasts = if self.is_unsteady() { self.patience.again } else { self.patience.steady };
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

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Seen = Seen { rests: true, listens: false, active: false, sshd: 0 };
    const STARTS: Seen = Seen { rests: false, listens: false, active: false, sshd: 7 };
    const HANGS: Seen = Seen { rests: false, listens: true, active: false, sshd: 7 };

    fn back(sshd: u32) -> Seen {
        Seen { rests: false, listens: true, active: true, sshd }
    }

    /// Looks every 50 ms at what `seen` shows after so many milliseconds, until it is plain; and after how many.
    fn judged(has_failed: bool, seen: impl Fn(u64) -> Seen) -> (Back, u64) {
        let begun = Instant::now();
        let mut comeback = Comeback::new(PATIENCE, has_failed, begun);
        let looks = (0..200_000).step_by(50);
        let mut judged =
            looks.map(|at| (at, comeback.judge(&seen(at), begun + Duration::from_millis(at))));
        judged.find_map(|(at, back)| Some((back?, at))).unwrap()
    }

    #[test]
    fn one_that_stays_is_back() {
        assert_eq!(judged(false, |_| back(7)).0, Back::Lasting);
        let slow = |at| if at < 5_000 { STARTS } else { back(7) };
        assert_eq!(judged(false, slow).0, Back::Lasting);
    }

    #[test]
    fn after_a_failure_it_has_to_last_longer() {
        let (back, after) = judged(true, |_| back(7));
        assert_eq!(back, Back::Lasting);
        assert!(u128::from(after) >= PATIENCE.again.as_millis(), "{after}");
    }

    #[test]
    fn a_restart_by_somebody_is_waited_for() {
        let restarted = |at| match at {
            0..300 => back(7),
            300..2_000 => STARTS,
            _ => back(8),
        };
        assert_eq!(judged(false, restarted).0, Back::Lasting);
    }

    #[test]
    fn one_that_comes_and_goes_is_not() {
        // Another process each time, and back at each look or at each second one.
        let (unsteady, after) = judged(true, |at| back(u32::try_from(at / 500).unwrap() + 1));
        assert_eq!(unsteady, Back::Unsteady);
        assert!(after < 3_000, "{after}");
        let flaps = |at| {
            if at / 200 % 2 == 0 { back(u32::try_from(at / 400).unwrap() + 1) } else { STARTS }
        };
        assert_eq!(judged(true, flaps).0, Back::Unsteady);
    }

    #[test]
    fn one_that_rests_is_given_up() {
        assert_eq!(judged(false, |_| GONE).0, Back::Partly);
        assert_eq!(judged(true, |_| GONE).0, Back::Unsteady);
    }

    #[test]
    fn a_start_that_hangs_is_given_up_once_systemd_has_done_so() {
        let (back, after) = judged(false, |_| HANGS);
        assert_eq!(back, Back::Partly);
        assert!(u128::from(after) > STARTED.as_millis(), "{after}");
        let (back, after) = judged(true, |_| STARTS);
        assert_eq!(back, Back::Unsteady);
        assert!(u128::from(after) > TRIES.as_millis() && after < 5_000, "{after}");
    }

    #[test]
    fn behind_a_socket_there_may_be_none_yet() {
        let on_demand = |at| if at < 200 { back(0) } else { back(7) };
        assert_eq!(judged(false, on_demand).0, Back::Lasting);
    }
}
