//! The rules for messages, records, keys and rows, by example.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field as ArrowField, Fields, Float64Type, Int64Type, TimeUnit};
use chrono_tz::Tz;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::decode::tests::support::{chunk, decode, decoder, field, people, summary, timestamp};
use crate::decode::{Decoder, Field, Reason};

#[test]
fn messages_of_a_record_are_decoded_independently() {
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
        // The last value of a duplicate key counts, even if the first one is invalid.
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
        // A truncated line, in three variants.
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
        // The result is the same if a key order is remembered and if other records follow.
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
fn invalid_utf_8_rejects_only_its_message() {
    let good: &[u8] = b"{\"part_id\": 1, \"room\": \"a\"}";
    let cases: [(&[u8], &[&str]); 5] = [
        (b"{\"part_id\": 1, \"room\": \"\xff\"}", &["0.0 invalid_utf8 - 27"]),
        (b"{\"part_id\": 1, \"room\": \"a\", \"x\": \"\xc3(\"}", &["0.0 invalid_utf8 - 38"]),
        // Half of a surrogate pair, encoded as in UTF-8.
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
    // A value that is truncated inside a character does not continue in the following bytes.
    let mut split = chunk(&[Some(b"{\"part_id\": 1, \"room\": \"\xc3\xa4\"}")]);
    let cut = split.records[0].value.clone().unwrap();
    split.records[0].value = Some(cut.start..cut.end - 3);
    let decoded = decoder(people()).decode(&split).unwrap();
    assert_eq!(summary(&decoded), ["0.0 invalid_utf8 - 25"]);
}

#[test]
fn rejected_rows_leave_no_values_in_the_batch() {
    let fields = || {
        let item = Arc::new(ArrowField::new("item", DataType::Utf8, true));
        let place = Fields::from(vec![ArrowField::new("s", DataType::Utf8, true)]);
        let mut fields = people();
        fields.push(field("flag", DataType::Boolean, true));
        fields.push(field("tags", DataType::List(item), true));
        fields.push(field("place", DataType::Struct(place), true));
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
fn lists_and_structs_are_decoded_by_their_types() {
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
fn unsupported_types_and_formats_fail_at_creation() {
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

/// Decodes messages with reordered, missing and additional keys: the remembered key order does not
/// change the result.
#[test]
fn the_order_of_keys_does_not_matter() {
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
