//! Assigns the rows of a query to windows and runs the batch plan over them.
//!
//! This is the part of an operator's work that needs only the rows of the present epoch, so each
//! worker has a row assigner for its own partitions.
//!
//! **Promises**
//! - A window [S, E) refuses a row if E + allowed lateness <= the watermark just before the row. Each
//!   refused row is reported once, with the first and the last window that refused it.
//! - A row that an expression fails for is reported, and the others go on.
//! - What the epoch buffer holds of a partition is a function of its rows and of the epoch; it does
//!   not depend on the worker.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use chrono_tz::Tz;

use crate::error::Result;
use crate::planner::{PlanKind, QueryPlan, Relations};
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::assigner::Assigner;
use crate::window::closing_order::closing_key;
use crate::window::epoch_buffer::{Bucket, EpochBuffer, RowRuns, row_of, select};
use crate::window::failed_rows::isolate;
use crate::window::panes::ANY_WINDOW;

/// Rows of one source partition, in offset order.
#[derive(Debug, Clone, Copy)]
pub struct InputRows<'a> {
    /// All columns of the query's input.
    pub batch: &'a RecordBatch,
    /// The event time of each row; not read by queries without windows.
    pub event_time: &'a [Micros],
    /// The query's watermark just before each row; not read by queries without windows.
    pub before: &'a [Micros],
    /// The partition's rank among the customer's; decides the order in which rows combine.
    pub partition: usize,
}

/// The immediate outcome of pushed rows.
#[derive(Debug, Default)]
pub struct Pushed {
    /// Results of a query without state.
    pub output: Option<RecordBatch>,
    /// Rows that a window refused, in ascending order.
    pub late: Vec<Late>,
    /// Rows that an expression failed for, in ascending order.
    pub failed: Vec<FailedRow>,
    /// The earliest end of a bucket that received rows; 0 for a view.
    pub first_end: Option<Micros>,
}

/// A row that came too late for at least one of its windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// The row's index in the pushed batch.
    pub row: usize,
    /// The first window that refused it.
    pub first: Window,
    /// The last window that refused it.
    pub last: Window,
    /// The watermark just before the row.
    pub watermark: Micros,
}

/// A row that an expression of the query fails for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedRow {
    /// The row's index in the pushed batch.
    pub row: usize,
    /// The error message.
    pub reason: String,
}

/// Assigns the rows of one query and collects their state until the end of the epoch.
#[derive(Debug)]
pub struct RowAssigner {
    plan: Arc<QueryPlan>,
    /// `None` for queries without windows.
    pub(super) assigner: Option<Assigner>,
    /// Whether buckets are panes and not windows.
    panes: bool,
    lateness_us: i64,
    /// The query's watermark at the start of the epoch.
    watermark: Micros,
    buffer: EpochBuffer,
}

impl RowAssigner {
    /// Creates the row assigner of a query over a stream in `zone`.
    ///
    /// # Errors
    /// The plan's windows are refused by [`crate::types::WindowSpec::validate`].
    pub fn new(plan: Arc<QueryPlan>, zone: Tz) -> Result<Self> {
        let assigner = plan.window.map(|spec| Assigner::new(spec, zone)).transpose()?;
        Ok(Self {
            assigner,
            panes: plan.panes,
            lateness_us: plan.query.allowed_lateness_us.max(0),
            watermark: MIN_TIME,
            buffer: EpochBuffer::default(),
            plan,
        })
    }

    /// Begins an epoch at the present watermark of the query.
    pub fn begin(&mut self, watermark: Micros) {
        self.watermark = watermark;
    }

    /// Ends the epoch and returns what it brought.
    pub fn take(&mut self) -> EpochBuffer {
        std::mem::take(&mut self.buffer)
    }

    pub(super) fn gather(&mut self, buffer: EpochBuffer) {
        self.buffer.merge(buffer);
    }

    /// Processes the next rows of a partition. Late and failed rows are returned at once; rows that
    /// need state stay in the epoch buffer until the end of the epoch.
    ///
    /// # Errors
    /// Fails only for what no row causes. The row assigner cannot be used after that.
    pub async fn push(&mut self, rows: &InputRows<'_>, relations: &Relations) -> Result<Pushed> {
        let batch = rows.batch.project(self.plan.leaf_projection())?;
        if batch.num_rows() == 0 {
            return Ok(Pushed::default());
        }
        if self.plan.kind == PlanKind::Stateless {
            return self.push_stateless(&batch, relations).await;
        }
        let (buckets, late) = self.assign(rows);
        let mut failed = BTreeMap::new();
        let mut first_end = None;
        for (bucket, runs) in buckets {
            let window = match self.plan.kind {
                PlanKind::Windowed if self.panes => Some(ANY_WINDOW),
                PlanKind::Windowed => Some(bucket.window),
                _ => None,
            };
            let plan = self.plan.as_ref();
            let selected = select(&batch, &runs)?;
            let done =
                isolate(&selected, |piece| plan.run_batch_plan(piece, window, relations)).await?;
            for kept in done.done {
                if self.buffer.add(plan, bucket, rows.partition, kept).await? {
                    first_end = first_end.into_iter().chain([bucket.window.end]).min();
                }
            }
            for (nth, reason) in done.failed {
                failed.entry(row_of(&runs, nth)).or_insert(reason);
            }
        }
        let failed = failed.into_iter().map(|(row, reason)| FailedRow { row, reason }).collect();
        Ok(Pushed { output: None, late, failed, first_end })
    }

    async fn push_stateless(&self, batch: &RecordBatch, relations: &Relations) -> Result<Pushed> {
        let plan = self.plan.as_ref();
        let done = isolate(batch, |piece| plan.run_stateless(piece, relations)).await?;
        let output = arrow::compute::concat_batches(&plan.output, &done.done)?;
        let failed = done.failed.into_iter().map(|(row, reason)| FailedRow { row, reason });
        Ok(Pushed { output: Some(output), failed: failed.collect(), ..Pushed::default() })
    }

    /// Returns the rows of each bucket and the rows that windows refuse.
    fn assign(&mut self, rows: &InputRows<'_>) -> (BTreeMap<Bucket, RowRuns>, Vec<Late>) {
        let mut buckets: BTreeMap<Bucket, RowRuns> = BTreeMap::new();
        let mut late = Vec::new();
        let count = rows.batch.num_rows();
        let Some(assigner) = &mut self.assigner else {
            return (BTreeMap::from([(Bucket::WHOLE, vec![(0, count)])]), late);
        };
        let mut first = 0;
        while first < count {
            let (pane, windows) = assigner.locate(rows.event_time[first]);
            let watermark_before = |row: usize| rows.before[row].max(self.watermark);
            let watermark = watermark_before(first);
            let is_over =
                |window: &&Window| window.end.saturating_add(self.lateness_us) <= watermark;
            // All windows end with their pane or later, so this one comparison is mostly enough.
            let (refused, taken_until) = if is_over(&&pane) {
                let refused = windows.iter().filter(is_over).copied();
                let first = refused.clone().min_by_key(|w| closing_key(*w));
                let taken = windows.iter().filter(|w| !is_over(w)).map(|w| w.end).min();
                (first.zip(refused.max_by_key(|w| closing_key(*w))), taken)
            } else {
                (None, (!windows.is_empty()).then_some(pane.end))
            };
            let taken_until = taken_until.map(|end| end.saturating_add(self.lateness_us));
            // Extend the run by rows that belong to the same windows and are refused by the same.
            let mut next = first + 1;
            while next < count {
                let (t, w) = (rows.event_time[next], watermark_before(next));
                let same = pane.start <= t && t < pane.end;
                if !same || w < watermark || taken_until.is_some_and(|until| until <= w) {
                    break;
                }
                next += 1;
            }
            if let Some((earliest, latest)) = refused {
                late.extend((first..next).map(|row| Late {
                    row,
                    first: earliest,
                    last: latest,
                    watermark: watermark_before(row),
                }));
            }
            let mut add = |bucket| buckets.entry(bucket).or_default().push((first, next - first));
            if !self.panes {
                windows.iter().filter(|w| !is_over(w)).for_each(|w| add(Bucket::of(*w)));
            } else if taken_until.is_some() {
                let refused = refused.map_or(MIN_TIME, |(_, latest)| latest.end);
                add(Bucket { window: pane, refused });
            }
            first = next;
        }
        (buckets, late)
    }
}
