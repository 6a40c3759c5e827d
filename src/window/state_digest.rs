//! Digests of an operator's state, to show that epochs which run again give the state that was.
//!
//! Promise: equal for states of equal content in equal order, however their batches lie in memory;
//! different for anything else. Columns with floats are left out, for a sum of floats depends on
//! where chunks were cut.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::time::{Micros, Window};
use crate::window::operator::result_state::ResultState;
use crate::window::operator_state::{StateWriter, empty_view};
use crate::window::panes::Panes;

/// A digest of each part of a state, by what the part is.
pub type Digests = BTreeMap<String, String>;

/// Up to so many windows have a digest each; of more there is one for all.
const MAX_WINDOWS: usize = 64;
/// Bytes of a digest that are kept: a difference is told, not an attack.
const KEPT_BYTES: usize = 8;

/// Collects the digests of one operator's state.
pub(super) struct StateDigests {
    digests: Digests,
}

impl StateDigests {
    pub(super) fn new(watermark: Micros) -> Self {
        let digests = Digests::from([("watermark".to_owned(), watermark.to_string())]);
        Self { digests }
    }

    /// Adds the windows: one digest each, or one for all if there are many.
    pub(super) fn add_windows<'a>(
        &mut self,
        windows: impl ExactSizeIterator<Item = (Window, &'a ResultState)>,
    ) -> Result<()> {
        let count = windows.len();
        let mut all = Sha256::new();
        for (window, state) in windows {
            let mut writer = StateWriter::default();
            let manifest = writer.result(state);
            let digest = digest(&manifest, &writer)?;
            all.update(format!("{window:?} {digest}"));
            if count <= MAX_WINDOWS {
                let Window { start, end } = window;
                self.digests.insert(format!("window [{start}, {end})"), digest);
            }
        }
        if count > MAX_WINDOWS {
            self.digests.insert(format!("{count} windows"), shorten(all));
        }
        Ok(())
    }

    /// Adds the panes of a windowed query.
    pub(super) fn add_panes(&mut self, panes: &Panes) -> Result<()> {
        let mut writer = StateWriter::default();
        let manifest = writer.panes(panes);
        self.digests.insert("panes".to_owned(), digest(&manifest, &writer)?);
        Ok(())
    }

    /// Adds the state of a view; other queries have an empty one.
    pub(super) fn add_view(&mut self, view: Option<&ResultState>) -> Result<()> {
        let mut writer = StateWriter::default();
        let manifest = view.map_or_else(empty_view, |state| writer.result(state));
        self.digests.insert("view".to_owned(), digest(&manifest, &writer)?);
        Ok(())
    }

    pub(super) fn finish(self) -> Digests {
        self.digests
    }
}

fn digest(manifest: &impl serde::Serialize, writer: &StateWriter) -> Result<String> {
    let manifest = serde_json::to_vec(manifest)
        .map_err(|error| Error::internal("a manifest cannot be serialised").because(error))?;
    let mut hash = Sha256::new();
    hash.update(&manifest);
    for (name, batch) in &writer.batches {
        hash.update(format!("\n{name} {} rows\n", batch.num_rows()));
        hash_content(batch, &mut hash)?;
    }
    Ok(shorten(hash))
}

/// Column names, types and rows, in order.
fn hash_content(batch: &RecordBatch, hash: &mut Sha256) -> Result<()> {
    let schema = batch.schema();
    let exact = schema.fields().iter().zip(batch.columns());
    let exact: Vec<_> = exact.filter(|(field, _)| !has_floats(field.data_type())).collect();
    for (field, _) in &exact {
        hash.update(format!("{} {}\n", field.name(), field.data_type()));
    }
    let columns: Vec<ArrayRef> = exact.iter().map(|(_, column)| ArrayRef::clone(column)).collect();
    let fields: Vec<_> = columns.iter().map(|c| SortField::new(c.data_type().clone())).collect();
    if columns.is_empty() {
        return Ok(());
    }
    if !RowConverter::supports_fields(&fields) {
        let text = arrow::util::pretty::pretty_format_columns("", &columns)?;
        hash.update(text.to_string());
        return Ok(());
    }
    let rows = RowConverter::new(fields)?.convert_columns(&columns)?;
    for row in &rows {
        hash.update((row.data().len() as u64).to_le_bytes());
        hash.update(row.data());
    }
    Ok(())
}

fn has_floats(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_floats(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_floats(field.data_type())),
        DataType::Dictionary(_, values) => has_floats(values),
        other => other.is_floating(),
    }
}

fn shorten(hash: Sha256) -> String {
    hex::encode(&hash.finalize()[..KEPT_BYTES])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, StringViewArray};

    use super::*;

    fn of(batch: &RecordBatch) -> String {
        let mut hash = Sha256::new();
        hash_content(batch, &mut hash).unwrap();
        shorten(hash)
    }

    fn batch(numbers: Vec<Option<i64>>, texts: Vec<&str>, float: f64) -> RecordBatch {
        let floats = Float64Array::from(vec![float; texts.len()]);
        RecordBatch::try_from_iter_with_nullable([
            ("n", Arc::new(Int64Array::from(numbers)) as ArrayRef, true),
            ("t", Arc::new(StringViewArray::from(texts)), true),
            ("f", Arc::new(floats), true),
        ])
        .unwrap()
    }

    #[test]
    fn content_and_order_count_and_memory_and_floats_do_not() {
        let long = "a text of more than twelve bytes";
        let whole = batch(vec![Some(0), Some(1), None], vec!["x", long, "b"], 1.0);
        let part = batch(vec![Some(1), None], vec![long, "b"], 2.0);
        assert_eq!(of(&whole.slice(1, 2)), of(&part));
        let turned = batch(vec![None, Some(1)], vec!["b", long], 2.0);
        assert_ne!(of(&turned), of(&part));
        let other = batch(vec![Some(1), Some(0)], vec![long, "b"], 2.0);
        assert_ne!(of(&other), of(&part), "null is no zero");
    }
}
