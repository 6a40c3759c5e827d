//! Logging and error conversion that all rdkafka clients of the crate share.
//!
//! librdkafka repeats its messages while a broker is unreachable. They are logged at debug level;
//! each outage is reported with one warning when it begins and one line when it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::source::config::config_error;
use crate::{Error, Kind};

/// The callbacks of one rdkafka client.
#[derive(Debug)]
pub(crate) struct KafkaClientContext {
    /// What this client does, for the log.
    role: String,
    is_unreachable: AtomicBool,
    transport_errors: AtomicU64,
    /// librdkafka's text of the last connection failure.
    last_failure: Mutex<Option<String>>,
}

impl KafkaClientContext {
    pub(crate) fn new(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            is_unreachable: AtomicBool::new(false),
            transport_errors: AtomicU64::new(0),
            last_failure: Mutex::default(),
        }
    }

    /// librdkafka's text of the last connection failure.
    pub(crate) fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of transport errors since the client was created.
    pub(crate) fn transport_errors(&self) -> u64 {
        self.transport_errors.load(Ordering::Acquire)
    }

    /// Records a response of a broker, which ends an outage.
    pub(crate) fn record_response(&self) {
        if self.is_unreachable.load(Ordering::Relaxed)
            && self.is_unreachable.swap(false, Ordering::AcqRel)
        {
            tracing::info!(client = %self.role, "brokers reachable again");
        }
    }

    /// Records a transport error. The first error of an outage is logged as a warning.
    pub(crate) fn record_transport_error(&self, code: RDKafkaErrorCode, reason: &str) {
        self.transport_errors.fetch_add(1, Ordering::AcqRel);
        if self.is_unreachable.swap(true, Ordering::AcqRel) {
            tracing::debug!(client = %self.role, %code, "{reason}");
        } else {
            tracing::warn!(client = %self.role, %code, "brokers unreachable, retrying: {reason}");
        }
    }
}

impl ClientContext for KafkaClientContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            // The line starts with the thread: `[thrd:b:9092/bootstrap]: b:9092/bootstrap: Connect ...`.
            let reason = message.split_once("]: ").map_or(message, |(_, reason)| reason);
            let mut failure = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
            *failure = Some(reason.to_owned());
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
        self.record_transport_error(code, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        tracing::trace!(target: "librdkafka", client = %self.role, "{}", String::from_utf8_lossy(statistics));
    }
}

/// Converts an rdkafka error. `message` names what failed; the error code adds a hint if one is
/// known.
pub(crate) fn kafka_error(message: impl Into<String>, error: KafkaError) -> Error {
    if matches!(error, KafkaError::ClientConfig(..)) {
        return config_error(&error);
    }
    let base = Error::new(Kind::Kafka, message);
    let hinted = match error.rdkafka_error_code().and_then(hint_for) {
        Some(hint) => base.hint(hint),
        None => base,
    };
    hinted.because(error)
}

/// The hint for an error code, if there is one.
pub(crate) fn hint_for(code: RDKafkaErrorCode) -> Option<&'static str> {
    Some(match code {
        RDKafkaErrorCode::AllBrokersDown
        | RDKafkaErrorCode::BrokerTransportFailure
        | RDKafkaErrorCode::OperationTimedOut
        | RDKafkaErrorCode::Resolve => {
            "check the addresses in --brokers and that the brokers are running"
        }
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => {
            "the brokers rejected the credentials: check the sasl.* settings"
        }
        RDKafkaErrorCode::SSL => "the TLS handshake failed: check the ssl.* settings",
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

/// Runs a blocking call of a Kafka client on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> crate::Result<T> + Send + 'static,
) -> crate::Result<T> {
    tokio::task::spawn_blocking(call).await.map_err(|e| {
        Error::internal("a blocking Kafka call panicked or was cancelled").because(e)
    })?
}
