//! Watermarks of a stream: one per partition, their minimum, and idle partitions.
//!
//! Promises:
//! - the watermark W of a partition is its largest event time so far less the declared delay, and
//!   never goes back; the W of a stream is the smallest W of its partitions;
//! - whether a row is late depends on the W of its own partition just before the row, held back by
//!   the W of the other partitions at the start of the epoch. This is a function of offsets and
//!   epochs, and does not depend on how rows are split into batches;
//! - every effect of the wall clock is a [`ClockDecision`]. [`Watermarks::decide`] makes it and
//!   [`Watermarks::apply`] applies it, so an epoch that is replayed with the recorded decisions gives
//!   the same state. The caller passes in the wall clock.
//!
//! ```text
//!              rows                      at its end, no record for idle_timeout (or empty)
//!   reading ──────────► reading: W by rows  ─────────────────────────────────────────► idle:
//!      ▲                                                     W lifted, then by the clock
//!      └──────────────────────────── a record arrives ◄───────────────────────────────┘
//! ```
//! A paused partition is not idle: its quiet time does not grow. If [`Watermarks::clock`] is not
//! called for a while, the gap counts as half an idle timeout at most.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::{MAX_TIME, MIN_TIME, Micros};
use crate::types::TopicPartition;

/// The event-time settings of a stream, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatermarkSettings {
    /// The distance of W behind the largest event time.
    pub delay_us: i64,
    /// The time without records after which a partition at its end is idle.
    pub idle_timeout_us: i64,
    /// The largest distance of a partition's W ahead of the slowest partition that has records to
    /// read.
    pub max_drift_us: Option<i64>,
}

/// One step of an idle partition's watermark, recorded in the epoch that decides it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockDecision {
    /// The idle partition.
    pub partition: TopicPartition,
    /// Its watermark from now on.
    pub watermark: Micros,
    /// The wall clock of the decision.
    pub at: Micros,
}

/// The watermark of a partition as a progress record stores it. Partitions with equal values behave
/// equally from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionWatermark {
    /// The watermark W.
    pub watermark: Micros,
    /// Whether any event has arrived yet.
    pub seen: bool,
    /// While the partition is idle: the wall clock of its last decision.
    pub idle_at: Option<Micros>,
}

/// The watermarks of a stream as a progress record stores them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatermarkState {
    /// Whether the stream was drained. Then its W is the end of time.
    pub drained: bool,
    /// The watermark of every partition.
    pub partitions: BTreeMap<TopicPartition, PartitionWatermark>,
}

/// The partitions to pause and to resume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Partitions that are too far ahead.
    pub pause: Vec<TopicPartition>,
    /// Paused partitions that no longer are.
    pub resume: Vec<TopicPartition>,
}

/// The partition that keeps a window open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockingPartition {
    /// The partition that holds the stream's watermark.
    pub partition: TopicPartition,
    /// Its watermark.
    pub watermark: Micros,
    /// The wall clock when its watermark last moved; `None` if it has not since the start.
    pub since: Option<Micros>,
    /// The wall clock when the window closes without any record; `None` if there are records to
    /// read.
    pub closes_at: Option<Micros>,
}

/// The watermark of a partition, for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionView {
    /// The partition.
    pub partition: TopicPartition,
    /// Its watermark; `None` before the first event.
    pub watermark: Option<Micros>,
    /// Whether it is at its end and had no record for the idle timeout.
    pub idle: bool,
    /// Whether nothing is left to read.
    pub at_end: bool,
    /// Whether reading is paused.
    pub paused: bool,
    /// The wall clock when a record last arrived; `None` if none has since the start.
    pub active_at: Option<Micros>,
}

#[derive(Debug, Clone)]
struct PartitionState {
    stored: PartitionWatermark,
    /// W at the start of the epoch.
    epoch_start: Micros,
    at_end: bool,
    paused: bool,
    /// The time without a record, as far as [`Watermarks::clock`] has counted it.
    quiet_us: i64,
    active_at: Option<Micros>,
    moved_at: Option<Micros>,
}

impl PartitionState {
    fn new(stored: PartitionWatermark) -> Self {
        Self {
            stored,
            epoch_start: stored.watermark,
            at_end: false,
            paused: false,
            quiet_us: 0,
            active_at: None,
            moved_at: None,
        }
    }

    /// Whether the partition is idle now. A partition that was idle before a restart is idle again
    /// as soon as the reader reaches its end without a record.
    fn is_idle(&self, timeout_us: i64) -> bool {
        let quiet =
            self.quiet_us >= timeout_us || !self.stored.seen || self.stored.idle_at.is_some();
        self.at_end && !self.paused && quiet
    }
}

/// The bound by which the next rows of one partition are judged late. It contains all that this
/// needs of the stream until the end of the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateBound {
    /// The W of the partition itself.
    pub own: Micros,
    /// The smallest W of the other partitions at the start of the epoch.
    others: Micros,
    delay_us: i64,
}

impl LateBound {
    /// Advances over the event times of the next rows, in offset order. Returns the watermark just
    /// before each row.
    pub fn pass(&mut self, events: &[Micros]) -> Vec<Micros> {
        let before = |event: &Micros| {
            let before = self.own.min(self.others);
            self.own = self.own.max(event.saturating_sub(self.delay_us));
            before
        };
        events.iter().map(before).collect()
    }
}

/// The watermarks of one stream.
#[derive(Debug, Clone)]
pub struct Watermarks {
    settings: WatermarkSettings,
    drained: bool,
    partitions: BTreeMap<TopicPartition, PartitionState>,
    /// The partition with the smallest W at the start of the epoch, that W, and the second smallest
    /// W.
    slowest: (Option<TopicPartition>, Micros, Micros),
    now: Option<Micros>,
}

impl Watermarks {
    /// Creates the watermarks of a stream without partitions.
    pub fn new(settings: WatermarkSettings) -> Self {
        Self::restore(settings, &WatermarkState::default())
    }

    /// Creates the watermarks of a stream from a stored state.
    pub fn restore(settings: WatermarkSettings, state: &WatermarkState) -> Self {
        let partitions = state.partitions.iter();
        let partitions =
            partitions.map(|(key, stored)| (key.clone(), PartitionState::new(*stored)));
        let mut restored = Self {
            settings,
            drained: state.drained,
            partitions: partitions.collect(),
            slowest: (None, MAX_TIME, MAX_TIME),
            now: None,
        };
        restored.begin_epoch();
        restored
    }

    /// The state as a progress record stores it.
    pub fn state(&self) -> WatermarkState {
        let partitions = self.partitions.iter().map(|(key, p)| (key.clone(), p.stored));
        WatermarkState { drained: self.drained, partitions: partitions.collect() }
    }

    /// Adds a partition that starts at the stream's W. Call it between epochs. A known partition
    /// does not change.
    pub fn join(&mut self, partition: &TopicPartition) {
        if !self.partitions.contains_key(partition) {
            let watermark = if self.partitions.is_empty() { MIN_TIME } else { self.minimum() };
            let stored = PartitionWatermark { watermark, seen: false, idle_at: None };
            self.partitions.insert(partition.clone(), PartitionState::new(stored));
            self.find_slowest();
        }
    }

    /// The stream's watermark: rows with an event time below it are not expected.
    pub fn stream(&self) -> Micros {
        match self.partitions.is_empty() {
            _ if self.drained => MAX_TIME,
            true => MIN_TIME,
            false => self.minimum(),
        }
    }

    fn minimum(&self) -> Micros {
        self.partitions.values().map(|p| p.stored.watermark).min().unwrap_or(MIN_TIME)
    }

    /// Begins an epoch: from now on, partitions hold each other back by their current W.
    pub fn begin_epoch(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.epoch_start = partition.stored.watermark;
        }
        self.find_slowest();
    }

    fn find_slowest(&mut self) {
        let (mut slowest, mut first, mut second) = (None, MAX_TIME, MAX_TIME);
        for (key, partition) in &self.partitions {
            if slowest.is_none() || partition.epoch_start < first {
                (slowest, second, first) = (Some(key), first, partition.epoch_start);
            } else {
                second = second.min(partition.epoch_start);
            }
        }
        self.slowest = (slowest.cloned(), first, second);
    }

    /// Returns the bound by which the next rows of a partition are judged late.
    pub fn late_bound(&self, partition: &TopicPartition) -> LateBound {
        let others = match &self.slowest {
            (Some(slowest), _, second) if slowest == partition => *second,
            (_, first, _) => *first,
        };
        let own = self.partitions.get(partition).map_or(MIN_TIME, |p| p.stored.watermark);
        LateBound { own, others, delay_us: self.settings.delay_us }
    }

    /// Advances the W of a partition to `watermark`. `has_rows` is whether any row arrived.
    pub fn advance(&mut self, partition: &TopicPartition, watermark: Micros, has_rows: bool) {
        let now = self.now;
        let Some(partition) = self.partitions.get_mut(partition) else { return };
        if watermark > partition.stored.watermark {
            partition.moved_at = now;
            partition.stored.watermark = watermark;
        }
        partition.stored.seen |= has_rows;
    }

    /// Calls [`Watermarks::record_activity`], [`LateBound::pass`] and [`Watermarks::advance`] for
    /// the next rows of a partition.
    #[cfg(test)]
    pub fn observe(
        &mut self,
        partition: &TopicPartition,
        events: &[Micros],
        before: &mut Vec<Micros>,
    ) {
        self.record_activity(partition);
        let mut bound = self.late_bound(partition);
        before.extend(bound.pass(events));
        self.advance(partition, bound.own, !events.is_empty());
    }

    /// Records that records of a partition arrived, valid or not: the partition is neither idle nor
    /// at its end. Call this and [`Watermarks::at_end`] in the order in which the reader reads.
    pub fn record_activity(&mut self, partition: &TopicPartition) {
        self.join(partition);
        let now = self.now;
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.stored.idle_at = None;
            partition.at_end = false;
            partition.quiet_us = 0;
            partition.active_at = now;
        }
    }

    /// Records that the reader has reached the end of a partition.
    pub fn at_end(&mut self, partition: &TopicPartition) {
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.at_end = true;
        }
    }

    /// Records whether reading of a partition is paused.
    pub fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.paused = paused;
            partition.quiet_us = 0;
        }
    }

    /// Adds the time since the last call to the quiet times. Call it at least every half idle
    /// timeout while reading; one call adds no more than that.
    pub fn clock(&mut self, now: Micros) {
        let longest = (self.settings.idle_timeout_us / 2).max(1);
        let step = self.now.map_or(0, |last| now.saturating_sub(last).clamp(0, longest));
        self.now = Some(self.now.map_or(now, |last| last.max(now)));
        for partition in self.partitions.values_mut().filter(|p| !p.paused) {
            partition.quiet_us = partition.quiet_us.saturating_add(step);
        }
    }

    /// Decides how the clock moves the W of idle partitions. Each advances by the time since its
    /// last decision, but not past the clock less the delay. Each is also lifted to the slowest
    /// partition that is not idle, or to the fastest one if all are idle. Call it at the end of an
    /// epoch, and apply every decision.
    pub fn decide(&mut self, now: Micros) -> Vec<ClockDecision> {
        self.clock(now);
        let now = self.now.unwrap_or(now);
        let timeout = self.settings.idle_timeout_us;
        let limit = now.saturating_sub(self.settings.delay_us);
        let advanced = |stored: &PartitionWatermark| match stored.idle_at {
            Some(at) if stored.watermark > MIN_TIME => {
                let passed = now.saturating_sub(at).max(0);
                stored.watermark.max(stored.watermark.saturating_add(passed).min(limit))
            }
            _ => stored.watermark,
        };
        let (idle, active): (Vec<_>, Vec<_>) =
            self.partitions.iter().partition(|(_, p)| p.is_idle(timeout));
        let slowest = active.iter().map(|(_, p)| p.stored.watermark).min();
        let fastest = idle.iter().map(|(_, p)| advanced(&p.stored)).max().unwrap_or(MIN_TIME);
        let lift = slowest.unwrap_or(fastest);
        (idle.into_iter())
            .map(|(key, p)| (key, p.stored, advanced(&p.stored).max(lift)))
            .filter(|(_, stored, watermark)| {
                stored.idle_at.is_none() || *watermark > stored.watermark
            })
            .map(|(key, _, watermark)| ClockDecision { partition: key.clone(), watermark, at: now })
            .collect()
    }

    /// Applies a decision of this epoch or of a replayed one.
    pub fn apply(&mut self, decision: &ClockDecision) {
        let now = self.now;
        if let Some(partition) = self.partitions.get_mut(&decision.partition) {
            if decision.watermark > partition.stored.watermark {
                partition.moved_at = now;
            }
            partition.stored.watermark = partition.stored.watermark.max(decision.watermark);
            partition.stored.idle_at = Some(decision.at);
        }
    }

    /// Moves the stream's watermark to the end of time, because no more rows arrive.
    pub fn drain(&mut self) {
        self.drained = true;
    }

    /// Treats every partition that is not paused as being at its end and quiet.
    pub fn assume_idle(&mut self) {
        for partition in self.partitions.values_mut().filter(|p| !p.paused) {
            partition.at_end = true;
            partition.quiet_us = self.settings.idle_timeout_us;
        }
    }

    /// Finds the partitions that are too far ahead of the slowest one that has records to read, and
    /// the paused ones that no longer are. A paused partition resumes only within half the drift,
    /// so that it is not paused again at once.
    pub fn drift(&self) -> Drift {
        let Some(limit) = self.settings.max_drift_us else { return Drift::default() };
        let behind = self.partitions.values().filter(|p| !p.at_end);
        let slowest = behind.map(|p| p.stored.watermark).min();
        let mut drift = Drift::default();
        for (key, partition) in &self.partitions {
            let ahead = slowest.map_or(0, |s| partition.stored.watermark.saturating_sub(s));
            if !partition.paused && ahead > limit {
                drift.pause.push(key.clone());
            } else if partition.paused && ahead <= limit / 2 {
                drift.resume.push(key.clone());
            }
        }
        drift
    }

    /// Returns the partition that keeps a window open that ends at `window_end`; `None` if none
    /// does.
    pub fn blocking_partition(&self, window_end: Micros) -> Option<BlockingPartition> {
        let (key, partition) = self.partitions.iter().min_by_key(|(_, p)| p.stored.watermark)?;
        let watermark = partition.stored.watermark;
        if self.drained || watermark >= window_end {
            return None;
        }
        let clock_starts = match partition.stored.idle_at {
            Some(at) => Some(at),
            None => self.now.map(|now| {
                let left = self.settings.idle_timeout_us.saturating_sub(partition.quiet_us);
                now.saturating_add(left.max(0))
            }),
        };
        let is_clock_driven = partition.at_end && !partition.paused && watermark > MIN_TIME;
        let closes_at =
            clock_starts.map(|at| at.saturating_add(window_end.saturating_sub(watermark)));
        let limit = window_end.saturating_add(self.settings.delay_us);
        Some(BlockingPartition {
            partition: key.clone(),
            watermark,
            since: partition.moved_at,
            closes_at: closes_at.filter(|_| is_clock_driven).map(|at| at.max(limit)),
        })
    }

    /// Every partition, for the status page.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionView> + '_ {
        self.partitions.iter().map(|(key, p)| PartitionView {
            partition: key.clone(),
            watermark: Some(p.stored.watermark).filter(|w| *w > MIN_TIME),
            idle: p.is_idle(self.settings.idle_timeout_us),
            at_end: p.at_end,
            paused: p.paused,
            active_at: p.active_at,
        })
    }
}

/// Whether an event is more than `max_future_us` ahead of its append time, or of the recorded time
/// of the epoch if the topic has no append time. Such a row is a dead letter and moves no
/// watermark.
pub fn is_future(
    event: Micros,
    append_time: Option<Micros>,
    epoch_time: Micros,
    max_future_us: i64,
) -> bool {
    event > append_time.unwrap_or(epoch_time).saturating_add(max_future_us)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::time::{HOUR, SECOND};

    const SETTINGS: WatermarkSettings = WatermarkSettings {
        delay_us: 10 * SECOND,
        idle_timeout_us: 30 * SECOND,
        max_drift_us: Some(HOUR),
    };

    fn key(partition: i32) -> TopicPartition {
        TopicPartition::new("t", partition)
    }

    fn stream_of(partitions: i32) -> Watermarks {
        let mut watermarks = Watermarks::new(SETTINGS);
        (0..partitions).for_each(|p| watermarks.join(&key(p)));
        watermarks
    }

    fn observe(watermarks: &mut Watermarks, partition: i32, events: &[Micros]) -> Vec<Micros> {
        let mut before = vec![];
        watermarks.observe(&key(partition), events, &mut before);
        before
    }

    /// Advances the clock in steps of five seconds, and applies the decisions of each step.
    fn advance_clock(
        watermarks: &mut Watermarks,
        from: Micros,
        until: Micros,
    ) -> Vec<ClockDecision> {
        let mut applied = vec![];
        for now in (from..=until).step_by(5_000_000) {
            for decision in watermarks.decide(now) {
                watermarks.apply(&decision);
                applied.push(decision);
            }
        }
        applied
    }

    #[test]
    fn a_row_is_judged_by_the_watermark_before_it() {
        let mut watermarks = stream_of(1);
        let before = observe(&mut watermarks, 0, &[100 * SECOND, 90 * SECOND, 101 * SECOND]);
        assert_eq!(before, [MIN_TIME, 90 * SECOND, 90 * SECOND]);
        assert_eq!(watermarks.stream(), 91 * SECOND);
        assert_eq!(observe(&mut watermarks, 0, &[0]), [91 * SECOND]);
        assert_eq!(observe(&mut watermarks, 0, &[i64::MIN]), [91 * SECOND]);
    }

    #[test]
    fn other_partitions_hold_back_as_of_the_epochs_start() {
        let mut watermarks = stream_of(2);
        observe(&mut watermarks, 0, &[20 * SECOND]);
        observe(&mut watermarks, 1, &[40 * SECOND]);
        assert_eq!(watermarks.stream(), 10 * SECOND);
        watermarks.begin_epoch();
        observe(&mut watermarks, 0, &[500 * SECOND]);
        assert_eq!(observe(&mut watermarks, 1, &[600 * SECOND, 700 * SECOND]), [10 * SECOND; 2]);
        assert_eq!(observe(&mut watermarks, 0, &[0]), [30 * SECOND]);
        watermarks.begin_epoch();
        assert_eq!(observe(&mut watermarks, 1, &[0]), [490 * SECOND]);
        watermarks.join(&key(2));
        assert_eq!(watermarks.partitions().last().unwrap().watermark, Some(490 * SECOND));
    }

    #[test]
    fn an_idle_partition_does_not_hold_others_back() {
        let mut watermarks = stream_of(2);
        watermarks.clock(1000 * SECOND);
        observe(&mut watermarks, 0, &[100 * SECOND]);
        observe(&mut watermarks, 1, &[200 * SECOND]);
        watermarks.at_end(&key(0));
        assert_eq!(advance_clock(&mut watermarks, 1000 * SECOND, 1025 * SECOND), []);
        observe(&mut watermarks, 1, &[300 * SECOND]);
        let decisions = advance_clock(&mut watermarks, 1030 * SECOND, 1030 * SECOND);
        let lifted =
            ClockDecision { partition: key(0), watermark: 290 * SECOND, at: 1030 * SECOND };
        assert_eq!(decisions, [lifted]);
        assert_eq!(watermarks.stream(), 290 * SECOND);
        // It advances by the clock, and follows the slowest active partition.
        advance_clock(&mut watermarks, 1035 * SECOND, 1040 * SECOND);
        let idle = watermarks.partitions().next().unwrap();
        assert_eq!((idle.watermark, idle.idle), (Some(300 * SECOND), true));
        observe(&mut watermarks, 1, &[900 * SECOND]);
        advance_clock(&mut watermarks, 1045 * SECOND, 1045 * SECOND);
        assert_eq!(watermarks.stream(), 890 * SECOND);
        // After a record it is no longer idle.
        observe(&mut watermarks, 0, &[5 * SECOND]);
        assert_eq!(advance_clock(&mut watermarks, 1050 * SECOND, 1060 * SECOND), []);
    }

    #[test]
    fn when_all_are_idle_watermarks_advance_but_never_past_the_clock() {
        let mut watermarks = stream_of(3);
        watermarks.clock(1000 * SECOND);
        observe(&mut watermarks, 0, &[950 * SECOND]);
        observe(&mut watermarks, 1, &[990 * SECOND]);
        assert_eq!(watermarks.blocking_partition(990 * SECOND).unwrap().partition, key(2));
        (0..3).for_each(|p| watermarks.at_end(&key(p)));
        // An empty partition is idle at once.
        advance_clock(&mut watermarks, 1000 * SECOND, 1000 * SECOND);
        assert_eq!(watermarks.stream(), 940 * SECOND);
        let waiting = watermarks.blocking_partition(990 * SECOND).unwrap();
        assert_eq!((waiting.partition, waiting.since), (key(0), Some(1000 * SECOND)));
        assert_eq!(waiting.closes_at, Some(1080 * SECOND));
        advance_clock(&mut watermarks, 1005 * SECOND, 1030 * SECOND);
        assert_eq!(watermarks.stream(), 980 * SECOND);
        advance_clock(&mut watermarks, 1035 * SECOND, 1040 * SECOND);
        assert_eq!(watermarks.stream(), 990 * SECOND);
        assert_eq!(watermarks.blocking_partition(990 * SECOND), None);
        // After an event ahead of the clock, W stands still until the clock less the delay reaches
        // it.
        observe(&mut watermarks, 1, &[1060 * SECOND]);
        watermarks.at_end(&key(1));
        advance_clock(&mut watermarks, 1045 * SECOND, 1100 * SECOND);
        assert_eq!(watermarks.stream(), 1090 * SECOND);
    }

    #[test]
    fn a_partition_with_records_to_read_or_a_paused_one_is_not_idle() {
        let mut watermarks = stream_of(2);
        watermarks.clock(0);
        observe(&mut watermarks, 0, &[100 * SECOND]);
        observe(&mut watermarks, 1, &[9_000 * SECOND]);
        assert_eq!(watermarks.drift(), Drift { pause: vec![key(1)], resume: vec![] });
        watermarks.at_end(&key(1));
        watermarks.set_paused(&key(1), true);
        assert_eq!(advance_clock(&mut watermarks, 0, 100 * SECOND), []);
        observe(&mut watermarks, 0, &[6_000 * SECOND]);
        assert_eq!(watermarks.drift(), Drift::default());
        observe(&mut watermarks, 0, &[8_000 * SECOND]);
        assert_eq!(watermarks.drift(), Drift { pause: vec![], resume: vec![key(1)] });
        // A time in which the clock was not called does not count as quiet.
        watermarks.set_paused(&key(1), false);
        watermarks.clock(101 * SECOND);
        assert_eq!(watermarks.decide(5_000 * SECOND), []);
    }

    #[test]
    fn after_a_restart_a_partition_is_idle_only_once_its_end_is_reached() {
        let mut watermarks = stream_of(1);
        watermarks.clock(1000 * SECOND);
        observe(&mut watermarks, 0, &[100 * SECOND]);
        watermarks.at_end(&key(0));
        advance_clock(&mut watermarks, 1000 * SECOND, 1050 * SECOND);
        assert_eq!(watermarks.stream(), 110 * SECOND);
        let text = serde_json::to_string(&watermarks.state()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let mut restored = Watermarks::restore(SETTINGS, &state);
        assert_eq!(restored.state(), watermarks.state());
        assert_eq!(advance_clock(&mut restored, 1060 * SECOND, 2000 * SECOND), []);
        restored.at_end(&key(0));
        advance_clock(&mut restored, 2005 * SECOND, 2005 * SECOND);
        assert_eq!(restored.stream(), 1065 * SECOND);
        restored.drain();
        assert_eq!(restored.stream(), MAX_TIME);
        assert_eq!(restored.blocking_partition(MAX_TIME), None);
    }

    #[test]
    fn the_append_time_decides_whether_an_event_is_in_the_future() {
        assert!(!is_future(105, Some(100), 0, 5));
        assert!(is_future(106, Some(100), 1_000, 5));
        assert!(is_future(1_006, None, 1_000, 5));
        assert!(!is_future(i64::MAX, None, i64::MAX - 1, 5));
    }

    /// Per epoch, its rows as (partition, event time), and the seconds that pass after it.
    type Epochs = Vec<(Vec<(i32, Micros)>, i64)>;

    /// Runs the epochs with batches of `batch_rows` rows, with the `recorded` decisions if given.
    /// Returns the `before` values by partition, the decisions by epoch, and the state.
    #[allow(clippy::type_complexity)]
    fn run(
        epochs: &Epochs,
        batch_rows: usize,
        recorded: Option<&[Vec<ClockDecision>]>,
    ) -> (BTreeMap<i32, Vec<Micros>>, Vec<Vec<ClockDecision>>, WatermarkState) {
        let mut watermarks = stream_of(3);
        let (mut before, mut decisions) = (BTreeMap::<i32, Vec<Micros>>::new(), vec![]);
        let mut now = 0;
        for (i, (rows, step)) in epochs.iter().enumerate() {
            watermarks.begin_epoch();
            for partition in 0..3 {
                let events: Vec<_> =
                    rows.iter().filter(|r| r.0 == partition).map(|r| r.1 * SECOND).collect();
                for batch in events.chunks(batch_rows) {
                    before.entry(partition).or_default().extend(observe(
                        &mut watermarks,
                        partition,
                        batch,
                    ));
                }
            }
            (0..3).for_each(|p| watermarks.at_end(&key(p)));
            now += step * SECOND;
            let applied = match recorded {
                Some(recorded) => recorded[i].clone(),
                None => watermarks.decide(now),
            };
            applied.iter().for_each(|decision| watermarks.apply(decision));
            decisions.push(applied);
        }
        (before, decisions, watermarks.state())
    }

    proptest! {
        #[test]
        fn batch_sizes_do_not_matter_and_recorded_epochs_give_the_same_state(
            epochs in prop::collection::vec(
                (prop::collection::vec((0..3, 0i64..2000), 0..8), 0i64..30), 1..12),
            batch_rows in 1usize..5,
        ) {
            let (before, decisions, state) = run(&epochs, usize::MAX, None);
            prop_assert_eq!(&run(&epochs, batch_rows, None), &(before.clone(), decisions.clone(), state.clone()));
            prop_assert_eq!(&run(&epochs, batch_rows, Some(&decisions)), &(before, decisions, state));
        }
    }
}
