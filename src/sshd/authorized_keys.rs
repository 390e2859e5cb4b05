//! Public keys of users (sshd(8), AUTHORIZED_KEYS FILE FORMAT).

use std::path::{Path, PathBuf};

use super::criteria::is_address_list;
use super::effective::Effective;
use super::release::Release;

/// The files in which a configuration looks for a user's keys.
pub fn files(effective: &Effective, name: &str, uid: u32, home: &Path) -> Vec<PathBuf> {
    let patterns = effective.get("authorizedkeysfile").iter().flat_map(|line| line.split(' '));
    let patterns = patterns.filter(|pattern| !pattern.is_empty() && *pattern != "none");
    patterns.map(|pattern| file(pattern, name, uid, home)).collect()
}

/// A line with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLine {
    /// Its algorithm (`ssh-ed25519`).
    pub algorithm: String,
    /// Algorithm and key, as a public key file has them.
    pub line: String,
    /// The clients from which it is taken (`from=`), where that is limited.
    pub from: Option<String>,
    /// When it ends (`expiry-time=`): the first of several times.
    pub expires: Option<Expiry>,
    /// It opens a session of the user's choice: no option ties it to a command.
    pub free: bool,
}

impl KeyLine {
    /// Whether it is for some places or for some time alone.
    pub fn is_limited(&self) -> bool {
        self.from.is_some() || self.expires.is_some()
    }
}

/// What separates words there; no other blank does.
const BLANK: [char; 2] = [' ', '\t'];
/// The highest number of a tunnel (misc.h, `SSH_TUNID_MAX`).
const LAST_TUNNEL: u32 = 0x7fff_fffd;

/// The end of a key's time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry {
    /// `YYYYMMDDHHMMSS`.
    digits: String,
    /// In UTC, not in the host's time zone.
    utc: bool,
}

impl Expiry {
    /// `YYYYMMDD[HHMM[SS]]`, from 9.1 on with a `Z` for UTC (sshd(8)); `None` where it is no such time.
    fn read(text: &str, release: &Release) -> Option<Self> {
        let (day, utc) = match text.strip_suffix(['Z', 'z']).filter(|_| release.is_at_least(9, 1)) {
            Some(day) => (day, true),
            None => (text, false),
        };
        let digits = format!("{day:0<14}");
        let is_time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", &digits).is_ok();
        ([8, 12, 14].contains(&day.len()) && is_time).then_some(Self { digits, utc })
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

/// Options without a value (auth-options.c, `sshauthopt_parse`), and whether `no-` may stand in front.
const FLAGS: [(&str, bool); 9] = [
    ("agent-forwarding", true),
    ("cert-authority", false),
    ("port-forwarding", true),
    ("pty", true),
    ("restrict", false),
    ("touch-required", true),
    ("user-rc", true),
    ("verify-required", true),
    ("x11-forwarding", true),
];

/// The names under which a key of an algorithm signs (RFC 8332 for RSA).
pub fn signs(algorithm: &str) -> Vec<&str> {
    match algorithm {
        "ssh-rsa" => vec!["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
        other => vec![other],
    }
}

/// The keys of a file, in the order in which sshd reads them.
pub fn keys(text: &[u8], release: &Release) -> Vec<KeyLine> {
    let read = |line| read_line(line, release);
    String::from_utf8_lossy(text).lines().filter_map(read).collect()
}

/// Leaves those that may open a session of the user's choice. Of several lines with one key the first decides that
/// is not limited to other places or times than these.
pub fn free<K>(
    keys: impl IntoIterator<Item = K>,
    line: impl Fn(&K) -> &KeyLine,
    is_limited: impl Fn(&K) -> bool,
) -> Vec<K> {
    let mut decided = std::collections::BTreeSet::new();
    let mut is_free = |key: &K| {
        let decides = is_limited(key) || decided.insert(line(key).line.clone());
        decides && line(key).free
    };
    keys.into_iter().filter(|key| is_free(key)).collect()
}

/// The key of a line; `None` where sshd takes none from it.
fn read_line(line: &str, release: &Release) -> Option<KeyLine> {
    let line = line.trim_matches(BLANK);
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (options, rest) = if is_algorithm(line.split(BLANK).next()?) {
        ("", line)
    } else {
        line.split_at(outside_quotes(line, |c| BLANK.contains(&c))?)
    };
    let options = options_of(options, release)?;
    let value = |name: &str| options.iter().find(|(option, _)| option == name);
    // Of a certificate alone there are principals.
    if value("cert-authority").is_some() || value("principals").is_some() {
        return None;
    }
    let times = options.iter().filter(|(option, _)| option == "expiry-time");
    let mut words = rest.split(BLANK).filter(|word| !word.is_empty());
    let (algorithm, key) = (words.next()?, words.next()?);
    let found = KeyLine {
        algorithm: algorithm.to_owned(),
        line: format!("{algorithm} {key}"),
        from: value("from").map(|(_, list)| list.clone()),
        expires: times.filter_map(|(_, time)| Expiry::read(time, release)).min(),
        free: value("command").is_none(),
    };
    is_algorithm(algorithm).then_some(found)
}

/// Options with their values, names in lower case; those without a value have an empty one. `None` where
/// sshd refuses one of them, and the line with it.
fn options_of(mut text: &str, release: &Release) -> Option<Vec<(String, String)>> {
    let mut options: Vec<(String, String)> = Vec::new();
    while !text.is_empty() {
        let end = outside_quotes(text, |c| c == ',').unwrap_or(text.len());
        let (option, rest) = text.split_at(end);
        text = rest.strip_prefix(',').unwrap_or(rest);
        if option.is_empty() {
            continue;
        }
        let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
        let name = name.to_ascii_lowercase();
        let value = match value {
            None if is_flag(&name) => String::new(),
            None => return None,
            Some(value) => value.strip_prefix('"')?.strip_suffix('"')?.replace("\\\"", "\""),
        };
        let once = ["command", "from", "principals"].contains(&name.as_str());
        let again = once && options.iter().any(|(other, _)| *other == name);
        if again || (option.contains('=') && !is_value(&name, &value, release)) {
            return None;
        }
        options.push((name, value));
    }
    Some(options)
}

fn is_flag(name: &str) -> bool {
    let plain = name.strip_prefix("no-");
    FLAGS.iter().any(|(flag, may_be_denied)| {
        *flag == name || (*may_be_denied && plain.is_some_and(|plain| plain == *flag))
    })
}

/// Whether there is such an option, and sshd can read its value.
fn is_value(name: &str, value: &str, release: &Release) -> bool {
    let is_port = |port: &str| port == "*" || port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_host = |host: &str| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        !bare.unwrap_or(host).is_empty() && (bare.is_some() || !host.contains(':'))
    };
    let port = value.rsplit_once(':');
    match name {
        "command" | "principals" => true,
        "from" => is_address_list(value),
        "expiry-time" => Expiry::read(value, release).is_some(),
        "environment" => value.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        }),
        "permitopen" => port.is_some_and(|(host, port)| is_host(host) && is_port(port)),
        "permitlisten" => is_port(port.map_or(value, |(_, port)| port)),
        "tunnel" => value
            .split(':')
            .all(|unit| unit == "any" || unit.parse().is_ok_and(|unit: u32| unit <= LAST_TUNNEL)),
        _ => false,
    }
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
        let all = |text: &str| {
            let free =
                free(keys(text.as_bytes(), &Release::LATEST), |key| key, KeyLine::is_limited);
            free.into_iter().map(|key| key.line).collect::<Vec<_>>()
        };
        let key = |line: &str| all(line).into_iter().next();
        let plain = Some("ssh-ed25519 AAAA".to_owned());
        assert_eq!(key("ssh-ed25519 AAAA me@here"), plain);
        assert_eq!(key("no-pty,environment=\"A=\\\"b c\\\"\" ssh-ed25519 AAAA me"), plain);
        assert_eq!(key("command=\"/bin/x y\",no-pty ecdsa-sha2-nistp256 AAAA"), None);
        assert_eq!(key("no-pty,Command=\"echo no\" ssh-rsa AAAA"), None);
        assert_eq!(key("cert-authority ssh-rsa AAAA"), None);
        assert_eq!(key("no-pyt ssh-ed25519 AAAA"), None);
        // The first line of a key decides, unless it is for other places or times.
        let (tied, plain_line) = ("command=\"x\" ssh-ed25519 AAAA", "ssh-ed25519 AAAA");
        let next = "ssh-ed25519 BBBB";
        assert_eq!(all(&format!("{tied}\n{plain_line}\n{next}")), [next]);
        assert_eq!(all(&format!("from=\"::1\",{tied}\n{plain_line}")), [plain_line]);
        for right in [
            "no-pty,,No-User-RC",
            "permitopen=\"[::1]:80\",permitlisten=\"8080\",tunnel=\"any:1\"",
            "expiry-time=\"203001020304Z\",environment=\"A_1=b\",restrict,pty",
        ] {
            assert_eq!(key(&format!("{right} ssh-ed25519 AAAA")), plain, "{right}");
        }
        for wrong in [
            "from=\"\"",
            "from=10.0.0.1",
            "from=\"10.0.0.1/8\"",
            "from=\"::1\",from=\"::1\"",
            "expiry-time=\"nonsense\"",
            "expiry-time=\"20301301\"",
            "tunnel=\"foo\"",
            "tunnel=\"4294967295\"",
            "permitopen=\"80\"",
            "permitopen=\"host:22:33\"",
            "principals=\"ada\"",
            "permitlisten=\"host:x\"",
            "environment=\"a\"",
            "pty=\"x\"",
            "no-restrict",
            "command",
        ] {
            assert_eq!(key(&format!("{wrong} ssh-ed25519 AAAA")), None, "{wrong}");
        }
        let old = Release { major: 8, minor: 4, name: String::new() };
        let utc = "expiry-time=\"20990101Z\" ssh-ed25519 AAAA";
        assert!(read_line(utc, &old).is_none() && read_line(utc, &Release::LATEST).is_some());
        for blank in ["\u{a0}ssh-ed25519 AAAA", "ssh-ed25519\u{a0}AAAA"] {
            assert_eq!(key(blank), None, "{blank}");
        }
        for nothing in ["# ssh-rsa AAAA", "", "ssh-rsa", "no-pty ssh-new AAAA", "\"open"] {
            assert_eq!(key(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn where_and_how_long_a_key_is_taken() {
        let line = "no-pty,from=\"10.0.0.0/8,::1\",expiry-time=\"20300102\" ssh-ed25519 AAAA me";
        let free_key = |line: &str| read_line(line, &Release::LATEST).unwrap();
        let key = free_key(line);
        assert_eq!(key.from.as_deref(), Some("10.0.0.0/8,::1"));
        let twice = "expiry-time=\"20990101\",expiry-time=\"20200101\" ssh-ed25519 AAAA";
        assert_eq!(free_key(twice).expires.unwrap().to_string(), "20200101000000");
        let plain = free_key("ssh-ed25519 AAAA from=\"10.0.0.1\"");
        assert_eq!((plain.from, plain.expires), (None, None));
        let now: jiff::Zoned = "2030-01-02T01:30:00+02:00[+02:00]".parse().unwrap();
        let is_over = |text: &str| Expiry::read(text, &Release::LATEST).unwrap().is_before(&now);
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
