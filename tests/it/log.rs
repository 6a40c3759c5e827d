//! The internal log and the snapshots: cut, kept, damaged, lost.

use std::fs;
use std::path::PathBuf;

use crate::place::{Place, place};
use crate::support::kafka::Kafka;
use crate::support::process::run;

fn log_topic(place: &Place) -> String {
    format!("millstream.{}.log", place.customer)
}

/// The folders of the snapshots, the oldest first.
fn snapshots(place: &Place) -> Vec<PathBuf> {
    let folder = place.project.path().join(".millstream/snapshots").join(&place.customer);
    let mut found: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

/// What all closed windows counted, and what history has.
fn counted(place: &Place) -> (i64, Vec<String>) {
    let events = place.hourly_events();
    (events, place.ask("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"))
}

#[test]
fn the_log_is_cut_below_the_older_of_two_snapshots_and_either_is_enough() {
    let Some(kafka) = Kafka::require("log is cut") else { return };
    let place = place(kafka, 1);
    place.events(0..20);
    place.run(&["--create-topics", "--until-end"]).ok();
    assert_eq!(place.kafka.begins(&log_topic(&place)), [(0, 0)], "one snapshot: nothing is cut");
    for part in 1..4 {
        place.events(part * 20..part * 20 + 20);
        place.run(&["--until-end"]).ok();
    }
    assert_eq!(snapshots(&place).len(), 2);
    let (begins, ends) =
        (place.kafka.begins(&log_topic(&place)), place.kafka.ends(&log_topic(&place)));
    assert!(0 < begins[0].1 && begins[0].1 < ends[0].1, "{begins:?} {ends:?}");
    run(place.project.path(), &["audit", "--brokers", &place.kafka.brokers]).ok();

    // The newest is damaged: the one before it and the epochs since give the same.
    let newest = snapshots(&place).pop().unwrap();
    let file = fs::read_dir(&newest).unwrap().map(|e| e.unwrap().path());
    let file = file.into_iter().find(|f| f.extension().is_some_and(|e| e == "arrow")).unwrap();
    fs::write(file, b"nothing of use").unwrap();
    place.events(80..125);
    let said = place.run(&["--drain"]).ok().said();
    assert!(said.contains("the newest snapshot cannot be used"), "{said}");
    assert_eq!(counted(&place), (125, vec!["125,125".to_owned()]));
    assert_eq!(snapshots(&place).len(), 2, "the damaged one is gone");
    run(place.project.path(), &["audit", "--brokers", &place.kafka.brokers]).ok();
}

#[test]
fn an_empty_log_of_a_customer_who_ran_before_is_an_error() {
    let Some(kafka) = Kafka::require("empty log") else { return };
    let place = place(kafka, 1);
    place.events(0..70);
    place.run(&["--create-topics", "--until-end"]).ok();
    place.kafka.delete(&log_topic(&place));
    let said = place.run(&["--create-topics", "--until-end"]).failed().said();
    for word in ["is empty", "has run before", "snapshots", "'events'", "--reset"] {
        assert!(said.contains(word), "{word} is not said\n{said}");
    }
    // Another data folder does not make it a new customer: the group's offsets tell.
    let elsewhere = ["--create-topics", "--until-end", "--data-dir", "elsewhere"];
    let said = place.run(&elsewhere).failed().said();
    assert!(said.contains("offsets of the group"), "{said}");
    // Told to begin anew, it says again what it said, and history takes nothing twice.
    place.run(&["--drain", "--reset", &place.customer]).ok();
    let (events, history) = counted(&place);
    assert!(events >= 70, "{events}");
    assert_eq!(history, ["70,70"]);
}

#[test]
fn a_topic_made_anew_is_another_topic() {
    let Some(kafka) = Kafka::require("topic made anew") else { return };
    let place = place(kafka, 1);
    place.events(0..10);
    place.run(&["--create-topics", "--until-end"]).ok();
    place.kafka.delete(&place.topic);
    let said = place.run(&["--until-end", "--create-topics"]).failed().said();
    assert!(said.contains(&place.topic) && said.contains("--reset"), "{said}");
    place.kafka.delete(&place.topic);
    place.kafka.create(&place.topic, 1);
    place.events(10..15);
    let said = place.run(&["--until-end"]).failed().said();
    assert!(said.contains("was deleted and made anew"), "{said}");
    place.run(&["--until-end", "--reset", &place.customer]).ok();
    // Offsets 0 to 4 are there twice, of two topics; no row is missing.
    assert_eq!(place.ask("SELECT count(*), max(_offset) FROM {c}.events"), ["15,9"]);
}
