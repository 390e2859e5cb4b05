//! What the guards make of keys and of where somebody comes from, where that is not in a file or not as it seems.

use crate::lockout::{is_refused, spec};
use crate::machine::{Machine, Suite};
use crate::state::unchanged;

/// Refused in a session from outside, with nothing changed.
#[track_caller]
fn is_refused_there(machine: &Machine, parts: &[&str]) {
    let apply = "harden apply -y --confirm probe spec.yaml";
    let refused = unchanged(machine, || machine.ssh(22, apply).code(1));
    for part in parts {
        assert!(refused.unwrapped().contains(part), "{part}: {refused:?}");
    }
}

/// A machine with lines in front of sshd_config.
fn with_lines(suite: Suite, lines: &str) -> Machine {
    let machine = Machine::boot(suite, |_| {});
    machine.root().write("/etc/ssh/sshd_config.d/10-own.conf", lines);
    machine
}

/// A certificate, or a key from a command, opened this session, and others have keys in files.
#[test]
fn what_opened_this_session_is_in_no_file() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let machine = with_lines(suite, "TrustedUserCAKeys /etc/ssh/ca.pub\n");
        machine.sh("ssh-keygen -q -t ecdsa -N '' -f ca; cp ca.pub /etc/ssh; cp .ssh/authorized_keys u.pub; \
             ssh-keygen -q -s ca -I adm -n root -V -1h:+1d u.pub; ssh-keygen -q -t ed25519 -N '' -f other; \
             cp other.pub .ssh/authorized_keys; touch /etc/ssh/revoked; systemctl restart ssh.service");
        machine.present("-cert.pub", &machine.sh("cat u-cert.pub"));
        for (settings, why) in [
            ("{TrustedUserCAKeys: none}", "TrustedUserCAKeys has not the key SHA256:"),
            ("{CASignatureAlgorithms: ssh-ed25519}", "CASignatureAlgorithms does not take ECDSA"),
            (
                "{PubkeyAcceptedAlgorithms: ssh-ed25519}",
                "PubkeyAcceptedAlgorithms does not take ED25519-CERT",
            ),
            ("{AuthorizedPrincipalsFile: /etc/ssh/%u}", "AuthorizedPrincipalsFile changes"),
            ("{RevokedKeys: /etc/ssh/revoked}", "RevokedKeys changes"),
        ] {
            spec(&machine, settings, "");
            let what = "the certificate with which root opened this session";
            is_refused_there(&machine, &[what, why]);
        }
        machine.spec("version: 1\nssh: {profile: strict}\n");
        is_refused_there(&machine, &["CASignatureAlgorithms does not take ECDSA"]);
        machine.sh("cp ca.pub /etc/ssh/new.pub");
        spec(&machine, "{TrustedUserCAKeys: /etc/ssh/new.pub}", "");
        machine.ssh(22, "harden apply -y --confirm probe spec.yaml").code(0);
        machine.ssh(22, "true").code(0);
        // A line of authorized_keys may name the authority.
        machine.sh("harden rollback -y; rm /etc/ssh/sshd_config.d/10-own.conf; mkdir /etc/ssh/keys; \
             cp other.pub /etc/ssh/keys/root; sed 's/^/cert-authority /' ca.pub >> .ssh/authorized_keys; \
             systemctl restart ssh.service");
        spec(&machine, "{AuthorizedKeysFile: /etc/ssh/keys/%u}", "");
        is_refused_there(&machine, &["AuthorizedKeysFile changes"]);
    }
}

#[test]
fn what_opened_this_session_comes_from_a_command() {
    let lines = "AuthorizedKeysCommand /usr/local/bin/keys\nAuthorizedKeysCommandUser root\n";
    let machine = with_lines(Suite::Trixie, lines);
    machine.sh("printf '#!/bin/sh\\ncat /etc/ssh/u.pub\\n' > /usr/local/bin/keys; chmod 755 /usr/local/bin/keys; \
         mv .ssh/authorized_keys /etc/ssh/u.pub; ssh-keygen -q -t ed25519 -N '' -f other; \
         cp other.pub .ssh/authorized_keys; systemctl restart ssh.service");
    spec(&machine, "{AuthorizedKeysCommand: none}", "");
    let what = "the key with which root opened this session would not be taken any more";
    is_refused_there(&machine, &[what, "AuthorizedKeysCommand changes"]);
    spec(&machine, "{MaxAuthTries: 4}", "");
    machine.ssh(22, "harden plan spec.yaml").code(0);
}

/// Patterns for names count where sshd looks names up.
#[test]
fn names_of_clients_come_to_life() {
    for lines in ["DenyUsers *@*.lab\n", "Match Host *.lab\n DenyUsers *\n"] {
        let machine = with_lines(Suite::Trixie, lines);
        machine.sh("echo '10.77.0.1 client.lab' >> /etc/hosts; systemctl restart ssh.service");
        spec(&machine, "{UseDNS: yes}", "");
        is_refused_there(&machine, &["root could not log in any more: DenyUsers"]);
        // Nobody is logged in: it is not known where they will come from.
        let unproven = machine.exec("harden apply -y --confirm probe spec.yaml").code(4);
        assert!(unproven.unwrapped().contains("depends on where they come from"), "{unproven:?}");
        machine.ssh(22, "true").code(0);
    }
    let machine = with_lines(Suite::Trixie, "UseDNS yes\n");
    machine.sh("echo '10.77.0.1 client.lab' >> /etc/hosts; systemctl restart ssh.service");
    spec(&machine, "{AllowUsers: root@client.lab}", "safety: {admins: [root]}\n");
    machine.ssh(22, "harden plan spec.yaml").code(0);
    spec(&machine, "{AllowUsers: root@other.lab}", "safety: {admins: [root]}\n");
    is_refused_there(&machine, &["not listed in AllowUsers (root@other.lab)"]);
}

/// Lines of authorized_keys that sshd does not take, and lines behind them that it does.
#[test]
fn lines_of_keys() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("cp .ssh/authorized_keys keys");
    spec(&machine, "{PasswordAuthentication: no}", "safety: {admins: [deploy]}\n");
    let with = |options: &[&str]| {
        let lines = options.iter().map(|option| format!("sed 's|^|{option} |' keys; "));
        let lines = lines.collect::<String>();
        machine.sh(&format!("{{ {lines} }} > /home/deploy/.ssh/authorized_keys"));
    };
    for wrong in [
        "principals=\"x\"",
        "expiry-time=\"20990101\",expiry-time=\"20200101\"",
        "permitopen=\"host:22:33\"",
        "from=\"!192.0.2.1\"",
        "from=\"client.lab\"",
    ] {
        with(&[wrong]);
        is_refused(&machine, &["deploy could not log in any more"]);
    }
    for right in
        [["from=\"!192.0.2.1\"", ""], ["expiry-time=\"20200101\",command=\"x\"", "restrict,pty"]]
    {
        with(&right);
        machine.exec("harden plan spec.yaml").code(0);
    }
    with(&["command=\"x\"", ""]);
    is_refused(&machine, &["deploy could not log in any more"]);
    // A user cannot have harden wait.
    machine.sh("rm /home/deploy/.ssh/authorized_keys; mkfifo /home/deploy/.ssh/authorized_keys");
    is_refused(&machine, &["there is no key of deploy's in /home/deploy/.ssh/authorized_keys"]);
}

/// What is asked for besides a key has to be possible.
#[test]
fn passwords_that_nobody_can_give() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("echo root:pw | chpasswd; echo deploy:pw | chpasswd; \
         sed -i '1i auth optional pam_exec.so /bin/true' /etc/pam.d/sshd");
    let with = |settings: &str, user: &str| {
        machine.spec(&format!(
            "version: 1\nssh: {{settings: {{{settings}, KbdInteractiveAuthentication: yes}}, match: [{{criteria: {{User: {user}}}, \
             settings: {{AuthenticationMethods: \"publickey,keyboard-interactive\"}}}}]}}\nsafety: {{admins: [{user}]}}\n"
        ));
    };
    with("UsePAM: no", "deploy");
    is_refused(&machine, &["asks for keyboard-interactive, which is switched off"]);
    with("PermitRootLogin: prohibit-password", "root");
    is_refused(&machine, &["asks for keyboard-interactive", "takes none of root's"]);
    with("PermitRootLogin: yes", "root");
    machine.exec("harden plan spec.yaml").code(0);
}

/// A rule of sudo's that leaves root out, or is over, makes nobody root.
#[test]
fn rules_of_sudo_that_make_nobody_root() {
    for suite in [Suite::Bullseye, Suite::Trixie] {
        rules_of_sudo(&Machine::boot(suite, |_| {}));
    }
}

fn rules_of_sudo(machine: &Machine) {
    spec(machine, "{PermitRootLogin: no}", "");
    for (rule, code) in [
        ("ALL=(ALL,!root) NOPASSWD: ALL", 1),
        ("ALL=(ALL) NOTAFTER=20200101000000Z NOPASSWD: ALL", 1),
        ("ALL=(ALL) NOTAFTER=20990101000000Z NOPASSWD: ALL", 0),
        ("ALL=(#0) NOPASSWD: ALL", 0),
    ] {
        machine.sh(&format!(
            "rm -f /etc/sudoers.d/*; echo 'deploy {rule}' > /etc/sudoers; chmod 440 /etc/sudoers"
        ));
        let planned = machine.exec("harden plan spec.yaml").code(code);
        assert!(code == 0 || planned.unwrapped().contains("root could not log in"), "{planned:?}");
    }
}

/// A sudo that speaks to terminals alone: neither the plan nor the service that applies it has one.
#[test]
fn a_sudo_that_wants_a_terminal() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let machine = Machine::boot(suite, |_| {});
        spec(&machine, "{PermitRootLogin: no}", "");
        machine.sh("echo 'Defaults requiretty' > /etc/sudoers.d/terminal");
        machine.apply().code(0);
        machine.sh("sshd -T | grep -x 'permitrootlogin no'");
        machine.ssh_as("deploy", 22, "true").ok();
        machine.ssh(22, "true").code(255);
    }
}
