//! `harden rollback`: takes the open transaction back, or undoes one that was applied.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use harden::error::{Error, Refusal, exit};
use harden::observe::{Ahead, Observed, UNIT_FOLDER};
use harden::plan::{Earlier, Plan, undo};
use harden::spec::Safety;
use harden::sys::{Files, Image};
use harden::transaction::decision::{self, Verdict};
use harden::transaction::follow::Watcher;
use harden::transaction::journal::{self, Record, Terms};
use harden::transaction::machine::{Machine, RealMachine};
use harden::transaction::{self, Lock, Outcome, front, guard, leftovers};
use harden::{lockout, validate, verify};

use super::apply::{
    Ended, carry_out, connect_directly, ended, length, report, show, taken_over, terms, watch,
};
use super::need_root;
use super::plan::at_rest;
use super::terminal::{self, Terminal};
use crate::cli::{Format, RollbackArgs};

/// How long a worker may take to end that has told what is left.
const ENDING: Duration = Duration::from_secs(10);

/// `harden rollback`.
pub(crate) fn rollback_command(args: &RollbackArgs, format: Format) -> u8 {
    report(rolled_back(args, format), format)
}

fn rolled_back(args: &RollbackArgs, format: Format) -> Result<Ended, Error> {
    need_root("take changes back")?;
    let machine = connect_directly()?;
    let files = Files::at("/");
    if let Some((id, records)) = journal::find_open(&files)? {
        if let Some(other) = args.id.as_ref().filter(|other| **other != id) {
            return Err(Refusal::new(
                "transaction-open",
                format!("transaction {id} is open, so {other} has to wait"),
                "`harden rollback` without an id takes the open one back",
            )
            .into());
        }
        return take_back(&machine, &id, &records);
    }
    let lock = Lock::take(&files)?;
    let lost = leftovers::clear_up(&machine)?;
    for id in &lost {
        Terminal::new(&files).note(&taken_over(id));
    }
    // That is what was asked for, and not an earlier change, which stands.
    if let Some(id) = lost.last().filter(|_| args.id.is_none()) {
        let transaction = Some(id.clone());
        let outcome = "rolled-back";
        return Ok(Ended { outcome, code: exit::OK, transaction, plan: None, error: None });
    }
    let ToUndo { id, records, is_last } = to_undo(&files, args.id.as_deref())?;
    let observed = at_rest(Ahead::ask(), Ahead::ask, |ahead| machine.observe_with(ahead))?;
    validate::answers(&observed)?;
    let plan = plan_undo(&files, &id, &records, is_last, &observed)?;
    show(&observed, &plan, &args.terms, format)?;
    if !args.terms.yes {
        terminal::ask()?;
    }
    let asked = Terms {
        spec: format!("rollback of {id}"),
        undoes: Some(id),
        ..terms(&args.terms, &Safety::default(), &observed, &plan)
    };
    carry_out(&machine, lock, &observed, plan, asked)
}

/// Decides the open transaction, and follows it back. That is what was asked for, so its end is no
/// failure.
fn take_back(machine: &RealMachine, id: &str, records: &[Record]) -> Result<Ended, Error> {
    let files = machine.files();
    let begun = records.iter().any(|record| matches!(record, Record::Rollback { .. }));
    if !begun {
        match decision::decide(files, id, Verdict::Rollback, decision::WANTED_BACK) {
            Ok(stands) if stands.verdict == Verdict::Commit => {
                if !guard::is_worked_on(machine, id)? {
                    let from = length(files, id);
                    front::see_through(machine, id)?;
                    let mut terminal = Terminal::new(files);
                    terminal.note(&format!("transaction {id} was confirmed; it is finished first"));
                    watch(machine, id, from, &mut terminal)?;
                }
                return Err(Refusal::new(
                    "too-late",
                    format!("transaction {id} has been confirmed, and becomes permanent"),
                    "when it is done (`harden status`), `harden rollback` undoes it",
                )
                .into());
            }
            Ok(_) => {}
            // The disk is full, or read-only. A worker that starts anew without a decision goes back.
            Err(error) => {
                tracing::warn!(%error, "starting the worker anew");
                let _ = machine.kill(&guard::worker_unit(id));
            }
        }
    }
    let mut terminal = Terminal::new(files);
    terminal.note(&format!("taking transaction {id} back"));
    let joined = begun && guard::is_worked_on(machine, id)?;
    let mut try_it = || {
        let from = length(files, id);
        front::see_through(machine, id)?;
        watch(machine, id, from, &mut terminal)
    };
    let mut outcome = try_it()?;
    if joined && matches!(outcome, Some(Outcome::NeedsOperator { .. })) {
        // What kept that try from its end may have been mended since it began.
        let deadline = Instant::now() + ENDING;
        while guard::is_worked_on(machine, id)? && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        outcome = try_it()?;
    }
    if let Some(Outcome::RolledBack { .. } | Outcome::Refused { .. }) = outcome {
        terminal.note("done: everything is as it was before, and that was checked");
        let transaction = Some(id.to_owned());
        let outcome = "rolled-back";
        return Ok(Ended { outcome, code: exit::OK, transaction, plan: None, error: None });
    }
    Ok(ended(id, None, outcome))
}

/// A transaction that was applied and stands.
struct ToUndo {
    id: String,
    records: Vec<Record>,
    /// No later one stands.
    is_last: bool,
}

/// The transaction to undo: the one that is named, else the last that was applied and stands.
fn to_undo(files: &Files, named: Option<&str>) -> Result<ToUndo, Error> {
    let mut applied = Vec::new();
    let (mut undone, mut undos) = (Vec::new(), Vec::new());
    for id in journal::ids(files) {
        let records = journal::read(files, &id)?;
        if transaction::outcome(&records) != Some(Outcome::Applied) {
            continue;
        }
        match records.first() {
            Some(Record::Begin { terms: Some(terms), .. }) if terms.undoes.is_some() => {
                undone.extend(terms.undoes.clone());
                undos.push(id);
            }
            _ => applied.push((id, records)),
        }
    }
    applied.retain(|(id, _)| !undone.contains(id));
    let last = applied.last().map(|(id, _)| id.clone());
    let found = match named {
        None => applied.pop(),
        Some(named) => applied.into_iter().find(|(id, _)| id == named),
    };
    let found =
        found.map(|(id, records)| ToUndo { is_last: Some(&id) == last.as_ref(), id, records });
    found.ok_or_else(|| {
        let message = match named {
            Some(named) if undone.iter().any(|id| id == named) => {
                format!("transaction {named} has been undone already")
            }
            Some(named) if undos.iter().any(|id| id == named) => {
                format!("transaction {named} is itself an undo: apply the spec again instead")
            }
            Some(named) => format!("no transaction {named} was applied"),
            None => "no transaction that stands was applied".to_owned(),
        };
        let hint = "`harden history` lists all transactions";
        Refusal::new("nothing-to-undo", message, hint).into()
    })
}

fn plan_undo(
    files: &Files,
    id: &str,
    records: &[Record],
    is_last: bool,
    observed: &Observed,
) -> Result<Plan, Error> {
    let Some(Record::Begin { before, expect, .. }) = records.first() else {
        return Err(
            Refusal::new("nothing-to-undo", "its journal is empty", "harden history").into()
        );
    };
    // The last one may be undone whatever has become of the host: that is what it is for.
    let moved = if is_last { Vec::new() } else { verify::state(expect, observed) };
    if !moved.is_empty() {
        return Err(Refusal::new(
            "moved-on",
            format!("the host is no longer as transaction {id} left it:\n- {}", moved.join("\n- ")),
            "undo what came after it first: `harden rollback` undoes the last change",
        )
        .into());
    }
    let (images, written) = transaction::changed(records);
    let mut present: BTreeMap<_, Image> = BTreeMap::new();
    for (path, _) in &images {
        present.insert(path.clone(), files.image(path)?);
    }
    let earlier = Earlier { id, before, images: &images, written: &written };
    let plan = undo(earlier, observed, &present)?;
    let is_unit = |path: &Path| path.starts_with(UNIT_FOLDER);
    let unit = images.iter().find(|(path, image)| {
        is_unit(path) && !present.get(path).is_some_and(|now| now.is_like(image))
    });
    let listener = plan.changes.iter().find(|change| change.concern == "listeners");
    let unit = unit.map(|(path, _)| path.display().to_string());
    if let Some(what) = unit.or(listener.map(|change| change.target.clone())).filter(|_| !is_last) {
        // What came after it goes back to these units, and could not then.
        return Err(Refusal::new(
            "moved-on",
            format!("undoing transaction {id} would change {what}, and later changes build on it"),
            "undo what came after it first: `harden rollback` undoes the last change",
        )
        .into());
    }
    validate::leads_back(files, &plan, before)?;
    lockout::refuse_unread_files(files, observed, &plan)?;
    Ok(plan)
}
