//! The final verification: every window and every alert exactly once, the audit, the rows of history.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rdkafka::Offset;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;

use crate::engine;
use crate::job::{self, config};
use crate::load::{self, BEGINNING_US, KEYS, WINDOW_US};

/// What was compared, and the differences.
pub struct Verdict {
    pub windows: u64,
    pub alerts: u64,
    pub history: u64,
    pub failures: Vec<String>,
}

/// Verifies all output of `events` events.
pub fn verify(brokers: &str, customer: &str, project: &Path, events: u64) -> Verdict {
    let mut verdict = Verdict { windows: 0, alerts: 0, history: 0, failures: Vec::new() };
    let output = |query| format!("millstream.{customer}.{query}");
    windows(brokers, &output("windows"), events, &mut verdict);
    alerts(brokers, &output("alerts"), events, &mut verdict);
    let count = format!("SELECT count(*) FROM {customer}.events");
    let counted = millstream(project, &["query", "--format", "csv", &count]);
    verdict.history = counted.ok().and_then(|s| s.lines().last()?.parse().ok()).unwrap_or(0);
    if verdict.history != events {
        let rows = verdict.history;
        verdict.failures.push(format!("history has {rows} rows of {events} events"));
    }
    if let Err(output) = millstream(project, &["audit", "--brokers", brokers]) {
        verdict.failures.push(format!("the audit failed: {output}"));
    }
    verdict
}

fn windows(brokers: &str, topic: &str, events: u64, verdict: &mut Verdict) {
    let expected = load::expected(events);
    let mut seen: HashMap<(usize, usize), u64> = HashMap::new();
    let (mut wrong, mut example) = (0, None);
    each(brokers, topic, |row| {
        let start = row["window_start"].as_str().unwrap();
        let start = chrono::DateTime::parse_from_rfc3339(start).unwrap().timestamp_micros();
        let window = (u64::try_from(start).unwrap() - BEGINNING_US) / WINDOW_US;
        let at = (usize::try_from(window).unwrap(), row["key"].as_u64().unwrap() as usize);
        *seen.entry(at).or_default() += 1;
        let [events, total, numbers] =
            ["events", "total", "numbers"].map(|column| row[column].as_u64().unwrap());
        let found = (events, total, numbers);
        let wanted = expected.get(at.0).map(|keys| keys[at.1]);
        let wanted = wanted.map(|(events, total)| (events, total, events));
        if wanted != Some(found) {
            wrong += 1;
            example
                .get_or_insert(format!("window and key {at:?}: {found:?} instead of {wanted:?}"));
        }
    });
    let all = expected.iter().flatten().filter(|(count, _)| *count > 0).count();
    let twice = seen.values().filter(|&&times| times > 1).count();
    let lost = all.saturating_sub(seen.len());
    verdict.windows = seen.len() as u64;
    if (wrong, twice, lost) != (0, 0, 0) {
        verdict.failures.push(format!(
            "of {all} rows of windows (of {KEYS} keys) {lost} are missing, {twice} are duplicated, {wrong} are wrong; {example:?}"
        ));
    }
}

fn alerts(brokers: &str, topic: &str, events: u64, verdict: &mut Verdict) {
    let mut times: HashMap<u64, u64> = HashMap::new();
    each(brokers, topic, |row| *times.entry(row["n"].as_u64().unwrap()).or_default() += 1);
    let lost = (0..events).filter(|&n| load::is_alert(n) && !times.contains_key(&n)).count();
    let twice = times.values().filter(|&&times| times > 1).count();
    let others = times.keys().filter(|&&n| n >= events || !load::is_alert(n)).count();
    verdict.alerts = times.len() as u64;
    if (lost, twice, others) != (0, 0, 0) {
        verdict.failures.push(format!(
            "{lost} alerts are missing, {twice} are duplicated, {others} are unexpected"
        ));
    }
}

/// A `read_committed` consumer of a topic with one partition.
pub fn committed(brokers: &str, topic: &str, from: Offset) -> BaseConsumer {
    let mut config = config(brokers);
    config.set("group.id", "soak").set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true");
    job::follow(&mut config, &[topic], from)
}

/// Calls `inspect` with every committed row of a topic.
fn each(brokers: &str, topic: &str, mut inspect: impl FnMut(&serde_json::Value)) {
    let consumer = committed(brokers, topic, Offset::Beginning);
    loop {
        match consumer.poll(Duration::from_secs(30)) {
            Some(Ok(message)) => {
                inspect(&serde_json::from_slice(message.payload().unwrap()).unwrap())
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return,
            other => panic!("{topic}: {other:?}"),
        }
    }
}

/// Runs a command; returns its standard output, or all output if it fails.
fn millstream(project: &Path, arguments: &[&str]) -> Result<String, String> {
    let run = engine::millstream(project).args(arguments).args(["--log", "warn"]).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if run.status.success() { Ok(out.into_owned()) } else { Err(format!("{out}{error}")) }
}
