//! Window functions in FROM: `TUMBLE(t, DESCRIPTOR(ts), size [, offset])` and
//! `HOP(t, DESCRIPTOR(ts), slide, size [, offset])` are replaced by plain relations before
//! DataFusion analyzes the query. Such a relation has the columns of `t` and the window columns.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    DateTimeField, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Interval,
    ObjectName, Query as Select, Spanned, TableAlias, TableFactor, TableFunctionArgs,
    UnaryOperator, Value, VisitMut, VisitorMut,
};
use datafusion::sql::sqlparser::tokenizer::Span;

use crate::catalog::Query;
use crate::catalog::parse_diagnostics::suggest_window_function;
use crate::error::Error;
use crate::planner::errors::place_of_span;
use crate::time::{DAY, HOUR, MINUTE, SECOND};
use crate::types::{Size, WindowSpec};

/// A window function found in FROM.
#[derive(Debug)]
pub(crate) struct WindowedRelation {
    /// The relation's name in the rewritten query. It is part of the fingerprint.
    pub(crate) name: String,
    /// The relation whose rows are assigned to windows.
    pub(crate) input: Ident,
    /// The time column that DESCRIPTOR names.
    pub(crate) time: Ident,
    /// The kind and size of the windows.
    pub(crate) spec: WindowSpec,
}

/// Replaces the window functions of `select`, the statement of `query`, by plain relations.
pub(crate) fn resolve(
    select: &mut Select,
    query: &Query,
) -> Result<Vec<WindowedRelation>, Vec<Error>> {
    let mut resolver = Resolver { query, found: Vec::new(), errors: Vec::new() };
    let _: ControlFlow<()> = select.visit(&mut resolver);
    if resolver.errors.is_empty() { Ok(resolver.found) } else { Err(resolver.errors) }
}

struct Resolver<'a> {
    query: &'a Query,
    found: Vec<WindowedRelation>,
    errors: Vec<Error>,
}

impl VisitorMut for Resolver<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let call = match factor {
            TableFactor::Table {
                name, alias, args: Some(TableFunctionArgs { args, .. }), ..
            } => Some((name.clone(), args.clone(), alias.clone())),
            // `TABLE(TUMBLE(...))`, Flink's longer spelling.
            TableFactor::TableFunction { expr: Expr::Function(function), alias } => {
                match &function.args {
                    FunctionArguments::List(list) => {
                        Some((function.name.clone(), list.args.clone(), alias.clone()))
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        let Some((name, args, alias)) = call else {
            return ControlFlow::Continue(());
        };
        let function = name.to_string().to_ascii_lowercase();
        match self.window_function(&function, &args, name.span()) {
            Ok(relation) => {
                *factor = plain_table(&relation, alias);
                self.found.push(relation);
            }
            Err(error) => self.errors.push(error),
        }
        ControlFlow::Continue(())
    }
}

impl Resolver<'_> {
    fn window_function(
        &self,
        function: &str,
        args: &[FunctionArg],
        span: Span,
    ) -> Result<WindowedRelation, Error> {
        let usage = match function {
            "tumble" => "TUMBLE(TABLE t, DESCRIPTOR(time), INTERVAL '1' HOUR [, offset])",
            "hop" => {
                "HOP(TABLE t, DESCRIPTOR(time), INTERVAL '5' MINUTE, INTERVAL '1' HOUR [, offset]): slide, then size"
            }
            "cumulate" | "session" => {
                let name = function.to_ascii_uppercase();
                return Err(self
                    .error(format!("{name} windows are not supported yet"), span)
                    .hint("use TUMBLE or HOP"));
            }
            _ => {
                return Err(self
                    .error(format!("there is no table function '{function}'"), span)
                    .hint(suggest_window_function(function)));
            }
        };
        let misused = |what: &str| self.error(what.to_owned(), span).hint(usage);
        let exprs = positional(args)
            .ok_or_else(|| misused("arguments of window functions cannot be named"))?;
        let sizes = if function == "hop" { 2 } else { 1 };
        if exprs.len() < 2 + sizes || exprs.len() > 3 + sizes {
            let message = format!(
                "{} does not accept {} arguments",
                function.to_ascii_uppercase(),
                exprs.len()
            );
            return Err(misused(&message));
        }
        let Expr::Identifier(input) = exprs[0] else {
            return Err(misused("the first argument must name a stream or query"));
        };
        let time = descriptor(exprs[1]).ok_or_else(|| {
            let message = "the second argument must be DESCRIPTOR(column)";
            self.error(message.to_owned(), exprs[1].span()).hint(usage)
        })?;
        let size = |expr: &Expr| self.size(expr, usage);
        let offset_us = match exprs.get(2 + sizes) {
            Some(expr) => self.offset(expr, usage)?,
            None => 0,
        };
        let spec = if function == "hop" {
            WindowSpec::Hop { slide: size(exprs[2])?, size: size(exprs[3])?, offset_us }
        } else {
            WindowSpec::Tumble { size: size(exprs[2])?, offset_us }
        };
        let name = format!("__window_{}", self.found.len());
        Ok(WindowedRelation { name, input: input.clone(), time, spec })
    }

    fn size(&self, expr: &Expr, usage: &str) -> Result<Size, Error> {
        let error = |what: &str| self.error(what.to_owned(), expr.span()).hint(usage.to_owned());
        let length = interval(expr).map_err(|what| error(&what))?;
        match length {
            Length { months: 0, days: 0, micros } if micros > 0 => Ok(Size::Fixed(micros)),
            Length { months: 0, days, micros: 0 } if days > 0 => {
                let days = u32::try_from(days).map_err(|_| error("this interval is too long"))?;
                Ok(if days % 7 == 0 && is_in_weeks(expr) {
                    Size::Weeks(days / 7)
                } else {
                    Size::Days(days)
                })
            }
            Length { months, days: 0, micros: 0 } if months > 0 => Ok(Size::Months(
                u32::try_from(months).map_err(|_| error("this interval is too long"))?,
            )),
            Length { months, days, micros } if months >= 0 && days >= 0 && micros >= 0 => {
                let what =
                    "a window size must be positive and in one unit: a time, days, weeks or months";
                Err(error(what))
            }
            _ => Err(error("a window size must be positive")),
        }
    }

    fn offset(&self, expr: &Expr, usage: &str) -> Result<i64, Error> {
        let error = |what: &str| self.error(what.to_owned(), expr.span()).hint(usage.to_owned());
        let length = interval(expr).map_err(|what| error(&what))?;
        if length.months != 0 {
            return Err(error("a window offset cannot be in months"));
        }
        length
            .days
            .checked_mul(DAY)
            .and_then(|days| days.checked_add(length.micros))
            .ok_or_else(|| error("this interval is too long"))
    }

    fn error(&self, message: String, span: Span) -> Error {
        let place = place_of_span(self.query, span).unwrap_or_else(|| self.query.place.clone());
        Error::sql(message).at(place)
    }
}

fn plain_table(relation: &WindowedRelation, alias: Option<TableAlias>) -> TableFactor {
    let named_as_input =
        TableAlias { explicit: true, name: relation.input.clone(), columns: Vec::new(), at: None };
    TableFactor::Table {
        name: ObjectName::from(vec![Ident::new(&relation.name)]),
        alias: Some(alias.unwrap_or(named_as_input)),
        args: None,
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

fn positional(args: &[FunctionArg]) -> Option<Vec<&Expr>> {
    (args.iter())
        .map(|arg| match arg {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect()
}

fn descriptor(expr: &Expr) -> Option<Ident> {
    let Expr::Function(function) = expr else { return None };
    let FunctionArguments::List(list) = &function.args else { return None };
    let is_descriptor = function.name.to_string().eq_ignore_ascii_case("descriptor");
    match positional(&list.args)?.as_slice() {
        [Expr::Identifier(column)] if is_descriptor => Some(column.clone()),
        _ => None,
    }
}

/// The value of an SQL interval; weeks count as days, years as months.
#[derive(Debug, Default, PartialEq, Eq)]
struct Length {
    months: i64,
    days: i64,
    micros: i64,
}

/// `INTERVAL '1' DAY`, `INTERVAL '1 hour 30 minutes'`, with or without a minus sign.
fn interval(expr: &Expr) -> Result<Length, String> {
    match expr {
        Expr::Interval(interval) => parse_interval(interval),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => {
            let length = interval(expr)?;
            Ok(Length { months: -length.months, days: -length.days, micros: -length.micros })
        }
        Expr::Nested(expr) => interval(expr),
        _ => Err("this must be an INTERVAL".to_owned()),
    }
}

fn parse_interval(interval: &Interval) -> Result<Length, String> {
    let text = match interval.value.as_ref() {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => text.clone(),
            Value::Number(number, _) => number.clone(),
            _ => return Err("an INTERVAL must be a string or a number".to_owned()),
        },
        _ => return Err("an INTERVAL must be a constant here".to_owned()),
    };
    if interval.last_field.is_some() {
        return Err("INTERVAL .. TO .. is not supported here".to_owned());
    }
    let mut length = Length::default();
    match &interval.leading_field {
        Some(field) => length.add(text.trim(), &unit_name(field))?,
        None => {
            let words: Vec<&str> = text.split_whitespace().collect();
            if words.is_empty() || !words.len().is_multiple_of(2) {
                return Err(format!(
                    "cannot parse '{text}' as INTERVAL: write it as in '90 minutes'"
                ));
            }
            for pair in words.chunks_exact(2) {
                length.add(pair[0], &pair[1].to_ascii_lowercase())?;
            }
        }
    }
    Ok(length)
}

fn unit_name(field: &DateTimeField) -> String {
    field.to_string().to_ascii_lowercase()
}

impl Length {
    fn add(&mut self, number: &str, unit: &str) -> Result<(), String> {
        let number: i64 = (number.parse())
            .map_err(|_| format!("cannot parse '{number}' as a whole number of {unit}"))?;
        let unit = unit.strip_suffix('s').unwrap_or(unit);
        let (total, factor) = match unit {
            "year" => (&mut self.months, 12),
            "quarter" => (&mut self.months, 3),
            "month" => (&mut self.months, 1),
            "week" => (&mut self.days, 7),
            "day" => (&mut self.days, 1),
            "hour" => (&mut self.micros, HOUR),
            "minute" => (&mut self.micros, MINUTE),
            "second" => (&mut self.micros, SECOND),
            "millisecond" => (&mut self.micros, 1_000),
            "microsecond" => (&mut self.micros, 1),
            _ => return Err(format!("unknown time unit '{unit}'")),
        };
        *total = (number.checked_mul(factor))
            .and_then(|value| total.checked_add(value))
            .ok_or_else(|| "this interval is too long".to_owned())?;
        Ok(())
    }
}

fn is_in_weeks(expr: &Expr) -> bool {
    expr.to_string().to_ascii_lowercase().contains("week")
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::GenericDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;

    #[test]
    fn parses_intervals_as_sql_defines_them() {
        let parse = |text: &str| {
            let expr = Parser::new(&GenericDialect {}).try_with_sql(text).unwrap().parse_expr();
            interval(&expr.unwrap())
        };
        let length = |months, days, micros| Ok(Length { months, days, micros });
        assert_eq!(parse("INTERVAL '1' DAY"), length(0, 1, 0));
        assert_eq!(parse("INTERVAL 90 SECOND"), length(0, 0, 90 * SECOND));
        assert_eq!(parse("INTERVAL '1 hour 30 minutes'"), length(0, 0, 90 * MINUTE));
        assert_eq!(parse("INTERVAL '2 weeks'"), length(0, 14, 0));
        assert_eq!(parse("-INTERVAL '1' YEAR"), length(-12, 0, 0));
        assert!(parse("INTERVAL '1.5' HOUR").is_err());
        assert!(parse("INTERVAL '1:30' HOUR TO MINUTE").is_err());
        assert!(parse("17").is_err());
    }
}
