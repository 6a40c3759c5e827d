//! `millstream dead-letters`: sends dead letters again that the present schema accepts.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::{Customer, Stream};
use crate::cli::kafka_args::KafkaArgs;
use crate::cli::project_args::ProjectArgs;
use crate::commit::resend;
use crate::pipeline;
use crate::sink::{self, headers};
use crate::source::chunk::{Chunk, Record};
use crate::types::OutRecord;
use crate::{Error, Result};

/// Process dead letters again.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Send messages that the decoder rejected, and that the present schema accepts, again
    Retry(RetryArgs),
}

#[derive(Debug, clap::Args)]
struct RetryArgs {
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    /// Only print what would be sent again
    #[arg(long)]
    dry_run: bool,
}

/// The stage of the records that mark a dead letter as sent again.
const RETRIED: &str = "retried";

/// One dead letter that was rejected at decode.
struct Letter {
    id: (i32, i64),
    topic: String,
    key: Option<Bytes>,
    value: Bytes,
    headers: Vec<(String, Option<Bytes>)>,
    /// The message was too large for the dead-letter topic and was truncated.
    cut: bool,
}

/// Runs the sub-command.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Command::Retry(args) = args.command;
    let Some(catalog) = args.project.load() else { return Ok(ExitCode::FAILURE) };
    let kafka = args.kafka.config()?;
    for customer in &catalog.customers {
        let letters = waiting(&kafka, customer).await?;
        let (mut again, mut still, mut cut) = (Vec::new(), 0, 0);
        for letter in letters {
            if letter.cut {
                cut += 1;
                continue;
            }
            let Some(stream) = stream_of(customer, &letter.topic) else { continue };
            if accepts(stream, customer, &letter)? { again.push(letter) } else { still += 1 }
        }
        let mut by_topic: BTreeMap<&str, usize> = BTreeMap::new();
        for letter in &again {
            *by_topic.entry(&letter.topic).or_default() += 1;
        }
        let verb = if args.dry_run { "would be fed" } else { "fed" };
        println!(
            "{}: {} dead letters {verb} again, {still} still do not fit the schema",
            customer.name,
            again.len()
        );
        for (topic, count) in by_topic {
            println!("  {topic}: {count}");
        }
        if cut > 0 {
            println!("  {cut} were larger than the topic takes: cut, and never fed again");
        }
        if !again.is_empty() && !args.dry_run {
            let dead = sink::dead_letter_topic(&customer.name);
            let records = again.into_iter().flat_map(|letter| records(letter, &dead)).collect();
            resend(&kafka, &customer.name, records).await?;
            println!(
                "  rows that are too late for their windows reach history and the late rows only"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Dead letters that the decoder rejected and that were not sent again yet.
async fn waiting(kafka: &crate::source::KafkaConfig, customer: &Customer) -> Result<Vec<Letter>> {
    let topic = sink::dead_letter_topic(&customer.name);
    let (mut letters, mut retried) = (Vec::new(), HashSet::new());
    pipeline::read_topic(kafka, &topic, |chunk| {
        for record in &chunk.records {
            match chunk.header(record, headers::STAGE).as_deref() {
                Some("decode") => letters.extend(letter(chunk, record)),
                Some(RETRIED) => {
                    let number =
                        |name: &str| chunk.header(record, name).and_then(|v| v.parse::<i64>().ok());
                    if let (Some(partition), Some(offset)) =
                        (number(headers::PARTITION), number(headers::OFFSET))
                    {
                        retried.insert((i32::try_from(partition).unwrap_or(-1), offset));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    })
    .await?;
    letters.retain(|l: &Letter| !retried.contains(&l.id));
    Ok(letters)
}

fn letter(chunk: &Chunk, record: &Record) -> Option<Letter> {
    let own = chunk.headers(record).filter(|(name, _)| !headers::is_reserved(name));
    let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    Some(Letter {
        id: (chunk.partition, record.offset),
        topic: chunk.header(record, headers::TOPIC)?,
        cut: chunk.header(record, headers::TRUNCATED).is_some(),
        key: chunk.key(record).map(copy),
        value: chunk.value(record).map(copy)?,
        headers: own
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.map(copy)))
            .collect(),
    })
}

fn stream_of<'a>(customer: &'a Customer, topic: &str) -> Option<&'a Stream> {
    customer.streams.iter().map(AsRef::as_ref).find(|stream| stream.topics.matches(topic))
}

/// Whether the schema accepts every message of the letter now.
fn accepts(stream: &Stream, customer: &Customer, letter: &Letter) -> Result<bool> {
    let mut decoder = pipeline::decoder(stream, customer.zone)?;
    let length =
        u32::try_from(letter.value.len()).map_err(|_| Error::internal("a record of over 4 GiB"))?;
    let chunk = Chunk {
        topic: letter.topic.as_str().into(),
        partition: 0,
        first_offset: 0,
        next_offset: 1,
        bytes: letter.value.clone(),
        records: vec![Record {
            offset: 0,
            timestamp_ms: -1,
            key: None,
            value: Some(0..length),
            headers: 0..0,
        }],
        append_time: false,
    };
    let decoded = decoder.decode(&chunk)?;
    Ok(decoded.rejected.is_empty() && decoded.batch.num_rows() > 0)
}

/// The record for the source topic, and the record that marks the dead letter as sent again.
fn records(letter: Letter, dead: &Arc<str>) -> [OutRecord; 2] {
    let text = |value: String| Some(Bytes::from(value));
    let mark = OutRecord {
        topic: dead.clone(),
        partition: None,
        key: None,
        value: None,
        headers: vec![
            (headers::STAGE.to_owned(), text(RETRIED.to_owned())),
            (headers::TOPIC.to_owned(), text(dead.to_string())),
            (headers::PARTITION.to_owned(), text(letter.id.0.to_string())),
            (headers::OFFSET.to_owned(), text(letter.id.1.to_string())),
        ],
        timestamp_ms: None,
    };
    let again = OutRecord {
        topic: letter.topic.as_str().into(),
        partition: None,
        key: letter.key,
        value: Some(letter.value),
        headers: letter.headers,
        timestamp_ms: None,
    };
    [again, mark]
}
