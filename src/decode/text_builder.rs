//! Builds a column of texts or byte strings: all bytes in one buffer, and the end of each string.

use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};

use crate::decode::reason::Reason;
use crate::decode::scanner::unescape;

/// Byte strings, one after the other; `ends[i]` is where the one before `i` ends.
#[derive(Debug)]
pub(super) struct TextBuilder {
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl TextBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self { ends: vec![0], bytes: Vec::new() }
    }

    /// What was appended to the bytes since is one of them.
    ///
    /// The decoder refuses chunks whose bytes could overflow this.
    #[inline]
    pub fn end(&mut self) {
        self.ends.push(self.bytes.len() as i32);
    }

    /// Appends a string.
    #[inline]
    pub fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.end();
    }

    /// As [`TextBuilder::push`], of a value that begins where `window` does: to copy all of that at once
    /// is quicker than to copy as much as is needed.
    #[inline]
    pub fn push_from(&mut self, value: &[u8], window: Option<&[u8; 16]>) {
        match window {
            Some(window) if value.len() <= window.len() => {
                let end = self.bytes.len() + value.len();
                self.bytes.extend_from_slice(window);
                self.bytes.truncate(end);
            }
            _ => self.bytes.extend_from_slice(value),
        }
        self.end();
    }

    /// As [`TextBuilder::push`], of a string as it is written, whose escapes are valid.
    pub fn push_escaped(&mut self, raw: &[u8]) {
        unescape(raw, &mut self.bytes);
        self.end();
    }

    /// Pairs of hexadecimal digits, as results are written; nothing happens to others.
    pub fn push_hex(&mut self, text: &[u8]) -> Result<(), Reason> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        if !text.len().is_multiple_of(2) || text.iter().any(|&byte| digit(byte).is_none()) {
            return Err(Reason::WrongType);
        }
        let byte = |pair: &[u8]| pair.iter().fold(0, |sum, &d| sum * 16 + digit(d).unwrap_or(0));
        self.bytes.extend(text.chunks(2).map(|pair| byte(pair) as u8));
        self.end();
        Ok(())
    }

    /// Retains only the first `len` strings.
    pub fn truncate(&mut self, len: usize) {
        self.ends.truncate(len + 1);
        self.bytes.truncate(self.ends.last().map_or(0, |&end| end as usize));
    }

    /// Returns all strings and starts over with the same capacity.
    pub fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let expected = (self.ends.len(), self.bytes.len());
        let whole = std::mem::replace(
            self,
            Self {
                ends: Vec::with_capacity(expected.0),
                bytes: Vec::with_capacity(expected.1 + expected.1 / 8),
            },
        );
        self.ends.push(0);
        (OffsetBuffer::new(ScalarBuffer::from(whole.ends)), Buffer::from_vec(whole.bytes))
    }
}
