//! The commit that is pending while the next epoch is read.

use std::time::Instant;

use tokio::task::JoinHandle;

use crate::commit::{CommittedEpoch, SnapshotRef};
use crate::types::HistoryRows;
use crate::{Error, Kind, Result};

/// A pending commit, and what is needed when it has succeeded.
pub struct PendingCommit {
    pub epoch: u64,
    pub task: JoinHandle<Result<CommittedEpoch>>,
    /// Rows that are handed to history after the commit.
    pub history: Vec<HistoryRows>,
    /// The snapshot that the record names for the first time.
    pub snapshot: Option<SnapshotRef>,
    /// When the epoch began.
    pub began: Instant,
    /// The newest Kafka timestamp of the epoch's records, in milliseconds; 0: none.
    pub newest_ms: i64,
}

/// Waits until the pending commit ends; never returns if none is pending.
pub async fn wait_for_commit(commit: &mut Option<PendingCommit>) -> Result<CommittedEpoch> {
    match commit {
        Some(commit) => (&mut commit.task)
            .await
            .map_err(|e| Error::internal("the commit task failed").because(e))?,
        None => std::future::pending().await,
    }
}

/// The error of a stop during which Kafka did not answer the last commit.
pub fn commit_timeout_error() -> Error {
    Error::new(Kind::Kafka, "Kafka did not respond: stopped without the last commit")
        .hint("what is not committed is read again at the next start; nothing is lost")
}
