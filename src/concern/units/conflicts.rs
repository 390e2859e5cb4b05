//! What stands in the way of a new listener: other programs, other sshds, a deliberate stop.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::concern::listening::{Listening, collide};
use crate::error::Refusal;
use crate::observe::{Listener, NOT_TO_BE_RUN, Observed, Owner, Untried};
use crate::step::{FileChange, Op, Step};
use crate::sys::process::Process;
use crate::sys::units::Unit;

/// What systemd has not read yet would start something else than what was looked at.
pub(crate) fn refuse_unread(observed: &Observed) -> Result<(), Refusal> {
    let Some(unit) = observed.unread_unit() else { return Ok(()) };
    Err(Refusal::new(
        "unread-unit",
        format!("the files of {unit} have changed, and systemd has not read them"),
        format!(
            "systemctl daemon-reload, see what it starts now (systemctl cat {unit}), and plan again"
        ),
    ))
}

/// What systemd cannot read it could not start again.
fn refuse_broken(observed: &Observed) -> Result<(), Refusal> {
    let (service, socket) = (&observed.service, &observed.socket);
    let counts = |unit: &Unit| unit.name == service.name || unit.is_active() || unit.is_enabled();
    let broken = |unit: &&Unit| unit.is_broken() && counts(unit);
    if let Some(unit) = [service, socket].into_iter().find(broken) {
        return Err(Refusal::new(
            "broken-unit",
            format!(
                "systemd cannot read {}, and would not start it again ({})",
                unit.name, unit.load
            ),
            format!(
                "see what is wrong (systemctl status {0}; systemctl cat {0}), mend it, systemctl \
                 daemon-reload, and plan again",
                unit.name
            ),
        ));
    }
    Ok(())
}

/// What is as it is on purpose, or is broken, is for somebody to mend first.
pub(crate) fn refuse_blocked(observed: &Observed) -> Result<(), Refusal> {
    let (service, socket) = (&observed.service, &observed.socket);
    refuse_broken(observed)?;
    if let Some(unit) = [service, socket].into_iter().find(|unit| unit.file == "masked-runtime") {
        return Err(Refusal::new(
            "masked-runtime",
            format!("{} is masked until the next boot", unit.name),
            format!("systemctl unmask --runtime {}, and plan again", unit.name),
        ));
    }
    let runs_masked = |unit: &&Unit| unit.is_masked() && unit.is_active();
    if let Some(unit) = [service, socket].into_iter().find(runs_masked) {
        return Err(Refusal::new(
            "runs-masked",
            format!(
                "{0} runs though it is masked: once stopped, nothing could start it",
                unit.name
            ),
            format!("systemctl unmask {0}, or stop it, and plan again", unit.name),
        ));
    }
    if socket.is_active() {
        refuse_one_interface(observed)?;
        refuse_other_service(observed)?;
    }
    if observed.not_to_be_run {
        return Err(Refusal::new(
            "not-to-be-run",
            format!("{NOT_TO_BE_RUN} exists, so systemd would not start sshd"),
            "remove that file if sshd shall run here",
        ));
    }
    Ok(())
}

/// What a unit does to its sshd, harden's own have not: what comes of it, nobody has seen yet.
///
/// `serving`: the unit whose sshd people would come in by; `by_socket`: whether that has its listeners from the socket.
pub(crate) fn refuse_untried(
    observed: &Observed,
    serving: &str,
    by_socket: bool,
) -> Result<(), Refusal> {
    let counts = |untried: &&Untried| !(by_socket && untried.of_listeners);
    let mut all = observed.untried.iter().filter(counts);
    let Some(untried) = all.find(|untried| untried.unit == serving) else {
        return Ok(());
    };
    let Untried { unit, directive, path, .. } = untried;
    Err(Refusal::new(
        "untried",
        format!(
            "{unit} has `{directive}` ({}), and no sshd has run with that yet: whether anybody gets in, \
             and what they may do then, harden cannot try",
            path.display()
        ),
        format!(
            "take it out there; or see for yourself first: systemctl restart {unit}, and log in anew"
        ),
    ))
}

/// The sshd of each connection has options of its own, and harden looks after those of the service.
pub(crate) fn refuse_other_options(observed: &Observed) -> Result<(), Refusal> {
    let Some(line) = observed.per_connection.as_ref() else { return Ok(()) };
    let ours = observed.command_line.settings();
    let unit = observed.behind_socket();
    let differs = |words: &Vec<String>| words != &ours;
    let option = Some(line.settings()).filter(differs).map(|words| words.join(" "));
    let Some(option) = option.or_else(|| line.other_file()) else { return Ok(()) };
    let service = &observed.service.name;
    let what = if option.is_empty() {
        format!("{unit} starts sshd without `{}`, which {service} has", ours.join(" "))
    } else {
        format!("{unit} starts sshd with `{option}`, and {service} does not")
    };
    Err(Refusal::new(
        "shadowed",
        what,
        format!("let both have the same options (systemctl cat {unit}), or say `socket: disabled`"),
    ))
}

/// A socket that starts something else than sshd's service is somebody's own.
fn refuse_other_service(observed: &Observed) -> Result<(), Refusal> {
    let (service, socket) = (&observed.service, &observed.socket);
    let other = socket.triggers.iter().find(|unit| **unit != service.name);
    let Some(other) = other.filter(|_| !socket.accept) else {
        return Ok(());
    };
    Err(Refusal::new(
        "other-service",
        format!("{} starts {other}, and not {}", socket.name, service.name),
        format!("take Service= out first: systemctl cat {} shows where it stands", socket.name),
    ))
}

/// An sshd of harden's own takes connections on every interface, and the proof goes over loopback.
pub(super) fn refuse_one_interface(observed: &Observed) -> Result<(), Refusal> {
    let Unit { name, device, .. } = &observed.socket;
    if device.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(
        "one-interface",
        format!(
            "{name} takes connections on the interface {device} alone (BindToDevice=), and harden's \
             would be open on all"
        ),
        format!(
            "take BindToDevice= out (systemctl cat {name} shows where it stands); `ssh.listen` with \
             the addresses of {device} does nearly the same"
        ),
    ))
}

/// What would not start again is not stopped: what only systemd itself may start or stop, what is masked, what
/// needs something that is; unless a step takes that away.
pub(crate) fn refuse_refusing<'s>(
    observed: &Observed,
    steps: impl Iterator<Item = &'s Step>,
) -> Result<(), Refusal> {
    let ops: Vec<&Op> = steps.map(|step| &step.op).collect();
    let mended = |name: &str| {
        ops.iter().any(|op| match op {
            Op::Unmask(unit) | Op::Disable(unit) => unit == name,
            Op::Put { path, .. } => path.ends_with(name),
            _ => false,
        })
    };
    for unit in [&observed.service, &observed.socket] {
        let name = &unit.name;
        let is_started = |name: &str| {
            ops.iter().any(|op| matches!(op, Op::Start(unit) | Op::Restart(unit) if unit == name))
        };
        let starts = is_started(name);
        let stops = ops.iter().any(|op| matches!(op, Op::Stop(unit) if unit == name));
        if unit.refuses && (starts || stops) {
            return Err(Refusal::new(
                "refuses",
                format!(
                    "{name} may not be started or stopped by hand (RefuseManualStart=, \
                     RefuseManualStop=)"
                ),
                format!("see which file says so (systemctl cat {name}), and change that first"),
            ));
        }
        let starts =
            starts || (observed.is_started_by_socket(unit) && is_started(&observed.socket.name));
        if starts && unit.is_masked() && !mended(name) {
            return Err(Refusal::new(
                "masked",
                format!("{name} is masked, and would not start"),
                format!("systemctl unmask {name}, and try again"),
            ));
        }
        let lost = observed.lost_needs_of(name).find(|needed| !mended(needed));
        if let Some(needed) = lost.filter(|_| starts) {
            return Err(Refusal::new(
                "lost-need",
                format!("{name} needs {needed}, which is masked or missing, and would not start"),
                format!(
                    "bring {needed} back (systemctl status {needed}), or take it out of {name} \
                     (systemctl cat {name})"
                ),
            ));
        }
    }
    Ok(())
}

/// A socket that something else than a link pulls in, which disabling would take away, would be back at the next
/// boot, with the old port. Of what stands in files, the plan takes those away that change.
pub(super) fn refuse_wanted(observed: &Observed, files: &[FileChange]) -> Result<(), Refusal> {
    let socket = &observed.socket;
    let stays = |path: &&PathBuf| !files.iter().any(|file| file.path == **path);
    let Some(by) = observed.pulled_in_by.iter().find(stays).map(|path| path.display()) else {
        return Ok(());
    };
    Err(Refusal::new(
        "wanted",
        format!("{by} pulls {} in, which would have its port back at the next boot", socket.name),
        format!("take {} out there, systemctl daemon-reload, and plan again", socket.name),
    ))
}

/// sshd processes that listen outside their unit: orphans of ssh.service are ended, others are
/// somebody's and are not harden's to end.
pub(super) fn leftovers(
    observed: &Observed,
    listening: &Listening,
) -> Result<Vec<(Process, Vec<SocketAddr>)>, Refusal> {
    let mut found: Vec<(Process, Vec<SocketAddr>)> = Vec::new();
    for listener in observed.listeners.iter().filter(|listener| listener.ssh) {
        match &listener.owner {
            Owner::Process(process) if process.pid == observed.service.main_pid => {
                return Err(lost(observed, process));
            }
            Owner::Process(process) if process.unit == observed.service.name => {
                match found.iter_mut().find(|(other, _)| other == process) {
                    Some((_, endpoints)) => endpoints.extend(listener.serves()),
                    None => found.push((process.clone(), listener.serves())),
                }
            }
            Owner::Process(process) => return Err(other_sshd(observed, listener, process)),
            Owner::Unit(unit)
                if *unit != observed.service.name && *unit != observed.socket.name =>
            {
                let at = SocketAddr::new(listener.address, listener.port);
                return Err(Refusal::new(
                    "other-listener",
                    format!("{unit} also listens for SSH, on {at}"),
                    format!(
                        "harden proves that {} alone does: systemctl disable --now {unit}",
                        listening.owner
                    ),
                ));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// systemd 257 forgets that a service runs and remembers its main process. When that ends, whoever ends it,
/// systemd stops at an assertion (service.c, `service_sigchld_event`), and the whole host with it.
fn lost(observed: &Observed, process: &Process) -> Refusal {
    let name = &observed.service.name;
    Refusal::new(
        "lost-sshd",
        format!(
            "systemd has lost track of {name}: it is {}, and its sshd (pid {}) runs on",
            observed.service.active, process.pid
        ),
        "if that sshd ends, systemd may crash; do not kill it. Reboot, then apply again",
    )
}

fn other_sshd(observed: &Observed, listener: &Listener, process: &Process) -> Refusal {
    let at = SocketAddr::new(listener.address, listener.port);
    let Process { name, pid, unit, .. } = process;
    let name_of_ours = &observed.service.name;
    let unneeded = |end: String| match observed.held().is_empty() {
        false => format!("end it first if you do not need it: {end}"),
        true => format!(
            "it may be your only way in: have {name_of_ours} listen on another port (systemctl start \
             {name_of_ours}), log in there, and then {end}"
        ),
    };
    let (place, hint) = if process.is_of_harden() {
        // Of a transaction whose journal is lost, and perhaps all that listens.
        let hint = "`harden rollback` has sshd's own unit take its place".to_owned();
        (format!(" of {unit}"), hint)
    } else if unit.ends_with(".service") {
        (format!(" of {unit}"), unneeded(format!("systemctl disable --now {unit}")))
    } else {
        (String::new(), unneeded(format!("kill {pid}")))
    };
    Refusal::new(
        "other-listener",
        format!("another SSH server listens on {at}: {name} (pid {pid}){place}"),
        hint,
    )
}

/// A port that a program other than sshd holds cannot be had.
pub(crate) fn refuse_taken(observed: &Observed, endpoints: &[SocketAddr]) -> Result<(), Refusal> {
    let taken = |listener: &&Listener| {
        let wanted = |held: &SocketAddr| endpoints.iter().any(|at| collide(held, at));
        !listener.ssh && listener.serves().iter().any(wanted)
    };
    // Without root nobody's sockets can be told apart: leave it to the run that has root.
    let Some(listener) =
        observed.listeners.iter().filter(|listener| listener.owner != Owner::Unseen).find(taken)
    else {
        return Ok(());
    };
    let at = SocketAddr::new(listener.address, listener.port);
    let unit = match &listener.owner {
        Owner::Process(process) if !process.unit.is_empty() => format!(" of {}", process.unit),
        _ => String::new(),
    };
    Err(Refusal::new(
        "port-taken",
        format!("port {} is taken: {} listens on {at}{unit}", listener.port, listener.owner),
        "choose another port, or stop that program first",
    ))
}
