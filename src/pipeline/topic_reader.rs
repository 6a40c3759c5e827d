//! Topics read to their present end: for the account, and for what a topic says of a query's keys.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use crate::Result;
use crate::sink::{Publication, ResultSink};
use crate::source::chunk::Chunk;
use crate::source::{Cluster, Event, Isolation, KafkaConfig, Reader, blocking};
use crate::types::{OutRecord, TopicPartition};

/// Who reads, to the brokers.
const READER: &str = "millstream.look";

/// Reads a whole topic, read_committed, up to its present end.
///
/// # Errors
/// No broker answers, or `each` fails.
pub async fn read_topic(
    kafka: &KafkaConfig,
    topic: &Arc<str>,
    mut each: impl FnMut(&Chunk) -> Result<()>,
) -> Result<()> {
    let (name, config) = (topic.clone(), kafka.clone());
    let ranges = blocking(move || {
        let cluster = Cluster::connect(&config)?;
        let mut ranges = Vec::new();
        for partition in cluster.partitions(&name)? {
            let partition = TopicPartition { topic: name.clone(), partition };
            let range = cluster.watermarks(&partition)?;
            ranges.push((partition, range));
        }
        Ok(ranges)
    });
    for (partition, (low, high)) in ranges.await? {
        read_range(kafka, &partition, low, high, &mut each).await?;
    }
    Ok(())
}

/// Reads the offsets of a partition from `from` to before `until`, read_committed.
///
/// # Errors
/// As of [`read_topic`].
pub async fn read_range(
    kafka: &KafkaConfig,
    partition: &TopicPartition,
    from: i64,
    until: i64,
    each: &mut impl FnMut(&Chunk) -> Result<()>,
) -> Result<()> {
    if from >= until {
        return Ok(());
    }
    let mut reader = Reader::start(kafka, READER, Isolation::Committed)?;
    reader.assign(&[(partition.clone(), from)])?;
    loop {
        match reader.next().await? {
            Event::Chunk(chunk) => {
                let part = chunk.until(until);
                each(&part)?;
                if chunk.next_offset >= until {
                    return Ok(());
                }
            }
            Event::End { position, .. } if position >= until => return Ok(()),
            Event::End { .. } => {}
        }
    }
}

/// What tells whether a row of a window may still change.
#[derive(Deserialize)]
struct Said {
    is_final: bool,
}

/// Tombstones for the keys of a results topic that hold only as long as the query's state does:
/// all rows of a view, the early ones of windows.
///
/// # Errors
/// As of [`read_topic`].
pub async fn retractions(kafka: &KafkaConfig, sink: &ResultSink) -> Result<Vec<OutRecord>> {
    let holds = |value: &[u8]| match sink.publication {
        Publication::Append => true,
        Publication::Upsert => false,
        // What is no result of ours is left alone.
        Publication::Revised => serde_json::from_slice(value).map_or(true, |s: Said| s.is_final),
    };
    if sink.publication == Publication::Append {
        return Ok(Vec::new());
    }
    let mut said: HashMap<(i32, Bytes), bool> = HashMap::new();
    read_topic(kafka, &sink.topic, |chunk| {
        for record in &chunk.records {
            let Some(key) = chunk.key(record) else { continue };
            let key = (chunk.partition, Bytes::copy_from_slice(key));
            match chunk.value(record) {
                Some(value) => drop(said.insert(key, holds(value))),
                None => drop(said.remove(&key)),
            }
        }
        Ok(())
    })
    .await?;
    let gone = said.into_iter().filter(|(_, holds)| !holds);
    Ok(gone
        .map(|((partition, key), _)| OutRecord {
            topic: sink.topic.clone(),
            partition: Some(partition),
            key: Some(key),
            value: None,
            headers: Vec::new(),
            timestamp_ms: None,
        })
        .collect())
}
