//! The thread of one broker: it sends Fetch requests, each before the records of the previous
//! response are read.
//!
//! Invariants:
//! - at most one Fetch is in flight while no records are read, and at most one while the records
//!   of the previous response are read;
//! - claimed batches are emitted, or dropped because the partition is paused or the reader stops:
//!   losing the connection loses no claim.

use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{FetchRequest, FetchResponse, ListOffsetsRequest};

use crate::source::config::Isolation;
use crate::source::event::Event;
use crate::source::native::aborted_transactions::AbortedTransactions;
use crate::source::native::chunks::{self, BadBatch, PartitionBatches};
use crate::source::native::connect;
use crate::source::native::diagnostics::{ClientError, ClientResult, undecodable};
use crate::source::native::fetch_context::FetchContext;
use crate::source::native::partition_table::{FetchPlan, NodeId, PartitionFetch};
use crate::source::native::wire::{Connection, PendingResponse, topic_name};
use crate::{Error, Kind};

/// The highest version of Fetch in use: the first one that identifies topics by id.
const FETCH_VERSION: i16 = 13;
/// The highest version of Fetch that identifies topics by name.
const FETCH_VERSION_BY_NAME: i16 = 12;
/// ListOffsets: the timestamp that stands for the first available offset.
const EARLIEST: i64 = -2;
/// ListOffsets: the timestamp that stands for the offset of the next record to be written.
const LATEST: i64 = -1;

/// An unused connection is closed after this time, before the broker closes it (10 minutes).
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// A Fetch that was sent.
struct InFlightFetch {
    pending: PendingResponse,
    requests: Vec<PartitionFetch>,
}

/// The part of a response that belongs to one partition, after the partition was claimed.
struct ClaimedPartition {
    request: PartitionFetch,
    batches: Option<PartitionBatches>,
    /// The end of the partition when the broker responded.
    end_offset: i64,
}

/// The claims of one response.
struct ClaimedResponse {
    claims: Vec<ClaimedPartition>,
    /// Partitions whose requested offset the broker does not have.
    out_of_range: Vec<PartitionFetch>,
}

/// Reads the partitions that this broker leads, until the reader stops.
pub(super) fn run(context: &FetchContext<'_>, node: NodeId) {
    let (min_backoff, max_backoff) = context.settings.reconnect_backoff;
    let mut backoff = min_backoff;
    while wait_until_leading(context, node) {
        let mut received = false;
        match run_connection(context, node, &mut received) {
            Ok(()) => {}
            Err(ClientError::Retriable(reason)) => {
                context.outages.record_unreachable(&format!("broker {node}"), &reason);
                context.table.mark_all_leaders_stale();
                if received {
                    backoff = min_backoff;
                }
                context.table.sleep(backoff, || context.is_stopped());
                backoff = (backoff * 2).min(max_backoff);
            }
            Err(error) => context.stop_on(error),
        }
    }
}

/// Waits until the broker leads a partition. Returns `false` if the reader stops.
fn wait_until_leading(context: &FetchContext<'_>, node: NodeId) -> bool {
    let mut state = context.table.lock();
    while !context.is_stopped() {
        if state.plan_fetch(node) != FetchPlan::NoPartitions {
            return true;
        }
        context.outages.record_reachable(&format!("broker {node}"));
        state = context.table.wait(state, Duration::from_secs(1));
    }
    false
}

/// Fetches over one connection. `Ok`: the connection is stale or no longer needed. Sets
/// `received` after the first response.
fn run_connection(
    context: &FetchContext<'_>,
    node: NodeId,
    received: &mut bool,
) -> ClientResult<()> {
    let address = context.table.lock().nodes.get(&node).cloned();
    let (host, port) = address.ok_or_else(|| {
        ClientError::Retriable("the metadata does not contain its address".to_owned())
    })?;
    fetch_from(context, node, (&host, port), received).map_err(|error| error.at(&host, port))
}

fn fetch_from(
    context: &FetchContext<'_>,
    node: NodeId,
    (host, port): (&str, u16),
    received: &mut bool,
) -> ClientResult<()> {
    let mut connection = connect::open(&context.connections, host, port)?;
    context.outages.record_reachable(&format!("broker {node}"));
    let mut in_flight = None;
    loop {
        let fetch = match in_flight.take() {
            Some(fetch) => fetch,
            None if connection.is_stale() => return Ok(()),
            None => match wait_and_send_fetch(context, node, &mut connection)? {
                Some(fetch) => fetch,
                None => return Ok(()),
            },
        };
        let response = connection.receive::<FetchRequest>(fetch.pending)?;
        *received = true;
        let claimed = claim_response(context, node, &fetch.requests, response)?;
        // The broker works on the next Fetch while the records of this response are read.
        let send_ahead =
            claimed.out_of_range.is_empty() && context.sender.has_room() && !connection.is_stale();
        let next = match send_ahead.then(|| context.table.lock().plan_fetch(node)) {
            Some(FetchPlan::Fetch(requests)) => {
                send_fetch(context, &mut connection, requests).map(Some)
            }
            _ => Ok(None),
        };
        for claim in claimed.claims {
            emit_claim(context, claim)?;
        }
        in_flight = next?;
        for request in claimed.out_of_range {
            check_offset_range(context, &mut connection, &request)?;
        }
    }
}

/// Waits for room in the queue and for a partition to fetch, and sends a Fetch. `None`: the broker
/// leads no partition any more, or there was nothing to fetch for a long time.
fn wait_and_send_fetch(
    context: &FetchContext<'_>,
    node: NodeId,
    connection: &mut Connection<'_>,
) -> ClientResult<Option<InFlightFetch>> {
    let started = Instant::now();
    loop {
        if !context.sender.wait_for_room() || context.is_stopped() {
            return Err(ClientError::Stopped);
        }
        if started.elapsed() >= IDLE_TIMEOUT {
            return Ok(None);
        }
        let state = context.table.lock();
        match state.plan_fetch(node) {
            FetchPlan::Fetch(requests) => {
                drop(state);
                return send_fetch(context, connection, requests).map(Some);
            }
            FetchPlan::NoPartitions => return Ok(None),
            FetchPlan::Wait(until) => {
                let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
                drop(context.table.wait(state, rest.unwrap_or(Duration::from_secs(1))));
            }
        }
    }
}

/// Sends a Fetch.
fn send_fetch(
    context: &FetchContext<'_>,
    connection: &mut Connection<'_>,
    requests: Vec<PartitionFetch>,
) -> ClientResult<InFlightFetch> {
    let by_id = requests.iter().all(|request| !request.topic_id.is_nil());
    let max_version = if by_id { FETCH_VERSION } else { FETCH_VERSION_BY_NAME };
    let version = connection.require_version::<FetchRequest>(max_version)?;
    let mut topics: Vec<FetchTopic> = Vec::new();
    let mut last_topic = None;
    for request in &requests {
        // Adjacent partitions of one topic share an entry. The order is kept, because the broker
        // fills the response in the order of the request.
        if last_topic != Some(&request.tp.topic) {
            let name = topic_name(&request.tp.topic);
            topics.push(FetchTopic::default().with_topic(name).with_topic_id(request.topic_id));
        }
        last_topic = Some(&request.tp.topic);
        let partition = FetchPartition::default()
            .with_partition(request.tp.partition)
            .with_current_leader_epoch(request.leader_epoch)
            .with_fetch_offset(request.offset)
            .with_last_fetched_epoch(request.last_fetched_epoch)
            .with_partition_max_bytes(request.max_bytes);
        if let Some(topic) = topics.last_mut() {
            topic.partitions.push(partition);
        }
    }
    let settings = context.settings;
    let largest = requests.iter().map(|request| request.max_bytes).max().unwrap_or_default();
    let fetch = FetchRequest::default()
        .with_max_wait_ms(settings.fetch_wait.as_millis().try_into().unwrap_or(i32::MAX))
        .with_min_bytes(settings.min_bytes)
        .with_max_bytes(settings.max_bytes.max(largest))
        .with_isolation_level(i8::from(context.isolation == Isolation::Committed))
        .with_topics(topics);
    let pending = connection.send(&fetch, version, settings.fetch_wait)?;
    Ok(InFlightFetch { pending, requests })
}

/// Scans the headers of the batches in a response and claims the partitions.
fn claim_response(
    context: &FetchContext<'_>,
    node: NodeId,
    requests: &[PartitionFetch],
    response: FetchResponse,
) -> ClientResult<ClaimedResponse> {
    if let Some(error) = ResponseError::try_from_code(response.error_code) {
        return Err(ClientError::Retriable(format!("the broker rejected a Fetch: {error}")));
    }
    // All partitions are matched before any is claimed, because a claim must be emitted.
    let mut matched = Vec::with_capacity(requests.len());
    let mut next = 0;
    for topic in response.responses {
        let FetchableTopicResponse { topic: name, topic_id, partitions, .. } = topic;
        for data in partitions {
            let is_match = |request: &PartitionFetch| {
                request.tp.partition == data.partition_index
                    && (*name.0 == *request.tp.topic
                        || name.0.is_empty() && topic_id == request.topic_id)
            };
            // Partitions are usually in the order of the request.
            let found =
                (next..requests.len()).chain(0..next).find(|index| is_match(&requests[*index]));
            let index = found
                .ok_or_else(|| undecodable("it contains a partition that was not requested"))?;
            next = index + 1;
            matched.push((&requests[index], data));
        }
    }
    let mut claimed = ClaimedResponse { claims: Vec::new(), out_of_range: Vec::new() };
    for (request, data) in matched {
        claim_partition(context, node, request, data, &mut claimed)?;
    }
    Ok(claimed)
}

fn claim_partition(
    context: &FetchContext<'_>,
    node: NodeId,
    request: &PartitionFetch,
    data: PartitionData,
    claimed: &mut ClaimedResponse,
) -> ClientResult<()> {
    let mut state = context.table.lock();
    if !state.is_current(node, request) {
        return Ok(());
    }
    if let Some(error) = ResponseError::try_from_code(data.error_code) {
        drop(state);
        return handle_partition_error(context, request, error, claimed);
    }
    if data.diverging_epoch.epoch >= 0 {
        let end_offset = data.diverging_epoch.end_offset;
        return Err(ClientError::Fatal(diverged_log_error(request, end_offset)));
    }
    let records = data.records.unwrap_or_default();
    let scan = chunks::scan_batches(&records).map_err(|malformed| {
        let reason = malformed.0.to_owned();
        bad_batch_error(request, BadBatch { offset: request.offset, reason })
    })?;
    if scan.complete_bytes == 0 {
        if let Some(format) = scan.old_format {
            let reason = format!("{} contains messages of format {format}", request.tp);
            return Err(ClientError::Unsupported(reason));
        }
        if !records.is_empty() {
            state.raise_max_bytes(request.index, scan.next_batch_bytes);
        }
    }
    let end_offset = match context.isolation {
        Isolation::Committed => data.last_stable_offset,
        Isolation::Uncommitted => data.high_watermark,
    };
    let emitted_offset = state.claim(node, request, scan.end);
    drop(state);
    let aborted = match context.isolation {
        Isolation::Committed => data.aborted_transactions.unwrap_or_default(),
        Isolation::Uncommitted => Vec::new(),
    };
    let aborted = aborted
        .iter()
        .map(|transaction| (transaction.first_offset, transaction.producer_id.0))
        .collect();
    let batches = (scan.complete_bytes > 0).then(|| PartitionBatches {
        partition: request.tp.clone(),
        bytes: records.slice(..scan.complete_bytes),
        record_count: scan.record_count,
        emitted_offset,
        from_offset: request.offset,
        aborted: AbortedTransactions::new(aborted),
        check_crcs: context.settings.check_crcs,
    });
    claimed.claims.push(ClaimedPartition { request: request.clone(), batches, end_offset });
    Ok(())
}

/// The error for a leader whose log differs from the log that was read: a replica that lacked the
/// last records became the leader.
fn diverged_log_error(request: &PartitionFetch, end_offset: i64) -> Error {
    let message = format!("{} lost records that were already read", request.tp);
    Error::new(Kind::Recovery, message)
        .detail(format!(
            "read up to offset {}, but after an unclean leader election the new leader has other \
             records, or none, from offset {end_offset} on",
            request.offset
        ))
        .hint(
            "history contains the records that were read; `millstream rebuild` recomputes state \
             and results from the records that Kafka has now",
        )
}

/// Handles the error code of one partition.
fn handle_partition_error(
    context: &FetchContext<'_>,
    request: &PartitionFetch,
    error: ResponseError,
    claimed: &mut ClaimedResponse,
) -> ClientResult<()> {
    match error {
        ResponseError::OffsetOutOfRange => claimed.out_of_range.push(request.clone()),
        // The next Metadata response shows whether the topic still exists and which broker leads.
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
            tracing::debug!(partition = %request.tp, "looking up the leader: {error}");
            context.table.mark_leader_stale(request.index, context.settings.retry_backoff);
        }
        _ => {
            let message = format!("cannot read {} at offset {}", request.tp, request.offset);
            let fatal = Error::new(Kind::Kafka, message).detail(error.to_string());
            return Err(ClientError::Fatal(match error {
                ResponseError::TopicAuthorizationFailed => {
                    fatal.hint("this Kafka user lacks a permission (ACL)")
                }
                _ => fatal,
            }));
        }
    }
    Ok(())
}

/// Reads the records of a claim and emits them, and the end of the partition if it was reached.
fn emit_claim(context: &FetchContext<'_>, claim: ClaimedPartition) -> ClientResult<()> {
    let ClaimedPartition { request, batches, end_offset } = claim;
    let mut outcome = Ok(());
    if let Some(batches) = batches {
        outcome = batches.emit_chunks(|chunk| {
            context.sender.wait_for_room()
                && context.table.advance_emitted(request.index, chunk.next_offset)
                && context.sender.send(Event::Chunk(chunk))
        });
    }
    if let Err(bad) = outcome {
        return Err(bad_batch_error(&request, bad));
    }
    if context.is_stopped() {
        return Err(ClientError::Stopped);
    }
    if let Some(position) = context.table.release_claim(request.index, end_offset) {
        context.sender.send(Event::End { partition: request.tp, position });
    }
    Ok(())
}

fn bad_batch_error(request: &PartitionFetch, bad: BadBatch) -> ClientError {
    let BadBatch { offset, reason } = bad;
    let error = Error::new(Kind::Kafka, format!("cannot read {} at offset {offset}", request.tp));
    ClientError::Fatal(error.detail(format!("corrupt batch: {reason}")).hint(
        "a disk of the broker or the network corrupted it; another replica may have it intact. \
         --kafka millstream.reader=rdkafka reads with another client",
    ))
}

/// Handles OFFSET_OUT_OF_RANGE: the offset was deleted, does not exist yet, or the broker has just
/// become the leader and does not know its end.
fn check_offset_range(
    context: &FetchContext<'_>,
    connection: &mut Connection<'_>,
    request: &PartitionFetch,
) -> ClientResult<()> {
    let first = list_offset(connection, request, EARLIEST)?;
    let next = list_offset(connection, request, LATEST)?;
    let (Some(first), Some(next)) = (first, next) else {
        context.table.mark_leader_stale(request.index, context.settings.retry_backoff);
        return Ok(());
    };
    let requested = request.offset;
    if (first..=next).contains(&requested) {
        context.table.back_off(request.index, context.settings.retry_backoff);
        return Ok(());
    }
    let message = format!("offset {requested} of {} is out of range", request.tp);
    Err(ClientError::Fatal(
        Error::new(Kind::Recovery, message)
            .detail(format!("requested offset {requested}; Kafka has {first} to {next}"))
            .hint(
                "retention deleted records before they were processed, or the topic was recreated. \
                 `run --on-gap skip` continues at the first available offset and records the gap; \
                 `millstream rebuild` uses the rows in history",
            ),
    ))
}

/// Requests the first or the next offset of a partition; `None`: the broker has no valid response.
fn list_offset(
    connection: &mut Connection<'_>,
    request: &PartitionFetch,
    timestamp: i64,
) -> ClientResult<Option<i64>> {
    let Some(version) = connection.supported_version::<ListOffsetsRequest>(7) else {
        return Ok(None);
    };
    let name = topic_name(&request.tp.topic);
    let partition = ListOffsetsPartition::default()
        .with_partition_index(request.tp.partition)
        .with_current_leader_epoch(request.leader_epoch)
        .with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(name).with_partitions(vec![partition]);
    let list = ListOffsetsRequest::default().with_replica_id((-1).into()).with_topics(vec![topic]);
    let response = connection.call(&list, version, Duration::ZERO)?;
    let found = response.topics.first().and_then(|topic| topic.partitions.first());
    Ok(found.filter(|found| found.error_code == 0 && found.offset >= 0).map(|found| found.offset))
}
