//! Slots: the leaves of physical plans, where rows are put in.
//!
//! A plan is made once, with empty slots. To run it, [`fill`] rebuilds it from the leaves up with
//! the rows of this run in its slots; nothing is shared between two runs but what never changes
//! (expressions, schemas, properties), so runs of one plan may overlap.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, SchemaRef};
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

use crate::planner::distinct_count::DistinctCount;
use crate::time::Window;

/// Present content of reference tables and views, by name.
pub type Relations = HashMap<String, Arc<Vec<RecordBatch>>>;

/// `window_time` is the last millisecond inside its window, as in Flink.
const WINDOW_TIME_US: i64 = 1_000;

/// What a slot is filled with.
#[derive(Debug, Clone)]
pub(crate) enum PlaceholderSource {
    /// The rows handed to the plan, and constants of the window.
    Rows(Vec<LeafColumn>),
    /// The output of the query's front.
    BatchPlanOutput,
    /// What is kept in the slot of this number.
    State(usize),
    /// Counts of the keys that are kept.
    DistinctCount(Arc<DistinctCount>),
    /// A reference table or view: its name and the columns that are read.
    Relation(String, Vec<usize>),
}

/// A column of the leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LeafColumn {
    /// A column of the input, by its place in the rows handed over.
    Input(usize),
    /// A constant of the window.
    Window(WindowColumn),
}

/// A column that tells the window.
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
    /// All of them, in the order in which they follow the input's columns.
    pub(crate) const ALL: [Self; 3] = [Self::Start, Self::End, Self::Time];

    /// Its name in SQL.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "window_start",
            Self::End => "window_end",
            Self::Time => "window_time",
        }
    }

    /// Its value, `rows` times, as `data_type` (a timestamp in microseconds).
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

/// What the slots of one run are filled with.
pub(crate) struct Inputs<'a> {
    /// The rows of the run; for a closing plan none.
    pub(crate) rows: &'a [RecordBatch],
    /// Per slot what is kept.
    pub(crate) kept: &'a [Vec<RecordBatch>],
    /// Per slot, what [`PlaceholderSource::DistinctCount`] is filled with instead; may be shorter.
    pub(crate) counts: &'a [Option<RecordBatch>],
    /// The window of the run.
    pub(crate) window: Option<Window>,
    /// Reference tables and views.
    pub(crate) relations: &'a Relations,
}

/// A leaf whose rows are put in by [`fill`].
#[derive(Debug, Clone)]
pub(crate) struct PlaceholderExec {
    source: PlaceholderSource,
    batches: Vec<RecordBatch>,
    properties: Arc<PlanProperties>,
}

impl PlaceholderExec {
    /// An empty slot.
    pub(crate) fn new(source: PlaceholderSource, schema: SchemaRef) -> Self {
        Self { source, batches: Vec::new(), properties: leaf_properties(schema) }
    }

    /// What it is filled with.
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
            PlaceholderSource::State(slot) => match inputs.kept.get(*slot) {
                Some(batches) => with_schema(batches, schema)?,
                None => return internal_err!("nothing was handed over for slot {slot}"),
            },
            PlaceholderSource::DistinctCount(counted) => vec![counted.rows(inputs, schema)?],
            PlaceholderSource::Relation(name, columns) => match inputs.relations.get(name) {
                Some(batches) => (batches.iter())
                    .map(|batch| reshape(&batch.project(columns)?, schema))
                    .collect::<DfResult<Vec<_>>>()?,
                None => return internal_err!("the content of '{name}' was not handed over"),
            },
        };
        Ok(Self { source: self.source.clone(), batches, properties: Arc::clone(&self.properties) })
    }

    /// A guess that makes a reference table the build side of a join, never the stream.
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

/// Properties of rows of one partition in no known order.
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
            _ => return internal_err!("the leaf lacks its column '{}'", field.name()),
        });
    }
    rebatch(schema, arrays, batch.num_rows())
}

fn with_schema(batches: &[RecordBatch], schema: &SchemaRef) -> DfResult<Vec<RecordBatch>> {
    batches.iter().map(|batch| reshape(batch, schema)).collect()
}

/// The same columns under `schema`, which may differ in names and in what may be null.
pub(crate) fn reshape(batch: &RecordBatch, schema: &SchemaRef) -> DfResult<RecordBatch> {
    rebatch(schema, batch.columns().to_vec(), batch.num_rows())
}

pub(crate) fn rebatch(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> DfResult<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

impl DisplayAs for PlaceholderExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            PlaceholderSource::Rows(_) => write!(f, "Placeholder: rows"),
            PlaceholderSource::BatchPlanOutput => {
                write!(f, "Placeholder: output of the batch plan")
            }
            PlaceholderSource::State(slot) => write!(f, "Placeholder: state {slot}"),
            PlaceholderSource::DistinctCount(counted) => {
                write!(f, "Placeholder: counts of state {}", counted.slot)
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

/// Adds the columns of the window, which are the same in all rows of one run and so are not kept.
#[derive(Debug, Clone)]
pub(crate) struct WindowColumnsExec {
    input: Arc<dyn ExecutionPlan>,
    /// Where the columns go in the output, in ascending order.
    columns: Vec<(usize, WindowColumn)>,
    window: Option<Window>,
    properties: Arc<PlanProperties>,
}

impl WindowColumnsExec {
    /// Adds `columns` to those of `input`; together they make up `schema`.
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        columns: Vec<(usize, WindowColumn)>,
        schema: SchemaRef,
    ) -> Self {
        Self { input, columns, window: None, properties: leaf_properties(schema) }
    }

    /// What the columns are added to.
    pub(crate) fn input(&self) -> &Arc<dyn ExecutionPlan> {
        &self.input
    }

    /// Where the columns go in the output, in ascending order.
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
        let omitted_keys = input.map(move |batch| {
            let batch = batch?;
            let mut arrays = batch.columns().to_vec();
            for (place, column) in &columns {
                let data_type = schema.field(*place).data_type();
                arrays.insert(*place, column.constant(window, data_type, batch.num_rows()));
            }
            rebatch(&schema, arrays, batch.num_rows())
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), omitted_keys)))
    }
}

/// The plan with its slots filled, every node fresh.
pub(crate) fn fill(
    plan: &Arc<dyn ExecutionPlan>,
    inputs: &Inputs<'_>,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    if let Some(slot) = plan.downcast_ref::<PlaceholderExec>() {
        return match slot.source() {
            PlaceholderSource::DistinctCount(counted) if counted.counts(inputs).is_none() => {
                fill(&counted.grouping, inputs)
            }
            _ => Ok(Arc::new(slot.filled(inputs)?)),
        };
    }
    let children = plan.children();
    if children.is_empty() {
        return Ok(Arc::clone(plan));
    }
    let mut fresh =
        (children.into_iter()).map(|child| fill(child, inputs)).collect::<DfResult<Vec<_>>>()?;
    if let (Some(stamp), 1) = (plan.downcast_ref::<WindowColumnsExec>(), fresh.len()) {
        let input = fresh.swap_remove(0);
        return Ok(Arc::new(WindowColumnsExec { input, window: inputs.window, ..stamp.clone() }));
    }
    // The slots share their properties with the empty ones, so nothing above needs new ones.
    let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
    let rebuilt = Arc::clone(plan).replace_children(fresh, options)?;
    // HashJoinExec would keep its build side and SortExec its bounds from the run before.
    if is_clean_when_rebuilt(&rebuilt) { Ok(rebuilt) } else { rebuilt.reset_state() }
}

/// Nodes of every front, whose `replace_children` leaves nothing of another run behind.
fn is_clean_when_rebuilt(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<AggregateExec>() || plan.is::<FilterExec>() || plan.is::<ProjectionExec>()
}

/// Runs `plan` with `inputs` on the present task; one batch, which may be empty.
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

/// All rows in one batch of `schema`.
pub(crate) fn concat(schema: &SchemaRef, mut batches: Vec<RecordBatch>) -> DfResult<RecordBatch> {
    match batches.len() {
        0 => Ok(RecordBatch::new_empty(Arc::clone(schema))),
        1 => reshape(&batches.swap_remove(0), schema),
        _ => reshape(&concat_batches(&batches[0].schema(), &batches)?, schema),
    }
}
