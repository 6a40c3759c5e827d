//! Tracks the deliveries and the connection errors of one transactional producer.
//!
//! **Invariants**
//! - `outstanding` counts the records that librdkafka has accepted and not yet reported;
//! - a lost connection is counted before a later request on a new connection can be answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::{ClientContext, Message};

use crate::source::KafkaClientContext;

/// How long to wait for deliveries after a transport error. librdkafka itself takes up to a
/// minute after a broker is back; a new producer and a read of the log take milliseconds.
const ERROR_WAIT: Duration = Duration::from_secs(3);
/// How long to wait for space in librdkafka's queue before another attempt.
const QUEUE_SPACE_WAIT: Duration = Duration::from_millis(50);

/// The producer's callbacks: counts the deliveries of the current transaction.
pub(super) struct DeliveryTracker {
    client: KafkaClientContext,
    /// Established connections that were lost.
    lost_connections: AtomicU64,
    deliveries: Mutex<Deliveries>,
    changed: Condvar,
}

#[derive(Default)]
struct Deliveries {
    outstanding: usize,
    /// Index and error code of records that failed, in the order of the reports.
    failed: Vec<(usize, RDKafkaErrorCode)>,
    /// The index of the record whose offset is wanted: the progress record.
    progress_index: usize,
    /// That record's offset, once it is delivered.
    progress_offset: i64,
}

impl DeliveryTracker {
    /// `role` names the client in log lines.
    pub(super) fn new(role: String) -> Self {
        Self {
            client: KafkaClientContext::new(role),
            lost_connections: AtomicU64::new(0),
            deliveries: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The number of transport errors and lost connections so far.
    pub(super) fn transport_errors(&self) -> u64 {
        self.client.transport_errors() + self.lost_connections()
    }

    /// The number of established connections that were lost so far.
    pub(super) fn lost_connections(&self) -> u64 {
        self.lost_connections.load(Ordering::Acquire)
    }

    /// Reports that the brokers answered.
    pub(super) fn answered(&self) {
        self.client.record_response();
    }

    /// Begins a transaction whose progress record has the index `progress_index`.
    pub(super) fn begin_transaction(&self, progress_index: usize) {
        let mut deliveries = self.lock();
        deliveries.failed.clear();
        (deliveries.progress_index, deliveries.progress_offset) = (progress_index, 0);
    }

    /// Counts a record that is about to be handed to librdkafka.
    pub(super) fn begin_send(&self) {
        self.lock().outstanding += 1;
    }

    /// Undoes [`DeliveryTracker::begin_send`] for a record that librdkafka did not accept.
    pub(super) fn cancel_send(&self) {
        self.lock().outstanding -= 1;
    }

    /// The records of the transaction that failed, as index and error code, in the order of the
    /// reports.
    pub(super) fn failed(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        self.lock().failed.clone()
    }

    /// The offset of the progress record; 0 before it is delivered.
    pub(super) fn progress_offset(&self) -> i64 {
        self.lock().progress_offset
    }

    /// Waits until every record is reported, which happens at the latest after its timeout. Returns
    /// false if there are more transport errors than `errors_before` and deliveries have stopped.
    pub(super) fn wait_for_deliveries(&self, errors_before: u64) -> bool {
        let mut deliveries = self.lock();
        let (mut outstanding, mut last_report) = (deliveries.outstanding, Instant::now());
        while deliveries.outstanding > 0 {
            if deliveries.outstanding != outstanding {
                (outstanding, last_report) = (deliveries.outstanding, Instant::now());
            }
            if self.transport_errors() != errors_before && last_report.elapsed() > ERROR_WAIT {
                return false;
            }
            let waited = self.changed.wait_timeout(deliveries, ERROR_WAIT / 4);
            deliveries = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until a delivery report may have made space in librdkafka's queue.
    pub(super) fn wait_for_queue_space(&self) {
        let waited = self.changed.wait_timeout(self.lock(), QUEUE_SPACE_WAIT);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn lock(&self) -> MutexGuard<'_, Deliveries> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for DeliveryTracker {
    /// Counts lost connections. librdkafka sends a request again when its connection is lost, and
    /// reports that only in this log, on the thread that noticed it, before the second request can
    /// be answered. The first request may still arrive and end a later transaction of the same
    /// producer.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let never_established =
            ["Connect to ", "Failed to resolve"].iter().any(|text| message.contains(text));
        if facility == "FAIL" && !never_established {
            self.lost_connections.fetch_add(1, Ordering::AcqRel);
        }
        self.client.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.client.stats_raw(statistics);
    }
}

impl ProducerContext for DeliveryTracker {
    /// The index of the record in its transaction.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let mut deliveries = self.lock();
        deliveries.outstanding -= 1;
        if let Ok(message) = result
            && index == deliveries.progress_index
        {
            deliveries.progress_offset = message.offset().max(0);
        } else if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
            // Records that an abort discards do not carry the cause of the failure.
            if !matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) {
                deliveries.failed.push((index, code));
            }
        }
        drop(deliveries);
        self.changed.notify_one();
    }
}
