//! What Kafka lost: records below the recorded offsets, a source topic, the log of a customer.

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

    fn follow(&self, more: &[&str]) -> (Running, String) {
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

    /// Events of all windows that the topic holds, each window and room once.
    fn counted(&self) -> i64 {
        let results = self.results("hourly");
        let mut keys: Vec<_> =
            results.iter().map(|r| format!("{} {}", r["window_start"], r["room"])).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), results.len(), "a window is published twice: {results:?}");
        self.hourly_events()
    }
}

/// Waits until an answer holds what is wanted.
fn wait_for(address: &str, path: &str, wanted: &str) {
    let deadline = Instant::now() + LONG;
    while !get(address, path).contains(wanted) {
        assert!(Instant::now() < deadline, "{wanted}: {}", get(address, path));
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_truncated_topic_stops_a_start_and_is_passed_over_if_that_is_wanted() {
    let Some(kafka) = Kafka::require("a truncated topic") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..70);
    sample.run(&["--create-topics", "--until-end"]).ok();
    sample.events(70..100);
    sample.kafka.truncate(&sample.topic, 0, 85);
    let output = sample.run(&["--until-end"]).failed().output();
    for wanted in [
        &format!("{}/0 has no offset 70", sample.topic),
        "15 offsets that are needed are gone",
        "wanted offset 70; Kafka begins at 85",
        "--on-gap skip",
        "millstream rebuild",
    ] {
        assert!(output.contains(wanted), "{wanted}: {output}");
    }
    let (running, address) = sample.follow(&["--on-gap", "skip"]);
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
    assert!(output.contains("15 offsets were gone and passed over"), "{output}");
    // The gap is behind: nobody asks for it again.
    sample.run(&["--drain"]).ok();
    assert_eq!(sample.counted(), 85);
    sample.audit().ok();
}

#[test]
fn a_gap_with_nothing_after_it_is_no_gap_at_the_next_start() {
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
    let (running, _) = sample.follow(&[]);
    sample.events(70..130);
    let deadline = Instant::now() + LONG;
    while sample.ask("SELECT count(*) FROM {c}.events") != ["130"] {
        assert!(Instant::now() < deadline, "history lags");
        std::thread::sleep(Duration::from_secs(1));
    }
    running.kill();
    sample.events(130..140);
    sample.kafka.truncate(&sample.topic, 0, 135);
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(output.contains("up to offset 130, must run again"), "{output}");
    let output = sample.rebuild(&[]).ok().output();
    assert!(output.contains("130 rows came from history"), "{output}");
    assert!(output.contains("offsets 130 to 134 are neither in Kafka nor in history"), "{output}");
    sample.run(&["--drain"]).ok();
    assert_eq!(sample.counted(), 135);
    let seen = sample.ask("SELECT sum(events) FROM {c}.latest");
    assert_eq!(seen, ["135"]);
    assert_eq!(sample.ask("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"), ["135,135"]);
    sample.audit().ok();
}

#[test]
fn a_lost_log_is_told_and_a_rebuild_publishes_nothing_twice() {
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
    assert_eq!(sample.counted(), 140);
    assert_eq!(sample.ask("SELECT sum(events) FROM {c}.latest"), ["140"]);
    assert_eq!(sample.results("alerts").len(), (0..140).filter(|m| m % 3 == 0).count());
    sample.audit().ok();
}

#[test]
fn after_a_rebuild_a_published_window_stays_closed() {
    let Some(kafka) = Kafka::require("windows after a rebuild") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..130);
    // The last window closes before its events are past: the log alone knows that it did.
    sample.run(&["--create-topics", "--drain"]).ok();
    sample.kafka.delete(&sample.log());
    sample.rebuild(&["--create-topics"]).ok();
    sample.events(130..190);
    sample.run(&["--drain"]).ok();
    // Fifty events came too late for the window that had closed, ten for the next one.
    assert_eq!(sample.counted(), 140);
    assert_eq!(sample.ask("SELECT count(*) FROM {c}.events_late"), ["50"]);
    sample.audit().ok();
}

#[test]
fn a_rebuild_publishes_what_is_missing() {
    let Some(kafka) = Kafka::require("a rebuild of results") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..130);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let (hourly, alerts) = (sample.counted(), sample.results("alerts").len());
    let dropped = format!("millstream.{}.hourly", sample.customer);
    sample.kafka.delete(&dropped);
    sample.kafka.create(&dropped, 1);
    let output = sample.rebuild(&[]).ok().output();
    assert!(output.contains(&format!("{dropped}: 0 were published already")), "{output}");
    assert_eq!(sample.counted(), hourly, "{output}");
    assert_eq!(sample.results("alerts").len(), alerts);
}

#[test]
fn a_source_topic_that_is_deleted_is_told_while_running_and_at_the_next_start() {
    let Some(kafka) = Kafka::require("a deleted source topic") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..20);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let (running, address) = sample.follow(&[]);
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
        output.contains(&format!("topic {} was deleted and made anew", sample.topic)),
        "{output}"
    );
}

/// A running pipeline that is held while its topic is truncated beyond what it has read.
fn held_and_truncated(sample: &SampleProject, more: &[&str]) -> (Running, String) {
    sample.events(0..10);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let (running, address) = sample.follow(more);
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
    let (running, _) = held_and_truncated(&sample, &["--kafka", "millstream.reader=rdkafka"]);
    let output = running.wait(LONG).failed().output();
    let wanted = format!("{}/0 has no offset 10 any more", sample.topic);
    assert!(output.contains(&wanted) && output.contains("Kafka has 30 to 40"), "{output}");
    assert!(output.contains("--on-gap skip"), "{output}");
}

#[test]
fn a_running_pipeline_passes_over_a_gap_if_that_is_wanted() {
    let Some(kafka) = Kafka::require("skipping while running") else { return };
    let sample = sample_project(kafka, 1);
    let (running, address) = held_and_truncated(&sample, &["--on-gap", "skip"]);
    wait_for(&address, "/metrics", &format!("topic=\"{}\"}} 20", sample.topic));
    wait_for(&address, "/readyz", "ready\n");
    running.signal("TERM");
    running.wait(LONG).ok();
    let output = sample.audit().ok().output();
    assert!(output.contains("20 offsets were gone and passed over"), "{output}");
    assert_eq!(sample.ask("SELECT sum(events) FROM {c}.latest"), ["20"]);
}
