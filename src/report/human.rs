//! Text for people: readable at 80 columns, and without colour.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::json::{OpenTransaction, PastTransaction};
use crate::doctor::{Finding, Fix};
use crate::error::ErrorReport;
use crate::observe::Observed;
use crate::plan::{Change, Plan};
use crate::step::{Op, Step};
use crate::transaction::confirm;
use crate::transaction::journal::Terms;

const WIDTH: usize = 80;
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const CYAN: Style = AnsiColor::Cyan.on_default();

/// Writes a plan.
///
/// # Errors
/// Those of the writer.
pub fn plan(out: &mut dyn Write, observed: &Observed, plan: &Plan) -> io::Result<()> {
    let host = format!("{} ({})", observed.host, observed.os);
    if plan.changes.is_empty() {
        writeln!(out, "{BOLD}{host}{BOLD:#}: nothing to do, it is as the spec says.")?;
        return warnings(out, &plan.warnings);
    }
    let count = plan.changes.len();
    let changes = if count == 1 { "change" } else { "changes" };
    writeln!(out, "{BOLD}{host}{BOLD:#}: {count} {changes}")?;
    let files = |change: &&Change| change.diff.is_some();
    section(out, "Files", plan.changes.iter().filter(files), file)?;
    let units = |change: &&Change| change.id.starts_with("unit:");
    section(out, "Units", plan.changes.iter().filter(units), state)?;
    let listeners = |change: &&Change| change.concern == "listeners";
    section(out, "Listeners", plan.changes.iter().filter(listeners), listener)?;
    let total = plan.trial.len() + plan.steps.len() + 1;
    if !plan.trial.is_empty() {
        writeln!(out, "\n{BOLD}Trial{BOLD:#} (nothing on disk changes; a reboot takes it back)")?;
        for (index, step) in plan.trial.iter().enumerate() {
            writeln!(out, "{}", numbered(index + 1, total, &step_title(step)))?;
        }
        writeln!(out, "\n{BOLD}Once it is confirmed{BOLD:#}")?;
    } else {
        writeln!(out, "\n{BOLD}Steps{BOLD:#}")?;
    }
    let first = plan.trial.len() + 1;
    for (index, step) in plan.steps.iter().enumerate() {
        writeln!(out, "{}", numbered(first + index, total, &step_title(step)))?;
    }
    writeln!(out, "{}", numbered(total, total, PROOF))?;
    warnings(out, &plan.warnings)
}

/// Writes what `harden verify` found.
///
/// # Errors
/// Those of the writer.
pub fn verified(
    out: &mut dyn Write,
    faults: &[String],
    changes: &[Change],
    notes: &[String],
    hint: Option<&str>,
) -> io::Result<()> {
    if faults.is_empty() && changes.is_empty() {
        writeln!(out, "{GREEN}as the spec says{GREEN:#}: listeners, units and values are proven")?;
        return warnings(out, notes);
    }
    writeln!(out, "{RED}not as the spec says{RED:#}")?;
    for fault in faults {
        writeln!(out, "  - {}", indented(fault, 4).trim_start())?;
    }
    if !changes.is_empty() {
        writeln!(out, "\n{BOLD}harden apply{BOLD:#} would")?;
        for Change { action, target, .. } in changes {
            writeln!(out, "  {CYAN}{action}{CYAN:#} {target}")?;
        }
    }
    warnings(out, notes)?;
    if hint.is_some() {
        writeln!(out)?;
    }
    write_hint(out, hint)
}

/// Writes what `harden doctor` found.
///
/// # Errors
/// Those of the writer.
pub fn diagnosis(out: &mut dyn Write, findings: &[Finding], unseen: &[String]) -> io::Result<()> {
    if findings.is_empty() {
        writeln!(out, "{GREEN}healthy{GREEN:#}: sshd listens where its configuration says")?;
    }
    for (index, finding) in findings.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        let Finding { cause, message, evidence, fix } = finding;
        writeln!(out, "{RED}{cause}{RED:#}")?;
        writeln!(out, "{}", indented(message, 2))?;
        for fact in evidence {
            writeln!(out, "{}", textwrap::fill(fact, options("  - ", "    ")))?;
        }
        match fix {
            Fix::Command(command) => writeln!(out, "  {CYAN}run{CYAN:#}: {}", in_lines(command))?,
            Fix::Advice(advice) => {
                let text = indented(&format!("fix: {advice}"), 2);
                writeln!(out, "{text}")?;
            }
            Fix::Spec(section) => writeln!(
                out,
                "  {CYAN}harden apply{CYAN:#} with this spec:\n    version: 1\n    ssh: {section}"
            )?,
        }
    }
    warnings(out, &unseen.iter().map(|what| format!("could not see {what}")).collect::<Vec<_>>())
}

/// A command where it is too long for one line: a shell goes on after `&&` and `;`.
fn in_lines(command: &str) -> String {
    if command.len() + 7 <= WIDTH {
        return command.to_owned();
    }
    command.replace("; ", ";\n       ").replace("&& ", "&&\n       ")
}

/// What the last step of every plan is.
const PROOF: &str = "prove: listeners, units and values are as planned, or roll back";

fn section<'a>(
    out: &mut dyn Write,
    title: &str,
    changes: impl Iterator<Item = &'a Change>,
    write: fn(&mut dyn Write, &Change) -> io::Result<()>,
) -> io::Result<()> {
    for (index, change) in changes.enumerate() {
        if index == 0 {
            writeln!(out, "\n{BOLD}{title}{BOLD:#}")?;
        }
        write(out, change)?;
    }
    Ok(())
}

fn file(out: &mut dyn Write, change: &Change) -> io::Result<()> {
    writeln!(out, "  {CYAN}{}{CYAN:#} {}", change.action, change.target)?;
    writeln!(out, "{}", indented(&change.reason, 4))?;
    for line in change.diff.as_deref().unwrap_or_default().lines() {
        let style = match line.as_bytes().first() {
            Some(b'+') => GREEN,
            Some(b'-') => RED,
            _ => DIM,
        };
        writeln!(out, "    {style}{line}{style:#}")?;
    }
    Ok(())
}

fn state(out: &mut dyn Write, change: &Change) -> io::Result<()> {
    let was = change.before.as_deref().unwrap_or("absent");
    let will = change.after.as_deref().unwrap_or("absent");
    let name = &change.target;
    if was == will {
        writeln!(out, "  {name}: {CYAN}{}{CYAN:#} ({was})", change.action)?;
    } else {
        writeln!(out, "  {name}: {RED}{was}{RED:#} -> {GREEN}{will}{GREEN:#}")?;
    }
    writeln!(out, "{}", indented(&change.reason, 4))
}

fn listener(out: &mut dyn Write, change: &Change) -> io::Result<()> {
    let target = &change.target;
    match (&change.before, &change.after) {
        (None, Some(after)) => writeln!(out, "  {GREEN}+ {target:<24} {after}{GREEN:#}"),
        (Some(before), None) => writeln!(out, "  {RED}- {target:<24} {before}{RED:#}"),
        (before, after) => {
            let before = before.as_deref().unwrap_or("nobody");
            let after = after.as_deref().unwrap_or("nobody");
            writeln!(out, "  {YELLOW}~ {target:<24} {before} -> {after}{YELLOW:#}")
        }
    }
}

fn warnings(out: &mut dyn Write, warnings: &[String]) -> io::Result<()> {
    for warning in warnings {
        let text = indented(warning, 9);
        writeln!(out, "\n{YELLOW}warning{YELLOW:#}: {}", text.trim_start())?;
    }
    Ok(())
}

/// The heading of a step while it runs.
pub fn progress(number: usize, total: usize, step: &Step) -> String {
    format!("[{number}/{total}] {}", step_title(step))
}

fn numbered(number: usize, total: usize, title: &str) -> String {
    let digits = total.to_string().len();
    let lead = format!("  {number:>digits$}. ");
    let rest = " ".repeat(lead.len());
    textwrap::fill(title, options(&lead, &rest))
}

/// What a step does, in a few words.
pub fn step_title(step: &Step) -> String {
    match &step.op {
        Op::Put { path, image } => {
            let path = path.display();
            match image {
                crate::sys::Image::Absent => format!("remove {path}"),
                crate::sys::Image::Directory { .. } => format!("create the folder {path}"),
                _ => format!("write {path}"),
            }
        }
        Op::Stop(unit) => format!("stop {unit}"),
        Op::Start(unit) => format!("start {unit}"),
        Op::Restart(unit) => format!("restart {unit}"),
        Op::Enable(unit) => format!("enable {unit}"),
        Op::Disable(unit) => format!("disable {unit}"),
        Op::Unmask(unit) => format!("unmask {unit}"),
        Op::Reload => "let systemd read its unit files again (daemon-reload)".to_owned(),
        Op::ResetFailed(unit) => format!("clear the failed state of {unit}"),
        Op::AwaitListeners => {
            "wait for every listener and run an SSH key exchange with each".to_owned()
        }
        Op::Listen(bridge) => {
            let at: Vec<String> = bridge.endpoints.iter().map(ToString::to_string).collect();
            format!("start the {} listener on {}", bridge.role, at.join(", "))
        }
        Op::Silence(role) => format!("end the {role} listener"),
        Op::End(process) => format!("end the leftover {} (pid {})", process.name, process.pid),
    }
}

/// What the operator is asked to do, and in which time.
pub fn instructions(id: &str, terms: &Terms, left: Duration) -> String {
    let paragraph = |text: &str| textwrap::fill(text, options("", ""));
    let intro = paragraph(
        "The new listener answers. Keep this session open. From your own machine, in another \
         terminal, run:",
    );
    let outro = paragraph(&format!(
        "Put the name that you always use in place of the address where that differs. Without the \
         confirmation everything is taken back in {}.",
        time(left)
    ));
    format!("\n{intro}\n\n    {BOLD}{}{BOLD:#}\n\n{outro}\n", confirm::command(terms, id))
}

/// Minutes and seconds.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        return format!("{seconds} s");
    }
    format!("{} min {} s", seconds / 60, seconds % 60)
}

/// Writes what is open.
///
/// # Errors
/// Those of the writer.
pub fn status(out: &mut dyn Write, open: Option<&OpenTransaction>) -> io::Result<()> {
    let Some(open) = open else {
        return writeln!(out, "no transaction is open; `harden history` lists those that were");
    };
    writeln!(out, "transaction {BOLD}{}{BOLD:#}: {}", open.id, open.state)?;
    if let Some(deadline) = &open.deadline {
        let waits = open.state == "waiting";
        let how =
            if waits { "unless it is confirmed" } else { "at the latest, where it is not done" };
        writeln!(out, "  taken back at {deadline} {how}")?;
    }
    if let Some(command) = &open.confirm {
        writeln!(out, "  to confirm: {command}")?;
    }
    if !open.worked_on && open.state != "needs-operator" {
        let what = "nobody works on it any more; `harden rollback` goes on with it";
        writeln!(out, "{}", indented(what, 2))?;
    }
    if open.state == "needs-operator" {
        let what = "the way back is incomplete; `harden rollback` tries again";
        writeln!(out, "{}", indented(what, 2))?;
    }
    Ok(())
}

/// Writes all transactions, oldest first.
///
/// # Errors
/// Those of the writer.
pub fn history(out: &mut dyn Write, past: &[PastTransaction]) -> io::Result<()> {
    if past.is_empty() {
        return writeln!(out, "no transactions yet");
    }
    for one in past {
        let style = match one.outcome.as_str() {
            "applied" => GREEN,
            "rolled-back" | "refused" => YELLOW,
            _ => RED,
        };
        writeln!(out, "{BOLD}{}{BOLD:#} {style}{}{style:#} {}", one.id, one.outcome, one.spec)?;
        if let Some(cause) = &one.cause {
            writeln!(out, "{}", indented(cause, 4))?;
        }
        if !one.changes.is_empty() {
            writeln!(out, "{}", indented(&one.changes.join(", "), 4))?;
        }
    }
    Ok(())
}

/// A note between steps, wrapped.
pub fn note(text: &str) -> String {
    textwrap::fill(text, options("", "  "))
}

/// Writes an error with its hint.
///
/// # Errors
/// Those of the writer.
pub fn error(out: &mut dyn Write, error: &ErrorReport) -> io::Result<()> {
    let mut lines = error.message.lines();
    let first = indented(lines.next().unwrap_or_default(), 7);
    writeln!(out, "{RED}error{RED:#}: {}", first.trim_start())?;
    for line in lines {
        writeln!(out, "{}", indented(line, 7))?;
    }
    write_hint(out, error.hint.as_deref())
}

fn write_hint(out: &mut dyn Write, hint: Option<&str>) -> io::Result<()> {
    match hint {
        Some(hint) => writeln!(out, "{CYAN}hint{CYAN:#}:  {}", indented(hint, 7).trim_start()),
        None => Ok(()),
    }
}

fn indented(text: &str, indent: usize) -> String {
    let margin = " ".repeat(indent);
    textwrap::fill(text, options(&margin, &margin))
}

fn options<'a>(first: &'a str, rest: &'a str) -> textwrap::Options<'a> {
    textwrap::Options::new(WIDTH)
        .initial_indent(first)
        .subsequent_indent(rest)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
}
