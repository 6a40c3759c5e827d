//! Argument parsing and printing: the only place that prints or exits.
#![allow(clippy::print_stdout)]

mod audit;
mod check;
mod dead_letters;
mod demo;
mod kafka_args;
mod live;
mod output;
mod printing;
mod project_args;
mod query_command;
mod rebuild_command;
mod replay_command;
pub mod run;
mod sensors_command;
mod stop_signal;
mod subscribe;

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Result;

/// SQL files in, Kafka streams through, Parquet out.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, about, max_term_width = 100)]
struct Cli {
    /// Log level: error, warn, info, debug or trace; RUST_LOG overrides it
    #[arg(long, global = true, default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a demo in one process: broker, sensors, pipelines of both customers and a live view
    Demo(demo::Args),
    /// Run the pipelines of all customers, or of the selected ones, against a Kafka cluster
    Run(run::Args),
    /// Query the history with SQL
    Query(query_command::Args),
    /// Check all schema and query files; needs no broker
    Check(check::Args),
    /// Show the plan of a query: batch plan, window state and final plan
    Explain(check::ExplainArgs),
    /// Run a query file over the history as a batch
    Replay(replay_command::Args),
    /// Follow the results of a query
    Subscribe(subscribe::Args),
    /// Simulate a customer's sensors
    Sensors(sensors_command::Args),
    /// Rebuild a customer's state and missing results from Kafka and the history
    Rebuild(rebuild_command::Args),
    /// Verify against Kafka and the tables that no event is lost or duplicated
    Audit(audit::Args),
    /// List and requeue dead letters
    DeadLetters(dead_letters::Args),
    /// Compact the history: merge its small files
    Compact(query_command::CompactArgs),
}

/// Ends the process with exit code 0 when the reader of standard output has closed the pipe, as
/// `millstream audit | head` does. Without this, `println!` panics.
fn exit_on_closed_pipe() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to") && message.contains("Broken pipe") {
            std::process::exit(0);
        }
        default_hook(panic);
    }));
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    exit_on_closed_pipe();
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(log_filter(&cli.log)));
    let draws_live_view = matches!(&cli.command, Command::Demo(args) if args.draws());
    if !draws_live_view {
        let coloured = is_log_coloured(
            std::io::stderr().is_terminal(),
            std::env::var_os("NO_COLOR").as_deref(),
        );
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(coloured)
            .log_internal_errors(false);
        log.with_writer(std::io::stderr).init();
    }
    // At least two threads, so that on one core a computing task does not block the others.
    let threads = crate::pipeline::cores().max(2);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the worker threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(dispatch(cli.command));
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether log lines are coloured. They are on a terminal, unless NO_COLOR has a value (<https://no-color.org>).
fn is_log_coloured(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

/// The log filter: Millstream's own events at `level`, those of libraries at `warn`. deltalake logs
/// a warning for each commit that loses a race; Millstream receives the same error and retries.
fn log_filter(level: &str) -> String {
    let level = level.to_lowercase();
    match level.as_str() {
        "debug" | "trace" => level,
        _ => format!("warn,deltalake_core::kernel::transaction=error,millstream={level}"),
    }
}

async fn dispatch(command: Command) -> Result<ExitCode> {
    crate::failpoint::arm_from_env()?;
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Query(args) => query_command::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::Explain(args) => check::explain(args).await,
        Command::Replay(args) => replay_command::run(args).await,
        Command::Subscribe(args) => subscribe::run(args).await,
        Command::Sensors(args) => sensors_command::run(args).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Rebuild(args) => rebuild_command::run(args).await,
        Command::DeadLetters(args) => dead_letters::run(args).await,
        Command::Compact(args) => query_command::compact(args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_is_coloured_and_only_without_no_color() {
        assert!(is_log_coloured(true, None) && is_log_coloured(true, Some(OsStr::new(""))));
        assert!(!is_log_coloured(true, Some(OsStr::new("1"))));
        assert!(!is_log_coloured(false, None));
    }
}
