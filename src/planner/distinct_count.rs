//! Counts that need not be made when a window closes, because its set of keys knows them.
//!
//! `count(DISTINCT x)` closes with a grouping of the set's keys (see [`crate::planner::distinct_rewrite`]). Where a
//! closing plan has nothing else to do with a set, a slot stands for that grouping: it is filled
//! with the counts of [`crate::state::sliding_key_set`] or [`crate::state::key_set`], or where there are none, with the
//! grouping itself.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::common::internal_err;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result as DfResult;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};

use crate::planner::exec::placeholder::{
    Inputs, PlaceholderExec, PlaceholderSource, WindowColumn, WindowColumnsExec, rebatch,
};

/// `plan` with [`DistinctCount`] slots wherever keys of a set are counted by group; and the numbers of
/// these sets.
pub(crate) fn counted(
    plan: Arc<dyn ExecutionPlan>,
    is_key_set: impl Fn(usize) -> bool,
) -> DfResult<(Arc<dyn ExecutionPlan>, Vec<usize>)> {
    let mut slots = Vec::new();
    let plan = plan.transform_up(|node| {
        let counted = node.downcast_ref::<AggregateExec>().and_then(DistinctCount::of);
        Ok(match counted.filter(|counted| is_key_set(counted.slot)) {
            Some(counted) => {
                slots.push(counted.slot);
                let slot = PlaceholderExec::new(
                    PlaceholderSource::DistinctCount(Arc::new(counted)),
                    node.schema(),
                );
                Transformed::yes(Arc::new(slot) as Arc<dyn ExecutionPlan>)
            }
            None => Transformed::no(node),
        })
    })?;
    Ok((plan.data, slots))
}

/// A count of a set's keys by group.
#[derive(Debug)]
pub(crate) struct DistinctCount {
    /// Of the set.
    pub(crate) slot: usize,
    /// What the columns are; after them comes the count.
    columns: Vec<GroupColumn>,
    /// Does the same from the keys.
    pub(crate) grouping: Arc<dyn ExecutionPlan>,
}

#[derive(Debug, Clone, Copy)]
enum GroupColumn {
    /// By its place among the columns of the group.
    Key(usize),
    Window(WindowColumn),
}

impl DistinctCount {
    /// In the place of `grouping`, if that groups a slot's keys by all columns but the last, and
    /// counts the last.
    fn of(grouping: &AggregateExec) -> Option<Self> {
        let plain = *grouping.mode() == AggregateMode::Single
            && grouping.limit_options().is_none()
            && grouping.group_expr().is_single()
            && grouping.filter_expr().iter().all(Option::is_none);
        let [count] = grouping.aggr_expr() else { return None };
        if !plain || count.fun().name() != "count" || count.is_distinct() {
            return None;
        }
        let (slot, omitted_keys) = match grouping.input().downcast_ref::<WindowColumnsExec>() {
            Some(stamp) => (stamp.input(), stamp.columns()),
            None => (grouping.input(), &[][..]),
        };
        let slot = slot.downcast_ref::<PlaceholderExec>()?;
        let PlaceholderSource::State(number) = *slot.source() else { return None };
        let mut keys = (0..slot.schema().fields().len()).map(GroupColumn::Key).collect::<Vec<_>>();
        for (place, column) in omitted_keys {
            keys.insert(*place, GroupColumn::Window(*column));
        }
        let of = |expr: &Arc<dyn PhysicalExpr>| {
            expr.downcast_ref::<Column>().and_then(|column| keys.get(column.index()).copied())
        };
        let argument = slot.schema().fields().len().checked_sub(1)?;
        let counts_argument = match count.expressions().as_slice() {
            [expr] => matches!(of(expr), Some(GroupColumn::Key(key)) if key == argument),
            _ => false,
        };
        let groups = grouping.group_expr().expr().iter();
        let columns = groups.map(|(expr, _)| of(expr)).collect::<Option<Vec<_>>>()?;
        let has =
            |key| columns.iter().any(|column| matches!(column, GroupColumn::Key(k) if *k == key));
        let groups_by_others = argument > 0 && (0..argument).all(has) && !has(argument);
        (counts_argument && groups_by_others).then(|| Self {
            slot: number,
            columns,
            grouping: Arc::new(grouping.clone()),
        })
    }

    /// The counts that `inputs` has of the set.
    pub(crate) fn counts<'a>(&self, inputs: &Inputs<'a>) -> Option<&'a RecordBatch> {
        inputs.counts.get(self.slot).and_then(Option::as_ref)
    }

    /// These counts, with the columns of the window, as the grouping's result.
    pub(crate) fn rows(&self, inputs: &Inputs<'_>, schema: &SchemaRef) -> DfResult<RecordBatch> {
        let (Some(counts), Some(window)) = (self.counts(inputs), inputs.window) else {
            return internal_err!("no counts, or of no window, were handed over for {}", self.slot);
        };
        let rows = counts.num_rows();
        let of = |(column, field): (&GroupColumn, &FieldRef)| -> ArrayRef {
            match column {
                GroupColumn::Key(key) => Arc::clone(counts.column(*key)),
                GroupColumn::Window(column) => column.constant(window, field.data_type(), rows),
            }
        };
        let mut columns: Vec<_> = self.columns.iter().zip(schema.fields()).map(of).collect();
        columns.extend(counts.columns().last().cloned());
        rebatch(schema, columns, rows)
    }
}
