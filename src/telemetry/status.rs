//! What a running pipeline says of itself: for the live view, `millstream.watermarks` and /readyz.
//!
//! A pipeline publishes a [`Status`] whenever it likes; the [`StatusBoard`] shows the newest of
//! each customer to this process at once, and to others through a file, at most once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::time::{Micros, SECOND, Window};

/// One customer's pipeline, as of `at`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// The customer.
    pub customer: String,
    /// The name of the zone that its times are shown in; empty: UTC.
    #[serde(default)]
    pub zone: String,
    /// When this was written (wall clock).
    pub at: Micros,
    /// The newest committed epoch.
    pub epoch: u64,
    /// Its streams.
    pub streams: Vec<StreamStatus>,
    /// Its queries.
    pub queries: Vec<QueryStatus>,
    /// Dead letters since the start.
    pub dead_letters: u64,
    /// The newest dead letters in words, the newest last; a handful.
    #[serde(default)]
    pub newest_dead: Vec<String>,
    /// What stopped the pipeline, if it failed.
    #[serde(default)]
    pub failed: Option<String>,
    /// When the oldest row that history has not committed was read (wall clock); `None`: it has all.
    #[serde(default)]
    pub history_waits_since: Option<Micros>,
    /// When Kafka was asked something that it has not answered yet (wall clock).
    #[serde(default)]
    pub kafka_waits_since: Option<Micros>,
    /// What it said instead of an answer.
    #[serde(default)]
    pub kafka_says: Option<String>,
    /// When the newest snapshot was named by a progress record (wall clock); before the first one,
    /// the pipeline's start. `None`: none is due.
    #[serde(default)]
    pub snapshot_at: Option<Micros>,
}

/// One source stream.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StreamStatus {
    /// The stream.
    pub name: String,
    /// Rows decoded since the start.
    pub events: u64,
    /// Bytes of record values read since the start.
    pub bytes: u64,
    /// Fields of its messages since the start that the schema does not name.
    #[serde(default)]
    pub unknown_fields: u64,
    /// The stream's watermark; `None` before the first event.
    pub watermark: Option<Micros>,
    /// Records behind the end of all partitions.
    pub lag: i64,
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
}

/// One source partition.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// The next offset to be processed.
    pub position: i64,
    /// Offsets that were passed over, for Kafka no longer had them.
    #[serde(default)]
    pub skipped: u64,
    /// The end of the partition when last seen.
    pub end: i64,
    /// Its watermark; `None` before the first event.
    pub watermark: Option<Micros>,
    /// At its end, and nothing came for the stream's idle timeout.
    pub idle: bool,
    /// When the last record came (wall clock).
    pub quiet_since: Option<Micros>,
    /// Held back because it ran ahead of the slowest, or because a sink is slow.
    pub paused: bool,
}

/// One query.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct QueryStatus {
    /// The query.
    pub name: String,
    /// Its input stream or query.
    pub input: String,
    /// Records sent to its topic since the start.
    pub emitted: u64,
    /// Rows refused as late since the start; a row that several queries refuse counts for each.
    pub late: u64,
    /// Rows of kept state.
    pub state_rows: u64,
    /// Bytes of kept state.
    pub state_bytes: u64,
    /// How many windows are open.
    #[serde(default)]
    pub windows_open: u64,
    /// Its open windows, the oldest first; a handful.
    pub open: Vec<OpenWindow>,
    /// Its newest results as JSON, the newest last; a handful.
    pub newest: Vec<String>,
}

/// Why a window has no result yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenWindow {
    /// The window.
    pub window: Window,
    /// The partition that holds the watermark back ("1084/0"), if there is one.
    pub held_by: Option<String>,
    /// Where that partition's watermark stands.
    pub held_at: Option<Micros>,
    /// In words: what it waits for, and when it will close.
    pub because: String,
}

/// How often a status file is written, at most.
const FILE_EVERY_US: Micros = SECOND;

/// The newest status of every customer of this process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StatusBoard {
    shown: Arc<RwLock<BTreeMap<String, Arc<Status>>>>,
    expected: Arc<RwLock<BTreeSet<String>>>,
    files: Option<Arc<StatusFiles>>,
}

#[derive(Debug)]
struct StatusFiles {
    folder: PathBuf,
    /// When each customer's file was written last, by its status' own time.
    written: Mutex<BTreeMap<String, Micros>>,
}

impl StatusBoard {
    /// A board that also writes `<folder>/<customer>.json`, where a folder is given.
    pub fn new(folder: Option<PathBuf>) -> Self {
        let files =
            folder.map(|folder| Arc::new(StatusFiles { folder, written: Mutex::default() }));
        Self { files, ..Self::default() }
    }

    /// Names customers that are going to publish: the process is not ready before they have.
    pub fn expect<'a>(&self, customers: impl IntoIterator<Item = &'a str>) {
        let mut expected = self.expected.write().unwrap_or_else(PoisonError::into_inner);
        expected.extend(customers.into_iter().map(str::to_owned));
    }

    /// Customers that were named by [`StatusBoard::expect`] and have not published yet.
    pub fn missing(&self) -> Vec<String> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        let expected = self.expected.read().unwrap_or_else(PoisonError::into_inner);
        expected.iter().filter(|name| !shown.contains_key(*name)).cloned().collect()
    }

    /// Shows `status`. Its file is written too if the last one is a second old by `status.at`, or
    /// if the pipeline failed. A file that cannot be written is logged and does not stop anybody.
    pub fn publish(&self, status: Status) {
        let status = Arc::new(status);
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        shown.insert(status.customer.clone(), status.clone());
        drop(shown);
        if let Some(files) = &self.files
            && let Err(error) = files.write_if_due(&status)
        {
            tracing::warn!(customer = status.customer, "{error}");
        }
    }

    /// The newest status of each customer, by name.
    pub fn all(&self) -> Vec<Arc<Status>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The newest status of one customer.
    pub fn get(&self, customer: &str) -> Option<Arc<Status>> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).get(customer).cloned()
    }
}

impl StatusFiles {
    fn write_if_due(&self, status: &Status) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let last = written.get(&status.customer);
        let fresh = last.is_some_and(|last| (0..FILE_EVERY_US).contains(&(status.at - last)));
        if fresh && status.failed.is_none() {
            return Ok(());
        }
        written.insert(status.customer.clone(), status.at);
        let path = self.folder.join(format!("{}.json", status.customer));
        let temporary = self.folder.join(format!(".{}.json.new", status.customer));
        let json = serde_json::to_vec(status).map_err(|cause| {
            Error::internal("a status cannot be written as JSON").because(cause)
        })?;
        // A reader sees the old file or the new one, never half of one.
        std::fs::create_dir_all(&self.folder)
            .and_then(|()| std::fs::write(&temporary, json))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|cause| {
                Error::new(
                    Kind::Storage,
                    format!("the status file {} cannot be written", path.display()),
                )
                .because(cause)
            })
    }
}

/// The statuses that processes have written into `folder`, by customer; none if there is no
/// folder. A file that cannot be understood is left out, with a warning.
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
                tracing::warn!(file = %path.display(), "a status file is not read: {error}")
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
            "no temporary file stays"
        );
    }

    #[test]
    fn files_of_an_older_version_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let old = r#"{"customer":"a","at":5,"epoch":1,"streams":[],"queries":[],"dead_letters":0}"#;
        std::fs::write(folder.path().join("a.json"), old).unwrap();
        std::fs::write(folder.path().join("b.json"), "{").unwrap();
        assert_eq!(read_files(folder.path()).unwrap().len(), 1);
    }
}
