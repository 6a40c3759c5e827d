//! Queries: what is asked of the streams, and where the answer goes.

use std::path::PathBuf;

use datafusion::sql::sqlparser::ast;

use crate::catalog::duration;
use crate::catalog::identifier;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{QueryForm, QueryStatement, Word};
use crate::catalog::table_references::references;
use crate::catalog::topics::topic_objection;
use crate::catalog::with_options::{WithOptions, as_sql};
use crate::error::{Error, Place};

const STREAM_OPTIONS: [&str; 4] = ["topic", "emit", "allowed_lateness", "start"];
const VIEW_OPTIONS: [&str; 3] = ["topic", "ttl", "start"];

/// A continuous query.
#[derive(Debug, Clone)]
pub struct Query {
    /// Its name in SQL: as created, or its file's name.
    pub name: String,
    /// Whose it is.
    pub customer: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// The text of the whole file.
    pub text: String,
    /// The `--` comment in front of it, its lines joined by spaces.
    pub comment: String,
    /// The query; its spans are the file's.
    pub select: Box<ast::Query>,
    /// What it was said to be.
    pub kind: QueryKind,
    /// The topic of its results.
    pub topic: String,
    /// When results of an open window come out.
    pub emit: Emit,
    /// How long after a window's end rows still correct its result, in microseconds.
    pub allowed_lateness_us: i64,
    /// A view forgets keys that are idle in event time for so long, in microseconds.
    pub ttl_us: Option<i64>,
    /// Where it begins, if it is added to a customer that has run before.
    pub start: QueryStart,
    /// The streams, tables and queries that it reads, each once, in order of mention.
    pub inputs: Vec<String>,
    /// Where its name stands; of a bare query its first word.
    pub place: Place,
}

/// What a query was said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKind {
    /// CREATE STREAM ... AS: append-only results.
    Stream,
    /// CREATE MATERIALIZED VIEW ... AS: a keyed result kept up to date.
    View,
    /// A bare SELECT: a view if its aggregate has no window, otherwise a stream.
    Unstated,
}

/// Where a query begins that is added later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryStart {
    /// At the first event that Kafka or history have.
    Earliest,
    /// Where the customer is.
    Latest,
}

/// When results of an open window come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// Once, when the window closes.
    Final,
    /// Every so many microseconds of the clock, and when the window closes.
    Every(i64),
}

impl Query {
    /// Checks the statement's own clauses; `None` when `errors` say why there is no query. What
    /// it reads is looked up later, when all files are known.
    pub(super) fn from_statement(
        statement: QueryStatement,
        customer: &str,
        text: &SqlText,
        errors: &mut Vec<Error>,
    ) -> Option<Self> {
        let before = errors.len();
        let name = named(&statement, text, errors)?;
        let (kind, owner, known): (_, _, &[&str]) = match statement.form {
            QueryForm::Bare => (QueryKind::Unstated, "a bare query", &[]),
            QueryForm::Stream => (QueryKind::Stream, "a stream", &STREAM_OPTIONS),
            QueryForm::View => (QueryKind::View, "a materialized view", &VIEW_OPTIONS),
        };
        let options = WithOptions::new(text, &statement.options, owner, known, errors);
        let topic = topic(&options, text, errors)
            .unwrap_or_else(|| format!("millstream.{customer}.{}", name.value));
        let mut inputs: Vec<String> = Vec::new();
        for reference in references(&statement.select) {
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
            emit: emit(&options, text, errors),
            allowed_lateness_us: options.duration("allowed_lateness", 0, errors).unwrap_or(0),
            ttl_us: options.duration("ttl", 1, errors),
            start: start(&options, text, errors),
            inputs,
            select: statement.select,
        };
        (errors.len() == before).then_some(query)
    }
}

/// The name as created, or the file's.
fn named(statement: &QueryStatement, text: &SqlText, errors: &mut Vec<Error>) -> Option<Word> {
    if let Some(name) = &statement.name {
        identifier::relation(name, text, errors);
        return Some(name.clone());
    }
    let stem = text.file.file_stem()?.to_string_lossy().into_owned();
    let name = Word { value: stem, span: statement.span };
    match identifier::objection(&name.value) {
        Some(rule) => {
            let message = format!("the file's name '{}' cannot be a query's", name.value);
            let hint = format!("{rule}: rename the file, or write CREATE STREAM name AS SELECT");
            errors.push(text.error(name.span, message).hint(hint));
        }
        None => identifier::relation(&name, text, errors),
    }
    Some(name)
}

fn topic(options: &WithOptions<'_>, text: &SqlText, errors: &mut Vec<Error>) -> Option<String> {
    let value = options.get("topic")?;
    if let Some(problem) = topic_objection(&value.value) {
        errors.push(text.error(value.span, problem));
    }
    Some(value.value.clone())
}

/// 'earliest' or 'latest'.
fn start(options: &WithOptions<'_>, text: &SqlText, errors: &mut Vec<Error>) -> QueryStart {
    let Some(value) = options.get("start") else { return QueryStart::Latest };
    match value.value.to_lowercase().as_str() {
        "earliest" => QueryStart::Earliest,
        "latest" => QueryStart::Latest,
        _ => {
            let message = format!("'{}' is no start of a query", value.value);
            errors.push(text.error(value.span, message).hint(
                "'earliest' or 'latest'; for a time: 'earliest', and WHERE event time >= that time",
            ));
            QueryStart::Latest
        }
    }
}

/// 'final' or 'every 60 seconds'.
fn emit(options: &WithOptions<'_>, text: &SqlText, errors: &mut Vec<Error>) -> Emit {
    let Some(value) = options.get("emit") else { return Emit::Final };
    let words = value.value.trim().to_lowercase();
    if words == "final" {
        return Emit::Final;
    }
    let Some(interval) = words.strip_prefix("every ") else {
        let message = format!("'{}' is no way to emit", value.value);
        errors.push(text.error(value.span, message).hint("'final' or e.g. 'every 60 seconds'"));
        return Emit::Final;
    };
    match duration::parse(interval) {
        Ok(micros) if micros > 0 => return Emit::Every(micros),
        Ok(_) => errors.push(text.error(value.span, "'emit' must be longer than that")),
        Err(error) => errors.push(as_sql(error, text, value)),
    }
    Emit::Final
}
