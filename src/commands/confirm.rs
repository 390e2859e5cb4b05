//! `harden confirm`.

use harden::error::{Error, exit};
use harden::report::human;
use harden::sys::process::Process;
use harden::sys::{self, Files};
use harden::transaction::confirm::{self, Confirmer};
use harden::transaction::journal;
use harden::transaction::{self, Outcome};

use super::apply::{Ended, connect_directly, ended, length, report, watch};
use super::terminal::Terminal;
use super::{need_root, tell};
use crate::cli::{ConfirmArgs, Format};

/// `harden confirm`: counts only from a session that came in through the trial.
pub(crate) fn confirm_command(args: &ConfirmArgs, format: Format) -> u8 {
    report(confirmed(args), format)
}

fn confirmed(args: &ConfirmArgs) -> Result<Ended, Error> {
    need_root("confirm a change")?;
    let files = Files::at("/");
    let who = Confirmer { ancestry: Process::ancestry(), addresses: sys::addresses() };
    let id = confirm::confirm(&files, args.token.as_deref(), &who)?;
    if transaction::outcome(&journal::read(&files, &id)?) == Some(Outcome::Applied) {
        let said = format!("transaction {id} has been permanent before; nothing waits now");
        tell(|out| writeln!(out, "{}", human::note(&said)));
        let transaction = Some(id);
        return Ok(Ended {
            outcome: "applied",
            code: exit::OK,
            transaction,
            plan: None,
            error: None,
        });
    }
    tell(|out| writeln!(out, "{}", human::note("confirmed; making it permanent")));
    let machine = connect_directly()?;
    let mut terminal = Terminal::new(&files);
    let outcome = watch(&machine, &id, length(&files, &id), &mut terminal)?;
    Ok(ended(&id, None, outcome))
}
