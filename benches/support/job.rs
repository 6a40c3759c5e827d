//! What the benchmarks of whole jobs share: a broker, a project, the CPU that it took.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

/// The brokers that a benchmark is to use; without any it says what it needs.
pub fn brokers(bench: &str) -> Option<String> {
    let brokers = std::env::var("MILLSTREAM_TEST_KAFKA").ok();
    if brokers.is_none() {
        println!("{bench}: needs Kafka (benches/run {bench} starts one); skipped");
    }
    brokers
}

/// A client's configuration.
pub fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// A cluster makes its topics of transactions and of groups when they are first asked for: let
/// nobody whose time is measured wait for them.
#[allow(dead_code, reason = "not every benchmark measures so short times")]
pub fn warm(brokers: &str) {
    let patience = Duration::from_secs(60);
    let producer: BaseProducer = config(brokers).set("transactional.id", "warm").create().unwrap();
    producer.init_transactions(patience).unwrap();
    let consumer: BaseConsumer = config(brokers).set("group.id", "warm").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition("warm", 0);
    let since = Instant::now();
    // Until the group has a coordinator that knows of it.
    while let Err(error) = consumer.committed_offsets(list.clone(), patience) {
        assert!(since.elapsed() < patience, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Makes a topic, with as many replicas as the brokers give it.
pub fn create(brokers: &str, topic: &str, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = config(brokers).create().unwrap();
    let wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    let made =
        futures::executor::block_on(admin.create_topics([&wanted], &AdminOptions::new())).unwrap();
    made.into_iter().for_each(|result| assert!(result.is_ok(), "{result:?}"));
}

/// A project folder with one customer.
pub fn project(customer: &str, schema: &str, queries: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &Path, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(format!("schemas/{customer}.sql").as_ref(), schema);
    for (name, text) in queries {
        write(format!("queries/{customer}/{name}.sql").as_ref(), text);
    }
    folder
}

/// A consumer of what is committed in topics of one partition, which asks often.
#[allow(dead_code, reason = "not every benchmark follows results")]
pub fn follow(config: &mut ClientConfig, topics: &[&str], from: Offset) -> BaseConsumer {
    config.set("isolation.level", "read_committed").set("fetch.wait.max.ms", "10");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    for topic in topics {
        list.add_partition_offset(topic, 0, from).unwrap();
    }
    consumer.assign(&list).unwrap();
    consumer
}

/// SIGTERM, and a good end.
#[allow(dead_code, reason = "not every benchmark has an engine that runs on")]
pub fn end(mut engine: Child) {
    let status = Command::new("kill").arg(engine.id().to_string()).status().unwrap();
    assert!(status.success() && engine.wait().unwrap().success());
}

/// The name of a process or a thread, and the CPU seconds of itself and of its ended children, from
/// its `stat` in /proc (ticks of 1/100 s); none if it has ended.
fn cpu_of(stat: &str) -> Option<(String, [f64; 2])> {
    let text = std::fs::read_to_string(stat).ok()?;
    // The name stands in brackets and may hold anything.
    let (head, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |at: usize| fields[at].parse::<f64>().unwrap() / 100.0;
    let both = [seconds(11) + seconds(12), seconds(13) + seconds(14)];
    Some((head.split_once('(')?.1.to_owned(), both))
}

/// CPU seconds of this process and of its ended children.
pub fn cpu_seconds() -> (f64, f64) {
    let (_, [own, children]) = cpu_of("/proc/self/stat").unwrap();
    (own, children)
}

/// How much of a process's CPU went into commits, in percent: the threads of transactions and of
/// librdkafka, which sends what they commit and nothing else. Of threads that have ended nobody
/// knows the name.
#[allow(dead_code, reason = "not every benchmark asks")]
pub fn commit_share(process: u32) -> f64 {
    let folder = format!("/proc/{process}");
    let (_, [all, _]) = cpu_of(&format!("{folder}/stat")).unwrap();
    let threads = std::fs::read_dir(format!("{folder}/task")).unwrap().flatten();
    let commits = threads
        .filter_map(|thread| cpu_of(&thread.path().join("stat").to_string_lossy()))
        .filter(|(name, _)| name.starts_with("commit-") || name.starts_with("rdk:"));
    commits.map(|(_, [own, _])| own).sum::<f64>() / all * 100.0
}

/// The least, the median and the most of a figure.
#[allow(dead_code, reason = "not every benchmark has rounds")]
pub fn spread(figures: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    [figures[0], figures[figures.len() / 2], figures[figures.len() - 1]]
}

/// The median, and from the least to the most where these differ.
#[allow(dead_code, reason = "not every benchmark has rounds")]
pub fn shown([least, median, most]: [f64; 3], digits: usize) -> String {
    if least == most {
        format!("{median:.digits$}")
    } else {
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

/// Puts a table between its marks in the file that WRITE_TO names.
pub fn write_table(mark: &str, table: &str) {
    let Some(path) = std::env::var_os("WRITE_TO") else { return };
    let text = std::fs::read_to_string(&path).unwrap();
    let (open, close) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let (head, rest) = text.split_once(&open).unwrap();
    let (_, tail) = rest.split_once(&close).unwrap();
    std::fs::write(&path, format!("{head}{open}{table}{close}{tail}")).unwrap();
}
