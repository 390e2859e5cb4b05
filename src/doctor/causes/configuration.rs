//! What is wrong with the files themselves.

use std::path::PathBuf;

use super::{command, finding, shown};
use crate::concern::sshd_config::own::is_own;
use crate::concern::sshd_config::with_place;
use crate::doctor::{Case, Finding, Fix, lines};
use crate::observe::{MAIN_CONFIG, PRIVSEP, Verdict};
use crate::sshd::reading::{Place, Problem, Reading};

/// Every connection would end at once (sshd(8), /run/sshd).
pub(in crate::doctor) fn folder_gone(case: &Case) -> Vec<Finding> {
    let name = &case.observed.service.name;
    let found = finding(
        "run-folder-gone",
        format!("{PRIVSEP} was gone, and without it {name} turns everybody away"),
        vec![format!("{name} makes it when it starts; something has taken it away since")],
        command(format!("systemctl restart {name}")),
    );
    if case.observed.run_folder_gone() { vec![found] } else { Vec::new() }
}

/// sshd refuses its configuration.
pub(in crate::doctor) fn configuration(case: &Case) -> Vec<Finding> {
    let Verdict::Invalid(said) = &case.files else { return Vec::new() };
    let (all, said) = (said, said.lines().next().unwrap_or(said));
    let evidence = vec![format!("sshd -t: {}", with_place(&case.observed, said))];
    if all.contains("no hostkeys available") {
        let open = all.contains("are too open");
        return vec![if open { open_host_keys(case, all) } else { no_host_keys(case, evidence) }];
    }
    let reading = Reading::new(&case.observed.config, case.observed.release.clone());
    let problem = reading.and_then(|reading| reading.globally().map(drop)).err();
    if let Some(Problem { place, what, block: Some(block) }) = problem {
        return vec![finding(
            "match-block",
            format!("{place}: {what}, so sshd starts no more"),
            [evidence, vec![format!("the block begins at {block} and reaches to the file's end")]]
                .concat(),
            Fix::Advice(format!("move {place} above {block}{}", restart(case, ", and then: "))),
        )];
    }
    let advice = if case.observed.config.files.is_empty() {
        format!("put {MAIN_CONFIG} back (it comes with openssh-server)")
    } else {
        format!(
            "mend what sshd names; `sshd -t` says when it is well{}",
            restart(case, ", and then: ")
        )
    };
    vec![finding(
        "config-invalid",
        "sshd refuses its configuration, and starts no more",
        evidence,
        Fix::Advice(advice),
    )]
}

/// There is no host key, or none that sshd can read.
fn no_host_keys(case: &Case, mut evidence: Vec<String>) -> Finding {
    let own = lines(&case.observed, &["HostKey"]);
    let name = &case.observed.service.name;
    let fix = match own.first() {
        None => command(format!(
            "ssh-keygen -A && systemctl reset-failed {name}; systemctl restart {name}"
        )),
        Some(line) => Fix::Advice(format!(
            "make the key that {line} names (ssh-keygen -t ed25519 -N '' -f FILE), or remove the line"
        )),
    };
    evidence.extend(own);
    finding("no-host-keys", "sshd has no host key, and starts no more", evidence, fix)
}

/// Others can read the host keys, so that sshd does not use them.
fn open_host_keys(case: &Case, said: &str) -> Finding {
    let path = |line: &str| Some(line.split_once("for '")?.1.split_once('\'')?.0.to_owned());
    let open: Vec<&str> = said.lines().filter(|line| line.contains("are too open")).collect();
    let paths: Vec<String> = open.iter().filter_map(|line| path(line)).collect();
    let usual = |path: &String| path.starts_with("/etc/ssh/ssh_host_") && path.ends_with("_key");
    let paths = if paths.iter().all(usual) {
        "/etc/ssh/ssh_host_*_key".to_owned()
    } else {
        paths.join(" ")
    };
    let start = restart(case, " && ");
    finding(
        "open-host-keys",
        "others can read sshd's host keys, so it takes none, and starts no more",
        open.iter().map(|line| format!("sshd -t: {line}")).collect(),
        command(format!("chmod 600 {paths} && sshd -t{start}")),
    )
}

/// How sshd is started, behind some words, where it does not run.
fn restart(case: &Case, words: &str) -> String {
    match case.observed.service.is_active() || case.observed.socket.is_active() {
        true => String::new(),
        false => format!("{words}systemctl restart {}", case.observed.service.name),
    }
}

/// sshd reads another file.
pub(in crate::doctor) fn other_file(case: &Case) -> Vec<Finding> {
    let observed = &case.observed;
    let name = &observed.service.name;
    let look = Fix::Advice(format!(
        "take it out of the unit (systemctl cat {name} shows where it stands) and restart {name}"
    ));
    if let Some(words) = observed.command_line.other_file() {
        return vec![finding(
            "other-config",
            format!("sshd runs with `{words}`, and reads no other file"),
            vec![format!("nothing in {MAIN_CONFIG} is in effect")],
            look,
        )];
    }
    let of = |path: &PathBuf| {
        finding(
            "other-config",
            format!("the running sshd sees another {} than this one", path.display()),
            vec![format!("{name} has a mount namespace of its own (BindPaths= and the like)")],
            look.clone(),
        )
    };
    observed.seen_otherwise.iter().map(of).collect()
}

/// Keywords of which `no` allows something.
const STRICT_BY_YES: [&str; 5] = [
    "DisableForwarding",
    "IgnoreRhosts",
    "IgnoreUserKnownHosts",
    "RefuseConnection",
    "StrictModes",
];

/// How much a line forbids; 0 is nothing.
fn forbids(place: &Place) -> u8 {
    let value = place.directive.args.first().map(|arg| arg.to_ascii_lowercase());
    match value.as_deref() {
        Some("no") => 3,
        Some("forced-commands-only") => 2,
        Some("prohibit-password" | "without-password") => 1,
        _ => 0,
    }
}

/// What the files forbid everybody, and a Match block allows some. The other way round it is how blocks are
/// meant to be used.
pub(in crate::doctor) fn shadowed(case: &Case) -> Vec<Finding> {
    let reading = Reading::new(&case.observed.config, case.observed.release.clone());
    let Ok(reading) = reading else { return Vec::new() };
    let (Ok(globally), Ok(blocks)) = (reading.globally(), reading.blocks()) else {
        return Vec::new();
    };
    let is_ban = |place: &Place| !STRICT_BY_YES.iter().any(|keyword| place.directive.is(keyword));
    let mut found = Vec::new();
    let bans = globally.followed().filter(|place| place.block.is_none() && forbids(place) > 0);
    for forbidden in bans.filter(|place| is_ban(place)) {
        let blocks = blocks.follow(&forbidden.directive.keyword).into_iter();
        // What stands in harden's own files is meant so.
        for (block, chosen) in blocks.filter(|(block, _)| !is_own(block.path)) {
            let winner =
                chosen.followed.first().filter(|winner| forbids(winner) < forbids(forbidden));
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
