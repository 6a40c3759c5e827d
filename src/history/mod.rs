//! History: a copy of topics as Delta tables, and SQL over it.
//!
//! ```text
//!  batches of one topic ─► Writer ─► Parquet files, one a date ─┐
//!                                                               ├─► ONE Delta commit ─► SQL, replay, BI
//!  last offset of each partition ─► one `txn` action each ──────┘
//! ```
//!
//! **Promises**
//! - A row is in a table exactly once. A commit contains the rows and the last offset of each source
//!   partition (identified by cluster, topic, topic id and number); on start a [`Writer`] resumes
//!   after that offset. The check and the commit use the same snapshot, and a commit is never
//!   retried on top of the commit of another writer.
//! - Commits of history are independent of the commits of the pipeline.
//! - A table is partitioned by the UTC date of one column (`event_date`), sorted inside a file by
//!   that column, and readable by any Delta reader. Instants are stored as UTC; the reader
//!   of this module returns them in the zone of the stream.
//! - At most one process compacts a table at a time ([`compaction`]).
//!
//! A table is stored in `<data-dir>/history/<customer>/<table>`. In this module `root` is always
//! `<data-dir>/history`.

pub mod ad_hoc_query;
pub mod background_compaction;
pub mod compaction;
mod date_pruning;
pub mod delta_table;
pub mod event_scan;
mod parquet_file;
pub mod query_context;
mod status_tables;
mod table_provider;
#[cfg(test)]
mod tests;
mod txn_positions;
mod write_buffer;
pub mod writer;

use std::path::{Path, PathBuf};

use deltalake::DeltaTableError;

use crate::{Error, Kind};

pub use ad_hoc_query::{run_sql, sql_error};
pub use background_compaction::BackgroundCompaction;
pub use compaction::{CompactionReport, CompactionStats, Compactor, compact_all};
pub use delta_table::TableSpec;
pub use event_scan::{EventScan, LateRow, late_rows, scan_events};
pub use query_context::context;
pub use writer::{CommitStats, Writer};

/// The folder of a table.
pub fn table_path(root: &Path, customer: &str, table: &str) -> PathBuf {
    root.join(customer).join(table)
}

/// The names of the existing tables of `customer`, sorted.
pub fn tables(root: &Path, customer: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(customer)) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.path().join("_delta_log").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The names of the customers that have a history, sorted.
pub fn customers(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Checks that `root` contains the history of at least one customer, so that a mistyped folder is an
/// error and not an empty history. A pipeline that has run without results has a status file.
///
/// # Errors
/// [`Kind::Config`] if it does not.
pub fn check_there(root: &Path) -> crate::Result<()> {
    let has_run = root.parent().is_some_and(|data| data.join("status").is_dir());
    if has_run || customers(root).iter().any(|customer| !tables(root, customer).is_empty()) {
        return Ok(());
    }
    let folder = root.parent().unwrap_or(root);
    Err(Error::config(format!("no history found in {}", folder.display()))
        .hint("check --data-dir; the first `millstream run` creates the history"))
}

/// Wraps a Delta error with the operation and the table.
fn delta_error(table: &Path, what: &str, error: DeltaTableError) -> Error {
    Error::new(Kind::Storage, format!("{what} failed for the history table {}", table.display()))
        .because(error)
}
