//! The conversion of JSON values to each declared type, by example.

use arrow::datatypes::DataType;

use crate::decode::tests::support::{decode, field, show, timestamp};

/// Decodes `{"v": <json>}` into a nullable column of this type; returns the value as text, or the
/// reason of its rejection.
fn convert(data_type: DataType, format: Option<&str>, json: &str) -> String {
    let mut field = field("v", data_type, true);
    field.format = format.map(str::to_owned);
    let decoded = decode(vec![field], &[&format!("{{\"v\": {json}}}")]);
    match decoded.rejected.first() {
        Some(rejected) => rejected.reason.as_str().to_owned(),
        None => show(&decoded.batch, 0, 0),
    }
}

#[test]
fn a_type_accepts_values_that_convert_without_loss() {
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
        assert_eq!(convert(data_type.clone(), None, json), expected, "{json} as {data_type}");
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
        assert_eq!(convert(timestamp(), Some(format), json), expected, "{json} as {format}");
    }
}
