//! Size limits of topics: replaces records that are too large for their topic.
//!
//! Kafka refuses a whole transaction for one record that is larger than its topic's
//! `max.message.bytes`. So sizes are checked before anything is sent, uncompressed, as an
//! upper bound. If a broker still refuses a record, the limit is lowered and the epoch is sent
//! again. Replacing records changes only the output of a pipeline, never its state.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::OutRecord;

/// Kafka's own default of `max.message.bytes`, for topics whose limit is unknown.
pub const DEFAULT_LIMIT: usize = 1_048_588;
/// The largest overhead of a batch with one record, besides key, value and headers.
const BATCH_OVERHEAD: usize = 128;
/// The largest overhead of a header, besides its name and value.
const HEADER_OVERHEAD: usize = 10;
/// How many times a replacement may itself be replaced.
const MAX_REPLACEMENTS: usize = 3;

/// Returns the replacement of a record that is larger than the limit (in bytes of [`size_of`]), and
/// optionally a record to send before it. It is called again for a replacement that is too large.
pub type ReplaceOversized =
    dyn Fn(OutRecord, usize) -> (OutRecord, Option<OutRecord>) + Send + Sync;

/// The size limits of the topics that a customer writes.
#[derive(Clone)]
pub struct SizeLimits {
    by_topic: HashMap<Arc<str>, usize>,
    replace: Arc<ReplaceOversized>,
}

/// The result of [`SizeLimits::apply`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// The number of records that were too large.
    pub replaced: u64,
    /// The number of these whose replacement goes to another topic.
    pub diverted: u64,
}

/// The largest size of a record in a batch of its own, uncompressed, in bytes.
pub fn size_of(record: &OutRecord) -> usize {
    let headers = (record.headers.iter())
        .map(|(name, value)| HEADER_OVERHEAD + name.len() + value.as_ref().map_or(0, Bytes::len));
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    BATCH_OVERHEAD + length(&record.key) + length(&record.value) + headers.sum::<usize>()
}

impl SizeLimits {
    /// Creates the limits; `by_topic` is the limit in bytes of each topic that is written.
    pub fn new(by_topic: HashMap<Arc<str>, usize>, replace: Arc<ReplaceOversized>) -> Self {
        Self { by_topic, replace }
    }

    /// The smallest limit of all topics; batches of several records stay below it.
    pub fn smallest(&self) -> usize {
        self.by_topic.values().copied().fold(DEFAULT_LIMIT, usize::min)
    }

    /// The topics with a limit: all topics that a customer writes except its log.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_topic.keys()
    }

    /// The limit of a topic in bytes.
    fn limit_of(&self, topic: &str) -> usize {
        self.by_topic.get(topic).copied().unwrap_or(DEFAULT_LIMIT)
    }

    /// Lowers the limit of a topic below `size`, after a broker refused a record of that size.
    pub fn lower(&mut self, topic: &Arc<str>, size: usize) {
        let limit = self.limit_of(topic).min(size.saturating_sub(1));
        self.by_topic.insert(topic.clone(), limit);
    }

    /// Replaces the records that are too large, in place.
    pub fn apply(&self, records: &mut Vec<OutRecord>) -> Applied {
        let smallest = self.smallest();
        let mut applied = Applied::default();
        if records.iter().all(|record| size_of(record) <= smallest) {
            return applied;
        }
        for record in std::mem::take(records) {
            let (topic, size) = (record.topic.clone(), size_of(&record));
            let limit = self.limit_of(&topic);
            let start = records.len();
            self.push_fitting(record, MAX_REPLACEMENTS, records);
            let Some(last) = records[start..].last().filter(|_| size > limit) else { continue };
            applied.replaced += 1;
            applied.diverted += u64::from(last.topic != topic);
            tracing::warn!(%topic, size, limit, replacement_topic = %last.topic, "replaced a record that is larger than its topic takes (max.message.bytes)");
        }
        applied
    }

    /// Appends a record, or its replacement if it is too large.
    fn push_fitting(
        &self,
        record: OutRecord,
        replacements_left: usize,
        fitting: &mut Vec<OutRecord>,
    ) {
        let limit = self.limit_of(&record.topic);
        if replacements_left == 0 || size_of(&record) <= limit {
            return fitting.push(record);
        }
        let (replacement, before) = (self.replace)(record, limit);
        // A record that only precedes a replacement is dropped if it is too large.
        fitting.extend(before.filter(|before| size_of(before) <= self.limit_of(&before.topic)));
        self.push_fitting(replacement, replacements_left - 1, fitting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(topic: &str, bytes: usize) -> OutRecord {
        OutRecord {
            topic: topic.into(),
            partition: None,
            key: None,
            value: Some(vec![b'x'; bytes].into()),
            headers: vec![],
            timestamp_ms: None,
        }
    }

    /// Diverts oversized records to "dead" and truncates those that are too large for it.
    fn limits() -> SizeLimits {
        let replace = |mut record: OutRecord, limit: usize| {
            if record.topic.as_ref() == "dead" {
                record.value = record.value.map(|value| value.slice(..limit - BATCH_OVERHEAD));
            }
            record.topic = "dead".into();
            (record, None)
        };
        let by_topic = HashMap::from([("small".into(), 1_000), ("dead".into(), 2_000)]);
        SizeLimits::new(by_topic, Arc::new(replace))
    }

    #[test]
    fn only_oversized_records_are_replaced() {
        let mut limits = limits();
        let fits = 1_000 - BATCH_OVERHEAD;
        let mut records = vec![
            record("small", fits),
            record("small", fits + 1),
            record("small", 100_000),
            record("other", 100_000),
        ];
        assert_eq!(limits.apply(&mut records), Applied { replaced: 2, diverted: 2 });
        records[2].value = Some(vec![b'x'; 3_000].into());
        assert_eq!(limits.apply(&mut records), Applied { replaced: 1, diverted: 0 });
        let found: Vec<_> = records.iter().map(|r| (r.topic.as_ref(), size_of(r))).collect();
        assert_eq!(found, [("small", 1_000), ("dead", 1_001), ("dead", 2_000), ("other", 100_128)]);
        assert_eq!(limits.smallest(), 1_000);
        limits.lower(&"other".into(), 100_128);
        assert_eq!(limits.apply(&mut records).diverted, 1);
    }
}
