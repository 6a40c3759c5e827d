//! Rewrites small files of a date into large ones, and deletes what nothing refers to any more.
//!
//! Rows and positions stay exactly as they are: a compaction removes files and adds files with the
//! same rows, and touches no `txn`. It may run beside a [`crate::history::Writer`], which then builds its
//! next commit on the new snapshot. Two rewriters of one table would not notice each other (Delta
//! sees no conflict in this deltalake), so a lock file keeps them apart.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
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
use crate::history::writer::Writer;
use crate::history::{delta_error, parquet_file, table_path, tables};
use crate::time::{MINUTE, Micros};
use crate::{Error, Kind, Result};

/// A file below this size is worth merging with another.
const SMALL_BYTES: u64 = 32 << 20;
/// A date is quiet when it has had no new file for this long.
const QUIET_US: Micros = 10 * MINUTE;
/// So many small files are merged although their date is not quiet: each is opened by a query.
const BUSY_FILES: usize = 90;
/// A quiet date up to this size is sorted as a whole. A larger one keeps the order of its files, and
/// so does one that still grows: it would be sorted again and again.
const SORT_BYTES: u64 = 512 << 20;
/// What sorting may hold in memory; the rest waits in temporary files.
const SORT_MEMORY: usize = 256 << 20;
/// Dates that are rewritten in one run of Delta's, and how often that commits what it has so far: a
/// process that dies does not lose all of it.
const DATES_AT_ONCE: usize = 8;
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// How long a file stays that nothing refers to: longer than any query or commit takes.
const RETENTION_HOURS: i64 = 24;

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Dates rewritten.
    pub dates: usize,
    /// Small files that were merged.
    pub files_removed: u64,
    /// How large they were. They stay for a day, for those who read an older version.
    pub bytes_removed: u64,
    /// Files that hold their rows now.
    pub files_added: u64,
    /// How large these are.
    pub bytes_added: u64,
    /// Files deleted because nothing referred to them for a day.
    pub files_deleted: usize,
    /// How large they were.
    pub bytes_deleted: u64,
}

/// Rewrites one table. Cheap to make; it opens the table when it runs.
#[derive(Debug, Clone)]
pub struct Compactor {
    path: PathBuf,
    lock: PathBuf,
    /// Temporary files of a sort.
    sorting: PathBuf,
}

/// What is known of a date from the table's log.
#[derive(Debug, Default)]
struct Date {
    small: usize,
    bytes: u64,
    newest_us: Micros,
}

impl Date {
    fn is_quiet(&self, now: Micros) -> bool {
        now - self.newest_us >= QUIET_US
    }

    fn wants(&self, now: Micros) -> bool {
        self.small > 1 && (self.is_quiet(now) || self.small >= BUSY_FILES)
    }
}

/// Whether [`Compactor::run`] would find anything to do.
pub(super) fn wanted(state: &DeltaTableState, now: Micros) -> bool {
    dates(state).values().any(|date| date.wants(now))
}

impl Compactor {
    /// The compactor of `customer`'s `table`.
    pub fn new(root: &Path, customer: &str, table: &str) -> Self {
        Self {
            path: table_path(root, customer, table),
            lock: root.join(customer).join(format!(".{table}.lock")),
            sorting: root.join(customer).join(format!(".{table}.sorting")),
        }
    }

    /// Rewrites dates that have several small files and had no new one for ten minutes, and dates
    /// that have very many.
    ///
    /// # Errors
    /// [`Kind::Config`] while another process rewrites the table; [`Kind::Storage`].
    pub async fn run(&self, now: Micros) -> Result<Compacted> {
        self.rewrite(|date| date.wants(now), |date| date.is_quiet(now)).await
    }

    /// Rewrites every date that has several small files.
    ///
    /// # Errors
    /// As [`Compactor::run`].
    pub async fn run_all(&self) -> Result<Compacted> {
        self.rewrite(|date| date.small > 1, |_| true).await
    }

    /// Deletes files that the table has not referred to for a day: replaced by a compaction, or
    /// left behind by a process that was killed before its commit.
    ///
    /// # Errors
    /// As [`Compactor::run`].
    pub async fn vacuum(&self) -> Result<Compacted> {
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
        // How large a file is can be asked only while it is there.
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
        Ok(Compacted {
            files_deleted: deleted.files_deleted.len(),
            bytes_deleted: bytes,
            ..Compacted::default()
        })
    }

    async fn rewrite(
        &self,
        chosen: impl Fn(&Date) -> bool,
        sortable: impl Fn(&Date) -> bool,
    ) -> Result<Compacted> {
        let _lock = self.lock()?;
        let _sorting = Emptied::new(&self.sorting)?;
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
        let mut total = Compacted::default();
        for (dates, sort) in [(sorted, true), (merged, false)] {
            for dates in dates.chunks(DATES_AT_ONCE) {
                table = self.optimize(table, dates, &time, sort, &mut total).await?;
            }
        }
        Ok(total)
    }

    /// Rewrites `dates`, sorted by the column `time` if `sort` says so (an order on one column is what
    /// Z-order is for one column).
    async fn optimize(
        &self,
        table: DeltaTable,
        dates: &[String],
        time: &str,
        sort: bool,
        total: &mut Compacted,
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
            // Ingestion runs beside this.
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

    /// Held until it is dropped.
    fn lock(&self) -> Result<File> {
        let file = File::options().create(true).append(true).open(&self.lock)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::config(format!(
                "{} is being rewritten",
                self.path.display()
            ))
            .hint(
                "another compaction is at work (a running pipeline does it too); try again later",
            )),
            Err(TryLockError::Error(error)) => {
                Err(Error::new(Kind::Storage, "a lock file cannot be locked").because(error))
            }
        }
    }
}

/// A folder that is empty, whatever a process that was killed left there, and goes when it is
/// dropped.
struct Emptied<'a>(&'a Path);

impl<'a> Emptied<'a> {
    fn new(folder: &'a Path) -> Result<Self> {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(Self(folder)),
        }
    }
}

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        // What stays is deleted next time.
        let _ = std::fs::remove_dir_all(self.0);
    }
}

/// A session of one thread, with little memory, for ingestion runs beside it; what it sorts waits in
/// `folder`.
fn session(folder: &Path) -> Result<Arc<SessionState>> {
    let folders = DiskManagerMode::Directories(vec![folder.to_owned()]);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(SORT_MEMORY)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(folders))
        .build_arc()?;
    let mut state = DeltaSessionContext::with_runtime_env(runtime).state();
    let options = &mut state.config_mut().options_mut().execution;
    options.target_partitions = 1;
    // Views would be written down as the type of the files' texts, and each question would read
    // views and make plain texts of them.
    options.parquet.schema_force_view_types = false;
    Ok(Arc::new(state))
}

/// The dates of a table; files without a date are left as they are.
fn dates(state: &DeltaTableState) -> BTreeMap<String, Date> {
    let mut dates: BTreeMap<String, Date> = BTreeMap::new();
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

/// Rewrites quiet dates beside the writers of their tables, one table at a time, on a thread of its
/// own: it computes for long.
#[derive(Debug, Default)]
pub struct Housekeeping {
    thread: Option<JoinHandle<()>>,
}

impl Housekeeping {
    /// Begins with the table of `writer` if it has quiet dates and no other table is at work. To
    /// be called after a commit, when the writer knows its table best.
    pub fn tend(&mut self, writer: &Writer, now: Micros) {
        let busy = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if busy || !writer.wants_compaction(now) {
            return;
        }
        let (compactor, table) = (writer.compactor(), writer.spec().name.clone());
        let thread = std::thread::Builder::new().name("compaction".to_owned());
        let started = thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let done = runtime.map_err(Error::from);
            match done.and_then(|runtime| runtime.block_on(compactor.run(now))) {
                Ok(done) => tracing::debug!(table, ?done, "small files were merged"),
                // Another process is at it.
                Err(error) if error.kind == Kind::Config => {}
                Err(error) => tracing::warn!(table, %error, "small files could not be merged"),
            }
        });
        match started {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "small files are not merged: no thread"),
        }
    }
}

/// What was done to one table.
#[derive(Debug, Clone)]
pub struct Report {
    /// The customer whose table it is.
    pub customer: String,
    /// The table.
    pub table: String,
    /// What was done.
    pub compacted: Compacted,
    /// Whether old files were looked for, to delete them.
    pub vacuumed: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = &self.compacted;
        write!(f, "{}.{}: ", self.customer, self.table)?;
        match done.files_removed {
            0 => write!(f, "nothing to merge")?,
            merged => write!(
                f,
                "{} ({}) of {} merged into {} ({})",
                counted(merged, "file"),
                size(done.bytes_removed),
                counted(done.dates as u64, "date"),
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
                counted(files as u64, "old file"),
                size(done.bytes_deleted)
            ),
        }
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Bytes for people: `812 B`, `3.4 MB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64 / 1e3;
    if value < 1.0 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    // What would be rounded to 1000.0 is one of the next unit.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Rewrites every table of `customers` (none named: of all) that has dates with several small
/// files, and with `vacuum` deletes what is no longer needed.
///
/// # Errors
/// The first table's that failed; those before it are done.
pub async fn compact_all(root: &Path, customers: &[String], vacuum: bool) -> Result<Vec<Report>> {
    let all = match customers {
        [] => crate::history::customers(root),
        some => some.to_vec(),
    };
    let mut reports = Vec::new();
    for customer in all {
        if !root.join(&customer).is_dir() {
            return Err(Error::config(format!("there is no history of '{customer}'"))
                .detail(format!("looked in {}", root.display()))
                .hint("name the --data-dir that `millstream run` uses"));
        }
        for table in tables(root, &customer) {
            let compactor = Compactor::new(root, &customer, &table);
            let mut compacted = compactor.run_all().await?;
            if vacuum {
                let Compacted { files_deleted, bytes_deleted, .. } = compactor.vacuum().await?;
                compacted = Compacted { files_deleted, bytes_deleted, ..compacted };
            }
            reports.push(Report { customer: customer.clone(), table, compacted, vacuumed: vacuum });
        }
    }
    Ok(reports)
}
