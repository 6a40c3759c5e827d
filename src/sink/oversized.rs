//! Replaces records that are larger than their topic accepts.
//!
//! ```text
//!  result ──► complete dead letter ──► truncated dead letter, with the header `millstream.cut`
//!    └─► tombstone of its key, if the topic contains the current value of each key
//!  late row ──► the same row with truncated texts (its origin stays complete)
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use crate::sink::{DeadLetter, FailureStage, Publication, ReplaceOversized, headers, size_of};
use crate::types::OutRecord;

/// The length in bytes to which texts of a late row are truncated if the row is too large.
const MAX_TEXT_BYTES: usize = 1_000;
/// The key, and the headers of the original record, each get at most one fourth of the space in a
/// truncated dead letter.
const SPACE_DIVISOR: usize = 4;

/// The kind of records in a topic.
#[derive(Debug, Clone)]
pub enum TopicContent {
    /// The results of the named query.
    Results(String, Publication),
    /// Late rows.
    Late,
}

/// Returns the replacement rule for a customer with the dead letter topic `dead` and the content of
/// each of its `topics`.
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
                "the result has {size} bytes and topic {topic} accepts {limit} (max.message.bytes)"
            ),
        };
        // The previous value of the key is no longer valid.
        let is_keyed =
            matches!(content, Some(TopicContent::Results(_, p)) if *p != Publication::Append);
        let tombstone = (is_keyed && record.value.is_some()).then(|| OutRecord {
            value: None,
            headers: Vec::new(),
            ..record.clone()
        });
        (letter.from_result(&dead, record), tombstone)
    })
}

/// A late row with its long texts truncated; `None` if it is not JSON.
fn truncate_texts(record: &OutRecord) -> Option<OutRecord> {
    let mut value: Value = serde_json::from_slice(record.value.as_ref()?).ok()?;
    truncate_strings(&mut value);
    Some(OutRecord { value: Some(value.to_string().into()), ..record.clone() })
}

/// Truncates all strings in a JSON value to [`MAX_TEXT_BYTES`].
fn truncate_strings(value: &mut Value) {
    match value {
        Value::String(text) => text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES)),
        Value::Array(values) => values.iter_mut().for_each(truncate_strings),
        Value::Object(fields) => fields.values_mut().for_each(truncate_strings),
        _ => {}
    }
}

/// A dead letter truncated to `limit`; the headers with its source and reason stay complete.
fn truncate_letter(mut letter: OutRecord, limit: usize) -> OutRecord {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    let (mut reserved, mut original): (Vec<_>, Vec<_>) = std::mem::take(&mut letter.headers)
        .into_iter()
        .partition(|(name, _)| headers::is_reserved(name.as_bytes()));
    let original_bytes: usize =
        original.iter().map(|(name, value)| name.len() + length(value)).sum();
    let original_sizes = format!(
        "key: {} bytes, value: {} bytes, headers: {original_bytes} bytes",
        length(&letter.key),
        length(&letter.value)
    );
    reserved.push((headers::TRUNCATED.to_owned(), Some(original_sizes.into())));
    let (key, value) = (letter.key.take(), letter.value.take());
    letter.headers = reserved;
    let mut room = limit.saturating_sub(size_of(&letter));
    if original_bytes + original.len() * 10 <= room / SPACE_DIVISOR {
        letter.headers.append(&mut original);
        room = limit.saturating_sub(size_of(&letter));
    }
    let part = |bytes: Option<Bytes>, room: usize| bytes.map(|b| b.slice(..b.len().min(room)));
    letter.key = part(key, room / SPACE_DIVISOR);
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
    fn an_oversized_row_of_a_view_becomes_a_tombstone_of_its_key() {
        let (letter, tombstone) = replace_with(record("view", "x".repeat(5_000)), 1_000);
        assert_eq!(letter.topic.as_ref(), "dead");
        let tombstone = tombstone.unwrap();
        assert_eq!((tombstone.topic.as_ref(), tombstone.value), ("view", None));
        assert_eq!(tombstone.key.as_deref(), Some(b"key".as_slice()));
    }

    fn header(record: &OutRecord, wanted: &str) -> String {
        let found = record.headers.iter().find(|(name, _)| name == wanted);
        String::from_utf8(found.unwrap().1.as_ref().unwrap().to_vec()).unwrap()
    }

    #[test]
    fn an_oversized_result_becomes_a_dead_letter_which_is_truncated_if_necessary() {
        let letter = replace(record("r", "x".repeat(5_000)), 1_000);
        assert_eq!((letter.topic.as_ref(), letter.value.as_ref().unwrap().len()), ("dead", 5_000));
        assert_eq!(header(&letter, headers::QUERY), "visits");
        assert_eq!(header(&letter, headers::STAGE), "result");
        assert!(header(&letter, headers::REASON).contains("topic r accepts 1000"), "{letter:?}");
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
    fn an_oversized_late_row_retains_its_origin() {
        let row = format!(r#"{{"room":"{}ä","_offset":7}}"#, "x".repeat(5_000));
        let late = replace(record("late", row), 3_000);
        let value: Value = serde_json::from_slice(late.value.as_ref().unwrap()).unwrap();
        assert_eq!(late.topic.as_ref(), "late");
        assert_eq!((value["room"].as_str().unwrap().len(), &value["_offset"]), (1_000, &7.into()));
        let numbers = format!("{{\"n\":[{}1]}}", "1,".repeat(5_000));
        assert_eq!(replace(record("late", numbers), 3_000).topic.as_ref(), "dead");
    }
}
