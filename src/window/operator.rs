//! One query at work: rows in (see [`RowAssigner`]), results out when their windows close.
//!
//! Promises:
//! - a window [S, E) closes at the end of the epoch in which the watermark reaches E, in the order
//!   of (E, S); its state goes when the watermark reaches E + allowed lateness;
//! - a window whose closing plan fails is told, and the others go on;
//! - results of `emit = 'every ..'`, of allowed lateness and of views are keyed: what changed since
//!   it was last said, deletes for keys that left, and a revision that counts up.
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
use chrono_tz::Tz;

use crate::catalog::Emit;
use crate::error::Result;
use crate::planner::{PlanKind, QueryPlan, QueryState, Relations};
use crate::time::{MIN_TIME, Micros, Window};
use crate::window::changelog::difference;
use crate::window::epoch_buffer::{Bucket, EpochBuffer};
use crate::window::failed_rows::{is_fault_of_data, reason};
use crate::window::merge_tree::{Kept, MergeTree};
use crate::window::panes::Panes;
use crate::window::row_assigner::{InputRows, Pushed, RowAssigner};

/// What a window, or a view, says at the end of an epoch.
#[derive(Debug)]
pub struct Emission {
    /// The window; none for views.
    pub window: Option<Window>,
    /// The results, or why the closing plan failed: then that window is a dead letter.
    pub result: Result<Changes, String>,
}

/// Results, as changes to those said before for the same window or view.
#[derive(Debug)]
pub struct Changes {
    /// New and changed rows; all rows when a window closes.
    pub upserts: RecordBatch,
    /// InputRows said before whose keys are gone; to be written before the upserts.
    pub deletes: RecordBatch,
    /// Whether the window has closed. Never so for views.
    pub is_final: bool,
    /// Counts from 1 for each window, or for the view.
    pub revision: i64,
}

/// A window that is not done with.
#[derive(Debug, Default)]
pub(crate) struct OpenWindow {
    /// What is kept of it, unless panes keep it.
    pub tiers: MergeTree,
    /// Whether rows came since it was last worked out.
    pub changed: bool,
    /// Whether the watermark has reached its end.
    pub closed: bool,
    /// What was said of it, of keyed results only.
    pub said: Option<RecordBatch>,
    pub revision: i64,
}

/// A window's place in the order of closing: (end, start).
pub(crate) type Closing = (Micros, Micros);

pub(super) fn closing(window: Window) -> Closing {
    (window.end, window.start)
}

fn window_of((end, start): Closing) -> Window {
    Window { start, end }
}

/// One query and its state.
#[derive(Debug)]
pub struct Operator {
    pub(crate) plan: Arc<QueryPlan>,
    /// Of rows pushed here, and where what was kept elsewhere is gathered.
    intake: RowAssigner,
    /// The first end of a bucket that rows came for in this epoch, here or elsewhere.
    first_end: Option<Micros>,
    /// Whether open windows are told of.
    early: bool,
    /// Whether results are changes by key.
    keyed: bool,
    lateness_us: i64,
    pub(crate) watermark: Micros,
    pub(crate) windows: BTreeMap<Closing, OpenWindow>,
    /// Of hops whose windows are merged from panes.
    pub(crate) panes: Option<Panes>,
    /// Of a view; for one over views only what it said.
    pub(crate) view: OpenWindow,
}

impl Operator {
    /// A query that has seen nothing, of a stream in `zone`.
    ///
    /// # Errors
    /// The plan's windows are refused by [`crate::window::WindowSpec::validate`].
    pub fn new(plan: Arc<QueryPlan>, zone: Tz) -> Result<Self> {
        let intake = RowAssigner::new(plan.clone(), zone)?;
        let lateness_us = plan.query.allowed_lateness_us.max(0);
        let early = matches!(plan.query.emit, Emit::Every(_));
        Ok(Self {
            early,
            keyed: early || lateness_us > 0,
            lateness_us,
            panes: plan.panes.then(Panes::new),
            plan,
            intake,
            first_end: None,
            watermark: MIN_TIME,
            windows: BTreeMap::new(),
            view: OpenWindow { changed: true, ..OpenWindow::default() },
        })
    }

    /// Takes the next rows of a partition, as [`RowAssigner::push`] does.
    ///
    /// # Errors
    /// Only what is no row's fault; the operator is of no more use then.
    pub async fn push(&mut self, rows: &InputRows<'_>, relations: &Relations) -> Result<Pushed> {
        self.intake.begin(self.watermark);
        let pushed = self.intake.push(rows, relations).await?;
        self.expect_bucket(pushed.first_end);
        Ok(pushed)
    }

    /// An intake elsewhere was pushed rows of which the first bucket ends at `first_end`.
    pub fn expect_bucket(&mut self, first_end: Option<Micros>) {
        self.first_end = self.first_end.into_iter().chain(first_end).min();
    }

    /// Takes what an intake elsewhere has kept in this epoch, of partitions of its own.
    pub fn gather(&mut self, buffer: EpochBuffer) {
        self.intake.gather(buffer);
    }

    /// Ends the epoch at `watermark`: windows that it has reached close; with `emit`, open windows
    /// of queries with `emit = 'every ..'` that changed say what they hold so far; views say what
    /// changed.
    ///
    /// # Errors
    /// Only what is no data's fault; the operator is of no more use then.
    pub async fn end_epoch(
        &mut self,
        watermark: Micros,
        emit: bool,
        relations_changed: bool,
        relations: &Relations,
    ) -> Result<Vec<Emission>> {
        let plan = Arc::clone(&self.plan);
        self.first_end = None;
        for (bucket, kept) in self.intake.take().drain(&plan).await? {
            self.keep(bucket, kept).await?;
        }
        match plan.kind {
            PlanKind::Stateless => Ok(Vec::new()),
            PlanKind::Windowed => self.end_windows(watermark, emit, relations).await,
            PlanKind::View | PlanKind::Derived => {
                if !(self.view.changed || relations_changed) {
                    return Ok(Vec::new());
                }
                let kept = (0..plan.slots()).map(|slot| self.view.tiers.batches(slot).cloned());
                let kept: Vec<_> = kept.map(Iterator::collect).collect();
                let result = settle(plan.run_final_plan(kept, None, relations).await)?;
                let said = say(&plan, &mut self.view, result, false, true)?;
                Ok(said.map(|result| Emission { window: None, result }).into_iter().collect())
            }
        }
    }

    /// Adds what the epoch brought to a bucket.
    async fn keep(&mut self, bucket: Bucket, kept: Kept) -> Result<()> {
        let plan = Arc::clone(&self.plan);
        let (Some(assigner), Some(panes)) = (&mut self.intake.assigner, &mut self.panes) else {
            let state = match plan.kind {
                PlanKind::Windowed => self.windows.entry(closing(bucket.window)).or_default(),
                _ => &mut self.view,
            };
            state.changed = true;
            return state.tiers.push(&plan, kept).await;
        };
        let (_, windows) = assigner.place(bucket.window.start);
        let news = panes.add(&plan, bucket, windows, kept).await?;
        if news || self.keyed {
            let over = self.watermark;
            let taken = |window: &&Window| {
                window.end > bucket.refused && window.end.saturating_add(self.lateness_us) > over
            };
            for window in windows.iter().filter(taken) {
                self.windows.entry(closing(*window)).or_default().changed = true;
            }
        }
        Ok(())
    }

    async fn end_windows(
        &mut self,
        watermark: Micros,
        emit: bool,
        relations: &Relations,
    ) -> Result<Vec<Emission>> {
        self.watermark = self.watermark.max(watermark);
        let last = (self.watermark, Micros::MAX);
        let due = self.windows.range(..=last).filter(|(_, w)| !w.closed || w.changed);
        let due: Vec<Closing> = due.map(|(key, _)| *key).collect();
        let mut early: Vec<Closing> = Vec::new();
        if emit && self.early {
            let open = self.windows.range(last..).filter(|(_, w)| w.changed);
            early.extend(open.map(|(key, _)| *key));
        }
        let mut said = Vec::new();
        for key in due.into_iter().chain(early) {
            said.extend(self.work_out(key, relations).await?);
            if key.0.saturating_add(self.lateness_us) <= self.watermark {
                self.windows.remove(&key);
            }
        }
        let over = self.watermark.saturating_sub(self.lateness_us);
        self.windows = self.windows.split_off(&(over, Micros::MAX));
        if let Some(panes) = &mut self.panes {
            panes.tidy(&self.plan, over).await?;
        }
        Ok(said)
    }

    /// Runs the closing plan over a window, closed or open.
    async fn work_out(&mut self, key: Closing, relations: &Relations) -> Result<Option<Emission>> {
        let window = window_of(key);
        let Some(state) = self.windows.get_mut(&key) else { return Ok(None) };
        let plan = self.plan.as_ref();
        let content = match &mut self.panes {
            Some(panes) if self.keyed => panes.gather(plan, window).await?.into(),
            Some(panes) => panes.close(plan, window).await?,
            None => {
                let mut content = QueryState::default();
                for slot in 0..plan.slots() {
                    let counts = match !self.keyed && plan.uses_counts(slot) {
                        true => state.tiers.take_counts(slot)?,
                        false => None,
                    };
                    let kept = state.tiers.batches(slot).filter(|_| counts.is_none()).cloned();
                    content.batches.push(kept.collect());
                    content.counts.push(counts);
                }
                content
            }
        };
        let result = settle(plan.run_final_plan(content, Some(window), relations).await)?;
        let is_final = window.end <= self.watermark;
        let said = say(plan, state, result, is_final, self.keyed)?;
        Ok(said.map(|result| Emission { window: Some(window), result }))
    }

    /// The query's watermark as of the last epoch's end.
    pub fn watermark(&self) -> Micros {
        self.watermark
    }

    /// Another closing plan has something else to say of what is kept.
    pub fn mark_dirty(&mut self) {
        self.view.changed = true;
        self.windows.values_mut().filter(|state| !state.closed || self.keyed).for_each(|state| {
            state.changed = true;
        });
    }

    /// Whether ending the epoch at `watermark` would probably say something: a window closes or is
    /// corrected, or rows came for a view.
    pub fn is_due(&self, watermark: Micros) -> bool {
        if self.plan.kind != PlanKind::Windowed {
            return self.is_amid_epoch();
        }
        let mut reached = self.windows.range(..=(watermark, Micros::MAX));
        reached.any(|(_, state)| !state.closed || state.changed)
            || self.first_end.is_some_and(|end| end <= watermark)
    }

    /// The windows that have not closed, in the order in which they will.
    pub fn open_windows(&self) -> Vec<Window> {
        let open = self.windows.iter().filter(|(_, state)| !state.closed);
        open.map(|(key, _)| window_of(*key)).collect()
    }

    /// Kept rows or partial rows.
    pub fn state_rows(&self) -> usize {
        self.batches().map(RecordBatch::num_rows).sum()
    }

    /// The memory of kept batches, in bytes.
    pub fn state_bytes(&self) -> usize {
        self.batches().map(RecordBatch::get_array_memory_size).sum()
    }

    fn batches(&self) -> impl Iterator<Item = &RecordBatch> {
        let windows = self.windows.values().chain([&self.view]);
        let windows = windows.flat_map(|state| state.tiers.all().chain(&state.said));
        windows.chain(self.panes.iter().flat_map(Panes::all))
    }

    /// What a view says now; `None` for other queries, and before a view has said anything.
    pub fn content(&self) -> Option<RecordBatch> {
        self.view.said.clone()
    }

    /// Whether rows have been pushed since the last epoch's end: then there is no snapshot.
    pub(crate) fn is_amid_epoch(&self) -> bool {
        self.first_end.is_some()
    }
}

/// A failed closing plan is its window's affair if the data made it fail.
fn settle(result: Result<RecordBatch>) -> Result<Result<RecordBatch, String>> {
    match result {
        Ok(rows) => Ok(Ok(rows)),
        Err(error) if is_fault_of_data(&error) => Ok(Err(reason(&error))),
        Err(error) => Err(error),
    }
}

/// What is to be said of `result`, if anything.
fn say(
    plan: &QueryPlan,
    state: &mut OpenWindow,
    result: Result<RecordBatch, String>,
    is_final: bool,
    keyed: bool,
) -> Result<Option<Result<Changes, String>>> {
    let closes = is_final && !state.closed;
    state.changed = false;
    state.closed |= is_final;
    let rows = match result {
        Ok(rows) => rows,
        Err(reason) => return Ok(Some(Err(reason))),
    };
    let nothing = RecordBatch::new_empty(Arc::clone(&plan.output));
    let (upserts, deletes) = if keyed {
        let before = state.said.take().unwrap_or(nothing);
        let changed = difference(&before, &rows, &plan.key)?;
        let nothing_new = changed.is_empty() && !closes;
        state.said = Some(rows.clone());
        if nothing_new {
            return Ok(None);
        }
        // InputRows that were only preliminary become final, changed or not.
        (if closes { rows } else { changed.upserts }, changed.deletes)
    } else {
        (rows, nothing)
    };
    state.revision += 1;
    Ok(Some(Ok(Changes { upserts, deletes, is_final, revision: state.revision })))
}
