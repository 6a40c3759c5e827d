//! The key_order of a message: which keys come in which order, spelled how.
//!
//! Records of one producer look alike. So what stood between two values (`, "room": `) is kept
//! from the last message, and compared in one step with what stands there now; only where it
//! differs is it read piece by piece. A text that was valid in this place once is valid again:
//! it depends on nothing but standing after a value, or at the message's beginning.

use crate::decode::scanner::{ScanResult, Scanner};

/// Between two values more than this many bytes are read piece by piece every time.
const MAX_SEGMENT_BYTES: usize = 64;

/// Keys beyond this one are read piece by piece every time.
const MAX_KEYS: usize = 256;

/// Where the value that follows belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueTarget {
    /// To this column.
    Column(usize),
    /// To no column.
    Unknown,
    /// There is none: the object ended.
    End,
}

/// What stood between two values of the last message, or around all of them.
#[derive(Debug, Clone)]
struct KeySegment {
    /// The first 16 bytes (fewer: zeros), and which of their bits count.
    head: u128,
    mask: u128,
    bytes: [u8; MAX_SEGMENT_BYTES],
    /// `usize::MAX`: nothing matches.
    length: usize,
    target: ValueTarget,
}

/// The segments of the last message, in order.
#[derive(Debug, Default)]
pub(super) struct KeyOrder {
    segments: Vec<KeySegment>,
}

impl KeyOrder {
    /// If the segment expected at `next_segment` stands here, passes it and gives its target; the next
    /// one is expected then.
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
            // The object before may have had less white space here.
            scanner.skip_white_space();
        }
        Some(segment.target)
    }

    /// Reads the way to the next value piece by piece, and keeps it for the next object. The
    /// scanner stands at the object's brace (`next_segment` is 0), or after a value. `column` finds the
    /// column of a key.
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

    /// Keeps what stood before the value of `target`, and gives the next_segment of the next segment.
    /// If a later next_segment says the same (an optional key is missing here), goes on from there
    /// without forgetting what lies between.
    fn remember(&mut self, next_segment: usize, text: &[u8], target: ValueTarget) -> usize {
        let later = self.segments.iter().skip(next_segment + 1);
        if let Some(skipped) = { later }.position(|segment| segment.is_same(text, target)) {
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
        let Some(kept) = bytes.get_mut(..text.len()) else {
            return Self { head: 0, mask: 0, bytes, length: usize::MAX, target };
        };
        kept.copy_from_slice(text);
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
    fn a_segment_matches_itself_only() {
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
