//! Selects the aggregates whose state is partial aggregates, and rewrites DISTINCT.
//!
//! `count(DISTINCT x)` and similar aggregates never store a set per group. Each distinct argument (with its
//! filter) becomes a grouping of its own, by the keys and the argument; everything else is one
//! grouping more. The final plan aggregates each distinct grouping by the keys and joins the
//! results null-safe:
//!
//! ```text
//!   keys, count(*), count(DISTINCT x)  =>      Join on keys
//!                                             /            \
//!                              slot 0: keys, count(*)        Aggregate keys, count(x)
//!                                                             |
//!                                                    slot 1: keys, x
//! ```

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams, Alias, Sort};
use datafusion::logical_expr::{
    Aggregate, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Projection,
};

/// Aggregates whose partial states are bounded and merge in any order: each has a test.
const PARTIALS: &[&str] = &[
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "first_value",
    "last_value",
    "max",
    "min",
    "stddev",
    "stddev_pop",
    "sum",
    "var",
    "var_pop",
];

/// Aggregates for which DISTINCT changes nothing.
const INDIFFERENT_TO_DISTINCT: &[&str] =
    &["bit_and", "bit_or", "bool_and", "bool_or", "max", "min"];

/// Returns the names of the aggregates whose state is partial aggregates.
pub(crate) fn partial_aggregates() -> &'static [&'static str] {
    PARTIALS
}

/// How the state of one aggregate is stored.
enum AggregateState {
    /// As partial aggregates of this expression.
    Partial(Expr),
    /// By a grouping of its distinct arguments: the argument, the filter, and the call on them.
    Distinct { argument: Expr, filter: Option<Expr>, function: AggregateFunction },
    /// As rows.
    Rows,
}

/// Splits `aggregate` into groupings if all of its functions allow it. `add_slot` is called for each
/// grouping and returns the plan of its final results. Returns `None` if the state must be rows.
/// `differing`: the indexes of the keys that are not constant within a window.
pub(crate) fn split_groupings(
    aggregate: &Aggregate,
    differing: &[usize],
    mut add_slot: impl FnMut(Aggregate) -> DfResult<LogicalPlan>,
) -> DfResult<Option<LogicalPlan>> {
    if matches!(aggregate.group_expr.as_slice(), [Expr::GroupingSet(_)]) {
        return Ok(None);
    }
    let keys = aggregate.group_expr.len();
    let mut plain = Vec::new();
    let mut distinct: Vec<Grouping> = Vec::new();
    for (index, expr) in aggregate.aggr_expr.iter().enumerate() {
        let name = aggregate.schema.field(keys + index).name();
        match aggregate_state(expr, name, aggregate)? {
            AggregateState::Partial(expr) => plain.push((index, expr)),
            AggregateState::Distinct { argument, filter, function } => {
                let same = |grouping: &&mut Grouping| {
                    grouping.argument == argument && grouping.filter == filter
                };
                match distinct.iter_mut().find(same) {
                    Some(grouping) => grouping.calls.push((index, function)),
                    None => {
                        let calls = vec![(index, function)];
                        distinct.push(Grouping { argument, filter, calls });
                    }
                }
            }
            AggregateState::Rows => return Ok(None),
        }
    }
    if distinct.is_empty() {
        let exprs = plain.into_iter().map(|(_, expr)| expr).collect();
        let slot = with_aggregates(aggregate, aggregate.group_expr.clone(), exprs)?;
        return add_slot(slot).map(Some);
    }
    join_groupings(aggregate, differing, plain, distinct, &mut add_slot).map(Some)
}

/// A grouping by the keys and one distinct argument.
struct Grouping {
    argument: Expr,
    filter: Option<Expr>,
    /// The aggregates over it, with their places among those of the query.
    calls: Vec<(usize, AggregateFunction)>,
}

fn aggregate_state(expr: &Expr, name: &str, aggregate: &Aggregate) -> DfResult<AggregateState> {
    let call = match expr {
        Expr::Alias(Alias { expr, .. }) => expr.as_ref(),
        other => other,
    };
    let Expr::AggregateFunction(function) = call else {
        return Ok(AggregateState::Rows);
    };
    let params = &function.params;
    let is_partial = PARTIALS.contains(&function.func.name());
    if params.distinct && !INDIFFERENT_TO_DISTINCT.contains(&function.func.name()) {
        return Ok(distinct_state(function));
    }
    if !is_partial {
        return Ok(AggregateState::Rows);
    }
    let mut slot = function.clone();
    slot.params.distinct = false;
    if matches!(function.func.name(), "first_value" | "last_value") {
        if params.order_by.is_empty() {
            return Ok(AggregateState::Rows);
        }
        slot.params.order_by.extend(tie_breakers(&params.order_by, aggregate)?);
    }
    let expr =
        if slot == *function { expr.clone() } else { Expr::AggregateFunction(slot).alias(name) };
    Ok(AggregateState::Partial(expr))
}

/// Rows that tie in `order_by` are told apart by the values that are asked for, so that neither
/// the cuts of batches nor the order of partitions shows; all with the same order by the same
/// values, so that they take the same row.
fn tie_breakers(order_by: &[Sort], aggregate: &Aggregate) -> DfResult<Vec<Sort>> {
    let mut breakers: Vec<Sort> = Vec::new();
    for expr in &aggregate.aggr_expr {
        let Expr::AggregateFunction(AggregateFunction { func, params }) = expr.clone().unalias()
        else {
            continue;
        };
        let is_ordered = matches!(func.name(), "first_value" | "last_value");
        if !is_ordered || params.order_by != order_by {
            continue;
        }
        for argument in params.args {
            let data_type = argument.get_type(aggregate.input.schema())?;
            let is_new = order_by.iter().chain(&breakers).all(|sort| sort.expr != argument);
            if is_new && !data_type.is_nested() && data_type != DataType::Null {
                breakers.push(Sort::new(argument, true, true));
            }
        }
    }
    Ok(breakers)
}

/// One argument that is no constant, in any function: what sees only distinct values needs no
/// DISTINCT.
fn distinct_state(function: &AggregateFunction) -> AggregateState {
    let AggregateFunctionParams { args, filter, order_by, null_treatment, .. } = &function.params;
    let is_constant = |expr: &&Expr| matches!(expr, Expr::Literal(..));
    let varying: Vec<_> = args.iter().filter(|arg| !is_constant(arg)).collect();
    let [argument] = varying.as_slice() else {
        return AggregateState::Rows;
    };
    let argument = (*argument).clone();
    if order_by.iter().any(|sort| sort.expr != argument) {
        return AggregateState::Rows;
    }
    let value = || Expr::Column(Column::new_unqualified(ARGUMENT));
    let on_value = |expr: &Expr| if *expr == argument { value() } else { expr.clone() };
    let function = AggregateFunction {
        func: Arc::clone(&function.func),
        params: AggregateFunctionParams {
            args: args.iter().map(on_value).collect(),
            distinct: false,
            filter: filter
                .as_ref()
                .map(|_| Box::new(Expr::Column(Column::new_unqualified(FILTER)))),
            order_by: (order_by.iter())
                .map(|sort| Sort::new(value(), sort.asc, sort.nulls_first))
                .collect(),
            null_treatment: *null_treatment,
        },
    };
    AggregateState::Distinct { argument, filter: filter.as_deref().cloned(), function }
}

const ARGUMENT: &str = "__argument";
const FILTER: &str = "__filter";

fn with_aggregates(like: &Aggregate, groups: Vec<Expr>, exprs: Vec<Expr>) -> DfResult<Aggregate> {
    Aggregate::try_new(Arc::clone(&like.input), groups, exprs)
}

fn join_groupings(
    aggregate: &Aggregate,
    differing: &[usize],
    plain: Vec<(usize, Expr)>,
    distinct: Vec<Grouping>,
    add_slot: &mut impl FnMut(Aggregate) -> DfResult<LogicalPlan>,
) -> DfResult<LogicalPlan> {
    let keys = aggregate.group_expr.len();
    let all: Vec<usize> = (0..keys).collect();
    // What is joined to something else brings no keys that are the same everywhere.
    let joining = if differing.is_empty() { &all } else { differing };
    let mut results: Vec<Option<Column>> = vec![None; aggregate.aggr_expr.len()];
    let mut joined: Option<LogicalPlan> = None;
    if !plain.is_empty() {
        let (places, exprs): (Vec<_>, Vec<_>) = plain.into_iter().unzip();
        let grouping = with_aggregates(aggregate, aggregate.group_expr.clone(), exprs)?;
        let plan = add_slot(grouping)?;
        for (offset, place) in places.into_iter().enumerate() {
            results[place] = Some(Column::from(plan.schema().qualified_field(keys + offset)));
        }
        joined = Some(plan);
    }
    for (number, grouping) in distinct.into_iter().enumerate() {
        let result_of = |place| Column::new_unqualified(format!("__distinct_{place}"));
        for (place, _) in &grouping.calls {
            results[*place] = Some(result_of(*place));
        }
        let by = if joined.is_some() { joining } else { &all };
        let plan = distinct_results(aggregate, grouping, by, add_slot, result_of)?;
        joined = Some(match joined {
            None => plan,
            Some(base) => join_on_keys(base, plan, by, number)?,
        });
    }
    let Some(joined) = joined else {
        return datafusion::common::internal_err!("an aggregate without functions was rewritten");
    };
    let mut exprs: Vec<Expr> = (0..keys)
        .map(|key| Expr::Column(Column::from(joined.schema().qualified_field(key))))
        .collect();
    for (place, column) in results.into_iter().enumerate() {
        if let Some(column) = column {
            exprs.push(Expr::Column(column).alias(aggregate.schema.field(keys + place).name()));
        }
    }
    let schema = Arc::clone(&aggregate.schema);
    let projection = Projection::try_new_with_schema(exprs, Arc::new(joined), schema)?;
    Ok(LogicalPlan::Projection(projection))
}

/// The results of one distinct grouping: the keys at the places `by`, then `result_of(place)` of
/// each call.
fn distinct_results(
    aggregate: &Aggregate,
    grouping: Grouping,
    by: &[usize],
    add_slot: &mut impl FnMut(Aggregate) -> DfResult<LogicalPlan>,
    result_of: impl Fn(usize) -> Column,
) -> DfResult<LogicalPlan> {
    let mut groups = aggregate.group_expr.clone();
    groups.push(grouping.argument.alias(ARGUMENT));
    // Rows that the filter leaves out are grouped too: their keys must not get lost.
    groups.extend(grouping.filter.map(|filter| Expr::IsTrue(Box::new(filter)).alias(FILTER)));
    let slot = add_slot(with_aggregates(aggregate, groups, Vec::new())?)?;
    let columns = (by.iter())
        .map(|key| Expr::Column(Column::from(slot.schema().qualified_field(*key))))
        .collect();
    let calls = (grouping.calls.into_iter())
        .map(|(place, call)| Expr::AggregateFunction(call).alias(result_of(place).name))
        .collect();
    Aggregate::try_new(Arc::new(slot), columns, calls).map(LogicalPlan::Aggregate)
}

/// `other` begins with the keys at the places `by` of `base`.
fn join_on_keys(
    base: LogicalPlan,
    other: LogicalPlan,
    by: &[usize],
    number: usize,
) -> DfResult<LogicalPlan> {
    let mut exprs: Vec<Expr> = Vec::new();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for index in 0..other.schema().fields().len() {
        let column = Expr::Column(Column::from(other.schema().qualified_field(index)));
        if let Some(key) = by.get(index) {
            let name = format!("__key_{number}_{index}");
            left.push(Column::from(base.schema().qualified_field(*key)));
            right.push(Column::new_unqualified(&name));
            exprs.push(column.alias(name));
        } else {
            exprs.push(column);
        }
    }
    let other = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(other))?);
    let builder = LogicalPlanBuilder::from(base);
    if by.is_empty() {
        return builder.cross_join(other)?.build();
    }
    let on = (left, right);
    builder.join_detailed(other, JoinType::Inner, on, None, NullEquality::NullEqualsNull)?.build()
}
