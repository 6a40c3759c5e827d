//! A real Kafka, at the address in `MILLSTREAM_TEST_KAFKA` (.ci/run sets it; .ci/kafka starts one).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The brokers of `MILLSTREAM_TEST_KAFKA`.
#[derive(Clone)]
pub struct Kafka {
    pub brokers: String,
}

/// One record that was read from a topic.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Read {
    /// The value as JSON; panics if it is not valid JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.value.as_deref().unwrap()).unwrap()
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<String> {
        let value = self.headers.iter().find(|(n, _)| n == name)?.1.as_deref()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

/// One record to be produced.
#[derive(Debug, Clone, Default)]
pub struct Write {
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Write {
    pub fn value(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    pub fn to(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }
}

/// The first offset of a partition and its end offset. Retries while a new topic has no leader.
fn bounds_of(consumer: &BaseConsumer, topic: &str, partition: i32) -> (i64, i64) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match consumer.fetch_watermarks(topic, partition, TIMEOUT) {
            Err(error) if Instant::now() < deadline => {
                eprintln!("{topic}/{partition}: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
            bounds => return bounds.unwrap(),
        }
    }
}

impl Kafka {
    /// The brokers, or `None` after printing that the test is skipped. If MILLSTREAM_REQUIRE_KAFKA is
    /// set, a missing address fails the test, so that a passed run has run every test.
    pub fn require(test: &str) -> Option<Self> {
        match std::env::var("MILLSTREAM_TEST_KAFKA") {
            Ok(brokers) if !brokers.is_empty() => Some(Self { brokers }),
            _ if std::env::var_os("MILLSTREAM_REQUIRE_KAFKA").is_some() => {
                panic!("{test}: MILLSTREAM_TEST_KAFKA is not set")
            }
            _ => {
                eprintln!(
                    "{test}: needs Kafka (set MILLSTREAM_TEST_KAFKA, see .ci/kafka); skipped"
                );
                None
            }
        }
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    pub fn create(&self, topic: &str, partitions: i32) {
        self.create_with(topic, partitions, &[]);
    }

    pub fn create_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let mut wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            wanted = wanted.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let made = futures::executor::block_on(admin.create_topics([&wanted], &options)).unwrap();
        for result in made {
            result.unwrap();
        }
    }

    /// Produces in order and waits until the broker has everything.
    pub fn produce(&self, topic: &str, records: impl IntoIterator<Item = Write>) {
        self.producer().produce(topic, records);
    }

    /// A producer for repeated use.
    pub fn producer(&self) -> SyncProducer {
        let producer: ThreadedProducer<_> = self
            .client()
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("queue.buffering.max.messages", "200000")
            .create()
            .unwrap();
        SyncProducer(producer)
    }

    /// Produces records that are larger than Kafka's default limit.
    pub fn produce_large(&self, topic: &str, records: impl IntoIterator<Item = Write>) {
        self.produce_with(topic, &[("message.max.bytes", "100000000")], records);
    }

    /// Produces records with additional client settings.
    pub fn produce_with(
        &self,
        topic: &str,
        settings: &[(&str, &str)],
        records: impl IntoIterator<Item = Write>,
    ) {
        let mut client = self.client();
        for (key, value) in settings {
            client.set(*key, *value);
        }
        let producer: ThreadedProducer<_> = client.create().unwrap();
        for record in records {
            send(&producer, topic, &record);
        }
        producer.flush(Duration::from_secs(120)).unwrap();
    }

    pub fn topics(&self) -> HashSet<String> {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(None, TIMEOUT).unwrap();
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    }

    /// The partitions of a topic; empty if it does not exist.
    pub fn partitions(&self, topic: &str) -> Vec<i32> {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT).unwrap();
        metadata.topics()[0].partitions().iter().map(|p| p.id()).collect()
    }

    /// All committed records of a topic, in offset order per partition. Waits until no transaction is
    /// open below the end, so that transactions of killed producers are included.
    pub fn read(&self, topic: &str) -> Vec<Read> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "millstream-tests")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let partitions = self.partitions(topic);
        self.await_no_open_transaction(&consumer, topic, &partitions);
        let mut list = TopicPartitionList::new();
        for partition in &partitions {
            list.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&list).unwrap();
        let mut open: HashSet<i32> = partitions.into_iter().collect();
        let mut records = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(120);
        while !open.is_empty() {
            assert!(Instant::now() < deadline, "timed out reading {topic} to its end");
            match consumer.poll(Duration::from_millis(200)) {
                None => {}
                Some(Ok(message)) => records.push(read(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) => panic!("{topic}: {error}"),
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    /// Calls `seen` with every committed record of a topic with one partition, from its beginning on,
    /// until `stop` is set.
    #[cfg(feature = "failpoints")]
    pub fn follow(
        &self,
        topic: &str,
        stop: &std::sync::atomic::AtomicBool,
        mut seen: impl FnMut(Read),
    ) {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "millstream-tests")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "20")
            .create()
            .unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&list).unwrap();
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(message)) => seen(read(&message)),
                Some(Err(error)) => eprintln!("{topic}: {error}"),
            }
        }
    }

    fn await_no_open_transaction(&self, committed: &BaseConsumer, topic: &str, partitions: &[i32]) {
        let all: BaseConsumer =
            self.client().set("isolation.level", "read_uncommitted").create().unwrap();
        let deadline = Instant::now() + Duration::from_secs(90);
        for partition in partitions {
            let (_, end) = bounds_of(&all, topic, *partition);
            while bounds_of(committed, topic, *partition).1 < end {
                assert!(Instant::now() < deadline, "{topic}/{partition}: a transaction stays open");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// The end offset of each partition, including open transactions.
    pub fn ends(&self, topic: &str) -> Vec<(i32, i64)> {
        self.bounds(topic).into_iter().map(|(partition, (_, end))| (partition, end)).collect()
    }

    /// The first available offset of each partition.
    pub fn begins(&self, topic: &str) -> Vec<(i32, i64)> {
        self.bounds(topic).into_iter().map(|(partition, (begin, _))| (partition, begin)).collect()
    }

    fn bounds(&self, topic: &str) -> Vec<(i32, (i64, i64))> {
        let all: BaseConsumer =
            self.client().set("isolation.level", "read_uncommitted").create().unwrap();
        let bounds = |p: i32| bounds_of(&all, topic, p);
        self.partitions(topic).into_iter().map(|p| (p, bounds(p))).collect()
    }

    /// Deletes the records of a partition before `offset`, as retention does.
    pub fn truncate(&self, topic: &str, partition: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let done = futures::executor::block_on(admin.delete_records(&list, &options)).unwrap();
        done.elements().iter().for_each(|element| element.error().unwrap());
        assert!(self.begins(topic).contains(&(partition, offset)));
    }

    /// Deletes a topic if it exists, and waits until it is gone.
    pub fn delete(&self, topic: &str) {
        if !self.topics().contains(topic) {
            return;
        }
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
        let done = futures::executor::block_on(admin.delete_topics(&[topic], &options)).unwrap();
        done.into_iter().for_each(|result| drop(result.unwrap()));
        let deadline = Instant::now() + TIMEOUT;
        while self.topics().contains(topic) {
            assert!(Instant::now() < deadline, "{topic} is not deleted");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A producer that waits for acknowledgements.
pub struct SyncProducer(ThreadedProducer<rdkafka::producer::DefaultProducerContext>);

impl SyncProducer {
    /// Produces in order and waits until the broker has everything.
    pub fn produce(&self, topic: &str, records: impl IntoIterator<Item = Write>) {
        for record in records {
            send(&self.0, topic, &record);
        }
        self.0.flush(Duration::from_secs(120)).unwrap();
    }
}

fn send(
    producer: &ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
    topic: &str,
    record: &Write,
) {
    loop {
        let mut outgoing: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        outgoing.partition = record.partition;
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        if !record.headers.is_empty() {
            let mut headers = OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            outgoing.headers = Some(headers);
        }
        match producer.send(outgoing) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((error, _)) => panic!("{topic}: {error}"),
        }
    }
}

fn read(message: &rdkafka::message::BorrowedMessage<'_>) -> Read {
    let headers = match message.headers() {
        None => Vec::new(),
        Some(headers) => {
            headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect()
        }
    };
    Read {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}
