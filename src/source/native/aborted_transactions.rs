//! Which batches of one Fetch response belong to aborted transactions.
//!
//! With read_committed, a response lists the aborted transactions that touch it: producer and
//! first offset. From that offset on until the transaction's marker, that producer's
//! transactional batches are gaps. The list is complete for its response, so nothing is carried
//! from one to the next. Source: Kafka's KIP-98.

use std::collections::BTreeSet;

use crate::source::native::record_batch::{self, Header};

/// The aborted transactions of one partition's part of a response.
pub(super) struct Aborted {
    /// (first offset, producer), the greatest offset first: the next one to begin is the last.
    ahead: Vec<(i64, i64)>,
    /// Producers whose aborted transaction has begun and whose marker is to come.
    open: BTreeSet<i64>,
}

impl Aborted {
    /// From (first offset, producer) pairs in any order.
    pub(super) fn new(mut listed: Vec<(i64, i64)>) -> Self {
        listed.sort_unstable_by(|a, b| b.cmp(a));
        Self { ahead: listed, open: BTreeSet::new() }
    }

    /// Whether a batch is a gap: one of an aborted transaction, or a marker of any. Batches come
    /// in the order of their offsets, and all of them.
    pub(super) fn is_gap(&mut self, header: &Header, bytes: &[u8]) -> bool {
        while let Some((_, producer)) =
            self.ahead.pop_if(|(first, _)| *first <= header.last_offset())
        {
            self.open.insert(producer);
        }
        if header.control() {
            if !self.open.is_empty() && record_batch::is_abort(bytes) {
                self.open.remove(&header.producer_id);
            }
            return true;
        }
        header.transactional() && self.open.contains(&header.producer_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::native::record_batch::First;
    use crate::source::native::record_batch::tests::{batch, put_record};

    /// A record of a transaction (16), one without (0), or a marker (48 with its type).
    fn one(offset: i64, producer: i64, attributes: i16, marker: u8) -> Vec<u8> {
        let mut body = Vec::new();
        put_record(&mut body, (0, Some(&[0, 0, 0, marker]), None, &[]));
        batch(offset, 0, attributes, producer, 1, &body)
    }

    fn gaps(aborted: Vec<(i64, i64)>, batches: &[Vec<u8>]) -> Vec<bool> {
        let mut aborted = Aborted::new(aborted);
        let gap = |bytes: &Vec<u8>| match record_batch::first(bytes) {
            Ok(First::Whole(header)) => aborted.is_gap(&header, bytes),
            other => unreachable!("{other:?}"),
        };
        batches.iter().map(gap).collect()
    }

    #[test]
    fn a_producers_transactions_are_told_apart_by_its_markers() {
        let batches = [
            one(0, 7, 16, 0),  // aborted
            one(1, 8, 16, 0),  // another producer's, committed
            one(2, 7, 16, 0),  // aborted
            one(3, 7, 48, 0),  // the abort
            one(4, 7, 16, 0),  // committed
            one(5, 7, 48, 1),  // the commit
            one(6, 8, 48, 1),  // the commit
            one(7, 7, 16, 0),  // aborted again
            one(8, 7, 0, 0),   // outside of transactions
            one(9, 7, 48, 0),  // the abort
            one(10, 7, 16, 0), // of a later one
        ];
        let gap = [true, false, true, true, false, true, true, true, false, true, false];
        assert_eq!(gaps(vec![(7, 7), (0, 7)], &batches), gap);
    }

    #[test]
    fn a_transaction_that_began_before_the_response_counts() {
        let batches = [one(50, 7, 16, 0), one(51, 7, 48, 0), one(52, 7, 16, 0)];
        assert_eq!(gaps(vec![(10, 7)], &batches), [true, true, false]);
    }

    #[test]
    fn without_a_list_only_markers_are_gaps() {
        let batches = [one(0, 7, 16, 0), one(1, 7, 48, 0), one(2, 7, 48, 1)];
        assert_eq!(gaps(vec![], &batches), [false, true, true]);
    }
}
