//! What stands in Match blocks, whomever they apply to.

use std::path::Path;

use super::lines::{Block, Chosen, Place, choose};
use crate::sshd::criteria;
use crate::sshd::keywords::{Follows, counts_in_match, follows, kept_as};
use crate::sshd::release::Release;

/// What stands in Match blocks, whomever they apply to.
#[derive(Debug)]
pub struct Blocks<'r> {
    pub(super) release: &'r Release,
    pub(super) blocks: Vec<Block<'r>>,
    pub(super) lines: Vec<Place<'r>>,
}

impl<'r> Blocks<'r> {
    /// For each block in which a keyword stands: the lines that sshd follows for connections that meet
    /// this block and no others, but for those that apply to everybody.
    pub fn follow(&self, keyword: &str) -> Vec<(Block<'r>, Chosen<'r>)> {
        let keyword = kept_as(keyword, self.release);
        if !counts_in_match(&keyword, self.release) {
            return Vec::new();
        }
        let is_it = |place: &&Place| *place.keyword == *keyword;
        let lines: Vec<Place<'r>> = self.lines.iter().filter(is_it).copied().collect();
        // Where a keyword yields to another one, all of its lines may count for somebody.
        let follows = match follows(&keyword, self.release) {
            Follows::LastBeforeKeysCommand => Follows::Last,
            follows => follows,
        };
        let stands_in = |block: &&Block| {
            lines.iter().any(|place| place.block.is_some_and(|other| other.id == block.id))
        };
        let chosen = |block: &Block<'r>| {
            let applies =
                |place: &&Place| place.block.is_some_and(|other| self.is_met_with(other.id, block));
            let lines = lines.iter().filter(applies).copied().collect();
            (*block, choose(follows, lines, &[]))
        };
        self.blocks.iter().filter(stands_in).map(chosen).collect()
    }

    /// Every line that stands in a block.
    pub fn lines(&self) -> impl Iterator<Item = &Place<'r>> {
        self.lines.iter()
    }

    /// Whether a file is read, outside any other block, that has blocks of its own.
    pub fn stand_in(&self, path: &Path) -> bool {
        self.blocks.iter().any(|block| block.path == path && block.within.is_none())
    }

    /// Whether a block is met wherever another one is.
    fn is_met_with(&self, id: usize, block: &Block) -> bool {
        let Some(other) = self.blocks.get(id) else { return false };
        let around = |of: &Block, id: usize| {
            let outer = |of: Option<usize>| of.and_then(|id| self.blocks.get(id)?.within);
            std::iter::successors(Some(of.id), |id| outer(Some(*id))).any(|other| other == id)
        };
        let always = criteria::always(other.criteria, self.release);
        around(block, id) || (always && other.within.is_none_or(|outer| around(block, outer)))
    }
}
