//! The partitions that the native reader reads: what its threads and its callers share.
//!
//! ```text
//!            plan                 claim                    advance          settle
//!  free ──────────────► asked ──────────────► claimed ─────────────► ... ──────────► free
//!                         │ paused, moved, position changed: the answer is dropped
//!                         └────────────────────────────────────────────────────────► free
//! ```
//!
//! Invariants:
//! - `told <= position`; `told` is where the last event ended, `position` the next to ask for;
//! - an answer counts only if it was asked from `position`: so no offset comes twice;
//! - while a thread holds a claim, no other thread asks for that partition: so chunks of one
//!   partition never overtake each other, wherever its leader moves.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::types::TopicPartition;
use crate::{Error, Result};

/// A broker's number in its cluster.
pub(super) type NodeId = i32;

/// One partition.
pub(super) struct Partition {
    pub(super) tp: TopicPartition,
    /// The topic's id when it was first seen; nil: unknown, or the brokers have none.
    pub(super) topic_id: Uuid,
    /// Its leader and the leader's epoch.
    pub(super) leader: Option<(NodeId, i32)>,
    /// Since when there is no such partition.
    pub(super) missing_since: Option<Instant>,
    /// The next offset to ask for.
    pub(super) position: i64,
    /// The epoch of the leader that appended what is before it; -1: nothing was read yet.
    read_epoch: i32,
    /// The end of the last event.
    told: i64,
    /// Where its end was told last, unless something came since.
    end_told: Option<i64>,
    paused: bool,
    /// The thread that gives chunks of it at present.
    claimed_by: Option<NodeId>,
    /// The most bytes to ask for; grows where one batch is larger.
    bytes: i32,
    /// When it last got something, as a count: who got something waits behind the others.
    served: u64,
    /// Not to be asked for before this.
    rests_until: Option<Instant>,
}

/// What to ask for, of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    /// Its place in the table.
    pub(super) index: usize,
    pub(super) tp: TopicPartition,
    pub(super) topic_id: Uuid,
    pub(super) leader_epoch: i32,
    pub(super) offset: i64,
    pub(super) read_epoch: i32,
    pub(super) bytes: i32,
}

/// What a broker's thread should do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Ask for these; the first ones first.
    Ask(Vec<Ask>),
    /// Nothing before this instant, or before something changes.
    Rest(Option<Instant>),
    /// No partition is led by it.
    Nothing,
}

/// All that is under the lock.
#[derive(Default)]
pub(super) struct State {
    pub(super) partitions: Vec<Partition>,
    by_name: HashMap<TopicPartition, usize>,
    /// Where the brokers are.
    pub(super) nodes: HashMap<NodeId, (String, u16)>,
    /// Whether somebody doubts who leads what.
    pub(super) doubted: bool,
    /// Why another reader has to go on.
    beyond: Option<String>,
    served: u64,
}

/// The table.
pub(in crate::source) struct Table {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether `beyond` is set, without the lock.
    is_beyond: AtomicBool,
    /// The most to ask for of one partition.
    bytes: i32,
}

impl Table {
    pub(super) fn new(bytes: i32) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            is_beyond: AtomicBool::new(false),
            bytes,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits.
    pub(in crate::source) fn wake(&self) {
        // Under the lock: nobody is between looking and waiting.
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Waits for a change, up to `longest`.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        longest: Duration,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, longest).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until `time` has gone by or `stopped`.
    pub(super) fn sleep(&self, time: Duration, stopped: impl Fn() -> bool) {
        let until = Instant::now() + time;
        let mut state = self.lock();
        while let Some(rest) = until.checked_duration_since(Instant::now())
            && !stopped()
        {
            state = self.wait(state, rest);
        }
    }

    /// Adds partitions, each read from an offset on.
    ///
    /// # Errors
    /// A negative offset, or a partition that is read already; none is added then.
    pub(in crate::source) fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        let mut state = self.lock();
        for (number, (tp, offset)) in add.iter().enumerate() {
            let twice = add[..number].iter().any(|(other, _)| other == tp);
            if *offset < 0 || twice || state.by_name.contains_key(tp) {
                return Err(Error::internal(format!(
                    "{tp} cannot be assigned from offset {offset} on"
                ))
                .detail("it is read already, or the offset is negative"));
            }
        }
        for (tp, offset) in add {
            let index = state.partitions.len();
            state.by_name.insert(tp.clone(), index);
            state.partitions.push(Partition {
                tp: tp.clone(),
                topic_id: Uuid::nil(),
                leader: None,
                missing_since: None,
                position: *offset,
                read_epoch: -1,
                told: *offset,
                end_told: None,
                paused: false,
                claimed_by: None,
                bytes: self.bytes,
                served: 0,
                rests_until: None,
            });
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Stops asking for partitions; what was answered and not yet told is dropped.
    pub(in crate::source) fn pause(&self, wanted: &[TopicPartition]) {
        let mut state = self.lock();
        state.named(wanted, |partition| partition.paused = true);
    }

    /// Asks for partitions again.
    pub(in crate::source) fn resume(&self, wanted: &[TopicPartition]) {
        let mut state = self.lock();
        state.named(wanted, |partition| {
            if std::mem::replace(&mut partition.paused, false) {
                partition.end_told = None;
            }
        });
        self.changed.notify_all();
    }

    /// Another reader has to go on: everybody stops.
    pub(in crate::source) fn give_up(&self, why: String) {
        let mut state = self.lock();
        state.beyond.get_or_insert(why);
        self.is_beyond.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether another reader has to go on.
    pub(super) fn is_beyond(&self) -> bool {
        self.is_beyond.load(Ordering::Acquire)
    }

    /// Why another reader has to go on.
    pub(super) fn beyond(&self) -> Option<String> {
        self.lock().beyond.clone()
    }

    /// Where every partition's events ended, and whether it is paused. For who goes on.
    pub(in crate::source) fn positions(&self) -> Vec<(TopicPartition, i64, bool)> {
        let state = self.lock();
        let partitions = state.partitions.iter();
        partitions
            .map(|partition| (partition.tp.clone(), partition.told, partition.paused))
            .collect()
    }

    /// A partition cannot be read at present: its leader is looked up, and it rests.
    pub(super) fn doubt(&self, index: usize, rest: Duration) {
        let mut state = self.lock();
        state.doubted = true;
        state.partitions[index].rests_until = Some(Instant::now() + rest);
        self.changed.notify_all();
    }

    /// A broker does not answer: whether it leads what it led is looked up.
    pub(super) fn doubt_all(&self) {
        self.lock().doubted = true;
        self.changed.notify_all();
    }

    /// A partition rests. Its leader may not remember the epoch of what was read.
    pub(super) fn rest(&self, index: usize, rest: Duration) {
        let mut state = self.lock();
        state.partitions[index].rests_until = Some(Instant::now() + rest);
        state.partitions[index].read_epoch = -1;
    }

    /// A chunk up to `next_offset` is to be told. False: the partition is paused, and the rest of
    /// what was claimed is to be dropped.
    pub(super) fn advance(&self, index: usize, next_offset: i64) -> bool {
        let mut state = self.lock();
        let partition = &mut state.partitions[index];
        if partition.paused {
            partition.position = partition.told;
            partition.read_epoch = -1;
            return false;
        }
        debug_assert!(partition.told < next_offset && next_offset <= partition.position);
        partition.told = next_offset;
        true
    }

    /// Gives a claim back. `end`: where the partition ended when it was answered. Returns the
    /// position at which its end is to be told now.
    pub(super) fn settle(&self, index: usize, end: i64) -> Option<i64> {
        let mut state = self.lock();
        let partition = &mut state.partitions[index];
        let holder = partition.claimed_by.take();
        if holder != partition.leader.map(|(leader, _)| leader) {
            // It moved: its new leader's thread waits for this.
            self.changed.notify_all();
        }
        let at_end = end >= 0 && partition.position >= end && !partition.paused;
        if !at_end || partition.end_told == Some(partition.position) {
            return None;
        }
        partition.told = partition.position;
        partition.end_told = Some(partition.position);
        Some(partition.position)
    }
}

impl State {
    fn named(&mut self, wanted: &[TopicPartition], mut change: impl FnMut(&mut Partition)) {
        for tp in wanted {
            if let Some(index) = self.by_name.get(tp) {
                change(&mut self.partitions[*index]);
            }
        }
    }

    /// Whether leaders must be looked up.
    pub(super) fn wants_leaders(&self) -> bool {
        self.doubted || self.partitions.iter().any(|partition| partition.leader.is_none())
    }

    /// The topics that are read.
    pub(super) fn topics(&self) -> BTreeSet<std::sync::Arc<str>> {
        self.partitions.iter().map(|partition| partition.tp.topic.clone()).collect()
    }

    /// The brokers that lead something.
    pub(super) fn leaders(&self) -> BTreeSet<NodeId> {
        self.partitions.iter().filter_map(|partition| Some(partition.leader?.0)).collect()
    }

    /// What to ask a broker for.
    pub(super) fn plan(&self, node: NodeId) -> Plan {
        let now = Instant::now();
        let mut wakes: Option<Instant> = None;
        let mut any = false;
        let mut due = Vec::new();
        for (index, partition) in self.partitions.iter().enumerate() {
            let Some((leader, leader_epoch)) = partition.leader else { continue };
            if leader != node {
                continue;
            }
            any = true;
            if partition.paused || partition.claimed_by.is_some_and(|holder| holder != node) {
                continue;
            }
            if let Some(until) = partition.rests_until.filter(|until| *until > now) {
                wakes = Some(wakes.map_or(until, |wakes| wakes.min(until)));
                continue;
            }
            due.push((partition.served, index, leader_epoch));
        }
        if due.is_empty() {
            return if any { Plan::Rest(wakes) } else { Plan::Nothing };
        }
        due.sort_unstable();
        let ask = |(_, index, leader_epoch): (u64, usize, i32)| {
            let Partition { tp, topic_id, position, read_epoch, bytes, .. } =
                &self.partitions[index];
            let (tp, topic_id, offset) = (tp.clone(), *topic_id, *position);
            let (read_epoch, bytes) = (*read_epoch, *bytes);
            Ask { index, tp, topic_id, leader_epoch, offset, read_epoch, bytes }
        };
        Plan::Ask(due.into_iter().map(ask).collect())
    }

    /// Whether an answer to `ask` counts still.
    pub(super) fn counts(&self, node: NodeId, ask: &Ask) -> bool {
        let partition = &self.partitions[ask.index];
        partition.position == ask.offset
            && !partition.paused
            && partition.claimed_by.is_none_or(|holder| holder == node)
    }

    /// Takes an answer whose batches end at `end`, the last of them of that leader epoch. Returns
    /// where the last event ended.
    pub(super) fn claim(&mut self, node: NodeId, ask: &Ask, end: Option<(i64, i32)>) -> i64 {
        self.served += 1;
        let partition = &mut self.partitions[ask.index];
        debug_assert!(partition.told <= partition.position);
        partition.claimed_by = Some(node);
        if let Some((next_offset, epoch)) = end.filter(|(next, _)| *next > partition.position) {
            partition.position = next_offset;
            partition.read_epoch = epoch;
            partition.end_told = None;
            partition.served = self.served;
        }
        partition.told
    }

    /// One batch did not fit: asks for more from now on.
    pub(super) fn ask_for_more(&mut self, index: usize, batch_bytes: Option<usize>) {
        let partition = &mut self.partitions[index];
        let wanted = batch_bytes.and_then(|bytes| i32::try_from(bytes).ok());
        let doubled = partition.bytes.saturating_mul(2);
        partition.bytes = wanted.map_or(doubled, |wanted| wanted.max(partition.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = 1;

    fn table(count: i32) -> (Table, Vec<TopicPartition>) {
        let table = Table::new(1000);
        let names: Vec<_> = (0..count).map(|number| TopicPartition::new("t", number)).collect();
        let add: Vec<_> = names.iter().map(|tp| (tp.clone(), 10)).collect();
        table.assign(&add).unwrap();
        table.lock().partitions.iter_mut().for_each(|p| p.leader = Some((NODE, 5)));
        (table, names)
    }

    fn asks(table: &Table, node: NodeId) -> Vec<Ask> {
        match table.lock().plan(node) {
            Plan::Ask(asks) => asks,
            _ => vec![],
        }
    }

    #[test]
    fn a_partition_is_assigned_once() {
        let (table, names) = table(1);
        for bad in [vec![(names[0].clone(), 3)], vec![(TopicPartition::new("u", 0), -1)]] {
            assert!(table.assign(&bad).is_err());
        }
        let twice = vec![(TopicPartition::new("u", 0), 1), (TopicPartition::new("u", 0), 2)];
        assert!(table.assign(&twice).is_err());
        assert_eq!(table.positions(), [(names[0].clone(), 10, false)]);
    }

    #[test]
    fn who_got_something_waits_behind_the_others() {
        let (table, _) = table(3);
        let first = asks(&table, NODE);
        assert_eq!(first.iter().map(|ask| ask.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((first[0].offset, first[0].leader_epoch, first[0].bytes), (10, 5, 1000));
        table.lock().claim(NODE, &first[0], Some((20, 0)));
        table.lock().claim(NODE, &first[1], None); // nothing came
        let order: Vec<_> = asks(&table, NODE).iter().map(|ask| (ask.index, ask.offset)).collect();
        assert_eq!(order, [(1, 10), (2, 10), (0, 20)]);
    }

    #[test]
    fn an_end_is_told_once_and_again_after_something_came_or_a_resume() {
        let (table, names) = table(1);
        let ask = |at| Ask { offset: at, ..asks(&table, NODE)[0].clone() };
        let first = ask(10);
        table.lock().claim(NODE, &first, Some((20, 0)));
        assert!(table.advance(0, 18));
        assert_eq!(table.settle(0, 25), None, "more is to come");
        assert_eq!(table.settle(0, 20), Some(20));
        assert_eq!(table.settle(0, 20), None);
        let second = ask(20);
        table.lock().claim(NODE, &second, Some((22, 0))); // markers only
        assert_eq!(table.settle(0, 22), Some(22));
        table.pause(&names);
        table.resume(&names);
        assert_eq!(table.settle(0, 22), Some(22));
        assert_eq!(table.positions()[0].1, 22);
    }

    #[test]
    fn a_pause_drops_what_was_claimed_and_a_resume_goes_on_from_what_was_told() {
        let (table, names) = table(1);
        let ask = asks(&table, NODE).remove(0);
        table.lock().claim(NODE, &ask, Some((30, 0)));
        let next = asks(&table, NODE).remove(0);
        assert_eq!(next.offset, 30);
        assert!(table.advance(0, 20));
        table.pause(&names);
        assert!(!table.advance(0, 30));
        assert_eq!(table.settle(0, 30), None);
        assert!(asks(&table, NODE).is_empty());
        table.resume(&names);
        assert!(!table.lock().counts(NODE, &next), "it was asked from 30");
        assert_eq!(asks(&table, NODE)[0].offset, 20);
    }

    #[test]
    fn a_partition_that_moves_waits_until_its_chunks_are_told() {
        let (table, _) = table(1);
        let ask = asks(&table, NODE).remove(0);
        table.lock().claim(NODE, &ask, Some((30, 0)));
        table.lock().partitions[0].leader = Some((2, 6));
        assert!(asks(&table, 2).is_empty() && asks(&table, NODE).is_empty());
        assert!(!table.lock().counts(2, &ask));
        assert!(table.advance(0, 30));
        table.settle(0, 100);
        assert_eq!(asks(&table, 2)[0].offset, 30);
    }

    #[test]
    fn a_batch_larger_than_what_is_asked_for_is_asked_for() {
        let (table, _) = table(1);
        table.lock().ask_for_more(0, Some(5000));
        assert_eq!(asks(&table, NODE)[0].bytes, 5000);
        table.lock().ask_for_more(0, None);
        assert_eq!(asks(&table, NODE)[0].bytes, 10_000);
        table.rest(0, Duration::from_secs(60));
        assert!(matches!(table.lock().plan(NODE), Plan::Rest(Some(_))));
        assert_eq!(table.lock().plan(7), Plan::Nothing);
    }
}
