//! Names of customers, relations and files: they become topics, folders and tables, so they are
//! plain words, `[a-z][a-z0-9_]*`.

use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::Word;
use crate::error::{Error, Result};

/// The schema of the engine's own tables in ad-hoc SQL; no customer may have this name.
const OWN_SCHEMA: &str = "millstream";

/// Kafka allows topics of 249 bytes; a name stands in `millstream.<customer>.<query>_late`.
const LONGEST: usize = 100;

/// Why `name` cannot be a name; `None` when it can.
pub(super) fn objection(name: &str) -> Option<&'static str> {
    let mut letters = name.chars();
    if !letters.next().is_some_and(|first| first.is_ascii_lowercase()) {
        return Some("a name begins with a letter from a to z");
    }
    if !letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return Some("a name consists of a-z, 0-9 and _");
    }
    (name.len() > LONGEST).then_some("a name has at most 100 letters")
}

/// Checks the name of a customer, which is that of its schema file.
pub(super) fn customer(name: &str, text: &SqlText) -> Result<()> {
    let start = datafusion::sql::sqlparser::tokenizer::Span::empty();
    if name == OWN_SCHEMA {
        let message = format!("a customer cannot be called '{name}'");
        return Err(text.error(start, message).hint("the engine's own tables have that name"));
    }
    match objection(name) {
        Some(rule) => Err(text
            .error(start, format!("'{name}' cannot be a customer's name"))
            .hint(format!("{rule}: rename the file"))),
        None => Ok(()),
    }
}

/// Checks the name of a stream, table or query.
pub(super) fn relation(name: &Word, text: &SqlText, errors: &mut Vec<Error>) {
    if let Some(rule) = objection(&name.value) {
        errors.push(text.error(name.span, format!("'{}' cannot be a name", name.value)).hint(rule));
    } else if ["dead_letters", "log"].contains(&name.value.as_str()) {
        errors.push(
            (text.error(name.span, format!("the name '{}' is taken", name.value)))
                .hint("every customer has a topic of that name: choose another"),
        );
    }
}
