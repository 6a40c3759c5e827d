//! Hopping windows from panes: each pane is stored once, and windows are merged from their panes.
//!
//! ```text
//!   panes      p1    p2    p3    p4 │  p5    p6 │  p7 ..        the window that closes: p2..p6
//!   front      ·    p2-4  p3-4   p4 │           │               suffix merges, popped from the left
//!   back                            │  p5-6     │               one running merge, fed from the right
//!   result  =  p2-4  +  p5-6  +  late additions of p2..p6
//! ```
//! This is the two-stack algorithm for sliding-window aggregation. When a window closes, its new
//! panes are pushed into the back and the panes that it no longer contains are popped from the
//! front. When the front is empty, it is rebuilt from the panes of the back. So a pane is merged
//! about three times in all, however many windows contain it.
//!
//! For a slot that is a key set, a pane adds only the keys that the back lacks, and nothing is
//! grouped again. The front is one batch of the keys that each pane adds to the panes after it, and
//! the suffix merges are slices of that batch. If the query needs only the number of keys per
//! group, the number comes from the last pane of each key, and nothing is merged.
//!
//! Invariants:
//! - windows close in the order of their ends. A window that starts before the last merged one, or
//!   ends before the newest stacked pane, is merged from its panes; clocks that are set back make such
//!   windows;
//! - the batches of a pane do not change once it is stacked. Rows that arrive later, or that some
//!   window of the pane refused, are late additions. They are merged into each window that accepts
//!   them, until the pane is stacked again or its last window has closed;
//! - so the merges are a function of the epochs, and can be rebuilt from the panes.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::planner::{QueryPlan, WindowState};
use crate::state::SlidingKeySet;
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::epoch_buffer::Bucket;
use crate::window::merge_tree::{MergeTree, SlotBatches};

/// The window that the batches of all panes contain, so that they can be merged. Closing a window
/// replaces it by the real one.
pub(crate) const ANY_WINDOW: Window = Window { start: 0, end: 0 };

/// More late additions of one pane than this are merged.
const MAX_LATE: usize = 8;

/// A pane and its state.
#[derive(Debug)]
pub(crate) struct Pane {
    pub window: Window,
    /// The end of the last window that contains the pane.
    pub last_end: Micros,
    /// Windows that end after this are known to contain the pane.
    pub known_from: Micros,
    /// The state that was added before the pane was stacked.
    pub tree: MergeTree,
    /// Late additions, each with the latest end of a window that refused its rows.
    pub late: Vec<(Micros, SlotBatches)>,
}

/// The front and the back.
#[derive(Debug)]
pub(crate) struct RunningMerges {
    /// The start of the last window that was merged.
    pub last_merged: Micros,
    /// Panes that start before this are stacked.
    pub stacked_until: Micros,
    /// Panes that start before this are, or were, in the front.
    pub front_until: Micros,
    /// The start of the first pane in the back.
    pub back_from: Option<Micros>,
    /// The merge of the panes in the back.
    pub back: SlotBatches,
    /// For slots that are key sets: the keys of the front and the back, made when first needed.
    pub key_sets: Vec<Option<SlidingKeySet>>,
    /// The suffix merges: (start of a pane, merge of it and all later panes of the front). The
    /// earliest pane is the last element.
    pub front: Vec<(Micros, SlotBatches)>,
}

/// The panes of a query.
#[derive(Debug)]
pub(crate) struct Panes {
    pub panes: BTreeMap<Micros, Pane>,
    pub merges: RunningMerges,
}

impl RunningMerges {
    fn clear_back(&mut self) -> Result<()> {
        self.back.clear();
        self.back_from = None;
        Ok(self.key_sets.iter_mut().flatten().try_for_each(SlidingKeySet::clear)?)
    }

    /// Creates the key sets that do not exist yet.
    fn create_key_sets(&mut self, plan: &QueryPlan) -> Result<()> {
        for slot in self.key_sets.len()..plan.slots() {
            self.key_sets
                .push(plan.is_key_set(slot).then(|| plan.new_sliding_key_set(slot)).transpose()?);
        }
        Ok(())
    }
}

impl Panes {
    /// Creates the panes of a query without state.
    pub fn new() -> Self {
        let merges = RunningMerges {
            last_merged: MIN_TIME,
            stacked_until: MIN_TIME,
            front_until: MIN_TIME,
            back_from: None,
            back: SlotBatches::new(),
            key_sets: Vec::new(),
            front: Vec::new(),
        };
        Self { panes: BTreeMap::new(), merges }
    }

    /// Adds the batches of an epoch to a pane, which the windows `windows` contain. Returns whether
    /// windows that end after `bucket.refused` contain the pane for the first time.
    pub async fn add(
        &mut self,
        plan: &QueryPlan,
        bucket: Bucket,
        windows: &[Window],
        batches: SlotBatches,
    ) -> Result<bool> {
        let is_stacked = bucket.window.start < self.merges.stacked_until;
        let pane = self.panes.entry(bucket.window.start).or_insert_with(|| Pane {
            window: bucket.window,
            last_end: windows.iter().map(|w| w.end).max().unwrap_or(bucket.window.end),
            known_from: Micros::MAX,
            tree: MergeTree::default(),
            late: Vec::new(),
        });
        let is_new_to_a_window = bucket.refused < pane.known_from;
        pane.known_from = pane.known_from.min(bucket.refused);
        if is_stacked || bucket.refused > MIN_TIME {
            pane.late.push((bucket.refused, distinct_key_sets(plan, batches).await?));
        } else {
            pane.tree.push_unchecked(plan, batches).await?;
        }
        Ok(is_new_to_a_window)
    }

    /// Returns the state of `window` per slot, merged from its panes. Does not use or change the
    /// running merges.
    pub async fn merge_window(
        &self,
        plan: &QueryPlan,
        window: Window,
    ) -> Result<Vec<Vec<RecordBatch>>> {
        let mut found = vec![Vec::new(); plan.slots()];
        for pane in self.panes.range(window.start..window.end).map(|(_, pane)| pane) {
            for (slot, batches) in found.iter_mut().enumerate() {
                batches.extend(pane.tree.batches(slot).cloned());
            }
        }
        for (slot, batches) in found.iter_mut().enumerate() {
            batches.extend(self.late(window, slot));
        }
        rewindow(plan, plan.dedup_key_sets(found).await?, window)
    }

    /// The late additions of one slot that `window` accepts.
    fn late(&self, window: Window, slot: usize) -> impl Iterator<Item = RecordBatch> {
        let panes = self.panes.range(window.start..window.end);
        let late = panes.flat_map(|(_, pane)| &pane.late);
        let accepted = late.filter(move |(refused, _)| *refused < window.end);
        accepted.filter_map(move |(_, batches)| batches.get(slot).cloned().flatten())
    }

    /// Returns the state of `window`, which closes. Call it in the order of window ends.
    pub async fn close_window(&mut self, plan: &QueryPlan, window: Window) -> Result<WindowState> {
        if window.start < self.merges.last_merged || window.end < self.merges.stacked_until {
            return Ok(self.merge_window(plan, window).await?.into());
        }
        self.merges.last_merged = window.start;
        while self.merges.front.last().is_some_and(|(start, _)| *start < window.start) {
            self.merges.front.pop();
        }
        let back_has_expired = self.merges.back_from.is_some_and(|from| from < window.start);
        if self.merges.front.is_empty() && back_has_expired {
            self.move_back_to_front(plan, window).await?;
        }
        self.push_to_back(plan, window).await?;
        let (mut found, mut counts) = (Vec::new(), Vec::new());
        for slot in 0..plan.slots() {
            let late: Vec<_> = self.late(window, slot).collect();
            let counted = self.count_keys(plan, slot, &late)?;
            let RunningMerges { front, back, .. } = &self.merges;
            let merges = front.last().map(|(_, suffix)| suffix).into_iter().chain([back]);
            let merges = merges.filter_map(|batches| batches.get(slot).cloned().flatten());
            found.push(if counted.is_some() { Vec::new() } else { merges.chain(late).collect() });
            counts.push(counted);
        }
        let sources = found.iter().map(Vec::len).max();
        let found = if sources > Some(1) { plan.dedup_key_sets(found).await? } else { found };
        Ok(WindowState { batches: rewindow(plan, found, window)?, counts })
    }

    /// Counts the keys per group in the running merges and in `late`; `None` if the query needs
    /// more than the counts.
    fn count_keys(
        &mut self,
        plan: &QueryPlan,
        slot: usize,
        late: &[RecordBatch],
    ) -> Result<Option<RecordBatch>> {
        let front = self.merges.front.len();
        let set = self.merges.key_sets.get_mut(slot).and_then(Option::as_mut);
        let Some(set) = set.filter(|_| plan.uses_counts(slot)) else { return Ok(None) };
        let late = (!late.is_empty()).then(|| plan.concat(slot, late.to_vec())).transpose()?;
        Ok(set.counts(front, late.as_ref())?)
    }

    /// Pushes the panes of `window` that are not stacked yet into the back.
    async fn push_to_back(&mut self, plan: &QueryPlan, window: Window) -> Result<()> {
        let merges = &mut self.merges;
        let from = merges.stacked_until.max(window.start);
        merges.back.resize(plan.slots(), None);
        merges.create_key_sets(plan)?;
        for (start, pane) in self.panes.range_mut(from..window.end.max(from)) {
            for (slot, back) in merges.back.iter_mut().enumerate() {
                let Some(set) = &mut merges.key_sets[slot] else {
                    let batch = pane.tree.flatten_slot(plan, slot).await?;
                    *back = merge(plan, slot, back.take(), batch).await?;
                    continue;
                };
                let new_keys = pane.tree.flatten_set(plan, slot, set)?;
                if let Some(new_keys) = new_keys.filter(|keys| keys.num_rows() > 0) {
                    *back = Some(
                        plan.concat(slot, back.take().into_iter().chain([new_keys]).collect())?,
                    );
                }
            }
            merges.back_from.get_or_insert(*start);
        }
        merges.stacked_until = merges.stacked_until.max(window.end);
        Ok(())
    }

    /// Moves the panes of the back to the front. Late additions that every window from now on
    /// accepts become part of their panes.
    async fn move_back_to_front(&mut self, plan: &QueryPlan, window: Window) -> Result<()> {
        let until = self.merges.stacked_until.max(window.start);
        for pane in self.panes.range_mut(window.start..until).map(|(_, pane)| pane) {
            let (accepted, rest) = std::mem::take(&mut pane.late)
                .into_iter()
                .partition::<Vec<_>, _>(|(refused, _)| *refused < window.end);
            pane.late = rest;
            for (_, batches) in accepted {
                pane.tree.push_unchecked(plan, batches).await?;
            }
        }
        self.merges.front_until = self.merges.stacked_until;
        self.merges.clear_back()?;
        self.rebuild_front(plan).await
    }

    /// Builds the suffix merges over the panes from the start of the last merged window to the end
    /// of the front, and the key sets of the panes. The key sets must be empty.
    pub async fn rebuild_front(&mut self, plan: &QueryPlan) -> Result<()> {
        let RunningMerges { last_merged, front_until, .. } = self.merges;
        self.merges.front.clear();
        self.merges.create_key_sets(plan)?;
        // For key sets: the keys that each pane adds to the panes after it, and their number from
        // the last pane up to each pane.
        let mut added = vec![Vec::new(); plan.slots()];
        let mut rows = vec![0; plan.slots()];
        let mut front: Vec<(Micros, SlotBatches, Vec<usize>)> = Vec::new();
        let mut suffix: SlotBatches = vec![None; plan.slots()];
        for (start, pane) in self.panes.range_mut(last_merged..front_until.max(last_merged)).rev() {
            for (slot, set) in self.merges.key_sets.iter_mut().enumerate() {
                let batch = pane.tree.flatten_slot(plan, slot).await?;
                let Some(set) = set else {
                    suffix[slot] = merge(plan, slot, batch, suffix[slot].take()).await?;
                    continue;
                };
                let batch = batch.map_or_else(|| plan.concat(slot, Vec::new()), Ok)?;
                let new_keys = set.add_to_front(&batch)?;
                rows[slot] += new_keys.num_rows();
                added[slot].push(new_keys);
            }
            front.push((*start, suffix.clone(), rows.clone()));
        }
        for (slot, added) in
            added.into_iter().enumerate().filter(|(slot, _)| plan.is_key_set(*slot))
        {
            let all = plan.concat(slot, added)?;
            for (_, batches, rows) in &mut front {
                batches[slot] = (rows[slot] > 0).then(|| all.slice(0, rows[slot]));
            }
        }
        self.merges.front = front.into_iter().map(|(start, batches, _)| (start, batches)).collect();
        for (set, back) in self.merges.key_sets.iter_mut().zip(&self.merges.back) {
            if let (Some(set), Some(back)) = (set, back) {
                set.add_to_back(back)?;
            }
        }
        Ok(())
    }

    /// Drops panes whose last window has expired, and merges late additions that every later window
    /// accepts. Windows that end at `expired` or earlier have expired.
    pub async fn expire(&mut self, plan: &QueryPlan, expired: Micros) -> Result<()> {
        self.panes.retain(|_, pane| pane.last_end > expired);
        if self.panes.is_empty() {
            self.merges.front.clear();
            self.merges.clear_back()?;
        }
        for pane in self.panes.values_mut().filter(|pane| pane.late.len() > MAX_LATE) {
            let (accepted, rest) = std::mem::take(&mut pane.late)
                .into_iter()
                .partition::<Vec<_>, _>(|(refused, _)| *refused <= expired);
            pane.late = rest;
            let mut merged = SlotBatches::new();
            for slot in 0..plan.slots() {
                let batches =
                    accepted.iter().filter_map(|(_, batches)| batches.get(slot).cloned().flatten());
                let batches: Vec<_> = batches.collect();
                merged.push(match batches.is_empty() {
                    true => None,
                    false => Some(plan.reduce(slot, batches).await?),
                });
            }
            if !accepted.is_empty() {
                pane.late.insert(0, (expired, merged));
            }
        }
        Ok(())
    }

    /// All batches except those of the front, which repeat those of the panes.
    pub fn all(&self) -> impl Iterator<Item = &RecordBatch> {
        let panes = self.panes.values().flat_map(|pane| {
            pane.tree
                .all()
                .chain(pane.late.iter().flat_map(|(_, batches)| batches.iter().flatten()))
        });
        panes.chain(self.merges.back.iter().flatten())
    }
}

/// Merges two batches of one slot, in this order.
async fn merge(
    plan: &QueryPlan,
    slot: usize,
    first: Option<RecordBatch>,
    second: Option<RecordBatch>,
) -> Result<Option<RecordBatch>> {
    match (first, second) {
        (Some(first), Some(second)) => Ok(Some(plan.reduce(slot, vec![first, second]).await?)),
        (first, second) => Ok(first.or(second)),
    }
}

/// Removes duplicate keys from the key sets.
async fn distinct_key_sets(plan: &QueryPlan, mut batches: SlotBatches) -> Result<SlotBatches> {
    for (slot, batch) in batches.iter_mut().enumerate().filter(|(slot, _)| plan.is_key_set(*slot)) {
        if let Some(repeating) = batch.take() {
            *batch = Some(plan.reduce(slot, vec![repeating]).await?);
        }
    }
    Ok(batches)
}

/// Replaces the window that the batches of panes contain by `window`.
fn rewindow(
    plan: &QueryPlan,
    found: Vec<Vec<RecordBatch>>,
    window: Window,
) -> Result<Vec<Vec<RecordBatch>>> {
    let slots = found.into_iter().enumerate();
    slots
        .map(|(slot, batches)| {
            batches.iter().map(|batch| plan.set_window(slot, batch, window)).collect()
        })
        .collect()
}
