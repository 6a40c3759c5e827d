//! The watermark of a stream and the check of its WATERMARK clause.
//!
//! The `Debug` text of [`Watermark`] is part of the fingerprint of a stream. Renaming the type or a
//! field changes it, and a deployed pipeline then refuses to continue.

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::ast::{self, BinaryOperator, Spanned};

use crate::catalog::column::StreamColumn;
use crate::catalog::duration;
use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::{SpannedText, WatermarkClause, fold_identifier};
use crate::catalog::suggestion;
use crate::error::Error;

/// The watermark of a stream: `WATERMARK FOR column AS column - delay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    /// The event-time column.
    pub column: String,
    /// The allowed disorder in microseconds: the watermark is the event time less this delay.
    pub delay_us: i64,
}

/// Checks that a stream has one watermark, over a declared TIMESTAMP column. Each column comes with
/// whether its type is known.
pub(super) fn resolve_watermark(
    stream: &SpannedText,
    clauses: &[WatermarkClause],
    columns: &[(StreamColumn, bool)],
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> Option<Watermark> {
    let [clause] = clauses else {
        errors.push(match clauses {
            [_, second, ..] => {
                text.error(second.span, format!("stream '{}' has two watermarks", stream.value))
            }
            _ => (text.error(stream.span, format!("stream '{}' has no watermark", stream.value))).hint(
                "declare the event time: WATERMARK FOR event_time AS event_time - INTERVAL '30' SECOND",
            ),
        });
        return None;
    };
    let name = &clause.column;
    match columns.iter().find(|(column, _)| column.name == name.value) {
        None => {
            let known = columns.iter().map(|(column, _)| column.name.as_str());
            let hint = suggestion::suggest_or_list(&name.value, "columns", known);
            let message = format!("watermark column '{}' does not exist", name.value);
            errors.push(text.error(name.span, message).hint(hint));
            return None;
        }
        Some((column, true)) if !matches!(column.data_type, DataType::Timestamp(..)) => {
            let message = format!("watermark column '{}' is not a TIMESTAMP", name.value);
            errors.push(
                (text.error(name.span, message))
                    .hint("add a computed column: event_time TIMESTAMP AS to_timestamp(...)"),
            );
            return None;
        }
        Some(_) => {}
    }
    match parse_delay(&clause.delayed, &name.value) {
        Ok(delay_us) => Some(Watermark { column: name.value.clone(), delay_us }),
        Err(reason) => {
            let hint = format!("write {0}, or {0} - INTERVAL '30' SECOND", name.value);
            errors.push(text.error(clause.delayed.span(), reason).hint(hint));
            None
        }
    }
}

/// The delay in `column` or `column - INTERVAL '..' unit`, in microseconds.
fn parse_delay(expr: &ast::Expr, column: &str) -> Result<i64, String> {
    let is_column = |expr: &ast::Expr| {
        matches!(expr, ast::Expr::Identifier(ident)
            if fold_identifier(&ident.value, ident.quote_style) == column)
    };
    match expr {
        ast::Expr::Nested(inner) => parse_delay(inner, column),
        expr if is_column(expr) => Ok(0),
        ast::Expr::BinaryOp { left, op: BinaryOperator::Minus, right } if is_column(left) => {
            match right.as_ref() {
                ast::Expr::Interval(interval) => interval_us(interval),
                _ => Err("the delay of a watermark must be an INTERVAL".to_owned()),
            }
        }
        _ => Err(format!("a watermark must be '{column}' or '{column}' minus a fixed INTERVAL")),
    }
}

/// The length of `INTERVAL '30' SECOND` or `INTERVAL '30 seconds'`, in microseconds.
fn interval_us(interval: &ast::Interval) -> Result<i64, String> {
    let number = match interval.value.as_ref() {
        ast::Expr::Value(value) => match &value.value {
            ast::Value::SingleQuotedString(text) => text.clone(),
            ast::Value::Number(number, _) => number.clone(),
            other => return Err(format!("cannot parse {other} as a duration")),
        },
        other => return Err(format!("cannot parse {other} as a duration")),
    };
    if interval.last_field.is_some() || interval.leading_precision.is_some() {
        return Err("the delay of a watermark must have one unit".to_owned());
    }
    let text = match &interval.leading_field {
        Some(unit) => format!("{number} {unit}"),
        None => number,
    };
    duration::parse(&text).map_err(|error| error.message)
}
