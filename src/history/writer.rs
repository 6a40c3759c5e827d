//! The writer of one table: an idempotent copy of a topic.
//!
//! ```text
//!  append ─► rows by date ─► [10 s or 128 MB] ─► files ─► commit ──► done
//!                                                  ▲        │ error: unknown
//!                                                  │        ▼
//!                                                  └── reload: committed? not committed? conflict?
//! ```
//!
//! A partition belongs to one incarnation of a topic, which the topic id names. A topic that is
//! deleted and created again under the same name starts at offset 0, and its rows are new rows.
//!
//! Invariants:
//! - The offsets of a table (its `txn` actions) and its rows change in the same commit. The `txn`
//!   version is the last offset that the table contains, gaps and tombstones included.
//! - The offsets in memory belong to the snapshot on which the next commit is built. A commit is
//!   never rebased on a newer snapshot (`max_retries` 0): it fails, and the writer reads the table
//!   again.
//! - Files are written once. Later attempts of the same commit refer to the same files.

use std::collections::HashMap;
use std::future::IntoFuture;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::Int64Type;
use deltalake::DeltaTableError;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, Transaction};
use deltalake::logstore::LogStoreRef;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::state::DeltaTableState;
use futures::StreamExt;
use object_store::ObjectStoreExt;

use crate::failpoint::reach;
use crate::history::compaction::Compactor;
use crate::history::delta_table::{self, TableSpec};
use crate::history::write_buffer::WriteBuffer;
use crate::history::{compaction, delta_error, parquet_file, txn_positions};
use crate::storage::with_timeout;
use crate::time::{Micros, SECOND};
use crate::{Error, Kind, Result};

/// The default time between two commits.
const INTERVAL_US: Micros = 10 * SECOND;
/// Buffered rows are committed when they occupy this much memory.
const BUFFER_BYTES: usize = 128 << 20;
/// The number of attempts at one commit before its error is returned to the caller.
const ATTEMPTS: u32 = 8;
/// The longest pause between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The number of files that are encoded at the same time.
const ENCODERS: usize = 2;
/// Expired log files are deleted once in this many commits, because it lists the whole log.
const CLEANUP_EVERY: i64 = 50;

/// The result of a commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Rows made durable.
    pub rows: usize,
    /// Files written.
    pub files: usize,
    /// The size of these files in bytes.
    pub bytes: u64,
    /// The Delta version of the table after the commit; `None` if there was nothing to commit.
    pub version: Option<i64>,
}

/// Topic and partition.
type PartitionKey = (String, i32);
/// Topic, topic id and partition, as encoded in an application id.
type TopicIncarnation = (String, String, i32);

/// Replaces the topic id in application ids while no topic id is known.
const NO_ID: &str = "-";

/// The offsets of one source partition.
#[derive(Debug, Clone, Copy)]
struct PartitionOffsets {
    /// The last offset that the table contains, as of the writer's snapshot.
    committed: Option<i64>,
    /// The next offset to append; rows in the buffer count as appended.
    next: i64,
}

/// A commit whose files are stored and whose outcome is not known.
struct PendingCommit {
    adds: Vec<Add>,
    rows: usize,
    /// The partitions whose offsets the commit advances, with the offsets before and after it.
    moved: HashMap<PartitionKey, PartitionOffsets>,
    /// True if an attempt was made, so that the table may contain the commit.
    tried: bool,
}

/// Writes one table. The module documentation describes the protocol.
pub struct Writer {
    spec: TableSpec,
    path: PathBuf,
    root: PathBuf,
    cluster: String,
    store: LogStoreRef,
    state: DeltaTableState,
    positions: HashMap<PartitionKey, PartitionOffsets>,
    /// Topic ids by topic, set by [`Writer::set_topic_id`].
    topics: HashMap<String, String>,
    /// The last offset in the table at the time of opening, by application id.
    opened: HashMap<TopicIncarnation, i64>,
    buffer: WriteBuffer,
    /// True if rows or offsets were appended since the last commit started.
    pending: bool,
    /// A commit that started and has no known outcome.
    in_flight: Option<PendingCommit>,
    interval_us: Micros,
    last_commit: Option<Micros>,
    rows: u64,
}

impl Writer {
    /// Opens the table. Creates it if it is missing, and adds new columns.
    ///
    /// # Errors
    /// [`Kind::Config`] if the schema of the table cannot be changed to that of `spec`,
    /// [`Kind::Recovery`] for a history of another cluster, [`Kind::Storage`].
    pub async fn open(root: &Path, spec: TableSpec, cluster: &str) -> Result<Self> {
        let (store, state) = delta_table::open(root, &spec, cluster).await?;
        let path = spec.path(root);
        let prefix = app_prefix(cluster);
        let mut opened = HashMap::new();
        for app in txn_positions::app_ids(&path, &store, &state).await? {
            let Some(source) = app.strip_prefix(&prefix).and_then(parse_app_id) else {
                continue;
            };
            let read = state.transaction_version(store.as_ref(), &app).await;
            let committed = read.map_err(|error| delta_error(&path, "reading positions", error))?;
            opened.extend(committed.map(|last| (source, last)));
        }
        let mut writer = Self {
            path,
            root: root.to_owned(),
            cluster: cluster.to_owned(),
            buffer: WriteBuffer::new(spec.stored_schema()?),
            spec,
            store,
            state,
            positions: HashMap::new(),
            topics: HashMap::new(),
            opened,
            pending: false,
            in_flight: None,
            interval_us: INTERVAL_US,
            last_commit: None,
            rows: 0,
        };
        let without_id: Vec<_> = writer.opened.keys().filter(|(_, id, _)| id == NO_ID).collect();
        let without_id: Vec<String> =
            without_id.into_iter().map(|(topic, ..)| topic.clone()).collect();
        without_id.iter().for_each(|topic| writer.find_positions(topic));
        Ok(writer)
    }

    /// Sets the id of a topic. Call it before the first append of the topic, and before its
    /// positions are read.
    pub fn set_topic_id(&mut self, topic: &str, id: &str) {
        if self.topics.get(topic).is_none_or(|known| known != id) {
            self.topics.insert(topic.to_owned(), id.to_owned());
            self.find_positions(topic);
        }
    }

    /// Sets the offsets of a topic from those that the table had at the time of opening.
    fn find_positions(&mut self, topic: &str) {
        let id = self.topics.get(topic).map_or(NO_ID, String::as_str);
        self.positions.retain(|(known, _), _| known != topic);
        let found = self.opened.iter().filter(|((name, named, _), _)| name == topic && named == id);
        self.positions.extend(found.map(|((name, _, partition), last)| {
            let position = PartitionOffsets { committed: Some(*last), next: last + 1 };
            ((name.clone(), *partition), position)
        }));
    }

    /// Whether the table has no offsets of any topic, current or deleted.
    pub fn is_new(&self) -> bool {
        self.opened.is_empty()
    }

    /// Sets the time between two commits; the default is ten seconds.
    #[must_use]
    pub fn with_interval(mut self, interval_us: Micros) -> Self {
        self.interval_us = interval_us;
        self
    }

    /// The specification of the table.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// The offset after the last one of a partition that the table contains; `None` if it contains
    /// none.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        let known = self.positions.get(&(topic.to_owned(), partition))?;
        known.committed.map(|last| last + 1)
    }

    /// All partitions of the table as (topic, partition, [`Writer::position`]), sorted.
    pub fn positions(&self) -> Vec<(String, i32, i64)> {
        let known = self.positions.iter().filter_map(|((topic, partition), position)| {
            Some((topic.clone(), *partition, position.committed? + 1))
        });
        let mut known: Vec<_> = known.collect();
        known.sort();
        known
    }

    /// Appends rows of one partition in offset order and advances its next offset to
    /// `next_offset`, also if there are no rows. Columns are matched by name. `_topic`,
    /// `_partition`, `_position` and `_deleted` are optional and default to the arguments, 0 and
    /// false. Any other missing column except `_offset` is null.
    ///
    /// If the buffer is full, it commits before it appends the rows.
    ///
    /// # Errors
    /// [`Kind::Internal`] for rows below the next offset, which the caller must skip, and the
    /// errors of [`Writer::commit`]. After an error the rows are not in the buffer.
    pub async fn append(
        &mut self,
        topic: &str,
        partition: i32,
        batch: &RecordBatch,
        next_offset: i64,
    ) -> Result<()> {
        if self.is_full() {
            self.commit(self.last_commit.unwrap_or(0)).await?;
        }
        let known = self.known(topic, partition);
        if next_offset < known.next {
            return Err(self.out_of_order(topic, partition, next_offset, known.next));
        }
        if batch.num_rows() > 0 {
            let rows = self.buffer.to_stored(topic, partition, batch)?;
            let offsets = rows.column(3).as_primitive::<Int64Type>();
            let first = min(offsets).unwrap_or(known.next);
            let last = max(offsets).unwrap_or(first);
            if first < known.next || last >= next_offset {
                let offset = if first < known.next { first } else { last };
                return Err(self.out_of_order(topic, partition, offset, known.next));
            }
            self.buffer.add(rows)?;
        }
        if next_offset > known.next {
            self.pending = true;
            let moved = PartitionOffsets { next: next_offset, ..known };
            self.positions.insert((topic.to_owned(), partition), moved);
        }
        Ok(())
    }

    /// Whether a commit is due: rows or offsets are pending, and the interval is over or the
    /// buffer is full.
    pub fn due(&self, now: Micros) -> bool {
        let waited = self.last_commit.is_none_or(|last| now - last >= self.interval_us);
        self.has_pending() && (waited || self.is_full())
    }

    /// Whether rows or offsets are not committed yet.
    pub fn has_pending(&self) -> bool {
        self.pending || self.in_flight.is_some()
    }

    /// The size of the rows in the buffer, in bytes.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// Commits all appended rows and offsets in one Delta commit. After an error there are two
    /// commits: the failed one is completed first. Does nothing if nothing is pending.
    ///
    /// # Errors
    /// [`Kind::WriteConflict`] if another process wrote these offsets; [`Kind::Storage`] after several
    /// attempts. No rows are lost, and the call may be repeated.
    pub async fn commit(&mut self, now: Micros) -> Result<CommitStats> {
        self.last_commit = Some(now);
        let mut committed = CommitStats::default();
        self.finish(&mut committed).await?;
        if self.pending {
            self.begin(now).await?;
            self.finish(&mut committed).await?;
        }
        Ok(committed)
    }

    /// Writes the files of the buffer and records the commit as in flight.
    async fn begin(&mut self, now: Micros) -> Result<()> {
        let adds = self.write_files(now).await?;
        reach("delta.files.written");
        let rows = self.buffer.rows();
        let moved = (self.positions.iter())
            .filter(|(_, position)| position.next > position.committed.map_or(0, |last| last + 1))
            .map(|(partition, position)| (partition.clone(), *position))
            .collect();
        self.in_flight = Some(PendingCommit { adds, rows, moved, tried: false });
        self.buffer.clear();
        self.pending = false;
        Ok(())
    }

    /// Completes the commit in flight, if there is one.
    async fn finish(&mut self, committed: &mut CommitStats) -> Result<()> {
        let Some(mut in_flight) = self.in_flight.take() else { return Ok(()) };
        if let Err(error) = self.commit_files(&in_flight).await {
            in_flight.tried = true;
            self.in_flight = Some(in_flight);
            return Err(error);
        }
        for (partition, moved) in &in_flight.moved {
            if let Some(position) = self.positions.get_mut(partition) {
                position.committed = Some(moved.next - 1);
            }
        }
        committed.rows += in_flight.rows;
        self.rows += in_flight.rows as u64;
        committed.files += in_flight.adds.len();
        committed.bytes +=
            in_flight.adds.iter().map(|add| u64::try_from(add.size).unwrap_or(0)).sum::<u64>();
        committed.version = i64::try_from(self.state.version()).ok();
        Ok(())
    }

    /// Whether the buffer is full, so that the next append commits first.
    pub fn is_full(&self) -> bool {
        self.buffer.bytes() >= BUFFER_BYTES
    }

    /// The number of rows committed since the writer opened the table.
    pub fn rows_committed(&self) -> u64 {
        self.rows
    }

    /// Whether [`Compactor::run`] has work to do, as of the last commit.
    pub fn needs_compaction(&self, now: Micros) -> bool {
        compaction::needs_compaction(&self.state, now)
    }

    /// The compactor of this table.
    pub fn compactor(&self) -> Compactor {
        Compactor::new(&self.root, &self.spec.customer, &self.spec.name)
    }

    fn known(&self, topic: &str, partition: i32) -> PartitionOffsets {
        let known = self.positions.get(&(topic.to_owned(), partition));
        known.copied().unwrap_or(PartitionOffsets { committed: None, next: 0 })
    }

    /// The last offset of a partition that the table contains, as of the current snapshot.
    async fn committed_offset(&self, partition: &PartitionKey) -> Result<Option<i64>> {
        let app = self.app_id(partition);
        let read = with_timeout(self.state.transaction_version(self.store.as_ref(), app)).await?;
        read.map_err(|error| delta_error(&self.path, "reading positions", error))
    }

    fn app_id(&self, (topic, partition): &PartitionKey) -> String {
        let id = self.topics.get(topic).map_or(NO_ID, String::as_str);
        format!("{}{topic}:{id}:{partition}", app_prefix(&self.cluster))
    }

    fn out_of_order(&self, topic: &str, partition: i32, offset: i64, next: i64) -> Error {
        Error::internal(format!("history of '{}' received offsets out of order", self.spec.name))
            .detail(format!(
                "{topic}/{partition}: offset {offset}, expected at least {next} and below the next offset"
            ))
    }

    async fn write_files(&self, now: Micros) -> Result<Vec<Add>> {
        let store = self.store.object_store(None);
        let schema = self.buffer.schema();
        // The dates are owned, because a future that borrows in a closure is not `Send`.
        let parts = self.buffer.dates();
        let mut files = futures::stream::iter(parts)
            .map(|(date, batches)| {
                let (schema, store) = (schema.clone(), store.clone());
                async move {
                    let encode = move || parquet_file::encode(&schema, date, &batches, now / 1_000);
                    let encoded =
                        tokio::task::spawn_blocking(encode).await.map_err(|error| {
                            Error::internal("an encoder task ended early").because(error)
                        })??;
                    let path = object_store::path::Path::from(encoded.path.as_str());
                    reach("delta.file");
                    with_timeout(store.put(&path, encoded.bytes.into())).await?.map_err(
                        |error| {
                            Error::new(Kind::Storage, "cannot write a history file").because(error)
                        },
                    )?;
                    reach("delta.file.written");
                    Ok::<Add, Error>(encoded.add)
                }
            })
            .buffered(ENCODERS);
        let mut adds = Vec::new();
        while let Some(add) = files.next().await {
            adds.push(add?);
        }
        Ok(adds)
    }

    /// Commits the files of `in_flight`. An error is final ([`Kind::WriteConflict`]), or the call may
    /// be repeated.
    async fn commit_files(&mut self, in_flight: &PendingCommit) -> Result<()> {
        let mut wait = Duration::from_millis(50);
        let mut unknown = in_flight.tried;
        for attempt in 1..=ATTEMPTS {
            if unknown {
                match self.check_table(&in_flight.moved).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) if error.kind == Kind::WriteConflict || attempt == ATTEMPTS => {
                        return Err(error);
                    }
                    Err(error) => {
                        tracing::warn!(table = %self.path.display(), %error, "cannot read the history table; retrying");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                        continue;
                    }
                }
            }
            reach("delta.commit");
            match self.try_commit(in_flight).await {
                Ok(state) => {
                    reach("delta.committed");
                    self.state = state;
                    return Ok(());
                }
                Err(error) if attempt == ATTEMPTS => {
                    return Err(delta_error(&self.path, "a commit", error));
                }
                Err(error) => {
                    tracing::info!(table = %self.path.display(), %error, "outcome of a history commit is unknown; reading the table");
                    // The first failure is usually a conflict with a compaction: retry at once.
                    if unknown {
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                    }
                    unknown = true;
                }
            }
        }
        Err(Error::internal("a history commit was never attempted"))
    }

    /// Makes one attempt, on the current snapshot.
    async fn try_commit(
        &self,
        in_flight: &PendingCommit,
    ) -> Result<DeltaTableState, DeltaTableError> {
        let version = i64::try_from(self.state.version()).unwrap_or(0) + 1;
        let transactions = (in_flight.moved.iter())
            .map(|(partition, position)| {
                Transaction::new(self.app_id(partition), position.next - 1)
            })
            .collect();
        let properties = CommitProperties::default()
            .with_application_transactions(transactions)
            .with_max_retries(0)
            .with_cleanup_expired_logs(Some(version % CLEANUP_EVERY == 0));
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(vec![delta_table::DATE.to_owned()]),
            predicate: None,
        };
        let commit = CommitBuilder::from(properties)
            .with_actions(in_flight.adds.iter().cloned().map(Action::Add).collect())
            .build(Some(&self.state), self.store.clone(), operation);
        let finalized = with_timeout(commit.into_future()).await;
        // After a timeout the outcome is unknown, as after any other error.
        let finalized =
            finalized.map_err(|error| DeltaTableError::generic(error.to_string()))??;
        Ok(finalized.snapshot())
    }

    /// Reads the table again and compares its offsets with those of this writer. Returns whether
    /// it contains the commit of `moved`.
    ///
    /// # Errors
    /// [`Kind::WriteConflict`] for any other offsets: another process writes this table.
    async fn check_table(
        &mut self,
        moved: &HashMap<PartitionKey, PartitionOffsets>,
    ) -> Result<bool> {
        let state = with_timeout(DeltaTableState::try_new(self.store.as_ref(), None)).await?;
        self.state = state.map_err(|error| delta_error(&self.path, "reading", error))?;
        let mut found = 0;
        let mut absent = None;
        for (partition, ours) in &self.positions {
            let committed = self.committed_offset(partition).await?;
            match moved.get(partition) {
                Some(moved) if committed == Some(moved.next - 1) => found += 1,
                _ if committed != ours.committed => {
                    return Err(self.write_conflict(partition, ours, committed));
                }
                Some(_) => absent = Some((partition, ours)),
                None => {}
            }
        }
        match absent {
            Some((partition, ours)) if found > 0 => {
                Err(self.write_conflict(partition, ours, ours.committed))
            }
            _ => Ok(found > 0),
        }
    }

    fn write_conflict(
        &self,
        partition: &PartitionKey,
        ours: &PartitionOffsets,
        theirs: Option<i64>,
    ) -> Error {
        let (topic, number) = partition;
        let text =
            |offset: Option<i64>| offset.map_or("nothing".to_owned(), |last| last.to_string());
        Error::new(Kind::WriteConflict, format!("another process writes {}", self.path.display()))
            .detail(format!(
                "{topic}/{number}: this process wrote up to offset {}, the table has {}",
                text(ours.committed),
                text(theirs)
            ))
            .hint("stop the other process, or start this one with another --data-dir")
    }
}

fn app_prefix(cluster: &str) -> String {
    format!("millstream:{cluster}:")
}

/// Parses topic, topic id and partition from the end of an application id. None of them contains a
/// colon.
fn parse_app_id(text: &str) -> Option<TopicIncarnation> {
    let mut parts = text.split(':');
    let source = (parts.next()?.to_owned(), parts.next()?.to_owned(), parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};

    async fn with_rows(root: &Path, offsets: Vec<i64>) -> Writer {
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let schema = Arc::new(Schema::new(vec![Field::new("ts", time, false)]));
        let spec = TableSpec::new("c", "t", &schema, Some("ts"), None, "UTC");
        let mut writer = Writer::open(root, spec, "cluster").await.unwrap();
        let next = offsets.last().unwrap() + 1;
        let times = TimestampMicrosecondArray::from(vec![0; offsets.len()]).with_timezone("UTC");
        let rows = RecordBatch::try_from_iter([
            ("ts", Arc::new(times) as ArrayRef),
            ("_offset", Arc::new(Int64Array::from(offsets))),
        ]);
        writer.append("topic", 0, &rows.unwrap(), next).await.unwrap();
        writer
    }

    fn rows(writer: &Writer) -> usize {
        writer.state.log_data().iter().filter_map(|file| file.num_records()).sum()
    }

    #[tokio::test]
    async fn a_commit_that_succeeded_with_an_error_is_found_and_not_repeated() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = with_rows(root.path(), vec![0, 1, 2]).await;
        writer.begin(0).await.unwrap();
        // The commit succeeds, but the writer does not learn it: it has the old snapshot.
        let in_flight = writer.in_flight.take().unwrap();
        writer.try_commit(&in_flight).await.unwrap();
        writer.in_flight = Some(PendingCommit { tried: false, ..in_flight });
        assert_eq!(writer.position("topic", 0), None);
        let committed = writer.commit(1).await.unwrap();
        assert_eq!(committed.rows, 3);
        assert_eq!(writer.position("topic", 0), Some(3));
        assert_eq!(rows(&writer), 3);
        assert!(!writer.has_pending());
    }

    #[tokio::test]
    async fn rows_appended_after_a_failed_commit_are_committed_next() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = with_rows(root.path(), vec![0, 1]).await;
        writer.begin(0).await.unwrap();
        let in_flight = writer.in_flight.take().unwrap();
        writer.try_commit(&in_flight).await.unwrap();
        writer.in_flight = Some(PendingCommit { tried: true, ..in_flight });
        writer
            .append("topic", 0, &RecordBatch::new_empty(Arc::new(Schema::empty())), 9)
            .await
            .unwrap();
        writer.commit(1).await.unwrap();
        assert_eq!(writer.position("topic", 0), Some(9));
        assert_eq!(rows(&writer), 2);
        let again = Writer::open(root.path(), writer.spec.clone(), "cluster").await.unwrap();
        assert_eq!(again.position("topic", 0), Some(9));
    }

    #[tokio::test]
    async fn a_recreated_topic_starts_at_its_first_offset() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = with_rows(root.path(), vec![0, 1]).await;
        writer.commit(0).await.unwrap();
        let spec = writer.spec.clone();
        let open = || Writer::open(root.path(), spec.clone(), "cluster");
        let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
        for (id, next) in [("first", 9), ("second", 5), ("first", 10)] {
            let mut writer = open().await.unwrap();
            assert_eq!(writer.position("topic", 0), Some(2), "the topic without an id");
            writer.set_topic_id("topic", id);
            assert_eq!(writer.position("topic", 0), (next == 10).then_some(9), "{id}");
            writer.append("topic", 0, &nothing, next).await.unwrap();
            writer.commit(1).await.unwrap();
            assert_eq!(writer.position("topic", 0), Some(next));
        }
        let mut writer = open().await.unwrap();
        writer.set_topic_id("topic", "second");
        assert_eq!(writer.positions(), [("topic".to_owned(), 0, 5)]);
        assert!(!writer.is_new());
    }
}
