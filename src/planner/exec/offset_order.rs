//! Partitions one after another, where DataFusion would take whichever is ready: a union's rows
//! must come in the same order each time, and on the present task.

use std::fmt;
use std::sync::Arc;

use datafusion::common::internal_err;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result as DfResult;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties,
    PlanProperties, ReplaceChildrenOptions, SendableRecordBatchStream,
};
use futures::TryStreamExt;

use crate::planner::exec::placeholder::leaf_properties;

/// `plan` with every merge of partitions in order.
pub(crate) fn in_order(plan: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_up(|node| match node.downcast_ref::<CoalescePartitionsExec>() {
        Some(merge) if merge.fetch().is_none() => {
            let properties = leaf_properties(merge.schema());
            let input = Arc::clone(merge.input());
            let node = Arc::new(OffsetOrderExec { input, properties }) as Arc<dyn ExecutionPlan>;
            Ok(Transformed::yes(node))
        }
        _ => Ok(Transformed::no(node)),
    })?;
    Ok(plan.data)
}

/// Reads the partitions of its input one after another.
#[derive(Debug)]
struct OffsetOrderExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for OffsetOrderExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OffsetOrderExec")
    }
}

impl ExecutionPlan for OffsetOrderExec {
    fn name(&self) -> &'static str {
        "OffsetOrderExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
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
            (Some(input), true) => {
                Ok(Arc::new(Self { input, properties: Arc::clone(&self.properties) }))
            }
            _ => internal_err!("OffsetOrderExec has one input"),
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

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let partitions = (0..self.input.output_partitioning().partition_count())
            .map(|partition| self.input.execute(partition, Arc::clone(&context)))
            .collect::<Vec<_>>();
        let rows = futures::stream::iter(partitions).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
