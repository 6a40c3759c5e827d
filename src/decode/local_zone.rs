//! Converts local times to instants, in a few nanoseconds for dates whose offset is cached.
//!
//! A local time that occurs twice is the first occurrence. A local time that the clock skips moves
//! forward by the length of the gap.

use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, LocalResult, Offset, TimeZone};
use chrono_tz::{GapInfo, Tz};

use crate::time::{DAY, Micros, SECOND};

/// The number of dates that a [`LocalZone`] caches. Up to this many consecutive dates never evict
/// each other.
const CACHED_DATES: usize = 64;

/// The content of an empty cache entry; no `Micros` value has this date.
const NO_DATE: u64 = (i32::MIN as u32 as u64) << 32;

/// A time zone with a cache of the offsets of recently used dates.
///
/// Each cache entry holds a date (days since 1970, upper 32 bits) and the only offset from UTC of
/// that date (seconds, lower 32 bits). Dates on which the offset changes are not cached. They are
/// recognised by different offsets at their two midnights, because no zone of chrono-tz changes its
/// offset twice within 167 hours (verified for every hour of 1897 to 2042).
#[derive(Debug)]
pub(super) struct LocalZone {
    zone: Tz,
    dates: Box<[AtomicU64; CACHED_DATES]>,
}

impl LocalZone {
    /// Creates a zone with an empty cache.
    pub fn new(zone: Tz) -> Self {
        Self { zone, dates: Box::new([const { AtomicU64::new(NO_DATE) }; CACHED_DATES]) }
    }

    /// Returns the instant of the local time `local` (microseconds since 1970-01-01 00:00 local
    /// time).
    #[inline]
    pub fn instant(&self, local: Micros) -> Micros {
        let date = local.div_euclid(DAY);
        let entry = &self.dates[date.rem_euclid(CACHED_DATES as i64) as usize];
        let cached = entry.load(Ordering::Relaxed);
        if (cached >> 32) as u32 as i32 as i64 == date {
            return local - i64::from(cached as u32 as i32) * SECOND;
        }
        self.resolve_uncached(date, local, entry)
    }

    /// Converts `local` without the cache, and caches the offset if it holds all through `date`.
    #[cold]
    fn resolve_uncached(&self, date: i64, local: Micros, entry: &AtomicU64) -> Micros {
        let parts = [date * DAY, date * DAY + DAY / 2, (date + 1) * DAY];
        let [begin, noon, end] = parts.map(|local| self.offset(local));
        if begin.1
            && begin == noon
            && begin == end
            && let Ok(date) = i32::try_from(date)
        {
            let cached = u64::from(date as u32) << 32 | u64::from(begin.0 as u32);
            entry.store(cached, Ordering::Relaxed);
        }
        local - i64::from(self.offset(local).0) * SECOND
    }

    /// Returns the offset from UTC (seconds) of the local time, and whether it is unambiguous.
    fn offset(&self, local: Micros) -> (i32, bool) {
        let Some(time) = DateTime::from_timestamp(local.div_euclid(SECOND), 0) else {
            return (0, false);
        };
        let local = time.naive_utc();
        match self.zone.offset_from_local_datetime(&local) {
            LocalResult::Single(offset) => (offset.fix().local_minus_utc(), true),
            LocalResult::Ambiguous(first, _) => (first.fix().local_minus_utc(), false),
            LocalResult::None => {
                let before = GapInfo::new(&local, &self.zone).and_then(|gap| gap.begin);
                (before.map_or(0, |(_, offset)| offset.fix().local_minus_utc()), false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::NaiveDateTime;

    fn micros(text: &str) -> Micros {
        let time = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").unwrap();
        time.and_utc().timestamp_micros()
    }

    #[test]
    fn ambiguous_times_are_the_first_and_skipped_times_move_forward() {
        let cases = [
            // Back from +03:00 to +02:00 at 04:00.
            (Tz::Europe__Helsinki, "2019-10-27 02:59:59", "2019-10-26 23:59:59"),
            (Tz::Europe__Helsinki, "2019-10-27 03:00:00", "2019-10-27 00:00:00"),
            (Tz::Europe__Helsinki, "2019-10-27 03:59:59", "2019-10-27 00:59:59"),
            (Tz::Europe__Helsinki, "2019-10-27 04:00:00", "2019-10-27 02:00:00"),
            // Forward from +02:00 to +03:00 at 03:00: 03:30 becomes 04:30.
            (Tz::Europe__Helsinki, "2019-03-31 02:59:59", "2019-03-31 00:59:59"),
            (Tz::Europe__Helsinki, "2019-03-31 03:30:00", "2019-03-31 01:30:00"),
            (Tz::Europe__Helsinki, "2019-03-31 04:30:00", "2019-03-31 01:30:00"),
            // Back from +11:00 to +10:30 at 02:00.
            (Tz::Australia__Lord_Howe, "2019-04-07 01:29:59", "2019-04-06 14:29:59"),
            (Tz::Australia__Lord_Howe, "2019-04-07 01:45:00", "2019-04-06 14:45:00"),
            (Tz::Australia__Lord_Howe, "2019-04-07 02:00:00", "2019-04-06 15:30:00"),
            // Forward from +10:30 to +11:00 at 02:00: 02:15 becomes 02:45.
            (Tz::Australia__Lord_Howe, "2019-10-06 02:15:00", "2019-10-05 15:45:00"),
            (Tz::Australia__Lord_Howe, "2019-10-06 02:45:00", "2019-10-05 15:45:00"),
            // +05:45, and one change at midnight, forward from +05:30.
            (Tz::Asia__Kathmandu, "2019-10-30 14:06:35", "2019-10-30 08:21:35"),
            (Tz::Asia__Kathmandu, "1986-01-01 00:05:00", "1985-12-31 18:35:00"),
            (Tz::Asia__Kathmandu, "1985-12-31 23:59:59", "1985-12-31 18:29:59"),
            (Tz::UTC, "0000-01-01 00:00:00", "0000-01-01 00:00:00"),
            (Tz::UTC, "9999-12-31 23:59:59", "9999-12-31 23:59:59"),
        ];
        for (zone, local, utc) in cases {
            let zone = LocalZone::new(zone);
            for round in ["uncached", "cached"] {
                assert_eq!(zone.instant(micros(local)), micros(utc), "{zone:?} {local} {round}");
            }
        }
    }

    /// Compares every quarter of an hour from 1975 to 2029 with chrono.
    #[test]
    fn cached_offsets_match_chrono() {
        for zone in [Tz::Europe__Helsinki, Tz::Australia__Lord_Howe, Tz::America__St_Johns] {
            let local_zone = LocalZone::new(zone);
            let (mut local, end) = (micros("1975-01-01 00:00:00"), micros("2030-01-01 00:00:00"));
            while local < end {
                let naive = DateTime::from_timestamp_micros(local).unwrap().naive_utc();
                let instant = local_zone.instant(local);
                match zone.from_local_datetime(&naive).earliest() {
                    Some(expected) => assert_eq!(instant, expected.timestamp_micros(), "{naive}"),
                    None => {
                        let shown = DateTime::from_timestamp_micros(instant).unwrap();
                        assert!(shown.with_timezone(&zone).naive_local() > naive, "{naive}");
                    }
                }
                local += DAY / 96;
            }
        }
    }
}
