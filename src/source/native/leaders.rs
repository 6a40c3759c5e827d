//! Partition leaders: Metadata requests, and one thread for each broker that leads a partition.
//!
//! Promises: a partition without a known leader is looked up until it has one; a topic that does
//! not exist, or was recreated under the same name, is an error, because recorded offsets are
//! meaningless in another topic.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponseTopic};
use kafka_protocol::messages::{FetchRequest, MetadataRequest, MetadataResponse};

use crate::source::native::broker;
use crate::source::native::connect;
use crate::source::native::diagnostics::{ClientError, ClientResult, too_old};
use crate::source::native::fetch_context::FetchContext;
use crate::source::native::partition_table::{NodeId, PartitionEntry, TableState};
use crate::source::native::wire::{Connection, topic_name};
use crate::{Error, Kind};

/// The shortest time between two lookups.
const MIN_LOOKUP_INTERVAL: Duration = Duration::from_millis(50);
/// How long a topic may be unknown: a new topic is not known to all brokers at once.
const UNKNOWN_TOPIC_GRACE: Duration = Duration::from_secs(10);
/// The first version of Metadata that does not create the requested topics.
const MIN_METADATA_VERSION: i16 = 4;
/// The name in the outage log for outages of no broker in particular.
const ALL_BROKERS: &str = "brokers";

/// Looks up leaders and starts the threads of the brokers, until the reader stops.
pub(super) fn run<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    context: &'env FetchContext<'env>,
) {
    let (min_backoff, max_backoff) = context.settings.reconnect_backoff;
    let mut connection = None;
    let mut threads: BTreeSet<NodeId> = BTreeSet::new();
    let mut attempt = 0;
    let mut backoff = min_backoff;
    while wait_until_lookup_due(context) {
        match refresh_metadata(context, &mut connection, attempt) {
            Ok(()) => {
                backoff = min_backoff;
                context.outages.record_reachable(ALL_BROKERS);
                let leaders = context.table.lock().leader_nodes();
                for node in leaders {
                    if threads.insert(node) {
                        spawn_broker_thread(scope, context, node);
                    }
                }
                let interval = context.settings.retry_backoff.max(MIN_LOOKUP_INTERVAL);
                context.table.sleep(interval, || context.is_stopped());
            }
            Err(ClientError::Retriable(reason)) => {
                // The next attempt uses another broker; the backoff grows with every attempt.
                connection = None;
                attempt += 1;
                context.outages.record_unreachable(ALL_BROKERS, &reason);
                context.table.sleep(backoff, || context.is_stopped());
                backoff = (backoff * 2).min(max_backoff);
            }
            Err(error) => context.stop_on(error),
        }
    }
    context.table.wake();
}

fn spawn_broker_thread<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    context: &'env FetchContext<'env>,
    node: NodeId,
) {
    let thread = std::thread::Builder::new().name(format!("kafka-broker-{node}"));
    if let Err(error) = thread.spawn_scoped(scope, move || broker::run(context, node)) {
        let error = Error::internal("cannot start the thread of a broker").because(error);
        context.stop_on(ClientError::Fatal(error));
    }
}

/// Waits until leaders must be looked up. Returns `false` if the reader stops.
fn wait_until_lookup_due(context: &FetchContext<'_>) -> bool {
    let started = Instant::now();
    let mut state = context.table.lock();
    loop {
        if context.is_stopped() {
            return false;
        }
        let is_due =
            !state.partitions.is_empty() && started.elapsed() >= context.settings.metadata_refresh;
        if is_due || state.needs_leader_lookup() {
            state.leaders_stale = false;
            return true;
        }
        state = context.table.wait(state, Duration::from_secs(1));
    }
}

/// Requests metadata from one broker and applies it to the partition table. Uses the open
/// connection if there is one.
fn refresh_metadata<'a>(
    context: &'a FetchContext<'a>,
    connection: &mut Option<Connection<'a>>,
    attempt: usize,
) -> ClientResult<()> {
    let open = connection.take().filter(|connection| !connection.is_stale());
    let reused = match open {
        Some(mut open) => match request_metadata(context, &mut open) {
            // The broker may have closed an idle connection, which is not an outage.
            Err(ClientError::Retriable(_)) => None,
            response => Some((open, response?)),
        },
        None => None,
    };
    let (open, response) = match reused {
        Some(exchange) => exchange,
        None => {
            let mut candidates: Vec<_> = context.settings.brokers.clone();
            candidates.extend(context.table.lock().nodes.values().cloned());
            let (host, port) = &candidates[attempt % candidates.len()];
            let mut open = connect::open(&context.connections, host, *port)
                .map_err(|error| error.at(host, *port))?;
            let response =
                request_metadata(context, &mut open).map_err(|error| error.at(host, *port))?;
            (open, response)
        }
    };
    *connection = Some(open);
    let mut state = context.table.lock();
    apply_metadata(&mut state, &response)?;
    drop(state);
    context.table.wake();
    Ok(())
}

fn request_metadata(
    context: &FetchContext<'_>,
    connection: &mut Connection<'_>,
) -> ClientResult<MetadataResponse> {
    connection.require_version::<FetchRequest>(i16::MAX)?;
    let topics = context.table.lock().topics();
    fetch_metadata(connection, topics.iter())
}

/// Requests the metadata of topics. The request creates no topics.
pub(super) fn fetch_metadata<'a>(
    connection: &mut Connection<'_>,
    topics: impl Iterator<Item = &'a Arc<str>>,
) -> ClientResult<MetadataResponse> {
    let version = connection
        .supported_version::<MetadataRequest>(12)
        .filter(|version| *version >= MIN_METADATA_VERSION)
        .ok_or_else(|| too_old("Metadata version 4"))?;
    let topic = |name: &Arc<str>| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
    let request = MetadataRequest::default()
        .with_topics(Some(topics.map(topic).collect()))
        .with_allow_auto_topic_creation(false);
    connection.call(&request, version, Duration::ZERO)
}

/// The addresses of the brokers in a response.
pub(super) fn broker_addresses(response: &MetadataResponse) -> HashMap<NodeId, (String, u16)> {
    let address = |broker: &MetadataResponseBroker| {
        Some((broker.node_id.0, (broker.host.to_string(), u16::try_from(broker.port).ok()?)))
    };
    response.brokers.iter().filter_map(address).collect()
}

/// Updates brokers and leaders from a response.
fn apply_metadata(state: &mut TableState, response: &MetadataResponse) -> ClientResult<()> {
    state.nodes = broker_addresses(response);
    for partition in &mut state.partitions {
        let is_topic = |topic: &&MetadataResponseTopic| {
            topic.name.as_ref().is_some_and(|name| *name.0 == *partition.tp.topic)
        };
        if let Some(topic) = response.topics.iter().find(is_topic) {
            apply_topic(partition, topic)?;
        }
    }
    Ok(())
}

fn apply_topic(partition: &mut PartitionEntry, topic: &MetadataResponseTopic) -> ClientResult<()> {
    if let Some(ResponseError::UnknownTopicOrPartition) =
        ResponseError::try_from_code(topic.error_code)
    {
        return handle_missing_partition(partition, "there is no such topic");
    }
    check_topic(partition, topic)?;
    let id = partition.tp.partition;
    let Some(found) = topic.partitions.iter().find(|found| found.partition_index == id) else {
        return match topic.error_code {
            0 => handle_missing_partition(partition, "the topic has fewer partitions"),
            _ => Ok(()),
        };
    };
    partition.missing_since = None;
    // A response with an older epoch comes from a broker that lags behind. Without topic ids it
    // may also come from a topic that was recreated.
    let is_newer = topic.topic_id.is_nil()
        || partition.leader.is_none_or(|(_, epoch)| found.leader_epoch >= epoch);
    if found.leader_id.0 < 0 {
        partition.leader = None;
    } else if is_newer {
        partition.leader = Some((found.leader_id.0, found.leader_epoch));
    }
    Ok(())
}

/// Checks that the topic is readable and still the same topic, and records its id.
fn check_topic(partition: &mut PartitionEntry, topic: &MetadataResponseTopic) -> ClientResult<()> {
    let tp = &partition.tp;
    match ResponseError::try_from_code(topic.error_code) {
        None | Some(ResponseError::LeaderNotAvailable) => {}
        Some(ResponseError::TopicAuthorizationFailed) => {
            let error = Error::new(Kind::Kafka, format!("cannot read {tp}: permission denied"));
            return Err(ClientError::Fatal(error.hint("this Kafka user lacks a permission (ACL)")));
        }
        Some(ResponseError::InvalidTopicException) => {
            let error = Error::new(Kind::Recovery, format!("{tp} does not exist in Kafka"));
            return Err(ClientError::Fatal(
                error.detail("the brokers reject the name of the topic"),
            ));
        }
        Some(other) => {
            return Err(ClientError::Retriable(format!("no metadata for {tp}: {other}")));
        }
    }
    if !topic.topic_id.is_nil() {
        if partition.topic_id.is_nil() {
            partition.topic_id = topic.topic_id;
        } else if partition.topic_id != topic.topic_id {
            return Err(ClientError::Fatal(
                Error::new(Kind::Recovery, format!("the topic of {tp} was recreated"))
                    .detail(format!(
                        "its topic id was {} and is now {}",
                        partition.topic_id, topic.topic_id
                    ))
                    .hint(
                        "its old offsets are no longer valid: see docs/running.md before starting \
                         over with --reset",
                    ),
            ));
        }
    }
    Ok(())
}

/// Handles a partition that does not exist. It is an error only after a grace period, because a
/// new partition is not known to all brokers at once.
fn handle_missing_partition(partition: &mut PartitionEntry, reason: &str) -> ClientResult<()> {
    partition.leader = None;
    let since = *partition.missing_since.get_or_insert_with(Instant::now);
    if since.elapsed() < UNKNOWN_TOPIC_GRACE {
        return Ok(());
    }
    let tp = &partition.tp;
    Err(ClientError::Fatal(
        Error::new(Kind::Recovery, format!("{tp} does not exist in Kafka"))
            .detail(reason)
            .hint("check whether the topic was deleted or its number of partitions was reduced"),
    ))
}
