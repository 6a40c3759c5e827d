//! What is known of each record of a partition, and the account that follows from it.

use std::collections::HashMap;

use crate::types::SourcePosition;

const RECORD: u8 = 1;
const TOMBSTONE: u8 = 2;
/// A row of position 0 is in history.
const IN_HISTORY: u8 = 4;
/// A row of a later position is in history.
const LATER_IN_HISTORY: u8 = 8;
const DEAD: u8 = 16;

/// Offset and position of a row: a record with an array of events has more than one.
pub type Place = (i64, i64);

/// What is known of the records of a partition whose offsets are from `from` to below `until`.
///
/// A byte for each: history may hold billions of rows in any order. Places are kept only of rows that
/// a byte cannot tell apart: those of a record with a dead row, and those after a record's first.
pub struct Ledger {
    pub from: i64,
    pub until: i64,
    seen: Vec<u8>,
    /// How often a place came, of those that are kept.
    places: HashMap<Place, u32>,
    decoded: u64,
    dead: u64,
    /// Rows that came again, of those whose places are not kept.
    twice: u64,
}

/// The account of one partition.
#[derive(Debug, Default)]
pub struct Account {
    pub records: u64,
    pub gaps: i64,
    pub decoded: u64,
    pub rejected: u64,
    pub tombstones: u64,
    pub faults: Vec<String>,
}

impl Ledger {
    pub fn new(from: i64, until: i64) -> Self {
        let length = usize::try_from((until - from).max(0)).unwrap_or(0);
        let (seen, places) = (vec![0; length], HashMap::new());
        Self { from, until, seen, places, decoded: 0, dead: 0, twice: 0 }
    }

    fn at(&mut self, offset: i64) -> Option<&mut u8> {
        let index = usize::try_from(offset.checked_sub(self.from)?).ok()?;
        self.seen.get_mut(index)
    }

    /// A record is in Kafka.
    pub fn record(&mut self, offset: i64, is_tombstone: bool) {
        if let Some(seen) = self.at(offset) {
            *seen |= if is_tombstone { RECORD | TOMBSTONE } else { RECORD };
        }
    }

    /// A row is among the dead letters; all of them are told before the rows in history are.
    pub fn dead(&mut self, (offset, position): Place) {
        let Some(seen) = self.at(offset) else { return };
        *seen |= DEAD;
        self.dead += 1;
        self.place((offset, position));
    }

    /// A row is in history.
    pub fn in_history(&mut self, (offset, position): Place) {
        let Some(seen) = self.at(offset) else { return };
        let before = *seen;
        *seen |= if position == 0 { IN_HISTORY } else { LATER_IN_HISTORY };
        self.decoded += 1;
        if position != 0 || before & DEAD != 0 {
            self.place((offset, position));
        } else if before & IN_HISTORY != 0 {
            self.twice += 1;
        }
    }

    fn place(&mut self, place: Place) {
        *self.places.entry(place).or_default() += 1;
    }

    /// The account, held to what the log recorded of the partition if that begins where this does.
    pub fn account(self, recorded: Option<SourcePosition>) -> Account {
        let count =
            |bits: u8, wanted: u8| self.seen.iter().filter(|s| **s & bits == wanted).count();
        let records = count(RECORD, RECORD) as u64;
        let mut account = Account {
            records,
            gaps: self.until - self.from - i64::try_from(records).unwrap_or(i64::MAX),
            decoded: self.decoded,
            rejected: self.dead,
            tombstones: count(TOMBSTONE, TOMBSTONE) as u64,
            faults: Vec::new(),
        };
        let somewhere = IN_HISTORY | LATER_IN_HISTORY | DEAD;
        let lost = count(RECORD | TOMBSTONE | somewhere, RECORD) as u64;
        let strange =
            self.seen.iter().filter(|s| **s & RECORD == 0 && **s & somewhere != 0).count();
        let twice = self.places.values().filter(|times| **times > 1).count() as u64 + self.twice;
        for (count, what) in
            [(lost, "lost"), (strange as u64, "without a record in Kafka"), (twice, "twice")]
        {
            if count > 0 {
                account.faults.push(format!("{count} {what}"));
            }
        }
        if let Some(at) = recorded {
            let say = |what: &str, here: u64, log: u64| {
                (here != log).then(|| format!("{what}: {here} here, {log} in the log"))
            };
            account.faults.extend(say("decoded", account.decoded, at.decoded));
            account.faults.extend(say("rejected", account.rejected, at.rejected));
            account.faults.extend(say("tombstones", account.tombstones, at.tombstones));
        }
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records 10 to 14: a row each in history but for 12, which is dead, and 13, a tombstone; the last
    /// has an array of three rows, of which one is dead.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(10, 16);
        (10..15).for_each(|offset| ledger.record(offset, offset == 13));
        [(12, 0), (14, 1)].into_iter().for_each(|place| ledger.dead(place));
        [(14, 2), (11, 0), (10, 0), (14, 0)].into_iter().for_each(|place| ledger.in_history(place));
        ledger
    }

    fn recorded() -> SourcePosition {
        SourcePosition { decoded: 4, rejected: 2, tombstones: 1, ..SourcePosition::default() }
    }

    fn faults(ledger: Ledger) -> Vec<String> {
        ledger.account(None).faults
    }

    #[test]
    fn an_account_that_holds() {
        let account = ledger().account(Some(recorded()));
        assert!(account.faults.is_empty(), "{:?}", account.faults);
        let Account { records, gaps, decoded, rejected, tombstones, .. } = account;
        assert_eq!((records, gaps, decoded, rejected, tombstones), (5, 1, 4, 2, 1));
    }

    #[test]
    fn a_row_that_comes_again_is_told_whatever_its_place() {
        for place in [(11, 0), (14, 0), (14, 2), (12, 0), (14, 1)] {
            let mut again = ledger();
            again.in_history(place);
            assert_eq!(faults(again), ["1 twice"], "{place:?}");
        }
        let mut again = ledger();
        again.dead((12, 0));
        assert_eq!(faults(again), ["1 twice"]);
    }

    #[test]
    fn a_record_without_a_row_and_a_row_without_a_record() {
        let mut lost = ledger();
        lost.record(15, false);
        assert_eq!(faults(lost), ["1 lost"]);
        let mut strange = ledger();
        strange.in_history((15, 0));
        assert_eq!(faults(strange), ["1 without a record in Kafka"]);
    }

    #[test]
    fn what_lies_outside_does_not_count() {
        let mut ledger = ledger();
        for offset in [9, 16, i64::MIN, i64::MAX] {
            ledger.record(offset, false);
            ledger.dead((offset, 0));
            ledger.in_history((offset, 0));
        }
        let account = ledger.account(Some(recorded()));
        assert!(account.faults.is_empty(), "{:?}", account.faults);
    }

    #[test]
    fn what_the_log_says_otherwise_is_a_fault() {
        let said = ledger().account(Some(SourcePosition { decoded: 5, ..recorded() })).faults;
        assert_eq!(said, ["decoded: 4 here, 5 in the log"]);
    }
}
