//! The lifecycle of a pipeline's snapshots. A snapshot is loaded at the start, written in the
//! background, named by a full progress record, and deleted together with the part of the log that
//! only it needs.
//!
//! ```text
//!  write(state) ─► writing ─► ready ─► a full record names it ─► named
//!                     │                                           └─► the oldest snapshot is deleted,
//!                     └─ failed: retried with a later state           the log is truncated below the
//!                                                                     second newest
//! ```
//!
//! **Promises**
//! - The two newest snapshots stay complete, and so do the epochs that follow the older one.
//! - A snapshot is deleted, and the log truncated, only after a commit whose record no longer names
//!   it. A process that was fenced in the meantime therefore deletes nothing. Folders that a killed
//!   process left behind are deleted with the first snapshot that a record names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::commit::{Progress, RecoveredLog, SnapshotRef, log_topic};
use crate::failpoint::reach;
use crate::pipeline::config::PipelineConfig;
use crate::source::{Cluster, blocking};
use crate::state::{Snapshot, snapshot_store};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result, storage};

/// The pause after the first failed snapshot. It doubles with each further failure.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The least pause between two snapshots, in multiples of the time that writing one takes. A state
/// that is large for its disk is written less often than the configured interval.
const WRITING_SHARE: u32 = 10;

/// A customer's snapshots.
pub struct SnapshotLifecycle {
    store: Arc<dyn ObjectStore>,
    cluster: Arc<Cluster>,
    log: TopicPartition,
    /// The snapshots that the newest full record names.
    newest: Option<SnapshotRef>,
    second_newest: Option<SnapshotRef>,
    /// Folders that no record names; they are deleted with the next snapshot that is named.
    unneeded: Vec<Path>,
    /// Written by this process and not named by a record yet.
    writing: Option<Writing>,
    ready: Option<SnapshotRef>,
    /// The task that deletes snapshots that no record needs.
    deletion: Option<JoinHandle<()>>,
    /// When the interval before the next snapshot began.
    interval_start: Instant,
    interval: Duration,
    /// How long writing the last snapshot took.
    write_time: Duration,
    /// Failed attempts since the last successful one.
    failures: u32,
    /// The newest epoch that this process committed, and a log offset at or below its record.
    committed: (u64, i64),
}

/// A snapshot that is being written.
struct Writing {
    epoch: u64,
    path: String,
    /// Returns the time that writing took.
    task: JoinHandle<Result<Duration>>,
    log_offset: i64,
}

impl SnapshotLifecycle {
    /// Opens the snapshots of `customer`, whose log is on `cluster`.
    ///
    /// # Errors
    /// The folder cannot be created or listed.
    pub async fn open(
        customer: &str,
        config: &PipelineConfig,
        cluster: Arc<Cluster>,
    ) -> Result<Self> {
        let folder = config.snapshot_folder(customer);
        std::fs::create_dir_all(&folder).map_err(|e| {
            let message = format!("cannot create the folder {}", folder.display());
            Error::new(Kind::Storage, message).hint("check --data-dir").because(e)
        })?;
        let store = storage::open_local(&folder)
            .map_err(|e| Error::new(Kind::Storage, "cannot open the snapshot folder").because(e))?;
        Ok(Self {
            unneeded: snapshot_store::list(&store).await?,
            store,
            cluster,
            log: TopicPartition::new(log_topic(customer), 0),
            newest: None,
            second_newest: None,
            writing: None,
            ready: None,
            deletion: None,
            interval_start: Instant::now(),
            interval: config.snapshot_interval,
            write_time: Duration::ZERO,
            failures: 0,
            committed: (0, 0),
        })
    }

    /// Whether a snapshot is on disk that no record of the log names.
    pub fn has_unnamed(&self) -> bool {
        !self.unneeded.is_empty()
    }

    /// Reads the newest snapshot that the log names, or the second newest if the newest is damaged.
    /// The snapshots that the log names are protected from deletion from now on. `None`: the log
    /// names no snapshot.
    ///
    /// # Errors
    /// Neither can be read, or the log lacks the epochs after the second newest.
    pub async fn load(
        &mut self,
        recovered: &RecoveredLog,
    ) -> Result<Option<(SnapshotRef, Snapshot)>> {
        let Some(newest) = recovered.snapshot.clone() else { return Ok(None) };
        let damage = match self.read(&newest).await {
            Ok(state) => {
                self.protect(Some(newest.clone()), recovered.older.clone());
                return Ok(Some((newest, state)));
            }
            Err(error) => error,
        };
        let Some(older) = recovered.older.clone() else { return Err(damage) };
        if recovered.after(Some(&older)).is_err() {
            return Err(damage);
        }
        let Ok(state) = self.read(&older).await else { return Err(damage) };
        tracing::warn!(%damage, "the newest snapshot is damaged; recovery uses the one before it");
        self.protect(Some(older.clone()), None);
        Ok(Some((older, state)))
    }

    async fn read(&self, reference: &SnapshotRef) -> Result<Snapshot> {
        snapshot_store::read(&self.store, &reference.path.as_str().into()).await
    }

    /// Makes these the named snapshots: they are not deleted.
    fn protect(&mut self, newest: Option<SnapshotRef>, second_newest: Option<SnapshotRef>) {
        let is_named = |path: &Path| {
            [&newest, &second_newest].into_iter().flatten().any(|named| named.path == path.as_ref())
        };
        self.unneeded.retain(|path| !is_named(path));
        (self.newest, self.second_newest) = (newest, second_newest);
    }

    /// Discards the named snapshots, because the state has changed in a way that they do not
    /// contain: no later recovery may use them.
    pub fn discard_named(&mut self) {
        let named = [self.newest.take(), self.second_newest.take()];
        self.unneeded.extend(named.into_iter().flatten().map(|s| Path::from(s.path)));
    }

    /// Moves the next snapshot forward by `age`, the age of the oldest epoch that no snapshot
    /// contains. Otherwise processes that each run for less than an interval would never take a
    /// snapshot, and the number of epochs to replay would grow without bound.
    pub fn shorten_interval(&mut self, age: Duration) {
        let age = age.min(self.interval);
        self.interval_start = self.interval_start.checked_sub(age).unwrap_or(self.interval_start);
    }

    /// Whether the next snapshot is due.
    pub fn is_due(&self) -> bool {
        let pause = match self.failures {
            0 => self.interval.max(self.write_time * WRITING_SHARE),
            failures => (RETRY_PAUSE * 2u32.pow(failures.min(10) - 1)).min(self.interval),
        };
        self.writing.is_none() && self.interval_start.elapsed() >= pause
    }

    /// Writes the state at the end of `epoch` in the background. The snapshot becomes ready only
    /// when history contains that epoch too, because recovery does not read events again that a
    /// snapshot already covers.
    pub fn write(&mut self, epoch: u64, state: Snapshot, mut history_epoch: watch::Receiver<u64>) {
        let store = self.store.clone();
        let path = format!("{epoch:012}-{}", uuid::Uuid::new_v4().simple());
        let folder = Path::from(path.as_str());
        let task = tokio::spawn(async move {
            let since = Instant::now();
            snapshot_store::write(&store, &folder, &state).await?;
            let write_time = since.elapsed();
            let reached = history_epoch.wait_for(|written| *written >= epoch).await;
            reached.map_err(|_| Error::new(Kind::Storage, "the history writer stopped"))?;
            let ready = since.elapsed();
            tracing::debug!(epoch, written = ?write_time, ?ready, "a snapshot is written");
            Ok(write_time)
        });
        if let Some(replaced) = self.writing.take() {
            replaced.task.abort();
            self.unneeded.push(replaced.path.into());
        }
        self.interval_start = Instant::now();
        let log_offset = if self.committed.0 == epoch { self.committed.1 } else { 0 };
        self.writing = Some(Writing { epoch, path, task, log_offset });
    }

    /// Records that an epoch is committed, with its record at `log_offset` or above.
    pub fn record_commit(&mut self, epoch: u64, log_offset: i64) {
        self.committed = (epoch, log_offset);
        if let Some(writing) = self.writing.as_mut().filter(|w| w.epoch == epoch) {
            writing.log_offset = log_offset;
        }
    }

    /// Checks whether the snapshot that is being written is complete; with `wait`, waits for it.
    ///
    /// # Errors
    /// Only with `wait`: writing failed.
    pub async fn poll(&mut self, wait: bool) -> Result<()> {
        if !wait && !self.writing.as_ref().is_some_and(|w| w.task.is_finished()) {
            return Ok(());
        }
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let written = writing.task.await;
        let written = written.map_err(|e| Error::internal("the snapshot task failed").because(e));
        match written.flatten() {
            Ok(write_time) => {
                let Writing { epoch, path, log_offset, .. } = writing;
                (self.failures, self.write_time) = (0, write_time);
                let unnamed = self.ready.replace(SnapshotRef { epoch, path, log_offset });
                self.unneeded.extend(unnamed.map(|unnamed| Path::from(unnamed.path)));
                reach("snapshot.ready");
                Ok(())
            }
            Err(error) => {
                self.unneeded.push(writing.path.into());
                self.failures += 1;
                if wait {
                    return Err(error);
                }
                tracing::warn!(%error, "writing a snapshot failed; it is retried with a later state");
                Ok(())
            }
        }
    }

    /// Takes the snapshot that is complete and not named by a record yet.
    pub fn take_ready(&mut self) -> Option<SnapshotRef> {
        self.ready.take()
    }

    /// Names `ready` in a full record, or the snapshots that are named already if it is `None`.
    pub fn name_in(&self, record: &mut Progress, ready: Option<SnapshotRef>) {
        (record.snapshot, record.older) = match ready {
            Some(_) => {
                reach("snapshot.name");
                (ready, self.newest.clone())
            }
            None => (self.newest.clone(), self.second_newest.clone()),
        };
    }

    /// Waits until unneeded snapshots are deleted.
    pub async fn finish_deletion(&mut self) {
        if let Some(deletion) = self.deletion.take() {
            drop(deletion.await);
        }
    }

    /// Records that a committed record names `snapshot`: deletes the snapshots that no record needs
    /// any more, and truncates the log.
    pub fn record_named(&mut self, snapshot: SnapshotRef) {
        reach("snapshot.named");
        let second_newest = self.newest.replace(snapshot);
        let oldest = std::mem::replace(&mut self.second_newest, second_newest);
        self.unneeded.extend(oldest.map(|oldest| Path::from(oldest.path)));
        let (store, unneeded) = (self.store.clone(), std::mem::take(&mut self.unneeded));
        // A snapshot may have thousands of files: the next epoch does not wait for their deletion.
        let previous = self.deletion.take();
        self.deletion = Some(tokio::spawn(async move {
            if let Some(previous) = previous {
                drop(previous.await);
            }
            for path in unneeded {
                if let Err(error) = snapshot_store::delete(&store, &path).await {
                    tracing::warn!(%error, "deleting an old snapshot failed");
                }
            }
        }));
        self.truncate_log();
    }

    /// Deletes the records of the log before the second newest snapshot, in the background.
    fn truncate_log(&self) {
        let offset = self.second_newest.as_ref().map(|snapshot| snapshot.log_offset);
        let Some(offset) = offset.filter(|&offset| offset > 0) else { return };
        let (cluster, log) = (self.cluster.clone(), self.log.clone());
        let truncation = blocking(move || {
            reach("log.cut");
            cluster.delete_records_before(&log, offset)?;
            reach("log.cut.done");
            Ok(())
        });
        tokio::spawn(async move {
            if let Err(error) = truncation.await {
                tracing::debug!(%error, "truncating the log failed; it is retried with the next snapshot");
            }
        });
    }
}
