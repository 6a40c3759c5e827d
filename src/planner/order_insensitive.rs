//! Detects queries whose state does not depend on the order of rows. For them a replay of history
//! needs no sort.

use std::sync::Arc;

use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::AggregateExec;

use crate::planner::query_plan::QueryPlan;

/// Aggregates whose state is bit for bit the same for every order of rows, except over floating-point
/// numbers, whose sums depend on the order of rounding.
const ORDER_INSENSITIVE: [&str; 4] = ["count", "max", "min", "sum"];

impl QueryPlan {
    /// Whether the state of a window is the same for every order of its rows. It is not if the state
    /// contains rows, or if the query is stateless.
    pub fn is_order_insensitive(&self) -> bool {
        let slots = &self.executable.slots;
        let partials = slots.iter().filter_map(|slot| slot.partial.as_ref());
        !slots.is_empty()
            && partials.clone().count() == slots.len()
            && partials.clone().all(is_insensitive)
    }
}

fn is_insensitive(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let own = plan.downcast_ref::<AggregateExec>().is_none_or(|aggregate| {
        aggregate.aggr_expr().iter().all(|function| {
            function.order_sensitivity() == AggregateOrderSensitivity::Insensitive
                && function.order_bys().is_empty()
                && ORDER_INSENSITIVE.contains(&function.fun().name())
                && !function.field().data_type().is_floating()
        })
    });
    own && plan.children().into_iter().all(is_insensitive)
}
