//! Ubuntu 24.04's unit shape and generator, on Debian 12's systemd: *Ubuntu-like*.

use crate::machine::{Machine, Suite};
use crate::state::{Want, assert_for_good, assert_state, property, unchanged};

const MOVE: &str = "version: 1\nssh:\n  port: 2222\n  socket: disabled\n";

fn fresh() -> Machine {
    let machine = Machine::boot(Suite::UbuntuLike, |root| root.socket_owns_port(Suite::UbuntuLike));
    assert_state(&machine, &Want::socket(22));
    machine
}

/// Trap 5: the socket is required by the service; stopping one stops the other, and starting the
/// service brings the socket back.
#[test]
fn moves_off_the_required_socket() {
    let mut machine = fresh();
    assert!(property(&machine, "ssh.service", "Requires").contains("ssh.socket"));
    let mut old = machine.session(22);
    machine.spec(MOVE);
    machine.ssh(22, "harden apply -y spec.yaml").code(0);
    assert!(old.lives(), "the old session died");
    assert!(!property(&machine, "ssh.service", "Requires").contains("ssh.socket"));
    assert_for_good(&mut machine, &Want::service(2222));
}

#[test]
fn keeps_the_socket_on_another_port() {
    let mut machine = fresh();
    let mut old = machine.session(22);
    machine.spec("version: 1\nssh: {port: 2222}\n");
    machine.ssh(22, "harden apply -y spec.yaml").code(0);
    assert!(old.lives(), "the old session died");
    assert_for_good(&mut machine, &Want::socket(2222));
}

/// There and back: the socket is required again, and nothing of harden's is left on the way.
#[test]
fn goes_back_to_the_socket() {
    let mut machine = fresh();
    machine.spec(MOVE);
    machine.apply().code(0);
    machine.spec("version: 1\nssh: {port: 22, socket: enabled}\n");
    machine.apply().code(0);
    assert!(property(&machine, "ssh.service", "Requires").contains("ssh.socket"));
    assert_for_good(&mut machine, &Want::socket(22));
}

/// Traps 3 and 4: `Port`, then anything that reloads: systemd has closed the port, says that all
/// is well, and does not know that it should look again.
#[test]
fn revives_a_socket_that_a_reload_closed() {
    for (spec, want) in [
        (MOVE, Want::service(2222)),
        ("version: 1\nssh: {port: 2222, socket: enabled}\n", Want::socket(2222)),
    ] {
        let mut machine = fresh();
        machine.root().append("/etc/ssh/sshd_config", "Port 2200\n");
        assert_eq!(property(&machine, "ssh.socket", "NeedDaemonReload"), "no");
        machine
            .sh("systemctl stop ssh.service; systemctl start ssh.socket; systemctl daemon-reload");
        assert_eq!(property(&machine, "ssh.socket", "ActiveState"), "active");
        assert_eq!(machine.sh("ss -Htln"), "", "the trap is sprung: nobody listens");
        machine.spec(spec);
        machine.apply().code(0);
        assert_for_good(&mut machine, &want);
    }
}

/// Trap 10: with a configuration that sshd refuses, one connection would fail the socket for good.
#[test]
fn refuses_to_build_on_a_broken_configuration() {
    let machine = fresh();
    machine.root().append("/etc/ssh/sshd_config", "PermitRootLogin perhaps\n");
    machine.spec(MOVE);
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.stderr.contains("/etc/ssh/sshd_config"), "{refused:?}");
    // And a spec that would break it is refused before it does.
    let good = fresh_after(machine);
    good.spec("version: 1\nssh: {settings: {PermitRootLogin: perhaps}}\n");
    let refused = unchanged(&good, || good.apply().code(2));
    assert!(refused.stderr.contains("spec.yaml:2:"), "{refused:?}");
    assert_state(&good, &Want::socket(22));
}

fn fresh_after(machine: Machine) -> Machine {
    drop(machine);
    fresh()
}

/// Masked but not disabled, as a well-known hardening role leaves it: ssh.service cannot start.
#[test]
fn mends_a_masked_socket_that_is_required() {
    let mut machine = fresh();
    machine.sh("systemctl stop ssh.socket");
    machine.root().link("/etc/systemd/system/ssh.socket", "/dev/null");
    machine.sh("systemctl daemon-reload");
    assert_ne!(machine.exec("systemctl start ssh.service").code, 0, "the trap is sprung");
    machine.spec(MOVE);
    machine.apply().code(0);
    assert_for_good(&mut machine, &Want::service(2222));
}

#[test]
fn clears_what_earlier_releases_left() {
    let mut machine = Machine::boot(Suite::UbuntuLike, |root| {
        root.socket_owns_port(Suite::UbuntuLike);
        root.write(
            "/etc/systemd/system/ssh.socket.d/addresses.conf",
            "[Socket]\nListenStream=\nListenStream=0.0.0.0:2200\nListenStream=[::]:2200\n",
        );
        root.write(
            "/etc/systemd/system/ssh.service.d/00-socket.conf",
            "[Unit]\nAfter=ssh.socket\nRequires=ssh.socket\n",
        );
    });
    assert_state(&machine, &Want::socket(2200));
    machine.spec(MOVE);
    machine.ssh(2200, "harden apply -y spec.yaml").code(0);
    assert_for_good(&mut machine, &Want::service(2222));
}

#[test]
fn a_failed_move_is_taken_back() {
    let mut machine = Machine::boot(Suite::UbuntuLike, |root| {
        root.socket_owns_port(Suite::UbuntuLike);
        root.write(
            "/etc/systemd/system/ssh.service.d/sabotage.conf",
            "[Service]\nExecStartPre=/bin/sh -c '! grep -rqs \"^Port 2222\" /etc/ssh'\n",
        );
    });
    let mut old = machine.session(22);
    machine.spec(MOVE);
    unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(4));
    assert!(old.lives(), "the old session died");
    assert_state(&machine, &Want::socket(22));
    machine.reboot();
    assert_state(&machine, &Want::socket(22));
}
