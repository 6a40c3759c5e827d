//! Groupings without aggregates, which are what DISTINCT keeps: sets of keys.
//!
//! DataFusion's own hash tables of groups tell which rows are new. They are kept from batch to
//! batch, where an `AggregateExec` would build one anew for every batch and every merge. They are
//! no state: what is kept are the rows, in the layout of partials, and the tables can be made from
//! them again.
//!
//! A key of several columns is looked up as a pair, of its last column and of the others: persons
//! and rooms are few where their pairs are many. Each half is looked up in a small table of its
//! own, and a bit says whether the pair was seen. Where halves are so many, and have met so seldom,
//! that bits take more than a table of whole keys would, such a table takes over for good.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::compute::{concat_batches, take_arrays, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::error::Result as DfResult;

use crate::state::key_interner::KeyInterner;

/// A table of at most so many groups is kept for the next use.
pub(crate) const SMALL: usize = 100_000;

/// Bits may take so many bytes for each pair, before keys are looked up as a whole.
const PAIR_BYTES: usize = 32;
/// Or so many in all: halves that are to meet often are known sooner than their pairs.
const FEW_BYTES: usize = 256 << 10;

/// The keys that were seen.
pub(crate) struct KeySet {
    schema: SchemaRef,
    /// Never locked: it is `Sync` this way.
    seen: Mutex<Seen>,
}

enum Seen {
    Pairs(Pairs),
    Whole(KeyInterner),
}

impl KeySet {
    /// None seen yet; all columns of `schema` are the key.
    pub(crate) fn new(schema: SchemaRef) -> DfResult<Self> {
        let seen = match Halves::of(&schema)? {
            Some(halves) => Seen::Pairs(Pairs::new(halves)),
            None => Seen::Whole(KeyInterner::new(&schema)?),
        };
        Ok(Self { schema, seen: Mutex::new(seen) })
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) -> DfResult<()> {
        match self.seen.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Seen::Pairs(pairs) => pairs.clear(),
            Seen::Whole(whole) => whole.empty().map(drop),
        }
    }

    /// Takes the keys of `batch`; the first rows of those that are new.
    pub(crate) fn fresh(&mut self, batch: &RecordBatch) -> DfResult<RecordBatch> {
        rows(batch, self.look(batch)?)
    }

    /// Takes the keys of `batch`.
    pub(crate) fn take(&mut self, batch: &RecordBatch) -> DfResult<()> {
        self.look(batch).map(drop)
    }

    /// How many keys with a last column that is not null each group of the other columns has: these
    /// columns and the count, in the order in which the groups came. Forgets all keys. `None` where
    /// there are none, or they are looked up as a whole.
    pub(crate) fn take_counts(&mut self) -> DfResult<Option<RecordBatch>> {
        match self.seen.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Seen::Pairs(pairs) if pairs.seen > 0 => pairs.take_counts(&self.schema).map(Some),
            _ => Ok(None),
        }
    }

    /// The first row of each new key.
    fn look(&mut self, batch: &RecordBatch) -> DfResult<Vec<u32>> {
        let seen = self.seen.get_mut().unwrap_or_else(PoisonError::into_inner);
        let pairs = match seen {
            Seen::Whole(whole) => return whole.fresh(batch.columns()),
            Seen::Pairs(pairs) => pairs,
        };
        if let Some(fresh) = pairs.look(batch)? {
            return Ok(fresh);
        }
        let mut whole = KeyInterner::new(&self.schema)?;
        whole.look(pairs.keys(&self.schema)?.columns())?;
        let fresh = whole.fresh(batch.columns())?;
        *seen = Seen::Whole(whole);
        Ok(fresh)
    }
}

/// The distinct rows of `batches`, in the order in which they come first; `groups` has seen none.
pub(crate) fn distinct(groups: &mut KeySet, batches: &[RecordBatch]) -> DfResult<RecordBatch> {
    let fresh = batches.iter().map(|batch| groups.fresh(batch)).collect::<DfResult<Vec<_>>>()?;
    groups.clear()?;
    Ok(concat_batches(&groups.schema, &fresh)?)
}

/// These rows of `batch`, ascending.
pub(super) fn rows(batch: &RecordBatch, rows: Vec<u32>) -> DfResult<RecordBatch> {
    if rows.len() == batch.num_rows() {
        return Ok(batch.clone());
    }
    Ok(take_record_batch(batch, &UInt32Array::from(rows))?)
}

/// The first row that is null.
pub(super) fn first_null(column: &ArrayRef) -> Option<usize> {
    let nulls = column.logical_nulls()?;
    (0..nulls.len()).find(|row| nulls.is_null(*row))
}

/// Keys in halves.
pub(super) struct Halves {
    pub(super) left: KeyInterner,
    /// The last column.
    pub(super) right: KeyInterner,
}

impl Halves {
    /// None where keys of `schema` cannot be halved. One column's table and that of several do not
    /// have to agree on what equal numbers of floating point are.
    pub(super) fn of(schema: &SchemaRef) -> DfResult<Option<Self>> {
        let plain = |data_type: &DataType| !data_type.is_nested() && !data_type.is_floating();
        let last = schema.fields().len().saturating_sub(1);
        if last == 0 || !schema.fields().iter().all(|field| plain(field.data_type())) {
            return Ok(None);
        }
        let left = KeyInterner::new(&schema.project(&(0..last).collect::<Vec<_>>())?)?;
        Ok(Some(Self { left, right: KeyInterner::new(&schema.project(&[last])?)? }))
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) -> DfResult<()> {
        self.left.empty()?;
        self.right.empty().map(drop)
    }

    /// The keys of these pairs of numbers; the halves are forgotten.
    pub(super) fn keys(
        &mut self,
        schema: &SchemaRef,
        pairs: impl Iterator<Item = (usize, usize)>,
    ) -> DfResult<RecordBatch> {
        let (left, right): (Vec<u64>, Vec<u64>) =
            pairs.map(|(left, right)| (left as u64, right as u64)).unzip();
        let mut columns = take_arrays(&self.left.empty()?, &UInt64Array::from(left), None)?;
        columns.extend(take_arrays(&self.right.empty()?, &UInt64Array::from(right), None)?);
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}

/// Keys in halves: a bit for each left half with each right half, by their numbers.
struct Pairs {
    halves: Halves,
    /// `words` for each left half.
    bits: Vec<u64>,
    words: usize,
    /// How many pairs were seen.
    seen: usize,
}

impl Pairs {
    fn new(halves: Halves) -> Self {
        Self { halves, bits: Vec::new(), words: 1, seen: 0 }
    }

    fn clear(&mut self) -> DfResult<()> {
        self.bits.clear();
        self.words = 1;
        self.seen = 0;
        self.halves.clear()
    }

    /// As [`KeySet::look`]; `None`, and nothing seen, where bits are not worth their while.
    fn look(&mut self, batch: &RecordBatch) -> DfResult<Option<Vec<u32>>> {
        let Halves { left, right } = &mut self.halves;
        let (lefts, rights) = batch.columns().split_at(batch.num_columns() - 1);
        left.look(lefts)?;
        right.look(rights)?;
        let most = (self.seen + batch.num_rows()).saturating_mul(PAIR_BYTES).max(FEW_BYTES);
        let words = right.len().div_ceil(64).next_power_of_two();
        let room = left.len().saturating_mul(words);
        if room.saturating_mul(size_of::<u64>()) > most {
            return Ok(None);
        }
        if words > self.words {
            widen(&mut self.bits, self.words, words);
            self.words = words;
        }
        self.bits.resize(room, 0);
        let mut fresh = Vec::new();
        for (row, (left, right)) in (0..).zip(left.numbers.iter().zip(&right.numbers)) {
            let (word, bit) = (&mut self.bits[left * words + right / 64], 1 << (right % 64));
            if *word & bit == 0 {
                *word |= bit;
                fresh.push(row);
            }
        }
        self.seen += fresh.len();
        Ok(Some(fresh))
    }

    fn take_counts(&mut self, schema: &SchemaRef) -> DfResult<RecordBatch> {
        let groups = self.halves.left.empty()?;
        let null = self.halves.right.empty()?.first().and_then(first_null);
        let count = |row: &[u64]| {
            let keys = row.iter().map(|word| word.count_ones()).sum::<u32>();
            let has_null = null.is_some_and(|null| row[null / 64] >> (null % 64) & 1 == 1);
            i64::from(keys) - i64::from(has_null)
        };
        let counts = self.bits.chunks(self.words).map(count).collect();
        self.clear()?;
        counted(&schema.fields()[..groups.len()], groups, counts)
    }

    /// All keys that were seen; it is empty then.
    fn keys(&mut self, schema: &SchemaRef) -> DfResult<RecordBatch> {
        let words = self.words;
        let pairs = self.bits.iter().enumerate().flat_map(|(at, word)| {
            let set = (0..64).filter(move |bit| word >> bit & 1 == 1);
            set.map(move |bit| (at / words, at % words * 64 + bit))
        });
        self.halves.keys(schema, pairs)
    }
}

/// The columns of groups, and how many keys each group has.
pub(super) fn counted(
    fields: &[FieldRef],
    mut groups: Vec<ArrayRef>,
    counts: Int64Array,
) -> DfResult<RecordBatch> {
    groups.push(Arc::new(counts));
    let count = Arc::new(Field::new("count", DataType::Int64, false));
    let fields: Fields = fields.iter().cloned().chain([count]).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), groups)?)
}

/// Makes room for `to` values in each row of a table that has `from`.
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
    fn a_key_is_new_once() {
        let first = batch(&[(Some(1), "a"), (None, "a"), (Some(1), "a"), (Some(1), "b")]);
        let second = batch(&[(Some(2), "b"), (Some(1), "b"), (None, "a"), (Some(2), "b")]);
        let mut groups = KeySet::new(first.schema()).unwrap();
        let fresh = groups.fresh(&first).unwrap();
        assert_eq!(fresh, batch(&[(Some(1), "a"), (None, "a"), (Some(1), "b")]));
        assert_eq!(groups.fresh(&second).unwrap(), batch(&[(Some(2), "b")]));
        assert_eq!(groups.fresh(&first).unwrap().num_rows(), 0);
        groups.clear().unwrap();
        let fresh = groups.fresh(&second).unwrap();
        assert_eq!(fresh, batch(&[(Some(2), "b"), (Some(1), "b"), (None, "a")]));
        groups.clear().unwrap();
        let all = distinct(&mut groups, &[first.clone(), second, first]).unwrap();
        assert_eq!(all.num_rows(), 4);
        let none = distinct(&mut groups, &[]).unwrap();
        assert_eq!(none.num_rows(), 0);
    }

    #[test]
    fn what_is_cleared_is_forgotten() {
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
            let mut groups = KeySet::new(rows.schema()).unwrap();
            groups.clear().unwrap();
            for _ in 0..3 {
                assert_eq!(groups.fresh(&rows).unwrap().num_rows(), keys);
                assert_eq!(groups.fresh(&rows.slice(1, 2)).unwrap().num_rows(), 0);
                groups.clear().unwrap();
            }
        }
    }

    #[test]
    fn groups_have_counts_without_their_null() {
        let rows =
            batch(&[(Some(7), "a"), (None, "b"), (None, "a"), (Some(7), "b"), (Some(7), "a")]);
        let (texts, numbers) = (rows.column(1), rows.column(0));
        let by_text = [("t", Arc::clone(texts), true), ("n", Arc::clone(numbers), true)];
        let by_text = RecordBatch::try_from_iter_with_nullable(by_text).unwrap();
        let counts = |rows: &RecordBatch| {
            let mut groups = KeySet::new(rows.schema()).unwrap();
            assert!(groups.take_counts().unwrap().is_none());
            groups.take(rows).unwrap();
            let counts = groups.take_counts().unwrap().unwrap();
            assert!(groups.take_counts().unwrap().is_none());
            assert_eq!(groups.fresh(rows).unwrap().num_rows(), 4);
            (Arc::clone(counts.column(0)), counts.column(1).as_primitive::<Int64Type>().clone())
        };
        let numbers = Arc::new(Int64Array::from(vec![Some(7), None])) as ArrayRef;
        assert_eq!(counts(&rows), (numbers, Int64Array::from(vec![2, 2])));
        let texts = Arc::new(StringArray::from(vec!["a", "b"])) as ArrayRef;
        assert_eq!(counts(&by_text), (texts, Int64Array::from(vec![1, 1])));
        let whole = batch(&[(Some(1), "a")]).project(&[0]).unwrap();
        let mut groups = KeySet::new(whole.schema()).unwrap();
        groups.take(&whole).unwrap();
        assert!(groups.take_counts().unwrap().is_none());
    }

    /// Few of one half, few of the other, and so many of both that whole keys are looked up.
    #[test]
    fn halves_and_whole_keys_tell_what_a_plain_set_tells() {
        let mut random = StdRng::seed_from_u64(11);
        for (numbers, texts, whole) in [(9, 700, false), (4_000, 3, false), (3_000, 3_000, true)] {
            let texts: Vec<_> = (0..texts).map(|text| format!("text {text}")).collect();
            let mut groups = KeySet::new(batch(&[]).schema()).unwrap();
            let mut seen = HashSet::new();
            for round in 0..60 {
                if round == 40 {
                    groups.clear().unwrap();
                    seen.clear();
                }
                let size = random.random_range(0..300);
                let mut draw = || {
                    let number = random.random_range(-1..numbers);
                    let text = random.random_range(0..texts.len());
                    ((number >= 0).then_some(number), texts[text].as_str())
                };
                let rows: Vec<_> = (0..size).map(|_| draw()).collect();
                let fresh: Vec<_> = rows.iter().copied().filter(|row| seen.insert(*row)).collect();
                assert_eq!(groups.fresh(&batch(&rows)).unwrap(), batch(&fresh));
            }
            assert_eq!(matches!(groups.seen.get_mut().unwrap(), Seen::Whole(_)), whole);
        }
    }
}
