//! Traces the origin of a plan's columns: window columns, input columns, and keys that identify
//! rows.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DFSchema, JoinType, ScalarValue};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::expr::Alias;
use datafusion::logical_expr::{Aggregate, Cast, Distinct, Expr, Join, LogicalPlan, TableScan};

use datafusion::datasource::DefaultTableSource;

use crate::planner::exec::inputs::WindowColumn;
use crate::planner::planning_session::{Leaf, RelationKind};
use crate::time::DAY;
use crate::types::{Size, TruncUnit, WindowSpec};

/// The origin of a column that passes through from a streamed leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColumnOrigin {
    /// The input column of this index.
    Input(usize),
    /// A column of the window.
    Window(WindowColumn),
    /// `date_bin` or `date_trunc` of the event time.
    Bucket(WindowSpec),
}

impl ColumnOrigin {
    /// Whether the column is constant within a window.
    pub(crate) fn is_window(self) -> bool {
        !matches!(self, Self::Input(_))
    }
}

/// The leaf that a scan reads.
pub(crate) fn leaf(scan: &TableScan) -> Option<&Leaf> {
    let source = scan.source.downcast_ref::<DefaultTableSource>()?;
    source.table_provider.downcast_ref::<Leaf>()
}

/// Calls `visit` for every leaf of `plan`, including the leaves of sub-queries.
pub(crate) fn for_each_leaf(plan: &LogicalPlan, mut visit: impl FnMut(&Leaf)) -> DfResult<()> {
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(leaf) = leaf(scan)
        {
            visit(leaf);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// Whether any leaf under `plan` is streamed; sub-queries are not considered.
pub(crate) fn is_streamed(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(scan) => leaf(scan).is_some_and(|leaf| leaf.relation.is_streamed()),
        other => other.inputs().into_iter().any(is_streamed),
    }
}

/// Returns the origin of each output column of `plan`.
pub(crate) fn origins(plan: &LogicalPlan) -> Vec<Option<ColumnOrigin>> {
    match plan {
        LogicalPlan::TableScan(scan) => scan_origins(scan),
        LogicalPlan::Projection(projection) => expr_origins(&projection.expr, &projection.input),
        LogicalPlan::Aggregate(aggregate) => {
            let mut all = group_origins(aggregate);
            all.resize(plan.schema().fields().len(), None);
            all
        }
        LogicalPlan::Distinct(Distinct::On(on)) => expr_origins(&on.select_expr, &on.input),
        LogicalPlan::Join(join) => join_origins(join),
        LogicalPlan::Window(window) => {
            let mut all = origins(&window.input);
            all.resize(plan.schema().fields().len(), None);
            all
        }
        LogicalPlan::Union(union) => (union.inputs.iter())
            .map(|input| origins(input))
            .reduce(|left, right| {
                left.iter().zip(&right).map(|(l, r)| l.filter(|_| l == r)).collect()
            })
            .unwrap_or_default(),
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => match plan.inputs().first() {
            Some(input) => origins(input),
            None => match plan {
                LogicalPlan::Subquery(subquery) => origins(&subquery.subquery),
                _ => vec![None; plan.schema().fields().len()],
            },
        },
        _ => vec![None; plan.schema().fields().len()],
    }
}

fn scan_origins(scan: &TableScan) -> Vec<Option<ColumnOrigin>> {
    let width = scan.projected_schema.fields().len();
    let Some(leaf) = leaf(scan).filter(|leaf| leaf.relation.is_streamed()) else {
        return vec![None; width];
    };
    let inputs = leaf.relation.schema.fields().len();
    let columns: Vec<usize> = scan.projection.clone().unwrap_or_else(|| (0..width).collect());
    (columns.into_iter())
        .map(|column| match column.checked_sub(inputs) {
            None => Some(ColumnOrigin::Input(column)),
            Some(window) => WindowColumn::ALL.get(window).copied().map(ColumnOrigin::Window),
        })
        .collect()
}

fn expr_origins(exprs: &[Expr], input: &LogicalPlan) -> Vec<Option<ColumnOrigin>> {
    let below = origins(input);
    let time = event_time(input);
    exprs.iter().map(|expr| expr_origin(expr, input.schema(), &below, time)).collect()
}

/// Returns the origin of each group column of `aggregate`; no origins with grouping sets.
pub(crate) fn group_origins(aggregate: &Aggregate) -> Vec<Option<ColumnOrigin>> {
    match aggregate.group_expr.as_slice() {
        [Expr::GroupingSet(_)] => Vec::new(),
        exprs => expr_origins(exprs, &aggregate.input),
    }
}

fn join_origins(join: &Join) -> Vec<Option<ColumnOrigin>> {
    let (left, right) = (origins(&join.left), origins(&join.right));
    let none = |side: Vec<_>| vec![None; side.len()];
    match join.join_type {
        JoinType::Inner => [left, right].concat(),
        JoinType::Left => [left, none(right)].concat(),
        JoinType::Right => [none(left), right].concat(),
        JoinType::Full => [none(left), none(right)].concat(),
        JoinType::LeftSemi | JoinType::LeftAnti => left,
        JoinType::RightSemi | JoinType::RightAnti => right,
        JoinType::LeftMark => [left, vec![None]].concat(),
        JoinType::RightMark => [right, vec![None]].concat(),
    }
}

/// The event-time column of the stream under `plan`.
fn event_time(plan: &LogicalPlan) -> Option<usize> {
    match plan {
        LogicalPlan::TableScan(scan) => leaf(scan)
            .filter(|leaf| leaf.relation.is_streamed())
            .and_then(|leaf| leaf.relation.event_time),
        other => other.inputs().into_iter().find_map(event_time),
    }
}

fn expr_origin(
    expr: &Expr,
    schema: &DFSchema,
    below: &[Option<ColumnOrigin>],
    time: Option<usize>,
) -> Option<ColumnOrigin> {
    match expr {
        Expr::Column(column) => below.get(schema.maybe_index_of_column(column)?).copied()?,
        Expr::Alias(Alias { expr, .. }) => expr_origin(expr, schema, below, time),
        // A bucket in another precision still identifies the window.
        Expr::Cast(cast) if is_instant(cast) => {
            let origin = expr_origin(&cast.expr, schema, below, time);
            origin.filter(|origin| matches!(origin, ColumnOrigin::Bucket(_)))
        }
        Expr::ScalarFunction(function) => {
            let spec = match (function.func.name(), function.args.as_slice()) {
                ("date_bin", [stride, at, origin @ ..]) => {
                    is_event_time(at, schema, below, time).then(|| date_bin(stride, origin))?
                }
                ("date_trunc", [unit, at]) => {
                    is_event_time(at, schema, below, time).then(|| date_trunc(unit))?
                }
                _ => None,
            };
            spec.map(ColumnOrigin::Bucket)
        }
        _ => None,
    }
}

/// Whether `expr` is the event time, in any precision but in the same zone.
fn is_event_time(
    expr: &Expr,
    schema: &DFSchema,
    below: &[Option<ColumnOrigin>],
    time: Option<usize>,
) -> bool {
    let inner = match expr {
        Expr::Cast(cast) if is_instant(cast) => cast.expr.as_ref(),
        other => other,
    };
    let origin = expr_origin(inner, schema, below, time);
    time.is_some_and(|time| origin == Some(ColumnOrigin::Input(time)))
}

fn is_instant(cast: &Cast) -> bool {
    matches!(cast.field.data_type(), DataType::Timestamp(_, Some(_)))
}

fn date_bin(stride: &Expr, origin: &[Expr]) -> Option<WindowSpec> {
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(stride)), _) = stride else {
        return None;
    };
    let stride = match (stride.months, stride.days, stride.nanoseconds) {
        (months, 0, 0) => Size::Months(u32::try_from(months).ok()?),
        (0, days, nanos) if nanos % 1_000 == 0 => {
            Size::Fixed(i64::from(days).checked_mul(DAY)?.checked_add(nanos / 1_000)?)
        }
        _ => return None,
    };
    let origin = match origin {
        [] => 0,
        [Expr::Literal(value, _)] => micros(value)?,
        _ => return None,
    };
    Some(WindowSpec::DateBin { stride, origin })
}

fn micros(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampSecond(Some(value), _) => value.checked_mul(1_000_000),
        ScalarValue::TimestampMillisecond(Some(value), _) => value.checked_mul(1_000),
        ScalarValue::TimestampMicrosecond(Some(value), _) => Some(*value),
        ScalarValue::TimestampNanosecond(Some(value), _) => {
            (value % 1_000 == 0).then_some(value / 1_000)
        }
        _ => None,
    }
}

fn date_trunc(unit: &Expr) -> Option<WindowSpec> {
    let Expr::Literal(unit, _) = unit else { return None };
    let unit = match unit.try_as_str()??.to_ascii_lowercase().as_str() {
        "microsecond" => TruncUnit::Microsecond,
        "millisecond" => TruncUnit::Millisecond,
        "second" => TruncUnit::Second,
        "minute" => TruncUnit::Minute,
        "hour" => TruncUnit::Hour,
        "day" => TruncUnit::Day,
        "week" => TruncUnit::Week,
        "month" => TruncUnit::Month,
        "quarter" => TruncUnit::Quarter,
        "year" => TruncUnit::Year,
        _ => return None,
    };
    Some(WindowSpec::DateTrunc { unit })
}

/// Returns columns that identify each row of a run, or `None` if no such columns are known.
///
/// `assumed` collects the reference tables that must have one row per joined value.
pub(crate) fn key(plan: &LogicalPlan, assumed: &mut Vec<String>) -> Option<Vec<usize>> {
    match plan {
        LogicalPlan::TableScan(scan) => scan_key(scan),
        LogicalPlan::Aggregate(aggregate) => match aggregate.group_expr.as_slice() {
            [Expr::GroupingSet(_)] => None,
            exprs => Some((0..exprs.len()).collect()),
        },
        LogicalPlan::Projection(projection) => {
            projected_key(&projection.expr, &projection.input, assumed)
        }
        LogicalPlan::Distinct(Distinct::All(input)) => {
            key(input, assumed).or_else(|| Some((0..plan.schema().fields().len()).collect()))
        }
        LogicalPlan::Join(join) => join_key(join, assumed),
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Window(_) => plan.inputs().first().and_then(|input| key(input, assumed)),
        _ => None,
    }
}

fn scan_key(scan: &TableScan) -> Option<Vec<usize>> {
    let leaf = leaf(scan).filter(|leaf| leaf.relation.kind == RelationKind::View)?;
    if leaf.relation.key.is_empty() {
        return None;
    }
    match &scan.projection {
        None => Some(leaf.relation.key.clone()),
        Some(columns) => (leaf.relation.key.iter())
            .map(|key| columns.iter().position(|column| column == key))
            .collect(),
    }
}

/// A projection may drop window columns, because a run has only one window.
fn projected_key(
    exprs: &[Expr],
    input: &Arc<LogicalPlan>,
    assumed: &mut Vec<String>,
) -> Option<Vec<usize>> {
    let (below, schema) = (origins(input), input.schema());
    let mut columns = Vec::new();
    for part in key(input, assumed)? {
        let found = exprs.iter().position(|expr| match expr.clone().unalias() {
            Expr::Cast(cast) if is_instant(&cast) => column_of(&cast.expr, schema) == Some(part),
            expr => column_of(&expr, schema) == Some(part),
        });
        match found {
            Some(column) => columns.push(column),
            None if below[part].is_some_and(ColumnOrigin::is_window) => {}
            None => return None,
        }
    }
    Some(columns)
}

/// Returns the input column that `expr` passes through.
pub(crate) fn column_of(expr: &Expr, schema: &DFSchema) -> Option<usize> {
    match expr {
        Expr::Column(column) => schema.maybe_index_of_column(column),
        Expr::Alias(Alias { expr, .. }) => column_of(expr, schema),
        _ => None,
    }
}

fn join_key(join: &Join, assumed: &mut Vec<String>) -> Option<Vec<usize>> {
    let shift = join.left.schema().fields().len();
    match join.join_type {
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => key(&join.left, assumed),
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
            key(&join.right, assumed)
        }
        JoinType::Inner | JoinType::Left | JoinType::Right => {
            let (left_on, right_on): (Vec<_>, Vec<_>) = (join.on.iter())
                .map(|(l, r)| (column_of(l, join.left.schema()), column_of(r, join.right.schema())))
                .unzip();
            let left = side_key(&join.left, &left_on, assumed)?;
            let right = side_key(&join.right, &right_on, assumed)?;
            // A side that is joined on its key adds at most one row to each row of the other side.
            let covers = |on: &[Option<usize>], key: &[usize]| {
                key.iter().all(|column| on.contains(&Some(*column)))
            };
            let right_shifted = right.iter().map(|column| column + shift);
            Some(match join.join_type {
                JoinType::Inner | JoinType::Left if covers(&right_on, &right) => left,
                JoinType::Inner | JoinType::Right if covers(&left_on, &left) => {
                    right_shifted.collect()
                }
                _ => left.iter().copied().chain(right_shifted).collect(),
            })
        }
        JoinType::Full => None,
    }
}

/// Returns the key of one side of a join. A reference table is assumed to have one row per joined
/// value: `assumed` records it, and each result is checked.
fn side_key(
    side: &LogicalPlan,
    on: &[Option<usize>],
    assumed: &mut Vec<String>,
) -> Option<Vec<usize>> {
    if let Some(key) = key(side, assumed) {
        return Some(key);
    }
    let on: Option<Vec<usize>> = on.iter().copied().collect();
    let on = on.filter(|on| !on.is_empty())?;
    let mut tables = Vec::new();
    for_each_leaf(side, |leaf| tables.push((leaf.relation.kind, leaf.relation.name.clone())))
        .ok()?;
    match tables.as_slice() {
        [(RelationKind::Table, name)] => {
            assumed.push(name.clone());
            Some(on)
        }
        _ => None,
    }
}
