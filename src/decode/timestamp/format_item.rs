//! The items of a timestamp format, and the parser of each item.

use crate::decode::civil_date::{digit, two};

/// One item of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormatItem {
    /// Exactly this byte.
    Literal(u8),
    /// `T`, `t` or a space.
    Separator,
    /// Four digits.
    Year,
    /// Two digits, for the years 1969 to 2068.
    ShortYear,
    /// Two digits, or one digit if `short` and no digit follows. If `padded`, spaces may precede it.
    Number { part: DatePart, short: bool, padded: bool },
    /// `Jan` to `Dec`, in any case.
    MonthName,
    /// Three digits.
    DayOfYear,
    /// Digits of a fraction of a second: `exactly` this many, or one and more.
    Fraction { dot: DecimalPoint, exactly: Option<u8> },
    /// `Z`, `+03:00`, `+0300` or `+03`.
    Offset { optional: bool },
    /// Seconds since 1970.
    EpochSeconds,
}

/// The indexes of [`ParsedParts::numbers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DatePart {
    Month,
    Day,
    Hour,
    Minute,
    Second,
}

/// Whether a decimal point precedes the digits of a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecimalPoint {
    /// Digits without a point.
    None,
    /// A point and digits.
    Required,
    /// A point and digits, or nothing.
    Optional,
}

/// The values of the parsed items of a text.
#[derive(Debug, Default)]
pub(super) struct ParsedParts {
    pub(super) year: i32,
    /// By [`DatePart`].
    pub(super) numbers: [u32; 5],
    pub(super) day_of_year: Option<u32>,
    pub(super) micros: i64,
    pub(super) offset_s: Option<i64>,
    pub(super) epoch_s: Option<i64>,
}

impl FormatItem {
    /// The maximum width in bytes of an item that a fixed layout supports; 0 for other items.
    pub(super) fn width(&self) -> usize {
        match self {
            FormatItem::Literal(_) | FormatItem::Separator => 1,
            FormatItem::Year => 4,
            FormatItem::Number { padded: false, .. } => 2,
            _ => 0,
        }
    }

    /// Parses this item at the beginning of `text` and returns the remaining text; `None` if the text
    /// does not match.
    #[inline]
    pub(super) fn read<'a>(&self, text: &'a [u8], parts: &mut ParsedParts) -> Option<&'a [u8]> {
        match *self {
            FormatItem::Literal(byte) => match text {
                [first, rest @ ..] if *first == byte => Some(rest),
                _ => None,
            },
            FormatItem::Number { part, short, padded } => {
                let mut text = text;
                while let ([b' ', rest @ ..], true) = (text, padded) {
                    text = rest;
                }
                let (value, rest) = one_or_two_digits(text, short)?;
                parts.numbers[part as usize] = value;
                Some(rest)
            }
            FormatItem::Year => {
                let (year, rest) = four_digits(text)?;
                parts.year = year;
                Some(rest)
            }
            FormatItem::Fraction { dot, exactly } => read_fraction(text, dot, exactly, parts),
            FormatItem::Offset { optional } => read_offset(text, optional, parts),
            _ => self.read_uncommon(text, parts),
        }
    }

    /// Parses the items that [`FormatItem::read`] does not inline.
    fn read_uncommon<'a>(&self, text: &'a [u8], parts: &mut ParsedParts) -> Option<&'a [u8]> {
        match (*self, text) {
            (FormatItem::Separator, [b'T' | b't' | b' ', rest @ ..]) => Some(rest),
            (FormatItem::ShortYear, [a, b, rest @ ..]) => {
                let year = two(*a, *b)? as i32;
                parts.year = if year < 69 { 2000 + year } else { 1900 + year };
                Some(rest)
            }
            (FormatItem::MonthName, [a, b, c, rest @ ..]) => {
                const NAMES: &[u8; 36] = b"janfebmaraprmayjunjulaugsepoctnovdec";
                let name = [*a, *b, *c].map(|letter| letter.to_ascii_lowercase());
                let index = NAMES.chunks_exact(3).position(|month| *month == name)?;
                parts.numbers[DatePart::Month as usize] = index as u32 + 1;
                Some(rest)
            }
            (FormatItem::DayOfYear, [a, b, c, rest @ ..]) => {
                parts.day_of_year = Some(two(*a, *b)? * 10 + digit(*c)?);
                Some(rest)
            }
            (FormatItem::EpochSeconds, _) => {
                let sign = usize::from(text.first() == Some(&b'-'));
                let digits = text[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let (number, rest) = text.split_at(sign + digits);
                parts.epoch_s = Some(std::str::from_utf8(number).ok()?.parse().ok()?);
                Some(rest)
            }
            _ => None,
        }
    }

    /// Whether the text of this item begins and ends with a digit.
    pub(super) fn is_digits(&self) -> bool {
        match self {
            FormatItem::Literal(byte) => byte.is_ascii_digit(),
            FormatItem::Fraction { dot, .. } => *dot == DecimalPoint::None,
            FormatItem::Separator | FormatItem::MonthName | FormatItem::Offset { .. } => false,
            _ => true,
        }
    }
}

/// Parses four digits and returns their value and the remaining text.
#[inline]
fn four_digits(text: &[u8]) -> Option<(i32, &[u8])> {
    let [a, b, c, d, rest @ ..] = text else { return None };
    Some(((two(*a, *b)? * 100 + two(*c, *d)?) as i32, rest))
}

/// Parses two digits, or one digit if `short` allows it and no second one follows.
#[inline]
fn one_or_two_digits(text: &[u8], short: bool) -> Option<(u32, &[u8])> {
    let (&first, rest) = text.split_first()?;
    let first = digit(first)?;
    match rest.split_first().and_then(|(&second, rest)| Some((digit(second)?, rest))) {
        Some((second, rest)) => Some((first * 10 + second, rest)),
        None => short.then_some((first, rest)),
    }
}

/// Parses a fraction of a second and adds its first six digits to the microseconds.
fn read_fraction<'a>(
    text: &'a [u8],
    dot: DecimalPoint,
    exactly: Option<u8>,
    parts: &mut ParsedParts,
) -> Option<&'a [u8]> {
    let text = match (dot, text) {
        (DecimalPoint::None, _) => text,
        (_, [b'.', rest @ ..]) => rest,
        (DecimalPoint::Optional, _) => return Some(text),
        (DecimalPoint::Required, _) => return None,
    };
    let max_digits = exactly.map_or(usize::MAX, usize::from);
    let count = text.iter().take(max_digits).take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 || exactly.is_some_and(|exactly| count != usize::from(exactly)) {
        return None;
    }
    let (digits, rest) = text.split_at(count);
    let mut unit = 100_000;
    for digit in digits.iter().take(6) {
        parts.micros += i64::from(digit - b'0') * unit;
        unit /= 10;
    }
    Some(rest)
}

/// Parses an offset from UTC: `Z`, `+03:00`, `+0300` or `+03`.
fn read_offset<'a>(text: &'a [u8], optional: bool, parts: &mut ParsedParts) -> Option<&'a [u8]> {
    let (sign, rest) = match text {
        [b'Z' | b'z', rest @ ..] => {
            parts.offset_s = Some(0);
            return Some(rest);
        }
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return optional.then_some(text),
    };
    let [a, b, rest @ ..] = rest else { return None };
    let hours = two(*a, *b)?;
    let (minutes, rest) = match rest {
        [b':', c, d, rest @ ..] => (two(*c, *d)?, rest),
        [c, d, rest @ ..] if c.is_ascii_digit() => (two(*c, *d)?, rest),
        _ => (0, rest),
    };
    if hours > 23 || minutes > 59 {
        return None;
    }
    parts.offset_s = Some(sign * i64::from(hours * 3600 + minutes * 60));
    Some(rest)
}
