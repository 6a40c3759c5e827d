//! Conformance suite of the reader: it tests the promises of both implementations with the mock
//! cluster and with real brokers.

use std::time::Duration;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::Kind;
use crate::source::queue::QUEUE_BYTES;
use crate::source::tests::brokers::Brokers;
use crate::source::tests::mock::{
    Follower, Mock, both_readers, fill, new_topic, producer, real_kafka, send, unique,
    with_settings,
};
use crate::source::*;
use crate::types::TopicPartition;

const WAIT: Duration = Duration::from_secs(30);

fn numbered(prefix: &str, count: usize) -> Vec<Option<String>> {
    (0..count).map(|index| Some(format!("{prefix}-{index}"))).collect()
}

/// Reads from the middle of a partition, adds a topic while reading, and pauses a partition: no
/// record is lost or duplicated.
async fn check_follows(kafka: &KafkaConfig, first: &str, second: &str) {
    let mut reader = Reader::start(kafka, &unique("group"), Isolation::Committed).unwrap();
    let mut follower = Follower::default();
    let a = follower.assign(&reader, first, 0, 1000);
    let b = follower.assign(&reader, first, 1, 0);
    follower.until_end(&mut reader, &a, 3000).await;
    follower.until_end(&mut reader, &b, 500).await;
    assert_eq!(follower.values[&a], numbered("a", 3000)[1000..]);
    assert_eq!(follower.values[&b], numbered("b", 500));

    let c = follower.assign(&reader, second, 0, 0);
    follower.until_end(&mut reader, &c, 0).await;
    reader.pause(std::slice::from_ref(&a));
    // An empty response to the Fetch that was in flight before the pause may still arrive.
    fill(kafka, second, 0, "before", 1);
    follower.until_end(&mut reader, &c, 1).await;
    fill(kafka, first, 0, "later", 10);
    fill(kafka, second, 0, "c", 9);
    follower.until_end(&mut reader, &c, 10).await;
    assert_eq!(follower.values[&a].len(), 2000, "a paused partition emits no records");
    reader.resume(std::slice::from_ref(&a));
    follower.until_end(&mut reader, &a, 3010).await;
    assert_eq!(follower.values[&a][2000..], numbered("later", 10));
    assert!(reader.assign(&[(a, 0)]).is_err(), "it is already assigned");
}

#[tokio::test]
async fn a_reader_follows_topics_of_the_mock_broker() {
    for reader in ["rdkafka", "native"] {
        let mock = Mock::start(&[("one", 2), ("two", 1)]);
        fill(&mock.kafka, "one", 0, "a", 3000);
        fill(&mock.kafka, "one", 1, "b", 500);
        let kafka = with_settings(&mock.kafka, &[("millstream.reader", reader)]);
        check_follows(&kafka, "one", "two").await;
    }
}

#[tokio::test]
async fn a_reader_follows_topics_of_a_real_kafka() {
    let Some(kafka) = real_kafka("a_reader_follows_topics_of_a_real_kafka") else { return };
    for kafka in both_readers(&kafka) {
        let (first, second) = (new_topic(&kafka, "one", 2), new_topic(&kafka, "two", 1));
        fill(&kafka, &first, 0, "a", 3000);
        fill(&kafka, &first, 1, "b", 500);
        check_follows(&kafka, &first, &second).await;
    }
}

#[tokio::test]
async fn a_resumed_partition_emits_its_end_again() {
    let mock = Mock::start(&[("one", 1)]);
    fill(&mock.kafka, "one", 0, "a", 10);
    for kafka in both_readers(&mock.kafka) {
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let a = follower.assign(&reader, "one", 0, 0);
        follower.until_end(&mut reader, &a, 10).await;
        reader.pause(std::slice::from_ref(&a));
        reader.resume(std::slice::from_ref(&a));
        follower.ends.clear();
        follower.until_end(&mut reader, &a, 10).await;
        assert_eq!(follower.values[&a].len(), 10);
    }
}

#[tokio::test]
async fn keys_headers_tombstones_and_empty_values_are_distinguished() {
    let mock = Mock::start(&[("one", 1)]);
    let producer = producer(&mock.kafka, &[]);
    send(&producer, "one", 0, Some("key"), Some("value"));
    send(&producer, "one", 0, Some(""), None);
    send(&producer, "one", 0, None, Some(""));
    producer.flush(Duration::from_secs(10)).unwrap();
    for kafka in both_readers(&mock.kafka) {
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        reader.assign(&[(TopicPartition::new("one", 0), 0)]).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let Event::Chunk(chunk) = reader.next().await.unwrap() else { continue };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            for record in &chunk.records {
                assert!(record.timestamp_ms > 1_600_000_000_000);
                let headers: Vec<_> = (chunk.headers(record))
                    .map(|(name, value)| (text(name), value.map(text)))
                    .collect();
                seen.push((chunk.key(record).map(text), chunk.value(record).map(text), headers));
            }
        }
        let some = |text: &str| Some(text.to_owned());
        let headers = |value: &str| vec![("h".to_owned(), some(value)), ("none".to_owned(), None)];
        assert_eq!(seen[0], (some("key"), some("value"), headers("key")));
        assert_eq!(seen[1], (some(""), None, headers("")));
        assert_eq!(seen[2], (None, some(""), vec![]));
    }
}

#[tokio::test]
async fn control_and_aborted_records_are_gaps() {
    let Some(kafka) = real_kafka("control_and_aborted_records_are_gaps") else { return };
    let topic = new_topic(&kafka, "gaps", 1);
    let id = unique("id");
    let producer = producer(&kafka, &[("transactional.id", &id)]);
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    for (name, commit) in [("a", true), ("lost", false), ("b", true), ("lost", false)] {
        producer.begin_transaction().unwrap();
        for index in 0..5 {
            send(&producer, &topic, 0, None, Some(&format!("{name}-{index}")));
        }
        producer.flush(Duration::from_secs(20)).unwrap();
        match commit {
            true => producer.commit_transaction(Duration::from_secs(20)).unwrap(),
            false => producer.abort_transaction(Duration::from_secs(20)).unwrap(),
        }
    }
    for kafka in both_readers(&kafka) {
        // 4 x (5 records and a marker); the last committed record is at 16.
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 0);
        follower.until_end(&mut reader, &tp, 24).await;
        assert_eq!(follower.values[&tp], [numbered("a", 5), numbered("b", 5)].concat());

        let mut reader = Reader::start(&kafka, "g", Isolation::Uncommitted).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 0);
        follower.until_end(&mut reader, &tp, 24).await;
        assert_eq!(follower.values[&tp].len(), 20);
    }
}

#[tokio::test]
async fn a_missing_offset_is_an_error_with_the_available_offsets() {
    let Some(kafka) = real_kafka("a_missing_offset_is_an_error_with_the_available_offsets") else {
        return;
    };
    let topic = new_topic(&kafka, "truncated", 1);
    fill(&kafka, &topic, 0, "a", 100);
    let tp = TopicPartition::new(topic.as_str(), 0);
    let cluster = Cluster::connect(&kafka).unwrap();
    cluster.delete_records_before(&tp, 40).unwrap();
    assert_eq!(cluster.watermarks(&tp).unwrap(), (40, 100));
    for kafka in both_readers(&kafka) {
        for wanted in [10, 101] {
            let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
            reader.assign(&[(tp.clone(), wanted)]).unwrap();
            let error = reader.next().await.unwrap_err();
            assert_eq!(error.kind, Kind::Recovery);
            let text = error.to_string();
            assert!(
                text.contains(&format!("{topic}/0")) && text.contains(&format!("offset {wanted}")),
                "{text}"
            );
            assert!(text.contains("40 to 100"), "{text}");
            assert!(reader.next().await.is_err(), "an error is final");
        }
    }
}

#[tokio::test]
async fn a_slow_pipeline_bounds_the_queue() {
    let Some(kafka) = real_kafka("a_slow_pipeline_bounds_the_queue") else { return };
    let topic = new_topic(&kafka, "slow", 1);
    let producer = producer(&kafka, &[("compression.type", "lz4")]);
    let value = "x".repeat(1000);
    for _ in 0..80_000 {
        send(&producer, &topic, 0, None, Some(&value));
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    for kafka in both_readers(&kafka) {
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 0);
        let full = || reader.queued_bytes() >= QUEUE_BYTES;
        while !full() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let used = reader.queued_bytes();
        assert!(used < QUEUE_BYTES + (16 << 20), "{used}");
        follower.until_end(&mut reader, &tp, 80_000).await;
        assert_eq!(follower.values[&tp].len(), 80_000);
        assert_eq!(reader.queued_bytes(), 0);
    }
}

/// One record: offset, timestamp, key, value, headers.
type ReadRecord = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

/// Reads the first partition from `from` to its end. Returns the records and the end.
async fn read_all(kafka: &KafkaConfig, topic: &str, from: i64) -> (Vec<ReadRecord>, i64) {
    let mut reader = Reader::start(kafka, &unique("g"), Isolation::Committed).unwrap();
    reader.assign(&[(TopicPartition::new(topic, 0), from)]).unwrap();
    let (mut seen, mut position) = (Vec::new(), from);
    loop {
        match tokio::time::timeout(WAIT, reader.next())
            .await
            .expect("no event within 30 s")
            .unwrap()
        {
            Event::Chunk(chunk) => {
                assert_eq!(chunk.first_offset, position);
                position = chunk.next_offset;
                seen.extend(chunk.records.iter().map(|record| {
                    let headers = chunk.headers(record);
                    let headers =
                        headers.map(|(name, value)| (name.to_vec(), value.map(<[u8]>::to_vec)));
                    let (key, value) = (chunk.key(record), chunk.value(record));
                    let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
                    (record.offset, record.timestamp_ms, key, value, headers.collect())
                }));
            }
            Event::End { position: end, .. } => return (seen, end),
        }
    }
}

/// Reads the first partition of a topic with both implementations and checks that they agree.
/// Returns the records and the end.
async fn read_with_both(kafka: &KafkaConfig, topic: &str, from: i64) -> (Vec<ReadRecord>, i64) {
    let [rdkafka, native] = both_readers(kafka);
    let (mut seen, mut native_end) = read_all(&native, topic, from).await;
    // The broker may compact the topic between the reads, so the native reader reads before and
    // after librdkafka until both of its results are equal.
    let (expected, end) = loop {
        let between = read_all(&rdkafka, topic, from).await;
        let again = read_all(&native, topic, from).await;
        let is_unchanged = (&seen, native_end) == (&again.0, again.1);
        (seen, native_end) = again;
        if is_unchanged {
            break between;
        }
    };
    assert_eq!((seen.len(), native_end), (expected.len(), end), "{topic}");
    if let Some(at) = (0..seen.len()).find(|at| seen[*at] != expected[*at]) {
        panic!("{topic}: {:?}, expected {:?}", seen[at], expected[at]);
    }
    (seen, end)
}

/// Sends a record with a binary key and value to partition 0.
fn send_bytes(producer: &BaseProducer, topic: &str, key: Option<&[u8]>, value: Option<&[u8]>) {
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(0);
    (record.key, record.payload) = (key, value);
    while let Err((_, rejected)) = producer.send(record) {
        producer.poll(Duration::from_millis(5));
        record = rejected;
    }
}

#[tokio::test]
async fn both_readers_agree_on_every_codec() {
    let Some(kafka) = real_kafka("both_readers_agree_on_every_codec") else { return };
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = new_topic(&kafka, codec, 1);
        let settings = [("compression.type", codec), ("linger.ms", "20")];
        let producer = producer(&kafka, &settings);
        for index in 0..3000 {
            let (key, value) = (format!("k{}", index % 7), format!("{{\"n\":{index}}}"));
            match index % 5 {
                0 => send(&producer, &topic, 0, Some(&key), Some(&value)),
                1 => send(&producer, &topic, 0, None, Some(&value)),
                2 => send(&producer, &topic, 0, Some(&key), None),
                3 => send(&producer, &topic, 0, None, Some("x")),
                _ => send(&producer, &topic, 0, Some(""), Some("")),
            }
        }
        producer.flush(WAIT).unwrap();
        let (seen, end) = read_with_both(&kafka, &topic, 0).await;
        assert_eq!((seen.len(), end), (3000, 3000), "{codec}");
        assert_eq!(seen[0].3.as_deref(), Some(&b"{\"n\":0}"[..]));
        assert_eq!(read_with_both(&kafka, &topic, 1234).await.0, seen[1234..], "{codec}");
    }
}

/// The Java producer uses its own framing of snappy and larger batches.
#[tokio::test]
async fn both_readers_agree_on_batches_of_the_java_producer() {
    let test = "both_readers_agree_on_batches_of_the_java_producer";
    let Some(kafka) = real_kafka(test) else { return };
    let lines: String = (0..5000).map(|index| format!("{{\"line\":{index}}}\n")).collect();
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let topic = new_topic(&kafka, &format!("java-{codec}"), 1);
        super::brokers::produce_with_java(test, &kafka, &topic, codec, &lines);
        let (seen, end) = read_with_both(&kafka, &topic, 0).await;
        assert_eq!((seen.len(), end), (5000, 5000), "{codec}");
        assert_eq!(seen[4999].3.as_deref(), Some(&b"{\"line\":4999}"[..]), "{codec}");
    }
}

#[tokio::test]
async fn records_of_one_byte_and_of_five_megabytes_are_read() {
    let Some(kafka) = real_kafka("records_of_one_byte_and_of_five_megabytes_are_read") else {
        return;
    };
    let topic = unique("large");
    let config = vec![("max.message.bytes".to_owned(), "8000000".to_owned())];
    let wanted = NewTopic { name: topic.clone(), partitions: 1, config };
    Cluster::connect(&kafka).unwrap().create_topics(&[wanted]).unwrap();
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let producer = producer(&kafka, &[("message.max.bytes", "8000000")]);
    for value in [b"1", &large[..], b"2", &large[1..], b"3"] {
        send_bytes(&producer, &topic, None, Some(value));
        producer.flush(WAIT).unwrap();
    }
    let small = with_settings(&kafka, &[("fetch.message.max.bytes", "1000000")]);
    let (seen, end) = read_with_both(&small, &topic, 0).await;
    assert_eq!(end, 5);
    let lengths: Vec<_> = seen.iter().map(|seen| seen.3.as_ref().unwrap().len()).collect();
    assert_eq!(lengths, [1, 5_000_000, 1, 4_999_999, 1]);
    assert!(seen[1].3.as_deref() == Some(&large[..]));
}

#[tokio::test]
async fn overlapping_and_open_transactions_are_read() {
    let Some(kafka) = real_kafka("overlapping_and_open_transactions_are_read") else { return };
    let topic = new_topic(&kafka, "overlap", 1);
    let producers: Vec<_> = (0..3)
        .map(|_| {
            let id = unique("id");
            let producer = producer(&kafka, &[("transactional.id", &id), ("linger.ms", "0")]);
            producer.init_transactions(WAIT).unwrap();
            producer
        })
        .collect();
    let mut committed = Vec::new();
    for round in 0..12 {
        producers.iter().for_each(|producer| producer.begin_transaction().unwrap());
        for step in 0..4 {
            for (number, producer) in producers.iter().enumerate() {
                let value = format!("{round}-{number}-{step}");
                send(producer, &topic, 0, None, Some(&value));
                producer.flush(WAIT).unwrap();
                if (round + number) % 3 != 0 {
                    committed.push(value);
                }
            }
        }
        for (number, producer) in producers.iter().enumerate() {
            match (round + number) % 3 {
                0 => producer.abort_transaction(WAIT).unwrap(),
                _ => producer.commit_transaction(WAIT).unwrap(),
            }
        }
    }
    let values = |seen: &[ReadRecord]| -> Vec<String> {
        let texts = seen.iter().map(|seen| String::from_utf8(seen.3.clone().unwrap()).unwrap());
        texts.collect()
    };
    let (seen, end) = read_with_both(&kafka, &topic, 0).await;
    assert_eq!((values(&seen), end), (committed, 12 * 15));
    // Reading may also start in the middle of a transaction.
    for from in [1, 7, 14, 50, 101, 179, 180] {
        let rest: Vec<_> = seen.iter().filter(|seen| seen.0 >= from).cloned().collect();
        assert_eq!(read_with_both(&kafka, &topic, from).await.0, rest, "from {from}");
    }

    // Records after the first open transaction are not read until it ends.
    producers[0].begin_transaction().unwrap();
    send(&producers[0], &topic, 0, None, Some("open"));
    producers[0].flush(WAIT).unwrap();
    fill(&kafka, &topic, 0, "after", 3);
    for kafka in both_readers(&kafka) {
        let (seen, end) = read_all(&kafka, &topic, 180).await;
        assert_eq!((seen.len(), end), (0, 180));
        let mut reader = Reader::start(&kafka, "g", Isolation::Uncommitted).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 180);
        follower.until_end(&mut reader, &tp, 184).await;
        assert_eq!(follower.values[&tp].len(), 4);
    }
    producers[0].abort_transaction(WAIT).unwrap();
    for kafka in both_readers(&kafka) {
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, &topic, 0, 180);
        follower.until_end(&mut reader, &tp, 185).await;
        assert_eq!(follower.values[&tp], numbered("after", 3));
    }
}

/// Pauses and resumes at random while records are read: no record is lost or duplicated.
#[tokio::test]
async fn random_pauses_lose_and_duplicate_nothing() {
    let Some(kafka) = real_kafka("random_pauses_lose_and_duplicate_nothing") else { return };
    const COUNT: usize = 60_000;
    for codec in ["none", "zstd"] {
        let topic = new_topic(&kafka, "pauses", 3);
        let producer = producer(&kafka, &[("compression.type", codec)]);
        for index in 0..COUNT {
            for partition in 0..3 {
                send(&producer, &topic, partition, None, Some(&format!("a-{index}")));
            }
        }
        producer.flush(WAIT).unwrap();
        for kafka in both_readers(&with_settings(&kafka, &[("fetch.message.max.bytes", "20000")])) {
            let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
            let mut follower = Follower::default();
            let all = [0, 1, 2].map(|number| follower.assign(&reader, &topic, number, 0));
            let mut random = 7_u32;
            while all.iter().any(|tp| follower.ends.get(tp) != Some(&(COUNT as i64))) {
                random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                let some = &all[(random >> 16) as usize % 3..];
                match random >> 20 & 3 {
                    0 => reader.pause(some),
                    _ => reader.resume(some),
                }
                // No event arrives if every partition that is not at its end is paused.
                let step = follower.step(&mut reader);
                match tokio::time::timeout(Duration::from_millis(300), step).await {
                    Ok(step) => step.unwrap(),
                    Err(_) => reader.resume(&all),
                }
            }
            for tp in &all {
                assert!(follower.values[tp] == numbered("a", COUNT), "{tp} {kafka}");
            }
        }
    }
}

#[tokio::test]
async fn librdkafka_continues_where_the_native_reader_stopped() {
    let test = "librdkafka_continues_where_the_native_reader_stopped";
    let Some(kafka) = real_kafka(test) else { return };
    let topic = new_topic(&kafka, "beyond", 2);
    // Small batches, of which each chunk contains a few.
    let small = [("batch.num.messages", "50"), ("fetch.message.max.bytes", "5000")];
    let kafka = with_settings(&kafka, &small);
    fill(&kafka, &topic, 0, "a", 5000);
    fill(&kafka, &topic, 1, "b", 5000);
    let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
    let mut follower = Follower::default();
    let a = follower.assign(&reader, &topic, 0, 0);
    let b = follower.assign(&reader, &topic, 1, 0);
    for _ in 0..10 {
        follower.step(&mut reader).await.unwrap();
    }
    reader.pause(std::slice::from_ref(&b));
    reader.request_fallback();
    follower.until_end(&mut reader, &a, 5000).await;
    fill(&kafka, &topic, 0, "later", 5);
    follower.until_end(&mut reader, &a, 5005).await;
    reader.resume(std::slice::from_ref(&b));
    follower.until_end(&mut reader, &b, 5000).await;
    assert_eq!(follower.values[&a][..5000], numbered("a", 5000));
    assert_eq!(follower.values[&b], numbered("b", 5000));
    assert!(reader.assign(&[(a, 0)]).is_err(), "it is still assigned");
}

#[tokio::test]
async fn a_missing_topic_is_an_error_and_one_created_in_time_is_not() {
    let test = "a_missing_topic_is_an_error_and_one_created_in_time_is_not";
    let Some(kafka) = real_kafka(test) else { return };
    let native = with_settings(&kafka, &[("millstream.reader", "native")]);
    let (missing, created) = (unique("missing"), unique("created"));
    let mut reader = Reader::start(&native, "g", Isolation::Committed).unwrap();
    let mut follower = Follower::default();
    let tp = follower.assign(&reader, &created, 0, 0);
    let topic = NewTopic { name: created.clone(), partitions: 1, config: vec![] };
    Cluster::connect(&kafka).unwrap().create_topics(&[topic]).unwrap();
    fill(&kafka, &created, 0, "a", 5);
    // An end at offset 0 may arrive first.
    while follower.positions[&tp] < 5 {
        follower.step(&mut reader).await.unwrap();
    }
    reader.assign(&[(TopicPartition::new(missing.as_str(), 0), 0)]).unwrap();
    let error = loop {
        match tokio::time::timeout(WAIT, reader.next()).await.expect("no event within 30 s") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.kind == Kind::Recovery && error.message.contains(&missing), "{error}");
    assert!(reader.next().await.is_err(), "an error is final");
}

#[tokio::test]
async fn compaction_leaves_gaps() {
    let Some(kafka) = real_kafka("compaction_leaves_gaps") else { return };
    let topic = unique("compacted");
    let config = [
        ("cleanup.policy", "compact"),
        ("segment.bytes", "1048576"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("min.compaction.lag.ms", "0"),
    ];
    let config = config.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let wanted = NewTopic { name: topic.clone(), partitions: 1, config };
    Cluster::connect(&kafka).unwrap().create_topics(&[wanted]).unwrap();
    // Repeated keys and tombstones in several segments. Compaction retains the last batch of each
    // idempotent producer, even if it becomes empty.
    let value = "x".repeat(4000);
    let mut total = 0;
    for round in 0..10 {
        let producer = producer(&kafka, &[("enable.idempotence", "true")]);
        for index in 0..100 {
            let key = format!("k{}", index % (round + 3));
            let value = (index % 17 != 0).then_some(value.as_str());
            send_bytes(&producer, &topic, Some(key.as_bytes()), value.map(str::as_bytes));
            total += 1;
        }
        producer.flush(WAIT).unwrap();
    }
    let native = with_settings(&kafka, &[("millstream.reader", "native")]);
    let started = std::time::Instant::now();
    loop {
        let (seen, end) = read_all(&native, &topic, 0).await;
        assert_eq!(end, total);
        if (seen.len() as i64) < total * 6 / 10 {
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "the broker has not compacted the topic within 120 s"
        );
    }
    let (seen, end) = read_with_both(&kafka, &topic, 0).await;
    assert!(end == total && !seen.is_empty());
    let from = seen[seen.len() / 2].0 - 1;
    read_with_both(&kafka, &topic, from.max(0)).await;
}

/// Starts both implementations on the first partition of a topic.
fn followers(kafka: &KafkaConfig, topic: &str) -> Vec<(Reader, Follower, TopicPartition)> {
    let start = |kafka: KafkaConfig| {
        let reader = Reader::start(&kafka, &unique("g"), Isolation::Committed).unwrap();
        let mut follower = Follower::default();
        let tp = follower.assign(&reader, topic, 0, 0);
        (reader, follower, tp)
    };
    both_readers(kafka).map(start).into_iter().collect()
}

/// Waits until all readers are at `position` and checks that they have read `a-0`, `a-1`, ...
async fn expect_all_at(followers: &mut [(Reader, Follower, TopicPartition)], position: usize) {
    for (reader, follower, tp) in followers {
        while follower.positions[tp] < position as i64 {
            follower.step(reader).await.unwrap();
        }
        assert_eq!(follower.values[tp], numbered("a", position));
    }
}

/// Sends `a-<n>` for each number of the range and waits until all replicas have the records.
fn fill_range(kafka: &KafkaConfig, topic: &str, range: std::ops::Range<usize>) {
    let producer = producer(kafka, &[("enable.idempotence", "true")]);
    for index in range {
        send(&producer, topic, 0, None, Some(&format!("a-{index}")));
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

#[tokio::test]
async fn a_partition_is_followed_to_its_new_leader() {
    let test = "a_partition_is_followed_to_its_new_leader";
    let Some(mut brokers) = Brokers::two(test) else { return };
    let kafka = brokers.plain();
    let topic = unique("moves");
    // The second broker, which is not the controller, is the first leader.
    brokers.create_topic(&topic, &[2, 1]);
    fill_range(&kafka, &topic, 0..500);
    let mut followers = followers(&kafka, &topic);
    expect_all_at(&mut followers, 500).await;

    brokers.stop(1);
    fill_range(&kafka, &topic, 500..700);
    expect_all_at(&mut followers, 700).await;

    brokers.restart(1);
    brokers.elect_preferred_leader(&topic, 2);
    fill_range(&kafka, &topic, 700..900);
    expect_all_at(&mut followers, 900).await;

    brokers.kill(1);
    fill_range(&kafka, &topic, 900..1000);
    expect_all_at(&mut followers, 1000).await;
}

#[tokio::test]
async fn a_reader_waits_for_a_broker_that_restarts() {
    let Some(mut brokers) = Brokers::two("a_reader_waits_for_a_broker_that_restarts") else {
        return;
    };
    let kafka = brokers.plain();
    let topic = unique("restarts");
    brokers.create_topic(&topic, &[2]);
    fill_range(&kafka, &topic, 0..100);
    let mut followers = followers(&kafka, &topic);
    expect_all_at(&mut followers, 100).await;
    brokers.kill(1);
    brokers.restart(1);
    fill_range(&kafka, &topic, 100..200);
    expect_all_at(&mut followers, 200).await;
}

/// Uses three brokers: a controller, which stays up, and two replicas, which are killed.
#[tokio::test]
async fn records_lost_by_an_unclean_election_are_detected() {
    let test = "records_lost_by_an_unclean_election_are_detected";
    let Some(mut brokers) = Brokers::unclean(test) else { return };
    let kafka = brokers.plain();
    let topic = unique("unclean");
    brokers.create_topic(&topic, &[2, 3]);
    fill_range(&kafka, &topic, 0..100);
    brokers.kill(2);
    fill_range(&kafka, &topic, 100..150);
    let native = with_settings(&kafka, &[("millstream.reader", "native")]);
    let mut reader = Reader::start(&native, &unique("g"), Isolation::Committed).unwrap();
    let mut follower = Follower::default();
    let read = follower.assign(&reader, &topic, 0, 0);
    follower.until_end(&mut reader, &read, 150).await;

    // Only the third broker restarts. It has the first 100 records and receives different ones after
    // them.
    brokers.kill(1);
    brokers.restart(2);
    fill_range(&kafka, &topic, 0..200);
    let error = loop {
        if let Err(error) = follower.step(&mut reader).await {
            break error;
        }
    };
    assert_eq!(error.kind, Kind::Recovery);
    assert!(error.to_string().contains("lost records"), "{error}");
    assert!(error.detail.unwrap_or_default().contains("from offset 100 on"));
    assert_eq!(follower.values[&read].len(), 150);
}

#[tokio::test]
async fn tls_and_sasl_work_and_invalid_clients_are_rejected() {
    let test = "tls_and_sasl_work_and_invalid_clients_are_rejected";
    let Some(brokers) = Brokers::secure(test) else { return };
    let topic = new_topic(&brokers.plain(), "secure", 1);
    fill(&brokers.plain(), &topic, 0, "a", 100);
    let ca = brokers.folder.path().join("ca.pem").display().to_string();
    let at = |host: &str, listener: usize| {
        KafkaConfig::new(format!("{host}:{}", brokers.ports[0][listener]))
    };
    let tls = [("security.protocol", "ssl"), ("ssl.ca.location", ca.as_str())];
    let sasl = |mechanism| {
        let user = [("sasl.username", "alice"), ("sasl.password", "alice secret")];
        [&[("security.protocol", "sasl_plaintext"), ("sasl.mechanism", mechanism)], &user[..]]
            .concat()
    };
    let mut all = vec![with_settings(&at("127.0.0.1", 1), &tls)];
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        all.push(with_settings(&at("127.0.0.1", 2), &sasl(mechanism)));
        let over_tls = [("security.protocol", "sasl_ssl"), ("ssl.ca.location", ca.as_str())];
        all.push(with_settings(&with_settings(&at("127.0.0.1", 3), &sasl(mechanism)), &over_tls));
    }
    // The certificate of the listener is valid for 127.0.0.1. Without the check of the host name,
    // another name is accepted; without any check, no CA is required.
    let unnamed = [&tls[..], &[("ssl.endpoint.identification.algorithm", "none")]].concat();
    all.push(with_settings(&at("localhost", 1), &unnamed));
    let unverified =
        [("security.protocol", "ssl"), ("enable.ssl.certificate.verification", "false")];
    all.push(with_settings(&at("127.0.0.1", 1), &unverified));
    for kafka in all {
        for kafka in readers_with_tls(&kafka) {
            let (seen, end) = read_all(&kafka, &topic, 0).await;
            assert_eq!((seen.len(), end), (100, 100), "{kafka}");
        }
    }

    let wrong = with_settings(&at("127.0.0.1", 2), &sasl("SCRAM-SHA-256"));
    let other_ca = [("security.protocol", "ssl"), ("ssl.ca.location", "broker.pem")];
    let broker = brokers.folder.path().join("broker.pem").display().to_string();
    let rejected_clients = [
        with_settings(&wrong, &[("sasl.password", "wrong")]),
        with_settings(&wrong, &[("sasl.mechanism", "PLAIN"), ("sasl.password", "wrong")]),
        with_settings(
            &with_settings(&at("127.0.0.1", 1), &other_ca),
            &[("ssl.ca.location", &broker)],
        ),
        with_settings(&at("127.0.0.1", 1), &[]),
        with_settings(&at("127.0.0.1", 4), &tls),
        with_settings(&at("localhost", 1), &tls),
    ];
    for kafka in rejected_clients {
        let kafka = with_settings(&kafka, &[("millstream.reader", "native")]);
        let mut reader = Reader::start(&kafka, "g", Isolation::Committed).unwrap();
        reader.assign(&[(TopicPartition::new(topic.as_str(), 0), 0)]).unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(1500), reader.next()).await;
        assert!(waited.is_err(), "{kafka}: {waited:?}");
    }
}

/// Returns the settings of both implementations, without librdkafka if it was built without TLS or
/// SCRAM.
fn readers_with_tls(kafka: &KafkaConfig) -> Vec<KafkaConfig> {
    let both = both_readers(kafka);
    both.into_iter().filter(|kafka| kafka.check().is_ok()).collect()
}
