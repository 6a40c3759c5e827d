//! Compaction: rewrites the small files of a date into large ones, and deletes unreferenced files.
//!
//! A compaction does not change rows or offsets: it removes files, adds files with the same rows,
//! and writes no `txn` action. It may run at the same time as a [`crate::history::Writer`], which then
//! builds its next commit on the new snapshot. Two compactions of one table would not detect each
//! other (deltalake reports no conflict), so a lock file excludes the second one.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::SessionState;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use deltalake::delta_datafusion::DeltaSessionContext;
use deltalake::operations::optimize::OptimizeType;
use deltalake::operations::vacuum::VacuumMode;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, FilterOp, FilterValue};

use crate::failpoint::reach;
use crate::history::delta_table::{self, DATE, Description, TIMESTAMP};
use crate::history::{delta_error, parquet_file, table_path, tables};
use crate::time::{MINUTE, Micros};
use crate::{Error, Kind, Result};

/// Files below this size are merged.
const SMALL_BYTES: u64 = 32 << 20;
/// A date is quiet if it has had no new file for this long.
const QUIET_US: Micros = 10 * MINUTE;
/// A date with this many small files is compacted although it is not quiet, because a query opens
/// each of them.
const BUSY_FILES: usize = 90;
/// A quiet date up to this size is sorted as a whole. A larger date keeps the order of its files. So
/// does a date that still grows, which would be sorted many times.
const SORT_BYTES: u64 = 512 << 20;
/// The memory limit of a sort; it spills to temporary files beyond it.
const SORT_MEMORY: usize = 256 << 20;
/// The number of dates in one Delta optimize operation, and the interval at which it commits partial
/// results, so that a crash does not lose all of them.
const DATES_AT_ONCE: usize = 8;
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// How long an unreferenced file is retained: longer than any query or commit takes.
const RETENTION_HOURS: i64 = 24;

/// The result of a compaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactionStats {
    /// Dates rewritten.
    pub dates: usize,
    /// Small files that were merged and removed from the table.
    pub files_removed: u64,
    /// The size of these files. They stay on disk for a day for readers of an older version.
    pub bytes_removed: u64,
    /// Files that were added and contain their rows.
    pub files_added: u64,
    /// The size of the added files.
    pub bytes_added: u64,
    /// Files deleted because the table had not referred to them for a day.
    pub files_deleted: usize,
    /// The size of the deleted files.
    pub bytes_deleted: u64,
}

/// Compacts one table. It opens the table when it runs.
#[derive(Debug, Clone)]
pub struct Compactor {
    path: PathBuf,
    lock: PathBuf,
    /// The folder for the temporary files of a sort.
    sorting: PathBuf,
}

/// The files of one date, according to the table's log.
#[derive(Debug, Default)]
struct DateFiles {
    small: usize,
    bytes: u64,
    newest_us: Micros,
}

impl DateFiles {
    fn is_quiet(&self, now: Micros) -> bool {
        now - self.newest_us >= QUIET_US
    }

    fn needs_rewrite(&self, now: Micros) -> bool {
        self.small > 1 && (self.is_quiet(now) || self.small >= BUSY_FILES)
    }
}

/// Whether [`Compactor::run`] has work to do.
pub(super) fn needs_compaction(state: &DeltaTableState, now: Micros) -> bool {
    dates(state).values().any(|date| date.needs_rewrite(now))
}

impl Compactor {
    /// Creates the compactor of the table `table` of `customer`.
    pub fn new(root: &Path, customer: &str, table: &str) -> Self {
        Self {
            path: table_path(root, customer, table),
            lock: root.join(customer).join(format!(".{table}.lock")),
            sorting: root.join(customer).join(format!(".{table}.sorting")),
        }
    }

    /// Compacts dates with several small files and no new file for ten minutes, and dates with very
    /// many small files.
    ///
    /// # Errors
    /// [`Kind::Config`] while another process compacts the table; [`Kind::Storage`].
    pub async fn run(&self, now: Micros) -> Result<CompactionStats> {
        self.rewrite(|date| date.needs_rewrite(now), |date| date.is_quiet(now)).await
    }

    /// Compacts every date with several small files.
    ///
    /// # Errors
    /// As [`Compactor::run`].
    pub async fn run_all(&self) -> Result<CompactionStats> {
        self.rewrite(|date| date.small > 1, |_| true).await
    }

    /// Deletes files that the table has not referred to for a day. A compaction replaced them, or a
    /// process was killed before it committed them.
    ///
    /// # Errors
    /// As [`Compactor::run`].
    pub async fn vacuum(&self) -> Result<CompactionStats> {
        let _lock = self.lock()?;
        reach("vacuum.begin");
        let fail = |error| delta_error(&self.path, "vacuum", error);
        let mut table = DeltaTable::new(delta_table::log_store(&self.path)?);
        table.load().await.map_err(fail)?;
        let vacuum = |table: DeltaTable| {
            table
                .vacuum()
                .with_mode(VacuumMode::Full)
                .with_retention_period(chrono::Duration::hours(RETENTION_HOURS))
                .with_enforce_retention_duration(false)
        };
        // Read the sizes before the files are deleted.
        let (table, chosen) = vacuum(table).with_dry_run(true).await.map_err(fail)?;
        let size = |file: &String| {
            std::fs::metadata(self.path.join(file)).map_or(0, |metadata| metadata.len())
        };
        let sizes: HashMap<String, u64> =
            chosen.files_deleted.into_iter().map(|file| (file.clone(), size(&file))).collect();
        reach("vacuum.chosen");
        let (_, deleted) = vacuum(table).await.map_err(fail)?;
        reach("vacuum.done");
        let bytes = deleted.files_deleted.iter().filter_map(|file| sizes.get(file)).sum();
        Ok(CompactionStats {
            files_deleted: deleted.files_deleted.len(),
            bytes_deleted: bytes,
            ..CompactionStats::default()
        })
    }

    async fn rewrite(
        &self,
        chosen: impl Fn(&DateFiles) -> bool,
        sortable: impl Fn(&DateFiles) -> bool,
    ) -> Result<CompactionStats> {
        let _lock = self.lock()?;
        let _sorting = ScratchFolder::new(&self.sorting)?;
        reach("compaction.begin");
        let fail = |error| delta_error(&self.path, "reading", error);
        let mut table = DeltaTable::new(delta_table::log_store(&self.path)?);
        table.load().await.map_err(fail)?;
        let state = table.snapshot().map_err(fail)?;
        let time = Description::read(state).time.unwrap_or_else(|| TIMESTAMP.to_owned());
        let mut sorted = Vec::new();
        let mut merged = Vec::new();
        for (text, date) in dates(state) {
            if chosen(&date) {
                let sort = sortable(&date) && date.bytes <= SORT_BYTES;
                if sort { &mut sorted } else { &mut merged }.push(text);
            }
        }
        let mut total = CompactionStats::default();
        for (dates, sort) in [(sorted, true), (merged, false)] {
            for dates in dates.chunks(DATES_AT_ONCE) {
                table = self.optimize(table, dates, &time, sort, &mut total).await?;
            }
        }
        Ok(total)
    }

    /// Compacts `dates`; if `sort` is true, their rows are sorted by the column `time` (Z-order on
    /// one column is the order of that column).
    async fn optimize(
        &self,
        table: DeltaTable,
        dates: &[String],
        time: &str,
        sort: bool,
        total: &mut CompactionStats,
    ) -> Result<DeltaTable> {
        let chosen = FilterValue::Set(dates.iter().map(String::as_str).collect());
        let filters = [(DATE, FilterOp::In, chosen)];
        let kind = match sort {
            true => OptimizeType::ZOrder(vec![time.to_owned()]),
            false => OptimizeType::Compact,
        };
        let fail = |error| delta_error(&self.path, "compaction", error);
        let schema = table.snapshot().map_err(fail)?.snapshot().arrow_schema();
        let optimize = table
            .optimize()
            .with_filters(&filters)
            .with_type(kind)
            .with_writer_properties(parquet_file::writer_properties(&schema, time))
            .with_min_commit_interval(COMMIT_EVERY)
            .with_session_state(session(&self.sorting)?)
            // Leave the other cores to ingestion.
            .with_max_concurrent_tasks(1);
        reach("compaction.commit");
        let (table, metrics) = optimize.await.map_err(fail)?;
        reach("compaction.committed");
        total.dates += dates.len();
        total.files_removed += metrics.num_files_removed;
        total.files_added += metrics.num_files_added;
        total.bytes_removed += u64::try_from(metrics.files_removed.total_size).unwrap_or(0);
        total.bytes_added += u64::try_from(metrics.files_added.total_size).unwrap_or(0);
        Ok(table)
    }

    /// Locks the table until the returned file is dropped.
    fn lock(&self) -> Result<File> {
        let file = File::options().create(true).append(true).open(&self.lock)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                Err(Error::config(format!("another process compacts {}", self.path.display()))
                    .hint("a running pipeline compacts its tables too; try again later"))
            }
            Err(TryLockError::Error(error)) => {
                Err(Error::new(Kind::Storage, "cannot lock a file").because(error))
            }
        }
    }
}

/// A folder for temporary files. Leftovers of a killed process are deleted at the start, and the
/// folder is deleted on drop.
struct ScratchFolder<'a>(&'a Path);

impl<'a> ScratchFolder<'a> {
    fn new(folder: &'a Path) -> Result<Self> {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(Self(folder)),
        }
    }
}

impl Drop for ScratchFolder<'_> {
    fn drop(&mut self) {
        // If this fails, the next compaction deletes the folder.
        let _ = std::fs::remove_dir_all(self.0);
    }
}

/// A session with one thread and a small memory limit, because ingestion runs at the same time. Sorts
/// spill to `folder`.
fn session(folder: &Path) -> Result<Arc<SessionState>> {
    let folders = DiskManagerMode::Directories(vec![folder.to_owned()]);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(SORT_MEMORY)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(folders))
        .build_arc()?;
    let mut state = DeltaSessionContext::with_runtime_env(runtime).state();
    let options = &mut state.config_mut().options_mut().execution;
    options.target_partitions = 1;
    // With view types, the files would store view types, and each query would have to cast them.
    options.parquet.schema_force_view_types = false;
    Ok(Arc::new(state))
}

/// The files of a table by date. Files without a date are not compacted.
fn dates(state: &DeltaTableState) -> BTreeMap<String, DateFiles> {
    let mut dates: BTreeMap<String, DateFiles> = BTreeMap::new();
    for file in state.log_data().iter() {
        let path = file.path();
        let folder = path.split('/').next().unwrap_or_default();
        let text = folder.strip_prefix(DATE).and_then(|rest| rest.strip_prefix('='));
        let Some(text) = text.filter(|text| !text.starts_with('_')) else { continue };
        let date = dates.entry(text.to_owned()).or_default();
        let bytes = u64::try_from(file.size()).unwrap_or(0);
        date.bytes += bytes;
        date.small += usize::from(bytes < SMALL_BYTES);
        date.newest_us = date.newest_us.max(file.modification_time().saturating_mul(1_000));
    }
    dates
}

/// The result of the compaction of one table.
#[derive(Debug, Clone)]
pub struct CompactionReport {
    /// The customer whose table it is.
    pub customer: String,
    /// The table.
    pub table: String,
    /// What the compaction changed.
    pub compacted: CompactionStats,
    /// Whether a vacuum ran.
    pub vacuumed: bool,
}

impl fmt::Display for CompactionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = &self.compacted;
        write!(f, "{}.{}: ", self.customer, self.table)?;
        match done.files_removed {
            0 => write!(f, "nothing to merge")?,
            merged => write!(
                f,
                "{} ({}) of {} merged into {} ({})",
                count_of(merged, "file"),
                size(done.bytes_removed),
                count_of(done.dates as u64, "date"),
                done.files_added,
                size(done.bytes_added)
            )?,
        }
        match done.files_deleted {
            _ if !self.vacuumed => Ok(()),
            0 => write!(f, "; no file is old enough to delete"),
            files => write!(
                f,
                "; {} ({}) deleted",
                count_of(files as u64, "old file"),
                size(done.bytes_deleted)
            ),
        }
    }
}

fn count_of(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Formats a number of bytes: `812 B`, `3.4 MB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64 / 1e3;
    if value < 1.0 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    // A value that would round to 1000.0 uses the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Compacts every table of `customers`, or of all customers if the list is empty. With `vacuum`, it
/// also deletes old unreferenced files.
///
/// # Errors
/// The error of the first table that failed; the tables before it are compacted.
pub async fn compact_all(
    root: &Path,
    customers: &[String],
    vacuum: bool,
) -> Result<Vec<CompactionReport>> {
    let all = match customers {
        [] => crate::history::customers(root),
        some => some.to_vec(),
    };
    let mut reports = Vec::new();
    for customer in all {
        if !root.join(&customer).is_dir() {
            return Err(Error::config(format!("no history of '{customer}' found"))
                .detail(format!("looked in {}", root.display()))
                .hint("use the --data-dir of `millstream run`"));
        }
        for table in tables(root, &customer) {
            let compactor = Compactor::new(root, &customer, &table);
            let mut compacted = compactor.run_all().await?;
            if vacuum {
                let CompactionStats { files_deleted, bytes_deleted, .. } =
                    compactor.vacuum().await?;
                compacted = CompactionStats { files_deleted, bytes_deleted, ..compacted };
            }
            reports.push(CompactionReport {
                customer: customer.clone(),
                table,
                compacted,
                vacuumed: vacuum,
            });
        }
    }
    Ok(reports)
}
