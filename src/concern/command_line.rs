//! sshd's command line (`SSHD_OPTS` in /etc/default/ssh): it wins over every file, unseen.

use super::Part;
use super::listening::Listening;
use crate::error::Refusal;
use crate::observe::{MAIN_CONFIG, Observed};
use crate::spec::Spec;
use crate::sshd::options;
use crate::step::FileChange;

/// The command line as it will be, and the file that differs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rewritten {
    /// The changed environment file.
    pub part: Part,
    /// Options that set keywords, as sshd will get them.
    pub words: Vec<String>,
}

/// Removes options that would defeat the spec from the environment file.
///
/// # Errors
/// Refuses where the option stands in the unit itself, or selects another configuration file.
pub(crate) fn rewrite(
    spec: &Spec,
    observed: &Observed,
    listening: &Listening,
) -> Result<Rewritten, Refusal> {
    let line = &observed.command_line;
    refuse_other_file(observed)?;
    let mut keywords = listening.keywords();
    if !listening.ports.is_empty() {
        // -p, and -4 or -6 where the spec names addresses, all decide where sshd listens.
        keywords.push("ListenAddress".to_owned());
    }
    if spec.ssh.listen.is_some() {
        keywords.push("AddressFamily".to_owned());
    }
    keywords.extend(spec.ssh.settings.iter().map(|setting| setting.keyword.clone()));
    refuse_fixed(observed, &keywords)?;

    let removed: Vec<String> = options::parse(&line.words)
        .into_iter()
        .filter(|option| option.sets_any(&keywords))
        .map(|option| option.words.join(" "))
        .collect();
    if removed.is_empty() {
        return Ok(Rewritten { words: line.settings(), ..Rewritten::default() });
    }
    let kept = options::without(&line.words, &keywords);
    let mut after = line.clone();
    after.words.clone_from(&kept);
    let words = after.settings();
    let Some(file) = &line.file else { return Ok(Rewritten { words, ..Rewritten::default() }) };
    let assignment = format!("{}=\"{}\"", line.variable, kept.join(" "));
    let at = options::variable(&file.text, &line.variable).map(|found| found.line);
    let text: Vec<&str> = file.text.split('\n').collect();
    let after: Vec<&str> = text
        .iter()
        .enumerate()
        .map(|(index, line)| if Some(index) == at { assignment.as_str() } else { line })
        .collect();
    let change = FileChange {
        path: file.real.clone(),
        before: Some(file.text.clone()),
        after: Some(after.join("\n")),
        meta: file.meta.clone(),
        concern: "sshd",
        reason: format!(
            "`{}` on sshd's command line wins over every file, and sshd -T does not show it.",
            removed.join(" ")
        ),
    };
    Ok(Rewritten { part: Part { files: vec![change], warnings: Vec::new() }, words })
}

fn refuse_other_file(observed: &Observed) -> Result<(), Refusal> {
    let unit = &observed.service.name;
    if let Some(words) = observed.command_line.other_file() {
        return Err(Refusal::new(
            "other-config",
            format!("{unit} runs sshd with `{words}`"),
            format!(
                "harden manages {MAIN_CONFIG}: remove the -f option first (systemctl cat {unit}), and \
                 restart {unit}"
            ),
        ));
    }
    if let Some(program) = &observed.other_program {
        return Err(Refusal::new(
            "other-program",
            format!("{unit} runs {}, and harden asks another sshd", program.display()),
            format!(
                "let {unit} run the distribution's sshd (systemctl cat {unit}), or take that away"
            ),
        ));
    }
    let Some(path) = observed.seen_otherwise.first() else { return Ok(()) };
    Err(Refusal::new(
        "other-config",
        format!("the sshd of {unit} sees another {} than this one", path.display()),
        format!("look for BindPaths=, BindReadOnlyPaths= and the like: systemctl cat {unit}"),
    ))
}

/// Options that harden cannot take away: in the unit, or where the running sshd has them from
/// somewhere that nobody can see (a wrapper).
fn refuse_fixed(observed: &Observed, keywords: &[String]) -> Result<(), Refusal> {
    let line = &observed.command_line;
    let service = &observed.service;
    let fixed = options::parse(&line.fixed);
    if let Some(option) = fixed.iter().find(|option| option.sets_any(keywords)) {
        let unit = service.drop_ins.last().unwrap_or(&service.fragment);
        let others = service.environment_files.iter().map(|path| path.display().to_string());
        let places: Vec<String> = [unit.display().to_string()].into_iter().chain(others).collect();
        return Err(Refusal::new(
            "shadowed",
            format!(
                "{} starts sshd with `{}`, which wins over the spec (look in {})",
                service.name,
                option.words.join(" "),
                places.join(", ")
            ),
            "remove the option there first; it is not in a form that harden rewrites",
        ));
    }
    let known: Vec<_> = options::parse(&line.all()).into_iter().filter_map(|o| o.sets).collect();
    let running = options::parse(&line.running);
    // Options that were taken out of a file since sshd started go with the restart.
    let hidden = running.iter().find(|option| {
        !observed.stale
            && option.sets_any(keywords)
            && !option.sets.iter().all(|set| known.contains(set))
    });
    let Some(option) = hidden else { return Ok(()) };
    Err(Refusal::new(
        "shadowed",
        format!(
            "sshd (pid {}) runs with `{}`, which wins over the spec and stands in no file that \
             harden knows",
            service.main_pid,
            option.words.join(" ")
        ),
        format!(
            "if it was taken out of a file since sshd started: systemctl restart {0}; else find what \
             adds it: systemctl cat {0}",
            service.name
        ),
    ))
}
