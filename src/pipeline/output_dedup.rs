//! Removes records that the output topics contain already, so that a rebuild publishes nothing
//! twice.
//!
//! - A *window* of a query with final results only is published completely or not at all, in one
//!   transaction. If the topic has one of its rows, the window is not published again.
//! - Other appended rows are compared by their content; each row of the topic matches one row.
//! - Of keyed results (views, early and corrected rows) the newest row of a key is compared.
//! - Dead letters and late rows are compared by the message that they refer to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::pipeline::engine::Engine;
use crate::pipeline::topic_reader::read_topic;
use crate::planner::PlanKind;
use crate::sink::{self, Publication, headers};
use crate::source::KafkaConfig;
use crate::time::Micros;
use crate::types::OutRecord;
use crate::{Error, Result};

/// By topic, the number of records that it contained before, and the number that are added.
pub type TopicCounts = BTreeMap<Arc<str>, (u64, u64)>;

/// The content of the output topics, and the records that they lack.
pub struct OutputDedup {
    topics: HashMap<Arc<str>, PublishedRecords>,
    missing: Vec<OutRecord>,
    counts: TopicCounts,
    /// Set while rows of history are processed. Dead letters and late rows are ignored then: they
    /// were published when the rows were processed for the first time.
    pub only_results: bool,
}

/// The content of a topic, in the form in which records are compared with it.
enum PublishedRecords {
    /// The start and end of each window.
    Windows(HashSet<(Micros, Micros)>),
    /// How often each row occurs, by digest.
    Rows(HashMap<String, u64>),
    /// The newest value of each key, in the topic and in this run. With `retracts`, keys that this
    /// run lacks are deleted.
    Keyed { published: HashMap<Bytes, Bytes>, current: HashMap<Bytes, OutRecord>, retracts: bool },
    /// The messages that dead letters or late rows refer to.
    Messages(HashSet<String>),
}

impl OutputDedup {
    /// Reads every output topic of a customer.
    pub async fn read(kafka: &KafkaConfig, engine: &Engine) -> Result<Self> {
        let customer = &engine.customer.name;
        let mut topics: HashMap<Arc<str>, PublishedRecords> = HashMap::new();
        for query in engine.queries() {
            let column = |name: &str| query.plan().output.index_of(name).is_ok();
            let is_windowed = query.plan().kind == PlanKind::Windowed
                && column("window_start")
                && column("window_end");
            let published = match query.sink().publication {
                Publication::Append if is_windowed => PublishedRecords::Windows(HashSet::new()),
                Publication::Append => PublishedRecords::Rows(HashMap::new()),
                publication => PublishedRecords::Keyed {
                    published: HashMap::new(),
                    current: HashMap::new(),
                    retracts: publication == Publication::Upsert,
                },
            };
            topics.insert(query.sink().topic.clone(), published);
        }
        topics
            .insert(sink::dead_letter_topic(customer), PublishedRecords::Messages(HashSet::new()));
        for stream in engine.streams().keys() {
            topics.insert(
                sink::late_topic(customer, stream),
                PublishedRecords::Messages(HashSet::new()),
            );
        }
        for (topic, published) in &mut topics {
            read_topic(kafka, topic, |chunk| {
                for record in &chunk.records {
                    let header = |name: &str| chunk.header(record, name);
                    published.add(chunk.key(record), chunk.value(record), header);
                }
                Ok(())
            })
            .await?;
        }
        Ok(Self { topics, missing: Vec::new(), counts: TopicCounts::new(), only_results: false })
    }

    /// Adds the records of an epoch: those that no topic contains are collected.
    ///
    /// # Errors
    /// A record belongs to a topic that is not one of the customer's outputs.
    pub fn add(&mut self, records: Vec<OutRecord>) -> Result<()> {
        for record in records {
            let published = self.topics.get_mut(&record.topic);
            let published = published.ok_or_else(|| {
                Error::internal(format!(
                    "a rebuild has a record for the unknown topic {}",
                    record.topic
                ))
            })?;
            if self.only_results && matches!(published, PublishedRecords::Messages(_)) {
                continue;
            }
            let counts = self.counts.entry(record.topic.clone()).or_default();
            match published.contains(&record) {
                Some(true) => counts.0 += 1,
                Some(false) => {
                    counts.1 += 1;
                    self.missing.push(record);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The windows that a topic contains; none if its records are compared in another way.
    pub fn windows(&self, topic: &Arc<str>) -> HashSet<(Micros, Micros)> {
        match self.topics.get(topic) {
            Some(PublishedRecords::Windows(windows)) => windows.clone(),
            _ => HashSet::new(),
        }
    }

    /// Returns the records that are to be published, and the counts.
    pub fn finish(mut self) -> (Vec<OutRecord>, TopicCounts) {
        for (topic, published) in self.topics {
            let PublishedRecords::Keyed { mut published, current, retracts } = published else {
                continue;
            };
            let counts = self.counts.entry(topic.clone()).or_default();
            for (key, record) in current {
                if published.remove(&key) == record.value {
                    counts.0 += u64::from(record.value.is_some());
                } else {
                    counts.1 += 1;
                    self.missing.push(record);
                }
            }
            for key in published.into_keys().filter(|_| retracts) {
                counts.1 += 1;
                self.missing.push(OutRecord {
                    topic: topic.clone(),
                    partition: None,
                    key: Some(key),
                    value: None,
                    headers: Vec::new(),
                    timestamp_ms: None,
                });
            }
        }
        (self.missing, self.counts)
    }
}

impl PublishedRecords {
    /// Adds a record of the topic.
    fn add(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        header: impl Fn(&str) -> Option<String>,
    ) {
        match (self, value) {
            (Self::Windows(windows), Some(value)) => windows.extend(window(value)),
            (Self::Rows(rows), _) => *rows.entry(content_digest(key, value)).or_default() += 1,
            (Self::Keyed { published, .. }, value) => {
                let Some(key) = key.map(Bytes::copy_from_slice) else { return };
                match value {
                    Some(value) => published.insert(key, Bytes::copy_from_slice(value)),
                    None => published.remove(&key),
                };
            }
            (Self::Messages(messages), Some(value)) => {
                messages.insert(message(value, header));
            }
            (Self::Windows(_) | Self::Messages(_), None) => {}
        }
    }

    /// Whether the topic contains a record; `None`: that is decided at the end, by
    /// [`OutputDedup::finish`].
    fn contains(&mut self, record: &OutRecord) -> Option<bool> {
        let value = record.value.as_deref().unwrap_or_default();
        let header = |wanted: &str| {
            let (_, value) = record.headers.iter().find(|(name, _)| name == wanted)?;
            value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
        };
        match self {
            Self::Windows(windows) => {
                Some(window(value).is_some_and(|window| windows.contains(&window)))
            }
            Self::Rows(rows) => {
                let count =
                    rows.get_mut(&content_digest(record.key.as_deref(), record.value.as_deref()));
                let unmatched = count.filter(|count| **count > 0);
                Some(unmatched.map(|count| *count -= 1).is_some())
            }
            Self::Keyed { current, .. } => {
                current.insert(record.key.clone().unwrap_or_default(), record.clone());
                None
            }
            Self::Messages(messages) => Some(messages.contains(&message(value, header))),
        }
    }
}

/// The start and end of a result's window.
fn window(value: &[u8]) -> Option<(Micros, Micros)> {
    let row: serde_json::Value = serde_json::from_slice(value).ok()?;
    let instant = |name: &str| {
        let text = row.get(name)?.as_str()?;
        let instant = chrono::DateTime::parse_from_rfc3339(text).ok()?;
        Some(instant.timestamp_micros())
    };
    Some((instant("window_start")?, instant("window_end")?))
}

/// The digest of a record's key and value.
fn content_digest(key: Option<&[u8]>, value: Option<&[u8]>) -> String {
    let mut digest = Sha256::new();
    for part in [key, value] {
        digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    hex::encode(digest.finalize())
}

/// Identifies the message (or window) that a dead letter or late row refers to, and the stage that
/// rejected it.
fn message(value: &[u8], header: impl Fn(&str) -> Option<String>) -> String {
    let source = [
        headers::STAGE,
        headers::QUERY,
        headers::TOPIC,
        headers::PARTITION,
        headers::OFFSET,
        headers::POSITION,
    ]
    .map(&header);
    if source[4].is_some() {
        return format!("{source:?}");
    }
    let row: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
    match row.get("_offset") {
        Some(_) => {
            let names = ["query", "_topic", "_partition", "_offset", "_position"];
            format!("{:?}", names.map(|name| row.get(name).map(ToString::to_string)))
        }
        None => format!("{source:?} {}", content_digest(None, Some(value))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: Option<&str>, value: Option<&str>) -> OutRecord {
        OutRecord {
            topic: "t".into(),
            partition: None,
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    fn dedup(
        mut content: PublishedRecords,
        records: &[(Option<&str>, Option<&str>)],
    ) -> OutputDedup {
        for (key, value) in records {
            content.add(key.map(str::as_bytes), value.map(str::as_bytes), |_| None);
        }
        let topics = HashMap::from([("t".into(), content)]);
        OutputDedup { topics, missing: Vec::new(), counts: TopicCounts::new(), only_results: false }
    }

    #[test]
    fn a_published_window_is_not_published_again() {
        let row = |start: u8, n: u8| {
            let end = start + 1;
            format!(
                r#"{{"window_start":"2024-05-0{start}T00:00:00+03:00","window_end":"2024-05-0{end}T00:00:00+03:00","n":{n}}}"#
            )
        };
        let mut dedup =
            dedup(PublishedRecords::Windows(HashSet::new()), &[(None, Some(row(1, 7).as_str()))]);
        let again = [row(1, 8), row(2, 8)].map(|row| record(None, Some(&row)));
        dedup.add(again.to_vec()).unwrap();
        let (missing, counts) = dedup.finish();
        assert_eq!(missing, [again[1].clone()]);
        assert_eq!(counts["t"], (1, 1));
    }

    #[test]
    fn each_published_row_matches_one_row() {
        let mut dedup = dedup(PublishedRecords::Rows(HashMap::new()), &[(None, Some("a"))]);
        let rows = ["a", "a", "b"].map(|row| record(None, Some(row)));
        dedup.add(rows.to_vec()).unwrap();
        assert_eq!(dedup.finish().0, rows[1..]);
    }

    #[test]
    fn the_newest_row_of_a_key_is_compared_and_a_missing_key_is_deleted() {
        let content = PublishedRecords::Keyed {
            published: HashMap::new(),
            current: HashMap::new(),
            retracts: true,
        };
        let records = [(Some("k"), Some("1")), (Some("k"), Some("2")), (Some("gone"), Some("1"))];
        let mut dedup = dedup(content, &records);
        let rows = [("k", "1"), ("k", "2"), ("new", "1")];
        let rows = rows.map(|(key, value)| record(Some(key), Some(value)));
        dedup.add(rows.to_vec()).unwrap();
        let (mut missing, counts) = dedup.finish();
        missing.sort_by_key(|record| record.key.clone());
        assert_eq!(missing, [record(Some("gone"), None), rows[2].clone()]);
        assert_eq!(counts["t"], (1, 2));
    }
}
