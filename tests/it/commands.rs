//! The commands, run as a user runs them.

use std::time::{Duration, Instant};

use crate::sample_project::{LONG, sample_project};
use crate::support::kafka::{Kafka, Write};
use crate::support::process::{self, run, start};
use crate::support::project::{Project, unique};

#[test]
fn check_shows_all_errors_with_a_caret_and_a_hint() {
    let project = Project::new();
    project
        .schema("c", "CREATE STREAM events (ts TIMESTAMP NOT NULL, n BIGINT, WATERMARK FOR ts AS ts) WITH (topics = 'e');")
        .query("c", "good", "SELECT ts FROM events WHERE n > 1")
        .query("c", "unknown_stream", "SELECT n\nFROM evnets")
        .query("c", "unknown_column", "SELECT m FROM events")
        .query("c", "no_window", "CREATE STREAM x AS SELECT n, count(*) AS c FROM events GROUP BY n")
        .query(
            "c",
            "session",
            "SELECT window_start, count(*) AS c FROM SESSION(TABLE events, DESCRIPTOR(ts), INTERVAL '5' MINUTE) GROUP BY window_start, window_end",
        );
    let output = run(project.path(), &["check"]).failed().output();
    for file in ["unknown_stream.sql:2:6", "unknown_column.sql:1:8", "no_window.sql", "session.sql"]
    {
        assert!(output.contains(file), "{file} is not named\n{output}");
    }
    assert!(output.contains("2 | FROM evnets\n  |      ^"), "no caret under the word\n{output}");
    assert!(output.contains("did you mean") && output.contains("'events'"), "no hint\n{output}");
    assert!(output.contains("SESSION"), "{output}");
    assert!(!output.contains("good.sql"), "{output}");
}

#[test]
fn the_repository_passes_its_own_check_and_explains_the_plan_parts() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = run(root, &["check"]).ok().stdout;
    for query in [
        "daily_visits",
        "room_visits",
        "current_room",
        "occupancy",
        "overcrowded",
        "presence_alert",
        "room_usage",
        "latency",
    ] {
        assert!(output.contains(query), "{query} is not described\n{output}");
    }
    for word in ["inputs", "windows", "state", "topic", "key", "columns"] {
        assert!(output.contains(word), "{word} is not described\n{output}");
    }
    let output = run(root, &["explain", "customer_a/daily_visits"]).ok().stdout.to_lowercase();
    for word in ["batch plan", "window state", "final plan", "aggregate"] {
        assert!(output.contains(word), "{word} is not explained\n{output}");
    }
}

#[test]
fn check_ends_with_a_summary_and_warns() {
    let project = Project::new();
    project
        .schema("c", "CREATE STREAM events (ts TIMESTAMP NOT NULL, n BIGINT, WATERMARK FOR ts AS ts) WITH (topics = 'e');")
        .query("c", "named", "SELECT ts, n FROM events WHERE n > 1")
        .query(
            "c",
            "lost",
            "SELECT n, sum(n + 1) FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' DAY) GROUP BY window_start, window_end, n",
        );
    let output = run(project.path(), &["check"]).ok().stdout;
    assert_eq!(output.lines().last(), Some("ok: 1 customer, 2 queries"), "{output}");
    assert!(output.contains("state    partials: sum(events.n + 1); keys events.n\n"), "{output}");
    assert!(output.contains("columns  ts TIMESTAMP, n BIGINT\n"), "{output}");
    assert!(
        output.contains("warning  no result column identifies the window of a row"),
        "{output}"
    );
    assert_eq!(output.matches("warning  ").count(), 2, "{output}");

    project.schema("c", "CREATE STREAM events (ts TIMESTAMP NOT NULL, n BIGINT, WATERMARK FOR ts AS ts) WITH (topics = 'e', formt = 'json');");
    let output = run(project.path(), &["check"]).failed();
    assert!(output.stderr.ends_with("1 error found\n"), "{}", output.stderr);
    assert!(!output.output().contains("no stream"), "{}", output.output());
}

#[test]
fn a_wrong_data_dir_is_an_error() {
    let project = Project::new();
    project
        .schema("c", "CREATE STREAM events (ts TIMESTAMP NOT NULL, n BIGINT, WATERMARK FOR ts AS ts) WITH (topics = 'e');")
        .query("c", "all", "SELECT ts, n FROM events");
    for arguments in [
        &["query", "--data-dir", "nowhere", "SELECT * FROM events"][..],
        &["query", "--data-dir", "nowhere", "SHOW TABLES"],
        &["replay", "--data-dir", "nowhere", "c/all"],
    ] {
        let output = run(project.path(), arguments).failed().output();
        assert!(
            output.contains("no history found in nowhere") && output.contains("--data-dir"),
            "{output}"
        );
    }
    let range = ["replay", "c/all", "--from", "2020-01-02", "--to", "2020-01-02"];
    let output = run(project.path(), &range).failed().output();
    assert!(output.contains("--from is not before --to"), "{output}");
}

#[test]
fn a_missing_topic_is_named_and_not_created() {
    let Some(kafka) = Kafka::require("missing topic") else { return };
    let customer = unique("missing");
    let topic = unique("nowhere");
    let project = Project::new();
    project
        .schema(&customer, &format!("CREATE STREAM e (ts TIMESTAMP NOT NULL, WATERMARK FOR ts AS ts) WITH (topics = '{topic}');"))
        .query(&customer, "all", "SELECT ts FROM e");
    let output =
        run(project.path(), &["run", "--brokers", &kafka.brokers, "--until-end"]).failed().output();
    assert!(output.contains(&topic) && output.contains("--create-topics"), "{output}");
    assert!(!kafka.topics().contains(&topic));
}

#[test]
fn until_end_leaves_windows_open_and_drain_closes_them_for_good() {
    let Some(kafka) = Kafka::require("until-end") else { return };
    let sample = sample_project(kafka, 2);
    sample.events(0..90);
    sample.run(&["--create-topics", "--until-end"]).ok();
    // Two partitions' watermarks may both have passed 11:00, or one of them may be behind.
    let early = sample.results("hourly").len();
    assert!(early == 0 || early == 2, "{early}");
    sample.events(90..125);
    sample.run(&["--until-end"]).ok();
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events"), ["125"]);
    sample.run(&["--drain"]).ok();
    let mut rows: Vec<_> = sample
        .results("hourly")
        .iter()
        .map(|r| {
            (
                r["window_start"].to_string(),
                r["room"].to_string(),
                r["events"].to_string(),
                r["sensors"].to_string(),
            )
        })
        .collect();
    rows.sort();
    let row = |hour: &str, room: &str, events: &str, sensors: &str| {
        let start = format!("\"2024-05-01T{hour}:00:00+03:00\"");
        (start, format!("\"{room}\""), events.to_owned(), sensors.to_owned())
    };
    let expected = [
        row("10", "hall", "20", "5"),
        row("10", "kitchen", "40", "5"),
        row("11", "hall", "20", "5"),
        row("11", "kitchen", "40", "5"),
        row("12", "hall", "2", "2"),
        row("12", "kitchen", "3", "3"),
    ];
    assert_eq!(rows, expected);
    assert_eq!(sample.query("SELECT count(*) FROM {c}.hourly"), ["6"]);

    let output = sample.run(&["--until-end"]).failed().output();
    assert!(output.contains("drained") && output.contains("--reset"), "{output}");
    sample.events(125..130);
    sample.run(&["--until-end", "--reset", &sample.customer]).ok();
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events"), ["130"]);
    run(sample.project.path(), &["audit", "--brokers", &sample.kafka.brokers]).ok();
}

#[test]
fn without_history_there_are_results_and_no_tables() {
    let Some(kafka) = Kafka::require("history off") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..70);
    sample.run(&["--create-topics", "--drain", "--history", "off"]).ok();
    let rows = sample.results("hourly");
    assert_eq!(rows.iter().map(|r| r["events"].as_i64().unwrap()).sum::<i64>(), 70);
    assert!(!sample.project.path().join(".millstream/history").exists());
    let output = run(sample.project.path(), &["query", "SELECT * FROM nowhere"]).failed().output();
    assert!(output.contains("nowhere"), "{output}");
}

#[test]
fn sigterm_stops_within_five_seconds_and_the_next_run_continues() {
    let Some(kafka) = Kafka::require("signal") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..30);
    let brokers = sample.kafka.brokers.clone();
    let arguments = ["run", "--brokers", &brokers, "--create-topics"];
    let mut running = start(sample.project.path(), &arguments);
    let deadline = Instant::now() + LONG;
    while !sample.kafka.topics().contains(&format!("millstream.{}.alerts", sample.customer))
        || sample.results("alerts").len() < 10
    {
        assert!(!running.ended() && Instant::now() < deadline, "{}", running.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    let since = Instant::now();
    running.signal("TERM");
    let finished = running.wait(Duration::from_secs(30)).ok();
    assert!(
        since.elapsed() < Duration::from_secs(5),
        "it took {:?}\n{}",
        since.elapsed(),
        finished.stderr
    );
    sample.events(30..60);
    sample.run(&["--drain"]).ok();
    assert_eq!(sample.results("alerts").len(), 20);
    let rows = sample.results("hourly");
    assert_eq!(rows.iter().map(|r| r["events"].as_i64().unwrap()).sum::<i64>(), 60);
}

#[test]
fn replay_gives_the_rows_of_the_stream() {
    let Some(kafka) = Kafka::require("replay") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..125);
    // Half an hour late: refused by the window of 10:00, but stored in history.
    sample.events(10..13);
    sample.run(&["--create-topics", "--drain"]).ok();
    let file = format!("queries/{}/hourly.sql", sample.customer);
    let range = ["--from", "2024-05-01", "--to", "2024-05-02", "--format", "csv"];
    let replay = |more: &[&str]| {
        let arguments = [&["replay", &file], &range[..], more].concat();
        let mut rows: Vec<String> = run(sample.project.path(), &arguments)
            .ok()
            .stdout
            .lines()
            .skip(1)
            .map(str::to_owned)
            .collect();
        rows.sort();
        rows
    };
    let mut streamed =
        sample.query("SELECT window_start, window_end, room, events, sensors FROM {c}.hourly");
    streamed.sort();
    assert_eq!(replay(&["--as-streamed"]), streamed);
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events_late WHERE query = 'hourly'"), ["3"]);
    let sum = |rows: &[String]| {
        rows.iter().map(|r| r.split(',').nth(3).unwrap().parse::<i64>().unwrap()).sum::<i64>()
    };
    assert_eq!((sum(&streamed), sum(&replay(&[]))), (125, 128));
}

#[test]
fn query_supports_every_format_and_every_source_of_sql() {
    let Some(kafka) = Kafka::require("formats") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..10);
    sample.run(&["--create-topics", "--drain"]).ok();
    let folder = sample.project.path();
    let sql = format!(
        "SELECT room, count(*) AS n FROM {}.events GROUP BY room ORDER BY room",
        sample.customer
    );
    let csv = run(folder, &["query", "--format", "csv", &sql]).ok().stdout;
    assert_eq!(csv, "room,n\nhall,4\nkitchen,6\n");
    let json = run(folder, &["query", "--format", "json", &sql]).ok().stdout;
    assert_eq!(
        json.lines().collect::<Vec<_>>(),
        [r#"{"room":"hall","n":4}"#, r#"{"room":"kitchen","n":6}"#]
    );
    let table = run(folder, &["query", &sql]).ok().stdout;
    assert!(table.contains("| hall") && table.contains("| room"), "{table}");
    sample.project.file("q.sql", &sql);
    assert_eq!(run(folder, &["query", "--format", "csv", "--file", "q.sql"]).ok().stdout, csv);
    let piped = process::start_with_stdin(folder, &["query", "--format", "csv"], Some(&sql))
        .wait(LONG)
        .ok();
    assert_eq!(piped.stdout, csv);
    run(folder, &["query", "--format", "parquet", "--output", "out.parquet", &sql]).ok();
    let bytes = std::fs::read(folder.join("out.parquet")).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
    // A keyed result: its name is the latest row of each key, its _changes every change.
    assert_eq!(
        sample.query("SELECT sensor, events FROM {c}.latest ORDER BY sensor"),
        ["0,2", "1,2", "2,2", "3,2", "4,2"]
    );
    let changes =
        sample.query("SELECT count(*) FROM {c}.latest_changes")[0].parse::<usize>().unwrap();
    assert!(changes >= 5, "{changes}");
    let output = run(folder, &["query", "SELECT * FROM nowhere.nothing"]).failed().output();
    assert!(output.contains("nothing"), "{output}");
}

#[test]
fn subscribe_follows_a_results_topic() {
    let Some(kafka) = Kafka::require("subscribe") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..10);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let brokers = sample.kafka.brokers.clone();
    let arguments = [
        "subscribe",
        &sample.customer,
        "alerts",
        "--brokers",
        &brokers,
        "--from-beginning",
        "--format",
        "json",
    ];
    let mut follower = start(sample.project.path(), &arguments);
    let rows = |text: &str| text.lines().filter(|l| l.contains("\"room\":\"hall\"")).count();
    follower.until("the alerts so far", LONG, |text| rows(text) == 4);
    sample.events(10..16);
    sample.run(&["--until-end"]).ok();
    follower.until("the new alerts", LONG, |text| rows(text) == 6);
    follower.signal("INT");
    let output = follower.wait(Duration::from_secs(10)).stderr;
    assert!(
        output.contains("no more results are read") && !output.contains("snapshot"),
        "{output}"
    );
}

#[test]
fn an_unreachable_broker_is_named_within_seconds_and_without_colours() {
    let project = Project::new();
    let arguments = ["subscribe", "c", "q", "--brokers", "127.0.0.1:1"];
    let mut running = start(project.path(), &arguments);
    running.until("the silent broker", Duration::from_secs(5), |output| {
        output.contains("WARN")
            && output.contains("retrying: 127.0.0.1:1")
            && output.contains("Connection refused")
    });
    assert!(!running.ended() && !running.stderr().contains('\u{1b}'), "{}", running.stderr());
}

#[test]
fn dead_letters_are_sent_again_once_the_schema_accepts_them() {
    let Some(kafka) = Kafka::require("retry") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..5);
    let odd = |m: i64| {
        Write::value(format!(r#"{{"ts":"2024-05-01 10:{m:02}:00","sensor":1,"place":"hall"}}"#))
    };
    sample.kafka.produce(&sample.topic, (5..8).map(odd));
    sample.kafka.produce(&sample.topic, [Write::value("rubbish")]);
    sample.run(&["--create-topics", "--until-end"]).ok();
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events"), ["5"]);
    let retry = |more: &[&str]| {
        let arguments =
            [&["dead-letters", "retry", "--brokers", &sample.kafka.brokers][..], more].concat();
        run(sample.project.path(), &arguments).ok().stdout
    };
    assert!(retry(&[]).contains("0 dead letters fed again, 4 still"), "nothing fits yet");
    // The room may be missing from now on.
    let schema = std::fs::read_to_string(
        sample.project.path().join(format!("schemas/{}.sql", sample.customer)),
    )
    .unwrap();
    sample
        .project
        .schema(&sample.customer, &schema.replace("room VARCHAR NOT NULL", "room VARCHAR"));
    let output = retry(&[]);
    assert!(output.contains("3 dead letters fed again, 1 still"), "{output}");
    let output = retry(&[]);
    assert!(output.contains("0 dead letters fed again, 1 still"), "twice: {output}");
    let ends = sample.kafka.ends(&sample.topic);
    assert!(ends[0].1 >= 12, "{ends:?}");
}

#[test]
fn an_edited_reference_table_takes_effect_while_running() {
    let Some(kafka) = Kafka::require("table") else { return };
    let sample = sample_project(kafka, 1);
    sample.events(0..6);
    let brokers = sample.kafka.brokers.clone();
    let mut running =
        start(sample.project.path(), &["run", "--brokers", &brokers, "--create-topics"]);
    let alerts = |count: usize, running: &mut process::Running| {
        let deadline = Instant::now() + LONG;
        let topic = format!("millstream.{}.alerts", sample.customer);
        while !sample.kafka.topics().contains(&topic) || sample.results("alerts").len() < count {
            assert!(!running.ended() && Instant::now() < deadline, "{}", running.stderr());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(sample.results("alerts").len(), count);
    };
    alerts(2, &mut running);
    sample.project.file("data/rooms.csv", "room,restricted\nkitchen,true\nhall,true\n");
    std::thread::sleep(Duration::from_secs(5));
    sample.events(6..12);
    alerts(8, &mut running);
    running.signal("TERM");
    running.wait(Duration::from_secs(30)).ok();
}

#[test]
fn a_topic_that_matches_the_pattern_is_discovered_while_running_and_after_a_restart() {
    let Some(kafka) = Kafka::require("pattern") else { return };
    let (customer, prefix) = (unique("pattern"), unique("sensor"));
    kafka.create(&format!("{prefix}_1"), 1);
    let project = Project::new();
    project
        .schema(
            &customer,
            &format!(
                "CREATE STREAM e (ts TIMESTAMP NOT NULL, n BIGINT NOT NULL, topic VARCHAR METADATA FROM 'topic',
  WATERMARK FOR ts AS ts - INTERVAL '1' MINUTE) WITH (topic_pattern = '{prefix}_[0-9]+');"
            ),
        )
        .query(&customer, "copy", "SELECT topic, n FROM e");
    let event = |n: i64| Write::value(format!(r#"{{"ts":"2024-05-01T10:00:0{n}Z","n":{n}}}"#));
    kafka.produce(&format!("{prefix}_1"), (0..3).map(event));
    let mut running =
        start(project.path(), &["run", "--brokers", &kafka.brokers, "--create-topics"]);
    let topic = format!("millstream.{customer}.copy");
    let rows = |count: usize, running: &mut process::Running| {
        let deadline = Instant::now() + LONG;
        while !kafka.topics().contains(&topic) || kafka.read(&topic).len() < count {
            assert!(!running.ended() && Instant::now() < deadline, "{}", running.stderr());
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    rows(3, &mut running);
    kafka.create(&format!("{prefix}_2"), 1);
    kafka.produce(&format!("{prefix}_2"), (3..7).map(event));
    rows(7, &mut running);
    let of = |number: i64| {
        let name = format!("{prefix}_{number}");
        kafka.read(&topic).iter().filter(|r| r.json()["topic"] == name).count()
    };
    assert_eq!(of(2), 4);
    running.signal("TERM");
    running.wait(Duration::from_secs(30)).ok();

    kafka.create(&format!("{prefix}_3"), 1);
    kafka.produce(&format!("{prefix}_3"), (7..9).map(event));
    process::run_for(project.path(), &["run", "--brokers", &kafka.brokers, "--until-end"], LONG)
        .ok();
    assert_eq!([of(1), of(2), of(3)], [3, 4, 2]);
}

#[test]
fn the_demo_runs_without_kafka_and_its_history_can_be_queried() {
    let folder = tempfile::tempdir().unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = folder.path().join("state");
    let data = data.to_str().unwrap();
    let arguments = ["demo", "--for", "40s", "--speed", "7200x", "--data-dir", data];
    let mut demo = start(root, &arguments);
    // The demo prints a query to try.
    demo.until("the query to try", LONG, |text| text.contains("millstream query"));
    std::thread::sleep(Duration::from_secs(22));
    assert!(!demo.ended(), "{}{}", demo.stdout(), demo.stderr());
    let lines = demo.stdout();
    let data = demo_data(&lines).unwrap_or_else(|| data.to_owned());
    let count = |what: &str| {
        let sql = format!("SELECT count(*) AS n FROM {what}");
        let answer =
            run(root, &["query", "--data-dir", &data, "--format", "csv", &sql]).ok().stdout;
        answer.lines().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let during = count("customer_a.positions");
    let finished = demo.wait(LONG).ok();
    let after = count("customer_a.positions");
    assert!(during > 0 && after >= during, "{during} then {after}\n{}", finished.output());
    assert!(count("customer_a.daily_visits") > 0, "a day window closed\n{}", finished.output());
    assert!(count("customer_a.dead_letters") > 0, "one sensor is broken\n{}", finished.output());
}

/// The data folder that the demo names in the query to try.
fn demo_data(text: &str) -> Option<String> {
    let line = text.lines().find(|l| l.contains("millstream query") && l.contains("--data-dir"))?;
    let rest = line.split("--data-dir").nth(1)?.trim_start_matches(['=', ' ']);
    Some(rest.split_whitespace().next()?.trim_matches(['"', '\'']).to_owned())
}
