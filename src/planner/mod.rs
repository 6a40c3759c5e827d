//! SQL to plans: what of a query runs on every batch, what it keeps, and what closes it.
//!
//! ```text
//!   text ─► windows (TUMBLE, HOP in FROM) ─► analysed ─► optimised ─► cut ─► executable
//!           windows.rs                       scope.rs    scope.rs     cut.rs  physical.rs
//! ```
//!
//! Promises: every SQL function and operator is DataFusion's; what is kept between batches is
//! plain record batches; the same text gives the same plan; errors name file, line and column.

mod distinct_count;
mod distinct_rewrite;
pub(crate) mod errors;
mod exec;
mod explain;
mod functions;
mod lineage;
mod order_insensitive;
mod physical_plan;
mod planning_session;
mod query_plan;
mod query_planner;
mod split;
pub(crate) mod sql_display;
mod stream_plan;
mod windowing_tvf;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;

use crate::catalog::{Customer, Table};
use crate::error::Error;
use crate::planner::planning_session::{
    KnownRelations, Leaf, PlanningSession, Relation, RelationKind,
};

pub use exec::placeholder::Relations;
pub use functions::EpochNow;
pub use query_plan::{Input, PlanKind, QueryPlan, WindowState};
pub use stream_plan::StreamPlan;

/// All plans of a customer.
#[derive(Debug)]
pub struct CustomerPlan {
    /// In the order of the catalog.
    pub streams: Vec<Arc<StreamPlan>>,
    /// A query comes after those that it reads.
    pub queries: Vec<Arc<QueryPlan>>,
    /// The columns that reference tables have in these plans, by name.
    pub tables: BTreeMap<String, SchemaRef>,
    /// The time that `now()` and its kin read in all of these plans.
    pub now: EpochNow,
}

/// Where plans run.
pub(crate) struct Contexts {
    /// What runs on every batch.
    pub(crate) batches: Arc<TaskContext>,
    /// Closing plans: within the customer's memory limit, spilling to disk.
    pub(crate) closing: Arc<TaskContext>,
}

/// Plans the streams and queries of `customer`; `tables` are its reference tables' columns.
/// All errors of all queries are told; a query that reads a wrong one is left out of them.
pub fn plan_customer(
    customer: &Customer,
    tables: &[(String, SchemaRef)],
) -> Result<CustomerPlan, Vec<Error>> {
    let now = EpochNow::default();
    let session = PlanningSession::new(customer.zone, &now).map_err(|error| vec![error])?;
    let contexts = contexts(&session, customer).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    let (mut relations, mut failed) = (KnownRelations::new(), Vec::new());
    for (name, schema) in tables {
        if schema.fields().is_empty() {
            errors.extend(customer.table(name).map(|table| no_columns(table)));
            failed.push(name.clone());
            continue;
        }
        let kind = RelationKind::Table;
        let schema = Arc::clone(schema);
        add(
            &mut relations,
            Relation { name: name.clone(), kind, schema, event_time: None, key: Vec::new() },
        );
    }
    let mut streams = Vec::new();
    for stream in &customer.streams {
        let schema = stream.schema();
        let event_time = schema.index_of(&stream.watermark.column).ok();
        let (name, kind, key) = (stream.name.clone(), RelationKind::Stream, Vec::new());
        add(&mut relations, Relation { name, kind, schema, event_time, key });
        match StreamPlan::new(&session, stream) {
            Ok(plan) => streams.push(Arc::new(plan)),
            Err(more) => errors.extend(more),
        }
    }
    let mut queries = Vec::new();
    // Of what is not in the catalog, the catalog has told already what is wrong with it.
    let declared = |name: &String| {
        customer.stream(name).is_some()
            || customer.table(name).is_some()
            || customer.query(name).is_some()
    };
    for query in &customer.queries {
        if query.inputs.iter().any(|input| failed.contains(input) || !declared(input)) {
            failed.push(query.name.clone());
            continue;
        }
        match query_planner::plan(&session, &contexts, &relations, query) {
            Ok(plan) => {
                add(&mut relations, query_planner::relation(&plan));
                queries.push(Arc::new(plan));
            }
            Err(more) => {
                failed.push(query.name.clone());
                errors.extend(more);
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let tables = tables.iter().cloned().collect();
    Ok(CustomerPlan { streams, queries, tables, now })
}

fn no_columns(table: &Table) -> Error {
    let message = format!("the file of the table '{}' has no columns", table.name);
    Error::sql(message).at(table.place.clone()).hint(format!(
        "write the columns' names into the first line of {}",
        table.location.display()
    ))
}

fn add(relations: &mut KnownRelations, relation: Relation) {
    relations.insert(relation.name.clone(), Arc::new(Leaf::new(Arc::new(relation), None)));
}

/// How many consumers an out-of-memory error names.
const NAMED_CONSUMERS: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN;

fn contexts(session: &PlanningSession, customer: &Customer) -> Result<Contexts, Error> {
    let batches = session.state.task_ctx();
    let Some(limit) = customer.settings.memory_limit_bytes else {
        return Ok(Contexts { closing: Arc::clone(&batches), batches });
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let pool = TrackConsumersPool::new(FairSpillPool::new(limit), NAMED_CONSUMERS);
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc()?;
    let closing = TaskContext::default()
        .with_session_config(session.state.config().clone())
        .with_runtime(runtime);
    Ok(Contexts { batches, closing: Arc::new(closing) })
}

#[cfg(test)]
mod tests;
