//! The configuration of Kafka clients: brokers and librdkafka settings, which are passed through.
//!
//! Promises: the names and meanings of settings are librdkafka's; a secret is never printed, neither
//! by `Debug` or `Display` nor in an error.

use std::fmt;
use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use crate::{Error, Result};

/// Printed instead of a secret.
const HIDDEN: &str = "(hidden)";

/// If the name of a setting contains one of these, its value is a secret, unless it is a file path.
const SECRET_NAME_PARTS: [&str; 9] = [
    "password",
    "secret",
    "token",
    "jaas",
    ".pem",
    "credential",
    "assertion",
    "passphrase",
    "oauthbearer.config",
];

/// The setting of Millstream that selects the implementation of readers.
const READER_SETTING: &str = "millstream.reader";
/// The prefix of settings that are not passed to librdkafka.
const MILLSTREAM_PREFIX: &str = "millstream.";

/// The value of `millstream.reader`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReaderChoice {
    /// The native reader if it supports the settings, otherwise librdkafka.
    Auto,
    /// The native reader; unsupported settings are an error.
    Native,
    /// librdkafka.
    Rdkafka,
}

/// Which records of transactions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Records of committed transactions, up to the first open transaction.
    Committed,
    /// All records, including those of open and aborted transactions.
    Uncommitted,
}

impl Isolation {
    /// The value of librdkafka's `isolation.level`.
    pub(super) fn level(self) -> &'static str {
        match self {
            Self::Committed => "read_committed",
            Self::Uncommitted => "read_uncommitted",
        }
    }
}

/// Brokers and pass-through settings. If a name occurs several times, the last value wins.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaConfig {
    /// A comma-separated list of `host:port`.
    pub brokers: String,
    /// librdkafka settings: names and values.
    pub settings: Vec<(String, String)>,
}

impl KafkaConfig {
    /// A configuration with brokers and no settings.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), settings: Vec::new() }
    }

    /// Merges a configuration file, `key=value` flags and `--brokers`; later ones win.
    ///
    /// # Errors
    /// An unreadable file, a line or flag that is not `key=value`, a setting that librdkafka rejects,
    /// or no brokers.
    pub fn from_flags(
        brokers: Option<&str>,
        file: Option<&Path>,
        flags: &[String],
    ) -> Result<Self> {
        let mut settings = Vec::new();
        if let Some(file) = file {
            let text = std::fs::read_to_string(file).map_err(|error| {
                Error::config(format!("cannot read the Kafka settings in {}", file.display()))
                    .because(error)
            })?;
            settings.extend(parse_properties(file, &text)?);
        }
        for flag in flags {
            let (key, value) = flag.split_once('=').ok_or_else(|| {
                let name = if is_secret(flag) { HIDDEN } else { flag };
                Error::config(format!("cannot parse --kafka {name}: '=' is missing"))
                    .hint("write --kafka key=value, for example --kafka security.protocol=SASL_SSL")
            })?;
            settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let lists_brokers =
            |name: &str| name == "bootstrap.servers" || name == "metadata.broker.list";
        let listed = settings
            .iter()
            .rev()
            .find(|(name, _)| lists_brokers(name))
            .map(|(_, value)| value.clone());
        settings.retain(|(name, _)| !lists_brokers(name));
        let brokers = brokers.map(str::to_owned).or(listed).ok_or_else(|| {
            Error::config("no Kafka brokers are configured")
                .hint("add --brokers host:port, or bootstrap.servers=host:port to the --kafka-config file")
        })?;
        let config = Self { brokers, settings };
        config.check()?;
        Ok(config)
    }

    /// The librdkafka configuration: a default client id, the brokers, then the user's settings.
    pub fn client(&self) -> ClientConfig {
        self.client_named("millstream")
    }

    /// As [`KafkaConfig::client`], with the given client id for the logs and quotas of the brokers,
    /// unless the user set one.
    pub(crate) fn client_named(&self, id: &str) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", id).set("bootstrap.servers", &self.brokers);
        for (name, value) in
            self.settings.iter().filter(|(name, _)| !name.starts_with(MILLSTREAM_PREFIX))
        {
            client.set(name, value);
        }
        client
    }

    /// The implementation that `millstream.reader` selects.
    ///
    /// # Errors
    /// A value other than `native`, `rdkafka` or `auto`, or an unknown `millstream.` setting.
    pub(super) fn reader_choice(&self) -> Result<ReaderChoice> {
        let mut choice = ReaderChoice::Auto;
        for (name, value) in
            self.settings.iter().filter(|(name, _)| name.starts_with(MILLSTREAM_PREFIX))
        {
            choice = match (name.as_str(), value.as_str()) {
                (READER_SETTING, "auto") => ReaderChoice::Auto,
                (READER_SETTING, "native") => ReaderChoice::Native,
                (READER_SETTING, "rdkafka") => ReaderChoice::Rdkafka,
                _ => {
                    return Err(Error::config(format!("invalid Kafka setting {name}={value}"))
                        .hint(format!("use {READER_SETTING}=auto, native or rdkafka")));
                }
            };
        }
        Ok(choice)
    }

    /// As [`KafkaConfig::client_named`], with `defaults` that the user's settings override and `fixed`
    /// settings that override those of the user.
    pub(crate) fn client_with(
        &self,
        id: &str,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> ClientConfig {
        let mut client = self.client_named(id);
        for (name, value) in defaults {
            if client.get(name).is_none() {
                client.set(*name, *value);
            }
        }
        for (name, value) in fixed {
            client.set(*name, *value);
        }
        client
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// The first setting that is rejected, and the reason.
    pub fn check(&self) -> Result<()> {
        self.reader_choice()?;
        self.client().create_native_config().map(drop).map_err(|error| config_error(&error))
    }
}

/// Converts an error of librdkafka about a setting, without the value if it is a secret.
pub(crate) fn config_error(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, reason, name, value) => {
            let shown = if is_secret(name) { HIDDEN } else { value };
            let reason = if is_secret(name) { "the value is not valid" } else { reason };
            Error::config(format!("invalid Kafka setting {name}={shown}"))
                .detail(reason.to_owned())
                .hint("the settings are those of librdkafka: see its CONFIGURATION.md")
        }
        other => Error::config("invalid Kafka settings").detail(other.to_string()),
    }
}

/// Parses `key=value` lines; empty lines and lines that begin with `#` or `!` are skipped. A value may contain `=`.
///
/// # Errors
/// Names the file and the line that is not `key=value`, without its text, which may be a secret.
pub fn parse_properties(file: &Path, text: &str) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        match line.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
            Some((key, value)) if !key.is_empty() => {
                settings.push((key.to_owned(), value.to_owned()))
            }
            _ => {
                let place = format!("{}, line {}", file.display(), index + 1);
                return Err(Error::config(format!("expected key=value in {place}"))
                    .hint("write one setting per line, for example security.protocol=SASL_SSL; # begins a comment line"));
            }
        }
    }
    Ok(settings)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.ends_with(".location") && SECRET_NAME_PARTS.iter().any(|secret| name.contains(secret))
}

/// Prints `brokers (name=value, ...)` without secrets.
impl fmt::Display for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.brokers)?;
        for (index, (name, value)) in self.settings.iter().enumerate() {
            let value = if is_secret(name) { HIDDEN } else { value };
            write!(f, "{}{name}={value}", if index == 0 { " (" } else { ", " })?;
        }
        if self.settings.is_empty() { Ok(()) } else { write!(f, ")") }
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaConfig[{self}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_printed() {
        let secrets = [
            "sasl.password",
            "ssl.key.password",
            "ssl.keystore.password",
            "ssl.key.pem",
            "ssl.certificate.pem",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "sasl.jaas.config",
            "SASL.Password",
        ];
        let settings =
            secrets.iter().map(|name| ((*name).to_owned(), "hunter2".to_owned())).collect();
        let config = KafkaConfig { brokers: "b:1".into(), settings };
        assert!(!format!("{config} {config:?} {config:#?}").contains("hunter2"));
        let error = config.check().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let rejected =
            KafkaConfig::from_flags(Some("b:1"), None, &["sasl.password hunter2".into()])
                .unwrap_err();
        assert!(!rejected.to_string().contains("hunter2"), "{rejected}");
    }

    #[test]
    fn flags_override_the_settings_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kafka.properties");
        std::fs::write(
            &file,
            "# ours\nbootstrap.servers = a:1,b:2\n\nfetch.wait.max.ms=70\nsasl.password=x=y\n",
        )
        .unwrap();
        let config =
            KafkaConfig::from_flags(None, Some(&file), &["fetch.wait.max.ms=80".into()]).unwrap();
        assert_eq!(config.brokers, "a:1,b:2");
        assert_eq!(config.client().get("fetch.wait.max.ms"), Some("80"));
        assert_eq!(config.client().get("sasl.password"), Some("x=y"));
        assert_eq!(
            config.to_string(),
            "a:1,b:2 (fetch.wait.max.ms=70, sasl.password=(hidden), fetch.wait.max.ms=80)"
        );
    }

    #[test]
    fn an_error_names_the_bad_line_or_setting() {
        let error =
            parse_properties(Path::new("k.properties"), "a=b\n\nnonsense here\n").unwrap_err();
        assert!(error.message.contains("k.properties, line 3"), "{error}");
        assert!(!error.to_string().contains("nonsense"), "{error}");
        let error = KafkaConfig::from_flags(Some("b:1"), None, &["no.such=1".into()]).unwrap_err();
        assert!(error.message.contains("no.such=1"), "{error}");
    }
}
