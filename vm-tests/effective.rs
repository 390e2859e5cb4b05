//! What is in effect, for whom, and which line says so: `harden verify`, and lines of others that win.

use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::operator::socket_system;
use crate::state::{Want, assert_state, unchanged};

on_debian!(a_host_is_verified, blocks_apply_to_those_they_name);

const SPEC: &str = "version: 1\nssh: {port: 2222, socket: disabled, settings: {PasswordAuthentication: no, MaxAuthTries: 4}}\n";

const BLOCKS: &str = "version: 1\nssh:\n  settings: {AllowTcpForwarding: no}\n  match:\n\
    \x20   - {criteria: {User: [deploy, \"b*\"], Address: 192.0.2.0/24}, settings: {AllowTcpForwarding: local}}\n\
    \x20   - {criteria: {Group: sudo}, settings: {MaxSessions: 3, AllowTcpForwarding: remote}}\n";

mod cases {
    use super::*;

    pub(super) fn a_host_is_verified(suite: Suite) {
        let machine = socket_system(suite);
        machine.spec(SPEC);
        let verify =
            |code| unchanged(&machine, || machine.exec("harden verify spec.yaml").code(code));
        let before = verify(3).unwrapped();
        for part in ["not as the spec says", "nothing listens on 0.0.0.0:2222", "create /etc/ssh"] {
            assert!(before.contains(part), "{part}: {before}");
        }
        machine.apply().code(0);
        assert!(
            verify(0)
                .unwrapped()
                .contains("as the spec says: listeners, units and values are proven")
        );

        // harden's own file, by hand: every value, with its line.
        let own = "/etc/ssh/sshd_config.d/00-harden.conf";
        let text = machine.root().read(own);
        machine.sh(&format!("sed -i 's/^PasswordAuthentication no/PasswordAuthentication yes/; s/^MaxAuthTries 4/MaxAuthTries 9/' {own}"));
        let drift = verify(3).unwrapped();
        for part in [
            "`PasswordAuthentication no` is not in effect: sshd uses `yes`",
            "`MaxAuthTries 4` is not in effect: sshd uses `9`",
        ] {
            assert!(drift.contains(part), "{part}: {drift}");
        }
        let lines = drift.split_whitespace().collect::<String>();
        assert_eq!(lines.matches("00-harden.conf:").count(), 2, "{drift}");
        machine.root().write(own, &text);

        // A file that is read first.
        let first = "/etc/ssh/sshd_config.d/00-a.conf";
        machine.root().write(first, "PasswordAuthentication yes\n");
        let drift = verify(3).unwrapped();
        assert!(drift.contains("`PasswordAuthentication no` is not in effect"), "{drift}");
        assert!(drift.split_whitespace().collect::<String>().contains(".conf:1wins)"), "{drift}");
        machine.root().remove(first);

        // A block for some.
        let block = "/etc/ssh/sshd_config.d/90-match.conf";
        machine.root().write(block, "Match User deploy\n\tpasswordauthentication \"yes\"\n");
        machine.sh("systemctl restart ssh.service");
        let drift = verify(3).unwrapped();
        assert!(drift.contains("90-match.conf:2 says `passwordauthentication yes`"), "{drift}");
        // One that says the same as the spec does no harm.
        machine.root().write(block, "Match User deploy\nPasswordAuthentication NO\n");
        machine.sh("systemctl restart ssh.service");
        verify(0);

        machine.sh("systemctl stop ssh.service");
        let drift = verify(3).unwrapped();
        assert!(drift.contains("ssh.service is inactive"), "{drift}");
        machine.sh("systemctl start ssh.service");
        assert_state(&machine, &Want::service(2222));
    }

    pub(super) fn blocks_apply_to_those_they_name(suite: Suite) {
        let machine = Machine::boot(suite, |root| {
            root.append("/etc/ssh/sshd_config", "Match User eve\nMaxSessions 9\n");
        });
        let is = |who: &str, value: &str| {
            let effective = machine.sh(&format!("sshd -T -C {who}")).to_ascii_lowercase();
            assert!(effective.contains(&format!("\n{value}\n")), "{who}: {value}: {effective}");
        };
        machine.spec(BLOCKS);
        machine.apply().code(0);
        is("user=deploy,host=x,addr=192.0.2.9", "allowtcpforwarding local");
        is("user=deploy,host=x,addr=192.0.2.9", "maxsessions 3");
        is("user=deploy,host=x,addr=10.0.0.1", "allowtcpforwarding remote");
        is("user=root,host=x,addr=192.0.2.9", "allowtcpforwarding no");
        is("user=eve,host=x,addr=192.0.2.9", "maxsessions 9");
        machine.exec("harden verify spec.yaml").code(0);
        unchanged(&machine, || machine.apply().code(0));

        // Where no drop-in is read, they stand in a file of their own, and take nothing else in.
        machine.exec("harden rollback -y").code(0);
        machine.sh("sed -i '/^Include/d' /etc/ssh/sshd_config; systemctl restart ssh.service");
        machine.apply().code(0);
        is("user=deploy,host=x,addr=192.0.2.9", "allowtcpforwarding local");
        is("user=root,host=x,addr=192.0.2.9", "allowtcpforwarding no");
        unchanged(&machine, || machine.apply().code(0));
        machine.spec("version: 1\nssh: {settings: {AllowTcpForwarding: no}}\n");
        let warned = machine.apply().code(0);
        assert!(
            warned.unwrapped().contains("no longer has a block for `Match Group sudo`"),
            "{warned:?}"
        );
        is("user=deploy,host=x,addr=192.0.2.9", "allowtcpforwarding no");
        assert_state(&machine, &Want::service(22));
    }
}

/// cloud-init's drop-in and others that sort early give way.
#[test]
fn drop_ins_of_others_give_way() {
    for (name, text) in [
        ("50-cloud-init.conf", "PasswordAuthentication yes\n"),
        ("50-redhat.conf", "PasswordAuthentication yes\nX11Forwarding yes\n"),
        ("01-mine.conf", "Match all\n\nMatch Host *.example.org\n\tX11Forwarding no\n"),
    ] {
        let machine = Machine::boot(Suite::Trixie, |root| {
            root.write(&format!("/etc/ssh/sshd_config.d/{name}"), text);
        });
        machine
            .spec("version: 1\nssh: {settings: {PasswordAuthentication: no, X11Forwarding: no}}\n");
        machine.apply().code(0);
        let effective = machine.sh("sshd -T -C user=deploy,host=a.example.org,addr=192.0.2.1");
        let effective = effective.to_ascii_lowercase();
        assert!(effective.contains("passwordauthentication no\n"), "{name}: {effective}");
        assert!(effective.contains("x11forwarding no\n"), "{name}: {effective}");
        machine.exec("harden verify spec.yaml").code(0);
    }
}

/// A distribution's crypto policy on sshd's command line, as RHEL 8 has it: it wins over the spec, and is not
/// for harden to rewrite; what else stands there is.
#[test]
fn a_crypto_policy_is_named_and_left_alone() {
    let policy = "/usr/share/crypto-policies/opensshserver.txt";
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write(policy, "CRYPTO_POLICY='-oCiphers=aes256-ctr'\n");
        root.link("/etc/crypto-policies/opensshserver.config", policy);
        root.write("/etc/default/ssh", "SSHD_OPTS=\n");
        root.write(
            "/etc/systemd/system/ssh.service.d/policy.conf",
            "[Service]\nEnvironmentFile=/etc/crypto-policies/opensshserver.config\nExecStart=\n\
             ExecStart=/usr/sbin/sshd -D $SSHD_OPTS $CRYPTO_POLICY\n",
        );
    });
    machine.spec("version: 1\nssh: {settings: {Ciphers: aes128-ctr}}\n");
    let refused = unchanged(&machine, || machine.apply().code(1));
    let named = refused.unwrapped();
    assert!(named.contains("`-oCiphers=aes256-ctr`"), "{named}");
    assert!(named.contains("/etc/crypto-policies/opensshserver.config"), "{named}");
    machine.root().write("/etc/default/ssh", "SSHD_OPTS=\"-o MaxAuthTries=9\"\n");
    machine.sh("systemctl restart ssh.service");
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    machine.apply().code(0);
    assert_eq!(machine.root().read("/etc/default/ssh"), "SSHD_OPTS=\"\"\n");
    assert_eq!(machine.root().read(policy), "CRYPTO_POLICY='-oCiphers=aes256-ctr'\n");
    assert_state(&machine, &Want::service(22).with("maxauthtries 3"));
}

/// A `Match all` looks as if it said nothing of anybody in particular, and wins over everything.
#[test]
fn a_block_for_all_is_named() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.append("/etc/ssh/sshd_config", "Match all\nMaxAuthTries 9\n");
    });
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(
        refused.unwrapped().contains("says `MaxAuthTries 9`, and a Match block wins"),
        "{refused:?}"
    );
    // But not one that counts for nobody.
    let dead = "s/^Match all/Match User git,hg\\nMaxAuthTries 3\\nMatch User git/";
    machine.sh(&format!("sed -i '{dead}' /etc/ssh/sshd_config; systemctl restart ssh.service"));
    machine.apply().code(0);
    assert_eq!(machine.sh("sshd -T -C user=git | grep -i maxauthtries").trim(), "maxauthtries 3");
    machine.exec("harden verify spec.yaml").code(0);
}

/// What the files say is worth nothing where sshd reads others: a wrapper's `-f`, a mount of its own.
#[test]
fn an_sshd_that_reads_other_files_is_seen() {
    let drop_in = "/etc/systemd/system/ssh.service.d/own.conf";
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/etc/ssh/other", "PasswordAuthentication no\nUsePAM yes\n");
        root.write(
            "/usr/local/sbin/run-sshd",
            "#!/bin/sh\nexec /usr/sbin/sshd -D -f /etc/ssh/other\n",
        );
    });
    machine.sh("chmod +x /usr/local/sbin/run-sshd");
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    machine.apply().code(0);
    machine.exec("harden verify spec.yaml").code(0);
    for (lines, told) in [
        ("Type=simple\nExecStart=\nExecStart=/usr/local/sbin/run-sshd", "`-f /etc/ssh/other`"),
        (
            "BindReadOnlyPaths=/etc/ssh/other:/etc/ssh/sshd_config",
            "sees another /etc/ssh/sshd_config",
        ),
    ] {
        machine.root().write(drop_in, &format!("[Service]\n{lines}\n"));
        machine.sh("systemctl daemon-reload; systemctl restart ssh.service");
        machine.wait_for("listener", "ss -Hltn | grep -q :22");
        let drift = unchanged(&machine, || machine.exec("harden verify spec.yaml").code(3));
        assert!(drift.unwrapped().contains(told), "{told}: {drift:?}");
        machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.unwrapped().contains(told), "{told}: {refused:?}");
        machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    }
    // One that names the file that it would read anyhow is as good as none.
    machine.root().write(
        drop_in,
        "[Service]\nProtectHome=tmpfs\nExecStart=\nExecStart=/usr/sbin/sshd -D -f /etc/ssh/sshd_config\n",
    );
    machine.sh("systemctl daemon-reload; systemctl restart ssh.service");
    machine.exec("harden verify spec.yaml").code(0);
}

/// Lists within Match blocks, of the spec and of somebody else who says the same.
#[test]
fn lists_in_blocks_count_word_by_word() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/etc/ssh/sshd_config.d/60-x.conf", "Match User xavier\n  AcceptEnv LANG FOO\n");
    });
    machine.spec(
        "version: 1\nssh:\n  settings: {AcceptEnv: [FOO, LANG]}\n  match:\n\
         \x20   - {criteria: {User: [root, deploy]}, settings: {AllowUsers: [root, deploy]}}\n",
    );
    machine.apply().code(0);
    let of =
        |test: &str| machine.sh(&format!("sshd -T -C {test} | grep -i -e allowusers -e acceptenv"));
    let allowed = of("user=root");
    assert!(
        allowed.contains("allowusers root") && allowed.contains("allowusers deploy"),
        "{allowed}"
    );
    let all = of("user=xavier");
    assert!(all.contains("acceptenv FOO") && !all.contains("allowusers"), "{all}");
    machine.exec("harden verify spec.yaml").code(0);
}

/// sshd reads some keywords and forgets them: then nothing is proven, and it is said where.
#[test]
fn a_keyword_without_effect_is_refused() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    for (section, place) in [
        ("settings: {MaxAuthTries: 3, UsePrivilegeSeparation: sandbox}", "2:35"),
        ("match: [{criteria: {User: x}, settings: {RSAAuthentication: no}}]", "2:48"),
    ] {
        machine.spec(&format!("version: 1\nssh: {{{section}}}\n"));
        let refused = unchanged(&machine, || machine.apply().code(2));
        let told = refused.unwrapped();
        assert!(told.contains("has no effect") && told.contains("forgets it"), "{told}");
        assert!(told.contains(&format!("spec.yaml:{place}")), "{told}");
    }
}

/// Whatever the name of a socket unit is: what it starts is an sshd.
#[test]
fn the_name_that_this_release_has_is_proposed() {
    let machine = Machine::boot(Suite::Bullseye, |_| {});
    for (asked, has) in [
        ("PubkeyAcceptedAlgorithms: [ssh-ed25519]", "this sshd has `pubkeyacceptedkeytypes`"),
        ("PasswordAuthentification: no", "this sshd has `passwordauthentication`"),
    ] {
        machine.spec(&format!("version: 1\nssh: {{settings: {{{asked}}}}}\n"));
        let told = unchanged(&machine, || machine.apply().code(2)).unwrapped();
        assert!(told.contains("spec.yaml:2:") && told.contains(has), "{told}");
    }
    machine.spec("version: 1\nssh: {settings: {RequiredRSASize: 2048}}\n");
    let told = machine.apply().code(2).unwrapped();
    assert!(told.contains("sshd refuses `RequiredRSASize`") && !told.contains("has `"), "{told}");
}

#[test]
fn another_socket_for_sshd_is_seen() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        for (name, program) in [("remote", "/usr/sbin/sshd -i"), ("hello", "/bin/echo hello")] {
            let port = if name == "remote" { 2200 } else { 2300 };
            root.write(
                &format!("/etc/systemd/system/{name}.socket"),
                &format!("[Socket]\nListenStream={port}\nAccept=yes\n"),
            );
            root.write(
                &format!("/etc/systemd/system/{name}@.service"),
                &format!("[Service]\nStandardInput=socket\nExecStart=-{program}\n"),
            );
        }
    });
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    machine.sh("systemctl start hello.socket");
    machine.apply().code(0);
    machine.sh("systemctl start remote.socket");
    let drift = machine.exec("harden verify spec.yaml").code(3).unwrapped();
    assert!(drift.contains("remote.socket also listens for SSH, on [::]:2200"), "{drift}");
    assert!(!drift.contains("hello"), "{drift}");
}

/// Several flags in one word, classes of characters in an Include: read as sshd and its shell do.
#[test]
fn what_is_seldom_written_is_read_too() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/etc/default/ssh", "SSHD_OPTS=\"-eo PasswordAuthentication=yes\"\n");
        root.append("/etc/ssh/sshd_config", "Include /etc/ssh/site.d/[[:digit:]]*.conf\n");
        root.write("/etc/ssh/site.d/1.conf", "Match User deploy\nPasswordAuthentication yes\n");
    });
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(
        refused.unwrapped().contains("/etc/ssh/site.d/1.conf:2 says `PasswordAuthentication yes`"),
        "{refused:?}"
    );
    machine.root().remove("/etc/ssh/site.d/1.conf");
    machine.apply().code(0);
    assert_eq!(machine.root().read("/etc/default/ssh"), "SSHD_OPTS=\"-e\"\n");
    assert_state(&machine, &Want::service(22).with("passwordauthentication no"));
    machine.exec("harden verify spec.yaml").code(0);

    // A folder that another one has taken the place of is not what the running sshd has read.
    machine.sh("cp -a /etc/ssh/sshd_config.d other; echo 'PasswordAuthentication yes' > other/00-a.conf; \
                mv /etc/ssh/sshd_config.d kept; mv other /etc/ssh/sshd_config.d; systemctl restart ssh.service; \
                mv /etc/ssh/sshd_config.d other; mv kept /etc/ssh/sshd_config.d");
    let drift = machine.exec("harden verify spec.yaml").code(3).unwrapped();
    assert!(drift.contains("sshd's files changed after it started"), "{drift}");
    machine.apply().code(0);
    machine.exec("harden verify spec.yaml").code(0);
    // Nor is one that is gone.
    machine.sh("echo 'MaxSessions 7' > /etc/ssh/site.d/1.conf; systemctl restart ssh.service; \
                mv /etc/ssh/site.d /etc/ssh/gone");
    let drift = machine.exec("harden verify spec.yaml").code(3).unwrapped();
    assert!(drift.contains("sshd's files changed after it started"), "{drift}");
    machine.apply().code(0);
    machine.exec("harden verify spec.yaml").code(0);
    // Passwords by another name.
    machine.sh("sed -i 's/^KbdInteractive.*/KbdInteractiveAuthentication yes/' /etc/ssh/sshd_config; systemctl restart ssh.service");
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no, MaxAuthTries: 3}}\n");
    assert!(
        machine
            .exec("harden plan spec.yaml")
            .code(0)
            .unwrapped()
            .contains("passwords are still taken")
    );
}

/// Quotes inside quotes, a second file, and a program that starts sshd with words of its own.
#[test]
fn a_command_line_that_hides_a_setting_is_seen() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.write("/etc/default/other", "MORE='-o \"PasswordAuthentication yes\"'\n");
        root.write(
            "/usr/local/sbin/wrap",
            "#!/bin/sh\nexec /usr/sbin/sshd -D -o 'PasswordAuthentication yes'\n",
        );
        root.make_program("/usr/local/sbin/wrap");
    });
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    let drop_in = "/etc/systemd/system/ssh.service.d/x.conf";
    let start = |line: &str| format!("[Service]\nExecStart=\nExecStart={line}\n");
    let second = format!(
        "{}EnvironmentFile=/etc/default/other\n",
        start("/usr/sbin/sshd -D $SSHD_OPTS $MORE")
    );
    for (options, unit) in [
        ("SSHD_OPTS=\"-o \\\"PasswordAuthentication yes\\\"\"\n", "[Service]\n".to_owned()),
        ("SSHD_OPTS=\n", second),
        ("SSHD_OPTS=\n", start("/usr/local/sbin/wrap")),
    ] {
        machine.root().write("/etc/default/ssh", options);
        machine.root().write(drop_in, &unit);
        machine.sh("systemctl daemon-reload; systemctl restart ssh.service");
        let refused = unchanged(&machine, || machine.apply());
        assert!(refused.code == 1 || refused.code == 4, "{refused:?}");
        assert!(refused.unwrapped().contains("PasswordAuthentication yes"), "{refused:?}");
        machine.exec("harden verify spec.yaml").code(3);
    }
}

/// A block of the spec that an earlier one leaves nothing of.
#[test]
fn a_block_that_cannot_count_is_refused() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let blocks = |one: &str, other: &str| {
        let block = |criteria: &str, tries: u32| {
            format!("{{criteria: {criteria}, settings: {{MaxAuthTries: {tries}}}}}")
        };
        machine.spec(&format!(
            "version: 1\nssh: {{match: [{}, {}]}}\n",
            block(one, 3),
            block(other, 4)
        ));
    };
    for (one, other) in
        [("{User: \"*\"}", "{User: deploy}"), ("{User: [ada, deploy]}", "{User: deploy}")]
    {
        blocks(one, other);
        let told = unchanged(&machine, || machine.apply().code(1)).unwrapped();
        assert!(told.contains("`MaxAuthTries 4` would not take effect"), "{told}");
    }
    blocks("{User: deploy}", "{User: \"*\"}");
    machine.apply().code(0);
    let tries = |user: &str| machine.sh(&format!("sshd -T -C user={user} | grep -i maxauthtries"));
    assert_eq!(
        (tries("deploy").trim(), tries("root").trim()),
        ("maxauthtries 3", "maxauthtries 4")
    );
}

/// A second factor that the plan would switch off for some lets nobody of them in.
#[test]
fn a_second_factor_is_not_switched_off() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.append(
            "/etc/ssh/sshd_config",
            "Match Address *,!10.0.0.0/8\nAuthenticationMethods publickey,keyboard-interactive\n",
        );
    });
    machine.sh("sed -i 's/^KbdInteractive.*/KbdInteractiveAuthentication yes/' /etc/ssh/sshd_config; systemctl restart ssh.service");
    machine.spec("version: 1\nssh: {profile: recommended}\n");
    let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
    let told = refused.unwrapped();
    assert!(
        told.contains(
            "(/etc/ssh/sshd_config) would let nobody in: `KbdInteractiveAuthentication no`"
        ),
        "{told}"
    );
    machine.spec(
        "version: 1\nssh: {profile: recommended, settings: {KbdInteractiveAuthentication: yes}}\n",
    );
    machine.ssh(22, "harden apply -y spec.yaml").code(0);
    // What is wrong in a block of the spec is shown there.
    machine.spec(
        "version: 1\nssh: {match: [{criteria: {User: x}, settings: {X11Forwarding: maybe}}]}\n",
    );
    let told = machine.apply().code(2).unwrapped();
    assert!(
        told.contains("spec.yaml:2:48") && told.contains("sshd refuses `X11Forwarding`"),
        "{told}"
    );
}

/// Not everybody is in a group that has a name: a block for all groups leaves some to later ones.
#[test]
fn a_user_in_no_group_that_has_a_name() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.root().write(
        "/etc/ssh/sshd_config.d/50-own.conf",
        "Match Group *\n PasswordAuthentication no\nMatch User bob\n PasswordAuthentication yes\n",
    );
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    let refused = machine.exec("harden plan spec.yaml").code(1);
    assert!(refused.stderr.contains("50-own.conf:4"), "{refused:?}");
}

/// A value that cannot be read is the spec's, with its line.
#[test]
fn a_value_with_an_open_quote() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh:\n  settings:\n    Banner: '/etc/is\"sue'\n");
    let wrong = machine.exec("harden plan spec.yaml").code(2);
    assert!(wrong.stderr.contains("a quote is not closed"), "{wrong:?}");
    assert!(wrong.stderr.contains("spec.yaml:4"), "{wrong:?}");
}

/// Before 8.7 two keywords have sshd ask on the keyboard, and one of them says no in vain.
#[test]
fn the_keyboard_is_off_on_an_old_sshd() {
    for (line, keyword) in [
        ("ChallengeResponseAuthentication yes", "KbdInteractiveAuthentication"),
        ("KbdInteractiveAuthentication yes", "ChallengeResponseAuthentication"),
    ] {
        let machine = Machine::boot(Suite::Bullseye, |_| {});
        machine.sh(&format!(
            "sed -i '/^ChallengeResponse/d; 1i {line}' /etc/ssh/sshd_config; systemctl restart ssh"
        ));
        let settings = format!("PasswordAuthentication: no, {keyword}: no");
        machine.spec(&format!("version: 1\nssh: {{settings: {{{settings}}}}}\n"));
        machine.apply().code(0);
        let methods = machine.ssh_args("10.77.0.2", 22, "deploy");
        let offered = std::process::Command::new("ip")
            .args(methods)
            .args(["-v", "-o", "PreferredAuthentications=none", "true"])
            .output()
            .unwrap();
        let offered = String::from_utf8_lossy(&offered.stderr).into_owned();
        assert!(offered.contains("Permission denied (publickey)"), "{offered}");
        machine.exec("harden verify spec.yaml").code(0);
    }
}
