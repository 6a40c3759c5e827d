//! Test support for readers and the log: brokers, topics, records.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

use crate::source::*;
use crate::types::TopicPartition;

/// The mock cluster of librdkafka, with one broker, inside the process.
pub(crate) struct Mock {
    pub(crate) cluster: MockCluster<'static, DefaultProducerContext>,
    pub(crate) kafka: KafkaConfig,
}

impl Mock {
    pub(crate) fn start(topics: &[(&str, i32)]) -> Self {
        let cluster = MockCluster::new(1).unwrap();
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1).unwrap();
        }
        let kafka = KafkaConfig::new(cluster.bootstrap_servers());
        Self { cluster, kafka }
    }
}

/// Returns the real Kafka cluster that `MILLSTREAM_TEST_KAFKA=host:port` names. `None`: the variable
/// is not set, and the test is skipped.
pub(crate) fn real_kafka(test: &str) -> Option<KafkaConfig> {
    match std::env::var("MILLSTREAM_TEST_KAFKA") {
        Ok(brokers) if !brokers.is_empty() => Some(KafkaConfig::new(brokers)),
        _ if std::env::var_os("MILLSTREAM_REQUIRE_KAFKA").is_some() => {
            panic!("{test}: MILLSTREAM_TEST_KAFKA is not set")
        }
        _ => {
            eprintln!("{test} needs Kafka: set MILLSTREAM_TEST_KAFKA=host:port");
            None
        }
    }
}

/// Returns the settings for each implementation of the reader: librdkafka, then native.
pub(crate) fn both_readers(kafka: &KafkaConfig) -> [KafkaConfig; 2] {
    ["rdkafka", "native"].map(|reader| with_settings(kafka, &[("millstream.reader", reader)]))
}

/// Returns `kafka` with additional settings.
pub(crate) fn with_settings(kafka: &KafkaConfig, settings: &[(&str, &str)]) -> KafkaConfig {
    let mut kafka = kafka.clone();
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    kafka.settings.extend(settings);
    kafka
}

/// Returns a name that no other test run uses.
pub(crate) fn unique(name: &str) -> String {
    format!("test-{name}-{}", uuid::Uuid::new_v4().simple())
}

/// Creates a topic and returns its name.
pub(crate) fn new_topic(kafka: &KafkaConfig, name: &str, partitions: i32) -> String {
    let name = unique(name);
    let topic = NewTopic { name: name.clone(), partitions, config: vec![] };
    Cluster::connect(kafka).unwrap().create_topics(&[topic]).unwrap();
    name
}

/// Creates a producer with the given default settings.
pub(crate) fn producer(kafka: &KafkaConfig, settings: &[(&str, &str)]) -> BaseProducer {
    kafka.client_with("test", settings, &[]).create().unwrap()
}

/// Adds a record to the queue of the producer. A record with a key also gets two headers.
pub(crate) fn send(
    producer: &BaseProducer,
    topic: &str,
    partition: i32,
    key: Option<&str>,
    value: Option<&str>,
) {
    let mut record = BaseRecord::to(topic).partition(partition);
    (record.key, record.payload) = (key, value);
    if key.is_some() {
        let headers = OwnedHeaders::new().insert(Header { key: "h", value: key });
        record = record.headers(headers.insert(Header::<&str> { key: "none", value: None }));
    }
    while let Err((_, rejected)) = producer.send(record) {
        producer.poll(Duration::from_millis(5));
        record = rejected;
    }
}

/// Sends `count` records `prefix-0`, `prefix-1`, ... and waits for their delivery.
pub(crate) fn fill(kafka: &KafkaConfig, topic: &str, partition: i32, prefix: &str, count: usize) {
    let producer = producer(kafka, &[]);
    for index in 0..count {
        send(&producer, topic, partition, None, Some(&format!("{prefix}-{index}")));
    }
    producer.flush(Duration::from_secs(20)).unwrap();
}

/// Sends values to partition 0 and waits for their delivery.
pub(crate) fn fill_with(kafka: &KafkaConfig, topic: &str, values: &[String]) {
    let producer = producer(kafka, &[]);
    for value in values {
        send(&producer, topic, 0, None, Some(value));
    }
    producer.flush(Duration::from_secs(20)).unwrap();
}

/// Collects the events of a reader and checks its promises.
#[derive(Default)]
pub(crate) struct Follower {
    pub(crate) positions: HashMap<TopicPartition, i64>,
    pub(crate) values: HashMap<TopicPartition, Vec<Option<String>>>,
    pub(crate) ends: HashMap<TopicPartition, i64>,
}

impl Follower {
    pub(crate) fn assign(
        &mut self,
        reader: &Reader,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> TopicPartition {
        let tp = TopicPartition::new(topic, partition);
        self.positions.insert(tp.clone(), offset);
        reader.assign(&[(tp.clone(), offset)]).unwrap();
        tp
    }

    /// Receives one event and checks that a chunk begins where the previous one ended.
    pub(crate) async fn step(&mut self, reader: &mut Reader) -> crate::Result<()> {
        let event = tokio::time::timeout(Duration::from_secs(30), reader.next())
            .await
            .expect("no event within 30 s")?;
        match event {
            Event::Chunk(chunk) => {
                let tp = TopicPartition::new(Arc::clone(&chunk.topic), chunk.partition);
                let position = self
                    .positions
                    .get_mut(&tp)
                    .expect("a chunk of a partition that is not assigned");
                assert_eq!(chunk.first_offset, *position, "{tp}");
                let offsets: Vec<i64> = chunk.records.iter().map(|record| record.offset).collect();
                assert!(offsets.is_sorted_by(|a, b| a < b) && !offsets.is_empty());
                assert!(
                    offsets[0] >= chunk.first_offset
                        && offsets[offsets.len() - 1] < chunk.next_offset
                );
                *position = chunk.next_offset;
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let values = chunk.records.iter().map(|record| chunk.value(record).map(text));
                self.values.entry(tp).or_default().extend(values);
            }
            Event::End { partition, position } => {
                assert!(self.positions[&partition] <= position);
                self.positions.insert(partition.clone(), position);
                self.ends.insert(partition, position);
            }
        }
        Ok(())
    }

    /// Receives events until the end of a partition is at `position` or later.
    pub(crate) async fn until_end(
        &mut self,
        reader: &mut Reader,
        tp: &TopicPartition,
        position: i64,
    ) {
        // The marker of the last commit may come after it.
        while self.ends.get(tp) < Some(&position) {
            self.step(reader).await.unwrap();
        }
    }
}
