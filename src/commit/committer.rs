//! The handle of the commit thread.
//!
//! Each customer has one thread that runs its transactions, see
//! [`crate::commit::commit_session`]: librdkafka's transactional calls block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::commit::commit_session::{CommitSession, Job};
use crate::commit::epoch_output::{CommittedEpoch, EpochOutput};
use crate::sink::SizeLimits;
use crate::source::KafkaConfig;
use crate::{Error, Result};

/// How long `close` waits for the thread to end.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// Commits a customer's epochs on a thread of its own.
pub struct Committer {
    jobs: mpsc::Sender<Job>,
    stop: StopOnDrop,
    ended: oneshot::Receiver<()>,
}

impl Committer {
    /// Fences every other process of this customer, ends the transactions that such a process left
    /// open, and reads the log. Returns all progress records that the log still has, oldest first.
    /// Records beyond `limits` are replaced when their epoch is committed.
    ///
    /// # Errors
    /// The brokers cannot be reached within a minute, the log topic is missing, or a permission is
    /// missing.
    pub async fn open(
        kafka: &KafkaConfig,
        customer: &str,
        limits: SizeLimits,
    ) -> Result<(Self, Vec<Bytes>)> {
        let (jobs, inbox) = mpsc::channel();
        let (opened, opening) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut session = CommitSession::new(kafka, customer, limits, Arc::clone(&stop));
        std::thread::Builder::new().name(format!("commit-{customer}")).spawn(move || {
            session.run(opened, &inbox);
            drop(session);
            // The receiver is gone if the committer was dropped without `close`.
            let _ = ending.send(());
        })?;
        let committer = Self { jobs, stop: StopOnDrop(stop), ended };
        let records = opening.await.map_err(thread_stopped)??;
        Ok((committer, records))
    }

    /// Commits an epoch. Waits until the brokers are back if they are unavailable. Epochs of
    /// several calls commit in the order of the calls.
    ///
    /// # Errors
    /// All errors are final, and the epoch is not committed:
    /// - `Fenced`: another process took over;
    /// - `Data`: Kafka refuses a record for a reason other than its size; another output for this
    ///   epoch may be committed instead;
    /// - `Config`: a topic is missing;
    /// - `Kafka`: a permission is missing, or no attempt succeeded.
    pub async fn commit(&self, output: EpochOutput) -> Result<CommittedEpoch> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send((output, reply)).map_err(thread_stopped)?;
        answer.await.map_err(thread_stopped)?
    }

    /// Ends the thread. An epoch whose commit is in progress may or may not be committed.
    pub async fn close(self) {
        let Self { jobs, stop, ended } = self;
        drop((stop, jobs));
        if tokio::time::timeout(CLOSE_WAIT, ended).await.is_err() {
            tracing::debug!("a Kafka producer has not closed in time; not waiting any longer");
        }
    }
}

/// Signals the thread to stop waiting for brokers.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn thread_stopped<E>(_: E) -> Error {
    Error::internal("the commit thread has stopped")
}
