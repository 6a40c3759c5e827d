//! The configuration of a pipeline.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::source::KafkaConfig;
use crate::telemetry::{Metrics, StatusBoard};
use crate::time::Clock;

/// The time between snapshots unless the user sets another one.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(10);

/// When a pipeline ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Never: it follows its topics until it is stopped.
    Follow,
    /// At the end that the topics have at the start; open windows stay open.
    UntilEnd,
    /// At that end; every window closes and the pipeline is finished for good.
    Drain,
}

/// What happens when offsets that a pipeline still needs are missing from Kafka.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnMissingOffsets {
    /// The pipeline stops with an error.
    #[default]
    Stop,
    /// The pipeline continues after the missing offsets and records that it skipped them.
    Skip,
}

/// Names of customers (`a`) and queries (`a/q`) whose state is dropped at the start.
#[derive(Debug, Clone, Default)]
pub struct Reset(pub Vec<String>);

/// The configuration of one customer's pipeline.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// The Kafka cluster.
    pub kafka: KafkaConfig,
    /// The folder of history, snapshots and status files.
    pub data_dir: PathBuf,
    /// Whether missing topics are created.
    pub create_topics: bool,
    /// When the pipeline ends.
    pub mode: Mode,
    /// Whether events and results are written to history.
    pub history: bool,
    /// The least time between commits; `None`: 25 ms, or twice the recent commit time.
    pub commit_interval: Option<Duration>,
    /// The time between snapshots; it is longer if writing one takes more than a tenth of it.
    pub snapshot_interval: Duration,
    /// The state that is dropped at the start.
    pub reset: Reset,
    /// Number of worker threads for each customer; at least one.
    pub parallelism: usize,
    /// What happens when offsets that are still needed are missing from Kafka.
    pub on_missing_offsets: OnMissingOffsets,
    /// Whether each epoch records digests of its state and recovery compares them with its own.
    pub check_replays: bool,
    /// The wall clock.
    pub clock: Clock,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// Where the pipeline publishes its status.
    pub board: StatusBoard,
}

impl PipelineConfig {
    /// The configuration of a pipeline that follows its topics, with the defaults of
    /// `millstream run`.
    pub fn follow(
        kafka: KafkaConfig,
        data_dir: &Path,
        metrics: Arc<Metrics>,
        board: StatusBoard,
    ) -> Self {
        Self {
            kafka,
            data_dir: data_dir.to_owned(),
            create_topics: false,
            mode: Mode::Follow,
            history: true,
            commit_interval: None,
            snapshot_interval: SNAPSHOT_INTERVAL,
            reset: Reset::default(),
            parallelism: cores(),
            on_missing_offsets: OnMissingOffsets::Stop,
            check_replays: false,
            clock: Clock::system(),
            metrics,
            board,
        }
    }

    /// The folder of a customer's snapshots.
    pub(crate) fn snapshot_folder(&self, customer: &str) -> PathBuf {
        self.data_dir.join("snapshots").join(customer)
    }
}

/// The number of processor cores, which is the default number of worker threads.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The folder that holds the history of all customers.
pub fn history_root(data_dir: &Path) -> PathBuf {
    data_dir.join("history")
}

impl Reset {
    /// Whether the state of the whole customer is dropped.
    pub fn contains(&self, customer: &str) -> bool {
        self.0.iter().any(|name| name == customer)
    }

    /// Whether the state of that query is dropped, by its own name or with the whole customer.
    pub fn contains_query(&self, customer: &str, query: &str) -> bool {
        self.contains(customer) || self.0.iter().any(|name| *name == format!("{customer}/{query}"))
    }
}
