//! Encodes the Parquet file of one date: sorted by time, with the statistics for Delta.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{interleave_record_batch, max, min};
use arrow::datatypes::{
    DataType, Int32Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType,
};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, SecondsFormat};
use deltalake::kernel::Add;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use crate::history::delta_table::{DATE, INDEXED, OFFSET};
use crate::time::{DAY, Micros};
use crate::{Error, Kind, Result};

/// The number of rows of a row group, the smallest unit that a query on a time range reads.
const ROW_GROUP_ROWS: usize = 131_072;
/// The size limit of an integer dictionary: 8,192 numbers of 64 bits.
const DICTIONARY_BYTES: usize = 64 << 10;
/// The number of rows that one call gathers while rows are sorted.
const GATHER_ROWS: usize = 32_768;
/// The dates that Delta's text format can represent: years 1 to 9999.
const DATES: std::ops::RangeInclusive<i64> = -719_162..=2_932_896;

/// The UTC date of an instant, in days since 1970; `None` outside years 1 to 9999.
pub(super) fn date_of(time: Micros) -> Option<i32> {
    let day = time.div_euclid(DAY);
    DATES.contains(&day).then(|| i32::try_from(day).ok()).flatten()
}

/// Formats a date as a partition value.
pub(super) fn date_text(date: i32) -> Option<String> {
    NaiveDate::from_epoch_days(date).map(|date| date.format("%Y-%m-%d").to_string())
}

/// The Parquet settings of all files of a table with the time column `time`.
///
/// Times and offsets ascend, so delta encoding is small and a dictionary does not help. Other integer
/// columns fall back to delta encoding when their dictionary grows too large, because most of them
/// are identifiers or times. Only the time column and the offsets have page statistics. Other columns
/// can skip whole files only, for which the Delta log has the statistics.
pub(super) fn writer_properties(schema: &Schema, time: &str) -> WriterProperties {
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_created_by(concat!("millstream ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_statistics_enabled(EnabledStatistics::None);
    for name in [time, OFFSET] {
        builder =
            builder.set_column_statistics_enabled(ColumnPath::from(name), EnabledStatistics::Page);
    }
    for name in [time, OFFSET] {
        builder = builder.set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    let whole = |kind: &DataType| {
        kind.is_signed_integer() || matches!(kind, DataType::Timestamp(..) | DataType::Date32)
    };
    for field in schema.fields().iter().filter(|field| whole(field.data_type())) {
        let column = ColumnPath::from(field.name().as_str());
        builder = builder
            .set_column_dictionary_page_size_limit(column.clone(), DICTIONARY_BYTES)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    builder.build()
}

/// An encoded file.
pub(super) struct Encoded {
    /// The path relative to the folder of the table.
    pub path: String,
    /// The content.
    pub bytes: Bytes,
    /// The Delta action that adds the file.
    pub add: Add,
}

/// Encodes the rows of one date. It blocks the calling thread.
pub(super) fn encode(
    schema: &SchemaRef,
    date: Option<i32>,
    batches: &[RecordBatch],
    now_ms: i64,
) -> Result<Encoded> {
    let times: Vec<&[i64]> = batches.iter().map(|batch| times(batch.column(0))).collect();
    let fail = |error| Error::new(Kind::Storage, "cannot encode a Parquet file").because(error);
    let buffer = Vec::with_capacity(1 << 20);
    let properties = Some(writer_properties(schema, schema.field(0).name()));
    let mut writer = ArrowWriter::try_new(buffer, schema.clone(), properties).map_err(fail)?;
    if times.iter().flat_map(|times| times.iter()).is_sorted() {
        for batch in batches {
            writer.write(batch).map_err(fail)?;
        }
    } else {
        let all: Vec<&RecordBatch> = batches.iter().collect();
        for rows in sorted(&times, &by_partition(batches)).chunks(GATHER_ROWS) {
            writer.write(&interleave_record_batch(&all, rows)?).map_err(fail)?;
        }
    }
    let bytes = Bytes::from(writer.into_inner().map_err(fail)?);
    let value = date.and_then(date_text);
    let folder = value.as_deref().unwrap_or("__HIVE_DEFAULT_PARTITION__");
    let path = format!("{DATE}={folder}/part-{}.zstd.parquet", uuid::Uuid::new_v4());
    let add = Add {
        path: path.clone(),
        partition_values: [(DATE.to_owned(), value)].into_iter().collect(),
        size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        modification_time: now_ms,
        data_change: true,
        stats: Some(statistics(schema, date.is_some(), batches).to_string()),
        ..Add::default()
    };
    Ok(Encoded { path, bytes, add })
}

/// The values of a timestamp column. The values of null rows are arbitrary.
pub(super) fn times(column: &ArrayRef) -> &[i64] {
    column.as_primitive::<TimestampMicrosecondType>().values()
}

/// The indices of the batches that are not empty, grouped by partition, in order of arrival.
fn by_partition(batches: &[RecordBatch]) -> Vec<usize> {
    let mut order: Vec<usize> =
        (0..batches.len()).filter(|&index| batches[index].num_rows() > 0).collect();
    order.sort_by_key(|&index| {
        let partition = batches[index].column(2).as_primitive::<Int32Type>().value(0);
        (batches[index].column(1).as_string::<i32>().value(0), partition)
    });
    order
}

/// Sorts rows, as (batch, row), by time and then by arrival. `order` lists the batches to sort.
fn sorted(times: &[&[i64]], order: &[usize]) -> Vec<(usize, usize)> {
    let mut rows: Vec<(i64, u32, u32)> =
        Vec::with_capacity(times.iter().map(|times| times.len()).sum());
    for &batch in order {
        let index = batch as u32;
        rows.extend((0_u32..).zip(times[batch]).map(|(row, time)| (*time, index, row)));
    }
    // Rows of a partition are mostly in order, and this sort is fast for runs that are sorted.
    rows.sort();
    rows.into_iter().map(|(_, batch, row)| (batch as usize, row as usize)).collect()
}

/// The Delta statistics of the first columns, as JSON. `dated` means that all times are in the years 1
/// to 9999, so that they have a text format.
fn statistics(schema: &SchemaRef, dated: bool, batches: &[RecordBatch]) -> Value {
    let (mut low, mut high, mut nulls) = (Map::new(), Map::new(), Map::new());
    for (index, field) in schema.fields().iter().enumerate().take(INDEXED) {
        let columns: Vec<&ArrayRef> = batches.iter().map(|batch| batch.column(index)).collect();
        let count: usize = columns.iter().map(|column| column.null_count()).sum();
        nulls.insert(field.name().clone(), json!(count));
        let (least, greatest) = match index {
            0 if dated => {
                let values =
                    || columns.iter().map(|c| c.as_primitive::<TimestampMicrosecondType>());
                (
                    values().filter_map(min).min().and_then(instant_text),
                    values().filter_map(max).max().and_then(instant_text),
                )
            }
            // All rows of a batch are from one partition.
            1 => {
                let batches = columns.iter().filter(|column| !column.is_empty());
                let topics = || batches.clone().map(|column| column.as_string::<i32>().value(0));
                (topics().min().map(Value::from), topics().max().map(Value::from))
            }
            2 | 4 => {
                let values = || columns.iter().map(|column| column.as_primitive::<Int32Type>());
                (
                    values().filter_map(min).min().map(Value::from),
                    values().filter_map(max).max().map(Value::from),
                )
            }
            3 => {
                let values = || columns.iter().map(|column| column.as_primitive::<Int64Type>());
                (
                    values().filter_map(min).min().map(Value::from),
                    values().filter_map(max).max().map(Value::from),
                )
            }
            _ => (None, None),
        };
        low.extend(least.map(|value| (field.name().clone(), value)));
        high.extend(greatest.map(|value| (field.name().clone(), value)));
    }
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    json!({ "numRecords": rows, "minValues": low, "maxValues": high, "nullCount": nulls })
}

fn instant_text(time: Micros) -> Option<Value> {
    let text = DateTime::from_timestamp_micros(time)?.to_rfc3339_opts(SecondsFormat::Micros, true);
    Some(Value::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_outside_deltas_range_have_none() {
        assert_eq!(date_of(0), Some(0));
        assert_eq!(date_of(-1), Some(-1));
        assert_eq!(date_of(i64::MAX), None);
        assert_eq!(date_of(i64::MIN), None);
        assert_eq!(date_text(date_of(253_402_300_799_999_999).unwrap()).unwrap(), "9999-12-31");
        assert_eq!(date_of(253_402_300_800_000_000), None);
    }
}
