//! The history side of a pipeline: source events as they are handed over, output topics as they
//! are read back.
//!
//! Both are copies of topics with commit points of their own. Events come from the pipeline, which
//! decoded them, and only after their epoch is committed: what an uncommitted epoch refused as too
//! far in the future may be decoded the next time. Output topics are read back `read_committed`.
//!
//! While a disk refuses, rows wait and commits are tried again; when too many epochs wait, the
//! pipeline waits too. Small files are merged beside the appends, by a task of its own.

pub mod output_archiver;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::history::{Housekeeping, TableSpec, Writer};
use crate::pipeline::PipelineConfig;
use crate::telemetry::Metrics;
use crate::time::{Clock, Micros};
use crate::types::HistoryRows;
use crate::{Error, Kind, Result};

/// How often an idle history looks whether a commit is due.
const LOOK: Duration = Duration::from_millis(500);
/// What may wait for a slow disk, in KB, before the pipeline waits too. Each table's writer takes
/// another 128 MB.
const QUEUE_KB: u32 = 256 << 10;
/// The longest pause before a commit that the disk refused is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

enum Command {
    /// The rows of an epoch, and the room that they take in the queue.
    Epoch {
        epoch: u64,
        rows: Vec<HistoryRows>,
        room: OwnedSemaphorePermit,
    },
    /// A topic, and its id.
    Topic(String, String),
    /// An epoch whose rows are to be committed as soon as they are here.
    Hurry(u64),
    Flush(oneshot::Sender<Result<()>>),
}

/// The task that writes events.
pub struct EventHistory {
    commands: mpsc::UnboundedSender<Command>,
    room: Arc<Semaphore>,
    /// The newest epoch all of whose rows are committed.
    pub written: watch::Receiver<u64>,
    /// See [`Tables::waits`].
    pub waits: watch::Receiver<Option<Micros>>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl EventHistory {
    /// Starts writing to the tables of `writers` (by stream); `epoch` is the newest committed one.
    pub fn start(writers: HashMap<String, Writer>, epoch: u64, options: &PipelineConfig) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(QUEUE_KB as usize));
        let (sender, written) = watch::channel(epoch);
        let tables = Tables::new(writers, options);
        let waits = tables.waits();
        let task = tokio::spawn(write_events(tables, receiver, sender));
        Self { commands, room, written, waits, task }
    }

    /// Hands over the rows of a committed epoch; waits when the disk is slow.
    pub async fn epoch(&mut self, epoch: u64, rows: Vec<HistoryRows>) -> Result<()> {
        let size = rows.iter().map(|part| part.bytes).sum::<usize>() / 1024 + 1;
        let size = u32::try_from(size).unwrap_or(QUEUE_KB).min(QUEUE_KB);
        let waiting = self.room.clone().acquire_many_owned(size);
        let room = tokio::select! {
            room = waiting => room,
            // It waits for the disk, or it has failed.
            () = self.commands.closed() => return Err(self.failure().await),
        };
        let room = room.map_err(|_| Error::internal("the history writer stopped"))?;
        if self.commands.send(Command::Epoch { epoch, rows, room }).is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }

    /// Tells the id of a topic before its first rows.
    pub fn identify(&self, topic: &str, id: &str) -> Result<()> {
        let told = self.commands.send(Command::Topic(topic.to_owned(), id.to_owned()));
        told.map_err(|_| Error::internal("the history writer stopped"))
    }

    /// Asks for the rows of `epoch` to be committed once they are handed over, due or not: a
    /// snapshot of that epoch is of no use before.
    pub fn hurry(&self, epoch: u64) {
        // If it has failed, whoever hands over the next epoch is told.
        drop(self.commands.send(Command::Hurry(epoch)));
    }

    /// Commits everything handed over so far.
    pub async fn flush(&mut self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(Command::Flush(sender)).is_err() {
            return Err(self.failure().await);
        }
        match receiver.await {
            Ok(result) => result,
            Err(_) => Err(self.failure().await),
        }
    }

    async fn failure(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            _ => Error::internal("the history writer stopped"),
        }
    }
}

impl Drop for EventHistory {
    /// Whoever goes on with the tables must be alone with them.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writers of several tables, by stream or topic, that are committed as they fall due.
pub struct Tables<K> {
    writers: HashMap<K, Writer>,
    clock: Clock,
    metrics: Arc<Metrics>,
    housekeeping: Housekeeping,
    waits_since: watch::Sender<Option<Micros>>,
}

impl<K: std::hash::Hash + Eq> Tables<K> {
    /// No rows wait yet.
    pub fn new(writers: HashMap<K, Writer>, options: &PipelineConfig) -> Self {
        Self {
            writers,
            clock: options.clock.clone(),
            metrics: options.metrics.clone(),
            housekeeping: Housekeeping::default(),
            waits_since: watch::Sender::new(None),
        }
    }

    /// When the oldest row that is not committed was handed over (wall clock); `None`: all are.
    /// Told before a commit is tried, which does not return while the disk refuses.
    pub fn waits(&self) -> watch::Receiver<Option<Micros>> {
        self.waits_since.subscribe()
    }

    fn has_pending(&self) -> bool {
        self.writers.values().any(Writer::has_pending)
    }

    /// Tells every table the id of a topic.
    pub fn identify(&mut self, topic: &str, id: &str) {
        self.writers.values_mut().for_each(|writer| writer.identify(topic, id));
    }

    /// Commits all tables when one is due, or now if there is a `hurry`, for as long as it takes;
    /// then looks after small files. All at once: else there would always be some rows that wait,
    /// and no epoch would be done.
    pub async fn commit_due(&mut self, hurry: bool) -> Result<()> {
        let now = self.clock.now();
        if hurry || self.writers.values().any(|w| w.due(now)) {
            for writer in self.writers.values_mut() {
                commit_at_last(writer, now).await?;
                counted(&self.metrics, writer);
                self.housekeeping.tend(writer, now);
            }
        }
        self.look();
        Ok(())
    }

    /// Commits everything, with the attempts of [`Writer::commit`].
    pub async fn commit_all(&mut self) -> Result<()> {
        let now = self.clock.now();
        for writer in self.writers.values_mut() {
            writer.commit(now).await?;
            counted(&self.metrics, writer);
        }
        self.look();
        Ok(())
    }

    /// A table's writer, with room for more rows.
    pub async fn writer(&mut self, key: &K) -> Result<Option<&mut Writer>> {
        let now = self.clock.now();
        let Some(writer) = self.writers.get_mut(key) else { return Ok(None) };
        if writer.is_full() {
            commit_at_last(writer, now).await?;
            counted(&self.metrics, writer);
        }
        self.waits_since.send_modify(|since| *since = since.or(Some(now)));
        Ok(Some(writer))
    }

    /// Which of several rows is the oldest is not known: it is forgotten when none waits.
    fn look(&mut self) {
        if !self.has_pending() {
            self.waits_since.send_replace(None);
        }
    }
}

fn counted(metrics: &Metrics, writer: &Writer) {
    let spec = writer.spec();
    metrics.history(&spec.customer, &spec.name, writer.rows_committed());
}

/// Commits, and tries again for as long as the disk refuses.
async fn commit_at_last(writer: &mut Writer, now: Micros) -> Result<()> {
    let mut wait = Duration::from_secs(1);
    loop {
        match writer.commit(now).await {
            Err(error) if error.kind == Kind::Storage => {
                tracing::warn!(table = writer.spec().name, %error, "history waits for the disk");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            done => return done.map(drop),
        }
    }
}

async fn write_events(
    mut tables: Tables<String>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    written: watch::Sender<u64>,
) -> Result<()> {
    let mut newest = *written.borrow();
    let mut hurried: Option<u64> = None;
    loop {
        let command = tokio::time::timeout(LOOK, commands.recv()).await;
        let mut flushed = None;
        match command {
            Ok(None) => return Ok(()),
            Ok(Some(Command::Epoch { epoch, rows, room })) => {
                for part in rows {
                    if let Some(writer) = tables.writer(&part.stream).await? {
                        append(writer, part).await?;
                    }
                }
                drop(room);
                newest = epoch;
            }
            Ok(Some(Command::Topic(topic, id))) => tables.identify(&topic, &id),
            Ok(Some(Command::Hurry(epoch))) => hurried = Some(epoch),
            Ok(Some(Command::Flush(sender))) => flushed = Some(sender),
            Err(_) => {}
        }
        let outcome = match flushed {
            Some(_) => tables.commit_all().await,
            None => {
                let hurry = hurried.take_if(|epoch| *epoch <= newest).is_some();
                tables.commit_due(hurry).await
            }
        };
        if outcome.is_ok() && !tables.has_pending() {
            written.send_replace(newest);
        }
        match flushed {
            // Nobody waits any more when this fails.
            Some(sender) => drop(sender.send(outcome)),
            None => outcome?,
        }
    }
}

/// Appends the rows that the table does not hold yet.
async fn append(writer: &mut Writer, part: HistoryRows) -> Result<()> {
    let from = writer.position(&part.topic, part.partition).unwrap_or(i64::MIN);
    if part.next_offset <= from {
        return Ok(());
    }
    let offsets = part.rows.column(part.rows.schema().index_of("_offset")?).clone();
    let offsets = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(&offsets);
    let first = offsets.values().partition_point(|&offset| offset < from);
    let rows = part.rows.slice(first, part.rows.num_rows() - first);
    writer.append(&part.topic, part.partition, &rows, part.next_offset).await
}

/// Opens the event tables of a customer's streams.
pub async fn open_events(
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

/// An error when a table of events lags behind what can be read again.
pub fn behind(stream: &str, partition: &str, next: i64, from: i64) -> Error {
    let message = format!(
        "the history of '{stream}' ends at offset {next} of {partition}, but the state begins at {from}"
    );
    Error::new(Kind::Recovery, message).hint(
        "put the history back, or start over with --reset (history then goes on from the present)",
    )
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::TimeUnit;

    use super::*;
    use crate::cli::run::following;
    use crate::source::KafkaConfig;
    use crate::storage::tests::faulty_store::StoreFault;
    use crate::telemetry::StatusBoard;
    use arrow::datatypes::{DataType, Field, Schema};

    /// The rows of an epoch: one, at the offset before the epoch's number.
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

    /// The history of one stream below `folder`, on a clock that stands still: after the first
    /// commit none is ever due.
    async fn start(folder: &Path) -> EventHistory {
        let metrics = Arc::new(Metrics::new().unwrap());
        let kafka = KafkaConfig::new("127.0.0.1:1");
        let mut options = following(kafka, folder, metrics, StatusBoard::new(None));
        options.clock = Clock::manual(0);
        let instant = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let schema = Arc::new(Schema::new(vec![Field::new("at", instant, false)]));
        let streams = [("events".to_owned(), schema, "at".to_owned())].into_iter();
        let writers = open_events(folder, "a", streams, "UTC", "cluster").await.unwrap();
        EventHistory::start(writers, 0, &options)
    }

    #[tokio::test]
    async fn what_waits_is_told_while_the_disk_refuses_the_first_commit() {
        let folder = tempfile::tempdir().unwrap();
        let faults = crate::storage::tests::faulty_store::inject_faults(folder.path());
        let mut history = start(folder.path()).await;
        faults.set(Some(StoreFault::ErrorBefore));
        history.epoch(1, row(1)).await.unwrap();
        let mut waits = history.waits.clone();
        let soon = waits.wait_for(|since| since.is_some());
        tokio::time::timeout(20 * LOOK, soon).await.expect("a row waits").unwrap();
        faults.set(None);
        waits.wait_for(|since| since.is_none()).await.unwrap();
        history.written.wait_for(|epoch| *epoch == 1).await.unwrap();
    }

    #[tokio::test]
    async fn a_snapshot_does_not_wait_until_a_commit_is_due() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = start(folder.path()).await;
        let mut written = history.written.clone();
        history.epoch(1, row(1)).await.unwrap();
        written.wait_for(|epoch| *epoch == 1).await.unwrap();

        // Asked for before the rows are there, as a snapshot is taken before its epoch is committed.
        history.hurry(3);
        history.epoch(2, row(2)).await.unwrap();
        let soon = written.wait_for(|epoch| *epoch == 2);
        assert!(tokio::time::timeout(2 * LOOK, soon).await.is_err(), "epoch 2 was not asked for");
        history.epoch(3, row(3)).await.unwrap();
        let soon = written.wait_for(|epoch| *epoch == 3);
        tokio::time::timeout(20 * LOOK, soon).await.expect("epoch 3 was asked for").unwrap();
        history.epoch(4, row(4)).await.unwrap();
        let soon = written.wait_for(|epoch| *epoch == 4);
        assert!(tokio::time::timeout(2 * LOOK, soon).await.is_err(), "epoch 4 was not asked for");
    }
}
