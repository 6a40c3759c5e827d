//! `millstream audit`: the account, from Kafka and the tables.
//!
//! Per partition and up to the pipeline's commit point (history follows it within ten seconds, so a
//! running pipeline's newest rows may be missing; a stopped one's are all there):
//! offsets = records + gaps; records = decoded + rejected + tombstones; and every decoded row and
//! every rejected one is in history or among the dead letters exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use futures::StreamExt;

use super::{Kafka, Project};
use crate::catalog::Customer;
use crate::log::{Position, Progress, read_log};
use crate::pipeline::blocking;
use crate::sink::{self, headers};
use crate::source::chunk::Chunk;
use crate::source::{Cluster, KafkaConfig, TopicPartition};
use crate::{Result, history, pipeline};

/// Prove from Kafka and the tables that nothing is lost and nothing is twice.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    project: Project,
    #[command(flatten)]
    kafka: Kafka,
}

/// The account of one partition.
#[derive(Debug, Default)]
struct Account {
    stream: String,
    partition: String,
    from: i64,
    until: i64,
    records: u64,
    gaps: i64,
    decoded: u64,
    rejected: u64,
    tombstones: u64,
    /// Offsets that were passed over, as the log says.
    skipped: u64,
    faults: Vec<String>,
    /// Why there is nothing to be held to.
    note: Option<String>,
}

/// What is known of each offset of a partition.
struct Ledger {
    from: i64,
    until: i64,
    /// Per offset: bit 0 a record, bit 1 a tombstone, bit 2 in history, bit 3 a dead letter.
    seen: Vec<u8>,
    decoded: u64,
    rejected: HashMap<(i64, i64), u32>,
}

const RECORD: u8 = 1;
const TOMBSTONE: u8 = 2;
const IN_HISTORY: u8 = 4;
const DEAD: u8 = 8;

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
        for account in audit(customer, &kafka, &context).await? {
            holds &= account.faults.is_empty();
            let verdict = match (&account.note, account.faults.is_empty()) {
                (Some(note), _) => note.clone(),
                (None, true) if account.skipped > 0 => {
                    format!(
                        "holds; {} offsets were gone and passed over (--on-gap skip)",
                        account.skipped
                    )
                }
                (None, true) => "holds".to_owned(),
                (None, false) => account.faults.join("; "),
            };
            println!(
                "{:<12} {:<10} {:<18} {:>10} {:>10} {:>7} {:>10} {:>9} {:>10}  {verdict}",
                customer.name,
                account.stream,
                account.partition,
                account.until - account.from,
                account.records,
                account.gaps,
                account.decoded,
                account.rejected,
                account.tombstones,
            );
        }
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn audit(
    customer: &Arc<Customer>,
    kafka: &KafkaConfig,
    context: &datafusion::prelude::SessionContext,
) -> Result<Vec<Account>> {
    let (positions, made_anew) = recorded(kafka, customer).await?;
    let dead = dead_letters(kafka, customer).await?;
    let mut accounts = Vec::new();
    for (partition, at) in positions {
        let mut reading = customer.streams.iter().filter(|s| s.topics.matches(&partition.topic));
        let Some(stream) = reading.next() else { continue };
        if !stream.history {
            continue;
        }
        let mut uncounted = |why: String, is_fault: bool| {
            let account = Account {
                stream: stream.name.clone(),
                partition: partition.to_string(),
                from: at.joined,
                until: at.offset,
                ..Account::default()
            };
            accounts.push(match is_fault {
                true => Account { faults: vec![why], ..account },
                false => Account { note: Some(why), ..account },
            });
        };
        if made_anew.contains(partition.topic.as_ref()) {
            uncounted("not counted: the topic was made anew, history has both".to_owned(), false);
            continue;
        }
        let Some((low, high)) = bounds(kafka, &partition).await? else {
            uncounted("not counted: it is gone from Kafka".to_owned(), true);
            continue;
        };
        if high < at.offset {
            uncounted(format!("not counted: Kafka ends at {high}; was it made anew?"), true);
            continue;
        }
        // What is below the broker's retention cannot be counted any more.
        let until = at.offset;
        let mut ledger = Ledger::new(low.max(at.joined), until.max(low));
        ledger.read_kafka(kafka, &partition).await?;
        ledger.read_history(context, customer, &stream.name, &partition).await?;
        ledger.read_dead(&dead, &partition);
        let recorded = (low <= at.joined).then_some(at);
        let account = ledger.account(stream.name.clone(), &partition, recorded);
        accounts.push(Account { skipped: at.skipped, ..account });
    }
    Ok(accounts)
}

/// The newest position of every partition that the log names, and the topics that it knows by
/// more than one id.
async fn recorded(
    kafka: &KafkaConfig,
    customer: &Customer,
) -> Result<(BTreeMap<TopicPartition, Position>, BTreeSet<String>)> {
    let mut positions = BTreeMap::new();
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for record in &read_log(kafka, &customer.name).await? {
        let record = Progress::decode(record)?;
        for (topic, id) in record.topic_ids() {
            ids.entry(topic).or_default().insert(id);
        }
        let Progress { joined, positions: moved, .. } = record;
        let begun = |offset| Position { offset, joined: offset, ..Position::default() };
        positions.extend(joined.into_iter().map(|join| (join.partition, begun(join.offset))));
        positions.extend(moved);
    }
    ids.retain(|_, ids| ids.len() > 1);
    Ok((positions, ids.into_keys().collect()))
}

type DeadLetters = HashMap<TopicPartition, Vec<(i64, i64)>>;

/// Dead letters of source rows by partition: offset and position of each.
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

/// The first offset of a partition and its end; `None`: there is no such partition.
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

fn rows_of(customer: &Customer, stream: &str, partition: &TopicPartition, what: &str) -> String {
    format!(
        "SELECT {what} FROM {}.{stream} WHERE _topic = '{}' AND _partition = {}",
        customer.name, partition.topic, partition.partition
    )
}

impl Ledger {
    fn new(from: i64, until: i64) -> Self {
        let length = usize::try_from((until - from).max(0)).unwrap_or(0);
        Self { from, until, seen: vec![0; length], decoded: 0, rejected: HashMap::new() }
    }

    fn mark(&mut self, offset: i64, bit: u8) -> bool {
        let index = usize::try_from(offset - self.from).ok().filter(|_| offset >= self.from);
        match index.and_then(|i| self.seen.get_mut(i)) {
            Some(seen) => {
                *seen |= bit;
                true
            }
            None => false,
        }
    }

    async fn read_kafka(&mut self, kafka: &KafkaConfig, partition: &TopicPartition) -> Result<()> {
        let (from, until) = (self.from, self.until);
        let mut mark = |chunk: &Chunk| {
            for record in &chunk.records {
                let bits = if record.value.is_none() { RECORD | TOMBSTONE } else { RECORD };
                self.mark(record.offset, bits);
            }
            Ok(())
        };
        pipeline::read_range(kafka, partition, from, until, &mut mark).await
    }

    async fn read_history(
        &mut self,
        context: &datafusion::prelude::SessionContext,
        customer: &Customer,
        stream: &str,
        partition: &TopicPartition,
    ) -> Result<()> {
        let sql = rows_of(customer, stream, partition, "_offset, _position, count(*) AS times")
            + &format!(
                " AND _offset >= {} AND _offset < {} GROUP BY _offset, _position",
                self.from, self.until
            );
        let mut rows = context.sql(&sql).await?.execute_stream().await?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            let offsets = batch.column(0).as_primitive::<Int64Type>();
            let positions = batch.column(1).as_primitive::<Int32Type>();
            let times = batch.column(2).as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                self.mark(offsets.value(row), IN_HISTORY);
                self.decoded += u64::try_from(times.value(row)).unwrap_or(0);
                if times.value(row) > 1 {
                    let place = (offsets.value(row), i64::from(positions.value(row)));
                    self.rejected.entry(place).and_modify(|n| *n += 2).or_insert(2);
                }
            }
        }
        Ok(())
    }

    fn read_dead(&mut self, dead: &DeadLetters, partition: &TopicPartition) {
        for &(offset, position) in dead.get(partition).into_iter().flatten() {
            if self.mark(offset, DEAD) {
                *self.rejected.entry((offset, position)).or_default() += 1;
            }
        }
    }

    fn account(
        self,
        stream: String,
        partition: &TopicPartition,
        recorded: Option<Position>,
    ) -> Account {
        let count =
            |bits: u8, wanted: u8| self.seen.iter().filter(|s| **s & bits == wanted).count() as u64;
        let records = count(RECORD, RECORD);
        let tombstones = count(TOMBSTONE, TOMBSTONE);
        let mut account = Account {
            stream,
            partition: partition.to_string(),
            from: self.from,
            until: self.until,
            records,
            gaps: self.until - self.from - i64::try_from(records).unwrap_or(i64::MAX),
            decoded: self.decoded,
            rejected: self.rejected.len() as u64,
            tombstones,
            ..Account::default()
        };
        let lost = count(RECORD | TOMBSTONE | IN_HISTORY | DEAD, RECORD);
        let strange = count(RECORD | IN_HISTORY, IN_HISTORY) + count(RECORD | DEAD, DEAD);
        let twice = self.rejected.values().filter(|&&n| n > 1).count();
        let mut fault = |count: u64, what: &str| {
            if count > 0 {
                account.faults.push(format!("{count} {what}"));
            }
        };
        fault(lost, "lost");
        fault(strange, "without a record in Kafka");
        fault(twice as u64, "twice");
        if let Some(at) = recorded {
            let say = |what: &str, here: u64, log: u64| {
                (here != log).then(|| format!("{what}: {here} here, {log} in the log"))
            };
            account.faults.extend(say("decoded", account.decoded, at.decoded));
            account.faults.extend(say("rejected", account.rejected, at.rejected));
            account.faults.extend(say("tombstones", account.tombstones, at.tombstones));
        }
        account
    }
}
