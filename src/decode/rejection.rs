//! Describes for people why a message was rejected.
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

/// Characters of a value or message that a text quotes at most.
const MAX_QUOTED_CHARS: usize = 80;
/// Characters quoted from the place on where a message is no JSON.
const MAX_SYNTAX_QUOTED_CHARS: usize = 20;

/// A message that did not become a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedMessage {
    /// The index of its record in the chunk.
    pub record: u32,
    /// Which message of its record it was, from 0.
    pub position: u32,
    /// The column that refused it, if one did.
    pub column: Option<String>,
    /// Rejection.
    pub reason: Rejection,
    /// Where it stands in the chunk's bytes.
    pub bytes: Range<u32>,
}

/// Why a message is no row. `Display` says it to people with value and place, [`Rejection::as_str`]
/// is a word for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What kind of fault it is.
    pub kind: Reason,
    pub(super) text: String,
}

impl Rejection {
    /// A word for metrics: one of few, whatever the message holds.
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
/// rejected for `reason`, by the column of `field` if one did.
#[cold]
pub(super) fn describe(
    reason: Reason,
    field: Option<&Field>,
    bytes: &[u8],
    message: Range<usize>,
    record_end: usize,
) -> String {
    let scanner = Scanner::new(bytes, message.start, record_end);
    let own = bytes.get(message).unwrap_or_default();
    match (field, reason) {
        (Some(field), _) => describe_value(reason, field, scanner),
        (None, Reason::NotJson | Reason::TooDeep) => describe_syntax(reason, scanner, own),
        (None, Reason::NotAnObject) => {
            format!("{reason}: {}", quote(own.trim_ascii(), MAX_QUOTED_CHARS))
        }
        (None, Reason::InvalidUtf8) => match std::str::from_utf8(own) {
            Err(error) => {
                let at = error.valid_up_to();
                format!("{reason} at byte {at}: 0x{:02x}", own[at])
            }
            Ok(_) => reason.to_string(),
        },
        (None, _) => reason.to_string(),
    }
}

/// Where reading ended that is no JSON: the same grammar stops at the same byte.
fn describe_syntax(reason: Reason, mut scanner: Scanner<'_>, own: &[u8]) -> String {
    let begin = scanner.position();
    let _ = scanner.skip_value(0).and_then(|()| scanner.separator());
    let at = scanner.position() - begin;
    match own.get(at..) {
        Some(rest) if !rest.is_empty() => {
            format!("{reason} at byte {at}: {}", quote(rest, MAX_SYNTAX_QUOTED_CHARS))
        }
        _ => format!("{reason}: truncated after {} bytes", own.len()),
    }
}

/// What the column found, or that it found nothing.
fn describe_value(reason: Reason, field: &Field, scanner: Scanner<'_>) -> String {
    let name = &field.name;
    let Some((at, value)) = last_value(scanner, name) else {
        return format!("{reason} (column {name})");
    };
    let shown = quote(value, MAX_QUOTED_CHARS);
    let wanted = sql_type(field);
    match reason {
        Reason::Null if value == b"null" => format!("{reason} (column {name}, byte {at})"),
        // Of a field or an element in it.
        Reason::Null | Reason::Missing => {
            format!("{shown} lacks a NOT NULL value (column {name}, byte {at})")
        }
        Reason::OutOfRange => {
            format!("{shown} is out of the range of {wanted} (column {name}, byte {at})")
        }
        _ => format!("cannot parse {shown} as {wanted} (column {name}, byte {at})"),
    }
}

/// The last value of the key `name` in an object, and how many bytes stand before it.
fn last_value<'a>(mut scanner: Scanner<'a>, name: &str) -> Option<(usize, &'a [u8])> {
    let begin = scanner.position();
    let (mut first, mut found, mut scratch) = (true, None, Vec::new());
    scanner.enter(0).ok()?;
    while let Ok(Some(key)) = scanner.key(first) {
        first = false;
        let start = scanner.position();
        let wanted = key.value(&mut scratch) == name.as_bytes();
        scanner.skip_value(1).ok()?;
        if wanted {
            found = Some((start - begin, scanner.between(start, scanner.position())));
        }
    }
    found
}

/// The declared type, with the form that its texts must have.
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

/// At most `limit` characters of `text`, on one line.
fn quote(text: &[u8], limit: usize) -> String {
    // A character has four bytes at most.
    let some = text.get(..4 * (limit + 1)).unwrap_or(text);
    let text = String::from_utf8_lossy(some);
    let mut plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = plain.by_ref().take(limit).collect();
    if plain.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}
