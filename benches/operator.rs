//! Measures one operator without decoding and without Kafka: `cargo bench --bench operator`.
//!
//! - `batch plan`: filters and expressions on every batch, and the join with a reference table;
//! - `partial`: batch plan and partial aggregation of an epoch of batches, in rows per second of one core;
//! - `close`: a window's final plan, in groups per second;
//! - `hop`: a day by minutes, in panes, compared with the same rows in one tumbling day;
//! - `shapes`: windows with a distinct count, from the first row to the last result.
//!
//! Times are CPU times, see support/cpu_time.rs.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/cpu_time.rs"]
mod cpu_time;

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::record_batch::RecordBatch;
use cpu_time::CpuTime;
use criterion::{BatchSize, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use millstream::catalog;
use millstream::planner::{QueryPlan, Relations, plan_customer};
use millstream::time::{HOUR, MIN_TIME, MINUTE, Micros, SECOND};
use millstream::window::{EpochEnd, InputRows, Operator, operator_for};
use tokio::runtime::Runtime;

/// Rows of a batch: about as many as one Fetch response of 1 MB decodes to.
const ROWS: usize = 10_000;
/// Batches of an epoch.
const BATCHES: usize = 10;
/// Wednesday, 2024-05-01T00:00:00Z.
const DAY_BEGINS: Micros = 1_714_521_600 * SECOND;

const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM positions (
  part_id BIGINT NOT NULL, room VARCHAR NOT NULL, event_time TIMESTAMP NOT NULL,
  WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND
) WITH (topics = 't');
CREATE EXTERNAL TABLE rooms (room VARCHAR, restricted BOOLEAN) STORED AS CSV LOCATION 'rooms.csv'
  OPTIONS ('format.has_header' 'true');
";

const COUNT: &str = "SELECT window_start, window_end, part_id, count(*) AS events
  FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)
  GROUP BY window_start, window_end, part_id";
const DISTINCT: &str =
    "SELECT window_start, window_end, part_id, count(*) AS events, count(DISTINCT room) AS rooms
  FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' HOUR)
  GROUP BY window_start, window_end, part_id";
const DAY: &str = "SELECT window_start, window_end, part_id, count(*) AS events
  FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
  GROUP BY window_start, window_end, part_id";
const HOP: &str = "SELECT window_start, window_end, part_id, count(*) AS events
  FROM HOP(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' MINUTE, INTERVAL '1' DAY)
  GROUP BY window_start, window_end, part_id";

const DAY_DISTINCT: &str =
    "SELECT window_start, part_id, count(*) AS events, count(DISTINCT room) AS rooms
  FROM TUMBLE(TABLE positions, DESCRIPTOR(event_time), INTERVAL '1' DAY)
  GROUP BY window_start, part_id";
const HOP_BY_ROOM: &str =
    "SELECT window_start, room, count(*) AS events, count(DISTINCT part_id) AS persons
  FROM HOP(TABLE positions, DESCRIPTOR(event_time), INTERVAL '60' SECOND, INTERVAL '4' HOUR)
  GROUP BY window_start, room";

/// Plans one query from project files, as the engine does.
fn plan(sql: &str) -> Arc<QueryPlan> {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("rooms.csv", "room,restricted\n");
    write("schemas/c.sql", SCHEMA);
    write("queries/c/q.sql", sql);
    let catalog = catalog::load(folder.path(), &[]).unwrap();
    let rooms = ("rooms".to_owned(), rooms().schema());
    let planned = plan_customer(&catalog.customers[0], &[rooms]).unwrap();
    Arc::clone(&planned.queries[0])
}

fn rooms() -> RecordBatch {
    let names: Vec<_> = (0..8).map(|n| format!("room number {n}")).collect();
    let restricted: arrow::array::BooleanArray = (0..8).map(|n| Some(n == 3)).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("room", Arc::new(StringArray::from(names)) as ArrayRef, true),
        ("restricted", Arc::new(restricted) as ArrayRef, true),
    ])
    .unwrap()
}

fn relations() -> Relations {
    Relations::from([("rooms".to_owned(), Arc::new(vec![rooms()]))])
}

/// A batch of events of `keys` people that start at `from` and are spread over `span`.
fn batch(keys: usize, from: Micros, span: Micros, seed: usize) -> (RecordBatch, Vec<Micros>) {
    let mixed = |n: usize| (n + seed * ROWS).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let times: Vec<Micros> = (0..ROWS as i64).map(|n| from + span * n / ROWS as i64).collect();
    let people: Int64Array = (0..ROWS).map(|n| Some((mixed(n) % keys) as i64)).collect();
    let rooms = (0..ROWS).map(|n| format!("room number {}", mixed(n) / 7 % 8));
    let rows = RecordBatch::try_from_iter([
        ("part_id", Arc::new(people) as ArrayRef),
        ("room", Arc::new(StringArray::from_iter_values(rooms)) as ArrayRef),
        (
            "event_time",
            Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC")),
        ),
    ]);
    (rows.unwrap(), times)
}

fn operator(plan: &Arc<QueryPlan>) -> Box<dyn Operator> {
    operator_for(plan.clone(), chrono_tz::UTC).unwrap()
}

/// Pushes all batches and ends the epoch at `watermark`; returns the number of result rows.
async fn epoch(
    operator: &mut Box<dyn Operator>,
    batches: &[(RecordBatch, Vec<Micros>)],
    watermark: Micros,
    relations: &Relations,
) -> usize {
    let before = vec![MIN_TIME; ROWS];
    let mut rows = 0;
    for (batch, times) in batches {
        let part = InputRows { batch, event_time: times, before: &before, partition: 0 };
        let pushed = operator.push(&part, relations).await.unwrap();
        rows += pushed.output.map_or(0, |output| output.num_rows());
    }
    let end = EpochEnd { watermark, is_emission_due: false, relations_changed: false, relations };
    let emissions = operator.end_epoch(end).await.unwrap();
    rows + emissions.iter().map(|e| e.result.as_ref().unwrap().upserts.num_rows()).sum::<usize>()
}

fn batch_plan(criterion: &mut Criterion<CpuTime>) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("batch plan");
    group.throughput(Throughput::Elements(ROWS as u64)).sampling_mode(SamplingMode::Flat);
    let batches = [batch(1_000, DAY_BEGINS, MINUTE, 0)];
    let cases = [
        ("filter", "SELECT part_id, room, event_time FROM positions WHERE part_id % 100 = 7"),
        (
            "join with a table",
            "SELECT p.part_id, p.room, p.event_time FROM positions p JOIN rooms r ON p.room = r.room
             WHERE r.restricted",
        ),
    ];
    for (name, sql) in cases {
        let mut operator = operator(&plan(sql));
        let relations = relations();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let rows = epoch(&mut operator, black_box(&batches), MIN_TIME, &relations);
                assert!(runtime.block_on(rows) > 0);
            });
        });
    }
    group.finish();
}

fn partial(criterion: &mut Criterion<CpuTime>) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("partial");
    let rows = (ROWS * BATCHES) as u64;
    group.throughput(Throughput::Elements(rows)).sampling_mode(SamplingMode::Flat);
    for (name, sql, keys) in [
        ("count by 1,000 keys", COUNT, 1_000),
        ("count by 100,000 keys", COUNT, 100_000),
        ("count and distinct by 1,000 keys", DISTINCT, 1_000),
    ] {
        let plan = plan(sql);
        let batches: Vec<_> = (0..BATCHES).map(|n| batch(keys, DAY_BEGINS, HOUR, n)).collect();
        let none = relations();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || operator(&plan),
                |mut operator| {
                    let work = epoch(&mut operator, &batches, MIN_TIME, &none);
                    assert_eq!(runtime.block_on(work), 0);
                    operator
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn close(criterion: &mut Criterion<CpuTime>) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("close");
    group.sampling_mode(SamplingMode::Flat);
    for (name, sql, keys) in [
        ("count by 1,000 keys", COUNT, 1_000),
        ("count and distinct by 1,000 keys", DISTINCT, 1_000),
        ("count by 50,000 keys", COUNT, 50_000),
    ] {
        let plan = plan(sql);
        let batches: Vec<_> = (0..BATCHES).map(|n| batch(keys, DAY_BEGINS, HOUR, n)).collect();
        let none = relations();
        let filled = || {
            let mut operator = operator(&plan);
            runtime.block_on(epoch(&mut operator, &batches, MIN_TIME, &none));
            operator
        };
        let count = runtime.block_on(epoch(&mut filled(), &[], DAY_BEGINS + HOUR, &none));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                filled,
                |mut operator| {
                    let work = epoch(&mut operator, &[], DAY_BEGINS + HOUR, &none);
                    assert_eq!(runtime.block_on(work), count);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A day of events, minute by minute.
fn hop(criterion: &mut Criterion<CpuTime>) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("hop");
    const MINUTES: usize = 60;
    group.throughput(Throughput::Elements((ROWS * MINUTES) as u64));
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let minutes: Vec<_> =
        (0..MINUTES).map(|n| [batch(100, DAY_BEGINS + n as Micros * MINUTE, MINUTE, n)]).collect();
    for (name, sql) in [("tumbling day", DAY), ("day by minutes", HOP)] {
        let plan = plan(sql);
        let none = relations();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || operator(&plan),
                |mut operator| {
                    for (n, batches) in minutes.iter().enumerate() {
                        let watermark = DAY_BEGINS + n as Micros * MINUTE;
                        runtime.block_on(epoch(&mut operator, batches, watermark, &none));
                    }
                    operator
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Four hours in four partitions, in epochs of half an hour, to the last window: the work of
/// `benches/run shapes` without reading and decoding.
fn shapes(criterion: &mut Criterion<CpuTime>) {
    const STEPS: usize = 40;
    const STEPS_OF_EPOCH: usize = 5;
    const PARTITIONS: usize = 4;
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("shapes");
    group.throughput(Throughput::Elements((ROWS * STEPS * PARTITIONS) as u64));
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let events = |keys| -> Vec<_> {
        let number = |n: usize| DAY_BEGINS + (n / PARTITIONS * 6) as Micros * MINUTE;
        (0..STEPS * PARTITIONS).map(|n| batch(keys, number(n), 6 * MINUTE, n)).collect()
    };
    let (few, many) = (events(1_000), events(200_000));
    for (name, sql, events) in [
        ("hours by 1,000 keys", DISTINCT, &few),
        ("four hours by minutes, 8 rooms", HOP_BY_ROOM, &few),
        ("a day by 200,000 keys", DAY_DISTINCT, &many),
    ] {
        let plan = plan(sql);
        let none = relations();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || operator(&plan),
                |mut operator| {
                    let mut rows = 0;
                    for (n, (batch, times)) in events.iter().enumerate() {
                        let before = vec![MIN_TIME; ROWS];
                        let partition = n % PARTITIONS;
                        let part =
                            InputRows { batch, event_time: times, before: &before, partition };
                        runtime.block_on(operator.push(&part, &none)).unwrap();
                        if (n + 1) % (STEPS_OF_EPOCH * PARTITIONS) == 0 {
                            let watermark = times[ROWS - 1] - 30 * SECOND;
                            rows += runtime.block_on(epoch(&mut operator, &[], watermark, &none));
                        }
                    }
                    rows += runtime.block_on(epoch(&mut operator, &[], Micros::MAX / 2, &none));
                    assert!(rows > 0);
                    operator
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = cpu_time::criterion();
    targets = batch_plan, partial, close, hop, shapes
}
criterion_main!(benches);
