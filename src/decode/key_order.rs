//! The key order of a message: its keys, their order and their exact spelling.
//!
//! Messages of one producer have the same structure. The decoder therefore remembers the text
//! between two values (a segment, such as `, "room": `) of the previous message and compares it in
//! one step with the current text. It parses token by token only if the two differ. A segment that
//! was valid once is always valid there: its validity depends only on its place after a value, or at
//! the beginning of the message.

use crate::decode::scanner::{ScanResult, Scanner};

/// The maximum length of a remembered segment. Longer segments are always parsed token by token.
const MAX_SEGMENT_BYTES: usize = 64;

/// The maximum number of remembered segments. Later keys are always parsed token by token.
const MAX_KEYS: usize = 256;

/// The destination of the value after a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueTarget {
    /// The column with this index.
    Column(usize),
    /// No column: the key is unknown.
    Unknown,
    /// No value follows: the object ended.
    End,
}

/// The text before, between or after the values of the previous message.
#[derive(Debug, Clone)]
struct KeySegment {
    /// The first 16 bytes, padded with zeros.
    head: u128,
    /// The bits of `head` to compare.
    mask: u128,
    bytes: [u8; MAX_SEGMENT_BYTES],
    /// The number of bytes used. `usize::MAX` for a segment that is too long and matches nothing.
    length: usize,
    target: ValueTarget,
}

/// The segments of the previous message, in order.
#[derive(Debug, Default)]
pub(super) struct KeyOrder {
    segments: Vec<KeySegment>,
}

impl KeyOrder {
    /// If the segment with the index `next_segment` matches at the scanner's position, advances past
    /// it, increments `next_segment` and returns its target.
    #[inline]
    pub fn match_next(
        &self,
        next_segment: &mut usize,
        scanner: &mut Scanner<'_>,
    ) -> Option<ValueTarget> {
        let segment = self.segments.get(*next_segment)?;
        if !segment.matches(scanner) {
            return None;
        }
        scanner.advance(segment.length);
        *next_segment += 1;
        if segment.target != ValueTarget::End {
            // The previous object may have had less white space here.
            scanner.skip_white_space();
        }
        Some(segment.target)
    }

    /// Parses the text up to the next value token by token, and remembers it for the next object.
    /// The scanner is at the object's brace (`next_segment` is 0) or after a value. `column` returns
    /// the column of a key.
    #[cold]
    pub fn read_next(
        &mut self,
        next_segment: &mut usize,
        scanner: &mut Scanner<'_>,
        scratch: &mut Vec<u8>,
        column: impl Fn(&[u8]) -> Option<usize>,
    ) -> ScanResult<ValueTarget> {
        let begin = scanner.position();
        let first = scanner.peek() == Some(b'{') && *next_segment == 0;
        if first {
            scanner.advance(1);
        }
        let target = match scanner.key(first)? {
            Some(key) => {
                column(key.value(scratch)).map_or(ValueTarget::Unknown, ValueTarget::Column)
            }
            None => ValueTarget::End,
        };
        let text = scanner.between(begin, scanner.position());
        *next_segment = self.remember(*next_segment, text, target);
        Ok(target)
    }

    /// Remembers `text`, which precedes the value of `target`, and returns the index of the next
    /// segment. If a later segment is the same (an optional key is missing here), continues after that
    /// one and retains the segments in between.
    fn remember(&mut self, next_segment: usize, text: &[u8], target: ValueTarget) -> usize {
        let later_segments = self.segments.iter().skip(next_segment + 1);
        if let Some(skipped) = { later_segments }.position(|segment| segment.is_same(text, target))
        {
            return next_segment + skipped + 2;
        }
        let segment = KeySegment::new(text, target);
        if next_segment < self.segments.len() {
            self.segments[next_segment] = segment;
        } else if next_segment == self.segments.len() && next_segment < MAX_KEYS {
            self.segments.push(segment);
        }
        next_segment + 1
    }
}

impl KeySegment {
    fn new(text: &[u8], target: ValueTarget) -> Self {
        let (mut bytes, mut head) = ([0; MAX_SEGMENT_BYTES], [0; 16]);
        let Some(prefix) = bytes.get_mut(..text.len()) else {
            return Self { head: 0, mask: 0, bytes, length: usize::MAX, target };
        };
        prefix.copy_from_slice(text);
        head.copy_from_slice(&bytes[..16]);
        let bits = 8 * text.len().min(16) as u32;
        let mask = u128::MAX.checked_shr(128 - bits).unwrap_or(0);
        Self { head: u128::from_le_bytes(head), mask, bytes, length: text.len(), target }
    }

    fn is_same(&self, text: &[u8], target: ValueTarget) -> bool {
        self.target == target && self.bytes.get(..self.length) == Some(text)
    }

    #[inline]
    fn matches(&self, scanner: &Scanner<'_>) -> bool {
        if scanner.remaining() < self.length {
            return false;
        }
        match scanner.peek_16() {
            Some(next) if (u128::from_le_bytes(*next) ^ self.head) & self.mask != 0 => false,
            Some(_) if self.length <= 16 => true,
            _ => scanner.rest().starts_with(&self.bytes[..self.length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_matches_only_itself() {
        for length in 1..=MAX_SEGMENT_BYTES {
            let text: Vec<u8> = (0..length as u8).map(|byte| b'A' + byte % 26).collect();
            let segment = KeySegment::new(&text, ValueTarget::Unknown);
            for after in [0, 20] {
                let mut bytes = text.clone();
                bytes.resize(length + after, b'!');
                assert!(segment.matches(&Scanner::new(&bytes, 0, bytes.len())), "{length}");
                assert!(!segment.matches(&Scanner::new(&bytes, 0, length - 1)), "{length}");
                for wrong in 0..length {
                    let mut bytes = bytes.clone();
                    bytes[wrong] = b'?';
                    assert!(!segment.matches(&Scanner::new(&bytes, 0, bytes.len())), "{length}");
                }
            }
        }
        assert!(
            !KeySegment::new(&[b' '; MAX_SEGMENT_BYTES + 1], ValueTarget::End)
                .matches(&Scanner::new(&[b' '; 200], 0, 200))
        );
    }
}
