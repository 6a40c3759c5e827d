//! Plans that have changed since their state was kept, and what becomes of that state.
//!
//! A query whose front, windows and partial aggregates are what they were keeps its state: the
//! closing plan runs over it as over any other. Any other change needs a reset or a new name. After
//! an unclean stop nothing may differ: recorded epochs run again, and what they said was said by
//! the old plan.

use crate::commit::RecoveredLog;
use crate::pipeline::PipelineConfig;
use crate::pipeline::engine::Engine;
use crate::state::SnapshotManifest;
use crate::{Error, Kind, Result};

/// What differs between two fingerprints of one query or stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// What becomes of the state in the end, but not the state.
    Closing,
    /// The state.
    State,
}

/// What differs between the plan that was recorded and the one of now.
pub fn change(recorded: &str, now: &str) -> Change {
    let ((before, kept_before), (now, kept)) = (parts(recorded), parts(now));
    match kept_before {
        _ if before == now => Change::None,
        Some(_) if kept_before == kept => Change::Closing,
        // Records of the first format have no second part.
        _ => Change::State,
    }
}

fn parts(fingerprint: &str) -> (&str, Option<&str>) {
    match fingerprint.split_once('+') {
        Some((whole, kept)) => (whole, Some(kept)),
        None => (fingerprint, None),
    }
}

/// Refuses plans that the kept state does not belong to. `saved`: the manifest of its snapshot.
/// Says whether there are other changes, so that the log must tell the plans of now.
///
/// # Errors
/// The first query or stream that has changed, with the first line of its plan that differs.
pub fn check(
    recovered: &RecoveredLog,
    saved: Option<&SnapshotManifest>,
    engine: &Engine,
    options: &PipelineConfig,
) -> Result<bool> {
    let customer = &engine.customer.name;
    let (Some(last), Some(base)) = (&recovered.last, &recovered.base) else { return Ok(false) };
    let plans = engine.fingerprints();
    let mut changed = false;
    // A stream that has changed makes others of the queries that read it.
    let (streams, queries): (Vec<_>, Vec<_>) =
        base.plans.iter().partition(|(name, _)| name.starts_with("stream:"));
    for (name, recorded) in streams.into_iter().chain(queries) {
        let Some(now) = plans.get(name) else { continue };
        if options.reset.contains_query(customer, name) {
            continue;
        }
        let change = change(recorded, now);
        if change == Change::None {
            continue;
        }
        let text = engine.plan_text(name);
        let before = saved.and_then(|saved| before(saved, name));
        match change {
            Change::Closing if last.clean => {
                tracing::info!(
                    customer,
                    query = name,
                    "its closing plan has changed; what is kept stays"
                );
            }
            _ if last.clean && before.is_some_and(|before| only_adds(name, before, &text)) => {
                tracing::info!(customer, plan = name, "it has more columns from here on");
            }
            _ => return Err(refusal(customer, name, last.clean, before.zip(Some(&text)))),
        }
        changed = true;
    }
    Ok(changed)
}

/// The text of a plan in the manifest of a snapshot.
fn before<'a>(saved: &'a SnapshotManifest, name: &str) -> Option<&'a str> {
    match name.strip_prefix("stream:") {
        Some(stream) => saved.streams.get(stream)?.plan.as_deref(),
        None => saved.queries.get(name)?.plan.as_deref(),
    }
}

/// Whether a stream has all the columns that it had, and more.
fn only_adds(name: &str, before: &str, now: &str) -> bool {
    let mut now = now.lines();
    name.starts_with("stream:") && before.lines().all(|was| now.any(|is| is == was))
}

/// What a fingerprint is of, in words.
pub fn subject(name: &str) -> String {
    match name.strip_prefix("stream:") {
        Some(stream) => format!("stream '{stream}'"),
        None => format!("query '{name}'"),
    }
}

fn refusal(customer: &str, name: &str, clean: bool, texts: Option<(&str, &String)>) -> Error {
    let what = subject(name);
    let message = format!("the {what} of {customer} has changed since its state was kept");
    let mut detail = texts.and_then(|(before, now)| first_difference(before, now));
    let hint = if !clean {
        let unclean = "the last run did not stop cleanly, so recorded epochs must run again with \
                       the plan that they had";
        detail = Some(detail.map_or_else(|| unclean.into(), |told| format!("{told}; {unclean}")));
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

/// The first line that is no more, and the first that is new.
fn first_difference(before: &str, now: &str) -> Option<String> {
    let without = |text: &str, other: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find(|line| !other.lines().any(|o| o.trim() == *line)).map(str::to_owned)
    };
    match (without(before, now), without(now, before)) {
        (Some(was), Some(is)) => Some(format!("its plan had '{was}' and has '{is}'")),
        (Some(was), None) => Some(format!("its plan had '{was}'")),
        (None, Some(is)) => Some(format!("its plan has '{is}', which is new")),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_closing_plan_keeps_the_state() {
        assert_eq!(change("a+k", "a+k"), Change::None);
        assert_eq!(change("a+k", "b+k"), Change::Closing);
        assert_eq!(change("a+k", "b+l"), Change::State);
        // Logs of before fingerprints had two parts.
        assert_eq!(change("a", "a+k"), Change::None);
        assert_eq!(change("a", "b+k"), Change::State);
    }

    #[test]
    fn a_stream_may_get_columns() {
        let before = "a Int64\nb Utf8\nWatermark";
        assert!(only_adds("stream:s", before, "a Int64\nb Utf8\nc Utf8\nWatermark"));
        assert!(only_adds("stream:s", before, "a Int64\nc Utf8\nb Utf8\nWatermark"));
        assert!(!only_adds("stream:s", before, "a Int32\nb Utf8\nc Utf8\nWatermark"));
        assert!(!only_adds("stream:s", before, "a Int64\nWatermark"));
        assert!(!only_adds("q", before, before));
    }

    #[test]
    fn the_line_that_differs_is_told() {
        let (before, now) = ("front\n  Filter: a\nkept", "front\n  Filter: b\nkept");
        let told = first_difference(before, now).unwrap();
        assert_eq!(told, "its plan had 'Filter: a' and has 'Filter: b'");
        assert_eq!(first_difference(before, before), None);
        assert_eq!(first_difference("a", "b\n a").unwrap(), "its plan has 'b', which is new");
    }
}
