//! What somebody spoils or loses, so that sshd would not start again: nothing is begun on it, whoever listens
//! goes on listening, and once it is mended everything comes back.

use crate::gap::Watch;
use crate::machine::{Machine, Suite, V4, run};
use crate::operator::{MOVE, socket_system};
use crate::state::{
    Want, assert_closed, assert_over, assert_state, property, unchanged, wait_until_idle,
};
use crate::wayback::{SAME_PORT, lets_in};

const DROP_IN: &str = "/etc/systemd/system/ssh.service.d/bad.conf";

/// Ends a change on the port itself that somebody spoils meanwhile, so that it cannot be taken back.
#[track_caller]
fn spoil(machine: &Machine, command: &str) -> String {
    machine.spec(SAME_PORT);
    machine.apply_in_background("8s");
    machine.sh(command);
    assert_eq!(machine.background_end(), 5);
    // The guard tries it again, unless the worker has taken longer.
    machine.wait_for(
        "guard",
        "! systemctl is-active -q 'harden-guard-*.timer' 'harden-guard-*.service'",
    );
    lets_in(machine, command);
    machine.root().read("/root/apply.log").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn comes_back(mut machine: Machine, want: &Want) {
    machine.exec("harden rollback -y").code(0);
    assert_closed(&machine);
    assert_over(&mut machine, want);
}

/// Neither would sshd start again, nor a rescue with its files.
#[test]
fn the_configuration_before_a_rollback() {
    let opts = "sed -i 's/^SSHD_OPTS=.*/SSHD_OPTS=\"-o Bogus=1\"/' /etc/default/ssh";
    for (suite, spoil, mend) in [
        (
            Suite::Trixie,
            "echo Bogus yes >> /etc/ssh/sshd_config",
            "sed -i /^Bogus/d /etc/ssh/sshd_config",
        ),
        (Suite::Bookworm, opts, "sed -i 's/^SSHD_OPTS=.*/SSHD_OPTS=/' /etc/default/ssh"),
    ] {
        let by_socket = suite == Suite::Trixie;
        let machine = if by_socket { socket_system(suite) } else { Machine::boot(suite, |_| {}) };
        machine.spec(SAME_PORT);
        machine.apply().code(0);
        machine.sh(spoil);
        let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
        assert!(refused.stderr.to_lowercase().contains("bogus"), "{refused:?}");
        lets_in(&machine, spoil);
        machine.sh(mend);
        machine.exec("harden rollback -y").code(0);
        assert_state(&machine, &if by_socket { Want::socket(22) } else { Want::service(22) });
    }
}

/// After an upgrade sshd refuses what harden has written for the one before: the way out that is told is one.
#[test]
fn a_line_of_hardens_own() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh: {settings: {X11Forwarding: no, MaxAuthTries: 4}}\n");
    machine.apply().code(0);
    machine.spec("version: 1\nssh: {settings: {X11Forwarding: no}}\n");
    let own = "/etc/ssh/sshd_config.d/00-harden.conf";
    machine.sh(&format!("sed -i s/MaxAuthTries/Bogus/ {own}"));
    let refused = unchanged(&machine, || machine.apply().code(1)).stderr;
    let refused = refused.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(refused.contains(&format!("take that line out of {own} by hand")), "{refused}");
    machine.sh(&format!("sed -i /Bogus/d {own}; sshd -t"));
    machine.apply().code(0);
    assert_state(&machine, &Want::service(22).with("x11forwarding no").with("maxauthtries 6"));
}

/// The files to go back to name a host key that is gone: sshd would not start with them.
#[test]
fn the_files_that_a_rollback_would_go_back_to() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("cp /etc/ssh/ssh_host_ed25519_key /etc/ssh/other; cp /etc/ssh/ssh_host_ed25519_key.pub /etc/ssh/other.pub");
    machine.spec("version: 1\nssh: {settings: {HostKey: /etc/ssh/other}}\n");
    machine.apply().code(0);
    machine.spec(SAME_PORT);
    machine.apply().code(0);
    machine.sh("mv /etc/ssh/other /root");
    let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
    assert!(refused.stderr.contains("the configuration to go back to"), "{refused:?}");
    machine.sh("mv /root/other /etc/ssh");
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::service(22).with("hostkey /etc/ssh/other"));
}

/// The port to go back to is somebody else's by now.
#[test]
fn the_port_that_a_rollback_would_go_back_to() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec(MOVE);
    machine.apply().code(0);
    machine.sh("systemd-run --quiet --unit=other nc -lk 0.0.0.0 22");
    machine.wait_for("a listener", "ss -Hltn | grep -q 0.0.0.0:22");
    let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
    assert!(refused.stderr.contains("port 22 is taken"), "{refused:?}");
    machine.sh("systemctl stop other.service");
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::service(22));
}

/// Nor to a configuration with which sshd would listen elsewhere than it did then.
#[test]
fn where_sshd_listens_after_a_rollback() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.spec(MOVE);
    machine.apply().code(0);
    let edits = [
        ("/etc/ssh/sshd_config", "$ a Port 22\\nPort 2300", ":2300 too (/etc/ssh/sshd_config:"),
        (
            "/etc/ssh/sshd_config",
            "1i ListenAddress 127.0.0.1",
            "as it did then (/etc/ssh/sshd_config:1",
        ),
        ("/etc/default/ssh", "$ a SSHD_OPTS=\"-p 2300\"", "`-p 2300` on sshd's"),
    ];
    for (path, edit, why) in edits {
        machine.sh(&format!("cp -a {path} kept; sed -i '{edit}' {path}"));
        let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
        assert!(refused.stderr.contains(why), "{refused:?}");
        machine.sh(&format!("mv kept {path}"));
    }
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::service(22));
}

/// A rescue of harden's own listens where sshd should, and nobody knows of it any more: that is not health.
#[test]
fn the_doctor_beside_a_rescue() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.sh("systemctl disable ssh.service");
    spoil(&machine, "systemctl mask ssh.service");
    machine.sh("rm -r /var/lib/harden");
    let told = machine.exec("harden doctor").code(3);
    assert!(told.unwrapped().contains("ssh.service is masked"), "{told:?}");
}

/// Its unit would keep everybody from their keys.
#[test]
fn the_unit_shuts_everybody_out() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    let said = spoil(&machine, &with_drop_in(DROP_IN, "[Service]\nProtectHome=yes\n"));
    assert!(said.contains("ssh.service has `ProtectHome=yes` by now"), "{said}");
    machine.sh(&format!("rm {DROP_IN}"));
    comes_back(machine, &Want::service(22));
}

/// Nothing shows what its unit would do: the sshd of the trial lets everybody in, that of the unit answers, and takes
/// no key, on the new port as on the old one.
#[test]
fn what_starts_sshd_shuts_everybody_out() {
    let hides = "exec unshare -m sh -c 'for home in /root /home; do mount -t tmpfs none $home; done; exec /usr/sbin/sshd -D'";
    for (suite, spec) in [(Suite::Bookworm, MOVE), (Suite::Trixie, SAME_PORT)] {
        let machine = Machine::boot(suite, |_| {});
        let starts = |how: &str| {
            let text = format!("#!/bin/sh\n{how}\n");
            machine.root().write("/usr/local/sbin/start-sshd", &text);
            machine.sh("chmod +x /usr/local/sbin/start-sshd");
        };
        starts("exec /usr/sbin/sshd -D");
        let text = "[Service]\nExecStart=\nExecStart=/usr/local/sbin/start-sshd\n";
        machine.sh(&format!("{}; systemctl restart ssh", with_drop_in(DROP_IN, text)));
        machine.spec(spec);
        starts(hides);
        let told = machine.exec("harden apply -y --confirm probe spec.yaml").code(5).unwrapped();
        assert!(
            told.contains("it takes no key of root and deploy; what does ssh.service do"),
            "{told}"
        );
        assert!(
            told.contains("takes no key of root and deploy, as its files would have it"),
            "{told}"
        );
        lets_in(&machine, hides);
        starts("exec /usr/sbin/sshd -D");
        comes_back(machine, &Want::service(22));
    }
}

/// Sound edits during a trial that is not confirmed, of whom sshd lets in and from where: its sshd is back, and nobody
/// asks it from loopback whom it lets in from there alone.
#[test]
fn who_gets_in_is_edited() {
    let own = "/etc/ssh/sshd_config.d/50-own.conf";
    let alice = "useradd -m -G sudo -s /bin/sh alice; cp -r /root/.ssh /home/alice/.ssh; chown -R alice: /home/alice/.ssh; \
                 echo 'alice ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/alice; echo 'AllowUsers alice'";
    for (suite, edit, user) in [
        (
            Suite::Trixie,
            format!("echo 'AllowUsers root@10.77.0.* deploy@10.77.0.*' > {own}"),
            "root",
        ),
        (Suite::Bookworm, format!("echo 'DenyUsers *@127.* *@::1' > {own}"), "root"),
        (Suite::Trixie, format!("{alice} > {own}"), "alice"),
    ] {
        let machine = Machine::boot(suite, |_| {});
        machine.spec(SAME_PORT);
        machine.apply_in_background("8s");
        machine.sh(&edit);
        assert_eq!(machine.background_end(), 4, "{edit}");
        machine.ssh_as(user, 22, "true").ok();
        assert_closed(&machine);
        assert_eq!(property(&machine, "ssh.service", "ActiveState"), "active");
    }
}

/// Whom somebody shuts out on purpose stays out, as long as others get in.
#[test]
fn the_files_shut_somebody_out() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    let deploy = machine.session_of("deploy", V4, 22);
    machine.spec(SAME_PORT);
    machine.apply_in_background("6s");
    machine.sh("echo 'DenyUsers deploy' > /etc/ssh/sshd_config.d/20-own.conf");
    assert_eq!(machine.background_end(), 4);
    machine.ssh(22, "true").ok();
    machine.ssh_as("deploy", 22, "true").code(255);
    assert_closed(&machine);
    drop(deploy);
}

/// On the command line, somebody's words beside those that come back.
#[test]
fn another_port_beside_those_that_come_back() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    let opts = "SSHD_OPTS=\"-p 2022 -o MaxAuthTries=5\"";
    machine.sh(&format!("echo '{opts}' > /etc/default/ssh; systemctl restart ssh.service"));
    machine.spec(MOVE);
    machine.apply().code(0);
    let own = "/etc/systemd/system/ssh.service.d/own.conf";
    let line = "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -p 2023 $SSHD_OPTS\n";
    machine.root().write(own, line);
    machine.sh("systemctl daemon-reload; systemctl restart ssh.service");
    let refused = machine.exec("harden rollback -y").code(1);
    assert!(refused.unwrapped().contains("`-p 2023` on sshd's command line"), "{refused:?}");
    machine.ssh(2023, "true").ok();
    machine.sh(&format!("rm {own}; systemctl daemon-reload; systemctl restart ssh.service"));
    machine.exec("harden rollback -y").code(0);
    machine.sh(&format!("grep -x '{opts}' /etc/default/ssh"));
    machine.ssh(2022, "true").ok();
}

/// Where the socket listens, too.
#[test]
fn where_the_socket_listens_after_a_rollback() {
    let machine = socket_system(Suite::Trixie);
    machine.apply().code(0);
    let own = "/etc/systemd/system/ssh.socket.d/own.conf";
    machine.root().write(own, "[Socket]\nListenStream=2300\n");
    machine.sh("systemctl daemon-reload");
    let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
    assert!(refused.unwrapped().contains(&format!("{own} says ListenStream=2300")), "{refused:?}");
    machine.sh(&format!("rm {own}; systemctl daemon-reload"));
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::socket(22));
}

/// sshd would start, and turn everybody away.
#[test]
fn the_files_shut_everybody_out() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let machine = Machine::boot(suite, |_| {});
        let own = "/etc/ssh/sshd_config.d/20-own.conf";
        let said = spoil(&machine, &format!("echo 'AllowGroups nobody' > {own}"));
        assert!(said.contains("in no group of AllowGroups (nobody)"), "{said}");
        machine.sh(&format!("rm {own}"));
        comes_back(machine, &Want::service(22));
    }
}

/// Behind a socket nothing has to run when a way back ends; but it has to when somebody connects. What is mended
/// is read, also where nobody has told systemd.
#[track_caller]
fn behind_the_socket(suite: Suite, line: &str, why: &str) {
    let machine = socket_system(suite);
    machine.sh("systemctl stop ssh.service; systemctl start ssh.socket");
    let said = spoil(&machine, &with_drop_in(DROP_IN, line));
    assert!(said.contains(why), "{said}");
    machine.sh(&format!("rm {DROP_IN}"));
    comes_back(machine, &Want::socket(22));
}

const FAILS: &str = "ssh.service does not start when somebody connects";

#[test]
fn behind_the_socket_something_is_missing() {
    let line = "[Unit]\nRequires=nope.service\n";
    behind_the_socket(Suite::UbuntuLike, line, "ssh.service needs nope.service");
}

#[test]
fn behind_the_socket_it_fails_at_once() {
    behind_the_socket(Suite::UbuntuLike, "[Service]\nExecStartPre=/bin/false\n", FAILS);
}

#[test]
fn behind_the_socket_it_fails_slowly() {
    let line = "[Service]\nExecStartPre=/bin/sh -c 'sleep 3; exit 1'\n";
    behind_the_socket(Suite::Trixie, line, FAILS);
}

#[test]
fn behind_the_socket_it_hangs() {
    let line = "[Service]\nExecStartPre=/bin/sleep infinity\n";
    behind_the_socket(Suite::Trixie, line, "ssh.service does not come up");
}

/// An address that is gone just then comes back, and with it a way in.
#[test]
fn the_address_is_gone_for_a_moment() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/etc/ssh/sshd_config.d/10-own.conf", "ListenAddress 10.77.0.2\n");
    });
    let address = |what| {
        let net = machine.server_net();
        run("ip", &["-n", &net, "address", what, "10.77.0.2/24", "dev", "cable"]);
    };
    machine.spec(SAME_PORT);
    machine.apply_in_background("8s");
    address("del");
    assert_eq!(machine.background_end(), 5);
    machine.wait_for("guard", "! systemctl is-active -q 'harden-guard-*'");
    address("add");
    machine.wait_for("a listener", "ss -Hltn sport = 22 | grep -q 10.77.0.2");
    lets_in(&machine, "with the address again");
    machine.exec("harden rollback -y").code(0);
    assert_closed(&machine);
    machine.sh("ss -Hltnp sport = 22 | grep 10.77.0.2 | grep -q \"pid=$(systemctl show -P MainPID ssh.service)\"");
}

/// It is mended while an earlier try still waits: who asks then gets a try of their own.
#[test]
fn mended_while_a_try_is_under_way() {
    let machine = socket_system(Suite::Trixie);
    machine.sh("systemctl stop ssh.service; systemctl start ssh.socket");
    spoil(&machine, &with_drop_in(DROP_IN, "[Service]\nExecStartPre=/bin/sleep infinity\n"));
    // The guard, which has waited for the worker, does not take the rescue away for another try.
    assert_eq!(machine.sh("grep -c '\"stuck\"' /var/lib/harden/*.journal").trim(), "1");
    machine.sh("systemd-run --quiet --unit=try harden rollback -y");
    let starts = "systemctl is-active ssh.service | grep -q activating";
    machine.wait_for("the start that hangs", starts);
    machine.sh(&format!("rm {DROP_IN}"));
    comes_back(machine, &Want::socket(22));
}

/// As systemd's generators' files are, whenever it reads everything anew.
#[test]
fn a_file_that_is_gone_for_a_moment() {
    let path = "/etc/systemd/system/ssh.service.d/own.conf";
    let machine = Machine::boot(Suite::Trixie, |root| root.write(path, "[Service]\nNice=1\n"));
    machine.spec(MOVE);
    machine.apply_in_background("60s");
    machine.sh(&format!(
        "mv {path} /root; systemd-run --quiet sh -c 'until ls /var/lib/harden/*.decision; do sleep 0.02; done; \
         sleep 0.3; mv /root/own.conf {path}'"
    ));
    machine.ssh(2222, "harden confirm").code(0);
    assert_eq!(machine.background_end(), 0);
    assert_state(&machine, &Want::service(2222));
}

/// The same where each connection has an sshd of its own.
#[test]
fn behind_a_socket_of_many_sshds() {
    let drop_in = "/etc/systemd/system/ssh@.service.d/bad.conf";
    let line = "[Service]\nExecStartPre=/bin/false\n";
    for (spoilt, mend, why) in [
        (with_drop_in(drop_in, line), format!("rm {drop_in}"), "ssh@.service ends at once"),
        (
            "systemctl mask ssh@.service".to_owned(),
            "systemctl unmask ssh@.service".to_owned(),
            "ssh.socket needs ssh@.service, which is masked",
        ),
    ] {
        let machine = socket_system(Suite::Bullseye);
        let said = spoil(&machine, &spoilt);
        assert!(said.contains(why), "{said}");
        machine.sh(&mend);
        comes_back(machine, &Want::socket(22));
    }
}

/// The worker dies just when the socket is back: who goes on connects too.
#[test]
fn behind_the_socket_and_the_worker_dies() {
    let machine = socket_system(Suite::Trixie);
    machine.sh("systemctl stop ssh.service; systemctl start ssh.socket");
    let back = "until ss -Hltnp sport = 22 | grep -q '\"systemd\"'; do sleep 0.02; done";
    machine.spec(SAME_PORT);
    machine.apply_in_background("8s");
    machine.sh(&with_drop_in(DROP_IN, "[Service]\nExecStartPre=/bin/false\n"));
    machine.exec(&format!("{back}; pkill -9 -f '[.]harden worker'"));
    assert_eq!(machine.background_end(), 5);
    lets_in(&machine, "after the way back");
    machine.sh(&format!("rm {DROP_IN}"));
    comes_back(machine, &Want::socket(22));
}

fn with_drop_in(path: &str, text: &str) -> String {
    let text = text.replace('\n', "\\n").replace('\'', "'\\''");
    format!("mkdir -p $(dirname {path}); printf '{text}' > {path}; systemctl daemon-reload")
}

/// What the socket would start is asked for before it is stopped.
#[test]
fn behind_the_socket_before_a_change() {
    let machine = socket_system(Suite::UbuntuLike);
    machine.ssh(22, "true").code(0);
    machine.root().write(DROP_IN, "[Unit]\nRequires=nope.service\n");
    machine.sh("systemctl daemon-reload");
    machine.spec(SAME_PORT);
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.stderr.contains("ssh.service needs nope.service"), "{refused:?}");
    lets_in(&machine, "after the refusal");
}

/// Neither the old sshd would start nor a rescue: the trial is the last that listens.
#[test]
fn host_keys_and_sshd_itself() {
    for (gone, back) in [
        ("mkdir /root/k; mv /etc/ssh/ssh_host_* /root/k", "mv /root/k/* /etc/ssh"),
        ("mv /usr/sbin/sshd /root/sshd", "mv /root/sshd /usr/sbin/sshd"),
    ] {
        let machine = Machine::boot(Suite::Trixie, |_| {});
        spoil(&machine, gone);
        machine.exec("harden rollback -y").code(5);
        lets_in(&machine, "after another try");
        machine.sh(back);
        comes_back(machine, &Want::service(22));
    }
}

/// sshd is to listen elsewhere by now: the rescue has the old port, and each try leaves it there.
#[test]
fn where_sshd_listens() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    let said = spoil(&machine, "echo Port 2022 >> /etc/ssh/sshd_config");
    assert!(said.contains("0.0.0.0:2022, and not on 0.0.0.0:22"), "{said}");
    let watch = Watch::table(&machine, &[22]);
    machine.exec("harden rollback -y").code(5);
    let seen = watch.end();
    assert!(seen.gaps.is_empty(), "{seen:?}");
    machine.sh("sed -i '/^Port 2022/d' /etc/ssh/sshd_config");
    comes_back(machine, &Want::service(22));
}

/// A journal is torn, or the whole state folder gone, and nobody works on the change any more.
#[test]
fn the_journal_and_the_state_folder() {
    let torn = "truncate -s 50 $(ls /var/lib/harden/*.journal | tail -1)";
    for lose in [torn, "rm -rf /var/lib/harden"] {
        let mut machine = Machine::boot(Suite::Bookworm, |_| {});
        // This change stands, whatever becomes of the next.
        machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
        machine.apply().code(0);
        machine.spec(SAME_PORT);
        machine.apply_in_background("300s");
        machine.sh(&format!("systemctl mask ssh.service; {lose}"));
        machine.kill_worker();
        std::thread::sleep(std::time::Duration::from_secs(3));
        let planned = machine.exec("harden plan spec.yaml").code(1);
        assert!(planned.stderr.contains("harden rollback"), "{planned:?}");
        // Neither takes the only listener away while its owner cannot start.
        machine.exec("harden rollback -y").code(1);
        lets_in(&machine, "after a rollback");
        machine.apply().code(1);
        lets_in(&machine, "after an apply");
        machine.sh("systemctl unmask ssh.service");
        machine.exec("harden rollback -y").code(0);
        wait_until_idle(&machine);
        assert_over(&mut machine, &Want::service(22).with("maxauthtries 3"));
    }
}

/// The state folder is lost, and the sshd behind the socket would not start.
#[test]
fn behind_the_socket_and_the_state_folder_is_gone() {
    let mut machine = socket_system(Suite::Trixie);
    machine.sh("systemctl stop ssh.service; systemctl start ssh.socket");
    spoil(&machine, &with_drop_in(DROP_IN, "[Service]\nExecStartPre=/bin/false\n"));
    machine.sh("rm -rf /var/lib/harden");
    machine.exec("harden rollback -y").code(1);
    lets_in(&machine, "after a rollback");
    machine.sh(&format!("rm {DROP_IN}; systemctl daemon-reload"));
    machine.exec("harden rollback -y").code(0);
    wait_until_idle(&machine);
    assert_over(&mut machine, &Want::socket(22));
}

/// At boot the sshd behind the socket waits for the network, longer than anybody would wait for it: that is no
/// failure.
#[test]
fn behind_the_socket_the_network_comes_late_after_a_power_cut() {
    let mut machine = socket_system(Suite::Trixie);
    machine.root().write(
        "/etc/systemd/system/late.service",
        "[Unit]\nDefaultDependencies=no\nBefore=network.target\nWants=network.target\n\
         [Service]\nType=oneshot\nExecStart=/bin/sleep 14\n[Install]\nWantedBy=multi-user.target\n",
    );
    machine.sh(
        "systemctl enable late.service; systemctl stop ssh.service; systemctl start ssh.socket",
    );
    machine.spec(SAME_PORT);
    machine.apply_in_background("300s");
    machine.cut_power_and_wait(60);
    wait_until_idle(&machine);
    assert_closed(&machine);
    lets_in(&machine, "after the boot");
    // It listened all the time: nobody has stopped it and started it again.
    let entered = |unit: &str| -> u64 {
        property(&machine, unit, "ActiveEnterTimestampMonotonic").parse().unwrap()
    };
    assert!(entered("ssh.socket") <= entered("sockets.target"), "ssh.socket was restarted");
    assert_over(&mut machine, &Want::socket(22));
}

/// What would have come at the next boot comes again, and is told.
#[test]
fn what_the_next_boot_brings_is_told() {
    for (suite, before, told) in [
        (Suite::Bookworm, "systemctl disable ssh.service", "ssh.service was not enabled"),
        (Suite::Trixie, "systemctl enable ssh.socket", "ssh.socket was enabled: it would have"),
    ] {
        let machine = Machine::boot(suite, |_| {});
        machine.sh(before);
        let states = "systemctl is-enabled ssh.service ssh.socket; systemctl is-active ssh.service ssh.socket; true";
        let (units, etc) = (machine.exec(states).stdout, machine.root().state_of_etc());
        machine.spec(MOVE);
        machine.apply().code(0);
        let undone = machine.exec("harden rollback -y").code(0);
        assert!(undone.unwrapped().contains(told), "{undone:?}");
        assert_eq!(
            undone.stderr.contains("and enabled for the next boot"),
            suite == Suite::Trixie,
            "{undone:?}"
        );
        assert_eq!((machine.exec(states).stdout, machine.root().state_of_etc()), (units, etc));
    }
}
