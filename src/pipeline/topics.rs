//! The topics of a customer: those that it reads, and those that it needs to write to.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::catalog::{Start, Topics};
use crate::commit::{PartitionJoin, log_topic};
use crate::pipeline::engine::Engine;
use crate::pipeline::{PipelineConfig, history_root};
use crate::sink::{self, DEFAULT_LIMIT, SizeLimits, TopicContent};
use crate::source::{Cluster, NewTopic, blocking};
use crate::types::TopicPartition;
use crate::{Error, Kind, Result};

/// What a topic of dead letters takes, in bytes; managed brokers allow that much.
const DEAD_LETTER_BYTES: &str = "8388608";

/// The partitions that streams should read and do not yet.
pub fn new_partitions(
    cluster: &Cluster,
    engine_streams: &[(Arc<crate::catalog::Stream>, BTreeSet<TopicPartition>)],
    first: bool,
) -> Result<Vec<PartitionJoin>> {
    let topics = cluster.topics()?;
    let mut joined = Vec::new();
    for (stream, known) in engine_streams {
        for (topic, partitions) in &topics {
            if !stream.topics.matches(topic) {
                continue;
            }
            let mut topic_id = None;
            for partition in 0..*partitions {
                let tp = TopicPartition { topic: topic.as_str().into(), partition };
                if known.contains(&tp) {
                    continue;
                }
                let (low, high) = cluster.watermarks(&tp)?;
                let offset = match (first, &stream.start) {
                    (false, _) | (true, Start::Earliest) => low,
                    (true, Start::Latest) => high,
                    (true, Start::At(instant)) => cluster.offsets_for_time(&tp, *instant)?,
                };
                if topic_id.is_none() {
                    topic_id = cluster.topic_id(topic)?;
                }
                let (stream, topic_id) = (stream.name.clone(), topic_id.clone());
                joined.push(PartitionJoin { stream, partition: tp, offset, topic_id });
            }
        }
    }
    Ok(joined)
}

/// How large records of the output topics may be, and what becomes of larger ones.
pub async fn limits(cluster: &Arc<Cluster>, engine: &Engine) -> Result<SizeLimits> {
    let customer = &engine.customer;
    let dead = sink::dead_letter_topic(&customer.name);
    let mut outputs: HashMap<Arc<str>, TopicContent> = HashMap::new();
    for query in &engine.queries {
        let content = TopicContent::Results(query.plan.name.clone(), query.sink.publication);
        outputs.insert(query.sink.topic.clone(), content);
    }
    for stream in &customer.streams {
        outputs.insert(sink::late_topic(&customer.name, &stream.name), TopicContent::Late);
    }
    let mut topics: Vec<_> = outputs.keys().cloned().collect();
    topics.push(dead.clone());
    let cluster = cluster.clone();
    let mut limits: HashMap<_, _> =
        topics.iter().map(|topic| (topic.clone(), DEFAULT_LIMIT)).collect();
    limits.extend(blocking(move || cluster.message_limits(&topics)).await?);
    Ok(SizeLimits::new(limits, sink::replace_oversized(dead, outputs)))
}

/// Creates what is missing, or names it.
pub async fn ensure_topics(
    cluster: &Arc<Cluster>,
    engine: &Engine,
    options: &PipelineConfig,
) -> Result<()> {
    let customer = &engine.customer;
    let mut wanted = vec![
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
            // A record as large as Kafka takes by default, and its reasons, are no more than that.
            config: vec![("max.message.bytes".into(), DEAD_LETTER_BYTES.into())],
        },
    ];
    for stream in &customer.streams {
        let late = sink::late_topic(&customer.name, &stream.name).to_string();
        wanted.push(NewTopic { name: late, partitions: 1, config: vec![] });
        if let Topics::List(list) = &stream.topics {
            wanted.extend(list.iter().map(|t| NewTopic {
                name: t.clone(),
                partitions: 1,
                config: vec![],
            }));
        }
    }
    for query in &customer.queries {
        wanted.push(NewTopic { name: query.topic.clone(), partitions: 1, config: vec![] });
    }
    let cluster = cluster.clone();
    let create = options.create_topics;
    let (customer, log) = (customer.name.clone(), log_topic(&customer.name));
    let ran = !crate::history::tables(&history_root(&options.data_dir), &customer).is_empty()
        || options.data_dir.join("snapshots").join(&customer).is_dir();
    blocking(move || {
        let present: BTreeSet<_> = cluster.topics()?.into_iter().map(|(name, _)| name).collect();
        wanted.retain(|topic| !present.contains(&topic.name));
        if wanted.is_empty() {
            return Ok(());
        }
        if ran && wanted.iter().any(|topic| topic.name == log) && !create {
            let message = format!("the log topic {log} is gone, but {customer} has run before");
            return Err(Error::new(Kind::Recovery, message).hint(lost_log(&customer)));
        }
        if !create {
            let names: Vec<_> = wanted.iter().map(|t| t.name.as_str()).collect();
            return Err(Error::config(format!("topics are missing: {}", names.join(", ")))
                .hint("create them, or let Millstream do it with --create-topics"));
        }
        cluster.create_topics(&wanted)
    })
    .await
}

pub fn lost_log(customer: &str) -> String {
    format!(
        "was the topic deleted, or is this another cluster? If it is gone for good: `millstream \
         rebuild {customer} --create-topics` makes state and results again from what Kafka and \
         history have, and publishes nothing twice; --reset {customer} reads the topics from \
         their `start` again and repeats results"
    )
}
