//! The conversion of records of output topics to rows of their history tables.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;

use crate::sink::headers;
use crate::source::chunk::{Chunk, Record};
use crate::{Error, Result};

/// Columns that a history table has besides the payload's columns.
const TABLE_COLUMNS: [&str; 6] =
    ["_topic", "_partition", "_offset", "_position", "_timestamp", "_deleted"];

/// What the records of an output topic contain.
pub enum OutputKind {
    /// JSON objects with these columns.
    Rows(SchemaRef),
    /// JSON objects with these columns, and keys. A null value deletes its key.
    Keyed(SchemaRef),
    /// Late rows, as JSON objects. Their columns for the row's source position have names of their
    /// own in the table.
    Late(SchemaRef),
    /// Dead letters: bytes, described by headers.
    DeadLetters,
}

impl OutputKind {
    /// Converts a chunk to rows with the columns of `table`.
    ///
    /// # Errors
    /// A value does not match the schema.
    pub fn rows(&self, chunk: &Chunk, table: &SchemaRef) -> Result<RecordBatch> {
        let (payload, records) = self.payload(chunk)?;
        let mut payload = self.payload_columns(&payload).into_iter();
        let mut columns = Vec::with_capacity(table.fields().len());
        for field in table.fields() {
            let column = match position_column(field, chunk, &records) {
                Some(column) => column,
                None => payload
                    .next()
                    .ok_or_else(|| Error::internal("a column of an output is missing"))?,
            };
            columns.push(column);
        }
        Ok(RecordBatch::try_new(table.clone(), columns)?)
    }

    /// The parsed values of a chunk, and the records that they come from.
    fn payload<'a>(&self, chunk: &'a Chunk) -> Result<(RecordBatch, Vec<&'a Record>)> {
        Ok(match self {
            Self::Rows(schema) | Self::Late(schema) => {
                let records: Vec<_> = chunk.records.iter().filter(|r| r.value.is_some()).collect();
                (json_rows(schema, records.iter().filter_map(|r| chunk.value(r)))?, records)
            }
            Self::Keyed(schema) => {
                let records: Vec<_> =
                    chunk.records.iter().filter(|r| r.value.is_some() || r.key.is_some()).collect();
                let values = records.iter().filter_map(|r| chunk.value(r).or_else(|| chunk.key(r)));
                (json_rows(schema, values)?, records)
            }
            Self::DeadLetters => {
                let records: Vec<_> = chunk.records.iter().collect();
                (dead_letter_rows(chunk, &records)?, records)
            }
        })
    }

    /// The columns that come from the payload, in the order of the table.
    fn payload_columns(&self, payload: &RecordBatch) -> Vec<ArrayRef> {
        match self {
            // The payload's own `_topic` and so on have other names in the table.
            Self::Late(_) => payload.columns().to_vec(),
            _ => (payload.schema().fields().iter().zip(payload.columns()))
                .filter(|(field, _)| !TABLE_COLUMNS.contains(&field.name().as_str()))
                .map(|(_, column)| column.clone())
                .collect(),
        }
    }
}

/// The column for the position, the time or the deletion of the records; `None` for a column of
/// the payload.
fn position_column(field: &Field, chunk: &Chunk, records: &[&Record]) -> Option<ArrayRef> {
    Some(match field.name().as_str() {
        "_topic" => Arc::new(StringArray::from(vec![chunk.topic.as_ref(); records.len()])),
        "_partition" => Arc::new(Int32Array::from(vec![chunk.partition; records.len()])),
        "_offset" => Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.offset))),
        "_position" => Arc::new(Int32Array::from(vec![0; records.len()])),
        "_timestamp" => {
            let times = records.iter().map(|r| r.timestamp_ms.max(0).saturating_mul(1_000));
            let array = TimestampMicrosecondArray::from_iter_values(times);
            Arc::new(array.with_data_type(field.data_type().clone()))
        }
        "_deleted" => {
            Arc::new(records.iter().map(|r| Some(r.value.is_none())).collect::<BooleanArray>())
        }
        _ => return None,
    })
}

/// Parses JSON objects as rows of `schema`.
fn json_rows<'a>(
    schema: &SchemaRef,
    values: impl Iterator<Item = &'a [u8]>,
) -> Result<RecordBatch> {
    let mut lines = Vec::new();
    let mut count = 0;
    for value in values {
        lines.extend_from_slice(value);
        lines.push(b'\n');
        count += 1;
    }
    let builder = ReaderBuilder::new(schema.clone()).with_batch_size(usize::max(count, 1));
    let mut decoder = builder.build_decoder()?;
    let mut decoded = 0;
    while decoded < lines.len() {
        let read = decoder.decode(&lines[decoded..])?;
        if read == 0 {
            break;
        }
        decoded += read;
    }
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

/// The columns of the table of dead letters, without the position of the dead letter itself.
pub fn dead_letter_schema() -> SchemaRef {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("stage", DataType::Utf8),
        field("query", DataType::Utf8),
        field("topic", DataType::Utf8),
        field("partition", DataType::Int32),
        field("offset", DataType::Int64),
        field("position", DataType::Int32),
        field("column", DataType::Utf8),
        field("reason", DataType::Utf8),
        field("key", DataType::Binary),
        field("value", DataType::Binary),
        field("headers", DataType::Utf8),
    ]))
}

fn dead_letter_rows(chunk: &Chunk, records: &[&Record]) -> Result<RecordBatch> {
    let header = |record: &Record, wanted: &str| chunk.header(record, wanted);
    let text = |name: &str| -> ArrayRef {
        Arc::new(records.iter().map(|r| header(r, name)).collect::<StringArray>())
    };
    let reason = |record: &Record| {
        let reason = header(record, headers::REASON)?;
        Some(match header(record, headers::TRUNCATED) {
            Some(was) => {
                format!("{reason} (this dead letter is truncated; the original was {was})")
            }
            None => reason,
        })
    };
    let number =
        |name: &str| records.iter().map(|r| header(r, name)?.parse().ok()).collect::<Int64Array>();
    let small = |name: &str| -> ArrayRef {
        Arc::new(records.iter().map(|r| header(r, name)?.parse().ok()).collect::<Int32Array>())
    };
    let other_headers = records.iter().map(|record| {
        let own = chunk.headers(record).filter(|(name, _)| !headers::is_reserved(name));
        let list: Vec<_> = own
            .map(|(name, value)| {
                let value = value.map(|v| match std::str::from_utf8(v) {
                    Ok(text) => serde_json::json!(text),
                    Err(_) => serde_json::json!({ "hex": hex::encode(v) }),
                });
                serde_json::json!([String::from_utf8_lossy(name), value])
            })
            .collect();
        (!list.is_empty()).then(|| serde_json::Value::from(list).to_string())
    });
    let columns: Vec<ArrayRef> = vec![
        text(headers::STAGE),
        text(headers::QUERY),
        text(headers::TOPIC),
        small(headers::PARTITION),
        Arc::new(number(headers::OFFSET)),
        small(headers::POSITION),
        text(headers::COLUMN),
        Arc::new(records.iter().map(|r| reason(r)).collect::<StringArray>()),
        Arc::new(records.iter().map(|r| chunk.key(r)).collect::<BinaryArray>()),
        Arc::new(records.iter().map(|r| chunk.value(r)).collect::<BinaryArray>()),
        Arc::new(other_headers.collect::<StringArray>()),
    ];
    Ok(RecordBatch::try_new(dead_letter_schema(), columns)?)
}
