//! Decoded rows with the Kafka offset of each, in the form that history stores.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;

/// The columns of a stream, followed by `_topic`, `_partition`, `_offset` and `_position` (the
/// index of the row inside its record).
pub fn event_schema(stream: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = stream.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("_topic", DataType::Utf8, false)));
    fields.push(Arc::new(Field::new("_partition", DataType::Int32, false)));
    fields.push(Arc::new(Field::new("_offset", DataType::Int64, false)));
    fields.push(Arc::new(Field::new("_position", DataType::Int32, false)));
    Arc::new(Schema::new(fields))
}

/// The decoded rows of one chunk, to be appended to the history of a stream.
pub struct HistoryRows {
    /// The name of the stream.
    pub stream: String,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The rows; the columns are those of [`event_schema`].
    pub rows: RecordBatch,
    /// The offset that follows the chunk.
    pub next_offset: i64,
    /// The size in bytes of the encoded chunk, an estimate of the size of `rows`.
    pub bytes: usize,
}
