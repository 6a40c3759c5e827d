//! Queries about the cluster (topics, partitions, offsets), and creating topics.
//!
//! Every call blocks, for up to 30 s if no broker responds. Async code calls it with
//! [`blocking`](crate::source::blocking).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{self, AdminClient, AdminOptions, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use crate::source::client::{KafkaClientContext, kafka_error};
use crate::source::config::KafkaConfig;
use crate::source::ffi;
use crate::time::Micros;
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// How long a call waits for a response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// After this time without a response a warning is logged, so that a mistyped address is noticed early.
const WARN_AFTER: Duration = Duration::from_millis(2500);
/// The prefix of the id of librdkafka's mock cluster.
const MOCK_CLUSTER: &str = "mockCluster";
/// How long a new topic may have partitions without a leader.
const LEADER_WAIT: Duration = Duration::from_secs(15);
/// The interval between two lookups of such a topic.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

impl ConsumerContext for KafkaClientContext {}

/// A topic to create, with the default replication factor of the brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// The name.
    pub name: String,
    /// The number of partitions.
    pub partitions: i32,
    /// Topic settings, such as `retention.ms`.
    pub config: Vec<(String, String)>,
}

/// A client for queries about the cluster.
pub struct Cluster {
    consumer: BaseConsumer<KafkaClientContext>,
    kafka: KafkaConfig,
}

impl Cluster {
    /// Connects in the background. If no broker is reachable, the first query fails.
    ///
    /// # Errors
    /// A setting that librdkafka rejects.
    pub fn connect(kafka: &KafkaConfig) -> Result<Self> {
        // The high watermark must include records of open transactions. A query must not create a topic.
        let fixed =
            [("isolation.level", "read_uncommitted"), ("allow.auto.create.topics", "false")];
        let defaults = [("reconnect.backoff.max.ms", "2000"), ("socket.keepalive.enable", "true")];
        let config = kafka.client_with("millstream-metadata", &defaults, &fixed);
        let consumer =
            BaseConsumer::from_config_and_context(&config, KafkaClientContext::new("metadata"))
                .map_err(|error| kafka_error("cannot create a Kafka client", error))?;
        Ok(Self { consumer, kafka: kafka.clone() })
    }

    /// The cluster id; `None`: the brokers are too old to have one.
    ///
    /// # Errors
    /// No broker responds.
    pub fn cluster_id(&self) -> Result<Option<String>> {
        self.poll_events();
        if let Some(id) = self.consumer.client().fetch_cluster_id(Duration::ZERO) {
            return Ok(Some(id));
        }
        // The id arrives with metadata, so a missing response is an error and not `None`.
        let metadata = self.metadata(Some("__consumer_offsets"));
        metadata.map_err(|error| self.request_error("the cluster id", error))?;
        Ok(self.consumer.client().fetch_cluster_id(Duration::from_secs(1)))
    }

    /// The partitions of a topic, ascending; empty if there is no such topic.
    ///
    /// # Errors
    /// No broker responds, or no permission.
    pub fn partitions(&self, topic: &str) -> Result<Vec<i32>> {
        let started = Instant::now();
        loop {
            match self.look_up_topic(topic)? {
                TopicLookup::Ready(partitions) => return Ok(partitions),
                TopicLookup::Missing => return Ok(Vec::new()),
                TopicLookup::Creating if started.elapsed() < LEADER_WAIT => {
                    std::thread::sleep(RETRY_INTERVAL)
                }
                TopicLookup::Creating => {
                    return Err(Error::new(
                        Kind::Kafka,
                        format!("topic {topic} has partitions without a leader"),
                    ));
                }
            }
        }
    }

    fn look_up_topic(&self, topic: &str) -> Result<TopicLookup> {
        self.poll_events();
        let metadata = self.metadata(Some(topic));
        let metadata =
            metadata.map_err(|error| self.request_error(&format!("topic {topic}"), error))?;
        let Some(found) = metadata.topics().first() else { return Ok(TopicLookup::Missing) };
        match found.error() {
            None => {}
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => return Ok(TopicLookup::Missing),
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {
                return Ok(TopicLookup::Creating);
            }
            Some(other) => {
                return Err(self.request_error(
                    &format!("topic {topic}"),
                    KafkaError::MetadataFetch(other.into()),
                ));
            }
        }
        if found.partitions().iter().any(|partition| partition.leader() < 0) {
            return Ok(TopicLookup::Creating);
        }
        Ok(TopicLookup::Ready(partition_ids(found)))
    }

    /// The id that Kafka assigned when the topic was created; a topic that was recreated under the same
    /// name has another id. `None`: the brokers have no topic ids.
    ///
    /// # Errors
    /// No broker responds, or no such topic.
    pub fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        self.poll_events();
        // The mock cluster has no topic ids and never responds to the request.
        if self.is_mock_cluster()? {
            return Ok(None);
        }
        match ffi::topic_id(self.consumer.client(), topic, REQUEST_TIMEOUT) {
            Err(RDKafkaErrorCode::UnsupportedFeature) => Ok(None),
            other => other.map_err(|code| {
                self.request_error(
                    &format!("the id of topic {topic}"),
                    KafkaError::MetadataFetch(code),
                )
            }),
        }
    }

    /// All topics with their number of partitions, sorted by name, without Kafka's own (`__...`).
    ///
    /// # Errors
    /// No broker responds.
    pub fn topics(&self) -> Result<Vec<(String, i32)>> {
        self.poll_events();
        let metadata = self.metadata(None);
        let metadata = metadata.map_err(|error| self.request_error("the list of topics", error))?;
        let is_listed =
            |topic: &&MetadataTopic| topic.error().is_none() && !topic.name().starts_with("__");
        let mut topics: Vec<_> = (metadata.topics().iter().filter(is_listed))
            .map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32))
            .collect();
        topics.sort_unstable();
        Ok(topics)
    }

    /// The first available offset and the offset of the next record to be written (read_uncommitted).
    ///
    /// # Errors
    /// No broker responds, or no such partition.
    pub fn watermarks(&self, tp: &TopicPartition) -> Result<(i64, i64)> {
        self.poll_events();
        let request = || self.consumer.fetch_watermarks(&tp.topic, tp.partition, REQUEST_TIMEOUT);
        retry_transient(request)
            .map_err(|error| self.request_error(&format!("the offsets of {tp}"), error))
    }

    /// The first offset whose record has the timestamp `time` or later; the end if there is none.
    ///
    /// # Errors
    /// No broker responds, or no such partition.
    pub fn offsets_for_time(&self, tp: &TopicPartition, time: Micros) -> Result<i64> {
        self.poll_events();
        let failed = |error| self.request_error(&format!("the offsets of {tp}"), error);
        // Kafka's timestamps are milliseconds: round up.
        let millis = time.div_euclid(1000) + i64::from(time.rem_euclid(1000) > 0);
        let mut query = TopicPartitionList::new();
        query
            .add_partition_offset(&tp.topic, tp.partition, Offset::Offset(millis.max(0)))
            .map_err(failed)?;
        let request = || self.consumer.offsets_for_times(query.clone(), REQUEST_TIMEOUT);
        let response = retry_transient(request).map_err(failed)?;
        let element = response.find_partition(&tp.topic, tp.partition);
        let element = element
            .ok_or_else(|| Error::internal(format!("the response does not contain {tp}")))?;
        element.error().map_err(failed)?;
        match element.offset() {
            Offset::Offset(offset) => Ok(offset),
            _ => Ok(self.watermarks(tp)?.1),
        }
    }

    /// The committed offsets of a consumer group; `None`: no offset is committed for that partition.
    ///
    /// # Errors
    /// No broker responds, or no permission.
    pub fn group_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<i64>>> {
        let failed = |error| self.request_error(&format!("the offsets of group {group}"), error);
        let config = self.kafka.client_with(
            "millstream-metadata",
            &[],
            &[("group.id", group), ("enable.auto.commit", "false")],
        );
        let consumer: BaseConsumer<KafkaClientContext> = BaseConsumer::from_config_and_context(
            &config,
            KafkaClientContext::new("group offsets"),
        )
        .map_err(failed)?;
        let mut query = TopicPartitionList::with_capacity(partitions.len());
        for tp in partitions {
            query.add_partition(&tp.topic, tp.partition);
        }
        let request = || consumer.committed_offsets(query.clone(), REQUEST_TIMEOUT);
        let response = retry_transient(request).map_err(failed)?;
        let offset = |tp: &TopicPartition| match response
            .find_partition(&tp.topic, tp.partition)?
            .offset()
        {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        Ok(partitions.iter().map(offset).collect())
    }

    /// Creates topics; existing topics are not changed. Returns when all partitions have leaders.
    ///
    /// # Errors
    /// The brokers reject the request, for example because of a setting or a missing permission.
    pub fn create_topics(&self, topics: &[NewTopic]) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let failed = |error| kafka_error("cannot create topics", error);
        let requests: Vec<_> = topics.iter().map(native_topic).collect();
        let options = AdminOptions::new()
            .request_timeout(Some(REQUEST_TIMEOUT))
            .operation_timeout(Some(REQUEST_TIMEOUT));
        for outcome in block_on(self.admin()?.create_topics(&requests, &options)).map_err(failed)? {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(kafka_error(
                        format!("cannot create topic {name}"),
                        KafkaError::AdminOp(code),
                    )
                    .hint(
                        "check the settings of the topic and the permissions of this Kafka user",
                    ));
                }
            }
        }
        let started = Instant::now();
        for topic in topics {
            while self.partitions(&topic.name)?.is_empty() {
                if started.elapsed() > LEADER_WAIT {
                    return Err(Error::new(
                        Kind::Kafka,
                        format!(
                            "topic {} was created but is not in the metadata of the brokers",
                            topic.name
                        ),
                    ));
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
        Ok(())
    }

    /// The maximum batch size in bytes of each of `topics` whose setting can be read, limited by the
    /// client's own `message.max.bytes` if that is set.
    ///
    /// # Errors
    /// No broker responds.
    pub fn message_limits(&self, topics: &[Arc<str>]) -> Result<HashMap<Arc<str>, usize>> {
        let client_limit =
            self.kafka.settings.iter().rev().find(|(name, _)| name == "message.max.bytes");
        let client_limit =
            client_limit.and_then(|(_, value)| value.parse().ok()).unwrap_or(usize::MAX);
        let mut limits = HashMap::new();
        if !self.is_mock_cluster()? {
            let failed = |error| self.request_error("the settings of the topics", error);
            let resources: Vec<_> = topics.iter().map(|t| ResourceSpecifier::Topic(t)).collect();
            let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
            let response = block_on(self.admin()?.describe_configs(&resources, &options));
            for (topic, described) in topics.iter().zip(response.map_err(failed)?) {
                // Without the permission to describe a topic, callers assume Kafka's default.
                let Ok(described) = described else { continue };
                let limit = described.get("max.message.bytes").and_then(|e| e.value.as_deref());
                let limit = limit.and_then(|value| value.parse().ok());
                limits.extend(limit.map(|limit| (topic.clone(), limit)));
            }
        }
        if client_limit != usize::MAX {
            for topic in topics {
                let limit = limits.entry(topic.clone()).or_insert(client_limit);
                *limit = client_limit.min(*limit);
            }
        }
        Ok(limits)
    }

    /// Whether this is librdkafka's mock cluster for demos and tests, which supports fewer requests.
    fn is_mock_cluster(&self) -> Result<bool> {
        Ok(self.cluster_id()?.is_some_and(|id| id.starts_with(MOCK_CLUSTER)))
    }

    /// Permanently deletes the records before `offset`.
    ///
    /// # Errors
    /// The brokers reject the request, or `offset` is beyond the end.
    pub fn delete_records_before(&self, tp: &TopicPartition, offset: i64) -> Result<()> {
        let failed = |error| {
            kafka_error(format!("cannot delete the records of {tp} before {offset}"), error)
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(offset))
            .map_err(failed)?;
        let options = AdminOptions::new()
            .request_timeout(Some(REQUEST_TIMEOUT))
            .operation_timeout(Some(REQUEST_TIMEOUT));
        let response = block_on(self.admin()?.delete_records(&list, &options)).map_err(failed)?;
        response.elements().iter().try_for_each(|element| element.error()).map_err(failed)
    }

    fn admin(&self) -> Result<AdminClient<KafkaClientContext>> {
        AdminClient::from_config_and_context(
            &self.kafka.client_named("millstream-admin"),
            KafkaClientContext::new("admin"),
        )
        .map_err(|error| kafka_error("cannot create a Kafka client", error))
    }

    /// The metadata of one topic or of all. Retries once and logs a warning after the first timeout.
    fn metadata(&self, topic: Option<&str>) -> Result<Metadata, KafkaError> {
        let response = match self.consumer.fetch_metadata(topic, WARN_AFTER) {
            Err(error) if error.rdkafka_error_code().is_some_and(is_unreachable) => {
                self.warn_unreachable(&error);
                self.consumer.fetch_metadata(topic, REQUEST_TIMEOUT - WARN_AFTER)?
            }
            other => other?,
        };
        self.consumer.client().context().record_response();
        Ok(response)
    }

    /// Logs the outage. The best reason is librdkafka's last connection failure, if there is one.
    fn warn_unreachable(&self, error: &KafkaError) {
        let context = self.consumer.client().context();
        self.poll_events();
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let reason = context.last_failure();
        let reason = reason.unwrap_or_else(|| {
            format!("no response from {} within {} ms", self.kafka.brokers, WARN_AFTER.as_millis())
        });
        context.record_transport_error(code, &reason);
    }

    /// Handles the queued log lines and errors of librdkafka.
    fn poll_events(&self) {
        while self.consumer.poll(Duration::ZERO).is_some() {}
    }

    /// Converts the error of a query. `subject` names what the query requested.
    fn request_error(&self, subject: &str, error: KafkaError) -> Error {
        self.poll_events();
        let code = error.rdkafka_error_code();
        let message = format!("cannot get {subject} from brokers {}", self.kafka.brokers);
        let error = kafka_error(message, error);
        let outage = match code {
            Some(RDKafkaErrorCode::OperationTimedOut) => {
                format!("no response from the brokers within {} s", REQUEST_TIMEOUT.as_secs())
            }
            Some(code) if is_unreachable(code) => "the brokers are unreachable".to_owned(),
            _ => return error,
        };
        error.detail(match self.consumer.client().context().last_failure() {
            Some(reason) => format!("{outage}; last connection failure: {reason}"),
            None => outage,
        })
    }
}

/// Whether no broker responded, and one may respond later.
fn is_unreachable(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    matches!(code, AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve)
}

/// Repeats a request until the responsible broker is known, also for a new broker or a new topic.
fn retry_transient<T>(request: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let started = Instant::now();
    loop {
        match request() {
            Err(error) if is_transient(&error) && started.elapsed() < REQUEST_TIMEOUT => {
                std::thread::sleep(RETRY_INTERVAL);
            }
            response => return response,
        }
    }
}

/// Whether the coordinator of a group or the leader of a partition is not available yet.
fn is_transient(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        CoordinatorLoadInProgress, CoordinatorNotAvailable, LeaderNotAvailable, NotCoordinator,
        NotLeaderForPartition, WaitingForCoordinator,
    };
    matches!(
        error.rdkafka_error_code(),
        Some(
            CoordinatorLoadInProgress
                | CoordinatorNotAvailable
                | LeaderNotAvailable
                | NotCoordinator
                | NotLeaderForPartition
                | WaitingForCoordinator
        )
    )
}

/// The result of looking up a topic.
enum TopicLookup {
    /// All partitions have leaders.
    Ready(Vec<i32>),
    /// The topic is being created.
    Creating,
    /// There is no such topic.
    Missing,
}

fn partition_ids(topic: &MetadataTopic) -> Vec<i32> {
    let mut ids: Vec<i32> = topic.partitions().iter().map(|partition| partition.id()).collect();
    ids.sort_unstable();
    ids
}

fn native_topic(topic: &NewTopic) -> admin::NewTopic<'_> {
    let native = admin::NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(-1));
    topic.config.iter().fold(native, |native, (key, value)| native.set(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tests::mock::{Mock, fill, new_topic, real_kafka, unique};

    #[tokio::test]
    async fn topics_offsets_and_timestamps_are_queried() {
        let Some(kafka) = real_kafka("topics_offsets_and_timestamps_are_queried") else { return };
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
    fn transient_errors_are_retried_and_missing_topics_found() {
        let mock = Mock::start(&[("some", 1)]);
        let cluster = Cluster::connect(&mock.kafka).unwrap();
        assert_eq!(cluster.topic_id("some").unwrap(), None, "the mock cluster has no topic ids");
        // A request to a coordinator that is starting is repeated.
        mock.cluster.request_errors(
            rdkafka::types::RDKafkaApiKey::OffsetFetch,
            &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR; 3],
        );
        let offsets = cluster.group_offsets("g", &[TopicPartition::new("some", 0)]).unwrap();
        assert_eq!(offsets, [None]);
        assert_eq!(cluster.partitions("none").unwrap(), Vec::<i32>::new());
        assert!(cluster.watermarks(&TopicPartition::new("none", 0)).is_err());
    }
}
