//! Rebuilds state and results of a customer whose log or snapshots are lost, or whose source topics
//! no longer have offsets that a start needs.
//!
//! ```text
//!  history, before Kafka's first offset ─┐                ┌─ in the topics already: dropped
//!  Kafka, to its present end ────────────┴─► the engine ──┤
//!                                                         └─ missing: committed in the transaction
//!                                                            that names the snapshot of the new state
//! ```
//!
//! A rebuild calls the phases of recovery, without a restore and a replay, and then the driver with
//! a sink that collects records.
//!
//! **Promises**
//! - Nothing is committed before the end. A rebuild that is killed has changed nothing, except that
//!   history may have more rows, which it takes from any writer only once.
//! - What the results topics contain is not published again (see
//!   `pipeline::output_dedup` for what is compared), and what they lack is published.
//! - A window that was published stays closed: the watermarks are advanced to its end.
//! - Offsets that neither Kafka nor history has are reported. The windows that they belong to are
//!   computed from the remaining events, unless they were published.

mod history_backlog;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;

use crate::catalog::{Catalog, Customer};
use crate::commit::Process;
use crate::pipeline::config::{Mode, PipelineConfig, Reset};
use crate::pipeline::driver::{EpochSink, PipelineDriver};
use crate::pipeline::engine::Engine;
use crate::pipeline::output_dedup::{OutputDedup, TopicCounts};
use crate::pipeline::rebuild::history_backlog::{feed_history, join_partitions};
use crate::pipeline::recovery::{
    StartKind, connect, discard_state, fence, finish_recovery, inspect, open_outputs,
};
use crate::planner::Input;
use crate::time::Micros;
use crate::types::TopicPartition;
use crate::{Error, Result};

/// The result of a rebuild.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// By topic: the number of records that it contained already, and of those published now.
    pub topics: TopicCounts,
    /// Rows taken from history, because Kafka no longer has them.
    pub from_history: u64,
    /// Lost offsets of a partition: from the first to before the second.
    pub gone: Vec<(TopicPartition, i64, i64)>,
}

/// Rebuilds one customer. Its pipeline must not run: it is fenced.
///
/// # Errors
/// As of a start; nothing has been changed then.
pub async fn rebuild(
    catalog: &Catalog,
    customer: &Arc<Customer>,
    mut config: PipelineConfig,
) -> Result<Rebuilt> {
    config.mode = Mode::UntilEnd;
    config.reset = Reset(vec![customer.name.clone()]);
    let connected = connect(catalog, customer, &config, StartKind::Rebuild).await?;
    let inspected = inspect(connected).await?;
    let fenced = fence(inspected).await?;
    let opened = open_outputs(discard_state(fenced)).await?;
    let mut running = opened.running;
    let backlog =
        join_partitions(&mut running, &opened.recovered, &opened.cluster, &config).await?;
    let mut running = finish_recovery(running).await?;

    let mut dedup = OutputDedup::read(&config.kafka, &running.engine).await?;
    dedup.only_results = true;
    let from_history = feed_history(&mut running, &backlog, &config, &mut dedup).await?;
    dedup.only_results = false;

    let (_stop, stop) = watch::channel(false);
    let clock = config.clock.clone();
    let process = Process::this(clock.now());
    let sink = EpochSink::Collect(dedup);
    let mut driver = PipelineDriver::new(running, process, config, stop, sink, None);
    driver.run().await?;
    let windows = published_windows(&driver);
    close_published_windows(&mut driver.running.engine, &windows, clock.now());
    // The state contains the events of the last epoch, which is still open.
    driver.end_epoch(false).await?;
    warn_of_open_windows(&driver.running.engine, &windows);
    let EpochSink::Collect(dedup) = std::mem::replace(&mut driver.sink, EpochSink::Transaction)
    else {
        return Err(Error::internal("the sink of a rebuild has changed"));
    };
    let (missing, topics) = dedup.finish();
    driver.record_snapshot(missing).await?;
    driver.running.history.flush().await?;
    driver.report();
    Ok(Rebuilt { topics, from_history, gone: backlog.lost })
}

/// By results topic, the start and end of the windows that were published.
type Windows = HashMap<Arc<str>, HashSet<(Micros, Micros)>>;

fn published_windows(driver: &PipelineDriver) -> Windows {
    let EpochSink::Collect(dedup) = &driver.sink else { return Windows::new() };
    let topics = driver.running.engine.queries().iter().map(|query| &query.sink().topic);
    topics.map(|topic| (topic.clone(), dedup.windows(topic))).collect()
}

/// Advances the watermarks to the ends of the published windows. The decisions of the clock that
/// had closed these windows were recorded in the lost log only, and the run that follows must not
/// publish the windows again.
fn close_published_windows(engine: &mut Engine, windows: &Windows, at: Micros) {
    let mut reached: BTreeMap<String, Micros> = BTreeMap::new();
    for query in engine.queries() {
        let ends = windows.get(&query.sink().topic).into_iter().flatten().map(|(_, end)| *end);
        let Some(end) = ends.max() else { continue };
        let mut input = &query.plan().input;
        while let Input::Query(name) = input {
            let Some(read) = engine.queries().iter().find(|q| q.plan().name == *name) else {
                break;
            };
            input = &read.plan().input;
        }
        if let Input::Stream(stream) = input {
            let reached = reached.entry(stream.clone()).or_insert(end);
            *reached = end.max(*reached);
        }
    }
    for (stream, watermark) in reached {
        engine.lift_watermark(&stream, watermark, at);
    }
}

/// Warns of windows that were published and are open nevertheless: those of queries over queries,
/// whose watermarks advance later.
fn warn_of_open_windows(engine: &Engine, windows: &Windows) {
    for query in engine.queries() {
        let Some(published) = windows.get(&query.sink().topic) else { continue };
        let open = query.operator().open_windows();
        let again = open.iter().filter(|w| published.contains(&(w.start, w.end))).count();
        if again > 0 {
            let query = &query.plan().name;
            tracing::warn!(
                query,
                windows = again,
                "open windows were published already and will be published again"
            );
        }
    }
}
