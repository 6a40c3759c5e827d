//! Helpers that the decoder tests share.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, TimeUnit, TimestampMicrosecondType,
};
use bytes::Bytes;
use chrono_tz::Tz;

use crate::decode::{Decoded, Decoder, Field, RejectedMessage};
use crate::source::chunk::{Chunk, Record};

/// Returns a chunk with these values, each after a key of one byte; `None` is a tombstone.
pub(super) fn chunk(values: &[Option<&[u8]>]) -> Chunk {
    let mut bytes = Vec::new();
    let mut records = Vec::new();
    for (offset, value) in (0..).zip(values) {
        let key = bytes.len() as u32..bytes.len() as u32 + 1;
        bytes.push(b'k');
        let start = bytes.len() as u32;
        bytes.extend_from_slice(value.unwrap_or_default());
        let value = value.map(|_| start..bytes.len() as u32);
        records.push(Record { offset, timestamp_ms: -1, key: Some(key), value, headers: 0..0 });
    }
    let next_offset = values.len() as i64;
    Chunk {
        topic: "t".into(),
        partition: 0,
        first_offset: 0,
        next_offset,
        bytes: Bytes::from(bytes),
        records,
        append_time: false,
    }
}

pub(super) fn field(name: &str, data_type: DataType, nullable: bool) -> Field {
    Field { name: name.to_owned(), data_type, nullable, format: None }
}

pub(super) fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Helsinki".into()))
}

pub(super) fn decoder(fields: Vec<Field>) -> Decoder {
    Decoder::new(fields, Tz::Europe__Helsinki).unwrap()
}

pub(super) fn decode(fields: Vec<Field>, values: &[&str]) -> Decoded {
    let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
    decoder(fields).decode(&chunk(&values)).unwrap()
}

/// Returns one value as text; a null is "null".
pub(super) fn show(batch: &RecordBatch, column: usize, row: usize) -> String {
    let array = batch.column(column);
    if array.is_null(row) {
        return "null".to_owned();
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).to_string(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(row).to_string(),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value_as_string(row),
        DataType::Timestamp(..) => {
            array.as_primitive::<TimestampMicrosecondType>().value(row).to_string()
        }
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::Binary => format!("{:?}", array.as_binary::<i32>().value(row)),
        other => panic!("{other}"),
    }
}

pub(super) fn people() -> Vec<Field> {
    vec![
        field("part_id", DataType::Int64, false),
        field("room", DataType::Utf8, false),
        field("level", DataType::Float64, true),
    ]
}

/// Summarizes rows and rejections, as in `0.0 1 hall null` and `1.0 not_json - 5`.
pub(super) fn summary(decoded: &Decoded) -> Vec<String> {
    let batch = &decoded.batch;
    let row = |row: usize| {
        let values: Vec<_> =
            (0..batch.num_columns()).map(|column| show(batch, column, row)).collect();
        format!("{}.{} {}", decoded.records[row], decoded.positions[row], values.join(" "))
    };
    let rejected = |rejected: &RejectedMessage| {
        let column = rejected.column.as_deref().unwrap_or("-");
        let (record, position) = (rejected.record, rejected.position);
        format!(
            "{record}.{position} {} {column} {}",
            rejected.reason.as_str(),
            rejected.bytes.len()
        )
    };
    (0..batch.num_rows()).map(row).chain(decoded.rejected.iter().map(rejected)).collect()
}
