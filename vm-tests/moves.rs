//! The main job: from every start state to every end state.

use crate::on_debian;

on_debian!(
    fresh_socket_never_connected,
    fresh_socket_connected_once,
    service_to_another_port,
    settings_alone,
    mode_alone,
    same_port_and_mode,
    socket_to_another_port,
    service_to_socket,
    two_ports,
    ipv4_only,
    command_line_port,
);

mod cases {
    use crate::machine::{Machine, Suite};
    use crate::state::{Want, assert_for_good, assert_state};

    const MOVE: &str = "version: 1\nssh:\n  port: 2222\n  socket: disabled\n";

    fn socket_system(suite: Suite) -> Machine {
        Machine::boot(suite, |root| root.socket_owns_port(suite))
    }

    /// Nobody has ever logged in: ssh.service has not run, /run/sshd is not there.
    pub(super) fn fresh_socket_never_connected(suite: Suite) {
        let mut machine = socket_system(suite);
        machine.spec(MOVE);
        machine.apply().code(0);
        assert_for_good(&mut machine, &Want::service(2222));
    }

    /// One login has started ssh.service: on Debian 13 the textbook fix leaves an orphan here.
    pub(super) fn fresh_socket_connected_once(suite: Suite) {
        let mut machine = socket_system(suite);
        assert_state(&machine, &Want::socket(22));
        let mut old = machine.session(22);
        machine.spec(MOVE);
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert!(old.lives(), "the old session died");
        assert_for_good(&mut machine, &Want::service(2222));
    }

    pub(super) fn service_to_another_port(suite: Suite) {
        let mut machine = Machine::boot(suite, |_| {});
        assert_state(&machine, &Want::service(22));
        let mut old = machine.session(22);
        machine.spec("version: 1\nssh: {port: 2222}\n");
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert!(old.lives(), "the old session died");
        assert_for_good(&mut machine, &Want::service(2222));
    }

    pub(super) fn settings_alone(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.write("/etc/ssh/sshd_config.d/50-cloud-init.conf", "PasswordAuthentication yes\n");
        });
        let mut old = machine.session(22);
        machine.spec(
            "version: 1\nssh:\n  settings:\n    PasswordAuthentication: no\n    LoginGraceTime: 1m\n",
        );
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert!(old.lives(), "the old session died");
        let want = Want::service(22).with("passwordauthentication no").with("logingracetime 60");
        assert_for_good(&mut machine, &want);
    }

    /// `Port` stands in sshd_config already, and ssh.socket is why it is ignored.
    pub(super) fn mode_alone(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.socket_owns_port(suite);
            root.append("/etc/ssh/sshd_config", "Port 2200\n");
        });
        assert_state(&machine, &Want::socket(22));
        machine.spec("version: 1\nssh: {socket: disabled}\n");
        machine.apply().code(0);
        assert_for_good(&mut machine, &Want::service(2200));
    }

    pub(super) fn same_port_and_mode(suite: Suite) {
        let mut machine = socket_system(suite);
        let mut old = machine.session(22);
        machine.spec("version: 1\nssh: {port: 22, socket: disabled}\n");
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert!(old.lives(), "the old session died");
        assert_for_good(&mut machine, &Want::service(22));
    }

    pub(super) fn socket_to_another_port(suite: Suite) {
        let mut machine = socket_system(suite);
        let mut old = machine.session(22);
        machine.spec("version: 1\nssh: {port: 2222, socket: enabled}\n");
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert!(old.lives(), "the old session died");
        assert_for_good(&mut machine, &Want::socket(2222));
    }

    pub(super) fn service_to_socket(suite: Suite) {
        let mut machine = Machine::boot(suite, |_| {});
        let mut old = machine.session(22);
        machine.spec("version: 1\nssh: {socket: enabled}\n");
        machine.ssh(22, "harden apply --yes spec.yaml").code(0);
        assert!(old.lives(), "the old session died");
        assert_for_good(&mut machine, &Want::socket(22));
    }

    pub(super) fn two_ports(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.append("/etc/ssh/sshd_config", "Port 2200\nListenAddress 0.0.0.0:2201\n");
        });
        machine.spec("version: 1\nssh: {port: [22, 2222], listen: [\"0.0.0.0\", \"::\"]}\n");
        machine.apply().code(0);
        let want = Want { ports: vec![22, 2222], ..Want::service(22) };
        assert_for_good(&mut machine, &want);
    }

    pub(super) fn ipv4_only(suite: Suite) {
        let mut machine = socket_system(suite);
        machine.spec("version: 1\nssh: {port: 2222, listen: 0.0.0.0, socket: disabled}\n");
        machine.apply().code(0);
        let want = Want { v6: false, ..Want::service(2222) };
        assert_for_good(&mut machine, &want);
        machine.spec("version: 1\nssh: {port: 2223, listen: 0.0.0.0, socket: enabled}\n");
        machine.apply().code(0);
        let want = Want { v6: false, ..Want::socket(2223) };
        assert_for_good(&mut machine, &want);
    }

    /// `-p` on the command line wins over every file, and `sshd -T` does not show it.
    pub(super) fn command_line_port(suite: Suite) {
        let mut machine = Machine::boot(suite, |root| {
            root.write("/etc/default/ssh", "# options\nSSHD_OPTS=\"-p 2299 -o Banner=none\"\n");
        });
        machine.spec("version: 1\nssh: {port: 2222}\n");
        machine.ssh(2299, "harden apply --yes spec.yaml").code(0);
        let options = machine.root().read("/etc/default/ssh");
        assert_eq!(options, "# options\nSSHD_OPTS=\"-o Banner=none\"\n");
        assert_for_good(&mut machine, &Want::service(2222));
    }
}
