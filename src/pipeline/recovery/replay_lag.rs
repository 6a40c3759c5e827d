//! Reports positions and lag while recorded epochs are replayed, when the pipeline's own reporter
//! does not run yet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::pipeline::config::PipelineConfig;
use crate::pipeline::engine::Engine;
use crate::pipeline::partition_discovery::{DISCOVERY_INTERVAL, EndOffsets, read_ends};
use crate::pipeline::reporter;
use crate::source::{Cluster, blocking};
use crate::telemetry::Metrics;
use crate::types::TopicPartition;

/// The time between two reports.
const INTERVAL: Duration = Duration::from_millis(500);

/// Reports positions and lag as metrics.
pub struct ReplayLag {
    metrics: Arc<Metrics>,
    customer: String,
    /// Empty until the brokers have answered.
    ends: watch::Receiver<EndOffsets>,
    last_report: Option<Instant>,
}

impl ReplayLag {
    /// Starts a task that reads the ends of the engine's partitions until this is dropped.
    pub fn watch(cluster: &Arc<Cluster>, engine: &Engine, config: &PipelineConfig) -> Self {
        let (sender, ends) = watch::channel(EndOffsets::new());
        let streams = engine.streams().values();
        let partitions = streams.flat_map(|stream| stream.partitions().cloned()).collect();
        tokio::spawn(watch_ends(cluster.clone(), Arc::new(partitions), sender));
        let customer = engine.customer.name.clone();
        Self { metrics: config.metrics.clone(), customer, ends, last_report: None }
    }

    /// Reports the engine's positions and lag, at most every half second.
    pub fn report(&mut self, engine: &Engine) {
        let ends = self.ends.borrow();
        if ends.is_empty() || self.last_report.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        self.last_report = Some(Instant::now());
        for (name, stream) in engine.streams() {
            let status = reporter::stream_status(name, stream, &ends, &BTreeSet::new());
            for partition in &status.partitions {
                self.metrics.partition(&self.customer, name, partition);
            }
            self.metrics.stream(&self.customer, &status);
        }
    }
}

async fn watch_ends(
    cluster: Arc<Cluster>,
    partitions: Arc<Vec<TopicPartition>>,
    ends: watch::Sender<EndOffsets>,
) {
    loop {
        let (cluster, partitions) = (cluster.clone(), partitions.clone());
        match blocking(move || read_ends(&cluster, partitions.iter())).await {
            Ok(read) => drop(ends.send_replace(read)),
            Err(error) => tracing::debug!(%error, "reading the ends of partitions failed"),
        }
        tokio::select! {
            () = ends.closed() => return,
            () = tokio::time::sleep(DISCOVERY_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use crate::pipeline::planning::plan;

    const SCHEMA: &str = "CREATE STREAM events (at TIMESTAMP NOT NULL, WATERMARK FOR at AS at)
        WITH (topics = 'events');";

    #[tokio::test]
    async fn lag_is_reported_once_the_ends_are_known_and_twice_a_second() {
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
        let mut replay_lag =
            ReplayLag { metrics: metrics.clone(), customer, ends, last_report: None };
        let lag = || -> Option<i64> {
            let text = metrics.render().unwrap();
            let line = text.lines().find(|l| l.starts_with("millstream_partition_lag_records{"))?;
            line.rsplit(' ').next()?.parse().ok()
        };

        replay_lag.report(&engine);
        assert_eq!(lag(), None, "the end is not known yet");
        sender.send_replace(EndOffsets::from([(partition.clone(), 110)]));
        replay_lag.report(&engine);
        assert_eq!(lag(), Some(100));
        engine.skip_to(&partition, 60);
        replay_lag.report(&engine);
        assert_eq!(lag(), Some(100), "the last report was less than half a second ago");
        tokio::time::sleep(INTERVAL).await;
        replay_lag.report(&engine);
        assert_eq!(lag(), Some(50));
    }
}
