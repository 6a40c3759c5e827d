//! Sources: batches of records in, [`Chunk`]s out.
//!
//! ```text
//!  librdkafka ──► ffi (batch queue) ──► fetch (chunks, gaps, ends) ──► kafka (thread, queue) ──► pipeline
//!                                            └──► log (reads its topic without a thread)
//! ```
//!
//! Nothing above this module knows rdkafka's message type.

mod client;
mod fetch;
mod ffi;
#[cfg(test)]
pub(crate) mod testing;

pub mod chunk;
pub mod config;
pub mod kafka;
pub mod metadata;
mod partition;

pub use chunk::{Chunk, Record};
pub use config::KafkaConfig;
pub use kafka::{Event, Isolation, Reader};
pub use metadata::{Cluster, NewTopic};
pub use partition::TopicPartition;

pub(crate) use client::{Context, kafka_error};
pub(crate) use fetch::Fetcher;
