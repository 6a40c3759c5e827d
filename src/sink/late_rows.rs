//! Late rows: one record per row that arrived too late, and per query that refused it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;

use crate::sink::json_rows;
use crate::types::OutRecord;
use crate::window::Late;
use crate::{Error, Result};

/// Columns of `<stream>_late`: the stream's own, then the query, the first refused window's start,
/// the last refused window's end, the watermark that refused the row, and where the row came from.
pub fn late_schema(stream: &SchemaRef, zone: &str) -> SchemaRef {
    let instant = || DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into()));
    let mut fields: Vec<_> = stream.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("query", DataType::Utf8, false)));
    fields.push(Arc::new(Field::new("refused_from", instant(), false)));
    fields.push(Arc::new(Field::new("refused_to", instant(), false)));
    fields.push(Arc::new(Field::new("watermark", instant(), false)));
    fields.push(Arc::new(Field::new("_topic", DataType::Utf8, false)));
    fields.push(Arc::new(Field::new("_partition", DataType::Int32, false)));
    fields.push(Arc::new(Field::new("_offset", DataType::Int64, false)));
    fields.push(Arc::new(Field::new("_position", DataType::Int32, false)));
    Arc::new(Schema::new(fields))
}

/// The records for rows of `batch` that `query` refused. `origins` are the columns `_topic`,
/// `_partition`, `_offset` and `_position` of the batch's rows.
pub fn late_rows(
    topic: &Arc<str>,
    query: &str,
    batch: &RecordBatch,
    origins: &[ArrayRef],
    late: &[Late],
    zone: &str,
) -> Result<Vec<OutRecord>> {
    let rows = u64::try_from(batch.num_rows()).map_err(|_| Error::internal("too many rows"))?;
    debug_assert!(late.iter().all(|l| (l.row as u64) < rows));
    let indices = UInt64Array::from_iter_values(late.iter().map(|l| l.row as u64));
    let take = |array: &ArrayRef| arrow::compute::take(array, &indices, None);
    let instants = |values: Vec<i64>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(values).with_timezone(zone))
    };
    let mut columns = batch.columns().iter().map(take).collect::<Result<Vec<_>, _>>()?;
    columns.push(Arc::new(StringArray::from(vec![query; late.len()])));
    columns.push(instants(late.iter().map(|l| l.first.start).collect()));
    columns.push(instants(late.iter().map(|l| l.last.end).collect()));
    columns.push(instants(late.iter().map(|l| l.watermark).collect()));
    for origin in origins {
        columns.push(take(origin)?);
    }
    let rows = RecordBatch::try_new(late_schema(&batch.schema(), zone), columns)?;
    let values = json_rows(&rows)?;
    Ok(values
        .into_iter()
        .map(|value| OutRecord {
            topic: topic.clone(),
            partition: None,
            key: None,
            value: Some(value),
            headers: Vec::new(),
            timestamp_ms: None,
        })
        .collect())
}

/// The origin columns of rows of one partition.
pub fn origin_columns(
    topic: &str,
    partition: i32,
    offsets: Vec<i64>,
    positions: Vec<i32>,
) -> [ArrayRef; 4] {
    let count = offsets.len();
    [
        Arc::new(StringArray::from(vec![topic; count])),
        Arc::new(Int32Array::from(vec![partition; count])),
        Arc::new(Int64Array::from(offsets)),
        Arc::new(Int32Array::from(positions)),
    ]
}
