//! What the reader of a plan should know of sshd_config, though nothing stands in the way. Pure.

use std::collections::BTreeSet;

use super::own::{earlier_lines, is_own};
use crate::concern::listening::Listening;
use crate::observe::Observed;
use crate::spec::MatchBlock;
use crate::sshd::ConfigTree;
use crate::sshd::criteria::Criterion;
use crate::sshd::effective::ports;
use crate::sshd::keywords::same;
use crate::sshd::reading::{Block, Reading};

/// Match blocks that an earlier spec wrote and this one does not.
pub(super) fn dropped_blocks(tree: &ConfigTree, blocks: &[MatchBlock]) -> Vec<String> {
    let own = tree.files.iter().filter(|file| is_own(&file.path));
    let criteria = own.flat_map(|file| file.text.lines().filter_map(|l| l.strip_prefix("Match ")));
    criteria
        .filter(|criteria| !blocks.iter().any(|block| block.asks() == *criteria))
        .map(|criteria| format!("the spec no longer has a block for `Match {criteria}`"))
        .collect()
}

/// Match blocks for a port on which sshd listens no more: what they say of it applies to nobody.
pub(super) fn left_behind(
    candidate: &ConfigTree,
    observed: &Observed,
    listening: &Listening,
) -> Vec<String> {
    if !candidate.mentions("localport") {
        return Vec::new();
    }
    let Ok(reading) = Reading::new(candidate, observed.release.clone()) else { return Vec::new() };
    let Ok(blocks) = reading.blocks() else { return Vec::new() };
    let (were, are) = (ports(&observed.held()), ports(&listening.endpoints));
    let is_left = |port: &u16| were.contains(port) && !are.contains(port);
    let mut seen = BTreeSet::new();
    let of = |block: Block| {
        let port = block.criteria.iter().find_map(|criterion| match criterion {
            Criterion::LocalPort(port) => Some(port).filter(|port| is_left(port)),
            _ => None,
        })?;
        seen.insert(block.id).then(|| {
            format!(
                "`Match {}` ({}:{}) applies to nobody any more: sshd would not listen on port {port}",
                block.directive.rest.trim(),
                block.path.display(),
                block.number
            )
        })
    };
    blocks.lines().filter_map(|place| place.block).filter_map(of).collect()
}

/// Values that an earlier spec set and this one does not: sshd's own come back.
pub(super) fn dropped_values(tree: &ConfigTree, keywords: &[String]) -> Vec<String> {
    earlier_lines(tree)
        .into_iter()
        .filter(|line| !keywords.iter().any(|keyword| same(keyword, &line.keyword)))
        .map(|line| {
            let (keyword, value) = (&line.keyword, line.args.join(" "));
            format!("the spec no longer sets `{keyword} {value}`; what applied before comes back")
        })
        .collect()
}
