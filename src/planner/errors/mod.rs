//! DataFusion's errors as ours: what is wrong, where in the file, and what would be right.
//!
//! DataFusion says most of it in words only. [`explained`] reads them; what it does not know is
//! shown as DataFusion has it, but never as a defect of DataFusion, nor as Rust's debug text.

mod function;
mod place;
mod wording;

use datafusion::common::{Column, SchemaError, Span};
use datafusion::error::DataFusionError;

use crate::catalog::{Query, suggestion};
use crate::error::{Error, Kind, Place};
use crate::planner::sql_display::plain;

pub(crate) use place::{SqlSource, find_in, keyword_in, place_of_span};
pub(crate) use wording::two_columns;

/// An error of DataFusion, read.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    /// Where it is, if DataFusion knows.
    pub(crate) span: Option<Span>,
    /// Otherwise it is at the first of these words that the statement has.
    pub(crate) words: Vec<String>,
    /// What the arguments of the named function are, where it is about them.
    arguments: Option<String>,
    /// The clauses that the words are looked for in, before the whole statement.
    clauses: &'static [&'static str],
}

impl Diagnosis {
    fn new(message: impl Into<String>) -> Self {
        let message = message.into();
        let words = quoted(&message);
        Self {
            kind: Kind::Sql,
            message,
            detail: None,
            hint: None,
            span: None,
            words,
            arguments: None,
            clauses: &[],
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    fn word(mut self, word: &str) -> Self {
        self.words.insert(0, word.to_owned());
        self
    }

    fn find(&self, source: &SqlSource<'_>, word: &str) -> Option<Place> {
        if let Some(arguments) = &self.arguments
            && let Some(place) = source.find_call(word, arguments)
        {
            return Some(place);
        }
        let behind = |clause: &&str| source.find_after(clause, word);
        self.clauses.iter().find_map(behind).or_else(|| source.find(word))
    }

    /// Without its place.
    pub(crate) fn into_error(self) -> Error {
        let ours = Error::new(self.kind, self.message).hint_if(self.hint);
        match self.detail {
            Some(detail) => ours.detail(detail),
            None => ours,
        }
    }
}

/// `error`, met while planning `query`, as ours.
pub(crate) fn in_query(error: &DataFusionError, query: &Query) -> Error {
    in_source(error, &SqlSource::of(query)).at(query.place.clone())
}

/// An error of ours about `query`, at the first word that its message quotes.
pub(crate) fn at_quoted(error: Error, query: &Query) -> Error {
    let source = SqlSource::of(query);
    let place = quoted(&error.message).iter().find_map(|word| source.find(word));
    error.at(place.unwrap_or_else(|| query.place.clone()))
}

/// `error`, met while planning or running `source`, as ours.
pub(crate) fn in_source(error: &DataFusionError, source: &SqlSource<'_>) -> Error {
    let explained = explained(error);
    let place = match explained.span {
        Some(span) => Some(source.place(span)),
        None => explained.words.iter().find_map(|word| explained.find(source, word)),
    };
    let hint = missing_column(error).and_then(|name| match &place {
        Some(place) if place::is_quoted(place) => {
            Some(format!("a text stands in single quotes: '{name}'"))
        }
        _ if source.gives_name(name) => Some(format!(
            "the name that AS gives is known behind WHERE only: write what '{name}' stands for"
        )),
        _ => None,
    });
    // A near name is likelier than either.
    let is_near = explained.hint.as_ref().is_some_and(|hint| hint.starts_with("did you mean"));
    let ours = explained.into_error().hint_if(hint.filter(|_| !is_near));
    match place {
        Some(place) => ours.at(place),
        None => ours,
    }
}

fn missing_column(error: &DataFusionError) -> Option<&str> {
    let DataFusionError::SchemaError(error, _) = error.find_root() else { return None };
    match error.as_ref() {
        SchemaError::FieldNotFound { field, .. } => Some(&field.name),
        _ => None,
    }
}

/// What is wrong, and what would be right, of an error met anywhere.
pub(crate) fn describe(error: &DataFusionError) -> (String, Option<String>) {
    let explained = explained(error);
    (explained.message, explained.hint)
}

/// Reads any error.
pub(crate) fn explained(error: &DataFusionError) -> Diagnosis {
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let explained = match error.find_root() {
        DataFusionError::SchemaError(schema_error, _) => diagnose_schema_error(schema_error),
        DataFusionError::Plan(message) if message.starts_with(OWN_MARK) => own_error(message),
        DataFusionError::ResourcesExhausted(message) => {
            let ours = Diagnosis::new("the query needs more memory than it may have")
                .detail(message.clone())
                .hint("ask for less at once: a shorter time range, fewer columns or groups");
            Diagnosis { kind: Kind::Config, ..ours }
        }
        root => wording::diagnose(&root.strip_backtrace()),
    };
    Diagnosis { span: span.filter(|span| span.start.line > 0).or(explained.span), ..explained }
}

fn diagnose_schema_error(error: &SchemaError) -> Diagnosis {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let explained = Diagnosis::new(format!("there is no column '{}'", field.flat_name()));
            let span = field.spans().first();
            let hint = valid_columns(field, valid_fields);
            Diagnosis { hint, span, ..explained }.word(&field.name)
        }
        SchemaError::AmbiguousReference { field } => {
            Diagnosis::new(format!("the column '{}' is ambiguous", field.name))
                .hint(format!("write relation.{}", field.name))
        }
        SchemaError::DuplicateUnqualifiedField { name } => wording::two_columns(name),
        SchemaError::DuplicateQualifiedField { name, .. } => wording::two_columns(name),
    }
}

/// The nearest column, or the list of all. Behind a relation's name these are its own ones; where
/// there is no such relation, it is the relation that is wrong.
fn valid_columns(field: &Column, valid: &[Column]) -> Option<String> {
    let relation_of = |column: &Column| column.relation.as_ref().map(|r| r.table().to_owned());
    let wanted = relation_of(field);
    let is_known = wanted.is_some() && valid.iter().any(|column| relation_of(column) == wanted);
    if let (Some(wanted), false) = (&wanted, is_known) {
        let having = valid.iter().filter(|column| column.name == field.name);
        let relations: Vec<String> = having.filter_map(relation_of).collect();
        let near = suggestion::find_nearest(wanted, relations.iter().map(String::as_str));
        if let Some(relation) = near.or(relations.first().map(String::as_str)) {
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

/// Marks a message of ours that travels through DataFusion.
const OWN_MARK: &str = "millstream: ";
const HINT: &str = " | hint: ";

/// An error of ours that travels through DataFusion and comes out of [`explained`].
pub(crate) fn plan_error_with_hint(message: &str, hint: &str) -> DataFusionError {
    DataFusionError::Plan(format!("{OWN_MARK}{message}{HINT}{hint}"))
}

fn own_error(message: &str) -> Diagnosis {
    let message = message.trim_start_matches(OWN_MARK);
    let (message, hint) = match message.split_once(HINT) {
        Some((message, hint)) => (message, (!hint.is_empty()).then(|| hint.to_owned())),
        None => (message, None),
    };
    let explained = Diagnosis { hint, ..Diagnosis::new(message) };
    match place::keyword_in(message) {
        Some(keyword) => explained.word(keyword),
        None => explained,
    }
}

/// What a message puts into quotes.
fn quoted(message: &str) -> Vec<String> {
    message.split(['\'', '"', '`']).skip(1).step_by(2).map(str::to_owned).collect()
}

/// A message with a small letter at its beginning, in SQL's words.
fn to_sentence(text: &str) -> String {
    let text = plain(text.trim().trim_end_matches('.'));
    let mut chars = text.chars();
    let second_is_upper = text.chars().nth(1).is_some_and(char::is_uppercase);
    match chars.next() {
        Some(first) if !second_is_upper => first.to_lowercase().chain(chars).collect(),
        _ => text,
    }
}
