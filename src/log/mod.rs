//! The log: one Kafka transaction per epoch, the progress records in it, and snapshots.
//!
//! ```text
//!  epoch's records + progress ──► transaction ──► Kafka      (the only commit point)
//!  state ──► snapshot ──► object store ──► named by a later progress record
//! ```

mod fit;
#[cfg(test)]
mod hostile;
mod process;
mod producer;
mod progress;
mod resend;
mod tail;
mod unended;

pub mod snapshot;
pub mod transaction;

pub use fit::{DEFAULT_LIMIT, Limits, Replace, size_of};
pub use process::Process;
pub use progress::{Joined, Position, Progress, Recovered, Skipped, SnapshotRef, VERSION};
pub use resend::resend;
pub use snapshot::Snapshot;
pub use tail::{glance_at_log, log_topic, read_log};
pub use transaction::{Committed, Committer, EpochOutput, OutRecord};
