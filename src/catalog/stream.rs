//! Streams: relations whose rows are read from Kafka topics.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use chrono_tz::Tz;

use crate::catalog::column::{StreamColumn, resolve_columns};
use crate::catalog::identifier;
use crate::catalog::instant::parse_instant;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::StreamStatement;
use crate::catalog::topics::{Topics, resolve_topics};
use crate::catalog::watermark_clause::{Watermark, resolve_watermark};
use crate::catalog::with_options::WithOptions;
use crate::error::{Error, Place};
use crate::time::{MINUTE, Micros, SECOND};

/// The default of `idle_timeout`, in microseconds.
pub const DEFAULT_IDLE_TIMEOUT_US: Micros = 30 * SECOND;
/// The default of `max_future`, in microseconds.
pub const DEFAULT_MAX_FUTURE_US: Micros = 5 * MINUTE;

const OPTIONS: [&str; 8] = [
    "topics",
    "topic_pattern",
    "format",
    "start",
    "idle_timeout",
    "max_future",
    "max_drift",
    "history",
];

/// A stream as declared by CREATE STREAM.
#[derive(Debug, Clone)]
pub struct Stream {
    /// The name in SQL.
    pub name: String,
    /// The columns, in declared order.
    pub columns: Vec<StreamColumn>,
    /// The event-time column and the allowed disorder.
    pub watermark: Watermark,
    /// The topics that it reads.
    pub topics: Topics,
    /// The encoding of the records.
    pub format: RecordFormat,
    /// The start offset of a partition without recorded progress.
    pub start: Start,
    /// A partition is idle after this time without a new record, in microseconds.
    pub idle_timeout_us: i64,
    /// A row whose event time is this far ahead of the clock becomes a dead letter, in microseconds.
    pub max_future_us: i64,
    /// While catching up, the most event time by which a partition may be read ahead of the slowest
    /// one, in microseconds; `None` is unlimited.
    pub max_drift_us: Option<i64>,
    /// Whether the rows are written to a Delta table.
    pub history: bool,
    /// The place of its name.
    pub place: Place,
}

/// The encoding of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFormat {
    /// JSON objects; a record contains one, or several separated by newlines.
    Json,
}

/// The start offset of a partition without recorded progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The first record (the default).
    Earliest,
    /// After the last record.
    Latest,
    /// The first record whose Kafka timestamp is at or after this instant, in microseconds.
    At(Micros),
}

impl Stream {
    /// The Arrow schema of the columns, in declared order.
    pub fn schema(&self) -> SchemaRef {
        let field = |c: &StreamColumn| Field::new(&c.name, c.data_type.clone(), c.nullable);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// Checks a CREATE STREAM. Returns the stream with the place of its topics, or `None` after adding
    /// to `errors`.
    pub(super) fn from_statement(
        statement: StreamStatement,
        text: &SqlText,
        zone: Tz,
        errors: &mut Vec<Error>,
    ) -> Option<(Self, Place)> {
        let before = errors.len();
        identifier::check_relation_name(&statement.name, text, errors);
        let options = WithOptions::new(text, &statement.options, "a stream", &OPTIONS, errors);
        let columns = resolve_columns(statement.columns, text, zone, errors);
        let watermark =
            resolve_watermark(&statement.name, &statement.watermarks, &columns, text, errors);
        let topics = resolve_topics(&statement.name, text, &options, errors);
        let topics_place = topics.as_ref().map(|(_, word)| text.place(word.span));
        // All options are checked before the `?` of the topics and the watermark returns.
        let stream = Self {
            format: resolve_format(&options, text, errors),
            start: resolve_start(&options, text, zone, errors),
            idle_timeout_us: (options.duration("idle_timeout", 1, errors))
                .unwrap_or(DEFAULT_IDLE_TIMEOUT_US),
            max_future_us: (options.duration("max_future", 0, errors))
                .unwrap_or(DEFAULT_MAX_FUTURE_US),
            max_drift_us: options.duration("max_drift", 1, errors),
            history: options.switch("history", errors).unwrap_or(true),
            place: text.place(statement.name.span),
            topics: topics?.0,
            watermark: watermark?,
            columns: columns.into_iter().map(|(column, _)| column).collect(),
            name: statement.name.value,
        };
        if errors.len() == before { Some((stream, topics_place?)) } else { None }
    }
}

fn resolve_format(
    options: &WithOptions<'_>,
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> RecordFormat {
    if let Some(value) = options.get("format").filter(|v| !v.value.eq_ignore_ascii_case("json")) {
        let message = format!("unknown format '{}'", value.value);
        errors.push(text.error(value.span, message).hint("the only format is 'json'"));
    }
    RecordFormat::Json
}

fn resolve_start(
    options: &WithOptions<'_>,
    text: &SqlText,
    zone: Tz,
    errors: &mut Vec<Error>,
) -> Start {
    let Some(value) = options.get("start") else { return Start::Earliest };
    match value.value.to_lowercase().as_str() {
        "earliest" => Start::Earliest,
        "latest" => Start::Latest,
        _ => match parse_instant(&value.value, zone) {
            Some(instant) => Start::At(instant),
            None => {
                errors.push(
                    (text.error(value.span, format!("'{}' is not a valid start", value.value)))
                        .hint("use 'earliest', 'latest', or a time such as '2026-11-01 06:00:00'"),
                );
                Start::Earliest
            }
        },
    }
}
