//! sshd_config(5) as a tree of files: Include order, global context, Match blocks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keywords::same;
use super::syntax::{Directive, parse_line, quote_arg};
use crate::sys::files::Meta;

/// sshd stops at this depth of Include (servconf.c, `SERVCONF_MAX_DEPTH`).
pub(super) const MAX_DEPTH: usize = 16;

/// One configuration file as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// The name by which the configuration reaches it.
    pub path: PathBuf,
    /// Where its bytes are: the same, or what a symbolic link leads to.
    pub real: PathBuf,
    /// Its text. Files that are not UTF-8 keep their bytes on disk unless a line must change.
    pub text: String,
    /// Owner, mode, extended attributes.
    pub meta: Meta,
}

/// All files that sshd reads, in the order in which it first meets them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigTree {
    /// Path of the main file.
    pub main: PathBuf,
    /// Every file reached, the main file first.
    pub files: Vec<ConfigFile>,
    /// For each Include pattern (made absolute): the files it names, in sshd's order.
    pub includes: BTreeMap<String, Vec<PathBuf>>,
}

/// A directive in reading order, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// The file.
    pub path: &'a Path,
    /// Line number, from 1.
    pub number: usize,
    /// The directive.
    pub directive: Directive,
    /// The criteria of the Match block it stands in; `None` in the global context.
    pub context: Option<String>,
}

impl Line<'_> {
    /// `FILE:LINE`, as error messages write it.
    pub fn place(&self) -> String {
        format!("{}:{}", self.path.display(), self.number)
    }
}

impl ConfigTree {
    /// The file reached under this name.
    pub fn file(&self, path: &Path) -> Option<&ConfigFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Every directive in the order in which sshd reads them, Includes followed.
    pub fn lines(&self) -> Vec<Line<'_>> {
        let mut lines = Vec::new();
        self.read(&self.main, None, 0, &mut lines);
        lines
    }

    /// The lines of one keyword in the global context.
    pub fn global(&self, keyword: &str) -> Vec<Line<'_>> {
        self.lines()
            .into_iter()
            .filter(|line| line.context.is_none() && same(&line.directive.keyword, keyword))
            .collect()
    }

    fn read<'a>(
        &'a self,
        path: &Path,
        outer: Option<&String>,
        depth: usize,
        lines: &mut Vec<Line<'a>>,
    ) {
        let Some(file) = self.file(path) else { return };
        // A Match in an included file ends with that file: the outer context comes back.
        let mut context = outer.cloned();
        for (index, text) in file.text.split('\n').enumerate() {
            let Some(directive) = parse_line(text) else { continue };
            if directive.is("Match") {
                context = match_context(&directive);
            }
            let included = directive.is("Include").then(|| directive.args.clone());
            lines.push(Line {
                path: &file.path,
                number: index + 1,
                directive,
                context: context.clone(),
            });
            if depth < MAX_DEPTH {
                for pattern in included.into_iter().flatten() {
                    for path in self.included_by(&pattern) {
                        self.read(path, context.as_ref(), depth + 1, lines);
                    }
                }
            }
        }
    }

    pub(super) fn included_by(&self, pattern: &str) -> &[PathBuf] {
        self.includes.get(&absolute(pattern)).map_or(&[], Vec::as_slice)
    }
}

/// `Match all` opens a block that applies to everyone, but it is a block all the same.
fn match_context(directive: &Directive) -> Option<String> {
    Some(directive.args.join(" "))
}

impl ConfigTree {
    /// The tree as sshd would read it below `folder`: Include lines point to the copies, and lines
    /// that set any of `without` are empty. Returns the copies, and where the main file is.
    pub fn mirrored(&self, folder: &Path, without: &[&str]) -> (Vec<(PathBuf, String)>, PathBuf) {
        let inside = |path: &Path| folder.join(path.strip_prefix("/").unwrap_or(path));
        let line = |text: &str| -> String {
            let Some(directive) = parse_line(text) else { return text.to_owned() };
            if without.iter().any(|keyword| directive.is(keyword)) {
                return String::new();
            }
            if !directive.is("Include") {
                return text.to_owned();
            }
            let patterns = directive
                .args
                .iter()
                .map(|pattern| quote_arg(&inside(Path::new(&absolute(pattern))).to_string_lossy()));
            format!("Include {}", patterns.collect::<Vec<_>>().join(" "))
        };
        let copies = self.files.iter().map(|file| {
            let lines: Vec<String> = file.text.split('\n').map(line).collect();
            (inside(&file.path), lines.join("\n"))
        });
        (copies.collect(), inside(&self.main))
    }
}

/// Relative Include patterns are below /etc/ssh (sshd_config(5), Include).
pub fn absolute(pattern: &str) -> String {
    if pattern.starts_with(['/', '~']) { pattern.to_owned() } else { format!("/etc/ssh/{pattern}") }
}

/// Whether an Include pattern would read a file of this path.
pub fn pattern_reads(pattern: &str, path: &Path) -> bool {
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..glob::MatchOptions::new()
    };
    glob::Pattern::new(&absolute(pattern))
        .is_ok_and(|pattern| pattern.matches_path_with(path, options))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A tree of files, their Includes expanded as sshd would.
    pub(crate) fn tree_of(files: &[(&str, &str)]) -> ConfigTree {
        let mut tree = ConfigTree { main: files[0].0.into(), ..ConfigTree::default() };
        for (path, text) in files {
            tree.files.push(ConfigFile {
                path: path.into(),
                real: path.into(),
                text: (*text).to_owned(),
                meta: Meta::root(0o644),
            });
            for directive in text.lines().filter_map(parse_line).filter(|d| d.is("Include")) {
                for pattern in &directive.args {
                    let mut matched: Vec<PathBuf> = files
                        .iter()
                        .map(|(path, _)| PathBuf::from(path))
                        .filter(|path| pattern_reads(pattern, path))
                        .collect();
                    matched.sort();
                    tree.includes.insert(absolute(pattern), matched);
                }
            }
        }
        tree
    }

    #[test]
    fn includes_are_read_in_place_and_match_does_not_leak() {
        let tree = tree_of(&[
            (
                "/etc/ssh/sshd_config",
                "Include sshd_config.d/*.conf\nPort 22\nMatch User x\nBanner /x\n",
            ),
            ("/etc/ssh/sshd_config.d/b.conf", "Port 3\n"),
            ("/etc/ssh/sshd_config.d/a.conf", "Port 1\nMatch all\nPort 2\n"),
        ]);
        let ports: Vec<_> = tree.global("port").iter().map(Line::place).collect();
        let expected = [
            "/etc/ssh/sshd_config.d/a.conf:1",
            "/etc/ssh/sshd_config.d/b.conf:1",
            "/etc/ssh/sshd_config:2",
        ];
        assert_eq!(ports, expected);
        assert_eq!(tree.lines().last().unwrap().context.as_deref(), Some("User x"));
    }

    #[test]
    fn a_loop_of_includes_ends() {
        let tree = tree_of(&[("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config\nPort 22\n")]);
        assert_eq!(tree.lines().len(), 2 * (MAX_DEPTH + 1));
    }
}
