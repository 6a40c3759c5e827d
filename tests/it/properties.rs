//! Random events and a family of windowed queries: the stream gives the rows of a batch for any partitions and
//! epochs, late rows are the only difference, and a recovered state is the same state.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use millstream::catalog::{self, Customer};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::json;

use crate::engine_harness::{self, Input, Mode, Outcome};
use crate::support::oracle::{Lateness, Oracle, Relation};
use crate::support::project::Project;

/// The declared delay, in microseconds.
const DELAY: i64 = 30_000_000;

const SCHEMA: &str = "
SET millstream.timezone = 'Europe/Helsinki';
CREATE STREAM events (
  ts TIMESTAMP NOT NULL,
  k BIGINT NOT NULL,
  n BIGINT,
  room VARCHAR,
  WATERMARK FOR ts AS ts - INTERVAL '30' SECOND
) WITH (topics = 'events');
";

/// Start times near special cases: the two nights of clock changes, the Unix epoch, a leap day, 1900.
const BEGINNINGS: [&str; 5] = [
    "2024-03-31T00:30:00Z",
    "2024-10-27T00:30:00Z",
    "1969-12-31T23:50:00Z",
    "2024-02-29T21:50:00Z",
    "1900-01-01T00:00:00Z",
];

const WINDOWS: [&str; 9] = [
    "TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' MINUTE)",
    "TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '7' MINUTE)",
    "TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' HOUR)",
    "TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '12' HOUR)",
    "TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' DAY)",
    "TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '10' MINUTE, INTERVAL '3' MINUTE)",
    "HOP(TABLE events, DESCRIPTOR(ts), INTERVAL '5' MINUTE, INTERVAL '15' MINUTE)",
    "HOP(TABLE events, DESCRIPTOR(ts), INTERVAL '4' MINUTE, INTERVAL '10' MINUTE)",
    "HOP(TABLE events, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '1' HOUR)",
];

/// Queries over one of the windows, with explicit orders wherever the result depends on an order.
const QUERIES: [&str; 9] = [
    "SELECT window_start, window_end, k, count(*) AS c, sum(n) AS s, min(n) AS a, max(n) AS z FROM {w} GROUP BY window_start, window_end, k",
    "SELECT window_start, window_end, k, count(*) AS c, count(DISTINCT room) AS r FROM {w} GROUP BY window_start, window_end, k",
    "SELECT window_start, window_end, count(DISTINCT room) AS r, count(DISTINCT k) FILTER (WHERE n > 0) AS p, count(n) AS c FROM {w} GROUP BY window_start, window_end",
    "SELECT window_start, window_end, room, count(*) AS c FROM {w} WHERE n IS NOT NULL OR k > 1 GROUP BY window_start, window_end, room HAVING count(*) > 1",
    "SELECT window_start, window_end, k, array_agg(n ORDER BY ts, n) AS path FROM {w} GROUP BY window_start, window_end, k",
    "SELECT DISTINCT window_start, window_end, room FROM {w}",
    "SELECT window_start, window_end, ts, k, n, room FROM {w} ORDER BY n DESC, ts, k, room LIMIT 2",
    "SELECT window_start, window_end, k, ts FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS rank FROM {w}) WHERE rank = 1",
    "SELECT window_start, window_end, max(c) AS c, count(*) AS keys FROM (SELECT window_start, window_end, k, count(*) AS c FROM {w} GROUP BY window_start, window_end, k) GROUP BY window_start, window_end",
];

/// One event: microseconds since the previous one, how far its timestamp is back, key, number, room.
type Event = (i64, i64, i64, Option<i64>, Option<&'static str>);

fn event(back: i64) -> impl Strategy<Value = Event> {
    let step =
        prop_oneof![3 => 0..2_000_000_i64, 3 => 0..120_000_000_i64, 1 => 0..7_200_000_000_i64];
    let back = prop_oneof![2 => Just(0), 2 => 0..=back];
    let number = prop_oneof![6 => (-3..4_i64).prop_map(Some), 1 => Just(None), 1 => any::<i64>().prop_map(Some), 1 => Just(Some(i64::MIN))];
    let room = prop::sample::select(vec![
        None,
        Some("kitchen"),
        Some("hall"),
        Some(""),
        Some("\"ку\\х\u{1F6AA}\n"),
    ]);
    (step, back, 0..4_i64, number, room)
}

#[derive(Debug, Clone)]
struct Case {
    beginning: &'static str,
    events: Vec<Event>,
    duplicates: Vec<prop::sample::Index>,
    window: &'static str,
    query: &'static str,
    seed: u64,
    partitions: i32,
}

fn case(back: i64, partitions: std::ops::Range<i32>) -> impl Strategy<Value = Case> {
    let queries = (prop::sample::select(WINDOWS.to_vec()), prop::sample::select(QUERIES.to_vec()));
    let events = (
        prop::collection::vec(event(back), 1..80),
        prop::collection::vec(any::<prop::sample::Index>(), 0..5),
    );
    (prop::sample::select(BEGINNINGS.to_vec()), events, queries, any::<u64>(), partitions).prop_map(
        |(beginning, (events, duplicates), (window, query), seed, partitions)| Case {
            beginning,
            events,
            duplicates,
            window,
            query,
            seed,
            partitions,
        },
    )
}

impl Case {
    fn values(&self) -> Vec<Bytes> {
        let mut now = DateTime::parse_from_rfc3339(self.beginning).unwrap().timestamp_micros();
        let mut values = Vec::new();
        for (step, back, k, n, room) in &self.events {
            now += step;
            let ts = DateTime::<Utc>::from_timestamp_micros(now - back).unwrap();
            let ts = ts.to_rfc3339_opts(SecondsFormat::Micros, true);
            values.push(Bytes::from(json!({"ts": ts, "k": k, "n": n, "room": room}).to_string()));
        }
        // A duplicate follows its original directly, so that it is not later.
        for index in &self.duplicates {
            let at = index.index(values.len());
            values.insert(at, values[at].clone());
        }
        values
    }

    fn sql(&self) -> String {
        self.query.replace("{w}", self.window)
    }

    /// Runs the case; returns the rows of the stream, the rows of the batch, the outcome, the oracle and the
    /// lateness.
    async fn run(&self) -> (Vec<Vec<String>>, Vec<Vec<String>>, Outcome, Oracle, Lateness) {
        let project = Project::new();
        project
            .schema("test", SCHEMA)
            .query("test", "answer", &self.sql())
            // A query over another query receives its rows in a different order.
            .query("test", "narrow", "SELECT ts, k, n FROM events WHERE k > 0")
            .query(
                "test",
                "of_narrow",
                "SELECT window_start, window_end, median(n) AS middle, count(*) AS c
FROM TUMBLE(TABLE narrow, DESCRIPTOR(ts), INTERVAL '10' MINUTE) GROUP BY window_start, window_end",
            );
        let catalog = catalog::load(project.path(), &[]).unwrap();
        let customer: Arc<Customer> = catalog.customers[0].clone();
        let input = [Input { stream: "events".into(), values: self.values() }];
        let mode = Mode::Random { seed: self.seed, partitions: self.partitions };
        let outcome = engine_harness::run(project.path(), &customer, &input, mode).await.unwrap();

        let all = &outcome.rows["events"];
        let rows = all.project(&(0..all.num_columns() - 4).collect::<Vec<_>>()).unwrap();
        let lateness = Lateness { before: watermarks(&rows), allowed_us: 0 };
        let oracle = Oracle {
            zone: customer.zone,
            relations: vec![Relation { name: "events".into(), rows }],
        };
        let late = (self.partitions == 1).then_some(&lateness);
        let answer = customer.queries.iter().find(|query| query.name == "answer");
        let select = answer.unwrap().select.to_string();
        let mut expected =
            engine_harness::batch_cells(&oracle.answer(&select, late).await.unwrap().0);
        expected.sort();
        let mut streamed = outcome.results["answer"].clone();
        streamed.sort();
        (streamed, expected, outcome, oracle, lateness)
    }
}

/// The watermark before each row of one partition.
fn watermarks(rows: &arrow::array::RecordBatch) -> Vec<i64> {
    let times =
        arrow::compute::cast(&rows.columns()[0], &arrow::datatypes::DataType::Int64).unwrap();
    let mut watermark = i64::MIN;
    let mut before = Vec::new();
    for time in times.as_primitive::<Int64Type>().values() {
        before.push(watermark);
        watermark = watermark.max(time - DELAY);
    }
    before
}

fn check(
    strategy: impl Strategy<Value = Case>,
    property: impl AsyncFn(Case) -> Result<(), TestCaseError>,
) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(96);
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = TestRunner::new(config).run(&strategy, |case| runtime.block_on(property(case)));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn within_the_delay_stream_equals_batch() {
    check(case(DELAY, 1..4), async |case| {
        let (streamed, expected, outcome, ..) = case.run().await;
        prop_assert!(outcome.late.is_empty(), "rows in time were refused: {:?}", outcome.late);
        prop_assert!(
            outcome.rejected.is_empty()
                && outcome.failed.is_empty()
                && outcome.failed_windows.is_empty()
        );
        prop_assert_eq!(streamed, expected, "{}", case.sql());
        Ok(())
    });
}

#[test]
fn beyond_the_delay_only_late_rows_are_missing() {
    check(case(40 * 60_000_000, 1..2), async |case| {
        let (streamed, expected, outcome, oracle, lateness) = case.run().await;
        prop_assert_eq!(streamed, expected, "{}", case.sql());
        let windowed = oracle.late_rows(&case.sql(), &lateness).unwrap();
        let offsets = engine_harness::offsets(&outcome.rows["events"]);
        let mut expected: Vec<String> =
            windowed.iter().map(|(row, ..)| offsets[*row].to_string()).collect();
        let mut late: Vec<String> = outcome.late.iter().map(|(_, row)| row[0].clone()).collect();
        expected.sort();
        late.sort();
        // Rows that the query's WHERE drops are not late rows.
        let where_drops = case.query.contains("WHERE n IS NOT NULL");
        if where_drops {
            prop_assert!(late.iter().all(|l| expected.contains(l)));
        } else {
            prop_assert_eq!(late, expected, "{}", case.sql());
        }
        Ok(())
    });
}
