//! Translates errors of DataFusion: what is wrong, where in the file, and how to correct it.
//!
//! Most errors of DataFusion are plain text. [`diagnose`] recognizes their messages. It shows a
//! message that it does not recognize as it is, but never as an internal error of DataFusion and
//! never as Rust's debug text.

mod diagnosis;
mod function;
mod place;
mod wording;

use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;

use crate::catalog::{Query, suggestion};
use crate::error::{Error, Kind};
use crate::planner::errors::diagnosis::quoted;

pub(crate) use diagnosis::Diagnosis;
pub(crate) use place::{SqlSource, find_in, keyword_in, place_of_span};
pub(crate) use wording::two_columns;

/// Translates `error`, which occurred while planning `query`.
pub(crate) fn in_query(error: &DataFusionError, query: &Query) -> Error {
    in_source(error, &SqlSource::of(query)).at(query.place.clone())
}

/// Locates `error` at the first word of `query` that its message quotes.
pub(crate) fn at_quoted(error: Error, query: &Query) -> Error {
    let source = SqlSource::of(query);
    let place = quoted(&error.message).iter().find_map(|word| source.find(word));
    error.at(place.unwrap_or_else(|| query.place.clone()))
}

/// Translates `error`, which occurred while planning or running `source`.
pub(crate) fn in_source(error: &DataFusionError, source: &SqlSource<'_>) -> Error {
    let diagnosis = diagnose(error);
    let place = match diagnosis.span {
        Some(span) => Some(source.place(span)),
        None => diagnosis.words.iter().find_map(|word| diagnosis.find(source, word)),
    };
    let hint = missing_column(error).and_then(|name| match &place {
        Some(place) if place::is_quoted(place) => {
            Some(format!("a string is written in single quotes: '{name}'"))
        }
        _ if source.gives_name(name) => Some(format!(
            "a name given with AS is not known in WHERE: repeat the expression of '{name}'"
        )),
        _ => None,
    });
    // A similar name is more likely than either hint.
    let is_similar = diagnosis.hint.as_ref().is_some_and(|hint| hint.starts_with("did you mean"));
    let error = diagnosis.into_error().hint_if(hint.filter(|_| !is_similar));
    match place {
        Some(place) => error.at(place),
        None => error,
    }
}

fn missing_column(error: &DataFusionError) -> Option<&str> {
    let DataFusionError::SchemaError(error, _) = error.find_root() else { return None };
    match error.as_ref() {
        SchemaError::FieldNotFound { field, .. } => Some(&field.name),
        _ => None,
    }
}

/// Returns the message and the hint of any error.
pub(crate) fn describe(error: &DataFusionError) -> (String, Option<String>) {
    let diagnosis = diagnose(error);
    (diagnosis.message, diagnosis.hint)
}

/// Diagnoses any error of DataFusion.
pub(crate) fn diagnose(error: &DataFusionError) -> Diagnosis {
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let diagnosis = match error.find_root() {
        DataFusionError::SchemaError(schema_error, _) => diagnose_schema_error(schema_error),
        DataFusionError::Plan(message) if message.starts_with(OWN_MARK) => own_error(message),
        DataFusionError::ResourcesExhausted(message) => {
            let diagnosis = Diagnosis::new("the query exceeds its memory limit")
                .detail(message.clone())
                .hint("query less data at once: a shorter time range, fewer columns or groups");
            Diagnosis { kind: Kind::Config, ..diagnosis }
        }
        root => wording::diagnose(&root.strip_backtrace()),
    };
    Diagnosis { span: span.filter(|span| span.start.line > 0).or(diagnosis.span), ..diagnosis }
}

fn diagnose_schema_error(error: &SchemaError) -> Diagnosis {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let diagnosis = Diagnosis::new(format!("there is no column '{}'", field.flat_name()));
            let span = field.spans().first();
            let hint = valid_columns(field, valid_fields);
            Diagnosis { hint, span, ..diagnosis }.word(&field.name)
        }
        SchemaError::AmbiguousReference { field } => {
            Diagnosis::new(format!("the column '{}' is ambiguous", field.name))
                .hint(format!("write relation.{}", field.name))
        }
        SchemaError::DuplicateUnqualifiedField { name } => wording::two_columns(name),
        SchemaError::DuplicateQualifiedField { name, .. } => wording::two_columns(name),
    }
}

/// Suggests the most similar column, or lists all columns. A qualified column is compared with the
/// columns of its relation. If that relation is unknown, the hint corrects the relation's name.
fn valid_columns(field: &Column, valid: &[Column]) -> Option<String> {
    let relation_of = |column: &Column| column.relation.as_ref().map(|r| r.table().to_owned());
    let wanted = relation_of(field);
    let is_known = wanted.is_some() && valid.iter().any(|column| relation_of(column) == wanted);
    if let (Some(wanted), false) = (&wanted, is_known) {
        let same_name = valid.iter().filter(|column| column.name == field.name);
        let relations: Vec<String> = same_name.filter_map(relation_of).collect();
        let similar = suggestion::find_nearest(wanted, relations.iter().map(String::as_str));
        if let Some(relation) = similar.or(relations.first().map(String::as_str)) {
            return Some(format!("did you mean '{relation}.{}'?", field.name));
        }
    }
    let mut names: Vec<&str> = Vec::new();
    for column in valid.iter().filter(|column| !is_known || relation_of(column) == wanted) {
        if !names.contains(&column.name.as_str()) {
            names.push(&column.name);
        }
    }
    suggestion::suggest(&field.name, names)
}

/// Marks a message of Millstream that DataFusion passes on.
const OWN_MARK: &str = "millstream: ";
const HINT: &str = " | hint: ";

/// Creates an error that DataFusion passes on and that [`diagnose`] returns unchanged.
pub(crate) fn plan_error_with_hint(message: &str, hint: &str) -> DataFusionError {
    DataFusionError::Plan(format!("{OWN_MARK}{message}{HINT}{hint}"))
}

fn own_error(message: &str) -> Diagnosis {
    let message = message.trim_start_matches(OWN_MARK);
    let (message, hint) = match message.split_once(HINT) {
        Some((message, hint)) => (message, (!hint.is_empty()).then(|| hint.to_owned())),
        None => (message, None),
    };
    let diagnosis = Diagnosis { hint, ..Diagnosis::new(message) };
    match place::keyword_in(message) {
        Some(keyword) => diagnosis.word(keyword),
        None => diagnosis,
    }
}
