//! Public keys of users (sshd(8), AUTHORIZED_KEYS FILE FORMAT).

use std::path::{Path, PathBuf};

use super::effective::Effective;

/// The files in which a configuration looks for a user's keys.
pub fn files(effective: &Effective, name: &str, uid: u32, home: &Path) -> Vec<PathBuf> {
    let patterns = effective.get("authorizedkeysfile").iter().flat_map(|line| line.split(' '));
    let patterns = patterns.filter(|pattern| !pattern.is_empty() && *pattern != "none");
    patterns.map(|pattern| file(pattern, name, uid, home)).collect()
}

/// A key that opens a session of the user's choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeKey {
    /// Its algorithm (`ssh-ed25519`).
    pub algorithm: String,
    /// Algorithm and key, as a public key file has them.
    pub line: String,
    /// The clients from which it is taken (`from=`), where that is limited.
    pub from: Option<String>,
    /// When it ends (`expiry-time=`), as `YYYYMMDDHHMMSS`.
    pub expires: Option<Expiry>,
}

/// The end of a key's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// `YYYYMMDDHHMMSS`.
    digits: String,
    /// In UTC, not in the host's time zone.
    utc: bool,
}

impl Expiry {
    /// `YYYYMMDD[HHMM[SS]]`, with a `Z` for UTC (sshd(8)).
    fn read(text: &str) -> Self {
        let digits = text.trim_end_matches(['Z', 'z']);
        Self { digits: format!("{digits:0<14}"), utc: digits.len() < text.len() }
    }

    /// Whether it lies before a time.
    pub fn is_before(&self, now: &jiff::Zoned) -> bool {
        let now = if self.utc { now.with_time_zone(jiff::tz::TimeZone::UTC) } else { now.clone() };
        self.digits < now.strftime("%Y%m%d%H%M%S").to_string()
    }
}

impl std::fmt::Display for Expiry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.digits)?;
        f.write_str(if self.utc { "Z" } else { "" })
    }
}

/// Options that sshd knows; it drops a line with any other (auth-options.c, `sshauthopt_parse`).
const OPTIONS: [&str; 22] = [
    "agent-forwarding",
    "cert-authority",
    "command",
    "environment",
    "expiry-time",
    "from",
    "no-agent-forwarding",
    "no-port-forwarding",
    "no-pty",
    "no-touch-required",
    "no-user-rc",
    "no-x11-forwarding",
    "permitlisten",
    "permitopen",
    "port-forwarding",
    "principals",
    "pty",
    "restrict",
    "tunnel",
    "user-rc",
    "verify-required",
    "x11-forwarding",
];

/// The keys of files, in the order in which sshd reads them, that open a session of the user's choice. Of
/// several lines with one key the first decides.
pub fn free_keys<'t>(texts: impl IntoIterator<Item = &'t [u8]>) -> Vec<Vec<FreeKey>> {
    let mut seen = std::collections::BTreeSet::new();
    let mut keys_of = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        let lines = text.lines().filter_map(read_line);
        lines
            .filter(|(key, _)| seen.insert(key.line.clone()))
            .filter(|(_, free)| *free)
            .map(|(key, _)| key)
            .collect()
    };
    texts.into_iter().map(&mut keys_of).collect()
}

/// The key of a line, and whether no option ties it to a command; `None` where sshd takes none from it.
fn read_line(line: &str) -> Option<(FreeKey, bool)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (options, rest) = if is_algorithm(line.split_whitespace().next()?) {
        ("", line)
    } else {
        line.split_at(outside_quotes(line, char::is_whitespace)?)
    };
    let options = options_of(options);
    let value = |name: &str| options.iter().find(|(option, _)| option == name);
    let is_known = |(name, _): &(String, String)| OPTIONS.contains(&name.as_str());
    if value("cert-authority").is_some() || !options.iter().all(is_known) {
        return None;
    }
    let mut words = rest.split_whitespace();
    let (algorithm, key) = (words.next()?, words.next()?);
    let found = FreeKey {
        algorithm: algorithm.to_owned(),
        line: format!("{algorithm} {key}"),
        from: value("from").map(|(_, list)| list.clone()),
        expires: value("expiry-time").map(|(_, time)| Expiry::read(time)),
    };
    is_algorithm(algorithm).then_some((found, value("command").is_none()))
}

/// Options with their values, in lower case; those without a value have an empty one.
fn options_of(mut text: &str) -> Vec<(String, String)> {
    let mut options = Vec::new();
    while !text.is_empty() {
        let end = outside_quotes(text, |c| c == ',').unwrap_or(text.len());
        let (option, rest) = text.split_at(end);
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = value.trim_matches('"').replace("\\\"", "\"");
        options.push((name.to_ascii_lowercase(), value));
        text = rest.strip_prefix(',').unwrap_or(rest);
    }
    options
}

/// Where a character stands outside double quotes; `\"` is none.
fn outside_quotes(text: &str, is_it: impl Fn(char) -> bool) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.find(|c: char| {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\';
        is_it(c) && !quoted
    })
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
        let key = |line: &str| {
            free_keys([line.as_bytes()]).concat().into_iter().next().map(|key| key.line)
        };
        let plain = Some("ssh-ed25519 AAAA".to_owned());
        assert_eq!(key("ssh-ed25519 AAAA me@here"), plain);
        assert_eq!(key("no-pty,environment=\"A=\\\"b c\\\"\" ssh-ed25519 AAAA me"), plain);
        assert_eq!(key("command=\"/bin/x y\",no-pty ecdsa-sha2-nistp256 AAAA"), None);
        assert_eq!(key("no-pty,Command=\"echo no\" ssh-rsa AAAA"), None);
        assert_eq!(key("cert-authority ssh-rsa AAAA"), None);
        assert_eq!(key("no-pyt ssh-ed25519 AAAA"), None);
        // The first line of a key decides, in whichever file it stands.
        let two = [&b"command=\"x\" ssh-ed25519 AAAA"[..], b"ssh-ed25519 AAAA\nssh-ed25519 BBBB"];
        let found = free_keys(two).concat().into_iter().map(|key| key.line).collect::<Vec<_>>();
        assert_eq!(found, ["ssh-ed25519 BBBB"]);
        for nothing in ["# ssh-rsa AAAA", "", "ssh-rsa", "no-pty ssh-new AAAA", "\"open"] {
            assert_eq!(key(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn where_and_how_long_a_key_is_taken() {
        let line = "no-pty,from=\"10.0.0.0/8,::1\",expiry-time=\"20300102\" ssh-ed25519 AAAA me";
        let free_key = |line: &str| read_line(line).unwrap().0;
        let key = free_key(line);
        assert_eq!(key.from.as_deref(), Some("10.0.0.0/8,::1"));
        let plain = free_key("ssh-ed25519 AAAA from=\"10.0.0.1\"");
        assert_eq!((plain.from, plain.expires), (None, None));
        let now: jiff::Zoned = "2030-01-02T01:30:00+02:00[+02:00]".parse().unwrap();
        let is_over = |text: &str| Expiry::read(text).is_before(&now);
        assert!(is_over("20300102") && is_over("203001020129") && is_over("20300101232959Z"));
        assert!(!is_over("203001020130") && !is_over("203001012331Z") && !is_over("20300103"));
        assert_eq!(key.expires.unwrap().to_string(), "20300102000000");
    }

    #[test]
    fn the_places_of_keys_are_those_of_the_manual() {
        let of = |pattern| file(pattern, "ada", 1001, Path::new("/home/ada")).display().to_string();
        assert_eq!(of(".ssh/authorized_keys"), "/home/ada/.ssh/authorized_keys");
        assert_eq!(of("/etc/keys/%u-%U/100%%u"), "/etc/keys/ada-1001/100%u");
        assert_eq!(of("%h/k"), "/home/ada/k");
    }
}
