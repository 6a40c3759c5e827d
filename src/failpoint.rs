//! Named points at which a test kills the process, compiled in with the feature `failpoints`
//! only.
//!
//! `MILLSTREAM_CRASH=epoch.commit:3` sends SIGKILL to the process when it passes that point for
//! the third time: no destructor runs, nothing is flushed. A point stands before and after every
//! step that something else could see half done; [`POINTS`] names them all, and the tests of
//! reliability (tests/it/crash_points.rs) kill at each.

/// Every point, in the order in which a run passes them.
pub const POINTS: &[&str] = &[
    // A start.
    "recovery.look",
    "recovery.load",
    "recovery.loaded",
    "recovery.fence",
    "recovery.fenced",
    "recovery.log.read",
    "recovery.restored",
    "recovery.rerun",
    "recovery.rerun.absorbed",
    "recovery.rerun.ended",
    "recovery.rerun.handed",
    "recovery.done",
    // An epoch.
    "epoch.end",
    "epoch.ended",
    "epoch.begin",
    "epoch.begun",
    "epoch.result.sent",
    "epoch.dead_letter.sent",
    "epoch.late.sent",
    "epoch.progress.sent",
    "epoch.delivered",
    "epoch.offsets",
    "epoch.offsets.sent",
    "epoch.commit",
    "epoch.committed",
    "epoch.history",
    "epoch.history.handed",
    // A snapshot.
    "snapshot.take",
    "snapshot.taken",
    "snapshot.file",
    "snapshot.file.written",
    "snapshot.manifest",
    "snapshot.manifest.written",
    "snapshot.verified",
    "snapshot.ready",
    "snapshot.name",
    "snapshot.named",
    "snapshot.delete",
    "snapshot.delete.manifest",
    "snapshot.deleted",
    // The log is cut.
    "log.cut",
    "log.cut.done",
    // A commit to a history table.
    "delta.file",
    "delta.file.written",
    "delta.files.written",
    "delta.commit",
    "delta.committed",
    // Small files are merged and old ones deleted.
    "compaction.begin",
    "compaction.commit",
    "compaction.committed",
    "vacuum.begin",
    "vacuum.chosen",
    "vacuum.done",
];

/// Does nothing.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_point: &str) {}

/// A point in the code: here the process dies if it was told to.
#[cfg(feature = "failpoints")]
pub fn reach(point: &str) {
    fail::fail_point!(point);
}

/// A record was handed to the producer.
#[inline(always)]
pub fn reach_record_sent(topic: &str) {
    if !cfg!(feature = "failpoints") {
        return;
    }
    if topic.ends_with(".dead_letters") {
        reach("epoch.dead_letter.sent");
    } else if topic.ends_with("_late") {
        reach("epoch.late.sent");
    } else {
        reach("epoch.result.sent");
    }
}

/// Does nothing.
#[cfg(not(feature = "failpoints"))]
pub fn arm_from_env() -> crate::Result<()> {
    Ok(())
}

/// Arms the point that `MILLSTREAM_CRASH` names (`name` or `name:pass`).
///
/// # Errors
/// There is no such point.
#[cfg(feature = "failpoints")]
pub fn arm_from_env() -> crate::Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering};

    let Ok(wanted) = std::env::var("MILLSTREAM_CRASH") else { return Ok(()) };
    let (name, pass) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let refused = |why: String| crate::Error::config(format!("MILLSTREAM_CRASH={wanted}: {why}"));
    let pass: u64 = pass.parse().map_err(|e| refused(format!("{pass} is no number: {e}")))?;
    if !POINTS.contains(&name) {
        return Err(refused("there is no such point (src/failpoint.rs names them)".to_owned()));
    }
    let passes = AtomicU64::new(0);
    let killing = move || {
        if passes.fetch_add(1, Ordering::Relaxed) + 1 == pass {
            kill();
        }
    };
    fail::cfg_callback(name, killing).map_err(refused)
}

#[cfg(feature = "failpoints")]
fn kill() {
    // SAFETY: raising a signal touches no memory of ours.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Names that the source passes to `reach`.
    fn reached(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                reached(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let calls = text.split("reach(\"").skip(1);
                found.extend(calls.filter_map(|call| Some(call.split_once("\")")?.0.to_owned())));
            }
        }
    }

    #[test]
    fn the_list_and_the_code_name_the_same_points() {
        let mut found = BTreeSet::new();
        reached(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let listed: BTreeSet<String> = POINTS.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(found, listed);
        assert_eq!(listed.len(), POINTS.len(), "a name stands twice");
    }
}
