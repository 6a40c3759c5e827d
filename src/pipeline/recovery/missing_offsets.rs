//! Offsets that a start needs and that are missing from Kafka.
//!
//! Retention or a call of DeleteRecords has removed records that are not processed yet, or that
//! must be processed again after an unclean stop. By default the start fails. With `--on-gap skip`
//! it continues after the missing offsets. They are recorded in a progress record, together with a
//! snapshot taken after them, and counted in the position of their partition, so that no later
//! start needs them again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::commit::{RecoveredLog, SkippedOffsets, SnapshotRef};
use crate::pipeline::engine::Engine;
use crate::source::{Cluster, blocking};
use crate::state::Snapshot;
use crate::types::{SourcePosition, TopicPartition};
use crate::{Error, Kind, Result};

/// The first offset of each partition that the start needs: where the snapshot ends (with
/// `replays`) or where the log ends, and where a partition joined since then.
///
/// # Errors
/// The log lacks epochs after the snapshot.
pub fn required(
    recovered: &RecoveredLog,
    snapshot: Option<&(SnapshotRef, Snapshot)>,
    engine: &Engine,
    replays: bool,
) -> Result<BTreeMap<TopicPartition, i64>> {
    let mut required = BTreeMap::new();
    if replays {
        if let Some((_, saved)) = snapshot {
            required = snapshot_offsets(saved);
        }
        let epochs = recovered.after(snapshot.map(|(reference, _)| reference))?;
        for join in epochs.iter().flat_map(|epoch| &epoch.joined) {
            required.entry(join.partition.clone()).or_insert(join.offset);
        }
    } else {
        let positions = recovered.positions.iter();
        required.extend(positions.map(|(partition, at)| (partition.clone(), at.offset)));
    }
    let is_read = |partition: &TopicPartition| {
        engine.streams().values().any(|s| s.plan().stream.topics.matches(&partition.topic))
    };
    required.retain(|partition, _| is_read(partition));
    Ok(required)
}

/// The next offset of each partition in a snapshot.
pub fn snapshot_offsets(saved: &Snapshot) -> BTreeMap<TopicPartition, i64> {
    let streams = saved.manifest.streams.values();
    let positions = streams.flat_map(|stream| &stream.positions);
    positions.map(|(partition, at)| (partition.clone(), at.offset)).collect()
}

/// Finds the required offsets that are before the first offset of the brokers.
///
/// # Errors
/// No broker answers.
pub async fn find(
    cluster: &Arc<Cluster>,
    required: BTreeMap<TopicPartition, i64>,
) -> Result<Vec<SkippedOffsets>> {
    let cluster = cluster.clone();
    blocking(move || {
        let mut missing = Vec::new();
        for (partition, from) in required {
            let (to, _) = cluster.watermarks(&partition)?;
            if from < to {
                missing.push(SkippedOffsets { partition, from, to });
            }
        }
        Ok(missing)
    })
    .await
}

/// The error of a start that needs missing offsets. `recorded`: the partition's position in the
/// log.
pub fn error(missing: &SkippedOffsets, recorded: Option<&SourcePosition>, customer: &str) -> Error {
    let SkippedOffsets { partition, from, to } = missing;
    let message = format!(
        "{partition} no longer has offset {from}: {} offsets that are needed are missing from Kafka",
        to - from
    );
    let replayed = match recorded {
        Some(at) if at.offset > *from => format!(
            "; recorded epochs up to offset {} must be replayed after the last unclean stop",
            at.offset
        ),
        _ => String::new(),
    };
    Error::new(Kind::Recovery, message)
        .detail(format!("required offset: {from}; first offset in Kafka: {to}{replayed}"))
        .hint(format!(
            "`millstream rebuild {customer}` rebuilds state and results from what Kafka and \
             history have; `run --on-gap skip` continues at the first offset that exists and \
             records the offsets that it skipped. Increase the topic's retention.ms"
        ))
}
