//! SIGKILL at every named point (`millstream::failpoint::POINTS`), under load, against a real
//! Kafka, twice in a row during recovery; then everything must be what a batch over all that was
//! produced says. Replays are compared epoch by epoch on the way (`--check-replays`).
//!
//! MILLSTREAM_KILLS says how many (30), MILLSTREAM_SEED repeats a run's choices. A round of thirty
//! has topics, state and history of its own; from six rounds on every point must have been met.

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
/// So many kills meet every point.
const ALL_POINTS: usize = 6 * ROUND;
/// Events of a partition in a tenth of a second.
const RATE: usize = 100;
/// How often a point that was not reached is tried.
const ATTEMPTS: usize = 4;
const LONG: Duration = Duration::from_secs(120);

/// What a run of the test found.
#[derive(Default)]
struct Account {
    /// Kills by point; "random" stands for those at any moment.
    kills: BTreeMap<&'static str, usize>,
    missed: Vec<&'static str>,
    events: usize,
    compared: usize,
    lost: usize,
    twice: usize,
    /// From a kill to the next process's first commit.
    recoveries: Vec<Duration>,
}

impl Account {
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
             {} lost, {} twice; {} recoveries, p50 {:.1?} p99 {:.1?} max {:.1?}; MILLSTREAM_SEED={seed}",
            self.count(),
            self.kills.keys().filter(|point| POINTS.contains(point)).count(),
            POINTS.len(),
            self.events,
            self.compared,
            self.lost,
            self.twice,
            self.recoveries.len(),
            at(0.5),
            at(0.99),
            at(1.0),
        );
    }
}

#[test]
fn killed_at_every_point_nothing_is_lost_and_nothing_is_twice() {
    let Some(kafka) = Kafka::require("crash") else { return };
    let wanted = std::env::var("MILLSTREAM_KILLS").ok().and_then(|kills| kills.parse().ok());
    let (wanted, seed) = (wanted.unwrap_or(ROUND), seed());
    let mut random = StdRng::seed_from_u64(seed);
    let mut account = Account::default();
    let mut points = Vec::new();
    for round in 0.. {
        let (before, left) = (account.count(), wanted.saturating_sub(account.count()));
        if left == 0 {
            break;
        }
        let load = Load::new(kafka.clone(), "crash", seed ^ round, RATE);
        let mut driver = Driver {
            load: &load,
            random: &mut random,
            points: &mut points,
            account: &mut account,
            last_kill: None,
            started: Vec::new(),
        };
        let produced = driver.round(left.min(ROUND));
        let verdict = load.prove(&produced);
        account.events += produced.count();
        account.compared += verdict.compared;
        account.lost += verdict.lost;
        account.twice += verdict.twice;
        println!("round {round}: {} kills, {} events", account.count() - before, produced.count());
        if verdict.lost + verdict.twice > 0 {
            account.print(seed);
        }
        verdict.all_agree();
    }
    account.print(seed);
    println!("crash: not reached at times: {:?}", account.missed);
    if wanted >= ALL_POINTS {
        let unmet: Vec<_> = POINTS.iter().filter(|p| !account.kills.contains_key(*p)).collect();
        assert!(unmet.is_empty(), "never killed at {unmet:?}");
    }
}

/// When each process's first commit was seen.
type Commits = Mutex<HashMap<u32, Instant>>;

struct Driver<'a> {
    load: &'a Load,
    random: &'a mut StdRng,
    /// Points to come; refilled when it is empty.
    points: &'a mut Vec<&'static str>,
    account: &'a mut Account,
    last_kill: Option<Instant>,
    /// Processes, and the kill that each came after.
    started: Vec<(u32, Instant)>,
}

impl Driver<'_> {
    /// Kills so many times under load; gives what was produced.
    fn round(&mut self, kills: usize) -> Produced {
        let enough = self.account.count() + kills;
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
                while self.account.count() < enough {
                    let point = self.next_point();
                    self.kill_at(point, &commits);
                    if point.starts_with("recovery.") && self.account.count() < enough {
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
            self.account.recoveries.extend(commits.get(&id).map(|first| *first - killed));
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
                *self.account.kills.entry(point).or_default() += 1;
                return;
            }
            self.account.missed.push(point);
            self.kill_at_random(commits);
        }
        println!("not reached in {ATTEMPTS} attempts: {point}");
    }

    /// A process that is to die at a point, at the latest when it is told to stop. False: it did
    /// not pass there.
    fn run(&mut self, point: &str, crash: &str, commits: &Commits) -> bool {
        let mut running = self.start(&[("MILLSTREAM_CRASH", crash)]);
        // Of a process that has recovered; one that has not, stops without a snapshot.
        let patience = match point.starts_with("recovery.") {
            true => Duration::ZERO,
            false => self.patience(point),
        };
        let (id, deadline) = (running.id(), Instant::now() + LONG);
        while !running.ended() {
            let recovered = commits.lock().unwrap().get(&id).copied();
            if recovered.is_some_and(|first| first.elapsed() > patience) {
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

    /// How long to wait before asking the process to stop, which passes most points once more.
    fn patience(&mut self, point: &str) -> Duration {
        let in_background = ["snapshot.", "log.", "delta."].iter().any(|p| point.starts_with(p));
        let millis = match in_background {
            // History commits every ten seconds, and a snapshot waits for it.
            true if self.random.random_bool(0.25) => 13_000,
            true => self.random.random_range(500..3_000),
            false => 8_000,
        };
        Duration::from_millis(millis)
    }

    /// A compaction beside a running pipeline; both die.
    fn compact(&mut self, crash: &str, commits: &Commits) -> bool {
        let running = self.start_recovered(commits);
        let environment = [("MILLSTREAM_CRASH", crash)];
        let folder = self.load.project.path();
        let compacting = process::start_with_env(folder, &["compact", "--vacuum"], &environment);
        let finished = compacting.wait(LONG);
        self.kill(running);
        finished.status.signal() == Some(9)
    }

    /// After a while in which epochs were committed that the next start runs again.
    fn kill_at_random(&mut self, commits: &Commits) {
        let running = self.start_recovered(commits);
        std::thread::sleep(Duration::from_millis(self.random.random_range(500..2_500)));
        self.kill(running);
    }

    /// A process that has committed something.
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
        assert!(!running.ended(), "it ended by itself\n{}", running.stderr());
        running.kill();
        self.last_kill = Some(Instant::now());
        *self.account.kills.entry("random").or_default() += 1;
    }
}

/// The last pass of a point at which it is worth dying: what a process makes in seconds.
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
