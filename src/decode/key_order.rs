//! The shape of a message: which keys come in which order, spelled how.
//!
//! Records of one producer look alike. So what stood between two values (`, "room": `) is kept
//! from the last message, and compared in one step with what stands there now; only where it
//! differs is it read piece by piece. A text that was valid in this place once is valid again:
//! it depends on nothing but standing after a value, or at the message's beginning.

use crate::decode::scanner::{Scan, Scanner};

/// Between two values more than this many bytes are read piece by piece every time.
const LONGEST: usize = 64;

/// Keys beyond this one are read piece by piece every time.
const MOST_KEYS: usize = 256;

/// Where the value that follows belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// To this column.
    Column(usize),
    /// To no column.
    Unknown,
    /// There is none: the object ended.
    End,
}

/// What stood between two values of the last message, or around all of them.
#[derive(Debug, Clone)]
struct Segment {
    /// The first 16 bytes (fewer: zeros), and which of their bits count.
    head: u128,
    mask: u128,
    bytes: [u8; LONGEST],
    /// `usize::MAX`: nothing matches.
    length: usize,
    target: Target,
}

/// The segments of the last message, in order.
#[derive(Debug, Default)]
pub(super) struct Shape {
    segments: Vec<Segment>,
}

impl Shape {
    /// If the segment expected at `slot` stands here, passes it and gives its target; the next
    /// one is expected then.
    #[inline]
    pub fn next(&self, slot: &mut usize, scanner: &mut Scanner<'_>) -> Option<Target> {
        let segment = self.segments.get(*slot)?;
        if !segment.matches(scanner) {
            return None;
        }
        scanner.advance(segment.length);
        *slot += 1;
        if segment.target != Target::End {
            // The object before may have had less white space here.
            scanner.skip_white_space();
        }
        Some(segment.target)
    }

    /// Reads the way to the next value piece by piece, and keeps it for the next object. The
    /// scanner stands at the object's brace (`slot` is 0), or after a value. `column` finds the
    /// column of a key.
    #[cold]
    pub fn read(
        &mut self,
        slot: &mut usize,
        scanner: &mut Scanner<'_>,
        scratch: &mut Vec<u8>,
        column: impl Fn(&[u8]) -> Option<usize>,
    ) -> Scan<Target> {
        let begin = scanner.position();
        let first = scanner.peek() == Some(b'{') && *slot == 0;
        if first {
            scanner.advance(1);
        }
        let target = match scanner.key(first)? {
            Some(key) => column(key.value(scratch)).map_or(Target::Unknown, Target::Column),
            None => Target::End,
        };
        let text = scanner.between(begin, scanner.position());
        *slot = self.learn(*slot, text, target);
        Ok(target)
    }

    /// Keeps what stood before the value of `target`, and gives the slot of the next segment.
    /// If a later slot says the same (an optional key is missing here), goes on from there
    /// without forgetting what lies between.
    fn learn(&mut self, slot: usize, text: &[u8], target: Target) -> usize {
        let later = self.segments.iter().skip(slot + 1);
        if let Some(skipped) = { later }.position(|segment| segment.is(text, target)) {
            return slot + skipped + 2;
        }
        let segment = Segment::new(text, target);
        if slot < self.segments.len() {
            self.segments[slot] = segment;
        } else if slot == self.segments.len() && slot < MOST_KEYS {
            self.segments.push(segment);
        }
        slot + 1
    }
}

impl Segment {
    fn new(text: &[u8], target: Target) -> Self {
        let (mut bytes, mut head) = ([0; LONGEST], [0; 16]);
        let Some(kept) = bytes.get_mut(..text.len()) else {
            return Self { head: 0, mask: 0, bytes, length: usize::MAX, target };
        };
        kept.copy_from_slice(text);
        head.copy_from_slice(&bytes[..16]);
        let bits = 8 * text.len().min(16) as u32;
        let mask = u128::MAX.checked_shr(128 - bits).unwrap_or(0);
        Self { head: u128::from_le_bytes(head), mask, bytes, length: text.len(), target }
    }

    fn is(&self, text: &[u8], target: Target) -> bool {
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
        for length in 1..=LONGEST {
            let text: Vec<u8> = (0..length as u8).map(|byte| b'A' + byte % 26).collect();
            let segment = Segment::new(&text, Target::Unknown);
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
        assert!(!Segment::new(&[b' '; LONGEST + 1], Target::End).matches(&Scanner::new(
            &[b' '; 200],
            0,
            200
        )));
    }
}
