//! Arguments. The help texts are the manual.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Moves and hardens sshd in one transaction, and never leaves you locked out.
#[derive(Debug, Parser)]
#[command(name = "harden", version, max_term_width = 80, infer_subcommands = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// What standard output gets: text for people, or one JSON object
    #[arg(long, global = true, value_enum, default_value = "human")]
    pub(crate) output: Format,

    /// Show what happens underneath, on standard error
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text.
    Human,
    /// One JSON object.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what `apply` would change, and change nothing
    ///
    /// Works without root as far as the files can be read, and says what it could not see.
    Plan(PlanArgs),
    /// Make the host what the spec says, prove it, or take everything back
    ///
    /// The work is done by a service of systemd's: a terminal that closes does not stop it. First
    /// the new listener is tried with nothing changed on disk; once it is confirmed, the change
    /// becomes permanent.
    Apply(ApplyArgs),
    /// Prove that the host is still as the spec says, and change nothing
    ///
    /// The same proof as after `apply`: listeners and who holds them, units, values in every Match
    /// block, an SSH key exchange with every address. Exits with 3 where something differs.
    Verify(VerifyArgs),
    /// Say why sshd does not listen where its configuration says, and what mends it
    ///
    /// Names the cause with its evidence: a socket unit that owns the port, an sshd that systemd has lost,
    /// options on the command line, and others. Changes nothing; exits with 3 where it found one.
    Doctor,
    /// Confirm a change, from a new session through the new listener
    Confirm(ConfirmArgs),
    /// Take the open transaction back, or undo an earlier one
    Rollback(RollbackArgs),
    /// Show the transaction that is open
    Status,
    /// List all transactions, oldest first
    History,
    /// Do a transaction (systemd runs this)
    #[command(hide = true)]
    Worker(AgentArgs),
    /// Undo what nobody has confirmed (systemd runs this)
    #[command(hide = true)]
    Guard(AgentArgs),
    /// Keep what a rescue listener needs (systemd runs this)
    #[command(hide = true)]
    Keep(AgentArgs),
    /// Put files right at boot (systemd runs this)
    #[command(hide = true)]
    Recover(AgentArgs),
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// The transaction
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ConfirmArgs {
    /// The word that `harden apply` printed: it names one transaction
    pub(crate) token: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The transaction to undo; without it the open one, else the last that was applied
    pub(crate) id: Option<String>,

    #[command(flatten)]
    pub(crate) terms: TermsArgs,
}

/// How a change is confirmed.
#[derive(Debug, Args)]
pub(crate) struct TermsArgs {
    /// Do not ask before changing anything
    #[arg(long, short)]
    pub(crate) yes: bool,

    /// Who confirms that the new listener works: a person from a new session (the default on a
    /// terminal), or harden itself by key exchanges and logins
    #[arg(long, value_enum, value_name = "WHO")]
    pub(crate) confirm: Option<Confirm>,

    /// How long that may take before everything is undone (90s, 5m); 5m where nothing says
    /// otherwise
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The spec, a YAML file
    pub(crate) spec: PathBuf,

    /// Save the plan, for `harden apply FILE` after a review
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Exit with 3 where there is something to change
    #[arg(long)]
    pub(crate) exit_code: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The spec, a YAML file
    pub(crate) spec: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// The spec, a YAML file; or a plan that `harden plan --out` saved
    #[arg(value_name = "SPEC|PLANFILE")]
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) terms: TermsArgs,

    /// Apply it even though an administrator would be locked out; it is logged who, and why
    #[arg(long)]
    pub(crate) force_lockout_risk: bool,

    /// Apply from the operator's own machine; not supported yet
    #[arg(long, value_name = "USER@HOST")]
    pub(crate) on: Option<String>,
}

/// Who confirms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confirm {
    /// A person, from a new session.
    Operator,
    /// harden itself.
    Probe,
}

impl From<Confirm> for harden::spec::Confirm {
    fn from(confirm: Confirm) -> Self {
        match confirm {
            Confirm::Operator => Self::Operator,
            Confirm::Probe => Self::Probe,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    harden::spec::parse_duration(text)
        .ok_or_else(|| "expected seconds, minutes or hours, at most a day: 90s, 5m, 1h".to_owned())
}
