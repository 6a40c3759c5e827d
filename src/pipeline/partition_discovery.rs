//! Partition discovery: finds new partitions and the ends of all partitions at the brokers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::Result;
use crate::catalog::{Start, Stream};
use crate::commit::PartitionJoin;
use crate::pipeline::engine::Engine;
use crate::source::{Cluster, KafkaConfig, blocking};
use crate::types::TopicPartition;

/// The time between two discoveries.
pub const DISCOVERY_INTERVAL: Duration = Duration::from_secs(2);

/// The offset after the last record of each partition.
pub type EndOffsets = HashMap<TopicPartition, i64>;

/// Streams, each with the partitions that are read already.
pub type KnownPartitions = Vec<(Arc<Stream>, BTreeSet<TopicPartition>)>;

/// What one discovery found.
pub struct DiscoveryReport {
    /// Partitions that no stream reads yet, each with the offset at which reading begins.
    pub new_partitions: Vec<PartitionJoin>,
    /// The ends of all partitions, the new ones included.
    pub ends: EndOffsets,
}

/// A request to the brokers that has not succeeded yet.
#[derive(Debug, Clone, Default)]
pub struct PendingRequest {
    /// When the first attempt began; `None`: no request is pending.
    pub since: Option<Instant>,
    /// The error of the last attempt.
    pub error: Option<String>,
}

/// The connection of a pipeline to its discovery task, which ends when this is dropped.
pub struct PartitionDiscovery {
    reports: mpsc::Receiver<DiscoveryReport>,
    known: watch::Sender<KnownPartitions>,
    pending: watch::Receiver<PendingRequest>,
}

/// The task.
struct DiscoveryTask {
    kafka: KafkaConfig,
    known: watch::Receiver<KnownPartitions>,
    pending: watch::Sender<PendingRequest>,
    /// Whether a stream's `start` decides where a new partition begins; after the first report
    /// every new partition is read from its first offset.
    is_first: bool,
}

/// Returns the ends of partitions. Blocks.
pub fn read_ends<'a>(
    cluster: &Cluster,
    partitions: impl Iterator<Item = &'a TopicPartition>,
) -> Result<EndOffsets> {
    partitions.map(|partition| Ok((partition.clone(), cluster.watermarks(partition)?.1))).collect()
}

/// The partitions that the engine reads.
fn known_partitions(engine: &Engine) -> KnownPartitions {
    engine
        .streams()
        .values()
        .map(|s| (s.plan().stream.clone(), s.partitions().cloned().collect()))
        .collect()
}

/// Finds the partitions that streams should read and do not read yet. With `is_first` the `start`
/// of the stream decides where each begins, otherwise it begins at its first offset. Blocks.
///
/// # Errors
/// No broker answers.
pub fn find_new_partitions(
    cluster: &Cluster,
    streams: &[(Arc<Stream>, BTreeSet<TopicPartition>)],
    is_first: bool,
) -> Result<Vec<PartitionJoin>> {
    let topics = cluster.topics()?;
    let mut found = Vec::new();
    for (stream, known) in streams {
        for (topic, partitions) in &topics {
            if !stream.topics.matches(topic) {
                continue;
            }
            let mut topic_id = None;
            for partition in 0..*partitions {
                let partition = TopicPartition { topic: topic.as_str().into(), partition };
                if known.contains(&partition) {
                    continue;
                }
                let (low, high) = cluster.watermarks(&partition)?;
                let offset = match (is_first, &stream.start) {
                    (false, _) | (true, Start::Earliest) => low,
                    (true, Start::Latest) => high,
                    (true, Start::At(instant)) => cluster.offsets_for_time(&partition, *instant)?,
                };
                if topic_id.is_none() {
                    topic_id = cluster.topic_id(topic)?;
                }
                let (stream, topic_id) = (stream.name.clone(), topic_id.clone());
                found.push(PartitionJoin { stream, partition, offset, topic_id });
            }
        }
    }
    Ok(found)
}

impl PartitionDiscovery {
    /// Starts discovery for the streams of `engine`. `is_first`: the customer has never committed
    /// an epoch.
    pub fn start(engine: &Engine, kafka: KafkaConfig, is_first: bool) -> Self {
        let (known, known_receiver) = watch::channel(known_partitions(engine));
        let (sender, reports) = mpsc::channel(1);
        let (pending_sender, pending) = watch::channel(PendingRequest::default());
        let task =
            DiscoveryTask { kafka, known: known_receiver, pending: pending_sender, is_first };
        tokio::spawn(task.run(sender));
        Self { reports, known, pending }
    }

    /// Waits for the next report; `None`: the task ended.
    pub async fn next_report(&mut self) -> Option<DiscoveryReport> {
        self.reports.recv().await
    }

    /// Tells the task which partitions the engine reads now; the next discovery begins at once.
    pub fn update_known(&self, engine: &Engine) {
        self.known.send_replace(known_partitions(engine));
    }

    /// The request that the brokers have not answered yet.
    pub fn pending_request(&self) -> PendingRequest {
        self.pending.borrow().clone()
    }
}

impl DiscoveryTask {
    /// Reports until the receiver is dropped.
    async fn run(mut self, reports: mpsc::Sender<DiscoveryReport>) {
        let kafka = self.kafka.clone();
        let cluster = match blocking(move || Cluster::connect(&kafka)).await {
            Ok(cluster) => Arc::new(cluster),
            Err(error) => return tracing::error!(%error, "partition discovery failed to start"),
        };
        loop {
            let known = self.known.borrow().clone();
            let (cluster, is_first) = (cluster.clone(), self.is_first);
            let discovery = blocking(move || {
                let new_partitions = find_new_partitions(&cluster, &known, is_first)?;
                let new = new_partitions.iter().map(|joined| &joined.partition);
                let known = known.iter().flat_map(|(_, partitions)| partitions);
                let ends = read_ends(&cluster, known.chain(new))?;
                Ok(DiscoveryReport { new_partitions, ends })
            });
            // After a failure, `since` stays at the beginning of the first attempt.
            self.pending.send_modify(|pending| {
                pending.since.get_or_insert_with(Instant::now);
            });
            match discovery.await {
                Ok(report) => {
                    self.is_first = false;
                    self.pending.send_replace(PendingRequest::default());
                    if reports.send(report).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    self.pending.send_modify(|pending| pending.error = Some(error.message.clone()));
                    tracing::warn!(%error, "partition discovery failed; it is retried");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(DISCOVERY_INTERVAL) => {}
                changed = self.known.changed() => if changed.is_err() { return },
            }
        }
    }
}
