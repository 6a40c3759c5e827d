//! Hanging transactions on two brokers, one of which is stopped at the wrong moment.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::Kind;
use crate::commit::committer::Committer;
use crate::commit::log_reader::{log_topic, transactional_id};
use crate::commit::tests::committer::{expected, limits, output, progress, values};
use crate::source::tests::brokers::Brokers;
use crate::source::tests::mock::unique;
use crate::source::{KafkaConfig, TransactionAdmin};
use crate::types::TopicPartition;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Two brokers; the transaction coordinator is on the first, which is never stopped.
struct TwoBrokers {
    brokers: Brokers,
    kafka: KafkaConfig,
    customer: String,
    out: String,
    producer: BaseProducer,
}

impl TwoBrokers {
    /// Begins a transaction that writes its records and its progress record, then stops the broker
    /// that leads `offline`: "out" or "log".
    fn start(test: &str, offline: &str) -> Option<Self> {
        let mut brokers = Brokers::two(test)?;
        let kafka = brokers.plain();
        let (customer, out) = (unique("c"), unique("out"));
        let log = log_topic(&customer);
        brokers.create_topic("__transaction_state", &[1]);
        brokers.create_topic(&out, &[if offline == "out" { 2 } else { 1 }]);
        brokers.create_topic(&log, &[if offline == "log" { 2 } else { 1 }]);
        let mut config = kafka.client();
        config.set("transactional.id", transactional_id(&customer));
        let producer: BaseProducer = config.create().unwrap();
        producer.init_transactions(TIMEOUT).unwrap();
        producer.begin_transaction().unwrap();
        for value in expected(&[1], 3) {
            producer.send(BaseRecord::<str, str>::to(&out).payload(&value)).unwrap();
        }
        producer.send(BaseRecord::<str, [u8]>::to(&log).payload(&progress(1))).unwrap();
        producer.flush(TIMEOUT).unwrap();
        brokers.stop(1);
        let leaderless = if offline == "out" { &out } else { &log };
        while brokers.leader(leaderless) != Some(-1) {
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(Self { brokers, kafka, customer, out, producer })
    }

    fn open_partitions(&self) -> Vec<TopicPartition> {
        let topics = [self.out.as_str().into(), log_topic(&self.customer).into()];
        let stop = AtomicBool::new(false);
        let transactions = TransactionAdmin::new(&self.kafka, &transactional_id(&self.customer));
        let transactions = transactions.unwrap();
        let last = transactions.describe_last(&stop).unwrap().unwrap();
        transactions.find_open_partitions(&topics, last.producer_id, &stop).unwrap()
    }

    /// Opens the next process's committer while the broker is stopped, restarts the broker, and
    /// checks that the committer continues with the expected outcome.
    async fn check_next_process(mut self, committed: bool) {
        let (kafka, customer) = (self.kafka.clone(), self.customer.clone());
        let limits = limits(&self.out);
        let opening = tokio::spawn(async move { Committer::open(&kafka, &customer, limits).await });
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

/// Ends the transaction with `end` while `offline` has no leader; then the next process begins.
async fn check_hanging_transaction(
    test: &str,
    offline: &str,
    end: impl Fn(&BaseProducer),
    committed: bool,
) {
    let Some(brokers) = TwoBrokers::start(test, offline) else { return };
    end(&brokers.producer);
    brokers.check_next_process(committed).await;
}

fn commit(producer: &BaseProducer) {
    producer.commit_transaction(TIMEOUT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_a_marker_in_an_output_is_completed_at_the_next_start() {
    check_hanging_transaction("a commit and an output", "out", commit, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_a_marker_in_the_log_is_completed_at_the_next_start() {
    check_hanging_transaction("a commit and the log", "log", commit, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_fenced_while_a_partition_is_offline_is_aborted_there_too() {
    check_hanging_transaction("a fence and an output", "out", |_| {}, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_aborted_while_the_log_is_offline_is_aborted_there_too() {
    let abort = |producer: &BaseProducer| producer.abort_transaction(TIMEOUT).unwrap();
    check_hanging_transaction("an abort and the log", "log", abort, false).await;
}

/// A producer that was opened after the transaction hides the transaction's outcome.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_an_error_that_names_the_partition() {
    let test = "an_unknown_outcome_is_an_error_that_names_the_partition";
    let Some(mut brokers) = TwoBrokers::start(test, "out") else { return };
    commit(&brokers.producer);
    let mut config = brokers.kafka.client();
    config.set("transactional.id", transactional_id(&brokers.customer));
    let other: BaseProducer = config.create().unwrap();
    other.init_transactions(TIMEOUT).unwrap();
    brokers.brokers.restart(1);
    assert_eq!(brokers.open_partitions(), [TopicPartition::new(brokers.out.as_str(), 0)]);
    let opened = Committer::open(&brokers.kafka, &brokers.customer, limits(&brokers.out)).await;
    let error = opened.err().unwrap();
    assert_eq!(error.kind, Kind::Recovery, "{error}");
    assert!(error.detail.as_ref().unwrap().contains(&brokers.out), "{error}");
}
