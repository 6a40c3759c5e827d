//! What every operator does.

use std::fmt::Debug;

use arrow::array::RecordBatch;
use async_trait::async_trait;

use crate::error::Result;
use crate::planner::Relations;
use crate::time::{Micros, Window};
use crate::window::epoch_buffer::EpochBuffer;
use crate::window::operator::emission::Emission;
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
