//! Kafka sources: record batches in, [`Chunk`]s out.
//!
//! ```text
//!  sockets ──► native (own Fetch loop: chunks, gaps, ends) ───────────┐
//!                                                                     ├──► queue ──► reader ──► pipeline
//!  librdkafka ──► ffi (batch queue) ──► fetch (chunks, gaps, ends) ───┘
//!                                            └──► commit (reads the log topic without a thread)
//! ```
//!
//! Two implementations fill the same chunks, and one conformance suite tests both. The modules
//! that use a [`Reader`] depend neither on the implementation nor on the message type of rdkafka.

mod client;
mod event;
mod fetch;
mod ffi;
mod native;
mod queue;
#[cfg(test)]
pub(crate) mod tests;

pub mod chunk;
pub mod config;
pub mod metadata;
pub mod reader;
mod varint;

pub use chunk::{Chunk, Record};
pub use config::{Isolation, KafkaConfig};
pub use event::Event;
pub use metadata::{Cluster, NewTopic};
pub use reader::Reader;

pub use client::blocking;
pub(crate) use client::{KafkaClientContext, kafka_error};
pub(crate) use fetch::Fetcher;
pub(crate) use native::{
    LastTransaction, TransactionAdmin, TransactionAdminError, TransactionState,
};
