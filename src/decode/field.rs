//! The declared type of one payload column.

use arrow::datatypes::DataType;

/// A payload column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The key in the message, case and all.
    pub name: String,
    /// Its type. Timestamps are in microseconds.
    pub data_type: DataType,
    /// Whether the key may be missing or null.
    pub nullable: bool,
    /// A TIMESTAMP's declared format; without one it is RFC 3339.
    pub format: Option<String>,
}
