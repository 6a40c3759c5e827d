//! The kinds of error for which a message is rejected.

use std::fmt;

/// The kinds of fault that make a message no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not what RFC 8259 allows, or followed by something else on its line.
    NotJson,
    /// Nested more than 128 deep.
    TooDeep,
    /// JSON, but no object.
    NotAnObject,
    /// A record without a byte but white space.
    Empty,
    /// Not UTF-8.
    InvalidUtf8,
    /// The key of a NOT NULL column is missing.
    Missing,
    /// The value of a NOT NULL column is null.
    Null,
    /// A value of another kind, from which the column's type cannot be had without loss.
    WrongType,
    /// A number beyond the column's type.
    OutOfRange,
    /// A text that is no timestamp in the column's format.
    BadTimestamp,
    /// A text that is no ISO date.
    BadDate,
}

impl Reason {
    /// A word for metrics.
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
