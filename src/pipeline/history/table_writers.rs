//! The writers of several history tables, with their commits and the compaction of small files.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::history::{BackgroundCompaction, Writer};
use crate::pipeline::config::PipelineConfig;
use crate::telemetry::Metrics;
use crate::time::{Clock, Micros};
use crate::{Kind, Result};

/// The longest pause before a commit that the disk rejected is retried.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Writers of several tables, by stream or topic.
pub struct TableWriters<K> {
    writers: HashMap<K, Writer>,
    clock: Clock,
    metrics: Arc<Metrics>,
    compaction: BackgroundCompaction,
    pending_since: watch::Sender<Option<Micros>>,
}

impl<K: std::hash::Hash + Eq> TableWriters<K> {
    /// Wraps writers that have no pending rows.
    pub fn new(writers: HashMap<K, Writer>, config: &PipelineConfig) -> Self {
        Self {
            writers,
            clock: config.clock.clone(),
            metrics: config.metrics.clone(),
            compaction: BackgroundCompaction::default(),
            pending_since: watch::Sender::new(None),
        }
    }

    /// When the oldest row that is not committed was handed over (wall clock); `None`: all rows are
    /// committed. It is updated before a commit is attempted, because the attempt does not return
    /// while the disk fails.
    pub fn pending_since(&self) -> watch::Receiver<Option<Micros>> {
        self.pending_since.subscribe()
    }

    /// Whether rows are not committed yet.
    pub fn has_pending(&self) -> bool {
        self.writers.values().any(Writer::has_pending)
    }

    /// Sets the id of a topic in every table.
    pub fn set_topic_id(&mut self, topic: &str, id: &str) {
        self.writers.values_mut().for_each(|writer| writer.set_topic_id(topic, id));
    }

    /// Commits all tables when the commit of one is due, or now if `is_early`; retries until it
    /// succeeds. Then starts the compaction of small files.
    ///
    /// The tables are committed together: with separate commits some table would always have
    /// pending rows, and no epoch would ever be committed as a whole.
    pub async fn commit_due(&mut self, is_early: bool) -> Result<()> {
        let now = self.clock.now();
        if is_early || self.writers.values().any(|w| w.due(now)) {
            for writer in self.writers.values_mut() {
                commit_with_retries(writer, now).await?;
                record_metrics(&self.metrics, writer);
                self.compaction.start_if_needed(writer, now);
            }
        }
        self.clear_pending_since();
        Ok(())
    }

    /// Commits all tables, with the attempts of [`Writer::commit`].
    pub async fn commit_all(&mut self) -> Result<()> {
        let now = self.clock.now();
        for writer in self.writers.values_mut() {
            writer.commit(now).await?;
            record_metrics(&self.metrics, writer);
        }
        self.clear_pending_since();
        Ok(())
    }

    /// Returns a table's writer after making sure that its buffer has room for more rows.
    pub async fn writer(&mut self, key: &K) -> Result<Option<&mut Writer>> {
        let now = self.clock.now();
        let Some(writer) = self.writers.get_mut(key) else { return Ok(None) };
        if writer.is_full() {
            commit_with_retries(writer, now).await?;
            record_metrics(&self.metrics, writer);
        }
        self.pending_since.send_modify(|since| *since = since.or(Some(now)));
        Ok(Some(writer))
    }

    /// Clears the time of the oldest pending row once no table has pending rows. Until then the
    /// time of the first one stays, because the times of the others are not recorded.
    fn clear_pending_since(&mut self) {
        if !self.has_pending() {
            self.pending_since.send_replace(None);
        }
    }
}

fn record_metrics(metrics: &Metrics, writer: &Writer) {
    let spec = writer.spec();
    metrics.history(&spec.customer, &spec.name, writer.rows_committed());
}

/// Commits, and retries for as long as the disk fails.
async fn commit_with_retries(writer: &mut Writer, now: Micros) -> Result<()> {
    let mut pause = Duration::from_secs(1);
    loop {
        match writer.commit(now).await {
            Err(error) if error.kind == Kind::Storage => {
                tracing::warn!(table = writer.spec().name, %error, "a history commit failed; it is retried");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_RETRY_PAUSE);
            }
            done => return done.map(drop),
        }
    }
}
