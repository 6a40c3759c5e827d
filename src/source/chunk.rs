//! Chunks: the records that readers produce and decoders read in place.
//!
//! A chunk is a sequence of records of one partition over one shared buffer. It is independent of
//! the Kafka client that filled it, and needs no allocation per record.
//!
//! Invariants, which each producer of a chunk ensures:
//! - `records` are in strictly ascending order of offset, all in `first_offset..next_offset`;
//! - missing offsets between them are gaps (control records, aborted or compacted records);
//! - every range lies within `bytes`.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::source::varint;

/// Records of one partition, in offset order, over one shared buffer.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition of that topic.
    pub partition: i32,
    /// The position before this chunk; at most the offset of the first record.
    pub first_offset: i64,
    /// The position after this chunk, including gaps; greater than the offset of the last record.
    pub next_offset: i64,
    /// Keys, values and headers of all records.
    pub bytes: Bytes,
    /// The records.
    pub records: Vec<Record>,
    /// Whether the timestamps are those of the broker (LogAppendTime), not of the producer.
    pub append_time: bool,
}

/// One record of a [`Chunk`]. Its ranges refer to the bytes of the chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The record's offset.
    pub offset: i64,
    /// The Kafka timestamp in milliseconds since the Unix epoch; -1: none.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Range<u32>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Range<u32>>,
    /// The headers in Kafka's encoding: their number, then for each header the length and bytes of
    /// its name (UTF-8 by Kafka's protocol) and of its value, where length -1 is a null value. An
    /// empty range: there are no headers. [`Chunk::headers`] decodes them.
    pub headers: Range<u32>,
}

/// An iterator over the names and values of the headers of one record. Malformed bytes end the
/// iteration; readers have validated them.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    at: usize,
    remaining: i64,
}

impl<'a> Headers<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut at = 0;
        // A truncated number is not 0, so that `is_complete` returns `false`.
        let remaining = varint::read(bytes, &mut at).unwrap_or(-1);
        Self { bytes, at, remaining }
    }

    /// Whether all bytes and all headers were read.
    pub(super) fn is_complete(&self) -> bool {
        self.remaining == 0 && self.at == self.bytes.len()
    }

    fn field(&mut self) -> Option<Option<&'a [u8]>> {
        let length = varint::read(self.bytes, &mut self.at)?;
        if length == -1 {
            return Some(None);
        }
        let end = self.at.checked_add(usize::try_from(length).ok()?)?;
        let field = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(Some(field))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining <= 0 {
            return None;
        }
        let header = (self.field()??, self.field()?);
        self.remaining -= 1;
        Some(header)
    }
}

impl Chunk {
    /// The bytes of a range of a record.
    pub fn get(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    /// The key of a record of this chunk.
    pub fn key(&self, record: &Record) -> Option<&[u8]> {
        record.key.as_ref().map(|range| self.get(range))
    }

    /// The value of a record of this chunk; `None` is a tombstone.
    pub fn value(&self, record: &Record) -> Option<&[u8]> {
        record.value.as_ref().map(|range| self.get(range))
    }

    /// The size of all values in bytes. The buffer may be larger, because other chunks share it.
    pub fn value_bytes(&self) -> usize {
        self.records.iter().filter_map(|record| record.value.as_ref()).map(|v| v.len()).sum()
    }

    /// The names and values of the headers of a record of this chunk.
    pub fn headers(&self, record: &Record) -> Headers<'_> {
        Headers::new(self.get(&record.headers))
    }

    /// The first header named `name` of a record of this chunk, as text.
    pub fn header(&self, record: &Record, name: &str) -> Option<String> {
        let (_, value) = self.headers(record).find(|(other, _)| *other == name.as_bytes())?;
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Returns the records at or after `from_offset`, over the same bytes.
    pub fn slice(&self, from_offset: i64) -> Chunk {
        let from = self.records.partition_point(|record| record.offset < from_offset);
        let position = from_offset.clamp(self.first_offset, self.next_offset);
        self.with_records(from..self.records.len(), position, self.next_offset)
    }

    /// Returns the records before `offset`, over the same bytes.
    pub fn slice_until(&self, offset: i64) -> Chunk {
        let end = self.records.partition_point(|record| record.offset < offset);
        let position = offset.clamp(self.first_offset, self.next_offset);
        self.with_records(0..end, self.first_offset, position)
    }

    fn with_records(&self, records: Range<usize>, first_offset: i64, next_offset: i64) -> Chunk {
        Chunk {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            first_offset,
            next_offset,
            bytes: self.bytes.clone(),
            records: self.records[records].to_vec(),
            append_time: self.append_time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chunk of 10..20 with the offsets 10, 11, 15.
    fn chunk() -> Chunk {
        let record = |offset, range: Option<Range<u32>>| Record {
            offset,
            timestamp_ms: -1,
            key: None,
            value: range,
            headers: 0..0,
        };
        Chunk {
            topic: "t".into(),
            partition: 0,
            first_offset: 10,
            next_offset: 20,
            bytes: Bytes::from_static(b"abcd"),
            records: vec![record(10, Some(0..1)), record(11, None), record(15, Some(1..4))],
            append_time: false,
        }
    }

    #[test]
    fn splitting_a_chunk_loses_and_duplicates_no_offset() {
        let whole = chunk();
        for split in 9..=21 {
            let (left, right) = (whole.slice_until(split), whole.slice(split));
            assert_eq!(left.next_offset, right.first_offset, "split at {split}");
            assert_eq!((left.first_offset, right.next_offset), (10, 20), "split at {split}");
            assert!(left.records.iter().all(|record| record.offset < split));
            assert_eq!([left.records, right.records].concat(), whole.records, "split at {split}");
        }
    }

    #[test]
    fn headers_are_decoded_from_kafkas_encoding() {
        let bytes = [4, 2, b'h', 4, b'v', b'w', 8, b'n', b'o', b'n', b'e', 1];
        let all = [(&b"h"[..], Some(&b"vw"[..])), (b"none", None)];
        let mut headers = Headers::new(&bytes);
        assert_eq!(headers.by_ref().collect::<Vec<_>>(), all);
        assert!(headers.is_complete());
        for split in 0..bytes.len() {
            let mut headers = Headers::new(&bytes[..split]);
            assert!(headers.by_ref().count() < 2 && !headers.is_complete(), "{split}");
        }
        assert_eq!(Headers::new(&[]).count(), 0);
    }

    #[test]
    fn values_are_read_in_place() {
        let chunk = chunk().slice(11);
        assert_eq!(chunk.value(&chunk.records[0]), None);
        assert_eq!(chunk.value(&chunk.records[1]), Some(&b"bcd"[..]));
    }
}
