//! The deterministic part of a pipeline: from chunks and recorded decisions to records.
//!
//! Processing and recovery are this same code. What it gives is a function of the snapshot it
//! began with, of each epoch's offset ranges and of what the clock decided in the epoch; it never
//! looks at a clock, a broker or a disk itself.
//!
//! ```text
//! begin(now) ─► absorb(chunk)* ─► end(decisions, emits) ─► Output
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono_tz::Tz;
use serde_json::json;

use super::stream::{self, StreamStage};
use crate::catalog::{Customer, Emit};
use crate::log::{OutRecord, Position, Snapshot};
use crate::sink::{self, DeadLetter, Origin, Publication, ResultSink, Stage};
use crate::source::TopicPartition;
use crate::source::chunk::{Chunk, Record};
use crate::sql::{CustomerPlan, Input, PlanKind, QueryPlan, Relations};
use crate::time::{BEGINNING, Micros};
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
    plan: CustomerPlan,
    zone: Tz,
    topics: HashMap<Arc<str>, String>,
    relations: Relations,
    changed: BTreeSet<String>,
    dead_topic: Arc<str>,
    now: Micros,
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

/// Decoded rows of one chunk, for the stream's history.
pub struct HistoryRows {
    /// The stream.
    pub stream: String,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The stream's columns, then `_topic`, `_partition`, `_offset`, `_position`.
    pub rows: RecordBatch,
    /// The position after the chunk.
    pub next_offset: i64,
    /// Size of the chunk that the rows were decoded from, which is about theirs.
    pub bytes: usize,
}

/// What the rows that a query reads are, besides their columns.
struct Feed<'a> {
    batch: &'a RecordBatch,
    event_time: &'a [Micros],
    before: &'a [Micros],
    partition: usize,
    source: Option<SourceRows<'a>>,
}

/// Where rows of a stream came from.
#[derive(Clone, Copy)]
struct SourceRows<'a> {
    chunk: &'a Chunk,
    records: &'a [u32],
    positions: &'a [u32],
    /// As columns; made when somebody asks.
    origins: &'a OnceLock<[ArrayRef; 4]>,
}

impl<'a> SourceRows<'a> {
    fn record(&self, row: usize) -> &'a Record {
        &self.chunk.records[self.records[row] as usize]
    }

    /// Topic, partition, offset and position of each row.
    fn origins(&self) -> &'a [ArrayRef; 4] {
        self.origins.get_or_init(|| {
            let offsets = (0..self.records.len()).map(|row| self.record(row).offset).collect();
            let positions = self.positions.iter().map(|&p| i32::try_from(p).unwrap_or(i32::MAX));
            let Chunk { topic, partition, .. } = self.chunk;
            sink::origins(topic, *partition, offsets, positions.collect())
        })
    }
}

impl QueryStage {
    /// The watermark last forwarded to the queries that read this one.
    pub fn forwarded(&self) -> Micros {
        self.forwarded
    }
}

impl Engine {
    /// The engine of a planned customer, empty.
    pub fn new(customer: Arc<Customer>, plan: CustomerPlan) -> Result<Self> {
        let zone = customer.zone;
        let mut streams = BTreeMap::new();
        for stream in &plan.streams {
            streams.insert(stream.stream.name.clone(), StreamStage::new(stream.clone(), zone)?);
        }
        let queries = plan.queries.iter().map(|plan| {
            Ok(QueryStage {
                operator: Operator::new(plan.clone(), zone)?,
                plan: plan.clone(),
                sink: ResultSink::new(
                    &plan.query.topic,
                    publication(plan),
                    plan.key.clone(),
                    plan.output.fields().len(),
                ),
                emitted: 0,
                late: 0,
                newest: Vec::new(),
                forwarded: BEGINNING,
            })
        });
        let mut engine = Self {
            queries: queries.collect::<Result<_>>()?,
            dead_topic: sink::dead_letter_topic(&customer.name),
            customer,
            streams,
            plan,
            zone,
            topics: HashMap::new(),
            relations: Relations::new(),
            changed: BTreeSet::new(),
            now: 0,
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
    pub fn resume_at(&mut self, partition: &TopicPartition, at: Position) -> Result<()> {
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
    pub fn position(&self, partition: &TopicPartition) -> Option<Position> {
        let stage = self.streams.get(self.topics.get(&partition.topic)?)?;
        stage.positions.get(partition).copied()
    }

    /// New content of a reference table; takes effect at once, so call it between epochs.
    pub fn set_table(&mut self, name: &str, rows: Vec<RecordBatch>) {
        self.relations.insert(name.to_owned(), Arc::new(rows));
        self.changed.insert(name.to_owned());
    }

    /// Begins an epoch: `now` is the value of `now()` in it.
    pub fn begin(&mut self, now: Micros) {
        self.now = now;
        self.plan.now.set(now);
        for stage in self.streams.values_mut() {
            stage.watermarks.begin_epoch();
        }
    }

    /// Runs a chunk through its stream and every query that reads it.
    pub async fn absorb(&mut self, chunk: &Chunk) -> Result<()> {
        let name = self.topics.get(&chunk.topic).cloned();
        let name =
            name.ok_or_else(|| Error::internal(format!("no stream reads {}", chunk.topic)))?;
        let Some(stage) = self.streams.get_mut(&name) else {
            return Err(Error::internal(format!("no stream '{name}'")));
        };
        let read = stage.read(chunk, self.now, &self.dead_topic)?;
        let partition = TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
        let rank = stage.positions.range(..&partition).count();
        let history = stage.history;
        self.output.rows += read.rows.event_time.len() as u64;
        let bytes = read.bytes;
        self.output.bytes += bytes as u64;
        let newest = chunk.records.iter().map(|r| r.timestamp_ms).max().unwrap_or(0);
        self.output.newest_ms = self.output.newest_ms.max(newest);
        for reason in read.reasons {
            *self.output.dead.entry(reason).or_default() += 1;
        }
        self.send(read.dead);

        let rows = read.rows;
        let origins = OnceLock::new();
        let source = SourceRows {
            chunk,
            records: &rows.records,
            positions: &rows.positions,
            origins: &origins,
        };
        if !rows.event_time.is_empty() {
            let feed = Feed {
                batch: &rows.batch,
                event_time: &rows.event_time,
                before: &rows.before,
                partition: rank,
                source: Some(source),
            };
            self.feed(&Input::Stream(name.clone()), feed).await?;
        }
        if history {
            self.output.history.push(HistoryRows {
                stream: name,
                topic: chunk.topic.clone(),
                partition: chunk.partition,
                rows: with_origins(&rows.batch, source.origins())?,
                next_offset: chunk.next_offset,
                bytes,
            });
            self.output.pending_bytes += bytes;
        }
        Ok(())
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
        for index in 0..self.queries.len() {
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
                        self.forward(index, previous, 0, &changes.upserts).await?;
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
            self.relations.insert(name, Arc::new(content.into_iter().collect()));
        }
        Ok(())
    }

    /// The watermark of a query's input, as of now.
    fn watermark(&self, input: &Input) -> Micros {
        match input {
            Input::Stream(name) => {
                self.streams.get(name).map_or(BEGINNING, |s| s.watermarks.stream())
            }
            Input::Query(name) => self
                .queries
                .iter()
                .find(|q| q.plan.name == *name)
                .map_or(BEGINNING, |q| q.forwarded),
            Input::Views => BEGINNING,
        }
    }

    /// Gives rows to every query that reads `input`.
    async fn feed(&mut self, input: &Input, feed: Feed<'_>) -> Result<()> {
        for index in 0..self.queries.len() {
            if self.queries[index].plan.input != *input {
                continue;
            }
            let query = &mut self.queries[index];
            let rows = window::Rows {
                batch: feed.batch,
                event_time: feed.event_time,
                before: feed.before,
                partition: feed.partition,
            };
            let Pushed { output, late, failed } =
                query.operator.push(&rows, &self.relations).await?;
            if !late.is_empty() {
                self.refuse(index, &feed, &late)?;
            }
            for failed in failed {
                self.row_failed(index, &feed, &failed)?;
            }
            if let Some(output) = output.filter(|o| o.num_rows() > 0) {
                let before = self.queries[index].forwarded;
                let records = self.queries[index].sink.upserts(&output, true, 0)?;
                self.published(index, records);
                Box::pin(self.forward(index, before, feed.partition, &output)).await?;
            }
        }
        Ok(())
    }

    /// Gives a query's results to the queries that read it. Those of a stateless query keep the
    /// rank of the `partition` that they came from: in which order partitions were read must not
    /// matter.
    async fn forward(
        &mut self,
        index: usize,
        before: Micros,
        partition: usize,
        rows: &RecordBatch,
    ) -> Result<()> {
        let plan = self.queries[index].plan.clone();
        let input = Input::Query(plan.name.clone());
        if rows.num_rows() == 0 || !self.queries.iter().any(|q| q.plan.input == input) {
            return Ok(());
        }
        // Only queries with windows read the times, and those ask for an event time.
        let times = match plan.event_time {
            Some(column) => {
                rows.column(column).as_primitive::<TimestampMicrosecondType>().values().to_vec()
            }
            None => vec![BEGINNING; rows.num_rows()],
        };
        let before = vec![before; times.len()];
        let feed =
            Feed { batch: rows, event_time: &times, before: &before, partition, source: None };
        Box::pin(self.feed(&input, feed)).await
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

    fn refuse(&mut self, index: usize, feed: &Feed<'_>, late: &[window::Late]) -> Result<()> {
        let query = &mut self.queries[index];
        query.late += late.len() as u64;
        let (Some(source), Input::Stream(stream)) = (feed.source, &query.plan.input) else {
            return Ok(());
        };
        let topic = sink::late_topic(&self.customer.name, stream);
        let name = query.plan.name.clone();
        let records =
            sink::late_rows(&topic, &name, feed.batch, source.origins(), late, self.zone.name())?;
        self.send(records);
        Ok(())
    }

    fn row_failed(&mut self, index: usize, feed: &Feed<'_>, failed: &FailedRow) -> Result<()> {
        let letter = DeadLetter {
            stage: Stage::Query,
            query: Some(self.queries[index].plan.name.clone()),
            column: None,
            reason: failed.reason.clone(),
        };
        let record = match feed.source {
            Some(source) => {
                let record = source.record(failed.row);
                let position = source.positions[failed.row];
                letter.from_source(
                    &self.dead_topic,
                    Origin { chunk: source.chunk, record, position },
                    None,
                )
            }
            None => {
                let mut row = sink::json_rows(&feed.batch.slice(failed.row, 1))?;
                letter.from_window(&self.dead_topic, row.pop().unwrap_or_default())
            }
        };
        *self.output.dead.entry("query").or_default() += 1;
        self.send(vec![record]);
        Ok(())
    }

    fn window_failed(&mut self, query: &str, emission: &Emission) {
        let letter = DeadLetter {
            stage: Stage::Window,
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
        for query in &self.queries {
            if query.plan.is_view() {
                let content = query.operator.content();
                let rows = Arc::new(content.into_iter().collect());
                self.relations.insert(query.plan.name.clone(), rows);
            }
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
                json!({ "positions": stage.positions, "watermarks": watermarks }),
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
            stage.watermarks = Watermarks::restore(stream::settings(&stage.plan.stream), &state);
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

    /// Fingerprints of all plans, by query (and by "stream:<name>").
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        let queries =
            self.queries.iter().map(|q| (q.plan.name.clone(), q.plan.fingerprint.clone()));
        let streams =
            self.streams.iter().map(|(n, s)| (format!("stream:{n}"), stream::fingerprint(&s.plan)));
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

/// A stream's rows with the columns that say where each came from.
fn with_origins(rows: &RecordBatch, origins: &[ArrayRef; 4]) -> Result<RecordBatch> {
    let schema = super::history::event_schema(&rows.schema());
    let columns = rows.columns().iter().chain(origins).cloned().collect();
    Ok(RecordBatch::try_new(schema, columns)?)
}
