//! The command line on a real host: prompt, plan files, hangups, and what it needs to run at all.

use std::process::Command;

use crate::machine::{Machine, Suite};
use crate::on_debian;
use crate::state::{Want, assert_for_good, assert_state, unchanged};

const MOVE: &str = "version: 1\nssh:\n  port: 2222\n  socket: disabled\n";

on_debian!(bad_values_point_into_the_spec);

mod cases {
    use super::*;

    /// A keyword that this sshd does not know, and a value that it refuses.
    pub(super) fn bad_values_point_into_the_spec(suite: Suite) {
        let machine = Machine::boot(suite, |root| root.socket_owns_port(suite));
        for (setting, caret) in [("NoSuchKeyword: yes", 5), ("PermitRootLogin: perhaps", 5)] {
            machine.spec(&format!("version: 1\nssh:\n  settings:\n    {setting}\n"));
            for command in ["harden plan spec.yaml", "harden apply -y spec.yaml"] {
                let refused = unchanged(&machine, || machine.exec(command).code(2));
                let place = format!("spec.yaml:4:{caret}");
                assert!(refused.stderr.contains(&place), "{refused:?}");
                assert!(refused.stderr.contains("^^^"), "{refused:?}");
            }
        }
    }
}

fn fresh() -> Machine {
    let machine = Machine::boot(Suite::Trixie, |root| root.socket_owns_port(Suite::Trixie));
    machine.spec(MOVE);
    machine
}

/// A shell of root's on a real terminal, over a real login.
pub(crate) fn login(machine: &Machine, port: u16) -> rexpect::session::PtySession {
    let mut command = Command::new("ip");
    let mut args = machine.ssh_args(crate::machine::V4, port, "root");
    let host = args.pop().unwrap();
    args.extend(["-tt".to_owned(), host]);
    // Whatever terminal the tests themselves run on.
    command.args(args).env("TERM", "xterm");
    let mut session = rexpect::session::spawn_command(command, Some(30_000)).unwrap();
    session.exp_regex(r"[#$] ").unwrap();
    session
}

#[test]
fn the_prompt_defaults_to_no_and_takes_yes() {
    let mut machine = fresh();
    let mut terminal = login(&machine, 22);
    for answer in ["", "n", "perhaps"] {
        unchanged(&machine, || {
            terminal.send_line("harden apply spec.yaml; echo code=$?").unwrap();
            terminal.exp_string("Apply these changes? [y/N]").unwrap();
            terminal.send_line(answer).unwrap();
            terminal.exp_string("code=1").unwrap();
            machine.exec("true")
        });
    }
    terminal.send_line("harden apply --confirm probe spec.yaml; echo code=$?").unwrap();
    terminal.exp_string("Apply these changes? [y/N]").unwrap();
    terminal.send_line("y").unwrap();
    terminal.exp_string("code=0").unwrap();
    let mut anew = login(&machine, 2222);
    anew.send_line("echo in-$((40 + 2))").unwrap();
    anew.exp_string("in-42").unwrap();
    terminal.send_line("echo still-$((40 + 2))").unwrap();
    terminal.exp_string("still-42").unwrap();
    assert_for_good(&mut machine, &Want::service(2222));
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    let machine = fresh();
    let mut terminal = login(&machine, 22);
    let plain = machine.sh("harden plan spec.yaml");
    assert!(!plain.contains('\u{1b}'), "{plain}");
    let longest = plain.lines().filter(|l| !l.contains("/etc/") && !l.contains('#')).map(str::len);
    assert!(longest.max().unwrap() <= 80, "{plain}");
    terminal
        .send_line("harden plan spec.yaml | cat; NO_COLOR=1 harden plan spec.yaml; echo e=1")
        .unwrap();
    let shown = terminal.exp_string("e=1\r\n").unwrap();
    assert!(!shown.contains("\u{1b}[31m") && !shown.contains("\u{1b}[1m"), "{shown:?}");
    terminal.send_line("harden plan spec.yaml; echo e=2").unwrap();
    let shown = terminal.exp_string("e=2\r\n").unwrap();
    assert!(shown.contains("\u{1b}[31m"), "{shown:?}");
}

/// Another OpenSSH by now, that knows an algorithm less.
#[test]
fn a_saved_plan_of_other_algorithms_is_refused() {
    let machine = Machine::boot(Suite::Bookworm, |_| {});
    machine.spec("version: 1\nssh: {profile: recommended}\n");
    machine.sh("harden plan spec.yaml --out plan.json; mv /usr/bin/ssh /usr/bin/other-ssh");
    let less = "#!/bin/sh\n/usr/bin/other-ssh \"$@\" | grep -v hmac-sha2-256-etm\n";
    machine.root().write("/usr/bin/ssh", less);
    machine.sh("chmod +x /usr/bin/ssh");
    let refused = unchanged(&machine, || machine.exec("harden apply -y plan.json").code(1));
    let why = "what it does with /etc/ssh/sshd_config.d/00-harden.conf would be something else";
    assert!(refused.unwrapped().contains(why), "{refused:?}");
    machine.sh("mv /usr/bin/other-ssh /usr/bin/ssh; harden apply -y --confirm probe plan.json");
}

#[test]
fn a_saved_plan_is_applied_or_refused() {
    let mut machine = fresh();
    machine.sh("harden plan spec.yaml --out plan.json");
    machine.spec("version: 1\nssh: {port: 22}\n");
    machine.root().write("/etc/ssh/sshd_config.d/40-new.conf", "Banner none\n");
    let refused = unchanged(&machine, || machine.exec("harden apply -y plan.json").code(1));
    assert!(refused.stderr.contains("40-new.conf is new"), "{refused:?}");
    machine.root().remove("/etc/ssh/sshd_config.d/40-new.conf");
    // Somebody's own step in the plan is not run.
    machine.sh("sed 's/00-harden/00-other/' plan.json > other.json; chmod 600 other.json");
    unchanged(&machine, || machine.exec("harden apply -y other.json").code(1));
    machine.ssh(22, "harden apply -y plan.json").code(0);
    machine.spec(MOVE);
    assert_for_good(&mut machine, &Want::service(2222));
    let again = machine.exec("harden apply -y plan.json").code(1);
    assert!(again.stderr.contains("has changed since the plan was made"), "{again:?}");
}

#[test]
fn exit_codes_and_json_are_the_contract() {
    let machine = fresh();
    machine.exec("harden plan spec.yaml").code(0);
    machine.exec("harden plan --exit-code spec.yaml").code(3);
    let planned = machine.sh("harden plan --output json spec.yaml");
    let plan: serde_json::Value = serde_json::from_str(&planned).unwrap();
    assert_eq!(plan["version"], 1);
    for key in ["id", "concern", "action", "target", "before", "after", "diff"] {
        assert!(plan["changes"][0].get(key).is_some(), "{key}: {planned}");
    }
    let applied = machine.sh("harden apply --yes --output json spec.yaml");
    let report: serde_json::Value = serde_json::from_str(&applied).unwrap();
    assert_eq!((&report["outcome"], &report["changed"]), (&"applied".into(), &true.into()));
    assert!(report["transaction"].is_string() && report["error"].is_null(), "{applied}");
    let empty = machine.sh("harden plan --exit-code --output json spec.yaml");
    let plan: serde_json::Value = serde_json::from_str(&empty).unwrap();
    assert_eq!(plan["changes"], serde_json::json!([]));
    let refused = machine.exec("harden apply --output json --on root@example.org spec.yaml");
    let report: serde_json::Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!((refused.code, &report["outcome"]), (2, &"refused".into()));
    let status = machine.sh("harden status --output json");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["transaction"], serde_json::Value::Null);
    let history = machine.sh("harden history --output json");
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    assert_eq!(history["transactions"][0]["outcome"], "applied");
}

/// What harden needs and does not find: exit 1, what to do, and nothing changed.
#[test]
fn what_is_missing_is_named() {
    let machine = fresh();
    let refused = |what: &str, command: &str, said: &str| {
        let refused = unchanged(&machine, || machine.exec(command).code(1));
        assert!(refused.stderr.contains(said), "{what}: {refused:?}");
        assert!(refused.stderr.contains("hint:"), "{what}: {refused:?}");
    };
    machine.sh("install -m 644 spec.yaml /tmp/spec.yaml");
    refused("not root", "su deploy -c 'harden apply -y /tmp/spec.yaml'", "only root");
    machine.sh("install -m 666 spec.yaml /tmp/loose.yaml");
    refused("others can write", "harden apply -y /tmp/loose.yaml", "can be written by others");
    machine.sh("install -m 644 -o deploy spec.yaml /tmp/theirs.yaml");
    refused("another's file", "harden apply -y /tmp/theirs.yaml", "belongs to another user");
    machine.sh("install -d -m 777 /tmp/open; install -m 644 spec.yaml /tmp/open/");
    refused("open folder", "harden apply -y /tmp/open/spec.yaml", "in place of /tmp/open");
    // Who runs sudo, with the umask that Debian gives people, may write the spec.
    machine.sh("install -m 664 -o deploy -g deploy spec.yaml /home/deploy/spec.yaml");
    machine.sh("su - deploy -c 'harden plan spec.yaml && sudo harden plan spec.yaml'");
    machine.sh("install -m 664 -o deploy -g games spec.yaml /home/deploy/spec.yaml");
    let by_group = "su - deploy -c 'sudo harden plan spec.yaml'";
    refused("a group of others", by_group, "can be written by others");
    let hidden = |path: &str, command: &str| {
        format!("unshare -m sh -c 'mount --bind /dev/null {path} && {command}'")
    };
    let apply = "harden apply -y /root/spec.yaml";
    refused("no sshd", &hidden("/usr/sbin/sshd", apply), "there is no /usr/sbin/sshd");
    let no_bus = format!("DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nowhere {apply}");
    refused("no D-Bus", &no_bus, "D-Bus");
    let no_systemd =
        "unshare -m sh -c 'mount -t tmpfs none /run/systemd && harden apply -y /root/spec.yaml'";
    refused("no systemd", no_systemd, "not started by systemd");
    refused("no terminal", "harden apply spec.yaml", "no terminal");
    let open = "install -d -m 777 /var/lib/harden; harden apply -y spec.yaml; r=$?; \
                rmdir /var/lib/harden; exit $r";
    refused("open to others", open, "can be written by others than root");
    let planted = |options: &str| {
        format!(
            "install -d -m 700 /var/lib/harden; install {options} /dev/null \
             /var/lib/harden/20270101T000000.000Z-aaaaaa.journal; harden apply -y spec.yaml; r=$?; \
             rm -r /var/lib/harden; exit $r"
        )
    };
    refused("another's journal", &planted("-o deploy"), "belongs to another");
    refused("open journal", &planted("-m 666"), "(mode 0666)");
    refused("locked", "flock /run/harden/lock harden apply -y spec.yaml", "another harden");
    assert_state(&machine, &Want::socket(22));
}

/// A plan without root: what it could see, and what it could not.
#[test]
fn a_plan_works_without_root() {
    let machine = fresh();
    machine.sh("install -m 644 spec.yaml /tmp/spec.yaml");
    let plan = machine.sh("su deploy -c 'harden plan /tmp/spec.yaml'");
    assert!(plan.contains("ssh.socket: active, enabled -> inactive, disabled"), "{plan}");
    assert!(plan.contains("could not see"), "{plan}");
}

/// The terminal dies in the middle: the transaction goes on.
#[test]
fn a_hangup_does_not_stop_the_transaction() {
    let mut machine = Machine::boot(Suite::Trixie, |root| {
        root.socket_owns_port(Suite::Trixie);
        root.write(
            "/etc/systemd/system/ssh.service.d/slow.conf",
            "[Service]\nExecStartPre=/bin/sh -c 'grep -rqs \"^Port 2222\" /etc/ssh && sleep 2 || true'\n",
        );
    });
    machine.spec(MOVE);
    let mut terminal = login(&machine, 22);
    terminal.send_line("harden apply -y --confirm probe spec.yaml").unwrap();
    terminal.exp_string("start ssh.service").unwrap();
    terminal.exp_string("] start ssh.service").unwrap();
    terminal.send_control('c').unwrap();
    drop(terminal);
    machine.wait_for_the_end();
    assert_for_good(&mut machine, &Want::service(2222));
}

#[test]
fn a_plan_is_saved_to_a_file_of_its_own() {
    let machine = fresh();
    machine.sh("cp -a /dev/null /root/device");
    for out in ["/root/device", "spec.yaml", "/etc"] {
        unchanged(&machine, || machine.exec(&format!("harden plan spec.yaml --out {out}")).code(1));
    }
    machine.sh("test -c /root/device");
    assert_eq!(machine.root().read("/root/spec.yaml"), MOVE);
    machine.exec("harden plan spec.yaml > /dev/full").code(1);
    machine.sh("harden plan spec.yaml --out p.json; truncate -s 900 p.json");
    let damaged = unchanged(&machine, || machine.exec("harden apply -y p.json").code(1));
    assert!(damaged.stderr.contains("damaged plan"), "{damaged:?}");
    let usage = machine.exec("harden apply --output json").code(2);
    let report: serde_json::Value = serde_json::from_str(&usage.stdout).unwrap();
    assert_eq!(report["error"]["code"], "usage");
}
