//! Sends records that belong to no epoch, such as retried dead letters, in one transaction.

use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::util::Timeout;

use crate::source::KafkaConfig;
use crate::types::OutRecord;
use crate::{Error, Kind, Result};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends all records or none, on a blocking thread.
///
/// # Errors
/// Kafka refuses a record or is unreachable: no record is sent.
pub async fn resend(kafka: &KafkaConfig, customer: &str, records: Vec<OutRecord>) -> Result<()> {
    let (kafka, customer) = (kafka.clone(), customer.to_owned());
    tokio::task::spawn_blocking(move || send_all(&kafka, &customer, &records))
        .await
        .map_err(|e| Error::internal("the thread that sends records failed").because(e))?
}

fn send_all(kafka: &KafkaConfig, customer: &str, records: &[OutRecord]) -> Result<()> {
    let failed = |e: rdkafka::error::KafkaError| {
        Error::new(Kind::Kafka, "cannot send the records; none of them was sent").because(e)
    };
    let producer: ThreadedProducer<rdkafka::producer::DefaultProducerContext> = kafka
        .client()
        .set("transactional.id", format!("millstream.{customer}.retry"))
        .create()
        .map_err(failed)?;
    producer.init_transactions(TIMEOUT).map_err(failed)?;
    producer.begin_transaction().map_err(failed)?;
    for record in records {
        if let Err(error) = send(&producer, record) {
            let _ = producer.abort_transaction(TIMEOUT);
            return Err(failed(error));
        }
    }
    producer.commit_transaction(Timeout::Never).map_err(failed)
}

fn send(
    producer: &ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
    record: &OutRecord,
) -> Result<(), rdkafka::error::KafkaError> {
    let headers = record.headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
        all.insert(Header { key, value: value.as_deref() })
    });
    let mut message: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&record.topic).headers(headers);
    if let Some(key) = &record.key {
        message = message.key(key);
    }
    if let Some(value) = &record.value {
        message = message.payload(value);
    }
    loop {
        match producer.send(message) {
            Ok(()) => return Ok(()),
            Err((error, unsent))
                if error.rdkafka_error_code()
                    == Some(rdkafka::types::RDKafkaErrorCode::QueueFull) =>
            {
                message = unsent;
                producer.flush(Duration::from_millis(100)).ok();
            }
            Err((error, _)) => return Err(error),
        }
    }
}
