//! What owners do with ssh.socket, and with the sshd behind it.

use std::fs::File;
use std::net::TcpListener;

use nix::sched::{CloneFlags, setns};

use crate::machine::{Machine, Suite, run};
use crate::operator::{MOVE, socket_system};
use crate::state::{Want, assert_closed, assert_over, assert_state, property, unchanged};
use crate::wayback::{SAME_PORT, lets_in};

const ON_2222: &str = "version: 1\nssh: {port: 2222, socket: enabled}\n";
const BEHIND: &str = "/etc/systemd/system/ssh.service.d/own.conf";

/// A drop-in of the owner's for a unit that then starts anew; nobody has connected since.
fn with_drop_in(suite: Suite, path: &str, text: &str) -> Machine {
    let machine = socket_system(suite);
    machine.root().write(path, text);
    machine.sh(
        "systemctl daemon-reload; systemctl stop ssh.socket ssh.service; systemctl start ssh.socket",
    );
    machine
}

/// systemd counts the starts of the service behind a socket, harden's among them, and fails the socket after five.
#[test]
fn started_often_just_before() {
    for suite in [Suite::Bookworm, Suite::Trixie, Suite::UbuntuLike] {
        let machine = socket_system(suite);
        machine.spec(SAME_PORT);
        machine.sh("for i in 1 2 3; do systemctl restart ssh.service; done");
        machine.apply().code(0);
        machine.sh("for i in 1 2 3; do systemctl restart ssh.service; done");
        machine.exec("harden rollback -y").code(0);
        machine.sh("for i in 1 2 3; do systemctl restart ssh.service; done");
        machine.exec("harden apply -y --confirm operator --timeout 4s spec.yaml").code(4);
        assert_state(&machine, &Want::socket(22));
    }
}

/// An sshd that takes its time to start is none that does not.
#[test]
fn a_slow_sshd_behind_it() {
    let slow = "[Service]\nExecStartPre=/bin/sleep 12\n";
    let machine = with_drop_in(Suite::Trixie, BEHIND, slow);
    machine.spec(SAME_PORT);
    machine.exec("harden apply -y --confirm operator --timeout 4s spec.yaml").code(4);
    assert_state(&machine, &Want::socket(22));
    machine.spec(ON_2222);
    machine.sh("systemctl stop ssh.service; systemctl start ssh.socket");
    machine.apply().code(0);
    assert_state(&machine, &Want::socket(2222));
}

/// A listener that somebody adds during a trial is theirs, and the way back complete without it.
#[test]
fn one_more_port_meanwhile() {
    for suite in [Suite::Bullseye, Suite::UbuntuLike] {
        let machine = socket_system(suite);
        machine.spec(SAME_PORT);
        machine.apply_in_background("8s");
        machine
            .root()
            .write("/etc/systemd/system/ssh.socket.d/own.conf", "[Socket]\nListenStream=2200\n");
        machine.sh("systemctl daemon-reload");
        assert_eq!(machine.background_end(), 4);
        assert!(machine.sh("cat apply.log").contains("ssh.socket.d/own.conf"));
        assert_closed(&machine);
        machine.ssh(22, "true").code(0);
        machine.sh("ss -Hltn sport = 2200 | grep -q 2200");
    }
}

#[test]
fn slow_sshds_behind_one_that_accepts() {
    let path = "/etc/systemd/system/ssh@.service.d/own.conf";
    let slow = "[Service]\nExecStartPre=/bin/sleep 12\n";
    let machine = with_drop_in(Suite::Bullseye, path, slow);
    machine.spec(SAME_PORT);
    machine.exec("harden apply -y --confirm operator --timeout 4s spec.yaml").code(4);
    machine.root().remove(path);
    machine.sh("systemctl daemon-reload");
    assert_state(&machine, &Want::socket(22));
}

#[test]
fn a_slow_sshd_after_a_power_cut() {
    let slow = "[Service]\nExecStartPre=/bin/sleep 12\n";
    let mut machine = with_drop_in(Suite::Trixie, BEHIND, slow);
    machine.spec(SAME_PORT);
    machine.apply_in_background("120s");
    machine.cut_power_and_wait(30);
    machine.wait_for_the_end();
    machine.root().remove(BEHIND);
    machine.sh("systemctl daemon-reload");
    assert_over(&mut machine, &Want::socket(22));
}

/// Somebody answers on port 22 of an address of the client's end of the cable.
fn other_host(machine: &Machine, address: &'static str) {
    let net = format!("/run/netns/{}", machine.client_net());
    let (tell, ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        setns(File::open(net).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind((address, 22)).unwrap();
        tell.send(()).unwrap();
        for connection in listener.incoming().flatten() {
            use std::io::Write;
            let _ = (&connection).write_all(b"SSH-2.0-other\r\n");
        }
    });
    ready.recv().unwrap();
}

/// A floating address (`FreeBind=`) that another host has just now: that one's sshd is not this one's.
#[test]
fn an_address_that_another_host_has() {
    let addresses = "[Socket]\nListenStream=\nListenStream=10.77.0.1:22\nListenStream=10.77.0.2:22\n\
                     ListenStream=127.0.0.1:22\n";
    let path = "/etc/systemd/system/ssh.socket.d/own.conf";
    let machine = with_drop_in(Suite::UbuntuLike, path, addresses);
    other_host(&machine, "10.77.0.1");
    machine
        .spec("version: 1\nssh: {port: 2222, listen: [10.77.0.2, 127.0.0.1], socket: enabled}\n");
    machine.exec("harden apply -y --confirm operator --timeout 4s spec.yaml").code(4);
    lets_in(&machine, "after nobody confirmed");
    machine.sh("systemctl stop ssh.socket ssh.service; systemctl start ssh.socket");
    machine.apply().code(0);
    machine.ssh(2222, "true").code(0);
    assert_closed(&machine);
}

/// The same where it goes there during the trial: the way back does not take that one's sshd for its own.
#[test]
fn an_address_that_another_host_takes() {
    let addresses =
        "[Socket]\nListenStream=\nListenStream=10.76.0.9:22\nListenStream=10.77.0.2:22\n";
    let path = "/etc/systemd/system/ssh.socket.d/own.conf";
    let machine = with_drop_in(Suite::UbuntuLike, path, addresses);
    let (server, client) = (machine.server_net(), machine.client_net());
    let address = |net: &str, what, which: &str| {
        run("ip", &["-n", net, "address", what, which, "dev", "cable"]);
    };
    address(&server, "add", "10.76.0.8/24");
    address(&server, "add", "10.76.0.9/24");
    machine.spec(SAME_PORT);
    machine.apply_in_background("8s");
    address(&server, "del", "10.76.0.9/24");
    address(&client, "add", "10.76.0.9/24");
    other_host(&machine, "10.76.0.9");
    assert_eq!(machine.background_end(), 4);
    lets_in(&machine, "after nobody confirmed");
    assert_closed(&machine);
}

/// An sshd of harden's would be open on every interface.
#[test]
fn one_interface_alone() {
    let path = "/etc/systemd/system/ssh.socket.d/own.conf";
    let machine = with_drop_in(Suite::Trixie, path, "[Socket]\nBindToDevice=cable\n");
    for spec in [MOVE, SAME_PORT, ON_2222] {
        machine.spec(spec);
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.stderr.contains("interface cable alone"), "{refused:?}");
    }
    let doctor = machine.exec("harden doctor").code(3);
    assert!(doctor.stdout.contains("one-interface"), "{doctor:?}");
    lets_in(&machine, "after the refusals");
}

/// A socket in the file system beside port 22 is the owner's, and stays one of ssh.socket's.
#[test]
fn in_the_file_system_too() {
    let path = "/etc/systemd/system/ssh.socket.d/own.conf";
    let machine = with_drop_in(Suite::Trixie, path, "[Socket]\nListenStream=/run/admin.sock\n");
    machine.spec(ON_2222);
    machine.apply().code(0);
    machine.ssh(2222, "true").code(0);
    let listens = property(&machine, "ssh.socket", "Listen");
    assert!(listens.contains("/run/admin.sock"), "{listens}");
    machine.sh("test -S /run/admin.sock");
    unchanged(&machine, || machine.apply().code(0));
    machine.spec(MOVE);
    let plan = machine.exec("harden plan spec.yaml").code(0);
    assert!(plan.stdout.contains("listens on /run/admin.sock too, which ends"), "{plan:?}");
}

/// With `Accept=yes` each connection has an sshd with options of its own, which say what is in effect.
#[test]
fn other_options_for_each_connection() {
    let machine = socket_system(Suite::Bullseye);
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    let own = "/etc/systemd/system/ssh@.service.d/own.conf";
    let lines = [
        "ExecStart=\nExecStart=-/usr/sbin/sshd -i -o PasswordAuthentication=yes",
        "ExecStart=\nExecStart=-/usr/sbin/sshd -i -f /etc/ssh/other",
        "EnvironmentFile=\nEnvironment=SSHD_OPTS=-oPasswordAuthentication=yes",
    ];
    for line in lines {
        machine.root().write(own, &format!("[Service]\n{line}\n"));
        machine.sh("systemctl daemon-reload");
        let refused = unchanged(&machine, || machine.apply().code(1));
        assert!(refused.unwrapped().contains("ssh@.service starts sshd with"), "{refused:?}");
    }
    machine.sh(&format!("rm {own}; systemctl daemon-reload"));
    machine.apply().code(0);
    machine.root().write(own, &format!("[Service]\n{}\n", lines[0]));
    machine.sh("systemctl daemon-reload");
    machine.exec("harden verify spec.yaml").code(3);
    // Nor does it count connections.
    machine.sh(&format!("rm {own}; systemctl daemon-reload"));
    machine.spec("version: 1\nssh: {settings: {MaxStartups: \"3:30:9\"}}\n");
    let refused = machine.apply().code(1);
    assert!(
        refused.unwrapped().contains("`MaxStartups` has no effect behind ssh.socket"),
        "{refused:?}"
    );
    machine.spec("version: 1\nssh: {profile: recommended}\n");
    let applied = machine.apply().code(0);
    assert!(applied.unwrapped().contains("left out MaxStartups: no effect behind"), "{applied:?}");
    machine.exec("harden verify spec.yaml").code(0);
    // Nor does anybody get in, on the way from the service to the socket, behind a home that is not there.
    let machine = Machine::boot(Suite::Bullseye, |_| {});
    machine.spec("version: 1\nssh: {port: 2222, socket: enabled}\n");
    machine.root().write(own, "[Service]\nProtectHome=yes\n");
    machine.sh("systemctl daemon-reload");
    let refused = unchanged(&machine, || machine.apply().code(1));
    assert!(refused.unwrapped().contains("ssh@.service has `ProtectHome=yes`"), "{refused:?}");
    // Nor on the way back to it.
    let machine = socket_system(Suite::Bullseye);
    machine.apply().code(0);
    for (line, why) in [
        ("ProtectHome=yes", "ssh@.service has `ProtectHome"),
        (lines[0], "ssh@.service starts sshd with"),
    ] {
        machine.root().write(own, &format!("[Service]\n{line}\n"));
        machine.sh("systemctl daemon-reload");
        let refused = unchanged(&machine, || machine.exec("harden rollback -y").code(1));
        assert!(refused.unwrapped().contains(why), "{refused:?}");
    }
    machine.sh(&format!("rm {own}; systemctl daemon-reload"));
    machine.exec("harden rollback -y").code(0);
}

/// A socket that starts a service of somebody's own.
#[test]
fn another_service_behind_it() {
    let machine = socket_system(Suite::Trixie);
    let own = "/etc/systemd/system/own.service";
    machine.sh(&format!("cp /usr/lib/systemd/system/ssh.service {own}; sed -i '/^Alias/d' {own}; mkdir -p /etc/systemd/system/ssh.socket.d; \
         printf '[Socket]\\nService=own.service\\n' > /etc/systemd/system/ssh.socket.d/own.conf; \
         systemctl stop ssh.socket ssh.service; systemctl daemon-reload; systemctl start ssh.socket"));
    machine.ssh(22, "true").ok();
    let refused = machine.apply().code(1);
    assert!(refused.unwrapped().contains("ssh.socket starts own.service"), "{refused:?}");
    machine.ssh(22, "true").ok();
}

/// A variable has the value of its file, whatever the unit says.
#[test]
fn a_variable_of_the_unit_and_of_its_file() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    let own = "/etc/systemd/system/ssh.service.d/own.conf";
    machine.root().write(own, "[Service]\nEnvironment=SSHD_OPTS=-oPasswordAuthentication=yes\n");
    machine.sh("systemctl daemon-reload; systemctl restart ssh.service");
    machine.spec("version: 1\nssh: {settings: {PasswordAuthentication: no}}\n");
    machine.apply().code(0);
    machine.sh("sed -i /^SSHD_OPTS/d /etc/default/ssh; systemctl restart ssh.service");
    machine.exec("harden verify spec.yaml").code(3);
}
