//! The partition table of the native reader: the state that its threads and its callers share.
//!
//! ```text
//!            plan_fetch               claim                advance_emitted     release_claim
//!  free ──────────────► requested ──────────────► claimed ─────────────► ... ──────────► free
//!                         │ paused, moved, position changed: the response is dropped
//!                         └────────────────────────────────────────────────────────────► free
//! ```
//!
//! Invariants:
//! - `emitted_offset <= position`; `emitted_offset` is the end of the last event, `position` the
//!   next offset to request;
//! - a response is used only if it was requested from `position`, so no offset is emitted twice;
//! - while a thread has a claim, no other thread requests that partition, so the chunks of one
//!   partition stay in order even if its leader moves.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::types::TopicPartition;
use crate::{Error, Result};

/// The id of a broker in its cluster.
pub(super) type NodeId = i32;

/// The state of one partition.
pub(super) struct PartitionEntry {
    pub(super) tp: TopicPartition,
    /// The topic id in the first Metadata response; nil: unknown, or the brokers have no topic ids.
    pub(super) topic_id: Uuid,
    /// The leader and its epoch.
    pub(super) leader: Option<(NodeId, i32)>,
    /// Since when the partition does not exist.
    pub(super) missing_since: Option<Instant>,
    /// The next offset to request.
    pub(super) position: i64,
    /// The epoch of the leader that appended the last record that was read; -1: unknown.
    last_fetched_epoch: i32,
    /// The end of the last event that was emitted.
    emitted_offset: i64,
    /// The position of the last end event, unless records followed it.
    emitted_end: Option<i64>,
    paused: bool,
    /// The broker whose thread emits chunks of the partition at present.
    claimed_by: Option<NodeId>,
    /// The maximum number of bytes to request; raised if one batch is larger.
    max_bytes: i32,
    /// The value of the table's counter when records last arrived: partitions are requested in this
    /// order, so that none starves.
    last_served: u64,
    /// The partition is not requested before this instant.
    backoff_until: Option<Instant>,
}

/// The request for one partition in a Fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartitionFetch {
    /// The index of the partition in the table.
    pub(super) index: usize,
    pub(super) tp: TopicPartition,
    pub(super) topic_id: Uuid,
    pub(super) leader_epoch: i32,
    pub(super) offset: i64,
    pub(super) last_fetched_epoch: i32,
    pub(super) max_bytes: i32,
}

/// The next step of a broker's thread.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FetchPlan {
    /// Send a Fetch for these partitions, in this order.
    Fetch(Vec<PartitionFetch>),
    /// Wait until this instant or until the table changes.
    Wait(Option<Instant>),
    /// The broker leads no partition.
    NoPartitions,
}

/// The state under the lock.
#[derive(Default)]
pub(super) struct TableState {
    pub(super) partitions: Vec<PartitionEntry>,
    by_name: HashMap<TopicPartition, usize>,
    /// The addresses of the brokers.
    pub(super) nodes: HashMap<NodeId, (String, u16)>,
    /// Whether the leaders must be looked up again.
    pub(super) leaders_stale: bool,
    /// Why librdkafka must continue.
    fallback_reason: Option<String>,
    /// Counts the claims, for `PartitionEntry::last_served`.
    claims: u64,
}

/// The partition table.
pub(in crate::source) struct PartitionTable {
    state: Mutex<TableState>,
    changed: Condvar,
    /// Whether `fallback_reason` is set, readable without the lock.
    is_fallback_requested: AtomicBool,
    /// The initial `max_bytes` of a partition.
    max_bytes: i32,
}

impl PartitionTable {
    pub(super) fn new(max_bytes: i32) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            is_fallback_requested: AtomicBool::new(false),
            max_bytes,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, TableState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all waiting threads.
    pub(in crate::source) fn wake(&self) {
        // The lock ensures that no thread is between its check and its wait.
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Waits for a change, for at most `timeout`.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, TableState>,
        timeout: Duration,
    ) -> MutexGuard<'a, TableState> {
        self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until `duration` has elapsed or `is_stopped` returns `true`.
    pub(super) fn sleep(&self, duration: Duration, is_stopped: impl Fn() -> bool) {
        let until = Instant::now() + duration;
        let mut state = self.lock();
        while let Some(remaining) = until.checked_duration_since(Instant::now())
            && !is_stopped()
        {
            state = self.wait(state, remaining);
        }
    }

    /// Adds partitions, each with the first offset to read.
    ///
    /// # Errors
    /// A negative offset, or a partition that is already assigned; no partition is added then.
    pub(in crate::source) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        let mut state = self.lock();
        for (index, (tp, offset)) in add.iter().enumerate() {
            let is_duplicate = add[..index].iter().any(|(other, _)| other == tp);
            if *offset < 0 || is_duplicate || state.by_name.contains_key(tp) {
                return Err(Error::internal(format!("{tp} cannot be assigned at offset {offset}"))
                    .detail("it is already assigned, or the offset is negative"));
            }
        }
        for (tp, offset) in add {
            let index = state.partitions.len();
            state.by_name.insert(tp.clone(), index);
            state.partitions.push(PartitionEntry {
                tp: tp.clone(),
                topic_id: Uuid::nil(),
                leader: None,
                missing_since: None,
                position: *offset,
                last_fetched_epoch: -1,
                emitted_offset: *offset,
                emitted_end: None,
                paused: false,
                claimed_by: None,
                max_bytes: self.max_bytes,
                last_served: 0,
                backoff_until: None,
            });
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Stops requesting partitions; records that were received and not yet emitted are dropped.
    pub(in crate::source) fn pause(&self, names: &[TopicPartition]) {
        let mut state = self.lock();
        state.for_each_named(names, |partition| partition.paused = true);
    }

    /// Requests paused partitions again.
    pub(in crate::source) fn resume(&self, names: &[TopicPartition]) {
        let mut state = self.lock();
        state.for_each_named(names, |partition| {
            if std::mem::replace(&mut partition.paused, false) {
                partition.emitted_end = None;
            }
        });
        self.changed.notify_all();
    }

    /// Stops all threads because librdkafka must continue.
    pub(in crate::source) fn request_fallback(&self, reason: String) {
        let mut state = self.lock();
        state.fallback_reason.get_or_insert(reason);
        self.is_fallback_requested.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether librdkafka must continue.
    pub(super) fn is_fallback_requested(&self) -> bool {
        self.is_fallback_requested.load(Ordering::Acquire)
    }

    /// Why librdkafka must continue.
    pub(super) fn fallback_reason(&self) -> Option<String> {
        self.lock().fallback_reason.clone()
    }

    /// The position where the events of each partition ended, and whether the partition is paused.
    pub(in crate::source) fn positions(&self) -> Vec<(TopicPartition, i64, bool)> {
        let state = self.lock();
        let partitions = state.partitions.iter();
        partitions
            .map(|partition| (partition.tp.clone(), partition.emitted_offset, partition.paused))
            .collect()
    }

    /// Marks a partition that cannot be read at present: its leader is looked up, and it backs off.
    pub(super) fn mark_leader_stale(&self, index: usize, backoff: Duration) {
        let mut state = self.lock();
        state.leaders_stale = true;
        state.partitions[index].backoff_until = Some(Instant::now() + backoff);
        self.changed.notify_all();
    }

    /// Requests a lookup of all leaders, because a broker is unreachable.
    pub(super) fn mark_all_leaders_stale(&self) {
        self.lock().leaders_stale = true;
        self.changed.notify_all();
    }

    /// Delays the next request for a partition. Its leader may not know the epoch of what was read.
    pub(super) fn back_off(&self, index: usize, backoff: Duration) {
        let mut state = self.lock();
        state.partitions[index].backoff_until = Some(Instant::now() + backoff);
        state.partitions[index].last_fetched_epoch = -1;
    }

    /// Records that a chunk up to `next_offset` is emitted. Returns `false` if the partition is
    /// paused, and the rest of the claim must be dropped.
    pub(super) fn advance_emitted(&self, index: usize, next_offset: i64) -> bool {
        let mut state = self.lock();
        let partition = &mut state.partitions[index];
        if partition.paused {
            partition.position = partition.emitted_offset;
            partition.last_fetched_epoch = -1;
            return false;
        }
        debug_assert!(partition.emitted_offset < next_offset && next_offset <= partition.position);
        partition.emitted_offset = next_offset;
        true
    }

    /// Releases a claim. `end_offset`: the end of the partition when the broker responded. Returns the
    /// position at which the end of the partition must be emitted now.
    pub(super) fn release_claim(&self, index: usize, end_offset: i64) -> Option<i64> {
        let mut state = self.lock();
        let partition = &mut state.partitions[index];
        let claimer = partition.claimed_by.take();
        if claimer != partition.leader.map(|(leader, _)| leader) {
            // The leader changed: the thread of the new leader waits for this.
            self.changed.notify_all();
        }
        let at_end = end_offset >= 0 && partition.position >= end_offset && !partition.paused;
        if !at_end || partition.emitted_end == Some(partition.position) {
            return None;
        }
        partition.emitted_offset = partition.position;
        partition.emitted_end = Some(partition.position);
        Some(partition.position)
    }
}

impl TableState {
    fn for_each_named(
        &mut self,
        names: &[TopicPartition],
        mut change: impl FnMut(&mut PartitionEntry),
    ) {
        for tp in names {
            if let Some(index) = self.by_name.get(tp) {
                change(&mut self.partitions[*index]);
            }
        }
    }

    /// Whether leaders must be looked up.
    pub(super) fn needs_leader_lookup(&self) -> bool {
        self.leaders_stale || self.partitions.iter().any(|partition| partition.leader.is_none())
    }

    /// The topics of the assigned partitions.
    pub(super) fn topics(&self) -> BTreeSet<Arc<str>> {
        self.partitions.iter().map(|partition| partition.tp.topic.clone()).collect()
    }

    /// The brokers that lead a partition.
    pub(super) fn leader_nodes(&self) -> BTreeSet<NodeId> {
        self.partitions.iter().filter_map(|partition| Some(partition.leader?.0)).collect()
    }

    /// Plans the next step of a broker's thread.
    pub(super) fn plan_fetch(&self, node: NodeId) -> FetchPlan {
        let now = Instant::now();
        let mut wake_at: Option<Instant> = None;
        let mut leads_any = false;
        let mut due = Vec::new();
        for (index, partition) in self.partitions.iter().enumerate() {
            let Some((leader, leader_epoch)) = partition.leader else { continue };
            if leader != node {
                continue;
            }
            leads_any = true;
            if partition.paused || partition.claimed_by.is_some_and(|claimer| claimer != node) {
                continue;
            }
            if let Some(until) = partition.backoff_until.filter(|until| *until > now) {
                wake_at = Some(wake_at.map_or(until, |wake_at| wake_at.min(until)));
                continue;
            }
            due.push((partition.last_served, index, leader_epoch));
        }
        if due.is_empty() {
            return if leads_any { FetchPlan::Wait(wake_at) } else { FetchPlan::NoPartitions };
        }
        due.sort_unstable();
        let fetch = |(_, index, leader_epoch): (u64, usize, i32)| {
            let PartitionEntry { tp, topic_id, position, last_fetched_epoch, max_bytes, .. } =
                &self.partitions[index];
            let (tp, topic_id, offset) = (tp.clone(), *topic_id, *position);
            let (last_fetched_epoch, max_bytes) = (*last_fetched_epoch, *max_bytes);
            PartitionFetch {
                index,
                tp,
                topic_id,
                leader_epoch,
                offset,
                last_fetched_epoch,
                max_bytes,
            }
        };
        FetchPlan::Fetch(due.into_iter().map(fetch).collect())
    }

    /// Whether a response to `request` may still be used.
    pub(super) fn is_current(&self, node: NodeId, request: &PartitionFetch) -> bool {
        let partition = &self.partitions[request.index];
        partition.position == request.offset
            && !partition.paused
            && partition.claimed_by.is_none_or(|claimer| claimer == node)
    }

    /// Claims a partition for a response whose batches end at `end`, with the leader epoch of the
    /// last batch. Returns the position where the last event ended.
    pub(super) fn claim(
        &mut self,
        node: NodeId,
        request: &PartitionFetch,
        end: Option<(i64, i32)>,
    ) -> i64 {
        self.claims += 1;
        let partition = &mut self.partitions[request.index];
        debug_assert!(partition.emitted_offset <= partition.position);
        partition.claimed_by = Some(node);
        if let Some((next_offset, epoch)) = end.filter(|(next, _)| *next > partition.position) {
            partition.position = next_offset;
            partition.last_fetched_epoch = epoch;
            partition.emitted_end = None;
            partition.last_served = self.claims;
        }
        partition.emitted_offset
    }

    /// Raises the number of bytes to request, because one batch did not fit.
    pub(super) fn raise_max_bytes(&mut self, index: usize, batch_bytes: Option<usize>) {
        let partition = &mut self.partitions[index];
        let needed = batch_bytes.and_then(|bytes| i32::try_from(bytes).ok());
        let doubled = partition.max_bytes.saturating_mul(2);
        partition.max_bytes = needed.map_or(doubled, |needed| needed.max(partition.max_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = 1;

    fn table(count: i32) -> (PartitionTable, Vec<TopicPartition>) {
        let table = PartitionTable::new(1000);
        let names: Vec<_> = (0..count).map(|number| TopicPartition::new("t", number)).collect();
        let add: Vec<_> = names.iter().map(|tp| (tp.clone(), 10)).collect();
        table.assign(&add).unwrap();
        table.lock().partitions.iter_mut().for_each(|p| p.leader = Some((NODE, 5)));
        (table, names)
    }

    fn planned_fetches(table: &PartitionTable, node: NodeId) -> Vec<PartitionFetch> {
        match table.lock().plan_fetch(node) {
            FetchPlan::Fetch(fetches) => fetches,
            _ => vec![],
        }
    }

    #[test]
    fn a_partition_is_assigned_once() {
        let (table, names) = table(1);
        for bad in [vec![(names[0].clone(), 3)], vec![(TopicPartition::new("u", 0), -1)]] {
            assert!(table.assign(&bad).is_err());
        }
        let duplicate = vec![(TopicPartition::new("u", 0), 1), (TopicPartition::new("u", 0), 2)];
        assert!(table.assign(&duplicate).is_err());
        assert_eq!(table.positions(), [(names[0].clone(), 10, false)]);
    }

    #[test]
    fn a_partition_that_received_records_is_requested_last() {
        let (table, _) = table(3);
        let first = planned_fetches(&table, NODE);
        assert_eq!(first.iter().map(|fetch| fetch.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((first[0].offset, first[0].leader_epoch, first[0].max_bytes), (10, 5, 1000));
        table.lock().claim(NODE, &first[0], Some((20, 0)));
        table.lock().claim(NODE, &first[1], None); // no records
        let order: Vec<_> =
            planned_fetches(&table, NODE).iter().map(|fetch| (fetch.index, fetch.offset)).collect();
        assert_eq!(order, [(1, 10), (2, 10), (0, 20)]);
    }

    #[test]
    fn an_end_is_emitted_once_and_again_after_records_or_a_resume() {
        let (table, names) = table(1);
        let fetch_at =
            |offset| PartitionFetch { offset, ..planned_fetches(&table, NODE)[0].clone() };
        let first = fetch_at(10);
        table.lock().claim(NODE, &first, Some((20, 0)));
        assert!(table.advance_emitted(0, 18));
        assert_eq!(table.release_claim(0, 25), None, "more records follow");
        assert_eq!(table.release_claim(0, 20), Some(20));
        assert_eq!(table.release_claim(0, 20), None);
        let second = fetch_at(20);
        table.lock().claim(NODE, &second, Some((22, 0))); // markers only
        assert_eq!(table.release_claim(0, 22), Some(22));
        table.pause(&names);
        table.resume(&names);
        assert_eq!(table.release_claim(0, 22), Some(22));
        assert_eq!(table.positions()[0].1, 22);
    }

    #[test]
    fn a_pause_drops_the_claim_and_a_resume_continues_after_the_last_event() {
        let (table, names) = table(1);
        let fetch = planned_fetches(&table, NODE).remove(0);
        table.lock().claim(NODE, &fetch, Some((30, 0)));
        let next = planned_fetches(&table, NODE).remove(0);
        assert_eq!(next.offset, 30);
        assert!(table.advance_emitted(0, 20));
        table.pause(&names);
        assert!(!table.advance_emitted(0, 30));
        assert_eq!(table.release_claim(0, 30), None);
        assert!(planned_fetches(&table, NODE).is_empty());
        table.resume(&names);
        assert!(!table.lock().is_current(NODE, &next), "it was requested from offset 30");
        assert_eq!(planned_fetches(&table, NODE)[0].offset, 20);
    }

    #[test]
    fn a_partition_that_moves_waits_until_its_chunks_are_emitted() {
        let (table, _) = table(1);
        let fetch = planned_fetches(&table, NODE).remove(0);
        table.lock().claim(NODE, &fetch, Some((30, 0)));
        table.lock().partitions[0].leader = Some((2, 6));
        assert!(planned_fetches(&table, 2).is_empty() && planned_fetches(&table, NODE).is_empty());
        assert!(!table.lock().is_current(2, &fetch));
        assert!(table.advance_emitted(0, 30));
        table.release_claim(0, 100);
        assert_eq!(planned_fetches(&table, 2)[0].offset, 30);
    }

    #[test]
    fn a_batch_larger_than_the_request_raises_the_request() {
        let (table, _) = table(1);
        table.lock().raise_max_bytes(0, Some(5000));
        assert_eq!(planned_fetches(&table, NODE)[0].max_bytes, 5000);
        table.lock().raise_max_bytes(0, None);
        assert_eq!(planned_fetches(&table, NODE)[0].max_bytes, 10_000);
        table.back_off(0, Duration::from_secs(60));
        assert!(matches!(table.lock().plan_fetch(NODE), FetchPlan::Wait(Some(_))));
        assert_eq!(table.lock().plan_fetch(7), FetchPlan::NoPartitions);
    }
}
