//! The accepted JSON grammar: RFC 8259 and the nesting limit.

use serde_json::Value;

use crate::decode::Reason;
use crate::decode::tests::support::decode;

/// The values are in an unknown field, so that only the grammar applies.
#[test]
fn exactly_the_rfc_8259_grammar_is_accepted() {
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

#[test]
fn nesting_deeper_than_128_levels_is_rejected() {
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
