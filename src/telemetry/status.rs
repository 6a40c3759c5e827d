//! The status of running pipelines, for the live view, `millstream.watermarks` and /readyz.
//!
//! A pipeline may publish a [`Status`] at any time. The [`StatusBoard`] holds the newest status of
//! each customer for this process, and writes it to a file for other processes at most once per
//! second.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::time::{Micros, SECOND, Window};

/// The status of one customer's pipeline at the time `at`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// The customer.
    pub customer: String,
    /// The time zone in which its times are displayed; empty for UTC.
    #[serde(default)]
    pub zone: String,
    /// When this status was created (wall clock).
    pub at: Micros,
    /// The newest committed epoch.
    pub epoch: u64,
    /// Its streams.
    pub streams: Vec<StreamStatus>,
    /// Its queries.
    pub queries: Vec<QueryStatus>,
    /// Dead letters since the start.
    pub dead_letters: u64,
    /// Descriptions of the few newest dead letters, the newest last.
    #[serde(default)]
    pub newest_dead: Vec<String>,
    /// The error that stopped the pipeline, if it failed.
    #[serde(default)]
    pub failed: Option<String>,
    /// When the oldest row that history has not committed was read (wall clock); `None` if history has
    /// committed all rows.
    #[serde(default)]
    pub history_waits_since: Option<Micros>,
    /// When the oldest pending request was sent to Kafka (wall clock).
    #[serde(default)]
    pub kafka_waits_since: Option<Micros>,
    /// The last error of this request.
    #[serde(default, rename = "kafka_says")]
    pub kafka_error: Option<String>,
    /// When a progress record referred to the newest snapshot (wall clock), or before the first
    /// snapshot, when the pipeline started. `None` if no snapshot is due.
    #[serde(default)]
    pub snapshot_at: Option<Micros>,
}

/// The status of one source stream.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The stream.
    pub name: String,
    /// Rows decoded since the start.
    pub events: u64,
    /// Bytes of record values read since the start.
    pub bytes: u64,
    /// Fields in its messages since the start that the schema does not declare.
    #[serde(default)]
    pub unknown_fields: u64,
    /// The stream's watermark; `None` before the first event.
    pub watermark: Option<Micros>,
    /// Records between the positions and the ends of all partitions.
    pub lag: i64,
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
}

/// The status of one source partition.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The next offset to be processed.
    pub position: i64,
    /// Skipped offsets that Kafka had already deleted.
    #[serde(default)]
    pub skipped: u64,
    /// The last known end of the partition.
    pub end: i64,
    /// Its watermark; `None` before the first event.
    pub watermark: Option<Micros>,
    /// Whether all records are read and none arrived for the stream's idle timeout.
    pub idle: bool,
    /// When the last record arrived (wall clock).
    pub quiet_since: Option<Micros>,
    /// Whether reading is paused because the partition is ahead of the slowest one, or because of a
    /// slow sink.
    pub paused: bool,
}

/// The status of one query.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct QueryStatus {
    /// The query.
    pub name: String,
    /// Its input stream or query.
    pub input: String,
    /// Records sent to its topic since the start.
    pub emitted: u64,
    /// Rows rejected as late since the start. A row counts once for each query that rejects it.
    pub late: u64,
    /// Rows of state.
    pub state_rows: u64,
    /// Bytes of state.
    pub state_bytes: u64,
    /// The number of open windows.
    #[serde(default)]
    pub windows_open: u64,
    /// A few of its open windows, the oldest first.
    pub open: Vec<OpenWindowStatus>,
    /// A few of its newest results as JSON, the newest last.
    pub newest: Vec<String>,
}

/// An open window, and the reason why it is open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenWindowStatus {
    /// The window.
    pub window: Window,
    /// The partition that blocks the watermark ("1084/0"), if there is one.
    pub held_by: Option<String>,
    /// The watermark of that partition.
    pub held_at: Option<Micros>,
    /// A description of what the window waits for, and when it will close.
    pub because: String,
}

/// The shortest time between two writes of a status file.
const FILE_EVERY_US: Micros = SECOND;

/// The newest status of every customer in this process. Clones share their content.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard {
    newest_by_customer: Arc<RwLock<BTreeMap<String, Arc<Status>>>>,
    expected: Arc<RwLock<BTreeSet<String>>>,
    files: Option<Arc<StatusFiles>>,
}

#[derive(Debug)]
struct StatusFiles {
    folder: PathBuf,
    /// The time of the last status that was written, by customer.
    written: Mutex<BTreeMap<String, Micros>>,
}

impl StatusBoard {
    /// Creates a board, which also writes `<folder>/<customer>.json` if a folder is given.
    pub fn new(folder: Option<PathBuf>) -> Self {
        let files =
            folder.map(|folder| Arc::new(StatusFiles { folder, written: Mutex::default() }));
        Self { files, ..Self::default() }
    }

    /// Adds customers that will publish. The process is not ready before all of them have.
    pub fn expect<'a>(&self, customers: impl IntoIterator<Item = &'a str>) {
        let mut expected = self.expected.write().unwrap_or_else(PoisonError::into_inner);
        expected.extend(customers.into_iter().map(str::to_owned));
    }

    /// The customers of [`StatusBoard::expect`] that have not published yet.
    pub fn missing(&self) -> Vec<String> {
        let newest_by_customer =
            self.newest_by_customer.read().unwrap_or_else(PoisonError::into_inner);
        let expected = self.expected.read().unwrap_or_else(PoisonError::into_inner);
        expected.iter().filter(|name| !newest_by_customer.contains_key(*name)).cloned().collect()
    }

    /// Publishes `status`. Also writes its file if the last write is at least a second before
    /// `status.at`, or if the pipeline failed. A failed write is only logged.
    pub fn publish(&self, status: Status) {
        let status = Arc::new(status);
        let mut newest_by_customer =
            self.newest_by_customer.write().unwrap_or_else(PoisonError::into_inner);
        newest_by_customer.insert(status.customer.clone(), status.clone());
        drop(newest_by_customer);
        if let Some(files) = &self.files
            && let Err(error) = files.write_if_due(&status)
        {
            tracing::warn!(customer = status.customer, "{error}");
        }
    }

    /// The newest status of each customer, by name.
    pub fn all(&self) -> Vec<Arc<Status>> {
        self.newest_by_customer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// The newest status of one customer.
    pub fn get(&self, customer: &str) -> Option<Arc<Status>> {
        self.newest_by_customer
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(customer)
            .cloned()
    }
}

impl StatusFiles {
    fn write_if_due(&self, status: &Status) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let last = written.get(&status.customer);
        let is_recent = last.is_some_and(|last| (0..FILE_EVERY_US).contains(&(status.at - last)));
        if is_recent && status.failed.is_none() {
            return Ok(());
        }
        written.insert(status.customer.clone(), status.at);
        let path = self.folder.join(format!("{}.json", status.customer));
        let temporary = self.folder.join(format!(".{}.json.new", status.customer));
        let json = serde_json::to_vec(status)
            .map_err(|cause| Error::internal("cannot serialize a status").because(cause))?;
        // The rename is atomic, so a reader never sees a partial file.
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| std::fs::write(&temporary, json))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|cause| {
                Error::new(
                    Kind::Storage,
                    format!("cannot write the status file {}", path.display()),
                )
                .because(cause)
            })
    }
}

/// Reads the status files in `folder`, sorted by customer. Returns none if the folder is missing. A file
/// that cannot be parsed is left out with a warning.
pub fn read_files(folder: &Path) -> Result<Vec<Status>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut statuses: Vec<Status> = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match serde_json::from_slice(&std::fs::read(&path)?) {
            Ok(status) => statuses.push(status),
            Err(error) => {
                tracing::warn!(file = %path.display(), "cannot parse a status file: {error}")
            }
        }
    }
    statuses.sort_by(|a, b| a.customer.cmp(&b.customer));
    Ok(statuses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(customer: &str, at: Micros, epoch: u64) -> Status {
        Status { customer: customer.to_owned(), at, epoch, ..Status::default() }
    }

    #[test]
    fn a_board_shows_at_once_and_writes_once_a_second() {
        let folder = tempfile::tempdir().unwrap();
        let status_folder = folder.path().join("status");
        let board = StatusBoard::new(Some(status_folder.clone()));
        board.expect(["a", "b"]);
        let epochs =
            || read_files(&status_folder).unwrap().iter().map(|s| s.epoch).collect::<Vec<_>>();
        assert!(epochs().is_empty());
        board.publish(status("b", 0, 1));
        assert_eq!(board.missing(), ["a"]);
        board.publish(status("a", 0, 10));
        board.publish(status("b", SECOND - 1, 2));
        assert_eq!(board.all().iter().map(|s| s.epoch).collect::<Vec<_>>(), [10, 2]);
        assert_eq!(epochs(), [10, 1]);
        board.publish(status("b", SECOND, 3));
        assert_eq!(epochs(), [10, 3]);
        board
            .publish(Status { failed: Some("no broker".to_owned()), ..status("b", SECOND + 1, 4) });
        assert_eq!(epochs(), [10, 4]);
        assert_eq!(board.get("b").unwrap().failed.as_deref(), Some("no broker"));
        assert_eq!(
            std::fs::read_dir(&status_folder).unwrap().count(),
            2,
            "no temporary file is left"
        );
    }

    #[test]
    fn files_of_an_older_version_are_readable() {
        let folder = tempfile::tempdir().unwrap();
        let old = r#"{"customer":"a","at":5,"epoch":1,"streams":[],"queries":[],"dead_letters":0}"#;
        std::fs::write(folder.path().join("a.json"), old).unwrap();
        std::fs::write(folder.path().join("b.json"), "{").unwrap();
        assert_eq!(read_files(folder.path()).unwrap().len(), 1);
    }
}
