//! The commit point: everything an epoch says, in one Kafka transaction.
//!
//! ```text
//!            ┌────────────── committed ◄─────────────┐
//!            ▼                                       │ the log has the epoch
//!   open ─► ready ─► transact ─► unknown ─► new producer, read the log ─► has another's ─► Fenced
//!            ▲          │ abortable                  │ the log lacks it
//!            └ another ◄┘ producer                   └─► transact again, the same output
//! ```
//!
//! Promises:
//! - `commit` returns once the epoch is committed, exactly once, or with an error that is final;
//! - an unknown outcome is resolved by looking into the log, never by guessing;
//! - after a transport error, a lost connection or a slow commit the producer is replaced before the next epoch:
//!   librdkafka does not have KIP-890's second part, so a delayed request could end a later
//!   transaction;
//! - one process per customer: `open` fences every other;
//! - nothing begins before everything that came before has ended in every partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::commit::hanging_transactions::HangingTransactions;
use crate::commit::log_reader::{self, Part, Until, epoch_of, log_topic};
use crate::commit::process::Process;
use crate::commit::producer::{Failure, TooLarge, TransactionalProducer};
use crate::failpoint::reach;
use crate::sink::SizeLimits;
use crate::source::KafkaConfig;
use crate::types::{OutRecord, TopicPartition};
use crate::{Error, Kind, Result};

/// How long `open` tries to reach the brokers. `commit` tries for as long as it takes.
const OPEN_WAIT: Duration = Duration::from_secs(60);
/// A commit slower than this may have left a request behind in the network.
const SLOW_COMMIT: Duration = Duration::from_secs(10);
/// A transaction older than this may have been ended by the broker, which looks like fencing.
const OLD_TRANSACTION: Duration = Duration::from_secs(30);
/// How often an epoch is sent again although the brokers answer.
const ATTEMPTS: u32 = 10;
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_millis(200);
/// How long `close` waits for the thread.
const CLOSE_WAIT: Duration = Duration::from_secs(3);

/// Everything that an epoch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOutput {
    /// Its number; more than that of every epoch before it.
    pub epoch: u64,
    /// Results, dead letters, late rows.
    pub records: Vec<OutRecord>,
    /// Its progress record: JSON with the integer field `epoch`.
    pub progress: Bytes,
    /// Source offsets for lag tools, under the group `millstream.<customer>`; may be empty.
    pub offsets: Vec<(TopicPartition, i64)>,
}

/// An epoch is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommittedEpoch {
    /// From begin to commit, repeated attempts included.
    pub took: Duration,
    /// The progress record's offset in the log, or a lower one where it is not known exactly.
    pub log_offset: i64,
    /// Records that were too large for their topic, and went to another one.
    pub diverted: u64,
}

/// Commits a customer's epochs, on a thread of its own.
pub struct Committer {
    jobs: mpsc::Sender<Job>,
    stop: StopOnDrop,
    ended: oneshot::Receiver<()>,
}

type Reply<T> = oneshot::Sender<Result<T>>;
type Job = (EpochOutput, Reply<CommittedEpoch>);

impl Committer {
    /// Fences every other process of this customer and ends what it left open, then reads the
    /// log: returns all progress records that it still has, oldest first. Records beyond `limits`
    /// are replaced when their epoch is committed.
    ///
    /// # Errors
    /// No broker answers within a minute, the log topic is missing, a permission is.
    pub async fn open(
        kafka: &KafkaConfig,
        customer: &str,
        limits: SizeLimits,
    ) -> Result<(Self, Vec<Bytes>)> {
        let (jobs, inbox) = mpsc::channel();
        let (opened, opening) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut session = Session {
            kafka: kafka.clone(),
            customer: customer.to_owned(),
            limits,
            unended: HangingTransactions::new(kafka, customer),
            producer: None,
            position: 0,
            last_epoch: None,
            fenced: false,
            stop: Arc::clone(&stop),
        };
        std::thread::Builder::new().name(format!("commit-{customer}")).spawn(move || {
            session.run(opened, &inbox);
            drop(session);
            // Nobody waits when the committer was dropped.
            let _ = ending.send(());
        })?;
        let committer = Self { jobs, stop: StopOnDrop(stop), ended };
        let records = opening.await.map_err(stopped)??;
        Ok((committer, records))
    }

    /// Commits an epoch. Waits out outages of the brokers. Epochs of several calls commit in the
    /// order of the calls.
    ///
    /// # Errors
    /// Final ones: `Fenced` (another process took over), `Data` (a record that Kafka does not
    /// take, whatever its size; another output for this epoch may be committed instead), `Config`
    /// (a missing topic), `Kafka` (a permission). The epoch is not committed.
    pub async fn commit(&self, output: EpochOutput) -> Result<CommittedEpoch> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send((output, reply)).map_err(stopped)?;
        answer.await.map_err(stopped)?
    }

    /// Ends the thread. An epoch whose commit is under way may or may not be committed.
    pub async fn close(self) {
        let Self { jobs, stop, ended } = self;
        drop((stop, jobs));
        if tokio::time::timeout(CLOSE_WAIT, ended).await.is_err() {
            tracing::debug!("a Kafka producer takes its time to close");
        }
    }
}

/// Tells the thread not to wait for brokers any longer.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn stopped<E>(_: E) -> Error {
    Error::internal("the committing thread has stopped")
}

/// What became of an epoch that was sent.
enum Outcome {
    /// Committed; the progress record's offset.
    Committed(i64),
    /// Not committed.
    TooLarge(Box<TooLarge>),
}

/// What a look into the log says about an epoch.
enum Verdict {
    Committed,
    Absent,
    Taken(Error),
}

/// The thread's state.
struct Session {
    kafka: KafkaConfig,
    customer: String,
    limits: SizeLimits,
    unended: HangingTransactions,
    /// None: must be made before the next transaction.
    producer: Option<TransactionalProducer>,
    /// Where the log was read to.
    position: i64,
    /// The newest epoch that is known to be committed.
    last_epoch: Option<u64>,
    /// Another process took over: this one must not take over in its turn.
    fenced: bool,
    stop: Arc<AtomicBool>,
}

impl Session {
    fn run(&mut self, opened: Reply<Vec<Bytes>>, inbox: &mpsc::Receiver<Job>) {
        let records = self.open();
        let failed = records.is_err();
        if opened.send(records).is_err() || failed {
            return;
        }
        while let Ok((mut output, reply)) = inbox.recv() {
            let begun = Instant::now();
            let outcome = match self.fenced {
                true => Err(self.fenced("the process was fenced before", &output)),
                false => self.commit_fitting(&mut output),
            };
            self.fenced = matches!(&outcome, Err(error) if error.kind == Kind::Fenced);
            // The pipeline may be gone; the epoch is committed all the same.
            let done = |(log_offset, diverted)| {
                let took = begun.elapsed();
                CommittedEpoch { took, log_offset, diverted }
            };
            let _ = reply.send(outcome.map(done));
            if self.stop.load(Ordering::Acquire) {
                return;
            }
        }
    }

    fn open(&mut self) -> Result<Vec<Bytes>> {
        let begun = Instant::now();
        loop {
            match self.make_producer() {
                Ok(producer) => self.producer = Some(producer),
                Err(failure) if begun.elapsed() > OPEN_WAIT || self.stopping() => {
                    return Err(self.unreachable(failure));
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(failure) => {
                    tracing::debug!(?failure, "transactions could not begin yet");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            }
            reach("recovery.fenced");
            let part = self.read(Until::HighWatermark, 0)?;
            reach("recovery.log.read");
            self.last_epoch = part.records.last().map(|record| epoch_of(record)).transpose()?;
            self.position = part.position;
            return Ok(part.records);
        }
    }

    /// Gives [`Committed::log_offset`] and [`Committed::diverted`].
    fn commit_fitting(&mut self, output: &mut EpochOutput) -> Result<(i64, u64)> {
        let mut diverted = self.limits.apply(&mut output.records).diverted;
        loop {
            match self.commit(output)? {
                Outcome::Committed(log_offset) => return Ok((log_offset, diverted)),
                Outcome::TooLarge(refused) => {
                    // The topic's limit is less than it was, or less than it told.
                    self.limits.lower(&refused.topic, refused.size);
                    self.producer = None;
                    let more = self.limits.apply(&mut output.records);
                    if more.replaced == 0 {
                        return Err(refused.error);
                    }
                    diverted += more.diverted;
                }
            }
        }
    }

    fn commit(&mut self, output: &EpochOutput) -> Result<Outcome> {
        if epoch_of(&output.progress)? != output.epoch || self.last_epoch >= Some(output.epoch) {
            return Err(Error::internal(format!(
                "epoch {} cannot follow {:?}",
                output.epoch, self.last_epoch
            )));
        }
        let mut attempts = 0;
        loop {
            let mut producer = match self.producer.take().filter(|p| !p.is_doubtful()) {
                Some(producer) => producer,
                None => match self.renew(output)? {
                    Some(producer) => producer,
                    None => break, // it was committed by an attempt before
                },
            };
            let (begun, disturbances) = (Instant::now(), producer.disturbances());
            let outcome = producer.transact(output);
            let took = begun.elapsed();
            let sound = |producer: &TransactionalProducer| {
                producer.disturbances() == disturbances && !producer.is_doubtful()
            };
            let failure = match outcome {
                Ok(offset) => {
                    let keep = sound(&producer) && took < SLOW_COMMIT;
                    producer.answered();
                    self.producer = keep.then_some(producer);
                    self.position = self.position.max(offset);
                    break;
                }
                Err(failure) => failure,
            };
            // Where the epoch is sent again, another producer does it, and ends what is open.
            if matches!(failure, Failure::Final(_)) {
                producer.abort();
            }
            attempts += 1;
            match failure {
                Failure::Final(error) => return Err(error),
                Failure::TooLarge(refused) => return Ok(Outcome::TooLarge(refused)),
                Failure::Fenced(why) if took < OLD_TRANSACTION => {
                    return Err(self.fenced(&why, output));
                }
                failure if attempts >= ATTEMPTS || self.stopping() => {
                    return Err(self.unreachable(failure));
                }
                failure => {
                    tracing::warn!(epoch = output.epoch, ?failure, "the epoch is committed again")
                }
            }
            std::thread::sleep(PAUSE);
        }
        self.last_epoch = Some(output.epoch);
        Ok(Outcome::Committed(self.position))
    }

    /// A new producer, after the old one is gone: `None` when the log has the epoch already.
    fn renew(&mut self, output: &EpochOutput) -> Result<Option<TransactionalProducer>> {
        loop {
            if self.stopping() {
                return Err(self.unreachable(Failure::Unknown(
                    "stopped while the brokers did not answer".into(),
                )));
            }
            // First a look without fencing: another process that took over shall not be disturbed.
            match self.look(Until::FirstEnd, output) {
                Ok(Verdict::Taken(error)) => return Err(error),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "the log cannot be read yet");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            }
            let producer = match self.make_producer() {
                Ok(producer) => producer,
                Err(Failure::Final(error)) => return Err(error),
                Err(failure) => {
                    tracing::debug!(?failure, "transactions could not begin again yet");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            match self.look(Until::HighWatermark, output) {
                Ok(Verdict::Absent) => return Ok(Some(producer)),
                Ok(Verdict::Committed) => {
                    let epoch = output.epoch;
                    tracing::info!("the log has epoch {epoch}: it was committed before");
                    self.producer = Some(producer);
                    return Ok(None);
                }
                Ok(Verdict::Taken(error)) => return Err(error),
                Err(error) => tracing::debug!(%error, "the log cannot be read yet"),
            }
        }
    }

    /// Whether the log has the epoch, or somebody else's.
    fn look(&self, until: Until, output: &EpochOutput) -> Result<Verdict> {
        let part = self.read(until, self.position)?;
        for (index, record) in part.records.iter().enumerate() {
            let epoch = epoch_of(record)?;
            if epoch == output.epoch && *record == output.progress {
                return Ok(Verdict::Committed);
            }
            if epoch >= output.epoch {
                return Ok(Verdict::Taken(self.taken(&part.records[index..])?));
            }
        }
        Ok(Verdict::Absent)
    }

    /// A producer that begins after everything before it has ended, in every partition.
    fn make_producer(&mut self) -> Result<TransactionalProducer, Failure> {
        self.unended.look(&self.stop)?;
        let log = Arc::from(log_topic(&self.customer));
        let topics: Vec<Arc<str>> = self.limits.topics().cloned().chain([log]).collect();
        loop {
            let limit = self.limits.smallest();
            let producer = TransactionalProducer::open(&self.kafka, &self.customer, limit)?;
            if !self.unended.settle(&topics, &self.stop)? {
                return Ok(producer);
            }
        }
    }

    fn read(&self, until: Until, from: i64) -> Result<Part> {
        log_reader::read(&self.kafka, &self.customer, from, until, &self.stop)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// The broker says that we are fenced; the log may say by whom.
    fn fenced(&self, why: &str, output: &EpochOutput) -> Error {
        match self.look(Until::FirstEnd, output) {
            Ok(Verdict::Taken(error)) => error.detail(why.to_owned()),
            _ => Error::new(
                Kind::Fenced,
                format!("another process took over customer {}", self.customer),
            )
            .detail(why.to_owned())
            .hint("one process runs a customer at a time; this one stops"),
        }
    }

    /// Records that another process committed in place of ours.
    fn taken(&self, theirs: &[Bytes]) -> Result<Error> {
        let newest = theirs.last().map(|record| epoch_of(record)).transpose()?.unwrap_or_default();
        let by = theirs.iter().rev().find_map(|record| {
            let parsed: serde_json::Value = serde_json::from_slice(record).ok()?;
            serde_json::from_value::<Process>(parsed.get("process")?.clone()).ok()
        });
        let by = by.map_or_else(|| "another process".to_owned(), |process| process.to_string());
        let message = format!(
            "another process took over customer {}: {by}, has committed epoch {newest}",
            self.customer
        );
        Ok(Error::new(Kind::Fenced, message)
            .hint("one process runs a customer at a time; this one stops"))
    }

    fn unreachable(&self, failure: Failure) -> Error {
        let why = match failure {
            Failure::Final(error) => return error,
            Failure::TooLarge(refused) => return refused.error,
            Failure::Fenced(why) | Failure::Abortable(why) | Failure::Unknown(why) => why,
        };
        Error::new(
            Kind::Kafka,
            format!("transactions of customer {} do not succeed", self.customer),
        )
        .detail(why)
        .hint(format!(
            "do the brokers at {} run, with a transaction coordinator?",
            self.kafka.brokers
        ))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::commit::{log_topic, read_log};
    use crate::source::tests::mock::{Follower, Mock, new_topic, real_kafka, unique};
    use crate::source::{Cluster, Isolation, NewTopic, Reader};

    pub(in crate::commit) fn progress(epoch: u64) -> Bytes {
        Bytes::from(format!(r#"{{"epoch":{epoch},"process":{{"id":7,"host":"here","began":0}}}}"#))
    }

    pub(in crate::commit) fn output(topic: &str, epoch: u64, count: usize) -> EpochOutput {
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

    /// Kafka's default; what is larger says how large it was.
    pub(in crate::commit) fn limits(topic: &str) -> SizeLimits {
        let replace = |record: OutRecord, _| {
            let size = record.value.as_ref().map_or(0, Bytes::len);
            (OutRecord { value: Some(format!("{size} bytes").into()), ..record }, None)
        };
        SizeLimits::new(HashMap::from([(topic.into(), 1_048_588)]), Arc::new(replace))
    }

    /// The values of a topic's only partition, read_committed.
    pub(in crate::commit) async fn values(kafka: &KafkaConfig, topic: &str) -> Vec<String> {
        let tp = TopicPartition::new(topic, 0);
        let high = Cluster::connect(kafka).unwrap().watermarks(&tp).unwrap().1;
        let mut reader = Reader::start(kafka, "test", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        follower.assign(&reader, topic, 0, 0);
        follower.until_end(&mut reader, &tp, high).await;
        follower.values.remove(&tp).unwrap_or_default().into_iter().flatten().collect()
    }

    pub(in crate::commit) fn expected(epochs: &[u64], count: usize) -> Vec<String> {
        epochs
            .iter()
            .flat_map(|epoch| (0..count).map(move |index| format!("{epoch}-{index}")))
            .collect()
    }

    /// A customer of its own with log topic and output topic, on a real Kafka.
    fn customer(kafka: &KafkaConfig) -> (String, String) {
        let customer = unique("c");
        let log = NewTopic { name: log_topic(&customer), partitions: 1, config: vec![] };
        Cluster::connect(kafka).unwrap().create_topics(&[log]).unwrap();
        (customer, new_topic(kafka, "out", 1))
    }

    /// Epochs are committed, survive reopening, and a record that is too large stops nothing.
    async fn commits(kafka: &KafkaConfig, customer: &str, topic: &str) {
        let (committer, records) = Committer::open(kafka, customer, limits(topic)).await.unwrap();
        assert!(records.is_empty());
        for epoch in [1, 2] {
            committer.commit(output(topic, epoch, 100)).await.unwrap();
        }
        let mut large = output(topic, 3, 100);
        large.records[2].value = Some(vec![b'x'; 3_000_000].into());
        assert_eq!(committer.commit(large).await.unwrap().diverted, 0);
        assert!(committer.commit(output(topic, 3, 1)).await.is_err(), "an epoch follows the last");
        committer.close().await;

        let (committer, records) = Committer::open(kafka, customer, limits(topic)).await.unwrap();
        assert_eq!(records, [progress(1), progress(2), progress(3)]);
        assert_eq!(read_log(kafka, customer).await.unwrap(), records);
        committer.close().await;
    }

    #[tokio::test]
    async fn epochs_are_committed_to_the_mock_broker() {
        let mock = Mock::start(&[("out", 1), ("millstream.a.log", 1)]);
        commits(&mock.kafka, "a", "out").await;
    }

    #[tokio::test]
    async fn epochs_are_committed_to_a_real_kafka() {
        let Some(kafka) = real_kafka("epochs_are_committed_to_a_real_kafka") else { return };
        let (customer, topic) = customer(&kafka);
        commits(&kafka, &customer, &topic).await;
        let mut wanted = expected(&[1, 2, 3], 100);
        wanted[202] = "3000000 bytes".to_owned();
        assert_eq!(values(&kafka, &topic).await, wanted, "nothing of what was aborted");
    }

    #[tokio::test]
    async fn a_topic_that_takes_less_than_it_told_stops_nothing() {
        let Some(kafka) = real_kafka("a_topic_that_takes_less_than_it_told_stops_nothing") else {
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
        let told = cluster.message_limits(std::slice::from_ref(&topic)).unwrap();
        assert_eq!(told, HashMap::from([(topic.clone(), 2_000)]));

        let (committer, _) = Committer::open(&kafka, &customer, limits(&topic)).await.unwrap();
        let mut first = output(&topic, 1, 3);
        let random: Vec<u8> = std::iter::repeat_with(|| uuid::Uuid::new_v4().into_bytes())
            .take(500)
            .flatten()
            .collect();
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
        // The mock has written the records, and its answer to the commit is an error: done.
        mock.cluster.request_errors(
            RDKafkaApiKey::EndTxn,
            &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE],
        );
        committer.commit(output("out", 2, 3)).await.unwrap();
        // The connection breaks: librdkafka asks again, and the producer is replaced afterwards.
        mock.cluster
            .request_errors(RDKafkaApiKey::EndTxn, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT]);
        committer.commit(output("out", 3, 3)).await.unwrap();
        // Nothing was written when the error came: sent again.
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
        let error = Committer::open(&kafka, &unique("nobody"), limits("out")).await.err().unwrap();
        assert_eq!(error.kind, Kind::Config, "{error}");
        assert!(error.message.contains(".log does not exist"), "{error}");
    }

    #[tokio::test]
    async fn who_opens_later_fences_who_was_there() {
        let Some(kafka) = real_kafka("who_opens_later_fences_who_was_there") else { return };
        let (customer, topic) = customer(&kafka);
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
    async fn offsets_are_told_to_lag_tools() {
        let Some(kafka) = real_kafka("offsets_are_told_to_lag_tools") else { return };
        let (customer, topic) = customer(&kafka);
        let (committer, _) = Committer::open(&kafka, &customer, limits(&topic)).await.unwrap();
        let tp = TopicPartition::new(topic.as_str(), 0);
        let mut first = output(&topic, 1, 1);
        first.offsets = vec![(tp.clone(), 42)];
        committer.commit(first).await.unwrap();
        let cluster = Cluster::connect(&kafka).unwrap();
        let offsets = cluster.group_offsets(&format!("millstream.{customer}"), &[tp]).unwrap();
        assert_eq!(offsets, [Some(42)]);
    }
}
