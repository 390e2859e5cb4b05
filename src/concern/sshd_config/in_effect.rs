//! Whether what the spec says takes effect for everybody whom it is meant for: Match blocks of others win
//! over everything outside them, and the first block that applies wins over later ones. Pure.

use super::own::is_own;
use crate::concern::profile::is_stricter;
use crate::error::Refusal;
use crate::spec::Values;
use crate::sshd::Effective;
use crate::sshd::criteria::include;
use crate::sshd::keywords::{Follows, Repeats, follows, repeats, same};
use crate::sshd::reading::{Block, Chosen, Place, Reading};
use crate::sshd::release::Release;
use crate::sshd::syntax::{Directive, quote_arg};

/// What a spec asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'s> {
    /// For everybody.
    pub(crate) values: &'s Values,
    /// Keywords of these that a profile has set: what asks for more than it does is as well.
    pub(crate) at_least: &'s [String],
    /// For some: what stands behind `Match`, and the values.
    pub(crate) blocks: &'s [(String, Values)],
}

/// Refuses a spec of which something would not take effect.
pub(crate) fn refuse_lost(wanted: &Wanted, reading: &Reading) -> Result<(), Refusal> {
    let Some(lost) = lost(wanted, reading)? else { return Ok(()) };
    let Lost { keyword, lines, of, criteria, place, says } = lost;
    let value = format!("`{keyword} {}` would not take effect", lines.join("; "));
    let message = match of {
        None => format!(
            "{value} for the connections of `Match {criteria}`: {place} {says}, and a Match block wins"
        ),
        Some(of) => format!(
            "{value} for those of `Match {of}` who are of `Match {criteria}` too: {place} {says}"
        ),
    };
    let hint = "remove or change that line, or the setting in the spec; a value of a profile gives way to \
                one in `settings`";
    Err(Refusal::new("shadowed", message, hint))
}

/// A value that does not apply to some connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost<'s> {
    /// Its keyword.
    pub(crate) keyword: &'s str,
    /// Its lines.
    pub(crate) lines: &'s [String],
    /// The block of the spec that it stands in.
    pub(crate) of: Option<&'s str>,
    /// Which connections.
    pub(crate) criteria: String,
    /// `FILE:LINE` of the line that applies to them.
    pub(crate) place: String,
    /// What is there.
    pub(crate) says: String,
}

/// The first value that does not apply to all whom it is for: a setting that a Match block defeats, or one
/// of a block of the spec where another block says something else and is read first, or adds to it.
///
/// # Errors
/// A refusal where sshd would not read the configuration at all.
pub(crate) fn lost<'s>(
    wanted: &Wanted<'s>,
    reading: &Reading,
) -> Result<Option<Lost<'s>>, Refusal> {
    let blocks = reading.blocks()?;
    let mut everywhere = wanted.values.iter().map(|value| (None, value));
    let in_blocks = wanted
        .blocks
        .iter()
        .flat_map(|(of, values)| values.iter().map(move |value| (Some(of.as_str()), value)));
    let found = |(of, (keyword, lines)): (Option<&'s str>, &'s (String, Vec<String>))| {
        let all = blocks.follow(keyword);
        let (criteria, place, says) = match of {
            None => {
                let at_least = wanted.at_least.iter().any(|other| same(other, keyword));
                defeated(keyword, lines, all, reading.release(), at_least)
            }
            Some(of) => contested(of, keyword, lines, &all, reading),
        }?;
        Some(Lost { keyword, lines, of, criteria, place, says })
    };
    Ok(everywhere.find_map(found).or_else(|| in_blocks.into_iter().find_map(found)))
}

/// Which connections, where the line stands that applies to them, and what is there.
type By = (String, String, String);

fn by(block: &Block, followed: &[Place]) -> Option<By> {
    let first = followed.first()?;
    let Directive { keyword, args, .. } = first.directive;
    let criteria = block.directive.rest.trim().to_owned();
    Some((criteria, first.to_string(), format!("says `{keyword} {}`", args.join(" "))))
}

/// A Match block wins over everything outside it. The spec's own blocks are meant to; where the value is
/// wanted `at_least`, so are those that ask for more.
fn defeated(
    keyword: &str,
    lines: &[String],
    all: Vec<(Block, Chosen)>,
    release: &Release,
    at_least: bool,
) -> Option<By> {
    // A block counts for nobody where an earlier one means all whom it means, and says it first.
    let blocks: Vec<Block> = all.iter().map(|(block, _)| *block).collect();
    let first_wins = follows(keyword, release) == Follows::First;
    let counts =
        |block: &Block| !first_wins || !blocks.iter().any(|one| hides(one, block, release));
    let mut others = all.into_iter().filter(|(block, _)| !is_own(block.path) && counts(block));
    others.find_map(|(block, chosen)| {
        let mut followed = chosen.followed;
        if follows(keyword, release) == Follows::EachName {
            // Other names are other settings.
            let name = |args: &str| args.split_whitespace().next().map(str::to_owned);
            let ours: Vec<_> = lines.iter().map(|line| name(line)).collect();
            followed.retain(|place| ours.contains(&name(&place.directive.rest)));
        }
        let stricter = |place: &Place| {
            place.directive.args.first().is_some_and(|value| is_stricter(keyword, value, lines))
        };
        let holds = followed.is_empty()
            || says(keyword, lines, &followed)
            || (at_least && followed.iter().all(stricter));
        if holds { None } else { by(&block, &followed) }
    })
}

/// Whether a block means all whom a later one means.
fn hides(block: &Block, later: &Block, release: &Release) -> bool {
    block.id < later.id
        && block.within.is_none()
        && include(block.criteria, later.criteria, release)
}

/// Of the blocks that apply the first wins; of some keywords all of them count.
fn contested(
    criteria: &str,
    keyword: &str,
    lines: &[String],
    all: &[(Block, Chosen)],
    reading: &Reading,
) -> Option<By> {
    let is_ours = |block: &Block| {
        is_own(block.path) && block.within.is_none() && block.directive.rest.trim() == criteria
    };
    let Some((ours, chosen)) = all.iter().find(|(block, _)| is_ours(block)) else {
        let nothing = "reads no file with that block".to_owned();
        return Some((criteria.to_owned(), reading.main().display().to_string(), nothing));
    };
    let release = reading.release();
    let first_wins = matches!(follows(keyword, release), Follows::First | Follows::FirstThatSays);
    // Blocks of the spec that overlap are in the order that it gives them; one of which an earlier one leaves
    // nothing is a mistake.
    let others = all.iter().filter(|(block, _)| !is_own(block.path) || hides(block, ours, release));
    let others = others.filter(|(block, _)| !first_wins || block.id < ours.id);
    let mut said = others.map(|(block, chosen)| (block, chosen)).chain([(ours, chosen)]);
    let (block, chosen) = said.find(|(_, chosen)| !says(keyword, lines, &chosen.followed))?;
    by(block, &chosen.followed)
}

/// Whether the lines that sshd follows say what lines of the spec say.
fn says(keyword: &str, lines: &[String], followed: &[Place]) -> bool {
    let said = |place: &Place| match repeats(keyword) {
        // As sshd prints them: one line for each, without quotes.
        Repeats::Accumulates => {
            place.directive.args.iter().map(|arg| format!("{keyword} {arg}\n")).collect()
        }
        _ => format!("{keyword} {}\n", quoted(&place.directive.args)),
    };
    Effective::parse(&followed.iter().map(said).collect::<String>()).has(keyword, lines)
}

fn quoted(args: &[String]) -> String {
    args.iter().map(|arg| quote_arg(arg)).collect::<Vec<_>>().join(" ")
}
