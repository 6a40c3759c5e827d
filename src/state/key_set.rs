//! Sets of keys: the state of DISTINCT, which is a grouping without aggregates.
//!
//! DataFusion's hash tables of groups find the new rows. They live from batch to batch, whereas an
//! `AggregateExec` would build a table for every batch and every merge. The tables are not part of
//! the state: the state is the rows, in the layout of partial aggregates, and the tables can be
//! built from them.
//!
//! A key of several columns is looked up as a pair: its last column, and the other columns. There
//! are usually few distinct values of each, and many pairs. Each half has a small table of its own,
//! and a bit per pair records whether the set contains it. If the pairs are so sparse that the bits
//! take more memory than a table of whole keys, such a table replaces them for good.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, take_arrays, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::error::Result as DfResult;

use crate::state::key_interner::KeyInterner;

/// A table of at most so many keys is kept for the next use.
pub(crate) const MAX_SPARE_KEYS: usize = 100_000;

/// The bytes that bits may take per pair, before whole keys are looked up.
const PAIR_BYTES: usize = 32;
/// The bytes that bits may always take: halves occur earlier than most of their pairs.
const MIN_BIT_BYTES: usize = 256 << 10;

/// A set of keys.
pub(crate) struct KeySet {
    schema: SchemaRef,
    /// Never locked; the mutex makes the type `Sync`.
    table: Mutex<KeyTable>,
}

/// The keys of a set.
enum KeyTable {
    /// A bit per pair of halves.
    Pairs(PairBits),
    /// Keys that are looked up as a whole.
    Whole(KeyInterner),
}

impl KeySet {
    /// Creates an empty set. All columns of `schema` are the key.
    pub(crate) fn new(schema: SchemaRef) -> DfResult<Self> {
        let table = match Halves::of(&schema)? {
            Some(halves) => KeyTable::Pairs(PairBits::new(halves)),
            None => KeyTable::Whole(KeyInterner::new(&schema)?),
        };
        Ok(Self { schema, table: Mutex::new(table) })
    }

    /// Removes all keys.
    pub(crate) fn clear(&mut self) -> DfResult<()> {
        match self.table.get_mut().unwrap_or_else(PoisonError::into_inner) {
            KeyTable::Pairs(pairs) => pairs.clear(),
            KeyTable::Whole(whole) => whole.take_keys().map(drop),
        }
    }

    /// Adds the keys of `batch`. Returns the first row of each new key.
    pub(crate) fn insert_new(&mut self, batch: &RecordBatch) -> DfResult<RecordBatch> {
        select_rows(batch, self.insert_rows(batch)?)
    }

    /// Adds the keys of `batch`.
    pub(crate) fn insert(&mut self, batch: &RecordBatch) -> DfResult<()> {
        self.insert_rows(batch).map(drop)
    }

    /// Counts the keys whose last column is not null, grouped by the other columns. Returns these
    /// columns and the count, in the order in which the groups first occurred, and removes all
    /// keys. Returns `None` if there are no keys, or if they are looked up as a whole.
    pub(crate) fn take_counts(&mut self) -> DfResult<Option<RecordBatch>> {
        match self.table.get_mut().unwrap_or_else(PoisonError::into_inner) {
            KeyTable::Pairs(pairs) if pairs.count > 0 => pairs.take_counts(&self.schema).map(Some),
            _ => Ok(None),
        }
    }

    /// Adds the keys of `batch`. Returns the index of the first row of each new key.
    fn insert_rows(&mut self, batch: &RecordBatch) -> DfResult<Vec<u32>> {
        let table = self.table.get_mut().unwrap_or_else(PoisonError::into_inner);
        let pairs = match table {
            KeyTable::Whole(whole) => return whole.intern_new(batch.columns()),
            KeyTable::Pairs(pairs) => pairs,
        };
        if let Some(new_rows) = pairs.insert_rows(batch)? {
            return Ok(new_rows);
        }
        let mut whole = KeyInterner::new(&self.schema)?;
        whole.intern(pairs.take_keys(&self.schema)?.columns())?;
        let new_rows = whole.intern_new(batch.columns())?;
        *table = KeyTable::Whole(whole);
        Ok(new_rows)
    }
}

/// Returns the distinct rows of `batches`, in the order of their first occurrence. `key_set` must
/// be empty, and is empty again then.
pub(crate) fn distinct(key_set: &mut KeySet, batches: &[RecordBatch]) -> DfResult<RecordBatch> {
    let new =
        batches.iter().map(|batch| key_set.insert_new(batch)).collect::<DfResult<Vec<_>>>()?;
    key_set.clear()?;
    Ok(concat_batches(&key_set.schema, &new)?)
}

/// Returns these rows of `batch`; `rows` is ascending.
pub(super) fn select_rows(batch: &RecordBatch, rows: Vec<u32>) -> DfResult<RecordBatch> {
    if rows.len() == batch.num_rows() {
        return Ok(batch.clone());
    }
    Ok(take_record_batch(batch, &UInt32Array::from(rows))?)
}

/// Returns the index of the first null.
pub(super) fn first_null(column: &ArrayRef) -> Option<usize> {
    let nulls = column.logical_nulls()?;
    (0..nulls.len()).find(|row| nulls.is_null(*row))
}

/// The values of the two halves of keys.
pub(super) struct Halves {
    /// All columns except the last one.
    pub(super) left: KeyInterner,
    /// The last column.
    pub(super) right: KeyInterner,
}

impl Halves {
    /// Returns `None` if keys of `schema` cannot be halved. Floating-point columns cannot, because
    /// DataFusion's tables of one column and of several may compare such numbers differently.
    pub(super) fn of(schema: &SchemaRef) -> DfResult<Option<Self>> {
        let is_plain = |data_type: &DataType| !data_type.is_nested() && !data_type.is_floating();
        let last = schema.fields().len().saturating_sub(1);
        if last == 0 || !schema.fields().iter().all(|field| is_plain(field.data_type())) {
            return Ok(None);
        }
        let left = KeyInterner::new(&schema.project(&(0..last).collect::<Vec<_>>())?)?;
        Ok(Some(Self { left, right: KeyInterner::new(&schema.project(&[last])?)? }))
    }

    /// Removes all values.
    pub(super) fn clear(&mut self) -> DfResult<()> {
        self.left.take_keys()?;
        self.right.take_keys().map(drop)
    }

    /// Returns the keys of these pairs of numbers, and removes all values.
    pub(super) fn take_keys(
        &mut self,
        schema: &SchemaRef,
        pairs: impl Iterator<Item = (usize, usize)>,
    ) -> DfResult<RecordBatch> {
        let (left, right): (Vec<u64>, Vec<u64>) =
            pairs.map(|(left, right)| (left as u64, right as u64)).unzip();
        let mut columns = take_arrays(&self.left.take_keys()?, &UInt64Array::from(left), None)?;
        columns.extend(take_arrays(&self.right.take_keys()?, &UInt64Array::from(right), None)?);
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}

/// A table of bits with a row per left half and a column per right half.
struct PairBits {
    halves: Halves,
    /// The rows, each of `words` words.
    bits: Vec<u64>,
    words: usize,
    /// The number of pairs in the set.
    count: usize,
}

impl PairBits {
    fn new(halves: Halves) -> Self {
        Self { halves, bits: Vec::new(), words: 1, count: 0 }
    }

    fn clear(&mut self) -> DfResult<()> {
        self.bits.clear();
        self.words = 1;
        self.count = 0;
        self.halves.clear()
    }

    /// Does what [`KeySet::insert_rows`] does. Returns `None`, and adds no key, if the bits would
    /// take too much memory.
    fn insert_rows(&mut self, batch: &RecordBatch) -> DfResult<Option<Vec<u32>>> {
        let Halves { left, right } = &mut self.halves;
        let (lefts, rights) = batch.columns().split_at(batch.num_columns() - 1);
        left.intern(lefts)?;
        right.intern(rights)?;
        let max_bytes =
            (self.count + batch.num_rows()).saturating_mul(PAIR_BYTES).max(MIN_BIT_BYTES);
        let words = right.len().div_ceil(64).next_power_of_two();
        let length = left.len().saturating_mul(words);
        if length.saturating_mul(size_of::<u64>()) > max_bytes {
            return Ok(None);
        }
        if words > self.words {
            widen(&mut self.bits, self.words, words);
            self.words = words;
        }
        self.bits.resize(length, 0);
        let mut new_rows = Vec::new();
        for (row, (left, right)) in (0..).zip(left.numbers.iter().zip(&right.numbers)) {
            let (word, bit) = (&mut self.bits[left * words + right / 64], 1 << (right % 64));
            if *word & bit == 0 {
                *word |= bit;
                new_rows.push(row);
            }
        }
        self.count += new_rows.len();
        Ok(Some(new_rows))
    }

    /// Does what [`KeySet::take_counts`] does.
    fn take_counts(&mut self, schema: &SchemaRef) -> DfResult<RecordBatch> {
        let groups = self.halves.left.take_keys()?;
        let null = self.halves.right.take_keys()?.first().and_then(first_null);
        let count = |row: &[u64]| {
            let keys = row.iter().map(|word| word.count_ones()).sum::<u32>();
            let has_null = null.is_some_and(|null| row[null / 64] >> (null % 64) & 1 == 1);
            i64::from(keys) - i64::from(has_null)
        };
        let counts = self.bits.chunks(self.words).map(count).collect();
        self.clear()?;
        with_counts(&schema.fields()[..groups.len()], groups, counts)
    }

    /// Returns all keys, and removes the halves.
    fn take_keys(&mut self, schema: &SchemaRef) -> DfResult<RecordBatch> {
        let words = self.words;
        let pairs = self.bits.iter().enumerate().flat_map(|(at, word)| {
            let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
            set.map(move |bit| (at / words, at % words * 64 + bit))
        });
        self.halves.take_keys(schema, pairs)
    }
}

/// Adds the number of keys of each group to the columns of groups.
pub(super) fn with_counts(
    fields: &[FieldRef],
    mut groups: Vec<ArrayRef>,
    counts: Int64Array,
) -> DfResult<RecordBatch> {
    groups.push(Arc::new(counts));
    let count = Arc::new(Field::new("count", DataType::Int64, false));
    let fields: Fields = fields.iter().cloned().chain([count]).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), groups)?)
}

/// Widens each row of a table from `from` to `to` values.
pub(super) fn widen<T: Copy + Default>(table: &mut Vec<T>, from: usize, to: usize) {
    let mut wider = vec![T::default(); table.len() / from * to];
    for (old, new) in table.chunks(from).zip(wider.chunks_mut(to)) {
        new[..from].copy_from_slice(old);
    }
    *table = wider;
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySet").field("schema", &self.schema).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use arrow::array::{AsArray, StringArray};
    use arrow::compute::cast;
    use arrow::datatypes::Int64Type;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

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
    fn a_key_is_new_only_once() {
        let first = batch(&[(Some(1), "a"), (None, "a"), (Some(1), "a"), (Some(1), "b")]);
        let second = batch(&[(Some(2), "b"), (Some(1), "b"), (None, "a"), (Some(2), "b")]);
        let mut key_set = KeySet::new(first.schema()).unwrap();
        let new = key_set.insert_new(&first).unwrap();
        assert_eq!(new, batch(&[(Some(1), "a"), (None, "a"), (Some(1), "b")]));
        assert_eq!(key_set.insert_new(&second).unwrap(), batch(&[(Some(2), "b")]));
        assert_eq!(key_set.insert_new(&first).unwrap().num_rows(), 0);
        key_set.clear().unwrap();
        let new = key_set.insert_new(&second).unwrap();
        assert_eq!(new, batch(&[(Some(2), "b"), (Some(1), "b"), (None, "a")]));
        key_set.clear().unwrap();
        let all = distinct(&mut key_set, &[first.clone(), second, first]).unwrap();
        assert_eq!(all.num_rows(), 4);
        let none = distinct(&mut key_set, &[]).unwrap();
        assert_eq!(none.num_rows(), 0);
    }

    #[test]
    fn a_cleared_set_is_empty() {
        let rows = batch(&[(Some(1), "a"), (None, "b"), (Some(2), "a")]);
        let few = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let mut columns = rows.columns().to_vec();
        columns.push(cast(rows.column(1), &few).unwrap());
        let named = ["n", "t", "d"].into_iter().zip(columns);
        let rows = RecordBatch::try_from_iter(named).unwrap();
        for (columns, keys) in
            [(&[0][..], 3), (&[1], 2), (&[2], 2), (&[0, 1], 3), (&[2, 0], 3), (&[0, 1, 2], 3)]
        {
            let rows = rows.project(columns).unwrap();
            let mut key_set = KeySet::new(rows.schema()).unwrap();
            key_set.clear().unwrap();
            for _ in 0..3 {
                assert_eq!(key_set.insert_new(&rows).unwrap().num_rows(), keys);
                assert_eq!(key_set.insert_new(&rows.slice(1, 2)).unwrap().num_rows(), 0);
                key_set.clear().unwrap();
            }
        }
    }

    #[test]
    fn counts_of_groups_exclude_null() {
        let rows =
            batch(&[(Some(7), "a"), (None, "b"), (None, "a"), (Some(7), "b"), (Some(7), "a")]);
        let (texts, numbers) = (rows.column(1), rows.column(0));
        let by_text = [("t", Arc::clone(texts), true), ("n", Arc::clone(numbers), true)];
        let by_text = RecordBatch::try_from_iter_with_nullable(by_text).unwrap();
        let counts = |rows: &RecordBatch| {
            let mut key_set = KeySet::new(rows.schema()).unwrap();
            assert!(key_set.take_counts().unwrap().is_none());
            key_set.insert(rows).unwrap();
            let counts = key_set.take_counts().unwrap().unwrap();
            assert!(key_set.take_counts().unwrap().is_none());
            assert_eq!(key_set.insert_new(rows).unwrap().num_rows(), 4);
            (Arc::clone(counts.column(0)), counts.column(1).as_primitive::<Int64Type>().clone())
        };
        let numbers = Arc::new(Int64Array::from(vec![Some(7), None])) as ArrayRef;
        assert_eq!(counts(&rows), (numbers, Int64Array::from(vec![2, 2])));
        let texts = Arc::new(StringArray::from(vec!["a", "b"])) as ArrayRef;
        assert_eq!(counts(&by_text), (texts, Int64Array::from(vec![1, 1])));
        let whole = batch(&[(Some(1), "a")]).project(&[0]).unwrap();
        let mut key_set = KeySet::new(whole.schema()).unwrap();
        key_set.insert(&whole).unwrap();
        assert!(key_set.take_counts().unwrap().is_none());
    }

    /// Few left halves, few right halves, and so many of both that whole keys are looked up.
    #[test]
    fn halves_and_whole_keys_find_the_new_keys_of_a_plain_set() {
        let mut random = StdRng::seed_from_u64(11);
        for (numbers, texts, whole) in [(9, 700, false), (4_000, 3, false), (3_000, 3_000, true)] {
            let texts: Vec<_> = (0..texts).map(|text| format!("text {text}")).collect();
            let mut key_set = KeySet::new(batch(&[]).schema()).unwrap();
            let mut seen = HashSet::new();
            for round in 0..60 {
                if round == 40 {
                    key_set.clear().unwrap();
                    seen.clear();
                }
                let size = random.random_range(0..300);
                let mut draw = || {
                    let number = random.random_range(-1..numbers);
                    let text = random.random_range(0..texts.len());
                    ((number >= 0).then_some(number), texts[text].as_str())
                };
                let rows: Vec<_> = (0..size).map(|_| draw()).collect();
                let new: Vec<_> = rows.iter().copied().filter(|row| seen.insert(*row)).collect();
                assert_eq!(key_set.insert_new(&batch(&rows)).unwrap(), batch(&new));
            }
            assert_eq!(matches!(key_set.table.get_mut().unwrap(), KeyTable::Whole(_)), whole);
        }
    }
}
