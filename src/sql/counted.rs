//! Counts that need not be made when a window closes, because a set over panes knows them.
//!
//! `count(DISTINCT x)` closes with a grouping of the set's keys (see [`super::distinct`]). Where a
//! closing plan has nothing else to do with a set, [`CountedExec`] stands for that grouping: it is
//! filled with the counts of [`super::running`], or where there are none, with the grouping itself.

use std::fmt;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;
use datafusion::common::internal_err;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result as DfResult;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions, SendableRecordBatchStream,
};

use crate::sql::slots::{Filling, SlotExec, Source, StampExec, WindowColumn, fill, rebatch};

/// `plan` with [`CountedExec`] wherever keys of a set are counted by group; and the slots of these
/// sets.
pub(crate) fn counted(
    plan: Arc<dyn ExecutionPlan>,
    is_set: impl Fn(usize) -> bool,
) -> DfResult<(Arc<dyn ExecutionPlan>, Vec<usize>)> {
    let mut slots = Vec::new();
    let plan = plan.transform_up(|node| {
        let counted = node.downcast_ref::<AggregateExec>().and_then(CountedExec::of);
        Ok(match counted.filter(|counted| is_set(counted.slot)) {
            Some(counted) => {
                slots.push(counted.slot);
                Transformed::yes(Arc::new(counted) as Arc<dyn ExecutionPlan>)
            }
            None => Transformed::no(node),
        })
    })?;
    Ok((plan.data, slots))
}

/// A count of a set's keys by group.
#[derive(Debug)]
pub(crate) struct CountedExec {
    /// Of the set.
    slot: usize,
    /// What the columns are; after them comes the count.
    columns: Vec<GroupColumn>,
    /// Does the same from the keys.
    grouping: Arc<dyn ExecutionPlan>,
}

#[derive(Debug, Clone, Copy)]
enum GroupColumn {
    /// By its place among the columns of the group.
    Key(usize),
    Window(WindowColumn),
}

impl CountedExec {
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
        let (slot, stamped) = match grouping.input().downcast_ref::<StampExec>() {
            Some(stamp) => (stamp.input(), stamp.columns()),
            None => (grouping.input(), &[][..]),
        };
        let slot = slot.downcast_ref::<SlotExec>()?;
        let Source::Kept(number) = *slot.source() else { return None };
        let mut keys = (0..slot.schema().fields().len()).map(GroupColumn::Key).collect::<Vec<_>>();
        for (place, column) in stamped {
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

    /// With the counts that `filling` has, or the grouping with its keys.
    pub(crate) fn filled(&self, filling: &Filling<'_>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let Some(counts) = filling.counts.get(self.slot).and_then(Option::as_ref) else {
            return fill(&self.grouping, filling);
        };
        let Some(window) = filling.window else { return internal_err!("counts of no window") };
        let (schema, rows) = (self.schema(), counts.num_rows());
        let of = |(column, field): (&GroupColumn, &FieldRef)| -> ArrayRef {
            match column {
                GroupColumn::Key(key) => Arc::clone(counts.column(*key)),
                GroupColumn::Window(column) => column.constant(window, field.data_type(), rows),
            }
        };
        let mut columns: Vec<_> = self.columns.iter().zip(schema.fields()).map(of).collect();
        columns.extend(counts.columns().last().cloned());
        let batch = rebatch(&schema, columns, rows)?;
        Ok(Arc::new(SlotExec::full(Source::Kept(self.slot), batch, Arc::clone(self.properties()))))
    }
}

impl DisplayAs for CountedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountedExec: kept {}", self.slot)
    }
}

impl ExecutionPlan for CountedExec {
    fn name(&self) -> &'static str {
        "CountedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.grouping.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.grouping]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(grouping), true) => {
                Ok(Arc::new(Self { slot: self.slot, columns: self.columns.clone(), grouping }))
            }
            _ => internal_err!("CountedExec has one input"),
        }
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        self.replace_children(
            children,
            ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute),
        )
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        internal_err!("CountedExec is filled before it runs")
    }
}
