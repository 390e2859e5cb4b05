//! What people do to a change that is under way, and what befalls its own files: nobody is locked out,
//! and it ends in the old state or the new one without a wait for the guard.

use std::time::{Duration, Instant};

use crate::campaign::begin;
use crate::machine::{Machine, Suite, V4};
use crate::operator::{MOVE, socket_system};
use crate::state::{Want, assert_closed, assert_over, assert_state, unchanged, wait_until_idle};

/// The port stays, so that the trial is the only listener.
const SAME_PORT: &str = "version: 1\nssh: {socket: keep, settings: {MaxAuthTries: 4}}\n";

fn same_port(suite: Suite) -> Machine {
    let machine = Machine::boot(suite, |_| {});
    machine.spec(SAME_PORT);
    machine
}

/// From now on ssh.service runs a command of the shell before it starts.
fn before_start(machine: &Machine, command: &str) {
    let drop_in = format!("[Service]\nExecStartPre=/bin/sh -c '{command}'\n");
    machine.root().write("/etc/systemd/system/ssh.service.d/before.conf", &drop_in);
    machine.sh("systemctl daemon-reload");
}

/// Waits until the change has ended, and holds the time against that of the guard.
#[track_caller]
fn ends_within(machine: &Machine, limit: Duration) {
    let began = Instant::now();
    machine.wait_for_the_end();
    assert!(began.elapsed() < limit, "it took {:?}", began.elapsed());
    wait_until_idle(machine);
}

/// Everything of harden's is told to stop: worker, trial and timer.
#[test]
fn everything_of_hardens_is_stopped() {
    for suite in [Suite::Bullseye, Suite::Trixie] {
        let mut machine = same_port(suite);
        let mut old = machine.session(22);
        machine.apply_in_background("300s");
        machine.sh("systemctl stop 'harden*'");
        ends_within(&machine, Duration::from_secs(20));
        assert_eq!(machine.background_end(), 4);
        assert!(old.lives());
        assert_over(&mut machine, &Want::service(22));
    }
}

/// systemd goes to another target, and takes away what that does not want.
#[test]
fn the_system_goes_to_another_target() {
    let mut machine = socket_system(Suite::Trixie);
    machine.apply_in_background("300s");
    let mut new = machine.session(2222);
    machine.sh("systemctl isolate multi-user.target");
    assert!(machine.sh("harden status").contains("to confirm:"));
    assert!(new.lives());
    machine.ssh(2222, &machine.confirm_command()).code(0);
    assert_over(&mut machine, &Want::service(2222));
    // What systemd remembers of the units for the next boot does no harm.
    machine.sh("systemctl isolate multi-user.target; sleep 2");
    assert_eq!(machine.sh("systemctl list-units --failed --no-legend"), "");
    assert_closed(&machine);
}

/// The system is rebooted in order, right after the confirmation: what was decided holds.
#[test]
fn a_clean_reboot_after_the_confirmation() {
    for suite in [Suite::Bookworm, Suite::Trixie] {
        let mut machine = socket_system(suite);
        before_start(&machine, "grep -rqs \"^Port 2222\" /etc/ssh && sleep 4; true");
        machine.apply_in_background("60s");
        let _confirming = machine.session_with(2222, "harden confirm");
        machine.wait_for("start", "systemctl is-active ssh.service | grep -q activating");
        machine.reboot();
        machine.wait_for_the_end();
        assert_over(&mut machine, &Want::service(2222));
    }
}

/// Who follows a change outlives the worker, while something else is slow to stop: nothing is wrong with the host.
#[test]
fn a_shutdown_that_takes_its_time() {
    let slow = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\nExecStop=/bin/sleep 9\n";
    let mut machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/etc/systemd/system/slow.service", slow);
    });
    machine.sh("systemctl start slow.service");
    machine.spec(MOVE);
    machine.apply_in_background("60s");
    machine.reboot();
    let said = machine.root().read("/root/apply.log");
    assert!(!said.contains("nobody works on the transaction"), "{said}");
    machine.wait_for_the_end();
    let history = machine.sh("harden history");
    assert!(!history.contains("the sshd of the trial has ended"), "{history}");
    assert_over(&mut machine, &Want::service(22));
}

/// sshd's start hangs, on the way there and on the way back, and everything of harden's is stopped: then the
/// rescue listens.
#[test]
fn a_start_that_hangs_while_everything_is_stopped() {
    let machine = same_port(Suite::Trixie);
    before_start(&machine, "test ! -e /run/hang || sleep 600");
    machine.sh("touch /run/hang");
    machine.apply_in_background("300s");
    let _confirming = machine.session_with(22, "harden confirm");
    machine.wait_for("start", "systemctl is-active ssh.service | grep -q activating");
    machine.sh("systemctl stop 'harden-*'");
    assert_eq!(machine.ssh(22, "echo in").stdout, "in\n", "the rescue lets nobody in");
    machine.sh("rm /run/hang");
    machine.exec("harden rollback").code(0);
    assert_state(&machine, &Want::service(22));
    assert_closed(&machine);
}

/// What was confirmed and has lost its worker is finished by whoever comes, and undone after that.
#[test]
fn a_confirmed_change_without_a_worker() {
    let machine = socket_system(Suite::Trixie);
    before_start(&machine, "grep -rqs \"^Port 2222\" /etc/ssh && sleep 2; true");
    machine.start_apply("--confirm probe");
    machine.wait_for("start", "systemctl is-active ssh.service | grep -q activating");
    machine.stop_worker();
    machine.sh("systemctl stop 'harden-guard-*.timer'");
    assert!(machine.sh("harden status").contains("goes on with it"));
    let late = machine.exec("harden rollback").code(1);
    assert!(late.stderr.contains("has been confirmed"), "{late:?}");
    assert_state(&machine, &Want::service(2222));
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::socket(22));
}

/// A frozen worker is started anew long before the guard's time.
#[test]
fn the_worker_is_frozen() {
    let mut machine = same_port(Suite::Trixie);
    machine.apply_in_background("300s");
    machine.sh("systemctl kill -s STOP 'harden-2*.service'");
    ends_within(&machine, Duration::from_secs(28));
    assert_over(&mut machine, &Want::service(22));
}

/// Makes the state folder read-only for whoever opens a file there from now on.
const READ_ONLY: &str = "cd /; mount --bind /var/lib/harden /var/lib/harden; \
                         mount -o remount,bind,ro /var/lib/harden";

/// What is decided stands, and waits until it can be written down.
#[test]
fn a_confirmed_change_and_the_state_folder_becomes_read_only() {
    let machine = socket_system(Suite::Trixie);
    before_start(&machine, "grep -rqs \"^Port 2222\" /etc/ssh && sleep 3; true");
    machine.start_apply("--confirm probe");
    machine.wait_for("start", "systemctl is-active ssh.service | grep -q activating");
    machine.sh(READ_ONLY);
    machine.kill_worker();
    assert_eq!(machine.background_end(), 5);
    let log = machine.sh("cat apply.log");
    assert!(log.contains("cannot go on") && log.contains("read-only"), "{log}");
    machine.ssh(2222, "true").code(0);
    machine.sh("umount -l /var/lib/harden");
    machine.wait_for_the_end();
    assert_state(&machine, &Want::service(2222));
}

/// An error on the disk makes the state folder read-only, and the worker dies: what is undecided goes back all the
/// same, and why it is not over is said.
#[test]
fn the_state_folder_becomes_read_only() {
    for suite in [Suite::Bullseye, Suite::Trixie] {
        let mut machine = same_port(suite);
        machine.apply_in_background("300s");
        machine.sh(READ_ONLY);
        machine.kill_worker();
        assert_eq!(machine.background_end(), 5);
        let why = "read-only";
        let log = machine.sh("cat apply.log");
        assert!(log.contains(why), "{log}");
        assert_state(&machine, &Want::service(22));
        let still = machine.exec("harden rollback").code(5);
        assert!(still.stderr.contains(why), "{still:?}");
        machine.sh("umount /var/lib/harden");
        machine.exec("harden rollback").code(0);
        assert_over(&mut machine, &Want::service(22));
    }
}

/// Fault 19, at its worst: the disk is full when the worker dies, so that nothing can be decided.
#[test]
fn the_disk_is_full_when_the_worker_dies() {
    for suite in [Suite::Bullseye, Suite::Trixie] {
        let mut machine = same_port(suite);
        machine.sh(
            // (A state folder in memory is refused.)
            "mkdir -p /var/lib/harden; mount -t tmpfs -o size=8M,mode=700 none /mnt; mkdir -m 700 /mnt/l /mnt/u /mnt/w; \
             mount -t overlay none -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w /var/lib/harden",
        );
        machine.apply_in_background("300s");
        machine.exec("cat /dev/zero > /var/lib/harden/fill");
        machine.kill_worker();
        ends_within(&machine, Duration::from_secs(20));
        assert_state(&machine, &Want::service(22));
        machine.sh("rm /var/lib/harden/fill");
        machine.apply_in_background("300s");
        machine.exec("cat /dev/zero > /var/lib/harden/fill");
        machine.exec("harden rollback").code(0);
        ends_within(&machine, Duration::from_secs(20));
        machine.sh("umount /var/lib/harden /mnt");
        assert_over(&mut machine, &Want::service(22));
    }
}

/// The journal is deleted, and the worker dies: what listens stays until somebody takes its place.
#[test]
fn the_journal_is_deleted() {
    for same in [true, false] {
        let mut machine =
            if same { same_port(Suite::Trixie) } else { socket_system(Suite::Trixie) };
        let want = if same { Want::service(22) } else { Want::socket(22) };
        machine.apply_in_background("300s");
        machine.sh("rm /var/lib/harden/*.journal");
        machine.kill_worker();
        machine.wait_for("end", "! ls /var/lib/harden/*.harden 2>/dev/null");
        wait_until_idle(&machine);
        assert_over(&mut machine, &want);
        assert_eq!(machine.sh("systemctl list-units --failed --no-legend"), "");
    }
}

/// The same where sshd would not start: what listens goes on listening.
#[test]
fn the_journal_is_deleted_and_sshd_cannot_start() {
    let machine = same_port(Suite::Trixie);
    machine.apply_in_background("300s");
    machine.sh("rm /var/lib/harden/*.journal; systemctl mask ssh.service");
    machine.kill_worker();
    std::thread::sleep(Duration::from_secs(10));
    assert_eq!(machine.ssh(22, "echo in").stdout, "in\n");
}

/// A transaction that somebody else has put there is not gone on with: its program would run as root.
#[test]
fn what_others_have_put_there_is_not_run() {
    let machine = socket_system(Suite::Trixie);
    machine.apply().code(0);
    let planted = "/var/lib/harden/20270101T000000.000Z-aaaaaa";
    machine.sh(&format!(
        "cd /var/lib/harden; head -3 *.journal > {planted}.journal; \
         printf '#!/bin/sh\\ntouch /root/run\\n' > {planted}.harden; chmod 755 {planted}.harden; \
         chown deploy {planted}.*"
    ));
    let refused = machine.exec("harden rollback -y").code(1);
    assert!(refused.stderr.contains("belongs to another"), "{refused:?}");
    assert!(!machine.root().exists("/root/run"), "it was run");
    machine.sh(&format!("rm {planted}.*"));
    machine.exec("harden rollback -y").code(0);
}

/// The disk spoils a record in the middle of the journal: what it was about is put back all the same.
#[test]
fn a_record_in_the_middle_is_spoilt() {
    let script = "#!/bin/sh\ngrep -rqs '^Port 2222' /etc/ssh || exit 0\ntouch /run/starting; sleep 2; exit 1\n";
    let mut machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/usr/local/sbin/when-starting", script);
        root.make_program("/usr/local/sbin/when-starting");
        root.write(
            "/etc/systemd/system/ssh.service.d/when.conf",
            "[Service]\nExecStartPre=/usr/local/sbin/when-starting\n",
        );
    });
    machine.spec(crate::operator::MOVE);
    machine.start_apply("--confirm probe");
    machine.wait_for("start", "test -e /run/starting");
    machine.sh("sed -i '/\"step\":{\"index\":1,/s/Port 2222/Port 2223/' /var/lib/harden/*.journal");
    machine.kill_worker();
    assert_eq!(machine.background_end(), 4, "{}", machine.root().read("/root/apply.log"));
    assert_over(&mut machine, &Want::service(22));
}

/// Fault 2: what nobody had taken on is closed by the next harden, and never done.
#[test]
fn what_never_began_is_never_done() {
    let mut machine = socket_system(Suite::Trixie);
    begin(&machine);
    machine.root().write("/root/other.yaml", "version: 1\nssh: {settings: {MaxAuthTries: 5}}\n");
    let next = machine.exec("harden apply -y other.yaml").code(0);
    assert!(!next.stderr.contains("2222"), "{next:?}");
    let want = Want::socket(22).with("maxauthtries 5");
    assert_state(&machine, &want);
    begin(&machine);
    machine.cut_power();
    unchanged(&machine, || machine.exec("echo n | harden apply other.yaml"));
    assert_over(&mut machine, &want);
}

/// An earlier change cannot be undone under a later one that stands on it.
#[test]
fn changes_are_undone_in_their_order() {
    let machine = socket_system(Suite::Trixie);
    let mut ids = Vec::new();
    for spec in ["{socket: disabled}", "{port: 2200, socket: disabled}"] {
        machine.spec(&format!("version: 1\nssh: {spec}\n"));
        machine.apply().code(0);
        let id = machine.sh("ls /var/lib/harden | sed -n 's/.journal$//p' | tail -n 1");
        ids.push(id.trim().to_owned());
    }
    let earlier = format!("harden rollback -y {}", ids[0]);
    let refused = unchanged(&machine, || machine.exec(&earlier).code(1));
    assert!(refused.stderr.contains("undo what came after it first"), "{refused:?}");
    machine.exec("harden rollback -y").code(0);
    assert_state(&machine, &Want::service(22));
    // Also where the later one only has settings.
    machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
    machine.apply().code(0);
    unchanged(&machine, || machine.exec(&earlier).code(1));
    machine.exec("harden rollback -y").code(0);
    machine.exec(&earlier).code(0);
    assert_state(&machine, &Want::socket(22));
}

/// Fault 17: a session from the host itself shows nothing of the way to it.
#[test]
fn a_confirmation_from_the_host_itself() {
    let machine = socket_system(Suite::Trixie);
    machine.sh("ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519; \
                cat .ssh/id_ed25519.pub >> .ssh/authorized_keys");
    machine.apply_in_background("60s");
    for host in ["127.0.0.1", "::1", V4] {
        let login =
            format!("ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -p 2222 root@{host}");
        let refused = machine.exec(&format!("{login} harden confirm")).code(1);
        assert!(refused.stderr.contains("from the host itself"), "{host}: {refused:?}");
    }
    machine.ssh(2222, "harden confirm").code(0);
    assert_state(&machine, &Want::service(2222));
}

/// Nobody is told that something was confirmed when nothing was.
#[test]
fn nothing_to_confirm() {
    let machine = socket_system(Suite::Trixie);
    machine.exec("harden confirm").code(1);
    machine.apply().code(0);
    let refused = machine.ssh(2222, "harden confirm").code(1);
    assert!(refused.stderr.contains("nothing to confirm"), "{refused:?}");
}

/// What somebody has masked since stays so, and an undo says that it would not.
#[test]
fn a_unit_that_is_masked_since() {
    let machine = socket_system(Suite::Trixie);
    machine.apply().code(0);
    machine.sh("systemctl mask ssh.socket");
    let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
    assert!(refused.stderr.contains("ssh.socket was masked after"), "{refused:?}");
    machine.sh("systemctl unmask ssh.socket");
    let undone = machine.exec("harden rollback -y").code(0);
    assert!(undone.stdout.contains("inactive, disabled -> active, enabled"), "{undone:?}");
    assert_state(&machine, &Want::socket(22));
}

/// Who only finds a plan's name in the way loses nothing.
#[test]
fn a_plan_is_saved_over_nothing_else() {
    let machine = socket_system(Suite::Trixie);
    unchanged(&machine, || {
        machine.exec("harden plan spec.yaml --out /etc/ssh/sshd_config").code(1)
    });
    machine.sh("harden plan spec.yaml --out p.json; harden plan spec.yaml --out p.json");
    machine.sh("sed 's/port: 2222/port: 2223/' p.json > q.json; chmod 600 q.json");
    let refused = machine.exec("harden apply -y q.json").code(1);
    assert!(refused.stderr.contains("changed after harden wrote it"), "{refused:?}");
}

/// An sshd that turns everybody away does not pass for one that answers.
#[test]
fn an_sshd_that_turns_everybody_away() {
    let machine = Machine::boot(Suite::Testing, |_| {});
    machine.spec("version: 1\nssh: {settings: {PerSourceMaxStartups: 0}}\n");
    let apply = "harden apply -y --confirm probe --force-lockout-risk spec.yaml";
    unchanged(&machine, || machine.exec(apply).code(4));
    // One that has room for few does.
    machine.spec("version: 1\nssh: {settings: {MaxStartups: \"2:100:2\"}}\n");
    machine.apply().code(0);
    assert_closed(&machine);
}

/// Fault 14: another file's Match block would win.
#[test]
fn a_match_block_that_wins_is_named() {
    let machine = Machine::boot(Suite::Bookworm, |root| {
        root.write(
            "/etc/ssh/sshd_config.d/90-deploy.conf",
            "\nMatch User deploy\n  PasswordAuthentication yes\n",
        );
    });
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    let refused = unchanged(&machine, || machine.apply().code(1));
    for part in ["90-deploy.conf:3", "Match User deploy", "PasswordAuthentication yes"] {
        let said = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// A unit that sshd starts after waits for harden, and sshd's start would wait for that.
#[test]
fn begun_by_what_sshd_starts_after() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.spec(MOVE);
    let unit = "[Unit]\nBefore=ssh.service\n[Service]\nType=oneshot\n\
                ExecStart=/usr/local/bin/harden apply --yes --confirm probe /root/spec.yaml\n";
    machine.root().write("/etc/systemd/system/first.service", unit);
    machine.sh("systemctl daemon-reload");
    let refused = unchanged(&machine, || machine.exec("systemctl start first.service"));
    assert_ne!(refused.code, 0);
    let said = machine.sh("journalctl -q -o cat -u first.service");
    assert!(said.contains("ssh.service would start after it"), "{said}");
}
