//! Parses instants in options, such as `start = '2026-11-01 06:00'`.

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, TimeZone};
use chrono_tz::Tz;

use crate::time::Micros;

/// Parses `2026-11-01` or `2026-11-01 06:00[:00[.5]]` as local time of `zone`, or RFC 3339 with an
/// offset; returns microseconds since the Unix epoch. A local time that occurs twice is the first
/// occurrence; one that the clock skips moves forward by the length of the gap.
pub fn parse_instant(text: &str, zone: Tz) -> Option<Micros> {
    let text = text.trim();
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Some(instant.timestamp_micros());
    }
    let plain = text.replacen('T', " ", 1);
    let local = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(&plain, format).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))?;
    // A gap usually lasts an hour; it lasts a day if the zone crosses the international date line.
    (0..=25).map(TimeDelta::hours).find_map(|back| {
        let instant = zone.from_local_datetime(&local.checked_sub_signed(back)?).earliest()?;
        Some((instant + back).timestamp_micros())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_times_at_clock_changes() {
        let helsinki = chrono_tz::Europe::Helsinki;
        let at = |text: &str| parse_instant(text, helsinki).unwrap();
        assert_eq!(at("2026-11-01 06:00:00"), at("2026-11-01T04:00:00Z"));
        assert_eq!(at("2026-11-01T06:00"), at("2026-11-01T06:00:00+02:00"));
        assert_eq!(
            at("2026-10-25 03:30"),
            at("2026-10-25T00:30:00Z"),
            "of the hour that occurs twice, the first"
        );
        assert_eq!(
            at("2026-03-29 03:30"),
            at("2026-03-29T01:30:00Z"),
            "in the skipped hour, 04:30"
        );
        assert_eq!(parse_instant("yesterday", helsinki), None);
    }
}
