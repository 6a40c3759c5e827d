//! A pipeline that has recovered: what recovery hands over to the driver.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::Result;
use crate::commit::{Committer, PartitionJoin, SkippedOffsets};
use crate::pipeline::engine::Engine;
use crate::pipeline::engine::reference_tables::ReferenceTables;
use crate::pipeline::history::event_history::EventHistory;
use crate::pipeline::history::output_archiver::OutputArchiver;
use crate::pipeline::snapshot_lifecycle::SnapshotLifecycle;
use crate::source::Reader;
use crate::source::chunk::Chunk;
use crate::types::OutRecord;

/// The parts of a pipeline that outlive an epoch.
pub struct RunningPipeline {
    pub engine: Engine,
    pub tables: ReferenceTables,
    /// Versions of reference tables that the next epoch must record, by table.
    pub changed_tables: BTreeMap<String, String>,
    pub source: SourceReader,
    pub committer: Arc<Committer>,
    pub snapshots: SnapshotLifecycle,
    /// The history of source events.
    pub history: EventHistory,
    /// Archives the output topics; `None` without history.
    pub archiver: Option<OutputArchiver>,
    pub log: LogHead,
    /// A snapshot that must be recorded before the next epoch.
    pub required_snapshot: Option<RequiredSnapshot>,
}

/// The reader of source topics.
pub struct SourceReader {
    pub reader: Reader,
    /// Chunks that were read while recorded epochs were replayed, and that belong to later epochs.
    pub read_ahead: VecDeque<Chunk>,
}

/// The end of the log, and what full records repeat.
pub struct LogHead {
    /// The newest epoch that was sent to the log; 0: none.
    pub epoch: u64,
    /// The id of the Kafka cluster.
    pub cluster_id: String,
    /// The ids of the source topics.
    pub topic_ids: BTreeMap<String, String>,
    /// Whether no epoch was ever committed, so that the first record must be a full one.
    pub is_empty: bool,
}

/// A snapshot that the log must name before anything else, because recovery has changed the state:
/// state was dropped, a plan has changed, or offsets are skipped.
#[derive(Default)]
pub struct RequiredSnapshot {
    /// Tombstones for results whose state was dropped; they are committed with the snapshot.
    pub tombstones: Vec<OutRecord>,
    /// Offsets that are skipped; they are recorded with the snapshot.
    pub skipped: Vec<SkippedOffsets>,
}

impl RunningPipeline {
    /// Adds partitions to the engine and to the reader. A partition whose first offsets are missing
    /// from Kafka is read from the first offset that exists.
    ///
    /// # Errors
    /// A stream is unknown, or the reader or history failed.
    pub fn join(&mut self, joins: &[PartitionJoin]) -> Result<()> {
        let skipped = self.required_snapshot.as_ref().map_or(&[][..], |s| &s.skipped);
        let mut assigned = Vec::new();
        for join in joins {
            let join = &join_after_missing(join, skipped);
            self.engine.join(&join.stream, &join.partition, join.offset)?;
            if let Some((topic, id)) = join.topic_and_id() {
                self.history.set_topic_id(&topic, &id)?;
                self.log.topic_ids.insert(topic, id);
            }
            assigned.push((join.partition.clone(), join.offset));
        }
        if assigned.is_empty() { Ok(()) } else { self.source.reader.assign(&assigned) }
    }

    /// Loads the reference tables whose files have changed since the last epoch.
    ///
    /// # Errors
    /// A new version cannot be stored.
    pub async fn load_changed_tables(&mut self) -> Result<()> {
        for version in self.tables.load_changed().await? {
            self.engine.set_table(&version.name, version.rows);
            self.changed_tables.insert(version.name, version.hash);
        }
        Ok(())
    }
}

/// Moves the start of a partition that joined before missing offsets to the first offset after them.
fn join_after_missing(join: &PartitionJoin, missing: &[SkippedOffsets]) -> PartitionJoin {
    let missing = missing.iter().find(|missing| missing.partition == join.partition);
    let offset = missing.map_or(join.offset, |missing| missing.to.max(join.offset));
    PartitionJoin { offset, ..join.clone() }
}
