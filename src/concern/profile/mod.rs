//! `ssh.profile`: values that harden knows to be good, as far as this sshd has them. What the spec sets
//! itself wins over them.

mod values;

use values::{Says, Value, values};

use crate::error::Refusal;
use crate::observe::Observed;
use crate::spec::{Profile, Setting, Spec};
use crate::sshd::keywords::{canonical, lines_of, same};

/// The spec with the values of its profile among its settings, and what the reader should know of them.
///
/// # Errors
/// Refuses a profile of which this sshd knows too little.
pub(crate) fn resolve(spec: &Spec, observed: &Observed) -> Result<(Spec, Vec<String>), Refusal> {
    let mut resolved = spec.clone();
    let Some(choice) = spec.ssh.profile else { return Ok((resolved, Vec::new())) };
    let mut warnings = Vec::new();
    for value in values(choice.profile) {
        if spec.ssh.settings.iter().any(|setting| same(&setting.keyword, value.keyword)) {
            continue;
        }
        if value.until.is_some_and(|(major, minor)| observed.release.is_at_least(major, minor)) {
            continue;
        }
        let Some(keyword) = known_as(&value, observed) else {
            let (profile, keyword) = (choice.profile, value.keyword);
            warnings.push(format!("profile {profile}: left out {keyword}, which this sshd lacks"));
            continue;
        };
        let (lines, unknown) = lines(&value, choice.profile, observed)?;
        if !unknown.is_empty() {
            let (profile, unknown) = (choice.profile, unknown.join(", "));
            warnings.push(format!(
                "profile {profile}: left out of `{keyword}`, because this sshd does not know it: \
                 {unknown}"
            ));
        }
        if let Some(what) = value.costs.filter(|_| is_new(&keyword, &lines, observed)) {
            let says = match value.says {
                Says::Words(words) => format!("{keyword} {words}"),
                Says::Algorithms(_) => keyword.clone(),
            };
            warnings.push(format!("profile {}: `{says}` {what}", choice.profile));
        }
        if let Some(now) = stricter(&keyword, &lines, observed) {
            let (profile, line) = (choice.profile, lines.join("; "));
            warnings.push(format!(
                "profile {profile}: `{keyword} {line}` is laxer than `{now}`, which this host has now; \
                 `settings: {{{keyword}: {now}}}` keeps it"
            ));
        }
        resolved.ssh.settings.push(Setting { keyword, lines, at: choice.at });
    }
    Ok((resolved, warnings))
}

/// The name that this sshd has for the keyword; `None` where it has none.
fn known_as(value: &Value, observed: &Observed) -> Option<String> {
    let Some(effective) = observed.effective.valid() else {
        let (major, minor) = value.since;
        let known = observed.release.is_at_least(major, minor);
        return known.then(|| value.keyword.to_owned());
    };
    let exactly = |printed: &&str| printed.eq_ignore_ascii_case(value.keyword);
    let renamed = || effective.keywords().find(|printed| same(printed, value.keyword));
    let printed = effective.keywords().find(exactly).or_else(renamed)?;
    // It prints lower case, and some under an older name.
    let older = !printed.eq_ignore_ascii_case(value.keyword);
    Some(if older { printed.to_owned() } else { value.keyword.to_owned() })
}

/// What follows the keyword, and the names that had to be left out.
fn lines(
    value: &Value,
    profile: Profile,
    observed: &Observed,
) -> Result<(Vec<String>, Vec<String>), Refusal> {
    let names = match value.says {
        Says::Words(words) => return Ok((vec![words.to_owned()], Vec::new())),
        Says::Algorithms(names) => names,
    };
    let all = observed.algorithms.of(value.keyword).unwrap_or_default();
    let is_known = |name: &String| all.contains(name);
    let (known, unknown): (Vec<String>, Vec<String>) =
        names.iter().map(|name| (*name).to_owned()).partition(is_known);
    if known.is_empty() {
        return Err(Refusal::new(
            "profile-unknown",
            format!(
                "`profile: {profile}` needs one of {} ({}), and this {} knows none of them",
                unknown.join(", "),
                value.keyword,
                observed.release.name
            ),
            "choose another profile, or set the keyword in `ssh.settings`",
        ));
    }
    Ok((lines_of(value.keyword, &known), unknown))
}

/// The present value of the host, where the profile's is laxer.
fn stricter(keyword: &str, lines: &[String], observed: &Observed) -> Option<String> {
    let now = observed.effective.valid()?.get(keyword).first()?;
    is_stricter(keyword, now, lines).then(|| now.clone())
}

/// Whether a value asks for more than the lines of a profile do, as far as that can be told.
pub(crate) fn is_stricter(keyword: &str, value: &str, lines: &[String]) -> bool {
    let number = |text: &str| text.split(':').next()?.parse::<u64>().ok();
    let (ours, theirs) = (lines.first().and_then(|line| number(line)), number(value));
    match canonical(keyword).as_str() {
        "permitrootlogin" => {
            let value = value.to_ascii_lowercase();
            matches!(value.as_str(), "no" | "forced-commands-only") && lines != ["no"]
        }
        "requiredrsasize" => theirs > ours,
        "logingracetime" => theirs.is_some_and(|theirs| theirs != 0) && theirs < ours,
        "maxstartups" | "maxauthtries" | "maxsessions" => theirs.is_some() && theirs < ours,
        _ => false,
    }
}

/// Whether the host does something else now.
fn is_new(keyword: &str, lines: &[String], observed: &Observed) -> bool {
    observed.effective.valid().is_none_or(|effective| !effective.has(keyword, lines))
}
