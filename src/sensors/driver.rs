//! Sends readings to a broker, at their scheduled times or as fast as possible.
//!
//! Each driver has one thread, which only schedules. librdkafka batches and retries; its producer is
//! idempotent, so a retry never duplicates a record. Records that fail permanently are counted and
//! fail the run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::sensors::Reading;

/// The schedule of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Each reading is sent at its time after the start.
    RealTime,
    /// Each reading is sent as soon as the producer accepts it.
    Unpaced,
}

/// Counts the delivered and failed records of a driver; shared, readable at any time.
#[derive(Debug, Default)]
pub struct DeliveryCounters {
    records: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    first_failure: std::sync::Mutex<Option<String>>,
}

impl DeliveryCounters {
    /// The number of records that the broker has acknowledged.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// The size of their values in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The number of records that failed permanently.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn record_failure(&self, error: &KafkaError, topic: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first_failure.lock() {
            first.get_or_insert_with(|| format!("topic {topic}: {error}"));
        }
    }
}

/// The longest sleep, which bounds the reaction time to a stop request.
const MAX_SLEEP: Duration = Duration::from_millis(20);
/// The time limit for delivering the records in flight at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// A producer context that counts delivery reports.
struct CountingContext(Arc<DeliveryCounters>);

impl ClientContext for CountingContext {}

impl ProducerContext for CountingContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(message) => {
                self.0.records.fetch_add(1, Ordering::Relaxed);
                self.0.bytes.fetch_add(message.payload_len() as u64, Ordering::Relaxed);
            }
            Err((error, message)) => self.0.record_failure(error, message.topic()),
        }
    }
}

/// A thread that sends readings.
#[derive(Debug)]
pub struct Driver {
    sent: Arc<DeliveryCounters>,
    thread: JoinHandle<Result<()>>,
}

impl Driver {
    /// Starts a thread that sends `readings`. `client` contains the brokers and security settings. The
    /// driver ends with the readings, or shortly after `stop` becomes true or its sender is dropped.
    pub fn start<I>(
        client: ClientConfig,
        readings: I,
        pace: Pace,
        stop: watch::Receiver<bool>,
    ) -> Result<Self>
    where
        I: Iterator<Item = Reading> + Send + 'static,
    {
        let sent = Arc::new(DeliveryCounters::default());
        let counters = sent.clone();
        let thread = std::thread::Builder::new()
            .name("sensors".to_owned())
            .spawn(move || produce(client, readings, pace, &stop, &counters))?;
        Ok(Self { sent, thread })
    }

    /// The counters of the driver.
    pub fn sent(&self) -> Arc<DeliveryCounters> {
        self.sent.clone()
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Blocks until the thread ends.
    ///
    /// # Errors
    /// The broker is unreachable, or a record failed permanently.
    pub fn join(self) -> Result<Arc<DeliveryCounters>> {
        self.thread.join().map_err(|_| Error::internal("the sensor thread panicked"))??;
        Ok(self.sent)
    }
}

/// Whether `stop` is true or its sender is dropped.
fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

fn produce(
    mut client: ClientConfig,
    readings: impl Iterator<Item = Reading>,
    pace: Pace,
    stop: &watch::Receiver<bool>,
    sent: &Arc<DeliveryCounters>,
) -> Result<()> {
    client.set("enable.idempotence", "true").set("linger.ms", "5");
    let producer: ThreadedProducer<CountingContext> =
        ThreadedProducer::from_config_and_context(&client, CountingContext(sent.clone())).map_err(
            |error| {
                Error::new(Kind::Config, "the Kafka client rejected its settings").because(error)
            },
        )?;
    let start = Instant::now();
    for reading in readings {
        let due = Duration::from_micros(u64::try_from(reading.after_us).unwrap_or(0));
        while pace == Pace::RealTime && !is_stopped(stop) && start.elapsed() < due {
            std::thread::sleep(due.saturating_sub(start.elapsed()).min(MAX_SLEEP));
        }
        if is_stopped(stop) {
            break;
        }
        send(&producer, &reading, stop, sent)?;
    }
    let unsent = |error| {
        Error::new(Kind::Kafka, "the broker did not acknowledge all readings in time")
            .because(error)
    };
    producer.flush(FLUSH_TIMEOUT).map_err(unsent)?;
    let first = sent.first_failure.lock().ok().and_then(|mut first| first.take());
    match first {
        Some(first) => {
            Err(Error::new(Kind::Kafka, format!("the broker rejected {} readings", sent.failed()))
                .detail(first))
        }
        None => Ok(()),
    }
}

/// Passes one reading to the producer, waiting while its queue is full.
fn send(
    producer: &ThreadedProducer<CountingContext>,
    reading: &Reading,
    stop: &watch::Receiver<bool>,
    sent: &DeliveryCounters,
) -> Result<()> {
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&reading.topic);
    record.key = reading.key.as_deref();
    record.payload = reading.payload.as_deref();
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                if !is_stopped(stop) =>
            {
                std::thread::sleep(Duration::from_millis(5));
                record = back;
            }
            Err((error, _)) => {
                sent.record_failure(&error, &reading.topic);
                let fatal = Error::new(
                    Kind::Kafka,
                    format!("cannot send a reading to topic {}", reading.topic),
                );
                return if is_stopped(stop) { Ok(()) } else { Err(fatal.because(error)) };
            }
        }
    }
}

/// Counts readings per topic.
pub fn count_per_topic<'a>(
    readings: impl IntoIterator<Item = &'a Reading>,
) -> BTreeMap<Arc<str>, u64> {
    readings.into_iter().fold(BTreeMap::new(), |mut counts, reading| {
        *counts.entry(reading.topic.clone()).or_default() += 1;
        counts
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::{Profile, Simulation, SimulationSettings};
    use crate::time::SECOND;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::mocking::MockCluster;
    use rdkafka::{Offset, TopicPartitionList};

    #[test]
    fn every_reading_arrives_in_order_and_on_schedule() {
        let broker = MockCluster::new(1).unwrap();
        let profile = Profile::named("customer_a").unwrap();
        for topic in &profile.topics {
            broker.create_topic(topic, 1, 1).unwrap();
        }
        let faults = "malformed=5%,duplicate=5%,tombstone=5%".parse().unwrap();
        let settings = SimulationSettings {
            rate: 300.0,
            duration_us: Some(SECOND),
            faults,
            ..SimulationSettings::default()
        };
        let readings: Vec<Reading> = Simulation::new(&profile, settings).unwrap().collect();
        let client = || {
            let mut client = ClientConfig::new();
            client.set("bootstrap.servers", broker.bootstrap_servers());
            client
        };
        let (_keep, stop) = watch::channel(false);
        let begin = Instant::now();
        let driver =
            Driver::start(client(), readings.clone().into_iter(), Pace::RealTime, stop).unwrap();
        let sent = driver.join().unwrap();
        assert!(begin.elapsed() > Duration::from_millis(900));
        assert_eq!((sent.records(), sent.failed()), (readings.len() as u64, 0));

        for (topic, count) in count_per_topic(&readings) {
            let consumer: BaseConsumer = client().set("group.id", "test").create().unwrap();
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, 0, Offset::Beginning).unwrap();
            consumer.assign(&list).unwrap();
            let mut expected = readings.iter().filter(|r| r.topic == topic);
            for _ in 0..count {
                let message = consumer.poll(Duration::from_secs(10)).unwrap().unwrap();
                assert_eq!(message.payload(), expected.next().unwrap().payload.as_deref());
            }
        }
    }

    #[test]
    fn a_stop_request_ends_the_driver() {
        let broker = MockCluster::new(1).unwrap();
        broker.create_topic("1084", 1, 1).unwrap();
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", broker.bootstrap_servers());
        let profile =
            Profile { topics: vec!["1084".to_owned()], ..Profile::named("customer_a").unwrap() };
        let simulation = Simulation::new(&profile, SimulationSettings::default()).unwrap();
        let (stop, stopping) = watch::channel(false);
        let driver = Driver::start(client, simulation, Pace::RealTime, stopping).unwrap();
        stop.send(true).unwrap();
        driver.join().unwrap();
    }
}
