//! Operators: one query each, rows in, results out at the end of an epoch.
//!
//! ```text
//!  push ─► late rows, failed rows, results of a stateless query     (at once)
//!  push, gather ─► epoch buffer ─► end_epoch ─► state ─► final plan ─► emissions
//! ```
//!
//! There is one type for each kind of query, in a file of its own: [`stateless`], [`windowed`] and
//! [`view`]. A new kind (sessions, joins, OVER) implements [`Operator`] in a new file and gets an arm
//! in [`operator_for`].
//!
//! **Promises** of every operator:
//! - the same epochs give the same state and the same emissions, whichever worker the rows went to
//!   and however its epoch buffers were gathered;
//! - a restored operator continues exactly as the one that was saved would have;
//! - a failure that the data causes is reported for its row or window, and the others go on.

mod emission;
pub(crate) mod result_state;
mod stateless;
mod view;
pub(crate) mod windowed;

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use chrono_tz::Tz;

pub use emission::{Changes, Emission};

use crate::error::Result;
use crate::planner::{PlanKind, QueryPlan, Relations};
use crate::time::{Micros, Window};
use crate::window::epoch_buffer::EpochBuffer;
use crate::window::operator_state::OperatorState;
use crate::window::row_assigner::{InputRows, Pushed};
use crate::window::state_digest::Digests;

/// The end of an epoch, as an operator sees it.
#[derive(Debug, Clone, Copy)]
pub struct EpochEnd<'a> {
    /// The watermark of the query's input.
    pub watermark: Micros,
    /// Whether a query with `emit = 'every ..'` emits its open windows now.
    pub is_emission_due: bool,
    /// Whether a reference table or a view that the query reads has changed.
    pub relations_changed: bool,
    /// The reference tables and views.
    pub relations: &'a Relations,
}

/// One query and its state.
///
/// # Errors
/// Methods fail only for what is not caused by the data. The operator cannot be used after that.
#[async_trait]
pub trait Operator: Debug + Send + Sync {
    /// Processes the next rows of a partition, as
    /// [`RowAssigner::push`](crate::window::RowAssigner::push) does.
    async fn push(&mut self, rows: &InputRows<'_>, relations: &Relations) -> Result<Pushed>;

    /// Records that a worker's row assigner added rows to a bucket, the earliest of which ends at
    /// `first_end`.
    fn expect_bucket(&mut self, first_end: Option<Micros>);

    /// Adds the epoch buffer of a worker, which holds partitions of its own.
    fn gather(&mut self, buffer: EpochBuffer);

    /// Ends the epoch: adds what it brought to the state and returns what is emitted.
    async fn end_epoch(&mut self, end: EpochEnd<'_>) -> Result<Vec<Emission>>;

    /// The query's watermark as of the end of the last epoch.
    fn watermark(&self) -> Micros;

    /// Makes the operator emit all results again, because its final plan has changed.
    fn mark_dirty(&mut self);

    /// Whether ending the epoch at `watermark` would probably emit something: a window closes or is
    /// corrected, or rows arrived for a view.
    fn is_due(&self, watermark: Micros) -> bool;

    /// The windows that have not closed, in the order in which they will.
    fn open_windows(&self) -> Vec<Window> {
        Vec::new()
    }

    /// The batches of the state.
    fn state_batches(&self) -> Vec<&RecordBatch> {
        Vec::new()
    }

    /// The number of rows or partial rows in the state.
    fn state_rows(&self) -> usize {
        self.state_batches().into_iter().map(RecordBatch::num_rows).sum()
    }

    /// The memory of the batches in the state, in bytes.
    fn state_bytes(&self) -> usize {
        self.state_batches().into_iter().map(RecordBatch::get_array_memory_size).sum()
    }

    /// The present content of a view; `None` for other queries, and before the view's first
    /// emission.
    fn content(&self) -> Option<RecordBatch> {
        None
    }

    /// Returns the state as shared references. To be called between the end of an epoch and the next
    /// rows.
    ///
    /// # Errors
    /// Rows were pushed since the end of the last epoch.
    fn snapshot(&self) -> Result<OperatorState>;

    /// Replaces the state by a saved one.
    ///
    /// # Errors
    /// The state has another version or lacks batches (kind `Recovery`).
    async fn restore(&mut self, state: OperatorState) -> Result<()>;

    /// Returns digests of the state. To be called between the end of an epoch and the next rows.
    ///
    /// # Errors
    /// Rows were pushed since the end of the last epoch.
    fn digests(&self) -> Result<Digests>;
}

/// Creates the operator of a planned query over a stream in `zone`, without state.
///
/// # Errors
/// The plan's windows are refused by [`WindowSpec::validate`](crate::types::WindowSpec::validate).
pub fn operator_for(plan: Arc<QueryPlan>, zone: Tz) -> Result<Box<dyn Operator>> {
    Ok(match plan.kind {
        PlanKind::Stateless => Box::new(stateless::StatelessOperator::new(plan, zone)?),
        PlanKind::Windowed => Box::new(windowed::WindowedOperator::new(plan, zone)?),
        PlanKind::View | PlanKind::Derived => Box::new(view::ViewOperator::new(plan, zone)?),
    })
}

/// As [`operator_for`], with a saved state.
///
/// # Errors
/// As [`operator_for`] and [`Operator::restore`].
pub async fn restore_operator(
    plan: Arc<QueryPlan>,
    zone: Tz,
    state: OperatorState,
) -> Result<Box<dyn Operator>> {
    let mut operator = operator_for(plan, zone)?;
    operator.restore(state).await?;
    Ok(operator)
}
