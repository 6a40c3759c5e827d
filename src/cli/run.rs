//! `millstream run`: pipelines against a real Kafka.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::catalog::{self, Catalog, duration};
use crate::cli::kafka_args::KafkaArgs;
use crate::cli::project_args::ProjectArgs;
use crate::pipeline::{self, Mode, OnMissingOffsets, PipelineConfig, Reset, cores};
use crate::serve;
use crate::telemetry::status::Status;
use crate::telemetry::{Metrics, StatusBoard};
use crate::time::Clock;
use crate::{Error, Result};

/// Run the pipelines of all customers, or of those named.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    /// Create the topics that are missing
    #[arg(long)]
    create_topics: bool,
    /// Read to the present end of every topic, commit, take a snapshot and exit; windows stay open
    #[arg(long, conflicts_with = "drain")]
    until_end: bool,
    /// Read to the present end, close every window and finish the pipeline for good
    #[arg(long)]
    drain: bool,
    /// Drop the state of a CUSTOMER or of one CUSTOMER/QUERY and continue at the recorded offsets
    #[arg(long, value_name = "NAME")]
    reset: Vec<String>,
    /// What becomes of offsets that are needed and that Kafka no longer has: stop with an error, or
    /// go on after them and record that
    #[arg(long, value_name = "stop|skip", default_value = "stop", value_parser = on_gap)]
    on_gap: OnMissingOffsets,
    /// Whether events and results are written to history
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = on_off,
          action = clap::ArgAction::Set)]
    history: bool,
    /// Minimum time between commits, such as '100 ms' (default: 25 ms, or twice the commit time)
    #[arg(long, value_name = "TIME", value_parser = time)]
    commit_interval: Option<Duration>,
    /// The time between snapshots: about what a restart has to run again at most
    #[arg(long, value_name = "TIME", default_value = "10 s", value_parser = time)]
    snapshot_interval: Duration,
    /// Threads that decode and aggregate, for each customer (default: one a core)
    #[arg(long, value_name = "N")]
    parallelism: Option<NonZeroUsize>,
    /// Record digests of all state with each epoch, and compare them in recovery (slow: for tests)
    #[arg(long, hide = true)]
    check_replays: bool,
    /// Where /metrics, /healthz, /readyz and the status page are served
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<SocketAddr>,
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

fn on_gap(text: &str) -> Result<OnMissingOffsets, String> {
    match text {
        "stop" => Ok(OnMissingOffsets::Stop),
        "skip" => Ok(OnMissingOffsets::Skip),
        _ => Err("stop or skip".to_owned()),
    }
}

/// A span of time with its unit, as in SQL options.
pub fn time(text: &str) -> Result<Duration, String> {
    let micros = duration::parse(text).map_err(|e| e.to_string())?;
    Ok(Duration::from_micros(u64::try_from(micros).map_err(|_| "a span of time is positive")?))
}

/// Runs until the mode's end, a signal, or the first error.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Some((catalog, broken)) = load_sound(&args.project) else { return Ok(ExitCode::FAILURE) };
    let mode = match (args.until_end, args.drain) {
        (true, _) => Mode::UntilEnd,
        (_, true) => Mode::Drain,
        _ => Mode::Follow,
    };
    check_reset(&catalog, &args.reset)?;
    let options = PipelineConfig {
        kafka: args.kafka.config()?,
        data_dir: args.project.data_dir.clone(),
        create_topics: args.create_topics,
        mode,
        history: args.history,
        commit_interval: args.commit_interval,
        snapshot_interval: args.snapshot_interval,
        reset: Reset(args.reset.clone()),
        parallelism: args.parallelism.map_or_else(cores, NonZeroUsize::get),
        on_missing_offsets: args.on_gap,
        check_replays: args.check_replays,
        clock: Clock::system(),
        metrics: Arc::new(Metrics::new()?),
        board: StatusBoard::new(Some(args.project.data_dir.join("status"))),
    };
    options.board.expect(catalog.customers.iter().map(|c| c.name.as_str()));
    for customer in &broken {
        let failed = Some("its files have errors: see `millstream check`".to_owned());
        options.board.publish(Status { customer: customer.clone(), failed, ..Status::default() });
    }
    let stop = crate::cli::stop_signal::stop_signal();
    let server = match args.http {
        Some(address) => {
            Some(serve::http::start(address, options.metrics.clone(), options.board.clone()).await?)
        }
        None => None,
    };
    if let Some(server) = &server {
        tracing::info!(address = %server.address(), "serving /metrics, /healthz and /readyz");
    }
    let result = run_all(catalog, options, stop).await;
    if let Some(server) = server {
        server.stop().await;
    }
    result.map(|()| if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The customers whose files are right, and the names of the others; prints every error. `None`:
/// there is nobody to run.
fn load_sound(project: &ProjectArgs) -> Option<(Arc<Catalog>, Vec<String>)> {
    let errors = match catalog::load(&project.project, &project.customers) {
        Ok(catalog) => return Some((Arc::new(catalog), Vec::new())),
        Err(errors) => errors,
    };
    crate::cli::printing::print_errors(&errors);
    let (all, _) = catalog::load_with_errors(&project.project, &project.customers).ok()?;
    let names = all.customers.iter().map(|customer| customer.name.clone());
    let is_sound =
        |name: &String| catalog::load(&project.project, std::slice::from_ref(name)).is_ok();
    let (sound, broken): (Vec<_>, Vec<_>) = names.partition(is_sound);
    if sound.is_empty() {
        return None;
    }
    let catalog = catalog::load(&project.project, &sound).ok()?;
    for customer in &broken {
        tracing::error!(customer, "not started: its files have errors; the other customers run");
    }
    Some((Arc::new(catalog), broken))
}

/// Runs every customer's pipeline to its end. One that fails leaves the others alone.
///
/// # Errors
/// Who failed; of several customers each error is in the log as soon as it comes.
pub async fn run_all(
    catalog: Arc<Catalog>,
    options: PipelineConfig,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut pipelines = JoinSet::new();
    for customer in &catalog.customers {
        let name = customer.name.clone();
        let running =
            pipeline::run(catalog.clone(), customer.clone(), options.clone(), stop.clone());
        pipelines.spawn(async move {
            let result = on_a_thread(&name, running).await;
            (name, result)
        });
    }
    let mut failed = Vec::new();
    while let Some(joined) = pipelines.join_next().await {
        let (customer, result) =
            joined.map_err(|e| Error::internal("a pipeline ended abruptly").because(e))?;
        let Err(error) = result else { continue };
        if catalog.customers.len() == 1 {
            return Err(error);
        }
        let others = pipelines.len();
        let goes_on = if others > 0 { "; the others go on" } else { "" };
        tracing::error!(customer, %error, "the pipeline has stopped{goes_on}");
        failed.push((customer, error));
    }
    let Some((_, first)) = failed.first() else { return Ok(()) };
    let names: Vec<_> = failed.iter().map(|(customer, _)| customer.as_str()).collect();
    Err(Error::new(first.kind, format!("the pipelines of {} failed", names.join(", ")))
        .detail("their errors are in the log above"))
}

/// Runs a customer's pipeline on a thread of its own: it computes for long at a time, and neither its
/// snapshots nor its history nor /metrics may wait for that.
async fn on_a_thread(
    customer: &str,
    running: impl Future<Output = Result<()>> + Send + 'static,
) -> Result<()> {
    let (sender, ended) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name(format!("pipeline-{customer}"))
        .spawn(move || sender.send(runtime.block_on(running)))
        .map_err(|e| Error::internal("a pipeline's thread cannot be started").because(e))?;
    // Without a word it has panicked.
    ended.await.map_err(|_| Error::internal("a pipeline ended abruptly")).flatten()
}

fn check_reset(catalog: &Catalog, reset: &[String]) -> Result<()> {
    for name in reset {
        let (customer, query) = match name.split_once('/') {
            Some((customer, query)) => (customer, Some(query)),
            None => (name.as_str(), None),
        };
        let customer = crate::cli::project_args::find_customer(catalog, customer)?;
        let known =
            |q: &str| customer.queries.iter().any(|c| c.name == q) || q.starts_with("stream:");
        if query.is_some_and(|q| !known(q)) {
            return Err(Error::config(format!("there is no query '{name}' to reset")));
        }
    }
    Ok(())
}
