//! What a running pipeline says of itself: for the live view, `millstream.watermarks` and /readyz.

use serde::{Deserialize, Serialize};

use crate::time::{Micros, Window};

/// One customer's pipeline, as of `at`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// The customer.
    pub customer: String,
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
    /// Rows refused as late since the start.
    pub late: u64,
    /// Rows of kept state.
    pub state_rows: u64,
    /// Bytes of kept state.
    pub state_bytes: u64,
    /// Its open windows, the oldest first.
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
