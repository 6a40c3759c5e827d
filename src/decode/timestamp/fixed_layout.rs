//! The part of a timestamp format whose pieces have their full width, read all at once.
//!
//! `%Y%m%d %H:%M:%S` is 17 bytes with digits and literals in known places. The text is laid over
//! a pattern of zeros and literals (`00000000 00:00:00`); their exclusive or is zero at each
//! literal and the digit's value at each digit, and both are checked eight bytes at a time. A
//! text that differs (`7:41:38`) is not wrong, but read piece by piece.

use crate::decode::timestamp::format_item::{FormatItem, ParsedParts};

/// The longest part that is read at once; a power of two.
const WIDTH: usize = 32;

/// Where nothing is read: all digits are zero there.
const NOWHERE: usize = WIDTH - 4;

/// The pieces with which a format begins that have a fixed width.
#[derive(Debug)]
pub(super) struct FixedLayout {
    /// How many pieces, and how many bytes they have: none, or eight at least.
    pub items: usize,
    length: usize,
    words: Vec<PatternWord>,
    year: usize,
    numbers: [usize; 5],
    /// `T` or a space.
    separator: Option<usize>,
}

/// Eight bytes; the last ones of a layout may share bytes with those before.
#[derive(Debug)]
struct PatternWord {
    at: usize,
    pattern: u64,
    /// 0x80 at each digit, and 0xff at each literal.
    digits: u64,
    literals: u64,
}

impl FixedLayout {
    /// The layout of the pieces with which `items` begins.
    pub fn of(items: &[FormatItem]) -> Self {
        let (year, numbers) = (NOWHERE, [NOWHERE; 5]);
        let mut layout =
            Self { items: 0, length: 0, words: Vec::new(), year, numbers, separator: None };
        let (mut pattern, mut digits, mut literals) = ([b'0'; WIDTH], [0; WIDTH], [0; WIDTH]);
        for item in items {
            let (at, end) = (layout.length, layout.length + item.width());
            if end == at || end > NOWHERE {
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

    /// Reads the pieces from the beginning of `text` and gives what is left; `None` if the text
    /// has to be read piece by piece.
    #[inline]
    pub fn read<'a>(&self, text: &'a [u8], parts: &mut ParsedParts) -> Option<&'a [u8]> {
        let (text, rest) = text.split_at_checked(self.length)?;
        let mut values = [0; WIDTH + 8];
        let mut wrong = 0;
        for word in &self.words {
            let value = u64::from_le_bytes(*text[word.at..].first_chunk()?) ^ word.pattern;
            // Above 9 in a byte either has or gets the high bit. A byte that overflows into the
            // next can only make that look wrong, never right.
            let above_9 = value | value.wrapping_add(u64::MAX / 255 * 0x76);
            wrong |= above_9 & word.digits | value & word.literals;
            let at = word.at % WIDTH;
            values[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let separated = self.separator.is_none_or(|at| matches!(text[at], b'T' | b't' | b' '));
        if wrong != 0 || !separated {
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
    fn every_byte_in_every_place_is_judged() {
        let mut items = Vec::new();
        parse_format("%Y-%m-%dx%H:%M:%S%z", &mut items).unwrap();
        items[5] = FormatItem::Separator;
        let layout = FixedLayout::of(&items);
        assert_eq!((layout.items, layout.length), (11, 19));
        let good = b"2019-10-30T14:06:35+0200";
        for place in 0..19 {
            for byte in 0..=255 {
                let mut text = *good;
                text[place] = byte;
                let fits = match good[place] {
                    b'0'..=b'9' => byte.is_ascii_digit(),
                    b'T' => matches!(byte, b'T' | b't' | b' '),
                    literal => byte == literal,
                };
                let mut parts = ParsedParts::default();
                let rest = layout.read(&text, &mut parts);
                assert_eq!(rest, fits.then_some(&b"+0200"[..]), "{byte} at {place}");
                if fits && place > 11 {
                    assert_eq!((parts.year, parts.numbers[DatePart::Day as usize]), (2019, 30));
                }
            }
        }
        assert_eq!(layout.read(&good[..18], &mut ParsedParts::default()), None);
    }

    #[test]
    fn what_has_no_fixed_width_is_left_over() {
        for (format, expected) in [
            ("%e %b %Y", (0, 0)),
            ("%Y-%j", (0, 0)),
            ("%Y-%m-%dT%j", (6, 11)),
            ("%s", (0, 0)),
            ("at what was in Helsinki about %F", (28, 28)),
        ] {
            let mut items = Vec::new();
            parse_format(format, &mut items).unwrap();
            let layout = FixedLayout::of(&items);
            assert_eq!((layout.items, layout.length), expected, "{format}");
        }
    }
}
