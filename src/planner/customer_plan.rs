//! Plans all streams and queries of one customer.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use crate::catalog::{Customer, Table};
use crate::error::Error;
use crate::planner::functions::EpochNow;
use crate::planner::planning_session::{
    KnownRelations, Leaf, PlanningSession, Relation, RelationKind,
};
use crate::planner::query_plan::QueryPlan;
use crate::planner::query_planner;
use crate::planner::stream_plan::StreamPlan;
use crate::planner::task_contexts::TaskContexts;

/// The plans of all streams and queries of a customer.
#[derive(Debug)]
pub struct CustomerPlan {
    /// The plans of the streams, in the order of the catalog.
    pub streams: Vec<Arc<StreamPlan>>,
    /// The plans of the queries. A query follows the queries that it reads.
    pub queries: Vec<Arc<QueryPlan>>,
    /// The schemas of the reference tables in these plans, by table name.
    pub tables: BTreeMap<String, SchemaRef>,
    /// The clock that `now()` and similar functions read in all of these plans.
    pub now: EpochNow,
}

/// Plans the streams and queries of `customer`; `tables` are the schemas of its reference tables.
///
/// # Errors
/// Returns the errors of all streams and queries at once. A query that reads a relation which
/// failed is skipped, so that one mistake is reported once.
pub fn plan_customer(
    customer: &Customer,
    tables: &[(String, SchemaRef)],
) -> Result<CustomerPlan, Vec<Error>> {
    let now = EpochNow::default();
    let session = PlanningSession::new(customer.zone, &now).map_err(|error| vec![error])?;
    let contexts = TaskContexts::new(&session, customer).map_err(|error| vec![error])?;
    let mut errors = Vec::new();
    let (mut relations, mut failed) = (KnownRelations::new(), Vec::new());
    for (name, schema) in tables {
        if schema.fields().is_empty() {
            errors.extend(customer.table(name).map(|table| no_columns_error(table)));
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
    // The catalog has already reported every relation that is not declared.
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

fn no_columns_error(table: &Table) -> Error {
    let message = format!("the file of the table '{}' has no columns", table.name);
    Error::sql(message)
        .at(table.place.clone())
        .hint(format!("write the column names into the first line of {}", table.location.display()))
}

/// Makes `relation` known to the queries that are planned later.
fn add(relations: &mut KnownRelations, relation: Relation) {
    relations.insert(relation.name.clone(), Arc::new(Leaf::new(Arc::new(relation), None)));
}
