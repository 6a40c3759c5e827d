//! The load of the whole-job benchmarks: one day of events in a topic, its hourly windows, and the
//! expected rows.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::job::config;

pub const PARTITIONS: i32 = 4;
pub const EVENT_BYTES: usize = 84;
pub const KEYS: u64 = 1_000;
pub const ROOMS: [&str; 8] = [
    "living room west",
    "living room east",
    "kitchen upstairs",
    "kitchen basement",
    "bathroom level 1",
    "bathroom level 2",
    "hall by the door",
    "hall by the lift",
];

pub const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM positions (
  part_id BIGINT NOT NULL,
  ts_date VARCHAR NOT NULL,
  ts_time VARCHAR NOT NULL,
  room VARCHAR NOT NULL,
  event_time TIMESTAMP AS to_timestamp(ts_date || ' ' || ts_time, '%Y%m%d %H:%M:%S'),
  WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND
) WITH (topics = '{topic}');
";

pub const QUERY: &str =
    "SELECT window_start, window_end, part_id, count(*) AS events, count(DISTINCT room) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)
GROUP BY window_start, window_end, part_id;
";

/// Number of events of a run: EVENTS, or ten million.
pub fn events() -> u64 {
    std::env::var("EVENTS").map_or(10_000_000, |number| number.parse().unwrap())
}

/// One event: its second of the day, its person and the number of its room.
pub struct Event {
    pub second: u64,
    pub key: u64,
    pub room: usize,
}

/// The events of one day by `keys` keys, in order; every call returns the same events.
pub fn day(events: u64, keys: u64) -> impl Iterator<Item = Event> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..events).map(move |number| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Event {
            second: number * 86_400 / events,
            key: keys + state % keys,
            room: usize::try_from(state >> 32).unwrap() % ROOMS.len(),
        }
    })
}

/// How events are distributed to partitions.
#[derive(Clone, Copy, PartialEq)]
pub enum Distribution {
    /// To each partition in turn, without a key.
    #[allow(dead_code, reason = "each benchmark uses one variant")]
    InTurn,
    /// By its `part_id`, which is also the record's key.
    #[allow(dead_code, reason = "each benchmark uses one variant")]
    ByKey,
}

/// Writes one day of events by `keys` keys, compressed by `codec` ("none", "lz4", ..).
pub fn produce(
    brokers: &str,
    topic: &str,
    events: u64,
    keys: u64,
    distribution: Distribution,
    codec: &str,
) {
    let producer: ThreadedProducer<DefaultProducerContext> = config(brokers)
        .set("linger.ms", "20")
        .set("batch.size", "262144")
        .set("compression.type", codec)
        .set("queue.buffering.max.messages", "500000")
        .create()
        .unwrap();
    let mut text = String::with_capacity(EVENT_BYTES);
    let partitions = u64::try_from(PARTITIONS).unwrap();
    for (number, Event { second, key, room }) in (0..).zip(day(events, keys)) {
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let room = ROOMS[room];
        text.clear();
        write!(
            text,
            r#"{{"part_id":{key},"ts_date":"20240501","ts_time":"{hour:02}:{minute:02}:{second:02}","room":"{room}"}}"#
        )
        .unwrap();
        assert!(keys != KEYS || text.len() == EVENT_BYTES);
        let name = key.to_string();
        let turn = if distribution == Distribution::ByKey { key } else { number };
        let partition = i32::try_from(turn % partitions).unwrap();
        let mut record = BaseRecord::to(topic).partition(partition).payload(text.as_str());
        if distribution == Distribution::ByKey {
            record = record.key(name.as_str());
        }
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            std::thread::sleep(Duration::from_millis(2));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(300)).unwrap();
}

/// Polls every message with librdkafka and drops it. With librdkafka's default settings, each partition
/// would pause for a second whenever the queue is full.
pub fn consume(brokers: &str, topic: &str, events: u64) {
    let consumer: BaseConsumer = config(brokers)
        .set("group.id", "whole_job")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("queued.max.messages.kbytes", "131072")
        .set("queued.min.messages", "1000000")
        .set("fetch.queue.backoff.ms", "5")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut seen, mut bytes) = (0, 0);
    while seen < events {
        if let Some(message) = consumer.poll(Duration::from_secs(30)) {
            bytes += message.unwrap().payload().unwrap().len();
            seen += 1;
        }
    }
    assert_eq!(u64::try_from(bytes).unwrap(), events * EVENT_BYTES as u64);
}

/// The command that processes the topic of the project in its working directory and exits.
pub fn millstream(brokers: &str, history: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command
        .args(["run", "--brokers", brokers, "--create-topics", "--drain"])
        .args(["--history", history, "--log", "warn"])
        .stdin(Stdio::null());
    command
}

/// The content of the hourly windows, by hour and `part_id`: number of events and of distinct rooms.
pub type Windows = HashMap<(u64, u64), (u64, Option<u64>)>;

/// The expected windows of the day.
pub fn expected(events: u64) -> Windows {
    let mut windows: HashMap<(u64, u64), (u64, [bool; ROOMS.len()])> = HashMap::new();
    for Event { second, key, room } in day(events, KEYS) {
        let (count, rooms) = windows.entry((second / 3_600, key)).or_default();
        *count += 1;
        rooms[room] = true;
    }
    let distinct = |rooms: [bool; ROOMS.len()]| rooms.into_iter().filter(|&seen| seen).count();
    windows
        .into_iter()
        .map(|(at, (count, rooms))| (at, (count, u64::try_from(distinct(rooms)).ok())))
        .collect()
}

/// Reads the windows from a results topic; the last of several rows of a window counts.
pub fn results(brokers: &str, topic: &str) -> Windows {
    let consumer: BaseConsumer = config(brokers)
        .set("group.id", "whole_job")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut windows = Windows::new();
    loop {
        match consumer.poll(Duration::from_secs(30)) {
            Some(Ok(message)) => {
                let row: serde_json::Value =
                    serde_json::from_slice(message.payload().unwrap()).unwrap();
                // The hour of 2024-05-01T07:00:00; engines separate date and time differently.
                let hour = &row["window_start"].as_str().unwrap()[11..13];
                let at = (hour.parse().unwrap(), row["part_id"].as_u64().unwrap());
                windows.insert(at, (row["events"].as_u64().unwrap(), row["rooms"].as_u64()));
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return windows,
            other => panic!("{topic}: {other:?}"),
        }
    }
}
