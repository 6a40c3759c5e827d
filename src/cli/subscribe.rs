//! `millstream subscribe`: follows a query's results as readers of its topic see them.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::cli::kafka_args::KafkaArgs;
use crate::cli::output;
use crate::cli::project_args::ProjectArgs;
use crate::sensors::units;
use crate::sink::headers;
use crate::source::chunk::Record;
use crate::source::{Chunk, Cluster, Event, Isolation, KafkaConfig, Reader};
use crate::types::TopicPartition;
use crate::{Error, Result, catalog};

/// Follow the results of a query.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The customer
    customer: String,
    /// Query to follow; dead_letters for dead letters, or STREAM_late for late rows
    query: String,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    project: ProjectArgs,
    /// All results that the topic still has, instead of new ones only
    #[arg(long)]
    from_beginning: bool,
    /// How to print a result
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// Stop after so many results
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Stop after this time, such as 30s
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    duration_us: Option<i64>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line, as it is in the topic; a delete as {"deleted": key}, a dead letter
    /// with its reason, place, key and value
    Json,
    /// Columns
    Table,
}

fn span(text: &str) -> Result<i64, String> {
    units::span(text).map_err(|error| error.to_string())
}

/// Prints results until `--max`, `--for` or a signal ends it.
pub async fn run(args: Args) -> Result<ExitCode> {
    let kafka = args.kafka.config()?;
    let topic = topic(&args);
    let starts = starts(kafka.clone(), topic, args.from_beginning).await?;
    let mut reader = Reader::start(&kafka, "millstream-subscribe", Isolation::Committed)?;
    reader.assign(&starts)?;
    let mut printer = Printer::new(args.format, io::stdout());
    let mut stop =
        crate::cli::stop_signal::stop_signal_with_message("stopping: no more results are read");
    let end = async {
        match args.duration_us {
            Some(us) => tokio::time::sleep(Duration::from_micros(us.unsigned_abs())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        followed = follow(&mut reader, &mut printer, args.max) => followed?,
        () = end => {}
        () = stopped(&mut stop) => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The query's topic, from its file if there is one: it may name a topic of its own.
fn topic(args: &Args) -> String {
    let default = format!("millstream.{}.{}", args.customer, args.query);
    // A reader of results needs no schema files; so errors in them are not its concern.
    let Ok(catalog) = catalog::load(&args.project.project, std::slice::from_ref(&args.customer))
    else {
        return default;
    };
    let customer = catalog.customers.iter().find(|customer| customer.name == args.customer);
    let query = customer
        .and_then(|customer| customer.queries.iter().find(|query| query.name == args.query));
    query.map_or(default, |query| query.topic.clone())
}

/// Every partition of the topic and the offset to begin at.
async fn starts(
    kafka: KafkaConfig,
    topic: String,
    from_beginning: bool,
) -> Result<Vec<(TopicPartition, i64)>> {
    let look_up = move || {
        let cluster = Cluster::connect(&kafka)?;
        let there = cluster.topics()?;
        if !there.iter().any(|(name, _)| *name == topic) {
            let ours: Vec<&str> = there
                .iter()
                .map(|(name, _)| name.as_str())
                .filter(|name| name.starts_with("millstream."))
                .collect();
            let seen = if ours.is_empty() {
                "no results are there yet".to_owned()
            } else {
                format!("there are {}", ours.join(", "))
            };
            return Err(Error::config(format!("there is no topic {topic}")).detail(seen).hint(
                "name a customer and one of its queries; results come while `millstream run` runs",
            ));
        }
        let partitions = cluster.partitions(&topic)?.into_iter().map(|partition| {
            let partition = TopicPartition { topic: topic.as_str().into(), partition };
            let (low, high) = cluster.watermarks(&partition)?;
            Ok((partition, if from_beginning { low } else { high }))
        });
        partitions.collect()
    };
    tokio::task::spawn_blocking(look_up)
        .await
        .map_err(|e| Error::internal("a thread panicked").because(e))?
}

/// Prints what comes; ends after `max` results.
async fn follow<W: Write>(
    reader: &mut Reader,
    printer: &mut Printer<W>,
    max: Option<u64>,
) -> Result<()> {
    let mut left = max.unwrap_or(u64::MAX);
    while left > 0 {
        match reader.next().await? {
            Event::Chunk(chunk) => left -= printer.chunk(&chunk, left)?,
            Event::End { .. } => printer.flush()?,
        }
    }
    printer.flush()
}

/// Prints results; a table's columns get wider as values come, and a change of columns a new head.
struct Printer<W> {
    format: Format,
    out: W,
    columns: Vec<(String, usize)>,
}

/// The first column of a table, empty except for deletes.
const CHANGE: &str = "";

impl<W: Write> Printer<W> {
    fn new(format: Format, out: W) -> Self {
        Self { format, out, columns: Vec::new() }
    }

    /// Prints at most `max` records of a chunk; how many.
    fn chunk(&mut self, chunk: &Chunk, max: u64) -> Result<u64> {
        let mut printed = 0;
        for record in chunk.records.iter().take(usize::try_from(max).unwrap_or(usize::MAX)) {
            match dead_letter(chunk, record) {
                Some(letter) => self.dead_letter(&letter)?,
                None => self.record(chunk.key(record), chunk.value(record))?,
            }
            printed += 1;
        }
        Ok(printed)
    }

    fn record(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<()> {
        match self.format {
            Format::Json => self.json(key, value),
            Format::Table => self.row(key, value),
        }
    }

    fn dead_letter(&mut self, letter: &Map<String, Value>) -> Result<()> {
        match self.format {
            Format::Json => {
                let text = serde_json::to_string(letter).map_err(|cause| {
                    Error::internal("a dead letter cannot be written as JSON").because(cause)
                })?;
                self.line(&text)
            }
            Format::Table => self.object("", letter),
        }
    }

    fn json(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<()> {
        match value {
            Some(value) => self.line(&String::from_utf8_lossy(value)),
            None => {
                let key = key.map_or(Value::Null, |key| {
                    serde_json::from_slice(key)
                        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(key).into_owned()))
                });
                self.line(&serde_json::json!({ "deleted": key }).to_string())
            }
        }
    }

    /// A delete shows the columns of the key; a value that is not an object is shown as one column.
    fn row(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<()> {
        let object = |bytes: &[u8]| match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => object,
            _ => Map::from_iter([(
                "value".to_owned(),
                Value::from(String::from_utf8_lossy(bytes).into_owned()),
            )]),
        };
        let change = if value.is_some() { "" } else { "deleted" };
        self.object(change, &value.or(key).map(object).unwrap_or_default())
    }

    fn object(&mut self, change: &str, object: &Map<String, Value>) -> Result<()> {
        let names: Vec<&str> = self.columns.iter().skip(1).map(|(name, _)| name.as_str()).collect();
        let known = !names.is_empty() && object.keys().all(|name| names.contains(&name.as_str()));
        if !known {
            self.head(object)?;
        }
        let mut cells = vec![change.to_owned()];
        for (name, _) in self.columns.iter().skip(1) {
            cells.push(object.get(name).map(cell).unwrap_or_default());
        }
        for ((_, width), cell) in self.columns.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
        self.cells(&cells)
    }

    fn head(&mut self, object: &Map<String, Value>) -> Result<()> {
        self.columns = vec![(CHANGE.to_owned(), "deleted".len())];
        self.columns.extend(object.iter().map(|(name, value)| {
            (name.clone(), name.chars().count().max(cell(value).chars().count()))
        }));
        let names: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let rules: Vec<String> = self.columns.iter().map(|(_, width)| "-".repeat(*width)).collect();
        self.cells(&names)?;
        self.cells(&rules)
    }

    fn cells(&mut self, cells: &[String]) -> Result<()> {
        let padded =
            self.columns.iter().zip(cells).map(|((_, width), cell)| format!("{cell:width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        self.line(line.trim_end())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        match writeln!(self.out, "{line}") {
            // The reader of the output has closed the pipe, as in `subscribe ... | head`.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            done => Ok(done?),
        }
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }
}

/// What a dead letter's headers say of it, where it comes from, its key and its value; `None` for
/// any other record.
fn dead_letter(chunk: &Chunk, record: &Record) -> Option<Map<String, Value>> {
    let text = |name: &str| chunk.header(record, name).map_or(Value::Null, Value::from);
    let number = |name: &str| {
        let number = chunk.header(record, name).and_then(|text| text.parse::<i64>().ok());
        number.map_or(Value::Null, Value::from)
    };
    let bytes =
        |bytes: Option<&[u8]>| bytes.map_or(Value::Null, |b| Value::from(output::text_or_hex(b)));
    let stage = chunk.header(record, headers::STAGE)?;
    let said = [
        ("stage", Value::from(stage)),
        ("reason", text(headers::REASON)),
        ("column", text(headers::COLUMN)),
        ("query", text(headers::QUERY)),
        ("topic", text(headers::TOPIC)),
        ("partition", number(headers::PARTITION)),
        ("offset", number(headers::OFFSET)),
        ("position", number(headers::POSITION)),
        ("key", bytes(chunk.key(record))),
        ("value", bytes(chunk.value(record))),
    ];
    Some(said.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    output::cell(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::{DeadLetter, FailureStage, SourceMessage};

    fn print(format: Format, records: &[(Option<&str>, Option<&str>)]) -> String {
        let mut printer = Printer::new(format, Vec::new());
        for (key, value) in records {
            printer.record(key.map(str::as_bytes), value.map(str::as_bytes)).unwrap();
        }
        String::from_utf8(printer.out).unwrap()
    }

    const RECORDS: [(Option<&str>, Option<&str>); 3] = [
        (Some(r#"{"room":"hall"}"#), Some(r#"{"room":"hall","persons":2}"#)),
        (Some(r#"{"room":"kitchen"}"#), Some(r#"{"room":"kitchen","persons":null}"#)),
        (Some(r#"{"room":"hall"}"#), None),
    ];

    #[tokio::test]
    async fn a_topic_is_followed_from_its_beginning_or_its_end() {
        let broker = rdkafka::mocking::MockCluster::new(1).unwrap();
        broker.create_topic("millstream.a.q", 2, 1).unwrap();
        let kafka = KafkaConfig::new(broker.bootstrap_servers());
        let readings = |from: i64| {
            (from..from + 3).map(|n| crate::sensors::Reading {
                after_us: 0,
                topic: "millstream.a.q".into(),
                key: Some(format!("{n}").into()),
                payload: (n != 2).then(|| format!("{{\"n\":{n}}}").into()),
                part_id: n,
                room: "".into(),
                shown: 0,
                fault: None,
            })
        };
        let send = |from: i64| {
            let (_keep, stop) = watch::channel(false);
            let pace = crate::sensors::Pace::Unpaced;
            crate::sensors::Driver::start(kafka.client(), readings(from), pace, stop)
                .unwrap()
                .join()
                .unwrap();
        };
        let topic = || "millstream.a.q".to_owned();
        send(0);
        let at_end = starts(kafka.clone(), topic(), false).await.unwrap();
        send(3);
        let at_beginning = starts(kafka.clone(), topic(), true).await.unwrap();
        for (starts, max, expected) in
            [(at_beginning, 6, [0, 1, 2, 3, 4, 5].as_slice()), (at_end, 3, &[3, 4, 5])]
        {
            let mut reader = Reader::start(&kafka, "test", Isolation::Committed).unwrap();
            reader.assign(&starts).unwrap();
            let mut printer = Printer::new(Format::Json, Vec::new());
            follow(&mut reader, &mut printer, Some(max)).await.unwrap();
            let text = String::from_utf8(printer.out).unwrap();
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_by_key(|line| line.chars().find(char::is_ascii_digit));
            let line = |n: &i64| {
                if *n == 2 { r#"{"deleted":2}"#.to_owned() } else { format!("{{\"n\":{n}}}") }
            };
            assert_eq!(lines, expected.iter().map(line).collect::<Vec<_>>());
        }
        let error =
            starts(kafka, "millstream.a.nothing".to_owned(), true).await.unwrap_err().to_string();
        assert!(
            error.contains("there is no topic millstream.a.nothing")
                && error.contains("there are millstream.a.q"),
            "{error}"
        );
    }

    /// A dead letter as the engine makes it of a record, in the chunk that a reader gives.
    fn letter(value: &[u8]) -> Chunk {
        let source = Chunk {
            topic: "1084".into(),
            partition: 2,
            first_offset: 7,
            next_offset: 8,
            bytes: [b"a key".as_slice(), value].concat().into(),
            records: vec![Record {
                offset: 7,
                timestamp_ms: -1,
                key: Some(0..5),
                value: Some(5..5 + u32::try_from(value.len()).unwrap()),
                headers: 0..0,
            }],
            append_time: false,
        };
        let letter = DeadLetter {
            stage: FailureStage::Decode,
            query: None,
            column: Some("part_id".to_owned()),
            reason: "cannot parse \"abc\" as BIGINT (column part_id, byte 11)".to_owned(),
        };
        let origin = SourceMessage { chunk: &source, record: &source.records[0], position: 1 };
        let out = letter.from_source(&"millstream.a.dead_letters".into(), origin, None);
        // Kafka's own layout; zigzag numbers below 64 are one byte.
        let mut bytes = [b"a key".as_slice(), value].concat();
        let start = u32::try_from(bytes.len()).unwrap();
        bytes.push(u8::try_from(out.headers.len() * 2).unwrap());
        for (name, value) in &out.headers {
            for part in [name.as_bytes(), value.as_ref().unwrap()] {
                bytes.push(u8::try_from(part.len() * 2).unwrap());
                bytes.extend_from_slice(part);
            }
        }
        let headers = start..u32::try_from(bytes.len()).unwrap();
        let records = vec![Record { headers, ..source.records[0].clone() }];
        Chunk { topic: out.topic, bytes: bytes.into(), records, ..source }
    }

    #[test]
    fn a_dead_letter_says_why_and_where_and_shows_its_text() {
        let print = |format, value: &[u8]| {
            let mut printer = Printer::new(format, Vec::new());
            assert_eq!(printer.chunk(&letter(value), 5).unwrap(), 1);
            String::from_utf8(printer.out).unwrap()
        };
        assert_eq!(
            print(Format::Json, br#"{"part_id":"abc"}"#),
            concat!(
                r#"{"stage":"decode","reason":"cannot parse \"abc\" as BIGINT (column part_id, byte 11)","#,
                r#""column":"part_id","query":null,"topic":"1084","partition":2,"offset":7,"#,
                r#""position":1,"key":"a key","value":"{\"part_id\":\"abc\"}"}"#,
                "\n"
            )
        );
        assert!(print(Format::Json, b"\xff\x01").contains(r#""value":"ff01""#));
        let table = print(Format::Table, br#"{"part_id":"abc"}"#);
        let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(head[..3], ["stage", "reason", "column"]);
        assert!(
            table.contains("decode  cannot parse \"abc\" as BIGINT (column part_id, byte 11)"),
            "{table}"
        );
    }

    #[test]
    fn json_is_as_in_the_topic_and_deletes_show_their_key() {
        let expected = "{\"room\":\"hall\",\"persons\":2}\n{\"room\":\"kitchen\",\"persons\":null}\n{\"deleted\":{\"room\":\"hall\"}}\n";
        assert_eq!(print(Format::Json, &RECORDS), expected);
    }

    #[test]
    fn a_table_has_a_head_aligned_rows_and_deletes() {
        let expected = [
            "         room  persons",
            "-------  ----  -------",
            "         hall  2",
            "         kitchen",
            "deleted  hall",
        ];
        let printed = print(Format::Table, &RECORDS);
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
        let odd = print(
            Format::Table,
            &[(None, Some("{\"a\":\"x\u{1b}[2J\"}")), (None, Some("not json")), (None, None)],
        );
        assert!(
            odd.contains("x [2J") && odd.contains("not json") && odd.contains("value"),
            "{odd}"
        );
    }
}
