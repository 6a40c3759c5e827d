//! What the cluster is and has: topics, partitions, offsets; and making topics.
//!
//! Every call blocks, up to half a minute when no broker answers: in async code, call from
//! `tokio::task::spawn_blocking`.

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

use crate::source::client::{Context, kafka_error};
use crate::source::config::KafkaConfig;
use crate::source::ffi;
use crate::time::Micros;
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// How long a call waits for an answer.
const WAIT: Duration = Duration::from_secs(30);
/// After this long without one the log says so: who mistyped an address shall not wait in silence.
const SILENCE: Duration = Duration::from_millis(2500);
/// What the id of librdkafka's embedded cluster begins with.
const MOCK_CLUSTER: &str = "mockCluster";
/// How long a topic just made may stay without leaders.
const LEADER_WAIT: Duration = Duration::from_secs(15);
/// How long to wait between two looks at such a topic.
const LEADER_PAUSE: Duration = Duration::from_millis(50);

impl ConsumerContext for Context {}

/// A topic to make. Its replication is the brokers' default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: i32,
    /// Topic settings, such as `retention.ms`.
    pub config: Vec<(String, String)>,
}

/// A connection for questions about the cluster.
pub struct Cluster {
    consumer: BaseConsumer<Context>,
    kafka: KafkaConfig,
}

impl Cluster {
    /// Connects in the background: that no broker answers is told by the first question.
    ///
    /// # Errors
    /// Settings that librdkafka refuses.
    pub fn connect(kafka: &KafkaConfig) -> Result<Self> {
        // High watermarks must count records of open transactions. Topics are never made by asking.
        let fixed =
            [("isolation.level", "read_uncommitted"), ("allow.auto.create.topics", "false")];
        let defaults = [("reconnect.backoff.max.ms", "2000"), ("socket.keepalive.enable", "true")];
        let config = kafka.client_with("millstream-metadata", &defaults, &fixed);
        let consumer = BaseConsumer::from_config_and_context(&config, Context::new("metadata"))
            .map_err(|error| kafka_error("cannot make a Kafka client", error))?;
        Ok(Self { consumer, kafka: kafka.clone() })
    }

    /// The cluster's id; `None`: it has none (very old brokers).
    ///
    /// # Errors
    /// No broker answers.
    pub fn cluster_id(&self) -> Result<Option<String>> {
        self.serve();
        if let Some(id) = self.consumer.client().fetch_cluster_id(Duration::ZERO) {
            return Ok(Some(id));
        }
        // The id comes with metadata: without an answer there is an error and not "none".
        let asked = self.metadata(Some("__consumer_offsets"));
        asked.map_err(|error| self.unanswered("the cluster's id", error))?;
        Ok(self.consumer.client().fetch_cluster_id(Duration::from_secs(1)))
    }

    /// The partitions of a topic, ascending; empty when there is no such topic.
    ///
    /// # Errors
    /// No broker answers, or no permission.
    pub fn partitions(&self, topic: &str) -> Result<Vec<i32>> {
        let begun = Instant::now();
        loop {
            match self.look_up(topic)? {
                Found::All(partitions) => return Ok(partitions),
                Found::Nothing => return Ok(Vec::new()),
                Found::Making if begun.elapsed() < LEADER_WAIT => std::thread::sleep(LEADER_PAUSE),
                Found::Making => {
                    return Err(Error::new(
                        Kind::Kafka,
                        format!("topic {topic} has partitions without a leader"),
                    ));
                }
            }
        }
    }

    fn look_up(&self, topic: &str) -> Result<Found> {
        self.serve();
        let metadata = self.metadata(Some(topic));
        let metadata =
            metadata.map_err(|error| self.unanswered(&format!("topic {topic}"), error))?;
        let Some(found) = metadata.topics().first() else { return Ok(Found::Nothing) };
        match found.error() {
            None => {}
            Some(
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
            ) => return Ok(Found::Nothing),
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {
                return Ok(Found::Making);
            }
            Some(other) => {
                return Err(self.unanswered(
                    &format!("topic {topic}"),
                    KafkaError::MetadataFetch(other.into()),
                ));
            }
        }
        if found.partitions().iter().any(|partition| partition.leader() < 0) {
            return Ok(Found::Making);
        }
        Ok(Found::All(partition_ids(found)))
    }

    /// The id that Kafka gave this topic when it was made: a topic of the same name that was
    /// made anew has another. `None`: the brokers have no topic ids.
    ///
    /// # Errors
    /// No broker answers, or no such topic.
    pub fn topic_id(&self, topic: &str) -> Result<Option<String>> {
        self.serve();
        // The embedded one has no ids, and never answers when asked for one.
        if self.is_embedded()? {
            return Ok(None);
        }
        match ffi::topic_id(self.consumer.client(), topic, WAIT) {
            Err(RDKafkaErrorCode::UnsupportedFeature) => Ok(None),
            other => other.map_err(|code| {
                self.unanswered(
                    &format!("the id of topic {topic}"),
                    KafkaError::MetadataFetch(code),
                )
            }),
        }
    }

    /// All topics with their numbers of partitions, by name; Kafka's own (`__...`) are left out.
    ///
    /// # Errors
    /// No broker answers.
    pub fn topics(&self) -> Result<Vec<(String, i32)>> {
        self.serve();
        let metadata = self.metadata(None);
        let metadata = metadata.map_err(|error| self.unanswered("the topics", error))?;
        let wanted =
            |topic: &&MetadataTopic| topic.error().is_none() && !topic.name().starts_with("__");
        let mut topics: Vec<_> = (metadata.topics().iter().filter(wanted))
            .map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32))
            .collect();
        topics.sort_unstable();
        Ok(topics)
    }

    /// The first offset that there is and the next that will be (read_uncommitted).
    ///
    /// # Errors
    /// No broker answers, or no such partition.
    pub fn watermarks(&self, tp: &TopicPartition) -> Result<(i64, i64)> {
        self.serve();
        let ask = || self.consumer.fetch_watermarks(&tp.topic, tp.partition, WAIT);
        patiently(ask).map_err(|error| self.unanswered(&format!("the offsets of {tp}"), error))
    }

    /// The first offset whose record's time is `time` or later; the end when there is none yet.
    ///
    /// # Errors
    /// No broker answers, or no such partition.
    pub fn offsets_for_time(&self, tp: &TopicPartition, time: Micros) -> Result<i64> {
        self.serve();
        let failed = |error| self.unanswered(&format!("the offsets of {tp}"), error);
        // Kafka counts milliseconds: the first at or after `time`.
        let millis = time.div_euclid(1000) + i64::from(time.rem_euclid(1000) > 0);
        let mut wanted = TopicPartitionList::new();
        wanted
            .add_partition_offset(&tp.topic, tp.partition, Offset::Offset(millis.max(0)))
            .map_err(failed)?;
        let ask = || self.consumer.offsets_for_times(wanted.clone(), WAIT);
        let answer = patiently(ask).map_err(failed)?;
        let element = answer.find_partition(&tp.topic, tp.partition);
        let element = element.ok_or_else(|| Error::internal(format!("no answer for {tp}")))?;
        element.error().map_err(failed)?;
        match element.offset() {
            Offset::Offset(offset) => Ok(offset),
            _ => Ok(self.watermarks(tp)?.1),
        }
    }

    /// The offsets that a group committed for these partitions; `None`: none. For lag and recovery checks.
    ///
    /// # Errors
    /// No broker answers, or no permission.
    pub fn group_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<i64>>> {
        let failed = |error| self.unanswered(&format!("the offsets of group {group}"), error);
        let config = self.kafka.client_with(
            "millstream-metadata",
            &[],
            &[("group.id", group), ("enable.auto.commit", "false")],
        );
        let consumer: BaseConsumer<Context> =
            BaseConsumer::from_config_and_context(&config, Context::new("group offsets"))
                .map_err(failed)?;
        let mut wanted = TopicPartitionList::with_capacity(partitions.len());
        for tp in partitions {
            wanted.add_partition(&tp.topic, tp.partition);
        }
        let ask = || consumer.committed_offsets(wanted.clone(), WAIT);
        let answer = patiently(ask).map_err(failed)?;
        let offset =
            |tp: &TopicPartition| match answer.find_partition(&tp.topic, tp.partition)?.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
        Ok(partitions.iter().map(offset).collect())
    }

    /// Makes topics; one that exists already stays as it is. Returns when all have leaders.
    ///
    /// # Errors
    /// The brokers refuse, for example a setting or for lack of a permission.
    pub fn create_topics(&self, wanted: &[NewTopic]) -> Result<()> {
        if wanted.is_empty() {
            return Ok(());
        }
        let failed = |error| kafka_error("topics could not be created", error);
        let topics: Vec<_> = wanted.iter().map(native_topic).collect();
        let options = AdminOptions::new().request_timeout(Some(WAIT)).operation_timeout(Some(WAIT));
        for outcome in block_on(self.admin()?.create_topics(&topics, &options)).map_err(failed)? {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(kafka_error(
                        format!("topic {name} could not be created"),
                        KafkaError::AdminOp(code),
                    )
                    .hint("look at the topic's settings and this Kafka user's permissions"));
                }
            }
        }
        let begun = Instant::now();
        for topic in wanted {
            while self.partitions(&topic.name)?.is_empty() {
                if begun.elapsed() > LEADER_WAIT {
                    return Err(Error::new(
                        Kind::Kafka,
                        format!("topic {} was created but does not appear", topic.name),
                    ));
                }
                std::thread::sleep(LEADER_PAUSE);
            }
        }
        Ok(())
    }

    /// How many bytes a batch may have, for each of `topics` that tells; also the client's own
    /// `message.max.bytes`, where that is set and lower.
    ///
    /// # Errors
    /// No broker answers.
    pub fn message_limits(&self, topics: &[Arc<str>]) -> Result<HashMap<Arc<str>, usize>> {
        let set = self.kafka.settings.iter().rev().find(|(name, _)| name == "message.max.bytes");
        let set = set.and_then(|(_, value)| value.parse().ok()).unwrap_or(usize::MAX);
        let mut limits = HashMap::new();
        if !self.is_embedded()? {
            let failed = |error| self.unanswered("the settings of topics", error);
            let wanted: Vec<_> = topics.iter().map(|t| ResourceSpecifier::Topic(t)).collect();
            let options = AdminOptions::new().request_timeout(Some(WAIT));
            let answer = block_on(self.admin()?.describe_configs(&wanted, &options));
            for (topic, described) in topics.iter().zip(answer.map_err(failed)?) {
                // Without the permission to look, Kafka's default is taken for the limit.
                let Ok(described) = described else { continue };
                let limit = described.get("max.message.bytes").and_then(|e| e.value.as_deref());
                let limit = limit.and_then(|value| value.parse().ok());
                limits.extend(limit.map(|limit| (topic.clone(), limit)));
            }
        }
        if set != usize::MAX {
            for topic in topics {
                let limit = limits.entry(topic.clone()).or_insert(set);
                *limit = set.min(*limit);
            }
        }
        Ok(limits)
    }

    /// Whether this is librdkafka's broker for demos and tests, which answers to less.
    fn is_embedded(&self) -> Result<bool> {
        Ok(self.cluster_id()?.is_some_and(|id| id.starts_with(MOCK_CLUSTER)))
    }

    /// Removes the records before `offset` for ever.
    ///
    /// # Errors
    /// The brokers refuse, or `offset` is beyond the end.
    pub fn delete_records_before(&self, tp: &TopicPartition, offset: i64) -> Result<()> {
        let failed = |error| {
            kafka_error(format!("records of {tp} before {offset} could not be deleted"), error)
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(offset))
            .map_err(failed)?;
        let options = AdminOptions::new().request_timeout(Some(WAIT)).operation_timeout(Some(WAIT));
        let answer = block_on(self.admin()?.delete_records(&list, &options)).map_err(failed)?;
        answer.elements().iter().try_for_each(|element| element.error()).map_err(failed)
    }

    fn admin(&self) -> Result<AdminClient<Context>> {
        AdminClient::from_config_and_context(
            &self.kafka.client_named("millstream-admin"),
            Context::new("admin"),
        )
        .map_err(|error| kafka_error("cannot make a Kafka client", error))
    }

    /// The metadata of one topic or of all. Two tries: a silence is told of after the first.
    fn metadata(&self, topic: Option<&str>) -> Result<Metadata, KafkaError> {
        let answer = match self.consumer.fetch_metadata(topic, SILENCE) {
            Err(error) if error.rdkafka_error_code().is_some_and(is_silence) => {
                self.say_silent(&error);
                self.consumer.fetch_metadata(topic, WAIT - SILENCE)?
            }
            other => other?,
        };
        self.consumer.client().context().answered();
        Ok(answer)
    }

    /// What librdkafka says of its connections is the best reason; while one hangs it says nothing.
    fn say_silent(&self, error: &KafkaError) {
        let context = self.consumer.client().context();
        self.serve();
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        let reason = context.failure();
        let reason = reason.unwrap_or_else(|| format!("no word yet from {}", self.kafka.brokers));
        context.disturbed(code, &reason);
    }

    /// Passes on what librdkafka has to say: its lines wait in a queue until asked for.
    fn serve(&self) {
        while self.consumer.poll(Duration::ZERO).is_some() {}
    }

    fn unanswered(&self, what: &str, error: KafkaError) -> Error {
        self.serve();
        kafka_error(format!("Kafka at {} does not tell {what}", self.kafka.brokers), error)
    }
}

/// Whether the brokers said nothing, and may yet.
fn is_silence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut, Resolve};
    matches!(code, AllBrokersDown | BrokerTransportFailure | OperationTimedOut | Resolve)
}

/// Asks until the broker that is to answer is found: of a new broker, or a new topic, too.
fn patiently<T>(ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let begun = Instant::now();
    loop {
        match ask() {
            Err(error) if is_passing(&error) && begun.elapsed() < WAIT => {
                std::thread::sleep(LEADER_PAUSE);
            }
            answer => return answer,
        }
    }
}

/// Whether a group's coordinator, or a partition's leader, will answer soon.
fn is_passing(error: &KafkaError) -> bool {
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

/// What a look at a topic found.
enum Found {
    /// All partitions have leaders.
    All(Vec<i32>),
    /// It is being made.
    Making,
    /// No such topic.
    Nothing,
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
        let mock = Mock::start(&[("some", 1)]);
        let cluster = Cluster::connect(&mock.kafka).unwrap();
        assert_eq!(cluster.topic_id("some").unwrap(), None, "the embedded broker has no ids");
        // A coordinator that has just begun is asked again.
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
