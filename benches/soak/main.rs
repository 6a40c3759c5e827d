//! A soak test: half of the top rate with one SIGKILL per minute, then more than the engine can process.
//!
//! The top rate is measured first, with a topic that was filled before. In part 1, events arrive at half
//! of it, and the process is killed every minute and restarted at once. In part 2, they arrive at one
//! and a half times the top rate, or as fast as the producer can send; then the load ends, and the
//! process must catch up without help. Memory and lag are sampled every second. Finally every window,
//! every alert and every row of history is compared with the produced events, and the audit must
//! succeed. `benches/run soak` starts a Kafka for it and writes the table.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

mod engine;
#[path = "../support/job.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod job;
mod load;
mod plan;
#[path = "../support/process.rs"]
mod process;
mod table;
mod verdict;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{Engine, Sample};
use load::Load;
use plan::{Disk, Measured, Plan, RunSettings};
use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use table::line;

/// The longest measurement of the top rate.
const TOP: Duration = Duration::from_secs(20);
/// How long copying to history continues after the last event.
const HISTORY: Duration = Duration::from_secs(12);

struct Soak {
    brokers: String,
    customer: String,
    load: Load,
    engine: Engine,
    settings: RunSettings,
    /// The folder of all files, if it is known, and its disk space before the first event.
    scratch: Option<(PathBuf, Disk)>,
}

/// The results of part 1.
struct Killed {
    /// Its start and its end, in seconds of the soak test.
    from: f64,
    until: f64,
    /// Events per second.
    rate: f64,
    /// Seconds from each SIGKILL to the first result that was committed after it.
    back: Vec<f64>,
    /// Seconds from each SIGKILL until the lag was less than a second's events.
    level: Vec<f64>,
}

/// The results of part 2.
struct Overloaded {
    from: f64,
    until: f64,
    rate: f64,
    /// At the end of the load: the lag in /metrics, and the actual lag.
    lag: f64,
    left: f64,
    /// The share of the process's CPU that commits take, in percent.
    commits: f64,
    /// How long catching up took; `None` if the engine did not catch up.
    caught_up: Option<Duration>,
}

fn main() {
    let Some(brokers) = job::brokers("soak") else { return };
    let settings = RunSettings::read();
    let customer = format!("soak_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    job::create(&brokers, &customer, i32::try_from(load::PARTITIONS).unwrap());
    let schema = load::SCHEMA.replace("{topic}", &customer);
    let folder = job::project(&customer, &schema, &load::QUERIES);
    let scratch = std::env::var_os("SCRATCH").map(PathBuf::from);
    let scratch = scratch.map(|folder| (folder.clone(), Disk::of(&folder)));
    let load = Load::start(&brokers, &customer);
    let producer = fill(&load, settings.fill());
    let filled = load.acknowledged();
    let engine = Engine::start(&brokers, folder.path(), process::free_port());
    let mut soak = Soak { brokers, customer, load, engine, settings, scratch };
    let top = soak.top(filled);
    let measured = Measured { filled, producer, top, disk: soak.disk() };
    println!("{filled} events at {producer}/s, top rate {top}/s, {:?}", measured.disk);
    let plan = Plan::new(&soak.settings, &measured);
    let killed = soak.kill_every_minute(&plan);
    println!("part 1: {} kills, {:.0} events/s", killed.back.len(), killed.rate);
    let overloaded = soak.overload(&plan, top);
    println!("part 2: {:.0} events/s, lag {:.0}", overloaded.rate, overloaded.lag);

    let mut table = String::from("| what | |\n|---|---|\n");
    let mut failures = Vec::new();
    let disk = soak.disk();
    table::rates(&mut table, &measured, &plan, &killed);
    table::recoveries(&mut table, &killed, &soak.engine.samples);
    table::memory_at_one_age(
        &mut table,
        &mut failures,
        &killed,
        &soak.engine.samples,
        soak.settings.between_kills(),
    );
    table::overload(&mut table, &mut failures, &overloaded, &soak.engine.samples, top);
    soak.verify(folder.path(), &mut table, &mut failures);
    if let Some(Disk { kafka, history }) = disk {
        let [kafka, history] = [kafka, history].map(|bytes| bytes as f64 / 1e9);
        let text = format!(
            "{kafka:.1} GB Kafka, {history:.1} GB history, snapshots and what compaction replaced"
        );
        line(&mut table, "disk", &text);
    }
    println!("\n{table}");
    job::write_table("soak", &table);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Sends events as fast as the producer can; returns the rate in events per second.
fn fill(load: &Load, time: Duration) -> u64 {
    let since = Instant::now();
    load.rate(load::ALL_OUT);
    std::thread::sleep(time);
    let rate = load.acknowledged() as f64 / since.elapsed().as_secs_f64();
    drain_load(load);
    rate as u64
}

/// Stops the load and waits until the broker has all events.
fn drain_load(load: &Load) {
    load.rate(0);
    let mut before = None;
    while before != Some(load.acknowledged()) {
        before = Some(load.acknowledged());
        std::thread::sleep(Duration::from_millis(500));
    }
}

impl Soak {
    /// The disk space that the events have added.
    fn disk(&self) -> Option<Disk> {
        let (folder, before) = self.scratch.as_ref()?;
        Some(Disk::of(folder).since(*before))
    }

    /// Fails before the disk is full.
    fn watch_disk(&self) {
        let limit = (self.settings.disk_gb as f64 * 1.2e9) as u64;
        assert!(
            self.disk().is_none_or(|disk| disk.all() < limit),
            "more disk space is used than DISK_GB allows"
        );
    }

    /// The rate at which the engine processes the existing events; waits until it has processed all.
    fn top(&mut self, filled: u64) -> u64 {
        let position = |sample: &Sample| sample.position.unwrap_or(0.0);
        self.engine
            .until(Duration::from_secs(60), |s| position(s) > 0.0)
            .expect("the engine processed no events");
        let first = self.engine.sample();
        self.engine.until(TOP, |s| position(s) >= filled as f64);
        let last = self.engine.sample();
        let top = (position(&last) - position(&first)) / (last.at - first.at);
        self.engine
            .until(Duration::from_secs(900), |s| position(s) >= filled as f64)
            .expect("the engine did not process all events");
        // The disk space per event includes rows that history has not written yet.
        self.engine.until(HISTORY, |_| false);
        top as u64
    }

    fn kill_every_minute(&mut self, plan: &Plan) -> Killed {
        let (every, seconds) = (self.settings.between_kills(), self.settings.seconds);
        let (from, before) = (self.engine.sample().at, self.load.acknowledged());
        let topic = format!("millstream.{}.alerts", self.customer);
        let client = verdict::committed(&self.brokers, &topic, Offset::End);
        self.load.rate(plan.rate);
        let since = Instant::now();
        let (mut back, mut level, mut next) = (Vec::new(), Vec::new(), every);
        while since.elapsed() < Duration::from_secs(seconds) {
            self.engine.watch();
            if since.elapsed() >= next {
                next += every;
                self.watch_disk();
                let killed = Instant::now();
                let timeout = Duration::from_secs(60);
                let end = self.engine.kill(|| client.fetch_watermarks(&topic, 0, timeout)).unwrap();
                let first = self.first_after(&topic, end.1, killed);
                println!(
                    "killed at {:.0} s: first result after {first:.2} s",
                    since.elapsed().as_secs_f64()
                );
                back.push(first);
                let soon = |s: &Sample| s.lag.is_some_and(|lag| lag <= plan.rate as f64);
                let rest = next.saturating_sub(since.elapsed());
                if self.engine.until(rest, soon).is_some() {
                    level.push(killed.elapsed().as_secs_f64());
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let rate = (self.load.acknowledged() - before) as f64 / since.elapsed().as_secs_f64();
        Killed { from, until: self.engine.sample().at, rate, back, level }
    }

    /// Waits for a committed result at or after `offset`; returns the seconds since `killed`.
    fn first_after(&mut self, topic: &str, offset: i64, killed: Instant) -> f64 {
        let results = verdict::committed(&self.brokers, topic, Offset::Offset(offset));
        let deadline = Instant::now() + Duration::from_secs(300);
        while results.poll(Duration::from_millis(10)).is_none_or(|result| result.is_err()) {
            assert!(Instant::now() < deadline, "no results arrived after a kill");
            self.engine.watch();
        }
        killed.elapsed().as_secs_f64()
    }

    fn overload(&mut self, plan: &Plan, top: u64) -> Overloaded {
        // The lag of part 1 does not belong to this part.
        drain_load(&self.load);
        let all = self.load.acknowledged() as f64;
        self.engine.until(Duration::from_secs(900), |s| s.position.is_some_and(|p| p >= all));
        let (from, before) = (self.engine.sample().at, self.load.acknowledged());
        self.load.rate(top * 3 / 2);
        let since = Instant::now();
        for turn in 0.. {
            if since.elapsed() >= plan.overload {
                break;
            }
            self.engine.watch();
            if turn % 20 == 0 {
                self.watch_disk();
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let rate = (self.load.acknowledged() - before) as f64 / since.elapsed().as_secs_f64();
        drain_load(&self.load);
        let (end, all) = (self.engine.sample(), self.load.acknowledged() as f64);
        let commits = self.engine.commit_share();
        let timeout = Duration::from_secs(self.settings.seconds.max(600));
        let caught_up = self
            .engine
            .until(timeout, |s| s.lag == Some(0.0) && s.position.is_some_and(|p| p >= all));
        Overloaded {
            from,
            until: end.at,
            rate,
            lag: end.lag.unwrap_or(0.0),
            left: all - end.position.unwrap_or(0.0),
            commits,
            caught_up,
        }
    }

    /// Stops the load and the engine, and verifies all output.
    fn verify(self, project: &std::path::Path, table: &mut String, failures: &mut Vec<String>) {
        let events = self.load.end();
        let peak = self.engine.end().iter().map(|s| s.resident_mb).fold(0.0, f64::max);
        let found = verdict::verify(&self.brokers, &self.customer, project, events);
        line(table, "peak memory of all samples", &format!("{peak:.0} MB"));
        line(
            table,
            "compared at the end",
            &format!(
                "{events} events; {} rows of windows, {} alerts, {} rows of history; {}",
                found.windows,
                found.alerts,
                found.history,
                if found.failures.is_empty() {
                    "all correct, and the audit succeeded"
                } else {
                    "FAILURES"
                }
            ),
        );
        failures.extend(found.failures);
    }
}
