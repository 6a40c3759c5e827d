//! The relations and functions that a query may use, and the fixed steps that turn its text into an
//! optimized logical plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, SchemaProvider, Session as DataFusionSession,
    TableProvider,
};
use datafusion::common::{DFSchema, TableReference, internal_err};
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::optimizer::common_subexpr_eliminate::CommonSubexprEliminate;
use datafusion::optimizer::decorrelate_lateral_join::DecorrelateLateralJoin;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_duplicated_expr::EliminateDuplicatedExpr;
use datafusion::optimizer::eliminate_limit::EliminateLimit;
use datafusion::optimizer::eliminate_outer_join::EliminateOuterJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::optimize_projections::OptimizeProjections;
use datafusion::optimizer::optimize_unions::OptimizeUnions;
use datafusion::optimizer::push_down_filter::PushDownFilter;
use datafusion::optimizer::replace_distinct_aggregate::ReplaceDistinctWithAggregate;
use datafusion::optimizer::rewrite_set_comparison::RewriteSetComparison;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use datafusion::optimizer::simplify_expressions::{ExprSimplifier, SimplifyExpressions};
use datafusion::optimizer::{Optimizer, OptimizerContext};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::ensure_requirements::EnsureRequirements;
use datafusion::physical_optimizer::join_selection::JoinSelection;
use datafusion::physical_optimizer::output_requirements::OutputRequirements;
use datafusion::physical_optimizer::sanity_checker::SanityCheckPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, ExprWithAlias as SqlExprWithAlias, Query as Select, Statement,
};
use futures::FutureExt;

use crate::catalog::suggestion;
use crate::error::Error;
use crate::planner::errors::plan_error_with_hint;
use crate::planner::exec::inputs::WindowColumn;
use crate::planner::exec::placeholder::{LeafColumn, PlaceholderExec, PlaceholderSource};
use crate::planner::functions::{self, EpochNow};
use crate::types::WindowSpec;

/// The kind of a relation in FROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelationKind {
    /// A stream, which is append-only.
    Stream,
    /// The append-only results of another query.
    Results,
    /// The current content of a materialized view.
    View,
    /// A reference table.
    Table,
}

/// A relation that a query may read in FROM.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    pub(crate) name: String,
    pub(crate) kind: RelationKind,
    pub(crate) schema: SchemaRef,
    /// The column of event time, of streams and results.
    pub(crate) event_time: Option<usize>,
    /// Columns that tell its rows apart, of views.
    pub(crate) key: Vec<usize>,
}

impl Relation {
    /// Whether rows come from it batch by batch.
    pub(crate) fn is_streamed(&self) -> bool {
        matches!(self.kind, RelationKind::Stream | RelationKind::Results)
    }
}

/// A relation as the leaf of a plan: takes no filter, no limit, tells no statistics.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) relation: Arc<Relation>,
    /// The windows that its rows are put into by TUMBLE or HOP.
    pub(crate) window: Option<WindowSpec>,
    /// The relation's columns, then those of the window, which take the names.
    schema: SchemaRef,
}

impl Leaf {
    pub(crate) fn new(relation: Arc<Relation>, window: Option<WindowSpec>) -> Self {
        let mut fields = relation.schema.fields().to_vec();
        if let (Some(_), Some(time)) = (&window, relation.event_time) {
            let data_type = relation.schema.field(time).data_type();
            // The results of a windowed query have such columns already: `hourly_window_start`.
            for field in &mut fields {
                if WindowColumn::ALL.iter().any(|column| column.name() == field.name()) {
                    let name = format!("{}_{}", relation.name, field.name());
                    *field = Arc::new(field.as_ref().clone().with_name(name));
                }
            }
            fields.extend(window_fields(data_type));
        }
        let schema = Arc::new(Schema::new(fields));
        Self { relation, window, schema }
    }
}

/// The fields of a window's columns.
pub(crate) fn window_fields(data_type: &DataType) -> impl Iterator<Item = Arc<Field>> {
    WindowColumn::ALL
        .map(|column| Arc::new(Field::new(column.name(), data_type.clone(), false)))
        .into_iter()
}

#[async_trait]
impl TableProvider for Leaf {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Returns a placeholder for the rows that the engine supplies.
    async fn scan(
        &self,
        _: &dyn DataFusionSession,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let columns =
            projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&columns)?);
        let source = if self.relation.is_streamed() {
            let inputs = self.relation.schema.fields().len();
            let column = |index: usize| match index.checked_sub(inputs) {
                None => LeafColumn::Input(index),
                Some(window) => LeafColumn::Window(WindowColumn::ALL[window]),
            };
            PlaceholderSource::Rows(columns.into_iter().map(column).collect())
        } else {
            PlaceholderSource::Relation(self.relation.name.clone(), columns)
        };
        Ok(Arc::new(PlaceholderExec::new(source, schema)))
    }
}

/// The session of a customer: settings, functions and rules. It has no tables of its own.
pub(crate) struct PlanningSession {
    pub(crate) state: SessionState,
}

impl PlanningSession {
    /// Creates a session that interprets times without a zone in `zone`.
    pub(crate) fn new(zone: chrono_tz::Tz, now: &EpochNow) -> Result<Self, Error> {
        let mut config = SessionConfig::new()
            .with_target_partitions(1)
            .with_information_schema(false)
            .with_collect_statistics(false);
        let options = config.options_mut();
        options.execution.time_zone = Some(zone.name().to_owned());
        // Partial aggregation is never skipped, because the partial aggregates are the state.
        options.execution.skip_partial_aggregation_probe_rows_threshold = usize::MAX;
        options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
        options.optimizer.skip_failed_rules = false;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.sql_parser.collect_spans = true;
        let mut state = SessionStateBuilder::new()
            .with_config(config)
            .with_default_features()
            .with_physical_optimizer_rules(physical_rules())
            .with_table_function_list(Vec::new())
            .build();
        let to_timestamp = state.udf("to_timestamp")?;
        for function in functions::functions(zone, now, to_timestamp) {
            state.register_udf(Arc::new(function))?;
        }
        Ok(Self { state })
    }

    /// The analysed plan of `select` over `relations`.
    pub(crate) fn analyse(
        &self,
        select: Select,
        relations: &KnownRelations,
    ) -> DfResult<LogicalPlan> {
        // DataFusion's planner is generic over who knows the tables. The session's own instance is
        // compiled already; one of ours, and all of sqlparser's visitors with it, took minutes.
        let statement = DfStatement::Statement(Box::new(Statement::Query(Box::new(select))));
        for name in self.state.resolve_table_references(&statement)? {
            if name.schema().is_some() || !relations.contains_key(name.table()) {
                return Err(unknown_relation(&name, relations));
            }
        }
        let tables = Arc::new(MemoryCatalogProvider::new());
        let defaults = &self.state.config_options().catalog;
        tables.register_schema(&defaults.default_schema, Arc::new(Scope(relations.clone())))?;
        self.state.catalog_list().register_catalog(defaults.default_catalog.clone(), tables);
        // Analysis does no I/O, so the future is ready at once.
        let plan = self.state.statement_to_plan(statement).now_or_never();
        let plan = plan.unwrap_or_else(|| internal_err!("planning waited"))?;
        self.analyse_plan(plan)
    }

    /// One expression over `schema`.
    pub(crate) fn expression(&self, expr: &SqlExpr, schema: &DFSchema) -> DfResult<Expr> {
        let expr = SqlExprWithAlias { expr: expr.clone(), alias: None };
        self.state.create_logical_expr_from_sql_expr(expr, schema)
    }

    /// `plan` with types coerced.
    pub(crate) fn analyse_plan(&self, plan: LogicalPlan) -> DfResult<LogicalPlan> {
        self.state.analyzer().execute_and_check(plan, self.state.config_options(), |_, _| {})
    }

    /// The optimised plan; the same for the same text, whatever was planned before.
    pub(crate) fn optimise(&self, plan: LogicalPlan) -> DfResult<LogicalPlan> {
        let optimizer = Optimizer::with_rules(vec![
            Arc::new(RewriteSetComparison::new()),
            Arc::new(OptimizeUnions::new()),
            Arc::new(SimplifyExpressions::new()),
            Arc::new(ReplaceDistinctWithAggregate::new()),
            Arc::new(DecorrelatePredicateSubquery::new()),
            Arc::new(ScalarSubqueryToJoin::new()),
            Arc::new(DecorrelateLateralJoin::new()),
            Arc::new(ExtractEquijoinPredicate::new()),
            Arc::new(EliminateDuplicatedExpr::new()),
            Arc::new(EliminateCrossJoin::new()),
            Arc::new(EliminateLimit::new()),
            Arc::new(EliminateOuterJoin::new()),
            Arc::new(PushDownFilter::new()),
            Arc::new(CommonSubexprEliminate::new()),
            Arc::new(OptimizeProjections::new()),
        ]);
        optimizer.optimize(plan, &self.optimizer_context(), |_, _| {})
    }

    /// Removes unused columns.
    pub(crate) fn prune(&self, plan: LogicalPlan) -> DfResult<LogicalPlan> {
        let optimizer = Optimizer::with_rules(vec![Arc::new(OptimizeProjections::new())]);
        optimizer.optimize(plan, &self.optimizer_context(), |_, _| {})
    }

    /// `plan` with constants folded, nothing moved.
    pub(crate) fn simplify(&self, plan: LogicalPlan) -> DfResult<LogicalPlan> {
        let optimizer = Optimizer::with_rules(vec![Arc::new(SimplifyExpressions::new())]);
        optimizer.optimize(plan, &self.optimizer_context(), |_, _| {})
    }

    /// Coerces and folds single expressions over `schema`.
    pub(crate) fn simplifier(&self, schema: &DFSchema) -> DfResult<ExprSimplifier> {
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(schema.clone()))
            .with_config_options(Arc::clone(self.state.config_options()))
            .build();
        Ok(ExprSimplifier::new(context))
    }

    fn optimizer_context(&self) -> OptimizerContext {
        OptimizerContext::new_with_config_options(Arc::clone(self.state.config_options()))
            .without_query_execution_start_time()
    }
}

/// What correctness needs (one partition, sorted inputs), and small build sides.
fn physical_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    vec![
        Arc::new(OutputRequirements::new_add_mode()),
        Arc::new(JoinSelection::new()),
        Arc::new(EnsureRequirements::new()),
        Arc::new(OutputRequirements::new_remove_mode()),
        Arc::new(SanityCheckPlan::new()),
    ]
}

/// The streams, queries and tables that a statement may name, by name.
pub(crate) type KnownRelations = BTreeMap<String, Arc<Leaf>>;

/// The only schema of a statement: the tables that it may read.
#[derive(Debug)]
struct Scope(KnownRelations);

#[async_trait]
impl SchemaProvider for Scope {
    fn table_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> DfResult<Option<Arc<dyn TableProvider>>> {
        Ok(self.0.get(name).map(|leaf| Arc::clone(leaf) as _))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// The relation that a query names is none of `relations`.
fn unknown_relation(name: &TableReference, relations: &KnownRelations) -> DataFusionError {
    let known = relations.keys().map(String::as_str).filter(|name| !name.starts_with("__"));
    let message = format!("there is no stream, query or table '{name}'");
    plan_error_with_hint(&message, &suggestion::suggest(name.table(), known).unwrap_or_default())
}
