//! Reading a customer's log topic: its progress records, oldest first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::source::{Cluster, Event, Fetcher, Isolation, KafkaConfig};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// How long reading may stand still before it is an error: longer than a transaction lives.
const STANDSTILL: Duration = Duration::from_secs(90);
/// How long to sleep in librdkafka before looking whether to stop.
const POLL_WAIT: Duration = Duration::from_millis(100);

/// The topic of a customer's progress records. It has one partition.
pub fn log_topic(customer: &str) -> String {
    format!("millstream.{customer}.log")
}

/// The transactional id, and the group under which source offsets are told to lag tools.
pub(super) fn transactional_id(customer: &str) -> String {
    format!("millstream.{customer}")
}

/// The progress records of all committed epochs that the log still has, oldest first. It fences
/// nobody, so it may be called while the customer's pipeline runs.
///
/// # Errors
/// No broker answers, the topic is missing, or a transaction in it stays open.
pub async fn read_log(kafka: &KafkaConfig, customer: &str) -> Result<Vec<Bytes>> {
    read_until(kafka, customer, Until::HighWatermark).await
}

/// As [`read_log`], up to the first transaction that is open: it does not wait for one that a
/// killed process left behind, which only its successor or a minute's time can end.
///
/// # Errors
/// No broker answers, or the topic is missing.
pub async fn read_stable_log(kafka: &KafkaConfig, customer: &str) -> Result<Vec<Bytes>> {
    read_until(kafka, customer, Until::FirstEnd).await
}

async fn read_until(kafka: &KafkaConfig, customer: &str, until: Until) -> Result<Vec<Bytes>> {
    let (kafka, customer) = (kafka.clone(), customer.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        let never = AtomicBool::new(false);
        read(&kafka, &customer, 0, until, &never).map(|part| part.records)
    });
    reading
        .await
        .map_err(|error| Error::internal("reading the log was interrupted").because(error))?
}

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// To the first end: everything before the first open transaction.
    FirstEnd,
    /// To the high watermark at the beginning. The first end is no proof: markers lag behind
    /// the answer to a commit.
    HighWatermark,
}

/// A part of the log.
#[derive(Debug)]
pub(super) struct Part {
    /// Progress records, oldest first.
    pub(super) records: Vec<Bytes>,
    /// The position after them.
    pub(super) position: i64,
}

/// Reads from `from` (or from what the log still has) on. Blocks.
pub(super) fn read(
    kafka: &KafkaConfig,
    customer: &str,
    from: i64,
    until: Until,
    stop: &AtomicBool,
) -> Result<Part> {
    let tp = TopicPartition::new(log_topic(customer), 0);
    let cluster = Cluster::connect(kafka)?;
    match cluster.partitions(&tp.topic)?.len() {
        1 => {}
        0 => {
            return Err(Error::config(format!("topic {} does not exist", tp.topic)).hint(
                "run with --create-topics, or create it with one partition and retention.ms=-1",
            ));
        }
        count => {
            return Err(Error::config(format!(
                "topic {} has {count} partitions, not one",
                tp.topic
            )));
        }
    }
    let (low, high) = cluster.watermarks(&tp)?;
    let mut part = Part { records: Vec::new(), position: from.max(low) };
    if part.position >= high {
        return Ok(part);
    }
    let mut fetcher = Fetcher::new(kafka, &transactional_id(customer), Isolation::Committed)?;
    fetcher.assign(&[(tp.clone(), part.position)])?;
    let mut events = VecDeque::new();
    let mut moved = Instant::now();
    while !stop.load(Ordering::Acquire) {
        fetcher.poll(POLL_WAIT, &mut events)?;
        for event in events.drain(..) {
            moved = Instant::now();
            match event {
                Event::Chunk(chunk) => {
                    let values = chunk.records.iter().filter_map(|record| record.value.as_ref());
                    let values = values
                        .map(|range| chunk.bytes.slice(range.start as usize..range.end as usize));
                    part.records.extend(values);
                    part.position = chunk.next_offset;
                }
                Event::End { position, .. } => {
                    part.position = position;
                    if until == Until::FirstEnd {
                        return Ok(part);
                    }
                }
            }
        }
        if part.position >= high {
            return Ok(part);
        }
        if moved.elapsed() > STANDSTILL {
            return Err(Error::new(Kind::Kafka, format!("{tp} cannot be read to its end"))
                .detail(format!("at {} of {high} for {} s", part.position, STANDSTILL.as_secs()))
                .hint(
                    "a transaction in it stays open: does another process run for this customer? \
                     If none does, `kafka-transactions.sh find-hanging` names it",
                ));
        }
    }
    Err(Error::new(Kind::Kafka, format!("reading {tp} was stopped")))
}

/// The `epoch` field of a progress record.
pub(super) fn epoch_of(progress: &[u8]) -> Result<u64> {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(progress).ok();
    let epoch =
        parsed.as_ref().and_then(|value| value.get("epoch")).and_then(serde_json::Value::as_u64);
    epoch.ok_or_else(|| {
        Error::new(Kind::Recovery, "a progress record of the log has no epoch")
            .detail(String::from_utf8_lossy(&progress[..progress.len().min(200)]).into_owned())
            .hint("only Millstream may write to this topic")
    })
}
