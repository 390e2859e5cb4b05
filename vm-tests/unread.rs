//! Files that somebody has changed and the sshd that runs has not read: it lets in whom they shut out, and the
//! next start of sshd, on the way there as on the way back, would not.

use crate::lockout::{is_refused, spec};
use crate::machine::{Machine, Suite, V4};
use crate::operator::{MOVE, socket_system};
use crate::state::{Want, assert_state, property, unchanged};

const OWN: &str = "/etc/ssh/sshd_config.d/20-own.conf";
const SHUTS_OUT: &str = "echo 'AllowGroups nobody' > /etc/ssh/sshd_config.d/20-own.conf";

#[test]
fn a_move_by_service() {
    refused_until_mended(&Machine::boot(Suite::Bookworm, |_| {}));
}

#[test]
fn a_move_from_the_socket() {
    refused_until_mended(&socket_system(Suite::Trixie));
}

/// Whoever is shut out by the files as they are; and what shuts nobody out is none of harden's business.
fn refused_until_mended(machine: &Machine) {
    machine.spec(MOVE);
    machine.ssh(22, "true").ok();
    for (line, why) in [
        ("AllowGroups nobody", "in no group of AllowGroups"),
        ("AuthorizedKeysFile /etc/ssh/keys/%u", "no key of root's in /etc/ssh/keys/root"),
        ("PermitRootLogin no\nDenyUsers deploy", "PermitRootLogin no"),
    ] {
        machine.root().write(OWN, &format!("{line}\n"));
        is_refused(machine, &[why]);
        let there =
            unchanged(machine, || machine.ssh(22, "harden apply -y spec.yaml --confirm probe"));
        assert!(there.code(1).unwrapped().contains(why), "{line}");
    }
    machine.root().write(OWN, "MaxSessions 7\n");
    machine.apply().code(0);
    assert_state(machine, &Want::service(2222).with("maxsessions 7"));
}

/// The spec would mend it, and the way back would not.
#[test]
fn only_the_spec_lets_in() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh(SHUTS_OUT);
    spec(&machine, "{AllowGroups: [root, sudo]}", "");
    is_refused(&machine, &["has not read its files", "or undo what was changed"]);
}

/// Passwords alone, and the files take none any more.
#[test]
fn there_are_no_keys() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.sh("rm -r /root/.ssh /home/deploy/.ssh; echo deploy:x | chpasswd");
    machine.root().write(OWN, "PasswordAuthentication no\nKbdInteractiveAuthentication no\n");
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 4}}\n");
    let before = property(&machine, "ssh.service", "MainPID");
    let refused = machine.exec("harden apply -y --confirm probe spec.yaml").code(1);
    assert!(refused.unwrapped().contains("has not read its files"), "{refused:?}");
    assert_eq!(property(&machine, "ssh.service", "MainPID"), before);
}

/// On sshd's command line.
#[test]
fn options_that_it_was_not_started_with() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec(MOVE);
    machine.sh("echo 'SSHD_OPTS=\"-o AllowUsers=nobody\"' > /etc/default/ssh; touch -d '-1 hour' /etc/default/ssh");
    is_refused(&machine, &["not listed in AllowUsers (nobody)"]);
    let drop_in = "/etc/systemd/system/ssh.service.d/own.conf";
    let text = "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -o AllowUsers=nobody\n";
    machine.sh("echo SSHD_OPTS= > /etc/default/ssh");
    machine.root().write(drop_in, text);
    machine.sh("systemctl daemon-reload");
    is_refused(&machine, &["not listed in AllowUsers (nobody)"]);
}

/// What changes nothing restarts sshd all the same, and so does a rollback.
#[test]
fn a_second_run_and_a_rollback() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.spec(MOVE);
    machine.apply().code(0);
    machine.sh(SHUTS_OUT);
    is_refused(&machine, &["in no group of AllowGroups"]);
    let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
    assert!(refused.unwrapped().contains("in no group of AllowGroups"), "{refused:?}");
    machine.sh(&format!("rm {OWN}"));
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::service(22));
}

/// A spec that is silent of the port moves nothing.
#[test]
fn another_port() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.root().write(OWN, "Port 2022\n");
    spec(&machine, "{MaxAuthTries: 4}", "");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.unwrapped().contains("say 0.0.0.0:2022"), "{refused:?}");
    machine.spec("version: 1\nssh: {port: 2022, settings: {MaxAuthTries: 4}}\n");
    machine.apply().code(0);
    assert_state(&machine, &Want::service(2022).with("maxauthtries 4"));
}

/// Files that sshd was asked to read again are read.
#[test]
fn after_a_reload() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    spec(&machine, "{MaxAuthTries: 4}", "");
    machine.apply().code(0);
    machine.root().write(OWN, "PermitRootLogin no\nDenyUsers deploy\n");
    machine.exec("harden plan --exit-code spec.yaml").code(1);
    machine.root().write(OWN, "MaxSessions 7\n");
    machine.exec("harden plan --exit-code spec.yaml").code(3);
    machine.sh("sleep 1.2; systemctl reload ssh.service; sleep 0.5");
    machine.exec("harden plan --exit-code spec.yaml").code(0);
}

/// Root, who is not in, never got in, and nobody becomes root by sudo: the guards have nothing against a plan that
/// leaves that alone. No login can be tried, and it is told what helps.
#[test]
fn who_is_in_gets_in() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.root().append("/etc/ssh/sshd_config", "PermitRootLogin no\n");
    machine.sh("gpasswd -d deploy sudo; rm -f /etc/sudoers.d/deploy; systemctl restart ssh.service; sleep 1");
    let deploy = machine.session_of("deploy", V4, 22);
    machine.spec(MOVE);
    machine.root().write(OWN, "MaxSessions 7\n");
    machine.exec("harden plan spec.yaml").code(0);
    let back = machine.apply().code(4);
    assert!(
        back.unwrapped().contains("systemctl restart ssh.service has it read them"),
        "{back:?}"
    );
    machine.sh("systemctl restart ssh.service");
    machine.apply().code(0);
    machine.ssh_as("deploy", 2222, "true").ok();
    drop(deploy);
}
