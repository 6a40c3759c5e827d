//! Replaces the counting of distinct keys in final plans by counts that the key set maintains.
//!
//! The final plan of `count(DISTINCT x)` groups the keys of a set (see
//! [`crate::planner::distinct_rewrite`]). A placeholder replaces that grouping if the final plan
//! does nothing else with the set. It is filled with the counts of
//! `state::sliding_key_set` or `state::key_set`. Without counts, the grouping
//! runs instead.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result as DfResult;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};

use crate::planner::exec::key_counts::{DistinctCount, GroupColumn};
use crate::planner::exec::placeholder::{PlaceholderExec, PlaceholderSource, WindowColumnsExec};

/// Replaces every grouping in `plan` that counts the keys of a set. Returns the new plan and the
/// state slots of these sets. `is_key_set` reports which state slots are key sets.
pub(crate) fn replace_counts(
    plan: Arc<dyn ExecutionPlan>,
    is_key_set: impl Fn(usize) -> bool,
) -> DfResult<(Arc<dyn ExecutionPlan>, Vec<usize>)> {
    let mut slots = Vec::new();
    let plan = plan.transform_up(|node| {
        let count = node.downcast_ref::<AggregateExec>().and_then(distinct_count);
        Ok(match count.filter(|count| is_key_set(count.slot)) {
            Some(count) => {
                slots.push(count.slot);
                let placeholder = PlaceholderExec::new(
                    PlaceholderSource::DistinctCount(Arc::new(count)),
                    node.schema(),
                );
                Transformed::yes(Arc::new(placeholder) as Arc<dyn ExecutionPlan>)
            }
            None => Transformed::no(node),
        })
    })?;
    Ok((plan.data, slots))
}

/// Returns what replaces `grouping`, if that groups the keys of a state slot by all columns but the
/// last and counts the last.
fn distinct_count(grouping: &AggregateExec) -> Option<DistinctCount> {
    let is_simple = *grouping.mode() == AggregateMode::Single
        && grouping.limit_options().is_none()
        && grouping.group_expr().is_single()
        && grouping.filter_expr().iter().all(Option::is_none);
    let [count] = grouping.aggr_expr() else { return None };
    if !is_simple || count.fun().name() != "count" || count.is_distinct() {
        return None;
    }
    let (slot, omitted_keys) = match grouping.input().downcast_ref::<WindowColumnsExec>() {
        Some(exec) => (exec.input(), exec.columns()),
        None => (grouping.input(), &[][..]),
    };
    let slot = slot.downcast_ref::<PlaceholderExec>()?;
    let PlaceholderSource::State(number) = *slot.source() else { return None };
    let mut keys = (0..slot.schema().fields().len()).map(GroupColumn::Key).collect::<Vec<_>>();
    for (index, column) in omitted_keys {
        keys.insert(*index, GroupColumn::Window(*column));
    }
    let column_of = |expr: &Arc<dyn PhysicalExpr>| {
        expr.downcast_ref::<Column>().and_then(|column| keys.get(column.index()).copied())
    };
    let argument = slot.schema().fields().len().checked_sub(1)?;
    let counts_argument = match count.expressions().as_slice() {
        [expr] => matches!(column_of(expr), Some(GroupColumn::Key(key)) if key == argument),
        _ => false,
    };
    let groups = grouping.group_expr().expr().iter();
    let columns = groups.map(|(expr, _)| column_of(expr)).collect::<Option<Vec<_>>>()?;
    let is_grouped =
        |key| columns.iter().any(|column| matches!(column, GroupColumn::Key(k) if *k == key));
    let groups_by_others = argument > 0 && (0..argument).all(is_grouped) && !is_grouped(argument);
    (counts_argument && groups_by_others).then(|| DistinctCount {
        slot: number,
        columns,
        grouping: Arc::new(grouping.clone()),
    })
}
