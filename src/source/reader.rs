//! The reader of Kafka topics: threads that fill a queue bounded in bytes.
//!
//! Promises, for both implementations:
//! - the chunks of each assigned partition arrive in offset order and without a gap between them
//!   (see [`Chunk`](crate::source::chunk::Chunk)); each time the reader reaches the end of a
//!   partition, it emits an [`Event::End`];
//! - the queue holds about `QUEUE_BYTES` at most; when it is
//!   full, the threads send no more fetch requests (librdkafka first fills its own queue of 16 MB
//!   for all partitions);
//! - nothing is skipped: data that cannot be read is an error, and the last item of the reader.
//!
//! The native reader is used unless a setting is not supported by it. If it finds unsupported data
//! while it reads (a message format older than 2017), librdkafka continues at the position that
//! was reached. The Kafka setting `millstream.reader` selects one of the two.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::source::config::{Isolation, KafkaConfig, ReaderChoice, config_error};
use crate::source::event::Event;
use crate::source::fetch::{Assignment, Fetcher, consumer_config};
use crate::source::native::{NativeReader, PartitionTable};
use crate::source::queue::{ChunkReceiver, ChunkSender, chunk_queue};
use crate::types::TopicPartition;
use crate::{Error, Result};

/// How long one poll of librdkafka waits before the thread checks whether it must stop.
const POLL_WAIT: Duration = Duration::from_millis(100);

/// The implementations of a reader.
enum ReaderImpl {
    Native,
    Rdkafka,
}

/// Selects the implementation and logs the reason if it is librdkafka.
///
/// # Errors
/// `millstream.reader=native` is set, and the native reader does not support the settings.
fn choose_reader(kafka: &KafkaConfig, group: &str) -> Result<ReaderImpl> {
    match (kafka.reader_choice()?, NativeReader::unsupported_setting(kafka)) {
        (ReaderChoice::Rdkafka, _) => {
            tracing::debug!("{group} reads with librdkafka: millstream.reader=rdkafka");
            Ok(ReaderImpl::Rdkafka)
        }
        (ReaderChoice::Auto | ReaderChoice::Native, None) => Ok(ReaderImpl::Native),
        (ReaderChoice::Auto, Some(reason)) => {
            tracing::info!("{group} reads with librdkafka instead of the native reader: {reason}");
            Ok(ReaderImpl::Rdkafka)
        }
        (ReaderChoice::Native, Some(reason)) => Err(native_unavailable(reason)),
    }
}

fn native_unavailable(reason: impl Into<String>) -> Error {
    Error::config("millstream.reader=native cannot be used")
        .detail(reason)
        .hint("remove the setting; librdkafka then reads where the native reader cannot")
}

/// The part of the implementation that callers use. It changes at most once, from native to
/// rdkafka.
enum AssignmentHandle {
    Native(Arc<PartitionTable>),
    Rdkafka(Arc<Assignment>),
}

type SharedAssignment = Arc<Mutex<AssignmentHandle>>;

/// Reads assigned partitions. Dropping it stops its threads within about 100 ms.
pub struct Reader {
    events: ChunkReceiver,
    assignment: SharedAssignment,
}

impl Reader {
    /// Starts the threads; they read nothing until [`Reader::assign`]. `group` identifies the
    /// reader to the brokers; it joins no group and commits no offset.
    ///
    /// # Errors
    /// A setting that librdkafka rejects, or a TLS file that cannot be read. Unreachable brokers
    /// are not an error: the reader logs one warning and retries.
    pub fn start(kafka: &KafkaConfig, group: &str, isolation: Isolation) -> Result<Self> {
        let (sender, events) = chunk_queue();
        let chosen = choose_reader(kafka, group)?;
        let thread = std::thread::Builder::new().name("kafka-reader".to_owned());
        let assignment = match chosen {
            ReaderImpl::Native => {
                // Both implementations reject the same settings.
                let config = consumer_config(kafka, group, isolation).create_native_config();
                config.map_err(|error| config_error(&error))?;
                let native = NativeReader::new(kafka, group, isolation)?;
                let assignment = Arc::new(Mutex::new(AssignmentHandle::Native(native.table())));
                let shared = Arc::clone(&assignment);
                let (kafka, group) = (kafka.clone(), group.to_owned());
                thread.spawn(move || {
                    if let Some(reason) = native.run(&sender) {
                        fall_back_to_rdkafka(&kafka, &group, isolation, &shared, &sender, &reason);
                    }
                })?;
                assignment
            }
            ReaderImpl::Rdkafka => {
                let fetcher = Fetcher::new(kafka, group, isolation)?;
                let handle = AssignmentHandle::Rdkafka(fetcher.assignment());
                thread.spawn(move || run_rdkafka(fetcher, &sender))?;
                Arc::new(Mutex::new(handle))
            }
        };
        Ok(Self { events, assignment })
    }

    fn assignment(&self) -> MutexGuard<'_, AssignmentHandle> {
        self.assignment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds partitions to the assignment, each with the first offset to read. Takes some
    /// milliseconds at most.
    ///
    /// # Errors
    /// A negative offset, or a partition that is already assigned. A topic or an offset that does
    /// not exist is an error of [`Reader::next`].
    pub fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        match &*self.assignment() {
            AssignmentHandle::Native(table) => table.assign(add),
            AssignmentHandle::Rdkafka(assignment) => assignment.assign(add),
        }
    }

    /// Stops fetching these partitions. Chunks that are already in the queue still arrive.
    pub fn pause(&self, partitions: &[TopicPartition]) {
        match &*self.assignment() {
            AssignmentHandle::Native(table) => table.pause(partitions),
            AssignmentHandle::Rdkafka(assignment) => {
                warn_on_error("pause", assignment.pause(partitions));
            }
        }
    }

    /// Fetches paused partitions again, from the position where their chunks ended. A partition
    /// that is at its end emits its end again.
    pub fn resume(&self, partitions: &[TopicPartition]) {
        match &*self.assignment() {
            AssignmentHandle::Native(table) => table.resume(partitions),
            AssignmentHandle::Rdkafka(assignment) => {
                warn_on_error("resume", assignment.resume(partitions));
            }
        }
    }

    /// Returns the next event. The call is cancel-safe: no event is lost.
    ///
    /// # Errors
    /// Data that cannot be read: a missing offset or topic (`Kind::Recovery`, with the requested
    /// and the available offsets), a corrupt batch, a missing permission. Every later call fails,
    /// too.
    pub async fn next(&mut self) -> Result<Event> {
        self.events.next().await
    }

    /// Makes the native reader behave as if it had found unsupported data.
    #[cfg(test)]
    pub(super) fn request_fallback(&self) {
        match &*self.assignment() {
            AssignmentHandle::Native(table) => table.request_fallback("requested by a test".into()),
            AssignmentHandle::Rdkafka(_) => unreachable!("librdkafka already reads"),
        }
    }

    /// The number of bytes in the queue.
    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.events.used()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.events.stop();
        if let AssignmentHandle::Native(table) = &*self.assignment() {
            table.wake();
        }
    }
}

/// Pausing and resuming change state within librdkafka only, so they fail only while it closes.
fn warn_on_error(action: &str, outcome: Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!("cannot {action} partitions: {error}");
    }
}

/// The thread of the librdkafka reader.
fn run_rdkafka(mut fetcher: Fetcher, sender: &ChunkSender) {
    let mut events = VecDeque::new();
    while sender.wait_for_room() {
        let outcome = fetcher.poll(POLL_WAIT, &mut events);
        for event in events.drain(..) {
            if !sender.send(event) {
                return;
            }
        }
        if let Err(error) = outcome {
            return sender.fail(error);
        }
    }
}

/// Continues with librdkafka at the positions that the native reader has reached.
fn fall_back_to_rdkafka(
    kafka: &KafkaConfig,
    group: &str,
    isolation: Isolation,
    shared: &SharedAssignment,
    sender: &ChunkSender,
    reason: &str,
) {
    let start = || {
        if kafka.reader_choice()? == ReaderChoice::Native {
            return Err(native_unavailable(reason));
        }
        let fetcher = Fetcher::new(kafka, group, isolation)?;
        let mut handle = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let AssignmentHandle::Native(table) = &*handle {
            let assignment = fetcher.assignment();
            let positions = table.positions();
            let all: Vec<_> = positions.iter().map(|(tp, at, _)| (tp.clone(), *at)).collect();
            let paused: Vec<_> =
                positions.into_iter().filter(|(.., paused)| *paused).map(|(tp, ..)| tp).collect();
            assignment.assign(&all)?;
            assignment.pause(&paused)?;
            *handle = AssignmentHandle::Rdkafka(assignment);
        }
        Ok(fetcher)
    };
    match start() {
        Ok(fetcher) => {
            tracing::info!("{group} continues with librdkafka: {reason}");
            run_rdkafka(fetcher, sender);
        }
        Err(error) => sender.fail(error),
    }
}
