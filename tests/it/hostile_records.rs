//! 100,000 malformed records of many kinds among as many good ones: the pipeline continues, every good row is
//! in history, and every bad record is a dead letter with its bytes, its position and the reason.
//!
//! A second test sends MILLSTREAM_GARBAGE hostile records, some of which are valid: each becomes a row, a dead
//! letter or a tombstone, and memory stays bounded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::kafka::{Kafka, Read, Write};
use crate::support::process;
use crate::support::project::{Project, unique};

const BAD: usize = 100_000;

/// A kind of malformed record: its name, its generator, the rejected column and a part of the reason.
struct Kind {
    name: &'static str,
    make: fn(i64) -> Vec<u8>,
    column: Option<&'static str>,
    reason: &'static str,
}

fn good(id: i64) -> String {
    format!(
        r#"{{"ts":"2024-05-01T10:{:02}:{:02}Z","id":{id},"room":"hall","n":{}}}"#,
        id / 60 % 60,
        id % 60,
        id % 7
    )
}

const fn kind(
    name: &'static str,
    column: Option<&'static str>,
    reason: &'static str,
    make: fn(i64) -> Vec<u8>,
) -> Kind {
    Kind { name, make, column, reason }
}

const KINDS: &[Kind] = &[
    kind("empty", None, "empty", |_| Vec::new()),
    kind("white space", None, "empty", |_| b" \t ".to_vec()),
    kind("not JSON", None, "JSON at byte 0: sensor", |id| {
        format!("sensor {id} says hello").into_bytes()
    }),
    kind("cut short", None, "JSON: truncated after 30 bytes", |id| {
        good(id).as_bytes()[..30].to_vec()
    }),
    kind("trailing rubbish", None, "JSON", |id| format!("{}}}", good(id)).into_bytes()),
    kind("single quotes", None, "JSON at byte 1: 'ts'", |id| {
        good(id).replace('"', "'").into_bytes()
    }),
    kind("an array", None, "not a JSON object: [", |id| format!("[{id}]").into_bytes()),
    kind("a number", None, "object", |id| id.to_string().into_bytes()),
    kind("null", None, "object", |_| b"null".to_vec()),
    kind("invalid UTF-8", None, "UTF-8 at byte ", |id| {
        let mut bytes = good(id).replace("hall", "h~ll").into_bytes();
        let at = bytes.iter().position(|b| *b == b'~').unwrap();
        bytes[at] = 0xff;
        bytes
    }),
    kind("a lone surrogate", None, "valid", |id| good(id).replace("hall", "\\ud800").into_bytes()),
    kind("missing column", Some("id"), "missing value of a NOT NULL column (column id)", |id| {
        good(id).replace("\"id\"", "\"di\"").into_bytes()
    }),
    kind("null column", Some("room"), "null in a NOT NULL column (column room", |id| {
        good(id).replace("\"hall\"", "null").into_bytes()
    }),
    kind(
        "text for a number",
        Some("id"),
        "cannot parse \"many\" as BIGINT (column id, byte 34)",
        |id| good(id).replace(&format!("\"id\":{id}"), "\"id\":\"many\"").into_bytes(),
    ),
    kind("a fraction for an integer", Some("id"), ".5 as BIGINT (column id, byte 34)", |id| {
        good(id).replace(&format!("\"id\":{id}"), &format!("\"id\":{id}.5")).into_bytes()
    }),
    kind("out of range", Some("id"), "99999999999999999999 is out of the range of BIGINT", |id| {
        good(id).replace(&format!("\"id\":{id}"), "\"id\":99999999999999999999").into_bytes()
    }),
    kind("an object for a number", Some("n"), "cannot parse {} as BIGINT (column n", |id| {
        good(id).replace(&format!("\"n\":{}", id % 7), "\"n\":{}").into_bytes()
    }),
    kind("no such month", Some("ts"), "as TIMESTAMP such as", |id| {
        good(id).replace("2024-05", "2024-13").into_bytes()
    }),
    kind("no time at all", Some("ts"), "cannot parse \"yesterday 10:", |id| {
        good(id).replace("2024-05-01T", "yesterday ").into_bytes()
    }),
    kind("the far future", Some("ts"), "future", |id| {
        good(id).replace("2024-05", "2924-05").into_bytes()
    }),
    kind("a leading zero", None, "JSON", |id| {
        good(id).replace(&format!("\"n\":{}", id % 7), "\"n\":007").into_bytes()
    }),
    kind("a control character", None, "JSON", |id| {
        good(id).replace("hall", "ha\u{1}ll").into_bytes()
    }),
];

#[test]
fn a_hundred_thousand_malformed_records_do_not_stop_the_pipeline() {
    let Some(kafka) = Kafka::require("garbage") else { return };
    let (customer, topic) = (unique("garbage"), unique("garbage_events"));
    kafka.create(&topic, 2);
    let project = Project::new();
    project
        .schema(
            &customer,
            &format!(
                "CREATE STREAM events (
  ts TIMESTAMP NOT NULL, id BIGINT NOT NULL, room VARCHAR NOT NULL, n BIGINT,
  WATERMARK FOR ts AS ts - INTERVAL '2' HOUR
) WITH (topics = '{topic}');"
            ),
        )
        .query(&customer, "total", "SELECT count(*) AS events, sum(n) AS total FROM events");
    let mut random = StdRng::seed_from_u64(5);
    let (mut sent, mut expected_total) = (BTreeMap::new(), 0);
    let mut offsets = [0_i64; 2];
    let mut records = Vec::new();
    for id in 0..i64::try_from(2 * BAD).unwrap() {
        let partition = usize::from(random.random_bool(0.5));
        let kind = (id % 2 == 1).then(|| usize::try_from(id / 2).unwrap() % KINDS.len());
        let value = kind.map_or_else(|| good(id).into_bytes(), |kind| (KINDS[kind].make)(id));
        expected_total += if kind.is_none() { id % 7 } else { 0 };
        let mut record = Write::value(value.clone()).to(i32::try_from(partition).unwrap());
        record.key = Some(format!("key {id}").into_bytes());
        record.headers = vec![("trace".into(), id.to_string().into_bytes())];
        records.push(record);
        if let Some(kind) = kind {
            sent.insert((partition.to_string(), offsets[partition].to_string()), (kind, id, value));
        }
        offsets[partition] += 1;
    }
    kafka.produce(&topic, records);
    let arguments = ["run", "--brokers", &kafka.brokers, "--create-topics", "--until-end"];
    process::run_for(project.path(), &arguments, Duration::from_secs(300)).ok();

    let ask = |sql: String| {
        let answer = process::run(project.path(), &["query", "--format", "csv", &sql]).ok();
        answer.stdout.lines().nth(1).unwrap().to_owned()
    };
    let counts =
        ask(format!("SELECT count(*), count(DISTINCT id), sum(id % 2) FROM {customer}.events"));
    assert_eq!(counts, format!("{BAD},{BAD},0"), "every valid row must be in history once");
    let last = kafka.read(&format!("millstream.{customer}.total")).pop().unwrap().json();
    assert_eq!(
        (last["events"].as_u64(), last["total"].as_i64()),
        (Some(BAD as u64), Some(expected_total))
    );

    let letters = kafka.read(&format!("millstream.{customer}.dead_letters"));
    for letter in &letters {
        check_dead_letter(letter, &mut sent);
    }
    assert!(
        sent.is_empty(),
        "{} bad records have no dead letter: {:?}",
        sent.len(),
        sent.iter().next()
    );
    assert_eq!(ask(format!("SELECT count(*) FROM {customer}.dead_letters")), BAD.to_string());
    process::run(project.path(), &["audit", "--brokers", &kafka.brokers]).ok();
}

/// Checks that a dead letter is a sent record with the right reason, and removes the record from `sent`.
fn check_dead_letter(letter: &Read, sent: &mut BTreeMap<(String, String), (usize, i64, Vec<u8>)>) {
    let header = |name: &str| letter.header(&format!("millstream.{name}"));
    let place = (header("partition").unwrap(), header("offset").unwrap());
    let (kind, id, value) = sent
        .remove(&place)
        .unwrap_or_else(|| panic!("{place:?} was valid or is duplicated: {letter:?}"));
    let Kind { name, column, reason, .. } = &KINDS[kind];
    let output = header("reason").unwrap();
    assert!(output.to_lowercase().contains(&reason.to_lowercase()), "{name}: {output}");
    assert_eq!(header("column").as_deref(), *column, "{name}: {output}");
    assert_eq!(letter.value.as_deref().unwrap_or_default(), value, "{name}: the bytes");
    assert_eq!(letter.key.as_deref(), Some(format!("key {id}").as_bytes()), "{name}: the key");
    assert_eq!(letter.header("trace"), Some(id.to_string()), "{name}: its own headers");
}

/// The expected outcome of a hostile record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Row,
    Dead,
    Tombstone,
}

type Make = fn(&str) -> String;

/// Records at the limits of validity, made from a valid record.
const EDGES: &[(Outcome, Make)] = &[
    (Outcome::Row, |good| good.replace("\"n\":", "\"n\":[{}],\"n\":")),
    (Outcome::Dead, |good| good.replace("\"n\":", "\"n\":1,\"n\":true,\"m\":")),
    (Outcome::Row, |good| good.replace("hall", "ha\\u0000ll")),
    (Outcome::Dead, |good| good.replace("hall", "ha\0ll")),
    (Outcome::Row, |good| good.replace("\"n\":", "\"n\":9223372036854775807,\"m\":")),
    (Outcome::Dead, |good| good.replace("\"n\":", "\"n\":9223372036854775808,\"m\":")),
    (Outcome::Row, |good| good.replace("\"n\":", "\"n\":-9223372036854775808,\"m\":")),
    (Outcome::Dead, |good| good.replace("\"n\":", "\"n\":-9223372036854775809,\"m\":")),
    (Outcome::Row, |good| good.replace("\"n\":", "\"n\":\"1.5e1\",\"m\":")),
    (Outcome::Dead, |good| good.replace("\"n\":", "\"n\":1e400,\"m\":")),
    (Outcome::Row, |good| {
        good.replace("\"n\":", "\"n\":-0.0e99999999999999999999,\"m\":1e400,\"m\":")
    }),
    (Outcome::Row, |good| good.replace("2024-05-01T", "0000-01-01T")),
    (Outcome::Dead, |good| good.replace("2024-05-01T", "9999-12-31T")),
    (Outcome::Dead, |good| good.replace("2024-05-01T", "10000-01-01T")),
    (Outcome::Row, |good| good.replace("hall", "\\ud83d\\ude00\u{10ffff}")),
    (Outcome::Dead, |good| good.replace("hall", "\\ude00\\ud83d")),
    (Outcome::Row, |good| nested(good, 127)),
    (Outcome::Dead, |good| nested(good, 128)),
    (Outcome::Row, |good| format!(" \r\n\t{good}\n \n")),
    (Outcome::Dead, |good| format!("\u{feff}{good}")),
];

fn nested(good: &str, depth: usize) -> String {
    let inner = format!("\"m\":{}{},\"n\":", "[".repeat(depth), "]".repeat(depth));
    good.replace("\"n\":", &inner)
}

/// Makes the hostile record with number `id`.
fn hostile(random: &mut StdRng, id: i64) -> (Outcome, Option<Vec<u8>>) {
    let good = good(id);
    match random.random_range(0..40_000) {
        0..16_000 => (Outcome::Row, Some(good.into_bytes())),
        16_000..17_000 => (Outcome::Tombstone, None),
        17_000..29_000 => {
            let kind = random.random_range(0..KINDS.len());
            (Outcome::Dead, Some((KINDS[kind].make)(id)))
        }
        29_000..39_980 => {
            let (outcome, make) = EDGES[random.random_range(0..EDGES.len())];
            (outcome, Some(make(&good).into_bytes()))
        }
        39_980..39_990 => (Outcome::Dead, Some(nested(&good, 40_000).into_bytes())),
        _ => (Outcome::Row, Some(good.replace("hall", &"\u{20ac}\\n".repeat(10_000)).into_bytes())),
    }
}

/// Produces valid and invalid texts of 10 MB: one after the other, and many in one small batch.
fn produce_huge(kafka: &Kafka, topic: &str, sent: &mut BTreeMap<Outcome, i64>) {
    let text = "x".repeat(10 << 20);
    let row = good(1).replace("hall", &text);
    let dead = format!("{row}]");
    let records = |count: usize| {
        let both = [(Outcome::Row, &row), (Outcome::Dead, &dead)];
        let all = both.into_iter().cycle().take(count).collect::<Vec<_>>();
        all.into_iter().map(|(outcome, text)| (outcome, Write::value(text.as_bytes()).to(0)))
    };
    let limit = ("message.max.bytes", "300000000");
    for settings in [
        vec![limit],
        // 200 MB in one compressed batch of a few kilobytes.
        vec![
            limit,
            ("compression.type", "zstd"),
            ("batch.size", "250000000"),
            ("linger.ms", "3000"),
        ],
        vec![
            limit,
            ("compression.type", "gzip"),
            ("batch.size", "250000000"),
            ("linger.ms", "3000"),
        ],
    ] {
        let (outcomes, records): (Vec<_>, Vec<_>) =
            records(if settings.len() == 1 { 4 } else { 20 }).unzip();
        kafka.produce_with(topic, &settings, records);
        outcomes.into_iter().for_each(|outcome| *sent.entry(outcome).or_default() += 1);
    }
}

#[test]
fn hostile_records_end_as_rows_dead_letters_or_tombstones() {
    let Some(kafka) = Kafka::require("garbage") else { return };
    let count = std::env::var("MILLSTREAM_GARBAGE").map_or(40_000, |n| n.parse().unwrap());
    let (customer, topic) = (unique("hostile"), unique("hostile_events"));
    kafka.create_with(&topic, 4, &[("max.message.bytes", "20000000")]);
    let project = Project::new();
    let schema = format!(
        "CREATE STREAM events (
  ts TIMESTAMP NOT NULL, id BIGINT NOT NULL, room VARCHAR NOT NULL, n BIGINT,
  WATERMARK FOR ts AS ts - INTERVAL '2' HOUR
) WITH (topics = '{topic}');"
    );
    project.schema(&customer, &schema);
    project.query(&customer, "total", "SELECT count(*) AS events FROM events");
    let mut random = StdRng::seed_from_u64(55);
    let mut sent = BTreeMap::new();
    let records = (0..count).map(|id| {
        let (outcome, value) = hostile(&mut random, id);
        *sent.entry(outcome).or_insert(0) += 1;
        Write { value, key: Some(vec![b'k']), ..Write::default() }.to((id % 4) as i32)
    });
    kafka.produce(&topic, records);
    produce_huge(&kafka, &topic, &mut sent);

    let arguments = ["run", "--brokers", &kafka.brokers, "--create-topics", "--until-end"];
    let mut running = process::start(project.path(), &arguments);
    let mut peak = 0;
    let deadline = Instant::now() + Duration::from_secs(300 + count.unsigned_abs() / 5_000);
    while !running.ended() && Instant::now() < deadline {
        peak = running.peak_memory().unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = running.wait(Duration::from_secs(1)).ok().took;
    println!("{sent:?} in {took:.1?}, {} MiB of memory at most", peak >> 20);
    assert!(peak < 3 << 30, "{} MiB of memory", peak >> 20);

    let ask = |table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {customer}.{table}");
        let answer = process::run(project.path(), &["query", "--format", "csv", &sql]).ok();
        answer.stdout.lines().nth(1).unwrap().parse().unwrap()
    };
    assert_eq!((ask("events"), ask("dead_letters")), (sent[&Outcome::Row], sent[&Outcome::Dead]));
    let total: i64 = sent.values().sum();
    let ends: i64 = kafka.ends(&topic).into_iter().map(|(_, end)| end).sum();
    assert_eq!(total, ends, "rows, dead letters and tombstones must equal the produced records");
    let last = kafka.read(&format!("millstream.{customer}.total")).pop().unwrap().json();
    assert_eq!(last["events"].as_i64(), Some(sent[&Outcome::Row]));
    process::run_for(
        project.path(),
        &["audit", "--brokers", &kafka.brokers],
        Duration::from_secs(600),
    )
    .ok();
}
