//! A diagnosis: what an error of DataFusion means for the user.

use datafusion::common::Span;

use crate::error::{Error, Kind, Place};
use crate::planner::errors::place::SqlSource;
use crate::planner::sql_display::plain;

/// An error of DataFusion in the user's terms.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
    /// The location in the statement, if DataFusion knows it.
    pub(crate) span: Option<Span>,
    /// Without a span, the error is located at the first of these words in the statement.
    pub(crate) words: Vec<String>,
    /// The argument types of the named function, if the error is about its arguments.
    pub(super) arguments: Option<String>,
    /// The clauses that are searched for the words before the whole statement is.
    pub(super) clauses: &'static [&'static str],
}

impl Diagnosis {
    pub(super) fn new(message: impl Into<String>) -> Self {
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

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Searches the statement for `word` first.
    pub(super) fn word(mut self, word: &str) -> Self {
        self.words.insert(0, word.to_owned());
        self
    }

    /// Locates `word` in the statement.
    pub(super) fn find(&self, source: &SqlSource<'_>, word: &str) -> Option<Place> {
        if let Some(arguments) = &self.arguments
            && let Some(place) = source.find_call(word, arguments)
        {
            return Some(place);
        }
        let in_clause = |clause: &&str| source.find_after(clause, word);
        self.clauses.iter().find_map(in_clause).or_else(|| source.find(word))
    }

    /// Returns the error without a place.
    pub(crate) fn into_error(self) -> Error {
        let error = Error::new(self.kind, self.message).hint_if(self.hint);
        match self.detail {
            Some(detail) => error.detail(detail),
            None => error,
        }
    }
}

/// Returns the quoted words of a message.
pub(super) fn quoted(message: &str) -> Vec<String> {
    message.split(['\'', '"', '`']).skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the message with SQL's type names, beginning with a lower-case letter.
pub(super) fn to_sentence(text: &str) -> String {
    let text = plain(text.trim().trim_end_matches('.'));
    let mut chars = text.chars();
    let second_is_upper = text.chars().nth(1).is_some_and(char::is_uppercase);
    match chars.next() {
        Some(first) if !second_is_upper => first.to_lowercase().chain(chars).collect(),
        _ => text,
    }
}
