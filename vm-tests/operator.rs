//! The operator's confirmation, and the terminal that follows.

use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::state::{Want, assert_for_good, assert_state, unchanged};

pub(crate) const MOVE: &str = "version: 1\nssh:\n  port: 2222\n  socket: disabled\n";

on_debian!(a_confirmed_move_stays, an_unconfirmed_move_goes_back, the_port_itself_is_tried);

pub(crate) fn socket_system(suite: Suite) -> Machine {
    let machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
    machine.spec(MOVE);
    machine
}

mod cases {
    use super::*;

    pub(super) fn a_confirmed_move_stays(suite: Suite) {
        let mut machine = socket_system(suite);
        let mut old = machine.session(22);
        let etc = machine.root().state_of_etc();
        machine.apply_in_background("60s");
        assert_eq!(machine.root().state_of_etc(), etc, "nothing under /etc before the decision");
        assert_eq!(machine.ssh(22, "true").code, 0, "the old port is still there");
        // A session of the old listener proves nothing.
        let refused = machine.ssh(22, "harden confirm").code(1);
        assert!(refused.stderr.contains("did not come in through the new listener"), "{refused:?}");
        // Where ssh shares connections, another one would be the same.
        assert!(refused.stderr.contains("ssh -S none -p 2222"), "{refused:?}");
        machine.exec("harden confirm").code(1);
        let stale = machine.ssh(2222, "harden confirm 123456").code(1);
        assert!(stale.stderr.contains("does not belong"), "{stale:?}");
        let mut new = machine.session(2222);
        let confirm = machine.confirm_command();
        machine.ssh(2222, &confirm).code(0);
        machine.ssh(2222, &confirm).code(0);
        assert_eq!(machine.background_end(), 0);
        assert!(old.lives() && new.lives(), "a session died");
        assert_for_good(&mut machine, &Want::service(2222));
    }

    pub(super) fn an_unconfirmed_move_goes_back(suite: Suite) {
        let mut machine = socket_system(suite);
        let mut old = machine.session(22);
        let mut new = None;
        unchanged(&machine, || {
            machine.apply_in_background("4s");
            new = Some(machine.session(2222));
            let end = machine.background_end();
            assert_eq!(end, 4, "{}", machine.root().read("/root/apply.log"));
            machine.exec("true")
        });
        assert!(old.lives(), "the old session died");
        assert!(new.unwrap().lives(), "the session of the trial died");
        let late = machine.ssh(22, "harden confirm").code(1);
        assert!(late.stderr.contains("is taken back"), "{late:?}");
        machine.reboot();
        assert_state(&machine, &Want::socket(22));
    }

    /// Nothing but the settings change: the trial takes the port over, and a reboot gives it back.
    pub(super) fn the_port_itself_is_tried(suite: Suite) {
        let mut machine = Machine::boot(suite, |_| {});
        machine.spec("version: 1\nssh: {settings: {MaxAuthTries: 3}}\n");
        let mut old = machine.session(22);
        let etc = machine.root().state_of_etc();
        machine.apply_in_background("60s");
        assert_eq!(machine.root().state_of_etc(), etc, "nothing under /etc before the decision");
        let refused = machine.exec("harden confirm").code(1);
        assert!(refused.stderr.contains("did not come in through the new listener"), "{refused:?}");
        machine.reboot();
        assert_state(&machine, &Want::service(22).with("maxauthtries 6"));
        old = {
            drop(old);
            machine.session(22)
        };
        machine.apply_in_background("60s");
        let confirm = machine.confirm_command();
        machine.ssh(22, &confirm).code(0);
        assert_eq!(machine.background_end(), 0);
        assert!(old.lives(), "the old session died");
        assert_for_good(&mut machine, &Want::service(22).with("maxauthtries 3"));
    }
}

/// Whoever has to use sudo: the command that is printed works wherever sudo looks for programs.
#[test]
fn who_uses_sudo_confirms_with_the_command_that_is_printed() {
    for suite in [Suite::Trixie, Suite::Testing] {
        let machine = socket_system(suite);
        let apply = "cd /tmp; nohup sudo /usr/local/bin/harden apply -y --confirm operator \
                     /root/spec.yaml > log 2>&1 < /dev/null &";
        machine.ssh_as("deploy", 22, apply).ok();
        machine.wait_for("the trial", "harden status | grep -q 'harden confirm'");
        let status: serde_json::Value =
            serde_json::from_str(&machine.sh("harden status --output json")).unwrap();
        let printed = status["transaction"]["confirm"].as_str().unwrap().to_owned();
        let (login, command) = printed.split_once(" sudo ").unwrap();
        assert!(login.starts_with("ssh -p 2222 -t deploy@"), "{printed}");
        machine.ssh_as("deploy", 2222, &format!("sudo {command}")).code(0);
        machine.wait_for_the_end();
        assert_state(&machine, &Want::service(2222));
    }
}
