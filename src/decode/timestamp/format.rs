//! A compiled timestamp format: from text or a number to an instant.

use chrono_tz::Tz;

use crate::Result;
use crate::decode::civil_date::{days, days_by_ordinal};
use crate::decode::local_zone::LocalZone;
use crate::decode::number::Number;
use crate::decode::reason::Reason;
use crate::decode::timestamp::fixed_layout::FixedLayout;
use crate::decode::timestamp::format_item::{DatePart, DecimalPoint, FormatItem, ParsedParts};
use crate::decode::timestamp::specifiers::{
    allow_short_numbers, check_names_one_day, parse_format,
};
use crate::time::{DAY, HOUR, MINUTE, Micros, SECOND};

/// The first instant of year 0 and the last of year 9999, in UTC.
const FIRST: Micros = -62_167_219_200 * SECOND;
const LAST: Micros = 253_402_300_800 * SECOND - 1;

/// A timestamp format, compiled, for local times of one zone.
///
/// It may be shared by threads. It remembers the zone's offset for dates lately read.
#[derive(Debug)]
pub struct TimestampFormat {
    kind: FormatKind,
    zone: LocalZone,
}

#[derive(Debug)]
enum FormatKind {
    /// Text, piece by piece, or the first pieces at once.
    Text { items: Vec<FormatItem>, layout: FixedLayout },
    /// A number: value × 10^scale is microseconds since 1970.
    Epoch { scale: i32 },
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
            "epoch_s" => FormatKind::Epoch { scale: 6 },
            "epoch_ms" => FormatKind::Epoch { scale: 3 },
            "epoch_us" => FormatKind::Epoch { scale: 0 },
            _ => {
                let mut items = Vec::new();
                parse_format(format, &mut items)?;
                allow_short_numbers(&mut items);
                check_names_one_day(format, &items)?;
                FormatKind::text(items)
            }
        };
        Ok(Self { kind, zone: LocalZone::new(zone) })
    }

    /// RFC 3339, where the offset may be missing, and a space may stand for the `T`.
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

    /// The instant that `text` says, if all of it is in this format.
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

    /// The instant that a number says; only the epoch formats take numbers.
    pub(in crate::decode) fn number(&self, number: &Number<'_>) -> Result<Micros, Reason> {
        let FormatKind::Epoch { scale } = self.kind else { return Err(Reason::WrongType) };
        let (micros, _) = number.scaled_floor(scale)?;
        match i64::try_from(micros) {
            Ok(micros) if (FIRST..=LAST).contains(&micros) => Ok(micros),
            _ => Err(Reason::OutOfRange),
        }
    }

    /// Whether numbers and texts of numbers are read.
    pub(in crate::decode) fn is_epoch(&self) -> bool {
        matches!(self.kind, FormatKind::Epoch { .. })
    }

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

impl FormatKind {
    fn text(items: Vec<FormatItem>) -> Self {
        let layout = FixedLayout::of(&items);
        FormatKind::Text { items, layout }
    }
}
