//! The offset of a time zone from UTC, in microseconds, cached per UTC day.
//!
//! Promises: only [`ZoneCalendar::first`] turns local times into window boundaries. It returns the
//! first instant at which the local time is that time or later. So a local time that occurs twice
//! means the first occurrence, and one that the clock skips means the instant of the skip.
//! Boundaries made from ascending local times are therefore ascending, and the windows between them
//! partition time. Instants beyond chrono's calendar use the offset at its edge.

use std::collections::HashMap;

use chrono::{DateTime, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;

use crate::time::{DAY, Micros, SECOND, Window};

const DAY_SECONDS: i64 = DAY / SECOND;

/// The number of days whose offsets are cached; rows of one year need 366.
const CACHED_DAYS: usize = 4096;

/// The offsets of one UTC day: `before` until `change`, `after` from then on.
#[derive(Debug, Clone, Copy)]
struct DayOffsets {
    before: Micros,
    change: Micros,
    after: Micros,
}

/// A time zone with its cache.
#[derive(Debug, Clone)]
pub(crate) struct ZoneCalendar {
    tz: Tz,
    days: HashMap<i64, DayOffsets>,
    /// The local day that [`ZoneCalendar::day`] returned last.
    last_day: Window,
}

/// A span of time with one offset, of at most one UTC day.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OffsetSpan {
    pub from: Micros,
    pub until: Micros,
    pub offset: Micros,
}

impl ZoneCalendar {
    /// Creates the calendar of a zone with an empty cache.
    pub fn new(tz: Tz) -> Self {
        Self { tz, days: HashMap::new(), last_day: Window { start: 0, end: 0 } }
    }

    /// The time zone.
    pub fn tz(&self) -> Tz {
        self.tz
    }

    /// Returns the local time at `t`, in microseconds since 1970-01-01T00:00:00 local time.
    pub fn local(&mut self, t: Micros) -> i64 {
        t.saturating_add(self.offset_span(t).offset)
    }

    /// Returns the span of one offset that contains `t`.
    pub fn offset_span(&mut self, t: Micros) -> OffsetSpan {
        let day = t.div_euclid(DAY);
        let [first, second] = self.offset_spans(day);
        if t < first.until { first } else { second }
    }

    /// Returns the first instant at which the local time is `local` or later.
    pub fn first(&mut self, local: i64) -> Micros {
        let (low, high) = utc_days_around(local);
        for day in low..=high {
            for span in self.offset_spans(day) {
                if span.from < span.until && span.until.saturating_add(span.offset) > local {
                    return span.from.max(local.saturating_sub(span.offset));
                }
            }
        }
        local
    }

    /// Returns the instant after the last one at which the local time is before `local`.
    pub fn after_last(&mut self, local: i64) -> Micros {
        let (low, high) = utc_days_around(local);
        for day in (low..=high).rev() {
            for span in self.offset_spans(day).into_iter().rev() {
                if span.from < span.until && span.from.saturating_add(span.offset) < local {
                    return span.until.min(local.saturating_sub(span.offset));
                }
            }
        }
        local
    }

    /// Returns the local day that contains `t`, from midnight to midnight.
    pub fn day(&mut self, t: Micros) -> Window {
        if t < self.last_day.start || t >= self.last_day.end {
            let mut day = self.local(t).div_euclid(DAY);
            while self.first(day_start(day + 1)) <= t && day < i64::MAX / DAY {
                day += 1;
            }
            while self.first(day_start(day)) > t && day > i64::MIN / DAY {
                day -= 1;
            }
            self.last_day =
                Window { start: self.first(day_start(day)), end: self.first(day_start(day + 1)) };
        }
        self.last_day
    }

    /// The two spans of a UTC day; one of them is empty if the offset does not change.
    fn offset_spans(&mut self, day: i64) -> [OffsetSpan; 2] {
        let DayOffsets { before, change, after } = match self.days.get(&day) {
            Some(known) => *known,
            None => self.find_offsets(day),
        };
        let (start, end) = (day_start(day), day_start(day + 1));
        let middle = change.clamp(start, end);
        [
            OffsetSpan { from: start, until: middle, offset: before },
            OffsetSpan { from: middle, until: end, offset: after },
        ]
    }

    /// Finds the change of offset within a UTC day by bisection, and caches the result. A day has
    /// at most one change.
    fn find_offsets(&mut self, day: i64) -> DayOffsets {
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
        if self.days.len() >= CACHED_DAYS {
            self.days.clear();
        }
        self.days.insert(day, found);
        found
    }

    /// The offset in seconds east of UTC at `second`.
    fn offset(&self, second: i64) -> i64 {
        let utc = naive(second.saturating_mul(SECOND));
        i64::from(self.tz.offset_from_utc_datetime(&utc).fix().local_minus_utc())
    }
}

/// Converts microseconds to a calendar time, limited to chrono's years.
pub(crate) fn naive(micros: i64) -> NaiveDateTime {
    let limit =
        if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC }.naive_utc();
    DateTime::from_timestamp_micros(micros).map_or(limit, |at| at.naive_utc())
}

/// Returns the first and the last UTC day that an instant with the local time `local` can be in.
fn utc_days_around(local: i64) -> (i64, i64) {
    (local.saturating_sub(DAY).div_euclid(DAY), local.saturating_add(DAY).div_euclid(DAY))
}

/// The start of a day, in microseconds.
fn day_start(day: i64) -> i64 {
    day.saturating_mul(DAY)
}
