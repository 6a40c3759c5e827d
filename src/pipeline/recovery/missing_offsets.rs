//! Offsets that a start needs and that Kafka no longer has.
//!
//! Retention, or somebody with DeleteRecords, removed what was not processed yet, or what must run
//! again after an unclean stop. To stop is the default. Who wants to go on has it recorded: the
//! gap stands in a progress record that names a snapshot taken after it, and in the account of its
//! partition ever after, so that no later start meets it again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::commit::{PartitionJoin, RecoveredLog, SkippedOffsets, SnapshotRef};
use crate::pipeline::engine::Engine;
use crate::source::{Cluster, blocking};
use crate::state::Snapshot;
use crate::types::{SourcePosition, TopicPartition};
use crate::{Error, Kind, Result};

/// The first offset that is needed of every partition: where the snapshot or the log left it, and
/// where one joined since.
pub fn wanted(
    recovered: &RecoveredLog,
    loaded: Option<&(SnapshotRef, Snapshot)>,
    engine: &Engine,
    runs_again: bool,
) -> Result<BTreeMap<TopicPartition, i64>> {
    let mut wanted = BTreeMap::new();
    if runs_again {
        if let Some((_, saved)) = loaded {
            wanted = saved_offsets(saved);
        }
        let epochs = recovered.after(loaded.map(|(reference, _)| reference))?;
        for join in epochs.iter().flat_map(|epoch| &epoch.joined) {
            wanted.entry(join.partition.clone()).or_insert(join.offset);
        }
    } else {
        let positions = recovered.positions.iter();
        wanted.extend(positions.map(|(partition, at)| (partition.clone(), at.offset)));
    }
    let is_read = |partition: &TopicPartition| {
        engine.streams().values().any(|s| s.plan().stream.topics.matches(&partition.topic))
    };
    wanted.retain(|partition, _| is_read(partition));
    Ok(wanted)
}

/// Where a snapshot left every partition.
pub fn saved_offsets(saved: &Snapshot) -> BTreeMap<TopicPartition, i64> {
    let streams = saved.manifest.streams.values();
    let positions = streams.flat_map(|stream| &stream.positions);
    positions.map(|(partition, at)| (partition.clone(), at.offset)).collect()
}

/// The gaps: what is wanted and lies below what the brokers have.
pub async fn find(
    cluster: &Arc<Cluster>,
    wanted: BTreeMap<TopicPartition, i64>,
) -> Result<Vec<SkippedOffsets>> {
    let cluster = cluster.clone();
    blocking(move || {
        let mut gaps = Vec::new();
        for (partition, from) in wanted {
            let (to, _) = cluster.watermarks(&partition)?;
            if from < to {
                gaps.push(SkippedOffsets { partition, from, to });
            }
        }
        Ok(gaps)
    })
    .await
}

/// Why a pipeline does not begin. `recorded` is how far the log says that it came.
pub fn error(gap: &SkippedOffsets, recorded: Option<&SourcePosition>, customer: &str) -> Error {
    let SkippedOffsets { partition, from, to } = gap;
    let message = format!(
        "{partition} has no offset {from} any more: {} offsets that are needed are gone",
        to - from
    );
    let again = match recorded {
        Some(at) if at.offset > *from => format!(
            "; recorded epochs, up to offset {}, must run again after the last unclean stop",
            at.offset
        ),
        _ => String::new(),
    };
    Error::new(Kind::Recovery, message)
        .detail(format!("wanted offset {from}; Kafka begins at {to}{again}"))
        .hint(hint(customer))
}

/// What can be done about a gap.
pub fn hint(customer: &str) -> String {
    format!(
        "`millstream rebuild {customer}` makes state and results again from what Kafka and history \
         have; `run --on-gap skip` goes on at the first offset that there is, and records what was \
         passed over. Lengthen the topic's retention.ms"
    )
}

/// A partition that joined below a gap is read from behind it.
pub fn begin_after(join: &PartitionJoin, gaps: &[SkippedOffsets]) -> PartitionJoin {
    let gap = gaps.iter().find(|gap| gap.partition == join.partition);
    PartitionJoin { offset: gap.map_or(join.offset, |gap| gap.to.max(join.offset)), ..join.clone() }
}
