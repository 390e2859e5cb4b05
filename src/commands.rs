//! The commands: each runs the pipeline as far as it needs it, and reports.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anstream::AutoStream;
use harden::error::{Error, ErrorReport, Refusal, exit};
use harden::observe::{self, Ahead, Observed};
use harden::plan::{Plan, Step, plan};
use harden::report::{human, json};
use harden::saved::SavedPlan;
use harden::spec::{self, Spec};
use harden::sys::files::Meta;
use harden::sys::{self, Files, Image};
use harden::transaction::machine::{Machine, RealMachine};
use harden::transaction::{self, Lock, Outcome, Progress};
use harden::{validate, verify};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::cli::{ApplyArgs, Confirm, Format, PlanArgs};

/// How long a transaction may take where nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(300);
/// A saved plan holds the files that it was made for.
const MAX_PLAN: u64 = 64 * 1024 * 1024;

/// `harden plan`.
pub(crate) fn plan_command(args: &PlanArgs, format: Format) -> u8 {
    match planned(args) {
        Ok((observed, plan)) => {
            let written = match format {
                Format::Human => say(|out| human::plan(out, &observed, &plan)),
                Format::Json => print_json(&json::PlanReport::of(&plan)),
            };
            if !written {
                return exit::REFUSED;
            }
            let pending = args.exit_code && !plan.changes.is_empty();
            if pending { exit::PENDING } else { exit::OK }
        }
        Err(error) => {
            if format == Format::Json {
                print_json(&json::PlanReport::failed(error.report()));
            }
            complain(&error);
            error.exit_code()
        }
    }
}

fn planned(args: &PlanArgs) -> Result<(Observed, Plan), Error> {
    let files = Files::at("/");
    let bytes = read_input(&files, &args.spec, spec::MAX_SIZE)?;
    let spec = spec::parse(&args.spec.to_string_lossy(), &bytes)?;
    observe::check_host()?;
    let ahead = Ahead::ask();
    let observed = observe::observe(&files, &observe::connect()?, ahead)?;
    let mut plan = checked_plan(&files, &spec, &observed)?;
    if let Ok(Some((id, _))) = transaction::journal::find_open(&files) {
        plan.warnings.push(format!(
            "transaction {id} did not end: `harden apply` takes it back first, and then plans \
             again"
        ));
    }
    if let Some(out) = &args.out {
        save(&files, out, &args.spec, &SavedPlan::new(&spec, &observed, &plan))?;
    }
    Ok((observed, plan))
}

/// Plans, and lets sshd read the result.
fn checked_plan(files: &Files, spec: &Spec, observed: &Observed) -> Result<Plan, Error> {
    let mut plan = plan(spec, observed)?;
    if plan.candidate != observed.config && validate::candidate(files, spec, &plan)?.is_none() {
        plan.warnings.push("sshd has not read the planned files: that needs root".to_owned());
    }
    Ok(plan)
}

fn save(files: &Files, out: &Path, spec: &Path, saved: &SavedPlan) -> Result<(), Error> {
    let same = |one: &std::fs::Metadata, two: &std::fs::Metadata| {
        (one.dev(), one.ino()) == (two.dev(), two.ino())
    };
    let taken = std::path::absolute(out).ok().and_then(|out| files.metadata(&out));
    let source = std::path::absolute(spec).ok().and_then(|spec| files.metadata(&spec));
    let wrong = match (&taken, &source) {
        (Some(taken), _) if !taken.is_file() => Some("it is not a regular file"),
        (Some(taken), Some(source)) if same(taken, source) => Some("it is the spec"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        return Err(Refusal::new(
            "bad-output",
            format!("cannot save the plan to {}: {wrong}", out.display()),
            "name a file of its own: --out plan.json",
        )
        .into());
    }
    let text = serde_json::to_string(saved)
        .map_err(|error| sys::SysError::new("cannot save the plan", error))?;
    let out = std::path::absolute(out)
        .map_err(|error| sys::SysError::new(format!("cannot write {}", out.display()), error))?;
    let meta = Meta {
        mode: 0o600,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        xattrs: Vec::new(),
    };
    files.put(&out, &Image::File { content: text.into_bytes(), meta })?;
    Ok(())
}

/// Reads a spec or a plan, and refuses one that somebody else could have written.
fn read_input(files: &Files, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let absolute = std::path::absolute(path)
        .map_err(|error| sys::SysError::new(format!("cannot read {}", path.display()), error))?;
    let (bytes, meta) = files.read_limited(&absolute, limit + 1)?;
    let me = nix::unistd::geteuid().as_raw();
    let shown = path.display();
    if meta.mode() & 0o022 != 0 {
        return Err(Refusal::new(
            "writable-by-others",
            format!("{shown} can be written by others (mode {:04o})", meta.mode() & 0o7777),
            format!("whoever can change it decides how you log in: chmod go-w {shown}"),
        )
        .into());
    }
    if meta.uid() != me && meta.uid() != 0 {
        return Err(Refusal::new(
            "owned-by-another",
            format!("{shown} belongs to another user (uid {})", meta.uid()),
            format!("make it yours after reading it: chown root {shown}"),
        )
        .into());
    }
    Ok(bytes)
}

/// How an apply ended, for both kinds of report.
struct Ended {
    outcome: &'static str,
    code: u8,
    transaction: Option<String>,
    plan: Option<Plan>,
    error: Option<ErrorReport>,
}

/// `harden apply`.
pub(crate) fn apply_command(args: &ApplyArgs, format: Format) -> u8 {
    if let Some(code) = unsupported(args, format) {
        return code;
    }
    let ended = match applied(args, format) {
        Ok(ended) => ended,
        Err(error) => {
            complain(&error);
            let report = error.report();
            let code = error.exit_code();
            Ended { outcome: "refused", code, transaction: None, plan: None, error: Some(report) }
        }
    };
    if format == Format::Json {
        let mut report =
            json::ApplyReport::new(ended.outcome, ended.transaction, ended.plan.as_ref());
        if let Some(error) = ended.error {
            report = report.with_error(error);
        }
        print_json(&report);
    }
    ended.code
}

fn unsupported(args: &ApplyArgs, format: Format) -> Option<u8> {
    let what = if args.on.is_some() {
        "--on"
    } else if args.confirm == Some(Confirm::Operator) {
        "--confirm operator"
    } else {
        return None;
    };
    let report = ErrorReport {
        code: "not-supported".to_owned(),
        message: format!("{what} is not supported yet"),
        hint: Some("this version confirms by itself: --confirm probe".to_owned()),
    };
    tell(|out| human::error(out, &report));
    if format == Format::Json {
        print_json(&json::ApplyReport::new("refused", None, None).with_error(report));
    }
    Some(exit::USAGE)
}

fn applied(args: &ApplyArgs, format: Format) -> Result<Ended, Error> {
    let files = Files::at("/");
    let name = args.file.to_string_lossy().into_owned();
    let bytes = read_input(&files, &args.file, MAX_PLAN)?;
    let saved = SavedPlan::read(&name, &bytes)?;
    let spec = match &saved {
        Some(saved) => saved.spec()?,
        None => spec::parse(&name, &bytes)?,
    };
    if !sys::is_root() {
        return Err(not_root().into());
    }
    // Before the first thread: a signal goes to any thread that does not hold it.
    signals(SigmaskHow::SIG_BLOCK);
    observe::check_host()?;
    let lock = Lock::take(&files)?;
    let ahead = Ahead::ask();
    let machine = RealMachine::new(observe::connect()?);
    let observed = match transaction::resolve_open(&machine, &lock, &mut Terminal)? {
        None => machine.observe_with(ahead)?,
        Some((id, outcome @ Outcome::NeedsOperator { .. })) => {
            return Ok(ended(Some(id), None, outcome));
        }
        Some(_) => machine.observe()?,
    };
    if let Some(saved) = &saved {
        saved.check_origin(&name, &spec)?;
        saved.check_host(&observed)?;
    }
    let plan = checked_plan(&files, &spec, &observed)?;
    if format == Format::Human {
        say(|out| human::plan(out, &observed, &plan));
    }
    if plan.steps.is_empty() {
        return converged(plan, &observed);
    }
    if !args.yes {
        ask()?;
        SavedPlan::new(&spec, &observed, &plan).check_host(&machine.observe()?)?;
    }
    let limit = args.timeout.or(spec.timeout).unwrap_or(TIMEOUT);
    let (id, outcome) =
        transaction::apply(&machine, &lock, &observed, &plan, limit, &mut Terminal)?;
    Ok(ended(Some(id), Some(plan), outcome))
}

/// Nothing to do is a claim too: it is checked against what was observed.
fn converged(plan: Plan, observed: &Observed) -> Result<Ended, Error> {
    let mut faults = verify::state(&plan.expect, observed);
    faults.extend(verify::settings(&plan.expect, observed));
    if !faults.is_empty() {
        return Err(Refusal::new(
            "not-converged",
            format!("the files are as the spec says, but: {}", faults.join("; ")),
            "harden knows no step that mends this; nothing was changed",
        )
        .into());
    }
    Ok(Ended {
        outcome: "converged",
        code: exit::OK,
        transaction: None,
        plan: Some(plan),
        error: None,
    })
}

fn not_root() -> Refusal {
    Refusal::new(
        "not-root",
        "only root can change sshd and its units",
        "run it with sudo; `harden plan` works without root",
    )
}

fn ended(transaction: Option<String>, plan: Option<Plan>, outcome: Outcome) -> Ended {
    let (outcome, code, error) = match outcome {
        Outcome::Applied { notes } => {
            for note in notes {
                Terminal.note(&note);
            }
            Terminal.note(
                "done: listeners, units and values are proven, and enabled for the next boot",
            );
            ("applied", exit::OK, None)
        }
        Outcome::RolledBack { cause } => (
            "rolled-back",
            exit::ROLLED_BACK,
            Some(ErrorReport {
                code: "rolled-back".to_owned(),
                message: format!("{cause}\nEverything is as it was before, and that was checked."),
                hint: Some("remove the cause, then apply again".to_owned()),
            }),
        ),
        Outcome::NeedsOperator { cause, left } => (
            "needs-operator",
            exit::NEEDS_OPERATOR,
            Some(ErrorReport {
                code: "rollback-incomplete".to_owned(),
                message: format!("{cause}\nThe rollback is incomplete:\n- {}", left.join("\n- ")),
                hint: Some(
                    "keep this session open; look at `systemctl status ssh.service ssh.socket`, \
                     then run harden again: it goes on with the rollback"
                        .to_owned(),
                ),
            }),
        ),
    };
    if let Some(error) = &error {
        tell(|out| human::error(out, error));
    }
    Ended { outcome, code, transaction, plan, error }
}

/// Asks on the terminal; anything but yes changes nothing.
fn ask() -> Result<(), Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Refusal::new(
            "no-terminal",
            "there is no terminal to ask on",
            "look at the plan, then run it with --yes",
        )
        .into());
    }
    tell(|out| {
        write!(out, "\nApply these changes? [y/N] ")?;
        out.flush()
    });
    let mut answer = String::new();
    signals(SigmaskHow::SIG_UNBLOCK);
    let read = std::io::stdin().lock().read_line(&mut answer);
    signals(SigmaskHow::SIG_BLOCK);
    if read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Refusal::new("declined", "not applied; nothing was changed", "answer y to apply").into())
}

/// Holds or releases the signals by which a terminal ends a program: Ctrl-C, a hangup or a kill
/// must not leave a transaction half done.
fn signals(how: SigmaskHow) {
    let mut held = SigSet::empty();
    for signal in
        [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGTSTP]
    {
        held.add(signal);
    }
    if let Err(error) = nix::sys::signal::pthread_sigmask(how, Some(&held), None) {
        tracing::warn!(%error, "signals are not held");
    }
}

/// Progress on standard error; a terminal that has gone away is no reason to stop.
struct Terminal;

impl Progress for Terminal {
    fn step(&mut self, number: usize, total: usize, step: &Step) {
        tell(|out| writeln!(out, "{}", human::progress(number, total, step)));
    }

    fn note(&mut self, text: &str) {
        tell(|out| writeln!(out, "{}", human::note(text)));
    }
}

fn complain(error: &Error) {
    match error {
        Error::Spec(spec) => tell(|out| writeln!(out, "{}", spec.rendered)),
        other => tell(|out| human::error(out, &other.report())),
    }
}

/// Writes to standard output, in colour where it is a terminal that wants it; says whether that
/// worked. A reader that has read enough (`| head`) is no failure.
fn say(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> bool {
    let mut out = AutoStream::auto(std::io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            tell(|err| writeln!(err, "cannot write to standard output: {error}"));
            false
        }
        _ => true,
    }
}

/// Writes to standard error.
fn tell(write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) {
    let mut out = AutoStream::auto(std::io::stderr().lock());
    let _ = write(&mut out);
}

fn print_json(report: &impl serde::Serialize) -> bool {
    say(|out| {
        let text = serde_json::to_string(report)?;
        writeln!(out, "{text}")
    })
}

/// Wrong usage, for programs: one JSON object like any other end.
pub(crate) fn usage_report(message: &str) {
    let report = ErrorReport {
        code: "usage".to_owned(),
        message: message.trim().to_owned(),
        hint: Some("harden --help".to_owned()),
    };
    print_json(&json::ApplyReport::new("refused", None, None).with_error(report));
}
