//! Phase 2, inspect: reads the log, checks whether it allows a start, and loads the snapshot. It
//! changes nothing, in Kafka or on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::commit::{RecoveredLog, SkippedOffsets, SnapshotRef, read_stable_log};
use crate::failpoint::reach;
use crate::pipeline::config::OnMissingOffsets;
use crate::pipeline::recovery::connect::{Connected, StartKind};
use crate::pipeline::recovery::{missing_offsets, new_queries, plan_compat};
use crate::pipeline::topics::read_size_limits;
use crate::sink::SizeLimits;
use crate::source::{Cluster, blocking};
use crate::state::Snapshot;
use crate::{Error, Kind, Result};

/// A customer whose log allows a start.
pub struct Inspected {
    pub connected: Connected,
    pub limits: SizeLimits,
    pub plan: RecoveryPlan,
}

/// What the log and the snapshot contain, and what recovery does with them.
pub struct RecoveryPlan {
    /// The log's records as they were read.
    pub log: Vec<Bytes>,
    pub recovered: RecoveredLog,
    /// Recorded topics that no longer exist or have another id now, with that id.
    pub replaced_topics: BTreeMap<String, Option<String>>,
    pub snapshot: Option<(SnapshotRef, Snapshot)>,
    /// Queries that start without state.
    pub new_queries: BTreeSet<String>,
    /// Whether plans have changed in a way that keeps their state.
    pub has_changed_plans: bool,
    /// Whether recorded epochs are replayed.
    pub replays: bool,
    /// Offsets that are needed, missing from Kafka, and skipped.
    pub missing: Vec<SkippedOffsets>,
}

/// Reads and checks the log.
///
/// # Errors
/// What forbids a start: the log is damaged, the cluster or a topic is another one than recorded,
/// a plan has changed, offsets are missing, or the snapshots cannot be read.
pub async fn inspect(mut connected: Connected) -> Result<Inspected> {
    reach("recovery.look");
    // The fence ends a transaction that a killed process left open, and the log is read again.
    let log = read_stable_log(&connected.config.kafka, connected.customer());
    let limits = read_size_limits(&connected.cluster, &connected.engine);
    let (log, limits) = tokio::try_join!(log, limits)?;
    let plan = inspect_log(&mut connected, log).await?;
    Ok(Inspected { connected, limits, plan })
}

/// Checks the records of the log and decides how recovery continues from them.
///
/// # Errors
/// As of [`inspect`].
pub async fn inspect_log(connected: &mut Connected, log: Vec<Bytes>) -> Result<RecoveryPlan> {
    let is_reset = connected.is_reset;
    let recovered = RecoveredLog::from_log(&log)?;
    if !is_reset {
        recovered.verify()?;
    }
    check_log(&recovered, connected)?;
    let replaced_topics =
        find_replaced_topics(&connected.cluster, recovered.topics.clone()).await?;
    if let Some((topic, id)) = replaced_topics.first_key_value().filter(|_| !is_reset) {
        return Err(replaced_topic_error(topic, id.as_deref(), connected.customer()));
    }
    reach("recovery.load");
    let snapshot = load_snapshot(connected, &recovered).await?;
    reach("recovery.loaded");
    let Connected { engine, config, kind, .. } = &*connected;
    let manifest = snapshot.as_ref().map(|(_, saved)| &saved.manifest);
    let has_changed_plans =
        !is_reset && plan_compat::check_plans(&recovered, manifest, engine, config)?;
    if *kind == StartKind::Resume && !is_reset {
        new_queries::check_start_options(&recovered, engine, config)?;
    }
    let new_queries = match is_reset {
        true => engine.queries().iter().map(|q| q.plan().name.clone()).collect(),
        false => new_queries::find(&recovered, engine, config),
    };
    let plan = RecoveryPlan {
        log,
        recovered,
        replaced_topics,
        snapshot,
        new_queries,
        has_changed_plans,
        replays: !is_reset,
        missing: Vec::new(),
    };
    match kind {
        StartKind::Resume => check_offsets(connected, plan).await,
        StartKind::Rebuild => Ok(plan),
    }
}

/// Checks that the pipeline is not finished and that the cluster is the recorded one.
fn check_log(recovered: &RecoveredLog, connected: &Connected) -> Result<()> {
    let customer = connected.customer();
    let Some(last) = &recovered.last else { return Ok(()) };
    if last.drained && !connected.is_reset {
        return Err(Error::new(
            Kind::Recovery,
            format!("the pipeline of {customer} was drained: it is finished"),
        )
        .hint(format!("to continue with new windows where it ended: --reset {customer}")));
    }
    let Some(base) = &recovered.base else { return Ok(()) };
    let recorded = base.cluster.as_deref().filter(|recorded| !recorded.is_empty());
    if let Some(recorded) = recorded.filter(|recorded| *recorded != connected.cluster_id) {
        return Err(Error::new(Kind::Recovery, "this is another Kafka cluster than before")
            .detail(format!("recorded: {recorded}, found: {}", connected.cluster_id))
            .hint("check --brokers"));
    }
    Ok(())
}

/// Finds the recorded topics that no longer exist or have another id now, and returns that id.
async fn find_replaced_topics(
    cluster: &Arc<Cluster>,
    recorded: BTreeMap<String, String>,
) -> Result<BTreeMap<String, Option<String>>> {
    let cluster = cluster.clone();
    blocking(move || {
        let mut replaced = BTreeMap::new();
        for (topic, recorded_id) in recorded {
            let exists = !cluster.partitions(&topic)?.is_empty();
            let id = if exists { cluster.topic_id(&topic)? } else { None };
            if id.as_ref() != Some(&recorded_id) {
                replaced.insert(topic, id);
            }
        }
        Ok(replaced)
    })
    .await
}

fn replaced_topic_error(topic: &str, id: Option<&str>, customer: &str) -> Error {
    let message = match id {
        Some(_) => format!("topic {topic} was deleted and recreated"),
        None => format!("topic {topic} no longer exists"),
    };
    Error::new(Kind::Recovery, message)
        .detail("its recorded offsets refer to records that Kafka no longer has")
        .hint(format!(
            "is this the right cluster? To continue without these records: --reset {customer} \
             drops the state and reads the new topic from its start; history keeps its rows"
        ))
}

/// Loads the snapshot that the log names. A reset does without one that is damaged.
async fn load_snapshot(
    connected: &mut Connected,
    recovered: &RecoveredLog,
) -> Result<Option<(SnapshotRef, Snapshot)>> {
    let snapshot = match connected.snapshots.load(recovered).await {
        Ok(snapshot) => snapshot,
        Err(_) if connected.is_reset => None,
        Err(error) => {
            let folder = connected.config.data_dir.display();
            let customer = connected.customer();
            return Err(error.hint(format!(
                "is --data-dir {folder} the folder of the last run? Without it: --reset \
                 {customer} drops the state and continues from the recorded offsets"
            )));
        }
    };
    let reference = snapshot.as_ref().map(|(reference, _)| reference);
    if let Ok([first, ..]) = recovered.after(reference) {
        let age = connected.config.clock.now().saturating_sub(first.now);
        let age = Duration::from_micros(u64::try_from(age).unwrap_or(0));
        connected.snapshots.shorten_interval(age);
    }
    Ok(snapshot)
}

/// Finds needed offsets that are missing from Kafka, and decides whether a reset customer can
/// replay its recorded epochs.
async fn check_offsets(connected: &Connected, mut plan: RecoveryPlan) -> Result<RecoveryPlan> {
    let Connected { engine, cluster, config, .. } = connected;
    if connected.is_reset {
        plan.replays = can_replay_after_reset(&plan, cluster).await?;
    }
    let snapshot = plan.snapshot.as_ref().filter(|_| plan.replays);
    let required = missing_offsets::required(&plan.recovered, snapshot, engine, plan.replays)?;
    let required = required
        .into_iter()
        .filter(|(partition, _)| !plan.replaced_topics.contains_key(&*partition.topic));
    plan.missing = missing_offsets::find(cluster, required.collect()).await?;
    match plan.missing.first().filter(|_| config.on_missing_offsets == OnMissingOffsets::Stop) {
        Some(missing) => {
            let recorded = plan.recovered.positions.get(&missing.partition);
            Err(missing_offsets::error(missing, recorded, connected.customer()))
        }
        None => Ok(plan),
    }
}

/// Whether the recorded epochs can be replayed after a reset, so that time and history stay what
/// they were: the snapshot can be read, and Kafka has all offsets after it.
async fn can_replay_after_reset(plan: &RecoveryPlan, cluster: &Arc<Cluster>) -> Result<bool> {
    let Some((reference, saved)) = &plan.snapshot else { return Ok(false) };
    let is_drained = plan.recovered.last.as_ref().is_some_and(|last| last.drained);
    let lacks_epochs = plan.recovered.after(Some(reference)).is_err();
    if is_drained || !plan.replaced_topics.is_empty() || lacks_epochs {
        return Ok(false);
    }
    let required = missing_offsets::snapshot_offsets(saved);
    Ok(missing_offsets::find(cluster, required).await?.is_empty())
}
