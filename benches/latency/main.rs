//! Measures the latency from produce to a committed result: an alert for an event, and a window's row.
//!
//! A producer sends events at a fixed rate, each with the time at which it was sent. A
//! `read_committed` consumer reads the results and the clock. An alert's latency starts when its event
//! is sent. A window's latency starts at its end, because the event time is the time of sending and the
//! watermark has no delay. `benches/run latency` starts a Kafka for it and writes the table of
//! docs/performance.md; with BROKERS=3 it writes the table for three brokers.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/job.rs"]
mod job;

use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use job::{config, cpu_seconds, create, end};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

const PARTITIONS: i32 = 2;
/// Events a second.
const RATES: [u64; 3] = [1_000, 100_000, 500_000];
/// Duration of the measurement, after the warm-up.
const SECONDS: u64 = 20;
const WARM_UP: Duration = Duration::from_secs(5);
/// Alerts a second, whatever the rate.
const ALERTS: u64 = 100;

const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM events (
  id BIGINT NOT NULL, sensor BIGINT NOT NULL, sent BIGINT NOT NULL,
  at TIMESTAMP AS to_timestamp_micros(sent),
  WATERMARK FOR at AS at
) WITH (topics = '{topic}');
";
const ALERT: &str = "SELECT id, sent FROM events WHERE id % {every} = 0";
const WINDOW: &str = "SELECT window_end, count(*) AS events
FROM TUMBLE(TABLE events, DESCRIPTOR(at), INTERVAL '1' SECOND) GROUP BY window_start, window_end";

fn main() {
    let Some(brokers) = job::brokers("latency") else { return };
    job::warm(&brokers);
    let mut table = String::from(
        "| events/s | result | p50 | p99 | max | results | CPU of the process | commits |\n|---|---|---|---|---|---|---|---|\n",
    );
    for rate in RATES {
        let tag = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let (topic, customer) = (format!("latency_{tag}"), format!("latency_{tag}"));
        create(&brokers, &topic, PARTITIONS);
        let alert = ALERT.replace("{every}", &(rate / ALERTS).max(1).to_string());
        let schema = SCHEMA.replace("{topic}", &topic);
        let folder = job::project(&customer, &schema, &[("alert", &alert), ("per_second", WINDOW)]);
        let cpu = cpu_seconds().1;
        let since = Instant::now();
        let engine = start(&brokers, folder.path());
        let outputs = ["alert", "per_second"].map(|q| format!("millstream.{customer}.{q}"));
        await_topics(&brokers, &outputs);
        let stop = Arc::new(AtomicBool::new(false));
        let producing = {
            let (brokers, topic, stop) = (brokers.clone(), topic.clone(), stop.clone());
            std::thread::spawn(move || produce(&brokers, &topic, rate, &stop))
        };
        let [mut alerts, mut windows] = follow(&brokers, &outputs);
        stop.store(true, Ordering::Relaxed);
        let sent = producing.join().unwrap();
        let commits = job::commit_share(engine.id());
        end(engine);
        let cpu = (cpu_seconds().1 - cpu) / since.elapsed().as_secs_f64() * 100.0;
        println!("{sent} events sent at {rate}/s");
        for (what, latencies) in [("alert", &mut alerts), ("window of a second", &mut windows)] {
            latencies.sort_unstable();
            let at = |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize] as f64 / 1e3;
            writeln!(
                table,
                "| {rate} | {what} | {:.0} ms | {:.0} ms | {:.0} ms | {} | {cpu:.0} % of a core | {commits:.0} % of it |",
                at(0.5),
                at(0.99),
                at(1.0),
                latencies.len()
            )
            .unwrap();
        }
    }
    println!("\n{table}");
    let several = brokers.contains(',');
    job::write_table(if several { "latency_replicated" } else { "latency" }, &table);
}

fn now_us() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

fn start(brokers: &str, folder: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["run", "--brokers", brokers, "--create-topics", "--history", "off", "--log", "warn"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

fn await_topics(brokers: &str, topics: &[String]) {
    let consumer: BaseConsumer = config(brokers).create().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let there = || {
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(10)).unwrap();
        let names: Vec<_> = metadata.topics().iter().map(|t| t.name().to_owned()).collect();
        topics.iter().all(|topic| names.contains(topic))
    };
    while !there() {
        assert!(Instant::now() < deadline, "the engine has not created its topics");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends events at `rate` per second, in steps of a millisecond; returns their number.
fn produce(brokers: &str, topic: &str, rate: u64, stop: &AtomicBool) -> u64 {
    let producer: ThreadedProducer<DefaultProducerContext> = config(brokers)
        .set("linger.ms", "2")
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .unwrap();
    let (since, mut sent) = (Instant::now(), 0);
    let mut event = String::new();
    while !stop.load(Ordering::Relaxed) {
        let wanted = since.elapsed().as_micros() as u64 * rate / 1_000_000;
        while sent < wanted {
            event.clear();
            let (sensor, now) = (sent % 1_000, now_us());
            write!(event, r#"{{"id":{sent},"sensor":{sensor},"sent":{now}}}"#).unwrap();
            let partition = i32::try_from(sent % 2).unwrap();
            let record: BaseRecord<'_, (), str> =
                BaseRecord::to(topic).partition(partition).payload(&event);
            if producer.send(record).is_err() {
                break;
            }
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    sent
}

/// Returns the latencies of alerts and of windows, in microseconds.
fn follow(brokers: &str, topics: &[String; 2]) -> [Vec<i64>; 2] {
    let mut config = config(brokers);
    config.set("group.id", "latency");
    let consumer =
        job::follow(&mut config, &topics.each_ref().map(String::as_str), Offset::Beginning);
    let since = Instant::now();
    let mut latencies = [Vec::new(), Vec::new()];
    while since.elapsed() < WARM_UP + Duration::from_secs(SECONDS) {
        let Some(message) = consumer.poll(Duration::from_millis(10)) else { continue };
        let (message, now) = (message.unwrap(), now_us());
        let row: serde_json::Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let kind = usize::from(message.topic() == topics[1]);
        let from = match row["sent"].as_i64() {
            Some(sent) => sent,
            None => {
                let end = row["window_end"].as_str().unwrap();
                chrono::DateTime::parse_from_rfc3339(end).unwrap().timestamp_micros()
            }
        };
        if since.elapsed() > WARM_UP {
            latencies[kind].push(now - from);
        }
    }
    assert!(latencies.iter().all(|l| !l.is_empty()), "no results arrived");
    latencies
}
