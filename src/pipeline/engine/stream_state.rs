//! One source stream: its partitions' positions, accounts and watermarks.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::catalog::{ColumnSource, Stream};
use crate::pipeline::engine::worker::ChunkResult;
use crate::planner::StreamPlan;
use crate::types::{SourcePosition, TopicPartition};
use crate::watermark::{WatermarkSettings, Watermarks};

/// A source stream's watermarks and positions.
pub struct StreamStage {
    /// Its plan.
    pub plan: Arc<StreamPlan>,
    /// Its partitions' watermarks.
    pub watermarks: Watermarks,
    /// Its partitions' positions and accounts.
    pub positions: BTreeMap<TopicPartition, SourcePosition>,
    /// Rows decoded since the start.
    pub rows_read: u64,
    /// Bytes read since the start.
    pub bytes_read: u64,
    /// Fields of its messages that the schema does not name.
    pub unknown_fields: u64,
    /// Whether its rows are handed on to history.
    pub history: bool,
}

/// What a stream's declaration says about time.
pub fn settings(stream: &Stream) -> WatermarkSettings {
    WatermarkSettings {
        delay_us: stream.watermark.delay_us,
        idle_timeout_us: stream.idle_timeout_us,
        max_drift_us: stream.max_drift_us,
    }
}

/// Equal for streams whose rows come out the same: columns, expressions and the delay.
pub fn fingerprint(plan: &StreamPlan) -> String {
    hex::encode(&Sha256::digest(columns(plan)))
}

/// What a fingerprint is over: a line for each column, and the watermark.
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

impl StreamStage {
    /// The stage of `plan`'s stream, without partitions; without history unless `history`.
    pub fn new(plan: Arc<StreamPlan>, history: bool) -> Self {
        let watermarks = Watermarks::new(settings(&plan.stream));
        let positions = BTreeMap::new();
        let (rows_read, bytes_read, unknown_fields) = (0, 0, 0);
        let history = history && plan.stream.history;
        Self { plan, watermarks, positions, rows_read, bytes_read, unknown_fields, history }
    }

    /// Adds a partition that is read from `offset`.
    pub fn join(&mut self, partition: &TopicPartition, offset: i64) {
        self.positions.entry(partition.clone()).or_insert(SourcePosition {
            offset,
            joined: offset,
            ..SourcePosition::default()
        });
        self.watermarks.join(partition);
    }

    /// Counts a chunk that is through. Its offsets were counted when it was given away.
    pub fn worked(&mut self, worked: &ChunkResult) {
        self.rows_read += worked.decoded;
        self.bytes_read += worked.bytes as u64;
        self.unknown_fields += worked.unknown_fields;
        self.watermarks.advance(&worked.partition, worked.watermark, worked.decoded > 0);
        if let Some(position) = self.positions.get_mut(&worked.partition) {
            position.decoded += worked.decoded;
            position.rejected += worked.rejected.len() as u64;
            position.tombstones += worked.tombstones;
        }
    }
}
