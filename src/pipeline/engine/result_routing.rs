//! Results on their way out of a query: into records for its topic, and into the queries that
//! read it.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde_json::json;

use crate::Result;
use crate::pipeline::engine::Engine;
use crate::planner::Input;
use crate::sink::{self, DeadLetter, FailureStage};
use crate::time::{MIN_TIME, Micros, Window};
use crate::types::OutRecord;
use crate::window::{self, Changes, EpochEnd, FailedRow, Pushed};

/// The bytes that a record takes besides its key and its value, roughly.
const RECORD_OVERHEAD_BYTES: usize = 64;

impl Engine {
    /// Ends the epoch for one query: publishes and forwards what its operator emits.
    pub(super) async fn end_query(&mut self, index: usize, emits: &[String]) -> Result<()> {
        let watermark = self.watermark(&self.queries[index].plan.input);
        let query = &mut self.queries[index];
        let end = EpochEnd {
            watermark,
            is_emission_due: emits.contains(&query.plan.name),
            relations_changed: query.plan.tables.iter().any(|t| self.changed.contains(t)),
            relations: &self.relations,
        };
        let emissions = query.operator.end_epoch(end).await?;
        let previous = query.forwarded;
        query.forwarded = watermark;
        let is_view = query.plan.is_view();
        let name = query.plan.name.clone();
        for emission in emissions {
            let first_final = emission.window.is_none_or(|w| w.end > previous);
            if emission.window.is_some_and(|w| w.end <= watermark && w.end > previous) {
                *self.output.closed.entry(name.clone()).or_default() += 1;
            }
            match emission.result {
                Ok(changes) => {
                    self.publish_changes(index, &changes)?;
                    if !is_view && changes.is_final && first_final {
                        self.forward(index, &changes.upserts, previous, 0).await?;
                    } else if is_view {
                        self.changed.insert(name.clone());
                    }
                }
                Err(reason) => self.reject_window(&name, emission.window, reason),
            }
        }
        if is_view && self.changed.contains(&name) {
            let content = self.queries[index].operator.content();
            let rows = Arc::new(content.into_iter().collect());
            Arc::make_mut(&mut self.relations).insert(name, rows);
        }
        Ok(())
    }

    /// The current watermark of a query's input.
    pub(super) fn watermark(&self, input: &Input) -> Micros {
        match input {
            Input::Stream(name) => {
                self.streams.get(name).map_or(MIN_TIME, |stream| stream.watermark())
            }
            Input::Query(name) => {
                let query = self.queries.iter().find(|q| q.plan.name == *name);
                query.map_or(MIN_TIME, |query| query.forwarded)
            }
            Input::Views => MIN_TIME,
        }
    }

    /// Pushes a query's results into the queries that read it. `before` is the query's watermark
    /// before these rows; `rank` is that of the partition that they come from, and 0 for results of
    /// windows.
    pub(super) async fn forward(
        &mut self,
        index: usize,
        batch: &RecordBatch,
        before: Micros,
        rank: usize,
    ) -> Result<()> {
        let plan = self.queries[index].plan.clone();
        let input = Input::Query(plan.name.clone());
        if batch.num_rows() == 0 || !self.queries.iter().any(|q| q.plan.input == input) {
            return Ok(());
        }
        // Only windowed queries read the event times, and the planner gives their inputs one.
        let times = match plan.event_time {
            Some(column) => {
                batch.column(column).as_primitive::<TimestampMicrosecondType>().values().to_vec()
            }
            None => vec![MIN_TIME; batch.num_rows()],
        };
        let before = vec![before; times.len()];
        let rows =
            window::InputRows { batch, event_time: &times, before: &before, partition: rank };
        self.push_rows(&input, &rows).await
    }

    /// Pushes rows that no worker processed into every query that reads `input`.
    pub(super) async fn push_rows(
        &mut self,
        input: &Input,
        rows: &window::InputRows<'_>,
    ) -> Result<()> {
        for reader in 0..self.queries.len() {
            let query = &mut self.queries[reader];
            if query.plan.input != *input {
                continue;
            }
            let Pushed { output, late, failed, .. } =
                query.operator.push(rows, &self.relations).await?;
            query.late += late.len() as u64;
            let before = query.forwarded;
            for failed in failed {
                self.reject_row(reader, rows.batch, &failed)?;
            }
            if let Some(output) = output.filter(|rows| rows.num_rows() > 0) {
                let records = self.queries[reader].sink.upserts(&output, true, 0)?;
                self.publish(reader, records);
                Box::pin(self.forward(reader, &output, before, rows.partition)).await?;
            }
        }
        Ok(())
    }

    /// Publishes the changes of a window or a view: deletes first, then upserts.
    fn publish_changes(&mut self, index: usize, changes: &Changes) -> Result<()> {
        let sink = &self.queries[index].sink;
        let mut records = match changes.deletes.num_rows() {
            0 => Vec::new(),
            _ => sink.tombstones(&changes.deletes)?,
        };
        records.extend(sink.upserts(&changes.upserts, changes.is_final, changes.revision)?);
        self.publish(index, records);
        Ok(())
    }

    /// Adds a query's result records to the epoch's output.
    pub(super) fn publish(&mut self, index: usize, records: Vec<OutRecord>) {
        self.queries[index].record_published(&records);
        self.add_records(records);
    }

    /// Adds records of any kind to the epoch's output.
    pub(super) fn add_records(&mut self, records: Vec<OutRecord>) {
        let size = |r: &OutRecord| {
            RECORD_OVERHEAD_BYTES
                + r.key.as_ref().map_or(0, Bytes::len)
                + r.value.as_ref().map_or(0, Bytes::len)
        };
        self.output.pending_bytes += records.iter().map(size).sum::<usize>();
        self.output.records.extend(records);
    }

    /// Adds the dead letter of a row that no worker processed and for which an expression of the
    /// query failed.
    fn reject_row(&mut self, index: usize, rows: &RecordBatch, failed: &FailedRow) -> Result<()> {
        let letter = DeadLetter {
            stage: FailureStage::Query,
            query: Some(self.queries[index].plan.name.clone()),
            column: None,
            reason: failed.reason.clone(),
        };
        let mut row = sink::json_rows(&rows.slice(failed.row, 1))?;
        let record = letter.from_window(&self.dead_topic, row.pop().unwrap_or_default());
        *self.output.dead.entry("query").or_default() += 1;
        self.add_records(vec![record]);
        Ok(())
    }

    /// Adds the dead letter of a window whose final plan failed.
    fn reject_window(&mut self, query: &str, window: Option<Window>, reason: String) {
        let value = json!({ "query": query, "window": window }).to_string();
        let letter = DeadLetter {
            stage: FailureStage::Window,
            query: Some(query.to_owned()),
            column: None,
            reason,
        };
        let record = letter.from_window(&self.dead_topic, value.into());
        *self.output.dead.entry("window").or_default() += 1;
        self.add_records(vec![record]);
    }

    /// Makes the current content of every view readable by the queries that read it.
    pub(super) fn refresh_views(&mut self) {
        let relations = Arc::make_mut(&mut self.relations);
        for query in self.queries.iter().filter(|query| query.plan.is_view()) {
            let rows = query.operator.content().into_iter().collect();
            relations.insert(query.plan.name.clone(), Arc::new(rows));
        }
    }
}
