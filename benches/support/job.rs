//! Shared by the whole-job benchmarks: brokers, projects, CPU time, and tables.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

/// The brokers of MILLSTREAM_TEST_KAFKA. Without it, prints what the benchmark needs.
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

/// Lets the cluster create its internal topics of transactions and groups, so that no measurement
/// includes that time.
#[allow(dead_code, reason = "not every benchmark measures short times")]
pub fn warm(brokers: &str) {
    let timeout = Duration::from_secs(60);
    let producer: BaseProducer = config(brokers).set("transactional.id", "warm").create().unwrap();
    producer.init_transactions(timeout).unwrap();
    let consumer: BaseConsumer = config(brokers).set("group.id", "warm").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition("warm", 0);
    let since = Instant::now();
    // Until the group has a coordinator.
    while let Err(error) = consumer.committed_offsets(list.clone(), timeout) {
        assert!(since.elapsed() < timeout, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Creates a topic with the brokers' default number of replicas.
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

/// A `read_committed` consumer of topics with one partition, with a short Fetch wait.
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

/// Stops the engine with SIGTERM and checks its exit code.
#[allow(dead_code, reason = "not every benchmark stops its engine")]
pub fn end(mut engine: Child) {
    let status = Command::new("kill").arg(engine.id().to_string()).status().unwrap();
    assert!(status.success() && engine.wait().unwrap().success());
}

/// The name of a process or a thread, its CPU seconds and those of its ended children, from its `stat`
/// in /proc (in ticks of 1/100 s); `None` if it has ended.
fn cpu_of(stat: &str) -> Option<(String, [f64; 2])> {
    let text = std::fs::read_to_string(stat).ok()?;
    // The name is in brackets and may contain any character.
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

/// The share of a process's CPU that commits take, in percent: the threads that run transactions, and
/// those of librdkafka, which only send the committed records. Threads that have ended are not
/// counted, because their names are unknown.
#[allow(dead_code, reason = "not every benchmark uses it")]
pub fn commit_share(process: u32) -> f64 {
    let folder = format!("/proc/{process}");
    let (_, [all, _]) = cpu_of(&format!("{folder}/stat")).unwrap();
    let threads = std::fs::read_dir(format!("{folder}/task")).unwrap().flatten();
    let commits = threads
        .filter_map(|thread| cpu_of(&thread.path().join("stat").to_string_lossy()))
        .filter(|(name, _)| name.starts_with("commit-") || name.starts_with("rdk:"));
    commits.map(|(_, [own, _])| own).sum::<f64>() / all * 100.0
}

/// The minimum, the median and the maximum of the values of a figure.
#[allow(dead_code, reason = "not every benchmark has rounds")]
pub fn spread(figures: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    [figures[0], figures[figures.len() / 2], figures[figures.len() - 1]]
}

/// The median, with minimum and maximum if these differ, as text.
#[allow(dead_code, reason = "not every benchmark has rounds")]
pub fn median_text([min, median, max]: [f64; 3], digits: usize) -> String {
    if min == max {
        format!("{median:.digits$}")
    } else {
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// Writes a table between its marks in the file named by WRITE_TO.
pub fn write_table(mark: &str, table: &str) {
    let Some(path) = std::env::var_os("WRITE_TO") else { return };
    let text = std::fs::read_to_string(&path).unwrap();
    let (open, close) = (format!("<!-- {mark} -->\n"), format!("<!-- /{mark} -->"));
    let (head, rest) = text.split_once(&open).unwrap();
    let (_, tail) = rest.split_once(&close).unwrap();
    std::fs::write(&path, format!("{head}{open}{table}{close}{tail}")).unwrap();
}
