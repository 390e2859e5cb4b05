//! A port on its way from one owner to the next, and units that were not well before: an sshd that systemd
//! has lost, a unit that had failed, a stop that takes long, another program that is faster.

use crate::gap::Watch;
use crate::machine::{Machine, Suite};
use crate::operator::socket_system;
use crate::state::{Want, assert_closed, assert_over, unchanged, wait_until_idle};

/// Only settings change, and the port stays.
const SETTINGS: &str = "version: 1\nssh: {socket: keep, settings: {MaxAuthTries: 4}}\n";

/// Debian 13: one login has started ssh.service, and enabling it makes systemd forget that it runs. The
/// sshd listens on, over the descriptor that ssh.socket has too, and where it ends systemd crashes.
#[test]
fn a_lost_sshd_that_shares_the_sockets_descriptor() {
    for spec in ["{port: 2222, socket: disabled}", "{socket: disabled}"] {
        let mut machine = socket_system(Suite::Trixie);
        // It does not always come to that.
        let lost =
            "systemctl enable ssh.service; test $(systemctl is-active ssh.service) = inactive";
        let mut tries = 0;
        while machine.ssh(22, "true").ok().is_empty() && machine.exec(lost).code != 0 {
            tries += 1;
            assert!(tries < 10, "systemd never loses it");
            machine = socket_system(Suite::Trixie);
        }
        let mut old = machine.session(22);
        machine.spec(&format!("version: 1\nssh: {spec}\n"));
        let refused = unchanged(&machine, || machine.apply().code(1));
        let said: Vec<&str> = refused.stderr.split_whitespace().collect();
        assert!(said.join(" ").contains("Reboot, then apply again"), "{refused:?}");
        assert!(old.lives());
        machine.reboot();
        machine.apply().code(0);
        assert_over(&mut machine, &Want::service(if spec.contains("2222") { 2222 } else { 22 }));
    }
}

/// Replaces what ssh.service checks before it starts by a script that is run as often as it starts.
fn checks(machine: &Machine, script: &str) {
    machine.root().write("/usr/local/sbin/check", &format!("#!/bin/sh\n{script}\n"));
    machine.root().write(
        "/etc/systemd/system/ssh.service.d/check.conf",
        "[Service]\nExecStartPre=\nExecStartPre=/usr/local/sbin/check\n",
    );
    machine.sh(
        "chmod 755 /usr/local/sbin/check; systemctl daemon-reload; systemctl restart ssh.service",
    );
}

/// ssh.service refuses to start with the new settings: the trial has not hung up for it, so that all in all
/// the port changes hands twice, to the trial and back.
#[test]
fn a_check_of_the_service_fails() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let machine = Machine::boot(suite, |_| {});
        checks(&machine, "! grep -qs 'MaxAuthTries 4' /etc/ssh/sshd_config.d/00-harden.conf");
        machine.spec(SETTINGS);
        let watch = Watch::table(&machine, &[22]);
        unchanged(&machine, || machine.apply().code(4));
        let seen = watch.end();
        assert_eq!(seen.gaps.len(), 2, "{seen:?}");
        // Nor has it been without the port until systemd gave up.
        let journal = machine.sh("journalctl -u ssh.service");
        assert!(!journal.contains("Start request repeated too quickly"), "{journal}");
        assert_closed(&machine);
    }
}

/// harden is held up just when ssh.service may have the port, so that its sshd finds it taken: by the trial,
/// or, of one family alone, by somebody else.
#[test]
fn the_service_comes_too_early() {
    let held_up = "p=$(pgrep -f '[.]harden worker'); kill -STOP $p; \
                   systemd-run --no-block sh -c \"sleep 1; kill -CONT $p\"";
    let one_family = "systemctl kill 'harden-trial-*.service'; sleep 0.1; \
                      systemd-run --no-block timeout 0.9 nc -4 -k -l 22; sleep 0.3";
    for suite in [Suite::Bookworm, Suite::Trixie] {
        for meanwhile in [held_up, one_family] {
            let mut machine = Machine::boot(suite, |_| {});
            let once = "grep -qs 'MaxAuthTries 4' /etc/ssh/sshd_config.d/00-harden.conf || exit 0\n\
                        mkdir /root/once || exit 0";
            checks(&machine, &format!("{once}\n{meanwhile}"));
            machine.spec(SETTINGS);
            machine.apply().code(0);
            let journal = machine.sh("journalctl -u ssh.service");
            assert!(journal.contains("Address already in use"), "{journal}");
            assert_over(&mut machine, &Want::service(22));
        }
    }
}

/// ssh.socket has failed, and nothing can make it fail again: that must not keep the change open.
#[test]
fn a_unit_that_had_failed_before() {
    let mut machine = Machine::boot(Suite::Trixie, |_| {});
    let fail = "systemctl stop ssh.service; nc -6 -k -l 22 & thief=$!; sleep 0.5; \
                ! systemctl start ssh.socket && systemctl is-failed ssh.socket; failed=$?; \
                kill $thief; wait; systemctl start ssh.service; exit $failed";
    machine.sh(fail);
    machine.spec(SETTINGS);
    machine.apply_in_background("300s");
    machine.cut_power_and_wait(60);
    wait_until_idle(&machine);
    assert_closed(&machine);
    machine.apply().code(0);
    assert_over(&mut machine, &Want::service(22));
}

/// From now on ssh.service runs a command of the shell when it has stopped.
fn after_stop(machine: &Machine, command: &str) {
    let drop_in = format!("[Service]\nTimeoutStopSec=90\nExecStopPost=/bin/sh -c '{command}'\n");
    machine.root().write("/etc/systemd/system/ssh.service.d/after.conf", &drop_in);
    machine.sh("systemctl daemon-reload");
}

/// The trial's start waits for a stop that takes longer than anybody waits. It must not come later, when
/// the change has been taken back.
#[test]
fn a_stop_that_takes_long() {
    let mut machine = Machine::boot(Suite::Trixie, |_| {});
    after_stop(&machine, "[ -e /run/slow ] && exec sleep 65 || true");
    machine.sh("systemctl restart ssh.service");
    machine.spec(SETTINGS);
    machine.sh("touch /run/slow");
    machine.apply().code(4);
    machine.sh("rm /run/slow");
    assert_closed(&machine);
    assert_over(&mut machine, &Want::service(22));
}

/// Another program takes the port as soon as it is free, and keeps it for longer than the guard waits. Then
/// nobody can listen; but when it lets go, somebody does.
#[test]
fn a_program_that_is_faster() {
    let mut machine = Machine::boot(Suite::Trixie, |_| {});
    let thief = "[ -e /run/taken ] || systemd-run --unit=thief --collect timeout 45 nc -6 -k -l 22; \
                 touch /run/taken; sleep 0.5";
    after_stop(&machine, thief);
    machine.sh("touch /run/taken; systemctl restart ssh.service; rm /run/taken");
    machine.spec(SETTINGS);
    machine.exec("harden apply -y --timeout 10s spec.yaml").code(5);
    machine.wait_for("the port to be free", "! pgrep -x nc");
    machine.wait_for("a way in", "ss -Htln sport = :22 | grep -q .");
    assert_eq!(machine.ssh(22, "echo in").stdout, "in\n");
    // The guard may have come to it first.
    machine.ssh(22, "harden status | grep -q needs-operator && harden rollback; true").ok();
    wait_until_idle(&machine);
    assert_closed(&machine);
    assert_over(&mut machine, &Want::service(22));
}

/// While a trial runs the system goes down in order: no unit's stop is dropped to break a cycle.
#[test]
fn the_trial_is_in_nobodys_way_when_the_system_goes_down() {
    let mut machine = socket_system(Suite::Trixie);
    machine.sh("mkdir -p /var/log/journal; systemctl restart systemd-journald; journalctl --flush");
    machine.apply_in_background("300s");
    machine.reboot();
    wait_until_idle(&machine);
    let log = machine.sh("journalctl -b -1 --no-pager; true");
    assert!(log.contains("harden-trial"), "{log}");
    assert!(!log.contains("ordering cycle"), "{log}");
    assert_over(&mut machine, &Want::socket(22));
}
