//! Schema and query files, read into an immutable [`Catalog`].
//!
//! A customer is one file `schemas/<customer>.sql` (SET, CREATE STREAM, CREATE EXTERNAL TABLE) and
//! one folder `queries/<customer>/` (a bare SELECT, CREATE STREAM ... AS, CREATE MATERIALIZED VIEW
//! ... AS). What [`load`] returns is whole: every name is known and plain, every option typed, the
//! queries in dependency order, no topic read twice or both read and written. What it refuses
//! is told with file, line, column and a hint, all errors at once. Whether the expressions make
//! sense is for the planner.

pub(crate) mod ast_visitor;
mod data_type;
mod dependency_graph;
pub mod duration;
mod identifier;
mod loader;
pub(crate) mod parse_diagnostics;
mod project_files;
mod query;
mod settings;
mod sql_text;
mod statement;
mod stream;
pub(crate) mod suggestion;
mod table;
mod table_references;
mod topic_overlap;
mod topics;
mod with_options;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono_tz::Tz;
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Span;

pub use loader::{load, load_with_errors};
pub(crate) use project_files::strip_byte_order_mark;
pub use query::{Emit, Query, QueryKind, QueryStart};
pub use settings::CustomerSettings;
pub use stream::{
    ColumnSource, DEFAULT_IDLE_TIMEOUT_US, DEFAULT_MAX_FUTURE_US, Metadata, RecordFormat, Start,
    Stream, StreamColumn, Watermark, parse_instant,
};

pub use table::{Table, TableFormat};
pub use topics::Topics;

use crate::error::{Error, Result};
use sql_text::{Segment, SqlText};
use statement::Statement;

/// All customers of a project.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The project's folder.
    pub root: PathBuf,
    /// The customers, by name.
    pub customers: Vec<Arc<Customer>>,
}

/// One customer: its streams, reference tables and queries.
#[derive(Debug, Clone)]
pub struct Customer {
    /// Its name, which is that of its schema file.
    pub name: String,
    /// The zone of its calendar and of times without an offset.
    pub zone: Tz,
    /// What it set.
    pub settings: CustomerSettings,
    /// Its streams, in the order of the file.
    pub streams: Vec<Arc<Stream>>,
    /// Its reference tables, in the order of the file.
    pub tables: Vec<Arc<Table>>,
    /// Its queries, each after those that it reads.
    pub queries: Vec<Arc<Query>>,
}

impl Catalog {
    /// The customer of that name.
    pub fn customer(&self, name: &str) -> Option<&Arc<Customer>> {
        self.customers.iter().find(|customer| customer.name == name)
    }
}

impl Customer {
    /// The stream of that name.
    pub fn stream(&self, name: &str) -> Option<&Arc<Stream>> {
        self.streams.iter().find(|stream| stream.name == name)
    }

    /// The reference table of that name.
    pub fn table(&self, name: &str) -> Option<&Arc<Table>> {
        self.tables.iter().find(|table| table.name == name)
    }

    /// The query of that name.
    pub fn query(&self, name: &str) -> Option<&Arc<Query>> {
        self.queries.iter().find(|query| query.name == name)
    }
}

/// Parses one query, for ad-hoc SQL and replay: a SELECT, or a CREATE STREAM ... AS or CREATE
/// MATERIALIZED VIEW ... AS, of which the query is taken. `file` is for errors only. Spans are
/// those of `text`; window functions may be written `TUMBLE(TABLE t, ...)`.
///
/// # Errors
/// What does not parse, no statement, more than one, or one that is no query.
pub fn parse_query(file: &Path, text: &str) -> Result<Box<ast::Query>> {
    let text = SqlText::new(file, text);
    let segment = only_segment(&text)?;
    match statement::parse(&text, &segment)? {
        Statement::Query(query) => Ok(query.select),
        _ => Err((text.error(segment.first(), "this statement belongs in a schema file"))
            .hint("give a SELECT")),
    }
}

/// Checks that `text` is one statement, with nothing in it that is never closed. `file` is for
/// errors only.
///
/// # Errors
/// No statement, more than one, or what cannot be cut into words.
pub(crate) fn check_single_statement(file: &Path, text: &str) -> Result<()> {
    only_segment(&SqlText::new(file, text)).map(drop)
}

/// What the parser says of `text`, with place and hint.
pub(crate) fn explain_parser_error(file: &Path, text: &str, error: ParserError) -> Error {
    let text = SqlText::new(file, text);
    match text.tokens() {
        Ok(tokens) => parse_diagnostics::parser_error(&text, &tokens, error, None),
        Err(error) => error,
    }
}

fn only_segment(text: &SqlText) -> Result<Segment> {
    let mut segments = text.segments()?.into_iter();
    let Some(segment) = segments.next() else {
        let hint = "write a SELECT";
        return Err(text.error(Span::empty(), "there is no query").hint(hint));
    };
    match segments.next() {
        Some(second) => Err((text.error(second.first(), "there is more than one statement"))
            .hint("one statement at a time")),
        None => Ok(segment),
    }
}

/// An error about a whole file.
fn file_error(file: &Path, message: impl Into<String>) -> Error {
    SqlText::new(file, "").error(Span::empty(), message)
}
