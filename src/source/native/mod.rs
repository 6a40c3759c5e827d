//! The native reader: a Kafka client with its own Fetch loop that reads record batches in place.
//!
//! ```text
//!               ┌─ leaders: Metadata ── leader of each partition ─┐
//!  callers ──► partition_table ◄──────────────────────────────────┘
//!               │  plan_fetch                             claim, advance_emitted, release_claim
//!               └───► broker (a thread each): Fetch ──► scan ──► next Fetch ──► chunks ──► queue
//! ```
//!
//! The promises are those of [`Reader`](crate::source::Reader). The thread of a broker sends the
//! next Fetch as soon as it has scanned the headers of the batches that arrived, and reads the
//! records while the broker works on it. If this reader cannot read something, it returns the
//! reason, and librdkafka continues.
//!
//! The client depends on `types` and `error`, and on the interface of a reader: it takes its
//! configuration from `source::config`, fills the chunks of `source::chunk` (with the integers of
//! `source::varint`) and sends the events of `source::event` to `source::queue`. It uses nothing
//! else of the crate.

mod aborted_transactions;
mod broker;
mod buffer_pool;
mod chunks;
mod codec;
mod connect;
mod connection_settings;
mod diagnostics;
mod fetch_context;
mod leaders;
mod partition_table;
mod record_batch;
mod sasl;
#[cfg(test)]
mod tests;
mod tls;
mod transaction_admin;
mod wire;

use std::sync::Arc;

use crate::source::config::{Isolation, KafkaConfig};
use crate::source::native::buffer_pool::BufferPool;
use crate::source::native::connection_settings::ConnectionSettings;
use crate::source::native::diagnostics::OutageLog;
use crate::source::native::fetch_context::FetchContext;
use crate::source::native::wire::ConnectionContext;
use crate::source::queue::ChunkSender;
use crate::{Error, Result};

pub(super) use partition_table::PartitionTable;
pub(crate) use transaction_admin::{
    LastTransaction, TransactionAdmin, TransactionAdminError, TransactionState,
};

/// A native reader whose threads have not started.
pub(super) struct NativeReader {
    settings: ConnectionSettings,
    tls: Option<Arc<rustls::ClientConfig>>,
    table: Arc<PartitionTable>,
    isolation: Isolation,
    outages: OutageLog,
}

impl NativeReader {
    /// Returns why this reader does not support a configuration; `None`: it does.
    pub(super) fn unsupported_setting(kafka: &KafkaConfig) -> Option<String> {
        ConnectionSettings::from_properties(&kafka.brokers, &kafka.settings, "").err()
    }

    /// Creates a reader without partitions.
    ///
    /// # Errors
    /// A setting that this reader does not support, or a TLS file that cannot be read.
    pub(super) fn new(kafka: &KafkaConfig, group: &str, isolation: Isolation) -> Result<Self> {
        let client_id = format!("{group}-read");
        let settings =
            ConnectionSettings::from_properties(&kafka.brokers, &kafka.settings, &client_id)
                .map_err(|reason| {
                    Error::config(format!("the native reader cannot be used: {reason}"))
                })?;
        let tls = settings.tls.as_ref().map(tls::client_config).transpose()?;
        let table = Arc::new(PartitionTable::new(settings.partition_bytes));
        let outages = OutageLog::new(format!("{group} reader"));
        Ok(Self { settings, tls, table, isolation, outages })
    }

    /// The partition table, through which callers assign, pause and resume.
    pub(super) fn table(&self) -> Arc<PartitionTable> {
        Arc::clone(&self.table)
    }

    /// Reads until the receiver is dropped or a fatal error occurs. Returns the reason if
    /// librdkafka must continue; all threads of this reader have ended by then.
    pub(super) fn run(&self, sender: &ChunkSender) -> Option<String> {
        let is_stopped = || sender.is_stopped() || self.table.is_fallback_requested();
        let pool = Arc::new(BufferPool::default());
        let context = FetchContext {
            settings: &self.settings,
            table: &self.table,
            sender,
            isolation: self.isolation,
            outages: &self.outages,
            connections: ConnectionContext {
                settings: &self.settings,
                tls: self.tls.as_ref(),
                pool: &pool,
                is_stopped: &is_stopped,
            },
        };
        std::thread::scope(|scope| leaders::run(scope, &context));
        self.table.fallback_reason()
    }
}
