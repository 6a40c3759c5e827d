//! The cut: what of a plan runs on every batch (the front), what is kept in between, and what
//! runs once per closed window (the closing plan).
//!
//! Going up from the stream's leaf, everything that needs no more than the present batch belongs
//! to the front: projections, filters, and joins with reference tables that preserve the stream.
//! Where that ends, the plan is cut: an aggregate keeps partials if its functions are on the
//! tested list (see [`crate::planner::distinct_rewrite`]), all else keeps rows. In the closing plan a [`Slot`]
//! stands for what was kept, with exactly the columns that the replaced node had.

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

use crate::planner::distinct_rewrite::{keep_groupings, partial_aggregates};
use crate::planner::errors::through_datafusion;
use crate::planner::exec::placeholder::WindowColumn;
use crate::planner::lineage::{self, Origin, column_of, group_origins, origins};
use crate::types::WindowSpec;

/// How a query's rows are put into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windowing {
    /// By TUMBLE or HOP in FROM: the leaf has the columns of the window.
    Leaf(WindowSpec),
    /// By `date_bin` or `date_trunc` in GROUP BY.
    Group(WindowSpec),
    /// Not at all: a view, or no state.
    None,
}

/// A plan cut in two.
pub(crate) struct Split {
    /// What is kept, by slot.
    pub(crate) slots: Vec<Kept>,
    /// The rest of the plan over the slots; without slots, the whole plan.
    pub(crate) closing: LogicalPlan,
}

/// What is kept in one slot.
pub(crate) struct Kept {
    /// Slots with the same number are fed by the same front.
    pub(crate) front_number: usize,
    /// What runs on every batch before.
    pub(crate) front: Arc<LogicalPlan>,
    /// Partials of this aggregate over the front; without one, the front's rows.
    pub(crate) partials: Option<Partials>,
    /// The columns that the closing plan sees.
    pub(crate) schema: DFSchemaRef,
}

/// Partials of an aggregate over the front.
pub(crate) struct Partials {
    /// The aggregate without those keys that are the same in a whole window.
    pub(crate) aggregate: Aggregate,
    /// Keys left out, by their place in the closing plan's columns.
    pub(crate) stamped: Vec<(usize, WindowColumn)>,
    /// Keys of the window that are kept, by their place in the state.
    pub(crate) window_keys: Vec<(usize, WindowColumn)>,
}

/// Cuts the optimised `plan`.
pub(crate) fn split(plan: &LogicalPlan, windowing: Windowing) -> DfResult<Split> {
    let mut cutter = Splitter { windowing, slots: Vec::new(), fronts: 0 };
    let (closing, class) = cutter.walk(plan)?;
    let closing = match (class, windowing) {
        (Class::Streaming, Windowing::Leaf(_)) => cutter.keep_rows(&closing)?,
        _ => closing,
    };
    Ok(Split { slots: cutter.slots, closing })
}

/// What a part of the plan needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Reference tables, views and constants only.
    Static,
    /// The present batch.
    Streaming,
    /// A whole window.
    Closing,
}

struct Splitter {
    windowing: Windowing,
    slots: Vec<Kept>,
    fronts: usize,
}

impl Splitter {
    /// The plan with slots for all that is kept below, and what it needs.
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
        if is_front(plan, &classes) {
            return Ok((plan.clone(), Class::Streaming));
        }
        if let (LogicalPlan::Aggregate(aggregate), [Class::Streaming]) = (plan, classes.as_slice())
        {
            return Ok((self.cut_aggregate(aggregate)?, Class::Closing));
        }
        for (input, class) in inputs.iter_mut().zip(&classes) {
            if *class == Class::Streaming {
                self.check_rows(plan)?;
                *input = self.keep_rows(input)?;
            }
        }
        let plan = plan.with_new_exprs(plan.expressions(), inputs)?;
        Ok((plan, Class::Closing))
    }

    fn cut_aggregate(&mut self, aggregate: &Aggregate) -> DfResult<LogicalPlan> {
        if let Windowing::Group(spec) = self.windowing
            && !group_origins(aggregate).contains(&Some(Origin::Bucket(spec)))
        {
            return Err(through_datafusion(
                "an aggregate over a stream lacks the window that the others have",
                "group every one of them by the same date_bin or date_trunc",
            ));
        }
        let front_number = self.fronts;
        let differing: Vec<usize> = (window_columns(aggregate).iter().enumerate())
            .filter_map(|(place, column)| column.is_none().then_some(place))
            .collect();
        let kept = keep_groupings(aggregate, &differing, |grouping| {
            self.keep_partials(grouping, front_number)
        })?;
        if let Some(plan) = kept {
            self.fronts += 1;
            return Ok(plan);
        }
        if self.windowing == Windowing::None {
            let names = partial_aggregates().join(", ");
            return Err(through_datafusion(
                &format!("a view cannot keep all rows, which {} needs", describe(aggregate)),
                &format!(
                    "a view may use, with and without DISTINCT: {names} (first_value and last_value with ORDER BY)"
                ),
            ));
        }
        let input = self.keep_rows(&aggregate.input)?;
        let plan = LogicalPlan::Aggregate(aggregate.clone());
        plan.with_new_exprs(plan.expressions(), vec![input])
    }

    /// Refuses nodes that would keep rows where there is no window.
    fn check_rows(&self, plan: &LogicalPlan) -> DfResult<()> {
        if let Windowing::Leaf(_) = self.windowing {
            return Ok(());
        }
        let (what, hint) = match plan {
            LogicalPlan::Sort(_) => (
                "ORDER BY over a stream never ends",
                "order within windows: FROM TUMBLE(..), or drop it",
            ),
            LogicalPlan::Limit(_) => (
                "LIMIT over a stream needs a window",
                "limit within windows: FROM TUMBLE(..), or drop it",
            ),
            LogicalPlan::Window(_) => (
                "OVER needs a window of the stream",
                "write FROM TUMBLE(..): OVER then sees the rows of one window",
            ),
            LogicalPlan::Join(_) => (
                "joins of streams are not there yet",
                "join windows of one stream, or a stream with a reference table or view",
            ),
            LogicalPlan::Union(_) => {
                ("a stream can be united with itself only", "write one query each")
            }
            _ => ("this needs all rows of the stream", "write FROM TUMBLE(..)"),
        };
        Err(through_datafusion(what, hint))
    }

    fn keep_rows(&mut self, front: &LogicalPlan) -> DfResult<LogicalPlan> {
        let schema = Arc::clone(front.schema());
        let kept = Kept {
            front_number: self.fronts,
            front: Arc::new(front.clone()),
            partials: None,
            schema,
        };
        self.fronts += 1;
        Ok(self.slot(kept))
    }

    fn keep_partials(&mut self, grouping: Aggregate, front_number: usize) -> DfResult<LogicalPlan> {
        let columns = window_columns(&grouping);
        // Without any key an aggregate has a result even for no rows, so one must stay.
        let must_stay = columns.iter().all(Option::is_some).then_some(0);
        let (mut groups, mut stamped, mut window_keys) = (Vec::new(), Vec::new(), Vec::new());
        for (place, expr) in grouping.group_expr.iter().enumerate() {
            match columns.get(place).copied().flatten() {
                Some(column) if must_stay != Some(place) => stamped.push((place, column)),
                column => {
                    window_keys.extend(column.map(|column| (groups.len(), column)));
                    groups.push(expr.clone());
                }
            }
        }
        let aggregate =
            Aggregate::try_new(Arc::clone(&grouping.input), groups, grouping.aggr_expr.clone())?;
        Ok(self.slot(Kept {
            front_number,
            front: Arc::clone(&grouping.input),
            partials: Some(Partials { aggregate, stamped, window_keys }),
            schema: Arc::clone(&grouping.schema),
        }))
    }

    fn slot(&mut self, kept: Kept) -> LogicalPlan {
        let slot =
            Slot { filling: SlotFilling::Kept(self.slots.len()), schema: Arc::clone(&kept.schema) };
        self.slots.push(kept);
        slot.plan()
    }
}

/// Of each key of an aggregate, which column of the window it is: such is the same in all its rows.
fn window_columns(aggregate: &Aggregate) -> Vec<Option<WindowColumn>> {
    (group_origins(aggregate).into_iter())
        .zip(&aggregate.group_expr)
        .map(|(origin, expr)| match (origin, column_of(expr, aggregate.input.schema())) {
            (Some(Origin::Window(column)), Some(_)) => Some(column),
            _ => None,
        })
        .collect()
}

/// Whether `plan` needs no more than the present batch of its streamed inputs.
fn is_front(plan: &LogicalPlan, classes: &[Class]) -> bool {
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

/// Whether a hop can be built from panes: only partials are kept, and no expression looks at the
/// window, which is another one when panes are merged.
pub(crate) fn can_use_panes(cut: &Split) -> DfResult<bool> {
    for kept in &cut.slots {
        let Some(partials) = &kept.partials else {
            return Ok(false);
        };
        let aggregate = LogicalPlan::Aggregate(partials.aggregate.clone());
        if looks_at_window(&aggregate)? || front_looks_at_window(&kept.front)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn front_looks_at_window(plan: &LogicalPlan) -> DfResult<bool> {
    if looks_at_window(plan)? {
        return Ok(true);
    }
    for input in plan.inputs() {
        if front_looks_at_window(input)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an expression of this node does more with a column of the window than pass it on.
fn looks_at_window(plan: &LogicalPlan) -> DfResult<bool> {
    let inputs: Vec<_> =
        plan.inputs().into_iter().map(|input| (input.schema(), origins(input))).collect();
    let may_pass_on = matches!(plan, LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_));
    for expr in plan.expressions() {
        let passes_on = inputs.iter().any(|(schema, _)| column_of(&expr, schema).is_some());
        if may_pass_on && passes_on {
            continue;
        }
        let looks = expr.exists(|expr| {
            let Expr::Column(column) = expr else { return Ok(false) };
            Ok(inputs.iter().any(|(schema, origins)| {
                let place = schema.maybe_index_of_column(column);
                place.is_some_and(|place| matches!(origins[place], Some(Origin::Window(_))))
            }))
        })?;
        if looks {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a [`Slot`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum SlotFilling {
    /// What is kept in the slot of this number, finished.
    Kept(usize),
    /// The output of the front.
    Front,
}

/// A leaf of a logical plan that stands for rows from elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) filling: SlotFilling,
    pub(crate) schema: DFSchemaRef,
}

impl Slot {
    /// The slot as a plan.
    pub(crate) fn plan(self) -> LogicalPlan {
        LogicalPlan::Extension(Extension { node: Arc::new(self) })
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.filling == other.filling && self.schema == other.schema
    }
}

impl Eq for Slot {}

impl Hash for Slot {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.filling.hash(state);
    }
}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.filling.partial_cmp(&other.filling)
    }
}

impl UserDefinedLogicalNodeCore for Slot {
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
        match self.filling {
            SlotFilling::Kept(slot) => write!(f, "Kept {slot}"),
            SlotFilling::Front => write!(f, "Front"),
        }
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        if !exprs.is_empty() || !inputs.is_empty() {
            return plan_err!("a slot is a leaf");
        }
        Ok(self.clone())
    }
}
