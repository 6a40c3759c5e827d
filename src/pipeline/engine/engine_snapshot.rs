//! The engine's state as a snapshot, and back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::record_batch::RecordBatch;

use crate::Result;
use crate::pipeline::engine::{Engine, stream_state};
use crate::state::{Snapshot, SnapshotManifest};

impl Engine {
    /// The whole state between two epochs. Batches are shared and not copied.
    ///
    /// # Errors
    /// An epoch is open.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut manifest = SnapshotManifest::default();
        let mut batches = Vec::new();
        for query in &self.queries {
            let name = &query.plan.name;
            let (query_manifest, own) = query.snapshot()?;
            batches.extend(own.into_iter().map(|(batch, rows)| (format!("{name}/{batch}"), rows)));
            manifest.queries.insert(name.clone(), query_manifest);
        }
        for (name, stream) in &self.streams {
            manifest.streams.insert(name.clone(), stream.manifest());
        }
        Ok(Snapshot { manifest, batches })
    }

    /// Takes over the state of a snapshot, except for the queries named in `without`. Streams and
    /// queries that the snapshot lacks stay empty.
    ///
    /// # Errors
    /// `Recovery`: a query's state has another version or lacks batches.
    pub async fn restore(&mut self, snapshot: Snapshot, without: &BTreeSet<String>) -> Result<()> {
        let Snapshot { mut manifest, batches } = snapshot;
        for (name, stream) in &mut self.streams {
            let Some(saved) = manifest.streams.remove(name) else { continue };
            stream.restore(saved);
            for partition in stream.partitions() {
                self.topics.insert(partition.topic.clone(), name.clone());
            }
        }
        let mut by_query: HashMap<String, Vec<(String, RecordBatch)>> = HashMap::new();
        for (name, rows) in batches {
            if let Some((query, batch)) = name.split_once('/') {
                by_query.entry(query.to_owned()).or_default().push((batch.to_owned(), rows));
            }
        }
        for query in self.queries.iter_mut().filter(|q| !without.contains(&q.plan.name)) {
            let Some(saved) = manifest.queries.remove(&query.plan.name) else { continue };
            let batches = by_query.remove(&query.plan.name).unwrap_or_default();
            query.restore(saved, batches, self.zone).await?;
        }
        // One of two views that read each other may have been reset before this snapshot.
        let views = self.queries.iter().filter(|q| q.plan.is_view());
        self.changed.extend(views.map(|q| q.plan.name.clone()));
        self.refresh_views();
        Ok(())
    }

    /// Drops the state of these queries and what they published. Epochs that were replayed before
    /// do not count for them, because the results of those epochs were never published.
    ///
    /// # Errors
    /// The plan's windows are invalid.
    pub fn reset_queries(&mut self, queries: &BTreeSet<String>) -> Result<()> {
        for query in self.queries.iter_mut().filter(|q| queries.contains(&q.plan.name)) {
            query.reset(self.zone)?;
            self.changed.insert(query.plan.name.clone());
        }
        self.refresh_views();
        Ok(())
    }

    /// The text that a fingerprint is a hash of: the plan of a query, or the columns of a stream
    /// (`stream:<name>`), one per line.
    pub fn plan_text(&self, name: &str) -> String {
        let text = match name.strip_prefix("stream:") {
            Some(stream) => self.streams.get(stream).map(|s| stream_state::columns(s.plan())),
            None => {
                let query = self.queries.iter().find(|query| query.plan.name == name);
                query.map(|query| query.plan.stored_text())
            }
        };
        text.unwrap_or_default()
    }

    /// The fingerprints of all plans, by query and by `stream:<name>`.
    pub fn fingerprints(&self) -> BTreeMap<String, String> {
        let queries =
            self.queries.iter().map(|q| (q.plan.name.clone(), q.plan.fingerprint.clone()));
        let streams = self.streams.iter().map(|(name, stream)| {
            (format!("stream:{name}"), stream_state::fingerprint(stream.plan()))
        });
        queries.chain(streams).collect()
    }
}
