//! Whom a plan would lock out is told before anything is changed: who, why, and what to do.

use crate::machine::{Machine, Suite, V4};
use crate::on_debian;
use crate::operator::{MOVE, socket_system};
use crate::state::unchanged;

on_debian!(
    who_is_logged_in_stays_in,
    who_takes_the_risk_gets_it,
    who_the_spec_names_gets_in_and_becomes_root,
);

pub(crate) fn spec(machine: &Machine, settings: &str, safety: &str) {
    machine.spec(&format!("version: 1\nssh: {{settings: {settings}}}\n{safety}"));
}

/// Refused, with nothing changed; plan and apply say the same.
#[track_caller]
pub(crate) fn is_refused(machine: &Machine, parts: &[&str]) {
    let refused = unchanged(machine, || machine.exec("harden apply -y --confirm probe spec.yaml"));
    let said = refused.unwrapped();
    assert_eq!(refused.code, 1, "{said}");
    for part in parts.iter().chain(&["--force-lockout-risk"]) {
        assert!(said.contains(part), "{part}: {said}");
    }
    let planned = machine.exec("harden plan spec.yaml --output json").code(1);
    let report: serde_json::Value = serde_json::from_str(&planned.stdout).unwrap();
    assert_eq!(report["error"]["code"], "lockout", "{report}");
}

/// Settings, and what has to be said of them.
const SETTINGS: &[(&str, &[&str])] = &[
    (
        "{AllowUsers: nobody}",
        &[
            "root could not log in any more: not listed in AllowUsers (nobody)",
            "deploy could not log in any more",
            "add deploy to AllowUsers",
        ],
    ),
    (
        "{DenyUsers: \"dep*\"}",
        &["deploy could not log in any more: DenyUsers dep*", "take deploy off DenyUsers"],
    ),
    (
        "{DenyUsers: \"deploy@10.77.0.0/24\"}",
        &["deploy could not log in any more: DenyUsers deploy@10.77.0.0/24"],
    ),
    (
        "{AllowGroups: [root, ssh-users]}",
        &[
            "deploy could not log in any more: in no group of AllowGroups",
            "usermod -aG root deploy",
        ],
    ),
    ("{DenyGroups: deploy}", &["deploy could not log in any more: DenyGroups deploy"]),
    (
        "{AuthorizedKeysFile: /etc/ssh/keys/%u}",
        &["there is no key of deploy's in /etc/ssh/keys/deploy", "ssh-copy-id deploy@HOST"],
    ),
    (
        "{AuthenticationMethods: \"publickey,password\"}",
        &["AuthenticationMethods asks for a password, which deploy has not got"],
    ),
    (
        "{PubkeyAuthentication: no}",
        &["PubkeyAuthentication no rules out keys, and root has no other way in"],
    ),
    (
        "{PubkeyAcceptedAlgorithms: rsa-sha2-512}",
        &["does not take deploy's ssh-ed25519 key", "give deploy a key first that it takes"],
    ),
    ("{ForceCommand: internal-sftp}", &["ForceCommand internal-sftp takes the place of a shell"]),
];

mod cases {
    use super::*;

    pub(super) fn who_is_logged_in_stays_in(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        let session = machine.session_of("deploy", V4, 22);
        for (settings, parts) in SETTINGS {
            let renamed = suite == Suite::Bullseye;
            let settings = if renamed {
                settings.replace("PubkeyAcceptedAlgorithms", "PubkeyAcceptedKeyTypes")
            } else {
                (*settings).to_owned()
            };
            spec(&machine, &settings, "");
            is_refused(&machine, parts);
        }
        // Who comes from elsewhere is not meant.
        spec(&machine, "{DenyUsers: \"deploy@192.0.2.0/24\"}", "");
        machine.exec("harden plan spec.yaml").code(0);
        the_account_counts_too(&machine);
        drop(session);
    }

    /// An account that is locked, and a folder that others can write.
    fn the_account_counts_too(machine: &Machine) {
        machine.sh("usermod -p '!x' deploy");
        spec(machine, "{UsePAM: no}", "");
        is_refused(machine, &["deploy's account is locked", "usermod -p '*' deploy"]);
        machine.sh("usermod -p '*' deploy; chmod 777 /home/deploy/.ssh; sed -i '1i StrictModes no' /etc/ssh/sshd_config; systemctl restart ssh.service");
        spec(machine, "{StrictModes: yes}", "");
        is_refused(
            machine,
            &["StrictModes: others can write /home/deploy/.ssh", "chmod go-w /home/deploy/.ssh"],
        );
    }

    /// Who asks for it gets it, and it is logged.
    pub(super) fn who_takes_the_risk_gets_it(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        spec(&machine, "{AllowUsers: nobody}", "");
        machine.exec("harden apply -y --confirm probe --force-lockout-risk spec.yaml").code(0);
        let log = machine.sh("journalctl --no-pager | grep 'arden'; true");
        assert!(log.contains("--force-lockout-risk was given: root could not log in"), "{log}");
        assert_ne!(machine.ssh(22, "true").code, 0);
    }

    pub(super) fn who_the_spec_names_gets_in_and_becomes_root(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        let of = |name: &str| format!("safety: {{admins: [{name}]}}\n");
        spec(&machine, "{PermitRootLogin: no}", &of("deploy"));
        machine.exec("harden apply -y --confirm probe spec.yaml").code(0);
        assert!(machine.sh("sshd -T").to_ascii_lowercase().contains("permitrootlogin no\n"));
        assert_ne!(machine.ssh(22, "true").code, 0);
        machine.exec("harden rollback -y").code(0);

        spec(&machine, "{MaxAuthTries: 3}", &of("depoly"));
        is_refused(&machine, &["there is no user depoly, whom `safety.admins` names"]);
        machine.sh("useradd -m -s /bin/bash eve");
        spec(&machine, "{MaxAuthTries: 3}", &of("eve"));
        is_refused(&machine, &["eve could not log in any more: there is no key of eve's in"]);
        machine.sh("cp -r /root/.ssh /home/eve/; chown -R eve: /home/eve/.ssh");
        is_refused(&machine, &["eve of `safety.admins` could not become root"]);
        machine.sh("echo 'eve ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/eve; usermod -s /usr/sbin/nologin eve");
        is_refused(
            &machine,
            &["eve's shell /usr/sbin/nologin lets nobody in", "chsh -s /bin/bash eve"],
        );
        machine.sh("chsh -s /bin/bash eve");
        machine.exec("harden apply -y --confirm probe spec.yaml").code(0);
        machine.exec("harden verify spec.yaml").code(0);
        // What holds can stop holding.
        machine.sh("rm /home/eve/.ssh/authorized_keys");
        let drift = machine.exec("harden verify spec.yaml").code(3).stdout;
        assert!(drift.contains("there is no key of eve's"), "{drift}");
    }
}

/// Where one comes from decides too, also for those who are to take root's place.
#[test]
fn where_one_comes_from_counts() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let blocks = [
        "{Address: 10.0.0.0/8}, settings: {PubkeyAuthentication: no}",
        "{LocalAddress: 10.77.0.0/24}, settings: {PubkeyAuthentication: no}",
        "{Address: 10.0.0.0/8}, settings: {RefuseConnection: yes}",
        "{Address: \"*,!192.0.2.0/24\"}, settings: {AuthorizedKeysFile: /nonexistent/%u}",
    ];
    for block in blocks {
        machine.spec(&format!("version: 1\nssh: {{match: [{{criteria: {block}}}]}}\n"));
        let apply = "harden apply -y --confirm probe spec.yaml";
        let refused = unchanged(&machine, || machine.ssh(22, apply).code(1));
        assert!(refused.unwrapped().contains("root could not log in any more"), "{refused:?}");
    }
    // From the console it is not known where they come from: then a person has to try it.
    machine.spec(
        "version: 1\nssh: {match: [{criteria: {Address: 10.0.0.0/8}, settings: {PubkeyAuthentication: no}}]}\n",
    );
    let back = unchanged(&machine, || machine.exec("harden apply -y --confirm probe spec.yaml"));
    assert_eq!(back.code, 4, "{back:?}");
    assert!(back.unwrapped().contains("--confirm operator"), "{back:?}");
}

/// Where one arrives decides too: who gets in on the old port may not on the new one.
#[test]
fn where_one_arrives_counts() {
    let restricted = [
        "PasswordAuthentication no\nPubkeyAuthentication no\nMatch LocalPort 22\nPubkeyAuthentication yes\n",
        "AllowUsers nobody\nMatch LocalPort 22\nAllowUsers root deploy\n",
        "PubkeyAuthentication no\nMatch LocalAddress 10.77.0.2 LocalPort 22\nPubkeyAuthentication yes\n",
    ];
    for text in restricted {
        let machine = Machine::boot(Suite::Trixie, |root| {
            root.write("/etc/ssh/sshd_config.d/50-mine.conf", text);
        });
        machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
        let apply = "harden apply -y --confirm probe spec.yaml";
        let refused = unchanged(&machine, || machine.ssh(22, apply).code(1));
        assert!(refused.unwrapped().contains("root could not log in any more"), "{refused:?}");
        // What is allowed on both lets everybody in.
        machine.spec("version: 1\nssh: {port: [22, 2222], socket: disabled}\n");
        machine.ssh(22, "harden plan spec.yaml").code(0);
    }
    // A restriction of the old port is none of the new one: the plan says so, and a probe cannot try it.
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/etc/ssh/sshd_config.d/50-mine.conf", "Match LocalPort 22\nAllowUsers root\n");
    });
    machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
    let back = unchanged(&machine, || {
        machine.ssh(22, "harden apply -y --confirm probe spec.yaml").code(4)
    });
    let said = back.unwrapped();
    assert!(said.contains("depends on where they arrive, and that changes"), "{said}");
    let planned = machine.exec("harden plan spec.yaml").code(0).stdout;
    let planned = planned.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(planned.contains("`Match LocalPort 22` (/etc/ssh/sshd_config.d/50-mine.conf:1) applies to nobody any more"), "{planned}");
}

/// Who is to become root has to be able to: sudo's last rule counts, and whose password it asks for; and
/// sshd reads keys as their owner.
#[test]
fn who_takes_roots_place_becomes_root() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    spec(&machine, "{PermitRootLogin: no}", "");
    machine.exec("harden plan spec.yaml").code(0);
    machine.sh("rm /etc/sudoers.d/*; sed -i '/^%sudo/d' /etc/sudoers");
    for rules in [
        "deploy ALL=(www-data) NOPASSWD: ALL",
        "deploy ALL=(ALL) NOPASSWD: ALL\ndeploy ALL=(ALL) ALL",
        "deploy ALL=(ALL) NOPASSWD: ALL\ndeploy ALL=(ALL) !ALL",
        "Defaults targetpw\ndeploy ALL=(ALL) ALL",
    ] {
        machine.sh(&format!("printf '{rules}\\n' > /etc/sudoers.d/t"));
        is_refused(&machine, &["nobody else who gets in becomes root by sudo"]);
    }
    for rules in ["NOPASSWD: ALL, !/usr/bin/passwd root", "NOPASSWD: /usr/bin/bash, /usr/bin/su -"]
    {
        machine.sh(&format!("echo 'deploy ALL=(ALL) {rules}' > /etc/sudoers.d/t"));
        machine.exec("harden plan spec.yaml").code(0);
    }
    // Who could, and is kept out by something else.
    machine.sh("mv /home/deploy/.ssh/authorized_keys moved");
    is_refused(&machine, &["deploy, who does, neither: there is no key of deploy's"]);
    machine.sh("mv moved /home/deploy/.ssh/authorized_keys");
    machine.sh("echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/t; mkdir /etc/ssh/keys; \
                for user in root deploy; do cp .ssh/authorized_keys /etc/ssh/keys/$user; done; \
                chmod 600 /etc/ssh/keys/*");
    spec(&machine, "{AuthorizedKeysFile: /etc/ssh/keys/%u}", "safety: {admins: [deploy]}\n");
    is_refused(&machine, &["deploy cannot read /etc/ssh/keys/deploy"]);
}

/// A key that is taken from elsewhere, or was, is none.
#[test]
fn a_key_that_is_not_taken_is_none() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("cp .ssh/authorized_keys keys; passwd -d root; echo root:secret | chpasswd");
    spec(&machine, "{PasswordAuthentication: no}", "");
    let with = |option: &str| {
        machine.sh(&format!("sed 's|^|{option} |' keys > .ssh/authorized_keys"));
    };
    machine.sh("sed -i '1i PermitRootLogin yes\\nPasswordAuthentication yes' /etc/ssh/sshd_config; rm -r /home/deploy/.ssh; systemctl restart ssh.service");
    // From the console it is not known where they come from.
    for good in ["from=\"192.0.2.0/24\"", "no-pty,expiry-time=\"20990101\""] {
        with(good);
        machine.exec("harden plan spec.yaml").code(0);
    }
    with("no-pty,expiry-time=\"20200101\"");
    is_refused(&machine, &["root's key in /root/.ssh/authorized_keys has expired"]);
    with("from=\"\"");
    is_refused(&machine, &["nobody who can become root has a key here"]);
    // Of somebody who is logged in it is known.
    with("from=\"10.77.0.0/24\"");
    let session = machine.session(22);
    machine.exec("harden plan spec.yaml").code(0);
    with("from=\"192.0.2.0/24,!10.77.0.*\"");
    is_refused(&machine, &["is taken from 192.0.2.0/24,!10.77.0.* alone, and not from 10.77.0.1"]);
    drop(session);
}

/// One-time passwords are not for harden to know: who has set them up may ask for them.
#[test]
fn what_pam_asks_beyond_passwords_is_unknown() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let methods = "{KbdInteractiveAuthentication: yes, AuthenticationMethods: \"publickey,keyboard-interactive\"}";
    spec(&machine, methods, "safety: {admins: [deploy]}\n");
    is_refused(&machine, &["AuthenticationMethods asks for a password, which deploy has not got"]);
    machine.sh("sed -i 's/^@include common-auth/auth required pam_otp.so\\n&/' /etc/pam.d/sshd");
    machine.exec("harden plan spec.yaml").code(0);
}

/// Loopback alone lets nobody in from outside; through a tunnel one is there already.
#[test]
fn loopback_alone_lets_nobody_in() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh: {listen: [\"127.0.0.1\", \"::1\"]}\n");
    is_refused(&machine, &["sshd would listen on 127.0.0.1:22 and [::1]:22 alone"]);
    machine.exec("SSH_CONNECTION='127.0.0.1 4242 127.0.0.1 22' harden plan spec.yaml").code(0);
}

/// The key with which one is in right now is worth more than others.
#[test]
fn the_key_of_this_session_stays() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("mkdir /etc/ssh/keys; ssh-keygen -q -t ed25519 -N '' -f other; cp other.pub /etc/ssh/keys/root; chmod 644 /etc/ssh/keys/root");
    spec(&machine, "{AuthorizedKeysFile: /etc/ssh/keys/%u}", "");
    machine.exec("harden plan spec.yaml").code(0);
    let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
    let said = refused.unwrapped();
    assert!(
        said.contains("the key with which root opened this session would not be taken"),
        "{said}"
    );
    // A line that ties it counts before one that does not; one with a word that sshd does not know is none.
    for (first, then) in
        [("restrict,command=\"x\" ", "cat .ssh/authorized_keys"), ("no-pyt ", "true")]
    {
        machine.sh(&format!(
            "{{ cat other.pub; sed 's/^/{first}/' .ssh/authorized_keys; {then}; }} > /etc/ssh/keys/root"
        ));
        let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
        assert!(refused.unwrapped().contains("opened this session"), "{first}: {refused:?}");
    }
    machine.sh("cp other.pub /etc/ssh/keys/root; cat .ssh/authorized_keys >> /etc/ssh/keys/root");
    machine.ssh(22, "harden apply -y spec.yaml").code(0);
    // A revoked key is none, and a list that is not there revokes all.
    spec(&machine, "{RevokedKeys: /etc/ssh/revoked, AuthorizedKeysFile: /etc/ssh/keys/%u}", "");
    let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
    assert!(
        refused.unwrapped().contains("RevokedKeys /etc/ssh/revoked cannot be read"),
        "{refused:?}"
    );
    for list in [
        "cp .ssh/authorized_keys /etc/ssh/revoked",
        "ssh-keygen -q -k -f /etc/ssh/revoked .ssh/authorized_keys",
    ] {
        machine.sh(list);
        let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
        assert!(refused.unwrapped().contains("opened this session"), "{list}: {refused:?}");
    }
    machine.sh("cp other.pub /etc/ssh/revoked");
    machine.ssh(22, "harden plan spec.yaml").code(0);
    // Where sshd logs nothing, any of them may be it.
    machine.sh("cp .ssh/authorized_keys /etc/ssh/revoked; sed -i '1i LogLevel ERROR' /etc/ssh/sshd_config; systemctl restart ssh.service");
    let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
    assert!(refused.unwrapped().contains("may have opened this session"), "{refused:?}");
}

/// Root may go where somebody else gets in, but not where whoever is in as root has no key of theirs.
#[test]
fn the_key_of_roots_session_opens_another() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine
        .sh("ssh-keygen -q -t ed25519 -N '' -f other; cp /home/deploy/.ssh/authorized_keys same");
    for settings in ["{PermitRootLogin: no}", "{AllowUsers: deploy, PasswordAuthentication: no}"] {
        spec(&machine, settings, "");
        machine.sh("cat other.pub > /home/deploy/.ssh/authorized_keys");
        machine.exec("harden plan spec.yaml").code(0);
        let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
        let said = refused.unwrapped();
        assert!(said.contains("opened this session would open none any more"), "{said}");
        assert!(said.contains("deploy, who gets in, has not got that key"), "{said}");
        machine.sh("cat same >> /home/deploy/.ssh/authorized_keys");
        machine.ssh(22, "harden plan spec.yaml").code(0);
    }
    machine.ssh(22, "harden apply -y --confirm probe spec.yaml").code(0);
    machine.ssh_as("deploy", 22, "sudo true").ok();
    machine.ssh(22, "true").code(255);
}

/// The family of addresses over which somebody has come in goes.
#[test]
fn the_family_of_this_session_stays() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    for listen in ["listen: [\"::\"]", "settings: {AddressFamily: inet6}"] {
        machine.spec(&format!("version: 1\nssh: {{port: 2222, {listen}}}\n"));
        let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
        assert!(refused.unwrapped().contains("this session came in over IPv4"), "{refused:?}");
        machine.exec("harden plan spec.yaml").code(0);
    }
}

/// Clients know a host by its keys.
#[test]
fn host_keys_that_go_are_told() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let admins = "safety: {admins: [deploy]}\n";
    spec(&machine, "{HostKey: /etc/ssh/ssh_host_rsa_key}", admins);
    let planned = machine.exec("harden plan spec.yaml").code(0).stdout;
    let planned = planned.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        planned.contains("know this host by its ecdsa-sha2-nistp256 and ssh-ed25519 key"),
        "{planned}"
    );
    machine.sh("ssh-keygen -q -t rsa -b 2048 -N '' -f /etc/ssh/short");
    let both = "[/etc/ssh/short, /etc/ssh/ssh_host_ed25519_key]";
    spec(&machine, &format!("{{HostKey: {both}, RequiredRSASize: 3072}}"), admins);
    let planned = machine.exec("harden plan spec.yaml").code(0).stdout;
    let planned = planned.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(planned.contains("by its ssh-rsa and ecdsa-sha2-nistp256 key alone"), "{planned}");
}

/// What else keeps an administrator out, told before anything is changed.
#[test]
fn accounts_folders_and_sessions_count() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let admins = "safety: {admins: [deploy]}\n";
    machine.sh("mkdir -m 700 /etc/ssh/keys; cp .ssh/authorized_keys /etc/ssh/keys/deploy; chmod 644 /etc/ssh/keys/deploy");
    for (settings, why) in [
        ("{MaxSessions: 0}", "MaxSessions 0 opens no session"),
        ("{ChrootDirectory: /var/empty}", "ChrootDirectory /var/empty leaves nothing"),
        (
            "{AuthorizedKeysFile: /etc/ssh/keys/%u}",
            "/etc/ssh/keys is closed hint: chmod go+rX /etc/ssh/keys",
        ),
        ("{AllowGroups: [nosuch]}", "create the group, with deploy in it"),
        ("{PubkeyAcceptedAlgorithms: -ssh-ed25519}", "give deploy a key first that it takes"),
        ("{HostKeyAlgorithms: sk-ssh-ed25519@openssh.com}", "has none for a key of this host"),
    ] {
        spec(&machine, settings, admins);
        is_refused(&machine, &["deploy could not log in any more", why]);
    }
    for (settings, why) in [
        ("{MaxAuthTries: 0}", "MaxAuthTries 0 lets nobody in"),
        ("{PerSourceMaxStartups: 0}", "PerSourceMaxStartups 0 lets nobody in"),
        ("{AuthenticationMethods: \"publickey,publickey\"}", "asks for 2 keys, and deploy has 1"),
        ("{DenyUsers: \"deploy@*\"}", "DenyUsers deploy@*"),
        ("{AuthenticationMethods: none, PermitEmptyPasswords: yes}", "takes empty passwords alone"),
        (
            "{AuthorizedKeysFile: none, TrustedUserCAKeys: /nonexistent/x}",
            "AuthorizedKeysFile is none",
        ),
    ] {
        spec(&machine, settings, admins);
        is_refused(&machine, &["deploy could not log in any more", why]);
    }
    for keyword in ["Ciphers", "KexAlgorithms", "HostKeyAlgorithms", "PubkeyAcceptedAlgorithms"] {
        spec(&machine, &format!("{{{keyword}: \"-*\"}}"), admins);
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.unwrapped().contains("leaves no algorithm at all"), "{refused:?}");
        spec(&machine, &format!("{{{keyword}: \"-*sha1*,*cbc\"}}"), admins);
        machine.exec("harden plan spec.yaml").code(0);
    }
    spec(&machine, "{MaxAuthTries: 3}", admins);
    machine.sh("chage -E 1 deploy");
    is_refused(&machine, &["deploy's account has expired", "chage -E -1 deploy"]);
    machine.sh("chage -E -1 deploy");
    // Debian's sshd takes what the user's own group can write.
    machine.sh(
        "chmod 775 /home/deploy /home/deploy/.ssh; chmod 664 /home/deploy/.ssh/authorized_keys",
    );
    machine.exec("harden plan spec.yaml").code(0);
    machine.sh("gpasswd -a nobody deploy");
    is_refused(&machine, &["StrictModes: others can write"]);
    // A folder of everybody's is not to be changed for that.
    machine.sh("gpasswd -d nobody deploy; cd /home/deploy/.ssh; mv authorized_keys /tmp/keys; ln -s /tmp/keys authorized_keys");
    let fix = "keep /home/deploy/.ssh/authorized_keys where nobody but root and deploy can write";
    is_refused(&machine, &["StrictModes: others can write /tmp", fix]);
}

/// Groups of a directory have blanks in their names.
#[test]
fn names_may_have_blanks() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let admins = "safety: {admins: [deploy]}\n";
    machine.sh("sed -i '$adomain users:x:1500:deploy,root' /etc/group");
    spec(&machine, "{AllowGroups: [\"domain users\"]}", admins);
    machine.exec("harden apply -y --confirm probe spec.yaml").code(0);
    machine.exec("harden verify spec.yaml").code(0);
    machine.sh("gpasswd -d deploy 'domain users'");
    assert!(
        machine
            .exec("harden verify spec.yaml")
            .code(3)
            .stdout
            .contains("-aG 'domain users' deploy")
    );
    machine.exec("harden rollback -y --confirm probe").code(0);
}

/// Passwords that have to be changed, and a host that lets only root in.
#[test]
fn ageing_passwords_and_nologin_count() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.append("/etc/ssh/sshd_config", "PerSourcePenalties no\n");
    });
    spec(&machine, "{MaxAuthTries: 3}", "safety: {admins: [deploy]}\n");
    for (ageing, why) in [
        ("chage -d 0 deploy", "deploy has to change a password first, and has none"),
        ("chage -d 2020-01-01 -M 10 -I 10 deploy", "deploy's password ended too long ago"),
        ("touch /etc/nologin", "/etc/nologin lets nobody in but root"),
    ] {
        machine.sh(ageing);
        is_refused(&machine, &["deploy could not log in any more", why]);
        assert_ne!(machine.ssh_as("deploy", 22, "true").code, 0, "{ageing}");
        machine.sh("chage -d 2026-01-01 -M -1 -I -1 deploy; rm -f /etc/nologin");
        assert_eq!(machine.ssh_as("deploy", 22, "true").code, 0, "{ageing}");
    }
}

/// Who is logged in from two places has to get in from both; who may become root is asked of sudo alone.
#[test]
fn from_wherever_one_is_logged_in() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    let mut first = machine.session(22);
    let second = machine.session_of("root", "fd77::2", 22);
    for place in ["fd77::1", "10.77.0.1"] {
        spec(&machine, &format!("{{AllowUsers: \"root@{place}\"}}"), "");
        is_refused(&machine, &["root could not log in any more"]);
    }
    spec(&machine, "{AllowUsers: [\"root@fd77::1\", \"root@10.77.0.1\"]}", "");
    machine.exec("harden plan spec.yaml").code(0);
    assert!(first.lives());
    drop(second);
    machine.sh("gpasswd -d deploy sudo; rm -f /etc/sudoers.d/*");
    spec(&machine, "{PermitRootLogin: no}", "");
    is_refused(&machine, &["nobody else who gets in becomes root by sudo"]);
    for rule in
        ["deploy ALL=(ALL) NOPASSWD: ALL", "Defaults:deploy !authenticate\ndeploy ALL=(ALL) ALL"]
    {
        machine.sh(&format!("printf '{rule}\n' > /etc/sudoers.d/t"));
        machine.exec("harden plan spec.yaml").code(0);
    }
}

/// For a key that only hardware has another one stands in: a session is opened all the same.
#[test]
fn hardware_keys_open_sessions_too() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        let key = "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gAAAABHNzaDo=";
        for home in ["/root", "/home/deploy"] {
            let line = format!("sk-ssh-ed25519@openssh.com {key} sk\n");
            root.write(&format!("{home}/.ssh/authorized_keys"), &line);
        }
    });
    machine
        .sh("sed -i 's/^UsePAM.*/UsePAM no/' /etc/ssh/sshd_config; systemctl restart ssh.service");
    spec(&machine, "{PubkeyAcceptedAlgorithms: \"sk-*\"}", "");
    let done = machine.exec("harden apply -y --confirm probe spec.yaml").code(0);
    assert!(done.unwrapped().contains("root can log in with a key"), "{done:?}");
    machine.sh("sed -i '1i session required pam_deny.so' /etc/pam.d/sshd");
    spec(&machine, "{UsePAM: yes}", "");
    let back = unchanged(&machine, || machine.exec("harden apply -y --confirm probe spec.yaml"));
    assert_eq!(back.code, 4, "{back:?}");
}

/// What a unit does to its sshd, no sshd of harden's own shows: refused, until sshd has run with it.
#[test]
fn a_unit_that_shuts_its_sshd_in() {
    for (suite, by_socket) in [(Suite::Bookworm, false), (Suite::Trixie, true)] {
        let machine = if by_socket { socket_system(suite) } else { Machine::boot(suite, |_| {}) };
        machine.spec(MOVE);
        let own = "/etc/systemd/system/ssh.service.d/own.conf";
        for line in ["ProtectHome=yes", "NoNewPrivileges=true", "ProtectSystem=strict"] {
            machine.root().write(own, &format!("[Service]\n{line}\n"));
            machine.sh("systemctl daemon-reload");
            let refused = unchanged(&machine, || machine.apply().code(1)).unwrapped();
            assert!(refused.contains(&format!("ssh.service has `{line}` ({own})")), "{refused}");
        }
        machine
            .root()
            .write(own, "[Service]\nProtectHome=yes\nProtectHome=read-only\nPrivateUsers=No\n");
        machine.sh("systemctl daemon-reload");
        machine.apply().code(0);
        machine.root().write(own, "[Service]\nNoNewPrivileges=yes\n");
        machine.sh("systemctl daemon-reload");
        assert!(machine.exec("harden rollback -y").code(1).unwrapped().contains(own));
        machine.sh("systemctl restart ssh.service");
        machine.exec("harden rollback -y").code(0);
    }
    // A start before systemd has read the file is none with it.
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec(MOVE);
    let own = "/etc/systemd/system/ssh.service.d/own.conf";
    machine.root().write(own, "[Service]\nProtectHome=yes\n");
    machine.sh("systemctl restart ssh.service; sleep 0.1; systemctl daemon-reload");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.unwrapped().contains("ssh.service has `ProtectHome=yes`"), "{refused:?}");
}

/// A build of somebody's own is not the one that harden asks.
#[test]
fn another_sshd_program() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec(MOVE);
    machine.sh("cp /usr/sbin/sshd /usr/local/sbin/sshd");
    let own = "/etc/systemd/system/ssh.service.d/own.conf";
    let text = "[Service]\nExecStart=\nExecStart=/usr/local/sbin/sshd -D $SSHD_OPTS\n";
    machine.root().write(own, text);
    machine.sh("systemctl daemon-reload; systemctl restart ssh.service");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.unwrapped().contains("runs /usr/local/sbin/sshd"), "{refused:?}");
}
