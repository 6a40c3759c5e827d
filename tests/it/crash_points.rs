//! Kills the process with SIGKILL at every crash point (`millstream::failpoint::POINTS`), under load, against
//! a real Kafka, twice in a row during recovery. Then all output must equal a batch over everything that was
//! produced. Replays are compared epoch by epoch (`--check-replays`).
//!
//! MILLSTREAM_KILLS is the number of kills (30); MILLSTREAM_SEED repeats the choices of a run. A round of
//! thirty kills has topics, state and history of its own. From six rounds on, every point must be reached.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::ExitStatusExt;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use millstream::failpoint::POINTS;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::support::kafka::Kafka;
use crate::support::process::{self, Running};
use crate::verified_load::{Load, Produced, Stop, seed};

const ROUND: usize = 30;
/// With this many kills, every point must be reached.
const ALL_POINTS: usize = 6 * ROUND;
/// Events per partition in a tenth of a second.
const RATE: usize = 100;
/// Attempts to reach a point.
const ATTEMPTS: usize = 4;
const LONG: Duration = Duration::from_secs(120);

/// The results of a run.
#[derive(Default)]
struct KillReport {
    /// Kills by point; "random" stands for random moments.
    kills: BTreeMap<&'static str, usize>,
    missed: Vec<&'static str>,
    events: usize,
    compared: usize,
    lost: usize,
    duplicated: usize,
    /// Times from a kill to the first commit of the next process.
    recoveries: Vec<Duration>,
}

impl KillReport {
    fn count(&self) -> usize {
        self.kills.values().sum()
    }

    fn print(&mut self, seed: u64) {
        let mut families: BTreeMap<&str, usize> = BTreeMap::new();
        for (point, kills) in &self.kills {
            *families.entry(point.split('.').next().unwrap()).or_default() += kills;
        }
        self.recoveries.sort();
        let at = |share: f64| {
            let last = self.recoveries.len().saturating_sub(1);
            self.recoveries.get((last as f64 * share) as usize).copied().unwrap_or_default()
        };
        println!("crash: kills by point: {:?}", self.kills);
        println!(
            "crash: {} kills ({families:?}) at {} of {} points, {} events verified in {} rows, \
             {} lost, {} duplicated; {} recoveries, p50 {:.1?} p99 {:.1?} max {:.1?}; MILLSTREAM_SEED={seed}",
            self.count(),
            self.kills.keys().filter(|point| POINTS.contains(point)).count(),
            POINTS.len(),
            self.events,
            self.compared,
            self.lost,
            self.duplicated,
            self.recoveries.len(),
            at(0.5),
            at(0.99),
            at(1.0),
        );
    }
}

#[test]
fn kills_at_every_point_lose_and_duplicate_nothing() {
    let Some(kafka) = Kafka::require("crash") else { return };
    let wanted = std::env::var("MILLSTREAM_KILLS").ok().and_then(|kills| kills.parse().ok());
    let (wanted, seed) = (wanted.unwrap_or(ROUND), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let mut report = KillReport::default();
    let mut points = Vec::new();
    for round in 0.. {
        let (before, left) = (report.count(), wanted.saturating_sub(report.count()));
        if left == 0 {
            break;
        }
        let load = Load::new(kafka.clone(), "crash", seed ^ round, RATE);
        let mut driver = Driver {
            load: &load,
            random: &mut random,
            points: &mut points,
            report: &mut report,
            last_kill: None,
            started: Vec::new(),
        };
        let produced = driver.round(left.min(ROUND));
        let verdict = load.verify(&produced);
        report.events += produced.count();
        report.compared += verdict.compared;
        report.lost += verdict.lost;
        report.duplicated += verdict.duplicated;
        println!("round {round}: {} kills, {} events", report.count() - before, produced.count());
        if verdict.lost + verdict.duplicated > 0 {
            report.print(seed);
        }
        verdict.all_agree();
    }
    report.print(seed);
    println!("crash: points that some attempts did not reach: {:?}", report.missed);
    if wanted >= ALL_POINTS {
        let unreached: Vec<_> = POINTS.iter().filter(|p| !report.kills.contains_key(*p)).collect();
        assert!(unreached.is_empty(), "points never reached: {unreached:?}");
    }
}

/// The time of each process's first commit, by process id.
type Commits = Mutex<HashMap<u32, Instant>>;

struct Driver<'a> {
    load: &'a Load,
    random: &'a mut StdRng,
    /// The remaining points; refilled when empty.
    points: &'a mut Vec<&'static str>,
    report: &'a mut KillReport,
    last_kill: Option<Instant>,
    /// Processes, with the time of the kill before each.
    started: Vec<(u32, Instant)>,
}

impl Driver<'_> {
    /// Makes `kills` kills under load; returns what was produced.
    fn round(&mut self, kills: usize) -> Produced {
        let enough = self.report.count() + kills;
        let stop = AtomicBool::new(false);
        let (log, kafka) = (self.load.output("log"), self.load.kafka.clone());
        let commits = Commits::default();
        let load = self.load;
        let produced = std::thread::scope(|scope| {
            scope.spawn(|| {
                kafka.follow(&log, &stop, |record| {
                    let id = record.json()["process"]["id"].as_u64().unwrap_or_default();
                    let id = u32::try_from(id).unwrap();
                    commits.lock().unwrap().entry(id).or_insert_with(Instant::now);
                })
            });
            let _stopping = Stop(&stop);
            load.during(|| {
                while self.report.count() < enough {
                    let point = self.next_point();
                    self.kill_at(point, &commits);
                    if point.starts_with("recovery.") && self.report.count() < enough {
                        let recovering = |p: &&&str| p.starts_with("recovery.");
                        let all: Vec<_> = POINTS.iter().filter(recovering).collect();
                        let again = all[self.random.random_range(0..all.len())];
                        self.kill_at(again, &commits);
                    }
                }
            })
        });
        let commits = commits.into_inner().unwrap();
        for (id, killed) in self.started.drain(..) {
            self.report.recoveries.extend(commits.get(&id).map(|first| *first - killed));
        }
        produced
    }

    fn next_point(&mut self) -> &'static str {
        if self.points.is_empty() {
            self.points.extend(POINTS);
            self.points.shuffle(self.random);
        }
        self.points.pop().unwrap()
    }

    fn kill_at(&mut self, point: &'static str, commits: &Commits) {
        for attempt in 0..ATTEMPTS {
            let pass = if attempt < 2 { self.random.random_range(1..=passes(point)) } else { 1 };
            let crash = format!("{point}:{pass}");
            let reached = match point.split('.').next() {
                Some("compaction" | "vacuum") => self.compact(&crash, commits),
                _ => self.run(point, &crash, commits),
            };
            if reached {
                *self.report.kills.entry(point).or_default() += 1;
                return;
            }
            self.report.missed.push(point);
            self.kill_at_random(commits);
        }
        println!("not reached in {ATTEMPTS} attempts: {point}");
    }

    /// Runs a process that dies at a point, at the latest when it is asked to stop. Returns false if it did
    /// not reach the point.
    fn run(&mut self, point: &str, crash: &str, commits: &Commits) -> bool {
        let mut running = self.start(&[("MILLSTREAM_CRASH", crash)]);
        // The wait starts after recovery: a process that has not recovered stops without a snapshot.
        let stop_after = match point.starts_with("recovery.") {
            true => Duration::ZERO,
            false => self.stop_after(point),
        };
        let (id, deadline) = (running.id(), Instant::now() + LONG);
        while !running.ended() {
            let recovered = commits.lock().unwrap().get(&id).copied();
            if recovered.is_some_and(|first| first.elapsed() > stop_after) {
                break;
            }
            assert!(Instant::now() < deadline, "{crash}: no commit\n{}", running.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        if !running.ended() {
            running.signal("TERM");
        }
        let finished = running.wait(LONG);
        let killed = finished.status.signal() == Some(9);
        assert!(killed || finished.status.success(), "{crash}\n{}", finished.stderr);
        self.last_kill = killed.then(Instant::now);
        killed
    }

    /// The time before the process is asked to stop, which reaches most points once more.
    fn stop_after(&mut self, point: &str) -> Duration {
        let in_background = ["snapshot.", "log.", "delta."].iter().any(|p| point.starts_with(p));
        let millis = match in_background {
            // History is committed every ten seconds, and a snapshot waits for it.
            true if self.random.random_bool(0.25) => 13_000,
            true => self.random.random_range(500..3_000),
            false => 8_000,
        };
        Duration::from_millis(millis)
    }

    /// Runs a compaction while a pipeline runs; both are killed.
    fn compact(&mut self, crash: &str, commits: &Commits) -> bool {
        let running = self.start_recovered(commits);
        let environment = [("MILLSTREAM_CRASH", crash)];
        let folder = self.load.project.path();
        let compacting = process::start_with_env(folder, &["compact", "--vacuum"], &environment);
        let finished = compacting.wait(LONG);
        self.kill(running);
        finished.status.signal() == Some(9)
    }

    /// Kills a process after it has committed epochs that the next start runs again.
    fn kill_at_random(&mut self, commits: &Commits) {
        let running = self.start_recovered(commits);
        std::thread::sleep(Duration::from_millis(self.random.random_range(500..2_500)));
        self.kill(running);
    }

    /// Starts a process and waits for its first commit.
    fn start_recovered(&mut self, commits: &Commits) -> Running {
        let mut running = self.start(&[]);
        let deadline = Instant::now() + LONG;
        while !commits.lock().unwrap().contains_key(&running.id()) {
            assert!(!running.ended() && Instant::now() < deadline, "{}", running.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
        running
    }

    fn start(&mut self, environment: &[(&str, &str)]) -> Running {
        let running = self.load.start(environment);
        self.started.extend(self.last_kill.take().map(|killed| (running.id(), killed)));
        running
    }

    fn kill(&mut self, mut running: Running) {
        assert!(!running.ended(), "the engine ended by itself\n{}", running.stderr());
        running.kill();
        self.last_kill = Some(Instant::now());
        *self.report.kills.entry("random").or_default() += 1;
    }
}

/// The highest useful pass number of a point: how often a process reaches it within seconds.
fn passes(point: &str) -> u64 {
    match point {
        "epoch.result.sent" => 3_000,
        "epoch.dead_letter.sent" => 60,
        "epoch.late.sent" => 20,
        "epoch.offsets" | "epoch.offsets.sent" => 2,
        _ if point.starts_with("epoch.") => 40,
        _ if point.starts_with("recovery.rerun") => 20,
        "snapshot.file" | "snapshot.file.written" => 15,
        "delta.file" | "delta.file.written" | "delta.commit" | "delta.committed" => 10,
        "delta.files.written" => 10,
        "compaction.begin" | "vacuum.begin" | "vacuum.chosen" | "vacuum.done" => 10,
        _ => 1,
    }
}
