//! Whether what the spec says takes effect for everybody whom it is meant for: Match blocks of others win
//! over everything outside them, and the first block that applies wins over later ones. Pure.

use super::is_own;
use crate::error::Refusal;
use crate::spec::Spec;
use crate::sshd::keywords::{Follows, Repeats, follows, repeats};
use crate::sshd::reading::{Block, Place, Problem, Reading};
use crate::sshd::release::Release;
use crate::sshd::syntax::{Directive, quote_arg};
use crate::sshd::{ConfigTree, Effective};

/// Match blocks win over everything outside them, for the connections that they match: one that says
/// something else than the spec would defeat it there.
pub(super) fn refuse_defeated(
    spec: &Spec,
    tree: &ConfigTree,
    release: &Release,
) -> Result<(), Refusal> {
    let settings = spec.ssh.settings.iter();
    let settings = settings.map(|setting| (setting.keyword.as_str(), setting.lines.as_slice()));
    let Some(defeated) = defeated(settings, tree, release)? else {
        return refuse_contested(spec, tree, release);
    };
    Err(Refusal::new(
        "shadowed",
        format!(
            "`{} {}` would not take effect for the connections of `Match {}`: {} says `{}`, and a \
             Match block wins",
            defeated.keyword,
            defeated.lines.join("; "),
            defeated.criteria,
            defeated.place,
            defeated.says,
        ),
        "remove or change that line, or remove the setting from the spec",
    ))
}

fn refuse_contested(spec: &Spec, tree: &ConfigTree, release: &Release) -> Result<(), Refusal> {
    for block in &spec.ssh.matches {
        let settings = block.settings.iter();
        let settings = settings.map(|setting| (setting.keyword.as_str(), setting.lines.as_slice()));
        let Some(by) = contested(&block.criteria, settings, tree, release)? else { continue };
        return Err(Refusal::new(
            "shadowed",
            format!(
                "`{} {}` would not take effect for those of `Match {}` who are of `Match {}` too: {} says \
                 `{}`",
                by.keyword,
                by.lines.join("; "),
                block.criteria,
                by.criteria,
                by.place,
                by.says,
            ),
            "remove or change that line, or remove the setting from the spec",
        ));
    }
    Ok(())
}

/// The first setting of a block of the spec that does not apply to all whom the block is for: another
/// block says something else and is read first, or adds to it.
///
/// # Errors
/// A refusal where sshd would not read the configuration at all.
pub(crate) fn contested<'s>(
    criteria: &str,
    settings: impl Iterator<Item = (&'s str, &'s [String])>,
    tree: &ConfigTree,
    release: &Release,
) -> Result<Option<Defeated<'s>>, Refusal> {
    let reading = Reading::new(tree, release.clone()).map_err(|problem| unreadable(&problem))?;
    let blocks = reading.blocks().map_err(|problem| unreadable(&problem))?;
    for (keyword, lines) in settings {
        let all = blocks.follow(keyword);
        let is_ours = |block: &Block| {
            is_own(block.path) && block.within.is_none() && block.directive.rest.trim() == criteria
        };
        let ours = all.iter().find(|(block, _)| is_ours(block));
        let Some((ours, chosen)) = ours else {
            return Ok(Some(Defeated {
                keyword,
                lines,
                criteria: criteria.to_owned(),
                place: tree.main.display().to_string(),
                says: "nothing that reads it".to_owned(),
            }));
        };
        let first_wins =
            matches!(follows(keyword, release), Follows::First | Follows::FirstThatSays);
        let others = all.iter().filter(|(block, _)| !is_own(block.path));
        let others = others.filter(|(block, _)| !first_wins || block.id < ours.id);
        let mut said = others.map(|(block, chosen)| (block, chosen)).chain([(ours, chosen)]);
        if let Some((block, chosen)) =
            said.find(|(_, chosen)| !says(keyword, lines, &chosen.followed))
        {
            return Ok(Defeated::by(keyword, lines, block, &chosen.followed));
        }
    }
    Ok(None)
}

/// Whether the lines that sshd follows say what lines of the spec say.
fn says(keyword: &str, lines: &[String], followed: &[Place]) -> bool {
    let said = |place: &Place| format!("{keyword} {}\n", quoted(&place.directive.args));
    Effective::parse(&followed.iter().map(said).collect::<String>()).has(keyword, lines)
}

fn unreadable(problem: &Problem) -> Refusal {
    Refusal::new(
        "config-invalid",
        format!("sshd does not accept {}: {}", problem.place, problem.what),
        "mend that line first: `sshd -t` says whether it is well",
    )
}

/// A setting that does not apply to some connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defeated<'s> {
    /// Its keyword.
    pub(crate) keyword: &'s str,
    /// Its lines.
    pub(crate) lines: &'s [String],
    /// Which connections.
    pub(crate) criteria: String,
    /// `FILE:LINE` of the line that applies to them.
    pub(crate) place: String,
    /// That line.
    pub(crate) says: String,
}

/// The first setting that a Match block defeats.
///
/// # Errors
/// A refusal where sshd would not read the configuration at all.
pub(crate) fn defeated<'s>(
    settings: impl Iterator<Item = (&'s str, &'s [String])>,
    tree: &ConfigTree,
    release: &Release,
) -> Result<Option<Defeated<'s>>, Refusal> {
    let reading = Reading::new(tree, release.clone()).map_err(|problem| unreadable(&problem))?;
    let blocks = reading.blocks().map_err(|problem| unreadable(&problem))?;
    for (keyword, lines) in settings {
        // The spec's own blocks are meant to.
        let others = blocks.follow(keyword).into_iter().filter(|(block, _)| !is_own(block.path));
        for (block, chosen) in others {
            let mut followed = chosen.followed;
            if repeats(keyword) == Repeats::OnePerName {
                // Other names are other settings.
                let name = |args: &str| args.split_whitespace().next().map(str::to_owned);
                let ours: Vec<_> = lines.iter().map(|line| name(line)).collect();
                followed.retain(|place| ours.contains(&name(&place.directive.rest)));
            }
            if !followed.is_empty() && !says(keyword, lines, &followed) {
                return Ok(Defeated::by(keyword, lines, &block, &followed));
            }
        }
    }
    Ok(None)
}

impl<'s> Defeated<'s> {
    fn by(
        keyword: &'s str,
        lines: &'s [String],
        block: &Block,
        followed: &[Place],
    ) -> Option<Self> {
        let first = followed.first()?;
        let Directive { keyword: said, args, .. } = first.directive;
        Some(Self {
            keyword,
            lines,
            criteria: block.directive.rest.trim().to_owned(),
            place: first.to_string(),
            says: format!("{said} {}", args.join(" ")),
        })
    }
}

fn quoted(args: &[String]) -> String {
    args.iter().map(|arg| quote_arg(arg)).collect::<Vec<_>>().join(" ")
}
