//! Transactions that Kafka forgot to end in a partition.
//!
//! A coordinator tells every partition of a transaction how it ended. One that has no leader at
//! that moment is taken for deleted (Kafka 4.3: `TransactionMarkerChannelManager`, "these
//! partitions are likely deleted already"), and never learns it: what was written there stays
//! open, whoever reads committed records waits before it for ever, and the producer's next
//! transaction there would end both alike. A topic with one replica is without leader whenever
//! its broker stops.
//!
//! ```text
//!  ask for the last transaction ─► fence ─► where is one still open? ─► end it there as it ended
//! ```
//!
//! Promises: no transaction begins before every partition that the customer writes has a leader
//! and nothing of an earlier one open; what is ended here ends as the coordinator ended it. It
//! rests on this: of the transactions of one producer all but the last are committed, for a
//! producer that had to abort is replaced. What was asked before the fence is all that is known:
//! where a process dies between the two, the next one stops with an error.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::commit::log_reader::transactional_id;
use crate::commit::producer::Failure;
use crate::source::{KafkaConfig, LastTransaction, Outcome, Transactions, Unanswered};
use crate::types::TopicPartition;
use crate::{Error, Kind};

/// What is known of a customer's last transaction.
pub(super) struct HangingTransactions {
    customer: String,
    /// None: a client that could ask is beyond the settings.
    transactions: Option<Transactions>,
    last: Option<LastTransaction>,
    /// What is open is being ended: the last transaction is one of ours by now, and says nothing.
    settling: bool,
}

impl HangingTransactions {
    pub(super) fn new(kafka: &KafkaConfig, customer: &str) -> Self {
        let transactions = Transactions::new(kafka, &transactional_id(customer));
        Self { customer: customer.to_owned(), transactions, last: None, settling: false }
    }

    /// To be called before a producer begins: that makes the coordinator forget.
    pub(super) fn look(&mut self, stop: &AtomicBool) -> Result<(), Failure> {
        let Some(transactions) = &self.transactions else { return Ok(()) };
        if !self.settling {
            let now = transactions.last(stop).map_err(failure)?;
            self.last = known(self.last.take(), now);
        }
        Ok(())
    }

    /// To be called after a producer began: whether a transaction was open still in one of
    /// `topics`. It is ended now, and another producer is needed.
    pub(super) fn settle(
        &mut self,
        topics: &[Arc<str>],
        stop: &AtomicBool,
    ) -> Result<bool, Failure> {
        let (Some(transactions), Some(last)) = (&self.transactions, &self.last) else {
            return Ok(false);
        };
        let open = transactions.open_in(topics, last.producer, stop).map_err(failure)?;
        if open.is_empty() {
            (self.last, self.settling) = (None, false);
            return Ok(false);
        }
        let (to_abort, to_commit) = match &last.outcome {
            Outcome::Committed => (Vec::new(), open),
            Outcome::Aborted => (open, Vec::new()),
            Outcome::Ongoing(its) => open.into_iter().partition(|tp| its.contains(tp)),
            Outcome::Unknown => return Err(Failure::Final(self.undecided(&open))),
        };
        self.settling = true;
        for (partitions, committed) in [(to_commit, true), (to_abort, false)] {
            if !partitions.is_empty() {
                transactions.end(&partitions, committed, stop).map_err(failure)?;
                tracing::warn!(
                    partitions = list(&partitions),
                    committed,
                    "Kafka had left a transaction open there: it is ended now"
                );
            }
        }
        Ok(true)
    }

    fn undecided(&self, open: &[TopicPartition]) -> Error {
        let what = format!("a transaction of customer {} was never ended", self.customer);
        Error::new(Kind::Recovery, what)
            .detail(format!(
                "it is open in {}, and Kafka has forgotten whether it was committed",
                list(open)
            ))
            .hint(format!(
                "`kafka-transactions.sh abort` ends it in each of these partitions; then \
                 `millstream rebuild {}` works out what is missing, and publishes nothing twice",
                self.customer
            ))
    }
}

/// What is known of a transaction after it was asked for once more.
fn known(before: Option<LastTransaction>, now: Option<LastTransaction>) -> Option<LastTransaction> {
    let keeps = match (&before, &now) {
        // A producer that has begun since says nothing about the transaction before it.
        (Some(_), Some(now)) if now.outcome == Outcome::Unknown => true,
        // Fenced since: which partitions it had is known from before.
        (Some(before), Some(now)) => {
            matches!(before.outcome, Outcome::Ongoing(_)) && now.outcome == Outcome::Aborted
        }
        _ => false,
    };
    if keeps { before } else { now }
}

fn list(partitions: &[TopicPartition]) -> String {
    let all: BTreeSet<_> = partitions.iter().map(ToString::to_string).collect();
    all.into_iter().collect::<Vec<_>>().join(", ")
}

fn failure(unanswered: Unanswered) -> Failure {
    match unanswered {
        Unanswered::Yet(why) => Failure::Unknown(why),
        Unanswered::Ever(error) => Failure::Final(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;
    use crate::commit::committer::Committer;
    use crate::commit::committer::tests::{expected, limits, output, progress, values};
    use crate::commit::log_topic;
    use crate::source::tests::brokers::Brokers;
    use crate::source::tests::mock::unique;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Two brokers; the transactions' coordinator is on the first, which stays.
    struct Scene {
        brokers: Brokers,
        kafka: KafkaConfig,
        customer: String,
        out: String,
        producer: BaseProducer,
    }

    impl Scene {
        /// A transaction that has written its records and its progress record. Then the broker
        /// that leads `out`, or the log, goes away.
        fn set(test: &str, away: &str) -> Option<Self> {
            let mut brokers = Brokers::two(test)?;
            let kafka = brokers.plain();
            let (customer, out) = (unique("c"), unique("out"));
            let log = log_topic(&customer);
            brokers.create_topic("__transaction_state", &[1]);
            brokers.create_topic(&out, &[if away == "out" { 2 } else { 1 }]);
            brokers.create_topic(&log, &[if away == "log" { 2 } else { 1 }]);
            let mut config = kafka.client();
            config.set("transactional.id", transactional_id(&customer));
            let producer: BaseProducer = config.create().unwrap();
            producer.init_transactions(PATIENCE).unwrap();
            producer.begin_transaction().unwrap();
            for value in expected(&[1], 3) {
                producer.send(BaseRecord::<str, str>::to(&out).payload(&value)).unwrap();
            }
            producer.send(BaseRecord::<str, [u8]>::to(&log).payload(&progress(1))).unwrap();
            producer.flush(PATIENCE).unwrap();
            brokers.stop(1);
            let gone = if away == "out" { &out } else { &log };
            while brokers.leader(gone) != Some(-1) {
                std::thread::sleep(Duration::from_millis(100));
            }
            Some(Self { brokers, kafka, customer, out, producer })
        }

        fn open_partitions(&self) -> Vec<TopicPartition> {
            let topics = [self.out.as_str().into(), log_topic(&self.customer).into()];
            let never = AtomicBool::new(false);
            let transactions = Transactions::new(&self.kafka, &transactional_id(&self.customer));
            let transactions = transactions.unwrap();
            let last = transactions.last(&never).unwrap().unwrap();
            transactions.open_in(&topics, last.producer, &never).unwrap()
        }

        /// The next process begins while the broker is away, and goes on when it is back.
        async fn goes_on(mut self, committed: bool) {
            let (kafka, customer) = (self.kafka.clone(), self.customer.clone());
            let limits = limits(&self.out);
            let opening =
                tokio::spawn(async move { Committer::open(&kafka, &customer, limits).await });
            tokio::time::sleep(Duration::from_secs(2)).await;
            self.brokers.restart(1);
            let (committer, records) = opening.await.unwrap().unwrap();
            let epochs: &[u64] = if committed { &[1] } else { &[] };
            assert_eq!(records, epochs.iter().map(|epoch| progress(*epoch)).collect::<Vec<_>>());
            assert_eq!(self.open_partitions(), []);
            committer.commit(output(&self.out, records.len() as u64 + 1, 3)).await.unwrap();
            let epochs: &[u64] = if committed { &[1, 2] } else { &[1] };
            assert_eq!(values(&self.kafka, &self.out).await, expected(epochs, 3));
        }
    }

    /// Ends, or does not end, the transaction while `away` is away; then the next process begins.
    async fn ends_as_it_ended(
        test: &str,
        away: &str,
        end: impl Fn(&BaseProducer),
        committed: bool,
    ) {
        let Some(scene) = Scene::set(test, away) else { return };
        end(&scene.producer);
        scene.goes_on(committed).await;
    }

    fn commit(producer: &BaseProducer) {
        producer.commit_transaction(PATIENCE).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_an_output_was_not_told_of_is_told_at_the_next_start() {
        ends_as_it_ended("a commit and an output", "out", commit, true).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_the_log_was_not_told_of_is_told_at_the_next_start() {
        ends_as_it_ended("a commit and the log", "log", commit, true).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_fenced_while_a_partition_is_away_is_aborted_there_too() {
        ends_as_it_ended("a fence and an output", "out", |_| {}, false).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_aborted_while_the_log_was_away_is_aborted_there_too() {
        let abort = |producer: &BaseProducer| producer.abort_transaction(PATIENCE).unwrap();
        ends_as_it_ended("an abort and the log", "log", abort, false).await;
    }

    #[test]
    fn what_was_known_before_the_fence_stays() {
        let last = |outcome| Some(LastTransaction { producer: 1, outcome });
        let ongoing = || Outcome::Ongoing(BTreeSet::from([TopicPartition::new("out", 0)]));
        let after = |before, now| known(last(before), last(now)).unwrap().outcome;
        assert_eq!(after(ongoing(), Outcome::Aborted), ongoing());
        assert_eq!(after(Outcome::Committed, Outcome::Unknown), Outcome::Committed);
        assert_eq!(after(ongoing(), Outcome::Committed), Outcome::Committed);
        assert_eq!(after(Outcome::Committed, Outcome::Aborted), Outcome::Aborted);
        assert_eq!(known(None, last(Outcome::Unknown)), last(Outcome::Unknown));
    }

    /// A producer that began after the transaction took away what was known of it.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_nobody_can_tell_is_an_error_that_says_where() {
        let test = "what_nobody_can_tell_is_an_error_that_says_where";
        let Some(mut scene) = Scene::set(test, "out") else { return };
        commit(&scene.producer);
        let mut config = scene.kafka.client();
        config.set("transactional.id", transactional_id(&scene.customer));
        let other: BaseProducer = config.create().unwrap();
        other.init_transactions(PATIENCE).unwrap();
        scene.brokers.restart(1);
        assert_eq!(scene.open_partitions(), [TopicPartition::new(scene.out.as_str(), 0)]);
        let opened = Committer::open(&scene.kafka, &scene.customer, limits(&scene.out)).await;
        let error = opened.err().unwrap();
        assert_eq!(error.kind, Kind::Recovery, "{error}");
        assert!(error.detail.as_ref().unwrap().contains(&scene.out), "{error}");
    }
}
