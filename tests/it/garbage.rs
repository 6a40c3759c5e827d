//! 100,000 malformed records of many kinds among as many good ones: nothing stops, every good row
//! is in history, every bad one is a dead letter with its bytes, its place and the reason.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::kafka::{Kafka, Read, Write};
use crate::support::process;
use crate::support::project::{Project, unique};

const BAD: usize = 100_000;

/// A kind of malformed record: its name, how it is made, the column and a word of the reason.
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
    kind("cut short", None, "JSON: cut off after 30 bytes", |id| {
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
    kind("missing column", Some("id"), "column id: missing", |id| {
        good(id).replace("\"id\"", "\"di\"").into_bytes()
    }),
    kind("null column", Some("room"), "column room: null", |id| {
        good(id).replace("\"hall\"", "null").into_bytes()
    }),
    kind("text for a number", Some("id"), "column id: \"many\" is no BIGINT (at byte 34)", |id| {
        good(id).replace(&format!("\"id\":{id}"), "\"id\":\"many\"").into_bytes()
    }),
    kind("a fraction for an integer", Some("id"), ".5 is no BIGINT (at byte 34)", |id| {
        good(id).replace(&format!("\"id\":{id}"), &format!("\"id\":{id}.5")).into_bytes()
    }),
    kind("out of range", Some("id"), "99999999999999999999 is out of the range of BIGINT", |id| {
        good(id).replace(&format!("\"id\":{id}"), "\"id\":99999999999999999999").into_bytes()
    }),
    kind("an object for a number", Some("n"), "column n: {} is no BIGINT", |id| {
        good(id).replace(&format!("\"n\":{}", id % 7), "\"n\":{}").into_bytes()
    }),
    kind("no such month", Some("ts"), "is no TIMESTAMP such as", |id| {
        good(id).replace("2024-05", "2024-13").into_bytes()
    }),
    kind("no time at all", Some("ts"), "column ts: \"yesterday 10:", |id| {
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
fn a_hundred_thousand_malformed_records_stop_nothing() {
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
    assert_eq!(counts, format!("{BAD},{BAD},0"), "every good row is in history, once");
    let last = kafka.read(&format!("millstream.{customer}.total")).pop().unwrap().json();
    assert_eq!(
        (last["events"].as_u64(), last["total"].as_i64()),
        (Some(BAD as u64), Some(expected_total))
    );

    let letters = kafka.read(&format!("millstream.{customer}.dead_letters"));
    for letter in &letters {
        judge(letter, &mut sent);
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

/// A dead letter must be the record that was sent, with the right reason; it is struck off.
fn judge(letter: &Read, sent: &mut BTreeMap<(String, String), (usize, i64, Vec<u8>)>) {
    let header = |name: &str| letter.header(&format!("millstream.{name}"));
    let place = (header("partition").unwrap(), header("offset").unwrap());
    let (kind, id, value) = sent
        .remove(&place)
        .unwrap_or_else(|| panic!("{place:?} was good or came twice: {letter:?}"));
    let Kind { name, column, reason, .. } = &KINDS[kind];
    let said = header("reason").unwrap();
    assert!(said.to_lowercase().contains(&reason.to_lowercase()), "{name}: {said}");
    assert_eq!(header("column").as_deref(), *column, "{name}: {said}");
    assert_eq!(letter.value.as_deref().unwrap_or_default(), value, "{name}: the bytes");
    assert_eq!(letter.key.as_deref(), Some(format!("key {id}").as_bytes()), "{name}: the key");
    assert_eq!(letter.header("trace"), Some(id.to_string()), "{name}: its own headers");
}
