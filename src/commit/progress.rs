//! The progress record: what an epoch was, so that it can be run again.
//!
//! One record an epoch goes into the epoch's own transaction, on the customer's single-partition
//! log topic. It is a change to the record before; a *full* record, written with each snapshot,
//! stands for itself. Everything that the wall clock decided in an epoch is in its record, so
//! running the recorded epochs after a snapshot again gives the state that was.
//!
//! A full record names the two newest snapshots. What the log holds before the epochs that follow
//! the older one is needed no more and is cut off.
//!
//! Invariants, asserted when a log is read: epochs count up by one; a record after a full one
//! moves positions only forward; nothing follows a drained record but a reset.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::commit::process::Process;
use crate::time::Micros;
use crate::types::{SourcePosition, TopicPartition};
use crate::watermark::ClockDecision;
use crate::{Error, Kind, Result};

/// The version of the record's format that this code writes.
pub const PROGRESS_VERSION: u32 = 1;

/// One epoch, as the log keeps it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Format, see [`PROGRESS_VERSION`].
    pub version: u32,
    /// The epoch's number, from 1.
    pub epoch: u64,
    /// Whether `positions` names every partition and not only those that moved.
    #[serde(default, skip_serializing_if = "is_false")]
    pub full: bool,
    /// The wall clock at the epoch's start: the value of `now()` in it.
    pub now: Micros,
    /// Partitions that joined at the epoch's start, with the offset at which each began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<PartitionJoin>,
    /// Where each partition that moved stood at the epoch's end.
    #[serde(default)]
    pub positions: BTreeMap<TopicPartition, SourcePosition>,
    /// Watermarks that the clock moved at the epoch's end, by stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub decisions: BTreeMap<String, Vec<ClockDecision>>,
    /// Queries whose open windows were evaluated early at the epoch's end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emitted: Vec<String>,
    /// Versions (content hashes) of reference tables that took effect at the epoch's start.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, String>,
    /// The cluster that the offsets belong to; with full records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The ids of all topics that are read; with full records.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, String>,
    /// Fingerprints of the streams' and queries' plans; with full records.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: BTreeMap<String, String>,
    /// The newest verified snapshot: the state at the end of the epoch that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRef>,
    /// The one before it, for a day on which the newest turns out to be damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<SnapshotRef>,
    /// Nothing happened since `snapshot`: the pipeline stopped (or began anew) with its state.
    #[serde(default, skip_serializing_if = "is_false")]
    pub clean: bool,
    /// Offsets that were needed and that Kafka no longer had: passed over, as `--on-gap skip` wants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedOffsets>,
    /// Every window was closed at the epoch's end, and the pipeline is finished.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drained: bool,
    /// Who wrote it; `None` in records of before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// With `--check-replays`: digests of the parts of each query's state at the epoch's end.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, BTreeMap<String, String>>,
}

/// A partition that joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionJoin {
    /// The stream that it belongs to.
    pub stream: String,
    /// The partition.
    pub partition: TopicPartition,
    /// The first offset that was read.
    pub offset: i64,
    /// The id that Kafka gave its topic; `None`: a broker without ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
}

/// Offsets of a partition that Kafka no longer had: from `from` to before `to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedOffsets {
    /// The partition.
    pub partition: TopicPartition,
    /// The first offset that was wanted.
    pub from: i64,
    /// The first offset that there is.
    pub to: i64,
}

/// A snapshot in the object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The epoch at whose end it was taken.
    pub epoch: u64,
    /// Its folder, relative to the customer's snapshot folder.
    pub path: String,
    /// An offset of the log: the epochs after the snapshot's are recorded above it.
    #[serde(default)]
    pub log_offset: i64,
}

impl PartitionJoin {
    /// Its topic and that topic's id.
    pub fn named_topic(&self) -> Option<(String, String)> {
        Some((self.partition.topic.to_string(), self.topic_id.clone()?))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Progress {
    /// The record's bytes.
    pub fn encode(&self) -> Result<Bytes> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::internal("a progress record cannot be written").because(e))?;
        Ok(bytes.into())
    }

    /// The ids of topics that it tells.
    pub fn topic_ids(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let named = self.joined.iter().filter_map(PartitionJoin::named_topic);
        self.topics.clone().into_iter().chain(named)
    }

    /// A record from its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| {
            Error::new(Kind::Recovery, "a record of the internal log cannot be read")
                .because(e)
                .hint("the topic millstream.<customer>.log must hold only what Millstream wrote")
        })?;
        if record.version > PROGRESS_VERSION {
            let message = format!(
                "the internal log was written by a newer Millstream (format {}, this one knows {PROGRESS_VERSION})",
                record.version
            );
            return Err(Error::new(Kind::Recovery, message).hint("run the newer version"));
        }
        Ok(record)
    }
}

/// What the log says: where to begin, and which epochs to run again.
#[derive(Debug, Clone, Default)]
pub struct RecoveredLog {
    /// The state to load: the newest full record's snapshot; `None` at the very beginning.
    pub snapshot: Option<SnapshotRef>,
    /// The snapshot before it, to load where the newest is damaged.
    pub older: Option<SnapshotRef>,
    /// The newest full record, if any.
    pub base: Option<Progress>,
    /// All records that the log still has, the oldest first.
    pub records: Vec<Progress>,
    /// The newest record.
    pub last: Option<Progress>,
    /// Where every partition stands after the newest record.
    pub positions: BTreeMap<TopicPartition, SourcePosition>,
    /// The ids of the topics that they are partitions of, where the broker has ids.
    pub topics: BTreeMap<String, String>,
}

impl RecoveredLog {
    /// Reads a log, oldest record first. What it lacks is told by [`RecoveredLog::verify`].
    pub fn from_log(records: &[Bytes]) -> Result<Self> {
        let records =
            records.iter().map(|bytes| Progress::decode(bytes)).collect::<Result<Vec<_>>>()?;
        let last = records.last().cloned();
        let base = records.iter().rev().find(|r| r.full).cloned();
        let snapshot = base.as_ref().and_then(|b| b.snapshot.clone());
        let older = base.as_ref().and_then(|b| b.older.clone());
        let moves = records.iter().flat_map(|r| r.positions.clone());
        let positions = moves.collect();
        let mut topics = BTreeMap::new();
        for record in &records {
            topics.extend(record.topic_ids());
        }
        Ok(Self { snapshot, older, base, records, last, positions, topics })
    }

    /// Checks that every epoch after the newest snapshot is there.
    ///
    /// # Errors
    /// Records are missing.
    pub fn verify(&self) -> Result<()> {
        for pair in self.records.windows(2) {
            if pair[0].epoch.checked_add(1) != Some(pair[1].epoch) {
                let message = format!(
                    "the internal log jumps from epoch {} to {}",
                    pair[0].epoch, pair[1].epoch
                );
                return Err(Error::new(Kind::Recovery, message)
                    .hint("records of the log topic are missing; start over with --reset"));
            }
        }
        self.after(self.snapshot.as_ref()).map(drop)
    }

    /// The epochs to run again after `snapshot` (`None`: from the very beginning).
    ///
    /// # Errors
    /// The log has been cut above them.
    pub fn after(&self, snapshot: Option<&SnapshotRef>) -> Result<&[Progress]> {
        let from = snapshot.map_or(0, |s| s.epoch);
        let oldest = self.records.first().map_or(1, |r| r.epoch);
        if oldest > from.saturating_add(1) {
            let message = format!(
                "the internal log begins at epoch {oldest}, after epoch {from} of the snapshot"
            );
            return Err(Error::new(Kind::Recovery, message)
                .hint("records of the log topic are missing; start over with --reset"));
        }
        Ok(&self.records[self.records.partition_point(|r| r.epoch <= from)..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64, snapshot: Option<u64>) -> Bytes {
        let snapshot =
            snapshot.map(|epoch| SnapshotRef { epoch, path: format!("{epoch}"), log_offset: 0 });
        let full = snapshot.is_some();
        Progress { version: PROGRESS_VERSION, epoch, full, snapshot, ..Default::default() }
            .encode()
            .unwrap()
    }

    #[test]
    fn epochs_after_the_newest_snapshot_run_again() {
        let log = [record(1, None), record(2, None), record(3, Some(2)), record(4, None)];
        let recovered = RecoveredLog::from_log(&log).unwrap();
        assert_eq!(recovered.snapshot.as_ref().unwrap().epoch, 2);
        let again = recovered.after(recovered.snapshot.as_ref()).unwrap();
        assert_eq!(again.iter().map(|r| r.epoch).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(recovered.after(None).unwrap().len(), 4);
        assert_eq!(recovered.last.unwrap().epoch, 4);
    }

    #[test]
    fn a_hole_in_the_log_is_an_error() {
        let read = |log: &[Bytes]| RecoveredLog::from_log(log).unwrap();
        assert!(read(&[record(1, None), record(3, None)]).verify().is_err());
        assert!(read(&[record(2, None)]).verify().is_err());
        let cut = read(&[record(5, Some(4))]);
        cut.verify().unwrap();
        assert!(cut.after(None).is_err(), "an older snapshot is of no use without its epochs");
    }

    #[test]
    fn a_record_of_before_processes_were_named_is_read() {
        let old = br#"{"version":1,"epoch":7,"now":5,"positions":{}}"#;
        let record = Progress::decode(old).unwrap();
        assert_eq!((record.epoch, record.process, record.digests.len()), (7, None, 0));
    }

    #[test]
    fn a_record_of_a_newer_format_is_refused() {
        let record = Progress { version: PROGRESS_VERSION + 1, epoch: 1, ..Default::default() };
        let error = Progress::decode(&record.encode().unwrap()).unwrap_err();
        assert_eq!(error.kind, Kind::Recovery);
    }
}
