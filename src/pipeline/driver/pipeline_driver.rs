//! The main loop: reads events, gives them to the engine, and ends epochs when they are due.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tokio::sync::watch;

use crate::Result;
use crate::commit::{PartitionJoin, Process};
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::driver::commit_schedule::CommitSchedule;
use crate::pipeline::driver::early_emissions::EarlyEmissions;
use crate::pipeline::driver::end_targets::EndTargets;
use crate::pipeline::driver::epoch_clock::EpochClock;
use crate::pipeline::driver::epoch_sink::EpochSink;
use crate::pipeline::driver::pending_commit::{PendingCommit, wait_for_commit};
use crate::pipeline::engine::worker::ChunkResult;
use crate::pipeline::partition_discovery::{DiscoveryReport, PartitionDiscovery};
use crate::pipeline::reporter::{HistoryLag, Reporter};
use crate::pipeline::running_pipeline::RunningPipeline;
use crate::source::Event;
use crate::source::chunk::Chunk;
use crate::time::Micros;
use crate::types::{SourcePosition, TopicPartition};

/// Results and history rows of an open epoch beyond this size end it; until then nothing is read.
const MAX_PENDING_BYTES: usize = 64 << 20;

/// An epoch that has begun and not ended.
pub(super) struct OpenEpoch {
    /// The value of `now()` in the epoch.
    pub now: Micros,
    pub joined: Vec<PartitionJoin>,
    /// Versions of reference tables that take effect with the epoch.
    pub tables: BTreeMap<String, String>,
    pub began: Instant,
}

/// Drives one pipeline. See the module for the parts.
pub struct PipelineDriver {
    pub(in crate::pipeline) running: RunningPipeline,
    pub(super) process: Process,
    pub(super) config: PipelineConfig,
    pub(super) stop: watch::Receiver<bool>,
    pub(in crate::pipeline) sink: EpochSink,
    pub(super) clock: EpochClock,
    pub(super) schedule: CommitSchedule,
    pub(super) emissions: EarlyEmissions,
    pub(super) open_epoch: Option<OpenEpoch>,
    pub(super) pending_commit: Option<PendingCommit>,
    /// Positions as of the newest record.
    pub(super) recorded_positions: BTreeMap<TopicPartition, SourcePosition>,
    /// Whether every window was closed for good.
    pub(super) is_drained: bool,
    discovery: PartitionDiscovery,
    /// New partitions that join with the next epoch.
    pending_joins: Vec<PartitionJoin>,
    targets: EndTargets,
    /// Partitions that wait for slower ones of their stream.
    paused: BTreeSet<TopicPartition>,
    pub(super) reporter: Reporter,
}

impl PipelineDriver {
    /// A driver whose first epoch begins with the first event. `archiver_lag`: since when outputs
    /// wait to be archived.
    pub fn new(
        running: RunningPipeline,
        process: Process,
        config: PipelineConfig,
        stop: watch::Receiver<bool>,
        sink: EpochSink,
        archiver_lag: Option<watch::Receiver<Option<Micros>>>,
    ) -> Self {
        let kafka = config.kafka.clone();
        let history_lag =
            HistoryLag { events: running.history.pending_since.clone(), outputs: archiver_lag };
        Self {
            recorded_positions: running.engine.positions(),
            discovery: PartitionDiscovery::start(&running.engine, kafka, running.log.is_empty),
            reporter: Reporter::new(&running.engine, &config, history_lag),
            clock: EpochClock::new(config.clock.clone()),
            schedule: CommitSchedule::new(config.commit_interval),
            targets: EndTargets::new(config.mode),
            emissions: EarlyEmissions::default(),
            open_epoch: None,
            pending_commit: None,
            is_drained: false,
            pending_joins: Vec::new(),
            paused: BTreeSet::new(),
            running,
            process,
            config,
            stop,
            sink,
        }
    }

    /// Reads, processes and ends epochs until a stop is requested or the mode's end is reached. The
    /// last epoch stays open.
    ///
    /// # Errors
    /// Kafka, the disk or the engine failed.
    pub async fn run(&mut self) -> Result<()> {
        loop {
            if *self.stop.borrow() || self.has_reached_end() {
                return Ok(());
            }
            if let Some(chunk) = self.running.source.read_ahead.pop_front() {
                self.absorb(chunk).await?;
            } else {
                let has_room = self.has_room();
                let wait_time = self.schedule.wait_time(self.running.engine.has_output());
                tokio::select! {
                    biased;
                    _ = self.stop.changed() => continue,
                    outcome = wait_for_commit(&mut self.pending_commit) => {
                        self.finish_commit(outcome).await?;
                    }
                    Some(report) = self.discovery.next_report() => self.handle_report(report),
                    result = self.running.engine.next_result() => self.add_result(result?).await?,
                    event = self.running.source.reader.next(), if has_room => {
                        self.handle_event(event?).await?;
                    }
                    () = tokio::time::sleep(wait_time) => {}
                }
            }
            if self.pending_commit.is_none() && self.is_epoch_due() {
                self.end_epoch(false).await?;
            }
            self.report();
        }
    }

    /// Whether the open epoch may grow further.
    fn has_room(&self) -> bool {
        self.running.engine.pending_bytes() < MAX_PENDING_BYTES
    }

    fn is_epoch_due(&self) -> bool {
        let has_output = self.running.engine.has_output() || !self.pending_joins.is_empty();
        !self.has_room() || self.schedule.is_due(has_output)
    }

    /// Whether the run has an end and has reached it.
    pub(super) fn has_reached_end(&self) -> bool {
        self.targets.are_reached(&self.running.engine)
    }

    /// The time for an epoch.
    pub(super) fn now(&mut self) -> Micros {
        self.clock.now(&self.running.engine.customer.name)
    }

    /// Begins an epoch if none is open.
    pub(super) fn begin_epoch(&mut self) -> Result<()> {
        if self.open_epoch.is_some() {
            return Ok(());
        }
        let now = self.now();
        let joined = std::mem::take(&mut self.pending_joins);
        self.open_epoch = Some(OpenEpoch {
            now,
            joined: joined.clone(),
            tables: std::mem::take(&mut self.running.changed_tables),
            began: Instant::now(),
        });
        self.running.join(&joined)?;
        if !joined.is_empty() {
            self.discovery.update_known(&self.running.engine);
        }
        for join in &joined {
            tracing::info!(stream = join.stream, partition = %join.partition, offset = join.offset, "a partition joins");
        }
        self.running.engine.begin(now)
    }

    async fn handle_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Chunk(chunk) => self.absorb(chunk).await,
            Event::End { partition, position } => {
                self.begin_epoch()?;
                self.running.engine.reached_end(&partition, position);
                Ok(())
            }
        }
    }

    /// Gives a chunk to the engine, without the records before the partition's position.
    async fn absorb(&mut self, chunk: Chunk) -> Result<()> {
        self.begin_epoch()?;
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        let next = self.running.engine.position(&partition).map_or(0, |at| at.offset);
        if chunk.next_offset <= next {
            return Ok(());
        }
        let chunk = if chunk.first_offset < next { chunk.slice(next) } else { chunk };
        self.running.engine.absorb(chunk).await?;
        self.limit_drift(&partition.topic);
        Ok(())
    }

    /// Adds the result of a chunk to the epoch.
    async fn add_result(&mut self, result: ChunkResult) -> Result<()> {
        let topic = result.partition.topic.clone();
        self.running.engine.add_result(result).await?;
        self.limit_drift(&topic);
        Ok(())
    }

    /// Pauses partitions that are too far ahead of the slowest one of their stream, and resumes
    /// those that no longer are.
    fn limit_drift(&mut self, topic: &str) {
        let drift = self.running.engine.limit_drift(topic);
        self.paused.extend(drift.pause.iter().cloned());
        self.paused.retain(|partition| !drift.resume.contains(partition));
        if !drift.pause.is_empty() {
            self.running.source.reader.pause(&drift.pause);
        }
        if !drift.resume.is_empty() {
            self.running.source.reader.resume(&drift.resume);
        }
    }

    /// Queues new partitions for the next epoch, and records the ends of all partitions.
    fn handle_report(&mut self, report: DiscoveryReport) {
        self.targets.update(report.ends);
        for join in report.new_partitions {
            let is_known = self.running.engine.position(&join.partition).is_some()
                || self.pending_joins.iter().any(|pending| pending.partition == join.partition);
            if !is_known {
                self.pending_joins.push(join);
            }
        }
        if self.pending_joins.is_empty() {
            self.targets.set_targets();
        }
    }

    /// Publishes the status if it is due.
    pub fn report(&mut self) {
        if !self.reporter.is_due() {
            return;
        }
        let mut pending = self.discovery.pending_request();
        let commit = self.pending_commit.as_ref().map(|commit| commit.began);
        pending.since = [commit, pending.since].into_iter().flatten().min();
        let RunningPipeline { engine, log, .. } = &self.running;
        self.reporter.report(engine, self.targets.ends(), log.epoch, &self.paused, pending);
    }
}
