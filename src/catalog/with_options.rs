//! The values of WITH and SET: every key known, none twice, each value of its own kind.

use crate::catalog::duration;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{OptionClause, Word};
use crate::catalog::suggestion;
use crate::error::Error;
use crate::time::Micros;

/// A checked WITH list. Taking a value reports what is wrong with it.
pub(super) struct WithOptions<'a> {
    text: &'a SqlText,
    clauses: &'a [OptionClause],
}

impl<'a> WithOptions<'a> {
    /// Reports unknown keys and keys given twice. `owner` is the statement's kind, for messages.
    pub fn new(
        text: &'a SqlText,
        clauses: &'a [OptionClause],
        owner: &str,
        known: &[&str],
        errors: &mut Vec<Error>,
    ) -> Self {
        for (index, clause) in clauses.iter().enumerate() {
            let key = &clause.key;
            if !known.contains(&key.value.as_str()) {
                let hint =
                    suggestion::suggest_or_list(&key.value, "options", known.iter().copied());
                let message = format!("{owner} has no option '{}'", key.value);
                errors.push(text.error(key.span, message).hint(hint));
            } else if clauses.iter().take(index).any(|other| other.key.value == key.value) {
                errors.push(text.error(key.span, format!("option '{}' is given twice", key.value)));
            }
        }
        Self { text, clauses }
    }

    /// The value of `key`, unchecked.
    pub fn get(&self, key: &str) -> Option<&'a Word> {
        self.clauses.iter().find(|clause| clause.key.value == key).map(|clause| &clause.value)
    }

    /// A duration of at least `least`.
    pub fn duration(&self, key: &str, least: Micros, errors: &mut Vec<Error>) -> Option<Micros> {
        let value = self.get(key)?;
        match duration::parse(&value.value) {
            Ok(micros) if micros >= least => Some(micros),
            Ok(_) => {
                errors
                    .push(self.text.error(value.span, format!("'{key}' must be longer than that")));
                None
            }
            Err(error) => {
                errors.push(as_sql(error, self.text, value));
                None
            }
        }
    }

    /// 'on' or 'off' (also true and false).
    pub fn switch(&self, key: &str, errors: &mut Vec<Error>) -> Option<bool> {
        let value = self.get(key)?;
        match value.value.to_lowercase().as_str() {
            "on" | "true" => Some(true),
            "off" | "false" => Some(false),
            _ => {
                let message = format!("'{key}' is 'on' or 'off', not '{}'", value.value);
                errors.push(self.text.error(value.span, message));
                None
            }
        }
    }
}

/// Gives the error of a value (a duration, a size) its place in the file.
pub(super) fn as_sql(error: Error, text: &SqlText, value: &Word) -> Error {
    let placed = text.error(value.span, error.message);
    match error.hint {
        Some(hint) => placed.hint(hint),
        None => placed,
    }
}
