//! The log: one Kafka transaction per epoch, the progress records in it, and snapshots.
//!
//! ```text
//!  epoch's records + progress ──► transaction ──► Kafka      (the only commit point)
//!  state ──► snapshot ──► object store ──► named by a later progress record
//! ```

mod hanging_transactions;
mod log_reader;
mod process;
mod producer;
mod progress;
mod resend;

pub mod committer;

pub use committer::{CommittedEpoch, Committer, EpochOutput};
pub use log_reader::{log_topic, read_log, read_stable_log};
pub use process::Process;
pub use progress::{
    PROGRESS_VERSION, PartitionJoin, Progress, RecoveredLog, SkippedOffsets, SnapshotRef,
};
pub use resend::resend;

#[cfg(test)]
mod tests;
