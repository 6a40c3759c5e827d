//! Compatibility of changed plans with the state that an earlier plan has produced.
//!
//! A query keeps its state if its batch plan, its windows and its partial aggregates are unchanged:
//! a changed final plan reads the same state. Any other change needs a reset or a new query name.
//! After an unclean stop no plan may differ, because recorded epochs are replayed and their results
//! were published with the earlier plan.

use crate::commit::RecoveredLog;
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::engine::Engine;
use crate::state::SnapshotManifest;
use crate::{Error, Kind, Result};

/// The difference between two fingerprints of one query or stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanChange {
    /// The plans are equal.
    None,
    /// The final plan differs; the state stays valid.
    FinalPlan,
    /// The state differs.
    State,
}

/// Compares the recorded fingerprint of a plan with its current one.
pub fn compare_fingerprints(recorded: &str, current: &str) -> PlanChange {
    let (recorded_plan, recorded_state) = split_fingerprint(recorded);
    let (current_plan, current_state) = split_fingerprint(current);
    match recorded_state {
        _ if recorded_plan == current_plan => PlanChange::None,
        Some(_) if recorded_state == current_state => PlanChange::FinalPlan,
        // Fingerprints of the first format have no second part.
        _ => PlanChange::State,
    }
}

/// The parts of a fingerprint: of the whole plan, and of what decides about the state.
fn split_fingerprint(fingerprint: &str) -> (&str, Option<&str>) {
    match fingerprint.split_once('+') {
        Some((plan, state)) => (plan, Some(state)),
        None => (fingerprint, None),
    }
}

/// Checks that the state belongs to the current plans. `manifest`: of the snapshot. Returns whether
/// plans have changed in a way that keeps their state, so that the log must record the new ones.
///
/// # Errors
/// The first query or stream whose state is not valid any more, with the first line of its plan
/// that differs.
pub fn check_plans(
    recovered: &RecoveredLog,
    manifest: Option<&SnapshotManifest>,
    engine: &Engine,
    config: &PipelineConfig,
) -> Result<bool> {
    let customer = &engine.customer.name;
    let (Some(last), Some(base)) = (&recovered.last, &recovered.base) else { return Ok(false) };
    let fingerprints = engine.fingerprints();
    let mut has_changed = false;
    // Streams come first: a changed stream also changes the queries that read it.
    let (streams, queries): (Vec<_>, Vec<_>) =
        base.plans.iter().partition(|(name, _)| name.starts_with("stream:"));
    for (name, recorded) in streams.into_iter().chain(queries) {
        let Some(current) = fingerprints.get(name) else { continue };
        if config.reset.contains_query(customer, name) {
            continue;
        }
        let change = compare_fingerprints(recorded, current);
        if change == PlanChange::None {
            continue;
        }
        let current_text = engine.plan_text(name);
        let recorded_text = manifest.and_then(|manifest| recorded_text(manifest, name));
        let only_adds_columns =
            recorded_text.is_some_and(|recorded| only_adds_columns(name, recorded, &current_text));
        match change {
            PlanChange::FinalPlan if last.clean => {
                tracing::info!(
                    customer,
                    query = name,
                    "the final plan has changed; the query keeps its state"
                );
            }
            _ if last.clean && only_adds_columns => {
                tracing::info!(customer, plan = name, "the stream has more columns from now on");
            }
            _ => {
                let texts = recorded_text.zip(Some(current_text.as_str()));
                return Err(changed_plan_error(customer, name, last.clean, texts));
            }
        }
        has_changed = true;
    }
    Ok(has_changed)
}

/// The text of a plan in the manifest of a snapshot.
fn recorded_text<'a>(manifest: &'a SnapshotManifest, name: &str) -> Option<&'a str> {
    match name.strip_prefix("stream:") {
        Some(stream) => manifest.streams.get(stream)?.plan.as_deref(),
        None => manifest.queries.get(name)?.plan.as_deref(),
    }
}

/// Whether `name` is a stream that has all columns that it had, in the same order, and more.
fn only_adds_columns(name: &str, recorded: &str, current: &str) -> bool {
    let mut current = current.lines();
    name.starts_with("stream:") && recorded.lines().all(|old| current.any(|new| new == old))
}

/// The query or stream that a fingerprint belongs to, for messages.
pub fn subject(name: &str) -> String {
    match name.strip_prefix("stream:") {
        Some(stream) => format!("stream '{stream}'"),
        None => format!("query '{name}'"),
    }
}

fn changed_plan_error(
    customer: &str,
    name: &str,
    is_clean: bool,
    texts: Option<(&str, &str)>,
) -> Error {
    let subject = subject(name);
    let message = format!("{subject} of {customer} has changed since its state was written");
    let mut detail = texts.and_then(|(recorded, current)| first_difference(recorded, current));
    let hint = if !is_clean {
        let unclean = "the last run did not stop cleanly, so recorded epochs must be replayed with \
                       the plan that they had";
        detail = Some(detail.map_or_else(|| unclean.into(), |diff| format!("{diff}; {unclean}")));
        format!("run once with the old file, or drop all state with --reset {customer}")
    } else if name.starts_with("stream:") {
        format!("columns may be added; for any other change drop all state with --reset {customer}")
    } else {
        format!("drop its state with --reset {customer}/{name}, or give the new query another name")
    };
    let error = Error::new(Kind::Recovery, message).hint(hint);
    match detail {
        Some(detail) => error.detail(detail),
        None => error,
    }
}

/// The first line that only the recorded plan has, and the first that only the current one has.
fn first_difference(recorded: &str, current: &str) -> Option<String> {
    let only_in = |text: &str, other: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find(|line| !other.lines().any(|o| o.trim() == *line)).map(str::to_owned)
    };
    match (only_in(recorded, current), only_in(current, recorded)) {
        (Some(old), Some(new)) => Some(format!("its plan had '{old}' and now has '{new}'")),
        (Some(old), None) => Some(format!("its plan had '{old}'")),
        (None, Some(new)) => Some(format!("its plan now has '{new}', which is new")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_final_plan_keeps_the_state() {
        assert_eq!(compare_fingerprints("a+k", "a+k"), PlanChange::None);
        assert_eq!(compare_fingerprints("a+k", "b+k"), PlanChange::FinalPlan);
        assert_eq!(compare_fingerprints("a+k", "b+l"), PlanChange::State);
        // Fingerprints of the first format have one part.
        assert_eq!(compare_fingerprints("a", "a+k"), PlanChange::None);
        assert_eq!(compare_fingerprints("a", "b+k"), PlanChange::State);
    }

    #[test]
    fn columns_may_be_added_to_a_stream() {
        let recorded = "a Int64\nb Utf8\nWatermark";
        assert!(only_adds_columns("stream:s", recorded, "a Int64\nb Utf8\nc Utf8\nWatermark"));
        assert!(only_adds_columns("stream:s", recorded, "a Int64\nc Utf8\nb Utf8\nWatermark"));
        assert!(!only_adds_columns("stream:s", recorded, "a Int32\nb Utf8\nc Utf8\nWatermark"));
        assert!(!only_adds_columns("stream:s", recorded, "a Int64\nWatermark"));
        assert!(!only_adds_columns("q", recorded, recorded));
    }

    #[test]
    fn the_first_differing_line_is_reported() {
        let recorded = "front\n  Filter: a\nkept";
        let current = "front\n  Filter: b\nkept";
        let difference = first_difference(recorded, current).unwrap();
        assert_eq!(difference, "its plan had 'Filter: a' and now has 'Filter: b'");
        assert_eq!(first_difference(recorded, recorded), None);
        assert_eq!(first_difference("a", "b\n a").unwrap(), "its plan now has 'b', which is new");
    }
}
