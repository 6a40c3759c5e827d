//! What can go wrong between the native reader and the brokers, by what is to be done.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::Error;

/// Why something did not come to its end.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A broker is away, slow or not yet ready: worth another try.
    Lost(String),
    /// Final: the reader's last word.
    Final(Error),
    /// Nothing for this reader; librdkafka's may go on from here.
    Beyond(String),
    /// Nobody wants it any more.
    Stopped,
}

/// What comes of an attempt.
pub(super) type Attempt<T> = Result<T, Trouble>;

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

/// A response that cannot be decoded: the connection is given up.
pub(super) fn undecodable(error: impl std::fmt::Display) -> Trouble {
    Trouble::Lost(format!("a response that makes no sense: {error}"))
}

/// Which brokers are away: of an outage we say one warning when it begins and one line when it
/// is over.
pub(super) struct Outage {
    /// What the reader does, for the log.
    role: String,
    away: Mutex<BTreeSet<String>>,
}

impl Outage {
    pub(super) fn new(role: String) -> Self {
        Self { role, away: Mutex::default() }
    }

    /// A broker, or all of them, did not answer.
    pub(super) fn began(&self, who: &str, why: &str) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let first = away.is_empty();
        away.insert(who.to_owned());
        drop(away);
        if first {
            tracing::warn!(client = %self.role, "Kafka ({who}) does not answer, trying again: {why}");
        } else {
            tracing::debug!(client = %self.role, "Kafka ({who}) does not answer: {why}");
        }
    }

    /// It answers, or nobody needs it any more.
    pub(super) fn over(&self, who: &str) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away.remove(who) && away.is_empty() {
            drop(away);
            tracing::info!(client = %self.role, "Kafka answers again");
        }
    }
}
