//! Finds the batches of one Fetch response that belong to aborted transactions.
//!
//! With read_committed, a response lists the aborted transactions that overlap it: producer id and
//! first offset. From that offset up to the marker of the transaction, the transactional batches
//! of that producer are gaps. The list is complete for its response, so no state is carried over
//! to the next response. Source: Kafka's KIP-98.

use std::collections::BTreeSet;

use crate::source::native::record_batch::{self, BatchHeader};

/// The aborted transactions of one partition in one response.
pub(super) struct AbortedTransactions {
    /// (first offset, producer id) of transactions that begin later, in descending order.
    pending: Vec<(i64, i64)>,
    /// The producers whose aborted transaction has begun and whose marker has not been seen.
    open: BTreeSet<i64>,
}

impl AbortedTransactions {
    /// Creates the state from (first offset, producer id) pairs in any order.
    pub(super) fn new(mut listed: Vec<(i64, i64)>) -> Self {
        listed.sort_unstable_by(|a, b| b.cmp(a));
        Self { pending: listed, open: BTreeSet::new() }
    }

    /// Whether a batch is a gap: a batch of an aborted transaction, or any transaction marker. Expects
    /// all batches, in offset order.
    pub(super) fn is_gap(&mut self, header: &BatchHeader, bytes: &[u8]) -> bool {
        while let Some((_, producer)) =
            self.pending.pop_if(|(first, _)| *first <= header.last_offset())
        {
            self.open.insert(producer);
        }
        if header.is_control() {
            if !self.open.is_empty() && record_batch::is_abort(bytes) {
                self.open.remove(&header.producer_id);
            }
            return true;
        }
        header.is_transactional() && self.open.contains(&header.producer_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::native::record_batch::BatchStart;
    use crate::source::native::record_batch::tests::{batch, put_record};

    /// A batch with one record: transactional (attributes 16), plain (0), or a marker (48) of a type.
    fn transaction_batch(offset: i64, producer: i64, attributes: i16, marker: u8) -> Vec<u8> {
        let mut body = Vec::new();
        put_record(&mut body, (0, Some(&[0, 0, 0, marker]), None, &[]));
        batch(offset, 0, attributes, producer, 1, &body)
    }

    fn gaps(aborted: Vec<(i64, i64)>, batches: &[Vec<u8>]) -> Vec<bool> {
        let mut aborted = AbortedTransactions::new(aborted);
        let gap = |bytes: &Vec<u8>| match record_batch::parse_batch_start(bytes) {
            Ok(BatchStart::Complete(header)) => aborted.is_gap(&header, bytes),
            other => unreachable!("{other:?}"),
        };
        batches.iter().map(gap).collect()
    }

    #[test]
    fn markers_separate_the_transactions_of_a_producer() {
        let batches = [
            transaction_batch(0, 7, 16, 0),  // aborted
            transaction_batch(1, 8, 16, 0),  // another producer's, committed
            transaction_batch(2, 7, 16, 0),  // aborted
            transaction_batch(3, 7, 48, 0),  // the abort
            transaction_batch(4, 7, 16, 0),  // committed
            transaction_batch(5, 7, 48, 1),  // the commit
            transaction_batch(6, 8, 48, 1),  // the commit
            transaction_batch(7, 7, 16, 0),  // aborted again
            transaction_batch(8, 7, 0, 0),   // outside a transaction
            transaction_batch(9, 7, 48, 0),  // the abort
            transaction_batch(10, 7, 16, 0), // of a later transaction
        ];
        let gap = [true, false, true, true, false, true, true, true, false, true, false];
        assert_eq!(gaps(vec![(7, 7), (0, 7)], &batches), gap);
    }

    #[test]
    fn a_transaction_that_began_before_the_response_is_included() {
        let batches = [
            transaction_batch(50, 7, 16, 0),
            transaction_batch(51, 7, 48, 0),
            transaction_batch(52, 7, 16, 0),
        ];
        assert_eq!(gaps(vec![(10, 7)], &batches), [true, true, false]);
    }

    #[test]
    fn without_a_list_only_markers_are_gaps() {
        let batches = [
            transaction_batch(0, 7, 16, 0),
            transaction_batch(1, 7, 48, 0),
            transaction_batch(2, 7, 48, 1),
        ];
        assert_eq!(gaps(vec![], &batches), [false, true, true]);
    }
}
