//! The history side of a pipeline: source events as they are handed over, output topics as they
//! are read back.
//!
//! Both are copies of topics with commit points of their own. Events come from the pipeline, which
//! decoded them, and only after their epoch is committed: what an uncommitted epoch refused as too
//! far in the future may be decoded the next time. Output topics are read back `read_committed`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tokio::sync::{mpsc, oneshot, watch};

use super::engine::HistoryRows;
use crate::history::{TableSpec, Writer};
use crate::time::Clock;
use crate::{Error, Kind, Result};

/// How often an idle history looks whether a commit is due.
const LOOK: Duration = Duration::from_millis(500);
/// Epochs that may wait for a slow disk before the pipeline waits too.
const QUEUE: usize = 32;

/// A stream's columns and where each row came from.
pub fn event_schema(stream: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = stream.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("_topic", DataType::Utf8, false)));
    fields.push(Arc::new(Field::new("_partition", DataType::Int32, false)));
    fields.push(Arc::new(Field::new("_offset", DataType::Int64, false)));
    fields.push(Arc::new(Field::new("_position", DataType::Int32, false)));
    Arc::new(Schema::new(fields))
}

enum Command {
    Epoch { epoch: u64, rows: Vec<HistoryRows> },
    Flush(oneshot::Sender<Result<()>>),
}

/// The task that writes events.
pub struct EventHistory {
    commands: mpsc::Sender<Command>,
    /// The newest epoch all of whose events are in history.
    pub committed: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl EventHistory {
    /// Starts writing to the tables of `writers` (by stream); `epoch` is the newest committed one.
    pub fn start(writers: HashMap<String, Writer>, epoch: u64, clock: Clock) -> Self {
        let (commands, receiver) = mpsc::channel(QUEUE);
        let (sender, committed) = watch::channel(epoch);
        let task = tokio::spawn(write_events(writers, receiver, sender, clock));
        Self { commands, committed, task }
    }

    /// Hands over the rows of a committed epoch; waits when the disk is slow.
    pub async fn epoch(&mut self, epoch: u64, rows: Vec<HistoryRows>) -> Result<()> {
        if self.commands.send(Command::Epoch { epoch, rows }).await.is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }

    /// Commits everything handed over so far.
    pub async fn flush(&mut self) -> Result<()> {
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(Command::Flush(sender)).await.is_err() {
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

async fn write_events(
    mut writers: HashMap<String, Writer>,
    mut commands: mpsc::Receiver<Command>,
    committed: watch::Sender<u64>,
    clock: Clock,
) -> Result<()> {
    let mut newest = *committed.borrow();
    loop {
        let command = tokio::time::timeout(LOOK, commands.recv()).await;
        let mut flushed = None;
        match command {
            Ok(None) => return Ok(()),
            Ok(Some(Command::Epoch { epoch, rows })) => {
                for part in rows {
                    let Some(writer) = writers.get_mut(&part.stream) else { continue };
                    append(writer, part).await?;
                }
                newest = epoch;
            }
            Ok(Some(Command::Flush(sender))) => flushed = Some(sender),
            Err(_) => {}
        }
        if writers.values().all(|w| !w.has_pending()) {
            committed.send_replace(newest);
        }
        let now = clock.now();
        if flushed.is_some() || writers.values().any(|w| w.due(now)) {
            for writer in writers.values_mut() {
                writer.commit(now).await?;
            }
            committed.send_replace(newest);
            if flushed.is_none() {
                for writer in writers.values_mut() {
                    writer.compact(now).await?;
                }
            }
        }
        if let Some(sender) = flushed {
            let _ = sender.send(Ok(()));
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
    root: &PathBuf,
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
