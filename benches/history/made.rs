//! Creates the history for the benchmark: days of events, written by the pipeline's own writer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::SchemaRef;
use millstream::catalog;
use millstream::history::{Compactor, TableSpec, Writer, table_path};
use tempfile::TempDir;

use crate::day::{self, Event, KEYS, PARTITIONS, QUERY, ROOMS, SCHEMA};
use crate::job;

pub const CUSTOMER: &str = "history";
pub const QUERY_NAME: &str = "hourly";
pub const DAY_EVENTS: u64 = 10_000_000;
const TOPIC: &str = "positions";
/// Rows of one partition in one batch: about as many as in a Fetch response.
const BATCH: usize = 16_384;
/// 1 May 2024, in seconds since 1970.
const FIRST_DAY: i64 = 1_714_521_600;

/// A project of one stream and its hourly windows.
pub fn project() -> TempDir {
    job::project(CUSTOMER, &SCHEMA.replace("{topic}", TOPIC), &[(QUERY_NAME, QUERY)])
}

/// Writes and compacts a history of `events` events under `data` unless it exists; returns its files.
pub async fn history(project: &Path, data: &Path, events: u64) -> Vec<PathBuf> {
    let root = data.join("history");
    let path = table_path(&root, CUSTOMER, TOPIC);
    if !path.join("_delta_log").is_dir() {
        let catalog = catalog::load(project, &[]).unwrap();
        let stream = catalog.customers[0].stream(TOPIC).unwrap();
        let schema = millstream::types::event_schema(&stream.schema());
        let time = Some(stream.watermark.column.as_str());
        let spec = TableSpec::new(CUSTOMER, TOPIC, &schema, time, None, "UTC");
        let mut writer = Writer::open(&root, spec, "cluster").await.unwrap();
        writer.set_topic_id(TOPIC, "id");
        let days = events.div_ceil(DAY_EVENTS);
        for day in 0..days {
            let number = DAY_EVENTS.min(events - day * DAY_EVENTS);
            let day = i64::try_from(day).unwrap();
            write_day(&mut writer, &schema, day, number).await;
            writer.commit(0).await.unwrap();
        }
        Compactor::new(&root, CUSTOMER, TOPIC).run_all().await.unwrap();
    }
    let url = url::Url::from_directory_path(std::fs::canonicalize(&path).unwrap()).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let files = table.get_file_uris().unwrap();
    files.map(|uri| PathBuf::from(uri.trim_start_matches("file://").replace("%3D", "="))).collect()
}

/// Rows of one partition that are not in a batch yet.
#[derive(Default)]
struct Rows {
    events: Vec<Event>,
    offset: i64,
}

async fn write_day(writer: &mut Writer, schema: &SchemaRef, day: i64, events: u64) {
    let partitions = usize::try_from(PARTITIONS).unwrap();
    let mut waiting: Vec<Rows> = (0..partitions).map(|_| Rows::default()).collect();
    // Each partition continues where the previous day ended.
    let before = day * i64::try_from(DAY_EVENTS).unwrap() / i64::from(PARTITIONS);
    waiting.iter_mut().for_each(|rows| rows.offset = before);
    for (number, event) in day::day(events, KEYS).enumerate() {
        let partition = number % partitions;
        waiting[partition].events.push(event);
        if waiting[partition].events.len() == BATCH {
            append(writer, schema, day, partition, &mut waiting[partition]).await;
        }
    }
    for (partition, rows) in waiting.iter_mut().enumerate() {
        append(writer, schema, day, partition, rows).await;
    }
}

async fn append(
    writer: &mut Writer,
    schema: &SchemaRef,
    day: i64,
    partition: usize,
    rows: &mut Rows,
) {
    let events = std::mem::take(&mut rows.events);
    let next = rows.offset + i64::try_from(events.len()).unwrap();
    let seconds = || events.iter().map(|event| i64::try_from(event.second).unwrap());
    let clock =
        |second: i64| format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60);
    let partition = i32::try_from(partition).unwrap();
    let date = format!("202405{:02}", day + 1);
    let mut columns: HashMap<&str, ArrayRef> = HashMap::new();
    let keys = events.iter().map(|event| i64::try_from(event.key).unwrap());
    columns.insert("part_id", Arc::new(Int64Array::from_iter_values(keys)));
    columns.insert("ts_date", Arc::new(StringArray::from(vec![date.as_str(); events.len()])));
    columns.insert("ts_time", Arc::new(StringArray::from_iter_values(seconds().map(clock))));
    let rooms = events.iter().map(|event| ROOMS[event.room]);
    columns.insert("room", Arc::new(StringArray::from_iter_values(rooms)));
    let times = seconds().map(|second| (FIRST_DAY + day * 86_400 + second) * 1_000_000);
    let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
    columns.insert("event_time", Arc::new(times));
    columns.insert("_topic", Arc::new(StringArray::from(vec![TOPIC; events.len()])));
    columns.insert("_partition", Arc::new(Int32Array::from(vec![partition; events.len()])));
    columns.insert("_offset", Arc::new(Int64Array::from_iter_values(rows.offset..next)));
    columns.insert("_position", Arc::new(Int32Array::from(vec![0; events.len()])));
    let columns = schema.fields().iter().map(|field| columns[field.name().as_str()].clone());
    let batch = RecordBatch::try_new(schema.clone(), columns.collect()).unwrap();
    writer.append(TOPIC, partition, &batch, next).await.unwrap();
    rows.offset = next;
}

/// Checks that a replay's answer contains every window with its counts, over identical days; returns
/// the number of rows.
pub fn check_replay(answer: &Path, events: u64) -> usize {
    let last = match events % DAY_EVENTS {
        0 => DAY_EVENTS,
        less => less,
    };
    let full = (events - last) / DAY_EVENTS;
    let expected = day::expected(DAY_EVENTS.min(events));
    let mut reader = csv::Reader::from_path(answer).unwrap();
    let header = reader.headers().unwrap().clone();
    let column = |name: &str| header.iter().position(|known| known == name).unwrap();
    let [start, key, count, rooms] = ["window_start", "part_id", "events", "rooms"].map(column);
    let mut seen = 0;
    let mut sum = 0;
    for row in reader.records() {
        let row = row.unwrap();
        let number = |at: usize| row[at].parse::<u64>().unwrap();
        sum += number(count);
        seen += 1;
        // The last day may be shorter; then the same rows have other times.
        if row[start][8..10].parse::<u64>().unwrap() <= full || full == 0 || last == DAY_EVENTS {
            let hour = row[start][11..13].parse().unwrap();
            let (wanted, distinct) = expected[&(hour, number(key))];
            assert_eq!((number(count), Some(number(rooms))), (wanted, distinct), "{row:?}");
        }
    }
    assert_eq!(sum, events, "every event must be in one window");
    seen
}
