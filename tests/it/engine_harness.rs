//! Runs the engine without Kafka: a test controls records, epochs, partitions and restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use bytes::{Bytes, BytesMut};
use millstream::catalog::{Customer, Emit, Topics};
use millstream::pipeline::reference_tables::ReferenceTables;
use millstream::pipeline::{Engine, plan};
use millstream::sink::{self, Publication};
use millstream::source::chunk::{Chunk, Record};
use millstream::state::{Snapshot, snapshot_store as snapshot};
use millstream::time::{Micros, SECOND};
use millstream::types::{OutRecord, TopicPartition};
use millstream::{Error, Result};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// The clock of all runs: later than every event in the tests.
const NOW: Micros = 1_795_000_000 * SECOND;

/// How records are distributed to partitions and epochs.
#[derive(Debug, Clone, Copy)]
pub enum Mode {
    /// One partition, one epoch.
    Whole,
    /// Three partitions, small epochs.
    Spread,
    /// One partition, one to three records per epoch; after each epoch all state is written to a snapshot and
    /// restored.
    SmallEpochs,
    /// One to `partitions` partitions and epochs of random size. At random it recovers: it loads an older
    /// snapshot, runs the recorded epochs again, and the state must be the same.
    Random { seed: u64, partitions: i32 },
}

/// One stream's record values, in order.
pub struct Input {
    pub stream: String,
    pub values: Vec<Bytes>,
}

/// The output of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The rows of each query: all rows, or the final rows of keyed results.
    pub results: BTreeMap<String, Vec<Vec<String>>>,
    /// The rows of each stream in the order of reading, with `_topic`, `_partition`, `_offset`, `_position`.
    pub rows: BTreeMap<String, RecordBatch>,
    /// Late rows: query, offset, start of the first refused window, end of the last one, watermark.
    pub late: Vec<(String, [String; 4])>,
    /// Rows for which an expression of a query failed: query, offset.
    pub failed: Vec<(String, i64)>,
    /// Messages that decoding or a rule of the stream rejected: offset, column, reason.
    pub rejected: Vec<(i64, Option<String>, String)>,
    /// Windows whose final plan failed: query, reason.
    pub failed_windows: Vec<(String, String)>,
}

/// Processes the inputs until all windows are closed.
pub async fn run(
    root: &Path,
    customer: &Arc<Customer>,
    inputs: &[Input],
    mode: Mode,
) -> Result<Outcome> {
    let mut harness = EngineHarness::new(root, customer).await?;
    let schedule = schedule(inputs, mode);
    let mut random =
        StdRng::seed_from_u64(if let Mode::Random { seed, .. } = mode { seed } else { 0 });
    for partition in 0..partitions(mode) {
        for input in inputs {
            harness.engine.join(&input.stream, &harness.partition(&input.stream, partition), 0)?;
        }
    }
    harness.initial_state = harness.engine.snapshot()?;
    for (number, chunks) in schedule.into_iter().enumerate() {
        let emits = if number % 2 == 1 { harness.early_queries() } else { Vec::new() };
        harness.epoch(chunks, emits, false).await?;
        match mode {
            Mode::SmallEpochs => harness.restore_newest(root).await?,
            Mode::Random { .. } if random.random_bool(0.3) => harness.write_snapshot().await?,
            Mode::Random { .. } if random.random_bool(0.2) => {
                harness.recover_after_kill(root).await?
            }
            _ => {}
        }
    }
    harness.epoch(Vec::new(), Vec::new(), true).await?;
    harness.outcome()
}

fn partitions(mode: Mode) -> i32 {
    match mode {
        Mode::Whole | Mode::SmallEpochs => 1,
        Mode::Spread => 3,
        Mode::Random { partitions, .. } => partitions,
    }
}

/// The records of an epoch: (stream, partition, records with their offsets).
type Epoch = Vec<(String, i32, Vec<(i64, Bytes)>)>;

fn schedule(inputs: &[Input], mode: Mode) -> Vec<Epoch> {
    let mut random =
        StdRng::seed_from_u64(if let Mode::Random { seed, .. } = mode { seed ^ 1 } else { 0 });
    let count = partitions(mode);
    let mut epochs: Vec<Epoch> = Vec::new();
    for input in inputs {
        let mut offsets = vec![0_i64; usize::try_from(count).unwrap()];
        let mut rest = input.values.iter().enumerate().peekable();
        let mut number = 0;
        while rest.peek().is_some() {
            let size = match mode {
                Mode::Whole => usize::MAX,
                Mode::Spread => 4,
                Mode::SmallEpochs => number % 3 + 1,
                Mode::Random { .. } => random.random_range(1..20),
            };
            let mut parts: BTreeMap<i32, Vec<(i64, Bytes)>> = BTreeMap::new();
            for (index, value) in rest.by_ref().take(size) {
                let partition = match mode {
                    Mode::Random { .. } => random.random_range(0..count),
                    _ => i32::try_from(index).unwrap() % count,
                };
                let next = &mut offsets[usize::try_from(partition).unwrap()];
                parts.entry(partition).or_default().push((*next, value.clone()));
                *next += 1;
            }
            if epochs.len() <= number {
                epochs.push(Vec::new());
            }
            epochs[number]
                .extend(parts.into_iter().map(|(p, records)| (input.stream.clone(), p, records)));
            number += 1;
        }
    }
    epochs
}

/// Makes a chunk as a reader fills it.
pub fn chunk(topic: &Arc<str>, partition: i32, records: &[(i64, Bytes)]) -> Chunk {
    let mut bytes = BytesMut::new();
    let mut ranges = Vec::new();
    for (offset, value) in records {
        let start = u32::try_from(bytes.len()).unwrap();
        bytes.extend_from_slice(value);
        let end = u32::try_from(bytes.len()).unwrap();
        ranges.push(Record {
            offset: *offset,
            timestamp_ms: -1,
            key: None,
            value: Some(start..end),
            headers: 0..0,
        });
    }
    Chunk {
        topic: topic.clone(),
        partition,
        first_offset: records[0].0,
        next_offset: records[records.len() - 1].0 + 1,
        bytes: bytes.freeze(),
        records: ranges,
        append_time: false,
    }
}

/// A recorded epoch.
#[derive(Clone)]
struct Recorded {
    chunks: Vec<Chunk>,
    emits: Vec<String>,
    drained: bool,
}

const MAX_WORKERS: usize = 3;

struct EngineHarness {
    customer: Arc<Customer>,
    tables: ReferenceTables,
    versions: tempfile::TempDir,
    engine: Engine,
    /// Number of workers. Each restored engine has another number, because the result must not depend on it.
    workers: usize,
    /// The state before the first epoch.
    initial_state: Snapshot,
    store: Arc<dyn ObjectStore>,
    /// The recorded epochs, and the number of epochs before the newest snapshot.
    log: Vec<Recorded>,
    snapshot_at: Option<usize>,
    records: Vec<OutRecord>,
    history: BTreeMap<String, Vec<RecordBatch>>,
}

impl EngineHarness {
    async fn new(root: &Path, customer: &Arc<Customer>) -> Result<Self> {
        let versions = tempfile::tempdir()?;
        let (engine, tables) = new_engine(root, customer, versions.path(), 1).await?;
        let initial_state = engine.snapshot()?;
        let (log, records, history) = (Vec::new(), Vec::new(), BTreeMap::new());
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Ok(Self {
            customer: customer.clone(),
            tables,
            versions,
            engine,
            workers: 1,
            initial_state,
            store,
            log,
            snapshot_at: None,
            records,
            history,
        })
    }

    fn topic(&self, stream: &str) -> Arc<str> {
        let found = self.customer.streams.iter().find(|s| s.name == stream).unwrap();
        match &found.topics {
            Topics::List(list) => list[0].as_str().into(),
            Topics::Pattern(_) => stream.into(),
        }
    }

    fn partition(&self, stream: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: self.topic(stream), partition }
    }

    /// Queries with early results.
    fn early_queries(&self) -> Vec<String> {
        let early_queries =
            self.customer.queries.iter().filter(|q| matches!(q.emit, Emit::Every(_)));
        early_queries.map(|q| q.name.clone()).collect()
    }

    async fn epoch(&mut self, epoch: Epoch, emits: Vec<String>, drained: bool) -> Result<()> {
        let chunks = epoch
            .iter()
            .map(|(stream, p, records)| chunk(&self.topic(stream), *p, records))
            .collect();
        self.log.push(Recorded { chunks, emits, drained });
        let number = self.log.len();
        let output = run_epoch(&mut self.engine, number, &self.log[number - 1]).await?;
        self.records.extend(output.records);
        for rows in output.history {
            self.history.entry(rows.stream).or_default().push(rows.rows);
        }
        Ok(())
    }

    /// Writes a snapshot and continues with a new engine that was restored from it.
    async fn restore_newest(&mut self, root: &Path) -> Result<()> {
        self.write_snapshot().await?;
        self.engine = self.restored_engine(root).await?;
        Ok(())
    }

    async fn write_snapshot(&mut self) -> Result<()> {
        let number = self.log.len();
        snapshot::write(&self.store, &format!("s{number}").into(), &self.engine.snapshot()?)
            .await?;
        self.snapshot_at = Some(number);
        Ok(())
    }

    /// Drops the engine, recovers a new one, and compares their states.
    async fn recover_after_kill(&mut self, root: &Path) -> Result<()> {
        let before = self.engine.snapshot()?;
        let mut engine = self.restored_engine(root).await?;
        for number in self.snapshot_at.unwrap_or(0)..self.log.len() {
            // Partitions may be read in another order than the first time.
            let mut recorded = self.log[number].clone();
            recorded.chunks.sort_by_key(|chunk| std::cmp::Reverse(chunk.partition));
            run_epoch(&mut engine, number + 1, &recorded).await?;
        }
        let after = engine.snapshot()?;
        if describe(&before) != describe(&after) {
            return Err(Error::internal("recovery gave a different state").detail(format!(
                "before {}\nafter {}",
                describe(&before),
                describe(&after)
            )));
        }
        self.engine = engine;
        Ok(())
    }

    async fn restored_engine(&mut self, root: &Path) -> Result<Engine> {
        self.workers = 1 + self.workers % MAX_WORKERS;
        let versions = self.versions.path();
        let (mut engine, tables) = new_engine(root, &self.customer, versions, self.workers).await?;
        self.tables = tables;
        let saved = match self.snapshot_at {
            Some(number) => snapshot::read(&self.store, &format!("s{number}").into()).await?,
            None => Snapshot {
                manifest: self.initial_state.manifest.clone(),
                batches: self.initial_state.batches.clone(),
            },
        };
        engine.restore(saved, &BTreeSet::new()).await?;
        Ok(engine)
    }

    fn outcome(self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for (stream, batches) in self.history {
            let rows = concat_batches(&batches[0].schema(), &batches)?;
            outcome.rows.insert(stream, rows);
        }
        let dead = sink::dead_letter_topic(&self.customer.name);
        for query in self.engine.queries() {
            let records = self.records.iter().filter(|r| *r.topic == *query.plan().query.topic);
            outcome
                .results
                .insert(query.plan().name.clone(), final_rows(records, query.sink().publication)?);
        }
        for record in &self.records {
            if record.topic == dead {
                dead_letter(record, &mut outcome);
            } else if record.topic.ends_with("_late") {
                let row = json(record.value.as_deref())?;
                let cell = |name: &str| cell(&row[name]);
                let place =
                    [cell("_offset"), cell("refused_from"), cell("refused_to"), cell("watermark")];
                outcome.late.push((cell("query"), place));
            }
        }
        outcome.late.sort();
        outcome.failed.sort();
        outcome.rejected.sort();
        Ok(outcome)
    }
}

async fn new_engine(
    root: &Path,
    customer: &Arc<Customer>,
    versions: &Path,
    workers: usize,
) -> Result<(Engine, ReferenceTables)> {
    let plan = plan(root, customer).await.map_err(|mut errors| errors.swap_remove(0))?;
    let (tables, planned) = (customer.tables.clone(), plan.tables.clone());
    let mut tables = ReferenceTables::new(root, versions.into(), tables, planned);
    let mut engine = Engine::new(customer.clone(), plan, true, workers)?;
    for version in tables.load_changed().await? {
        engine.set_table(&version.name, version.rows);
    }
    Ok((engine, tables))
}

async fn run_epoch(
    engine: &mut Engine,
    number: usize,
    recorded: &Recorded,
) -> Result<millstream::pipeline::EngineOutput> {
    let number = u64::try_from(number).unwrap();
    engine.begin(NOW + i64::try_from(number).unwrap() * SECOND)?;
    for chunk in &recorded.chunks {
        engine.absorb(chunk.clone()).await?;
    }
    engine.gather().await?;
    engine.end(&BTreeMap::new(), &recorded.emits, recorded.drained).await
}

/// A state as text, with the rows of all batches in order.
fn describe(snapshot: &Snapshot) -> String {
    let mut batches: Vec<String> = Vec::new();
    for (name, rows) in &snapshot.batches {
        let rows = arrow::util::pretty::pretty_format_batches(std::slice::from_ref(rows)).unwrap();
        batches.push(format!("{name}\n{rows}"));
    }
    batches.sort();
    let manifest = serde_json::to_string(&snapshot.manifest).unwrap();
    format!("{manifest}\n{}", batches.join("\n"))
}

fn json(value: Option<&[u8]>) -> Result<Value> {
    serde_json::from_slice(value.unwrap_or(b"null"))
        .map_err(|e| Error::internal("a record is not valid JSON").because(e))
}

/// The final rows of a results topic.
fn final_rows<'a>(
    records: impl Iterator<Item = &'a OutRecord>,
    publication: Publication,
) -> Result<Vec<Vec<String>>> {
    let mut appended = Vec::new();
    let mut keyed: BTreeMap<Bytes, Option<Value>> = BTreeMap::new();
    for record in records {
        let row = match &record.value {
            Some(value) => Some(json(Some(value))?),
            None => None,
        };
        match publication {
            Publication::Append => appended.extend(row),
            _ => {
                keyed.insert(record.key.clone().unwrap_or_default(), row);
            }
        }
    }
    let rows = appended.into_iter().chain(keyed.into_values().flatten());
    Ok(rows
        .map(|mut row| {
            if publication == Publication::Revised {
                let object = row.as_object_mut().unwrap();
                assert_eq!(
                    object.remove("is_final"),
                    Some(Value::Bool(true)),
                    "the last result of a window is not final"
                );
                object.remove("revision");
            }
            cells(&row)
        })
        .collect())
}

fn dead_letter(record: &OutRecord, outcome: &mut Outcome) {
    let header = |name: &str| {
        let value = record.headers.iter().find(|(n, _)| n == name)?.1.as_ref()?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    let offset = || header(sink::headers::OFFSET).unwrap().parse().unwrap();
    let reason = header(sink::headers::REASON).unwrap();
    match header(sink::headers::STAGE).unwrap().as_str() {
        "query" => outcome.failed.push((header(sink::headers::QUERY).unwrap(), offset())),
        "window" => outcome.failed_windows.push((header(sink::headers::QUERY).unwrap(), reason)),
        _ => outcome.rejected.push((offset(), header(sink::headers::COLUMN), reason)),
    }
}

/// The rows of a batch as cells, converted by the JSON encoding of results.
pub fn batch_cells(rows: &RecordBatch) -> Vec<Vec<String>> {
    let rows = sink::json_rows(rows).unwrap();
    rows.iter().map(|row| cells(&serde_json::from_slice(row).unwrap())).collect()
}

/// The offsets of a history batch.
pub fn offsets(rows: &RecordBatch) -> Vec<i64> {
    rows.column_by_name("_offset").unwrap().as_primitive::<Int64Type>().values().to_vec()
}

pub fn cells(row: &Value) -> Vec<String> {
    row.as_object().unwrap().values().map(cell).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(cell).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
