//! Interns keys: numbers them 0, 1, 2 and so on, in the order of their first occurrence.
//!
//! DataFusion's hash tables of groups assign the numbers. If the key is one integer column whose
//! values are dense, such as ids, an array of numbers by value replaces the hash table: it is
//! smaller, and nothing is hashed or compared.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, Int64Type, Schema};
use datafusion::error::Result as DfResult;
use datafusion::logical_expr::EmitTo;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

/// An array of at most so many entries is always used.
const SMALL_ARRAY: u64 = 1 << 12;
/// An array replaces a hash table if it needs at most so many entries per key.
const ENTRIES_TO_REPLACE: u64 = 4;
/// A hash table replaces an array that needs more entries per key than this.
const ENTRIES_TO_KEEP: u64 = 16;

/// The number of rows that are looked up in a hash table before an array may replace it.
const ROWS_BEFORE_ARRAY: usize = 1 << 15;

/// A table of keys, and the numbers of the keys of the rows that were looked up last.
pub(super) struct KeyInterner {
    table: Box<dyn GroupValues>,
    /// For keys that are one integer column.
    integers: Option<Box<IntegerKeys>>,
    /// The number of the key of each row that was looked up last.
    pub(super) numbers: Vec<usize>,
}

/// What is known of integer keys.
struct IntegerKeys {
    data_type: DataType,
    /// The smallest and the largest key.
    span: Option<(i64, i64)>,
    /// If it exists, it has all keys, and the hash table is empty.
    array: Option<NumberArray>,
}

/// The numbers of integer keys by value.
#[derive(Default)]
struct NumberArray {
    /// The value of the first entry.
    first: i64,
    /// For each value, its number plus one; 0 if the value is not a key.
    entries: Vec<u32>,
    /// The number of the key null, if there is one.
    null: Option<usize>,
    /// The number of keys.
    keys: usize,
}

impl KeyInterner {
    /// Creates an interner without keys, for keys of these columns.
    pub(super) fn new(schema: &Schema) -> DfResult<Self> {
        let integers = match schema.fields().as_ref() {
            [field] => IntegerKeys::of(field.data_type()).map(Box::new),
            _ => None,
        };
        let table = new_group_values(Arc::new(schema.clone()), &GroupOrdering::None)?;
        Ok(Self { table, integers, numbers: Vec::new() })
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        let array = self.integers.as_ref().and_then(|integers| integers.array.as_ref());
        array.map_or_else(|| self.table.len(), |array| array.keys)
    }

    /// Looks up the keys of these rows and adds the new ones. Their numbers are in `numbers` then.
    pub(super) fn intern(&mut self, columns: &[ArrayRef]) -> DfResult<()> {
        let Some(integers) = &mut self.integers else {
            return self.table.intern(columns, &mut self.numbers);
        };
        self.numbers.clear();
        let column = cast(&columns[0], &DataType::Int64)?;
        let column = column.as_primitive::<Int64Type>();
        integers.extend_span(column);
        if let Some(array) = &integers.array
            && integers.entries() > SMALL_ARRAY.max(array.keys as u64 * ENTRIES_TO_KEEP)
        {
            let keys = cast(&array.keys(), &integers.data_type)?;
            integers.array = None;
            self.table.intern(&[keys], &mut self.numbers)?;
            self.numbers.clear();
        }
        let mut looked_up = 0;
        if integers.array.is_none() {
            let mut numbers = Vec::new();
            let is_dense = |keys: usize| {
                integers.entries() <= SMALL_ARRAY.max(keys as u64 * ENTRIES_TO_REPLACE)
            };
            while looked_up < column.len() && !is_dense(self.table.len()) {
                let rows = ROWS_BEFORE_ARRAY.min(column.len() - looked_up);
                self.table.intern(&[columns[0].slice(looked_up, rows)], &mut numbers)?;
                self.numbers.append(&mut numbers);
                looked_up += rows;
            }
            if looked_up == column.len() {
                return Ok(());
            }
            let mut array = NumberArray::default();
            for keys in take_table_keys(&mut self.table)? {
                let keys = cast(&keys, &DataType::Int64)?;
                array.intern(keys.as_primitive(), integers.span, &mut numbers);
            }
            integers.array = Some(array);
        }
        if let Some(array) = &mut integers.array {
            let rest = column.slice(looked_up, column.len() - looked_up);
            array.intern(&rest, integers.span, &mut self.numbers);
        }
        Ok(())
    }

    /// Does what [`KeyInterner::intern`] does. Returns the first row of each new key.
    pub(super) fn intern_new(&mut self, columns: &[ArrayRef]) -> DfResult<Vec<u32>> {
        let mut known = self.len();
        self.intern(columns)?;
        let mut new_rows = Vec::with_capacity(self.len() - known);
        for (row, number) in (0..).zip(&self.numbers) {
            if *number == known {
                known += 1;
                new_rows.push(row);
            }
        }
        Ok(new_rows)
    }

    /// Removes all keys. Returns them in the order of their numbers; without keys, no columns.
    pub(super) fn take_keys(&mut self) -> DfResult<Vec<ArrayRef>> {
        let Some(integers) = &mut self.integers else {
            return take_table_keys(&mut self.table);
        };
        integers.span = None;
        match integers.array.take() {
            Some(array) => Ok(vec![cast(&array.keys(), &integers.data_type)?]),
            None => take_table_keys(&mut self.table),
        }
    }
}

/// Removes all keys of a hash table and returns them. Both calls are needed: after `emit` alone the
/// table of several columns is still full; after `clear_shrink` alone, the null of a single column
/// is still known, and texts do not start at 0 again.
fn take_table_keys(table: &mut Box<dyn GroupValues>) -> DfResult<Vec<ArrayRef>> {
    let keys = table.len();
    // Some tables cannot be emitted before they have been used.
    if keys == 0 {
        return Ok(Vec::new());
    }
    let columns = table.emit(EmitTo::All)?;
    table.clear_shrink(keys);
    Ok(columns)
}

impl IntegerKeys {
    /// Returns `None` if `data_type` is not an integer type that fits into `i64`.
    fn of(data_type: &DataType) -> Option<Self> {
        let fits = data_type.is_integer() && *data_type != DataType::UInt64;
        fits.then(|| Self { data_type: data_type.clone(), span: None, array: None })
    }

    fn extend_span(&mut self, column: &Int64Array) {
        if let (Some(least), Some(largest)) = (min(column), max(column)) {
            let (from, to) = self.span.unwrap_or((least, largest));
            self.span = Some((from.min(least), to.max(largest)));
        }
    }

    /// The number of entries that an array needs.
    fn entries(&self) -> u64 {
        self.span.map_or(0, |(from, to)| to.abs_diff(from).saturating_add(1))
    }
}

impl NumberArray {
    /// Appends the numbers of the keys of `column`, which are in `span`, and adds new keys.
    fn intern(&mut self, column: &Int64Array, span: Option<(i64, i64)>, numbers: &mut Vec<usize>) {
        if let Some((from, to)) = span {
            self.reserve(from, to);
        }
        if column.null_count() == 0 {
            numbers.extend(column.values().iter().map(|value| self.intern_value(*value)));
        } else {
            numbers.extend(column.iter().map(|value| match value {
                Some(value) => self.intern_value(value),
                None => self.intern_null(),
            }));
        }
    }

    fn intern_value(&mut self, value: i64) -> usize {
        let number = &mut self.entries[value.abs_diff(self.first) as usize];
        if *number == 0 {
            self.keys += 1;
            *number = self.keys as u32;
        }
        *number as usize - 1
    }

    fn intern_null(&mut self) -> usize {
        let next = self.keys;
        let null = *self.null.get_or_insert(next);
        self.keys += usize::from(null == next);
        null
    }

    /// Extends the array to the values from `from` to `to`.
    fn reserve(&mut self, from: i64, to: i64) {
        if self.entries.is_empty() {
            self.first = from;
        }
        if from < self.first {
            // Reserves more than needed, so that descending values do not move the array each time.
            let first = from.saturating_sub_unsigned(self.entries.len() as u64 / 2);
            let mut entries = vec![0; self.first.abs_diff(first) as usize];
            entries.append(&mut self.entries);
            (self.first, self.entries) = (first, entries);
        }
        let length = to.abs_diff(self.first) as usize + 1;
        if length > self.entries.len() {
            self.entries.resize(length, 0);
        }
    }

    /// The keys in the order of their numbers.
    fn keys(&self) -> ArrayRef {
        let mut keys = vec![None; self.keys];
        for (index, number) in (0_u64..).zip(&self.entries).filter(|(_, number)| **number > 0) {
            keys[*number as usize - 1] = Some(self.first.wrapping_add_unsigned(index));
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

    /// Dense and sparse keys, ascending and descending, with and without nulls, get the numbers
    /// that a plain map gives: in a hash table, in an array, and when one replaces the other.
    #[test]
    fn keys_are_numbered_in_the_order_of_their_first_occurrence() {
        let mut random = StdRng::seed_from_u64(3);
        // First value, width, growth of the width per batch; whether an array has the keys then.
        for (from, width, growth, is_array) in [
            (5, 900, 0, true),
            (-40_000, 60_000, 90, true),
            (i64::MIN, 200_000, 0, true),
            (1 << 40, 30_000_000, 0, false),
            (0, 10, 400_000, false),
            (0, 150_000, 120_000, true),
        ] {
            let mut interner =
                KeyInterner::new(&Schema::new(vec![Field::new("k", DataType::Int64, true)]))
                    .unwrap();
            for round in 0..2 {
                let (mut known, mut order) = (HashMap::new(), Vec::new());
                for batch in 0..4 {
                    let width = width + batch * growth;
                    let start = if batch % 2 == 0 { from } else { from.saturating_sub(width) };
                    let mut key = || {
                        let key = start + random.random_range(0..width);
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
                    interner.intern(&[Arc::new(Int64Array::from(keys))]).unwrap();
                    assert_eq!(interner.numbers, expected);
                    assert_eq!(interner.len(), order.len());
                }
                let array = interner.integers.as_ref().and_then(|integers| integers.array.as_ref());
                assert_eq!(array.is_some(), is_array, "{from} {width} {growth}");
                let keys = interner.take_keys().unwrap();
                assert_eq!(keys[0].as_primitive::<Int64Type>(), &Int64Array::from(order));
                assert_eq!(interner.len(), 0);
                assert!(interner.take_keys().unwrap().is_empty());
            }
        }
    }

    #[test]
    fn keys_keep_their_type() {
        let schema = Schema::new(vec![Field::new("k", DataType::UInt32, true)]);
        let mut interner = KeyInterner::new(&schema).unwrap();
        let keys = || Arc::new(UInt32Array::from(vec![Some(u32::MAX), None, Some(7)])) as ArrayRef;
        assert_eq!(interner.intern_new(&[keys()]).unwrap(), [0, 1, 2]);
        assert!(interner.intern_new(&[keys()]).unwrap().is_empty());
        assert_eq!(interner.take_keys().unwrap(), [keys()]);
    }
}
