//! The native reader: an own Fetch loop that reads record batches where they arrive.
//!
//! ```text
//!               ┌─ leaders: Metadata ── who leads what ─┐
//!  callers ──► table ◄──────────────────────────────────┘
//!               │  plan                                   claim, advance, settle
//!               └───► broker (a thread each): Fetch ──► scan ──► next Fetch ──► chunks ──► queue
//! ```
//!
//! Promises are those of [`Reader`](crate::source::Reader). A broker's thread sends the next Fetch as
//! soon as it has looked at the headers of the batches that came, and reads the records while the
//! broker works on it. What this reader cannot do it says, and librdkafka's goes on from there.

mod aborted_transactions;
mod broker;
mod buffer_pool;
mod chunks;
mod codec;
mod connection_settings;
mod diagnostics;
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

use crate::Result;
use crate::source::config::KafkaConfig;
use crate::source::queue::Sink;
use crate::source::reader::Isolation;
use buffer_pool::Pool;
use connection_settings::Settings;
use diagnostics::Outage;
use wire::Dial;

pub(super) use partition_table::Table;
pub(crate) use transaction_admin::{LastTransaction, Outcome, Transactions, Unanswered};

/// A reader that has not begun.
pub(super) struct Native {
    settings: Settings,
    tls: Option<Arc<rustls::ClientConfig>>,
    table: Arc<Table>,
    isolation: Isolation,
    outage: Outage,
}

/// What the threads of a reader share.
struct Shared<'a> {
    settings: &'a Settings,
    table: &'a Table,
    sink: &'a Sink,
    isolation: Isolation,
    outage: &'a Outage,
    dial: Dial<'a>,
}

impl Shared<'_> {
    fn stopped(&self) -> bool {
        (self.dial.stopped)()
    }
}

impl Native {
    /// Whether a configuration asks for nothing that this reader cannot do; if it does: what.
    pub(super) fn refuses(kafka: &KafkaConfig) -> Option<String> {
        Settings::from_kafka(kafka, "").err()
    }

    /// A reader without partitions.
    ///
    /// # Errors
    /// A setting that this reader does not know, or a file of the TLS settings that cannot be
    /// read.
    pub(super) fn new(kafka: &KafkaConfig, group: &str, isolation: Isolation) -> Result<Self> {
        let settings = Settings::from_kafka(kafka, &format!("{group}-read")).map_err(|why| {
            crate::Error::config(format!("the native reader cannot be used: {why}"))
        })?;
        let tls = settings.tls.as_ref().map(tls::config).transpose()?;
        let table = Arc::new(Table::new(settings.partition_bytes));
        let outage = Outage::new(format!("{group} reader"));
        Ok(Self { settings, tls, table, isolation, outage })
    }

    /// The half for callers.
    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// Reads until nobody wants it any more or something final happens. Returns why another
    /// reader has to go on, if so; no thread of this one is left then.
    pub(super) fn run(&self, sink: &Sink) -> Option<String> {
        let stopped = || sink.stopped() || self.table.is_beyond();
        let pool = Arc::new(Pool::default());
        let shared = Shared {
            settings: &self.settings,
            table: &self.table,
            sink,
            isolation: self.isolation,
            outage: &self.outage,
            dial: Dial {
                settings: &self.settings,
                tls: self.tls.as_ref(),
                pool: &pool,
                stopped: &stopped,
            },
        };
        std::thread::scope(|scope| leaders::run(scope, &shared));
        self.table.beyond()
    }
}
