//! Compares the decoder with the [reference decoder](crate::decode::tests::reference_decoder), and the
//! reference decoder with serde_json.
//!
//! The decoder and serde_json accept the same texts, except for these rules
//! ([`agrees_with_serde_json`]):
//! - the decoder accepts numbers of any size; serde_json rejects numbers beyond a DOUBLE (1e400) and,
//!   because of rounding, a few just below the limit (1.7976931348623157e308);
//! - the decoder accepts 128 levels of nesting, serde_json 127.
//!
//! A number out of the range of its column's type is rejected regardless of serde_json. Values are
//! rounded only to the nearest DOUBLE or REAL; serde_json differs by one or two bits for some.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field as ArrowField, Fields, Float32Type, Float64Type,
    Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use bytes::Bytes;
use chrono::{NaiveDate, TimeDelta};
use chrono_tz::Tz;
use serde_json::error::Category;

use crate::decode::tests::reference_decoder::{self, Json};
use crate::decode::{Decoded, Decoder, Field, Reason};
use crate::source::chunk::{Chunk, Record};

/// The time zone of local times.
pub const ZONE: Tz = Tz::Europe__Helsinki;

/// A column of each type, some of them NOT NULL.
pub fn fields() -> Vec<Field> {
    let timestamp = || DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Helsinki".into()));
    let list = |item, nullable| DataType::List(Arc::new(ArrowField::new("item", item, nullable)));
    let point = DataType::Struct(Fields::from(vec![
        ArrowField::new("x", DataType::Int64, false),
        ArrowField::new("name", DataType::Utf8, true),
        ArrowField::new("all", list(DataType::Float64, true), true),
    ]));
    let columns = [
        ("id", DataType::Int64, false, None),
        ("name", DataType::Utf8, true, None),
        ("double", DataType::Float64, true, None),
        ("flag", DataType::Boolean, true, None),
        ("tiny", DataType::Int8, true, None),
        ("small", DataType::Int16, true, None),
        ("int", DataType::Int32, false, None),
        ("real", DataType::Float32, true, None),
        ("price", DataType::Decimal128(9, 2), true, None),
        ("large", DataType::Decimal128(38, 10), true, None),
        ("raw", DataType::Binary, true, None),
        ("born", DataType::Date32, true, None),
        ("at", timestamp(), true, None),
        ("local", timestamp(), true, Some("%Y%m%d %H:%M:%S")),
        ("ms", timestamp(), true, Some("epoch_ms")),
        ("s", timestamp(), true, Some("epoch_s")),
        ("n\u{e4}me", DataType::Utf8, true, None),
        ("numbers", list(DataType::Int64, false), true, None),
        ("point", point.clone(), true, None),
        ("points", list(point, true), true, None),
    ];
    let field = |(name, data_type, nullable, format): (&str, DataType, bool, Option<&str>)| {
        let (name, format) = (name.to_owned(), format.map(str::to_owned));
        Field { name, data_type, nullable, format }
    };
    columns.into_iter().map(field).collect()
}

/// Returns a chunk with these values, without gaps between them; `None` is a tombstone.
pub fn chunk(values: &[Option<Vec<u8>>]) -> Chunk {
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    for (offset, value) in (0..).zip(values) {
        let start = bytes.len() as u32;
        bytes.extend_from_slice(value.as_deref().unwrap_or_default());
        let value = value.as_ref().map(|_| start..bytes.len() as u32);
        records.push(Record { offset, timestamp_ms: -1, key: None, value, headers: 0..0 });
    }
    Chunk {
        topic: "t".into(),
        partition: 0,
        first_offset: 0,
        next_offset: values.len() as i64,
        bytes: Bytes::from(bytes),
        records,
        append_time: false,
    }
}

/// The outcome of a comparison.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// The number of rows.
    pub good: u64,
    /// The number of rejected messages.
    pub bad: u64,
}

/// Decodes the values and compares the complete result with the reference decoder.
///
/// # Errors
/// Describes the first difference.
pub fn compare(
    decoder: &mut Decoder,
    fields: &[Field],
    values: &[Option<Vec<u8>>],
) -> Result<Tally, String> {
    let chunk = chunk(values);
    let decoded = decoder.decode(&chunk).map_err(|error| error.to_string())?;
    let (mut row, mut rejected, mut unknown) = (0, decoded.rejected.iter(), 0);
    for (record, value) in (0..).zip(values) {
        let Some(value) = value else { continue };
        let start = chunk.records[record as usize].value.as_ref().map_or(0, |range| range.start);
        let expected = reference_decoder::messages(value, fields, ZONE);
        for (position, (expected, own)) in (0..).zip(expected) {
            let place = (record, position);
            match expected {
                Ok((cells, keys)) => {
                    compare_row(&decoded, row, place, &cells)?;
                    unknown += keys;
                    row += 1;
                }
                Err((column, reason)) => {
                    let own = start + own.start as u32..start + own.end as u32;
                    let column = column.map(|index| fields[index].name.as_str());
                    let found = rejected.next().map(|found| {
                        let column = found.column.as_deref();
                        let place = (found.record, found.position);
                        (place, column, found.reason.kind, found.bytes.clone())
                    });
                    let expected: (_, _, Reason, Range<u32>) = (place, column, reason, own);
                    same_or(found, Some(expected))?;
                }
            }
        }
    }
    same_or(decoded.batch.num_rows(), row)?;
    same_or(rejected.next(), None)?;
    same_or(decoded.unknown_fields, unknown)?;
    same_or(decoded.tombstones, values.iter().filter(|value| value.is_none()).count() as u64)?;
    Ok(Tally { good: row as u64, bad: decoded.rejected.len() as u64 })
}

fn same_or<T: PartialEq + std::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?}, expected {expected:?}")) }
}

fn compare_row(
    decoded: &Decoded,
    row: usize,
    place: (u32, u32),
    cells: &[String],
) -> Result<(), String> {
    let found = decoded.records.get(row).copied().zip(decoded.positions.get(row).copied());
    same_or(found, Some(place))?;
    let batch: &RecordBatch = &decoded.batch;
    for (column, expected) in batch.columns().iter().zip(cells) {
        same_or(&cell(column, row), expected)?;
    }
    Ok(())
}

/// A value as the reference shows it.
fn cell(array: &dyn Array, row: usize) -> String {
    if array.is_null(row) {
        return "null".to_owned();
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).to_string(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).to_string(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Float32 => {
            format!("{:08x}", array.as_primitive::<Float32Type>().value(row).to_bits())
        }
        DataType::Float64 => {
            format!("{:016x}", array.as_primitive::<Float64Type>().value(row).to_bits())
        }
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value(row).to_string(),
        DataType::Date32 => {
            let days = TimeDelta::days(array.as_primitive::<Date32Type>().value(row).into());
            (NaiveDate::default() + days).to_string()
        }
        DataType::Timestamp(..) => {
            array.as_primitive::<TimestampMicrosecondType>().value(row).to_string()
        }
        DataType::Utf8 => reference_decoder::shown(array.as_string::<i32>().value(row).as_bytes()),
        DataType::Binary => {
            let bytes = array.as_binary::<i32>().value(row);
            bytes.iter().fold("x".to_owned(), |text, byte| format!("{text}{byte:02x}"))
        }
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            let items: Vec<_> = (0..items.len()).map(|item| cell(&items, item)).collect();
            format!("[{}]", items.join(","))
        }
        DataType::Struct(_) => {
            let columns = array.as_struct().columns();
            let cells: Vec<_> = columns.iter().map(|column| cell(column, row)).collect();
            format!("{{{}}}", cells.join(","))
        }
        other => other.to_string(),
    }
}

/// Whether serde_json and the reference say the same of a text as one JSON value.
pub fn agrees_with_serde_json(text: &[u8]) -> bool {
    match (serde_json::from_slice::<serde_json::Value>(text), reference_decoder::whole(text)) {
        (Ok(theirs), Some(own)) => same(&own, &theirs),
        (Err(_), None) => true,
        (Ok(_), None) => false,
        (Err(error), Some(own)) => {
            let said = error.to_string();
            error.classify() == Category::Syntax
                && ((said.contains("number out of range") && beyond_a_double(&own))
                    || (said.contains("recursion limit exceeded") && depth(&own) == 128))
        }
    }
}

fn beyond_a_double(value: &Json) -> bool {
    match value {
        Json::Number(text) => {
            let text = String::from_utf8_lossy(text);
            text.parse::<f64>().is_ok_and(|value| value.abs() >= f64::MAX * (1.0 - 1e-15))
        }
        Json::Array(items) => items.iter().any(beyond_a_double),
        Json::Object(members) => members.iter().any(|(_, value)| beyond_a_double(value)),
        _ => false,
    }
}

fn depth(value: &Json) -> usize {
    match value {
        Json::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Json::Object(members) => 1 + members.iter().map(|(_, v)| depth(v)).max().unwrap_or(0),
        _ => 0,
    }
}

fn same(own: &Json, theirs: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (own, theirs) {
        (Json::Null, Value::Null) => true,
        (Json::Bool(own), Value::Bool(theirs)) => own == theirs,
        (Json::Text(own), Value::String(theirs)) => own == theirs.as_bytes(),
        (Json::Number(own), Value::Number(theirs)) => {
            let own = String::from_utf8_lossy(own);
            let integer = theirs.as_i64().map(i128::from).or(theirs.as_u64().map(i128::from));
            match integer {
                Some(integer) => reference_decoder::exact(&own, 0) == Ok(integer),
                // Without its slow exact mode serde_json may be off by a bit or two.
                None => own.parse::<f64>().is_ok_and(|own| {
                    let theirs = theirs.as_f64().unwrap_or(f64::NAN);
                    (own - theirs).abs() <= (own.abs() * 1e-15).max(f64::MIN_POSITIVE)
                }),
            }
        }
        (Json::Array(own), Value::Array(theirs)) => {
            own.len() == theirs.len()
                && own.iter().zip(theirs).all(|(own, theirs)| same(own, theirs))
        }
        (Json::Object(own), Value::Object(theirs)) => {
            theirs.iter().all(|(key, theirs)| {
                let last = own.iter().rev().find(|(own, _)| own == key.as_bytes());
                last.is_some_and(|(_, own)| same(own, theirs))
            }) && own.iter().all(|(key, _)| theirs.keys().any(|k| k.as_bytes() == key))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::tests::hostile::Hostile;

    /// Records to be tried: MILLSTREAM_FUZZ_CASES, or so many.
    fn cases(few: u64) -> u64 {
        std::env::var("MILLSTREAM_FUZZ_CASES").map_or(few, |text| text.parse().unwrap())
    }

    /// From MILLSTREAM_FUZZ_SEED on, where a long run left off.
    fn seed() -> u64 {
        std::env::var("MILLSTREAM_FUZZ_SEED").map_or(20191030, |text| text.parse().unwrap())
    }

    #[test]
    fn hostile_records_are_decoded_as_the_reference_does() {
        let (mut hostile, columns) = (Hostile::new(seed()), fields());
        let mut decoder = Decoder::new(columns.clone(), ZONE).unwrap();
        let (mut total, mut tried) = (Tally::default(), 0);
        while tried < cases(6_000) {
            let values = hostile.records();
            tried += values.len() as u64;
            match compare(&mut decoder, &columns, &values) {
                Ok(tally) => {
                    total.good += tally.good;
                    total.bad += tally.bad;
                }
                Err(difference) => {
                    let shown: Vec<_> = (values.iter().flatten())
                        .map(|value| value.escape_ascii().to_string())
                        .collect();
                    panic!("{difference}\nseed {}, after {tried}: {shown:#?}", seed());
                }
            }
        }
        println!("{tried} records: {total:?}");
        assert!(total.good > tried / 4 && total.bad > tried / 4, "{tried} records: {total:?}");
    }

    #[test]
    fn a_record_that_is_cut_does_not_go_on_in_the_next() {
        let (mut hostile, columns) = (Hostile::new(7), fields());
        let mut decoder = Decoder::new(columns.clone(), ZONE).unwrap();
        for _ in 0..5 {
            let whole = hostile.record();
            for cut in 0..whole.len() {
                let (head, tail) = whole.split_at(cut);
                let values = [&whole, head, tail].map(|part| Some(part.to_vec()));
                compare(&mut decoder, &columns, &values).unwrap();
            }
        }
    }

    #[test]
    fn hostile_records_are_json_where_serde_json_says_so() {
        let mut hostile = Hostile::new(seed() ^ 1);
        let mut json = 0;
        let all = cases(6_000);
        for number in 0..all {
            let text = hostile.record();
            assert!(agrees_with_serde_json(&text), "case {number}: {}", text.escape_ascii());
            json += u64::from(reference_decoder::whole(&text).is_some());
        }
        println!("{all} texts: {json} are JSON");
        assert!(json > all / 4 && json < all - all / 4, "{json} of {all}");
    }

    /// The rules of this module's head, by example.
    #[test]
    fn where_serde_json_and_we_differ() {
        let theirs = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for (text, their, own) in [
            ("1e400".to_owned(), false, true),
            ("{\"id\": -1e400}".to_owned(), false, true),
            ("1.7976931348623158e308".to_owned(), false, true),
            ("1.7976931348623157e308".to_owned(), true, true),
            (nested(127), true, true),
            (nested(128), false, true),
            (nested(129), false, false),
            ("\u{feff}1".to_owned(), false, false),
            ("[1,]".to_owned(), false, false),
        ] {
            let whole = reference_decoder::whole(text.as_bytes()).is_some();
            assert_eq!((theirs(&text), whole), (their, own), "{text}");
            assert!(agrees_with_serde_json(text.as_bytes()), "{text}");
        }
    }
}
