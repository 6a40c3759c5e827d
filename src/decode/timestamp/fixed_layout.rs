//! Parses the leading fixed-width items of a timestamp format in one step.
//!
//! `%Y%m%d %H:%M:%S` is 17 bytes with digits and literals at known positions. The exclusive or of
//! the text and a pattern of zeros and literals (`00000000 00:00:00`) is zero at each literal and the
//! digit's value at each digit. Both are checked eight bytes at a time. A text that does not match
//! (`7:41:38`) is not invalid; it is parsed item by item.

use crate::decode::timestamp::format_item::{FormatItem, ParsedParts};

/// The maximum width of a layout in bytes; a power of two.
const WIDTH: usize = 32;

/// The position of items that are absent. All digits are zero there.
const ABSENT: usize = WIDTH - 4;

/// The leading items of a format that have a fixed width.
#[derive(Debug)]
pub(super) struct FixedLayout {
    /// The number of items.
    pub items: usize,
    /// The number of bytes of the items: 0, or at least 8.
    length: usize,
    words: Vec<PatternWord>,
    /// The position of the four-digit year.
    year: usize,
    /// The positions of the two-digit numbers, by `DatePart`.
    numbers: [usize; 5],
    /// The position of `T` or a space.
    separator: Option<usize>,
}

/// Eight bytes of the pattern. The last word of a layout may overlap the word before.
#[derive(Debug)]
struct PatternWord {
    at: usize,
    pattern: u64,
    /// 0x80 at each digit.
    digits: u64,
    /// 0xff at each literal.
    literals: u64,
}

impl FixedLayout {
    /// Returns the layout of the leading fixed-width items of `items`.
    pub fn of(items: &[FormatItem]) -> Self {
        let (year, numbers) = (ABSENT, [ABSENT; 5]);
        let mut layout =
            Self { items: 0, length: 0, words: Vec::new(), year, numbers, separator: None };
        let (mut pattern, mut digits, mut literals) = ([b'0'; WIDTH], [0; WIDTH], [0; WIDTH]);
        for item in items {
            let (at, end) = (layout.length, layout.length + item.width());
            if end == at || end > ABSENT {
                break;
            }
            match item {
                FormatItem::Literal(byte) => (pattern[at], literals[at]) = (*byte, 0xff),
                FormatItem::Separator => layout.separator = Some(at),
                FormatItem::Year => layout.year = at,
                FormatItem::Number { part, .. } => layout.numbers[*part as usize] = at,
                _ => break,
            }
            if matches!(item, FormatItem::Year | FormatItem::Number { .. }) {
                digits[at..end].fill(0x80);
            }
            layout.items += 1;
            layout.length = end;
        }
        let Some(last) = layout.length.checked_sub(8) else {
            return Self { items: 0, length: 0, year, numbers, separator: None, ..layout };
        };
        let word = |bytes: &[u8], at: usize| {
            bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        layout.words = (0..layout.length.div_ceil(8))
            .map(|index| (index * 8).min(last))
            .map(|at| PatternWord {
                at,
                pattern: word(&pattern, at),
                digits: word(&digits, at),
                literals: word(&literals, at),
            })
            .collect();
        layout
    }

    /// Parses the items at the beginning of `text` and returns the remaining text; `None` if the text
    /// does not match and has to be parsed item by item.
    #[inline]
    pub fn read<'a>(&self, text: &'a [u8], parts: &mut ParsedParts) -> Option<&'a [u8]> {
        let (text, rest) = text.split_at_checked(self.length)?;
        let mut values = [0; WIDTH + 8];
        let mut mismatches = 0;
        for word in &self.words {
            let value = u64::from_le_bytes(*text[word.at..].first_chunk()?) ^ word.pattern;
            // A byte above 9 either has the high bit or gets it from the addition. A carry into the
            // next byte can only reject a matching text, never accept another one.
            let above_9 = value | value.wrapping_add(u64::MAX / 255 * 0x76);
            mismatches |= above_9 & word.digits | value & word.literals;
            let at = word.at % WIDTH;
            values[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let separated = self.separator.is_none_or(|at| matches!(text[at], b'T' | b't' | b' '));
        if mismatches != 0 || !separated {
            return None;
        }
        let two = |at: usize| {
            let at = at % WIDTH;
            u32::from(values[at]) * 10 + u32::from(values[at + 1])
        };
        parts.year = (two(self.year) * 100 + two(self.year + 2)) as i32;
        parts.numbers = self.numbers.map(two);
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::timestamp::format_item::DatePart;
    use crate::decode::timestamp::specifiers::parse_format;

    #[test]
    fn every_byte_at_every_position_is_checked() {
        let mut items = Vec::new();
        parse_format("%Y-%m-%dx%H:%M:%S%z", &mut items).unwrap();
        items[5] = FormatItem::Separator;
        let layout = FixedLayout::of(&items);
        assert_eq!((layout.items, layout.length), (11, 19));
        let valid = b"2019-10-30T14:06:35+0200";
        for position in 0..19 {
            for byte in 0..=255 {
                let mut text = *valid;
                text[position] = byte;
                let matches_pattern = match valid[position] {
                    b'0'..=b'9' => byte.is_ascii_digit(),
                    b'T' => matches!(byte, b'T' | b't' | b' '),
                    literal => byte == literal,
                };
                let mut parts = ParsedParts::default();
                let rest = layout.read(&text, &mut parts);
                assert_eq!(rest, matches_pattern.then_some(&b"+0200"[..]), "{byte} at {position}");
                if matches_pattern && position > 11 {
                    assert_eq!((parts.year, parts.numbers[DatePart::Day as usize]), (2019, 30));
                }
            }
        }
        assert_eq!(layout.read(&valid[..18], &mut ParsedParts::default()), None);
    }

    #[test]
    fn items_without_a_fixed_width_end_the_layout() {
        for (format, expected) in [
            ("%e %b %Y", (0, 0)),
            ("%Y-%j", (0, 0)),
            ("%Y-%m-%dT%j", (6, 11)),
            ("%s", (0, 0)),
            ("literals before the full date %F", (28, 28)),
        ] {
            let mut items = Vec::new();
            parse_format(format, &mut items).unwrap();
            let layout = FixedLayout::of(&items);
            assert_eq!((layout.items, layout.length), expected, "{format}");
        }
    }
}
