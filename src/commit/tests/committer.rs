//! Commits on the mock broker and on a real Kafka.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::Kind;
use crate::commit::committer::Committer;
use crate::commit::epoch_output::EpochOutput;
use crate::commit::log_reader::{log_topic, read_log};
use crate::sink::SizeLimits;
use crate::source::tests::mock::{Follower, Mock, new_topic, real_kafka, unique};
use crate::source::{Cluster, Isolation, KafkaConfig, NewTopic, Reader};
use crate::types::{OutRecord, TopicPartition};

pub(super) fn progress(epoch: u64) -> Bytes {
    Bytes::from(format!(r#"{{"epoch":{epoch},"process":{{"id":7,"host":"here","began":0}}}}"#))
}

pub(super) fn output(topic: &str, epoch: u64, count: usize) -> EpochOutput {
    let record = |index| OutRecord {
        topic: topic.into(),
        partition: Some(0),
        key: Some("k".into()),
        value: Some(format!("{epoch}-{index}").into()),
        headers: vec![("h".into(), None)],
        timestamp_ms: None,
    };
    EpochOutput {
        epoch,
        records: (0..count).map(record).collect(),
        progress: progress(epoch),
        offsets: vec![],
    }
}

/// Limits with Kafka's default for `topic`; a replacement has the size of the original as its value.
pub(super) fn limits(topic: &str) -> SizeLimits {
    let replace = |record: OutRecord, _| {
        let size = record.value.as_ref().map_or(0, Bytes::len);
        (OutRecord { value: Some(format!("{size} bytes").into()), ..record }, None)
    };
    SizeLimits::new(HashMap::from([(topic.into(), 1_048_588)]), Arc::new(replace))
}

/// The values of a topic's only partition, read_committed.
pub(super) async fn values(kafka: &KafkaConfig, topic: &str) -> Vec<String> {
    let tp = TopicPartition::new(topic, 0);
    let high = Cluster::connect(kafka).unwrap().watermarks(&tp).unwrap().1;
    let mut reader = Reader::start(kafka, "test", Isolation::Committed).unwrap();
    let mut follower = Follower::default();
    follower.assign(&reader, topic, 0, 0);
    follower.until_end(&mut reader, &tp, high).await;
    follower.values.remove(&tp).unwrap_or_default().into_iter().flatten().collect()
}

pub(super) fn expected(epochs: &[u64], count: usize) -> Vec<String> {
    epochs
        .iter()
        .flat_map(|epoch| (0..count).map(move |index| format!("{epoch}-{index}")))
        .collect()
}

/// Creates a customer with a log topic and an output topic on a real Kafka.
fn create_customer(kafka: &KafkaConfig) -> (String, String) {
    let customer = unique("c");
    let log = NewTopic { name: log_topic(&customer), partitions: 1, config: vec![] };
    Cluster::connect(kafka).unwrap().create_topics(&[log]).unwrap();
    (customer, new_topic(kafka, "out", 1))
}

/// Checks that epochs are committed and survive reopening, and that an oversized record does not
/// stop the pipeline.
async fn check_commits(kafka: &KafkaConfig, customer: &str, topic: &str) {
    let (committer, records) = Committer::open(kafka, customer, limits(topic)).await.unwrap();
    assert!(records.is_empty());
    for epoch in [1, 2] {
        committer.commit(output(topic, epoch, 100)).await.unwrap();
    }
    let mut large = output(topic, 3, 100);
    large.records[2].value = Some(vec![b'x'; 3_000_000].into());
    assert_eq!(committer.commit(large).await.unwrap().diverted, 0);
    assert!(
        committer.commit(output(topic, 3, 1)).await.is_err(),
        "an epoch must be larger than the last one"
    );
    committer.close().await;

    let (committer, records) = Committer::open(kafka, customer, limits(topic)).await.unwrap();
    assert_eq!(records, [progress(1), progress(2), progress(3)]);
    assert_eq!(read_log(kafka, customer).await.unwrap(), records);
    committer.close().await;
}

#[tokio::test]
async fn epochs_are_committed_to_the_mock_broker() {
    let mock = Mock::start(&[("out", 1), ("millstream.a.log", 1)]);
    check_commits(&mock.kafka, "a", "out").await;
}

#[tokio::test]
async fn epochs_are_committed_to_a_real_kafka() {
    let Some(kafka) = real_kafka("epochs_are_committed_to_a_real_kafka") else { return };
    let (customer, topic) = create_customer(&kafka);
    check_commits(&kafka, &customer, &topic).await;
    let mut wanted = expected(&[1, 2, 3], 100);
    wanted[202] = "3000000 bytes".to_owned();
    assert_eq!(values(&kafka, &topic).await, wanted, "without records of aborted transactions");
}

#[tokio::test]
async fn a_topic_that_accepts_less_than_its_reported_limit_stops_nothing() {
    let Some(kafka) = real_kafka("a_topic_that_accepts_less_than_its_reported_limit_stops_nothing")
    else {
        return;
    };
    let customer = unique("c");
    let log = NewTopic { name: log_topic(&customer), partitions: 1, config: vec![] };
    let small = NewTopic {
        name: unique("small"),
        partitions: 1,
        config: vec![("max.message.bytes".into(), "2000".into())],
    };
    let cluster = Cluster::connect(&kafka).unwrap();
    cluster.create_topics(&[log, small.clone()]).unwrap();
    let topic: Arc<str> = small.name.as_str().into();
    let reported = cluster.message_limits(std::slice::from_ref(&topic)).unwrap();
    assert_eq!(reported, HashMap::from([(topic.clone(), 2_000)]));

    let (committer, _) = Committer::open(&kafka, &customer, limits(&topic)).await.unwrap();
    let mut first = output(&topic, 1, 3);
    let random: Vec<u8> =
        std::iter::repeat_with(|| uuid::Uuid::new_v4().into_bytes()).take(500).flatten().collect();
    first.records[1].value = Some(random.into());
    committer.commit(first).await.unwrap();
    committer.commit(output(&topic, 2, 100)).await.unwrap();
    let mut wanted = expected(&[1], 3);
    wanted[1] = "8000 bytes".to_owned();
    wanted.extend(expected(&[2], 100));
    assert_eq!(values(&kafka, &topic).await, wanted);
}

#[tokio::test]
async fn an_unknown_outcome_is_resolved_by_the_log() {
    let mock = Mock::start(&[("out", 1), ("millstream.a.log", 1)]);
    let (committer, _) = Committer::open(&mock.kafka, "a", limits("out")).await.unwrap();
    committer.commit(output("out", 1, 3)).await.unwrap();
    // The mock has written the records but answers the commit with an error: the epoch is done.
    mock.cluster.request_errors(
        RDKafkaApiKey::EndTxn,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE],
    );
    committer.commit(output("out", 2, 3)).await.unwrap();
    // The connection breaks: librdkafka repeats the request, and the producer is replaced after it.
    mock.cluster
        .request_errors(RDKafkaApiKey::EndTxn, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT]);
    committer.commit(output("out", 3, 3)).await.unwrap();
    // The error comes before anything is written: the epoch is sent again.
    mock.cluster.request_errors(
        RDKafkaApiKey::AddPartitionsToTxn,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING],
    );
    committer.commit(output("out", 4, 3)).await.unwrap();
    assert_eq!(values(&mock.kafka, "out").await, expected(&[1, 2, 3, 4], 3));
    let log: Vec<Bytes> = (1..=4).map(progress).collect();
    assert_eq!(read_log(&mock.kafka, "a").await.unwrap(), log);
}

#[tokio::test]
async fn a_missing_topic_is_named() {
    let Some(kafka) = real_kafka("a_missing_topic_is_named") else { return };
    let error = Committer::open(&kafka, &unique("missing"), limits("out")).await.err().unwrap();
    assert_eq!(error.kind, Kind::Config, "{error}");
    assert!(error.message.contains(".log does not exist"), "{error}");
}

#[tokio::test]
async fn a_later_process_fences_an_earlier_one() {
    let Some(kafka) = real_kafka("a_later_process_fences_an_earlier_one") else { return };
    let (customer, topic) = create_customer(&kafka);
    let (old, _) = Committer::open(&kafka, &customer, limits(&topic)).await.unwrap();
    old.commit(output(&topic, 1, 10)).await.unwrap();
    let (new, records) = Committer::open(&kafka, &customer, limits(&topic)).await.unwrap();
    assert_eq!(records, [progress(1)]);
    let error = old.commit(output(&topic, 2, 10)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Fenced, "{error}");
    let mut second = output(&topic, 2, 10);
    second.progress =
        Bytes::from_static(br#"{"epoch":2,"process":{"id":8,"host":"there","began":0}}"#);
    new.commit(second).await.unwrap();
    let error = old.commit(output(&topic, 2, 10)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Fenced, "{error}");
    assert!(
        error.message.contains("process 8 on there") && error.message.contains("epoch 2"),
        "{error}"
    );
    new.commit(output(&topic, 3, 10)).await.unwrap();
    assert_eq!(values(&kafka, &topic).await, expected(&[1, 2, 3], 10));
}

#[tokio::test]
async fn source_offsets_are_committed_for_lag_tools() {
    let Some(kafka) = real_kafka("source_offsets_are_committed_for_lag_tools") else { return };
    let (customer, topic) = create_customer(&kafka);
    let (committer, _) = Committer::open(&kafka, &customer, limits(&topic)).await.unwrap();
    let tp = TopicPartition::new(topic.as_str(), 0);
    let mut first = output(&topic, 1, 1);
    first.offsets = vec![(tp.clone(), 42)];
    committer.commit(first).await.unwrap();
    let cluster = Cluster::connect(&kafka).unwrap();
    let offsets = cluster.group_offsets(&format!("millstream.{customer}"), &[tp]).unwrap();
    assert_eq!(offsets, [Some(42)]);
}
