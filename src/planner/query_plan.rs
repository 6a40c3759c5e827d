//! The plan of a query, with the methods that run it.
//!
//! ```text
//!   rows of one bucket ─► run_batch_plan ─► one batch per state slot ─► reduce ─► run_final_plan ─► results
//!                         (batch plan, then                             (fewer,   (final aggregate,
//!                          partial aggregate)                           larger)    rest of the query)
//! ```
//!
//! All methods run on the current task and are stateless: the caller owns the window state, which
//! consists of plain record batches.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;

use crate::catalog::Query;
use crate::error::{Error, Kind, Result};
use crate::planner::errors::{at_quoted, describe};
use crate::planner::exec::inputs::{Inputs, Relations, reshape};
use crate::planner::exec::placeholder;
use crate::planner::physical_plan::{Executable, Reduce, StateSlotPlan};
use crate::state::SlidingKeySet;
use crate::state::key_set::{self, KeySet};
use crate::time::Window;
use crate::types::WindowSpec;

/// Where a query's rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A stream.
    Stream(String),
    /// The append-only results of another query.
    Query(String),
    /// Views and reference tables only.
    Views,
}

/// Which state a query has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanKind {
    /// No state: every batch gives its results at once.
    Stateless,
    /// One state per window, until the window closes.
    Windowed,
    /// Partial aggregates without end. The content of the view is computed per epoch.
    View,
    /// No state: the content is computed from the content of views.
    Derived,
}

/// A planned query.
pub struct QueryPlan {
    /// The query's name.
    pub name: String,
    /// The query's text and settings.
    pub query: Arc<Query>,
    /// Where the query's rows come from.
    pub input: Input,
    /// Which state the query has.
    pub kind: PlanKind,
    /// How rows are assigned to windows; only for windowed queries.
    pub window: Option<WindowSpec>,
    /// The schema of the results. Instants are `Timestamp(us, zone)`.
    pub output: SchemaRef,
    /// The output columns that identify a result row, with `window_start` if the query has windows
    /// and selects it. Without a known key: all columns for views and revisable results, otherwise
    /// none.
    pub key: Vec<usize>,
    /// The output column that readers of the results use as event time.
    pub event_time: Option<usize>,
    /// Whether an output column identifies the window of a row.
    pub has_window_column: bool,
    /// The reference tables and views that the query reads besides its input.
    pub tables: Vec<String>,
    /// Equal for equal plans. The part after the `+` is equal for plans with the same state.
    pub fingerprint: String,
    /// Whether hopping windows can be merged from panes.
    pub panes: bool,
    pub(crate) leaf_schema: SchemaRef,
    pub(crate) executable: Executable,
    /// The reference tables that the key assumes to have one row per joined value.
    pub(crate) assumed_unique: Vec<String>,
    /// The plan for users.
    pub(crate) explanation: String,
    /// The plan as snapshots store it.
    pub(crate) stored_text: String,
    pub(crate) state_description: String,
    /// The context of the plans that run on every batch.
    pub(crate) context: Arc<TaskContext>,
    /// The context of final plans, which may limit memory and spill to disk.
    pub(crate) final_context: Arc<TaskContext>,
}

impl QueryPlan {
    /// The schema of the leaf: the input columns that the plan reads, followed for TUMBLE and HOP by
    /// `window_start`, `window_end` and `window_time`, which the plan adds itself.
    pub fn leaf_schema(&self) -> SchemaRef {
        Arc::clone(&self.leaf_schema)
    }

    /// Whether the results are a view: current content instead of events.
    pub fn is_view(&self) -> bool {
        matches!(self.kind, PlanKind::View | PlanKind::Derived)
    }

    /// The indexes of the input columns that the plan reads, ascending. [`QueryPlan::run_batch_plan`]
    /// and [`QueryPlan::run_stateless`] take rows of these columns.
    pub fn leaf_projection(&self) -> &[usize] {
        &self.executable.input_columns
    }

    /// The number of state slots.
    pub fn slots(&self) -> usize {
        self.executable.slots.len()
    }

    /// Returns the results of a stateless query for `rows`.
    pub async fn run_stateless(
        &self,
        rows: RecordBatch,
        relations: &Relations,
    ) -> Result<RecordBatch> {
        let inputs = Inputs { rows: &[rows], state: &[], counts: &[], window: None, relations };
        let final_plan = &self.executable.final_plan;
        let result = placeholder::run(final_plan, &inputs, &self.context).await;
        result.and_then(|batch| reshape(&batch, &self.output)).map_err(|e| self.failed(&e))
    }

    /// Returns the state of the rows of one bucket: a window, a pane, or the single bucket of a view.
    /// The result has one batch per state slot. Batches of key sets may repeat keys.
    pub async fn run_batch_plan(
        &self,
        rows: RecordBatch,
        bucket: Option<Window>,
        relations: &Relations,
    ) -> Result<Vec<RecordBatch>> {
        let mut state: Vec<Option<RecordBatch>> = vec![None; self.slots()];
        let rows = [rows];
        for batch_plan in &self.executable.batch_plans {
            let inputs = Inputs { rows: &rows, state: &[], counts: &[], window: bucket, relations };
            let output = match &batch_plan.plan {
                Some(plan) => Some([self.run(plan, &inputs).await?]),
                None => None,
            };
            let inputs = Inputs { rows: output.as_ref().unwrap_or(&rows), ..inputs };
            for slot in &batch_plan.slots {
                let StateSlotPlan { partial, schema, .. } = &self.executable.slots[*slot];
                let batch = match (partial, &output) {
                    (Some(partial), _) => self.run(partial, &inputs).await?,
                    (None, Some([output])) => output.clone(),
                    (None, None) => {
                        return Err(Error::internal(
                            "a batch plan has neither a plan nor a partial aggregate",
                        ));
                    }
                };
                state[*slot] = Some(reshape(&batch, schema)?);
            }
        }
        Ok(state.into_iter().flatten().collect())
    }

    /// Runs what runs on every batch on none, for what is found only when it runs, such as
    /// `date_trunc('dya', t)`.
    ///
    /// # Errors
    /// [`Kind::Sql`], with its place.
    pub async fn dry_run(&self) -> Result<()> {
        let inputs: Vec<usize> = (0..self.leaf_projection().len()).collect();
        let rows = RecordBatch::new_empty(Arc::new(self.leaf_schema.project(&inputs)?));
        let empty = |table: &String| (table.clone(), Arc::new(Vec::new()));
        let relations: Relations = self.tables.iter().map(empty).collect();
        let ran = match self.kind {
            PlanKind::Stateless => self.run_stateless(rows, &relations).await.map(drop),
            PlanKind::Windowed => {
                let window = Window { start: 0, end: 1 };
                self.run_batch_plan(rows, Some(window), &relations).await.map(drop)
            }
            PlanKind::View => self.run_batch_plan(rows, None, &relations).await.map(drop),
            PlanKind::Derived => Ok(()),
        };
        ran.map_err(|mut error| {
            error.kind = Kind::Sql;
            at_quoted(error, &self.query)
        })
    }

    /// Whether a slot keeps keys and no aggregates: of such, each key counts once.
    pub fn is_key_set(&self, slot: usize) -> bool {
        self.slot(slot).is_ok_and(StateSlotPlan::is_key_set)
    }

    /// Whether [`QueryPlan::run_final_plan`] accepts counts per group instead of the keys of the set.
    pub fn uses_counts(&self, slot: usize) -> bool {
        self.slot(slot).is_ok_and(|slot| slot.uses_counts)
    }

    /// Creates an empty key set for the state slot `slot`.
    pub(crate) fn new_key_set(&self, slot: usize) -> Result<KeySet> {
        Ok(KeySet::new(Arc::clone(&self.slot(slot)?.schema))?)
    }

    /// Creates an empty key set over panes for the state slot `slot`.
    pub(crate) fn new_sliding_key_set(&self, slot: usize) -> Result<SlidingKeySet> {
        Ok(SlidingKeySet::new(Arc::clone(&self.slot(slot)?.schema))?)
    }

    /// Concatenates all rows of a state slot into one batch, in their order.
    pub(crate) fn concat(&self, slot: usize, batches: Vec<RecordBatch>) -> Result<RecordBatch> {
        Ok(placeholder::concat(&self.slot(slot)?.schema, batches)?)
    }

    /// Removes repeated keys from the batches of key sets.
    pub async fn dedup_key_sets(
        &self,
        mut state: Vec<Vec<RecordBatch>>,
    ) -> Result<Vec<Vec<RecordBatch>>> {
        for (slot, batches) in state.iter_mut().enumerate() {
            if !batches.is_empty() && self.is_key_set(slot) {
                *batches = vec![self.reduce(slot, std::mem::take(batches)).await?];
            }
        }
        Ok(state)
    }

    /// Merges the batches of a state slot into one: one row per key, or all rows if it has no keys.
    pub async fn reduce(&self, slot: usize, batches: Vec<RecordBatch>) -> Result<RecordBatch> {
        let StateSlotPlan { reduce, schema, .. } = self.slot(slot)?;
        let reduce = match reduce {
            Reduce::Rows => return self.concat(slot, batches),
            Reduce::Set(spare) => {
                let spared = spare.lock().ok().and_then(|mut spare| spare.take());
                let mut groups = spared.map_or_else(|| self.new_key_set(slot), Ok)?;
                let batch = key_set::distinct(&mut groups, &batches)?;
                if let (true, Ok(mut spare)) =
                    (batch.num_rows() <= key_set::MAX_SPARE_KEYS, spare.lock())
                {
                    *spare = Some(groups);
                }
                return Ok(batch);
            }
            Reduce::Partials(reduce) => reduce,
        };
        let mut state = vec![Vec::new(); self.slots()];
        state[slot] = batches;
        let relations = Relations::default();
        let inputs =
            Inputs { rows: &[], state: &state, counts: &[], window: None, relations: &relations };
        let batch = self.run(reduce, &inputs).await?;
        Ok(reshape(&batch, schema)?)
    }

    /// Replaces the window columns among the keys of `batch` by those of `window`.
    pub fn set_window(
        &self,
        slot: usize,
        batch: &RecordBatch,
        window: Window,
    ) -> Result<RecordBatch> {
        let StateSlotPlan { window_keys, schema, .. } = self.slot(slot)?;
        if window_keys.is_empty() {
            return Ok(batch.clone());
        }
        let mut columns = batch.columns().to_vec();
        for (index, column) in window_keys {
            let data_type = schema.field(*index).data_type();
            columns[*index] = column.constant(window, data_type, batch.num_rows());
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    /// Returns the results over the state of one window or of a view. Batches of key sets must not
    /// repeat keys, see [`QueryPlan::dedup_key_sets`].
    pub async fn run_final_plan(
        &self,
        content: impl Into<WindowState>,
        window: Option<Window>,
        relations: &Relations,
    ) -> Result<RecordBatch> {
        let WindowState { batches: state, counts } = &content.into();
        let inputs = Inputs { rows: &[], state, counts, window, relations };
        let result =
            placeholder::run(&self.executable.final_plan, &inputs, &self.final_context).await;
        let result = result.and_then(|batch| reshape(&batch, &self.output));
        let result = result.map_err(|error| self.failed(&error))?;
        self.check_unique(&result)?;
        Ok(result)
    }

    /// Returns the batch plan, the window state and the final plan as text for users.
    pub fn explain(&self) -> String {
        self.explanation.clone()
    }

    /// Returns the plan as snapshots store it. Its words are the same in every version, because a
    /// pipeline compares it with the text that an older binary has stored.
    pub fn stored_text(&self) -> String {
        self.stored_text.clone()
    }

    /// Describes the state in one line.
    pub fn state_description(&self) -> String {
        self.state_description.clone()
    }

    async fn run(
        &self,
        plan: &Arc<dyn datafusion::physical_plan::ExecutionPlan>,
        inputs: &Inputs<'_>,
    ) -> Result<RecordBatch> {
        placeholder::run(plan, inputs, &self.context).await.map_err(|error| self.failed(&error))
    }

    fn slot(&self, slot: usize) -> Result<&StateSlotPlan> {
        let missing = || Error::internal(format!("query '{}' has no state slot {slot}", self.name));
        self.executable.slots.get(slot).ok_or_else(missing)
    }

    /// Translates an error of a run. An error that a single row causes is [`Kind::Data`]; an error that
    /// any row would cause is not.
    fn failed(&self, error: &DataFusionError) -> Error {
        let kind = match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Kind::Config,
            DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) => Kind::Storage,
            DataFusionError::Internal(_) => Kind::Internal,
            _ => Kind::Data,
        };
        let translated =
            Error::new(kind, describe(error).0).detail(format!("in query '{}'", self.name));
        match kind {
            Kind::Config => translated.hint("raise millstream.memory_limit in the schema file"),
            _ => translated,
        }
    }

    /// Checks that the key is unique. After a join with a reference table it is unique only if the table
    /// has one row per joined value.
    fn check_unique(&self, result: &RecordBatch) -> Result<()> {
        if self.assumed_unique.is_empty() || self.key.is_empty() {
            return Ok(());
        }
        let keys = result.project(&self.key)?;
        let fields = keys.schema();
        let fields = fields.fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let rows = RowConverter::new(fields.collect())?.convert_columns(keys.columns())?;
        let mut seen = HashSet::with_capacity(rows.num_rows());
        if rows.iter().all(|row| seen.insert(row)) {
            return Ok(());
        }
        let tables = self.assumed_unique.join("' or '");
        Err(Error::new(Kind::Data, format!("query '{}' has two rows with the same key", self.name))
            .detail(format!("the reference table '{tables}' has several rows for one value"))
            .hint("keep one row per value in the table"))
    }
}

/// The state of a window or a view, by state slot.
#[derive(Debug, Default)]
pub struct WindowState {
    /// Rows and partial aggregates.
    pub batches: Vec<Vec<RecordBatch>>,
    /// For slots with [`QueryPlan::uses_counts`], instead of the keys: the columns of each group and
    /// its number of keys. May be shorter than `batches`.
    pub counts: Vec<Option<RecordBatch>>,
}

impl From<Vec<Vec<RecordBatch>>> for WindowState {
    fn from(state: Vec<Vec<RecordBatch>>) -> Self {
        Self { batches: state, counts: Vec::new() }
    }
}

impl std::fmt::Debug for QueryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryPlan").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether results can have a column of this type.
pub(crate) fn can_be_output(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null | DataType::Interval(_) | DataType::Duration(_) | DataType::Union(..) => {
            false
        }
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            can_be_output(field.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| can_be_output(field.data_type())),
        _ => true,
    }
}
