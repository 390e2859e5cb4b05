//! Whose keys a listener takes: public keys of administrators are shown to it over loopback, which needs no private
//! key and opens no session (RFC 4252, section 7).
//!
//! A unit may do to its sshd what nothing does to an sshd of harden's own, and may run another build: so whom a trial
//! lets in, the unit that takes its place has to let in.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::logins::{self, Asked, MOST, keys};
use super::write_known_hosts;
use crate::observe::Observed;
use crate::sys::Files;
use crate::sys::probe::takes;
use crate::sys::users;

/// How many keys of one user are shown: sshd hangs up after six that it does not take (sshd_config(5), MaxAuthTries).
const KEYS: usize = 5;
/// How often a key is shown that is turned away.
const TRIES: usize = 3;

/// A key of somebody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Whose.
    pub user: String,
    /// As it stands in a file of public keys.
    pub key: String,
}

/// Of the administrators' keys, one of each that this listener takes.
pub fn taken(files: &Files, asked: &Asked, at: &[SocketAddr]) -> Vec<Shown> {
    let with_keys = logins::who(asked).into_iter().filter_map(|user| {
        let lines = keys::lines(files, &asked.before, &user);
        let keys: Vec<String> = lines.into_iter().map(|key| key.line).take(KEYS).collect();
        (!keys.is_empty()).then_some((user.name, keys))
    });
    let with_keys: Vec<_> = with_keys.take(MOST + asked.admins.len()).collect();
    let answers = show(files, &asked.before, at, &with_keys);
    let first = |((user, _), taken): (&(String, Vec<String>), Option<Vec<String>>)| {
        Some(Shown { user: user.clone(), key: taken?.into_iter().next()? })
    };
    with_keys.iter().zip(answers).filter_map(first).collect()
}

/// Of these keys, those that this listener does not take, though they are where they were.
pub fn turned_away(
    files: &Files,
    host: &Observed,
    at: &[SocketAddr],
    shown: &[Shown],
) -> Vec<Shown> {
    let mut left = shown.to_vec();
    for attempt in 0..TRIES {
        left.retain(|shown| is_there(files, host, shown));
        if left.is_empty() {
            break;
        }
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(300));
        }
        let each: Vec<_> =
            left.iter().map(|shown| (shown.user.clone(), vec![shown.key.clone()])).collect();
        let mut answers = show(files, host, at, &each).into_iter();
        left.retain(|_| answers.next().flatten().is_some_and(|taken| taken.is_empty()));
    }
    left
}

fn is_there(files: &Files, host: &Observed, shown: &Shown) -> bool {
    users::named(&shown.user)
        .is_some_and(|user| keys::lines(files, host, &user).iter().any(|key| key.line == shown.key))
}

/// Which of each user's keys are taken; `None` where that could not be asked. Everybody asks at the same time.
fn show(
    files: &Files,
    host: &Observed,
    at: &[SocketAddr],
    each: &[(String, Vec<String>)],
) -> Vec<Option<Vec<String>>> {
    let folder = Path::new("/run/harden/shown");
    let known_hosts = write_known_hosts(files, folder, host);
    // Of IPv4 there are more addresses to ask from.
    let at = at.iter().find(|at| at.is_ipv4()).or(at.first());
    let (Ok(known_hosts), Some(at)) = (known_hosts, at) else { return vec![None; each.len()] };
    let ask = |number: usize, (user, keys): &(String, Vec<String>)| {
        let path = |key: usize| folder.join(format!("{number}-{key}.pub"));
        let paths: Vec<PathBuf> = (0..keys.len()).map(path).collect();
        for (path, key) in paths.iter().zip(keys) {
            files.scratch(path, format!("{key}\n").as_bytes()).ok()?;
        }
        let taken = takes(user, &paths, &known_hosts, *at).ok()??;
        let of = |(path, key): (&PathBuf, &String)| taken.contains(path).then(|| key.clone());
        Some(paths.iter().zip(keys).filter_map(of).collect())
    };
    let ask = &ask;
    std::thread::scope(|scope| {
        let asking: Vec<_> = each
            .iter()
            .enumerate()
            .map(|(number, who)| scope.spawn(move || ask(number, who)))
            .collect();
        asking.into_iter().map(|asked| asked.join().ok().flatten()).collect()
    })
}
