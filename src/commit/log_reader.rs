//! Reads the progress records of a customer's log topic, oldest first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::source::{Cluster, Event, Fetcher, Isolation, KafkaConfig};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// How long reading may make no progress before it fails; longer than a transaction's timeout.
const STALL_TIMEOUT: Duration = Duration::from_secs(90);
/// How long one poll may block before `stop` is checked.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// The topic of a customer's progress records. It has one partition.
pub fn log_topic(customer: &str) -> String {
    format!("millstream.{customer}.log")
}

/// The transactional id of a customer, and the consumer group under which source offsets are
/// committed for lag monitoring.
pub(super) fn transactional_id(customer: &str) -> String {
    format!("millstream.{customer}")
}

/// Reads the progress records of all committed epochs that the log still has, oldest first. It does
/// not fence, so it may be called while the customer's pipeline runs.
///
/// # Errors
/// The brokers are unreachable, the topic is missing, or a transaction in it stays open.
pub async fn read_log(kafka: &KafkaConfig, customer: &str) -> Result<Vec<Bytes>> {
    read_until(kafka, customer, ReadUntil::HighWatermark).await
}

/// Reads like [`read_log`], but only up to the last stable offset. It does not wait for an open
/// transaction of a killed process, which only the next process or the transaction timeout ends.
///
/// # Errors
/// The brokers are unreachable, or the topic is missing.
pub async fn read_stable_log(kafka: &KafkaConfig, customer: &str) -> Result<Vec<Bytes>> {
    read_until(kafka, customer, ReadUntil::LastStableOffset).await
}

async fn read_until(kafka: &KafkaConfig, customer: &str, until: ReadUntil) -> Result<Vec<Bytes>> {
    let (kafka, customer) = (kafka.clone(), customer.to_owned());
    let task = tokio::task::spawn_blocking(move || {
        let stop = AtomicBool::new(false);
        read_segment(&kafka, &customer, 0, until, &stop).map(|segment| segment.records)
    });
    task.await
        .map_err(|error| Error::internal("reading the log topic was interrupted").because(error))?
}

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadUntil {
    /// Up to the last stable offset: everything before the first open transaction.
    LastStableOffset,
    /// Up to the high watermark at the start of the read. The last stable offset does not prove that
    /// an epoch is absent: Kafka writes markers after it has answered a commit.
    HighWatermark,
}

/// A part of the log.
#[derive(Debug)]
pub(super) struct LogSegment {
    /// Progress records, oldest first.
    pub(super) records: Vec<Bytes>,
    /// The offset after them.
    pub(super) position: i64,
}

/// Reads from the offset `from`, or from the first offset that the log still has. Blocks.
pub(super) fn read_segment(
    kafka: &KafkaConfig,
    customer: &str,
    from: i64,
    until: ReadUntil,
    stop: &AtomicBool,
) -> Result<LogSegment> {
    let tp = TopicPartition::new(log_topic(customer), 0);
    let cluster = Cluster::connect(kafka)?;
    check_log_topic(&cluster, &tp.topic)?;
    let (low, high) = cluster.watermarks(&tp)?;
    let mut segment = LogSegment { records: Vec::new(), position: from.max(low) };
    if segment.position >= high {
        return Ok(segment);
    }
    let mut fetcher = Fetcher::new(kafka, &transactional_id(customer), Isolation::Committed)?;
    fetcher.assign(&[(tp.clone(), segment.position)])?;
    let mut events = VecDeque::new();
    let mut last_event = Instant::now();
    while !stop.load(Ordering::Acquire) {
        fetcher.poll(POLL_TIMEOUT, &mut events)?;
        for event in events.drain(..) {
            last_event = Instant::now();
            match event {
                Event::Chunk(chunk) => {
                    let values = chunk.records.iter().filter_map(|record| record.value.as_ref());
                    let values = values
                        .map(|range| chunk.bytes.slice(range.start as usize..range.end as usize));
                    segment.records.extend(values);
                    segment.position = chunk.next_offset;
                }
                Event::End { position, .. } => {
                    segment.position = position;
                    if until == ReadUntil::LastStableOffset {
                        return Ok(segment);
                    }
                }
            }
        }
        if segment.position >= high {
            return Ok(segment);
        }
        if last_event.elapsed() > STALL_TIMEOUT {
            return Err(Error::new(Kind::Kafka, format!("cannot read {tp} to its end"))
                .detail(format!("no progress at offset {} of {high} for {} s", segment.position, STALL_TIMEOUT.as_secs()))
                .hint(
                    "a transaction in it stays open: check whether another process runs this customer; \
                     if none does, find the transaction with `kafka-transactions.sh find-hanging`",
                ));
        }
    }
    Err(Error::new(Kind::Kafka, format!("reading {tp} was stopped")))
}

/// Checks that the log topic exists and has one partition.
fn check_log_topic(cluster: &Cluster, topic: &str) -> Result<()> {
    match cluster.partitions(topic)?.len() {
        1 => Ok(()),
        0 => Err(Error::config(format!("topic {topic} does not exist")).hint(
            "create the topic with one partition and retention.ms=-1, or run with --create-topics",
        )),
        count => Err(Error::config(format!(
            "topic {topic} has {count} partitions, but needs exactly one"
        ))),
    }
}

/// Returns the `epoch` field of a progress record.
pub(super) fn epoch_of(progress: &[u8]) -> Result<u64> {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(progress).ok();
    let epoch =
        parsed.as_ref().and_then(|value| value.get("epoch")).and_then(serde_json::Value::as_u64);
    epoch.ok_or_else(|| {
        Error::new(Kind::Recovery, "a progress record of the log topic has no epoch")
            .detail(String::from_utf8_lossy(&progress[..progress.len().min(200)]).into_owned())
            .hint("only Millstream may write to the log topic")
    })
}
