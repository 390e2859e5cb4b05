//! `harden plan`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use harden::error::{Error, Refusal, exit};
use harden::lockout::{self, Guards, Risk};
use harden::observe::{self, Ahead, Observed};
use harden::plan::{Plan, plan};
use harden::report::{human, json};
use harden::saved::SavedPlan;
use harden::spec::{self, Spec};
use harden::sys::files::Meta;
use harden::sys::{self, Files, Image, SysError};
use harden::transaction;
use harden::validate::{self, Scratch};

use super::input::read_input;
use super::{complain, print_json, say};
use crate::cli::{Format, PlanArgs};

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
    refuse_open(&files)?;
    let first = ahead(&spec);
    let systemd = observe::connect()?;
    let observed =
        at_rest(first, || ahead(&spec), |ahead| observe::observe(&files, &systemd, ahead))?;
    let plan = checked_plan(&files, &spec, &observed)?;
    if let Some(out) = &args.out {
        save(&files, out, &args.spec, &SavedPlan::new(&spec, &observed, &plan))?;
    }
    Ok((observed, plan))
}

/// Asks sshd, before anything else, what a plan for this spec has to know.
pub(super) fn ahead(spec: &Spec) -> Ahead {
    if spec.ssh.profile.is_some() { Ahead::ask_all() } else { Ahead::ask() }
}

/// How long a unit may be on its way before nothing is planned on it.
const REST: Duration = Duration::from_secs(15);

/// Looks at the host until neither unit is on its way: what runs, and what a plan has to stop, is not known
/// before.
pub(super) fn at_rest(
    first: Ahead,
    ahead: impl Fn() -> Ahead,
    look: impl Fn(Ahead) -> Result<Observed, Error>,
) -> Result<Observed, Error> {
    let deadline = Instant::now() + REST;
    let mut observed = look(first)?;
    if let Some((name, doing)) = observed.on_its_way() {
        tracing::warn!("{name} is {doing}: waiting until it is done");
    }
    while let Some((name, doing)) = observed.on_its_way() {
        if Instant::now() > deadline {
            return Err(Refusal::new(
                "unit-on-its-way",
                format!("{name} is {doing}: what becomes of it is not known"),
                format!("see what holds it up, and mend that first: systemctl status {name}"),
            )
            .into());
        }
        std::thread::sleep(Duration::from_secs(1));
        observed = look(ahead())?;
    }
    Ok(observed)
}

/// While a transaction is open the host is not what it will be.
pub(super) fn refuse_open(files: &Files) -> Result<(), Refusal> {
    match transaction::journal::find_open(files) {
        Ok(Some((id, _))) => Err(Refusal::new(
            "transaction-open",
            format!("transaction {id} is open, so the host is about to change"),
            "`harden status` shows it; try again when it is over",
        )),
        _ => Ok(()),
    }
}

/// Plans, lets sshd read the result, and refuses what would lock an administrator out.
pub(super) fn checked_plan(files: &Files, spec: &Spec, observed: &Observed) -> Result<Plan, Error> {
    let (plan, risks) = examined(files, spec, observed)?;
    lockout::refuse(&risks)?;
    Ok(plan)
}

/// The same, for whoever takes the risk: what it is, too.
pub(super) fn forced_plan(
    files: &Files,
    spec: &Spec,
    observed: &Observed,
) -> Result<(Plan, Vec<String>), Error> {
    let (mut plan, risks) = examined(files, spec, observed)?;
    let risks: Vec<String> = risks.into_iter().map(|risk| risk.message).collect();
    plan.warnings.extend(risks.iter().map(|risk| format!("--force-lockout-risk: {risk}")));
    Ok((plan, risks))
}

/// Plans, lets sshd read the result, and says whom it would lock out.
pub(super) fn examined(
    files: &Files,
    spec: &Spec,
    observed: &Observed,
) -> Result<(Plan, Vec<Risk>), Error> {
    validate::answers(observed)?;
    validate::remembered(spec, &observed.release)?;
    let mut plan = plan(spec, observed)?;
    validate::can_be_written(files, &plan)?;
    let listed = &spec.safety.admins;
    let changes = plan.candidate != observed.config;
    if !lockout::is_asked(listed, observed, &plan) {
        if changes {
            let unseen = "sshd has not read the planned files, and who would be locked out is not \
                          known: that needs root";
            plan.warnings.push(unseen.to_owned());
        }
        let risks = lockout::loopback(observed, &plan).into_iter().collect();
        return Ok((plan, risks));
    }
    let scratch = Scratch::of(files, &plan.candidate)?;
    let guards = Guards::new(files, listed, observed, &plan, &scratch);
    let judge = |said| validate::candidate(said, &scratch, spec, &plan, observed);
    let everybody = if changes { guards.ask_for_everybody() } else { None };
    let (effective, risks) = match everybody {
        Some(said) => (Some(judge(said)?), guards.risks()),
        // Both ask sshd, and wait for it.
        None => std::thread::scope(|scope| {
            let risks = scope.spawn(move || guards.risks());
            let effective = changes.then(|| judge(scratch.ask(&plan))).transpose()?;
            let lost = |_| SysError::new("cannot tell who would be locked out", "the look is lost");
            Ok::<_, Error>((effective, risks.join().map_err(lost)?))
        })?,
    };
    if let Some(then) = effective {
        plan.warnings.extend(validate::passwords_stay(&plan, &then));
        plan.warnings.extend(lockout::lost_host_keys(files, observed, &plan, &then));
    }
    Ok((plan, risks))
}

fn save(files: &Files, out: &Path, spec: &Path, saved: &SavedPlan) -> Result<(), Error> {
    let same = |one: &std::fs::Metadata, two: &std::fs::Metadata| {
        (one.dev(), one.ino()) == (two.dev(), two.ino())
    };
    let taken = std::path::absolute(out).ok().and_then(|out| files.metadata(&out));
    let source = std::path::absolute(spec).ok().and_then(|spec| files.metadata(&spec));
    let is_plan = || {
        let start = std::path::absolute(out).ok().and_then(|out| files.read_limited(&out, 64).ok());
        start.is_some_and(|(start, _)| start.is_empty() || SavedPlan::is_one(&start))
    };
    let wrong = match (&taken, &source) {
        (Some(taken), _) if !taken.is_file() => Some("it is not a regular file"),
        (Some(taken), Some(source)) if same(taken, source) => Some("it is the spec"),
        (Some(_), _) if !is_plan() => Some("it is there already, and is no plan of harden's"),
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
    let meta = Meta::of_this_process(0o600);
    files.put(&out, &Image::File { content: text.into_bytes(), meta })?;
    Ok(())
}
