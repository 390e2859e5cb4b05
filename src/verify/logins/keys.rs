//! The public keys that users have on this host (sshd(8), AUTHORIZED_KEYS FILE FORMAT).

use std::path::{Path, PathBuf};

use super::Asked;
use crate::observe::Verdict;
use crate::sys::users::User;
use crate::sys::{Command, Files, SysError};

/// The keys in the user's files that open a session of the user's choice: type and key, without
/// options and comment (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
pub(super) fn own_keys(files: &Files, asked: &Asked, user: &User) -> Vec<String> {
    let Verdict::Valid(effective) = &asked.before.effective else { return Vec::new() };
    let patterns = effective.get("authorizedkeysfile").iter().flat_map(|line| line.split(' '));
    let texts = patterns
        .filter(|pattern| *pattern != "none")
        .filter_map(|pattern| files.read(&key_file(pattern, user)).ok()?);
    texts
        .flat_map(|text| {
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().filter_map(free_key).collect::<Vec<_>>()
        })
        .collect()
}

/// The key of a line, unless its options tie it to a command or to an authority.
fn free_key(line: &str) -> Option<String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let mut quoted = false;
    let options = if key_type_of(line.split_whitespace().next()?).is_some() {
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
    key_type_of(kind).map(|_| format!("{kind} {key}"))
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

/// What `ssh-keygen -t` calls the type of a key; a key in hardware is of a type of its own, which only
/// the hardware can make.
pub(super) fn key_type_of(key: &str) -> Option<&'static str> {
    match key.split_whitespace().next()? {
        "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => Some("ed25519"),
        "ssh-rsa" => Some("rsa"),
        word if word.starts_with("ecdsa-sha2-") || word.starts_with("sk-ecdsa-") => Some("ecdsa"),
        _ => None,
    }
}

pub(super) fn make_key(files: &Files, key: &Path, kind: &str) -> Result<(), SysError> {
    files.create_folders(key.parent().unwrap_or(key), 0o700)?;
    let keygen = Command::new(Path::new("/usr/bin/ssh-keygen"))
        .args(["-q", "-t", kind, "-N", "", "-C", "harden-probe", "-f"])
        .arg(key.display().to_string());
    let made = keygen.run()?;
    if made.status == 0 {
        return Ok(());
    }
    Err(SysError::new("cannot make a key for a login", made.stderr.trim()))
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
        assert_eq!(key_type_of("sk-ecdsa-sha2-nistp256@openssh.com AAAA"), Some("ecdsa"));
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
