//! What the threads of one native reader share.

use crate::source::config::Isolation;
use crate::source::native::connection_settings::ConnectionSettings;
use crate::source::native::diagnostics::{ClientError, OutageLog};
use crate::source::native::partition_table::PartitionTable;
use crate::source::native::wire::ConnectionContext;
use crate::source::queue::ChunkSender;

/// References that every thread of a reader uses.
pub(super) struct FetchContext<'a> {
    pub(super) settings: &'a ConnectionSettings,
    pub(super) table: &'a PartitionTable,
    pub(super) sender: &'a ChunkSender,
    pub(super) isolation: Isolation,
    pub(super) outages: &'a OutageLog,
    pub(super) connections: ConnectionContext<'a>,
}

impl FetchContext<'_> {
    /// Whether the threads must stop.
    pub(super) fn is_stopped(&self) -> bool {
        (self.connections.is_stopped)()
    }

    /// Stops the reader if the error is fatal or needs the other client.
    pub(super) fn stop_on(&self, error: ClientError) {
        match error {
            ClientError::Fatal(error) => {
                self.sender.fail(error);
                self.table.wake();
            }
            ClientError::Unsupported(reason) => self.table.request_fallback(reason),
            ClientError::Retriable(_) | ClientError::Stopped => {}
        }
    }
}
