//! A disk that fails: the pipeline continues, history and snapshots catch up, and no row is lost.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use tokio::sync::watch;

use crate::catalog;
use crate::history;
use crate::pipeline::{Mode, PipelineConfig, history_root, read_topic, run};
use crate::source::KafkaConfig;
use crate::source::tests::mock::{fill_with, real_kafka, unique};
use crate::storage::tests::faulty_store::{StoreFault, StoreFaults};
use crate::telemetry::{Metrics, StatusBoard};

const LONG: Duration = Duration::from_secs(90);
const EACH: usize = 600;

struct Scene {
    folder: tempfile::TempDir,
    customer: String,
    topic: String,
    options: PipelineConfig,
    faults: Arc<StoreFaults>,
}

fn scene(kafka: &KafkaConfig, name: &str) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let faults = crate::storage::tests::faulty_store::inject_faults(&data);
    let customer = unique(name).replace('-', "_");
    let topic = crate::source::tests::mock::new_topic(kafka, name, 1);
    let file = |name: String, text: String| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file(
        format!("schemas/{customer}.sql"),
        format!(
            "CREATE STREAM events (ts TIMESTAMP NOT NULL, n BIGINT NOT NULL, WATERMARK FOR ts AS ts) \
             WITH (topics = '{topic}');"
        ),
    );
    file(format!("queries/{customer}/all.sql"), "SELECT ts, n FROM events".to_owned());
    let metrics = Arc::new(Metrics::new().unwrap());
    let mut options = PipelineConfig::follow(kafka.clone(), &data, metrics, StatusBoard::new(None));
    (options.create_topics, options.snapshot_interval) = (true, Duration::from_secs(1));
    Scene { folder, customer, topic, options, faults }
}

impl Scene {
    async fn run(&self, options: PipelineConfig, stop: watch::Receiver<bool>) -> crate::Result<()> {
        let catalog = Arc::new(catalog::load(self.folder.path(), &[]).unwrap());
        let customer = catalog.customers[0].clone();
        run(catalog, customer, options, stop).await
    }

    fn send(&self, round: usize) {
        let event = |n: usize| {
            let second = n % 60;
            format!(
                r#"{{"ts":"2024-05-01T{:02}:{:02}:{second:02}Z","n":{n}}}"#,
                n / 3600,
                n / 60 % 60
            )
        };
        let values: Vec<_> = (round * EACH..(round + 1) * EACH).map(event).collect();
        fill_with(&self.options.kafka, &self.topic, &values);
    }

    async fn results(&self) -> usize {
        let topic: Arc<str> = format!("millstream.{}.all", self.customer).into();
        let mut count = 0;
        let counted = read_topic(&self.options.kafka, &topic, |chunk| {
            count += chunk.records.len();
            Ok(())
        });
        counted.await.unwrap();
        count
    }

    async fn until_results(&self, wanted: usize) {
        let deadline = Instant::now() + LONG;
        while self.results().await < wanted {
            assert!(Instant::now() < deadline, "{} of {wanted} results", self.results().await);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.options.metrics.render().unwrap();
        let line = text.lines().find(|line| line.starts_with(&format!("millstream_{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()).map_or(-1.0, |value| value.parse().unwrap())
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + LONG;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The number of rows of a table, and the number of their distinct offsets.
async fn count_rows(data: &Path, scene: &Scene, table: &str) -> (i64, i64) {
    let catalog = catalog::load(scene.folder.path(), &[]).unwrap();
    let context = history::context(&history_root(data), &catalog).await.unwrap();
    let sql = format!("SELECT count(*), count(DISTINCT _offset) FROM {}.{table}", scene.customer);
    let rows = context.sql(&sql).await.unwrap().collect().await.unwrap();
    let count = |column: usize| rows[0].column(column).as_primitive::<Int64Type>().value(0);
    (count(0), count(1))
}

async fn continues_during(name: &str, fault: StoreFault) {
    let Some(kafka) = real_kafka(name) else { return };
    let scene = scene(&kafka, name);
    let (stop, stopping) = watch::channel(false);
    let running = scene.run(scene.options.clone(), stopping);
    let played = async {
        scene.send(0);
        scene.until_results(EACH).await;
        scene.faults.set(Some(fault));
        scene.send(1);
        scene.until_results(2 * EACH).await;
        let met = |hits: &std::sync::atomic::AtomicU64| hits.load(Ordering::Relaxed);
        let both = || met(&scene.faults.history) >= 2 && met(&scene.faults.snapshots) >= 2;
        scene.until("the fault hits history and snapshots", both).await;
        scene.send(2);
        scene.until_results(3 * EACH).await;
        if !matches!(fault, StoreFault::Slow(_)) {
            let old = || scene.metric("snapshot_age_seconds") > 3.0;
            let waits = || scene.metric("history_waits_seconds") > 0.0;
            scene.until("the lag of history is reported", waits).await;
            scene.until("the age of the snapshot is reported", old).await;
        }
        scene.faults.set(None);
        let caught_up = || {
            scene.metric("history_waits_seconds") == 0.0
                && scene.metric("snapshot_age_seconds") < 3.0
        };
        scene.until("history and snapshots catch up", caught_up).await;
        stop.send_replace(true);
    };
    let (done, ()) = tokio::join!(running, played);
    done.unwrap();
    let all = i64::try_from(3 * EACH).unwrap();
    let data = scene.options.data_dir.clone();
    for table in ["events", "all"] {
        assert_eq!(count_rows(&data, &scene, table).await, (all, all), "{table}");
    }
    // The snapshots agree with history: the next start continues where this one ended.
    let (_stop, stopping) = watch::channel(false);
    scene.send(3);
    scene
        .run(PipelineConfig { mode: Mode::UntilEnd, ..scene.options.clone() }, stopping)
        .await
        .unwrap();
    let all = all + i64::try_from(EACH).unwrap();
    assert_eq!(scene.results().await, 4 * EACH);
    for table in ["events", "all"] {
        assert_eq!(count_rows(&data, &scene, table).await, (all, all), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_returns_errors_stops_nothing() {
    continues_during("refuses", StoreFault::ErrorBefore).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_writes_and_returns_an_error_duplicates_nothing() {
    continues_during("refuses_after", StoreFault::ErrorAfter).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_unavailable_stops_nothing() {
    continues_during("unavailable", StoreFault::Unavailable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_stops_nothing() {
    continues_during("hangs", StoreFault::Hang).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_stops_nothing() {
    continues_during("slow", StoreFault::Slow(Duration::from_millis(400))).await;
}
