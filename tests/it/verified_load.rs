//! A load for a pipeline that is killed, suspended or disconnected while it runs, and the verification that
//! nothing was lost or duplicated: results, dead letters, late rows and history are compared with what plain
//! DataFusion computes from the produced events, and `audit` runs.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, SecondsFormat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::engine_harness;
use crate::support::kafka::{Kafka, Read, Write};
use crate::support::oracle::{Lateness, Oracle, Relation};
use crate::support::process;
use crate::support::project::{Project, unique};

const PARTITIONS: i32 = 3;
const ROOMS: [&str; 4] = ["living room", "kitchen", "hall", "bathroom"];
/// 2024-05-01T00:00:00Z, in microseconds.
const BEGINNING: i64 = 1_714_521_600_000_000;
const SECOND: i64 = 1_000_000;
/// Event time between two events of a partition.
const STEP: i64 = 20_000;

/// How the records of a query's topic are compared.
#[derive(Clone, Copy, PartialEq)]
enum TopicContent {
    /// Each row is published once.
    Rows,
    /// The newest row of each key counts; the counts of a key only increase.
    Counts,
    /// The newest row of each key counts and must be final.
    Finals,
}

/// Every kind of state: partial aggregates, distinct counts, panes, stored rows, a view, early results; a
/// stateless query and a query that reads it; and a query with late rows.
const QUERIES: [(&str, TopicContent, &str); 8] = [
    (
        "per_window",
        TopicContent::Rows,
        "SELECT window_start, window_end, sensor, count(*) AS events, sum(n) AS total, count(DISTINCT room) AS rooms
FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY window_start, window_end, sensor",
    ),
    (
        "sliding",
        TopicContent::Rows,
        "SELECT window_start, window_end, room, count(*) AS events, max(n) AS high
FROM HOP(TABLE events, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '1' MINUTE) GROUP BY window_start, window_end, room",
    ),
    ("ratio", TopicContent::Rows, "SELECT id, sensor, 1000 / n AS ratio FROM events WHERE n < 20"),
    (
        "per_sensor",
        TopicContent::Counts,
        "SELECT sensor, count(*) AS events, max(id) AS newest FROM events GROUP BY sensor",
    ),
    ("large", TopicContent::Rows, "SELECT ts, id, sensor, n FROM events WHERE n >= 150"),
    (
        "large_per_window",
        TopicContent::Rows,
        "SELECT window_start, window_end, count(*) AS events, median(n) AS middle
FROM TUMBLE(TABLE large, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY window_start, window_end",
    ),
    (
        "early",
        TopicContent::Finals,
        "CREATE STREAM early WITH (emit = 'every 1 second') AS
SELECT window_start, window_end, room, count(*) AS events
FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '20' SECOND) GROUP BY window_start, window_end, room",
    ),
    (
        "late_counts",
        TopicContent::Rows,
        "SELECT window_start, window_end, count(*) AS events, sum(id) AS ids
FROM TUMBLE(TABLE solo, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY window_start, window_end",
    ),
];

/// One produced record, at (partition, offset).
enum Sent {
    Good(Event),
    Bad,
}

#[derive(Clone)]
struct Event {
    ts: i64,
    id: i64,
    sensor: i64,
    room: &'static str,
    n: i64,
}

impl Event {
    fn json(&self) -> String {
        format!(
            r#"{{"ts":"{}","id":{},"sensor":{},"room":"{}","n":{}}}"#,
            instant(self.ts),
            self.id,
            self.sensor,
            self.room,
            self.n
        )
    }
}

fn instant(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).unwrap().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// All produced events.
pub struct Produced {
    /// By partition, in offset order.
    events: Vec<Vec<Sent>>,
    /// The event times of `solo`; some are late for their window.
    solo: Vec<i64>,
}

impl Produced {
    pub fn count(&self) -> usize {
        self.events.iter().map(Vec::len).sum::<usize>() + self.solo.len()
    }
}

/// One customer with topics of its own.
pub struct Load {
    pub kafka: Kafka,
    pub project: Project,
    pub customer: String,
    topic: String,
    solo: String,
    seed: u64,
    /// Events per partition in a tenth of a second.
    rate: usize,
}

/// The result of the verification.
#[derive(Default)]
pub struct Verdict {
    /// Number of compared rows and records.
    pub compared: usize,
    pub lost: usize,
    pub duplicated: usize,
    differences: Vec<String>,
}

impl Verdict {
    /// Panics with all differences, if there are any.
    pub fn all_agree(&self) {
        assert!(self.differences.is_empty(), "{}", self.differences.join("\n"));
    }

    /// Compares sorted rows.
    fn compare<T: Ord + Clone + Debug>(&mut self, what: &str, found: &[T], expected: &[T]) {
        self.compared += expected.len();
        if found == expected {
            return;
        }
        let mut surplus: BTreeMap<&T, i64> = BTreeMap::new();
        found.iter().for_each(|row| *surplus.entry(row).or_default() += 1);
        expected.iter().for_each(|row| *surplus.entry(row).or_default() -= 1);
        surplus.retain(|_, times| *times != 0);
        let sum = |sign: i64| surplus.values().map(|t| (t * sign).max(0)).sum::<i64>();
        self.lost += usize::try_from(sum(-1)).unwrap();
        self.duplicated += usize::try_from(sum(1)).unwrap();
        let examples: Vec<_> = surplus.iter().take(10).collect();
        let (found, expected) = (found.len(), expected.len());
        self.differences.push(format!(
            "{what}: {found} rows instead of {expected}; (row, surplus): {examples:#?}"
        ));
    }

    fn expect(&mut self, what: &str, found: usize, expected: usize) {
        if found != expected {
            self.differences.push(format!("{what}: {found} instead of {expected}"));
        }
    }
}

/// Sets a stop flag when it is dropped, also in a panic.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The seed of a run: MILLSTREAM_SEED, or a new one.
pub fn seed() -> u64 {
    let given = std::env::var("MILLSTREAM_SEED").ok().and_then(|s| s.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("MILLSTREAM_SEED={seed} repeats the choices of this run");
    seed
}

impl Load {
    pub fn new(kafka: Kafka, name: &str, seed: u64, rate: usize) -> Self {
        let customer = unique(name);
        let (topic, solo) = (format!("{customer}_events"), format!("{customer}_solo"));
        kafka.create(&topic, PARTITIONS);
        kafka.create(&solo, 1);
        let keep = [("retention.ms", "-1"), ("retention.bytes", "-1")];
        kafka.create_with(&format!("millstream.{customer}.log"), 1, &keep);
        let project = Project::new();
        project.schema(
            &customer,
            &format!(
                "SET millstream.timezone = 'Europe/Helsinki';
CREATE STREAM events (
  ts TIMESTAMP NOT NULL, id BIGINT NOT NULL, sensor BIGINT NOT NULL, room VARCHAR NOT NULL, n BIGINT NOT NULL,
  WATERMARK FOR ts AS ts - INTERVAL '10' SECOND
) WITH (topics = '{topic}');
CREATE STREAM solo (ts TIMESTAMP NOT NULL, id BIGINT NOT NULL, WATERMARK FOR ts AS ts) WITH (topics = '{solo}');"
            ),
        );
        for (name, _, text) in QUERIES {
            project.query(&customer, name, text);
        }
        Self { kafka, project, customer, topic, solo, seed, rate }
    }

    /// The topic of a query, of the log or of dead letters.
    pub fn output(&self, name: &str) -> String {
        format!("millstream.{}.{name}", self.customer)
    }

    /// `millstream run` for this load.
    pub fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["run", "--brokers", &self.kafka.brokers, "--create-topics"];
        all.extend(["--snapshot-interval", "1 s", "--check-replays"]);
        all.extend(more);
        all
    }

    /// Starts a process that runs until it is stopped.
    pub fn start(&self, environment: &[(&str, &str)]) -> process::Running {
        process::start_with_env(self.project.path(), &self.arguments(&[]), environment)
    }

    /// Produces events while `work` runs.
    pub fn during(&self, work: impl FnOnce()) -> Produced {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let producer = scope.spawn(|| self.produce(&stop));
            let stopping = Stop(&stop);
            work();
            drop(stopping);
            producer.join().unwrap()
        })
    }

    fn produce(&self, stop: &AtomicBool) -> Produced {
        let mut random = StdRng::seed_from_u64(self.seed);
        let events = (0..PARTITIONS).map(|_| Vec::new()).collect();
        let mut produced = Produced { events, solo: Vec::new() };
        let producer = self.kafka.producer();
        let mut id = 0;
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut records = Vec::new();
            for (partition, sent) in produced.events.iter_mut().enumerate() {
                let partition = i32::try_from(partition).unwrap();
                for _ in 0..self.rate {
                    let clock = BEGINNING + i64::try_from(sent.len()).unwrap() * STEP;
                    let (write, one) = event(&mut random, id, clock);
                    records.push(write.to(partition));
                    sent.push(one);
                    id += 1;
                }
            }
            producer.produce(&self.topic, records);
            let mut records = Vec::new();
            for _ in 0..self.rate {
                let id = produced.solo.len();
                let behind = match random.random_bool(0.05) {
                    true => random.random_range(0..60 * SECOND),
                    false => 0,
                };
                let ts = BEGINNING + i64::try_from(id).unwrap() * STEP - behind;
                records.push(Write::value(format!(r#"{{"ts":"{}","id":{id}}}"#, instant(ts))));
                produced.solo.push(ts);
            }
            producer.produce(&self.solo, records);
            std::thread::sleep(Duration::from_millis(100).saturating_sub(began.elapsed()));
        }
        produced
    }

    /// Drains the pipeline, compares all output, and runs the audit.
    pub fn verify(&self, produced: &Produced) -> Verdict {
        let limit = Duration::from_secs(300);
        let drain = self.arguments(&["--drain"]);
        let drained = process::run_for(self.project.path(), &drain, limit).ok();
        println!("{} events; the last run took {:?}", produced.count(), drained.took);
        let mut verdict = Verdict::default();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(self.compare_results(produced, &mut verdict));
        self.compare_dead_letters(produced, &mut verdict);
        self.compare_late(produced, &mut verdict);
        self.compare_history(produced, &mut verdict);
        let audit = ["audit", "--brokers", &self.kafka.brokers];
        let audit = process::run(self.project.path(), &audit);
        if !audit.status.success() {
            verdict.differences.push(format!("audit: {}", audit.output()));
        }
        verdict
    }

    async fn compare_results(&self, produced: &Produced, verdict: &mut Verdict) {
        let zone = chrono_tz::Europe::Helsinki;
        let mut relations = vec![
            Relation { name: "events".into(), rows: table(&produced.events) },
            Relation { name: "solo".into(), rows: solo_table(&produced.solo) },
        ];
        let late = Lateness { before: before(&produced.solo), allowed_us: 0 };
        for (name, content, sql) in QUERIES {
            let oracle = Oracle { zone, relations: relations.clone() };
            // Rows that divide by zero are dead letters; the filter excludes them from the oracle.
            let sql = sql.replace("WHERE n < 20", "WHERE n < 20 AND n <> 0");
            let sql =
                sql.split_once(" AS\nSELECT").map_or(sql.clone(), |s| format!("SELECT{}", s.1));
            let late = (name == "late_counts").then_some(&late);
            let rows = oracle.answer(&sql, late).await.unwrap().0;
            let mut expected = engine_harness::batch_cells(&rows);
            relations.push(Relation { name: name.into(), rows });
            let records = self.kafka.read(&self.output(name));
            let mut found = match content {
                TopicContent::Rows => {
                    records.iter().map(|r| engine_harness::cells(&r.json())).collect()
                }
                _ => newest(&records, content),
            };
            expected.sort();
            found.sort();
            verdict.compare(name, &found, &expected);
        }
    }

    fn compare_dead_letters(&self, produced: &Produced, verdict: &mut Verdict) {
        let mut expected = Vec::new();
        for (partition, offset, sent) in each(produced) {
            let stage = match sent {
                Sent::Bad => "decode",
                Sent::Good(e) if e.n == 0 => "query",
                Sent::Good(_) => continue,
            };
            expected.push((partition.to_string(), offset.to_string(), stage.to_owned()));
        }
        let header = |r: &Read, name: &str| r.header(&format!("millstream.{name}")).unwrap();
        let records = self.kafka.read(&self.output("dead_letters"));
        let place = |r: &Read| (header(r, "partition"), header(r, "offset"), header(r, "stage"));
        let mut found: Vec<_> = records.iter().map(place).collect();
        expected.sort();
        found.sort();
        verdict.compare("dead letters", &found, &expected);
    }

    fn compare_late(&self, produced: &Produced, verdict: &mut Verdict) {
        let before = before(&produced.solo);
        let end = |ts: i64| ts - ts.rem_euclid(10 * SECOND) + 10 * SECOND;
        let judged = produced.solo.iter().zip(before).enumerate();
        let expected: Vec<i64> = judged
            .filter(|(_, (ts, before))| end(**ts) <= *before)
            .map(|(offset, _)| i64::try_from(offset).unwrap())
            .collect();
        let records = self.kafka.read(&self.output("solo_late"));
        let mut found: Vec<_> =
            records.iter().map(|r| r.json()["_offset"].as_i64().unwrap()).collect();
        found.sort();
        verdict.compare("late rows", &found, &expected);
        let others = self.kafka.read(&self.output("events_late")).len();
        verdict.expect("late rows of a stream without any", others, 0);
    }

    fn query(&self, sql: &str) -> Vec<String> {
        let answer = process::run(self.project.path(), &["query", "--format", "csv", sql]).ok();
        answer.stdout.lines().skip(1).map(str::to_owned).collect()
    }

    fn compare_history(&self, produced: &Produced, verdict: &mut Verdict) {
        let customer = &self.customer;
        let columns = "_partition, _offset, id, sensor, room, n";
        let mut found = self.query(&format!("SELECT {columns} FROM {customer}.events"));
        let mut expected = Vec::new();
        for (partition, offset, sent) in each(produced) {
            if let Sent::Good(e) = sent {
                let Event { id, sensor, room, n, .. } = e;
                expected.push(format!("{partition},{offset},{id},{sensor},{room},{n}"));
            }
        }
        found.sort();
        expected.sort();
        verdict.compare("events in history", &found, &expected);
        let mut found = self.query(&format!("SELECT _offset, id FROM {customer}.solo"));
        let mut expected: Vec<_> =
            (0..produced.solo.len()).map(|id| format!("{id},{id}")).collect();
        found.sort();
        expected.sort();
        verdict.compare("events of one partition in history", &found, &expected);
        let of_queries = QUERIES.iter().map(|(name, content, _)| match content {
            TopicContent::Rows => (*name, (*name).to_owned()),
            _ => (*name, format!("{name}_changes")),
        });
        let others = ["dead_letters", "solo_late"].map(|name| (name, name.to_owned()));
        for (topic, table) in of_queries.chain(others) {
            let offsets = self.query(&format!("SELECT _offset FROM {customer}.{table}"));
            let mut found: Vec<i64> = offsets.iter().map(|o| o.parse().unwrap()).collect();
            found.sort();
            let records = self.kafka.read(&self.output(topic));
            let expected: Vec<i64> = records.iter().map(|r| r.offset).collect();
            verdict.compare(&format!("{table} in history"), &found, &expected);
        }
    }
}

fn event(random: &mut StdRng, id: i64, clock: i64) -> (Write, Sent) {
    if random.random_bool(0.01) {
        return (Write::value(format!("{{\"ts\": {id}, broken")), Sent::Bad);
    }
    let event = Event {
        // Five seconds of disorder; the watermark allows ten.
        ts: clock - random.random_range(0..5 * SECOND),
        id,
        sensor: random.random_range(0..50),
        room: ROOMS[random.random_range(0..ROOMS.len())],
        n: random.random_range(0..200),
    };
    (Write::value(event.json()), Sent::Good(event))
}

fn each(produced: &Produced) -> impl Iterator<Item = (usize, usize, &Sent)> {
    let partitions = produced.events.iter().enumerate();
    partitions.flat_map(|(p, sent)| sent.iter().enumerate().map(move |(o, one)| (p, o, one)))
}

/// The watermark just before each row.
fn before(times: &[i64]) -> Vec<i64> {
    let mut newest = i64::MIN;
    let step = |ts: &i64| {
        let before = newest;
        newest = newest.max(*ts);
        before
    };
    times.iter().map(step).collect()
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    let ts = TimestampMicrosecondArray::from_iter_values(values);
    Arc::new(ts.with_timezone("Europe/Helsinki"))
}

/// The valid events as a table of the stream.
fn table(sent: &[Vec<Sent>]) -> RecordBatch {
    let events = || {
        sent.iter().flatten().filter_map(|s| match s {
            Sent::Good(event) => Some(event),
            Sent::Bad => None,
        })
    };
    let numbers = |of: fn(&Event) -> i64| {
        Arc::new(Int64Array::from_iter_values(events().map(of))) as ArrayRef
    };
    RecordBatch::try_from_iter([
        ("ts", times(events().map(|e| e.ts))),
        ("id", numbers(|e| e.id)),
        ("sensor", numbers(|e| e.sensor)),
        ("room", Arc::new(StringArray::from(events().map(|e| e.room).collect::<Vec<_>>()))),
        ("n", numbers(|e| e.n)),
    ])
    .unwrap()
}

fn solo_table(solo: &[i64]) -> RecordBatch {
    let ids = Int64Array::from_iter_values(0..i64::try_from(solo.len()).unwrap());
    let columns = [("ts", times(solo.iter().copied())), ("id", Arc::new(ids) as ArrayRef)];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The newest row of each key.
fn newest(records: &[Read], content: TopicContent) -> Vec<Vec<String>> {
    let mut rows: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
    let mut open: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    for record in records {
        let (key, mut json) = (record.key.clone().unwrap(), record.json());
        if content == TopicContent::Finals {
            let object = json.as_object_mut().unwrap();
            open.insert(key.clone(), object.remove("is_final") != Some(true.into()));
            object.remove("revision");
        }
        let row = engine_harness::cells(&json);
        let count = |row: &Vec<String>| row[1].parse::<i64>().unwrap();
        if let Some(before) = rows.get(&key).filter(|_| content == TopicContent::Counts) {
            assert!(count(before) < count(&row), "{before:?} was followed by {row:?}");
        }
        rows.insert(key, row);
    }
    let open: Vec<_> = open.iter().filter(|(_, open)| **open).map(|(key, _)| key).collect();
    assert!(open.is_empty(), "never final: {open:?}");
    rows.into_values().collect()
}
