//! The events: the content of event `n`, the sending thread, and the expected results.
//!
//! Event `n` is record `n / 4` of partition `n % 4`, so every result follows from the number of events.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use crate::job::config;

pub const PARTITIONS: u64 = 4;
pub const KEYS: u64 = 1_000;
/// The key whose events are alerts: one event in a thousand, in every partition.
const ALERT_KEY: u64 = 7;
/// Wednesday, 2024-05-01T00:00:00Z.
pub const BEGINNING_US: u64 = 1_714_521_600_000_000;
/// Event time between two events. At any rate, a window of 100 seconds contains a million events, and
/// dates become quiet, so that compaction sorts them.
const STEP_US: u64 = 100;
pub const WINDOW_US: u64 = 100_000_000;
/// A rate that no producer reaches.
pub const ALL_OUT: u64 = u64::MAX;

pub const SCHEMA: &str = "SET millstream.timezone = 'UTC';
CREATE STREAM events (
  n BIGINT NOT NULL, key BIGINT NOT NULL, value BIGINT NOT NULL, us BIGINT NOT NULL,
  at TIMESTAMP AS to_timestamp_micros(us),
  WATERMARK FOR at AS at - INTERVAL '1' SECOND
) WITH (topics = '{topic}');
";
pub const QUERIES: [(&str, &str); 2] = [
    ("alerts", "SELECT n FROM events WHERE key = 7"),
    (
        "windows",
        // Every row passes the filter. It only takes time, so that a producer on the other cores can
        // send more than the engine processes.
        "SELECT window_start, key, count(*) AS events, sum(value) AS total,
  count(DISTINCT md5(CAST(n AS VARCHAR)))
    FILTER (WHERE levenshtein(md5(CAST(n AS VARCHAR)), md5(CAST(us AS VARCHAR)))
      + levenshtein(md5(CAST(us AS VARCHAR)), md5(CAST(value AS VARCHAR))) >= 0) AS numbers
FROM TUMBLE(TABLE events, DESCRIPTOR(at), INTERVAL '100' SECOND) GROUP BY window_start, window_end, key",
    ),
];

/// The n-th event.
pub struct Event {
    pub key: u64,
    pub value: u64,
    pub us: u64,
}

impl Event {
    pub fn new(n: u64) -> Self {
        Self { key: n / PARTITIONS % KEYS, value: n % 997, us: BEGINNING_US + n * STEP_US }
    }

    /// The number of its window, counted from the first one.
    fn window(&self) -> usize {
        usize::try_from((self.us - BEGINNING_US) / WINDOW_US).unwrap()
    }
}

/// Returns true if the n-th event is an alert.
pub fn is_alert(n: u64) -> bool {
    Event::new(n).key == ALERT_KEY
}

/// The expected count and sum, by window and key. All numbers of events are distinct.
pub fn expected(events: u64) -> Vec<[(u64, u64); KEYS as usize]> {
    let mut windows = Vec::new();
    for n in 0..events {
        let event = Event::new(n);
        if windows.len() <= event.window() {
            windows.push([(0, 0); KEYS as usize]);
        }
        let (count, sum) = &mut windows[event.window()][usize::try_from(event.key).unwrap()];
        *count += 1;
        *sum += event.value;
    }
    windows
}

/// State that is shared with the sending thread.
#[derive(Default)]
struct Shared {
    /// Events a second.
    rate: AtomicU64,
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

struct Acknowledged(Arc<Shared>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        // A failed event stays missing, which `Load::end` detects.
        if result.is_ok() {
            self.0.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A thread that sends events in order at a variable rate.
pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<u64>,
}

impl Load {
    pub fn start(brokers: &str, topic: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let producer: ThreadedProducer<Acknowledged> = config(brokers)
            .set("linger.ms", "5")
            .set("batch.size", "262144")
            .set("compression.type", "zstd")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("queue.buffering.max.messages", "200000")
            .create_with_context(Acknowledged(shared.clone()))
            .unwrap();
        let (topic, thread_shared) = (topic.to_owned(), shared.clone());
        let thread = std::thread::spawn(move || send(&producer, &topic, &thread_shared));
        Self { shared, thread }
    }

    /// Sets the rate in events per second.
    pub fn rate(&self, rate: u64) {
        self.shared.rate.store(rate, Ordering::Relaxed);
    }

    /// Number of events that the broker has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the thread; returns the number of events.
    pub fn end(self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        let sent = self.thread.join().unwrap();
        assert_eq!(
            self.shared.acknowledged.load(Ordering::Relaxed),
            sent,
            "some events were not acknowledged"
        );
        sent
    }
}

fn send(producer: &ThreadedProducer<Acknowledged>, topic: &str, shared: &Shared) -> u64 {
    let (mut sent, mut text) = (0, String::new());
    let (mut rate, mut base, mut since) = (0, 0, Instant::now());
    while !shared.stop.load(Ordering::Relaxed) {
        let wanted = shared.rate.load(Ordering::Relaxed);
        if wanted != rate {
            (rate, base, since) = (wanted, sent, Instant::now());
        }
        let due = u128::from(rate) * since.elapsed().as_micros() / 1_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX).saturating_add(base);
        // In steps, so that a new rate takes effect soon.
        let until = due.min(sent + 20_000);
        (sent..until).for_each(|n| send_one(producer, topic, n, &mut text));
        sent = until;
        if sent >= due {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    producer.flush(Duration::from_secs(300)).unwrap();
    sent
}

fn send_one(producer: &ThreadedProducer<Acknowledged>, topic: &str, n: u64, text: &mut String) {
    let Event { key, value, us } = Event::new(n);
    text.clear();
    write!(text, r#"{{"n":{n},"key":{key},"value":{value},"us":{us}}}"#).unwrap();
    let partition = i32::try_from(n % PARTITIONS).unwrap();
    let record: BaseRecord<'_, (), str> = BaseRecord::to(topic).partition(partition);
    let mut record = record.payload(text.as_str());
    while let Err((_, back)) = producer.send(record) {
        std::thread::sleep(Duration::from_millis(1));
        record = back;
    }
}
