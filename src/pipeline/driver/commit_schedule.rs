//! Decides when an epoch ends.

use std::time::{Duration, Instant};

/// The least time between commits; it is longer if committing takes more than half of it.
const COMMIT_INTERVAL: Duration = Duration::from_millis(25);
/// An epoch without output ends after this.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);

/// When epochs end.
pub struct CommitSchedule {
    /// The interval that the user set.
    fixed_interval: Option<Duration>,
    /// The moving average of the time that a commit takes.
    commit_time: Duration,
    last_end: Instant,
}

impl CommitSchedule {
    /// A schedule whose first epoch begins now. `fixed_interval`: the least time between commits,
    /// if the user set one.
    pub fn new(fixed_interval: Option<Duration>) -> Self {
        Self { fixed_interval, commit_time: Duration::ZERO, last_end: Instant::now() }
    }

    /// Records that an epoch ended now.
    pub fn epoch_ended(&mut self) {
        self.last_end = Instant::now();
    }

    /// Records how long a commit took.
    pub fn record_commit_time(&mut self, took: Duration) {
        self.commit_time = (self.commit_time * 3 + took) / 4;
    }

    /// Whether an epoch with or without output is due.
    pub fn is_due(&self, has_output: bool) -> bool {
        let since = self.last_end.elapsed();
        since >= QUIET_INTERVAL.max(self.interval()) || (has_output && since >= self.interval())
    }

    /// How long to wait for an event before the schedule is checked again.
    pub fn wait_time(&self, has_output: bool) -> Duration {
        let interval = if has_output { self.interval() } else { QUIET_INTERVAL };
        interval
            .saturating_sub(self.last_end.elapsed())
            .clamp(Duration::from_millis(1), Duration::from_millis(200))
    }

    fn interval(&self) -> Duration {
        self.fixed_interval.unwrap_or_else(|| COMMIT_INTERVAL.max(self.commit_time * 2))
    }
}
