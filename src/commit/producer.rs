//! One transactional producer: a transaction per epoch, and what its failures mean.
//!
//! Its calls block. A failure says what is known of the transaction: [`Failure::Unknown`] is
//! never guessed away; the caller looks into the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::config::{FromClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, Message, Offset, TopicPartitionList};

use crate::commit::committer::EpochOutput;
use crate::commit::log_reader::{log_topic, transactional_id};
use crate::failpoint::{self, reach};
use crate::sink::size_of;
use crate::source::{Context, KafkaConfig, kafka_error};
use crate::{Error, Kind};

/// How long one call to the transaction coordinator may take before we look around.
const CALL_WAIT: Duration = Duration::from_secs(10);
/// How long to wait for deliveries after a transport error. librdkafka itself takes up to a
/// minute after a broker is back; a new producer and a look into the log take milliseconds.
const DISTURBED_WAIT: Duration = Duration::from_secs(3);
/// A transaction's time on the broker: what is not done by then never will be.
const TRANSACTION_WAIT: Duration = Duration::from_secs(60);
/// The largest batch of several records; a record larger than that travels alone.
const BATCH_BYTES: usize = 1_000_000;
/// How long to wait for room in librdkafka's queue before looking again.
const ROOM_WAIT: Duration = Duration::from_millis(50);
/// A producer that was of no use for so long is replaced: of connections that were idle for a
/// minute librdkafka does not say that they are lost, and may not say it of the next loss either.
const IDLE: Duration = Duration::from_secs(50);

/// Settings that a user may override.
const DEFAULTS: [(&str, &str); 9] = [
    // The topics' own limits are looked at before; librdkafka's is one for all topics.
    ("message.max.bytes", "1000000000"),
    // A transaction's records come all at once: they need no wait to make a batch.
    ("linger.ms", "0"),
    ("compression.type", "lz4"),
    // As Java's clients do, so that keyed topics of both line up.
    ("partitioner", "murmur2_random"),
    ("queue.buffering.max.messages", "1000000"),
    ("queue.buffering.max.kbytes", "1048576"),
    // A broker that says nothing for so long is taken for dead.
    ("socket.timeout.ms", "15000"),
    ("reconnect.backoff.max.ms", "2000"),
    ("socket.keepalive.enable", "true"),
];

/// Why a transaction did not commit, as far as is known.
#[derive(Debug)]
pub(super) enum Failure {
    /// It cannot ever: the output or the permissions must change. Not committed.
    Final(Error),
    /// A record is larger than its topic takes. Not committed.
    TooLarge(Box<TooLarge>),
    /// Another producer has this transactional id now. Not committed by us.
    Fenced(String),
    /// It must be aborted and can be tried again, by another producer. Not committed.
    Abortable(String),
    /// It may be committed or not.
    Unknown(String),
}

/// A record that its topic did not take: of those that were refused together, the largest.
#[derive(Debug)]
pub(super) struct TooLarge {
    pub(super) topic: Arc<str>,
    pub(super) size: usize,
    pub(super) error: Error,
}

/// A producer after `init_transactions`.
pub(super) struct TransactionalProducer {
    producer: ThreadedProducer<Deliveries>,
    group: ConsumerGroupMetadata,
    log_topic: String,
    /// When it last had an answer.
    used: Instant,
}

impl TransactionalProducer {
    /// Makes the producer and fences every earlier one of this customer. Batches of several
    /// records stay below `batch_bytes`.
    ///
    /// # Errors
    /// `Final`: settings or permissions; `Unknown`: no answer in time, try again.
    pub(super) fn open(
        kafka: &KafkaConfig,
        customer: &str,
        batch_bytes: usize,
    ) -> Result<Self, Failure> {
        let id = transactional_id(customer);
        let batch_bytes = batch_bytes.min(BATCH_BYTES).to_string();
        let fixed = [
            ("transactional.id", id.as_str()),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("batch.size", &batch_bytes),
            ("log.connection.close", "true"),
            ("log.queue", "false"),
        ];
        let mut config = kafka.client_with(&format!("{id}-write"), &DEFAULTS, &fixed);
        // A lost connection is told by the log alone, below the level of errors.
        config.set_log_level(RDKafkaLogLevel::Info);
        let made = |error| Failure::Final(kafka_error("cannot make a Kafka producer", error));
        let context =
            Deliveries { client: Context::new(format!("{id} writer")), ..Deliveries::default() };
        let producer = ThreadedProducer::from_config_and_context(&config, context).map_err(made)?;
        producer.init_transactions(CALL_WAIT).map_err(|error| init_failure(&producer, error))?;
        let group = group_metadata(&id).map_err(made)?;
        Ok(Self { producer, group, log_topic: log_topic(customer), used: Instant::now() })
    }

    /// How many transport errors this producer has seen.
    pub(super) fn disturbances(&self) -> u64 {
        self.producer.context().disturbances()
    }

    /// Whether a request of this producer may still be on its way: a connection of it was lost,
    /// with what was in it, or would have been lost without a word, for it was idle.
    pub(super) fn is_doubtful(&self) -> bool {
        self.producer.context().lost.load(Ordering::Acquire) > 0 || self.used.elapsed() > IDLE
    }

    /// The producer works.
    pub(super) fn answered(&mut self) {
        self.used = Instant::now();
        self.producer.context().client.answered();
    }

    /// One transaction: all records, the progress record, the offsets. Gives the progress
    /// record's offset. After a failure the transaction may be open still:
    /// [`TransactionalProducer::abort`], or the next producer, ends it.
    pub(super) fn transact(&self, output: &EpochOutput) -> Result<i64, Failure> {
        let context = self.producer.context();
        let (begun, disturbances) = (Instant::now(), self.disturbances());
        context.begin(output.records.len());
        reach("epoch.begin");
        self.producer.begin_transaction().map_err(|error| self.failure(error))?;
        reach("epoch.begun");
        for (index, record) in output.records.iter().enumerate() {
            let headers = (!record.headers.is_empty()).then(|| headers(&record.headers));
            let key = record.key.as_deref();
            self.send(
                output,
                index,
                &record.topic,
                record.partition,
                key,
                record.value.as_deref(),
                headers,
                record.timestamp_ms,
            )?;
            failpoint::reach_record_sent(&record.topic);
        }
        let progress = Some(output.progress.as_ref());
        self.send(
            output,
            output.records.len(),
            &self.log_topic,
            Some(0),
            None,
            progress,
            None,
            None,
        )?;
        reach("epoch.progress.sent");
        if !context.wait(disturbances) {
            return Err(Failure::Unknown("the brokers do not answer".to_owned()));
        }
        self.delivered(output)?;
        reach("epoch.delivered");
        // Messages are accounted for until their reports are destroyed, some microseconds later;
        // rdkafka's commit would sleep 100 ms on that.
        while self.producer.flush(Duration::ZERO).is_err() {
            std::thread::sleep(Duration::from_micros(20));
        }
        if !output.offsets.is_empty() {
            reach("epoch.offsets");
            let sent =
                self.producer.send_offsets_to_transaction(&offsets(output), &self.group, CALL_WAIT);
            sent.map_err(|error| self.failure(error))?;
            reach("epoch.offsets.sent");
        }
        reach("epoch.commit");
        loop {
            let error = match self.producer.commit_transaction(CALL_WAIT) {
                Ok(()) => {
                    reach("epoch.committed");
                    return Ok(context.state().marked_offset);
                }
                Err(error) => error,
            };
            // Not answered yet: the call goes on where it was, if the connection is sound.
            let unanswered =
                matches!(&error, KafkaError::Transaction(inner) if inner.is_retriable());
            let sound = self.disturbances() == disturbances && begun.elapsed() < TRANSACTION_WAIT;
            match self.failure(error) {
                Failure::Unknown(_) if unanswered && sound => {}
                // Even an abortable error of the commit itself is no proof.
                Failure::Abortable(why) => return Err(Failure::Unknown(why)),
                other => return Err(other),
            }
        }
    }

    /// Aborts the open transaction, so that nobody has to wait for its end. Use another producer
    /// for what comes next.
    pub(super) fn abort(&self) {
        if let Err(error) = self.producer.abort_transaction(CALL_WAIT) {
            tracing::debug!(%error, "a transaction could not be aborted");
        }
    }

    #[allow(clippy::too_many_arguments)] // a record, spelled out without copying it
    fn send(
        &self,
        output: &EpochOutput,
        index: usize,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
        timestamp_ms: Option<i64>,
    ) -> Result<(), Failure> {
        let context = self.producer.context();
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(topic, index);
        (record.partition, record.key, record.payload) = (partition, key, value);
        (record.headers, record.timestamp) = (headers, timestamp_ms);
        loop {
            context.sending();
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back)) => {
                    context.not_sent();
                    if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                        return Err(self.record_failure(output, index, error));
                    }
                    record = back;
                    context.wait_for_room();
                }
            }
        }
    }

    /// What the delivery reports say, once there is one for each record.
    fn delivered(&self, output: &EpochOutput) -> Result<(), Failure> {
        let state = self.producer.context().state();
        let Some((_, code)) = state.failed.first().copied() else { return Ok(()) };
        // Of several that failed alike, as a batch does, the largest is the likeliest cause.
        let alike =
            state.failed.iter().filter(|(_, other)| *other == code).map(|(index, _)| *index);
        let index = alike.max_by_key(|index| size_of_record(output, *index)).unwrap_or_default();
        drop(state);
        Err(self.record_failure(output, index, KafkaError::MessageProduction(code)))
    }

    fn record_failure(&self, output: &EpochOutput, index: usize, error: KafkaError) -> Failure {
        let topic = output.records.get(index).map(|record| &record.topic);
        let log_topic: Arc<str> = self.log_topic.as_str().into();
        let (size, topic) = (size_of_record(output, index), topic.unwrap_or(&log_topic));
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::MessageBatchTooLarge
                | RDKafkaErrorCode::InvalidMessageSize,
            ) => {
                let message = format!("a record of {size} bytes is too large for topic {topic}");
                let error = Error::new(Kind::Data, message)
                    .hint("raise max.message.bytes of the topic, and --kafka message.max.bytes where that is set")
                    .because(error);
                Failure::TooLarge(Box::new(TooLarge { topic: topic.clone(), size, error }))
            }
            Some(
                RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTimestamp
                | RDKafkaErrorCode::PolicyViolation,
            ) => Failure::Final(
                Error::new(
                    Kind::Data,
                    format!("Kafka refuses a record of {size} bytes for topic {topic}"),
                )
                .hint(
                    "do the topic's settings (cleanup.policy=compact needs keys) fit the results?",
                )
                .because(error),
            ),
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition,
            ) => Failure::Final(
                Error::config(format!("output topic {topic} does not exist, or lacks a partition"))
                    .hint("run with --create-topics, or create it")
                    .because(error),
            ),
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                Failure::Final(kafka_error(format!("topic {topic} may not be written"), error))
            }
            _ => self.failure(error),
        }
    }

    /// What any other error means.
    fn failure(&self, error: KafkaError) -> Failure {
        let fatal = self.producer.client().fatal_error();
        let code = fatal.as_ref().map(|(code, _)| *code).or(error.rdkafka_error_code());
        let text = fatal.map_or_else(|| error.to_string(), |(_, text)| text);
        match code {
            Some(code) if is_fencing(code) => return Failure::Fenced(text),
            Some(code) if is_refusal(code) => {
                return Failure::Final(kafka_error("Kafka refuses the transaction", error));
            }
            _ => {}
        }
        match &error {
            KafkaError::Transaction(inner) if inner.is_fatal() => Failure::Unknown(text),
            KafkaError::Transaction(inner) if inner.txn_requires_abort() => {
                Failure::Abortable(text)
            }
            _ => Failure::Unknown(text),
        }
    }
}

fn init_failure(producer: &ThreadedProducer<Deliveries>, error: KafkaError) -> Failure {
    let code = producer.client().fatal_error().map(|(code, _)| code).or(error.rdkafka_error_code());
    match code {
        Some(code) if is_refusal(code) => {
            Failure::Final(kafka_error("Kafka refuses to begin transactions", error))
        }
        // Somebody else began at the same moment; one of the two will be told so when it commits.
        _ => Failure::Unknown(error.to_string()),
    }
}

fn is_fencing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch)
}

fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::TransactionalIdAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::TopicAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::Authentication
            | Code::UnsupportedFeature
            | Code::InvalidTransactionTimeout
    )
}

/// The group's metadata without joining it, made by a consumer that knows no broker.
fn group_metadata(group: &str) -> Result<ConsumerGroupMetadata, KafkaError> {
    let mut config = ClientConfig::new();
    config.set("group.id", group);
    let consumer = BaseConsumer::from_config(&config)?;
    consumer
        .group_metadata()
        .ok_or_else(|| KafkaError::ClientCreation("no group metadata".to_owned()))
}

fn headers(headers: &[(String, Option<Bytes>)]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers
        .iter()
        .fold(empty, |all, (key, value)| all.insert(Header { key, value: value.as_deref() }))
}

fn offsets(output: &EpochOutput) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(output.offsets.len());
    for (tp, offset) in &output.offsets {
        // Fails for negative offsets only, which mean "none yet".
        if list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(*offset)).is_err() {
            tracing::debug!(%tp, offset, "an offset that is none");
        }
    }
    list
}

fn size_of_record(output: &EpochOutput, index: usize) -> usize {
    output.records.get(index).map_or(output.progress.len(), size_of)
}

/// The producer's callbacks: counts deliveries of the present transaction.
struct Deliveries {
    client: Context,
    /// Connections that were lost after they had been made.
    lost: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    outstanding: usize,
    /// Index and reason of records that failed, in the order of the reports.
    failed: Vec<(usize, RDKafkaErrorCode)>,
    /// The record whose offset is wanted, and that offset once it is delivered.
    marked: usize,
    marked_offset: i64,
}

impl Default for Deliveries {
    fn default() -> Self {
        Self {
            client: Context::new("writer"),
            lost: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl Deliveries {
    fn disturbances(&self) -> u64 {
        self.client.disturbances() + self.lost.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a transaction; the offset of its record `marked` is wanted.
    fn begin(&self, marked: usize) {
        let mut state = self.state();
        state.failed.clear();
        (state.marked, state.marked_offset) = (marked, 0);
    }

    fn sending(&self) {
        self.state().outstanding += 1;
    }

    fn not_sent(&self) {
        self.state().outstanding -= 1;
    }

    /// Waits until every record was reported; each is, at the latest after its timeout. False:
    /// there were transport errors beyond `disturbances`, and nothing moves.
    fn wait(&self, disturbances: u64) -> bool {
        let mut state = self.state();
        let (mut outstanding, mut moved) = (state.outstanding, Instant::now());
        while state.outstanding > 0 {
            if state.outstanding != outstanding {
                (outstanding, moved) = (state.outstanding, Instant::now());
            }
            if self.disturbances() != disturbances && moved.elapsed() > DISTURBED_WAIT {
                return false;
            }
            let waited = self.changed.wait_timeout(state, DISTURBED_WAIT / 4);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn wait_for_room(&self) {
        let waited = self.changed.wait_timeout(self.state(), ROOM_WAIT);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl ClientContext for Deliveries {
    /// librdkafka sends a request again when its connection is lost, and says so here and nowhere
    /// else, on the thread that noticed it: before the answer to the second request can come. The
    /// first may still arrive, and end a later transaction of the same producer.
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let never_made = ["Connect to ", "Failed to resolve"].iter().any(|s| message.contains(s));
        if facility == "FAIL" && !never_made {
            self.lost.fetch_add(1, Ordering::AcqRel);
        }
        self.client.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.client.stats_raw(statistics);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let mut state = self.state();
        state.outstanding -= 1;
        if let Ok(message) = result
            && index == state.marked
        {
            state.marked_offset = message.offset().max(0);
        } else if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
            // Those that an abort throws away say nothing about why.
            if !matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) {
                state.failed.push((index, code));
            }
        }
        drop(state);
        self.changed.notify_one();
    }
}
