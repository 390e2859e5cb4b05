//! Who listens: the kernel's table of sockets, held against systemd's units.

use std::net::SocketAddr;
use std::path::Path;

use super::{Listener, Owner};
use crate::error::Error;
use crate::sys::process::Process;
use crate::sys::sockets::{self, Socket};
use crate::sys::systemd::Systemd;
use crate::sys::units::Unit;

/// Every listening TCP socket.
pub(super) fn listeners(
    systemd: &Systemd,
    service: &Unit,
    socket: &Unit,
) -> Result<Vec<Listener>, Error> {
    let sockets = sockets::listening()?;
    let holders = socket_units(systemd, socket, &sockets)?;
    let all = |service: &Unit| -> Vec<Listener> {
        let of = |socket: &Socket| {
            let orphans = orphans(socket, service).into_iter();
            [listener(socket, service, &holders)].into_iter().chain(orphans).collect::<Vec<_>>()
        };
        sockets.iter().flat_map(of).collect()
    };
    let found = all(service);
    let lost = |listener: &Listener| match &listener.owner {
        Owner::Process(process) => process.unit == service.name,
        _ => false,
    };
    if found.iter().any(lost) {
        // Or a connection has started it since systemd was asked.
        return Ok(all(&Unit::read(systemd, &service.name)?));
    }
    Ok(found)
}

/// ssh.socket, and other socket units that start an sshd.
fn socket_units(systemd: &Systemd, socket: &Unit, sockets: &[Socket]) -> Result<Vec<Unit>, Error> {
    let held_by_systemd = sockets.iter().filter(|one| one.holders.iter().any(|p| p.pid == 1));
    let held: Vec<SocketAddr> = held_by_systemd
        .map(|one| SocketAddr::new(one.address, one.port))
        .filter(|at| !socket.is_active() || !listens(socket, *at))
        .collect();
    let mut units = vec![socket.clone()];
    if held.is_empty() {
        return Ok(units);
    }
    for name in systemd.units("active", &["*.socket"])? {
        let unit = Unit::read(systemd, &name)?;
        let holds = name != socket.name && held.iter().any(|at| listens(&unit, *at));
        if holds && (name.contains("ssh") || starts_sshd(systemd, &unit)?) {
            units.push(unit);
        }
    }
    Ok(units)
}

fn listens(unit: &Unit, at: SocketAddr) -> bool {
    unit.listen.iter().any(|listened| listened.parse() == Ok(at))
}

/// Whether the service of a socket unit is an sshd (`Accept=yes` has one instance for each connection).
fn starts_sshd(systemd: &Systemd, socket: &Unit) -> Result<bool, Error> {
    let stem = socket.name.trim_end_matches(".socket");
    let instance = socket.accept.then(|| format!("{stem}@harden.service"));
    for name in instance.iter().chain(&socket.triggers) {
        let service = Unit::read(systemd, name)?;
        let program = service.exec_start.first().map(Path::new);
        let program = program.and_then(Path::file_name).unwrap_or_default();
        if is_name_of_sshd(&program.to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every sshd that shares a socket unit's descriptor and that systemd has lost track of: it would go on
/// listening when the unit is stopped. A child that was forked for a connection is none.
fn orphans(socket: &Socket, service: &Unit) -> Vec<Listener> {
    let shared = socket.holders.iter().any(|holder| holder.pid == 1);
    let lost = |holder: &&Process| {
        !is_main(holder, service) && holder.parent == 1 && holder.unit == service.name
    };
    let lost = socket.holders.iter().filter(|_| shared).filter(lost);
    let listener = |sshd: &Process| Listener {
        address: socket.address,
        port: socket.port,
        v6only: socket.v6only,
        owner: Owner::Process(sshd.clone()),
        ssh: true,
    };
    lost.filter(|holder| is_sshd(holder)).map(listener).collect()
}

/// Decides who holds a socket, and whether sshd answers on it.
fn listener(socket: &Socket, service: &Unit, socket_units: &[Unit]) -> Listener {
    let endpoint = SocketAddr::new(socket.address, socket.port);
    let (owner, ssh) = if socket.holders.is_empty() {
        (Owner::Unseen, false)
    } else if let Some(systemd) = socket.holders.iter().find(|holder| holder.pid == 1) {
        let unit = socket_units.iter().find(|unit| unit.is_active() && listens(unit, endpoint));
        match unit {
            Some(unit) => (Owner::Unit(unit.name.clone()), true),
            None => (Owner::Process(systemd.clone()), socket.holders.iter().any(is_sshd)),
        }
    } else if socket.holders.iter().any(|holder| is_main(holder, service)) {
        (Owner::Unit(service.name.clone()), true)
    } else {
        match socket.holders.iter().find(|holder| is_sshd(holder)) {
            Some(sshd) => (Owner::Process(sshd.clone()), true),
            None => (socket.holders.first().cloned().map_or(Owner::Unseen, Owner::Process), false),
        }
    };
    Listener { address: socket.address, port: socket.port, v6only: socket.v6only, owner, ssh }
}

/// systemd may remember the main process of a unit of which it has forgotten that it runs.
fn is_main(process: &Process, service: &Unit) -> bool {
    process.pid == service.main_pid && !matches!(service.active.as_str(), "inactive" | "failed")
}

fn is_sshd(process: &Process) -> bool {
    let name = if process.program.is_empty() { &process.name } else { &process.program };
    is_name_of_sshd(name) && !is_session(process)
}

/// The sshd of one connection: where it listens, it forwards a port or a display for its user. A listener
/// calls itself `sshd: PROGRAM [listener] ...`, a session `sshd: USER@pts/0`; from 9.8 on they are programs of
/// their own.
fn is_session(process: &Process) -> bool {
    let title = process.args.first().map(String::as_str).unwrap_or_default();
    let titled = title.starts_with("sshd: ") && !title.contains("[listener]");
    titled || ["sshd-session", "sshd-auth"].contains(&process.program.as_str())
}

fn is_name_of_sshd(name: &str) -> bool {
    name.starts_with("sshd") || name.starts_with("dropbear")
}
