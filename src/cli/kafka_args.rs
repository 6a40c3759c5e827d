//! The arguments of the connection to Kafka, which several commands share.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::source::KafkaConfig;

/// Arguments of the connection to Kafka.
#[derive(Debug, Clone, Args)]
pub struct KafkaArgs {
    /// Kafka brokers, as host:port, separated by commas
    #[arg(long, env = "MILLSTREAM_BROKERS")]
    pub brokers: Option<String>,
    /// librdkafka setting, such as security.protocol=SASL_SSL; can be repeated
    #[arg(long = "kafka", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// File of librdkafka settings, one KEY=VALUE per line
    #[arg(long, value_name = "FILE")]
    pub kafka_config: Option<PathBuf>,
}

impl KafkaArgs {
    /// Merges the settings. The command line takes precedence over the file.
    pub fn config(&self) -> Result<KafkaConfig> {
        // An empty MILLSTREAM_BROKERS counts as not set.
        let brokers = self.brokers.as_deref().filter(|brokers| !brokers.trim().is_empty());
        KafkaConfig::from_flags(brokers, self.kafka_config.as_deref(), &self.settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_brokers_count_as_unset_and_a_setting_can_replace_them() {
        let kafka = |settings: &[&str]| KafkaArgs {
            brokers: Some(" ".to_owned()),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            kafka_config: None,
        };
        let error = kafka(&[]).config().unwrap_err().to_string();
        assert!(error.contains("no Kafka brokers are configured"), "{error}");
        assert_eq!(kafka(&["bootstrap.servers=a:1"]).config().unwrap().brokers, "a:1");
    }
}
