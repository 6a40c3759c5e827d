//! Queries that begin empty: those that are new, and those whose state is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::{Query, QueryStart};
use crate::commit::RecoveredLog;
use crate::pipeline::engine::Engine;
use crate::pipeline::{PipelineConfig, topic_reader};
use crate::state::Snapshot;
use crate::types::OutRecord;
use crate::{Error, Kind, Result};

/// Queries that begin empty: new ones, and those named by --reset.
pub fn queries(
    recovered: &RecoveredLog,
    engine: &Engine,
    options: &PipelineConfig,
) -> BTreeSet<String> {
    let customer = &engine.customer.name;
    let begins =
        |name: &String| options.reset.contains_query(customer, name) || is_new(recovered, name);
    engine.fingerprints().into_keys().filter(begins).collect()
}

/// Whether the customer ran before, without this query.
fn is_new(recovered: &RecoveredLog, query: &str) -> bool {
    recovered.base.as_ref().is_some_and(|base| !base.plans.contains_key(query))
}

/// Refuses a query that is added later and wants the past: only a rebuild has it.
pub fn refuse_late(
    recovered: &RecoveredLog,
    engine: &Engine,
    options: &PipelineConfig,
) -> Result<()> {
    let customer = &engine.customer;
    let late = |query: &&Arc<Query>| {
        query.start == QueryStart::Earliest
            && is_new(recovered, &query.name)
            && !options.reset.contains_query(&customer.name, &query.name)
    };
    let Some(query) = customer.queries.iter().find(late) else { return Ok(()) };
    let message = format!("query '{}' is new, and is to start at the earliest event", query.name);
    Err(Error::new(Kind::Recovery, message).at(query.place.clone()).hint(format!(
        "`millstream rebuild {0} --create-topics`, once, publishes what it says of all events that \
         Kafka and history have, and nothing twice; `--reset {0}/{1}`, or start = 'latest', lets \
         it start where the customer is",
        customer.name, query.name
    )))
}

/// Tombstones for what the topics say of queries that begin empty.
pub async fn retracted(
    engine: &Engine,
    fresh: &BTreeSet<String>,
    options: &PipelineConfig,
) -> Result<Vec<OutRecord>> {
    let mut records = Vec::new();
    for query in engine.queries().iter().filter(|query| fresh.contains(&query.plan().name)) {
        records.extend(topic_reader::read_tombstones(&options.kafka, query.sink()).await?);
    }
    Ok(records)
}

/// Says how much kept state is dropped, as of the snapshot.
pub fn tell_dropped(customer: &str, epoch: u64, saved: &Snapshot, fresh: &BTreeSet<String>) {
    let queries = saved.manifest.queries.iter();
    for (query, state) in queries.filter(|(query, _)| fresh.contains(*query)) {
        let windows = state.operator.open_windows();
        let own = |name: &str| name.split_once('/').is_some_and(|(of, _)| of == query);
        let batches = saved.batches.iter().filter(|(name, _)| own(name));
        let rows: usize = batches.map(|(_, rows)| rows.num_rows()).sum();
        tracing::warn!(
            customer,
            query,
            windows,
            rows,
            "state is dropped: open windows and kept rows, as of epoch {epoch}"
        );
    }
}
