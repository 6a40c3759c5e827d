//! One customer's pipeline: the only module that names every stage.
//!
//! ```text
//!  Reader ─► Engine (deterministic) ─► Committer (one transaction an epoch)
//!                │                          │ committed
//!                └─ snapshot, barrier       └─► EventHistory, and the tail of the output topics
//! ```
//!
//! The loop reads chunks, ends an epoch when there is something to say, and commits it while the
//! next one is already being read. At most one commit is under way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::catalog::Emit;
use crate::commit::{
    CommittedEpoch, EpochOutput, PROGRESS_VERSION, PartitionJoin, Process, Progress, SnapshotRef,
};
use crate::failpoint::reach;
use crate::source::Event;
use crate::source::chunk::Chunk;
use crate::time::{Micros, SECOND};
use crate::types::{HistoryRows, OutRecord, SourcePosition, TopicPartition};
use crate::{Error, Kind, Result};

use crate::pipeline::engine::worker::ChunkResult;
use crate::pipeline::engine::{Engine, EngineOutput};
use crate::pipeline::partition_discovery::{DiscoveryReport, PartitionDiscovery};
use crate::pipeline::rebuild::output_dedup::OutputDedup;
use crate::pipeline::recovery::RunningPipeline;
use crate::pipeline::stop::stop_deadline;
use crate::pipeline::{Mode, PipelineConfig, reporter};

/// Commits follow each other by at least this, and by twice the recent commit time.
const COMMIT_INTERVAL: Duration = Duration::from_millis(25);
/// An epoch that says nothing still ends after this.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);
/// Results and rows of an unfinished epoch beyond this end it; until then nothing is read.
const PENDING_BYTES: usize = 64 << 20;

/// A commit under way, and what follows when it is through.
pub(super) struct Commit {
    epoch: u64,
    task: JoinHandle<Result<CommittedEpoch>>,
    history: Vec<HistoryRows>,
    names_snapshot: Option<SnapshotRef>,
    began: Instant,
    newest_ms: i64,
}

/// An epoch that has begun and not ended.
#[derive(Default)]
pub(super) struct Open {
    now: Micros,
    joined: Vec<PartitionJoin>,
    tables: BTreeMap<String, String>,
    began: Option<Instant>,
}

pub struct Pipeline {
    pub(super) begun: RunningPipeline,
    pub(super) process: Process,
    pub(super) options: PipelineConfig,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) open: Open,
    pub(super) commit: Option<Commit>,
    pub(super) commit_time: Duration,
    pub(super) committed_at: Instant,
    pub(super) recorded: BTreeMap<TopicPartition, SourcePosition>,
    pub(super) discovery: PartitionDiscovery,
    pub(super) waiting_joins: Vec<PartitionJoin>,
    pub(super) ends: HashMap<TopicPartition, i64>,
    pub(super) targets: Option<HashMap<TopicPartition, i64>>,
    pub(super) emitted_at: HashMap<String, Micros>,
    pub(super) drained: bool,
    pub(super) paused: BTreeSet<TopicPartition>,
    pub(super) status: reporter::Reporter,
    /// The latest that the wall clock has shown. When it is set back, time stands still here:
    /// events of the present are no events of the future.
    pub(super) now: Micros,
    /// Whether it was set back, and that was told.
    pub(super) set_back: bool,
    /// In a rebuild: what the topics hold already. Nothing is committed before its end.
    pub(super) published: Option<OutputDedup>,
}

impl Pipeline {
    pub(super) fn new(
        begun: RunningPipeline,
        process: Process,
        options: PipelineConfig,
        stop: watch::Receiver<bool>,
        results_wait_since: Option<watch::Receiver<Option<Micros>>>,
    ) -> Self {
        let recorded = begun.engine.positions();
        let discovery =
            PartitionDiscovery::start(&begun.engine, options.kafka.clone(), begun.first);
        let waits = reporter::Waits {
            events: begun.history.pending_since.clone(),
            results: results_wait_since,
        };
        let status = reporter::Reporter::new(&begun.engine, &options, waits);
        Self {
            recorded,
            discovery,
            waiting_joins: Vec::new(),
            open: Open::default(),
            commit: None,
            commit_time: Duration::ZERO,
            committed_at: Instant::now(),
            ends: HashMap::new(),
            targets: None,
            emitted_at: HashMap::new(),
            drained: false,
            paused: BTreeSet::new(),
            process,
            status,
            now: options.clock.now(),
            set_back: false,
            published: None,
            begun,
            options,
            stop,
        }
    }

    /// Reads, processes and commits until told to stop or until the mode's end.
    pub(super) async fn live(&mut self) -> Result<()> {
        if self.begun.restate && self.published.is_none() {
            let records = self.begun.retracted.clone();
            self.record_snapshot(records).await?;
            self.begun.restate = false;
        }
        loop {
            if *self.stop.borrow() || self.reached_end() {
                return Ok(());
            }
            if let Some(chunk) = self.begun.ahead.pop_front() {
                self.absorb(chunk).await?;
            } else {
                let (room, patience) = (self.has_room(), self.patience());
                tokio::select! {
                    biased;
                    _ = self.stop.changed() => continue,
                    done = finished(&mut self.commit) => self.committed(done).await?,
                    Some(look) = self.discovery.next_report() => self.looked(look)?,
                    worked = self.begun.engine.next_result() => self.worked(worked?).await?,
                    event = self.begun.reader.next(), if room => self.take(event?).await?,
                    () = tokio::time::sleep(patience) => {}
                }
            }
            if self.commit.is_none() && self.is_due() {
                self.end_epoch(false).await?;
            }
            self.report();
        }
    }

    /// Whether results, and rows for history, may still pile up.
    fn has_room(&self) -> bool {
        self.begun.engine.pending_bytes() < PENDING_BYTES
    }

    /// How long to wait for an event before looking at the clock.
    fn patience(&self) -> Duration {
        let interval =
            if self.begun.engine.has_output() { self.commit_interval() } else { QUIET_INTERVAL };
        interval
            .saturating_sub(self.committed_at.elapsed())
            .clamp(Duration::from_millis(1), Duration::from_millis(200))
    }

    fn commit_interval(&self) -> Duration {
        self.options.commit_interval.unwrap_or_else(|| COMMIT_INTERVAL.max(self.commit_time * 2))
    }

    fn is_due(&self) -> bool {
        let since = self.committed_at.elapsed();
        let news = self.begun.engine.has_output() || !self.waiting_joins.is_empty();
        !self.has_room()
            || since >= QUIET_INTERVAL.max(self.commit_interval())
            || (news && since >= self.commit_interval())
    }

    /// The wall clock, which never goes back here.
    fn clock(&mut self) -> Micros {
        let now = self.options.clock.now();
        let back = self.now.saturating_sub(now);
        if back > SECOND && !std::mem::replace(&mut self.set_back, true) {
            let seconds = back / SECOND;
            tracing::warn!(
                customer = self.begun.engine.customer.name,
                "the clock was set back by {seconds} s: time stands still until it comes by again"
            );
        }
        self.set_back &= back > 0;
        self.now = self.now.max(now);
        self.now
    }

    /// Begins an epoch if none is open.
    fn begin(&mut self) -> Result<()> {
        if self.open.began.is_some() {
            return Ok(());
        }
        self.open = Open {
            now: self.clock(),
            joined: std::mem::take(&mut self.waiting_joins),
            tables: std::mem::take(&mut self.begun.new_tables),
            began: Some(Instant::now()),
        };
        let joined = self.open.joined.clone();
        self.begun.join(&joined)?;
        if !joined.is_empty() {
            self.discovery.update_known(&self.begun.engine);
        }
        for join in &joined {
            tracing::info!(stream = join.stream, partition = %join.partition, offset = join.offset, "a partition joins");
        }
        self.begun.engine.begin(self.open.now)
    }

    async fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Chunk(chunk) => self.absorb(chunk).await,
            Event::End { partition, position } => {
                self.begin()?;
                self.begun.engine.reached_end(&partition, position);
                Ok(())
            }
        }
    }

    async fn absorb(&mut self, chunk: Chunk) -> Result<()> {
        self.begin()?;
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        let next = self.begun.engine.position(&partition).map_or(0, |at| at.offset);
        if chunk.next_offset <= next {
            return Ok(());
        }
        let chunk = if chunk.first_offset < next { chunk.slice(next) } else { chunk };
        self.begun.engine.absorb(chunk).await?;
        self.keep_together(&partition.topic);
        Ok(())
    }

    /// A chunk is through.
    async fn worked(&mut self, worked: ChunkResult) -> Result<()> {
        let topic = worked.partition.topic.clone();
        self.begun.engine.add_result(worked).await?;
        self.keep_together(&topic);
        Ok(())
    }

    /// Pauses partitions that ran too far ahead of the slowest one of their stream.
    fn keep_together(&mut self, topic: &str) {
        let drift = self.begun.engine.limit_drift(topic);
        self.paused.extend(drift.pause.iter().cloned());
        self.paused.retain(|partition| !drift.resume.contains(partition));
        if !drift.pause.is_empty() {
            self.begun.reader.pause(&drift.pause);
        }
        if !drift.resume.is_empty() {
            self.begun.reader.resume(&drift.resume);
        }
    }

    /// Ends the open epoch and sends it off. `last`: nothing follows, so idleness is taken as given.
    pub(super) async fn end_epoch(&mut self, last: bool) -> Result<()> {
        self.begin()?;
        self.begun.engine.gather().await?;
        let now = self.clock();
        let drain = last && self.options.mode == Mode::Drain;
        self.drained |= drain;
        let assume_idle = last && self.options.mode != Mode::Follow;
        let decisions = self.begun.engine.decide_clock(now, assume_idle);
        let emits = self.due_emissions(now);
        let moved = moved(&self.begun.engine, &self.recorded);
        let open = std::mem::take(&mut self.open);
        let ready = self.begun.snapshots.take_ready();
        let silent = moved.is_empty()
            && decisions.is_empty()
            && emits.is_empty()
            && open.joined.is_empty()
            && open.tables.is_empty()
            && ready.is_none()
            && !self.begun.engine.has_output();
        if silent && !drain {
            self.committed_at = Instant::now();
            self.look_at_tables().await?;
            return Ok(());
        }
        let epoch = self.begun.epoch + 1;
        reach("epoch.end");
        let output = self.begun.engine.end(&decisions, &emits, drain).await?;
        reach("epoch.ended");
        self.status.output(&output);
        if let Some(published) = &mut self.published {
            published.compare(output.records)?;
            self.committed_at = Instant::now();
            self.recorded = self.begun.engine.positions();
            return self.begun.history.append(self.begun.epoch, output.history).await;
        }
        let mut record = Progress {
            version: PROGRESS_VERSION,
            epoch,
            now: open.now,
            joined: open.joined,
            positions: moved,
            decisions,
            emitted: emits,
            tables: open.tables,
            drained: drain,
            ..Progress::default()
        };
        if self.options.check_replays {
            record.digests = self.begun.engine.digests()?;
        }
        if self.begun.first || ready.is_some() {
            self.fill(&mut record, ready.clone());
        }
        self.send(record, output, ready, open.began.unwrap_or_else(Instant::now))?;
        self.look_at_tables().await?;
        // The first epoch may never be committed: a snapshot beside an empty log would look like a
        // log that was lost.
        if epoch > 1 && self.begun.snapshots.is_due() {
            self.start_snapshot(epoch)?;
        }
        self.begun.snapshots.poll(false).await
    }

    /// Makes a record full: it stands for itself.
    fn fill(&mut self, record: &mut Progress, snapshot: Option<SnapshotRef>) {
        record.full = true;
        record.positions = self.begun.engine.positions();
        record.cluster = Some(self.begun.cluster.clone());
        record.topics = self.begun.topics.clone();
        record.plans = self.begun.engine.fingerprints();
        record.skipped = std::mem::take(&mut self.begun.skipped);
        self.begun.snapshots.name_in(record, snapshot);
        self.begun.first = false;
    }

    fn send(
        &mut self,
        mut record: Progress,
        output: EngineOutput,
        names_snapshot: Option<SnapshotRef>,
        began: Instant,
    ) -> Result<()> {
        record.process = Some(self.process.clone());
        let offsets = if record.full || record.epoch.is_multiple_of(32) {
            let all = self.begun.engine.positions();
            all.into_iter().map(|(p, at)| (p, at.offset)).collect()
        } else {
            Vec::new()
        };
        let epoch = record.epoch;
        let sent =
            EpochOutput { epoch, records: output.records, progress: record.encode()?, offsets };
        let committer = self.begun.committer.clone();
        let task = tokio::spawn(async move { committer.commit(sent).await });
        self.commit = Some(Commit {
            epoch,
            task,
            history: output.history,
            names_snapshot,
            began,
            newest_ms: output.newest_ms,
        });
        self.begun.epoch = epoch;
        self.recorded = self.begun.engine.positions();
        self.committed_at = Instant::now();
        Ok(())
    }

    /// A commit came back.
    async fn committed(&mut self, done: Result<CommittedEpoch>) -> Result<()> {
        let done = done?;
        let Some(commit) = self.commit.take() else { return Ok(()) };
        self.commit_time = (self.commit_time * 3 + done.took) / 4;
        self.status.committed(
            commit.epoch,
            done.took,
            commit.began.elapsed(),
            commit.newest_ms,
            self.options.clock.now(),
        );
        self.status.too_large(done.diverted);
        reach("epoch.history");
        self.begun.history.append(commit.epoch, commit.history).await?;
        reach("epoch.history.handed");
        self.begun.snapshots.record_commit(commit.epoch, done.log_offset);
        if let Some(named) = commit.names_snapshot {
            self.begun.snapshots.record_named(named);
            self.status.snapshot_named(self.options.clock.now());
        }
        Ok(())
    }

    /// Tells how things stand, if it is time to.
    pub(super) fn report(&mut self) {
        if !self.status.is_due() {
            return;
        }
        let commit = self.commit.as_ref().map(|commit| commit.began);
        let pending = self.discovery.pending_request();
        let asked = [commit, pending.since].into_iter().flatten().min();
        let RunningPipeline { engine, epoch, .. } = &self.begun;
        self.status.report(engine, &self.ends, *epoch, &self.paused, (asked, pending.error));
    }

    /// Queries whose open windows are to be evaluated early now.
    fn due_emissions(&mut self, now: Micros) -> Vec<String> {
        let mut due = Vec::new();
        for query in self.begun.engine.queries() {
            let plan = query.plan();
            let Emit::Every(every) = plan.query.emit else { continue };
            let last = self.emitted_at.entry(plan.name.clone()).or_insert(now);
            if now - *last >= every {
                *last = now;
                due.push(plan.name.clone());
            }
        }
        due
    }

    async fn look_at_tables(&mut self) -> Result<()> {
        self.begun.take_table_changes().await?;
        Ok(())
    }

    fn looked(&mut self, look: DiscoveryReport) -> Result<()> {
        self.ends.extend(look.ends);
        for join in look.new_partitions {
            let known = self.begun.engine.position(&join.partition).is_some()
                || self.waiting_joins.iter().any(|w| w.partition == join.partition);
            if !known {
                self.waiting_joins.push(join);
            }
        }
        if self.targets.is_none()
            && self.options.mode != Mode::Follow
            && self.waiting_joins.is_empty()
        {
            self.targets = Some(self.ends.clone());
        }
        Ok(())
    }

    /// Whether the end that the topics had when first looked at is reached.
    fn reached_end(&self) -> bool {
        let Some(targets) = &self.targets else { return false };
        targets.iter().all(|(partition, end)| {
            self.begun.engine.position(partition).is_some_and(|at| at.offset >= *end)
        })
    }

    /// Takes a snapshot at this barrier and writes it in the background.
    fn start_snapshot(&mut self, epoch: u64) -> Result<()> {
        reach("snapshot.take");
        let since = Instant::now();
        let mut state = self.begun.engine.snapshot()?;
        reach("snapshot.taken");
        state.manifest.tables = self.begun.tables.current.clone();
        self.begun.history.commit_early(epoch);
        self.begun.snapshots.write(epoch, state, self.begun.history.committed_epoch.clone());
        self.options.metrics.snapshot_taken(&self.begun.engine.customer.name, since.elapsed());
        Ok(())
    }

    /// Takes a snapshot of now and commits a full record that names it, with `records`: nothing
    /// happens between the two.
    pub(super) async fn record_snapshot(&mut self, records: Vec<OutRecord>) -> Result<()> {
        self.begun.history.flush().await?;
        self.start_snapshot(self.begun.epoch)?;
        self.begun.snapshots.poll(true).await?;
        let reference = self.begun.snapshots.take_ready();
        let mut record = Progress {
            version: PROGRESS_VERSION,
            epoch: self.begun.epoch + 1,
            now: self.clock(),
            clean: true,
            drained: self.drained,
            ..Progress::default()
        };
        self.fill(&mut record, reference.clone());
        let output = EngineOutput { records, ..EngineOutput::default() };
        self.send(record, output, reference, Instant::now())?;
        self.settle().await
    }

    /// Waits for the commit under way.
    async fn settle(&mut self) -> Result<()> {
        if self.commit.is_some() {
            let done = tokio::select! {
                done = finished(&mut self.commit) => done,
                () = stop_deadline(self.stop.clone()) => Err(unanswered()),
            };
            self.committed(done).await?;
        }
        Ok(())
    }

    /// Ends the last epoch, commits, takes a snapshot and flushes history.
    pub(super) async fn finish(&mut self) -> Result<()> {
        self.settle().await?;
        let complete = self.reached_end();
        self.end_epoch(complete).await?;
        self.settle().await?;
        self.record_snapshot(Vec::new()).await?;
        self.begun.snapshots.finish_deletion().await;
        self.begun.history.flush().await?;
        self.report();
        Ok(())
    }
}

fn unanswered() -> Error {
    Error::new(Kind::Kafka, "Kafka does not answer: stopped without the last commit")
        .hint("what is not committed is read again at the next start; nothing is lost")
}

/// The end of the commit under way; never, when none is.
async fn finished(commit: &mut Option<Commit>) -> Result<CommittedEpoch> {
    match commit {
        Some(commit) => (&mut commit.task)
            .await
            .map_err(|e| Error::internal("the commit task failed").because(e))?,
        None => std::future::pending().await,
    }
}

/// Positions that differ from what was recorded last.
fn moved(
    engine: &Engine,
    recorded: &BTreeMap<TopicPartition, SourcePosition>,
) -> BTreeMap<TopicPartition, SourcePosition> {
    let mut now = engine.positions();
    now.retain(|partition, at| recorded.get(partition) != Some(at));
    now
}
