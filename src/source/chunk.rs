//! Chunks: what every reader fills and every decoder reads in place.
//!
//! A chunk is a run of one partition's records over one shared buffer. Nothing above knows
//! which Kafka client filled it, and nobody allocates per record.
//!
//! Invariants, kept by whoever fills one:
//! - `records` is in strictly ascending order of offset, all in `first_offset..next_offset`;
//! - offsets that are missing between them are gaps (control records, aborted, compacted);
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
    /// The position before this chunk; at most the first record's offset.
    pub first_offset: i64,
    /// The position after this chunk, gaps included; more than the last record's offset.
    pub next_offset: i64,
    /// Keys, values and headers of all records.
    pub bytes: Bytes,
    /// The records.
    pub records: Vec<Record>,
    /// Whether the broker stamped the records (LogAppendTime), not their producer.
    pub append_time: bool,
}

/// One record of a [`Chunk`]; its ranges are into the chunk's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The record's offset.
    pub offset: i64,
    /// Kafka's time in milliseconds since the Unix epoch; -1: none.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Range<u32>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Range<u32>>,
    /// The headers as Kafka lays them out: their number, then of each the length and bytes of
    /// name (UTF-8 by Kafka's protocol) and value, where length -1 is no value. An empty range:
    /// none. [`Chunk::headers`] reads them.
    pub headers: Range<u32>,
}

/// Names and values of one record's headers. Bytes out of shape end it: readers have looked at
/// them before.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    at: usize,
    left: i64,
}

impl<'a> Headers<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut at = 0;
        // A number that is cut off is not 0: the bytes are not done with.
        let left = varint::read(bytes, &mut at).unwrap_or(-1);
        Self { bytes, at, left }
    }

    /// Whether all of the bytes are read, and all of the headers.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0 && self.at == self.bytes.len()
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
        if self.left <= 0 {
            return None;
        }
        let header = (self.field()??, self.field()?);
        self.left -= 1;
        Some(header)
    }
}

impl Chunk {
    /// The bytes of one range of a record.
    pub fn get(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    /// The key of one of this chunk's records.
    pub fn key(&self, record: &Record) -> Option<&[u8]> {
        record.key.as_ref().map(|range| self.get(range))
    }

    /// The value of one of this chunk's records; `None` is a tombstone.
    pub fn value(&self, record: &Record) -> Option<&[u8]> {
        record.value.as_ref().map(|range| self.get(range))
    }

    /// Bytes of all values. The buffer may hold more: it is shared with other chunks.
    pub fn value_bytes(&self) -> usize {
        self.records.iter().filter_map(|record| record.value.as_ref()).map(|v| v.len()).sum()
    }

    /// Names and values of the headers of one of this chunk's records.
    pub fn headers(&self, record: &Record) -> Headers<'_> {
        Headers::new(self.get(&record.headers))
    }

    /// The first header of that name of one of this chunk's records, as text.
    pub fn header(&self, record: &Record, wanted: &str) -> Option<String> {
        let (_, value) = self.headers(record).find(|(name, _)| *name == wanted.as_bytes())?;
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The records at or after `from_offset`, over the same bytes.
    pub fn slice(&self, from_offset: i64) -> Chunk {
        let from = self.records.partition_point(|record| record.offset < from_offset);
        let position = from_offset.clamp(self.first_offset, self.next_offset);
        self.part(from..self.records.len(), position, self.next_offset)
    }

    /// The records before `offset`, over the same bytes.
    pub fn until(&self, offset: i64) -> Chunk {
        let end = self.records.partition_point(|record| record.offset < offset);
        let position = offset.clamp(self.first_offset, self.next_offset);
        self.part(0..end, self.first_offset, position)
    }

    fn part(&self, records: Range<usize>, first_offset: i64, next_offset: i64) -> Chunk {
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

    /// Offsets 10, 11, 15 of a chunk that stands for 10..20.
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
    fn a_cut_loses_no_offset_and_gives_none_twice() {
        let whole = chunk();
        for cut in 9..=21 {
            let (left, right) = (whole.until(cut), whole.slice(cut));
            assert_eq!(left.next_offset, right.first_offset, "cut at {cut}");
            assert_eq!((left.first_offset, right.next_offset), (10, 20), "cut at {cut}");
            assert!(left.records.iter().all(|record| record.offset < cut));
            assert_eq!([left.records, right.records].concat(), whole.records, "cut at {cut}");
        }
    }

    #[test]
    fn headers_are_read_as_kafka_lays_them_out() {
        let bytes = [4, 2, b'h', 4, b'v', b'w', 8, b'n', b'o', b'n', b'e', 1];
        let all = [(&b"h"[..], Some(&b"vw"[..])), (b"none", None)];
        let mut headers = Headers::new(&bytes);
        assert_eq!(headers.by_ref().collect::<Vec<_>>(), all);
        assert!(headers.is_done());
        for cut in 0..bytes.len() {
            let mut headers = Headers::new(&bytes[..cut]);
            assert!(headers.by_ref().count() < 2 && !headers.is_done(), "{cut}");
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
