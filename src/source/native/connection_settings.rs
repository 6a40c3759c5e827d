//! The settings of the native client, under librdkafka's names.
//!
//! Promise: every setting is either applied, or known to be irrelevant for reading, or reported as
//! the reason why the native client cannot be used. None is ignored silently.

use std::time::Duration;

/// Settings that do not affect a reader: they concern producing, consumer groups (which are not
/// joined), librdkafka's own queues and logs, or values that are fixed by what a reader promises.
const IRRELEVANT: &[&str] = &[
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

/// The credentials of the client.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SaslSettings {
    pub(super) mechanism: SaslMechanism,
    pub(super) username: String,
    pub(super) password: String,
}

/// How the client authenticates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaslMechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

/// How brokers are verified, and the certificate of the client. Locations are files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TlsSettings {
    pub(super) ca: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    /// Whether the certificate of the broker is verified.
    pub(super) verify_certificate: bool,
    /// Whether the certificate must match the host name of the broker.
    pub(super) verify_hostname: bool,
}

/// All settings of the native client.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ConnectionSettings {
    /// The bootstrap brokers: hosts and ports.
    pub(super) brokers: Vec<(String, u16)>,
    pub(super) client_id: String,
    pub(super) tls: Option<TlsSettings>,
    pub(super) sasl: Option<SaslSettings>,
    /// How long a broker may wait for `min_bytes` before it responds to a Fetch.
    pub(super) fetch_wait: Duration,
    pub(super) min_bytes: i32,
    /// The size limits of one response and of one partition in it; a single larger batch is still sent.
    pub(super) max_bytes: i32,
    pub(super) partition_bytes: i32,
    /// Whether checksums are verified.
    pub(super) check_crcs: bool,
    pub(super) request_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: bool,
    /// The backoff before reconnecting to a broker, which grows from the first to the second value.
    pub(super) reconnect_backoff: (Duration, Duration),
    /// The backoff before a partition with an error is requested again.
    pub(super) retry_backoff: Duration,
    /// The interval of metadata requests without an error.
    pub(super) metadata_refresh: Duration,
}

impl ConnectionSettings {
    /// Parses the bootstrap brokers and the librdkafka properties of a reader.
    ///
    /// # Errors
    /// The reason why the native client cannot be used.
    pub(super) fn from_properties(
        brokers: &str,
        properties: &[(String, String)],
        client_id: &str,
    ) -> Result<Self, String> {
        let mut settings = Self::new(parse_brokers(brokers)?, client_id);
        let mut security = SecuritySettings::default();
        for (name, value) in properties {
            let is_applied = security.apply(name, value)? || settings.apply(name, value)?;
            let is_millstream = name.starts_with("millstream.");
            if !is_applied && !is_millstream && !IRRELEVANT.contains(&name.as_str()) {
                return Err(format!("it does not support the setting {name}"));
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
            // The end of a partition is detected by an empty response, so this bounds the delay.
            fetch_wait: Duration::from_millis(100),
            min_bytes: 1,
            // A response of this size stays in the processor's cache while it is read.
            max_bytes: 4 << 20,
            partition_bytes: 1 << 20,
            check_crcs: true,
            request_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(30),
            keepalive: true,
            reconnect_backoff: (Duration::from_millis(100), Duration::from_secs(2)),
            retry_backoff: Duration::from_millis(100),
            metadata_refresh: Duration::from_secs(300),
        }
    }

    /// Applies one property. Returns `false` if it is none of these settings.
    fn apply(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let ms = || parse_number(name, value).map(Duration::from_millis);
        let bytes = || parse_number(name, value).map(|n| n.clamp(1, i32::MAX as u64) as i32);
        match name {
            "client.id" => self.client_id = value.to_owned(),
            "fetch.wait.max.ms" => self.fetch_wait = ms()?,
            "fetch.min.bytes" => self.min_bytes = bytes()?,
            "fetch.max.bytes" => self.max_bytes = bytes()?,
            "fetch.message.max.bytes" | "max.partition.fetch.bytes" => {
                self.partition_bytes = bytes()?;
            }
            "fetch.error.backoff.ms" | "retry.backoff.ms" => self.retry_backoff = ms()?,
            "retry.backoff.max.ms" => {}
            "check.crcs" => self.check_crcs = parse_bool(name, value)?,
            "socket.timeout.ms" => self.request_timeout = ms()?,
            "socket.connection.setup.timeout.ms" => self.connect_timeout = ms()?,
            "socket.keepalive.enable" => self.keepalive = parse_bool(name, value)?,
            "reconnect.backoff.ms" => self.reconnect_backoff.0 = ms()?,
            "reconnect.backoff.max.ms" => self.reconnect_backoff.1 = ms()?,
            "topic.metadata.refresh.interval.ms" => {
                // In librdkafka, -1 means never.
                self.metadata_refresh = if value == "-1" { Duration::MAX } else { ms()? };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The settings that depend on `security.protocol`, as text.
#[derive(Default)]
struct SecuritySettings {
    protocol: String,
    mechanism: String,
    username: String,
    password: String,
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    skip_certificate: bool,
    skip_hostname: bool,
}

impl SecuritySettings {
    fn apply(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let text = || value.to_owned();
        match name {
            "security.protocol" => self.protocol = value.to_ascii_lowercase(),
            "sasl.mechanism" | "sasl.mechanisms" => self.mechanism = text(),
            "sasl.username" => self.username = text(),
            "sasl.password" => self.password = text(),
            "ssl.ca.location" => self.ca = Some(text()).filter(|path| path != "probe"),
            "ssl.certificate.location" => self.certificate = Some(text()),
            "ssl.key.location" => self.key = Some(text()),
            "enable.ssl.certificate.verification" => {
                self.skip_certificate = !parse_bool(name, value)?
            }
            "ssl.endpoint.identification.algorithm" => {
                self.skip_hostname = value.eq_ignore_ascii_case("none");
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<(Option<TlsSettings>, Option<SaslSettings>), String> {
        let (uses_tls, uses_sasl) = match self.protocol.as_str() {
            "" | "plaintext" => (false, false),
            "ssl" => (true, false),
            "sasl_plaintext" => (false, true),
            "sasl_ssl" => (true, true),
            other => return Err(format!("it does not support security.protocol={other}")),
        };
        let mechanism = || match self.mechanism.as_str() {
            "PLAIN" => Ok(SaslMechanism::Plain),
            "SCRAM-SHA-256" => Ok(SaslMechanism::ScramSha256),
            "SCRAM-SHA-512" => Ok(SaslMechanism::ScramSha512),
            "" => Err("it does not support GSSAPI, the default of sasl.mechanism".to_owned()),
            other => Err(format!("it does not support sasl.mechanism={other}")),
        };
        let sasl = match uses_sasl {
            true => Some(SaslSettings {
                mechanism: mechanism()?,
                username: self.username,
                password: self.password,
            }),
            false => None,
        };
        if uses_tls && self.ca.as_ref().is_some_and(|path| std::path::Path::new(path).is_dir()) {
            return Err("ssl.ca.location is a directory, and it reads a single file".to_owned());
        }
        let tls = uses_tls.then_some(TlsSettings {
            ca: self.ca,
            certificate: self.certificate,
            key: self.key,
            verify_certificate: !self.skip_certificate,
            verify_hostname: !self.skip_hostname,
        });
        Ok((tls, sasl))
    }
}

fn parse_number(name: &str, value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("cannot parse {name}={value} as a number"))
}

fn parse_bool(name: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Ok(true),
        "false" | "f" | "0" => Ok(false),
        _ => Err(format!("cannot parse {name}={value} as a boolean")),
    }
}

/// Parses a comma-separated list of `host`, `host:port` or `[v6]:port`.
fn parse_brokers(brokers: &str) -> Result<Vec<(String, u16)>, String> {
    let listed = brokers.split(',').map(str::trim).filter(|broker| !broker.is_empty());
    let parsed: Result<Vec<_>, String> = listed.map(parse_broker).collect();
    parsed.and_then(|list| {
        if list.is_empty() { Err("the list of brokers is empty".into()) } else { Ok(list) }
    })
}

fn parse_broker(broker: &str) -> Result<(String, u16), String> {
    let invalid = || format!("cannot parse the broker address {broker}");
    if broker.contains("://") {
        return Err(invalid());
    }
    let (host, port) = match broker.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().map_err(|_| invalid())?)
        }
        _ => (broker, 9092),
    };
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(settings: &[(&str, &str)]) -> Result<ConnectionSettings, String> {
        let properties: Vec<_> =
            settings.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        ConnectionSettings::from_properties("a:1,b", &properties, "me")
    }

    #[test]
    fn brokers_are_parsed_as_by_librdkafka() {
        let read = |brokers| parse_brokers(brokers).unwrap();
        assert_eq!(read("a:1, b"), [("a".to_owned(), 1), ("b".to_owned(), 9092)]);
        assert_eq!(read("[::1]:7,::1"), [("::1".to_owned(), 7), ("::1".to_owned(), 9092)]);
        for bad in ["", "SSL://a:1", "a:x", "a:70000"] {
            assert!(parse_brokers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn supported_settings_are_applied_and_the_last_value_wins() {
        let read = settings(&[
            ("fetch.wait.max.ms", "70"),
            ("fetch.wait.max.ms", "80"),
            ("max.partition.fetch.bytes", "5000"),
            ("check.crcs", "false"),
            ("linger.ms", "5"),
            ("millstream.reader", "native"),
        ])
        .unwrap();
        assert_eq!((read.fetch_wait, read.partition_bytes), (Duration::from_millis(80), 5000));
        assert!(!read.check_crcs && read.tls.is_none() && read.sasl.is_none());
    }

    #[test]
    fn security_settings_have_librdkafkas_names() {
        let read = settings(&[
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanisms", "SCRAM-SHA-512"),
            ("sasl.username", "u"),
            ("sasl.password", "p"),
            ("ssl.endpoint.identification.algorithm", "none"),
        ])
        .unwrap();
        let tls = read.tls.unwrap();
        assert!(tls.verify_certificate && !tls.verify_hostname);
        assert!(read.sasl.unwrap().mechanism == SaslMechanism::ScramSha512);
    }

    #[test]
    fn an_unsupported_setting_is_a_reason() {
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
