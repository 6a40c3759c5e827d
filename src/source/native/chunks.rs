//! From one partition's part of a Fetch response to chunks.
//!
//! Promises:
//! - chunks come in offset order; each begins at the position where the one before it ended;
//! - records of batches that are not compressed are never copied: a chunk's bytes are a slice of
//!   the response. Compressed batches are unpacked one after the other into a buffer of their
//!   own until it is large enough for a chunk;
//! - a batch whose checksum is wrong, or that is out of shape, is an error, and no record of it
//!   is given.

use std::sync::Arc;

use bytes::Bytes;

use crate::source::chunk::{Chunk, Record};
use crate::source::native::aborted_transactions::Aborted;
use crate::source::native::codec;
use crate::source::native::record_batch::{self, First, HEADER_BYTES, Header, Malformed};
use crate::types::TopicPartition;

/// A chunk ends with the batch that makes it as large as this.
const CHUNK_BYTES: usize = 1 << 20;
/// A chunk ends with the batch with which it holds so many records.
const CHUNK_RECORDS: usize = 32 << 10;

/// What the batches of one part of a response are, before any of them is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Bytes of the whole batches that it begins with.
    pub(super) bytes: usize,
    /// Records in them.
    pub(super) records: usize,
    /// The offset after them, and the epoch of the leader that appended the last of them;
    /// `None`: there are none.
    pub(super) end: Option<(i64, i32)>,
    /// Bytes of the batch that is cut off at the end, where they are known.
    pub(super) wanted_bytes: Option<usize>,
    /// A message of this format, which is not read here, follows.
    pub(super) old_format: Option<u8>,
}

/// Looks at the headers alone: enough to ask for what follows before this is read.
///
/// # Errors
/// A header that is out of shape.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan, Malformed> {
    let mut scan = Scan { bytes: 0, records: 0, end: None, wanted_bytes: None, old_format: None };
    while scan.bytes < bytes.len() {
        match record_batch::first(&bytes[scan.bytes..])? {
            First::Whole(header) => {
                if scan.end.is_some_and(|(next, _)| header.base_offset < next) {
                    return Err(Malformed("batches that are not in the order of their offsets"));
                }
                scan.bytes += header.bytes;
                scan.records += header.records;
                scan.end = Some((header.next_offset(), header.leader_epoch));
            }
            First::Partial(wanted) => {
                scan.wanted_bytes = wanted;
                break;
            }
            First::Old(format) => {
                scan.old_format = Some(format);
                break;
            }
        }
    }
    Ok(scan)
}

/// One partition's part of a response, up to the last whole batch.
pub(super) struct Part {
    pub(super) partition: TopicPartition,
    /// Whole batches.
    pub(super) bytes: Bytes,
    /// How many records they announce.
    pub(super) records: usize,
    /// Where the last event of the partition ended.
    pub(super) told: i64,
    /// The first offset that is wanted; batches may begin before it.
    pub(super) from_offset: i64,
    pub(super) aborted: Aborted,
    /// Whether checksums are looked at.
    pub(super) checked: bool,
}

/// Why a batch cannot be read.
#[derive(Debug)]
pub(super) struct Bad {
    /// The first offset of the batch.
    pub(super) offset: i64,
    pub(super) why: String,
}

impl Part {
    /// Gives the chunks to `give`, until it says `false`.
    ///
    /// # Errors
    /// The first batch that cannot be read; chunks of those before it are given first.
    pub(super) fn chunks(mut self, mut give: impl FnMut(Chunk) -> bool) -> Result<(), Bad> {
        let bytes = std::mem::take(&mut self.bytes);
        let mut chunk = Growing::new(self.told, self.records);
        let mut at = 0;
        let mut position = self.from_offset;
        while let Ok(First::Whole(header)) = record_batch::first(&bytes[at..]) {
            let place = at..at + header.bytes;
            at = place.end;
            let this = &bytes[place.clone()];
            if self.checked && !record_batch::intact(&header, this) {
                let why = "its CRC-32C is wrong: the bytes are not those that were written".into();
                return self.stop(chunk, &bytes, &header, why, give);
            }
            let gap = self.aborted.is_gap(&header, this);
            if header.next_offset() <= position {
                continue;
            }
            if !gap {
                if chunk.is_other(&header) && !self.give(&mut chunk, &bytes, &mut give) {
                    return Ok(());
                }
                if let Err(why) = chunk.add(&header, &bytes, place, position) {
                    return self.stop(chunk, &bytes, &header, why, give);
                }
            }
            position = header.next_offset();
            chunk.next_offset = position;
            if chunk.is_full() && !self.give(&mut chunk, &bytes, &mut give) {
                return Ok(());
            }
        }
        self.give(&mut chunk, &bytes, &mut give);
        Ok(())
    }

    fn stop(
        &self,
        mut chunk: Growing,
        bytes: &Bytes,
        header: &Header,
        why: String,
        mut give: impl FnMut(Chunk) -> bool,
    ) -> Result<(), Bad> {
        self.give(&mut chunk, bytes, &mut give);
        Err(Bad { offset: header.base_offset, why })
    }

    fn give(&self, chunk: &mut Growing, bytes: &Bytes, give: impl FnOnce(Chunk) -> bool) -> bool {
        if chunk.records.is_empty() {
            return true;
        }
        let fresh = Growing::new(chunk.next_offset, chunk.announced);
        let full = std::mem::replace(chunk, fresh);
        give(Chunk {
            topic: Arc::clone(&self.partition.topic),
            partition: self.partition.partition,
            first_offset: full.first_offset,
            next_offset: full.next_offset,
            bytes: match full.place {
                Place::Response { start, end } => bytes.slice(start..end),
                Place::Unpacked(unpacked) => Bytes::from(unpacked),
            },
            records: full.records,
            append_time: full.append_time,
        })
    }
}

/// Where a chunk's bytes are.
enum Place {
    /// A range of the response.
    Response { start: usize, end: usize },
    /// Here.
    Unpacked(Vec<u8>),
}

/// A chunk that is being filled.
struct Growing {
    first_offset: i64,
    next_offset: i64,
    place: Place,
    records: Vec<Record>,
    append_time: bool,
    /// Records that are still to come, as far as headers tell.
    announced: usize,
}

impl Growing {
    fn new(first_offset: i64, announced: usize) -> Self {
        Self {
            first_offset,
            next_offset: first_offset,
            place: Place::Response { start: 0, end: 0 },
            records: Vec::new(),
            append_time: false,
            announced,
        }
    }

    /// Whether a batch needs a chunk of its own: chunks have one kind of time and one buffer.
    fn is_other(&self, header: &Header) -> bool {
        let packed = matches!(self.place, Place::Unpacked(_));
        !self.records.is_empty()
            && (header.append_time() != self.append_time || (header.codec() != 0) != packed)
    }

    fn is_full(&self) -> bool {
        let bytes = match &self.place {
            Place::Response { start, end } => end - start,
            Place::Unpacked(bytes) => bytes.len(),
        };
        bytes >= CHUNK_BYTES || self.records.len() >= CHUNK_RECORDS
    }

    /// Adds the records of a batch that lies at `place` of the response. On an error it is as
    /// it was.
    fn add(
        &mut self,
        header: &Header,
        bytes: &Bytes,
        place: std::ops::Range<usize>,
        from_offset: i64,
    ) -> Result<(), String> {
        let before = self.records.len();
        if before == 0 {
            self.append_time = header.append_time();
            self.place = match header.codec() {
                0 => Place::Response { start: place.start, end: place.start },
                _ => Place::Unpacked(Vec::new()),
            };
            self.records.reserve(self.announced.min(CHUNK_RECORDS + header.records.min(1 << 16)));
        }
        let records = &mut self.records;
        let outcome = match &mut self.place {
            Place::Response { start, end } => {
                *end = place.end;
                let first_record = place.start - *start + HEADER_BYTES;
                let buffer = &bytes[*start..place.end];
                record_batch::records(header, buffer, first_record, from_offset, records)
            }
            Place::Unpacked(unpacked) => {
                let start = unpacked.len();
                let packed = &bytes[place.start + HEADER_BYTES..place.end];
                if let Err(error) = codec::unpack(header.codec(), packed, unpacked) {
                    unpacked.truncate(start);
                    return Err(format!("it cannot be unpacked: {error}"));
                }
                record_batch::records(header, unpacked, start, from_offset, records)
            }
        };
        self.announced = self.announced.saturating_sub(header.records);
        outcome.map_err(|Malformed(why)| {
            self.records.truncate(before);
            why.to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::native::record_batch::tests::{batch, put_record};

    fn body(deltas: std::ops::Range<i64>, value: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        deltas.for_each(|delta| put_record(&mut body, (delta, None, Some(value), &[])));
        body
    }

    fn plain(base: i64, count: i64) -> Vec<u8> {
        batch(base, count as i32 - 1, 0, -1, count as i32, &body(0..count, b"plain"))
    }

    fn zstd(base: i64, count: i64) -> Vec<u8> {
        let packed = zstd::stream::encode_all(&body(0..count, b"packed")[..], 1).unwrap();
        batch(base, count as i32 - 1, 4, -1, count as i32, &packed)
    }

    fn part(bytes: Vec<u8>, from_offset: i64, aborted: Vec<(i64, i64)>) -> Part {
        let scan = scan(&bytes).unwrap();
        Part {
            partition: TopicPartition::new("t", 3),
            bytes: Bytes::from(bytes).slice(..scan.bytes),
            records: scan.records,
            told: from_offset,
            from_offset,
            aborted: Aborted::new(aborted),
            checked: true,
        }
    }

    fn read(part: Part) -> (Vec<Chunk>, Result<(), Bad>) {
        let mut chunks: Vec<Chunk> = Vec::new();
        let outcome = part.chunks(|chunk| {
            chunks.push(chunk);
            true
        });
        let mut position = None;
        for chunk in &chunks {
            assert!(position.is_none_or(|position| position == chunk.first_offset));
            assert!(!chunk.records.is_empty());
            assert!(chunk.records.iter().all(|record| chunk.first_offset <= record.offset
                && record.offset < chunk.next_offset
                && chunk.value(record).is_some()));
            position = Some(chunk.next_offset);
        }
        (chunks, outcome)
    }

    fn offsets(chunks: &[Chunk]) -> Vec<i64> {
        chunks.iter().flat_map(|chunk| chunk.records.iter().map(|record| record.offset)).collect()
    }

    #[test]
    fn plain_batches_are_one_chunk_that_shares_the_response() {
        let bytes = [plain(10, 3), plain(13, 2), plain(20, 1)].concat();
        let part = part(bytes, 11, vec![]);
        let response = part.bytes.clone();
        let (chunks, outcome) = read(part);
        outcome.unwrap();
        assert_eq!(offsets(&chunks), [11, 12, 13, 14, 20]);
        let chunk = &chunks[0];
        assert_eq!((chunks.len(), chunk.first_offset, chunk.next_offset), (1, 11, 21));
        assert!(response.as_ptr_range().contains(&chunk.bytes.as_ptr()), "shared, not copied");
        assert!(chunk.records.iter().all(|record| chunk.value(record) == Some(b"plain")));
    }

    #[test]
    fn packed_batches_share_a_buffer_and_plain_ones_beside_them_have_chunks_of_their_own() {
        let bytes = [zstd(0, 3), zstd(3, 2), plain(5, 2), zstd(7, 1)].concat();
        let (chunks, outcome) = read(part(bytes, 0, vec![]));
        outcome.unwrap();
        assert_eq!(offsets(&chunks), (0..8).collect::<Vec<_>>());
        let ends: Vec<_> = chunks.iter().map(|chunk| chunk.next_offset).collect();
        assert_eq!(ends, [5, 7, 8]);
        assert_eq!(chunks[0].value(&chunks[0].records[4]), Some(&b"packed"[..]));
    }

    #[test]
    fn gaps_lie_between_the_offsets_of_chunks() {
        let marker = |offset, kind| {
            let mut body = Vec::new();
            put_record(&mut body, (0, Some(&[0, 0, 0, kind]), None, &[]));
            batch(offset, 0, 48, 9, 1, &body)
        };
        let lost = batch(3, 1, 16, 9, 2, &body(0..2, b"lost"));
        let empty = batch(9, 4, 0, -1, 0, &[]);
        let bytes = [plain(0, 3), lost, marker(5, 0), plain(6, 1), marker(7, 1), empty].concat();
        assert_eq!(scan(&bytes).unwrap().end, Some((14, 3)));
        let (chunks, outcome) = read(part(bytes, 0, vec![(3, 9)]));
        outcome.unwrap();
        assert_eq!(offsets(&chunks), [0, 1, 2, 6]);
        assert_eq!(chunks.last().unwrap().next_offset, 14);
    }

    #[test]
    fn a_batch_that_is_cut_off_waits_for_the_next_response() {
        let (first, second) = (plain(0, 3), plain(3, 3));
        let bytes = [&first[..], &second[..second.len() - 1]].concat();
        let seen = scan(&bytes).unwrap();
        assert_eq!((seen.bytes, seen.end, seen.records), (first.len(), Some((3, 3)), 3));
        assert_eq!(seen.wanted_bytes, Some(second.len()));
        assert_eq!(offsets(&read(part(bytes, 0, vec![])).0), [0, 1, 2]);
        let seen = scan(&second[..20]).unwrap();
        assert_eq!((seen.bytes, seen.wanted_bytes), (0, Some(second.len())));
    }

    #[test]
    fn a_bad_batch_comes_after_the_good_ones_and_is_named() {
        for codec in [0, 4] {
            let mut bad = if codec == 0 { plain(3, 3) } else { zstd(3, 3) };
            let last = bad.len() - 1;
            bad[last] ^= 1;
            let (chunks, outcome) = read(part([plain(0, 3), bad].concat(), 0, vec![]));
            assert_eq!(offsets(&chunks), [0, 1, 2]);
            let bad = outcome.unwrap_err();
            assert_eq!(bad.offset, 3);
            assert!(bad.why.contains("CRC"), "{}", bad.why);
        }
        let shape = batch(3, 0, 0, -1, 2, &body(0..1, b"x"));
        let (chunks, outcome) = read(part([plain(0, 3), shape].concat(), 0, vec![]));
        assert_eq!((offsets(&chunks).len(), outcome.unwrap_err().offset), (3, 3));
    }

    #[test]
    fn large_parts_are_several_chunks_and_giving_can_stop() {
        let value = vec![b'x'; 100_000];
        let one = |base| batch(base, 0, 0, -1, 1, &body(0..1, &value));
        let bytes: Vec<u8> = (0..40).flat_map(one).collect();
        let (chunks, _) = read(part(bytes.clone(), 0, vec![]));
        assert!(chunks.len() > 2 && chunks.iter().all(|c| c.bytes.len() < CHUNK_BYTES + 200_000));
        assert_eq!(offsets(&chunks), (0..40).collect::<Vec<_>>());
        let mut given = 0;
        let outcome = part(bytes, 0, vec![]).chunks(|_| {
            given += 1;
            false
        });
        assert!(outcome.is_ok() && given == 1);
    }

    #[test]
    fn old_messages_are_told() {
        let mut old = plain(3, 1);
        old[16] = 1;
        let seen = scan(&[plain(0, 3), old].concat()).unwrap();
        assert_eq!((seen.old_format, seen.end), (Some(1), Some((3, 3))));
    }
}
