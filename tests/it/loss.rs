//! What Kafka lost: records below the recorded offsets, a source topic, the log of a customer.

use std::time::{Duration, Instant};

use crate::faults::get;
use crate::place::{LONG, Place, place};
use crate::support::kafka::{Kafka, Write};
use crate::support::process::{self, Finished, Running, run_for};

impl Place {
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
        running.until("the endpoint", LONG, |said| said.contains("address="));
        let said = running.stderr();
        let address = said.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
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
    let place = place(kafka, 1);
    place.events(0..70);
    place.run(&["--create-topics", "--until-end"]).ok();
    place.events(70..100);
    place.kafka.truncate(&place.topic, 0, 85);
    let said = place.run(&["--until-end"]).failed().said();
    for wanted in [
        &format!("{}/0 has no offset 70", place.topic),
        "15 offsets that are needed are gone",
        "wanted offset 70; Kafka begins at 85",
        "--on-gap skip",
        "millstream rebuild",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let (running, address) = place.follow(&["--on-gap", "skip"]);
    let metric = format!(
        "millstream_partition_skipped_offsets{{customer=\"{}\",partition=\"0\",stream=\"events\",topic=\"{}\"}} 15",
        place.customer, place.topic
    );
    wait_for(&address, "/metrics", &metric);
    running.signal("TERM");
    running.wait(LONG).ok();
    let log = place.kafka.read(&place.log());
    let record = log.iter().map(|r| r.json()).find(|r| !r["skipped"].is_null()).unwrap();
    assert_eq!(record["skipped"][0]["from"], 70);
    assert_eq!(record["skipped"][0]["to"], 85);
    let said = place.audit().ok().said();
    assert!(said.contains("15 offsets were gone and passed over"), "{said}");
    // The gap is behind: nobody asks for it again.
    place.run(&["--drain"]).ok();
    assert_eq!(place.counted(), 85);
    place.audit().ok();
}

#[test]
fn a_gap_with_nothing_after_it_is_no_gap_at_the_next_start() {
    let Some(kafka) = Kafka::require("a gap at the end") else { return };
    let place = place(kafka, 1);
    place.events(0..10);
    place.run(&["--create-topics", "--until-end"]).ok();
    place.events(10..20);
    place.kafka.truncate(&place.topic, 0, 20);
    place.run(&["--until-end", "--on-gap", "skip"]).ok();
    place.run(&["--until-end"]).ok();
    place.audit().ok();
}

#[test]
fn a_topic_truncated_under_a_pipeline_that_is_away_for_a_while_is_rebuilt_from_history() {
    let Some(kafka) = Kafka::require("a rebuild from history") else { return };
    let place = place(kafka, 1);
    place.events(0..70);
    place.run(&["--create-topics", "--until-end"]).ok();
    let (running, _) = place.follow(&[]);
    place.events(70..130);
    let deadline = Instant::now() + LONG;
    while place.ask("SELECT count(*) FROM {c}.events") != ["130"] {
        assert!(Instant::now() < deadline, "history lags");
        std::thread::sleep(Duration::from_secs(1));
    }
    running.kill();
    place.events(130..140);
    place.kafka.truncate(&place.topic, 0, 135);
    let said = place.run(&["--until-end"]).failed().said();
    assert!(said.contains("up to offset 130, must run again"), "{said}");
    let said = place.rebuild(&[]).ok().said();
    assert!(said.contains("130 rows came from history"), "{said}");
    assert!(said.contains("offsets 130 to 134 are neither in Kafka nor in history"), "{said}");
    place.run(&["--drain"]).ok();
    assert_eq!(place.counted(), 135);
    let seen = place.ask("SELECT sum(events) FROM {c}.latest");
    assert_eq!(seen, ["135"]);
    assert_eq!(place.ask("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"), ["135,135"]);
    place.audit().ok();
}

#[test]
fn a_lost_log_is_told_and_a_rebuild_publishes_nothing_twice() {
    let Some(kafka) = Kafka::require("a lost log") else { return };
    let place = place(kafka, 1);
    place.events(0..130);
    place.kafka.produce(&place.topic, [Write::value("no JSON")]);
    place.run(&["--create-topics", "--until-end"]).ok();
    let topics = ["hourly", "alerts", "latest", "dead_letters"];
    let ends = || topics.map(|t| place.kafka.read(&format!("millstream.{}.{t}", place.customer)));
    let before = ends();
    place.kafka.delete(&place.log());
    let said = place.run(&["--until-end"]).failed().said();
    assert!(said.contains(&format!("{} is gone", place.log())), "{said}");
    assert!(said.contains(&format!("millstream rebuild {}", place.customer)), "{said}");
    let said = place.run(&["--until-end", "--create-topics"]).failed().said();
    assert!(said.contains("is empty, but"), "{said}");
    assert!(said.contains(&format!("millstream rebuild {}", place.customer)), "{said}");

    let said = place.rebuild(&[]).ok().said();
    assert_eq!(ends(), before, "{said}");
    place.events(130..140);
    place.run(&["--drain"]).ok();
    assert_eq!(place.counted(), 140);
    assert_eq!(place.ask("SELECT sum(events) FROM {c}.latest"), ["140"]);
    assert_eq!(place.results("alerts").len(), (0..140).filter(|m| m % 3 == 0).count());
    place.audit().ok();
}

#[test]
fn after_a_rebuild_a_published_window_stays_closed() {
    let Some(kafka) = Kafka::require("windows after a rebuild") else { return };
    let place = place(kafka, 1);
    place.events(0..130);
    // The last window closes before its events are past: the log alone knows that it did.
    place.run(&["--create-topics", "--drain"]).ok();
    place.kafka.delete(&place.log());
    place.rebuild(&["--create-topics"]).ok();
    place.events(130..190);
    place.run(&["--drain"]).ok();
    // Fifty events came too late for the window that had closed, ten for the next one.
    assert_eq!(place.counted(), 140);
    assert_eq!(place.ask("SELECT count(*) FROM {c}.events_late"), ["50"]);
    place.audit().ok();
}

#[test]
fn a_rebuild_publishes_what_is_missing() {
    let Some(kafka) = Kafka::require("a rebuild of results") else { return };
    let place = place(kafka, 1);
    place.events(0..130);
    place.run(&["--create-topics", "--until-end"]).ok();
    let (hourly, alerts) = (place.counted(), place.results("alerts").len());
    let dropped = format!("millstream.{}.hourly", place.customer);
    place.kafka.delete(&dropped);
    place.kafka.create(&dropped, 1);
    let said = place.rebuild(&[]).ok().said();
    assert!(said.contains(&format!("{dropped}: 0 were published already")), "{said}");
    assert_eq!(place.counted(), hourly, "{said}");
    assert_eq!(place.results("alerts").len(), alerts);
}

#[test]
fn a_source_topic_that_is_deleted_is_told_while_running_and_at_the_next_start() {
    let Some(kafka) = Kafka::require("a deleted source topic") else { return };
    let place = place(kafka, 1);
    place.events(0..20);
    place.run(&["--create-topics", "--until-end"]).ok();
    let (running, address) = place.follow(&[]);
    wait_for(&address, "/readyz", "ready\n");
    place.kafka.delete(&place.topic);
    wait_for(&address, "/readyz", "503");
    running.signal("TERM");
    running.wait(LONG);
    let said = place.run(&["--until-end"]).failed().said();
    assert!(said.contains("topics are missing") || said.contains("is gone"), "{said}");
    assert!(said.contains(&place.topic), "{said}");
    place.kafka.create(&place.topic, 1);
    let said = place.run(&["--until-end"]).failed().said();
    assert!(said.contains(&format!("topic {} was deleted and made anew", place.topic)), "{said}");
}

/// A running pipeline that is held while its topic is truncated beyond what it has read.
fn held_and_truncated(place: &Place, more: &[&str]) -> (Running, String) {
    place.events(0..10);
    place.run(&["--create-topics", "--until-end"]).ok();
    let (running, address) = place.follow(more);
    wait_for(&address, "/readyz", "ready\n");
    running.signal("STOP");
    place.events(10..40);
    place.kafka.truncate(&place.topic, 0, 30);
    running.signal("CONT");
    (running, address)
}

#[test]
fn a_topic_truncated_under_a_running_pipeline_stops_it() {
    let Some(kafka) = Kafka::require("truncated while running") else { return };
    let place = place(kafka, 1);
    let (running, _) = held_and_truncated(&place, &["--kafka", "millstream.reader=rdkafka"]);
    let said = running.wait(LONG).failed().said();
    let wanted = format!("{}/0 has no offset 10 any more", place.topic);
    assert!(said.contains(&wanted) && said.contains("Kafka has 30 to 40"), "{said}");
    assert!(said.contains("--on-gap skip"), "{said}");
}

#[test]
fn a_running_pipeline_passes_over_a_gap_if_that_is_wanted() {
    let Some(kafka) = Kafka::require("skipping while running") else { return };
    let place = place(kafka, 1);
    let (running, address) = held_and_truncated(&place, &["--on-gap", "skip"]);
    wait_for(&address, "/metrics", &format!("topic=\"{}\"}} 20", place.topic));
    wait_for(&address, "/readyz", "ready\n");
    running.signal("TERM");
    running.wait(LONG).ok();
    let said = place.audit().ok().said();
    assert!(said.contains("20 offsets were gone and passed over"), "{said}");
    assert_eq!(place.ask("SELECT sum(events) FROM {c}.latest"), ["20"]);
}
