//! What an operator emits at the end of an epoch.

use arrow::array::RecordBatch;

use crate::time::Window;

/// The results of one window, or of a view, at the end of an epoch.
#[derive(Debug)]
pub struct Emission {
    /// The window; `None` for a view.
    pub window: Option<Window>,
    /// The results, or the reason why the final plan failed. A window whose final plan fails becomes
    /// a dead letter.
    pub result: Result<Changes, String>,
}

/// Results as changes to the results that were emitted before for the same window or view.
#[derive(Debug)]
pub struct Changes {
    /// New and changed rows; all rows when a window closes.
    pub upserts: RecordBatch,
    /// Rows emitted before whose keys are gone. They are written before the upserts.
    pub deletes: RecordBatch,
    /// Whether the window has closed; always `false` for a view.
    pub is_final: bool,
    /// Counts the emissions of the window or view, from 1.
    pub revision: i64,
}
