//! The session in which harden runs: what opened it has to open the next one.

use std::path::Path;

use super::access::{self, Obstacle, obstacle};
use super::keys::{Key, Keys};
use super::view::View;
use super::{Admin, Risk, Standing, gets_in, in_place_of};
use crate::sshd::Effective;
use crate::sshd::criteria::pattern_list;
use crate::sys::Command;
use crate::sys::process::Session;
use crate::sys::users;

/// The key with which this very session was opened; where sshd has not logged that, any of those it may be. It has
/// to open another one: its user's, or in place of one who is shut out, of somebody who can become root.
///
/// `views`: what is in effect now, and what will be. `may_be_lost`: who gets in today, and of whom nothing is told yet.
pub(super) fn risk(
    admins: &[Admin],
    views: (&View, &View),
    keys: &Keys,
    may_be_lost: impl Fn(&Admin) -> bool,
) -> Option<Risk> {
    let (now, then) = views;
    let session = Session::present()?;
    let (name, logged) = match opened(&session) {
        Opened::ByKey(name, key) => (name, Some(key)),
        Opened::Unknown => (users::operator(), None),
        Opened::Otherwise => return None,
    };
    let known = admins.iter().find(|admin| admin.user.name == name).cloned();
    let from = Some(session.client.ip());
    let admin = known.or_else(|| {
        Some(Admin {
            user: users::named(&name)?,
            from,
            standing: Standing::LoggedIn,
            logged_in: None,
        })
    })?;
    let will_be = then;
    let (now, then) = (now.of(&admin)?, then.of(&admin)?);
    let (before, after) = (keys.accepted(&admin, &now), keys.accepted(&admin, &then));
    let may_be = |key: &&Key| {
        logged.as_ref().is_none_or(|logged| key.print.fingerprint == logged.fingerprint)
    };
    let stays =
        |key: &&Key| after.iter().any(|other| other.print.fingerprint == key.print.fingerprint);
    let opened_it: Vec<&Key> = before.iter().filter(may_be).collect();
    if !opened_it.is_empty()
        && may_be_lost(&admin)
        && let Some(found) = obstacle(&admin, &then, keys)
    {
        return opens_nothing(&admin, found, &opened_it, will_be, keys);
    }
    let message = match &logged {
        Some(key) if !before.iter().any(|other| may_be(&other)) => {
            let why = unseen_is_lost(keys, key, &now, &then)?;
            let what = if key.is_certificate() { "certificate" } else { "key" };
            format!(
                "the {what} with which {name} opened this session would not be taken any more: {why}"
            )
        }
        _ => {
            let print = &before.iter().filter(may_be).find(|key| !stays(key))?.print.fingerprint;
            if logged.is_some() {
                format!(
                    "the key with which {name} opened this session would not be taken any more ({print})"
                )
            } else {
                format!(
                    "the key with which {name} may have opened this session would not be taken any more \
                     ({print}); which one it was is not in the journal"
                )
            }
        }
    };
    let fix =
        format!("add a key of {name}'s that the plan accepts, and open a session with it first");
    Some(Risk { message, fix })
}

/// The user of this session is shut out, and nobody who takes their place has a key that may have opened it.
fn opens_nothing(
    admin: &Admin,
    found: Obstacle,
    opened_it: &[&Key],
    then: &View,
    keys: &Keys,
) -> Option<Risk> {
    let is_it =
        |key: &Key| opened_it.iter().any(|other| other.print.fingerprint == key.print.fingerprint);
    let enters = |other: &Admin| gets_in(other, then, keys);
    let with_it = |other: &Admin| {
        then.of(other).is_some_and(|effective| {
            access::has_unseen_keys(&effective, keys)
                || keys.accepted(other, &effective).iter().any(is_it)
        })
    };
    let others: Vec<Admin> = in_place_of(admin).filter(enters).collect();
    if others.iter().any(with_it) {
        return None;
    }
    let (name, Obstacle { why, fix }) = (&admin.user.name, found);
    let message =
        format!("the key with which {name} opened this session would open none any more: {why}");
    Some(match others.first() {
        None => Risk { message, fix },
        Some(other) => {
            let other = &other.user.name;
            Risk {
                message: format!("{message}, and {other}, who gets in, has not got that key"),
                fix: format!("give {other} that key too, or apply it from a session of {other}'s"),
            }
        }
    })
}

/// How a session was opened.
enum Opened {
    /// With a key of somebody's.
    ByKey(String, Logged),
    /// With something else.
    Otherwise,
    /// sshd has not logged it (`LogLevel`).
    Unknown,
}

/// How the session in which harden runs was opened: sshd has logged that (`Accepted publickey for ada from
/// 192.0.2.1 port 4242 ssh2: ED25519 SHA256:…`).
fn opened(session: &Session) -> Opened {
    let from = format!(" from {} port {} ", session.client.ip(), session.client.port());
    let journal = Command::new(Path::new("/usr/bin/journalctl"));
    let journal = journal.args(["-q", "-b", "-o", "cat", "-t", "sshd", "-t", "sshd-session"]);
    let said = journal.run().map(|said| said.stdout).unwrap_or_default();
    let is_it = |line: &&str| line.starts_with("Accepted ") && line.contains(&from);
    let Some(line) = said.lines().rfind(is_it) else { return Opened::Unknown };
    let name = line.strip_prefix("Accepted publickey for ").and_then(|rest| rest.split(' ').next());
    match (name, Logged::read(line)) {
        (Some(name), Some(key)) => Opened::ByKey(name.to_owned(), key),
        // `FingerprintHash md5`.
        (Some(_), None) => Opened::Unknown,
        (None, _) => Opened::Otherwise,
    }
}

/// What sshd logs of a key (auth2-pubkey.c, `format_key`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Logged {
    /// `ED25519`, `RSA-CERT`.
    kind: String,
    fingerprint: String,
    /// Kind and fingerprint of the key that has signed it, where it is a certificate.
    authority: Option<(String, String)>,
}

impl Logged {
    /// Whether it is a certificate.
    fn is_certificate(&self) -> bool {
        self.authority.is_some()
    }

    /// `… ssh2: ED25519-CERT SHA256:… ID ada (serial 0) CA ECDSA SHA256:…`
    fn read(line: &str) -> Option<Self> {
        let (_, told) = line.split_once(" ssh2: ")?;
        let of = |words: &str| {
            let mut words = words.split(' ').map(str::to_owned);
            Some((words.next()?, words.next().filter(|word| word.starts_with("SHA256:"))?))
        };
        let (kind, fingerprint) = of(told)?;
        let authority = told.rsplit_once(" CA ").and_then(|(_, authority)| of(authority));
        Some(Self { kind, fingerprint, authority })
    }
}

/// The algorithms with which a key of a kind as sshd logs it may sign.
fn algorithms(kind: &str) -> Vec<String> {
    let (plain, suffix) = match kind.strip_suffix("-CERT") {
        Some(plain) => (plain, "-cert-v01@openssh.com"),
        None => (kind, ""),
    };
    let names: &[&str] = match plain {
        "ED25519" => &["ssh-ed25519"],
        "RSA" => &["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
        "ECDSA" => &["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"],
        "ED25519-SK" => &["sk-ssh-ed25519"],
        "ECDSA-SK" => &["sk-ecdsa-sha2-nistp256"],
        _ => &[],
    };
    let at = |name: &&str| match (suffix, name.starts_with("sk-")) {
        ("", true) => format!("{name}@openssh.com"),
        _ => format!("{name}{suffix}"),
    };
    names.iter().map(at).collect()
}

/// What a plan takes away from a key that is in no file of its user's: a certificate, or one from
/// `AuthorizedKeysCommand`.
fn unseen_is_lost(keys: &Keys, key: &Logged, now: &Effective, then: &Effective) -> Option<String> {
    let takes = |effective: &Effective, keyword: &str, kind: &str| {
        let list = effective.get(keyword).join(",");
        let names = algorithms(kind);
        list.is_empty()
            || names.is_empty()
            || names.iter().any(|name| pattern_list(name, &list) == Some(true))
    };
    let loses = |keyword: &str, kind: &str| {
        let lost = takes(now, keyword, kind) && !takes(then, keyword, kind);
        lost.then(|| format!("{keyword} does not take {kind}"))
    };
    let differs = |keyword: &str| now.get(keyword) != then.get(keyword);
    let changed = |keywords: &[&str]| {
        let found = keywords.iter().find(|keyword| differs(keyword))?;
        Some(format!("{found} changes"))
    };
    let bits = |effective: &Effective| {
        effective.get("requiredrsasize").first().and_then(|bits| bits.parse::<u32>().ok())
    };
    // How long it is, sshd does not log.
    let longer = || {
        let least =
            bits(then).filter(|least| key.kind.starts_with("RSA") && Some(*least) > bits(now));
        least.map(|least| format!("RequiredRSASize rises to {least}"))
    };
    let by_itself = loses("PubkeyAcceptedAlgorithms", &key.kind)
        .or_else(longer)
        .or_else(|| changed(&["RevokedKeys"]));
    let Some((kind, fingerprint)) = &key.authority else {
        let command = now.get("authorizedkeyscommand").first();
        let is_by_command = command.is_some_and(|command| command != "none");
        let changed = || changed(&["AuthorizedKeysCommand", "AuthorizedKeysCommandUser"]);
        return by_itself.or_else(|| is_by_command.then(changed).flatten());
    };
    let trusts = |effective: &Effective| {
        let file = effective.get("trustedusercakeys").first()?;
        let told = keys.keygen_of(Path::new(file))?;
        Some(told.split_whitespace().any(|word| word == fingerprint))
    };
    let untrusted = || {
        let lost = trusts(now) == Some(true) && trusts(then) != Some(true);
        lost.then(|| format!("TrustedUserCAKeys has not the key {fingerprint} that signed it"))
    };
    // Else a line of authorized_keys says that its authority is one.
    let leads_there: &[&str] = match trusts(now) {
        Some(true) => &[
            "AuthorizedPrincipalsFile",
            "AuthorizedPrincipalsCommand",
            "AuthorizedPrincipalsCommandUser",
        ],
        _ => &["AuthorizedKeysFile"],
    };
    by_itself
        .or_else(|| loses("CASignatureAlgorithms", kind))
        .or_else(untrusted)
        .or_else(|| changed(leads_there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sshd_logs_of_a_key() {
        let line = "Accepted publickey for ada from ::1 port 9 ssh2: ED25519-CERT SHA256:a ID x CA y \
                    (serial 0) CA ECDSA SHA256:b";
        let key = Logged::read(line).unwrap();
        let authority = Some(("ECDSA".to_owned(), "SHA256:b".to_owned()));
        assert_eq!((key.kind.as_str(), key.fingerprint.as_str()), ("ED25519-CERT", "SHA256:a"));
        assert_eq!(key.authority, authority);
        let plain = "Accepted publickey for ada from ::1 port 9 ssh2: RSA SHA256:a";
        assert!(!Logged::read(plain).unwrap().is_certificate());
        assert_eq!(Logged::read("Accepted password for ada from ::1 port 9 ssh2"), None);
        assert_eq!(algorithms("ED25519-SK"), ["sk-ssh-ed25519@openssh.com"]);
        assert_eq!(algorithms("ED25519-CERT"), ["ssh-ed25519-cert-v01@openssh.com"]);
    }
}
