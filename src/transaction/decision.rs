//! The decision: one file, made exclusively and fsynced. Whoever confirms and whatever undoes race
//! for it, and exactly one wins; a crash leaves the whole of it or nothing.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::STATE;
use crate::sys::fault::point;
use crate::sys::{Files, SysError};

/// Why a change is taken back that somebody does not want.
pub const WANTED_BACK: &str = "the operator wanted it back";
/// Why one is that nobody has confirmed.
pub const NOT_IN_TIME: &str = "nobody confirmed in time";
/// The end of a cause where harden cannot prove by itself that somebody still gets in.
pub const NOT_PROVEN: &str = "Confirm it yourself: --confirm operator";

/// What was decided, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Which way.
    pub verdict: Verdict,
    /// Who decided, and why, as one sentence.
    pub why: String,
}

/// Which way a transaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Make it permanent.
    Commit,
    /// Take it back.
    Rollback,
}

fn path(id: &str) -> PathBuf {
    Path::new(STATE).join(format!("{id}.decision"))
}

/// Decides, unless somebody else has; returns the decision that stands.
///
/// # Errors
/// Where it cannot be written, or the one that stands cannot be read.
pub fn decide(files: &Files, id: &str, verdict: Verdict, why: &str) -> Result<Decision, SysError> {
    let decision = Decision { verdict, why: why.to_owned() };
    let text = serde_json::to_vec(&decision)
        .map_err(|error| SysError::new("cannot write the decision", error))?;
    point(format_args!("decision.before"))?;
    if files.create_exclusively(&path(id), &text)? {
        point(format_args!("decision.after"))?;
        return Ok(decision);
    }
    let stands = read(files, id)?;
    stands.ok_or_else(|| SysError::new("cannot read the decision", "it is gone"))
}

/// The decision that stands, where there is one.
///
/// # Errors
/// Where it cannot be read.
pub fn read(files: &Files, id: &str) -> Result<Option<Decision>, SysError> {
    let Some(bytes) = files.read(&path(id))? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| SysError::new("cannot read the decision", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_decide_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::at(folder.path());
        files.create_folders(Path::new(STATE), 0o700).unwrap();
        for round in 0..100 {
            let id = format!("id-{round}");
            let standing: Vec<Decision> = std::thread::scope(|scope| {
                let racers: Vec<_> = [Verdict::Commit, Verdict::Rollback]
                    .into_iter()
                    .map(|verdict| {
                        let (files, id) = (files.clone(), id.clone());
                        scope.spawn(move || {
                            decide(&files, &id, verdict, &format!("{verdict:?}")).unwrap()
                        })
                    })
                    .collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            assert_eq!(standing[0], standing[1]);
            assert_eq!(read(&files, &id).unwrap().as_ref(), standing.first());
        }
    }
}
