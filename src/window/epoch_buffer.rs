//! What the present epoch brought, per bucket and partition, until the epoch ends.
//!
//! Invariant: at the epoch's end a bucket's batches are combined in the order of partitions, then
//! of offsets, so that it does not matter in which order partitions were read.

use std::collections::BTreeMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;

use crate::error::Result;
use crate::planner::QueryPlan;
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::merge_tree::Kept;

/// More rows than this of one partition, bucket and slot are merged before the epoch ends, lest few
/// keys take much memory,
const MOST_ROWS: usize = 1 << 17;
/// and once more when they are so many times what was left: many keys are cheaper to merge once,
/// with those of other partitions.
const MORE_ROWS: usize = 16;
/// As many batches as this are merged too.
const MOST_BATCHES: usize = 1 << 10;

/// Where rows are kept: a window, a pane, or a view's only bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bucket {
    /// The window or pane.
    pub window: Window,
    /// In a pane: windows that end here or earlier refused these rows.
    pub refused: Micros,
}

impl Bucket {
    /// A view's only one.
    pub const WHOLE: Self = Self { window: Window { start: 0, end: 0 }, refused: MIN_TIME };

    /// A window, or the rows of a pane that no window refused.
    pub fn of(window: Window) -> Self {
        Self { window, refused: MIN_TIME }
    }
}

/// Stretches of rows: (first row, how many), ascending.
pub(crate) type Runs = Vec<(usize, usize)>;

/// The rows of `runs`. A small part is copied, lest it keep the whole batch in memory.
pub(crate) fn select(batch: &RecordBatch, runs: &Runs) -> Result<RecordBatch> {
    if let [(first, count)] = runs[..] {
        if count == batch.num_rows() {
            return Ok(batch.clone());
        }
        if count > batch.num_rows() / 2 {
            return Ok(batch.slice(first, count));
        }
    }
    if batch.num_columns() == 0 {
        return Ok(batch.slice(0, runs.iter().map(|(_, count)| count).sum()));
    }
    let rows = runs.iter().flat_map(|(first, count)| *first..first + count);
    let rows: UInt32Array = rows.map(|row| u32::try_from(row).unwrap_or(u32::MAX)).collect();
    Ok(take_record_batch(batch, &rows)?)
}

/// Which row of the batch is the `nth` of `runs`.
pub(crate) fn row_of(runs: &Runs, mut nth: usize) -> usize {
    for (first, count) in runs {
        if nth < *count {
            return first + nth;
        }
        nth -= count;
    }
    nth
}

/// Partials (or rows) of the present epoch.
#[derive(Debug, Default)]
pub struct EpochBuffer {
    /// By bucket and partition: per slot the batches in offset order.
    buckets: BTreeMap<Bucket, BTreeMap<usize, Vec<Vec<RecordBatch>>>>,
}

impl EpochBuffer {
    /// Adds what was kept of a partition's next rows. A bucket of which nothing is kept is none:
    /// says whether it was anything.
    pub(crate) async fn add(
        &mut self,
        plan: &QueryPlan,
        bucket: Bucket,
        partition: usize,
        kept: Vec<RecordBatch>,
    ) -> Result<bool> {
        if kept.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(false);
        }
        let slots = self.buckets.entry(bucket).or_default().entry(partition).or_default();
        slots.resize_with(kept.len().max(slots.len()), Vec::new);
        for (slot, batch) in kept.into_iter().enumerate() {
            if batch.num_rows() > 0 {
                slots[slot].push(batch);
            }
            let batches = &mut slots[slot];
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            let merged = batches.first().map_or(0, RecordBatch::num_rows);
            if rows > MOST_ROWS.max(merged * MORE_ROWS) || batches.len() > MOST_BATCHES {
                *batches = vec![plan.reduce(slot, std::mem::take(batches)).await?];
            }
        }
        Ok(true)
    }

    /// Adds what was kept elsewhere, of other partitions.
    pub(crate) fn merge(&mut self, other: Self) {
        for (bucket, partitions) in other.buckets {
            self.buckets.entry(bucket).or_default().extend(partitions);
        }
    }

    /// One batch per bucket and slot, in the order of buckets.
    pub(crate) async fn drain(self, plan: &QueryPlan) -> Result<Vec<(Bucket, Kept)>> {
        let mut drained = Vec::with_capacity(self.buckets.len());
        for (bucket, partitions) in self.buckets {
            let mut slots: Vec<Vec<RecordBatch>> = Vec::new();
            for partition in partitions.into_values() {
                slots.resize_with(partition.len().max(slots.len()), Vec::new);
                for (all, own) in slots.iter_mut().zip(partition) {
                    all.extend(own);
                }
            }
            let mut kept = Vec::with_capacity(slots.len());
            for (slot, mut batches) in slots.into_iter().enumerate() {
                kept.push(match batches.len() {
                    0 | 1 => batches.pop(),
                    // Whoever keeps a set tells new keys from old ones.
                    _ if plan.is_key_set(slot) => Some(plan.concat(slot, batches)?),
                    _ => Some(plan.reduce(slot, batches).await?),
                });
            }
            drained.push((bucket, kept));
        }
        Ok(drained)
    }
}
