//! What DataFusion says in words, said as what the user can do about it.

use crate::catalog::suggestion;
use crate::error::Kind;
use crate::planner::errors::diagnosis::{Diagnosis, to_sentence};
use crate::planner::errors::function;
use crate::planner::sql_display::plain;

/// What DataFusion and Arrow put in front of their messages.
const PREFIXES: [&str; 12] = [
    "Error during planning: ",
    "This feature is not implemented: ",
    "Internal error: ",
    "Execution error: ",
    "Invalid or Unsupported Configuration: ",
    "Arrow error: ",
    "External error: ",
    "Cast error: ",
    "Parser error: ",
    "Compute error: ",
    "Invalid argument error: ",
    "[return_type] ",
];

/// Names of types, for a misspelt one.
const TYPES: [&str; 14] = [
    "BIGINT",
    "INT",
    "INTEGER",
    "SMALLINT",
    "DOUBLE",
    "REAL",
    "FLOAT",
    "BOOLEAN",
    "DATE",
    "TIMESTAMP",
    "DECIMAL",
    "VARCHAR",
    "TEXT",
    "INTERVAL",
];

/// Reads a message, without its backtrace.
pub(super) fn diagnose(text: &str) -> Diagnosis {
    let text = text.trim();
    if let Some(explained) = function::mismatch(text) {
        return explained;
    }
    let text = arrow_error(text).unwrap_or(text);
    let message = PREFIXES.iter().fold(text, |text, prefix| text.trim_start_matches(prefix));
    let known = names(message)
        .or_else(|| function::without_candidates(message))
        .or_else(|| types(message))
        .or_else(|| values(message));
    known.unwrap_or_else(|| unknown(text, message))
}

/// The message in `ArrowError(CastError("..."), ..)`: an error that was shown as Rust has it.
fn arrow_error(text: &str) -> Option<&str> {
    let (_, inner) = text.split_once("ArrowError(")?;
    let (_, inner) = inner.split_once("(\"")?;
    inner.split_once("\")").map(|(message, _)| message)
}

fn unknown(text: &str, message: &str) -> Diagnosis {
    // One sentence is enough; several lines are advice to developers.
    let line = message.lines().next().unwrap_or(message);
    let line = to_sentence(without_debug(line));
    if text.starts_with("Internal error: ") {
        return Diagnosis::new("this query cannot be planned").detail(line);
    }
    if ["Object Store error", "IO error", "Parquet error"].iter().any(|w| text.starts_with(w)) {
        let explained = Diagnosis::new("history could not be read").detail(line);
        return Diagnosis { kind: Kind::Storage, ..explained };
    }
    if text.starts_with("This feature is not implemented: ") && !line.contains("support") {
        let word = line.split(' ').next().unwrap_or_default().to_owned();
        return Diagnosis::new(format!("{line} is not supported")).word(&word);
    }
    Diagnosis::new(line)
}

/// `text` up to where a value of Rust is shown.
fn without_debug(text: &str) -> &str {
    let debug = [" { ", "(Ident", "Span(", "Some("].iter().filter_map(|mark| text.find(mark)).min();
    match debug {
        Some(at) => {
            let before = text[..at].trim_end();
            // The type's own name stands before the brace.
            before.rsplit_once(' ').map_or(before, |(before, _)| before).trim_end_matches(':')
        }
        None => text,
    }
}

/// What stands between `from` and `to`.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(found, _)| found)
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Two columns of a result have one name.
pub(crate) fn two_columns(name: &str) -> Diagnosis {
    let name = last_part(name);
    Diagnosis::new(format!("two columns of the result have the name '{name}'"))
        .hint("give one of them another name: AS other_name")
}

/// Messages about columns, functions and clauses.
fn names(message: &str) -> Option<Diagnosis> {
    if let Some(name) = between(message, "Invalid function '", "'") {
        return Some(function::unknown(name));
    }
    if let Some(name) = between(message, "able function '", "' not found") {
        return Some(function::unknown_in_from(name));
    }
    if let Some(column) = between(message, "column \"", "\" must appear in the GROUP BY") {
        let column = plain(column);
        let column = last_part(&column);
        let message = format!("the column '{column}' is neither in GROUP BY nor in an aggregate");
        let hint = format!("add {column} to GROUP BY, or take e.g. max({column})");
        return Some(Diagnosis::new(message).hint(hint));
    }
    if message.starts_with("Projections require unique expression names") {
        let name = between(message, "the expression \"", "\"")?;
        return Some(two_columns(&plain(name)));
    }
    if message.starts_with("Aggregate functions are not allowed in the WHERE") {
        let message = "aggregates are not allowed in WHERE";
        return Some(Diagnosis::new(message).word("WHERE").hint("write HAVING after GROUP BY"));
    }
    if message.starts_with("Physical plan does not support logical expression Aggregate") {
        let explained = Diagnosis::new("an aggregate is not allowed here").word("GROUP");
        return Some(explained.hint("aggregates are allowed in SELECT, HAVING and ORDER BY"));
    }
    if message.starts_with("Aggregate function calls cannot be nested") {
        let inner = plain(between(message, "'", "'")?);
        let name = inner.split('(').next().unwrap_or(&inner).to_owned();
        let explained =
            Diagnosis::new(format!("the aggregate {inner} is nested in another aggregate"));
        return Some(explained.word(&name).hint("compute the inner one in a sub-query"));
    }
    if let Some(position) = between(message, "column with position ", " ") {
        let explained = Diagnosis::new(format!("there is no column number {position} in SELECT"));
        return Some(explained.word(position).hint("write the column's name"));
    }
    if let Some((function, _)) = message.split_once(" not supported for ")
        && !function.contains(' ')
    {
        let function = function.to_lowercase();
        let explained = Diagnosis::new(format!("{function}() does not take that"));
        return Some(explained.word(&function).hint(format!("write {function}(column)")));
    }
    if message.starts_with("Unsupported ast node") {
        return Some(Diagnosis::new("this form of SQL is not supported"));
    }
    if message.starts_with("Substring without for/from") {
        let explained = Diagnosis::new("substr() does not take 1 argument").word("substr");
        return Some(explained.hint("write substr(text, start), or substr(text, start, length)"));
    }
    if message.contains("queries have different number of columns") {
        let explained = Diagnosis::new(to_sentence(message));
        return Some(explained.hint("select the same number of columns on both sides"));
    }
    None
}

/// Messages about types.
fn types(message: &str) -> Option<Diagnosis> {
    const CAST: &str = "CAST one side, as in CAST(x AS BIGINT)";
    const A_TIME: &str = "compare it with a time, as in event_time > '2019-10-30 07:41:38'";
    if let Some((condition, found)) = message
        .strip_prefix("Cannot create filter with non-boolean predicate '")
        .and_then(|rest| rest.split_once("' returning "))
    {
        let condition = plain(condition);
        let explained = Diagnosis::new(format!(
            "a condition is true or false, and {} is {}",
            last_part(&condition),
            plain(found)
        ));
        let words = condition.split([' ', '(']).next().unwrap_or(&condition).to_owned();
        let explained = explained.word(&words).hint("compare it with something, as in x = 1");
        return Some(Diagnosis { clauses: &["WHERE", "HAVING", "ON"], ..explained });
    }
    if let Some(operation) =
        between(message, "Cannot coerce arithmetic expression ", " to valid types")
    {
        let operation = plain(operation);
        let hint = if operation.contains("TIMESTAMP") {
            "add or subtract a length of time, as in event_time - INTERVAL '5' MINUTE"
        } else {
            CAST
        };
        return Some(Diagnosis::new(format!("there is no {operation}")).hint(hint));
    }
    let coerced = (message.strip_prefix("There isn't a common type to coerce "))
        .or_else(|| message.strip_prefix("Failed to coerce types "));
    if let Some(rest) = coerced {
        let (sides, operator) = rest.split_once(" in ")?;
        let operator = operator.split(' ').next()?;
        let sides = plain(sides);
        let hint = if sides.contains("TIMESTAMP") { A_TIME } else { CAST };
        let explained = Diagnosis::new(format!("{operator} does not compare {sides}"));
        return Some(explained.word(operator).hint(hint));
    }
    if let Some(operation) = message
        .strip_prefix("Cannot infer common argument type for ")
        .and_then(|rest| rest.split_once(" operation "))
        .map(|(_, operation)| plain(operation))
    {
        let operator = operation.split(' ').nth(1)?.to_owned();
        let hint = match operator.as_str() {
            "AND" | "OR" => "conditions stand on both sides of it, as in x = 1 AND y = 2",
            _ if operation.contains("TIMESTAMP") => A_TIME,
            _ => CAST,
        };
        let explained = Diagnosis::new(format!("there is no {operation}")).word(&operator);
        return Some(Diagnosis { clauses: &["WHERE", "HAVING", "ON"], ..explained.hint(hint) });
    }
    if let Some(name) = message.strip_prefix("Unsupported SQL type ") {
        let explained = Diagnosis::new(format!("there is no type '{name}'"));
        return Some(explained.hint(suggestion::suggest_or_list(name, "types", TYPES)));
    }
    if let Some(casts) = message.strip_prefix("Unsupported CAST from ") {
        let (from, to) = casts.split_once(" to ")?;
        return Some(
            Diagnosis::new(format!("cannot cast {} to {}", plain(from), plain(to))).word("CAST"),
        );
    }
    None
}

/// Messages about values.
fn values(message: &str) -> Option<Diagnosis> {
    if let Some((value, data_type)) = message
        .strip_prefix("Cannot cast string '")
        .and_then(|rest| rest.split_once("' to value of "))
    {
        let data_type = plain(data_type.split(" type").next()?);
        let explained = Diagnosis::new(format!("cannot parse '{value}' as {data_type}"));
        let hint = "compare strings with strings and numbers with numbers; try_cast(x AS ..) returns NULL for values that do not fit";
        return Some(Diagnosis { words: vec![value.to_owned()], ..explained }.hint(hint));
    }
    if message.starts_with("timestamp ") && message.ends_with(" out of range") {
        let explained =
            Diagnosis::new("a timestamp is out of the range of this function").detail(message);
        return Some(explained.hint(
            "broken clocks send such timestamps; exclude them, for example with WHERE event_time >= '1900-01-01'",
        ));
    }
    if let Some(value) = between(message, "Invalid input syntax for type interval: \"", "\"") {
        return Some(
            Diagnosis::new(format!("cannot parse '{value}' as INTERVAL"))
                .hint("write INTERVAL '1' DAY, or INTERVAL '1 hour 30 minutes'"),
        );
    }
    if message.contains("timezone offset") {
        return Some(Diagnosis::new(to_sentence(message)).hint(
            "this local time occurs twice or never; write its offset, as in '2019-10-27T03:30:00+03:00'",
        ));
    }
    if let Some((value, why)) = message
        .strip_prefix("Error parsing timestamp from '")
        .and_then(|rest| rest.split_once("': "))
    {
        let explained =
            Diagnosis::new(format!("cannot parse '{value}' as a timestamp")).detail(why);
        let hint = "write it as '2019-10-30 07:41:38', or declare its format: to_timestamp(text, '%d.%m.%Y')";
        return Some(Diagnosis { words: vec![value.to_owned()], ..explained }.hint(hint));
    }
    if message.contains("regex parse error") {
        let why = message.lines().last()?.trim_start_matches("error: ");
        return Some(Diagnosis::new("cannot parse the regular expression").detail(why));
    }
    None
}
