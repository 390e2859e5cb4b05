//! What sshd will do with its configuration: for every keyword and connection, the lines that it follows
//! and those that they shadow. Pure.
//!
//! sshd reads everything twice (servconf.c): at its start, when no connection is there to match, for
//! the global values; and for each connection once more, when only what stands in Match blocks that
//! apply counts, and replaces the global values.

mod blocks;
mod lines;

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;

pub use self::blocks::Blocks;
pub use self::lines::{Block, Chosen, Effect, Place};
use self::lines::{choose, keep_interval};
use super::criteria::{self, Connection, Criterion};
use super::keywords::{counts_in_match, follows, kept_as, may_be_matched};
use super::release::Release;
use super::syntax::{self, Directive};
use super::tree::{ConfigFile, ConfigTree, MAX_DEPTH};

/// A configuration, read as one release of sshd reads it.
#[derive(Debug)]
pub struct Reading<'t> {
    tree: &'t ConfigTree,
    release: Release,
    files: BTreeMap<&'t Path, Rc<Vec<Parsed>>>,
    /// Whether it is known already that sshd starts with it.
    starts: Cell<bool>,
}

#[derive(Debug)]
struct Parsed {
    number: usize,
    directive: Directive,
    /// The name under which the release keeps the keyword.
    keyword: Rc<str>,
    /// Whether it may stand in a Match block.
    may_be_matched: bool,
    /// Of a `Match` line.
    criteria: Vec<Criterion>,
}

/// Why sshd refuses a configuration, as far as reading it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `FILE:LINE`.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// `FILE:LINE` of the Match line under which it stands, where that is what is wrong.
    pub block: Option<String>,
}

/// Whether a block applies.
#[derive(Clone, Copy)]
enum Applies<'c> {
    /// sshd's start: only what asks nothing of a connection.
    AtStart,
    /// To a connection.
    To(&'c Connection),
    /// To one that meets everything: so every block is come by.
    ToAll,
}

/// One of sshd's two passes.
struct Pass<'r, 'c> {
    reading: &'r Reading<'r>,
    applies: Applies<'c>,
    blocks: Vec<Block<'r>>,
    lines: Vec<Place<'r>>,
    /// The files that include one another down to this line, the main file first.
    open: Vec<&'r Path>,
    /// The first Include that leads back to one of them.
    returns: Option<Place<'r>>,
    problem: Option<Problem>,
}

impl<'t> Reading<'t> {
    /// Takes all lines apart.
    ///
    /// # Errors
    /// The first line at which sshd would give up.
    pub fn new(tree: &'t ConfigTree, release: Release) -> Result<Self, Problem> {
        let nothing = ConfigTree::default();
        let empty =
            Reading { tree: &nothing, release, files: BTreeMap::new(), starts: Cell::default() };
        empty.again(tree)
    }

    /// Reads another tree as the same release; what is known of files that have not changed is not looked
    /// for again.
    ///
    /// # Errors
    /// As [`Reading::new`].
    pub fn again<'n>(&self, tree: &'n ConfigTree) -> Result<Reading<'n>, Problem> {
        let mut known = Known::new();
        let mut read = |file: &'n ConfigFile| {
            let path = file.path.as_path();
            let same = self.tree.file(path).filter(|was| was.text == file.text);
            let lines = match same.and_then(|_| self.files.get(path)) {
                Some(lines) => lines.clone(),
                None => Rc::new(take_apart(file, &self.release, &mut known)?),
            };
            Ok((path, lines))
        };
        let files = tree.files.iter().map(&mut read).collect::<Result<_, Problem>>()?;
        Ok(Reading { tree, release: self.release.clone(), files, starts: Cell::default() })
    }

    /// What sshd says outside any Match block (`sshd -T`).
    ///
    /// # Errors
    /// A line that sshd does not accept where it stands, or includes that are nested too deeply.
    pub fn globally(&self) -> Result<Effect<'_>, Problem> {
        Ok(Effect { keywords: self.pass()?.chosen() })
    }

    /// What sshd does with a connection (`sshd -T -C`).
    ///
    /// # Errors
    /// As [`Reading::globally`].
    pub fn for_connection(&self, connection: &Connection) -> Result<Effect<'_>, Problem> {
        self.matched(Applies::To(connection))
    }

    /// What stands in Match blocks.
    ///
    /// # Errors
    /// As [`Reading::globally`].
    pub fn blocks(&self) -> Result<Blocks<'_>, Problem> {
        if !self.starts.get() {
            self.pass()?;
        }
        let pass = self.pass_twice(Applies::ToAll)?;
        Ok(Blocks { release: &self.release, blocks: pass.blocks, lines: pass.lines })
    }

    /// Every line of a keyword, wherever it stands and whether or not it applies to anybody.
    pub fn everywhere(&self, keyword: &str) -> impl Iterator<Item = &Directive> {
        let all = self.files.values().flat_map(|lines| lines.iter()).map(|line| &line.directive);
        all.filter(move |directive| directive.is(keyword))
    }

    /// What was read.
    pub fn tree(&self) -> &'t ConfigTree {
        self.tree
    }

    /// The main file.
    pub fn main(&self) -> &Path {
        &self.tree.main
    }

    /// The release that it is read as.
    pub fn release(&self) -> &Release {
        &self.release
    }

    fn matched(&self, applies: Applies) -> Result<Effect<'_>, Problem> {
        let mut keywords = self.pass()?.chosen();
        for (keyword, mut chosen) in self.pass_twice(applies)?.chosen() {
            if !counts_in_match(&keyword, &self.release) {
                continue;
            }
            let global = keywords.remove(&keyword).unwrap_or_default();
            if keyword == "rekeylimit" {
                keep_interval(&mut chosen, &global);
            }
            let elsewhere = global.followed.into_iter().chain(global.shadowed);
            let counted: BTreeSet<_> =
                chosen.followed.iter().chain(&chosen.shadowed).map(Place::at).collect();
            let shadowed: Vec<Place> =
                elsewhere.filter(|place| !counted.contains(&place.at())).collect();
            chosen.shadowed.extend(shadowed);
            keywords.insert(keyword, chosen);
        }
        Ok(Effect { keywords })
    }

    /// The first pass.
    fn pass(&self) -> Result<Pass<'_, 'static>, Problem> {
        let mut pass = Pass::new(self, Applies::AtStart);
        pass.file(&self.tree.main, true, None, Include::Followed);
        self.starts.set(pass.problem.is_none());
        pass.problem.take().map_or(Ok(pass), Err)
    }

    /// The second pass: what stands before the first Match of a file says nothing.
    fn pass_twice<'c>(&self, applies: Applies<'c>) -> Result<Pass<'_, 'c>, Problem> {
        let mut pass = Pass::new(self, applies);
        pass.file(&self.tree.main, false, None, Include::BeforeMatch);
        pass.problem.take().map_or(Ok(pass), Err)
    }
}

/// Keywords that were met: the name under which the release keeps each, and whether it may stand in a Match
/// block.
type Known = HashMap<String, (Rc<str>, bool)>;

fn take_apart(
    file: &ConfigFile,
    release: &Release,
    known: &mut Known,
) -> Result<Vec<Parsed>, Problem> {
    let mut all = Vec::new();
    for (number, line) in syntax::lines(&file.text, release) {
        let wrong = |what: Cow<str>| Problem {
            place: format!("{}:{number}", file.path.display()),
            what: what.into_owned(),
            block: None,
        };
        let directive = syntax::read_line(&line, release);
        let Some(directive) = directive.map_err(|what| wrong(what.into()))? else {
            continue;
        };
        let criteria = if directive.is("Match") {
            criteria::read(&directive, release).map_err(|what| wrong(what.into()))?
        } else {
            Vec::new()
        };
        let known = match known.get(&directive.keyword) {
            Some(known) => known,
            None => known.entry(directive.keyword.clone()).or_insert_with_key(|keyword| {
                (kept_as(keyword, release).into(), may_be_matched(keyword, release))
            }),
        };
        let (keyword, may_be_matched) = known.clone();
        all.push(Parsed { number, directive, keyword, may_be_matched, criteria });
    }
    Ok(all)
}

/// How an included file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Include {
    /// As if it stood there.
    Followed,
    /// It is the second pass, and there was no Match yet.
    BeforeMatch,
    /// It stands in a block that does not apply: nothing in it does.
    Never,
}

impl<'r, 'c> Pass<'r, 'c> {
    fn new(reading: &'r Reading<'_>, applies: Applies<'c>) -> Self {
        Self {
            reading,
            applies,
            blocks: Vec::new(),
            lines: Vec::with_capacity(reading.files.values().map(|lines| lines.len()).sum()),
            open: Vec::new(),
            returns: None,
            problem: None,
        }
    }

    fn file(
        &mut self,
        path: &'r Path,
        mut active: bool,
        outer: Option<Block<'r>>,
        mut include: Include,
    ) {
        let reading = self.reading;
        let mut block = outer;
        let Some((path, lines)) = reading.files.get_key_value(path) else { return };
        self.open.push(path);
        for line in lines.iter() {
            let Parsed { number, directive, keyword, may_be_matched, criteria } = line;
            let place = Place { path, number: *number, directive, keyword, block };
            if directive.is("Match") {
                let id = self.blocks.len();
                let within = outer.map(|block| block.id);
                let this = Block { id, path, number: *number, directive, criteria, within };
                active = include != Include::Never && self.applies_to(&this);
                if include == Include::BeforeMatch {
                    include = Include::Followed;
                }
                self.blocks.push(this);
                block = Some(this);
            } else if directive.is("Include") {
                self.include(&place, active, include);
            } else {
                self.take(place, *may_be_matched, active);
            }
            if self.problem.is_some() {
                return;
            }
        }
        self.open.pop();
    }

    fn include(&mut self, place: &Place<'r>, active: bool, include: Include) {
        let inside = match include {
            Include::BeforeMatch => Include::BeforeMatch,
            _ if active => Include::Followed,
            _ => Include::Never,
        };
        let tree = self.reading.tree;
        for pattern in &place.directive.args {
            for path in tree.included_by(pattern) {
                if self.returns.is_none() && self.open.contains(&path.as_path()) {
                    self.returns = Some(*place);
                }
                if self.open.len() > MAX_DEPTH {
                    let place = self.returns.unwrap_or(*place);
                    self.refuse(&place, "includes are nested more than 16 deep");
                    return;
                }
                self.file(path, active, place.block, inside);
            }
        }
    }

    fn take(&mut self, place: Place<'r>, may_be_matched: bool, active: bool) {
        let keyword = &place.directive.keyword;
        if may_be_matched {
            if active {
                self.lines.push(place);
            }
        } else if matches!(self.applies, Applies::AtStart) {
            if active {
                self.lines.push(place);
            } else {
                self.refuse(&place, &format!("`{keyword}` is not allowed within a Match block"));
            }
        }
    }

    fn refuse(&mut self, place: &Place, what: &str) {
        let block = place.block.map(|block| format!("{}:{}", block.path.display(), block.number));
        self.problem = Some(Problem { place: place.to_string(), what: what.to_owned(), block });
    }

    fn applies_to(&self, block: &Block) -> bool {
        let release = &self.reading.release;
        match self.applies {
            Applies::AtStart => criteria::are_met(block.criteria, None, release),
            Applies::To(connection) => criteria::are_met(block.criteria, Some(connection), release),
            Applies::ToAll => true,
        }
    }

    /// The lines of each keyword that are followed, of those that apply.
    fn chosen(self) -> BTreeMap<String, Chosen<'r>> {
        let release = &self.reading.release;
        let mut all: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
        let keys = |place: &&Place| place.directive.is("AuthorizedKeysCommand");
        let keys_command = self.lines.iter().position(|place| keys(&place));
        let mut early: Vec<bool> = Vec::new();
        for (at, place) in self.lines.into_iter().enumerate() {
            if place.keyword == "authorizedprincipalscommand" {
                early.push(keys_command.is_none_or(|command| at < command));
            }
            all.entry(place.keyword).or_default().push(place);
        }
        let choose = |(keyword, places): (&str, Vec<Place<'r>>)| {
            (keyword.to_owned(), choose(follows(keyword, release), places, &early))
        };
        all.into_iter().map(choose).filter(|(_, chosen)| !chosen.followed.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sshd::tree::tests::tree_of;

    fn release(major: u16, minor: u16) -> Release {
        Release { major, minor, name: format!("OpenSSH_{major}.{minor}p1") }
    }

    fn user(name: &str) -> Connection {
        Connection { user: Some(name.to_owned()), ..Connection::default() }
    }

    fn places(places: &[Place]) -> Vec<String> {
        places.iter().map(|place| place.to_string().replace("/etc/ssh/", "")).collect()
    }

    #[test]
    fn the_line_that_wins_and_those_that_it_shadows() {
        let tree = tree_of(&[
            (
                "/etc/ssh/sshd_config",
                "Include sshd_config.d/*.conf\nPasswordAuthentication no\nAllowUsers a\n\
                 Match User deploy\nAllowUsers deploy\nPasswordAuthentication no\n",
            ),
            (
                "/etc/ssh/sshd_config.d/50-cloud-init.conf",
                "PasswordAuthentication yes\nMatch User deploy\nPasswordAuthentication yes\n",
            ),
        ]);
        let reading = Reading::new(&tree, release(9, 2)).unwrap();
        let globally = reading.globally().unwrap();
        let password = globally.of("passwordauthentication").unwrap();
        assert_eq!(places(&password.followed), ["sshd_config.d/50-cloud-init.conf:1"]);
        assert_eq!(places(&password.shadowed), ["sshd_config:2"]);
        let deploy = reading.for_connection(&user("deploy")).unwrap();
        let password = deploy.of("PasswordAuthentication").unwrap();
        assert_eq!(places(&password.followed), ["sshd_config.d/50-cloud-init.conf:3"]);
        let shadowed = ["sshd_config:6", "sshd_config.d/50-cloud-init.conf:1", "sshd_config:2"];
        assert_eq!(places(&password.shadowed), shadowed);
        // A list of a Match block replaces the global one.
        assert_eq!(places(&deploy.of("AllowUsers").unwrap().followed), ["sshd_config:5"]);
        let blocks = reading.blocks().unwrap();
        let password = blocks.follow("PasswordAuthentication");
        let followed: Vec<_> =
            password.iter().map(|(_, chosen)| places(&chosen.followed)).collect();
        assert_eq!(followed, [["sshd_config.d/50-cloud-init.conf:3"], ["sshd_config:6"]]);
    }

    #[test]
    fn an_include_in_a_block_that_does_not_apply_says_nothing() {
        let files = [
            (
                "/etc/ssh/sshd_config",
                "Match User x\nInclude /etc/ssh/inner\nMatch all\nBanner /a\n",
            ),
            ("/etc/ssh/inner", "Match User y,x\nMaxSessions 3\n"),
        ];
        let tree = tree_of(&files);
        let reading = Reading::new(&tree, release(10, 0)).unwrap();
        let of =
            |name: &str| reading.for_connection(&user(name)).unwrap().of("maxsessions").is_some();
        assert!(of("x") && !of("y"));
        assert!(reading.globally().unwrap().of("banner").is_some());
        let blocks = reading.blocks().unwrap();
        let (block, chosen) = &blocks.follow("MaxSessions")[0];
        assert_eq!((block.number, block.within), (1, Some(0)));
        assert_eq!(places(&chosen.followed), ["inner:2"]);
    }

    #[test]
    fn subsystems_of_a_block_replace_all_others() {
        let text = "Subsystem sftp a\nSubsystem x b\nMatch User ada\nSubsystem y c\n";
        let tree = tree_of(&[("/etc/ssh/sshd_config", text)]);
        let reading = Reading::new(&tree, release(10, 0)).unwrap();
        let of = |name: &str| {
            let effect = reading.for_connection(&user(name)).unwrap();
            places(&effect.of("subsystem").unwrap().followed)
        };
        assert_eq!((of("ada"), of("eve").len()), (vec!["sshd_config:4".to_owned()], 2));
    }

    #[test]
    fn what_sshd_refuses_is_named() {
        let place = |text: &str| {
            let tree = tree_of(&[("/etc/ssh/sshd_config", text)]);
            let reading = Reading::new(&tree, release(9, 2));
            let problem = reading.and_then(|reading| reading.globally().map(drop));
            problem.unwrap_err()
        };
        let problem = place("Port 22\nMatch User x\nPort 23\n");
        assert_eq!(problem.place, "/etc/ssh/sshd_config:3");
        assert!(problem.what.contains("not allowed within a Match block"), "{problem:?}");
        assert!(place("Include sshd_config\n").what.contains("16 deep"));
        let tree = tree_of(&[
            ("/etc/ssh/sshd_config", "\nInclude a\n"),
            ("/etc/ssh/a", "\n\nInclude sshd_config\n"),
        ]);
        let reading = Reading::new(&tree, release(9, 2)).unwrap();
        assert_eq!(reading.globally().map(drop).unwrap_err().place, "/etc/ssh/a:3");
        assert_eq!(place("\nBanner 'x\n").place, "/etc/ssh/sshd_config:2");
        assert_eq!(place("Match Colour red\n").what, "there is no criterion `Colour`");
    }

    #[test]
    fn releases_follow_different_lines() {
        let value = |major, minor, text: &str, keyword: &str| {
            let tree = tree_of(&[("/etc/ssh/sshd_config", text)]);
            let reading = Reading::new(&tree, release(major, minor)).unwrap();
            let effect = reading.globally().unwrap();
            let followed = &effect.of(keyword).unwrap().followed;
            followed.iter().map(|place| place.directive.args.join(" ")).collect::<Vec<_>>()
        };
        let ipqos = "IPQoS af21\nIPQoS none\n";
        assert_eq!(value(9, 2, ipqos, "IPQoS"), ["none"]);
        assert_eq!(value(10, 3, ipqos, "IPQoS"), ["af21"]);
        let startups = "MaxStartups 3:50:9\nMaxStartups 5\n";
        assert_eq!(value(9, 2, startups, "MaxStartups"), ["3:50:9", "5"]);
        assert_eq!(value(10, 1, startups, "MaxStartups"), ["3:50:9"]);
        let rekey = "RekeyLimit 1G\nRekeyLimit 2G 1h\nRekeyLimit 3G 2h\n";
        assert_eq!(value(9, 2, rekey, "RekeyLimit"), ["1G", "2G 1h"]);
        let timeout = "UnusedConnectionTimeout 5m\nUnusedConnectionTimeout none\n";
        assert_eq!(value(9, 2, timeout, "UnusedConnectionTimeout"), ["none"]);
        let command = "Match User x\nAuthorizedPrincipalsCommand /bin/p\n";
        let tree = tree_of(&[("/etc/ssh/sshd_config", command)]);
        let reading = Reading::new(&tree, release(9, 2)).unwrap();
        let blocks = reading.blocks().unwrap().follow("AuthorizedPrincipalsCommand");
        assert_eq!(blocks[0].1.followed.len(), 1);
    }
}
