//! The deterministic part of a pipeline: from chunks and recorded decisions to records.
//!
//! Live processing and recovery run this same code. The result is a function of the snapshot that
//! the engine started with, of each epoch's offset ranges and of the clock decisions of the epoch.
//! The engine never reads a clock, a broker or a disk itself.
//!
//! ```text
//! begin(now) ─► absorb(chunk)* ─► gather ─► end(decisions, emits) ─► EngineOutput
//!                   │    ▲
//!                   └────┘ worker pool
//! ```

mod engine_snapshot;
pub mod query_state;
pub mod reference_tables;
mod result_routing;
pub mod row_reader;
pub mod stream_state;
pub mod worker;
mod worker_pool;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use chrono_tz::Tz;

use crate::catalog::Customer;
use crate::commit::SkippedOffsets;
use crate::pipeline::engine::query_state::QueryState;
use crate::pipeline::engine::stream_state::StreamState;
use crate::pipeline::engine::worker::{ChunkResult, Epoch, QueryOutput, Task, Work};
use crate::pipeline::engine::worker_pool::WorkerPool;
use crate::planner::{CustomerPlan, Input, Relations, StreamPlan};
use crate::sink;
use crate::source::chunk::Chunk;
use crate::time::Micros;
use crate::types::{HistoryRows, OutRecord, SourcePosition, TopicPartition};
use crate::watermark::{ClockDecision, Drift};
use crate::window;
use crate::{Error, Result};

/// The streams, queries and views of one customer.
pub struct Engine {
    /// The customer.
    pub customer: Arc<Customer>,
    streams: BTreeMap<String, StreamState>,
    /// Each query comes after those that it reads.
    queries: Vec<QueryState>,
    worker_pool: WorkerPool,
    plan: CustomerPlan,
    zone: Tz,
    /// The stream that reads each topic.
    topics: HashMap<Arc<str>, String>,
    /// Reference tables and views, as queries see them.
    relations: Arc<Relations>,
    /// The reference tables and views that changed since the end of the last epoch.
    changed: BTreeSet<String>,
    dead_topic: Arc<str>,
    queries_suspended: bool,
    output: EngineOutput,
}

/// The result of an epoch.
#[derive(Default)]
pub struct EngineOutput {
    /// Records for the epoch's transaction.
    pub records: Vec<OutRecord>,
    /// Rows for the history of streams.
    pub history: Vec<HistoryRows>,
    /// The number of dead letters by reason.
    pub dead: HashMap<&'static str, u64>,
    /// The number of windows that closed, by query.
    pub closed: BTreeMap<String, u64>,
    /// Bytes read.
    pub bytes: u64,
    /// Rows decoded.
    pub rows: u64,
    /// The size of `records` and `history` so far, in bytes.
    pub pending_bytes: usize,
    /// The newest Kafka timestamp of the records read, in milliseconds; 0 without any.
    pub newest_ms: i64,
}

impl Engine {
    /// The engine of a planned customer, without state, with `parallelism` workers. With `history`,
    /// the output has the rows of the streams that are declared with history.
    ///
    /// # Errors
    /// A plan's windows are invalid, or a worker cannot be started.
    pub fn new(
        customer: Arc<Customer>,
        plan: CustomerPlan,
        history: bool,
        parallelism: usize,
    ) -> Result<Self> {
        let zone = customer.zone;
        let named = |plan: &Arc<StreamPlan>| {
            (plan.stream.name.clone(), StreamState::new(plan.clone(), history))
        };
        let queries = plan.queries.iter().map(|plan| QueryState::new(plan, zone));
        let queries: Vec<QueryState> = queries.collect::<Result<_>>()?;
        let streams: BTreeMap<_, _> = plan.streams.iter().map(named).collect();
        let work = Work {
            customer: customer.name.clone(),
            zone,
            streams: streams.values().map(|s| (s.plan().clone(), s.has_history())).collect(),
            queries: queries.iter().map(|q| (q.plan.clone(), q.sink.clone())).collect(),
        };
        let mut engine = Self {
            worker_pool: WorkerPool::start(work, parallelism)?,
            streams,
            queries,
            dead_topic: sink::dead_letter_topic(&customer.name),
            customer,
            plan,
            zone,
            topics: HashMap::new(),
            relations: Arc::default(),
            changed: BTreeSet::new(),
            queries_suspended: false,
            output: EngineOutput::default(),
        };
        engine.refresh_views();
        Ok(engine)
    }

    /// The source streams by name.
    pub fn streams(&self) -> &BTreeMap<String, StreamState> {
        &self.streams
    }

    /// The queries, each after those that it reads.
    pub fn queries(&self) -> &[QueryState] {
        &self.queries
    }

    /// The position of every partition of every stream.
    pub fn positions(&self) -> BTreeMap<TopicPartition, SourcePosition> {
        let positions = self.streams.values().flat_map(StreamState::positions);
        positions.map(|(partition, position)| (partition.clone(), *position)).collect()
    }

    /// The stream that reads `topic`.
    pub fn stream_of(&self, topic: &str) -> Option<&str> {
        self.topics.get(topic).map(String::as_str)
    }

    /// The position of a partition, if it has joined.
    pub fn position(&self, partition: &TopicPartition) -> Option<SourcePosition> {
        let stream = self.streams.get(self.topics.get(&partition.topic)?)?;
        stream.positions().get(partition).copied()
    }

    fn stream_mut(&mut self, name: &str) -> Result<&mut StreamState> {
        let stream = self.streams.get_mut(name);
        stream.ok_or_else(|| Error::internal(format!("no stream '{name}'")))
    }

    /// Adds a partition to a stream; it is read from `offset` on.
    ///
    /// # Errors
    /// There is no such stream.
    pub fn join(&mut self, stream: &str, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.stream_mut(stream)?.join(partition, offset);
        self.topics.insert(partition.topic.clone(), stream.to_owned());
        Ok(())
    }

    /// Adds a partition with the position and the record counts of an earlier run. Nothing is
    /// known of its watermark. A partition that no stream reads is ignored.
    pub fn resume_at(&mut self, partition: &TopicPartition, position: SourcePosition) {
        let mut streams = self.streams.iter_mut();
        let reads = |s: &StreamState| s.plan().stream.topics.matches(&partition.topic);
        let Some((name, stream)) = streams.find(|(_, stream)| reads(stream)) else {
            tracing::warn!(%partition, "no stream reads this partition any more");
            return;
        };
        stream.resume_at(partition, position);
        self.topics.insert(partition.topic.clone(), name.clone());
    }

    /// Records that the reader reached the end of a partition, at `offset`.
    pub fn reached_end(&mut self, partition: &TopicPartition, offset: i64) {
        let stream = self.topics.get(&partition.topic).and_then(|s| self.streams.get_mut(s));
        if let Some(stream) = stream {
            stream.reached_end(partition, offset);
        }
    }

    /// Moves a position over offsets that hold no records. A position never goes back.
    pub fn skip_to(&mut self, partition: &TopicPartition, offset: i64) {
        self.streams.values_mut().for_each(|stream| stream.skip_to(partition, offset));
    }

    /// Moves positions over offsets that Kafka no longer has, and counts them as skipped. Returns
    /// what moves history over them: parts without rows.
    pub fn skip_missing(&mut self, missing: &[SkippedOffsets]) -> Vec<HistoryRows> {
        let streams = self.streams.values_mut();
        streams.flat_map(|s| missing.iter().filter_map(move |m| s.skip_missing(m))).collect()
    }

    /// Lifts the watermarks of a stream's partitions to `watermark` at least, as decided at the
    /// time `at`.
    pub fn lift_watermark(&mut self, stream: &str, watermark: Micros, at: Micros) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.lift_watermark(watermark, at);
        }
    }

    /// Decides how the watermarks of idle partitions move at the time `now`, by stream. With
    /// `assume_idle`, every partition counts as being at its end and quiet. [`Engine::end`] applies
    /// the decisions.
    pub fn decide_clock(
        &mut self,
        now: Micros,
        assume_idle: bool,
    ) -> BTreeMap<String, Vec<ClockDecision>> {
        let streams = self.streams.iter_mut();
        let decided = streams.map(|(name, s)| (name.clone(), s.decide_clock(now, assume_idle)));
        decided.filter(|(_, decisions)| !decisions.is_empty()).collect()
    }

    /// Finds the partitions of the stream that reads `topic` that are too far ahead of the slowest
    /// one, and those that no longer are. The engine regards them as paused or resumed from now on.
    pub fn limit_drift(&mut self, topic: &str) -> Drift {
        let stream = self.topics.get(topic).and_then(|name| self.streams.get_mut(name));
        stream.map(StreamState::limit_drift).unwrap_or_default()
    }

    /// Replaces the content of a reference table. Takes effect at once, so call it between epochs.
    pub fn set_table(&mut self, name: &str, rows: Vec<RecordBatch>) {
        Arc::make_mut(&mut self.relations).insert(name.to_owned(), Arc::new(rows));
        self.changed.insert(name.to_owned());
    }

    /// Suspends or resumes all queries. While they are suspended, epochs advance time and history
    /// only, and no query sees any rows.
    pub fn suspend_queries(&mut self, suspended: bool) {
        self.queries_suspended = suspended;
    }

    /// Begins an epoch. `now` is the value of `now()` in it.
    ///
    /// # Errors
    /// A worker has stopped.
    pub fn begin(&mut self, now: Micros) -> Result<()> {
        self.plan.now.set(now);
        self.streams.values_mut().for_each(StreamState::begin_epoch);
        let active = self.queries.iter().filter(|_| !self.queries_suspended);
        let watermarks = Arc::new(active.map(|query| query.operator.watermark()).collect());
        self.worker_pool.begin(Epoch { now, relations: self.relations.clone(), watermarks })
    }

    /// Submits the next chunk of a partition to its worker. Its result is part of the epoch after
    /// [`Engine::gather`] at the latest.
    ///
    /// # Errors
    /// No stream reads the topic, the partition never joined, or a worker fails.
    pub async fn absorb(&mut self, chunk: Chunk) -> Result<()> {
        let name = self.topics.get(&chunk.topic).cloned();
        let name =
            name.ok_or_else(|| Error::internal(format!("no stream reads {}", chunk.topic)))?;
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        while self.worker_pool.is_busy(&partition) {
            match self.worker_pool.next_result().await {
                Some(result) => self.add_result(result?).await?,
                None => break,
            };
        }
        let stream = self.stream_mut(&name)?;
        let (rank, late_bound) = stream.begin_chunk(&partition, chunk.next_offset)?;
        let task = Task { stream: name, chunk, rank, late_bound };
        self.worker_pool.submit(&partition, task).await?;
        while let Some(result) = self.worker_pool.poll_result() {
            self.add_result(result?).await?;
        }
        Ok(())
    }

    /// Waits for the next chunk that a worker has completed; never returns while no worker has
    /// any. The caller passes the result to [`Engine::add_result`]. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// The worker failed.
    pub async fn next_result(&mut self) -> Result<ChunkResult> {
        match self.worker_pool.next_result().await {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }

    /// Waits until all submitted chunks are completed and part of the epoch.
    ///
    /// # Errors
    /// A worker failed.
    pub async fn gather(&mut self) -> Result<()> {
        while let Some(result) = self.worker_pool.next_result().await {
            self.add_result(result?).await?;
        }
        Ok(())
    }

    /// Adds the result of a chunk to the epoch.
    ///
    /// # Errors
    /// A query that reads another query's results fails for a reason that is not a row's fault.
    pub async fn add_result(&mut self, result: ChunkResult) -> Result<()> {
        if let Some(stream) = self.streams.get_mut(&result.stream) {
            stream.complete_chunk(&result);
        }
        let ChunkResult { decoded, bytes, rejected, newest_ms, rank, queries, .. } = result;
        self.output.rows += decoded;
        self.output.bytes += bytes as u64;
        self.output.newest_ms = self.output.newest_ms.max(newest_ms);
        for reason in rejected {
            *self.output.dead.entry(reason).or_default() += 1;
        }
        self.add_records(result.records);
        if let Some(rows) = result.history {
            self.output.pending_bytes += rows.bytes;
            self.output.history.push(rows);
        }
        for QueryOutput { query: index, late, failed, first_end, output } in queries {
            let query = &mut self.queries[index];
            query.late += late;
            query.operator.expect_bucket(first_end);
            let before = query.forwarded;
            if failed > 0 {
                *self.output.dead.entry("query").or_default() += failed;
            }
            if let Some((rows, records)) = output {
                self.publish(index, records);
                self.forward(index, &rows, before, rank).await?;
            }
        }
        Ok(())
    }

    /// Runs rows of one partition that come from history through every query that reads `stream`.
    ///
    /// # Errors
    /// There is no such stream, or a query fails for a reason that is not a row's fault.
    pub async fn absorb_history(
        &mut self,
        stream: &str,
        partition: &TopicPartition,
        rows: &RecordBatch,
    ) -> Result<()> {
        let state = self.stream_mut(stream)?;
        let column = rows.schema().index_of(&state.plan().stream.watermark.column)?;
        let times = rows.column(column).as_primitive::<TimestampMicrosecondType>();
        let (rank, before) = state.pass_history_rows(partition, times.values());
        let rows = window::InputRows {
            batch: rows,
            event_time: times.values(),
            before: &before,
            partition: rank,
        };
        self.push_rows(&Input::Stream(stream.to_owned()), &rows).await
    }

    /// Whether the epoch has output already, or ending it now would probably give some.
    pub fn has_output(&self) -> bool {
        !self.output.records.is_empty()
            || !self.changed.is_empty()
            || self.queries.iter().any(|q| q.operator.is_due(self.watermark(&q.plan.input)))
    }

    /// The size of the results and history rows that wait for the end of the epoch, in bytes.
    pub fn pending_bytes(&self) -> usize {
        self.output.pending_bytes
    }

    /// Ends the epoch: applies the clock decisions, closes windows and updates views. `emits` names
    /// the queries that publish early results. With `drained`, every window closes.
    ///
    /// # Errors
    /// A worker failed, or a query fails for a reason that is not the data's fault.
    pub async fn end(
        &mut self,
        decisions: &BTreeMap<String, Vec<ClockDecision>>,
        emits: &[String],
        drained: bool,
    ) -> Result<EngineOutput> {
        self.gather().await?;
        for (index, buffer) in self.worker_pool.end_epoch().await?.into_iter().flatten() {
            self.queries[index].operator.gather(buffer);
        }
        if drained {
            self.streams.values_mut().for_each(StreamState::drain);
        }
        for (stream, decisions) in decisions {
            if let Some(stream) = self.streams.get_mut(stream) {
                stream.apply(decisions);
            }
        }
        let active = if self.queries_suspended { 0 } else { self.queries.len() };
        for index in 0..active {
            self.end_query(index, emits).await?;
        }
        self.changed.clear();
        Ok(std::mem::take(&mut self.output))
    }
}
