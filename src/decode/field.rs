//! The declared type of one payload column.

use arrow::datatypes::DataType;

/// A payload column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The key in the message, which is case-sensitive.
    pub name: String,
    /// The type. Timestamps are in microseconds.
    pub data_type: DataType,
    /// Whether the key may be missing or null.
    pub nullable: bool,
    /// The declared format of a TIMESTAMP; `None` for RFC 3339.
    pub format: Option<String>,
}
