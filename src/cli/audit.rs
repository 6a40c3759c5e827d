//! `millstream audit`: the account, from Kafka and the tables.
//!
//! Per partition and up to the pipeline's commit point (history follows it within ten seconds, so a
//! running pipeline's newest rows may be missing; a stopped one's are all there):
//! offsets = records + gaps; records = decoded + rejected + tombstones; and every decoded row and
//! every rejected one is in history or among the dead letters exactly once.

mod ledger;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use ledger::{Account, Ledger, Place};

use crate::catalog::Customer;
use crate::cli::kafka_args::KafkaArgs;
use crate::cli::project_args::ProjectArgs;
use crate::commit::{Progress, read_log};
use crate::sink::{self, headers};
use crate::source::chunk::Chunk;
use crate::source::{Cluster, KafkaConfig, blocking};
use crate::types::{SourcePosition, TopicPartition};
use crate::{Result, history, pipeline};

/// Verify with Kafka and the tables that no row is lost or duplicated.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
}

/// A partition, and what became of it.
struct Audited {
    stream: String,
    partition: TopicPartition,
    at: SourcePosition,
    outcome: Outcome,
}

enum Outcome {
    /// What Kafka has of it was counted; `whole`: since it joined.
    Counted { ledger: Ledger, whole: bool },
    /// There is nothing to be held to, and why.
    NotCounted { why: String, is_fault: bool },
}

/// Audits all customers, or those named.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Some(catalog) = args.project.load() else { return Ok(ExitCode::FAILURE) };
    let kafka = args.kafka.config()?;
    let root = pipeline::history_root(&args.project.data_dir);
    let context = history::context(&root, &catalog).await?;
    let mut holds = true;
    println!(
        "{:<12} {:<10} {:<18} {:>10} {:>10} {:>7} {:>10} {:>9} {:>10}  account",
        "customer",
        "stream",
        "partition",
        "offsets",
        "records",
        "gaps",
        "decoded",
        "rejected",
        "tombstones"
    );
    for customer in &catalog.customers {
        for audited in audit(customer, &kafka, &context).await? {
            holds &= audited.tell(&customer.name);
        }
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Audited {
    /// Prints the accounting of a partition and returns whether it holds.
    fn tell(self, customer: &str) -> bool {
        let Self { stream, partition, at, outcome } = self;
        let (account, offsets, verdict) = match outcome {
            Outcome::NotCounted { why, is_fault } => {
                let faults = if is_fault { vec![why.clone()] } else { Vec::new() };
                (Account { faults, ..Account::default() }, at.offset - at.joined, why)
            }
            Outcome::Counted { ledger, whole } => {
                let offsets = ledger.until - ledger.from;
                let account = ledger.account(whole.then_some(at));
                let verdict = match account.faults.as_slice() {
                    [] if at.skipped > 0 => format!(
                        "holds; {} missing offsets were skipped (--on-gap skip)",
                        at.skipped
                    ),
                    [] => "holds".to_owned(),
                    faults => faults.join("; "),
                };
                (account, offsets, verdict)
            }
        };
        let Account { records, gaps, decoded, rejected, tombstones, faults } = account;
        println!(
            "{customer:<12} {stream:<10} {:<18} {offsets:>10} {records:>10} {gaps:>7} {decoded:>10} \
             {rejected:>9} {tombstones:>10}  {verdict}",
            partition.to_string()
        );
        faults.is_empty()
    }
}

async fn audit(
    customer: &Arc<Customer>,
    kafka: &KafkaConfig,
    context: &SessionContext,
) -> Result<Vec<Audited>> {
    let (positions, made_anew) = recorded(kafka, customer).await?;
    let dead = dead_letters(kafka, customer).await?;
    let mut audited = Vec::new();
    for (partition, at) in positions {
        let mut reading = customer.streams.iter().filter(|s| s.topics.matches(&partition.topic));
        let Some(stream) = reading.next().filter(|stream| stream.history) else { continue };
        let mut outcome = match made_anew.contains(partition.topic.as_ref()) {
            true => Outcome::NotCounted {
                why: "not counted: the topic was deleted and recreated, and history contains both"
                    .to_owned(),
                is_fault: false,
            },
            false => count(kafka, &partition, at).await?,
        };
        if let Outcome::Counted { ledger, .. } = &mut outcome {
            dead.get(&partition).into_iter().flatten().for_each(|&place| ledger.dead(place));
        }
        audited.push(Audited { stream: stream.name.clone(), partition, at, outcome });
    }
    for stream in customer.streams.iter().filter(|stream| stream.history) {
        read_history(context, &customer.name, &stream.name, &mut audited).await?;
    }
    Ok(audited)
}

/// What Kafka has of a partition up to its recorded position.
async fn count(
    kafka: &KafkaConfig,
    partition: &TopicPartition,
    at: SourcePosition,
) -> Result<Outcome> {
    let not = |why| Ok(Outcome::NotCounted { why, is_fault: true });
    let Some((low, high)) = bounds(kafka, partition).await? else {
        return not("not counted: it is gone from Kafka".to_owned());
    };
    if high < at.offset {
        return not(format!("not counted: Kafka ends at {high}; was the topic recreated?"));
    }
    // What is below the broker's retention cannot be counted any more.
    let mut ledger = Ledger::new(low.max(at.joined), at.offset.max(low));
    let (from, until) = (ledger.from, ledger.until);
    let mut each = |chunk: &Chunk| {
        for record in &chunk.records {
            ledger.record(record.offset, record.value.is_none());
        }
        Ok(())
    };
    pipeline::read_range(kafka, partition, from, until, &mut each).await?;
    Ok(Outcome::Counted { ledger, whole: low <= at.joined })
}

/// Every row that a stream's history has of the partitions that are counted.
async fn read_history(
    context: &SessionContext,
    customer: &str,
    stream: &str,
    audited: &mut [Audited],
) -> Result<()> {
    let mut ledgers: HashMap<&str, HashMap<i32, &mut Ledger>> = HashMap::new();
    for audited in audited.iter_mut().filter(|audited| audited.stream == stream) {
        if let Outcome::Counted { ledger, .. } = &mut audited.outcome {
            let TopicPartition { topic, partition } = &audited.partition;
            ledgers.entry(topic).or_default().insert(*partition, ledger);
        }
    }
    let Some(from) = ledgers.values().flat_map(HashMap::values).map(|l| l.from).min() else {
        return Ok(());
    };
    let sql = format!(
        "SELECT _topic, _partition, _offset, CAST(_position AS BIGINT) FROM {customer}.{stream} \
         WHERE _offset >= {from}"
    );
    let mut rows = context.sql(&sql).await?.execute_stream().await?;
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        let topics = batch.column(0).as_string::<i32>();
        let partitions = batch.column(1).as_primitive::<Int32Type>().values();
        let offsets = batch.column(2).as_primitive::<Int64Type>().values();
        let positions = batch.column(3).as_primitive::<Int64Type>().values();
        for row in 0..batch.num_rows() {
            let topic = ledgers.get_mut(topics.value(row));
            if let Some(ledger) = topic.and_then(|topic| topic.get_mut(&partitions[row])) {
                ledger.in_history((offsets[row], positions[row]));
            }
        }
    }
    Ok(())
}

/// The newest position of every partition that the log names, and the topics that it knows by
/// more than one id.
async fn recorded(
    kafka: &KafkaConfig,
    customer: &Customer,
) -> Result<(BTreeMap<TopicPartition, SourcePosition>, BTreeSet<String>)> {
    let mut positions = BTreeMap::new();
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for record in &read_log(kafka, &customer.name).await? {
        let record = Progress::decode(record)?;
        for (topic, id) in record.topic_ids() {
            ids.entry(topic).or_default().insert(id);
        }
        let Progress { joined, positions: moved, .. } = record;
        let begun = |offset| SourcePosition { offset, joined: offset, ..SourcePosition::default() };
        positions.extend(joined.into_iter().map(|join| (join.partition, begun(join.offset))));
        positions.extend(moved);
    }
    ids.retain(|_, ids| ids.len() > 1);
    Ok((positions, ids.into_keys().collect()))
}

type DeadLetters = HashMap<TopicPartition, Vec<Place>>;

/// Dead letters of source rows by partition.
async fn dead_letters(kafka: &KafkaConfig, customer: &Customer) -> Result<DeadLetters> {
    let topic = sink::dead_letter_topic(&customer.name);
    let mut dead = DeadLetters::new();
    pipeline::read_topic(kafka, &topic, |chunk| {
        for record in &chunk.records {
            let stage = chunk.header(record, headers::STAGE);
            if !matches!(stage.as_deref(), Some("decode" | "column" | "event_time")) {
                continue;
            }
            let number =
                |name: &str| chunk.header(record, name).and_then(|v| v.parse::<i64>().ok());
            let place = (
                chunk.header(record, headers::TOPIC),
                number(headers::PARTITION),
                number(headers::OFFSET),
            );
            let (Some(topic), Some(partition), Some(offset)) = place else { continue };
            let partition = TopicPartition {
                topic: topic.as_str().into(),
                partition: i32::try_from(partition).unwrap_or(-1),
            };
            let position = number(headers::POSITION).unwrap_or(0);
            dead.entry(partition).or_default().push((offset, position));
        }
        Ok(())
    })
    .await?;
    Ok(dead)
}

/// Returns the first offset of a partition and its end; `None` if there is no such partition.
async fn bounds(kafka: &KafkaConfig, partition: &TopicPartition) -> Result<Option<(i64, i64)>> {
    let (kafka, partition) = (kafka.clone(), partition.clone());
    blocking(move || {
        let cluster = Cluster::connect(&kafka)?;
        if !cluster.partitions(&partition.topic)?.contains(&partition.partition) {
            return Ok(None);
        }
        cluster.watermarks(&partition).map(Some)
    })
    .await
}
