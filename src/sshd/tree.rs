//! sshd_config(5) as a tree of files: Include order, global context, Match blocks.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::criteria;
use super::release::Release;
use super::syntax::{self, parse_line, quote_arg};
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

impl ConfigTree {
    /// The file reached under this name.
    pub fn file(&self, path: &Path) -> Option<&ConfigFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Whether a word, in lower case, stands anywhere in the files.
    pub fn mentions(&self, word: &str) -> bool {
        self.files.iter().any(|file| file.text.to_ascii_lowercase().contains(word))
    }

    pub(super) fn included_by(&self, pattern: &str) -> &[PathBuf] {
        self.includes.get(&absolute(pattern)).map_or(&[], Vec::as_slice)
    }

    /// The tree as sshd would read it below `folder`: Include lines point to the copies, and lines
    /// that set any of `without` are empty. Returns the copies, and where the main file is.
    pub fn mirrored(&self, folder: &Path, without: &[&str]) -> (Vec<(PathBuf, String)>, PathBuf) {
        let inside = |path: &Path| folder.join(path.strip_prefix("/").unwrap_or(path));
        let line = |text| -> Cow<str> {
            let may_be = |keyword: &&str| may_be(text, keyword);
            if !(may_be(&"Include") || without.iter().any(may_be)) {
                return Cow::Borrowed(text);
            }
            let Some(directive) = parse_line(text) else { return Cow::Borrowed(text) };
            if without.iter().any(|keyword| directive.is(keyword)) {
                return Cow::Borrowed("");
            }
            if !directive.is("Include") {
                return Cow::Borrowed(text);
            }
            let patterns = directive
                .args
                .iter()
                .map(|pattern| quote_arg(&inside(Path::new(&absolute(pattern))).to_string_lossy()));
            Cow::Owned(format!("Include {}", patterns.collect::<Vec<_>>().join(" ")))
        };
        let copies = self.files.iter().map(|file| {
            let lines: Vec<_> = file.text.split('\n').map(line).collect();
            (inside(&file.path), lines.join("\n"))
        });
        (copies.collect(), inside(&self.main))
    }

    /// Whether a Match block may mean a user, as far as that shows without reading everything: not where
    /// each of them asks for others by name.
    pub fn may_match(&self, user: &str, release: &Release) -> bool {
        let lines = self.files.iter().flat_map(|file| syntax::lines(&file.text, release));
        let mut blocks = lines.filter(|(_, line)| may_be(line, "Match"));
        blocks.any(|(_, line)| match syntax::read_line(&line, release) {
            Ok(Some(line)) if line.is("Match") => criteria::read(&line, release)
                .map_or(true, |all| !all.iter().any(|criterion| criterion.rules_out(user))),
            Ok(_) => false,
            Err(_) => true,
        })
    }
}

/// Whether a line may say something of a keyword, without taking it apart: most say nothing of any.
fn may_be(line: &str, keyword: &str) -> bool {
    // Quotes may stand in the middle of a keyword.
    let start = line.trim_start_matches([' ', '\t', '\r', '=']);
    let word = start.as_bytes().get(..keyword.len());
    word.is_some_and(|word| word.eq_ignore_ascii_case(keyword.as_bytes())) || start.contains('"')
}

/// Relative Include patterns are below /etc/ssh (sshd_config(5), Include).
pub fn absolute(pattern: &str) -> String {
    if pattern.starts_with(['/', '~']) { pattern.to_owned() } else { format!("/etc/ssh/{pattern}") }
}

/// A glob(7) pattern in the words of the library: classes of characters spelt out, what is behind a
/// backslash meant as it stands, and no `**`.
pub fn spelt_out(pattern: &str) -> String {
    const CLASSES: [(&str, &str); 8] = [
        ("[:digit:]", "0-9"),
        ("[:lower:]", "a-z"),
        ("[:upper:]", "A-Z"),
        ("[:alpha:]", "a-zA-Z"),
        ("[:alnum:]", "0-9a-zA-Z"),
        ("[:xdigit:]", "0-9a-fA-F"),
        ("[:punct:]", "!-/:-@[-`{-~"),
        ("[:space:]", " \t"),
    ];
    let classes =
        CLASSES.iter().fold(pattern.to_owned(), |text, (class, is)| text.replace(class, is));
    let mut spelt = String::new();
    let mut chars = classes.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(special) if "*?[".contains(special) => spelt.push_str(&format!("[{special}]")),
                other => spelt.extend(other),
            },
            '*' if spelt.ends_with('*') => {}
            other => spelt.push(other),
        }
    }
    spelt
}

/// Whether an Include pattern would read a file of this path.
pub fn pattern_reads(pattern: &str, path: &Path) -> bool {
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..glob::MatchOptions::new()
    };
    glob::Pattern::new(&spelt_out(&absolute(pattern)))
        .is_ok_and(|pattern| pattern.matches_path_with(path, options))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_line_of_a_keyword_is_passed_over(line in "[ =\"\tI]{0,3}I\"?nclude[ =\"a/]{0,4}") {
            let is_one = parse_line(&line).is_some_and(|directive| directive.is("Include"));
            proptest::prop_assert!(!is_one || may_be(&line, "include"));
        }
    }

    #[test]
    fn a_block_that_asks_for_others_does_not_mean_a_user() {
        let release = Release::LATEST;
        let may =
            |text: &str| tree_of(&[("/etc/ssh/sshd_config", text)]).may_match("root", &release);
        for others in
            ["", "Port 22", "Match User ada", "match user=ada,!root,*", "Match Group x User a?a"]
        {
            assert!(!may(others), "{others}");
        }
        for all in [
            "Match all",
            "\"Match\" User r*",
            " Match\tUser !ada,*",
            "Match Group sudo",
            "Match Address",
        ] {
            assert!(may(all), "{all}");
        }
        assert!(may("Match User ada\n  Banner /x\nMatch LocalPort 22"));
    }

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
}
