//! Doing one step.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::journal::Record;
use super::machine::Machine;
use super::run::Run;
use super::{along, bridge, on_demand, welcome};
use crate::step::{Op, Role, Step};
use crate::sys::fault::point;
use crate::sys::{Image, Result, SysError};

/// Does steps in order, before the deadline.
pub(super) fn execute(run: &mut Run, steps: &[(usize, Step)], deadline: Instant) -> Result<()> {
    let mut rest = steps;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(together(rest));
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SysError::new("cannot go on", "the time limit is over"));
        }
        execute_together(run, now, left)?;
        rest = later;
    }
    Ok(())
}

/// How many of the steps are one hand-over: whoever lets go of a port, and who takes it. Units and the trial
/// are kept in order by systemd; for a service the trial makes way. A rescue waits for nobody.
fn together(steps: &[(usize, Step)]) -> usize {
    let op = |at: usize| steps.get(at).map(|(_, step)| &step.op);
    let stops = (0..steps.len()).take_while(|at| matches!(op(*at), Some(Op::Stop(_)))).count();
    match (op(stops), op(stops + 1)) {
        (Some(Op::Listen(bridge)), _) if stops > 0 && bridge.role == Role::Trial => stops + 1,
        (Some(Op::Silence(Role::Trial)), Some(Op::Start(_))) if stops == 0 => 2,
        _ => 1,
    }
}

/// Journals steps, does them, and journals that they are done. Nothing waits for the disk, or for an
/// answer of systemd's, while a port changes hands.
fn execute_together(run: &mut Run, steps: &[(usize, Step)], left: Duration) -> Result<()> {
    if steps.iter().any(|(_, step)| matches!(step.op, Op::Stop(_) | Op::Restart(_))) {
        along::remember(run)?;
    }
    for (index, step) in steps {
        let begun = begun(run, *index, &step.op);
        run.record(begun)?;
        if let Op::Start(unit) | Op::Restart(unit) = &step.op {
            run.machine.forgive(unit);
        }
    }
    let last_to_go = steps.len().checked_sub(2);
    let mut going = None;
    let done = perform_all(run, steps, last_to_go, left, &mut going);
    let is_silence = done.as_ref().is_err_and(SysError::is_silence);
    let gone = match going {
        None => Ok(()),
        // What it waits for is not worth waiting for any more.
        Some(Op::Stop(unit)) if is_silence => run.machine.cancel_job(unit),
        // Where nothing has taken the port, whatever comes next must not meet the one that still goes.
        Some(op) => perform(run, op, left),
    };
    done.and(gone)?;
    for (index, _) in steps {
        run.record(Record::Done { index: *index })?;
    }
    Ok(())
}

/// Does steps in turn; the one that lets go last is not waited for: it is `going`.
fn perform_all<'s>(
    run: &mut Run,
    steps: &'s [(usize, Step)],
    last_to_go: Option<usize>,
    left: Duration,
    going: &mut Option<&'s Op>,
) -> Result<()> {
    for (at, (index, step)) in steps.iter().enumerate() {
        point(format_args!("step-{}.before", index + 1))?;
        let taker = steps.get(at + 1).map(|(_, step)| &step.op).filter(|_| Some(at) == last_to_go);
        match (&step.op, taker) {
            (Op::Stop(unit), Some(_)) => {
                *going = Some(&step.op);
                run.machine.let_go(unit)?;
            }
            (Op::Silence(role), Some(Op::Start(taker))) => {
                // Where that fails, it has not hung up, and goes on listening.
                run.machine.make_way(&bridge::unit(&run.id, *role), taker, left)?;
                *going = Some(&step.op);
            }
            (op, _) => perform(run, op, left)?,
        }
        if let (Op::Start(unit), Some(Op::Silence(role))) = (&step.op, *going) {
            take_all(run, unit, *role, left)?;
        }
        point(format_args!("step-{}.after", index + 1))?;
    }
    Ok(())
}

/// A service that came a moment too early found a port taken, of one family perhaps; now it is free.
fn take_all(run: &mut Run, unit: &str, from: Role, left: Duration) -> Result<()> {
    let Some(bridge) = run.bridge(from) else { return Ok(()) };
    if !unit.ends_with(".service") || run.machine.holds(unit, &bridge.endpoints)? {
        return Ok(());
    }
    run.machine.forgive(unit);
    perform(run, &Op::Restart(unit.to_owned()), left)
}

/// The record of a step that is about to be done: the way back goes by these.
pub(super) fn begun(run: &Run, index: usize, op: &Op) -> Record {
    let images = run.images();
    let before = op.paths(&run.before).into_iter();
    let before = before.filter_map(|path| Some((path.clone(), images.get(&path)?.clone())));
    Record::Step { index, op: op.clone(), before: before.collect() }
}

/// A job's success is not a running unit, so the state is read again.
fn perform(run: &mut Run, op: &Op, left: Duration) -> Result<()> {
    let machine = run.machine;
    match op {
        Op::Put { path, image } => {
            refuse_edited(run, path, image)?;
            machine.files().put_back(path, image)
        }
        Op::Stop(unit) => {
            // A unit that is gone cannot be stopped, and does not run.
            if machine.unit(unit)?.active != "inactive" {
                machine.job("StopUnit", unit, left)?;
            }
            expect_active(machine, unit, false)
        }
        Op::Start(unit) => {
            start(machine, "StartUnit", unit, left)?;
            expect_active(machine, unit, true)
        }
        Op::Restart(unit) => {
            start(machine, "RestartUnit", unit, left)?;
            expect_active(machine, unit, true)
        }
        Op::Enable(unit) => machine.enable(unit),
        Op::Disable(unit) => machine.disable(unit),
        Op::Unmask(unit) => machine.unmask(unit),
        Op::Reload => machine.reload(),
        Op::ResetFailed(unit) => {
            machine.forgive(unit);
            Ok(())
        }
        Op::AwaitListeners => {
            start_behind_socket(run);
            machine.await_listeners(&run.expect, left)?;
            welcome::refuse_turned_away(run)
        }
        Op::End(process) => machine.end(process),
        Op::Listen(wanted) => {
            let listener = bridge::listen(run, wanted)?;
            if wanted.role == Role::Trial {
                run.record(Record::Trial { listener })?;
            }
            Ok(())
        }
        Op::Silence(role) => bridge::silence(run, *role),
    }
}

/// Has the sshd behind the new socket start: that may take longer than an answer may. Whether it answers then is
/// what counts.
fn start_behind_socket(run: &Run) {
    let Ok(now) = run.observe() else { return };
    if now.socket.name != run.expect.owner {
        return;
    }
    if let Err(error) = on_demand::starts(run.machine, &now) {
        tracing::warn!(%error, "behind the new socket");
    }
}

/// Somebody else's edit is not overwritten unseen.
pub(super) fn refuse_edited(run: &Run, path: &PathBuf, image: &Image) -> Result<()> {
    let Some(before) = run.images().remove(path) else { return Ok(()) };
    let now = run.machine.files().image(path)?;
    if now.is_like(&before) || now.is_like(image) {
        return Ok(());
    }
    Err(SysError::new(
        format!("cannot write {}", path.display()),
        "somebody has changed it since the transaction began",
    ))
}

/// Starts or restarts a unit. Where that fails it is tried once more: a child of the sshd that let go may
/// have held its listener for a moment, and an sshd that finds its port taken is not restarted
/// (`RestartPreventExitStatus=255`).
fn start(machine: &dyn Machine, method: &'static str, unit: &str, left: Duration) -> Result<()> {
    let deadline = Instant::now() + left;
    match start_once(machine, method, unit, left) {
        Err(error) if !error.is_silence() => {
            machine.forgive(unit);
            std::thread::sleep(Duration::from_millis(100));
            let left = deadline.saturating_duration_since(Instant::now());
            start_once(machine, method, unit, left).map_err(|_| error)
        }
        other => other,
    }
}

/// Where systemd tries again by itself (`Restart=on-failure`), its next tries count too.
fn start_once(
    machine: &dyn Machine,
    method: &'static str,
    unit: &str,
    left: Duration,
) -> Result<()> {
    let Err(error) = machine.job(method, unit, left) else { return Ok(()) };
    let deadline = Instant::now() + left.min(Duration::from_secs(3));
    while !error.is_silence() && Instant::now() < deadline {
        let now = machine.unit(unit)?;
        if now.is_active() {
            return Ok(());
        }
        if now.active != "activating" {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(error)
}

fn expect_active(machine: &dyn Machine, unit: &str, active: bool) -> Result<()> {
    let now = machine.unit(unit)?;
    if now.is_active() == active {
        return Ok(());
    }
    let wanted = if active { "start" } else { "stop" };
    let state = format!("it is {} ({}), result {}", now.active, now.sub, now.result);
    Err(SysError::new(format!("{unit} did not {wanted}"), state))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Bridge;

    #[test]
    fn a_port_changes_hands_at_once_where_the_trial_takes_or_gives_it() {
        let step = |op| (0, Step { op, why: String::new() });
        let stop = || step(Op::Stop("ssh.service".into()));
        let start = || step(Op::Start("ssh.service".into()));
        let listen = |role| step(Op::Listen(Bridge { role, endpoints: Vec::new() }));
        let silence = |role| step(Op::Silence(role));
        assert_eq!(together(&[stop(), stop(), listen(Role::Trial), stop()]), 3);
        assert_eq!(together(&[silence(Role::Trial), start()]), 2);
        assert_eq!(together(&[stop(), listen(Role::Rescue)]), 1);
        assert_eq!(together(&[stop(), step(Op::Reload), listen(Role::Trial)]), 1);
        assert_eq!(together(&[silence(Role::Rescue), start()]), 1);
        assert_eq!(together(&[listen(Role::Trial), stop()]), 1);
        assert_eq!(together(&[stop()]), 1);
    }
}
