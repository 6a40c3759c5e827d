//! Changes between two runs, or during a run: queries, schemas, tables, formats.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream::catalog;
use millstream::commit::RecoveredLog;
use millstream::pipeline::{self, Engine};
use millstream::state::snapshot_store as snapshot;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::sample_project::{LONG, sample_project};
use crate::support::kafka::{Kafka, Write};
use crate::support::process;

const HOURLY: &str = "SELECT window_start, window_end, room, count(*) AS events, count(DISTINCT sensor) AS sensors
FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' HOUR) GROUP BY window_start, window_end, room";

#[test]
fn a_final_plan_may_change_and_the_state_stays() {
    let Some(kafka) = Kafka::require("a changed final plan") else { return };
    let sample = sample_project(kafka, 2);
    sample.events(0..50);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let latest = sample.kafka.ends(&format!("millstream.{}.latest", sample.customer))[0].1;
    // Another expression over the same counts, a HAVING, and another expression of a view.
    let changed = HOURLY.replace("count(*) AS events", "10 * count(*) AS events");
    sample.project.query(&sample.customer, "hourly", &format!("{changed} HAVING count(*) > 20"));
    let view = "SELECT sensor, max(ts) AS seen, -count(*) AS events FROM events GROUP BY sensor";
    sample.project.query(&sample.customer, "latest", view);
    sample.events(50..55);
    let output = sample.run(&["--drain"]).ok().output();
    assert!(output.contains("final plan has changed"), "{output}");
    let hall = sample.results("hourly");
    assert_eq!(hall.len(), 1, "{hall:?}");
    let kitchen = (&hall[0]["room"], &hall[0]["events"], &hall[0]["sensors"]);
    assert_eq!(kitchen, (&"kitchen".into(), &360.into(), &5.into()));
    // Every sensor's row is published again, with its new sign.
    let records = sample.results("latest");
    let again = &records[usize::try_from(latest).unwrap()..];
    assert!(again.iter().all(|row| row["events"].as_i64().unwrap() < 0), "{again:?}");
    let sum: Vec<_> = sample.query("SELECT sum(events) FROM {c}.latest");
    assert_eq!(sum, ["-55"]);
}

#[test]
fn a_result_may_get_a_column_from_the_state() {
    let Some(kafka) = Kafka::require("another column of a result") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..70);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let before = sample.results("hourly").len();
    assert!(before > 0);
    let more = HOURLY.replace("AS sensors", "AS sensors, 2 * count(*) AS twice");
    sample.project.query(&sample.customer, "hourly", &more);
    sample.run(&["--drain"]).ok();
    let results = sample.results("hourly");
    assert!(results[before..].iter().all(|row| row["twice"].as_i64() > Some(0)), "{results:?}");
    let counts = sample.query("SELECT count(*), count(twice) FROM {c}.hourly");
    assert_eq!(counts, [format!("{},{}", results.len(), results.len() - before)]);
}

#[test]
fn a_change_of_the_state_is_refused_with_the_line_that_differs() {
    let Some(kafka) = Kafka::require("a changed batch plan") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..50);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let filtered = HOURLY.replace(" GROUP BY", " WHERE sensor > 1 GROUP BY");
    sample.project.query(&sample.customer, "hourly", &filtered);
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(output.contains("query 'hourly'") && output.contains("has changed"), "{output}");
    assert!(output.contains("sensor > 1', which is new"), "{output}");
    let reset = format!("{}/hourly", sample.customer);
    assert!(output.contains(&format!("--reset {reset}")), "{output}");
    // The other queries continue with their state.
    sample.events(50..55);
    sample.run(&["--until-end", "--reset", &reset]).ok();
    assert_eq!(sample.query("SELECT sum(events) FROM {c}.latest"), ["55"]);
    sample.run(&["--drain"]).ok();
    let events = sample.hourly_events();
    assert_eq!(events, 3, "of the five new events");
}

#[test]
fn after_an_unclean_stop_no_plan_may_differ() {
    let Some(kafka) = Kafka::require("a changed plan after a kill") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..50);
    let arguments = ["run", "--brokers", &sample.kafka.brokers, "--create-topics"];
    let mut running = process::start(sample.project.path(), &arguments);
    let results = format!("millstream.{}.latest", sample.customer);
    running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
    let deadline = Instant::now() + LONG;
    while sample.kafka.ends(&results)[0].1 == 0 {
        assert!(Instant::now() < deadline, "no results");
        std::thread::sleep(Duration::from_millis(50));
    }
    running.kill();
    let changed = HOURLY.replace("count(*) AS events", "10 * count(*) AS events");
    sample.project.query(&sample.customer, "hourly", &changed);
    let output = sample.run(&["--until-end"]).output();
    assert!(
        output.contains("did not stop cleanly") && output.contains("run once with the old file"),
        "{output}"
    );
    sample.project.query(&sample.customer, "hourly", HOURLY);
    sample.run(&["--until-end"]).ok();
    sample.project.query(&sample.customer, "hourly", &changed);
    sample.run(&["--drain"]).ok();
    let events = sample.hourly_events();
    assert_eq!(events, 500);
}

#[test]
fn added_and_removed_queries_do_not_affect_the_others() {
    let Some(kafka) = Kafka::require("a query added and removed") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..50);
    sample.run(&["--create-topics", "--until-end"]).ok();
    sample.project.remove_query(&sample.customer, "latest");
    sample.project.query(
        &sample.customer,
        "rooms_now",
        "SELECT room, count(*) AS n FROM events GROUP BY room",
    );
    sample.events(50..55);
    sample.run(&["--create-topics", "--drain"]).ok();
    let hourly = sample.hourly_events();
    assert_eq!(hourly, 55, "its state stayed");
    let added = sample.query("SELECT sum(n) FROM {c}.rooms_now");
    assert_eq!(added, ["5"], "it processes new events only");
}

#[test]
fn a_query_that_is_added_later_may_start_at_the_earliest_event() {
    let Some(kafka) = Kafka::require("a query with a start") else { return };
    let sample = sample_project(kafka, 2);
    sample.events(0..70);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let results_before = sample.results("hourly");
    assert_eq!(results_before.len(), 2, "{results_before:?}");
    let added = |name: &str, select: &str| {
        let what = format!("CREATE STREAM {name} WITH (start = 'earliest') AS {select}");
        sample.project.query(&sample.customer, name, &what);
    };
    let per_hour = HOURLY.replace("room, ", "").replace(", room", "");
    added("by_hour", &per_hour);
    added("hall", "SELECT ts, sensor FROM events WHERE room = 'hall'");
    let output = sample.run(&["--create-topics", "--until-end"]).failed().output();
    for wanted in ["'by_hour' is new", "by_hour.sql:1:15", "millstream rebuild"] {
        assert!(output.contains(wanted), "{wanted}: {output}");
    }
    sample.rebuild(&["--create-topics"]).ok();
    sample.events(70..75);
    sample.run(&["--drain"]).ok();
    let events = |query: &str| -> i64 {
        sample.results(query).iter().map(|row| row["events"].as_i64().unwrap()).sum()
    };
    assert_eq!((events("by_hour"), sample.results("by_hour").len()), (75, 2));
    assert_eq!((sample.results("hall").len(), sample.results("alerts").len()), (25, 25));
    assert_eq!((events("hourly"), &sample.results("hourly")[..2]), (75, &results_before[..]));
}

#[test]
fn a_stream_may_get_columns_and_keeps_its_state() {
    let Some(kafka) = Kafka::require("another column of a stream") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..50);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let schema = format!("schemas/{}.sql", sample.customer);
    let text = std::fs::read_to_string(sample.project.path().join(&schema)).unwrap();
    sample.project.file(
        &schema,
        &text.replace("room VARCHAR NOT NULL,", "room VARCHAR NOT NULL, battery DOUBLE,"),
    );
    let more = std::fs::read_to_string(sample.project.path().join(&schema)).unwrap();
    // A changed column is refused.
    sample.project.file(&schema, &text.replace("room VARCHAR NOT NULL,", "room VARCHAR,"));
    let output = sample.run(&["--until-end"]).failed().output();
    assert!(output.contains("stream 'events'") && output.contains("had 'room"), "{output}");
    sample.project.file(&schema, &more);
    let event = r#"{"ts":"2024-05-01 10:50:00","sensor":1,"room":"hall","battery":0.5}"#;
    sample.kafka.produce(&sample.topic, [Write::value(event)]);
    let output = sample.run(&["--drain"]).ok().output();
    assert!(output.contains("more columns from now on"), "{output}");
    let events = sample.hourly_events();
    assert_eq!(events, 51, "its state stayed");
    let counts = sample.query("SELECT count(*), count(battery), max(battery) FROM {c}.events");
    assert_eq!(counts, ["51,1,0.5"]);
}

#[test]
fn a_table_may_change_twice_in_a_second_with_a_kill_in_between() {
    let Some(kafka) = Kafka::require("tables and a kill") else { return };
    let sample = sample_project(kafka, 1);
    let arguments = ["run", "--brokers", &sample.kafka.brokers, "--create-topics"];
    let mut running = process::start(sample.project.path(), &arguments);
    running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
    let rooms = |kitchen: bool, hall: bool| {
        let text = format!("room,restricted\nkitchen,{kitchen}\nhall,{hall}\n");
        sample.project.file("data/rooms.csv", &text);
    };
    let alerts = format!("millstream.{}.alerts", sample.customer);
    let await_alerts = |count: i64, running: &mut process::Running| {
        let deadline = Instant::now() + LONG;
        while sample.kafka.read(&alerts).len() < usize::try_from(count).unwrap() {
            assert!(!running.ended() && Instant::now() < deadline, "{}", running.stderr());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    sample.events(0..6);
    await_alerts(2, &mut running);
    rooms(true, true);
    std::thread::sleep(Duration::from_millis(300));
    rooms(false, false);
    running.kill();
    rooms(true, false);
    let mut running = process::start(sample.project.path(), &arguments);
    running.until("the pipeline", LONG, |output| output.contains("replaying recorded epochs"));
    sample.events(6..12);
    await_alerts(6, &mut running);
    running.signal("TERM");
    running.wait(LONG).ok();
    let rooms: Vec<String> = sample
        .results("alerts")
        .iter()
        .map(|row| row["room"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(rooms, ["hall", "hall", "kitchen", "kitchen", "kitchen", "kitchen"]);
}

/// Continues from a log and snapshots in an earlier format, and compares the results with those of the
/// process that wrote them. Fixtures of every released format must stay.
async fn continues_from_format(format: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
    let lines = |name: &str| -> Vec<Bytes> {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        text.lines().map(|line| Bytes::copy_from_slice(line.as_bytes())).collect()
    };
    let recovered = RecoveredLog::from_log(&lines("log.jsonl")).unwrap();
    recovered.verify().unwrap();
    let last = recovered.last.clone().unwrap();
    let reference = last.snapshot.clone().unwrap();
    let store: Arc<dyn ObjectStore> =
        Arc::new(LocalFileSystem::new_with_prefix(root.join("snapshots/old")).unwrap());
    let saved = snapshot::read(&store, &reference.path.as_str().into()).await.unwrap();

    let catalog = catalog::load(&root, &[]).unwrap();
    let customer = catalog.customers[0].clone();
    let plan = pipeline::plan(&root, &customer).await.unwrap();
    let mut engine = Engine::new(customer.clone(), plan, false, 1).unwrap();
    engine.restore(saved, &BTreeSet::new()).await.unwrap();
    for (partition, at) in &recovered.positions {
        assert_eq!(engine.position(partition), Some(*at));
    }
    for (name, recorded) in &recovered.base.as_ref().unwrap().plans {
        let now = &engine.fingerprints()[name];
        assert!(
            now.starts_with(recorded.as_str()),
            "{name}: the fingerprint of an unchanged plan differs"
        );
    }
    engine.begin(last.now).unwrap();
    let output = engine.end(&BTreeMap::new(), &[], true).await.unwrap();
    for (query, count) in [("hourly", 2), ("sliding", 9), ("middle", 1), ("corrected", 2)] {
        let topic = format!("millstream.old.{query}");
        let results = output.records.iter().filter(|record| *record.topic == *topic);
        let results: Vec<Bytes> = results.filter_map(|record| record.value.clone()).collect();
        assert_eq!(results.len(), count, "{query}");
        assert!(lines(&format!("{query}.jsonl")).ends_with(&results), "{query}: {results:?}");
    }
}

#[tokio::test]
async fn old_logs_and_snapshots_are_read() {
    for format in ["format-1", "format-2"] {
        continues_from_format(format).await;
    }
}
