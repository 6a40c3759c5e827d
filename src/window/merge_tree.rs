//! What is kept of one bucket: per slot a stack of batches that are merged in tiers.
//!
//! Invariants: levels never rise towards the newest batch, and fewer than [`FAN_IN`] neighbours
//! have the same level (but of large sets); a batch once written never changes. When batches merge,
//! and in which order, is a function of what was pushed, never of time or of memory.
//!
//! Of a set only the keys that are new are kept, so that its batches have no key in common and
//! merge without being grouped again. The table that tells which are new is made from the batches
//! when it is needed first, so it is no part of the state.

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::planner::QueryPlan;
use crate::state::{KeySet, NewKeys, SlidingKeySet};

/// So many batches of one level make one of the next: each row is merged once per level.
const FAN_IN: usize = 8;

/// More rows than this of a set are not copied into one batch: that would save nothing.
const MOST_JOINED: usize = 65_536;

/// One batch per slot; `None` where nothing is kept yet.
pub(crate) type Kept = Vec<Option<RecordBatch>>;

/// A batch and how many merges it stems from.
#[derive(Debug, Clone)]
pub(crate) struct Tier {
    pub level: u32,
    pub batch: RecordBatch,
}

/// The stacks of all slots, the oldest batches first.
#[derive(Debug, Default)]
pub(crate) struct MergeTree {
    pub slots: Vec<Vec<Tier>>,
    /// Of the slots that are sets, the keys in the stack.
    seen: Vec<Option<KeySet>>,
}

impl MergeTree {
    pub fn new(slots: Vec<Vec<Tier>>) -> Self {
        Self { slots, seen: Vec::new() }
    }

    /// Adds what an epoch brought, one batch per slot.
    pub async fn push(&mut self, plan: &QueryPlan, kept: Kept) -> Result<()> {
        self.make_room(kept.len());
        for (slot, batch) in kept.into_iter().enumerate() {
            let Some(mut batch) = batch else { continue };
            let is_set = plan.is_key_set(slot);
            if is_set {
                batch = self.fresh(plan, slot, &batch)?;
                if batch.num_rows() == 0 {
                    continue;
                }
            }
            let stack = &mut self.slots[slot];
            stack.push(Tier { level: 0, batch });
            while !(is_set && is_large(stack))
                && let Some((level, batches)) = take_full_level(stack)
            {
                let batch = match is_set {
                    true => plan.concat(slot, batches)?,
                    false => plan.reduce(slot, batches).await?,
                };
                stack.push(Tier { level: level + 1, batch });
            }
        }
        Ok(())
    }

    /// Adds what an epoch brought, one batch per slot; sets with all keys as they come.
    pub async fn pile(&mut self, plan: &QueryPlan, kept: Kept) -> Result<()> {
        self.make_room(kept.len());
        for (slot, batch) in kept.into_iter().enumerate() {
            let Some(batch) = batch else { continue };
            let stack = &mut self.slots[slot];
            stack.push(Tier { level: 0, batch });
            while let Some((level, batches)) = take_full_level(stack) {
                let batch = plan.reduce(slot, batches).await?;
                stack.push(Tier { level: level + 1, batch });
            }
        }
        debug_assert!(self.slots.iter().all(|s| s.is_sorted_by(|a, b| a.level >= b.level)));
        Ok(())
    }

    fn make_room(&mut self, slots: usize) {
        self.slots.resize_with(slots.max(self.slots.len()), Vec::new);
        self.seen.resize_with(self.slots.len(), || None);
    }

    /// Sets whose batches may have keys in common get one batch of all.
    pub async fn part_sets(&mut self, plan: &QueryPlan) -> Result<()> {
        for (slot, stack) in self.slots.iter_mut().enumerate() {
            if plan.is_key_set(slot) && stack.len() > 1 {
                let level = stack.first().map_or(0, |tier| tier.level) + 1;
                let batches = stack.drain(..).map(|tier| tier.batch).collect();
                stack.push(Tier { level, batch: plan.reduce(slot, batches).await? });
            }
        }
        Ok(())
    }

    /// What was piled up of one slot, as one batch, which becomes the only tier. A set's only batch
    /// of level 0 may repeat keys.
    pub async fn flatten_slot(
        &mut self,
        plan: &QueryPlan,
        slot: usize,
    ) -> Result<Option<RecordBatch>> {
        let Some(stack) = self.slots.get_mut(slot) else { return Ok(None) };
        let level = stack.first().map_or(0, |tier| tier.level);
        if stack.len() > 1 || (level == 0 && !stack.is_empty() && plan.is_key_set(slot)) {
            let batches = stack.drain(..).map(|tier| tier.batch).collect();
            stack.push(Tier { level: level + 1, batch: plan.reduce(slot, batches).await? });
        }
        Ok(stack.last().map(|tier| tier.batch.clone()))
    }

    /// A set that was piled up becomes its distinct keys, and joins the back of `seen`; those that
    /// this lacked.
    pub fn flatten_set(
        &mut self,
        plan: &QueryPlan,
        slot: usize,
        seen: &mut SlidingKeySet,
    ) -> Result<Option<RecordBatch>> {
        let Some(stack) = self.slots.get_mut(slot).filter(|stack| !stack.is_empty()) else {
            return Ok(None);
        };
        let level = stack.first().map_or(0, |tier| tier.level) + 1;
        let batches = stack.drain(..).map(|tier| tier.batch).collect();
        let NewKeys { distinct, fresh } = seen.add_to_back(&plan.concat(slot, batches)?)?;
        stack.push(Tier { level, batch: distinct });
        Ok(Some(fresh))
    }

    /// The keys of `batch` that the set lacks.
    fn fresh(&mut self, plan: &QueryPlan, slot: usize, batch: &RecordBatch) -> Result<RecordBatch> {
        let seen = match &mut self.seen[slot] {
            Some(seen) => seen,
            none => {
                let mut groups = plan.new_key_set(slot)?;
                self.slots[slot].iter().try_for_each(|tier| groups.take(&tier.batch))?;
                none.insert(groups)
            }
        };
        Ok(seen.fresh(batch)?)
    }

    /// How many keys of a set each group has, of a window that has closed for good: the table that
    /// tells new keys from old ones goes. `None` where that does not know.
    pub fn take_counts(&mut self, slot: usize) -> Result<Option<RecordBatch>> {
        let seen = self.seen.get_mut(slot).and_then(Option::take);
        Ok(seen.map(|mut seen| seen.take_counts()).transpose()?.flatten())
    }

    /// The batches of one slot, the oldest first.
    pub fn batches(&self, slot: usize) -> impl Iterator<Item = &RecordBatch> {
        self.slots.get(slot).into_iter().flatten().map(|tier| &tier.batch)
    }

    /// All batches.
    pub fn all(&self) -> impl Iterator<Item = &RecordBatch> {
        self.slots.iter().flatten().map(|tier| &tier.batch)
    }
}

/// Whether the newest batches of a set are too large to be worth a copy.
fn is_large(stack: &[Tier]) -> bool {
    let newest = stack.iter().rev().take(FAN_IN);
    newest.map(|tier| tier.batch.num_rows()).sum::<usize>() > MOST_JOINED
}

/// The newest batches and their level, if there are enough of it to merge.
fn take_full_level(stack: &mut Vec<Tier>) -> Option<(u32, Vec<RecordBatch>)> {
    let newest = stack.len().checked_sub(FAN_IN)?;
    let level = stack.last()?.level;
    let is_full = stack[newest..].iter().all(|tier| tier.level == level);
    is_full.then(|| (level, stack.drain(newest..).map(|tier| tier.batch).collect()))
}
