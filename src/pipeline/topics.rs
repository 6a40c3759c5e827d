//! The topics that a customer needs: they are checked or created before a start, and their size
//! limits are read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::catalog::{Customer, Topics};
use crate::commit::log_topic;
use crate::pipeline::config::{PipelineConfig, history_root};
use crate::pipeline::engine::Engine;
use crate::sink::{self, DEFAULT_LIMIT, SizeLimits, TopicContent};
use crate::source::{Cluster, NewTopic, blocking};
use crate::{Error, Kind, Result};

/// `max.message.bytes` of a dead-letter topic that Millstream creates. Managed brokers allow it.
const DEAD_LETTER_BYTES: &str = "8388608";

/// Reads how large a record of each output topic may be.
///
/// # Errors
/// No broker answers.
pub async fn read_size_limits(cluster: &Arc<Cluster>, engine: &Engine) -> Result<SizeLimits> {
    let customer = &engine.customer;
    let dead_letters = sink::dead_letter_topic(&customer.name);
    let mut outputs: HashMap<Arc<str>, TopicContent> = HashMap::new();
    for query in engine.queries() {
        let content = TopicContent::Results(query.plan().name.clone(), query.sink().publication);
        outputs.insert(query.sink().topic.clone(), content);
    }
    for stream in &customer.streams {
        outputs.insert(sink::late_topic(&customer.name, &stream.name), TopicContent::Late);
    }
    let mut topics: Vec<_> = outputs.keys().cloned().collect();
    topics.push(dead_letters.clone());
    let cluster = cluster.clone();
    let mut limits: HashMap<_, _> =
        topics.iter().map(|topic| (topic.clone(), DEFAULT_LIMIT)).collect();
    limits.extend(blocking(move || cluster.message_limits(&topics)).await?);
    Ok(SizeLimits::new(limits, sink::replace_oversized(dead_letters, outputs)))
}

/// Creates the missing topics of a customer if `create_topics` is set.
///
/// # Errors
/// Topics are missing and may not be created; or the log topic is missing although the customer
/// has run before.
pub async fn ensure_topics(
    cluster: &Arc<Cluster>,
    customer: &Customer,
    config: &PipelineConfig,
) -> Result<()> {
    let mut missing = required_topics(customer);
    let cluster = cluster.clone();
    let create = config.create_topics;
    let (customer, log) = (customer.name.clone(), log_topic(&customer.name));
    let has_run = !crate::history::tables(&history_root(&config.data_dir), &customer).is_empty()
        || config.snapshot_folder(&customer).is_dir();
    blocking(move || {
        let present: BTreeSet<_> = cluster.topics()?.into_iter().map(|(name, _)| name).collect();
        missing.retain(|topic| !present.contains(&topic.name));
        if missing.is_empty() {
            return Ok(());
        }
        if has_run && missing.iter().any(|topic| topic.name == log) && !create {
            let message =
                format!("the log topic {log} does not exist, but {customer} has run before");
            return Err(Error::new(Kind::Recovery, message).hint(lost_log_hint(&customer)));
        }
        if !create {
            let names: Vec<_> = missing.iter().map(|topic| topic.name.as_str()).collect();
            return Err(Error::config(format!("topics are missing: {}", names.join(", ")))
                .hint("create them, or let Millstream create them with --create-topics"));
        }
        cluster.create_topics(&missing)
    })
    .await
}

/// The log, the outputs and the listed source topics of a customer.
fn required_topics(customer: &Customer) -> Vec<NewTopic> {
    let with_one_partition = |name: String| NewTopic { name, partitions: 1, config: vec![] };
    let mut topics = vec![
        NewTopic {
            name: log_topic(&customer.name),
            partitions: 1,
            config: vec![
                ("retention.ms".into(), "-1".into()),
                ("retention.bytes".into(), "-1".into()),
            ],
        },
        NewTopic {
            name: sink::dead_letter_topic(&customer.name).to_string(),
            partitions: 1,
            // A dead letter holds a record of Kafka's default limit together with its reasons.
            config: vec![("max.message.bytes".into(), DEAD_LETTER_BYTES.into())],
        },
    ];
    for stream in &customer.streams {
        topics.push(with_one_partition(sink::late_topic(&customer.name, &stream.name).to_string()));
        if let Topics::List(list) = &stream.topics {
            topics.extend(list.iter().cloned().map(with_one_partition));
        }
    }
    topics.extend(customer.queries.iter().map(|query| with_one_partition(query.topic.clone())));
    topics
}

/// The hint for a customer whose log topic is missing or empty although it has run before.
pub fn lost_log_hint(customer: &str) -> String {
    format!(
        "was the topic deleted, or is this another cluster? If the log is lost: `millstream \
         rebuild {customer} --create-topics` rebuilds state and results from Kafka and history \
         and publishes nothing twice; --reset {customer} reads the topics from their `start` \
         again and publishes results again"
    )
}
