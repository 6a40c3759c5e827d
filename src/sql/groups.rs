//! Groupings without aggregates, which are what DISTINCT keeps: sets of keys.
//!
//! DataFusion's own hash table of groups tells which rows are new. It is kept from batch to batch,
//! where an `AggregateExec` would build one anew for every batch and every merge. It is no state:
//! what is kept are the rows, in the layout of partials, and the table can be made from them again.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

/// A table of at most so many groups is kept for the next use.
pub(crate) const SMALL: usize = 100_000;

/// The keys that were seen.
pub(crate) struct Groups {
    schema: SchemaRef,
    /// Never locked: it is `Sync` this way.
    seen: Mutex<Box<dyn GroupValues>>,
    /// Of each row of the present batch.
    ids: Vec<usize>,
    /// Of each group, the last batch that had it.
    last: Vec<u32>,
    batches: u32,
}

/// What of a batch is worth keeping.
pub(crate) struct Split {
    /// The first row of each of its keys.
    pub(crate) distinct: RecordBatch,
    /// Those whose key no batch before had.
    pub(crate) fresh: RecordBatch,
}

impl Groups {
    /// None seen yet; all columns of `schema` are the key.
    pub(crate) fn new(schema: SchemaRef) -> DfResult<Self> {
        let seen = new_group_values(SchemaRef::clone(&schema), &GroupOrdering::None)?;
        let seen = Mutex::new(seen);
        Ok(Self { schema, seen, ids: Vec::new(), last: Vec::new(), batches: 0 })
    }

    /// Forgets all keys, but keeps the room for them.
    pub(crate) fn clear(&mut self) {
        let room = self.last.len();
        self.seen().clear_shrink(room);
        self.last.clear();
        self.batches = 0;
    }

    /// Takes the keys of `batch`, and tells which are new.
    pub(crate) fn split(&mut self, batch: &RecordBatch) -> DfResult<Split> {
        let (distinct, fresh) = self.sort(batch)?;
        let fresh = (fresh.len() < distinct.len()).then(|| rows(batch, fresh)).transpose()?;
        let distinct = rows(batch, distinct)?;
        Ok(Split { fresh: fresh.unwrap_or_else(|| distinct.clone()), distinct })
    }

    /// Takes the keys of `batch`; the first rows of those that are new.
    pub(crate) fn fresh(&mut self, batch: &RecordBatch) -> DfResult<RecordBatch> {
        let (_, fresh) = self.sort(batch)?;
        rows(batch, fresh)
    }

    /// The first row of each key, and of each new key.
    fn sort(&mut self, batch: &RecordBatch) -> DfResult<(Vec<u32>, Vec<u32>)> {
        let known = self.last.len();
        self.take(batch)?;
        self.batches += 1;
        let (mut distinct, mut fresh) = (Vec::new(), Vec::new());
        for (row, id) in (0..).zip(&self.ids) {
            if self.last[*id] != self.batches {
                self.last[*id] = self.batches;
                distinct.push(row);
                if *id >= known {
                    fresh.push(row);
                }
            }
        }
        Ok((distinct, fresh))
    }

    /// Takes the keys of `batch`.
    pub(crate) fn take(&mut self, batch: &RecordBatch) -> DfResult<()> {
        let seen = self.seen.get_mut().unwrap_or_else(PoisonError::into_inner);
        seen.intern(batch.columns(), &mut self.ids)?;
        self.last.resize(seen.len(), 0);
        Ok(())
    }

    fn seen(&mut self) -> &mut dyn GroupValues {
        self.seen.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut()
    }

    /// Each key once, in the order in which they were first seen; forgets them.
    pub(crate) fn emit(&mut self) -> DfResult<RecordBatch> {
        let columns = self.seen().emit(EmitTo::All)?;
        self.clear();
        Ok(RecordBatch::try_new(SchemaRef::clone(&self.schema), columns)?)
    }
}

fn rows(batch: &RecordBatch, rows: Vec<u32>) -> DfResult<RecordBatch> {
    if rows.len() == batch.num_rows() {
        return Ok(batch.clone());
    }
    Ok(take_record_batch(batch, &UInt32Array::from(rows))?)
}

/// The distinct rows of `batches`, in the order in which they come first.
pub(crate) fn distinct(groups: &mut Groups, batches: &[RecordBatch]) -> DfResult<RecordBatch> {
    for batch in batches {
        groups.take(batch)?;
    }
    groups.emit()
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("seen", &self.last.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn batch(rows: &[(Option<i64>, &str)]) -> RecordBatch {
        let numbers: Int64Array = rows.iter().map(|row| row.0).collect();
        let texts: StringArray = rows.iter().map(|row| Some(row.1)).collect();
        RecordBatch::try_from_iter_with_nullable([
            ("n", Arc::new(numbers) as _, true),
            ("t", Arc::new(texts) as _, true),
        ])
        .unwrap()
    }

    #[test]
    fn a_key_is_new_once() {
        let first = batch(&[(Some(1), "a"), (None, "a"), (Some(1), "a"), (Some(1), "b")]);
        let second = batch(&[(Some(2), "b"), (Some(1), "b"), (None, "a"), (Some(2), "b")]);
        let mut groups = Groups::new(first.schema()).unwrap();
        let split = groups.split(&first).unwrap();
        assert_eq!(split.distinct, batch(&[(Some(1), "a"), (None, "a"), (Some(1), "b")]));
        assert_eq!(split.fresh, split.distinct);
        let split = groups.split(&second).unwrap();
        assert_eq!(split.distinct, batch(&[(Some(2), "b"), (Some(1), "b"), (None, "a")]));
        assert_eq!(split.fresh, batch(&[(Some(2), "b")]));
        assert_eq!(groups.fresh(&first).unwrap().num_rows(), 0);
        groups.clear();
        assert_eq!(groups.fresh(&second).unwrap(), split.distinct);
        let all = distinct(&mut groups, &[first.clone(), first]).unwrap();
        assert_eq!(all.num_rows(), 4, "what was taken before stays until it is emitted");
        let none = distinct(&mut groups, &[]).unwrap();
        assert_eq!(none.num_rows(), 0);
    }
}
