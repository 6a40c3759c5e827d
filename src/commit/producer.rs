//! One transactional producer: runs a transaction per epoch and classifies its failures.
//!
//! Its calls block. A failure states what is known of the transaction, see
//! [`TransactionFailure`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::config::{FromClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::commit::delivery_tracker::DeliveryTracker;
use crate::commit::epoch_output::EpochOutput;
use crate::commit::log_reader::{log_topic, transactional_id};
use crate::commit::transaction_failure::{
    OversizedRecord, TransactionFailure, is_fencing, is_refusal,
};
use crate::failpoint::{self, reach};
use crate::sink::size_of;
use crate::source::{KafkaConfig, kafka_error};
use crate::{Error, Kind};

/// How long one call to the transaction coordinator may take before its outcome is examined.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction's timeout on the broker: a commit that has not succeeded by then never will.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest batch of several records; a record larger than that has a batch of its own.
const MAX_BATCH_BYTES: usize = 1_000_000;
/// A producer that was idle for this long is replaced: librdkafka does not report the loss of
/// connections that were idle for a minute, and may not report the next loss either.
const MAX_IDLE: Duration = Duration::from_secs(50);

/// Settings that a user may override.
const DEFAULTS: [(&str, &str); 9] = [
    // The limit of each topic is checked before; librdkafka has one limit for all topics.
    ("message.max.bytes", "1000000000"),
    // The records of a transaction arrive together: waiting would not make larger batches.
    ("linger.ms", "0"),
    ("compression.type", "lz4"),
    // The same as Java clients, so that the keys of both are in the same partitions.
    ("partitioner", "murmur2_random"),
    ("queue.buffering.max.messages", "1000000"),
    ("queue.buffering.max.kbytes", "1048576"),
    // A broker that does not answer for this long is considered dead.
    ("socket.timeout.ms", "15000"),
    ("reconnect.backoff.max.ms", "2000"),
    ("socket.keepalive.enable", "true"),
];

/// A record whose opaque value is its index in the epoch's output.
type IndexedRecord<'a> = BaseRecord<'a, [u8], [u8], usize>;

/// A producer after `init_transactions`.
pub(super) struct TransactionalProducer {
    producer: ThreadedProducer<DeliveryTracker>,
    group: ConsumerGroupMetadata,
    log_topic: String,
    /// When the brokers last answered it.
    last_used: Instant,
}

impl TransactionalProducer {
    /// Creates the producer and fences every earlier one of this customer. Batches of several
    /// records stay below `batch_bytes`.
    ///
    /// # Errors
    /// `Final`: settings or permissions must change. `Unknown`: no answer in time; try again.
    pub(super) fn open(
        kafka: &KafkaConfig,
        customer: &str,
        batch_bytes: usize,
    ) -> Result<Self, TransactionFailure> {
        let id = transactional_id(customer);
        let batch_bytes = batch_bytes.min(MAX_BATCH_BYTES).to_string();
        let fixed = [
            ("transactional.id", id.as_str()),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("batch.size", &batch_bytes),
            ("log.connection.close", "true"),
            ("log.queue", "false"),
        ];
        let mut config = kafka.client_with(&format!("{id}-write"), &DEFAULTS, &fixed);
        // librdkafka reports a lost connection in its log only, below the level of errors.
        config.set_log_level(RDKafkaLogLevel::Info);
        let creation_failed =
            |error| TransactionFailure::Final(kafka_error("cannot create a Kafka producer", error));
        let tracker = DeliveryTracker::new(format!("{id} writer"));
        let producer =
            ThreadedProducer::from_config_and_context(&config, tracker).map_err(creation_failed)?;
        producer.init_transactions(CALL_TIMEOUT).map_err(|error| init_failure(&producer, error))?;
        let group = group_metadata(&id).map_err(creation_failed)?;
        Ok(Self { producer, group, log_topic: log_topic(customer), last_used: Instant::now() })
    }

    /// The number of transport errors that this producer has seen.
    pub(super) fn transport_errors(&self) -> u64 {
        self.tracker().transport_errors()
    }

    /// Whether a request of this producer may still be in the network: one of its connections was
    /// lost with a request in flight, or may have been lost without a report while it was idle.
    pub(super) fn is_doubtful(&self) -> bool {
        self.tracker().lost_connections() > 0 || self.last_used.elapsed() > MAX_IDLE
    }

    /// Records that the brokers have just answered this producer.
    pub(super) fn mark_used(&mut self) {
        self.last_used = Instant::now();
        self.tracker().answered();
    }

    /// Runs one transaction with all records, the progress record and the source offsets. Returns
    /// the progress record's offset. After a failure the transaction may still be open:
    /// [`TransactionalProducer::abort`] or the next producer ends it.
    pub(super) fn run_transaction(&self, output: &EpochOutput) -> Result<i64, TransactionFailure> {
        let (begun, errors_before) = (Instant::now(), self.transport_errors());
        self.tracker().begin_transaction(output.records.len());
        reach("epoch.begin");
        self.producer.begin_transaction().map_err(|error| self.classify(error))?;
        reach("epoch.begun");
        self.send_records(output)?;
        self.await_deliveries(output, errors_before)?;
        self.send_offsets(output)?;
        self.commit_transaction(begun, errors_before)
    }

    /// Aborts the open transaction, so that readers of committed records do not wait for its
    /// timeout. The next transaction needs another producer.
    pub(super) fn abort(&self) {
        if let Err(error) = self.producer.abort_transaction(CALL_TIMEOUT) {
            tracing::debug!(%error, "cannot abort a transaction");
        }
    }

    fn tracker(&self) -> &DeliveryTracker {
        self.producer.context()
    }

    /// Hands all records to librdkafka, the progress record last.
    fn send_records(&self, output: &EpochOutput) -> Result<(), TransactionFailure> {
        for (index, record) in output.records.iter().enumerate() {
            let mut message: IndexedRecord<'_> = BaseRecord::with_opaque_to(&record.topic, index);
            message.partition = record.partition;
            message.key = record.key.as_deref();
            message.payload = record.value.as_deref();
            message.headers = (!record.headers.is_empty()).then(|| kafka_headers(&record.headers));
            message.timestamp = record.timestamp_ms;
            self.send(output, message)?;
            failpoint::reach_record_sent(&record.topic);
        }
        let index = output.records.len();
        let mut progress: IndexedRecord<'_> = BaseRecord::with_opaque_to(&self.log_topic, index);
        progress.partition = Some(0);
        progress.payload = Some(output.progress.as_ref());
        self.send(output, progress)?;
        reach("epoch.progress.sent");
        Ok(())
    }

    /// Hands one record to librdkafka; waits while its queue is full.
    fn send(
        &self,
        output: &EpochOutput,
        mut record: IndexedRecord<'_>,
    ) -> Result<(), TransactionFailure> {
        loop {
            self.tracker().begin_send();
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, unsent)) => {
                    self.tracker().cancel_send();
                    if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                        return Err(self.classify_record(output, unsent.delivery_opaque, error));
                    }
                    record = unsent;
                    self.tracker().wait_for_queue_space();
                }
            }
        }
    }

    /// Waits until all records are delivered.
    fn await_deliveries(
        &self,
        output: &EpochOutput,
        errors_before: u64,
    ) -> Result<(), TransactionFailure> {
        if !self.tracker().wait_for_deliveries(errors_before) {
            return Err(TransactionFailure::Unknown("the brokers are unreachable".to_owned()));
        }
        self.check_deliveries(output)?;
        reach("epoch.delivered");
        // librdkafka counts messages until their reports are destroyed, some microseconds later;
        // rdkafka's commit would sleep for 100 ms if the count were not zero.
        while self.producer.flush(Duration::ZERO).is_err() {
            std::thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    /// Fails if a record was not delivered. There is a delivery report for each record.
    fn check_deliveries(&self, output: &EpochOutput) -> Result<(), TransactionFailure> {
        let failed = self.tracker().failed();
        let Some((_, code)) = failed.first().copied() else { return Ok(()) };
        // The records of a batch fail together; the largest is the most likely cause.
        let same_code = failed.iter().filter(|(_, other)| *other == code).map(|(index, _)| *index);
        let index = same_code.max_by_key(|index| record_size(output, *index)).unwrap_or_default();
        Err(self.classify_record(output, index, KafkaError::MessageProduction(code)))
    }

    /// Adds the source offsets, if there are any, to the transaction.
    fn send_offsets(&self, output: &EpochOutput) -> Result<(), TransactionFailure> {
        if output.offsets.is_empty() {
            return Ok(());
        }
        reach("epoch.offsets");
        let list = offset_list(output);
        let sent = self.producer.send_offsets_to_transaction(&list, &self.group, CALL_TIMEOUT);
        sent.map_err(|error| self.classify(error))?;
        reach("epoch.offsets.sent");
        Ok(())
    }

    /// Commits the transaction that began at `begun`. Returns the progress record's offset.
    fn commit_transaction(
        &self,
        begun: Instant,
        errors_before: u64,
    ) -> Result<i64, TransactionFailure> {
        reach("epoch.commit");
        loop {
            let error = match self.producer.commit_transaction(CALL_TIMEOUT) {
                Ok(()) => {
                    reach("epoch.committed");
                    return Ok(self.tracker().progress_offset());
                }
                Err(error) => error,
            };
            // A call that timed out can be resumed while the connection is sound.
            let is_resumable =
                matches!(&error, KafkaError::Transaction(inner) if inner.is_retriable());
            let is_sound =
                self.transport_errors() == errors_before && begun.elapsed() < TRANSACTION_TIMEOUT;
            match self.classify(error) {
                TransactionFailure::Unknown(_) if is_resumable && is_sound => {}
                // An abortable error of the commit call does not prove that it did not commit.
                TransactionFailure::Abortable(reason) => {
                    return Err(TransactionFailure::Unknown(reason));
                }
                other => return Err(other),
            }
        }
    }

    /// Classifies an error that concerns the record `index` of the output (the progress record
    /// comes last).
    fn classify_record(
        &self,
        output: &EpochOutput,
        index: usize,
        error: KafkaError,
    ) -> TransactionFailure {
        let topic = output.records.get(index).map(|record| &record.topic);
        let log_topic: Arc<str> = self.log_topic.as_str().into();
        let (size, topic) = (record_size(output, index), topic.unwrap_or(&log_topic));
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
                let topic = topic.clone();
                TransactionFailure::TooLarge(Box::new(OversizedRecord { topic, size, error }))
            }
            Some(
                RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTimestamp
                | RDKafkaErrorCode::PolicyViolation,
            ) => TransactionFailure::Final(
                Error::new(
                    Kind::Data,
                    format!("Kafka refuses a record of {size} bytes for topic {topic}"),
                )
                .hint(
                    "check that the topic's settings suit the results \
                     (cleanup.policy=compact requires keys)",
                )
                .because(error),
            ),
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition,
            ) => TransactionFailure::Final(
                Error::config(format!("output topic {topic} or one of its partitions is missing"))
                    .hint("create the topic, or run with --create-topics")
                    .because(error),
            ),
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => TransactionFailure::Final(
                kafka_error(format!("no permission to write to topic {topic}"), error),
            ),
            _ => self.classify(error),
        }
    }

    /// Classifies an error that concerns the transaction as a whole.
    fn classify(&self, error: KafkaError) -> TransactionFailure {
        let fatal = self.producer.client().fatal_error();
        let code = fatal.as_ref().map(|(code, _)| *code).or(error.rdkafka_error_code());
        let text = fatal.map_or_else(|| error.to_string(), |(_, text)| text);
        match code {
            Some(code) if is_fencing(code) => return TransactionFailure::Fenced(text),
            Some(code) if is_refusal(code) => {
                let error = kafka_error("Kafka refuses the transaction", error);
                return TransactionFailure::Final(error);
            }
            _ => {}
        }
        match &error {
            KafkaError::Transaction(inner) if inner.is_fatal() => TransactionFailure::Unknown(text),
            KafkaError::Transaction(inner) if inner.txn_requires_abort() => {
                TransactionFailure::Abortable(text)
            }
            _ => TransactionFailure::Unknown(text),
        }
    }
}

fn init_failure(
    producer: &ThreadedProducer<DeliveryTracker>,
    error: KafkaError,
) -> TransactionFailure {
    let code = producer.client().fatal_error().map(|(code, _)| code).or(error.rdkafka_error_code());
    match code {
        Some(code) if is_refusal(code) => {
            TransactionFailure::Final(kafka_error("Kafka refuses to begin transactions", error))
        }
        // Another process may have begun at the same moment; one of the two is fenced when it
        // commits.
        _ => TransactionFailure::Unknown(error.to_string()),
    }
}

/// The metadata of a consumer group without joining it: a consumer without brokers provides it.
fn group_metadata(group: &str) -> Result<ConsumerGroupMetadata, KafkaError> {
    let mut config = ClientConfig::new();
    config.set("group.id", group);
    let consumer = BaseConsumer::from_config(&config)?;
    consumer
        .group_metadata()
        .ok_or_else(|| KafkaError::ClientCreation("no group metadata".to_owned()))
}

fn kafka_headers(headers: &[(String, Option<Bytes>)]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers
        .iter()
        .fold(empty, |all, (key, value)| all.insert(Header { key, value: value.as_deref() }))
}

fn offset_list(output: &EpochOutput) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(output.offsets.len());
    for (tp, offset) in &output.offsets {
        // Fails for negative offsets only, which mean "none yet".
        if list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(*offset)).is_err() {
            tracing::debug!(%tp, offset, "not committing an invalid source offset");
        }
    }
    list
}

/// The size of the record `index` of the output; the progress record comes last.
fn record_size(output: &EpochOutput, index: usize) -> usize {
    output.records.get(index).map_or(output.progress.len(), size_of)
}
