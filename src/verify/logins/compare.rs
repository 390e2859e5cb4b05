//! Whose keys a listener takes, and whose an sshd of harden's own takes that has the same files: public keys are shown
//! to both, which needs no private key and opens no session (RFC 4252, section 7).
//!
//! They differ where a unit does something to its sshd, or where the listener has not read its files.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::door::Door;
use super::keys::{Key, all_keys};
use super::{Asked, MOST, by_place, who, write_known_hosts};
use crate::sshd::criteria::Criterion;
use crate::sshd::reading::Reading;
use crate::sys::Files;
use crate::sys::probe::{listener_takes, sshd_takes};

/// How many keys of one user are shown to a listener: it hangs up after six that it does not take (sshd_config(5),
/// MaxAuthTries).
const KEYS: usize = 5;
/// How many users ask from the one address that loopback has of IPv6 (sshd_config(5), PerSourcePenalties).
const BY_IPV6: usize = 2;
/// How often they are asked again that differ.
const TRIES: usize = 3;

/// How a listener treats an administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treated {
    /// As an sshd of harden's own does: both take a key, or neither.
    Alike,
    /// One of them has not answered.
    Unknown,
    /// It takes a key, and that one takes none.
    LetIn,
    /// It takes none of those that that one takes.
    TurnedAway,
}

/// How a listener treats administrators who have keys, by their names. `asked` has the files as they are.
pub fn compare(files: &Files, asked: &Asked, at: &[SocketAddr]) -> Vec<(String, Treated)> {
    // Of IPv4 there are more addresses to ask from.
    let Some(at) = at.iter().find(|at| at.is_ipv4()).or(at.first()) else { return Vec::new() };
    let Ok(reading) = Reading::new(&asked.candidate, asked.before.release.clone()) else {
        return Vec::new();
    };
    // One comes over loopback, the other from nowhere.
    let depends = |criterion: &Criterion| {
        criterion.asks_for_address() || criterion.asks_for_name() || criterion.asks_for_arrival()
    };
    if !by_place(&reading, depends).is_empty() {
        return Vec::new();
    }
    // What it says of a key says nothing of root then (sshd_config(5), PermitRootLogin).
    let effective = asked.before.effective.valid();
    let first = |keyword| effective.and_then(|all| all.get(keyword).first()).map(String::as_str);
    let leaves_root_out = matches!(first("permitrootlogin"), Some("no" | "forced-commands-only"));
    let tries = first("maxauthtries").and_then(|number| number.parse().ok()).unwrap_or(KEYS);
    let most = if at.is_ipv4() { MOST + asked.admins.len() } else { BY_IPV6 };
    let with_keys = who(asked).into_iter().filter(|user| user.uid != 0 || !leaves_root_out);
    let with_keys = with_keys.filter_map(|user| {
        let keys = all_keys(files, asked, &user).ok().filter(|keys| !keys.is_empty())?;
        Some((user.name, keys))
    });
    let mut left: Vec<(String, Vec<Key>)> = with_keys.take(most).collect();
    let mut told = Vec::new();
    for attempt in 0..TRIES {
        if left.is_empty() {
            break;
        }
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(300));
        }
        let treated = ask(files, asked, (*at, KEYS.min(tries)), &left);
        told.retain(|(name, _): &(String, Treated)| left.iter().all(|(other, _)| other != name));
        told.extend(left.iter().map(|(name, _)| name.clone()).zip(treated.iter().copied()));
        let differs = |treated| matches!(treated, Treated::LetIn | Treated::TurnedAway);
        let mut differ = treated.into_iter().map(differs);
        left.retain(|_| differ.next() == Some(true));
    }
    told
}

/// Everybody asks at the same time.
fn ask(
    files: &Files,
    asked: &Asked,
    (at, most): (SocketAddr, usize),
    each: &[(String, Vec<Key>)],
) -> Vec<Treated> {
    let door = Door { files, asked, name: "live", tree: &asked.candidate, options: &asked.options };
    let known_hosts = write_known_hosts(files, &asked.folder, &asked.before);
    // A file that has gone since somebody asked before would be read all the same.
    let (Ok(known_hosts), Ok(()), Ok(own)) = (known_hosts, door.clear(), door.plain()) else {
        return vec![Treated::Unknown; each.len()];
    };
    let treated = |(name, keys): &(String, Vec<Key>)| {
        let takes = |keys: &[PathBuf]| listener_takes(name, keys, &known_hosts, at).ok().flatten();
        let own = |key: &Key| sshd_takes(name, &key.path, &known_hosts, &own).ok().flatten();
        treated(keys, most, own, takes)
    };
    let treated = &treated;
    std::thread::scope(|scope| {
        let asking: Vec<_> = each.iter().map(|who| scope.spawn(move || treated(who))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap_or(Treated::Unknown)).collect()
    })
}

/// `own` and `takes`: whether harden's own sshd takes a key, and the listener any of `most` keys.
fn treated(
    keys: &[Key],
    most: usize,
    own: impl Fn(&Key) -> Option<bool>,
    takes: impl Fn(&[PathBuf]) -> Option<bool>,
) -> Treated {
    let mut taken = Vec::new();
    for key in keys {
        match own(key) {
            Some(true) => taken.push(key.path.clone()),
            Some(false) => {}
            None => return Treated::Unknown,
        }
        if taken.len() == most {
            break;
        }
    }
    let shown: Vec<PathBuf> = keys.iter().take(most).map(|key| key.path.clone()).collect();
    match (taken.is_empty(), takes(if taken.is_empty() { &shown } else { &taken })) {
        (_, None) => Treated::Unknown,
        (true, Some(true)) => Treated::LetIn,
        (false, Some(false)) => Treated::TurnedAway,
        _ => Treated::Alike,
    }
}
