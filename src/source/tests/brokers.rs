//! Real brokers that one test starts: with TLS, with SASL, or several of them.
//!
//! They run from the jars that `.ci/kafka` downloads, on free ports of 127.0.0.1, and are stopped
//! when they are dropped.

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

/// The text of the line that a broker logs when it has started.
const STARTED: &str = "Kafka Server started";

/// The process of one broker.
struct Broker {
    child: Option<Child>,
    properties: PathBuf,
}

/// The brokers of one cluster.
pub(crate) struct Brokers {
    brokers: Vec<Broker>,
    /// The certificates and the data of the brokers.
    pub(crate) folder: tempfile::TempDir,
    libs: PathBuf,
    /// The ports of the listeners of each broker.
    pub(crate) ports: Vec<Vec<u16>>,
}

/// Returns the folder of the jars. `None`: tests with a real Kafka are skipped.
fn libs(test: &str) -> Option<PathBuf> {
    real_kafka(test)?;
    let cache = || {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        std::env::var_os("XDG_CACHE_HOME").map_or(home.join(".cache"), PathBuf::from)
    };
    let libs = std::env::var_os("MILLSTREAM_KAFKA_LIBS")
        .map_or_else(|| cache().join("millstream/kafka/libs"), PathBuf::from);
    assert!(
        libs.is_dir(),
        "{test}: {} is not a folder; run .ci/kafka once to download the jars",
        libs.display()
    );
    Some(libs)
}

/// Returns ports on which no process listens; each port is returned once. They are below the range
/// that the system uses for outgoing connections, because other tests open many of these before a
/// broker listens or while it is down, and below the ports of `.ci/kafka`.
fn free_ports(count: usize) -> Vec<u16> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    let next = || 10_000 + (start.wrapping_add(COUNTER.fetch_add(1, Relaxed)) % 10_000) as u16;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(next).filter(is_free).take(count).collect()
}

/// Returns a command that runs a class of the jars.
fn java(libs: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC"])
        .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"])
        .args(["-Dorg.slf4j.simpleLogger.log.kafka.server=info"])
        .arg("-cp")
        .arg(libs.join("*"));
    java
}

/// Runs a command and checks that it succeeds.
fn run_command(command: &mut Command) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text));
}

/// Sends lines with the Java producer.
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
    /// Starts `count` brokers; the first one is also the controller. Each broker has a plain
    /// listener, then `listeners` (names and protocols). `settings` returns additional broker
    /// settings, `format` contains additional arguments of the storage tool.
    fn start(
        test: &str,
        count: usize,
        listeners: &[(&str, &str)],
        settings: impl Fn(&Path) -> String,
        format: &[&str],
    ) -> Option<Self> {
        let libs = libs(test)?;
        let folder = tempfile::tempdir().unwrap();
        let extra_settings = settings(folder.path());
        let controller = free_ports(1)[0];
        let uuid = "MkU3OEVBNTcwNTJENDM2Qk";
        let mut cluster = Self { brokers: vec![], folder, libs, ports: vec![] };
        for number in 1..=count {
            let mut listeners = listeners.to_vec();
            listeners.insert(0, ("PLAIN", "PLAINTEXT"));
            let ports = free_ports(listeners.len());
            let broker_folder = cluster.folder.path().join(format!("broker-{number}"));
            std::fs::create_dir_all(&broker_folder).unwrap();
            let properties = broker_folder.join("server.properties");
            let mut text =
                broker_properties(number, controller, &listeners, &ports, &broker_folder);
            text.push_str(&extra_settings);
            std::fs::write(&properties, text).unwrap();
            run_command(
                java(&cluster.libs)
                    .args(["kafka.tools.StorageTool", "format", "-t", uuid, "-c"])
                    .arg(&properties)
                    .args(format),
            );
            cluster.brokers.push(Broker { child: None, properties });
            cluster.ports.push(ports);
        }
        cluster.launch_all();
        Some(cluster)
    }

    /// Starts a cluster of two brokers.
    pub(crate) fn two(test: &str) -> Option<Self> {
        Self::start(test, 2, &[], |_| String::new(), &[])
    }

    /// Starts a cluster of three brokers with unclean leader election.
    pub(crate) fn unclean(test: &str) -> Option<Self> {
        let settings = |_: &Path| "unclean.leader.election.enable=true\n".to_owned();
        Self::start(test, 3, &[], settings, &[])
    }

    /// Starts one broker. Its listeners after the plain one use TLS, SASL, SASL over TLS, and TLS
    /// with client certificates. User `alice` has the password `alice secret`. The folder contains
    /// the CA certificate `ca.pem` and the client certificate `client.pem` with `client.key`. The
    /// certificate of the broker is valid for 127.0.0.1.
    pub(crate) fn secure(test: &str) -> Option<Self> {
        let listeners =
            [("TLS", "SSL"), ("SASL", "SASL_PLAINTEXT"), ("BOTH", "SASL_SSL"), ("MUTUAL", "SSL")];
        let scram = |mechanism: &str| format!("{mechanism}=[name=alice,password=alice secret]");
        let (one, two) = (scram("SCRAM-SHA-256"), scram("SCRAM-SHA-512"));
        let format = ["--add-scram", &one, "--add-scram", &two];
        Self::start(test, 1, &listeners, secure_settings, &format)
    }

    fn launch_all(&mut self) {
        // All are started before any is awaited, because the controller is one of them.
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

    /// Shuts a broker down: its leaderships move to other brokers first.
    pub(crate) fn stop(&mut self, number: usize) {
        let mut child = self.brokers[number].child.take().unwrap();
        run_command(Command::new("kill").arg(child.id().to_string()));
        child.wait().unwrap();
    }

    /// Kills the process of a broker, which simulates a machine failure.
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

    /// Creates a topic with one partition and replicas on these brokers; the first one leads.
    pub(crate) fn create_topic(&self, name: &str, replicas: &[i32]) {
        let admin: AdminClient<DefaultClientContext> = self.plain().client().create().unwrap();
        let assignment = [replicas];
        let topic = NewTopic::new(name, 1, TopicReplication::Variable(&assignment));
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let results = block_on(admin.create_topics([&topic], &options)).unwrap();
        results.into_iter().for_each(|result| drop(result.unwrap()));
    }

    /// Elects the preferred leader of a topic and waits until that is `broker`, which counts from 1.
    pub(crate) fn elect_preferred_leader(&self, topic: &str, broker: i32) {
        let started = Instant::now();
        loop {
            let mut election = java(&self.libs);
            election.args(["org.apache.kafka.tools.LeaderElectionCommand", "--bootstrap-server"]);
            election.arg(self.plain().brokers).args(["--election-type", "preferred"]);
            let output = election.args(["--topic", topic, "--partition", "0"]).output().unwrap();
            if self.leader(topic) == Some(broker) {
                return;
            }
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            let elapsed = started.elapsed();
            assert!(elapsed < Duration::from_secs(60), "broker {broker} does not lead: {text}");
        }
    }

    /// Returns the leader of the first partition of a topic; -1: it has none.
    pub(crate) fn leader(&self, topic: &str) -> Option<i32> {
        let consumer: BaseConsumer = self.plain().client().create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).ok()?;
        Some(metadata.topics().first()?.partitions().first()?.leader())
    }

    /// Returns a configuration with the plain listeners of all brokers.
    pub(crate) fn plain(&self) -> KafkaConfig {
        let all: Vec<_> =
            self.ports.iter().map(|ports| format!("127.0.0.1:{}", ports[0])).collect();
        KafkaConfig::new(all.join(","))
    }
}

impl Broker {
    /// Waits until the broker has started. Its later output is read and dropped.
    fn wait(&mut self) {
        let stderr = self.child.as_mut().unwrap().stderr.take().unwrap();
        let mut lines = BufReader::new(stderr).lines();
        let mut startup_lines = Vec::new();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if line.contains(STARTED) {
                std::thread::spawn(move || lines.for_each(drop));
                return;
            }
            startup_lines.push(line);
        }
        // The reason is in the last lines.
        let last = &startup_lines[startup_lines.len().saturating_sub(30)..];
        panic!("a broker did not start; its last lines are:\n{}", last.join("\n"));
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

/// Returns the settings of one broker as properties.
fn broker_properties(
    number: usize,
    controller: u16,
    listeners: &[(&str, &str)],
    ports: &[u16],
    folder: &Path,
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
        folder.join("data").display(),
    )
}

/// Creates certificates and returns the settings with which the broker uses them.
fn secure_settings(folder: &Path) -> String {
    create_certificates(folder);
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

/// Creates a CA and the certificates of the broker and of a client.
fn create_certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        run_command(Command::new("openssl").args(arguments).current_dir(folder));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let with_key = |arguments: &[&str]| openssl(&[arguments, &key[..]].concat());
    with_key(&[
        "req", "-x509", "-subj", "/CN=ca", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem",
    ]);
    let mut extensions = std::fs::File::create(folder.join("extensions")).unwrap();
    extensions.write_all(b"basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n").unwrap();
    for name in ["broker", "client"] {
        let [key, request, certificate] = ["key", "csr", "pem"].map(|end| format!("{name}.{end}"));
        let subject = format!("/CN={name}");
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
    // Kafka requires the key in PKCS#8, followed by the certificate chain.
    openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", "broker.key", "-out", "broker.pk8"]);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let store = [read("broker.pk8"), read("broker.pem"), read("ca.pem")].concat();
    std::fs::write(folder.join("store.pem"), store).unwrap();
}
