//! Failures that must not stop a pipeline, or must stop it cleanly: values that are too large, a customer
//! with wrong files, an unavailable broker, a reset.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;

use crate::sample_project::{LONG, SampleProject, sample_project};
use crate::support::kafka::{Kafka, Write};
use crate::support::process::{self, run};
use crate::support::project::{Project, unique};

fn event(minute: i64, sensor: i64, room: &str) -> Write {
    Write::value(format!(
        r#"{{"ts":"2024-05-01 10:{minute:02}:00","sensor":{sensor},"room":"{room}"}}"#
    ))
}

fn topic(sample: &SampleProject, name: &str) -> String {
    format!("millstream.{}.{name}", sample.customer)
}

#[test]
fn a_result_that_is_too_large_is_a_dead_letter_and_the_others_go_on() {
    let Some(kafka) = Kafka::require("large values") else { return };
    let sample = sample_project(kafka, 1);
    // A result contains the room in its key and in its value, so it is larger than the event.
    sample.project.query(
        &sample.customer,
        "by_room",
        "SELECT room, count(*) AS events FROM events GROUP BY room",
    );
    let large = "x".repeat(700_000);
    sample.kafka.produce(&sample.topic, [event(1, 1, "hall"), event(2, 2, &large)]);
    let output = sample.run(&["--create-topics", "--until-end"]).ok().output();
    assert!(output.contains("larger than its topic takes"), "{output}");
    sample.kafka.produce(&sample.topic, [event(3, 3, "kitchen")]);
    sample.run(&["--drain"]).ok();

    assert_eq!(sample.query("SELECT room FROM {c}.by_room ORDER BY room"), ["hall", "kitchen"]);
    assert_eq!(sample.results("hourly").len(), 2);
    let mut dead = sample.kafka.read(&topic(&sample, "dead_letters"));
    dead.sort_by_key(|letter| letter.header("millstream.query"));
    let queries: Vec<_> = dead.iter().filter_map(|l| l.header("millstream.query")).collect();
    assert_eq!(queries, ["by_room", "hourly"]);
    assert_eq!(dead[0].header("millstream.stage").as_deref(), Some("result"));
    let reason = dead[0].header("millstream.reason").unwrap();
    assert!(reason.contains(&topic(&sample, "by_room")) && reason.contains("1048588"), "{reason}");
    assert!(dead[0].value.as_ref().unwrap().len() > 700_000, "the dead letter has the whole value");
    let told = sample.query("SELECT stage, query FROM {c}.dead_letters ORDER BY query");
    assert_eq!(told, ["result,by_room", "result,hourly"]);
    run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]).ok();
}

#[test]
fn a_dead_letter_that_is_too_large_is_cut_and_says_so() {
    let Some(kafka) = Kafka::require("large dead letters") else { return };
    let mut sample = sample_project(kafka, 1);
    sample.topic = unique("large_events");
    sample.kafka.create_with(&sample.topic, 1, &[("max.message.bytes", "20000000")]);
    let schema = format!(
        "CREATE STREAM events (ts TIMESTAMP NOT NULL, sensor BIGINT NOT NULL, room VARCHAR NOT NULL,
           WATERMARK FOR ts AS ts) WITH (topics = '{}');
         CREATE EXTERNAL TABLE rooms STORED AS CSV LOCATION 'data/rooms.csv';",
        sample.topic
    );
    sample.project.schema(&sample.customer, &schema);
    let bad = format!(r#"{{"ts":"no time","sensor":1,"room":"{}"}}"#, "z".repeat(9_000_000));
    sample.kafka.produce_large(&sample.topic, [Write::value(bad)]);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let dead = sample.kafka.read(&topic(&sample, "dead_letters"));
    let cut = dead[0].header("millstream.cut").unwrap();
    assert!(cut.contains("value: 9000037 bytes"), "{cut}");
    assert_eq!(dead[0].header("millstream.offset").as_deref(), Some("0"));
    let told = sample.query("SELECT \"column\", length(value) > 8000000 FROM {c}.dead_letters");
    assert_eq!(told, ["ts,true"]);
    run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]).ok();
    let retry = ["dead-letters", "retry", "--brokers", &sample.kafka.brokers];
    let output = run(sample.project.path(), &retry).ok().output();
    assert!(output.contains("1 were larger than the topic takes"), "{output}");
}

#[test]
fn an_error_of_one_customer_does_not_stop_another() {
    let Some(kafka) = Kafka::require("customers apart") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..70);
    let schema = |topic: &str| {
        format!(
            "CREATE STREAM events (ts TIMESTAMP NOT NULL, WATERMARK FOR ts AS ts) WITH (topics = '{topic}');"
        )
    };
    let (lost, broken) = (unique("lost"), unique("broken"));
    sample.project.schema(&lost, &schema(&unique("no_such_topic")));
    sample.project.schema(&broken, "CREATE STREM events ();");
    let first = sample.run(&["--create-topics", "--until-end", "--customer", &sample.customer]);
    first.ok();

    sample.events(70..130);
    let output = sample.run(&["--drain"]).failed().output();
    assert!(output.contains("not started: its files have errors"), "{output}");
    assert!(output.contains("CREATE STREM"), "{output}");
    assert!(output.contains("topics are missing"), "{output}");
    assert!(output.contains(&format!("the pipelines of {lost} failed")), "{output}");
    let events = sample.hourly_events();
    assert_eq!(events, 130, "the third customer's pipeline has completed");
}

#[test]
fn a_reset_retracts_the_rows_of_a_view() {
    let Some(kafka) = Kafka::require("reset of views") else { return };
    let sample = sample_project(kafka, 1);
    sample.kafka.produce(&sample.topic, [event(1, 1, "hall"), event(2, 2, "hall")]);
    sample.run(&["--create-topics", "--until-end"]).ok();
    assert_eq!(sample.query("SELECT sensor FROM {c}.latest ORDER BY sensor"), ["1", "2"]);
    sample.kafka.produce(&sample.topic, [event(3, 2, "hall")]);
    let output = sample.run(&["--until-end", "--reset", &sample.customer]).ok().output();
    assert!(output.contains("state is dropped"), "{output}");
    assert!(output.contains("query=\"hourly\" windows=1"), "{output}");
    // Sensor 1 has no events after the reset; sensor 2 has one.
    assert_eq!(sample.query("SELECT sensor, events FROM {c}.latest"), ["2,1"]);
    let records = sample.kafka.read(&topic(&sample, "latest"));
    let tombstones = records.iter().filter(|record| record.value.is_none()).count();
    assert_eq!(tombstones, 2);
    // The same for one query alone.
    let name = format!("{}/latest", sample.customer);
    sample.run(&["--until-end", "--reset", &name]).ok();
    assert!(sample.query("SELECT sensor FROM {c}.latest").is_empty());
}

#[test]
fn after_a_reset_closed_windows_stay_closed() {
    let Some(kafka) = Kafka::require("reset and time") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..130);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let before = sample.results("hourly");
    assert!(before.len() >= 2, "{before:?}");
    sample.events(5..6);
    sample.run(&["--until-end", "--reset", &sample.customer]).ok();
    assert_eq!(sample.results("hourly"), before);
    let late = sample.query("SELECT query FROM {c}.events_late");
    assert_eq!(late, ["hourly"], "the row is published as late");
}

#[test]
fn a_reset_after_a_kill_loses_nothing_of_history() {
    let Some(kafka) = Kafka::require("kill and reset") else { return };
    let sample = sample_project(kafka, 1);
    let arguments = ["run", "--brokers", &sample.kafka.brokers, "--create-topics"];
    let mut running = process::start(sample.project.path(), &arguments);
    running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
    sample.events(0..70);
    // Once results exist, the epoch is committed; history commits up to ten seconds later.
    let deadline = Instant::now() + LONG;
    while sample.kafka.ends(&topic(&sample, "latest"))[0].1 == 0 {
        assert!(Instant::now() < deadline, "no results");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_secs(1));
    running.kill();
    sample.run(&["--until-end", "--reset", &sample.customer]).ok();
    run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]).ok();
    assert_eq!(sample.query("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"), ["70,70"]);
}

#[test]
fn processes_that_live_shorter_than_the_snapshot_interval_take_snapshots() {
    let Some(kafka) = Kafka::require("short lives") else { return };
    let sample = sample_project(kafka, 1);
    let arguments = [
        "run",
        "--brokers",
        &sample.kafka.brokers,
        "--create-topics",
        "--snapshot-interval",
        "20 s",
    ];
    let folder = sample.project.path().join(".millstream/snapshots").join(&sample.customer);
    let has_snapshot = || {
        let folders = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.map(|folder| folder.path().join("manifest.json")).any(|file| file.exists())
    };
    let test_start = Instant::now();
    for run in 0.. {
        let mut running = process::start(sample.project.path(), &arguments);
        sample.events(run * 6..run * 6 + 6);
        let born = Instant::now();
        while born.elapsed() < Duration::from_secs(5) && !has_snapshot() {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(!running.ended(), "{}", running.stderr());
        running.kill();
        if has_snapshot() {
            break;
        }
        assert!(test_start.elapsed() < LONG, "no snapshot after {run} runs of five seconds");
    }
}

#[test]
fn a_failed_start_does_not_affect_the_running_process() {
    let Some(kafka) = Kafka::require("a failing start") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..10);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let arguments = ["run", "--brokers", &sample.kafka.brokers];
    let mut running = process::start(sample.project.path(), &arguments);
    running.until("the pipeline", LONG, |output| output.contains("replaying recorded epochs"));
    std::thread::sleep(Duration::from_secs(2));
    let output = sample.run(&["--data-dir", "elsewhere"]).failed().output();
    assert!(output.contains("is --data-dir elsewhere the folder of the last run?"), "{output}");
    sample.events(10..70);
    std::thread::sleep(Duration::from_secs(2));
    assert!(!running.ended(), "{}", running.stderr());
    running.signal("TERM");
    running.wait(LONG).ok();
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events"), ["70"]);
}

#[test]
fn views_agree_after_one_of_them_is_reset() {
    let Some(kafka) = Kafka::require("reset of one view") else { return };
    let sample = sample_project(kafka, 1);
    sample.project.query(
        &sample.customer,
        "number",
        "CREATE MATERIALIZED VIEW number AS SELECT count(*) AS sensors FROM latest",
    );
    sample.events(0..10);
    sample.run(&["--create-topics", "--until-end"]).ok();
    assert_eq!(sample.query("SELECT sensors FROM {c}.number"), ["5"]);
    let reset = |query: &str| {
        let name = format!("{}/{query}", sample.customer);
        sample.run(&["--until-end", "--reset", &name]).ok();
        sample.run(&["--until-end"]).ok();
        sample.query("SELECT sensors FROM {c}.number")
    };
    assert_eq!(reset("number"), ["5"], "computed from the other view at once");
    assert_eq!(reset("latest"), ["0"]);
}

#[test]
fn a_reference_table_may_change_between_starts() {
    let Some(kafka) = Kafka::require("tables over restarts") else { return };
    let sample = sample_project(kafka, 1);
    let rooms = |rows: &str| {
        sample.project.file("data/rooms.csv", &format!("room,restricted,area\n{rows}"));
    };
    rooms("kitchen,false,10\nhall,true,12\n");
    sample.kafka.produce(&sample.topic, [event(1, 1, "hall")]);
    sample.run(&["--create-topics", "--until-end"]).ok();
    for (minute, rows) in [(2, "hall,true,12.5\n"), (3, "hall,true,12\n"), (4, "hall,true,x\n")] {
        rooms(rows);
        sample.kafka.produce(&sample.topic, [event(minute, 1, "hall")]);
        sample.run(&["--until-end"]).ok();
    }
    std::fs::remove_file(sample.project.path().join("data/rooms.csv")).unwrap();
    sample.kafka.produce(&sample.topic, [event(5, 1, "hall")]);
    let output = sample.run(&["--until-end"]).ok().output();
    assert!(output.contains("there is no file 'data/rooms.csv'"), "{output}");
    assert_eq!(sample.results("alerts").len(), 5, "the last valid content stays in use");
}

#[test]
fn the_audit_of_a_recreated_topic_succeeds_after_a_reset() {
    let Some(kafka) = Kafka::require("audit of a recreated topic") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..20);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let audit = || run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]);
    sample.kafka.delete(&sample.topic);
    let output = audit().failed().output();
    assert!(output.contains("it is gone from Kafka"), "{output}");
    sample.kafka.create(&sample.topic, 1);
    sample.events(0..5);
    let output = audit().failed().output();
    assert!(output.contains("Kafka ends at 5"), "{output}");
    sample.run(&["--until-end", "--reset", &sample.customer]).ok();
    let output = audit().ok().output();
    assert!(output.contains("the topic was deleted and recreated"), "{output}");
}

/// A small project and a broker inside this process.
fn embedded() -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, Project) {
    let cluster = MockCluster::new(1).unwrap();
    for name in [
        "in",
        "millstream.a.log",
        "millstream.a.dead_letters",
        "millstream.a.q",
        "millstream.a.events_late",
    ] {
        cluster.create_topic(name, 1, 1).unwrap();
    }
    let project = Project::new();
    project
        .schema("a", "CREATE STREAM events (ts TIMESTAMP NOT NULL, WATERMARK FOR ts AS ts) WITH (topics = 'in');")
        .query("a", "q", "SELECT ts FROM events");
    (cluster, project)
}

/// The response to GET; empty if the connection is refused.
pub(crate) fn get(address: &str, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    let mut answer = String::new();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn without_kafka_it_is_not_ready_and_stops_at_once() {
    let (cluster, project) = embedded();
    let brokers = cluster.bootstrap_servers();
    let arguments = ["run", "--brokers", &brokers, "--http", "127.0.0.1:0"];
    let mut running = process::start(project.path(), &arguments);
    running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
    let output = running.stderr();
    let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
    let wait_for = |wanted: &str, limit: Duration| {
        let deadline = Instant::now() + limit;
        while !get(address, "/readyz").contains(wanted) {
            assert!(Instant::now() < deadline, "{wanted}: {}", get(address, "/readyz"));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    wait_for("ready\n", LONG);
    let producer = Kafka { brokers: brokers.clone() };
    producer.produce("in", [Write::value(r#"{"ts":"2024-05-01T10:00:00Z"}"#)]);
    std::thread::sleep(Duration::from_secs(2));
    drop(cluster);
    wait_for("Kafka has not responded for", Duration::from_secs(20));
    running.signal("INT");
    let begun = Instant::now();
    let finished = running.wait(LONG);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(finished.stderr.contains("stopped without the last commit"), "{}", finished.stderr);
}

#[test]
fn it_stops_at_once_while_kafka_does_not_respond() {
    // A listener that never responds.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let brokers = silent.local_addr().unwrap().to_string();
    let project = embedded().1;
    let running = process::start(project.path(), &["run", "--brokers", &brokers]);
    std::thread::sleep(Duration::from_secs(2));
    running.signal("TERM");
    let begun = Instant::now();
    running.wait(LONG).ok();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
