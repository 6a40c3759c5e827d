//! Measures the time from the start of `millstream run` to the first committed result.
//!
//! The topic contains events before the process starts. A `read_committed` consumer waits for the
//! first result. A cold start is the first start of a pipeline: its topics and history do not exist
//! yet, except for the results topic, at which the consumer waits. A warm start is a start of the same
//! pipeline after a clean stop, with a snapshot and new events. `benches/run start` starts a Kafka for
//! it and writes the table of docs/performance.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/job.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod job;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use job::{config, create, end, spread};
use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

const PARTITIONS: i32 = 4;
const EVENTS: u64 = 100_000;
/// Rounds that are not counted: a broker that has just started creates its first topics slowly.
const WARM_UP: usize = 5;
const ROUNDS: usize = 11;
const LIMIT: Duration = Duration::from_secs(60);

const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM events (
  id BIGINT NOT NULL, sensor BIGINT NOT NULL, sent BIGINT NOT NULL,
  at TIMESTAMP AS to_timestamp_micros(sent),
  WATERMARK FOR at AS at
) WITH (topics = '{topic}');
";
const ALERT: &str = "SELECT id, sent FROM events WHERE id % 1000 = 0";

fn main() {
    let Some(brokers) = job::brokers("start") else { return };
    let [mut cold, mut warm] = [Vec::new(), Vec::new()];
    for round in 0..WARM_UP + ROUNDS {
        let tag = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let (topic, customer) = (format!("start_{tag}"), format!("start_{tag}"));
        let results = format!("millstream.{customer}.alert");
        create(&brokers, &topic, PARTITIONS);
        create(&brokers, &results, 1);
        let schema = SCHEMA.replace("{topic}", &topic);
        let folder = job::project(&customer, &schema, &[("alert", ALERT)]);
        for (number, times) in (0..).zip([&mut cold, &mut warm]) {
            produce(&brokers, &topic, number * EVENTS);
            let consumer = at_end(&brokers, &results);
            let since = Instant::now();
            let engine = start(&brokers, folder.path());
            await_message(&consumer);
            times.push(since.elapsed());
            end(engine);
        }
        println!("cold {:?}, warm {:?}", cold.last().unwrap(), warm.last().unwrap());
        if round < WARM_UP {
            cold.clear();
            warm.clear();
        }
    }
    let mut table = String::from("| start | min | median | max |\n|---|---|---|---|\n");
    for (what, times) in [("cold start", cold), ("warm start, from a snapshot", warm)] {
        let ms = times.iter().map(|time: &Duration| time.as_secs_f64() * 1e3);
        let [min, median, max] = spread(ms);
        writeln!(table, "| {what} | {min:.0} ms | {median:.0} ms | {max:.0} ms |").unwrap();
    }
    println!("\n{table}");
    job::write_table("start", &table);
}

fn start(brokers: &str, folder: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(["run", "--brokers", brokers, "--create-topics"])
        .args(["--log", &std::env::var("LOG").unwrap_or_else(|_| "warn".to_owned())])
        .current_dir(folder)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

fn produce(brokers: &str, topic: &str, first: u64) {
    let producer: ThreadedProducer<DefaultProducerContext> =
        config(brokers).set("linger.ms", "5").create().unwrap();
    for id in first..first + EVENTS {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let event = format!(r#"{{"id":{id},"sensor":{},"sent":{}}}"#, id % 997, now.as_micros());
        let partition = i32::try_from(id % 4).unwrap();
        let mut record: BaseRecord<'_, (), str> =
            BaseRecord::to(topic).partition(partition).payload(&event);
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            std::thread::sleep(Duration::from_millis(2));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// A consumer that has read all existing results.
fn at_end(brokers: &str, topic: &str) -> BaseConsumer {
    let mut config = config(brokers);
    config.set("group.id", "start").set("enable.partition.eof", "true");
    let consumer = job::follow(&mut config, &[topic], Offset::Beginning);
    loop {
        match consumer.poll(LIMIT) {
            Some(Ok(_)) => {}
            Some(Err(KafkaError::PartitionEOF(_))) => return consumer,
            other => panic!("{topic}: {other:?}"),
        }
    }
}

fn await_message(consumer: &BaseConsumer) {
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < LIMIT, "no result arrived");
        match consumer.poll(Duration::from_millis(10)) {
            Some(Ok(message)) => {
                assert!(message.payload().is_some());
                return;
            }
            None | Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(error)) => panic!("{error}"),
        }
    }
}
