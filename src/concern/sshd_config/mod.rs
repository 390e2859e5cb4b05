//! sshd's configuration files: one place for what the spec says, and nothing that defeats it.

mod in_effect;
mod methods;
pub(crate) mod own;
mod warnings;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub(crate) use in_effect::{Wanted, lost, refuse_lost};
pub(crate) use methods::switch_keyboard_off;
use own::{BEGIN, DROP_IN, END, HEADER, MATCH_FILE, SET_ASIDE, bare, is_own, map_lines};

use super::Part;
use super::listening::Listening;
use crate::error::Refusal;
use crate::observe::{Observed, Verdict};
use crate::spec::{MatchBlock, Spec};
use crate::sshd::keywords::{Follows, follows, same};
use crate::sshd::reading::{Effect, Place, Problem, Reading};
use crate::sshd::release::Release;
use crate::sshd::syntax::{Directive, parse_line};
use crate::sshd::tree::pattern_reads;
use crate::sshd::{ConfigFile, ConfigTree};
use crate::step::FileChange;
use crate::sys::files::Meta;

/// The configuration as it will be, and the files that differ.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rewritten {
    /// Changed files and warnings.
    pub part: Part,
    /// All files as they will be.
    pub candidate: ConfigTree,
}

/// Writes the spec's settings where they win, and sets aside lines that would add to them.
pub(crate) fn rewrite(
    spec: &Spec,
    observed: &Observed,
    bare: &Reading,
    globally: &Effect,
    listening: &Listening,
) -> Result<Rewritten, Refusal> {
    let lines = own_lines(spec, listening);
    let mut keywords = listening.keywords();
    keywords.extend(spec.ssh.settings.iter().map(|setting| setting.keyword.clone()));

    let release = &observed.release;
    let aside = in_the_way(globally, &lines, &keywords, release);
    let tree = set_aside(bare.tree(), &aside);
    let blocks = match_lines(&spec.ssh.matches);
    let wanted = Wanted {
        values: &spec.ssh.values(),
        at_least: &spec.ssh.of_profile(),
        blocks: &spec.ssh.blocks(),
    };
    let (candidate, placed) = place(&tree, &lines, &blocks, &keywords, &wanted, bare)?;

    if candidate.mentions("authenticationmethods")
        && let (Ok(now), Ok(then)) = (bare.again(&observed.config), bare.again(&candidate))
    {
        methods::refuse_emptied(&now, &then)?;
    }

    let mut files = Vec::new();
    for file in &candidate.files {
        let before = observed.config.file(&file.path);
        if before.is_some_and(|before| before.text == file.text) {
            continue;
        }
        refuse_lossy(file)?;
        files.push(FileChange {
            path: file.real.clone(),
            before: before.map(|before| before.text.clone()),
            after: Some(file.text.clone()),
            meta: file.meta.clone(),
            concern: "sshd",
            reason: reason(file, placed, &aside),
        });
    }
    for gone in observed.config.files.iter().filter(|file| candidate.file(&file.path).is_none()) {
        files.push(FileChange {
            path: gone.real.clone(),
            before: Some(gone.text.clone()),
            after: None,
            meta: gone.meta.clone(),
            concern: "sshd",
            reason: "The spec leaves nothing to write here.".to_owned(),
        });
    }
    // The new lines come before the old ones go: in between, sshd would serve both ports.
    files.sort_by_key(|file| !is_own(&file.path));
    let mut warnings = warnings::dropped_values(&observed.config, &keywords);
    warnings.extend(warnings::dropped_blocks(&observed.config, &spec.ssh.matches));
    warnings.extend(warnings::left_behind(&candidate, observed, listening));
    Ok(Rewritten { part: Part { files, warnings }, candidate })
}

/// The lines that the spec asks for, without any file around them.
pub(crate) fn own_lines(spec: &Spec, listening: &Listening) -> Vec<String> {
    let settings = spec.ssh.settings.iter().flat_map(|setting| {
        setting.lines.iter().map(move |line| format!("{} {line}", setting.keyword))
    });
    listening.lines().into_iter().chain(settings).collect()
}

/// The lines of the spec's Match blocks.
fn match_lines(blocks: &[MatchBlock]) -> Vec<String> {
    let lines = |block: &MatchBlock| {
        let settings = block.settings.iter().flat_map(|setting| {
            setting.lines.iter().map(move |line| format!("    {} {line}", setting.keyword))
        });
        [format!("Match {}", block.asks())].into_iter().chain(settings).collect::<Vec<_>>()
    };
    blocks.iter().flat_map(lines).collect()
}

/// The configuration as it would be had harden never written to it.
///
/// # Errors
/// Refuses one that sshd does not read as it is.
pub(crate) fn without_harden(observed: &Observed) -> Result<ConfigTree, Refusal> {
    refuse_invalid(observed)?;
    Ok(bare(&observed.config))
}

/// An sshd that runs with a configuration that it does not read any more would not come back.
///
/// # Errors
/// A refusal with sshd's words.
pub(crate) fn refuse_invalid(observed: &Observed) -> Result<(), Refusal> {
    let Verdict::Invalid(said) = &observed.effective else { return Ok(()) };
    let own = [DROP_IN, MATCH_FILE].into_iter().find(|path| said.contains(path));
    let hint = match own {
        Some(path) => format!(
            "take that line out of {path} by hand, see that `sshd -t` is content, and then apply a spec \
             without it"
        ),
        None => {
            "put that right first (sshd -t tells more); harden will not build on a configuration \
                 that sshd cannot read"
                .to_owned()
        }
    };
    Err(Refusal::new(
        "config-invalid",
        format!("sshd refuses the present configuration:\n{}", with_place(observed, said)),
        hint,
    ))
}

/// What sshd says of its files, behind the place where it names none: of an Include that leads back to itself,
/// or an address that it cannot resolve, it does not say which.
pub(crate) fn with_place(observed: &Observed, said: &str) -> String {
    if said.lines().count() != 1 || said.contains(" line ") {
        return said.to_owned();
    }
    let reading = Reading::new(&observed.config, observed.release.clone());
    let place = match reading.as_ref().map(Reading::globally) {
        Ok(Ok(globally)) => unresolved(&globally, said),
        Ok(Err(Problem { place, .. })) => Some(place.to_string()),
        Err(Problem { place, .. }) => Some(place.to_string()),
    };
    place.map_or_else(|| said.to_owned(), |place| format!("{place}: {said}"))
}

/// The `ListenAddress` that sshd cannot resolve (servconf.c, `add_one_listen_addr`).
fn unresolved(globally: &Effect, said: &str) -> Option<String> {
    let host = said.split_once("bad addr or host: ")?.1.split(' ').next()?;
    let names = |arg: &String| {
        arg.strip_prefix(host).is_some_and(|port| port.is_empty() || port.starts_with(':'))
    };
    let mut lines = globally.of("ListenAddress")?.followed.iter();
    lines.find(|place| place.directive.args.first().is_some_and(names)).map(ToString::to_string)
}

/// Reads a configuration as a release of sshd does.
///
/// # Errors
/// The line that sshd does not accept.
pub(crate) fn read<'t>(tree: &'t ConfigTree, release: &Release) -> Result<Reading<'t>, Refusal> {
    Ok(Reading::new(tree, release.clone())?)
}

/// A line at which sshd gives up.
impl From<Problem> for Refusal {
    fn from(Problem { place, what, .. }: Problem) -> Self {
        Self::new(
            "config-invalid",
            format!("sshd does not accept {place}: {what}"),
            "mend that line first: `sshd -t` says whether it is well",
        )
    }
}

/// Where a line stands.
type At = (PathBuf, usize);

/// Comments out lines.
fn set_aside(tree: &ConfigTree, places: &BTreeSet<At>) -> ConfigTree {
    let mut tree = tree.clone();
    for file in &mut tree.files {
        if !places.iter().any(|(path, _)| *path == file.path) {
            continue;
        }
        file.text = map_lines(&file.text, |index, line| {
            if places.contains(&(file.path.clone(), index + 1)) {
                format!("{SET_ASIDE}{line}")
            } else {
                line.to_owned()
            }
        });
    }
    tree
}

/// Lines outside any Match block that would not give way to the spec's: they count beside an earlier one
/// of the same keyword, or instead of it.
fn in_the_way(
    globally: &Effect,
    own: &[String],
    keywords: &[String],
    release: &Release,
) -> BTreeSet<At> {
    let own: Vec<_> = own.iter().filter_map(|line| parse_line(line)).collect();
    let name = |line: &Directive| line.args.first().map(|name| name.to_ascii_lowercase());
    let is_ours = |other: &Directive| {
        own.iter().any(|line| same(&line.keyword, &other.keyword) && name(line) == name(other))
    };
    let stays = |place: &&Place| match follows(&place.directive.keyword, release) {
        Follows::First | Follows::FirstThatSays => true,
        Follows::EachName => !is_ours(place.directive),
        _ => false,
    };
    let places = keywords.iter().flat_map(|keyword| globally.lines(keyword));
    let places = places.filter(|place| place.block.is_none() && !stays(place));
    places.map(|place| (place.path.to_owned(), place.number)).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    Nowhere,
    DropIn,
    Block,
}

/// Puts the lines into the drop-in if it is read early enough, else at the top of the main file.
///
/// # Errors
/// Refuses what would not take effect for all whom it is for.
fn place(
    tree: &ConfigTree,
    lines: &[String],
    blocks: &[String],
    keywords: &[String],
    wanted: &Wanted,
    bare: &Reading,
) -> Result<(ConfigTree, Placed), Refusal> {
    if lines.is_empty() && blocks.is_empty() {
        return Ok((tree.clone(), Placed::Nowhere));
    }
    let dropped = with_drop_in(tree, lines, blocks);
    // Where the drop-in would not be read at all, or in a Match block, it is no place for them.
    let reading = bare.again(&dropped);
    if let Some(reading) = reading.ok().filter(|reading| wins(reading, keywords, blocks)) {
        refuse_lost(wanted, &reading)?;
        return Ok((dropped, Placed::DropIn));
    }
    let mut blocked = tree.clone();
    let include = (!blocks.is_empty()).then(|| format!("Include {MATCH_FILE}"));
    if include.is_some() {
        blocked.files.push(own_file(MATCH_FILE, blocks));
        blocked.includes.insert(MATCH_FILE.to_owned(), vec![MATCH_FILE.into()]);
    }
    let block: String = [BEGIN]
        .into_iter()
        .chain(lines.iter().map(String::as_str))
        .chain(include.as_deref())
        .chain([END])
        .map(|line| format!("{line}\n"))
        .collect();
    let main = blocked.main.clone();
    for file in blocked.files.iter_mut().filter(|file| file.path == main) {
        file.text.insert_str(0, &block);
    }
    refuse_lost(wanted, &bare.again(&blocked)?)?;
    Ok((blocked, Placed::Block))
}

fn own_file(path: &str, lines: &[String]) -> ConfigFile {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    ConfigFile {
        path: path.into(),
        real: path.into(),
        text: format!("{HEADER}{text}"),
        meta: Meta::root(0o644),
    }
}

fn with_drop_in(tree: &ConfigTree, lines: &[String], blocks: &[String]) -> ConfigTree {
    let mut tree = tree.clone();
    let path = Path::new(DROP_IN);
    let all: Vec<String> = lines.iter().chain(blocks).cloned().collect();
    tree.files.push(own_file(DROP_IN, &all));
    for (pattern, paths) in &mut tree.includes {
        if pattern_reads(pattern, path) {
            paths.push(path.to_owned());
            paths.sort();
        }
    }
    tree
}

/// Whether sshd reads the drop-in outside any Match block, and follows its lines.
fn wins(reading: &Reading, keywords: &[String], blocks: &[String]) -> bool {
    let drop_in = Path::new(DROP_IN);
    let (Ok(globally), Ok(all)) = (reading.globally(), reading.blocks()) else { return false };
    let is_ours = |place: &Place| place.path == drop_in && place.block.is_none();
    let is_followed = |keyword: &String| {
        globally.of(keyword).is_some_and(|chosen| chosen.followed.iter().any(is_ours))
    };
    let stand = blocks.is_empty() || all.stand_in(drop_in);
    stand && keywords.iter().all(is_followed)
}

fn refuse_lossy(file: &ConfigFile) -> Result<(), Refusal> {
    if !file.text.contains('\u{fffd}') {
        return Ok(());
    }
    Err(Refusal::new(
        "not-utf8",
        format!("{} has to change, but it is not UTF-8 text", file.path.display()),
        "convert the file to UTF-8, or move the lines in question to a file of their own",
    ))
}

fn reason(file: &ConfigFile, placed: Placed, aside: &BTreeSet<At>) -> String {
    if file.path == Path::new(MATCH_FILE) {
        return "The first Match block that applies wins, and these are read before the others."
            .to_owned();
    }
    if file.path == Path::new(DROP_IN) {
        return "sshd takes the first value that it reads, and this file is read before the \
                others."
            .to_owned();
    }
    let lines: Vec<String> = aside
        .iter()
        .filter(|(path, _)| *path == file.path)
        .map(|(_, number)| number.to_string())
        .collect();
    let set_aside = match lines.as_slice() {
        [] => None,
        [line] => {
            Some(format!("Line {line} would add to the spec's values, not give way to them."))
        }
        lines => {
            let lines = lines.join(", ");
            Some(format!("Lines {lines} would add to the spec's values, not give way to them."))
        }
    };
    let block = (placed == Placed::Block && file.text.starts_with(BEGIN)).then(|| {
        "No drop-in is read early enough to win, so the spec's lines stand at the top.".to_owned()
    });
    let reasons: Vec<String> = block.into_iter().chain(set_aside).collect();
    if reasons.is_empty() {
        "Lines that an earlier spec set aside come back.".to_owned()
    } else {
        reasons.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sshd::tree::tests::tree_of;

    const KEYWORDS: [&str; 5] = ["Port", "AllowUsers", "IPQoS", "PermitRootLogin", "Subsystem"];

    /// Lines of a spec are written into a tree of two files and taken out of it again.
    fn there_and_back(main: &str, drop_in: &str, release: &Release) -> Result<(), Refusal> {
        let tree = tree_of(&[
            ("/etc/ssh/sshd_config", main),
            ("/etc/ssh/sshd_config.d/50-other.conf", drop_in),
        ]);
        let lines =
            ["Port 2222", "AllowUsers a", "IPQoS none", "PermitRootLogin no", "Subsystem sftp x"];
        let (lines, keywords) = (lines.map(str::to_owned), KEYWORDS.map(str::to_owned));
        let blocks = ["Match User b".to_owned(), "Banner none".to_owned()];
        let reading = read(&tree, release)?;
        let aside = in_the_way(&reading.globally()?, &lines, &keywords, release);
        let wanted = Wanted { values: &Vec::new(), at_least: &[], blocks: &[] };
        let written = set_aside(&tree, &aside);
        let (written, placed) = place(&written, &lines, &blocks, &keywords, &wanted, &reading)?;
        assert_ne!(placed, Placed::Nowhere);
        assert_eq!(bare(&written).files, tree.files);
        Ok(())
    }

    #[test]
    fn what_would_not_give_way_is_set_aside() {
        let old = Release { major: 9, minor: 2, name: String::new() };
        let text = "Include sshd_config.d/*.conf\nIPQoS af21\nPort 22\nPermitRootLogin yes\n\
                    Subsystem SFTP y\nSubsystem other y\nMatch User b\nAllowUsers b\n";
        let tree = tree_of(&[("/etc/ssh/sshd_config", text)]);
        let own = ["IPQoS none", "Port 2222", "PermitRootLogin no", "Subsystem sftp x"];
        let (own, keywords) = (own.map(str::to_owned), KEYWORDS.map(str::to_owned));
        let in_the_way = |release: &Release| {
            let reading = read(&tree, release).unwrap();
            in_the_way(&reading.globally().unwrap(), &own, &keywords, release)
        };
        let numbers = |places: &BTreeSet<At>| places.iter().map(|at| at.1).collect::<Vec<_>>();
        // Which of several lines of IPQoS counts depends on the release.
        assert_eq!(numbers(&in_the_way(&Release::LATEST)), [3, 5]);
        let places = in_the_way(&old);
        assert_eq!(numbers(&places), [2, 3, 5]);
        let tree = set_aside(&tree, &places);
        assert!(tree.files[0].text.contains("\n#harden# IPQoS af21\n#harden# Port 22\nPermit"));
    }

    fn lines() -> impl proptest::strategy::Strategy<Value = String> {
        use proptest::prelude::*;
        let keywords = prop::sample::select(KEYWORDS.to_vec());
        let known = (keywords, "[ \\t=]{0,2}", "[a-z0-9\"'# ]{0,9}", "[\r\n ]{0,3}\n?")
            .prop_map(|(keyword, between, value, end)| format!("{keyword}{between}{value}{end}"));
        let include = Just("Include sshd_config.d/*.conf\n".to_owned());
        let line = prop_oneof![known, include, "Match (all|User x)\r?\n", "(?s).{0,20}\n"];
        prop::collection::vec(line, 0..9).prop_map(|lines| lines.concat())
    }

    proptest::proptest! {
        /// Byte for byte: line ends, blanks, quotes, and what sshd would not read.
        #[test]
        fn what_harden_writes_goes_without_a_trace(main in lines(), drop_in in lines(), old: bool) {
            let release = if old { (8, 4) } else { (10, 0) };
            let (major, minor) = release;
            let release = Release { major, minor, name: String::new() };
            // What sshd does not read is refused, and nothing is written.
            let _ = there_and_back(&main, &drop_in, &release);
        }
    }
}
