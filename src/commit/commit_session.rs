//! The state machine of the commit thread: commits each epoch exactly once.
//!
//! ```text
//!             ┌───────────────── committed ◄───────────────────┐
//!             ▼                                                │ the log has the epoch
//!   open ─► ready ─► transaction ─► unknown ─► new producer, read the log ─► has another
//!             ▲          │ abortable                           │             process's ─► Fenced
//!             │          ▼                                     │ the log lacks the epoch
//!             └── new producer                                 └─► same output, new transaction
//! ```
//!
//! **Promises**
//! - `commit` returns when the epoch is committed, exactly once, or with an error that is final;
//! - an unknown outcome is resolved by reading the log, never by guessing;
//! - after a transport error, a lost connection or a slow commit the producer is replaced before
//!   the next epoch: librdkafka does not implement the second part of KIP-890, so a delayed request
//!   could end a later transaction;
//! - one process per customer: `open` fences every other process;
//! - a transaction begins only after every earlier one has ended in every partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::commit::epoch_output::{CommittedEpoch, EpochOutput};
use crate::commit::hanging_transactions::HangingTransactions;
use crate::commit::log_reader::{self, LogSegment, ReadUntil, epoch_of, log_topic};
use crate::commit::process::Process;
use crate::commit::producer::TransactionalProducer;
use crate::commit::transaction_failure::{OversizedRecord, TransactionFailure};
use crate::failpoint::reach;
use crate::sink::SizeLimits;
use crate::source::KafkaConfig;
use crate::{Error, Kind, Result};

/// How long `open` tries to reach the brokers. `commit` has no such limit.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// A commit slower than this may have left a request behind in the network.
const SLOW_COMMIT: Duration = Duration::from_secs(10);
/// The broker may have ended a transaction older than this, which looks like fencing.
const OLD_TRANSACTION: Duration = Duration::from_secs(30);
/// How many transactions are tried for one epoch while the brokers are reachable.
const MAX_ATTEMPTS: u32 = 10;
/// The pause before another attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Where the result of a request to the thread goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;
/// An epoch to commit.
pub(super) type Job = (EpochOutput, Reply<CommittedEpoch>);

/// How the transactions of one output ended.
///
/// ```text
///  transaction ─► done ─────────────────────────────────────────► Committed
///       ▲       ─► unknown ─► resolve_commit ─► log has the epoch ─► Committed
///       └──────────────────────────┴─► log lacks the epoch
///               ─► failed ─► a record is too large ───────────────► TooLarge
///                         └► any other final failure ─────────────► an error
/// ```
enum CommitOutcome {
    /// Done: the offset of the progress record in the log.
    Committed(i64),
    /// Failed: the output must change before it can be committed.
    TooLarge(Box<OversizedRecord>),
}

/// What the log has at the place of an epoch.
enum EpochInLog {
    /// The epoch's own progress record.
    Committed,
    /// No record of this epoch or a later one.
    Absent,
    /// A record of another process; the error names it.
    Superseded(Error),
}

/// The state of the commit thread.
pub(super) struct CommitSession {
    kafka: KafkaConfig,
    customer: String,
    limits: SizeLimits,
    hanging: HangingTransactions,
    /// `None`: one must be opened before the next transaction.
    producer: Option<TransactionalProducer>,
    /// The log has been read up to this offset.
    log_position: i64,
    /// The newest epoch that is known to be committed.
    last_epoch: Option<u64>,
    /// Another process took over; this process must not fence it in return.
    fenced: bool,
    stop: Arc<AtomicBool>,
}

impl CommitSession {
    pub(super) fn new(
        kafka: &KafkaConfig,
        customer: &str,
        limits: SizeLimits,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self {
            kafka: kafka.clone(),
            customer: customer.to_owned(),
            limits,
            hanging: HangingTransactions::new(kafka, customer),
            producer: None,
            log_position: 0,
            last_epoch: None,
            fenced: false,
            stop,
        }
    }

    /// Opens the session, then commits epochs until the channel closes or `stop` is set.
    pub(super) fn run(&mut self, opened: Reply<Vec<Bytes>>, inbox: &mpsc::Receiver<Job>) {
        let records = self.open();
        let failed = records.is_err();
        if opened.send(records).is_err() || failed {
            return;
        }
        while let Ok((mut output, reply)) = inbox.recv() {
            let begun = Instant::now();
            let outcome = match self.fenced {
                true => Err(self.fenced_error("the process was fenced before", &output)),
                false => self.commit_within_limits(&mut output),
            };
            self.fenced = matches!(&outcome, Err(error) if error.kind == Kind::Fenced);
            let committed = |(log_offset, diverted)| {
                let took = begun.elapsed();
                CommittedEpoch { took, log_offset, diverted }
            };
            // The receiver may be gone; the epoch is committed all the same.
            let _ = reply.send(outcome.map(committed));
            if self.stop.load(Ordering::Acquire) {
                return;
            }
        }
    }

    /// Fences other processes and returns all progress records of the log.
    fn open(&mut self) -> Result<Vec<Bytes>> {
        let begun = Instant::now();
        loop {
            match self.open_producer() {
                Ok(producer) => self.producer = Some(producer),
                Err(failure) if begun.elapsed() > OPEN_TIMEOUT || self.is_stopping() => {
                    return Err(self.attempts_failed(failure));
                }
                Err(TransactionFailure::Final(error)) => return Err(error),
                Err(failure) => {
                    tracing::debug!(?failure, "cannot open a transactional producer yet, retrying");
                    std::thread::sleep(RETRY_PAUSE);
                    continue;
                }
            }
            reach("recovery.fenced");
            let log = self.read_log_from(0, ReadUntil::HighWatermark)?;
            reach("recovery.log.read");
            self.last_epoch = log.records.last().map(|record| epoch_of(record)).transpose()?;
            self.log_position = log.position;
            return Ok(log.records);
        }
    }

    /// Commits an output after replacing its oversized records. Lowers a topic's limit and tries
    /// again if the broker refuses a record for its size. Returns
    /// [`CommittedEpoch::log_offset`] and [`CommittedEpoch::diverted`].
    fn commit_within_limits(&mut self, output: &mut EpochOutput) -> Result<(i64, u64)> {
        let mut diverted = self.limits.apply(&mut output.records).diverted;
        loop {
            match self.commit(output)? {
                CommitOutcome::Committed(log_offset) => return Ok((log_offset, diverted)),
                CommitOutcome::TooLarge(refused) => {
                    // The topic's limit was lowered since it was read, or was reported too high.
                    self.limits.lower(&refused.topic, refused.size);
                    self.producer = None;
                    let more = self.limits.apply(&mut output.records);
                    if more.replaced == 0 {
                        return Err(refused.error);
                    }
                    diverted += more.diverted;
                }
            }
        }
    }

    /// Runs transactions with the same output until one is known to be committed, or until a
    /// failure is final.
    fn commit(&mut self, output: &EpochOutput) -> Result<CommitOutcome> {
        if epoch_of(&output.progress)? != output.epoch || self.last_epoch >= Some(output.epoch) {
            return Err(Error::internal(format!(
                "epoch {} cannot be committed after epoch {:?}",
                output.epoch, self.last_epoch
            )));
        }
        let mut attempts = 0;
        loop {
            let producer = match self.producer.take().filter(|p| !p.is_doubtful()) {
                Some(producer) => producer,
                None => match self.resolve_commit(output)? {
                    Some(producer) => producer,
                    None => break, // an earlier attempt has committed the epoch
                },
            };
            let Err((failure, took)) = self.run_transaction(producer, output) else { break };
            attempts += 1;
            match failure {
                TransactionFailure::Final(error) => return Err(error),
                TransactionFailure::TooLarge(refused) => {
                    return Ok(CommitOutcome::TooLarge(refused));
                }
                TransactionFailure::Fenced(reason) if took < OLD_TRANSACTION => {
                    return Err(self.fenced_error(&reason, output));
                }
                failure if attempts >= MAX_ATTEMPTS || self.is_stopping() => {
                    return Err(self.attempts_failed(failure));
                }
                failure => {
                    tracing::warn!(epoch = output.epoch, ?failure, "retrying the epoch's commit")
                }
            }
            std::thread::sleep(RETRY_PAUSE);
        }
        self.last_epoch = Some(output.epoch);
        Ok(CommitOutcome::Committed(self.log_position))
    }

    /// Runs one transaction. Retains the producer for the next epoch if the transaction committed
    /// quickly and without a transport error. A failure comes with the transaction's duration.
    fn run_transaction(
        &mut self,
        mut producer: TransactionalProducer,
        output: &EpochOutput,
    ) -> Result<(), (TransactionFailure, Duration)> {
        let (begun, errors_before) = (Instant::now(), producer.transport_errors());
        let outcome = producer.run_transaction(output);
        let took = begun.elapsed();
        match outcome {
            Ok(offset) => {
                let is_reusable = producer.transport_errors() == errors_before
                    && !producer.is_doubtful()
                    && took < SLOW_COMMIT;
                producer.mark_used();
                self.producer = is_reusable.then_some(producer);
                self.log_position = self.log_position.max(offset);
                Ok(())
            }
            Err(failure) => {
                // After any other failure the next producer ends the open transaction.
                if matches!(failure, TransactionFailure::Final(_)) {
                    producer.abort();
                }
                Err((failure, took))
            }
        }
    }

    /// Resolves an unknown commit: opens a new producer, which ends the open transaction, and reads
    /// the log. Returns the producer if the log lacks the epoch, `None` if the log has it. Retries
    /// until the brokers are reachable.
    fn resolve_commit(&mut self, output: &EpochOutput) -> Result<Option<TransactionalProducer>> {
        loop {
            if self.is_stopping() {
                return Err(self.attempts_failed(TransactionFailure::Unknown(
                    "stopped while the brokers were unreachable".into(),
                )));
            }
            // Read before fencing: if another process has taken over, it must not be fenced.
            match self.find_in_log(ReadUntil::LastStableOffset, output) {
                Ok(EpochInLog::Superseded(error)) => return Err(error),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot read the log yet, retrying");
                    std::thread::sleep(RETRY_PAUSE);
                    continue;
                }
            }
            let producer = match self.open_producer() {
                Ok(producer) => producer,
                Err(TransactionFailure::Final(error)) => return Err(error),
                Err(failure) => {
                    tracing::debug!(?failure, "cannot open a transactional producer yet, retrying");
                    std::thread::sleep(RETRY_PAUSE);
                    continue;
                }
            };
            match self.find_in_log(ReadUntil::HighWatermark, output) {
                Ok(EpochInLog::Absent) => return Ok(Some(producer)),
                Ok(EpochInLog::Committed) => {
                    let epoch = output.epoch;
                    tracing::info!("the log has epoch {epoch}: an earlier attempt committed it");
                    self.producer = Some(producer);
                    return Ok(None);
                }
                Ok(EpochInLog::Superseded(error)) => return Err(error),
                Err(error) => tracing::debug!(%error, "cannot read the log yet, retrying"),
            }
        }
    }

    /// Searches the unread part of the log for the epoch's progress record.
    fn find_in_log(&self, until: ReadUntil, output: &EpochOutput) -> Result<EpochInLog> {
        let log = self.read_log_from(self.log_position, until)?;
        for (index, record) in log.records.iter().enumerate() {
            let epoch = epoch_of(record)?;
            if epoch == output.epoch && *record == output.progress {
                return Ok(EpochInLog::Committed);
            }
            if epoch >= output.epoch {
                return Ok(EpochInLog::Superseded(self.superseded_error(&log.records[index..])?));
            }
        }
        Ok(EpochInLog::Absent)
    }

    /// Opens a producer. When this returns, every earlier transaction has ended in every partition.
    fn open_producer(&mut self) -> Result<TransactionalProducer, TransactionFailure> {
        self.hanging.record_last_transaction(&self.stop)?;
        let log = Arc::from(log_topic(&self.customer));
        let topics: Vec<Arc<str>> = self.limits.topics().cloned().chain([log]).collect();
        loop {
            let limit = self.limits.smallest();
            let producer = TransactionalProducer::open(&self.kafka, &self.customer, limit)?;
            if !self.hanging.end_open_transactions(&topics, &self.stop)? {
                return Ok(producer);
            }
        }
    }

    fn read_log_from(&self, offset: i64, until: ReadUntil) -> Result<LogSegment> {
        log_reader::read_segment(&self.kafka, &self.customer, offset, until, &self.stop)
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The error after the broker reported fencing. Names the other process if the log does.
    fn fenced_error(&self, reason: &str, output: &EpochOutput) -> Error {
        match self.find_in_log(ReadUntil::LastStableOffset, output) {
            Ok(EpochInLog::Superseded(error)) => error.detail(reason.to_owned()),
            _ => Error::new(
                Kind::Fenced,
                format!("another process took over customer {}", self.customer),
            )
            .detail(reason.to_owned())
            .hint("only one process may run a customer at a time; this process stops"),
        }
    }

    /// The error for records that another process committed in place of this process's.
    fn superseded_error(&self, theirs: &[Bytes]) -> Result<Error> {
        let newest = theirs.last().map(|record| epoch_of(record)).transpose()?.unwrap_or_default();
        let process = theirs.iter().rev().find_map(|record| {
            let parsed: serde_json::Value = serde_json::from_slice(record).ok()?;
            serde_json::from_value::<Process>(parsed.get("process")?.clone()).ok()
        });
        let process =
            process.map_or_else(|| "another process".to_owned(), |process| process.to_string());
        let message = format!(
            "another process took over customer {}: {process} committed epoch {newest}",
            self.customer
        );
        Ok(Error::new(Kind::Fenced, message)
            .hint("only one process may run a customer at a time; this process stops"))
    }

    /// The error after the last attempt.
    fn attempts_failed(&self, failure: TransactionFailure) -> Error {
        let reason = match failure {
            TransactionFailure::Final(error) => return error,
            TransactionFailure::TooLarge(refused) => return refused.error,
            TransactionFailure::Fenced(reason)
            | TransactionFailure::Abortable(reason)
            | TransactionFailure::Unknown(reason) => reason,
        };
        Error::new(Kind::Kafka, format!("cannot commit transactions of customer {}", self.customer))
            .detail(reason)
            .hint(format!(
                "check that the brokers at {} are running and have a transaction coordinator",
                self.kafka.brokers
            ))
    }
}
