//! The reader of Kafka topics: an own thread that fills a queue bounded in bytes.
//!
//! Promises:
//! - every assigned partition's chunks come in offset order and leave no gap between them (see
//!   [`Chunk`]); each time that a partition's end is reached, an [`Event::End`] says so;
//! - the queue holds no more than about [`QUEUE_BYTES`]; when it is full, the thread stops
//!   polling, and librdkafka's own queue (16 MB for all partitions) then stops fetching;
//! - nothing is skipped: what cannot be read is an error, and the reader's last word.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::chunk::{Chunk, Record};
use super::config::KafkaConfig;
use super::fetch::{Assignment, Fetcher};
use super::partition::TopicPartition;
use crate::{Error, Result};

/// How much the queue between thread and pipeline holds, in bytes.
pub const QUEUE_BYTES: usize = 32 << 20;
/// How long the thread sleeps in librdkafka before it looks whether it is wanted still.
const POLL_WAIT: Duration = Duration::from_millis(100);

/// Which records of transactions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Those of committed transactions only, up to the first open one.
    Committed,
    /// All, those of open and aborted transactions too.
    Uncommitted,
}

impl Isolation {
    /// As librdkafka spells it.
    pub(super) fn level(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// What a reader tells.
#[derive(Debug, Clone)]
pub enum Event {
    /// Records of one partition; at least one.
    Chunk(Chunk),
    /// A partition's end was reached just now.
    End {
        /// Which.
        partition: TopicPartition,
        /// The position there: the offset of the next record to come, after gaps at the end.
        position: i64,
    },
}

impl Event {
    /// Bytes of memory that it takes, about.
    fn size(&self) -> usize {
        match self {
            Self::Chunk(chunk) => chunk.bytes.len() + chunk.records.len() * size_of::<Record>(),
            Self::End { .. } => 64,
        }
    }
}

/// How full the queue is.
#[derive(Default)]
struct Budget {
    used: Mutex<usize>,
    less: Condvar,
    stop: AtomicBool,
}

impl Budget {
    fn add(&self, size: usize) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) += size;
    }

    fn give_back(&self, size: usize) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) -= size;
        self.less.notify_one();
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.less.notify_one();
    }

    /// Waits until there is room. False: the reader is gone.
    fn wait(&self) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used >= QUEUE_BYTES && !self.stop.load(Ordering::Acquire) {
            let waited = self.less.wait_timeout(used, POLL_WAIT);
            used = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        !self.stop.load(Ordering::Acquire)
    }
}

/// Reads assigned partitions. Dropping it ends its thread, within about 100 ms.
pub struct Reader {
    events: mpsc::UnboundedReceiver<Result<Event>>,
    budget: Arc<Budget>,
    assignment: Arc<Assignment>,
}

impl Reader {
    /// Starts the thread; it reads nothing until [`Reader::assign`]. `group` names the reader to
    /// the brokers; no group is joined and no offset committed.
    ///
    /// # Errors
    /// Settings that librdkafka refuses. That no broker answers is no error here: the reader
    /// warns once and tries on.
    pub fn start(kafka: &KafkaConfig, group: &str, isolation: Isolation) -> Result<Self> {
        let fetcher = Fetcher::new(kafka, group, isolation)?;
        let assignment = fetcher.assignment();
        let budget = Arc::new(Budget::default());
        let (sender, events) = mpsc::unbounded_channel();
        let shared = Arc::clone(&budget);
        std::thread::Builder::new()
            .name("kafka-reader".to_owned())
            .spawn(move || read(fetcher, &shared, &sender))?;
        Ok(Self { events, budget, assignment })
    }

    /// Adds partitions, each read from an offset on, to those that are read already. Takes some
    /// milliseconds at most.
    ///
    /// # Errors
    /// A negative offset, or a partition that is assigned already. That a topic or offset does
    /// not exist is told by [`Reader::next`].
    pub fn assign(&self, add: &[(TopicPartition, i64)]) -> Result<()> {
        self.assignment.assign(add)
    }

    /// Stops fetching these partitions. Chunks that are in the queue already still come.
    pub fn pause(&self, partitions: &[TopicPartition]) {
        self.note("paused", self.assignment.pause(partitions));
    }

    /// Fetches paused partitions again, from where their chunks ended. One that is at its end
    /// tells its end again.
    pub fn resume(&self, partitions: &[TopicPartition]) {
        self.note("resumed", self.assignment.resume(partitions));
    }

    /// Partitions change hands within the client only: this fails when it is closing.
    fn note(&self, what: &str, outcome: Result<()>) {
        if let Err(error) = outcome {
            tracing::warn!("partitions could not be {what}: {error}");
        }
    }

    /// The next event. Cancelling it loses none.
    ///
    /// # Errors
    /// What cannot be read: an offset that is gone or a topic that is (`Kind::Recovery`, with
    /// what was wanted and what there is), a corrupt batch, a permission. It is final.
    pub async fn next(&mut self) -> Result<Event> {
        match self.events.recv().await {
            Some(Ok(event)) => {
                self.budget.give_back(event.size());
                Ok(event)
            }
            Some(Err(error)) => Err(error),
            None => Err(Error::internal("the Kafka reader has stopped after its error")),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.budget.stop();
    }
}

/// The thread.
fn read(mut fetcher: Fetcher, budget: &Budget, sender: &mpsc::UnboundedSender<Result<Event>>) {
    let mut events = VecDeque::new();
    while budget.wait() {
        let outcome = fetcher.poll(POLL_WAIT, &mut events);
        for event in events.drain(..) {
            budget.add(event.size());
            if sender.send(Ok(event)).is_err() {
                return;
            }
        }
        if let Err(error) = outcome {
            // Nobody listens any more when this fails.
            let _ = sender.send(Err(error));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::Producer;

    use super::super::testing::{
        Follower, Mock, fill, new_topic, producer, real_kafka, send, unique,
    };
    use super::super::{Cluster, NewTopic};
    use super::*;
    use crate::Kind;

    fn numbered(prefix: &str, count: usize) -> Vec<Option<String>> {
        (0..count).map(|index| Some(format!("{prefix}-{index}"))).collect()
    }

    /// Reading from the middle, joining a topic while running, pausing: nothing lost or twice.
    async fn follows(kafka: &KafkaConfig, first: &str, second: &str) {
        fill(kafka, first, 0, "a", 3000);
        fill(kafka, first, 1, "b", 500);
        let mut reader = Reader::start(kafka, &unique("group"), Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let a = follower.assign(&reader, first, 0, 1000);
        let b = follower.assign(&reader, first, 1, 0);
        follower.until_end(&mut reader, &a, 3000).await;
        follower.until_end(&mut reader, &b, 500).await;
        assert_eq!(follower.values[&a], numbered("a", 3000)[1000..]);
        assert_eq!(follower.values[&b], numbered("b", 500));

        let c = follower.assign(&reader, second, 0, 0);
        follower.until_end(&mut reader, &c, 0).await;
        reader.pause(std::slice::from_ref(&a));
        fill(kafka, first, 0, "later", 10);
        fill(kafka, second, 0, "c", 10);
        follower.until_end(&mut reader, &c, 10).await;
        assert_eq!(follower.values[&a].len(), 2000, "a paused partition is silent");
        reader.resume(std::slice::from_ref(&a));
        follower.until_end(&mut reader, &a, 3010).await;
        assert_eq!(follower.values[&a][2000..], numbered("later", 10));
        assert!(reader.assign(&[(a, 0)]).is_err(), "assigned already");
    }

    #[tokio::test]
    async fn a_reader_follows_topics_of_the_mock_broker() {
        let mock = Mock::start(&[("one", 2), ("two", 1)]);
        follows(&mock.kafka, "one", "two").await;
    }

    #[tokio::test]
    async fn a_reader_follows_topics_of_a_real_kafka() {
        let Some(kafka) = real_kafka("a_reader_follows_topics_of_a_real_kafka") else { return };
        let (first, second) = (new_topic(&kafka, "one", 2), new_topic(&kafka, "two", 1));
        follows(&kafka, &first, &second).await;
    }

    #[tokio::test]
    async fn a_resumed_partition_tells_its_end_again() {
        let mock = Mock::start(&[("one", 1)]);
        fill(&mock.kafka, "one", 0, "a", 10);
        let mut reader = Reader::start(&mock.kafka, "g", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let a = follower.assign(&reader, "one", 0, 0);
        follower.until_end(&mut reader, &a, 10).await;
        reader.pause(std::slice::from_ref(&a));
        reader.resume(std::slice::from_ref(&a));
        follower.ends.clear();
        follower.until_end(&mut reader, &a, 10).await;
        assert_eq!(follower.values[&a].len(), 10);
    }

    #[tokio::test]
    async fn keys_headers_tombstones_and_empty_values_are_told_apart() {
        let mock = Mock::start(&[("one", 1)]);
        let producer = producer(&mock.kafka, &[]);
        send(&producer, "one", 0, Some("key"), Some("value"));
        send(&producer, "one", 0, Some(""), None);
        send(&producer, "one", 0, None, Some(""));
        producer.flush(Duration::from_secs(10)).unwrap();
        let mut reader = Reader::start(&mock.kafka, "g", Isolation::Committed).unwrap();
        reader.assign(&[(TopicPartition::new("one", 0), 0)]).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let Event::Chunk(chunk) = reader.next().await.unwrap() else { continue };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            for record in &chunk.records {
                assert!(record.timestamp_ms > 1_600_000_000_000);
                let headers: Vec<_> = (record.headers.iter())
                    .map(|(name, value)| {
                        (text(chunk.get(name)), value.as_ref().map(|value| text(chunk.get(value))))
                    })
                    .collect();
                seen.push((chunk.key(record).map(text), chunk.value(record).map(text), headers));
            }
        }
        let some = |text: &str| Some(text.to_owned());
        let headers = |value: &str| vec![("h".to_owned(), some(value)), ("none".to_owned(), None)];
        assert_eq!(seen[0], (some("key"), some("value"), headers("key")));
        assert_eq!(seen[1], (some(""), None, headers("")));
        assert_eq!(seen[2], (None, some(""), vec![]));
    }

    #[tokio::test]
    async fn control_records_and_aborted_ones_are_gaps() {
        let Some(kafka) = real_kafka("control_records_and_aborted_ones_are_gaps") else { return };
        let topic = new_topic(&kafka, "gaps", 1);
        let id = unique("id");
        let producer = producer(&kafka, &[("transactional.id", &id)]);
        producer.init_transactions(Duration::from_secs(20)).unwrap();
        for (name, commit) in [("a", true), ("lost", false), ("b", true), ("lost", false)] {
            producer.begin_transaction().unwrap();
            for index in 0..5 {
                send(&producer, &topic, 0, None, Some(&format!("{name}-{index}")));
            }
            producer.flush(Duration::from_secs(20)).unwrap();
            match commit {
                true => producer.commit_transaction(Duration::from_secs(20)).unwrap(),
                false => producer.abort_transaction(Duration::from_secs(20)).unwrap(),
            }
        }
        // 4 x (5 records and a marker); the last committed record is at 16.
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 0);
        follower.until_end(&mut reader, &tp, 24).await;
        assert_eq!(follower.values[&tp], [numbered("a", 5), numbered("b", 5)].concat());

        let mut reader = Reader::start(&kafka, "g", Isolation::Uncommitted).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 0);
        follower.until_end(&mut reader, &tp, 24).await;
        assert_eq!(follower.values[&tp].len(), 20);
    }

    #[tokio::test]
    async fn a_missing_offset_is_an_error_that_names_what_there_is() {
        let Some(kafka) = real_kafka("a_missing_offset_is_an_error_that_names_what_there_is")
        else {
            return;
        };
        let topic = new_topic(&kafka, "cut", 1);
        fill(&kafka, &topic, 0, "a", 100);
        let tp = TopicPartition::new(topic.as_str(), 0);
        let cluster = Cluster::connect(&kafka).unwrap();
        cluster.delete_records_before(&tp, 40).unwrap();
        assert_eq!(cluster.watermarks(&tp).unwrap(), (40, 100));
        for wanted in [10, 101] {
            let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
            reader.assign(&[(tp.clone(), wanted)]).unwrap();
            let error = reader.next().await.unwrap_err();
            assert_eq!(error.kind, Kind::Recovery);
            let text = error.to_string();
            assert!(
                text.contains(&format!("{topic}/0")) && text.contains(&format!("offset {wanted}")),
                "{text}"
            );
            assert!(text.contains("40 to 100"), "{text}");
            assert!(reader.next().await.is_err(), "an error is final");
        }
    }

    #[tokio::test]
    async fn a_slow_pipeline_bounds_the_queue() {
        let Some(kafka) = real_kafka("a_slow_pipeline_bounds_the_queue") else { return };
        let topic = new_topic(&kafka, "slow", 1);
        let producer = producer(&kafka, &[("compression.type", "lz4")]);
        let value = "x".repeat(1000);
        for _ in 0..80_000 {
            send(&producer, &topic, 0, None, Some(&value));
        }
        producer.flush(Duration::from_secs(60)).unwrap();
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 0);
        let full = || *reader.budget.used.lock().unwrap() >= QUEUE_BYTES;
        while !full() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let used = *reader.budget.used.lock().unwrap();
        assert!(used < QUEUE_BYTES + (16 << 20), "{used}");
        follower.until_end(&mut reader, &tp, 80_000).await;
        assert_eq!(follower.values[&tp].len(), 80_000);
        assert_eq!(*reader.budget.used.lock().unwrap(), 0);
    }

    #[tokio::test]
    async fn the_cluster_tells_topics_offsets_and_times() {
        let Some(kafka) = real_kafka("the_cluster_tells_topics_offsets_and_times") else { return };
        let cluster = Cluster::connect(&kafka).unwrap();
        assert!(cluster.cluster_id().unwrap().is_some());
        assert_eq!(cluster.partitions(&unique("none")).unwrap(), Vec::<i32>::new());
        let name = unique("times");
        let config = vec![("retention.ms".to_owned(), "-1".to_owned())];
        let topic = NewTopic { name: name.clone(), partitions: 3, config };
        cluster.create_topics(std::slice::from_ref(&topic)).unwrap();
        cluster.create_topics(&[topic]).unwrap();
        assert_eq!(cluster.partitions(&name).unwrap(), [0, 1, 2]);
        assert!(cluster.topics().unwrap().contains(&(name.clone(), 3)));
        let id = cluster.topic_id(&name).unwrap();
        assert!(id.is_some() && id == cluster.topic_id(&name).unwrap());
        assert_ne!(id, cluster.topic_id(&new_topic(&kafka, "other", 1)).unwrap());
        assert!(cluster.topic_id("none").is_err());
        fill(&kafka, &name, 2, "a", 10);
        let tp = TopicPartition::new(name.as_str(), 2);
        assert_eq!(cluster.watermarks(&tp).unwrap(), (0, 10));
        assert_eq!(cluster.offsets_for_time(&tp, 1).unwrap(), 0);
        assert_eq!(cluster.offsets_for_time(&tp, i64::MAX / 2).unwrap(), 10);
        let bad = NewTopic {
            name: unique("bad"),
            partitions: 1,
            config: vec![("retention.ms".into(), "x".into())],
        };
        assert!(cluster.create_topics(&[bad]).is_err());
    }

    #[test]
    fn a_cluster_that_does_not_answer_is_an_error_with_a_hint() {
        let mock = Mock::start(&[]);
        let cluster = Cluster::connect(&mock.kafka).unwrap();
        assert_eq!(cluster.partitions("none").unwrap(), Vec::<i32>::new());
        assert!(cluster.watermarks(&TopicPartition::new("none", 0)).is_err());
    }
}
