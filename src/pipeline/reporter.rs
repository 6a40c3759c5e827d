//! Reports a pipeline's state: publishes the status and updates the metrics.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono_tz::Tz;
use tokio::sync::watch;

use crate::pipeline::config::PipelineConfig;
use crate::pipeline::engine::stream_state::StreamState;
use crate::pipeline::engine::{Engine, EngineOutput};
use crate::pipeline::partition_discovery::PendingRequest;
use crate::planner::Input;
use crate::sink::headers;
use crate::telemetry::status::{
    OpenWindowStatus, PartitionStatus, QueryStatus, Status, StreamStatus,
};
use crate::telemetry::{Metrics, StatusBoard};
use crate::time::{Clock, Micros, Window};
use crate::time::{MAX_TIME, SECOND};
use crate::types::{OutRecord, TopicPartition};
use crate::watermark::BlockingPartition;

/// The least time between two reports.
const INTERVAL: Duration = Duration::from_millis(500);
/// The number of open windows in the status, the oldest first.
const OPEN_WINDOWS: usize = 8;
/// The number of dead letters in the status, the newest ones.
const NEWEST_DEAD: usize = 5;

/// With a longer snapshot interval the age of the newest snapshot is not reported, because it is
/// no sign of a failure.
const MAX_REPORTED_INTERVAL: Duration = Duration::from_secs(600);

/// Since when rows wait to be committed to history (wall clock); `None`: none do.
pub struct HistoryLag {
    /// Source events.
    pub events: watch::Receiver<Option<Micros>>,
    /// Results, late rows and dead letters; `None` without an archiver.
    pub outputs: Option<watch::Receiver<Option<Micros>>>,
}

/// Reports the state of one pipeline.
pub struct Reporter {
    metrics: Arc<Metrics>,
    board: StatusBoard,
    clock: Clock,
    customer: String,
    last_report: Option<Instant>,
    history_lag: HistoryLag,
    snapshot_at: Option<Micros>,
    dead: u64,
    newest_dead: VecDeque<String>,
    rows: u64,
    bytes: u64,
    sent: HashMap<String, u64>,
    late: HashMap<String, u64>,
}

impl Reporter {
    /// Creates the reporter of the engine's customer.
    pub fn new(engine: &Engine, options: &PipelineConfig, history_lag: HistoryLag) -> Self {
        let reports_age = options.snapshot_interval <= MAX_REPORTED_INTERVAL;
        Self {
            history_lag,
            snapshot_at: reports_age.then(|| options.clock.now()),
            metrics: options.metrics.clone(),
            board: options.board.clone(),
            clock: options.clock.clone(),
            customer: engine.customer.name.clone(),
            last_report: None,
            dead: 0,
            newest_dead: VecDeque::new(),
            rows: 0,
            bytes: 0,
            sent: HashMap::new(),
            late: HashMap::new(),
        }
    }

    /// Counts the output of an epoch.
    pub fn count_output(&mut self, output: &EngineOutput) {
        self.rows += output.rows;
        self.bytes += output.bytes;
        self.metrics.events(&self.customer, output.rows, output.bytes);
        for (query, count) in &output.closed {
            self.metrics.windows_closed(&self.customer, query, *count);
        }
        for (reason, count) in &output.dead {
            self.dead += count;
            self.metrics.dead_letters(&self.customer, reason, *count);
        }
        if !output.dead.is_empty() {
            let newest =
                output.records.iter().rev().filter_map(describe_dead_letter).take(NEWEST_DEAD);
            let newest: Vec<_> = newest.collect();
            self.newest_dead.extend(newest.into_iter().rev());
            let surplus = self.newest_dead.len().saturating_sub(NEWEST_DEAD);
            self.newest_dead.drain(..surplus);
        }
    }

    /// Counts results that became dead letters because they are larger than their topic allows.
    pub fn count_oversized(&mut self, count: u64) {
        if count > 0 {
            self.dead += count;
            self.metrics.dead_letters(&self.customer, "too_large", count);
        }
    }

    /// Counts a commit: the time of the transaction, and the time since the beginning of the epoch.
    pub fn count_commit(
        &mut self,
        epoch: u64,
        took: Duration,
        total: Duration,
        newest_ms: i64,
        now: Micros,
    ) {
        self.metrics.committed(&self.customer, epoch, took, total);
        if newest_ms > 0 {
            self.metrics.latency(&self.customer, seconds((now - newest_ms * 1_000).max(0)));
        }
    }

    /// Records that a progress record named a snapshot at `now`.
    pub fn record_snapshot(&mut self, now: Micros) {
        self.snapshot_at = self.snapshot_at.map(|_| now);
    }

    /// Whether the next report is due.
    pub fn is_due(&self) -> bool {
        self.last_report.is_none_or(|at| at.elapsed() >= INTERVAL)
    }

    /// Publishes the status and updates the metrics. `pending`: the request that Kafka has not
    /// answered yet.
    pub fn report(
        &mut self,
        engine: &Engine,
        ends: &HashMap<TopicPartition, i64>,
        epoch: u64,
        paused: &BTreeSet<TopicPartition>,
        pending: PendingRequest,
    ) {
        self.last_report = Some(Instant::now());
        let streams =
            engine.streams().iter().map(|(name, stage)| stream_status(name, stage, ends, paused));
        let streams: Vec<_> = streams.collect();
        let queries = engine.queries().iter().map(|query| QueryStatus {
            name: query.plan().name.clone(),
            input: match &query.plan().input {
                Input::Stream(name) | Input::Query(name) => name.clone(),
                Input::Views => query.plan().tables.join(", "),
            },
            emitted: query.emitted(),
            late: query.late(),
            state_rows: query.operator().state_rows() as u64,
            state_bytes: query.operator().state_bytes() as u64,
            windows_open: query.operator().open_windows().len() as u64,
            open: open_windows(engine, &query.plan().input, &query.operator().open_windows()),
            newest: query.newest().to_vec(),
        });
        let waits = [
            *self.history_lag.events.borrow(),
            self.history_lag.outputs.as_ref().and_then(|outputs| *outputs.borrow()),
        ];
        let status = Status {
            history_waits_since: waits.into_iter().flatten().min(),
            snapshot_at: self.snapshot_at,
            kafka_error: pending.error,
            kafka_waits_since: pending.since.map(|since| {
                let waited = Micros::try_from(since.elapsed().as_micros()).unwrap_or(Micros::MAX);
                self.clock.now().saturating_sub(waited)
            }),
            customer: self.customer.clone(),
            zone: engine.customer.zone.name().to_owned(),
            at: self.clock.now(),
            epoch,
            streams,
            queries: queries.collect(),
            dead_letters: self.dead,
            newest_dead: self.newest_dead.iter().cloned().collect(),
            ..Status::default()
        };
        self.update_metrics(&status);
        self.board.publish(status);
    }

    fn update_metrics(&mut self, status: &Status) {
        let customer = &self.customer;
        self.metrics.storage(customer, status);
        for stream in &status.streams {
            for partition in &stream.partitions {
                self.metrics.partition(customer, &stream.name, partition);
            }
            self.metrics.stream(customer, stream);
        }
        for query in &status.queries {
            let sent = self.sent.entry(query.name.clone()).or_default();
            let late = self.late.entry(query.name.clone()).or_default();
            self.metrics.query(customer, query, query.emitted - *sent, query.late - *late);
            (*sent, *late) = (query.emitted, query.late);
        }
    }
}

/// The status of a stream. `paused`: partitions that wait for slower ones.
pub fn stream_status(
    name: &str,
    stage: &StreamState,
    ends: &HashMap<TopicPartition, i64>,
    paused: &BTreeSet<TopicPartition>,
) -> StreamStatus {
    let partitions = stage.partition_views().map(|view| {
        let at = stage.positions().get(&view.partition).copied().unwrap_or_default();
        let position = at.offset;
        PartitionStatus {
            topic: view.partition.topic.to_string(),
            partition: view.partition.partition,
            position,
            skipped: at.skipped,
            end: ends.get(&view.partition).map_or(position, |&end| end.max(position)),
            watermark: view.watermark,
            idle: view.idle,
            quiet_since: view.active_at,
            paused: paused.contains(&view.partition),
        }
    });
    let partitions: Vec<_> = partitions.collect();
    StreamStatus {
        name: name.to_owned(),
        events: stage.rows_read(),
        bytes: stage.bytes_read(),
        unknown_fields: stage.unknown_fields(),
        watermark: to_status(stage.watermark()),
        lag: partitions.iter().map(|p| p.end - p.position).sum(),
        partitions,
    }
}

/// The oldest open windows, each with the reason why it is open.
fn open_windows(engine: &Engine, input: &Input, windows: &[Window]) -> Vec<OpenWindowStatus> {
    let Input::Stream(stream) = input else { return Vec::new() };
    let Some(stage) = engine.streams().get(stream) else { return Vec::new() };
    windows
        .iter()
        .take(OPEN_WINDOWS)
        .map(|window| {
            let why = stage.blocking_partition(window.end);
            let zone = engine.customer.zone;
            OpenWindowStatus {
                window: *window,
                held_by: why.as_ref().map(|w| w.partition.to_string()),
                held_at: why.as_ref().and_then(|w| to_status(w.watermark)),
                because: why.map_or_else(
                    || "it is about to close".to_owned(),
                    |w| describe_blocking(&w, zone),
                ),
            }
        })
        .collect()
}

/// Describes a dead letter: `1084/0 at 17: reason`; `None` for any other record.
fn describe_dead_letter(record: &OutRecord) -> Option<String> {
    let header = |wanted: &str| {
        let (_, value) = record.headers.iter().find(|(name, _)| name == wanted)?;
        value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let reason = header(headers::REASON)?;
    let source = [headers::TOPIC, headers::PARTITION, headers::OFFSET].map(header);
    Some(match (source, header(headers::QUERY)) {
        ([Some(topic), Some(partition), Some(offset)], _) => {
            format!("{topic}/{partition} at {offset}: {reason}")
        }
        (_, Some(query)) => format!("{query}: {reason}"),
        _ => reason,
    })
}

/// Describes why a window is open, with times in the customer's zone.
fn describe_blocking(waiting: &BlockingPartition, zone: Tz) -> String {
    let instant = |at: Micros| match chrono::DateTime::from_timestamp_micros(at) {
        Some(at) => at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S %Z").to_string(),
        None => "never".to_owned(),
    };
    let stands = match to_status(waiting.watermark) {
        Some(watermark) => format!("{} stands at {}", waiting.partition, instant(watermark)),
        None => format!("{} has not sent an event yet", waiting.partition),
    };
    match waiting.closes_at {
        Some(at) => format!("{stands}; without further events it closes at {}", instant(at)),
        None => stands,
    }
}

/// A watermark as the status shows it: `None` before the first event and after a drain.
fn to_status(watermark: Micros) -> Option<Micros> {
    (watermark != crate::time::MIN_TIME && watermark != MAX_TIME).then_some(watermark)
}

/// Converts microseconds to seconds.
fn seconds(span: Micros) -> f64 {
    span as f64 / SECOND as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SECOND;

    #[test]
    fn times_of_an_open_window_are_in_the_customers_zone() {
        let waiting = BlockingPartition {
            partition: TopicPartition::new("1084", 0),
            watermark: 1_572_138_000 * SECOND,
            since: None,
            closes_at: Some(1_572_134_400 * SECOND),
        };
        assert_eq!(
            describe_blocking(&waiting, Tz::Europe__Helsinki),
            "1084/0 stands at 2019-10-27 03:00:00 EET; without further events it closes at 2019-10-27 03:00:00 EEST"
        );
    }

    #[test]
    fn a_dead_letter_is_described_with_position_and_reason() {
        let record = |headers: &[(&str, &str)]| OutRecord {
            topic: "dead".into(),
            partition: None,
            key: None,
            value: None,
            headers: (headers.iter())
                .map(|(name, value)| ((*name).to_owned(), Some(value.to_string().into())))
                .collect(),
            timestamp_ms: None,
        };
        let source = [(headers::TOPIC, "1084"), (headers::PARTITION, "0"), (headers::OFFSET, "17")];
        let why = (headers::REASON, "empty");
        assert_eq!(
            describe_dead_letter(&record(&[&source[..], &[why]].concat())).unwrap(),
            "1084/0 at 17: empty"
        );
        assert_eq!(
            describe_dead_letter(&record(&[(headers::QUERY, "q"), why])).unwrap(),
            "q: empty"
        );
        assert_eq!(describe_dead_letter(&record(&source)), None);
    }
}
