//! What the topics of a customer hold already, so that a rebuild says nothing twice.
//!
//! - A *window* of a query whose results are final once they are sent is published as a whole or
//!   not at all, in one transaction: one row of it in the topic, and the window stays as it is.
//! - Other appended rows are compared by their content, each against one of its like.
//! - Of keyed results (views, early and corrected rows) the newest row of a key counts.
//! - Dead letters and late rows are compared by the message that they are about.

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

/// By topic, how many records were published before, and how many are to be now.
pub type Counts = BTreeMap<Arc<str>, (u64, u64)>;

/// What the topics hold, and what is to be added to them.
pub struct OutputDedup {
    topics: HashMap<Arc<str>, Said>,
    missing: Vec<OutRecord>,
    counts: Counts,
    /// While rows of history are fed: messages that they are about were dealt with when they were
    /// fed for the first time.
    pub only_results: bool,
}

/// What a topic holds, as far as it is of use.
enum Said {
    Windows(HashSet<(Micros, Micros)>),
    Rows(HashMap<String, u64>),
    Newest { said: HashMap<Bytes, Bytes>, now: HashMap<Bytes, OutRecord>, retract: bool },
    Messages(HashSet<String>),
}

impl OutputDedup {
    /// Reads every output topic of a customer.
    pub async fn read(kafka: &KafkaConfig, engine: &Engine) -> Result<Self> {
        let customer = &engine.customer.name;
        let mut topics: HashMap<Arc<str>, Said> = HashMap::new();
        for query in engine.queries() {
            let column = |name: &str| query.plan().output.index_of(name).is_ok();
            let windowed = query.plan().kind == PlanKind::Windowed
                && column("window_start")
                && column("window_end");
            let said = match query.sink().publication {
                Publication::Append if windowed => Said::Windows(HashSet::new()),
                Publication::Append => Said::Rows(HashMap::new()),
                publication => Said::Newest {
                    said: HashMap::new(),
                    now: HashMap::new(),
                    retract: publication == Publication::Upsert,
                },
            };
            topics.insert(query.sink().topic.clone(), said);
        }
        topics.insert(sink::dead_letter_topic(customer), Said::Messages(HashSet::new()));
        for stream in engine.streams().keys() {
            topics.insert(sink::late_topic(customer, stream), Said::Messages(HashSet::new()));
        }
        for (topic, said) in &mut topics {
            read_topic(kafka, topic, |chunk| {
                for record in &chunk.records {
                    let header = |name: &str| chunk.header(record, name);
                    said.hear(chunk.key(record), chunk.value(record), header);
                }
                Ok(())
            })
            .await?;
        }
        Ok(Self { topics, missing: Vec::new(), counts: Counts::new(), only_results: false })
    }

    /// Takes what an epoch says, and keeps of it what no topic holds.
    pub fn compare(&mut self, records: Vec<OutRecord>) -> Result<()> {
        for record in records {
            let said = self.topics.get_mut(&record.topic);
            let said = said.ok_or_else(|| {
                Error::internal(format!("a rebuild says something to topic {}", record.topic))
            })?;
            if self.only_results && matches!(said, Said::Messages(_)) {
                continue;
            }
            let counts = self.counts.entry(record.topic.clone()).or_default();
            match said.holds(&record) {
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

    /// The windows that a topic holds; none where that is not what is compared.
    pub fn windows(&self, topic: &Arc<str>) -> HashSet<(Micros, Micros)> {
        match self.topics.get(topic) {
            Some(Said::Windows(windows)) => windows.clone(),
            _ => HashSet::new(),
        }
    }

    /// What is to be published, and the counts.
    pub fn finish(mut self) -> (Vec<OutRecord>, Counts) {
        for (topic, said) in self.topics {
            let Said::Newest { mut said, now, retract } = said else { continue };
            let counts = self.counts.entry(topic.clone()).or_default();
            for (key, record) in now {
                if said.remove(&key) == record.value {
                    counts.0 += u64::from(record.value.is_some());
                } else {
                    counts.1 += 1;
                    self.missing.push(record);
                }
            }
            for key in said.into_keys().filter(|_| retract) {
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

impl Said {
    /// A record of the topic.
    fn hear(
        &mut self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        header: impl Fn(&str) -> Option<String>,
    ) {
        match (self, value) {
            (Self::Windows(windows), Some(value)) => windows.extend(window(value)),
            (Self::Rows(rows), _) => *rows.entry(content(key, value)).or_default() += 1,
            (Self::Newest { said, .. }, value) => {
                let Some(key) = key.map(Bytes::copy_from_slice) else { return };
                match value {
                    Some(value) => said.insert(key, Bytes::copy_from_slice(value)),
                    None => said.remove(&key),
                };
            }
            (Self::Messages(messages), Some(value)) => {
                messages.insert(message(value, header));
            }
            (Self::Windows(_) | Self::Messages(_), None) => {}
        }
    }

    /// Whether the topic holds a record; `None`: that is known in the end.
    fn holds(&mut self, record: &OutRecord) -> Option<bool> {
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
                let count = rows.get_mut(&content(record.key.as_deref(), record.value.as_deref()));
                let left = count.filter(|count| **count > 0);
                Some(left.map(|count| *count -= 1).is_some())
            }
            Self::Newest { now, .. } => {
                now.insert(record.key.clone().unwrap_or_default(), record.clone());
                None
            }
            Self::Messages(messages) => Some(messages.contains(&message(value, header))),
        }
    }
}

/// Which window a result is of: start and end.
fn window(value: &[u8]) -> Option<(Micros, Micros)> {
    let row: serde_json::Value = serde_json::from_slice(value).ok()?;
    let instant = |name: &str| {
        let text = row.get(name)?.as_str()?;
        let instant = chrono::DateTime::parse_from_rfc3339(text).ok()?;
        Some(instant.timestamp_micros())
    };
    Some((instant("window_start")?, instant("window_end")?))
}

fn content(key: Option<&[u8]>, value: Option<&[u8]>) -> String {
    let mut digest = Sha256::new();
    for part in [key, value] {
        digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
        digest.update(part.unwrap_or_default());
    }
    hex::encode(&digest.finalize())
}

/// Which message (or window) a dead letter or a late row is about, and who refused it.
fn message(value: &[u8], header: impl Fn(&str) -> Option<String>) -> String {
    let said = [
        headers::STAGE,
        headers::QUERY,
        headers::TOPIC,
        headers::PARTITION,
        headers::OFFSET,
        headers::POSITION,
    ]
    .map(&header);
    if said[4].is_some() {
        return format!("{said:?}");
    }
    let row: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
    match row.get("_offset") {
        Some(_) => {
            let names = ["query", "_topic", "_partition", "_offset", "_position"];
            format!("{:?}", names.map(|name| row.get(name).map(ToString::to_string)))
        }
        None => format!("{said:?} {}", content(None, Some(value))),
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

    fn published(mut said: Said, heard: &[(Option<&str>, Option<&str>)]) -> OutputDedup {
        for (key, value) in heard {
            said.hear(key.map(str::as_bytes), value.map(str::as_bytes), |_| None);
        }
        let topics = HashMap::from([("t".into(), said)]);
        OutputDedup { topics, missing: Vec::new(), counts: Counts::new(), only_results: false }
    }

    #[test]
    fn a_window_that_was_published_stays_as_it_is() {
        let row = |start: u8, n: u8| {
            let end = start + 1;
            format!(
                r#"{{"window_start":"2024-05-0{start}T00:00:00+03:00","window_end":"2024-05-0{end}T00:00:00+03:00","n":{n}}}"#
            )
        };
        let mut published =
            published(Said::Windows(HashSet::new()), &[(None, Some(row(1, 7).as_str()))]);
        let again = [row(1, 8), row(2, 8)].map(|row| record(None, Some(&row)));
        published.compare(again.to_vec()).unwrap();
        let (missing, counts) = published.finish();
        assert_eq!(missing, [again[1].clone()]);
        assert_eq!(counts["t"], (1, 1));
    }

    #[test]
    fn equal_rows_count_each() {
        let mut published = published(Said::Rows(HashMap::new()), &[(None, Some("a"))]);
        let rows = ["a", "a", "b"].map(|row| record(None, Some(row)));
        published.compare(rows.to_vec()).unwrap();
        assert_eq!(published.finish().0, rows[1..]);
    }

    #[test]
    fn of_a_key_the_newest_row_counts_and_a_lost_key_is_taken_back() {
        let said = Said::Newest { said: HashMap::new(), now: HashMap::new(), retract: true };
        let heard = [(Some("k"), Some("1")), (Some("k"), Some("2")), (Some("gone"), Some("1"))];
        let mut published = published(said, &heard);
        let rows = [("k", "1"), ("k", "2"), ("new", "1")];
        let rows = rows.map(|(key, value)| record(Some(key), Some(value)));
        published.compare(rows.to_vec()).unwrap();
        let (mut missing, counts) = published.finish();
        missing.sort_by_key(|record| record.key.clone());
        assert_eq!(missing, [record(Some("gone"), None), rows[2].clone()]);
        assert_eq!(counts["t"], (1, 2));
    }
}
