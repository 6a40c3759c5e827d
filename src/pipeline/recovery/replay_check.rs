//! Checks that a replay produces the recorded state. With `--check-replays` the progress record of
//! each epoch has digests of all state at the epoch's end, and recovery compares them with its own.

use std::collections::BTreeMap;

use serde_json::json;

use crate::commit::Progress;
use crate::pipeline::engine::Engine;
use crate::pipeline::recovery::plan_compat::subject;
use crate::window::Digests;
use crate::{Error, Kind, Result};

impl Engine {
    /// Computes digests of the state, by query and by `stream:<name>`.
    ///
    /// # Errors
    /// An epoch is open.
    pub fn digests(&self) -> Result<BTreeMap<String, Digests>> {
        let mut digests = BTreeMap::new();
        for query in self.queries() {
            let mut parts = query.operator().digests()?;
            parts.insert("forwarded".to_owned(), query.forwarded().to_string());
            digests.insert(query.plan().name.clone(), parts);
        }
        for (name, stream) in self.streams() {
            let mut parts = Digests::new();
            for (partition, at) in stream.positions() {
                parts.insert(partition.to_string(), json!(at).to_string());
            }
            parts.insert("watermarks".to_owned(), json!(stream.watermark_state()).to_string());
            digests.insert(format!("stream:{name}"), parts);
        }
        Ok(digests)
    }
}

/// Compares the state after the replay of an epoch with the digests that the epoch recorded.
///
/// # Errors
/// They differ: the error names the query, the epoch and the parts.
pub fn compare_digests(record: &Progress, engine: &Engine) -> Result<()> {
    if record.digests.is_empty() {
        return Ok(());
    }
    let current = engine.digests()?;
    for (name, recorded) in &record.digests {
        let Some(current) = current.get(name).filter(|current| *current != recorded) else {
            continue;
        };
        let added = current.keys().filter(|part| !recorded.contains_key(*part));
        let differing: Vec<_> = recorded
            .keys()
            .chain(added)
            .filter(|part| recorded.get(*part) != current.get(*part))
            .map(|part| {
                let [old, new] = [recorded, current]
                    .map(|digests| digests.get(part).map_or("nothing", String::as_str));
                format!("{part}: was {old}, is {new}")
            })
            .collect();
        let message = format!(
            "the replay of epoch {} produced another state of {} than the first run",
            record.epoch,
            subject(name)
        );
        return Err(Error::new(Kind::Internal, message)
            .detail(differing.join("; "))
            .hint("please report this; --reset drops the state and continues"));
    }
    Ok(())
}
