//! Typed access to the options of WITH and OPTIONS clauses. Every key must be known and given once.

use crate::catalog::duration;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{OptionClause, SpannedText};
use crate::catalog::suggestion;
use crate::error::Error;
use crate::time::Micros;

/// A list of options whose keys are checked. Reading a value checks the value.
pub(super) struct WithOptions<'a> {
    text: &'a SqlText,
    clauses: &'a [OptionClause],
}

impl<'a> WithOptions<'a> {
    /// Reports unknown keys and keys given twice. `owner` names the statement in messages.
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

    /// The unchecked value of `key`.
    pub fn get(&self, key: &str) -> Option<&'a SpannedText> {
        self.clauses.iter().find(|clause| clause.key.value == key).map(|clause| &clause.value)
    }

    /// The value of `key` as a duration of at least `min`, which is 0 or 1 µs.
    pub fn duration(&self, key: &str, min: Micros, errors: &mut Vec<Error>) -> Option<Micros> {
        let value = self.get(key)?;
        match duration::parse(&value.value) {
            Ok(micros) if micros >= min => Some(micros),
            Ok(_) => {
                errors.push(
                    self.text.error(value.span, format!("'{key}' must be greater than zero")),
                );
                None
            }
            Err(error) => {
                errors.push(error_at_value(error, self.text, value));
                None
            }
        }
    }

    /// The value of `key` as a switch: 'on' or 'true', 'off' or 'false'.
    pub fn switch(&self, key: &str, errors: &mut Vec<Error>) -> Option<bool> {
        let value = self.get(key)?;
        match value.value.to_lowercase().as_str() {
            "on" | "true" => Some(true),
            "off" | "false" => Some(false),
            _ => {
                let message = format!("'{key}' must be 'on' or 'off', not '{}'", value.value);
                errors.push(self.text.error(value.span, message));
                None
            }
        }
    }
}

/// Converts the error of a value (a duration, a size) to an error at the place of the value.
pub(super) fn error_at_value(error: Error, text: &SqlText, value: &SpannedText) -> Error {
    let placed = text.error(value.span, error.message);
    match error.hint {
        Some(hint) => placed.hint(hint),
        None => placed,
    }
}
