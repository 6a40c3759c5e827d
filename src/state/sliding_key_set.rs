//! Sets of keys over sliding panes: the last pane of each key, and the number of keys per group.
//!
//! Panes are numbered in ascending order. The keys of a window are those whose last pane has at
//! least the number of the window's first pane:
//!
//! ```text
//!   panes     p1    p2    p3    p4  │  p5    p6        the window that closes: p3..p6
//!   number   F-3   F-2   F-1    F   │  F+1   F+2       has the keys from F-1 on
//!            front, from the right  │  back, from the left
//! ```
//! A key of several columns is looked up as a pair: its last column, and the other columns, which
//! are its group. So the numbers form a table with a row for each group, and a pass over the row
//! counts its keys. If the pairs are too sparse for that, keys are looked up as a whole and cannot
//! be counted.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Int64Array, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, take_arrays};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::error::Result as DfResult;

use crate::state::key_interner::KeyInterner;
use crate::state::key_set::{Halves, first_null, select_rows, widen, with_counts};

/// The number of the newest pane of the front. Older panes count down from it, and the panes of the
/// back count up.
const FRONT: u32 = 1 << 31;
/// Stands for the last pane of a key that no pane has.
const NONE: u32 = 0;
/// Stands for the last pane of a late key, while keys are counted.
const LATE: u32 = u32::MAX;

/// The bytes that pane numbers may take per key, before whole keys are looked up.
const KEY_BYTES: usize = 64;
/// The bytes that pane numbers may always take: halves occur earlier than most of their pairs.
const MIN_TABLE_BYTES: usize = 1 << 20;

/// A set of keys over the panes of a front and a back.
pub(crate) struct SlidingKeySet {
    schema: SchemaRef,
    /// Never locked; the mutex makes the type `Sync`.
    key_index: Mutex<KeyIndex>,
    /// The number of the last pane of each key, by the index of the key.
    last: Vec<u32>,
    /// The number of keys that some pane has.
    keys: usize,
    /// At index n, the number of groups in the newest n panes of the front.
    front_groups: Vec<usize>,
    /// The number of panes in the back.
    back: u32,
    /// The groups of the back, in the order of their first occurrence.
    back_groups: Vec<usize>,
    /// Whether each group is in the back.
    is_in_back: Vec<bool>,
}

/// The distinct and the new keys of a pane.
pub(crate) struct NewKeys {
    /// The first row of each of its keys.
    pub(crate) distinct: RecordBatch,
    /// Those rows whose key the back lacked.
    pub(crate) new_in_back: RecordBatch,
}

/// Finds the index of a key.
enum KeyIndex {
    /// The index is in the row of the left half, at the number of the right half.
    Pairs(PairTable),
    /// The index is the number of the whole key.
    Whole(KeyInterner),
}

/// A table with a row per left half and a column per right half.
struct PairTable {
    halves: Halves,
    /// The left halves, in the order of their numbers.
    groups: RecordBatch,
    /// The number of the right half that is null, if there is one.
    null: Option<usize>,
    /// The number of columns; a power of two.
    width: usize,
}

impl SlidingKeySet {
    /// Creates a set without panes. All columns of `schema` are the key.
    pub(crate) fn new(schema: SchemaRef) -> DfResult<Self> {
        let key_index = match Halves::of(&schema)? {
            Some(halves) => KeyIndex::Pairs(PairTable::new(halves, &schema)?),
            None => KeyIndex::Whole(KeyInterner::new(&schema)?),
        };
        Ok(Self {
            schema,
            key_index: Mutex::new(key_index),
            last: Vec::new(),
            keys: 0,
            front_groups: vec![0],
            back: 0,
            back_groups: Vec::new(),
            is_in_back: Vec::new(),
        })
    }

    /// Removes all panes.
    pub(crate) fn clear(&mut self) -> DfResult<()> {
        self.last.clear();
        self.keys = 0;
        self.front_groups.truncate(1);
        self.back = 0;
        self.back_groups.clear();
        self.is_in_back.clear();
        match self.key_index.get_mut().unwrap_or_else(PoisonError::into_inner) {
            KeyIndex::Pairs(pairs) => pairs.clear(),
            KeyIndex::Whole(whole) => whole.take_keys().map(drop),
        }
    }

    /// Adds a pane to the front, before all its other panes. Returns the keys that these lack. The
    /// back must be empty.
    pub(crate) fn add_to_front(&mut self, pane: &RecordBatch) -> DfResult<RecordBatch> {
        let number = FRONT - (self.front_groups.len() - 1) as u32;
        let mut new_rows = Vec::new();
        for (row, index) in (0..).zip(self.locate(pane)?) {
            if self.last[index] == NONE {
                self.last[index] = number;
                new_rows.push(row);
            }
        }
        self.keys += new_rows.len();
        let groups = self.pairs().map_or(0, |pairs| pairs.groups.num_rows());
        self.front_groups.push(groups);
        select_rows(pane, new_rows)
    }

    /// Adds a pane to the back, after all other panes.
    pub(crate) fn add_to_back(&mut self, pane: &RecordBatch) -> DfResult<NewKeys> {
        self.back += 1;
        let number = FRONT + self.back;
        let (mut distinct, mut new_in_back) = (Vec::new(), Vec::new());
        let indices = self.locate(pane)?;
        for (row, index) in (0..).zip(&indices) {
            let last = std::mem::replace(&mut self.last[*index], number);
            if last != number {
                distinct.push(row);
            }
            if last <= FRONT {
                new_in_back.push(row);
                self.keys += usize::from(last == NONE);
            }
        }
        if let Some(width) = self.pairs().map(|pairs| pairs.width) {
            self.is_in_back.resize(self.last.len() / width, false);
            for group in new_in_back.iter().map(|row| indices[*row as usize] / width) {
                if !std::mem::replace(&mut self.is_in_back[group], true) {
                    self.back_groups.push(group);
                }
            }
        }
        let new_in_back = (new_in_back.len() < distinct.len())
            .then(|| select_rows(pane, new_in_back))
            .transpose()?;
        let distinct = select_rows(pane, distinct)?;
        Ok(NewKeys { new_in_back: new_in_back.unwrap_or_else(|| distinct.clone()), distinct })
    }

    /// Counts the keys per group whose last column is not null, in the newest `front` panes of the
    /// front, in the back and in `late`. Returns the columns of the groups and the count, in the
    /// order of these parts. Returns `None` if keys are looked up as a whole.
    pub(crate) fn counts(
        &mut self,
        front: usize,
        late: Option<&RecordBatch>,
    ) -> DfResult<Option<RecordBatch>> {
        let since = FRONT + 1 - front as u32;
        let late = late.map(|late| self.locate(late)).transpose()?.unwrap_or_default();
        let key_index = self.key_index.get_mut().unwrap_or_else(PoisonError::into_inner);
        let KeyIndex::Pairs(pairs) = key_index else { return Ok(None) };
        let in_front = self.front_groups[front];
        let in_back = self.back_groups.iter().copied().filter(|group| *group >= in_front);
        let mut groups: Vec<usize> = (0..in_front).chain(in_back).collect();
        let mut replaced = Vec::new();
        for index in late {
            let group = index / pairs.width;
            let row = &mut self.last[group * pairs.width..][..pairs.width];
            let last = row[index % pairs.width];
            if last < since {
                if row.iter().all(|last| *last < since) {
                    groups.push(group);
                }
                row[index % pairs.width] = LATE;
                replaced.push((index, last));
            }
        }
        let counts = pairs.counts(&groups, &self.last, since);
        // Restores the numbers, because later windows may refuse the late keys.
        replaced.into_iter().for_each(|(index, last)| self.last[index] = last);
        counts.map(Some)
    }

    /// Adds the keys of `batch` to the index. Returns the index of each row's key.
    fn locate(&mut self, batch: &RecordBatch) -> DfResult<Vec<usize>> {
        let key_index = self.key_index.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let KeyIndex::Pairs(pairs) = key_index {
            let max_bytes =
                (self.keys + batch.num_rows()).saturating_mul(KEY_BYTES).max(MIN_TABLE_BYTES);
            if let Some(found) = pairs.locate(batch, &mut self.last, max_bytes)? {
                return Ok(found);
            }
            let mut whole = KeyInterner::new(&self.schema)?;
            let (indices, last): (Vec<_>, Vec<_>) =
                (0..).zip(&self.last).filter(|(_, last)| **last != NONE).unzip();
            let width = pairs.width;
            let numbers = indices.into_iter().map(|index: usize| (index / width, index % width));
            whole.intern(pairs.halves.take_keys(&self.schema, numbers)?.columns())?;
            self.last = last.into_iter().copied().collect();
            *key_index = KeyIndex::Whole(whole);
        }
        let KeyIndex::Whole(whole) = key_index else { return Ok(Vec::new()) };
        whole.intern(batch.columns())?;
        self.last.resize(whole.len(), NONE);
        Ok(std::mem::take(&mut whole.numbers))
    }

    fn pairs(&mut self) -> Option<&PairTable> {
        match self.key_index.get_mut().unwrap_or_else(PoisonError::into_inner) {
            KeyIndex::Pairs(pairs) => Some(pairs),
            KeyIndex::Whole(_) => None,
        }
    }
}

impl PairTable {
    fn new(halves: Halves, schema: &SchemaRef) -> DfResult<Self> {
        let (_, groups) = schema.fields().split_last().unzip();
        let groups = Schema::new(groups.unwrap_or_default().to_vec());
        let groups = RecordBatch::new_empty(Arc::new(groups));
        Ok(Self { halves, groups, null: None, width: 1 })
    }

    fn clear(&mut self) -> DfResult<()> {
        self.groups = self.groups.slice(0, 0);
        self.null = None;
        self.width = 1;
        self.halves.clear()
    }

    /// Returns the index of each row's key in `last`, which is resized as needed. Returns `None`,
    /// and leaves `last` as it is, if it would take more than `max_bytes`.
    fn locate(
        &mut self,
        batch: &RecordBatch,
        last: &mut Vec<u32>,
        max_bytes: usize,
    ) -> DfResult<Option<Vec<usize>>> {
        let Halves { left, right } = &mut self.halves;
        let (lefts, rights) = batch.columns().split_at(self.groups.num_columns());
        let new_groups = left.intern_new(lefts)?;
        right.intern(rights)?;
        let width = right.len().next_power_of_two();
        let length = left.len().saturating_mul(width);
        if length.saturating_mul(size_of::<u32>()) > max_bytes {
            return Ok(None);
        }
        if !new_groups.is_empty() {
            let schema = self.groups.schema();
            let groups = RecordBatch::try_new(schema, lefts.to_vec())?;
            let groups = select_rows(&groups, new_groups)?;
            self.groups = concat_batches(&groups.schema(), [&self.groups, &groups])?;
        }
        if self.null.is_none() {
            self.null = rights.iter().find_map(first_null).map(|row| right.numbers[row]);
        }
        if width > self.width {
            widen(last, self.width, width);
            self.width = width;
        }
        last.resize(length, NONE);
        let indices = left.numbers.iter().zip(&right.numbers);
        Ok(Some(indices.map(|(left, right)| left * width + right).collect()))
    }

    /// Returns the columns of `groups` and, for each group, the number of its keys whose last pane
    /// is `since` or a later one.
    fn counts(&self, groups: &[usize], last: &[u32], since: u32) -> DfResult<RecordBatch> {
        let count = |group: &usize| {
            let row = &last[group * self.width..][..self.width];
            let has_null = self.null.is_some_and(|null| row[null] >= since);
            let keys = row.iter().map(|last| u32::from(*last >= since)).sum::<u32>();
            i64::from(keys) - i64::from(has_null)
        };
        let counts = Int64Array::from_iter_values(groups.iter().map(count));
        let groups = UInt64Array::from_iter_values(groups.iter().map(|group| *group as u64));
        let columns = take_arrays(self.groups.columns(), &groups, None)?;
        with_counts(self.groups.schema().fields(), columns, counts)
    }
}

impl fmt::Debug for SlidingKeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlidingKeySet").field("schema", &self.schema).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, StringArray};
    use arrow::datatypes::Int64Type;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    type Key = (Option<String>, Option<i64>);

    fn batch(keys: &[Key]) -> RecordBatch {
        let groups: StringArray = keys.iter().map(|key| key.0.as_deref()).collect();
        let numbers: Int64Array = keys.iter().map(|key| key.1).collect();
        RecordBatch::try_from_iter_with_nullable([
            ("group", Arc::new(groups) as ArrayRef, true),
            ("number", Arc::new(numbers) as ArrayRef, true),
        ])
        .unwrap()
    }

    /// Removes duplicates; the first occurrences stay in order.
    fn dedup<T: Clone + PartialEq>(all: impl IntoIterator<Item = T>) -> Vec<T> {
        all.into_iter().fold(Vec::new(), |mut seen, one| {
            if !seen.contains(&one) {
                seen.push(one);
            }
            seen
        })
    }

    /// The expected result of [`SlidingKeySet::counts`] for these keys.
    fn expected_counts(keys: &[Key]) -> Vec<(Option<String>, i64)> {
        let keys = dedup(keys.iter().cloned());
        let groups = dedup(keys.iter().map(|key| key.0.clone()));
        let count = |group: &Option<String>| {
            keys.iter().filter(|key| key.0 == *group && key.1.is_some()).count() as i64
        };
        groups.into_iter().map(|group| (group.clone(), count(&group))).collect()
    }

    /// The result of [`SlidingKeySet::counts`] as a list.
    fn count_list(counts: &RecordBatch) -> Vec<(Option<String>, i64)> {
        let groups = counts.column(0).as_string::<i32>().iter();
        let counts = counts.column(1).as_primitive::<Int64Type>().values();
        groups.map(|group| group.map(str::to_owned)).zip(counts.iter().copied()).collect()
    }

    /// Compares panes in a front and a back, as [`crate::window`] moves them, with plain lists.
    #[test]
    fn a_sliding_set_equals_lists_of_panes() {
        let mut random = StdRng::seed_from_u64(5);
        for (groups, numbers) in [(3, 40), (70, 3), (6, 300)] {
            let mut draw = |most: usize| -> Vec<Key> {
                let size = random.random_range(0..most);
                let mut key = || {
                    let group = random.random_range(-1..groups);
                    let number = random.random_range(-1..numbers);
                    (
                        (group >= 0).then(|| format!("group {group}")),
                        (number >= 0).then_some(number),
                    )
                };
                (0..size).map(|_| key()).collect()
            };
            let mut set = SlidingKeySet::new(batch(&[]).schema()).unwrap();
            for _ in 0..4 {
                set.clear().unwrap();
                let front: Vec<_> = (0..5).map(|_| draw(50)).collect();
                let mut all = Vec::new();
                for pane in front.iter() {
                    let new_keys = set.add_to_front(&batch(pane)).unwrap();
                    let before = all.len();
                    all = dedup(all.into_iter().chain(pane.iter().cloned()));
                    assert_eq!(new_keys, batch(&all[before..]));
                }
                let mut back = Vec::new();
                // The oldest pane leaves the front while the newest joins the back.
                for left in (0..=5).rev() {
                    let pane = draw(50);
                    let NewKeys { distinct, new_in_back } = set.add_to_back(&batch(&pane)).unwrap();
                    assert_eq!(distinct, batch(&dedup(pane.clone())));
                    let before = back.len();
                    back = dedup(back.into_iter().chain(pane));
                    assert_eq!(new_in_back, batch(&back[before..]));
                    for late in [Vec::new(), draw(20)] {
                        let counts = set.counts(left, Some(&batch(&late))).unwrap().unwrap();
                        let expected = front[..left].iter().flatten().chain(&back).chain(&late);
                        assert_eq!(
                            count_list(&counts),
                            expected_counts(&expected.cloned().collect::<Vec<_>>())
                        );
                    }
                }
            }
        }
    }

    /// If pairs take too much memory, new keys are still found, but keys are not counted.
    #[test]
    fn sparse_pairs_become_whole_keys() {
        let key = |number: usize| (Some(format!("group {number}")), Some(number as i64));
        let keys: Vec<_> = (0..1_500).map(key).collect();
        let mut set = SlidingKeySet::new(batch(&[]).schema()).unwrap();
        let (few, many) = (batch(&keys[..100]), batch(&keys[..1_000]));
        assert_eq!(set.add_to_front(&few).unwrap(), few);
        assert_eq!(
            count_list(&set.counts(1, None).unwrap().unwrap()),
            expected_counts(&keys[..100])
        );
        let keys_of_pane = set.add_to_back(&many).unwrap();
        assert_eq!((keys_of_pane.distinct, keys_of_pane.new_in_back), (many.clone(), many));
        assert!(set.counts(1, None).unwrap().is_none());
        let keys_of_pane = set.add_to_back(&batch(&keys)).unwrap();
        assert_eq!(keys_of_pane.distinct, batch(&keys));
        assert_eq!(keys_of_pane.new_in_back, batch(&keys[1_000..]));
    }
}
