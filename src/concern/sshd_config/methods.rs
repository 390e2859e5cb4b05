//! `AuthenticationMethods` of which nothing is left: sshd takes no list with a method that is switched off,
//! and where that leaves none it lets nobody in (auth2.c, `auth2_setup_methods_lists`). Pure.

use crate::error::Refusal;
use crate::spec::{Setting, Spec};
use crate::sshd::reading::{Blocks, Effect, Place, Reading};
use crate::sshd::release::Release;

/// Methods, the keyword that switches each on or off, and whether it is on where no line says so.
const METHODS: [(&str, &str, bool); 5] = [
    ("publickey", "PubkeyAuthentication", true),
    ("password", "PasswordAuthentication", true),
    ("keyboard-interactive", "KbdInteractiveAuthentication", true),
    ("hostbased", "HostbasedAuthentication", false),
    ("gssapi-with-mic", "GSSAPIAuthentication", false),
];

/// Before 8.7 either of them has sshd ask on the keyboard (sshd.c, `main`).
const KEYBOARD: [&str; 2] = ["KbdInteractiveAuthentication", "ChallengeResponseAuthentication"];

/// Where a spec sets one of the keywords to no by which an old sshd asks on the keyboard, sets the other one too;
/// and says so.
pub(crate) fn switch_keyboard_off(spec: &mut Spec, release: &Release) -> Option<String> {
    if release.is_at_least(8, 7) {
        return None;
    }
    let of = |keyword: &str| {
        spec.ssh.settings.iter().find(|setting| setting.keyword.eq_ignore_ascii_case(keyword))
    };
    let is_off = |setting: &&Setting| {
        setting.lines.first().is_some_and(|line| line.eq_ignore_ascii_case("no"))
    };
    let [one, other] = KEYBOARD;
    let unset = |keyword: &&str| of(keyword).is_none();
    let (off, other) = [(one, other), (other, one)].into_iter().find_map(|(keyword, other)| {
        Some((of(keyword).filter(is_off)?, Some(other).filter(unset)?))
    })?;
    let told =
        format!("`{} no` takes `{other} no` as well before OpenSSH 8.7: both are set", off.keyword);
    let at = off.at;
    let lines = vec!["no".to_owned()];
    spec.ssh.settings.push(Setting { keyword: other.to_owned(), lines, at });
    Some(told)
}

/// Refuses where a list works now and would not under the plan.
///
/// # Errors
/// The first such line, and the keyword that empties it.
pub(super) fn refuse_emptied(now: &Reading, then: &Reading) -> Result<(), Refusal> {
    let before = emptied(now)?;
    let is_new = |found: &&Emptied| {
        !before.iter().any(|other| (&other.at, &other.line) == (&found.at, &found.line))
    };
    let after = emptied(then)?;
    let Some(Emptied { at, line, by }) = after.iter().find(is_new) else { return Ok(()) };
    Err(Refusal::new(
        "lockout",
        format!("`{line}` ({at}) would let nobody in: `{by} no` leaves nothing of it"),
        format!("let `settings` say `{by}: yes`, or change that line first"),
    ))
}

/// A line of which nothing is left.
struct Emptied {
    /// `FILE`, and the line's own words: its number may change.
    at: String,
    line: String,
    /// The keyword that switches a method off.
    by: &'static str,
}

fn emptied(reading: &Reading) -> Result<Vec<Emptied>, Refusal> {
    let (globally, blocks) = (reading.globally()?, reading.blocks()?);
    let mut found = Vec::new();
    let everybody = globally.of("AuthenticationMethods").into_iter();
    let lines = everybody.filter_map(|chosen| Some((None, *chosen.followed.first()?)));
    let in_blocks = blocks.follow("AuthenticationMethods").into_iter();
    let in_blocks =
        in_blocks.filter_map(|(block, chosen)| Some((Some(block.id), *chosen.followed.first()?)));
    for (block, place) in lines.chain(in_blocks) {
        if let Some(by) = empties(&place, block, &globally, &blocks) {
            let line = format!("AuthenticationMethods {}", place.directive.args.join(" "));
            found.push(Emptied { at: place.path.display().to_string(), line, by });
        }
    }
    Ok(found)
}

/// What switches off a method of every list; `None` where a list is left.
fn empties(
    place: &Place,
    block: Option<usize>,
    globally: &Effect,
    blocks: &Blocks,
) -> Option<&'static str> {
    let off = |list: &String| {
        list.split(',').find_map(|method| {
            let method = method.split(':').next().unwrap_or(method);
            let (_, keyword, default) = METHODS.iter().find(|(name, ..)| *name == method)?;
            let is_on = is_on(keyword, block, globally, blocks).unwrap_or(*default);
            (!is_on).then_some(*keyword)
        })
    };
    let lists = &place.directive.args;
    let mut keywords = lists.iter().map(|list| if list == "any" { None } else { off(list) });
    let first = keywords.next()??;
    keywords.all(|keyword| keyword.is_some()).then_some(first)
}

/// What the files say of a keyword, in a block or for everybody.
fn is_on(keyword: &str, block: Option<usize>, globally: &Effect, blocks: &Blocks) -> Option<bool> {
    let says = |place: &Place| Some(place.directive.args.first()?.eq_ignore_ascii_case("yes"));
    let in_block = block.and_then(|id| {
        let all = blocks.follow(keyword);
        let (_, chosen) = all.iter().find(|(block, _)| block.id == id)?;
        says(chosen.followed.first()?)
    });
    in_block.or_else(|| says(globally.of(keyword)?.followed.first()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sshd::tree::tests::tree_of;

    fn emptied_in(text: &str) -> Vec<(String, &'static str)> {
        let tree = tree_of(&[("/etc/ssh/sshd_config", text)]);
        let reading = Reading::new(&tree, Release::LATEST).unwrap();
        emptied(&reading).unwrap().into_iter().map(|found| (found.line, found.by)).collect()
    }

    #[test]
    fn lists_with_a_method_that_is_off_are_empty() {
        let two = "AuthenticationMethods publickey,keyboard-interactive";
        let by = "KbdInteractiveAuthentication";
        let found = vec![(two.to_owned(), by)];
        assert_eq!(emptied_in(&format!("{two}\n{by} no\n")), found);
        assert_eq!(emptied_in(&format!("{by} no\nMatch Address 10.0.0.0/8\n{two}\n")), found);
        for fine in [
            format!("{two}\n"),
            format!("{by} no\nMatch Address 10.0.0.0/8\n{two}\n{by} yes\n"),
            format!("{by} no\n{two} publickey\n"),
            format!("{by} no\nAuthenticationMethods any\n"),
        ] {
            assert_eq!(emptied_in(&fine), [], "{fine}");
        }
        assert_eq!(emptied_in("AuthenticationMethods hostbased\n").len(), 1);
    }
}
