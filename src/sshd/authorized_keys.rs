//! Public keys of users (sshd(8), AUTHORIZED_KEYS FILE FORMAT).

use std::path::{Path, PathBuf};

use super::effective::Effective;

/// The files in which a configuration looks for a user's keys.
pub fn files(effective: &Effective, name: &str, uid: u32, home: &Path) -> Vec<PathBuf> {
    let patterns = effective.get("authorizedkeysfile").iter().flat_map(|line| line.split(' '));
    let patterns = patterns.filter(|pattern| !pattern.is_empty() && *pattern != "none");
    patterns.map(|pattern| file(pattern, name, uid, home)).collect()
}

/// The keys of a file that open a session of the user's choice.
pub fn free_keys(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).lines().filter_map(free_key).collect()
}

/// The key of a line (`ssh-ed25519 AAAA…`), unless its options tie it to a command or to an authority.
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
fn file(pattern: &str, name: &str, uid: u32, home: &Path) -> PathBuf {
    let named = pattern
        .replace("%%", "\0")
        .replace("%h", &home.to_string_lossy())
        .replace("%u", name)
        .replace("%U", &uid.to_string())
        .replace('\0', "%");
    home.join(named)
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
        let of = |pattern| file(pattern, "ada", 1001, Path::new("/home/ada")).display().to_string();
        assert_eq!(of(".ssh/authorized_keys"), "/home/ada/.ssh/authorized_keys");
        assert_eq!(of("/etc/keys/%u-%U/100%%u"), "/etc/keys/ada-1001/100%u");
        assert_eq!(of("%h/k"), "/home/ada/k");
    }
}
