//! What sshd_config(5) keywords do when they stand more than once, and how lists are written.

use super::syntax::quote_arg;

/// How several lines of one keyword combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeats {
    /// The first line counts, later ones are ignored.
    FirstWins,
    /// Every line adds to the list.
    Accumulates,
    /// One line for each name (`Subsystem`); a second line for a name is ignored or fatal.
    OnePerName,
}

/// Keywords whose lines add up (servconf.c of OpenSSH 8.4 to 10.x).
const ACCUMULATING: [&str; 9] = [
    "port",
    "listenaddress",
    "hostkey",
    "hostcertificate",
    "allowusers",
    "denyusers",
    "allowgroups",
    "denygroups",
    "acceptenv",
];

/// Keywords of which a list is written as several lines, one value each.
const ONE_VALUE_A_LINE: [&str; 4] = ["port", "listenaddress", "hostkey", "hostcertificate"];

/// Keywords of which a list is written with commas.
const COMMA_LISTS: [&str; 11] = [
    "ciphers",
    "macs",
    "kexalgorithms",
    "hostkeyalgorithms",
    "pubkeyacceptedalgorithms",
    "pubkeyacceptedkeytypes",
    "hostbasedacceptedalgorithms",
    "hostbasedacceptedkeytypes",
    "casignaturealgorithms",
    "fingerprinthash",
    "pubkeyauthoptions",
];

/// How lines of `keyword` combine.
pub fn repeats(keyword: &str) -> Repeats {
    let keyword = keyword.to_ascii_lowercase();
    if keyword == "subsystem" {
        Repeats::OnePerName
    } else if ACCUMULATING.contains(&keyword.as_str()) {
        Repeats::Accumulates
    } else {
        Repeats::FirstWins
    }
}

/// Whether two spellings name the same setting: case, and names that OpenSSH renamed.
pub fn same(one: &str, other: &str) -> bool {
    canonical(one) == canonical(other)
}

/// Lower case, with renamed keywords under their present name.
pub fn canonical(keyword: &str) -> String {
    let lower = keyword.to_ascii_lowercase();
    match lower.as_str() {
        "challengeresponseauthentication" | "skeyauthentication" => {
            "kbdinteractiveauthentication".to_owned()
        }
        "pubkeyacceptedkeytypes" => "pubkeyacceptedalgorithms".to_owned(),
        "hostbasedacceptedkeytypes" => "hostbasedacceptedalgorithms".to_owned(),
        "dsaauthentication" => "pubkeyauthentication".to_owned(),
        "keepalive" => "tcpkeepalive".to_owned(),
        "hostdsakey" => "hostkey".to_owned(),
        _ => lower,
    }
}

/// The lines, without the keyword, that write a list of values.
pub fn lines_of(keyword: &str, values: &[String]) -> Vec<String> {
    let lower = keyword.to_ascii_lowercase();
    if ONE_VALUE_A_LINE.contains(&lower.as_str()) {
        values.iter().map(|value| quote_arg(value)).collect()
    } else if COMMA_LISTS.contains(&lower.as_str()) {
        vec![values.join(",")]
    } else {
        vec![values.iter().map(|value| quote_arg(value)).collect::<Vec<_>>().join(" ")]
    }
}
