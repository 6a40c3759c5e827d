//! Why a transaction did not commit, and whether that is certain.
//!
//! A transaction ends as done, failed or unknown:
//!
//! ```text
//!                    ┌─► done                                    the epoch is committed
//!  transaction ──────┼─► failed   Final, TooLarge, Fenced,       the epoch is not committed by
//!                    │            Abortable                      this producer
//!                    └─► unknown  Unknown ──► read the log ──► done or failed
//! ```
//!
//! `Unknown` is never guessed away: [`crate::commit::commit_session`] reads the log.

use std::sync::Arc;

use rdkafka::error::RDKafkaErrorCode;

use crate::Error;

/// Why a transaction did not commit, as far as is known.
#[derive(Debug)]
pub(super) enum TransactionFailure {
    /// It can never commit: the output, the topics or the permissions must change. Not committed.
    Final(Error),
    /// A record is larger than its topic accepts. Not committed.
    TooLarge(Box<OversizedRecord>),
    /// Another producer has this transactional id now. Not committed by this producer.
    Fenced(String),
    /// It must be aborted, and another producer can try again. Not committed.
    Abortable(String),
    /// It may be committed or not.
    Unknown(String),
}

/// A record that its topic refused. Of several that were refused together, the largest.
#[derive(Debug)]
pub(super) struct OversizedRecord {
    pub(super) topic: Arc<str>,
    /// In bytes, uncompressed.
    pub(super) size: usize,
    pub(super) error: Error,
}

/// Whether the code means that another producer has the transactional id.
pub(super) fn is_fencing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch)
}

/// Whether the code means that the brokers refuse transactions until an operator changes
/// permissions or settings.
pub(super) fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::TransactionalIdAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::TopicAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication
            | Code::UnsupportedFeature
            | Code::InvalidTransactionTimeout
    )
}
