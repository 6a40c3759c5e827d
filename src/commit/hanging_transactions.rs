//! Ends hanging transactions: transactions that have ended, but not in every partition (KIP-664).
//!
//! When a transaction ends, its coordinator writes a marker to each of its partitions. A partition
//! that has no leader at that moment is treated as deleted (Kafka 4.3:
//! `TransactionMarkerChannelManager`, "these partitions are likely deleted already") and never
//! gets its marker. Its records stay in an open transaction, readers of committed records
//! wait before them forever, and the marker of the producer's next transaction there would end both
//! transactions in the same way. A topic with one replica has no leader whenever its broker stops.
//!
//! ```text
//!  describe the last transaction ─► fence ─► find the partitions where it is still open
//!                                                        └─► end it there as it ended elsewhere
//! ```
//!
//! **Promises**
//! - A transaction begins only when every partition that the customer writes has a leader and no
//!   earlier transaction open.
//! - A transaction that is ended here ends as the coordinator ended it. This relies on one fact: of
//!   the transactions of one producer all but the last are committed, because a producer that had
//!   to abort is replaced.
//!
//! The outcome is known only if it was read before fencing. If a process dies between the fencing
//! and the end of the hanging transaction, the next process stops with an error.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::commit::log_reader::transactional_id;
use crate::commit::transaction_failure::TransactionFailure;
use crate::source::{
    KafkaConfig, LastTransaction, TransactionAdmin, TransactionAdminError, TransactionState,
};
use crate::types::TopicPartition;
use crate::{Error, Kind};

/// What is known of a customer's last transaction.
pub(super) struct HangingTransactions {
    customer: String,
    /// `None`: the connection settings are not supported by the native client.
    transactions: Option<TransactionAdmin>,
    last: Option<LastTransaction>,
    /// Open transactions are being ended. The last transaction of the id is now the one that ends
    /// them, so it must not replace `last`.
    is_ending: bool,
}

impl HangingTransactions {
    pub(super) fn new(kafka: &KafkaConfig, customer: &str) -> Self {
        let transactions = TransactionAdmin::new(kafka, &transactional_id(customer));
        Self { customer: customer.to_owned(), transactions, last: None, is_ending: false }
    }

    /// Records how the last transaction ended. To be called before a producer is opened: fencing
    /// makes the coordinator forget the outcome.
    pub(super) fn record_last_transaction(
        &mut self,
        stop: &AtomicBool,
    ) -> Result<(), TransactionFailure> {
        let Some(transactions) = &self.transactions else { return Ok(()) };
        if !self.is_ending {
            let now = transactions.describe_last(stop).map_err(failure)?;
            self.last = merge_descriptions(self.last.take(), now);
        }
        Ok(())
    }

    /// Ends the last transaction in the partitions of `topics` in which it is still open. To be
    /// called after a producer was opened. Returns whether there were any; if so, the producer is
    /// fenced and another one is needed.
    pub(super) fn end_open_transactions(
        &mut self,
        topics: &[Arc<str>],
        stop: &AtomicBool,
    ) -> Result<bool, TransactionFailure> {
        let (Some(transactions), Some(last)) = (&self.transactions, &self.last) else {
            return Ok(false);
        };
        let open =
            transactions.find_open_partitions(topics, last.producer_id, stop).map_err(failure)?;
        if open.is_empty() {
            (self.last, self.is_ending) = (None, false);
            return Ok(false);
        }
        let (to_abort, to_commit) = match &last.state {
            TransactionState::Committed => (Vec::new(), open),
            TransactionState::Aborted => (open, Vec::new()),
            TransactionState::Ongoing(partitions) => {
                open.into_iter().partition(|tp| partitions.contains(tp))
            }
            TransactionState::Unknown => {
                return Err(TransactionFailure::Final(self.unknown_outcome(&open)));
            }
        };
        self.is_ending = true;
        for (partitions, committed) in [(to_commit, true), (to_abort, false)] {
            if !partitions.is_empty() {
                transactions.end_open(&partitions, committed, stop).map_err(failure)?;
                tracing::warn!(
                    partitions = display_list(&partitions),
                    committed,
                    "ended a hanging transaction"
                );
            }
        }
        Ok(true)
    }

    fn unknown_outcome(&self, open: &[TopicPartition]) -> Error {
        let message = format!("a transaction of customer {} is hanging", self.customer);
        Error::new(Kind::Recovery, message)
            .detail(format!(
                "it is open in {}, and Kafka no longer knows whether it was committed",
                display_list(open)
            ))
            .hint(format!(
                "`kafka-transactions.sh abort` ends it in each of these partitions; then \
                 `millstream rebuild {}` writes the missing results, without duplicates",
                self.customer
            ))
    }
}

/// What is known of a transaction after it was described once more.
fn merge_descriptions(
    before: Option<LastTransaction>,
    now: Option<LastTransaction>,
) -> Option<LastTransaction> {
    let is_before_better = match (&before, &now) {
        // A producer that was opened since hides the transaction before it.
        (Some(_), Some(now)) if now.state == TransactionState::Unknown => true,
        // Fenced since: only the earlier description has the partitions.
        (Some(before), Some(now)) => {
            matches!(before.state, TransactionState::Ongoing(_))
                && now.state == TransactionState::Aborted
        }
        _ => false,
    };
    if is_before_better { before } else { now }
}

/// The partitions, sorted and without duplicates.
fn display_list(partitions: &[TopicPartition]) -> String {
    let names: BTreeSet<_> = partitions.iter().map(ToString::to_string).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn failure(unanswered: TransactionAdminError) -> TransactionFailure {
    match unanswered {
        TransactionAdminError::Retriable(reason) => TransactionFailure::Unknown(reason),
        TransactionAdminError::Fatal(error) => TransactionFailure::Final(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_from_before_the_fencing_is_retained() {
        let last = |state| Some(LastTransaction { producer_id: 1, state });
        let ongoing = || TransactionState::Ongoing(BTreeSet::from([TopicPartition::new("out", 0)]));
        let merge = |before, now| merge_descriptions(last(before), last(now)).unwrap().state;
        assert_eq!(merge(ongoing(), TransactionState::Aborted), ongoing());
        assert_eq!(
            merge(TransactionState::Committed, TransactionState::Unknown),
            TransactionState::Committed
        );
        assert_eq!(merge(ongoing(), TransactionState::Committed), TransactionState::Committed);
        assert_eq!(
            merge(TransactionState::Committed, TransactionState::Aborted),
            TransactionState::Aborted
        );
        assert_eq!(
            merge_descriptions(None, last(TransactionState::Unknown)),
            last(TransactionState::Unknown)
        );
    }
}
