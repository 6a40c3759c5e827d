//! SIGKILL at random, twenty times, under load, against a real Kafka: in the end the results, the
//! dead letters and the history are what a batch over everything that was produced says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, SecondsFormat};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::rig;
use crate::support::kafka::{Kafka, Read, Write};
use crate::support::oracle::{Oracle, Relation};
use crate::support::process;
use crate::support::project::{Project, unique};

pub(crate) const PARTITIONS: i32 = 3;
const KILLS: usize = 20;
const ROOMS: [&str; 4] = ["living room", "kitchen", "hall", "bathroom"];
/// 2024-05-01T00:00:00Z, in microseconds.
const BEGINNING: i64 = 1_714_521_600_000_000;

/// One record as it was produced, at (partition, offset).
pub(crate) enum Sent {
    Good(Event),
    Bad,
}

#[derive(Clone)]
pub(crate) struct Event {
    ts: i64,
    id: i64,
    sensor: i64,
    room: &'static str,
    n: i64,
}

impl Event {
    fn json(&self) -> String {
        let ts = DateTime::from_timestamp_micros(self.ts)
            .unwrap()
            .to_rfc3339_opts(SecondsFormat::Micros, true);
        format!(
            r#"{{"ts":"{ts}","id":{},"sensor":{},"room":"{}","n":{}}}"#,
            self.id, self.sensor, self.room, self.n
        )
    }
}

/// Produces until told to stop; gives all that was sent, by partition, in offset order.
pub(crate) fn load(kafka: &Kafka, topic: &str, seed: u64, stop: &AtomicBool) -> Vec<Vec<Sent>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut sent: Vec<Vec<Sent>> = (0..PARTITIONS).map(|_| Vec::new()).collect();
    let mut id = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut records = Vec::new();
        for (partition, sent) in sent.iter_mut().enumerate() {
            for _ in 0..300 {
                let clock = BEGINNING + i64::try_from(sent.len()).unwrap() * 20_000;
                let partition = i32::try_from(partition).unwrap();
                if random.random_bool(0.01) {
                    records.push(Write::value(format!("{{\"ts\": {id}, broken")).to(partition));
                    sent.push(Sent::Bad);
                } else {
                    let event = Event {
                        // Five seconds of disorder; ten are declared.
                        ts: clock - random.random_range(0..5_000_000),
                        id,
                        sensor: random.random_range(0..50),
                        room: ROOMS[random.random_range(0..ROOMS.len())],
                        n: random.random_range(0..200),
                    };
                    records.push(Write::value(event.json()).to(partition));
                    sent.push(Sent::Good(event));
                }
                id += 1;
            }
        }
        kafka.produce(topic, records);
        std::thread::sleep(Duration::from_millis(100).saturating_sub(began.elapsed()));
    }
    sent
}

pub(crate) fn project(topic: &str, customer: &str) -> Project {
    let project = Project::new();
    project.schema(
        customer,
        &format!(
            "SET millstream.timezone = 'Europe/Helsinki';
CREATE STREAM events (
  ts TIMESTAMP NOT NULL, id BIGINT NOT NULL, sensor BIGINT NOT NULL, room VARCHAR NOT NULL, n BIGINT NOT NULL,
  WATERMARK FOR ts AS ts - INTERVAL '10' SECOND
) WITH (topics = '{topic}');"
        ),
    );
    for (name, text) in QUERIES {
        project.query(customer, name, text);
    }
    project
}

const QUERIES: [(&str, &str); 4] = [
    (
        "per_window",
        "SELECT window_start, window_end, sensor, count(*) AS events, sum(n) AS total, count(DISTINCT room) AS rooms
FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '10' SECOND) GROUP BY window_start, window_end, sensor",
    ),
    (
        "sliding",
        "SELECT window_start, window_end, room, count(*) AS events, max(n) AS high
FROM HOP(TABLE events, DESCRIPTOR(ts), INTERVAL '10' SECOND, INTERVAL '1' MINUTE) GROUP BY window_start, window_end, room",
    ),
    ("ratio", "SELECT id, sensor, 1000 / n AS ratio FROM events WHERE n < 20"),
    ("per_sensor", "SELECT sensor, count(*) AS events, max(id) AS newest FROM events GROUP BY sensor"),
];

#[tokio::test]
async fn killed_twenty_times_nothing_is_lost_and_nothing_is_twice() {
    let Some(kafka) = Kafka::require("kill") else { return };
    let seed = std::env::var("MILLSTREAM_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(rand::random);
    println!("MILLSTREAM_SEED={seed} repeats the choices of this run");
    let (customer, topic) = (unique("kill"), unique("kill_events"));
    kafka.create(&topic, PARTITIONS);
    let project = project(&topic, &customer);
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let producer = scope.spawn(|| load(&kafka, &topic, seed, &stop));
        kill_again_and_again(&kafka, &project, seed);
        stop.store(true, Ordering::Relaxed);
        producer.join().unwrap()
    });
    let finished = process::run_for(
        project.path(),
        &run_arguments(&kafka, &["--drain"]),
        Duration::from_secs(300),
    )
    .ok();
    println!(
        "{} events; the last run took {:?}",
        sent.iter().map(Vec::len).sum::<usize>(),
        finished.took
    );
    results_agree(&kafka, &customer, &sent).await;
    dead_letters_agree(&kafka, &customer, &sent);
    history_agrees(&kafka, &project, &customer, &sent);
    process::run(project.path(), &["audit", "--brokers", &kafka.brokers]).ok();
}

fn run_arguments<'a>(kafka: &'a Kafka, more: &[&'a str]) -> Vec<&'a str> {
    let mut all =
        vec!["run", "--brokers", &kafka.brokers, "--create-topics", "--snapshot-interval", "2 s"];
    all.extend(more);
    all
}

fn kill_again_and_again(kafka: &Kafka, project: &Project, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ 7);
    for kill in 0..KILLS {
        let mut running = process::start(project.path(), &run_arguments(kafka, &[]));
        std::thread::sleep(Duration::from_millis(random.random_range(200..3_500)));
        assert!(!running.ended(), "run {kill} ended by itself\n{}", running.stderr());
        running.kill();
    }
}

/// The good events as the stream's table.
fn table(sent: &[Vec<Sent>]) -> RecordBatch {
    let events = || {
        sent.iter().flatten().filter_map(|s| match s {
            Sent::Good(event) => Some(event),
            Sent::Bad => None,
        })
    };
    let ts = TimestampMicrosecondArray::from_iter_values(events().map(|e| e.ts))
        .with_timezone("Europe/Helsinki");
    let numbers = |of: fn(&Event) -> i64| {
        Arc::new(Int64Array::from_iter_values(events().map(of))) as ArrayRef
    };
    RecordBatch::try_from_iter([
        ("ts", Arc::new(ts) as ArrayRef),
        ("id", numbers(|e| e.id)),
        ("sensor", numbers(|e| e.sensor)),
        ("room", Arc::new(StringArray::from(events().map(|e| e.room).collect::<Vec<_>>()))),
        ("n", numbers(|e| e.n)),
    ])
    .unwrap()
}

pub(crate) async fn results_agree(kafka: &Kafka, customer: &str, sent: &[Vec<Sent>]) {
    let relations = vec![Relation { name: "events".into(), rows: table(sent) }];
    let oracle = Oracle { zone: chrono_tz::Europe::Helsinki, relations };
    for (name, sql) in QUERIES {
        // Division by zero goes to the dead letters; the oracle is spared looking for the rows.
        let sql = sql.replace("WHERE n < 20", "WHERE n < 20 AND n <> 0");
        let mut expected = rig::batch_cells(&oracle.answer(&sql, None).await.unwrap().0);
        expected.sort();
        let records = kafka.read(&format!("millstream.{customer}.{name}"));
        let mut rows: Vec<Vec<String>> = match name {
            "per_sensor" => newest(&records).into_values().collect(),
            _ => records.iter().map(|r| rig::cells(&r.json())).collect(),
        };
        rows.sort();
        compare(name, &rows, &expected);
    }
    assert_eq!(
        kafka.read(&format!("millstream.{customer}.events_late")),
        Vec::new(),
        "nothing was late"
    );
}

/// The last row of each key; on the way no key may go back.
fn newest(records: &[Read]) -> BTreeMap<Vec<u8>, Vec<String>> {
    let mut rows: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
    for record in records {
        let row = rig::cells(&record.json());
        let count = |row: &Vec<String>| row[1].parse::<i64>().unwrap();
        if let Some(before) = rows.get(record.key.as_ref().unwrap()) {
            assert!(count(before) < count(&row), "{before:?} was followed by {row:?}");
        }
        rows.insert(record.key.clone().unwrap(), row);
    }
    rows
}

/// Like assert_eq, with a failure that can be read.
fn compare<T: Ord + Clone + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) {
    if found == expected {
        println!("{what}: {} rows agree", found.len());
        return;
    }
    let count = |rows: &[T]| {
        let mut counts: BTreeMap<T, i64> = BTreeMap::new();
        rows.iter().for_each(|row| *counts.entry(row.clone()).or_default() += 1);
        counts
    };
    let mut difference = count(found);
    for (row, times) in count(expected) {
        *difference.entry(row).or_default() -= times;
    }
    difference.retain(|_, times| *times != 0);
    let examples: Vec<_> = difference.iter().take(10).collect();
    panic!(
        "{what}: {} rows instead of {}; (row, surplus): {examples:#?}",
        found.len(),
        expected.len()
    );
}

pub(crate) fn dead_letters_agree(kafka: &Kafka, customer: &str, sent: &[Vec<Sent>]) {
    let mut expected = Vec::new();
    for (partition, sent) in sent.iter().enumerate() {
        for (offset, record) in sent.iter().enumerate() {
            match record {
                Sent::Bad => {
                    expected.push((partition.to_string(), offset.to_string(), "decode".to_owned()))
                }
                Sent::Good(e) if e.n == 0 => {
                    expected.push((partition.to_string(), offset.to_string(), "query".to_owned()))
                }
                Sent::Good(_) => {}
            }
        }
    }
    let header = |r: &Read, name: &str| r.header(&format!("millstream.{name}")).unwrap();
    let records = kafka.read(&format!("millstream.{customer}.dead_letters"));
    let mut found: Vec<_> = records
        .iter()
        .map(|r| (header(r, "partition"), header(r, "offset"), header(r, "stage")))
        .collect();
    expected.sort();
    found.sort();
    compare("dead letters", &found, &expected);
}

pub(crate) fn history_agrees(kafka: &Kafka, project: &Project, customer: &str, sent: &[Vec<Sent>]) {
    let ask = |sql: &str| {
        let answer = process::run(project.path(), &["query", "--format", "csv", sql]).ok();
        answer.stdout.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut found =
        ask(&format!("SELECT _partition, _offset, id, sensor, room, n FROM {customer}.events"));
    let mut expected = Vec::new();
    for (partition, sent) in sent.iter().enumerate() {
        for (offset, record) in sent.iter().enumerate() {
            if let Sent::Good(e) = record {
                expected
                    .push(format!("{partition},{offset},{},{},{},{}", e.id, e.sensor, e.room, e.n));
            }
        }
    }
    found.sort();
    expected.sort();
    compare("events in history", &found, &expected);
    for (name, _) in QUERIES {
        let table = if name == "per_sensor" { format!("{name}_changes") } else { name.to_owned() };
        let kept = ask(&format!("SELECT count(*) FROM {customer}.{table}"));
        let sent = kafka.read(&format!("millstream.{customer}.{name}")).len();
        assert_eq!(kept, [sent.to_string()], "{table} in history and in its topic");
    }
    let dead = kafka.read(&format!("millstream.{customer}.dead_letters")).len();
    assert_eq!(ask(&format!("SELECT count(*) FROM {customer}.dead_letters")), [dead.to_string()]);
    let distinct: BTreeSet<_> = found.iter().collect();
    assert_eq!(distinct.len(), found.len(), "no event is in history twice");
}
