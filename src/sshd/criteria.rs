//! `Match` and its criteria (sshd_config(5), Match; PATTERNS in ssh_config(5)).

use std::net::{IpAddr, SocketAddr};

use super::release::Release;
use super::syntax::{Directive, delimited, parse_line};

/// A connection, as far as `Match` can ask for it. What is not known matches nothing, as with
/// `sshd -T -C`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// The user who wants to log in.
    pub user: Option<String>,
    /// Whether there is no such user.
    pub user_invalid: bool,
    /// The names of the user's groups.
    pub groups: Vec<String>,
    /// The client's name.
    pub host: Option<String>,
    /// The client's address.
    pub address: Option<String>,
    /// The address that it connected to.
    pub local_address: Option<String>,
    /// The port that it connected to.
    pub local_port: Option<u16>,
    /// The routing domain on which it came.
    pub routing_domain: Option<String>,
}

/// One criterion of a `Match` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Criterion {
    /// Every connection.
    All,
    /// No such user (9.9 and later).
    InvalidUser,
    /// A list of patterns for the user's name.
    User(String),
    /// A list of patterns for the names of the user's groups.
    Group(String),
    /// A list of patterns for the client's name.
    Host(String),
    /// A list of patterns or networks for the client's address.
    Address(String),
    /// The same for the address that it connected to.
    LocalAddress(String),
    /// The port that it connected to.
    LocalPort(u16),
    /// A list of patterns for the routing domain.
    RoutingDomain(String),
    /// A list of patterns for the release of sshd (10.0 and later).
    Version(String),
}

/// Where a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Its name, where sshd looks that up (`UseDNS`) and finds one.
    pub name: Option<String>,
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        Self { address, name: None }
    }
}

/// The options that make `sshd -T` answer for a user's connection (sshd(8), -C).
pub fn test_of(user: &str, from: &Client, to: SocketAddr) -> [String; 2] {
    let (address, port) = (to.ip().to_canonical(), to.port());
    let client = from.address.to_canonical();
    let host = from.name.clone().unwrap_or_else(|| client.to_string());
    let connection = format!("user={user},host={host},addr={client},laddr={address},lport={port}");
    ["-C".to_owned(), connection]
}

/// Reads the criteria of a `Match` line; all of them have to be met.
///
/// # Errors
/// What sshd says of them.
pub fn read(line: &Directive, release: &Release) -> Result<Vec<Criterion>, String> {
    let words = if release.splits_criteria_like_a_shell() {
        joined(&line.args, release)
    } else {
        let mut rest = Some(line.rest.as_str());
        let words = std::iter::from_fn(|| delimited(&mut rest, true));
        words.map(std::borrow::Cow::into_owned).take_while(|word| !word.is_empty()).collect()
    };
    let mut words = words.into_iter().take_while(|word| !word.starts_with('#'));
    let mut criteria = Vec::new();
    while let Some(name) = words.next() {
        let lower = name.to_ascii_lowercase();
        if lower == "all" {
            if !criteria.is_empty() || words.next().is_some() {
                return Err("`all` cannot be combined with other criteria".to_owned());
            }
            return Ok(vec![Criterion::All]);
        }
        if lower == "invalid-user" && release.is_at_least(9, 9) {
            criteria.push(Criterion::InvalidUser);
            continue;
        }
        let Some(value) = words.next().filter(|value| !value.is_empty()) else {
            return Err(format!("`{name}` needs a value"));
        };
        criteria.push(match lower.as_str() {
            "user" => Criterion::User(value),
            "group" => Criterion::Group(value),
            "host" => Criterion::Host(value),
            "address" => Criterion::Address(checked(value)?),
            "localaddress" => Criterion::LocalAddress(checked(value)?),
            "localport" => match value.parse() {
                Ok(port) if port > 0 => Criterion::LocalPort(port),
                _ => return Err(format!("`{value}` is no port")),
            },
            "rdomain" => Criterion::RoutingDomain(value),
            "version" if release.is_at_least(10, 0) => Criterion::Version(value),
            _ => return Err(format!("there is no criterion `{name}`")),
        });
    }
    if criteria.is_empty() { Err("it needs a criterion".to_owned()) } else { Ok(criteria) }
}

/// Whether a criterion of this name has no value.
pub fn takes_no_value(name: &str) -> bool {
    ["all", "invalid-user"].iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Reads what stands behind `Match` in a line.
///
/// # Errors
/// As [`read`].
pub fn read_text(text: &str, release: &Release) -> Result<Vec<Criterion>, String> {
    let line = parse_line(&format!("Match {text}"));
    read(&line.ok_or_else(|| "it cannot be read".to_owned())?, release)
}

/// `User=NAME` is two words.
fn joined(args: &[String], release: &Release) -> Vec<String> {
    let mut names =
        vec!["user", "group", "host", "address", "localaddress", "localport", "rdomain"];
    if release.is_at_least(10, 0) {
        names.push("version");
    }
    let apart = |word: &String| match word.split_once('=') {
        Some((name, value)) if names.iter().any(|known| name.eq_ignore_ascii_case(known)) => {
            vec![name.to_owned(), value.to_owned()]
        }
        _ => vec![word.clone()],
    };
    args.iter().flat_map(apart).collect()
}

fn checked(list: String) -> Result<String, String> {
    if is_address_list(&list) {
        return Ok(list);
    }
    Err(format!("`{list}` is no list of addresses and networks"))
}

impl Criterion {
    /// Whether it asks where the connection comes from, or where it arrives.
    pub fn asks_for_address(&self) -> bool {
        matches!(
            self,
            Self::Host(_)
                | Self::Address(_)
                | Self::LocalAddress(_)
                | Self::LocalPort(_)
                | Self::RoutingDomain(_)
        )
    }

    /// Whether it asks for the client's name.
    pub fn asks_for_name(&self) -> bool {
        matches!(self, Self::Host(_))
    }

    /// Whether it asks where the connection arrives.
    pub fn asks_for_arrival(&self) -> bool {
        matches!(self, Self::LocalAddress(_) | Self::LocalPort(_))
    }

    /// Whether it asks for users by name, and not for this one.
    pub fn rules_out(&self, user: &str) -> bool {
        matches!(self, Self::User(list) if !is_listed(Some(user), list))
    }

    /// Whether all that meet another criterion meet this one.
    fn includes(&self, other: &Self) -> bool {
        let takes = |list: &str, names: &str| {
            let is_plain = |name: &str| !name.is_empty() && !name.contains(['*', '?', '!']);
            list == "*"
                || names.split(',').all(|name| is_plain(name) && is_listed(Some(name), list))
        };
        match (self, other) {
            (Self::User(list), Self::User(names)) | (Self::Host(list), Self::Host(names)) => {
                takes(list, names) || list == names
            }
            // Everybody has a name; not everybody is in a group that has one.
            (Self::User(list), _) if list == "*" => true,
            (Self::Group(list), Self::Group(names)) => {
                list == names || list == "*" || (!list.contains('!') && takes(list, names))
            }
            _ => self == other,
        }
    }

    /// Whether it asks nothing of the connection, only of sshd.
    fn asks_nothing(&self) -> bool {
        matches!(self, Self::All | Self::Version(_))
    }

    fn is_met(&self, connection: Option<&Connection>, release: &Release) -> bool {
        match (self, connection) {
            (Self::All, _) => true,
            (Self::Version(list), _) => pattern_list(&release.to_string(), list) == Some(true),
            (_, None) => false,
            (Self::InvalidUser, Some(connection)) => connection.user_invalid,
            (Self::User(list), Some(connection)) => is_listed(connection.user.as_deref(), list),
            (Self::Group(list), Some(connection)) => {
                // One group that is ruled out rules the user out.
                let found = || connection.groups.iter().filter_map(|name| pattern_list(name, list));
                connection.user.is_some() && found().count() > 0 && found().all(|takes| takes)
            }
            (Self::Host(list), Some(connection)) => {
                let host = connection.host.as_ref().map(|host| host.to_ascii_lowercase());
                is_listed(host.as_deref(), &list.to_ascii_lowercase())
            }
            (Self::Address(list), Some(connection)) => {
                is_address_listed(connection.address.as_deref(), list)
            }
            (Self::LocalAddress(list), Some(connection)) => {
                is_address_listed(connection.local_address.as_deref(), list)
            }
            (Self::LocalPort(port), Some(connection)) => connection.local_port == Some(*port),
            (Self::RoutingDomain(list), Some(connection)) => {
                is_listed(connection.routing_domain.as_deref(), list)
            }
        }
    }
}

/// Whether all of the criteria are met; without a connection, those that ask nothing of one.
pub fn are_met(criteria: &[Criterion], connection: Option<&Connection>, release: &Release) -> bool {
    criteria.iter().all(|criterion| criterion.is_met(connection, release))
}

/// Whether they are met for every connection.
pub fn always(criteria: &[Criterion], release: &Release) -> bool {
    criteria.iter().all(Criterion::asks_nothing) && are_met(criteria, None, release)
}

/// Whether every connection that meets the later criteria meets the earlier ones as well, as far as can be
/// told from the words alone.
pub fn include(earlier: &[Criterion], later: &[Criterion], release: &Release) -> bool {
    let is_met = |one: &Criterion| {
        let stands = one.asks_nothing() && are_met(std::slice::from_ref(one), None, release);
        stands || later.iter().any(|other| one.includes(other))
    };
    earlier.iter().all(is_met)
}

fn is_listed(text: Option<&str>, list: &str) -> bool {
    text.is_some_and(|text| pattern_list(text, list) == Some(true))
}

fn is_address_listed(address: Option<&str>, list: &str) -> bool {
    address.is_some_and(|address| address_list(Some(address), list) == Some(true))
}

/// Whether a list of patterns and networks takes a client. Where sshd has not looked its name up, that is its
/// address (match.c, `match_host_and_ip`).
pub fn comes_from(client: &Client, list: &str) -> bool {
    let list = list.to_ascii_lowercase();
    let address = client.address.to_canonical().to_string();
    let fits = |list: &str| is_address_listed(Some(&address), list);
    let by_name = client.name.as_ref().and_then(|name| pattern_list(name, &list));
    let negated: Vec<&str> = list.split(',').filter_map(|item| item.strip_prefix('!')).collect();
    let ruled_out = by_name == Some(false) || fits(&negated.join(","));
    is_address_list(&list) && !ruled_out && (by_name == Some(true) || fits(&list))
}

/// Whether a list of patterns and networks takes nobody, wherever from: it only rules out, or has only names, and
/// sshd looks none up, or what nobody can be called.
pub fn takes_nobody(list: &str, by_name: bool) -> bool {
    let is_name = |item: &str| {
        let beyond_hexadecimal = |c: char| c.is_ascii_alphabetic() && !c.is_ascii_hexdigit();
        let is_plain = !item.contains([':', '*', '?']);
        item.contains(beyond_hexadecimal)
            || (is_plain && item.contains(|c: char| c.is_ascii_alphabetic()))
    };
    let mut items = list.split(',').filter(|item| !item.starts_with('!'));
    // A blank belongs to the pattern, and no address or name has one.
    items.all(|item| item.contains([' ', '\t']) || (!by_name && is_name(item)))
}

/// Whether a list of patterns and networks is one that sshd can read.
pub fn is_address_list(list: &str) -> bool {
    address_list(None, list).is_some()
}

/// Whether a list of patterns takes a text: `Some(false)` where one with a `!` does, `None` where none
/// does (match.c, `match_pattern_list`).
pub fn pattern_list(text: &str, list: &str) -> Option<bool> {
    let mut found = None;
    for pattern in list.split(',') {
        let (ruled_out, pattern) = match pattern.strip_prefix('!') {
            Some(pattern) => (true, pattern),
            None => (false, pattern),
        };
        if fits(text.as_bytes(), pattern.as_bytes()) {
            if ruled_out {
                return Some(false);
            }
            found = Some(true);
        }
    }
    found
}

/// Whether a text fits a pattern with `*` and `?` (match.c, `match_pattern`).
pub fn fits(text: &[u8], pattern: &[u8]) -> bool {
    let (mut at, mut behind) = (0, 0);
    let mut star = None;
    loop {
        match (text.get(at), pattern.get(behind)) {
            (_, Some(b'*')) => {
                star = Some((at, behind));
                behind += 1;
            }
            (Some(one), Some(other)) if other == one || *other == b'?' => {
                at += 1;
                behind += 1;
            }
            (None, None) => return true,
            _ => match star {
                // The star takes one more.
                Some((from, place)) if from < text.len() => {
                    star = Some((from + 1, place));
                    (at, behind) = (from + 1, place + 1);
                }
                _ => return false,
            },
        }
    }
}

/// Whether a list of patterns and networks takes an address: `None` where the list is none (addrmatch.c,
/// `addr_match_list`).
fn address_list(address: Option<&str>, list: &str) -> Option<bool> {
    let parsed: Option<IpAddr> = match address {
        Some(address) => match address.parse() {
            Ok(address) => Some(address),
            Err(_) => return Some(false),
        },
        None => None,
    };
    let mut found = false;
    for item in list.split(',') {
        let (ruled_out, item) = match item.strip_prefix('!') {
            Some(item) => (true, item),
            None => (false, item),
        };
        if item.is_empty() {
            return None;
        }
        let fits = match network(item) {
            Network::Is(net, bits) => parsed.is_some_and(|address| is_within(address, net, bits)),
            Network::Wrong => return None,
            Network::None => address.is_some_and(|a| fits(a.as_bytes(), item.as_bytes())),
        };
        if fits && ruled_out {
            return Some(false);
        }
        found |= fits;
    }
    Some(found)
}

enum Network {
    Is(IpAddr, u32),
    /// The mask does not go with the address.
    Wrong,
    None,
}

fn network(text: &str) -> Network {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) if bits.bytes().all(|b| b.is_ascii_digit()) => {
            match bits.parse::<u32>() {
                Ok(bits) if bits <= 128 => (address, Some(bits)),
                _ => return Network::None,
            }
        }
        Some(_) => return Network::None,
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else { return Network::None };
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(all);
    if bits > all || masked(address, bits) != as_bits(address) {
        return Network::Wrong;
    }
    Network::Is(address, bits)
}

fn as_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn masked(address: IpAddr, bits: u32) -> u128 {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    as_bits(address) & mask
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    address.is_ipv4() == network.is_ipv4() && masked(address, bits) == as_bits(network)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sshd::syntax::read_line;

    fn of(line: &str, release: &Release) -> Result<Vec<Criterion>, String> {
        read(&read_line(line, release).unwrap().unwrap(), release)
    }

    #[test]
    fn criteria_are_read_as_each_release_does() {
        let old = Release { major: 9, minor: 2, name: String::new() };
        let new = Release { major: 10, minor: 0, name: "OpenSSH_10.0p2".into() };
        let user = Criterion::User("a b".into());
        for release in [&old, &new] {
            assert_eq!(of("Match user \"a b\"", release), Ok(vec![user.clone()]));
            assert_eq!(of("match ALL # who", release), Ok(vec![Criterion::All]));
            assert!(of("Match all user a", release).is_err());
            assert!(of("Match user", release).is_err());
            assert!(of("Match localport 0", release).is_err());
            assert!(of("Match address 10.0.0.1/8", release).is_err());
            assert!(of("Match # nothing", release).is_err());
        }
        let two = vec![Criterion::User("a".into()), Criterion::LocalPort(22)];
        assert_eq!(of("Match User=a LocalPort = 22", &old), Ok(two.clone()));
        assert_eq!(of("Match User=a LocalPort=22", &new), Ok(two));
        assert!(of("Match invalid-user", &old).is_err());
        assert!(always(&of("Match version OpenSSH_10.*", &new).unwrap(), &new));
        assert!(!always(&of("Match version OpenSSH_9.*", &new).unwrap(), &new));
    }

    #[test]
    fn one_block_takes_in_another() {
        let release = Release::LATEST;
        let of = |line: &str| of(&format!("Match {line}"), &release).unwrap();
        let includes = |one: &str, other: &str| include(&of(one), &of(other), &release);
        assert!(includes("all", "User ada") && includes("User *", "Group x LocalPort 22"));
        assert!(
            includes("User ada,b*", "User bob,ada Address ::1") && includes("Group x,y", "Group y")
        );
        assert!(includes("Address 10.0.0.0/8", "User ada Address 10.0.0.0/8"));
        assert!(!includes("User ada", "User a*") && !includes("User ada", "Group ada"));
        assert!(
            !includes("User ada LocalPort 22", "User ada") && !includes("User *,!bob", "User bob")
        );
        assert!(includes("Group *", "Group x") && !includes("Group *", "User bob"));
        // Who is in `y` may be in `x` too.
        assert!(!includes("Group *,!x", "Group y") && !includes("User ada", "all"));
    }

    #[test]
    fn patterns_and_networks() {
        let fits = |text: &str, pattern: &str| fits(text.as_bytes(), pattern.as_bytes());
        assert!(fits("abc", "a*c") && fits("", "*") && fits("abcbc", "*bc") && fits("ab", "a?"));
        assert!(!fits("ab", "a") && !fits("", "?") && !fits("abc", "*b") && fits("a", "a**"));
        assert_eq!(pattern_list("bob", "*,!bob"), Some(false));
        assert_eq!(pattern_list("bob", "!eve"), None);
        let lists = |address, list| address_list(Some(address), list);
        assert_eq!(lists("192.168.1.9", "192.168.0.0/16"), Some(true));
        assert_eq!(lists("192.168.1.9", "192.168.0.0/16,!192.168.1.*"), Some(false));
        assert_eq!(lists("::1", "0.0.0.0/0"), Some(false));
        assert_eq!(lists("fd00::1", "fd00::/8"), Some(true));
        assert_eq!(lists("fd00::1", "fd00::1/8"), None);
        assert_eq!(lists("10.1.2.3", "10.1.*"), Some(true));
        let client = |address: &str| Client::from(address.parse::<IpAddr>().unwrap());
        let from = |address: &str, list| comes_from(&client(address), list);
        let named = Client { name: Some("a.lab".into()), ..client("10.0.0.1") };
        assert!(comes_from(&named, "*.LAB") && comes_from(&named, "10.0.0.1,b.lab"));
        assert!(!comes_from(&named, "10.0.0.1,!*.lab") && !comes_from(&named, "!10.0.0.1,*.lab"));
        assert!(takes_nobody("*.corp.example", false) && !takes_nobody("fe8*,10.*", false));
        assert!(takes_nobody("10.0.0.0/24 , 10.0.0.1", true));
        assert!(takes_nobody("!10.0.0.1", true) && takes_nobody("a.lab", false));
        assert!(!takes_nobody("a.lab", true) && !takes_nobody("a.lab,fe80::1", false));
        assert!(from("::ffff:10.1.2.3", "*.example.org,10.0.0.0/8") && from("FD00::1", "fd00:*"));
        assert!(!from("10.1.2.3", "10.*,!10.1.0.0/16") && !from("10.1.2.3", "*.example.org"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(line in "Match [ -~]{0,40}", text in "[ -~]{0,12}", pattern in "[a*?]{0,8}") {
            if let Ok(Some(line)) = read_line(&line, &Release::LATEST) {
                let _ = read(&line, &Release::LATEST);
            }
            let _ = (network(&text), fits(text.as_bytes(), pattern.as_bytes()));
            let _ = address_list(Some("10.0.0.1"), &text);
        }
    }
}
