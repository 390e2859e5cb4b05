//! The trial: the new listener, with nothing changed on disk. A reboot takes it back.

use std::time::{Duration, Instant};

use super::decision::{self, Decision, Verdict};
use super::journal::Record;
use super::run::Run;
use super::{bridge, guard, steps, welcome};
use crate::observe::serves;
use crate::spec::Confirm;
use crate::step::{Op, Role};
use crate::sys::fault::point;
use crate::sys::process::Process;
use crate::verify::logins::{Answer, Asked};

/// How a trial ended.
pub(super) enum Ended {
    /// Nothing was changed, and nothing may be.
    Refused(String),
    /// It has to be taken back.
    Failed(String),
    /// Somebody decided.
    Decided(Decision),
}

/// Makes everything ready, tries the new listener, and waits for the decision.
pub(super) fn run(run: &mut Run) -> Ended {
    if let Err(why) = prepare(run) {
        return Ended::Refused(why);
    }
    let deadline = Instant::now() + run.limit();
    if let Err(why) = try_out(run, deadline) {
        return Ended::Failed(why);
    }
    match decide(run, deadline) {
        Ok(decision) => Ended::Decided(decision),
        Err(why) => Ended::Failed(why),
    }
}

/// Refuses a host that has moved on, or would seem another one; then images, recovery, guard.
fn prepare(run: &mut Run) -> Result<(), String> {
    let now = run.observe().map_err(|error| error.to_string())?;
    let moved = run.before.differences(&now, false);
    if !moved.is_empty() {
        return Err(format!("the host has changed since the plan was made: {}", moved.join("; ")));
    }
    let other = run
        .machine
        .other_host_key(&bridge::folder(&run.id), &run.before)
        .map_err(|error| error.to_string())?;
    if let Some(why) = other {
        return Err(why);
    }
    welcome::refuse_unread(run, &now)?;
    let files = run.machine.files();
    let mut paths = Vec::new();
    for (_, step) in run.trial().into_iter().chain(run.permanent()) {
        for path in step.op.paths(&run.before) {
            if !paths.iter().any(|(known, _)| *known == path) {
                let image = files.image(&path).map_err(|error| error.to_string())?;
                paths.push((path, image));
            }
        }
    }
    let own = guard::own_images(files, &run.id).map_err(|error| error.to_string())?;
    run.record(Record::Images { paths, own }).map_err(|error| error.to_string())?;
    point(format_args!("trial.images")).map_err(|error| error.to_string())?;
    guard::arm(run).map_err(|error| error.to_string())
}

/// Brings the trial's listener up, speaks to it, and tries who can log in. Where a person will try that too,
/// and the old listener is there still, what comes of it is only told.
fn try_out(run: &mut Run, deadline: Instant) -> Result<(), String> {
    let forced = run.terms.as_ref().map(|terms| terms.forced.clone()).unwrap_or_default();
    for risk in &forced {
        let text = format!("--force-lockout-risk was given: {risk}");
        tracing::warn!("{text}");
        run.note(&text);
    }
    let logins = run.machine.log_in(logins_of(run));
    let steps = run.trial();
    steps::execute(run, &steps, deadline).map_err(|error| error.to_string())?;
    let listens = run.trial().into_iter().find_map(|(_, step)| match step.op {
        Op::Listen(bridge) if bridge.role == Role::Trial => Some(bridge.endpoints),
        _ => None,
    });
    let Some(endpoints) = listens else { return Ok(()) };
    let mut faults =
        run.machine.greet(&endpoints, &run.before).map_err(|error| error.to_string())?;
    let lost = |_| "the logins that were tried are lost".to_owned();
    let answer = match logins.join().map_err(lost)? {
        Err(error) if by_probe(run) => return Err(error.to_string()),
        // A person tries it.
        Err(error) => Answer { unproven: Some(error.to_string()), ..Answer::default() },
        Ok(answer) => answer,
    };
    let Answer { faults: refused, unproven, notes } = answer;
    let is_swap = steps.iter().any(|(_, step)| matches!(step.op, Op::Stop(_)));
    if forced.is_empty() && (by_probe(run) || is_swap) {
        faults.extend(refused);
    } else {
        refused.iter().for_each(|refused| run.note(refused));
    }
    let unproven = unproven.map(|why| format!("harden cannot try who still gets in: {why}"));
    if by_probe(run) {
        let yourself = |why| format!("{why}. {}", decision::NOT_PROVEN);
        faults.extend(left_alone(run).into_iter().chain(unproven).map(yourself));
    } else {
        unproven.iter().for_each(|why| run.note(why));
    }
    for note in notes {
        run.note(&note);
    }
    point(format_args!("trial.proven")).map_err(|error| error.to_string())?;
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// The address on which whoever runs harden came in, where nothing would listen on it any more: a person
/// would notice.
fn left_alone(run: &Run) -> Option<String> {
    let at = run.terms.as_ref()?.at?.to_canonical();
    let served = at.is_loopback() || serves(&run.expect.endpoints, at);
    (!served).then(|| format!("this session came in on {at}, where nothing would listen any more"))
}

fn by_probe(run: &Run) -> bool {
    run.terms.as_ref().is_none_or(|terms| terms.confirm == Confirm::Probe)
}

/// What a login is tried with; the one who runs harden first.
pub(super) fn logins_of(run: &Run) -> Asked {
    let terms = run.terms.clone();
    let operator = terms.as_ref().and_then(|terms| terms.operator.clone());
    Asked {
        before: run.before.clone(),
        operator,
        admins: terms.as_ref().map(|terms| terms.admins.clone()).unwrap_or_default(),
        from: terms.as_ref().and_then(|terms| terms.from),
        attended: !by_probe(run),
        moves: run.expect.endpoints != run.before.held(),
        folder: bridge::folder(&run.id),
        candidate: terms.as_ref().map(|terms| terms.candidate.clone()).unwrap_or_default(),
        options: terms.map(|terms| terms.options).unwrap_or_default(),
    }
}

/// Decides, or waits for whoever does.
fn decide(run: &mut Run, deadline: Instant) -> Result<Decision, String> {
    let listener = listener(run);
    // Without a trial there is nothing that a person could try.
    let Some(listener) = listener.filter(|_| !by_probe(run)) else {
        return decided(run, Verdict::Commit, "the new listener answers");
    };
    run.record(Record::Waiting).map_err(|error| error.to_string())?;
    point(format_args!("trial.waiting")).map_err(|error| error.to_string())?;
    let mut checked = Instant::now();
    loop {
        let stands = decision::read(run.machine.files(), &run.id);
        if let Some(decision) = stands.map_err(|error| error.to_string())? {
            return Ok(decision);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return decided(run, Verdict::Rollback, decision::NOT_IN_TIME);
        }
        if run.machine.stop_requested() {
            return decided(run, Verdict::Rollback, "harden's service was told to stop");
        }
        // A system that goes down ends it, and this process next.
        if !listener.lives() && !run.machine.goes_down() {
            return decided(run, Verdict::Rollback, "the sshd of the trial has ended");
        }
        if checked.elapsed() > Duration::from_secs(1) {
            guard::keep_armed(run, left).map_err(|error| error.to_string())?;
            checked = Instant::now();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn decided(run: &Run, verdict: Verdict, why: &str) -> Result<Decision, String> {
    decision::decide(run.machine.files(), &run.id, verdict, why).map_err(|error| error.to_string())
}

/// The sshd of the trial.
pub(super) fn listener(run: &Run) -> Option<Process> {
    run.records().iter().rev().find_map(|record| match record {
        Record::Trial { listener } => Some(listener.clone()),
        _ => None,
    })
}
