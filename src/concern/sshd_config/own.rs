//! What harden itself has written into sshd's files, and how it is told from the rest.

use std::path::Path;

use crate::sshd::ConfigTree;
use crate::sshd::syntax::{Directive, parse_line};

/// The drop-in: it sorts before cloud-init's 50- and nearly everything else.
pub(crate) const DROP_IN: &str = "/etc/ssh/sshd_config.d/00-harden.conf";

/// Where Match blocks go when no drop-in is read early enough: at the top of the main file they would take
/// everything below them in, and a file of their own ends them.
pub(super) const MATCH_FILE: &str = "/etc/ssh/harden-match.conf";

pub(super) const HEADER: &str =
    "# Written by harden; `harden apply` replaces it. Change the spec instead.\n";
pub(super) const BEGIN: &str =
    "# BEGIN harden: `harden apply` replaces these lines; change the spec instead.";
pub(super) const END: &str = "# END harden";
/// In front of a line of someone else's that the spec replaces; taken off again when it no
/// longer does.
pub(super) const SET_ASIDE: &str = "#harden# ";

/// Whether a file is harden's own.
pub(crate) fn is_own(path: &Path) -> bool {
    path == Path::new(DROP_IN) || path == Path::new(MATCH_FILE)
}

/// The lines that an earlier spec wrote for everybody: the drop-in's, or the block's at the top of the main
/// file.
pub(crate) fn earlier_lines(tree: &ConfigTree) -> Vec<Directive> {
    let drop_in = tree.file(Path::new(DROP_IN)).map(|file| file.text.as_str()).unwrap_or_default();
    let drop_in = drop_in.split("\nMatch ").next().unwrap_or_default();
    let main = tree.file(&tree.main).map(|file| file.text.as_str()).unwrap_or_default();
    let block = main.split_once(BEGIN).and_then(|(_, rest)| Some(rest.split_once(END)?.0));
    let lines = drop_in.lines().chain(block.unwrap_or_default().lines());
    lines.filter_map(parse_line).filter(|line| !line.is("Include")).collect()
}

/// The files as they would be had harden never written to them.
pub(super) fn bare(tree: &ConfigTree) -> ConfigTree {
    let mut tree = tree.clone();
    tree.files.retain(|file| !is_own(&file.path));
    for paths in tree.includes.values_mut() {
        paths.retain(|path| !is_own(path));
    }
    tree.includes.remove(MATCH_FILE);
    for file in &mut tree.files {
        if file.text.contains(BEGIN) {
            file.text = without_block(&file.text);
        }
        if file.text.contains(SET_ASIDE) {
            file.text = map_lines(&file.text, |_, line| {
                line.strip_prefix(SET_ASIDE).unwrap_or(line).to_owned()
            });
        }
    }
    tree
}

fn without_block(text: &str) -> String {
    let mut inside = false;
    text.split_inclusive('\n')
        .filter(|line| {
            let line = line.trim_end();
            let begins = line == BEGIN;
            let ends = inside && line == END;
            inside = (inside || begins) && !ends;
            !(inside || ends)
        })
        .collect()
}

/// Rewrites a text line by line and keeps every line ending.
pub(super) fn map_lines(text: &str, mut change: impl FnMut(usize, &str) -> String) -> String {
    text.split('\n')
        .enumerate()
        .map(|(index, line)| change(index, line))
        .collect::<Vec<_>>()
        .join("\n")
}
