//! What the brokers know of one transactional id, and ending what they left open.
//!
//! librdkafka has no call for any of this. The requests are those of KIP-664, and those of a
//! producer that begins, adds partitions and ends, without a record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, DescribeProducersRequest, DescribeTransactionsRequest,
    EndTxnRequest, FindCoordinatorRequest, InitProducerIdRequest, MetadataResponse,
    TransactionalId,
};
use kafka_protocol::protocol::StrBytes;

use crate::source::KafkaConfig;
use crate::source::native::buffer_pool::Pool;
use crate::source::native::connection_settings::Settings;
use crate::source::native::diagnostics::{Attempt, Trouble};
use crate::source::native::leaders::{addresses, metadata};
use crate::source::native::tls;
use crate::source::native::wire::{Call, Connection, Dial, topic_name};
use crate::types::TopicPartition;
use crate::{Error, Kind};

/// The kind of coordinator that transactions have.
const OF_TRANSACTIONS: i8 = 1;
/// How long the transaction that ends others may take.
const TIMEOUT_MS: i32 = 60_000;

/// A question that has no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// It may have one soon.
    Yet(String),
    /// It has none, ever.
    Ever(Error),
}

/// What became of the last transaction of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was not ended. These are its partitions.
    Ongoing(BTreeSet<TopicPartition>),
    /// It was committed, or will be.
    Committed,
    /// It was aborted, or will be.
    Aborted,
    /// A producer has begun since, or the broker's word for it is unknown.
    Unknown,
}

/// The last transaction of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastTransaction {
    pub(crate) producer: i64,
    pub(crate) outcome: Outcome,
}

/// Asks the brokers about one transactional id.
pub(crate) struct Transactions {
    settings: Settings,
    tls: Option<Arc<rustls::ClientConfig>>,
    id: TransactionalId,
}

impl Transactions {
    /// `None`: the settings are beyond this client (see [`Settings`]).
    pub(crate) fn new(kafka: &KafkaConfig, id: &str) -> Option<Self> {
        let settings = Settings::from_kafka(kafka, &format!("{id}-look")).ok()?;
        let tls = settings.tls.as_ref().map(tls::config).transpose().ok()?;
        Some(Self { settings, tls, id: TransactionalId(StrBytes::from_string(id.to_owned())) })
    }

    /// The last transaction of this id; `None`: there was none, or the brokers do not tell.
    ///
    /// # Errors
    /// No coordinator answers.
    pub(crate) fn last(&self, stop: &AtomicBool) -> Result<Option<LastTransaction>, Unanswered> {
        told(self.dialled(stop, |dial| self.describe(dial))).map(Option::flatten)
    }

    /// Where a producer has a transaction open, in partitions of `topics`. A topic that is not
    /// there, or may not be looked at, has none.
    ///
    /// # Errors
    /// A broker does not answer, or a partition has no leader.
    pub(crate) fn open_in(
        &self,
        topics: &[Arc<str>],
        producer: i64,
        stop: &AtomicBool,
    ) -> Result<Vec<TopicPartition>, Unanswered> {
        let found = self.dialled(stop, |dial| {
            let leaders = self.leaders(dial, topics)?;
            let mut open = Vec::new();
            for ((host, port), partitions) in leaders {
                let mut connection = Connection::open(dial, &host, port)?;
                open.extend(open_at(&mut connection, &partitions, producer)?);
            }
            Ok(open)
        });
        told(found).map(Option::unwrap_or_default)
    }

    /// Ends what is open in these partitions: a transaction of this id without a record, of which
    /// they are told the end. It fences every producer of this id.
    ///
    /// # Errors
    /// A broker does not answer, or refuses.
    pub(crate) fn end(
        &self,
        partitions: &[TopicPartition],
        committed: bool,
        stop: &AtomicBool,
    ) -> Result<(), Unanswered> {
        let ended = self.dialled(stop, |dial| {
            let mut connection = self.coordinator(dial)?;
            let (producer, epoch) = self.begin(&mut connection)?;
            self.add(&mut connection, partitions, (producer, epoch))?;
            let request = EndTxnRequest::default()
                .with_transactional_id(self.id.clone())
                .with_producer_id(producer.into())
                .with_producer_epoch(epoch)
                .with_committed(committed);
            let answer = ask(&mut connection, &request, 4)?;
            refused("EndTxn", answer.error_code)
        });
        // Who may not end it must not believe that it has ended.
        told(ended)?.ok_or_else(|| Unanswered::Ever(unended(partitions)))
    }

    fn dialled<T>(
        &self,
        stop: &AtomicBool,
        act: impl FnOnce(&Dial<'_>) -> Attempt<T>,
    ) -> Attempt<T> {
        let stopped = || stop.load(Ordering::Acquire);
        let pool = Arc::new(Pool::default());
        act(&Dial {
            settings: &self.settings,
            tls: self.tls.as_ref(),
            pool: &pool,
            stopped: &stopped,
        })
    }

    /// A connection to the first broker that answers.
    fn any<'a>(&self, dial: &'a Dial<'a>) -> Attempt<Connection<'a>> {
        let mut failed = Trouble::Lost("no broker is named".to_owned());
        for (host, port) in &self.settings.brokers {
            match Connection::open(dial, host, *port) {
                Err(Trouble::Lost(why)) => failed = Trouble::Lost(format!("{host}:{port}: {why}")),
                other => return other,
            }
        }
        Err(failed)
    }

    fn coordinator<'a>(&self, dial: &'a Dial<'a>) -> Attempt<Connection<'a>> {
        let request = FindCoordinatorRequest::default()
            .with_key(self.id.0.clone())
            .with_key_type(OF_TRANSACTIONS);
        let answer = ask(&mut self.any(dial)?, &request, 3)?;
        refused("FindCoordinator", answer.error_code)?;
        let port = u16::try_from(answer.port)
            .map_err(|_| Trouble::Lost("there is no coordinator now".to_owned()))?;
        Connection::open(dial, &answer.host, port)
    }

    fn describe(&self, dial: &Dial<'_>) -> Attempt<Option<LastTransaction>> {
        let mut connection = self.coordinator(dial)?;
        let request =
            DescribeTransactionsRequest::default().with_transactional_ids(vec![self.id.clone()]);
        let answer = ask(&mut connection, &request, 0)?;
        let Some(state) = answer.transaction_states.into_iter().next() else { return Ok(None) };
        if state.error_code == ResponseError::TransactionalIdNotFound.code() {
            return Ok(None);
        }
        refused("DescribeTransactions", state.error_code)?;
        let partitions = state.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|number| TopicPartition::new(&*topic.topic.0, *number))
        });
        let outcome = match &*state.transaction_state {
            "Ongoing" | "PrepareEpochFence" => Outcome::Ongoing(partitions.collect()),
            "PrepareCommit" | "CompleteCommit" => Outcome::Committed,
            // Its partitions get fewer as they are told.
            "PrepareAbort" | "CompleteAbort" => Outcome::Aborted,
            _ => Outcome::Unknown,
        };
        Ok(Some(LastTransaction { producer: state.producer_id.0, outcome }))
    }

    /// The partitions of topics, by the address of their leader.
    fn leaders(
        &self,
        dial: &Dial<'_>,
        topics: &[Arc<str>],
    ) -> Attempt<BTreeMap<(String, u16), Vec<TopicPartition>>> {
        by_leader(&metadata(&mut self.any(dial)?, topics.iter())?)
    }

    /// A producer id and its epoch; every earlier producer of this id is fenced.
    fn begin(&self, connection: &mut Connection<'_>) -> Attempt<(i64, i16)> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.id.clone()))
            .with_transaction_timeout_ms(TIMEOUT_MS)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let answer = ask(connection, &request, 4)?;
        refused("InitProducerId", answer.error_code)?;
        Ok((answer.producer_id.0, answer.producer_epoch))
    }

    fn add(
        &self,
        connection: &mut Connection<'_>,
        partitions: &[TopicPartition],
        (producer, epoch): (i64, i16),
    ) -> Attempt<()> {
        let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for tp in partitions {
            topics.entry(&tp.topic).or_default().push(tp.partition);
        }
        let topic = |(name, numbers)| {
            AddPartitionsToTxnTopic::default().with_name(topic_name(name)).with_partitions(numbers)
        };
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.id.clone())
            .with_v3_and_below_producer_id(producer.into())
            .with_v3_and_below_producer_epoch(epoch)
            .with_v3_and_below_topics(topics.into_iter().map(topic).collect());
        let answer = ask(connection, &request, 3)?;
        let results = answer.results_by_topic_v3_and_below.iter();
        let mut results = results.flat_map(|topic| &topic.results_by_partition);
        results.try_for_each(|one| refused("AddPartitionsToTxn", one.partition_error_code))
    }
}

fn ask<R: Call>(connection: &mut Connection<'_>, request: &R, most: i16) -> Attempt<R::Answer> {
    let version = connection.agreed::<R>(most)?;
    connection.ask(request, version, Duration::ZERO)
}

/// What a code of an answer means: who may not ask is not told, all else may be other soon.
fn refused(what: &str, code: i16) -> Attempt<()> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(
            error @ (ResponseError::TransactionalIdAuthorizationFailed
            | ResponseError::ClusterAuthorizationFailed
            | ResponseError::TopicAuthorizationFailed),
        ) => Err(Trouble::Beyond(format!("{what}: {error}"))),
        Some(error) => Err(Trouble::Lost(format!("{what}: {error}"))),
    }
}

fn by_leader(answer: &MetadataResponse) -> Attempt<BTreeMap<(String, u16), Vec<TopicPartition>>> {
    let nodes = addresses(answer);
    let mut leaders: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for topic in &answer.topics {
        let Some(name) = &topic.name else { continue };
        match ResponseError::try_from_code(topic.error_code) {
            None | Some(ResponseError::LeaderNotAvailable) => {}
            Some(
                ResponseError::UnknownTopicOrPartition | ResponseError::TopicAuthorizationFailed,
            ) => continue,
            Some(error) => return Err(Trouble::Lost(format!("Metadata: {error}"))),
        }
        for partition in &topic.partitions {
            let tp = TopicPartition::new(&*name.0, partition.partition_index);
            let address = nodes.get(&partition.leader_id.0).cloned();
            let address = address.ok_or_else(|| Trouble::Lost(format!("{tp} has no leader")))?;
            leaders.entry(address).or_default().push(tp);
        }
    }
    Ok(leaders)
}

/// Which of these partitions, all led by one broker, have an open transaction of the producer.
fn open_at(
    connection: &mut Connection<'_>,
    partitions: &[TopicPartition],
    producer: i64,
) -> Attempt<Vec<TopicPartition>> {
    let mut topics: Vec<TopicRequest> = Vec::new();
    for tp in partitions {
        if topics.last().is_none_or(|topic| *topic.name.0 != *tp.topic) {
            topics.push(TopicRequest::default().with_name(topic_name(&tp.topic)));
        }
        if let Some(topic) = topics.last_mut() {
            topic.partition_indexes.push(tp.partition);
        }
    }
    let answer = ask(connection, &DescribeProducersRequest::default().with_topics(topics), 0)?;
    let mut open = Vec::new();
    for topic in &answer.topics {
        for partition in &topic.partitions {
            match refused("DescribeProducers", partition.error_code) {
                Err(Trouble::Beyond(why)) => {
                    tracing::debug!(topic = %topic.name.0, "not looked at: {why}");
                    continue;
                }
                other => other?,
            }
            let is_open = (partition.active_producers.iter())
                .any(|one| one.producer_id.0 == producer && one.current_txn_start_offset >= 0);
            if is_open {
                open.push(TopicPartition::new(&*topic.name.0, partition.partition_index));
            }
        }
    }
    Ok(open)
}

fn unended(partitions: &[TopicPartition]) -> Error {
    let first = partitions.first().map(ToString::to_string).unwrap_or_default();
    let what = format!("a transaction that is open in {first} cannot be ended");
    Error::new(Kind::Kafka, what)
        .hint("this Kafka user lacks a permission (ACL); `kafka-transactions.sh abort` ends it too")
}

/// `None`: the brokers do not tell.
fn told<T>(attempt: Attempt<T>) -> Result<Option<T>, Unanswered> {
    match attempt {
        Ok(answer) => Ok(Some(answer)),
        Err(Trouble::Beyond(why)) => {
            tracing::debug!("transactions are not looked at: {why}");
            Ok(None)
        }
        Err(Trouble::Final(error)) => Err(Unanswered::Ever(error)),
        Err(Trouble::Lost(why)) => Err(Unanswered::Yet(why)),
        Err(Trouble::Stopped) => Err(Unanswered::Yet("stopped".to_owned())),
    }
}
