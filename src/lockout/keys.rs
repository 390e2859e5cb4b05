//! The keys that users have on this host, and whether a configuration takes them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Admin;
use super::view::client;
use crate::sshd::Effective;
use crate::sshd::authorized_keys::{self, KeyLine};
use crate::sshd::criteria::{comes_from, pattern_list, takes_nobody};
use crate::sshd::release::Release;
use crate::sys::users::{self, User};
use crate::sys::{Command, Files};

/// Looks at keys.
pub(super) struct Keys<'a> {
    pub(super) files: &'a Files,
    /// For copies of single keys.
    folder: &'a Path,
    /// Which sshd reads them.
    release: &'a Release,
    /// Keys by their lines, as ssh-keygen(1) has read them: none where a line is no key.
    read: Mutex<BTreeMap<String, Option<Print>>>,
}

/// What ssh-keygen(1) tells of a key.
#[derive(Debug, Clone)]
pub(super) struct Print {
    /// Its length.
    bits: u32,
    /// `SHA256:…`.
    pub(super) fingerprint: String,
}

/// A public key of a user's.
#[derive(Debug, Clone)]
pub(super) struct Key {
    /// Its line.
    line: KeyLine,
    /// What it is.
    pub(super) print: Print,
    /// Where it stands.
    file: PathBuf,
}

impl<'a> Keys<'a> {
    /// With a folder for copies of single keys.
    pub(super) fn new(files: &'a Files, folder: &'a Path, release: &'a Release) -> Self {
        Self { files, folder, release, read: Mutex::default() }
    }

    /// Has a user's keys read before they are asked for.
    pub(super) fn read_ahead(&self, user: &User, effective: &Effective) {
        self.all(user, effective);
    }

    /// The keys that a configuration takes for a session of the user's.
    pub(super) fn accepted(&self, admin: &Admin, effective: &Effective) -> Vec<Key> {
        let mut keys = self.of(admin, effective);
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
        let keys = self.of(admin, effective);
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
        let objection = self.objection(first, admin, effective)?;
        let taken = |key: &Key| self.objection(key, admin, effective).is_none();
        if keys.iter().skip(1).any(taken) { None } else { Some(objection) }
    }

    /// The keys that open a session of the user's choice, in the files that a configuration names.
    fn of(&self, admin: &Admin, effective: &Effective) -> Vec<Key> {
        let is_limited = |key: &Key| limit(key, admin, effective).is_some();
        authorized_keys::free(self.all(&admin.user, effective), |key| &key.line, is_limited)
    }

    /// All that can be parsed there.
    fn all(&self, user: &User, effective: &Effective) -> Vec<Key> {
        let of = |file: PathBuf| {
            let lines = authorized_keys::keys(&self.files.read(&file).ok()??, self.release);
            Some(self.keys(&lines, &file))
        };
        places(user, effective).into_iter().filter_map(of).flatten().collect()
    }

    /// The keys of a file, without what is none.
    fn keys(&self, lines: &[KeyLine], file: &Path) -> Vec<Key> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let unread = lines.iter().map(|line| line.line.as_str());
        let unread: Vec<&str> = unread.filter(|line| !read.contains_key(*line)).collect();
        let prints = self.prints(&unread);
        read.extend(unread.into_iter().map(str::to_owned).zip(prints));
        let key = |line: &KeyLine| {
            let print = read.get(&line.line)?.clone()?;
            Some(Key { line: line.clone(), print, file: file.to_owned() })
        };
        lines.iter().filter_map(key).collect()
    }

    /// Lines as ssh-keygen(1) reads them.
    fn prints(&self, lines: &[&str]) -> Vec<Option<Print>> {
        let mut prints = vec![None; lines.len()];
        if lines.is_empty() {
            return prints;
        }
        // It tells of each key its comment.
        let numbered = lines.iter().enumerate().map(|(at, line)| format!("{line} {at}\n"));
        let told = self.keygen(&numbered.collect::<String>(), &["-l", "-E", "sha256", "-f"]);
        for told in told.unwrap_or_default().lines() {
            let mut words = told.split(' ');
            let mut print = || {
                let (bits, fingerprint) = (words.next()?.parse().ok()?, words.next()?.to_owned());
                let at = words.next()?.parse::<usize>().ok()?;
                Some((at, Print { bits, fingerprint }))
            };
            if let Some((at, print)) = print().filter(|(at, _)| *at < lines.len()) {
                prints[at] = Some(print);
            }
        }
        prints
    }

    /// What ssh-keygen(1) says of public keys, a file with which follows the arguments.
    fn keygen(&self, keys: &str, args: &[&str]) -> Option<String> {
        let copy = self.folder.join("key.pub");
        self.files.scratch(&copy, keys.as_bytes()).ok()?;
        let keygen = Command::new(Path::new("/usr/bin/ssh-keygen")).args(args.iter().copied());
        Some(keygen.arg(copy.display().to_string()).run().ok()?.stdout)
    }

    /// What ssh-keygen(1) says of a file with public keys; `None` where that is none.
    pub(super) fn keygen_of(&self, file: &Path) -> Option<String> {
        let text = self.files.read(file).ok()??;
        self.keygen(&String::from_utf8_lossy(&text), &["-l", "-E", "sha256", "-f"])
    }

    /// Why a key is not taken, and what to do about it.
    fn objection(
        &self,
        key: &Key,
        admin: &Admin,
        effective: &Effective,
    ) -> Option<(String, String)> {
        let user = &admin.user;
        let KeyLine { algorithm, .. } = &key.line;
        let accepted = effective.get("pubkeyacceptedalgorithms");
        let list = accepted.join(",");
        let name = &user.name;
        let path = key.file.display();
        if let Some(closed) = self.closed_to(user, &key.file) {
            let why = if closed == key.file {
                format!("{name} cannot read {path}, and sshd reads it as {name}")
            } else {
                let folder = closed.display();
                format!(
                    "{name} cannot read {path}, and sshd reads it as {name}: {folder} is closed"
                )
            };
            let fix = format!("chmod go+rX {0}, or chown {name} {0}", closed.display());
            return Some((why, fix));
        }
        let objection = self.revoked(key, name, effective);
        if let Some(objection) = objection.or_else(|| limit(key, admin, effective)) {
            return Some(objection);
        }
        let takes = |name: &str| accepted.is_empty() || pattern_list(name, &list) == Some(true);
        let another = if takes("ssh-ed25519") {
            format!("give {name} an Ed25519 key first: ssh-keygen -t ed25519")
        } else {
            format!("give {name} a key first that it takes")
        };
        if !authorized_keys::signs(algorithm).iter().any(|name| takes(name)) {
            return Some((
                format!("PubkeyAcceptedAlgorithms does not take {name}'s {algorithm} key"),
                another,
            ));
        }
        let least =
            effective.get("requiredrsasize").first().and_then(|bits| bits.parse::<u32>().ok());
        if let Some(least) = least.filter(|least| algorithm == "ssh-rsa" && key.print.bits < *least)
        {
            return Some((
                format!("RequiredRSASize is {least}, and {name}'s key has {} bits", key.print.bits),
                another,
            ));
        }
        let strict = effective.get("strictmodes").first().is_none_or(|value| value == "yes");
        let open = strict.then(|| self.writable(&key.file, user)).flatten()?;
        // A folder of the system's is not to be changed for a key's sake.
        let fix = if open.starts_with(self.files.resolve(&user.home)) {
            format!("chmod go-w {0}, and chown {name} {0}", open.display())
        } else {
            format!(
                "keep {path} where nobody but root and {name} can write, and no link to elsewhere"
            )
        };
        Some((format!("StrictModes: others can write {}", open.display()), fix))
    }

    /// Whether a list of revoked keys has the key; one that cannot be read revokes all of them
    /// (sshd_config(5), RevokedKeys).
    fn revoked(&self, key: &Key, name: &str, effective: &Effective) -> Option<(String, String)> {
        let list = effective.get("revokedkeys").first().filter(|list| *list != "none")?;
        let Ok(Some(text)) = self.files.read(Path::new(list)) else {
            let why = format!("RevokedKeys {list} cannot be read, so sshd takes no key at all");
            return Some((why, format!("create {list}, or set RevokedKeys none")));
        };
        let told = self.keygen(&format!("{}\n", key.line.line), &["-Q", "-f", list])?;
        let listed = String::from_utf8_lossy(&text).contains(&key.line.line);
        (listed || told.contains("REVOKED")).then(|| {
            let print = &key.print.fingerprint;
            let fix = format!("take the key off {list}, or give {name} another one first");
            (format!("RevokedKeys {list} has {name}'s key {print}"), fix)
        })
    }

    /// What keeps a user from reading a file: its own mode, or that of a folder on the way.
    fn closed_to(&self, user: &User, file: &Path) -> Option<PathBuf> {
        let groups = user.group_ids();
        let may = |path: &Path, bits: u32| {
            let Some(meta) = self.files.metadata(path) else { return false };
            let bits = if meta.uid() == user.uid {
                bits << 6
            } else if groups.contains(&meta.gid()) {
                bits << 3
            } else {
                bits
            };
            meta.mode() & bits != 0
        };
        if user.uid == 0 {
            return None;
        }
        let real = self.files.resolve(file);
        let folder = real.ancestors().skip(1).find(|folder| !may(folder, 0o1));
        folder.map(Path::to_owned).or_else(|| (!may(&real, 0o4)).then(|| file.to_owned()))
    }

    /// What others can write on the way to a file, up to the home folder (misc.c, `safe_path`); as Debian
    /// has it, a group that is the user's alone is none of others.
    fn writable(&self, file: &Path, user: &User) -> Option<PathBuf> {
        let real = self.files.resolve(file);
        let home = self.files.resolve(&user.home);
        for path in real.ancestors() {
            let meta = self.files.metadata(path)?;
            let owned = meta.uid() == 0 || meta.uid() == user.uid;
            let by_group = meta.mode() & 0o020 != 0 && !users::is_alone_in(user, meta.gid());
            if !owned || meta.mode() & 0o002 != 0 || by_group {
                return Some(path.to_owned());
            }
            if path == home {
                return None;
            }
        }
        None
    }
}

/// What the options of its line say against a key (sshd(8)).
fn limit(key: &Key, admin: &Admin, effective: &Effective) -> Option<(String, String)> {
    let KeyLine { from, expires, .. } = &key.line;
    let (name, path) = (&admin.user.name, key.file.display());
    if let Some(end) = expires.as_ref().filter(|end| end.is_before(&jiff::Zoned::now())) {
        let why = format!("{name}'s key in {path} has expired (expiry-time={end})");
        return Some((why, format!("put another key there, or change expiry-time in {path}")));
    }
    let list = from.as_ref()?;
    let fix = format!("widen from= in {path}, or put another key there");
    if takes_nobody(list, effective.looks_up_names()) {
        let why = format!("from={list} of {name}'s key in {path} takes nobody");
        return Some((why, fix));
    }
    let client = client(admin.from?, effective);
    let from = client.name.clone().unwrap_or_else(|| client.address.to_canonical().to_string());
    let why = format!("{name}'s key in {path} is taken from {list} alone, and not from {from}");
    (!comes_from(&client, list)).then_some((why, fix))
}

fn places(user: &User, effective: &Effective) -> Vec<PathBuf> {
    authorized_keys::files(effective, &user.name, user.uid, &user.home)
}
