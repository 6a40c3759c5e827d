//! Splits a plan into the batch plan (runs on every batch), the window state between batches, and
//! the final plan (runs once per closed window).
//!
//! From the stream's leaf upwards, every node that needs only the current batch belongs to the
//! batch plan: projections, filters, and joins with reference tables that preserve the stream. The
//! plan is split above the last of them. The state of an aggregate is its partial aggregates if its
//! functions are on the tested list (see [`crate::planner::distinct_rewrite`]); the state of every
//! other node is rows. In the final plan a [`SlotNode`] represents the state, with exactly the
//! columns of the node that it replaces.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchemaRef, JoinType, plan_err};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::{
    Aggregate, Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore,
};

use crate::planner::distinct_rewrite::{partial_aggregates, split_groupings};
use crate::planner::errors::plan_error_with_hint;
use crate::planner::exec::inputs::WindowColumn;
use crate::planner::lineage::{self, ColumnOrigin, column_of, group_origins, origins};
use crate::types::WindowSpec;

/// How the rows of a query are assigned to windows. Its `Debug` text is part of the fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windowing {
    /// By TUMBLE or HOP in FROM: the leaf has the window columns.
    Leaf(WindowSpec),
    /// By `date_bin` or `date_trunc` in GROUP BY.
    Group(WindowSpec),
    /// No windows: a view, or a query without state.
    None,
}

/// A plan, split into batch plans and a final plan.
pub(crate) struct Split {
    /// The state slots.
    pub(crate) slots: Vec<StateSlot>,
    /// The rest of the plan, which reads the slots. Without slots, the whole plan.
    pub(crate) final_plan: LogicalPlan,
}

/// A part of the window state, with the plan that produces it.
pub(crate) struct StateSlot {
    /// Slots with the same number read the same batch plan.
    pub(crate) batch_plan_number: usize,
    /// The plan that runs on every batch.
    pub(crate) batch_plan: Arc<LogicalPlan>,
    /// The partial aggregates over the batch plan. If `None`, the slot stores the batch plan's rows.
    pub(crate) partials: Option<Partials>,
    /// The columns that the final plan reads.
    pub(crate) schema: DFSchemaRef,
}

/// Partial aggregates over the batch plan.
pub(crate) struct Partials {
    /// The aggregate without the keys that are constant within a window.
    pub(crate) aggregate: Aggregate,
    /// The omitted keys, by their index in the final plan's columns.
    pub(crate) omitted_keys: Vec<(usize, WindowColumn)>,
    /// The window columns that stay in the state, by their index there.
    pub(crate) window_keys: Vec<(usize, WindowColumn)>,
}

/// Splits the optimized `plan`.
pub(crate) fn split(plan: &LogicalPlan, windowing: Windowing) -> DfResult<Split> {
    let mut splitter = Splitter { windowing, slots: Vec::new(), batch_plans: 0 };
    let (final_plan, class) = splitter.walk(plan)?;
    let final_plan = match (class, windowing) {
        (Class::Streaming, Windowing::Leaf(_)) => splitter.add_rows_slot(&final_plan)?,
        _ => final_plan,
    };
    Ok(Split { slots: splitter.slots, final_plan })
}

/// Which rows a part of the plan needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Reference tables, views and constants only.
    Static,
    /// The current batch.
    Streaming,
    /// A whole window.
    WholeWindow,
}

struct Splitter {
    windowing: Windowing,
    slots: Vec<StateSlot>,
    batch_plans: usize,
}

impl Splitter {
    /// Replaces the state below `plan` by slots. Returns the new plan and what it needs.
    fn walk(&mut self, plan: &LogicalPlan) -> DfResult<(LogicalPlan, Class)> {
        if let LogicalPlan::TableScan(_) = plan {
            let class = if lineage::is_streamed(plan) { Class::Streaming } else { Class::Static };
            return Ok((plan.clone(), class));
        }
        let (mut inputs, mut classes) = (Vec::new(), Vec::new());
        for input in plan.inputs() {
            let (input, class) = self.walk(input)?;
            inputs.push(input);
            classes.push(class);
        }
        if classes.iter().all(|class| *class == Class::Static) {
            return Ok((plan.clone(), Class::Static));
        }
        if runs_per_batch(plan, &classes) {
            return Ok((plan.clone(), Class::Streaming));
        }
        if let (LogicalPlan::Aggregate(aggregate), [Class::Streaming]) = (plan, classes.as_slice())
        {
            return Ok((self.split_aggregate(aggregate)?, Class::WholeWindow));
        }
        for (input, class) in inputs.iter_mut().zip(&classes) {
            if *class == Class::Streaming {
                self.check_rows(plan)?;
                *input = self.add_rows_slot(input)?;
            }
        }
        let plan = plan.with_new_exprs(plan.expressions(), inputs)?;
        Ok((plan, Class::WholeWindow))
    }

    fn split_aggregate(&mut self, aggregate: &Aggregate) -> DfResult<LogicalPlan> {
        if let Windowing::Group(spec) = self.windowing
            && !group_origins(aggregate).contains(&Some(ColumnOrigin::Bucket(spec)))
        {
            return Err(plan_error_with_hint(
                "an aggregate over a stream lacks the window of the other aggregates",
                "group all aggregates by the same date_bin or date_trunc",
            ));
        }
        let batch_plan_number = self.batch_plans;
        let differing: Vec<usize> = (window_columns(aggregate).iter().enumerate())
            .filter_map(|(place, column)| column.is_none().then_some(place))
            .collect();
        let slot = split_groupings(aggregate, &differing, |grouping| {
            self.add_partials_slot(grouping, batch_plan_number)
        })?;
        if let Some(plan) = slot {
            self.batch_plans += 1;
            return Ok(plan);
        }
        if self.windowing == Windowing::None {
            let names = partial_aggregates().join(", ");
            return Err(plan_error_with_hint(
                &format!("a view cannot store all rows, which {} requires", describe(aggregate)),
                &format!(
                    "a view supports, with and without DISTINCT: {names} (first_value and last_value with ORDER BY)"
                ),
            ));
        }
        let input = self.add_rows_slot(&aggregate.input)?;
        let plan = LogicalPlan::Aggregate(aggregate.clone());
        plan.with_new_exprs(plan.expressions(), vec![input])
    }

    /// Rejects nodes that would store rows in a query without windows.
    fn check_rows(&self, plan: &LogicalPlan) -> DfResult<()> {
        if let Windowing::Leaf(_) = self.windowing {
            return Ok(());
        }
        let (what, hint) = match plan {
            LogicalPlan::Sort(_) => (
                "ORDER BY over a stream needs a window",
                "order within windows: FROM TUMBLE(..), or remove ORDER BY",
            ),
            LogicalPlan::Limit(_) => (
                "LIMIT over a stream needs a window",
                "limit within windows: FROM TUMBLE(..), or remove LIMIT",
            ),
            LogicalPlan::Window(_) => (
                "OVER needs a window of the stream",
                "write FROM TUMBLE(..): OVER then applies to the rows of one window",
            ),
            LogicalPlan::Join(_) => (
                "joins of streams are not supported yet",
                "join windows of one stream, or a stream with a reference table or view",
            ),
            LogicalPlan::Union(_) => {
                ("UNION supports only one stream", "write one query per stream")
            }
            _ => ("this operation needs all rows of the stream", "write FROM TUMBLE(..)"),
        };
        Err(plan_error_with_hint(what, hint))
    }

    fn add_rows_slot(&mut self, batch_plan: &LogicalPlan) -> DfResult<LogicalPlan> {
        let schema = Arc::clone(batch_plan.schema());
        let slot = StateSlot {
            batch_plan_number: self.batch_plans,
            batch_plan: Arc::new(batch_plan.clone()),
            partials: None,
            schema,
        };
        self.batch_plans += 1;
        Ok(self.add_slot(slot))
    }

    fn add_partials_slot(
        &mut self,
        grouping: Aggregate,
        batch_plan_number: usize,
    ) -> DfResult<LogicalPlan> {
        let columns = window_columns(&grouping);
        // Without keys an aggregate returns a row even for no input, so one key must stay.
        let must_stay = columns.iter().all(Option::is_some).then_some(0);
        let (mut groups, mut omitted_keys, mut window_keys) = (Vec::new(), Vec::new(), Vec::new());
        for (index, expr) in grouping.group_expr.iter().enumerate() {
            match columns.get(index).copied().flatten() {
                Some(column) if must_stay != Some(index) => omitted_keys.push((index, column)),
                column => {
                    window_keys.extend(column.map(|column| (groups.len(), column)));
                    groups.push(expr.clone());
                }
            }
        }
        let aggregate =
            Aggregate::try_new(Arc::clone(&grouping.input), groups, grouping.aggr_expr.clone())?;
        Ok(self.add_slot(StateSlot {
            batch_plan_number,
            batch_plan: Arc::clone(&grouping.input),
            partials: Some(Partials { aggregate, omitted_keys, window_keys }),
            schema: Arc::clone(&grouping.schema),
        }))
    }

    fn add_slot(&mut self, slot: StateSlot) -> LogicalPlan {
        let node = SlotNode {
            content: SlotContent::State(self.slots.len()),
            schema: Arc::clone(&slot.schema),
        };
        self.slots.push(slot);
        node.plan()
    }
}

/// Returns for each key of an aggregate which window column it is. Window columns are constant within
/// a window.
fn window_columns(aggregate: &Aggregate) -> Vec<Option<WindowColumn>> {
    (group_origins(aggregate).into_iter())
        .zip(&aggregate.group_expr)
        .map(|(origin, expr)| match (origin, column_of(expr, aggregate.input.schema())) {
            (Some(ColumnOrigin::Window(column)), Some(_)) => Some(column),
            _ => None,
        })
        .collect()
}

/// Whether `plan` needs only the current batch of its streamed inputs.
fn runs_per_batch(plan: &LogicalPlan, classes: &[Class]) -> bool {
    use Class::{Static, Streaming};
    match (plan, classes) {
        (
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_),
            [Streaming],
        ) => true,
        (LogicalPlan::Union(_), classes) => classes.iter().all(|class| *class == Streaming),
        (LogicalPlan::Join(join), [Streaming, Static]) => matches!(
            join.join_type,
            JoinType::Inner
                | JoinType::Left
                | JoinType::LeftSemi
                | JoinType::LeftAnti
                | JoinType::LeftMark
        ),
        (LogicalPlan::Join(join), [Static, Streaming]) => matches!(
            join.join_type,
            JoinType::Inner
                | JoinType::Right
                | JoinType::RightSemi
                | JoinType::RightAnti
                | JoinType::RightMark
        ),
        _ => false,
    }
}

fn describe(aggregate: &Aggregate) -> String {
    let names: Vec<String> = aggregate.aggr_expr.iter().map(|expr| expr.to_string()).collect();
    names.join(", ")
}

/// Whether hopping windows can be merged from panes: all state is partial aggregates, and no
/// expression reads the window columns, because they change when panes are merged.
pub(crate) fn can_use_panes(split: &Split) -> DfResult<bool> {
    for slot in &split.slots {
        let Some(partials) = &slot.partials else {
            return Ok(false);
        };
        let aggregate = LogicalPlan::Aggregate(partials.aggregate.clone());
        if uses_window(&aggregate)? || batch_plan_uses_window(&slot.batch_plan)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn batch_plan_uses_window(plan: &LogicalPlan) -> DfResult<bool> {
    if uses_window(plan)? {
        return Ok(true);
    }
    for input in plan.inputs() {
        if batch_plan_uses_window(input)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an expression of this node uses a window column other than to pass it on.
fn uses_window(plan: &LogicalPlan) -> DfResult<bool> {
    let inputs: Vec<_> =
        plan.inputs().into_iter().map(|input| (input.schema(), origins(input))).collect();
    let may_pass_on = matches!(plan, LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_));
    for expr in plan.expressions() {
        let passes_on = inputs.iter().any(|(schema, _)| column_of(&expr, schema).is_some());
        if may_pass_on && passes_on {
            continue;
        }
        let reads_window = expr.exists(|expr| {
            let Expr::Column(column) = expr else { return Ok(false) };
            Ok(inputs.iter().any(|(schema, origins)| {
                let place = schema.maybe_index_of_column(column);
                place.is_some_and(|place| matches!(origins[place], Some(ColumnOrigin::Window(_))))
            }))
        })?;
        if reads_window {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The rows that a [`SlotNode`] represents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SlotContent {
    /// The content of the state slot of this number, after the final aggregate.
    State(usize),
    /// The output of the batch plan.
    BatchPlanOutput,
}

/// A leaf of a logical plan that represents rows which are supplied when the plan runs.
#[derive(Debug, Clone)]
pub(crate) struct SlotNode {
    pub(crate) content: SlotContent,
    pub(crate) schema: DFSchemaRef,
}

impl SlotNode {
    /// Returns the node as a plan.
    pub(crate) fn plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

impl PartialEq for SlotNode {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content && self.schema == other.schema
    }
}

impl Eq for SlotNode {}

impl Hash for SlotNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.content.hash(state);
    }
}

impl PartialOrd for SlotNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.content.partial_cmp(&other.content)
    }
}

impl UserDefinedLogicalNodeCore for SlotNode {
    fn name(&self) -> &str {
        "Slot"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        Vec::new()
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `explain` translates the first of these words for snapshots.
        match self.content {
            SlotContent::State(slot) => write!(f, "State {slot}"),
            SlotContent::BatchPlanOutput => write!(f, "BatchPlanOutput"),
        }
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        if !exprs.is_empty() || !inputs.is_empty() {
            return plan_err!("a slot is a leaf");
        }
        Ok(self.clone())
    }
}
