//! The JSON scanner: RFC 8259 and nothing else, over the bytes of one record.
//!
//! It looks for the end of a string eight bytes at a time, and to do so reads past the record
//! into the rest of the chunk's buffer; what it finds there never counts. It does not look at
//! UTF-8: whoever gives it bytes has checked them, or checks the message afterwards.

use crate::decode::number::Number;

/// Objects and arrays may stand in one another this deep, the message's own object included.
pub(super) const MAX_DEPTH: u32 = 128;

/// Why a text is no JSON. Where: the scanner's position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SyntaxError {
    /// Not what RFC 8259 allows here.
    NotJson,
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

/// What scanning gives.
pub(super) type ScanResult<T> = Result<T, SyntaxError>;

/// A string's content between its quotes, as it stands in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScannedString<'a> {
    /// The bytes between the quotes; escapes in it are valid.
    pub raw: &'a [u8],
    /// Whether there are escapes.
    pub escaped: bool,
}

impl<'a> ScannedString<'a> {
    /// The string's value; `scratch` holds it when there are escapes.
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
    /// A scanner over `bytes[start..end]`; both are cut to the length of `bytes`.
    pub fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        let end = end.min(bytes.len());
        Self { bytes, pos: start.min(end), end }
    }

    /// Where it stands, as an index into the bytes.
    #[inline]
    pub fn position(&self) -> usize {
        self.pos
    }

    /// Moves to `position`, at most to the end.
    #[inline]
    pub fn move_to(&mut self, position: usize) {
        self.pos = position.min(self.end);
    }

    /// The bytes from `start` to `end`, which the scanner has passed.
    pub fn between(&self, start: usize, end: usize) -> &'a [u8] {
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The bytes that are left of the record.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.pos..self.end]
    }

    /// Sixteen bytes from here, if the buffer (not only the record) has as many.
    #[inline]
    pub fn peek_16(&self) -> Option<&'a [u8; 16]> {
        self.bytes[self.pos..].first_chunk()
    }

    /// Sixteen bytes from `start`, which it has passed, if the buffer has as many.
    #[inline]
    pub fn window(&self, start: usize) -> Option<&'a [u8; 16]> {
        self.bytes.get(start..)?.first_chunk()
    }

    /// How many bytes are left of the record.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.end - self.pos
    }

    /// Whether the record has been read.
    #[inline]
    pub fn at_end(&self) -> bool {
        self.pos == self.end
    }

    /// The next byte.
    #[inline]
    pub fn peek(&self) -> Option<u8> {
        if self.pos < self.end { Some(self.bytes[self.pos]) } else { None }
    }

    /// Passes `count` bytes that the caller has looked at.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        self.move_to(self.pos + count);
    }

    /// Passes white space.
    #[inline]
    pub fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.pos += 1;
        }
    }

    /// Passes `byte`, or fails.
    #[inline]
    pub fn expect(&mut self, byte: u8) -> ScanResult<()> {
        if self.peek() == Some(byte) {
            self.pos += 1;
            Ok(())
        } else {
            Err(SyntaxError::NotJson)
        }
    }

    /// Passes `null`, `true` or `false`, or fails.
    pub fn literal(&mut self, word: &[u8]) -> ScanResult<()> {
        if !self.rest().starts_with(word) {
            return Err(SyntaxError::NotJson);
        }
        self.pos += word.len();
        Ok(())
    }

    /// Passes a string, from its opening to its closing quote.
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
        self.rest_of_escaped(start)
    }

    /// The slow path of [`Scanner::string`]: the scanner stands at the first byte that is not
    /// plain text.
    #[cold]
    fn rest_of_escaped(&mut self, start: usize) -> ScanResult<ScannedString<'a>> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    let raw = &self.bytes[start..self.pos];
                    self.pos += 1;
                    return Ok(ScannedString { raw, escaped: true });
                }
                Some(b'\\') => self.escape()?,
                _ => return Err(SyntaxError::NotJson),
            }
            self.find_special();
        }
    }

    /// Passes one escape; both halves of a surrogate pair are one.
    fn escape(&mut self) -> ScanResult<()> {
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

    /// Passes a number, which `number` becomes.
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

    /// Passes one value of any kind, checking all of it. `depth` is how many objects and arrays
    /// it stands in.
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

    /// Passes the bracket that opens an object or array inside `depth` others.
    #[inline]
    pub fn enter(&mut self, depth: u32) -> ScanResult<()> {
        self.may_enter(depth)?;
        self.advance(1);
        Ok(())
    }

    /// Whether an object or array may stand here, inside `depth` others.
    #[inline]
    pub fn may_enter(&self, depth: u32) -> ScanResult<()> {
        if depth >= MAX_DEPTH { Err(SyntaxError::TooDeep) } else { Ok(()) }
    }

    /// In an object, after its brace or a value: passes the way to the next value and gives its
    /// key, or passes the closing brace and gives nothing.
    pub fn key(&mut self, first: bool) -> ScanResult<Option<ScannedString<'a>>> {
        if !self.next(first, b'}')? {
            return Ok(None);
        }
        let key = self.string()?;
        self.skip_white_space();
        self.expect(b':')?;
        self.skip_white_space();
        Ok(Some(key))
    }

    /// In an array, after its bracket or a value: passes the way to the next value, or passes
    /// the closing bracket and gives false.
    pub fn element(&mut self, first: bool) -> ScanResult<bool> {
        self.next(first, b']')
    }

    fn next(&mut self, first: bool, close: u8) -> ScanResult<bool> {
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

    /// After a message: passes what may stand before the next one. That is the record's end, or
    /// white space with a newline in it, or white space and the next object's brace.
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

    /// The end of a bad message that began at `start`: the first newline at or after the place
    /// where it went wrong; but a line that begins with a brace is a message of its own, for a
    /// line that was cut off must not take the next one with it.
    pub fn resynchronise(&mut self, start: usize) {
        let newline = memchr::memchr(b'\n', self.rest()).map_or(self.end, |at| self.pos + at);
        let brace = memchr::memmem::find(self.between(start, newline), b"\n{");
        self.pos = brace.map_or(newline, |at| start + at);
    }
}

/// The high bit of each byte that is a quote, a backslash or a control character; exact for the
/// lowest such byte ("Bit Twiddling Hacks", determine if a word has a byte less than n).
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

/// The number that four hexadecimal digits at `at` spell.
fn hex4(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 4)?;
    digits.iter().try_fold(0, |sum, &digit| Some(sum * 16 + char::from(digit).to_digit(16)?))
}

/// Appends the value of a string whose escapes are valid.
pub(super) fn unescape(raw: &[u8], out: &mut Vec<u8>) {
    // An escape is never shorter than its value; eight more, for words are copied whole.
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

/// Appends the character of the `\u` escape that `text` begins with, and gives what follows it.
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

/// The high bit of each byte that is a backslash; exact for the lowest.
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
    fn the_first_special_byte_is_found_at_every_place_and_after_every_byte() {
        for before in 0..=255u8 {
            let plain = before >= 0x20 && before != b'"' && before != b'\\';
            for place in 0..8 {
                for found in [b'"', b'\\', 0, 0x1f, b'\n'] {
                    let mut word = [before; 8];
                    word[place..].fill(found);
                    let expected = if plain { place } else { 0 };
                    let mask = special(u64::from_le_bytes(word));
                    assert_eq!(mask.trailing_zeros() / 8, expected as u32, "{word:?}");
                }
            }
            assert_eq!(special(u64::from_le_bytes([before; 8])) == 0, plain, "{before}");
        }
    }

    #[test]
    fn a_string_that_ends_in_the_next_record_is_none() {
        let bytes = b"\"abcdefghijkl\"";
        for end in 0..bytes.len() {
            assert!(Scanner::new(bytes, 0, end).string().is_err(), "{end}");
        }
        assert!(Scanner::new(bytes, 0, bytes.len()).string().is_ok());
    }

    #[test]
    fn a_bad_message_ends_at_the_newline_or_where_a_line_begins_with_a_brace() {
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
