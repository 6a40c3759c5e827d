//! Whether epochs that run again give the state that was: digests of all state at an epoch's end,
//! recorded with its progress when `--check-replays` says so, and compared in recovery.

use std::collections::BTreeMap;

use serde_json::json;

use crate::commit::Progress;
use crate::pipeline::Engine;
use crate::pipeline::recovery::plan_compat::subject;
use crate::window::Digests;
use crate::{Error, Kind, Result};

impl Engine {
    /// Digests of the state, by query and by "stream:<name>". To be called between epochs.
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
        for (name, stage) in self.streams() {
            let mut parts = Digests::new();
            for (partition, at) in stage.positions() {
                parts.insert(partition.to_string(), json!(at).to_string());
            }
            parts.insert("watermarks".to_owned(), json!(stage.watermark_state()).to_string());
            digests.insert(format!("stream:{name}"), parts);
        }
        Ok(digests)
    }
}

/// Compares what an epoch gave when it ran again with what it gave the first time.
///
/// # Errors
/// They differ: names the query, the epoch and the parts.
pub fn compare(record: &Progress, engine: &Engine) -> Result<()> {
    if record.digests.is_empty() {
        return Ok(());
    }
    let now = engine.digests()?;
    for (name, recorded) in &record.digests {
        let Some(now) = now.get(name).filter(|now| *now != recorded) else { continue };
        let parts = recorded.keys().chain(now.keys().filter(|part| !recorded.contains_key(*part)));
        let said = |of: &Digests, part: &str| of.get(part).cloned().unwrap_or("nothing".to_owned());
        let differing: Vec<_> = parts
            .filter(|part| recorded.get(*part) != now.get(*part))
            .map(|part| format!("{part}: was {}, is {}", said(recorded, part), said(now, part)))
            .collect();
        let (epoch, what) = (record.epoch, subject(name));
        let message =
            format!("epoch {epoch} ran again and left another state of {what} than the first time");
        return Err(Error::new(Kind::Internal, message)
            .detail(differing.join("; "))
            .hint("please report this; --reset drops the state and goes on"));
    }
    Ok(())
}
