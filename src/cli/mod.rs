//! Argument parsing and printing: the only place that prints or exits.
#![allow(clippy::print_stdout)]

mod audit;
mod check;
mod dead_letters;
mod demo;
mod live;
mod output;
mod query_command;
mod rebuild_command;
mod replay_command;
pub mod run;
mod sensors_command;
mod subscribe;

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::catalog::{self, Catalog, Customer};
use crate::source::KafkaConfig;
use crate::{Error, Result};

/// SQL files in, Kafka streams through, Parquet out.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, about, max_term_width = 100)]
struct Cli {
    /// What the log shows: error, warn, info, debug or trace; RUST_LOG overrides it
    #[arg(long, global = true, default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Try it: a broker, sensors, both customers' pipelines and a live view in one process
    Demo(demo::Args),
    /// Run the pipelines of all customers, or of those named, against a Kafka
    Run(run::Args),
    /// Ask history a question in SQL
    Query(query_command::Args),
    /// Check every schema and query file, without a broker
    Check(check::Args),
    /// Show how a query is cut: front, kept state, closing plan
    Explain(check::ExplainArgs),
    /// Run a query file over history, as a batch
    Replay(replay_command::Args),
    /// Follow the results of a query
    Subscribe(subscribe::Args),
    /// Simulate a customer's sensors
    Sensors(sensors_command::Args),
    /// Make a customer's state, and results that are missing, again from Kafka and history
    Rebuild(rebuild_command::Args),
    /// Prove from Kafka and the tables that nothing is lost and nothing is twice
    Audit(audit::Args),
    /// Look after dead letters
    DeadLetters(dead_letters::Args),
    /// Merge the small files of history
    Compact(query_command::CompactArgs),
}

/// Where the project's files and its data lie.
#[derive(Debug, Clone, Args)]
pub struct Project {
    /// The folder that holds schemas/ and queries/
    #[arg(long, default_value = ".")]
    pub project: PathBuf,
    /// The folder of history, snapshots and status
    #[arg(long, default_value = ".millstream")]
    pub data_dir: PathBuf,
    /// Only this customer; may be said several times
    #[arg(long = "customer", value_name = "CUSTOMER")]
    pub customers: Vec<String>,
}

/// How to reach Kafka.
#[derive(Debug, Clone, Args)]
pub struct Kafka {
    /// The brokers, host:port[,host:port]
    #[arg(long, env = "MILLSTREAM_BROKERS")]
    pub brokers: Option<String>,
    /// A setting of librdkafka, such as security.protocol=SASL_SSL; may be said several times
    #[arg(long = "kafka", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// A file of such settings, a line each
    #[arg(long, value_name = "FILE")]
    pub kafka_config: Option<PathBuf>,
}

impl Kafka {
    /// The settings together; the command line wins over the file.
    pub fn config(&self) -> Result<KafkaConfig> {
        // `MILLSTREAM_BROKERS=` names none.
        let brokers = self.brokers.as_deref().filter(|brokers| !brokers.trim().is_empty());
        KafkaConfig::from_flags(brokers, self.kafka_config.as_deref(), &self.settings)
    }
}

impl Project {
    /// All schema and query files; prints every error and gives `None` if there is one.
    pub fn load(&self) -> Option<Arc<Catalog>> {
        match catalog::load(&self.project, &self.customers) {
            Ok(catalog) => Some(Arc::new(catalog)),
            Err(errors) => {
                print_errors(&errors);
                None
            }
        }
    }
}

/// The customer of that name.
pub fn customer(catalog: &Catalog, name: &str) -> Result<Arc<Customer>> {
    let found = catalog.customers.iter().find(|c| c.name == name).cloned();
    found.ok_or_else(|| {
        let names: Vec<_> = catalog.customers.iter().map(|c| c.name.as_str()).collect();
        Error::config(format!("there is no customer '{name}'"))
            .hint(format!("customers are the files of schemas/: {}", names.join(", ")))
    })
}

/// Prints errors to standard error, one after the other.
pub fn print_errors(errors: &[Error]) {
    for error in errors {
        eprintln!("error: {error}\n");
    }
}

/// A path for people: relative where that is shorter.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// `millstream audit | head`: who has read enough closes the pipe, and that is no failure of ours.
fn end_with_the_pipe() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to") && message.contains("Broken pipe") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    end_with_the_pipe();
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(log_filter(&cli.log)));
    let interactive_view = matches!(&cli.command, Command::Demo(args) if args.draws());
    if !interactive_view {
        let colours =
            colours(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref());
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(colours)
            .log_internal_errors(false);
        log.with_writer(std::io::stderr).init();
    }
    // On one core too, a task that computes must not stop the others.
    let threads = crate::pipeline::cores().max(2);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no threads could be started: {error}");
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

/// Whether the log is coloured: on a terminal, unless NO_COLOR has a value (<https://no-color.org>).
fn colours(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Our own events at `level`, the libraries' only from warnings on. deltalake warns of each commit
/// that loses a race, which is an error that we get too and try again.
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

/// As [`stop_signal_saying`], for pipelines.
pub fn stop_signal() -> tokio::sync::watch::Receiver<bool> {
    stop_signal_saying("stopping: committing and taking a snapshot; once more to stop at once")
}

/// True once SIGINT or SIGTERM came, of which the log says `what`; a second one ends the process
/// at once, which loses nothing.
pub fn stop_signal_saying(what: &'static str) -> tokio::sync::watch::Receiver<bool> {
    let (sender, receiver) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("{what}");
        sender.send_replace(true);
        wait_for_signal().await;
        std::process::exit(130);
    });
    receiver
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    match (interrupt, terminate) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_is_coloured_and_only_without_no_color() {
        assert!(colours(true, None) && colours(true, Some(OsStr::new(""))));
        assert!(!colours(true, Some(OsStr::new("1"))));
        assert!(!colours(false, None));
    }

    #[test]
    fn empty_brokers_are_none_and_a_file_may_name_them() {
        let kafka = |settings: &[&str]| Kafka {
            brokers: Some(" ".to_owned()),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            kafka_config: None,
        };
        let error = kafka(&[]).config().unwrap_err().to_string();
        assert!(error.contains("no Kafka brokers are configured"), "{error}");
        assert_eq!(kafka(&["bootstrap.servers=a:1"]).config().unwrap().brokers, "a:1");
    }
}
