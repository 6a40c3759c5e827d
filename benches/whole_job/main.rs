//! Measures the whole job, from JSON in a real Kafka to windowed results in Kafka and events in Delta.
//!
//! The input is ten million events of 84 bytes in four partitions, uncompressed and compressed. The
//! query is an hourly window by 1,000 keys with count and count(DISTINCT room). `millstream run
//! --drain` runs with history on and off. For comparison, librdkafka alone consumes the same topic.
//! `benches/run whole_job` starts a Kafka for it and writes the table of docs/performance.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/day.rs"]
mod day;
#[path = "../support/job.rs"]
mod job;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use day::{Distribution, EVENT_BYTES, KEYS, PARTITIONS, QUERY, SCHEMA};
use job::{cpu_seconds, create, median_text, spread};

const ROUNDS: usize = 5;
/// The compression types of the topics.
const CODECS: [&str; 3] = ["none", "lz4", "zstd"];

/// The duration of one run.
struct Measurement {
    what: &'static str,
    wall: Duration,
    cpu: f64,
}

fn main() {
    let Some(brokers) = job::brokers("whole_job") else { return };
    let events = day::events();
    let tag = &uuid::Uuid::new_v4().simple().to_string()[..8];
    let topics = CODECS.map(|codec| {
        let topic = format!("whole_job_{tag}_{codec}");
        create(&brokers, &topic, PARTITIONS);
        let since = Instant::now();
        day::produce(&brokers, &topic, events, KEYS, Distribution::InTurn, codec);
        let seconds = since.elapsed().as_secs_f64();
        println!("{topic}: {events} events of {EVENT_BYTES} bytes in {seconds:.1} s");
        topic
    });

    let mut measurements = Vec::new();
    for round in 0..ROUNDS {
        let round_start = measurements.len();
        measurements.push(consume(&brokers, &topics[0], events));
        for (topic, what, history) in [
            (&topics[0], "Millstream, history off", "off"),
            (&topics[0], "Millstream, history on", "on"),
            (&topics[1], "Millstream, history off, lz4", "off"),
            (&topics[2], "Millstream, history off, zstd", "off"),
        ] {
            let customer = format!("whole_{tag}_{round}_{}", measurements.len());
            measurements.push(job(&brokers, topic, &customer, what, history, events));
        }
        for measurement in &measurements[round_start..] {
            println!(
                "{:<30} {:>7.2} s {:>7.2} CPU s",
                measurement.what,
                measurement.wall.as_secs_f64(),
                measurement.cpu
            );
        }
    }
    report(&measurements, events);
}

fn consume(brokers: &str, topic: &str, events: u64) -> Measurement {
    let (since, cpu) = (Instant::now(), cpu_seconds());
    day::consume(brokers, topic, events);
    Measurement { what: "librdkafka alone", wall: since.elapsed(), cpu: cpu_seconds().0 - cpu.0 }
}

fn job(
    brokers: &str,
    topic: &str,
    customer: &str,
    what: &'static str,
    history: &str,
    events: u64,
) -> Measurement {
    let schema = SCHEMA.replace("{topic}", topic);
    let folder = job::project(customer, &schema, &[("hourly", QUERY)]);
    let (since, cpu) = (Instant::now(), cpu_seconds());
    let status = day::millstream(brokers, history).current_dir(folder.path()).status().unwrap();
    let measurement = Measurement { what, wall: since.elapsed(), cpu: cpu_seconds().1 - cpu.1 };
    assert!(status.success(), "{what}: {status}");
    let results = day::results(brokers, &format!("millstream.{customer}.hourly"));
    assert!(results == day::expected(events), "{customer}: the windows are wrong");
    if history == "on" {
        verify_history(folder.path(), customer, events);
    }
    measurement
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

/// Prints the table and, if WRITE_TO is set, writes it to docs/performance.md.
fn report(measurements: &[Measurement], events: u64) {
    let mut table = String::from(
        "| | wall | CPU | events/s | events per CPU second |\n|---|---|---|---|---|\n",
    );
    let mut seen = Vec::new();
    for Measurement { what, .. } in measurements {
        if seen.contains(what) {
            continue;
        }
        seen.push(what);
        let runs = || measurements.iter().filter(|measurement| measurement.what == *what);
        let wall = spread(runs().map(|run| run.wall.as_secs_f64()));
        let cpu = spread(runs().map(|run| run.cpu));
        let million = |seconds: f64| events as f64 / seconds / 1e6;
        writeln!(
            table,
            "| {what} | {} s | {} s | {:.2} M | {:.2} M |",
            median_text(wall, 1),
            median_text(cpu, 1),
            million(wall[1]),
            million(cpu[1])
        )
        .unwrap();
    }
    writeln!(table, "\nMedian (min to max) of {ROUNDS} rounds.").unwrap();
    println!("\n{table}");
    job::write_table("whole_job", &table);
}
