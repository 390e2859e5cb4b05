//! A way back that cannot be completed, or on which somebody else is under way too: what is left lets people
//! in for as long as it takes, and a change that is back is closed.

use crate::gap::Watch;
use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::operator::socket_system;
use crate::state::{Want, assert_closed, assert_over, assert_state, unchanged, wait_until_idle};

on_debian!(the_last_way_in_outlasts_what_people_try, who_restarts_sshd_meanwhile_does_no_harm);

pub(crate) const SAME_PORT: &str = "version: 1\nssh: {socket: keep, settings: {MaxAuthTries: 4}}\n";

/// A change of a host whose configuration somebody breaks meanwhile, so that the old sshd does not start.
fn stuck(suite: Suite) -> Machine {
    let machine = Machine::boot(suite, |_| {});
    machine.spec(SAME_PORT);
    machine.apply_in_background("8s");
    machine.root().append("/etc/ssh/sshd_config", "Bogus yes\n");
    assert_eq!(machine.background_end(), 5);
    machine
}

fn rescue(machine: &Machine) -> String {
    machine.sh("systemctl show -P MainPID 'harden-rescue-*'").trim().to_owned()
}

#[track_caller]
pub(crate) fn lets_in(machine: &Machine, when: &str) {
    assert_eq!(machine.ssh(22, "echo in").stdout, "in\n", "{when}");
}

mod cases {
    use super::*;

    pub(super) fn the_last_way_in_outlasts_what_people_try(suite: Suite) {
        let mut machine = stuck(suite);
        lets_in(&machine, "after the way back");
        let pid = rescue(&machine);
        // Also when the guard has tried again.
        machine.wait_for("guard", "! systemctl is-active -q 'harden-guard-*.timer'");
        for command in
            ["systemctl restart ssh.service", "systemctl stop ssh.service", "rm -r /run/sshd"]
        {
            machine.exec(command);
            lets_in(&machine, command);
        }
        // Whoever tries again while it cannot succeed takes nothing away.
        machine.exec("harden rollback -y").code(5);
        assert_eq!(rescue(&machine), pid, "the rescue went and came");
        lets_in(&machine, "after another try");

        machine.cut_power_and_wait(60);
        let tried =
            "! systemctl is-active -q harden-resume.service && harden status | grep -q incomplete";
        machine.wait_for("another try", tried);
        machine.exec("systemctl restart ssh.service");
        lets_in(&machine, "after a power cut");

        machine.sh("sed -i '/^Bogus/d' /etc/ssh/sshd_config");
        machine.exec("harden rollback -y").code(0);
        assert_closed(&machine);
        assert_state(&machine, &Want::service(22));
        assert_eq!(machine.sh("systemctl list-units --no-legend 'harden-*'").trim(), "");
    }

    pub(super) fn who_restarts_sshd_meanwhile_does_no_harm(suite: Suite) {
        let rollback = "harden rollback -y & sleep 0.05";
        for (interruption, pause) in
            [(rollback, 0), (rollback, 3), ("rm -rf /run/harden; pkill -HUP -x sshd", 0)]
        {
            let machine = Machine::boot(suite, |root| {
                let lines = format!("[Service]\nExecStartPre=/bin/sleep {pause}\n");
                root.write("/etc/systemd/system/ssh.service.d/slow.conf", &lines);
            });
            machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
            machine.apply_in_background("60s");
            machine.exec(&format!("{interruption}; systemctl restart ssh.service; wait"));
            machine.exec("harden rollback -y");
            machine.background_end();
            machine.wait_for_the_end();
            wait_until_idle(&machine);
            assert_closed(&machine);
            assert_state(&machine, &Want::service(22));
            let given_up = machine.exec("grep -l '\"stuck\"' /var/lib/harden/*.journal").stdout;
            assert_eq!(given_up, "", "it was given up on the way");
        }
    }
}

/// ssh.service starts neither with the new state nor with the old one any more, and systemd goes on trying or
/// waits: what its sshd holds meanwhile is no way in that lasts. Somebody listens all the time.
#[track_caller]
fn does_not_come_back(suite: Suite, lines: &str) {
    let machine = Machine::boot(suite, |root| {
        root.write("/etc/systemd/system/ssh.service.d/after.conf", &format!("{lines}\n"));
    });
    machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
    machine.sh("touch /root/fail");
    let watch = Watch::table(&machine, &[22, 2222]);
    machine.apply().code(5);
    let rescued = rescue(&machine);
    assert_ne!(rescued, "0", "there is no rescue");
    // As long as systemd would go on.
    std::thread::sleep(std::time::Duration::from_secs(20));
    assert_eq!(rescue(&machine), rescued, "the rescue went and came");
    listens_until_it_is_mended(machine, watch);
}

/// Somebody has listened all the time, and does; once nothing fails any more, everything comes back.
#[track_caller]
fn listens_until_it_is_mended(mut machine: Machine, watch: Watch) {
    let seen = watch.end();
    assert!(seen.gaps.is_empty(), "{seen:?}");
    lets_in(&machine, "after the way back");
    machine.sh("rm /root/fail");
    machine.exec("harden rollback -y").code(0);
    assert_closed(&machine);
    assert_over(&mut machine, &Want::service(22));
}

#[test]
fn a_start_that_hangs_when_sshd_listens() {
    let lines = "[Service]\nExecStartPost=/bin/sh -c 'test ! -e /root/fail || sleep 1000'\n\
                 TimeoutStartSec=45\nRestart=no";
    does_not_come_back(Suite::Bookworm, lines);
}

#[test]
fn a_service_that_comes_and_goes() {
    let lines = "[Service]\nExecStartPost=/bin/sh -c 'test ! -e /root/fail'\n\
                 Restart=always\nRestartSec=50ms\n[Unit]\nStartLimitIntervalSec=0";
    does_not_come_back(Suite::Trixie, lines);
}

#[test]
fn an_sshd_that_ends_just_after_it_has_started() {
    let lines = "[Service]\nType=exec\nRestart=on-failure\nRestartSec=5\n\
                 ExecStartPost=/bin/sh -c '[ -e /root/fail ] && (sleep 0.3; kill -9 $MAINPID) & true'";
    does_not_come_back(Suite::Trixie, lines);
}

#[test]
fn an_sshd_that_ends_again_and_again() {
    for (suite, pause) in [(Suite::Bookworm, "100ms"), (Suite::Trixie, "1s")] {
        let lines = format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=exec\nRestart=always\nRestartSec={pause}\n\
             ExecStartPost=/bin/sh -c '[ -e /root/fail ] && (sleep 0.4; kill -9 $MAINPID) & true'"
        );
        does_not_come_back(suite, &lines);
    }
}

/// On the port itself: nobody else can listen meanwhile, but in the end somebody does for good.
#[track_caller]
fn ends_again_and_again_on_the_same_port(pause: &str) {
    let machine = Machine::boot(Suite::Trixie, |root| {
        let lines = format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec={pause}\n\
             ExecStartPost=/bin/sh -c '[ -e /root/fail ] && (sleep 0.4; kill -9 $MAINPID) & true'\n"
        );
        root.write("/etc/systemd/system/ssh.service.d/after.conf", &lines);
    });
    machine.spec(SAME_PORT);
    machine.apply_in_background("10s");
    machine.sh("touch /root/fail");
    machine.exec("harden rollback -y").code(5);
    assert_eq!(machine.background_end(), 5);
    // The guard tries it again.
    machine.wait_for(
        "guard",
        "! systemctl is-active -q 'harden-guard-*.timer' 'harden-guard-*.service'",
    );
    let watch = Watch::table(&machine, &[22]);
    std::thread::sleep(std::time::Duration::from_secs(5));
    listens_until_it_is_mended(machine, watch);
}

#[test]
fn on_the_same_port_it_ends_again_and_again() {
    ends_again_and_again_on_the_same_port("1s");
}

/// Whenever one looks, it runs.
#[test]
fn on_the_same_port_it_is_started_again_at_once() {
    ends_again_and_again_on_the_same_port("0");
}

/// Somebody restarts the old sshd just when it is back, and it takes its time to start.
#[test]
fn a_slow_sshd_is_restarted_on_the_way_back() {
    for pause in ["4", "0"] {
        let mut machine = Machine::boot(Suite::Bookworm, |root| {
            let check = "! test -e /etc/ssh/sshd_config.d/00-harden.conf";
            let lines = format!("[Service]\nExecStartPre=/bin/sh -c 'sleep {pause}; {check}'\n");
            root.write("/etc/systemd/system/ssh.service.d/slow.conf", &lines);
        });
        machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
        machine.start_apply("--confirm probe");
        machine.wait_for("the way back", "grep -q 'taking everything back' apply.log");
        machine.wait_for("ssh.service", "systemctl is-active -q ssh.service");
        machine.sh("sleep 0.3; systemctl restart ssh.service");
        assert_eq!(machine.background_end(), 4);
        assert_closed(&machine);
        assert_over(&mut machine, &Want::service(22));
    }
}

/// Somebody stops the old listener, which the trial on another port has not touched: it comes back.
#[test]
fn the_old_listener_is_stopped_meanwhile() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let mut machine = Machine::boot(suite, |_| {});
        machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
        machine.apply_in_background("60s");
        machine.sh("systemctl stop ssh.service");
        let watch = Watch::table(&machine, &[22, 2222]);
        machine.exec("harden rollback -y").code(0);
        let seen = watch.end();
        assert!(seen.gaps.is_empty(), "{seen:?}");
        assert_eq!(machine.background_end(), 4);
        assert_closed(&machine);
        assert_over(&mut machine, &Want::service(22));
    }
}

/// Somebody stops the old listener, which takes its time to stop: its port is not held for good.
#[test]
fn the_old_listener_stops_slowly() {
    let mut machine = Machine::boot(Suite::Trixie, |root| {
        let slow = "[Service]\nTimeoutStopSec=90s\nExecStop=/usr/bin/sleep 50\n";
        root.write("/etc/systemd/system/ssh.service.d/slow.conf", slow);
    });
    machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
    machine.apply_in_background("10s");
    machine.sh("systemctl stop --no-block ssh.service");
    let watch = Watch::table(&machine, &[22, 2222]);
    std::thread::sleep(std::time::Duration::from_secs(30));
    assert_eq!(machine.background_end(), 4);
    let seen = watch.end();
    assert!(seen.gaps.is_empty(), "{seen:?}");
    machine.root().remove("/etc/systemd/system/ssh.service.d/slow.conf");
    machine.sh("systemctl daemon-reload");
    assert_closed(&machine);
    assert_over(&mut machine, &Want::service(22));
}

/// Somebody spoils the unit during the trial: who tries again takes nothing away.
#[test]
fn a_unit_that_is_spoilt_meanwhile() {
    let drop_in = "/etc/systemd/system/ssh.service.d/bad.conf";
    let bad = |line: &str| {
        let spoil = format!(
            "mkdir -p $(dirname {drop_in}); printf '{line}' > {drop_in}; systemctl daemon-reload"
        );
        (spoil, format!("rm {drop_in}; systemctl daemon-reload"))
    };
    let kept = "/etc/ssh/sshd_not_to_be_run";
    for ((spoil, mend), why) in [
        (bad("[Service]\\nExecStart=\\n"), drop_in),
        (bad("[Unit]\\nRefuseManualStart=yes\\n"), "by hand"),
        (bad("[Unit]\\nRequires=nix.service\\n"), "needs nix.service"),
        (("systemctl mask ssh".into(), "systemctl unmask ssh".into()), "systemctl unmask"),
        ((format!("touch {kept}"), format!("rm {kept}")), kept),
    ] {
        let mut machine = Machine::boot(Suite::Trixie, |_| {});
        machine.spec(SAME_PORT);
        machine.apply_in_background("8s");
        machine.sh(&spoil);
        assert_eq!(machine.background_end(), 5);
        let said = machine.root().read("/root/apply.log");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(why) && !said.contains("changed /etc/default/ssh"), "{said}");
        assert!(!said.contains("changed /usr/lib"), "{said}");
        let rescued = rescue(&machine);
        machine.exec("harden rollback -y").code(5);
        assert_eq!(rescue(&machine), rescued, "the rescue went and came: {spoil}");
        lets_in(&machine, "after another try");
        machine.sh(&mend);
        machine.sh("harden rollback -y || harden rollback -y");
        wait_until_idle(&machine);
        assert_closed(&machine);
        assert_over(&mut machine, &Want::service(22));
    }
}

/// The service that the old socket starts is masked meanwhile: each try leaves the rescue where it is.
#[test]
fn the_service_behind_the_socket_is_masked_meanwhile() {
    let mut machine = socket_system(Suite::Trixie);
    machine.sh("systemctl stop ssh.service");
    machine.spec(SAME_PORT);
    machine.apply_in_background("8s");
    machine.sh("systemctl mask ssh.service");
    assert_eq!(machine.background_end(), 5);
    let said = machine.root().read("/root/apply.log");
    assert!(said.contains("ssh.socket needs ssh.service, which is masked"), "{said}");
    assert!(!said.contains("the link"), "{said}");
    let rescued = rescue(&machine);
    machine.exec("harden rollback -y").code(5);
    assert_eq!(rescue(&machine), rescued, "the rescue went and came");
    lets_in(&machine, "after another try");
    // As an editor would mend it: systemd has not read it.
    machine.sh("rm /etc/systemd/system/ssh.service");
    machine.exec("harden rollback -y").code(0);
    assert_over(&mut machine, &Want::socket(22));
}

/// Links and folders of others come and go: that keeps no change open.
#[test]
fn folders_of_links_come_and_go() {
    for meanwhile in [
        "mkdir /etc/systemd/system/foo.target.wants; ln -s /dev/null /etc/systemd/system/foo.target.wants/x.service",
        "systemctl disable ssh.socket",
    ] {
        let machine = socket_system(Suite::Trixie);
        machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
        machine.apply_in_background("300s");
        machine.sh(meanwhile);
        machine.exec("harden rollback -y").code(0);
        assert_eq!(machine.background_end(), 4);
        assert_closed(&machine);
        lets_in(&machine, "under the old port");
    }
}

/// Unit files that somebody has made where harden has made links stay, on the way back and by an undo.
#[test]
fn unit_files_of_others_stay() {
    let own = "/etc/systemd/system/ssh.service";
    let make = format!("cp /usr/lib/systemd/system/ssh.service {own}; systemctl daemon-reload");
    let kept = "/etc/ssh/sshd_not_to_be_run";
    let machine = socket_system(Suite::Trixie);
    machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
    machine.start_apply("--confirm probe");
    machine.wait_for("its file", "test -e /etc/ssh/sshd_config.d/00-harden.conf");
    machine.sh(&format!("touch {kept}"));
    assert_eq!(machine.background_end(), 5);
    machine.sh(&format!("{make}; rm {kept}"));
    let undone = machine.exec("harden rollback -y").code(0);
    assert!(undone.stderr.contains(own), "{undone:?}");
    assert!(machine.root().exists(own), "it is gone");
    lets_in(&machine, "with a unit file of one's own");

    let machine = socket_system(Suite::Trixie);
    machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
    machine.apply().code(0);
    let link = format!(
        "cp /usr/lib/systemd/system/ssh.service .; ln -sf /root/ssh.service {own}; systemctl daemon-reload"
    );
    for make in [&make, &link] {
        machine.sh(make);
        let refused = machine.exec("harden rollback -y").code(1);
        assert!(refused.stderr.contains(own), "{refused:?}");
        assert!(machine.root().exists(own), "it is gone");
        machine.sh(&format!("rm {own}"));
    }
}

/// A unit file of one's own that has no `Alias=`: the link is there again, and the way back is over.
#[test]
fn a_unit_file_that_names_no_alias() {
    let own = "/etc/systemd/system/ssh.service";
    let kept = "/etc/ssh/sshd_not_to_be_run";
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh: {port: 2222, socket: enabled}\n");
    machine.start_apply("--confirm probe");
    let drop_in = "test -e /etc/systemd/system/ssh.socket.d/zz-harden.conf";
    machine.wait_for("its file", drop_in);
    machine.sh(&format!("touch {kept}"));
    assert_eq!(machine.background_end(), 5);
    machine.sh(&format!(
        "grep -v Alias= /usr/lib/systemd/system/ssh.service > {own}; systemctl daemon-reload; rm {kept}"
    ));
    machine.exec("harden rollback -y").code(0);
    assert_closed(&machine);
    lets_in(&machine, "with a unit file of one's own");
}

/// Nothing is changed, and nothing undone, where sshd could not be started again.
#[test]
fn what_could_not_start_again_is_not_stopped() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.spec("version: 1\nssh: {port: 2222}\n");
    machine.apply().code(0);
    machine.spec("version: 1\nssh: {port: 2222, settings: {MaxAuthTries: 3}}\n");
    let drop_in = "/run/systemd/system/ssh.service.d/x.conf";
    let line = |line: &str| {
        format!(
            "mkdir -p $(dirname {drop_in}); printf '[Unit]\\n{line}\\n' > {drop_in}; systemctl daemon-reload"
        )
    };
    let away = format!("rm {drop_in}; systemctl daemon-reload");
    let kept = "/etc/ssh/sshd_not_to_be_run";
    for (spoil, mend) in [
        ("systemctl mask ssh".to_owned(), "systemctl unmask ssh".to_owned()),
        ("systemctl mask --runtime ssh".into(), "systemctl unmask --runtime ssh".into()),
        (format!("touch {kept}"), format!("rm {kept}")),
        (line("RefuseManualStart=yes"), away.clone()),
        (line("RefuseManualStop=yes"), away.clone()),
        (line("Requires=nix.service"), away),
    ] {
        machine.sh(&spoil);
        unchanged(&machine, || machine.exec("harden rollback -y").code(1));
        unchanged(&machine, || machine.apply().code(1));
        machine.sh(&mend);
    }
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::service(22));
}

/// ssh.service goes on with the listener of a socket that somebody stops or restarts meanwhile.
#[test]
fn the_old_socket_is_stopped_meanwhile() {
    for stop in ["systemctl stop ssh.socket", "systemctl restart ssh.socket || true"] {
        for suite in [Suite::Trixie, Suite::UbuntuLike] {
            let mut machine = socket_system(suite);
            machine.ssh(22, "true");
            machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
            machine.apply_in_background("300s");
            machine.sh(stop);
            let watch = Watch::table(&machine, &[22, 2222]);
            machine.exec("harden rollback -y").code(0);
            let seen = watch.end();
            assert!(seen.gaps.is_empty(), "{seen:?}");
            assert_eq!(machine.background_end(), 4);
            assert_over(&mut machine, &Want::socket(22));
        }
    }
}

#[test]
fn a_start_that_fails_when_sshd_listens() {
    let lines = "[Service]\nExecStartPost=/bin/sh -c 'test ! -e /root/fail'";
    does_not_come_back(Suite::Trixie, lines);
    does_not_come_back(Suite::Bookworm, lines);
}

/// Somebody enables or disables a unit during the trial: that is theirs, and stays.
#[test]
fn links_of_others_stay() {
    for confirmed in [true, false] {
        let machine = Machine::boot(Suite::Trixie, |_| {});
        machine.spec("version: 1\nssh: {port: 2222, socket: disabled}\n");
        machine.apply_in_background("8s");
        machine.sh("systemctl disable ssh.service");
        if confirmed {
            machine.ssh(2222, &machine.confirm_command());
        }
        assert_eq!(machine.background_end(), 4);
        let said = machine.root().read("/root/apply.log");
        let link = "multi-user.target.wants/ssh.service";
        assert!(said.contains("somebody") && said.contains(link), "{said}");
        assert_closed(&machine);
        assert_eq!(machine.exec("systemctl is-enabled ssh.service").stdout, "disabled\n");
        lets_in(&machine, "under the old port");
    }
}

/// What systemd has not read yet would start something else than what was looked at.
#[test]
fn a_unit_that_was_not_read_is_refused() {
    let machine = socket_system(Suite::Trixie);
    machine.root().write(
        "/etc/systemd/system/ssh.service.d/x.conf",
        "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -f /etc/ssh/other\n",
    );
    let refused = machine.apply().code(1);
    assert!(refused.stderr.contains("systemd has not read them"), "{refused:?}");
    machine.sh("systemctl daemon-reload");
    let refused = machine.apply().code(1);
    assert!(refused.stderr.contains("-f /etc/ssh/other"), "{refused:?}");
    machine.sh("rm /etc/systemd/system/ssh.service.d/x.conf; systemctl daemon-reload");
    // The way back would start the other one.
    machine.root().write(
        "/etc/systemd/system/ssh.socket.d/x.conf",
        "[Socket]\nListenStream=\nListenStream=127.0.0.1:22\n",
    );
    let refused = machine.apply().code(1);
    assert!(refused.unwrapped().contains("the files of ssh.socket have changed"), "{refused:?}");
}
