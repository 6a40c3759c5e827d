//! Parses record batches of message format v2: headers and records, read in place.
//!
//! Promises: the functions are pure; nothing is allocated per record; for any input the result is
//! a value or [`MalformedBatch`], never a panic, and every returned range lies within the input.
//!
//! ```text
//!  0 base offset   8 length   12 leader epoch   16 magic   17 crc   21 attributes
//! 23 last offset delta   27 base time   35 max time   43 producer id   51 producer epoch
//! 53 base sequence   57 number of records   61 records
//! ```
//! Source: <https://kafka.apache.org/documentation/#recordbatch>.

use std::ops::Range;

use crate::source::chunk::{Headers, Record};
use crate::source::varint;

/// The size of a batch header.
pub(super) const HEADER_BYTES: usize = 61;
/// The size of the fields that the length of a batch does not include.
const PREFIX_BYTES: usize = 12;
/// The start of the bytes that the checksum covers.
const CHECKED_FROM: usize = 21;
/// The only supported message format.
const MAGIC: u8 = 2;

/// Why bytes are not a record batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MalformedBatch(pub(super) &'static str);

/// The header of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// The offset of the first record of the original batch.
    pub(super) base_offset: i64,
    /// The size of the batch, including the header.
    pub(super) bytes: usize,
    /// The epoch of the leader that appended the batch; -1: unknown.
    pub(super) leader_epoch: i32,
    pub(super) crc: u32,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    /// The producer id; -1: written by a producer without idempotence.
    pub(super) producer_id: i64,
    /// The number of records; compaction makes it smaller than the number of offsets.
    pub(super) records: usize,
}

/// The first item in the bytes of a Fetch response.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BatchStart {
    /// A complete batch.
    Complete(BatchHeader),
    /// A truncated batch, with its full size if that can be read.
    Partial(Option<usize>),
    /// A message of format 0 or 1.
    OldFormat(u8),
}

impl BatchHeader {
    /// The offset after the batch, including gaps at its end.
    pub(super) fn next_offset(&self) -> i64 {
        self.last_offset() + 1
    }

    /// The last offset of the original batch.
    pub(super) fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// The number of the compression codec; 0: none.
    pub(super) fn codec(&self) -> u8 {
        (self.attributes & 7) as u8
    }

    /// Whether the timestamps are those of the broker (LogAppendTime).
    pub(super) fn is_append_time(&self) -> bool {
        self.attributes & 8 != 0
    }

    /// Whether the batch belongs to a transaction.
    pub(super) fn is_transactional(&self) -> bool {
        self.attributes & 16 != 0
    }

    /// Whether the batch contains a transaction marker instead of records.
    pub(super) fn is_control(&self) -> bool {
        self.attributes & 32 != 0
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    array(bytes, at).map(i32::from_be_bytes)
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    array(bytes, at).map(i64::from_be_bytes)
}

/// Parses the header of the batch at the start of `bytes`.
///
/// # Errors
/// A field with an invalid value.
pub(super) fn parse_batch_start(bytes: &[u8]) -> Result<BatchStart, MalformedBatch> {
    let Some(body_length) = i32_at(bytes, 8) else { return Ok(BatchStart::Partial(None)) };
    let body_length =
        usize::try_from(body_length).map_err(|_| MalformedBatch("the length is negative"))?;
    let length = body_length + PREFIX_BYTES;
    let Some(&magic) = bytes.get(16) else { return Ok(BatchStart::Partial(Some(length))) };
    match magic {
        0 | 1 => return Ok(BatchStart::OldFormat(magic)),
        MAGIC => {}
        _ => return Err(MalformedBatch("the message format is unknown")),
    }
    if length < HEADER_BYTES {
        return Err(MalformedBatch("the batch is shorter than its header"));
    }
    if bytes.len() < length {
        return Ok(BatchStart::Partial(Some(length)));
    }
    parse_header(bytes, length)
        .ok_or(MalformedBatch("the header is invalid"))
        .map(BatchStart::Complete)
}

fn parse_header(bytes: &[u8], length: usize) -> Option<BatchHeader> {
    let base_offset = i64_at(bytes, 0).filter(|offset| *offset >= 0)?;
    let last_offset_delta = i32_at(bytes, 23).filter(|delta| *delta >= 0)?;
    // The offsets of the batch, and the one after it, must not overflow.
    base_offset.checked_add(i64::from(last_offset_delta))?.checked_add(1)?;
    Some(BatchHeader {
        base_offset,
        bytes: length,
        leader_epoch: i32_at(bytes, 12)?,
        crc: array(bytes, 17).map(u32::from_be_bytes)?,
        attributes: array(bytes, 21).map(i16::from_be_bytes)?,
        last_offset_delta,
        base_timestamp_ms: i64_at(bytes, 27)?,
        max_timestamp_ms: i64_at(bytes, 35)?,
        producer_id: i64_at(bytes, 43)?,
        records: usize::try_from(i32_at(bytes, 57)?).ok()?,
    })
}

/// Whether the CRC-32C of a complete batch is correct.
pub(super) fn has_valid_crc(header: &BatchHeader, batch: &[u8]) -> bool {
    batch.get(CHECKED_FROM..).is_some_and(|checked| crc32c::crc32c(checked) == header.crc)
}

/// Whether a control batch is an abort marker. A batch whose record was removed by compaction, or
/// with an unknown type, is not.
pub(super) fn is_abort(batch: &[u8]) -> bool {
    let Some(records) = batch.get(HEADER_BYTES..) else { return false };
    let mut cursor = Cursor { bytes: records, at: 0 };
    let Some(key) = cursor.control_key() else { return false };
    // Version and type, two bytes each; type 0 is an abort and 1 a commit.
    array::<2>(key, 2).is_some_and(|kind| i16::from_be_bytes(kind) == 0)
}

/// Appends the records of one batch, starting at `from_offset`. `buffer[start..]` contains the
/// decompressed records; the ranges of the records refer to `buffer`.
///
/// # Errors
/// Bytes that do not match the header. `out` may then contain some of the records.
pub(super) fn read_records(
    header: &BatchHeader,
    buffer: &[u8],
    start: usize,
    from_offset: i64,
    out: &mut Vec<Record>,
) -> Result<(), MalformedBatch> {
    if u32::try_from(buffer.len()).is_err() {
        return Err(MalformedBatch("the batch has more than 4 GiB"));
    }
    let append_time_ms = header.is_append_time().then_some(header.max_timestamp_ms);
    let mut cursor = Cursor { bytes: buffer, at: start };
    let mut min_delta = 0;
    for _ in 0..header.records {
        let raw = cursor.record().ok_or(MalformedBatch("a record is truncated or malformed"))?;
        // Offsets must ascend, so that no offset is read twice.
        if raw.offset_delta < min_delta || raw.offset_delta > i64::from(header.last_offset_delta) {
            return Err(MalformedBatch(
                "the offset of a record is outside its batch or not ascending",
            ));
        }
        min_delta = raw.offset_delta + 1;
        let offset = header.base_offset + raw.offset_delta;
        if offset < from_offset {
            continue;
        }
        let create_time_ms = header.base_timestamp_ms.wrapping_add(raw.timestamp_delta);
        let timestamp_ms = append_time_ms.unwrap_or(create_time_ms);
        out.push(Record {
            offset,
            timestamp_ms,
            key: raw.key,
            value: raw.value,
            headers: raw.headers,
        });
    }
    if cursor.at == buffer.len() {
        Ok(())
    } else {
        Err(MalformedBatch("there are bytes after the last record"))
    }
}

/// One record with its ranges in the buffer.
struct RawRecord {
    offset_delta: i64,
    timestamp_delta: i64,
    key: Option<Range<u32>>,
    value: Option<Range<u32>>,
    /// The headers, preceded by their number; empty: there are none.
    headers: Range<u32>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    // The hot loop. Always inlined, because the crate is built with little optimisation.
    #[inline(always)]
    fn record(&mut self) -> Option<RawRecord> {
        let length = usize::try_from(self.varint()?).ok()?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        self.at += 1; // attributes: none are defined
        let timestamp_delta = self.varint()?;
        let offset_delta = self.varint()?;
        let key = self.field()?;
        let value = self.field()?;
        let mut headers = 0..0;
        if *self.bytes.get(self.at)? == 0 {
            self.at += 1;
        } else {
            headers = self.headers(end)?;
        }
        (self.at == end).then_some(RawRecord { offset_delta, timestamp_delta, key, value, headers })
    }

    /// Reads a length and that many bytes; length -1 is null. The outer `None`: malformed.
    #[inline(always)]
    fn field(&mut self) -> Option<Option<Range<u32>>> {
        let length = self.varint()?;
        if length < 0 {
            return (length == -1).then_some(None);
        }
        let end = self.at.checked_add(length as usize).filter(|end| *end <= self.bytes.len())?;
        let start = std::mem::replace(&mut self.at, end);
        Some(Some(start as u32..end as u32))
    }

    #[inline(always)]
    fn varint(&mut self) -> Option<i64> {
        varint::read(self.bytes, &mut self.at)
    }

    /// Reads the headers, which end with the record.
    fn headers(&mut self, end: usize) -> Option<Range<u32>> {
        let mut headers = Headers::new(self.bytes.get(self.at..end)?);
        headers.by_ref().for_each(drop);
        let start = std::mem::replace(&mut self.at, end);
        headers.is_complete().then_some(start as u32..end as u32)
    }

    fn control_key(&mut self) -> Option<&'a [u8]> {
        let raw = self.record()?;
        let key = raw.key?;
        self.bytes.get(key.start as usize..key.end as usize)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn put_field(out: &mut Vec<u8>, field: Option<&[u8]>) {
        varint::write(out, field.map_or(-1, |field| field.len() as i64));
        out.extend_from_slice(field.unwrap_or_default());
    }

    type Written<'a> = (i64, Option<&'a [u8]>, Option<&'a [u8]>, &'a [(&'a str, Option<&'a [u8]>)]);

    /// Appends one record: offset delta, key, value, headers.
    pub(in super::super) fn put_record(
        out: &mut Vec<u8>,
        (delta, key, value, headers): Written<'_>,
    ) {
        let mut record = vec![0];
        varint::write(&mut record, delta * 10);
        varint::write(&mut record, delta);
        put_field(&mut record, key);
        put_field(&mut record, value);
        varint::write(&mut record, headers.len() as i64);
        for (name, value) in headers {
            put_field(&mut record, Some(name.as_bytes()));
            put_field(&mut record, *value);
        }
        varint::write(out, record.len() as i64);
        out.extend_from_slice(&record);
    }

    /// Builds a batch around `records`, which may be compressed.
    pub(in super::super) fn batch(
        base: i64,
        last_delta: i32,
        attributes: i16,
        producer: i64,
        count: i32,
        records: &[u8],
    ) -> Vec<u8> {
        let mut batch = base.to_be_bytes().to_vec();
        batch.extend((records.len() as i32 + 49).to_be_bytes());
        batch.extend([0, 0, 0, 3, MAGIC, 0, 0, 0, 0]);
        batch.extend(attributes.to_be_bytes());
        batch.extend(last_delta.to_be_bytes());
        batch.extend(1_000_i64.to_be_bytes());
        batch.extend(2_000_i64.to_be_bytes());
        batch.extend(producer.to_be_bytes());
        batch.extend([0, 0, 0, 0, 0, 0]);
        batch.extend(count.to_be_bytes());
        batch.extend_from_slice(records);
        let crc = crc32c::crc32c(&batch[CHECKED_FROM..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        batch
    }

    fn sample() -> Vec<u8> {
        let mut body = Vec::new();
        put_record(&mut body, (0, None, Some(b"one"), &[]));
        put_record(&mut body, (1, Some(b""), None, &[]));
        let headers = [("h", Some(&b"v"[..])), ("none", None), ("", Some(&b""[..]))];
        put_record(&mut body, (5, Some(b"key"), Some(b""), &headers));
        batch(100, 9, 0, -1, 3, &body)
    }

    fn complete_header(bytes: &[u8]) -> BatchHeader {
        match parse_batch_start(bytes).unwrap() {
            BatchStart::Complete(header) => header,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn keys_values_headers_offsets_and_timestamps_are_read() {
        let bytes = sample();
        let header = complete_header(&bytes);
        assert!(has_valid_crc(&header, &bytes));
        assert_eq!(
            (header.base_offset, header.last_offset(), header.next_offset()),
            (100, 109, 110)
        );
        let mut out = Vec::new();
        read_records(&header, &bytes, HEADER_BYTES, 0, &mut out).unwrap();
        let get = |range: &Range<u32>| &bytes[range.start as usize..range.end as usize];
        let seen: Vec<_> = (out.iter())
            .map(|r| (r.offset, r.timestamp_ms, r.key.as_ref().map(get), r.value.as_ref().map(get)))
            .collect();
        assert_eq!(
            seen,
            [
                (100, 1000, None, Some(&b"one"[..])),
                (101, 1010, Some(&b""[..]), None),
                (105, 1050, Some(&b"key"[..]), Some(&b""[..])),
            ]
        );
        assert!(out[0].headers.is_empty() && out[1].headers.is_empty());
        let headers: Vec<_> = Headers::new(get(&out[2].headers)).collect();
        assert_eq!(headers, [(&b"h"[..], Some(&b"v"[..])), (b"none", None), (b"", Some(b""))]);

        out.clear();
        read_records(&header, &bytes, HEADER_BYTES, 101, &mut out).unwrap();
        assert_eq!(out.iter().map(|r| r.offset).collect::<Vec<_>>(), [101, 105]);
    }

    #[test]
    fn append_time_replaces_the_timestamps_of_records() {
        let mut body = Vec::new();
        put_record(&mut body, (0, None, None, &[]));
        let bytes = batch(7, 0, 8, -1, 1, &body);
        let header = complete_header(&bytes);
        assert!(header.is_append_time() && !header.is_control() && !header.is_transactional());
        let mut out = Vec::new();
        read_records(&header, &bytes, HEADER_BYTES, 0, &mut out).unwrap();
        assert_eq!(out[0].timestamp_ms, 2000);
    }

    #[test]
    fn a_truncated_batch_is_partial_with_its_length() {
        let bytes = sample();
        for length in 0..bytes.len() {
            match parse_batch_start(&bytes[..length]).unwrap() {
                BatchStart::Partial(None) => assert!(length < 12, "{length}"),
                BatchStart::Partial(Some(full)) => assert_eq!(full, bytes.len(), "{length}"),
                other => unreachable!("{length}: {other:?}"),
            }
        }
    }

    #[test]
    fn old_and_unknown_formats_are_distinguished() {
        let mut bytes = sample();
        for magic in [0, 1] {
            bytes[16] = magic;
            assert_eq!(parse_batch_start(&bytes), Ok(BatchStart::OldFormat(magic)));
        }
        bytes[16] = 3;
        assert!(parse_batch_start(&bytes).is_err());
    }

    #[test]
    fn a_changed_byte_fails_the_crc() {
        let bytes = sample();
        for at in CHECKED_FROM..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            if let Ok(BatchStart::Complete(header)) = parse_batch_start(&bad) {
                assert!(!has_valid_crc(&header, &bad), "{at}");
            }
        }
    }

    #[test]
    fn malformed_bytes_never_cause_a_panic() {
        let bytes = sample();
        let header = complete_header(&bytes);
        let mut rejected = 0;
        for at in HEADER_BYTES..bytes.len() {
            for flip in [0x01, 0x02, 0x10, 0x40, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                let mut out = Vec::new();
                match read_records(&header, &bad, HEADER_BYTES, 0, &mut out) {
                    Err(_) => rejected += 1,
                    Ok(()) => assert!(out.is_sorted_by(|a, b| a.offset < b.offset)),
                }
                for range in out.iter().filter_map(|record| record.value.as_ref()) {
                    assert!(range.start <= range.end && range.end as usize <= bad.len());
                }
            }
        }
        assert!(rejected > 100, "{rejected}");
        let truncated = &bytes[..bytes.len() - 1];
        assert!(read_records(&header, truncated, HEADER_BYTES, 0, &mut Vec::new()).is_err());
    }

    #[test]
    fn an_empty_batch_is_a_gap() {
        let bytes = batch(50, 3, 0, 7, 0, &[]);
        let header = complete_header(&bytes);
        let mut out = Vec::new();
        read_records(&header, &bytes, HEADER_BYTES, 0, &mut out).unwrap();
        assert!(out.is_empty() && header.next_offset() == 54);
    }

    #[test]
    fn abort_and_commit_markers_are_distinguished() {
        for (kind, abort) in [(0, true), (1, false)] {
            let mut body = Vec::new();
            put_record(&mut body, (0, Some(&[0, 0, 0, kind]), Some(&[0; 6]), &[]));
            assert_eq!(is_abort(&batch(1, 0, 48, 9, 1, &body)), abort);
        }
        assert!(!is_abort(&batch(1, 0, 48, 9, 0, &[])));
    }
}
