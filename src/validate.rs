//! Between plan and apply: sshd itself reads the candidate, before anything is changed.
//!
//! All files that sshd would read are copied below a scratch folder, and their Include lines are
//! pointed there: so sshd sees the merged tree as it will be, not a snippet.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::concern::sshd_config::own::is_own;
use crate::error::{Error, Refusal, SpecError};
use crate::observe::{Observed, Verdict, ask_sshd};
use crate::plan::Plan;
use crate::spec::{Setting, Spec, Values};
use crate::sshd::criteria::{self, pattern_list};
use crate::sshd::keywords::{counts_in_match, is_forgotten, same};
use crate::sshd::reading::Reading;
use crate::sshd::release::Release;
use crate::sshd::syntax::read_line;
use crate::sshd::{ConfigTree, Effective, options};
use crate::step::Op;
use crate::sys::mounts::is_mount_point;
use crate::sys::{self, Files, Image};

/// Where scratch copies go: gone after a reboot.
const SCRATCH: &str = "/run/harden";

/// Judges what sshd said of the candidate: whether it accepts it, and whether the spec's values win there.
///
/// Returns what is in effect.
///
/// # Errors
/// A value or keyword that sshd refuses, or that something else defeats.
pub fn candidate(
    said: Verdict,
    scratch: &Scratch,
    spec: &Spec,
    plan: &Plan,
    observed: &Observed,
) -> Result<Effective, Error> {
    let main = scratch.main();
    let effective = match said {
        Verdict::Valid(effective) => effective,
        Verdict::Unseen(why) => return Err(no_answer(&why).into()),
        Verdict::Invalid(said) => return Err(scratch.refusal(spec, plan, observed, &said)),
    };
    let lost = lost_values(&plan.expect.settings, &effective, Some(main), &plan.options);
    if let Some(lost) = lost.into_iter().next() {
        let winner = winner(&plan.candidate, &lost.keyword, &observed.release);
        let hint = match winner.as_str() {
            "" => "sshd reads the value otherwise than it is written: write it in another way",
            _ => "remove the line that wins, or the setting from the spec",
        };
        let Lost { keyword, wanted, actual } = lost;
        let message = format!(
            "`{keyword} {wanted}` would not take effect: sshd would use `{actual}`{winner}"
        );
        return Err(Refusal::new("shadowed", message, hint).into());
    }
    leaves_some(&plan.expect.settings, &effective)?;
    Ok(effective)
}

/// Makes sure that sshd reads what a rollback goes back to, and listens where it did then.
///
/// # Errors
/// A refusal with sshd's words, or with the line that somebody has written since.
pub fn leads_back(files: &Files, plan: &Plan, then: &Observed) -> Result<(), Error> {
    let scratch = Scratch::of(files, &plan.candidate)?;
    match scratch.ask(plan) {
        Verdict::Valid(effective) if plan.expect.owner == then.service.name => {
            listens_as_then(plan, then, &effective).map_err(Error::from)
        }
        Verdict::Invalid(said) => {
            let said = said.replace(&*scratch.folder().to_string_lossy(), "");
            Err(Refusal::new(
                "candidate-invalid",
                format!("sshd refuses the configuration to go back to:\n{said}"),
                "correct the named line; nothing was changed",
            )
            .into())
        }
        _ => Ok(()),
    }
}

/// Where sshd listens stands in files that somebody may have edited since.
fn listens_as_then(plan: &Plan, then: &Observed, effective: &Effective) -> Result<(), Refusal> {
    let (Some(before), there) = (then.effective.valid().map(Effective::listen), effective.listen())
    else {
        return Ok(());
    };
    let beyond = |all: &[SocketAddr], others: &[SocketAddr]| {
        all.iter().find(|at| !others.contains(at)).copied()
    };
    let what = match (beyond(&before, &there), beyond(&there, &before)) {
        (None, None) => return Ok(()),
        (Some(lost), _) => format!("not listen on {lost}, as it did then"),
        (None, Some(added)) => format!("listen on {added} too"),
    };
    let decide = ["ListenAddress", "Port", "AddressFamily"].map(str::to_owned);
    let mut lines = decide.iter().map(|keyword| winner(&plan.candidate, keyword, &then.release));
    let by = match options::parse(&plan.options).into_iter().find(|one| one.sets_any(&decide)) {
        Some(option) => format!(" (`{}` on sshd's command line)", option.words.join(" ")),
        None => lines.find(|by| !by.is_empty()).unwrap_or_default(),
    };
    Err(Refusal::new(
        "edited-since",
        format!("sshd would {what}{by}"),
        "undo that edit first, or apply a spec that says where sshd shall listen",
    ))
}

/// Lists of algorithms of which nobody can do without one.
const LISTS: [&str; 4] =
    ["Ciphers", "KexAlgorithms", "HostKeyAlgorithms", "PubkeyAcceptedAlgorithms"];

/// Refuses a list that takes all algorithms away. sshd takes it, and then has none to offer; `sshd -T` prints its
/// defaults in place of it, those that are taken away among them.
fn leaves_some(settings: &Values, effective: &Effective) -> Result<(), Refusal> {
    for (keyword, lines) in settings {
        let is_list = LISTS.iter().any(|list| same(list, keyword));
        let Some(taken) = lines.first().and_then(|line| line.strip_prefix('-')) else { continue };
        let printed = effective.get(keyword).join(",");
        if is_list && printed.split(',').any(|name| pattern_list(name, taken) == Some(true)) {
            let message = format!("`{keyword} -{taken}` leaves no algorithm at all");
            let hint = "leave one that clients have: see `sshd -T`";
            return Err(Refusal::new("no-algorithm", message, hint));
        }
    }
    Ok(())
}

/// Says so where passwords are switched off under one name, and another one still asks for them.
pub fn passwords_stay(plan: &Plan, effective: &Effective) -> Option<String> {
    let is =
        |keyword: &str, value: &str| effective.get(keyword).first().is_some_and(|is| is == value);
    let asked =
        plan.expect.settings.iter().any(|(keyword, _)| same(keyword, "PasswordAuthentication"));
    let stay = asked
        && is("passwordauthentication", "no")
        && is("kbdinteractiveauthentication", "yes")
        && is("usepam", "yes");
    stay.then(|| {
        "passwords are still taken: `KbdInteractiveAuthentication yes` has PAM ask for them"
            .to_owned()
    })
}

/// Refuses settings that sshd takes without a word of what they do, because they do nothing any more:
/// no `sshd -T` shows them; criteria that another release of it has; and values that it cannot read.
///
/// # Errors
/// The first of them, with its place in the spec.
pub fn remembered(spec: &Spec, release: &Release) -> Result<(), SpecError> {
    let everywhere = spec.ssh.settings.iter().map(|setting| (setting, true));
    let blocks = spec.ssh.matches.iter();
    let in_blocks = blocks.flat_map(|block| block.settings.iter().map(|setting| (setting, false)));
    let has_effect = |setting: &Setting, globally: bool| {
        let keyword = &setting.keyword;
        !is_forgotten(keyword, release) && (globally || counts_in_match(keyword, release))
    };
    for criterion in spec.ssh.matches.iter().flat_map(|block| &block.criteria) {
        criteria::read_text(&criterion.text, release).map_err(|why| {
            let label = format!("{} does not know it: ask for something else", release.name);
            spec.error(criterion.at, &format!("`{}`: {why}", criterion.text), &label)
        })?;
    }
    let all: Vec<(&Setting, bool)> = everywhere.chain(in_blocks).collect();
    for (setting, line) in
        all.iter().flat_map(|(setting, _)| setting.lines.iter().map(move |line| (*setting, line)))
    {
        read_line(&format!("{} {line}", setting.keyword), release).map_err(|why| {
            let message = format!("sshd cannot read `{} {line}`: {why}", setting.keyword);
            spec.setting_error(setting, &message, "write it as in sshd_config(5)", None)
        })?;
    }
    match all.into_iter().find(|(setting, globally)| !has_effect(setting, *globally)) {
        None => Ok(()),
        Some((setting, globally)) => {
            let place = if globally { "" } else { " in a Match block" };
            let message = format!("`{}`{place} has no effect", setting.keyword);
            Err(spec.setting_error(
                setting,
                &message,
                &format!("{} reads it and forgets it: remove it", release.name),
                None,
            ))
        }
    }
}

/// Refuses a host on which sshd does not say what it makes of its configuration, though root asks.
///
/// # Errors
/// A refusal.
pub fn answers(observed: &Observed) -> Result<(), Refusal> {
    match &observed.effective {
        Verdict::Unseen(why) if sys::is_root() => Err(no_answer(why)),
        _ => Ok(()),
    }
}

/// Refuses a plan that could not be written: the way back would be whole, but a port may have changed hands
/// for nothing by then.
///
/// # Errors
/// A refusal that names the place.
pub fn can_be_written(files: &Files, plan: &Plan) -> Result<(), Refusal> {
    let put = plan.steps.iter().filter_map(|step| match &step.op {
        Op::Put { path, image: Image::File { .. } } => Some(path),
        _ => None,
    });
    for path in put {
        let folder = path.ancestors().skip(1).find(|folder| files.exists(folder));
        let (why, hint) = if files.own_metadata(path).is_some_and(|meta| meta.is_dir()) {
            ("it is a folder", "move the folder away")
        } else if folder.is_some_and(|folder| files.is_read_only(folder)) {
            ("its file system is read-only", "mount it read-write: mount -o remount,rw MOUNTPOINT")
        } else if is_mount_point(files, path) {
            ("it is a mount of its own", "change what is mounted there, or unmount it")
        } else {
            continue;
        };
        let message = format!("cannot write {}: {why}", path.display());
        return Err(Refusal::new("not-writable", message, hint));
    }
    Ok(())
}

fn no_answer(why: &str) -> Refusal {
    Refusal::new(
        "no-answer",
        format!("sshd does not say what it makes of its configuration: {why}"),
        "see what holds it up: sshd -T (a pipe among its files, a name that does not resolve)",
    )
}

/// A setting that is not in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The keyword, as the spec writes it.
    pub keyword: String,
    /// The spec's value.
    pub wanted: String,
    /// What sshd uses.
    pub actual: String,
}

/// The settings that are not in effect.
///
/// Where sshd prints a value differently than the spec writes it, sshd is asked a second time
/// with the setting on its command line, where it wins over every file.
pub fn lost_values(
    settings: &[(String, Vec<String>)],
    effective: &Effective,
    main: Option<&Path>,
    options: &[String],
) -> Vec<Lost> {
    let doubtful: Vec<_> =
        settings.iter().filter(|(keyword, lines)| !effective.has(keyword, lines)).collect();
    if doubtful.is_empty() {
        return Vec::new();
    }
    let forced = doubtful.iter().flat_map(|(keyword, lines)| {
        lines.iter().flat_map(move |line| ["-o".to_owned(), format!("{keyword}={line}")])
    });
    let forced: Vec<String> = forced.chain(options.iter().cloned()).collect();
    let reference = match ask_sshd(main, &forced) {
        Verdict::Valid(reference) => reference,
        Verdict::Invalid(_) | Verdict::Unseen(_) => Effective::default(),
    };
    let is_lost =
        |(keyword, _): &&&(String, Vec<String>)| reference.get(keyword) != effective.get(keyword);
    let lost = |(keyword, lines): &(String, Vec<String>)| Lost {
        keyword: keyword.clone(),
        wanted: lines.join("; "),
        actual: effective.get(keyword).join("; "),
    };
    doubtful.iter().filter(is_lost).map(|setting| lost(setting)).collect()
}

/// The line that sshd follows for a keyword, if it is not one that harden has written.
fn winner(tree: &ConfigTree, keyword: &str, release: &Release) -> String {
    let place = line_of(tree, keyword, release, |path| !is_own(path));
    place.map(|place| format!(" ({place} wins)")).unwrap_or_default()
}

/// The line in such a file that sshd follows for a keyword.
pub(crate) fn line_of(
    tree: &ConfigTree,
    keyword: &str,
    release: &Release,
    file: impl Fn(&Path) -> bool,
) -> Option<String> {
    let reading = Reading::new(tree, release.clone()).ok()?;
    let globally = reading.globally().ok()?;
    let followed = &globally.of(keyword)?.followed;
    followed.iter().find(|place| file(place.path)).map(ToString::to_string)
}

/// A copy of the planned files for sshd to read, in a folder that is removed again.
#[derive(Debug)]
pub struct Scratch<'a> {
    files: &'a Files,
    folder: PathBuf,
    main: PathBuf,
}

impl<'a> Scratch<'a> {
    /// Copies the files; their Include lines name the copies.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn of(files: &'a Files, tree: &ConfigTree) -> Result<Self, Error> {
        let folder = Path::new(SCRATCH).join(format!("candidate-{}", sys::random_hex(4)?));
        files.create_folders(&folder, 0o700)?;
        let (copies, main) = tree.mirrored(&folder, &[]);
        let scratch = Self { files, folder, main };
        for (path, text) in copies {
            files.scratch(&path, text.as_bytes())?;
        }
        Ok(scratch)
    }

    /// What sshd makes of it for everybody.
    pub fn ask(&self, plan: &Plan) -> Verdict {
        ask_sshd(Some(&self.main), &plan.options)
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The copy of the main file.
    pub(crate) fn main(&self) -> &Path {
        &self.main
    }

    /// Turns sshd's complaint into an error that points at the spec, or at the file to correct.
    fn refusal(&self, spec: &Spec, plan: &Plan, observed: &Observed, said: &str) -> Error {
        let said = said.replace(&*self.folder.to_string_lossy(), "");
        let text = said.lines().next().unwrap_or(&said).trim_start_matches("main: ").to_owned();
        let blamed = said
            .lines()
            .filter_map(place)
            .find_map(|(path, line, why)| Some((setting_at(spec, plan, &path, line)?, why)));
        match blamed {
            Some((setting, why)) => {
                let message = format!("sshd refuses `{}`", setting.keyword);
                let name =
                    observed.effective.valid().and_then(|now| now.name_like(&setting.keyword));
                let hint = name.filter(|_| why.starts_with("Bad configuration option"));
                let hint = hint.map(|name| format!("this sshd has `{name}`"));
                spec.setting_error(setting, &message, &why, hint.as_deref()).into()
            }
            None => Refusal::new(
                "candidate-invalid",
                match Reading::new(&plan.candidate, observed.release.clone()).err() {
                    Some(problem) => {
                        format!("sshd refuses the planned configuration: {}: {text}", problem.place)
                    }
                    None => format!("sshd refuses the planned configuration: {text}"),
                },
                "correct the named line, or the spec; nothing was changed",
            )
            .into(),
        }
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.files.remove_tree(&self.folder) {
            tracing::debug!(%error, "cannot remove the scratch copy");
        }
    }
}

/// `FILE line N: WHY` or `FILE: line N: WHY`, as sshd writes it.
fn place(line: &str) -> Option<(PathBuf, usize, String)> {
    let (path, rest) = line.split_once(" line ")?;
    let (number, why) = rest.split_once(": ")?;
    let path = path.trim_end_matches(':');
    Some((PathBuf::from(path), number.parse().ok()?, why.trim().to_owned()))
}

/// The setting of the spec that wrote a line of the candidate.
fn setting_at<'a>(spec: &'a Spec, plan: &Plan, path: &Path, line: usize) -> Option<&'a Setting> {
    let text = plan.candidate.file(path)?.text.split('\n').nth(line.checked_sub(1)?)?;
    let in_blocks = spec.ssh.matches.iter().flat_map(|block| &block.settings);
    spec.ssh.settings.iter().chain(in_blocks).find(|setting| {
        setting
            .lines
            .iter()
            .any(|value| text.trim_start() == format!("{} {value}", setting.keyword))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criteria_of_a_later_release_are_named() {
        let text = "version: 1\nssh:\n  match:\n    - criteria: {User: x, Version: \"OpenSSH_9*\"}\n      settings: {MaxSessions: 1}\n";
        let spec = crate::spec::parse("spec.yaml", text.as_bytes()).unwrap();
        let release = |said: &str| Release::parse(said).unwrap();
        let error = remembered(&spec, &release("OpenSSH_9.2p1, x")).unwrap_err().to_string();
        assert!(
            error.contains("there is no criterion `Version`") && error.contains("4:"),
            "{error}"
        );
        remembered(&spec, &release("OpenSSH_10.0p2, x")).unwrap();
    }

    #[test]
    fn sshds_complaints_name_a_place() {
        let old = place("/etc/ssh/sshd_config: line 3: Bad configuration option: Foo").unwrap();
        let new = place("/etc/ssh/sshd_config line 3: Bad yes/no argument: x").unwrap();
        assert_eq!((old.1, old.2.as_str()), (3, "Bad configuration option: Foo"));
        assert_eq!((new.0.as_path(), new.1), (Path::new("/etc/ssh/sshd_config"), 3));
        assert_eq!(place("sshd: no hostkeys available -- exiting."), None);
    }
}
