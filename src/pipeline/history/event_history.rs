//! The history of source events: the pipeline hands over the rows of each committed epoch, and a
//! task of its own writes them to the event tables.
//!
//! While the disk fails, rows wait in memory and commits are retried. When the queue is full, the
//! pipeline waits too.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::history::{TableSpec, Writer};
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::history::table_writers::TableWriters;
use crate::time::Micros;
use crate::types::HistoryRows;
use crate::{Error, Result};

/// How often an idle task checks whether a commit is due.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Capacity of the queue to the task, in KB. Each table's writer buffers another 128 MB.
const QUEUE_KB: u32 = 256 << 10;

/// A message to the task.
enum HistoryCommand {
    /// The rows of an epoch, with the part of the queue's capacity that they occupy.
    Append { epoch: u64, rows: Vec<HistoryRows>, permit: OwnedSemaphorePermit },
    /// The id of a topic.
    SetTopicId { topic: String, id: String },
    /// Commit as soon as the rows of this epoch have arrived.
    CommitEarly(u64),
    /// Commit everything now and send the outcome.
    Flush(oneshot::Sender<Result<()>>),
}

/// The history of a customer's source events. Dropping it aborts the task.
pub struct EventHistory {
    commands: mpsc::UnboundedSender<HistoryCommand>,
    capacity: Arc<Semaphore>,
    /// The newest epoch all of whose rows are committed.
    pub committed_epoch: watch::Receiver<u64>,
    /// See [`TableWriters::pending_since`].
    pub pending_since: watch::Receiver<Option<Micros>>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl EventHistory {
    /// Starts the task for the tables of `writers` (by stream). `epoch`: the newest epoch whose
    /// rows were handed over before.
    pub fn start(writers: HashMap<String, Writer>, epoch: u64, config: &PipelineConfig) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let capacity = Arc::new(Semaphore::new(QUEUE_KB as usize));
        let (sender, committed_epoch) = watch::channel(epoch);
        let tables = TableWriters::new(writers, config);
        let pending_since = tables.pending_since();
        let task = tokio::spawn(write_events(tables, receiver, sender));
        Self { commands, capacity, committed_epoch, pending_since, task }
    }

    /// Hands over the rows of a committed epoch. Waits while the queue is full.
    ///
    /// # Errors
    /// The task failed.
    pub async fn append(&mut self, epoch: u64, rows: Vec<HistoryRows>) -> Result<()> {
        let size = rows.iter().map(|rows| rows.bytes).sum::<usize>() / 1024 + 1;
        let size = u32::try_from(size).unwrap_or(QUEUE_KB).min(QUEUE_KB);
        let acquired = self.capacity.clone().acquire_many_owned(size);
        let permit = tokio::select! {
            permit = acquired => permit,
            // Capacity is never released again after the task has failed.
            () = self.commands.closed() => return Err(self.failure().await),
        };
        let permit = permit.map_err(|_| Error::internal("the history writer stopped"))?;
        if self.commands.send(HistoryCommand::Append { epoch, rows, permit }).is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }

    /// Sets the id of a topic. It must precede the topic's first rows.
    ///
    /// # Errors
    /// The task failed.
    pub fn set_topic_id(&self, topic: &str, id: &str) -> Result<()> {
        let (topic, id) = (topic.to_owned(), id.to_owned());
        let sent = self.commands.send(HistoryCommand::SetTopicId { topic, id });
        sent.map_err(|_| Error::internal("the history writer stopped"))
    }

    /// Requests that the rows of `epoch` are committed as soon as they are handed over, because a
    /// snapshot of that epoch cannot be used before.
    pub fn commit_early(&self, epoch: u64) {
        // If the task has failed, the next `append` returns its error.
        drop(self.commands.send(HistoryCommand::CommitEarly(epoch)));
    }

    /// Commits everything that was handed over so far.
    ///
    /// # Errors
    /// The commit or the task failed.
    pub async fn flush(&mut self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(HistoryCommand::Flush(sender)).is_err() {
            return Err(self.failure().await);
        }
        match receiver.await {
            Ok(result) => result,
            Err(_) => Err(self.failure().await),
        }
    }

    /// The error that ended the task.
    async fn failure(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            _ => Error::internal("the history writer stopped"),
        }
    }
}

impl Drop for EventHistory {
    /// The next pipeline that writes to these tables must be their only writer.
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write_events(
    mut tables: TableWriters<String>,
    mut commands: mpsc::UnboundedReceiver<HistoryCommand>,
    committed_epoch: watch::Sender<u64>,
) -> Result<()> {
    let mut newest = *committed_epoch.borrow();
    let mut early_commit: Option<u64> = None;
    loop {
        let command = tokio::time::timeout(POLL_INTERVAL, commands.recv()).await;
        let mut flush = None;
        match command {
            Ok(None) => return Ok(()),
            Ok(Some(HistoryCommand::Append { epoch, rows, permit })) => {
                for rows in rows {
                    if let Some(writer) = tables.writer(&rows.stream).await? {
                        append_new_rows(writer, rows).await?;
                    }
                }
                drop(permit);
                newest = epoch;
            }
            Ok(Some(HistoryCommand::SetTopicId { topic, id })) => tables.set_topic_id(&topic, &id),
            Ok(Some(HistoryCommand::CommitEarly(epoch))) => early_commit = Some(epoch),
            Ok(Some(HistoryCommand::Flush(sender))) => flush = Some(sender),
            // Nothing arrived within the interval.
            Err(_) => {}
        }
        let outcome = match flush {
            Some(_) => tables.commit_all().await,
            None => {
                let is_early = early_commit.take_if(|epoch| *epoch <= newest).is_some();
                tables.commit_due(is_early).await
            }
        };
        if outcome.is_ok() && !tables.has_pending() {
            committed_epoch.send_replace(newest);
        }
        match flush {
            // The send fails only if the caller no longer waits for the flush.
            Some(sender) => drop(sender.send(outcome)),
            None => outcome?,
        }
    }
}

/// Appends the rows that the table does not contain yet.
async fn append_new_rows(writer: &mut Writer, new: HistoryRows) -> Result<()> {
    let from = writer.position(&new.topic, new.partition).unwrap_or(i64::MIN);
    if new.next_offset <= from {
        return Ok(());
    }
    let offsets = new.rows.column(new.rows.schema().index_of("_offset")?).clone();
    let offsets = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(&offsets);
    let first = offsets.values().partition_point(|&offset| offset < from);
    let rows = new.rows.slice(first, new.rows.num_rows() - first);
    writer.append(&new.topic, new.partition, &rows, new.next_offset).await
}

/// Opens the event tables of a customer's streams. Each stream comes with its schema and the name
/// of its event-time column.
///
/// # Errors
/// A table cannot be opened.
pub async fn open_event_tables(
    root: &Path,
    customer: &str,
    streams: impl Iterator<Item = (String, SchemaRef, String)>,
    zone: &str,
    cluster: &str,
) -> Result<HashMap<String, Writer>> {
    let mut writers = HashMap::new();
    for (name, schema, event_time) in streams {
        let spec = TableSpec::new(customer, &name, &schema, Some(&event_time), None, zone);
        writers.insert(name, Writer::open(root, spec, cluster).await?);
    }
    Ok(writers)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::TimeUnit;

    use super::*;
    use crate::source::KafkaConfig;
    use crate::storage::tests::faulty_store::StoreFault;
    use crate::telemetry::{Metrics, StatusBoard};
    use crate::time::Clock;
    use arrow::datatypes::{DataType, Field, Schema};

    /// The rows of an epoch: one row, whose offset is the epoch's number minus one.
    fn row(epoch: u64) -> Vec<HistoryRows> {
        let offset = i64::try_from(epoch).unwrap() - 1;
        let at = TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC");
        let columns: [(&str, ArrayRef); 5] = [
            ("at", Arc::new(at)),
            ("_topic", Arc::new(StringArray::from(vec!["t"]))),
            ("_partition", Arc::new(Int32Array::from(vec![0]))),
            ("_offset", Arc::new(Int64Array::from(vec![offset]))),
            ("_position", Arc::new(Int32Array::from(vec![0]))),
        ];
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let stream = "events".to_owned();
        let (topic, next_offset) = ("t".into(), offset + 1);
        vec![HistoryRows { stream, topic, partition: 0, rows, next_offset, bytes: 8 }]
    }

    /// Starts the history of one stream below `folder`, on a clock that does not advance: after
    /// the first commit no further one is ever due.
    async fn start(folder: &Path) -> EventHistory {
        let metrics = Arc::new(Metrics::new().unwrap());
        let kafka = KafkaConfig::new("127.0.0.1:1");
        let mut config = PipelineConfig::follow(kafka, folder, metrics, StatusBoard::new(None));
        config.clock = Clock::manual(0);
        let instant = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let schema = Arc::new(Schema::new(vec![Field::new("at", instant, false)]));
        let streams = [("events".to_owned(), schema, "at".to_owned())].into_iter();
        let writers = open_event_tables(folder, "a", streams, "UTC", "cluster").await.unwrap();
        EventHistory::start(writers, 0, &config)
    }

    #[tokio::test]
    async fn pending_rows_are_reported_while_the_first_commit_fails() {
        let folder = tempfile::tempdir().unwrap();
        let faults = crate::storage::tests::faulty_store::inject_faults(folder.path());
        let mut history = start(folder.path()).await;
        faults.set(Some(StoreFault::ErrorBefore));
        history.append(1, row(1)).await.unwrap();
        let mut pending_since = history.pending_since.clone();
        let pending = pending_since.wait_for(|since| since.is_some());
        tokio::time::timeout(20 * POLL_INTERVAL, pending).await.expect("a row is pending").unwrap();
        faults.set(None);
        pending_since.wait_for(|since| since.is_none()).await.unwrap();
        history.committed_epoch.wait_for(|epoch| *epoch == 1).await.unwrap();
    }

    #[tokio::test]
    async fn a_snapshot_does_not_wait_until_a_commit_is_due() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = start(folder.path()).await;
        let mut committed = history.committed_epoch.clone();
        history.append(1, row(1)).await.unwrap();
        committed.wait_for(|epoch| *epoch == 1).await.unwrap();

        // Requested before the rows arrive, as a snapshot is taken before its epoch is committed.
        history.commit_early(3);
        history.append(2, row(2)).await.unwrap();
        let reached = committed.wait_for(|epoch| *epoch == 2);
        assert!(
            tokio::time::timeout(2 * POLL_INTERVAL, reached).await.is_err(),
            "no commit of epoch 2 was requested"
        );
        history.append(3, row(3)).await.unwrap();
        let reached = committed.wait_for(|epoch| *epoch == 3);
        tokio::time::timeout(20 * POLL_INTERVAL, reached)
            .await
            .expect("a commit of epoch 3 was requested")
            .unwrap();
        history.append(4, row(4)).await.unwrap();
        let reached = committed.wait_for(|epoch| *epoch == 4);
        assert!(
            tokio::time::timeout(2 * POLL_INTERVAL, reached).await.is_err(),
            "no commit of epoch 4 was requested"
        );
    }
}
