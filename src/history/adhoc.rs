//! Questions in SQL: only questions, and errors that point at the word that is wrong.

use std::path::Path;

use datafusion::common::{SchemaError, Span};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::read::known_tables;
use crate::catalog::suggestion;
use crate::{Error, Kind, Place, Result};

/// What stands for the file in the place of an error.
const SOURCE: &str = "query";

/// Runs one query (or EXPLAIN, or SHOW) and gives its rows as they come.
///
/// # Errors
/// [`Kind::Sql`] with its place in `text` and a hint; [`Kind::Storage`]. The stream's own errors
/// are made readable by [`sql_error`].
pub async fn run_sql(context: &SessionContext, text: &str) -> Result<SendableRecordBatchStream> {
    let explain = |error| sql_error(Some(context), text, error);
    let state = context.state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(text, &dialect).map_err(explain)?;
    if !is_question(&statement) {
        return Err(read_only(text));
    }
    let plan = state.statement_to_plan(statement).await.map_err(explain)?;
    // What EXPLAIN explains is no question by its own word.
    let only_questions =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    only_questions.verify_plan(&plan).map_err(|_| read_only(text))?;
    let rows = context.execute_logical_plan(plan).await.map_err(explain)?;
    rows.execute_stream().await.map_err(explain)
}

fn is_question(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(
            statement.as_ref(),
            ast::Statement::Query(_)
                | ast::Statement::ExplainTable { .. }
                | ast::Statement::ShowTables { .. }
                | ast::Statement::ShowColumns { .. }
                | ast::Statement::ShowFunctions { .. }
                | ast::Statement::ShowVariable { .. }
        ),
        Statement::Explain(_) => true,
        _ => false,
    }
}

fn read_only(text: &str) -> Error {
    let statement = text.trim_start();
    let word = statement.find(char::is_whitespace).unwrap_or(statement.len());
    Error::sql("history is read only: only queries are run here")
        .at(place_of_byte(text, text.len() - statement.len(), word))
        .hint("write SELECT ...; save an answer with --output")
}

/// Turns an error of a query's planning or running into one that says where and what to do.
pub fn sql_error(context: Option<&SessionContext>, text: &str, error: DataFusionError) -> Error {
    if let DataFusionError::Context(_, inner) = error {
        return sql_error(context, text, *inner);
    }
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let error = match error {
        DataFusionError::Diagnostic(_, inner) => *inner,
        other => other,
    };
    match error {
        DataFusionError::External(cause) => match cause.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => Error::new(Kind::Storage, "history could not be read").because(other),
        },
        DataFusionError::SchemaError(cause, _) => schema_error(text, span, *cause),
        DataFusionError::SQL(cause, _) => {
            let message = cause.to_string();
            let (message, at) = parser_place(&message);
            let error = Error::sql(message);
            match at {
                Some((line, column)) => {
                    error.at(Place::new(Path::new(SOURCE), text, line, column, 1))
                }
                None => error,
            }
        }
        DataFusionError::Plan(message) => plan_error(context, text, span, &message),
        DataFusionError::ResourcesExhausted(message) => {
            Error::new(Kind::Config, "the query needs more memory than it may have")
                .detail(message)
                .hint("ask for less at once: a shorter time range, fewer columns or groups")
        }
        other @ (DataFusionError::ObjectStore(_)
        | DataFusionError::IoError(_)
        | DataFusionError::ParquetError(_)) => {
            Error::new(Kind::Storage, "history could not be read").because(other)
        }
        DataFusionError::ArrowError(cause, _) => {
            let message = cause.to_string();
            let error = at_span(Error::sql(message.clone()), text, span);
            match message.contains("timezone offset") {
                true => error.hint(
                    "this local time comes twice or never: say which, as in '2019-10-27T03:30:00+03:00'",
                ),
                false => error,
            }
        }
        other => at_span(Error::sql(other.strip_backtrace()), text, span),
    }
}

fn schema_error(text: &str, span: Option<Span>, error: SchemaError) -> Error {
    let SchemaError::FieldNotFound { field, valid_fields } = error else {
        return at_span(Error::sql(error.to_string()), text, span);
    };
    let known: Vec<&str> = valid_fields.iter().map(|column| column.name()).collect();
    let span = span.or_else(|| field.spans().first());
    let error = Error::sql(format!("there is no column '{}'", field.name()))
        .hint(suggestion::hint(field.name(), "columns", known.iter().copied()));
    match span {
        Some(_) => at_span(error, text, span),
        None => at_word(error, text, field.name()),
    }
}

fn plan_error(
    context: Option<&SessionContext>,
    text: &str,
    span: Option<Span>,
    message: &str,
) -> Error {
    let quoted = |what: &str| {
        let rest = message.strip_prefix(what)?.strip_prefix(" '")?;
        rest.split_once("' not found").map(|(name, _)| name)
    };
    let Some(table) = quoted("table") else {
        return at_span(Error::sql(message), text, span);
    };
    let known = context.map(known_tables).unwrap_or_default();
    // The session's own catalog and schema are of no interest.
    let table = table.strip_prefix("history.").unwrap_or(table);
    let default =
        context.map(|c| format!("{}.", c.copied_config().options().catalog.default_schema));
    let short = default.and_then(|default| table.strip_prefix(&default)).unwrap_or(table);
    let word = table.rsplit('.').next().unwrap_or(table);
    let names = known.iter().map(String::as_str);
    let hint = match suggestion::nearest(short, names) {
        Some(near) => format!("did you mean '{near}'?"),
        None if known.is_empty() => "there is no history here yet".to_owned(),
        None => format!("there are: {}", known.join(", ")),
    };
    at_word(Error::sql(format!("there is no table '{short}'")).hint(hint), text, word)
}

fn at_span(error: Error, text: &str, span: Option<Span>) -> Error {
    let Some(span) = span.filter(|span| span.start.line > 0) else { return error };
    let width = match span.start.line == span.end.line {
        true => span.end.column.saturating_sub(span.start.column),
        false => 1,
    };
    error.at(Place::new(Path::new(SOURCE), text, span.start.line, span.start.column, width))
}

/// Points at the first place in `text` where `word` stands alone.
fn at_word(error: Error, text: &str, word: &str) -> Error {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    let (lower, word) = (text.to_ascii_lowercase(), word.to_ascii_lowercase());
    let alone = lower.match_indices(&word).find(|(start, found)| {
        !lower[..*start].ends_with(inside) && !lower[start + found.len()..].starts_with(inside)
    });
    match alone {
        Some((start, found)) => error.at(place_of_byte(text, start, found.len())),
        None => error,
    }
}

fn place_of_byte(text: &str, start: usize, bytes: usize) -> Place {
    let before = &text[..start];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let width = text[start..start + bytes].chars().count();
    Place::new(Path::new(SOURCE), text, line as u64, column as u64, width as u64)
}

/// Takes "... at Line: 1, Column: 8" off a parser's message.
fn parser_place(message: &str) -> (String, Option<(u64, u64)>) {
    let message = message.strip_prefix("sql parser error: ").unwrap_or(message);
    let found = message.rsplit_once(" at Line: ").and_then(|(head, tail)| {
        let (line, column) = tail.split_once(", Column: ")?;
        Some((head, (line.trim().parse().ok()?, column.trim().parse().ok()?)))
    });
    match found {
        Some((head, at)) => (head.to_owned(), Some(at)),
        None => (message.to_owned(), None),
    }
}
