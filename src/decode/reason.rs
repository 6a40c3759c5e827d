//! The kinds of error for which a message is rejected.

use std::fmt;

/// The kind of error for which a message is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The text violates RFC 8259, or other text follows the message on its line.
    NotJson,
    /// The nesting is deeper than 128 levels.
    TooDeep,
    /// The message is valid JSON but not an object.
    NotAnObject,
    /// The record contains only white space.
    Empty,
    /// The message is not valid UTF-8.
    InvalidUtf8,
    /// The key of a NOT NULL column is missing.
    Missing,
    /// The value of a NOT NULL column is null.
    Null,
    /// The value cannot be converted to the column's type without loss.
    WrongType,
    /// The number is out of the range of the column's type.
    OutOfRange,
    /// The text is not a timestamp in the column's format.
    BadTimestamp,
    /// The text is not an ISO date.
    BadDate,
}

impl Reason {
    /// The label value for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::NotJson => "not_json",
            Reason::TooDeep => "too_deep",
            Reason::NotAnObject => "not_an_object",
            Reason::Empty => "empty",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::Missing => "missing",
            Reason::Null => "null",
            Reason::WrongType => "wrong_type",
            Reason::OutOfRange => "out_of_range",
            Reason::BadTimestamp => "bad_timestamp",
            Reason::BadDate => "bad_date",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::NotJson => "not valid JSON",
            Reason::TooDeep => "nested more than 128 deep",
            Reason::NotAnObject => "not a JSON object",
            Reason::Empty => "empty",
            Reason::InvalidUtf8 => "not valid UTF-8",
            Reason::Missing => "missing value of a NOT NULL column",
            Reason::Null => "null in a NOT NULL column",
            Reason::WrongType => "not a value of the column's type",
            Reason::OutOfRange => "out of the range of the column's type",
            Reason::BadTimestamp => "not a timestamp in the column's format",
            Reason::BadDate => "not an ISO date (2019-10-30)",
        })
    }
}
