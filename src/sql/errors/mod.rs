//! DataFusion's errors as ours: what is wrong, where in the file, and what would be right.

use std::ops::ControlFlow;

use datafusion::common::{Column, SchemaError, Span};
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::ast::{self, Ident, ObjectName, Spanned};
use datafusion::sql::sqlparser::tokenizer;

use crate::catalog::Query;
use crate::catalog::walk::{Look, walk};
use crate::error::{Error, Place};

/// How many valid names a hint lists.
const NAMES_IN_A_HINT: usize = 12;

/// `error`, met while planning `query`, as ours.
pub(crate) fn in_query(error: &DataFusionError, query: &Query) -> Error {
    let (message, hint) = describe(error);
    let mut ours = Error::sql(message);
    if let Some(hint) = hint {
        ours = ours.hint(hint);
    }
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let place = match span {
        Some(span) => Some(place_of(query, span.start.line, span.start.column, span_width(span))),
        None => named_in(error).iter().find_map(|name| find_name(query, name)),
    };
    ours.at(place.unwrap_or_else(|| query.place.clone()))
}

/// What is wrong, and what would be right, of an error met anywhere.
pub(crate) fn describe(error: &DataFusionError) -> (String, Option<String>) {
    match error.find_root() {
        DataFusionError::SchemaError(schema_error, _) => match schema_error.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                (format!("there is no column '{}'", field.flat_name()), valid(valid_fields))
            }
            SchemaError::AmbiguousReference { field } => {
                let hint = format!("write relation.{}", field.name);
                (format!("the column '{}' is ambiguous", field.name), Some(hint))
            }
            other => (other.to_string(), None),
        },
        DataFusionError::Plan(message) if message.starts_with(OURS) => {
            let message = message.trim_start_matches(OURS);
            match message.split_once(HINT) {
                Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
                None => (message.to_owned(), None),
            }
        }
        root => {
            let text = root.strip_backtrace();
            let text = ["Error during planning: ", "This feature is not implemented: "]
                .iter()
                .fold(text.as_str(), |text, prefix| text.trim_start_matches(prefix));
            // DataFusion starts with a capital and may add several lines; one sentence is enough.
            let line = text.lines().next().unwrap_or(text).trim_end_matches('.');
            (lower_first(line), None)
        }
    }
}

/// Marks a message of ours that travels through DataFusion.
const OURS: &str = "millstream: ";
const HINT: &str = " | hint: ";

/// An error of ours that travels through DataFusion and comes out of [`describe`].
pub(crate) fn through_datafusion(message: &str, hint: &str) -> DataFusionError {
    DataFusionError::Plan(format!("{OURS}{message}{HINT}{hint}"))
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let second_is_upper = text.chars().nth(1).is_some_and(char::is_uppercase);
    match chars.next() {
        Some(first) if !second_is_upper => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

fn valid(fields: &[Column]) -> Option<String> {
    let mut names: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
    names.dedup();
    let more = names.len().saturating_sub(NAMES_IN_A_HINT);
    names.truncate(NAMES_IN_A_HINT);
    let list = names.join(", ");
    match (names.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(format!("there are: {list}")),
        (false, more) => Some(format!("there are: {list} and {more} more")),
    }
}

fn span_width(span: Span) -> u64 {
    if span.end.line == span.start.line {
        span.end.column.saturating_sub(span.start.column)
    } else {
        1
    }
}

/// The place in the file of `query`.
pub(crate) fn place_of(query: &Query, line: u64, column: u64, width: u64) -> Place {
    Place::new(&query.file, &query.text, line, column, width)
}

/// The place of a span of the parser; none if the span is empty.
pub(crate) fn place_of_span(query: &Query, span: tokenizer::Span) -> Option<Place> {
    let on_one_line = span.start.line == span.end.line;
    let width = if on_one_line { span.end.column.saturating_sub(span.start.column) } else { 1 };
    (span.start.line > 0).then(|| place_of(query, span.start.line, span.start.column, width))
}

/// Names that the message puts into quotes, and the field that was not found.
fn named_in(error: &DataFusionError) -> Vec<String> {
    let root = error.find_root();
    let mut names = Vec::new();
    if let DataFusionError::SchemaError(schema_error, _) = root
        && let SchemaError::FieldNotFound { field, .. } = schema_error.as_ref()
    {
        names.push(field.name.clone());
    }
    let text = root.strip_backtrace();
    names.extend(text.split(['\'', '"', '`']).skip(1).step_by(2).map(str::to_owned));
    names
}

/// Where `name` first stands in the query, as a column, function or relation.
pub(crate) fn find_name(query: &Query, name: &str) -> Option<Place> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let mut finder = Finder { name: last };
    place_of_span(query, walk(&query.select, &mut finder)?)
}

struct Finder<'a> {
    name: &'a str,
}

impl Finder<'_> {
    fn check(&self, ident: Option<&Ident>) -> ControlFlow<tokenizer::Span> {
        match ident {
            Some(ident) if ident.value.eq_ignore_ascii_case(self.name) => {
                ControlFlow::Break(ident.span)
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn check_object(&self, name: &ObjectName) -> ControlFlow<tokenizer::Span> {
        self.check(name.0.last().and_then(|part| part.as_ident()))
    }
}

impl Look for Finder<'_> {
    fn relation(&mut self, relation: &ObjectName) -> ControlFlow<tokenizer::Span> {
        self.check_object(relation)
    }

    fn expr(&mut self, expr: &ast::Expr) -> ControlFlow<tokenizer::Span> {
        match expr {
            ast::Expr::Identifier(ident) => self.check(Some(ident)),
            ast::Expr::CompoundIdentifier(idents) => match self.check(idents.last()) {
                ControlFlow::Break(_) => ControlFlow::Break(expr.span()),
                next => next,
            },
            ast::Expr::Function(function) => self.check_object(&function.name),
            _ => ControlFlow::Continue(()),
        }
    }
}
