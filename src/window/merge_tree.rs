//! The state of one bucket: per state slot a stack of batches that are merged in tiers, like the
//! levels of an LSM tree.
//!
//! ```text
//! oldest                                              newest
//! [level 2 ........] [level 1 ...] [level 1 ...] [0] [0] [0]
//! ```
//!
//! Invariants: levels never rise towards the newest batch, and fewer than [`FAN_IN`] neighbours
//! have the same level (except in large key sets); a batch never changes. When batches merge, and
//! in which order, is a function of the pushed batches, never of time or of memory.
//!
//! [`MergeTree::push`] stores only the new keys of a key set. So the batches of a set have no key in
//! common and merge without being grouped again. The table that finds new keys is built from the
//! batches when it is first needed; it is not part of the state.

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::planner::QueryPlan;
use crate::state::{KeySet, NewKeys, SlidingKeySet};

/// The number of batches of one level that merge into one of the next: each row is merged once per
/// level.
const FAN_IN: usize = 8;

/// The largest number of rows of a key set that are copied into one batch. A larger copy costs more
/// than it saves.
const MAX_CONCAT_ROWS: usize = 65_536;

/// One batch per state slot; `None` for a slot without rows.
pub(crate) type SlotBatches = Vec<Option<RecordBatch>>;

/// A batch, and the number of merges that it has been through.
#[derive(Debug, Clone)]
pub(crate) struct Tier {
    pub level: u32,
    pub batch: RecordBatch,
}

/// The stacks of all state slots, each with the oldest batch first.
#[derive(Debug, Default)]
pub(crate) struct MergeTree {
    pub slots: Vec<Vec<Tier>>,
    /// For slots that are key sets: the keys in the stack, once they are needed.
    key_sets: Vec<Option<KeySet>>,
}

impl MergeTree {
    /// Creates a tree with these stacks.
    pub fn new(slots: Vec<Vec<Tier>>) -> Self {
        Self { slots, key_sets: Vec::new() }
    }

    /// Adds the batches of an epoch. Of key sets, only new keys are added.
    pub async fn push(&mut self, plan: &QueryPlan, batches: SlotBatches) -> Result<()> {
        self.resize(batches.len());
        for (slot, batch) in batches.into_iter().enumerate() {
            let Some(mut batch) = batch else { continue };
            let is_set = plan.is_key_set(slot);
            if is_set {
                batch = self.new_keys(plan, slot, &batch)?;
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

    /// Adds the batches of an epoch without looking for new keys, so key sets may contain keys
    /// twice.
    pub async fn push_unchecked(&mut self, plan: &QueryPlan, batches: SlotBatches) -> Result<()> {
        self.resize(batches.len());
        for (slot, batch) in batches.into_iter().enumerate() {
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

    fn resize(&mut self, slots: usize) {
        self.slots.resize_with(slots.max(self.slots.len()), Vec::new);
        self.key_sets.resize_with(self.slots.len(), || None);
    }

    /// Merges the batches of each key set into one, because they may have keys in common.
    pub async fn merge_key_sets(&mut self, plan: &QueryPlan) -> Result<()> {
        for (slot, stack) in self.slots.iter_mut().enumerate() {
            if plan.is_key_set(slot) && stack.len() > 1 {
                let level = stack.first().map_or(0, |tier| tier.level) + 1;
                let batches = stack.drain(..).map(|tier| tier.batch).collect();
                stack.push(Tier { level, batch: plan.reduce(slot, batches).await? });
            }
        }
        Ok(())
    }

    /// Merges the stack of one slot into one batch and returns it; `None` if the stack is empty.
    /// The only batch of a key set is merged too if its level is 0, because it may contain keys
    /// twice.
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

    /// Merges the stack of a key set into one batch of distinct keys and adds them to the back of
    /// `sliding`. Returns the keys that the back lacked; `None` if the stack is empty.
    pub fn flatten_set(
        &mut self,
        plan: &QueryPlan,
        slot: usize,
        sliding: &mut SlidingKeySet,
    ) -> Result<Option<RecordBatch>> {
        let Some(stack) = self.slots.get_mut(slot).filter(|stack| !stack.is_empty()) else {
            return Ok(None);
        };
        let level = stack.first().map_or(0, |tier| tier.level) + 1;
        let batches = stack.drain(..).map(|tier| tier.batch).collect();
        let NewKeys { distinct, new_in_back } =
            sliding.add_to_back(&plan.concat(slot, batches)?)?;
        stack.push(Tier { level, batch: distinct });
        Ok(Some(new_in_back))
    }

    /// Adds the keys of `batch` to the key set of a slot. Returns the keys that it lacked.
    fn new_keys(
        &mut self,
        plan: &QueryPlan,
        slot: usize,
        batch: &RecordBatch,
    ) -> Result<RecordBatch> {
        let key_set = match &mut self.key_sets[slot] {
            Some(key_set) => key_set,
            none => {
                let mut key_set = plan.new_key_set(slot)?;
                self.slots[slot].iter().try_for_each(|tier| key_set.insert(&tier.batch))?;
                none.insert(key_set)
            }
        };
        Ok(key_set.insert_new(batch)?)
    }

    /// Returns the number of keys per group of a key set, and drops the table that finds new keys.
    /// So call it only for a window that receives no more rows. `None` if the table cannot count.
    pub fn take_counts(&mut self, slot: usize) -> Result<Option<RecordBatch>> {
        let key_set = self.key_sets.get_mut(slot).and_then(Option::take);
        Ok(key_set.map(|mut key_set| key_set.take_counts()).transpose()?.flatten())
    }

    /// The batches of one slot, the oldest first.
    pub fn batches(&self, slot: usize) -> impl Iterator<Item = &RecordBatch> {
        self.slots.get(slot).into_iter().flatten().map(|tier| &tier.batch)
    }

    /// The batches of all slots.
    pub fn all(&self) -> impl Iterator<Item = &RecordBatch> {
        self.slots.iter().flatten().map(|tier| &tier.batch)
    }
}

/// Whether the newest batches of a key set are too large to be copied into one.
fn is_large(stack: &[Tier]) -> bool {
    let newest = stack.iter().rev().take(FAN_IN);
    newest.map(|tier| tier.batch.num_rows()).sum::<usize>() > MAX_CONCAT_ROWS
}

/// Removes the newest batches and returns them with their level, if enough have the same level.
fn take_full_level(stack: &mut Vec<Tier>) -> Option<(u32, Vec<RecordBatch>)> {
    let newest = stack.len().checked_sub(FAN_IN)?;
    let level = stack.last()?.level;
    let is_full = stack[newest..].iter().all(|tier| tier.level == level);
    is_full.then(|| (level, stack.drain(newest..).map(|tier| tier.batch).collect()))
}
