//! Builds physical plans from a split plan: DataFusion's operators over placeholders.
//!
//! DataFusion's `AggregateExec` computes partial aggregates: `Partial` on every batch,
//! `PartialReduce` to merge them, `Final` in the final plan, all with the same expressions.

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

use crate::planner::distinct_count::replace_counts;
use crate::planner::exec::inputs::WindowColumn;
use crate::planner::exec::offset_order::in_order;
use crate::planner::exec::placeholder::{
    LeafColumn, PlaceholderExec, PlaceholderSource, WindowColumnsExec,
};
use crate::planner::planning_session::PlanningSession;
use crate::planner::split::{Partials, SlotContent, SlotNode, Split, StateSlot};
use crate::state::key_set::KeySet;

/// The physical plans of a query, with empty placeholders.
pub(crate) struct Executable {
    /// The plans that run on every batch, in the order of the state slots that they fill.
    pub(crate) batch_plans: Vec<BatchPlan>,
    /// The state slots, by number.
    pub(crate) slots: Vec<StateSlotPlan>,
    /// The final plan over the state slots; without state slots, over the input rows.
    pub(crate) final_plan: Arc<dyn ExecutionPlan>,
    /// The indexes of the input columns that the plans read, ascending.
    pub(crate) input_columns: Vec<usize>,
}

/// A batch plan and the state slots that it feeds.
pub(crate) struct BatchPlan {
    /// `None` if the `partial` of the only slot contains the batch plan.
    pub(crate) plan: Option<Arc<dyn ExecutionPlan>>,
    /// The numbers of the state slots.
    pub(crate) slots: Vec<usize>,
}

/// How one state slot is filled and reduced.
pub(crate) struct StateSlotPlan {
    /// Turns rows into partial aggregates or into the keys of a set. `None` if the state is rows.
    pub(crate) partial: Option<Arc<dyn ExecutionPlan>>,
    /// How the batches of the slot are merged.
    pub(crate) reduce: Reduce,
    /// The schema of the state.
    pub(crate) schema: SchemaRef,
    /// The window columns in the state.
    pub(crate) window_keys: Vec<(usize, WindowColumn)>,
    /// Whether the final plan accepts counts per group instead of the keys of the set.
    pub(crate) uses_counts: bool,
}

impl StateSlotPlan {
    /// Whether the state is keys without aggregates. Each key then counts once.
    pub(crate) fn is_key_set(&self) -> bool {
        matches!(self.reduce, Reduce::Set(_))
    }

    /// Whether the state is a key set without window columns.
    fn is_windowless_key_set(&self) -> bool {
        self.is_key_set() && self.window_keys.is_empty()
    }
}

/// How the batches of a state slot are merged into one.
pub(crate) enum Reduce {
    /// Rows are concatenated.
    Rows,
    /// Keys without aggregates are deduplicated. The hash table is reused.
    Set(Mutex<Option<KeySet>>),
    /// Partial aggregates are merged by this plan.
    Partials(Arc<dyn ExecutionPlan>),
}

/// Builds the physical plans of `split`.
pub(crate) async fn plan(session: &PlanningSession, split: &Split) -> DfResult<Executable> {
    let mut by_batch_plan: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, slot) in split.slots.iter().enumerate() {
        by_batch_plan.entry(slot.batch_plan_number).or_default().push(number);
    }
    let mut batch_plans = Vec::new();
    let mut slots: Vec<Option<(StateSlotPlan, Arc<dyn ExecutionPlan>)>> = Vec::new();
    slots.resize_with(split.slots.len(), || None);
    for numbers in by_batch_plan.into_values() {
        let shared = numbers.len() > 1;
        let mut batch_plan = None;
        for number in &numbers {
            let slot = &split.slots[*number];
            if batch_plan.is_none() && (shared || slot.partials.is_none()) {
                batch_plan = Some(physical(session, &slot.batch_plan, &[]).await?);
            }
            slots[*number] = Some(plan_slot(session, slot, *number, shared).await?);
        }
        batch_plans.push(BatchPlan { plan: batch_plan, slots: numbers });
    }
    let (mut slots, finished): (Vec<_>, Vec<_>) = slots.into_iter().flatten().unzip();
    let final_plan = physical(session, &split.final_plan, &finished).await?;
    // DataFusion plans a grouping in two phases; one phase suffices in one partition.
    let one_phase = CombinePartialFinalAggregate::new();
    let final_plan = one_phase.optimize(final_plan, session.state.config_options())?;
    let (final_plan, counted) =
        replace_counts(final_plan, |slot| slots[slot].is_windowless_key_set())?;
    counted.into_iter().for_each(|slot| slots[slot].uses_counts = true);
    let mut executable = Executable { batch_plans, slots, final_plan, input_columns: Vec::new() };
    executable.narrow_inputs()?;
    Ok(executable)
}

/// Plans how a state slot is filled and reduced, and the leaf of the final plan that reads it.
async fn plan_slot(
    session: &PlanningSession,
    slot: &StateSlot,
    number: usize,
    batch_plan_is_shared: bool,
) -> DfResult<(StateSlotPlan, Arc<dyn ExecutionPlan>)> {
    let Some(partials) = &slot.partials else {
        let schema = Arc::new(slot.schema.as_arrow().clone());
        let leaf =
            Arc::new(PlaceholderExec::new(PlaceholderSource::State(number), Arc::clone(&schema)));
        let window_keys = Vec::new();
        let plan = StateSlotPlan {
            partial: None,
            reduce: Reduce::Rows,
            schema,
            window_keys,
            uses_counts: false,
        };
        return Ok((plan, leaf));
    };
    let partial = partial_aggregate(session, partials, batch_plan_is_shared).await?;
    let Some(aggregate) = partial.downcast_ref::<AggregateExec>() else {
        return internal_err!("not a partial aggregate");
    };
    let state = partial.schema();
    let leaf: Arc<dyn ExecutionPlan> =
        Arc::new(PlaceholderExec::new(PlaceholderSource::State(number), Arc::clone(&state)));
    let group_by: Arc<PhysicalGroupBy> = Arc::new(aggregate.group_expr().as_final());
    let over_partials = |mode| {
        AggregateExec::try_new(
            mode,
            Arc::clone(&group_by),
            aggregate.aggr_expr().to_vec(),
            // The partial aggregates have applied the filters already.
            vec![None; aggregate.aggr_expr().len()],
            Arc::clone(&leaf),
            aggregate.input_schema(),
        )
    };
    let mut finished: Arc<dyn ExecutionPlan> = Arc::new(over_partials(AggregateMode::Final)?);
    let is_key_set = aggregate.aggr_expr().is_empty();
    let (partial, reduce) = if is_key_set {
        finished =
            Arc::new(PlaceholderExec::new(PlaceholderSource::State(number), finished.schema()));
        (keys_of(aggregate)?, Reduce::Set(Mutex::default()))
    } else {
        let reduce = over_partials(AggregateMode::PartialReduce)?;
        (Arc::clone(&partial), Reduce::Partials(Arc::new(reduce)))
    };
    if !partials.omitted_keys.is_empty() {
        let schema = Arc::new(Schema::new(slot.schema.fields().clone()));
        finished =
            Arc::new(WindowColumnsExec::new(finished, partials.omitted_keys.clone(), schema));
    }
    let plan = StateSlotPlan {
        reduce,
        schema: state,
        window_keys: partials.window_keys.clone(),
        partial: Some(partial),
        uses_counts: false,
    };
    Ok((plan, finished))
}

/// Returns the keys by which `aggregate`, which has no functions, groups.
fn keys_of(aggregate: &AggregateExec) -> DfResult<Arc<dyn ExecutionPlan>> {
    let keys = aggregate.group_expr().expr().iter();
    let keys = keys.map(|(expr, alias)| ProjectionExpr::new(Arc::clone(expr), alias.clone()));
    Ok(Arc::new(ProjectionExec::try_new(keys, Arc::clone(aggregate.input()))?))
}

/// Returns the `Partial` phase of DataFusion's plan for the aggregate.
async fn partial_aggregate(
    session: &PlanningSession,
    partials: &Partials,
    batch_plan_is_shared: bool,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let mut aggregate = partials.aggregate.clone();
    if batch_plan_is_shared {
        let schema = Arc::clone(aggregate.input.schema());
        aggregate.input =
            Arc::new(SlotNode { content: SlotContent::BatchPlanOutput, schema }.plan());
    }
    let mut plan = LogicalPlan::Aggregate(aggregate);
    if !batch_plan_is_shared {
        // Window columns are omitted from the keys, so their input columns may be unused.
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
    session: &PlanningSession,
    plan: &LogicalPlan,
    slots: &[Arc<dyn ExecutionPlan>],
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let slots = SlotPlanner { slots: slots.to_vec() };
    let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(slots)]);
    in_order(planner.create_physical_plan(plan, &session.state).await?)
}

/// Plans leaves as placeholders.
struct SlotPlanner {
    /// The plans that read the state slots.
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
        let Some(slot) = node.as_any().downcast_ref::<SlotNode>() else {
            return Ok(None);
        };
        Ok(Some(match slot.content {
            SlotContent::State(number) => Arc::clone(
                self.slots
                    .get(number)
                    .ok_or_else(|| internal_datafusion_err!("no slot {number}"))?,
            ),
            SlotContent::BatchPlanOutput => {
                let schema = Arc::new(slot.schema.as_arrow().clone());
                Arc::new(PlaceholderExec::new(PlaceholderSource::BatchPlanOutput, schema))
            }
        }))
    }
}

impl Executable {
    /// Finds the input columns that are read, and renumbers the placeholders' columns to match.
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
        for batch_plan in &mut self.batch_plans {
            batch_plan.plan.as_mut().map(place).transpose()?;
        }
        for slot in &mut self.slots {
            slot.partial.as_mut().map(place).transpose()?;
        }
        place(&mut self.final_plan)?;
        self.input_columns = read;
        Ok(())
    }

    fn plans(&self) -> impl Iterator<Item = &Arc<dyn ExecutionPlan>> {
        (self.batch_plans.iter().filter_map(|batch_plan| batch_plan.plan.as_ref()))
            .chain(self.slots.iter().filter_map(|slot| slot.partial.as_ref()))
            .chain([&self.final_plan])
    }
}

fn visit_inputs(plan: &Arc<dyn ExecutionPlan>, visit: &mut impl FnMut(usize)) {
    if let Some(PlaceholderSource::Rows(columns)) =
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
        let PlaceholderSource::Rows(columns) = slot.source() else {
            return Ok(Transformed::no(node));
        };
        let place = |column: &LeafColumn| match column {
            LeafColumn::Input(column) => {
                LeafColumn::Input(read.binary_search(column).unwrap_or(usize::MAX))
            }
            window => *window,
        };
        let source = PlaceholderSource::Rows(columns.iter().map(place).collect());
        let slot = PlaceholderExec::new(source, slot.schema());
        Ok(Transformed::yes(Arc::new(slot) as Arc<dyn ExecutionPlan>))
    })?;
    Ok(renumbered.data)
}
