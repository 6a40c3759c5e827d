//! A worker processes the chunks of its partitions, as far as that needs no other partition.
//!
//! ```text
//! chunk ─► rows ─► each query's batch plan ─► ChunkResult, at once
//!                          └─► partial aggregates ─► StateBuffers, at the epoch's end
//! ```
//!
//! Promise: the results of a partition's chunks are a function of the chunks, in offset order, and
//! of the epoch. They do not depend on the worker, as long as one worker processes all chunks that
//! the partition has in an epoch.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use chrono_tz::Tz;

use crate::pipeline::engine::row_reader::{ReadChunk, RowReader, ValidRows};
use crate::planner::{Input, QueryPlan, Relations, StreamPlan};
use crate::sink::{self, DeadLetter, FailureStage, ResultSink, SourceMessage};
use crate::source::chunk::{Chunk, Record};
use crate::time::Micros;
use crate::types::{HistoryRows, OutRecord, TopicPartition, event_schema};
use crate::watermark::LateBound;
use crate::window::{self, EpochBuffer, FailedRow, Pushed, RowAssigner};
use crate::{Error, Result};

/// The plans that all workers of a customer run. They do not change while the pool runs.
pub struct Work {
    /// The name of the customer.
    pub customer: String,
    /// The customer's time zone.
    pub zone: Tz,
    /// The streams, and whether their rows are passed on to history.
    pub streams: Vec<(Arc<StreamPlan>, bool)>,
    /// The queries, and the sink of each.
    pub queries: Vec<(Arc<QueryPlan>, ResultSink)>,
}

/// The context that all rows of an epoch share.
#[derive(Clone, Default)]
pub struct Epoch {
    /// The value of `now()` in the epoch.
    pub now: Micros,
    /// Reference tables and views, as of the start of the epoch.
    pub relations: Arc<Relations>,
    /// The watermark of each query at the start of the epoch. Empty if all queries are suspended.
    pub watermarks: Arc<Vec<Micros>>,
}

/// A chunk to process.
pub struct Task {
    /// The stream that reads it.
    pub stream: String,
    /// The chunk.
    pub chunk: Chunk,
    /// The rank of the chunk's partition among the stream's partitions.
    pub rank: usize,
    /// The bound by which rows are judged late, as of the start of the epoch or later.
    pub late_bound: LateBound,
}

/// The result of a chunk, without the state that it adds to.
pub struct ChunkResult {
    /// The stream that reads it.
    pub stream: String,
    /// The chunk's partition.
    pub partition: TopicPartition,
    /// The rank of that partition among the stream's partitions.
    pub rank: usize,
    /// The number of valid rows.
    pub decoded: u64,
    /// A metrics label for each record, or part of a record, that was rejected.
    pub rejected: Vec<&'static str>,
    /// The number of records without a value.
    pub tombstones: u64,
    /// The number of fields in the messages that the schema does not name.
    pub unknown_fields: u64,
    /// The size of the records' values, in bytes.
    pub bytes: usize,
    /// The newest Kafka timestamp, in milliseconds; 0 if there is none.
    pub newest_ms: i64,
    /// The partition's watermark after the chunk.
    pub watermark: Micros,
    /// Dead letters and late rows.
    pub records: Vec<OutRecord>,
    /// The output of each query that reads the stream.
    pub queries: Vec<QueryOutput>,
    /// The rows for history, if the stream is written to history.
    pub history: Option<HistoryRows>,
}

/// The output of a query for a chunk.
#[derive(Default)]
pub struct QueryOutput {
    /// The query's index among the customer's queries.
    pub query: usize,
    /// The number of rows refused as late.
    pub late: u64,
    /// The number of rows that an expression failed for.
    pub failed: u64,
    /// The earliest end of a bucket that received state.
    pub first_end: Option<Micros>,
    /// The results of a stateless query, as rows and as records.
    pub output: Option<(RecordBatch, Vec<OutRecord>)>,
}

/// The state of an epoch's chunks, by the index of the query.
pub type StateBuffers = Vec<(usize, EpochBuffer)>;

/// Processes the chunks of some partitions.
pub struct Worker {
    work: Arc<Work>,
    dead_topic: Arc<str>,
    /// By stream: its reader, and whether its rows are passed on to history.
    readers: HashMap<String, (RowReader, bool)>,
    /// The row assigners of the queries that read a stream, with the query's index.
    row_assigners: Vec<(usize, RowAssigner)>,
    epoch: Epoch,
    /// The watermark that each partition has reached.
    reached: HashMap<TopicPartition, Micros>,
}

/// The origin of each valid row of a chunk.
struct RowOrigins<'a> {
    chunk: &'a Chunk,
    rows: &'a ValidRows,
    /// The origins as columns, made on first use.
    columns: OnceLock<[ArrayRef; 4]>,
}

impl RowOrigins<'_> {
    fn record(&self, row: usize) -> &Record {
        &self.chunk.records[self.rows.records[row] as usize]
    }

    /// Returns topic, partition, offset and position of each row.
    fn columns(&self) -> &[ArrayRef; 4] {
        self.columns.get_or_init(|| {
            let ValidRows { records, positions, .. } = self.rows;
            let offsets = (0..records.len()).map(|row| self.record(row).offset).collect();
            let positions = positions.iter().map(|&p| i32::try_from(p).unwrap_or(i32::MAX));
            let Chunk { topic, partition, .. } = self.chunk;
            sink::origin_columns(topic, *partition, offsets, positions.collect())
        })
    }
}

impl Worker {
    /// Creates a worker. It processes chunks after [`Worker::begin`].
    ///
    /// # Errors
    /// A decoder or a row assigner cannot be made.
    pub fn new(work: Arc<Work>) -> Result<Self> {
        let readers = work.streams.iter().map(|(plan, history)| {
            let reader = RowReader::new(plan.clone(), work.zone)?;
            Ok((plan.stream.name.clone(), (reader, *history)))
        });
        let queries = work.queries.iter().enumerate();
        let queries = queries.filter(|(_, (plan, _))| matches!(plan.input, Input::Stream(_)));
        let row_assigners = queries.map(|(index, (plan, _))| {
            RowAssigner::new(plan.clone(), work.zone).map(|row_assigner| (index, row_assigner))
        });
        Ok(Self {
            dead_topic: sink::dead_letter_topic(&work.customer),
            readers: readers.collect::<Result<_>>()?,
            row_assigners: row_assigners.collect::<Result<_>>()?,
            epoch: Epoch::default(),
            reached: HashMap::new(),
            work,
        })
    }

    /// Begins an epoch.
    pub fn begin(&mut self, epoch: Epoch) {
        for (index, row_assigner) in &mut self.row_assigners {
            if let Some(watermark) = epoch.watermarks.get(*index) {
                row_assigner.begin(*watermark);
            }
        }
        self.epoch = epoch;
    }

    /// Processes the next chunk of a partition.
    ///
    /// # Errors
    /// The worker has no such stream, or a query fails for a reason that is not a row's fault.
    pub async fn process(&mut self, task: Task) -> Result<ChunkResult> {
        let Task { stream, chunk, rank, mut late_bound } = task;
        let reader = self.readers.get_mut(&stream);
        let (reader, history) =
            reader.ok_or_else(|| Error::internal(format!("no stream '{stream}'")))?;
        let history = *history;
        let read = reader.read(&chunk, self.epoch.now, &self.dead_topic)?;
        let ReadChunk { rows, dead_letters, reasons, tombstones, unknown_fields } = read;
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        let reached = self.reached.entry(partition.clone()).or_insert(late_bound.own);
        late_bound.own = late_bound.own.max(*reached);
        let before = late_bound.pass(&rows.event_time);
        *reached = late_bound.own;

        let origins = RowOrigins { chunk: &chunk, rows: &rows, columns: OnceLock::new() };
        let mut result = ChunkResult {
            decoded: rows.event_time.len() as u64,
            rejected: reasons,
            tombstones,
            unknown_fields,
            bytes: chunk.value_bytes(),
            newest_ms: chunk.records.iter().map(|r| r.timestamp_ms).max().unwrap_or(0),
            watermark: late_bound.own,
            records: dead_letters,
            queries: Vec::new(),
            history: None,
            stream,
            partition,
            rank,
        };
        if result.decoded > 0 && !self.epoch.watermarks.is_empty() {
            self.run_queries(&origins, &before, &mut result).await?;
        }
        if history {
            result.history = Some(HistoryRows {
                stream: result.stream.clone(),
                topic: chunk.topic.clone(),
                partition: chunk.partition,
                rows: with_origins(&rows.batch, origins.columns())?,
                next_offset: chunk.next_offset,
                bytes: result.bytes,
            });
        }
        Ok(result)
    }

    /// Ends the epoch and returns the state of its chunks.
    pub fn end(&mut self) -> StateBuffers {
        self.row_assigners.iter_mut().map(|(index, assigner)| (*index, assigner.take())).collect()
    }

    /// Runs every query that reads the stream over the rows.
    async fn run_queries(
        &mut self,
        origins: &RowOrigins<'_>,
        before: &[Micros],
        result: &mut ChunkResult,
    ) -> Result<()> {
        let work = self.work.clone();
        for (index, row_assigner) in &mut self.row_assigners {
            let (plan, sink) = &work.queries[*index];
            if !matches!(&plan.input, Input::Stream(name) if *name == result.stream) {
                continue;
            }
            let rows = window::InputRows {
                batch: &origins.rows.batch,
                event_time: &origins.rows.event_time,
                before,
                partition: result.rank,
            };
            let pushed = row_assigner.push(&rows, &self.epoch.relations).await?;
            let Pushed { output, late, failed, first_end } = pushed;
            if !late.is_empty() {
                let topic = sink::late_topic(&work.customer, &result.stream);
                let (batch, columns, zone) = (rows.batch, origins.columns(), work.zone.name());
                let records = sink::late_rows(&topic, &plan.name, batch, columns, &late, zone)?;
                result.records.extend(records);
            }
            for failed in &failed {
                result.records.push(dead_letter(&self.dead_topic, &plan.name, origins, failed));
            }
            let output = match output {
                Some(rows) if rows.num_rows() > 0 => {
                    let records = sink.upserts(&rows, true, 0)?;
                    Some((rows, records))
                }
                _ => None,
            };
            result.queries.push(QueryOutput {
                query: *index,
                late: late.len() as u64,
                failed: failed.len() as u64,
                first_end,
                output,
            });
        }
        Ok(())
    }
}

/// Makes the dead letter of a row that a query's expression failed for.
fn dead_letter(
    topic: &Arc<str>,
    query: &str,
    origins: &RowOrigins<'_>,
    failed: &FailedRow,
) -> OutRecord {
    let letter = DeadLetter {
        stage: FailureStage::Query,
        query: Some(query.to_owned()),
        column: None,
        reason: failed.reason.clone(),
    };
    let position = origins.rows.positions[failed.row];
    let record = origins.record(failed.row);
    let origin = SourceMessage { chunk: origins.chunk, record, position };
    letter.from_source(topic, origin, None)
}

/// Adds the columns of the rows' origins to a stream's rows.
fn with_origins(rows: &RecordBatch, origins: &[ArrayRef; 4]) -> Result<RecordBatch> {
    let schema = event_schema(&rows.schema());
    let columns = rows.columns().iter().chain(origins).cloned().collect();
    Ok(RecordBatch::try_new(schema, columns)?)
}
