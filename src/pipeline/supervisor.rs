//! The supervisor of a pipeline: starts it, restarts it after failures, and stops it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::catalog::{Catalog, Customer};
use crate::commit::{Process, Progress, read_stable_log};
use crate::pipeline::config::{Mode, OnMissingOffsets, PipelineConfig, Reset};
use crate::pipeline::driver::{EpochSink, PipelineDriver};
use crate::pipeline::history::output_archiver;
use crate::pipeline::recovery;
use crate::pipeline::stop::stop_deadline;
use crate::telemetry::status::Status;
use crate::{Error, Kind, Result};

/// The pause before a failed pipeline is restarted. It doubles after each failure.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(60);

/// Runs one customer's pipeline until its mode's end or `stop`. A pipeline that follows its topics
/// and has started once is restarted after errors of Kafka or of the disk.
///
/// # Errors
/// An error that needs an operator, or Kafka did not respond while the pipeline stopped.
pub async fn run(
    catalog: Arc<Catalog>,
    customer: Arc<Customer>,
    config: PipelineConfig,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let process = Process::this(config.clock.now());
    let supervisor =
        Supervisor { catalog, customer, config, stop, process, last_start_epoch: None };
    supervisor.run().await
}

/// Supervises the pipeline of one customer.
struct Supervisor {
    catalog: Arc<Catalog>,
    customer: Arc<Customer>,
    config: PipelineConfig,
    stop: watch::Receiver<bool>,
    /// The identity of this process in progress records.
    process: Process,
    /// The newest committed epoch at the last start; `None`: the pipeline has never started.
    last_start_epoch: Option<u64>,
}

impl Supervisor {
    async fn run(mut self) -> Result<()> {
        let mut pause = RESTART_PAUSE;
        loop {
            let started = Instant::now();
            let Err(mut error) = self.run_once().await else { return Ok(()) };
            let mut is_overtaken = error.kind == Kind::WriteConflict;
            if is_overtaken {
                error = self.explain_overtaken(error).await;
                is_overtaken = error.kind == Kind::Storage;
            }
            self.config.board.publish(Status {
                customer: self.customer.name.clone(),
                failed: Some(error.to_string()),
                ..Status::default()
            });
            let is_stopping = *self.stop.borrow();
            if is_overtaken && is_stopping {
                tracing::warn!(customer = self.customer.name, %error, "stopped without a snapshot");
                return Ok(());
            }
            if is_stopping || !self.can_restart_after(&error) {
                return Err(error);
            }
            if started.elapsed() > MAX_RESTART_PAUSE {
                pause = RESTART_PAUSE;
            }
            tracing::error!(customer = self.customer.name, %error, "the pipeline failed and restarts in {} s", pause.as_secs());
            let stopped = self.stop.wait_for(|stop| *stop);
            if tokio::time::timeout(pause, stopped).await.is_ok() {
                return Err(error);
            }
            pause = (pause * 2).min(MAX_RESTART_PAUSE);
        }
    }

    /// Starts the pipeline and runs it until it ends, fails or is stopped.
    async fn run_once(&mut self) -> Result<()> {
        let mut stop = self.stop.clone();
        let mut running = tokio::select! {
            running = recovery::recover(&self.catalog, &self.customer, &self.config) => running?,
            // Recovery leaves nothing behind that would have to be committed.
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        let mut archiver = running.archiver.take();
        let pending_since = archiver.as_ref().map(|archiver| archiver.pending_since.clone());
        self.last_start_epoch = Some(running.log.epoch);
        let process = self.process.clone();
        let mut driver = PipelineDriver::new(
            running,
            process,
            self.config.clone(),
            stop.clone(),
            EpochSink::Transaction,
            pending_since,
        );
        let outcome = tokio::select! {
            outcome = drive(&mut driver) => outcome,
            error = output_archiver::wait_for_failure(&mut archiver) => Err(error),
        };
        if driver.running.required_snapshot.is_none() {
            // A restart must not drop the state again.
            self.config.reset = Reset::default();
        }
        if let Err(error) = outcome {
            if self.skips_missing_offsets(&error) {
                // A clean end, so that the next start skips the missing offsets and no others.
                driver.finish().await?;
            }
            return Err(error);
        }
        driver.finish().await?;
        drop(driver);
        let Some(archiver) = archiver else { return Ok(()) };
        tokio::select! {
            done = archiver.finish() => done,
            () = stop_deadline(stop) => {
                tracing::warn!(
                    customer = self.customer.name,
                    "stopped before all results reached history; the next start adds them"
                );
                Ok(())
            }
        }
    }

    /// Whether the error is one of missing offsets that the next start may skip. The start itself
    /// distinguishes them from other recovery errors.
    fn skips_missing_offsets(&self, error: &Error) -> bool {
        error.kind == Kind::Recovery && self.config.on_missing_offsets == OnMissingOffsets::Skip
    }

    fn can_restart_after(&self, error: &Error) -> bool {
        let is_transient = matches!(error.kind, Kind::Kafka | Kind::Storage);
        self.last_start_epoch.is_some()
            && self.config.mode == Mode::Follow
            && (is_transient || self.skips_missing_offsets(error))
    }

    /// Explains why another process has written to this customer's history. Either it took over, or
    /// this process fenced it while it still copied epochs that it had committed. In the second
    /// case the copies are correct, and this process restarts after them.
    async fn explain_overtaken(&self, error: Error) -> Error {
        let customer = &self.customer.name;
        let newest = async {
            let log = read_stable_log(&self.config.kafka, customer).await?;
            log.last().map(|record| Progress::decode(record)).transpose()
        };
        let newest = match newest.await {
            Ok(newest) => newest.unwrap_or_default(),
            Err(read_error) => return read_error,
        };
        let is_ours = newest.process.as_ref() == Some(&self.process);
        if is_ours || Some(newest.epoch) <= self.last_start_epoch {
            let message = "a process that this one has fenced wrote to history in the meantime";
            return Error::new(Kind::Storage, message)
                .hint("nothing is lost or duplicated: run again")
                .because(error);
        }
        let other = newest.process.map_or_else(|| "it".to_owned(), |process| process.to_string());
        let message = format!(
            "another process took over customer {customer}: {other}; it has committed epoch {}",
            newest.epoch
        );
        Error::new(Kind::Fenced, message)
            .hint("only one process may run a customer at a time; this one stops")
            .because(error)
    }
}

/// Records the snapshot that recovery requires, and drives the pipeline to its end.
async fn drive(driver: &mut PipelineDriver) -> Result<()> {
    driver.record_required_snapshot().await?;
    driver.run().await
}
