//! Data that Kafka has lost: records below the recorded offsets, a source topic, the log of a customer.

use std::time::{Duration, Instant};

use crate::failures::get;
use crate::sample_project::{LONG, SampleProject, sample_project};
use crate::support::kafka::{Kafka, Write};
use crate::support::process::{self, Finished, Running, run_for};

impl SampleProject {
    pub(crate) fn rebuild(&self, more: &[&str]) -> Finished {
        let mut all = vec!["rebuild", &self.customer, "--brokers", &self.kafka.brokers];
        all.extend(more);
        run_for(self.project.path(), &all, LONG)
    }

    fn audit(&self) -> Finished {
        process::run(self.project.path(), &["audit", "--brokers", &self.kafka.brokers])
    }

    fn start_with_http(&self, more: &[&str]) -> (Running, String) {
        let mut all = vec!["run", "--brokers", &self.kafka.brokers, "--http", "127.0.0.1:0"];
        all.extend(more);
        let mut running = process::start(self.project.path(), &all);
        running.until("the endpoint", LONG, |output| output.contains("address="));
        let output = running.stderr();
        let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
        let address = address.to_owned();
        (running, address)
    }

    fn log(&self) -> String {
        format!("millstream.{}.log", self.customer)
    }

    /// The sum of events over all published windows; each window and room must be published once.
    fn published_events(&self) -> i64 {
        let results = self.results("hourly");
        let mut keys: Vec<_> =
            results.iter().map(|r| format!("{} {}", r["window_start"], r["room"])).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), results.len(), "a window is published more than once: {results:?}");
        self.hourly_events()
    }
}

/// Waits until the response of a path contains a text.
fn wait_for(address: &str, path: &str, wanted: &str) {
    let deadline = Instant::now() + LONG;
    while !get(address, path).contains(wanted) {
        assert!(Instant::now() < deadline, "{wanted}: {}", get(address, path));
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_truncated_topic_stops_a_start_and_is_skipped_on_request() {
    let Some(kafka) = Kafka::require("a truncated topic") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..70);
    sample.run(&["--create-topics", "--until-end"]).ok();
    sample.events(70..100);
    sample.kafka.truncate(&sample.topic, 0, 85);
    let output = sample.run(&["--until-end"]).failed().output();
    for wanted in [
        &format!("{}/0 no longer has offset 70", sample.topic),
        "15 offsets that are needed are missing from Kafka",
        "required offset: 70; first offset in Kafka: 85",
        "--on-gap skip",
        "millstream rebuild",
    ] {
        assert!(output.contains(wanted), "{wanted}: {output}");
    }
    let (running, address) = sample.start_with_http(&["--on-gap", "skip"]);
    let metric = format!(
        "millstream_partition_skipped_offsets{{customer=\"{}\",partition=\"0\",stream=\"events\",topic=\"{}\"}} 15",
        sample.customer, sample.topic
    );
    wait_for(&address, "/metrics", &metric);
    running.signal("TERM");
    running.wait(LONG).ok();
    let log = sample.kafka.read(&sample.log());
    let record = log.iter().map(|r| r.json()).find(|r| !r["skipped"].is_null()).unwrap();
    assert_eq!(record["skipped"][0]["from"], 70);
    assert_eq!(record["skipped"][0]["to"], 85);
    let output = sample.audit().ok().output();
    assert!(output.contains("15 missing offsets were skipped"), "{output}");
    // The gap has been skipped and is not needed again.
    sample.run(&["--drain"]).ok();
    assert_eq!(sample.published_events(), 85);
    sample.audit().ok();
}

#[test]
fn a_skipped_gap_at_the_end_is_not_reported_again() {
    let Some(kafka) = Kafka::require("a gap at the end") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..10);
    sample.run(&["--create-topics", "--until-end"]).ok();
    sample.events(10..20);
    sample.kafka.truncate(&sample.topic, 0, 20);
    sample.run(&["--until-end", "--on-gap", "skip"]).ok();
    sample.run(&["--until-end"]).ok();
    sample.audit().ok();
}

#[test]
fn a_topic_truncated_under_a_pipeline_that_is_away_for_a_while_is_rebuilt_from_history() {
    let Some(kafka) = Kafka::require("a rebuild from history") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..70);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let (running, _) = sample.start_with_http(&[]);
    sample.events(70..130);
    let deadline = Instant::now() + LONG;
    while sample.query("SELECT count(*) FROM {c}.events") != ["130"] {
        assert!(Instant::now() < deadline, "history lags");
        std::thread::sleep(Duration::from_secs(1));
    }
    running.kill();
    sample.events(130..140);
    sample.kafka.truncate(&sample.topic, 0, 135);
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(output.contains("up to offset 130 must be replayed"), "{output}");
    let output = sample.rebuild(&[]).ok().output();
    assert!(output.contains("130 rows came from history"), "{output}");
    assert!(output.contains("offsets 130 to 134 are neither in Kafka nor in history"), "{output}");
    sample.run(&["--drain"]).ok();
    assert_eq!(sample.published_events(), 135);
    let seen = sample.query("SELECT sum(events) FROM {c}.latest");
    assert_eq!(seen, ["135"]);
    assert_eq!(
        sample.query("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"),
        ["135,135"]
    );
    sample.audit().ok();
}

#[test]
fn a_lost_log_is_an_error_and_a_rebuild_publishes_no_duplicates() {
    let Some(kafka) = Kafka::require("a lost log") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..130);
    sample.kafka.produce(&sample.topic, [Write::value("no JSON")]);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let topics = ["hourly", "alerts", "latest", "dead_letters"];
    let ends = || topics.map(|t| sample.kafka.read(&format!("millstream.{}.{t}", sample.customer)));
    let before = ends();
    sample.kafka.delete(&sample.log());
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(output.contains(&format!("{} does not exist", sample.log())), "{output}");
    assert!(output.contains(&format!("millstream rebuild {}", sample.customer)), "{output}");
    let output = sample.run(&["--until-end", "--create-topics"]).failed().output();
    assert!(output.contains("is empty, but"), "{output}");
    assert!(output.contains(&format!("millstream rebuild {}", sample.customer)), "{output}");

    let output = sample.rebuild(&[]).ok().output();
    assert_eq!(ends(), before, "{output}");
    sample.events(130..140);
    sample.run(&["--drain"]).ok();
    assert_eq!(sample.published_events(), 140);
    assert_eq!(sample.query("SELECT sum(events) FROM {c}.latest"), ["140"]);
    assert_eq!(sample.results("alerts").len(), (0..140).filter(|m| m % 3 == 0).count());
    sample.audit().ok();
}

#[test]
fn after_a_rebuild_a_published_window_stays_closed() {
    let Some(kafka) = Kafka::require("windows after a rebuild") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..130);
    // Draining closes the last window before its end; only the log records that.
    sample.run(&["--create-topics", "--drain"]).ok();
    sample.kafka.delete(&sample.log());
    sample.rebuild(&["--create-topics"]).ok();
    sample.events(130..190);
    sample.run(&["--drain"]).ok();
    // Fifty events are late for the closed window; ten belong to the next one.
    assert_eq!(sample.published_events(), 140);
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events_late"), ["50"]);
    sample.audit().ok();
}

#[test]
fn a_rebuild_publishes_what_is_missing() {
    let Some(kafka) = Kafka::require("a rebuild of results") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..130);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let (hourly, alerts) = (sample.published_events(), sample.results("alerts").len());
    let dropped = format!("millstream.{}.hourly", sample.customer);
    sample.kafka.delete(&dropped);
    sample.kafka.create(&dropped, 1);
    let output = sample.rebuild(&[]).ok().output();
    assert!(output.contains(&format!("{dropped}: 0 were published already")), "{output}");
    assert_eq!(sample.published_events(), hourly, "{output}");
    assert_eq!(sample.results("alerts").len(), alerts);
}

#[test]
fn a_deleted_source_topic_is_reported_while_running_and_at_the_next_start() {
    let Some(kafka) = Kafka::require("a deleted source topic") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..20);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let (running, address) = sample.start_with_http(&[]);
    wait_for(&address, "/readyz", "ready\n");
    sample.kafka.delete(&sample.topic);
    wait_for(&address, "/readyz", "503");
    running.signal("TERM");
    running.wait(LONG);
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(
        output.contains("topics are missing") || output.contains("no longer exists"),
        "{output}"
    );
    assert!(output.contains(&sample.topic), "{output}");
    sample.kafka.create(&sample.topic, 1);
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(
        output.contains(&format!("topic {} was deleted and recreated", sample.topic)),
        "{output}"
    );
}

/// Suspends a running pipeline while its topic is truncated beyond its position, then resumes it.
fn truncate_while_suspended(sample: &SampleProject, more: &[&str]) -> (Running, String) {
    sample.events(0..10);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let (running, address) = sample.start_with_http(more);
    wait_for(&address, "/readyz", "ready\n");
    running.signal("STOP");
    sample.events(10..40);
    sample.kafka.truncate(&sample.topic, 0, 30);
    running.signal("CONT");
    (running, address)
}

#[test]
fn a_topic_truncated_under_a_running_pipeline_stops_it() {
    let Some(kafka) = Kafka::require("truncated while running") else { return };
    let sample = sample_project(kafka, 1);
    let (running, _) = truncate_while_suspended(&sample, &["--kafka", "millstream.reader=rdkafka"]);
    let output = running.wait(LONG).failed().output();
    let wanted = format!("offset 10 of {}/0 is out of range", sample.topic);
    assert!(output.contains(&wanted) && output.contains("Kafka has 30 to 40"), "{output}");
    assert!(output.contains("--on-gap skip"), "{output}");
}

#[test]
fn a_running_pipeline_skips_a_gap_on_request() {
    let Some(kafka) = Kafka::require("skipping while running") else { return };
    let sample = sample_project(kafka, 1);
    let (running, address) = truncate_while_suspended(&sample, &["--on-gap", "skip"]);
    wait_for(&address, "/metrics", &format!("topic=\"{}\"}} 20", sample.topic));
    wait_for(&address, "/readyz", "ready\n");
    running.signal("TERM");
    running.wait(LONG).ok();
    let output = sample.audit().ok().output();
    assert!(output.contains("20 missing offsets were skipped"), "{output}");
    assert_eq!(sample.query("SELECT sum(events) FROM {c}.latest"), ["20"]);
}
