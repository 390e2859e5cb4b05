//! The public keys that users have on this host, and keys like them.

use std::path::{Path, PathBuf};

use super::Asked;
use crate::sshd::authorized_keys::{self, KeyLine};
use crate::sys::users::User;
use crate::sys::{Command, Files, Result, SysError};

/// How many of one's own keys are shown to sshd, at most.
const MOST: usize = 30;

/// One public key.
#[derive(Debug, Clone)]
pub(super) struct Key {
    /// Its algorithm (`ssh-ed25519`).
    algorithm: String,
    /// A file with it alone.
    pub(super) path: PathBuf,
}

/// The keys in the user's files that open a session of the user's choice.
pub(super) fn own_keys(files: &Files, asked: &Asked, user: &User) -> Result<Vec<Key>> {
    keys_in(files, asked, user, &places(asked, user), |_| true)
}

/// These, and those where sshd looks unless it is told otherwise (sshd_config(5), AuthorizedKeysFile); without those
/// that are for some clients alone.
pub(super) fn all_keys(files: &Files, asked: &Asked, user: &User) -> Result<Vec<Key>> {
    let mut places = places(asked, user);
    let usual = user.home.join(".ssh/authorized_keys");
    if !places.contains(&usual) {
        places.push(usual);
    }
    keys_in(files, asked, user, &places, |key| key.from.is_none())
}

fn places(asked: &Asked, user: &User) -> Vec<PathBuf> {
    let effective = asked.before.effective.valid();
    effective.map_or_else(Vec::new, |effective| {
        authorized_keys::files(effective, &user.name, user.uid, &user.home)
    })
}

fn keys_in(
    files: &Files,
    asked: &Asked,
    user: &User,
    places: &[PathBuf],
    counts: impl Fn(&KeyLine) -> bool,
) -> Result<Vec<Key>> {
    let texts: Vec<_> = places.iter().filter_map(|place| files.read(place).ok()?).collect();
    let lines = texts.iter().flat_map(|text| authorized_keys::keys(text, &asked.before.release));
    let mut keys = Vec::new();
    let free = authorized_keys::free(lines, |line| line, KeyLine::is_limited);
    for (number, key) in free.into_iter().filter(counts).take(MOST).enumerate() {
        let path = asked.folder.join(format!("own-{}-{number}.pub", user.uid));
        files.scratch(&path, format!("{}\n", key.line).as_bytes())?;
        keys.push(Key { algorithm: key.algorithm, path });
    }
    Ok(keys)
}

impl Key {
    /// Makes a key pair that sshd judges as it does this key: of the same algorithm and size; where only
    /// hardware can, one of another algorithm, and the name of that.
    ///
    /// # Errors
    /// Where ssh-keygen(1) does not make it.
    pub(super) fn twin(&self, files: &Files) -> Result<(PathBuf, Option<&'static str>)> {
        let what = "cannot make a key for a login";
        let keygen = || Command::new(Path::new("/usr/bin/ssh-keygen"));
        let mut other = None;
        let (kind, bits) = match self.algorithm.as_str() {
            "ssh-ed25519" => ("ed25519", None),
            "ssh-rsa" => {
                let told =
                    keygen().args(["-l", "-f"]).arg(self.path.display().to_string()).run()?;
                ("rsa", told.stdout.split(' ').next().map(str::to_owned))
            }
            name => match name.strip_prefix("ecdsa-sha2-nistp") {
                Some(bits) => ("ecdsa", Some(bits.to_owned())),
                None => {
                    other = Some("ssh-ed25519");
                    ("ed25519", None)
                }
            },
        };
        let twin = self.path.with_extension("twin");
        if files.exists(&twin) {
            return Ok((twin, other));
        }
        let bits = bits.into_iter().flat_map(|bits| ["-b".to_owned(), bits]);
        let made = keygen()
            .args(["-q", "-t", kind, "-N", "", "-C", "harden-probe"])
            .args(bits)
            .arg("-f")
            .arg(twin.display().to_string())
            .run()?;
        if made.status == 0 {
            Ok((twin, other))
        } else {
            Err(SysError::new(what, made.stderr.trim()))
        }
    }
}
