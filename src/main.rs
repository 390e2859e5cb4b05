//! The command line: arguments in, exit code out.

mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    log(cli.verbose);
    let code = match &cli.command {
        Command::Plan(args) => commands::plan_command(args, cli.output),
        Command::Apply(args) => commands::apply_command(args, cli.output),
        Command::Doctor => commands::doctor_command(cli.output),
        Command::Verify(args) => commands::verify_command(args, cli.output),
        Command::Confirm(args) => commands::confirm_command(args, cli.output),
        Command::Rollback(args) => commands::rollback_command(args, cli.output),
        Command::Status => commands::status_command(cli.output),
        Command::History => commands::history_command(cli.output),
        Command::Worker(args) => commands::worker_command(&args.id),
        Command::Guard(args) => commands::guard_command(&args.id),
        Command::Keep(_) => commands::keep_command(),
        Command::Recover(args) => commands::recover_command(&args.id),
    };
    ExitCode::from(code)
}

/// Prints help, the version, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|arg| arg == "json" || arg == "--output=json");
    if json && error.use_stderr() {
        commands::usage_report(&error.render().to_string());
    }
    // A terminal that has gone away is no reason to panic.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
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
