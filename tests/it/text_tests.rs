//! Runs tests/sql/*.slt: each query in four modes, which must give the same rows. See tests/sql/README.md.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::prelude::{CsvReadOptions, SessionContext};
use millstream::catalog::{self, Catalog, Customer, Stream, TableFormat};
use serde_json::{Map, Value};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

use crate::engine_harness::{self, Input, Mode, Outcome};
use crate::support::oracle::{Lateness, Oracle, Relation};
use crate::support::project::Project;

/// The customer of projects that a file defines.
const CUSTOMER: &str = "test";

macro_rules! files {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            run_file(stringify!($name)).await;
        })*

        #[test]
        fn every_file_is_run() {
            let listed: BTreeSet<String> = [$(stringify!($name)),*].iter().map(|n| format!("{n}.slt")).collect();
            let found: BTreeSet<String> = std::fs::read_dir(folder())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".slt"))
                .collect();
            assert_eq!(listed, found);
        }
    };
}

files! {
    calendar chain customers date_bin decode distinct empty hop late rows stateless tables tumble types views
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql")
}

async fn run_file(name: &str) {
    let mut runner = Runner::new(|| async { Ok(Session::new()) });
    if let Err(error) = runner.run_file_async(folder().join(format!("{name}.slt"))).await {
        panic!("{}", error.display(false));
    }
}

/// The error text of a failed statement.
#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<millstream::Error> for Failure {
    fn from(error: millstream::Error) -> Self {
        Self(error.to_string())
    }
}

/// The events of one stream in a file.
enum Events {
    Csv { header: Vec<String>, rows: Vec<Vec<String>> },
    Raw(Vec<String>),
}

/// The statements and events of a file so far.
#[derive(Default)]
struct Session {
    schema: Vec<String>,
    tables: Vec<(String, String)>,
    queries: Vec<(String, String)>,
    repository: Option<String>,
    events: Vec<(String, Events)>,
    one_partition: bool,
    last: Outcome,
    last_query: String,
}

type Rows = Vec<Vec<String>>;

#[async_trait]
impl AsyncDB for Session {
    type Error = Failure;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        let rows = self.statement(sql).await?;
        Ok(match rows {
            None => DBOutput::StatementComplete(0),
            Some(rows) => {
                let width = rows.first().map_or(0, Vec::len);
                DBOutput::Rows { types: vec![DefaultColumnType::Any; width], rows }
            }
        })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "millstream"
    }
}

impl Session {
    fn new() -> Self {
        Self::default()
    }

    async fn statement(&mut self, sql: &str) -> Result<Option<Rows>, Failure> {
        let (first_line, rest) = sql.split_once('\n').unwrap_or((sql, ""));
        let words: Vec<&str> = first_line.split_whitespace().collect();
        match words[..] {
            ["RESET"] => *self = Self::new(),
            ["ONE", "PARTITION"] => self.one_partition = true,
            ["PROJECT", customer] => self.repository = Some(customer.to_owned()),
            ["EVENTS", stream] => self.events.push((stream.to_owned(), csv_events(rest))),
            ["RECORDS", stream] => {
                let lines = rest.lines().map(str::to_owned).collect();
                self.events.push((stream.to_owned(), Events::Raw(lines)));
            }
            ["TABLE", name] => self.tables.push((name.to_owned(), rest.to_owned())),
            ["QUERY", name] => return self.answer(name).await.map(Some),
            ["LATE"] => return Ok(Some(self.late())),
            ["FAILED"] => return Ok(Some(self.failed())),
            ["REJECTED"] => return Ok(Some(self.rejected())),
            ["SET", ..] => self.schema.push(sql.to_owned()),
            ["CREATE", "EXTERNAL", ..] => self.schema.push(sql.to_owned()),
            ["CREATE", "STREAM", _, "AS" | "WITH", ..] => {
                return self.add(words[2], sql).await.map(Some);
            }
            ["CREATE", "MATERIALIZED", "VIEW", name, ..] => {
                return self.add(name, sql).await.map(Some);
            }
            ["CREATE", "STREAM", ..] => self.schema.push(sql.to_owned()),
            _ => {
                self.queries.retain(|(name, _)| name != "answer");
                let rows = self.add("answer", sql).await;
                self.queries.retain(|(name, _)| name != "answer");
                return rows.map(Some);
            }
        }
        Ok(None)
    }

    async fn add(&mut self, name: &str, sql: &str) -> Result<Rows, Failure> {
        self.queries.push((name.to_owned(), sql.to_owned()));
        let rows = self.answer(name).await;
        if rows.is_err() {
            self.queries.pop();
        }
        rows
    }

    fn late(&self) -> Rows {
        let of = |(query, row): &(String, [String; 4])| {
            (*query == self.last_query).then(|| row.to_vec())
        };
        self.last.late.iter().filter_map(of).collect()
    }

    fn failed(&self) -> Rows {
        let of = |(query, offset): &(String, i64)| {
            (*query == self.last_query).then(|| vec![offset.to_string()])
        };
        self.last.failed.iter().filter_map(of).collect()
    }

    fn rejected(&self) -> Rows {
        let row = |(offset, column, _): &(i64, Option<String>, String)| {
            vec![offset.to_string(), column.clone().unwrap_or_else(|| "NULL".into())]
        };
        self.last.rejected.iter().map(row).collect()
    }

    /// The project on disk, and its catalog.
    fn catalog(&self) -> Result<(Project, Catalog), Failure> {
        let project = Project::new();
        let (root, only) = match &self.repository {
            Some(customer) => (PathBuf::from(env!("CARGO_MANIFEST_DIR")), vec![customer.clone()]),
            None => {
                project.schema(CUSTOMER, &self.schema.join(";\n"));
                for (name, text) in &self.tables {
                    project.file(&format!("data/{name}.csv"), text);
                }
                for (name, text) in &self.queries {
                    project.query(CUSTOMER, name, text);
                }
                (project.path().to_owned(), Vec::new())
            }
        };
        let catalog = catalog::load(&root, &only).map_err(|errors| {
            let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Failure(texts.join("\n"))
        })?;
        Ok((project, catalog))
    }

    /// Runs a query in all modes, compares them, and returns its rows.
    async fn answer(&mut self, name: &str) -> Result<Rows, Failure> {
        let (_folder, catalog) = self.catalog()?;
        let root = catalog.root.clone();
        let customer = catalog.customers[0].clone();
        let inputs = self.inputs(&customer)?;
        let whole = engine_harness::run(&root, &customer, &inputs, Mode::Whole).await?;
        let rows = sorted(&whole, name)?;
        if let Some((query, reason)) = whole.failed_windows.first() {
            return Err(Failure(format!("a window of {query} failed: {reason}")));
        }
        let mut modes = vec![Mode::SmallEpochs];
        if !self.one_partition {
            modes.push(Mode::Spread);
        }
        for mode in modes {
            let other = engine_harness::run(&root, &customer, &inputs, mode).await?;
            compare_rows(&rows, &sorted(&other, name)?, &format!("{mode:?}"))?;
            let count = |o: &Outcome| (o.late.len(), o.failed.len(), o.rejected.len());
            if count(&whole) != count(&other) {
                let text = format!(
                    "{mode:?} refuses different rows: {:?} and {:?}",
                    count(&whole),
                    count(&other)
                );
                return Err(Failure(text));
            }
        }
        self.compare_with_oracle(&root, &customer, name, &whole, &rows).await?;
        let unsorted = whole.results[name].clone();
        (self.last, self.last_query) = (whole, name.to_owned());
        Ok(unsorted)
    }

    fn inputs(&self, customer: &Customer) -> Result<Vec<Input>, Failure> {
        let mut inputs: Vec<Input> = Vec::new();
        for (name, events) in &self.events {
            let stream = customer.streams.iter().find(|s| s.name == *name);
            let stream = stream.ok_or_else(|| format!("there is no stream {name}"))?;
            let values: Vec<Bytes> = match events {
                Events::Raw(lines) => lines.iter().map(|l| l.clone().into()).collect(),
                Events::Csv { header, rows } => {
                    rows.iter().map(|row| json_event(stream, header, row)).collect()
                }
            };
            match inputs.iter_mut().find(|i| i.stream == *name) {
                Some(input) => input.values.extend(values),
                None => inputs.push(Input { stream: name.clone(), values }),
            }
        }
        Ok(inputs)
    }

    async fn compare_with_oracle(
        &self,
        root: &Path,
        customer: &Customer,
        name: &str,
        whole: &Outcome,
        rows: &Rows,
    ) -> Result<(), Failure> {
        let mut oracle = Oracle { zone: customer.zone, relations: Vec::new() };
        for table in &customer.tables {
            let options = CsvReadOptions::new().has_header(true);
            let options =
                table.columns.as_ref().map_or(options.clone(), |schema| options.schema(schema));
            assert!(matches!(table.format, TableFormat::Csv), "the oracle reads CSV only");
            let path = root.join(&table.location);
            let frame = SessionContext::new().read_csv(path.to_str().unwrap(), options).await;
            let batches = async { frame?.collect().await }.await.map_err(|e| e.to_string())?;
            let batch =
                concat_batches(&batches[0].schema(), &batches).map_err(|e| e.to_string())?;
            oracle.relations.push(Relation { name: table.name.clone(), rows: batch });
        }
        let mut lateness = None;
        for stream in &customer.streams {
            let Some(rows) = whole.rows.get(&stream.name) else { return Ok(()) };
            let batch = without_origins(rows);
            if self.one_partition {
                lateness = Some(running_watermark(stream, &batch));
            }
            oracle.relations.push(Relation { name: stream.name.clone(), rows: batch });
        }
        let needed = needed(customer, name);
        for query in customer.queries.iter().filter(|q| needed.contains(&q.name)) {
            let late = lateness
                .clone()
                .map(|before| Lateness { before, allowed_us: query.allowed_lateness_us });
            let (answer, _) = oracle.answer(&query.select.to_string(), late.as_ref()).await?;
            if query.name == name {
                let mut expected = engine_harness::batch_cells(&answer);
                expected.sort();
                return compare_rows(rows, &expected, "plain DataFusion");
            }
            oracle.relations.push(Relation { name: query.name.clone(), rows: answer });
        }
        Err(Failure(format!("there is no query {name}")))
    }
}

/// The query and all queries that it reads, directly or indirectly.
fn needed(customer: &Customer, name: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::from([name.to_owned()]);
    for query in customer.queries.iter().rev() {
        if all.contains(&query.name) {
            all.extend(query.inputs.iter().cloned());
        }
    }
    all
}

/// The watermark before each row of one partition: the largest event time so far, minus the delay.
fn running_watermark(stream: &Stream, rows: &RecordBatch) -> Vec<i64> {
    let times = rows.column_by_name(&stream.watermark.column).unwrap();
    let times = arrow::compute::cast(times, &DataType::Int64).unwrap();
    let times = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(&times);
    let mut watermark = i64::MIN;
    let mut before = Vec::with_capacity(times.len());
    for time in times.values() {
        before.push(watermark);
        watermark = watermark.max(time - stream.watermark.delay_us);
    }
    before
}

fn without_origins(rows: &RecordBatch) -> RecordBatch {
    let columns: Vec<usize> = (0..rows.num_columns() - 4).collect();
    rows.project(&columns).unwrap()
}

fn sorted(outcome: &Outcome, name: &str) -> Result<Rows, Failure> {
    let rows = outcome.results.get(name).ok_or_else(|| format!("there is no query {name}"))?;
    let mut rows = rows.clone();
    rows.sort();
    Ok(rows)
}

fn compare_rows(rows: &Rows, other_rows: &Rows, mode_name: &str) -> Result<(), Failure> {
    if rows == other_rows {
        return Ok(());
    }
    let show = |rows: &Rows| rows.iter().map(|r| r.join(" ")).collect::<Vec<_>>().join("\n  ");
    Err(Failure(format!(
        "the modes give different rows\none partition, one epoch:\n  {}\n{mode_name}:\n  {}",
        show(rows),
        show(other_rows)
    )))
}

fn csv_events(text: &str) -> Events {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let header = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let rows =
        reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
    Events::Csv { header, rows }
}

/// Encodes one event as JSON according to the stream's types.
fn json_event(stream: &Stream, header: &[String], row: &[String]) -> Bytes {
    let mut object = Map::new();
    for (name, text) in header.iter().zip(row) {
        let column = stream.columns.iter().find(|c| c.name == *name).unwrap();
        let value = match (text.as_str(), &column.data_type) {
            ("", _) => continue,
            ("null", _) => Value::Null,
            (
                text,
                DataType::Utf8 | DataType::Timestamp(..) | DataType::Date32 | DataType::Binary,
            ) => text.into(),
            (text, _) => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        object.insert(name.clone(), value);
    }
    Value::Object(object).to_string().into()
}
