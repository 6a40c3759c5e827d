//! The replacements of records that are larger than their topic accepts.
//!
//! ```text
//!  result ──► dead letter, whole ──► dead letter, cut, with a header that says so
//!    └─► a tombstone of its key, where the topic says what holds now
//!  late row ──► the same row, its long texts cut (what it refers to stays)
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::sink::{DeadLetter, FailureStage, Publication, ReplaceOversized, headers, size_of};
use crate::types::OutRecord;

/// A text in a late row that is longer than this is cut when the row is too large.
const TEXT_BYTES: usize = 1_000;
/// Of what a cut dead letter may have, this part is for its own headers, and for its key.
const PART: usize = 4;

/// The kind of records in a topic.
#[derive(Debug, Clone)]
pub enum TopicContent {
    /// A query's results.
    Results(String, Publication),
    /// Late rows.
    Late,
}

/// The rule for a customer whose dead letters go to `dead`, and whose `topics` have this content.
pub fn replace_oversized(
    dead: Arc<str>,
    topics: HashMap<Arc<str>, TopicContent>,
) -> Arc<ReplaceOversized> {
    Arc::new(move |record, limit| {
        if record.topic == dead {
            return (truncate_letter(record, limit), None);
        }
        let content = topics.get(&record.topic);
        if matches!(content, Some(TopicContent::Late))
            && let Some(shorter) = truncate_texts(&record)
            && size_of(&shorter) <= limit
        {
            return (shorter, None);
        }
        let size = size_of(&record);
        let topic = &record.topic;
        let letter = DeadLetter {
            stage: FailureStage::Result,
            query: match content {
                Some(TopicContent::Results(query, _)) => Some(query.clone()),
                _ => None,
            },
            column: None,
            reason: format!(
                "the result has {size} bytes and topic {topic} takes {limit} (max.message.bytes)"
            ),
        };
        // The previous value of the key is no longer valid.
        let is_keyed =
            matches!(content, Some(TopicContent::Results(_, p)) if *p != Publication::Append);
        let gone = (is_keyed && record.value.is_some()).then(|| OutRecord {
            value: None,
            headers: Vec::new(),
            ..record.clone()
        });
        (letter.from_result(&dead, record), gone)
    })
}

/// A late row with its long texts truncated; `None` if it is not JSON.
fn truncate_texts(record: &OutRecord) -> Option<OutRecord> {
    let mut value: Value = serde_json::from_slice(record.value.as_ref()?).ok()?;
    shorten(&mut value);
    Some(OutRecord { value: Some(value.to_string().into()), ..record.clone() })
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) => text.truncate(text.floor_char_boundary(TEXT_BYTES)),
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

/// A dead letter truncated to `limit`; the headers with its source and reason stay complete.
fn truncate_letter(mut letter: OutRecord, limit: usize) -> OutRecord {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    let (mut ours, mut own): (Vec<_>, Vec<_>) = std::mem::take(&mut letter.headers)
        .into_iter()
        .partition(|(name, _)| headers::is_reserved(name.as_bytes()));
    let own_bytes: usize = own.iter().map(|(name, value)| name.len() + length(value)).sum();
    let was = format!(
        "key: {} bytes, value: {} bytes, headers: {own_bytes} bytes",
        length(&letter.key),
        length(&letter.value)
    );
    ours.push((headers::TRUNCATED.to_owned(), Some(was.into())));
    let (key, value) = (letter.key.take(), letter.value.take());
    letter.headers = ours;
    let mut room = limit.saturating_sub(size_of(&letter));
    if own_bytes + own.len() * 10 <= room / PART {
        letter.headers.append(&mut own);
        room = limit.saturating_sub(size_of(&letter));
    }
    let part = |bytes: Option<Bytes>, room: usize| bytes.map(|b| b.slice(..b.len().min(room)));
    letter.key = part(key, room / PART);
    letter.value = part(value, room - length(&letter.key));
    letter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(topic: &str, value: String) -> OutRecord {
        OutRecord {
            topic: topic.into(),
            partition: None,
            key: Some("key".into()),
            value: Some(value.into()),
            headers: vec![],
            timestamp_ms: None,
        }
    }

    fn replace_with(record: OutRecord, limit: usize) -> (OutRecord, Option<OutRecord>) {
        let results = |publication| TopicContent::Results("visits".to_owned(), publication);
        let topics = HashMap::from([
            ("r".into(), results(Publication::Append)),
            ("view".into(), results(Publication::Upsert)),
            ("late".into(), TopicContent::Late),
        ]);
        replace_oversized("dead".into(), topics)(record, limit)
    }

    fn replace(record: OutRecord, limit: usize) -> OutRecord {
        let (instead, before) = replace_with(record, limit);
        assert_eq!(before, None);
        instead
    }

    #[test]
    fn the_key_of_a_view_whose_row_is_too_large_holds_nothing() {
        let (letter, gone) = replace_with(record("view", "x".repeat(5_000)), 1_000);
        assert_eq!(letter.topic.as_ref(), "dead");
        let gone = gone.unwrap();
        assert_eq!((gone.topic.as_ref(), gone.value), ("view", None));
        assert_eq!(gone.key.as_deref(), Some(b"key".as_slice()));
    }

    fn header(record: &OutRecord, wanted: &str) -> String {
        let found = record.headers.iter().find(|(name, _)| name == wanted);
        String::from_utf8(found.unwrap().1.as_ref().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn a_result_becomes_a_dead_letter_and_a_large_one_is_cut() {
        let letter = replace(record("r", "x".repeat(5_000)), 1_000);
        assert_eq!((letter.topic.as_ref(), letter.value.as_ref().unwrap().len()), ("dead", 5_000));
        assert_eq!(header(&letter, headers::QUERY), "visits");
        assert_eq!(header(&letter, headers::STAGE), "result");
        assert!(header(&letter, headers::REASON).contains("topic r takes 1000"), "{letter:?}");
        let mut large = letter.clone();
        large.headers.push(("own".into(), Some(vec![b'h'; 900].into())));
        let cut = replace(large, 2_000);
        assert!(size_of(&cut) == 2_000, "{}", size_of(&cut));
        assert_eq!(
            header(&cut, headers::TRUNCATED),
            "key: 3 bytes, value: 5000 bytes, headers: 903 bytes"
        );
        assert_eq!(cut.key.as_deref(), Some(b"key".as_slice()));
        assert!(!cut.headers.iter().any(|(name, _)| name == "own"), "no room for it");
        assert_eq!(header(&cut, headers::REASON), header(&letter, headers::REASON));
    }

    #[test]
    fn a_late_row_keeps_what_it_refers_to() {
        let row = format!(r#"{{"room":"{}ä","_offset":7}}"#, "x".repeat(5_000));
        let late = replace(record("late", row), 3_000);
        let value: Value = serde_json::from_slice(late.value.as_ref().unwrap()).unwrap();
        assert_eq!(late.topic.as_ref(), "late");
        assert_eq!((value["room"].as_str().unwrap().len(), &value["_offset"]), (1_000, &7.into()));
        let numbers = format!("{{\"n\":[{}1]}}", "1,".repeat(5_000));
        assert_eq!(replace(record("late", numbers), 3_000).topic.as_ref(), "dead");
    }
}
