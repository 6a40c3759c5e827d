//! The destination of an epoch's records.

use crate::pipeline::output_dedup::OutputDedup;

/// Where the records of an epoch go.
pub enum EpochSink {
    /// Every epoch is committed in a transaction of its own.
    Transaction,
    /// Nothing is committed: records that the topics lack are collected, as a rebuild does.
    Collect(OutputDedup),
}
