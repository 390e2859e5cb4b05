//! Golden plans: a spec, what was observed on a real booted system, and the plan as it is shown.
//!
//! `UPDATE_PLANS=1 cargo test --test plans` writes the expected texts anew; read the diff.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::path::Path;

use harden::observe::Observed;
use harden::plan::plan;
use harden::report::human;

fn shown(case: &Path) -> String {
    let spec = std::fs::read(case.join("spec.yaml")).unwrap();
    let spec = harden::spec::parse("spec.yaml", &spec).unwrap();
    let observed = std::fs::read(case.join("observed.json")).unwrap();
    let observed: Observed = serde_json::from_slice(&observed).unwrap();
    let mut out = Vec::new();
    match plan(&spec, &observed) {
        Ok(plan) => human::plan(&mut out, &observed, &plan).unwrap(),
        Err(refusal) => {
            let report = harden::error::Error::from(refusal).report();
            human::error(&mut out, &report).unwrap();
        }
    }
    let plain = anstream::adapter::strip_bytes(&out).into_vec();
    String::from_utf8(plain).unwrap()
}

#[test]
fn every_case_is_planned_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let mut cases: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "{cases:?}");
    for case in cases {
        let expected = case.join("plan.txt");
        let shown = shown(&case);
        if std::env::var_os("UPDATE_PLANS").is_some() {
            std::fs::write(&expected, &shown).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(shown, expected, "{}", case.display());
    }
}

/// Planning twice from the same observation gives the same plan, and every plan's candidate is a
/// fixed point: set-aside lines are not set aside again.
#[test]
fn planning_is_a_function() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    for case in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let spec = std::fs::read(case.join("spec.yaml")).unwrap();
        let spec = harden::spec::parse("spec.yaml", &spec).unwrap();
        let observed = std::fs::read(case.join("observed.json")).unwrap();
        let observed: Observed = serde_json::from_slice(&observed).unwrap();
        let Ok(first) = plan(&spec, &observed) else { continue };
        assert_eq!(plan(&spec, &observed).unwrap(), first);
        let after = Observed { config: first.candidate.clone(), ..observed };
        if let Ok(second) = plan(&spec, &after) {
            assert_eq!(second.candidate, first.candidate, "{}", case.display());
        }
    }
}
