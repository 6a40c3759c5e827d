//! The decoder once more, slow and plain: what it must say of any bytes, for tests and fuzzing.
//!
//! A text is read into a tree that keeps numbers as they are written; columns are judged from
//! the tree, numbers as strings of digits and doubles by the standard library. Only the types are
//! shared with the real decoder.

use std::ops::Range;

use arrow::datatypes::{DataType, Fields};
use chrono::{NaiveDate, NaiveDateTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use regex::bytes::Regex;

use crate::decode::{Field, Reason};

/// A JSON value as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    /// null
    Null,
    /// true, false
    Bool(bool),
    /// Its text.
    Number(Vec<u8>),
    /// Its value.
    Text(Vec<u8>),
    /// Its elements.
    Array(Vec<Json>),
    /// Its members, in order.
    Object(Vec<(Vec<u8>, Json)>),
}

/// Where a text is no JSON, and why.
type Wrong = (usize, Reason);

/// What becomes of one message: values as text and the number of unknown keys, or a refusal.
pub type Row = Result<(Vec<String>, u64), (Option<usize>, Reason)>;

/// Every message of a record, with the bytes that a rejected one covers.
pub fn messages(record: &[u8], fields: &[Field], zone: Tz) -> Vec<(Row, Range<usize>)> {
    let mut out = Vec::new();
    let mut at = space(record, 0);
    while at < record.len() {
        let begin = at;
        let read = value(record, at, 0);
        let next = match &read {
            Ok((_, end)) => separator(record, *end),
            Err((wrong, _)) => Err(*wrong),
        };
        let end = match (&read, next) {
            (Ok((_, end)), Ok(_)) => *end,
            (_, Ok(wrong) | Err(wrong)) => resynchronise(record, begin, wrong),
        };
        let own = &record[begin..end];
        let row = match (std::str::from_utf8(own), read) {
            (Err(_), _) => Err((None, Reason::InvalidUtf8)),
            (_, Err((_, reason))) => Err((None, reason)),
            (_, Ok(_)) if next.is_err() => Err((None, Reason::NotJson)),
            (_, Ok((Json::Object(members), _))) => row(&members, fields, zone),
            (_, Ok(_)) => Err((None, Reason::NotAnObject)),
        };
        out.push((row, begin..end));
        at = space(record, next.unwrap_or(end));
    }
    if out.is_empty() {
        out.push((Err((None, Reason::Empty)), 0..record.len()));
    }
    out
}

/// The value that a text is as a whole, if it is one.
pub fn whole(text: &[u8]) -> Option<Json> {
    let (value, end) = value(text, space(text, 0), 0).ok()?;
    let all = space(text, end) == text.len() && std::str::from_utf8(text).is_ok();
    all.then_some(value)
}

fn space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
        at += 1;
    }
    at
}

/// The beginning of the next message, or where something else stands.
fn separator(text: &[u8], end: usize) -> Result<usize, usize> {
    let next = space(text, end);
    let between = &text[end..next];
    let apart = !between.is_empty() && text.get(next) == Some(&b'{');
    if next == text.len() || apart || between.contains(&b'\n') { Ok(next) } else { Err(next) }
}

fn resynchronise(text: &[u8], begin: usize, wrong: usize) -> usize {
    let newline = (wrong..text.len()).find(|at| text[*at] == b'\n').unwrap_or(text.len());
    (begin..newline).find(|at| text[*at..newline].starts_with(b"\n{")).unwrap_or(newline)
}

/// Reads the value at `at` inside `depth` others: the value and its end.
fn value(text: &[u8], at: usize, depth: usize) -> Result<(Json, usize), Wrong> {
    let rest = &text[at..];
    match rest.first() {
        Some(b'n') if rest.starts_with(b"null") => Ok((Json::Null, at + 4)),
        Some(b't') if rest.starts_with(b"true") => Ok((Json::Bool(true), at + 4)),
        Some(b'f') if rest.starts_with(b"false") => Ok((Json::Bool(false), at + 5)),
        Some(b'"') => string(text, at).map(|(value, end)| (Json::Text(value), end)),
        Some(b'{' | b'[') if depth == 128 => Err((at, Reason::TooDeep)),
        Some(b'{') => members(text, at + 1, depth + 1),
        Some(b'[') => elements(text, at + 1, depth + 1),
        _ => match number(rest) {
            0 => Err((at, Reason::NotJson)),
            length => Ok((Json::Number(rest[..length].to_vec()), at + length)),
        },
    }
}

fn members(text: &[u8], at: usize, depth: usize) -> Result<(Json, usize), Wrong> {
    let (mut all, mut at) = (Vec::new(), space(text, at));
    if text.get(at) == Some(&b'}') {
        return Ok((Json::Object(all), at + 1));
    }
    loop {
        let (key, end) = string(text, at)?;
        let colon = space(text, end);
        if text.get(colon) != Some(&b':') {
            return Err((colon, Reason::NotJson));
        }
        let (value, end) = value(text, space(text, colon + 1), depth)?;
        all.push((key, value));
        at = space(text, end);
        match text.get(at) {
            Some(b'}') => return Ok((Json::Object(all), at + 1)),
            Some(b',') => at = space(text, at + 1),
            _ => return Err((at, Reason::NotJson)),
        }
    }
}

fn elements(text: &[u8], at: usize, depth: usize) -> Result<(Json, usize), Wrong> {
    let (mut all, mut at) = (Vec::new(), space(text, at));
    if text.get(at) == Some(&b']') {
        return Ok((Json::Array(all), at + 1));
    }
    loop {
        let (element, end) = value(text, at, depth)?;
        all.push(element);
        at = space(text, end);
        match text.get(at) {
            Some(b']') => return Ok((Json::Array(all), at + 1)),
            Some(b',') => at = space(text, at + 1),
            _ => return Err((at, Reason::NotJson)),
        }
    }
}

/// Reads the string at `at`: its value and its end.
fn string(text: &[u8], at: usize) -> Result<(Vec<u8>, usize), Wrong> {
    if text.get(at) != Some(&b'"') {
        return Err((at, Reason::NotJson));
    }
    let (mut out, mut at) = (Vec::new(), at + 1);
    loop {
        match text.get(at) {
            Some(b'"') => return Ok((out, at + 1)),
            Some(b'\\') => {
                let Some((character, length)) = escape(&text[at..]) else {
                    return Err((at, Reason::NotJson));
                };
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                at += length;
            }
            Some(&byte) if byte >= 0x20 => {
                out.push(byte);
                at += 1;
            }
            _ => return Err((at, Reason::NotJson)),
        }
    }
}

/// The character of the escape that `text` begins with, and its length.
fn escape(text: &[u8]) -> Option<(char, usize)> {
    let plain = match text.get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let unit = |at: usize| {
                let digits = text.get(at..at + 4)?;
                let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
                u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
            };
            let first = unit(2)?;
            if let Some(character) = char::from_u32(u32::from(first)) {
                return Some((character, 6));
            }
            let second = text.get(6..8).filter(|next| next == b"\\u").and_then(|_| unit(8))?;
            let pair = char::decode_utf16([first, second]).next()?.ok()?;
            return Some((pair, 12));
        }
        _ => return None,
    };
    Some((plain, 2))
}

thread_local! {
    static NUMBER: Regex = compile(r"(?-u)\A-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?");
    static TIME: Regex = compile(
        r"(?-u)\A([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})[Tt ]([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})(?:\.([0-9]+))?(?:([Zz])|([+-])([0-9]{2})(?::?([0-9]{2}))?)?\z",
    );
    static LOCAL: Regex = compile(
        r"(?-u)\A([0-9]{4})([0-9]{2})([0-9]{2}) ([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})\z",
    );
}

#[allow(clippy::unwrap_used)]
fn compile(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

/// The length of the number that `text` begins with; 0: of none. "1.x" is no number at all.
fn number(text: &[u8]) -> usize {
    let length = NUMBER.with(|number| number.find(text).map_or(0, |found| found.len()));
    match text.get(length) {
        Some(b'0'..=b'9' | b'.' | b'e' | b'E') if length > 0 => {
            let seen = &text[..length];
            let again = |set: &[u8]| seen.iter().any(|byte| set.contains(byte));
            match text[length] {
                // "01": the zero is a number, and what follows is not.
                b'0'..=b'9' => 0,
                b'.' if again(b".eE") => length,
                b'e' | b'E' if again(b"eE") => length,
                _ => 0,
            }
        }
        _ => length,
    }
}

fn row(members: &[(Vec<u8>, Json)], fields: &[Field], zone: Tz) -> Row {
    let names: Vec<&[u8]> = fields.iter().map(|field| field.name.as_bytes()).collect();
    let unknown = members.iter().filter(|(key, _)| !names.contains(&key.as_slice())).count();
    let judged = struct_of(members, &names, |index, value| {
        let Field { data_type, nullable, format, .. } = &fields[index];
        match value {
            Some(value) => judge(value, data_type, *nullable, format.as_deref(), zone),
            None if *nullable => Ok("null".to_owned()),
            None => Err(Reason::Missing),
        }
    });
    match judged {
        Ok(values) => Ok((values, unknown as u64)),
        Err((index, reason)) => Err((Some(index), reason)),
    }
}

/// The columns of an object. Of a key that comes twice the last counts. The column that refused
/// its value first is to blame; then the first that lacks one.
fn struct_of(
    members: &[(Vec<u8>, Json)],
    names: &[&[u8]],
    judge: impl Fn(usize, Option<&Json>) -> Result<String, Reason>,
) -> Result<Vec<String>, (usize, Reason)> {
    let mut last = vec![None; names.len()];
    for (place, (key, _)) in members.iter().enumerate() {
        if let Some(index) = names.iter().position(|name| name == key) {
            last[index] = Some(place);
        }
    }
    let all: Vec<_> =
        (0..names.len()).map(|i| judge(i, last[i].map(|place: usize| &members[place].1))).collect();
    let present = (0..names.len()).filter(|i| all[*i].is_err() && last[*i].is_some());
    let first = present.min_by_key(|i| last[*i]).or_else(|| all.iter().position(Result::is_err));
    match first {
        Some(index) => Err((index, all[index].clone().err().unwrap_or(Reason::NotJson))),
        None => Ok(all.into_iter().flatten().collect()),
    }
}

/// What a column makes of a value: its text, or why not.
fn judge(
    value: &Json,
    data_type: &DataType,
    nullable: bool,
    format: Option<&str>,
    zone: Tz,
) -> Result<String, Reason> {
    match (value, data_type) {
        (Json::Null, _) if nullable => Ok("null".to_owned()),
        (Json::Null, _) => Err(Reason::Null),
        (Json::Bool(value), DataType::Boolean) => Ok(value.to_string()),
        (Json::Text(text), _) => judge_text(text, data_type, format, zone),
        (Json::Number(text), DataType::Utf8) => Ok(shown(text)),
        (Json::Number(text), _) => judge_number(text, data_type, format),
        (Json::Array(items), DataType::List(item)) => {
            let (data_type, nullable) = (item.data_type(), item.is_nullable());
            let items = items.iter().map(|item| judge(item, data_type, nullable, None, zone));
            Ok(format!("[{}]", items.collect::<Result<Vec<_>, _>>()?.join(",")))
        }
        (Json::Object(members), DataType::Struct(fields)) => judge_struct(members, fields, zone),
        _ => Err(Reason::WrongType),
    }
}

fn judge_struct(members: &[(Vec<u8>, Json)], fields: &Fields, zone: Tz) -> Result<String, Reason> {
    let names: Vec<&[u8]> = fields.iter().map(|field| field.name().as_bytes()).collect();
    let values = struct_of(members, &names, |index, value| {
        let field = &fields[index];
        match value {
            Some(value) => judge(value, field.data_type(), field.is_nullable(), None, zone),
            None if field.is_nullable() => Ok("null".to_owned()),
            None => Err(Reason::Missing),
        }
    });
    let values = values.map_err(|(_, reason)| reason)?;
    Ok(format!("{{{}}}", values.join(",")))
}

/// Text as this module shows it: by its bytes, so that nothing is like anything else.
pub fn shown(text: &[u8]) -> String {
    format!("'{}'", text.escape_ascii())
}

fn judge_text(
    text: &[u8],
    data_type: &DataType,
    format: Option<&str>,
    zone: Tz,
) -> Result<String, Reason> {
    match data_type {
        DataType::Utf8 => Ok(shown(text)),
        DataType::Boolean if text == b"true" || text == b"false" => {
            Ok(String::from_utf8_lossy(text).into_owned())
        }
        DataType::Boolean | DataType::List(_) | DataType::Struct(_) => Err(Reason::WrongType),
        DataType::Binary => {
            let hex = text.len().is_multiple_of(2) && text.iter().all(u8::is_ascii_hexdigit);
            let lower = String::from_utf8_lossy(text).to_lowercase();
            if hex { Ok(format!("x{lower}")) } else { Err(Reason::WrongType) }
        }
        DataType::Date32 => {
            let text = std::str::from_utf8(text).map_err(|_| Reason::BadDate)?;
            let digits = text.bytes().filter(u8::is_ascii_digit).count();
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| Reason::BadDate)?;
            let iso = text.len() == 10 && digits == 8;
            if iso { Ok(date.to_string()) } else { Err(Reason::BadDate) }
        }
        DataType::Timestamp(..) if format.is_none_or(|format| format.starts_with('%')) => {
            instant(text, format, zone).map(|time| time.to_string()).ok_or(Reason::BadTimestamp)
        }
        _ if number(text) == text.len() && !text.is_empty() => {
            judge_number(text, data_type, format)
        }
        _ => Err(Reason::WrongType),
    }
}

/// Microseconds since 1970 of a text that is RFC 3339, or `%Y%m%d %H:%M:%S`.
fn instant(text: &[u8], format: Option<&str>, zone: Tz) -> Option<i64> {
    let pattern = if format.is_some() { &LOCAL } else { &TIME };
    let found = pattern.with(|pattern| {
        let found = pattern.captures(text)?;
        let get = |group| {
            let text = found.get(group).map(|m: regex::bytes::Match<'_>| m.as_bytes());
            text.map(|text| String::from_utf8_lossy(text).into_owned())
        };
        Some((1..=11).map(get).collect::<Vec<_>>())
    })?;
    let part = |index: usize| found.get(index).cloned().flatten();
    let number = |index: usize| part(index).map_or(Some(0), |text| text.parse::<u32>().ok());
    let date = NaiveDate::from_ymd_opt(number(0)? as i32, number(1)?, number(2)?)?;
    let (hour, minute, second) = (number(3)?, number(4)?, number(5)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = i64::from(hour * 3600 + minute * 60 + second);
    let micros: String =
        part(6).unwrap_or_default().chars().chain("000000".chars()).take(6).collect();
    let local = date.and_hms_opt(0, 0, 0)? + TimeDelta::seconds(seconds);
    let micros = micros.parse::<i64>().ok()?;
    let utc = match (part(7), part(8)) {
        (Some(_), _) => local,
        (None, Some(sign)) => {
            let (hours, minutes) = (number(9)?, number(10)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = TimeDelta::minutes(i64::from(hours * 60 + minutes));
            if sign == "+" { local - offset } else { local + offset }
        }
        (None, None) => in_zone(local, zone)?,
    };
    Some(utc.and_utc().timestamp_micros() + micros)
}

fn in_zone(local: NaiveDateTime, zone: Tz) -> Option<NaiveDateTime> {
    if let Some(time) = zone.from_local_datetime(&local).earliest() {
        return Some(time.naive_utc());
    }
    // Skipped: by the offset of three hours before.
    let before = zone.from_local_datetime(&(local - TimeDelta::hours(3))).earliest()?;
    Some(before.naive_utc() + TimeDelta::hours(3))
}

/// What a column makes of a number: its text, or why not.
fn judge_number(text: &[u8], data_type: &DataType, format: Option<&str>) -> Result<String, Reason> {
    let text = std::str::from_utf8(text).map_err(|_| Reason::NotJson)?;
    let within = |most: i128| {
        let value: i128 = exact(text, 0)?;
        let fits = (-most - 1..=most).contains(&value);
        if fits { Ok(value.to_string()) } else { Err(Reason::OutOfRange) }
    };
    match data_type {
        DataType::Int8 => within(i8::MAX.into()),
        DataType::Int16 => within(i16::MAX.into()),
        DataType::Int32 => within(i32::MAX.into()),
        DataType::Int64 => within(i64::MAX.into()),
        DataType::Float64 => match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(format!("{:016x}", value.to_bits())),
            _ => Err(Reason::OutOfRange),
        },
        DataType::Float32 => match text.parse::<f32>() {
            Ok(value) if value.is_finite() => Ok(format!("{:08x}", value.to_bits())),
            _ => Err(Reason::OutOfRange),
        },
        DataType::Decimal128(precision, scale) => {
            let value = exact(text, i64::from(*scale))?;
            let fits = value.abs() < 10i128.pow(u32::from(*precision));
            if fits { Ok(value.to_string()) } else { Err(Reason::OutOfRange) }
        }
        DataType::Timestamp(..) => match format {
            Some("epoch_ms") => epoch(text, 3),
            Some("epoch_us") => epoch(text, 0),
            Some("epoch_s") => epoch(text, 6),
            _ => Err(Reason::WrongType),
        },
        _ => Err(Reason::WrongType),
    }
}

/// Sign, digits without zeros around them, and the power of ten by which they count.
fn parts(text: &str) -> (bool, String, i64) {
    let (negative, text) = (text.starts_with('-'), text.trim_start_matches('-'));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let far = 1_i64 << 50;
    let magnitude = exponent.trim_start_matches(['+', '-']).parse().unwrap_or(far).min(far);
    let exponent = if exponent.starts_with('-') { -magnitude } else { magnitude };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let digits = all.trim_end_matches('0');
    let exponent = exponent - fraction.len() as i64 + (all.len() - digits.len()) as i64;
    (negative, digits.trim_start_matches('0').to_owned(), exponent)
}

/// value × 10^scale, if that is an integer.
///
/// # Errors
/// It is none, or beyond all types.
pub fn exact(text: &str, scale: i64) -> Result<i128, Reason> {
    let (negative, digits, exponent) = parts(text);
    let (magnitude, all) = cut(&digits, exponent + scale)?;
    match all {
        true => Ok(if negative { -magnitude } else { magnitude }),
        false => Err(Reason::WrongType),
    }
}

/// The integer part of digits × 10^zeros, and whether that is all.
fn cut(digits: &str, zeros: i64) -> Result<(i128, bool), Reason> {
    let kept = (digits.len() as i64 + zeros).max(0);
    if digits.is_empty() {
        return Ok((0, true));
    }
    if kept > 40 {
        return Err(Reason::OutOfRange);
    }
    let whole = digits.chars().chain(std::iter::repeat('0')).take(kept as usize);
    let whole = format!("0{}", whole.collect::<String>());
    let whole = whole.parse().map_err(|_| Reason::OutOfRange)?;
    Ok((whole, zeros >= 0))
}

/// Microseconds of a number of seconds, milliseconds or microseconds; the rest is cut off.
fn epoch(text: &str, scale: i64) -> Result<String, Reason> {
    let (negative, digits, exponent) = parts(text);
    let (magnitude, all) = cut(&digits, exponent + scale)?;
    let value = if negative { -magnitude - i128::from(!all) } else { magnitude };
    // The years 0 to 9999.
    let range = -62_167_219_200_000_000..253_402_300_800_000_000;
    if range.contains(&value) { Ok(value.to_string()) } else { Err(Reason::OutOfRange) }
}
