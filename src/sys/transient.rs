//! Units that harden makes for itself: they are in no file, and end with the boot.

use std::net::SocketAddr;
use std::time::Duration;

use super::Result;
use super::systemd::{Property, Systemd, Value};

/// How systemd says that a program could not be executed (systemd.exec(5), PROCESS EXIT CODES).
const EXIT_EXEC: i32 = 203;
/// How long systemd may take to start one.
const START: Duration = Duration::from_secs(20);
/// One that gives no sign of life for so long is frozen; systemd kills it and starts it again.
const SILENCE: Duration = Duration::from_secs(10);
/// How long one that is asked to end may take to take back, or to finish, what it has begun.
const STOP: Duration = Duration::from_secs(240);
/// How soon one that died is started again: `DefaultRestartSec=`.
const AGAIN: Duration = Duration::from_millis(100);
/// How soon one is that is started again for ever.
const PATIENTLY: Duration = Duration::from_secs(1);

/// An sshd of harden's own, in a transient unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSshd {
    /// The unit.
    pub unit: String,
    /// sshd's arguments.
    pub args: Vec<String>,
    /// Where it is to listen.
    pub at: Vec<SocketAddr>,
    /// Units that it takes a port from, or gives it to: of these, a stop comes before a start.
    pub takes_turns: Vec<String>,
    /// It is the only way in: systemd starts it again until it listens, however long that takes.
    pub keeps_trying: bool,
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn usec(time: Duration) -> Value {
    Value::Usec(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// What all services have in common: gone from systemd's memory when they have ended.
fn service(description: &str, command: &[String]) -> Vec<Property> {
    vec![
        ("Description", text(description)),
        ("ExecStart", Value::Command(command.to_vec())),
        ("CollectMode", text("inactive-or-failed")),
        ("IgnoreOnIsolate", Value::Flag(true)),
    ]
}

/// Starts an sshd of harden's own (systemd.service(5)); returns the job's result.
///
/// Its sessions outlive it, as ssh.service's do, and stopping it leaves sshd's privilege
/// separation folder where it is. Where it dies or does not come up, systemd tries again, a few
/// times (`DefaultStartLimitBurst=`), or for ever, more slowly, where it has to. Of two units with an
/// order, a stop comes before a start, whichever way round they are ordered (systemd.unit(5), Before=): so
/// a port can go from a unit that it takes turns with to it within systemd, as in a restart.
pub fn start_sshd(systemd: &Systemd, sshd: &OwnSshd, command: &[String]) -> Result<String> {
    let mut properties = service("harden: an sshd that carries listeners over", command);
    let mut before = sshd.takes_turns.clone();
    before.push("shutdown.target".to_owned());
    if sshd.keeps_trying {
        properties.push(("StartLimitIntervalUSec", usec(Duration::ZERO)));
    }
    properties.extend([
        ("Type", text("exec")),
        ("Restart", text("on-failure")),
        ("RestartUSec", usec(if sshd.keeps_trying { PATIENTLY } else { AGAIN })),
        ("KillMode", text("process")),
        ("RuntimeDirectory", Value::Texts(vec!["sshd".to_owned()])),
        ("RuntimeDirectoryMode", Value::Mode(0o755)),
        ("RuntimeDirectoryPreserve", text("yes")),
        // By default a service comes after basic.target, and that after ssh.socket: a cycle.
        ("DefaultDependencies", Value::Flag(false)),
        ("Conflicts", Value::Texts(vec!["shutdown.target".to_owned()])),
        ("Before", Value::Texts(before)),
    ]);
    systemd.start_transient(&sshd.unit, &properties, None, START)
}

/// Starts a service that runs until it is stopped, with sshd's privilege separation folder; returns the
/// job's result.
pub fn start_keeper(systemd: &Systemd, unit: &str, command: &[String]) -> Result<String> {
    let mut properties = service("harden: keeps what a rescue listener needs", command);
    properties.extend([
        ("Type", text("exec")),
        ("Restart", text("always")),
        ("RestartUSec", usec(AGAIN)),
        ("RestartPreventExitStatus", Value::Statuses(vec![EXIT_EXEC])),
        ("StartLimitIntervalUSec", usec(Duration::ZERO)),
        ("RuntimeDirectory", Value::Texts(vec!["sshd".to_owned()])),
        ("RuntimeDirectoryMode", Value::Mode(0o755)),
        ("RuntimeDirectoryPreserve", text("yes")),
        ("DefaultDependencies", Value::Flag(false)),
        ("Conflicts", Value::Texts(vec!["shutdown.target".to_owned()])),
        ("Before", Value::Texts(vec!["shutdown.target".to_owned()])),
    ]);
    systemd.start_transient(unit, &properties, None, START)
}

/// Starts a service that is started again at once whenever it dies before its work is done, or gives no
/// sign of life; returns the job's result.
pub fn start_worker(systemd: &Systemd, unit: &str, command: &[String]) -> Result<String> {
    systemd.start_transient(unit, &resumed("harden: changes sshd", command), None, START)
}

fn resumed(description: &str, command: &[String]) -> Vec<Property> {
    let mut properties = service(description, command);
    properties.extend([
        ("Type", text("exec")),
        ("Restart", text("on-failure")),
        ("RestartUSec", usec(AGAIN)),
        // Its program is gone: the transaction was closed just before it died.
        ("RestartPreventExitStatus", Value::Statuses(vec![EXIT_EXEC])),
        ("StartLimitIntervalUSec", usec(Duration::ZERO)),
        ("NotifyAccess", text("main")),
        ("WatchdogUSec", usec(SILENCE)),
        ("WatchdogSignal", Value::Signal(nix::sys::signal::Signal::SIGKILL as i32)),
        // A fork of its own that hangs must not outlive it.
        ("KillMode", text("mixed")),
        ("TimeoutStopUSec", usec(STOP)),
    ]);
    properties
}

/// Arms a timer that starts a service once, `after` from now on the monotonic clock
/// (systemd.timer(5)); returns the job's result.
pub fn arm(systemd: &Systemd, name: &str, command: &[String], after: Duration) -> Result<String> {
    let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
    let timer = [
        ("Description", text("harden: undoes what nobody confirms")),
        ("TimersMonotonic", Value::OnActive(after)),
        ("AccuracyUSec", usec(Duration::from_millis(100))),
        ("RemainAfterElapse", Value::Flag(false)),
        ("IgnoreOnIsolate", Value::Flag(true)),
        ("CollectMode", text("inactive-or-failed")),
    ];
    let triggered = resumed("harden: undoes what nobody has confirmed", command);
    let service = format!("{name}.service");
    systemd.start_transient(&format!("{name}.timer"), &timer, Some((&service, &triggered)), START)
}

/// Whether the timer is armed: systemd says when it will fire.
pub fn is_armed(systemd: &Systemd, name: &str) -> Result<bool> {
    let properties = systemd.properties(&format!("{name}.timer"))?;
    let text = |name: &str| properties.get(name).and_then(|v| v.downcast_ref::<&str>().ok());
    let next = properties
        .get("NextElapseUSecMonotonic")
        .and_then(|value| value.downcast_ref::<u64>().ok())
        .unwrap_or(u64::MAX);
    Ok(text("ActiveState") == Some("active") && next > 0 && next < u64::MAX)
}
