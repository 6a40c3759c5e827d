//! What Prometheus scrapes: one registry a process.
//!
//! Pipelines count once an epoch and set gauges from their status, never once a row; so looking
//! labels up at each call costs nothing that shows.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::error::{Error, Result};
use crate::telemetry::status::{PartitionStatus, QueryStatus, Status, StreamStatus};
use crate::time::{MAX_TIME, MIN_TIME, Micros, SECOND};

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every metric of the process. Clones share the registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    rows: IntCounterVec,
    bytes: IntCounterVec,
    stream_rows: IntCounterVec,
    stream_bytes: IntCounterVec,
    unknown_fields: IntCounterVec,
    partition_position: IntGaugeVec,
    partition_watermark: GaugeVec,
    partition_lag: IntGaugeVec,
    partition_skipped: IntGaugeVec,
    partition_idle: IntGaugeVec,
    partition_paused: IntGaugeVec,
    stream_watermark: GaugeVec,
    stream_lag: IntGaugeVec,
    dead_letters: IntCounterVec,
    late: IntCounterVec,
    state_rows: IntGaugeVec,
    state_bytes: IntGaugeVec,
    windows_open: IntGaugeVec,
    windows_closed: IntCounterVec,
    written: IntCounterVec,
    epoch: IntGaugeVec,
    history_waits: GaugeVec,
    snapshot_age: GaugeVec,
    epoch_seconds: HistogramVec,
    commit_seconds: HistogramVec,
    snapshot_pause_seconds: HistogramVec,
    end_to_end_seconds: HistogramVec,
}

const CUSTOMER: [&str; 1] = ["customer"];
const PARTITION: [&str; 4] = ["customer", "stream", "topic", "partition"];
const STREAM: [&str; 2] = ["customer", "stream"];
const QUERY: [&str; 2] = ["customer", "query"];
/// Seconds; an epoch or a commit takes milliseconds, and minutes only in trouble.
const SHORT_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Seconds from Kafka's timestamp of a record to the commit of its epoch; hours when catching up.
const LONG_SECONDS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0, 86400.0];

/// Makes metric families and registers them.
struct Register<'a>(&'a Registry);

impl Register<'_> {
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

    fn time(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
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

impl Metrics {
    /// A registry of its own with every family in it.
    pub fn new() -> Result<Self> {
        Self::families().map_err(defect)
    }

    fn families() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let r = Register(&registry);
        Ok(Self {
            rows: r.counter("rows_decoded_total", "Rows decoded", &CUSTOMER)?,
            bytes: r.counter("bytes_total", "Bytes of record values read", &CUSTOMER)?,
            stream_rows: r.counter("stream_events_total", "Rows decoded of a stream", &STREAM)?,
            stream_bytes: r.counter(
                "stream_bytes_total",
                "Bytes of record values read of a stream",
                &STREAM,
            )?,
            unknown_fields: r.counter(
                "unknown_fields_total",
                "Fields of a stream's messages that its schema does not name",
                &STREAM,
            )?,
            partition_position: r.gauge(
                "partition_position",
                "The next offset to be processed",
                &PARTITION,
            )?,
            partition_watermark: r.time(
                "partition_watermark_seconds",
                "Watermark of a partition, Unix time",
                &PARTITION,
            )?,
            partition_lag: r.gauge(
                "partition_lag_records",
                "Records between position and end of a partition",
                &PARTITION,
            )?,
            partition_skipped: r.gauge(
                "partition_skipped_offsets",
                "Offsets that Kafka no longer had and that were passed over (--on-gap skip)",
                &PARTITION,
            )?,
            partition_idle: r.gauge("partition_idle", "1 while a partition is idle", &PARTITION)?,
            partition_paused: r.gauge(
                "partition_paused",
                "1 while a partition is held back",
                &PARTITION,
            )?,
            stream_watermark: r.time(
                "stream_watermark_seconds",
                "Watermark of a stream, Unix time",
                &STREAM,
            )?,
            stream_lag: r.gauge(
                "stream_lag_records",
                "Records behind the end of all partitions",
                &STREAM,
            )?,
            dead_letters: r.counter(
                "dead_letters_total",
                "Messages rejected",
                &["customer", "reason"],
            )?,
            late: r.counter("late_rows_total", "Rows refused as late", &QUERY)?,
            state_rows: r.gauge("state_rows", "Rows of kept state", &QUERY)?,
            state_bytes: r.gauge("state_bytes", "Bytes of kept state", &QUERY)?,
            windows_open: r.gauge("windows_open", "Windows that are open", &QUERY)?,
            windows_closed: r.counter("windows_closed_total", "Windows closed", &QUERY)?,
            written: r.counter(
                "records_written_total",
                "Records or rows written",
                &["customer", "sink"],
            )?,
            history_waits: r.time(
                "history_waits_seconds",
                "How long the oldest row that history has not committed has waited",
                &CUSTOMER,
            )?,
            snapshot_age: r.time(
                "snapshot_age_seconds",
                "Time since the newest snapshot was named by a progress record",
                &CUSTOMER,
            )?,
            epoch: r.gauge("epoch", "Newest committed epoch", &CUSTOMER)?,
            epoch_seconds: r.histogram(
                "epoch_seconds",
                "Time from an epoch's first record to its commit",
                &SHORT_SECONDS,
            )?,
            snapshot_pause_seconds: r.histogram(
                "snapshot_pause_seconds",
                "From an epoch's end until the next may go on, where a snapshot is taken",
                &SHORT_SECONDS,
            )?,
            commit_seconds: r.histogram(
                "commit_seconds",
                "Time that a Kafka transaction takes",
                &SHORT_SECONDS,
            )?,
            end_to_end_seconds: r.histogram(
                "end_to_end_seconds",
                "Time from a record's Kafka timestamp to the commit of its epoch",
                &LONG_SECONDS,
            )?,
            registry,
        })
    }

    /// Counts rows decoded and bytes of record values read.
    pub fn events(&self, customer: &str, rows: u64, bytes: u64) {
        self.rows.with_label_values(&[customer]).inc_by(rows);
        self.bytes.with_label_values(&[customer]).inc_by(bytes);
    }

    /// Counts messages rejected for one reason: a decoder's, or "query" and a query's name.
    pub fn dead_letters(&self, customer: &str, reason: &str, count: u64) {
        self.dead_letters.with_label_values(&[customer, reason]).inc_by(count);
    }

    /// Counts one commit: how long its transaction took, and the whole epoch from its first record.
    pub fn committed(&self, customer: &str, epoch: u64, took: Duration, whole: Duration) {
        self.epoch.with_label_values(&[customer]).set(gauge(epoch));
        self.commit_seconds.with_label_values(&[customer]).observe(took.as_secs_f64());
        self.epoch_seconds.with_label_values(&[customer]).observe(whole.as_secs_f64());
    }

    /// A snapshot was taken, for which processing paused so long.
    pub fn snapshot_taken(&self, customer: &str, paused: Duration) {
        self.snapshot_pause_seconds.with_label_values(&[customer]).observe(paused.as_secs_f64());
    }

    /// Seconds from a record's Kafka timestamp to the commit of its epoch.
    pub fn latency(&self, customer: &str, seconds: f64) {
        self.end_to_end_seconds.with_label_values(&[customer]).observe(seconds);
    }

    /// Counts windows that closed.
    pub fn windows_closed(&self, customer: &str, query: &str, count: u64) {
        self.windows_closed.with_label_values(&[customer, query]).inc_by(count);
    }

    /// The counter of records or rows written to one sink, such as `history.positions`.
    pub fn sink(&self, customer: &str, sink: &str) -> IntCounter {
        self.written.with_label_values(&[customer, sink])
    }

    /// Brings the count of a history table's rows up to `total`.
    pub fn history(&self, customer: &str, table: &str, total: u64) {
        raise(&self.sink(customer, &format!("history.{table}")), total);
    }

    /// Sets how long rows have waited for history, and how old the newest snapshot is.
    pub fn storage(&self, customer: &str, status: &Status) {
        let since = |at: Option<Micros>| {
            at.map_or(0.0, |at| (status.at - at).max(0) as f64 / SECOND as f64)
        };
        let labels = [customer];
        self.history_waits.with_label_values(&labels).set(since(status.history_waits_since));
        self.snapshot_age.with_label_values(&labels).set(since(status.snapshot_at));
    }

    /// Sets what a partition's status says.
    pub fn partition(&self, customer: &str, stream: &str, status: &PartitionStatus) {
        let number = status.partition.to_string();
        let labels = [customer, stream, status.topic.as_str(), &number];
        self.partition_position.with_label_values(&labels).set(status.position);
        self.partition_lag.with_label_values(&labels).set((status.end - status.position).max(0));
        self.partition_skipped.with_label_values(&labels).set(gauge(status.skipped));
        self.partition_idle.with_label_values(&labels).set(i64::from(status.idle));
        self.partition_paused.with_label_values(&labels).set(i64::from(status.paused));
        set_time(&self.partition_watermark, &labels, status.watermark);
    }

    /// Sets what a stream's status says.
    pub fn stream(&self, customer: &str, status: &StreamStatus) {
        let labels = [customer, status.name.as_str()];
        raise(&self.stream_rows.with_label_values(&labels), status.events);
        raise(&self.stream_bytes.with_label_values(&labels), status.bytes);
        raise(&self.unknown_fields.with_label_values(&labels), status.unknown_fields);
        self.stream_lag.with_label_values(&labels).set(status.lag);
        set_time(&self.stream_watermark, &labels, status.watermark);
    }

    /// Sets what a query's status says, and counts what it emitted and refused since the last time.
    pub fn query(&self, customer: &str, status: &QueryStatus, emitted: u64, late: u64) {
        let labels = [customer, status.name.as_str()];
        self.state_rows.with_label_values(&labels).set(gauge(status.state_rows));
        self.state_bytes.with_label_values(&labels).set(gauge(status.state_bytes));
        self.windows_open.with_label_values(&labels).set(gauge(status.windows_open));
        self.late.with_label_values(&labels).inc_by(late);
        self.sink(customer, &status.name).inc_by(emitted);
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> Result<String> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text).map_err(defect)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Unix time in seconds; a watermark that has not said anything, or that is drained, is left out.
fn set_time(family: &GaugeVec, labels: &[&str], at: Option<Micros>) {
    if let Some(at) = at.filter(|at| (MIN_TIME + 1..MAX_TIME).contains(at)) {
        family.with_label_values(labels).set(at as f64 / SECOND as f64);
    }
}

/// Brings a counter up to a total that somebody else keeps.
fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn defect(error: prometheus::Error) -> Error {
    Error::internal("a metric could not be made").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered() {
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
            "a partition that has not said anything"
        );
    }
}
