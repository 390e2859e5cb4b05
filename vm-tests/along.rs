//! Units that systemd stops along with sshd's: they run again in the end, and those that are slow to stop hold
//! nobody up for good.

use std::time::Duration;

use crate::gap::Watch;
use crate::machine::{Machine, Suite};
use crate::operator::socket_system;
use crate::state::{Want, active, assert_closed, assert_over};

const MOVE: &str = "version: 1\nssh: {port: 2222, socket: disabled}\n";
const SAME_PORT: &str = "version: 1\nssh: {socket: keep, settings: {MaxAuthTries: 4}}\n";

/// With a unit beside ssh.service, which runs.
fn beside(suite: Suite, unit: &str, service: &str) -> Machine {
    let machine = Machine::boot(suite, |root| {
        let service = format!("[Service]\nExecStart=/usr/bin/sleep infinity\n{service}");
        let text = format!("[Unit]\nAfter=ssh.service\n{unit}\n{service}\n");
        root.write("/etc/systemd/system/beside.service", &text);
    });
    machine.sh("systemctl start beside.service");
    machine
}

/// Units that systemd stops along with ssh.service run again in the end, whichever way it goes.
#[test]
fn what_stops_along_with_sshd_comes_back() {
    let kinds = [
        "PartOf=ssh.service",
        "Requires=ssh.service",
        "BindsTo=ssh.service",
        "Requisite=ssh.service",
        "StopPropagatedFrom=ssh.service",
        // And what depends on those.
        "PartOf=with-0.service",
    ];
    let unit = |at: usize| format!("with-{at}.service");
    let machine = Machine::boot(Suite::Trixie, |root| {
        for (at, kind) in kinds.iter().enumerate() {
            let after = "After=ssh.service\n[Service]\nExecStart=/usr/bin/sleep infinity\n";
            let text = format!("[Unit]\n{kind}\n{after}");
            root.write(&format!("/etc/systemd/system/{}", unit(at)), &text);
        }
    });
    let units: Vec<String> = (0..kinds.len()).map(unit).collect();
    machine.sh(&format!("systemctl start {}", units.join(" ")));
    let all_run = |when: &str| {
        for unit in &units {
            assert!(active(&machine, unit), "{unit} {when}");
        }
    };
    machine.spec(SAME_PORT);
    machine.exec("harden apply -y --confirm operator --timeout 2s spec.yaml").code(4);
    all_run("after the way back");
    for spec in [SAME_PORT, MOVE] {
        machine.spec(spec);
        machine.apply().code(0);
        all_run(spec);
    }
    machine.exec("harden rollback -y").code(0);
    all_run("after a rollback");
    // What somebody stops is theirs.
    machine.spec("version: 1\nssh: {port: 2223}\n");
    machine.apply_in_background("60s");
    machine.sh("systemctl stop with-3.service");
    machine.exec("harden rollback -y").code(0);
    assert_eq!(machine.background_end(), 4);
    assert!(!active(&machine, "with-3.service"));
}

/// systemd stops sshd after it, and so not in time: that stop must not come later. Nobody is shut out for a
/// moment.
#[track_caller]
fn slow_to_stop(spec: &str) {
    let slow = "ExecStop=/usr/bin/sleep 55\nTimeoutStopSec=100";
    let mut machine = beside(Suite::Bookworm, "PartOf=ssh.service\nAfter=waits.service", slow);
    // One that is still to stop when sshd is no more.
    let waits = "[Unit]\nPartOf=ssh.service\nAfter=ssh.service\n[Service]\nExecStart=/usr/bin/sleep infinity\n";
    machine.root().write("/etc/systemd/system/waits.service", waits);
    machine.sh("systemctl daemon-reload; systemctl start waits.service");
    machine.spec(spec);
    let watch = Watch::table(&machine, &[22, 2222]);
    machine.apply().code(4);
    assert_closed(&machine);
    assert_eq!(
        machine.sh("systemctl list-jobs --no-legend | grep -c -e ssh -e harden || true"),
        "0\n"
    );
    // As long as it takes to stop, and to start again.
    machine.wait_for("its stop", "! systemctl is-active beside.service | grep -q deactivating");
    std::thread::sleep(Duration::from_secs(2));
    let seen = watch.end();
    assert!(seen.gaps.is_empty(), "{seen:?}");
    for unit in ["beside.service", "waits.service"] {
        assert!(active(&machine, unit), "{unit} stays stopped");
    }
    machine.sh("systemctl kill --signal=KILL beside.service; systemctl disable beside.service");
    assert_over(&mut machine, &Want::service(22));
}

#[test]
fn one_that_is_slow_to_stop_on_the_same_port() {
    slow_to_stop(SAME_PORT);
}

#[test]
fn one_that_is_slow_to_stop_at_the_hand_over() {
    slow_to_stop(MOVE);
}

/// What the worker has asked for, and systemd has not done yet, when it is killed.
#[test]
fn killed_while_one_stops_slowly() {
    for pause in ["0.3", "3"] {
        let mut machine = beside(Suite::Trixie, "PartOf=ssh.service", "ExecStop=/usr/bin/sleep 6");
        machine.spec(SAME_PORT);
        let watch = Watch::table(&machine, &[22]);
        machine.start_apply("--confirm probe");
        let stops = "[ \"$(systemctl is-active beside.service)\" = deactivating ]";
        machine.wait_for("the stop", stops);
        machine.sh(&format!("sleep {pause}"));
        machine.kill_worker();
        assert_eq!(machine.background_end(), 4);
        machine.wait_for("it", "systemctl is-active -q beside.service");
        let seen = watch.end();
        assert!(seen.gaps.is_empty(), "{seen:?}");
        assert_closed(&machine);
        assert_over(&mut machine, &Want::service(22));
    }
}

/// The old sshd is back, and what stopped along with it is not yet.
#[test]
fn killed_before_they_are_started_again() {
    let machine = beside(Suite::Trixie, "PartOf=ssh.service", "");
    machine.spec(SAME_PORT);
    for _ in 0..3 {
        machine.apply_in_background("60s");
        machine.sh("setsid harden rollback -y >/dev/null 2>&1 &");
        machine.wait_for("sshd", "systemctl is-active -q ssh.service");
        machine.sh("sleep 0.1");
        machine.kill_worker();
        assert_eq!(machine.background_end(), 4);
        machine.wait_for_the_end();
        assert!(active(&machine, "beside.service"), "it stays stopped");
    }
}

/// What somebody has stopped during the trial is theirs, however often the worker dies.
#[test]
fn stopped_by_somebody_before_a_kill() {
    let machine = beside(Suite::Trixie, "PartOf=ssh.service", "");
    machine.root().write(
        "/etc/systemd/system/ssh.service.d/slow.conf",
        "[Service]\nExecStartPre=/usr/bin/sleep 2\n",
    );
    machine.sh("systemctl daemon-reload");
    machine.spec(MOVE);
    machine.apply_in_background("60s");
    machine.sh("systemctl stop beside.service");
    let confirm = machine.confirm_command();
    std::thread::scope(|scope| {
        scope.spawn(|| machine.ssh(2222, &confirm));
        machine.wait_for("the start", "[ \"$(systemctl is-active ssh.service)\" = activating ]");
        machine.kill_worker();
    });
    assert_eq!(machine.background_end(), 0);
    assert!(!active(&machine, "beside.service"), "it was started");
}

/// One that is just starting, or waits to be started again, is to run too.
#[test]
fn those_that_start_come_back() {
    let starts = "Type=oneshot\nRemainAfterExit=yes\nExecStartPre=/usr/bin/sleep 6";
    let machine = Machine::boot(Suite::Trixie, |root| {
        let unit = |name: &str, service: &str| {
            let text = format!("[Unit]\nPartOf=ssh.service\n[Service]\n{service}\n");
            root.write(&format!("/etc/systemd/system/{name}"), &text);
        };
        unit("starts.service", &format!("{starts}\nExecStart=/usr/bin/true"));
        unit("again.service", "Restart=always\nRestartSec=4\nExecStart=/usr/bin/sleep 1");
    });
    machine.sh("systemctl start again.service; sleep 2; systemctl start --no-block starts.service");
    machine.spec(MOVE);
    machine.apply().code(0);
    machine.wait_for("the first", "systemctl is-active -q starts.service");
    machine.wait_for("the second", "systemctl is-active -q again.service");
}

/// One that would end the sshd that runs now is not started, and that is told.
#[test]
fn one_that_conflicts_is_not_started() {
    let machine = socket_system(Suite::Trixie);
    let text = "[Unit]\nPartOf=ssh.socket\nConflicts=ssh.service\n[Service]\nExecStart=/usr/bin/sleep infinity\n";
    machine.root().write("/etc/systemd/system/beside.service", text);
    machine
        .sh("systemctl daemon-reload; systemctl stop ssh.service; systemctl start beside.service");
    machine.spec(MOVE);
    let watch = Watch::table(&machine, &[22, 2222]);
    let applied = machine.apply().code(0);
    let seen = watch.end();
    assert!(seen.gaps.is_empty(), "{seen:?}");
    let said = applied.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("beside.service would end ssh.service"), "{said}");
}
