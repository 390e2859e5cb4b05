//! `harden doctor`: each cause is planted, named, and gone once its remedy has been carried out.

use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::operator::socket_system;
use crate::state::unchanged;

on_debian!(
    healthy_hosts_are_healthy,
    the_socket_owns_the_port,
    the_service_is_not_where_its_files_say,
    the_service_does_not_run,
    the_configuration_is_refused,
);

/// What the doctor says: the causes, and the whole report.
fn diagnosis(machine: &Machine) -> (Vec<String>, serde_json::Value) {
    let ran = unchanged(machine, || machine.exec("harden doctor --output json"));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(ran.code, if findings.is_empty() { 0 } else { 3 }, "{ran:?}");
    assert_eq!(report["healthy"], findings.is_empty());
    let causes = findings.iter().map(|finding| finding["cause"].as_str().unwrap().to_owned());
    (causes.collect(), report)
}

#[track_caller]
fn is_healthy(machine: &Machine) {
    let (causes, report) = diagnosis(machine);
    assert_eq!(causes, Vec::<String>::new(), "{report:#}");
    machine.exec("harden doctor").code(0);
}

/// One cause is named; its remedy, carried out as it is written, makes the host healthy.
#[track_caller]
fn is_named(machine: &Machine, cause: &str) -> String {
    let (causes, report) = diagnosis(machine);
    assert_eq!(causes, [cause], "{report:#}");
    let finding = &report["findings"][0];
    let shown = machine.exec("harden doctor").code(3).stdout;
    assert!(shown.starts_with(&format!("{cause}\n")), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80 || !line.contains(' ')), "{shown}");
    if let Some(command) = finding["fix"]["command"].as_str() {
        machine.sh(command);
        is_healthy(machine);
    } else if let Some(section) = finding["fix"]["spec"].as_str() {
        machine.spec(&format!("version: 1\nssh: {section}\n"));
        machine.apply().code(0);
        is_healthy(machine);
    }
    finding.to_string()
}

/// A program that is not sshd takes a port.
fn somebody_listens(machine: &Machine, at: &str) {
    machine.sh(&format!("systemd-run --quiet --unit=other nc -lk {at}"));
    machine.wait_for("a listener", &format!("ss -Hltn | grep -q '{}'", at.replace(' ', ":")));
}

mod cases {
    use super::*;

    pub(super) fn healthy_hosts_are_healthy(suite: Suite) {
        let machine = socket_system(suite);
        is_healthy(&machine);
        let _open = machine.session(22);
        is_healthy(&machine);
        machine.apply().code(0);
        is_healthy(&machine);
        machine.root().append(
            "/etc/ssh/sshd_config",
            "Match User sftp\nForceCommand internal-sftp\nX11Forwarding no\n\
             Match LocalPort 2222\nX11Forwarding no\n",
        );
        machine.sh("systemctl restart ssh.service");
        is_healthy(&machine);
    }

    pub(super) fn the_socket_owns_the_port(suite: Suite) {
        let machine = socket_system(suite);
        machine.root().append("/etc/ssh/sshd_config", "Port 2222\n");
        let said = is_named(&machine, "socket-owns-port");
        assert!(said.contains("`Port 2222` (/etc/ssh/sshd_config:"), "{said}");

        // Reloaded after its address changed; systemd 247 keeps the old one.
        let machine = socket_system(suite);
        machine.root().write(
            "/etc/systemd/system/ssh.socket.d/port.conf",
            "[Socket]\nListenStream=\nListenStream=2222\n",
        );
        machine.root().append("/etc/ssh/sshd_config", "Port 2222\n");
        machine.sh("systemctl daemon-reload");
        if suite != Suite::Bullseye {
            is_named(&machine, "stale-socket");
        }

        // One family alone.
        let machine = socket_system(suite);
        machine.root().write(
            "/etc/systemd/system/ssh.socket.d/port.conf",
            "[Socket]\nBindIPv6Only=ipv6-only\n",
        );
        machine.sh("systemctl daemon-reload; systemctl restart ssh.socket");
        let said = is_named(&machine, "one-family");
        assert!(said.contains("nobody listens on 0.0.0.0:22"), "{said}");
    }

    pub(super) fn the_service_is_not_where_its_files_say(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        machine.root().append("/etc/ssh/sshd_config", "Port 2222\n");
        is_named(&machine, "not-restarted");

        machine.root().write("/etc/default/ssh", "SSHD_OPTS=\"-p 2299\"\n");
        machine.sh("systemctl restart ssh.service");
        let said = is_named(&machine, "command-line");
        assert!(said.contains("/etc/default/ssh") && said.contains("-p 2299"), "{said}");

        somebody_listens(&machine, "0.0.0.0 2233");
        machine.sh("harden rollback -y");
        machine.root().write("/etc/default/ssh", "SSHD_OPTS=\n");
        machine
            .sh("sed -i '/^Port/d' /etc/ssh/sshd_config; echo Port 2233 >> /etc/ssh/sshd_config");
        machine.sh("systemctl restart ssh.service");
        let said = is_named(&machine, "port-taken");
        assert!(
            said.contains("nc (pid ") && said.contains("systemctl stop other.service"),
            "{said}"
        );
        machine.sh("systemctl stop other.service");
        is_named(&machine, "one-family");
    }

    pub(super) fn the_service_does_not_run(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        machine.sh("systemctl mask --now ssh.service");
        is_named(&machine, "masked");
        machine.sh("touch /etc/ssh/sshd_not_to_be_run; systemctl restart ssh.service");
        is_named(&machine, "condition");
        machine.sh("systemctl disable --now ssh.service");
        is_named(&machine, "not-running");
        machine.root().append("/etc/ssh/sshd_config", "Nonsense\n");
        machine.exec("for i in 1 2 3 4 5 6; do systemctl restart ssh.service; done");
        machine.sh("sed -i '/^Nonsense/d' /etc/ssh/sshd_config");
        is_named(&machine, "failed");
    }

    pub(super) fn the_configuration_is_refused(suite: Suite) {
        let machine = Machine::boot(suite, |root| {
            root.append("/etc/ssh/sshd_config", "Match User sftp\nX11Forwarding no\n");
        });
        machine.root().append("/etc/ssh/sshd_config", "Port 2222\n");
        let said = is_named(&machine, "match-block");
        assert!(said.contains("not allowed within a Match block"), "{said}");
        machine.sh("sed -i 's/^Port/Prot/' /etc/ssh/sshd_config");
        let said = is_named(&machine, "config-invalid");
        assert!(said.contains("Prot"), "{said}");
        machine.sh("sed -i '/^Prot/d' /etc/ssh/sshd_config");
        is_healthy(&machine);
        // For everybody, and then not for some.
        machine.sh("sed -i '1i PasswordAuthentication no' /etc/ssh/sshd_config");
        machine.root().append("/etc/ssh/sshd_config", "PasswordAuthentication yes\n");
        machine.sh("systemctl restart ssh.service");
        let said = is_named(&machine, "match-shadowing");
        assert!(
            said.contains("`PasswordAuthentication no` does not apply to `Match User sftp`"),
            "{said}"
        );
        machine.sh("sed -i 's/^PasswordAuthentication no/PermitRootLogin prohibit-password/; \
                    s/^PasswordAuthentication yes/PermitRootLogin yes/' /etc/ssh/sshd_config");
        machine.sh("systemctl restart ssh.service");
        let said = is_named(&machine, "match-shadowing");
        assert!(said.contains("`PermitRootLogin prohibit-password` does not apply"), "{said}");
    }
}

/// It runs, and nothing would start it again; or something of an administrator's own would.
#[test]
fn what_would_not_start_after_a_reboot() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        // Not by `systemctl disable`: systemd 257 may lose an sshd whose unit loses its alias.
        let without_links = |root: &crate::root::Root| {
            root.remove("/etc/systemd/system/sshd.service");
            root.remove("/etc/systemd/system/multi-user.target.wants/ssh.service");
        };
        let machine = Machine::boot(suite, without_links);
        machine.sh("systemctl start ssh.service");
        is_named(&machine, "not-enabled");
        let machine = Machine::boot(suite, |root| {
            without_links(root);
            let wants = "[Unit]\nWants=ssh.service\n";
            root.write("/etc/systemd/system/multi-user.target.d/own.conf", wants);
        });
        is_healthy(&machine);
    }
}

/// What only a person can decide: named, and the unit in which it stands.
#[test]
fn units_that_stand_in_the_way() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let drop_in = "/etc/systemd/system/ssh.service.d/own.conf";
    let with = |lines: &str| {
        machine.root().write(drop_in, &format!("[Service]\n{lines}\n"));
        machine
            .exec("systemctl daemon-reload; systemctl reset-failed; systemctl restart ssh.service");
    };
    with("RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET");
    let said = is_named(&machine, "one-family");
    assert!(said.contains("RestrictAddressFamilies=") && said.contains("AF_INET6"), "{said}");
    with("RestrictAddressFamilies=~AF_INET");
    assert!(is_named(&machine, "one-family").contains("forbids AF_INET:"));

    with("ExecStart=\nExecStart=/usr/sbin/sshd -D -p 2299");
    let said = is_named(&machine, "command-line");
    assert!(said.contains("take `-p 2299` out of where"), "{said}");

    machine.sh("cp /etc/ssh/sshd_config /etc/ssh/other");
    with("ExecStart=\nExecStart=/usr/sbin/sshd -D -f /etc/ssh/other");
    is_named(&machine, "other-config");

    with("[Unit]\nConditionHost=elsewhere");
    let said = is_named(&machine, "condition");
    assert!(said.contains("ConditionHost=elsewhere") && said.contains(drop_in), "{said}");

    with("[Unit]\nAssertPathExists=/nowhere");
    let said = is_named(&machine, "condition");
    assert!(said.contains("AssertPathExists=/nowhere") && !said.contains("all is well"), "{said}");

    machine.root().write(
        "/etc/systemd/system/needed.service",
        "[Service]\nType=oneshot\nExecStart=/bin/false\n",
    );
    with("[Unit]\nBindsTo=needed.service\nAfter=needed.service");
    let said = is_named(&machine, "dependency");
    assert!(said.contains("without needed.service, which has failed"), "{said}");

    with("PrivateNetwork=yes");
    is_named(&machine, "own-network");
    with("Type=simple\nExecStart=\nExecStart=/usr/bin/sleep infinity");
    assert!(is_named(&machine, "other-program").contains("runs sleep, and not sshd"));

    machine.sh(&format!(
        "rm {drop_in}; systemctl daemon-reload; systemctl reset-failed; systemctl restart ssh.service"
    ));
    is_healthy(&machine);
    let ports: String = (2201..2220).map(|port| format!("Port {port}\n")).collect();
    machine.root().write("/etc/ssh/sshd_config.d/ports.conf", &ports);
    machine.exec("systemctl restart ssh.service");
    is_named(&machine, "too-many");
    machine.root().remove("/etc/ssh/sshd_config.d/ports.conf");
    machine.sh("systemctl reset-failed; systemctl restart ssh.service");
    is_healthy(&machine);
    machine.sh("mkdir keys; mv /etc/ssh/ssh_host_* keys; systemctl stop ssh.service");
    is_named(&machine, "no-host-keys");
    machine.sh("echo HostKey /etc/ssh/own > own; cat /etc/ssh/sshd_config >> own; cp own /etc/ssh/sshd_config");
    let said = is_named(&machine, "no-host-keys");
    assert!(said.contains("`HostKey /etc/ssh/own` (/etc/ssh/sshd_config:1)"), "{said}");
}

/// A remedy never ends the sshd that still runs; and what is meant so is no illness.
#[test]
fn remedies_do_no_harm() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("chmod 640 /etc/ssh/ssh_host_*_key");
    let said = is_named(&machine, "open-host-keys");
    assert!(said.contains("are too open"), "{said}");
    machine.spec(
        "version: 1\nssh: {settings: {PasswordAuthentication: no}, match: [{criteria: {User: deploy}, \
         settings: {PasswordAuthentication: yes}}]}\n",
    );
    machine.apply().code(0);
    is_healthy(&machine);
    machine.root().append(
        "/etc/ssh/sshd_config",
        "DisableForwarding no\nMatch User sftp\nDisableForwarding yes\n",
    );
    machine.sh("systemctl restart ssh.service");
    is_healthy(&machine);
    // An sshd of a container's.
    machine.sh(
        "setsid systemd-run --quiet --scope --unit=docker-1 /usr/sbin/sshd -D -p 2290 -o PidFile=none \
         >/dev/null 2>&1 &",
    );
    machine.wait_for("listener", "ss -Hltn | grep -q :2290");
    is_healthy(&machine);
    machine.sh("systemctl stop docker-1.scope");
    // A spec of its own would take back what this one says.
    machine.root().write("/etc/default/ssh", "SSHD_OPTS=\"-ep 2299\"\n");
    machine.sh("systemctl restart ssh.service");
    let said = is_named(&machine, "command-line");
    assert!(said.contains("let the `ssh` section of your spec say"), "{said}");
    machine.root().write("/etc/default/ssh", "SSHD_OPTS=\"-o PermitRootLogn=no\"\n");
    machine.exec("systemctl restart ssh.service");
    let said = is_named(&machine, "command-line");
    assert!(
        said.contains("sshd refuses its command line") && said.contains("PermitRootLogn"),
        "{said}"
    );
}

/// ssh.socket does not start beside the sshd that it has started.
#[test]
fn a_socket_whose_sshd_runs() {
    let machine = socket_system(Suite::Trixie);
    machine.root().write(
        "/etc/systemd/system/ssh.socket.d/port.conf",
        "[Socket]\nListenStream=\nListenStream=2222\n",
    );
    machine.root().append("/etc/ssh/sshd_config", "Port 2222\n");
    machine.ssh(22, "systemctl daemon-reload").ok();
    machine.sh("systemctl is-active ssh.service");
    let said = is_named(&machine, "stale-socket");
    assert!(said.contains("systemctl stop ssh.service && "), "{said}");
}

/// A socket that listens is of no use where nothing can start the service behind it.
#[test]
fn the_service_behind_a_socket_cannot_start() {
    for suite in [Suite::Bookworm, Suite::UbuntuLike] {
        let machine = socket_system(suite);
        machine.sh("systemctl stop ssh.service; systemctl restart ssh.socket");
        // What did not hold at the last start may hold by now.
        machine.sh("touch /etc/ssh/sshd_not_to_be_run; systemctl start ssh.service; \
                    rm /etc/ssh/sshd_not_to_be_run; systemctl restart ssh.socket");
        is_healthy(&machine);
        machine.sh("systemctl mask ssh.service");
        is_named(&machine, "masked");
        machine.sh("touch /etc/ssh/sshd_not_to_be_run");
        is_named(&machine, "condition");
        let drop_in = "/etc/systemd/system/ssh.service.d/x.conf";
        machine
            .root()
            .write(drop_in, "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -o Foo=bar\n");
        machine.sh(
            "systemctl daemon-reload; systemctl stop ssh.service; systemctl restart ssh.socket",
        );
        is_named(&machine, "command-line");
        machine.root().remove(drop_in);
        machine.sh("systemctl daemon-reload");
        is_healthy(&machine);
    }
    // One that runs would not start again.
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.sh("touch /etc/ssh/sshd_not_to_be_run");
    is_named(&machine, "condition");
    machine.sh("systemctl mask ssh.service");
    let (causes, report) = diagnosis(&machine);
    assert_eq!(causes, ["not-enabled"], "{report:#}");
}

/// Ubuntu's ssh.service does not start without its socket.
#[test]
fn the_socket_is_masked() {
    let machine = Machine::boot(Suite::UbuntuLike, |root| root.socket_owns_port(Suite::UbuntuLike));
    machine.exec("systemctl mask --now ssh.socket; systemctl stop ssh.service");
    let said = is_named(&machine, "masked");
    assert!(said.contains("ssh.socket is masked"), "{said}");
}

/// What is somebody's own, and an address that nobody has.
#[test]
fn others_are_left_alone() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write(
            "/etc/systemd/system/sshd-own.service",
            "[Service]\nExecStart=/usr/sbin/sshd -D -p 2299 -o PidFile=none\n",
        );
    });
    machine.sh("systemctl start sshd-own.service");
    machine.wait_for("listener", "ss -Hltn | grep -q :2299");
    is_healthy(&machine);
    machine.root().append("/etc/ssh/sshd_config", "ListenAddress 10.99.0.1\n");
    let said = is_named(&machine, "no-such-address");
    assert!(said.contains("no interface of this host has 10.99.0.1"), "{said}");
    // An address that came after the start of sshd.
    machine
        .sh("echo ListenAddress 127.0.0.1 >> /etc/ssh/sshd_config; systemctl restart ssh.service");
    machine.sh("ip address add 10.99.0.1/32 dev lo");
    let said = is_named(&machine, "late-address");
    assert!(said.contains("10.99.0.1:22 could be had"), "{said}");
    machine.sh("systemctl restart ssh.service");
    is_healthy(&machine);
    machine.sh(
        "ip address del 10.99.0.1/32 dev lo; sed -i '/^ListenAddress 127/d' /etc/ssh/sshd_config",
    );
    // An address with a zone, which cannot be compared; what does not run is no healthy host.
    machine.sh("sed -i 's/^ListenAddress.*/ListenAddress fe80::99%lo/' /etc/ssh/sshd_config");
    machine.exec("systemctl restart ssh.service");
    let said = diagnosis(&machine).0;
    assert!(said == ["failed"] || said == ["no-such-address"], "{said:?}");
    // It started with one family, by its files of then.
    machine.sh("sed -i 's/^ListenAddress.*/AddressFamily inet/' /etc/ssh/sshd_config");
    machine.sh("systemctl reset-failed ssh.service; systemctl restart ssh.service; sleep 1; \
                sed -i '/^AddressFamily/d' /etc/ssh/sshd_config");
    is_named(&machine, "not-restarted");
    // The socket says where it listens, and the files say nothing.
    let machine = socket_system(Suite::Trixie);
    let drop_in = "[Socket]\nListenStream=\nListenStream=2222\n";
    machine.root().write("/etc/systemd/system/ssh.socket.d/port.conf", drop_in);
    machine.sh("systemctl daemon-reload; systemctl restart ssh.socket");
    is_healthy(&machine);
    // One port, and another program on one address of it.
    somebody_listens(&machine, "10.77.0.2 2244");
    machine.sh("echo Port 2244 >> /etc/ssh/sshd_config; systemctl disable --now ssh.socket");
    machine.exec("systemctl enable ssh.service; systemctl restart ssh.service");
    is_named(&machine, "port-taken");
}

/// The generator reads sshd_config at a daemon-reload alone.
#[test]
fn the_generator_has_not_read_it() {
    let machine = Machine::boot(Suite::UbuntuLike, |root| root.socket_owns_port(Suite::UbuntuLike));
    is_healthy(&machine);
    machine.root().append("/etc/ssh/sshd_config", "Port 2200\n");
    is_named(&machine, "generator");
    machine.root().append("/etc/ssh/sshd_config", "Port 2201\n");
    machine.sh("systemctl daemon-reload");
    is_named(&machine, "stale-socket");
    // It reads no `ListenAddress 0.0.0.0`, and goes on as it did.
    let machine = Machine::boot(Suite::UbuntuLike, |root| root.socket_owns_port(Suite::UbuntuLike));
    machine.root().append("/etc/ssh/sshd_config", "ListenAddress 0.0.0.0\n");
    machine.sh("systemctl daemon-reload; systemctl restart ssh.socket");
    is_named(&machine, "generator");
}

/// On Ubuntu too an administrator's own drop-in decides, and a reload does not mend that.
#[test]
fn the_generator_is_overruled() {
    let machine = Machine::boot(Suite::UbuntuLike, |root| root.socket_owns_port(Suite::UbuntuLike));
    let drop_in = "[Socket]\nListenStream=\nListenStream=0.0.0.0:2200\nListenStream=[::]:2200\n";
    machine.root().write("/etc/systemd/system/ssh.socket.d/override.conf", drop_in);
    machine.sh("systemctl daemon-reload; systemctl restart ssh.socket");
    let said = is_named(&machine, "socket-owns-port");
    assert!(said.contains("ssh.socket.d/override.conf decides"), "{said}");
}

/// What a restart or the next boot would bring.
#[test]
fn what_comes_later_counts() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.root().append("/etc/ssh/sshd_config", "Port 2222\n");
    machine.root().write("/etc/default/ssh", "SSHD_OPTS=-p2299\n");
    let said = is_named(&machine, "command-line");
    assert!(said.contains("-p2299"), "{said}");

    // ssh.socket does not heed it; and stopped by hand, it has the port again after a boot.
    let machine = socket_system(Suite::Trixie);
    machine.root().write("/etc/default/ssh", "SSHD_OPTS=-p2299\n");
    machine.root().append("/etc/ssh/sshd_config", "Port 2222\n");
    let (causes, report) = diagnosis(&machine);
    assert_eq!(causes, ["socket-owns-port"], "{report:#}");
    machine.root().write("/etc/default/ssh", "SSHD_OPTS=\n");
    machine.sh("systemctl stop ssh.socket; systemctl restart ssh.service");
    let said = is_named(&machine, "socket-at-boot");
    assert!(said.contains("after the next boot"), "{said}");
}

/// On Debian's unit the two collide.
#[test]
fn a_socket_that_failed() {
    let machine = socket_system(Suite::Trixie);
    let lines = "[Socket]\nListenStream=\nListenStream=0.0.0.0:2222\nListenStream=[::]:2222\n";
    machine.root().write("/etc/systemd/system/ssh.socket.d/own.conf", lines);
    machine
        .exec("systemctl daemon-reload; systemctl stop ssh.service; systemctl restart ssh.socket");
    let said = is_named(&machine, "failed");
    assert!(said.contains("[::]:2222 takes IPv4 too"), "{said}");
}

/// Where sshd does not answer nothing is proposed.
#[test]
fn a_silent_sshd_is_no_diagnosis() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("mkfifo /etc/ssh/sshd_config.d/f.conf");
    let said = machine.exec("harden doctor").code(1);
    assert!(said.stderr.contains("sshd does not say"), "{said:?}");
}

/// Two ways of half moving from ssh.socket to ssh.service by hand.
#[test]
fn half_a_move() {
    // sshd keeps the descriptor that it was started with.
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.socket_owns_port(Suite::Bookworm);
        root.append("/etc/ssh/sshd_config", "Port 2222\n");
    });
    machine.ssh(22, "systemctl disable --now ssh.socket; systemctl enable --now ssh.service").ok();
    is_named(&machine, "kept-socket");
    // systemd loses it.
    for _ in 0..8 {
        let machine = Machine::boot(Suite::Trixie, |root| {
            root.socket_owns_port(Suite::Trixie);
            root.append("/etc/ssh/sshd_config", "Port 2222\n");
        });
        machine
            .ssh(
                22,
                "systemctl stop ssh.socket; systemctl disable ssh.socket; \
                 systemctl enable ssh.service; systemctl restart ssh.service",
            )
            .ok();
        if machine.ssh(22, "true").code == 0 {
            is_named(&machine, "orphan");
            return;
        }
    }
    panic!("the trap never sprang");
}

/// A socket of its own address, which only its unit knows of: it is what has to run again.
#[test]
fn the_socket_alone_knows_the_port() {
    let own = "[Socket]\nListenStream=\nListenStream=2222\n";
    let machine = socket_system(Suite::Trixie);
    machine.root().write("/etc/systemd/system/ssh.socket.d/port.conf", own);
    machine.sh("systemctl daemon-reload; systemctl stop ssh.socket");
    let said = is_named(&machine, "not-running");
    assert!(said.contains("systemctl start ssh.socket"), "{said}");
    assert!(machine.sh("ss -Hltn").contains(":2222"), "it listens elsewhere");

    machine.sh("systemctl stop ssh.socket");
    somebody_listens(&machine, "0.0.0.0 2222");
    machine.exec("systemctl start ssh.socket");
    let said = is_named(&machine, "port-taken");
    assert!(said.contains("other.service"), "{said}");

    // What it has given to an sshd that still runs is not where it listens after the next boot.
    let machine = socket_system(Suite::Trixie);
    machine.root().write("/etc/ssh/sshd_config.d/10-p.conf", "Port 22\n");
    machine.ssh(22, "true").ok();
    machine.root().write("/etc/systemd/system/ssh.socket.d/port.conf", own);
    machine.sh("systemctl daemon-reload");
    is_named(&machine, "stale-socket");
    assert!(machine.sh("ss -Hltn").contains(":22 "), "it listens elsewhere");
}

/// A socket with `Accept=yes` needs no ssh.service: masked it is well, and no obstacle to an undo.
#[test]
fn a_socket_that_accepts_needs_no_service() {
    let machine = socket_system(Suite::Bullseye);
    machine.sh("systemctl mask ssh.service");
    is_healthy(&machine);
    machine.spec("version: 1\nssh: {port: 2222}\n");
    machine.apply().code(0);
    is_healthy(&machine);
    machine.exec("harden rollback -y").code(0);
    is_healthy(&machine);
    assert_eq!(machine.ssh(22, "echo in").stdout, "in\n");
}

/// A spec has each of its ports on each of its addresses: none is proposed that would open more.
#[test]
fn a_remedy_opens_nothing_more() {
    let machine = socket_system(Suite::Trixie);
    let pairs = "ListenAddress 10.77.0.2:2200\nListenAddress 127.0.0.1:2201\n";
    machine.root().write("/etc/ssh/sshd_config.d/10-a.conf", pairs);
    let said = is_named(&machine, "socket-owns-port");
    assert!(said.contains("other pairs"), "{said}");
    // An sshd that somebody has started by hand is not for an apply to end.
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("systemctl stop ssh; mkdir -p /run/sshd; \
         systemd-run -q --scope --unit=session-99.scope /usr/sbin/sshd");
    let said = is_named(&machine, "orphan");
    assert!(said.contains("has not started") && said.contains("systemctl start ssh"), "{said}");
    machine.sh("sshd -t && kill $(cat /run/sshd.pid) && systemctl start ssh.service");
    is_healthy(&machine);
}

/// Somebody has units of their own in place of the distribution's: nothing is wrong with that.
#[test]
fn units_of_somebodys_own() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let own = "/etc/systemd/system/own";
    machine.sh(&format!(
        "cp /usr/lib/systemd/system/ssh.service {own}.service; sed -i '/^Alias/d' {own}.service; \
         systemctl disable --now ssh.service; systemctl enable --now own.service"
    ));
    machine.ssh(22, "true").ok();
    is_healthy(&machine);
    machine.root().write(&format!("{own}.socket"), "[Socket]\nListenStream=22\nAccept=yes\n");
    let per_connection =
        "[Service]\nExecStart=-/usr/sbin/sshd -i\nStandardInput=socket\nRuntimeDirectory=sshd\n";
    machine.root().write(&format!("{own}@.service"), per_connection);
    machine.sh(
        "systemctl disable --now own.service; systemctl daemon-reload; systemctl start own.socket",
    );
    machine.ssh(22, "true").ok();
    is_healthy(&machine);
    machine.sh("systemctl stop own.socket");
    let (causes, report) = diagnosis(&machine);
    assert_eq!(causes, ["not-running"], "{report:#}");
}
