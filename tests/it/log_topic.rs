//! The internal log and the snapshots: cut, kept, damaged, lost.

use std::fs;
use std::path::PathBuf;

use crate::sample_project::{SampleProject, sample_project};
use crate::support::kafka::Kafka;
use crate::support::process::run;

fn log_topic(sample: &SampleProject) -> String {
    format!("millstream.{}.log", sample.customer)
}

/// The folders of the snapshots, the oldest first.
fn snapshots(sample: &SampleProject) -> Vec<PathBuf> {
    let folder = sample.project.path().join(".millstream/snapshots").join(&sample.customer);
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

/// What all closed windows counted, and what history has.
fn counted(sample: &SampleProject) -> (i64, Vec<String>) {
    let events = sample.hourly_events();
    (events, sample.ask("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"))
}

#[test]
fn the_log_is_cut_below_the_older_of_two_snapshots_and_either_is_enough() {
    let Some(kafka) = Kafka::require("log is cut") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..20);
    sample.run(&["--create-topics", "--until-end"]).ok();
    assert_eq!(sample.kafka.begins(&log_topic(&sample)), [(0, 0)], "one snapshot: nothing is cut");
    for part in 1..4 {
        sample.events(part * 20..part * 20 + 20);
        sample.run(&["--until-end"]).ok();
    }
    assert_eq!(snapshots(&sample).len(), 2);
    let (begins, ends) =
        (sample.kafka.begins(&log_topic(&sample)), sample.kafka.ends(&log_topic(&sample)));
    assert!(0 < begins[0].1 && begins[0].1 < ends[0].1, "{begins:?} {ends:?}");
    run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]).ok();

    // The newest is damaged: the one before it and the epochs since give the same.
    let newest = snapshots(&sample).pop().unwrap();
    let file = fs::read_dir(&newest).unwrap().map(|e| e.unwrap().path());
    let file = file.into_iter().find(|f| f.extension().is_some_and(|e| e == "arrow")).unwrap();
    fs::write(file, b"nothing of use").unwrap();
    sample.events(80..125);
    let output = sample.run(&["--drain"]).ok().output();
    assert!(output.contains("the newest snapshot is damaged"), "{output}");
    assert_eq!(counted(&sample), (125, vec!["125,125".to_owned()]));
    assert_eq!(snapshots(&sample).len(), 2, "the damaged one is gone");
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
    // Another data folder does not make it a new customer: the group's offsets tell.
    let elsewhere = ["--create-topics", "--until-end", "--data-dir", "elsewhere"];
    let output = sample.run(&elsewhere).failed().output();
    assert!(output.contains("offsets of the group"), "{output}");
    // Told to begin anew, it says again what it output, and history takes nothing twice.
    sample.run(&["--drain", "--reset", &sample.customer]).ok();
    let (events, history) = counted(&sample);
    assert!(events >= 70, "{events}");
    assert_eq!(history, ["70,70"]);
}

#[test]
fn a_topic_made_anew_is_another_topic() {
    let Some(kafka) = Kafka::require("topic made anew") else { return };
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
    assert!(output.contains("was deleted and made anew"), "{output}");
    sample.run(&["--until-end", "--reset", &sample.customer]).ok();
    // Offsets 0 to 4 are there twice, of two topics; no row is missing.
    assert_eq!(sample.ask("SELECT count(*), max(_offset) FROM {c}.events"), ["15,9"]);
}
