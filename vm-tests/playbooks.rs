//! Every shipped playbook, applied as shipped; and cloud-init's first boot.

use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::state::{Want, assert_for_good, assert_state};

on_debian!(move_port, socket_on_another_port, keys_only, recommended);

fn shipped(name: &str) -> String {
    let path = format!("{}/playbooks/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

mod cases {
    use super::*;

    pub(super) fn move_port(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
        machine.spec(&shipped("move-port.yaml"));
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert_for_good(&mut machine, &Want::service(2222));
    }

    pub(super) fn socket_on_another_port(suite: Suite) {
        let mut machine = Machine::boot(suite, |_| {});
        machine.spec(&shipped("socket-on-another-port.yaml"));
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert_for_good(&mut machine, &Want::socket(2222));
    }

    pub(super) fn keys_only(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
        machine.spec(&shipped("keys-only.yaml"));
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        let want = Want::socket(22)
            .with("passwordauthentication no")
            .with("kbdinteractiveauthentication no");
        assert_for_good(&mut machine, &want);
    }

    pub(super) fn recommended(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
        machine.spec(&shipped("recommended.yaml"));
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        let want = Want::service(2222).with("x11forwarding no").with("loglevel verbose");
        assert_for_good(&mut machine, &want);
    }
}

/// Debian's own cloud-init (NoCloud) on a first boot with ssh.socket enabled.
#[test]
fn cloud_init_moves_the_port_on_the_first_boot() {
    let user_data = shipped("cloud-init/user-data");
    let mut machine = Machine::boot(Suite::Cloud, |root| {
        root.socket_owns_port(Suite::Cloud);
        root.write("/etc/ssh/sshd_config.d/50-cloud-init.conf", "PasswordAuthentication yes\n");
        root.write("/var/lib/cloud/seed/nocloud/user-data", &user_data);
        root.write("/var/lib/cloud/seed/nocloud/meta-data", "instance-id: first\n");
        root.write("/etc/cloud/cloud.cfg.d/99-test.cfg", "datasource_list: [NoCloud]\n");
    });
    let schema = machine.sh("cloud-init schema -c /var/lib/cloud/seed/nocloud/user-data 2>&1");
    assert!(schema.contains("Valid schema"), "{schema}");
    machine.exec("cloud-init status --wait");
    let log = machine.root().read("/var/log/cloud-init-output.log");
    assert!(log.contains("done: listeners"), "{log}");
    let journal = machine.sh("journalctl -t harden --no-pager");
    assert!(journal.contains("done: listeners"), "{journal}");

    machine.root().link("/root/spec.yaml", "/etc/harden/spec.yaml");
    let want = Want::service(2222).with("passwordauthentication no");
    assert_state(&machine, &want);
    machine.reboot();
    machine.exec("cloud-init status --wait");
    assert_state(&machine, &want);
    // Run again by hand: nothing to do.
    let again = machine.sh("/etc/harden/first-boot");
    assert!(again.contains("nothing to do"), "{again}");
}
