//! The writer of one table: an idempotent copy of a topic.
//!
//! ```text
//!  append ─► rows by date ─► [10 s or 128 MB] ─► files ─► commit ──► done
//!                                                  ▲        │ error: unknown
//!                                                  │        ▼
//!                                                  └── reload, look: there? absent? another's?
//! ```
//!
//! A partition is one of a topic with an id: a topic that was deleted and made anew under the same
//! name begins again at offset 0, and its rows are other rows.
//!
//! Invariants:
//! - The offsets that a table says it contains (its `txn` actions) and its rows change in the same
//!   commit. `txn` version = the last offset contained, gaps and tombstones included.
//! - What is known of those offsets is as of the snapshot on which the next commit is built, and a
//!   commit is never moved on to a newer one (`max_retries` 0): it fails, and we look again.
//! - Files are written once and named by later attempts of the same commit.

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
use crate::history::write_buffer::Buffer;
use crate::history::{compaction, delta_error, parquet_file, txn_positions};
use crate::storage::with_timeout;
use crate::time::{Micros, SECOND};
use crate::{Error, Kind, Result};

/// Rows are committed after this long.
const INTERVAL_US: Micros = 10 * SECOND;
/// Rows are committed when they take this much memory.
const BUFFER_BYTES: usize = 128 << 20;
/// Attempts at one commit before the error is the caller's.
const ATTEMPTS: u32 = 8;
/// The longest pause between them.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Files that are encoded at once.
const ENCODERS: usize = 2;
/// Expired log files are looked for every so many commits: each look lists the whole log.
const CLEANUP_EVERY: i64 = 50;

/// What a commit did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    /// Rows made durable.
    pub rows: usize,
    /// Files written.
    pub files: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// The table's Delta version, if there was something to commit.
    pub version: Option<i64>,
}

type Partition = (String, i32);
/// Topic, its id, partition: what an application id names.
type Source = (String, String, i32);

/// Stands for the id of a topic that has none, or none that was told.
const NO_ID: &str = "-";

/// Where a source partition stands in the table.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// The last offset that the table contains, as of the writer's snapshot.
    committed: Option<i64>,
    /// The next offset to take, rows of the buffer included.
    next: i64,
}

/// A commit on its way: its files are stored, its outcome is not known.
struct Begun {
    adds: Vec<Add>,
    rows: usize,
    /// The partitions that it moves, as they stood and as they will.
    moved: HashMap<Partition, Position>,
    /// An attempt was made: the table may contain it.
    tried: bool,
}

/// Writes one table. See the module.
pub struct Writer {
    spec: TableSpec,
    path: PathBuf,
    root: PathBuf,
    cluster: String,
    store: LogStoreRef,
    state: DeltaTableState,
    positions: HashMap<Partition, Position>,
    /// The ids of topics, as far as they were told.
    topics: HashMap<String, String>,
    /// The last offset that the table contained when it was opened, by application id.
    opened: HashMap<Source, i64>,
    buffer: Buffer,
    /// Something was appended since the last commit began, be it only a position.
    pending: bool,
    /// A commit that began and is not known to have ended.
    begun: Option<Begun>,
    interval_us: Micros,
    last_commit: Option<Micros>,
    rows: u64,
}

impl Writer {
    /// Opens the table, creating it if it is missing and adding new columns.
    ///
    /// # Errors
    /// [`Kind::Config`] where the schema cannot become what `spec` says, [`Kind::Recovery`] for a
    /// history of another cluster, [`Kind::Storage`].
    pub async fn open(root: &Path, spec: TableSpec, cluster: &str) -> Result<Self> {
        let (store, state) = delta_table::open(root, &spec, cluster).await?;
        let path = spec.path(root);
        let prefix = app_prefix(cluster);
        let mut opened = HashMap::new();
        for app in txn_positions::app_ids(&path, &store, &state).await? {
            let Some(source) = app.strip_prefix(&prefix).and_then(source_of) else {
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
            buffer: Buffer::new(spec.stored_schema()?),
            spec,
            store,
            state,
            positions: HashMap::new(),
            topics: HashMap::new(),
            opened,
            pending: false,
            begun: None,
            interval_us: INTERVAL_US,
            last_commit: None,
            rows: 0,
        };
        let nameless: Vec<_> = writer.opened.keys().filter(|(_, id, _)| id == NO_ID).collect();
        let nameless: Vec<String> = nameless.into_iter().map(|(topic, ..)| topic.clone()).collect();
        nameless.iter().for_each(|topic| writer.find_positions(topic));
        Ok(writer)
    }

    /// Tells the id of a topic. To be called before anything of the topic is appended or asked.
    pub fn identify(&mut self, topic: &str, id: &str) {
        if self.topics.get(topic).is_none_or(|known| known != id) {
            self.topics.insert(topic.to_owned(), id.to_owned());
            self.find_positions(topic);
        }
    }

    /// Takes the positions of a topic from what the table contained when it was opened.
    fn find_positions(&mut self, topic: &str) {
        let id = self.topics.get(topic).map_or(NO_ID, String::as_str);
        self.positions.retain(|(known, _), _| known != topic);
        let found = self.opened.iter().filter(|((name, named, _), _)| name == topic && named == id);
        self.positions.extend(found.map(|((name, _, partition), last)| {
            let position = Position { committed: Some(*last), next: last + 1 };
            ((name.clone(), *partition), position)
        }));
    }

    /// Whether the table contains nothing of any topic, present or past.
    pub fn is_new(&self) -> bool {
        self.opened.is_empty()
    }

    /// Commits after `interval_us` instead of ten seconds.
    #[must_use]
    pub fn with_interval(mut self, interval_us: Micros) -> Self {
        self.interval_us = interval_us;
        self
    }

    /// What is written here.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// The offset after the last one that the table contains of a partition; `None`: nothing yet.
    pub fn position(&self, topic: &str, partition: i32) -> Option<i64> {
        let known = self.positions.get(&(topic.to_owned(), partition))?;
        known.committed.map(|last| last + 1)
    }

    /// All partitions that the table knows, with [`Writer::position`].
    pub fn positions(&self) -> Vec<(String, i32, i64)> {
        let known = self.positions.iter().filter_map(|((topic, partition), position)| {
            Some((topic.clone(), *partition, position.committed? + 1))
        });
        let mut known: Vec<_> = known.collect();
        known.sort();
        known
    }

    /// Takes rows of one partition, in the order of their offsets, and moves its position to
    /// `next_offset`, rows or not. Columns are found by name: `_topic`, `_partition`,
    /// `_position` and `_deleted` may be left out (the arguments, 0 and false), as may any other
    /// that is null throughout.
    ///
    /// Commits by itself, before it takes the rows, when the buffer is full.
    ///
    /// # Errors
    /// [`Kind::Internal`] for rows below the position: those are the caller's to skip. Those of
    /// [`Writer::commit`]. After an error the rows have not been taken.
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
            let rows = self.buffer.stored(topic, partition, batch)?;
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
            let moved = Position { next: next_offset, ..known };
            self.positions.insert((topic.to_owned(), partition), moved);
        }
        Ok(())
    }

    /// Whether rows (or positions) wait for a commit that is due: after ten seconds or 128 MB.
    pub fn due(&self, now: Micros) -> bool {
        let waited = self.last_commit.is_none_or(|last| now - last >= self.interval_us);
        self.has_pending() && (waited || self.is_full())
    }

    /// Whether anything waits for a commit.
    pub fn has_pending(&self) -> bool {
        self.pending || self.begun.is_some()
    }

    /// Bytes of rows that wait for a commit.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// Makes everything that was appended durable, in one Delta commit (two after an error, whose
    /// commit comes first). Without anything to commit it does nothing.
    ///
    /// # Errors
    /// [`Kind::WriteConflict`] if another process wrote these offsets; [`Kind::Storage`] after several
    /// attempts: nothing is lost then, and the call may be repeated.
    pub async fn commit(&mut self, now: Micros) -> Result<Committed> {
        self.last_commit = Some(now);
        let mut committed = Committed::default();
        self.finish(&mut committed).await?;
        if self.pending {
            self.begin(now).await?;
            self.finish(&mut committed).await?;
        }
        Ok(committed)
    }

    /// Stores the buffer's files: from here on it is a commit that must end.
    async fn begin(&mut self, now: Micros) -> Result<()> {
        let adds = self.write_files(now).await?;
        reach("delta.files.written");
        let rows = self.buffer.rows();
        let moved = (self.positions.iter())
            .filter(|(_, position)| position.next > position.committed.map_or(0, |last| last + 1))
            .map(|(partition, position)| (partition.clone(), *position))
            .collect();
        self.begun = Some(Begun { adds, rows, moved, tried: false });
        self.buffer.clear();
        self.pending = false;
        Ok(())
    }

    /// Brings the commit that was begun, if there is one, to its end.
    async fn finish(&mut self, committed: &mut Committed) -> Result<()> {
        let Some(mut begun) = self.begun.take() else { return Ok(()) };
        if let Err(error) = self.commit_files(&begun).await {
            begun.tried = true;
            self.begun = Some(begun);
            return Err(error);
        }
        for (partition, moved) in &begun.moved {
            if let Some(position) = self.positions.get_mut(partition) {
                position.committed = Some(moved.next - 1);
            }
        }
        committed.rows += begun.rows;
        self.rows += begun.rows as u64;
        committed.files += begun.adds.len();
        committed.bytes +=
            begun.adds.iter().map(|add| u64::try_from(add.size).unwrap_or(0)).sum::<u64>();
        committed.version = i64::try_from(self.state.version()).ok();
        Ok(())
    }

    /// Whether the buffer is full: the next rows wait for a commit.
    pub fn is_full(&self) -> bool {
        self.buffer.bytes() >= BUFFER_BYTES
    }

    /// Rows made durable since the table was opened here.
    pub fn rows_committed(&self) -> u64 {
        self.rows
    }

    /// Whether dates have gone quiet with several small files, as of the last commit.
    pub fn wants_compaction(&self, now: Micros) -> bool {
        compaction::wanted(&self.state, now)
    }

    /// What rewrites this table in the background.
    pub fn compactor(&self) -> Compactor {
        Compactor::new(&self.root, &self.spec.customer, &self.spec.name)
    }

    fn known(&self, topic: &str, partition: i32) -> Position {
        let known = self.positions.get(&(topic.to_owned(), partition));
        known.copied().unwrap_or(Position { committed: None, next: 0 })
    }

    /// The last offset of a partition that the table contains, as of the present snapshot.
    async fn committed_offset(&self, partition: &Partition) -> Result<Option<i64>> {
        let app = self.app_id(partition);
        let read = with_timeout(self.state.transaction_version(self.store.as_ref(), app)).await?;
        read.map_err(|error| delta_error(&self.path, "reading positions", error))
    }

    fn app_id(&self, (topic, partition): &Partition) -> String {
        let id = self.topics.get(topic).map_or(NO_ID, String::as_str);
        format!("{}{topic}:{id}:{partition}", app_prefix(&self.cluster))
    }

    fn out_of_order(&self, topic: &str, partition: i32, offset: i64, next: i64) -> Error {
        Error::internal(format!("history of '{}' was given rows that it has", self.spec.name))
            .detail(format!(
                "{topic}/{partition}: offset {offset}, expected from {next} up to the next offset"
            ))
    }

    async fn write_files(&self, now: Micros) -> Result<Vec<Add>> {
        let store = self.store.object_store(None);
        let schema = self.buffer.schema();
        // Owned parts: a future that borrows in a closure cannot move between threads.
        let parts = self.buffer.dates();
        let mut files = futures::stream::iter(parts)
            .map(|(date, batches)| {
                let (schema, store) = (schema.clone(), store.clone());
                async move {
                    let encode = move || parquet_file::encode(&schema, date, &batches, now / 1_000);
                    let encoded =
                        tokio::task::spawn_blocking(encode).await.map_err(|error| {
                            Error::internal("an encoder ended early").because(error)
                        })??;
                    let path = object_store::path::Path::from(encoded.path.as_str());
                    reach("delta.file");
                    with_timeout(store.put(&path, encoded.bytes.into())).await?.map_err(
                        |error| {
                            Error::new(Kind::Storage, "a history file cannot be stored")
                                .because(error)
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

    /// Commits what was begun; ends as done, or as an error that is final or may be repeated.
    async fn commit_files(&mut self, begun: &Begun) -> Result<()> {
        let mut wait = Duration::from_millis(50);
        let mut unknown = begun.tried;
        for attempt in 1..=ATTEMPTS {
            if unknown {
                match self.look(&begun.moved).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) if error.kind == Kind::WriteConflict || attempt == ATTEMPTS => {
                        return Err(error);
                    }
                    Err(error) => {
                        tracing::warn!(table = %self.path.display(), %error, "history cannot be read; trying again");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                        continue;
                    }
                }
            }
            reach("delta.commit");
            match self.try_commit(begun).await {
                Ok(state) => {
                    reach("delta.committed");
                    self.state = state;
                    return Ok(());
                }
                Err(error) if attempt == ATTEMPTS => {
                    return Err(delta_error(&self.path, "a commit", error));
                }
                Err(error) => {
                    tracing::info!(table = %self.path.display(), %error, "a history commit may have failed; looking");
                    // The first failure is most often a compaction's commit, which is no reason to wait.
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

    /// One attempt, on the present snapshot.
    async fn try_commit(&self, begun: &Begun) -> Result<DeltaTableState, DeltaTableError> {
        let version = i64::try_from(self.state.version()).unwrap_or(0) + 1;
        let transactions = (begun.moved.iter())
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
            .with_actions(begun.adds.iter().cloned().map(Action::Add).collect())
            .build(Some(&self.state), self.store.clone(), operation);
        let finalized = with_timeout(commit.into_future()).await;
        // A silence is an error like others: the commit may have happened.
        let finalized =
            finalized.map_err(|error| DeltaTableError::generic(error.to_string()))??;
        Ok(finalized.snapshot())
    }

    /// Reads the table anew and compares its positions with ours: true if it contains the commit
    /// of `moved`, false if it does not.
    ///
    /// # Errors
    /// [`Kind::WriteConflict`] if it contains anything else: somebody else writes this table.
    async fn look(&mut self, moved: &HashMap<Partition, Position>) -> Result<bool> {
        let state = with_timeout(DeltaTableState::try_new(self.store.as_ref(), None)).await?;
        self.state = state.map_err(|error| delta_error(&self.path, "reading", error))?;
        let mut there = 0;
        let mut absent = None;
        for (partition, ours) in &self.positions {
            let committed = self.committed_offset(partition).await?;
            match moved.get(partition) {
                Some(moved) if committed == Some(moved.next - 1) => there += 1,
                _ if committed != ours.committed => {
                    return Err(self.taken_over(partition, ours, committed));
                }
                Some(_) => absent = Some((partition, ours)),
                None => {}
            }
        }
        match absent {
            Some((partition, ours)) if there > 0 => {
                Err(self.taken_over(partition, ours, ours.committed))
            }
            _ => Ok(there > 0),
        }
    }

    fn taken_over(&self, partition: &Partition, ours: &Position, theirs: Option<i64>) -> Error {
        let (topic, number) = partition;
        let text =
            |offset: Option<i64>| offset.map_or("nothing".to_owned(), |last| last.to_string());
        Error::new(Kind::WriteConflict, format!("another process writes {}", self.path.display()))
            .detail(format!(
                "{topic}/{number}: we wrote up to offset {}, the table has {}",
                text(ours.committed),
                text(theirs)
            ))
            .hint("stop the other process, or give this one a --data-dir of its own")
    }
}

fn app_prefix(cluster: &str) -> String {
    format!("millstream:{cluster}:")
}

/// Topic, its id and partition of the end of an application id. None of the three holds a colon.
fn source_of(text: &str) -> Option<Source> {
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
    async fn a_commit_that_succeeded_with_an_error_is_found_and_not_made_again() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = with_rows(root.path(), vec![0, 1, 2]).await;
        writer.begin(0).await.unwrap();
        // It happened, but we were told otherwise: our snapshot and positions are the old ones.
        let begun = writer.begun.take().unwrap();
        writer.try_commit(&begun).await.unwrap();
        writer.begun = Some(Begun { tried: false, ..begun });
        assert_eq!(writer.position("topic", 0), None);
        let committed = writer.commit(1).await.unwrap();
        assert_eq!(committed.rows, 3);
        assert_eq!(writer.position("topic", 0), Some(3));
        assert_eq!(rows(&writer), 3);
        assert!(!writer.has_pending());
    }

    #[tokio::test]
    async fn what_was_appended_after_a_failed_commit_follows_it() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = with_rows(root.path(), vec![0, 1]).await;
        writer.begin(0).await.unwrap();
        let begun = writer.begun.take().unwrap();
        writer.try_commit(&begun).await.unwrap();
        writer.begun = Some(Begun { tried: true, ..begun });
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
    async fn a_topic_made_anew_begins_again() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = with_rows(root.path(), vec![0, 1]).await;
        writer.commit(0).await.unwrap();
        let spec = writer.spec.clone();
        let open = || Writer::open(root.path(), spec.clone(), "cluster");
        let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
        for (id, next) in [("first", 9), ("second", 5), ("first", 10)] {
            let mut writer = open().await.unwrap();
            assert_eq!(writer.position("topic", 0), Some(2), "the topic without an id");
            writer.identify("topic", id);
            assert_eq!(writer.position("topic", 0), (next == 10).then_some(9), "{id}");
            writer.append("topic", 0, &nothing, next).await.unwrap();
            writer.commit(1).await.unwrap();
            assert_eq!(writer.position("topic", 0), Some(next));
        }
        let mut writer = open().await.unwrap();
        writer.identify("topic", "second");
        assert_eq!(writer.positions(), [("topic".to_owned(), 0, 5)]);
        assert!(!writer.is_new());
    }
}
