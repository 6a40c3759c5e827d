//! The progress of a source partition.

use serde::{Deserialize, Serialize};

/// The position in a source partition and the counts that reconcile it: `offset - joined` equals
/// records plus gaps, and each record was decoded, rejected or a tombstone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePosition {
    /// The next offset to read.
    pub offset: i64,
    /// The first offset that was read.
    #[serde(default)]
    pub joined: i64,
    /// Rows decoded since `joined`.
    pub decoded: u64,
    /// Messages rejected by the decoder, a computed column or the event-time checks.
    pub rejected: u64,
    /// Records without a value (tombstones).
    pub tombstones: u64,
    /// Offsets skipped since `joined` because Kafka had already deleted them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
