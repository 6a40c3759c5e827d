//! Parsing of a text with one statement, for ad-hoc SQL and backfill.

use std::path::Path;

use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::catalog::parse_diagnostics;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::Statement;
use crate::catalog::statement_parser::parse_statement;
use crate::catalog::statement_tokens::{StatementTokens, split_statements, tokenize};
use crate::error::{Error, Result};

/// Parses one query: a SELECT, or the query of a CREATE STREAM ... AS or CREATE MATERIALIZED VIEW
/// ... AS. Spans refer to `text`; window functions may be written `TUMBLE(TABLE t, ...)`. `file`
/// is used in errors only.
///
/// # Errors
/// `text` does not parse, or is not exactly one query.
pub fn parse_query(file: &Path, text: &str) -> Result<Box<ast::Query>> {
    let text = SqlText::new(file, text);
    let tokens = only_statement(&text)?;
    match parse_statement(&text, &tokens)? {
        Statement::Query(query) => Ok(query.select),
        _ => Err((text.error(tokens.first(), "this statement belongs in a schema file"))
            .hint("write a SELECT")),
    }
}

/// Checks that `text` is one statement without an unterminated string, name or comment. `file` is
/// used in errors only.
///
/// # Errors
/// `text` cannot be tokenized, or is not exactly one statement.
pub(crate) fn check_single_statement(file: &Path, text: &str) -> Result<()> {
    only_statement(&SqlText::new(file, text)).map(drop)
}

/// Converts an error of sqlparser about `text`, adding its place and a hint.
pub(crate) fn explain_parser_error(file: &Path, text: &str, error: ParserError) -> Error {
    let text = SqlText::new(file, text);
    match tokenize(&text) {
        Ok(tokens) => parse_diagnostics::explain_parser_error(&text, &tokens, error, None),
        Err(error) => error,
    }
}

fn only_statement(text: &SqlText) -> Result<StatementTokens> {
    let mut statements = split_statements(text)?.into_iter();
    let Some(first) = statements.next() else {
        return Err(text.error(Span::empty(), "there is no query").hint("write a SELECT"));
    };
    match statements.next() {
        Some(second) => Err((text.error(second.first(), "there is more than one statement"))
            .hint("run one statement at a time")),
        None => Ok(first),
    }
}
