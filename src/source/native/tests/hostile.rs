//! Differential test of the batch parser: untrusted bytes are read by the parser and by a simple,
//! slow reference. Both must agree on any input; for tests and fuzzing.

use crate::source::chunk::Record;
use crate::source::native::record_batch::{
    BatchStart, HEADER_BYTES, has_valid_crc, is_abort, parse_batch_start, read_records,
};

/// Reads the batch at the start of `bytes` with both and compares the results. `Some`: the number
/// of records of a valid batch.
///
/// # Errors
/// The difference, as text.
pub fn check(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Ok(BatchStart::Complete(header)) = parse_batch_start(bytes) else { return Ok(None) };
    let batch = bytes.get(..header.bytes).ok_or("a complete batch is longer than its bytes")?;
    let _ = (has_valid_crc(&header, batch), is_abort(batch));
    if header.next_offset() <= header.base_offset {
        return Err("a batch ends before it begins".to_owned());
    }
    let expected = read_reference(batch);
    let middle = header.base_offset + (header.last_offset() - header.base_offset) / 2;
    for from in [0, middle, i64::MAX] {
        let mut found = Vec::new();
        let is_read = read_records(&header, batch, HEADER_BYTES, from, &mut found).is_ok();
        let expected = expected.as_ref().map(|all| {
            all.iter().filter(|record| record.offset >= from).cloned().collect::<Vec<_>>()
        });
        if is_read.then_some(&found) != expected.as_ref() {
            return Err(format!("from {from}: {is_read} {found:?}, expected {expected:?}"));
        }
    }
    Ok(expected.map(|all| all.len()))
}

/// Reads the records of a batch as described in <https://kafka.apache.org/documentation/#record>.
fn read_reference(batch: &[u8]) -> Option<Vec<Record>> {
    let number = |at: usize, length: usize| {
        let bytes = &batch[at..at + length];
        let sign = if bytes[0] >= 0x80 { -1 } else { 0 };
        bytes.iter().fold(sign, |number: i64, byte| number << 8 | i64::from(*byte))
    };
    let (base, last, count) = (number(0, 8), number(23, 4), number(57, 4));
    let (base_ms, most_ms, stamped) = (number(27, 8), number(35, 8), number(21, 2) & 8 != 0);
    let (mut at, mut least, mut all) = (HEADER_BYTES, 0, Vec::new());
    for _ in 0..count {
        let length = usize::try_from(varint(batch, &mut at)?).ok()?;
        let end = at.checked_add(length).filter(|end| *end <= batch.len())?;
        let record = &batch[..end];
        at += 1;
        let (time, delta) = (varint(record, &mut at)?, varint(record, &mut at)?);
        if !(least..=last).contains(&delta) {
            return None;
        }
        least = delta + 1;
        let (key, value) = (field(record, &mut at)?, field(record, &mut at)?);
        let start = at;
        let headers = varint(record, &mut at).filter(|headers| *headers >= 0)?;
        for _ in 0..headers {
            field(record, &mut at)??;
            field(record, &mut at)?;
        }
        if at != end {
            return None;
        }
        let headers = if record[start..] == [0] { 0..0 } else { start as u32..end as u32 };
        let timestamp_ms = if stamped { most_ms } else { base_ms.wrapping_add(time) };
        all.push(Record { offset: base + delta, timestamp_ms, key, value, headers });
    }
    (at == batch.len()).then_some(all)
}

/// Reads an integer in groups of seven bits, at most ten of them.
fn varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let mut value = 0u64;
    for group in 0..10 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << (7 * group);
        if byte & 0x80 == 0 {
            let half = (value / 2) as i64;
            return Some(if value % 2 == 1 { -half - 1 } else { half });
        }
    }
    None
}

/// Reads a length and that many bytes. The outer `None`: malformed; the inner `None`: null.
fn field(bytes: &[u8], at: &mut usize) -> Option<Option<std::ops::Range<u32>>> {
    let length = varint(bytes, at)?;
    if length == -1 {
        return Some(None);
    }
    let end = at.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= bytes.len())?;
    let range = *at as u32..end as u32;
    *at = end;
    Some(Some(range))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::source::native::record_batch::tests::{batch, put_record};

    fn valid_batch(random: &mut StdRng) -> Vec<u8> {
        let (mut body, mut delta, count) = (Vec::new(), 0, random.random_range(0..6));
        for _ in 0..count {
            let most = if random.random_bool(0.9) { 3 } else { 100_000 };
            delta += random.random_range(0..most);
            let bytes = |random: &mut StdRng| -> Option<Vec<u8>> {
                let most = if random.random_bool(0.9) { 9 } else { 300 };
                let length = random.random_range(0..most);
                random.random_bool(0.8).then(|| (0..length).map(|_| random.random()).collect())
            };
            let (key, value, header) = (bytes(random), bytes(random), bytes(random));
            let headers = [("name", header.as_deref()), ("", Some(&b""[..])), ("x", None)];
            let headers = &headers[..if random.random_bool(0.5) { 0 } else { 3 }];
            put_record(&mut body, (delta, key.as_deref(), value.as_deref(), headers));
            delta += 1;
        }
        let base = match random.random_range(0..8) {
            0 => i64::MAX - random.random_range(0..200_000),
            _ => random.random_range(0..1 << 40),
        };
        let attributes = random.random_range(0..64) & !7;
        batch(base, delta as i32, attributes, random.random_range(-1..9), count, &body)
    }

    fn mutate(random: &mut StdRng, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        // Mostly mutates the records and header fields: a batch of another length is only partial.
        let from = [0, 17, HEADER_BYTES][random.random_range(0..3)].min(bytes.len() - 1);
        let at = random.random_range(from..bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes[at] = [0, 1, 2, 0x7f, 0x80, 0xff][random.random_range(0..6)],
            3 => bytes.truncate(at),
            4 => bytes.insert(at, random.random()),
            _ => drop(bytes.remove(at)),
        }
        if random.random_bool(0.8) && bytes.len() > HEADER_BYTES {
            let length = bytes.len() as i32 - 12;
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
        }
    }

    #[test]
    fn hostile_batches_are_read_as_by_the_reference() {
        let cases = std::env::var("MILLSTREAM_FUZZ_CASES").map_or(40_000, |n| n.parse().unwrap());
        let mut random = StdRng::seed_from_u64(2);
        let (mut accepted, mut rejected) = (0_u64, 0_u64);
        for case in 0..cases {
            let mut bytes = valid_batch(&mut random);
            let changes = random.random_range(0..3);
            for _ in 0..changes {
                mutate(&mut random, &mut bytes);
            }
            match check(&bytes) {
                Ok(Some(_)) => accepted += 1,
                Ok(None) => rejected += 1,
                Err(difference) => panic!("case {case}: {difference}\n{bytes:?}"),
            }
        }
        println!("{cases} batches: {accepted} accepted, {rejected} rejected");
        assert!(
            accepted > cases / 4 && rejected > cases / 4,
            "{accepted} accepted, {rejected} rejected"
        );
    }
}
