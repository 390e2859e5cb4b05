//! The proof: what must hold is compared with what is there, and every listener is spoken to.

pub mod logins;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::concern::sshd_config;
use crate::error::Error;
use crate::observe::{Listener, Observed, Owner, Verdict};
use crate::sshd::{Effective, options};
use crate::step::Expectation;
use crate::sys::probe::{Answer, key_exchange};
use crate::sys::{Command, Files, SysError};
use crate::validate::{self, Lost};

/// Something that should hold and does not, as one sentence.
pub type Fault = String;

/// Expected endpoints that the expected unit does not hold in the kernel's table. Pure.
pub fn missing(expect: &Expectation, observed: &Observed) -> Vec<Fault> {
    let owner = Owner::Unit(expect.owner.clone());
    let mut faults = Vec::new();
    for endpoint in &expect.endpoints {
        let holder = observed.listeners.iter().find(|l| l.serves().contains(endpoint));
        match holder {
            None => faults.push(format!("nothing listens on {endpoint}")),
            Some(listener) if listener.owner != owner => {
                let holder = &listener.owner;
                faults.push(format!("{endpoint} is held by {holder}, not by {}", expect.owner));
            }
            Some(_) => {}
        }
    }
    faults
}

/// SSH listeners that nobody asked for: an orphaned sshd, the old port. Pure.
pub fn foreign(expect: &Expectation, observed: &Observed) -> Vec<Fault> {
    let wanted: BTreeSet<SocketAddr> = expect.endpoints.iter().copied().collect();
    let mut faults = Vec::new();
    for listener in observed.listeners.iter().filter(|listener| listener.ssh) {
        // An orphan may share its descriptor with the unit that is to have it.
        let shares = |at: &SocketAddr| {
            let ours = |other: &&Listener| other.owner == Owner::Unit(expect.owner.clone());
            matches!(listener.owner, Owner::Process(_))
                && observed.listeners.iter().filter(ours).any(|other| other.serves().contains(at))
        };
        let extra = |at: &&SocketAddr| !wanted.contains(at) || shares(at);
        for endpoint in Listener::serves(listener).iter().filter(extra) {
            faults.push(format!("{} still listens for SSH on {endpoint}", listener.owner));
        }
    }
    faults
}

/// Compares everything that an observation shows with what is expected. Pure.
pub fn state(expect: &Expectation, observed: &Observed) -> Vec<Fault> {
    let mut faults = missing(expect, observed);
    faults.extend(foreign(expect, observed));
    for wanted in &expect.units {
        let unit =
            [&observed.service, &observed.socket].into_iter().find(|u| u.name == wanted.name);
        let Some(unit) = unit else { continue };
        let leaves = wanted.active == Some(true) && unit.job == "stop";
        if leaves || wanted.active.is_some_and(|active| active != unit.is_active()) {
            faults.push(format!("{} is {}", unit.name, unit.doing()));
        }
        if wanted.enabled != unit.is_enabled() {
            faults.push(format!("{} is {}", unit.name, unit.file));
        } else if let (false, Some(false), Some(by)) =
            (wanted.enabled, wanted.active, unit.wanted_by.first())
        {
            faults.push(format!("{by} pulls {} in at the next boot", unit.name));
        }
    }
    for option in options::parse(&observed.command_line.running) {
        if option.sets_any(&expect.keywords) {
            let words = option.words.join(" ");
            faults.push(format!("sshd runs with `{words}`, which wins over every file"));
        }
    }
    if let Some(words) = observed.command_line.other_file() {
        faults.push(format!("sshd runs with `{words}`, and reads no other file"));
    }
    for path in &observed.seen_otherwise {
        faults.push(format!("the running sshd sees another {} than this one", path.display()));
    }
    if let Verdict::Invalid(said) = &observed.effective {
        faults.push(format!("sshd refuses its configuration: {said}"));
    }
    faults
}

/// Checks that the spec's values are in effect on the live configuration: as sshd prints them, and in
/// every Match block that says something of them. Pure but for spellings that only sshd can compare.
pub fn settings(expect: &Expectation, observed: &Observed) -> Vec<Fault> {
    let Some(effective) = observed.effective.valid() else { return Vec::new() };
    let options = observed.command_line.settings();
    let lost = validate::lost_values(&expect.settings, effective, None, &options);
    if !lost.is_empty() {
        let told = |Lost { keyword, wanted, actual }: &Lost| {
            let winner = winner(observed, keyword);
            format!("`{keyword} {wanted}` is not in effect: sshd uses `{actual}`{winner}")
        };
        return lost.iter().map(told).collect();
    }
    let wanted = sshd_config::Wanted {
        values: &expect.settings,
        at_least: &expect.at_least,
        blocks: &expect.matches,
    };
    let reading = sshd_config::read(&observed.config, &observed.release);
    match reading.and_then(|reading| sshd_config::lost(&wanted, &reading)) {
        Ok(None) => Vec::new(),
        Ok(Some(lost)) => vec![format!(
            "`{}` is not in effect for `Match {}`: {} {}",
            lost.keyword, lost.criteria, lost.place, lost.says
        )],
        Err(refusal) => vec![refusal.message],
    }
}

/// What decides about a keyword: an option on sshd's command line, else a line of a file.
fn winner(observed: &Observed, keyword: &str) -> String {
    let options = options::parse(&observed.command_line.settings());
    let keywords = [keyword.to_owned()];
    if let Some(option) = options.iter().find(|option| option.sets_any(&keywords)) {
        return format!(" (`{}` on its command line wins)", option.words.join(" "));
    }
    let line = validate::line_of(&observed.config, keyword, &observed.release, |_| true);
    line.map(|line| format!(" ({line} wins)")).unwrap_or_default()
}

/// Speaks to every expected endpoint: a complete key exchange, with a host key of this host.
///
/// Returns faults, and notes on listeners that answered but turned the probe away.
///
/// # Errors
/// Where the probe itself cannot be run.
pub fn answers(
    files: &Files,
    expect: &Expectation,
    observed: &Observed,
) -> Result<(Vec<Fault>, Vec<String>), Error> {
    let known_hosts = write_known_hosts(files, Path::new("/run/harden"), observed)?;
    let mut faults = Vec::new();
    let mut notes = Vec::new();
    let known_hosts = &known_hosts;
    let knock = |at: SocketAddr| move || key_exchange(at.ip(), at.port(), known_hosts);
    // Where no interface has an IPv6 address nobody can speak to `::`, and sshd binds it all the same.
    let no_ipv6 = !observed.addresses.is_empty() && observed.addresses.iter().all(IpAddr::is_ipv4);
    let (silent, spoken): (Vec<&SocketAddr>, Vec<&SocketAddr>) =
        expect.endpoints.iter().partition(|at| no_ipv6 && at.ip() == Ipv6Addr::UNSPECIFIED);
    notes.extend(silent.into_iter().map(|at| {
        format!("nobody can speak to {at}: no interface has an IPv6 address (disable_ipv6)")
    }));
    let answers: Vec<_> = std::thread::scope(|scope| {
        let knocking: Vec<_> = spoken.iter().map(|at| (at, scope.spawn(knock(**at)))).collect();
        knocking.into_iter().map(|(at, knock)| (at, knock.join())).collect()
    });
    for (endpoint, answer) in answers {
        let lost = |_| SysError::new(format!("cannot speak to {endpoint}"), "the probe is lost");
        match answer.map_err(lost)?? {
            Answer::KeyExchange => {}
            Answer::Penalised => notes.push(format!(
                "{endpoint} answers, but turns loopback away for now (PerSourcePenalties)"
            )),
            Answer::OtherHostKey => {
                faults
                    .push(format!("{endpoint} shows a host key that is not in this host's files"));
            }
            Answer::Failed(why) => {
                faults.push(format!("no SSH key exchange on {endpoint}: {why}{}", denied(files)));
            }
        }
    }
    Ok((faults, notes))
}

/// Why the sshd that runs is not the one that its files make: it has read other host keys, and every client knows
/// those. Where none runs, none is started to ask.
///
/// # Errors
/// Where the probe itself cannot be run.
pub fn other_host_key(
    files: &Files,
    folder: &Path,
    observed: &Observed,
) -> Result<Option<Fault>, Error> {
    let held = observed.held();
    let Some(at) = held.iter().find(|at| at.is_ipv4()).or(held.first()) else { return Ok(None) };
    if !observed.service.is_active() {
        return Ok(None);
    }
    let known_hosts = write_known_hosts(files, folder, observed)?;
    let is_other = key_exchange(at.ip(), at.port(), &known_hosts)? == Answer::OtherHostKey;
    let service = &observed.service.name;
    Ok(is_other.then(|| {
        format!(
            "the host keys have changed since sshd started, and every client would refuse the new ones: \
             if that is what you want, systemctl restart {service} first"
        )
    }))
}

/// What may keep the host itself out (hosts_access(5), where sshd is built with it).
fn denied(files: &Files) -> &'static str {
    let rules = files.read(Path::new("/etc/hosts.deny")).ok().flatten().unwrap_or_default();
    let mut lines = rules.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    match lines.any(|line| !line.is_empty() && !line.starts_with(b"#")) {
        true => " (if /etc/hosts.deny is why: add `sshd: 127. [::1]` to /etc/hosts.allow)",
        false => "",
    }
}

/// A known_hosts file with this host's own public keys, for a probe.
fn write_known_hosts(files: &Files, folder: &Path, observed: &Observed) -> Result<PathBuf, Error> {
    let path = folder.join("known_hosts");
    let keys = observed.effective.valid().map(Effective::host_keys).unwrap_or_default();
    let mut text = String::new();
    for key in keys {
        let public = match files.read(Path::new(&format!("{key}.pub")))? {
            Some(content) => String::from_utf8_lossy(&content).into_owned(),
            None => {
                let keygen = Command::new(Path::new("/usr/bin/ssh-keygen")).args(["-y", "-f", key]);
                keygen.run()?.stdout
            }
        };
        text.push_str(&format!("harden-probe {}\n", public.trim()));
    }
    files.scratch(&path, text.as_bytes())?;
    Ok(path)
}
