//! The state of an operator as a manifest and named batches, and back.
//!
//! **Promise:** a restored operator continues exactly as the one that was saved would have. Batches
//! are shared, not copied. Running merges of panes are rebuilt from the panes, in the same order.

use std::collections::HashMap;

use arrow::array::RecordBatch;

use crate::error::{Error, Kind, Result};
use crate::state::manifest::{
    BatchNames, OperatorManifest, PaneManifest, PanesManifest, TreeNames, WindowManifest,
};
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::merge_tree::{MergeTree, SlotBatches, Tier};
use crate::window::operator::result_state::ResultState;
use crate::window::panes::{Pane, Panes, RunningMerges};

/// The version of the manifest that is written.
const VERSION: u32 = 2;
/// In this version the batches of a key set may have keys in common.
pub(super) const FIRST_VERSION: u32 = 1;

/// The state of a query between two epochs.
#[derive(Debug, Clone)]
pub struct OperatorState {
    /// What the batches are.
    pub manifest: OperatorManifest,
    /// The batches, by names that the manifest uses; the names are fit for files.
    pub batches: Vec<(String, RecordBatch)>,
}

/// The state of a stateless query.
pub(super) fn stateless_state() -> OperatorState {
    StateWriter::default().finish(MIN_TIME, Vec::new(), empty_view(), None)
}

/// What queries that are not views write in the place of a view's state.
pub(super) fn empty_view() -> WindowManifest {
    WindowManifest { tree: Vec::new(), changed: true, closed: false, published: None, revision: 0 }
}

/// Checks that this code can read a manifest.
///
/// # Errors
/// Kind `Recovery`: it has another version.
pub(super) fn check_version(manifest: &OperatorManifest) -> Result<()> {
    match (FIRST_VERSION..=VERSION).contains(&manifest.version) {
        true => Ok(()),
        false => Err(unreadable(format!("it has version {}", manifest.version))),
    }
}

fn unreadable(detail: impl Into<String>) -> Error {
    Error::new(Kind::Recovery, "the saved state of a query cannot be used").detail(detail)
}

/// Turns state into a manifest and named batches.
#[derive(Default)]
pub(super) struct StateWriter {
    pub(super) batches: Vec<(String, RecordBatch)>,
}

impl StateWriter {
    fn batch(&mut self, batch: &RecordBatch) -> String {
        let name = format!("{:06}", self.batches.len());
        self.batches.push((name.clone(), batch.clone()));
        name
    }

    /// Completes the state.
    pub(super) fn finish(
        self,
        watermark: Micros,
        windows: Vec<(Window, WindowManifest)>,
        view: WindowManifest,
        panes: Option<PanesManifest>,
    ) -> OperatorState {
        let manifest = OperatorManifest { version: VERSION, watermark, windows, view, panes };
        OperatorState { manifest, batches: self.batches }
    }

    fn kept(&mut self, kept: &SlotBatches) -> BatchNames {
        kept.iter().map(|slot| slot.as_ref().map(|batch| self.batch(batch))).collect()
    }

    fn tree(&mut self, tree: &MergeTree) -> TreeNames {
        let slots = tree.slots.iter();
        slots
            .map(|stack| stack.iter().map(|tier| (tier.level, self.batch(&tier.batch))).collect())
            .collect()
    }

    pub(super) fn result(&mut self, state: &ResultState) -> WindowManifest {
        WindowManifest {
            tree: self.tree(&state.tree),
            changed: state.is_changed,
            closed: state.is_closed,
            published: state.emitted.as_ref().map(|emitted| self.batch(emitted)),
            revision: state.revision,
        }
    }

    pub(super) fn panes(&mut self, panes: &Panes) -> PanesManifest {
        let RunningMerges { last_merged, stacked_until, front_until, back_from, .. } = panes.merges;
        PanesManifest {
            panes: (panes.panes.values())
                .map(|pane| PaneManifest {
                    window: pane.window,
                    last_end: pane.last_end,
                    known_from: pane.known_from,
                    tree: self.tree(&pane.tree),
                    late: (pane.late.iter())
                        .map(|(refused, kept)| (*refused, self.kept(kept)))
                        .collect(),
                })
                .collect(),
            last_merged,
            stacked_until,
            front_until,
            back_from,
            back: self.kept(&panes.merges.back),
        }
    }
}

/// Finds the batches that a manifest names.
pub(super) struct StateReader {
    batches: HashMap<String, RecordBatch>,
}

impl StateReader {
    pub(super) fn new(batches: Vec<(String, RecordBatch)>) -> Self {
        Self { batches: batches.into_iter().collect() }
    }

    fn batch(&self, name: String) -> Result<RecordBatch> {
        let batch = self.batches.get(&name).cloned();
        batch.ok_or_else(|| unreadable(format!("its batch {name} is missing")))
    }

    fn kept(&self, kept: BatchNames) -> Result<SlotBatches> {
        kept.into_iter().map(|slot| slot.map(|name| self.batch(name)).transpose()).collect()
    }

    fn tree(&self, slots: TreeNames) -> Result<MergeTree> {
        let tier = |(level, name)| Ok(Tier { level, batch: self.batch(name)? });
        let stacks = slots.into_iter().map(|stack| stack.into_iter().map(tier).collect());
        Ok(MergeTree::new(stacks.collect::<Result<_>>()?))
    }

    pub(super) fn result(&self, state: WindowManifest) -> Result<ResultState> {
        Ok(ResultState {
            tree: self.tree(state.tree)?,
            is_changed: state.changed,
            is_closed: state.closed,
            emitted: state.published.map(|name| self.batch(name)).transpose()?,
            revision: state.revision,
        })
    }

    pub(super) fn panes(&self, saved: PanesManifest) -> Result<Panes> {
        let mut panes = Panes::new();
        for pane in saved.panes {
            let late = pane.late.into_iter();
            let late = late.map(|(refused, kept)| Ok((refused, self.kept(kept)?)));
            let restored = Pane {
                window: pane.window,
                last_end: pane.last_end,
                known_from: pane.known_from,
                tree: self.tree(pane.tree)?,
                late: late.collect::<Result<_>>()?,
            };
            panes.panes.insert(pane.window.start, restored);
        }
        let PanesManifest { last_merged, stacked_until, front_until, back_from, back, .. } = saved;
        let back = self.kept(back)?;
        let (key_sets, front) = (Vec::new(), Vec::new());
        panes.merges = RunningMerges {
            last_merged,
            stacked_until,
            front_until,
            back_from,
            back,
            key_sets,
            front,
        };
        Ok(panes)
    }
}
