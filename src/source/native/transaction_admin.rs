//! The state of one transactional id on the brokers, and ending its hanging transactions.
//!
//! librdkafka has no API for this. The requests are those of KIP-664, and those of a producer that
//! starts, adds partitions to a transaction and ends it without a record.

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

use crate::source::config::KafkaConfig;
use crate::source::native::buffer_pool::BufferPool;
use crate::source::native::connect;
use crate::source::native::connection_settings::ConnectionSettings;
use crate::source::native::diagnostics::{ClientError, ClientResult};
use crate::source::native::leaders::{broker_addresses, fetch_metadata};
use crate::source::native::tls;
use crate::source::native::wire::{ApiRequest, Connection, ConnectionContext, topic_name};
use crate::types::TopicPartition;
use crate::{Error, Kind};

/// FindCoordinator: the key type of transaction coordinators.
const TRANSACTION_COORDINATOR: i8 = 1;
/// The timeout of the transaction that ends hanging transactions.
const TRANSACTION_TIMEOUT_MS: i32 = 60_000;

/// Why a request about transactions failed.
#[derive(Debug)]
pub(crate) enum TransactionAdminError {
    /// A broker is unreachable or not ready: the caller may retry.
    Retriable(String),
    /// Retrying does not help.
    Fatal(Error),
}

/// The state of the last transaction of a transactional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransactionState {
    /// It has not ended. These are its partitions.
    Ongoing(BTreeSet<TopicPartition>),
    /// It was committed, or will be.
    Committed,
    /// It was aborted, or will be.
    Aborted,
    /// A new producer has started since, or the state that the broker reports is unknown.
    Unknown,
}

/// The last transaction of a transactional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastTransaction {
    pub(crate) producer_id: i64,
    pub(crate) state: TransactionState,
}

/// Inspects and ends the transactions of one transactional id.
pub(crate) struct TransactionAdmin {
    settings: ConnectionSettings,
    tls: Option<Arc<rustls::ClientConfig>>,
    id: TransactionalId,
}

impl TransactionAdmin {
    /// Creates a client. `None`: the native client does not support the settings.
    pub(crate) fn new(kafka: &KafkaConfig, id: &str) -> Option<Self> {
        let client_id = format!("{id}-look");
        let settings =
            ConnectionSettings::from_properties(&kafka.brokers, &kafka.settings, &client_id)
                .ok()?;
        let tls = settings.tls.as_ref().map(tls::client_config).transpose().ok()?;
        Some(Self { settings, tls, id: TransactionalId(StrBytes::from_string(id.to_owned())) })
    }

    /// Returns the last transaction of this id; `None`: there is none, or the brokers do not
    /// support or permit the request.
    ///
    /// # Errors
    /// The coordinator is unreachable.
    pub(crate) fn describe_last(
        &self,
        stop: &AtomicBool,
    ) -> Result<Option<LastTransaction>, TransactionAdminError> {
        let described = self.with_connections(stop, |context| self.describe_transaction(context));
        permitted(described).map(Option::flatten)
    }

    /// Returns the partitions of `topics` in which a producer has an open transaction. Topics that
    /// do not exist or may not be inspected are left out.
    ///
    /// # Errors
    /// A broker is unreachable, or a partition has no leader.
    pub(crate) fn find_open_partitions(
        &self,
        topics: &[Arc<str>],
        producer_id: i64,
        stop: &AtomicBool,
    ) -> Result<Vec<TopicPartition>, TransactionAdminError> {
        let found = self.with_connections(stop, |context| {
            let mut connection = self.connect_any(context)?;
            let leaders = group_by_leader(&fetch_metadata(&mut connection, topics.iter())?)?;
            let mut open = Vec::new();
            for ((host, port), partitions) in leaders {
                let mut connection = connect::open(context, &host, port)?;
                open.extend(open_partitions_at(&mut connection, &partitions, producer_id)?);
            }
            Ok(open)
        });
        permitted(found).map(Option::unwrap_or_default)
    }

    /// Ends open transactions in these partitions with a transaction of this id that has no
    /// record: its end marker is written to them. Fences every producer of this id.
    ///
    /// # Errors
    /// A broker is unreachable or rejects a request.
    pub(crate) fn end_open(
        &self,
        partitions: &[TopicPartition],
        committed: bool,
        stop: &AtomicBool,
    ) -> Result<(), TransactionAdminError> {
        let ended = self.with_connections(stop, |context| {
            let mut connection = self.connect_coordinator(context)?;
            let (producer_id, epoch) = self.init_producer_id(&mut connection)?;
            self.add_partitions(&mut connection, partitions, (producer_id, epoch))?;
            let request = EndTxnRequest::default()
                .with_transactional_id(self.id.clone())
                .with_producer_id(producer_id.into())
                .with_producer_epoch(epoch)
                .with_committed(committed);
            let response = call(&mut connection, &request, 4)?;
            check_error_code("EndTxn", response.error_code)
        });
        // Without the permission the transaction is still open, so this must be an error.
        permitted(ended)?.ok_or_else(|| TransactionAdminError::Fatal(cannot_end_error(partitions)))
    }

    fn with_connections<T>(
        &self,
        stop: &AtomicBool,
        action: impl FnOnce(&ConnectionContext<'_>) -> ClientResult<T>,
    ) -> ClientResult<T> {
        let is_stopped = || stop.load(Ordering::Acquire);
        let pool = Arc::new(BufferPool::default());
        action(&ConnectionContext {
            settings: &self.settings,
            tls: self.tls.as_ref(),
            pool: &pool,
            is_stopped: &is_stopped,
        })
    }

    /// Connects to the first broker that is reachable.
    fn connect_any<'a>(&self, context: &'a ConnectionContext<'a>) -> ClientResult<Connection<'a>> {
        let mut last_error = ClientError::Retriable("the list of brokers is empty".to_owned());
        for (host, port) in &self.settings.brokers {
            match connect::open(context, host, *port) {
                Err(error @ ClientError::Retriable(_)) => last_error = error.at(host, *port),
                other => return other,
            }
        }
        Err(last_error)
    }

    fn connect_coordinator<'a>(
        &self,
        context: &'a ConnectionContext<'a>,
    ) -> ClientResult<Connection<'a>> {
        let request = FindCoordinatorRequest::default()
            .with_key(self.id.0.clone())
            .with_key_type(TRANSACTION_COORDINATOR);
        let response = call(&mut self.connect_any(context)?, &request, 3)?;
        check_error_code("FindCoordinator", response.error_code)?;
        let port = u16::try_from(response.port)
            .map_err(|_| ClientError::Retriable("the coordinator is not available".to_owned()))?;
        connect::open(context, &response.host, port)
    }

    fn describe_transaction(
        &self,
        context: &ConnectionContext<'_>,
    ) -> ClientResult<Option<LastTransaction>> {
        let mut connection = self.connect_coordinator(context)?;
        let request =
            DescribeTransactionsRequest::default().with_transactional_ids(vec![self.id.clone()]);
        let response = call(&mut connection, &request, 0)?;
        let Some(described) = response.transaction_states.into_iter().next() else {
            return Ok(None);
        };
        if described.error_code == ResponseError::TransactionalIdNotFound.code() {
            return Ok(None);
        }
        check_error_code("DescribeTransactions", described.error_code)?;
        let partitions = described.topics.iter().flat_map(|topic| {
            topic.partitions.iter().map(|id| TopicPartition::new(&*topic.topic.0, *id))
        });
        let state = match &*described.transaction_state {
            "Ongoing" | "PrepareEpochFence" => TransactionState::Ongoing(partitions.collect()),
            "PrepareCommit" | "CompleteCommit" => TransactionState::Committed,
            // The list of partitions shrinks while their markers are written.
            "PrepareAbort" | "CompleteAbort" => TransactionState::Aborted,
            _ => TransactionState::Unknown,
        };
        Ok(Some(LastTransaction { producer_id: described.producer_id.0, state }))
    }

    /// Gets a producer id and its epoch, which fences every earlier producer of this id.
    fn init_producer_id(&self, connection: &mut Connection<'_>) -> ClientResult<(i64, i16)> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.id.clone()))
            .with_transaction_timeout_ms(TRANSACTION_TIMEOUT_MS)
            .with_producer_id((-1).into())
            .with_producer_epoch(-1);
        let response = call(connection, &request, 4)?;
        check_error_code("InitProducerId", response.error_code)?;
        Ok((response.producer_id.0, response.producer_epoch))
    }

    fn add_partitions(
        &self,
        connection: &mut Connection<'_>,
        partitions: &[TopicPartition],
        (producer_id, epoch): (i64, i16),
    ) -> ClientResult<()> {
        let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for tp in partitions {
            topics.entry(&tp.topic).or_default().push(tp.partition);
        }
        let topic = |(name, ids)| {
            AddPartitionsToTxnTopic::default().with_name(topic_name(name)).with_partitions(ids)
        };
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.id.clone())
            .with_v3_and_below_producer_id(producer_id.into())
            .with_v3_and_below_producer_epoch(epoch)
            .with_v3_and_below_topics(topics.into_iter().map(topic).collect());
        let response = call(connection, &request, 3)?;
        let results = response.results_by_topic_v3_and_below.iter();
        let mut results = results.flat_map(|topic| &topic.results_by_partition);
        results.try_for_each(|result| {
            check_error_code("AddPartitionsToTxn", result.partition_error_code)
        })
    }
}

fn call<R: ApiRequest>(
    connection: &mut Connection<'_>,
    request: &R,
    max_version: i16,
) -> ClientResult<R::Response> {
    let version = connection.require_version::<R>(max_version)?;
    connection.call(request, version, Duration::ZERO)
}

/// Converts the error code of a response: a missing permission is `Unsupported`, any other error
/// may be temporary.
fn check_error_code(request: &str, code: i16) -> ClientResult<()> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(
            error @ (ResponseError::TransactionalIdAuthorizationFailed
            | ResponseError::ClusterAuthorizationFailed
            | ResponseError::TopicAuthorizationFailed),
        ) => Err(ClientError::Unsupported(format!("{request}: {error}"))),
        Some(error) => Err(ClientError::Retriable(format!("{request}: {error}"))),
    }
}

/// Groups the partitions of topics by the address of their leader.
fn group_by_leader(
    response: &MetadataResponse,
) -> ClientResult<BTreeMap<(String, u16), Vec<TopicPartition>>> {
    let addresses = broker_addresses(response);
    let mut leaders: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for topic in &response.topics {
        let Some(name) = &topic.name else { continue };
        match ResponseError::try_from_code(topic.error_code) {
            None | Some(ResponseError::LeaderNotAvailable) => {}
            Some(
                ResponseError::UnknownTopicOrPartition | ResponseError::TopicAuthorizationFailed,
            ) => continue,
            Some(error) => return Err(ClientError::Retriable(format!("Metadata: {error}"))),
        }
        for partition in &topic.partitions {
            let tp = TopicPartition::new(&*name.0, partition.partition_index);
            let address = addresses.get(&partition.leader_id.0).cloned();
            let address =
                address.ok_or_else(|| ClientError::Retriable(format!("{tp} has no leader")))?;
            leaders.entry(address).or_default().push(tp);
        }
    }
    Ok(leaders)
}

/// Returns which of these partitions, all led by one broker, have an open transaction of the
/// producer.
fn open_partitions_at(
    connection: &mut Connection<'_>,
    partitions: &[TopicPartition],
    producer_id: i64,
) -> ClientResult<Vec<TopicPartition>> {
    let mut topics: Vec<TopicRequest> = Vec::new();
    for tp in partitions {
        if topics.last().is_none_or(|topic| *topic.name.0 != *tp.topic) {
            topics.push(TopicRequest::default().with_name(topic_name(&tp.topic)));
        }
        if let Some(topic) = topics.last_mut() {
            topic.partition_indexes.push(tp.partition);
        }
    }
    let response = call(connection, &DescribeProducersRequest::default().with_topics(topics), 0)?;
    let mut open = Vec::new();
    for topic in &response.topics {
        for partition in &topic.partitions {
            match check_error_code("DescribeProducers", partition.error_code) {
                Err(ClientError::Unsupported(reason)) => {
                    tracing::debug!(topic = %topic.name.0, "cannot inspect producers: {reason}");
                    continue;
                }
                other => other?,
            }
            let is_open = (partition.active_producers.iter()).any(|producer| {
                producer.producer_id.0 == producer_id && producer.current_txn_start_offset >= 0
            });
            if is_open {
                open.push(TopicPartition::new(&*topic.name.0, partition.partition_index));
            }
        }
    }
    Ok(open)
}

fn cannot_end_error(partitions: &[TopicPartition]) -> Error {
    let first = partitions.first().map(ToString::to_string).unwrap_or_default();
    let message = format!("cannot end a hanging transaction in {first}");
    Error::new(Kind::Kafka, message).hint(
        "this Kafka user lacks a permission (ACL); `kafka-transactions.sh abort` also ends it",
    )
}

/// Converts the result. `None`: the brokers do not support or permit the request.
fn permitted<T>(result: ClientResult<T>) -> Result<Option<T>, TransactionAdminError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::Unsupported(reason)) => {
            tracing::debug!("cannot inspect transactions: {reason}");
            Ok(None)
        }
        Err(ClientError::Fatal(error)) => Err(TransactionAdminError::Fatal(error)),
        Err(ClientError::Retriable(reason)) => Err(TransactionAdminError::Retriable(reason)),
        Err(ClientError::Stopped) => Err(TransactionAdminError::Retriable("stopped".to_owned())),
    }
}
