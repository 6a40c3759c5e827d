//! A pipeline's snapshots: loaded at the start, written in the background, named by a full
//! record, and retired with the part of the log that only they needed.
//!
//! ```text
//!  write(state) ─► writing ─► ready ─► a full record names it ─► named
//!                     │                                           └─► the oldest is deleted and the
//!                     └─ failed: the next one will do                 log cut below the older one
//! ```
//!
//! Promises:
//! - the two newest snapshots stay whole, and so do the epochs that follow the older one;
//! - nothing is deleted or cut but after a commit that no longer names it: a process that was
//!   fenced in the meantime does neither. What a killed process left behind goes with the first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::commit::{Progress, RecoveredLog, SnapshotRef, log_topic};
use crate::failpoint::reach;
use crate::pipeline::PipelineConfig;
use crate::source::{Cluster, blocking};
use crate::state::{Snapshot, snapshot_store as snapshot};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result, storage};

/// The pause before another snapshot after one that failed; twice as long after each.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The least pause between two snapshots, in multiples of the time that writing one takes: a state
/// that is large for its disk is written less often than asked for.
const WRITING_SHARE: u32 = 10;

/// A customer's snapshots.
pub struct Snapshots {
    store: Arc<dyn ObjectStore>,
    cluster: Arc<Cluster>,
    log: TopicPartition,
    /// The two that the newest full record names.
    newest: Option<SnapshotRef>,
    older: Option<SnapshotRef>,
    /// Folders that no record named when this process began.
    leftovers: Vec<Path>,
    /// Taken by this process and not named yet.
    writing: Option<Writing>,
    ready: Option<SnapshotRef>,
    /// Deletes what no record needs.
    deleting: Option<JoinHandle<()>>,
    begun_at: Instant,
    interval: Duration,
    /// How long writing the last one took.
    took: Duration,
    /// Attempts that failed since the last one that did not.
    failures: u32,
    /// The newest committed epoch of this process, and the log's offset of its record or below.
    committed: (u64, i64),
}

struct Writing {
    epoch: u64,
    path: String,
    /// Ends with the time that it took.
    task: JoinHandle<Result<Duration>>,
    log_offset: i64,
}

impl Snapshots {
    /// The snapshots of `customer`, whose log is at `cluster`.
    ///
    /// # Errors
    /// The folder cannot be made or listed.
    pub async fn open(
        customer: &str,
        options: &PipelineConfig,
        cluster: Arc<Cluster>,
    ) -> Result<Self> {
        let folder = options.data_dir.join("snapshots").join(customer);
        std::fs::create_dir_all(&folder).map_err(|e| {
            let message = format!("the folder {} cannot be made", folder.display());
            Error::new(Kind::Storage, message).hint("look at --data-dir").because(e)
        })?;
        let store = storage::open_local(&folder).map_err(|e| {
            Error::new(Kind::Storage, "the snapshot folder cannot be opened").because(e)
        })?;
        Ok(Self {
            leftovers: snapshot::list(&store).await?,
            store,
            cluster,
            log: TopicPartition::new(log_topic(customer), 0),
            newest: None,
            older: None,
            writing: None,
            ready: None,
            deleting: None,
            begun_at: Instant::now(),
            interval: options.snapshot_interval,
            took: Duration::ZERO,
            failures: 0,
            committed: (0, 0),
        })
    }

    /// Whether there is any, named by the log or not.
    pub fn any_on_disk(&self) -> bool {
        !self.leftovers.is_empty()
    }

    /// Reads the newest snapshot that the log names, or the one before it if that is damaged;
    /// both are kept from now on. `None`: there is none.
    ///
    /// # Errors
    /// Neither can be read, or the log lacks the epochs after the older one.
    pub async fn load(
        &mut self,
        recovered: &RecoveredLog,
    ) -> Result<Option<(SnapshotRef, Snapshot)>> {
        let Some(newest) = recovered.snapshot.clone() else { return Ok(None) };
        let damage = match self.read(&newest).await {
            Ok(state) => {
                self.keep(Some(newest.clone()), recovered.older.clone());
                return Ok(Some((newest, state)));
            }
            Err(error) => error,
        };
        let Some(older) = recovered.older.clone() else { return Err(damage) };
        if recovered.after(Some(&older)).is_err() {
            return Err(damage);
        }
        let Ok(state) = self.read(&older).await else { return Err(damage) };
        tracing::warn!(%damage, "the newest snapshot cannot be used; beginning with the one before it");
        self.keep(Some(older.clone()), None);
        Ok(Some((older, state)))
    }

    async fn read(&self, reference: &SnapshotRef) -> Result<Snapshot> {
        snapshot::read(&self.store, &reference.path.as_str().into()).await
    }

    fn keep(&mut self, newest: Option<SnapshotRef>, older: Option<SnapshotRef>) {
        let kept = |path: &Path| {
            [&newest, &older].into_iter().flatten().any(|named| named.path == path.as_ref())
        };
        self.leftovers.retain(|path| !kept(path));
        (self.newest, self.older) = (newest, older);
    }

    /// The state was changed by hand: the snapshots so far must not be gone back to.
    pub fn forget(&mut self) {
        let named = [self.newest.take(), self.older.take()];
        self.leftovers.extend(named.into_iter().flatten().map(|s| Path::from(s.path)));
    }

    /// The oldest epoch that no snapshot holds was `age` ago: the next one is not a whole interval
    /// away. Otherwise processes that each live shorter than that would never take one, and leave
    /// more and more to run again.
    pub fn waited(&mut self, age: Duration) {
        let age = age.min(self.interval);
        self.begun_at = self.begun_at.checked_sub(age).unwrap_or(self.begun_at);
    }

    /// Whether it is time for another one.
    pub fn is_due(&self) -> bool {
        let pause = match self.failures {
            0 => self.interval.max(self.took * WRITING_SHARE),
            failures => (RETRY_PAUSE * 2u32.pow(failures.min(10) - 1)).min(self.interval),
        };
        self.writing.is_none() && self.begun_at.elapsed() >= pause
    }

    /// Writes the state at the end of `epoch` in the background. It is ready when history has
    /// that epoch too: what a snapshot is past can be read again from nowhere else.
    pub fn write(&mut self, epoch: u64, state: Snapshot, mut history: watch::Receiver<u64>) {
        let store = self.store.clone();
        let path = format!("{epoch:012}-{}", uuid::Uuid::new_v4().simple());
        let folder = Path::from(path.as_str());
        let task = tokio::spawn(async move {
            let since = Instant::now();
            snapshot::write(&store, &folder, &state).await?;
            let took = since.elapsed();
            let reached = history.wait_for(|written| *written >= epoch).await;
            reached.map_err(|_| Error::new(Kind::Storage, "the history writer stopped"))?;
            let ready = since.elapsed();
            tracing::debug!(epoch, written = ?took, ?ready, "a snapshot is written");
            Ok(took)
        });
        if let Some(replaced) = self.writing.take() {
            replaced.task.abort();
            self.leftovers.push(replaced.path.into());
        }
        self.begun_at = Instant::now();
        let log_offset = if self.committed.0 == epoch { self.committed.1 } else { 0 };
        self.writing = Some(Writing { epoch, path, task, log_offset });
    }

    /// An epoch is committed, its record at `log_offset` or above.
    pub fn committed(&mut self, epoch: u64, log_offset: i64) {
        self.committed = (epoch, log_offset);
        if let Some(writing) = self.writing.as_mut().filter(|w| w.epoch == epoch) {
            writing.log_offset = log_offset;
        }
    }

    /// Looks whether the one under way is written; with `wait`, until it is.
    ///
    /// # Errors
    /// Only with `wait`: it could not be written.
    pub async fn poll(&mut self, wait: bool) -> Result<()> {
        if !wait && !self.writing.as_ref().is_some_and(|w| w.task.is_finished()) {
            return Ok(());
        }
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let done = writing.task.await;
        let done = done.map_err(|e| Error::internal("a snapshot's task failed").because(e));
        match done.flatten() {
            Ok(took) => {
                let Writing { epoch, path, log_offset, .. } = writing;
                (self.failures, self.took) = (0, took);
                let unnamed = self.ready.replace(SnapshotRef { epoch, path, log_offset });
                self.leftovers.extend(unnamed.map(|unnamed| Path::from(unnamed.path)));
                reach("snapshot.ready");
                Ok(())
            }
            Err(error) => {
                self.leftovers.push(writing.path.into());
                self.failures += 1;
                if wait {
                    return Err(error);
                }
                tracing::warn!(%error, "a snapshot could not be written; another one will be tried");
                Ok(())
            }
        }
    }

    /// The one that waits to be named.
    pub fn take_ready(&mut self) -> Option<SnapshotRef> {
        self.ready.take()
    }

    /// Names `ready`, or those that are named already, in a full record.
    pub fn mention(&self, record: &mut Progress, ready: Option<SnapshotRef>) {
        (record.snapshot, record.older) = match ready {
            Some(_) => {
                reach("snapshot.name");
                (ready, self.newest.clone())
            }
            None => (self.newest.clone(), self.older.clone()),
        };
    }

    /// Waits until nothing is left to delete.
    pub async fn tidied(&mut self) {
        if let Some(deleting) = self.deleting.take() {
            drop(deleting.await);
        }
    }

    /// A committed record named `named`: deletes what no record needs now, and cuts the log.
    pub async fn named(&mut self, named: SnapshotRef) {
        reach("snapshot.named");
        let older = self.newest.replace(named);
        let oldest = std::mem::replace(&mut self.older, older);
        self.leftovers.extend(oldest.map(|oldest| Path::from(oldest.path)));
        let (store, unneeded) = (self.store.clone(), std::mem::take(&mut self.leftovers));
        // A snapshot may have thousands of files: the next epoch does not wait for them.
        let before = self.deleting.take();
        self.deleting = Some(tokio::spawn(async move {
            if let Some(before) = before {
                drop(before.await);
            }
            for path in unneeded {
                if let Err(error) = snapshot::delete(&store, &path).await {
                    tracing::warn!(%error, "an old snapshot could not be deleted");
                }
            }
        }));
        let Some(cut) = self.older.as_ref().map(|o| o.log_offset).filter(|&cut| cut > 0) else {
            return;
        };
        let (cluster, log) = (self.cluster.clone(), self.log.clone());
        let cutting = blocking(move || {
            reach("log.cut");
            cluster.delete_records_before(&log, cut)?;
            reach("log.cut.done");
            Ok(())
        });
        tokio::spawn(async move {
            if let Err(error) = cutting.await {
                tracing::debug!(%error, "the log could not be cut; the next snapshot tries again");
            }
        });
    }
}
