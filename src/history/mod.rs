//! History: a copy of topics as Delta tables, and SQL over it.
//!
//! ```text
//!  batches of one topic ─► Writer ─► Parquet files, one a date ─┐
//!                                                               ├─► ONE Delta commit ─► SQL, replay, BI
//!  last offset of each partition ─► one `txn` action each ──────┘
//! ```
//!
//! What it promises:
//! - A row is in a table exactly once. A commit holds the rows and, for each source partition (of a
//!   topic with an id, in a cluster), the last offset that it contains; on start a [`Writer`] resumes after that offset. The check and
//!   the commit are made on the same snapshot, and a commit never retries over another's.
//! - Its commits need no agreement with the pipeline's; each has its own commit point.
//! - A table is partitioned by the UTC date of one column (`event_date`), sorted inside a file by
//!   that column, and readable by anything that reads Delta. Instants are stored as UTC; our own
//!   reader gives them back in the zone of the stream.
//! - One process rewrites a table at a time ([`compact`]).
//!
//! A table lies at `<data-dir>/history/<customer>/<table>`. `root` is everywhere that
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

/// The names of `customer`'s tables that exist, in order.
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

/// The names of the customers that have a history, in order.
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

/// Checks that there is a history under `root`, of any customer, so that a mistyped folder is not
/// taken for one without rows. A pipeline that has run without a result so far leaves its status.
///
/// # Errors
/// [`Kind::Config`] if there is none.
pub fn check_there(root: &Path) -> crate::Result<()> {
    let has_run = root.parent().is_some_and(|data| data.join("status").is_dir());
    if has_run || customers(root).iter().any(|customer| !tables(root, customer).is_empty()) {
        return Ok(());
    }
    let folder = root.parent().unwrap_or(root);
    Err(Error::config(format!("there is no history in {}", folder.display()))
        .hint("check --data-dir; history begins with the first millstream run"))
}

/// Says which table a Delta error concerns.
fn delta_error(table: &Path, what: &str, error: DeltaTableError) -> Error {
    Error::new(Kind::Storage, format!("{what} failed for the history table {}", table.display()))
        .because(error)
}
