//! The state that the current epoch adds, per bucket and partition, until the epoch ends.
//!
//! Invariant: at the end of the epoch, the batches of a bucket are combined in the order of
//! partitions, then of offsets. So the result does not depend on the order in which partitions were
//! read.

use std::collections::BTreeMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;

use crate::error::Result;
use crate::planner::QueryPlan;
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::merge_tree::SlotBatches;

/// If one partition, bucket and slot has more rows than this, they are merged before the epoch
/// ends, so that few keys do not take much memory.
const MAX_ROWS: usize = 1 << 17;
/// After a merge, the next one waits until the rows are this many times the merged rows. Many keys
/// are cheaper to merge once, with those of other partitions.
const MAX_GROWTH: usize = 16;
/// More batches than this are merged too.
const MAX_BATCHES: usize = 1 << 10;

/// The unit of state that rows are added to: a window, a pane, or the only bucket of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bucket {
    /// The window or pane.
    pub window: Window,
    /// For a pane: windows that end here or earlier refused the rows as late.
    pub refused: Micros,
}

impl Bucket {
    /// The only bucket of a view.
    pub const WHOLE: Self = Self { window: Window { start: 0, end: 0 }, refused: MIN_TIME };

    /// The bucket of a window, or of the rows of a pane that no window refused.
    pub fn of(window: Window) -> Self {
        Self { window, refused: MIN_TIME }
    }
}

/// Runs of consecutive rows, as (first row, number of rows), ascending.
pub(crate) type RowRuns = Vec<(usize, usize)>;

/// Returns the rows of `runs`. A small part is copied, so that it does not hold the whole batch in
/// memory.
pub(crate) fn select(batch: &RecordBatch, runs: &RowRuns) -> Result<RecordBatch> {
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

/// Returns the index in the batch of the `nth` row of `runs`.
pub(crate) fn row_of(runs: &RowRuns, mut nth: usize) -> usize {
    for (first, count) in runs {
        if nth < *count {
            return first + nth;
        }
        nth -= count;
    }
    nth
}

/// The partial aggregates or rows of the current epoch.
#[derive(Debug, Default)]
pub struct EpochBuffer {
    /// By bucket and partition: per state slot, the batches in offset order.
    buckets: BTreeMap<Bucket, BTreeMap<usize, Vec<Vec<RecordBatch>>>>,
}

impl EpochBuffer {
    /// Adds one batch per state slot for the next rows of a partition. Returns whether any batch
    /// has rows; if none has, no bucket is created.
    pub(crate) async fn add(
        &mut self,
        plan: &QueryPlan,
        bucket: Bucket,
        partition: usize,
        batches: Vec<RecordBatch>,
    ) -> Result<bool> {
        if batches.iter().all(|batch| batch.num_rows() == 0) {
            return Ok(false);
        }
        let slots = self.buckets.entry(bucket).or_default().entry(partition).or_default();
        slots.resize_with(batches.len().max(slots.len()), Vec::new);
        for (slot, batch) in batches.into_iter().enumerate() {
            if batch.num_rows() > 0 {
                slots[slot].push(batch);
            }
            let batches = &mut slots[slot];
            let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
            let merged = batches.first().map_or(0, RecordBatch::num_rows);
            if rows > MAX_ROWS.max(merged * MAX_GROWTH) || batches.len() > MAX_BATCHES {
                *batches = vec![plan.reduce(slot, std::mem::take(batches)).await?];
            }
        }
        Ok(true)
    }

    /// Adds the buffer of another worker, which has other partitions.
    pub(crate) fn merge(&mut self, other: Self) {
        for (bucket, partitions) in other.buckets {
            self.buckets.entry(bucket).or_default().extend(partitions);
        }
    }

    /// Returns one batch per bucket and state slot, in the order of buckets. Batches of key sets
    /// may contain keys twice.
    pub(crate) async fn drain(self, plan: &QueryPlan) -> Result<Vec<(Bucket, SlotBatches)>> {
        let mut drained = Vec::with_capacity(self.buckets.len());
        for (bucket, partitions) in self.buckets {
            let mut slots: Vec<Vec<RecordBatch>> = Vec::new();
            for partition in partitions.into_values() {
                slots.resize_with(partition.len().max(slots.len()), Vec::new);
                for (all, own) in slots.iter_mut().zip(partition) {
                    all.extend(own);
                }
            }
            let mut merged = Vec::with_capacity(slots.len());
            for (slot, mut batches) in slots.into_iter().enumerate() {
                merged.push(match batches.len() {
                    0 | 1 => batches.pop(),
                    // The merge tree removes duplicate keys.
                    _ if plan.is_key_set(slot) => Some(plan.concat(slot, batches)?),
                    _ => Some(plan.reduce(slot, batches).await?),
                });
            }
            drained.push((bucket, merged));
        }
        Ok(drained)
    }
}
