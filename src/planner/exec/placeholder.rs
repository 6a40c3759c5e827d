//! Placeholders: the leaves of physical plans, which receive the rows of a run.
//!
//! A plan is built once, with empty placeholders. To run it, [`fill`] rebuilds it from the leaves
//! up with the rows of this run in its placeholders. Two runs share only what never changes
//! (expressions, schemas, properties), so runs of one plan may overlap.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::Result as DfResult;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties,
    Partitioning, PlanProperties, ReplaceChildrenOptions, SendableRecordBatchStream,
};
use futures::StreamExt;

use crate::planner::exec::inputs::{Inputs, WindowColumn, rebatch, reshape};
use crate::planner::exec::key_counts::DistinctCount;
use crate::time::Window;

/// What a placeholder is filled with.
#[derive(Debug, Clone)]
pub(crate) enum PlaceholderSource {
    /// The input rows, and constants of the window.
    Rows(Vec<LeafColumn>),
    /// The output of the query's batch plan.
    BatchPlanOutput,
    /// The content of the state slot of this number.
    State(usize),
    /// Counts of the keys in the state.
    DistinctCount(Arc<DistinctCount>),
    /// A reference table or view: its name and the columns that are read.
    Relation(String, Vec<usize>),
}

/// A column of the query's leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LeafColumn {
    /// A column of the input, by its index in the input rows.
    Input(usize),
    /// A constant of the window.
    Window(WindowColumn),
}

/// A leaf that [`fill`] fills with rows.
#[derive(Debug, Clone)]
pub(crate) struct PlaceholderExec {
    source: PlaceholderSource,
    batches: Vec<RecordBatch>,
    properties: Arc<PlanProperties>,
}

impl PlaceholderExec {
    /// Creates an empty placeholder.
    pub(crate) fn new(source: PlaceholderSource, schema: SchemaRef) -> Self {
        Self { source, batches: Vec::new(), properties: leaf_properties(schema) }
    }

    /// What this placeholder is filled with.
    pub(crate) fn source(&self) -> &PlaceholderSource {
        &self.source
    }

    fn filled(&self, inputs: &Inputs<'_>) -> DfResult<Self> {
        let schema = self.properties.eq_properties.schema();
        let batches = match &self.source {
            PlaceholderSource::Rows(columns) => (inputs.rows.iter())
                .map(|batch| leaf_batch(batch, columns, schema, inputs.window))
                .collect::<DfResult<Vec<_>>>()?,
            PlaceholderSource::BatchPlanOutput => with_schema(inputs.rows, schema)?,
            PlaceholderSource::State(slot) => match inputs.state.get(*slot) {
                Some(batches) => with_schema(batches, schema)?,
                None => return internal_err!("no state for slot {slot}"),
            },
            PlaceholderSource::DistinctCount(count) => vec![count.rows(inputs, schema)?],
            PlaceholderSource::Relation(name, columns) => match inputs.relations.get(name) {
                Some(batches) => (batches.iter())
                    .map(|batch| reshape(&batch.project(columns)?, schema))
                    .collect::<DfResult<Vec<_>>>()?,
                None => return internal_err!("no content for the relation '{name}'"),
            },
        };
        Ok(Self { source: self.source.clone(), batches, properties: Arc::clone(&self.properties) })
    }

    /// An estimate that makes the reference table the build side of a join, never the stream.
    fn expected_rows(&self) -> usize {
        match self.source {
            PlaceholderSource::Relation(..) => 1_000,
            PlaceholderSource::Rows(_)
            | PlaceholderSource::BatchPlanOutput
            | PlaceholderSource::State(_)
            | PlaceholderSource::DistinctCount(_) => 1_000_000,
        }
    }
}

/// The properties of one partition of rows in no known order.
pub(crate) fn leaf_properties(schema: SchemaRef) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

fn leaf_batch(
    batch: &RecordBatch,
    columns: &[LeafColumn],
    schema: &SchemaRef,
    window: Option<Window>,
) -> DfResult<RecordBatch> {
    let mut arrays = Vec::with_capacity(columns.len());
    for (column, field) in columns.iter().zip(schema.fields()) {
        arrays.push(match (column, window) {
            (LeafColumn::Input(index), _) if *index < batch.num_columns() => {
                Arc::clone(batch.column(*index))
            }
            (LeafColumn::Window(column), Some(window)) => {
                column.constant(window, field.data_type(), batch.num_rows())
            }
            _ => return internal_err!("column '{}' of the leaf is missing", field.name()),
        });
    }
    rebatch(schema, arrays, batch.num_rows())
}

fn with_schema(batches: &[RecordBatch], schema: &SchemaRef) -> DfResult<Vec<RecordBatch>> {
    batches.iter().map(|batch| reshape(batch, schema)).collect()
}

impl DisplayAs for PlaceholderExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            PlaceholderSource::Rows(_) => write!(f, "Placeholder: rows"),
            PlaceholderSource::BatchPlanOutput => {
                write!(f, "Placeholder: output of the batch plan")
            }
            PlaceholderSource::State(slot) => write!(f, "Placeholder: state {slot}"),
            PlaceholderSource::DistinctCount(count) => {
                write!(f, "Placeholder: counts of state {}", count.slot)
            }
            PlaceholderSource::Relation(name, _) => write!(f, "Placeholder: {name}"),
        }
    }
}

impl ExecutionPlan for PlaceholderExec {
    fn name(&self) -> &'static str {
        "PlaceholderExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let batches = futures::stream::iter(self.batches.clone().into_iter().map(Ok));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), batches)))
    }

    fn statistics_from_inputs(
        &self,
        _: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> DfResult<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(self.properties.eq_properties.schema());
        statistics.num_rows = Precision::Inexact(self.expected_rows());
        Ok(Arc::new(statistics))
    }
}

/// Adds the columns of the window. They are constant within one run, so the state omits them.
#[derive(Debug, Clone)]
pub(crate) struct WindowColumnsExec {
    input: Arc<dyn ExecutionPlan>,
    /// The columns with their indexes in the output, in ascending order.
    columns: Vec<(usize, WindowColumn)>,
    window: Option<Window>,
    properties: Arc<PlanProperties>,
}

impl WindowColumnsExec {
    /// Adds `columns` to the columns of `input`; together they form `schema`.
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        columns: Vec<(usize, WindowColumn)>,
        schema: SchemaRef,
    ) -> Self {
        Self { input, columns, window: None, properties: leaf_properties(schema) }
    }

    /// The plan whose rows get the columns.
    pub(crate) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// The added columns with their indexes in the output, in ascending order.
    pub(crate) fn columns(&self) -> &[(usize, WindowColumn)] {
        &self.columns
    }
}

impl DisplayAs for WindowColumnsExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.columns.iter().map(|(_, column)| column.name()).collect();
        write!(f, "WindowColumnsExec: {}", names.join(", "))
    }
}

impl ExecutionPlan for WindowColumnsExec {
    fn name(&self) -> &'static str {
        "WindowColumnsExec"
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
            (Some(input), true) => Ok(Arc::new(Self { input, ..Self::clone(&self) })),
            _ => internal_err!("WindowColumnsExec has one input"),
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

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> DfResult<SendableRecordBatchStream> {
        let Some(window) = self.window else {
            return internal_err!("a windowed plan runs without a window");
        };
        let (schema, columns) = (self.schema(), self.columns.clone());
        let input = self.input.execute(partition, context)?;
        let extended = input.map(move |batch| {
            let batch = batch?;
            let mut arrays = batch.columns().to_vec();
            for (place, column) in &columns {
                let data_type = schema.field(*place).data_type();
                arrays.insert(*place, column.constant(window, data_type, batch.num_rows()));
            }
            rebatch(&schema, arrays, batch.num_rows())
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), extended)))
    }
}

/// Returns a copy of `plan` with its placeholders filled. Every node is new.
pub(crate) fn fill(
    plan: &Arc<dyn ExecutionPlan>,
    inputs: &Inputs<'_>,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    if let Some(placeholder) = plan.downcast_ref::<PlaceholderExec>() {
        return match placeholder.source() {
            PlaceholderSource::DistinctCount(count) if count.counts(inputs).is_none() => {
                fill(&count.grouping, inputs)
            }
            _ => Ok(Arc::new(placeholder.filled(inputs)?)),
        };
    }
    let children = plan.children();
    if children.is_empty() {
        return Ok(Arc::clone(plan));
    }
    let mut filled =
        (children.into_iter()).map(|child| fill(child, inputs)).collect::<DfResult<Vec<_>>>()?;
    if let (Some(exec), 1) = (plan.downcast_ref::<WindowColumnsExec>(), filled.len()) {
        let input = filled.swap_remove(0);
        return Ok(Arc::new(WindowColumnsExec { input, window: inputs.window, ..exec.clone() }));
    }
    // Filled placeholders share the properties of the empty ones, so the parents keep theirs too.
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    let rebuilt = Arc::clone(plan).replace_children(filled, options)?;
    // HashJoinExec would reuse its build side and SortExec its bounds from the previous run.
    if is_stateless_when_rebuilt(&rebuilt) { Ok(rebuilt) } else { rebuilt.reset_state() }
}

/// Whether `replace_children` of this node drops the state of earlier runs. The nodes of every
/// batch plan qualify.
fn is_stateless_when_rebuilt(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<AggregateExec>() || plan.is::<FilterExec>() || plan.is::<ProjectionExec>()
}

/// Runs `plan` with `inputs` on the current task. Returns one batch, which may be empty.
pub(crate) async fn run(
    plan: &Arc<dyn ExecutionPlan>,
    inputs: &Inputs<'_>,
    context: &Arc<TaskContext>,
) -> DfResult<RecordBatch> {
    let plan = fill(plan, inputs)?;
    let mut batches = Vec::new();
    for partition in 0..plan.output_partitioning().partition_count() {
        let mut stream = plan.execute(partition, Arc::clone(context))?;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if batch.num_rows() > 0 {
                batches.push(batch);
            }
        }
    }
    concat(&plan.schema(), batches)
}

/// Concatenates `batches` into one batch of `schema`.
pub(crate) fn concat(schema: &SchemaRef, mut batches: Vec<RecordBatch>) -> DfResult<RecordBatch> {
    match batches.len() {
        0 => Ok(RecordBatch::new_empty(Arc::clone(schema))),
        1 => reshape(&batches.swap_remove(0), schema),
        _ => reshape(&concat_batches(&batches[0].schema(), &batches)?, schema),
    }
}
