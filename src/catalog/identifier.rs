//! The names of customers and relations. They become topics, folders and tables, and must therefore
//! match `[a-z][a-z0-9_]*`.

use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::SpannedText;
use crate::error::{Error, Result};

/// The schema of the engine's own tables in ad-hoc SQL, which no customer may have as its name.
const RESERVED_SCHEMA: &str = "millstream";

/// The most bytes of a name. Two names must fit into the topic `millstream.<customer>.<query>_late`,
/// for which Kafka allows 249 bytes.
const MAX_LENGTH: usize = 100;

/// The rule that `name` violates; `None` if it is a valid name.
pub(super) fn violated_rule(name: &str) -> Option<&'static str> {
    let mut letters = name.chars();
    if !letters.next().is_some_and(|first| first.is_ascii_lowercase()) {
        return Some("a name must start with a letter from a to z");
    }
    if !letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        return Some("a name may contain only a-z, 0-9 and _");
    }
    (name.len() > MAX_LENGTH).then_some("a name may have at most 100 characters")
}

/// Checks the name of a customer, which is the stem of its schema file.
pub(super) fn check_customer_name(name: &str, text: &SqlText) -> Result<()> {
    let start = datafusion::sql::sqlparser::tokenizer::Span::empty();
    if name == RESERVED_SCHEMA {
        let message = format!("the customer name '{name}' is reserved");
        return Err(text
            .error(start, message)
            .hint("the engine's own tables use it: rename the file"));
    }
    match violated_rule(name) {
        Some(rule) => Err(text
            .error(start, format!("'{name}' is not a valid customer name"))
            .hint(format!("{rule}: rename the file"))),
        None => Ok(()),
    }
}

/// Checks the name of a stream, table or query.
pub(super) fn check_relation_name(name: &SpannedText, text: &SqlText, errors: &mut Vec<Error>) {
    if let Some(rule) = violated_rule(&name.value) {
        errors.push(
            text.error(name.span, format!("'{}' is not a valid name", name.value)).hint(rule),
        );
    } else if ["dead_letters", "log"].contains(&name.value.as_str()) {
        errors.push(
            (text.error(name.span, format!("the name '{}' is reserved", name.value)))
                .hint("every customer has a topic with this name: choose another name"),
        );
    }
}
