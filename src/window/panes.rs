//! Hopping windows from panes: what is kept is kept once per pane, and windows are merged from it.
//!
//! ```text
//!   panes      p1    p2    p3    p4 │  p5    p6 │  p7 ..        the window that closes: p2..p6
//!   front      ·    p2-4  p3-4   p4 │           │               suffix merges, popped from the left
//!   back                            │  p5-6     │               one running merge, fed from the right
//!   result  =  p2-4  +  p5-6  +  late additions of p2..p6
//! ```
//! Each close pushes the panes that are new to it into the back and pops those that have left; when
//! the front is used up it is rebuilt from the panes behind. So a pane is merged about three times
//! in all, however many windows it belongs to.
//!
//! Of a slot that is a set, a pane adds only the keys that the back lacks, and nothing is grouped
//! again; the front is one batch of what each pane adds to those after it, and its suffix merges are
//! slices of that. Where only the number of keys by group is asked for, it comes from the last pane
//! of each key, and nothing is merged.
//!
//! Invariants:
//! - windows close in the order of their ends; one that starts before the last that was merged, or
//!   ends before the newest stacked pane (clocks put back make such), is merged from its panes;
//! - the panes' own batches do not change once stacked: rows that come later, or that some window of
//!   the pane refused, are late additions, merged into each window that takes them, until the pane
//!   is stacked anew or its last window has closed;
//! - so the merges are a function of the epochs, and can be rebuilt from the panes.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::planner::{QueryPlan, WindowState};
use crate::state::SlidingKeySet;
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::epoch_buffer::Bucket;
use crate::window::merge_tree::{Kept, MergeTree};

/// The window that all panes' batches name, so that they merge; a close puts the real one in.
pub(crate) const ANY_WINDOW: Window = Window { start: 0, end: 0 };

/// More late additions than this of one pane are merged.
const MOST_LATE: usize = 8;

/// One pane.
#[derive(Debug)]
pub(crate) struct Pane {
    pub window: Window,
    /// When its last window ends.
    pub last_end: Micros,
    /// The windows that end after this are known to hold it.
    pub known_from: Micros,
    /// What came before it was stacked, piled up.
    pub tiers: MergeTree,
    /// What came later, and up to which end its windows refused it.
    pub late: Vec<(Micros, Kept)>,
}

/// The running merges.
#[derive(Debug)]
pub(crate) struct Stacks {
    /// The start of the last window that was merged.
    pub served: Micros,
    /// Panes that start before this are stacked.
    pub until: Micros,
    /// Panes that start before this are, or were, in the front.
    pub front_until: Micros,
    /// The start of the first pane in the back.
    pub back_from: Option<Micros>,
    /// One batch per slot.
    pub back: Kept,
    /// Of the slots that are sets, the panes of the front and the back again; made when they are
    /// first needed.
    pub sets: Vec<Option<SlidingKeySet>>,
    /// (start of the pane, merge of it and all later ones of the front); the earliest is last.
    pub front: Vec<(Micros, Kept)>,
}

/// The panes of a query.
#[derive(Debug)]
pub(crate) struct Panes {
    pub panes: BTreeMap<Micros, Pane>,
    pub stacks: Stacks,
}

impl Stacks {
    fn empty_back(&mut self) -> Result<()> {
        self.back.clear();
        self.back_from = None;
        Ok(self.sets.iter_mut().flatten().try_for_each(SlidingKeySet::clear)?)
    }

    fn make_sets(&mut self, plan: &QueryPlan) -> Result<()> {
        for slot in self.sets.len()..plan.slots() {
            self.sets
                .push(plan.is_key_set(slot).then(|| plan.new_sliding_key_set(slot)).transpose()?);
        }
        Ok(())
    }
}

impl Panes {
    pub fn new() -> Self {
        let stacks = Stacks {
            served: MIN_TIME,
            until: MIN_TIME,
            front_until: MIN_TIME,
            back_from: None,
            back: Kept::new(),
            sets: Vec::new(),
            front: Vec::new(),
        };
        Self { panes: BTreeMap::new(), stacks }
    }

    /// Adds what an epoch brought to a pane, whose windows are `windows`. Answers whether windows
    /// that end after `bucket.refused` hold the pane for the first time.
    pub async fn add(
        &mut self,
        plan: &QueryPlan,
        bucket: Bucket,
        windows: &[Window],
        kept: Kept,
    ) -> Result<bool> {
        let stacked = bucket.window.start < self.stacks.until;
        let pane = self.panes.entry(bucket.window.start).or_insert_with(|| Pane {
            window: bucket.window,
            last_end: windows.iter().map(|w| w.end).max().unwrap_or(bucket.window.end),
            known_from: Micros::MAX,
            tiers: MergeTree::default(),
            late: Vec::new(),
        });
        let news = bucket.refused < pane.known_from;
        pane.known_from = pane.known_from.min(bucket.refused);
        if stacked || bucket.refused > MIN_TIME {
            pane.late.push((bucket.refused, distinct(plan, kept).await?));
        } else {
            pane.tiers.pile(plan, kept).await?;
        }
        Ok(news)
    }

    /// What `window` holds, from its panes, per slot. Leaves the running merges alone.
    pub async fn gather(&self, plan: &QueryPlan, window: Window) -> Result<Vec<Vec<RecordBatch>>> {
        let mut found = vec![Vec::new(); plan.slots()];
        for pane in self.panes.range(window.start..window.end).map(|(_, pane)| pane) {
            for (slot, batches) in found.iter_mut().enumerate() {
                batches.extend(pane.tiers.batches(slot).cloned());
            }
        }
        for (slot, batches) in found.iter_mut().enumerate() {
            batches.extend(self.late(window, slot));
        }
        rewindow(plan, plan.dedup_key_sets(found).await?, window)
    }

    /// The late additions that `window` takes, of one slot.
    fn late(&self, window: Window, slot: usize) -> impl Iterator<Item = RecordBatch> {
        let panes = self.panes.range(window.start..window.end);
        let late = panes.flat_map(|(_, pane)| &pane.late);
        let taken = late.filter(move |(refused, _)| *refused < window.end);
        taken.filter_map(move |(_, kept)| kept.get(slot).cloned().flatten())
    }

    /// What `window`, which closes, holds. To be called in the order of ends.
    pub async fn close(&mut self, plan: &QueryPlan, window: Window) -> Result<WindowState> {
        if window.start < self.stacks.served || window.end < self.stacks.until {
            return Ok(self.gather(plan, window).await?.into());
        }
        self.stacks.served = window.start;
        while self.stacks.front.last().is_some_and(|(start, _)| *start < window.start) {
            self.stacks.front.pop();
        }
        let back_leaves = self.stacks.back_from.is_some_and(|from| from < window.start);
        if self.stacks.front.is_empty() && back_leaves {
            self.turn(plan, window).await?;
        }
        self.stack(plan, window).await?;
        let (mut found, mut counts) = (Vec::new(), Vec::new());
        for slot in 0..plan.slots() {
            let late: Vec<_> = self.late(window, slot).collect();
            let counted = self.count(plan, slot, &late)?;
            let Stacks { front, back, .. } = &self.stacks;
            let merges = front.last().map(|(_, kept)| kept).into_iter().chain([back]);
            let merges = merges.filter_map(|kept| kept.get(slot).cloned().flatten());
            found.push(if counted.is_some() { Vec::new() } else { merges.chain(late).collect() });
            counts.push(counted);
        }
        let sources = found.iter().map(Vec::len).max();
        let found = if sources > Some(1) { plan.dedup_key_sets(found).await? } else { found };
        Ok(WindowState { batches: rewindow(plan, found, window)?, counts })
    }

    /// How many keys each group has in the running merges and in `late`, if that is all that is
    /// asked for.
    fn count(
        &mut self,
        plan: &QueryPlan,
        slot: usize,
        late: &[RecordBatch],
    ) -> Result<Option<RecordBatch>> {
        let front = self.stacks.front.len();
        let set = self.stacks.sets.get_mut(slot).and_then(Option::as_mut);
        let Some(set) = set.filter(|_| plan.uses_counts(slot)) else { return Ok(None) };
        let late = (!late.is_empty()).then(|| plan.concat(slot, late.to_vec())).transpose()?;
        Ok(set.counts(front, late.as_ref())?)
    }

    /// Feeds the back with the panes of `window` that are not stacked yet.
    async fn stack(&mut self, plan: &QueryPlan, window: Window) -> Result<()> {
        let stacks = &mut self.stacks;
        let from = stacks.until.max(window.start);
        stacks.back.resize(plan.slots(), None);
        stacks.make_sets(plan)?;
        for (start, pane) in self.panes.range_mut(from..window.end.max(from)) {
            for (slot, back) in stacks.back.iter_mut().enumerate() {
                let Some(set) = &mut stacks.sets[slot] else {
                    let kept = pane.tiers.flatten_slot(plan, slot).await?;
                    *back = merge(plan, slot, back.take(), kept).await?;
                    continue;
                };
                let fresh = pane.tiers.flatten_set(plan, slot, set)?;
                if let Some(fresh) = fresh.filter(|fresh| fresh.num_rows() > 0) {
                    *back =
                        Some(plan.concat(slot, back.take().into_iter().chain([fresh]).collect())?);
                }
            }
            stacks.back_from.get_or_insert(*start);
        }
        stacks.until = stacks.until.max(window.end);
        Ok(())
    }

    /// Moves the back to the front. Late additions that every window from now on takes become
    /// part of their panes.
    async fn turn(&mut self, plan: &QueryPlan, window: Window) -> Result<()> {
        let until = self.stacks.until.max(window.start);
        for pane in self.panes.range_mut(window.start..until).map(|(_, pane)| pane) {
            let (taken, left) = std::mem::take(&mut pane.late)
                .into_iter()
                .partition::<Vec<_>, _>(|(refused, _)| *refused < window.end);
            pane.late = left;
            for (_, kept) in taken {
                pane.tiers.pile(plan, kept).await?;
            }
        }
        self.stacks.front_until = self.stacks.until;
        self.stacks.empty_back()?;
        self.rebuild_front(plan).await
    }

    /// The suffix merges over the panes from the last window's start to the front's end, and sets
    /// of the panes; there are none yet.
    pub async fn rebuild_front(&mut self, plan: &QueryPlan) -> Result<()> {
        let Stacks { served, front_until, .. } = self.stacks;
        self.stacks.front.clear();
        self.stacks.make_sets(plan)?;
        // Of sets, what each pane adds to those after it, and how much that is up to each pane.
        let mut added = vec![Vec::new(); plan.slots()];
        let mut rows = vec![0; plan.slots()];
        let mut front: Vec<(Micros, Kept, Vec<usize>)> = Vec::new();
        let mut suffix: Kept = vec![None; plan.slots()];
        for (start, pane) in self.panes.range_mut(served..front_until.max(served)).rev() {
            for (slot, set) in self.stacks.sets.iter_mut().enumerate() {
                let kept = pane.tiers.flatten_slot(plan, slot).await?;
                let Some(set) = set else {
                    suffix[slot] = merge(plan, slot, kept, suffix[slot].take()).await?;
                    continue;
                };
                let kept = kept.map_or_else(|| plan.concat(slot, Vec::new()), Ok)?;
                let fresh = set.add_to_front(&kept)?;
                rows[slot] += fresh.num_rows();
                added[slot].push(fresh);
            }
            front.push((*start, suffix.clone(), rows.clone()));
        }
        for (slot, added) in
            added.into_iter().enumerate().filter(|(slot, _)| plan.is_key_set(*slot))
        {
            let all = plan.concat(slot, added)?;
            for (_, kept, rows) in &mut front {
                kept[slot] = (rows[slot] > 0).then(|| all.slice(0, rows[slot]));
            }
        }
        self.stacks.front = front.into_iter().map(|(start, kept, _)| (start, kept)).collect();
        for (set, back) in self.stacks.sets.iter_mut().zip(&self.stacks.back) {
            if let (Some(set), Some(back)) = (set, back) {
                set.add_to_back(back)?;
            }
        }
        Ok(())
    }

    /// Drops panes whose last window is over, and merges late additions that every window to come
    /// takes. `over`: windows that end here or earlier are done with.
    pub async fn tidy(&mut self, plan: &QueryPlan, over: Micros) -> Result<()> {
        self.panes.retain(|_, pane| pane.last_end > over);
        if self.panes.is_empty() {
            self.stacks.front.clear();
            self.stacks.empty_back()?;
        }
        for pane in self.panes.values_mut().filter(|pane| pane.late.len() > MOST_LATE) {
            let (taken, left) = std::mem::take(&mut pane.late)
                .into_iter()
                .partition::<Vec<_>, _>(|(refused, _)| *refused <= over);
            pane.late = left;
            let mut merged = Kept::new();
            for slot in 0..plan.slots() {
                let batches =
                    taken.iter().filter_map(|(_, kept)| kept.get(slot).cloned().flatten());
                let batches: Vec<_> = batches.collect();
                merged.push(match batches.is_empty() {
                    true => None,
                    false => Some(plan.reduce(slot, batches).await?),
                });
            }
            if !taken.is_empty() {
                pane.late.insert(0, (over, merged));
            }
        }
        Ok(())
    }

    /// All batches but the front's, which repeat those of the panes.
    pub fn all(&self) -> impl Iterator<Item = &RecordBatch> {
        let panes = self.panes.values().flat_map(|pane| {
            pane.tiers.all().chain(pane.late.iter().flat_map(|(_, kept)| kept.iter().flatten()))
        });
        panes.chain(self.stacks.back.iter().flatten())
    }
}

/// `first`, then `second`, of one slot.
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

/// Sets with each key once.
async fn distinct(plan: &QueryPlan, mut kept: Kept) -> Result<Kept> {
    for (slot, batch) in kept.iter_mut().enumerate().filter(|(slot, _)| plan.is_key_set(*slot)) {
        if let Some(repeating) = batch.take() {
            *batch = Some(plan.reduce(slot, vec![repeating]).await?);
        }
    }
    Ok(kept)
}

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
