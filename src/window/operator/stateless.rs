//! Queries without state: every row gives its results at once.

use std::sync::Arc;

use async_trait::async_trait;
use chrono_tz::Tz;

use crate::error::Result;
use crate::planner::{QueryPlan, Relations};
use crate::time::{MIN_TIME, Micros};
use crate::window::epoch_buffer::EpochBuffer;
use crate::window::operator::{Emission, EpochEnd, Operator};
use crate::window::operator_state::{OperatorState, check_version, stateless_state};
use crate::window::row_assigner::{InputRows, Pushed, RowAssigner};
use crate::window::state_digest::{Digests, StateDigests};

/// A query without state.
#[derive(Debug)]
pub(super) struct StatelessOperator {
    row_assigner: RowAssigner,
}

impl StatelessOperator {
    pub(super) fn new(plan: Arc<QueryPlan>, zone: Tz) -> Result<Self> {
        Ok(Self { row_assigner: RowAssigner::new(plan, zone)? })
    }
}

#[async_trait]
impl Operator for StatelessOperator {
    async fn push(&mut self, rows: &InputRows<'_>, relations: &Relations) -> Result<Pushed> {
        self.row_assigner.push(rows, relations).await
    }

    fn expect_bucket(&mut self, _first_end: Option<Micros>) {}

    fn gather(&mut self, _buffer: EpochBuffer) {}

    async fn end_epoch(&mut self, _end: EpochEnd<'_>) -> Result<Vec<Emission>> {
        Ok(Vec::new())
    }

    fn watermark(&self) -> Micros {
        MIN_TIME
    }

    fn mark_dirty(&mut self) {}

    fn is_due(&self, _watermark: Micros) -> bool {
        false
    }

    fn snapshot(&self) -> Result<OperatorState> {
        Ok(stateless_state())
    }

    async fn restore(&mut self, state: OperatorState) -> Result<()> {
        check_version(&state.manifest)
    }

    fn digests(&self) -> Result<Digests> {
        let mut digests = StateDigests::new(MIN_TIME);
        digests.add_view(None)?;
        Ok(digests.finish())
    }
}
