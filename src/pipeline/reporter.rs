//! What a pipeline says of itself: the status board and the metrics, from the engine's state.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono_tz::Tz;
use tokio::sync::watch;

use crate::pipeline::PipelineConfig;
use crate::pipeline::engine::stream_state::StreamState;
use crate::pipeline::engine::{Engine, EngineOutput};
use crate::planner::Input;
use crate::sink::headers;
use crate::telemetry::status::{OpenWindow, PartitionStatus, QueryStatus, Status, StreamStatus};
use crate::telemetry::{Metrics, StatusBoard};
use crate::time::{Clock, Micros, Window};
use crate::time::{MAX_TIME, SECOND};
use crate::types::{OutRecord, TopicPartition};
use crate::watermark::BlockingPartition;

/// The status is worked out at most this often.
const INTERVAL: Duration = Duration::from_millis(500);
/// Open windows named in the status, the oldest first.
const OPEN_WINDOWS: usize = 8;
/// Dead letters in the status, the newest.
const NEWEST_DEAD: usize = 5;

/// Snapshots further apart than this are wanted so: nobody is to be warned of their age.
const RARE_SNAPSHOTS: Duration = Duration::from_secs(600);

/// Where to see how long history has been waiting.
pub struct Waits {
    /// With events.
    pub events: watch::Receiver<Option<Micros>>,
    /// With results, late rows and dead letters.
    pub results: Option<watch::Receiver<Option<Micros>>>,
}

/// Reports one pipeline.
pub struct Reporter {
    metrics: Arc<Metrics>,
    board: StatusBoard,
    clock: Clock,
    customer: String,
    reported: Option<Instant>,
    waits: Waits,
    snapshot_at: Option<Micros>,
    dead: u64,
    newest_dead: VecDeque<String>,
    rows: u64,
    bytes: u64,
    sent: HashMap<String, u64>,
    late: HashMap<String, u64>,
}

impl Reporter {
    /// The reporter of `engine`'s customer.
    pub fn new(engine: &Engine, options: &PipelineConfig, waits: Waits) -> Self {
        let watched = options.snapshot_interval <= RARE_SNAPSHOTS;
        Self {
            waits,
            snapshot_at: watched.then(|| options.clock.now()),
            metrics: options.metrics.clone(),
            board: options.board.clone(),
            clock: options.clock.clone(),
            customer: engine.customer.name.clone(),
            reported: None,
            dead: 0,
            newest_dead: VecDeque::new(),
            rows: 0,
            bytes: 0,
            sent: HashMap::new(),
            late: HashMap::new(),
        }
    }

    /// Counts what an epoch gave.
    pub fn output(&mut self, output: &EngineOutput) {
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
            let newest = output.records.iter().rev().filter_map(dead_letter).take(NEWEST_DEAD);
            let newest: Vec<_> = newest.collect();
            self.newest_dead.extend(newest.into_iter().rev());
            let surplus = self.newest_dead.len().saturating_sub(NEWEST_DEAD);
            self.newest_dead.drain(..surplus);
        }
    }

    /// Counts results that became dead letters because their topic does not take them.
    pub fn too_large(&mut self, count: u64) {
        if count > 0 {
            self.dead += count;
            self.metrics.dead_letters(&self.customer, "too_large", count);
        }
    }

    /// Counts a commit: how long the transaction took, and the whole of it.
    pub fn committed(
        &mut self,
        epoch: u64,
        took: Duration,
        whole: Duration,
        newest_ms: i64,
        now: Micros,
    ) {
        self.metrics.committed(&self.customer, epoch, took, whole);
        if newest_ms > 0 {
            self.metrics.latency(&self.customer, seconds((now - newest_ms * 1_000).max(0)));
        }
    }

    /// A progress record named a snapshot.
    pub fn snapshot_named(&mut self, now: Micros) {
        self.snapshot_at = self.snapshot_at.map(|_| now);
    }

    /// Whether it is some time since the status was published.
    pub fn is_due(&self) -> bool {
        self.reported.is_none_or(|at| at.elapsed() >= INTERVAL)
    }

    /// Publishes the status. `asked`: since when Kafka owes an answer, and what it said instead.
    pub fn report(
        &mut self,
        engine: &Engine,
        ends: &HashMap<TopicPartition, i64>,
        epoch: u64,
        paused: &BTreeSet<TopicPartition>,
        (asked, kafka_says): (Option<Instant>, Option<String>),
    ) {
        self.reported = Some(Instant::now());
        let streams =
            engine.streams().iter().map(|(name, stage)| stream(name, stage, ends, paused));
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
            *self.waits.events.borrow(),
            self.waits.results.as_ref().and_then(|results| *results.borrow()),
        ];
        let status = Status {
            history_waits_since: waits.into_iter().flatten().min(),
            snapshot_at: self.snapshot_at,
            kafka_says,
            kafka_waits_since: asked.map(|asked| {
                let waited = Micros::try_from(asked.elapsed().as_micros()).unwrap_or(Micros::MAX);
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
        self.measure(&status);
        self.board.publish(status);
    }

    fn measure(&mut self, status: &Status) {
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

/// What a stream's status says; `paused`: partitions that wait for the others.
pub fn stream(
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
        watermark: spoken(stage.watermark()),
        lag: partitions.iter().map(|p| p.end - p.position).sum(),
        partitions,
    }
}

/// Says of the oldest open windows what they wait for.
fn open_windows(engine: &Engine, input: &Input, windows: &[Window]) -> Vec<OpenWindow> {
    let Input::Stream(stream) = input else { return Vec::new() };
    let Some(stage) = engine.streams().get(stream) else { return Vec::new() };
    windows
        .iter()
        .take(OPEN_WINDOWS)
        .map(|window| {
            let why = stage.blocking_partition(window.end);
            let zone = engine.customer.zone;
            OpenWindow {
                window: *window,
                held_by: why.as_ref().map(|w| w.partition.to_string()),
                held_at: why.as_ref().and_then(|w| spoken(w.watermark)),
                because: why
                    .map_or_else(|| "it is about to close".to_owned(), |w| because(&w, zone)),
            }
        })
        .collect()
}

/// A dead letter in words, `1084/0 at 17: reason`; `None` for any other record.
fn dead_letter(record: &OutRecord) -> Option<String> {
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

/// What a window waits for, in words; times are on the customer's clocks.
fn because(waiting: &BlockingPartition, zone: Tz) -> String {
    let instant = |at: Micros| match chrono::DateTime::from_timestamp_micros(at) {
        Some(at) => at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S %Z").to_string(),
        None => "never".to_owned(),
    };
    let stands = match spoken(waiting.watermark) {
        Some(watermark) => format!("{} stands at {}", waiting.partition, instant(watermark)),
        None => format!("{} has not sent an event yet", waiting.partition),
    };
    match waiting.closes_at {
        Some(at) => format!("{stands}; without further events it closes at {}", instant(at)),
        None => stands,
    }
}

/// What `W` means to people: `None` before the first event and after a drain.
fn spoken(watermark: Micros) -> Option<Micros> {
    (watermark != crate::time::MIN_TIME && watermark != MAX_TIME).then_some(watermark)
}

/// Seconds of a span of microseconds.
fn seconds(span: Micros) -> f64 {
    span as f64 / SECOND as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::SECOND;

    #[test]
    fn a_window_waits_on_the_clocks_of_its_customer() {
        let waiting = BlockingPartition {
            partition: TopicPartition::new("1084", 0),
            watermark: 1_572_138_000 * SECOND,
            since: None,
            closes_at: Some(1_572_134_400 * SECOND),
        };
        assert_eq!(
            because(&waiting, Tz::Europe__Helsinki),
            "1084/0 stands at 2019-10-27 03:00:00 EET; without further events it closes at 2019-10-27 03:00:00 EEST"
        );
    }

    #[test]
    fn a_dead_letter_says_where_it_was_and_why() {
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
            dead_letter(&record(&[&source[..], &[why]].concat())).unwrap(),
            "1084/0 at 17: empty"
        );
        assert_eq!(dead_letter(&record(&[(headers::QUERY, "q"), why])).unwrap(), "q: empty");
        assert_eq!(dead_letter(&record(&source)), None);
    }
}
