//! What must be true of a machine, read with the system's own tools and not with harden.

use std::collections::BTreeSet;

use crate::machine::{Machine, Ran, V4, V6};

/// Who shall hold the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Service,
    Socket,
}

/// The whole state that a case ends in.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    pub(crate) owner: Owner,
    pub(crate) ports: Vec<u16>,
    pub(crate) v4: bool,
    pub(crate) v6: bool,
    /// Lines that `sshd -T` has to print.
    pub(crate) settings: Vec<&'static str>,
}

impl Want {
    pub(crate) fn service(port: u16) -> Self {
        Self { owner: Owner::Service, ports: vec![port], v4: true, v6: true, settings: vec![] }
    }

    pub(crate) fn socket(port: u16) -> Self {
        Self { owner: Owner::Socket, ..Self::service(port) }
    }

    pub(crate) fn with(mut self, setting: &'static str) -> Self {
        self.settings.push(setting);
        self
    }
}

/// One line of `ss -Htlnpe` that sshd or systemd has to do with SSH.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Listener {
    address: String,
    port: u16,
    v6only: bool,
    pids: Vec<u32>,
}

fn ssh_listeners(machine: &Machine) -> Vec<Listener> {
    let table = machine.sh("ss -Htlnpe");
    table
        .lines()
        .filter(|line| line.contains("\"sshd\"") || line.contains("\"systemd\""))
        .map(|line| {
            let local = line.split_whitespace().nth(3).unwrap();
            let (address, port) = local.rsplit_once(':').unwrap();
            let pids = line
                .split("pid=")
                .skip(1)
                .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
            Listener {
                address: address.split('%').next().unwrap().to_owned(),
                port: port.parse().unwrap(),
                v6only: !line.contains("v6only:0"),
                pids: pids.collect(),
            }
        })
        .collect()
}

/// Asserts everything: kernel's table, owners, units, `sshd -T`, logins from outside.
#[track_caller]
pub(crate) fn assert_state(machine: &Machine, want: &Want) {
    let listeners = ssh_listeners(machine);
    let mut served = BTreeSet::new();
    for listener in &listeners {
        let dual = listener.address == "*" || (listener.address == "[::]" && !listener.v6only);
        if dual {
            served.insert(("4", listener.port));
        }
        served.insert((if listener.address.contains('.') { "4" } else { "6" }, listener.port));
    }
    let mut wanted = BTreeSet::new();
    for port in &want.ports {
        wanted.extend(want.v4.then_some(("4", *port)));
        wanted.extend(want.v6.then_some(("6", *port)));
    }
    assert_eq!(served, wanted, "listeners: {listeners:#?}");

    assert_owners(machine, want, &listeners);
    let by_service = want.owner == Owner::Service;
    let state = |unit: &str| (active(machine, unit), enabled(machine, unit));
    if by_service {
        assert_eq!(state("ssh.service"), (true, true), "ssh.service");
        assert_eq!(state("ssh.socket"), (false, false), "ssh.socket");
    } else {
        assert_eq!(state("ssh.socket"), (true, true), "ssh.socket");
        assert!(!enabled(machine, "ssh.service"), "ssh.service is enabled");
    }
    assert_effective(machine, want);
    assert_logins(machine, want);
}

/// The unit's own processes hold the listeners, and nobody else. What a process has just forked may
/// hold them for a moment too; an orphan holds them for good.
#[track_caller]
fn assert_owners(machine: &Machine, want: &Want, listeners: &[Listener]) {
    let strange = |listeners: &[Listener]| -> Vec<Listener> {
        let main: u32 = property(machine, "ssh.service", "MainPID").parse().unwrap();
        let owned = |listener: &&Listener| match want.owner {
            Owner::Service => listener.pids == [main],
            Owner::Socket => {
                listener.pids.contains(&1)
                    && listener.pids.iter().all(|pid| *pid == 1 || *pid == main)
            }
        };
        listeners.iter().filter(|listener| !owned(listener)).cloned().collect()
    };
    let mut found = strange(listeners);
    for _ in 0..10 {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        found = strange(&ssh_listeners(machine));
    }
    assert!(found.is_empty(), "held by others: {found:?}");
}

fn assert_effective(machine: &Machine, want: &Want) {
    let effective = machine.sh("mkdir -p /run/sshd; sshd -T").to_lowercase();
    let lines: BTreeSet<&str> = effective.lines().collect();
    for setting in &want.settings {
        assert!(lines.contains(setting), "sshd -T does not print {setting}: {effective}");
    }
    if want.owner == Owner::Service {
        for port in &want.ports {
            assert!(lines.contains(format!("port {port}").as_str()), "{effective}");
        }
    }
}

#[track_caller]
fn assert_logins(machine: &Machine, want: &Want) {
    for port in &want.ports {
        for (host, serves) in [(V4, want.v4), (V6, want.v6)] {
            // Debian 11's ssh@.service takes /run/sshd away when a connection ends, under the next one.
            let tries = if want.owner == Owner::Socket { 3 } else { 1 };
            let mut logins = (0..tries).map(|_| machine.ssh_to(host, *port, "echo in"));
            let login = logins.find(|login| login.stdout == "in\n" || !serves).unwrap_or(Ran {
                code: 255,
                stdout: String::new(),
                stderr: "no login".to_owned(),
            });
            assert_eq!(login.stdout == "in\n", serves, "{host}:{port}: {login:?}");
        }
    }
}

pub(crate) fn property(machine: &Machine, unit: &str, name: &str) -> String {
    machine.sh(&format!("systemctl show -p {name} --value {unit}")).trim().to_owned()
}

pub(crate) fn active(machine: &Machine, unit: &str) -> bool {
    property(machine, unit, "ActiveState") == "active"
}

pub(crate) fn enabled(machine: &Machine, unit: &str) -> bool {
    machine.exec(&format!("systemctl is-enabled {unit}")).stdout.starts_with("enabled")
}

/// The state; then, after a reboot, the state again; and a second apply changes nothing.
#[track_caller]
pub(crate) fn assert_for_good(machine: &mut Machine, want: &Want) {
    assert_state(machine, want);
    assert_converged(machine);
    machine.reboot();
    assert_state(machine, want);
    assert_converged(machine);
}

/// Waits until no transaction is open and nobody clears up after one.
#[track_caller]
pub(crate) fn wait_until_idle(machine: &Machine) {
    machine.wait_for_the_end();
    let list = list_units();
    // One that was killed when all was done is started again, to clear up.
    machine.exec(&format!(
        "for i in $(seq 100); do [ -z \"$({list})\" ] && break; sleep 0.1; done; \
         mkdir -p /run/harden; flock -w 10 /run/harden/lock true"
    ));
}

/// A command that lists every unit of harden's that does anything.
pub(crate) fn list_units() -> String {
    let states = "--state=active,activating,deactivating,failed";
    format!("systemctl list-units {states} --all --no-legend --plain 'harden-*'")
}

/// The transaction is closed, and nothing is left of it but its journal.
#[track_caller]
pub(crate) fn assert_closed(machine: &Machine) {
    wait_until_idle(machine);
    let units = machine.sh(&list_units());
    assert_eq!(units, "", "units are left");
    assert!(!machine.root().exists("/usr/local/lib/systemd"), "recovery is still installed");
    let left =
        machine.sh("ls -A /var/lib/harden 2>/dev/null | grep -vE '[.](journal|decision)$' || true");
    assert_eq!(left, "", "files are left");
    assert_eq!(machine.sh("ls -d /run/harden/2* 2>/dev/null || true"), "", "the trial is left");
}

/// The state, the transaction closed; and the same after a reboot, and after one more.
#[track_caller]
pub(crate) fn assert_over(machine: &mut Machine, want: &Want) {
    assert_state(machine, want);
    assert_closed(machine);
    for _ in 0..2 {
        machine.reboot();
        assert_state(machine, want);
        assert_closed(machine);
    }
}

/// A second apply says so, changes no file and restarts nothing.
#[track_caller]
pub(crate) fn assert_converged(machine: &Machine) {
    let before = (machine.root().state_of_etc(), runs(machine));
    let again = machine.exec("harden apply --yes --output json /root/spec.yaml").code(0);
    assert!(again.stdout.contains("\"outcome\":\"converged\""), "{again:?}");
    assert!(again.stdout.contains("\"changed\":false"), "{again:?}");
    assert_eq!(before, (machine.root().state_of_etc(), runs(machine)));
}

/// Which runs of the two units these are: a restart changes it.
fn runs(machine: &Machine) -> Vec<String> {
    let of = |unit| property(machine, unit, "InvocationID");
    vec![of("ssh.service"), of("ssh.socket")]
}

/// Everything that a refusal or a rollback has to leave as it was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    etc: Vec<String>,
    units: Vec<String>,
    listeners: Vec<(String, u16, bool)>,
}

impl Whole {
    pub(crate) fn of(machine: &Machine) -> Self {
        let listeners = ssh_listeners(machine);
        let unit = |unit: &str| {
            let file = machine.exec(&format!("systemctl is-enabled {unit}")).stdout;
            format!("{unit} {} {}", active(machine, unit), file.trim())
        };
        // In socket mode sshd comes and goes with the connections.
        let mut units = vec![unit("ssh.socket")];
        if !active(machine, "ssh.socket") {
            units.push(unit("ssh.service"));
        }
        Self {
            etc: machine.root().state_of_etc(),
            units,
            listeners: listeners.into_iter().map(|l| (l.address, l.port, l.v6only)).collect(),
        }
    }
}

/// Runs something that must leave everything as it was.
#[track_caller]
pub(crate) fn unchanged(machine: &Machine, run: impl FnOnce() -> Ran) -> Ran {
    let before = Whole::of(machine);
    let ran = run();
    let after = Whole::of(machine);
    assert_eq!(before, after, "{ran:?}");
    ran
}
