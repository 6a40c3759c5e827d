//! The log topic and the snapshots: truncated, retained, damaged, lost.

use std::fs;
use std::path::PathBuf;

use crate::sample_project::{SampleProject, sample_project};
use crate::support::kafka::Kafka;
use crate::support::process::run;

fn log_topic(sample: &SampleProject) -> String {
    format!("millstream.{}.log", sample.customer)
}

/// The folders of the snapshots, oldest first.
fn snapshots(sample: &SampleProject) -> Vec<PathBuf> {
    let folder = sample.project.path().join(".millstream/snapshots").join(&sample.customer);
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

/// The number of events in all closed windows, and the rows of history.
fn event_counts(sample: &SampleProject) -> (i64, Vec<String>) {
    let events = sample.hourly_events();
    (events, sample.query("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"))
}

#[test]
fn the_log_is_truncated_below_the_older_of_two_snapshots_and_either_recovers() {
    let Some(kafka) = Kafka::require("log truncation") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..20);
    sample.run(&["--create-topics", "--until-end"]).ok();
    assert_eq!(
        sample.kafka.begins(&log_topic(&sample)),
        [(0, 0)],
        "one snapshot: the log is not truncated"
    );
    for part in 1..4 {
        sample.events(part * 20..part * 20 + 20);
        sample.run(&["--until-end"]).ok();
    }
    assert_eq!(snapshots(&sample).len(), 2);
    let (begins, ends) =
        (sample.kafka.begins(&log_topic(&sample)), sample.kafka.ends(&log_topic(&sample)));
    assert!(0 < begins[0].1 && begins[0].1 < ends[0].1, "{begins:?} {ends:?}");
    run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]).ok();

    // The newest snapshot is damaged: the older one and the epochs after it give the same state.
    let newest = snapshots(&sample).pop().unwrap();
    let file = fs::read_dir(&newest).unwrap().map(|e| e.unwrap().path());
    let file = file.into_iter().find(|f| f.extension().is_some_and(|e| e == "arrow")).unwrap();
    fs::write(file, b"nothing of use").unwrap();
    sample.events(80..125);
    let output = sample.run(&["--drain"]).ok().output();
    assert!(output.contains("the newest snapshot is damaged"), "{output}");
    assert_eq!(event_counts(&sample), (125, vec!["125,125".to_owned()]));
    assert_eq!(snapshots(&sample).len(), 2, "the damaged snapshot is deleted");
    run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]).ok();
}

#[test]
fn an_empty_log_of_a_customer_who_ran_before_is_an_error() {
    let Some(kafka) = Kafka::require("empty log") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..70);
    sample.run(&["--create-topics", "--until-end"]).ok();
    sample.kafka.delete(&log_topic(&sample));
    let output = sample.run(&["--create-topics", "--until-end"]).failed().output();
    for word in ["is empty", "has run before", "snapshots", "'events'", "--reset"] {
        assert!(output.contains(word), "{word} is not output\n{output}");
    }
    // With another data folder, the offsets of the consumer group show that the customer has run before.
    let elsewhere = ["--create-topics", "--until-end", "--data-dir", "elsewhere"];
    let output = sample.run(&elsewhere).failed().output();
    assert!(output.contains("offsets of the group"), "{output}");
    // After a reset it publishes the results again, and history contains no duplicates.
    sample.run(&["--drain", "--reset", &sample.customer]).ok();
    let (events, history) = event_counts(&sample);
    assert!(events >= 70, "{events}");
    assert_eq!(history, ["70,70"]);
}

#[test]
fn a_recreated_topic_is_another_topic() {
    let Some(kafka) = Kafka::require("recreated topic") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..10);
    sample.run(&["--create-topics", "--until-end"]).ok();
    sample.kafka.delete(&sample.topic);
    let output = sample.run(&["--until-end", "--create-topics"]).failed().output();
    assert!(output.contains(&sample.topic) && output.contains("--reset"), "{output}");
    sample.kafka.delete(&sample.topic);
    sample.kafka.create(&sample.topic, 1);
    sample.events(10..15);
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(output.contains("was deleted and recreated"), "{output}");
    sample.run(&["--until-end", "--reset", &sample.customer]).ok();
    // History has offsets 0 to 4 twice, from two topics; no row is missing.
    assert_eq!(sample.query("SELECT count(*), max(_offset) FROM {c}.events"), ["15,9"]);
}
