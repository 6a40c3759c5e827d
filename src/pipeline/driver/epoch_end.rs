//! The end of an epoch: its record, its commit, and the snapshots between epochs.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::commit::{CommittedEpoch, EpochOutput, PROGRESS_VERSION, Progress, SnapshotRef};
use crate::failpoint::reach;
use crate::pipeline::config::Mode;
use crate::pipeline::driver::epoch_sink::EpochSink;
use crate::pipeline::driver::pending_commit::{
    PendingCommit, commit_timeout_error, wait_for_commit,
};
use crate::pipeline::driver::pipeline_driver::PipelineDriver;
use crate::pipeline::engine::EngineOutput;
use crate::pipeline::stop::stop_deadline;
use crate::types::{OutRecord, SourcePosition, TopicPartition};
use crate::{Error, Result};

/// Every so many epochs, the offsets of all partitions are committed for the consumer group, so
/// that lag tools see them.
const GROUP_OFFSETS_EPOCHS: u64 = 32;

impl PipelineDriver {
    /// Ends the open epoch and starts its commit. `is_last`: no epoch follows, so that in a run
    /// with an end all partitions count as idle.
    ///
    /// # Errors
    /// The engine, a snapshot or a reference table failed.
    pub async fn end_epoch(&mut self, is_last: bool) -> Result<()> {
        self.begin_epoch()?;
        self.running.engine.gather().await?;
        let now = self.now();
        let drains = is_last && self.config.mode == Mode::Drain;
        self.is_drained |= drains;
        let assume_idle = is_last && self.config.mode != Mode::Follow;
        let decisions = self.running.engine.decide_clock(now, assume_idle);
        let emitted = self.emissions.take_due(&self.running.engine, now);
        let positions = self.moved_positions();
        let open = self.open_epoch.take();
        let open = open.ok_or_else(|| Error::internal("an epoch ends without a beginning"))?;
        let snapshot = self.running.snapshots.take_ready();
        let mut record = Progress {
            version: PROGRESS_VERSION,
            epoch: self.running.log.epoch + 1,
            now: open.now,
            joined: open.joined,
            positions,
            decisions,
            emitted,
            tables: open.tables,
            drained: drains,
            ..Progress::default()
        };
        if !drains && snapshot.is_none() && !self.has_content(&record) {
            self.schedule.epoch_ended();
            return self.running.load_changed_tables().await;
        }
        reach("epoch.end");
        let engine = &mut self.running.engine;
        let output = engine.end(&record.decisions, &record.emitted, drains).await?;
        reach("epoch.ended");
        self.reporter.count_output(&output);
        if matches!(self.sink, EpochSink::Collect(_)) {
            return self.collect_output(output).await;
        }
        if self.config.check_replays {
            record.digests = self.running.engine.digests()?;
        }
        if self.running.log.is_empty || snapshot.is_some() {
            self.make_full(&mut record, snapshot.clone());
        }
        let epoch = record.epoch;
        self.start_commit(record, output, snapshot, open.began)?;
        self.running.load_changed_tables().await?;
        // The first epoch may never be committed, and a snapshot beside an empty log would look
        // like a lost log.
        if epoch > 1 && self.running.snapshots.is_due() {
            self.start_snapshot(epoch)?;
        }
        self.running.snapshots.poll(false).await
    }

    /// Whether an epoch has anything to record or to publish.
    fn has_content(&self, record: &Progress) -> bool {
        !record.positions.is_empty()
            || !record.decisions.is_empty()
            || !record.emitted.is_empty()
            || !record.joined.is_empty()
            || !record.tables.is_empty()
            || self.running.engine.has_output()
    }

    /// The positions that differ from the newest record.
    fn moved_positions(&self) -> BTreeMap<TopicPartition, SourcePosition> {
        let mut positions = self.running.engine.positions();
        positions.retain(|partition, at| self.recorded_positions.get(partition) != Some(at));
        positions
    }

    /// Collects the records of an epoch that is not committed, and hands its rows to history.
    async fn collect_output(&mut self, output: EngineOutput) -> Result<()> {
        if let EpochSink::Collect(dedup) = &mut self.sink {
            dedup.add(output.records)?;
        }
        self.schedule.epoch_ended();
        self.recorded_positions = self.running.engine.positions();
        self.running.history.append(self.running.log.epoch, output.history).await
    }

    /// Makes a record full: it contains everything that recovery needs from the log before it.
    fn make_full(&mut self, record: &mut Progress, snapshot: Option<SnapshotRef>) {
        record.full = true;
        record.positions = self.running.engine.positions();
        record.cluster = Some(self.running.log.cluster_id.clone());
        record.topics = self.running.log.topic_ids.clone();
        record.plans = self.running.engine.fingerprints();
        if let Some(required) = &mut self.running.required_snapshot {
            record.skipped = std::mem::take(&mut required.skipped);
        }
        self.running.snapshots.name_in(record, snapshot);
        self.running.log.is_empty = false;
    }

    /// Starts the commit of an epoch in the background. `snapshot`: the one that the record names
    /// for the first time.
    fn start_commit(
        &mut self,
        mut record: Progress,
        output: EngineOutput,
        snapshot: Option<SnapshotRef>,
        began: Instant,
    ) -> Result<()> {
        record.process = Some(self.process.clone());
        let positions = self.running.engine.positions();
        let offsets = if record.full || record.epoch.is_multiple_of(GROUP_OFFSETS_EPOCHS) {
            positions.iter().map(|(partition, at)| (partition.clone(), at.offset)).collect()
        } else {
            Vec::new()
        };
        let epoch = record.epoch;
        let progress = record.encode()?;
        let transaction = EpochOutput { epoch, records: output.records, progress, offsets };
        let committer = self.running.committer.clone();
        let task = tokio::spawn(async move { committer.commit(transaction).await });
        let (history, newest_ms) = (output.history, output.newest_ms);
        self.pending_commit =
            Some(PendingCommit { epoch, task, history, snapshot, began, newest_ms });
        self.running.log.epoch = epoch;
        self.recorded_positions = positions;
        self.schedule.epoch_ended();
        Ok(())
    }

    /// Handles the outcome of the pending commit: hands the epoch's rows to history and deletes
    /// what the log no longer needs.
    pub(super) async fn finish_commit(&mut self, outcome: Result<CommittedEpoch>) -> Result<()> {
        let committed = outcome?;
        let Some(commit) = self.pending_commit.take() else { return Ok(()) };
        self.schedule.record_commit_time(committed.took);
        self.reporter.count_commit(
            commit.epoch,
            committed.took,
            commit.began.elapsed(),
            commit.newest_ms,
            self.config.clock.now(),
        );
        self.reporter.count_oversized(committed.diverted);
        reach("epoch.history");
        self.running.history.append(commit.epoch, commit.history).await?;
        reach("epoch.history.handed");
        self.running.snapshots.record_commit(commit.epoch, committed.log_offset);
        if let Some(snapshot) = commit.snapshot {
            self.running.snapshots.record_named(snapshot);
            self.reporter.record_snapshot(self.config.clock.now());
        }
        Ok(())
    }

    /// Takes a snapshot of the state after `epoch` and writes it in the background.
    fn start_snapshot(&mut self, epoch: u64) -> Result<()> {
        reach("snapshot.take");
        let since = Instant::now();
        let running = &mut self.running;
        let mut state = running.engine.snapshot()?;
        reach("snapshot.taken");
        state.manifest.tables = running.tables.current.clone();
        running.history.commit_early(epoch);
        running.snapshots.write(epoch, state, running.history.committed_epoch.clone());
        self.config.metrics.snapshot_taken(&running.engine.customer.name, since.elapsed());
        Ok(())
    }

    /// Records the snapshot that recovery requires, if it does, before the first epoch.
    ///
    /// # Errors
    /// As of [`PipelineDriver::record_snapshot`].
    pub async fn record_required_snapshot(&mut self) -> Result<()> {
        let Some(required) = &self.running.required_snapshot else { return Ok(()) };
        let tombstones = required.tombstones.clone();
        self.record_snapshot(tombstones).await?;
        self.running.required_snapshot = None;
        Ok(())
    }

    /// Takes a snapshot and commits a full record that names it, together with `records`. No epoch
    /// may be open.
    ///
    /// # Errors
    /// The snapshot cannot be written or the record cannot be committed.
    pub async fn record_snapshot(&mut self, records: Vec<OutRecord>) -> Result<()> {
        self.running.history.flush().await?;
        self.start_snapshot(self.running.log.epoch)?;
        self.running.snapshots.poll(true).await?;
        let snapshot = self.running.snapshots.take_ready();
        let mut record = Progress {
            version: PROGRESS_VERSION,
            epoch: self.running.log.epoch + 1,
            now: self.now(),
            clean: true,
            drained: self.is_drained,
            ..Progress::default()
        };
        self.make_full(&mut record, snapshot.clone());
        let output = EngineOutput { records, ..EngineOutput::default() };
        self.start_commit(record, output, snapshot, Instant::now())?;
        self.wait_for_pending_commit().await
    }

    /// Waits for the pending commit, until the deadline of a stop.
    async fn wait_for_pending_commit(&mut self) -> Result<()> {
        if self.pending_commit.is_some() {
            let outcome = tokio::select! {
                outcome = wait_for_commit(&mut self.pending_commit) => outcome,
                () = stop_deadline(self.stop.clone()) => Err(commit_timeout_error()),
            };
            self.finish_commit(outcome).await?;
        }
        Ok(())
    }

    /// Ends the last epoch, commits it, records a snapshot and flushes history.
    ///
    /// # Errors
    /// As of the single steps.
    pub async fn finish(&mut self) -> Result<()> {
        self.wait_for_pending_commit().await?;
        let is_complete = self.has_reached_end();
        self.end_epoch(is_complete).await?;
        self.wait_for_pending_commit().await?;
        self.record_snapshot(Vec::new()).await?;
        self.running.snapshots.finish_deletion().await;
        self.running.history.flush().await?;
        self.report();
        Ok(())
    }
}
