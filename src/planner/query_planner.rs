//! Plans one query: analysis, checks, optimization, split and physical plan.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef, TimeUnit};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan, LogicalPlanBuilder, cast};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, GroupByExpr, Ident, Select as SelectBody, SelectItem, Spanned,
};
use datafusion::sql::sqlparser::tokenizer;

use crate::catalog::ast_visitor::{QueryVisitor, visit_query};
use crate::catalog::{Emit, Query, QueryKind, suggestion};
use crate::error::{Error, Place};
use crate::planner::errors::{
    SqlSource, in_query, in_source, keyword_in, place_of_span, two_columns,
};
use crate::planner::exec::inputs::WindowColumn;
use crate::planner::lineage::{self, ColumnOrigin};
use crate::planner::planning_session::{
    KnownRelations, Leaf, PlanningSession, Relation, RelationKind, window_fields,
};
use crate::planner::query_plan::{Input, PlanKind, QueryPlan, can_be_output};
use crate::planner::split::{self, Windowing};
use crate::planner::sql_display::sql_type;
use crate::planner::task_contexts::TaskContexts;
use crate::planner::windowing_tvf::{self, WindowedRelation};
use crate::planner::{explain, functions, physical_plan};
use crate::types::WindowSpec;

/// Plans `query` over `relations`, which are keyed by name.
///
/// # Errors
/// Returns all errors that can be found in one pass.
pub(crate) fn plan(
    session: &PlanningSession,
    contexts: &TaskContexts,
    relations: &KnownRelations,
    query: &Arc<Query>,
) -> Result<QueryPlan, Vec<Error>> {
    let planner = Planner { session, query };
    let mut select = query.select.as_ref().clone();
    let windowed = windowing_tvf::resolve(&mut select, query)?;
    let relations = planner.with_windows(relations, windowed)?;
    planner.check_written_names().map_err(|error| vec![error])?;
    let failed = |error: DataFusionError| planner.errors(&error, &relations);
    let analysed = session.analyse(select, &relations).map_err(failed)?;
    let plan = session.simplify(analysed).map_err(failed)?;
    planner.plan(contexts, plan).map_err(|error| vec![error])
}

struct Planner<'a> {
    session: &'a PlanningSession,
    query: &'a Arc<Query>,
}

/// The input of a query and how the query reads it.
struct QueryInput {
    input: Input,
    kind: PlanKind,
    windowing: Windowing,
    leaf: Option<Arc<Relation>>,
    tables: Vec<String>,
}

impl Planner<'_> {
    fn errors(&self, error: &DataFusionError, relations: &KnownRelations) -> Vec<Error> {
        let leaves = relations.values();
        let columns: Vec<_> = (leaves.flat_map(|leaf| leaf.relation.schema.fields()))
            .map(|field| (field.name().clone(), field.data_type().clone()))
            .collect();
        let source = SqlSource { columns: &columns, ..SqlSource::of(self.query) };
        let placed = |error| in_source(error, &source).at(self.query.place.clone());
        error.iter().map(placed).collect()
    }

    fn error(&self, message: impl Into<String>) -> Error {
        let message = message.into();
        let keyword = keyword_in(&message).and_then(|word| SqlSource::of(self.query).find(word));
        Error::sql(message).at(keyword.unwrap_or_else(|| self.select_place()))
    }

    /// Returns `relations` and the leaves of the window functions in FROM.
    fn with_windows(
        &self,
        relations: &KnownRelations,
        windowed: Vec<WindowedRelation>,
    ) -> Result<KnownRelations, Vec<Error>> {
        let mut all = relations.clone();
        let mut errors = Vec::new();
        for window in windowed {
            match self.windowed_leaf(relations, &window) {
                Ok(leaf) => drop(all.insert(window.name, Arc::new(leaf))),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }

    fn windowed_leaf(
        &self,
        known: &KnownRelations,
        window: &WindowedRelation,
    ) -> Result<Leaf, Error> {
        let at = |ident: &Ident, message: String| {
            let place = place_of_span(self.query, ident.span);
            Error::sql(message).at(place.unwrap_or_else(|| self.query.place.clone()))
        };
        let name = normalised(&window.input);
        let Some(leaf) = known.get(&name) else {
            let names = (known.iter())
                .filter(|(_, leaf)| leaf.relation.is_streamed())
                .map(|(name, _)| name.as_str());
            return Err(at(&window.input, format!("there is no stream or query '{name}'"))
                .hint_if(suggestion::suggest(&name, names)));
        };
        if !leaf.relation.is_streamed() {
            return Err(at(
                &window.input,
                format!("'{name}' is not a stream, so it has no windows"),
            )
            .hint("window functions require a stream or an append-only query"));
        }
        let time = normalised(&window.time);
        let schema = &leaf.relation.schema;
        let event_time = leaf.relation.event_time.map(|column| schema.field(column).name().clone());
        match event_time {
            Some(event_time) if event_time == time => {
                let place = place_of_span(self.query, window.input.span);
                let place = place.unwrap_or_else(|| self.query.place.clone());
                window.spec.validate().map_err(|error| error.at(place))?;
                Ok(Leaf::new(Arc::clone(&leaf.relation), Some(window.spec)))
            }
            Some(event_time) => {
                Err(at(&window.time, format!("'{time}' is not the event time of '{name}'"))
                    .hint(format!("write DESCRIPTOR({event_time})")))
            }
            None => Err(at(&window.input, format!("the results of '{name}' have no event time"))
                .hint("select window_time in that query, or in a query without windows the unchanged event time column")),
        }
    }

    fn plan(&self, contexts: &TaskContexts, plan: LogicalPlan) -> Result<QueryPlan, Error> {
        let df = |error: DataFusionError| in_query(&error, self.query).at(self.select_place());
        if let Some(function) = functions::volatile(&plan).map_err(df)? {
            let hint = "a repeated epoch must give the same result; use a column of the stream";
            return Err(in_query_at_name(self.query, &function)
                .unwrap_or_else(|| {
                    self.error(format!("{function}() returns a different value on each run"))
                })
                .hint(hint));
        }
        self.check_names(&plan)?;
        let input = self.analyse_input(&plan)?;
        let plan = self.normalised_output(plan)?;
        let optimised = self.session.optimise(plan).map_err(df)?;
        let split = split::split(&optimised, input.windowing).map_err(df)?;
        if input.kind == PlanKind::Stateless && !split.slots.is_empty() {
            return Err(self.error("this query needs state, but has no window"));
        }
        let executable = physical_plan::plan(self.session, &split);
        // Planning does no I/O. `unconstrained` keeps tokio's cooperative budget from suspending it,
        // because `block_on` here has no runtime that would poll it again.
        let executable = tokio::task::unconstrained(executable);
        let executable = futures::executor::block_on(executable).map_err(df)?;
        let output: SchemaRef = Arc::new(Schema::new(optimised.schema().fields().clone()));
        let mut assumed_unique = Vec::new();
        let key = match input.kind {
            PlanKind::Stateless => Vec::new(),
            _ => self.key(&optimised, input.kind, &mut assumed_unique),
        };
        let panes = matches!(input.windowing, Windowing::Leaf(WindowSpec::Hop { .. }))
            && split::can_use_panes(&split).map_err(df)?;
        let leaf_schema = leaf_schema(&input, &executable.input_columns);
        let emits_changes = input.kind != PlanKind::Stateless && self.emits_changes(input.kind);
        let fingerprint = explain::fingerprint(
            &optimised,
            &split,
            &input.windowing,
            &output,
            &leaf_schema,
            emits_changes.then_some(key.as_slice()),
        );
        Ok(QueryPlan {
            name: self.query.name.clone(),
            query: Arc::clone(self.query),
            window: match input.windowing {
                Windowing::Leaf(spec) | Windowing::Group(spec) => Some(spec),
                Windowing::None => None,
            },
            event_time: event_time(&optimised, &input),
            has_window_column: has_window_column(&optimised),
            input: input.input,
            kind: input.kind,
            output,
            key,
            tables: input.tables,
            fingerprint,
            panes,
            leaf_schema,
            explanation: explain::explain(&split, panes),
            stored_text: explain::stored_text(&split, panes),
            state_description: explain::describe_state(&split),
            executable,
            assumed_unique,
            context: Arc::clone(&contexts.batches),
            final_context: Arc::clone(&contexts.final_plans),
        })
    }

    /// Checks that column names are unique, because records have one value per name. Only the plan shows
    /// the columns of a `*`.
    fn check_names(&self, plan: &LogicalPlan) -> Result<(), Error> {
        let fields = plan.schema().fields();
        let twice = fields.iter().enumerate().find(|(index, field)| {
            fields.iter().take(*index).any(|other| other.name() == field.name())
        });
        match twice {
            Some((_, field)) => Err(two_columns(field.name()).into_error().at(self.select_place())),
            None => Ok(()),
        }
    }

    /// Checks the names that the query writes, like [`Planner::check_names`].
    fn check_written_names(&self) -> Result<(), Error> {
        let Some(select) = self.query.select.body.as_select() else { return Ok(()) };
        let mut seen: Vec<String> = Vec::new();
        for ident in select.projection.iter().filter_map(output_name) {
            let name = normalised(ident);
            if seen.contains(&name) {
                let place = place_of_span(self.query, ident.span);
                let error = two_columns(&name).into_error();
                return Err(error.at(place.unwrap_or_else(|| self.select_place())));
            }
            seen.push(name);
        }
        Ok(())
    }

    /// Determines what the query reads and which state it has; rejects unsupported combinations.
    fn analyse_input(&self, plan: &LogicalPlan) -> Result<QueryInput, Error> {
        let mut streamed: Vec<(Arc<Relation>, Option<WindowSpec>)> = Vec::new();
        let mut tables = Vec::new();
        let visited = lineage::for_each_leaf(plan, |leaf| {
            if leaf.relation.is_streamed() {
                streamed.push((Arc::clone(&leaf.relation), leaf.window));
            } else if !tables.contains(&leaf.relation.name) {
                tables.push(leaf.relation.name.clone());
            }
        });
        visited.map_err(|error| in_query(&error, self.query))?;
        tables.sort();
        let Some((leaf, window)) = streamed.first().cloned() else {
            return self.analyse_view_input(tables);
        };
        if streamed.iter().any(|(other, _)| other.name != leaf.name) {
            return Err(self
                .error("joins of streams are not supported yet")
                .hint("a query may join one stream with reference tables and views"));
        }
        if streamed.iter().any(|(_, other)| *other != window) {
            return Err(self
                .error("the stream is read with different windows, or with and without one")
                .hint(
                    "use the same window function everywhere in one query, or write two queries",
                ));
        }
        let windowing = match window {
            Some(spec) => Windowing::Leaf(spec),
            None => match self.bucket(plan)? {
                Some(spec) => Windowing::Group(spec),
                None => Windowing::None,
            },
        };
        if !matches!(windowing, Windowing::Leaf(_)) && has_streamed_distinct(plan) {
            return Err(self
                .error("DISTINCT over a stream needs a window")
                .hint("write FROM TUMBLE(..), or GROUP BY in a materialized view"));
        }
        let aggregates = has_streamed_aggregate(plan);
        let kind = self.kind(windowing, aggregates)?;
        if kind == PlanKind::Windowed {
            self.check_windows(plan)?;
        }
        let input = match leaf.kind {
            RelationKind::Stream => Input::Stream(leaf.name.clone()),
            _ => Input::Query(leaf.name.clone()),
        };
        Ok(QueryInput { input, kind, windowing, leaf: Some(leaf), tables })
    }

    fn analyse_view_input(&self, tables: Vec<String>) -> Result<QueryInput, Error> {
        if self.query.kind == QueryKind::Stream {
            return Err(self
                .error("CREATE STREAM needs a query that reads a stream")
                .hint("write CREATE MATERIALIZED VIEW, or a bare SELECT"));
        }
        Ok(QueryInput {
            input: Input::Views,
            kind: PlanKind::Derived,
            windowing: Windowing::None,
            leaf: None,
            tables,
        })
    }

    fn kind(&self, windowing: Windowing, aggregates: bool) -> Result<PlanKind, Error> {
        let to_window = "group by a window: FROM TUMBLE(TABLE .., DESCRIPTOR(..), INTERVAL '1' HOUR) .. GROUP BY window_start, window_end";
        match (windowing, self.query.kind, aggregates) {
            (Windowing::None, QueryKind::View | QueryKind::Unstated, true) => Ok(PlanKind::View),
            (Windowing::None, QueryKind::Stream, true) => Err(self
                .error("an aggregate over a stream needs a window")
                .hint(format!("{to_window}; or write CREATE MATERIALIZED VIEW"))),
            (Windowing::None, QueryKind::View, false) => Err(self
                .error("a materialized view over a stream needs a GROUP BY")
                .hint("write CREATE STREAM .. AS, or a bare SELECT, for append-only results")),
            (Windowing::None, _, false) => Ok(PlanKind::Stateless),
            (_, QueryKind::View, _) => Err(self
                .error("a materialized view has no windows")
                .hint("write CREATE STREAM .. AS, or a bare SELECT")),
            (_, _, _) => Ok(PlanKind::Windowed),
        }
    }

    /// Returns the `date_bin` or `date_trunc` by which the aggregates over the stream group.
    fn bucket(&self, plan: &LogicalPlan) -> Result<Option<WindowSpec>, Error> {
        let mut found = None;
        let mut visit = vec![plan];
        while let Some(node) = visit.pop() {
            visit.extend(node.inputs());
            let LogicalPlan::Aggregate(aggregate) = node else { continue };
            for origin in lineage::group_origins(aggregate).into_iter().flatten() {
                let ColumnOrigin::Bucket(spec) = origin else { continue };
                if found.is_some_and(|other| other != spec) {
                    return Err(self.error("the query groups by two different windows").hint(
                        "use one date_bin or date_trunc, and derive others from its result",
                    ));
                }
                spec.validate().map_err(|error| error.at(self.select_place()))?;
                found = Some(spec);
            }
        }
        Ok(found)
    }

    /// Checks that every aggregate of a windowed query has the window among its keys.
    fn check_windows(&self, plan: &LogicalPlan) -> Result<(), Error> {
        let has_window_column = |origins: Vec<Option<ColumnOrigin>>| {
            origins.into_iter().flatten().any(|origin| match origin {
                ColumnOrigin::Window(column) => column != WindowColumn::Time,
                ColumnOrigin::Bucket(_) => true,
                ColumnOrigin::Input(_) => false,
            })
        };
        let ok = match plan {
            LogicalPlan::Aggregate(aggregate) if lineage::is_streamed(plan) => {
                // The window is in all grouping sets or in none.
                let exprs = aggregate.group_expr.as_slice();
                matches!(exprs, [Expr::GroupingSet(_)])
                    || has_window_column(lineage::group_origins(aggregate))
            }
            LogicalPlan::Distinct(Distinct::All(input)) if lineage::is_streamed(plan) => {
                has_window_column(lineage::origins(input))
            }
            _ => true,
        };
        if !ok {
            let message = match plan {
                LogicalPlan::Distinct(_) => "DISTINCT needs the window among its columns",
                _ => "an aggregate needs the window in its GROUP BY",
            };
            return Err(self.error(message).hint("add window_start, window_end"));
        }
        plan.inputs().into_iter().try_for_each(|input| self.check_windows(input))
    }

    /// Casts the output columns to the types of results: instants to microseconds, texts to `Utf8`.
    fn normalised_output(&self, plan: LogicalPlan) -> Result<LogicalPlan, Error> {
        let schema = Arc::clone(plan.schema());
        let mut changes = false;
        let mut exprs = Vec::new();
        for (qualifier, field) in schema.iter() {
            let data_type = field.data_type();
            if !can_be_output(data_type) {
                return Err(self
                    .error(format!(
                        "the column '{}' has the type {}, which results do not support",
                        field.name(),
                        sql_type(data_type)
                    ))
                    .hint("CAST it; for an interval, write date_part('epoch', ..)"));
            }
            let column = Expr::Column((qualifier, field).into());
            let wanted = match data_type {
                DataType::Timestamp(_, zone) => {
                    DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
                }
                DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
                DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
                other => other.clone(),
            };
            let is_cast = wanted != *data_type;
            changes |= is_cast;
            exprs.push(if is_cast {
                cast(column, wanted).alias_qualified(qualifier.cloned(), field.name())
            } else {
                column
            });
        }
        if !changes {
            return Ok(plan);
        }
        let projected = LogicalPlanBuilder::from(plan).project(exprs).and_then(|plan| plan.build());
        projected.map_err(|error| in_query(&error, self.query))
    }

    /// Returns the key of the results: the window, then the other columns that identify a row. A
    /// changelog needs a key; without a known key it is all columns.
    fn key(&self, plan: &LogicalPlan, kind: PlanKind, assumed: &mut Vec<String>) -> Vec<usize> {
        let key = known_key(plan, assumed);
        if key.is_empty() && self.emits_changes(kind) {
            return (0..plan.schema().fields().len()).collect();
        }
        key
    }

    /// Whether the results of a query with state are a changelog.
    fn emits_changes(&self, kind: PlanKind) -> bool {
        let is_early = matches!(self.query.emit, Emit::Every(_));
        kind != PlanKind::Windowed || is_early || self.query.allowed_lateness_us > 0
    }

    fn select_place(&self) -> Place {
        let mut finder = SelectFinder::default();
        visit_query(&self.query.select, &mut finder);
        let span = finder.group_by.or(finder.select);
        span.and_then(|span| place_of_span(self.query, span))
            .unwrap_or_else(|| self.query.place.clone())
    }
}

/// Returns the key that follows from the plan, or no columns.
fn known_key(plan: &LogicalPlan, assumed: &mut Vec<String>) -> Vec<usize> {
    let Some(mut key) = lineage::key(plan, assumed) else {
        assumed.clear();
        return Vec::new();
    };
    key.sort_unstable();
    key.dedup();
    let origins = lineage::origins(plan);
    let is_window = |column: &usize| origins[*column].is_some_and(ColumnOrigin::is_window);
    let start = (0..origins.len()).find(|column| {
        matches!(
            origins[*column],
            Some(ColumnOrigin::Window(WindowColumn::Start) | ColumnOrigin::Bucket(_))
        )
    });
    let other = (0..origins.len()).find(is_window);
    let window = start.or(other);
    window.into_iter().chain(key.into_iter().filter(|column| !is_window(column))).collect()
}

fn in_query_at_name(query: &Query, function: &str) -> Option<Error> {
    let place = SqlSource::of(query).find(function)?;
    Some(Error::sql(format!("{function}() returns a different value on each run")).at(place))
}

/// Normalizes an identifier like DataFusion: lower case unless quoted.
fn normalised(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

fn has_streamed_aggregate(plan: &LogicalPlan) -> bool {
    let is_one = matches!(plan, LogicalPlan::Aggregate(_)) && lineage::is_streamed(plan);
    is_one || plan.inputs().into_iter().any(has_streamed_aggregate)
}

/// Whether a DISTINCT reads a stream without an aggregate in between.
fn has_streamed_distinct(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Aggregate(_) => false,
        LogicalPlan::Distinct(_) if lineage::is_streamed(plan) && !has_streamed_aggregate(plan) => {
            true
        }
        other => other.inputs().into_iter().any(has_streamed_distinct),
    }
}

/// Returns the input columns that the plan reads, followed by the window columns.
fn leaf_schema(input: &QueryInput, columns: &[usize]) -> SchemaRef {
    let Some(leaf) = &input.leaf else {
        return Arc::new(Schema::empty());
    };
    let mut fields: Vec<_> =
        columns.iter().map(|column| Arc::clone(&leaf.schema.fields()[*column])).collect();
    if let (Windowing::Leaf(_), Some(time)) = (input.windowing, leaf.event_time) {
        fields.extend(window_fields(leaf.schema.field(time).data_type()));
    }
    Arc::new(Schema::new(fields))
}

/// Returns the output column that readers can use as event time: `window_time`, or in a query without
/// state the unchanged event time of the input.
fn event_time(plan: &LogicalPlan, input: &QueryInput) -> Option<usize> {
    let wanted = match input.kind {
        PlanKind::Stateless => {
            ColumnOrigin::Input(input.leaf.as_ref().and_then(|leaf| leaf.event_time)?)
        }
        PlanKind::Windowed => ColumnOrigin::Window(WindowColumn::Time),
        PlanKind::View | PlanKind::Derived => return None,
    };
    lineage::origins(plan).iter().position(|origin| *origin == Some(wanted))
}

/// Whether an output column identifies the window of a row.
fn has_window_column(plan: &LogicalPlan) -> bool {
    lineage::origins(plan).into_iter().flatten().any(ColumnOrigin::is_window)
}

/// Finds the first GROUP BY and the first SELECT.
#[derive(Default)]
struct SelectFinder {
    group_by: Option<tokenizer::Span>,
    select: Option<tokenizer::Span>,
}

impl QueryVisitor for SelectFinder {
    fn select(&mut self, select: &SelectBody) -> ControlFlow<tokenizer::Span> {
        self.select.get_or_insert(select.select_token.0.span);
        if let GroupByExpr::Expressions(exprs, _) = &select.group_by
            && let Some(first) = exprs.first()
        {
            self.group_by.get_or_insert(first.span());
        }
        ControlFlow::Continue(())
    }
}

/// Returns the alias or the name of a result column.
fn output_name(item: &SelectItem) -> Option<&Ident> {
    match item {
        SelectItem::ExprWithAlias { alias, .. } => Some(alias),
        SelectItem::UnnamedExpr(SqlExpr::Identifier(ident)) => Some(ident),
        SelectItem::UnnamedExpr(SqlExpr::CompoundIdentifier(parts)) => parts.last(),
        _ => None,
    }
}

/// Returns the relation that other queries read.
pub(crate) fn relation(plan: &QueryPlan) -> Relation {
    let kind = match plan.kind {
        PlanKind::Stateless | PlanKind::Windowed => RelationKind::Results,
        PlanKind::View | PlanKind::Derived => RelationKind::View,
    };
    Relation {
        name: plan.name.clone(),
        kind,
        schema: Arc::clone(&plan.output),
        event_time: plan.event_time,
        key: plan.key.clone(),
    }
}
