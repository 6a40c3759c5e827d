//! The state behind one result: a window that is still needed, or a view.

use std::sync::Arc;

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::planner::QueryPlan;
use crate::window::changelog::difference;
use crate::window::failed_rows::{is_fault_of_data, reason};
use crate::window::merge_tree::MergeTree;
use crate::window::operator::emission::Changes;

/// The state of a window or of a view.
#[derive(Debug, Default)]
pub(crate) struct ResultState {
    /// The rows or partial aggregates, unless panes hold them.
    pub tree: MergeTree,
    /// Whether rows arrived since the last emission.
    pub is_changed: bool,
    /// Whether the watermark has reached the end of the window.
    pub is_closed: bool,
    /// The rows emitted last; kept only if results are changes by key.
    pub emitted: Option<RecordBatch>,
    /// The number of emissions so far.
    pub revision: i64,
}

impl ResultState {
    /// Turns the result of the final plan into an emission. Returns `None` if nothing has changed.
    ///
    /// `by_key`: emit changes against the rows emitted last instead of all rows.
    pub(crate) fn emit(
        &mut self,
        plan: &QueryPlan,
        result: Result<RecordBatch, String>,
        is_final: bool,
        by_key: bool,
    ) -> Result<Option<Result<Changes, String>>> {
        let closes = is_final && !self.is_closed;
        self.is_changed = false;
        self.is_closed |= is_final;
        let rows = match result {
            Ok(rows) => rows,
            Err(reason) => return Ok(Some(Err(reason))),
        };
        let no_rows = RecordBatch::new_empty(Arc::clone(&plan.output));
        let (upserts, deletes) = if by_key {
            let before = self.emitted.take().unwrap_or(no_rows);
            let changed = difference(&before, &rows, &plan.key)?;
            let is_unchanged = changed.is_empty() && !closes;
            self.emitted = Some(rows.clone());
            if is_unchanged {
                return Ok(None);
            }
            // Rows that were preliminary become final, changed or not.
            (if closes { rows } else { changed.upserts }, changed.deletes)
        } else {
            (rows, no_rows)
        };
        self.revision += 1;
        Ok(Some(Ok(Changes { upserts, deletes, is_final, revision: self.revision })))
    }

    /// The batches of the state.
    pub(crate) fn batches(&self) -> impl Iterator<Item = &RecordBatch> {
        self.tree.all().chain(&self.emitted)
    }
}

/// Separates failures that the data caused, which concern one window or view only, from errors that
/// stop the pipeline.
pub(crate) fn separate_data_failure(
    result: Result<RecordBatch>,
) -> Result<Result<RecordBatch, String>> {
    match result {
        Ok(rows) => Ok(Ok(rows)),
        Err(error) if is_fault_of_data(&error) => Ok(Err(reason(&error))),
        Err(error) => Err(error),
    }
}
