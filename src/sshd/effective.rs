//! What `sshd -T` prints: the configuration in effect, outside any Match block.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::keywords::{Repeats, repeats, same};
use super::syntax::split_args;

/// Values by keyword, in the order printed. Keywords are lower case (10.4 prints mixed case).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Effective {
    values: BTreeMap<String, Vec<String>>,
}

impl Effective {
    /// Reads the output of `sshd -T`.
    pub fn parse(output: &str) -> Self {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in output.lines() {
            let (keyword, value) = line.split_once(' ').unwrap_or((line, ""));
            let keyword = keyword.to_ascii_lowercase();
            values.entry(keyword).or_default().push(value.trim().to_owned());
        }
        Self { values }
    }

    /// The lines printed for a keyword, also under the name that an earlier or later OpenSSH has for it;
    /// empty where it is unknown or has no value.
    pub fn get(&self, keyword: &str) -> &[String] {
        let renamed = || self.values.iter().find(|(printed, _)| same(printed, keyword));
        self.values
            .get(&keyword.to_ascii_lowercase())
            .or_else(|| renamed().map(|(_, values)| values))
            .map_or(&[], Vec::as_slice)
    }

    /// Every keyword that is printed: those that this sshd has.
    pub fn keywords(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The name that this sshd has for what another release calls otherwise, or that was misspelt.
    pub fn name_like(&self, keyword: &str) -> Option<&str> {
        let lower = keyword.to_ascii_lowercase();
        let likeness = |name: &&str| strsim::normalized_damerau_levenshtein(name, &lower);
        let renamed = self.keywords().find(|name| same(name, keyword));
        let likest =
            || self.keywords().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
        renamed.or_else(|| likest().filter(|name| likeness(name) > 0.75))
    }

    /// Keywords whose values differ.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let keywords: BTreeSet<&String> = self.values.keys().chain(other.values.keys()).collect();
        let differs = |keyword: &&String| self.values.get(*keyword) != other.values.get(*keyword);
        keywords.into_iter().filter(differs).cloned().collect()
    }

    /// Addresses and ports that sshd would listen on (`ListenAddress` x `Port`, `AddressFamily`).
    pub fn listen(&self) -> Vec<SocketAddr> {
        self.get("listenaddress").iter().filter_map(|value| parse_listen(value)).collect()
    }

    /// Files of the host keys.
    pub fn host_keys(&self) -> &[String] {
        self.get("hostkey")
    }

    /// Whether sshd looks up the names of clients (`UseDNS`).
    pub fn looks_up_names(&self) -> bool {
        self.get("usedns").iter().any(|value| value == "yes")
    }

    /// Whether the keyword certainly has the value that the words of a directive ask for.
    ///
    /// False where the two are merely written differently ("2m", "120"): then sshd itself has
    /// to be asked how it reads them.
    pub fn has(&self, keyword: &str, lines: &[String]) -> bool {
        let words = |text: &String| -> Vec<String> {
            split_args(text).iter().map(|word| normal(keyword, word)).collect()
        };
        let wanted: Vec<Vec<String>> = lines.iter().map(words).collect();
        let printed = || self.get(keyword).iter();
        match repeats(keyword) {
            Repeats::FirstWins => printed().map(words).eq(wanted),
            Repeats::Accumulates => {
                // AllowUsers a b: printed as one line for each, without quotes; the order has no meaning.
                let printed: BTreeSet<_> = printed().map(|word| normal(keyword, word)).collect();
                printed == wanted.into_iter().flatten().collect()
            }
            Repeats::OnePerName => {
                let printed: Vec<_> = printed().map(words).collect();
                wanted.iter().all(|line| printed.contains(line))
            }
        }
    }
}

/// Case matters in names of users, groups and files, not in sshd's own words.
fn normal(keyword: &str, word: &str) -> String {
    let is = |other: &&str| keyword.eq_ignore_ascii_case(other);
    match word.to_ascii_lowercase().as_str() {
        "without-password" => "prohibit-password".to_owned(),
        // How sshd prints a path that is not set.
        "(null)" => "none".to_owned(),
        "all" if ["allowtcpforwarding", "allowstreamlocalforwarding"].iter().any(is) => {
            "yes".into()
        }
        lower if matches!(lower, "yes" | "no" | "none" | "any") => lower.to_owned(),
        lower if is(&"gatewayports") || is(&"loglevel") => lower.to_owned(),
        _ if TIMES.iter().any(is) => {
            seconds(word).map_or_else(|| word.to_owned(), |seconds| seconds.to_string())
        }
        _ if is(&"rekeylimit") => bytes(word).map_or_else(|| word.to_owned(), |n| n.to_string()),
        _ if NUMBERS.iter().any(is) => {
            word.parse::<u64>().map_or_else(|_| word.to_owned(), |number| number.to_string())
        }
        _ => word.to_owned(),
    }
}

/// Keywords whose value is a number.
const NUMBERS: [&str; 5] =
    ["clientalivecountmax", "maxauthtries", "maxsessions", "requiredrsasize", "x11displayoffset"];

/// A number of bytes, which may end in K, M or G (sshd_config(5), RekeyLimit).
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Keywords whose value is a time, which `sshd -T` prints in seconds.
const TIMES: [&str; 2] = ["logingracetime", "clientaliveinterval"];

/// A time as sshd_config(5), TIME FORMATS, has it: `90`, `2m`, `1h30m`.
fn seconds(text: &str) -> Option<u64> {
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        let factor = match rest.get(digits..)?.chars().next() {
            None | Some('s' | 'S') => 1,
            Some('m' | 'M') => 60,
            Some('h' | 'H') => 3600,
            Some('d' | 'D') => 86_400,
            Some('w' | 'W') => 604_800,
            Some(_) => return None,
        };
        total = total.checked_add(number.checked_mul(factor)?)?;
        rest = rest.get(digits + 1..).unwrap_or_default();
    }
    Some(total)
}

/// `0.0.0.0:22` or `[::]:22`, possibly followed by ` rdomain NAME`.
fn parse_listen(value: &str) -> Option<SocketAddr> {
    let address = value.split_whitespace().next()?;
    address.parse().ok()
}

/// The distinct addresses of some endpoints, in order.
pub fn addresses(endpoints: &[SocketAddr]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for endpoint in endpoints {
        if !addresses.contains(&endpoint.ip()) {
            addresses.push(endpoint.ip());
        }
    }
    addresses
}

/// The distinct ports of some endpoints, in order.
pub fn ports(endpoints: &[SocketAddr]) -> Vec<u16> {
    let mut ports = Vec::new();
    for endpoint in endpoints {
        if !ports.contains(&endpoint.port()) {
            ports.push(endpoint.port());
        }
    }
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(values: &[&str]) -> Vec<String> {
        vec![values.join(" ")]
    }

    #[test]
    fn values_are_compared_as_sshd_means_them() {
        let effective = Effective::parse(
            "port 22\nlistenaddress [::]:22\nlistenaddress 0.0.0.0:22\nPermitRootLogin without-password\n\
             allowgroups b\nallowgroups a\nlogingracetime 120\nsubsystem sftp internal-sftp\n",
        );
        assert!(effective.has("permitrootlogin", &lines(&["prohibit-password"])));
        assert!(effective.has("AllowGroups", &lines(&["a", "b"])));
        assert!(!effective.has("AllowGroups", &lines(&["a"])));
        assert!(effective.has("LoginGraceTime", &lines(&["1m60s"])));
        assert!(!effective.has("LoginGraceTime", &lines(&["2h"])));
        assert!(effective.has("LoginGraceTime", &lines(&["120"])));
        assert!(effective.has("Subsystem", &lines(&["sftp", "internal-sftp"])));
        assert_eq!(effective.listen().len(), 2);
        let block = Effective::parse("RekeyLimit 1G\nAllowTcpForwarding all\nMaxSessions 010\n");
        assert!(
            block.has("RekeyLimit", &lines(&["1024m"]))
                && block.has("MaxSessions", &lines(&["10"]))
        );
        assert!(block.has("AllowTcpForwarding", &lines(&["yes"])));
        assert!(!block.has("RekeyLimit", &lines(&["1023M"])));
        // Names came and went; what is printed under the name itself comes first.
        let old = Effective::parse(
            "pubkeyacceptedkeytypes a\nkbdinteractiveauthentication no\nchallengeresponseauthentication yes\n",
        );
        assert_eq!(old.get("PubkeyAcceptedAlgorithms"), ["a"]);
        assert_eq!(old.get("KbdInteractiveAuthentication"), ["no"]);
    }

    #[test]
    fn names_of_other_releases_and_misspelt_ones_are_known() {
        let old =
            Effective::parse("pubkeyacceptedkeytypes a\npasswordauthentication yes\nport 22\n");
        assert_eq!(old.name_like("PubkeyAcceptedAlgorithms"), Some("pubkeyacceptedkeytypes"));
        assert_eq!(old.name_like("PasswordAuthentification"), Some("passwordauthentication"));
        assert_eq!(old.name_like("RequiredRSASize"), None);
    }
}
