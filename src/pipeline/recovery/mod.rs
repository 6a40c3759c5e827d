//! How a pipeline begins: fence, look, load, run again, go on.
//!
//! ```text
//! init_transactions ─► read the log ─► check cluster and plans ─► load the snapshot
//!        ─► run the recorded epochs again, sinks off ─► join new partitions ─► live
//! ```

pub mod missing_offsets;
pub mod new_queries;
pub mod plan_compat;
pub mod replay_check;
pub mod replay_lag;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::catalog::{Catalog, Customer};
use crate::commit::{
    Committer, PartitionJoin, Progress, RecoveredLog, SkippedOffsets, SnapshotRef, log_topic,
    read_stable_log,
};
use crate::failpoint::reach;
use crate::pipeline::config::OnMissingOffsets;
use crate::pipeline::engine::Engine;
use crate::pipeline::engine::reference_tables::{self, ReferenceTables};
use crate::pipeline::engine::stream_state::StreamState;
use crate::pipeline::history::event_history::{self, EventHistory};
use crate::pipeline::history::output_archiver::OutputArchiver;
use crate::pipeline::partition_discovery::find_new_partitions;
use crate::pipeline::recovery::plan_compat::Change;
use crate::pipeline::recovery::replay_lag::ReplayLag;
use crate::pipeline::snapshot_lifecycle::SnapshotLifecycle;
use crate::pipeline::topics::{ensure_topics, lost_log_hint, read_size_limits};
use crate::pipeline::{PipelineConfig, history_root, rebuild};
use crate::source::chunk::Chunk;
use crate::source::{Cluster, Event, Isolation, Reader, blocking};
use crate::state::Snapshot;
use crate::types::{HistoryRows, OutRecord, TopicPartition};
use crate::{Error, Kind, Result, planner};

/// What the log and the broker gave; the pipeline goes on from here.
pub struct RunningPipeline {
    pub engine: Engine,
    pub tables: ReferenceTables,
    pub reader: Reader,
    pub committer: Arc<Committer>,
    pub snapshots: SnapshotLifecycle,
    /// Chunks that were read ahead while old epochs ran again.
    pub ahead: VecDeque<Chunk>,
    /// The newest committed epoch.
    pub epoch: u64,
    pub cluster: String,
    /// The ids of the topics that are read.
    pub topics: BTreeMap<String, String>,
    pub history: EventHistory,
    /// The newest epoch that history was given.
    handed_over: u64,
    /// What copies the outputs, where there is a history.
    pub archiver: Option<OutputArchiver>,
    /// Tables whose version the next epoch must record.
    pub new_tables: BTreeMap<String, String>,
    /// Whether nothing was ever committed.
    pub first: bool,
    /// Whether state was dropped or plans have changed, so that a snapshot must say so before
    /// anything else.
    pub restate: bool,
    /// Tombstones for what the topics say of that state, to go with the snapshot.
    pub retracted: Vec<OutRecord>,
    /// In a rebuild: what only history has.
    pub from_history: rebuild::FromHistory,
    /// Offsets that are passed over, to be told with that snapshot.
    pub skipped: Vec<SkippedOffsets>,
}

/// Plans a customer, with the columns of its reference tables as they are now.
///
/// # Errors
/// Everything that is wrong with its queries and tables.
pub async fn plan(
    root: &std::path::Path,
    customer: &Customer,
) -> Result<planner::CustomerPlan, Vec<Error>> {
    plan_over(root, customer, None).await
}

/// As [`plan`]; where `versions` holds the columns of a table, with which state was made, they
/// stay as they were, whatever its file would be taken for now.
async fn plan_over(
    root: &std::path::Path,
    customer: &Customer,
    versions: Option<&std::path::Path>,
) -> Result<planner::CustomerPlan, Vec<Error>> {
    let mut schemas = Vec::new();
    let mut errors = Vec::new();
    for table in &customer.tables {
        match reference_tables::schema(root, table, versions).await {
            Ok(schema) => schemas.push((table.name.clone(), schema)),
            Err(error) => errors.push(error),
        }
    }
    for query in customer.queries.iter().filter(|q| q.ttl_us.is_some()) {
        errors.push(
            Error::sql(format!(
                "'{}' wants a ttl, and keys of views are not dropped yet",
                query.name
            ))
            .at(query.place.clone())
            .hint("leave ttl out; a HAVING on the event time hides old keys"),
        );
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    planner::plan_customer(customer, &schemas)
}

/// What the log says, and the state that it names. Whatever forbids a start is found in looking.
struct RecoveryPlan {
    log: Vec<Bytes>,
    recovered: RecoveredLog,
    /// Topics that are gone, or others by now.
    other: BTreeMap<String, Option<String>>,
    loaded: Option<(SnapshotRef, Snapshot)>,
    fresh: BTreeSet<String>,
    /// Whether plans have changed in a way that keeps their state.
    changed: bool,
    /// Whether recorded epochs run again.
    runs_again: bool,
    /// Offsets that are needed and gone, and are to be passed over.
    gaps: Vec<SkippedOffsets>,
}

/// Where and how a customer is to begin.
struct RecoveryContext<'a> {
    engine: &'a Engine,
    cluster: &'a Arc<Cluster>,
    cluster_id: &'a str,
    options: &'a PipelineConfig,
    /// Whether all state is dropped.
    reset: bool,
}

impl RecoveryContext<'_> {
    async fn look(
        &self,
        log: Vec<Bytes>,
        snapshots: &mut SnapshotLifecycle,
    ) -> Result<RecoveryPlan> {
        let customer = &self.engine.customer.name;
        let recovered = RecoveredLog::from_log(&log)?;
        if !self.reset {
            recovered.verify()?;
        }
        check(&recovered, self.engine, self.cluster_id, self.reset)?;
        let other = other_topics(self.cluster, recovered.topics.clone()).await?;
        if let Some((topic, now)) = other.first_key_value().filter(|_| !self.reset) {
            return Err(other_topic(topic, now.as_deref(), customer));
        }
        reach("recovery.load");
        let loaded = match snapshots.load(&recovered).await {
            Ok(loaded) => loaded,
            Err(_) if self.reset => None,
            Err(error) => {
                let folder = self.options.data_dir.display();
                return Err(error.hint(format!(
                    "is --data-dir {folder} the folder of the last run? Without it: --reset \
                     {customer} drops the state and goes on from the recorded offsets"
                )));
            }
        };
        if let Ok([first, ..]) = recovered.after(loaded.as_ref().map(|(named, _)| named)) {
            let age = self.options.clock.now().saturating_sub(first.now);
            snapshots.shorten_interval(Duration::from_micros(u64::try_from(age).unwrap_or(0)));
        }
        reach("recovery.loaded");
        let saved = loaded.as_ref().map(|(_, saved)| &saved.manifest);
        let changed =
            !self.reset && plan_compat::check(&recovered, saved, self.engine, self.options)?;
        if !self.options.rebuild && !self.reset {
            new_queries::refuse_late(&recovered, self.engine, self.options)?;
        }
        let fresh = match self.reset {
            true => self.engine.queries().iter().map(|q| q.plan().name.clone()).collect(),
            false => new_queries::queries(&recovered, self.engine, self.options),
        };
        let gaps = Vec::new();
        let mut looked = RecoveryPlan {
            log,
            recovered,
            other,
            loaded,
            fresh,
            changed,
            runs_again: !self.reset,
            gaps,
        };
        if self.options.rebuild {
            return Ok(looked);
        }
        if self.reset {
            looked.runs_again = looked.can_run_again(self.cluster).await?;
        }
        let loaded = looked.loaded.as_ref().filter(|_| looked.runs_again);
        let wanted =
            missing_offsets::wanted(&looked.recovered, loaded, self.engine, looked.runs_again)?;
        let wanted = wanted.into_iter().filter(|(p, _)| !looked.other.contains_key(&*p.topic));
        looked.gaps = missing_offsets::find(self.cluster, wanted.collect()).await?;
        match looked
            .gaps
            .first()
            .filter(|_| self.options.on_missing_offsets == OnMissingOffsets::Stop)
        {
            Some(gap) => Err(missing_offsets::error(
                gap,
                looked.recovered.positions.get(&gap.partition),
                customer,
            )),
            None => Ok(looked),
        }
    }
}

impl RecoveryPlan {
    /// Whether the recorded epochs can run again after a reset too, so that time and history are
    /// what they were: the snapshot is there, and Kafka has all that came after it.
    async fn can_run_again(&self, cluster: &Arc<Cluster>) -> Result<bool> {
        let Some((reference, saved)) = &self.loaded else { return Ok(false) };
        let drained = self.recovered.last.as_ref().is_some_and(|last| last.drained);
        if drained || !self.other.is_empty() || self.recovered.after(Some(reference)).is_err() {
            return Ok(false);
        }
        let wanted = missing_offsets::saved_offsets(saved);
        Ok(missing_offsets::find(cluster, wanted).await?.is_empty())
    }
}

/// Begins a customer's pipeline. Another process of this customer is fenced only once nothing
/// forbids this one to begin.
pub async fn begin(
    catalog: &Catalog,
    customer: &Arc<Customer>,
    options: &PipelineConfig,
) -> Result<RunningPipeline> {
    let reset = options.reset.contains(&customer.name);
    let versions = options.data_dir.join("tables").join(&customer.name);
    let kept = (!reset).then_some(versions.as_path());
    let planned = plan_over(&catalog.root, customer, kept).await.map_err(first_error)?;
    let mut tables = ReferenceTables::new(
        &catalog.root,
        versions,
        customer.tables.clone(),
        planned.tables.clone(),
    );
    let mut engine = Engine::new(customer.clone(), planned, options.history, options.parallelism)?;
    let (cluster, cluster_id) = connect(options).await?;
    ensure_topics(&cluster, customer, options).await?;

    let mut snapshots = SnapshotLifecycle::open(&customer.name, options, cluster.clone()).await?;
    let beginning = RecoveryContext {
        engine: &engine,
        cluster: &cluster,
        cluster_id: &cluster_id,
        options,
        reset,
    };
    reach("recovery.look");
    // Whatever a killed process left open is ended by the fence, and read after it.
    let log = read_stable_log(&options.kafka, &customer.name);
    let (log, limits) = tokio::try_join!(log, read_size_limits(&cluster, &engine))?;
    let mut looked = beginning.look(log, &mut snapshots).await?;
    reach("recovery.fence");
    let (committer, log) = Committer::open(&options.kafka, &customer.name, limits).await?;
    if log != looked.log {
        looked = beginning.look(log, &mut snapshots).await?;
    }
    let RecoveryPlan { recovered, other, loaded, fresh, changed, runs_again, gaps, .. } = looked;

    if let Some((reference, saved)) = &loaded {
        new_queries::tell_dropped(&customer.name, reference.epoch, saved, &fresh);
    }
    let retracted = match recovered.last {
        Some(_) if !options.rebuild => new_queries::retracted(&engine, &fresh, options).await?,
        _ => Vec::new(),
    };
    let snapshot = loaded.as_ref().map(|(reference, _)| reference.clone());
    match loaded {
        Some((_, saved)) if runs_again => {
            for (name, hash) in &saved.manifest.tables {
                if !reset && customer.tables.iter().any(|t| t.name == *name) {
                    let rows = tables.version(name, hash).await?;
                    engine.set_table(name, rows);
                }
            }
            // Those that begin empty do so only when the others have had what they said.
            let plans = recovered.base.as_ref().map(|base| &base.plans);
            let unlike = engine.fingerprints().into_iter().filter(|(name, plan)| {
                let recorded = plans.and_then(|plans| plans.get(name));
                reset || recorded.is_none_or(|was| plan_compat::change(was, plan) == Change::State)
            });
            let unlike = unlike.map(|(name, _)| name).collect();
            engine.restore(saved, &unlike).await?;
            reach("recovery.restored");
        }
        _ if options.rebuild => {}
        _ if reset => {
            let kept = recovered.positions.iter();
            for (partition, at) in kept.filter(|(p, _)| !other.contains_key(p.topic.as_ref())) {
                engine.resume_at(partition, *at);
            }
        }
        _ => {}
    }
    let group = format!("millstream.{}", customer.name);
    let reader = Reader::start(&options.kafka, &group, Isolation::Committed)?;
    // Only now: who was fenced is done with these tables.
    let tail = async {
        Ok::<_, Error>(match options.history && !options.rebuild {
            true => Some(OutputArchiver::start(&engine, options, &cluster_id).await?),
            false => None,
        })
    };
    let (mut writers, tail) = tokio::try_join!(open_history(&engine, options, &cluster_id), tail)?;
    for (topic, id) in &recovered.topics {
        writers.values_mut().for_each(|writer| writer.identify(topic, id));
    }
    if !reset {
        check_history(&engine, &writers)?;
        if recovered.last.is_none() {
            let kept = snapshots.has_unnamed();
            check_first(&cluster, &engine, kept, &writers).await?;
        }
    }
    let epoch = recovered.last.as_ref().map_or(0, |l| l.epoch);
    // Epochs that run again are handed to history again.
    let handed_over = match runs_again {
        true => snapshot.as_ref().map_or(0, |s| s.epoch),
        false => epoch,
    };
    let mut begun = RunningPipeline {
        history: EventHistory::start(writers, handed_over, options),
        handed_over,
        archiver: tail,
        reader,
        committer: Arc::new(committer),
        snapshots,
        ahead: VecDeque::new(),
        epoch,
        cluster: cluster_id,
        topics: recovered.topics.clone(),
        new_tables: BTreeMap::new(),
        first: recovered.last.is_none(),
        restate: reset || changed || !fresh.is_empty() || !gaps.is_empty(),
        retracted,
        skipped: gaps,
        from_history: rebuild::FromHistory::default(),
        engine,
        tables,
    };
    begun.pass_over_gaps().await?;
    begun.assign_positions()?;
    if options.rebuild {
        rebuild::join_beginnings(&mut begun, &recovered, &cluster, options).await?;
    }
    if runs_again {
        let epochs = recovered.after(snapshot.as_ref())?;
        // Of a customer whose state is dropped, they tell time and history only.
        begun.engine.suspend_queries(reset);
        if !epochs.is_empty() {
            let behind = ReplayLag::watch(&cluster, &begun.engine, options);
            begun.run_again(epochs, !reset, behind).await?;
        }
        begun.engine.suspend_queries(false);
        begun.engine.reset_queries(&fresh)?;
    }
    if begun.restate {
        begun.snapshots.discard_named();
    }
    begun.take_table_changes().await?;
    reach("recovery.done");
    Ok(begun)
}

/// The cluster and its id.
async fn connect(options: &PipelineConfig) -> Result<(Arc<Cluster>, String)> {
    let kafka = options.kafka.clone();
    blocking(move || {
        let cluster = Cluster::connect(&kafka)?;
        let id = cluster.cluster_id()?.unwrap_or_default();
        Ok((Arc::new(cluster), id))
    })
    .await
}

impl RunningPipeline {
    /// Assigns every partition that the snapshot knows.
    fn assign_positions(&mut self) -> Result<()> {
        let positions = self.engine.positions().into_iter();
        let known: Vec<_> = positions.map(|(partition, at)| (partition, at.offset)).collect();
        if known.is_empty() { Ok(()) } else { self.reader.assign(&known) }
    }

    /// Runs recorded epochs again: same ranges, same decisions, no records.
    async fn run_again(
        &mut self,
        epochs: &[Progress],
        with_tables: bool,
        mut behind: ReplayLag,
    ) -> Result<()> {
        tracing::info!(
            customer = self.engine.customer.name,
            epochs = epochs.len(),
            "running recorded epochs again"
        );
        for record in epochs {
            for (name, hash) in record.tables.iter().filter(|_| with_tables) {
                let rows = self.tables.version(name, hash).await?;
                self.engine.set_table(name, rows);
            }
            self.join(&record.joined)?;
            if record.clean {
                // Nothing happened in it, and a changed view has said nothing yet.
                self.history.append(record.epoch, Vec::new()).await?;
                continue;
            }
            reach("recovery.rerun");
            self.engine.begin(record.now)?;
            self.read_range(record).await?;
            reach("recovery.rerun.absorbed");
            let mut output =
                self.engine.end(&record.decisions, &record.emitted, record.drained).await?;
            // A query that begins empty, or with another plan, has another state.
            if !self.restate {
                replay_check::compare(record, &self.engine)?;
            }
            reach("recovery.rerun.ended");
            let rows: Vec<HistoryRows> = std::mem::take(&mut output.history);
            self.history.append(record.epoch, rows).await?;
            reach("recovery.rerun.handed");
            behind.tell(&self.engine);
        }
        Ok(())
    }

    /// Goes on after offsets that are gone, and history with it: nobody can give it these.
    async fn pass_over_gaps(&mut self) -> Result<()> {
        let moved = self.engine.skip_missing(&self.skipped);
        self.history.append(self.handed_over, moved).await
    }

    /// Joins partitions: in the engine and at the reader.
    pub fn join(&mut self, joined: &[PartitionJoin]) -> Result<()> {
        let mut assigned = Vec::new();
        for join in joined {
            let join = &missing_offsets::begin_after(join, &self.skipped);
            self.engine.join(&join.stream, &join.partition, join.offset)?;
            if let Some((topic, id)) = join.named_topic() {
                self.history.set_topic_id(&topic, &id)?;
                self.topics.insert(topic, id);
            }
            assigned.push((join.partition.clone(), join.offset));
        }
        if assigned.is_empty() { Ok(()) } else { self.reader.assign(&assigned) }
    }

    /// Absorbs exactly the offsets of a recorded epoch.
    async fn read_range(&mut self, record: &Progress) -> Result<()> {
        let end_of = |p: &TopicPartition| record.positions.get(p).map(|at| at.offset);
        let positions = self.engine.streams().values().flat_map(StreamState::positions);
        let behind = positions.filter(|(p, at)| end_of(p).is_some_and(|end| at.offset < end));
        let mut waiting: BTreeSet<TopicPartition> = behind.map(|(p, _)| p.clone()).collect();
        let mut later = VecDeque::new();
        let mut ready = std::mem::take(&mut self.ahead);
        while !waiting.is_empty() {
            let chunk = match ready.pop_front() {
                Some(chunk) => chunk,
                None => match self.reader.next().await? {
                    Event::Chunk(chunk) => chunk,
                    Event::End { partition, position } => {
                        // Offsets up to the end may hold control records only.
                        if end_of(&partition).is_some_and(|end| position >= end)
                            && waiting.remove(&partition)
                        {
                            self.engine.skip_to(&partition, end_of(&partition).unwrap_or(position));
                        }
                        continue;
                    }
                },
            };
            let partition =
                TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
            let end = end_of(&partition).unwrap_or(i64::MIN);
            if !waiting.contains(&partition) || chunk.first_offset >= end {
                if waiting.remove(&partition) {
                    self.engine.skip_to(&partition, end);
                }
                later.push_back(chunk);
                continue;
            }
            let (now, rest) = split(chunk, end);
            if now.next_offset >= end {
                waiting.remove(&partition);
            }
            self.engine.absorb(now).await?;
            if let Some(rest) = rest {
                later.push_back(rest);
            }
        }
        later.extend(ready);
        self.ahead = later;
        Ok(())
    }

    /// Loads tables that changed since the last epoch.
    pub async fn take_table_changes(&mut self) -> Result<bool> {
        let mut any = false;
        for version in self.tables.changed().await? {
            self.engine.set_table(&version.name, version.rows);
            self.new_tables.insert(version.name, version.hash);
            any = true;
        }
        Ok(any)
    }
}

/// The part of a chunk before `end`, and the part from there on.
fn split(chunk: Chunk, end: i64) -> (Chunk, Option<Chunk>) {
    if chunk.next_offset <= end {
        return (chunk, None);
    }
    let rest = chunk.slice(end);
    (chunk.until(end), Some(rest))
}

/// Refuses to go on where the log and the world disagree.
fn check(recovered: &RecoveredLog, engine: &Engine, cluster: &str, reset: bool) -> Result<()> {
    let customer = &engine.customer.name;
    let Some(last) = &recovered.last else { return Ok(()) };
    if last.drained && !reset {
        return Err(Error::new(
            Kind::Recovery,
            format!("the pipeline of {customer} was drained: it is finished"),
        )
        .hint(format!("to go on with new windows from where it ended: --reset {customer}")));
    }
    let Some(base) = &recovered.base else { return Ok(()) };
    if let Some(recorded) = base.cluster.as_deref().filter(|c| !c.is_empty() && *c != cluster) {
        return Err(Error::new(Kind::Recovery, "this is another Kafka cluster than before")
            .detail(format!("recorded: {recorded}, found: {cluster}"))
            .hint("check --brokers"));
    }
    Ok(())
}

/// Topics of `recorded` (with their ids) that are gone, or others by now, with the ids that they
/// have.
async fn other_topics(
    cluster: &Arc<Cluster>,
    recorded: BTreeMap<String, String>,
) -> Result<BTreeMap<String, Option<String>>> {
    let cluster = cluster.clone();
    blocking(move || {
        let mut others = BTreeMap::new();
        for (topic, recorded) in recorded {
            let there = !cluster.partitions(&topic)?.is_empty();
            let now = if there { cluster.topic_id(&topic)? } else { None };
            if now.as_ref() != Some(&recorded) {
                others.insert(topic, now);
            }
        }
        Ok(others)
    })
    .await
}

fn other_topic(topic: &str, now: Option<&str>, customer: &str) -> Error {
    let message = match now {
        Some(_) => format!("topic {topic} was deleted and made anew"),
        None => format!("topic {topic} no longer exists"),
    };
    Error::new(Kind::Recovery, message)
        .detail("its recorded offsets mean records that Kafka no longer has")
        .hint(format!(
            "is this the right cluster? To go on without them: --reset {customer} drops the state \
             and reads the new topic from its start; history keeps what it has"
        ))
}

async fn open_history(
    engine: &Engine,
    options: &PipelineConfig,
    cluster: &str,
) -> Result<HashMap<String, crate::history::Writer>> {
    if !options.history {
        return Ok(HashMap::new());
    }
    let root = history_root(&options.data_dir);
    let streams = engine.streams().iter().filter(|(_, s)| s.has_history()).map(|(name, stage)| {
        let column = stage.plan().stream.watermark.column.clone();
        (name.clone(), stage.plan().schema.clone(), column)
    });
    event_history::open_event_tables(
        &root,
        &engine.customer.name,
        streams,
        engine.customer.zone.name(),
        cluster,
    )
    .await
}

/// Events that the snapshot is past must be in history already.
fn check_history(engine: &Engine, writers: &HashMap<String, crate::history::Writer>) -> Result<()> {
    for (name, writer) in writers {
        let Some(stage) = engine.streams().get(name) else { continue };
        for (partition, at) in stage.positions() {
            let next = writer.position(&partition.topic, partition.partition).unwrap_or(0);
            if next < at.offset && at.decoded > 0 {
                return Err(behind(name, &partition.to_string(), next, at.offset));
            }
        }
    }
    Ok(())
}

/// An empty log is that of a pipeline that never ran: nothing may say otherwise.
async fn check_first(
    cluster: &Arc<Cluster>,
    engine: &Engine,
    snapshots: bool,
    writers: &HashMap<String, crate::history::Writer>,
) -> Result<()> {
    let customer = &engine.customer.name;
    let mut found = Vec::new();
    if snapshots {
        found.push("snapshots".to_owned());
    }
    let written = writers.iter().filter(|(_, writer)| !writer.is_new());
    found.extend(written.map(|(stream, _)| format!("the history of '{stream}'")));
    let group = format!("millstream.{customer}");
    let streams: Vec<_> =
        engine.streams().values().map(|s| (s.plan().stream.clone(), BTreeSet::new())).collect();
    let (cluster, asked) = (cluster.clone(), group.clone());
    let offsets = blocking(move || {
        let joining = find_new_partitions(&cluster, &streams, true)?;
        let partitions: Vec<_> = joining.into_iter().map(|join| join.partition).collect();
        cluster.group_offsets(&asked, &partitions)
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

/// An error when a table of events lags behind what can be read again.
fn behind(stream: &str, partition: &str, next: i64, from: i64) -> Error {
    let message = format!(
        "the history of '{stream}' ends at offset {next} of {partition}, but the state begins at {from}"
    );
    Error::new(Kind::Recovery, message).hint(
        "put the history back, or start over with --reset (history then goes on from the present)",
    )
}

fn first_error(errors: Vec<Error>) -> Error {
    let more = errors.len().saturating_sub(1);
    let mut errors = errors.into_iter();
    let first =
        errors.next().unwrap_or_else(|| Error::internal("planning failed without an error"));
    if more == 0 {
        first
    } else {
        first.detail(format!("and {more} more; `millstream check` shows all"))
    }
}
