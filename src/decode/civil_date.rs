//! Converts dates of the years 0 to 9999 to days since 1970-01-01.

/// Returns the days since 1970-01-01 of a date in the proleptic Gregorian calendar, or `None` if the
/// date does not exist or is outside the years 0 to 9999. (Howard Hinnant's `days_from_civil`.)
#[inline]
pub(super) fn days(year: i32, month: u32, day: u32) -> Option<i64> {
    const LENGTHS: [u8; 13] = [0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let year = u32::try_from(year).ok().filter(|year| *year <= 9999)?;
    let length = u32::from(*LENGTHS.get(month as usize)?);
    let leap_day = u32::from(month == 2 && is_leap(year));
    if day == 0 || day > length + leap_day {
        return None;
    }
    // A year begins in March, so that the leap day is its last day. 400 years are added, so that no
    // intermediate value is negative.
    let year = year + 400 - u32::from(month <= 2);
    let month = if month <= 2 { month + 9 } else { month - 3 };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year;
    Some(i64::from(days) - (719_468 + 146_097))
}

/// Returns the days since 1970-01-01 of the day `day_of_year` (from 1) of a year.
pub(super) fn days_by_ordinal(year: i32, day_of_year: u32) -> Option<i64> {
    let first = days(year, 1, 1)?;
    let length = 365 + u32::from(u32::try_from(year).is_ok_and(is_leap));
    (1..=length).contains(&day_of_year).then(|| first + i64::from(day_of_year) - 1)
}

/// Returns the days since 1970-01-01 of an ISO date such as `2019-10-30`.
pub(super) fn parse(text: &[u8]) -> Option<i32> {
    let [a, b, c, d, b'-', e, f, b'-', g, h] = *text else { return None };
    let year = two(a, b)? * 100 + two(c, d)?;
    i32::try_from(days(year as i32, two(e, f)?, two(g, h)?)?).ok()
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// The value of a digit.
#[inline]
pub(super) fn digit(byte: u8) -> Option<u32> {
    let value = byte.wrapping_sub(b'0');
    (value < 10).then_some(u32::from(value))
}

/// The value of two digits.
#[inline]
pub(super) fn two(tens: u8, ones: u8) -> Option<u32> {
    Some(digit(tens)? * 10 + digit(ones)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{Datelike, NaiveDate};

    #[test]
    fn days_match_chrono_for_every_date() {
        for year in -1..=10_000 {
            for (month, day) in (0..=13).flat_map(|month| (0..=32).map(move |day| (month, day))) {
                let date = NaiveDate::from_ymd_opt(year, month, day);
                let date = date.filter(|_| (0..=9999).contains(&year));
                let expected = date.map(|date| i64::from(date.num_days_from_ce()) - 719_163);
                assert_eq!(days(year, month, day), expected, "{year}-{month}-{day}");
            }
            for day in [0, 1, 365, 366, 367] {
                let date = NaiveDate::from_yo_opt(year, day);
                let date = date.filter(|_| (0..=9999).contains(&year));
                let expected = date.map(|date| i64::from(date.num_days_from_ce()) - 719_163);
                assert_eq!(days_by_ordinal(year, day), expected, "{year}, day {day}");
            }
        }
    }

    #[test]
    fn only_iso_dates_are_parsed() {
        assert_eq!(parse(b"1970-01-02"), Some(1));
        assert_eq!(parse(b"0000-01-01"), Some(-719_528));
        for text in ["2019-1-03", "2019-02-29", "2019-10-30 ", "20191030", "+2019-1-1", ""] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
