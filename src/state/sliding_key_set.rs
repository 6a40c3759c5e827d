//! Sets of keys over panes: which is the last pane that has a key, and how many keys each group has.
//!
//! Panes are numbered, so that the keys of a window are those whose number is not too low:
//!
//! ```text
//!   panes     p1    p2    p3    p4  │  p5    p6        the window that closes: p3..p6
//!   number   F-3   F-2   F-1    F   │  F+1   F+2       has the keys from F-1 on
//!            front, from the right  │  back, from the left
//! ```
//! A key of several columns is looked up as a pair: its last column, and the others, which are its
//! group. So the numbers make a table with a row for each group, and keys are counted by a pass over
//! the row. Where pairs are too sparse for that, keys are looked up as a whole, and not counted.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Int64Array, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, take_arrays};
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::error::Result as DfResult;

use crate::state::key_interner::KeyInterner;
use crate::state::key_set::{Halves, counted, first_null, rows, widen};

/// The newest pane of the front; older ones count down from it, those of the back up.
const FRONT: u32 = 1 << 31;
/// Of a key that no pane has.
const NONE: u32 = 0;
/// Of a key that came late, while keys are counted.
const LATE: u32 = u32::MAX;

/// Numbers may take so many bytes for each key, before keys are looked up as a whole.
const KEY_BYTES: usize = 64;
/// Or so many in all: halves that are to meet often are known sooner than their pairs.
const FEW_BYTES: usize = 1 << 20;

/// A set of keys over the panes of a front and a back.
pub(crate) struct SlidingKeySet {
    schema: SchemaRef,
    /// Never locked: it is `Sync` this way.
    places: Mutex<Places>,
    /// By the place of a key, the last pane that has it.
    last: Vec<u32>,
    /// How many keys some pane has.
    keys: usize,
    /// How many groups the newest n panes of the front have.
    front_groups: Vec<usize>,
    /// How many panes the back has.
    back: u32,
    /// The groups of the back, in the order in which they came, and whether each group is one.
    back_groups: Vec<usize>,
    is_in_back: Vec<bool>,
}

/// What of a pane is worth keeping.
pub(crate) struct NewKeys {
    /// The first row of each of its keys.
    pub(crate) distinct: RecordBatch,
    /// Those whose key the back lacked.
    pub(crate) fresh: RecordBatch,
}

/// Where a key is.
enum Places {
    /// In the row of its left half, at its right half.
    Pairs(Pairs),
    /// At its number.
    Whole(KeyInterner),
}

struct Pairs {
    halves: Halves,
    /// The left halves, by their numbers.
    groups: RecordBatch,
    /// The right half that is null.
    null: Option<usize>,
    /// Places in a row; a power of two.
    width: usize,
}

impl SlidingKeySet {
    /// Of no panes; all columns of `schema` are the key.
    pub(crate) fn new(schema: SchemaRef) -> DfResult<Self> {
        let places = match Halves::of(&schema)? {
            Some(halves) => Places::Pairs(Pairs::new(halves, &schema)?),
            None => Places::Whole(KeyInterner::new(&schema)?),
        };
        Ok(Self {
            schema,
            places: Mutex::new(places),
            last: Vec::new(),
            keys: 0,
            front_groups: vec![0],
            back: 0,
            back_groups: Vec::new(),
            is_in_back: Vec::new(),
        })
    }

    /// Forgets all panes.
    pub(crate) fn clear(&mut self) -> DfResult<()> {
        self.last.clear();
        self.keys = 0;
        self.front_groups.truncate(1);
        self.back = 0;
        self.back_groups.clear();
        self.is_in_back.clear();
        match self.places.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Places::Pairs(pairs) => pairs.clear(),
            Places::Whole(whole) => whole.empty().map(drop),
        }
    }

    /// Adds a pane to the front, before all others of it; its keys that these lack. The back must
    /// have none yet.
    pub(crate) fn add_to_front(&mut self, pane: &RecordBatch) -> DfResult<RecordBatch> {
        let number = FRONT - (self.front_groups.len() - 1) as u32;
        let mut fresh = Vec::new();
        for (row, place) in (0..).zip(self.look(pane)?) {
            if self.last[place] == NONE {
                self.last[place] = number;
                fresh.push(row);
            }
        }
        self.keys += fresh.len();
        let groups = self.pairs().map_or(0, |pairs| pairs.groups.num_rows());
        self.front_groups.push(groups);
        rows(pane, fresh)
    }

    /// Adds a pane to the back, after all others.
    pub(crate) fn add_to_back(&mut self, pane: &RecordBatch) -> DfResult<NewKeys> {
        self.back += 1;
        let number = FRONT + self.back;
        let (mut distinct, mut fresh) = (Vec::new(), Vec::new());
        let places = self.look(pane)?;
        for (row, place) in (0..).zip(&places) {
            let last = std::mem::replace(&mut self.last[*place], number);
            if last != number {
                distinct.push(row);
            }
            if last <= FRONT {
                fresh.push(row);
                self.keys += usize::from(last == NONE);
            }
        }
        if let Some(width) = self.pairs().map(|pairs| pairs.width) {
            self.is_in_back.resize(self.last.len() / width, false);
            for group in fresh.iter().map(|row| places[*row as usize] / width) {
                if !std::mem::replace(&mut self.is_in_back[group], true) {
                    self.back_groups.push(group);
                }
            }
        }
        let fresh = (fresh.len() < distinct.len()).then(|| rows(pane, fresh)).transpose()?;
        let distinct = rows(pane, distinct)?;
        Ok(NewKeys { fresh: fresh.unwrap_or_else(|| distinct.clone()), distinct })
    }

    /// How many keys with a last column that is not null each group has, in the newest `front`
    /// panes of the front, in the back and in `late`: the groups' columns and the count, in the
    /// order in which the groups come there. `None` where keys are looked up as a whole.
    pub(crate) fn counts(
        &mut self,
        front: usize,
        late: Option<&RecordBatch>,
    ) -> DfResult<Option<RecordBatch>> {
        let since = FRONT + 1 - front as u32;
        let late = late.map(|late| self.look(late)).transpose()?.unwrap_or_default();
        let places = self.places.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Places::Pairs(pairs) = places else { return Ok(None) };
        let of_front = self.front_groups[front];
        let of_back = self.back_groups.iter().copied().filter(|group| *group >= of_front);
        let mut groups: Vec<usize> = (0..of_front).chain(of_back).collect();
        let mut lifted = Vec::new();
        for place in late {
            let group = place / pairs.width;
            let row = &mut self.last[group * pairs.width..][..pairs.width];
            let last = row[place % pairs.width];
            if last < since {
                if row.iter().all(|last| *last < since) {
                    groups.push(group);
                }
                row[place % pairs.width] = LATE;
                lifted.push((place, last));
            }
        }
        let counts = pairs.counts(&groups, &self.last, since);
        // Which windows to come take what was late is not known here.
        lifted.into_iter().for_each(|(place, last)| self.last[place] = last);
        counts.map(Some)
    }

    /// The place of each row's key.
    fn look(&mut self, batch: &RecordBatch) -> DfResult<Vec<usize>> {
        let places = self.places.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Places::Pairs(pairs) = places {
            let most = (self.keys + batch.num_rows()).saturating_mul(KEY_BYTES).max(FEW_BYTES);
            if let Some(found) = pairs.look(batch, &mut self.last, most)? {
                return Ok(found);
            }
            let mut whole = KeyInterner::new(&self.schema)?;
            let (at, last): (Vec<_>, Vec<_>) =
                (0..).zip(&self.last).filter(|(_, last)| **last != NONE).unzip();
            let width = pairs.width;
            let at = at.into_iter().map(|at: usize| (at / width, at % width));
            whole.look(pairs.halves.keys(&self.schema, at)?.columns())?;
            self.last = last.into_iter().copied().collect();
            *places = Places::Whole(whole);
        }
        let Places::Whole(whole) = places else { return Ok(Vec::new()) };
        whole.look(batch.columns())?;
        self.last.resize(whole.len(), NONE);
        Ok(std::mem::take(&mut whole.numbers))
    }

    fn pairs(&mut self) -> Option<&Pairs> {
        match self.places.get_mut().unwrap_or_else(PoisonError::into_inner) {
            Places::Pairs(pairs) => Some(pairs),
            Places::Whole(_) => None,
        }
    }
}

impl Pairs {
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

    /// The place of each row's key in `last`, which gets room for it; `None`, and no key more, if
    /// that took more than so many bytes.
    fn look(
        &mut self,
        batch: &RecordBatch,
        last: &mut Vec<u32>,
        most_bytes: usize,
    ) -> DfResult<Option<Vec<usize>>> {
        let Halves { left, right } = &mut self.halves;
        let (lefts, rights) = batch.columns().split_at(self.groups.num_columns());
        let groups = left.fresh(lefts)?;
        right.look(rights)?;
        let width = right.len().next_power_of_two();
        let room = left.len().saturating_mul(width);
        if room.saturating_mul(size_of::<u32>()) > most_bytes {
            return Ok(None);
        }
        if !groups.is_empty() {
            let schema = self.groups.schema();
            let groups = rows(&RecordBatch::try_new(schema, lefts.to_vec())?, groups)?;
            self.groups = concat_batches(&groups.schema(), [&self.groups, &groups])?;
        }
        if self.null.is_none() {
            self.null = rights.iter().find_map(first_null).map(|row| right.numbers[row]);
        }
        if width > self.width {
            widen(last, self.width, width);
            self.width = width;
        }
        last.resize(room, NONE);
        let places = left.numbers.iter().zip(&right.numbers);
        Ok(Some(places.map(|(left, right)| left * width + right).collect()))
    }

    /// Of each of `groups`, its columns and the number of its keys from the pane `since` on.
    fn counts(&self, groups: &[usize], last: &[u32], since: u32) -> DfResult<RecordBatch> {
        let count = |group: &usize| {
            let row = &last[group * self.width..][..self.width];
            let is_null_in = self.null.is_some_and(|null| row[null] >= since);
            let keys = row.iter().map(|last| u32::from(*last >= since)).sum::<u32>();
            i64::from(keys) - i64::from(is_null_in)
        };
        let counts = Int64Array::from_iter_values(groups.iter().map(count));
        let groups = UInt64Array::from_iter_values(groups.iter().map(|group| *group as u64));
        let columns = take_arrays(self.groups.columns(), &groups, None)?;
        counted(self.groups.schema().fields(), columns, counts)
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

    /// Each once, in the order in which they come first.
    fn once<T: Clone + PartialEq>(all: impl IntoIterator<Item = T>) -> Vec<T> {
        all.into_iter().fold(Vec::new(), |mut seen, one| {
            if !seen.contains(&one) {
                seen.push(one);
            }
            seen
        })
    }

    /// What [`SlidingKeySet::counts`] is to say of these keys.
    fn counts_of(keys: &[Key]) -> Vec<(Option<String>, i64)> {
        let keys = once(keys.iter().cloned());
        let groups = once(keys.iter().map(|key| key.0.clone()));
        let count = |group: &Option<String>| {
            keys.iter().filter(|key| key.0 == *group && key.1.is_some()).count() as i64
        };
        groups.into_iter().map(|group| (group.clone(), count(&group))).collect()
    }

    fn said(counts: &RecordBatch) -> Vec<(Option<String>, i64)> {
        let groups = counts.column(0).as_string::<i32>().iter();
        let counts = counts.column(1).as_primitive::<Int64Type>().values();
        groups.map(|group| group.map(str::to_owned)).zip(counts.iter().copied()).collect()
    }

    /// Panes in a front and a back, as [`crate::window`] turns them, beside plain lists.
    #[test]
    fn a_running_set_tells_what_lists_of_panes_tell() {
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
                    let fresh = set.add_to_front(&batch(pane)).unwrap();
                    let before = all.len();
                    all = once(all.into_iter().chain(pane.iter().cloned()));
                    assert_eq!(fresh, batch(&all[before..]));
                }
                let mut back = Vec::new();
                // The oldest pane leaves the front while the newest joins the back.
                for left in (0..=5).rev() {
                    let pane = draw(50);
                    let NewKeys { distinct, fresh } = set.add_to_back(&batch(&pane)).unwrap();
                    assert_eq!(distinct, batch(&once(pane.clone())));
                    let before = back.len();
                    back = once(back.into_iter().chain(pane));
                    assert_eq!(fresh, batch(&back[before..]));
                    for late in [Vec::new(), draw(20)] {
                        let counts = set.counts(left, Some(&batch(&late))).unwrap().unwrap();
                        let held = front[..left].iter().flatten().chain(&back).chain(&late);
                        assert_eq!(said(&counts), counts_of(&held.cloned().collect::<Vec<_>>()));
                    }
                }
            }
        }
    }

    /// Where pairs take too much room: keys are told apart as before, and not counted.
    #[test]
    fn sparse_pairs_become_whole_keys() {
        let key = |number: usize| (Some(format!("group {number}")), Some(number as i64));
        let keys: Vec<_> = (0..1_500).map(key).collect();
        let mut set = SlidingKeySet::new(batch(&[]).schema()).unwrap();
        let (some, most) = (batch(&keys[..100]), batch(&keys[..1_000]));
        assert_eq!(set.add_to_front(&some).unwrap(), some);
        assert_eq!(said(&set.counts(1, None).unwrap().unwrap()), counts_of(&keys[..100]));
        let split = set.add_to_back(&most).unwrap();
        assert_eq!((split.distinct, split.fresh), (most.clone(), most));
        assert!(set.counts(1, None).unwrap().is_none());
        let split = set.add_to_back(&batch(&keys)).unwrap();
        assert_eq!(split.distinct, batch(&keys));
        assert_eq!(split.fresh, batch(&keys[1_000..]));
    }
}
