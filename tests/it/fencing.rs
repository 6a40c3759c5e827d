//! A process that was stopped (SIGSTOP), and comes back when another one has taken over: it is
//! fenced, says who took over, and has changed nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::kafka::{Kafka, Read};
use crate::support::process::{Finished, Running};
use crate::verified_load::{Load, seed};

const LONG: Duration = Duration::from_secs(120);
const OUTPUTS: [&str; 12] = [
    "log",
    "per_window",
    "sliding",
    "ratio",
    "per_sensor",
    "large",
    "large_per_window",
    "early",
    "late_counts",
    "dead_letters",
    "solo_late",
    "events_late",
];

/// All that a process leaves behind for others: what its topics say (committed), its snapshots,
/// and the logs of its history tables. Files that no log names do not count.
#[derive(PartialEq)]
struct World {
    topics: BTreeMap<&'static str, Vec<Read>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl World {
    fn of(load: &Load) -> Self {
        let topics = BTreeMap::from(OUTPUTS.map(|n| (n, load.kafka.read(&load.output(n)))));
        let mut files = BTreeMap::new();
        let data = load.project.path().join(".millstream");
        collect(&data.join("history"), &mut files, &|path| path.contains("_delta_log"));
        // A process that stops cleanly names its snapshots in its last record.
        let newest = topics["log"].last().unwrap().json().to_string();
        collect(&data.join("snapshots"), &mut files, &|path| {
            let folder = Path::new(path).parent().and_then(Path::file_name).unwrap();
            newest.contains(&*folder.to_string_lossy())
        });
        Self { topics, files }
    }

    fn is_unlike(&self, other: &Self) -> Vec<String> {
        let topics = self.topics.iter().filter(|(name, was)| other.topics[*name] != **was);
        let mut unlike: Vec<_> = topics.map(|(name, _)| (*name).to_owned()).collect();
        let names = self.files.keys().chain(other.files.keys());
        unlike.extend(names.filter(|n| self.files.get(*n) != other.files.get(*n)).cloned());
        unlike
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, Vec<u8>>, wanted: &dyn Fn(&str) -> bool) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy().into_owned();
        if path.is_dir() {
            collect(&path, files, wanted);
        } else if wanted(&name) {
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

/// Waits until so many records more are in the log.
fn wait_for_commits(load: &Load, more: i64, running: &mut Running) {
    let end = || load.kafka.ends(&load.output("log"))[0].1;
    let (enough, deadline) = (end() + more, Instant::now() + LONG);
    while end() < enough {
        assert!(!running.ended(), "{}", running.stderr());
        assert!(Instant::now() < deadline, "no commits");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_fenced_by(successor: u32, finished: Finished) {
    let output = finished.failed().output();
    assert!(output.contains("took over customer"), "{output}");
    assert!(output.contains(&format!("process {successor} on ")), "{successor}: {output}");
}

#[test]
fn a_zombie_is_fenced_says_by_whom_and_changes_nothing() {
    let Some(kafka) = Kafka::require("zombie") else { return };
    let seed = seed();
    let load = Load::new(kafka, "zombie", seed, 100);
    let mut random = StdRng::seed_from_u64(seed);
    let produced = load.during(|| {
        let mut first = load.start(&[]);
        wait_for_commits(&load, 20 + random.random_range(0..60), &mut first);
        first.signal("STOP");
        let mut second = load.start(&[]);
        wait_for_commits(&load, 40, &mut second);
        let successor = second.id();
        second.signal("TERM");
        second.wait(LONG).ok();
        let before = World::of(&load);
        first.signal("CONT");
        is_fenced_by(successor, first.wait(LONG));
        let unlike = before.is_unlike(&World::of(&load));
        assert!(unlike.is_empty(), "the zombie changed {unlike:?}");
    });
    load.prove(&produced).all_agree();
}

#[test]
fn a_zombie_does_not_disturb_its_successor() {
    let Some(kafka) = Kafka::require("zombie beside its successor") else { return };
    let seed = seed();
    let load = Load::new(kafka, "zombie", seed, 100);
    let mut random = StdRng::seed_from_u64(seed);
    let produced = load.during(|| {
        let mut living = load.start(&[]);
        for _ in 0..4 {
            wait_for_commits(&load, 10 + random.random_range(0..60), &mut living);
            living.signal("STOP");
            let mut next = load.start(&[]);
            wait_for_commits(&load, 4 + random.random_range(0..40), &mut next);
            living.signal("CONT");
            is_fenced_by(next.id(), living.wait(LONG));
            living = next;
        }
        wait_for_commits(&load, 40, &mut living);
        living.signal("TERM");
        living.wait(LONG).ok();
    });
    load.prove(&produced).all_agree();
}
