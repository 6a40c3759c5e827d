//! What the live view remembers between two looks at the board, and how it words things.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use chrono::DateTime;
use chrono_tz::Tz;
use serde_json::Value;

use crate::telemetry::status::{QueryStatus, Status};
use crate::time::{MAX_TIME, MIN_TIME, Micros, SECOND};

/// Rates are taken over this time: long enough to be steady, short enough to see a change.
const RATE_US: Micros = 5 * SECOND;
/// Words in the name of a query whose results somebody should look at.
const ALERTS: [&str; 2] = ["alert", "overcrowded"];

/// What the view shows besides the status board, and what it hides.
#[derive(Debug, Clone, Default)]
pub struct ViewOptions {
    /// Lines that are always shown, the most important first.
    pub notes: Vec<String>,
    /// The query whose results are hidden.
    pub hidden_query: HiddenQuery,
}

/// A query whose results would mislead in the view.
#[derive(Debug, Clone, Copy, Default)]
pub struct HiddenQuery {
    /// The query's name.
    pub query: &'static str,
    /// The reason, shown instead of the results.
    pub reason: &'static str,
}

/// The newest statuses and what was seen before.
#[derive(Debug, Default)]
pub struct View {
    /// Lines to show all the time, the most important first.
    pub notes: Vec<String>,
    hidden_query: HiddenQuery,
    /// The newest status of each customer.
    pub statuses: Vec<Arc<Status>>,
    /// How far the results are scrolled, in lines.
    pub scrolled: u16,
    /// By customer and stream: when (by the status) and how many events then.
    seen: BTreeMap<(String, String), VecDeque<(Micros, u64)>>,
}

impl View {
    /// A view that has seen nothing yet.
    pub fn new(options: ViewOptions) -> Self {
        Self { notes: options.notes, hidden_query: options.hidden_query, ..Self::default() }
    }

    /// Returns why the query's results are hidden, or `None` if they are shown.
    pub fn hidden_reason(&self, query: &QueryStatus) -> Option<&'static str> {
        (query.name == self.hidden_query.query).then_some(self.hidden_query.reason)
    }

    /// Takes in what the board shows now.
    pub fn observe(&mut self, statuses: &[Arc<Status>]) {
        self.statuses = statuses.to_vec();
        for status in statuses {
            for stream in &status.streams {
                let seen =
                    self.seen.entry((status.customer.clone(), stream.name.clone())).or_default();
                if seen.back().is_none_or(|(at, _)| *at < status.at) {
                    seen.push_back((status.at, stream.events));
                }
                while seen.len() > 2 && seen.get(1).is_some_and(|(at, _)| status.at - at >= RATE_US)
                {
                    seen.pop_front();
                }
            }
        }
    }

    /// Events a second of a stream, lately.
    pub fn rate(&self, customer: &str, stream: &str) -> f64 {
        let seen = self.seen.get(&(customer.to_owned(), stream.to_owned()));
        match seen.and_then(|seen| Some((seen.front()?, seen.back()?))) {
            Some(((from, before), (to, now))) if to > from => {
                now.saturating_sub(*before) as f64 * SECOND as f64 / (to - from) as f64
            }
            _ => 0.0,
        }
    }

    /// Moves the results up or down.
    pub fn scroll(&mut self, lines: i16) {
        self.scrolled = self.scrolled.saturating_add_signed(lines);
    }

    /// Every query with its customer's status.
    pub fn queries(&self) -> impl Iterator<Item = (&Status, &QueryStatus)> {
        self.statuses
            .iter()
            .flat_map(|status| status.queries.iter().map(move |query| (status.as_ref(), query)))
    }
}

/// Whether somebody should look at the query's results.
pub fn is_alert(query: &QueryStatus) -> bool {
    ALERTS.iter().any(|word| query.name.contains(word))
}

/// An instant on the clock's face of the customer, and the zone that it is in.
pub fn local(at: Option<Micros>, zone: &str) -> String {
    match at {
        None | Some(MIN_TIME) => "nothing yet".to_owned(),
        Some(MAX_TIME) => "drained".to_owned(),
        Some(at) => match DateTime::from_timestamp_micros(at) {
            Some(at) => clock(at.with_timezone(&tz(zone))),
            None => "out of range".to_owned(),
        },
    }
}

fn tz(zone: &str) -> Tz {
    zone.parse().unwrap_or(Tz::UTC)
}

fn clock(at: DateTime<Tz>) -> String {
    at.format("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A result as `room=hall persons=2`, its times on the clock's face of the customer and its window
/// in one; what is not a JSON object stays as it is.
pub fn short(result: &str, zone: &str) -> String {
    let Ok(Value::Object(mut object)) = serde_json::from_str(result) else { return plain(result) };
    let zone = tz(zone);
    let instant = |value: &Value| {
        let at = DateTime::parse_from_rfc3339(value.as_str()?).ok()?;
        Some(at.with_timezone(&zone))
    };
    let mut pairs = Vec::with_capacity(object.len());
    let bounds = ["window_start", "window_end"].map(|name| object.get(name).and_then(instant));
    if let [Some(start), Some(end)] = bounds {
        pairs.push(window(start, end));
        object.retain(|name, _| name != "window_start" && name != "window_end");
    }
    pairs.extend(object.iter().map(|(name, value)| match value {
        Value::Number(number) if number.is_f64() => {
            format!("{name}={:.1}", number.as_f64().unwrap_or_default())
        }
        value => match (instant(value), value) {
            (Some(at), _) => format!("{name}={}", clock(at)),
            (None, Value::String(text)) => format!("{name}={text}"),
            (None, other) => format!("{name}={other}"),
        },
    }));
    plain(&pairs.join(" "))
}

/// `2019-10-30 14:00 to 15:00 EET`; whatever both ends share is said once.
fn window(start: DateTime<Tz>, end: DateTime<Tz>) -> String {
    let whole = start.timestamp() % 60 == 0 && end.timestamp() % 60 == 0;
    let time = if whole { "%H:%M" } else { "%H:%M:%S" };
    let until = match start.date_naive() == end.date_naive() {
        true => format!("{time} %Z"),
        false => format!("%Y-%m-%d {time} %Z"),
    };
    let from = match start.offset().to_string() == end.offset().to_string() {
        true => format!("%Y-%m-%d {time}"),
        // The clock changes inside.
        false => format!("%Y-%m-%d {time} %Z"),
    };
    format!("{} to {}", start.format(&from), end.format(&until))
}

/// Without control characters, which would move the cursor.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::StreamStatus;

    #[test]
    fn rates_follow_the_last_seconds() {
        let mut view = View::default();
        let mut at = |second: i64, events: u64| {
            let stream =
                StreamStatus { name: "positions".to_owned(), events, ..StreamStatus::default() };
            let status = Status {
                customer: "a".to_owned(),
                at: second * SECOND,
                streams: vec![stream],
                ..Status::default()
            };
            view.observe(&[Arc::new(status)]);
            view.rate("a", "positions")
        };
        assert_eq!(at(0, 1000), 0.0);
        assert_eq!(at(1, 1100), 100.0);
        assert_eq!(at(1, 1100), 100.0);
        for second in 2..20 {
            at(second, 1100);
        }
        assert_eq!(at(20, 1100), 0.0);
        assert_eq!(at(25, 1600), 100.0);
        assert_eq!(at(26, 0), 0.0, "a pipeline that began anew");
    }

    #[test]
    fn wording() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        let zone = "Europe/Helsinki";
        assert_eq!(short(r#"{"room":"hall","p":2.25,"x":null}"#, zone), "room=hall p=2.2 x=null");
        assert_eq!(short("not\u{1b}json", zone), "not json");
        for (result, expected) in [
            (r#"{"seen":"2019-10-30T12:06:35Z"}"#, "seen=2019-10-30 14:06:35 EET"),
            (
                r#"{"window_start":"2019-10-30T14:00:00+02:00","window_end":"2019-10-30T15:00:00+02:00","n":1}"#,
                "2019-10-30 14:00 to 15:00 EET n=1",
            ),
            (
                r#"{"window_start":"2019-10-27T00:00:00+03:00","window_end":"2019-10-28T00:00:00+02:00"}"#,
                "2019-10-27 00:00 EEST to 2019-10-28 00:00 EET",
            ),
        ] {
            assert_eq!(short(result, zone), expected);
        }
        let midnight = Some(1_572_386_400 * SECOND);
        assert_eq!(local(midnight, "Europe/Helsinki"), "2019-10-30 00:00:00 EET");
        assert_eq!(local(midnight, ""), "2019-10-29 22:00:00 UTC");
        assert_eq!(local(None, ""), "nothing yet");
    }
}

/// A status with everything in it, for tests of what is shown.
#[cfg(test)]
pub mod tests_support {
    use crate::cli::live::view::{HiddenQuery, ViewOptions};
    use crate::telemetry::status::{
        OpenWindowStatus, PartitionStatus, QueryStatus, Status, StreamStatus,
    };
    use crate::time::{HOUR, MINUTE, Micros, SECOND, Window};

    /// So many seconds after 2019-10-30 14:06:35 in Helsinki.
    pub fn at(second: i64) -> Micros {
        1_572_386_400 * SECOND + 14 * HOUR + 6 * MINUTE + (35 + second) * SECOND
    }

    /// Notes as the demo has them, and a query left out.
    pub fn options() -> ViewOptions {
        let notes =
            ["broker 127.0.0.1:1234", "history .millstream/demo/20261124-120000 (from 10 s on)"];
        ViewOptions {
            notes: notes.map(str::to_owned).to_vec(),
            hidden_query: HiddenQuery { query: "latency", reason: "not true here" },
        }
    }

    /// Two pipelines at work, with the longest names of the demo and in two zones.
    pub fn two(now: Micros, events: u64) -> [Status; 2] {
        let first = busy(now, events);
        let mut second = Status {
            customer: "customer_b".to_owned(),
            zone: "UTC".to_owned(),
            ..busy(now, events)
        };
        let first_query = &mut second.queries[0];
        first_query.name = "half_day_visits".to_owned();
        first_query.newest = vec![
            r#"{"window_start":"2019-10-30T10:00:00Z","window_end":"2019-10-30T22:00:00Z","part_id":1084,"room":"living room","visits":17}"#.to_owned(),
        ];
        [first, second]
    }

    /// A pipeline at work that has read so many events.
    pub fn busy(now: Micros, events: u64) -> Status {
        let partition =
            |topic: &str| PartitionStatus { topic: topic.to_owned(), ..PartitionStatus::default() };
        let query = |name: &str, newest: &str| QueryStatus {
            name: name.to_owned(),
            input: "positions".to_owned(),
            emitted: 42,
            state_rows: 4,
            newest: vec![newest.to_owned()],
            ..QueryStatus::default()
        };
        let midnight = 1_572_386_400 * SECOND;
        let open = OpenWindowStatus {
            window: Window { start: midnight, end: midnight + 24 * HOUR },
            held_by: Some("1084/0".to_owned()),
            held_at: Some(at(-30)),
            because: "1084/0 stands at 2019-10-30 14:06:05 EET; without further events it closes at 2026-11-24 12:00:00 EET".to_owned(),
        };
        Status {
            customer: "customer_a".to_owned(),
            zone: "Europe/Helsinki".to_owned(),
            at: now,
            epoch: 17,
            streams: vec![StreamStatus {
                name: "positions".to_owned(),
                events,
                watermark: Some(at(-30)),
                lag: 3,
                partitions: vec![
                    partition("1084"),
                    PartitionStatus { paused: true, ..partition("1085") },
                    PartitionStatus { idle: true, ..partition("1086") },
                ],
                ..StreamStatus::default()
            }],
            queries: vec![
                QueryStatus {
                    open: vec![open],
                    windows_open: 2,
                    late: 5,
                    ..query("daily_visits", r#"{"part_id":1084,"events":7}"#)
                },
                query("occupancy", r#"{"room":"hall","persons":2}"#),
                query(
                    "presence_alert",
                    r#"{"event_time":"2019-10-30T14:06:05+02:00","part_id":1084,"room":"hall"}"#,
                ),
                query("latency", r#"{"to_kafka_p50_ms":5000000.0}"#),
            ],
            dead_letters: 9,
            newest_dead: vec![
                "1084/0 at 3: empty".to_owned(),
                "1084/0 at 17: cannot parse \"abc\" as BIGINT (column part_id, byte 12)".to_owned(),
            ],
            ..Status::default()
        }
    }
}
