//! Dead letters: input that could not be processed, byte for byte, with the reason in the headers.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::source::chunk::{Chunk, Record};
use crate::types::OutRecord;

/// Names of the headers that a dead letter has besides the headers of its record.
pub mod headers {
    /// Whether Millstream adds a header of this name; other headers come from the record.
    pub fn is_reserved(name: &[u8]) -> bool {
        name.starts_with(b"millstream.")
    }

    /// Where it failed: a [`crate::sink::FailureStage`].
    pub const STAGE: &str = "millstream.stage";
    /// The query that refused the row or whose window failed.
    pub const QUERY: &str = "millstream.query";
    /// The topic that it came from.
    pub const TOPIC: &str = "millstream.topic";
    /// The partition that it came from.
    pub const PARTITION: &str = "millstream.partition";
    /// Its offset there.
    pub const OFFSET: &str = "millstream.offset";
    /// Its position in the record, from 0.
    pub const POSITION: &str = "millstream.position";
    /// The column at fault.
    pub const COLUMN: &str = "millstream.column";
    /// What is wrong with it.
    pub const REASON: &str = "millstream.reason";
    /// The sizes of the record before it was truncated to the limit of the topic.
    pub const TRUNCATED: &str = "millstream.cut";
    /// The record's Kafka timestamp, in milliseconds.
    pub const TIMESTAMP: &str = "millstream.timestamp";
}

/// The most characters of a reason. The decoder limits its own reasons; an error of DataFusion may
/// quote a whole value.
const LONGEST_REASON: usize = 1_000;

/// Where a dead letter failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureStage {
    /// The bytes do not match the schema.
    Decode,
    /// A computed column of the stream failed.
    Column,
    /// The event time is null or too far in the future.
    EventTime,
    /// An expression of a query failed for this row.
    Query,
    /// The final plan of a query failed for this window.
    Window,
    /// A result, or a late row, is larger than its topic accepts.
    Result,
}

impl fmt::Display for FailureStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode => "decode",
            Self::Column => "column",
            Self::EventTime => "event_time",
            Self::Query => "query",
            Self::Window => "window",
            Self::Result => "result",
        })
    }
}

/// The message of a chunk that failed.
#[derive(Debug, Clone, Copy)]
pub struct SourceMessage<'a> {
    /// Its chunk.
    pub chunk: &'a Chunk,
    /// Its record.
    pub record: &'a Record,
    /// Its position in the record.
    pub position: u32,
}

/// The description of a failure that makes a dead letter.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Where it failed.
    pub stage: FailureStage,
    /// The query, for [`FailureStage::Query`] and [`FailureStage::Window`].
    pub query: Option<String>,
    /// The column at fault, if one is.
    pub column: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl DeadLetter {
    /// The record for a message of the source. `value` is the message's own bytes when the record
    /// holds several, else the whole value.
    pub fn from_source(
        &self,
        topic: &Arc<str>,
        origin: SourceMessage<'_>,
        value: Option<Bytes>,
    ) -> OutRecord {
        let SourceMessage { chunk, record, position } = origin;
        let bytes = |range: &std::ops::Range<u32>| {
            chunk.bytes.slice(range.start as usize..range.end as usize)
        };
        let mut all = Vec::with_capacity(8);
        for (name, value) in chunk.headers(record) {
            let name = String::from_utf8_lossy(name).into_owned();
            all.push((name, value.map(|value| chunk.bytes.slice_ref(value))));
        }
        self.describe(&mut all);
        let mut push_header =
            |name: &str, text: String| all.push((name.to_owned(), Some(text.into())));
        push_header(headers::TOPIC, chunk.topic.to_string());
        push_header(headers::PARTITION, chunk.partition.to_string());
        push_header(headers::OFFSET, record.offset.to_string());
        push_header(headers::POSITION, position.to_string());
        push_header(headers::TIMESTAMP, record.timestamp_ms.to_string());
        OutRecord {
            topic: topic.clone(),
            partition: None,
            key: record.key.as_ref().map(bytes),
            value: value.or_else(|| record.value.as_ref().map(bytes)),
            headers: all,
            timestamp_ms: None,
        }
    }

    /// The record for a window whose final plan failed; `value` says which.
    pub fn from_window(&self, topic: &Arc<str>, value: Bytes) -> OutRecord {
        let mut all = Vec::with_capacity(4);
        self.describe(&mut all);
        OutRecord {
            topic: topic.clone(),
            partition: None,
            key: None,
            value: Some(value),
            headers: all,
            timestamp_ms: None,
        }
    }

    /// The record for a result that is larger than its topic accepts.
    pub fn from_result(&self, topic: &Arc<str>, result: OutRecord) -> OutRecord {
        let mut headers = result.headers;
        self.describe(&mut headers);
        OutRecord { topic: topic.clone(), headers, ..result }
    }

    fn describe(&self, all: &mut Vec<(String, Option<Bytes>)>) {
        let mut push_header = |name: &str, text: &str| {
            all.push((name.to_owned(), Some(Bytes::copy_from_slice(text.as_bytes()))));
        };
        push_header(headers::STAGE, &self.stage.to_string());
        if let Some(query) = &self.query {
            push_header(headers::QUERY, query);
        }
        if let Some(column) = &self.column {
            push_header(headers::COLUMN, column);
        }
        match self.reason.char_indices().nth(LONGEST_REASON) {
            Some((end, _)) => push_header(headers::REASON, &format!("{}…", &self.reason[..end])),
            None => push_header(headers::REASON, &self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_bounded() {
        let said = |reason: String| {
            let letter =
                DeadLetter { stage: FailureStage::Query, query: None, column: None, reason };
            let record = letter.from_window(&"t".into(), Bytes::new());
            let (_, value) = record.headers.into_iter().next_back().unwrap();
            String::from_utf8(value.unwrap().to_vec()).unwrap()
        };
        assert_eq!(said("ä".repeat(1_000)), "ä".repeat(1_000));
        assert_eq!(said("ä".repeat(1 << 20)), format!("{}…", "ä".repeat(1_000)));
    }
}
