//! DataFusion's texts as people write SQL: `Int64(1)` is `1`, `Utf8("a")` is `'a'`, and a type has
//! its SQL name. They come as text only, in messages, names of columns and plans.

use arrow::datatypes::DataType;
use chrono::DateTime;

/// Arrow's names of types, and SQL's.
const TYPES: [(&str, &str); 22] = [
    ("Boolean", "BOOLEAN"),
    ("Int8", "TINYINT"),
    ("Int16", "SMALLINT"),
    ("Int32", "INT"),
    ("Int64", "BIGINT"),
    ("UInt8", "TINYINT UNSIGNED"),
    ("UInt16", "SMALLINT UNSIGNED"),
    ("UInt32", "INT UNSIGNED"),
    ("UInt64", "BIGINT UNSIGNED"),
    ("Float16", "REAL"),
    ("Float32", "REAL"),
    ("Float64", "DOUBLE"),
    ("Utf8", "VARCHAR"),
    ("LargeUtf8", "VARCHAR"),
    ("Utf8View", "VARCHAR"),
    ("String", "VARCHAR"),
    ("Binary", "BYTEA"),
    ("LargeBinary", "BYTEA"),
    ("BinaryView", "BYTEA"),
    ("Date32", "DATE"),
    ("Date64", "DATE"),
    ("Null", "NULL"),
];

/// The SQL name of a type.
pub(crate) fn sql_type(data_type: &DataType) -> String {
    plain(&data_type.to_string())
}

/// `text` with literals and types as SQL has them.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
        if word.is_empty() {
            shown.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let arguments = parenthesised(&rest[word.len()..]);
        match arguments.and_then(|arguments| Some((arguments, with_arguments(word, arguments)?))) {
            Some((arguments, sql)) => {
                shown.push_str(&sql);
                rest = &rest[word.len() + arguments.len() + 2..];
            }
            None => {
                shown.push_str(type_name(word).unwrap_or(word));
                rest = &rest[word.len()..];
            }
        }
    }
    // DataFusion counts ones instead of rows.
    shown.replace("count(1)", "count(*)")
}

fn type_name(word: &str) -> Option<&'static str> {
    TYPES.iter().find(|(arrow, _)| *arrow == word).map(|(_, sql)| *sql)
}

/// What stands in the parentheses with which `text` begins.
fn parenthesised(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('(')?;
    let (mut depth, mut quoted) = (1_usize, false);
    for (index, c) in inner.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inner[..index]);
        }
    }
    None
}

/// A literal, or a type with arguments; none if it is a function or anything else.
fn with_arguments(word: &str, arguments: &str) -> Option<String> {
    let text = |arguments: &str| {
        let inner = arguments.strip_prefix('"').and_then(|inner| inner.strip_suffix('"'));
        inner.map(str::to_owned)
    };
    if let Some(unit) = word.strip_prefix("Timestamp") {
        return match unit {
            "" => Some("TIMESTAMP".to_owned()),
            _ => instant(unit, arguments.split(',').next()?),
        };
    }
    if word.starts_with("Interval") {
        let words = length_of_time(arguments).or_else(|| text(arguments));
        return Some(words.map_or_else(|| "INTERVAL".to_owned(), |w| format!("INTERVAL '{w}'")));
    }
    if word.starts_with("Duration") {
        return Some("DURATION".to_owned());
    }
    if word.starts_with("Decimal") {
        let Some(value) = arguments.strip_prefix("Some(") else {
            return Some(format!("DECIMAL({arguments})"));
        };
        let (digits, sizes) = value.split_once("),")?;
        return decimal(digits, sizes.rsplit(',').next()?);
    }
    type_name(word)?;
    match (word, text(arguments)) {
        ("Date32" | "Date64", Some(day)) => Some(format!("DATE '{day}'")),
        (_, Some(text)) => Some(format!("'{text}'")),
        (_, None) => Some(arguments.to_owned()),
    }
}

/// `TIMESTAMP '2019-10-30 07:41:38 UTC'`
fn instant(unit: &str, number: &str) -> Option<String> {
    let Ok(number) = number.trim().parse::<i64>() else { return Some("NULL".to_owned()) };
    let instant = match unit {
        "Second" => DateTime::from_timestamp(number, 0),
        "Millisecond" => DateTime::from_timestamp_millis(number),
        "Microsecond" => DateTime::from_timestamp_micros(number),
        "Nanosecond" => Some(DateTime::from_timestamp_nanos(number)),
        _ => None,
    };
    instant.map(|instant| format!("TIMESTAMP '{instant}'"))
}

/// `IntervalMonthDayNano { months: 0, days: 1, nanoseconds: 0 }` as `1 days`.
fn length_of_time(arguments: &str) -> Option<String> {
    let (_, fields) = arguments.split_once('{')?;
    let parts = (fields.trim_end_matches([' ', '}', '"']).split(','))
        .filter_map(|field| field.trim().split_once(": "))
        .filter(|(_, number)| *number != "0")
        .map(|(unit, number)| match (unit, number.strip_suffix("000000000")) {
            ("nanoseconds", Some(seconds)) => format!("{seconds} seconds"),
            _ => format!("{number} {unit}"),
        });
    let parts: Vec<String> = parts.collect();
    Some(if parts.is_empty() { "0 days".to_owned() } else { parts.join(" ") })
}

fn decimal(digits: &str, scale: &str) -> Option<String> {
    let scale = scale.trim().parse::<usize>().ok()?;
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits),
    };
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    Some(match fraction {
        "" => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_types_are_sql() {
        for (text, expected) in [
            ("count(Int64(1))", "count(*)"),
            ("lower(p.room) = Utf8(\"a (b\") AND x", "lower(p.room) = 'a (b' AND x"),
            ("Utf8 + Int64", "VARCHAR + BIGINT"),
            ("Timestamp(µs, \"Europe/Helsinki\")", "TIMESTAMP"),
            ("Decimal128(10, 2)", "DECIMAL(10, 2)"),
            ("Decimal128(Some(-105),10,2)", "-1.05"),
            ("Date32(\"2019-10-30\")", "DATE '2019-10-30'"),
            (
                "date_bin(IntervalMonthDayNano(\"IntervalMonthDayNano { months: 0, days: 1, nanoseconds: 0 }\"),t)",
                "date_bin(INTERVAL '1 days',t)",
            ),
            ("TimestampMicrosecond(1000000, Some(\"UTC\"))", "TIMESTAMP '1970-01-01 00:00:01 UTC'"),
            ("Boolean(NULL)", "NULL"),
            ("List(Int64)", "List(BIGINT)"),
            ("Küche über Int64(7)", "Küche über 7"),
        ] {
            assert_eq!(plain(text), expected, "{text}");
        }
    }
}
