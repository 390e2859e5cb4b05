//! The command line: arguments in, exit code out.

mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.verbose);
    let code = match &cli.command {
        Command::Plan(args) => commands::plan_command(args, cli.output),
        Command::Apply(args) => commands::apply_command(args, cli.output),
    };
    ExitCode::from(code)
}

/// Logs to standard error: warnings, or everything of harden's own with `--verbose`.
fn log(verbose: bool) {
    let level = if verbose { tracing::Level::DEBUG } else { tracing::Level::WARN };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .without_time()
        .with_writer(std::io::stderr)
        .init();
}
