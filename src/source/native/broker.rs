//! One broker's thread: Fetch after Fetch, the next one sent before the last one is read.
//!
//! Invariants:
//! - at most one Fetch is under way while nothing is read, and one more while the records of the
//!   answer before it are read;
//! - what was claimed is told, or dropped because the partition is paused or the reader ends:
//!   losing the connection loses no claim.

use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{FetchRequest, FetchResponse, ListOffsetsRequest};

use crate::source::native::Shared;
use crate::source::native::aborted_transactions::Aborted;
use crate::source::native::chunks::{self, Bad, Part};
use crate::source::native::diagnostics::{Attempt, Trouble, undecodable};
use crate::source::native::leaders::end;
use crate::source::native::partition_table::{Ask, NodeId, Plan};
use crate::source::native::wire::{Connection, Sent, topic_name};
use crate::source::reader::{Event, Isolation};
use crate::{Error, Kind};

/// The newest Fetch that is spoken: the first one that names topics by their ids.
const FETCH: i16 = 13;
/// The newest Fetch that names topics by their names.
const FETCH_BY_NAME: i16 = 12;
/// ListOffsets: the first offset that there is, and the next one to come.
const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

/// A connection that was of no use for so long is given up, before the broker does it (10 min).
const IDLE: Duration = Duration::from_secs(300);

/// A Fetch that was sent.
struct Flight {
    sent: Sent,
    asks: Vec<Ask>,
}

/// One partition's part of an answer, taken.
struct Claim {
    ask: Ask,
    part: Option<Part>,
    /// Where the partition ended.
    end: i64,
}

/// Reads what this broker leads, until the reader ends.
pub(super) fn run(shared: &Shared<'_>, node: NodeId) {
    let mut pause = shared.settings.reconnect.0;
    while wait_until_leading(shared, node) {
        let mut answered = false;
        match session(shared, node, &mut answered) {
            Ok(()) => {}
            Err(Trouble::Lost(why)) => {
                shared.outage.began(&format!("broker {node}"), &why);
                shared.table.doubt_all();
                if answered {
                    pause = shared.settings.reconnect.0;
                }
                shared.table.sleep(pause, || shared.stopped());
                pause = (pause * 2).min(shared.settings.reconnect.1);
            }
            Err(trouble) => end(shared, trouble),
        }
    }
}

/// Waits until the broker leads something. False: the reader ends.
fn wait_until_leading(shared: &Shared<'_>, node: NodeId) -> bool {
    let mut state = shared.table.lock();
    while !shared.stopped() {
        if state.plan(node) != Plan::Nothing {
            return true;
        }
        shared.outage.over(&format!("broker {node}"));
        state = shared.table.wait(state, Duration::from_secs(1));
    }
    false
}

/// One connection's life; `Ok`: it is time for another, or for none.
fn session(shared: &Shared<'_>, node: NodeId, answered: &mut bool) -> Attempt<()> {
    let place = shared.table.lock().nodes.get(&node).cloned();
    let (host, port) = place.ok_or_else(|| Trouble::Lost("its address is not known".to_owned()))?;
    let mut connection = Connection::open(&shared.dial, &host, port)?;
    shared.outage.over(&format!("broker {node}"));
    let mut flight = None;
    loop {
        let under_way = match flight.take() {
            Some(under_way) => under_way,
            None if connection.is_stale() => return Ok(()),
            None => match first_fetch(shared, node, &mut connection)? {
                Some(under_way) => under_way,
                None => return Ok(()),
            },
        };
        let answer = connection.receive::<FetchRequest>(under_way.sent)?;
        *answered = true;
        let taken = take(shared, node, &under_way.asks, answer)?;
        // The broker works on the next one while the records of this one are read.
        let early = taken.doubtful.is_empty() && shared.sink.has_room() && !connection.is_stale();
        let next = match early.then(|| shared.table.lock().plan(node)) {
            Some(Plan::Ask(asks)) => send(shared, &mut connection, asks).map(Some),
            _ => Ok(None),
        };
        for claim in taken.claims {
            tell(shared, claim)?;
        }
        flight = next?;
        for ask in taken.doubtful {
            look_at_offsets(shared, &mut connection, &ask)?;
        }
    }
}

/// Waits for room and for something to ask for, and asks. `None`: nothing is led any more, or
/// nothing was to be asked for a long time.
fn first_fetch(
    shared: &Shared<'_>,
    node: NodeId,
    connection: &mut Connection<'_>,
) -> Attempt<Option<Flight>> {
    let begun = Instant::now();
    loop {
        if !shared.sink.wait() || shared.stopped() {
            return Err(Trouble::Stopped);
        }
        if begun.elapsed() >= IDLE {
            return Ok(None);
        }
        let state = shared.table.lock();
        match state.plan(node) {
            Plan::Ask(asks) => {
                drop(state);
                return send(shared, connection, asks).map(Some);
            }
            Plan::Nothing => return Ok(None),
            Plan::Rest(until) => {
                let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
                drop(shared.table.wait(state, rest.unwrap_or(Duration::from_secs(1))));
            }
        }
    }
}

/// Sends a Fetch.
fn send(shared: &Shared<'_>, connection: &mut Connection<'_>, asks: Vec<Ask>) -> Attempt<Flight> {
    let by_id = asks.iter().all(|ask| !ask.topic_id.is_nil());
    let version = connection.agreed::<FetchRequest>(if by_id { FETCH } else { FETCH_BY_NAME })?;
    let mut topics: Vec<FetchTopic> = Vec::new();
    let mut last = None;
    for ask in &asks {
        // Neighbours of one topic share its entry; the order is kept, for the first is first.
        if last != Some(&ask.tp.topic) {
            let name = topic_name(&ask.tp.topic);
            topics.push(FetchTopic::default().with_topic(name).with_topic_id(ask.topic_id));
        }
        last = Some(&ask.tp.topic);
        let partition = FetchPartition::default()
            .with_partition(ask.tp.partition)
            .with_current_leader_epoch(ask.leader_epoch)
            .with_fetch_offset(ask.offset)
            .with_last_fetched_epoch(ask.read_epoch)
            .with_partition_max_bytes(ask.bytes);
        if let Some(topic) = topics.last_mut() {
            topic.partitions.push(partition);
        }
    }
    let settings = shared.settings;
    let largest = asks.iter().map(|ask| ask.bytes).max().unwrap_or_default();
    let request = FetchRequest::default()
        .with_max_wait_ms(settings.wait.as_millis().try_into().unwrap_or(i32::MAX))
        .with_min_bytes(settings.min_bytes)
        .with_max_bytes(settings.max_bytes.max(largest))
        .with_isolation_level(i8::from(shared.isolation == Isolation::Committed))
        .with_topics(topics);
    let sent = connection.send(&request, version, settings.wait)?;
    Ok(Flight { sent, asks })
}

/// What an answer gave.
struct Taken {
    claims: Vec<Claim>,
    /// Partitions whose offset the broker does not have.
    doubtful: Vec<Ask>,
}

/// Looks at the headers of what came, and claims it.
fn take(shared: &Shared<'_>, node: NodeId, asks: &[Ask], answer: FetchResponse) -> Attempt<Taken> {
    if let Some(error) = ResponseError::try_from_code(answer.error_code) {
        return Err(Trouble::Lost(format!("Fetch is refused: {error}")));
    }
    // All is matched before anything is claimed: what is claimed must be told.
    let mut matched = Vec::with_capacity(asks.len());
    let mut next = 0;
    for topic in answer.responses {
        let FetchableTopicResponse { topic: name, topic_id, partitions, .. } = topic;
        for data in partitions {
            let is = |ask: &Ask| {
                ask.tp.partition == data.partition_index
                    && (*name.0 == *ask.tp.topic || name.0.is_empty() && topic_id == ask.topic_id)
            };
            // Answers mostly come in the order of the questions.
            let found = (next..asks.len()).chain(0..next).find(|index| is(&asks[*index]));
            let index = found.ok_or_else(|| undecodable("it holds what was not asked for"))?;
            next = index + 1;
            matched.push((&asks[index], data));
        }
    }
    let mut taken = Taken { claims: Vec::new(), doubtful: Vec::new() };
    for (ask, data) in matched {
        take_partition(shared, node, ask, data, &mut taken)?;
    }
    Ok(taken)
}

fn take_partition(
    shared: &Shared<'_>,
    node: NodeId,
    ask: &Ask,
    data: PartitionData,
    taken: &mut Taken,
) -> Attempt<()> {
    let mut state = shared.table.lock();
    if !state.counts(node, ask) {
        return Ok(());
    }
    if let Some(error) = ResponseError::try_from_code(data.error_code) {
        drop(state);
        return refused(shared, ask, error, taken);
    }
    if data.diverging_epoch.epoch >= 0 {
        return Err(Trouble::Final(diverged(ask, data.diverging_epoch.end_offset)));
    }
    let records = data.records.unwrap_or_default();
    let scan = chunks::scan(&records).map_err(|why| {
        let why = why.0.to_owned();
        bad_batch(ask, Bad { offset: ask.offset, why })
    })?;
    if scan.bytes == 0 {
        if let Some(format) = scan.old_format {
            let why = format!("{} holds messages of format {format}", ask.tp);
            return Err(Trouble::Beyond(why));
        }
        if !records.is_empty() {
            state.ask_for_more(ask.index, scan.wanted_bytes);
        }
    }
    let end = match shared.isolation {
        Isolation::Committed => data.last_stable_offset,
        Isolation::Uncommitted => data.high_watermark,
    };
    let told = state.claim(node, ask, scan.end);
    drop(state);
    let listed = match shared.isolation {
        Isolation::Committed => data.aborted_transactions.unwrap_or_default(),
        Isolation::Uncommitted => Vec::new(),
    };
    let listed = listed.iter().map(|one| (one.first_offset, one.producer_id.0)).collect();
    let part = (scan.bytes > 0).then(|| Part {
        partition: ask.tp.clone(),
        bytes: records.slice(..scan.bytes),
        records: scan.records,
        told,
        from_offset: ask.offset,
        aborted: Aborted::new(listed),
        checked: shared.settings.checked,
    });
    taken.claims.push(Claim { ask: ask.clone(), part, end });
    Ok(())
}

/// The leader's log is not the one that was read: a replica took over that lacked its end.
fn diverged(ask: &Ask, end: i64) -> Error {
    let what = format!("{} lost records that were read already", ask.tp);
    Error::new(Kind::Recovery, what)
        .detail(format!(
            "read up to offset {}, but another broker took over (an unclean leader election) that \
             had other records, or none, from offset {end} on",
            ask.offset
        ))
        .hint(
            "what was read of them is in history; `millstream rebuild` works out state and results \
             again from what Kafka has now",
        )
}

/// What an error of one partition means.
fn refused(shared: &Shared<'_>, ask: &Ask, error: ResponseError, taken: &mut Taken) -> Attempt<()> {
    let rest = shared.settings.retry;
    match error {
        ResponseError::OffsetOutOfRange => taken.doubtful.push(ask.clone()),
        // Whether there is such a topic still, and who leads it, Metadata says.
        ResponseError::NotLeaderOrFollower
        | ResponseError::LeaderNotAvailable
        | ResponseError::FencedLeaderEpoch
        | ResponseError::UnknownLeaderEpoch
        | ResponseError::UnknownTopicOrPartition
        | ResponseError::UnknownTopicId
        | ResponseError::InconsistentTopicId
        | ResponseError::ReplicaNotAvailable
        | ResponseError::BrokerNotAvailable
        | ResponseError::KafkaStorageError
        | ResponseError::OffsetNotAvailable
        | ResponseError::RequestTimedOut
        | ResponseError::NetworkException => {
            tracing::debug!(partition = %ask.tp, "asking for its leader: {error}");
            shared.table.doubt(ask.index, rest);
        }
        _ => {
            let what = format!("{} cannot be read at offset {}", ask.tp, ask.offset);
            let told = Error::new(Kind::Kafka, what).detail(error.to_string());
            return Err(Trouble::Final(match error {
                ResponseError::TopicAuthorizationFailed => {
                    told.hint("this Kafka user lacks a permission (ACL)")
                }
                _ => told,
            }));
        }
    }
    Ok(())
}

/// Reads the records of a claim and tells them, and the partition's end.
fn tell(shared: &Shared<'_>, claim: Claim) -> Attempt<()> {
    let Claim { ask, part, end } = claim;
    let mut outcome = Ok(());
    let mut wanted = true;
    if let Some(part) = part {
        outcome = part.chunks(|chunk| {
            wanted = shared.sink.wait()
                && shared.table.advance(ask.index, chunk.next_offset)
                && shared.sink.send(Event::Chunk(chunk));
            wanted
        });
    }
    if let Err(bad) = outcome {
        return Err(bad_batch(&ask, bad));
    }
    if shared.stopped() {
        return Err(Trouble::Stopped);
    }
    if let Some(position) = shared.table.settle(ask.index, end) {
        shared.sink.send(Event::End { partition: ask.tp, position });
    }
    Ok(())
}

fn bad_batch(ask: &Ask, bad: Bad) -> Trouble {
    let Bad { offset, why } = bad;
    let error = Error::new(Kind::Kafka, format!("{} cannot be read at offset {offset}", ask.tp));
    Trouble::Final(error.detail(format!("the batch there is bad: {why}")).hint(
        "the broker's disk or the network changed it; another replica may have it whole. \
         --kafka millstream.reader=rdkafka reads with another client",
    ))
}

/// The broker does not have the offset that was asked for: it is gone, it is not there yet, or
/// the broker has just become the leader and does not know its end.
fn look_at_offsets(shared: &Shared<'_>, connection: &mut Connection<'_>, ask: &Ask) -> Attempt<()> {
    let tp = &ask.tp;
    let low = offset_of(connection, ask, EARLIEST)?;
    let high = offset_of(connection, ask, LATEST)?;
    let (Some(low), Some(high)) = (low, high) else {
        shared.table.doubt(ask.index, shared.settings.retry);
        return Ok(());
    };
    let wanted = ask.offset;
    if (low..=high).contains(&wanted) {
        shared.table.rest(ask.index, shared.settings.retry);
        return Ok(());
    }
    let what = format!("{tp} has no offset {wanted} any more, or not yet");
    Err(Trouble::Final(
        Error::new(Kind::Recovery, what)
            .detail(format!("wanted offset {wanted}; Kafka has {low} to {high}"))
            .hint(
                "the topic's retention removed what was not processed yet, or the topic was made anew. `run --on-gap skip` \
                 goes on at the first offset that there is and records it; `millstream rebuild` uses what history has",
            ),
    ))
}

/// The first or the next offset of a partition; `None`: the broker does not say.
fn offset_of(connection: &mut Connection<'_>, ask: &Ask, which: i64) -> Attempt<Option<i64>> {
    let Some(version) = connection.version::<ListOffsetsRequest>(7) else { return Ok(None) };
    let name = topic_name(&ask.tp.topic);
    let partition = ListOffsetsPartition::default()
        .with_partition_index(ask.tp.partition)
        .with_current_leader_epoch(ask.leader_epoch)
        .with_timestamp(which);
    let topic = ListOffsetsTopic::default().with_name(name).with_partitions(vec![partition]);
    let request =
        ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic]);
    let answer = connection.ask(&request, version, Duration::ZERO)?;
    let found = answer.topics.first().and_then(|topic| topic.partitions.first());
    Ok(found.filter(|found| found.error_code == 0 && found.offset >= 0).map(|found| found.offset))
}
