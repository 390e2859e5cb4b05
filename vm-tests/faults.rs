//! What a change of sshd must survive. After each: the state is the old one or the new one, whole; a
//! login works from outside; earlier sessions live; the journal is closed; and it is still so after
//! two more boots.

use crate::machine::{Machine, Root, Session, Suite};
use crate::on_debian;
use crate::operator::{MOVE, socket_system};
use crate::state::{Want, assert_closed, assert_converged, assert_over, assert_state};

on_debian!(
    killed_during_the_trial,
    killed_while_it_becomes_permanent,
    power_cut_during_the_trial,
    power_cut_while_it_becomes_permanent,
    the_guard_alone,
    a_rollback_that_fails_leaves_a_way_in,
);

/// ssh.service runs these when it starts; they can tell the new port from the old one.
fn when_starting(root: &Root, script: &str) {
    root.write("/usr/local/sbin/when-starting", &format!("#!/bin/sh\n{script}\n"));
    root.make_program("/usr/local/sbin/when-starting");
    root.write(
        "/etc/systemd/system/ssh.service.d/when.conf",
        "[Service]\nExecStartPre=/usr/local/sbin/when-starting\n",
    );
}

const NEW: &str = "grep -rqs '^Port 2222' /etc/ssh";

fn service_system(suite: Suite, script: &str) -> Machine {
    let machine = Machine::boot(suite, |root| when_starting(root, script));
    machine.spec(MOVE);
    machine
}

/// Waits until ssh.service is being started for the new port.
fn wait_for_the_start(machine: &Machine) {
    machine.wait_for("start", "test -e /run/starting");
}

const SLOW_START: &str = "grep -rqs '^Port 2222' /etc/ssh || exit 0; touch /run/starting; sleep 2";

#[track_caller]
fn alive(sessions: &mut [Session]) {
    for (number, session) in sessions.iter_mut().enumerate() {
        assert!(session.lives(), "session {number} died");
    }
}

mod cases {
    use super::*;

    /// Faults 3: systemd starts the worker again at once, and it takes everything back.
    pub(super) fn killed_during_the_trial(suite: Suite) {
        let mut machine = socket_system(suite);
        let old = machine.session(22);
        machine.apply_in_background("300s");
        let new = machine.session(2222);
        machine.kill_worker();
        machine.wait_for_the_end();
        assert_eq!(machine.background_end(), 4);
        alive(&mut [old, new]);
        assert_over(&mut machine, &Want::socket(22));
    }

    /// Fault 4.
    pub(super) fn killed_while_it_becomes_permanent(suite: Suite) {
        let mut machine = service_system(suite, SLOW_START);
        let old = machine.session(22);
        machine.start_apply("--confirm probe");
        wait_for_the_start(&machine);
        machine.kill_worker();
        assert_eq!(machine.background_end(), 0, "{}", machine.root().read("/root/apply.log"));
        alive(&mut [old]);
        assert_converged(&machine);
        assert_over(&mut machine, &Want::service(2222));
    }

    /// Fault 6, before the decision.
    pub(super) fn power_cut_during_the_trial(suite: Suite) {
        let mut machine = socket_system(suite);
        machine.apply_in_background("300s");
        machine.cut_power();
        assert_over(&mut machine, &Want::socket(22));
        assert!(machine.sh("harden history").contains("rolled-back"));
    }

    /// Fault 6, after it: the files are half written, the units half switched.
    pub(super) fn power_cut_while_it_becomes_permanent(suite: Suite) {
        let mut machine = socket_system(suite);
        when_starting(&machine.root(), SLOW_START);
        machine.sh("systemctl daemon-reload");
        machine.start_apply("--confirm probe");
        wait_for_the_start(&machine);
        // Somebody pulls the plug with one file of the change missing.
        machine.root().remove("/etc/ssh/sshd_config.d/00-harden.conf");
        // However long it takes.
        let slow = "/etc/systemd/system/harden-recovery.service.d/slow.conf";
        machine.root().write(slow, "[Service]\nExecStartPre=/bin/sleep 2\n");
        machine.cut_power();
        machine.sh("rm -r /etc/systemd/system/harden-recovery.service.d");
        // Recovery had put the files right before anything of sshd's was started from them.
        let boot = machine.sh("journalctl -b -o cat _PID=1");
        let recovered = boot.find("Finished harden");
        assert!(recovered.unwrap() < boot.find("OpenBSD Secure Shell").unwrap(), "{boot}");
        machine.wait_for_the_end();
        assert_over(&mut machine, &Want::service(2222));
        assert_converged(&machine);
    }

    /// The worker is gone for good; the guard alone takes the change back.
    pub(super) fn the_guard_alone(suite: Suite) {
        let mut machine = socket_system(suite);
        let old = machine.session(22);
        machine.apply_in_background("3s");
        let new = machine.session(2222);
        machine.stop_worker();
        machine.wait_for_the_end();
        alive(&mut [old, new]);
        assert_over(&mut machine, &Want::socket(22));
    }

    /// Fault 23: neither the new configuration starts nor, then, the old one.
    pub(super) fn a_rollback_that_fails_leaves_a_way_in(suite: Suite) {
        let script = format!("{NEW} && touch /run/broken; test ! -e /run/broken");
        let mut machine = service_system(suite, &script);
        let mut old = machine.session(22);
        let failed = machine.ssh(22, "harden apply -y spec.yaml").code(5);
        assert!(failed.stderr.contains("rollback is incomplete"), "{failed:?}");
        assert_eq!(machine.ssh(22, "echo in").stdout, "in\n", "the rescue lets nobody in");
        let status = machine.sh("harden status");
        assert!(status.contains("needs-operator"), "{status}");
        assert!(machine.sh("journalctl -b -o cat").contains("could not be taken back"));
        machine.sh("rm /run/broken");
        machine.ssh(22, "harden rollback").code(0);
        alive(&mut [old]);
        old = machine.session(22);
        alive(&mut [old]);
        assert_over(&mut machine, &Want::service(22));
    }
}

/// Fault 5: killed on the way back.
#[test]
fn killed_during_the_rollback() {
    let script = format!("{NEW} && exit 1; test -e /run/slow && touch /run/back && sleep 2; true");
    let mut machine = service_system(Suite::Trixie, &script);
    let old = machine.session(22);
    machine.sh("touch /run/slow");
    machine.start_apply("--confirm probe");
    machine.wait_for("way back", "test -e /run/back");
    machine.kill_worker();
    assert_eq!(machine.background_end(), 4);
    alive(&mut [old]);
    assert_over(&mut machine, &Want::service(22));
}

/// Fault 6, on the way back.
#[test]
fn power_cut_during_the_rollback() {
    let script = format!("{NEW} && exit 1; test -e /run/slow && touch /run/back && sleep 2; true");
    let mut machine = service_system(Suite::Trixie, &script);
    machine.sh("touch /run/slow");
    machine.start_apply("--confirm probe");
    machine.wait_for("way back", "test -e /run/back");
    machine.cut_power();
    machine.wait_for_the_end();
    assert_over(&mut machine, &Want::service(22));
}

/// Fault 7.
#[test]
fn a_clean_reboot_before_the_confirmation() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("300s");
    machine.reboot();
    assert_over(&mut machine, &Want::socket(22));
}

/// Fault 8: the session that began it is killed with everything in it.
#[test]
fn the_session_is_killed() {
    let mut machine = socket_system(Suite::Trixie);
    let other = machine.session(22);
    let mut session = machine.session_with(22, "harden apply -y --confirm operator spec.yaml");
    machine.wait_for("the confirmation", "harden status | grep -q 'to confirm:'");
    machine
        .sh("scope=$(grep -o 'session-[^/]*[.]scope' /proc/$(pgrep -f '^harden apply')/cgroup); \
         systemctl kill -s KILL $scope");
    assert!(session.ends(), "the session is still there");
    machine.ssh(2222, &machine.confirm_command()).code(0);
    alive(&mut [other]);
    assert_over(&mut machine, &Want::service(2222));
}

/// Fault 9: systemd reads its units again, and executes itself anew.
#[test]
fn systemd_is_reloaded_meanwhile() {
    let mut machine = socket_system(Suite::Trixie);
    let old = machine.session(22);
    machine.apply_in_background("6s");
    machine.sh("systemctl daemon-reload; systemctl daemon-reexec");
    machine.sh("systemctl is-active 'harden-guard-*.timer'");
    machine.stop_worker();
    machine.wait_for_the_end();
    alive(&mut [old]);
    assert_over(&mut machine, &Want::socket(22));
    machine.apply_in_background("60s");
    machine.sh("systemctl daemon-reexec");
    machine.ssh(2222, &machine.confirm_command()).code(0);
    assert_over(&mut machine, &Want::service(2222));
}

/// Somebody stops the guard's timer: it is armed again, and keeps the deadline.
#[test]
fn a_timer_that_somebody_stops() {
    let mut machine = socket_system(Suite::Trixie);
    let old = machine.session(22);
    machine.apply_in_background("8s");
    machine.sh("systemctl stop 'harden-guard-*.timer'");
    machine.wait_for("timer", "systemctl is-active -q 'harden-guard-*.timer'");
    machine.stop_worker();
    machine.wait_for_the_end();
    alive(&mut [old]);
    assert_over(&mut machine, &Want::socket(22));
}

/// Fault 10: the bus dies. systemd is asked directly.
#[test]
fn the_bus_is_gone() {
    for confirmed in [false, true] {
        let mut machine = socket_system(Suite::Trixie);
        let old = machine.session(22);
        machine.apply_in_background(if confirmed { "60s" } else { "4s" });
        machine
            .sh("systemctl stop dbus.socket dbus.service; systemctl mask --runtime dbus.service");
        if confirmed {
            machine.ssh(2222, &machine.confirm_command()).code(0);
        }
        machine.wait_for_the_end();
        assert_eq!(machine.background_end(), if confirmed { 0 } else { 4 });
        machine.sh("systemctl unmask --runtime dbus.service; systemctl start dbus.service; \
             systemctl restart systemd-logind.service");
        alive(&mut [old]);
        let want = if confirmed { Want::service(2222) } else { Want::socket(22) };
        assert_over(&mut machine, &want);
    }
}

/// Fault 11: no recovery, or no program to run, so no change.
#[test]
fn no_guard_no_change() {
    let mut machine = socket_system(Suite::Trixie);
    let before = machine.root().state_of_etc();
    machine.sh("touch /usr/local/lib/systemd");
    let refused = machine.apply().code(1);
    assert!(refused.stderr.contains("Nothing was changed"), "{refused:?}");
    machine.sh("rm /usr/local/lib/systemd");
    assert_closed(&machine);
    machine.sh("mkdir -p /var/lib/harden; mount -t tmpfs -o mode=700 none /var/lib/harden");
    let refused = machine.apply().code(1);
    assert!(refused.stderr.contains("is in memory"), "{refused:?}");
    machine.sh("umount /var/lib/harden; mount --bind -o noexec /var/lib/harden /var/lib/harden");
    machine.apply().code(1);
    machine.sh("umount /var/lib/harden");
    assert_eq!(machine.root().state_of_etc(), before);
    assert_over(&mut machine, &Want::socket(22));
}

/// Faults 15 and 16: the port is taken between the plan and the trial; wholly, or for IPv4 alone.
#[test]
fn the_port_is_taken_at_the_last_moment() {
    for options in ["-lk", "-4 -lk"] {
        let mut machine = socket_system(Suite::Trixie);
        let old = machine.session(22);
        let mut terminal = crate::contract::login(&machine, 22);
        terminal.send_line("harden apply --confirm probe spec.yaml; echo code=$?").unwrap();
        terminal.exp_string("Apply these changes? [y/N]").unwrap();
        machine.sh(&format!("systemd-run -q --unit=thief nc {options} 2222; sleep 0.5"));
        terminal.send_line("y").unwrap();
        terminal.exp_string("code=4").unwrap();
        machine.sh("systemctl stop thief");
        alive(&mut [old]);
        assert_over(&mut machine, &Want::socket(22));
    }
}

/// Faults 17 and 18: harden's own probe passes, and its owner cannot get in: by a firewall outside,
/// or because sshd turns them away.
#[test]
fn the_owner_cannot_get_in() {
    let other = "version: 1\nssh: {port: 2222, settings: {HostbasedAuthentication: yes, \
                 AuthenticationMethods: hostbased}}\n";
    for spec in [MOVE, other] {
        let mut machine = socket_system(Suite::Trixie);
        machine.spec(spec);
        let old = machine.session(22);
        if spec == MOVE {
            machine.block_outside(2222);
        }
        machine.apply_in_background("4s");
        assert_ne!(machine.ssh(2222, "harden confirm").code, 0);
        assert_eq!(machine.background_end(), 4);
        alive(&mut [old]);
        assert_over(&mut machine, &Want::socket(22));
    }
}

/// Fault 20, and what a second harden may do meanwhile.
#[test]
fn a_second_harden_is_refused() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("60s");
    let second = machine.apply().code(1);
    assert!(second.stderr.contains("another harden"), "{second:?}");
    let holder = second.stderr.split_once("(process ").and_then(|(_, rest)| rest.split_once(')'));
    let holder = holder.unwrap_or_else(|| panic!("{second:?}")).0;
    let line = machine.exec(&format!("tr '\\0' ' ' </proc/{holder}/cmdline")).code(0).stdout;
    assert!(line.contains("harden worker"), "{line}");
    let plan = machine.exec("harden plan spec.yaml").code(1);
    assert!(plan.stderr.contains("is open"), "{plan:?}");
    machine.exec("harden rollback").code(0);
    assert_eq!(machine.background_end(), 4);
    assert_over(&mut machine, &Want::socket(22));
}

/// Fault 21: somebody edits a file during the trial. Their edit stays, and is told of.
#[test]
fn an_edit_during_the_trial_is_kept() {
    for path in ["/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/00-harden.conf"] {
        let mut machine = socket_system(Suite::Trixie);
        let old = machine.session(22);
        machine.apply_in_background("60s");
        machine.root().append(path, "MaxStartups 7\n");
        let edited = machine.root().read(path);
        let confirmed = machine.ssh(2222, &machine.confirm_command()).code(4);
        assert!(confirmed.stderr.contains(path), "{confirmed:?}");
        assert_eq!(machine.root().read(path), edited);
        alive(&mut [old]);
        assert_over(&mut machine, &Want::socket(22));
    }
}

/// The same with what the unit would start with, where no file that it reads by now says so.
#[test]
fn the_unit_changes_during_the_trial() {
    let starts = "[Service]\nEnvironmentFile=/etc/own\nExecStart=\nExecStart=/usr/sbin/sshd -D $SSHD_OPTS $OWN\n";
    let folder = "/etc/systemd/system/ssh.service.d";
    for (edit, why) in [
        (
            "sed -i s/=7/=8/ /etc/own".to_owned(),
            "command line were `-o MaxSessions=7 -o MaxStartups=9`, are",
        ),
        (format!("echo '[Service]' > {folder}/unread.conf"), "changed the files of ssh.service"),
    ] {
        let mut machine = Machine::boot(Suite::Bookworm, |root| {
            root.write(&format!("{folder}/own.conf"), starts);
            root.write("/etc/default/ssh", "SSHD_OPTS='-o MaxStartups=9'\n");
            root.write("/etc/own", "OWN='-o MaxSessions=7'\n");
        });
        machine.spec(MOVE);
        machine.apply_in_background("60s");
        machine.sh(&edit);
        let confirmed = machine.ssh(2222, &machine.confirm_command()).code(4);
        assert!(confirmed.unwrapped().contains(why), "{confirmed:?}");
        machine.sh("systemctl daemon-reload");
        assert_over(&mut machine, &Want::service(22));
    }
}

/// Fault 22: the installed program is replaced, or gone.
#[test]
fn the_program_is_gone() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("4s");
    machine.sh("cp /usr/local/bin/harden kept; echo broken > new; mv new /usr/local/bin/harden");
    machine.kill_worker();
    machine.wait_for("end", "! ls /var/lib/harden/*.harden 2>/dev/null");
    machine.sh("rm /usr/local/bin/harden; mv kept /usr/local/bin/harden");
    assert_over(&mut machine, &Want::socket(22));
}

/// Fault 25: a transaction whose worker is gone for good ends first.
#[test]
fn an_orphan_transaction_is_resolved_first() {
    let mut machine = socket_system(Suite::Trixie);
    let old = machine.session(22);
    machine.apply_in_background("300s");
    machine.stop_worker();
    machine.spec("version: 1\nssh: {port: 2200, socket: enabled}\n");
    let next = machine.apply().code(0);
    assert!(next.stderr.contains("did not end"), "{next:?}");
    alive(&mut [old]);
    assert_over(&mut machine, &Want::socket(2200));
}

/// Fault 26: the last record is torn.
#[test]
fn a_torn_journal_is_read_to_its_last_whole_record() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("300s");
    machine.stop_worker();
    machine
        .sh("for j in /var/lib/harden/*.journal; do printf '0123456789abcdef {\"clo' >> $j; done");
    machine.exec("harden rollback").code(0);
    assert_over(&mut machine, &Want::socket(22));
}

/// Fault 27: recovery hangs at boot; sshd starts all the same.
#[test]
fn recovery_that_hangs_does_not_block_the_boot() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("300s");
    machine.sh("cd /var/lib/harden; for p in *.harden; do cp $p kept; \
         printf '#!/bin/sh\\nsleep 1000\\n' > hang; chmod 700 hang; mv hang $p; done");
    machine.cut_power_and_wait(60);
    assert_eq!(machine.ssh(22, "echo in").stdout, "in\n");
    machine.sh("systemctl stop harden-resume.service; cd /var/lib/harden; \
         for p in *.harden; do mv kept $p; done");
    machine.exec("harden rollback").code(0);
    assert_over(&mut machine, &Want::socket(22));
}

/// `harden rollback` undoes what was applied, the same safe way, and only what stands.
#[test]
fn an_applied_change_is_undone() {
    let mut machine = socket_system(Suite::Trixie);
    let etc = machine.root().state_of_etc();
    machine.apply().code(0);
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    let old = machine.session(2222);
    machine.apply().code(0);
    let first = machine.sh("harden history").split_whitespace().next().unwrap().to_owned();
    // The later change built on the first one.
    machine.exec(&format!("harden rollback -y {first}")).code(1);
    machine.ssh(2222, "harden rollback -y").code(0);
    assert_state(&machine, &Want::service(2222).with("maxauthtries 6"));
    machine.ssh(2222, "harden rollback -y").code(0);
    assert_eq!(machine.root().state_of_etc(), etc);
    machine.exec("harden rollback -y").code(1);
    alive(&mut [old]);
    assert_over(&mut machine, &Want::socket(22));
}

/// The worker dies at the very end, when its own program has been cleared away: nothing starts it
/// again and again.
#[test]
fn killed_when_its_program_is_gone() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("60s");
    machine.sh("pkill -STOP -f '[.]harden worker'; cd /var/lib/harden; for p in *.harden; do mv $p kept; done; \
         pkill -KILL -f '[.]harden worker'; sleep 1");
    let restarts = "systemctl show -p NRestarts --value 'harden-2*.service' | sort -n | tail -n 1";
    let restarts = machine.sh(restarts);
    assert!(restarts.trim().parse::<u32>().unwrap_or(0) < 2, "restarted {restarts} times");
    machine.sh("cd /var/lib/harden; mv kept $(ls *.journal | sed s/journal/harden/)");
    machine.exec("harden rollback").code(0);
    assert_over(&mut machine, &Want::socket(22));
}

/// Fault 8: whatever it says cannot be written any more.
#[test]
fn nobody_reads_what_it_says() {
    let mut machine = socket_system(Suite::Trixie);
    machine.exec("harden apply -y spec.yaml > /dev/full 2> /dev/full").code(0);
    assert_over(&mut machine, &Want::service(2222));
    machine.exec("harden rollback -y >&- 2>&-").code(0);
    assert_over(&mut machine, &Want::socket(22));
}

/// Fault 13: the word that confirmed an earlier change confirms no later one.
#[test]
fn a_token_is_for_one_change() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("60s");
    let earlier = machine.confirm_command();
    machine.exec("harden rollback").code(0);
    machine.background_end();
    machine.apply_in_background("60s");
    let stale = machine.ssh(2222, &earlier).code(1);
    assert!(stale.stderr.contains("does not belong"), "{stale:?}");
    machine.ssh(2222, &machine.confirm_command()).code(0);
    assert_over(&mut machine, &Want::service(2222));
}
