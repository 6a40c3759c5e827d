//! The state of one query: its operator, its sink and what was published since the start.

use std::sync::Arc;

use chrono_tz::Tz;

use crate::Result;
use crate::catalog::Emit;
use crate::planner::{PlanKind, QueryPlan};
use crate::sink::{Publication, ResultSink};
use crate::state::manifest::QueryManifest;
use crate::time::{MIN_TIME, Micros};
use crate::types::OutRecord;
use crate::window::{Operator, OperatorState, operator_for, restore_operator};

/// The number of a query's newest results that the status shows.
const NEWEST: usize = 5;

/// A query and its state.
pub struct QueryState {
    pub(super) plan: Arc<QueryPlan>,
    pub(super) operator: Box<dyn Operator>,
    pub(super) sink: ResultSink,
    pub(super) late: u64,
    /// The watermark last forwarded to the queries that read this one.
    pub(super) forwarded: Micros,
    emitted: u64,
    newest: Vec<String>,
}

impl QueryState {
    /// A query without state.
    pub(super) fn new(plan: &Arc<QueryPlan>, zone: Tz) -> Result<Self> {
        let columns = plan.output.fields().len();
        let sink = ResultSink::new(&plan.query.topic, publication(plan), plan.key.clone(), columns);
        Ok(Self {
            operator: operator_for(plan.clone(), zone)?,
            plan: plan.clone(),
            sink,
            emitted: 0,
            late: 0,
            newest: Vec::new(),
            forwarded: MIN_TIME,
        })
    }

    /// The query's plan.
    pub fn plan(&self) -> &Arc<QueryPlan> {
        &self.plan
    }

    /// The query's operator with its window state.
    pub fn operator(&self) -> &dyn Operator {
        self.operator.as_ref()
    }

    /// The sink that turns results into records.
    pub fn sink(&self) -> &ResultSink {
        &self.sink
    }

    /// Records published since the start of the process.
    pub fn emitted(&self) -> u64 {
        self.emitted
    }

    /// Rows refused as late since the start of the process.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// The newest results as JSON, the oldest of them first.
    pub fn newest(&self) -> &[String] {
        &self.newest
    }

    /// The watermark last forwarded to the queries that read this one.
    pub fn forwarded(&self) -> Micros {
        self.forwarded
    }

    /// Counts published records and remembers the newest ones.
    pub(super) fn record_published(&mut self, records: &[OutRecord]) {
        self.emitted += records.len() as u64;
        let values = records.iter().rev().filter_map(|r| r.value.as_ref()).take(NEWEST);
        let mut newest: Vec<_> = values.map(|v| String::from_utf8_lossy(v).into_owned()).collect();
        newest.reverse();
        self.newest.extend(newest);
        let surplus = self.newest.len().saturating_sub(NEWEST);
        self.newest.drain(..surplus);
    }

    /// The state as a snapshot stores it: a manifest and batches by name.
    pub(super) fn snapshot(&self) -> Result<(QueryManifest, OperatorBatches)> {
        let OperatorState { manifest, batches } = self.operator.snapshot()?;
        let manifest = QueryManifest {
            fingerprint: self.plan.fingerprint.clone(),
            plan: Some(self.plan.stored_text()),
            forwarded: self.forwarded,
            operator: manifest,
        };
        Ok((manifest, batches))
    }

    /// Takes over the state of a snapshot. Results are published again if the plan that made the
    /// state had another fingerprint.
    pub(super) async fn restore(
        &mut self,
        saved: QueryManifest,
        batches: OperatorBatches,
        zone: Tz,
    ) -> Result<()> {
        self.forwarded = saved.forwarded;
        let state = OperatorState { manifest: saved.operator, batches };
        self.operator = restore_operator(self.plan.clone(), zone, state).await?;
        if saved.fingerprint != self.plan.fingerprint {
            self.operator.mark_dirty();
        }
        Ok(())
    }

    /// Drops the query's state.
    pub(super) fn reset(&mut self, zone: Tz) -> Result<()> {
        self.operator = operator_for(self.plan.clone(), zone)?;
        Ok(())
    }
}

/// The batches of an operator's state, by the names that its manifest uses.
pub(super) type OperatorBatches = Vec<(String, arrow::record_batch::RecordBatch)>;

/// How the results topic of a planned query is written.
pub fn publication(plan: &QueryPlan) -> Publication {
    match plan.kind {
        PlanKind::View | PlanKind::Derived => Publication::Upsert,
        PlanKind::Stateless => Publication::Append,
        PlanKind::Windowed => {
            let final_only =
                matches!(plan.query.emit, Emit::Final) && plan.query.allowed_lateness_us == 0;
            if final_only { Publication::Append } else { Publication::Revised }
        }
    }
}
