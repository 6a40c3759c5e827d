//! The events of a reader: chunks of records and the ends of partitions.

use crate::source::chunk::{Chunk, Record};
use crate::types::TopicPartition;

/// An event of a reader.
#[derive(Debug, Clone)]
pub enum Event {
    /// Records of one partition; at least one.
    Chunk(Chunk),
    /// The reader has just reached the end of a partition.
    End {
        /// The partition.
        partition: TopicPartition,
        /// The offset of the next record to be written, after gaps at the end.
        position: i64,
    },
}

impl Event {
    /// The approximate memory size in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.bytes.len() + chunk.records.len() * size_of::<Record>(),
            Self::End { .. } => 64,
        }
    }
}
