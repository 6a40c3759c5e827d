//! Builds a column of texts or byte strings: one buffer of bytes, and the end offset of each string.

use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};

use crate::decode::reason::Reason;
use crate::decode::scanner::unescape;

/// Concatenated byte strings. String `i` is `bytes[ends[i]..ends[i + 1]]`.
#[derive(Debug)]
pub(super) struct TextBuilder {
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl TextBuilder {
    /// Creates an empty builder.
    pub fn new() -> Self {
        Self { ends: vec![0], bytes: Vec::new() }
    }

    /// Ends a string: the bytes appended since the previous end are its content.
    ///
    /// The offset cannot overflow, because the decoder rejects chunks of 2 GiB and more.
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

    /// Appends `value`, whose bytes are the first bytes of `window`. A copy of the constant-sized
    /// window is faster than a copy of the exact length.
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

    /// Appends the unescaped value of a raw string, whose escapes must be valid.
    pub fn push_escaped(&mut self, raw: &[u8]) {
        unescape(raw, &mut self.bytes);
        self.end();
    }

    /// Appends the bytes of a hexadecimal text, the format of BYTEA in results. Fails without a change
    /// if `text` does not consist of pairs of hexadecimal digits.
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

    /// Returns all strings and leaves an empty builder with at least the same capacity.
    pub fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let (ends, bytes) = (self.ends.len(), self.bytes.len());
        let finished = std::mem::replace(
            self,
            Self { ends: Vec::with_capacity(ends), bytes: Vec::with_capacity(bytes + bytes / 8) },
        );
        self.ends.push(0);
        (OffsetBuffer::new(ScalarBuffer::from(finished.ends)), Buffer::from_vec(finished.bytes))
    }
}
