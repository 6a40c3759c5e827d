//! A process that was stopped (SIGSTOP) and resumes after another one has taken over: it is fenced, names
//! its successor, and changes nothing.

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

/// The durable output of a process: the committed records of its topics, its snapshots, and the logs of its
/// history tables. Files that no log names are not included.
#[derive(PartialEq)]
struct DurableOutput {
    topics: BTreeMap<&'static str, Vec<Read>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl DurableOutput {
    fn of(load: &Load) -> Self {
        let topics = BTreeMap::from(OUTPUTS.map(|n| (n, load.kafka.read(&load.output(n)))));
        let mut files = BTreeMap::new();
        let data = load.project.path().join(".millstream");
        collect(&data.join("history"), &mut files, &|path| path.contains("_delta_log"));
        // A process that stops cleanly names its snapshots in its last progress record.
        let newest = topics["log"].last().unwrap().json().to_string();
        collect(&data.join("snapshots"), &mut files, &|path| {
            let folder = Path::new(path).parent().and_then(Path::file_name).unwrap();
            newest.contains(&*folder.to_string_lossy())
        });
        Self { topics, files }
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        let topics = self.topics.iter().filter(|(name, was)| other.topics[*name] != **was);
        let mut differences: Vec<_> = topics.map(|(name, _)| (*name).to_owned()).collect();
        let names = self.files.keys().chain(other.files.keys());
        differences.extend(names.filter(|n| self.files.get(*n) != other.files.get(*n)).cloned());
        differences
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

/// Waits until the log has `more` additional records.
fn wait_for_commits(load: &Load, more: i64, running: &mut Running) {
    let end = || load.kafka.ends(&load.output("log"))[0].1;
    let (target, deadline) = (end() + more, Instant::now() + LONG);
    while end() < target {
        assert!(!running.ended(), "{}", running.stderr());
        assert!(Instant::now() < deadline, "timed out waiting for commits");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn assert_fenced_by(successor: u32, finished: Finished) {
    let output = finished.failed().output();
    assert!(output.contains("took over customer"), "{output}");
    assert!(output.contains(&format!("process {successor} on ")), "{successor}: {output}");
}

#[test]
fn a_zombie_is_fenced_names_its_successor_and_changes_nothing() {
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
        let before = DurableOutput::of(&load);
        first.signal("CONT");
        assert_fenced_by(successor, first.wait(LONG));
        let differences = before.differences(&DurableOutput::of(&load));
        assert!(differences.is_empty(), "the zombie changed {differences:?}");
    });
    load.verify(&produced).all_agree();
}

#[test]
fn a_zombie_does_not_affect_its_successor() {
    let Some(kafka) = Kafka::require("zombie beside its successor") else { return };
    let seed = seed();
    let load = Load::new(kafka, "zombie", seed, 100);
    let mut random = StdRng::seed_from_u64(seed);
    let produced = load.during(|| {
        let mut active = load.start(&[]);
        for _ in 0..4 {
            wait_for_commits(&load, 10 + random.random_range(0..60), &mut active);
            active.signal("STOP");
            let mut next = load.start(&[]);
            wait_for_commits(&load, 4 + random.random_range(0..40), &mut next);
            active.signal("CONT");
            assert_fenced_by(next.id(), active.wait(LONG));
            active = next;
        }
        wait_for_commits(&load, 40, &mut active);
        active.signal("TERM");
        active.wait(LONG).ok();
    });
    load.verify(&produced).all_agree();
}
