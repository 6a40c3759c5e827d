//! The texts that describe rejections.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField};

use crate::decode::Field;
use crate::decode::tests::support::{chunk, decode, decoder, field, people, timestamp};

/// Dead letters contain the value, the expected type and the position, in a text of bounded length.
#[test]
fn a_description_contains_value_type_and_position() {
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
        (r#"{"all": [null]}"#, "[null] lacks a value for a NOT NULL field (column all, byte 8)"),
        ("sensor 1 says hello to all", "not valid JSON at byte 0: sensor 1 says hello…"),
        ("{\"part_id\": 1, \"n\": 007}", "not valid JSON at byte 21: 07}"),
        ("{\"room\": \"a\tb\"}", "not valid JSON at byte 11:  b\"}"),
        (r#"{"room": "hal"#, "not valid JSON: truncated after 13 bytes"),
        ("[1, 2]", "not a JSON object: [1, 2]"),
        (" ", "empty"),
    ];
    for (text, expected) in cases {
        // Positions are relative to the message: a preceding message does not change them.
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
fn a_description_quotes_at_most_80_characters() {
    let long = "ä".repeat(1 << 19);
    for text in [
        format!("{{\"part_id\": \"{long}\"}}"),
        format!("\"{long}\""),
        format!("{{{long}"),
        format!("[\"{long}\"]"),
    ] {
        let decoded = decode(people(), &[&text]);
        let text = decoded.rejected[0].reason.to_string();
        assert!(text.contains('…') && text.chars().count() < 150, "{text}");
    }
}
