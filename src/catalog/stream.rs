//! Streams: rows that come from Kafka topics.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Spanned};

use crate::catalog::data_type::{arrow_type, timestamp};
use crate::catalog::duration;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{
    ColumnClause, SourceClause, StreamStatement, WatermarkClause, Word, folded,
};
use crate::catalog::topics::{self, Topics};
use crate::catalog::with_options::WithOptions;
use crate::catalog::{identifier, suggestion};
use crate::error::{Error, Place};
use crate::time::{MINUTE, Micros, SECOND};

/// How long a partition must be quiet, at its end, to be idle.
pub const DEFAULT_IDLE_TIMEOUT_US: Micros = 30 * SECOND;
/// How far ahead of the clock an event time may be before it is taken for a broken clock's.
pub const DEFAULT_MAX_FUTURE_US: Micros = 5 * MINUTE;

/// Columns that history or a window function adds to the stream's own.
const RESERVED_COLUMNS: [&str; 9] = [
    "_topic",
    "_partition",
    "_offset",
    "_position",
    "_timestamp",
    "event_date",
    "window_start",
    "window_end",
    "window_time",
];

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

const METADATA: [(&str, Metadata); 6] = [
    ("topic", Metadata::Topic),
    ("partition", Metadata::Partition),
    ("offset", Metadata::Offset),
    ("key", Metadata::Key),
    ("timestamp", Metadata::Timestamp),
    ("headers", Metadata::Headers),
];

/// A stream as declared by CREATE STREAM.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Its name in SQL.
    pub name: String,
    /// All columns, in declared order.
    pub columns: Vec<StreamColumn>,
    /// Its event time and how much disorder to expect.
    pub watermark: Watermark,
    /// The topics that it reads.
    pub topics: Topics,
    /// How the records are encoded.
    pub format: RecordFormat,
    /// Where a partition without recorded progress begins.
    pub start: Start,
    /// A partition that is quiet at its end for so long is idle.
    pub idle_timeout_us: i64,
    /// An event time so far ahead of the clock is a dead letter.
    pub max_future_us: i64,
    /// When behind, a partition may run ahead of the slowest by so much; `None`: freely.
    pub max_drift_us: Option<i64>,
    /// Whether the rows are kept as a Delta table.
    pub history: bool,
    /// Where its name stands.
    pub place: Place,
}

/// One column of a stream.
#[derive(Debug, Clone)]
pub struct StreamColumn {
    /// Its name: the JSON key of a payload column.
    pub name: String,
    /// Its Arrow type; a TIMESTAMP is microseconds in the customer's zone.
    pub data_type: DataType,
    /// False for NOT NULL.
    pub nullable: bool,
    /// Where its values come from.
    pub source: ColumnSource,
    /// Where its name stands.
    pub place: Place,
}

/// Where a column's values come from.
#[derive(Debug, Clone)]
pub enum ColumnSource {
    /// A field of the message. A TIMESTAMP may declare a strftime format, or `epoch_s`, `epoch_ms`,
    /// `epoch_us`.
    Payload {
        /// The declared format, checked.
        format: Option<String>,
    },
    /// Kafka's own facts about the record.
    Metadata(Metadata),
    /// An expression over the other columns; its spans are the file's.
    Computed(Box<ast::Expr>),
}

/// What Kafka says about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metadata {
    /// The topic's name: VARCHAR.
    Topic,
    /// The partition: INT.
    Partition,
    /// The offset: BIGINT.
    Offset,
    /// The key: VARCHAR or BYTEA; null when the record has none.
    Key,
    /// Kafka's timestamp: TIMESTAMP; null when the record has none.
    Timestamp,
    /// The headers: VARCHAR, a JSON object of name to text.
    Headers,
}

/// The encoding of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFormat {
    /// JSON objects, one a record or several separated by newlines.
    Json,
}

/// Where a partition without recorded progress begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At its first record (the default).
    Earliest,
    /// After its last one.
    Latest,
    /// At the first record whose Kafka timestamp is at or after this instant.
    At(Micros),
}

/// `WATERMARK FOR column AS column - delay`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// The event-time column.
    pub column: String,
    /// How long after it a row may still come, in microseconds.
    pub delay_us: i64,
}

impl Stream {
    /// All columns, in declared order.
    pub fn schema(&self) -> SchemaRef {
        let field = |c: &StreamColumn| Field::new(&c.name, c.data_type.clone(), c.nullable);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// Checks a CREATE STREAM; `None` when `errors` say why there is no stream. With it comes the
    /// place of its topics.
    pub(super) fn from_statement(
        statement: StreamStatement,
        text: &SqlText,
        zone: Tz,
        errors: &mut Vec<Error>,
    ) -> Option<(Self, Place)> {
        let before = errors.len();
        identifier::relation(&statement.name, text, errors);
        let options = WithOptions::new(text, &statement.options, "a stream", &OPTIONS, errors);
        let columns = columns(statement.columns, text, zone, errors);
        let watermark = watermark(&statement.name, &statement.watermarks, &columns, text, errors);
        let topics = topics::declared(&statement.name, text, &options, errors);
        let topics_place = topics.as_ref().map(|(_, word)| text.place(word.span));
        // Every field reports its own mistakes before the first missing one ends it.
        let stream = Self {
            format: format(&options, text, errors),
            start: start(&options, text, zone, errors),
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

/// The columns, each with whether its type is known (a column of an unknown type stands in, so
/// that the watermark does not complain about it as well).
fn columns(
    clauses: Vec<ColumnClause>,
    text: &SqlText,
    zone: Tz,
    errors: &mut Vec<Error>,
) -> Vec<(StreamColumn, bool)> {
    let mut seen = HashSet::new();
    let mut columns = Vec::new();
    for clause in clauses {
        let Word { value: name, span } = clause.name;
        if !seen.insert(name.clone()) {
            errors.push(text.error(span, format!("column '{name}' is declared twice")));
            continue;
        }
        if RESERVED_COLUMNS.contains(&name.as_str()) {
            errors.push(
                (text.error(span, format!("a stream's column cannot be called '{name}'")))
                    .hint("history and window functions add a column of that name"),
            );
        }
        let (data_type, known) = match arrow_type(&clause.sql_type, zone) {
            Ok(data_type) => (data_type, true),
            Err((message, hint)) => {
                errors.push(text.error(clause.type_span, message).hint(hint));
                (DataType::Null, false)
            }
        };
        let source = match clause.source {
            SourceClause::Payload => ColumnSource::Payload { format: None },
            SourceClause::Computed(expr) => ColumnSource::Computed(expr),
            SourceClause::Format(format) => {
                if known {
                    check_format(&format, &data_type, text, errors);
                }
                ColumnSource::Payload { format: Some(format.value) }
            }
            SourceClause::Metadata(word) => {
                let Some(metadata) = metadata(&word, text, errors) else { continue };
                if known && !metadata.allowed(zone).contains(&data_type) {
                    let message = format!("metadata '{}' is no {}", word.value, clause.sql_type);
                    let hint = format!("declare it as {}", metadata.sql_types());
                    errors.push(text.error(clause.type_span, message).hint(hint));
                }
                if let (Some(span), Metadata::Key | Metadata::Timestamp) =
                    (clause.not_null, metadata)
                {
                    let message = format!("metadata '{}' may be null", word.value);
                    errors.push(text.error(span, message).hint("leave out NOT NULL"));
                }
                ColumnSource::Metadata(metadata)
            }
        };
        let nullable = clause.not_null.is_none();
        columns.push((
            StreamColumn { name, data_type, nullable, source, place: text.place(span) },
            known,
        ));
    }
    columns
}

impl Metadata {
    /// The types that a column of this may have.
    fn allowed(self, zone: Tz) -> Vec<DataType> {
        match self {
            Self::Topic | Self::Headers => vec![DataType::Utf8],
            Self::Partition => vec![DataType::Int32],
            Self::Offset => vec![DataType::Int64],
            Self::Key => vec![DataType::Utf8, DataType::Binary],
            Self::Timestamp => vec![timestamp(zone)],
        }
    }

    fn sql_types(self) -> &'static str {
        match self {
            Self::Topic | Self::Headers => "VARCHAR",
            Self::Partition => "INT",
            Self::Offset => "BIGINT",
            Self::Key => "VARCHAR or BYTEA",
            Self::Timestamp => "TIMESTAMP",
        }
    }
}

fn metadata(word: &Word, text: &SqlText, errors: &mut Vec<Error>) -> Option<Metadata> {
    let found = METADATA.iter().find(|(name, _)| *name == word.value);
    if found.is_none() {
        let hint = suggestion::suggest_or_list(
            &word.value,
            "metadata",
            METADATA.iter().map(|(name, _)| *name),
        );
        errors.push(text.error(word.span, format!("unknown metadata '{}'", word.value)).hint(hint));
    }
    found.map(|(_, metadata)| *metadata)
}

fn check_format(format: &Word, data_type: &DataType, text: &SqlText, errors: &mut Vec<Error>) {
    const EPOCHS: [&str; 3] = ["epoch_s", "epoch_ms", "epoch_us"];
    let value = format.value.as_str();
    if !matches!(data_type, DataType::Timestamp(..)) {
        errors.push(text.error(format.span, "only a TIMESTAMP has a FORMAT"));
    } else if !value.contains('%') {
        if !EPOCHS.contains(&value) {
            let hint = suggestion::find_nearest(value, EPOCHS).map_or_else(
                || "e.g. '%Y-%m-%d %H:%M:%S', or 'epoch_s', 'epoch_ms', 'epoch_us'".to_owned(),
                |known| format!("did you mean '{known}'?"),
            );
            errors
                .push(text.error(format.span, format!("unknown time format '{value}'")).hint(hint));
        }
    } else if StrftimeItems::new(value).any(|item| matches!(item, Item::Error)) {
        errors.push(
            (text.error(format.span, format!("'{value}' has an unknown % part")))
                .hint("the parts are those of strftime: %Y %m %d %H %M %S %f %z ..."),
        );
    }
}

/// The one watermark, over a declared TIMESTAMP column.
fn watermark(
    stream: &Word,
    clauses: &[WatermarkClause],
    columns: &[(StreamColumn, bool)],
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> Option<Watermark> {
    let [clause] = clauses else {
        errors.push(match clauses {
            [_, second, ..] => {
                text.error(second.span, format!("stream '{}' has two watermarks", stream.value))
            }
            _ => (text.error(stream.span, format!("stream '{}' has no watermark", stream.value))).hint(
                "say which column is the event time: WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND",
            ),
        });
        return None;
    };
    let name = &clause.column;
    match columns.iter().find(|(column, _)| column.name == name.value) {
        None => {
            let known = columns.iter().map(|(column, _)| column.name.as_str());
            let hint = suggestion::suggest_or_list(&name.value, "columns", known);
            let message = format!("the watermark's column '{}' does not exist", name.value);
            errors.push(text.error(name.span, message).hint(hint));
            return None;
        }
        Some((column, true)) if !matches!(column.data_type, DataType::Timestamp(..)) => {
            let message = format!("the watermark's column '{}' is no TIMESTAMP", name.value);
            errors.push(
                (text.error(name.span, message))
                    .hint("compute one: event_time TIMESTAMP AS to_timestamp(...)"),
            );
            return None;
        }
        Some(_) => {}
    }
    match delay(&clause.delayed, &name.value) {
        Ok(delay_us) => Some(Watermark { column: name.value.clone(), delay_us }),
        Err(reason) => {
            let hint = format!("write {0}, or {0} - INTERVAL '30' SECOND", name.value);
            errors.push(text.error(clause.delayed.span(), reason).hint(hint));
            None
        }
    }
}

/// The delay of `column` or `column - INTERVAL '..' unit`.
fn delay(expr: &ast::Expr, column: &str) -> Result<i64, String> {
    let is_column = |expr: &ast::Expr| {
        matches!(expr, ast::Expr::Identifier(ident)
            if folded(&ident.value, ident.quote_style) == column)
    };
    match expr {
        ast::Expr::Nested(inner) => delay(inner, column),
        expr if is_column(expr) => Ok(0),
        ast::Expr::BinaryOp { left, op: BinaryOperator::Minus, right } if is_column(left) => {
            match right.as_ref() {
                ast::Expr::Interval(interval) => interval_us(interval),
                _ => Err("a watermark's delay is an INTERVAL".to_owned()),
            }
        }
        _ => Err(format!("a watermark is '{column}' less a fixed INTERVAL")),
    }
}

/// `INTERVAL '30' SECOND` or `INTERVAL '30 seconds'`, in microseconds.
fn interval_us(interval: &ast::Interval) -> Result<i64, String> {
    let number = match interval.value.as_ref() {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) => text.clone(),
            ast::Value::Number(number, _) => number.clone(),
            other => return Err(format!("{other} is no length of time")),
        },
        other => return Err(format!("{other} is no length of time")),
    };
    if interval.last_field.is_some() || interval.leading_precision.is_some() {
        return Err("a watermark's delay has one unit".to_owned());
    }
    let text = match &interval.leading_field {
        Some(unit) => format!("{number} {unit}"),
        None => number,
    };
    duration::parse(&text).map_err(|error| error.message)
}

fn format(options: &WithOptions<'_>, text: &SqlText, errors: &mut Vec<Error>) -> RecordFormat {
    if let Some(value) = options.get("format").filter(|v| !v.value.eq_ignore_ascii_case("json")) {
        let message = format!("unknown format '{}'", value.value);
        errors.push(text.error(value.span, message).hint("the only format is 'json'"));
    }
    RecordFormat::Json
}

fn start(options: &WithOptions<'_>, text: &SqlText, zone: Tz, errors: &mut Vec<Error>) -> Start {
    let Some(value) = options.get("start") else { return Start::Earliest };
    match value.value.to_lowercase().as_str() {
        "earliest" => Start::Earliest,
        "latest" => Start::Latest,
        _ => match parse_instant(&value.value, zone) {
            Some(instant) => Start::At(instant),
            None => {
                errors.push(
                    (text.error(value.span, format!("'{}' is no start", value.value)))
                        .hint("'earliest', 'latest', or a time such as '2026-11-01 06:00:00'"),
                );
                Start::Earliest
            }
        },
    }
}

/// Reads `2026-11-01`, `2026-11-01 06:00[:00[.5]]` (local time of `zone`) or RFC 3339 with an
/// offset. An hour that comes twice means the first, one that the clock skips moves forward.
pub fn parse_instant(text: &str, zone: Tz) -> Option<Micros> {
    let text = text.trim();
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Some(instant.timestamp_micros());
    }
    let plain = text.replacen('T', " ", 1);
    let local = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(&plain, format).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))?;
    // A gap is an hour as a rule, a day when a country changes sides of the date line.
    (0..=25).map(TimeDelta::hours).find_map(|back| {
        let instant = zone.from_local_datetime(&local.checked_sub_signed(back)?).earliest()?;
        Some((instant + back).timestamp_micros())
    })
}
