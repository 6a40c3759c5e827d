//! From librdkafka's messages to chunks, without a thread of its own.
//!
//! Invariants of a partition's events, whatever Kafka's gaps:
//! - a chunk begins at the position where the event before it ended (or where it was assigned);
//! - no offset comes twice; an offset that no chunk covers is after the last event's position.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode;

use crate::source::chunk::{Chunk, Record};
use crate::source::client::{Context, hint_for};
use crate::source::config::KafkaConfig;
use crate::source::ffi::{BatchConsumer, Buffer, Message};
use crate::source::reader::{Event, Isolation};
use crate::source::varint;
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// A chunk holds no more bytes than this, unless one record alone does.
const CHUNK_BYTES: usize = 4 << 20;
/// A chunk holds no more records than this.
const CHUNK_RECORDS: usize = 64 << 10;
/// Messages taken from librdkafka in one call.
const POLL_MESSAGES: usize = 8 << 10;
/// How long records of a chunk may wait for more while others keep coming.
const CHUNK_WAIT: Duration = Duration::from_millis(10);
/// How long to look for the offsets that there are, for an error's text.
const WATERMARK_WAIT: Duration = Duration::from_secs(5);

/// Settings that a user may override.
const DEFAULTS: [(&str, &str); 8] = [
    // All partitions together, in librdkafka. Its own cost per message comes on top.
    ("queued.max.messages.kbytes", "16384"),
    ("queued.min.messages", "50000"),
    // Else a partition rests for a second when the queue was full once.
    ("fetch.queue.backoff.ms", "5"),
    // An end is told when an empty answer comes, so this is how late it is told.
    ("fetch.wait.max.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
    // A pipeline that waits is no dead one; there is no group to leave either.
    ("max.poll.interval.ms", "86400000"),
    ("check.crcs", "true"),
    ("socket.keepalive.enable", "true"),
];

/// A consumer's configuration.
pub(super) fn consumer_config(
    kafka: &KafkaConfig,
    group: &str,
    isolation: Isolation,
) -> rdkafka::ClientConfig {
    let fixed = [
        ("group.id", group),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("enable.partition.eof", "true"),
        ("auto.offset.reset", "error"),
        ("isolation.level", isolation.level()),
    ];
    kafka.client_with(&format!("{group}-read"), &DEFAULTS, &fixed)
}

/// The half of a fetcher that other threads may use.
pub(super) struct Assignment {
    consumer: BatchConsumer,
    partitions: Mutex<HashMap<TopicPartition, Assigned>>,
    /// Counts the times that partitions were taken away: a topic's handle may change then.
    removals: AtomicU64,
}

/// What is known of an assigned partition.
struct Assigned {
    /// The next offset to take; behind the fetcher by one poll at most.
    position: Arc<AtomicI64>,
    paused: bool,
}

impl Assignment {
    fn partitions(&self) -> MutexGuard<'_, HashMap<TopicPartition, Assigned>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds partitions, each from an offset.
    pub(super) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        let mut partitions = self.partitions();
        for (tp, offset) in add {
            if *offset < 0 || partitions.contains_key(tp) {
                return Err(Error::internal(format!(
                    "{tp} cannot be assigned from offset {offset} on"
                ))
                .detail("it is read already, or the offset is negative"));
            }
        }
        // First noted, then assigned: a message must find its partition.
        for (tp, offset) in add {
            let position = Arc::new(AtomicI64::new(*offset));
            partitions.insert(tp.clone(), Assigned { position, paused: false });
        }
        self.consumer
            .assign(add)
            .inspect_err(|_| add.iter().for_each(|(tp, _)| drop(partitions.remove(tp))))
    }

    /// Stops fetching partitions, by taking them away: librdkafka's own pause would resume one
    /// record too far when the last thing that was polled was the partition's end (2.12.1,
    /// `rd_kafka_q_serve_rkmessages` takes the end for a record).
    pub(super) fn pause(&self, wanted: &[TopicPartition]) -> Result<()> {
        let mut partitions = self.partitions();
        let mut pausing = Vec::with_capacity(wanted.len());
        for tp in wanted {
            if let Some(assigned) = partitions.get_mut(tp)
                && !std::mem::replace(&mut assigned.paused, true)
            {
                pausing.push(tp.clone());
            }
        }
        if pausing.is_empty() {
            return Ok(());
        }
        self.removals.fetch_add(1, Ordering::AcqRel);
        self.consumer.unassign(&pausing)
    }

    /// Fetches paused partitions again, from their positions. A position may be that of the poll
    /// before: what then comes twice, the fetcher drops.
    pub(super) fn resume(&self, wanted: &[TopicPartition]) -> Result<()> {
        let mut partitions = self.partitions();
        let mut resuming = Vec::with_capacity(wanted.len());
        for tp in wanted {
            if let Some(assigned) = partitions.get_mut(tp)
                && std::mem::replace(&mut assigned.paused, false)
            {
                resuming.push((tp.clone(), assigned.position.load(Ordering::Acquire)));
            }
        }
        if resuming.is_empty() { Ok(()) } else { self.consumer.assign(&resuming) }
    }
}

/// Polls and assembles chunks.
pub(crate) struct Fetcher {
    assignment: Arc<Assignment>,
    buffer: Buffer,
    assembly: Assembly,
}

impl Fetcher {
    /// A consumer without partitions; it connects in the background.
    pub(crate) fn new(kafka: &KafkaConfig, group: &str, isolation: Isolation) -> Result<Self> {
        let config = consumer_config(kafka, group, isolation);
        let consumer = BatchConsumer::new(&config, Context::new(format!("{group} reader")))?;
        Ok(Self {
            assignment: Arc::new(Assignment {
                consumer,
                partitions: Mutex::default(),
                removals: AtomicU64::new(0),
            }),
            buffer: Buffer::new(POLL_MESSAGES),
            assembly: Assembly::default(),
        })
    }

    /// The half for other threads.
    pub(super) fn assignment(&self) -> Arc<Assignment> {
        Arc::clone(&self.assignment)
    }

    /// Adds partitions, each from an offset.
    pub(crate) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        self.assignment.assign(add)
    }

    /// Waits up to `wait` for something to come and appends it to `events`.
    ///
    /// # Errors
    /// What cannot be read, now and later: a missing offset or topic, a bad record, a permission.
    /// Events before it are in `events`.
    pub(crate) fn poll(&mut self, wait: Duration, events: &mut VecDeque<Event>) -> Result<()> {
        let Self { assignment, buffer, assembly } = self;
        assignment.consumer.serve()?;
        let capacity = buffer.capacity();
        let mut failed = None;
        let count = assignment.consumer.poll(buffer, wait, |message| {
            if failed.is_none()
                && let Err(error) = assembly.take(message, assignment, events)
            {
                failed = Some(error);
            }
        });
        if count > 0 {
            assignment.consumer.client().context().answered();
        }
        assembly.release(count < capacity || failed.is_some(), events);
        failed.map_or(Ok(()), Err)
    }
}

/// The chunks that are being filled.
#[derive(Default)]
struct Assembly {
    parts: Vec<Part>,
    by_handle: HashMap<(usize, i32), usize>,
    /// The handle of the last message: messages come in runs of a partition.
    last: Option<((usize, i32), usize)>,
    /// The handles are of this count of removals.
    removals: u64,
}

/// One partition.
struct Part {
    tp: TopicPartition,
    /// Where the last event ended.
    told: i64,
    /// The next offset to take.
    position: i64,
    /// `position`, for other threads.
    shared: Arc<AtomicI64>,
    bytes: Vec<u8>,
    records: Vec<Record>,
    append_time: bool,
    /// When the first of `records` came.
    since: Instant,
}

impl Assembly {
    /// Takes one message, be it a record, an end or an error.
    fn take(
        &mut self,
        message: &Message<'_>,
        assignment: &Assignment,
        events: &mut VecDeque<Event>,
    ) -> Result<()> {
        match message.error() {
            None => {
                let part = self.part(message, assignment)?;
                part.push(message, events);
                Ok(())
            }
            Some(RDKafkaErrorCode::PartitionEOF) => {
                let part = self.part(message, assignment)?;
                part.release(events);
                part.position = part.position.max(message.offset());
                part.told = part.position;
                events
                    .push_back(Event::End { partition: part.tp.clone(), position: part.position });
                Ok(())
            }
            Some(code) => consumption_error(code, message, assignment),
        }
    }

    fn part(&mut self, message: &Message<'_>, assignment: &Assignment) -> Result<&mut Part> {
        let removals = assignment.removals.load(Ordering::Acquire);
        if removals != self.removals {
            (self.removals, self.last) = (removals, None);
            self.by_handle.clear();
        }
        let handle = (message.topic_handle(), message.partition());
        let index = match self.last {
            Some((last, index)) if last == handle => index,
            _ => match self.by_handle.get(&handle) {
                Some(index) => *index,
                None => self.meet(handle, message, assignment)?,
            },
        };
        self.last = Some((handle, index));
        Ok(&mut self.parts[index])
    }

    /// The first message of a partition under this handle.
    fn meet(
        &mut self,
        handle: (usize, i32),
        message: &Message<'_>,
        assignment: &Assignment,
    ) -> Result<usize> {
        let tp = TopicPartition::new(message.topic(), handle.1);
        let index = match self.parts.iter().position(|part| part.tp == tp) {
            Some(index) => index,
            None => {
                let shared =
                    assignment.partitions().get(&tp).map(|assigned| Arc::clone(&assigned.position));
                let shared = shared.ok_or_else(|| {
                    Error::internal(format!("a record of {tp} came, which is not assigned"))
                })?;
                self.parts.push(Part::new(tp, shared));
                self.parts.len() - 1
            }
        };
        self.by_handle.insert(handle, index);
        Ok(index)
    }

    /// Tells the chunks that are due: all of them, or those that have waited.
    fn release(&mut self, all: bool, events: &mut VecDeque<Event>) {
        for part in &mut self.parts {
            if all || (!part.records.is_empty() && part.since.elapsed() >= CHUNK_WAIT) {
                part.release(events);
            }
            part.shared.store(part.position, Ordering::Release);
        }
    }
}

impl Part {
    fn new(tp: TopicPartition, shared: Arc<AtomicI64>) -> Self {
        let offset = shared.load(Ordering::Acquire);
        Self {
            tp,
            told: offset,
            position: offset,
            shared,
            bytes: Vec::new(),
            records: Vec::new(),
            append_time: false,
            since: Instant::now(),
        }
    }

    fn push(&mut self, message: &Message<'_>, events: &mut VecDeque<Event>) {
        if message.offset() < self.position {
            return; // fetched again, after a pause
        }
        let (key, value) = (message.key(), message.value());
        let (timestamp_ms, append_time) = message.timestamp();
        let size = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        let full = self.records.len() >= CHUNK_RECORDS || self.bytes.len() + size > CHUNK_BYTES;
        if full || append_time != self.append_time {
            self.release(events);
            self.append_time = append_time;
        }
        if self.records.is_empty() {
            self.since = Instant::now();
        }
        let bytes = &mut self.bytes;
        let mut copy = |part: &[u8]| copy_into(bytes, part);
        let (key, value) = (key.map(&mut copy), value.map(&mut copy));
        let headers = copy_headers(bytes, message);
        self.position = message.offset() + 1;
        self.records.push(Record { offset: message.offset(), timestamp_ms, key, value, headers });
    }

    /// Tells the chunk, if it holds anything.
    fn release(&mut self, events: &mut VecDeque<Event>) {
        if self.records.is_empty() {
            return;
        }
        let (bytes, records) = (self.bytes.len(), self.records.len());
        let chunk = Chunk {
            topic: Arc::clone(&self.tp.topic),
            partition: self.tp.partition,
            first_offset: self.told,
            next_offset: self.position,
            bytes: Bytes::from(std::mem::replace(&mut self.bytes, Vec::with_capacity(bytes))),
            records: std::mem::replace(&mut self.records, Vec::with_capacity(records)),
            append_time: self.append_time,
        };
        self.told = self.position;
        events.push_back(Event::Chunk(chunk));
    }
}

/// Appends `part` and says where it lies. Chunks are a few MB and a record at most 1 GB.
fn copy_into(bytes: &mut Vec<u8>, part: &[u8]) -> Range<u32> {
    let start = bytes.len() as u32;
    bytes.extend_from_slice(part);
    start..bytes.len() as u32
}

/// Appends a message's headers, laid out as Kafka does, and says where they lie.
fn copy_headers(bytes: &mut Vec<u8>, message: &Message<'_>) -> Range<u32> {
    let mut count = 0;
    message.headers(|_, _| count += 1);
    if count == 0 {
        return 0..0;
    }
    let start = bytes.len() as u32;
    varint::write(bytes, count);
    message.headers(|name, value| {
        varint::write(bytes, name.len() as i64);
        bytes.extend_from_slice(name);
        varint::write(bytes, value.map_or(-1, |value| value.len() as i64));
        bytes.extend_from_slice(value.unwrap_or_default());
    });
    start..bytes.len() as u32
}

/// What an error in place of a record means: nothing (librdkafka tries again), or the end.
fn consumption_error(
    code: RDKafkaErrorCode,
    message: &Message<'_>,
    assignment: &Assignment,
) -> Result<()> {
    let client = assignment.consumer.client();
    let tp = TopicPartition { topic: message.topic().into(), partition: message.partition() };
    let text = message.error_text();
    match code {
        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
            let wanted = message.offset();
            let error = Error::new(
                Kind::Recovery,
                format!("{tp} has no offset {wanted} any more, or not yet"),
            );
            let detail = match client.fetch_watermarks(&tp.topic, tp.partition, WATERMARK_WAIT) {
                Ok((low, high)) => format!("wanted offset {wanted}; Kafka has {low} to {high}"),
                Err(cause) => format!("wanted offset {wanted}; what Kafka has is unknown: {cause}"),
            };
            Err(error.detail(detail).hint(
                "the topic's retention removed what was not processed yet, or the topic was made anew. `run --on-gap skip` \
                 goes on at the first offset that there is and records it; `millstream rebuild` uses what history has",
            ))
        }
        RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownPartition
        | RDKafkaErrorCode::UnknownTopicId => {
            Err(Error::new(Kind::Recovery, format!("{tp} is not in Kafka (any more)"))
                .detail(text)
                .hint("was the topic deleted, or its number of partitions lessened?"))
        }
        RDKafkaErrorCode::BrokerTransportFailure
        | RDKafkaErrorCode::AllBrokersDown
        | RDKafkaErrorCode::OperationTimedOut
        | RDKafkaErrorCode::RequestTimedOut
        | RDKafkaErrorCode::NetworkException
        | RDKafkaErrorCode::Resolve
        | RDKafkaErrorCode::LeaderNotAvailable
        | RDKafkaErrorCode::NotLeaderForPartition
        | RDKafkaErrorCode::BrokerNotAvailable
        | RDKafkaErrorCode::ReplicaNotAvailable
        | RDKafkaErrorCode::CoordinatorLoadInProgress
        | RDKafkaErrorCode::CoordinatorNotAvailable
        | RDKafkaErrorCode::NotCoordinator => {
            client.context().disturbed(code, &text);
            Ok(())
        }
        // No group is joined, so only lag tools would miss it.
        RDKafkaErrorCode::GroupAuthorizationFailed => {
            tracing::warn!(%code, "{text}");
            Ok(())
        }
        _ => {
            let error = Error::new(
                Kind::Kafka,
                format!("{tp} cannot be read at offset {}", message.offset()),
            );
            let error = error.detail(format!("{text} ({code})"));
            Err(match hint_for(code) {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
    }
}
