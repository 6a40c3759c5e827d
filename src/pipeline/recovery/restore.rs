//! Phase 4, restore: puts the state of the snapshot into the engine.

use std::collections::{BTreeMap, BTreeSet};

use crate::Result;
use crate::commit::{Committer, RecoveredLog, SnapshotRef};
use crate::failpoint::reach;
use crate::pipeline::recovery::connect::Connected;
use crate::pipeline::recovery::fence::Fenced;
use crate::pipeline::recovery::inspect::RecoveryPlan;
use crate::pipeline::recovery::new_queries;
use crate::pipeline::recovery::plan_compat::{PlanChange, compare_fingerprints};
use crate::pipeline::running_pipeline::RequiredSnapshot;
use crate::state::Snapshot;

/// A customer whose engine has the state of the snapshot.
pub struct Restored {
    pub connected: Connected,
    pub committer: Committer,
    pub recovered: RecoveredLog,
    /// The snapshot that was loaded.
    pub snapshot: Option<SnapshotRef>,
    /// Queries that start without state.
    pub new_queries: BTreeSet<String>,
    /// Whether recorded epochs are replayed.
    pub replays: bool,
    pub required_snapshot: Option<RequiredSnapshot>,
}

/// Restores the state of the snapshot. A customer that is reset and cannot replay its epochs
/// continues from the recorded offsets without state.
///
/// # Errors
/// The snapshot's state does not fit the plans, or a broker does not answer.
pub async fn restore(fenced: Fenced) -> Result<Restored> {
    let Fenced { mut connected, committer, plan } = fenced;
    let RecoveryPlan {
        recovered, replaced_topics, snapshot, new_queries, replays, missing, ..
    } = plan;
    if let Some((reference, saved)) = &snapshot {
        new_queries::log_dropped_state(connected.customer(), reference.epoch, saved, &new_queries);
    }
    let tombstones = match recovered.last {
        Some(_) => {
            new_queries::read_tombstones(&connected.engine, &new_queries, &connected.config).await?
        }
        None => Vec::new(),
    };
    let is_state_changed = connected.is_reset
        || plan.has_changed_plans
        || !new_queries.is_empty()
        || !missing.is_empty();
    let reference = snapshot.as_ref().map(|(reference, _)| reference.clone());
    match snapshot {
        Some((_, saved)) if replays => restore_snapshot(&mut connected, &recovered, saved).await?,
        _ if connected.is_reset => {
            let positions = recovered.positions.iter();
            let is_same = |topic: &str| !replaced_topics.contains_key(topic);
            for (partition, position) in positions.filter(|(p, _)| is_same(p.topic.as_ref())) {
                connected.engine.resume_at(partition, *position);
            }
        }
        _ => {}
    }
    Ok(Restored {
        connected,
        committer,
        recovered,
        snapshot: reference,
        new_queries,
        replays,
        required_snapshot: is_state_changed
            .then_some(RequiredSnapshot { tombstones, skipped: missing }),
    })
}

/// Continues without any state, as a rebuild does: it reads everything again from the beginning.
pub fn discard_state(fenced: Fenced) -> Restored {
    let Fenced { connected, committer, plan } = fenced;
    let RecoveryPlan { recovered, snapshot, new_queries, .. } = plan;
    if let Some((reference, saved)) = &snapshot {
        new_queries::log_dropped_state(connected.customer(), reference.epoch, saved, &new_queries);
    }
    Restored {
        connected,
        committer,
        recovered,
        snapshot: snapshot.map(|(reference, _)| reference),
        new_queries,
        replays: false,
        required_snapshot: Some(RequiredSnapshot::default()),
    }
}

/// Puts a snapshot's tables and state into the engine.
async fn restore_snapshot(
    connected: &mut Connected,
    recovered: &RecoveredLog,
    saved: Snapshot,
) -> Result<()> {
    let Connected { engine, tables, is_reset, .. } = connected;
    let customer = engine.customer.clone();
    for (name, hash) in &saved.manifest.tables {
        if !*is_reset && customer.tables.iter().any(|table| table.name == *name) {
            let rows = tables.load_version(name, hash).await?;
            engine.set_table(name, rows);
        }
    }
    // New queries start empty only after the replay, so that the queries that read them get the
    // same input in it as they had.
    let recorded = recovered.base.as_ref().map(|base| &base.plans);
    let without = queries_without_state(engine.fingerprints(), recorded, *is_reset);
    engine.restore(saved, &without).await?;
    reach("recovery.restored");
    Ok(())
}

/// The plans whose state in the snapshot belongs to another plan; all of them in a reset.
fn queries_without_state(
    fingerprints: BTreeMap<String, String>,
    recorded: Option<&BTreeMap<String, String>>,
    is_reset: bool,
) -> BTreeSet<String> {
    let is_other = |name: &String, fingerprint: &String| {
        let recorded = recorded.and_then(|plans| plans.get(name));
        recorded
            .is_none_or(|recorded| compare_fingerprints(recorded, fingerprint) == PlanChange::State)
    };
    let others = fingerprints.into_iter().filter(|(name, plan)| is_reset || is_other(name, plan));
    others.map(|(name, _)| name).collect()
}
