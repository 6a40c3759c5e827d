//! Reading by event time when behind: a partition that ran ahead of the slowest waits.

use std::collections::{BTreeSet, HashMap};

use super::engine::Engine;
use crate::source::TopicPartition;
use crate::time::BEGINNING;

/// Which partitions wait.
#[derive(Debug, Default)]
pub struct Drift {
    paused: BTreeSet<TopicPartition>,
}

/// What the reader is to do.
#[derive(Debug, Default)]
pub struct Changes {
    /// Partitions to stop reading.
    pub pause: Vec<TopicPartition>,
    /// Partitions to read again.
    pub resume: Vec<TopicPartition>,
}

impl Drift {
    /// The partitions that wait now.
    pub fn paused(&self) -> &BTreeSet<TopicPartition> {
        &self.paused
    }

    /// Judges every stream that has a `max_drift`: the slowest is the least watermark among the
    /// partitions that still have something to read, so it is never told to wait itself.
    pub fn judge(&mut self, engine: &Engine, ends: &HashMap<TopicPartition, i64>) -> Changes {
        let mut changes = Changes::default();
        for stage in engine.streams.values() {
            let Some(max_drift) = stage.plan.stream.max_drift_us else { continue };
            let behind = |p: &TopicPartition| {
                let position = stage.positions.get(p).map_or(0, |at| at.offset);
                ends.get(p).is_some_and(|end| position < *end)
            };
            let watermark = |p: &TopicPartition| stage.watermarks.partition(p).unwrap_or(BEGINNING);
            let slowest = stage.positions.keys().filter(|p| behind(p)).map(watermark).min();
            let limit = slowest.map_or(i64::MAX, |w| w.saturating_add(max_drift));
            for partition in stage.positions.keys() {
                let ahead = watermark(partition) > limit;
                if ahead && self.paused.insert(partition.clone()) {
                    changes.pause.push(partition.clone());
                } else if !ahead && self.paused.remove(partition) {
                    changes.resume.push(partition.clone());
                }
            }
        }
        changes
    }
}
