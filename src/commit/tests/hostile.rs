//! Decodes untrusted bytes as a log, for tests and fuzzing. Any bytes give either records or an
//! error with a hint, and a decoded record survives encoding and decoding unchanged.

use bytes::Bytes;

use crate::Kind;
use crate::commit::progress::{Progress, RecoveredLog};

/// Decodes the records one by one and as one log. Returns how many of them are valid.
///
/// # Errors
/// Describes a violated property.
pub fn check(records: &[Bytes]) -> Result<usize, String> {
    let mut valid = Vec::new();
    for bytes in records {
        match Progress::decode(bytes) {
            Ok(record) => {
                let copy = record.encode().and_then(|bytes| Progress::decode(&bytes));
                if copy.as_ref().ok() != Some(&record) {
                    return Err(format!("{record:?} is decoded again as {copy:?}"));
                }
                valid.push(bytes.clone());
            }
            Err(error) if error.kind == Kind::Recovery && error.hint.is_some() => {}
            Err(error) => {
                return Err(format!("an error of the wrong kind or without a hint: {error}"));
            }
        }
    }
    if RecoveredLog::from_log(records).is_ok() != (valid.len() == records.len()) {
        return Err("a log is valid and one of its records is not, or the reverse".to_owned());
    }
    let log = RecoveredLog::from_log(&valid).map_err(|error| error.to_string())?;
    let is_complete =
        log.records.windows(2).all(|two| Some(two[1].epoch) == two[0].epoch.checked_add(1));
    if log.verify().is_ok() && !is_complete {
        return Err("a log with a gap passes verification".to_owned());
    }
    for snapshot in [None, log.snapshot.as_ref(), log.older.as_ref()] {
        let from = snapshot.map_or(0, |snapshot| snapshot.epoch);
        let after = log.after(snapshot).unwrap_or_default();
        if is_complete && after.iter().any(|record| record.epoch <= from) {
            return Err(format!("an epoch up to {from} would be replayed"));
        }
    }
    Ok(valid.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::commit::process::Process;
    use crate::commit::progress::{PROGRESS_VERSION, PartitionJoin, SkippedOffsets, SnapshotRef};
    use crate::types::SourcePosition;
    use crate::types::TopicPartition;
    use crate::watermark::ClockDecision;

    fn record(random: &mut StdRng, epoch: u64) -> Progress {
        let text = |random: &mut StdRng| {
            ["events", "a/b", "", "ä\"\\\u{0}", "1"][random.random_range(0..5)].to_owned()
        };
        let edge = |random: &mut StdRng| {
            [0, 1, -1, i64::MAX, i64::MIN, 1_572_444_395][random.random_range(0..6)]
        };
        let partition =
            |random: &mut StdRng| TopicPartition::new(text(random), random.random_range(-1..4));
        let snapshot = |random: &mut StdRng| {
            let back = random.random_range(0..4);
            let (epoch, path) = (epoch.saturating_sub(back), text(random));
            let snapshot = SnapshotRef { epoch, path, log_offset: edge(random) };
            random.random_bool(0.4).then_some(snapshot)
        };
        let position = SourcePosition {
            offset: edge(random),
            joined: edge(random),
            decoded: random.random(),
            rejected: random.random(),
            tombstones: u64::MAX,
            skipped: random.random(),
        };
        let skipped =
            SkippedOffsets { partition: partition(random), from: edge(random), to: edge(random) };
        let process = Process { id: random.random(), host: text(random), began: edge(random) };
        let joined = PartitionJoin {
            stream: text(random),
            partition: partition(random),
            offset: edge(random),
            topic_id: random.random_bool(0.5).then(|| text(random)),
        };
        let decision =
            ClockDecision { partition: partition(random), watermark: edge(random), at: 7 };
        let texts = |random: &mut StdRng| BTreeMap::from([(text(random), text(random))]);
        Progress {
            version: PROGRESS_VERSION,
            epoch,
            full: random.random_bool(0.3),
            now: edge(random),
            joined: vec![joined; random.random_range(0..2)],
            positions: BTreeMap::from([(partition(random), position)]),
            decisions: BTreeMap::from([(text(random), vec![decision])]),
            emitted: vec![text(random); random.random_range(0..3)],
            tables: texts(random),
            cluster: random.random_bool(0.5).then(|| text(random)),
            topics: texts(random),
            plans: texts(random),
            snapshot: snapshot(random),
            older: snapshot(random),
            clean: random.random_bool(0.1),
            skipped: vec![skipped; random.random_range(0..2)],
            drained: random.random_bool(0.1),
            process: random.random_bool(0.5).then_some(process),
            digests: BTreeMap::from([(text(random), texts(random))]),
        }
    }

    fn mutate(random: &mut StdRng, bytes: &mut Vec<u8>) {
        const BYTES: &[u8] = b"{}[]\",:\\0189-.entf/\x00\xff";
        if bytes.is_empty() {
            return;
        }
        let at = random.random_range(0..bytes.len());
        let byte = BYTES[random.random_range(0..BYTES.len())];
        match random.random_range(0..5) {
            0 => bytes[at] = byte,
            1 => bytes.truncate(at.max(1)),
            2 => bytes.insert(at, byte),
            3 => bytes[at] ^= 1 << random.random_range(0..8),
            _ => {
                let part = bytes[at..(at + 30).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }

    #[test]
    fn hostile_logs_are_decoded_or_rejected() {
        let cases = std::env::var("MILLSTREAM_FUZZ_CASES").map_or(4_000, |n| n.parse().unwrap());
        let mut random = StdRng::seed_from_u64(3);
        let (mut records, mut decoded) = (0, 0);
        for case in 0..cases {
            let first = if random.random_bool(0.9) { case } else { u64::MAX - 2 };
            let log: Vec<Bytes> = (0..random.random_range(0..5))
                .map(|number| {
                    let mut bytes = record(&mut random, first.saturating_add(number))
                        .encode()
                        .unwrap()
                        .to_vec();
                    for _ in 0..random.random_range(0..3) {
                        mutate(&mut random, &mut bytes);
                    }
                    bytes.into()
                })
                .collect();
            records += log.len();
            match check(&log) {
                Ok(valid) => decoded += valid,
                Err(violation) => panic!("case {case}: {violation}\n{log:?}"),
            }
        }
        println!("{records} records in {cases} logs: {decoded} decoded");
        assert!(decoded > records / 5 && decoded < records - records / 5, "{decoded} of {records}");
    }
}
