//! The settings of the native reader, under librdkafka's names.
//!
//! Promise: every setting is either followed, or known to say nothing about reading, or the
//! reason why this reader is not the one to use. None is quietly ignored.

use std::time::Duration;

use crate::source::config::KafkaConfig;

/// Settings that a reader has no use for: they are about producing, about groups that are not
/// joined, about librdkafka's own queues and logs, or fixed by what a reader promises.
const OF_OTHERS: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "connections.max.idle.ms",
    "coordinator.query.interval.ms",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "enable.metrics.push",
    "enable.partition.eof",
    "fetch.queue.backoff.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "internal.termination.signal",
    "isolation.level",
    "linger.ms",
    "log_level",
    "log.connection.close",
    "log.queue",
    "log.thread.name",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "max.poll.interval.ms",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.max.age.ms",
    "metadata.request.timeout.ms",
    "partitioner",
    "queue.buffering.backpressure.threshold",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "receive.message.max.bytes",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "session.timeout.ms",
    "socket.nagle.disable",
    "socket.send.buffer.bytes",
    "statistics.interval.ms",
    "sticky.partitioning.linger.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

/// Who the client is, to a broker.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sasl {
    pub(super) mechanism: Mechanism,
    pub(super) username: String,
    pub(super) password: String,
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

/// How a broker proves who it is, and the client by certificate. Locations are files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Tls {
    pub(super) ca: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    /// Whether the broker's certificate is looked at.
    pub(super) verified: bool,
    /// Whether it must be made out to the broker's host.
    pub(super) named: bool,
}

/// All that the native reader can be told.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// Hosts and ports to begin with.
    pub(super) brokers: Vec<(String, u16)>,
    pub(super) client_id: String,
    pub(super) tls: Option<Tls>,
    pub(super) sasl: Option<Sasl>,
    /// How long a broker may wait for `min_bytes` to come.
    pub(super) wait: Duration,
    pub(super) min_bytes: i32,
    /// The most of one response, and of one partition in it; a single larger batch still comes.
    pub(super) max_bytes: i32,
    pub(super) partition_bytes: i32,
    /// Whether checksums are looked at.
    pub(super) checked: bool,
    pub(super) request_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: bool,
    /// The wait before a broker is tried again, growing from the first to the second.
    pub(super) reconnect: (Duration, Duration),
    /// The wait before a partition with an error is tried again.
    pub(super) retry: Duration,
    /// How often leaders are looked up although nothing is wrong.
    pub(super) refresh: Duration,
}

impl Settings {
    /// What a configuration asks of a reader.
    ///
    /// # Errors
    /// Why the native reader cannot do it.
    pub(super) fn from_kafka(kafka: &KafkaConfig, client_id: &str) -> Result<Self, String> {
        let mut settings = Self::new(addresses(&kafka.brokers)?, client_id);
        let mut security = Security::default();
        for (name, value) in &kafka.settings {
            let taken = security.take(name, value)? || settings.take(name, value)?;
            let ours = name.starts_with("millstream.");
            if !taken && !ours && !OF_OTHERS.contains(&name.as_str()) {
                return Err(format!("it does not know the setting {name}"));
            }
        }
        (settings.tls, settings.sasl) = security.finish()?;
        Ok(settings)
    }

    fn new(brokers: Vec<(String, u16)>, client_id: &str) -> Self {
        Self {
            brokers,
            client_id: client_id.to_owned(),
            tls: None,
            sasl: None,
            // An end is told when an empty answer comes, so this is how late it may be told.
            wait: Duration::from_millis(100),
            min_bytes: 1,
            // Small enough that a response stays in the processor's cache while it is read.
            max_bytes: 4 << 20,
            partition_bytes: 1 << 20,
            checked: true,
            request_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(30),
            keepalive: true,
            reconnect: (Duration::from_millis(100), Duration::from_secs(2)),
            retry: Duration::from_millis(100),
            refresh: Duration::from_secs(300),
        }
    }

    /// Whether `name` is one of these.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let ms = || number(name, value).map(Duration::from_millis);
        let bytes = || number(name, value).map(|n| n.clamp(1, i32::MAX as u64) as i32);
        match name {
            "client.id" => self.client_id = value.to_owned(),
            "fetch.wait.max.ms" => self.wait = ms()?,
            "fetch.min.bytes" => self.min_bytes = bytes()?,
            "fetch.max.bytes" => self.max_bytes = bytes()?,
            "fetch.message.max.bytes" | "max.partition.fetch.bytes" => {
                self.partition_bytes = bytes()?;
            }
            "fetch.error.backoff.ms" | "retry.backoff.ms" => self.retry = ms()?,
            "retry.backoff.max.ms" => {}
            "check.crcs" => self.checked = truth(name, value)?,
            "socket.timeout.ms" => self.request_timeout = ms()?,
            "socket.connection.setup.timeout.ms" => self.connect_timeout = ms()?,
            "socket.keepalive.enable" => self.keepalive = truth(name, value)?,
            "reconnect.backoff.ms" => self.reconnect.0 = ms()?,
            "reconnect.backoff.max.ms" => self.reconnect.1 = ms()?,
            "topic.metadata.refresh.interval.ms" => {
                // librdkafka: -1 is never.
                self.refresh = if value == "-1" { Duration::MAX } else { ms()? };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The settings of `security.protocol` and all that hang on it.
#[derive(Default)]
struct Security {
    protocol: String,
    mechanism: String,
    username: String,
    password: String,
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    unverified: bool,
    unnamed: bool,
}

impl Security {
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let text = || value.to_owned();
        match name {
            "security.protocol" => self.protocol = value.to_ascii_lowercase(),
            "sasl.mechanism" | "sasl.mechanisms" => self.mechanism = text(),
            "sasl.username" => self.username = text(),
            "sasl.password" => self.password = text(),
            "ssl.ca.location" => self.ca = Some(text()).filter(|place| place != "probe"),
            "ssl.certificate.location" => self.certificate = Some(text()),
            "ssl.key.location" => self.key = Some(text()),
            "enable.ssl.certificate.verification" => self.unverified = !truth(name, value)?,
            "ssl.endpoint.identification.algorithm" => {
                self.unnamed = value.eq_ignore_ascii_case("none");
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<(Option<Tls>, Option<Sasl>), String> {
        let (tls, sasl) = match self.protocol.as_str() {
            "" | "plaintext" => (false, false),
            "ssl" => (true, false),
            "sasl_plaintext" => (false, true),
            "sasl_ssl" => (true, true),
            other => return Err(format!("it does not know security.protocol={other}")),
        };
        let mechanism = || match self.mechanism.as_str() {
            "PLAIN" => Ok(Mechanism::Plain),
            "SCRAM-SHA-256" => Ok(Mechanism::ScramSha256),
            "SCRAM-SHA-512" => Ok(Mechanism::ScramSha512),
            "" => Err("it does not know GSSAPI, the default of sasl.mechanism".to_owned()),
            other => Err(format!("it does not know sasl.mechanism={other}")),
        };
        let sasl = match sasl {
            true => Some(Sasl {
                mechanism: mechanism()?,
                username: self.username,
                password: self.password,
            }),
            false => None,
        };
        if tls && self.ca.as_ref().is_some_and(|place| std::path::Path::new(place).is_dir()) {
            return Err("ssl.ca.location is a folder, and it reads one file".to_owned());
        }
        let tls = tls.then_some(Tls {
            ca: self.ca,
            certificate: self.certificate,
            key: self.key,
            verified: !self.unverified,
            named: !self.unnamed,
        });
        Ok((tls, sasl))
    }
}

fn number(name: &str, value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("{name}={value} is no number that it takes"))
}

fn truth(name: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Ok(true),
        "false" | "f" | "0" => Ok(false),
        _ => Err(format!("{name}={value} is neither true nor false")),
    }
}

/// `host`, `host:port` or `[v6]:port`, separated by commas.
fn addresses(brokers: &str) -> Result<Vec<(String, u16)>, String> {
    let named = brokers.split(',').map(str::trim).filter(|broker| !broker.is_empty());
    let parsed: Result<Vec<_>, String> = named.map(address).collect();
    parsed
        .and_then(|list| if list.is_empty() { Err("no broker is named".into()) } else { Ok(list) })
}

fn address(broker: &str) -> Result<(String, u16), String> {
    let refused = || format!("it does not know a broker of the form {broker}");
    if broker.contains("://") {
        return Err(refused());
    }
    let (host, port) = match broker.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| refused())?)
        }
        _ => (broker, 9092),
    };
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(settings: &[(&str, &str)]) -> Result<Settings, String> {
        let settings = settings.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let kafka = KafkaConfig { brokers: "a:1,b".into(), settings };
        Settings::from_kafka(&kafka, "me")
    }

    #[test]
    fn brokers_are_read_as_librdkafka_reads_them() {
        let read = |brokers| addresses(brokers).unwrap();
        assert_eq!(read("a:1, b"), [("a".to_owned(), 1), ("b".to_owned(), 9092)]);
        assert_eq!(read("[::1]:7,::1"), [("::1".to_owned(), 7), ("::1".to_owned(), 9092)]);
        for bad in ["", "SSL://a:1", "a:x", "a:70000"] {
            assert!(addresses(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_it_knows_is_followed_and_the_last_one_counts() {
        let read = settings(&[
            ("fetch.wait.max.ms", "70"),
            ("fetch.wait.max.ms", "80"),
            ("max.partition.fetch.bytes", "5000"),
            ("check.crcs", "false"),
            ("linger.ms", "5"),
            ("millstream.reader", "native"),
        ])
        .unwrap();
        assert_eq!((read.wait, read.partition_bytes), (Duration::from_millis(80), 5000));
        assert!(!read.checked && read.tls.is_none() && read.sasl.is_none());
    }

    #[test]
    fn security_is_read_from_librdkafkas_names() {
        let read = settings(&[
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanisms", "SCRAM-SHA-512"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
            ("ssl.endpoint.identification.algorithm", "none"),
        ])
        .unwrap();
        let tls = read.tls.unwrap();
        assert!(tls.verified && !tls.named);
        assert!(read.sasl.unwrap().mechanism == Mechanism::ScramSha512);
    }

    #[test]
    fn what_it_does_not_know_is_a_reason() {
        for (name, value) in [
            ("client.rack", "a"),
            ("sasl.oauthbearer.config", "x"),
            ("security.protocol", "sasl_ssl"),
            ("ssl.keystore.location", "k"),
            ("debug", "all"),
            ("check.crcs", "perhaps"),
        ] {
            assert!(settings(&[(name, value)]).is_err(), "{name}");
        }
        let sasl = [("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "OAUTHBEARER")];
        assert!(settings(&sasl).err().unwrap().contains("OAUTHBEARER"));
    }
}
