//! What is kept of one bucket: per slot a stack of batches that are merged in tiers.
//!
//! Invariants: levels never rise towards the newest batch, and fewer than [`FAN_IN`] neighbours
//! have the same level; a batch once written never changes. When batches merge, and in which
//! order, is a function of how many were pushed, never of their size, of time or of memory.

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::sql::QueryPlan;

/// So many batches of one level make one of the next: each row is merged once per level.
const FAN_IN: usize = 8;

/// One batch per slot; `None` where nothing is kept yet.
pub(crate) type Kept = Vec<Option<RecordBatch>>;

/// A batch and how many merges it stems from.
#[derive(Debug, Clone)]
pub(crate) struct Tier {
    pub level: u32,
    pub batch: RecordBatch,
}

/// The stacks of all slots, the oldest batches first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tiers {
    pub slots: Vec<Vec<Tier>>,
}

impl Tiers {
    /// Adds what an epoch brought, one batch per slot.
    pub async fn push(&mut self, plan: &QueryPlan, kept: Kept) -> Result<()> {
        self.slots.resize_with(kept.len().max(self.slots.len()), Vec::new);
        for (slot, batch) in kept.into_iter().enumerate() {
            let Some(batch) = batch else { continue };
            let stack = &mut self.slots[slot];
            stack.push(Tier { level: 0, batch });
            while let Some(level) = full_level(stack) {
                let merged = stack.split_off(stack.len() - FAN_IN);
                let batches = merged.into_iter().map(|tier| tier.batch).collect();
                stack.push(Tier { level: level + 1, batch: plan.reduce(slot, batches).await? });
            }
        }
        debug_assert!(self.slots.iter().all(|s| s.is_sorted_by(|a, b| a.level >= b.level)));
        Ok(())
    }

    /// Everything as one batch per slot, which becomes the only tier.
    pub async fn flatten(&mut self, plan: &QueryPlan) -> Result<Kept> {
        let mut kept = Vec::with_capacity(self.slots.len());
        for (slot, stack) in self.slots.iter_mut().enumerate() {
            if stack.len() > 1 {
                let level = stack.first().map_or(0, |tier| tier.level) + 1;
                let batches = stack.drain(..).map(|tier| tier.batch).collect();
                stack.push(Tier { level, batch: plan.reduce(slot, batches).await? });
            }
            kept.push(stack.last().map(|tier| tier.batch.clone()));
        }
        Ok(kept)
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

/// The level of the newest batches, if there are enough of it to merge.
fn full_level(stack: &[Tier]) -> Option<u32> {
    let newest = stack.len().checked_sub(FAN_IN)?;
    let level = stack.last()?.level;
    stack[newest..].iter().all(|tier| tier.level == level).then_some(level)
}

/// `first`, then `second`, per slot.
pub(crate) async fn merge(plan: &QueryPlan, first: &Kept, second: &Kept) -> Result<Kept> {
    let mut merged = Vec::with_capacity(first.len().max(second.len()));
    for slot in 0..first.len().max(second.len()) {
        let one = first.get(slot).cloned().flatten();
        let other = second.get(slot).cloned().flatten();
        merged.push(match (one, other) {
            (Some(one), Some(other)) => Some(plan.reduce(slot, vec![one, other]).await?),
            (one, other) => one.or(other),
        });
    }
    Ok(merged)
}
