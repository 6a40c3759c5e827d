//! Who leads what: Metadata requests, and a thread for each broker that leads something.
//!
//! Promises: a partition without a known leader is looked up until it has one; a topic that is
//! not there, or was made anew under the same name, becomes an error, for what was recorded
//! about its offsets says nothing about another topic.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponseTopic};
use kafka_protocol::messages::{FetchRequest, MetadataRequest, MetadataResponse};

use crate::source::native::Shared;
use crate::source::native::broker;
use crate::source::native::diagnostics::{Attempt, Trouble};
use crate::source::native::partition_table::{NodeId, Partition, State};
use crate::source::native::wire::{Connection, topic_name};
use crate::{Error, Kind};

/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a topic may be unknown: one that was just made is not known everywhere at once.
const UNKNOWN: Duration = Duration::from_secs(10);
/// The first version of Metadata that does not make topics by asking for them.
const LEAST_METADATA: i16 = 4;
/// Outages that concern no broker in particular are told under this name.
const ANY: &str = "all brokers";

/// Looks up leaders and keeps the brokers' threads, until nobody wants it any more.
pub(super) fn run<'scope, 'env>(scope: &'scope Scope<'scope, 'env>, shared: &'env Shared<'env>) {
    let mut connection = None;
    let mut threads: BTreeSet<NodeId> = BTreeSet::new();
    let mut turn = 0;
    let mut pause = shared.settings.reconnect.0;
    while wait_until_wanted(shared) {
        match look(shared, &mut connection, turn) {
            Ok(()) => {
                pause = shared.settings.reconnect.0;
                shared.outage.over(ANY);
                let leaders = shared.table.lock().leaders();
                for node in leaders {
                    if threads.insert(node) {
                        spawn(scope, shared, node);
                    }
                }
                shared.table.sleep(shared.settings.retry.max(PAUSE), || shared.stopped());
            }
            Err(Trouble::Lost(why)) => {
                // Another broker, next time; the wait grows with every round.
                connection = None;
                turn += 1;
                shared.outage.began(ANY, &why);
                shared.table.sleep(pause, || shared.stopped());
                pause = (pause * 2).min(shared.settings.reconnect.1);
            }
            Err(trouble) => end(shared, trouble),
        }
    }
    shared.table.wake();
}

/// Ends the reader, as far as that is for this trouble to do.
pub(super) fn end(shared: &Shared<'_>, trouble: Trouble) {
    match trouble {
        Trouble::Final(error) => {
            shared.sink.fail(error);
            shared.table.wake();
        }
        Trouble::Beyond(why) => shared.table.give_up(why),
        Trouble::Lost(_) | Trouble::Stopped => {}
    }
}

fn spawn<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    shared: &'env Shared<'env>,
    node: NodeId,
) {
    let thread = std::thread::Builder::new().name(format!("kafka-broker-{node}"));
    if let Err(error) = thread.spawn_scoped(scope, move || broker::run(shared, node)) {
        let error = Error::internal("a thread for a broker cannot be started").because(error);
        end(shared, Trouble::Final(error));
    }
}

/// Waits until somebody needs a leader. False: the reader ends.
fn wait_until_wanted(shared: &Shared<'_>) -> bool {
    let begun = Instant::now();
    let mut state = shared.table.lock();
    loop {
        if shared.stopped() {
            return false;
        }
        let due = !state.partitions.is_empty() && begun.elapsed() >= shared.settings.refresh;
        if due || state.wants_leaders() {
            state.doubted = false;
            return true;
        }
        state = shared.table.wait(state, Duration::from_secs(1));
    }
}

/// Asks one broker and notes what it says.
fn look<'a>(
    shared: &'a Shared<'a>,
    connection: &mut Option<Connection<'a>>,
    turn: usize,
) -> Attempt<()> {
    let open = connection.take().filter(|connection| !connection.is_stale());
    let answer = match open {
        Some(mut open) => match ask(shared, &mut open) {
            // It was idle for long, perhaps: that says nothing about the broker.
            Err(Trouble::Lost(_)) => None,
            answer => Some((open, answer?)),
        },
        None => None,
    };
    let (open, answer) = match answer {
        Some(answered) => answered,
        None => {
            let mut known: Vec<_> = shared.settings.brokers.clone();
            known.extend(shared.table.lock().nodes.values().cloned());
            let (host, port) = &known[turn % known.len()];
            let named = |trouble| match trouble {
                Trouble::Lost(why) => Trouble::Lost(format!("{host}:{port}: {why}")),
                other => other,
            };
            let mut open = Connection::open(&shared.dial, host, *port).map_err(named)?;
            let answer = ask(shared, &mut open).map_err(named)?;
            (open, answer)
        }
    };
    *connection = Some(open);
    let mut state = shared.table.lock();
    note(&mut state, &answer)?;
    drop(state);
    shared.table.wake();
    Ok(())
}

fn ask(shared: &Shared<'_>, connection: &mut Connection<'_>) -> Attempt<MetadataResponse> {
    connection.agreed::<FetchRequest>(i16::MAX)?;
    let topics = shared.table.lock().topics();
    metadata(connection, topics.iter())
}

/// What a broker knows of topics. It makes none.
pub(super) fn metadata<'a>(
    connection: &mut Connection<'_>,
    topics: impl Iterator<Item = &'a Arc<str>>,
) -> Attempt<MetadataResponse> {
    let version = connection
        .version::<MetadataRequest>(12)
        .filter(|version| *version >= LEAST_METADATA)
        .ok_or_else(|| Trouble::Beyond("the brokers are too old for it".to_owned()))?;
    let topic = |name: &Arc<str>| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
    let request = MetadataRequest::default()
        .with_topics(Some(topics.map(topic).collect()))
        .with_allow_auto_topic_creation(false);
    connection.ask(&request, version, Duration::ZERO)
}

/// Where the brokers of an answer are.
pub(super) fn addresses(answer: &MetadataResponse) -> HashMap<NodeId, (String, u16)> {
    let address = |broker: &MetadataResponseBroker| {
        Some((broker.node_id.0, (broker.host.to_string(), u16::try_from(broker.port).ok()?)))
    };
    answer.brokers.iter().filter_map(address).collect()
}

/// Notes an answer.
fn note(state: &mut State, answer: &MetadataResponse) -> Attempt<()> {
    state.nodes = addresses(answer);
    for partition in &mut state.partitions {
        let named = |topic: &&MetadataResponseTopic| {
            topic.name.as_ref().is_some_and(|name| *name.0 == *partition.tp.topic)
        };
        if let Some(topic) = answer.topics.iter().find(named) {
            note_topic(partition, topic)?;
        }
    }
    Ok(())
}

fn note_topic(partition: &mut Partition, topic: &MetadataResponseTopic) -> Attempt<()> {
    let tp = &partition.tp;
    match ResponseError::try_from_code(topic.error_code) {
        None | Some(ResponseError::LeaderNotAvailable) => {}
        Some(ResponseError::UnknownTopicOrPartition) => return missing(partition, "no such topic"),
        Some(ResponseError::TopicAuthorizationFailed) => {
            let error = Error::new(Kind::Kafka, format!("{tp} cannot be read: no permission"));
            return Err(Trouble::Final(error.hint("this Kafka user lacks a permission (ACL)")));
        }
        Some(ResponseError::InvalidTopicException) => {
            let error = Error::new(Kind::Recovery, format!("{tp} is not in Kafka (any more)"));
            return Err(Trouble::Final(error.detail("the topic's name is none that Kafka takes")));
        }
        Some(other) => return Err(Trouble::Lost(format!("{tp} is not told of: {other}"))),
    }
    if !topic.topic_id.is_nil() {
        if partition.topic_id.is_nil() {
            partition.topic_id = topic.topic_id;
        } else if partition.topic_id != topic.topic_id {
            return Err(Trouble::Final(
                Error::new(Kind::Recovery, format!("the topic of {tp} was made anew"))
                    .detail(format!("it was {} and is {}", partition.topic_id, topic.topic_id))
                    .hint("its offsets are others now: see docs/running.md before starting over with --reset"),
            ));
        }
    }
    let number = partition.tp.partition;
    let told = topic.partitions.iter().find(|told| told.partition_index == number);
    let Some(told) = told else {
        return match topic.error_code {
            0 => missing(partition, "the topic has fewer partitions"),
            _ => Ok(()),
        };
    };
    partition.missing_since = None;
    // One of an older epoch comes from a broker that is behind; without ids, perhaps from a topic
    // that was made anew.
    let newer = topic.topic_id.is_nil()
        || partition.leader.is_none_or(|(_, epoch)| told.leader_epoch >= epoch);
    if told.leader_id.0 < 0 {
        partition.leader = None;
    } else if newer {
        partition.leader = Some((told.leader_id.0, told.leader_epoch));
    }
    Ok(())
}

/// There is no such partition: for some time that may be because it was just made.
fn missing(partition: &mut Partition, why: &str) -> Attempt<()> {
    partition.leader = None;
    let since = *partition.missing_since.get_or_insert_with(Instant::now);
    if since.elapsed() < UNKNOWN {
        return Ok(());
    }
    let tp = &partition.tp;
    Err(Trouble::Final(
        Error::new(Kind::Recovery, format!("{tp} is not in Kafka (any more)"))
            .detail(why)
            .hint("was the topic deleted, or its number of partitions lessened?"),
    ))
}
