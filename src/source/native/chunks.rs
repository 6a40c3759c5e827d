//! Builds chunks from the batches of one partition in a Fetch response.
//!
//! Promises:
//! - chunks are emitted in offset order; each begins at the position where the previous one ended;
//! - records of uncompressed batches are never copied: the bytes of a chunk are a slice of the
//!   response. Compressed batches are decompressed one after the other into a separate buffer
//!   until it is large enough for a chunk;
//! - a batch with a wrong checksum or a malformed batch is an error, and none of its records is
//!   emitted.

use std::sync::Arc;

use bytes::Bytes;

use crate::source::chunk::{Chunk, Record};
use crate::source::native::aborted_transactions::AbortedTransactions;
use crate::source::native::codec;
use crate::source::native::record_batch::{
    self, BatchHeader, BatchStart, HEADER_BYTES, MalformedBatch,
};
use crate::types::TopicPartition;

/// A chunk ends with the batch with which it reaches this size.
const CHUNK_BYTES: usize = 1 << 20;
/// A chunk ends with the batch with which it reaches this number of records.
const CHUNK_RECORDS: usize = 32 << 10;

/// What the headers of a sequence of batches contain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BatchScan {
    /// The size of the complete batches at the start.
    pub(super) complete_bytes: usize,
    /// The number of records in them.
    pub(super) record_count: usize,
    /// The offset after them, and the epoch of the leader that appended the last of them; `None`:
    /// there is no complete batch.
    pub(super) end: Option<(i64, i32)>,
    /// The size of the truncated batch at the end, if it is known.
    pub(super) next_batch_bytes: Option<usize>,
    /// The format of the message that follows, if this client cannot read it.
    pub(super) old_format: Option<u8>,
}

/// Reads only the headers. This suffices to request the next batches before the records of these
/// batches are read.
///
/// # Errors
/// A malformed header.
pub(super) fn scan_batches(bytes: &[u8]) -> Result<BatchScan, MalformedBatch> {
    let mut scan = BatchScan {
        complete_bytes: 0,
        record_count: 0,
        end: None,
        next_batch_bytes: None,
        old_format: None,
    };
    while scan.complete_bytes < bytes.len() {
        match record_batch::parse_batch_start(&bytes[scan.complete_bytes..])? {
            BatchStart::Complete(header) => {
                if scan.end.is_some_and(|(next, _)| header.base_offset < next) {
                    return Err(MalformedBatch("the batches are not in offset order"));
                }
                scan.complete_bytes += header.bytes;
                scan.record_count += header.records;
                scan.end = Some((header.next_offset(), header.leader_epoch));
            }
            BatchStart::Partial(bytes) => {
                scan.next_batch_bytes = bytes;
                break;
            }
            BatchStart::OldFormat(format) => {
                scan.old_format = Some(format);
                break;
            }
        }
    }
    Ok(scan)
}

/// The complete batches of one partition in a response.
pub(super) struct PartitionBatches {
    pub(super) partition: TopicPartition,
    /// The batches.
    pub(super) bytes: Bytes,
    /// The number of records according to the headers.
    pub(super) record_count: usize,
    /// The position where the last event of the partition ended.
    pub(super) emitted_offset: i64,
    /// The first offset to emit; batches may begin before it.
    pub(super) from_offset: i64,
    pub(super) aborted: AbortedTransactions,
    /// Whether checksums are verified.
    pub(super) check_crcs: bool,
}

/// Why a batch cannot be read.
#[derive(Debug)]
pub(super) struct BadBatch {
    /// The first offset of the batch.
    pub(super) offset: i64,
    pub(super) reason: String,
}

impl PartitionBatches {
    /// Passes the chunks to `emit`, until it returns `false`.
    ///
    /// # Errors
    /// The first batch that cannot be read; the chunks of the batches before it are emitted first.
    pub(super) fn emit_chunks(
        mut self,
        mut emit: impl FnMut(Chunk) -> bool,
    ) -> Result<(), BadBatch> {
        let bytes = std::mem::take(&mut self.bytes);
        let mut chunk = ChunkBuilder::new(self.emitted_offset, self.record_count);
        let mut at = 0;
        let mut position = self.from_offset;
        while let Ok(BatchStart::Complete(header)) = record_batch::parse_batch_start(&bytes[at..]) {
            let range = at..at + header.bytes;
            at = range.end;
            let batch = &bytes[range.clone()];
            if self.check_crcs && !record_batch::has_valid_crc(&header, batch) {
                let reason =
                    "the CRC-32C is wrong: the bytes differ from those that were written".into();
                return self.fail_after_flush(chunk, &bytes, &header, reason, emit);
            }
            let is_gap = self.aborted.is_gap(&header, batch);
            if header.next_offset() <= position {
                continue;
            }
            if !is_gap {
                if chunk.needs_new_chunk(&header) && !self.flush(&mut chunk, &bytes, &mut emit) {
                    return Ok(());
                }
                if let Err(reason) = chunk.add_batch(&header, &bytes, range, position) {
                    return self.fail_after_flush(chunk, &bytes, &header, reason, emit);
                }
            }
            position = header.next_offset();
            chunk.next_offset = position;
            if chunk.is_full() && !self.flush(&mut chunk, &bytes, &mut emit) {
                return Ok(());
            }
        }
        self.flush(&mut chunk, &bytes, &mut emit);
        Ok(())
    }

    /// Emits the batches before the bad one and returns the error.
    fn fail_after_flush(
        &self,
        mut chunk: ChunkBuilder,
        bytes: &Bytes,
        header: &BatchHeader,
        reason: String,
        mut emit: impl FnMut(Chunk) -> bool,
    ) -> Result<(), BadBatch> {
        self.flush(&mut chunk, bytes, &mut emit);
        Err(BadBatch { offset: header.base_offset, reason })
    }

    /// Emits the records that were added, if there are any. Returns `false` if `emit` does.
    fn flush(
        &self,
        chunk: &mut ChunkBuilder,
        bytes: &Bytes,
        emit: impl FnOnce(Chunk) -> bool,
    ) -> bool {
        if chunk.records.is_empty() {
            return true;
        }
        let next = ChunkBuilder::new(chunk.next_offset, chunk.remaining_records);
        let full = std::mem::replace(chunk, next);
        emit(Chunk {
            topic: Arc::clone(&self.partition.topic),
            partition: self.partition.partition,
            first_offset: full.first_offset,
            next_offset: full.next_offset,
            bytes: match full.bytes {
                ChunkBytes::Response { start, end } => bytes.slice(start..end),
                ChunkBytes::Decompressed(decompressed) => Bytes::from(decompressed),
            },
            records: full.records,
            append_time: full.append_time,
        })
    }
}

/// The bytes of a chunk.
enum ChunkBytes {
    /// A range of the response.
    Response { start: usize, end: usize },
    /// A separate buffer with the decompressed batches.
    Decompressed(Vec<u8>),
}

/// A chunk that is being filled.
struct ChunkBuilder {
    first_offset: i64,
    next_offset: i64,
    bytes: ChunkBytes,
    records: Vec<Record>,
    append_time: bool,
    /// The number of records still to come according to the headers.
    remaining_records: usize,
}

impl ChunkBuilder {
    fn new(first_offset: i64, remaining_records: usize) -> Self {
        Self {
            first_offset,
            next_offset: first_offset,
            bytes: ChunkBytes::Response { start: 0, end: 0 },
            records: Vec::new(),
            append_time: false,
            remaining_records,
        }
    }

    /// Whether a batch cannot be added: a chunk has one kind of timestamp and one buffer.
    fn needs_new_chunk(&self, header: &BatchHeader) -> bool {
        let is_decompressed = matches!(self.bytes, ChunkBytes::Decompressed(_));
        !self.records.is_empty()
            && (header.is_append_time() != self.append_time
                || (header.codec() != 0) != is_decompressed)
    }

    fn is_full(&self) -> bool {
        let bytes = match &self.bytes {
            ChunkBytes::Response { start, end } => end - start,
            ChunkBytes::Decompressed(bytes) => bytes.len(),
        };
        bytes >= CHUNK_BYTES || self.records.len() >= CHUNK_RECORDS
    }

    /// Adds the records of the batch at `range` of the response. On an error, the chunk has the
    /// records that it had before.
    fn add_batch(
        &mut self,
        header: &BatchHeader,
        response: &Bytes,
        range: std::ops::Range<usize>,
        from_offset: i64,
    ) -> Result<(), String> {
        let before = self.records.len();
        if before == 0 {
            self.append_time = header.is_append_time();
            self.bytes = match header.codec() {
                0 => ChunkBytes::Response { start: range.start, end: range.start },
                _ => ChunkBytes::Decompressed(Vec::new()),
            };
            let in_batch = header.records.min(1 << 16);
            self.records.reserve(self.remaining_records.min(CHUNK_RECORDS + in_batch));
        }
        let records = &mut self.records;
        let outcome = match &mut self.bytes {
            ChunkBytes::Response { start, end } => {
                *end = range.end;
                let first_record = range.start - *start + HEADER_BYTES;
                let buffer = &response[*start..range.end];
                record_batch::read_records(header, buffer, first_record, from_offset, records)
            }
            ChunkBytes::Decompressed(decompressed) => {
                let start = decompressed.len();
                let compressed = &response[range.start + HEADER_BYTES..range.end];
                if let Err(error) = codec::decompress(header.codec(), compressed, decompressed) {
                    decompressed.truncate(start);
                    return Err(format!("cannot decompress it: {error}"));
                }
                record_batch::read_records(header, decompressed, start, from_offset, records)
            }
        };
        self.remaining_records = self.remaining_records.saturating_sub(header.records);
        outcome.map_err(|MalformedBatch(reason)| {
            self.records.truncate(before);
            reason.to_owned()
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

    fn partition_batches(
        bytes: Vec<u8>,
        from_offset: i64,
        aborted: Vec<(i64, i64)>,
    ) -> PartitionBatches {
        let scan = scan_batches(&bytes).unwrap();
        PartitionBatches {
            partition: TopicPartition::new("t", 3),
            bytes: Bytes::from(bytes).slice(..scan.complete_bytes),
            record_count: scan.record_count,
            emitted_offset: from_offset,
            from_offset,
            aborted: AbortedTransactions::new(aborted),
            check_crcs: true,
        }
    }

    fn read(batches: PartitionBatches) -> (Vec<Chunk>, Result<(), BadBatch>) {
        let mut chunks: Vec<Chunk> = Vec::new();
        let outcome = batches.emit_chunks(|chunk| {
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
    fn uncompressed_batches_form_one_chunk_that_shares_the_response() {
        let bytes = [plain(10, 3), plain(13, 2), plain(20, 1)].concat();
        let batches = partition_batches(bytes, 11, vec![]);
        let response = batches.bytes.clone();
        let (chunks, outcome) = read(batches);
        outcome.unwrap();
        assert_eq!(offsets(&chunks), [11, 12, 13, 14, 20]);
        let chunk = &chunks[0];
        assert_eq!((chunks.len(), chunk.first_offset, chunk.next_offset), (1, 11, 21));
        assert!(response.as_ptr_range().contains(&chunk.bytes.as_ptr()), "shared, not copied");
        assert!(chunk.records.iter().all(|record| chunk.value(record) == Some(b"plain")));
    }

    #[test]
    fn compressed_and_uncompressed_batches_form_separate_chunks() {
        let bytes = [zstd(0, 3), zstd(3, 2), plain(5, 2), zstd(7, 1)].concat();
        let (chunks, outcome) = read(partition_batches(bytes, 0, vec![]));
        outcome.unwrap();
        assert_eq!(offsets(&chunks), (0..8).collect::<Vec<_>>());
        let ends: Vec<_> = chunks.iter().map(|chunk| chunk.next_offset).collect();
        assert_eq!(ends, [5, 7, 8]);
        assert_eq!(chunks[0].value(&chunks[0].records[4]), Some(&b"packed"[..]));
    }

    #[test]
    fn gaps_are_covered_by_the_offsets_of_chunks() {
        let marker = |offset, kind| {
            let mut body = Vec::new();
            put_record(&mut body, (0, Some(&[0, 0, 0, kind]), None, &[]));
            batch(offset, 0, 48, 9, 1, &body)
        };
        let lost = batch(3, 1, 16, 9, 2, &body(0..2, b"lost"));
        let empty = batch(9, 4, 0, -1, 0, &[]);
        let bytes = [plain(0, 3), lost, marker(5, 0), plain(6, 1), marker(7, 1), empty].concat();
        assert_eq!(scan_batches(&bytes).unwrap().end, Some((14, 3)));
        let (chunks, outcome) = read(partition_batches(bytes, 0, vec![(3, 9)]));
        outcome.unwrap();
        assert_eq!(offsets(&chunks), [0, 1, 2, 6]);
        assert_eq!(chunks.last().unwrap().next_offset, 14);
    }

    #[test]
    fn a_truncated_batch_is_left_for_the_next_response() {
        let (first, second) = (plain(0, 3), plain(3, 3));
        let bytes = [&first[..], &second[..second.len() - 1]].concat();
        let scan = scan_batches(&bytes).unwrap();
        assert_eq!(
            (scan.complete_bytes, scan.end, scan.record_count),
            (first.len(), Some((3, 3)), 3)
        );
        assert_eq!(scan.next_batch_bytes, Some(second.len()));
        assert_eq!(offsets(&read(partition_batches(bytes, 0, vec![])).0), [0, 1, 2]);
        let scan = scan_batches(&second[..20]).unwrap();
        assert_eq!((scan.complete_bytes, scan.next_batch_bytes), (0, Some(second.len())));
    }

    #[test]
    fn a_bad_batch_is_reported_after_the_good_ones() {
        for codec in [0, 4] {
            let mut bad = if codec == 0 { plain(3, 3) } else { zstd(3, 3) };
            let last = bad.len() - 1;
            bad[last] ^= 1;
            let (chunks, outcome) = read(partition_batches([plain(0, 3), bad].concat(), 0, vec![]));
            assert_eq!(offsets(&chunks), [0, 1, 2]);
            let bad = outcome.unwrap_err();
            assert_eq!(bad.offset, 3);
            assert!(bad.reason.contains("CRC"), "{}", bad.reason);
        }
        let wrong_count = batch(3, 0, 0, -1, 2, &body(0..1, b"x"));
        let (chunks, outcome) =
            read(partition_batches([plain(0, 3), wrong_count].concat(), 0, vec![]));
        assert_eq!((offsets(&chunks).len(), outcome.unwrap_err().offset), (3, 3));
    }

    #[test]
    fn large_responses_form_several_chunks_and_emitting_can_stop() {
        let value = vec![b'x'; 100_000];
        let one = |base| batch(base, 0, 0, -1, 1, &body(0..1, &value));
        let bytes: Vec<u8> = (0..40).flat_map(one).collect();
        let (chunks, _) = read(partition_batches(bytes.clone(), 0, vec![]));
        assert!(chunks.len() > 2 && chunks.iter().all(|c| c.bytes.len() < CHUNK_BYTES + 200_000));
        assert_eq!(offsets(&chunks), (0..40).collect::<Vec<_>>());
        let mut emitted = 0;
        let outcome = partition_batches(bytes, 0, vec![]).emit_chunks(|_| {
            emitted += 1;
            false
        });
        assert!(outcome.is_ok() && emitted == 1);
    }

    #[test]
    fn old_message_formats_are_reported() {
        let mut old = plain(3, 1);
        old[16] = 1;
        let scan = scan_batches(&[plain(0, 3), old].concat()).unwrap();
        assert_eq!((scan.old_format, scan.end), (Some(1), Some((3, 3))));
    }
}
