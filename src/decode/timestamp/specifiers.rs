//! Parses a declared format, a subset of strftime, into its items.

use crate::decode::timestamp::format_item::{DatePart, DecimalPoint, FormatItem};
use crate::{Error, Result};

/// The hint for an unsupported specifier.
const SUPPORTED: &str = "supported are the specifiers %Y %y %m %b %d %e %j %H %M %S %f (fraction of a second) \
     %.f %3f %6f %9f %.3f %.6f %.9f %z %F (%Y-%m-%d) %T (%H:%M:%S) %R (%H:%M) %s (seconds since \
     1970) %%, literal characters, and the formats 'epoch_s', 'epoch_ms' and 'epoch_us'";

/// Appends the items of `format` to `items`. Fails for an unsupported specifier.
pub(super) fn parse_format(format: &str, items: &mut Vec<FormatItem>) -> Result<()> {
    let number = |part| FormatItem::Number { part, short: false, padded: false };
    let fraction = |dot, exactly| FormatItem::Fraction { dot, exactly };
    let mut rest = format;
    while let Some(character) = rest.chars().next() {
        let start = rest;
        rest = &rest[character.len_utf8()..];
        if character != '%' {
            items.extend(start[..character.len_utf8()].bytes().map(FormatItem::Literal));
            continue;
        }
        // Three characters: `.3f`, `.6f`, `.9f`. Two: `3f`, `.f`, `:z`. Otherwise one.
        let long = [3, 2].into_iter().filter_map(|length| rest.get(..length));
        let long =
            long.filter(|text| [".3f", ".6f", ".9f", "3f", "6f", "9f", ".f", ":z"].contains(text));
        let one = rest.chars().next().map_or(0, char::len_utf8);
        let specifier = { long }.next().unwrap_or(&rest[..one]);
        rest = &rest[specifier.len()..];
        match specifier {
            "Y" => items.push(FormatItem::Year),
            "y" => items.push(FormatItem::ShortYear),
            "m" => items.push(number(DatePart::Month)),
            "b" => items.push(FormatItem::MonthName),
            "d" => items.push(number(DatePart::Day)),
            "e" => {
                items.push(FormatItem::Number { part: DatePart::Day, short: false, padded: true })
            }
            "j" => items.push(FormatItem::DayOfYear),
            "H" => items.push(number(DatePart::Hour)),
            "M" => items.push(number(DatePart::Minute)),
            "S" => items.push(number(DatePart::Second)),
            "f" => items.push(fraction(DecimalPoint::None, None)),
            ".f" => items.push(fraction(DecimalPoint::Optional, None)),
            "3f" => items.push(fraction(DecimalPoint::None, Some(3))),
            "6f" => items.push(fraction(DecimalPoint::None, Some(6))),
            "9f" => items.push(fraction(DecimalPoint::None, Some(9))),
            ".3f" => items.push(fraction(DecimalPoint::Required, Some(3))),
            ".6f" => items.push(fraction(DecimalPoint::Required, Some(6))),
            ".9f" => items.push(fraction(DecimalPoint::Required, Some(9))),
            "z" | ":z" => items.push(FormatItem::Offset { optional: false }),
            "F" => parse_format("%Y-%m-%d", items)?,
            "T" => parse_format("%H:%M:%S", items)?,
            "R" => parse_format("%H:%M", items)?,
            "s" => items.push(FormatItem::EpochSeconds),
            "%" => items.push(FormatItem::Literal(b'%')),
            _ => {
                let message =
                    format!("timestamp format '{format}': '%{specifier}' is not supported");
                return Err(Error::sql(message).hint(SUPPORTED));
            }
        }
    }
    Ok(())
}

/// Allows one-digit numbers where they are unambiguous, that is, not adjacent to other digits.
pub(super) fn allow_short_numbers(items: &mut [FormatItem]) {
    let digits: Vec<bool> = items.iter().map(FormatItem::is_digits).collect();
    for (index, item) in items.iter_mut().enumerate() {
        if let FormatItem::Number { short, .. } = item {
            let before = index.checked_sub(1).is_some_and(|before| digits[before]);
            *short = !before && !digits.get(index + 1).copied().unwrap_or(false);
        }
    }
}

/// Checks that a format determines exactly one date and uses each part at most once.
pub(super) fn check_date_is_complete(format: &str, items: &[FormatItem]) -> Result<()> {
    let count =
        |matches: fn(&FormatItem) -> bool| items.iter().filter(|item| matches(item)).count();
    let count_part = |expected: DatePart| {
        items
            .iter()
            .filter(|item| matches!(item, FormatItem::Number { part, .. } if *part == expected))
            .count()
    };
    let year = count(|item| matches!(item, FormatItem::Year | FormatItem::ShortYear));
    let month = count_part(DatePart::Month) + count(|item| *item == FormatItem::MonthName);
    let day_of_year = count(|item| *item == FormatItem::DayOfYear);
    let epoch = count(|item| *item == FormatItem::EpochSeconds);
    let is_time_unique = [DatePart::Hour, DatePart::Minute, DatePart::Second]
        .into_iter()
        .all(|time_part| count_part(time_part) <= 1)
        && count(|item| matches!(item, FormatItem::Fraction { .. })) <= 1
        && count(|item| matches!(item, FormatItem::Offset { .. })) <= 1;
    match (year, month, count_part(DatePart::Day), day_of_year, epoch) {
        (1, 1, 1, 0, 0) | (1, 0, 0, 1, 0) | (0, 0, 0, 0, 1) if is_time_unique => Ok(()),
        _ => {
            let message =
                format!("timestamp format '{format}' does not specify a date exactly once");
            let hint = "specify the year, month and day, for example '%Y-%m-%d %H:%M:%S', or use '%s'; \
                 concatenate a date and a time in separate columns: to_timestamp(d || ' ' || t, '%Y%m%d %H:%M:%S')";
            Err(Error::sql(message).hint(hint))
        }
    }
}
