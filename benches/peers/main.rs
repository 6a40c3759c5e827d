//! Compares Millstream with Flink SQL, Kafka Streams and Spark Structured Streaming on the same windows of
//! the same topic, and with librdkafka, which only reads it.
//!
//! The input is the day of events of the whole job, but distributed to its four partitions by `part_id`,
//! which is the record's key; otherwise Kafka Streams would write and read every event a second time.
//! The engines run one after the other, each from the start of its process to its exit, and each window
//! of their results is verified. `benches/run peers` starts a Kafka for it and writes the table of
//! docs/performance.md.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/day.rs"]
mod day;
#[path = "../support/job.rs"]
mod job;

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use day::{Distribution, EVENT_BYTES, KEYS, PARTITIONS, QUERY, SCHEMA, Windows};
use job::{cpu_seconds, create, median_text, spread};

/// A run that takes longer is taken for hung.
const LIMIT: Duration = Duration::from_secs(1_800);

/// The folder with a folder per peer, which has its pom.xml and its class.
const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");

/// A peer: a class in a folder of its name. Its arguments are the brokers, the topic, its results topic
/// and a folder for its state.
struct Peer {
    folder: &'static str,
    class: &'static str,
    what: &'static str,
    /// The artifact whose version is the peer's version.
    artifact: &'static str,
    settings: &'static str,
    rooms: Rooms,
}

/// How a peer counts distinct rooms.
#[derive(Clone, Copy, PartialEq)]
enum Rooms {
    Exact,
    ApproximateOrNone,
}

const PEERS: [Peer; 3] = [
    Peer {
        folder: "flink",
        class: "Flink",
        what: "Flink SQL",
        artifact: "flink-table-runtime",
        settings: "parallelism 1, mini-batch, object reuse, checkpoint every second, exactly-once sink",
        rooms: Rooms::Exact,
    },
    Peer {
        folder: "streams",
        class: "Streams",
        what: "Kafka Streams",
        artifact: "kafka-streams",
        settings: "count only; one thread, exactly_once_v2, commit every second, store in memory, cache",
        rooms: Rooms::ApproximateOrNone,
    },
    Peer {
        folder: "spark",
        class: "Spark",
        what: "Spark Structured Streaming",
        artifact: "spark-sql_2.13",
        settings: "local[1], AvailableNow in one batch, approx_count_distinct",
        rooms: Rooms::ApproximateOrNone,
    },
];

/// The resources that one run used.
struct Run {
    wall: f64,
    cpu: f64,
    peak_bytes: f64,
}

/// A line of the table.
struct Line {
    what: String,
    settings: &'static str,
    runs: Vec<Run>,
    rows: String,
}

/// The topic and the expected content of its windows.
struct Load {
    brokers: String,
    topic: String,
    tag: String,
    events: u64,
    expected: Windows,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, "consume", brokers, topic, events] = &*args.iter().map(|a| &**a).collect::<Vec<_>>()
    {
        return day::consume(brokers, topic, events.parse().unwrap());
    }
    let Some(brokers) = job::brokers("peers") else { return };
    let rounds: u64 = std::env::var("ROUNDS").map_or(1, |number| number.parse().unwrap());
    let events = day::events();
    let peers: Vec<(&Peer, String)> = selected_peers().into_iter().map(|p| (p, fetch(p))).collect();

    let tag = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
    let topic = format!("peers_{tag}");
    create(&brokers, &topic, PARTITIONS);
    day::produce(&brokers, &topic, events, KEYS, Distribution::ByKey, "none");
    println!("produced {events} events of {EVENT_BYTES} bytes");
    let load = Load { brokers, topic, tag, events, expected: day::expected(events) };
    job::warm(&load.brokers);
    // A broker is slow at the first read; this read keeps it out of the first measurement.
    consume(&load);

    let mut lines = vec![line("Millstream", env!("CARGO_PKG_VERSION"), "history off, `--drain`")];
    for (peer, _) in &peers {
        lines.push(line(peer.what, &version(peer.folder, peer.artifact), peer.settings));
    }
    let librdkafka = rdkafka::util::get_rdkafka_version().1;
    lines.push(line("librdkafka alone", &librdkafka, "polls every message and drops it"));
    for round in 0..rounds {
        let mut done = vec![millstream(&load, round)];
        done.extend(peers.iter().map(|(peer, jars)| run(peer, jars, &load, round)));
        done.push((consume(&load), String::from("-")));
        for (line, (run, rows)) in lines.iter_mut().zip(done) {
            println!("{}: {:.1} s, {:.1} CPU s, {rows}", line.what, run.wall, run.cpu);
            line.runs.push(run);
            if rows != "correct" || line.rows.is_empty() {
                line.rows = rows;
            }
        }
    }
    let table = table(&lines, events, rounds);
    println!("\n{table}");
    job::write_table("peers", &table);
}

/// The peers named in PEERS, or all.
fn selected_peers() -> Vec<&'static Peer> {
    let Ok(names) = std::env::var("PEERS") else { return PEERS.iter().collect() };
    let find = |name| PEERS.iter().find(|p| p.folder == name);
    names
        .split_whitespace()
        .map(|name| find(name).unwrap_or_else(|| panic!("PEERS names an unknown peer: {name}")))
        .collect()
}

/// The folder with a peer's jars and class.
fn fetch(peer: &Peer) -> String {
    let output = Command::new(format!("{HERE}/fetch"))
        .arg(peer.folder)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    if !output.status.success() {
        println!(
            "peers: {} cannot run; PEERS=\"flink streams spark\" selects the peers to run",
            peer.what
        );
        std::process::exit(1);
    }
    String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
}

/// The version of an artifact in a peer's pom.xml.
fn version(folder: &str, artifact: &str) -> String {
    version_in(&format!("{HERE}/{folder}/pom.xml"), artifact)
}

fn version_in(pom: &str, artifact: &str) -> String {
    let text = std::fs::read_to_string(pom).unwrap();
    let (_, rest) = text.split_once(&format!("<artifactId>{artifact}</artifactId>")).unwrap();
    let (_, rest) = rest.split_once("<version>").unwrap();
    rest.split_once('<').unwrap().0.to_owned()
}

fn line(what: &str, version: &str, settings: &'static str) -> Line {
    let what = format!("{what} {version}");
    Line { what, settings, runs: Vec::new(), rows: String::new() }
}

fn millstream(load: &Load, round: u64) -> (Run, String) {
    let customer = format!("peers_{}_{round}", load.tag);
    let schema = SCHEMA.replace("{topic}", &load.topic);
    let folder = job::project(&customer, &schema, &[("hourly", QUERY)]);
    let mut command = day::millstream(&load.brokers, "off");
    let run = measure("Millstream", command.current_dir(folder.path()), folder.path());
    (run, verify_results(load, &format!("millstream.{customer}.hourly"), Rooms::Exact))
}

fn run(peer: &Peer, jars: &str, load: &Load, round: u64) -> (Run, String) {
    let results = format!("{}_{}_{round}", peer.folder, load.tag);
    create(&load.brokers, &results, 1);
    let scratch = tempfile::tempdir().unwrap();
    let mut java = Command::new("java");
    java.args(["-Xmx2g", "-XX:+UseParallelGC", "-cp", &format!("{jars}/classes:{jars}/lib/*")]);
    // Flink and Spark use reflection on classes that the JDK encapsulates.
    for package in [
        "java.lang",
        "java.lang.invoke",
        "java.lang.reflect",
        "java.io",
        "java.net",
        "java.nio",
        "java.time",
        "java.util",
        "java.util.concurrent",
        "java.util.concurrent.atomic",
        "sun.nio.ch",
        "sun.nio.cs",
        "sun.security.action",
        "sun.util.calendar",
    ] {
        java.arg(format!("--add-opens=java.base/{package}=ALL-UNNAMED"));
    }
    java.args([peer.class, &load.brokers, &load.topic, &results]).arg(scratch.path());
    let run = measure(peer.what, &mut java, scratch.path());
    (run, verify_results(load, &results, peer.rooms))
}

fn consume(load: &Load) -> Run {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["consume", &load.brokers, &load.topic, &load.events.to_string()]);
    measure("librdkafka alone", &mut command, scratch.path())
}

/// Runs a process to its end. Its output is median_text only if it fails.
fn measure(what: &str, command: &mut Command, scratch: &Path) -> Run {
    let log = scratch.join("output.log");
    let output = File::create(&log).unwrap();
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
    let (since, cpu, mut peak_bytes) = (Instant::now(), cpu_seconds().1, 0.0);
    let mut child = command.spawn().unwrap();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if since.elapsed() > LIMIT {
            child.kill().unwrap();
        }
        peak_bytes = peak_memory(child.id()).unwrap_or(peak_bytes);
        std::thread::sleep(Duration::from_millis(10));
    };
    let run = Run { wall: since.elapsed().as_secs_f64(), cpu: cpu_seconds().1 - cpu, peak_bytes };
    if !status.success() {
        let text = std::fs::read_to_string(&log).unwrap();
        let tail = text.lines().rev().take(40).collect::<Vec<_>>();
        tail.iter().rev().for_each(|line| println!("{line}"));
        panic!("{what}: {status}");
    }
    run
}

/// The peak memory of a process in bytes; `None` if it has ended.
fn peak_memory(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    kib("VmHWM:", &status).map(|kib| kib * 1024.0)
}

fn kib(name: &str, text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Compares the windows of a results topic with the expected ones; returns a word for the table.
fn verify_results(load: &Load, topic: &str, rooms: Rooms) -> String {
    let mut results = day::results(&load.brokers, topic);
    let windows = load.expected.len();
    let wrong = load.expected.iter().filter(|(at, (count, distinct))| {
        let found = results.remove(at);
        !found.is_some_and(|f| f.0 == *count && (rooms != Rooms::Exact || f.1 == *distinct))
    });
    let wrong = wrong.count() + results.len();
    if wrong == 0 { "correct".into() } else { format!("wrong: {wrong} of {windows} windows") }
}

fn table(lines: &[Line], events: u64, rounds: u64) -> String {
    let mut table = String::from(
        "| engine | settings | wall | CPU | peak memory | events per CPU second | CPU / Millstream | rows |
|---|---|---|---|---|---|---|---|\n",
    );
    let base = spread(lines[0].runs.iter().map(|run| run.cpu))[1];
    for Line { what, settings, runs, rows } in lines {
        let cpu = spread(runs.iter().map(|run| run.cpu));
        writeln!(
            table,
            "| {what} | {settings} | {} s | {} s | {:.0} MiB | {:.0} k | {:.1} | {rows} |",
            median_text(spread(runs.iter().map(|run| run.wall)), 1),
            median_text(cpu, 1),
            spread(runs.iter().map(|run| run.peak_bytes))[2] / 1_048_576.0,
            events as f64 / cpu[1] / 1e3,
            cpu[1] / base,
        )
        .unwrap();
    }
    let cores = std::thread::available_parallelism().unwrap();
    let memory = kib("MemTotal:", &std::fs::read_to_string("/proc/meminfo").unwrap()).unwrap();
    let kafka = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/kafka/pom.xml");
    let kafka = version_in(kafka, "kafka_2.13");
    let java = Command::new("java").arg("--version").output().unwrap().stdout;
    let java = String::from_utf8(java).unwrap();
    writeln!(
        table,
        "\n{events} events; {cores} cores, {:.0} GiB of memory, Kafka {kafka}, {} with -Xmx2g and ParallelGC; {}.",
        memory / 1_048_576.0,
        java.lines().next().unwrap(),
        if rounds == 1 {
            "one round".into()
        } else {
            format!("median (min to max) of {rounds} rounds")
        }
    )
    .unwrap();
    table
}
