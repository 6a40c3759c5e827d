//! A zone's offset from UTC, as microseconds, memoised per UTC day.
//!
//! Promises: [`Zone::first`] is the one way in which local times become window boundaries: the
//! first instant at which the zone's clock shows that time or a later one. So a local time that
//! comes twice means the first, and one that the clock skips means the instant of the skip.
//! Boundaries made from rising local times therefore never fall, and windows cut at them
//! partition time. Instants beyond chrono's calendar use the offset at its edge.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;

use crate::time::{DAY, Micros, SECOND, Window};

const DAY_SECONDS: i64 = DAY / SECOND;

/// Days whose offsets are remembered; a run of a year needs 366.
const MEMO_DAYS: usize = 4096;

/// The offsets of one UTC day: `before` until `change`, `after` from then on.
#[derive(Debug, Clone, Copy)]
struct DayOffsets {
    before: Micros,
    change: Micros,
    after: Micros,
}

/// A zone with its memo.
#[derive(Debug, Clone)]
pub(crate) struct Zone {
    tz: Tz,
    days: HashMap<i64, DayOffsets>,
    midnight: Window,
}

/// A stretch of time of one offset: at most one UTC day.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub from: Micros,
    pub until: Micros,
    pub offset: Micros,
}

impl Zone {
    /// Nothing is looked up yet.
    pub fn new(tz: Tz) -> Self {
        Self { tz, days: HashMap::new(), midnight: Window { start: 0, end: 0 } }
    }

    /// The zone's name and rules.
    pub fn tz(&self) -> Tz {
        self.tz
    }

    /// What the zone's clock shows at `t`, as microseconds since 1970-01-01T00:00:00 local.
    pub fn local(&mut self, t: Micros) -> i64 {
        t.saturating_add(self.segment(t).offset)
    }

    /// The stretch of one offset that holds `t`.
    pub fn segment(&mut self, t: Micros) -> Segment {
        let day = t.div_euclid(DAY);
        let [first, second] = self.segments(day);
        if t < first.until { first } else { second }
    }

    /// The first instant at which the local time is `local` or later.
    pub fn first(&mut self, local: i64) -> Micros {
        let (low, high) = around(local);
        for day in low..=high {
            for part in self.segments(day) {
                if part.from < part.until && part.until.saturating_add(part.offset) > local {
                    return part.from.max(local.saturating_sub(part.offset));
                }
            }
        }
        local
    }

    /// The instant after the last one at which the local time is before `local`.
    pub fn after_last(&mut self, local: i64) -> Micros {
        let (low, high) = around(local);
        for day in (low..=high).rev() {
            for part in self.segments(day).into_iter().rev() {
                if part.from < part.until && part.from.saturating_add(part.offset) < local {
                    return part.until.min(local.saturating_sub(part.offset));
                }
            }
        }
        local
    }

    /// The local day that holds `t`, from midnight to midnight.
    pub fn day(&mut self, t: Micros) -> Window {
        if t < self.midnight.start || t >= self.midnight.end {
            let mut day = self.local(t).div_euclid(DAY);
            while self.first(label(day + 1)) <= t && day < i64::MAX / DAY {
                day += 1;
            }
            while self.first(label(day)) > t && day > i64::MIN / DAY {
                day -= 1;
            }
            self.midnight =
                Window { start: self.first(label(day)), end: self.first(label(day + 1)) };
        }
        self.midnight
    }

    fn segments(&mut self, day: i64) -> [Segment; 2] {
        let DayOffsets { before, change, after } = match self.days.get(&day) {
            Some(known) => *known,
            None => self.look_up(day),
        };
        let (start, end) = (label(day), label(day + 1));
        let middle = change.clamp(start, end);
        [
            Segment { from: start, until: middle, offset: before },
            Segment { from: middle, until: end, offset: after },
        ]
    }

    /// Finds a change of offset within the day by bisection; there is never more than one.
    fn look_up(&mut self, day: i64) -> DayOffsets {
        let (mut low, mut high) = (day * DAY_SECONDS, (day + 1) * DAY_SECONDS);
        let (before, after) = (self.offset(low), self.offset(high));
        if before == after {
            high = i64::MAX;
        }
        while before != after && high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.offset(middle) == before { low = middle } else { high = middle }
        }
        let found = DayOffsets {
            before: before * SECOND,
            change: high.saturating_mul(SECOND),
            after: after * SECOND,
        };
        if self.days.len() >= MEMO_DAYS {
            self.days.clear();
        }
        self.days.insert(day, found);
        found
    }

    /// Seconds east of UTC at `second`.
    fn offset(&self, second: i64) -> i64 {
        let utc = naive(second.saturating_mul(SECOND));
        i64::from(self.tz.offset_from_utc_datetime(&utc).fix().local_minus_utc())
    }
}

/// Microseconds as a calendar time, kept within chrono's years.
pub(crate) fn naive(micros: i64) -> NaiveDateTime {
    let far =
        if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC }.naive_utc();
    DateTime::from_timestamp_micros(micros).map_or(far, |at| at.naive_utc())
}

/// The UTC days within which an instant with local time `local` must lie.
fn around(local: i64) -> (i64, i64) {
    (local.saturating_sub(DAY).div_euclid(DAY), local.saturating_add(DAY).div_euclid(DAY))
}

fn label(day: i64) -> i64 {
    day.saturating_mul(DAY)
}
