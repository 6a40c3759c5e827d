//! The input and the result of one commit.

use std::time::Duration;

use bytes::Bytes;

use crate::types::{OutRecord, TopicPartition};

/// Everything that an epoch writes to Kafka, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOutput {
    /// The epoch's number, larger than the number of every epoch before it.
    pub epoch: u64,
    /// Results, dead letters and late rows.
    pub records: Vec<OutRecord>,
    /// The epoch's progress record: JSON with the integer field `epoch`.
    pub progress: Bytes,
    /// Source offsets for lag monitoring, committed under the group `millstream.<customer>`; may be
    /// empty.
    pub offsets: Vec<(TopicPartition, i64)>,
}

/// An epoch that is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedEpoch {
    /// From the begin of the transaction to its commit, repeated attempts included.
    pub took: Duration,
    /// The progress record's offset in the log, or a lower offset if the exact one is unknown.
    pub log_offset: i64,
    /// Records that were too large for their topic and went to another topic.
    pub diverted: u64,
}
