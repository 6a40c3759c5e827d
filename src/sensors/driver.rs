//! Sends readings to a broker, at their pace or as fast as it takes them.
//!
//! One thread a driver: librdkafka batches and retries (idempotent, so a retry never doubles a
//! record); this only keeps time. What the broker refused for good is counted, and fails the run.

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

/// When readings go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Each when its time after the start has come.
    RealTime,
    /// Each as soon as the broker's client takes it.
    Unpaced,
}

/// What a driver has done so far; shared, read at any time.
#[derive(Debug, Default)]
pub struct DeliveryCounters {
    records: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    first_failure: std::sync::Mutex<Option<String>>,
}

impl DeliveryCounters {
    /// Records that the broker has taken.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Bytes of their values.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Records that it refused for good.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    fn fail(&self, error: &KafkaError, topic: &str) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first_failure.lock() {
            first.get_or_insert_with(|| format!("topic {topic}: {error}"));
        }
    }
}

/// The longest nap: how soon a driver notices that it is to stop.
const NAP: Duration = Duration::from_millis(20);
/// How long the broker has for what is still under way at the end.
const FLUSH: Duration = Duration::from_secs(10);

/// Counts what became of each record.
struct Counting(Arc<DeliveryCounters>);

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(message) => {
                self.0.records.fetch_add(1, Ordering::Relaxed);
                self.0.bytes.fetch_add(message.payload_len() as u64, Ordering::Relaxed);
            }
            Err((error, message)) => self.0.fail(error, message.topic()),
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
    /// Starts sending. `client` names the brokers and all security settings; the driver ends with
    /// the readings, or soon after `stop` turns true or its sender is gone.
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
        let counting = sent.clone();
        let thread = std::thread::Builder::new()
            .name("sensors".to_owned())
            .spawn(move || produce(client, readings, pace, &stop, &counting))?;
        Ok(Self { sent, thread })
    }

    /// What it has done so far.
    pub fn sent(&self) -> Arc<DeliveryCounters> {
        self.sent.clone()
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the end. Blocks. Fails if the broker could not be reached or refused a record.
    pub fn join(self) -> Result<Arc<DeliveryCounters>> {
        self.thread.join().map_err(|_| Error::internal("the sensors' thread panicked"))??;
        Ok(self.sent)
    }
}

/// `stop` is true, or nobody is left who could say so.
fn stopped(stop: &watch::Receiver<bool>) -> bool {
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
    let producer: ThreadedProducer<Counting> = ThreadedProducer::from_config_and_context(
        &client,
        Counting(sent.clone()),
    )
    .map_err(|error| {
        Error::new(Kind::Config, "the Kafka client did not accept its settings").because(error)
    })?;
    let start = Instant::now();
    for reading in readings {
        let due = Duration::from_micros(u64::try_from(reading.after_us).unwrap_or(0));
        while pace == Pace::RealTime && !stopped(stop) && start.elapsed() < due {
            std::thread::sleep(due.saturating_sub(start.elapsed()).min(NAP));
        }
        if stopped(stop) {
            break;
        }
        send(&producer, &reading, stop, sent)?;
    }
    let unsent = |error| {
        Error::new(Kind::Kafka, "the broker did not take all readings in time").because(error)
    };
    producer.flush(FLUSH).map_err(unsent)?;
    let first = sent.first_failure.lock().ok().and_then(|mut first| first.take());
    match first {
        Some(first) => {
            Err(Error::new(Kind::Kafka, format!("the broker refused {} readings", sent.failed()))
                .detail(first))
        }
        None => Ok(()),
    }
}

/// Hands one reading to the client, waiting while its queue is full.
fn send(
    producer: &ThreadedProducer<Counting>,
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
                if !stopped(stop) =>
            {
                std::thread::sleep(Duration::from_millis(5));
                record = back;
            }
            Err((error, _)) => {
                sent.fail(&error, &reading.topic);
                let fatal = Error::new(
                    Kind::Kafka,
                    format!("a reading for topic {} was not accepted", reading.topic),
                );
                return if stopped(stop) { Ok(()) } else { Err(fatal.because(error)) };
            }
        }
    }
}

/// Records per topic, for a report.
pub fn per_topic<'a>(readings: impl IntoIterator<Item = &'a Reading>) -> BTreeMap<Arc<str>, u64> {
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
    fn every_reading_reaches_its_topic_in_order_and_in_time() {
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

        for (topic, count) in per_topic(&readings) {
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
    fn stop_ends_it_at_once() {
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
