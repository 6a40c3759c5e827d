//! The reader of Kafka topics: threads that fill a queue bounded in bytes.
//!
//! Promises, whichever of the two engines reads:
//! - every assigned partition's chunks come in offset order and leave no gap between them (see
//!   [`Chunk`]); each time that a partition's end is reached, an [`Event::End`] says so;
//! - the queue holds no more than about [`QUEUE_BYTES`](crate::source::queue::QUEUE_BYTES); when it is
//!   full, the threads stop asking the brokers for more (librdkafka fills its own queue first, of
//!   16 MB for all partitions);
//! - nothing is skipped: what cannot be read is an error, and the reader's last word.
//!
//! `native` reads unless a setting is beyond it; where it finds out only while reading (a message
//! format of before 2017), librdkafka goes on from where it came to. `millstream.reader` among
//! the Kafka settings asks for one of the two.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::source::chunk::{Chunk, Record};
use crate::source::config::{KafkaConfig, Wanted, config_error};
use crate::source::fetch::{Assignment, Fetcher, consumer_config};
use crate::source::native::{Native, Table};
use crate::source::queue::{Sink, Source, queue};
use crate::types::TopicPartition;
use crate::{Error, Result};

/// How long the thread sleeps in librdkafka before it looks whether it is wanted still.
const POLL_WAIT: Duration = Duration::from_millis(100);

/// Which records of transactions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Those of committed transactions only, up to the first open one.
    Committed,
    /// All, those of open and aborted transactions too.
    Uncommitted,
}

impl Isolation {
    /// As librdkafka spells it.
    pub(super) fn level(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// What a reader tells.
#[derive(Debug, Clone)]
pub enum Event {
    /// Records of one partition; at least one.
    Chunk(Chunk),
    /// A partition's end was reached just now.
    End {
        /// Which.
        partition: TopicPartition,
        /// The position there: the offset of the next record to come, after gaps at the end.
        position: i64,
    },
}

impl Event {
    /// Bytes of memory that it takes, about.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.bytes.len() + chunk.records.len() * size_of::<Record>(),
            Self::End { .. } => 64,
        }
    }
}

/// The engines.
enum Engine {
    Native,
    Rdkafka,
}

/// Which engine reads, and why, in the log.
///
/// # Errors
/// The one that is asked for cannot do what the settings ask.
fn choose(kafka: &KafkaConfig, group: &str) -> Result<Engine> {
    match (kafka.reader()?, Native::refuses(kafka)) {
        (Wanted::Rdkafka, _) => {
            tracing::debug!("{group} reads with librdkafka: millstream.reader asks for it");
            Ok(Engine::Rdkafka)
        }
        (Wanted::Either | Wanted::Native, None) => Ok(Engine::Native),
        (Wanted::Either, Some(why)) => {
            tracing::info!("{group} reads with librdkafka, not with the native reader: {why}");
            Ok(Engine::Rdkafka)
        }
        (Wanted::Native, Some(why)) => Err(Error::config("millstream.reader=native cannot be")
            .detail(why)
            .hint("leave it out")),
    }
}

/// The half of the engine for callers. It changes at most once, from native to rdkafka.
enum Control {
    Native(Arc<Table>),
    Rdkafka(Arc<Assignment>),
}

type Shared = Arc<Mutex<Control>>;

/// Reads assigned partitions. Dropping it ends its threads, within about 100 ms.
pub struct Reader {
    events: Source,
    control: Shared,
}

impl Reader {
    /// Starts the threads; they read nothing until [`Reader::assign`]. `group` names the reader
    /// to the brokers; no group is joined and no offset committed.
    ///
    /// # Errors
    /// Settings that librdkafka refuses, or TLS files that cannot be read. That no broker answers
    /// is no error here: the reader warns once and tries on.
    pub fn start(kafka: &KafkaConfig, group: &str, isolation: Isolation) -> Result<Self> {
        let (sink, events) = queue();
        let engine = choose(kafka, group)?;
        let thread = std::thread::Builder::new().name("kafka-reader".to_owned());
        let control = match engine {
            Engine::Native => {
                // The same settings are right and wrong for both.
                let config = consumer_config(kafka, group, isolation).create_native_config();
                config.map_err(|error| config_error(&error))?;
                let native = Native::new(kafka, group, isolation)?;
                let control = Arc::new(Mutex::new(Control::Native(native.table())));
                let shared = Arc::clone(&control);
                let (kafka, group) = (kafka.clone(), group.to_owned());
                thread.spawn(move || {
                    if let Some(why) = native.run(&sink) {
                        go_on(&kafka, &group, isolation, &shared, &sink, &why);
                    }
                })?;
                control
            }
            Engine::Rdkafka => {
                let fetcher = Fetcher::new(kafka, group, isolation)?;
                let control = Arc::new(Mutex::new(Control::Rdkafka(fetcher.assignment())));
                thread.spawn(move || read(fetcher, &sink))?;
                control
            }
        };
        Ok(Self { events, control })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds partitions, each read from an offset on, to those that are read already. Takes some
    /// milliseconds at most.
    ///
    /// # Errors
    /// A negative offset, or a partition that is assigned already. That a topic or offset does
    /// not exist is told by [`Reader::next`].
    pub fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        match &*self.control() {
            Control::Native(table) => table.assign(add),
            Control::Rdkafka(assignment) => assignment.assign(add),
        }
    }

    /// Stops fetching these partitions. Chunks that are in the queue already still come.
    pub fn pause(&self, partitions: &[TopicPartition]) {
        match &*self.control() {
            Control::Native(table) => table.pause(partitions),
            Control::Rdkafka(assignment) => note("paused", assignment.pause(partitions)),
        }
    }

    /// Fetches paused partitions again, from where their chunks ended. One that is at its end
    /// tells its end again.
    pub fn resume(&self, partitions: &[TopicPartition]) {
        match &*self.control() {
            Control::Native(table) => table.resume(partitions),
            Control::Rdkafka(assignment) => note("resumed", assignment.resume(partitions)),
        }
    }

    /// The next event. Cancelling it loses none.
    ///
    /// # Errors
    /// What cannot be read: an offset that is gone or a topic that is (`Kind::Recovery`, with
    /// what was wanted and what there is), a corrupt batch, a permission. It is final.
    pub async fn next(&mut self) -> Result<Event> {
        self.events.next().await
    }

    /// As if the native reader had met what it cannot read.
    #[cfg(test)]
    pub(super) fn give_up(&self) {
        match &*self.control() {
            Control::Native(table) => table.give_up("a test asks for it".to_owned()),
            Control::Rdkafka(_) => unreachable!("librdkafka reads"),
        }
    }

    /// Bytes that are in the queue.
    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.events.used()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.events.stop();
        if let Control::Native(table) = &*self.control() {
            table.wake();
        }
    }
}

/// Partitions change hands within librdkafka only: this fails when it is closing.
fn note(what: &str, outcome: Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!("partitions could not be {what}: {error}");
    }
}

/// The thread of librdkafka's engine.
fn read(mut fetcher: Fetcher, sink: &Sink) {
    let mut events = VecDeque::new();
    while sink.wait() {
        let outcome = fetcher.poll(POLL_WAIT, &mut events);
        for event in events.drain(..) {
            if !sink.send(event) {
                return;
            }
        }
        if let Err(error) = outcome {
            return sink.fail(error);
        }
    }
}

/// librdkafka goes on from where the native engine came to.
fn go_on(
    kafka: &KafkaConfig,
    group: &str,
    isolation: Isolation,
    control: &Shared,
    sink: &Sink,
    why: &str,
) {
    let begin = || {
        if kafka.reader()? == Wanted::Native {
            return Err(Error::config("millstream.reader=native cannot be")
                .detail(why)
                .hint("leave it out"));
        }
        let fetcher = Fetcher::new(kafka, group, isolation)?;
        let mut control = control.lock().unwrap_or_else(PoisonError::into_inner);
        if let Control::Native(table) = &*control {
            let assignment = fetcher.assignment();
            let positions = table.positions();
            let all: Vec<_> = positions.iter().map(|(tp, at, _)| (tp.clone(), *at)).collect();
            let paused: Vec<_> =
                positions.into_iter().filter(|(.., paused)| *paused).map(|(tp, ..)| tp).collect();
            assignment.assign(&all)?;
            assignment.pause(&paused)?;
            *control = Control::Rdkafka(assignment);
        }
        Ok(fetcher)
    };
    match begin() {
        Ok(fetcher) => {
            tracing::info!("{group} goes on with librdkafka, not with the native reader: {why}");
            read(fetcher, sink);
        }
        Err(error) => sink.fail(error),
    }
}
