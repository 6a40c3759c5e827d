//! Results of queries as records of their topic.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use crate::Result;
use crate::sink::json_rows;
use crate::types::OutRecord;

/// What a results topic holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// Rows that stay as they are.
    Append,
    /// The current row of each key; a tombstone when a key is removed.
    Upsert,
    /// Rows of windows that may be revised: by key, with `is_final` and `revision`.
    Revised,
}

/// Turns the results of one query into records.
#[derive(Debug, Clone)]
pub struct ResultSink {
    /// The results topic.
    pub topic: Arc<str>,
    /// What the topic holds.
    pub publication: Publication,
    key: Vec<usize>,
}

impl ResultSink {
    /// A sink for rows of `columns` columns whose key is the columns `key`. Without a key, appended
    /// rows have none, and of other rows the whole row is the key.
    pub fn new(topic: &str, publication: Publication, key: Vec<usize>, columns: usize) -> Self {
        let whole_row = key.is_empty() && publication != Publication::Append;
        let key = if whole_row { (0..columns).collect() } else { key };
        Self { topic: topic.into(), publication, key }
    }

    /// The columns of the records' keys.
    pub fn key(&self) -> &[usize] {
        &self.key
    }

    /// The columns of the topic's values, for rows of `output`.
    pub fn schema(&self, output: &SchemaRef) -> SchemaRef {
        if self.publication != Publication::Revised {
            return output.clone();
        }
        let mut fields: Vec<_> = output.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new("is_final", DataType::Boolean, false)));
        fields.push(Arc::new(Field::new("revision", DataType::Int64, false)));
        Arc::new(Schema::new(fields))
    }

    /// Records for rows that are new or have new values.
    pub fn upserts(
        &self,
        rows: &RecordBatch,
        is_final: bool,
        revision: i64,
    ) -> Result<Vec<OutRecord>> {
        let values = if self.publication == Publication::Revised {
            let count = rows.num_rows();
            let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
            columns.push(Arc::new(BooleanArray::from(vec![is_final; count])));
            columns.push(Arc::new(Int64Array::from(vec![revision; count])));
            json_rows(&RecordBatch::try_new(self.schema(&rows.schema()), columns)?)?
        } else {
            json_rows(rows)?
        };
        let keys = self.keys(rows)?;
        Ok(self.records(keys, values.into_iter().map(Some)))
    }

    /// Tombstones for the keys of `rows`.
    pub fn tombstones(&self, rows: &RecordBatch) -> Result<Vec<OutRecord>> {
        let keys = self.keys(rows)?;
        Ok(self.records(keys, std::iter::repeat_n(None, rows.num_rows())))
    }

    fn keys(&self, rows: &RecordBatch) -> Result<Vec<Option<Bytes>>> {
        if self.key.is_empty() {
            return Ok(vec![None; rows.num_rows()]);
        }
        let keys = json_rows(&rows.project(&self.key)?)?;
        Ok(keys.into_iter().map(Some).collect())
    }

    fn records(
        &self,
        keys: Vec<Option<Bytes>>,
        values: impl Iterator<Item = Option<Bytes>>,
    ) -> Vec<OutRecord> {
        keys.into_iter()
            .zip(values)
            .map(|(key, value)| OutRecord {
                topic: self.topic.clone(),
                partition: None,
                key,
                value,
                headers: Vec::new(),
                timestamp_ms: None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revised_rows_have_their_revision_and_deletes_are_tombstones() {
        let rows = RecordBatch::try_from_iter([
            ("room", Arc::new(arrow::array::StringArray::from(vec!["hall"])) as ArrayRef),
            ("n", Arc::new(Int64Array::from(vec![2]))),
        ])
        .unwrap();
        let sink = ResultSink::new("t", Publication::Revised, vec![0], 2);
        let records = sink.upserts(&rows, false, 4).unwrap();
        assert_eq!(records[0].key.as_deref(), Some(br#"{"room":"hall"}"#.as_slice()));
        let value = records[0].value.as_deref().unwrap();
        assert_eq!(value, br#"{"room":"hall","n":2,"is_final":false,"revision":4}"#);
        let gone = sink.tombstones(&rows).unwrap();
        assert!(gone[0].value.is_none() && gone[0].key == records[0].key);
    }
}
