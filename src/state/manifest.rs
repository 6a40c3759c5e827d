//! The manifest of a snapshot: the part of a pipeline's state that is not batches.
//!
//! The JSON of these types is a stored format. Fields that version 1 of an operator's manifest
//! lacks have a default. The names of stored fields never change; where a Rust name is clearer,
//! `serde(rename)` keeps the stored one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::{Micros, Window};
use crate::types::{SourcePosition, TopicPartition};
use crate::watermark::WatermarkState;

/// The manifest of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Every source stream, by name.
    #[serde(default)]
    pub streams: BTreeMap<String, StreamManifest>,
    /// Every query, by name.
    #[serde(default)]
    pub queries: BTreeMap<String, QueryManifest>,
    /// The version (a hash) of each reference table, by name.
    #[serde(default)]
    pub tables: BTreeMap<String, String>,
}

/// The state of a source stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamManifest {
    /// The position of each partition.
    pub positions: BTreeMap<TopicPartition, SourcePosition>,
    /// The watermark of each partition.
    pub watermarks: WatermarkState,
    /// The text that the stream's fingerprint is a hash of; the first format lacks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
}

/// The state of a query. Its batches are in the snapshot, under the query's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryManifest {
    /// The fingerprint of the plan that made the state.
    #[serde(default)]
    pub fingerprint: String,
    /// That plan as text; the first format lacks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// The watermark last forwarded to the queries that read this one.
    pub forwarded: Micros,
    /// The state of its operator.
    pub operator: OperatorManifest,
}

/// The state of an operator. Its parts name the batches that they consist of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorManifest {
    /// The version of the format.
    pub version: u32,
    /// The watermark at the end of the last epoch.
    pub watermark: Micros,
    /// Windows whose state is needed; empty for views and stateless queries.
    pub windows: Vec<(Window, WindowManifest)>,
    /// The state of a view; other queries write an empty one.
    pub view: WindowManifest,
    /// Panes of hopping windows that share them.
    pub panes: Option<PanesManifest>,
}

impl OperatorManifest {
    /// The number of open windows.
    pub fn open_windows(&self) -> usize {
        self.windows.iter().filter(|(_, window)| !window.closed).count()
    }
}

/// Per state slot, the batches of a merge tree: (level, name), the oldest first.
pub type TreeNames = Vec<Vec<(u32, String)>>;

/// Per state slot, the name of its batch; `None` for a slot without rows.
pub type BatchNames = Vec<Option<String>>;

/// The state of a window or of a view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowManifest {
    /// The merge tree.
    #[serde(rename = "tiers")]
    pub tree: TreeNames,
    /// Whether it has rows that no published result contains.
    pub changed: bool,
    /// Whether the watermark has reached its end.
    pub closed: bool,
    /// The rows published last, of queries whose results are revised by key.
    #[serde(rename = "said")]
    pub published: Option<String>,
    /// The number of results published so far.
    pub revision: i64,
}

/// The panes of a query and the progress of their running merges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PanesManifest {
    /// The panes in the order of their starts.
    pub panes: Vec<PaneManifest>,
    /// The start of the last window that was merged.
    #[serde(rename = "served")]
    pub last_merged: Micros,
    /// Panes that start before this are part of the running merges.
    #[serde(rename = "until")]
    pub stacked_until: Micros,
    /// Panes that start before this are, or were, in the front.
    pub front_until: Micros,
    /// The start of the first pane in the back.
    pub back_from: Option<Micros>,
    /// The merge of the panes in the back.
    pub back: BatchNames,
}

/// One pane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaneManifest {
    /// The span of event time.
    pub window: Window,
    /// The end of the last window that contains the pane.
    pub last_end: Micros,
    /// Windows that end after this are known to contain the pane.
    pub known_from: Micros,
    /// The merge tree.
    #[serde(rename = "tiers")]
    pub tree: TreeNames,
    /// Late additions: windows that end at this instant or earlier refused the rows.
    pub late: Vec<(Micros, BatchNames)>,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    /// Reads a manifest of a stored snapshot and writes it again: the JSON must stay the same.
    fn assert_round_trip(format: &str) -> usize {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format);
        let folders = std::fs::read_dir(root.join("snapshots/old")).unwrap();
        let mut count = 0;
        for folder in folders {
            let text = std::fs::read(folder.unwrap().path().join("manifest.json")).unwrap();
            let stored = serde_json::from_slice::<Value>(&text).unwrap()["manifest"].take();
            let manifest: SnapshotManifest = serde_json::from_value(stored.clone()).unwrap();
            assert!(!manifest.streams.is_empty() && !manifest.queries.is_empty());
            assert_eq!(serde_json::to_value(&manifest).unwrap(), stored);
            count += 1;
        }
        count
    }

    #[test]
    fn manifests_of_all_formats_keep_their_json() {
        assert_eq!(assert_round_trip("format-1"), 2);
        assert_eq!(assert_round_trip("format-2"), 2);
    }

    #[test]
    fn a_manifest_without_a_required_part_is_refused() {
        let stream = r#"{ "streams": { "s": { "positions": {} } } }"#;
        let error = serde_json::from_str::<SnapshotManifest>(stream).unwrap_err();
        assert!(error.to_string().contains("watermarks"), "{error}");
        assert_eq!(serde_json::from_str::<SnapshotManifest>("{}").unwrap(), Default::default());
    }
}
