//! What sshd_config(5) keywords do when they stand more than once, and how lists are written.

use super::release::Release;
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

/// Keywords that may not stand in a Match block (servconf.c, `SSHCFG_GLOBAL`).
const GLOBAL: [&str; 53] = [
    "addressfamily",
    "afstokenpassing",
    "checkmail",
    "ciphers",
    "compression",
    "debianbanner",
    "dsaauthentication",
    "fingerprinthash",
    "gssapicleanupcredentials",
    "gssapidelegatecredentials",
    "gssapikexalgorithms",
    "gssapikeyexchange",
    "gssapistorecredentialsonrekey",
    "gssapistrictacceptorcheck",
    "hostcertificate",
    "hostdsakey",
    "hostkey",
    "hostkeyagent",
    "hostkeyalgorithms",
    "ignoreuserknownhosts",
    "keepalive",
    "kerberosgetafstoken",
    "kerberosorlocalpasswd",
    "kerberostgtpassing",
    "kerberosticketcleanup",
    "kexalgorithms",
    "keyregenerationinterval",
    "listenaddress",
    "logingracetime",
    "macs",
    "maxstartups",
    "modulifile",
    "permituserenvironment",
    "persourcemaxstartups",
    "persourcenetblocksize",
    "persourcepenalties",
    "persourcepenaltyexemptlist",
    "pidfile",
    "port",
    "printlastlog",
    "printmotd",
    "protocol",
    "securitykeyprovider",
    "serverkeybits",
    "sshdauthpath",
    "sshdsessionpath",
    "strictmodes",
    "syslogfacility",
    "tcpkeepalive",
    "usedns",
    "usepam",
    "versionaddendum",
    "xauthlocation",
];

/// Keywords that sshd reads and forgets.
const FORGOTTEN: [&str; 15] = [
    "afstokenpassing",
    "authorizedkeysfile2",
    "checkmail",
    "kerberostgtpassing",
    "keyregenerationinterval",
    "pamauthenticationviakbdint",
    "protocol",
    "reversemappingcheck",
    "rhostsauthentication",
    "rhostsrsaauthentication",
    "rsaauthentication",
    "serverkeybits",
    "uselogin",
    "useprivilegeseparation",
    "verifyreversemapping",
];

/// Which of several lines of a keyword a release of sshd follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// The first.
    First,
    /// The first with any arguments at all.
    FirstThatSays,
    /// The last.
    Last,
    /// All of them.
    All,
    /// The first for each name.
    EachName,
    /// The first, and for what it leaves open the first that says it (`RekeyLimit`).
    FirstForEachArgument,
    /// The last, and for what it leaves open the last that says it (`MaxStartups` before 10.1).
    LastForEachArgument,
    /// The first, but `none` wherever it stands (`UnusedConnectionTimeout`).
    FirstOrNone,
    /// The last, up to the first `AuthorizedKeysCommand` (`AuthorizedPrincipalsCommand`, 8.7 to 9.3).
    LastBeforeKeysCommand,
    /// None.
    Nothing,
}

/// Which lines of a keyword sshd follows, within one context.
pub fn follows(keyword: &str, release: &Release) -> Follows {
    let before = |major, minor| !release.is_at_least(major, minor);
    let keyword = keyword.to_ascii_lowercase();
    match keyword.as_str() {
        _ if FORGOTTEN.contains(&keyword.as_str()) => Follows::Nothing,
        "skeyauthentication" if before(8, 7) => Follows::Nothing,
        "fingerprinthash" => Follows::Last,
        "streamlocalbindmask" if before(10, 6) => Follows::Last,
        "ipqos" if before(10, 3) => Follows::Last,
        "persourcemaxstartups" if before(9, 5) => Follows::Last,
        "maxstartups" if before(10, 1) => Follows::LastForEachArgument,
        "persourcenetblocksize" if before(10, 1) => Follows::Last,
        "authorizedprincipalscommand" if !before(8, 7) && before(9, 4) => {
            Follows::LastBeforeKeysCommand
        }
        "rekeylimit" => Follows::FirstForEachArgument,
        "unusedconnectiontimeout" => Follows::FirstOrNone,
        "persourcepenalties" => Follows::All,
        "authorizedkeysfile"
        | "setenv"
        | "logverbose"
        | "channeltimeout"
        | "permitopen"
        | "permitlisten"
        | "authenticationmethods"
        | "revokedkeys" => Follows::FirstThatSays,
        _ => match repeats(&keyword) {
            Repeats::FirstWins => Follows::First,
            Repeats::Accumulates => Follows::All,
            Repeats::OnePerName => Follows::EachName,
        },
    }
}

/// Whether a keyword may stand in a Match block.
pub fn may_be_matched(keyword: &str, release: &Release) -> bool {
    let keyword = keyword.to_ascii_lowercase();
    match keyword.as_str() {
        "subsystem" => release.is_at_least(9, 5),
        "challengeresponseauthentication" | "skeyauthentication" => release.is_at_least(8, 7),
        "uselogin"
        | "useprivilegeseparation"
        | "verifyreversemapping"
        | "reversemappingcheck"
        | "rhostsauthentication"
        | "pamauthenticationviakbdint" => false,
        _ => !GLOBAL.contains(&keyword.as_str()),
    }
}

/// Whether a release reads a keyword and forgets it, wherever it stands.
pub fn is_forgotten(keyword: &str, release: &Release) -> bool {
    follows(keyword, release) == Follows::Nothing
}

/// Whether a keyword that stands in a Match block does anything there: a release may read it and forget
/// it.
pub fn counts_in_match(keyword: &str, release: &Release) -> bool {
    match keyword.to_ascii_lowercase().as_str() {
        "setenv" => release.is_at_least(8, 7),
        "pamservicename" => false,
        _ => true,
    }
}

/// The name under which a release keeps a keyword: what was renamed later is a keyword of its own before.
pub fn kept_as(keyword: &str, release: &Release) -> String {
    let lower = keyword.to_ascii_lowercase();
    match lower.as_str() {
        "challengeresponseauthentication" if !release.is_at_least(8, 7) => lower,
        _ => canonical(&lower),
    }
}

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
