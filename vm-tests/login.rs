//! `--confirm probe` logs in by itself: a change that would shut every administrator out is taken
//! back though the port answers, and one that lets somebody in is made.

use crate::machine::{Machine, Ran, Suite};
use crate::on_debian;
use crate::operator::socket_system;
use crate::state::{Want, assert_closed, assert_state, unchanged};

on_debian!(who_would_be_shut_out_stops_it, who_can_log_in_is_enough);

fn apply(machine: &Machine, settings: &str) -> Ran {
    machine.spec(&format!(
        "version: 1\nssh: {{port: 2222, socket: disabled, settings: {settings}}}\n"
    ));
    machine.exec("harden apply -y --confirm probe spec.yaml")
}

/// No process of a login, and no key, is left.
#[track_caller]
fn assert_no_trace(machine: &Machine) {
    assert_closed(machine);
    assert_eq!(machine.exec("pgrep -f '[s]shd.* -i '").stdout, "");
    assert_eq!(machine.exec("ls -d /run/harden/2*").stdout, "");
}

/// Nobody gets in so, and the guards know nothing of it.
const HOSTBASED: &str = "{HostbasedAuthentication: yes, AuthenticationMethods: hostbased}";

mod cases {
    use super::*;

    pub(super) fn who_would_be_shut_out_stops_it(suite: Suite) {
        let machine = socket_system(suite);
        // What only a login shows.
        let cases = [(HOSTBASED, "Permission denied")];
        for (settings, reason) in cases {
            let back = unchanged(&machine, || apply(&machine, settings).code(4));
            let said = back.unwrapped();
            for part in ["nobody could log in with a key any more: root (", "deploy (", reason] {
                assert!(said.contains(part), "{part}: {said}");
            }
            assert_no_trace(&machine);
        }
        assert_state(&machine, &Want::socket(22));
    }

    pub(super) fn who_can_log_in_is_enough(suite: Suite) {
        let machine = socket_system(suite);
        // deploy is an administrator too.
        let applied = apply(&machine, "{PermitRootLogin: no}").code(0);
        assert!(applied.unwrapped().contains("deploy can log in with a key"), "{applied:?}");
        assert_no_trace(&machine);
        assert!(applied.unwrapped().contains("no longer able to log in with a key: root ("));
        assert_no_trace(&machine);
        // But where deploy's sudo wants a password that deploy has not got, root is needed.
        machine.sh("rm /etc/sudoers.d/deploy; harden rollback -y");
        let back = apply(&machine, "{PermitRootLogin: no}").code(1);
        assert!(back.unwrapped().contains("becomes root by sudo"), "{back:?}");
        // Nobody could log in with a key before, so there is nothing to compare with.
        machine.root().remove("/root/.ssh/authorized_keys");
        machine.root().remove("/home/deploy/.ssh/authorized_keys");
        let applied = apply(&machine, "{LogLevel: VERBOSE}").code(0);
        assert!(applied.unwrapped().contains("no administrator has a key here"), "{applied:?}");
        assert_no_trace(&machine);
    }
}

/// A ForceCommand is somebody's own program: it is not run for a test; but who it is not for is tried.
#[test]
fn no_command_of_theirs_is_run() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.append(
            "/etc/ssh/sshd_config",
            "Match User deploy\n  ForceCommand touch /tmp/was-run\n",
        );
    });
    let applied = apply(&machine, "{MaxAuthTries: 3}").code(0);
    assert!(applied.unwrapped().contains("root and deploy can log in with a key"), "{applied:?}");
    apply(&machine, HOSTBASED).code(4);
    assert!(!machine.root().exists("/tmp/was-run"));
}

/// sshd wants the way to the keys to be nobody else's to write: they are looked for where they are.
#[test]
fn keys_that_others_can_write_do_not_count() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.append("/etc/ssh/sshd_config", "StrictModes no\n");
    });
    // (Sticky, since everybody could put another spec there otherwise.)
    machine.sh("chmod 1777 /root /home/deploy");
    let back = apply(&machine, "{StrictModes: yes}").code(1);
    assert!(back.unwrapped().contains("StrictModes: others can write /root"), "{back:?}");
    machine.sh("chmod 700 /root");
    apply(&machine, "{StrictModes: yes}").code(0);
}

/// sshd takes a key that is made for the login, but none of their own: it cannot read what stands before them.
#[test]
fn none_of_their_own_keys_is_taken() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let keys = "{AuthorizedKeysFile: none, AuthorizedKeysCommand: /bin/false, AuthorizedKeysCommandUser: root}";
    let back = unchanged(&machine, || apply(&machine, keys).code(4));
    assert!(back.unwrapped().contains("none of their own keys is accepted"), "{back:?}");
}

/// A shell that ends well, and runs nothing.
#[test]
fn a_session_in_which_nothing_runs_is_no_login() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write("/usr/local/bin/greeter", "#!/bin/sh\necho git only\n");
    });
    machine.sh("chmod 755 /usr/local/bin/greeter; usermod -s /usr/local/bin/greeter deploy");
    let back = unchanged(&machine, || apply(&machine, "{PermitRootLogin: no}").code(4));
    assert!(back.unwrapped().contains("nobody could log in with a key any more"), "{back:?}");
    machine.sh("usermod -s /bin/true deploy");
    apply(&machine, "{PermitRootLogin: no}").code(1);
}

/// The port stays, so the trial takes it: a person would look for a way in until the time is over.
#[test]
fn a_person_is_not_asked_where_nobody_gets_in() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("printf 'root:root\ndeploy:deploy\n' | chpasswd");
    let by_operator = |settings: &str, more: &str| {
        machine.spec(&format!("version: 1\nssh: {{{more}settings: {settings}}}\n"));
        machine.exec("harden apply -y --confirm operator --timeout 8s spec.yaml")
    };
    let back = unchanged(&machine, || by_operator(HOSTBASED, "").code(4));
    assert!(back.unwrapped().contains("nobody could log in with a key any more"), "{back:?}");
    // On a port of its own the old one still lets people in; and whoever has more than a key is let try.
    for (settings, more) in
        [(HOSTBASED, "port: 2222, "), ("{AuthenticationMethods: \"publickey,password\"}", "")]
    {
        let waited = unchanged(&machine, || by_operator(settings, more).code(4));
        assert!(waited.unwrapped().contains("nobody confirmed in time"), "{waited:?}");
    }
}

/// A key that is tied to a command opens no session: a cloud image's root has one.
#[test]
fn a_key_with_a_command_opens_no_session() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine
        .sh("sed -i '1s/^/no-pty,command=\"echo Please log in as deploy\" /' .ssh/authorized_keys");
    let back = apply(&machine, "{AllowUsers: [root, deplyo]}").code(4);
    assert!(back.unwrapped().contains("any more: deploy ("), "{back:?}");
}

/// Whoever runs harden has to get in again, not just anybody.
#[test]
fn who_runs_harden_is_asked_for() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.spec("version: 1\nssh: {settings: {AllowUsers: [root, deplyo]}}\n");
    let as_deploy = "SUDO_USER=deploy harden apply -y --confirm probe spec.yaml";
    let back = unchanged(&machine, || machine.exec(as_deploy).code(4));
    assert!(back.unwrapped().contains("deploy, who runs harden, could not log in"), "{back:?}");
    machine.exec("harden apply -y --confirm probe spec.yaml").code(0);
}

/// Nobody has a key: then the password is the way in.
#[test]
fn passwords_stay_where_nobody_has_a_key() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.remove("/root/.ssh/authorized_keys");
        root.remove("/home/deploy/.ssh/authorized_keys");
    });
    let off = "{PasswordAuthentication: no, KbdInteractiveAuthentication: no}";
    let back = unchanged(&machine, || apply(&machine, off).code(1));
    assert!(back.unwrapped().contains("passwords would not be taken any more"), "{back:?}");
    // Nor has anybody a key because a command might find one from now on.
    let command = "AuthorizedKeysCommand: /bin/true, AuthorizedKeysCommandUser: nobody";
    let off = off.replace('{', &format!("{{{command}, "));
    let back = unchanged(&machine, || apply(&machine, &off).code(1));
    assert!(back.unwrapped().contains("passwords would not be taken any more"), "{back:?}");
}

/// Who logs in today in a way that cannot be tried over a pipe is not taken for nobody.
#[test]
fn what_cannot_be_tried_is_not_hoped_for() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("for f in /root/.ssh/authorized_keys /home/deploy/.ssh/authorized_keys; do \
                sed -i 's/^/from=\"10.77.0.0\\/24\" /' $f; done");
    machine.ssh(22, "true").ok();
    let back = unchanged(&machine, || apply(&machine, "{PasswordAuthentication: no}").code(4));
    assert!(back.unwrapped().contains("Confirm it yourself: --confirm operator"), "{back:?}");
    // The name that an address has may be what a key asks for, and a block counts as much as what is outside.
    let blocks = "{LogLevel: VERBOSE}, match: [{criteria: {Group: sudo}, settings: \
                  {PubkeyAcceptedAlgorithms: ssh-ed25519-cert-v01@openssh.com}}]";
    for change in ["{UseDNS: yes}", blocks] {
        let back = unchanged(&machine, || apply(&machine, change).code(4));
        assert!(back.unwrapped().contains("--confirm operator"), "{back:?}");
    }
    apply(&machine, "{LogLevel: VERBOSE}").code(0);
    machine.sh("sed -i 's/^from[^ ]* //' /root/.ssh/authorized_keys");
    let back = apply(&machine, "{DenyUsers: \"*@10.77.*\"}").code(4);
    assert!(back.unwrapped().contains("where they come from"), "{back:?}");
}

/// A command in place of a shell lets nobody in.
#[test]
fn a_command_for_everybody_is_no_login() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    for command in ["/bin/false", "internal-sftp"] {
        let back = apply(&machine, &format!("{{ForceCommand: {command}}}")).code(1);
        assert!(back.unwrapped().contains("takes the place of a shell"), "{back:?}");
    }
}

/// Which of one's keys is taken does not matter, nor how large the others are.
#[test]
fn one_of_many_keys_is_enough() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh(
        "ssh-keygen -q -t rsa -b 2048 -N '' -f small; cat small.pub .ssh/authorized_keys > k; \
                mv k .ssh/authorized_keys; rm /home/deploy/.ssh/authorized_keys",
    );
    apply(&machine, "{PubkeyAcceptedAlgorithms: ssh-ed25519}").code(0);
    machine.sh("harden rollback -y; ssh-keygen -q -t rsa -b 4096 -N '' -f large; \
                cat large.pub > .ssh/authorized_keys");
    apply(&machine, "{RequiredRSASize: 4096}").code(0);
    machine.sh("cat small.pub > .ssh/authorized_keys");
    machine.spec("version: 1\nssh: {port: 2223}\n");
    machine.sh("harden rollback -y");
    apply(&machine, "{RequiredRSASize: 4096}").code(1);
}

/// What the key of a login may do is decided by its type too: it is that of the owner's own key.
#[test]
fn the_key_is_of_the_owners_type() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    machine.sh("ssh-keygen -q -t rsa -N '' -f other; cat other.pub > .ssh/authorized_keys; \
         rm /home/deploy/.ssh/authorized_keys");
    let applied =
        apply(&machine, "{PubkeyAcceptedAlgorithms: \"rsa-sha2-512,rsa-sha2-256\"}").code(0);
    assert!(applied.unwrapped().contains("root can log in with a key"), "{applied:?}");
    let back = apply(&machine, "{PubkeyAcceptedAlgorithms: ssh-ed25519}").code(1);
    assert!(back.unwrapped().contains("does not take root's ssh-rsa key"), "{back:?}");
    assert_no_trace(&machine);
}

/// Where keys come from may stand on sshd's command line, as on the machines of a cloud provider.
#[test]
fn keys_of_the_command_line_are_no_obstacle() {
    let machine = Machine::boot(Suite::Trixie, |root| {
        root.write(
            "/usr/lib/systemd/system/ssh.service.d/keys.conf",
            "[Service]\nExecStart=\nExecStart=/usr/sbin/sshd -D -o \"AuthorizedKeysCommand /bin/true %%u\" \
             -o \"AuthorizedKeysCommandUser nobody\" $SSHD_OPTS\n",
        );
    });
    let applied = apply(&machine, "{PasswordAuthentication: no}").code(0);
    assert!(applied.unwrapped().contains("can log in with a key"), "{applied:?}");
    assert_state(&machine, &Want::service(2222));
}
