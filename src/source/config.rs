//! How to reach Kafka: brokers and librdkafka's own settings, passed through.
//!
//! Promises: a setting's name and meaning are librdkafka's; a secret is never printed, neither
//! by `Debug` nor by `Display` nor in an error.

use std::fmt;
use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use crate::{Error, Result};

/// Shown in place of a secret.
const HIDDEN: &str = "(hidden)";

/// Parts of a setting's name that make its value a secret. Locations of files are none.
const SECRETS: [&str; 9] = [
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

/// The one setting that is ours: which engine reads.
const READER: &str = "millstream.reader";
/// What begins the names of settings that librdkafka does not see.
const OURS: &str = "millstream.";

/// Which engine should read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The native one where it can, else librdkafka.
    Either,
    /// The native one or none.
    Native,
    /// librdkafka.
    Rdkafka,
}

/// Brokers and pass-through settings. The last of several settings with one name counts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// librdkafka settings, by name.
    pub settings: Vec<(String, String)>,
}

impl KafkaConfig {
    /// Brokers alone.
    pub fn new(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), settings: Vec::new() }
    }

    /// The sum of a configuration file, `key=value` flags and `--brokers`; later ones win.
    ///
    /// # Errors
    /// An unreadable file, a line or flag that is no `key=value`, a setting that librdkafka
    /// does not take, or no brokers at all.
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
                Error::config(format!("--kafka {name} has no '='"))
                    .hint("write --kafka key=value, for example --kafka security.protocol=SASL_SSL")
            })?;
            settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let named = |name: &str| name == "bootstrap.servers" || name == "metadata.broker.list";
        let listed =
            settings.iter().rev().find(|(name, _)| named(name)).map(|(_, value)| value.clone());
        settings.retain(|(name, _)| !named(name));
        let brokers = brokers.map(str::to_owned).or(listed).ok_or_else(|| {
            Error::config("no Kafka brokers are named")
                .hint("add --brokers host:port, or bootstrap.servers=host:port to the --kafka-config file")
        })?;
        let config = Self { brokers, settings };
        config.check()?;
        Ok(config)
    }

    /// The client configuration: a sensible client id, the brokers, then the user's settings.
    pub fn client(&self) -> ClientConfig {
        self.client_named("millstream")
    }

    /// As [`KafkaConfig::client`], with a client id of its own for the brokers' logs and quotas,
    /// unless the user set one.
    pub(crate) fn client_named(&self, id: &str) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", id).set("bootstrap.servers", &self.brokers);
        for (name, value) in self.settings.iter().filter(|(name, _)| !name.starts_with(OURS)) {
            client.set(name, value);
        }
        client
    }

    /// Which engine should read: `millstream.reader`.
    ///
    /// # Errors
    /// Another value than `native`, `rdkafka` or `auto`, or another setting of this kind.
    pub(super) fn reader(&self) -> Result<Wanted> {
        let mut wanted = Wanted::Either;
        for (name, value) in self.settings.iter().filter(|(name, _)| name.starts_with(OURS)) {
            wanted = match (name.as_str(), value.as_str()) {
                (READER, "auto") => Wanted::Either,
                (READER, "native") => Wanted::Native,
                (READER, "rdkafka") => Wanted::Rdkafka,
                _ => {
                    return Err(Error::config(format!("Kafka setting {name}={value} is refused"))
                        .hint(format!("there is {READER}=auto, native or rdkafka")));
                }
            };
        }
        Ok(wanted)
    }

    /// As [`KafkaConfig::client_named`], with `defaults` that the user's settings override and
    /// `fixed` ones that they do not.
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

    /// Whether librdkafka takes every setting, and we those that are ours.
    ///
    /// # Errors
    /// Names the first setting that is not taken, and why.
    pub fn check(&self) -> Result<()> {
        self.reader()?;
        self.client().create_native_config().map(drop).map_err(|error| config_error(&error))
    }
}

/// A setting that librdkafka refused, without its value if that is a secret.
pub(crate) fn config_error(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, why, name, value) => {
            let shown = if is_secret(name) { HIDDEN } else { value };
            let why = if is_secret(name) { "the value is not valid" } else { why };
            Error::config(format!("Kafka setting {name}={shown} is refused"))
                .detail(why.to_owned())
                .hint("settings are librdkafka's: see its CONFIGURATION.md")
        }
        other => Error::config("the Kafka settings are refused").detail(other.to_string()),
    }
}

/// Reads `key=value` lines; empty lines and lines that begin with `#` or `!` are skipped. A value may hold `=`.
///
/// # Errors
/// Names the file and the line that is no `key=value`, without showing it: it may be a secret.
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
                return Err(Error::config(format!("no key=value in {place}"))
                    .hint("one setting per line, for example security.protocol=SASL_SSL; # begins a comment line"));
            }
        }
    }
    Ok(settings)
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.ends_with(".location") && SECRETS.iter().any(|secret| name.contains(secret))
}

/// `brokers (name=value, ...)`, secrets hidden.
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
    fn no_secret_is_ever_shown() {
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
        let refused = KafkaConfig::from_flags(Some("b:1"), None, &["sasl.password hunter2".into()])
            .unwrap_err();
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }

    #[test]
    fn a_file_gives_brokers_and_settings_and_flags_win() {
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
    fn a_bad_line_or_setting_is_named() {
        let error =
            parse_properties(Path::new("k.properties"), "a=b\n\nnonsense here\n").unwrap_err();
        assert!(error.message.contains("k.properties, line 3"), "{error}");
        assert!(!error.to_string().contains("nonsense"), "{error}");
        let error = KafkaConfig::from_flags(Some("b:1"), None, &["no.such=1".into()]).unwrap_err();
        assert!(error.message.contains("no.such=1"), "{error}");
    }
}
