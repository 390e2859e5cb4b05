//! `harden apply`.

use std::net::SocketAddr;
use std::time::Duration;

use harden::error::{Error, ErrorReport, Refusal, exit};
use harden::observe::{self, Observed, serves};
use harden::plan::Plan;
use harden::report::{human, json};
use harden::saved::SavedPlan;
use harden::spec;
use harden::sshd::reading::Reading;
use harden::step::{Expectation, Op, Role};
use harden::sys::process::Session;
use harden::sys::systemd::Systemd;
use harden::sys::{self, Files, users};
use harden::transaction::follow::{self, Watcher, follow};
use harden::transaction::journal::{self, Terms};
use harden::transaction::machine::{Machine, RealMachine};
use harden::transaction::{Lock, Outcome, decision, front, guard, leftovers};
use harden::verify;

use super::input::{MAX_PLAN, read_input};
use super::plan::{ahead, at_rest, checked_plan, forced_plan};
use super::terminal::{self, Terminal};
use super::{complain, need_root, print_json, say, tell};
use crate::cli::{ApplyArgs, Format, TermsArgs};

/// How long a confirmation may take where nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The exit code of a program that was interrupted: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// How an apply ended, for both kinds of report.
pub(super) struct Ended {
    pub(super) outcome: &'static str,
    pub(super) code: u8,
    pub(super) transaction: Option<String>,
    pub(super) plan: Option<Plan>,
    pub(super) error: Option<ErrorReport>,
}

/// What has become of a transaction whose journal is lost.
pub(super) fn taken_over(id: &str) -> String {
    format!(
        "the journal of transaction {id} is lost; sshd's own unit has taken its listener's place"
    )
}

/// `harden apply`.
pub(crate) fn apply_command(args: &ApplyArgs, format: Format) -> u8 {
    if args.on.is_some() {
        return unsupported(format);
    }
    report(applied(args, format), format)
}

/// Reports an end on standard error, and on standard output where a program reads it.
pub(super) fn report(ended: Result<Ended, Error>, format: Format) -> u8 {
    let ended = ended.unwrap_or_else(|error| {
        complain(&error);
        let (report, code) = (error.report(), error.exit_code());
        Ended { outcome: "refused", code, transaction: None, plan: None, error: Some(report) }
    });
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

fn unsupported(format: Format) -> u8 {
    let report = ErrorReport {
        code: "not-supported".to_owned(),
        message: "--on is not supported yet".to_owned(),
        hint: Some("copy harden and the spec to the host, and run it there".to_owned()),
    };
    tell(|out| human::error(out, &report));
    if format == Format::Json {
        print_json(&json::ApplyReport::new("refused", None, None).with_error(report));
    }
    exit::USAGE
}

/// The host, over the system bus, for a command that begins to change it.
pub(super) fn connect() -> Result<RealMachine, Error> {
    need_root("change sshd and its units; `harden plan` works without")?;
    terminal::hold_signals();
    observe::check_host()?;
    observe::check_clients()?;
    Ok(RealMachine::new(Systemd::connect).map_err(|error| observe::no_bus(&error))?)
}

/// The host for a command that ends a change: it must work where the bus is gone.
pub(super) fn connect_directly() -> Result<RealMachine, Error> {
    terminal::hold_signals();
    Ok(RealMachine::new(Systemd::connect_directly)?)
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
    let machine = connect()?;
    let mut lock = Lock::take(&files)?;
    if let Some((id, _)) = journal::find_open(&files)? {
        lock = match resolve(&machine, lock, &id)? {
            Ok(lock) => lock,
            Err(ended) => return Ok(*ended),
        };
    }
    for id in leftovers::clear_up(&machine)? {
        tracing::warn!("{}", taken_over(&id));
    }
    let look = |ahead| machine.observe_with(ahead);
    let observed = at_rest(ahead(&spec), || ahead(&spec), look)?;
    if let Some(saved) = &saved {
        saved.check_origin(&name, &spec)?;
        saved.check_host(&observed)?;
    }
    let (plan, forced) = if args.force_lockout_risk {
        forced_plan(&files, &spec, &observed)?
    } else {
        (checked_plan(&files, &spec, &observed)?, Vec::new())
    };
    if let Some(saved) = &saved {
        saved.check_changes(&plan)?;
    }
    show(&observed, &plan, &args.terms, format)?;
    if plan.is_empty() {
        return converged(plan, &observed);
    }
    if !args.terms.yes {
        terminal::ask()?;
        SavedPlan::new(&spec, &observed, &plan).check_host(&machine.observe()?)?;
    }
    let terms = Terms { spec: name, forced, ..terms(&args.terms, &spec.safety, &observed, &plan) };
    carry_out(&machine, lock, &observed, plan, terms)
}

/// Shows a plan: to whoever reads standard output, or, where that is a program, to whoever is asked.
pub(super) fn show(
    observed: &Observed,
    plan: &Plan,
    terms: &TermsArgs,
    format: Format,
) -> Result<(), Error> {
    match format {
        Format::Human if !say(|out| human::plan(out, observed, plan)) && !terms.yes => {
            Err(Refusal::new(
                "not-shown",
                "the plan could not be shown, so nobody can be asked",
                "run it on a terminal, or with --yes",
            )
            .into())
        }
        Format::Json if !terms.yes => {
            tell(|out| human::plan(out, observed, plan));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Lets an open transaction end before anything new begins.
fn resolve(machine: &RealMachine, lock: Lock, id: &str) -> Result<Result<Lock, Box<Ended>>, Error> {
    let from = length(machine.files(), id);
    front::resume(machine, lock, id)?;
    let mut terminal = Terminal::new(machine.files());
    terminal.note(&format!("transaction {id} did not end; it has to end first"));
    match watch(machine, id, from, &mut terminal)? {
        Some(Outcome::Applied | Outcome::Refused { .. } | Outcome::RolledBack { .. }) => {
            let lock = Lock::wait(machine.files(), Duration::from_secs(10))?;
            lock.map_or_else(|| Lock::take(machine.files()), Ok).map(Ok)
        }
        other => {
            let ended = ended(id, None, other);
            terminal.note("so nothing new was begun");
            Ok(Err(Box::new(ended)))
        }
    }
}

/// How long a journal is.
pub(super) fn length(files: &Files, id: &str) -> usize {
    let path = journal::path(id);
    files.metadata(&path).map_or(0, |meta| usize::try_from(meta.len()).unwrap_or(0))
}

/// Begins a transaction and follows it to its end.
pub(super) fn carry_out(
    machine: &RealMachine,
    lock: Lock,
    observed: &Observed,
    plan: Plan,
    terms: Terms,
) -> Result<Ended, Error> {
    terminal::refuse_interrupted()?;
    let id = front::begin(machine, lock, observed, &plan, terms)?;
    let mut terminal = Terminal::new(machine.files());
    // From here on the bus may go: systemd is asked directly.
    let outcome = watch(&connect_directly()?, &id, 0, &mut terminal)?;
    Ok(ended(&id, Some(plan), outcome))
}

/// Follows a transaction to its end.
pub(super) fn watch(
    machine: &RealMachine,
    id: &str,
    from: usize,
    watcher: &mut dyn Watcher,
) -> Result<Option<Outcome>, Error> {
    // Who goes down with the system comes back with it.
    let worked_on = || guard::is_worked_on(machine, id).unwrap_or(true) || machine.goes_down();
    let outcome = follow(machine.files(), id, from, watcher, &worked_on)?;
    if outcome.is_some() {
        // The worker still clears up, and what comes next wants the lock.
        Lock::wait(machine.files(), Duration::from_secs(10))?;
    }
    Ok(outcome)
}

/// How a plan is tried and confirmed: what the command line says, else the spec, else what fits the
/// place where harden runs.
pub(super) fn terms(
    args: &TermsArgs,
    safety: &spec::Safety,
    observed: &Observed,
    plan: &Plan,
) -> Terms {
    let fitting =
        if terminal::is_attended() { spec::Confirm::Operator } else { spec::Confirm::Probe };
    let asked = args.confirm.map(spec::Confirm::from);
    let limit = args.timeout.or(safety.timeout).unwrap_or(TIMEOUT);
    let session = Session::present();
    Terms {
        trial: plan.trial.clone(),
        candidate: plan.candidate.clone(),
        options: plan.options.clone(),
        confirm: asked.or(safety.confirm).unwrap_or(fitting),
        limit: limit.as_secs(),
        login: login(observed, plan, &users::operator()),
        operator: Some(users::operator()),
        from: session.map(|session| session.client.ip()),
        at: session.map(|session| session.server.ip()),
        changes: plan.changes.clone(),
        spec: String::new(),
        undoes: None,
        admins: safety.admins.clone(),
        forced: Vec::new(),
    }
}

/// The command that opens a new session through the trial and confirms there, as the person at this
/// terminal would type it.
fn login(observed: &Observed, plan: &Plan, operator: &str) -> Vec<String> {
    let endpoints = plan.trial.iter().find_map(|step| match &step.op {
        Op::Listen(bridge) if bridge.role == Role::Trial => Some(bridge.endpoints.as_slice()),
        _ => None,
    });
    let endpoints = endpoints.unwrap_or_default();
    let port = endpoints.first().map_or(22, SocketAddr::port).to_string();
    let specific = || {
        let fixed = endpoints.iter().map(SocketAddr::ip).find(|ip| !ip.is_unspecified());
        fixed.map_or_else(|| observed.host.clone(), |ip| ip.to_string())
    };
    let reached = Session::present().map(|session| session.server.ip());
    let reached = reached.filter(|address| serves(endpoints, *address));
    let host = reached.map_or_else(specific, |address| address.to_string());
    let reading = Reading::new(&plan.candidate, observed.release.clone());
    let globally = reading.as_ref().ok().and_then(|reading| reading.globally().ok());
    let root_stays_out = globally.is_some_and(|globally| {
        let values = globally.first_args("PermitRootLogin");
        values.first().is_some_and(|value| value.eq_ignore_ascii_case("no"))
    });
    // Somebody else, who can become root.
    let user = if operator == "root" && root_stays_out { "USER" } else { operator };
    let mut words = vec!["ssh".to_owned(), "-p".to_owned(), port];
    if user == "root" {
        words.extend([format!("{user}@{host}"), sys::own_remote_command(true), "confirm".into()]);
    } else {
        let program = sys::own_remote_command(false);
        // sudo may ask for a password.
        words.push("-t".to_owned());
        words.extend([format!("{user}@{host}"), "sudo".into(), program, "confirm".into()]);
    }
    words
}

/// Nothing to do is a claim too: it is checked against what was observed.
pub(super) fn converged(plan: Plan, observed: &Observed) -> Result<Ended, Error> {
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

/// What is wrong where the operator is needed.
fn incomplete(left: &[String]) -> &'static str {
    if left.iter().any(|what| what.ends_with(follow::IS_OPEN)) {
        "It is not over"
    } else {
        "The rollback is incomplete"
    }
}

/// What was proven, as far as the next boot.
fn done(plan: Option<&Plan>) -> &'static str {
    let lasts = |plan: &Plan| {
        let Expectation { units, owner, .. } = &plan.expect;
        units.iter().any(|unit| unit.name == *owner && unit.enabled)
    };
    if plan.is_none_or(lasts) {
        "done: listeners, units and values are proven, and enabled for the next boot"
    } else {
        "done: listeners, units and values are proven; for the next boot nothing is enabled"
    }
}

/// Says how a transaction ended; `None` is one that goes on without this terminal.
pub(super) fn ended(id: &str, plan: Option<Plan>, outcome: Option<Outcome>) -> Ended {
    let report = |code: &str, message: String, hint: &str| {
        Some(ErrorReport { code: code.to_owned(), message, hint: Some(hint.to_owned()) })
    };
    let (outcome, code, error) = match outcome {
        Some(Outcome::Applied) => {
            let done = done(plan.as_ref());
            tell(|out| writeln!(out, "{}", human::note(done)));
            ("applied", exit::OK, None)
        }
        Some(Outcome::Refused { cause }) => (
            "refused",
            exit::REFUSED,
            report("refused", format!("{cause}\nNothing was changed."), "remove the cause first"),
        ),
        Some(Outcome::RolledBack { cause }) => {
            let hint = match cause.as_str() {
                decision::WANTED_BACK => "apply again when you are ready",
                decision::NOT_IN_TIME => {
                    "apply again, and confirm it with the command that is printed then; --timeout \
                     gives more time"
                }
                cause if cause.ends_with(decision::NOT_PROVEN) => {
                    "apply again with --confirm operator, from a terminal of your own"
                }
                _ => "remove the cause, then apply again",
            };
            let message = format!("{cause}\nEverything is as it was before, and that was checked.");
            ("rolled-back", exit::ROLLED_BACK, report("rolled-back", message, hint))
        }
        Some(Outcome::NeedsOperator { cause, left }) => (
            "needs-operator",
            exit::NEEDS_OPERATOR,
            report(
                "rollback-incomplete",
                format!("{cause}\n{}:\n- {}", incomplete(&left), left.join("\n- ")),
                "keep this session open; look at `systemctl status ssh.service ssh.socket`, then \
                 run `harden rollback`: it goes on",
            ),
        ),
        None => (
            "needs-operator",
            INTERRUPTED,
            report(
                "not-followed",
                format!("transaction {id} goes on without this terminal"),
                "`harden status` shows it",
            ),
        ),
    };
    if let Some(error) = error.as_ref().filter(|_| code != INTERRUPTED) {
        tell(|out| human::error(out, error));
    }
    Ended { outcome, code, transaction: Some(id.to_owned()), plan, error }
}
