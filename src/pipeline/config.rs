//! How a pipeline is to run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::pipeline::OnMissingOffsets;
use crate::source::KafkaConfig;
use crate::telemetry::{Metrics, StatusBoard};
use crate::time::Clock;

/// How far a run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// On and on.
    Follow,
    /// To the end that the topics have now; open windows stay open.
    UntilEnd,
    /// To that end, then every window closes and the pipeline is finished.
    Drain,
}

/// Names of customers (`a`) and queries (`a/q`) whose state is dropped at the start.
#[derive(Debug, Clone, Default)]
pub struct Reset(pub Vec<String>);

/// How to run.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// The cluster.
    pub kafka: KafkaConfig,
    /// Where history, snapshots and status lie.
    pub data_dir: PathBuf,
    /// Whether missing topics are created.
    pub create_topics: bool,
    /// How far.
    pub mode: Mode,
    /// Whether history is written.
    pub history: bool,
    /// The least time between commits; `None`: see the constants.
    pub commit_interval: Option<Duration>,
    /// The time between snapshots; longer where writing one takes more than a tenth of it.
    pub snapshot_interval: Duration,
    /// What begins anew.
    pub reset: Reset,
    /// How many workers take a customer's chunks; at least one.
    pub parallelism: usize,
    /// What becomes of offsets that are needed and that Kafka no longer has.
    pub on_gap: OnMissingOffsets,
    /// Whether this is a rebuild: all that can still be read runs again, from the beginning.
    pub rebuild: bool,
    /// Whether each epoch records digests of its state, which a recovery compares with its own.
    pub check_replays: bool,
    /// The wall clock.
    pub clock: Clock,
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// Where the status goes.
    pub board: StatusBoard,
}

/// The folder of all histories.
pub fn history_root(data_dir: &Path) -> PathBuf {
    data_dir.join("history")
}

impl Reset {
    /// Whether the whole customer begins anew.
    pub fn contains(&self, customer: &str) -> bool {
        self.0.iter().any(|name| name == customer)
    }

    /// Whether that query's state is dropped.
    pub fn contains_query(&self, customer: &str, query: &str) -> bool {
        self.contains(customer) || self.0.iter().any(|name| *name == format!("{customer}/{query}"))
    }
}
