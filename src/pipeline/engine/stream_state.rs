//! The state of one source stream: positions, record counts and watermarks of its partitions.
//!
//! Invariant: only this type changes the positions and the watermarks of a stream, and only the
//! engine calls the methods that do.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use sha2::{Digest, Sha256};

use crate::catalog::{ColumnSource, Stream};
use crate::commit::SkippedOffsets;
use crate::pipeline::engine::worker::ChunkResult;
use crate::planner::StreamPlan;
use crate::state::manifest::StreamManifest;
use crate::time::Micros;
use crate::types::{HistoryRows, SourcePosition, TopicPartition, event_schema};
use crate::watermark::{
    BlockingPartition, ClockDecision, Drift, LateBound, PartitionView, WatermarkSettings,
    WatermarkState, Watermarks,
};
use crate::{Error, Result};

/// The positions and watermarks of a source stream.
pub struct StreamState {
    plan: Arc<StreamPlan>,
    watermarks: Watermarks,
    positions: BTreeMap<TopicPartition, SourcePosition>,
    rows_read: u64,
    bytes_read: u64,
    unknown_fields: u64,
    has_history: bool,
}

/// The settings of a stream that concern event time.
fn settings(stream: &Stream) -> WatermarkSettings {
    WatermarkSettings {
        delay_us: stream.watermark.delay_us,
        idle_timeout_us: stream.idle_timeout_us,
        max_drift_us: stream.max_drift_us,
    }
}

/// The fingerprint of a stream. It is equal for streams that turn the same messages into the same
/// rows: same columns, same expressions, same watermark delay.
pub fn fingerprint(plan: &StreamPlan) -> String {
    hex::encode(Sha256::digest(columns(plan)))
}

/// The text that the fingerprint is a hash of: a line for each column, and the watermark. It must
/// stay byte for byte, for a deployed pipeline has recorded its hash.
pub fn columns(plan: &StreamPlan) -> String {
    let mut text = String::new();
    for column in &plan.stream.columns {
        let source = match &column.source {
            ColumnSource::Payload { format } => format!("payload {format:?}"),
            ColumnSource::Metadata(kind) => format!("metadata {kind:?}"),
            ColumnSource::Computed(expr) => format!("computed {expr}"),
        };
        let (name, data_type, nullable) = (&column.name, &column.data_type, column.nullable);
        text.push_str(&format!("{name} {data_type} {nullable} {source}\n"));
    }
    text.push_str(&format!("{:?}", plan.stream.watermark));
    text
}

impl StreamState {
    /// The state of a stream without partitions. Its rows go to history if `history` is on and the
    /// stream is declared with history.
    pub fn new(plan: Arc<StreamPlan>, history: bool) -> Self {
        Self {
            watermarks: Watermarks::new(settings(&plan.stream)),
            positions: BTreeMap::new(),
            rows_read: 0,
            bytes_read: 0,
            unknown_fields: 0,
            has_history: history && plan.stream.history,
            plan,
        }
    }

    /// The plan of the stream.
    pub fn plan(&self) -> &Arc<StreamPlan> {
        &self.plan
    }

    /// Whether the stream's rows are written to history.
    pub fn has_history(&self) -> bool {
        self.has_history
    }

    /// Rows decoded since the start of the process.
    pub fn rows_read(&self) -> u64 {
        self.rows_read
    }

    /// Bytes read since the start of the process.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Fields of the stream's messages that its schema does not name.
    pub fn unknown_fields(&self) -> u64 {
        self.unknown_fields
    }

    /// The position and the record counts of every partition.
    pub fn positions(&self) -> &BTreeMap<TopicPartition, SourcePosition> {
        &self.positions
    }

    /// The partitions that have joined, in order.
    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.positions.keys()
    }

    /// The stream's watermark.
    pub fn watermark(&self) -> Micros {
        self.watermarks.stream()
    }

    /// The watermarks of all partitions, as a snapshot stores them.
    pub fn watermark_state(&self) -> WatermarkState {
        self.watermarks.state()
    }

    /// Every partition with its watermark, for the status page.
    pub fn partition_views(&self) -> impl Iterator<Item = PartitionView> + '_ {
        self.watermarks.partitions()
    }

    /// The partition that keeps a window open that ends at `window_end`; `None` if none does.
    pub fn blocking_partition(&self, window_end: Micros) -> Option<BlockingPartition> {
        self.watermarks.blocking_partition(window_end)
    }

    /// Adds a partition that is read from `offset` on. A known partition does not change.
    pub(super) fn join(&mut self, partition: &TopicPartition, offset: i64) {
        self.positions.entry(partition.clone()).or_insert(SourcePosition {
            offset,
            joined: offset,
            ..SourcePosition::default()
        });
        self.watermarks.join(partition);
    }

    /// Adds a partition with the position and the record counts of an earlier run. Its watermark
    /// starts from the beginning.
    pub(super) fn resume_at(&mut self, partition: &TopicPartition, position: SourcePosition) {
        self.join(partition, position.offset);
        self.positions.insert(partition.clone(), position);
    }

    /// Freezes the watermarks by which the partitions hold each other back in this epoch.
    pub(super) fn begin_epoch(&mut self) {
        self.watermarks.begin_epoch();
    }

    /// Moves a partition past its next chunk. Returns the partition's rank among the stream's
    /// partitions, and the bound by which the chunk's rows are judged late.
    ///
    /// # Errors
    /// The partition never joined.
    pub(super) fn begin_chunk(
        &mut self,
        partition: &TopicPartition,
        next_offset: i64,
    ) -> Result<(usize, LateBound)> {
        let rank = self.rank(partition);
        let position = self.positions.get_mut(partition);
        let position =
            position.ok_or_else(|| Error::internal(format!("{partition} was never joined")))?;
        position.offset = next_offset;
        self.watermarks.record_activity(partition);
        Ok((rank, self.watermarks.late_bound(partition)))
    }

    /// Adds the result of a chunk to the counts and advances its partition's watermark. The
    /// position has moved already, in [`StreamState::begin_chunk`].
    pub(super) fn complete_chunk(&mut self, result: &ChunkResult) {
        self.rows_read += result.decoded;
        self.bytes_read += result.bytes as u64;
        self.unknown_fields += result.unknown_fields;
        self.watermarks.advance(&result.partition, result.watermark, result.decoded > 0);
        if let Some(position) = self.positions.get_mut(&result.partition) {
            position.decoded += result.decoded;
            position.rejected += result.rejected.len() as u64;
            position.tombstones += result.tombstones;
        }
    }

    /// Advances the watermark over rows of a partition that come from history. Returns the
    /// partition's rank, and the watermark just before each row. The position does not move.
    pub(super) fn pass_history_rows(
        &mut self,
        partition: &TopicPartition,
        event_times: &[Micros],
    ) -> (usize, Vec<Micros>) {
        self.watermarks.record_activity(partition);
        let mut bound = self.watermarks.late_bound(partition);
        let before = bound.pass(event_times);
        self.watermarks.advance(partition, bound.own, !event_times.is_empty());
        (self.rank(partition), before)
    }

    /// The number of the stream's partitions that sort before this one.
    fn rank(&self, partition: &TopicPartition) -> usize {
        self.positions.range(..partition).count()
    }

    /// Records that the reader reached the end of a partition, at `offset`.
    pub(super) fn reached_end(&mut self, partition: &TopicPartition, offset: i64) {
        self.skip_to(partition, offset);
        self.watermarks.at_end(partition);
    }

    /// Moves a position over offsets that hold no records. A position never goes back.
    pub(super) fn skip_to(&mut self, partition: &TopicPartition, offset: i64) {
        if let Some(position) = self.positions.get_mut(partition) {
            position.offset = position.offset.max(offset);
        }
    }

    /// Moves a position over offsets that Kafka no longer has, and counts them as skipped. Returns
    /// what moves history over them, if the partition has joined and the stream has history: a
    /// part without rows.
    pub(super) fn skip_missing(&mut self, missing: &SkippedOffsets) -> Option<HistoryRows> {
        let SkippedOffsets { partition, from, to } = missing;
        let position = self.positions.get_mut(partition)?;
        tracing::warn!(%partition, from, to, "skipping offsets that Kafka no longer has");
        position.skipped += u64::try_from(to - position.offset).unwrap_or(0);
        position.offset = position.offset.max(*to);
        self.has_history.then(|| HistoryRows {
            stream: self.plan.stream.name.clone(),
            topic: partition.topic.clone(),
            partition: partition.partition,
            rows: RecordBatch::new_empty(event_schema(&self.plan.schema)),
            next_offset: *to,
            bytes: 0,
        })
    }

    /// Decides how the watermarks of idle partitions move at the time `now`. With `assume_idle`,
    /// every partition counts as being at its end and quiet.
    pub(super) fn decide_clock(&mut self, now: Micros, assume_idle: bool) -> Vec<ClockDecision> {
        if assume_idle {
            self.watermarks.assume_idle();
        }
        self.watermarks.decide(now)
    }

    /// Applies what [`StreamState::decide_clock`] decided, in this run or in a recorded epoch.
    pub(super) fn apply(&mut self, decisions: &[ClockDecision]) {
        decisions.iter().for_each(|decision| self.watermarks.apply(decision));
    }

    /// Lifts the watermark of every partition to `watermark` at least, as decided at the time `at`.
    pub(super) fn lift_watermark(&mut self, watermark: Micros, at: Micros) {
        for partition in self.positions.keys().cloned() {
            self.watermarks.apply(&ClockDecision { partition, watermark, at });
        }
    }

    /// Moves the stream's watermark to the end of time.
    pub(super) fn drain(&mut self) {
        self.watermarks.drain();
    }

    /// Finds the partitions that are too far ahead of the slowest one and those that no longer
    /// are, and marks them as paused or not.
    pub(super) fn limit_drift(&mut self) -> Drift {
        let drift = self.watermarks.drift();
        drift.pause.iter().for_each(|partition| self.watermarks.set_paused(partition, true));
        drift.resume.iter().for_each(|partition| self.watermarks.set_paused(partition, false));
        drift
    }

    /// The state as a snapshot stores it.
    pub(super) fn manifest(&self) -> StreamManifest {
        StreamManifest {
            positions: self.positions.clone(),
            watermarks: self.watermarks.state(),
            plan: Some(columns(&self.plan)),
        }
    }

    /// Takes over positions and watermarks from a snapshot.
    pub(super) fn restore(&mut self, saved: StreamManifest) {
        self.watermarks = Watermarks::restore(settings(&self.plan.stream), &saved.watermarks);
        self.positions = saved.positions;
    }
}
