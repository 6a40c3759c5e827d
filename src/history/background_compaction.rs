//! Compaction of tables that a running pipeline writes.

use std::thread::JoinHandle;

use crate::history::writer::Writer;
use crate::time::Micros;
use crate::{Error, Kind};

/// Compacts the tables of running writers, one table at a time. Compaction is computation, so it
/// runs on its own thread and does not block the runtime of the pipeline.
#[derive(Debug, Default)]
pub struct BackgroundCompaction {
    thread: Option<JoinHandle<()>>,
}

impl BackgroundCompaction {
    /// Starts a compaction of the table of `writer` if the table needs one and no compaction
    /// runs. Call it after a commit, when the writer has the newest snapshot.
    pub fn start_if_needed(&mut self, writer: &Writer, now: Micros) {
        let running = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        if running || !writer.needs_compaction(now) {
            return;
        }
        let (compactor, table) = (writer.compactor(), writer.spec().name.clone());
        let thread = std::thread::Builder::new().name("compaction".to_owned());
        let started = thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(Error::from);
            match runtime.and_then(|runtime| runtime.block_on(compactor.run(now))) {
                Ok(stats) => tracing::debug!(table, ?stats, "compaction finished"),
                // Another process compacts the table.
                Err(error) if error.kind == Kind::Config => {}
                Err(error) => tracing::warn!(table, %error, "compaction failed"),
            }
        });
        match started {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "compaction not started: cannot create a thread"),
        }
    }
}
