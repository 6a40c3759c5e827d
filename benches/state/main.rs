//! Measures the cost of ten thousand and a million keys in two open windows: memory, the pause of a
//! snapshot, and the time from SIGKILL to the first result that is committed after it.
//!
//! A second query forwards one event in a hundred at once. The process is measured from outside: its
//! memory from /proc, the latency of forwarded events, and the time without results when it is killed
//! and restarted. `benches/run state` starts a Kafka for it and writes the table of
//! docs/performance.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/job.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod job;
#[path = "../support/process.rs"]
mod process;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use job::{config, create};
use process::{memory, metric, metrics};
use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

const PARTITIONS: i32 = 4;
const KEYS: [i64; 2] = [10_000, 1_000_000];
/// Number of hourly windows that stay open.
const WINDOWS: i64 = 2;
/// Events of each key and window before the measurement.
const EVENTS: i64 = 2;
/// Events per second during the measurement, and the share of events that is forwarded: one in so many.
const RATE: i64 = 10_000;
const FORWARDED: i64 = 100;
/// Long enough for three snapshots.
const WATCHED: Duration = Duration::from_secs(35);
/// Seconds after the first result at which the process is killed: different parts of a snapshot interval.
const KILLED_AFTER: [u64; 5] = [12, 15, 18, 21, 24];
/// Wednesday, 2024-05-01T00:00:00Z.
const DAY_BEGINS: i64 = 1_714_521_600_000_000;
const HOUR: i64 = 3_600_000_000;

const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM events (
  id BIGINT NOT NULL, value BIGINT NOT NULL, at BIGINT NOT NULL, sent BIGINT NOT NULL,
  event_time TIMESTAMP AS to_timestamp_micros(at),
  WATERMARK FOR event_time AS event_time - INTERVAL '3' HOUR
) WITH (topics = '{topic}');
";
const HOURLY: &str =
    "SELECT window_start, id, count(*) AS events, sum(value) AS total, max(value) AS highest
FROM TUMBLE(TABLE events, DESCRIPTOR(event_time), INTERVAL '1' HOUR) GROUP BY window_start, id";
const FORWARD: &str = "SELECT sent FROM events WHERE sent > 0";

fn main() {
    let Some(brokers) = job::brokers("state") else { return };
    job::warm(&brokers);
    let [few, many] = KEYS.map(|keys| measure(&brokers, keys));
    let mut table = String::from("| what | 10,000 keys | 1,000,000 keys |\n|---|---|---|\n");
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        writeln!(table, "| {what} | {few} | {many} |").unwrap();
    }
    println!("\n{table}");
    job::write_table("state", &table);
}

/// Measures with `keys` keys; returns the rows of the table: description and value.
fn measure(brokers: &str, keys: i64) -> [(&'static str, String); 6] {
    let customer = format!("state_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    create(brokers, &customer, PARTITIONS);
    fill(brokers, &customer, keys);
    let schema = SCHEMA.replace("{topic}", &customer);
    let folder = job::project(&customer, &schema, &[("hourly", HOURLY), ("forward", FORWARD)]);
    let port = process::free_port();
    let mut engine = start(brokers, folder.path(), port);
    await_rows(port, keys * WINDOWS);
    let stop = Arc::new(AtomicBool::new(false));
    let producing = {
        let (brokers, topic, stop) = (brokers.to_owned(), customer.clone(), stop.clone());
        std::thread::spawn(move || produce(&brokers, &topic, keys, &stop))
    };
    let results = consumer(brokers, &format!("millstream.{customer}.forward"));
    first_after(&results, 0);
    let mut latencies = follow(&results, WATCHED);
    latencies.sort_unstable();
    let at = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize] as f64 / 1e3;
    let metrics = metrics(port).unwrap();
    let pauses = metric(&metrics, "millstream_snapshot_pause_seconds_count").unwrap();
    let paused = metric(&metrics, "millstream_snapshot_pause_seconds_sum").unwrap();
    let state = metric(&metrics, "millstream_state_bytes").unwrap() / 1e6;
    let [resident, peak] = ["VmRSS:", "VmHWM:"].map(|what| memory(engine.id(), what) / 1e3);
    let commits = job::commit_share(engine.id());
    let mut recoveries: Vec<f64> = KILLED_AFTER
        .iter()
        .map(|seconds| {
            follow(&results, Duration::from_secs(*seconds));
            engine.kill().unwrap();
            engine.wait().unwrap();
            let killed = now_us();
            engine = start(brokers, folder.path(), port);
            (first_after(&results, killed) - killed) as f64 / 1e6
        })
        .collect();
    stop.store(true, Ordering::Relaxed);
    producing.join().unwrap();
    engine.kill().unwrap();
    engine.wait().unwrap();
    recoveries.sort_by(f64::total_cmp);
    [
        ("window state", format!("{state:.1} MB")),
        ("resident memory", format!("{resident:.0} MB, max {peak:.0} MB")),
        ("pause of a snapshot", format!("{:.2} ms, mean of {pauses:.0}", paused / pauses * 1e3)),
        (
            "latency of a forwarded event, snapshots included",
            format!("{:.0} ms p50, {:.0} ms p99, {:.0} ms max", at(0.5), at(0.99), at(1.0)),
        ),
        ("commits, share of the process's CPU", format!("{commits:.0} %")),
        (
            "SIGKILL to the first new result",
            format!("{:.2} s median, {:.2} s max of {}", recoveries[2], recoveries[4], 5),
        ),
    ]
}

fn now_us() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn start(brokers: &str, folder: &Path, port: u16) -> Child {
    Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["run", "--brokers", brokers, "--create-topics", "--history", "off"])
        .args(["--log", "warn", "--snapshot-interval", "10 s"])
        .args(["--http", &format!("127.0.0.1:{port}")])
        .current_dir(folder)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

fn producer(brokers: &str) -> ThreadedProducer<DefaultProducerContext> {
    config(brokers)
        .set("linger.ms", "2")
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .unwrap()
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    keys: i64,
    number: i64,
    window: i64,
    sent_us: i64,
) {
    // 700,001 and a power of ten have no common factor, so `keys` consecutive numbers give all keys.
    let id = number * 700_001 % keys;
    let at = DAY_BEGINS + window * HOUR + number % keys * (HOUR / keys);
    let event = format!(r#"{{"id":{id},"value":{},"at":{at},"sent":{sent_us}}}"#, number % 1_000);
    let partition = i32::try_from(number % i64::from(PARTITIONS)).unwrap();
    let record: BaseRecord<'_, (), str> =
        BaseRecord::to(topic).partition(partition).payload(&event);
    let mut record = record;
    while let Err((_, back)) = producer.send(record) {
        std::thread::sleep(Duration::from_millis(2));
        record = back;
    }
}

/// Sends [`EVENTS`] events of every key to every window.
fn fill(brokers: &str, topic: &str, keys: i64) {
    let producer = producer(brokers);
    for window in 0..WINDOWS {
        (0..keys * EVENTS).for_each(|number| send(&producer, topic, keys, number, window, 0));
    }
    producer.flush(Duration::from_secs(300)).unwrap();
}

/// Sends events at [`RATE`] to all windows in turn until `stop` is set.
fn produce(brokers: &str, topic: &str, keys: i64, stop: &AtomicBool) {
    let (producer, since, mut sent) = (producer(brokers), Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let wanted = i64::try_from(since.elapsed().as_micros()).unwrap() * RATE / 1_000_000;
        while sent < wanted {
            let sent_us = if sent % FORWARDED == 0 { now_us() } else { 0 };
            send(&producer, topic, keys, sent, sent % WINDOWS, sent_us);
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

fn consumer(brokers: &str, topic: &str) -> BaseConsumer {
    job::follow(config(brokers).set("group.id", "state"), &[topic], Offset::Beginning)
}

/// The time of sending of the next result's event, in microseconds.
fn next(results: &BaseConsumer) -> Option<i64> {
    let message = results.poll(Duration::from_millis(10))?.unwrap();
    let row: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
    row["sent"].as_i64()
}

/// Waits for the result of an event that was sent after `sent`; returns when it arrived.
fn first_after(results: &BaseConsumer, sent: i64) -> i64 {
    let deadline = Instant::now() + Duration::from_secs(120);
    while next(results).is_none_or(|sent_us| sent_us <= sent) {
        assert!(Instant::now() < deadline, "no results arrived");
    }
    now_us()
}

/// Follows the results for `time`; returns their latencies in microseconds.
fn follow(results: &BaseConsumer, time: Duration) -> Vec<i64> {
    let (since, mut latencies) = (Instant::now(), Vec::new());
    while since.elapsed() < time {
        latencies.extend(next(results).map(|sent_us| now_us() - sent_us));
    }
    assert!(!latencies.is_empty(), "no results arrived");
    latencies
}

/// Waits until every event has been processed.
fn await_rows(port: u16, rows: i64) {
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let text = metrics(port).unwrap_or_default();
        let read = metric(&text, "millstream_rows_decoded_total").unwrap_or_default();
        if read as i64 >= rows * EVENTS {
            return;
        }
        assert!(Instant::now() < deadline, "only {read} events were read in time");
        std::thread::sleep(Duration::from_millis(100));
    }
}
