//! The time of epochs: the wall clock, which never goes back here.

use crate::time::{Clock, Micros, SECOND};

/// The time of epochs. When the wall clock is set back, the time stands still until the clock has
/// caught up: otherwise present events would be rejected as too far in the future.
pub struct EpochClock {
    clock: Clock,
    /// The latest time that the wall clock has shown.
    latest: Micros,
    /// Whether the clock was set back and a warning was logged.
    is_set_back: bool,
}

impl EpochClock {
    /// A clock that starts at the current time.
    pub fn new(clock: Clock) -> Self {
        Self { latest: clock.now(), clock, is_set_back: false }
    }

    /// The time for an epoch. Logs a warning if the clock was set back.
    pub fn now(&mut self, customer: &str) -> Micros {
        let now = self.clock.now();
        let back = self.latest.saturating_sub(now);
        if back > SECOND && !std::mem::replace(&mut self.is_set_back, true) {
            let seconds = back / SECOND;
            tracing::warn!(
                customer,
                "the clock was set back by {seconds} s: time stands still until it has caught up"
            );
        }
        self.is_set_back &= back > 0;
        self.latest = self.latest.max(now);
        self.latest
    }
}
