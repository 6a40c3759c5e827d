//! The deterministic part of a pipeline: from chunks and recorded decisions to records.
//!
//! Processing and recovery are this same code. What it gives is a function of the snapshot it
//! began with, of each epoch's offset ranges and of what the clock decided in the epoch; it never
//! looks at a clock, a broker or a disk itself.
//!
//! ```text
//! begin(now) ─► absorb(chunk)* ─► gather ─► end(decisions, emits) ─► Output
//!                   │    ▲
//!                   └────┘ workers
//! ```

pub mod reference_tables;
pub mod row_reader;
pub mod stream_state;
pub mod worker;
mod worker_pool;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono_tz::Tz;
use serde_json::json;

use crate::catalog::{Customer, Emit};
use crate::pipeline::engine::stream_state::StreamStage;
use crate::pipeline::engine::worker::{ChunkResult, Epoch, QueryOutput, Task, Work};
use crate::pipeline::engine::worker_pool::WorkerPool;
use crate::planner::{CustomerPlan, Input, PlanKind, QueryPlan, Relations, StreamPlan};
use crate::sink::{self, DeadLetter, FailureStage, Publication, ResultSink};
use crate::source::chunk::Chunk;
use crate::state::Snapshot;
use crate::time::{MIN_TIME, Micros};
use crate::types::{HistoryRows, OutRecord, SourcePosition, TopicPartition};
use crate::watermark::{ClockDecision, Watermarks};
use crate::window::{self, Changes, Emission, FailedRow, Operator, OperatorState, Pushed};
use crate::{Error, Kind, Result};

/// How many of a query's newest results the status keeps.
const NEWEST: usize = 5;

/// One customer's streams, queries and views.
pub struct Engine {
    /// The customer.
    pub customer: Arc<Customer>,
    /// Its streams by name.
    pub streams: BTreeMap<String, StreamStage>,
    /// Its queries, each after those that it reads.
    pub queries: Vec<QueryStage>,
    crew: WorkerPool,
    plan: CustomerPlan,
    zone: Tz,
    topics: HashMap<Arc<str>, String>,
    relations: Arc<Relations>,
    changed: BTreeSet<String>,
    dead_topic: Arc<str>,
    /// Whether epochs are for no query.
    asleep: bool,
    output: Output,
}

/// One query at work.
pub struct QueryStage {
    /// Its plan.
    pub plan: Arc<QueryPlan>,
    /// Its state.
    pub operator: Operator,
    /// Where its results go.
    pub sink: ResultSink,
    /// Records sent since the start.
    pub emitted: u64,
    /// Rows refused as late since the start.
    pub late: u64,
    /// The newest results, as JSON.
    pub newest: Vec<String>,
    /// The watermark last forwarded to the queries that read it.
    forwarded: Micros,
}

/// What an epoch gave.
#[derive(Default)]
pub struct Output {
    /// Records for the epoch's transaction.
    pub records: Vec<OutRecord>,
    /// Rows for the history of streams.
    pub history: Vec<HistoryRows>,
    /// Dead letters by reason.
    pub dead: HashMap<&'static str, u64>,
    /// Windows that closed, by query.
    pub closed: BTreeMap<String, u64>,
    /// Bytes read.
    pub bytes: u64,
    /// Rows decoded.
    pub rows: u64,
    /// Size of `records` and of `history` so far, in bytes.
    pub pending_bytes: usize,
    /// The newest Kafka timestamp of the records read, in milliseconds; 0: none.
    pub newest_ms: i64,
}

/// Results of a query, for the queries that read them.
struct Forwarded<'a> {
    rows: &'a RecordBatch,
    /// The query's watermark before them.
    before: Micros,
    /// The rank of the partition that they come from; 0 of those that windows gave.
    rank: usize,
}

impl QueryStage {
    /// A planned query that has seen nothing.
    fn new(plan: &Arc<QueryPlan>, zone: Tz) -> Result<Self> {
        let columns = plan.output.fields().len();
        let sink = ResultSink::new(&plan.query.topic, publication(plan), plan.key.clone(), columns);
        Ok(Self {
            operator: Operator::new(plan.clone(), zone)?,
            plan: plan.clone(),
            sink,
            emitted: 0,
            late: 0,
            newest: Vec::new(),
            forwarded: MIN_TIME,
        })
    }

    /// The watermark last forwarded to the queries that read this one.
    pub fn forwarded(&self) -> Micros {
        self.forwarded
    }
}

impl Engine {
    /// The engine of a planned customer, empty, with so many workers. Rows of streams are given
    /// out for history if `history` and if their stream has one.
    pub fn new(
        customer: Arc<Customer>,
        plan: CustomerPlan,
        history: bool,
        parallelism: usize,
    ) -> Result<Self> {
        let zone = customer.zone;
        let named = |plan: &Arc<StreamPlan>| {
            (plan.stream.name.clone(), StreamStage::new(plan.clone(), history))
        };
        let queries = plan.queries.iter().map(|plan| QueryStage::new(plan, zone));
        let queries: Vec<QueryStage> = queries.collect::<Result<_>>()?;
        let streams: BTreeMap<_, _> = plan.streams.iter().map(named).collect();
        let work = Work {
            customer: customer.name.clone(),
            zone,
            streams: streams.values().map(|stage| (stage.plan.clone(), stage.history)).collect(),
            queries: queries.iter().map(|q| (q.plan.clone(), q.sink.clone())).collect(),
        };
        let mut engine = Self {
            crew: WorkerPool::start(work, parallelism)?,
            streams,
            queries,
            dead_topic: sink::dead_letter_topic(&customer.name),
            customer,
            plan,
            zone,
            topics: HashMap::new(),
            relations: Arc::default(),
            changed: BTreeSet::new(),
            asleep: false,
            output: Output::default(),
        };
        engine.refresh_views();
        Ok(engine)
    }

    /// A partition begins to be read at `offset`.
    pub fn join(&mut self, stream: &str, partition: &TopicPartition, offset: i64) -> Result<()> {
        let stage = self.streams.get_mut(stream);
        let stage = stage.ok_or_else(|| Error::internal(format!("no stream '{stream}'")))?;
        stage.join(partition, offset);
        self.topics.insert(partition.topic.clone(), stream.to_owned());
        Ok(())
    }

    /// Goes on with a partition where it was left, with its account; nothing is known of its time.
    pub fn resume_at(&mut self, partition: &TopicPartition, at: SourcePosition) -> Result<()> {
        let streams = self.streams.values();
        let mut reading = streams.filter(|s| s.plan.stream.topics.matches(&partition.topic));
        let Some(stream) = reading.next().map(|s| s.plan.stream.name.clone()) else {
            tracing::warn!(%partition, "no stream reads this partition any more");
            return Ok(());
        };
        self.join(&stream, partition, at.offset)?;
        let stage = self.streams.get_mut(&stream);
        stage.and_then(|s| s.positions.get_mut(partition)).into_iter().for_each(|p| *p = at);
        Ok(())
    }

    /// The stream that reads `topic`.
    pub fn stream_of(&self, topic: &str) -> Option<&str> {
        self.topics.get(topic).map(String::as_str)
    }

    /// The next offset of a partition, if it joined.
    pub fn position(&self, partition: &TopicPartition) -> Option<SourcePosition> {
        let stage = self.streams.get(self.topics.get(&partition.topic)?)?;
        stage.positions.get(partition).copied()
    }

    /// New content of a reference table; takes effect at once, so call it between epochs.
    pub fn set_table(&mut self, name: &str, rows: Vec<RecordBatch>) {
        Arc::make_mut(&mut self.relations).insert(name.to_owned(), Arc::new(rows));
        self.changed.insert(name.to_owned());
    }

    /// Whether epochs are for time and history only, and no query gets any of their rows.
    pub fn sleep(&mut self, asleep: bool) {
        self.asleep = asleep;
    }

    /// Begins an epoch: `now` is the value of `now()` in it.
    pub fn begin(&mut self, now: Micros) -> Result<()> {
        self.plan.now.set(now);
        for stage in self.streams.values_mut() {
            stage.watermarks.begin_epoch();
        }
        let awake = self.queries.iter().filter(|_| !self.asleep);
        let watermarks = Arc::new(awake.map(|query| query.operator.watermark()).collect());
        self.crew.begin(Epoch { now, relations: self.relations.clone(), watermarks })
    }

    /// Takes the next chunk of a partition: it is on its way through its stream and every query
    /// that reads it when this returns, and through at the latest after [`Engine::gather`].
    pub async fn absorb(&mut self, chunk: Chunk) -> Result<()> {
        let name = self.topics.get(&chunk.topic).cloned();
        let name =
            name.ok_or_else(|| Error::internal(format!("no stream reads {}", chunk.topic)))?;
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        while self.crew.is_busy(&partition) {
            match self.crew.next().await {
                Some(worked) => self.take(worked?).await?,
                None => break,
            };
        }
        let stage = self.streams.get_mut(&name);
        let stage = stage.ok_or_else(|| Error::internal(format!("no stream '{name}'")))?;
        let rank = stage.positions.range(..&partition).count();
        let position = stage.positions.get_mut(&partition);
        let position =
            position.ok_or_else(|| Error::internal(format!("{partition} was never joined")))?;
        position.offset = chunk.next_offset;
        stage.watermarks.heard(&partition);
        let floor = stage.watermarks.floor(&partition);
        self.crew.give(&partition, Task { stream: name, chunk, rank, floor }).await?;
        while let Some(worked) = self.crew.done() {
            self.take(worked?).await?;
        }
        Ok(())
    }

    /// The next chunk that workers are through with; never, when they have none. Whoever waits
    /// for it hands it to [`Engine::take`]; one that stops waiting loses nothing.
    pub async fn worked(&mut self) -> Result<ChunkResult> {
        match self.crew.next().await {
            Some(worked) => worked,
            None => std::future::pending().await,
        }
    }

    /// Waits until all chunks are through.
    pub async fn gather(&mut self) -> Result<()> {
        while let Some(worked) = self.crew.next().await {
            self.take(worked?).await?;
        }
        Ok(())
    }

    /// Adds what became of a chunk to the epoch.
    pub async fn take(&mut self, worked: ChunkResult) -> Result<()> {
        if let Some(stage) = self.streams.get_mut(&worked.stream) {
            stage.worked(&worked);
        }
        let ChunkResult { decoded, bytes, rejected, newest_ms, rank, queries, .. } = worked;
        self.output.rows += decoded;
        self.output.bytes += bytes as u64;
        self.output.newest_ms = self.output.newest_ms.max(newest_ms);
        for reason in rejected {
            *self.output.dead.entry(reason).or_default() += 1;
        }
        self.send(worked.records);
        if let Some(rows) = worked.history {
            self.output.pending_bytes += rows.bytes;
            self.output.history.push(rows);
        }
        for QueryOutput { query: index, late, failed, first_end, output } in queries {
            let query = &mut self.queries[index];
            query.late += late;
            query.operator.expect(first_end);
            let before = query.forwarded;
            if failed > 0 {
                *self.output.dead.entry("query").or_default() += failed;
            }
            if let Some((rows, records)) = output {
                self.published(index, records);
                self.forward(index, Forwarded { rows: &rows, before, rank }).await?;
            }
        }
        Ok(())
    }

    /// Runs rows of one partition, as history kept them, through every query that reads `name`.
    pub async fn absorb_kept(
        &mut self,
        name: &str,
        partition: &TopicPartition,
        rows: &RecordBatch,
    ) -> Result<()> {
        let stage = self.streams.get_mut(name);
        let stage = stage.ok_or_else(|| Error::internal(format!("no stream '{name}'")))?;
        let column = rows.schema().index_of(&stage.plan.stream.watermark.column)?;
        let times = rows.column(column).as_primitive::<TimestampMicrosecondType>();
        stage.watermarks.heard(partition);
        let mut floor = stage.watermarks.floor(partition);
        let before = floor.pass(times.values());
        stage.watermarks.advance(partition, floor.own, !times.is_empty());
        let rows = window::Rows {
            batch: rows,
            event_time: times.values(),
            before: &before,
            partition: stage.positions.range(..partition).count(),
        };
        self.feed(&Input::Stream(name.to_owned()), &rows).await
    }

    /// Whether ending the epoch now would say something.
    pub fn has_news(&self) -> bool {
        !self.output.records.is_empty()
            || !self.changed.is_empty()
            || self.queries.iter().any(|q| q.operator.due(self.watermark(&q.plan.input)))
    }

    /// Size of the results and rows that wait for the epoch's end, in bytes.
    pub fn pending_bytes(&self) -> usize {
        self.output.pending_bytes
    }

    /// Ends the epoch: applies what the clock decided, closes windows, works out views. With
    /// `drained` every window closes.
    pub async fn end(
        &mut self,
        decisions: &BTreeMap<String, Vec<ClockDecision>>,
        emits: &[String],
        drained: bool,
    ) -> Result<Output> {
        self.gather().await?;
        for (index, kept) in self.crew.end().await?.into_iter().flatten() {
            self.queries[index].operator.gather(kept);
        }
        for stage in self.streams.values_mut().filter(|_| drained) {
            stage.watermarks.drain();
        }
        for (stream, decisions) in decisions {
            if let Some(stage) = self.streams.get_mut(stream) {
                for decision in decisions {
                    stage.watermarks.apply(decision);
                }
            }
        }
        let awake = if self.asleep { 0 } else { self.queries.len() };
        for index in 0..awake {
            self.end_query(index, emits).await?;
        }
        self.changed.clear();
        Ok(std::mem::take(&mut self.output))
    }

    async fn end_query(&mut self, index: usize, emits: &[String]) -> Result<()> {
        let watermark = self.watermark(&self.queries[index].plan.input);
        let query = &mut self.queries[index];
        let early = emits.contains(&query.plan.name);
        let news = query.plan.tables.iter().any(|t| self.changed.contains(t));
        let emissions = query.operator.end_epoch(watermark, early, news, &self.relations).await?;
        let previous = query.forwarded;
        query.forwarded = watermark;
        let is_view = query.plan.is_view();
        let name = query.plan.name.clone();
        for emission in emissions {
            let first_final = emission.window.is_none_or(|w| w.end > previous);
            if emission.window.is_some_and(|w| w.end <= watermark && w.end > previous) {
                *self.output.closed.entry(name.clone()).or_default() += 1;
            }
            match emission.result {
                Ok(changes) => {
                    self.publish(index, &changes)?;
                    if !is_view && changes.is_final && first_final {
                        let rows = &changes.upserts;
                        self.forward(index, Forwarded { rows, before: previous, rank: 0 }).await?;
                    } else if is_view {
                        self.changed.insert(name.clone());
                    }
                }
                Err(reason) => {
                    self.window_failed(&name, &Emission { result: Err(reason), ..emission })
                }
            }
        }
        if is_view && self.changed.contains(&name) {
            let content = self.queries[index].operator.content();
            let rows = Arc::new(content.into_iter().collect());
            Arc::make_mut(&mut self.relations).insert(name, rows);
        }
        Ok(())
    }

    /// The watermark of a query's input, as of now.
    fn watermark(&self, input: &Input) -> Micros {
        match input {
            Input::Stream(name) => {
                self.streams.get(name).map_or(MIN_TIME, |s| s.watermarks.stream())
            }
            Input::Query(name) => {
                self.queries.iter().find(|q| q.plan.name == *name).map_or(MIN_TIME, |q| q.forwarded)
            }
            Input::Views => MIN_TIME,
        }
    }

    /// Gives a query's results to the queries that read it.
    async fn forward(&mut self, index: usize, results: Forwarded<'_>) -> Result<()> {
        let plan = self.queries[index].plan.clone();
        let input = Input::Query(plan.name.clone());
        let Forwarded { rows: batch, before, rank } = results;
        if batch.num_rows() == 0 || !self.queries.iter().any(|q| q.plan.input == input) {
            return Ok(());
        }
        // Only queries with windows read the times, and those ask for an event time.
        let times = match plan.event_time {
            Some(column) => {
                batch.column(column).as_primitive::<TimestampMicrosecondType>().values().to_vec()
            }
            None => vec![MIN_TIME; batch.num_rows()],
        };
        let before = vec![before; times.len()];
        let rows = window::Rows { batch, event_time: &times, before: &before, partition: rank };
        self.feed(&input, &rows).await
    }

    /// Gives rows that came on no chunk to every query that reads `input`.
    async fn feed(&mut self, input: &Input, rows: &window::Rows<'_>) -> Result<()> {
        for reader in 0..self.queries.len() {
            let query = &mut self.queries[reader];
            if query.plan.input != *input {
                continue;
            }
            let Pushed { output, late, failed, .. } =
                query.operator.push(rows, &self.relations).await?;
            query.late += late.len() as u64;
            let before = query.forwarded;
            for failed in failed {
                self.row_failed(reader, rows.batch, &failed)?;
            }
            if let Some(output) = output.filter(|rows| rows.num_rows() > 0) {
                let records = self.queries[reader].sink.upserts(&output, true, 0)?;
                self.published(reader, records);
                let results = Forwarded { rows: &output, before, rank: rows.partition };
                Box::pin(self.forward(reader, results)).await?;
            }
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, changes: &Changes) -> Result<()> {
        let sink = &self.queries[index].sink;
        let mut records = match changes.deletes.num_rows() {
            0 => Vec::new(),
            _ => sink.tombstones(&changes.deletes)?,
        };
        records.extend(sink.upserts(&changes.upserts, changes.is_final, changes.revision)?);
        self.published(index, records);
        Ok(())
    }

    fn published(&mut self, index: usize, records: Vec<OutRecord>) {
        let query = &mut self.queries[index];
        query.emitted += records.len() as u64;
        let values = records.iter().rev().filter_map(|r| r.value.as_ref()).take(NEWEST);
        let mut newest: Vec<_> = values.map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        newest.reverse();
        query.newest.extend(newest);
        let surplus = query.newest.len().saturating_sub(NEWEST);
        query.newest.drain(..surplus);
        self.send(records);
    }

    fn send(&mut self, records: Vec<OutRecord>) {
        let size = |r: &OutRecord| {
            64 + r.key.as_ref().map_or(0, Bytes::len) + r.value.as_ref().map_or(0, Bytes::len)
        };
        self.output.pending_bytes += records.iter().map(size).sum::<usize>();
        self.output.records.extend(records);
    }

    /// A query's expression failed for a row that came on no chunk.
    fn row_failed(&mut self, index: usize, rows: &RecordBatch, failed: &FailedRow) -> Result<()> {
        let letter = DeadLetter {
            stage: FailureStage::Query,
            query: Some(self.queries[index].plan.name.clone()),
            column: None,
            reason: failed.reason.clone(),
        };
        let mut row = sink::json_rows(&rows.slice(failed.row, 1))?;
        let record = letter.from_window(&self.dead_topic, row.pop().unwrap_or_default());
        *self.output.dead.entry("query").or_default() += 1;
        self.send(vec![record]);
        Ok(())
    }

    fn window_failed(&mut self, query: &str, emission: &Emission) {
        let letter = DeadLetter {
            stage: FailureStage::Window,
            query: Some(query.to_owned()),
            column: None,
            reason: emission.result.as_ref().err().cloned().unwrap_or_default(),
        };
        let value = json!({ "query": query, "window": emission.window }).to_string();
        let record = letter.from_window(&self.dead_topic, value.into());
        *self.output.dead.entry("window").or_default() += 1;
        self.send(vec![record]);
    }

    /// Puts what every view says now where the queries that read it look.
    fn refresh_views(&mut self) {
        let relations = Arc::make_mut(&mut self.relations);
        for query in self.queries.iter().filter(|query| query.plan.is_view()) {
            let rows = query.operator.content().into_iter().collect();
            relations.insert(query.plan.name.clone(), Arc::new(rows));
        }
    }

    /// All of the state, shared and not copied.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut batches = Vec::new();
        let mut queries = serde_json::Map::new();
        for query in &self.queries {
            let state = query.operator.snapshot()?;
            let name = &query.plan.name;
            batches
                .extend(state.batches.into_iter().map(|(b, rows)| (format!("{name}/{b}"), rows)));
            let entry = json!({
                "fingerprint": query.plan.fingerprint,
                "plan": query.plan.explain(),
                "forwarded": query.forwarded,
                "operator": state.manifest,
            });
            queries.insert(name.clone(), entry);
        }
        let mut streams = serde_json::Map::new();
        for (name, stage) in &self.streams {
            let watermarks = serde_json::to_value(stage.watermarks.state())
                .map_err(|e| Error::internal("watermarks cannot be written").because(e))?;
            streams.insert(
                name.clone(),
                json!({
                    "positions": stage.positions,
                    "watermarks": watermarks,
                    "plan": stream_state::columns(&stage.plan),
                }),
            );
        }
        Ok(Snapshot { manifest: json!({ "streams": streams, "queries": queries }), batches })
    }

    /// Takes the state of a snapshot, but for the queries named in `fresh`.
    pub async fn restore(&mut self, snapshot: Snapshot, fresh: &BTreeSet<String>) -> Result<()> {
        let broken = |what: &str| Error::new(Kind::Recovery, format!("the snapshot lacks {what}"));
        for (name, stage) in &mut self.streams {
            let saved = &snapshot.manifest["streams"][name];
            if saved.is_null() {
                continue;
            }
            let parse = |e: serde_json::Error| broken("a stream's positions").because(e);
            let state = serde_json::from_value(saved["watermarks"].clone()).map_err(parse)?;
            stage.watermarks =
                Watermarks::restore(stream_state::settings(&stage.plan.stream), &state);
            stage.positions = serde_json::from_value(saved["positions"].clone()).map_err(parse)?;
            for partition in stage.positions.keys() {
                self.topics.insert(partition.topic.clone(), name.clone());
            }
        }
        let mut batches: HashMap<String, Vec<(String, RecordBatch)>> = HashMap::new();
        for (name, rows) in snapshot.batches {
            if let Some((query, batch)) = name.split_once('/') {
                batches.entry(query.to_owned()).or_default().push((batch.to_owned(), rows));
            }
        }
        for query in &mut self.queries {
            let saved = &snapshot.manifest["queries"][&query.plan.name];
            if saved.is_null() || fresh.contains(&query.plan.name) {
                continue;
            }
            query.forwarded = saved["forwarded"].as_i64().ok_or_else(|| broken("a watermark"))?;
            let state = OperatorState {
                manifest: saved["operator"].clone(),
                batches: batches.remove(&query.plan.name).unwrap_or_default(),
            };
            query.operator = Operator::restore(query.plan.clone(), self.zone, state).await?;
            if saved["fingerprint"].as_str() != Some(&query.plan.fingerprint) {
                query.operator.say_anew();
            }
        }
        // One of two views that read each other may have begun anew before this.
        let views = self.queries.iter().filter(|q| q.plan.is_view());
        self.changed.extend(views.map(|q| q.plan.name.clone()));
        self.refresh_views();
        Ok(())
    }

    /// Drops what these queries keep and said. Epochs that ran again are none of theirs, for
    /// their results were never sent.
    pub fn begin_empty(&mut self, queries: &BTreeSet<String>) -> Result<()> {
        for query in self.queries.iter_mut().filter(|q| queries.contains(&q.plan.name)) {
            query.operator = Operator::new(query.plan.clone(), self.zone)?;
            self.changed.insert(query.plan.name.clone());
        }
        self.refresh_views();
        Ok(())
    }

    /// What a fingerprint stands for, for people: the plan of a query, or the columns of a stream,
    /// a line each.
    pub fn plan_text(&self, name: &str) -> String {
        let text = match name.strip_prefix("stream:") {
            Some(stream) => {
                self.streams.get(stream).map(|stage| stream_state::columns(&stage.plan))
            }
            None => {
                let query = self.queries.iter().find(|query| query.plan.name == name);
                query.map(|query| query.plan.explain())
            }
        };
        text.unwrap_or_default()
    }

    /// Fingerprints of all plans, by query (and by "stream:<name>").
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        let queries =
            self.queries.iter().map(|q| (q.plan.name.clone(), q.plan.fingerprint.clone()));
        let streams = self
            .streams
            .iter()
            .map(|(n, s)| (format!("stream:{n}"), stream_state::fingerprint(&s.plan)));
        queries.chain(streams).collect()
    }
}

/// What the results topic of a planned query holds.
pub fn publication(plan: &QueryPlan) -> Publication {
    match plan.kind {
        PlanKind::View | PlanKind::Derived => Publication::Upsert,
        PlanKind::Stateless => Publication::Append,
        PlanKind::Windowed => {
            let final_only =
                matches!(plan.query.emit, Emit::Final) && plan.query.allowed_lateness_us == 0;
            if final_only { Publication::Append } else { Publication::Revised }
        }
    }
}
