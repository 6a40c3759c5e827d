//! Watermarks: per partition, idleness, and the minimum.
//!
//! Promises:
//! - the watermark W of a partition is its largest event time so far less the declared delay, and
//!   never goes back; a stream's W is the smallest of its partitions';
//! - the W that a row is judged by is its own partition's just before the row, held back by the
//!   other partitions' as of the epoch's start: a function of offsets and epochs, never of how
//!   batches were cut;
//! - all that depends on the wall clock is a [`ClockDecision`], made by [`Watermarks::decide`] and
//!   carried out by [`Watermarks::apply`], so that an epoch run again with the recorded decisions
//!   gives the same state. The wall clock is passed in.
//!
//! ```text
//!              rows                            at its end, quiet for idle_timeout (or empty)
//!   reading ──────────► reading: W by rows  ─────────────────────────────────────────► idle:
//!      ▲                                                       W lifted, then by the clock
//!      └──────────────────────────── a record comes ◄─────────────────────────────────┘
//! ```
//! A paused partition is not idle: its clock of quiet stands still. So does everybody's while
//! nobody calls, for a call counts for half an idle timeout at most.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::{MAX_TIME, MIN_TIME, Micros};
use crate::types::TopicPartition;

/// What a stream's declaration says about time, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatermarkSettings {
    /// How far W stays behind the largest event time.
    pub delay_us: i64,
    /// How long a partition at its end must be quiet to be idle.
    pub idle_timeout_us: i64,
    /// How far a partition may run ahead of the slowest that still has records to read.
    pub max_drift_us: Option<i64>,
}

/// One step of an idle partition's watermark, recorded in the epoch in which it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockDecision {
    /// The idle partition.
    pub partition: TopicPartition,
    /// Its watermark from now on.
    pub watermark: Micros,
    /// The wall clock of the decision.
    pub at: Micros,
}

/// What a progress record keeps of a partition. Equal marks behave equally from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionMark {
    /// W.
    pub watermark: Micros,
    /// Whether any event has come yet.
    pub seen: bool,
    /// The wall clock of the last decision, while it is idle.
    pub idle_at: Option<Micros>,
}

/// A stream's watermarks, as a progress record keeps them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatermarkState {
    /// Whether the stream was drained: its W is the end of time.
    pub drained: bool,
    /// Every partition's mark.
    pub partitions: BTreeMap<TopicPartition, PartitionMark>,
}

/// Which partitions to stop and which to go on reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Too far ahead.
    pub pause: Vec<TopicPartition>,
    /// No longer.
    pub resume: Vec<TopicPartition>,
}

/// Why a window is still open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockingPartition {
    /// The partition that holds the stream's watermark.
    pub partition: TopicPartition,
    /// Its watermark.
    pub watermark: Micros,
    /// The wall clock when its watermark last moved; `None` if it has not since the start.
    pub since: Option<Micros>,
    /// When the clock alone will close the window; `None` while there are records to read.
    pub closes_at: Option<Micros>,
}

/// A partition, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionView {
    /// Which one.
    pub partition: TopicPartition,
    /// Its watermark; `None` before the first event.
    pub watermark: Option<Micros>,
    /// At its end, and nothing came for the idle timeout.
    pub idle: bool,
    /// Nothing is left to read.
    pub at_end: bool,
    /// Held back.
    pub paused: bool,
    /// The wall clock when a record last came; `None` if none has since the start.
    pub active_at: Option<Micros>,
}

#[derive(Debug, Clone)]
struct Partition {
    mark: PartitionMark,
    /// W at the epoch's start.
    frozen: Micros,
    at_end: bool,
    paused: bool,
    /// Time spent watching since the last record.
    quiet_us: i64,
    active_at: Option<Micros>,
    moved_at: Option<Micros>,
}

impl Partition {
    fn new(mark: PartitionMark) -> Self {
        Self {
            mark,
            frozen: mark.watermark,
            at_end: false,
            paused: false,
            quiet_us: 0,
            active_at: None,
            moved_at: None,
        }
    }

    /// Idle as a fact of now: one that was idle before a restart is so again as soon as its end
    /// is seen without a record before it.
    fn is_idle(&self, timeout_us: i64) -> bool {
        let quiet = self.quiet_us >= timeout_us || !self.mark.seen || self.mark.idle_at.is_some();
        self.at_end && !self.paused && quiet
    }
}

/// What the next rows of one partition are judged by. Whoever has it needs nothing else of the
/// stream until the epoch's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateBound {
    /// The partition's own W.
    pub own: Micros,
    /// The smallest W of the others at the epoch's start.
    others: Micros,
    delay_us: i64,
}

impl LateBound {
    /// Takes the event times of the next rows, in offset order; gives the watermark just before
    /// each.
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
    partitions: BTreeMap<TopicPartition, Partition>,
    /// The partition with the smallest W at the epoch's start, that W, and the second smallest.
    slowest: (Option<TopicPartition>, Micros, Micros),
    now: Option<Micros>,
}

impl Watermarks {
    /// A stream without partitions.
    pub fn new(settings: WatermarkSettings) -> Self {
        Self::restore(settings, &WatermarkState::default())
    }

    /// The stream as it was recorded.
    pub fn restore(settings: WatermarkSettings, state: &WatermarkState) -> Self {
        let partitions = state.partitions.iter();
        let partitions = partitions.map(|(key, mark)| (key.clone(), Partition::new(*mark)));
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

    /// What a progress record keeps.
    pub fn state(&self) -> WatermarkState {
        let marks = self.partitions.iter().map(|(key, p)| (key.clone(), p.mark));
        WatermarkState { drained: self.drained, partitions: marks.collect() }
    }

    /// Adds a partition at the stream's W. To be called between epochs; known ones stay.
    pub fn join(&mut self, partition: &TopicPartition) {
        if !self.partitions.contains_key(partition) {
            let watermark = if self.partitions.is_empty() { MIN_TIME } else { self.minimum() };
            let mark = PartitionMark { watermark, seen: false, idle_at: None };
            self.partitions.insert(partition.clone(), Partition::new(mark));
            self.freeze();
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
        self.partitions.values().map(|p| p.mark.watermark).min().unwrap_or(MIN_TIME)
    }

    /// From here on, other partitions' rows are held back by the watermarks of now.
    pub fn begin_epoch(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.frozen = partition.mark.watermark;
        }
        self.freeze();
    }

    fn freeze(&mut self) {
        let (mut slowest, mut first, mut second) = (None, MAX_TIME, MAX_TIME);
        for (key, partition) in &self.partitions {
            if slowest.is_none() || partition.frozen < first {
                (slowest, second, first) = (Some(key), first, partition.frozen);
            } else {
                second = second.min(partition.frozen);
            }
        }
        self.slowest = (slowest.cloned(), first, second);
    }

    /// What the next rows of a partition are judged by.
    pub fn late_bound(&self, partition: &TopicPartition) -> LateBound {
        let others = match &self.slowest {
            (Some(slowest), _, second) if slowest == partition => *second,
            (_, first, _) => *first,
        };
        let own = self.partitions.get(partition).map_or(MIN_TIME, |p| p.mark.watermark);
        LateBound { own, others, delay_us: self.settings.delay_us }
    }

    /// Rows of a partition came, if `any`, that brought its W to `watermark`.
    pub fn advance(&mut self, partition: &TopicPartition, watermark: Micros, any: bool) {
        let now = self.now;
        let Some(partition) = self.partitions.get_mut(partition) else { return };
        if watermark > partition.mark.watermark {
            partition.moved_at = now;
            partition.mark.watermark = watermark;
        }
        partition.mark.seen |= any;
    }

    /// Takes the event times of a partition's next rows at once: [`Watermarks::record_activity`], then
    /// [`LateBound::pass`] and [`Watermarks::advance`].
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

    /// Records of a partition came, good or bad. Facts are to be told in the reader's order.
    pub fn record_activity(&mut self, partition: &TopicPartition) {
        self.join(partition);
        let now = self.now;
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.mark.idle_at = None;
            partition.at_end = false;
            partition.quiet_us = 0;
            partition.active_at = now;
        }
    }

    /// The broker says that nothing is left to read.
    pub fn at_end(&mut self, partition: &TopicPartition) {
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.at_end = true;
        }
    }

    /// We stopped or went on reading a partition.
    pub fn set_paused(&mut self, partition: &TopicPartition, paused: bool) {
        if let Some(partition) = self.partitions.get_mut(partition) {
            partition.paused = paused;
            partition.quiet_us = 0;
        }
    }

    /// The wall clock. To be called at least every half idle timeout while watching.
    pub fn clock(&mut self, now: Micros) {
        let longest = (self.settings.idle_timeout_us / 2).max(1);
        let step = self.now.map_or(0, |last| now.saturating_sub(last).clamp(0, longest));
        self.now = Some(self.now.map_or(now, |last| last.max(now)));
        for partition in self.partitions.values_mut().filter(|p| !p.paused) {
            partition.quiet_us = partition.quiet_us.saturating_add(step);
        }
    }

    /// How far the clock moves idle partitions: each runs on from its last decision, never past
    /// the clock less the delay, and is lifted to the slowest that is not idle, or to the fastest
    /// of all when all are. To be called at the epoch's end, and each decision to be applied.
    pub fn decide(&mut self, now: Micros) -> Vec<ClockDecision> {
        self.clock(now);
        let now = self.now.unwrap_or(now);
        let timeout = self.settings.idle_timeout_us;
        let limit = now.saturating_sub(self.settings.delay_us);
        let run_on = |mark: &PartitionMark| match mark.idle_at {
            Some(at) if mark.watermark > MIN_TIME => {
                let passed = now.saturating_sub(at).max(0);
                mark.watermark.max(mark.watermark.saturating_add(passed).min(limit))
            }
            _ => mark.watermark,
        };
        let (idle, awake): (Vec<_>, Vec<_>) =
            self.partitions.iter().partition(|(_, p)| p.is_idle(timeout));
        let slowest = awake.iter().map(|(_, p)| p.mark.watermark).min();
        let fastest = idle.iter().map(|(_, p)| run_on(&p.mark)).max().unwrap_or(MIN_TIME);
        let lift = slowest.unwrap_or(fastest);
        (idle.into_iter())
            .map(|(key, p)| (key, p.mark, run_on(&p.mark).max(lift)))
            .filter(|(_, mark, watermark)| mark.idle_at.is_none() || *watermark > mark.watermark)
            .map(|(key, _, watermark)| ClockDecision { partition: key.clone(), watermark, at: now })
            .collect()
    }

    /// Carries out a decision, of now or of a recorded epoch.
    pub fn apply(&mut self, decision: &ClockDecision) {
        let now = self.now;
        if let Some(partition) = self.partitions.get_mut(&decision.partition) {
            if decision.watermark > partition.mark.watermark {
                partition.moved_at = now;
            }
            partition.mark.watermark = partition.mark.watermark.max(decision.watermark);
            partition.mark.idle_at = Some(decision.at);
        }
    }

    /// Nothing will come any more: the stream's watermark is the end of time.
    pub fn drain(&mut self) {
        self.drained = true;
    }

    /// Takes it as given that nothing more comes: every partition is at its end and quiet.
    pub fn assume_idle(&mut self) {
        for partition in self.partitions.values_mut().filter(|p| !p.paused) {
            partition.at_end = true;
            partition.quiet_us = self.settings.idle_timeout_us;
        }
    }

    /// Which partitions run too far ahead of the slowest that is behind, and which no longer do.
    /// One goes on only when it is within half the drift, lest it stop again at once.
    pub fn drift(&self) -> Drift {
        let Some(most) = self.settings.max_drift_us else { return Drift::default() };
        let behind = self.partitions.values().filter(|p| !p.at_end);
        let slowest = behind.map(|p| p.mark.watermark).min();
        let mut drift = Drift::default();
        for (key, partition) in &self.partitions {
            let ahead = slowest.map_or(0, |s| partition.mark.watermark.saturating_sub(s));
            if !partition.paused && ahead > most {
                drift.pause.push(key.clone());
            } else if partition.paused && ahead <= most / 2 {
                drift.resume.push(key.clone());
            }
        }
        drift
    }

    /// Which partition keeps a window open that ends at `window_end`; `None` if none does.
    pub fn blocking_partition(&self, window_end: Micros) -> Option<BlockingPartition> {
        let (key, partition) = self.partitions.iter().min_by_key(|(_, p)| p.mark.watermark)?;
        let watermark = partition.mark.watermark;
        if self.drained || watermark >= window_end {
            return None;
        }
        let starts = match partition.mark.idle_at {
            Some(at) => Some(at),
            None => self.now.map(|now| {
                let left = self.settings.idle_timeout_us.saturating_sub(partition.quiet_us);
                now.saturating_add(left.max(0))
            }),
        };
        let runs = partition.at_end && !partition.paused && watermark > MIN_TIME;
        let by_rate = starts.map(|at| at.saturating_add(window_end.saturating_sub(watermark)));
        let limit = window_end.saturating_add(self.settings.delay_us);
        Some(BlockingPartition {
            partition: key.clone(),
            watermark,
            since: partition.moved_at,
            closes_at: by_rate.filter(|_| runs).map(|at| at.max(limit)),
        })
    }

    /// Every partition, to be shown.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionView> + '_ {
        self.partitions.iter().map(|(key, p)| PartitionView {
            partition: key.clone(),
            watermark: Some(p.mark.watermark).filter(|w| *w > MIN_TIME),
            idle: p.is_idle(self.settings.idle_timeout_us),
            at_end: p.at_end,
            paused: p.paused,
            active_at: p.active_at,
        })
    }
}

/// Whether an event lies more than `max_future_us` ahead of its append time, or of the epoch's
/// recorded time where the topic has none. Such a row is a dead letter and moves no watermark.
pub fn is_future(
    event: Micros,
    append: Option<Micros>,
    epoch_time: Micros,
    max_future_us: i64,
) -> bool {
    event > append.unwrap_or(epoch_time).saturating_add(max_future_us)
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

    /// Lets time pass in steps of five seconds, deciding at each.
    fn pass(watermarks: &mut Watermarks, from: Micros, until: Micros) -> Vec<ClockDecision> {
        let mut taken = vec![];
        for now in (from..=until).step_by(5_000_000) {
            for decision in watermarks.decide(now) {
                watermarks.apply(&decision);
                taken.push(decision);
            }
        }
        taken
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
    fn an_idle_partition_holds_nobody_back() {
        let mut watermarks = stream_of(2);
        watermarks.clock(1000 * SECOND);
        observe(&mut watermarks, 0, &[100 * SECOND]);
        observe(&mut watermarks, 1, &[200 * SECOND]);
        watermarks.at_end(&key(0));
        assert_eq!(pass(&mut watermarks, 1000 * SECOND, 1025 * SECOND), []);
        observe(&mut watermarks, 1, &[300 * SECOND]);
        let taken = pass(&mut watermarks, 1030 * SECOND, 1030 * SECOND);
        let lifted =
            ClockDecision { partition: key(0), watermark: 290 * SECOND, at: 1030 * SECOND };
        assert_eq!(taken, [lifted]);
        assert_eq!(watermarks.stream(), 290 * SECOND);
        // It runs on by the clock, and follows the slowest that is awake.
        pass(&mut watermarks, 1035 * SECOND, 1040 * SECOND);
        let idle = watermarks.partitions().next().unwrap();
        assert_eq!((idle.watermark, idle.idle), (Some(300 * SECOND), true));
        observe(&mut watermarks, 1, &[900 * SECOND]);
        pass(&mut watermarks, 1045 * SECOND, 1045 * SECOND);
        assert_eq!(watermarks.stream(), 890 * SECOND);
        // A record wakes it.
        observe(&mut watermarks, 0, &[5 * SECOND]);
        assert_eq!(pass(&mut watermarks, 1050 * SECOND, 1060 * SECOND), []);
    }

    #[test]
    fn when_all_are_idle_time_goes_on_but_never_past_the_clock() {
        let mut watermarks = stream_of(3);
        watermarks.clock(1000 * SECOND);
        observe(&mut watermarks, 0, &[950 * SECOND]);
        observe(&mut watermarks, 1, &[990 * SECOND]);
        assert_eq!(watermarks.blocking_partition(990 * SECOND).unwrap().partition, key(2));
        (0..3).for_each(|p| watermarks.at_end(&key(p)));
        // The empty one is idle at once, and waits for nobody.
        pass(&mut watermarks, 1000 * SECOND, 1000 * SECOND);
        assert_eq!(watermarks.stream(), 940 * SECOND);
        let waiting = watermarks.blocking_partition(990 * SECOND).unwrap();
        assert_eq!((waiting.partition, waiting.since), (key(0), Some(1000 * SECOND)));
        assert_eq!(waiting.closes_at, Some(1080 * SECOND));
        pass(&mut watermarks, 1005 * SECOND, 1030 * SECOND);
        assert_eq!(watermarks.stream(), 980 * SECOND);
        pass(&mut watermarks, 1035 * SECOND, 1040 * SECOND);
        assert_eq!(watermarks.stream(), 990 * SECOND);
        assert_eq!(watermarks.blocking_partition(990 * SECOND), None);
        // An event ahead of the clock: time stands until the clock less the delay is there.
        observe(&mut watermarks, 1, &[1060 * SECOND]);
        watermarks.at_end(&key(1));
        pass(&mut watermarks, 1045 * SECOND, 1100 * SECOND);
        assert_eq!(watermarks.stream(), 1090 * SECOND);
    }

    #[test]
    fn who_has_records_to_read_or_is_paused_is_not_idle() {
        let mut watermarks = stream_of(2);
        watermarks.clock(0);
        observe(&mut watermarks, 0, &[100 * SECOND]);
        observe(&mut watermarks, 1, &[9_000 * SECOND]);
        assert_eq!(watermarks.drift(), Drift { pause: vec![key(1)], resume: vec![] });
        watermarks.at_end(&key(1));
        watermarks.set_paused(&key(1), true);
        assert_eq!(pass(&mut watermarks, 0, 100 * SECOND), []);
        observe(&mut watermarks, 0, &[6_000 * SECOND]);
        assert_eq!(watermarks.drift(), Drift::default());
        observe(&mut watermarks, 0, &[8_000 * SECOND]);
        assert_eq!(watermarks.drift(), Drift { pause: vec![], resume: vec![key(1)] });
        // A stall of ours is not their silence.
        watermarks.set_paused(&key(1), false);
        watermarks.clock(101 * SECOND);
        assert_eq!(watermarks.decide(5_000 * SECOND), []);
    }

    #[test]
    fn after_a_restart_an_idle_partition_waits_for_the_brokers_word() {
        let mut watermarks = stream_of(1);
        watermarks.clock(1000 * SECOND);
        observe(&mut watermarks, 0, &[100 * SECOND]);
        watermarks.at_end(&key(0));
        pass(&mut watermarks, 1000 * SECOND, 1050 * SECOND);
        assert_eq!(watermarks.stream(), 110 * SECOND);
        let text = serde_json::to_string(&watermarks.state()).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        let mut restored = Watermarks::restore(SETTINGS, &state);
        assert_eq!(restored.state(), watermarks.state());
        assert_eq!(pass(&mut restored, 1060 * SECOND, 2000 * SECOND), []);
        restored.at_end(&key(0));
        pass(&mut restored, 2005 * SECOND, 2005 * SECOND);
        assert_eq!(restored.stream(), 1065 * SECOND);
        restored.drain();
        assert_eq!(restored.stream(), MAX_TIME);
        assert_eq!(restored.blocking_partition(MAX_TIME), None);
    }

    #[test]
    fn the_future_is_judged_by_the_append_time_if_there_is_one() {
        assert!(!is_future(105, Some(100), 0, 5));
        assert!(is_future(106, Some(100), 1_000, 5));
        assert!(is_future(1_006, None, 1_000, 5));
        assert!(!is_future(i64::MAX, None, i64::MAX - 1, 5));
    }

    /// Epochs of (partition, event time) rows, and what the clock does after each.
    type Epochs = Vec<(Vec<(i32, Micros)>, i64)>;

    /// Runs the epochs with rows cut after every `cut`, taking the decisions from `recorded` if
    /// given; answers the `before` values by partition, the decisions by epoch, and the state.
    #[allow(clippy::type_complexity)]
    fn run(
        epochs: &Epochs,
        cut: usize,
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
                for piece in events.chunks(cut) {
                    before.entry(partition).or_default().extend(observe(
                        &mut watermarks,
                        partition,
                        piece,
                    ));
                }
            }
            (0..3).for_each(|p| watermarks.at_end(&key(p)));
            now += step * SECOND;
            let taken = match recorded {
                Some(recorded) => recorded[i].clone(),
                None => watermarks.decide(now),
            };
            taken.iter().for_each(|decision| watermarks.apply(decision));
            decisions.push(taken);
        }
        (before, decisions, watermarks.state())
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter_and_recorded_epochs_give_the_same_state(
            epochs in prop::collection::vec(
                (prop::collection::vec((0..3, 0i64..2000), 0..8), 0i64..30), 1..12),
            cut in 1usize..5,
        ) {
            let (before, decisions, state) = run(&epochs, usize::MAX, None);
            prop_assert_eq!(&run(&epochs, cut, None), &(before.clone(), decisions.clone(), state.clone()));
            prop_assert_eq!(&run(&epochs, cut, Some(&decisions)), &(before, decisions, state));
        }
    }
}
