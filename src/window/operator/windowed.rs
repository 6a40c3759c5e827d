//! Windowed queries: results when windows close.
//!
//! **Promises**
//! - A window [S, E) closes at the end of the epoch in which the watermark reaches E, in the order of
//!   (E, S). Its state is dropped when the watermark reaches E + allowed lateness.
//! - A window whose final plan fails is reported with the reason, and the others go on.
//! - Results of `emit = 'every ..'` and of allowed lateness are changes by key: what differs from the
//!   last emission, deletes for keys that left, and a revision that counts up.
//!
//! ```text
//!             first row              W >= E                  W >= E + allowed lateness
//!   (nothing) ─────────► open ───────────────────► closed ──────────────────────────► (nothing)
//!                         │ emit: is_final = false    │ a late row: is_final = true,
//!                         └► revision 1, 2, ..        └► next revision
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use chrono_tz::Tz;

use crate::catalog::Emit;
use crate::error::{Error, Result};
use crate::planner::{QueryPlan, Relations, WindowState};
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::closing_order::{ClosingKey, closing_key, window_at};
use crate::window::epoch_buffer::{Bucket, EpochBuffer};
use crate::window::merge_tree::SlotBatches;
use crate::window::operator::result_state::{ResultState, separate_data_failure};
use crate::window::operator::{Emission, EpochEnd, Operator};
use crate::window::operator_state::{
    FIRST_VERSION, OperatorState, StateReader, StateWriter, check_version, empty_view,
};
use crate::window::panes::Panes;
use crate::window::row_assigner::{InputRows, Pushed, RowAssigner};
use crate::window::state_digest::{Digests, StateDigests};

/// A windowed query and its state.
#[derive(Debug)]
pub(super) struct WindowedOperator {
    plan: Arc<QueryPlan>,
    /// Assigns rows that are pushed here, and gathers the epoch buffers of workers.
    row_assigner: RowAssigner,
    /// The earliest end of a bucket that received rows in this epoch, here or at a worker.
    first_end: Option<Micros>,
    /// Whether open windows are emitted early.
    emits_early: bool,
    /// Whether results are changes by key.
    by_key: bool,
    lateness_us: i64,
    watermark: Micros,
    windows: BTreeMap<ClosingKey, ResultState>,
    /// The panes of hopping windows, which hold their state.
    panes: Option<Panes>,
}

impl WindowedOperator {
    pub(super) fn new(plan: Arc<QueryPlan>, zone: Tz) -> Result<Self> {
        let row_assigner = RowAssigner::new(Arc::clone(&plan), zone)?;
        let lateness_us = plan.query.allowed_lateness_us.max(0);
        let emits_early = matches!(plan.query.emit, Emit::Every(_));
        Ok(Self {
            emits_early,
            by_key: emits_early || lateness_us > 0,
            lateness_us,
            panes: plan.panes.then(Panes::new),
            plan,
            row_assigner,
            first_end: None,
            watermark: MIN_TIME,
            windows: BTreeMap::new(),
        })
    }

    /// Adds what the epoch brought to the state of a window or pane.
    async fn add_to_state(&mut self, bucket: Bucket, batches: SlotBatches) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let (Some(assigner), Some(panes)) = (&mut self.row_assigner.assigner, &mut self.panes)
        else {
            let state = self.windows.entry(closing_key(bucket.window)).or_default();
            state.is_changed = true;
            return state.tree.push(&plan, batches).await;
        };
        let (_, windows) = assigner.locate(bucket.window.start);
        let is_new_to_a_window = panes.add(&plan, bucket, windows, batches).await?;
        if is_new_to_a_window || self.by_key {
            let watermark = self.watermark;
            let accepts = |window: &&Window| {
                window.end > bucket.refused
                    && window.end.saturating_add(self.lateness_us) > watermark
            };
            for window in windows.iter().filter(accepts) {
                self.windows.entry(closing_key(*window)).or_default().is_changed = true;
            }
        }
        Ok(())
    }

    /// The windows to evaluate at the end of an epoch: those that close or are corrected, then those
    /// that are emitted early.
    fn windows_to_evaluate(&self, is_emission_due: bool) -> Vec<ClosingKey> {
        let last = (self.watermark, Micros::MAX);
        let closing = self.windows.range(..=last).filter(|(_, w)| !w.is_closed || w.is_changed);
        let mut keys: Vec<ClosingKey> = closing.map(|(key, _)| *key).collect();
        if is_emission_due && self.emits_early {
            let open = self.windows.range(last..).filter(|(_, w)| w.is_changed);
            keys.extend(open.map(|(key, _)| *key));
        }
        keys
    }

    /// RowRuns the final plan over a window, closed or open.
    async fn evaluate(
        &mut self,
        key: ClosingKey,
        relations: &Relations,
    ) -> Result<Option<Emission>> {
        let window = window_at(key);
        let Some(state) = self.windows.get_mut(&key) else { return Ok(None) };
        let plan = self.plan.as_ref();
        let content = match &mut self.panes {
            Some(panes) if self.by_key => panes.merge_window(plan, window).await?.into(),
            Some(panes) => panes.close_window(plan, window).await?,
            None => window_content(plan, state, self.by_key)?,
        };
        let result = plan.run_final_plan(content, Some(window), relations).await;
        let is_final = window.end <= self.watermark;
        let emitted = state.emit(plan, separate_data_failure(result)?, is_final, self.by_key)?;
        Ok(emitted.map(|result| Emission { window: Some(window), result }))
    }

    /// Drops the state of windows whose allowed lateness is over.
    async fn drop_expired(&mut self) -> Result<()> {
        let expired = self.watermark.saturating_sub(self.lateness_us);
        self.windows = self.windows.split_off(&(expired, Micros::MAX));
        match &mut self.panes {
            Some(panes) => panes.expire(&self.plan, expired).await,
            None => Ok(()),
        }
    }

    fn check_between_epochs(&self) -> Result<()> {
        if self.first_end.is_some() {
            return Err(Error::internal("the state was read in the middle of an epoch"));
        }
        Ok(())
    }
}

/// The state of a window without panes. Where the counts of a key set are enough and the window
/// closes for good, the counts take the place of the keys.
fn window_content(plan: &QueryPlan, state: &mut ResultState, by_key: bool) -> Result<WindowState> {
    let mut content = WindowState::default();
    for slot in 0..plan.slots() {
        let counts = match !by_key && plan.uses_counts(slot) {
            true => state.tree.take_counts(slot)?,
            false => None,
        };
        let batches = state.tree.batches(slot).filter(|_| counts.is_none()).cloned();
        content.batches.push(batches.collect());
        content.counts.push(counts);
    }
    Ok(content)
}

#[async_trait]
impl Operator for WindowedOperator {
    async fn push(&mut self, rows: &InputRows<'_>, relations: &Relations) -> Result<Pushed> {
        self.row_assigner.begin(self.watermark);
        let pushed = self.row_assigner.push(rows, relations).await?;
        self.expect_bucket(pushed.first_end);
        Ok(pushed)
    }

    fn expect_bucket(&mut self, first_end: Option<Micros>) {
        self.first_end = self.first_end.into_iter().chain(first_end).min();
    }

    fn gather(&mut self, buffer: EpochBuffer) {
        self.row_assigner.gather(buffer);
    }

    async fn end_epoch(&mut self, end: EpochEnd<'_>) -> Result<Vec<Emission>> {
        let plan = Arc::clone(&self.plan);
        self.first_end = None;
        for (bucket, batches) in self.row_assigner.take().drain(&plan).await? {
            self.add_to_state(bucket, batches).await?;
        }
        self.watermark = self.watermark.max(end.watermark);
        let mut emissions = Vec::new();
        for key in self.windows_to_evaluate(end.is_emission_due) {
            emissions.extend(self.evaluate(key, end.relations).await?);
            if key.0.saturating_add(self.lateness_us) <= self.watermark {
                self.windows.remove(&key);
            }
        }
        self.drop_expired().await?;
        Ok(emissions)
    }

    fn watermark(&self) -> Micros {
        self.watermark
    }

    fn mark_dirty(&mut self) {
        let by_key = self.by_key;
        self.windows.values_mut().filter(|state| !state.is_closed || by_key).for_each(|state| {
            state.is_changed = true;
        });
    }

    fn is_due(&self, watermark: Micros) -> bool {
        let mut reached = self.windows.range(..=(watermark, Micros::MAX));
        reached.any(|(_, state)| !state.is_closed || state.is_changed)
            || self.first_end.is_some_and(|end| end <= watermark)
    }

    fn open_windows(&self) -> Vec<Window> {
        let open = self.windows.iter().filter(|(_, state)| !state.is_closed);
        open.map(|(key, _)| window_at(*key)).collect()
    }

    fn state_batches(&self) -> Vec<&RecordBatch> {
        let windows = self.windows.values().flat_map(ResultState::batches);
        windows.chain(self.panes.iter().flat_map(Panes::all)).collect()
    }

    fn snapshot(&self) -> Result<OperatorState> {
        self.check_between_epochs()?;
        let mut writer = StateWriter::default();
        let windows = self.windows.iter();
        let windows = windows.map(|(key, state)| (window_at(*key), writer.result(state))).collect();
        let panes = self.panes.as_ref().map(|panes| writer.panes(panes));
        Ok(writer.finish(self.watermark, windows, empty_view(), panes))
    }

    async fn restore(&mut self, state: OperatorState) -> Result<()> {
        check_version(&state.manifest)?;
        let OperatorState { manifest, batches } = state;
        let reader = StateReader::new(batches);
        self.watermark = manifest.watermark;
        for (window, state) in manifest.windows {
            self.windows.insert(closing_key(window), reader.result(state)?);
        }
        if manifest.version == FIRST_VERSION {
            for state in self.windows.values_mut() {
                state.tree.merge_key_sets(&self.plan).await?;
            }
        }
        if let Some(panes) = manifest.panes {
            let mut panes = reader.panes(panes)?;
            panes.rebuild_front(&self.plan).await?;
            self.panes = Some(panes);
        }
        Ok(())
    }

    fn digests(&self) -> Result<Digests> {
        self.check_between_epochs()?;
        let mut digests = StateDigests::new(self.watermark);
        digests.add_windows(self.windows.iter().map(|(key, state)| (window_at(*key), state)))?;
        if let Some(panes) = &self.panes {
            digests.add_panes(panes)?;
        }
        digests.add_view(None)?;
        Ok(digests.finish())
    }
}
