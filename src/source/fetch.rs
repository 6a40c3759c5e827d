//! Assembles the messages of librdkafka into chunks, without a thread of its own.
//!
//! Invariants of the events of a partition:
//! - a chunk begins at the position where the previous event ended (or at the assigned offset);
//! - no offset is emitted twice; offsets that no chunk covers are after the position of the last
//!   event.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode;

use crate::source::chunk::{Chunk, Record};
use crate::source::client::{KafkaClientContext, hint_for};
use crate::source::config::{Isolation, KafkaConfig};
use crate::source::event::Event;
use crate::source::ffi::{BatchConsumer, Message, MessageBuffer};
use crate::source::varint;
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// The maximum size of a chunk, unless a single record is larger.
const CHUNK_BYTES: usize = 4 << 20;
/// The maximum number of records of a chunk.
const CHUNK_RECORDS: usize = 64 << 10;
/// The number of messages that one call to librdkafka returns at most.
const POLL_MESSAGES: usize = 8 << 10;
/// How long the records of a chunk may wait for more while other records keep arriving.
const CHUNK_WAIT: Duration = Duration::from_millis(10);
/// The timeout for reading the available offsets for an error message.
const OFFSETS_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings that a user may override.
const DEFAULTS: [(&str, &str); 8] = [
    // For all partitions together. librdkafka's overhead per message is not included.
    ("queued.max.messages.kbytes", "16384"),
    ("queued.min.messages", "50000"),
    // By default, a partition waits for a second once the queue was full.
    ("fetch.queue.backoff.ms", "5"),
    // The end of a partition is detected by an empty response, so this bounds the delay.
    ("fetch.wait.max.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
    // A pipeline may wait for a long time; there is no consumer group to leave either.
    ("max.poll.interval.ms", "86400000"),
    ("check.crcs", "true"),
    ("socket.keepalive.enable", "true"),
];

/// The configuration of a consumer.
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

/// The part of a fetcher that other threads use.
pub(super) struct Assignment {
    consumer: BatchConsumer,
    partitions: Mutex<HashMap<TopicPartition, Assigned>>,
    /// Counts the calls that unassigned partitions: the handle of a topic may change then.
    removals: AtomicU64,
}

/// The state of an assigned partition.
struct Assigned {
    /// The next offset to read; lags behind the fetcher by at most one poll.
    position: Arc<AtomicI64>,
    paused: bool,
}

impl Assignment {
    fn partitions(&self) -> MutexGuard<'_, HashMap<TopicPartition, Assigned>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds partitions, each with the first offset to read.
    pub(super) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        let mut partitions = self.partitions();
        for (tp, offset) in add {
            if *offset < 0 || partitions.contains_key(tp) {
                return Err(Error::internal(format!("{tp} cannot be assigned at offset {offset}"))
                    .detail("it is already assigned, or the offset is negative"));
            }
        }
        // The entry must exist before the first message of its partition arrives.
        for (tp, offset) in add {
            let position = Arc::new(AtomicI64::new(*offset));
            partitions.insert(tp.clone(), Assigned { position, paused: false });
        }
        self.consumer
            .assign(add)
            .inspect_err(|_| add.iter().for_each(|(tp, _)| drop(partitions.remove(tp))))
    }

    /// Stops fetching partitions by unassigning them. librdkafka's own pause would resume one record
    /// too far if the last polled event was the end of the partition (2.12.1:
    /// `rd_kafka_q_serve_rkmessages` counts the end as a record).
    pub(super) fn pause(&self, wanted: &[TopicPartition]) -> Result<()> {
        let mut partitions = self.partitions();
        let mut to_pause = Vec::with_capacity(wanted.len());
        for tp in wanted {
            if let Some(assigned) = partitions.get_mut(tp)
                && !std::mem::replace(&mut assigned.paused, true)
            {
                to_pause.push(tp.clone());
            }
        }
        if to_pause.is_empty() {
            return Ok(());
        }
        self.removals.fetch_add(1, Ordering::AcqRel);
        self.consumer.unassign(&to_pause)
    }

    /// Fetches paused partitions again, from their positions. A position may be that of the previous
    /// poll; the fetcher drops records that arrive again.
    pub(super) fn resume(&self, wanted: &[TopicPartition]) -> Result<()> {
        let mut partitions = self.partitions();
        let mut to_resume = Vec::with_capacity(wanted.len());
        for tp in wanted {
            if let Some(assigned) = partitions.get_mut(tp)
                && std::mem::replace(&mut assigned.paused, false)
            {
                to_resume.push((tp.clone(), assigned.position.load(Ordering::Acquire)));
            }
        }
        if to_resume.is_empty() { Ok(()) } else { self.consumer.assign(&to_resume) }
    }
}

/// Polls librdkafka and assembles chunks.
pub(crate) struct Fetcher {
    assignment: Arc<Assignment>,
    buffer: MessageBuffer,
    assembler: ChunkAssembler,
}

impl Fetcher {
    /// Creates a consumer without partitions; it connects in the background.
    pub(crate) fn new(kafka: &KafkaConfig, group: &str, isolation: Isolation) -> Result<Self> {
        let config = consumer_config(kafka, group, isolation);
        let consumer =
            BatchConsumer::new(&config, KafkaClientContext::new(format!("{group} reader")))?;
        Ok(Self {
            assignment: Arc::new(Assignment {
                consumer,
                partitions: Mutex::default(),
                removals: AtomicU64::new(0),
            }),
            buffer: MessageBuffer::new(POLL_MESSAGES),
            assembler: ChunkAssembler::default(),
        })
    }

    /// The part for other threads.
    pub(super) fn assignment(&self) -> Arc<Assignment> {
        Arc::clone(&self.assignment)
    }

    /// Adds partitions, each with the first offset to read.
    pub(crate) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        self.assignment.assign(add)
    }

    /// Waits up to `wait` for a message and appends the resulting events to `events`.
    ///
    /// # Errors
    /// A permanent failure: a missing offset or topic, a bad record, a missing permission. `events`
    /// contains the events before it.
    pub(crate) fn poll(&mut self, wait: Duration, events: &mut VecDeque<Event>) -> Result<()> {
        let Self { assignment, buffer, assembler } = self;
        assignment.consumer.poll_events()?;
        let capacity = buffer.capacity();
        let mut failed = None;
        let count = assignment.consumer.poll(buffer, wait, |message| {
            if failed.is_none()
                && let Err(error) = assembler.handle_message(message, assignment, events)
            {
                failed = Some(error);
            }
        });
        if count > 0 {
            assignment.consumer.client().context().record_response();
        }
        assembler.flush(count < capacity || failed.is_some(), events);
        failed.map_or(Ok(()), Err)
    }
}

/// The partitions whose chunks are being filled.
#[derive(Default)]
struct ChunkAssembler {
    partitions: Vec<PartitionBuffer>,
    by_handle: HashMap<(usize, i32), usize>,
    /// The handle of the last message, because messages arrive in runs of one partition.
    last: Option<((usize, i32), usize)>,
    /// The value of `Assignment::removals` when the handles were recorded.
    removals: u64,
}

/// The records of one partition that were received and not yet emitted.
struct PartitionBuffer {
    tp: TopicPartition,
    /// The end of the last event that was emitted.
    emitted_offset: i64,
    /// The next offset to read.
    position: i64,
    /// A copy of `position` for other threads.
    shared: Arc<AtomicI64>,
    bytes: Vec<u8>,
    records: Vec<Record>,
    append_time: bool,
    /// When the first of `records` arrived.
    first_received: Instant,
}

impl ChunkAssembler {
    /// Handles one message: a record, the end of a partition or an error.
    fn handle_message(
        &mut self,
        message: &Message<'_>,
        assignment: &Assignment,
        events: &mut VecDeque<Event>,
    ) -> Result<()> {
        match message.error() {
            None => {
                let buffer = self.buffer_for(message, assignment)?;
                buffer.push(message, events);
                Ok(())
            }
            Some(RDKafkaErrorCode::PartitionEOF) => {
                let buffer = self.buffer_for(message, assignment)?;
                buffer.flush(events);
                buffer.position = buffer.position.max(message.offset());
                buffer.emitted_offset = buffer.position;
                let (partition, position) = (buffer.tp.clone(), buffer.position);
                events.push_back(Event::End { partition, position });
                Ok(())
            }
            Some(code) => handle_consume_error(code, message, assignment),
        }
    }

    fn buffer_for(
        &mut self,
        message: &Message<'_>,
        assignment: &Assignment,
    ) -> Result<&mut PartitionBuffer> {
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
                None => self.register_handle(handle, message, assignment)?,
            },
        };
        self.last = Some((handle, index));
        Ok(&mut self.partitions[index])
    }

    /// Finds or creates the buffer of a partition whose handle is new.
    fn register_handle(
        &mut self,
        handle: (usize, i32),
        message: &Message<'_>,
        assignment: &Assignment,
    ) -> Result<usize> {
        let tp = TopicPartition::new(message.topic(), handle.1);
        let index = match self.partitions.iter().position(|buffer| buffer.tp == tp) {
            Some(index) => index,
            None => {
                let shared =
                    assignment.partitions().get(&tp).map(|assigned| Arc::clone(&assigned.position));
                let shared = shared.ok_or_else(|| {
                    Error::internal(format!("received a record of {tp}, which is not assigned"))
                })?;
                self.partitions.push(PartitionBuffer::new(tp, shared));
                self.partitions.len() - 1
            }
        };
        self.by_handle.insert(handle, index);
        Ok(index)
    }

    /// Emits the chunks that are due: all of them, or those that have waited long enough.
    fn flush(&mut self, all: bool, events: &mut VecDeque<Event>) {
        for buffer in &mut self.partitions {
            if all || (!buffer.records.is_empty() && buffer.first_received.elapsed() >= CHUNK_WAIT)
            {
                buffer.flush(events);
            }
            buffer.shared.store(buffer.position, Ordering::Release);
        }
    }
}

impl PartitionBuffer {
    fn new(tp: TopicPartition, shared: Arc<AtomicI64>) -> Self {
        let offset = shared.load(Ordering::Acquire);
        Self {
            tp,
            emitted_offset: offset,
            position: offset,
            shared,
            bytes: Vec::new(),
            records: Vec::new(),
            append_time: false,
            first_received: Instant::now(),
        }
    }

    fn push(&mut self, message: &Message<'_>, events: &mut VecDeque<Event>) {
        if message.offset() < self.position {
            return; // fetched again after a pause
        }
        let (key, value) = (message.key(), message.value());
        let (timestamp_ms, append_time) = message.timestamp();
        let size = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        let is_full = self.records.len() >= CHUNK_RECORDS || self.bytes.len() + size > CHUNK_BYTES;
        if is_full || append_time != self.append_time {
            self.flush(events);
            self.append_time = append_time;
        }
        if self.records.is_empty() {
            self.first_received = Instant::now();
        }
        let bytes = &mut self.bytes;
        let mut copy = |field: &[u8]| append_bytes(bytes, field);
        let (key, value) = (key.map(&mut copy), value.map(&mut copy));
        let headers = append_headers(bytes, message);
        self.position = message.offset() + 1;
        self.records.push(Record { offset: message.offset(), timestamp_ms, key, value, headers });
    }

    /// Emits a chunk if there are records.
    fn flush(&mut self, events: &mut VecDeque<Event>) {
        if self.records.is_empty() {
            return;
        }
        let (bytes, records) = (self.bytes.len(), self.records.len());
        let chunk = Chunk {
            topic: Arc::clone(&self.tp.topic),
            partition: self.tp.partition,
            first_offset: self.emitted_offset,
            next_offset: self.position,
            bytes: Bytes::from(std::mem::replace(&mut self.bytes, Vec::with_capacity(bytes))),
            records: std::mem::replace(&mut self.records, Vec::with_capacity(records)),
            append_time: self.append_time,
        };
        self.emitted_offset = self.position;
        events.push_back(Event::Chunk(chunk));
    }
}

/// Appends `field` and returns its range. Chunks have a few MB, and a record at most 1 GB.
fn append_bytes(bytes: &mut Vec<u8>, field: &[u8]) -> Range<u32> {
    let start = bytes.len() as u32;
    bytes.extend_from_slice(field);
    start..bytes.len() as u32
}

/// Appends the headers of a message in Kafka's encoding and returns their range.
fn append_headers(bytes: &mut Vec<u8>, message: &Message<'_>) -> Range<u32> {
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

/// Handles an error that librdkafka returns instead of a record. `Ok`: librdkafka retries.
fn handle_consume_error(
    code: RDKafkaErrorCode,
    message: &Message<'_>,
    assignment: &Assignment,
) -> Result<()> {
    let client = assignment.consumer.client();
    let tp = TopicPartition { topic: message.topic().into(), partition: message.partition() };
    let text = message.error_text();
    match code {
        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
            Err(out_of_range_error(&tp, message.offset(), client))
        }
        RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownPartition
        | RDKafkaErrorCode::UnknownTopicId => {
            Err(Error::new(Kind::Recovery, format!("{tp} does not exist in Kafka"))
                .detail(text)
                .hint(
                    "check whether the topic was deleted or its number of partitions was reduced",
                ))
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
            client.context().record_transport_error(code, &text);
            Ok(())
        }
        // The consumer joins no group, so only lag tools are affected.
        RDKafkaErrorCode::GroupAuthorizationFailed => {
            tracing::warn!(%code, "{text}");
            Ok(())
        }
        _ => {
            let error =
                Error::new(Kind::Kafka, format!("cannot read {tp} at offset {}", message.offset()));
            let error = error.detail(format!("{text} ({code})"));
            Err(match hint_for(code) {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
    }
}

/// The error for an offset that was deleted or does not exist yet.
fn out_of_range_error(
    tp: &TopicPartition,
    requested: i64,
    client: &Client<KafkaClientContext>,
) -> Error {
    let detail = match client.fetch_watermarks(&tp.topic, tp.partition, OFFSETS_TIMEOUT) {
        Ok((first, next)) => format!("requested offset {requested}; Kafka has {first} to {next}"),
        Err(cause) => format!(
            "requested offset {requested}; the available offsets cannot be determined: {cause}"
        ),
    };
    Error::new(Kind::Recovery, format!("offset {requested} of {tp} is out of range"))
        .detail(detail)
        .hint(
            "retention deleted records before they were processed, or the topic was recreated. \
             `run --on-gap skip` continues at the first available offset and records the gap; \
             `millstream rebuild` uses the rows in history",
        )
}
