//! What a query may name (streams, other queries, reference tables, our functions), and the
//! fixed steps by which its text becomes an optimised logical plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DFSchema, TableReference};
use datafusion::error::Result as DfResult;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::planner::{ContextProvider, ExprPlanner};
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    AggregateUDF, HigherOrderUDF, LogicalPlan, ScalarUDF, TableSource, WindowUDF,
};
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
use datafusion::prelude::SessionConfig;
use datafusion::sql::planner::{ParserOptions, SqlToRel};
use datafusion::sql::sqlparser::ast::{Query as Select, Statement};

use crate::error::Error;
use crate::sql::errors::through_datafusion;
use crate::sql::functions::{self, EpochNow};
use crate::sql::slots::WindowColumn;
use crate::window::assign::WindowSpec;

/// What a name in FROM stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelationKind {
    /// A stream: rows are only ever added.
    Stream,
    /// The results of another query that are only ever added.
    Results,
    /// A materialized view: its present content.
    View,
    /// A reference table.
    Table,
}

/// Something that a query may name in FROM.
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

/// A relation as the leaf of a plan: accepts no filter, no limit, tells no statistics.
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

impl TableSource for Leaf {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// The session of a customer: settings, functions and rules. It has no tables of its own.
pub(crate) struct Session {
    pub(crate) state: SessionState,
}

impl Session {
    /// A session in which times without a zone are meant in `zone`.
    pub(crate) fn new(zone: chrono_tz::Tz, now: &EpochNow) -> Result<Self, Error> {
        let mut config = SessionConfig::new()
            .with_target_partitions(1)
            .with_information_schema(false)
            .with_collect_statistics(false);
        let options = config.options_mut();
        options.execution.time_zone = Some(zone.name().to_owned());
        // A micro-batch is never aggregated in vain: its partials are what is kept.
        options.execution.skip_partial_aggregation_probe_rows_threshold = usize::MAX;
        options.optimizer.enable_physical_uncorrelated_scalar_subquery = false;
        options.optimizer.skip_failed_rules = false;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.sql_parser.collect_spans = true;
        let mut state = SessionStateBuilder::new()
            .with_config(config)
            .with_default_features()
            .with_physical_optimizer_rules(physical_rules())
            .build();
        let to_timestamp = state.udf("to_timestamp")?;
        for function in functions::functions(zone, now, to_timestamp) {
            state.register_udf(Arc::new(function))?;
        }
        Ok(Self { state })
    }

    /// The analysed plan of `select` over `relations`.
    pub(crate) fn analyse(&self, select: Select, relations: &Relations) -> DfResult<LogicalPlan> {
        let scope = Scope { session: self, relations };
        let planner = SqlToRel::new_with_options(&scope, parser_options());
        let plan = planner.sql_statement_to_plan(Statement::Query(Box::new(select)))?;
        self.analyse_plan(plan)
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

    /// Drops the columns that nobody needs.
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

fn parser_options() -> ParserOptions {
    ParserOptions::new().with_collect_spans(true).with_map_string_types_to_utf8view(false)
}

/// Relations by the name that a query uses.
pub(crate) type Relations = BTreeMap<String, Arc<Leaf>>;

/// What one statement sees.
pub(crate) struct Scope<'a> {
    pub(crate) session: &'a Session,
    pub(crate) relations: &'a Relations,
}

impl Scope<'_> {
    /// The planner of one expression.
    pub(crate) fn planner(&self) -> SqlToRel<'_, Self> {
        SqlToRel::new_with_options(self, parser_options())
    }
}

impl ContextProvider for Scope<'_> {
    fn get_table_source(&self, name: TableReference) -> DfResult<Arc<dyn TableSource>> {
        if let (None, Some(leaf)) = (name.schema(), self.relations.get(name.table())) {
            return Ok(Arc::clone(leaf) as Arc<dyn TableSource>);
        }
        let known: Vec<&str> = (self.relations.keys())
            .map(String::as_str)
            .filter(|name| !name.starts_with("__"))
            .collect();
        let message = format!("there is no stream, query or table '{name}'");
        Err(through_datafusion(&message, &format!("there are: {}", known.join(", "))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.session.state.expr_planners()
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.session.state.scalar_functions().get(name).cloned()
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.session.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.session.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.session.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.session.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.session.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.session.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.session.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.session.state.window_functions().keys().cloned().collect()
    }
}
