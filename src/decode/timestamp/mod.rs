//! Compiles timestamp formats. A compiled format converts a text to an instant in tens of nanoseconds.
//!
//! Without a declared format, text is RFC 3339, with or without an offset. Text without an offset
//! is local time in the stream's zone: an hour that occurs twice means the first one, and a skipped
//! hour moves forward. Digits of a second beyond the microsecond are truncated.

mod fixed_layout;
mod format;
mod format_item;
mod specifiers;

#[cfg(test)]
mod tests;

pub use format::TimestampFormat;
