//! Who listens, and who does not.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::units::{held_by_socket, not_running};
use super::{LISTENING, command, does, finding, list, says};
use crate::concern::listening::{MAX_SOCKETS, collide};
use crate::doctor::{Finding, Fix, Sight, is_orphan};
use crate::observe::Owner;
use crate::sshd::options;
use crate::sys::process::Process;

/// sshds that systemd has lost track of.
pub(in crate::doctor) fn orphans(sight: &Sight) -> Vec<Finding> {
    let observed = &sight.case.observed;
    let service = &observed.service;
    let mut held: BTreeMap<u32, (&Process, Vec<SocketAddr>)> = BTreeMap::new();
    for listener in observed.listeners.iter().filter(|listener| is_orphan(listener, &service.name))
    {
        if let Owner::Process(process) = &listener.owner {
            held.entry(process.pid).or_insert((process, Vec::new())).1.extend(listener.serves());
        }
    }
    let of = |(process, at): (&Process, Vec<SocketAddr>)| {
        let fix = if process.pid == service.main_pid {
            Fix::Advice("reboot: systemd 257 crashes when this process ends".to_owned())
        } else if service.is_active() || observed.socket.is_active() {
            command(format!("kill {}", process.pid))
        } else {
            // It is all that lets anybody in.
            match process.unit == service.name {
                true => sight.by_service(),
                // Somebody's own is not harden's to end.
                false => Fix::Advice(format!(
                    "let {0} take its place, with a session open: sshd -t && kill {1} && systemctl start {0}",
                    service.name, process.pid
                )),
            }
        };
        let main = match service.main_pid {
            0 => "none".to_owned(),
            pid => format!("pid {pid}"),
        };
        finding(
            "orphan",
            format!(
                "an sshd that {} {} listens on {}, with the settings that it started with",
                service.name,
                if process.unit == service.name { "has lost" } else { "has not started" },
                list(&at)
            ),
            vec![
                format!("{} (pid {}): {}", process.name, process.pid, process.args.join(" ")),
                format!("{} is {}, main process: {main}", service.name, service.active),
            ],
            fix,
        )
    };
    held.into_values().map(of).collect()
}

/// ssh.socket takes connections on one interface (systemd.socket(5), BindToDevice=).
pub(in crate::doctor) fn one_interface(sight: &Sight) -> Option<Finding> {
    let socket = &sight.case.observed.socket;
    let (name, device) = (&socket.name, &socket.device);
    (socket.is_active() && !device.is_empty()).then(|| {
        finding(
            "one-interface",
            format!("{name} takes connections on the interface {device} alone, whatever sshd_config says"),
            vec![says(sight), format!("{name} says BindToDevice={device}")],
            Fix::Advice(format!(
                "take it out where that is not meant (systemctl cat {name} shows where it stands)"
            )),
        )
    })
}

/// Units and sockets: why sshd is not where its files say.
pub(in crate::doctor) fn listeners(sight: &Sight) -> Vec<Finding> {
    let observed = &sight.case.observed;
    let mut found = Vec::new();
    found.extend(too_many(sight));
    found.extend(no_such_address(sight));
    found.extend(taken(sight));
    found.extend(command_line(sight));
    if !found.is_empty() {
        return found;
    }
    let (service, socket) = (&observed.service, &observed.socket);
    let is_old = observed.stale && service.is_active() && !socket.is_active();
    let one = if let Some(one) = one_family(sight).filter(|_| !is_old) {
        one
    } else if socket.is_active() {
        held_by_socket(sight)
    } else if !service.is_active() {
        not_running(sight)
    } else if is_old {
        finding(
            "not-restarted",
            format!("{} runs with an older configuration", service.name),
            vec![
                says(sight),
                does(sight),
                format!(
                    "a file that sshd reads changed after it started (pid {})",
                    service.main_pid
                ),
            ],
            command(format!("systemctl restart {}", service.name)),
        )
    } else {
        elsewhere(sight)
    };
    vec![one]
}

/// ssh.service runs, and sshd is not where its files say.
fn elsewhere(sight: &Sight) -> Finding {
    let (service, socket) = (&sight.case.observed.service, &sight.case.observed.socket);
    let name = &service.name;
    let evidence = |fact: String| vec![says(sight), does(sight), fact];
    let look = |what: &str| {
        Fix::Advice(format!(
            "take {what} out of the unit (systemctl cat {name} shows where it stands), then systemctl restart {name}"
        ))
    };
    match &sight.case.running {
        Some(running) if running.program != "sshd" => finding(
            "other-program",
            format!("{name} runs {}, and not sshd", running.program),
            evidence(format!("its main process (pid {}) is {}", service.main_pid, running.program)),
            look("that program"),
        ),
        Some(running) if running.apart => finding(
            "own-network",
            format!("{name} has a network of its own, and nobody reaches the sshd in it"),
            evidence(format!(
                "sshd (pid {}) is in another network namespace than this one",
                service.main_pid
            )),
            look("PrivateNetwork= or NetworkNamespacePath="),
        ),
        _ if !sight.astray && sight.missing.iter().all(|at| !at.ip().is_unspecified()) => finding(
            "late-address",
            format!(
                "{name} started before {} could be had, and listens without it",
                list(&sight.missing)
            ),
            evidence(format!(
                "sshd (pid {}) has its other listeners; after the next boot it may be so again, unless \
                 `socket: enabled` has the address bound beforehand",
                service.main_pid
            )),
            command(format!("systemctl restart {name}")),
        ),
        _ => finding(
            "kept-socket",
            format!(
                "sshd does not listen where its files say; it may still have a socket that {} once gave it",
                socket.name
            ),
            evidence(format!(
                "{} is {}, {name} (pid {}) has not been restarted since",
                socket.name, socket.active, service.main_pid
            )),
            command(format!("systemctl restart {name}")),
        ),
    }
}

/// More endpoints than sshd listens on.
fn too_many(sight: &Sight) -> Option<Finding> {
    let service = &sight.case.observed.service.name;
    (sight.wanted.len() > MAX_SOCKETS).then(|| {
        finding(
            "too-many",
            format!(
                "the files ask for {} endpoints, and sshd serves {MAX_SOCKETS} at most",
                sight.wanted.len()
            ),
            vec![says(sight), does(sight)],
            Fix::Advice(format!(
                "take some of the lines away, then systemctl reset-failed {service}; systemctl restart \
                 {service}"
            )),
        )
    })
}

/// An address that no interface has.
fn no_such_address(sight: &Sight) -> Option<Finding> {
    let at = sight.missing.iter().find(|at| !sight.case.observed.has(at.ip()))?.ip();
    Some(finding(
        "no-such-address",
        format!("no interface of this host has {at}, so sshd cannot listen there"),
        vec![says(sight), does(sight)],
        Fix::Advice(format!("bring the interface up (ip address), or take {at} off ListenAddress")),
    ))
}

/// The port belongs to another program.
fn taken(sight: &Sight) -> Vec<Finding> {
    let service = &sight.case.observed.service.name;
    let is_others = |owner: &Owner| match owner {
        Owner::Process(process) => process.unit != *service,
        _ => false,
    };
    let listeners = sight.case.observed.listeners.iter();
    let others = listeners.filter(|listener| !listener.ssh || is_others(&listener.owner));
    others
        .filter_map(|listener| {
            let mut at = listener.serves();
            at.retain(|held| sight.missing.iter().any(|missing| collide(held, missing)));
            if at.is_empty() {
                return None;
            }
            let owner = &listener.owner;
            let stop = match owner {
                Owner::Process(process) if process.is_of_harden() => {
                    format!("`harden rollback` has {service} take its place")
                }
                Owner::Process(process) if !process.unit.is_empty() => {
                    format!("stop it (systemctl stop {})", process.unit)
                }
                _ => "stop it".to_owned(),
            };
            Some(finding(
                "port-taken",
                format!("{owner} holds {}, so sshd cannot", list(&at)),
                vec![says(sight), format!("the kernel's table: {} is {owner}'s", list(&at))],
                Fix::Advice(format!("{stop}, or choose another port for sshd")),
            ))
        })
        .collect()
}

/// `SSHD_OPTS` and the like.
fn command_line(sight: &Sight) -> Option<Finding> {
    let line = &sight.case.observed.command_line;
    // Who gets its listeners from systemd does not heed them.
    if sight.case.observed.socket.is_active() {
        return None;
    }
    let keywords = LISTENING.map(str::to_owned);
    let found = |words: &[String]| {
        let option = options::parse(words).into_iter().find(|option| option.sets_any(&keywords));
        option.map(|option| (words.to_vec(), option))
    };
    // What a restart would bring counts too.
    let (words, option) = found(&line.running).or_else(|| found(&line.all()))?;
    let family = option.sets_any(&["AddressFamily".to_owned()]);
    let in_file = options::parse(&line.words).contains(&option);
    let option = option.words.join(" ");
    let name = &sight.case.observed.service.name;
    // Only what stands in the environment file is for harden to rewrite.
    let file = line.file.as_ref().filter(|_| in_file);
    let at = file.map(|file| file.path.display().to_string());
    let at = at.unwrap_or_else(|| format!("systemctl cat {name}"));
    let fix = match (file, family) {
        (None, _) => Fix::Advice(format!(
            "take `{option}` out of where `systemctl cat {name}` shows it, then systemctl restart {name}"
        )),
        (_, true) => sight.where_wanted("listen: [\"0.0.0.0\", \"::\"]"),
        _ => sight.where_wanted(""),
    };
    Some(finding(
        "command-line",
        format!("`{option}` on sshd's command line wins over every file"),
        vec![says(sight), does(sight), format!("{}: {}", at, words.join(" "))],
        fix,
    ))
}

/// A port that is served for one family of addresses alone.
fn one_family(sight: &Sight) -> Option<Finding> {
    let missing = &sight.missing;
    let served = |at: &SocketAddr| {
        sight.wanted.iter().any(|other| {
            other.port() == at.port() && other.is_ipv4() != at.is_ipv4() && !missing.contains(other)
        })
    };
    if missing.is_empty() || !missing.iter().all(served) {
        return None;
    }
    let (service, socket) = (&sight.case.observed.service, &sight.case.observed.socket);
    let (unit, how) = if socket.is_active() {
        (
            socket,
            format!(
                "ListenStream={} with BindIPv6Only={}",
                socket.listen.join(" "),
                socket.bind_ipv6_only
            ),
        )
    } else {
        (
            service,
            "when it started, it could not bind the other (journalctl -u ssh.service)".to_owned(),
        )
    };
    let (family, other) = match missing.iter().all(SocketAddr::is_ipv4) {
        true => ("IPv6", "AF_INET"),
        false => ("IPv4", "AF_INET6"),
    };
    if !socket.is_active() && !service.may_use(other) {
        let families = service.families.join(" ");
        return Some(finding(
            "one-family",
            format!("{} forbids {other}: nobody listens on {}", service.name, list(missing)),
            vec![says(sight), does(sight), format!("RestrictAddressFamilies={families}")],
            Fix::Advice(format!(
                "allow {other} (systemctl cat {0} shows the line), then systemctl restart {0}",
                service.name
            )),
        ));
    }
    let fix = if socket.is_active() {
        sight.spec("{listen: [\"0.0.0.0\", \"::\"]}".to_owned())
    } else {
        command(format!("systemctl restart {}", service.name))
    };
    Some(finding(
        "one-family",
        format!("sshd is reached over {family} alone: nobody listens on {}", list(missing)),
        vec![says(sight), does(sight), format!("{}: {how}", unit.name)],
        fix,
    ))
}
