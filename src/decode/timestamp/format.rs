//! A compiled timestamp format, which converts a text or a number to an instant.

use chrono_tz::Tz;

use crate::Result;
use crate::decode::civil_date::{days, days_by_ordinal};
use crate::decode::local_zone::LocalZone;
use crate::decode::number::Number;
use crate::decode::reason::Reason;
use crate::decode::timestamp::fixed_layout::FixedLayout;
use crate::decode::timestamp::format_item::{DatePart, DecimalPoint, FormatItem, ParsedParts};
use crate::decode::timestamp::specifiers::{
    allow_short_numbers, check_date_is_complete, parse_format,
};
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND};

/// The first instant of the year 0, in UTC.
const FIRST: Micros = -62_167_219_200 * SECOND;
/// The last instant of the year 9999, in UTC.
const LAST: Micros = 253_402_300_800 * SECOND - 1;

/// A compiled timestamp format for local times in one zone.
///
/// It can be shared between threads. It caches the zone's offset for recently parsed dates.
#[derive(Debug)]
pub struct TimestampFormat {
    kind: FormatKind,
    zone: LocalZone,
}

#[derive(Debug)]
enum FormatKind {
    /// Text. The leading items that `layout` covers are parsed in one step, the others item by item.
    Text { items: Vec<FormatItem>, layout: FixedLayout },
    /// A number. The value × 10^scale is the number of microseconds since 1970.
    Epoch { scale: i32 },
}

impl TimestampFormat {
    /// Compiles `format`: 'epoch_s', 'epoch_ms', 'epoch_us', or a subset of strftime. `%m %d %H %M %S`
    /// accept one or two digits unless they are adjacent to other digits. `%f` accepts the digits of
    /// a fraction of a second; digits after the sixth are ignored.
    ///
    /// The time of day is optional in the format and defaults to midnight. Fails, with the supported
    /// specifiers as its hint, for an unsupported specifier, and for a format that does not determine
    /// exactly one date.
    pub fn compile(format: &str, zone: Tz) -> Result<Self> {
        let kind = match format {
            "epoch_s" => FormatKind::Epoch { scale: 6 },
            "epoch_ms" => FormatKind::Epoch { scale: 3 },
            "epoch_us" => FormatKind::Epoch { scale: 0 },
            _ => {
                let mut items = Vec::new();
                parse_format(format, &mut items)?;
                allow_short_numbers(&mut items);
                check_date_is_complete(format, &items)?;
                FormatKind::text(items)
            }
        };
        Ok(Self { kind, zone: LocalZone::new(zone) })
    }

    /// Creates the format for RFC 3339, in which the offset is optional and a space may replace the
    /// `T`.
    pub fn rfc3339(zone: Tz) -> Self {
        let number = |part| FormatItem::Number { part, short: true, padded: false };
        let items = vec![
            FormatItem::Year,
            FormatItem::Literal(b'-'),
            number(DatePart::Month),
            FormatItem::Literal(b'-'),
            number(DatePart::Day),
            FormatItem::Separator,
            number(DatePart::Hour),
            FormatItem::Literal(b':'),
            number(DatePart::Minute),
            FormatItem::Literal(b':'),
            number(DatePart::Second),
            FormatItem::Fraction { dot: DecimalPoint::Optional, exactly: None },
            FormatItem::Offset { optional: true },
        ];
        Self { kind: FormatKind::text(items), zone: LocalZone::new(zone) }
    }

    /// Returns the instant of `text`; `None` if `text` as a whole does not match this format.
    #[inline]
    pub fn parse(&self, text: &[u8]) -> Option<Micros> {
        match &self.kind {
            FormatKind::Text { items, layout } => {
                let mut parts = ParsedParts::default();
                let (mut rest, items) = match layout.read(text, &mut parts) {
                    Some(rest) => (rest, &items[layout.items..]),
                    None => (text, &items[..]),
                };
                for item in items {
                    rest = item.read(rest, &mut parts)?;
                }
                if rest.is_empty() { self.instant(&parts) } else { None }
            }
            FormatKind::Epoch { .. } => self.number(&Number::parse(text)?).ok(),
        }
    }

    /// Returns the instant of a number. Only the epoch formats accept numbers.
    pub(in crate::decode) fn number(&self, number: &Number<'_>) -> Result<Micros, Reason> {
        let FormatKind::Epoch { scale } = self.kind else { return Err(Reason::WrongType) };
        let (micros, _) = number.scaled_floor(scale)?;
        match i64::try_from(micros) {
            Ok(micros) if (FIRST..=LAST).contains(&micros) => Ok(micros),
            _ => Err(Reason::OutOfRange),
        }
    }

    /// Whether this format accepts numbers and texts of numbers.
    pub(in crate::decode) fn is_epoch(&self) -> bool {
        matches!(self.kind, FormatKind::Epoch { .. })
    }

    /// Converts the parsed parts to an instant; `None` if there is no such date or time.
    #[inline]
    fn instant(&self, parts: &ParsedParts) -> Option<Micros> {
        if let Some(seconds) = parts.epoch_s {
            let micros = seconds.checked_mul(SECOND)?.checked_add(parts.micros)?;
            return (FIRST..=LAST).contains(&micros).then_some(micros);
        }
        let [month, day, hour, minute, second] = parts.numbers;
        let date = match parts.day_of_year {
            None => days(parts.year, month, day)?,
            Some(day) => days_by_ordinal(parts.year, day)?,
        };
        // A leap second (60) becomes the first second of the next minute.
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

impl FormatKind {
    fn text(items: Vec<FormatItem>) -> Self {
        let layout = FixedLayout::of(&items);
        FormatKind::Text { items, layout }
    }
}
