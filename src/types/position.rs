//! How far a source partition has been read.

use serde::{Deserialize, Serialize};

/// Where a partition stood, and its account so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePosition {
    /// The next offset to be read.
    pub offset: i64,
    /// The first offset that was read: where the partition joined.
    #[serde(default)]
    pub joined: i64,
    /// Rows decoded from it since it joined.
    pub decoded: u64,
    /// Messages rejected by the decoder, the computed columns or the event-time rule.
    pub rejected: u64,
    /// Records without a value.
    pub tombstones: u64,
    /// Offsets that were passed over since it joined, for Kafka no longer had them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
