//! The numbers of distinct keys per group, read from the key set instead of computed by a grouping.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::common::internal_err;
use datafusion::error::Result as DfResult;
use datafusion::physical_plan::ExecutionPlan;

use crate::planner::exec::inputs::{Inputs, WindowColumn, rebatch};

/// The count of a key set's keys per group.
#[derive(Debug)]
pub(crate) struct DistinctCount {
    /// The state slot of the key set.
    pub(crate) slot: usize,
    /// The group columns of the result. The count follows them.
    pub(crate) columns: Vec<GroupColumn>,
    /// The plan that computes the same rows from the keys.
    pub(crate) grouping: Arc<dyn ExecutionPlan>,
}

/// Where a group column of a [`DistinctCount`] comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GroupColumn {
    /// A key of the set, by its index among the columns of the group.
    Key(usize),
    /// A column of the window.
    Window(WindowColumn),
}

impl DistinctCount {
    /// The counts of this set in `inputs`, if there are any.
    pub(crate) fn counts<'a>(&self, inputs: &Inputs<'a>) -> Option<&'a RecordBatch> {
        inputs.counts.get(self.slot).and_then(Option::as_ref)
    }

    /// Returns the counts with the columns of the window, as the grouping would return them.
    pub(crate) fn rows(&self, inputs: &Inputs<'_>, schema: &SchemaRef) -> DfResult<RecordBatch> {
        let (Some(counts), Some(window)) = (self.counts(inputs), inputs.window) else {
            return internal_err!("counts or window missing for state slot {}", self.slot);
        };
        let rows = counts.num_rows();
        let array = |(column, field): (&GroupColumn, &FieldRef)| -> ArrayRef {
            match column {
                GroupColumn::Key(key) => Arc::clone(counts.column(*key)),
                GroupColumn::Window(column) => column.constant(window, field.data_type(), rows),
            }
        };
        let mut columns: Vec<_> = self.columns.iter().zip(schema.fields()).map(array).collect();
        columns.extend(counts.columns().last().cloned());
        rebatch(schema, columns, rows)
    }
}
