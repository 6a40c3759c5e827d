//! Materialized views: one result, kept up to date by key.
//!
//! A view over a stream keeps partial aggregates or rows; a view over views keeps only the rows
//! that it emitted last. At the end of each epoch that brought rows, or in which a relation that it
//! reads has changed, the final plan runs and the changes are emitted.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use chrono_tz::Tz;

use crate::error::{Error, Result};
use crate::planner::{QueryPlan, Relations};
use crate::time::{MIN_TIME, Micros};
use crate::window::epoch_buffer::EpochBuffer;
use crate::window::operator::result_state::{ResultState, separate_data_failure};
use crate::window::operator::{Emission, EpochEnd, Operator};
use crate::window::operator_state::{
    FIRST_VERSION, OperatorState, StateReader, StateWriter, check_version,
};
use crate::window::row_assigner::{InputRows, Pushed, RowAssigner};
use crate::window::state_digest::{Digests, StateDigests};

/// A materialized view and its state.
#[derive(Debug)]
pub(super) struct ViewOperator {
    plan: Arc<QueryPlan>,
    row_assigner: RowAssigner,
    state: ResultState,
    /// Whether rows arrived in this epoch, here or at a worker.
    has_rows: bool,
}

impl ViewOperator {
    pub(super) fn new(plan: Arc<QueryPlan>, zone: Tz) -> Result<Self> {
        let row_assigner = RowAssigner::new(Arc::clone(&plan), zone)?;
        // The first epoch emits the result over no rows.
        let state = ResultState { is_changed: true, ..ResultState::default() };
        Ok(Self { plan, row_assigner, state, has_rows: false })
    }

    fn check_between_epochs(&self) -> Result<()> {
        if self.has_rows {
            return Err(Error::internal("the state was read in the middle of an epoch"));
        }
        Ok(())
    }
}

#[async_trait]
impl Operator for ViewOperator {
    async fn push(&mut self, rows: &InputRows<'_>, relations: &Relations) -> Result<Pushed> {
        let pushed = self.row_assigner.push(rows, relations).await?;
        self.expect_bucket(pushed.first_end);
        Ok(pushed)
    }

    fn expect_bucket(&mut self, first_end: Option<Micros>) {
        self.has_rows |= first_end.is_some();
    }

    fn gather(&mut self, buffer: EpochBuffer) {
        self.row_assigner.gather(buffer);
    }

    async fn end_epoch(&mut self, end: EpochEnd<'_>) -> Result<Vec<Emission>> {
        let plan = Arc::clone(&self.plan);
        self.has_rows = false;
        for (_, batches) in self.row_assigner.take().drain(&plan).await? {
            self.state.is_changed = true;
            self.state.tree.push(&plan, batches).await?;
        }
        if !(self.state.is_changed || end.relations_changed) {
            return Ok(Vec::new());
        }
        let batches = (0..plan.slots()).map(|slot| self.state.tree.batches(slot).cloned());
        let batches: Vec<Vec<RecordBatch>> = batches.map(Iterator::collect).collect();
        let result = plan.run_final_plan(batches, None, end.relations).await;
        let emitted = self.state.emit(&plan, separate_data_failure(result)?, false, true)?;
        Ok(emitted.map(|result| Emission { window: None, result }).into_iter().collect())
    }

    fn watermark(&self) -> Micros {
        MIN_TIME
    }

    fn mark_dirty(&mut self) {
        self.state.is_changed = true;
    }

    fn is_due(&self, _watermark: Micros) -> bool {
        self.has_rows
    }

    fn state_batches(&self) -> Vec<&RecordBatch> {
        self.state.batches().collect()
    }

    fn content(&self) -> Option<RecordBatch> {
        self.state.emitted.clone()
    }

    fn snapshot(&self) -> Result<OperatorState> {
        self.check_between_epochs()?;
        let mut writer = StateWriter::default();
        let view = writer.result(&self.state);
        Ok(writer.finish(MIN_TIME, Vec::new(), view, None))
    }

    async fn restore(&mut self, state: OperatorState) -> Result<()> {
        check_version(&state.manifest)?;
        let OperatorState { manifest, batches } = state;
        self.state = StateReader::new(batches).result(manifest.view)?;
        if manifest.version == FIRST_VERSION {
            self.state.tree.merge_key_sets(&self.plan).await?;
        }
        Ok(())
    }

    fn digests(&self) -> Result<Digests> {
        self.check_between_epochs()?;
        let mut digests = StateDigests::new(MIN_TIME);
        digests.add_view(Some(&self.state))?;
        Ok(digests.finish())
    }
}
