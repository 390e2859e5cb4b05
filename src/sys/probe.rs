//! Knocking on an SSH listener, and logging in, with the system's own client.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::{Output, shell_word};
use super::{Command, Result};

const SSH: &str = "/usr/bin/ssh";

fn options<'a>(options: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    options.iter().flat_map(|option| ["-o", option])
}

/// ssh(1), that asks nothing, reads no one's configuration and believes only these host keys.
fn client(known_hosts: &Path) -> Command {
    Command::new(Path::new(SSH))
        .args(["-F", "/dev/null", "-T"])
        .args(options(&["BatchMode=yes", "StrictHostKeyChecking=yes", "CheckHostIP=no"]))
        .args(options(&["GlobalKnownHostsFile=/dev/null", "HostKeyAlias=harden-probe"]))
        .args(options(&["UpdateHostKeys=no", "ControlPath=none"]))
        .args(["-o".to_owned(), format!("UserKnownHostsFile={}", known_hosts.display())])
        .timeout(Duration::from_secs(20))
}

/// What a listener answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A complete key exchange, with a host key of this host (RFC 4253, sections 7 and 8).
    KeyExchange,
    /// sshd is there, with a host key that is not this host's.
    OtherHostKey,
    /// sshd is there but turns this address away for a while (`PerSourcePenalties`); of IPv4 another
    /// address was tried too.
    Penalised,
    /// Anything else, in the client's words.
    Failed(String),
}

/// Runs one key exchange with `address:port` and compares the host key with `known_hosts`.
///
/// The client asks for no authentication method, so nothing is logged as a failed password and no
/// session starts. A wildcard address is reached over loopback.
pub fn key_exchange(address: IpAddr, port: u16, known_hosts: &Path) -> Result<Answer> {
    let target = reachable(address).to_string();
    let knock = |from: &[String]| -> Result<Answer> {
        let output = client(known_hosts)
            .args(options(&["PreferredAuthentications=none", "PubkeyAuthentication=no"]))
            .args(options(&["ConnectTimeout=10", "ConnectionAttempts=1", "LogLevel=DEBUG1"]))
            .args(from.iter().cloned())
            .args(["-p".to_owned(), port.to_string()])
            .args(["-l", "root", "--", &target, "true"])
            .run()?;
        Ok(read_answer(&output.stderr))
    };
    let answer = knock(&[])?;
    if answer != Answer::Penalised || address.is_ipv6() {
        return Ok(answer);
    }
    // An address that nobody has used yet has no penalties. An sshd that turns it away too does so to everybody
    // (`MaxStartups`, `PerSourceMaxStartups`).
    for _ in 0..TRIES {
        // There may be room for few at a time.
        std::thread::sleep(Duration::from_millis(500));
        let answer = knock(&["-b".to_owned(), loopback()?])?;
        if answer != Answer::Penalised {
            return Ok(answer);
        }
    }
    Ok(Answer::Failed("it turns every connection away".to_owned()))
}

/// Somebody who connects, and says nothing.
#[derive(Debug)]
pub struct Visitor(TcpStream);

/// What came over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// sshd speaks first (RFC 4253, section 4.2).
    Something,
    /// It was closed.
    End,
    /// Neither.
    NothingYet,
}

impl Visitor {
    /// Connects within a second, to a wildcard address over loopback; `None` where nobody takes the connection.
    pub fn knock(at: SocketAddr) -> Option<Self> {
        let at = SocketAddr::new(reachable(at.ip()), at.port());
        let stream = TcpStream::connect_timeout(&at, Duration::from_secs(1)).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Self(stream))
    }

    /// What has come so far.
    pub fn hears(&self) -> Heard {
        match self.0.peek(&mut [0]) {
            Ok(0) => Heard::End,
            Ok(_) => Heard::Something,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Heard::NothingYet,
            Err(_) => Heard::End,
        }
    }
}

/// Where a wildcard address is reached from here.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

/// How often an sshd that turns connections away is tried from another address.
const TRIES: usize = 3;

/// How a login went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A command ran as the user.
    In,
    /// The key was accepted, and sshd asks for more (`AuthenticationMethods`).
    Partial,
    /// Anything else, in the words of sshd or the client.
    Refused(String),
}

/// What a command says that runs in a session: a shell may end well, and have run none.
const SAYS: &str = "harden-is-in";

/// Logs in as `user` with a private key, and runs a command there. `sshd` is the command line of an
/// sshd that speaks over its standard input and output and logs to standard error (`-i -e`,
/// sshd(8)): no network is touched.
///
/// # Errors
/// Where the client cannot be run, or does not end within 20 seconds.
pub fn login(user: &str, key: &Path, known_hosts: &Path, sshd: &[String]) -> Result<Login> {
    let output = over_a_pipe(user, key, known_hosts, sshd, "VERBOSE")?;
    let has_run = output.status == 0 && output.stdout.contains(SAYS);
    Ok(read_login(has_run, &output.stderr))
}

/// Whether sshd takes a key for `user`, of which only the public half is here: it says so before it
/// asks for a signature (RFC 4252, section 7, `SSH_MSG_USERAUTH_PK_OK`). `None` where it did not come to that question.
///
/// # Errors
/// As [`login`].
pub fn sshd_takes(
    user: &str,
    public: &Path,
    known_hosts: &Path,
    sshd: &[String],
) -> Result<Option<bool>> {
    let output = over_a_pipe(user, public, known_hosts, sshd, "DEBUG1")?;
    Ok(read_taken(&output.stderr))
}

/// Whether a listener takes any of a user's public keys; `None` where it did not come to that question. A wildcard
/// address is reached over loopback, each time from another address of it, where there is more than one: sshd
/// counts who only asks (sshd_config(5), PerSourcePenalties).
///
/// # Errors
/// Where the client cannot be run, or does not end within 20 seconds.
pub fn listener_takes(
    user: &str,
    public: &[PathBuf],
    known_hosts: &Path,
    at: SocketAddr,
) -> Result<Option<bool>> {
    let target = reachable(at.ip());
    let from = match target {
        IpAddr::V4(_) => vec!["-b".to_owned(), loopback()?],
        IpAddr::V6(_) => Vec::new(),
    };
    let output = shows(known_hosts, "DEBUG1")
        .args(options(&["ConnectTimeout=10", "ConnectionAttempts=1"]))
        .args(public.iter().flat_map(|key| ["-i".to_owned(), key.display().to_string()]))
        .args(from)
        .args(["-p".to_owned(), at.port().to_string()])
        .args(["-l", user, "--", &target.to_string(), "true"])
        .run()?;
    Ok(read_taken(&output.stderr))
}

/// An address of loopback that hardly anybody uses: all of 127.0.0.0/8 is this host's.
fn loopback() -> Result<String> {
    let [a, b, c] = super::random_bytes()?.map(|byte| 1 + byte % 250);
    Ok(format!("127.{a}.{b}.{c}"))
}

/// How often an sshd is tried that ends before it has answered.
const PATIENCE: u32 = 6;

fn over_a_pipe(
    user: &str,
    key: &Path,
    known_hosts: &Path,
    sshd: &[String],
    level: &str,
) -> Result<Output> {
    let words: Vec<String> = sshd.iter().map(|word| shell_word(word)).collect();
    let proxy = words.join(" ").replace('%', "%%");
    let client = shows(known_hosts, level)
        .args(["-i".to_owned(), key.display().to_string()])
        .args(["-o".to_owned(), format!("ProxyCommand={proxy}")])
        .args(["-l", user, "--", "harden-probe", "echo", SAYS]);
    let mut tries = PATIENCE;
    loop {
        let output = client.run()?;
        tries -= 1;
        // On Debian 11 a connection to ssh.socket that ends takes sshd's folder away from under this one.
        let answered = output.status == 0 || !output.stderr.contains("Connection closed by");
        if answered || tries == 0 {
            return Ok(output);
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// A client that has its keys from files alone.
fn shows(known_hosts: &Path, level: &str) -> Command {
    client(known_hosts)
        .args(options(&["PreferredAuthentications=publickey", "PubkeyAuthentication=yes"]))
        .args(options(&["IdentitiesOnly=yes", "IdentityAgent=none"]))
        .args(["-o".to_owned(), format!("LogLevel={level}")])
}

fn read_taken(log: &str) -> Option<bool> {
    let is_taken = log.contains("Server accepts key");
    // It has seen them all, and wants something else.
    let has_answered = log.contains("Offering public key") && log.contains("Permission denied (");
    (is_taken || has_answered).then_some(is_taken)
}

fn read_login(has_run: bool, log: &str) -> Login {
    if has_run {
        return Login::In;
    }
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines.clone().any(|line| line.contains("partial success")) {
        return Login::Partial;
    }
    // sshd's own reason says more than the client's "Permission denied".
    let listed = lines.clone().find_map(|line| Some(line.split_once("not allowed because ")?.1));
    let others = ["Authentication refused", "fatal:", "PAM: ", "locked"];
    let said = |line: &&str| others.iter().any(|other| line.contains(other));
    let other = || lines.clone().find(said);
    let denied = || lines.clone().find(|line| line.contains("Permission denied"));
    let opened = lines.clone().any(|line| line.contains("Authenticated "));
    let no_shell = || opened.then_some("sshd takes the key, and no command runs in the session");
    let said = listed.or_else(other).or_else(no_shell).or_else(denied);
    let said = said.or_else(|| lines.clone().next_back());
    // The other end of a pipe has no address.
    let said = match said {
        Some(said) if said.contains("UNKNOWN port") => "sshd ends the connection without a word",
        Some(said) => said,
        None => "no reason was given",
    };
    Login::Refused(said.to_owned())
}

fn read_answer(log: &str) -> Answer {
    if log.contains("SSH2_MSG_NEWKEYS received") {
        return Answer::KeyExchange;
    }
    if log.contains("Host key verification failed") {
        return Answer::OtherHostKey;
    }
    if log.contains("Not allowed at this time") {
        return Answer::Penalised;
    }
    let said = log
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("debug1:"))
        .unwrap_or("the client gave no reason");
    // It was there, and went before it had said who it is: so does libwrap (hosts_access(5)).
    let unwanted = said.contains("kex_exchange_identification");
    let hint = if unwanted { "; does /etc/hosts.deny turn this host itself away?" } else { "" };
    Answer::Failed(format!("{said}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_told_apart() {
        assert_eq!(read_login(true, "Accepted publickey for root from UNKNOWN"), Login::In);
        let partial = "Authenticated using \"publickey\" with partial success.\nx: denied";
        assert_eq!(read_login(false, partial), Login::Partial);
        let listed = "User root from UNKNOWN not allowed because not listed in AllowUsers";
        let refused = format!("Starting session\n{listed}\nroot@x: Permission denied (publickey).");
        let why = "not listed in AllowUsers";
        assert_eq!(read_login(false, &refused), Login::Refused(why.into()));
        let denied = "root@harden-probe: Permission denied (publickey).";
        assert_eq!(read_login(false, &format!("\n{denied}\r\n")), Login::Refused(denied.into()));
        let closed = read_login(false, "Connection closed by UNKNOWN port 65535");
        assert_eq!(closed, Login::Refused("sshd ends the connection without a word".into()));
        assert_eq!(read_login(false, ""), Login::Refused("no reason was given".into()));
    }

    #[test]
    fn keys_that_are_taken_are_told_apart() {
        let offered = "debug1: Offering public key: /run/a ED25519 SHA256:x explicit\n";
        let denied = "root@::1: Permission denied (publickey).\n";
        let taken = "debug1: Server accepts key: /run/ab ED25519 SHA256:y explicit\n";
        assert_eq!(read_taken(&format!("{offered}{taken}{denied}")), Some(true));
        assert_eq!(read_taken(&format!("{offered}{denied}")), Some(false));
        assert_eq!(read_taken(&format!("{offered}Connection closed")), None);
        assert_eq!(read_taken(denied), None);
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(
            read_answer("debug1: SSH2_MSG_NEWKEYS received\nroot@x: Permission denied."),
            Answer::KeyExchange
        );
        assert_eq!(
            read_answer(
                "debug1: kex_exchange_identification: banner line 0: Not allowed at this time"
            ),
            Answer::Penalised
        );
        let other = "No ED25519 host key is known for x\r\nHost key verification failed.\r\n";
        assert_eq!(read_answer(other), Answer::OtherHostKey);
        assert_eq!(
            read_answer(
                "debug1: Connecting\nssh: connect to host ::1 port 9: Connection refused\n"
            ),
            Answer::Failed("ssh: connect to host ::1 port 9: Connection refused".into())
        );
        let reset = "kex_exchange_identification: read: Connection reset by peer";
        let Answer::Failed(why) = read_answer(reset) else { panic!("it is no answer") };
        assert!(why.starts_with(reset) && why.contains("hosts.deny"), "{why}");
    }
}
