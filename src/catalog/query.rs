//! Continuous queries: their SQL, options and results topic.

use std::path::PathBuf;

use datafusion::sql::sqlparser::ast;

use crate::catalog::duration;
use crate::catalog::identifier;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{QueryForm, QueryStatement, SpannedText};
use crate::catalog::table_references::find_table_references;
use crate::catalog::topics::topic_name_error;
use crate::catalog::with_options::{WithOptions, error_at_value};
use crate::error::{Error, Place};

const STREAM_OPTIONS: [&str; 4] = ["topic", "emit", "allowed_lateness", "start"];
const VIEW_OPTIONS: [&str; 3] = ["topic", "ttl", "start"];

/// A continuous query.
#[derive(Debug, Clone)]
pub struct Query {
    /// The name in SQL: as created, or the stem of the file.
    pub name: String,
    /// The name of its customer.
    pub customer: String,
    /// The file that contains it.
    pub file: PathBuf,
    /// The text of the whole file.
    pub text: String,
    /// The `--` comment before it, its lines joined by spaces.
    pub comment: String,
    /// The syntax tree; spans refer to the file.
    pub select: Box<ast::Query>,
    /// The declared kind.
    pub kind: QueryKind,
    /// The topic of its results.
    pub topic: String,
    /// When results of an open window are emitted.
    pub emit: Emit,
    /// How long after the end of a window late rows still update its result, in microseconds.
    pub allowed_lateness_us: i64,
    /// A view drops a key after this event time without a row for it, in microseconds.
    pub ttl_us: Option<i64>,
    /// The start position if the query is added to a pipeline that has run before.
    pub start: QueryStart,
    /// The streams, tables and queries that it reads, without duplicates, in the order of the text.
    pub inputs: Vec<String>,
    /// The place of its name; for a bare query that of its first word.
    pub place: Place,
}

/// The declared kind of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKind {
    /// CREATE STREAM ... AS: append-only results.
    Stream,
    /// CREATE MATERIALIZED VIEW ... AS: a keyed result that is updated continuously.
    View,
    /// A bare SELECT: a view if it aggregates without a window, otherwise a stream.
    Unstated,
}

/// The start position of a query that is added to a pipeline that has run before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryStart {
    /// The first event in Kafka or history.
    Earliest,
    /// The current position of the pipeline.
    Latest,
}

/// When results of an open window are emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// Once, when the window closes.
    Final,
    /// At this interval of the wall clock, in microseconds, and when the window closes.
    Every(i64),
}

impl Query {
    /// Checks the clauses of a query statement. Returns `None` after adding to `errors`. Its inputs
    /// are resolved later, when all files are read.
    pub(super) fn from_statement(
        statement: QueryStatement,
        customer: &str,
        text: &SqlText,
        errors: &mut Vec<Error>,
    ) -> Option<Self> {
        let before = errors.len();
        let name = resolve_name(&statement, text, errors)?;
        let (kind, owner, known): (_, _, &[&str]) = match statement.form {
            QueryForm::Bare => (QueryKind::Unstated, "a bare query", &[]),
            QueryForm::Stream => (QueryKind::Stream, "a stream", &STREAM_OPTIONS),
            QueryForm::View => (QueryKind::View, "a materialized view", &VIEW_OPTIONS),
        };
        let options = WithOptions::new(text, &statement.options, owner, known, errors);
        let topic = resolve_topic(&options, text, errors)
            .unwrap_or_else(|| format!("millstream.{customer}.{}", name.value));
        let mut inputs: Vec<String> = Vec::new();
        for reference in find_table_references(&statement.select) {
            if !inputs.contains(&reference.name) {
                inputs.push(reference.name);
            }
        }
        let query = Self {
            place: text.place(name.span),
            name: name.value,
            customer: customer.to_owned(),
            file: text.file.clone(),
            text: text.text.clone(),
            comment: statement.comment,
            kind,
            topic,
            emit: resolve_emit(&options, text, errors),
            allowed_lateness_us: options.duration("allowed_lateness", 0, errors).unwrap_or(0),
            ttl_us: options.duration("ttl", 1, errors),
            start: resolve_start(&options, text, errors),
            inputs,
            select: statement.select,
        };
        (errors.len() == before).then_some(query)
    }
}

/// The name as created, or the stem of the file.
fn resolve_name(
    statement: &QueryStatement,
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> Option<SpannedText> {
    if let Some(name) = &statement.name {
        identifier::check_relation_name(name, text, errors);
        return Some(name.clone());
    }
    let stem = text.file.file_stem()?.to_string_lossy().into_owned();
    let name = SpannedText { value: stem, span: statement.span };
    match identifier::violated_rule(&name.value) {
        Some(rule) => {
            let message = format!("the file name '{}' is not a valid query name", name.value);
            let hint = format!("{rule}: rename the file, or write CREATE STREAM name AS SELECT");
            errors.push(text.error(name.span, message).hint(hint));
        }
        None => identifier::check_relation_name(&name, text, errors),
    }
    Some(name)
}

fn resolve_topic(
    options: &WithOptions<'_>,
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> Option<String> {
    let value = options.get("topic")?;
    if let Some(problem) = topic_name_error(&value.value) {
        errors.push(text.error(value.span, problem));
    }
    Some(value.value.clone())
}

/// The option `start`: 'earliest' or 'latest'.
fn resolve_start(options: &WithOptions<'_>, text: &SqlText, errors: &mut Vec<Error>) -> QueryStart {
    let Some(value) = options.get("start") else { return QueryStart::Latest };
    match value.value.to_lowercase().as_str() {
        "earliest" => QueryStart::Earliest,
        "latest" => QueryStart::Latest,
        _ => {
            let message = format!("'{}' is not a valid start of a query", value.value);
            errors.push(text.error(value.span, message).hint(
                "use 'earliest' or 'latest'; to start at a time, use 'earliest' and WHERE event_time >= ...",
            ));
            QueryStart::Latest
        }
    }
}

/// The option `emit`: 'final' or, for example, 'every 60 seconds'.
fn resolve_emit(options: &WithOptions<'_>, text: &SqlText, errors: &mut Vec<Error>) -> Emit {
    let Some(value) = options.get("emit") else { return Emit::Final };
    let words = value.value.trim().to_lowercase();
    if words == "final" {
        return Emit::Final;
    }
    let Some(interval) = words.strip_prefix("every ") else {
        let message = format!("'{}' is not a valid value of 'emit'", value.value);
        errors.push(
            text.error(value.span, message).hint("use 'final' or, for example, 'every 60 seconds'"),
        );
        return Emit::Final;
    };
    match duration::parse(interval) {
        Ok(micros) if micros > 0 => return Emit::Every(micros),
        Ok(_) => errors.push(text.error(value.span, "'emit' must be greater than zero")),
        Err(error) => errors.push(error_at_value(error, text, value)),
    }
    Emit::Final
}
