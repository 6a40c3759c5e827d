//! A Kafka record to be produced.

use std::sync::Arc;

use bytes::Bytes;

/// A Kafka record to be produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition. `None` selects it by the murmur2 hash of the key, as Kafka's Java client
    /// does, or arbitrarily for a record without a key.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; `None` makes the record a tombstone.
    pub value: Option<Bytes>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The timestamp in milliseconds since the Unix epoch; `None` is the time of sending.
    pub timestamp_ms: Option<i64>,
}
