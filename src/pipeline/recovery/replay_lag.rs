//! How far a customer is behind while recorded epochs run again: its pipeline does not report yet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::pipeline::engine::Engine;
use crate::pipeline::partition_discovery::{DISCOVERY_INTERVAL, EndOffsets, read_ends};
use crate::pipeline::{PipelineConfig, reporter};
use crate::source::{Cluster, blocking};
use crate::telemetry::Metrics;
use crate::types::TopicPartition;

/// How often it is told.
const INTERVAL: Duration = Duration::from_millis(500);
/// Tells positions and lag.
pub struct ReplayLag {
    metrics: Arc<Metrics>,
    customer: String,
    /// Empty until the brokers have answered.
    ends: watch::Receiver<EndOffsets>,
    told: Option<Instant>,
}

impl ReplayLag {
    /// Asks for ends beside what runs, until it is dropped.
    pub fn watch(cluster: &Arc<Cluster>, engine: &Engine, options: &PipelineConfig) -> Self {
        let (sender, ends) = watch::channel(EndOffsets::new());
        let streams = engine.streams().values();
        let partitions = streams.flat_map(|stream| stream.partitions().cloned()).collect();
        tokio::spawn(ask(cluster.clone(), Arc::new(partitions), sender));
        let customer = engine.customer.name.clone();
        Self { metrics: options.metrics.clone(), customer, ends, told: None }
    }

    /// Tells how far the engine is, if that was not told just now.
    pub fn tell(&mut self, engine: &Engine) {
        let ends = self.ends.borrow();
        if ends.is_empty() || self.told.is_some_and(|told| told.elapsed() < INTERVAL) {
            return;
        }
        self.told = Some(Instant::now());
        for (name, stage) in engine.streams() {
            let stream = reporter::stream(name, stage, &ends, &BTreeSet::new());
            for partition in &stream.partitions {
                self.metrics.partition(&self.customer, name, partition);
            }
            self.metrics.stream(&self.customer, &stream);
        }
    }
}

async fn ask(
    cluster: Arc<Cluster>,
    partitions: Arc<Vec<TopicPartition>>,
    told: watch::Sender<EndOffsets>,
) {
    loop {
        let (cluster, partitions) = (cluster.clone(), partitions.clone());
        match blocking(move || read_ends(&cluster, partitions.iter())).await {
            Ok(ends) => drop(told.send_replace(ends)),
            Err(error) => tracing::debug!(%error, "ends are not known"),
        }
        tokio::select! {
            () = told.closed() => return,
            () = tokio::time::sleep(DISCOVERY_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::pipeline::recovery::plan;

    const SCHEMA: &str = "CREATE STREAM events (at TIMESTAMP NOT NULL, WATERMARK FOR at AS at)
        WITH (topics = 'events');";

    #[tokio::test]
    async fn lag_is_told_once_the_ends_are_known_and_twice_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("schemas/c.sql", SCHEMA);
        write("queries/c/all.sql", "SELECT at FROM events");
        let catalog = catalog::load(folder.path(), &[]).unwrap();
        let customer = &catalog.customers[0];
        let planned = plan(&catalog.root, customer).await.unwrap();
        let mut engine = Engine::new(customer.clone(), planned, false, 1).unwrap();
        let partition = TopicPartition::new("events", 0);
        engine.join("events", &partition, 10).unwrap();
        let (sender, ends) = watch::channel(EndOffsets::new());
        let metrics = Arc::new(Metrics::new().unwrap());
        let customer = customer.name.clone();
        let mut behind = ReplayLag { metrics: metrics.clone(), customer, ends, told: None };
        let lag = || -> Option<i64> {
            let text = metrics.render().unwrap();
            let line = text.lines().find(|l| l.starts_with("millstream_partition_lag_records{"))?;
            line.rsplit(' ').next()?.parse().ok()
        };

        behind.tell(&engine);
        assert_eq!(lag(), None, "nobody knows the end");
        sender.send_replace(EndOffsets::from([(partition.clone(), 110)]));
        behind.tell(&engine);
        assert_eq!(lag(), Some(100));
        engine.skip_to(&partition, 60);
        behind.tell(&engine);
        assert_eq!(lag(), Some(100), "it was told just now");
        tokio::time::sleep(INTERVAL).await;
        behind.tell(&engine);
        assert_eq!(lag(), Some(50));
    }
}
