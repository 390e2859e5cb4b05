//! What is not sshd's or harden's, and what a host has that others have not: forwarded ports, an sshd of
//! somebody's own, units that others start, mounts.

use std::process::{Child, Command, Stdio};

use crate::machine::{Machine, Suite, run};
use crate::on_debian;
use crate::operator::socket_system;
use crate::state::{Want, assert_closed, assert_over, assert_state, unchanged};

on_debian!(forwarded_ports_are_no_sshd, who_edits_before_recovery_keeps_it);

const MOVE: &str = "version: 1\nssh: {port: 2222, socket: disabled}\n";
const SAME_PORT: &str = "version: 1\nssh: {socket: keep, settings: {MaxAuthTries: 4}}\n";

/// Debian 11: the last session that ssh.socket has started ends long after the change, and does not take sshd's
/// folder with it. `harden verify` and the doctor see where it is gone.
#[test]
fn the_last_session_of_the_socket_ends() {
    let mut machine = socket_system(Suite::Bullseye);
    let mut old = machine.session(22);
    machine.spec(MOVE);
    machine.apply().code(0);
    machine.sh("pkill -f '^sshd: root@'");
    assert!(old.ends(), "the old session is still there");
    std::thread::sleep(std::time::Duration::from_secs(1));
    for user in ["root", "deploy"] {
        assert_eq!(machine.ssh_as(user, 2222, "echo in").stdout, "in\n", "{user}");
    }
    unchanged(&machine, || machine.apply().code(0));
    machine.sh("rmdir /run/sshd");
    let verified = machine.exec("harden verify spec.yaml").code(3);
    assert!(verified.stdout.contains("/run/sshd was gone"), "{verified:?}");
    machine.sh("rmdir /run/sshd");
    let said = machine.exec("harden doctor").code(3).stdout;
    assert!(said.contains("run-folder-gone") && said.contains("systemctl restart ssh"), "{said}");
    machine.exec("harden verify spec.yaml").code(0);
    assert_over(&mut machine, &Want::service(2222));
    machine.exec("harden rollback -y").code(0);
    assert_over(&mut machine, &Want::socket(22));
}

/// The same where somebody has stopped the socket by hand before, and where a rollback leads back to ssh.service.
#[test]
fn sessions_that_outlive_a_stopped_socket() {
    let ends = |machine: &Machine, port: u16| {
        machine.sh("pkill -f '^sshd: root@'");
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(machine.ssh(port, "echo in").stdout, "in\n", "port {port}");
    };
    let machine = socket_system(Suite::Bullseye);
    let _old = machine.session(22);
    machine.sh("systemctl disable --now ssh.socket; systemctl enable --now ssh.service");
    machine.spec(MOVE);
    machine.apply().code(0);
    ends(&machine, 2222);

    let machine = Machine::boot(Suite::Bullseye, |_| {});
    machine.spec("version: 1\nssh: {port: 2222, socket: enabled}\n");
    machine.apply().code(0);
    let _old = machine.session(2222);
    machine.exec("harden rollback -y").code(0);
    ends(&machine, 22);
    assert_state(&machine, &Want::service(22));

    // The socket has had the port for a moment when everything is taken back.
    let machine = Machine::boot(Suite::Bullseye, |root| {
        // For the proof, which comes from the host itself.
        let fails = "[Service]\nExecStartPre=/bin/sh -c 'case %i in *-127.*|*-::1*) sleep 2; test ! -e /root/fail;; esac'\n";
        root.write("/etc/systemd/system/ssh@.service.d/fails.conf", fails);
    });
    machine.spec("version: 1\nssh: {port: 2222, socket: enabled}\n");
    machine.start_apply("--confirm probe");
    machine.wait_for("the socket", "systemctl is-active -q ssh.socket");
    let _old = machine.session(2222);
    machine.sh("touch /root/fail");
    assert_eq!(machine.background_end(), 4);
    ends(&machine, 22);
    assert_state(&machine, &Want::service(22));
}

/// A drop-in that systemd cannot read: sshd runs, and would not start again.
#[test]
fn a_unit_that_systemd_cannot_read_is_refused() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let machine = Machine::boot(suite, |_| {});
        let drop_in = "/etc/systemd/system/ssh.service.d/o.conf";
        machine
            .root()
            .write(drop_in, "[Service]\nExecStart=/usr/sbin/sshd -D -o LogLevel=VERBOSE\n");
        machine.sh("systemctl daemon-reload");
        for spec in [SAME_PORT, MOVE] {
            machine.spec(spec);
            let refused = unchanged(&machine, || machine.apply().code(1));
            assert!(refused.stderr.contains("systemd cannot read ssh.service"), "{refused:?}");
        }
        let said = machine.exec("harden doctor").code(3).stdout;
        assert!(said.starts_with("broken-unit\n"), "{said}");
        machine.root().remove(drop_in);
        machine.sh("systemctl daemon-reload");
        machine.exec("harden doctor").code(0);
        machine.apply().code(0);
        machine.root().write(drop_in, "[Service]\nExecStart=\n");
        machine.sh("systemctl daemon-reload");
        let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
        assert!(refused.stderr.contains("ssh.service"), "{refused:?}");
    }
}

/// Something else than a link pulls ssh.socket in: after the next boot it would have the port again.
#[test]
fn a_socket_that_would_come_back_is_refused() {
    let machine = socket_system(Suite::Trixie);
    machine.spec(MOVE);
    for line in ["Wants=ssh.socket", "Upholds=ssh.socket"] {
        let drop_in = "/etc/systemd/system/sockets.target.d/u.conf";
        machine.root().write(drop_in, &format!("[Unit]\n{line}\n"));
        machine.sh("systemctl daemon-reload");
        let refused = unchanged(&machine, || machine.apply().code(1));
        let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains("sockets.target.d/u.conf pulls ssh.socket in"), "{line}: {said}");
        machine.root().remove(drop_in);
        machine.sh("systemctl daemon-reload");
    }
    // A link is taken away, also in the folder of a target's other name.
    let link = "/etc/systemd/system/default.target.wants/ssh.socket";
    machine.root().link(link, "/usr/lib/systemd/system/ssh.socket");
    machine.sh("systemctl daemon-reload");
    machine.apply().code(0);
    assert_eq!(machine.exec(&format!("readlink {link}")).stdout, "");
    machine.exec("harden verify spec.yaml").code(0);
    machine
        .root()
        .write("/etc/systemd/system/sockets.target.d/u.conf", "[Unit]\nWants=ssh.socket\n");
    machine.sh("systemctl daemon-reload");
    machine.exec("harden verify spec.yaml").code(3);
}

/// What nobody may start by hand could not be brought back.
#[test]
fn a_unit_that_refuses_is_refused() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    for line in ["RefuseManualStart=yes", "RefuseManualStop=yes"] {
        machine
            .root()
            .write("/etc/systemd/system/ssh.service.d/refuse.conf", &format!("[Unit]\n{line}\n"));
        machine.sh("systemctl daemon-reload");
        for spec in [SAME_PORT, MOVE] {
            machine.spec(spec);
            let refused = unchanged(&machine, || machine.apply().code(1));
            assert!(refused.stderr.contains("by hand"), "{line}: {refused:?}");
        }
    }
}

/// Somebody clears /run during the trial, and the guard's time comes during the hand-over: one of the two
/// does it.
#[test]
fn two_never_work_on_one_change() {
    let mut machine = Machine::boot(Suite::Trixie, |root| {
        let slow = "[Service]\nExecStartPre=/bin/sh -c 'grep -qs 2222 /etc/ssh/sshd_config.d/00-harden.conf \
                    && sleep 14 || true'\n";
        root.write("/etc/systemd/system/ssh.service.d/slow.conf", slow);
    });
    machine.spec(MOVE);
    machine.apply_in_background("10s");
    let confirm = machine.confirm_command();
    machine.sh("rm -rf /run/harden; sleep 7");
    let watch = crate::gap::Watch::table(&machine, &[22, 2222]);
    machine.ssh(2222, &confirm);
    let code = machine.background_end();
    machine.wait_for(
        "guard",
        "! systemctl is-active -q 'harden-guard-*.timer' 'harden-guard-*.service'",
    );
    let seen = watch.end();
    assert!(seen.gaps.is_empty(), "{seen:?}");
    for record in ["taken", "closed"] {
        let records = machine.sh(&format!("grep -ch '\"{record}\"' /var/lib/harden/*.journal"));
        assert_eq!(records.trim(), "1", "{record}");
    }
    assert_closed(&machine);
    assert_over(&mut machine, &Want::service(if code == 0 { 2222 } else { 22 }));
}

/// A session through which a port of the host's leads elsewhere.
struct Forwarding(Child);

impl Forwarding {
    fn through(machine: &Machine, port: u16, listens: u16) -> Self {
        let mut args = machine.ssh_args("10.77.0.2", port, "root");
        let host = args.pop().unwrap();
        let forward = format!("{listens}:127.0.0.1:9");
        args.extend(["-R".to_owned(), forward, host, "sleep 120".to_owned()]);
        let child = Command::new("ip").args(args).stdin(Stdio::null()).spawn().unwrap();
        machine.wait_for("forwarding", &format!("ss -Hltn | grep -q '127.0.0.1:{listens} '"));
        Self(child)
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

mod cases {
    use super::*;

    /// A session listens for its user (`ssh -R`, X11): it is nobody's sshd, and lives on.
    pub(super) fn forwarded_ports_are_no_sshd(suite: Suite) {
        // Without PAM sessions are in the control group of ssh.service.
        for pam in ["yes", "no"] {
            let mut machine = Machine::boot(suite, |_| {});
            machine.sh(&format!(
                "sed -i '/^UsePAM/d' /etc/ssh/sshd_config; sed -i '1i UsePAM {pam}' \
                 /etc/ssh/sshd_config; systemctl restart ssh.service"
            ));
            let mut before = Forwarding::through(&machine, 22, 9000);
            machine.exec("harden doctor").code(0);
            machine.spec(SAME_PORT);
            machine.apply_in_background("12s");
            let mut during = Forwarding::through(&machine, 22, 9001);
            assert_eq!(machine.background_end(), 4, "{}", machine.root().read("/root/apply.log"));
            assert_closed(&machine);
            assert!(before.lives() && during.lives());
            machine.spec(MOVE);
            machine.apply_in_background("60s");
            let mut through = Forwarding::through(&machine, 2222, 9002);
            machine.ssh(2222, &machine.confirm_command()).code(0);
            assert_eq!(machine.background_end(), 0, "{}", machine.root().read("/root/apply.log"));
            machine.exec("harden verify spec.yaml").code(0);
            assert!(before.lives() && during.lives() && through.lives(), "UsePAM {pam}");
            drop((before, during, through));
            machine.wait_for("end of forwarding", "! ss -Hltn | grep -q 127.0.0.1:900");
            assert_over(&mut machine, &Want::service(2222));
        }
    }

    /// What somebody has changed by hand since is theirs, also for what runs at boot.
    pub(super) fn who_edits_before_recovery_keeps_it(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.append("/etc/ssh/sshd_config", "Port 22\n");
            root.write(
                "/etc/systemd/system/ssh.service.d/at-times.conf",
                "[Service]\nExecStartPre=/usr/bin/test ! -e /root/not-now\n",
            );
        });
        machine.spec(MOVE);
        // It becomes permanent, cannot, and cannot go back.
        machine.apply_in_background("60s");
        machine.root().write("/root/not-now", "");
        machine.ssh(2222, &machine.confirm_command());
        assert_eq!(machine.background_end(), 5, "{}", machine.root().read("/root/apply.log"));
        machine.root().append("/etc/ssh/sshd_config", "DenyUsers nobody\n");
        machine.root().remove("/root/not-now");
        machine.reboot();
        machine.wait_for_the_end();
        assert_closed(&machine);
        let text = machine.root().read("/etc/ssh/sshd_config");
        assert!(text.contains("\nDenyUsers nobody\n"), "{text}");
        assert_eq!(machine.ssh(22, "echo in").stdout, "in\n");
    }
}

/// An sshd that somebody starts during the trial is theirs: it is told, and what is back is closed.
#[test]
fn an_sshd_that_somebody_starts_is_theirs() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write(
            "/etc/systemd/system/spare.service",
            "[Service]\nExecStart=/usr/sbin/sshd -D -p 2200 -o PidFile=none\n",
        );
    });
    for spec in [MOVE, SAME_PORT] {
        machine.spec(spec);
        machine.apply_in_background("4s");
        machine.sh("systemctl start spare.service");
        assert_eq!(machine.background_end(), 4);
        let said = machine.root().read("/root/apply.log");
        assert!(said.contains("listens for SSH on") && said.contains("2200"), "{said}");
        assert_closed(&machine);
        assert_eq!(machine.ssh(2200, "echo in").stdout, "in\n");
        machine.sh("systemctl stop spare.service");
        assert_state(&machine, &Want::service(22));
    }
}

/// /usr/local is mounted when systemd has read its units already.
#[test]
fn a_late_mount_hides_no_recovery() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let mut machine = socket_system(suite);
        machine
            .sh("cp -a /usr/local /srv/ul; echo '/srv/ul /usr/local none bind 0 0' >> /etc/fstab");
        machine.reboot();
        machine.sh("findmnt /usr/local");
        for begun in ["is-enabled", "is-active"] {
            machine.start_apply("--confirm probe");
            machine.wait_for("step", &format!("! systemctl {begun} -q ssh.socket"));
            machine.cut_power_and_wait(60);
            machine.wait_for_the_end();
            assert_closed(&machine);
            assert_state(&machine, &Want::service(2222));
            machine.exec("harden rollback -y").code(0);
            assert_state(&machine, &Want::socket(22));
        }
        assert_eq!(machine.exec("ls /usr/lib/systemd/system | grep harden").stdout, "");
    }
}

/// A unit that is not enabled may be started by another one, or by hand.
#[test]
fn a_unit_that_another_one_starts_comes_back() {
    let mut machine = Machine::boot(Suite::Trixie, |root| {
        root.write(
            "/etc/systemd/system/mine.service",
            "[Unit]\nWants=ssh.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
        );
    });
    machine.sh("systemctl enable mine.service; systemctl disable ssh.service");
    machine.reboot();
    machine.spec(MOVE);
    for enabled in [true, false] {
        if !enabled {
            machine.sh("systemctl disable mine.service; systemctl start ssh.service");
        }
        machine.apply_in_background("60s");
        machine.cut_power_and_wait(60);
        machine.wait_for_the_end();
        assert_closed(&machine);
        assert_eq!(machine.ssh(22, "echo in").stdout, "in\n", "enabled: {enabled}");
        assert_eq!(machine.sh("systemctl is-active ssh.service").trim(), "active");
        assert_eq!(machine.exec("systemctl is-enabled ssh.service").stdout, "disabled\n");
    }
}

/// Once stopped, nothing could start it.
#[test]
fn a_masked_unit_that_runs_is_left_alone() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec(SAME_PORT);
    for (mask, unmask) in [("mask", "unmask"), ("mask --runtime", "unmask --runtime")] {
        machine.sh(&format!("systemctl {mask} ssh.service"));
        let refused = unchanged(&machine, || machine.apply().code(1));
        let told = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(told.contains(&format!("systemctl {unmask} ssh.service")), "{told}");
        machine.sh(&format!("systemctl {unmask} ssh.service"));
    }
    machine.apply().code(0);
}

/// sshd binds `::` there, and nobody can speak to it.
#[test]
fn ipv6_may_be_switched_off() {
    let machine = socket_system(Suite::Trixie);
    let net = machine.server_net();
    let sysctl = ["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"];
    run("ip", &[&["netns", "exec", &net], &sysctl[..]].concat());
    machine.spec(MOVE);
    machine.apply().code(0);
    machine.exec("harden verify spec.yaml").code(0);
    assert_eq!(machine.ssh(2222, "echo in").stdout, "in\n");
}

/// An address with a zone is none that harden knows: it is left alone, unless the spec names others.
#[test]
fn addresses_with_a_zone_are_left_alone() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    // One that another host may have cannot be bound yet.
    machine.wait_for("an address", "! ip -6 address show scope link | grep -q tentative");
    machine.sh(
        "ip -6 -o address show scope link | head -n 1 | while read number link inet6 ip rest; do \
         echo ListenAddress ${ip%/*}%$link; done >> /etc/ssh/sshd_config; \
         systemctl restart ssh.service",
    );
    machine.spec(SAME_PORT);
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.stderr.contains("an address with a"), "{refused:?}");
    machine.spec("version: 1\nssh: {port: 22, listen: [\"0.0.0.0\", \"::\"]}\n");
    machine.apply().code(0);
    assert_state(&machine, &Want::service(22));
}
