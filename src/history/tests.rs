//! History as a whole, on the real file system.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::util::pretty::pretty_format_batches;
use datafusion::physical_plan::displayable;
use futures::TryStreamExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

use super::*;
use crate::catalog::Catalog;
use crate::telemetry::status::{
    OpenWindowStatus, PartitionStatus, QueryStatus, Status, StreamStatus,
};
use crate::time::{Clock, DAY, HOUR, Micros, SECOND, Window};

const ZONE: &str = "Europe/Helsinki";
/// 2019-10-26T00:00:00Z, a day before the end of summer time in Helsinki.
const START: Micros = 1_572_048_000_000_000;

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(ZONE.into()))
}

fn schema(extra: &[(&str, DataType)]) -> SchemaRef {
    let mut fields = vec![
        Field::new("part_id", DataType::Int64, false),
        Field::new("room", DataType::Utf8, false),
        Field::new("event_time", instant(), true),
    ];
    fields.extend(extra.iter().map(|(name, kind)| Field::new(*name, kind.clone(), true)));
    Arc::new(Schema::new(fields))
}

fn spec(extra: &[(&str, DataType)]) -> TableSpec {
    TableSpec::new("customer_a", "positions", &schema(extra), Some("event_time"), None, ZONE)
}

/// Events with the given offsets and times.
fn events(rows: impl IntoIterator<Item = (i64, Micros)>) -> RecordBatch {
    let (offsets, times): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let rooms: Vec<&str> = offsets.iter().map(|o| ["hall", "kitchen"][(o % 2) as usize]).collect();
    RecordBatch::try_from_iter([
        (
            "part_id",
            Arc::new(Int64Array::from_iter_values(offsets.iter().map(|o| o % 7))) as ArrayRef,
        ),
        ("room", Arc::new(StringArray::from(rooms))),
        ("event_time", Arc::new(TimestampMicrosecondArray::from(times).with_timezone(ZONE))),
        ("_offset", Arc::new(Int64Array::from(offsets))),
    ])
    .unwrap()
}

/// Adds columns to rows.
fn with<const N: usize>(rows: &RecordBatch, added: [(&str, ArrayRef); N]) -> RecordBatch {
    let schema = rows.schema();
    let names = schema.fields().iter().map(|field| field.name().as_str());
    let columns = names.zip(rows.columns().iter().cloned());
    RecordBatch::try_from_iter(columns.chain(added)).unwrap()
}

/// A project with customer_a and its stream `positions`.
fn project() -> (TempDir, Catalog) {
    let folder = tempfile::tempdir().unwrap();
    let schema = "SET millstream.timezone = 'Europe/Helsinki';
        CREATE STREAM positions (part_id BIGINT NOT NULL, room VARCHAR NOT NULL, event_time TIMESTAMP,
            WATERMARK FOR event_time AS event_time) WITH (topics = '1084', format = 'json');
        CREATE EXTERNAL TABLE rooms STORED AS CSV LOCATION 'rooms.csv' OPTIONS ('format.has_header' 'true');";
    std::fs::create_dir_all(folder.path().join("schemas")).unwrap();
    std::fs::create_dir_all(folder.path().join("queries/customer_a")).unwrap();
    std::fs::write(folder.path().join("schemas/customer_a.sql"), schema).unwrap();
    std::fs::write(folder.path().join("rooms.csv"), "name,capacity\nhall,4\nkitchen,2\n").unwrap();
    let catalog = crate::catalog::load(folder.path(), &[]).unwrap();
    (folder, catalog)
}

fn root(folder: &TempDir) -> PathBuf {
    folder.path().join("data/history")
}

async fn writer(root: &Path, spec: TableSpec) -> Writer {
    Writer::open(root, spec, "cluster").await.unwrap()
}

async fn run_query(root: &Path, catalog: &Catalog, sql: &str) -> Vec<RecordBatch> {
    let context = context(root, catalog).await.unwrap();
    run_sql(&context, sql).await.unwrap().try_collect().await.unwrap()
}

async fn table(root: &Path, catalog: &Catalog, sql: &str) -> String {
    pretty_format_batches(&run_query(root, catalog, sql).await).unwrap().to_string()
}

async fn number(root: &Path, catalog: &Catalog, sql: &str) -> i64 {
    run_query(root, catalog, sql).await[0].column(0).as_primitive::<Int64Type>().value(0)
}

/// The number of data files that a query reads.
async fn files_read(root: &Path, catalog: &Catalog, sql: &str) -> usize {
    let context = context(root, catalog).await.unwrap();
    let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    displayable(plan.as_ref()).indent(true).to_string().matches("part-").count()
}

const EXACTLY_ONCE: &str =
    "SELECT count(*) - count(DISTINCT (_topic, _partition, _offset, _position)) FROM positions";

#[tokio::test]
async fn a_reopened_table_resumes_after_its_last_offset() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut first = writer(&root, spec(&[])).await;
    assert_eq!(first.position("1084", 0), None);
    first.append("1084", 0, &events((0..100).map(|o| (o, START + o * SECOND))), 100).await.unwrap();
    // Partition 1 contains only tombstones: an offset without rows.
    first.append("1084", 1, &events([]), 17).await.unwrap();
    let committed = first.commit(START).await.unwrap();
    assert_eq!((committed.rows, committed.files), (100, 1));
    assert_eq!(first.commit(START).await.unwrap(), CommitStats::default());
    // Not committed, so it must be read again.
    first.append("1084", 0, &events([(100, START)]), 101).await.unwrap();
    drop(first);

    let mut second = writer(&root, spec(&[])).await;
    assert_eq!(second.position("1084", 0), Some(100));
    assert_eq!(second.position("1084", 1), Some(17));
    let again = second.append("1084", 0, &events([(99, START)]), 101).await;
    assert_eq!(again.unwrap_err().kind, Kind::Internal);
    second
        .append("1084", 0, &events((100..150).map(|o| (o, START + o * SECOND))), 150)
        .await
        .unwrap();
    assert!(second.due(START + 20 * SECOND));
    second.commit(START + 20 * SECOND).await.unwrap();
    assert_eq!(second.position("1084", 0), Some(150));
    assert_eq!(number(&root, &catalog, "SELECT count(*) FROM positions").await, 150);
    assert_eq!(number(&root, &catalog, EXACTLY_ONCE).await, 0);
    assert!(
        Writer::open(&root, spec(&[]), "another").await.is_err_and(|e| e.kind == Kind::Recovery)
    );
}

#[tokio::test]
async fn the_second_of_two_writers_fails_to_commit() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let (mut ours, mut theirs) = (writer(&root, spec(&[])).await, writer(&root, spec(&[])).await);
    ours.append("1084", 0, &events([(0, START)]), 1).await.unwrap();
    theirs.append("1084", 0, &events([(0, START), (1, START)]), 2).await.unwrap();
    ours.commit(START).await.unwrap();
    assert_eq!(theirs.commit(START).await.unwrap_err().kind, Kind::WriteConflict);
    assert_eq!(number(&root, &catalog, "SELECT count(*) FROM positions").await, 1);
}

#[tokio::test]
async fn columns_may_be_added_but_not_changed() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut old = writer(&root, spec(&[])).await;
    old.append("1084", 0, &events([(0, START)]), 1).await.unwrap();
    old.commit(START).await.unwrap();
    let added = [("battery", DataType::Float64), ("seen", instant()), ("serial", DataType::UInt64)];
    let mut new = writer(&root, spec(&added)).await;
    assert_eq!(new.position("1084", 0), Some(1));
    let battery = Arc::new(arrow::array::Float64Array::from(vec![0.5]));
    let serial = Arc::new(arrow::array::UInt64Array::from(vec![u64::MAX]));
    let rows = with(&events([(1, START)]), [("battery", battery as _), ("serial", serial as _)]);
    new.append("1084", 0, &rows, 2).await.unwrap();
    new.commit(START).await.unwrap();
    let seen =
        table(&root, &catalog, "SELECT _offset, battery, seen, serial FROM positions ORDER BY 1")
            .await;
    let expected = "\
+---------+---------+------+----------------------+
| _offset | battery | seen | serial               |
+---------+---------+------+----------------------+
| 0       |         |      |                      |
| 1       | 0.5     |      | 18446744073709551615 |
+---------+---------+------+----------------------+";
    assert_eq!(seen, expected);
    let changed = [("battery", DataType::Utf8)];
    let error = Writer::open(&root, spec(&changed), "cluster").await.err().unwrap();
    assert_eq!(error.kind, Kind::Config);
    assert!(error.to_string().contains("battery"), "{error}");
    // The first schema again: its rows have null in the newer columns.
    let mut old = writer(&root, spec(&[])).await;
    old.append("1084", 0, &events([(2, START)]), 3).await.unwrap();
    old.commit(START).await.unwrap();
    assert_eq!(
        number(&root, &catalog, "SELECT count(*) FROM positions WHERE battery IS NULL").await,
        2
    );
}

/// Numbers that are almost all distinct, such as those of events or epochs.
#[tokio::test]
async fn ascending_numbers_compress_well() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[("number", DataType::Int64)])).await;
    const ROWS: i64 = 400_000;
    for half in 0..2 {
        let offsets = half * ROWS / 2..(half + 1) * ROWS / 2;
        let number = Int64Array::from_iter_values(offsets.clone().map(|o| 1_000_000_007 + 3 * o));
        let rows = events(offsets.clone().map(|o| (o, START)));
        let rows = with(&rows, [("number", Arc::new(number) as _)]);
        writer.append("1084", 0, &rows, offsets.end).await.unwrap();
        writer.commit(START).await.unwrap();
    }
    let compacted = writer.compactor().run(START + HOUR).await.unwrap();
    assert_eq!((compacted.files_removed, compacted.files_added), (2, 1));
    for (what, bytes) in [("written", compacted.bytes_removed), ("merged", compacted.bytes_added)] {
        assert!(bytes < ROWS as u64, "{what}: {bytes} bytes of {ROWS} rows");
    }
    let sum = number(&root, &catalog, "SELECT sum(number) FROM positions").await;
    assert_eq!(sum, ROWS * 1_000_000_007 + 3 * ROWS * (ROWS - 1) / 2);
}

#[tokio::test]
async fn a_growing_date_is_sorted_only_when_it_is_quiet() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    let backwards = "SELECT count(*) FROM (
        SELECT event_time < lag(event_time) OVER () AS back FROM positions) WHERE back";
    // Files that are not in time order.
    for commit in 0..90 {
        let row = events([(commit, START + commit * 37 % 90 * SECOND)]);
        writer.append("1084", 0, &row, commit + 1).await.unwrap();
        writer.commit(START).await.unwrap();
    }
    let merged = writer.compactor().run(START).await.unwrap();
    assert_eq!((merged.dates, merged.files_removed, merged.files_added), (1, 90, 1));
    assert!(number(&root, &catalog, backwards).await > 0, "it is not sorted yet");

    writer.append("1084", 0, &events([(90, START)]), 91).await.unwrap();
    writer.commit(START).await.unwrap();
    // The merged file is new.
    let sorted = writer.compactor().run(Clock::system().now() + HOUR).await.unwrap();
    assert_eq!((sorted.dates, sorted.files_removed, sorted.files_added), (1, 2, 1));
    assert_eq!(number(&root, &catalog, backwards).await, 0);
}

#[tokio::test]
async fn compaction_preserves_every_row_and_offset() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    // At the end only the checkpoint contains this offset.
    writer.append("1084", 7, &events([]), 3).await.unwrap();
    // Past a checkpoint (every 50 commits); out of order, with fractions of a millisecond.
    for commit in 0..60 {
        let rows = (0..20).map(|i| {
            let offset = commit * 20 + i;
            (offset, START + (offset * 7919 % 3000) * 61_234_567)
        });
        writer.append("1084", 0, &events(rows), commit * 20 + 20).await.unwrap();
        writer.commit(START).await.unwrap();
    }
    writer.append("1084", 1, &events([]), 5).await.unwrap();
    writer.commit(START).await.unwrap();
    let all = "SELECT count(*), sum(_offset), min(event_time), max(event_time) FROM positions";
    // Computed from statistics, which have milliseconds only.
    let newest = "SELECT max(event_time), min(event_time), count(*) FROM positions";
    let before = (table(&root, &catalog, all).await, table(&root, &catalog, newest).await);
    assert!(before.0.contains(".") && before.1.contains("."), "{before:?}");
    assert!(!writer.needs_compaction(START) && writer.needs_compaction(START + HOUR));
    let compactor = writer.compactor();
    assert_eq!(compactor.run(START).await.unwrap().dates, 0, "dates are not quiet yet");
    let files = files_read(&root, &catalog, "SELECT room FROM positions").await;
    // Left by a process that was killed during a sort.
    let sorting = root.join("customer_a/.positions.sorting");
    std::fs::create_dir_all(sorting.join("datafusion-x")).unwrap();
    std::fs::write(sorting.join("datafusion-x/1"), "rows").unwrap();
    let compacted = compactor.run(START + HOUR).await.unwrap();
    assert!(!sorting.exists(), "temporary files are deleted");
    assert_eq!(compacted.dates, 3, "{compacted:?}");
    assert_eq!((compacted.files_removed as usize, compacted.files_added), (files, 3));
    assert!(files > 150, "{files}");
    let after = (table(&root, &catalog, all).await, table(&root, &catalog, newest).await);
    assert_eq!(after, before);
    assert_eq!(number(&root, &catalog, EXACTLY_ONCE).await, 0);
    for date in std::fs::read_dir(root.join("customer_a/positions")).unwrap() {
        for file in std::fs::read_dir(date.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("part-") {
                let file = std::fs::File::open(&path).unwrap();
                let schema = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
                let room = schema.schema().field_with_name("room");
                let written = room.map(Field::data_type);
                assert!(written.is_ok_and(|t| *t == DataType::Utf8), "{}", path.display());
            }
        }
    }
    let order =
        "SELECT count(*) FROM (SELECT event_time < lag(event_time) OVER () AS back FROM positions
        WHERE event_time < TIMESTAMP '2019-10-27T00:00:00Z') WHERE back";
    assert_eq!(number(&root, &catalog, order).await, 0, "sorted inside the file");

    // This writer and the next one continue after the compaction.
    writer.append("1084", 0, &events([(1200, START)]), 1201).await.unwrap();
    writer.commit(START).await.unwrap();
    drop(writer);
    let writer = self::writer(&root, spec(&[])).await;
    assert_eq!(
        writer.positions(),
        [("1084".into(), 0, 1201), ("1084".into(), 1, 5), ("1084".into(), 7, 3)]
    );
    let reports = compact_all(&root, &[], true).await.unwrap();
    assert_eq!(reports[0].compacted.dates, 1);
    let report = reports[0].to_string();
    assert!(
        report.starts_with("customer_a.positions: 2 files (")
            && report.contains(" kB) of 1 date merged into 1 (")
            && report.ends_with(" kB); no file is old enough to delete"),
        "{report}"
    );
    assert_eq!(number(&root, &catalog, "SELECT count(*) FROM positions").await, 1201);
}

#[tokio::test]
async fn vacuum_deletes_day_old_files_of_a_killed_process() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    writer.append("1084", 0, &events([(0, START)]), 1).await.unwrap();
    writer.commit(START).await.unwrap();
    let date = root.join("customer_a/positions/event_date=2019-10-26");
    let days_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 86_400);
    for (name, old) in [("part-old.zstd.parquet", true), ("part-new.zstd.parquet", false)] {
        let file = std::fs::File::create(date.join(name)).unwrap();
        file.set_len(1500).unwrap();
        if old {
            file.set_modified(days_ago).unwrap();
        }
    }
    for file in std::fs::read_dir(&date).unwrap() {
        let path = file.unwrap().path();
        if !path.ends_with("part-new.zstd.parquet") {
            std::fs::File::options()
                .append(true)
                .open(path)
                .unwrap()
                .set_modified(days_ago)
                .unwrap();
        }
    }
    let reports = compact_all(&root, &[], true).await.unwrap();
    assert_eq!(
        reports[0].to_string(),
        "customer_a.positions: nothing to merge; 1 old file (1.5 kB) deleted"
    );
    assert!(
        !date.join("part-old.zstd.parquet").exists() && date.join("part-new.zstd.parquet").exists()
    );
    assert_eq!(number(&root, &catalog, "SELECT count(room) FROM positions").await, 1);
    assert!(compact_all(&root, &["nobody".into()], false).await.is_err());
}

#[tokio::test]
async fn a_compaction_during_appends_only_causes_a_reload() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    for offset in 0..3 {
        writer.append("1084", 0, &events([(offset, START)]), offset + 1).await.unwrap();
        writer.commit(START).await.unwrap();
    }
    writer.append("1084", 0, &events([(3, START)]), 4).await.unwrap();
    // As `millstream compact` does in another process.
    assert_eq!(
        compact_all(&root, &["customer_a".into()], false).await.unwrap()[0].compacted.dates,
        1
    );
    writer.commit(START).await.unwrap();
    assert_eq!(number(&root, &catalog, "SELECT count(*) FROM positions").await, 4);
    assert_eq!(number(&root, &catalog, EXACTLY_ONCE).await, 0);
    let lock = std::fs::File::create(root.join("customer_a/.positions.lock")).unwrap();
    lock.lock().unwrap();
    let error = compact_all(&root, &[], false).await.unwrap_err();
    assert!(error.to_string().contains("another process compacts"), "{error}");
}

#[tokio::test]
async fn the_name_of_a_keyed_result_selects_the_latest_row_of_each_key() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let fields = vec![
        Field::new("room", DataType::Utf8, false),
        Field::new("persons", DataType::Int64, false),
    ];
    let result: SchemaRef = Arc::new(Schema::new(fields));
    let spec =
        TableSpec::new("customer_a", "occupancy", &result, None, Some(vec!["room".into()]), ZONE);
    let mut writer = writer(&root, spec).await;
    let rows = RecordBatch::try_from_iter([
        (
            "room",
            Arc::new(StringArray::from(vec!["hall", "kitchen", "hall", "kitchen", "bath"]))
                as ArrayRef,
        ),
        ("persons", Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3), None, Some(4)]))),
        ("_deleted", Arc::new(BooleanArray::from(vec![false, false, false, true, false]))),
        (
            "_timestamp",
            Arc::new(TimestampMicrosecondArray::from(vec![START; 5]).with_timezone(ZONE)),
        ),
        ("_offset", Arc::new(Int64Array::from(vec![0, 1, 2, 3, 4]))),
    ])
    .unwrap();
    writer.append("t", 0, &rows.slice(0, 2), 2).await.unwrap();
    writer.commit(START).await.unwrap();
    writer.append("t", 0, &rows.slice(2, 3), 5).await.unwrap();
    writer.commit(START).await.unwrap();
    let latest = table(&root, &catalog, "SELECT room, persons FROM occupancy ORDER BY room").await;
    let expected = "\
+------+---------+
| room | persons |
+------+---------+
| bath | 4       |
| hall | 3       |
+------+---------+";
    assert_eq!(latest, expected);
    assert_eq!(number(&root, &catalog, "SELECT count(*) FROM occupancy_changes").await, 5);
    assert_eq!(
        number(&root, &catalog, "SELECT count(*) FROM occupancy WHERE room = 'kitchen'").await,
        0
    );
}

#[tokio::test]
async fn dead_letters_have_the_reason_first_and_all_columns() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let columns = ["stage", "query", "topic", "column", "reason", "key", "value"].map(text);
    let schema: SchemaRef = Arc::new(Schema::new(columns.to_vec()));
    let spec = TableSpec::new("customer_a", "dead_letters", &schema, None, None, ZONE);
    writer(&root, spec).await.commit(START).await.unwrap();
    let sql = "SELECT column_name FROM information_schema.columns
        WHERE table_schema = 'customer_a' AND table_name = 'dead_letters' ORDER BY ordinal_position";
    let names = run_query(&root, &catalog, sql).await;
    let names: Vec<_> = (names.iter())
        .flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned))
        .collect();
    let expected = [
        ["stage", "reason", "column", "value", "key", "query"],
        ["topic", "_topic", "_partition", "_offset", "_position", "_timestamp"],
    ];
    assert_eq!(names, expected.concat());
}

#[tokio::test]
async fn local_time_is_correct_in_the_repeated_hour() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    // 23:30Z, 00:30Z, 01:30Z: 02:30, 03:30 summer time, 03:30 winter time.
    let rows = (0..3).map(|o| (o, START + 23 * HOUR + HOUR / 2 + o * HOUR));
    writer.append("1084", 0, &events(rows), 3).await.unwrap();
    writer.commit(START).await.unwrap();
    let local = "SELECT event_time, date_trunc('hour', event_time) AS hour FROM positions
        WHERE event_time >= '2019-10-27T02:45:00' ORDER BY event_time";
    let expected = "\
+---------------------------+---------------------------+
| event_time                | hour                      |
+---------------------------+---------------------------+
| 2019-10-27T03:30:00+03:00 | 2019-10-27T03:00:00+03:00 |
| 2019-10-27T03:30:00+02:00 | 2019-10-27T03:00:00+02:00 |
+---------------------------+---------------------------+";
    assert_eq!(table(&root, &catalog, local).await, expected);
    let context = context(&root, &catalog).await.unwrap();
    let twice =
        run_sql(&context, "SELECT 1 FROM positions WHERE event_time > '2019-10-27T03:30:00'").await;
    assert!(twice.err().unwrap().to_string().contains("occurs twice"));
    assert_eq!(
        number(
            &root,
            &catalog,
            "SELECT count(*) FROM positions WHERE CAST(event_time AS DATE) = DATE '2019-10-27'"
        )
        .await,
        3
    );
}

/// Writes rows with a nullable text column, in files with different dictionaries.
async fn write_notes(root: &Path) {
    let spec = spec(&[("note", DataType::Utf8)]);
    let mut writer = writer(root, spec).await;
    for file in 0..3 {
        let offsets = file * 100..file * 100 + 100;
        let rows = events(offsets.clone().map(|o| (o, START + o * SECOND)));
        let notes = offsets.map(|o| (o % 5 != file).then(|| format!("n{}", o % 4 + file)));
        let notes: ArrayRef = Arc::new(notes.collect::<StringArray>());
        let schema = schema(&[("note", DataType::Utf8)]);
        let columns = schema.fields().iter().map(|field| match field.name().as_str() {
            "note" => ("note", notes.clone()),
            name => (field.name().as_str(), rows.column_by_name(name).unwrap().clone()),
        });
        let offset = ("_offset", rows.column_by_name("_offset").unwrap().clone());
        let rows = RecordBatch::try_from_iter_with_nullable(
            columns.chain([offset]).map(|(name, column)| (name, column, true)),
        );
        writer.append("1084", 0, &rows.unwrap(), file * 100 + 100).await.unwrap();
        writer.commit(START).await.unwrap();
    }
}

#[tokio::test]
async fn the_queries_of_the_documentation_return_results() {
    let (folder, catalog) = project();
    let root = root(&folder);
    write_notes(&root).await;
    let text = include_str!("../../docs/sql.md");
    let (_, section) = text.split_once("### Questions to events").unwrap();
    let questions = section.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut rows = Vec::new();
    for question in questions {
        let answer = run_query(&root, &catalog, question).await;
        rows.push(answer.iter().map(RecordBatch::num_rows).sum::<usize>());
    }
    // Seven persons; two rooms in the one hour; one of the persons is seen 43 times.
    assert_eq!(rows, [7, 2, 2, 43]);
}

#[tokio::test]
async fn queries_on_event_time_skip_files() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    for day in 0..10 {
        let rows = (0..24).map(|h| (day * 24 + h, START + day * DAY + h * HOUR));
        writer.append("1084", 0, &events(rows), day * 24 + 24).await.unwrap();
        writer.commit(START).await.unwrap();
    }
    let count = async |filter: &str| {
        let sql = format!("SELECT count(room) FROM positions WHERE {filter}");
        (files_read(&root, &catalog, &sql).await, number(&root, &catalog, &sql).await)
    };
    assert_eq!(count("true").await, (10, 240));
    assert_eq!(
        count("event_time >= '2019-10-28T00:00:00Z' AND event_time < '2019-10-28T12:00:00Z'").await,
        (1, 12)
    );
    assert_eq!(
        count("event_time BETWEEN '2019-10-27T23:00:00Z' AND '2019-10-28T00:00:00Z'").await,
        (2, 2)
    );
    // A local day overlaps two UTC dates; one more date on each side cannot be excluded.
    assert_eq!(count("CAST(event_time AS DATE) = DATE '2019-10-30'").await, (3, 24));
    assert_eq!(
        count("event_time > '2019-10-28T00:00:00Z' AND room = 'hall' AND _offset < 60").await,
        (1, 5)
    );
    assert_eq!(count("_offset = 100").await, (1, 1));
    let groups = "SELECT date_trunc('day', event_time) AS d, count(*) FROM positions
        WHERE event_time >= TIMESTAMP '2019-11-03T10:00:00Z' GROUP BY 1 ORDER BY 1";
    assert_eq!(files_read(&root, &catalog, groups).await, 2);
}

#[tokio::test]
async fn extreme_times_do_not_fail() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    let times = [START, i64::MAX, i64::MIN, 253_402_300_800_000_000];
    let rows = (0..4).map(|o| (o, times[o as usize]));
    writer.append("1084", 0, &events(rows), 4).await.unwrap();
    writer.commit(START).await.unwrap();
    writer.append("1084", 0, &events([(4, i64::MAX)]), 5).await.unwrap();
    writer.commit(START).await.unwrap();
    compact_all(&root, &[], false).await.unwrap();
    assert_eq!(number(&root, &catalog, "SELECT count(*) FROM positions").await, 5);
    assert_eq!(
        number(
            &root,
            &catalog,
            "SELECT count(*) FROM positions WHERE event_time > '2020-01-01T00:00:00Z'"
        )
        .await,
        3
    );
}

#[tokio::test]
async fn queries_work_before_during_and_after_a_run() {
    let (folder, catalog) = project();
    let root = root(&folder);
    assert_eq!(
        number(&root, &catalog, "SELECT count(event_time) FROM customer_a.positions").await,
        0
    );
    let mut writer = writer(&root, spec(&[])).await;
    let context = context(&root, &catalog).await.unwrap();
    for offset in 0..3 {
        writer.append("1084", 0, &events([(offset, START)]), offset + 1).await.unwrap();
        writer.commit(START).await.unwrap();
        let rows =
            run_sql(&context, "SELECT * FROM positions JOIN rooms ON room = name").await.unwrap();
        let rows: Vec<RecordBatch> = rows.try_collect().await.unwrap();
        let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(count, offset as usize + 1, "one session sees every commit");
    }
}

#[tokio::test]
async fn errors_point_at_the_wrong_word() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let context = context(&root, &catalog).await.unwrap();
    let fail = async |sql: &str| run_sql(&context, sql).await.err().map(|e| e.to_string()).unwrap();
    assert_eq!(
        fail("SELECT 1\nFROM postions").await,
        "there is no table 'postions'\n --> query:2:6\n  |\n2 | FROM postions\n  |      ^^^^^^^^\n  hint: did you mean 'positions'?"
    );
    assert_eq!(
        fail("SELECT rom FROM positions").await,
        "there is no column 'rom'\n --> query:1:8\n  |\n1 | SELECT rom FROM positions\n  |        ^^^\n  hint: did you mean 'room'?"
    );
    assert!(fail("SELECT FROM WHERE").await.contains("--> query:1:"));
    for refused in [
        "DROP TABLE positions",
        "INSERT INTO positions VALUES (1)",
        "COPY positions TO 'x.csv'",
        "SET a.b = 1",
    ] {
        let error = fail(refused).await;
        assert!(error.contains("only queries"), "{refused}: {error}");
    }
    assert!(run_sql(&context, "EXPLAIN SELECT * FROM positions").await.is_ok());
    assert!(run_sql(&context, "SHOW TABLES").await.is_ok());
}

#[tokio::test]
async fn mistakes_in_queries_have_clear_errors() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let mut writer = writer(&root, spec(&[])).await;
    writer.append("1084", 0, &events([(0, START)]), 1).await.unwrap();
    writer.commit(START).await.unwrap();
    let context = context(&root, &catalog).await.unwrap();
    for (sql, place, message, hint) in [
        ("", "1:1", "there is no query", "write a SELECT"),
        (
            "SELECT 1; SELECT 2",
            "1:11",
            "there is more than one statement",
            "one statement at a time",
        ),
        (
            "SELECT count(* FROM positions",
            "1:16",
            "expected ), found FROM",
            "column 13 is not closed",
        ),
        ("SELECT", "1:7", "found the end of the statement", "the statement is incomplete"),
        ("SELECT * FROM", "1:14", "found the end of the statement", "the statement is incomplete"),
        ("SELECT room FROM positions WHERE room = 'x", "1:41", "unterminated string", "closing '"),
        (
            "SELECT room FROM positions GRUOP BY room",
            "1:28",
            "unexpected word 'GRUOP'",
            "GROUP BY?",
        ),
        (
            "SELECT sum(part_id), sum(room) FROM positions",
            "1:22",
            "sum() does not take VARCHAR\n",
            "CAST",
        ),
        (
            "SELECT cuont(*) FROM positions",
            "1:8",
            "there is no function 'cuont'",
            "did you mean 'count'?",
        ),
        (
            "SELECT 'rom' /* rom */, rom FROM positions",
            "1:25",
            "no column 'rom'",
            "did you mean 'room'?",
        ),
        (
            "SELECT 1 FROM TUMBLE(TABLE positions, DESCRIPTOR(t), INTERVAL '1' DAY)",
            "1:15",
            "TUMBLE can be used only in query files",
            "date_bin",
        ),
        ("SELECT TOP 5 room FROM positions", "1:8", "TOP is not supported", ""),
        (
            "SELECT nullif(room) FROM positions",
            "1:8",
            "nullif() does not take 1 argument\n",
            "nullif(value, value)",
        ),
        ("SELECT room[1] FROM positions", "", "array_element() does not take VARCHAR, BIGINT", ""),
        ("SELECT regexp_like('a', '[')", "", "cannot parse the regular expression", ""),
    ] {
        let text = match run_sql(&context, sql).await {
            Ok(rows) => sql_error(rows.try_collect::<Vec<_>>().await.unwrap_err()).to_string(),
            Err(error) => error.to_string(),
        };
        let place = if place.is_empty() { String::new() } else { format!("query:{place}\n") };
        for expected in [place.as_str(), message, hint] {
            assert!(text.contains(expected), "{sql}\n{text}\nlacks: {expected}");
        }
        for raw in ["nternal", "bug", "Int64", "Utf8"] {
            assert!(!text.contains(raw), "{sql}\n{text}\nhas: {raw}");
        }
    }
}

#[tokio::test]
async fn the_hint_for_an_unqualified_table_qualifies_it() {
    let (folder, _) = project();
    let schema = "CREATE STREAM visits (t TIMESTAMP, WATERMARK FOR t AS t) WITH (topics = '2');";
    std::fs::write(folder.path().join("schemas/customer_b.sql"), schema).unwrap();
    let catalog = crate::catalog::load(folder.path(), &[]).unwrap();
    let context = context(&root(&folder), &catalog).await.unwrap();
    let error = run_sql(&context, "SELECT * FROM visits").await.err().unwrap();
    assert_eq!(error.hint.as_deref(), Some("write customer_b.visits"));
}

#[tokio::test]
async fn lists_of_tables_are_sorted() {
    let (folder, catalog) = project();
    let rows = run_query(&root(&folder), &catalog, "SHOW TABLES").await;
    let names: Vec<String> = (rows.iter())
        .flat_map(|rows| {
            let names = [1, 2]
                .map(|column| arrow::compute::cast(rows.column(column), &DataType::Utf8).unwrap());
            let names = names.map(|names| names.as_string::<i32>().clone());
            (0..rows.num_rows())
                .map(|row| format!("{}.{}", names[0].value(row), names[1].value(row)))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(names.is_sorted() && names.contains(&"customer_a.rooms".to_owned()), "{names:?}");
}

#[tokio::test]
async fn a_missing_history_differs_from_an_empty_one() {
    let (folder, _) = project();
    let root = root(&folder);
    let error = check_there(&root).unwrap_err();
    assert_eq!(error.kind, crate::Kind::Config);
    assert!(error.to_string().contains("no history found in") && error.hint.is_some());
    drop(writer(&root, spec(&[])).await);
    let ran = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(ran.path().join("status")).unwrap();
    check_there(&ran.path().join("history")).unwrap();
}

#[tokio::test]
async fn events_are_read_with_the_schema_of_the_stream() {
    let (folder, _) = project();
    let root = root(&folder);
    let spec = spec(&[]);
    let mut writer = writer(&root, spec.clone()).await;
    for partition in [1, 0] {
        let rows = (0..48).map(|o| (o, START + (47 - o) * HOUR));
        writer.append("1084", partition, &events(rows), 48).await.unwrap();
    }
    writer.commit(START).await.unwrap();
    let scan = EventScan {
        customer: "customer_a",
        stream: "positions",
        schema: spec.schema.clone(),
        time_column: "event_time",
        from: Some(START + HOUR),
        to: Some(START + 3 * HOUR),
        ordered: true,
    };
    let rows = scan_events(&root, scan.clone()).await.unwrap();
    assert_eq!(rows.schema(), spec.schema);
    let rows: Vec<RecordBatch> = rows.try_collect().await.unwrap();
    let rows = arrow::compute::concat_batches(&spec.schema, &rows).unwrap();
    assert_eq!(
        rows.column_by_name("_offset").unwrap().as_ref(),
        &Int64Array::from(vec![45, 46, 45, 46])
    );
    let none = EventScan { stream: "never_ran", ..scan };
    assert_eq!(
        scan_events(&root, none).await.unwrap().try_collect::<Vec<_>>().await.unwrap().len(),
        0
    );
}

#[tokio::test]
async fn late_rows_have_their_source() {
    let (folder, _) = project();
    let root = root(&folder);
    let mut fields: Vec<Field> = schema(&[]).fields().iter().map(|f| f.as_ref().clone()).collect();
    fields.push(Field::new("query", DataType::Utf8, false));
    for name in ["refused_from", "refused_to", "watermark"] {
        fields.push(Field::new(name, instant(), false));
    }
    for (name, kind) in [
        ("_topic", DataType::Utf8),
        ("_partition", DataType::Int32),
        ("_offset", DataType::Int64),
        ("_position", DataType::Int32),
    ] {
        fields.push(Field::new(name, kind, false));
    }
    let late = delta_table::late_schema(&Arc::new(Schema::new(fields)));
    let spec = TableSpec::new("customer_a", "positions_late", &late, None, None, ZONE);
    let mut writer = writer(&root, spec).await;
    let times = |values: Vec<i64>| {
        Arc::new(TimestampMicrosecondArray::from(values).with_timezone(ZONE)) as ArrayRef
    };
    let rows = RecordBatch::try_from_iter([
        ("query", Arc::new(StringArray::from(vec!["daily", "hourly"])) as ArrayRef),
        ("refused_from", times(vec![10, 20])),
        ("refused_to", times(vec![11, 22])),
        ("source_topic", Arc::new(StringArray::from(vec!["1084", "1084"]))),
        ("source_partition", Arc::new(arrow::array::Int32Array::from(vec![3, 3]))),
        ("source_offset", Arc::new(Int64Array::from(vec![77, 77]))),
        ("source_position", Arc::new(arrow::array::Int32Array::from(vec![0, 0]))),
        ("_timestamp", times(vec![START, START])),
        ("_offset", Arc::new(Int64Array::from(vec![0, 1]))),
    ])
    .unwrap();
    writer.append("millstream.customer_a.positions_late", 0, &rows, 2).await.unwrap();
    writer.commit(START).await.unwrap();
    let refused = late_rows(&root, "customer_a", "positions", "hourly").await.unwrap();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[&("1084".to_owned(), 3, 77, 0)], [(20, 22)]);
}

#[tokio::test]
async fn status_tables_show_why_a_window_is_open() {
    let (folder, catalog) = project();
    let root = root(&folder);
    let empty = "SELECT count(*) FROM millstream.watermarks";
    assert_eq!(number(&root, &catalog, empty).await, 0);
    let partition = PartitionStatus {
        topic: "1084".into(),
        watermark: Some(START),
        end: 5,
        position: 2,
        ..Default::default()
    };
    let open = OpenWindowStatus {
        window: Window { start: START, end: START + DAY },
        held_by: Some("1084/0".into()),
        held_at: Some(START),
        because: "waits for 1084/0".into(),
    };
    let status = Status {
        customer: "customer_a".into(),
        streams: vec![StreamStatus {
            name: "positions".into(),
            partitions: vec![partition],
            ..Default::default()
        }],
        queries: vec![QueryStatus { name: "daily".into(), open: vec![open], ..Default::default() }],
        ..Default::default()
    };
    let file = root.parent().unwrap().join("status/customer_a.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, serde_json::to_vec(&status).unwrap()).unwrap();
    let watermarks =
        table(&root, &catalog, "SELECT stream, topic, watermark, lag FROM millstream.watermarks")
            .await;
    assert!(
        watermarks.contains("| positions | 1084  | 2019-10-26T03:00:00+03:00 | 3   |"),
        "{watermarks}"
    );
    let windows =
        table(&root, &catalog, "SELECT window_end, held_by, because FROM millstream.windows").await;
    assert!(
        windows.contains("| 2019-10-27T03:00:00+03:00 | 1084/0  | waits for 1084/0 |"),
        "{windows}"
    );
}

/// Measures the append rate of history. Run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_append_and_commit() {
    const ROWS: i64 = 1_000_000;
    let (folder, catalog) = project();
    let root = root(&folder);
    let batches: Vec<RecordBatch> = (0..ROWS / 8_000)
        .map(|b| {
            events((0..8_000).map(|i| {
                (b * 8_000 + i, START + (b * 8_000 + i) * 10_000 + (i * 7919 % 1000) * 500)
            }))
        })
        .collect();
    let mut writer = writer(&root, spec(&[])).await;
    let started = std::time::Instant::now();
    let mut files = 0;
    for (index, batch) in batches.iter().enumerate() {
        let next = (index as i64 + 1) * 8_000;
        writer.append("1084", 0, batch, next).await.unwrap();
        if index % 25 == 24 {
            files += writer.commit(START).await.unwrap().files;
        }
    }
    writer.commit(START).await.unwrap();
    let took = started.elapsed().as_secs_f64();
    println!(
        "append and commit: {ROWS} rows, {files} files, {took:.2} s, {:.0} rows/s",
        ROWS as f64 / took
    );
    let started = std::time::Instant::now();
    for offset in 0..20 {
        writer
            .append("1084", 0, &events([(ROWS + offset, START)]), ROWS + offset + 1)
            .await
            .unwrap();
        writer.commit(START).await.unwrap();
    }
    println!("a commit of one row: {:.1} ms", started.elapsed().as_secs_f64() * 50.0);
    let started = std::time::Instant::now();
    let count = number(&root, &catalog, "SELECT count(*) FROM positions WHERE room = 'hall'").await;
    println!("count of {count} rows: {:.1} ms", started.elapsed().as_secs_f64() * 1000.0);
}
