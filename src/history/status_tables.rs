//! The tables `millstream.watermarks` and `millstream.windows`: the status of running pipelines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::Result as DataFusionResult;

use crate::telemetry::status::Status;
use crate::time::{MAX_TIME, MIN_TIME, Micros};

const WATERMARKS: &str = "watermarks";
const WINDOWS: &str = "windows";

/// The schema `millstream`. Each query reads the status files again.
#[derive(Debug)]
pub(super) struct StatusSchema {
    folder: PathBuf,
    customers: Vec<String>,
    zone: Arc<str>,
}

impl StatusSchema {
    /// Creates the schema of the status files of `customers` in `folder`, with times in `zone`.
    pub(super) fn new(folder: &Path, customers: Vec<String>, zone: &str) -> Self {
        Self { folder: folder.to_owned(), customers, zone: zone.into() }
    }

    /// Reads the status files. A customer without a readable file is left out: its pipeline never ran,
    /// or it replaces the file at this moment.
    fn read(&self) -> Vec<Status> {
        let file = |customer: &String| self.folder.join(format!("{customer}.json"));
        let texts = self.customers.iter().filter_map(|customer| std::fs::read(file(customer)).ok());
        texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect()
    }

    fn times(&self, values: impl Iterator<Item = Option<Micros>>) -> ArrayRef {
        let known = values.map(|time| time.filter(|&time| time != MIN_TIME && time != MAX_TIME));
        let array: TimestampMicrosecondArray = known.collect();
        Arc::new(array.with_timezone(self.zone.clone()))
    }

    fn watermarks(&self) -> DataFusionResult<RecordBatch> {
        let all = self.read();
        let rows: Vec<_> = (all.iter())
            .flat_map(|status| status.streams.iter().map(move |stream| (status, stream)))
            .flat_map(|(status, stream)| {
                stream.partitions.iter().map(move |partition| (status, stream, partition))
            })
            .collect();
        let text = |f: &dyn Fn(usize) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values((0..rows.len()).map(f)))
        };
        let number = |f: &dyn Fn(usize) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values((0..rows.len()).map(f)))
        };
        let flag = |f: &dyn Fn(usize) -> bool| -> ArrayRef {
            Arc::new(BooleanArray::from((0..rows.len()).map(f).collect::<Vec<_>>()))
        };
        let partitions: Int32Array = rows.iter().map(|(_, _, p)| Some(p.partition)).collect();
        Ok(RecordBatch::try_from_iter([
            ("customer", text(&|i| rows[i].0.customer.clone())),
            ("stream", text(&|i| rows[i].1.name.clone())),
            ("topic", text(&|i| rows[i].2.topic.clone())),
            ("partition", Arc::new(partitions) as ArrayRef),
            ("watermark", self.times(rows.iter().map(|(_, _, p)| p.watermark))),
            ("stream_watermark", self.times(rows.iter().map(|(_, stream, _)| stream.watermark))),
            ("idle", flag(&|i| rows[i].2.idle)),
            ("paused", flag(&|i| rows[i].2.paused)),
            ("quiet_since", self.times(rows.iter().map(|(_, _, p)| p.quiet_since))),
            ("position", number(&|i| rows[i].2.position)),
            ("end_position", number(&|i| rows[i].2.end)),
            ("lag", number(&|i| (rows[i].2.end - rows[i].2.position).max(0))),
            ("as_of", self.times(rows.iter().map(|(status, _, _)| Some(status.at)))),
        ])?)
    }

    fn windows(&self) -> DataFusionResult<RecordBatch> {
        let all = self.read();
        let rows: Vec<_> = (all.iter())
            .flat_map(|status| status.queries.iter().map(move |query| (status, query)))
            .flat_map(|(status, query)| query.open.iter().map(move |open| (status, query, open)))
            .collect();
        let text = |f: &dyn Fn(usize) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values((0..rows.len()).map(f)))
        };
        let held_by: StringArray =
            rows.iter().map(|(_, _, open)| open.held_by.as_deref()).collect();
        Ok(RecordBatch::try_from_iter([
            ("customer", text(&|i| rows[i].0.customer.clone())),
            ("query", text(&|i| rows[i].1.name.clone())),
            ("input", text(&|i| rows[i].1.input.clone())),
            ("window_start", self.times(rows.iter().map(|(_, _, open)| Some(open.window.start)))),
            ("window_end", self.times(rows.iter().map(|(_, _, open)| Some(open.window.end)))),
            ("held_by", Arc::new(held_by) as ArrayRef),
            ("held_at", self.times(rows.iter().map(|(_, _, open)| open.held_at))),
            ("because", text(&|i| rows[i].2.because.clone())),
            ("as_of", self.times(rows.iter().map(|(status, _, _)| Some(status.at)))),
        ])?)
    }
}

#[async_trait]
impl SchemaProvider for StatusSchema {
    fn table_names(&self) -> Vec<String> {
        vec![WATERMARKS.to_owned(), WINDOWS.to_owned()]
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        let rows = match name {
            WATERMARKS => self.watermarks()?,
            WINDOWS => self.windows()?,
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        matches!(name, WATERMARKS | WINDOWS)
    }
}
