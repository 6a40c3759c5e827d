//! The rules of decoding, each by example, and all of them against serde_json.

mod differential;
mod hostile;
mod reference_decoder;

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field as ArrowField, Fields, Float32Type, Float64Type,
    Int16Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use bytes::Bytes;
use chrono_tz::Tz;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::decode::{Decoded, Decoder, Field, Reason, RejectedMessage};
use crate::source::chunk::{Chunk, Record};

/// A chunk of these values; `None` is a tombstone. A key stands before each value.
fn chunk(values: &[Option<&[u8]>]) -> Chunk {
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

fn field(name: &str, data_type: DataType, nullable: bool) -> Field {
    Field { name: name.to_owned(), data_type, nullable, format: None }
}

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("Europe/Helsinki".into()))
}

fn decoder(fields: Vec<Field>) -> Decoder {
    Decoder::new(fields, Tz::Europe__Helsinki).unwrap()
}

fn decode(fields: Vec<Field>, values: &[&str]) -> Decoded {
    let values: Vec<_> = values.iter().map(|value| Some(value.as_bytes())).collect();
    decoder(fields).decode(&chunk(&values)).unwrap()
}

/// One row's value as text; null is "null".
fn show(batch: &RecordBatch, column: usize, row: usize) -> String {
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

/// What becomes of `{"v": <json>}` in a nullable column of this type.
fn take(data_type: DataType, format: Option<&str>, json: &str) -> String {
    let mut field = field("v", data_type, true);
    field.format = format.map(str::to_owned);
    let decoded = decode(vec![field], &[&format!("{{\"v\": {json}}}")]);
    match decoded.rejected.first() {
        Some(rejected) => rejected.reason.as_str().to_owned(),
        None => show(&decoded.batch, 0, 0),
    }
}

#[test]
fn a_declared_type_takes_what_loses_nothing() {
    let cases = [
        (DataType::Int64, "12", "12"),
        (DataType::Int64, "\"12\"", "12"),
        (DataType::Int64, "12.0", "12"),
        (DataType::Int64, "\"12.0\"", "12"),
        (DataType::Int64, "1e2", "100"),
        (DataType::Int64, "-0", "0"),
        (DataType::Int64, "12.5", "wrong_type"),
        (DataType::Int64, "\"\"", "wrong_type"),
        (DataType::Int64, "\" 12\"", "wrong_type"),
        (DataType::Int64, "\"+12\"", "wrong_type"),
        (DataType::Int64, "\"012\"", "wrong_type"),
        (DataType::Int64, "\"twelve\"", "wrong_type"),
        (DataType::Int64, "\"\\u0031\\u0032\"", "12"),
        (DataType::Int64, "true", "wrong_type"),
        (DataType::Int64, "[12]", "wrong_type"),
        (DataType::Int64, "{\"v\": 12}", "wrong_type"),
        (DataType::Int64, "null", "null"),
        (DataType::Int64, "9223372036854775807", "9223372036854775807"),
        (DataType::Int64, "9223372036854775808", "out_of_range"),
        (DataType::Int64, "1e400", "out_of_range"),
        (DataType::Int32, "2147483647", "2147483647"),
        (DataType::Int32, "2147483648", "out_of_range"),
        (DataType::Int16, "-32768", "-32768"),
        (DataType::Int16, "\"-32769\"", "out_of_range"),
        (DataType::Float64, "0.1", "0.1"),
        (DataType::Float64, "\"-1.5e3\"", "-1500"),
        (DataType::Float64, "12", "12"),
        (DataType::Float64, "1e400", "out_of_range"),
        (DataType::Float64, "-1e400", "out_of_range"),
        (DataType::Float64, "1e-400", "0"),
        (DataType::Float64, "\"NaN\"", "wrong_type"),
        (DataType::Float64, "\"Infinity\"", "wrong_type"),
        (DataType::Float32, "0.1", "0.1"),
        (DataType::Float32, "1e39", "out_of_range"),
        (DataType::Utf8, "\"living room\"", "living room"),
        (DataType::Utf8, "\"\"", ""),
        (DataType::Utf8, "12", "12"),
        (DataType::Utf8, "-1.50E+2", "-1.50E+2"),
        (DataType::Utf8, "true", "wrong_type"),
        (DataType::Utf8, "[]", "wrong_type"),
        (
            DataType::Utf8,
            "\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e4\\ud83d\\ude00z\"",
            "a\"\\/\u{8}\u{c}\n\r\tä😀z",
        ),
        (DataType::Utf8, "\"keittiö 厨房\"", "keittiö 厨房"),
        (DataType::Boolean, "true", "true"),
        (DataType::Boolean, "false", "false"),
        (DataType::Boolean, "\"true\"", "true"),
        (DataType::Boolean, "\"false\"", "false"),
        (DataType::Boolean, "\"True\"", "wrong_type"),
        (DataType::Boolean, "1", "wrong_type"),
        (DataType::Binary, "\"00fFa1\"", "[0, 255, 161]"),
        (DataType::Binary, "\"00f\"", "wrong_type"),
        (DataType::Binary, "\"0g\"", "wrong_type"),
        (DataType::Date32, "\"1970-01-02\"", "1"),
        (DataType::Date32, "\"1970-02-30\"", "bad_date"),
        (DataType::Date32, "\"1970-01-02T00:00:00\"", "bad_date"),
        (DataType::Date32, "1", "wrong_type"),
        (DataType::Decimal128(5, 2), "12.34", "12.34"),
        (DataType::Decimal128(5, 2), "\"-999.99\"", "-999.99"),
        (DataType::Decimal128(5, 2), "1e2", "100.00"),
        (DataType::Decimal128(5, 2), "12.340", "12.34"),
        (DataType::Decimal128(5, 2), "12.345", "wrong_type"),
        (DataType::Decimal128(5, 2), "1000", "out_of_range"),
        (
            DataType::Decimal128(38, 0),
            "99999999999999999999999999999999999999",
            "99999999999999999999999999999999999999",
        ),
        (DataType::Decimal128(38, 0), "100000000000000000000000000000000000000", "out_of_range"),
        (DataType::Decimal128(38, 0), "\"1e1000\"", "out_of_range"),
        (timestamp(), "\"2019-10-30T14:06:35Z\"", "1572444395000000"),
        (timestamp(), "\"2019-10-30 16:06:35\"", "1572444395000000"),
        (timestamp(), "\"2019-10-30\"", "bad_timestamp"),
        (timestamp(), "\"1572444395\"", "bad_timestamp"),
        (timestamp(), "1572444395", "wrong_type"),
        (timestamp(), "true", "wrong_type"),
    ];
    for (data_type, json, expected) in cases {
        assert_eq!(take(data_type.clone(), None, json), expected, "{json} as {data_type}");
    }
    let cases = [
        ("%Y%m%d %H:%M:%S", "\"20191030 16:06:35\"", "1572444395000000"),
        ("%Y%m%d %H:%M:%S", "\"20191030 7:41:38\"", "1572414098000000"),
        ("%Y%m%d %H:%M:%S", "\"2019-10-30T14:06:35Z\"", "bad_timestamp"),
        ("%Y%m%d %H:%M:%S", "20191030", "wrong_type"),
        ("epoch_s", "1572444395", "1572444395000000"),
        ("epoch_s", "1572444395.5", "1572444395500000"),
        ("epoch_ms", "1572444395001", "1572444395001000"),
        ("epoch_us", "\"1572444395000001\"", "1572444395000001"),
        ("epoch_us", "1e300", "out_of_range"),
        ("epoch_ms", "\"2019-10-30\"", "wrong_type"),
    ];
    for (format, json, expected) in cases {
        assert_eq!(take(timestamp(), Some(format), json), expected, "{json} as {format}");
    }
}

/// In an unknown field, so that only the grammar decides.
#[test]
fn exactly_what_rfc_8259_allows_is_json() {
    let good = [
        "0",
        "-0",
        "-1.0e+10",
        "1E-2",
        "1e400",
        "\"\"",
        "\"\\u0000\"",
        "\"\u{7f}\"",
        "\"😀\"",
        "\"\\ud83d\\ude00\"",
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[ ]",
        "{ }",
        "[1, [2, {\"a\": []}]]",
        "\t\r\n 1 \t\r\n",
        "{\"\": 1, \"\": 2}",
    ];
    let bad = [
        "",
        "01",
        "+1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "-",
        "- 1",
        "0x10",
        "NaN",
        "Infinity",
        "-Infinity",
        "nul",
        "True",
        "tru",
        "'a'",
        "a",
        "\"a",
        "\"\t\"",
        "\"\u{0}\"",
        "\"\u{1f}\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud83d\"",
        "\"\\ude00\"",
        "\"\\ud83d\\n\"",
        "\"\\ud83dx\"",
        "\"\\ud83d\\ud83d\"",
        "[",
        "[1",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\": 1,}",
        "{a: 1}",
        "{1: 1}",
        "{\"a\" 1}",
        "{,}",
        "1 // one",
        "/* one */ 1",
        "1,",
        "\u{feff}1",
    ];
    for json in good {
        let decoded = decode(vec![], &[&format!("{{\"x\": {json}}}")]);
        assert_eq!((decoded.batch.num_rows(), decoded.rejected), (1, vec![]), "{json}");
        assert_eq!(decoded.unknown_fields, 1, "{json}");
    }
    for json in bad {
        let text = format!("{{\"x\": {json}}}");
        let decoded = decode(vec![], &[&text]);
        assert_eq!(decoded.batch.num_rows(), 0, "{json}");
        assert_eq!(
            decoded.rejected.first().map(|r| r.reason.kind),
            Some(Reason::NotJson),
            "{json}"
        );
        assert_eq!(decoded.unknown_fields, 0, "{json}");
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{json}");
    }
}

/// What dead letters say: the value, the type wanted, and the place, in a bounded text.
#[test]
fn a_reason_shows_value_type_and_place() {
    let fields = || {
        let item = Arc::new(ArrowField::new("item", DataType::Int64, false));
        let mut fields = people();
        fields.push(field("price", DataType::Decimal128(5, 2), true));
        fields.push(field("at", timestamp(), true));
        fields.push(Field { format: Some("%Y%m%d".to_owned()), ..field("day", timestamp(), true) });
        fields.push(field("born", DataType::Date32, true));
        fields.push(field("flag", DataType::Boolean, true));
        fields.push(field("raw", DataType::Binary, true));
        fields.push(field("all", DataType::List(item), true));
        fields
    };
    let cases = [
        (r#"{"part_id": "abc"}"#, r#"cannot parse "abc" as BIGINT (column part_id, byte 12)"#),
        (
            r#"{"part_id": "a", "part_id": 1.5}"#,
            "cannot parse 1.5 as BIGINT (column part_id, byte 28)",
        ),
        (
            r#"{"p\u0061rt_id":{"a":[]}}"#,
            r#"cannot parse {"a":[]} as BIGINT (column part_id, byte 16)"#,
        ),
        (
            r#"{"part_id":99999999999999999999}"#,
            "99999999999999999999 is out of the range of BIGINT (column part_id, byte 11)",
        ),
        (r#"{"room": "a"}"#, "missing value of a NOT NULL column (column part_id)"),
        (r#"{"part_id":null}"#, "null in a NOT NULL column (column part_id, byte 11)"),
        (r#"{"room": [1]}"#, "cannot parse [1] as VARCHAR (column room, byte 9)"),
        (r#"{"level": "high"}"#, r#"cannot parse "high" as DOUBLE (column level, byte 10)"#),
        (r#"{"price": 1.005}"#, "cannot parse 1.005 as DECIMAL(5, 2) (column price, byte 10)"),
        (
            r#"{"at": "yesterday"}"#,
            r#"cannot parse "yesterday" as TIMESTAMP such as 2019-10-30T14:06:35Z (column at, byte 7)"#,
        ),
        (
            r#"{"day": 7}"#,
            "cannot parse 7 as TIMESTAMP in the format '%Y%m%d' (column day, byte 8)",
        ),
        (
            r#"{"born": "1"}"#,
            r#"cannot parse "1" as DATE such as 2019-10-30 (column born, byte 9)"#,
        ),
        (r#"{"flag": 1}"#, "cannot parse 1 as BOOLEAN (column flag, byte 9)"),
        (r#"{"raw": "0g"}"#, r#"cannot parse "0g" as BYTEA (hexadecimal) (column raw, byte 8)"#),
        (r#"{"all": [true]}"#, "cannot parse [true] as array of BIGINT (column all, byte 8)"),
        (r#"{"all": [null]}"#, "[null] contains a null for a NOT NULL field (column all, byte 8)"),
        ("sensor 1 says hello to all", "not valid JSON at byte 0: sensor 1 says hello…"),
        ("{\"part_id\": 1, \"n\": 007}", "not valid JSON at byte 21: 07}"),
        ("{\"room\": \"a\tb\"}", "not valid JSON at byte 11:  b\"}"),
        (r#"{"room": "hal"#, "not valid JSON: truncated after 13 bytes"),
        ("[1, 2]", "not a JSON object: [1, 2]"),
        (" ", "empty"),
    ];
    for (text, expected) in cases {
        // A message before it does not move the place, which is its own.
        let decoded = decode(fields(), &[&format!("{{\"part_id\": 1, \"room\": \"a\"}}\n{text}")]);
        let alone = decode(fields(), &[text]);
        assert_eq!(alone.rejected[0].reason.to_string(), expected, "{text}");
        match text {
            " " => assert!(decoded.rejected.is_empty()),
            _ => assert_eq!(decoded.rejected[0].reason, alone.rejected[0].reason, "{text}"),
        }
    }
    let cut = decode(people(), &["{\"part_id\": 1,\n{\"part_id\": 2, \"room\": \"b\"}"]);
    assert_eq!(cut.rejected[0].reason.to_string(), "not valid JSON: truncated after 14 bytes");
    let bad = decoder(people()).decode(&chunk(&[Some(b"{\"room\": \"\xff\"}")])).unwrap();
    assert_eq!(bad.rejected[0].reason.to_string(), "not valid UTF-8 at byte 10: 0xff");
}

#[test]
fn a_reason_quotes_no_more_than_80_characters() {
    let long = "ä".repeat(1 << 19);
    for text in [
        format!("{{\"part_id\": \"{long}\"}}"),
        format!("\"{long}\""),
        format!("{{{long}"),
        format!("[\"{long}\"]"),
    ] {
        let decoded = decode(people(), &[&text]);
        let said = decoded.rejected[0].reason.to_string();
        assert!(said.contains('…') && said.chars().count() < 150, "{said}");
    }
}

#[test]
fn nesting_ends_at_128() {
    for (inner, expected) in
        [(127, None), (128, Some(Reason::TooDeep)), (100_000, Some(Reason::TooDeep))]
    {
        let text = format!("{{\"x\": {}1{}}}", "[".repeat(inner), "]".repeat(inner));
        let decoded = decode(vec![], &[&text]);
        assert_eq!(decoded.rejected.first().map(|r| r.reason.kind), expected, "{inner}");
        let text = format!("{}1{}", "{\"x\":".repeat(inner + 1), "}".repeat(inner + 1));
        let decoded = decode(vec![], &[&text]);
        assert_eq!(decoded.rejected.first().map(|r| r.reason.kind), expected, "{inner}");
    }
}

fn people() -> Vec<Field> {
    vec![
        field("part_id", DataType::Int64, false),
        field("room", DataType::Utf8, false),
        field("level", DataType::Float64, true),
    ]
}

/// Rows and rejections, in short: `0.0 1 hall null` or `1.0 not_json - 5`.
fn summary(decoded: &Decoded) -> Vec<String> {
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

#[test]
fn messages_of_a_record_are_judged_one_by_one() {
    let cases: [(&str, &[&str]); 29] = [
        ("{\"part_id\": 1, \"room\": \"hall\"}", &["0.0 1 hall null"]),
        ("  {\"room\":\"hall\"\n,\"part_id\" :1} \r\n", &["0.0 1 hall null"]),
        ("", &["0.0 empty - 0"]),
        (" \n", &["0.0 empty - 2"]),
        ("[1]", &["0.0 not_an_object - 3"]),
        ("null", &["0.0 not_an_object - 4"]),
        ("\"x\"\n{\"part_id\": 1, \"room\": \"a\"}", &["0.1 1 a null", "0.0 not_an_object - 3"]),
        ("hello", &["0.0 not_json - 5"]),
        ("{\"part_id\": 1}", &["0.0 missing room 14"]),
        ("{\"room\": \"hall\"}", &["0.0 missing part_id 16"]),
        ("{\"part_id\": null, \"room\": \"a\"}", &["0.0 null part_id 30"]),
        ("{\"part_id\": 1, \"room\": []}", &["0.0 wrong_type room 26"]),
        (
            "{\"part_id\": 1e30, \"room\": \"a\", \"level\": \"high\"}",
            &["0.0 out_of_range part_id 47"],
        ),
        // The last of two values counts, whatever the first was.
        ("{\"part_id\": 1, \"room\": \"a\", \"part_id\": 2}", &["0.0 2 a null"]),
        ("{\"part_id\": \"x\", \"room\": \"a\", \"part_id\": 2}", &["0.0 2 a null"]),
        ("{\"part_id\": 1, \"room\": \"a\", \"part_id\": \"x\"}", &["0.0 wrong_type part_id 43"]),
        ("{\"part_id\": 1, \"level\": 1, \"room\": \"a\", \"level\": null}", &["0.0 1 a null"]),
        ("{\"part_id\": 1, \"level\": 1, \"room\": \"bc\", \"room\": \"a\"}", &["0.0 1 a 1"]),
        ("{\"p\\u0061rt_id\": 1, \"room\": \"a\"}", &["0.0 1 a null"]),
        ("{\"PART_ID\": 1, \"part_id\": 2, \"room\": \"a\"}", &["0.0 2 a null"]),
        // Several messages.
        (
            "{\"part_id\": 1, \"room\": \"a\"}\n{\"part_id\": 2, \"room\": \"b\"}\n",
            &["0.0 1 a null", "0.1 2 b null"],
        ),
        (
            "{\"part_id\": 1, \"room\": \"a\"} {\"part_id\": 2, \"room\": \"b\"}",
            &["0.0 1 a null", "0.1 2 b null"],
        ),
        (
            "{\"part_id\": 1, \"room\": \"a\"}\r\n\r\n{\"part_id\": 2,\n \"room\": \"b\"}",
            &["0.0 1 a null", "0.1 2 b null"],
        ),
        (
            "{\"part_id\": 1, \"room\": \"a\"}{\"part_id\": 2, \"room\": \"b\"}",
            &["0.0 not_json - 54"],
        ),
        (
            "{\"part_id\": 1, \"room\": \"a\"} x\n{\"part_id\": 2, \"room\": \"b\"}",
            &["0.1 2 b null", "0.0 not_json - 29"],
        ),
        (
            "{\"part_id\": 1, \"room\": \"a\"}\n{\"part_id\": 2, \"room\": 01}\n{\"part_id\": 3}\n{\"part_id\": 4, \"room\": \"d\"}",
            &["0.0 1 a null", "0.3 4 d null", "0.1 not_json - 26", "0.2 missing room 14"],
        ),
        // A line that was cut off, in three places.
        (
            "{\"part_id\": 1, \"ro\n{\"part_id\": 2, \"room\": \"b\"}",
            &["0.1 2 b null", "0.0 not_json - 18"],
        ),
        (
            "{\"part_id\": 1,\n{\"part_id\": 2, \"room\": \"b\"}",
            &["0.1 2 b null", "0.0 not_json - 14"],
        ),
        (
            "{\"part_id\": 1, \"x\":\n{\"part_id\": 2, \"room\": \"b\"}",
            &["0.1 2 b null", "0.0 not_json - 19"],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(summary(&decode(people(), &[text])), expected, "{text}");
        // The same when a shape is known already, and when records follow.
        let good = "{\"part_id\": 7, \"room\": \"x\"}";
        let decoded = decode(people(), &[good, text, good]);
        let at = |record: usize| {
            let all = summary(&decoded).into_iter();
            all.filter(|line| line.starts_with(&format!("{record}."))).collect::<Vec<_>>()
        };
        let moved: Vec<_> = expected.iter().map(|line| line.replacen("0.", "1.", 1)).collect();
        assert_eq!(at(1), moved, "after another: {text}");
        assert_eq!((at(0), at(2)), (vec!["0.0 7 x null".into()], vec!["2.0 7 x null".into()]));
    }
}

#[test]
fn bytes_that_are_no_utf_8_reject_their_message_only() {
    let good: &[u8] = b"{\"part_id\": 1, \"room\": \"a\"}";
    let cases: [(&[u8], &[&str]); 5] = [
        (b"{\"part_id\": 1, \"room\": \"\xff\"}", &["0.0 invalid_utf8 - 27"]),
        (b"{\"part_id\": 1, \"room\": \"a\", \"x\": \"\xc3(\"}", &["0.0 invalid_utf8 - 38"]),
        // Half of a surrogate pair, spelled as if it were UTF-8.
        (b"{\"part_id\": 1, \"room\": \"\xed\xa0\x80\"}", &["0.0 invalid_utf8 - 29"]),
        (b"\xfe\xff{}", &["0.0 invalid_utf8 - 4"]),
        (
            b"{\"part_id\": 1, \"room\": \"\xff\"}\n{\"part_id\": 2, \"room\": \"\xc3\xa4\"}",
            &["0.1 2 \u{e4} null", "0.0 invalid_utf8 - 27"],
        ),
    ];
    for (text, expected) in cases {
        let decoded = decoder(people()).decode(&chunk(&[Some(text), Some(good)])).unwrap();
        let mut lines = summary(&decoded);
        lines.retain(|line| line != "1.0 1 a null");
        assert_eq!(lines, expected, "{}", String::from_utf8_lossy(text));
        assert_eq!(lines.len() + 1, summary(&decoded).len());
    }
    // A key that ends in the middle of a character lends nothing to the value after it.
    let mut split = chunk(&[Some(b"{\"part_id\": 1, \"room\": \"\xc3\xa4\"}")]);
    let cut = split.records[0].value.clone().unwrap();
    split.records[0].value = Some(cut.start..cut.end - 3);
    let decoded = decoder(people()).decode(&split).unwrap();
    assert_eq!(summary(&decoded), ["0.0 invalid_utf8 - 25"]);
}

#[test]
fn rejected_rows_leave_nothing_behind() {
    let fields = || {
        let item = Arc::new(ArrowField::new("item", DataType::Utf8, true));
        let of = Fields::from(vec![ArrowField::new("s", DataType::Utf8, true)]);
        let mut fields = people();
        fields.push(field("flag", DataType::Boolean, true));
        fields.push(field("tags", DataType::List(item), true));
        fields.push(field("place", DataType::Struct(of), true));
        fields.push(field("last", DataType::Int16, false));
        fields
    };
    let good = |id: usize| {
        format!(
            "{{\"part_id\": {id}, \"room\": \"r{id}\", \"level\": {id}.5, \"flag\": {}, \
             \"tags\": [\"a{id}\", null], \"place\": {{\"s\": \"p{id}\"}}, \"last\": {id}}}",
            id.is_multiple_of(3)
        )
    };
    let bad = |id: usize| match id % 4 {
        0 => good(id).replace("\"last\": ", "\"last\": x"),
        1 => good(id).replace("\"last\": ", "\"last\": 1.25"),
        2 => good(id).replace(", \"last\"", ", \"lost\""),
        _ => good(id).replace("\"s\": ", "\"s\": [], \"s\": false, \"t\": "),
    };
    let mixed: Vec<String> =
        (0..50).map(|id| if id % 2 == 0 { good(id) } else { bad(id / 2) }).collect();
    let only_good: Vec<&str> = mixed
        .iter()
        .enumerate()
        .filter(|(id, _)| id % 2 == 0)
        .map(|(_, text)| text.as_str())
        .collect();
    let expected = decode(fields(), &only_good);
    assert_eq!((expected.batch.num_rows(), expected.rejected.len()), (25, 0));
    let mixed: Vec<&str> = mixed.iter().map(String::as_str).collect();
    let got = decode(fields(), &mixed);
    assert_eq!(got.rejected.len(), 25);
    assert_eq!(got.batch, expected.batch);
}

#[test]
fn lists_and_structs_hold_what_their_types_say() {
    let list = |item, nullable| DataType::List(Arc::new(ArrowField::new("item", item, nullable)));
    let point = DataType::Struct(Fields::from(vec![
        ArrowField::new("x", DataType::Int64, false),
        ArrowField::new("y", list(DataType::Float64, true), true),
    ]));
    let fields = || {
        vec![
            field("p", point.clone(), true),
            field("l", list(list(DataType::Int64, false), true), true),
        ]
    };
    let cases = [
        ("{\"p\": {\"x\": 1}}", None),
        ("{\"p\": {\"x\": \"1\", \"y\": [1, null, \"2.5\"], \"z\": {}}}", None),
        ("{\"p\": null, \"l\": null}", None),
        ("{\"l\": [[1, 2.0], [], null, [3]]}", None),
        ("{\"p\": {\"x\": [], \"x\": 2}}", None),
        ("{\"p\": {}}", Some(("p", Reason::Missing))),
        ("{\"p\": {\"x\": null}}", Some(("p", Reason::Null))),
        ("{\"p\": {\"x\": 1, \"y\": [true]}}", Some(("p", Reason::WrongType))),
        ("{\"p\": [1]}", Some(("p", Reason::WrongType))),
        ("{\"l\": [[1, null]]}", Some(("l", Reason::Null))),
        ("{\"l\": [[1], 2]}", Some(("l", Reason::WrongType))),
        ("{\"l\": {}}", Some(("l", Reason::WrongType))),
    ];
    let decoded = decode(fields(), &cases.map(|(text, _)| text));
    let rejected: Vec<_> =
        decoded.rejected.iter().map(|r| (r.column.as_deref().unwrap(), r.reason.kind)).collect();
    let expected: Vec<_> = cases.iter().filter_map(|(_, expected)| *expected).collect();
    assert_eq!(rejected, expected);
    let places = decoded.batch.column(0).as_struct();
    let x = places.column(0).as_primitive::<Int64Type>();
    let shown: Vec<_> = (0..5).map(|row| places.is_valid(row).then(|| x.value(row))).collect();
    assert_eq!(shown, [Some(1), Some(1), None, None, Some(2)]);
    let y = places.column(1).as_list::<i32>().value(1);
    assert_eq!(
        y.as_primitive::<Float64Type>().iter().collect::<Vec<_>>(),
        [Some(1.0), None, Some(2.5)]
    );
    let l = decoded.batch.column(1).as_list::<i32>().value(3);
    let l: Vec<_> = (l.as_list::<i32>().iter())
        .map(|inner| inner.map(|inner| inner.as_primitive::<Int64Type>().values().to_vec()))
        .collect();
    assert_eq!(l, [Some(vec![1, 2]), Some(vec![]), None, Some(vec![3])]);
}

#[test]
fn tombstones_and_unknown_fields_are_counted() {
    let text = |text: &'static str| Some(text.as_bytes());
    let chunk = chunk(&[
        None,
        text("{\"a\": 1, \"b\": {\"c\": [1]}}"),
        text("{\"a\": 1, \"b\": {\"c\": [1]}}\n{\"b\": 1, \"c\": 2, \"a\": x}"),
        None,
    ]);
    let decoded = decoder(vec![field("a", DataType::Int64, false)]).decode(&chunk).unwrap();
    assert_eq!((decoded.tombstones, decoded.unknown_fields), (2, 2));
    assert_eq!(summary(&decoded), ["1.0 1", "2.0 1", "2.1 not_json - 24"]);
}

#[test]
fn types_and_formats_that_cannot_be_read_are_refused_at_once() {
    let new = |field: Field| Decoder::new(vec![field], Tz::UTC).map(|_| ()).unwrap_err();
    assert!(new(field("d", DataType::Duration(TimeUnit::Second), true)).message.contains("'d'"));
    let mut format = field("t", timestamp(), true);
    format.format = Some("%Q".to_owned());
    assert!(new(format).message.contains("'%Q' is not supported"));
    let mut format = field("t", DataType::Utf8, true);
    format.format = Some("%F".to_owned());
    assert!(new(format).message.contains("is not a TIMESTAMP"));
    let twice = vec![field("a", DataType::Utf8, true), field("a", DataType::Utf8, true)];
    assert!(Decoder::new(twice, Tz::UTC).is_err());
}

/// Keys in every order, left out, added: whatever shape was known before, the result is the same.
#[test]
fn the_order_of_keys_never_matters() {
    let mut random = SmallRng::seed_from_u64(7);
    let values = [
        "\"part_id\": 1",
        "\"room\": \"hall\"",
        "\"level\": 2.5",
        "\"x\": [{}]",
        "\"a much longer key than most of them\": 1",
    ];
    let texts: Vec<String> = (0..2_000)
        .map(|_| {
            let mut keys: Vec<_> =
                values.iter().filter(|_| random.random_bool(0.8)).copied().collect();
            for index in (1..keys.len()).rev() {
                keys.swap(index, random.random_range(0..=index));
            }
            let comma = [",", ", ", "\n,  "][random.random_range(0..3)];
            format!("{{{}}}", keys.join(comma))
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = decode(people(), &texts);
    let mut lines = Vec::new();
    for (record, text) in texts.iter().enumerate() {
        let alone = summary(&decode(people(), &[text]));
        lines.extend(alone.iter().map(|line| line.replacen("0.", &format!("{record}."), 1)));
    }
    let mut got = summary(&together);
    got.sort();
    lines.sort();
    assert_eq!(got, lines);
}

const DIFFERENTIAL: [(&str, DataType, bool); 5] = [
    ("id", DataType::Int64, false),
    ("name", DataType::Utf8, true),
    ("x", DataType::Float64, true),
    ("flag", DataType::Boolean, true),
    ("small", DataType::Int16, true),
];

fn differential_fields() -> Vec<Field> {
    DIFFERENTIAL
        .into_iter()
        .map(|(name, data_type, nullable)| field(name, data_type, nullable))
        .collect()
}

/// What serde_json and the rules make of a value: its text, "null", or "refused"; `None` where
/// serde_json's value does not tell enough to say.
fn judge(value: Option<&Value>, data_type: &DataType, nullable: bool) -> Option<String> {
    let refused = || Some("refused".to_owned());
    let parsed;
    let value = match (value, data_type) {
        (Some(Value::String(text)), DataType::Utf8) => return Some(text.clone()),
        (Some(Value::String(text)), DataType::Boolean) => {
            return if text == "true" || text == "false" { Some(text.clone()) } else { refused() };
        }
        (Some(Value::String(text)), _) => {
            if text.trim() != text {
                return refused();
            }
            match serde_json::from_str::<Value>(text) {
                Ok(number @ Value::Number(_)) => parsed = number,
                _ => return refused(),
            }
            Some(&parsed)
        }
        _ => value,
    };
    match (value, data_type) {
        (None | Some(Value::Null), _) => {
            if nullable {
                Some("null".to_owned())
            } else {
                refused()
            }
        }
        (Some(Value::Bool(flag)), DataType::Boolean) => Some(flag.to_string()),
        (Some(Value::Number(_)), DataType::Utf8) => None,
        (Some(Value::Number(number)), DataType::Float64) => number.as_f64().map(|x| x.to_string()),
        (Some(Value::Number(number)), DataType::Int64 | DataType::Int16) => {
            let integer = match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => integer,
                (None, Some(x)) if x.abs() >= 9e15 => return None,
                (None, Some(x)) if x.fract() != 0.0 => return refused(),
                (None, Some(x)) => x as i64,
                (None, None) => return None,
            };
            let fits = *data_type == DataType::Int64 || i16::try_from(integer).is_ok();
            if fits { Some(integer.to_string()) } else { refused() }
        }
        _ => refused(),
    }
}

/// The row that serde_json and the rules make of a text: its values, or nothing if refused.
fn judge_all(value: &Value) -> Option<Vec<Option<String>>> {
    let Value::Object(object) = value else { return None };
    let values: Vec<_> = (DIFFERENTIAL.iter())
        .map(|(name, data_type, nullable)| judge(object.get(*name), data_type, *nullable))
        .collect();
    let refused = values.iter().any(|value| value.as_deref() == Some("refused"));
    (!refused).then_some(values)
}

fn random_message(random: &mut SmallRng) -> String {
    let values = [
        "1",
        "-12",
        "0",
        "12.0",
        "1e2",
        "2.5",
        "\"7\"",
        "\"living room\"",
        "\"a\\nb\\u00e4\\ud83d\\ude00\"",
        "\"keittiö\"",
        "true",
        "false",
        "null",
        "[1, {\"a\": [null, \"]\"]}]",
        "{\"id\": {}}",
        "\"\"",
        "\"true\"",
        "40000",
        "9223372036854775807",
        "0.1",
        "-1.25E-3",
    ];
    let mut text = String::from("{");
    let space = ["", " ", "  "][random.random_range(0..3)];
    for (index, (name, ..)) in
        DIFFERENTIAL.iter().chain([&("other", DataType::Null, true)]).enumerate()
    {
        if random.random_bool(0.9) {
            text.push_str(if text.len() > 1 { "," } else { "" });
            let value = if random.random_bool(0.6) {
                ["1", "\"hall\"", "0.5", "true", "3", "{}"][index]
            } else {
                values[random.random_range(0..values.len())]
            };
            text.push_str(&format!("{space}\"{name}\":{space}{value}"));
        }
    }
    text + "}"
}

fn mutate(random: &mut SmallRng, text: &mut Vec<u8>, kinds: u32) {
    const BYTES: &[u8] = b"{}[]\",:\\ue+-.019tfn \n\t\x00\x1f\x7f\xc3\xa4\xff/x";
    let byte = BYTES[random.random_range(0..BYTES.len())];
    let at = random.random_range(1..text.len());
    match random.random_range(0..kinds) {
        0 => text[at] = if byte == b'\n' { b' ' } else { byte },
        1 => text.truncate(at),
        2 => drop(text.remove(at)),
        3 => text.insert(at, byte),
        _ => {
            let part = text[at..(at + 10).min(text.len())].to_vec();
            let to = random.random_range(0..text.len());
            text.splice(to..to, part);
        }
    }
}

fn check_row(batch: &RecordBatch, row: usize, expected: &[Option<String>], text: &[u8]) {
    for (column, expected) in expected.iter().enumerate() {
        let (got, Some(expected)) = (show(batch, column, row), expected) else { continue };
        if *batch.schema().field(column).data_type() == DataType::Float64 && got != "null" {
            // serde_json may be off by a bit or two.
            let (got, expected): (f64, f64) = (got.parse().unwrap(), expected.parse().unwrap());
            assert!((got - expected).abs() <= expected.abs() * 1e-15, "{got} {expected}");
        } else {
            assert_eq!(got, *expected, "column {column} of {}", String::from_utf8_lossy(text));
        }
    }
}

#[test]
fn as_serde_json_for_one_message() {
    let mut random = SmallRng::seed_from_u64(1084);
    let mut decoder = decoder(differential_fields());
    let (mut good, mut bad) = (0, 0);
    for _ in 0..60_000 {
        let mut text = random_message(&mut random).into_bytes();
        for _ in 0..random.random_range(0..3) {
            if text.len() > 1 {
                mutate(&mut random, &mut text, 5);
            }
        }
        let decoded = decoder.decode(&chunk(&[Some(&text), Some(b"{\"id\": 1}")])).unwrap();
        let shown = String::from_utf8_lossy(&text);
        let rejected: Vec<_> =
            decoded.rejected.iter().map(|rejected| rejected.reason.kind).collect();
        assert_eq!(decoded.records.last(), Some(&1), "{shown}");
        let rows = decoded.batch.num_rows() - 1;
        match serde_json::from_slice::<Value>(&text) {
            Err(error) if error.to_string().contains("number out of range") => {}
            Err(_) => {
                let no_json = [Reason::NotJson, Reason::InvalidUtf8, Reason::Empty];
                let refused = rejected.iter().any(|reason| no_json.contains(reason));
                assert!(refused || rows + rejected.len() > 1, "{shown}: {rejected:?}");
                bad += 1;
            }
            Ok(value) => {
                assert_eq!(rows + rejected.len(), 1, "{shown}: {rejected:?}");
                assert!(!rejected.contains(&Reason::NotJson), "{shown}");
                match judge_all(&value) {
                    None => assert_eq!(rows, 0, "{shown}"),
                    // A number of which serde_json's value says too little may be refused, too.
                    Some(row) if row.contains(&None) && rows == 0 => {}
                    Some(row) => {
                        assert_eq!(rows, 1, "{shown}: {rejected:?}");
                        check_row(&decoded.batch, 0, &row, &text);
                        good += 1;
                    }
                }
            }
        }
    }
    assert!(good > 5_000 && bad > 5_000, "{good} good, {bad} bad");
}

/// Lines that are broken in ways that leave a line a line do not touch their neighbours.
#[test]
fn as_serde_json_for_every_line() {
    let mut random = SmallRng::seed_from_u64(1085);
    let mut decoder = decoder(differential_fields());
    for _ in 0..4_000 {
        let lines: Vec<Vec<u8>> = (0..random.random_range(1..6))
            .map(|_| {
                let mut line = random_message(&mut random).into_bytes();
                if random.random_bool(0.4) {
                    mutate(&mut random, &mut line, 3);
                }
                line
            })
            .collect();
        let text = lines.join(&b'\n');
        let decoded = decoder.decode(&chunk(&[Some(&text)])).unwrap();
        let shown = String::from_utf8_lossy(&text);
        let mut row = 0;
        for (position, line) in (0..).zip(&lines) {
            let value = match serde_json::from_slice::<Value>(line) {
                Err(error) if error.to_string().contains("number out of range") => continue,
                other => other.ok(),
            };
            let rejected = decoded.rejected.iter().find(|rejected| rejected.position == position);
            if let Some(rejected) = rejected {
                let expected = value.as_ref().and_then(judge_all);
                assert!(expected.is_none_or(|row| row.contains(&None)), "{position} of {shown}");
                let bytes =
                    &text[rejected.bytes.start as usize - 1..rejected.bytes.end as usize - 1];
                assert_eq!(bytes, line, "{position} of {shown}");
            } else {
                let expected = value.as_ref().and_then(judge_all);
                let expected = expected.unwrap_or_else(|| panic!("{position} of {shown}"));
                assert_eq!(decoded.positions[row], position, "{shown}");
                check_row(&decoded.batch, row, &expected, line);
                row += 1;
            }
        }
        assert_eq!(row, decoded.batch.num_rows(), "{shown}");
    }
}
