//! Derives filters that skip files of a table from a filter on the engine's columns.
//!
//! A filter implies two weaker filters: the same filter on the stored columns ([`stored`]), and a
//! range of UTC dates of the time column ([`dates`]). DataFusion applies the original filter
//! afterwards.

use datafusion::arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Cast, Expr, Operator, lit};

use crate::history::delta_table::DATE;
use crate::time::DAY;

/// Rewrites a filter that compares columns with values for the stored columns. Returns `None` for any
/// other filter, such as one with a function call, whose result depends on the time zone.
pub(super) fn stored(filter: &Expr, engine: &SchemaRef, stored: &SchemaRef) -> Option<Expr> {
    let rewrite = |expr: &Expr| self::stored(expr, engine, stored).map(Box::new);
    Some(match filter {
        Expr::Column(column) => {
            let (_, old) = engine.column_with_name(&column.name)?;
            let (_, new) = stored.column_with_name(&column.name)?;
            let same = old.data_type() == new.data_type();
            (same || is_instant(old.data_type())).then_some(())?;
            Expr::Column(Column::from_name(column.name.clone()))
        }
        Expr::Literal(value, metadata) => Expr::Literal(in_utc(value), metadata.clone()),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) => {
            // The Delta reader rejects a comparison of different types.
            (plain_type(left, engine)? == plain_type(right, engine)?).then_some(())?;
            Expr::BinaryExpr(BinaryExpr::new(rewrite(left)?, *op, rewrite(right)?))
        }
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            Expr::BinaryExpr(BinaryExpr::new(rewrite(left)?, *op, rewrite(right)?))
        }
        Expr::Between(Between { expr, negated, low, high }) => {
            Expr::Between(Between::new(rewrite(expr)?, *negated, rewrite(low)?, rewrite(high)?))
        }
        Expr::InList(InList { expr, list, negated }) => {
            let list = list.iter().map(|value| rewrite(value).map(|value| *value));
            Expr::InList(InList::new(rewrite(expr)?, list.collect::<Option<Vec<_>>>()?, *negated))
        }
        Expr::IsNull(expr) => Expr::IsNull(rewrite(expr)?),
        Expr::IsNotNull(expr) => Expr::IsNotNull(rewrite(expr)?),
        Expr::Not(expr) => Expr::Not(rewrite(expr)?),
        _ => return None,
    })
}

/// Derives a filter on [`DATE`] alone that is true for every row for which `filter` is true, including
/// rows without a date. Returns `None` if `filter` does not restrict the date.
pub(super) fn dates(filter: &Expr, time: &str) -> Option<Expr> {
    let bounds = implied_dates(filter, time)?;
    let column = || Expr::Column(Column::from_name(DATE));
    let mut all = Vec::new();
    if let Some(low) = bounds.low {
        all.push(column().gt_eq(lit(ScalarValue::Date32(Some(low)))));
    }
    if let Some(high) = bounds.high {
        all.push(column().lt_eq(lit(ScalarValue::Date32(Some(high)))));
    }
    let within = all.into_iter().reduce(Expr::and)?;
    Some(within.or(column().is_null()))
}

/// A range of dates in days since 1970; both bounds are inclusive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bounds {
    low: Option<i32>,
    high: Option<i32>,
}

impl Bounds {
    fn and(self, other: Self) -> Self {
        let low = [self.low, other.low].into_iter().flatten().max();
        let high = [self.high, other.high].into_iter().flatten().min();
        Self { low, high }
    }

    fn or(self, other: Self) -> Self {
        let low = self.low.zip(other.low).map(|(a, b)| a.min(b));
        let high = self.high.zip(other.high).map(|(a, b)| a.max(b));
        Self { low, high }
    }
}

fn implied_dates(filter: &Expr, time: &str) -> Option<Bounds> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            match (implied_dates(left, time), implied_dates(right, time)) {
                (Some(left), Some(right)) => Some(left.and(right)),
                (one, other) => one.or(other),
            }
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            Some(implied_dates(left, time)?.or(implied_dates(right, time)?))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            match (compared_time(left, time), compared_time(right, time)) {
                (Some(kind), None) => dates_of_comparison(kind, *op, right),
                (None, Some(kind)) => dates_of_comparison(kind, op.swap()?, left),
                _ => None,
            }
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            let kind = compared_time(expr, time)?;
            let low = dates_of_comparison(kind, Operator::GtEq, low).unwrap_or_default();
            Some(low.and(dates_of_comparison(kind, Operator::LtEq, high).unwrap_or_default()))
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let kind = compared_time(expr, time)?;
            let each = list.iter().map(|value| dates_of_comparison(kind, Operator::Eq, value));
            each.collect::<Option<Vec<_>>>()?.into_iter().reduce(Bounds::or)
        }
        _ => None,
    }
}

/// What a filter compares: the instant, or the local time, which differs by up to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Instant,
    Local,
}

fn compared_time(expr: &Expr, time: &str) -> Option<Reading> {
    match expr {
        Expr::Column(column) if column.name == time => Some(Reading::Instant),
        Expr::Cast(Cast { expr, field }) => match (compared_time(expr, time)?, field.data_type()) {
            (reading, DataType::Timestamp(_, Some(_))) => Some(reading),
            (_, DataType::Timestamp(_, None) | DataType::Date32) => Some(Reading::Local),
            _ => None,
        },
        _ => None,
    }
}

fn dates_of_comparison(reading: Reading, op: Operator, value: &Expr) -> Option<Bounds> {
    let Expr::Literal(value, _) = value else { return None };
    let day = match value {
        ScalarValue::TimestampSecond(Some(t), _) => t.div_euclid(DAY / 1_000_000),
        ScalarValue::TimestampMillisecond(Some(t), _) => t.div_euclid(DAY / 1_000),
        ScalarValue::TimestampMicrosecond(Some(t), _) => t.div_euclid(DAY),
        ScalarValue::TimestampNanosecond(Some(t), _) => t.div_euclid(DAY * 1_000),
        ScalarValue::Date32(Some(day)) => i64::from(*day),
        _ => return None,
    };
    // Local times and dates differ from UTC by less than a day. A column of local times that is
    // compared as an instant is stored without conversion.
    let margin = i64::from(reading == Reading::Local);
    let low = i32::try_from(day - margin).ok();
    let high = i32::try_from(day + margin).ok();
    match op {
        Operator::Eq | Operator::IsNotDistinctFrom => Some(Bounds { low, high }),
        Operator::Gt | Operator::GtEq => Some(Bounds { low, high: None }),
        Operator::Lt | Operator::LtEq => Some(Bounds { low: None, high }),
        _ => None,
    }
}

fn is_comparison(op: Operator) -> bool {
    use Operator::*;
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

fn is_instant(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, Some(_)))
}

/// The type of a column or value; all time zones count as the same type.
fn plain_type(expr: &Expr, engine: &SchemaRef) -> Option<DataType> {
    let data_type = match expr {
        Expr::Column(column) => engine.field_with_name(&column.name).ok()?.data_type().clone(),
        Expr::Literal(value, _) => value.data_type(),
        _ => return None,
    };
    Some(match data_type {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(unit, Some("UTC".into())),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        other => other,
    })
}

fn in_utc(value: &ScalarValue) -> ScalarValue {
    match value {
        ScalarValue::TimestampMicrosecond(time, Some(_)) => {
            ScalarValue::TimestampMicrosecond(*time, Some("UTC".into()))
        }
        ScalarValue::Utf8View(text) | ScalarValue::LargeUtf8(text) => {
            ScalarValue::Utf8(text.clone())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::logical_expr::{cast, col};

    fn instant(time: i64) -> Expr {
        lit(ScalarValue::TimestampMicrosecond(Some(time), Some("Europe/Helsinki".into())))
    }

    #[test]
    fn a_filter_on_time_implies_a_range_of_dates_that_is_wide_enough() {
        let day = |n: i64| instant(n * DAY);
        let bounds = |filter: Expr| implied_dates(&filter, "ts");
        let both = |low, high| Some(Bounds { low, high });
        assert_eq!(
            bounds(col("ts").gt_eq(day(3)).and(col("ts").lt(day(5)))),
            both(Some(3), Some(5))
        );
        assert_eq!(bounds(day(3).lt(col("ts"))), both(Some(3), None));
        assert_eq!(bounds(col("ts").eq(day(3)).or(col("ts").eq(day(7)))), both(Some(3), Some(7)));
        assert_eq!(bounds(col("ts").gt(day(3)).and(col("x").eq(lit(1)))), both(Some(3), None));
        assert_eq!(bounds(col("ts").gt(day(3)).or(col("x").eq(lit(1)))), None);
        assert_eq!(bounds(col("ts").not_eq(day(3))), None);
        // 1970-01-04 00:30 in Kathmandu is still the 3rd in UTC.
        let local = cast(col("ts"), DataType::Date32).eq(lit(ScalarValue::Date32(Some(3))));
        assert_eq!(bounds(local), both(Some(2), Some(4)));
    }
}
