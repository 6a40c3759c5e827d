//! State and results made again, for a customer whose log or snapshots are lost, or whose source
//! topics no longer hold what a start needs.
//!
//! ```text
//!  history, below what Kafka has ─┐                ┌─ held by the topics already: dropped
//!  Kafka, to its present end ─────┴─► the engine ──┤
//!                                                  └─ missing: in the one transaction that
//!                                                     also names the snapshot of the new state
//! ```
//!
//! Promises:
//! - nothing is committed before the end: a rebuild that was killed has done nothing, but that
//!   history may have grown by rows that it takes from any reader just once;
//! - what the results topics hold is not published twice (see [`crate::pipeline::rebuild::output_dedup`] for what is
//!   compared), and what they lack is;
//! - a window that was published stays closed: the watermarks are lifted to its end;
//! - what neither Kafka nor history has is told, and the windows that it belongs to are made of
//!   the rest, unless they were published.

pub mod output_dedup;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::StreamExt;
use tokio::sync::watch;

use crate::catalog::{Catalog, Customer, Start};
use crate::commit::{PartitionJoin, Process, RecoveredLog};
use crate::history::{self, EventScan};
use crate::pipeline::driver::Pipeline;
use crate::pipeline::engine::Engine;
use crate::pipeline::partition_discovery::find_new_partitions;
use crate::pipeline::rebuild::output_dedup::{Counts, OutputDedup};
use crate::pipeline::recovery::{self, RunningPipeline};
use crate::pipeline::{Mode, PipelineConfig, Reset, history_root};
use crate::planner::Input;
use crate::source::{Cluster, blocking};
use crate::time::{DAY, Micros};
use crate::types::{TopicPartition, event_schema};
use crate::{Error, Result};

/// What a rebuild found and did.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// By topic: records that it held already, and records published now.
    pub topics: Counts,
    /// Rows taken from history, for Kafka no longer has them.
    pub from_history: u64,
    /// Offsets from which on a partition should have been read, and from which it was.
    pub gone: Vec<(TopicPartition, i64, i64)>,
}

/// What is to be fed from history: by partition, the offset before which it is.
#[derive(Default)]
pub struct FromHistory {
    parts: BTreeMap<String, BTreeMap<TopicPartition, i64>>,
    days: BTreeMap<String, BTreeSet<Micros>>,
    gone: Vec<(TopicPartition, i64, i64)>,
}

/// Rebuilds one customer. Its pipeline must not run: it is fenced.
///
/// # Errors
/// Those of a start; nothing has been changed then.
pub async fn rebuild(
    catalog: &Catalog,
    customer: &Arc<Customer>,
    mut options: PipelineConfig,
) -> Result<Rebuilt> {
    options.rebuild = true;
    options.mode = Mode::UntilEnd;
    options.reset = Reset(vec![customer.name.clone()]);
    let mut begun = recovery::begin(catalog, customer, &options).await?;
    let mut published = OutputDedup::read(&options.kafka, &begun.engine).await?;
    let from_history = std::mem::take(&mut begun.from_history);
    published.only_results = true;
    let fed = feed_history(&mut begun, &from_history, &options, &mut published).await?;
    published.only_results = false;
    let (_stop, stopping) = watch::channel(false);
    let process = Process::this(options.clock.now());
    let mut pipeline = Pipeline::new(begun, process, options, stopping, None);
    pipeline.published = Some(published);
    pipeline.live().await?;
    let windows = pipeline.published.as_ref().map(|published| {
        let topics = pipeline.begun.engine.queries().iter().map(|query| &query.sink().topic);
        topics.map(|topic| (topic.clone(), published.windows(topic))).collect::<Windows>()
    });
    let windows = windows.unwrap_or_default();
    close_published(&mut pipeline.begun.engine, &windows, pipeline.options.clock.now());
    // What the last, open epoch took is part of the state.
    pipeline.end_epoch(false).await?;
    tell_open(&pipeline.begun.engine, &windows);
    let Some(published) = pipeline.published.take() else {
        return Err(Error::internal("a rebuild lost what it compared"));
    };
    let (missing, topics) = published.finish();
    pipeline.record_snapshot(missing).await?;
    pipeline.begun.history.flush().await?;
    pipeline.report();
    Ok(Rebuilt { topics, from_history: fed, gone: from_history.gone })
}

/// By results topic, the windows that were published.
type Windows = HashMap<Arc<str>, HashSet<(Micros, Micros)>>;

/// Lifts the watermarks to where they must have been: what the clock decided stood in the log
/// alone, and a window that was published must not be published again by the run that follows.
fn close_published(engine: &mut Engine, windows: &Windows, at: Micros) {
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

/// Says which windows were published and are open all the same: those of queries over queries,
/// whose watermarks come later.
fn tell_open(engine: &Engine, windows: &Windows) {
    for query in engine.queries() {
        let Some(published) = windows.get(&query.sink().topic) else { continue };
        let open = query.operator().open_windows();
        let again = open.iter().filter(|w| published.contains(&(w.start, w.end))).count();
        if again > 0 {
            let query = &query.plan().name;
            tracing::warn!(
                query,
                windows = again,
                "published already, and will be again: they are open"
            );
        }
    }
}

/// Joins every partition where it first was read, as far as that can be known, and finds out what
/// history has of the offsets before Kafka's first.
pub async fn join_beginnings(
    begun: &mut RunningPipeline,
    recovered: &RecoveredLog,
    cluster: &Arc<Cluster>,
    options: &PipelineConfig,
) -> Result<()> {
    let engine = &begun.engine;
    let streams: Vec<_> =
        engine.streams().values().map(|s| (s.plan().stream.clone(), BTreeSet::new())).collect();
    let asked = cluster.clone();
    let (joining, lows) = blocking(move || {
        let joining = find_new_partitions(&asked, &streams, true)?;
        let lows = joining.iter().map(|join| asked.watermarks(&join.partition).map(|(low, _)| low));
        let lows: Vec<i64> = lows.collect::<Result<_>>()?;
        Ok((joining, lows))
    })
    .await?;
    let mut found = FromHistory::default();
    let mut kept: BTreeMap<String, BTreeMap<TopicPartition, (i64, i64)>> = BTreeMap::new();
    for (name, stage) in engine.streams().iter().filter(|(_, stage)| stage.has_history()) {
        let column = &stage.plan().stream.watermark.column;
        let (ranges, days) = survey(&engine.customer.name, name, column, options).await?;
        kept.insert(name.clone(), ranges);
        found.days.insert(name.clone(), days);
    }
    let mut joined = Vec::new();
    for (join, low) in joining.into_iter().zip(lows) {
        let stream = &engine.streams()[&join.stream].plan().stream;
        let in_history = kept.get(&join.stream).and_then(|kept| kept.get(&join.partition)).copied();
        let first = in_history.map(|(first, _)| first);
        let recorded = recovered.positions.get(&join.partition).map(|at| at.joined);
        let wanted = recorded.or(first.filter(|_| stream.start != Start::Earliest));
        let wanted = wanted.unwrap_or_else(|| match stream.start {
            Start::Earliest => first.map_or(low, |first| first.min(low)),
            _ => join.offset,
        });
        let (has, until) = in_history.unwrap_or((low, low));
        if wanted < low && in_history.is_some() {
            let parts = found.parts.entry(join.stream.clone()).or_default();
            parts.insert(join.partition.clone(), low);
        }
        for (from, to) in [(wanted, has.min(low)), (until.max(wanted), low)] {
            if from < to {
                found.gone.push((join.partition.clone(), from, to));
            }
        }
        joined.push(PartitionJoin { offset: wanted.max(low), ..join });
    }
    begun.from_history = found;
    begun.join(&joined)
}

/// The first offset that history has of each partition and the one after its last, and the days of
/// its events.
async fn survey(
    customer: &str,
    stream: &str,
    column: &str,
    options: &PipelineConfig,
) -> Result<(BTreeMap<TopicPartition, (i64, i64)>, BTreeSet<Micros>)> {
    let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into()));
    let schema = Arc::new(Schema::new(vec![
        Field::new(column, time, false),
        Field::new("_topic", DataType::Utf8, false),
        Field::new("_partition", DataType::Int32, false),
        Field::new("_offset", DataType::Int64, false),
    ]));
    let scan = EventScan {
        customer,
        stream,
        schema,
        time_column: column,
        from: None,
        to: None,
        ordered: false,
    };
    let mut rows = history::scan_events(&history_root(&options.data_dir), scan).await?;
    let mut ranges: BTreeMap<TopicPartition, (i64, i64)> = BTreeMap::new();
    let mut days = BTreeSet::new();
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
        days.extend(times.values().iter().map(|time| time.div_euclid(DAY) * DAY));
        let topics = batch.column(1).as_string::<i32>();
        let partitions = batch.column(2).as_primitive::<Int32Type>();
        let offsets = batch.column(3).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let partition = TopicPartition::new(topics.value(row), partitions.value(row));
            let offset = offsets.value(row);
            let range = ranges.entry(partition).or_insert((offset, offset + 1));
            *range = (range.0.min(offset), range.1.max(offset + 1));
        }
    }
    Ok((ranges, days))
}

/// Feeds what only history has, a day of event time after the other, so that windows close on the
/// way; gives the number of rows.
async fn feed_history(
    begun: &mut RunningPipeline,
    wanted: &FromHistory,
    options: &PipelineConfig,
    published: &mut OutputDedup,
) -> Result<u64> {
    let mut fed = 0;
    let days: BTreeSet<Micros> = wanted.days.values().flatten().copied().collect();
    for day in days {
        begun.engine.begin(options.clock.now())?;
        for (stream, parts) in &wanted.parts {
            if wanted.days.get(stream).is_some_and(|days| days.contains(&day)) {
                fed += feed_day(begun, stream, parts, day, options).await?;
            }
        }
        let output = begun.engine.end(&BTreeMap::new(), &[], false).await?;
        published.compare(output.records)?;
    }
    Ok(fed)
}

async fn feed_day(
    begun: &mut RunningPipeline,
    stream: &str,
    parts: &BTreeMap<TopicPartition, i64>,
    day: Micros,
    options: &PipelineConfig,
) -> Result<u64> {
    let plan = begun.engine.streams()[stream].plan().clone();
    let customer = begun.engine.customer.clone();
    let scan = EventScan {
        customer: &customer.name,
        stream,
        schema: event_schema(&plan.schema),
        time_column: &plan.stream.watermark.column,
        from: Some(day),
        to: Some(day + DAY),
        ordered: true,
    };
    let mut rows = history::scan_events(&history_root(&options.data_dir), scan).await?;
    let columns: Vec<usize> = (0..plan.schema.fields().len()).collect();
    let mut fed = 0;
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        for (partition, rows) in by_partition(&batch, columns.len(), parts)? {
            fed += rows.num_rows() as u64;
            begun.engine.absorb_history(stream, &partition, &rows.project(&columns)?).await?;
        }
    }
    Ok(fed)
}

/// The runs of rows of one partition, without those that Kafka has as well. The columns after the
/// stream's own `width` say where each row came from.
fn by_partition(
    batch: &RecordBatch,
    width: usize,
    parts: &BTreeMap<TopicPartition, i64>,
) -> Result<Vec<(TopicPartition, RecordBatch)>> {
    let topics = batch.column(width).as_string::<i32>();
    let partitions = batch.column(width + 1).as_primitive::<Int32Type>();
    let offsets = batch.column(width + 2).as_primitive::<Int64Type>();
    let mut runs = Vec::new();
    let mut from = 0;
    while from < batch.num_rows() {
        let same = |row: usize| {
            topics.value(row) == topics.value(from)
                && partitions.value(row) == partitions.value(from)
        };
        let to = (from..batch.num_rows()).find(|&row| !same(row)).unwrap_or(batch.num_rows());
        let partition = TopicPartition::new(topics.value(from), partitions.value(from));
        if let Some(&low) = parts.get(&partition) {
            let rows = (from..to).take_while(|&row| offsets.value(row) < low).count();
            if rows > 0 {
                runs.push((partition, batch.slice(from, rows)));
            }
        }
        from = to;
    }
    Ok(runs)
}
