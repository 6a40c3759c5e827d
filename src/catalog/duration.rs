//! Parses durations and sizes: a number and a unit, such as '25 ms', '30 seconds' or '4 GB'.
//!
//! Every unit has a fixed length. A day has 24 hours here; calendar days exist in windows only.

use crate::error::{Error, Result};
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND};

const DURATION_HINT: &str =
    "write a number and a unit: '25 ms', '30 seconds', '10 minutes', '2 h', '1 day'";
const SIZE_HINT: &str = "write a number and a unit: '512 MB', '4 GB', '256 MiB'";

/// Parses a duration such as `30 seconds`, `25ms` or `1.5 h`; returns microseconds, never negative.
///
/// # Errors
/// There is no number, no unit or an unknown unit, or the value is not a whole number of
/// microseconds below 292,000 years.
pub fn parse(text: &str) -> Result<Micros> {
    let (number, unit) = split_unit(text);
    if number.is_empty() {
        return Err(
            Error::config(format!("cannot parse '{text}' as a duration")).hint(DURATION_HINT)
        );
    }
    if unit.is_empty() {
        return Err(Error::config(format!("the duration '{text}' has no unit")).hint(DURATION_HINT));
    }
    let length = match unit.to_lowercase().as_str() {
        "us" | "µs" | "microsecond" | "microseconds" => 1,
        "ms" | "millisecond" | "milliseconds" => 1_000,
        "s" | "sec" | "secs" | "second" | "seconds" => SECOND,
        "m" | "min" | "mins" | "minute" | "minutes" => MINUTE,
        "h" | "hour" | "hours" => HOUR,
        "d" | "day" | "days" => DAY,
        "w" | "week" | "weeks" => 7 * DAY,
        "month" | "months" | "quarter" | "quarters" | "year" | "years" => {
            return Err(Error::config(format!("a duration in {unit} has no fixed length"))
                .hint("use days, e.g. '30 days'"));
        }
        _ => {
            return Err(
                Error::config(format!("unknown unit '{unit}' in '{text}'")).hint(DURATION_HINT)
            );
        }
    };
    scale(number, length).ok_or_else(|| {
        Error::config(format!("'{text}' is not a whole number of µs, or is out of range"))
            .hint(DURATION_HINT)
    })
}

/// Parses a size such as `512 MB` (powers of 1000) or `4 GiB` (powers of 1024); returns bytes.
///
/// # Errors
/// As for [`parse`].
pub fn parse_bytes(text: &str) -> Result<u64> {
    let (number, unit) = split_unit(text);
    let length = match unit.to_lowercase().as_str() {
        "b" | "byte" | "bytes" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        "" => return Err(Error::config(format!("the size '{text}' has no unit")).hint(SIZE_HINT)),
        _ => {
            return Err(Error::config(format!("unknown unit '{unit}' in '{text}'")).hint(SIZE_HINT));
        }
    };
    (scale(number, length).and_then(|bytes| u64::try_from(bytes).ok()))
        .ok_or_else(|| Error::config(format!("cannot parse '{text}' as a size")).hint(SIZE_HINT))
}

/// Splits "30 seconds" into "30" and "seconds".
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end =
        text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

/// `number` (digits, optionally a fraction) times `length`; `None` if that is not a whole number or
/// out of range.
fn scale(number: &str, length: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = whole.replace('_', "").parse::<i64>().ok()?.checked_mul(length)?;
    let places = u32::try_from(fraction.len()).ok()?;
    let part = i128::from(fraction.parse::<i64>().ok()?) * i128::from(length);
    let divisor = 10_i128.checked_pow(places)?;
    if part % divisor != 0 {
        return None;
    }
    whole.checked_add(i64::try_from(part / divisor).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("30 seconds", 30 * SECOND),
            ("25 ms", 25_000),
            ("25ms", 25_000),
            (" 10 Minutes ", 10 * MINUTE),
            ("2 h", 2 * HOUR),
            ("1.5 h", 90 * MINUTE),
            ("0 s", 0),
            ("1 week", 7 * DAY),
            ("7 us", 7),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn invalid_durations() {
        for (text, message) in [
            ("30", "the duration '30' has no unit"),
            ("", "cannot parse '' as a duration"),
            ("-3 s", "cannot parse '-3 s' as a duration"),
            ("off", "cannot parse 'off' as a duration"),
            ("2 moons", "unknown unit 'moons' in '2 moons'"),
            ("1 month", "a duration in month has no fixed length"),
            ("0.5 us", "'0.5 us' is not a whole number of µs, or is out of range"),
            ("1.2.3 s", "'1.2.3 s' is not a whole number of µs, or is out of range"),
            (
                "999999999999 weeks",
                "'999999999999 weeks' is not a whole number of µs, or is out of range",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().message, message, "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("512 MB").unwrap(), 512_000_000);
        assert_eq!(parse_bytes("4GiB").unwrap(), 4 << 30);
        assert_eq!(parse_bytes("1.5 GB").unwrap(), 1_500_000_000);
        assert_eq!(parse_bytes("12").unwrap_err().message, "the size '12' has no unit");
        assert_eq!(parse_bytes("MB").unwrap_err().message, "cannot parse 'MB' as a size");
        assert_eq!(parse_bytes("3 MBs").unwrap_err().message, "unknown unit 'MBs' in '3 MBs'");
    }
}
