//! Record batches of message format v2: headers and records, read in place.
//!
//! Promises: pure functions over bytes; nothing is allocated per record; whatever the bytes are,
//! the answer is a value or [`Malformed`], never a panic, and every range given lies within the
//! bytes.
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

/// Bytes of a batch's header.
pub(super) const HEADER_BYTES: usize = 61;
/// Bytes before the part that a batch's length counts.
const PREFIX_BYTES: usize = 12;
/// Where the bytes that the checksum covers begin.
const CHECKED_FROM: usize = 21;
/// The only message format that is read here.
const MAGIC: u8 = 2;

/// Bytes that are no record batch, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// A batch's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Offset of the first record that was in it when it was written.
    pub(super) base_offset: i64,
    /// All of the batch, header included.
    pub(super) bytes: usize,
    /// Of the leader that appended it; -1: unknown.
    pub(super) leader_epoch: i32,
    pub(super) crc: u32,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    /// -1: written without idempotence.
    pub(super) producer_id: i64,
    /// Records in it now; fewer than offsets where it was compacted.
    pub(super) records: usize,
}

/// What the bytes of a Fetch response begin with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// A whole batch.
    Whole(Header),
    /// The beginning of one that has this many bytes, if so much of it is there.
    Partial(Option<usize>),
    /// A message of format 0 or 1.
    Old(u8),
}

impl Header {
    /// The offset after the batch, gaps at its end included.
    pub(super) fn next_offset(&self) -> i64 {
        self.last_offset() + 1
    }

    /// The last offset that was in it when it was written.
    pub(super) fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// The number of its compression codec; 0: none.
    pub(super) fn codec(&self) -> u8 {
        (self.attributes & 7) as u8
    }

    /// Whether the broker stamped the records.
    pub(super) fn append_time(&self) -> bool {
        self.attributes & 8 != 0
    }

    /// Whether it belongs to a transaction.
    pub(super) fn transactional(&self) -> bool {
        self.attributes & 16 != 0
    }

    /// Whether it holds a transaction's marker in place of records.
    pub(super) fn control(&self) -> bool {
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

/// Looks at the batch that `bytes` begin with.
///
/// # Errors
/// A length or number that no batch has.
pub(super) fn first(bytes: &[u8]) -> Result<First, Malformed> {
    let Some(length) = i32_at(bytes, 8) else { return Ok(First::Partial(None)) };
    let length = usize::try_from(length).map_err(|_| Malformed("a batch of negative length"))?;
    let whole = length + PREFIX_BYTES;
    let Some(&magic) = bytes.get(16) else { return Ok(First::Partial(Some(whole))) };
    match magic {
        0 | 1 => return Ok(First::Old(magic)),
        MAGIC => {}
        _ => return Err(Malformed("a batch of an unknown message format")),
    }
    if whole < HEADER_BYTES {
        return Err(Malformed("a batch shorter than its header"));
    }
    if bytes.len() < whole {
        return Ok(First::Partial(Some(whole)));
    }
    header(bytes, whole).ok_or(Malformed("a batch with an impossible header")).map(First::Whole)
}

fn header(bytes: &[u8], whole: usize) -> Option<Header> {
    let base_offset = i64_at(bytes, 0).filter(|offset| *offset >= 0)?;
    let last_offset_delta = i32_at(bytes, 23).filter(|delta| *delta >= 0)?;
    // So that every offset of the batch, and the one after it, is a number.
    base_offset.checked_add(i64::from(last_offset_delta))?.checked_add(1)?;
    Some(Header {
        base_offset,
        bytes: whole,
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

/// Whether a whole batch is as it was written, by its CRC-32C.
pub(super) fn intact(header: &Header, batch: &[u8]) -> bool {
    batch.get(CHECKED_FROM..).is_some_and(|checked| crc32c::crc32c(checked) == header.crc)
}

/// Whether a control batch ends an aborted transaction. One whose record was compacted away, or
/// of a type that is not known, does not.
pub(super) fn is_abort(batch: &[u8]) -> bool {
    let Some(records) = batch.get(HEADER_BYTES..) else { return false };
    let mut cursor = Cursor { bytes: records, at: 0 };
    let Some(key) = cursor.control_key() else { return false };
    // Version and type, of two bytes each; 0 is an abort and 1 a commit.
    array::<2>(key, 2).is_some_and(|kind| i16::from_be_bytes(kind) == 0)
}

/// Appends the records of one batch, from `from_offset` on, whose plain bytes are
/// `buffer[start..]`; ranges are into `buffer`.
///
/// # Errors
/// Bytes that are not the records that the header announces. `out` may hold some of them then.
pub(super) fn records(
    header: &Header,
    buffer: &[u8],
    start: usize,
    from_offset: i64,
    out: &mut Vec<Record>,
) -> Result<(), Malformed> {
    if u32::try_from(buffer.len()).is_err() {
        return Err(Malformed("a batch of more than 4 GiB"));
    }
    let fixed_ms = header.append_time().then_some(header.max_timestamp_ms);
    let mut cursor = Cursor { bytes: buffer, at: start };
    let mut least_delta = 0;
    for _ in 0..header.records {
        let raw = cursor.record().ok_or(Malformed("a record that is cut off or out of shape"))?;
        // Records ascend; so a reader never sees an offset twice.
        if raw.offset_delta < least_delta || raw.offset_delta > i64::from(header.last_offset_delta)
        {
            return Err(Malformed("a record whose offset is not its batch's"));
        }
        least_delta = raw.offset_delta + 1;
        let offset = header.base_offset + raw.offset_delta;
        if offset < from_offset {
            continue;
        }
        let stamped = header.base_timestamp_ms.wrapping_add(raw.timestamp_delta);
        let timestamp_ms = fixed_ms.unwrap_or(stamped);
        out.push(Record {
            offset,
            timestamp_ms,
            key: raw.key,
            value: raw.value,
            headers: raw.headers,
        });
    }
    if cursor.at == buffer.len() { Ok(()) } else { Err(Malformed("bytes after a batch's records")) }
}

/// One record as it lies in the bytes.
struct Raw {
    offset_delta: i64,
    timestamp_delta: i64,
    key: Option<Range<u32>>,
    value: Option<Range<u32>>,
    /// Its headers, their number first; empty: it has none.
    headers: Range<u32>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    // The hot loop: always inlined, for the crate is built with little optimisation.
    #[inline(always)]
    fn record(&mut self) -> Option<Raw> {
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
        (self.at == end).then_some(Raw { offset_delta, timestamp_delta, key, value, headers })
    }

    /// A length and so many bytes; length -1 is null. The outer `None`: out of shape.
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

    /// Headers take the rest of a record.
    fn headers(&mut self, end: usize) -> Option<Range<u32>> {
        let mut headers = Headers::new(self.bytes.get(self.at..end)?);
        headers.by_ref().for_each(drop);
        let start = std::mem::replace(&mut self.at, end);
        headers.is_done().then_some(start as u32..end as u32)
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

    /// One record: its offset's distance from the batch's first, key, value, headers.
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

    /// A batch around `records`, which may be compressed.
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

    fn whole(bytes: &[u8]) -> Header {
        match first(bytes).unwrap() {
            First::Whole(header) => header,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn keys_values_headers_offsets_and_times_come_back() {
        let bytes = sample();
        let header = whole(&bytes);
        assert!(intact(&header, &bytes));
        assert_eq!(
            (header.base_offset, header.last_offset(), header.next_offset()),
            (100, 109, 110)
        );
        let mut out = Vec::new();
        records(&header, &bytes, HEADER_BYTES, 0, &mut out).unwrap();
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
        records(&header, &bytes, HEADER_BYTES, 101, &mut out).unwrap();
        assert_eq!(out.iter().map(|r| r.offset).collect::<Vec<_>>(), [101, 105]);
    }

    #[test]
    fn the_brokers_stamp_counts_where_it_stamps() {
        let mut body = Vec::new();
        put_record(&mut body, (0, None, None, &[]));
        let bytes = batch(7, 0, 8, -1, 1, &body);
        let header = whole(&bytes);
        assert!(header.append_time() && !header.control() && !header.transactional());
        let mut out = Vec::new();
        records(&header, &bytes, HEADER_BYTES, 0, &mut out).unwrap();
        assert_eq!(out[0].timestamp_ms, 2000);
    }

    #[test]
    fn a_cut_batch_is_partial_and_says_how_long_it_is() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            match first(&bytes[..cut]).unwrap() {
                First::Partial(None) => assert!(cut < 12, "{cut}"),
                First::Partial(Some(whole)) => assert_eq!(whole, bytes.len(), "{cut}"),
                other => unreachable!("{cut}: {other:?}"),
            }
        }
    }

    #[test]
    fn old_and_unknown_formats_are_told_apart() {
        let mut bytes = sample();
        for magic in [0, 1] {
            bytes[16] = magic;
            assert_eq!(first(&bytes), Ok(First::Old(magic)));
        }
        bytes[16] = 3;
        assert!(first(&bytes).is_err());
    }

    #[test]
    fn a_changed_byte_is_seen() {
        let bytes = sample();
        for at in CHECKED_FROM..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            if let Ok(First::Whole(header)) = first(&bad) {
                assert!(!intact(&header, &bad), "{at}");
            }
        }
    }

    #[test]
    fn bytes_out_of_shape_are_refused_and_never_a_panic() {
        let bytes = sample();
        let header = whole(&bytes);
        let mut refused = 0;
        for at in HEADER_BYTES..bytes.len() {
            for flip in [0x01, 0x02, 0x10, 0x40, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[at] ^= flip;
                let mut out = Vec::new();
                match records(&header, &bad, HEADER_BYTES, 0, &mut out) {
                    Err(_) => refused += 1,
                    Ok(()) => assert!(out.is_sorted_by(|a, b| a.offset < b.offset)),
                }
                for range in out.iter().filter_map(|record| record.value.as_ref()) {
                    assert!(range.start <= range.end && range.end as usize <= bad.len());
                }
            }
        }
        assert!(refused > 100, "{refused}");
        let cut = &bytes[..bytes.len() - 1];
        assert!(records(&header, cut, HEADER_BYTES, 0, &mut Vec::new()).is_err());
    }

    #[test]
    fn an_empty_batch_is_a_gap() {
        let bytes = batch(50, 3, 0, 7, 0, &[]);
        let header = whole(&bytes);
        let mut out = Vec::new();
        records(&header, &bytes, HEADER_BYTES, 0, &mut out).unwrap();
        assert!(out.is_empty() && header.next_offset() == 54);
    }

    #[test]
    fn markers_tell_abort_from_commit() {
        for (kind, abort) in [(0, true), (1, false)] {
            let mut body = Vec::new();
            put_record(&mut body, (0, Some(&[0, 0, 0, kind]), Some(&[0; 6]), &[]));
            assert_eq!(is_abort(&batch(1, 0, 48, 9, 1, &body)), abort);
        }
        assert!(!is_abort(&batch(1, 0, 48, 9, 0, &[])));
    }
}
