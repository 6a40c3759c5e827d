//! Queries that start without state: those that are new, and those whose state is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::{Query, QueryStart};
use crate::commit::RecoveredLog;
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::engine::Engine;
use crate::pipeline::topic_reader;
use crate::state::Snapshot;
use crate::types::OutRecord;
use crate::{Error, Kind, Result};

/// Finds the queries and streams that start without state: those that the log does not know, and
/// those named by --reset.
pub fn find(
    recovered: &RecoveredLog,
    engine: &Engine,
    config: &PipelineConfig,
) -> BTreeSet<String> {
    let customer = &engine.customer.name;
    let starts_empty =
        |name: &String| config.reset.contains_query(customer, name) || is_new(recovered, name);
    engine.fingerprints().into_keys().filter(starts_empty).collect()
}

/// Whether the customer has run before without this query.
fn is_new(recovered: &RecoveredLog, query: &str) -> bool {
    recovered.base.as_ref().is_some_and(|base| !base.plans.contains_key(query))
}

/// Checks that no new query is to start at the earliest event: only a rebuild can read past events
/// for it.
///
/// # Errors
/// There is such a query.
pub fn check_start_options(
    recovered: &RecoveredLog,
    engine: &Engine,
    config: &PipelineConfig,
) -> Result<()> {
    let customer = &engine.customer;
    let needs_past_events = |query: &&Arc<Query>| {
        query.start == QueryStart::Earliest
            && is_new(recovered, &query.name)
            && !config.reset.contains_query(&customer.name, &query.name)
    };
    let Some(query) = customer.queries.iter().find(needs_past_events) else { return Ok(()) };
    let message = format!("query '{}' is new and must start at the earliest event", query.name);
    Err(Error::new(Kind::Recovery, message).at(query.place.clone()).hint(format!(
        "run `millstream rebuild {0} --create-topics` once: it publishes the query's results for \
         all events that Kafka and history have, and publishes nothing twice. With \
         `--reset {0}/{1}`, or start = 'latest', the query starts at the customer's current \
         position",
        customer.name, query.name
    )))
}

/// Reads the tombstones for the published results of queries that start without state.
///
/// # Errors
/// No broker answers.
pub async fn read_tombstones(
    engine: &Engine,
    new_queries: &BTreeSet<String>,
    config: &PipelineConfig,
) -> Result<Vec<OutRecord>> {
    let mut records = Vec::new();
    for query in engine.queries().iter().filter(|query| new_queries.contains(&query.plan().name)) {
        records.extend(topic_reader::read_tombstones(&config.kafka, query.sink()).await?);
    }
    Ok(records)
}

/// Logs how much state of the snapshot is dropped, for each query that starts without state.
pub fn log_dropped_state(
    customer: &str,
    epoch: u64,
    saved: &Snapshot,
    new_queries: &BTreeSet<String>,
) {
    let queries = saved.manifest.queries.iter();
    for (query, state) in queries.filter(|(query, _)| new_queries.contains(*query)) {
        let windows = state.operator.open_windows();
        let is_own = |name: &str| name.split_once('/').is_some_and(|(owner, _)| owner == query);
        let batches = saved.batches.iter().filter(|(name, _)| is_own(name));
        let rows: usize = batches.map(|(_, rows)| rows.num_rows()).sum();
        tracing::warn!(
            customer,
            query,
            windows,
            rows,
            "state is dropped: open windows and rows of state, as of epoch {epoch}"
        );
    }
}
