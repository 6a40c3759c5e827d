//! A query's plan as the pipeline runs it.
//!
//! ```text
//!   rows of one bucket ──► absorb ──► one batch per slot ──► reduce ──► close ──► results
//!                          (batch_plan,                          (fewer,    (final aggregate,
//!                           partial aggregate)               larger)    final_plan plan)
//! ```
//!
//! All methods run on the present task and keep no state of their own: what is kept is the
//! caller's, as plain record batches.

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
use crate::planner::exec::placeholder::{self, Inputs, Relations};
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

/// What a query keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanKind {
    /// Nothing: results come out with the batch.
    Stateless,
    /// Each window until it closes.
    Windowed,
    /// Partials for ever; its content is worked out per epoch.
    View,
    /// Nothing: it is worked out from the content of views.
    Derived,
}

/// A planned query.
pub struct QueryPlan {
    /// The query's name.
    pub name: String,
    /// Its text and settings.
    pub query: Arc<Query>,
    /// Where its rows come from.
    pub input: Input,
    /// What it keeps.
    pub kind: PlanKind,
    /// How its rows are put into windows; of windowed queries only.
    pub window: Option<WindowSpec>,
    /// The columns of its results; instants are `Timestamp(us, zone)`.
    pub output: SchemaRef,
    /// Output columns that tell its rows apart (with `window_start`, if it has windows and selects
    /// it). Empty if none are known; but of views, of early and of corrected results then all.
    pub key: Vec<usize>,
    /// The output column that is event time to those who read the results.
    pub event_time: Option<usize>,
    /// Whether an output column says which window a row belongs to.
    pub has_window_column: bool,
    /// Reference tables and views that it reads besides its input.
    pub tables: Vec<String>,
    /// Equal for equal plans; its part after the `+` is equal for plans that keep the same.
    pub fingerprint: String,
    /// Whether the windows of a hop may be merged from panes.
    pub panes: bool,
    pub(crate) leaf_schema: SchemaRef,
    pub(crate) executable: Executable,
    /// Reference tables that are taken to have one row per joined value.
    pub(crate) assumed_unique: Vec<String>,
    /// The plan for users.
    pub(crate) explanation: String,
    /// The plan as snapshots store it.
    pub(crate) stored_text: String,
    pub(crate) state_description: String,
    /// For what runs on every batch.
    pub(crate) context: Arc<TaskContext>,
    /// For final_plan plans, which may be bounded in memory and spill.
    pub(crate) final_context: Arc<TaskContext>,
}

impl QueryPlan {
    /// The columns of the leaf: those of the input that the plan reads, then for TUMBLE and HOP
    /// `window_start`, `window_end` and `window_time`, which the plan adds itself.
    pub fn leaf_schema(&self) -> SchemaRef {
        Arc::clone(&self.leaf_schema)
    }

    /// Whether it says what holds now, and not what happened.
    pub fn is_view(&self) -> bool {
        matches!(self.kind, PlanKind::View | PlanKind::Derived)
    }

    /// The input's columns that the plan reads, ascending: what [`QueryPlan::run_batch_plan`] and
    /// [`QueryPlan::run_stateless`] take.
    pub fn leaf_projection(&self) -> &[usize] {
        &self.executable.input_columns
    }

    /// How many slots are kept.
    pub fn slots(&self) -> usize {
        self.executable.slots.len()
    }

    /// Results of a stateless query.
    pub async fn run_stateless(
        &self,
        rows: RecordBatch,
        relations: &Relations,
    ) -> Result<RecordBatch> {
        let inputs = Inputs { rows: &[rows], kept: &[], counts: &[], window: None, relations };
        let final_plan = &self.executable.final_plan;
        let result = placeholder::run(final_plan, &inputs, &self.context).await;
        result
            .and_then(|batch| placeholder::reshape(&batch, &self.output))
            .map_err(|e| self.failed(&e))
    }

    /// What is kept of the rows of one bucket (a window, a pane, or a view's only one): one batch
    /// per slot, those of sets with all keys as they come.
    pub async fn run_batch_plan(
        &self,
        rows: RecordBatch,
        bucket: Option<Window>,
        relations: &Relations,
    ) -> Result<Vec<RecordBatch>> {
        let mut kept: Vec<Option<RecordBatch>> = vec![None; self.slots()];
        let rows = [rows];
        for batch_plan in &self.executable.batch_plans {
            let inputs = Inputs { rows: &rows, kept: &[], counts: &[], window: bucket, relations };
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
                    (None, None) => return Err(Error::internal("a batch_plan without a plan")),
                };
                kept[*slot] = Some(placeholder::reshape(&batch, schema)?);
            }
        }
        Ok(kept.into_iter().flatten().collect())
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

    /// Whether [`QueryPlan::run_final_plan`] may have counts by group instead of a set's keys.
    pub fn uses_counts(&self, slot: usize) -> bool {
        self.slot(slot).is_ok_and(|slot| slot.uses_counts)
    }

    /// Tells new keys of a set from old ones; none seen yet.
    pub(crate) fn new_key_set(&self, slot: usize) -> Result<KeySet> {
        Ok(KeySet::new(Arc::clone(&self.slot(slot)?.schema))?)
    }

    /// As [`QueryPlan::new_key_set`], over panes.
    pub(crate) fn new_sliding_key_set(&self, slot: usize) -> Result<SlidingKeySet> {
        Ok(SlidingKeySet::new(Arc::clone(&self.slot(slot)?.schema))?)
    }

    /// All rows in one batch, as they come.
    pub(crate) fn concat(&self, slot: usize, batches: Vec<RecordBatch>) -> Result<RecordBatch> {
        Ok(placeholder::concat(&self.slot(slot)?.schema, batches)?)
    }

    /// What is kept with each key of a set once.
    pub async fn dedup_key_sets(
        &self,
        mut kept: Vec<Vec<RecordBatch>>,
    ) -> Result<Vec<Vec<RecordBatch>>> {
        for (slot, batches) in kept.iter_mut().enumerate() {
            if !batches.is_empty() && self.is_key_set(slot) {
                *batches = vec![self.reduce(slot, std::mem::take(batches)).await?];
            }
        }
        Ok(kept)
    }

    /// The same content in one batch, with one row per key (or simply all rows).
    pub async fn reduce(&self, slot: usize, batches: Vec<RecordBatch>) -> Result<RecordBatch> {
        let StateSlotPlan { reduce, schema, .. } = self.slot(slot)?;
        let reduce = match reduce {
            Reduce::Rows => return self.concat(slot, batches),
            Reduce::Set(spare) => {
                let spared = spare.lock().ok().and_then(|mut spare| spare.take());
                let mut groups = spared.map_or_else(|| self.new_key_set(slot), Ok)?;
                let batch = key_set::distinct(&mut groups, &batches)?;
                if let (true, Ok(mut spare)) = (batch.num_rows() <= key_set::SMALL, spare.lock()) {
                    *spare = Some(groups);
                }
                return Ok(batch);
            }
            Reduce::Partials(reduce) => reduce,
        };
        let mut kept = vec![Vec::new(); self.slots()];
        kept[slot] = batches;
        let relations = Relations::default();
        let inputs =
            Inputs { rows: &[], kept: &kept, counts: &[], window: None, relations: &relations };
        let batch = self.run(reduce, &inputs).await?;
        Ok(placeholder::reshape(&batch, schema)?)
    }

    /// A slot's batch of one bucket as one of the window `window`.
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
        for (place, column) in window_keys {
            let data_type = schema.field(*place).data_type();
            columns[*place] = column.constant(window, data_type, batch.num_rows());
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }

    /// The results over what was kept of one window (or of a view), by slot. Of a set, each key
    /// must be there once, see [`QueryPlan::dedup_key_sets`].
    pub async fn run_final_plan(
        &self,
        content: impl Into<WindowState>,
        window: Option<Window>,
        relations: &Relations,
    ) -> Result<RecordBatch> {
        let WindowState { batches: kept, counts } = &content.into();
        let inputs = Inputs { rows: &[], kept, counts, window, relations };
        let result =
            placeholder::run(&self.executable.final_plan, &inputs, &self.final_context).await;
        let result = result.and_then(|batch| placeholder::reshape(&batch, &self.output));
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
        let missing = || Error::internal(format!("query '{}' has no slot {slot}", self.name));
        self.executable.slots.get(slot).ok_or_else(missing)
    }

    /// A row's fault is [`Kind::Data`]; what another row would have met too is not.
    fn failed(&self, error: &DataFusionError) -> Error {
        let kind = match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Kind::Config,
            DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) => Kind::Storage,
            DataFusionError::Internal(_) => Kind::Internal,
            _ => Kind::Data,
        };
        let ours = Error::new(kind, describe(error).0).detail(format!("in query '{}'", self.name));
        match kind {
            Kind::Config => ours.hint("SET millstream.memory_limit to more in the schema file"),
            _ => ours,
        }
    }

    /// The key of a join with a reference table holds only if the table has one row per value.
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

/// What was kept of a window or a view, by slot.
#[derive(Debug, Default)]
pub struct WindowState {
    /// Rows and partial rows.
    pub batches: Vec<Vec<RecordBatch>>,
    /// Of slots that [`QueryPlan::uses_counts`] says so of, instead: the columns of each group, and
    /// how many keys it has. May be shorter.
    pub counts: Vec<Option<RecordBatch>>,
}

impl From<Vec<Vec<RecordBatch>>> for WindowState {
    fn from(kept: Vec<Vec<RecordBatch>>) -> Self {
        Self { batches: kept, counts: Vec::new() }
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
