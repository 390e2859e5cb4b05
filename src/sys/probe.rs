//! Knocking on an SSH listener with the system's own client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Command, Result};

/// What a listener answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A complete key exchange, with a host key of this host (RFC 4253, sections 7 and 8).
    KeyExchange,
    /// sshd is there but turns this address away for a while (`PerSourcePenalties`).
    Penalised,
    /// Anything else, in the client's words.
    Failed(String),
}

/// Runs one key exchange with `address:port` and compares the host key with `known_hosts`.
///
/// The client asks for no authentication method, so nothing is logged as a failed password and no
/// session starts. A wildcard address is reached over loopback.
pub fn key_exchange(address: IpAddr, port: u16, known_hosts: &Path) -> Result<Answer> {
    const SSH: &str = "/usr/bin/ssh";
    let target = match address {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.to_string(),
        other => other.to_string(),
    };
    let options = [
        "BatchMode=yes",
        "ConnectTimeout=10",
        "ConnectionAttempts=1",
        "PreferredAuthentications=none",
        "PubkeyAuthentication=no",
        "StrictHostKeyChecking=yes",
        "CheckHostIP=no",
        "GlobalKnownHostsFile=/dev/null",
        "HostKeyAlias=harden-probe",
        "UpdateHostKeys=no",
        "ControlPath=none",
        "LogLevel=DEBUG1",
    ];
    let output = Command::new(Path::new(SSH))
        .args(["-F", "/dev/null", "-T", "-p"])
        .arg(port.to_string())
        .args(options.iter().flat_map(|option| ["-o", option]))
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
        .args(["-l", "root", "--", &target, "true"])
        .timeout(Duration::from_secs(20))
        .run()?;
    Ok(read_answer(&output.stderr))
}

fn read_answer(log: &str) -> Answer {
    if log.contains("SSH2_MSG_NEWKEYS received") {
        return Answer::KeyExchange;
    }
    if log.contains("Not allowed at this time") {
        return Answer::Penalised;
    }
    let said = log
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("debug1:"))
        .unwrap_or("the client gave no reason");
    Answer::Failed(said.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(
            read_answer(
                "debug1: Connecting\nssh: connect to host ::1 port 9: Connection refused\n"
            ),
            Answer::Failed("ssh: connect to host ::1 port 9: Connection refused".into())
        );
    }
}
