//! `ssh.profile`: what it sets is in effect, and what an auditor outside says of the listener.

use std::process::Command;

use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::operator::socket_system;
use crate::state::{Want, assert_state, unchanged};

on_debian!(recommended_passes_the_audit, no_algorithm_is_unknown);

fn spec(profile: &str) -> String {
    format!("version: 1\nssh: {{port: 2222, socket: disabled, profile: {profile}}}\n")
}

/// What ssh-audit(1) finds wrong with a listener, from outside.
fn failures(machine: &Machine, port: u16) -> Vec<String> {
    let told = Command::new("ip")
        .args(["netns", "exec", &machine.client_net(), "ssh-audit", "--no-colors"])
        .args(["-p", &port.to_string(), "10.77.0.2"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("(kex) curve25519-sha256"), "it saw no listener: {told}");
    told.lines().filter(|line| line.contains("[fail]")).map(str::to_owned).collect()
}

/// Whether a client gets in that has one key exchange alone.
fn gets_in(machine: &Machine, kex: &str) -> bool {
    let mut args = machine.ssh_args("10.77.0.2", 2222, "root");
    let host = args.pop().unwrap();
    args.extend(["-o".to_owned(), format!("KexAlgorithms={kex}"), host, "true".to_owned()]);
    Command::new("ip").args(args).status().unwrap().success()
}

mod cases {
    use super::*;

    pub(super) fn recommended_passes_the_audit(suite: Suite) {
        let machine = socket_system(suite);
        assert_ne!(failures(&machine, 22), Vec::<String>::new(), "nothing to mend");
        machine.spec(&spec("recommended"));
        machine.apply().code(0);
        assert_eq!(failures(&machine, 2222), Vec::<String>::new());
        let want = Want::service(2222)
            .with("passwordauthentication no")
            .with("x11forwarding no")
            .with("maxstartups 10:30:60");
        assert_state(&machine, &want);
        machine.exec("harden verify spec.yaml").code(0);
        unchanged(&machine, || machine.apply().code(0));

        // Before 8.7 one keyword turned the other on.
        machine.exec("harden rollback -y").code(0);
        machine.sh("sed -i '/^ChallengeResponse/d; /^KbdInter/d' /etc/ssh/sshd_config");
        machine.sh("sed -i '1i ChallengeResponseAuthentication yes' /etc/ssh/sshd_config; systemctl stop ssh.service; systemctl restart ssh.socket");
        machine.apply().code(0);
        assert_state(&machine, &Want::service(2222).with("kbdinteractiveauthentication no"));

        // What the spec sets itself wins.
        machine.spec(&format!(
            "{}  settings: {{LogLevel: INFO}}\n",
            "version: 1\nssh:\n  profile: recommended\n"
        ));
        machine.apply().code(0);
        assert_state(&machine, &Want::service(2222).with("loglevel info"));
    }

    pub(super) fn no_algorithm_is_unknown(suite: Suite) {
        let machine = socket_system(suite);
        // root logs in here.
        let strict = spec("strict")
            .replace("profile:", "settings: {PermitRootLogin: prohibit-password}, profile:");
        machine.spec(&strict);
        machine.apply().code(0);
        assert_state(&machine, &Want::service(2222).with("allowtcpforwarding no"));
        machine.spec(&spec("post-quantum"));
        if suite == Suite::Bullseye {
            let refused = unchanged(&machine, || machine.apply().code(1)).stderr;
            let refused = refused.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(refused.contains("this OpenSSH_8.4p1 knows none of them"), "{refused}");
            return;
        }
        machine.apply().code(0);
        assert!(gets_in(&machine, "sntrup761x25519-sha512@openssh.com"));
        assert!(!gets_in(&machine, "curve25519-sha256"));
        machine.exec("harden verify spec.yaml").code(0);
    }
}
