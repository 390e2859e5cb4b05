//! No input makes a reader panic: not garbage, and not a valid document that was mangled.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use harden::observe::Observed;
use harden::saved::SavedPlan;
use harden::sshd::reading::Reading;
use harden::sshd::release::Release;
use harden::sshd::{ConfigFile, ConfigTree, Effective, options, syntax};
use harden::sys::files::Meta;
use harden::transaction::journal;
use proptest::prelude::*;

const SPEC: &str = include_str!("../playbooks/keys-only.yaml");
const SSHD_CONFIG: &str = "Include /etc/ssh/sshd_config.d/*.conf\nPort 22\nListenAddress [::]:22\n\
                           Subsystem sftp \"/usr/lib/sftp server\" -f 'a b'\nMatch User a,!b Address \
                           10.0.0.0/8\n  ForceCommand=none\nMatch all\nAcceptEnv LANG LC_*\r\n";
const DEFAULTS: &str = "# Default settings\nSSHD_OPTS='-p 2299 -o \"Port 22\"' \\\n -4\n";
const JOURNAL: &[u8] = include_bytes!("journals/format-1.journal");

fn saved_plan() -> Vec<u8> {
    let saved = SavedPlan {
        checksum: String::new(),
        harden_plan: 1,
        spec_name: "spec.yaml".to_owned(),
        spec_text: SPEC.to_owned(),
        changes: Vec::new(),
        observed: Observed::default(),
    };
    serde_json::to_vec(&saved).unwrap()
}

/// A document with some bytes cut out, doubled or replaced.
fn mangled(document: impl Into<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let document = document.into();
    let edit = (any::<prop::sample::Index>(), 0_usize..40, any::<u8>(), 0..3_u8);
    prop::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut bytes = document.clone();
        for (at, length, byte, kind) in edits {
            let from = at.index(bytes.len() + 1);
            let to = (from + length).min(bytes.len());
            match kind {
                0 => drop(bytes.drain(from..to)),
                1 => {
                    let part = bytes[from..to].to_vec();
                    bytes.splice(from..from, part);
                }
                _ => bytes.insert(from, byte),
            }
        }
        bytes
    })
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

fn read_config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let path: PathBuf = "/etc/ssh/sshd_config".into();
    let file = ConfigFile { real: path.clone(), path, text, meta: Meta::root(0o644) };
    let mut tree = ConfigTree { main: file.path.clone(), ..ConfigTree::default() };
    // A file that includes itself.
    tree.includes.insert("/etc/ssh/sshd_config.d/*.conf".into(), vec![file.path.clone()]);
    tree.files.push(file);
    for release in [Release::LATEST, Release { major: 8, minor: 4, name: String::new() }] {
        let Ok(reading) = Reading::new(&tree, release) else { continue };
        let _ = reading.globally().map(|globally| globally.flat());
        let _ = reading.blocks().map(|blocks| blocks.follow("Port").len());
    }
    let _ = tree.mirrored(Path::new("/run/x"), &["Port"]);
}

proptest! {
    #[test]
    fn a_spec(bytes in prop_oneof![garbage(), mangled(SPEC.as_bytes())]) {
        let _ = harden::spec::parse("spec.yaml", &bytes);
    }

    #[test]
    fn a_saved_plan(bytes in prop_oneof![garbage(), mangled(saved_plan())]) {
        if let Ok(Some(saved)) = SavedPlan::read("plan.json", &bytes) {
            let _ = saved.spec();
        }
    }

    #[test]
    fn a_journal(bytes in prop_oneof![garbage(), mangled(JOURNAL)]) {
        let records = journal::decode(&bytes);
        let _ = (journal::is_open(&records), harden::transaction::outcome(&records));
        let _ = harden::transaction::changed(&records);
    }

    #[test]
    fn a_configuration(bytes in prop_oneof![garbage(), mangled(SSHD_CONFIG.as_bytes())]) {
        read_config(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = Effective::parse(&text).listen();
        let words = syntax::split_args(&text);
        let _ = options::parse(&words);
    }

    #[test]
    fn an_environment_file(bytes in prop_oneof![garbage(), mangled(DEFAULTS.as_bytes())]) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = options::variable(&text, "SSHD_OPTS").map(|variable| variable.words());
    }
}
