//! harden's reading of sshd_config(5) against the real sshd's, on generated trees of files: Include,
//! Match, duplicates, odd spacing, mixed case. What harden says sshd follows is written as one flat file; for
//! that, `sshd -T` has to print what `sshd -T -C` prints for the tree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};

use fastrand::Rng;
use harden::sshd::criteria::Connection;
use harden::sshd::reading::{Problem, Reading};
use harden::sshd::release::Release;
use harden::sys::Files;

use crate::machine::{Suite, cache, run};
use crate::random::seed;
use crate::root::Root;

crate::on_debian!(some_trees);

/// The files of a system that is not booted, to run its sshd in.
struct Sshd {
    root: Root,
    release: Release,
    groups: BTreeMap<&'static str, Vec<String>>,
}

const LEFT_OUT: [&str; 3] = ["channeltimeout none", "logverbose none", "authorizedkeysfile none"];
const USERS: [&str; 3] = ["root", "deploy", "nobody"];

impl Sshd {
    fn new(suite: Suite) -> Self {
        let name = format!("sshd{}-{suite:?}", std::process::id());
        let folder = cache().join("machines").join(name);
        let part = |name: &str| folder.join(name).display().to_string();
        for name in ["upper", "work", "root"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let lower = suite.tree().display().to_string();
        let layers =
            format!("lowerdir={lower},upperdir={},workdir={}", part("upper"), part("work"));
        run("mount", &["-t", "overlay", "overlay", "-o", &layers, &part("root")]);
        let root = Root(folder.join("root"));
        fs::create_dir_all(root.path("/run/sshd")).unwrap();
        let version =
            Command::new("chroot").args([&part("root"), "/usr/sbin/sshd", "-V"]).output().unwrap();
        let release = Release::parse(&String::from_utf8_lossy(&version.stderr)).unwrap();
        let groups = |user: &&'static str| {
            let ran = Command::new("chroot").args([&part("root"), "id", "-Gn", user]).output();
            let names = String::from_utf8(ran.unwrap().stdout).unwrap();
            (*user, names.split_whitespace().map(str::to_owned).collect())
        };
        let groups = USERS.iter().map(groups).collect();
        Self { root, release, groups }
    }

    /// Whether `-C` takes `invalid-user`.
    fn tells_invalid_users(&self) -> bool {
        self.release.is_at_least(10, 0)
    }

    /// What is compared of what it prints.
    fn comparable(&self, printed: &str) -> String {
        // Before 8.7 two keywords are one value at sshd's start, and two in a Match block.
        let one = |line: &&str| {
            self.release.splits_like_a_shell() || !line.starts_with("kbdinteractiveauthentication")
        };
        // A list that is `none` is printed where a Match block says so, and left out where it is global.
        let kept = |line: &&str| !LEFT_OUT.contains(&line.to_ascii_lowercase().as_str());
        printed.lines().filter(one).filter(kept).map(|line| format!("{line}\n")).collect()
    }

    /// What `sshd -T` prints of a file, or why it refuses it.
    fn prints(&self, main: &str, connection: Option<&Connection>) -> Result<String, String> {
        let mut command = Command::new("chroot");
        command.arg(self.root.path("/")).args(["/usr/sbin/sshd", "-T", "-f", main]);
        if let Some(connection) = connection {
            command.args(["-C", &specification(connection)]);
        }
        let ran = command.stdin(Stdio::null()).output().unwrap();
        if ran.status.success() {
            Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&ran.stderr).into_owned())
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let root = self.root.path("/");
        let _ = Command::new("umount").arg("-l").arg(&root).status();
        let _ = fs::remove_dir_all(root.parent().unwrap_or(&root));
    }
}

fn specification(connection: &Connection) -> String {
    let port = connection.local_port.map(|port| port.to_string());
    let parts = [
        ("user", &connection.user),
        ("host", &connection.host),
        ("addr", &connection.address),
        ("laddr", &connection.local_address),
        ("lport", &port),
    ];
    let known =
        parts.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
    let invalid = connection.user_invalid.then(|| "invalid-user".to_owned());
    known.chain(invalid).collect::<Vec<_>>().join(",")
}

/// Values of keywords, as people write them: any of them is fine for all releases.
const VALUES: [(&str, &[&str]); 38] = [
    ("PermitRootLogin", &["yes", "no", "prohibit-password", "without-password", "NO"]),
    ("PasswordAuthentication", &["yes", "no", "YES"]),
    ("KbdInteractiveAuthentication", &["yes", "no"]),
    ("ChallengeResponseAuthentication", &["yes", "no"]),
    ("PubkeyAuthentication", &["yes", "no"]),
    ("X11Forwarding", &["yes", "no"]),
    ("AllowTcpForwarding", &["yes", "no", "local", "remote", "all"]),
    ("AllowAgentForwarding", &["yes", "no"]),
    ("GatewayPorts", &["yes", "no", "clientspecified"]),
    ("PermitTTY", &["yes", "no"]),
    ("PermitTunnel", &["yes", "no", "ethernet"]),
    ("MaxAuthTries", &["1", "3", "6"]),
    ("MaxSessions", &["0", "5", "10"]),
    ("ClientAliveInterval", &["0", "30", "1m", "2h"]),
    ("ClientAliveCountMax", &["0", "3"]),
    ("LogLevel", &["INFO", "verbose", "DEBUG1"]),
    ("Banner", &["/etc/issue", "none", "\"/etc/my issue\""]),
    ("ForceCommand", &["internal-sftp", "/bin/echo \"a  b\" c", "none"]),
    ("ChrootDirectory", &["/srv", "none", "%h"]),
    ("AuthorizedKeysFile", &[".ssh/authorized_keys", "/etc/keys/%u .ssh/keys", "none"]),
    ("AuthenticationMethods", &["publickey", "publickey,password publickey", "any"]),
    ("AcceptEnv", &["LANG", "LC_* TZ", "A B C"]),
    ("SetEnv", &["A=1", "B=2 C=3", "A=4"]),
    ("AllowUsers", &["root", "deploy nobody", "*@10.0.0.1 root", "r*"]),
    ("DenyUsers", &["eve", "mallory x?"]),
    ("AllowGroups", &["root sudo", "*"]),
    ("DenyGroups", &["games", "games tape"]),
    ("PermitOpen", &["any", "none", "localhost:80 example.org:443"]),
    ("PermitListen", &["any", "8080", "localhost:80 90"]),
    ("IPQoS", &["none", "lowdelay throughput", "af21"]),
    ("RekeyLimit", &["default", "1G", "512M 1h", "2G none", "default 30m"]),
    ("PubkeyAuthOptions", &["none", "touch-required", "verify-required"]),
    ("StreamLocalBindMask", &["0177", "0111"]),
    ("TrustedUserCAKeys", &["/etc/ca.pub", "none"]),
    ("AuthorizedKeysCommand", &["/bin/keys %u", "none"]),
    ("AuthorizedKeysCommandUser", &["nobody", "root"]),
    ("AuthorizedPrincipalsCommand", &["/bin/principals %u", "none"]),
    ("AuthorizedPrincipalsCommandUser", &["nobody", "root"]),
];

/// The same for keywords that may not stand in a Match block, or not everywhere.
const GLOBAL: [(&str, &[&str]); 16] = [
    ("Port", &["22", "2222"]),
    ("ListenAddress", &["127.0.0.1", "127.0.0.1:2200", "::1"]),
    ("LoginGraceTime", &["30", "2m", "0"]),
    ("MaxStartups", &["10:30:100", "5", "3:50:9"]),
    ("Ciphers", &["aes256-ctr", "+aes128-cbc", "-aes*"]),
    ("MACs", &["hmac-sha2-256", "-hmac-sha1*"]),
    ("KexAlgorithms", &["curve25519-sha256", "-ecdh*"]),
    ("UsePAM", &["yes", "no"]),
    ("UseDNS", &["yes", "no"]),
    ("StrictModes", &["yes", "no"]),
    ("SyslogFacility", &["AUTH", "LOCAL7"]),
    ("TCPKeepAlive", &["yes", "no"]),
    ("FingerprintHash", &["md5", "sha256"]),
    ("PermitUserEnvironment", &["yes", "no", "LANG,LC_*"]),
    ("VersionAddendum", &["none", "hello  world"]),
    ("Subsystem", &["sftp internal-sftp", "x /bin/x -a", "y /bin/y"]),
];

/// Keywords that came later, with the release.
const LATER: [(&str, &[&str], (u16, u16)); 9] = [
    ("RequiredRSASize", &["1024", "3072"], (9, 1)),
    ("ChannelTimeout", &["session=5m", "*=1h session=2m", "none"], (9, 2)),
    ("UnusedConnectionTimeout", &["5m", "none", "1h"], (9, 2)),
    ("RefuseConnection", &["no", "yes"], (9, 9)),
    ("Subsystem", &["sftp internal-sftp", "x /bin/x", "y /bin/y -a"], (9, 5)),
    ("LogVerbose", &["a.c:*", "b.c:f:1,c.c"], (8, 5)),
    ("PubkeyAcceptedAlgorithms", &["ssh-ed25519", "+ssh-rsa", "-ecdsa*"], (8, 5)),
    ("PerSourceMaxStartups", &["none", "3", "7"], (8, 5)),
    ("PerSourceNetBlockSize", &["16:48", "24:64"], (8, 5)),
];

const CRITERIA: [(&str, &[&str]); 6] = [
    ("User", &["root", "deploy", "r*,!root", "!eve,*", "nob?dy", "ROOT"]),
    ("Group", &["sudo", "root", "*,!sudo", "nogroup"]),
    ("Host", &["client.example.org", "*.example.org", "!*.example.org,*", "CLIENT.*"]),
    ("Address", &["10.0.0.1", "10.0.0.0/8", "!10.0.0.0/8,*", "192.0.2.*", "fd00::/8"]),
    ("LocalAddress", &["127.0.0.1", "10.9.8.7,::1"]),
    ("LocalPort", &["22", "2222"]),
];

/// A tree of files, as it is drawn.
struct Drawn {
    files: BTreeMap<String, String>,
}

struct Pen<'r> {
    random: &'r mut Rng,
    release: &'r Release,
}

impl Pen<'_> {
    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.random.usize(..from.len())]
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.random.u32(..one_in) == 0
    }

    fn case(&mut self, word: &str) -> String {
        match self.random.u8(..6) {
            0 => word.to_lowercase(),
            1 => word.to_uppercase(),
            2 => {
                let any = |c: char| if self.random.bool() { c.to_ascii_uppercase() } else { c };
                word.chars().map(any).collect()
            }
            _ => word.to_owned(),
        }
    }

    /// A keyword and its arguments with whatever sshd allows between and around them.
    fn line(&mut self, keyword: &str, value: &str) -> String {
        let raw = ["ForceCommand", "VersionAddendum", "AuthorizedKeysCommand"];
        let raw = raw.contains(&keyword) || keyword.ends_with("PrincipalsCommand");
        let mut line = self.pick(&["", "", "", "  ", "\t", " \t "]).to_owned();
        let name = self.case(keyword);
        let quoted = self.chance(20);
        line += &if quoted { format!("\"{name}\"") } else { name };
        let between = [" ", " ", " ", "\t", "  ", "=", " = ", " ="];
        line += self.pick(if quoted { &between[..5] } else { &between });
        let plain = !value.contains('"') && !raw;
        line += &match self.random.u8(..8) {
            0 if plain && !value.contains(' ') => format!("\"{value}\""),
            1 if plain && !value.contains(' ') && self.release.splits_like_a_shell() => {
                format!("'{value}'")
            }
            2 if plain => value.replace(' ', " \t "),
            _ => value.to_owned(),
        };
        if !raw && self.chance(8) {
            line += self.pick(&[" # a comment", " #", "\t#x y"]);
        }
        line + self.pick(&["", "", "", " ", "\t", "\r", " \r", "\u{c}"])
    }

    fn setting(&mut self, in_match: bool) -> String {
        // Now and then one that may not stand there.
        let global = if in_match { self.chance(200) } else { self.chance(4) };
        if global {
            let (keyword, values) = GLOBAL[self.random.usize(..GLOBAL.len())];
            let value = self.pick(values);
            return self.line(keyword, value);
        }
        if self.chance(6) {
            let (keyword, values, (major, minor)) = LATER[self.random.usize(..LATER.len())];
            let may = !in_match || !keyword.starts_with("PerSource");
            if self.release.is_at_least(major, minor) && may {
                let value = self.pick(values);
                return self.line(keyword, value);
            }
        }
        let (keyword, values) = VALUES[self.random.usize(..VALUES.len())];
        if keyword.starts_with("Challenge") && in_match && !self.release.is_at_least(8, 7) {
            return String::new();
        }
        let value = self.pick(values);
        self.line(keyword, value)
    }

    fn matching(&mut self) -> String {
        let mut criteria = String::new();
        if self.chance(8) {
            criteria = self.case("all");
        } else if self.release.is_at_least(9, 9) && self.chance(12) {
            criteria = self.case("invalid-user");
        } else if self.release.is_at_least(10, 0) && self.chance(12) {
            criteria = format!("version {}", self.pick(&["OpenSSH_10.*", "OpenSSH_9*", "*"]));
        } else {
            for _ in 0..=self.random.usize(..2) {
                let (name, values) = CRITERIA[self.random.usize(..CRITERIA.len())];
                let (name, value) = (self.case(name), self.pick(values));
                let between = self.pick(&[" ", " ", "  ", "=", "\t"]);
                let value = if self.chance(6) { format!("\"{value}\"") } else { value.to_owned() };
                let _ = write!(criteria, "{name}{between}{value} ");
            }
        }
        let line =
            format!("{}{}", self.pick(&["Match ", "match\t", "  MATCH  ", "Match="]), criteria);
        if self.chance(10) { line + " # why" } else { line }
    }

    fn tree(&mut self) -> Drawn {
        let mut files = BTreeMap::new();
        let names: Vec<String> = (0..=self.random.usize(..5))
            .map(|number| match number {
                0 => "/etc/ssh/sshd_config".to_owned(),
                _ => format!("/etc/ssh/{}/{number}.conf", self.pick(&["a.d", "b.d"])),
            })
            .collect();
        for (number, name) in names.iter().enumerate() {
            let mut text = String::new();
            let mut in_match = false;
            for _ in 0..self.random.usize(..14) {
                let line = match self.random.u8(..16) {
                    0 => self.pick(&["", "# a comment", "  ", "\t# x", "#Port 9"]).to_owned(),
                    1 | 2 if number + 1 < names.len() => self.include(&names[number + 1..]),
                    3 | 4 => {
                        in_match = true;
                        self.matching()
                    }
                    _ => self.setting(in_match),
                };
                text.push_str(&line);
                text.push('\n');
            }
            if self.chance(6) {
                text.pop();
            }
            files.insert(name.clone(), text);
        }
        Drawn { files }
    }

    /// Only files with a greater number, so that there are no loops.
    fn include(&mut self, later: &[String]) -> String {
        let mut line = self.pick(&["Include", "include\t", "Include "]).to_owned();
        for _ in 0..=self.random.usize(..2) {
            let name = &later[self.random.usize(..later.len())];
            let relative = name.strip_prefix("/etc/ssh/").unwrap_or(name);
            let pattern = match self.random.u8(..6) {
                0 => relative.to_owned(),
                1 => relative.replace(".conf", ".con?"),
                2 => "nothing/*.conf".to_owned(),
                3 => format!("\"{name}\""),
                // Greater numbers only, each one sorted.
                4 => {
                    let number = relative.trim_end_matches(".conf").chars().last().unwrap_or('9');
                    format!("?.d/[{number}-9].conf")
                }
                _ => name.clone(),
            };
            let _ = write!(line, " {pattern}");
        }
        line
    }

    fn connection(&mut self, sshd: &Sshd) -> Connection {
        let user = self.pick(&["root", "deploy", "nobody", "ghost", "Root"]);
        let addresses = ["10.0.0.1", "192.0.2.7", "fd00::9", "203.0.113.5"];
        Connection {
            user: Some(user.to_owned()),
            user_invalid: sshd.tells_invalid_users() && !sshd.groups.contains_key(user),
            groups: sshd.groups.get(user).cloned().unwrap_or_default(),
            host: Some(self.pick(&["client.example.org", "Other.example.com"]).to_owned()),
            address: Some(self.pick(&addresses).to_owned()),
            local_address: (!self.chance(3)).then(|| self.pick(&["127.0.0.1", "::1"]).to_owned()),
            local_port: Some(if self.random.bool() { 22 } else { 2222 }),
            routing_domain: None,
        }
    }
}

/// What sshd asks of the global values alone.
const OF_ALL: [&str; 2] = ["set without Authorized", "AuthenticationMethods cannot be satisfied"];

#[derive(Debug, Default)]
struct Tally {
    trees: usize,
    compared: usize,
    incomplete: usize,
    refused_by_both: usize,
    refused_by_sshd: BTreeMap<String, usize>,
}

/// Draws trees and compares, until one is read differently.
fn compare(suite: Suite, trees: usize) -> Tally {
    let sshd = Sshd::new(suite);
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let mut tally = Tally::default();
    for number in 0..trees {
        let mut pen = Pen { random: &mut random, release: &sshd.release };
        let drawn = pen.tree();
        let connections: Vec<_> = (0..3).map(|_| pen.connection(&sshd)).collect();
        for folder in ["a.d", "b.d"] {
            let folder = sshd.root.path(&format!("/etc/ssh/{folder}"));
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(folder).unwrap();
        }
        for (path, text) in &drawn.files {
            sshd.root.write(path, text);
        }
        tally.trees += 1;
        let files = Files::at(sshd.root.path("/"));
        let tree = harden::observe::config_tree(&files, &sshd.release, &mut Vec::new());
        let reading = Reading::new(&tree, sshd.release.clone());
        let asked = [None].into_iter().chain(connections.iter().map(Some));
        let mut printed = BTreeMap::new();
        for connection in asked {
            let taken = tally.take(&sshd, reading.as_ref(), connection, &mut printed);
            if let Err(differs) = taken {
                let files = drawn.files.iter().map(|(path, text)| format!("== {path}\n{text}\n"));
                let files: String = files.collect();
                panic!("{} tree {number}, seed {seed}: {differs}\n{files}", sshd.release);
            }
        }
    }
    println!("{}: {tally:#?}", sshd.release);
    tally
}

impl Tally {
    /// Compares what both say for a connection.
    fn take(
        &mut self,
        sshd: &Sshd,
        reading: Result<&Reading, &Problem>,
        connection: Option<&Connection>,
        printed: &mut BTreeMap<String, Result<String, String>>,
    ) -> Result<(), String> {
        let theirs = sshd.prints("/etc/ssh/sshd_config", connection);
        // Where no connection is given sshd takes one of which nothing is known.
        let ours = reading.map_err(Problem::clone).and_then(|reading| {
            let connection = connection.cloned().unwrap_or_default();
            reading.for_connection(&connection).map(|effect| effect.flat())
        });
        let (theirs, flat) = match (theirs, ours) {
            (Ok(theirs), Ok(flat)) => (theirs, flat),
            (Ok(_), Err(problem)) => return Err(format!("sshd takes it: {problem:?}")),
            (Err(_), Err(_)) => {
                self.refused_by_both += 1;
                return Ok(());
            }
            (Err(why), Ok(_)) => {
                let why = why.lines().last().unwrap_or_default();
                let why = why.split_once(": ").map_or(why, |(_, why)| why).to_owned();
                *self.refused_by_sshd.entry(why).or_default() += 1;
                return Ok(());
            }
        };
        // Most connections meet the same blocks as another one.
        let ours = printed.entry(flat.clone()).or_insert_with(|| {
            sshd.root.write("/etc/ssh/flat", &flat);
            sshd.prints("/etc/ssh/flat", None)
        });
        let ours = match ours {
            Ok(ours) => ours,
            Err(why) if OF_ALL.iter().any(|known| why.contains(known)) => {
                self.incomplete += 1;
                return Ok(());
            }
            Err(why) => return Err(format!("{why}\n== flat\n{flat}")),
        };
        self.compared += 1;
        let (theirs, ours) = (sshd.comparable(&theirs), sshd.comparable(ours));
        if theirs == ours {
            return Ok(());
        }
        let differ = similar::TextDiff::from_lines(&theirs, &ours);
        let differ = differ.unified_diff().context_radius(0).to_string();
        let who = connection.map(specification).unwrap_or_default();
        Err(format!("for {who}:\n{differ}== flat\n{flat}"))
    }
}

mod cases {
    use super::*;

    pub(super) fn some_trees(suite: Suite) {
        let tally = compare(suite, 100);
        assert!(tally.compared > 200, "{tally:?}");
    }
}

/// The long form: ten thousand trees for each release.
#[test]
#[ignore = "long: run it with vm-tests/campaign"]
fn ten_thousand_trees() {
    let suites = [Suite::Bullseye, Suite::Bookworm, Suite::Trixie, Suite::Testing];
    let threads = suites.map(|suite| std::thread::spawn(move || compare(suite, 10_000)));
    for thread in threads {
        thread.join().unwrap();
    }
}
