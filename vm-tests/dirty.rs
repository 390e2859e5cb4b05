//! Start states that other tools and earlier releases leave, and those that must be refused.

use crate::on_debian;

on_debian!(
    port_taken,
    syntax_error_in_a_drop_in,
    not_to_be_run,
    socket_masked,
    leftover_drop_ins,
    another_sshd_by_hand,
    other_lines_are_resolved,
    enabled_until_the_next_boot,
    host_keys_changed_since_the_start,
);

mod cases {
    use crate::machine::{Machine, Suite};
    use crate::state::{Want, assert_for_good, assert_state, unchanged};

    const MOVE: &str = "version: 1\nssh:\n  port: 2222\n  socket: disabled\n";

    pub(super) fn port_taken(suite: Suite) {
        let machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
        machine.sh("systemd-run --quiet --unit=squatter nc -4 -lk 2222; sleep 0.3");
        machine.spec(MOVE);
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.stderr.contains("squatter.service"), "{refused:?}");
        assert_state(&machine, &Want::socket(22));
    }

    /// systemd says `enabled`, or something like it, and no sshd would start at the next boot.
    pub(super) fn enabled_until_the_next_boot(suite: Suite) {
        for how in [
            "rm /etc/systemd/system/multi-user.target.wants/ssh.service; systemctl daemon-reload",
            "systemctl disable ssh.service; systemctl enable --runtime ssh.service",
        ] {
            let mut machine = Machine::boot(suite, |_| {});
            machine.sh(how);
            machine.spec("version: 1\nssh: {port: 22, socket: disabled}\n");
            machine.exec("harden verify spec.yaml").code(3);
            machine.exec("harden apply -y --confirm probe spec.yaml").code(0);
            assert_for_good(&mut machine, &Want::service(22));
        }
    }

    /// Before OpenSSH 9.8 sshd reads them for each connection: it shows the new ones already.
    pub(super) fn host_keys_changed_since_the_start(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        machine.sh("rm /etc/ssh/ssh_host_*; ssh-keygen -A");
        machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
        let apply = "harden apply -y --confirm probe spec.yaml";
        if !matches!(suite, Suite::Bullseye | Suite::Bookworm) {
            let refused = unchanged(&machine, || machine.exec(apply).code(1)).unwrapped();
            assert!(refused.contains("the host keys have changed since sshd started"), "{refused}");
            machine.sh("systemctl restart ssh.service");
        }
        machine.exec(apply).code(0);
        assert_state(&machine, &Want::service(2222));
    }

    pub(super) fn syntax_error_in_a_drop_in(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        let mut old = machine.session(22);
        machine.root().write("/etc/ssh/sshd_config.d/10-typo.conf", "# comment\nPortt 22\n");
        machine.spec(MOVE);
        let refused = unchanged(&machine, || machine.ssh(22, "harden apply -y spec.yaml").code(1));
        let said = "/etc/ssh/sshd_config.d/10-typo.conf";
        assert!(refused.stderr.contains(said) && refused.stderr.contains("line 2"), "{refused:?}");
        assert!(old.lives());
    }

    pub(super) fn not_to_be_run(suite: Suite) {
        let machine = Machine::boot(suite, |root| root.write("/etc/ssh/sshd_not_to_be_run", ""));
        machine.spec(MOVE);
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.stderr.contains("sshd_not_to_be_run"), "{refused:?}");
    }

    pub(super) fn socket_masked(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.link("/etc/systemd/system/ssh.socket", "/dev/null");
        });
        machine.spec(MOVE);
        machine.apply().code(0);
        assert_for_good(&mut machine, &Want::service(2222));
        assert!(machine.root().exists("/etc/systemd/system/ssh.socket"), "still masked");
        machine.spec("version: 1\nssh: {port: 2223, socket: enabled}\n");
        machine.apply().code(0);
        assert_for_good(&mut machine, &Want::socket(2223));
    }

    /// What Ubuntu 22.10's migration left behind.
    pub(super) fn leftover_drop_ins(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.socket_owns_port(suite);
            root.write(
                "/etc/systemd/system/ssh.socket.d/addresses.conf",
                "[Socket]\nListenStream=\nListenStream=2200\n",
            );
            if suite != Suite::Bullseye {
                root.write(
                    "/etc/systemd/system/ssh.service.d/00-socket.conf",
                    "[Unit]\nAfter=ssh.socket\nRequires=ssh.socket\n",
                );
            }
        });
        assert_state(&machine, &Want::socket(2200));
        machine.spec("version: 1\nssh: {port: 2201, socket: enabled}\n");
        machine.ssh(2200, "harden apply -y spec.yaml").code(0);
        assert_for_good(&mut machine, &Want::socket(2201));
        machine.spec(MOVE);
        machine.ssh(2201, "harden apply -y spec.yaml").code(0);
        assert_for_good(&mut machine, &Want::service(2222));
        assert!(!machine.root().exists("/etc/systemd/system/ssh.service.d/00-socket.conf"));
    }

    /// Somebody's own second sshd is not harden's to end, nor to overlook.
    pub(super) fn another_sshd_by_hand(suite: Suite) {
        let machine = Machine::boot(suite, |_| {});
        machine.sh("systemd-run --quiet --unit=mine /usr/sbin/sshd -D -p 2299; sleep 0.5");
        machine.spec(MOVE);
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.stderr.contains("mine.service"), "{refused:?}");
        machine.ssh(2299, "true").ok();
    }

    /// Accumulating lines elsewhere are set aside in sight, and come back when the spec lets go.
    pub(super) fn other_lines_are_resolved(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.write("/etc/ssh/sshd_config.d/99-late.conf", "Port 2200\nAllowGroups nobody\n");
        });
        let original = machine.root().read("/etc/ssh/sshd_config");
        machine.spec(
            "version: 1\nssh:\n  port: 2222\n  settings:\n    AllowGroups: [root, sudo]\n\
             \x20   AcceptEnv: LANG\n",
        );
        let plan = machine.sh("harden plan /root/spec.yaml");
        assert!(plan.contains("+#harden# Port 2200"), "{plan}");
        machine.apply().code(0);
        let want = Want::service(2222)
            .with("allowgroups root")
            .with("allowgroups sudo")
            .with("acceptenv lang");
        assert_for_good(&mut machine, &want);
        // A spec that is silent about the port leaves it where the last one put it.
        machine.spec("version: 1\nssh: {settings: {AllowGroups: [root]}}\n");
        machine.apply().code(0);
        let want = Want::service(2222).with("allowgroups root").with("acceptenv lang");
        assert_for_good(&mut machine, &want);
        assert_eq!(machine.root().read("/etc/ssh/sshd_config"), original);
    }
}

use crate::machine::{Machine, Suite};
use crate::state::{Want, assert_for_good, unchanged};

const KEYS: &str = "version: 1\nssh: {settings: {PasswordAuthentication: no}}\n";

/// Options that win over every file, from places where harden cannot take them away.
#[test]
fn options_that_hide_are_refused_by_name() {
    let unit = "/etc/systemd/system/ssh.service.d/override.conf";
    let hidden = [
        (
            unit,
            "[Service]\nEnvironmentFile=\nEnvironment=\"SSHD_OPTS=-o PasswordAuthentication=yes\"\n",
        ),
        (unit, "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -oPasswordAuthentication=yes\n"),
        (
            unit,
            "[Service]\nExecStart=\nExecStart=/bin/sh -c 'exec /usr/sbin/sshd -D -oPasswordAuthentication=yes'\n",
        ),
        ("/etc/default/ssh", "SSHD_OPTS=\"-u0 \\\n-o PasswordAuthentication=yes\"\n"),
        ("/etc/default/ssh", "SSHD_OPTS='-o \"PasswordAuthentication yes\"'\n"),
    ];
    for (path, text) in hidden {
        let machine = Machine::boot(Suite::Trixie, |root| root.write(path, text));
        machine.spec(KEYS);
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.stderr.contains("PasswordAuthentication"), "{text}: {refused:?}");
    }
}

/// Families: a spec that no longer narrows them widens them again, and one that overrules a line of
/// somebody else's stays as it is.
#[test]
fn address_families_come_and_go() {
    let mut machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh: {port: 2222, settings: {AddressFamily: inet}}\n");
    machine.apply().code(0);
    assert_for_good(&mut machine, &Want { v6: false, ..Want::service(2222) });
    machine.spec("version: 1\nssh: {port: 2222}\n");
    machine.apply().code(0);
    assert_for_good(&mut machine, &Want::service(2222));
    let main = machine.root().read("/etc/ssh/sshd_config");
    machine.root().write("/etc/ssh/sshd_config", &format!("AddressFamily inet\n{main}"));
    machine.spec("version: 1\nssh: {port: 2222, listen: \"::\"}\n");
    machine.apply().code(0);
    assert_for_good(&mut machine, &Want { v4: false, ..Want::service(2222) });
}

#[test]
fn addresses_that_are_not_there_are_refused() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh: {listen: [10.77.0.2, 10.99.0.2]}\n");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.stderr.contains("10.99.0.2"), "{refused:?}");
}

/// Where no drop-in is read early enough, the lines stand at the top of the main file.
#[test]
fn a_block_at_the_top_wins_where_a_drop_in_would_not() {
    let spec = "version: 1\nssh:\n  port: 2222\n  settings: {PasswordAuthentication: no}\n";
    for text in [
        "PasswordAuthentication yes\nPort 2200\n",
        "PasswordAuthentication yes\nInclude /etc/ssh/sshd_config.d/*.conf\nMatch all\nBanner /x\n",
        "Match User nobody\nInclude /etc/ssh/sshd_config.d/*.conf\n",
    ] {
        let mut machine =
            Machine::boot(Suite::Trixie, |root| root.write("/etc/ssh/sshd_config", text));
        machine.spec(spec);
        machine.apply().code(0);
        let main = machine.root().read("/etc/ssh/sshd_config");
        assert!(main.starts_with("# BEGIN harden"), "{main}");
        assert_for_good(&mut machine, &Want::service(2222).with("passwordauthentication no"));
    }
}

/// A symbolic link stays one; owner and mode stay what they were.
#[test]
fn links_owners_and_modes_are_kept() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        let text = root.read("/etc/ssh/sshd_config");
        root.write("/etc/ssh/real_config", &format!("{text}Port 2200\n"));
        root.link("/etc/ssh/sshd_config", "real_config");
    });
    machine.sh("chown root:deploy /etc/ssh/real_config; chmod 640 /etc/ssh/real_config");
    machine.spec("version: 1\nssh: {port: 2222}\n");
    machine.apply().code(0);
    let seen = machine.sh("readlink /etc/ssh/sshd_config; stat -c '%U %G %a' /etc/ssh/real_config");
    assert_eq!(seen, "real_config\nroot deploy 640\n");
    assert!(machine.root().read("/etc/ssh/real_config").contains("#harden# Port 2200"));
}
