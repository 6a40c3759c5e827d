//! What every Kafka client of ours shares: how it logs and how its errors read.
//!
//! librdkafka repeats itself while a broker is away. Its lines go to the debug level; of an
//! outage we say one warning when it begins and one line when it is over.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::source::config::config_error;
use crate::{Error, Kind};

/// The callbacks of one client.
#[derive(Debug)]
pub(crate) struct Context {
    /// What this client does, for the log.
    role: String,
    away: AtomicBool,
    disturbances: AtomicU64,
    /// What librdkafka said last of a connection that failed.
    failure: Mutex<Option<String>>,
}

impl Context {
    pub(crate) fn new(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            away: AtomicBool::new(false),
            disturbances: AtomicU64::new(0),
            failure: Mutex::default(),
        }
    }

    /// What librdkafka said last of a connection that failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many transport errors there have been.
    pub(crate) fn disturbances(&self) -> u64 {
        self.disturbances.load(Ordering::Acquire)
    }

    /// The brokers answer (again).
    pub(crate) fn answered(&self) {
        if self.away.load(Ordering::Relaxed) && self.away.swap(false, Ordering::AcqRel) {
            tracing::info!(client = %self.role, "Kafka answers again");
        }
    }

    /// A transport error: the first of an outage is a warning.
    pub(crate) fn disturbed(&self, code: RDKafkaErrorCode, reason: &str) {
        self.disturbances.fetch_add(1, Ordering::AcqRel);
        if self.away.swap(true, Ordering::AcqRel) {
            tracing::debug!(client = %self.role, %code, "{reason}");
        } else {
            tracing::warn!(client = %self.role, %code, "Kafka does not answer, trying again: {reason}");
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            // Before it stands the thread: `[thrd:b:9092/bootstrap]: b:9092/bootstrap: Connect ...`.
            let said = message.split_once("]: ").map_or(message, |(_, said)| said);
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            *failure = Some(said.to_owned());
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "librdkafka", client = %self.role, facility, "{message}");
            }
            _ => tracing::debug!(target: "librdkafka", client = %self.role, facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        self.disturbed(code, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::trace!(target: "librdkafka", client = %self.role, "{}", String::from_utf8_lossy(statistics));
    }
}

/// An rdkafka error as ours: `what` failed, why, and what to do if that is known.
pub(crate) fn kafka_error(what: impl Into<String>, error: KafkaError) -> Error {
    if matches!(error, KafkaError::ClientConfig(..)) {
        return config_error(&error);
    }
    let base = Error::new(Kind::Kafka, what);
    let hinted = match error.rdkafka_error_code().and_then(hint_for) {
        Some(hint) => base.hint(hint),
        None => base,
    };
    hinted.because(error)
}

/// What to do about an error code, where we know it.
pub(crate) fn hint_for(code: RDKafkaErrorCode) -> Option<&'static str> {
    Some(match code {
        RDKafkaErrorCode::AllBrokersDown
        | RDKafkaErrorCode::BrokerTransportFailure
        | RDKafkaErrorCode::OperationTimedOut
        | RDKafkaErrorCode::Resolve => "is --brokers right, and do the brokers run?",
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
            "the brokers refused the credentials: look at the sasl.* settings"
        }
        RDKafkaErrorCode::SSL => "the TLS handshake failed: look at the ssl.* settings",
        RDKafkaErrorCode::TopicAuthorizationFailed
        | RDKafkaErrorCode::GroupAuthorizationFailed
        | RDKafkaErrorCode::ClusterAuthorizationFailed
        | RDKafkaErrorCode::TransactionalIdAuthorizationFailed => {
            "this Kafka user lacks a permission (ACL)"
        }
        RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownPartition => "create the topic, or run with --create-topics",
        _ => return None,
    })
}

/// Runs a blocking call of the Kafka client on a thread where it may block.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> crate::Result<T> + Send + 'static,
) -> crate::Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|e| Error::internal("a call to Kafka did not return").because(e))?
}
