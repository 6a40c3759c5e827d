//! Computes the changelog between the published result and the current one, by key.

use std::collections::HashMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::row::{Row, RowConverter, Rows, SortField};

use crate::error::Result;

/// The difference of two results: the changed and new rows of the new one, and the rows of the old
/// one whose keys the new one lacks.
#[derive(Debug)]
pub(crate) struct Difference {
    pub upserts: RecordBatch,
    pub deletes: RecordBatch,
}

impl Difference {
    /// Whether both results are equal.
    pub fn is_empty(&self) -> bool {
        self.upserts.num_rows() == 0 && self.deletes.num_rows() == 0
    }
}

/// Compares two results of one schema by the columns `key`; if that is empty, whole rows are keys.
/// Of several rows with one key, the last one counts. Time and memory are linear in both results.
pub(crate) fn difference(
    old: &RecordBatch,
    new: &RecordBatch,
    key: &[usize],
) -> Result<Difference> {
    let all: Vec<usize> = (0..new.num_columns()).collect();
    let key = if key.is_empty() { &all } else { key };
    let (old_keys, new_keys) = rows(old, new, key)?;
    let (old_rows, new_rows) = rows(old, new, &all)?;
    let mut old_by_key = last_rows(&old_keys);
    let new_by_key = last_rows(&new_keys);
    let mut upserts = Vec::new();
    for (row, key) in new_keys.iter().enumerate() {
        if new_by_key.get(&key) != Some(&row) {
            continue;
        }
        let old_row = old_by_key.remove(&key);
        if old_row.is_none_or(|old_row| old_rows.row(old_row) != new_rows.row(row)) {
            upserts.push(index(row));
        }
    }
    let mut deletes: Vec<u32> = old_by_key.into_values().map(index).collect();
    deletes.sort_unstable();
    Ok(Difference {
        upserts: take_record_batch(new, &UInt32Array::from(upserts))?,
        deletes: take_record_batch(old, &UInt32Array::from(deletes))?,
    })
}

/// Converts the columns of both results to rows that can be compared with each other.
fn rows(old: &RecordBatch, new: &RecordBatch, columns: &[usize]) -> Result<(Rows, Rows)> {
    let schema = new.schema();
    let fields = columns.iter().map(|c| SortField::new(schema.field(*c).data_type().clone()));
    let converter = RowConverter::new(fields.collect())?;
    let convert =
        |batch: &RecordBatch| converter.convert_columns(batch.project(columns)?.columns());
    Ok((convert(old)?, convert(new)?))
}

/// The last row of each key.
fn last_rows(keys: &Rows) -> HashMap<Row<'_>, usize> {
    keys.iter().enumerate().map(|(row, key)| (key, row)).collect()
}

fn index(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn batch(rows: &[(Option<&str>, i64)]) -> RecordBatch {
        let names: StringArray = rows.iter().map(|r| r.0).collect();
        let values: Int64Array = rows.iter().map(|r| Some(r.1)).collect();
        let columns: [(&str, ArrayRef, bool); 2] =
            [("k", Arc::new(names), true), ("v", Arc::new(values), true)];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    #[test]
    fn only_changed_rows_are_published() {
        let old = batch(&[(Some("a"), 1), (None, 2), (Some("c"), 3), (Some("gone"), 4)]);
        let new = batch(&[(Some("c"), 3), (Some("new"), 5), (None, 6), (Some("a"), 1)]);
        let found = difference(&old, &new, &[0]).unwrap();
        assert_eq!(found.upserts, batch(&[(Some("new"), 5), (None, 6)]));
        assert_eq!(found.deletes, batch(&[(Some("gone"), 4)]));
        assert!(difference(&new, &new, &[0]).unwrap().is_empty());
        let whole = difference(&old, &new, &[]).unwrap();
        assert_eq!(whole.upserts, batch(&[(Some("new"), 5), (None, 6)]));
        assert_eq!(whole.deletes, batch(&[(None, 2), (Some("gone"), 4)]));
        let first = difference(&new.slice(0, 0), &new, &[0]).unwrap();
        assert_eq!(first.upserts, new);
    }
}
