//! Text for people: readable at 80 columns, and without colour.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use crate::error::ErrorReport;
use crate::observe::Observed;
use crate::plan::{Change, Op, Plan, Step};

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
    writeln!(out, "\n{BOLD}Steps{BOLD:#}")?;
    let total = plan.steps.len() + 1;
    for (index, step) in plan.steps.iter().enumerate() {
        writeln!(out, "{}", numbered(index + 1, total, &step_title(step)))?;
    }
    writeln!(out, "{}", numbered(total, total, PROOF))?;
    warnings(out, &plan.warnings)
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
        Op::End(process) => format!("end the leftover {} (pid {})", process.name, process.pid),
    }
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
    match &error.hint {
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
