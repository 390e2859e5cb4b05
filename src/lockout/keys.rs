//! The keys that users have on this host, and whether a configuration takes them.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Admin;
use crate::sshd::Effective;
use crate::sshd::authorized_keys::{self, FreeKey};
use crate::sshd::criteria::{comes_from, pattern_list};
use crate::sys::process::Session;
use crate::sys::users::User;
use crate::sys::{Command, Files};

/// Looks at keys.
pub(super) struct Keys<'a> {
    pub(super) files: &'a Files,
    /// For copies of single keys.
    pub(super) folder: &'a Path,
    /// Where they come from of whom nothing else is known: as the session in which harden runs.
    pub(super) from: Option<IpAddr>,
}

/// A public key of a user's.
#[derive(Debug, Clone)]
pub(super) struct Key {
    /// Its line.
    line: FreeKey,
    /// Its length in bits.
    bits: u32,
    /// `SHA256:…`.
    pub(super) fingerprint: String,
    /// Where it stands.
    file: PathBuf,
}

impl Keys<'_> {
    /// The keys that a configuration takes for a session of the user's.
    pub(super) fn accepted(&self, admin: &Admin, effective: &Effective) -> Vec<Key> {
        let mut keys = self.of(&admin.user, effective);
        keys.retain(|key| self.objection(key, admin, effective).is_none());
        keys
    }

    /// Why none of a user's keys is taken, and what to do; `None` where one is.
    pub(super) fn obstacle(
        &self,
        admin: &Admin,
        effective: &Effective,
    ) -> Option<(String, String)> {
        let user = &admin.user;
        let keys = self.of(user, effective);
        let name = &user.name;
        let places: Vec<String> =
            places(user, effective).iter().map(|path| path.display().to_string()).collect();
        let Some(first) = keys.first() else {
            let why = match places.as_slice() {
                [] => "AuthorizedKeysFile is none".to_owned(),
                places => format!("there is no key of {name}'s in {}", places.join(" or ")),
            };
            return Some((why, format!("put one there: ssh-copy-id {name}@HOST")));
        };
        let taken = keys.iter().any(|key| self.objection(key, admin, effective).is_none());
        if taken { None } else { self.objection(first, admin, effective) }
    }

    /// The keys that can be parsed, in the files that a configuration names.
    fn of(&self, user: &User, effective: &Effective) -> Vec<Key> {
        let mut keys = Vec::new();
        for file in places(user, effective) {
            let Ok(Some(text)) = self.files.read(&file) else { continue };
            let lines = authorized_keys::free_keys(&text).into_iter();
            keys.extend(lines.filter_map(|line| self.key(line, &file)));
        }
        keys
    }

    /// A key as ssh-keygen(1) reads it; `None` where it does not.
    fn key(&self, line: FreeKey, file: &Path) -> Option<Key> {
        let copy = self.folder.join("key.pub");
        self.files.scratch(&copy, format!("{}\n", line.line).as_bytes()).ok()?;
        let keygen = Command::new(Path::new("/usr/bin/ssh-keygen"));
        let told =
            keygen.args(["-l", "-E", "sha256", "-f"]).arg(copy.display().to_string()).run().ok()?;
        let mut words = told.stdout.split(' ');
        let (bits, fingerprint) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        Some(Key { line, bits, fingerprint, file: file.to_owned() })
    }

    /// Why a key is not taken, and what to do about it.
    fn objection(
        &self,
        key: &Key,
        admin: &Admin,
        effective: &Effective,
    ) -> Option<(String, String)> {
        let user = &admin.user;
        let FreeKey { algorithm, from, expires, .. } = &key.line;
        let accepted = effective.get("pubkeyacceptedalgorithms").join(",");
        let signatures: &[&str] = match algorithm.as_str() {
            "ssh-rsa" => &["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
            other => &[other],
        };
        let name = &user.name;
        let path = key.file.display();
        if !self.can_read(user, &key.file) {
            let fix = format!("chown {name} {path}, or chmod go+r {path}");
            return Some((format!("{name} cannot read {path}, and sshd reads it as {name}"), fix));
        }
        if let Some(end) = expires.as_ref().filter(|end| end.is_before(&jiff::Zoned::now())) {
            let why = format!("{name}'s key in {path} has expired (expiry-time={end})");
            return Some((why, format!("put another key there, or change expiry-time in {path}")));
        }
        // A name that sshd looks up may stand for anybody.
        let by_address = effective.get("usedns").first().is_none_or(|value| value != "yes");
        let client = admin.from.or(self.from).filter(|_| by_address);
        if let (Some(list), Some(client)) = (from, client)
            && !comes_from(client, list)
        {
            let why = format!(
                "{name}'s key in {path} is taken from {list} alone, and not from {}",
                client.to_canonical()
            );
            return Some((why, format!("widen from= in {path}, or put another key there")));
        }
        let another = format!("give {name} an Ed25519 key first: ssh-keygen -t ed25519");
        if !accepted.is_empty()
            && !signatures.iter().any(|name| pattern_list(name, &accepted) == Some(true))
        {
            return Some((
                format!("PubkeyAcceptedAlgorithms does not take {name}'s {algorithm} key"),
                another,
            ));
        }
        let least =
            effective.get("requiredrsasize").first().and_then(|bits| bits.parse::<u32>().ok());
        if let Some(least) = least.filter(|least| algorithm == "ssh-rsa" && key.bits < *least) {
            return Some((
                format!("RequiredRSASize is {least}, and {name}'s key has {} bits", key.bits),
                another,
            ));
        }
        let strict = effective.get("strictmodes").first().is_none_or(|value| value == "yes");
        let open = strict.then(|| self.writable(&key.file, user)).flatten()?;
        Some((
            format!("StrictModes: others can write {}", open.display()),
            format!("chmod go-w {0}, and chown {name} {0}", open.display()),
        ))
    }

    /// Whether a user can read a file, by its mode.
    fn can_read(&self, user: &User, file: &Path) -> bool {
        let Some(meta) = self.files.metadata(file) else { return false };
        let bit = if user.uid == 0 {
            return true;
        } else if meta.uid() == user.uid {
            0o400
        } else if user.group_ids().contains(&meta.gid()) {
            0o040
        } else {
            0o004
        };
        meta.mode() & bit != 0
    }

    /// What others can write on the way to a file, up to the home folder (misc.c, `safe_path`).
    fn writable(&self, file: &Path, user: &User) -> Option<PathBuf> {
        let real = self.files.resolve(file);
        let home = self.files.resolve(&user.home);
        for path in real.ancestors() {
            let meta = self.files.metadata(path)?;
            let owned = meta.uid() == 0 || meta.uid() == user.uid;
            if !owned || meta.mode() & 0o022 != 0 {
                return Some(path.to_owned());
            }
            if path == home {
                return None;
            }
        }
        None
    }
}

fn places(user: &User, effective: &Effective) -> Vec<PathBuf> {
    authorized_keys::files(effective, &user.name, user.uid, &user.home)
}

/// Whose key opened the session in which harden runs, and its fingerprint: sshd has logged that
/// (`Accepted publickey for ada from 192.0.2.1 port 4242 ssh2: ED25519 SHA256:…`).
pub(super) fn session_key() -> Option<(String, String)> {
    let session = Session::present()?;
    let from = format!(" from {} port {} ", session.client.ip(), session.client.port());
    let journal = Command::new(Path::new("/usr/bin/journalctl"));
    let said =
        journal.args(["-q", "-b", "-o", "cat", "-t", "sshd", "-t", "sshd-session"]).run().ok()?;
    let is_it = |line: &&str| line.starts_with("Accepted publickey for ") && line.contains(&from);
    let line = said.stdout.lines().rfind(is_it)?;
    let name = line.split(' ').nth(3)?;
    let fingerprint = line.split(' ').find(|word| word.starts_with("SHA256:"))?;
    Some((name.to_owned(), fingerprint.to_owned()))
}
