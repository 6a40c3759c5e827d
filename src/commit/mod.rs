//! Commits epochs: one Kafka transaction per epoch, with the epoch's progress record in it.
//!
//! ```text
//!  epoch's records + progress ──► transaction ──► Kafka      (the only commit point)
//!  state ──► snapshot ──► object store ──► named by a later progress record
//! ```

mod commit_session;
mod committer;
mod delivery_tracker;
mod epoch_output;
mod hanging_transactions;
mod log_reader;
mod process;
mod producer;
mod progress;
mod resend;
mod transaction_failure;

pub use committer::Committer;
pub use epoch_output::{CommittedEpoch, EpochOutput};
pub use log_reader::{log_topic, read_log, read_stable_log};
pub use process::Process;
pub use progress::{
    PROGRESS_VERSION, PartitionJoin, Progress, RecoveredLog, SkippedOffsets, SnapshotRef,
};
pub use resend::resend;

#[cfg(test)]
mod tests;
