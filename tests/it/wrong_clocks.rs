//! Wrong clocks: of the machine, and of a sensor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream::catalog;
use millstream::pipeline::{self, Mode, OnMissingOffsets, PipelineConfig, Reset};
use millstream::source::KafkaConfig;
use millstream::telemetry::{Metrics, StatusBoard};
use millstream::time::{Clock, Micros, SECOND};
use tokio::sync::watch;

use crate::sample_project::{LONG, SampleProject, sample_project};
use crate::support::kafka::{Kafka, Write};

const HOUR: Micros = 3_600 * SECOND;
/// 2024-05-01T10:00:00+03:00, the time of the first event.
const TEN: Micros = 1_714_546_800 * SECOND;

fn options(sample: &SampleProject, clock: &Clock) -> PipelineConfig {
    PipelineConfig {
        kafka: KafkaConfig::new(sample.kafka.brokers.clone()),
        data_dir: sample.project.path().join(".millstream"),
        create_topics: true,
        mode: Mode::Follow,
        history: true,
        commit_interval: None,
        snapshot_interval: Duration::from_secs(3600),
        reset: Reset::default(),
        parallelism: 2,
        on_missing_offsets: OnMissingOffsets::Stop,
        check_replays: true,
        clock: clock.clone(),
        metrics: Arc::new(Metrics::new().unwrap()),
        board: StatusBoard::new(None),
    }
}

/// Runs the sample project's pipeline in this process while `steps` run.
async fn while_running(sample: &SampleProject, clock: &Clock, steps: impl AsyncFnOnce()) {
    let catalog = Arc::new(catalog::load(sample.project.path(), &[]).unwrap());
    let customer = catalog.customers[0].clone();
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(pipeline::run(catalog, customer, options(sample, clock), stopped));
    steps().await;
    stop.send_replace(true);
    running.await.unwrap().unwrap();
}

/// Waits until a results topic has `count` records.
async fn await_results(sample: &SampleProject, query: &str, count: usize) {
    let deadline = Instant::now() + LONG;
    let topic = format!("millstream.{}.{query}", sample.customer);
    while !sample.kafka.topics().contains(&topic) || sample.results(query).len() < count {
        assert!(Instant::now() < deadline, "{query}: fewer than {count} results");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wall_clock_may_jump_an_hour_either_way() {
    let Some(kafka) = Kafka::require("the clock jumps") else { return };
    let sample = sample_project(kafka, 1);
    // By this clock, the events happen now.
    let clock = Clock::manual(TEN + 5 * 60 * SECOND);
    while_running(&sample, &clock, async || {
        sample.events(0..6);
        await_results(&sample, "alerts", 2).await;
        clock.set(TEN + 10 * 60 * SECOND - HOUR);
        sample.events(6..10);
        await_results(&sample, "alerts", 4).await;
        clock.set(TEN + 15 * 60 * SECOND + HOUR);
        sample.events(10..18);
        await_results(&sample, "alerts", 6).await;
        clock.set(TEN + 20 * 60 * SECOND);
        sample.events(18..63);
        await_results(&sample, "hourly", 2).await;
    })
    .await;
    assert!(sample.query("SELECT reason FROM {c}.dead_letters").is_empty());
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events_late"), ["0"]);
    let events = sample.hourly_events();
    assert_eq!(events, 60, "the complete past hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_clock_of_one_sensor_does_not_affect_others() {
    let Some(kafka) = Kafka::require("a sensor's clock") else { return };
    let sample = sample_project(kafka, 1);
    let clock = Clock::manual(TEN + 2 * HOUR);
    let at = |ts: &str| {
        let event = format!(r#"{{"ts":"{ts}","sensor":9,"room":"kitchen"}}"#);
        sample.kafka.produce(&sample.topic, [Write::value(event)]);
    };
    while_running(&sample, &clock, async || {
        sample.events(0..50);
        at("2025-05-01 10:50:00");
        at("1970-01-01 00:00:05");
        sample.events(50..63);
        await_results(&sample, "hourly", 2).await;
    })
    .await;
    let reasons = sample.query("SELECT reason FROM {c}.dead_letters");
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].contains("in the future"), "{reasons:?}");
    assert_eq!(sample.query("SELECT count(*) FROM {c}.events_late"), ["1"], "the one of 1970");
    let events = sample.hourly_events();
    assert_eq!(events, 60);
}
