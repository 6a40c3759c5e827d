//! The whole job, measured: JSON in a real Kafka to windowed results in Kafka and events in Delta.
//!
//! Ten million events of 84 bytes in four partitions; an hourly window by 1,000 keys with count
//! and count(DISTINCT room); `millstream run --drain`, history on and off, each beside what
//! librdkafka alone takes to consume the same topic. `benches/run whole_job` starts a Kafka for it
//! and writes the table of docs/performance.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/job.rs"]
mod job;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use job::{config, cpu_seconds, create};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

const PARTITIONS: i32 = 4;
const KEYS: u64 = 1_000;
const EVENT_BYTES: usize = 84;
const ROOMS: [&str; 8] = [
    "living room west",
    "living room east",
    "kitchen upstairs",
    "kitchen basement",
    "bathroom level 1",
    "bathroom level 2",
    "hall by the door",
    "hall by the lift",
];

const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM positions (
  part_id BIGINT NOT NULL,
  ts_date VARCHAR NOT NULL,
  ts_time VARCHAR NOT NULL,
  room VARCHAR NOT NULL,
  event_time TIMESTAMP AS to_timestamp(ts_date || ' ' || ts_time, '%Y%m%d %H:%M:%S'),
  WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND
) WITH (topics = '{topic}');
";

const QUERY: &str =
    "SELECT window_start, window_end, part_id, count(*) AS events, count(DISTINCT room) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)
GROUP BY window_start, window_end, part_id;
";

/// What one run took.
struct Figure {
    what: &'static str,
    wall: Duration,
    cpu: f64,
}

fn main() {
    let Ok(brokers) = std::env::var("MILLSTREAM_TEST_KAFKA") else {
        println!("whole_job: needs Kafka (benches/run whole_job starts one); skipped");
        return;
    };
    let events: u64 =
        std::env::var("EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let tag = &uuid::Uuid::new_v4().simple().to_string()[..8];
    let topic = format!("whole_job_{tag}");
    create(&brokers, &topic, PARTITIONS);
    let since = Instant::now();
    produce(&brokers, &topic, events);
    println!(
        "produced {events} events of {EVENT_BYTES} bytes in {:.1} s",
        since.elapsed().as_secs_f64()
    );

    let mut figures = Vec::new();
    for round in 0..2 {
        figures.push(consume(&brokers, &topic, events));
        for (what, history) in
            [("Millstream, history off", "off"), ("Millstream, history on", "on")]
        {
            let customer = format!("whole_{tag}_{round}_{history}");
            figures.push(job(&brokers, &topic, &customer, what, history, events));
        }
        for figure in figures.iter().skip(round * 3) {
            println!(
                "{:<24} {:>7.2} s {:>7.2} CPU s",
                figure.what,
                figure.wall.as_secs_f64(),
                figure.cpu
            );
        }
    }
    report(&figures, events);
}

/// One day of events in order, dealt out in turn.
fn produce(brokers: &str, topic: &str, events: u64) {
    let producer: ThreadedProducer<DefaultProducerContext> = config(brokers)
        .set("linger.ms", "20")
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "500000")
        .create()
        .unwrap();
    let mut event = String::with_capacity(EVENT_BYTES);
    let mut state = 88_172_645_463_325_252_u64;
    for number in 0..events {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let second = number * 86_400 / events;
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let (key, room) =
            (1_000 + state % KEYS, ROOMS[usize::try_from(state >> 32).unwrap() % ROOMS.len()]);
        event.clear();
        write!(
            event,
            r#"{{"part_id":{key},"ts_date":"20240501","ts_time":"{hour:02}:{minute:02}:{second:02}","room":"{room}"}}"#
        )
        .unwrap();
        assert_eq!(event.len(), EVENT_BYTES);
        let partition = i32::try_from(number % 4).unwrap();
        let mut record: BaseRecord<'_, (), str> =
            BaseRecord::to(topic).partition(partition).payload(&event);
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            std::thread::sleep(Duration::from_millis(2));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(300)).unwrap();
}

/// librdkafka alone: every message polled, nothing done with it. Its defaults would make each
/// partition rest for a second whenever the queue is full.
fn consume(brokers: &str, topic: &str, events: u64) -> Figure {
    let (since, cpu) = (Instant::now(), cpu_seconds());
    let consumer: BaseConsumer = config(brokers)
        .set("group.id", "whole_job")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("queued.max.messages.kbytes", "131072")
        .set("queued.min.messages", "1000000")
        .set("fetch.queue.backoff.ms", "5")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut seen, mut bytes) = (0, 0);
    while seen < events {
        if let Some(message) = consumer.poll(Duration::from_secs(30)) {
            bytes += message.unwrap().payload().unwrap().len();
            seen += 1;
        }
    }
    assert_eq!(u64::try_from(bytes).unwrap(), events * EVENT_BYTES as u64);
    Figure { what: "librdkafka alone", wall: since.elapsed(), cpu: cpu_seconds().0 - cpu.0 }
}

fn job(
    brokers: &str,
    topic: &str,
    customer: &str,
    what: &'static str,
    history: &str,
    events: u64,
) -> Figure {
    let schema = SCHEMA.replace("{topic}", topic);
    let folder = job::project(customer, &schema, &[("hourly", QUERY)]);
    let (since, cpu) = (Instant::now(), cpu_seconds());
    let status = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args([
            "run",
            "--brokers",
            brokers,
            "--create-topics",
            "--drain",
            "--history",
            history,
            "--log",
            "warn",
        ])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .status()
        .unwrap();
    let figure = Figure { what, wall: since.elapsed(), cpu: cpu_seconds().1 - cpu.1 };
    assert!(status.success(), "{what}: {status}");
    verify(brokers, customer, events);
    if history == "on" {
        verify_history(folder.path(), customer, events);
    }
    figure
}

/// The counts of all windows must add up to the events.
fn verify(brokers: &str, customer: &str, events: u64) {
    let consumer: BaseConsumer = config(brokers)
        .set("group.id", "whole_job")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&format!("millstream.{customer}.hourly"), 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let (mut rows, mut total) = (0_u64, 0);
    loop {
        match consumer.poll(Duration::from_secs(30)) {
            Some(Ok(message)) => {
                let row: serde_json::Value =
                    serde_json::from_slice(message.payload().unwrap()).unwrap();
                total += row["events"].as_u64().unwrap();
                rows += 1;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            other => panic!("{customer}: {other:?}"),
        }
    }
    assert_eq!(total, events, "{customer}: the counts of {rows} rows do not add up");
    assert!(rows <= 24 * KEYS);
}

fn verify_history(folder: &Path, customer: &str, events: u64) {
    let answer = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args([
            "query",
            "--format",
            "csv",
            &format!("SELECT count(*) AS n FROM {customer}.positions"),
        ])
        .current_dir(folder)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), format!("n\n{events}\n"));
}

/// Prints the table and, if asked, puts it into docs/performance.md.
fn report(figures: &[Figure], events: u64) {
    let mut table = String::from(
        "| | wall | CPU | events/s | events per CPU second |\n|---|---|---|---|---|\n",
    );
    for what in ["librdkafka alone", "Millstream, history off", "Millstream, history on"] {
        let best = figures.iter().filter(|f| f.what == what).min_by_key(|f| f.wall).unwrap();
        let million = |seconds: f64| events as f64 / seconds / 1e6;
        let wall = best.wall.as_secs_f64();
        writeln!(
            table,
            "| {what} | {wall:.1} s | {:.1} s | {:.2} M | {:.2} M |",
            best.cpu,
            million(wall),
            million(best.cpu)
        )
        .unwrap();
    }
    println!("\n{table}");
    job::write_table("whole_job", &table);
}
