//! `millstream demo`: a broker, sensors, pipelines and a live view in one process.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use tokio::sync::watch;

use crate::catalog::{self, Catalog, Topics};
use crate::cli::live::view::{HiddenQuery, ViewOptions};
use crate::cli::{live, run};
use crate::commit::log_topic;
use crate::pipeline::PipelineConfig;
use crate::sensors::{Driver, Faults, Pace, Profile, Simulation, SimulationSettings};
use crate::source::KafkaConfig;
use crate::telemetry::{Metrics, StatusBoard};
use crate::time::{Clock, DAY};
use crate::{Error, Kind, Result, sink};

/// Try it: a broker, sensors, both customers' pipelines and a live view in one process.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder that holds schemas/ and queries/
    #[arg(long, default_value = ".")]
    project: PathBuf,
    /// Each run stores its history in a folder of its own below this one
    #[arg(long, default_value = ".millstream/demo")]
    data_dir: PathBuf,
    /// Stop after this long, such as 30s
    #[arg(long = "for", value_name = "TIME", value_parser = run::time)]
    duration: Option<Duration>,
    /// How much faster than real time the sensors' clock runs
    #[arg(long, default_value = "3600x")]
    speed: String,
    /// Events per second and customer
    #[arg(long, default_value = "40/s")]
    rate: String,
    /// Faults of the sensors, in the syntax of `millstream sensors --faults`
    #[arg(
        long,
        default_value = "malformed=1%,duplicate=1%,late=2%,future=0.1%,silent=1084@30s..60s"
    )]
    faults: String,
    /// Same seed, same sensors
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Lines of text instead of the live view
    #[arg(long)]
    plain: bool,
}

/// How far back the sensors' clock starts, so that it may run fast for a while.
const HEAD_START: i64 = 60 * DAY;

/// The query that measures the age of events. With the sensors' simulated clock its results mean
/// nothing.
const HIDDEN_QUERY: HiddenQuery = HiddenQuery {
    query: "latency",
    reason: "hidden: the clock of the simulated sensors started 60 days ago and runs fast, so event ages are meaningless",
};

impl Args {
    /// Whether the live view uses the whole terminal.
    pub fn draws(&self) -> bool {
        !self.plain && std::io::stdout().is_terminal()
    }
}

/// Runs until Ctrl-C or `--for`.
pub async fn run(args: Args) -> Result<ExitCode> {
    let catalog = match catalog::load(&args.project, &[]) {
        Ok(catalog) => Arc::new(catalog),
        Err(errors) => {
            crate::cli::printing::print_errors(&errors);
            return Ok(ExitCode::FAILURE);
        }
    };
    let clock = Clock::system();
    let started = chrono::DateTime::from_timestamp_micros(clock.now()).unwrap_or_default();
    let data_dir = args.data_dir.join(started.format("%Y%m%d-%H%M%S").to_string());
    std::fs::create_dir_all(&data_dir)?;

    let mock = |e: rdkafka::error::KafkaError| {
        Error::new(Kind::Kafka, "the embedded broker failed").because(e)
    };
    let cluster = MockCluster::new(1).map_err(mock)?;
    let brokers = cluster.bootstrap_servers();
    for topic in topics(&catalog)? {
        cluster.create_topic(&topic, 1, 1).map_err(mock)?;
    }
    let kafka = KafkaConfig::new(&brokers);
    for line in introduction(&args, &brokers, &data_dir) {
        println!("{line}");
    }

    let (stop_all, stop) = watch::channel(false);
    let mut signal = crate::cli::stop_signal::stop_signal();
    let board = StatusBoard::new(Some(data_dir.join("status")));
    board.expect(catalog.customers.iter().map(|c| c.name.as_str()));
    let mut options =
        PipelineConfig::follow(kafka.clone(), &data_dir, Arc::new(Metrics::new()?), board.clone());
    // The embedded broker keeps 5 MiB a partition, the log's too: commit once a second at most.
    options.commit_interval = Some(Duration::from_millis(250));
    let pipelines = tokio::spawn(run::run_all(catalog.clone(), options, stop.clone()));
    let drivers = sensors(&args, &catalog, &kafka, clock.now(), &stop)?;
    let view = tokio::spawn(live::run(
        board,
        ViewOptions { notes: notes(&brokers, &data_dir), hidden_query: HIDDEN_QUERY },
        stop.clone(),
        args.draws(),
    ));

    let limit = async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let mut pipelines = pipelines;
    let mut view = view;
    let mut ended = None;
    let mut seen = None;
    tokio::select! {
        () = limit => {}
        _ = signal.changed() => {}
        quit = &mut view => seen = Some(quit),
        result = &mut pipelines => ended = Some(result),
    }
    stop_all.send_replace(true);
    for driver in drivers {
        tokio::task::spawn_blocking(move || driver.join()).await.ok();
    }
    let failed = |e: tokio::task::JoinError| Error::internal("the demo ended abruptly").because(e);
    let result = match ended {
        Some(result) => result,
        None => pipelines.await,
    };
    match seen {
        Some(view) => view.map_err(failed)??,
        None => view.await.map_err(failed)??,
    }
    result.map_err(failed)??;
    farewell(&data_dir);
    // The process ends now: threads that are still connected shall not see the broker go.
    std::mem::forget(cluster);
    Ok(ExitCode::SUCCESS)
}

/// Every topic that the catalog names, and those of the simulated sensors.
fn topics(catalog: &Catalog) -> Result<Vec<String>> {
    let mut topics = Vec::new();
    for customer in &catalog.customers {
        topics.push(log_topic(&customer.name));
        topics.push(sink::dead_letter_topic(&customer.name).to_string());
        topics.extend(customer.queries.iter().map(|q| q.topic.clone()));
        for stream in &customer.streams {
            topics.push(sink::late_topic(&customer.name, &stream.name).to_string());
            if let Topics::List(list) = &stream.topics {
                topics.extend(list.iter().cloned());
            }
        }
        if let Ok(profile) = Profile::named(&customer.name) {
            topics.extend(profile.topics);
        }
    }
    topics.sort();
    topics.dedup();
    Ok(topics)
}

fn sensors(
    args: &Args,
    catalog: &Catalog,
    kafka: &KafkaConfig,
    now: i64,
    stop: &watch::Receiver<bool>,
) -> Result<Vec<Driver>> {
    let mut drivers = Vec::new();
    for customer in &catalog.customers {
        let Ok(profile) = Profile::named(&customer.name) else { continue };
        let mut faults: Faults = args.faults.parse()?;
        faults.silences.retain(|silence| profile.topics.contains(&silence.topic));
        let settings = SimulationSettings {
            seed: args.seed,
            rate: crate::sensors::units::rate(&args.rate)?,
            speed: crate::sensors::units::speed(&args.speed)?,
            start: now - HEAD_START,
            launched: Some(now),
            duration_us: None,
            faults,
        };
        let simulation = Simulation::new(&profile, settings)?;
        drivers.push(Driver::start(kafka.client(), simulation, Pace::RealTime, stop.clone())?);
    }
    Ok(drivers)
}

fn introduction(args: &Args, brokers: &str, data_dir: &std::path::Path) -> Vec<String> {
    vec![
        format!(
            "Millstream demo: two customers, their sensors {} faster than life, one of them broken.",
            args.speed
        ),
        format!(
            "  broker   {brokers}   (kcat -b {brokers} -t 1084, millstream subscribe customer_a presence_alert --brokers {brokers})"
        ),
        format!("  history  {}   (the first commit comes after 10 s)", data_dir.display()),
        format!("  try      {}", suggestion(data_dir)),
        "  stop     Ctrl-C\n".to_owned(),
    ]
}

/// What the live view shows all the time, the most important first.
fn notes(brokers: &str, data_dir: &std::path::Path) -> Vec<String> {
    vec![
        format!("broker {brokers}"),
        format!("history {} (from 10 s on)", data_dir.display()),
        format!("try {}", suggestion(data_dir)),
    ]
}

fn suggestion(data_dir: &std::path::Path) -> String {
    format!(
        "target/release/millstream query --data-dir {} \"SELECT room, count(*) AS events FROM customer_a.positions GROUP BY room ORDER BY events DESC\"",
        data_dir.display()
    )
}

fn farewell(data_dir: &std::path::Path) {
    println!(
        "\nThe demo has ended; its history is still there. Query it with:\n  {}",
        suggestion(data_dir)
    );
}
