//! The command line without a host: bad specs, usage, help. What needs sshd is in vm-tests.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::process::{Command, Output};

fn harden(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_harden")).args(args).env("NO_COLOR", "1").output().unwrap()
}

fn on_spec(command: &str, bytes: &[u8]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spec.yaml");
    std::fs::write(&path, bytes).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_harden"))
        .args([command, "spec.yaml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was written");
    output
}

/// Spec, place, what is wrong, what was expected.
const BAD: [(&str, &str, &str, &str); 41] = [
    ("version: 1\nssh:\n  prot: 22\n", "3:3", "unknown field `prot`", "expected port"),
    ("versoin: 1\n", "1:1", "unknown field `versoin`", "expected version"),
    ("version: 1\nssh:\n  port: 0\n", "3:9", "`0` is not a port", "from 1 to 65535"),
    ("version: 1\nssh:\n  port: 70000\n", "3:9", "`70000` is not a port", "from 1 to 65535"),
    ("version: 1\nssh:\n  port: -1\n", "3:9", "`-1` is not a port", "from 1 to 65535"),
    ("version: 1\nssh:\n  port: ssh\n", "3:9", "`ssh` is not a port", "from 1 to 65535"),
    ("version: 1\nssh:\n  port: [22, 1.5]\n", "3:14", "`1.5` is not a port", "from 1 to 65535"),
    ("version: 1\nssh:\n  port: [22, 22]\n", "3:14", "the port stands twice", "already listed"),
    ("version: 1\nssh:\n  port: []\n", "3:9", "the list is empty", "expected a value"),
    ("version: 1\nssh:\n  port: {a: 1}\n", "3:9", "invalid type: map", "a value or a list"),
    ("version: 1\nssh:\n  port: 22\n  port: 23\n", "4:3", "`port` stands twice", "keep one"),
    ("version: 1\nssh:\n\tport: 22\n", "3:2", "a tab indents this line", "expected spaces"),
    ("", "1:1", "the spec is empty", "expected `version: 1`"),
    ("# nothing\n", "1:1", "the spec is empty", "expected `version: 1`"),
    ("ssh: {port: 22}\n", "1:1", "`version` is missing", "expected `version`"),
    ("version: 2\n", "1:10", "unknown version", "expected 1"),
    ("version: yes\n", "1:10", "not a number", "expected a whole number"),
    ("version: 1\nssh: [1]\n", "2:6", "not a mapping", "expected `key: value`"),
    ("version: 1\nssh: {port: 2\n", "2:6", "unclosed bracket", "cannot be read"),
    ("version: 1\n---\nversion: 1\n", "3:1", "a second YAML document", "one document"),
    ("version: 1\nssh:\n  socket: off\n", "3:11", "unknown variant `off`", "disabled, enabled"),
    (
        "version: 1\nssh:\n  listen: localhost\n",
        "3:11",
        "`localhost` is not an IP",
        "expected an address",
    ),
    ("version: 1\nssh:\n  settings:\n    Port: 22\n", "4:5", "`Port` cannot stand", "ssh.port"),
    ("version: 1\nssh:\n  settings:\n    Banner:\n", "4:", "there is no value", "expected a value"),
    ("version: 1\nssh:\n  settings:\n    Banner: {a: b}\n", "4:13", "invalid type: map", "a value"),
    (
        "version: 1\nssh:\n  settings:\n    Banner: \"a\\nPort 1\"\n",
        "4:13",
        "control character",
        "one line",
    ),
    (
        "version: 1\nssh:\n  settings: {Banner: a, banner: b}\n",
        "3:25",
        "`banner` is set twice",
        "same keyword",
    ),
    ("version: 1\nfirewall: auto\n", "2:11", "`firewall` is not supported yet", "accepts `off`"),
    (
        "version: 1\nssh: {profile: paranoid}\n",
        "2:16",
        "unknown variant `paranoid`",
        "none, recommended, strict, post-quantum",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {LocalPort: 0}\n      settings: {Banner: none}\n",
        "4:18",
        "`0` is no port",
        "from 1 to 65535",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {User: a, user: b}\n      settings: {Banner: none}\n",
        "4:27",
        "`user` is asked for twice",
        "each criterion once",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {User: \"a\\nb\"}\n      settings: {Banner: none}\n",
        "4:24",
        "control character",
        "one line",
    ),
    ("version: 1\nssh: {match: {criteria: {User: a}}}\n", "2:14", "not a list", "[...]"),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {Colour: red}\n      settings: {Banner: none}\n",
        "4:18",
        "there is no criterion `Colour`",
        "expected User, Group",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {All: root}\n      settings: {Banner: none}\n",
        "4:18",
        "`All` takes no value",
        "write `All: yes`",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {User: a, all: yes}\n      settings: {Banner: a}\n",
        "4:27",
        "`all` cannot be combined",
        "expected User, Group",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {User: a}\n      settings: {Ciphers: x}\n",
        "5:18",
        "`Ciphers` cannot stand in a Match block",
        "one value of it for everybody",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {}\n      settings: {Banner: none}\n",
        "4:17",
        "there are no criteria",
        "expected User, Group",
    ),
    (
        "version: 1\nssh:\n  match:\n    - criteria: {User: a}\n",
        "4:7",
        "`settings` is missing",
        "in this mapping",
    ),
    ("version: 1\nsafety: {admins: []}\n", "2:18", "the list is empty", "names of users"),
    ("version: 1\nsafety: {timeout: 5x}\n", "2:19", "not a length of time", "90s, 5m"),
];

#[test]
fn bad_specs_are_pointed_at() {
    for (spec, place, wrong, expected) in BAD {
        for command in ["plan", "apply"] {
            let output = on_spec(command, spec.as_bytes());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{spec}: {said}");
            assert_eq!(output.stdout, b"", "{spec}");
            assert!(said.contains(wrong), "{spec}: {said}");
            assert!(said.contains(expected), "{spec}: {said}");
            // An empty text has no line to show.
            if !spec.is_empty() {
                assert!(said.contains(&format!("spec.yaml:{place}")), "{spec}: {said}");
                assert!(said.contains('^'), "a caret: {said}");
            }
            assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
        }
    }
}

#[test]
fn hostile_specs_end_quickly_with_an_error() {
    let large = format!("version: 1\n# {}\n", "x".repeat(1 << 20));
    let mut bomb =
        "version: 1\nssh:\n  settings:\n    A0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 8].join(", ");
        bomb.push_str(&format!("    A{level}: &a{level} [{items}]\n"));
    }
    let deep = format!("version: 1\nssh: {}\n", "[".repeat(20_000));
    let not_utf8 = b"version: 1\nssh: \xff\xfe\n";
    let specs: [(&[u8], &str); 4] = [
        (large.as_bytes(), "larger than 256 KiB"),
        (bomb.as_bytes(), "spec.yaml:"),
        (deep.as_bytes(), "spec.yaml:"),
        (not_utf8, "spec.yaml:2:6"),
    ];
    for (spec, said) in specs {
        let started = std::time::Instant::now();
        let output = on_spec("plan", spec);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(said), "{text}");
        assert!(started.elapsed().as_secs() < 10);
    }
}

#[test]
fn an_invalid_spec_is_one_json_object_too() {
    for command in ["plan", "apply"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spec.yaml");
        std::fs::write(&path, "version: 1\nssh: {port: 0}\n").unwrap();
        let output = harden(&[command, "--output", "json", path.to_str().unwrap()]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(report["error"]["code"], "invalid-spec");
        assert!(report["error"]["message"].as_str().unwrap().contains("2:13"), "{report}");
    }
}

#[test]
fn wrong_usage_exits_2() {
    for args in [&[][..], &["frobnicate"], &["plan"], &["apply", "--timeout", "soon", "x"]] {
        assert_eq!(harden(args).status.code(), Some(2), "{args:?}");
    }
    let missing = harden(&["plan", "/nowhere/spec.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nowhere/spec.yaml"));
}

#[test]
fn help_fits_a_terminal() {
    for args in [&["--help"][..], &["plan", "--help"], &["apply", "--help"]] {
        let output = harden(args);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
