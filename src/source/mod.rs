//! Sources: batches of records in, [`Chunk`]s out.
//!
//! ```text
//!  sockets ──► native (own Fetch loop: chunks, gaps, ends) ───────────┐
//!                                                                     ├──► queue ──► reader ──► pipeline
//!  librdkafka ──► ffi (batch queue) ──► fetch (chunks, gaps, ends) ───┘
//!                                            └──► log (reads its topic without a thread)
//! ```
//!
//! Two engines fill the same chunks, and one test suite runs both. Nothing above this module
//! knows which one reads, nor rdkafka's message type.

mod client;
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
pub use config::KafkaConfig;
pub use metadata::{Cluster, NewTopic};
pub use reader::{Event, Isolation, Reader};

pub use client::blocking;
pub(crate) use client::{Context, kafka_error};
pub(crate) use fetch::Fetcher;
pub(crate) use native::{LastTransaction, Outcome, Transactions, Unanswered};
