//! Real brokers that a test starts for itself: with TLS, with SASL, or two of them.
//!
//! They run from the same jars as `.ci/kafka`'s (it fetches them), on free ports of 127.0.0.1,
//! and are stopped when they are dropped.

use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::source::KafkaConfig;
use crate::source::tests::mock::real_kafka;

/// What a broker says last when it is up.
const UP: &str = "Kafka Server started";

/// One broker's process.
struct Broker {
    child: Option<Child>,
    properties: PathBuf,
}

/// Brokers of one cluster.
pub(crate) struct Brokers {
    brokers: Vec<Broker>,
    /// Certificates and all that the brokers keep.
    pub(crate) folder: tempfile::TempDir,
    libs: PathBuf,
    /// For each broker, the port of each of its listeners.
    pub(crate) ports: Vec<Vec<u16>>,
}

/// The jars, if a real Kafka is there to be tested with at all.
fn libs(test: &str) -> Option<PathBuf> {
    real_kafka(test)?;
    let cache = || {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from)
    };
    let libs = std::env::var_os("MILLSTREAM_KAFKA_LIBS")
        .map_or_else(|| cache().join("millstream/kafka/libs"), PathBuf::from);
    assert!(libs.is_dir(), "{test}: no jars in {}: run .ci/kafka once", libs.display());
    Some(libs)
}

/// Ports on which nobody listens now, each given once. They lie below those that the system gives
/// to outgoing connections, of which other tests make many before a broker listens or while it is
/// down, and below those of `.ci/kafka`.
fn free_ports(count: usize) -> Vec<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(97);
    let next = || 10_000 + (begin.wrapping_add(GIVEN.fetch_add(1, Relaxed)) % 10_000) as u16;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(next).filter(is_free).take(count).collect()
}

fn java(libs: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC"])
        .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"])
        .args(["-Dorg.slf4j.simpleLogger.log.kafka.server=info"])
        .arg("-cp")
        .arg(libs.join("*"));
    java
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

/// Sends lines with Java's producer.
pub(crate) fn produce_with_java(
    test: &str,
    kafka: &KafkaConfig,
    topic: &str,
    codec: &str,
    lines: &str,
) {
    let mut command = java(&libs(test).unwrap());
    command.args(["org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", &kafka.brokers]);
    command.args(["--topic", topic, "--compression-codec", codec]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut producer = command.spawn().unwrap();
    producer.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(producer.wait().unwrap().success(), "{command:?}");
}

impl Brokers {
    /// `count` brokers, of which the first is the controller, each with these listeners (name and
    /// protocol) after a plain one, and these settings. `format`: more for the storage tool.
    fn start(
        test: &str,
        count: usize,
        listeners: &[(&str, &str)],
        settings: impl Fn(&Path) -> String,
        format: &[&str],
    ) -> Option<Self> {
        let libs = libs(test)?;
        let folder = tempfile::tempdir().unwrap();
        let more = settings(folder.path());
        let controller = free_ports(1)[0];
        let uuid = "MkU3OEVBNTcwNTJENDM2Qk";
        let mut all = Self { brokers: vec![], folder, libs, ports: vec![] };
        for number in 1..=count {
            let mut listeners = listeners.to_vec();
            listeners.insert(0, ("PLAIN", "PLAINTEXT"));
            let ports = free_ports(listeners.len());
            let place = all.folder.path().join(format!("broker-{number}"));
            std::fs::create_dir_all(&place).unwrap();
            let properties = place.join("server.properties");
            let mut text = properties_of(number, controller, &listeners, &ports, &place);
            text.push_str(&more);
            std::fs::write(&properties, text).unwrap();
            succeed(
                java(&all.libs)
                    .args(["kafka.tools.StorageTool", "format", "-t", uuid, "-c"])
                    .arg(&properties)
                    .args(format),
            );
            all.brokers.push(Broker { child: None, properties });
            all.ports.push(ports);
        }
        all.launch_all();
        Some(all)
    }

    /// A cluster of two.
    pub(crate) fn two(test: &str) -> Option<Self> {
        Self::start(test, 2, &[], |_| String::new(), &[])
    }

    /// A cluster of three, where a replica that is behind may lead when no other can.
    pub(crate) fn unclean(test: &str) -> Option<Self> {
        let settings = |_: &Path| "unclean.leader.election.enable=true\n".to_owned();
        Self::start(test, 3, &[], settings, &[])
    }

    /// One broker with TLS, SASL, SASL over TLS, and TLS with a client's certificate, on its
    /// second port and those after it. User `alice` has the password `alice secret`. The folder has the CA's certificate as
    /// `ca.pem` and a client's as `client.pem` and `client.key`; the broker's is made out to
    /// 127.0.0.1.
    pub(crate) fn secure(test: &str) -> Option<Self> {
        let listeners =
            [("TLS", "SSL"), ("SASL", "SASL_PLAINTEXT"), ("BOTH", "SASL_SSL"), ("MUTUAL", "SSL")];
        let scram = |mechanism: &str| format!("{mechanism}=[name=alice,password=alice secret]");
        let (one, two) = (scram("SCRAM-SHA-256"), scram("SCRAM-SHA-512"));
        let format = ["--add-scram", &one, "--add-scram", &two];
        Self::start(test, 1, &listeners, secure_settings, &format)
    }

    fn launch_all(&mut self) {
        // All at once: the controller is one of them.
        for number in 0..self.brokers.len() {
            self.launch(number);
        }
        for broker in &mut self.brokers {
            broker.wait();
        }
    }

    fn launch(&mut self, number: usize) {
        let broker = &mut self.brokers[number];
        let mut command = java(&self.libs);
        command.arg("kafka.Kafka").arg(&broker.properties);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        broker.child = Some(command.spawn().unwrap());
    }

    /// Stops a broker as an operator would: what it leads moves first.
    pub(crate) fn stop(&mut self, number: usize) {
        let mut child = self.brokers[number].child.take().unwrap();
        succeed(Command::new("kill").arg(child.id().to_string()));
        child.wait().unwrap();
    }

    /// Stops a broker as a broken machine would.
    pub(crate) fn kill(&mut self, number: usize) {
        let mut child = self.brokers[number].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a stopped broker again.
    pub(crate) fn restart(&mut self, number: usize) {
        self.launch(number);
        self.brokers[number].wait();
    }

    /// Makes a topic of one partition with replicas on these brokers; the first one leads.
    pub(crate) fn create_topic(&self, name: &str, replicas: &[i32]) {
        let admin: AdminClient<DefaultClientContext> = self.plain().client().create().unwrap();
        let assignment = [replicas];
        let topic = NewTopic::new(name, 1, TopicReplication::Variable(&assignment));
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let made = block_on(admin.create_topics([&topic], &options)).unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
    }

    /// Waits until a broker that leads a topic by right is in its set again, and gives it the
    /// lead. Numbers count from 1.
    pub(crate) fn lead(&self, topic: &str, broker: i32) {
        let begun = Instant::now();
        loop {
            let mut election = java(&self.libs);
            election.args(["org.apache.kafka.tools.LeaderElectionCommand", "--bootstrap-server"]);
            election.arg(self.plain().brokers).args(["--election-type", "preferred"]);
            let output = election.args(["--topic", topic, "--partition", "0"]).output().unwrap();
            if self.leader(topic) == Some(broker) {
                return;
            }
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not lead: {said}");
        }
    }

    /// Who leads a topic of one partition; -1: nobody.
    pub(crate) fn leader(&self, topic: &str) -> Option<i32> {
        let consumer: BaseConsumer = self.plain().client().create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).ok()?;
        Some(metadata.topics().first()?.partitions().first()?.leader())
    }

    /// The plain listeners of all brokers.
    pub(crate) fn plain(&self) -> KafkaConfig {
        let all: Vec<_> =
            self.ports.iter().map(|ports| format!("127.0.0.1:{}", ports[0])).collect();
        KafkaConfig::new(all.join(","))
    }
}

impl Broker {
    /// Waits until it serves; what it says afterwards is read and dropped.
    fn wait(&mut self) {
        let stderr = self.child.as_mut().unwrap().stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines();
        let mut said = Vec::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if line.contains(UP) {
                std::thread::spawn(move || lines.for_each(drop));
                return;
            }
            said.push(line);
        }
        // Why it ended stands below the pages of what it did before.
        let last = &said[said.len().saturating_sub(30)..];
        panic!("a broker did not start; at last it said:\n{}", last.join("\n"));
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        for child in self.brokers.iter_mut().filter_map(|broker| broker.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn properties_of(
    number: usize,
    controller: u16,
    listeners: &[(&str, &str)],
    ports: &[u16],
    place: &Path,
) -> String {
    let roles = if number == 1 { "broker,controller" } else { "broker" };
    let at = |(name, port): (&str, &u16)| format!("{name}://127.0.0.1:{port}");
    let named = || listeners.iter().map(|(name, _)| *name).zip(ports);
    let advertised: Vec<_> = named().map(at).collect();
    let mut bound = advertised.clone();
    if number == 1 {
        bound.push(format!("CONTROLLER://127.0.0.1:{controller}"));
    }
    let mut protocols = vec!["CONTROLLER:PLAINTEXT".to_owned()];
    protocols.extend(listeners.iter().map(|(name, protocol)| format!("{name}:{protocol}")));
    format!(
        "process.roles={roles}\nnode.id={number}\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\ncontroller.listener.names=CONTROLLER\n\
         listeners={}\nadvertised.listeners={}\nlistener.security.protocol.map={}\n\
         inter.broker.listener.name=PLAIN\nlog.dirs={}\nauto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
         transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=1\nshare.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\nlog.cleaner.dedupe.buffer.size=33554432\n\
         broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\n\
         replica.lag.time.max.ms=3000\n",
        bound.join(","),
        advertised.join(","),
        protocols.join(","),
        place.join("data").display(),
    )
}

/// Makes certificates and says how the broker uses them.
fn secure_settings(folder: &Path) -> String {
    make_certificates(folder);
    let login = "org.apache.kafka.common.security";
    let plain = format!("{login}.plain.PlainLoginModule required user_alice=\"alice secret\";");
    let scram = format!("{login}.scram.ScramLoginModule required;");
    let mut text = format!(
        "ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.client.auth=none\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n",
        folder.join("store.pem").display()
    );
    let mutual = "listener.name.mutual.ssl";
    text.push_str(&format!("{mutual}.client.auth=required\n{mutual}.truststore.type=PEM\n"));
    text.push_str(&format!("{mutual}.truststore.location={}\n", folder.join("ca.pem").display()));
    for listener in ["sasl", "both"] {
        let name = format!("listener.name.{listener}");
        text.push_str(&format!("{name}.plain.sasl.jaas.config={plain}\n"));
        text.push_str(&format!("{name}.scram-sha-256.sasl.jaas.config={scram}\n"));
        text.push_str(&format!("{name}.scram-sha-512.sasl.jaas.config={scram}\n"));
    }
    text
}

fn make_certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        succeed(Command::new("openssl").args(arguments).current_dir(folder));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let with_key = |arguments: &[&str]| openssl(&[arguments, &key[..]].concat());
    with_key(&[
        "req", "-x509", "-subj", "/CN=ca", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem",
    ]);
    let mut extensions = std::fs::File::create(folder.join("extensions")).unwrap();
    extensions.write_all(b"basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n").unwrap();
    for who in ["broker", "client"] {
        let [key, request, certificate] = ["key", "csr", "pem"].map(|end| format!("{who}.{end}"));
        let subject = format!("/CN={who}");
        with_key(&["req", "-subj", &subject, "-keyout", &key, "-out", &request]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-days",
            "2",
            "-CAcreateserial",
            "-extfile",
            "extensions",
            "-out",
            &certificate,
        ]);
    }
    // Kafka wants the key in PKCS#8, then the chain.
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", "broker.key", "-out", "broker.pk8"]);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let store = [read("broker.pk8"), read("broker.pem"), read("ca.pem")].concat();
    std::fs::write(folder.join("store.pem"), store).unwrap();
}
