//! Files that somebody has changed and the sshd that runs has not read: it lets in whom they shut out, and the
//! next start of sshd, on the way there as on the way back, would not.

use crate::lockout::{is_refused, spec};
use crate::machine::{Machine, Suite, V4};
use crate::operator::{MOVE, socket_system};
use crate::state::{Want, assert_state, property, unchanged};
use crate::wayback::SAME_PORT;

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

/// Another folder has the place of /etc/ssh, with files that are older than sshd's start.
#[test]
fn another_folder_of_that_name() {
    let others = |line: &str, hide: &str| {
        format!(
            "cp -a /etc/ssh /etc/ssh.bak; sed -i '1i {line}' /etc/ssh.bak/sshd_config; sleep 1.1; \
             systemctl restart ssh.service; sleep 1.1; mv /etc/ssh /etc/ssh.new; mv /etc/ssh.bak /etc/ssh; {hide}"
        )
    };
    // So that the folder does not show it either.
    let hide = "touch /etc/ssh/x; rm /etc/ssh/x";
    let probe = "harden apply -y --confirm probe spec.yaml";
    for (suite, line, hide, why) in [
        (Suite::Bookworm, "AuthorizedKeysFile none", "", "has not read its files"),
        (Suite::Trixie, "AllowUsers olduser", hide, "not listed in AllowUsers (olduser)"),
        (Suite::Bookworm, "PermitRootLogin no\\nDenyUsers deploy", hide, "PermitRootLogin no"),
        (
            Suite::Trixie,
            "AuthorizedKeysFile none",
            hide,
            "sshd takes a key of root and deploy, and",
        ),
    ] {
        let machine = Machine::boot(suite, |_| {});
        machine.sh(&others(line, hide));
        for spec in [MOVE, SAME_PORT] {
            machine.spec(spec);
            let refused = unchanged(&machine, || machine.ssh(22, probe).code(1)).unwrapped();
            assert!(refused.contains(why), "{line}, {hide}: {refused}");
        }
        machine.ssh(22, "true").ok();
    }
}

/// A folder on the way to a file that a pattern finds.
#[test]
fn a_file_is_gone_that_a_pattern_found() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.write("/etc/ssh/site/a/local.conf", "PermitRootLogin yes\n");
        root.write(
            "/etc/ssh/sshd_config",
            "Include /etc/ssh/site/*/local.conf\nPermitRootLogin no\n",
        );
    });
    machine.spec(SAME_PORT);
    machine.sh("sleep 1.1; gpasswd -d deploy sudo; rm -f /etc/sudoers.d/deploy; rm /etc/ssh/site/a/local.conf");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.unwrapped().contains("PermitRootLogin no"), "{refused:?}");
}

/// What changes beside the files is none of theirs.
#[test]
fn what_is_no_change() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.append("/etc/ssh/sshd_config", "Include /etc/sshd_local.conf\n");
        root.write("/etc/sshd_local.conf", "MaxSessions 7\n");
    });
    machine.spec(SAME_PORT);
    machine.apply().code(0);
    for command in [
        "useradd bob",
        "sed -i 's/#.*//' /etc/ssh/ssh_config",
        "sed -i s/7/8/ /etc/sshd_local.conf; systemctl reload ssh.service; sleep 0.5",
    ] {
        machine.sh(command);
        machine.exec("harden verify spec.yaml").code(0);
        machine.exec("harden plan --exit-code spec.yaml").code(0);
    }
}

/// An own command in place of a shell, which gives one all the same: who is in with it gets in.
#[test]
fn who_gets_in_in_spite_of_a_command() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine
        .root()
        .write("/usr/local/bin/audited", "#!/bin/sh\nexec sh -c \"$SSH_ORIGINAL_COMMAND\"\n");
    machine.root().write(OWN, "ForceCommand /usr/local/bin/audited\n");
    machine.sh("chmod +x /usr/local/bin/audited; systemctl restart ssh.service");
    spec(&machine, "{AllowUsers: [bob]}", "");
    let planned = machine.ssh(22, "harden plan spec.yaml").code(1).unwrapped();
    assert!(
        planned.contains("root could not log in any more: not listed in AllowUsers"),
        "{planned}"
    );
    for settings in ["{PasswordAuthentication: no}", "{X11Forwarding: no}"] {
        for safety in ["", "safety: {admins: [root]}\n"] {
            spec(&machine, settings, safety);
            machine.ssh(22, "harden plan spec.yaml").code(0);
        }
    }
}

/// Whom the spec names, and who is in.
#[test]
fn who_is_listed_and_in() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    let deploy = machine.session_of("deploy", V4, 22);
    machine.root().write(OWN, "AllowUsers root\n");
    machine.spec(
        "version: 1\nssh: {port: 2222, socket: disabled}\nsafety: {admins: [deploy, root]}\n",
    );
    is_refused(&machine, &["deploy could not log in any more: not listed in AllowUsers (root)"]);
    drop(deploy);
}

/// A key that is for this host itself: sshd takes it over loopback, and from nowhere else.
#[test]
fn a_key_for_loopback_alone() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("ssh-keygen -q -t ed25519 -N '' -f own; (printf 'from=\"127.0.0.0/8\" '; cat own.pub) > .ssh/authorized_keys");
    machine.spec(MOVE);
    machine.exec("harden apply -y --confirm probe spec.yaml").code(0);
    machine.ssh_as("deploy", 2222, "true").ok();
}

/// A list that a rollback takes back means somebody whom it has let in.
#[test]
fn a_list_that_goes_back() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.append("/etc/ssh/sshd_config", "AllowUsers root\n");
    });
    machine.sh("useradd -m -G sudo -s /bin/sh bob; cp -r /root/.ssh /home/bob/.ssh; chown -R bob: /home/bob");
    spec(&machine, "{AllowUsers: [root, bob]}", "");
    machine.apply().code(0);
    machine.ssh_as("bob", 22, "true").ok();
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::service(22));
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
