//! The events that only history has: they precede the first offsets of Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::StreamExt;

use crate::Result;
use crate::catalog::Start;
use crate::commit::{PartitionJoin, RecoveredLog};
use crate::history::{self, EventScan};
use crate::pipeline::config::{PipelineConfig, history_root};
use crate::pipeline::output_dedup::OutputDedup;
use crate::pipeline::partition_discovery::find_new_partitions;
use crate::pipeline::running_pipeline::RunningPipeline;
use crate::source::{Cluster, blocking};
use crate::time::{DAY, Micros};
use crate::types::{TopicPartition, event_schema};

/// The events that are read from history, and the offsets that neither Kafka nor history has.
#[derive(Default)]
pub struct HistoryBacklog {
    /// By stream and partition, the first offset of Kafka: rows before it come from history.
    kafka_starts: BTreeMap<String, BTreeMap<TopicPartition, i64>>,
    /// By stream, the days of its events.
    days: BTreeMap<String, BTreeSet<Micros>>,
    /// Lost offsets: from the first to before the second.
    pub lost: Vec<(TopicPartition, i64, i64)>,
}

/// By partition, the first offset that history has and the one after its last.
type OffsetRanges = BTreeMap<TopicPartition, (i64, i64)>;

/// Adds every partition to the pipeline, from the offset where it was first read as far as that is
/// known, and finds what history has of the offsets before Kafka's first.
///
/// # Errors
/// No broker answers, or history cannot be read.
pub async fn join_partitions(
    running: &mut RunningPipeline,
    recovered: &RecoveredLog,
    cluster: &Arc<Cluster>,
    config: &PipelineConfig,
) -> Result<HistoryBacklog> {
    let (joins, lows) = find_partitions(running, cluster).await?;
    let engine = &running.engine;
    let mut backlog = HistoryBacklog::default();
    let mut in_history: BTreeMap<String, OffsetRanges> = BTreeMap::new();
    for (name, stream) in engine.streams().iter().filter(|(_, stream)| stream.has_history()) {
        let column = &stream.plan().stream.watermark.column;
        let (ranges, days) = survey_history(&engine.customer.name, name, column, config).await?;
        in_history.insert(name.clone(), ranges);
        backlog.days.insert(name.clone(), days);
    }
    let mut joined = Vec::new();
    for (join, low) in joins.into_iter().zip(lows) {
        let stream = &engine.streams()[&join.stream].plan().stream;
        let range = in_history.get(&join.stream).and_then(|r| r.get(&join.partition)).copied();
        let first = range.map(|(first, _)| first);
        let recorded = recovered.positions.get(&join.partition).map(|at| at.joined);
        let start = recorded.or(first.filter(|_| stream.start != Start::Earliest));
        let start = start.unwrap_or_else(|| match stream.start {
            Start::Earliest => first.map_or(low, |first| first.min(low)),
            _ => join.offset,
        });
        let (history_start, history_end) = range.unwrap_or((low, low));
        if start < low && range.is_some() {
            let starts = backlog.kafka_starts.entry(join.stream.clone()).or_default();
            starts.insert(join.partition.clone(), low);
        }
        for (from, to) in [(start, history_start.min(low)), (history_end.max(start), low)] {
            if from < to {
                backlog.lost.push((join.partition.clone(), from, to));
            }
        }
        joined.push(PartitionJoin { offset: start.max(low), ..join });
    }
    running.join(&joined)?;
    Ok(backlog)
}

/// All partitions of the streams, and the first offset of each in Kafka.
async fn find_partitions(
    running: &RunningPipeline,
    cluster: &Arc<Cluster>,
) -> Result<(Vec<PartitionJoin>, Vec<i64>)> {
    let streams = running.engine.streams().values();
    let streams: Vec<_> =
        streams.map(|stream| (stream.plan().stream.clone(), BTreeSet::new())).collect();
    let cluster = cluster.clone();
    blocking(move || {
        let joins = find_new_partitions(&cluster, &streams, true)?;
        let lows = joins.iter().map(|join| cluster.watermarks(&join.partition).map(|(low, _)| low));
        let lows: Vec<i64> = lows.collect::<Result<_>>()?;
        Ok((joins, lows))
    })
    .await
}

/// Reads the history of a stream. Returns the first offset of each partition and the one after its
/// last, and the days of the events.
async fn survey_history(
    customer: &str,
    stream: &str,
    column: &str,
    config: &PipelineConfig,
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
    let mut rows = history::scan_events(&history_root(&config.data_dir), scan).await?;
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

/// Feeds the backlog to the engine, one day of event time after the other, so that windows close in
/// between. Returns the number of rows.
///
/// # Errors
/// History cannot be read, or the engine failed.
pub async fn feed_history(
    running: &mut RunningPipeline,
    backlog: &HistoryBacklog,
    config: &PipelineConfig,
    dedup: &mut OutputDedup,
) -> Result<u64> {
    let mut rows = 0;
    let days: BTreeSet<Micros> = backlog.days.values().flatten().copied().collect();
    for day in days {
        running.engine.begin(config.clock.now())?;
        for (stream, kafka_starts) in &backlog.kafka_starts {
            if backlog.days.get(stream).is_some_and(|days| days.contains(&day)) {
                rows += feed_day(running, stream, kafka_starts, day, config).await?;
            }
        }
        let output = running.engine.end(&BTreeMap::new(), &[], false).await?;
        dedup.add(output.records)?;
    }
    Ok(rows)
}

/// Feeds the rows of one stream and one day; returns the number of rows.
async fn feed_day(
    running: &mut RunningPipeline,
    stream: &str,
    parts: &BTreeMap<TopicPartition, i64>,
    day: Micros,
    config: &PipelineConfig,
) -> Result<u64> {
    let plan = running.engine.streams()[stream].plan().clone();
    let customer = running.engine.customer.clone();
    let scan = EventScan {
        customer: &customer.name,
        stream,
        schema: event_schema(&plan.schema),
        time_column: &plan.stream.watermark.column,
        from: Some(day),
        to: Some(day + DAY),
        ordered: true,
    };
    let mut rows = history::scan_events(&history_root(&config.data_dir), scan).await?;
    let columns: Vec<usize> = (0..plan.schema.fields().len()).collect();
    let mut fed = 0;
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        for (partition, rows) in by_partition(&batch, columns.len(), parts)? {
            fed += rows.num_rows() as u64;
            running.engine.absorb_history(stream, &partition, &rows.project(&columns)?).await?;
        }
    }
    Ok(fed)
}

/// Splits rows into runs of one partition, without the rows that Kafka has too. The columns after
/// the first `width` contain the position of each row.
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
