//! Timestamps: a format compiled once, then text to instants in some tens of nanoseconds.
//!
//! Without a declared format, text is RFC 3339, with an offset or without. Text without an
//! offset is local time in the stream's zone: an hour that comes twice means the first, one
//! that the clock skips moves forward. Digits of a second beyond the microsecond are cut off.

use chrono_tz::Tz;

use crate::decode::Reason;
use crate::decode::civil_date::{days, days_by_ordinal, digit, two};
use crate::decode::local_zone::LocalZone;
use crate::decode::number::Number;
use crate::decode::timestamp_layout::Layout;
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND};
use crate::{Error, Result};

/// What a format may say, for whoever wrote something else.
const SUPPORTED: &str = "a format may have %Y %y %m %b %d %e %j %H %M %S %f (fraction of a second) \
     %.f %3f %6f %9f %.3f %.6f %.9f %z %F (%Y-%m-%d) %T (%H:%M:%S) %R (%H:%M) %s (seconds since \
     1970) %% and other characters as they are; or be 'epoch_s', 'epoch_ms' or 'epoch_us'";

/// The first instant of year 0 and the last of year 9999, in UTC.
const FIRST: Micros = -62_167_219_200 * SECOND;
const LAST: Micros = 253_402_300_800 * SECOND - 1;

/// A timestamp format, compiled, for local times of one zone.
///
/// It may be shared by threads. It remembers the zone's offset for dates lately read.
#[derive(Debug)]
pub struct TimestampFormat {
    kind: Kind,
    zone: LocalZone,
}

#[derive(Debug)]
enum Kind {
    /// Text, piece by piece, or the first pieces at once.
    Text { items: Vec<Item>, layout: Layout },
    /// A number: value × 10^scale is microseconds since 1970.
    Epoch { scale: i32 },
}

/// One piece of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    Literal(u8),
    /// `T`, `t` or a space.
    Separator,
    /// Four digits.
    Year,
    /// Two digits: 1969 to 2068.
    ShortYear,
    /// Two digits; one, if `short` and no digit follows. `padded`: after any spaces.
    Number {
        part: Part,
        short: bool,
        padded: bool,
    },
    /// `Jan` to `Dec`, in any case.
    MonthName,
    /// Three digits.
    DayOfYear,
    /// Digits of a second: as many as there are, at least one, or exactly so many.
    Fraction {
        dot: Dot,
        exactly: Option<u8>,
    },
    /// `Z`, `+03:00`, `+0300` or `+03`.
    Offset {
        optional: bool,
    },
    /// Seconds since 1970.
    EpochSeconds,
}

/// Places in [`Parts::numbers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Month,
    Day,
    Hour,
    Minute,
    Second,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dot {
    /// No point before the digits.
    None,
    /// A point, then the digits.
    Required,
    /// Both or neither.
    Optional,
}

/// What a text said.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub year: i32,
    /// By [`Part`].
    pub numbers: [u32; 5],
    day_of_year: Option<u32>,
    micros: i64,
    offset_s: Option<i64>,
    epoch_s: Option<i64>,
}

impl TimestampFormat {
    /// Compiles `format`: 'epoch_s', 'epoch_ms', 'epoch_us', or a subset of strftime's language,
    /// in which `%m %d %H %M %S` take one digit or two unless other digits stand next to them,
    /// and `%f` is the digits of a fraction of a second, up to nine.
    ///
    /// Fails, with what is supported as its hint, for anything else, and for a format that does
    /// not name a day. A time that is not named is midnight.
    pub fn compile(format: &str, zone: Tz) -> Result<Self> {
        let kind = match format {
            "epoch_s" => Kind::Epoch { scale: 6 },
            "epoch_ms" => Kind::Epoch { scale: 3 },
            "epoch_us" => Kind::Epoch { scale: 0 },
            _ => {
                let mut items = Vec::new();
                parse_format(format, &mut items)?;
                mark_short(&mut items);
                names_a_day(format, &items)?;
                Kind::text(items)
            }
        };
        Ok(Self { kind, zone: LocalZone::new(zone) })
    }

    /// RFC 3339, where the offset may be missing, and a space may stand for the `T`.
    pub fn rfc3339(zone: Tz) -> Self {
        let number = |part| Item::Number { part, short: true, padded: false };
        let items = vec![
            Item::Year,
            Item::Literal(b'-'),
            number(Part::Month),
            Item::Literal(b'-'),
            number(Part::Day),
            Item::Separator,
            number(Part::Hour),
            Item::Literal(b':'),
            number(Part::Minute),
            Item::Literal(b':'),
            number(Part::Second),
            Item::Fraction { dot: Dot::Optional, exactly: None },
            Item::Offset { optional: true },
        ];
        Self { kind: Kind::text(items), zone: LocalZone::new(zone) }
    }

    /// The instant that `text` says, if all of it is in this format.
    #[inline]
    pub fn parse(&self, text: &[u8]) -> Option<Micros> {
        match &self.kind {
            Kind::Text { items, layout } => {
                let mut parts = Parts::default();
                let (mut rest, items) = match layout.read(text, &mut parts) {
                    Some(rest) => (rest, &items[layout.items..]),
                    None => (text, &items[..]),
                };
                for item in items {
                    rest = item.read(rest, &mut parts)?;
                }
                if rest.is_empty() { self.instant(&parts) } else { None }
            }
            Kind::Epoch { .. } => self.number(&Number::parse(text)?).ok(),
        }
    }

    /// The instant that a number says; only the epoch formats take numbers.
    pub(super) fn number(&self, number: &Number<'_>) -> Result<Micros, Reason> {
        let Kind::Epoch { scale } = self.kind else { return Err(Reason::WrongType) };
        let (micros, _) = number.scaled_floor(scale)?;
        match i64::try_from(micros) {
            Ok(micros) if (FIRST..=LAST).contains(&micros) => Ok(micros),
            _ => Err(Reason::OutOfRange),
        }
    }

    /// Whether numbers and texts of numbers are read.
    pub(super) fn is_epoch(&self) -> bool {
        matches!(self.kind, Kind::Epoch { .. })
    }

    #[inline]
    fn instant(&self, parts: &Parts) -> Option<Micros> {
        if let Some(seconds) = parts.epoch_s {
            let micros = seconds.checked_mul(SECOND)?.checked_add(parts.micros)?;
            return (FIRST..=LAST).contains(&micros).then_some(micros);
        }
        let [month, day, hour, minute, second] = parts.numbers;
        let date = match parts.day_of_year {
            None => days(parts.year, month, day)?,
            Some(day) => days_by_ordinal(parts.year, day)?,
        };
        // A leap second is the first second of the next minute.
        if hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let local = date * DAY
            + i64::from(hour) * HOUR
            + i64::from(minute) * MINUTE
            + i64::from(second) * SECOND
            + parts.micros;
        Some(match parts.offset_s {
            Some(offset) => local - offset * SECOND,
            None => self.zone.instant(local),
        })
    }
}

impl Kind {
    fn text(items: Vec<Item>) -> Self {
        let layout = Layout::of(&items);
        Kind::Text { items, layout }
    }
}

impl Item {
    /// How many bytes it has at most, if they are literals, a separator or digits; otherwise 0.
    pub(super) fn width(&self) -> usize {
        match self {
            Item::Literal(_) | Item::Separator => 1,
            Item::Year => 4,
            Item::Number { padded: false, .. } => 2,
            _ => 0,
        }
    }

    /// Reads this piece from the beginning of `text` and gives what is left.
    #[inline]
    fn read<'a>(&self, text: &'a [u8], parts: &mut Parts) -> Option<&'a [u8]> {
        match *self {
            Item::Literal(byte) => match text {
                [first, rest @ ..] if *first == byte => Some(rest),
                _ => None,
            },
            Item::Number { part, short, padded } => {
                let mut text = text;
                while let ([b' ', rest @ ..], true) = (text, padded) {
                    text = rest;
                }
                let (value, rest) = one_or_two(text, short)?;
                parts.numbers[part as usize] = value;
                Some(rest)
            }
            Item::Year => {
                let (year, rest) = four(text)?;
                parts.year = year;
                Some(rest)
            }
            Item::Fraction { dot, exactly } => read_fraction(text, dot, exactly, parts),
            Item::Offset { optional } => read_offset(text, optional, parts),
            _ => self.read_rare(text, parts),
        }
    }

    fn read_rare<'a>(&self, text: &'a [u8], parts: &mut Parts) -> Option<&'a [u8]> {
        match (*self, text) {
            (Item::Separator, [b'T' | b't' | b' ', rest @ ..]) => Some(rest),
            (Item::ShortYear, [a, b, rest @ ..]) => {
                let year = two(*a, *b)? as i32;
                parts.year = if year < 69 { 2000 + year } else { 1900 + year };
                Some(rest)
            }
            (Item::MonthName, [a, b, c, rest @ ..]) => {
                const NAMES: &[u8; 36] = b"janfebmaraprmayjunjulaugsepoctnovdec";
                let name = [*a, *b, *c].map(|letter| letter.to_ascii_lowercase());
                let index = NAMES.chunks_exact(3).position(|month| *month == name)?;
                parts.numbers[Part::Month as usize] = index as u32 + 1;
                Some(rest)
            }
            (Item::DayOfYear, [a, b, c, rest @ ..]) => {
                parts.day_of_year = Some(two(*a, *b)? * 10 + digit(*c)?);
                Some(rest)
            }
            (Item::EpochSeconds, _) => {
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
    fn is_digits(&self) -> bool {
        match self {
            Item::Literal(byte) => byte.is_ascii_digit(),
            Item::Fraction { dot, .. } => *dot == Dot::None,
            Item::Separator | Item::MonthName | Item::Offset { .. } => false,
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
    dot: Dot,
    exactly: Option<u8>,
    parts: &mut Parts,
) -> Option<&'a [u8]> {
    let text = match (dot, text) {
        (Dot::None, _) => text,
        (_, [b'.', rest @ ..]) => rest,
        (Dot::Optional, _) => return Some(text),
        (Dot::Required, _) => return None,
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

fn read_offset<'a>(text: &'a [u8], optional: bool, parts: &mut Parts) -> Option<&'a [u8]> {
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

/// Appends the pieces of `format`.
pub(super) fn parse_format(format: &str, items: &mut Vec<Item>) -> Result<()> {
    let number = |part| Item::Number { part, short: false, padded: false };
    let fraction = |dot, exactly| Item::Fraction { dot, exactly };
    let mut rest = format;
    while let Some(character) = rest.chars().next() {
        let at = rest;
        rest = &rest[character.len_utf8()..];
        if character != '%' {
            items.extend(at[..character.len_utf8()].bytes().map(Item::Literal));
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
            "Y" => items.push(Item::Year),
            "y" => items.push(Item::ShortYear),
            "m" => items.push(number(Part::Month)),
            "b" => items.push(Item::MonthName),
            "d" => items.push(number(Part::Day)),
            "e" => items.push(Item::Number { part: Part::Day, short: false, padded: true }),
            "j" => items.push(Item::DayOfYear),
            "H" => items.push(number(Part::Hour)),
            "M" => items.push(number(Part::Minute)),
            "S" => items.push(number(Part::Second)),
            "f" => items.push(fraction(Dot::None, None)),
            ".f" => items.push(fraction(Dot::Optional, None)),
            "3f" => items.push(fraction(Dot::None, Some(3))),
            "6f" => items.push(fraction(Dot::None, Some(6))),
            "9f" => items.push(fraction(Dot::None, Some(9))),
            ".3f" => items.push(fraction(Dot::Required, Some(3))),
            ".6f" => items.push(fraction(Dot::Required, Some(6))),
            ".9f" => items.push(fraction(Dot::Required, Some(9))),
            "z" | ":z" => items.push(Item::Offset { optional: false }),
            "F" => parse_format("%Y-%m-%d", items)?,
            "T" => parse_format("%H:%M:%S", items)?,
            "R" => parse_format("%H:%M", items)?,
            "s" => items.push(Item::EpochSeconds),
            "%" => items.push(Item::Literal(b'%')),
            _ => {
                let message =
                    format!("timestamp format '{format}': '%{specifier}' is not supported");
                return Err(Error::sql(message).hint(SUPPORTED));
            }
        }
    }
    Ok(())
}

/// Numbers may have one digit only where that cannot be misread: not next to other digits.
fn mark_short(items: &mut [Item]) {
    let digits: Vec<bool> = items.iter().map(Item::is_digits).collect();
    for (index, item) in items.iter_mut().enumerate() {
        if let Item::Number { short, .. } = item {
            let before = index.checked_sub(1).is_some_and(|before| digits[before]);
            *short = !before && !digits.get(index + 1).copied().unwrap_or(false);
        }
    }
}

/// A format must name a day, in one way.
fn names_a_day(format: &str, items: &[Item]) -> Result<()> {
    let count = |wanted: fn(&Item) -> bool| items.iter().filter(|item| wanted(item)).count();
    let part = |wanted: Part| {
        items
            .iter()
            .filter(|item| matches!(item, Item::Number { part, .. } if *part == wanted))
            .count()
    };
    let year = count(|item| matches!(item, Item::Year | Item::ShortYear));
    let month = part(Part::Month) + count(|item| *item == Item::MonthName);
    let of_year = count(|item| *item == Item::DayOfYear);
    let epoch = count(|item| *item == Item::EpochSeconds);
    let once = [Part::Hour, Part::Minute, Part::Second].into_iter().all(|of_day| part(of_day) <= 1)
        && count(|item| matches!(item, Item::Fraction { .. })) <= 1
        && count(|item| matches!(item, Item::Offset { .. })) <= 1;
    match (year, month, part(Part::Day), of_year, epoch) {
        (1, 1, 1, 0, 0) | (1, 0, 0, 1, 0) | (0, 0, 0, 0, 1) if once => Ok(()),
        _ => {
            let message =
                format!("timestamp format '{format}' does not name one day, each part once");
            let hint = "name the year, month and day, as in '%Y-%m-%d %H:%M:%S', or use '%s'; a time \
                 without its date can be joined to it before: to_timestamp(d || ' ' || t, '%Y%m%d %H:%M:%S')";
            Err(Error::sql(message).hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    fn show(format: &TimestampFormat, text: &str) -> String {
        match format.parse(text.as_bytes()) {
            Some(micros) => DateTime::from_timestamp_micros(micros)
                .map_or_else(|| micros.to_string(), |time| time.format("%F %T%.6f").to_string())
                .replace(".000000", ""),
            None => "-".to_owned(),
        }
    }

    #[test]
    fn declared_formats() {
        let cases = [
            ("%Y%m%d %H:%M:%S", "20191030 14:06:35", "2019-10-30 14:06:35"),
            ("%Y%m%d %H:%M:%S", "20191030 7:41:38", "2019-10-30 07:41:38"),
            ("%Y%m%d %H:%M:%S", "20191030 7:1:8", "2019-10-30 07:01:08"),
            ("%Y%m%d %H:%M:%S", "20191030 24:00:00", "-"),
            ("%Y%m%d %H:%M:%S", "20191030 23:60:00", "-"),
            ("%Y%m%d %H:%M:%S", "20191030 23:59:60", "2019-10-31 00:00:00"),
            ("%Y%m%d %H:%M:%S", "20191030 23:59:61", "-"),
            ("%Y%m%d %H:%M:%S", "20190229 00:00:00", "-"),
            ("%Y%m%d %H:%M:%S", "20200229 00:00:00", "2020-02-29 00:00:00"),
            ("%Y%m%d %H:%M:%S", "20191030 14:06:35 ", "-"),
            ("%Y%m%d %H:%M:%S", "20191030 14:06", "-"),
            ("%Y%m%d %H:%M:%S", "20191030 14:06:", "-"),
            ("%Y%m%d %H:%M:%S", "", "-"),
            ("%Y%m%d %H:%M:%S", "00000101 00:00:00", "0000-01-01 00:00:00"),
            ("%Y%m%d %H:%M:%S", "99991231 23:59:59", "9999-12-31 23:59:59"),
            // 3 January or 13 of nothing: digits without a gap are never guessed at.
            ("%Y%m%d", "2019113", "-"),
            ("%Y%m%d", "20191103", "2019-11-03 00:00:00"),
            ("%H%M%S %Y-%m-%d", "74138 2019-10-30", "-"),
            ("%d.%m.%Y %H.%M", "3.1.2019 7.41", "2019-01-03 07:41:00"),
            ("%F %T", "2019-10-30 14:06:35", "2019-10-30 14:06:35"),
            ("%FT%R", "2019-10-30T14:06", "2019-10-30 14:06:00"),
            ("%e %b %Y", " 3 OCT 2019", "2019-10-03 00:00:00"),
            ("%e %b %Y", "13 dec 2019", "2019-12-13 00:00:00"),
            ("%e %b %Y", "13 dek 2019", "-"),
            ("%y-%j", "20-366", "2020-12-31 00:00:00"),
            ("%y-%j", "19-366", "-"),
            ("%y-%m-%d", "68-01-01", "2068-01-01 00:00:00"),
            ("%y-%m-%d", "69-01-01", "1969-01-01 00:00:00"),
            ("%F %T.%f", "2019-10-30 14:06:35.5", "2019-10-30 14:06:35.500000"),
            ("%F %T.%f", "2019-10-30 14:06:35.123456789", "2019-10-30 14:06:35.123456"),
            ("%F %T.%f", "2019-10-30 14:06:35.", "-"),
            ("%F %T%.f", "2019-10-30 14:06:35", "2019-10-30 14:06:35"),
            ("%F %T%.f", "2019-10-30 14:06:35.25", "2019-10-30 14:06:35.250000"),
            ("%F %T,%3f", "2019-10-30 14:06:35,250", "2019-10-30 14:06:35.250000"),
            ("%F %T,%3f", "2019-10-30 14:06:35,25", "-"),
            ("%F %T%.6f", "2019-10-30 14:06:35.000001", "2019-10-30 14:06:35.000001"),
            ("%Y%m%d%H%M%S%6f", "20191030140635000001", "2019-10-30 14:06:35.000001"),
            ("%F %T%z", "2019-10-30 14:06:35+0200", "2019-10-30 12:06:35"),
            ("%F %T %:z", "2019-10-30 14:06:35 -05:30", "2019-10-30 19:36:35"),
            ("%F %T%z", "2019-10-30 14:06:35Z", "2019-10-30 14:06:35"),
            ("%F %T%z", "2019-10-30 14:06:35", "-"),
            ("%F %T%z", "2019-10-30 14:06:35+24:00", "-"),
            ("%s", "1572444395", "2019-10-30 14:06:35"),
            ("%s.%f", "1572444395.5", "2019-10-30 14:06:35.500000"),
            ("%s", "-1", "1969-12-31 23:59:59"),
            ("%s", "99999999999999999999", "-"),
            ("%s", "", "-"),
            ("%F 100%% klo %R", "2019-10-30 100% klo 14:06", "2019-10-30 14:06:00"),
            ("%Y年%m月%d日", "2019年1月3日", "2019-01-03 00:00:00"),
            ("epoch_s", "1572444395", "2019-10-30 14:06:35"),
            ("epoch_s", "1572444395.1234567", "2019-10-30 14:06:35.123456"),
            ("epoch_ms", "1572444395001", "2019-10-30 14:06:35.001000"),
            ("epoch_us", "-1", "1969-12-31 23:59:59.999999"),
            ("epoch_s", "253402300799", "9999-12-31 23:59:59"),
            ("epoch_s", "253402300800", "-"),
            ("epoch_s", "soon", "-"),
        ];
        for (format, text, expected) in cases {
            let compiled = TimestampFormat::compile(format, Tz::UTC).unwrap();
            assert_eq!(show(&compiled, text), expected, "{format}: {text}");
        }
    }

    #[test]
    fn rfc_3339_with_and_without_offset() {
        let format = TimestampFormat::rfc3339(Tz::Europe__Helsinki);
        let cases = [
            ("2019-10-30T14:06:35Z", "2019-10-30 14:06:35"),
            ("2019-10-30t14:06:35z", "2019-10-30 14:06:35"),
            ("2019-10-30 14:06:35.25+02:00", "2019-10-30 12:06:35.250000"),
            ("2019-10-30T14:06:35", "2019-10-30 12:06:35"),
            ("2019-07-30 14:06:35.000001", "2019-07-30 11:06:35.000001"),
            ("2019-10-30 7:41:38", "2019-10-30 05:41:38"),
            ("2019-10-27 03:30:00", "2019-10-27 00:30:00"),
            ("2019-03-31 03:30:00", "2019-03-31 01:30:00"),
            ("2019-10-30T14:06:35.123456789-00:00", "2019-10-30 14:06:35.123456"),
            ("2019-10-30T14:06Z", "-"),
            ("2019-10-30", "-"),
            ("2019-10-30T14:06:35.Z", "-"),
            ("2019-10-30T14:06:35+1", "-"),
            ("20191030T140635Z", "-"),
            ("now", "-"),
        ];
        for (text, expected) in cases {
            assert_eq!(show(&format, text), expected, "{text}");
        }
    }

    #[test]
    fn local_time_is_read_in_its_zone() {
        let cases = [
            (Tz::Europe__Helsinki, "20191027 3:30:00", "2019-10-27 00:30:00"),
            (Tz::Australia__Lord_Howe, "20190407 01:45:00", "2019-04-06 14:45:00"),
            (Tz::Australia__Lord_Howe, "20191006 02:15:00", "2019-10-05 15:45:00"),
            (Tz::Asia__Kathmandu, "20191030 14:06:35", "2019-10-30 08:21:35"),
        ];
        for (zone, text, expected) in cases {
            let format = TimestampFormat::compile("%Y%m%d %H:%M:%S", zone).unwrap();
            assert_eq!(show(&format, text), expected, "{zone} {text}");
        }
    }

    #[test]
    fn what_is_not_supported_is_said_at_compile() {
        for format in
            ["%Q", "%Y-%m-%d %I:%M %p", "%Y-%m-%d %Z", "%", "%Y-%m-%d %", "%4f %F", "%é", "%.4f %F"]
        {
            let error = TimestampFormat::compile(format, Tz::UTC).unwrap_err();
            assert!(error.message.contains("is not supported"), "{format}: {error}");
            assert!(error.hint.is_some_and(|hint| hint.contains("%Y")), "{format}");
        }
        for format in ["", "now", "%H:%M:%S", "%Y-%m", "%F %F", "%s %F", "%F %H %H", "%Y %y %m %d"]
        {
            let error = TimestampFormat::compile(format, Tz::UTC).unwrap_err();
            assert!(error.message.contains("does not name one day"), "{format}: {error}");
        }
    }

    #[test]
    fn a_format_is_shared_by_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<TimestampFormat>();
    }
}
