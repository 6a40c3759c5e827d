//! Keys by number: 0, 1, 2 and so on, in the order in which they come first.
//!
//! DataFusion's hash tables of groups give the numbers. Where the key is one integer column whose
//! values fill their span well, as the ids of persons do, a list of numbers by value takes over: it
//! is smaller than a hash table, and nothing is hashed or compared.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, Int64Type, Schema};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

/// A list of so many places is always worth its while,
const FEW_PLACES: u64 = 1 << 12;
/// and one of so many for each key, when it takes over from a hash table;
const PLACES_AT_FIRST: u64 = 4;
/// when it has more than these, a hash table takes over from it.
const PLACES_AT_LAST: u64 = 16;

/// So many rows are looked up in a hash table before a list may take over.
const ROWS: usize = 1 << 15;

/// A table of keys, and the numbers in it of the last rows that were looked up.
pub(super) struct KeyInterner {
    table: Box<dyn GroupValues>,
    /// Of keys that are one integer column.
    integers: Option<Box<Integers>>,
    pub(super) numbers: Vec<usize>,
}

struct Integers {
    data_type: DataType,
    /// The least and the largest key.
    span: Option<(i64, i64)>,
    /// Where there is one, it has all keys, and the hash table none.
    list: Option<List>,
}

/// Numbers by value.
#[derive(Default)]
struct List {
    /// The value at the first place.
    first: i64,
    /// 0 where there is no such key, else its number and one.
    places: Vec<u32>,
    /// The number of null.
    null: Option<usize>,
    keys: usize,
}

impl KeyInterner {
    /// Keys of these columns.
    pub(super) fn new(schema: &Schema) -> DfResult<Self> {
        let integers = match schema.fields().as_ref() {
            [field] => Integers::of(field.data_type()).map(Box::new),
            _ => None,
        };
        let table = new_group_values(Arc::new(schema.clone()), &GroupOrdering::None)?;
        Ok(Self { table, integers, numbers: Vec::new() })
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        let list = self.integers.as_ref().and_then(|integers| integers.list.as_ref());
        list.map_or_else(|| self.table.len(), |list| list.keys)
    }

    /// Numbers the keys of these rows; new ones are numbered on.
    pub(super) fn look(&mut self, columns: &[ArrayRef]) -> DfResult<()> {
        let Some(integers) = &mut self.integers else {
            return self.table.intern(columns, &mut self.numbers);
        };
        self.numbers.clear();
        let column = cast(&columns[0], &DataType::Int64)?;
        let column = column.as_primitive::<Int64Type>();
        integers.widen(column);
        if let Some(list) = &integers.list
            && integers.places() > FEW_PLACES.max(list.keys as u64 * PLACES_AT_LAST)
        {
            let keys = cast(&list.keys(), &integers.data_type)?;
            integers.list = None;
            self.table.intern(&[keys], &mut self.numbers)?;
            self.numbers.clear();
        }
        let mut looked_up = 0;
        if integers.list.is_none() {
            let mut some = Vec::new();
            let is_list =
                |keys: usize| integers.places() <= FEW_PLACES.max(keys as u64 * PLACES_AT_FIRST);
            while looked_up < column.len() && !is_list(self.table.len()) {
                let rows = ROWS.min(column.len() - looked_up);
                self.table.intern(&[columns[0].slice(looked_up, rows)], &mut some)?;
                self.numbers.append(&mut some);
                looked_up += rows;
            }
            if looked_up == column.len() {
                return Ok(());
            }
            let mut list = List::default();
            for keys in emptied(&mut self.table)? {
                let keys = cast(&keys, &DataType::Int64)?;
                list.look(keys.as_primitive(), integers.span, &mut some);
            }
            integers.list = Some(list);
        }
        if let Some(list) = &mut integers.list {
            let rest = column.slice(looked_up, column.len() - looked_up);
            list.look(&rest, integers.span, &mut self.numbers);
        }
        Ok(())
    }

    /// As [`KeyInterner::look`]; the first row of each new key.
    pub(super) fn fresh(&mut self, columns: &[ArrayRef]) -> DfResult<Vec<u32>> {
        let mut known = self.len();
        self.look(columns)?;
        let mut fresh = Vec::with_capacity(self.len() - known);
        for (row, number) in (0..).zip(&self.numbers) {
            if *number == known {
                known += 1;
                fresh.push(row);
            }
        }
        Ok(fresh)
    }

    /// Forgets the keys, and gives them by number; no columns if there are no keys.
    pub(super) fn empty(&mut self) -> DfResult<Vec<ArrayRef>> {
        let Some(integers) = &mut self.integers else { return emptied(&mut self.table) };
        integers.span = None;
        match integers.list.take() {
            Some(list) => Ok(vec![cast(&list.keys(), &integers.data_type)?]),
            None => emptied(&mut self.table),
        }
    }
}

/// Empties a table, and gives its keys. It takes both calls: after `emit` alone the hash table of
/// several columns is still full, after `clear_shrink` alone a single column's null is still known,
/// and texts are numbered on.
fn emptied(table: &mut Box<dyn GroupValues>) -> DfResult<Vec<ArrayRef>> {
    let keys = table.len();
    // Some tables cannot be emitted before they have been used.
    if keys == 0 {
        return Ok(Vec::new());
    }
    let columns = table.emit(EmitTo::All)?;
    table.clear_shrink(keys);
    Ok(columns)
}

impl Integers {
    /// None where `data_type` is no integer, or one that 64 bits with a sign do not hold.
    fn of(data_type: &DataType) -> Option<Self> {
        let fits = data_type.is_integer() && *data_type != DataType::UInt64;
        fits.then(|| Self { data_type: data_type.clone(), span: None, list: None })
    }

    fn widen(&mut self, column: &Int64Array) {
        if let (Some(least), Some(largest)) = (min(column), max(column)) {
            let (from, to) = self.span.unwrap_or((least, largest));
            self.span = Some((from.min(least), to.max(largest)));
        }
    }

    /// How many places a list needs.
    fn places(&self) -> u64 {
        self.span.map_or(0, |(from, to)| to.abs_diff(from).saturating_add(1))
    }
}

impl List {
    /// Adds the numbers of the keys of `column`, which lie in `span`.
    fn look(&mut self, column: &Int64Array, span: Option<(i64, i64)>, numbers: &mut Vec<usize>) {
        if let Some((from, to)) = span {
            self.make_room(from, to);
        }
        if column.null_count() == 0 {
            numbers.extend(column.values().iter().map(|value| self.number(*value)));
        } else {
            numbers.extend(column.iter().map(|value| match value {
                Some(value) => self.number(value),
                None => self.number_of_null(),
            }));
        }
    }

    fn number(&mut self, value: i64) -> usize {
        let number = &mut self.places[value.abs_diff(self.first) as usize];
        if *number == 0 {
            self.keys += 1;
            *number = self.keys as u32;
        }
        *number as usize - 1
    }

    fn number_of_null(&mut self) -> usize {
        let next = self.keys;
        let null = *self.null.get_or_insert(next);
        self.keys += usize::from(null == next);
        null
    }

    fn make_room(&mut self, from: i64, to: i64) {
        if self.places.is_empty() {
            self.first = from;
        }
        if from < self.first {
            // More than asked for, lest falling values move the list each time.
            let first = from.saturating_sub_unsigned(self.places.len() as u64 / 2);
            let mut places = vec![0; self.first.abs_diff(first) as usize];
            places.append(&mut self.places);
            (self.first, self.places) = (first, places);
        }
        let places = to.abs_diff(self.first) as usize + 1;
        if places > self.places.len() {
            self.places.resize(places, 0);
        }
    }

    /// The keys, by number.
    fn keys(&self) -> ArrayRef {
        let mut keys = vec![None; self.keys];
        for (place, number) in (0_u64..).zip(&self.places).filter(|(_, number)| **number > 0) {
            keys[*number as usize - 1] = Some(self.first.wrapping_add_unsigned(place));
        }
        Arc::new(Int64Array::from(keys))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::UInt32Array;
    use arrow::datatypes::Field;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Keys that fill their span or do not, that grow up and down, with and without nulls: they are
    /// numbered as by a plain map, in a hash table, in a list, and when one becomes the other.
    #[test]
    fn keys_are_numbered_in_the_order_in_which_they_come() {
        let mut random = StdRng::seed_from_u64(3);
        // From where, how wide, how much wider after each batch; whether a list has the keys then.
        for (from, wide, wider, is_list) in [
            (5, 900, 0, true),
            (-40_000, 60_000, 90, true),
            (i64::MIN, 200_000, 0, true),
            (1 << 40, 30_000_000, 0, false),
            (0, 10, 400_000, false),
            (0, 150_000, 120_000, true),
        ] {
            let mut numbered =
                KeyInterner::new(&Schema::new(vec![Field::new("k", DataType::Int64, true)]))
                    .unwrap();
            for round in 0..2 {
                let (mut known, mut order) = (HashMap::new(), Vec::new());
                for batch in 0..4 {
                    let wide = wide + batch * wider;
                    let start = if batch % 2 == 0 { from } else { from.saturating_sub(wide) };
                    let mut key = || {
                        let key = start + random.random_range(0..wide);
                        (random.random_range(0..1_000) >= round).then_some(key)
                    };
                    let keys: Vec<Option<i64>> = (0..100_000).map(|_| key()).collect();
                    let mut expected = Vec::new();
                    for key in &keys {
                        expected.push(*known.entry(*key).or_insert_with(|| {
                            order.push(*key);
                            order.len() - 1
                        }));
                    }
                    numbered.look(&[Arc::new(Int64Array::from(keys))]).unwrap();
                    assert_eq!(numbered.numbers, expected);
                    assert_eq!(numbered.len(), order.len());
                }
                let list = numbered.integers.as_ref().and_then(|integers| integers.list.as_ref());
                assert_eq!(list.is_some(), is_list, "{from} {wide} {wider}");
                let keys = numbered.empty().unwrap();
                assert_eq!(keys[0].as_primitive::<Int64Type>(), &Int64Array::from(order));
                assert_eq!(numbered.len(), 0);
                assert!(numbered.empty().unwrap().is_empty());
            }
        }
    }

    #[test]
    fn keys_keep_their_type() {
        let schema = Schema::new(vec![Field::new("k", DataType::UInt32, true)]);
        let mut numbered = KeyInterner::new(&schema).unwrap();
        let keys = || Arc::new(UInt32Array::from(vec![Some(u32::MAX), None, Some(7)])) as ArrayRef;
        assert_eq!(numbered.fresh(&[keys()]).unwrap(), [0, 1, 2]);
        assert!(numbered.fresh(&[keys()]).unwrap().is_empty());
        assert_eq!(numbered.empty().unwrap(), [keys()]);
    }
}
