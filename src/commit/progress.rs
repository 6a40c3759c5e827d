//! The progress record: describes an epoch completely, so that it can be replayed.
//!
//! Each epoch writes one record in its own transaction, to the customer's single-partition log
//! topic. A record holds the changes since the record before it; a *full* record, written with each
//! snapshot, is complete. Every decision that depended on the wall clock is in the record, so
//! replaying the recorded epochs after a snapshot restores the same state.
//!
//! A full record names the two newest snapshots. The log is truncated before the epochs that follow
//! the older snapshot.
//!
//! **Invariants**, asserted when a log is read:
//! - epochs increase by one;
//! - a record after a full one moves positions only forward;
//! - only a reset follows a drained record.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::commit::process::Process;
use crate::time::Micros;
use crate::types::{SourcePosition, TopicPartition};
use crate::watermark::ClockDecision;
use crate::{Error, Kind, Result};

/// The format version of the records that this code writes.
pub const PROGRESS_VERSION: u32 = 1;

/// One epoch in the log. The field names are the stored JSON names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The format version, see [`PROGRESS_VERSION`].
    pub version: u32,
    /// The epoch's number; the first is 1.
    pub epoch: u64,
    /// Whether `positions` has every partition and not only those that advanced.
    #[serde(default, skip_serializing_if = "is_false")]
    pub full: bool,
    /// The wall clock at the epoch's start: the value of `now()` in the epoch.
    pub now: Micros,
    /// Partitions that were added at the epoch's start, each with its first offset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<PartitionJoin>,
    /// The position at the epoch's end of each partition that advanced.
    #[serde(default)]
    pub positions: BTreeMap<TopicPartition, SourcePosition>,
    /// Watermarks that the wall clock advanced at the epoch's end, by stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub decisions: BTreeMap<String, Vec<ClockDecision>>,
    /// Queries whose open windows emitted early results at the epoch's end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub emitted: Vec<String>,
    /// Versions (content hashes) of reference tables that took effect at the epoch's start.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, String>,
    /// The id of the Kafka cluster that the offsets belong to; in full records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The ids of all topics that are read; in full records.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, String>,
    /// Fingerprints of the plans of streams and queries; in full records.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: BTreeMap<String, String>,
    /// The newest verified snapshot, which holds the state at the end of its epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRef>,
    /// The snapshot before it, used if the newest is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older: Option<SnapshotRef>,
    /// Nothing happened since `snapshot`: the pipeline stopped, or started over, with its state.
    #[serde(default, skip_serializing_if = "is_false")]
    pub clean: bool,
    /// Offsets that were needed but no longer in Kafka, and were skipped because of `--on-gap skip`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedOffsets>,
    /// All windows were closed at the epoch's end, and the pipeline is finished.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drained: bool,
    /// The process that wrote the record; `None` in records from before this field existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// With `--check-replays`: digests of the parts of each query's state at the epoch's end, by
    /// query.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, BTreeMap<String, String>>,
}

/// A partition that was added to a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionJoin {
    /// The stream that reads the partition.
    pub stream: String,
    /// The partition.
    pub partition: TopicPartition,
    /// The first offset that was read.
    pub offset: i64,
    /// The topic's id in Kafka; `None` if the broker does not have topic ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
}

/// Offsets of a partition that were no longer in Kafka: from `from` (inclusive) to `to` (exclusive).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedOffsets {
    /// The partition.
    pub partition: TopicPartition,
    /// The first offset that was needed.
    pub from: i64,
    /// The first offset that Kafka still has.
    pub to: i64,
}

/// A snapshot in the object store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The epoch at whose end the snapshot was taken.
    pub epoch: u64,
    /// The snapshot's folder, relative to the customer's snapshot folder.
    pub path: String,
    /// An offset of the log below the records of all epochs after the snapshot's epoch.
    #[serde(default)]
    pub log_offset: i64,
}

impl PartitionJoin {
    /// The topic's name and id.
    pub fn topic_and_id(&self) -> Option<(String, String)> {
        Some((self.partition.topic.to_string(), self.topic_id.clone()?))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Progress {
    /// Encodes the record as JSON.
    pub fn encode(&self) -> Result<Bytes> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::internal("cannot encode a progress record").because(e))?;
        Ok(bytes.into())
    }

    /// All pairs of a topic's name and id in the record.
    pub fn topic_ids(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let joined = self.joined.iter().filter_map(PartitionJoin::topic_and_id);
        self.topics.clone().into_iter().chain(joined)
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// The bytes are not a progress record, or a newer version of Millstream wrote them.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(bytes).map_err(|e| {
            Error::new(Kind::Recovery, "cannot decode a record of the log topic")
                .because(e)
                .hint("only Millstream may write to the topic millstream.<customer>.log")
        })?;
        if record.version > PROGRESS_VERSION {
            let message = format!(
                "a newer version of Millstream wrote the log topic (format {}, this version supports {PROGRESS_VERSION})",
                record.version
            );
            return Err(
                Error::new(Kind::Recovery, message).hint("run the newer version of Millstream")
            );
        }
        Ok(record)
    }
}

/// The content of a log: the snapshot to start from and the epochs to replay.
#[derive(Debug, Clone, Default)]
pub struct RecoveredLog {
    /// The snapshot to load: that of the newest full record; `None` if there is none yet.
    pub snapshot: Option<SnapshotRef>,
    /// The snapshot before it, to load if the newest is damaged.
    pub older: Option<SnapshotRef>,
    /// The newest full record, if any.
    pub base: Option<Progress>,
    /// All records that the log still has, oldest first.
    pub records: Vec<Progress>,
    /// The newest record.
    pub last: Option<Progress>,
    /// The position of every partition after the newest record.
    pub positions: BTreeMap<TopicPartition, SourcePosition>,
    /// The ids of these partitions' topics, if the broker has topic ids.
    pub topics: BTreeMap<String, String>,
}

impl RecoveredLog {
    /// Decodes the records of a log, oldest first. [`RecoveredLog::verify`] checks that none is missing.
    pub fn from_log(records: &[Bytes]) -> Result<Self> {
        let records =
            records.iter().map(|bytes| Progress::decode(bytes)).collect::<Result<Vec<_>>>()?;
        let last = records.last().cloned();
        let base = records.iter().rev().find(|r| r.full).cloned();
        let snapshot = base.as_ref().and_then(|b| b.snapshot.clone());
        let older = base.as_ref().and_then(|b| b.older.clone());
        let positions = records.iter().flat_map(|r| r.positions.clone()).collect();
        let mut topics = BTreeMap::new();
        for record in &records {
            topics.extend(record.topic_ids());
        }
        Ok(Self { snapshot, older, base, records, last, positions, topics })
    }

    /// Checks that the record of every epoch after the newest snapshot is present.
    ///
    /// # Errors
    /// Records are missing.
    pub fn verify(&self) -> Result<()> {
        for pair in self.records.windows(2) {
            if pair[0].epoch.checked_add(1) != Some(pair[1].epoch) {
                let message = format!(
                    "the log topic has a gap between epoch {} and epoch {}",
                    pair[0].epoch, pair[1].epoch
                );
                return Err(Error::new(Kind::Recovery, message)
                    .hint("records are missing from the log topic; start over with --reset"));
            }
        }
        self.after(self.snapshot.as_ref()).map(drop)
    }

    /// The epochs to replay after `snapshot`; `None` means from the first epoch.
    ///
    /// # Errors
    /// Some of these epochs are no longer in the log.
    pub fn after(&self, snapshot: Option<&SnapshotRef>) -> Result<&[Progress]> {
        let from = snapshot.map_or(0, |s| s.epoch);
        let oldest = self.records.first().map_or(1, |r| r.epoch);
        if oldest > from.saturating_add(1) {
            let message = format!(
                "the log topic begins at epoch {oldest}, but the snapshot ends at epoch {from}"
            );
            return Err(Error::new(Kind::Recovery, message)
                .hint("records are missing from the log topic; start over with --reset"));
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
    fn epochs_after_the_newest_snapshot_are_replayed() {
        let log = [record(1, None), record(2, None), record(3, Some(2)), record(4, None)];
        let recovered = RecoveredLog::from_log(&log).unwrap();
        assert_eq!(recovered.snapshot.as_ref().unwrap().epoch, 2);
        let replayed = recovered.after(recovered.snapshot.as_ref()).unwrap();
        assert_eq!(replayed.iter().map(|r| r.epoch).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(recovered.after(None).unwrap().len(), 4);
        assert_eq!(recovered.last.unwrap().epoch, 4);
    }

    #[test]
    fn a_gap_in_the_log_is_an_error() {
        let read = |log: &[Bytes]| RecoveredLog::from_log(log).unwrap();
        assert!(read(&[record(1, None), record(3, None)]).verify().is_err());
        assert!(read(&[record(2, None)]).verify().is_err());
        let truncated = read(&[record(5, Some(4))]);
        truncated.verify().unwrap();
        assert!(
            truncated.after(None).is_err(),
            "an older snapshot cannot be used without the epochs after it"
        );
    }

    #[test]
    fn a_record_without_a_process_is_decoded() {
        let old = br#"{"version":1,"epoch":7,"now":5,"positions":{}}"#;
        let record = Progress::decode(old).unwrap();
        assert_eq!((record.epoch, record.process, record.digests.len()), (7, None, 0));
    }

    #[test]
    fn a_record_of_a_newer_format_is_rejected() {
        let record = Progress { version: PROGRESS_VERSION + 1, epoch: 1, ..Default::default() };
        let error = Progress::decode(&record.encode().unwrap()).unwrap_err();
        assert_eq!(error.kind, Kind::Recovery);
    }
}
