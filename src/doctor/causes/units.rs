//! What systemd's units do in place of sshd, or do not.

use std::path::{Path, PathBuf};

use super::{command, does, finding, list, says};
use crate::concern::listening::configured;
use crate::doctor::{Case, Finding, Fix, Sight};
use crate::observe::{NOT_TO_BE_RUN, Verdict};
use crate::sshd::effective::ports;
use crate::sys::units::{Unit, directives};

/// systemd holds the port.
pub(super) fn held_by_socket(sight: &Sight) -> Finding {
    let case = sight.case;
    let socket = &case.observed.socket;
    let listens = format!("{} says ListenStream={}", socket.name, socket.listen.join(" "));
    let closed = sight.closed();
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
            // An sshd that it has started may still be where the files want it, and nowhere after a restart.
            if sight.missing.is_empty() && !sight.lines.is_empty() {
                sight.by_service()
            } else {
                command(restart(case))
            },
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
        sight.by_service(),
    )
}

/// How ssh.socket is restarted: it does not start beside a service that it has started.
fn restart(case: &Case) -> String {
    let (service, socket) = (&case.observed.service, &case.observed.socket);
    let start = format!("systemctl restart {}", socket.name);
    if service.is_active() { format!("systemctl stop {} && {start}", service.name) } else { start }
}

/// systemd holds the port at addresses that a generator takes from sshd_config.
fn generated(sight: &Sight, generator: &Path, listens: String) -> Finding {
    let socket = &sight.case.observed.socket;
    if let Some(own) = own_addresses(sight.case) {
        let is_hardens = own.ends_with("zz-harden.conf");
        let own = own.display();
        return finding(
            "socket-owns-port",
            format!("{own} decides where {} listens, and sshd_config does not", socket.name),
            vec![says(sight), does(sight), listens],
            Fix::Advice(if is_hardens {
                "apply your spec again, and leave Port in sshd_config to it".to_owned()
            } else {
                let or = if sight.lines.is_empty() { "" } else { ", or Port out of sshd_config" };
                let then = format!("systemctl daemon-reload && {}", restart(sight.case));
                format!("take ListenStream out of {own}{or}; then {then}")
            }),
        );
    }
    if !sight.case.ungenerated {
        return finding(
            "generator",
            format!("{} has no address for all that sshd_config says", generator.display()),
            vec![says(sight), does(sight), listens],
            sight.by_service(),
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
        command(format!("systemctl daemon-reload && {}", restart(sight.case))),
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

/// How the two units are.
fn states(sight: &Sight) -> Vec<String> {
    let state = |unit: &Unit| {
        format!(
            "{} is {} ({}), {}",
            unit.name,
            unit.active,
            unit.result,
            if unit.is_masked() { "masked" } else { &unit.file }
        )
    };
    let observed = &sight.case.observed;
    [&observed.service, &observed.socket].into_iter().map(state).collect()
}

/// Why ssh.service could not start where it does not run: a socket that listens for it is of no use then.
pub(in crate::doctor) fn blocked(sight: &Sight) -> Option<Finding> {
    let observed = &sight.case.observed;
    let (service, socket) = (&observed.service, &observed.socket);
    if service.is_active() || !service.exists() {
        return None;
    }
    let evidence = states(sight);
    let name = &service.name;
    // What serves the connections of such a socket is another unit.
    let is_needed = !(socket.is_active() && socket.accept);
    if let Some(found) = masked(service, socket, &evidence).filter(|_| is_needed) {
        return Some(found);
    }
    if service.is_broken() && is_needed {
        return Some(broken(service, evidence));
    }
    if let Some(found) = not_to_be_run(sight, &evidence) {
        return Some(found);
    }
    // Behind a socket that is of the last start, and the next one asks anew.
    if let Some(found) = condition(sight, &evidence).filter(|_| !socket.is_active()) {
        return Some(found);
    }
    if let (Verdict::Valid(_), Verdict::Invalid(said)) = (&sight.case.files, &observed.effective) {
        let words = observed.command_line.all().join(" ");
        let said = said.lines().next().unwrap_or(said);
        return Some(finding(
            "command-line",
            format!("sshd refuses its command line, and {name} does not start"),
            [evidence, vec![format!("sshd -t {words}: {said}")]].concat(),
            Fix::Advice(format!(
                "correct the option where `systemctl cat {name}` shows it; then systemctl reset-failed \
                 {name}; systemctl restart {name}"
            )),
        ));
    }
    None
}

/// systemd cannot read the unit.
fn broken(unit: &Unit, evidence: Vec<String>) -> Finding {
    let name = &unit.name;
    finding(
        "broken-unit",
        format!("systemd cannot read {name}, and does not start it ({})", unit.load),
        [evidence, vec![format!("systemctl status {name} says what is wrong")]].concat(),
        Fix::Advice(format!(
            "mend what `systemctl cat {name}` shows; then systemctl daemon-reload; systemctl restart {name}"
        )),
    )
}

/// Neither unit runs.
pub(super) fn not_running(sight: &Sight) -> Finding {
    let observed = &sight.case.observed;
    let (service, socket) = (&observed.service, &observed.socket);
    let evidence = states(sight);
    let name = &service.name;
    // What ails the socket may be this service.
    if let Some(needed) = sight.case.failed.iter().find(|unit| **unit != socket.name) {
        return finding(
            "dependency",
            format!("{name} does not start without {needed}, which has failed"),
            evidence,
            Fix::Advice(format!(
                "see what ails it: systemctl status {needed}; once it runs: systemctl start {name}"
            )),
        );
    }
    if socket.active == "failed" && (socket.is_enabled() || !service.is_enabled()) {
        return failed_socket(sight, evidence);
    }
    // One that fails again and again is `activating` in between.
    if service.active == "failed" || service.active == "activating" {
        return finding(
            "failed",
            format!("{name} has failed ({})", service.result),
            [evidence, vec![format!("journalctl -u {name} says why")]].concat(),
            command(format!("systemctl reset-failed {name}; systemctl start {name}")),
        );
    }
    let by_socket = socket.is_enabled() && !service.is_enabled();
    finding(
        "not-running",
        format!("neither {name} nor {} runs", socket.name),
        evidence,
        command(if by_socket && configured(observed) == sight.wanted {
            format!("systemctl start {}", socket.name)
        } else {
            format!("systemctl enable --now {name}")
        }),
    )
}

/// ssh.socket does not listen.
fn failed_socket(sight: &Sight, evidence: Vec<String>) -> Finding {
    let socket = &sight.case.observed.socket;
    let name = &socket.name;
    match socket.collision() {
        Some(port) => finding(
            "failed",
            format!(
                "{name} has failed: [::]:{port} takes IPv4 too, where 0.0.0.0:{port} already is"
            ),
            [evidence, vec![format!("BindIPv6Only={}", socket.bind_ipv6_only)]].concat(),
            sight.spec(format!("{{port: {port}, socket: enabled}}")),
        ),
        None => finding(
            "failed",
            format!("{name} has failed ({})", socket.result),
            [evidence, vec![format!("journalctl -u {name} says why")]].concat(),
            command(format!(
                "systemctl reset-failed {name} {}; systemctl start {name}",
                sight.case.observed.service.name
            )),
        ),
    }
}

/// All is well until the next boot: then ssh.socket has the port, and listens elsewhere.
pub(in crate::doctor) fn other_at_boot(sight: &Sight) -> Option<Finding> {
    let observed = &sight.case.observed;
    let (service, socket) = (&observed.service, &observed.socket);
    let waits = service.is_active() && !socket.is_active() && socket.is_enabled();
    // What a generator makes of the files is known when it has run.
    if !waits || sight.case.generator.is_some() {
        return None;
    }
    let listens: Vec<u16> = ports(&configured(observed));
    if listens == ports(&sight.wanted) {
        return None;
    }
    Some(finding(
        "socket-at-boot",
        format!("{} is enabled, and has the port after the next boot", socket.name),
        vec![
            says(sight),
            format!("{} says ListenStream={}", socket.name, socket.listen.join(" ")),
            format!(
                "{} is {}; {} is {}",
                socket.name,
                socket.summary(),
                service.name,
                service.summary()
            ),
        ],
        sight.by_service(),
    ))
}

/// All is well until the next boot: nothing starts either unit then.
pub(in crate::doctor) fn not_enabled(sight: &Sight) -> Option<Finding> {
    let units = [&sight.case.observed.service, &sight.case.observed.socket];
    let starts = |unit: &&Unit| {
        // `static`, `generated` and what other units pull in: somebody has arranged for it otherwise.
        let is_left_out =
            matches!(unit.file.as_str(), "disabled" | "masked" | "masked-runtime" | "");
        !unit.is_masked() && (!is_left_out || !unit.wanted_by.is_empty())
    };
    let runs = units.into_iter().find(|unit| unit.is_active())?;
    if runs.is_broken() {
        return Some(broken(runs, states(sight)));
    }
    if let Some(found) = not_to_be_run(sight, &states(sight)) {
        return Some(found);
    }
    if units.iter().any(starts) {
        return None;
    }
    let state = |unit: &&Unit| format!("{} is {}", unit.name, unit.summary());
    // Enabling makes the alias sshd.service, and systemd 257 loses an sshd that runs then.
    let fix = if runs.name == sight.case.observed.socket.name {
        command(format!("systemctl enable {}", runs.name))
    } else {
        sight.by_service()
    };
    Some(finding(
        "not-enabled",
        format!("{} runs, and would not after a reboot", runs.name),
        units.iter().filter(|unit| unit.exists()).map(state).collect(),
        fix,
    ))
}

/// ssh.service is masked, or the socket that it does not start without.
fn masked(service: &Unit, socket: &Unit, evidence: &[String]) -> Option<Finding> {
    let name = &service.name;
    let (unit, so) = if service.is_masked() {
        (name, "nothing can start it".to_owned())
    } else if socket.is_masked() && service.requires.contains(&socket.name) {
        (&socket.name, format!("{name} does not start without it"))
    } else {
        return None;
    };
    // The socket starts the service when somebody comes.
    let fix = if socket.is_active() {
        format!("systemctl unmask {unit}")
    } else {
        format!("systemctl unmask {unit} && systemctl enable --now {name}")
    };
    Some(finding("masked", format!("{unit} is masked: {so}"), evidence.to_vec(), command(fix)))
}

/// The file is there that keeps Debian's and Ubuntu's units from starting.
fn not_to_be_run(sight: &Sight, evidence: &[String]) -> Option<Finding> {
    let name = &sight.case.observed.service.name;
    sight.case.observed.not_to_be_run.then(|| {
        finding(
            "condition",
            format!(
                "{NOT_TO_BE_RUN} is there, so {name} does not start, and says that all is well"
            ),
            evidence.to_vec(),
            command(format!("rm {NOT_TO_BE_RUN} && systemctl start {name}")),
        )
    })
}

/// A condition of the unit's did not hold when it was to start.
fn condition(sight: &Sight, evidence: &[String]) -> Option<Finding> {
    let observed = &sight.case.observed;
    let (service, socket) = (&observed.service, &observed.socket);
    let unit = [service, socket].into_iter().find(|unit| !unit.unmet.is_empty())?;
    let unmet = unit.unmet.first()?;
    let key = unmet.split('=').next().unwrap_or(unmet);
    let stands = |path: &&PathBuf| {
        let file = observed.unit_files.get(*path);
        file.is_some_and(|file| directives(&file.text).iter().any(|(other, _)| *other == key))
    };
    let at = unit.drop_ins.iter().rev().find(stands).unwrap_or(&unit.fragment).display();
    let name = &unit.name;
    // A start fails where an Assert does not hold.
    let well = if unmet.starts_with("Condition") { ", and says that all is well" } else { "" };
    Some(finding(
        "condition",
        format!("{unmet} does not hold, so {name} does not start{well}"),
        [evidence, &[format!("it stands in {at}")]].concat(),
        Fix::Advice(format!(
            "make it hold, or take it out of {at} (systemctl daemon-reload); then systemctl start {name}"
        )),
    ))
}
