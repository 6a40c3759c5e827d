//! The buffer of rows that are not committed yet, by date, with the columns of the files.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int32Array, RecordBatch, RecordBatchOptions, StringArray,
    UInt32Array, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options, take_record_batch};
use arrow::datatypes::SchemaRef;

use crate::history::delta_table::{DELETED, OFFSET, PARTITION, POSITION, TOPIC};
use crate::history::parquet_file;
use crate::{Error, Result};

/// Buffers rows by date. It shares the arrays of the appended batches where no cast or split is
/// necessary.
pub(super) struct WriteBuffer {
    schema: SchemaRef,
    dates: BTreeMap<Option<i32>, Vec<RecordBatch>>,
    bytes: usize,
}

impl WriteBuffer {
    /// Creates an empty buffer for files with the columns of `schema`.
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self { schema, dates: BTreeMap::new(), bytes: 0 }
    }

    /// The columns of the files.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The size of the rows in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of rows.
    pub(super) fn rows(&self) -> usize {
        self.dates.values().flatten().map(RecordBatch::num_rows).sum()
    }

    /// The rows of each date.
    pub(super) fn dates(&self) -> Vec<(Option<i32>, Vec<RecordBatch>)> {
        self.dates.iter().map(|(date, rows)| (*date, rows.clone())).collect()
    }

    /// Removes all rows.
    pub(super) fn clear(&mut self) {
        self.dates.clear();
        self.bytes = 0;
    }

    /// Converts a batch to the columns of the files: casts and reorders its columns, and fills in the
    /// optional ones.
    pub(super) fn to_stored(
        &self,
        topic: &str,
        partition: i32,
        batch: &RecordBatch,
    ) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        // Only extreme values cannot be cast (seconds that overflow microseconds). They become null,
        // so that the other rows are stored.
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for field in self.schema.fields() {
            let column = match (batch.column_by_name(field.name()), field.name().as_str()) {
                (Some(column), _) if column.data_type() == field.data_type() => column.clone(),
                (Some(column), _) => cast_with_options(column, field.data_type(), &options)?,
                (None, TOPIC) => Arc::new(StringArray::from(vec![topic; rows])),
                (None, PARTITION) => Arc::new(Int32Array::from(vec![partition; rows])),
                (None, POSITION) => Arc::new(Int32Array::from(vec![0; rows])),
                (None, DELETED) => Arc::new(BooleanArray::from(vec![false; rows])),
                (None, OFFSET) => {
                    return Err(Error::internal("rows for history have no column '_offset'"));
                }
                (None, _) => new_null_array(field.data_type(), rows),
            };
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }

    /// Adds rows to their dates. Does not copy rows that all have the same date.
    pub(super) fn add(&mut self, rows: RecordBatch) -> Result<()> {
        let column = rows.column(0);
        let date = |row: usize| match column.is_null(row) {
            true => None,
            false => parquet_file::date_of(parquet_file::times(column)[row]),
        };
        let mut by_date: BTreeMap<Option<i32>, Vec<u32>> = BTreeMap::new();
        let first = date(0);
        if (1..rows.num_rows()).all(|row| date(row) == first) {
            self.push(first, rows);
            return Ok(());
        }
        for row in 0..rows.num_rows() {
            let index = u32::try_from(row).map_err(|_| Error::internal("a batch is too long"))?;
            by_date.entry(date(row)).or_default().push(index);
        }
        for (date, indices) in by_date {
            let taken = take_record_batch(&rows, &UInt32Array::from(indices))?;
            self.push(date, taken);
        }
        Ok(())
    }

    fn push(&mut self, date: Option<i32>, rows: RecordBatch) {
        self.bytes += (rows.columns().iter())
            .map(|c| {
                c.to_data().get_slice_memory_size().unwrap_or_else(|_| c.get_array_memory_size())
            })
            .sum::<usize>();
        self.dates.entry(date).or_default().push(rows);
    }
}
