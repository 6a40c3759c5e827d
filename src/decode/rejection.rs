//! Describes why a message was rejected, for error messages and dead letters.
//!
//! The decoder reports only the column and the [`Reason`]. The value and its position are found here
//! in the message's bytes, so that valid messages do not pay for them. Positions are bytes of the
//! message, counted from 0. A description never quotes more than [`MAX_QUOTED_CHARS`] characters.

use std::fmt;
use std::ops::Range;

use arrow::datatypes::DataType;

use crate::decode::field::Field;
use crate::decode::reason::Reason;
use crate::decode::scanner::Scanner;

/// The maximum number of characters of a value or message that a description quotes.
const MAX_QUOTED_CHARS: usize = 80;
/// The maximum number of characters quoted from the position of a syntax error.
const MAX_SYNTAX_QUOTED_CHARS: usize = 20;

/// A message that did not become a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedMessage {
    /// The index of its record in the chunk.
    pub record: u32,
    /// The index of the message within its record, from 0.
    pub position: u32,
    /// The column that rejected it, if one did.
    pub column: Option<String>,
    /// Why it was rejected.
    pub reason: Rejection,
    /// Its range in the chunk's bytes.
    pub bytes: Range<u32>,
}

/// Why a message was rejected. `Display` describes the error with value and position;
/// [`Rejection::as_str`] is the label value for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The kind of error.
    pub kind: Reason,
    pub(super) text: String,
}

impl Rejection {
    /// The label value for metrics, which does not depend on the message's content.
    pub fn as_str(&self) -> &'static str {
        self.kind.as_str()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Describes why the message `bytes[message]`, in a record that ends at `record_end`, was
/// rejected for `reason`; `field` is the column that rejected it, if one did.
#[cold]
pub(super) fn describe(
    reason: Reason,
    field: Option<&Field>,
    bytes: &[u8],
    message: Range<usize>,
    record_end: usize,
) -> String {
    let scanner = Scanner::new(bytes, message.start, record_end);
    let text = bytes.get(message).unwrap_or_default();
    match (field, reason) {
        (Some(field), _) => describe_value(reason, field, scanner),
        (None, Reason::NotJson | Reason::TooDeep) => describe_syntax(reason, scanner, text),
        (None, Reason::NotAnObject) => {
            format!("{reason}: {}", quote(text.trim_ascii(), MAX_QUOTED_CHARS))
        }
        (None, Reason::InvalidUtf8) => match std::str::from_utf8(text) {
            Err(error) => {
                let at = error.valid_up_to();
                format!("{reason} at byte {at}: 0x{:02x}", text[at])
            }
            Ok(_) => reason.to_string(),
        },
        (None, _) => reason.to_string(),
    }
}

/// Describes a syntax error. The scanner runs again and stops at the same byte as the decoder.
fn describe_syntax(reason: Reason, mut scanner: Scanner<'_>, text: &[u8]) -> String {
    let begin = scanner.position();
    let _ = scanner.skip_value(0).and_then(|()| scanner.separator());
    let at = scanner.position() - begin;
    match text.get(at..) {
        Some(rest) if !rest.is_empty() => {
            format!("{reason} at byte {at}: {}", quote(rest, MAX_SYNTAX_QUOTED_CHARS))
        }
        _ => format!("{reason}: truncated after {} bytes", text.len()),
    }
}

/// Describes the value that the column rejected, or that the value is missing.
fn describe_value(reason: Reason, field: &Field, scanner: Scanner<'_>) -> String {
    let name = &field.name;
    let Some((at, value)) = last_value(scanner, name) else {
        return format!("{reason} (column {name})");
    };
    let quoted = quote(value, MAX_QUOTED_CHARS);
    let expected = sql_type(field);
    match reason {
        Reason::Null if value == b"null" => format!("{reason} (column {name}, byte {at})"),
        // A field or an element of the value is null or missing.
        Reason::Null | Reason::Missing => {
            format!("{quoted} lacks a value for a NOT NULL field (column {name}, byte {at})")
        }
        Reason::OutOfRange => {
            format!("{quoted} is out of the range of {expected} (column {name}, byte {at})")
        }
        _ => format!("cannot parse {quoted} as {expected} (column {name}, byte {at})"),
    }
}

/// Returns the last value of the key `name` in an object, and its byte position in the message.
fn last_value<'a>(mut scanner: Scanner<'a>, name: &str) -> Option<(usize, &'a [u8])> {
    let begin = scanner.position();
    let (mut first, mut found, mut scratch) = (true, None, Vec::new());
    scanner.enter(0).ok()?;
    while let Ok(Some(key)) = scanner.key(first) {
        first = false;
        let start = scanner.position();
        let is_match = key.value(&mut scratch) == name.as_bytes();
        scanner.skip_value(1).ok()?;
        if is_match {
            found = Some((start - begin, scanner.between(start, scanner.position())));
        }
    }
    found
}

/// The declared type and the required format of its texts.
fn sql_type(field: &Field) -> String {
    match (&field.data_type, &field.format) {
        (DataType::Timestamp(..), Some(format)) => format!("TIMESTAMP in the format '{format}'"),
        (DataType::Timestamp(..), None) => "TIMESTAMP such as 2019-10-30T14:06:35Z".to_owned(),
        (DataType::Date32, _) => "DATE such as 2019-10-30".to_owned(),
        (DataType::Binary, _) => "BYTEA (hexadecimal)".to_owned(),
        (other, _) => sql_type_name(other),
    }
}

fn sql_type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float32 => "REAL".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Utf8 => "VARCHAR".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::List(item) => format!("array of {}", sql_type_name(item.data_type())),
        DataType::Struct(_) => "STRUCT".to_owned(),
        other => other.to_string(),
    }
}

/// Returns at most `limit` characters of `text`, on one line.
fn quote(text: &[u8], limit: usize) -> String {
    // A character has at most four bytes.
    let prefix = text.get(..4 * (limit + 1)).unwrap_or(text);
    let text = String::from_utf8_lossy(prefix);
    let mut printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut quoted: String = printable.by_ref().take(limit).collect();
    if printable.next().is_some() {
        quoted.pop();
        quoted.push('…');
    }
    quoted
}
