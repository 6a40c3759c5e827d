//! The items of a timestamp format, and how each one reads its part of a text.

use crate::decode::civil_date::{digit, two};

/// One piece of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormatItem {
    Literal(u8),
    /// `T`, `t` or a space.
    Separator,
    /// Four digits.
    Year,
    /// Two digits: 1969 to 2068.
    ShortYear,
    /// Two digits; one, if `short` and no digit follows. `padded`: after any spaces.
    Number {
        part: DatePart,
        short: bool,
        padded: bool,
    },
    /// `Jan` to `Dec`, in any case.
    MonthName,
    /// Three digits.
    DayOfYear,
    /// Digits of a second: as many as there are, at least one, or exactly so many.
    Fraction {
        dot: DecimalPoint,
        exactly: Option<u8>,
    },
    /// `Z`, `+03:00`, `+0300` or `+03`.
    Offset {
        optional: bool,
    },
    /// Seconds since 1970.
    EpochSeconds,
}

/// Places in [`ParsedParts::numbers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DatePart {
    Month,
    Day,
    Hour,
    Minute,
    Second,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DecimalPoint {
    /// No point before the digits.
    None,
    /// A point, then the digits.
    Required,
    /// Both or neither.
    Optional,
}

/// What a text said.
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
    /// How many bytes it has at most, if they are literals, a separator or digits; otherwise 0.
    pub(super) fn width(&self) -> usize {
        match self {
            FormatItem::Literal(_) | FormatItem::Separator => 1,
            FormatItem::Year => 4,
            FormatItem::Number { padded: false, .. } => 2,
            _ => 0,
        }
    }

    /// Reads this piece from the beginning of `text` and gives what is left.
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
                let (value, rest) = one_or_two(text, short)?;
                parts.numbers[part as usize] = value;
                Some(rest)
            }
            FormatItem::Year => {
                let (year, rest) = four(text)?;
                parts.year = year;
                Some(rest)
            }
            FormatItem::Fraction { dot, exactly } => read_fraction(text, dot, exactly, parts),
            FormatItem::Offset { optional } => read_offset(text, optional, parts),
            _ => self.read_rare(text, parts),
        }
    }

    fn read_rare<'a>(&self, text: &'a [u8], parts: &mut ParsedParts) -> Option<&'a [u8]> {
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

    /// Whether this piece begins and ends with a digit.
    pub(super) fn is_digits(&self) -> bool {
        match self {
            FormatItem::Literal(byte) => byte.is_ascii_digit(),
            FormatItem::Fraction { dot, .. } => *dot == DecimalPoint::None,
            FormatItem::Separator | FormatItem::MonthName | FormatItem::Offset { .. } => false,
            _ => true,
        }
    }
}

#[inline]
fn four(text: &[u8]) -> Option<(i32, &[u8])> {
    let [a, b, c, d, rest @ ..] = text else { return None };
    Some(((two(*a, *b)? * 100 + two(*c, *d)?) as i32, rest))
}

/// Two digits, or one where `short` allows it and no second follows.
#[inline]
fn one_or_two(text: &[u8], short: bool) -> Option<(u32, &[u8])> {
    let (&first, rest) = text.split_first()?;
    let first = digit(first)?;
    match rest.split_first().and_then(|(&second, rest)| Some((digit(second)?, rest))) {
        Some((second, rest)) => Some((first * 10 + second, rest)),
        None => short.then_some((first, rest)),
    }
}

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
    let most = exactly.map_or(usize::MAX, usize::from);
    let count = text.iter().take(most).take_while(|byte| byte.is_ascii_digit()).count();
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
