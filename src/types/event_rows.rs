//! Decoded events with the place in Kafka that each came from, as history stores them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

/// A stream's columns and where each row came from.
pub fn event_schema(stream: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = stream.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("_topic", DataType::Utf8, false)));
    fields.push(Arc::new(Field::new("_partition", DataType::Int32, false)));
    fields.push(Arc::new(Field::new("_offset", DataType::Int64, false)));
    fields.push(Arc::new(Field::new("_position", DataType::Int32, false)));
    Arc::new(Schema::new(fields))
}

/// Decoded rows of one chunk, for the stream's history.
pub struct HistoryRows {
    /// The stream.
    pub stream: String,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The stream's columns, then `_topic`, `_partition`, `_offset`, `_position`.
    pub rows: RecordBatch,
    /// The position after the chunk.
    pub next_offset: i64,
    /// Size of the chunk that the rows were decoded from, which is about theirs.
    pub bytes: usize,
}
