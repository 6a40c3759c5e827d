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
use std::sync::{Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_arrays, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

/// A table of at most so many groups is kept for the next use.
pub(crate) const SMALL: usize = 100_000;

/// Bits may take so many bytes for each pair, before keys are looked up as a whole.
const PAIR_BYTES: usize = 32;
/// Or so many in all: halves that are to meet often are known sooner than their pairs.
const FEW_BYTES: usize = 256 << 10;

/// The keys that were seen.
pub(crate) struct Groups {
    schema: SchemaRef,
    /// Never locked: it is `Sync` this way.
    seen: Mutex<Seen>,
}

enum Seen {
    Pairs(Pairs),
    Whole(Whole),
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
        let seen = match Pairs::fit(&schema) {
            true => Seen::Pairs(Pairs::new(&schema)?),
            false => Seen::Whole(Whole::new(&schema)?),
        };
        Ok(Self { schema, seen: Mutex::new(seen) })
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) -> DfResult<()> {
        match self.seen.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Seen::Pairs(pairs) => pairs.clear(),
            Seen::Whole(whole) => whole.clear(),
        }
    }

    /// Takes the keys of `batch`, and tells which are new.
    pub(crate) fn split(&mut self, batch: &RecordBatch) -> DfResult<Split> {
        let mut distinct = Vec::new();
        let fresh = self.look(batch, Some(&mut distinct))?;
        let fresh = (fresh.len() < distinct.len()).then(|| rows(batch, fresh)).transpose()?;
        let distinct = rows(batch, distinct)?;
        Ok(Split { fresh: fresh.unwrap_or_else(|| distinct.clone()), distinct })
    }

    /// Takes the keys of `batch`; the first rows of those that are new.
    pub(crate) fn fresh(&mut self, batch: &RecordBatch) -> DfResult<RecordBatch> {
        rows(batch, self.look(batch, None)?)
    }

    /// Takes the keys of `batch`.
    pub(crate) fn take(&mut self, batch: &RecordBatch) -> DfResult<()> {
        self.look(batch, None).map(drop)
    }

    /// The first row of each new key; `distinct` gets the first row of each key.
    fn look(
        &mut self,
        batch: &RecordBatch,
        mut distinct: Option<&mut Vec<u32>>,
    ) -> DfResult<Vec<u32>> {
        let seen = self.seen.get_mut().unwrap_or_else(PoisonError::into_inner);
        let pairs = match seen {
            Seen::Whole(whole) => return whole.look(batch, distinct),
            Seen::Pairs(pairs) => pairs,
        };
        if let Some(fresh) = pairs.look(batch, distinct.as_deref_mut())? {
            return Ok(fresh);
        }
        let mut whole = Whole::new(&self.schema)?;
        whole.look(&pairs.keys(&self.schema)?, None)?;
        let fresh = whole.look(batch, distinct)?;
        *seen = Seen::Whole(whole);
        Ok(fresh)
    }
}

/// The distinct rows of `batches`, in the order in which they come first; `groups` has seen none.
pub(crate) fn distinct(groups: &mut Groups, batches: &[RecordBatch]) -> DfResult<RecordBatch> {
    let fresh = batches.iter().map(|batch| groups.fresh(batch)).collect::<DfResult<Vec<_>>>()?;
    groups.clear()?;
    Ok(concat_batches(&groups.schema, &fresh)?)
}

fn rows(batch: &RecordBatch, rows: Vec<u32>) -> DfResult<RecordBatch> {
    if rows.len() == batch.num_rows() {
        return Ok(batch.clone());
    }
    Ok(take_record_batch(batch, &UInt32Array::from(rows))?)
}

/// Keys in one table.
struct Whole {
    table: Box<dyn GroupValues>,
    /// Of each row of the present batch.
    ids: Vec<usize>,
    /// Of each group, the last batch that had it.
    last: Vec<u32>,
    batches: u32,
}

impl Whole {
    fn new(schema: &SchemaRef) -> DfResult<Self> {
        Ok(Self { table: table(schema)?, ids: Vec::new(), last: Vec::new(), batches: 0 })
    }

    fn clear(&mut self) -> DfResult<()> {
        self.last.clear();
        self.batches = 0;
        emptied(&mut self.table).map(drop)
    }

    fn look(
        &mut self,
        batch: &RecordBatch,
        mut distinct: Option<&mut Vec<u32>>,
    ) -> DfResult<Vec<u32>> {
        let known = self.last.len();
        self.table.intern(batch.columns(), &mut self.ids)?;
        self.last.resize(self.table.len(), 0);
        self.batches += 1;
        let mut fresh = Vec::new();
        for (row, id) in (0..).zip(&self.ids) {
            if self.last[*id] != self.batches {
                self.last[*id] = self.batches;
                if let Some(distinct) = &mut distinct {
                    distinct.push(row);
                }
                if *id >= known {
                    fresh.push(row);
                }
            }
        }
        Ok(fresh)
    }
}

/// Keys in halves: a bit for each left half with each right half, by their numbers.
struct Pairs {
    left: Half,
    right: Half,
    /// `words` for each left half.
    bits: Vec<u64>,
    /// As `bits`, of the present batch; zeros in between.
    here: Vec<u64>,
    words: usize,
    /// How many pairs were seen.
    seen: usize,
}

/// A table of one half, and what the rows of the present batch are in it.
struct Half {
    table: Box<dyn GroupValues>,
    ids: Vec<usize>,
}

impl Half {
    fn new(schema: &SchemaRef, columns: &[usize]) -> DfResult<Self> {
        let table = table(&SchemaRef::new(schema.project(columns)?))?;
        Ok(Self { table, ids: Vec::new() })
    }
}

impl Pairs {
    /// Whether keys of `schema` can be halved. One column's table and that of several do not have
    /// to agree on what equal numbers of floating point are.
    fn fit(schema: &SchemaRef) -> bool {
        let plain = |data_type: &DataType| !data_type.is_nested() && !data_type.is_floating();
        schema.fields().len() > 1 && schema.fields().iter().all(|field| plain(field.data_type()))
    }

    fn new(schema: &SchemaRef) -> DfResult<Self> {
        let last = schema.fields().len() - 1;
        let left = Half::new(schema, &(0..last).collect::<Vec<_>>())?;
        let right = Half::new(schema, &[last])?;
        Ok(Self { left, right, bits: Vec::new(), here: Vec::new(), words: 1, seen: 0 })
    }

    fn clear(&mut self) -> DfResult<()> {
        self.bits.clear();
        self.here.clear();
        self.words = 1;
        self.seen = 0;
        emptied(&mut self.left.table)?;
        emptied(&mut self.right.table).map(drop)
    }

    /// As [`Groups::look`]; `None`, and nothing seen, where bits are not worth their while.
    fn look(
        &mut self,
        batch: &RecordBatch,
        distinct: Option<&mut Vec<u32>>,
    ) -> DfResult<Option<Vec<u32>>> {
        let (left, right) = batch.columns().split_at(batch.num_columns() - 1);
        self.left.table.intern(left, &mut self.left.ids)?;
        self.right.table.intern(right, &mut self.right.ids)?;
        let pairs = self.seen + batch.num_rows();
        let most = pairs.saturating_mul(PAIR_BYTES).max(FEW_BYTES);
        let words = self.right.table.len().div_ceil(64).next_power_of_two();
        let room = self.left.table.len().saturating_mul(words);
        if room.saturating_mul(size_of::<u64>()) > most {
            return Ok(None);
        }
        self.widen(words);
        self.bits.resize(room, 0);
        let ids = self.left.ids.iter().zip(&self.right.ids);
        let places = ids.map(|(left, right)| (left * words + right / 64, 1_u64 << (right % 64)));
        let fresh = mark(&mut self.bits, places.clone());
        self.seen += fresh.len();
        if let Some(distinct) = distinct {
            self.here.resize(room, 0);
            *distinct = mark(&mut self.here, places.clone());
            places.for_each(|(word, _)| self.here[word] = 0);
        }
        Ok(Some(fresh))
    }

    /// Makes room for more right halves.
    fn widen(&mut self, words: usize) {
        if words > self.words {
            let mut wider = vec![0; self.bits.len() / self.words * words];
            for (old, new) in self.bits.chunks(self.words).zip(wider.chunks_mut(words)) {
                new[..old.len()].copy_from_slice(old);
            }
            self.bits = wider;
            self.words = words;
        }
    }

    /// All keys that were seen; its tables are empty then.
    fn keys(&mut self, schema: &SchemaRef) -> DfResult<RecordBatch> {
        let (mut left, mut right) = (Vec::with_capacity(self.seen), Vec::with_capacity(self.seen));
        for (number, row) in (0_u32..).zip(self.bits.chunks(self.words)) {
            for (word, first) in row.iter().zip((0_u32..).step_by(64)) {
                let set = (0..64).filter(|bit| word >> bit & 1 == 1);
                right.extend(set.map(|bit| first + bit));
                left.resize(right.len(), number);
            }
        }
        let halves = [(&mut self.left, left), (&mut self.right, right)];
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (half, ids) in halves {
            let values = emptied(&mut half.table)?;
            columns.extend(take_arrays(&values, &UInt32Array::from(ids), None)?);
        }
        Ok(RecordBatch::try_new(SchemaRef::clone(schema), columns)?)
    }
}

/// Sets the bits at `places`, a word and a bit in it for each row; the rows whose bit was not set.
fn mark(bits: &mut [u64], places: impl Iterator<Item = (usize, u64)>) -> Vec<u32> {
    let mut rows = Vec::new();
    for (row, (word, bit)) in (0..).zip(places) {
        if bits[word] & bit == 0 {
            bits[word] |= bit;
            rows.push(row);
        }
    }
    rows
}

/// Empties a table, and gives its groups. It takes both calls: after `emit` alone the hash table of
/// several columns is still full, after `clear_shrink` alone a single column's null is still known,
/// and texts are numbered on.
fn emptied(table: &mut Box<dyn GroupValues>) -> DfResult<Vec<ArrayRef>> {
    let groups = table.len();
    // Some tables cannot be emitted before they have been used.
    if groups == 0 {
        return Ok(Vec::new());
    }
    let columns = table.emit(EmitTo::All)?;
    table.clear_shrink(groups);
    Ok(columns)
}

fn table(schema: &SchemaRef) -> DfResult<Box<dyn GroupValues>> {
    new_group_values(SchemaRef::clone(schema), &GroupOrdering::None)
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").field("schema", &self.schema).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use arrow::compute::cast;
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
        let mut groups = Groups::new(first.schema()).unwrap();
        let split = groups.split(&first).unwrap();
        assert_eq!(split.distinct, batch(&[(Some(1), "a"), (None, "a"), (Some(1), "b")]));
        assert_eq!(split.fresh, split.distinct);
        let split = groups.split(&second).unwrap();
        assert_eq!(split.distinct, batch(&[(Some(2), "b"), (Some(1), "b"), (None, "a")]));
        assert_eq!(split.fresh, batch(&[(Some(2), "b")]));
        assert_eq!(groups.fresh(&first).unwrap().num_rows(), 0);
        groups.clear().unwrap();
        assert_eq!(groups.fresh(&second).unwrap(), split.distinct);
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
            let mut groups = Groups::new(rows.schema()).unwrap();
            groups.clear().unwrap();
            for _ in 0..3 {
                assert_eq!(groups.fresh(&rows).unwrap().num_rows(), keys);
                assert_eq!(groups.fresh(&rows.slice(1, 2)).unwrap().num_rows(), 0);
                groups.clear().unwrap();
            }
        }
    }

    /// Few of one half, few of the other, and so many of both that whole keys are looked up.
    #[test]
    fn halves_and_whole_keys_tell_what_a_plain_set_tells() {
        let mut random = StdRng::seed_from_u64(11);
        for (numbers, texts, whole) in [(9, 700, false), (4_000, 3, false), (3_000, 3_000, true)] {
            let texts: Vec<_> = (0..texts).map(|text| format!("text {text}")).collect();
            let mut groups = Groups::new(batch(&[]).schema()).unwrap();
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
                let mut here = HashSet::new();
                let distinct: Vec<_> =
                    rows.iter().copied().filter(|row| here.insert(*row)).collect();
                let fresh: Vec<_> =
                    distinct.iter().copied().filter(|row| seen.insert(*row)).collect();
                let (rows, fresh) = (batch(&rows), batch(&fresh));
                if round % 2 == 0 {
                    let split = groups.split(&rows).unwrap();
                    assert_eq!((split.distinct, split.fresh), (batch(&distinct), fresh));
                } else {
                    assert_eq!(groups.fresh(&rows).unwrap(), fresh);
                }
            }
            assert_eq!(matches!(groups.seen.get_mut().unwrap(), Seen::Whole(_)), whole);
        }
    }
}
