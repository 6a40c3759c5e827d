//! Named fail points at which a test kills the process; compiled only with the feature
//! `failpoints`.
//!
//! `MILLSTREAM_CRASH=epoch.commit:3` sends SIGKILL to the process when it reaches that point for
//! the third time: no destructor runs and nothing is flushed. There is a point before and after
//! every step whose partial effect another process could observe. [`POINTS`] lists all of them, and
//! the reliability tests (tests/it/crash_points.rs) kill the process at each.

/// All fail points, in the order in which a run reaches them. The names are stable: tests and
/// scripts use them.
pub const POINTS: &[&str] = &[
    // Recovery.
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
    // Truncation of the progress log.
    "log.cut",
    "log.cut.done",
    // A commit to a history table.
    "delta.file",
    "delta.file.written",
    "delta.files.written",
    "delta.commit",
    "delta.committed",
    // Compaction of small files and deletion of old ones.
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

/// Kills the process here if `MILLSTREAM_CRASH` names this point and its pass.
#[cfg(feature = "failpoints")]
pub fn reach(point: &str) {
    fail::fail_point!(point);
}

/// Reaches the fail point of a record that was passed to the producer, by the kind of its topic.
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

/// Arms the fail point that the environment variable `MILLSTREAM_CRASH` names (`name` or
/// `name:pass`).
///
/// # Errors
/// The value names an unknown fail point, or the pass is not a number.
#[cfg(feature = "failpoints")]
pub fn arm_from_env() -> crate::Result<()> {
    use std::sync::atomic::{AtomicU64, Ordering};

    let Ok(wanted) = std::env::var("MILLSTREAM_CRASH") else { return Ok(()) };
    let (name, pass) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    let invalid =
        |reason: String| crate::Error::config(format!("MILLSTREAM_CRASH={wanted}: {reason}"));
    let pass: u64 =
        pass.parse().map_err(|e| invalid(format!("cannot parse '{pass}' as a number: {e}")))?;
    if !POINTS.contains(&name) {
        return Err(invalid("unknown fail point (src/failpoint.rs lists them)".to_owned()));
    }
    let passes = AtomicU64::new(0);
    let callback = move || {
        if passes.fetch_add(1, Ordering::Relaxed) + 1 == pass {
            kill();
        }
    };
    fail::cfg_callback(name, callback).map_err(invalid)
}

#[cfg(feature = "failpoints")]
fn kill() {
    // SAFETY: sending a signal does not access memory of this process.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Collects the names that the source files pass to `reach`.
    fn collect_reached(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect_reached(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let calls = text.split("reach(\"").skip(1);
                found.extend(calls.filter_map(|call| Some(call.split_once("\")")?.0.to_owned())));
            }
        }
    }

    #[test]
    fn points_lists_every_fail_point_of_the_code() {
        let mut found = BTreeSet::new();
        collect_reached(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let listed: BTreeSet<String> = POINTS.iter().map(|&name| name.to_owned()).collect();
        assert_eq!(found, listed);
        assert_eq!(listed.len(), POINTS.len(), "a name is listed twice");
    }
}
