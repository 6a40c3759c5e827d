//! Decodes chunks of JSON records into record batches, directly into Arrow buffers.
//!
//! **Promises**
//! - Every message of a chunk ends in exactly one of three ways: as a row of the batch, as a
//!   [`RejectedMessage`] with its column, reason and bytes, or as a counted tombstone. A bad message
//!   never affects a good one, and leaves nothing in the batch.
//! - Everything that RFC 8259 allows is accepted (objects nested up to 128 deep), and nothing else.
//!   A record holds one object or several, separated by white space, which may include newlines.
//! - Keys are expected in the order of the previous message, and accepted in any order. If a key
//!   occurs twice, the last value counts. Unknown keys are checked, skipped and counted.
//! - A declared type accepts another kind of JSON value if nothing is lost: "12", 12.0 and 1e1 are
//!   valid for BIGINT, 12.5 is not; 12 is the VARCHAR "12"; "true" is a BOOLEAN. BYTEA is
//!   hexadecimal.
//!
//! ```text
//!       key order: `, "room": `       column: Utf8
//!  scanner ──────────────────────► key ─────────────► value ──► ... ──► row, or rolled back
//!            (token by token if it differs)
//! ```

mod civil_date;
mod column;
mod decoder;
mod field;
mod key_order;
mod local_zone;
mod number;
mod reason;
mod rejection;
mod scanner;
mod text_builder;
pub mod timestamp;

#[cfg(test)]
mod tests;

pub use decoder::{Decoded, Decoder};
pub use field::Field;
pub use reason::Reason;
pub use rejection::{RejectedMessage, Rejection};
pub use timestamp::TimestampFormat;
