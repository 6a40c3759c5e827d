//! An operator's state as a manifest and named batches, and back.
//!
//! Promise: a restored operator goes on exactly as the one that was saved would have. Batches are
//! shared, not copied. Running merges of panes are rebuilt from the panes, in the same order.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use chrono_tz::Tz;

use crate::error::{Error, Kind, Result};
use crate::planner::QueryPlan;
use crate::state::manifest::{
    BatchNames, OperatorManifest, PaneManifest, PanesManifest, TreeNames, WindowManifest,
};
use crate::time::Window;
use crate::window::merge_tree::{Kept, MergeTree, Tier};
use crate::window::operator::{OpenWindow, Operator};
use crate::window::panes::{Pane, Panes, Stacks};

/// The version of the manifest. Of version 1, sets of keys may have a key in several batches.
const VERSION: u32 = 2;

/// A query's state between two epochs.
#[derive(Debug, Clone)]
pub struct OperatorState {
    /// What the batches are.
    pub manifest: OperatorManifest,
    /// The batches, by names that the manifest uses; fit for file names.
    pub batches: Vec<(String, RecordBatch)>,
}

impl Operator {
    /// The state, as shared references. To be called between an epoch's end and the next rows.
    ///
    /// # Errors
    /// Rows have been pushed since the last epoch's end.
    pub fn snapshot(&self) -> Result<OperatorState> {
        if self.is_amid_epoch() {
            return Err(Error::internal("a snapshot was asked for in the middle of an epoch"));
        }
        let mut saver = Saver::default();
        let manifest = OperatorManifest {
            version: VERSION,
            watermark: self.watermark,
            windows: (self.windows.iter())
                .map(|((end, start), state)| {
                    (Window { start: *start, end: *end }, saver.window(state))
                })
                .collect(),
            view: saver.window(&self.view),
            panes: self.panes.as_ref().map(|panes| saver.panes(panes)),
        };
        Ok(OperatorState { manifest, batches: saver.batches })
    }

    /// The operator of which `state` was saved.
    ///
    /// # Errors
    /// The state is of another version or lacks batches (kind `Recovery`).
    pub async fn restore(plan: Arc<QueryPlan>, zone: Tz, state: OperatorState) -> Result<Self> {
        let mut operator = Self::new(plan, zone)?;
        let manifest = state.manifest;
        if !(1..=VERSION).contains(&manifest.version) {
            return Err(unreadable(format!("it has version {}", manifest.version)));
        }
        let batches = Loader { batches: state.batches.into_iter().collect() };
        operator.watermark = manifest.watermark;
        for (window, state) in manifest.windows {
            operator.windows.insert((window.end, window.start), batches.window(state)?);
        }
        operator.view = batches.window(manifest.view)?;
        if manifest.version == 1 {
            let states = operator.windows.values_mut().chain([&mut operator.view]);
            for state in states {
                state.tiers.part_sets(&operator.plan).await?;
            }
        }
        if let Some(panes) = manifest.panes {
            let mut panes = batches.panes(panes)?;
            panes.rebuild_front(&operator.plan).await?;
            operator.panes = Some(panes);
        }
        Ok(operator)
    }
}

fn unreadable(what: impl Into<String>) -> Error {
    Error::new(Kind::Recovery, "a query's saved state cannot be used").detail(what)
}

#[derive(Default)]
pub(super) struct Saver {
    pub(super) batches: Vec<(String, RecordBatch)>,
}

impl Saver {
    fn batch(&mut self, batch: &RecordBatch) -> String {
        let name = format!("{:06}", self.batches.len());
        self.batches.push((name.clone(), batch.clone()));
        name
    }

    fn kept(&mut self, kept: &Kept) -> BatchNames {
        kept.iter().map(|slot| slot.as_ref().map(|batch| self.batch(batch))).collect()
    }

    fn tiers(&mut self, tiers: &MergeTree) -> TreeNames {
        let slots = tiers.slots.iter();
        slots
            .map(|stack| stack.iter().map(|tier| (tier.level, self.batch(&tier.batch))).collect())
            .collect()
    }

    pub(super) fn window(&mut self, state: &OpenWindow) -> WindowManifest {
        WindowManifest {
            tree: self.tiers(&state.tiers),
            changed: state.changed,
            closed: state.closed,
            published: state.said.as_ref().map(|said| self.batch(said)),
            revision: state.revision,
        }
    }

    pub(super) fn panes(&mut self, panes: &Panes) -> PanesManifest {
        let Stacks { served, until, front_until, back_from, .. } = panes.stacks;
        PanesManifest {
            panes: (panes.panes.values())
                .map(|pane| PaneManifest {
                    window: pane.window,
                    last_end: pane.last_end,
                    known_from: pane.known_from,
                    tree: self.tiers(&pane.tiers),
                    late: (pane.late.iter())
                        .map(|(refused, kept)| (*refused, self.kept(kept)))
                        .collect(),
                })
                .collect(),
            last_merged: served,
            stacked_until: until,
            front_until,
            back_from,
            back: self.kept(&panes.stacks.back),
        }
    }
}

struct Loader {
    batches: HashMap<String, RecordBatch>,
}

impl Loader {
    fn batch(&self, name: String) -> Result<RecordBatch> {
        let batch = self.batches.get(&name).cloned();
        batch.ok_or_else(|| unreadable(format!("its batch {name} is missing")))
    }

    fn kept(&self, kept: BatchNames) -> Result<Kept> {
        kept.into_iter().map(|slot| slot.map(|name| self.batch(name)).transpose()).collect()
    }

    fn tiers(&self, slots: TreeNames) -> Result<MergeTree> {
        let tier = |(level, name)| Ok(Tier { level, batch: self.batch(name)? });
        let stacks = slots.into_iter().map(|stack| stack.into_iter().map(tier).collect());
        Ok(MergeTree::new(stacks.collect::<Result<_>>()?))
    }

    fn window(&self, state: WindowManifest) -> Result<OpenWindow> {
        Ok(OpenWindow {
            tiers: self.tiers(state.tree)?,
            changed: state.changed,
            closed: state.closed,
            said: state.published.map(|name| self.batch(name)).transpose()?,
            revision: state.revision,
        })
    }

    fn panes(&self, saved: PanesManifest) -> Result<Panes> {
        let mut panes = Panes::new();
        for pane in saved.panes {
            let late = pane.late.into_iter();
            let late = late.map(|(refused, kept)| Ok((refused, self.kept(kept)?)));
            let restored = Pane {
                window: pane.window,
                last_end: pane.last_end,
                known_from: pane.known_from,
                tiers: self.tiers(pane.tree)?,
                late: late.collect::<Result<_>>()?,
            };
            panes.panes.insert(pane.window.start, restored);
        }
        let PanesManifest { last_merged, stacked_until, front_until, back_from, back, .. } = saved;
        let (served, until) = (last_merged, stacked_until);
        let back = self.kept(back)?;
        let (sets, front) = (Vec::new(), Vec::new());
        panes.stacks = Stacks { served, until, front_until, back_from, back, sets, front };
        Ok(panes)
    }
}
