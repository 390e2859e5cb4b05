//! Lines of a configuration, and which of those of a keyword sshd follows within one context.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::sshd::criteria::Criterion;
use crate::sshd::keywords::{Follows, canonical};
use crate::sshd::syntax::Directive;

/// A line that sshd reads, and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Place<'r> {
    /// The file.
    pub path: &'r Path,
    /// Line number, from 1.
    pub number: usize,
    /// The line itself.
    pub directive: &'r Directive,
    /// The name under which the release keeps the keyword.
    pub(super) keyword: &'r str,
    /// The Match line that it stands under.
    pub block: Option<Block<'r>>,
}

impl<'r> Place<'r> {
    pub(super) fn at(&self) -> (&'r Path, usize) {
        (self.path, self.number)
    }
}

/// A `Match` line, as often as sshd comes by.
#[derive(Debug, Clone, Copy)]
pub struct Block<'r> {
    /// Which one, in reading order; a file that is included twice has its blocks twice.
    pub id: usize,
    /// The file.
    pub path: &'r Path,
    /// Line number, from 1.
    pub number: usize,
    /// The line itself.
    pub directive: &'r Directive,
    /// What has to be met.
    pub criteria: &'r [Criterion],
    /// The block in which the file is included.
    pub within: Option<usize>,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.number)
    }
}

/// What sshd follows in one context.
#[derive(Debug, Default)]
pub struct Effect<'r> {
    pub(super) keywords: BTreeMap<String, Chosen<'r>>,
}

/// The lines of one keyword.
#[derive(Debug, Default, Clone)]
pub struct Chosen<'r> {
    /// Those that sshd follows, in reading order.
    pub followed: Vec<Place<'r>>,
    /// Those that apply too, and that it does not follow.
    pub shadowed: Vec<Place<'r>>,
}

impl<'r> Effect<'r> {
    /// The lines of a keyword, also under an older name.
    pub fn of(&self, keyword: &str) -> Option<&Chosen<'r>> {
        self.keywords
            .get(&keyword.to_ascii_lowercase())
            .or_else(|| self.keywords.get(&canonical(keyword)))
    }

    /// Every line of a keyword that applies, followed or shadowed.
    pub fn lines(&self, keyword: &str) -> impl Iterator<Item = &Place<'r>> {
        let chosen = self.of(keyword).into_iter();
        chosen.flat_map(|chosen| chosen.followed.iter().chain(&chosen.shadowed))
    }

    /// The first argument of each line of a keyword that sshd follows.
    pub fn first_args(&self, keyword: &str) -> Vec<&'r str> {
        let followed = self.of(keyword).into_iter().flat_map(|chosen| &chosen.followed);
        followed.filter_map(|place| place.directive.args.first()).map(String::as_str).collect()
    }

    /// Every line that sshd follows.
    pub fn followed(&self) -> impl Iterator<Item = &Place<'r>> {
        self.keywords.values().flat_map(|chosen| &chosen.followed)
    }

    /// A configuration without Include and Match that amounts to the same.
    pub fn flat(&self) -> String {
        // In quotes the keyword ends there, whatever follows it.
        let line =
            |place: &Place| format!("\"{}\" {}\n", place.directive.keyword, place.directive.rest);
        // Some releases take no AuthorizedPrincipalsCommand behind this one.
        let last = |place: &&Place| place.directive.is("AuthorizedKeysCommand");
        let (last, others): (Vec<_>, Vec<_>) = self.followed().partition(last);
        others.into_iter().chain(last).map(line).collect()
    }
}

/// Parts the lines of a keyword into those that sshd follows and those that they shadow.
pub(super) fn choose<'r>(follows: Follows, places: Vec<Place<'r>>, early: &[bool]) -> Chosen<'r> {
    let arg = |place: &Place, at: usize| place.directive.args.get(at).cloned();
    let says = |place: &Place| !place.directive.args.is_empty();
    let first = |is: &dyn Fn(&Place) -> bool| places.iter().position(is);
    let followed: Vec<usize> = match follows {
        Follows::Nothing => Vec::new(),
        Follows::All => {
            let all = places.iter().enumerate();
            all.filter(|(_, place)| says(place)).map(|(at, _)| at).collect()
        }
        Follows::First => first(&|_| true).into_iter().collect(),
        Follows::FirstThatSays => first(&says).into_iter().collect(),
        Follows::Last => places.len().checked_sub(1).into_iter().collect(),
        Follows::FirstOrNone => {
            let none =
                |place: &Place| arg(place, 0).is_some_and(|a| a.eq_ignore_ascii_case("none"));
            first(&none).or(first(&|_| true)).into_iter().collect()
        }
        Follows::LastForEachArgument => {
            let rated = |place: &Place| arg(place, 0).is_some_and(|value| value.contains(':'));
            let rated = places.iter().rposition(rated);
            let mut both: Vec<usize> =
                rated.into_iter().chain(places.len().checked_sub(1)).collect();
            both.dedup();
            both
        }
        Follows::LastBeforeKeysCommand => {
            early.iter().rposition(|early| *early).into_iter().collect()
        }
        Follows::EachName => {
            let mut seen = BTreeSet::new();
            let all = places.iter().enumerate();
            all.filter(|(_, place)| seen.insert(arg(place, 0))).map(|(at, _)| at).collect()
        }
        Follows::FirstForEachArgument => {
            let mut both: Vec<usize> =
                first(&|_| true).into_iter().chain(first(&has_interval)).collect();
            both.dedup();
            both
        }
    };
    let mut is_followed = vec![false; places.len()];
    for at in followed {
        is_followed[at] = true;
    }
    if is_followed.iter().all(|is_followed| *is_followed) {
        return Chosen { followed: places, shadowed: Vec::new() };
    }
    let mut chosen = Chosen::default();
    for (place, is_followed) in places.into_iter().zip(is_followed) {
        if is_followed { &mut chosen.followed } else { &mut chosen.shadowed }.push(place);
    }
    chosen
}

fn has_interval(place: &Place) -> bool {
    place.directive.args.get(1).is_some_and(|interval| interval != "none")
}

/// Where a `RekeyLimit` of a Match block says nothing of time, the global one does.
pub(super) fn keep_interval<'r>(chosen: &mut Chosen<'r>, global: &Chosen<'r>) {
    if !chosen.followed.iter().any(has_interval) {
        chosen.followed.extend(global.followed.iter().filter(|place| has_interval(place)).copied());
    }
}
