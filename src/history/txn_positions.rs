//! Lists the application ids in a table's log. deltalake reads the version of a given application id,
//! but does not list the ids.

use std::collections::BTreeSet;
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use bytes::Bytes;
use deltalake::kernel::Action;
use deltalake::logstore::LogStoreRef;
use deltalake::table::state::DeltaTableState;
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path as StorePath};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::{Error, Kind, Result};

/// The application ids of all `txn` actions up to the version of `state`.
pub(super) async fn app_ids(
    table: &Path,
    store: &LogStoreRef,
    state: &DeltaTableState,
) -> Result<BTreeSet<String>> {
    let fail = |error: object_store::Error| {
        Error::new(Kind::Storage, format!("cannot read the Delta log of {}", table.display()))
            .because(error)
    };
    let objects = store.object_store(None);
    let folder = StorePath::from("_delta_log");
    let files: Vec<_> = objects.list(Some(&folder)).try_collect().await.map_err(fail)?;
    let newest = state.version();
    let files_with = |suffix: &str| {
        let mut found: Vec<(u64, StorePath)> = (files.iter())
            .filter_map(|file| {
                Some((version(file.location.filename()?, suffix)?, file.location.clone()))
            })
            .filter(|&(version, _)| version <= newest)
            .collect();
        found.sort();
        found
    };
    let mut ids = BTreeSet::new();
    let checkpoint = files_with(".checkpoint.parquet").pop();
    if let Some((_, path)) = &checkpoint {
        let bytes = objects.get(path).await.map_err(fail)?.bytes().await.map_err(fail)?;
        read_checkpoint(bytes, &mut ids)?;
    }
    let after = checkpoint.map_or(0, |(version, _)| version);
    for (_, path) in files_with(".json").into_iter().filter(|&(version, _)| version >= after) {
        let bytes = objects.get(&path).await.map_err(fail)?.bytes().await.map_err(fail)?;
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{\"txn\""))
        {
            if let Ok(Action::Txn(transaction)) = serde_json::from_slice(line) {
                ids.insert(transaction.app_id);
            }
        }
    }
    Ok(ids)
}

/// Parses the version of a log file: `00000000000000000012.json` is 12.
fn version(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// Adds the application ids of a checkpoint file to `ids`.
fn read_checkpoint(bytes: Bytes, ids: &mut BTreeSet<String>) -> Result<()> {
    let fail = |error| Error::new(Kind::Storage, "cannot read a Delta checkpoint").because(error);
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(fail)?;
    let columns = ProjectionMask::columns(builder.parquet_schema(), ["txn.appId"]);
    for batch in builder.with_projection(columns).build().map_err(fail)? {
        let batch: RecordBatch = batch?;
        let Some(transactions) = batch.column_by_name("txn").and_then(|c| c.as_struct_opt()) else {
            continue;
        };
        let Some(names) = transactions.column_by_name("appId") else { continue };
        let names = arrow::compute::cast(names, &arrow::datatypes::DataType::Utf8)?;
        let names = names.as_string::<i32>();
        let valid =
            (0..names.len()).filter(|&row| transactions.is_valid(row) && names.is_valid(row));
        ids.extend(valid.map(|row| names.value(row).to_owned()));
    }
    Ok(())
}
