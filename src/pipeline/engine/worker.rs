//! A worker: takes chunks as far as one partition's rows go without the others'.
//!
//! ```text
//! chunk ─► rows ─► each query's front and partial aggregate ─► ChunkResult, at once
//!                                 └─► what is kept ─► StateBuffers, at the epoch's end
//! ```
//!
//! Promise: what becomes of a partition's chunks is a function of the chunks, in offset order, and
//! of the epoch; it does not matter which worker takes them, as long as one takes all of an epoch's.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use chrono_tz::Tz;

use crate::pipeline::engine::row_reader::{Read, RowReader, Rows};
use crate::planner::{Input, QueryPlan, Relations, StreamPlan};
use crate::sink::{self, DeadLetter, FailureStage, ResultSink, SourceMessage};
use crate::source::chunk::{Chunk, Record};
use crate::time::Micros;
use crate::types::{HistoryRows, OutRecord, TopicPartition, event_schema};
use crate::watermark::LateBound;
use crate::window::{self, EpochBuffer, FailedRow, Pushed, RowAssigner};
use crate::{Error, Result};

/// What a customer's workers do; the same for all of them, and for all time.
pub struct Work {
    /// The customer.
    pub customer: String,
    /// Its time zone.
    pub zone: Tz,
    /// Its streams, and whether their rows are handed on to history.
    pub streams: Vec<(Arc<StreamPlan>, bool)>,
    /// Its queries.
    pub queries: Vec<(Arc<QueryPlan>, ResultSink)>,
}

/// What is the same for all rows of an epoch.
#[derive(Clone, Default)]
pub struct Epoch {
    /// The epoch's time.
    pub now: Micros,
    /// Reference tables and views, as of its start.
    pub relations: Arc<Relations>,
    /// The watermark of each query at its start. Empty: rows are for no query.
    pub watermarks: Arc<Vec<Micros>>,
}

/// A chunk to be taken.
pub struct Task {
    /// The stream that reads it.
    pub stream: String,
    /// The chunk.
    pub chunk: Chunk,
    /// The rank of its partition among the stream's.
    pub rank: usize,
    /// What its rows are judged by, but for those of the epoch before them.
    pub late_bound: LateBound,
}

/// What became of a chunk, but for what is kept of it.
pub struct ChunkResult {
    /// The stream that reads it.
    pub stream: String,
    /// Its partition.
    pub partition: TopicPartition,
    /// The rank of that partition among the stream's.
    pub rank: usize,
    /// Rows that passed.
    pub decoded: u64,
    /// Records, or parts of them, that did not: a label each.
    pub rejected: Vec<&'static str>,
    /// Records without a value.
    pub tombstones: u64,
    /// Fields of the messages that the schema does not name.
    pub unknown_fields: u64,
    /// Bytes of the records' values.
    pub bytes: usize,
    /// The newest Kafka timestamp, in milliseconds; 0: none.
    pub newest_ms: i64,
    /// The partition's watermark after it.
    pub watermark: Micros,
    /// Dead letters and late rows.
    pub records: Vec<OutRecord>,
    /// What each query that reads the stream says to it.
    pub queries: Vec<QueryOutput>,
    /// Its rows for history, if the stream has one.
    pub history: Option<HistoryRows>,
}

/// What a query says to a chunk.
#[derive(Default)]
pub struct QueryOutput {
    /// The query's place among the customer's.
    pub query: usize,
    /// Rows refused as late.
    pub late: u64,
    /// Rows that an expression failed for.
    pub failed: u64,
    /// The first end of a bucket that something was kept for.
    pub first_end: Option<Micros>,
    /// Results of a query without state, and the records that say them.
    pub output: Option<(RecordBatch, Vec<OutRecord>)>,
}

/// What was kept of an epoch's chunks, by query.
pub type StateBuffers = Vec<(usize, EpochBuffer)>;

/// Takes chunks of some partitions.
pub struct Worker {
    work: Arc<Work>,
    dead_topic: Arc<str>,
    /// By stream; and whether its rows are handed on to history.
    readers: HashMap<String, (RowReader, bool)>,
    /// Of the queries that read a stream, by their place.
    intakes: Vec<(usize, RowAssigner)>,
    epoch: Epoch,
    /// How far each partition's watermark has come.
    reached: HashMap<TopicPartition, Micros>,
}

/// Where the rows of a chunk came from.
struct Source<'a> {
    chunk: &'a Chunk,
    rows: &'a Rows,
    /// As columns; made when somebody asks.
    origins: OnceLock<[ArrayRef; 4]>,
}

impl Source<'_> {
    fn record(&self, row: usize) -> &Record {
        &self.chunk.records[self.rows.records[row] as usize]
    }

    /// Topic, partition, offset and position of each row.
    fn origins(&self) -> &[ArrayRef; 4] {
        self.origins.get_or_init(|| {
            let Rows { records, positions, .. } = self.rows;
            let offsets = (0..records.len()).map(|row| self.record(row).offset).collect();
            let positions = positions.iter().map(|&p| i32::try_from(p).unwrap_or(i32::MAX));
            let Chunk { topic, partition, .. } = self.chunk;
            sink::origin_columns(topic, *partition, offsets, positions.collect())
        })
    }
}

impl Worker {
    /// A worker that has taken nothing.
    pub fn new(work: Arc<Work>) -> Result<Self> {
        let readers = work.streams.iter().map(|(plan, history)| {
            let reader = RowReader::new(plan.clone(), work.zone)?;
            Ok((plan.stream.name.clone(), (reader, *history)))
        });
        let reading = work.queries.iter().enumerate();
        let reading = reading.filter(|(_, (plan, _))| matches!(plan.input, Input::Stream(_)));
        let intakes = reading.map(|(place, (plan, _))| {
            RowAssigner::new(plan.clone(), work.zone).map(|intake| (place, intake))
        });
        Ok(Self {
            dead_topic: sink::dead_letter_topic(&work.customer),
            readers: readers.collect::<Result<_>>()?,
            intakes: intakes.collect::<Result<_>>()?,
            epoch: Epoch::default(),
            reached: HashMap::new(),
            work,
        })
    }

    /// Begins an epoch.
    pub fn begin(&mut self, epoch: Epoch) {
        for (place, intake) in &mut self.intakes {
            if let Some(watermark) = epoch.watermarks.get(*place) {
                intake.begin(*watermark);
            }
        }
        self.epoch = epoch;
    }

    /// Takes the next chunk of a partition.
    pub async fn process(&mut self, task: Task) -> Result<ChunkResult> {
        let Task { stream, chunk, rank, mut late_bound } = task;
        let reader = self.readers.get_mut(&stream);
        let (reader, history) =
            reader.ok_or_else(|| Error::internal(format!("no stream '{stream}'")))?;
        let history = *history;
        let read = reader.read(&chunk, self.epoch.now, &self.dead_topic)?;
        let Read { rows, dead, reasons, tombstones, unknown_fields } = read;
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        let reached = self.reached.entry(partition.clone()).or_insert(late_bound.own);
        late_bound.own = late_bound.own.max(*reached);
        let before = late_bound.pass(&rows.event_time);
        *reached = late_bound.own;

        let source = Source { chunk: &chunk, rows: &rows, origins: OnceLock::new() };
        let mut worked = ChunkResult {
            decoded: rows.event_time.len() as u64,
            rejected: reasons,
            tombstones,
            unknown_fields,
            bytes: chunk.value_bytes(),
            newest_ms: chunk.records.iter().map(|r| r.timestamp_ms).max().unwrap_or(0),
            watermark: late_bound.own,
            records: dead,
            queries: Vec::new(),
            history: None,
            stream,
            partition,
            rank,
        };
        if worked.decoded > 0 && !self.epoch.watermarks.is_empty() {
            self.query(&source, &before, &mut worked).await?;
        }
        if history {
            worked.history = Some(HistoryRows {
                stream: worked.stream.clone(),
                topic: chunk.topic.clone(),
                partition: chunk.partition,
                rows: with_origins(&rows.batch, source.origins())?,
                next_offset: chunk.next_offset,
                bytes: worked.bytes,
            });
        }
        Ok(worked)
    }

    /// Ends the epoch: hands over what was kept.
    pub fn end(&mut self) -> StateBuffers {
        self.intakes.iter_mut().map(|(place, intake)| (*place, intake.take())).collect()
    }

    /// Gives the rows to every query that reads them.
    async fn query(
        &mut self,
        source: &Source<'_>,
        before: &[Micros],
        worked: &mut ChunkResult,
    ) -> Result<()> {
        let work = self.work.clone();
        for (place, intake) in &mut self.intakes {
            let (plan, results) = &work.queries[*place];
            if !matches!(&plan.input, Input::Stream(name) if *name == worked.stream) {
                continue;
            }
            let rows = window::InputRows {
                batch: &source.rows.batch,
                event_time: &source.rows.event_time,
                before,
                partition: worked.rank,
            };
            let pushed = intake.push(&rows, &self.epoch.relations).await?;
            let Pushed { output, late, failed, first_end } = pushed;
            if !late.is_empty() {
                let topic = sink::late_topic(&work.customer, &worked.stream);
                let (batch, origins, zone) = (rows.batch, source.origins(), work.zone.name());
                let refused = sink::late_rows(&topic, &plan.name, batch, origins, &late, zone)?;
                worked.records.extend(refused);
            }
            for failed in &failed {
                worked.records.push(refused(&self.dead_topic, &plan.name, source, failed));
            }
            let output = match output {
                Some(rows) if rows.num_rows() > 0 => {
                    let records = results.upserts(&rows, true, 0)?;
                    Some((rows, records))
                }
                _ => None,
            };
            worked.queries.push(QueryOutput {
                query: *place,
                late: late.len() as u64,
                failed: failed.len() as u64,
                first_end,
                output,
            });
        }
        Ok(())
    }
}

/// The dead letter of a row that a query's expression failed for.
fn refused(topic: &Arc<str>, query: &str, source: &Source<'_>, failed: &FailedRow) -> OutRecord {
    let letter = DeadLetter {
        stage: FailureStage::Query,
        query: Some(query.to_owned()),
        column: None,
        reason: failed.reason.clone(),
    };
    let position = source.rows.positions[failed.row];
    let origin = SourceMessage { chunk: source.chunk, record: source.record(failed.row), position };
    letter.from_source(topic, origin, None)
}

/// A stream's rows with the columns that say where each came from.
fn with_origins(rows: &RecordBatch, origins: &[ArrayRef; 4]) -> Result<RecordBatch> {
    let schema = event_schema(&rows.schema());
    let columns = rows.columns().iter().chain(origins).cloned().collect();
    Ok(RecordBatch::try_new(schema, columns)?)
}
