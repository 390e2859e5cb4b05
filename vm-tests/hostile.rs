//! Configurations that nobody would write on purpose: a clear error or the right answer, and nothing
//! changed before.

use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::state::{Want, assert_state, unchanged};

on_debian!(what_sshd_refuses_is_named, what_sshd_takes_is_applied, ten_thousand_lines);

const SPEC: &str = "version: 1\nssh: {settings: {MaxAuthTries: 3, X11Forwarding: no}}\n";
const FOLDER: &str = "/etc/ssh/sshd_config.d";

mod cases {
    use super::*;

    pub(super) fn what_sshd_refuses_is_named(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        machine.spec(SPEC);
        let plants = [
            ("ln -s /nowhere", "50-x.conf: No such file"),
            ("printf 'Include /etc/ssh/sshd_config\\n' >", "50-x.conf:1: Too many recursive"),
            ("echo 'ListenAddress nosuch.invalid' >", "50-x.conf:1: bad addr or host"),
            ("printf 'MaxAuthTries 5\\0 6\\nX11Forwarding no\\n' >", "50-x.conf"),
        ];
        for (plant, said) in plants {
            machine.sh(&format!("{plant} {FOLDER}/50-x.conf"));
            let refused = unchanged(&machine, || machine.apply().code(1));
            assert!(refused.stderr.contains(said), "{plant}: {refused:?}");
            machine.exec("harden plan spec.yaml").code(1);
            machine.sh(&format!("rm {FOLDER}/50-x.conf"));
        }
        machine.apply().code(0);
        assert_state(&machine, &Want::service(22).with("maxauthtries 3"));
    }

    pub(super) fn what_sshd_takes_is_applied(suite: Suite) {
        let plants = [
            // A folder by a file's name, and bytes that are no UTF-8.
            format!("mkdir {FOLDER}/50-x.conf; printf 'Banner /etc/\\377\\n' > {FOLDER}/51-x.conf"),
            // The same file by several ways, and CRLF.
            format!(
                "printf 'X11Forwarding yes\\r\\n' > {FOLDER}/50-x.conf; ln -s 50-x.conf {FOLDER}/51-x.conf; printf 'Include {FOLDER}/50-*.conf\\r\\n' >> /etc/ssh/sshd_config"
            ),
            // A NUL behind a value that is whole.
            format!("printf 'X11Forwarding yes\\0' > {FOLDER}/50-x.conf"),
        ];
        for plant in plants {
            let machine = Machine::boot(suite, |_| {});
            machine.spec(SPEC);
            machine.sh(&plant);
            machine.sh("systemctl restart ssh.service");
            machine.apply().code(0);
            assert_state(
                &machine,
                &Want::service(22).with("maxauthtries 3").with("x11forwarding no"),
            );
            unchanged(&machine, || machine.apply().code(0));
            machine.exec("harden verify spec.yaml").code(0);
        }
    }

    pub(super) fn ten_thousand_lines(suite: Suite) {
        let machine =
            Machine::boot(suite, |root| super::large(&|path, text| root.write(path, text)));
        machine.spec(SPEC);
        let refused = unchanged(&machine, || machine.apply().code(1)).stderr;
        let refused = refused.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            refused.contains("`Match User u499`: /etc/ssh/sshd_config.d/99-match.conf:998"),
            "{refused}"
        );
        machine.sh(&format!("sed -i 998d {FOLDER}/99-match.conf; systemctl restart ssh.service"));
        machine.apply().code(0);
        unchanged(&machine, || machine.apply().code(0));
        assert_state(&machine, &Want::service(22).with("x11forwarding no"));
    }
}

/// Twenty files with 10,000 lines among them, and 500 Match blocks, of which one allows what the spec forbids.
pub(crate) fn large(write: &dyn Fn(&str, &str)) {
    for file in 10..29 {
        let line = |number: usize| format!("# line {number}\nAcceptEnv LC_{file}_{number}\n");
        let text: String = (0..240).map(line).collect();
        write(&format!("{FOLDER}/{file}-x.conf"), &text);
    }
    let block = |number: usize| {
        let value = if number == 499 { "yes" } else { "no" };
        format!("Match User u{number}\n  X11Forwarding {value}\n")
    };
    write(&format!("{FOLDER}/99-match.conf"), &(1..=500).map(block).collect::<String>());
}

/// Without root a file may be one that cannot be read: that is said, and the rest is planned.
#[test]
fn what_cannot_be_read_is_told() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.write("/etc/ssh/sshd_config.d/50-x.conf", "X11Forwarding yes\n");
    });
    machine.sh(&format!("chmod 600 {FOLDER}/50-x.conf"));
    machine.spec(SPEC);
    machine.sh("cp spec.yaml /home/deploy; chmod 644 /home/deploy/spec.yaml");
    let planned = machine.exec("runuser -u deploy -- harden plan /home/deploy/spec.yaml").code(0);
    assert!(
        planned.stdout.contains("could not see /etc/ssh/sshd_config.d/50-x.conf"),
        "{planned:?}"
    );
}

/// A pipe that nobody writes to: sshd waits for ever, and harden does not.
#[test]
fn a_pipe_among_the_files_is_not_waited_for() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec(SPEC);
    machine.sh(&format!("mkfifo {FOLDER}/50-x.conf"));
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.stderr.contains("no end after"), "{refused:?}");
    assert!(refused.stderr.contains("has not said yet"), "{refused:?}");
}

/// What could be written only after the decision is refused before it.
#[test]
fn what_cannot_be_written_is_refused() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    let own = "/etc/ssh/sshd_config.d/00-harden.conf";
    for (plant, why, undo) in [
        (format!("mkdir {own}"), "it is a folder", format!("rmdir {own}")),
        (
            "mount --bind /etc/ssh /etc/ssh; mount -o remount,bind,ro /etc/ssh".to_owned(),
            "its file system is read-only",
            "umount /etc/ssh".to_owned(),
        ),
        (
            format!("touch {own}; mount --bind {own} {own}"),
            "it is a mount of its own",
            format!("umount {own}; rm {own}"),
        ),
    ] {
        machine.sh(&plant);
        let refused = machine.apply().code(1);
        let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(&format!("cannot write {own}: {why}")), "{refused:?}");
        assert_eq!(machine.exec("ls /var/lib/harden/*.journal").stdout, "");
        machine.sh(&undo);
    }
    machine.apply().code(0);
}

/// A host that keeps itself out cannot be proven (hosts_access(5)), and it is said where.
#[test]
fn a_host_that_keeps_itself_out() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/etc/hosts.allow", "sshd: 10.77.0.\n");
        root.write("/etc/hosts.deny", "sshd: ALL\n");
    });
    machine.ssh(22, "true").ok();
    machine.spec("version: 1\nssh: {port: 2222}\n");
    let back = unchanged(&machine, || machine.apply().code(4));
    assert!(back.stderr.contains("/etc/hosts.allow"), "{back:?}");
    machine.root().write("/etc/hosts.allow", "sshd: 10.77.0. 127. [::1]\n");
    machine.apply().code(0);
}

/// What lies beside the journals and is none, and an argument that is no text.
#[test]
fn what_is_no_journal_is_passed_over() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("mkdir -p /var/lib/harden/x.journal; mkfifo /var/lib/harden/y.journal");
    machine.sh("head -c 4096 /dev/urandom > /var/lib/harden/z.journal");
    for command in ["harden status", "harden history"] {
        machine.exec(&format!("timeout 10 {command}")).code(0);
    }
    assert_eq!(machine.sh("harden history").trim(), "z unreadable");
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    machine.apply().code(0);
    machine.exec("harden rollback \"$(printf '\\377')\"").code(2);
}

/// A unit that is on its way is waited for, and not for ever.
#[test]
fn a_unit_that_is_on_its_way() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        let lines = "[Service]\nExecStartPost=/bin/sh -c 'sleep $(cat /root/pause)'\n";
        root.write("/root/pause", "0\n");
        root.write("/etc/systemd/system/ssh.service.d/slow.conf", lines);
    });
    machine.spec("version: 1\nssh: {port: 2222}\n");
    machine.sh("echo 60 > pause; systemctl restart --no-block ssh.service; sleep 1");
    let refused = machine.apply().code(1);
    assert!(refused.stderr.contains("ssh.service is activating"), "{refused:?}");
    machine.sh("systemctl kill ssh.service; echo 5 > pause; systemctl reset-failed ssh.service");
    machine.sh("systemctl restart --no-block ssh.service; sleep 1; echo 0 > pause");
    machine.apply().code(0);
    assert_state(&machine, &Want::service(2222));
    machine.sh("echo 5 > pause; systemctl restart --no-block ssh.service; sleep 1; echo 0 > pause");
    machine.exec("harden rollback -y --confirm probe").code(0);
    assert_state(&machine, &Want::service(22));
}
