//! What a run hands to a physical plan: rows, state, window columns, reference tables and views.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::Result as DfResult;

use crate::time::Window;

/// The current content of reference tables and views, by name.
pub type Relations = HashMap<String, Arc<Vec<RecordBatch>>>;

/// The distance from `window_time` to the end of the window, in microseconds: `window_time` is the
/// last millisecond of the window, as in Flink.
const WINDOW_TIME_US: i64 = 1_000;

/// A column that identifies the window of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum WindowColumn {
    /// `window_start`
    Start,
    /// `window_end`
    End,
    /// `window_time`
    Time,
}

impl WindowColumn {
    /// All window columns, in the order in which they follow the input's columns.
    pub(crate) const ALL: [Self; 3] = [Self::Start, Self::End, Self::Time];

    /// The column's name in SQL.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "window_start",
            Self::End => "window_end",
            Self::Time => "window_time",
        }
    }

    /// An array of `rows` equal values of type `data_type`, a timestamp in microseconds.
    pub(crate) fn constant(self, window: Window, data_type: &DataType, rows: usize) -> ArrayRef {
        let value = match self {
            Self::Start => window.start,
            Self::End => window.end,
            Self::Time => window.end.saturating_sub(WINDOW_TIME_US),
        };
        let array = TimestampMicrosecondArray::from_value(value, rows);
        Arc::new(match data_type {
            DataType::Timestamp(_, Some(zone)) => array.with_timezone(Arc::clone(zone)),
            _ => array,
        })
    }
}

/// What the placeholders of one run are filled with.
pub(crate) struct Inputs<'a> {
    /// The input rows of the run; empty for a final plan.
    pub(crate) rows: &'a [RecordBatch],
    /// The window state, per state slot.
    pub(crate) state: &'a [Vec<RecordBatch>],
    /// Per state slot, the counts that replace a grouping of its keys (see [`crate::planner::exec::key_counts`]).
    /// May be shorter than `state`.
    pub(crate) counts: &'a [Option<RecordBatch>],
    /// The window of the run, if the plan is windowed.
    pub(crate) window: Option<Window>,
    /// The content of reference tables and views.
    pub(crate) relations: &'a Relations,
}

/// Returns the same columns under `schema`, which may differ in names and nullability.
pub(crate) fn reshape(batch: &RecordBatch, schema: &SchemaRef) -> DfResult<RecordBatch> {
    rebatch(schema, batch.columns().to_vec(), batch.num_rows())
}

/// Builds a batch of `rows` rows; `columns` may be empty.
pub(crate) fn rebatch(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> DfResult<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
