//! The host's own keys, and whether a configuration shows them to clients.

use std::path::Path;

use crate::observe::Observed;
use crate::plan::Plan;
use crate::sshd::criteria::pattern_list;
use crate::sshd::keywords::same;
use crate::sshd::{Effective, authorized_keys};
use crate::sys::{Command, Files};

/// The kinds (`ssh-ed25519`) of those that are loaded; `None` where one cannot be seen.
pub(super) fn kinds(files: &Files, effective: &Effective) -> Option<Vec<String>> {
    let kind = |key: &String| {
        let public = files.read(Path::new(&format!("{key}.pub"))).ok()??;
        let kind = String::from_utf8_lossy(&public).split_whitespace().next()?.to_owned();
        Some((key.clone(), kind))
    };
    // Certificates and agents have algorithms of their own.
    let plain = ["hostcertificate", "hostkeyagent"].iter().all(|keyword| {
        effective.get(keyword).iter().all(|value| value.is_empty() || value == "none")
    });
    let there = |key: &&String| files.exists(Path::new(key));
    let keys = effective.host_keys().iter().filter(there);
    let mut keys = keys.map(kind).collect::<Option<Vec<_>>>()?;
    keys.retain(|(key, kind)| kind != "ssh-rsa" || is_long_enough(key, effective));
    let kinds: Vec<String> = keys.into_iter().map(|(_, kind)| kind).collect();
    Some(kinds).filter(|kinds| plain && !kinds.is_empty())
}

/// Whether sshd takes an RSA key of this length (`RequiredRSASize`; 1024 bits it takes at least).
fn is_long_enough(key: &str, effective: &Effective) -> bool {
    let least = effective.get("requiredrsasize").first().and_then(|bits| bits.parse::<u32>().ok());
    let Some(least) = least.filter(|least| *least > 1024) else { return true };
    let keygen = Command::new(Path::new("/usr/bin/ssh-keygen")).args(["-l", "-f"]);
    let told = keygen.arg(format!("{key}.pub")).run().map(|said| said.stdout).unwrap_or_default();
    let bits = told.split(' ').next().and_then(|bits| bits.parse::<u32>().ok());
    bits.is_none_or(|bits| bits >= least)
}

/// Whether a key of this kind is shown (`HostKeyAlgorithms`).
pub(super) fn is_shown(kind: &str, effective: &Effective) -> bool {
    let list = effective.get("hostkeyalgorithms").join(",");
    let accepts = |name: &&str| list.is_empty() || pattern_list(name, &list) == Some(true);
    authorized_keys::signs(kind).iter().any(accepts)
}

/// Says so where clients know this host by a key that it would not show them any more. (What a profile leaves
/// out it tells itself.)
pub fn lost(files: &Files, before: &Observed, plan: &Plan, then: &Effective) -> Option<String> {
    let now = before.effective.valid()?;
    let of_profile = plan.expect.at_least.iter().any(|keyword| same(keyword, "HostKeyAlgorithms"));
    let stay = kinds(files, then)?;
    let mut lost = kinds(files, now)?;
    lost.retain(|kind| is_shown(kind, now) && !(stay.contains(kind) && is_shown(kind, then)));
    (!lost.is_empty() && !of_profile).then(|| {
        format!(
            "clients that know this host by its {} key alone ask about another of its keys, or refuse it",
            lost.join(" and ")
        )
    })
}
