//! The causes, each with its evidence and its remedy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::{Case, Finding, Fix, Sight, is_orphan};
use crate::concern::listening::configured;
use crate::observe::{NOT_TO_BE_RUN, Owner, Verdict};
use crate::sshd::options;
use crate::sshd::reading::{Place, Problem, Reading};
use crate::sys::process::Process;
use crate::sys::units::{Unit, directives};

/// Keywords that decide where sshd listens.
pub(super) const LISTENING: [&str; 3] = ["Port", "ListenAddress", "AddressFamily"];

fn finding(
    cause: &'static str,
    message: impl Into<String>,
    evidence: Vec<String>,
    fix: Fix,
) -> Finding {
    Finding { cause, message: message.into(), evidence, fix }
}

fn command(text: impl Into<String>) -> Fix {
    Fix::Command(text.into())
}

/// sshd refuses its configuration.
pub(super) fn configuration(case: &Case) -> Vec<Finding> {
    let Verdict::Invalid(said) = &case.files else { return Vec::new() };
    let said = said.lines().next().unwrap_or(said);
    let evidence = vec![format!("sshd -t: {said}")];
    let reading = Reading::new(&case.observed.config, case.observed.release.clone());
    let problem = reading.and_then(|reading| reading.globally().map(drop)).err();
    if let Some(Problem { place, what, block: Some(block) }) = problem {
        return vec![finding(
            "match-block",
            format!("{place}: {what}, so sshd starts no more"),
            [evidence, vec![format!("the block begins at {block} and reaches to the file's end")]]
                .concat(),
            Fix::Advice(format!("move {place} above {block}")),
        )];
    }
    let advice = "mend the line that sshd names; `sshd -t` says when it is well".to_owned();
    vec![finding(
        "config-invalid",
        "sshd refuses its configuration, and starts no more",
        evidence,
        Fix::Advice(advice),
    )]
}

/// sshds that systemd has lost track of.
pub(super) fn orphans(sight: &Sight) -> Vec<Finding> {
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
            Fix::Spec(format!("{{port: [{}], socket: disabled}}", sight.ports()))
        };
        let main = match service.main_pid {
            0 => "none".to_owned(),
            pid => format!("pid {pid}"),
        };
        finding(
            "orphan",
            format!(
                "an sshd that {} has lost listens on {}, with the settings that it started with",
                service.name,
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

/// Units and sockets: why sshd is not where its files say.
pub(super) fn listeners(sight: &Sight) -> Vec<Finding> {
    let observed = &sight.case.observed;
    let mut found = Vec::new();
    found.extend(no_such_address(sight));
    found.extend(taken(sight));
    found.extend(command_line(sight));
    if !found.is_empty() {
        return found;
    }
    let (service, socket) = (&observed.service, &observed.socket);
    let one = if let Some(one) = one_family(sight) {
        one
    } else if socket.is_active() {
        held_by_socket(sight)
    } else if !service.is_active() {
        not_running(sight)
    } else if observed.stale {
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
        finding(
            "kept-socket",
            format!(
                "sshd does not listen where its files say; it may still have a socket that {} once gave it",
                socket.name
            ),
            vec![
                says(sight),
                does(sight),
                format!(
                    "{} is {}, {} (pid {}) has not been restarted since",
                    socket.name, socket.active, service.name, service.main_pid
                ),
            ],
            command(format!("systemctl restart {}", service.name)),
        )
    };
    vec![one]
}

/// An address that no interface has.
fn no_such_address(sight: &Sight) -> Option<Finding> {
    let here = &sight.case.observed.addresses;
    let foreign = |at: &&SocketAddr| {
        let ip = at.ip();
        !ip.is_unspecified() && !ip.is_loopback() && !here.is_empty() && !here.contains(&ip)
    };
    let at = sight.missing.iter().find(foreign)?.ip();
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
    // All addresses of a family take the single ones in.
    let overlap = |one: &SocketAddr, other: &SocketAddr| {
        let all = one.ip().is_unspecified() || other.ip().is_unspecified();
        one.port() == other.port()
            && one.is_ipv4() == other.is_ipv4()
            && (all || one.ip() == other.ip())
    };
    others
        .filter_map(|listener| {
            let mut at = listener.serves();
            at.retain(|held| sight.missing.iter().any(|missing| overlap(held, missing)));
            if at.is_empty() {
                return None;
            }
            let owner = &listener.owner;
            let stop = match owner {
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
    let keywords = LISTENING.map(str::to_owned);
    let words = if line.running.is_empty() { line.all() } else { line.running.clone() };
    let option = options::parse(&words).into_iter().find(|option| option.sets_any(&keywords))?;
    let option = option.words.join(" ");
    let at = line.file.as_ref().map(|file| file.path.display().to_string());
    let at = at.unwrap_or_else(|| format!("systemctl cat {}", sight.case.observed.service.name));
    Some(finding(
        "command-line",
        format!("`{option}` on sshd's command line wins over every file"),
        vec![says(sight), does(sight), format!("{}: {}", at, words.join(" "))],
        Fix::Spec(format!("{{port: [{}]}}", sight.ports())),
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
    let family = if missing.iter().all(SocketAddr::is_ipv4) { "IPv6" } else { "IPv4" };
    let fix = if socket.is_active() {
        Fix::Spec("{listen: [\"0.0.0.0\", \"::\"]}".to_owned())
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

/// systemd holds the port.
fn held_by_socket(sight: &Sight) -> Finding {
    let case = sight.case;
    let socket = &case.observed.socket;
    let held: Vec<SocketAddr> = case
        .observed
        .listeners
        .iter()
        .filter(|listener| listener.owner == Owner::Unit(socket.name.clone()))
        .flat_map(crate::observe::Listener::serves)
        .collect();
    let listens = format!("{} says ListenStream={}", socket.name, socket.listen.join(" "));
    let closed: Vec<SocketAddr> =
        configured(&case.observed).into_iter().filter(|at| !held.contains(at)).collect();
    if !closed.is_empty() {
        return finding(
            "stale-socket",
            format!(
                "{} is active and does not listen on {}: after its address changed, a \
                 daemon-reload closes the port and opens none",
                socket.name,
                list(&closed)
            ),
            vec![listens, does(sight)],
            command(format!("systemctl restart {}", socket.name)),
        );
    }
    if let Some(generator) = &case.generator {
        return generated(sight, generator, listens);
    }
    let unit = case.observed.socket.drop_ins.last().unwrap_or(&socket.fragment);
    finding(
        "socket-owns-port",
        format!("{} owns the port, and `Port` in sshd_config is ignored", socket.name),
        vec![says(sight), does(sight), format!("{listens} ({})", unit.display())],
        Fix::Spec(format!("{{port: [{}], socket: disabled}}", sight.ports())),
    )
}

/// systemd holds the port at addresses that a generator takes from sshd_config.
fn generated(sight: &Sight, generator: &Path, listens: String) -> Finding {
    let socket = &sight.case.observed.socket;
    if let Some(own) = own_addresses(sight.case) {
        let own = own.display();
        return finding(
            "socket-owns-port",
            format!("{own} decides where {} listens, and sshd_config does not", socket.name),
            vec![says(sight), does(sight), listens],
            Fix::Advice(format!("take ListenStream out of {own}, or Port out of sshd_config")),
        );
    }
    finding(
        "generator",
        format!("{} still has the addresses of an earlier sshd_config", socket.name),
        vec![
            says(sight),
            does(sight),
            format!(
                "{} reads sshd_config at a daemon-reload, and only a restart of the socket binds",
                generator.display()
            ),
        ],
        command(format!("systemctl daemon-reload && systemctl restart {}", socket.name)),
    )
}

/// A drop-in of an administrator's that gives ssh.socket its addresses.
fn own_addresses(case: &Case) -> Option<&PathBuf> {
    let gives = |path: &&PathBuf| {
        let text = case.observed.unit_files.get(*path).map(|file| file.text.as_str());
        let keys = text.map(directives).unwrap_or_default();
        keys.into_iter().any(|(key, _)| key == "ListenStream")
    };
    let drop_ins = case.observed.socket.drop_ins.iter();
    drop_ins.filter(|path| !path.starts_with("/run/systemd/generator")).find(gives)
}

/// Neither unit runs.
fn not_running(sight: &Sight) -> Finding {
    let observed = &sight.case.observed;
    let (service, socket) = (&observed.service, &observed.socket);
    let state = |unit: &Unit| {
        format!(
            "{} is {} ({}), {}",
            unit.name,
            unit.active,
            unit.result,
            if unit.is_masked() { "masked" } else { &unit.file }
        )
    };
    let evidence = vec![state(service), state(socket)];
    let name = &service.name;
    if service.is_masked() {
        return finding(
            "masked",
            format!("{name} is masked: nothing can start it"),
            evidence,
            command(format!("systemctl unmask {name} && systemctl enable --now {name}")),
        );
    }
    if observed.not_to_be_run {
        return finding(
            "condition",
            format!(
                "{NOT_TO_BE_RUN} is there, so {name} does not start, and says that all is well"
            ),
            evidence,
            command(format!("rm {NOT_TO_BE_RUN} && systemctl start {name}")),
        );
    }
    if service.active == "failed" {
        return finding(
            "failed",
            format!("{name} has failed ({})", service.result),
            [evidence, vec![format!("journalctl -u {name} says why")]].concat(),
            command(format!("systemctl reset-failed {name}; systemctl start {name}")),
        );
    }
    finding(
        "not-running",
        format!("neither {name} nor {} runs", socket.name),
        evidence,
        command(format!("systemctl enable --now {name}")),
    )
}

/// What the files forbid everybody, and a Match block allows some. The other way round it is how blocks are
/// meant to be used.
pub(super) fn shadowed(case: &Case) -> Vec<Finding> {
    let reading = Reading::new(&case.observed.config, case.observed.release.clone());
    let Ok(reading) = reading else { return Vec::new() };
    let (Ok(globally), Ok(blocks)) = (reading.globally(), reading.blocks()) else {
        return Vec::new();
    };
    let forbids = |place: &Place| {
        place.directive.args.first().is_some_and(|arg| arg.eq_ignore_ascii_case("no"))
    };
    let mut found = Vec::new();
    for forbidden in globally.followed().filter(|place| place.block.is_none() && forbids(place)) {
        for (block, chosen) in blocks.follow(&forbidden.directive.keyword) {
            let winner = chosen.followed.first().filter(|winner| !forbids(winner));
            let Some(winner) = winner else { continue };
            let criteria = block.directive.rest.trim();
            found.push(finding(
                "match-shadowing",
                format!("`{}` does not apply to `Match {criteria}`", shown(forbidden)),
                vec![
                    format!("{forbidden} says `{}`", shown(forbidden)),
                    format!("{winner} says `{}`, and a Match block wins", shown(winner)),
                ],
                Fix::Advice(format!(
                    "remove {winner} where that is not meant, or leave the block to harden \
                     (`ssh.match`)"
                )),
            ));
        }
    }
    found
}

pub(super) fn shown(place: &Place) -> String {
    format!("{} {}", place.directive.keyword, place.directive.args.join(" "))
}

/// Where the files want sshd.
fn says(sight: &Sight) -> String {
    let lines = match sight.lines.as_slice() {
        [] => "sshd's defaults".to_owned(),
        lines => lines.join(", "),
    };
    format!("the configuration wants {}: {lines}", list(&sight.wanted))
}

/// Where sshd is.
fn does(sight: &Sight) -> String {
    let held: Vec<String> = sight
        .case
        .observed
        .listeners
        .iter()
        .filter(|listener| listener.ssh)
        .flat_map(|listener| {
            listener
                .serves()
                .into_iter()
                .map(|at| format!("{at} ({})", listener.owner))
                .collect::<Vec<_>>()
        })
        .collect();
    if held.is_empty() {
        "no sshd listens".to_owned()
    } else {
        format!("sshd listens on {}", held.join(", "))
    }
}

fn list(endpoints: &[SocketAddr]) -> String {
    if endpoints.is_empty() {
        return "nothing".to_owned();
    }
    endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
