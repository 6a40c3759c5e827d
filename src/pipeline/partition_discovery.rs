//! The lookout: asks the brokers now and then for new partitions, and for ends.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::Result;
use crate::commit::PartitionJoin;
use crate::pipeline::engine::Engine;
use crate::pipeline::topics::new_partitions;
use crate::source::{Cluster, KafkaConfig, blocking};
use crate::types::TopicPartition;

/// How often topics are looked up for new partitions, and ends for the lag.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The offset after the last of each partition.
pub type Ends = HashMap<TopicPartition, i64>;

/// What the lookout found at the broker.
pub struct Look {
    pub joined: Vec<PartitionJoin>,
    pub ends: Ends,
}

/// What the lookout need not report.
pub type Known = Vec<(Arc<crate::catalog::Stream>, BTreeSet<TopicPartition>)>;

/// The ends of partitions. Blocks.
pub fn ends<'a>(
    cluster: &Cluster,
    partitions: impl Iterator<Item = &'a TopicPartition>,
) -> Result<Ends> {
    partitions.map(|partition| Ok((partition.clone(), cluster.watermarks(partition)?.1))).collect()
}

/// What the engine reads already.
pub fn known(engine: &Engine) -> Known {
    engine
        .streams
        .values()
        .map(|s| (s.plan.stream.clone(), s.positions.keys().cloned().collect()))
        .collect()
}

/// Looks at the broker for new partitions and for ends.
pub struct PartitionDiscovery {
    pub kafka: KafkaConfig,
    pub known: watch::Receiver<Known>,
    /// Since when an answer is awaited, and what came instead.
    pub asking: watch::Sender<(Option<Instant>, Option<String>)>,
    pub first: bool,
}

impl PartitionDiscovery {
    /// Looks until nobody listens.
    pub async fn run(mut self, found: mpsc::Sender<Look>) {
        let kafka = self.kafka.clone();
        let cluster = match blocking(move || Cluster::connect(&kafka)).await {
            Ok(cluster) => Arc::new(cluster),
            Err(error) => return tracing::error!(%error, "topics cannot be looked up"),
        };
        loop {
            let known = self.known.borrow().clone();
            let (cluster, first) = (cluster.clone(), self.first);
            let look = blocking(move || {
                let joined = new_partitions(&cluster, &known, first)?;
                let joining = joined.iter().map(|j| &j.partition);
                let ends = ends(&cluster, known.iter().flat_map(|(_, p)| p).chain(joining))?;
                Ok(Look { joined, ends })
            });
            // A look that fails leaves the time of the first one that did.
            self.asking.send_modify(|(since, _)| _ = since.get_or_insert_with(Instant::now));
            match look.await {
                Ok(look) => {
                    self.first = false;
                    self.asking.send_replace((None, None));
                    if found.send(look).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    self.asking.send_modify(|(_, told)| *told = Some(error.message.clone()));
                    tracing::warn!(%error, "topics could not be looked up; trying again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                changed = self.known.changed() => if changed.is_err() { return },
            }
        }
    }
}
