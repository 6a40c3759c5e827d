//! Reads topics up to their present end: for the audit, for a rebuild, and for the tombstones of
//! queries whose state is dropped.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use crate::Result;
use crate::sink::{Publication, ResultSink};
use crate::source::chunk::Chunk;
use crate::source::{Cluster, Event, Isolation, KafkaConfig, Reader, blocking};
use crate::types::{OutRecord, TopicPartition};

/// The consumer group of these reads. It commits no offsets.
const GROUP: &str = "millstream.look";

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
    let mut reader = Reader::start(kafka, GROUP, Isolation::Committed)?;
    reader.assign(&[(partition.clone(), from)])?;
    loop {
        match reader.next().await? {
            Event::Chunk(chunk) => {
                let in_range = chunk.slice_until(until);
                each(&in_range)?;
                if chunk.next_offset >= until {
                    return Ok(());
                }
            }
            Event::End { position, .. } if position >= until => return Ok(()),
            Event::End { .. } => {}
        }
    }
}

/// The field of a result that says whether it may still change.
#[derive(Deserialize)]
struct RevisableRow {
    is_final: bool,
}

/// Returns tombstones for the keys of a results topic that are valid only together with the
/// query's state: all keys of a view, and the early results of windows.
///
/// # Errors
/// As of [`read_topic`].
pub async fn read_tombstones(kafka: &KafkaConfig, sink: &ResultSink) -> Result<Vec<OutRecord>> {
    let is_final = |value: &[u8]| match sink.publication {
        Publication::Append => true,
        Publication::Upsert => false,
        // A value that is not one of our results counts as final, so it is not deleted.
        Publication::Revised => {
            serde_json::from_slice(value).map_or(true, |row: RevisableRow| row.is_final)
        }
    };
    if sink.publication == Publication::Append {
        return Ok(Vec::new());
    }
    let mut final_by_key: HashMap<(i32, Bytes), bool> = HashMap::new();
    read_topic(kafka, &sink.topic, |chunk| {
        for record in &chunk.records {
            let Some(key) = chunk.key(record) else { continue };
            let key = (chunk.partition, Bytes::copy_from_slice(key));
            match chunk.value(record) {
                Some(value) => drop(final_by_key.insert(key, is_final(value))),
                None => drop(final_by_key.remove(&key)),
            }
        }
        Ok(())
    })
    .await?;
    let revisable = final_by_key.into_iter().filter(|(_, is_final)| !is_final);
    Ok(revisable
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
