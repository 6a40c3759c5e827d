//! The JSON scanner: accepts exactly RFC 8259, over the bytes of one record.
//!
//! It searches for the end of a string eight bytes at a time. The search may read past the record
//! into the rest of the chunk's buffer, but never uses a match there. The scanner does not validate
//! UTF-8: the caller validates the bytes before scanning, or the message afterwards.

use crate::decode::number::Number;

/// The maximum nesting depth of objects and arrays, including the message's own object.
pub(super) const MAX_DEPTH: u32 = 128;

/// Why a text is not valid JSON. The scanner's position is the position of the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SyntaxError {
    /// The text violates the grammar of RFC 8259.
    NotJson,
    /// The nesting exceeds [`MAX_DEPTH`].
    TooDeep,
}

/// The result of a scan.
pub(super) type ScanResult<T> = Result<T, SyntaxError>;

/// The content of a string between its quotes, as written in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScannedString<'a> {
    /// The bytes between the quotes. All escapes in them are valid.
    pub raw: &'a [u8],
    /// Whether `raw` contains escapes.
    pub escaped: bool,
}

impl<'a> ScannedString<'a> {
    /// The unescaped value. It is written to `scratch` only if there are escapes.
    #[inline]
    pub fn value<'b>(&self, scratch: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        if !self.escaped {
            return self.raw;
        }
        scratch.clear();
        unescape(self.raw, scratch);
        scratch
    }
}

/// A position in the bytes of one record. `pos <= end <= bytes.len()` always holds.
#[derive(Debug, Clone)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    pos: usize,
    end: usize,
}

impl<'a> Scanner<'a> {
    /// Creates a scanner over `bytes[start..end]`; both bounds are limited to the length of `bytes`.
    pub fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        let end = end.min(bytes.len());
        Self { bytes, pos: start.min(end), end }
    }

    /// The current position, as an index into the bytes.
    #[inline]
    pub fn position(&self) -> usize {
        self.pos
    }

    /// Moves to `position`, but not past the end of the record.
    #[inline]
    pub fn move_to(&mut self, position: usize) {
        self.pos = position.min(self.end);
    }

    /// The bytes from `start` to `end`, which the scanner has already passed.
    pub fn between(&self, start: usize, end: usize) -> &'a [u8] {
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The remaining bytes of the record.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.pos..self.end]
    }

    /// The next sixteen bytes, if the buffer (not only the record) has as many.
    #[inline]
    pub fn peek_16(&self) -> Option<&'a [u8; 16]> {
        self.bytes[self.pos..].first_chunk()
    }

    /// Sixteen bytes from `start`, which the scanner has passed, if the buffer has as many.
    #[inline]
    pub fn window(&self, start: usize) -> Option<&'a [u8; 16]> {
        self.bytes.get(start..)?.first_chunk()
    }

    /// The number of remaining bytes of the record.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.end - self.pos
    }

    /// Whether the scanner is at the end of the record.
    #[inline]
    pub fn at_end(&self) -> bool {
        self.pos == self.end
    }

    /// The next byte, without advancing.
    #[inline]
    pub fn peek(&self) -> Option<u8> {
        if self.pos < self.end { Some(self.bytes[self.pos]) } else { None }
    }

    /// Advances past `count` bytes that the caller has inspected.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        self.move_to(self.pos + count);
    }

    /// Advances past white space.
    #[inline]
    pub fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.pos += 1;
        }
    }

    /// Advances past `byte`, or fails if another byte follows.
    #[inline]
    pub fn expect(&mut self, byte: u8) -> ScanResult<()> {
        if self.peek() == Some(byte) {
            self.pos += 1;
            Ok(())
        } else {
            Err(SyntaxError::NotJson)
        }
    }

    /// Advances past `word` (`null`, `true` or `false`), or fails if it does not follow.
    pub fn literal(&mut self, word: &[u8]) -> ScanResult<()> {
        if !self.rest().starts_with(word) {
            return Err(SyntaxError::NotJson);
        }
        self.pos += word.len();
        Ok(())
    }

    /// Reads a string, from its opening to its closing quote.
    #[inline]
    pub fn string(&mut self) -> ScanResult<ScannedString<'a>> {
        self.expect(b'"')?;
        let start = self.pos;
        self.find_special();
        if self.peek() == Some(b'"') {
            let raw = &self.bytes[start..self.pos];
            self.pos += 1;
            return Ok(ScannedString { raw, escaped: false });
        }
        self.finish_escaped_string(start)
    }

    /// The slow path of [`Scanner::string`]: the scanner is at the first byte that is not plain
    /// text.
    #[cold]
    fn finish_escaped_string(&mut self, start: usize) -> ScanResult<ScannedString<'a>> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    let raw = &self.bytes[start..self.pos];
                    self.pos += 1;
                    return Ok(ScannedString { raw, escaped: true });
                }
                Some(b'\\') => self.skip_escape()?,
                _ => return Err(SyntaxError::NotJson),
            }
            self.find_special();
        }
    }

    /// Advances past one escape. A surrogate pair counts as one escape.
    fn skip_escape(&mut self) -> ScanResult<()> {
        self.pos += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.pos += 1;
                return Ok(());
            }
            Some(b'u') => {}
            _ => return Err(SyntaxError::NotJson),
        }
        let Some(unit) = hex4(self.rest(), 1) else { return Err(SyntaxError::NotJson) };
        self.pos += 5;
        match unit {
            0xd800..0xdc00 => {
                let low = self.rest().starts_with(b"\\u").then(|| hex4(self.rest(), 2)).flatten();
                if !matches!(low, Some(0xdc00..0xe000)) {
                    return Err(SyntaxError::NotJson);
                }
                self.pos += 6;
                Ok(())
            }
            0xdc00..0xe000 => Err(SyntaxError::NotJson),
            _ => Ok(()),
        }
    }

    /// Moves to the next quote, backslash or control character, or to the end.
    #[inline]
    fn find_special(&mut self) {
        let mut pos = self.pos;
        while let Some(word) = self.bytes[pos..].first_chunk::<8>() {
            let found = special(u64::from_le_bytes(*word));
            if found != 0 {
                self.pos = (pos + found.trailing_zeros() as usize / 8).min(self.end);
                return;
            }
            pos += 8;
            if pos >= self.end {
                self.pos = self.end;
                return;
            }
        }
        while pos < self.end && !matches!(self.bytes[pos], b'"' | b'\\' | 0..0x20) {
            pos += 1;
        }
        self.pos = pos.min(self.end);
    }

    /// Reads a number into `number`.
    #[inline]
    pub fn number(&mut self, number: &mut Number<'a>) -> ScanResult<()> {
        match number.read(self.rest()) {
            Ok(()) => {
                self.pos += number.text.len();
                Ok(())
            }
            Err(at) => {
                self.advance(at);
                Err(SyntaxError::NotJson)
            }
        }
    }

    /// Advances past one value of any kind and validates all of it. `depth` is the number of objects
    /// and arrays around it.
    pub fn skip_value(&mut self, depth: u32) -> ScanResult<()> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| ()),
            Some(b'-' | b'0'..=b'9') => self.number(&mut Number::default()),
            Some(b'{') => {
                let mut first = true;
                self.enter(depth)?;
                while self.key(first)?.is_some() {
                    self.skip_value(depth + 1)?;
                    first = false;
                }
                Ok(())
            }
            Some(b'[') => {
                let mut first = true;
                self.enter(depth)?;
                while self.element(first)? {
                    self.skip_value(depth + 1)?;
                    first = false;
                }
                Ok(())
            }
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            _ => Err(SyntaxError::NotJson),
        }
    }

    /// Advances past the bracket that opens an object or array inside `depth` others.
    #[inline]
    pub fn enter(&mut self, depth: u32) -> ScanResult<()> {
        self.check_depth(depth)?;
        self.advance(1);
        Ok(())
    }

    /// Fails if an object or array inside `depth` others would exceed [`MAX_DEPTH`].
    #[inline]
    pub fn check_depth(&self, depth: u32) -> ScanResult<()> {
        if depth >= MAX_DEPTH { Err(SyntaxError::TooDeep) } else { Ok(()) }
    }

    /// Within an object, after the opening brace (`first`) or a value: advances to the next value
    /// and returns its key, or advances past the closing brace and returns `None`.
    pub fn key(&mut self, first: bool) -> ScanResult<Option<ScannedString<'a>>> {
        if !self.advance_to_next(first, b'}')? {
            return Ok(None);
        }
        let key = self.string()?;
        self.skip_white_space();
        self.expect(b':')?;
        self.skip_white_space();
        Ok(Some(key))
    }

    /// Within an array, after the opening bracket (`first`) or a value: advances to the next value
    /// and returns true, or advances past the closing bracket and returns false.
    pub fn element(&mut self, first: bool) -> ScanResult<bool> {
        self.advance_to_next(first, b']')
    }

    fn advance_to_next(&mut self, first: bool, close: u8) -> ScanResult<bool> {
        self.skip_white_space();
        if self.peek() == Some(close) {
            self.pos += 1;
            return Ok(false);
        }
        if !first {
            self.expect(b',')?;
            self.skip_white_space();
        }
        Ok(true)
    }

    /// After a message: advances past the separator to the next message. A separator is the end of
    /// the record, white space with a newline, or white space before the next object's brace.
    #[inline]
    pub fn separator(&mut self) -> ScanResult<()> {
        if self.at_end() {
            return Ok(());
        }
        let start = self.pos;
        self.skip_white_space();
        let space = &self.bytes[start..self.pos];
        let next_object = !space.is_empty() && self.peek() == Some(b'{');
        if self.at_end() || next_object || space.contains(&b'\n') {
            Ok(())
        } else {
            Err(SyntaxError::NotJson)
        }
    }

    /// Moves to the end of an invalid message that began at `start`: the first newline at or after
    /// the error. A line that begins with a brace is a separate message, so that a truncated line
    /// does not invalidate the next one.
    pub fn resynchronise(&mut self, start: usize) {
        let newline = memchr::memchr(b'\n', self.rest()).map_or(self.end, |at| self.pos + at);
        let brace = memchr::memmem::find(self.between(start, newline), b"\n{");
        self.pos = brace.map_or(newline, |at| start + at);
    }
}

/// Returns a mask with the high bit of each byte that is a quote, a backslash or a control
/// character. It is exact for the lowest such byte ("Bit Twiddling Hacks", determine if a word has
/// a byte less than n).
#[inline]
fn special(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (quote | backslash | control) & (ONES * 0x80)
}

/// The value of the four hexadecimal digits at `at`.
fn hex4(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 4)?;
    digits.iter().try_fold(0, |sum, &digit| Some(sum * 16 + char::from(digit).to_digit(16)?))
}

/// Appends the value of a string whose escapes are valid.
pub(super) fn unescape(raw: &[u8], out: &mut Vec<u8>) {
    // An escape is never shorter than its value. Eight extra bytes, because whole words are copied.
    out.reserve(raw.len() + 8);
    let mut rest = raw;
    loop {
        while let Some(word) = rest.first_chunk::<8>() {
            let found = backslash(u64::from_le_bytes(*word)).trailing_zeros() as usize / 8;
            let end = out.len() + found;
            out.extend_from_slice(word);
            out.truncate(end);
            rest = &rest[found..];
            if found < 8 {
                break;
            }
        }
        let plain = rest.iter().position(|&byte| byte == b'\\').unwrap_or(rest.len());
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let plain = match rest.get(1) {
            None => return,
            Some(b'u') => {
                rest = unescape_unit(rest, out);
                continue;
            }
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(&same) => same,
        };
        out.push(plain);
        rest = &rest[2..];
    }
}

/// Appends the character of the `\u` escape at the beginning of `text` and returns the bytes after it.
fn unescape_unit<'a>(text: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let high = hex4(text, 2).unwrap_or_default();
    let (code, length) = if (0xd800..0xdc00).contains(&high) {
        let low = hex4(text, 8).unwrap_or_default();
        (0x10000 + ((high & 0x3ff) << 10 | low & 0x3ff), 12)
    } else {
        (high, 6)
    };
    let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    text.get(length..).unwrap_or_default()
}

/// Returns a mask with the high bit of each byte that is a backslash. It is exact for the lowest
/// such byte.
#[inline]
fn backslash(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let backslash = word ^ (ONES * b'\\' as u64);
    backslash.wrapping_sub(ONES) & !backslash & (ONES * 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_finds_the_first_special_byte_at_every_position() {
        for before in 0..=255u8 {
            let plain = before >= 0x20 && before != b'"' && before != b'\\';
            for position in 0..8 {
                for found in [b'"', b'\\', 0, 0x1f, b'\n'] {
                    let mut word = [before; 8];
                    word[position..].fill(found);
                    let expected = if plain { position } else { 0 };
                    let mask = special(u64::from_le_bytes(word));
                    assert_eq!(mask.trailing_zeros() / 8, expected as u32, "{word:?}");
                }
            }
            assert_eq!(special(u64::from_le_bytes([before; 8])) == 0, plain, "{before}");
        }
    }

    #[test]
    fn a_string_that_ends_in_the_next_record_is_invalid() {
        let bytes = b"\"abcdefghijkl\"";
        for end in 0..bytes.len() {
            assert!(Scanner::new(bytes, 0, end).string().is_err(), "{end}");
        }
        assert!(Scanner::new(bytes, 0, bytes.len()).string().is_ok());
    }

    #[test]
    fn an_invalid_message_ends_at_a_newline_or_before_a_line_that_begins_with_a_brace() {
        let end_of_first = |text: &str, wrong: &str| {
            let mut scanner = Scanner::new(text.as_bytes(), 0, text.len());
            scanner.move_to(text.find(wrong).unwrap());
            scanner.resynchronise(0);
            text[..scanner.position()].to_owned()
        };
        assert_eq!(end_of_first("{\"a\": x}\n{}", "x"), "{\"a\": x}");
        assert_eq!(end_of_first("{\"a\":\n{}\n!{}", "!"), "{\"a\":");
        assert_eq!(end_of_first("{\n \"a\": x,\n \"b\": 1\n}", "x"), "{\n \"a\": x,");
        assert_eq!(end_of_first("nonsense", "n"), "nonsense");
    }
}
