//! Parses command-line amounts: `5%`, `100/s`, `30s`, `60x`.
//!
//! A number needs a unit, so that a fraction is not confused with a percentage or minutes with
//! seconds. Every error shows the input and the expected form.

use crate::error::{Error, Result};
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND};

/// Parses a share of all events, `5%` or `0.1%`; returns a fraction from 0 to 1.
pub fn share(text: &str) -> Result<f64> {
    let invalid = || {
        Error::config(format!("cannot parse '{text}' as a percentage"))
            .hint("write a percentage from 0% to 100%, as in 0.1%")
    };
    let number = text.trim().strip_suffix('%').ok_or_else(invalid)?;
    let percent: f64 = number.trim().parse().map_err(|_| invalid())?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(invalid());
    }
    Ok(percent / 100.0)
}

/// Parses a time span, `500ms`, `30s`, `5m`, `2h` or `7d`; returns microseconds, never negative.
pub fn span(text: &str) -> Result<Micros> {
    let invalid = || {
        Error::config(format!("cannot parse '{text}' as a time span"))
            .hint("write a number and ms, s, m, h or d, as in 30s")
    };
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
    let (number, unit) = text.split_at(digits);
    let unit_us = match unit.trim() {
        "ms" => 1_000,
        "s" => SECOND,
        "m" | "min" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        _ => return Err(invalid()),
    };
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let micros = number * unit_us as f64;
    if !micros.is_finite() || micros > (1_u64 << 53) as f64 {
        return Err(invalid());
    }
    Ok(micros.round() as Micros)
}

/// Parses a rate, `100/s` or `6000/m`; returns events per second of real time.
pub fn rate(text: &str) -> Result<f64> {
    let invalid = || {
        Error::config(format!("cannot parse '{text}' as a rate"))
            .hint("write events per second, as in 100/s")
    };
    let (number, unit) = text.split_once('/').ok_or_else(invalid)?;
    let number: f64 = number.trim().parse().map_err(|_| invalid())?;
    let per_second = match unit.trim() {
        "s" | "sec" => number,
        "m" | "min" => number / 60.0,
        "h" => number / 3600.0,
        _ => return Err(invalid()),
    };
    if !(per_second.is_finite() && per_second > 0.0 && per_second <= 1e7) {
        return Err(invalid());
    }
    Ok(per_second)
}

/// Parses a speed, `60x` or `60`; returns a multiple of real time.
pub fn speed(text: &str) -> Result<f64> {
    let invalid = || {
        Error::config(format!("cannot parse '{text}' as a speed"))
            .hint("write how many times faster than real time, as in 60x")
    };
    let times: f64 = text.trim().trim_end_matches('x').parse().map_err(|_| invalid())?;
    if !(times.is_finite() && times > 0.0 && times <= 1e7) {
        return Err(invalid());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_need_a_unit() {
        assert_eq!(share("0.1%").unwrap(), 0.001);
        assert_eq!(span("500ms").unwrap(), 500_000);
        assert_eq!(span("1.5h").unwrap(), HOUR + 30 * MINUTE);
        assert_eq!(rate("100/s").unwrap(), 100.0);
        assert_eq!(rate("60/m").unwrap(), 1.0);
        assert_eq!(speed("3600x").unwrap(), 3600.0);
        for wrong in ["5", "101%", "-1%", "x%", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        for wrong in ["30", "s", "-5s", "1y", "9999999999999d"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
        for wrong in ["100", "0/s", "-1/s", "nan/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert!(speed("fast").unwrap_err().to_string().contains("as in 60x"));
    }
}
