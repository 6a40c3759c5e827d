//! Compares SQL questions to history with DuckDB on the same Parquet files, and measures replays.
//!
//! Days of ten million events like those of the whole job are written by the writer of `millstream run`,
//! in batches as they come from Kafka, and compacted. Then each question of docs/sql.md runs three times
//! in Millstream in this process (opening the table each time, as `millstream query` does), in
//! `millstream query` as a process, and in DuckDB in one session. The best time counts, and the answers of
//! Millstream and DuckDB must be equal row by row. Finally `millstream replay` runs the hourly windows.
//! `benches/run history` writes the tables of docs/performance.md. EVENTS makes the history shorter;
//! HISTORY names a folder in which it is kept and reused.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

#[path = "../support/day.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod day;
#[path = "../support/job.rs"]
#[allow(dead_code, reason = "no Kafka here")]
mod job;
mod made;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use job::cpu_seconds;
use millstream::{catalog, history};
use serde_json::Value;

use made::{CUSTOMER, DAY_EVENTS, QUERY_NAME};

const ROUNDS: usize = 3;
/// Threads for each engine.
const THREADS: usize = 2;
const DUCKDB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/history/ask_duckdb.py");
/// The fastest expression for the hour in DuckDB: without time zones.
const DUCK_HOUR: &str = "make_timestamp(epoch_us(event_time) // 3600000000 * 3600000000)";
const HOUR: &str = "date_bin(INTERVAL '1 hour', event_time)";

/// A question of docs/sql.md; `{hour}` stands for the expression that differs between the engines.
struct Question {
    what: &'static str,
    sql: &'static str,
}

const QUESTIONS: [Question; 5] = [
    Question {
        what: "pivot: events of each person in each of eight rooms",
        sql: "SELECT part_id,
  count(*) FILTER (WHERE room = 'living room west') AS living_room_west,
  count(*) FILTER (WHERE room = 'living room east') AS living_room_east,
  count(*) FILTER (WHERE room = 'kitchen upstairs') AS kitchen_upstairs,
  count(*) FILTER (WHERE room = 'kitchen basement') AS kitchen_basement,
  count(*) FILTER (WHERE room = 'bathroom level 1') AS bathroom_1,
  count(*) FILTER (WHERE room = 'bathroom level 2') AS bathroom_2,
  count(*) FILTER (WHERE room = 'hall by the door') AS hall_door,
  count(*) FILTER (WHERE room = 'hall by the lift') AS hall_lift
FROM positions GROUP BY part_id ORDER BY part_id",
    },
    Question {
        what: "trend: events of each hour and room",
        sql: "SELECT {hour} AS hour, room, count(*) AS events
FROM positions GROUP BY hour, room ORDER BY hour, room",
    },
    Question {
        what: "trend: distinct persons of each hour and room",
        sql: "SELECT {hour} AS hour, room, count(DISTINCT part_id) AS persons
FROM positions GROUP BY hour, room ORDER BY hour, room",
    },
    Question {
        what: "top rooms",
        sql: "SELECT room, count(*) AS events FROM positions GROUP BY room
ORDER BY events DESC, room LIMIT 5",
    },
    Question {
        what: "one person's day",
        sql: "SELECT event_time, room FROM positions
WHERE part_id = 1500 AND event_time >= TIMESTAMP '2024-05-01' AND event_time < TIMESTAMP '2024-05-02'
ORDER BY event_time, _partition, _offset",
    },
];

/// The best wall time and CPU time in seconds, and the answer.
struct Timing {
    seconds: f64,
    cpu: f64,
    rows: Vec<Vec<String>>,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let events = std::env::var("EVENTS").map_or(10 * DAY_EVENTS, |n| n.parse().unwrap());
    let folder = made::project();
    let data = match std::env::var_os("HISTORY") {
        Some(folder) => PathBuf::from(folder),
        None => folder.path().join(".millstream"),
    };
    let files = made::history(folder.path(), &data, events).await;
    let bytes: u64 = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum();
    println!("{events} events in {} files, {} MB", files.len(), bytes >> 20);

    let duck = duckdb(&files);
    let mut table = String::from(
        "| question | Millstream: wall, CPU | process, wall | DuckDB: wall, CPU | Millstream / DuckDB: wall, CPU | rows |\n|---|---|---|---|---|---|\n",
    );
    for (index, question) in QUESTIONS.iter().enumerate() {
        let sql = question.sql.replace("{hour}", HOUR);
        let ours = ask(folder.path(), &data, &sql).await;
        let process = ask_process(folder.path(), &data, &sql);
        let theirs = duck.as_ref().map(|duck| &duck[index]);
        if let Some(theirs) = theirs {
            assert!(ours.rows == theirs.rows, "{}: the answers differ", question.what);
        }
        let spent = |timing: &Timing| format!("{:.2} s, {:.2} s", timing.seconds, timing.cpu);
        let ratio = |theirs: &Timing| {
            format!("{:.2}, {:.2}", ours.seconds / theirs.seconds, ours.cpu / theirs.cpu.max(0.01))
        };
        let none = || "-".to_owned();
        let line = format!(
            "| {} | {} | {process:.2} s | {} | {} | {} |",
            question.what,
            spent(&ours),
            theirs.map_or_else(none, spent),
            theirs.map_or_else(none, ratio),
            ours.rows.len()
        );
        println!("{line}");
        writeln!(table, "{line}").unwrap();
    }
    writeln!(
        table,
        "\n{events} events in {} files, {} MiB; {THREADS} threads each; best of {ROUNDS}; DuckDB {}.",
        files.len(),
        bytes >> 20,
        duckdb_version().unwrap_or_else(|| "was not available".to_owned())
    )
    .unwrap();
    job::write_table("history", &table);
    job::write_table("replay", &replays(folder.path(), &data, events));
}

/// Runs one question in this process, as `millstream query` does.
async fn ask(project: &Path, data: &Path, sql: &str) -> Timing {
    let mut best = Timing { seconds: f64::INFINITY, cpu: f64::INFINITY, rows: Vec::new() };
    for _ in 0..ROUNDS {
        let catalog = catalog::load(project, &[]).unwrap();
        let (since, cpu) = (Instant::now(), cpu_seconds().0);
        let context = history::context(&data.join("history"), &catalog).await.unwrap();
        let rows = history::run_sql(&context, sql).await.unwrap();
        let batches: Vec<RecordBatch> = rows.try_collect().await.unwrap();
        let seconds = since.elapsed().as_secs_f64();
        best.seconds = best.seconds.min(seconds);
        best.cpu = best.cpu.min(cpu_seconds().0 - cpu);
        best.rows = batches.iter().flat_map(rows_of).collect();
    }
    best
}

/// The rows of a batch as texts, with times as microseconds since 1970.
fn rows_of(batch: &RecordBatch) -> Vec<Vec<String>> {
    let text = |column: &ArrayRef, row: usize| match column.data_type() {
        DataType::Timestamp(..) => {
            column.as_primitive::<TimestampMicrosecondType>().value(row).to_string()
        }
        _ => {
            let options = FormatOptions::default();
            ArrayFormatter::try_new(column.as_ref(), &options).unwrap().value(row).to_string()
        }
    };
    // All times are converted to microseconds, whatever their unit is.
    let micros = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into()));
    let columns: Vec<ArrayRef> = (batch.columns().iter())
        .map(|column| match column.data_type() {
            DataType::Timestamp(..) => arrow::compute::cast(column, &micros).unwrap(),
            _ => column.clone(),
        })
        .collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|c| text(c, row)).collect()).collect()
}

/// The best wall time of `millstream query` from start to exit, in seconds.
fn ask_process(project: &Path, data: &Path, sql: &str) -> f64 {
    let run = || {
        let since = Instant::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.current_dir(project).stdin(Stdio::null()).stdout(Stdio::null());
        command.arg("query").arg("--data-dir").arg(data);
        let done = command.args(["--format", "csv", sql]).status().unwrap();
        assert!(done.success());
        since.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

/// Runs all questions in DuckDB; `None` if it is not available.
fn duckdb(files: &[PathBuf]) -> Option<Vec<Timing>> {
    duckdb_version()?;
    let questions: Vec<String> =
        QUESTIONS.iter().map(|q| q.sql.replace("{hour}", DUCK_HOUR)).collect();
    let wanted = serde_json::json!({
        "files": files, "threads": THREADS, "rounds": ROUNDS, "questions": questions,
    });
    let scratch = tempfile::tempdir().unwrap();
    let input = scratch.path().join("wanted.json");
    std::fs::write(&input, wanted.to_string()).unwrap();
    let output = Command::new(python()?).arg(DUCKDB).arg(&input).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let texts = |row: &Value| {
        row.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
    };
    let timing = |answer: &Value| Timing {
        seconds: answer["seconds"].as_f64().unwrap(),
        cpu: answer["cpu"].as_f64().unwrap(),
        rows: answer["rows"].as_array().unwrap().iter().map(texts).collect(),
    };
    Some(answers.iter().map(timing).collect())
}

/// The Python interpreter with DuckDB, from DUCKDB_PYTHON, which benches/run sets.
fn python() -> Option<std::ffi::OsString> {
    let python = std::env::var_os("DUCKDB_PYTHON");
    if python.is_none() {
        println!(
            "DuckDB is skipped: set DUCKDB_PYTHON to a Python interpreter with the package duckdb"
        );
    }
    python
}

fn duckdb_version() -> Option<String> {
    let code = "import duckdb; print(duckdb.__version__)";
    let output = Command::new(python()?).args(["-c", code]).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    output.status.success().then_some(version)
}

/// Runs `millstream replay` of the hourly windows over one day and over all days.
fn replays(project: &Path, data: &Path, events: u64) -> String {
    let mut table = String::from(
        "| replay of | wall | CPU | events per CPU second | rows of windows |\n|---|---|---|---|---|\n",
    );
    let first = events.min(DAY_EVENTS);
    let mut spans = vec![("one day", first, Some("2024-05-02"))];
    if events > first {
        spans.push(("all", events, None));
    }
    for (what, number, to) in spans {
        let answer = project.join("replay.csv");
        let (since, cpu) = (Instant::now(), cpu_seconds().1);
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.current_dir(project).stdin(Stdio::null());
        command.arg("replay").arg(format!("{CUSTOMER}/{QUERY_NAME}")).arg("--data-dir").arg(data);
        command.args(to.iter().flat_map(|to| ["--to", to]));
        let done = command.arg("--output").arg(&answer).status().unwrap();
        assert!(done.success());
        let (wall, cpu) = (since.elapsed().as_secs_f64(), cpu_seconds().1 - cpu);
        let rows = made::check_replay(&answer, number);
        let speed = number as f64 / cpu / 1e6;
        let line = format!("| {what} | {wall:.1} s | {cpu:.1} s | {speed:.2} M | {rows} |");
        println!("{line}");
        writeln!(table, "{line}").unwrap();
    }
    table
}
