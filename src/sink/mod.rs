//! Results, dead letters and late rows as Kafka records.
//!
//! This module only converts batches to [`OutRecord`](crate::types::OutRecord)s, which are sent in the
//! transaction of their epoch. Values are JSON objects in arrow-json's encoding (timestamps in
//! RFC 3339 with the zone's offset, see `json_instant.rs`; explicit nulls), keys are JSON objects of
//! the key columns.

mod dead_letter;
mod json_instant;
mod late_rows;
mod oversized;
mod results;
mod size_limit;

use std::sync::Arc;

use arrow::json::writer::{LineDelimited, WriterBuilder};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

pub use dead_letter::{DeadLetter, FailureStage, SourceMessage, headers};
pub use late_rows::late_schema;
pub use late_rows::{late_rows, origin_columns};
pub use oversized::{TopicContent, replace_oversized};
pub use results::{Publication, ResultSink};
pub use size_limit::{DEFAULT_LIMIT, ReplaceOversized, SizeLimits, size_of};

use crate::Result;

/// The topic of `customer`'s dead letters.
pub fn dead_letter_topic(customer: &str) -> Arc<str> {
    format!("millstream.{customer}.dead_letters").into()
}

/// The topic of the late rows of `stream`.
pub fn late_topic(customer: &str, stream: &str) -> Arc<str> {
    format!("millstream.{customer}.{stream}_late").into()
}

/// Encodes each row as a JSON object. The results are slices of one buffer.
pub fn json_rows(batch: &RecordBatch) -> Result<Vec<Bytes>> {
    if batch.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let mut writer = WriterBuilder::new()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(json_instant::InstantEncoderFactory))
        .build::<_, LineDelimited>(Vec::with_capacity(batch.num_rows() * 96));
    writer.write(batch)?;
    writer.finish()?;
    let buffer = Bytes::from(writer.into_inner());
    let mut rows = Vec::with_capacity(batch.num_rows());
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', &buffer) {
        rows.push(buffer.slice(start..end));
        start = end + 1;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};

    #[test]
    fn rows_are_json_objects_with_local_times_and_nulls() {
        let time = TimestampMicrosecondArray::from(vec![1_572_393_600_000_000, 0]);
        let batch = RecordBatch::try_from_iter([
            ("t", Arc::new(time.with_timezone("Europe/Helsinki")) as ArrayRef),
            ("n", Arc::new(Int64Array::from(vec![Some(3), None]))),
            ("s", Arc::new(StringArray::from(vec!["a\nb", "c"]))),
        ])
        .unwrap();
        let rows = json_rows(&batch).unwrap();
        assert_eq!(rows[0], r#"{"t":"2019-10-30T02:00:00+02:00","n":3,"s":"a\nb"}"#);
        assert_eq!(rows[1], r#"{"t":"1970-01-01T02:00:00+02:00","n":null,"s":"c"}"#);
    }
}
