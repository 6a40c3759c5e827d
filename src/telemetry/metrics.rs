//! Prometheus metrics: one registry per process.
//!
//! Pipelines add to counters once per epoch and set gauges from their status, never per row, so the
//! cost of looking up labels at each call is negligible.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::error::{Error, Result};
use crate::telemetry::status::{PartitionStatus, QueryStatus, Status, StreamStatus};
use crate::time::{MAX_TIME, MIN_TIME, Micros, SECOND};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of the process. Clones share the registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    customer: CustomerMetrics,
    stream: StreamMetrics,
    partition: PartitionMetrics,
    query: QueryMetrics,
}

/// The metrics of a customer's pipeline.
#[derive(Debug, Clone)]
struct CustomerMetrics {
    rows: IntCounterVec,
    bytes: IntCounterVec,
    dead_letters: IntCounterVec,
    written: IntCounterVec,
    epoch: IntGaugeVec,
    history_waits: GaugeVec,
    snapshot_age: GaugeVec,
    epoch_seconds: HistogramVec,
    commit_seconds: HistogramVec,
    snapshot_pause_seconds: HistogramVec,
    end_to_end_seconds: HistogramVec,
}

/// The metrics of a source stream.
#[derive(Debug, Clone)]
struct StreamMetrics {
    rows: IntCounterVec,
    bytes: IntCounterVec,
    unknown_fields: IntCounterVec,
    watermark: GaugeVec,
    lag: IntGaugeVec,
}

/// The metrics of a source partition.
#[derive(Debug, Clone)]
struct PartitionMetrics {
    position: IntGaugeVec,
    watermark: GaugeVec,
    lag: IntGaugeVec,
    skipped: IntGaugeVec,
    idle: IntGaugeVec,
    paused: IntGaugeVec,
}

/// The metrics of a query.
#[derive(Debug, Clone)]
struct QueryMetrics {
    late: IntCounterVec,
    state_rows: IntGaugeVec,
    state_bytes: IntGaugeVec,
    windows_open: IntGaugeVec,
    windows_closed: IntCounterVec,
}

const CUSTOMER: [&str; 1] = ["customer"];
const PARTITION: [&str; 4] = ["customer", "stream", "topic", "partition"];
const STREAM: [&str; 2] = ["customer", "stream"];
const QUERY: [&str; 2] = ["customer", "query"];
/// Histogram buckets in seconds for epochs and commits, which take milliseconds, or minutes during a
/// fault.
const SHORT_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Histogram buckets in seconds for end-to-end latency, which is hours while a pipeline catches up.
const LONG_SECONDS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0, 86400.0];

/// Creates metric families and registers them.
struct Families<'a>(&'a Registry);

impl Families<'_> {
    fn counter(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        let vec = IntCounterVec::new(Opts::new(name, help).namespace("millstream"), labels)?;
        self.0.register(Box::new(vec.clone())).map(|()| vec)
    }

    fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        let vec = IntGaugeVec::new(Opts::new(name, help).namespace("millstream"), labels)?;
        self.0.register(Box::new(vec.clone())).map(|()| vec)
    }

    fn seconds(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        let vec = GaugeVec::new(Opts::new(name, help).namespace("millstream"), labels)?;
        self.0.register(Box::new(vec.clone())).map(|()| vec)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> prometheus::Result<HistogramVec> {
        let opts = HistogramOpts::new(name, help).namespace("millstream").buckets(buckets.to_vec());
        let vec = HistogramVec::new(opts, &CUSTOMER)?;
        self.0.register(Box::new(vec.clone())).map(|()| vec)
    }
}

impl CustomerMetrics {
    fn register(families: &Families<'_>) -> prometheus::Result<Self> {
        let reason = ["customer", "reason"];
        let sink = ["customer", "sink"];
        Ok(Self {
            rows: families.counter("rows_decoded_total", "Decoded rows", &CUSTOMER)?,
            bytes: families.counter("bytes_total", "Bytes of record values read", &CUSTOMER)?,
            dead_letters: families.counter("dead_letters_total", "Rejected messages", &reason)?,
            written: families.counter("records_written_total", "Written records or rows", &sink)?,
            epoch: families.gauge("epoch", "Newest committed epoch", &CUSTOMER)?,
            history_waits: families.seconds(
                "history_waits_seconds",
                "Time since the oldest row was read that history has not committed",
                &CUSTOMER,
            )?,
            snapshot_age: families.seconds(
                "snapshot_age_seconds",
                "Time since a progress record referred to the newest snapshot",
                &CUSTOMER,
            )?,
            epoch_seconds: families.histogram(
                "epoch_seconds",
                "Time from the first record of an epoch to its commit",
                &SHORT_SECONDS,
            )?,
            commit_seconds: families.histogram(
                "commit_seconds",
                "Duration of a Kafka transaction",
                &SHORT_SECONDS,
            )?,
            snapshot_pause_seconds: families.histogram(
                "snapshot_pause_seconds",
                "Time for which a snapshot delays the next epoch",
                &SHORT_SECONDS,
            )?,
            end_to_end_seconds: families.histogram(
                "end_to_end_seconds",
                "Time from the Kafka timestamp of a record to the commit of its epoch",
                &LONG_SECONDS,
            )?,
        })
    }
}

impl StreamMetrics {
    fn register(families: &Families<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            rows: families.counter("stream_events_total", "Decoded rows of a stream", &STREAM)?,
            bytes: families.counter(
                "stream_bytes_total",
                "Bytes of record values read from a stream",
                &STREAM,
            )?,
            unknown_fields: families.counter(
                "unknown_fields_total",
                "Fields in messages of a stream that its schema does not declare",
                &STREAM,
            )?,
            watermark: families.seconds(
                "stream_watermark_seconds",
                "Watermark of a stream, Unix time",
                &STREAM,
            )?,
            lag: families.gauge(
                "stream_lag_records",
                "Records between the positions and the ends of all partitions of a stream",
                &STREAM,
            )?,
        })
    }
}

impl PartitionMetrics {
    fn register(families: &Families<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            position: families.gauge("partition_position", "Next offset to process", &PARTITION)?,
            watermark: families.seconds(
                "partition_watermark_seconds",
                "Watermark of a partition, Unix time",
                &PARTITION,
            )?,
            lag: families.gauge(
                "partition_lag_records",
                "Records between the position and the end of a partition",
                &PARTITION,
            )?,
            skipped: families.gauge(
                "partition_skipped_offsets",
                "Skipped offsets that Kafka had already deleted (--on-gap skip)",
                &PARTITION,
            )?,
            idle: families.gauge("partition_idle", "1 while a partition is idle", &PARTITION)?,
            paused: families.gauge(
                "partition_paused",
                "1 while reading of a partition is paused",
                &PARTITION,
            )?,
        })
    }
}

impl QueryMetrics {
    fn register(families: &Families<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            late: families.counter("late_rows_total", "Rows rejected as late", &QUERY)?,
            state_rows: families.gauge("state_rows", "Rows of state", &QUERY)?,
            state_bytes: families.gauge("state_bytes", "Bytes of state", &QUERY)?,
            windows_open: families.gauge("windows_open", "Open windows", &QUERY)?,
            windows_closed: families.counter("windows_closed_total", "Closed windows", &QUERY)?,
        })
    }
}

impl Metrics {
    /// Creates a new registry with all metrics.
    pub fn new() -> Result<Self> {
        Self::register(Registry::new()).map_err(internal_error)
    }

    fn register(registry: Registry) -> prometheus::Result<Self> {
        let families = Families(&registry);
        Ok(Self {
            customer: CustomerMetrics::register(&families)?,
            stream: StreamMetrics::register(&families)?,
            partition: PartitionMetrics::register(&families)?,
            query: QueryMetrics::register(&families)?,
            registry,
        })
    }

    /// Adds decoded rows and bytes of record values.
    pub fn events(&self, customer: &str, rows: u64, bytes: u64) {
        self.customer.rows.with_label_values(&[customer]).inc_by(rows);
        self.customer.bytes.with_label_values(&[customer]).inc_by(bytes);
    }

    /// Adds messages that were rejected for one reason: that of a decoder, or "query" and the name of
    /// a query.
    pub fn dead_letters(&self, customer: &str, reason: &str, count: u64) {
        self.customer.dead_letters.with_label_values(&[customer, reason]).inc_by(count);
    }

    /// Records one commit: the duration of its transaction, and of the epoch from its first record.
    pub fn committed(&self, customer: &str, epoch: u64, took: Duration, whole: Duration) {
        self.customer.epoch.with_label_values(&[customer]).set(saturating_i64(epoch));
        self.customer.commit_seconds.with_label_values(&[customer]).observe(took.as_secs_f64());
        self.customer.epoch_seconds.with_label_values(&[customer]).observe(whole.as_secs_f64());
    }

    /// Records a snapshot and the time for which it paused processing.
    pub fn snapshot_taken(&self, customer: &str, paused: Duration) {
        self.customer
            .snapshot_pause_seconds
            .with_label_values(&[customer])
            .observe(paused.as_secs_f64());
    }

    /// Records the seconds from a record's Kafka timestamp to the commit of its epoch.
    pub fn latency(&self, customer: &str, seconds: f64) {
        self.customer.end_to_end_seconds.with_label_values(&[customer]).observe(seconds);
    }

    /// Adds closed windows.
    pub fn windows_closed(&self, customer: &str, query: &str, count: u64) {
        self.query.windows_closed.with_label_values(&[customer, query]).inc_by(count);
    }

    /// The counter of records or rows written to one sink, such as `history.positions`.
    pub fn sink(&self, customer: &str, sink: &str) -> IntCounter {
        self.customer.written.with_label_values(&[customer, sink])
    }

    /// Raises the row count of a history table to `total`.
    pub fn history(&self, customer: &str, table: &str, total: u64) {
        raise_to(&self.sink(customer, &format!("history.{table}")), total);
    }

    /// Sets the age of the oldest row not committed by history, and of the newest snapshot.
    pub fn storage(&self, customer: &str, status: &Status) {
        let since = |at: Option<Micros>| {
            at.map_or(0.0, |at| (status.at - at).max(0) as f64 / SECOND as f64)
        };
        let labels = [customer];
        self.customer
            .history_waits
            .with_label_values(&labels)
            .set(since(status.history_waits_since));
        self.customer.snapshot_age.with_label_values(&labels).set(since(status.snapshot_at));
    }

    /// Sets the metrics of a partition from its status.
    pub fn partition(&self, customer: &str, stream: &str, status: &PartitionStatus) {
        let number = status.partition.to_string();
        let labels = [customer, stream, status.topic.as_str(), &number];
        self.partition.position.with_label_values(&labels).set(status.position);
        self.partition.lag.with_label_values(&labels).set((status.end - status.position).max(0));
        self.partition.skipped.with_label_values(&labels).set(saturating_i64(status.skipped));
        self.partition.idle.with_label_values(&labels).set(i64::from(status.idle));
        self.partition.paused.with_label_values(&labels).set(i64::from(status.paused));
        set_seconds(&self.partition.watermark, &labels, status.watermark);
    }

    /// Sets the metrics of a stream from its status.
    pub fn stream(&self, customer: &str, status: &StreamStatus) {
        let labels = [customer, status.name.as_str()];
        raise_to(&self.stream.rows.with_label_values(&labels), status.events);
        raise_to(&self.stream.bytes.with_label_values(&labels), status.bytes);
        raise_to(&self.stream.unknown_fields.with_label_values(&labels), status.unknown_fields);
        self.stream.lag.with_label_values(&labels).set(status.lag);
        set_seconds(&self.stream.watermark, &labels, status.watermark);
    }

    /// Sets the metrics of a query from its status, and adds the records that it emitted and the rows
    /// that it rejected as late since the last call.
    pub fn query(&self, customer: &str, status: &QueryStatus, emitted: u64, late: u64) {
        let labels = [customer, status.name.as_str()];
        self.query.state_rows.with_label_values(&labels).set(saturating_i64(status.state_rows));
        self.query.state_bytes.with_label_values(&labels).set(saturating_i64(status.state_bytes));
        self.query.windows_open.with_label_values(&labels).set(saturating_i64(status.windows_open));
        self.query.late.with_label_values(&labels).inc_by(late);
        self.sink(customer, &status.name).inc_by(emitted);
    }

    /// Renders all metrics in the Prometheus text format.
    pub fn render(&self) -> Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(internal_error)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Sets a gauge to a Unix time in seconds. A watermark before the first event, or of a drained
/// stream, is left out.
fn set_seconds(family: &GaugeVec, labels: &[&str], at: Option<Micros>) {
    if let Some(at) = at.filter(|at| (MIN_TIME + 1..MAX_TIME).contains(at)) {
        family.with_label_values(labels).set(at as f64 / SECOND as f64);
    }
}

/// Raises a counter to a total that is computed elsewhere.
fn raise_to(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn saturating_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn internal_error(error: prometheus::Error) -> Error {
    Error::internal("cannot create or render a metric").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_values_are_rendered() {
        let metrics = Metrics::new().unwrap();
        metrics.events("customer_a", 3, 252);
        metrics.events("customer_a", 1, 84);
        metrics.dead_letters("customer_a", "not_json", 1);
        metrics.committed("customer_a", 12, Duration::from_millis(7), Duration::from_millis(30));
        metrics.latency("customer_a", 0.2);
        metrics.windows_closed("customer_a", "daily_visits", 1);
        metrics.sink("customer_a", "history.positions").inc_by(4);
        let query = QueryStatus {
            name: "daily_visits".to_owned(),
            state_bytes: 640,
            windows_open: 2,
            ..QueryStatus::default()
        };
        metrics.query("customer_a", &query, 7, 2);
        let partition = PartitionStatus {
            topic: "1084".to_owned(),
            position: 7,
            end: 12,
            idle: true,
            ..PartitionStatus::default()
        };
        metrics.partition(
            "customer_a",
            "positions",
            &PartitionStatus { watermark: Some(MIN_TIME), ..partition },
        );
        let stream = StreamStatus {
            name: "positions".to_owned(),
            events: 4,
            watermark: Some(1_572_393_600 * SECOND),
            ..StreamStatus::default()
        };
        metrics.stream("customer_a", &stream);
        metrics.stream("customer_a", &StreamStatus { events: 9, ..stream });
        let text = metrics.render().unwrap();
        for line in [
            r#"millstream_rows_decoded_total{customer="customer_a"} 4"#,
            r#"millstream_bytes_total{customer="customer_a"} 336"#,
            r#"millstream_stream_events_total{customer="customer_a",stream="positions"} 9"#,
            r#"millstream_dead_letters_total{customer="customer_a",reason="not_json"} 1"#,
            r#"millstream_records_written_total{customer="customer_a",sink="daily_visits"} 7"#,
            r#"millstream_records_written_total{customer="customer_a",sink="history.positions"} 4"#,
            r#"millstream_late_rows_total{customer="customer_a",query="daily_visits"} 2"#,
            r#"millstream_windows_closed_total{customer="customer_a",query="daily_visits"} 1"#,
            r#"millstream_windows_open{customer="customer_a",query="daily_visits"} 2"#,
            r#"millstream_commit_seconds_bucket{customer="customer_a",le="0.01"} 1"#,
            r#"millstream_end_to_end_seconds_count{customer="customer_a"} 1"#,
            r#"millstream_partition_lag_records{customer="customer_a",partition="0",stream="positions",topic="1084"} 5"#,
            r#"millstream_partition_idle{customer="customer_a",partition="0",stream="positions",topic="1084"} 1"#,
            r#"millstream_stream_watermark_seconds{customer="customer_a",stream="positions"} 1572393600"#,
            r#"millstream_state_bytes{customer="customer_a",query="daily_visits"} 640"#,
            r#"millstream_epoch{customer="customer_a"} 12"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
        assert!(
            !text.contains("partition_watermark_seconds{"),
            "the watermark of a partition without events is left out"
        );
    }
}
