//! What changed between what was said and what holds now, by key.

use std::collections::HashMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::row::{Row, RowConverter, Rows, SortField};

use crate::error::Result;

/// The changed and new rows of `new`, and the rows of `old` whose keys `new` lacks.
#[derive(Debug)]
pub(crate) struct Difference {
    pub upserts: RecordBatch,
    pub deletes: RecordBatch,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.upserts.num_rows() == 0 && self.deletes.num_rows() == 0
    }
}

/// Compares two results of one schema by the columns `key`; without any, whole rows are keys.
/// Of several rows with one key the last counts. Cost: the size of both.
pub(crate) fn difference(
    old: &RecordBatch,
    new: &RecordBatch,
    key: &[usize],
) -> Result<Difference> {
    let all: Vec<usize> = (0..new.num_columns()).collect();
    let key = if key.is_empty() { &all } else { key };
    let (old_keys, new_keys) = rows(old, new, key)?;
    let (old_rows, new_rows) = rows(old, new, &all)?;
    let mut before = latest(&old_keys);
    let now = latest(&new_keys);
    let mut upserts = Vec::new();
    for (row, key) in new_keys.iter().enumerate() {
        if now.get(&key) != Some(&row) {
            continue;
        }
        let same = before.remove(&key).is_some_and(|was| old_rows.row(was) == new_rows.row(row));
        if !same {
            upserts.push(index(row));
        }
    }
    let mut deletes: Vec<u32> = before.into_values().map(index).collect();
    deletes.sort_unstable();
    Ok(Difference {
        upserts: take_record_batch(new, &UInt32Array::from(upserts))?,
        deletes: take_record_batch(old, &UInt32Array::from(deletes))?,
    })
}

/// The columns of both, comparable with each other.
fn rows(old: &RecordBatch, new: &RecordBatch, columns: &[usize]) -> Result<(Rows, Rows)> {
    let schema = new.schema();
    let fields = columns.iter().map(|c| SortField::new(schema.field(*c).data_type().clone()));
    let converter = RowConverter::new(fields.collect())?;
    let convert =
        |batch: &RecordBatch| converter.convert_columns(batch.project(columns)?.columns());
    Ok((convert(old)?, convert(new)?))
}

fn latest(keys: &Rows) -> HashMap<Row<'_>, usize> {
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
    fn only_what_changed_is_said() {
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
