//! The public keys that users have on this host (sshd(8), AUTHORIZED_KEYS FILE FORMAT).

use std::path::{Path, PathBuf};

use super::Asked;
use crate::observe::Verdict;
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
    let Verdict::Valid(effective) = &asked.before.effective else { return Ok(Vec::new()) };
    let patterns = effective.get("authorizedkeysfile").iter().flat_map(|line| line.split(' '));
    let texts = patterns
        .filter(|pattern| *pattern != "none")
        .filter_map(|pattern| files.read(&key_file(pattern, user)).ok()?);
    let lines = texts.flat_map(|text| {
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().filter_map(free_key).collect::<Vec<_>>()
    });
    let mut keys = Vec::new();
    for (number, line) in lines.take(MOST).enumerate() {
        let path = asked.folder.join(format!("own-{}-{number}.pub", user.uid));
        files.scratch(&path, format!("{line}\n").as_bytes())?;
        let algorithm = line.split(' ').next().unwrap_or_default().to_owned();
        keys.push(Key { algorithm, path });
    }
    Ok(keys)
}

impl Key {
    /// Makes a key pair that sshd judges as it does this key: of the same algorithm and size. `None`
    /// where only hardware can.
    ///
    /// # Errors
    /// Where ssh-keygen(1) does not make it.
    pub(super) fn twin(&self, files: &Files) -> Result<Option<PathBuf>> {
        let what = "cannot make a key for a login";
        let keygen = || Command::new(Path::new("/usr/bin/ssh-keygen"));
        let (kind, bits) = match self.algorithm.as_str() {
            "ssh-ed25519" => ("ed25519", None),
            "ssh-rsa" => {
                let told =
                    keygen().args(["-l", "-f"]).arg(self.path.display().to_string()).run()?;
                ("rsa", told.stdout.split(' ').next().map(str::to_owned))
            }
            other => match other.strip_prefix("ecdsa-sha2-nistp") {
                Some(bits) => ("ecdsa", Some(bits.to_owned())),
                None => return Ok(None),
            },
        };
        let twin = self.path.with_extension("twin");
        if files.exists(&twin) {
            return Ok(Some(twin));
        }
        let bits = bits.into_iter().flat_map(|bits| ["-b".to_owned(), bits]);
        let made = keygen()
            .args(["-q", "-t", kind, "-N", "", "-C", "harden-probe"])
            .args(bits)
            .arg("-f")
            .arg(twin.display().to_string())
            .run()?;
        if made.status == 0 { Ok(Some(twin)) } else { Err(SysError::new(what, made.stderr.trim())) }
    }
}

/// The key of a line, unless its options tie it to a command or to an authority.
fn free_key(line: &str) -> Option<String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let mut quoted = false;
    let options = if is_algorithm(line.split_whitespace().next()?) {
        0
    } else {
        line.find(|c: char| {
            quoted ^= c == '"';
            c.is_whitespace() && !quoted
        })?
    };
    let (options, rest) = line.split_at(options);
    let options = options.to_ascii_lowercase();
    let tied =
        |option: &str| options.starts_with(option) || options.contains(&format!(",{option}"));
    if tied("command=") || tied("cert-authority") {
        return None;
    }
    let mut words = rest.split_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    is_algorithm(kind).then(|| format!("{kind} {key}"))
}

/// `%h`, `%u`, `%U` and `%%`; what is not absolute is below the home folder (sshd_config(5),
/// AuthorizedKeysFile).
fn key_file(pattern: &str, user: &User) -> PathBuf {
    let named = pattern
        .replace("%%", "\0")
        .replace("%h", &user.home.to_string_lossy())
        .replace("%u", &user.name)
        .replace("%U", &user.uid.to_string())
        .replace('\0', "%");
    user.home.join(named)
}

/// Whether a word is the name of a public key's algorithm.
fn is_algorithm(word: &str) -> bool {
    let known = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp", "sk-ssh-ed25519@", "sk-ecdsa-sha2-"];
    known.iter().any(|known| word.starts_with(known)) && !word.contains("-cert-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_behind_their_options() {
        let plain = Some("ssh-ed25519 AAAA".to_owned());
        assert_eq!(free_key("ssh-ed25519 AAAA me@here"), plain);
        assert_eq!(free_key("no-pty,from=\"10.0.0.0/8, ::1\" ssh-ed25519 AAAA me"), plain);
        assert_eq!(free_key("command=\"/bin/x y\",no-pty ecdsa-sha2-nistp256 AAAA"), None);
        assert_eq!(free_key("no-pty,Command=\"echo no\" ssh-rsa AAAA"), None);
        assert_eq!(free_key("cert-authority ssh-rsa AAAA"), None);
        for nothing in ["# ssh-rsa AAAA", "", "ssh-rsa", "no-pty ssh-new AAAA", "\"open"] {
            assert_eq!(free_key(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn the_places_of_keys_are_those_of_the_manual() {
        let user = User { name: "ada".into(), uid: 1001, home: "/home/ada".into() };
        let of = |pattern| key_file(pattern, &user).display().to_string();
        assert_eq!(of(".ssh/authorized_keys"), "/home/ada/.ssh/authorized_keys");
        assert_eq!(of("/etc/keys/%u-%U/100%%u"), "/etc/keys/ada-1001/100%u");
        assert_eq!(of("%h/k"), "/home/ada/k");
    }
}
