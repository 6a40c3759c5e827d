//! Tests that start, stop and replace a broker of their own with `.ci/kafka`.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::sample_project::sample_project;
use crate::support::kafka::{Kafka, Write};

/// Runs `.ci/kafka WHAT FOLDER` and returns its output.
fn script(what: &str, folder: &Path) -> String {
    script_with(what, folder, &[])
}

fn script_with(what: &str, folder: &Path, more: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/kafka");
    let output = Command::new(script).arg(what).arg(folder).args(more).output().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Stops the broker even when the test fails.
struct Stop<'a>(&'a Path);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        script("stop", self.0);
    }
}

/// A broker that belongs to one test, which may stop, kill and restart it.
pub(crate) struct OwnBroker {
    folder: tempfile::TempDir,
    /// The advertised address of its second listener, if it has one.
    advertised: Option<String>,
    pub(crate) kafka: Kafka,
}

impl OwnBroker {
    fn start(advertised: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let brokers = script_with("start", folder.path(), advertised.as_slice());
        Self { folder, advertised: advertised.map(str::to_owned), kafka: Kafka { brokers } }
    }

    /// Starts a broker with a listener for a proxy that listens at `advertised`.
    pub(crate) fn start_behind(advertised: &str) -> Self {
        Self::start(Some(advertised))
    }

    /// The address at which the proxy reaches the broker.
    pub(crate) fn proxied(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("proxied")).unwrap();
        text.trim().to_owned()
    }

    /// Stops the broker cleanly.
    pub(crate) fn stop(&self) {
        script("stop", self.folder.path());
    }

    /// Kills the broker with SIGKILL.
    pub(crate) fn kill(&self) {
        let id = std::fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let status = Command::new("kill").args(["-9", id.trim()]).status().unwrap();
        assert!(status.success());
        self.stop();
    }

    /// Restarts the broker with its data at the same address.
    pub(crate) fn restart(&self) {
        let advertised = self.advertised.as_deref();
        let address = script_with("start", self.folder.path(), advertised.as_slice());
        assert_eq!(address, self.kafka.brokers, "another process has taken its port");
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        script("stop", self.folder.path());
    }
}

fn cluster_id(folder: &Path) -> String {
    let text = std::fs::read_to_string(folder.join("data/meta.properties")).unwrap();
    text.lines().find(|line| line.starts_with("cluster.id=")).unwrap().to_owned()
}

#[test]
fn a_restarted_cluster_keeps_its_id_topics_and_port() {
    if Kafka::require("broker").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let _stop = Stop(folder);
    let address = script("start", folder);
    let (id, kafka) = (cluster_id(folder), Kafka { brokers: address.clone() });
    kafka.create("kept", 1);
    kafka.produce("kept", [Write::value("a record")]);
    script("stop", folder);

    assert_eq!(script("start", folder), address);
    assert_eq!((cluster_id(folder), kafka.read("kept").len()), (id.clone(), 1));
    script("stop", folder);

    let _taken = TcpListener::bind(&address).unwrap();
    let elsewhere = script("start", folder);
    assert_ne!(elsewhere, address);
    assert_eq!((cluster_id(folder), Kafka { brokers: elsewhere }.read("kept").len()), (id, 1));
}

#[test]
fn another_cluster_behind_the_same_address_is_refused() {
    if Kafka::require("another cluster").is_none() {
        return;
    }
    let broker = OwnBroker::start(None);
    let sample = sample_project(broker.kafka.clone(), 1);
    sample.events(0..20);
    sample.run(&["--create-topics", "--until-end"]).ok();
    let log = format!("millstream.{}.log", sample.customer);
    let copy: Vec<Write> = (sample.kafka.read(&log).into_iter())
        .map(|r| Write { partition: Some(0), key: r.key, value: r.value, headers: Vec::new() })
        .collect();
    broker.stop();

    let [data, before] = ["data", "before"].map(|name| broker.folder.path().join(name));
    std::fs::rename(&data, &before).unwrap();
    broker.restart();
    sample.kafka.create(&sample.topic, 1);
    sample.events(0..40);
    // History detects another cluster; without history, a missing or copied log does.
    let refused = |more: &[&str], words: &[&str]| {
        let output =
            sample.run(&[&["--create-topics", "--until-end"], more].concat()).failed().output();
        for word in words {
            assert!(output.contains(word), "{word} is not output\n{output}");
        }
    };
    refused(&[], &["this history comes from another Kafka cluster", "--data-dir"]);
    let no_history = ["--history", "off"];
    refused(&no_history, &["is empty", "has run before", "another cluster", "--reset"]);
    if !sample.kafka.topics().contains(&log) {
        sample.kafka.create(&log, 1);
    }
    sample.kafka.produce(&log, copy);
    refused(&no_history, &["this is another Kafka cluster than before", "--brokers"]);
    assert_eq!(sample.query("SELECT count(*), max(_offset) FROM {c}.events"), ["20,19"]);

    // The original cluster is still accepted.
    broker.stop();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&before, &data).unwrap();
    broker.restart();
    sample.events(20..40);
    sample.run(&["--until-end"]).ok();
    assert_eq!(sample.query("SELECT count(*), max(_offset) FROM {c}.events"), ["40,39"]);
}
