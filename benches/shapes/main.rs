//! Measures the cost of query shapes: the CPU of the whole job relative to that of the hourly window.
//!
//! The input is one day of ten million events; history is off. `millstream run --drain` runs from
//! start to exit for one shape after the other, in five rounds. `benches/run shapes` starts a Kafka
//! for it and writes the table of docs/performance.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/day.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod day;
#[path = "../support/job.rs"]
mod job;

use std::fmt::Write as _;
use std::time::Instant;

use day::{Distribution, KEYS, PARTITIONS, QUERY, SCHEMA};
use job::{cpu_seconds, create, median_text, spread};

const ROUNDS: usize = 5;
const MANY_KEYS: u64 = 1_000_000;

/// A shape: its description, whether the events have a million keys, and its queries.
type Shape = (&'static str, bool, &'static [(&'static str, &'static str)]);

const HOP: &str =
    "SELECT window_start, room, count(*) AS events, count(DISTINCT part_id) AS persons
FROM HOP(TABLE positions, DESCRIPTOR(event_time), INTERVAL '60' SECOND, INTERVAL '24' HOUR)
GROUP BY window_start, room";

const DAILY: &str =
    "SELECT window_start, part_id, count(*) AS events, count(DISTINCT room) AS rooms
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
GROUP BY window_start, part_id";

const BY_ROOM: &str = "SELECT window_start, room, count(*) AS events, min(part_id) AS lowest
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '10' MINUTE)
GROUP BY window_start, room";

const BUSY: &str = "SELECT window_start, part_id, count(*) AS events
FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
GROUP BY window_start, part_id HAVING count(*) > 10000";

const RARE: &str = "SELECT event_time, part_id FROM positions
WHERE part_id = 1500 AND room = 'hall by the lift' AND ts_time LIKE '12:00:%'";

const SHAPES: [Shape; 5] = [
    ("1 h tumble by 1,000 keys, count and distinct", false, &[("hourly", QUERY)]),
    ("1 day tumble by 1,000 keys, count and distinct", false, &[("daily", DAILY)]),
    ("24 h hop by 60 s by 8 rooms, count and distinct of 1,000", false, &[("hop", HOP)]),
    (
        "five queries over one stream",
        false,
        &[("hourly", QUERY), ("daily", DAILY), ("rooms", BY_ROOM), ("busy", BUSY), ("rare", RARE)],
    ),
    ("1 day tumble by 1 M keys, count and distinct", true, &[("daily", DAILY)]),
];

fn main() {
    let Some(brokers) = job::brokers("shapes") else { return };
    let events = day::events();
    let tag = &uuid::Uuid::new_v4().simple().to_string()[..8];
    let topics = [KEYS, MANY_KEYS].map(|keys| {
        let topic = format!("shapes_{tag}_{keys}");
        create(&brokers, &topic, PARTITIONS);
        day::produce(&brokers, &topic, events, keys, Distribution::InTurn, "none");
        topic
    });
    // (wall, CPU, CPU / CPU of the first shape of the round), by shape.
    let mut runs = vec![Vec::new(); SHAPES.len()];
    for round in 0..ROUNDS {
        let mut first = None;
        for (number, (what, many, queries)) in SHAPES.iter().enumerate() {
            let schema = SCHEMA.replace("{topic}", &topics[usize::from(*many)]);
            let folder = job::project(&format!("shapes_{tag}_{round}_{number}"), &schema, queries);
            let (since, cpu) = (Instant::now(), cpu_seconds().1);
            let mut millstream = day::millstream(&brokers, "off");
            let status = millstream.current_dir(folder.path()).status().unwrap();
            assert!(status.success(), "{what}: {status}");
            let (wall, cpu) = (since.elapsed().as_secs_f64(), cpu_seconds().1 - cpu);
            let ratio = cpu / *first.get_or_insert(cpu);
            println!("| {what} | {wall:.1} s | {cpu:.1} s | {ratio:.2} |");
            runs[number].push([wall, cpu, ratio]);
        }
    }
    let mut table = String::from("| shape | wall | CPU | CPU / first shape |\n|---|---|---|---|\n");
    for ((what, ..), runs) in SHAPES.iter().zip(&runs) {
        let of = |figure: usize| spread(runs.iter().map(|run: &[f64; 3]| run[figure]));
        let (wall, cpu, ratio) =
            (median_text(of(0), 1), median_text(of(1), 1), median_text(of(2), 2));
        writeln!(table, "| {what} | {wall} s | {cpu} s | {ratio} |").unwrap();
    }
    writeln!(table, "\nMedian (min to max) of {ROUNDS} rounds.").unwrap();
    job::write_table("shapes", &table);
}
