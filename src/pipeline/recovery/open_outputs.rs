//! Phase 5, open outputs: opens the history tables and the source reader, starts the archiver, and
//! checks that history and state fit together.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::commit::{RecoveredLog, SnapshotRef, log_topic};
use crate::history::Writer;
use crate::pipeline::config::{PipelineConfig, history_root};
use crate::pipeline::engine::Engine;
use crate::pipeline::history::event_history::{EventHistory, open_event_tables};
use crate::pipeline::history::output_archiver::OutputArchiver;
use crate::pipeline::partition_discovery::find_new_partitions;
use crate::pipeline::recovery::connect::{Connected, StartKind};
use crate::pipeline::recovery::restore::Restored;
use crate::pipeline::running_pipeline::{LogHead, RunningPipeline, SourceReader};
use crate::pipeline::topics::lost_log_hint;
use crate::source::{Cluster, Isolation, Reader, blocking};
use crate::{Error, Kind, Result};

/// A pipeline whose outputs are open, with what the replay needs.
pub struct Opened {
    pub running: RunningPipeline,
    pub config: PipelineConfig,
    pub cluster: Arc<Cluster>,
    pub recovered: RecoveredLog,
    /// The snapshot whose state the engine has.
    pub snapshot: Option<SnapshotRef>,
    /// Queries that start without state.
    pub new_queries: BTreeSet<String>,
    /// Whether recorded epochs are replayed.
    pub replays: bool,
    /// Whether the state of the whole customer is dropped.
    pub is_reset: bool,
}

/// Opens the outputs. The fence guarantees that no other process writes to them any more.
///
/// # Errors
/// History cannot be opened or lacks events that the state covers, or the log is empty although
/// the customer has run before.
pub async fn open_outputs(restored: Restored) -> Result<Opened> {
    let Restored { connected, committer, recovered, snapshot, new_queries, replays, .. } = restored;
    let required_snapshot = restored.required_snapshot;
    let group = format!("millstream.{}", connected.customer());
    let reader = Reader::start(&connected.config.kafka, &group, Isolation::Committed)?;
    let (writers, archiver) =
        tokio::try_join!(open_history(&connected), start_archiver(&connected))?;
    let writers = with_topic_ids(writers, &recovered.topics);
    if !connected.is_reset {
        check_history(&connected.engine, &writers)?;
        if recovered.last.is_none() {
            check_first_run(&connected, &writers).await?;
        }
    }
    let Connected { config, is_reset, engine, tables, cluster, cluster_id, snapshots, .. } =
        connected;
    let epoch = recovered.last.as_ref().map_or(0, |last| last.epoch);
    // Replayed epochs are handed to history again.
    let history_epoch = match replays {
        true => snapshot.as_ref().map_or(0, |snapshot| snapshot.epoch),
        false => epoch,
    };
    let mut running = RunningPipeline {
        engine,
        tables,
        changed_tables: BTreeMap::new(),
        source: SourceReader { reader, read_ahead: VecDeque::new() },
        committer: Arc::new(committer),
        snapshots,
        history: EventHistory::start(writers, history_epoch, &config),
        archiver,
        log: LogHead {
            epoch,
            cluster_id,
            topic_ids: recovered.topics.clone(),
            is_empty: recovered.last.is_none(),
        },
        required_snapshot,
    };
    skip_missing_offsets(&mut running, history_epoch).await?;
    assign_positions(&running)?;
    Ok(Opened { running, config, cluster, recovered, snapshot, new_queries, replays, is_reset })
}

async fn open_history(connected: &Connected) -> Result<HashMap<String, Writer>> {
    let Connected { engine, config, cluster_id, .. } = connected;
    if !config.history {
        return Ok(HashMap::new());
    }
    let root = history_root(&config.data_dir);
    let streams = engine.streams().iter().filter(|(_, stream)| stream.has_history());
    let streams = streams.map(|(name, stream)| {
        let column = stream.plan().stream.watermark.column.clone();
        (name.clone(), stream.plan().schema.clone(), column)
    });
    let zone = engine.customer.zone.name();
    open_event_tables(&root, &engine.customer.name, streams, zone, cluster_id).await
}

async fn start_archiver(connected: &Connected) -> Result<Option<OutputArchiver>> {
    let Connected { engine, config, cluster_id, kind, .. } = connected;
    match config.history && *kind == StartKind::Resume {
        true => Ok(Some(OutputArchiver::start(engine, config, cluster_id).await?)),
        false => Ok(None),
    }
}

fn with_topic_ids(
    mut writers: HashMap<String, Writer>,
    topic_ids: &BTreeMap<String, String>,
) -> HashMap<String, Writer> {
    for (topic, id) in topic_ids {
        writers.values_mut().for_each(|writer| writer.set_topic_id(topic, id));
    }
    writers
}

/// Checks that history contains all events that the state covers: they are not read again.
fn check_history(engine: &Engine, writers: &HashMap<String, Writer>) -> Result<()> {
    for (name, writer) in writers {
        let Some(stream) = engine.streams().get(name) else { continue };
        for (partition, at) in stream.positions() {
            let next = writer.position(&partition.topic, partition.partition).unwrap_or(0);
            if next < at.offset && at.decoded > 0 {
                return Err(incomplete_history_error(
                    name,
                    &partition.to_string(),
                    next,
                    at.offset,
                ));
            }
        }
    }
    Ok(())
}

fn incomplete_history_error(stream: &str, partition: &str, next: i64, from: i64) -> Error {
    let message = format!(
        "the history of '{stream}' ends at offset {next} of {partition}, but the state begins at {from}"
    );
    Error::new(Kind::Recovery, message).hint(
        "restore the history, or start over with --reset (history then continues from the present)",
    )
}

/// Checks that a customer with an empty log has never run: it has no snapshots, no history and no
/// committed offsets.
async fn check_first_run(connected: &Connected, writers: &HashMap<String, Writer>) -> Result<()> {
    let customer = connected.customer();
    let mut found = Vec::new();
    if connected.snapshots.has_unnamed() {
        found.push("snapshots".to_owned());
    }
    let written = writers.iter().filter(|(_, writer)| !writer.is_new());
    found.extend(written.map(|(stream, _)| format!("the history of '{stream}'")));
    let group = format!("millstream.{customer}");
    let streams = connected.engine.streams().values();
    let streams: Vec<_> =
        streams.map(|stream| (stream.plan().stream.clone(), BTreeSet::new())).collect();
    let (cluster, queried_group) = (connected.cluster.clone(), group.clone());
    let offsets = blocking(move || {
        let joins = find_new_partitions(&cluster, &streams, true)?;
        let partitions: Vec<_> = joins.into_iter().map(|join| join.partition).collect();
        cluster.group_offsets(&queried_group, &partitions)
    });
    if offsets.await?.iter().any(Option::is_some) {
        found.push(format!("offsets of the group {group}"));
    }
    if found.is_empty() {
        return Ok(());
    }
    let message =
        format!("the log topic {} is empty, but {customer} has run before", log_topic(customer));
    Err(Error::new(Kind::Recovery, message)
        .detail(format!("there are {}", found.join(", ")))
        .hint(lost_log_hint(customer)))
}

/// Moves the engine, and history with it, over offsets that are missing from Kafka.
async fn skip_missing_offsets(running: &mut RunningPipeline, history_epoch: u64) -> Result<()> {
    let missing = running.required_snapshot.as_ref().map_or(&[][..], |s| &s.skipped);
    let rows = running.engine.skip_missing(missing);
    running.history.append(history_epoch, rows).await
}

/// Assigns every partition that the engine knows to the reader.
fn assign_positions(running: &RunningPipeline) -> Result<()> {
    let positions = running.engine.positions().into_iter();
    let known: Vec<_> = positions.map(|(partition, at)| (partition, at.offset)).collect();
    if known.is_empty() { Ok(()) } else { running.source.reader.assign(&known) }
}
