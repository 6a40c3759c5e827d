//! The errors of the native client, by how the caller reacts, and the log of broker outages.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::Error;

/// Why an operation of the client did not complete.
#[derive(Debug)]
pub(super) enum ClientError {
    /// A broker is unreachable, slow or not ready: the caller may retry.
    Retriable(String),
    /// The reader fails with this error.
    Fatal(Error),
    /// This client cannot read the data or speak to the brokers; librdkafka may.
    Unsupported(String),
    /// The caller requested a stop.
    Stopped,
}

/// The result of an operation of the client.
pub(super) type ClientResult<T> = Result<T, ClientError>;

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Retriable(error.to_string())
    }
}

impl ClientError {
    /// Adds the address of the broker to the text of a retriable error.
    pub(super) fn at(self, host: &str, port: u16) -> Self {
        match self {
            Self::Retriable(reason) => Self::Retriable(format!("{host}:{port}: {reason}")),
            other => other,
        }
    }
}

/// The error for a response that cannot be decoded; the connection is closed.
pub(super) fn undecodable(error: impl std::fmt::Display) -> ClientError {
    ClientError::Retriable(format!("cannot decode a response of the broker: {error}"))
}

/// The error for brokers that lack a request that this client needs.
pub(super) fn too_old(feature: &str) -> ClientError {
    ClientError::Unsupported(format!("the brokers are too old: they do not support {feature}"))
}

/// Whether a socket operation only reached its time limit, which is how the client polls for a
/// stop request.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Which brokers are unreachable. Each outage is reported with one warning when it begins and one
/// line when it ends.
pub(super) struct OutageLog {
    /// What the reader does, for the log.
    role: String,
    unreachable: Mutex<BTreeSet<String>>,
}

impl OutageLog {
    pub(super) fn new(role: String) -> Self {
        Self { role, unreachable: Mutex::default() }
    }

    /// Records that a broker, or all of them, could not be reached.
    pub(super) fn record_unreachable(&self, broker: &str, reason: &str) {
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        let first = unreachable.is_empty();
        unreachable.insert(broker.to_owned());
        drop(unreachable);
        if first {
            tracing::warn!(client = %self.role, "{broker} unreachable, retrying: {reason}");
        } else {
            tracing::debug!(client = %self.role, "{broker} unreachable, retrying: {reason}");
        }
    }

    /// Records that a broker responded, or that it is no longer needed.
    pub(super) fn record_reachable(&self, broker: &str) {
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        if unreachable.remove(broker) && unreachable.is_empty() {
            drop(unreachable);
            tracing::info!(client = %self.role, "brokers reachable again");
        }
    }
}
