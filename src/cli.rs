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
    Apply(ApplyArgs),
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
pub(crate) struct ApplyArgs {
    /// The spec, a YAML file; or a plan that `harden plan --out` saved
    #[arg(value_name = "SPEC|PLANFILE")]
    pub(crate) file: PathBuf,

    /// Do not ask before changing anything
    #[arg(long, short)]
    pub(crate) yes: bool,

    /// Who confirms that the new listener works; `operator` is not supported yet
    #[arg(long, value_enum, value_name = "WHO")]
    pub(crate) confirm: Option<Confirm>,

    /// How long the changes may take to prove themselves before they are undone (90s, 5m)
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) timeout: Option<Duration>,

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

fn duration(text: &str) -> Result<Duration, String> {
    harden::spec::parse_duration(text)
        .ok_or_else(|| "expected seconds, minutes or hours, at most a day: 90s, 5m, 1h".to_owned())
}
