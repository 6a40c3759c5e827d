//! Compares decoded random and corrupted messages with serde_json.

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::decode::tests::support::{chunk, decoder, field, show};
use crate::decode::{Field, Reason};

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

/// Returns the expected value according to serde_json: its text, "null" or "rejected"; `None` if
/// serde_json's value is not exact enough to decide.
fn expected_value(value: Option<&Value>, data_type: &DataType, nullable: bool) -> Option<String> {
    let rejected = || Some("rejected".to_owned());
    let parsed;
    let value = match (value, data_type) {
        (Some(Value::String(text)), DataType::Utf8) => return Some(text.clone()),
        (Some(Value::String(text)), DataType::Boolean) => {
            return if text == "true" || text == "false" { Some(text.clone()) } else { rejected() };
        }
        (Some(Value::String(text)), _) => {
            if text.trim() != text {
                return rejected();
            }
            match serde_json::from_str::<Value>(text) {
                Ok(number @ Value::Number(_)) => parsed = number,
                _ => return rejected(),
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
                rejected()
            }
        }
        (Some(Value::Bool(flag)), DataType::Boolean) => Some(flag.to_string()),
        (Some(Value::Number(_)), DataType::Utf8) => None,
        (Some(Value::Number(number)), DataType::Float64) => number.as_f64().map(|x| x.to_string()),
        (Some(Value::Number(number)), DataType::Int64 | DataType::Int16) => {
            let integer = match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => integer,
                (None, Some(x)) if x.abs() >= 9e15 => return None,
                (None, Some(x)) if x.fract() != 0.0 => return rejected(),
                (None, Some(x)) => x as i64,
                (None, None) => return None,
            };
            let fits = *data_type == DataType::Int64 || i16::try_from(integer).is_ok();
            if fits { Some(integer.to_string()) } else { rejected() }
        }
        _ => rejected(),
    }
}

/// Returns the expected row according to serde_json; `None` if the message must be rejected.
fn expected_row(value: &Value) -> Option<Vec<Option<String>>> {
    let Value::Object(object) = value else { return None };
    let values: Vec<_> = (DIFFERENTIAL.iter())
        .map(|(name, data_type, nullable)| expected_value(object.get(*name), data_type, *nullable))
        .collect();
    let is_rejected = values.iter().any(|value| value.as_deref() == Some("rejected"));
    (!is_rejected).then_some(values)
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
            // serde_json may differ by one or two bits.
            let (got, expected): (f64, f64) = (got.parse().unwrap(), expected.parse().unwrap());
            assert!((got - expected).abs() <= expected.abs() * 1e-15, "{got} {expected}");
        } else {
            assert_eq!(got, *expected, "column {column} of {}", String::from_utf8_lossy(text));
        }
    }
}

#[test]
fn one_message_is_decoded_as_by_serde_json() {
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
                let syntax_reasons = [Reason::NotJson, Reason::InvalidUtf8, Reason::Empty];
                let is_rejected = rejected.iter().any(|reason| syntax_reasons.contains(reason));
                assert!(is_rejected || rows + rejected.len() > 1, "{shown}: {rejected:?}");
                bad += 1;
            }
            Ok(value) => {
                assert_eq!(rows + rejected.len(), 1, "{shown}: {rejected:?}");
                assert!(!rejected.contains(&Reason::NotJson), "{shown}");
                match expected_row(&value) {
                    None => assert_eq!(rows, 0, "{shown}"),
                    // A number that serde_json does not represent exactly may also be rejected.
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

/// Corrupted lines do not affect adjacent lines.
#[test]
fn every_line_is_decoded_as_by_serde_json() {
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
                let expected = value.as_ref().and_then(expected_row);
                assert!(expected.is_none_or(|row| row.contains(&None)), "{position} of {shown}");
                let bytes =
                    &text[rejected.bytes.start as usize - 1..rejected.bytes.end as usize - 1];
                assert_eq!(bytes, line, "{position} of {shown}");
            } else {
                let expected = value.as_ref().and_then(expected_row);
                let expected = expected.unwrap_or_else(|| panic!("{position} of {shown}"));
                assert_eq!(decoded.positions[row], position, "{shown}");
                check_row(&decoded.batch, row, &expected, line);
                row += 1;
            }
        }
        assert_eq!(row, decoded.batch.num_rows(), "{shown}");
    }
}
