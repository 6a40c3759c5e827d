//! A cut plan made executable: DataFusion's own operators over slots.
//!
//! Partials are made by `AggregateExec` itself: `Partial` on every batch, `PartialReduce` to
//! compact, `Final` in the closing plan, all three with the same expressions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session as DfSession;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{internal_datafusion_err, internal_err};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::combine_partial_final_agg::CombinePartialFinalAggregate;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

use crate::planner::distinct_count::counted;
use crate::planner::exec::offset_order::in_order;
use crate::planner::exec::placeholder::{
    LeafColumn, PlaceholderExec, Source, WindowColumn, WindowColumnsExec,
};
use crate::planner::planning_session::Session;
use crate::planner::split::{Kept, Partials, Slot, SlotFilling, Split};
use crate::state::key_set::KeySet;

/// A query's plans, with empty slots.
pub(crate) struct Executable {
    /// What runs on every batch, in the order of the slots that it fills.
    pub(crate) fronts: Vec<Front>,
    /// By number.
    pub(crate) slots: Vec<SlotPlan>,
    /// Over the slots; without slots, over the rows themselves.
    pub(crate) closing: Arc<dyn ExecutionPlan>,
    /// Columns of the input that the plans read, ascending.
    pub(crate) input_columns: Vec<usize>,
}

/// A front and the slots that it feeds.
pub(crate) struct Front {
    /// None: the only slot's `partial` holds the front itself.
    pub(crate) plan: Option<Arc<dyn ExecutionPlan>>,
    /// The slots, by number.
    pub(crate) slots: Vec<usize>,
}

/// How one slot is filled and compacted.
pub(crate) struct SlotPlan {
    /// Rows to partials, or to the keys of a set; none where rows are kept.
    pub(crate) partial: Option<Arc<dyn ExecutionPlan>>,
    /// How what is kept becomes less.
    pub(crate) reduce: Reduce,
    /// Of what is kept.
    pub(crate) schema: SchemaRef,
    /// Columns of what is kept that hold the window.
    pub(crate) window_keys: Vec<(usize, WindowColumn)>,
    /// Whether the closing plan takes counts by group instead of a set's keys.
    pub(crate) is_counted: bool,
}

impl SlotPlan {
    /// Whether it keeps keys and no aggregates: of such, each key counts once.
    pub(crate) fn is_set(&self) -> bool {
        matches!(self.reduce, Reduce::Set(_))
    }

    /// Whether it is a set whose keys do not tell the window.
    fn is_plain_set(&self) -> bool {
        self.is_set() && self.window_keys.is_empty()
    }
}

/// How the batches of a slot become one.
pub(crate) enum Reduce {
    /// Rows: one after the other.
    Rows,
    /// Keys without aggregates: each once. The table of one use serves the next.
    Set(Mutex<Option<KeySet>>),
    /// Partials.
    Partials(Arc<dyn ExecutionPlan>),
}

/// Makes `cut` executable.
pub(crate) async fn plan(session: &Session, cut: &Split) -> DfResult<Executable> {
    let mut by_front: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, kept) in cut.slots.iter().enumerate() {
        by_front.entry(kept.front_number).or_default().push(number);
    }
    let mut fronts = Vec::new();
    let mut slots: Vec<Option<(SlotPlan, Arc<dyn ExecutionPlan>)>> = Vec::new();
    slots.resize_with(cut.slots.len(), || None);
    for numbers in by_front.into_values() {
        let shared = numbers.len() > 1;
        let mut front = None;
        for number in &numbers {
            let kept = &cut.slots[*number];
            if front.is_none() && (shared || kept.partials.is_none()) {
                front = Some(physical(session, &kept.front, &[]).await?);
            }
            slots[*number] = Some(plan_slot(session, kept, *number, shared).await?);
        }
        fronts.push(Front { plan: front, slots: numbers });
    }
    let (mut slots, finished): (Vec<_>, Vec<_>) = slots.into_iter().flatten().unzip();
    let closing = physical(session, &cut.closing, &finished).await?;
    // DataFusion plans a grouping in two phases, but here nobody comes between them.
    let one_phase = CombinePartialFinalAggregate::new();
    let closing = one_phase.optimize(closing, session.state.config_options())?;
    let (closing, counted) = counted(closing, |slot| slots[slot].is_plain_set())?;
    counted.into_iter().for_each(|slot| slots[slot].is_counted = true);
    let mut executable = Executable { fronts, slots, closing, input_columns: Vec::new() };
    executable.narrow_inputs()?;
    Ok(executable)
}

/// How a slot is filled and compacted, and its finished content as a leaf of the closing plan.
async fn plan_slot(
    session: &Session,
    kept: &Kept,
    number: usize,
    front_is_shared: bool,
) -> DfResult<(SlotPlan, Arc<dyn ExecutionPlan>)> {
    let Some(partials) = &kept.partials else {
        let schema = Arc::new(kept.schema.as_arrow().clone());
        let leaf = Arc::new(PlaceholderExec::new(Source::Kept(number), Arc::clone(&schema)));
        let window_keys = Vec::new();
        let plan = SlotPlan {
            partial: None,
            reduce: Reduce::Rows,
            schema,
            window_keys,
            is_counted: false,
        };
        return Ok((plan, leaf));
    };
    let partial = partial_aggregate(session, partials, front_is_shared).await?;
    let Some(aggregate) = partial.downcast_ref::<AggregateExec>() else {
        return internal_err!("the partial aggregate is none");
    };
    let state = partial.schema();
    let leaf: Arc<dyn ExecutionPlan> =
        Arc::new(PlaceholderExec::new(Source::Kept(number), Arc::clone(&state)));
    let group_by: Arc<PhysicalGroupBy> = Arc::new(aggregate.group_expr().as_final());
    let over_partials = |mode| {
        AggregateExec::try_new(
            mode,
            Arc::clone(&group_by),
            aggregate.aggr_expr().to_vec(),
            // The filters were applied when the partials were made.
            vec![None; aggregate.aggr_expr().len()],
            Arc::clone(&leaf),
            aggregate.input_schema(),
        )
    };
    let mut finished: Arc<dyn ExecutionPlan> = Arc::new(over_partials(AggregateMode::Final)?);
    let is_set = aggregate.aggr_expr().is_empty();
    let (partial, reduce) = if is_set {
        finished = Arc::new(PlaceholderExec::new(Source::Kept(number), finished.schema()));
        (keys_of(aggregate)?, Reduce::Set(Mutex::default()))
    } else {
        let reduce = over_partials(AggregateMode::PartialReduce)?;
        (Arc::clone(&partial), Reduce::Partials(Arc::new(reduce)))
    };
    if !partials.stamped.is_empty() {
        let schema = Arc::new(Schema::new(kept.schema.fields().clone()));
        finished = Arc::new(WindowColumnsExec::new(finished, partials.stamped.clone(), schema));
    }
    let plan = SlotPlan {
        reduce,
        schema: state,
        window_keys: partials.window_keys.clone(),
        partial: Some(partial),
        is_counted: false,
    };
    Ok((plan, finished))
}

/// The keys that `aggregate`, which has no functions, groups by.
fn keys_of(aggregate: &AggregateExec) -> DfResult<Arc<dyn ExecutionPlan>> {
    let keys = aggregate.group_expr().expr().iter();
    let keys = keys.map(|(expr, alias)| ProjectionExpr::new(Arc::clone(expr), alias.clone()));
    Ok(Arc::new(ProjectionExec::try_new(keys, Arc::clone(aggregate.input()))?))
}

/// The `Partial` half of what DataFusion makes of the aggregate.
async fn partial_aggregate(
    session: &Session,
    partials: &Partials,
    front_is_shared: bool,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let mut aggregate = partials.aggregate.clone();
    if front_is_shared {
        let schema = Arc::clone(aggregate.input.schema());
        aggregate.input = Arc::new(Slot { filling: SlotFilling::Front, schema }.plan());
    }
    let mut plan = LogicalPlan::Aggregate(aggregate);
    if !front_is_shared {
        // Keys of the window were left out, so their columns may be, too.
        plan = session.prune(plan)?;
    }
    let mut node = physical(session, &plan, &[]).await?;
    loop {
        let is_partial = node
            .downcast_ref::<AggregateExec>()
            .is_some_and(|aggregate| *aggregate.mode() == AggregateMode::Partial);
        if is_partial {
            return Ok(node);
        }
        node = match node.children().as_slice() {
            [child] => Arc::clone(child),
            _ => return internal_err!("no partial aggregate was planned for {}", plan.display()),
        };
    }
}

async fn physical(
    session: &Session,
    plan: &LogicalPlan,
    slots: &[Arc<dyn ExecutionPlan>],
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let slots = SlotPlanner { slots: slots.to_vec() };
    let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(slots)]);
    in_order(planner.create_physical_plan(plan, &session.state).await?)
}

/// Plans leaves as slots.
struct SlotPlanner {
    /// What the kept slots of the plan stand for.
    slots: Vec<Arc<dyn ExecutionPlan>>,
}

#[async_trait]
impl ExtensionPlanner for SlotPlanner {
    async fn plan_extension(
        &self,
        _: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        _: &[Arc<dyn ExecutionPlan>],
        _: &dyn DfSession,
        _: &PhysicalPlanningContext,
    ) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let Some(slot) = node.as_any().downcast_ref::<Slot>() else {
            return Ok(None);
        };
        Ok(Some(match slot.filling {
            SlotFilling::Kept(number) => Arc::clone(
                self.slots
                    .get(number)
                    .ok_or_else(|| internal_datafusion_err!("no slot {number}"))?,
            ),
            SlotFilling::Front => {
                let schema = Arc::new(slot.schema.as_arrow().clone());
                Arc::new(PlaceholderExec::new(Source::Front, schema))
            }
        }))
    }
}

impl Executable {
    /// Finds the input's columns that are read, and lets the slots count among those only.
    fn narrow_inputs(&mut self) -> DfResult<()> {
        let mut read = Vec::new();
        for plan in self.plans() {
            visit_inputs(plan, &mut |column| read.push(column));
        }
        read.sort_unstable();
        read.dedup();
        let place = |plan: &mut Arc<dyn ExecutionPlan>| -> DfResult<()> {
            *plan = renumber(plan, &read)?;
            Ok(())
        };
        for front in &mut self.fronts {
            front.plan.as_mut().map(place).transpose()?;
        }
        for slot in &mut self.slots {
            slot.partial.as_mut().map(place).transpose()?;
        }
        place(&mut self.closing)?;
        self.input_columns = read;
        Ok(())
    }

    fn plans(&self) -> impl Iterator<Item = &Arc<dyn ExecutionPlan>> {
        (self.fronts.iter().filter_map(|front| front.plan.as_ref()))
            .chain(self.slots.iter().filter_map(|slot| slot.partial.as_ref()))
            .chain([&self.closing])
    }
}

fn visit_inputs(plan: &Arc<dyn ExecutionPlan>, visit: &mut impl FnMut(usize)) {
    if let Some(Source::Rows(columns)) =
        plan.downcast_ref::<PlaceholderExec>().map(PlaceholderExec::source)
    {
        for column in columns {
            if let LeafColumn::Input(column) = column {
                visit(*column);
            }
        }
    }
    for child in plan.children() {
        visit_inputs(child, visit);
    }
}

fn renumber(plan: &Arc<dyn ExecutionPlan>, read: &[usize]) -> DfResult<Arc<dyn ExecutionPlan>> {
    let renumbered = Arc::clone(plan).transform_up(|node| {
        let Some(slot) = node.downcast_ref::<PlaceholderExec>() else {
            return Ok(Transformed::no(node));
        };
        let Source::Rows(columns) = slot.source() else {
            return Ok(Transformed::no(node));
        };
        let place = |column: &LeafColumn| match column {
            LeafColumn::Input(column) => {
                LeafColumn::Input(read.binary_search(column).unwrap_or(usize::MAX))
            }
            window => *window,
        };
        let source = Source::Rows(columns.iter().map(place).collect());
        let slot = PlaceholderExec::new(source, slot.schema());
        Ok(Transformed::yes(Arc::new(slot) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(renumbered.data)
}
