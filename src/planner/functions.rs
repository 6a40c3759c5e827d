//! The few functions that mean something else in a stream than in DataFusion.
//!
//! `now()` and its kin read the time of the epoch, which is recorded, so that an epoch that runs
//! again sees the same time. `to_timestamp(text, 'format')` with a constant format reads local
//! time of the stream's zone with a format that is compiled once. `random()` and `uuid()` are
//! refused (see [`volatile`]).

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::{Array, AsArray, StringArray, TimestampMicrosecondArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use chrono::{DateTime, Datelike, NaiveDate, Timelike};
use chrono_tz::Tz;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ScalarValue, exec_err, internal_err, plan_err};
use datafusion::error::{DataFusionError, Result as DfResult};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use crate::decode::timestamp::TimestampFormat;
use crate::time::Micros;

/// The recorded time of the present epoch, which `now()` and its kin read.
#[derive(Debug, Clone, Default)]
pub struct EpochNow(Arc<AtomicI64>);

impl EpochNow {
    /// Sets the time of the epoch that is about to run.
    pub fn set(&self, now: Micros) {
        self.0.store(now, Ordering::Release);
    }

    /// The time of the present epoch.
    pub fn get(&self) -> Micros {
        self.0.load(Ordering::Acquire)
    }
}

/// The functions that replace DataFusion's of the same names.
pub(crate) fn functions(zone: Tz, now: &EpochNow, to_timestamp: Arc<ScalarUDF>) -> Vec<ScalarUDF> {
    let epoch = |clock| ScalarUDF::from(Now::new(clock, zone, now.clone()));
    vec![
        epoch(ClockField::Timestamp),
        epoch(ClockField::Date),
        epoch(ClockField::Time),
        epoch(ClockField::Local),
        ScalarUDF::from(ToTimestamp::new(zone, to_timestamp)),
    ]
}

/// The first function of `plan` whose result differs from call to call, by name.
pub(crate) fn volatile(plan: &LogicalPlan) -> DfResult<Option<String>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found = volatile_in(expr)?;
            Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}

/// The first function of `expr` whose result differs from call to call, by name.
pub(crate) fn volatile_in(expr: &Expr) -> DfResult<Option<String>> {
    let mut found = None;
    expr.apply(|expr| {
        if let Expr::ScalarFunction(function) = expr {
            let is_volatile = function.func.signature().volatility == Volatility::Volatile;
            if is_volatile && !is_epoch_now(&function.func) {
                found = Some(function.func.name().to_owned());
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

fn is_epoch_now(function: &ScalarUDF) -> bool {
    ClockField::ALL.iter().any(|field| field.name() == function.name())
}

/// What is read from the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ClockField {
    /// `now()`, `current_timestamp`: the instant.
    Timestamp,
    /// `current_date`: the date in the stream's zone.
    Date,
    /// `current_time`: the time of day in the stream's zone.
    Time,
    /// `localtimestamp`: date and time of day in the stream's zone.
    Local,
}

impl ClockField {
    const ALL: [Self; 4] = [Self::Timestamp, Self::Date, Self::Time, Self::Local];

    fn name(self) -> &'static str {
        match self {
            Self::Timestamp => "now",
            Self::Date => "current_date",
            Self::Time => "current_time",
            Self::Local => "localtimestamp",
        }
    }

    fn aliases(self) -> Vec<String> {
        match self {
            Self::Timestamp => vec!["current_timestamp".to_owned()],
            Self::Date => vec!["today".to_owned()],
            Self::Time | Self::Local => Vec::new(),
        }
    }
}

/// Reads the time of the epoch. Volatile to DataFusion, or its optimizer would fold it for good.
#[derive(Debug)]
struct Now {
    field: ClockField,
    zone: Tz,
    now: EpochNow,
    aliases: Vec<String>,
    signature: Signature,
}

impl Now {
    fn new(field: ClockField, zone: Tz, now: EpochNow) -> Self {
        let signature = Signature::nullary(Volatility::Volatile);
        Self { field, zone, now, aliases: field.aliases(), signature }
    }

    fn data_type(&self) -> DataType {
        match self.field {
            ClockField::Timestamp => timestamp_type(self.zone),
            ClockField::Date => DataType::Date32,
            ClockField::Time => DataType::Time64(TimeUnit::Nanosecond),
            ClockField::Local => DataType::Timestamp(TimeUnit::Microsecond, None),
        }
    }

    fn value(&self) -> DfResult<ScalarValue> {
        let micros = self.now.get();
        let Some(instant) = DateTime::from_timestamp_micros(micros) else {
            return exec_err!("the epoch's time {micros} is beyond the calendar");
        };
        let local = instant.with_timezone(&self.zone).naive_local();
        Ok(match self.field {
            ClockField::Timestamp => {
                ScalarValue::TimestampMicrosecond(Some(micros), Some(self.zone.name().into()))
            }
            ClockField::Date => {
                let days =
                    local.date().num_days_from_ce() - NaiveDate::default().num_days_from_ce();
                ScalarValue::Date32(Some(days))
            }
            ClockField::Time => {
                let seconds = i64::from(local.time().num_seconds_from_midnight());
                let nanos = seconds * 1_000_000_000 + i64::from(local.time().nanosecond());
                ScalarValue::Time64Nanosecond(Some(nanos))
            }
            ClockField::Local => {
                let micros = local.and_utc().timestamp_micros();
                ScalarValue::TimestampMicrosecond(Some(micros), None)
            }
        })
    }
}

impl PartialEq for Now {
    fn eq(&self, other: &Self) -> bool {
        self.field == other.field && self.zone == other.zone
    }
}

impl Eq for Now {}

impl Hash for Now {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.field.hash(state);
        self.zone.hash(state);
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        self.field.name()
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(self.data_type())
    }

    fn return_field_from_args(&self, _: ReturnFieldArgs<'_>) -> DfResult<FieldRef> {
        Ok(Arc::new(Field::new(self.name(), self.data_type(), false)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value()?))
    }
}

/// The type of an instant in `zone`.
pub(crate) fn timestamp_type(zone: Tz) -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(zone.name().into()))
}

/// `to_timestamp`: ours for text with constant formats, DataFusion's for all else.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ToTimestamp {
    zone: Tz,
    datafusion: Arc<ScalarUDF>,
    signature: Signature,
}

impl ToTimestamp {
    fn new(zone: Tz, datafusion: Arc<ScalarUDF>) -> Self {
        Self { zone, datafusion, signature: Signature::variadic_any(Volatility::Immutable) }
    }

    /// The parser, if the arguments are text and constant formats.
    fn parser(
        &self,
        text: &DataType,
        formats: &[Option<&ScalarValue>],
    ) -> DfResult<Option<TextTimestampParser>> {
        let constants: Option<Vec<&str>> = (formats.iter())
            .map(|format| format.and_then(|format| format.try_as_str().flatten()))
            .collect();
        match constants {
            Some(formats) if !formats.is_empty() && is_text(text) => {
                TextTimestampParser::new(self.zone, &formats).map(Some)
            }
            _ => Ok(None),
        }
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

impl ScalarUDFImpl for ToTimestamp {
    fn name(&self) -> &str {
        "to_timestamp"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        internal_err!("return_field_from_args tells the type of to_timestamp")
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> DfResult<FieldRef> {
        let parser = match (args.arg_fields.first(), args.scalar_arguments.get(1..)) {
            (Some(text), Some(formats)) => self.parser(text.data_type(), formats)?,
            _ => None,
        };
        match parser {
            Some(_) => {
                let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
                Ok(Arc::new(Field::new(self.name(), timestamp_type(self.zone), nullable)))
            }
            None => self.datafusion.return_field_from_args(args),
        }
    }

    fn simplify(&self, args: Vec<Expr>, context: &SimplifyContext) -> DfResult<ExprSimplifyResult> {
        let Some((text, formats)) = args.split_first() else {
            return Ok(ExprSimplifyResult::Original(args));
        };
        let literals: Vec<_> = (formats.iter())
            .map(|format| match format {
                Expr::Literal(value, _) => Some(value),
                _ => None,
            })
            .collect();
        match self.parser(&context.get_data_type(text)?, &literals)? {
            Some(parser) => {
                let (parser, pieces) = parser.with_pieces(text);
                let func = Arc::new(ScalarUDF::from(parser));
                let call = ScalarFunction::new_udf(func, pieces);
                Ok(ExprSimplifyResult::Simplified(Expr::ScalarFunction(call)))
            }
            None => Ok(ExprSimplifyResult::Original(args)),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let scalars: Vec<_> = (args.args.iter().skip(1))
            .map(|arg| match arg {
                ColumnarValue::Scalar(value) => Some(value),
                ColumnarValue::Array(_) => None,
            })
            .collect();
        let parser = match args.args.first() {
            Some(text) => self.parser(&text.data_type(), &scalars)?,
            None => None,
        };
        match parser {
            Some(parser) => parser.invoke_with_args(args),
            None => self.datafusion.invoke_with_args(args),
        }
    }
}

/// A part of the text that is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Piece {
    Text(String),
    /// The next argument.
    Argument,
}

/// `to_timestamp(text)` with its formats compiled; the first one that fits is taken. Of a text
/// `a || ' ' || b` the arguments are `a` and `b`, so that nobody writes the whole of it down.
#[derive(Debug)]
struct TextTimestampParser {
    /// Tells this parser from others: plans show it, and are compared by what they show.
    name: String,
    zone: Tz,
    formats: Vec<String>,
    pieces: Vec<Piece>,
    compiled: Vec<TimestampFormat>,
    signature: Signature,
}

impl TextTimestampParser {
    fn new(zone: Tz, formats: &[&str]) -> DfResult<Self> {
        let compiled = (formats.iter())
            .map(|format| TimestampFormat::compile(format, zone))
            .collect::<crate::Result<Vec<_>>>();
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => return plan_err!("{}", error.message),
        };
        let formats: Vec<_> = formats.iter().map(|&format| format.to_owned()).collect();
        let pieces = vec![Piece::Argument];
        let name = parser_name(&pieces, &formats);
        let signature = Signature::variadic_any(Volatility::Immutable);
        Ok(Self { name, zone, formats, pieces, compiled, signature })
    }

    /// This parser for the pieces of `text`, and its arguments.
    fn with_pieces(self, text: &Expr) -> (Self, Vec<Expr>) {
        let (mut pieces, mut arguments) = (Vec::new(), Vec::new());
        flatten_concat(text, &mut pieces, &mut arguments);
        if arguments.is_empty() {
            return (self, vec![text.clone()]);
        }
        let name = parser_name(&pieces, &self.formats);
        (Self { name, pieces, ..self }, arguments)
    }

    fn parse(&self, text: &[u8]) -> DfResult<Micros> {
        let mut instants = self.compiled.iter().map(|format| format.parse(text));
        instants.find_map(|instant| instant).ok_or_else(|| {
            let (text, formats) = (String::from_utf8_lossy(text), self.formats.join("' or '"));
            DataFusionError::Execution(format!(
                "cannot parse '{text}' as a timestamp of the form '{formats}'"
            ))
        })
    }

    /// The instants that the rows say. Rows often say the same as the one before.
    fn parse_rows(
        &self,
        columns: &[&StringArray],
        rows: usize,
    ) -> DfResult<TimestampMicrosecondArray> {
        let nulls = (columns.iter())
            .fold(None, |nulls, column| NullBuffer::union(nulls.as_ref(), column.nulls()));
        let is_null = |row| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        let mut instants: Vec<Micros> = Vec::with_capacity(rows);
        let mut text = Vec::new();
        let mut last = None;
        for row in 0..rows {
            if is_null(row) {
                instants.push(0);
                continue;
            }
            let same = |last: usize| columns.iter().all(|c| c.value(last) == c.value(row));
            let instant = match last.filter(|last| same(*last)) {
                Some(last) => instants[last],
                None => {
                    self.write_text(columns, row, &mut text);
                    self.parse(&text)?
                }
            };
            instants.push(instant);
            last = Some(row);
        }
        Ok(TimestampMicrosecondArray::new(instants.into(), nulls))
    }

    /// Writes a row's whole text.
    fn write_text(&self, columns: &[&StringArray], row: usize, text: &mut Vec<u8>) {
        text.clear();
        let mut columns = columns.iter();
        for piece in &self.pieces {
            match piece {
                Piece::Text(piece) => text.extend_from_slice(piece.as_bytes()),
                Piece::Argument => {
                    let value = columns.next().map(|column| column.value(row));
                    text.extend_from_slice(value.unwrap_or_default().as_bytes());
                }
            }
        }
    }
}

/// The operands of `||`, in order.
fn flatten_concat(text: &Expr, pieces: &mut Vec<Piece>, arguments: &mut Vec<Expr>) {
    match text {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
            flatten_concat(left, pieces, arguments);
            flatten_concat(right, pieces, arguments);
        }
        Expr::Literal(value, _) if value.try_as_str().flatten().is_some() => {
            let text = value.try_as_str().flatten().unwrap_or_default();
            pieces.push(Piece::Text(text.to_owned()));
        }
        other => {
            pieces.push(Piece::Argument);
            arguments.push(other.clone());
        }
    }
}

/// `to_timestamp[{} {} as %Y%m%d %H:%M:%S]`
fn parser_name(pieces: &[Piece], formats: &[String]) -> String {
    let text = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => text,
        Piece::Argument => "{}",
    });
    format!("to_timestamp[{} as {}]", text.collect::<String>(), formats.join(" or "))
}

impl PartialEq for TextTimestampParser {
    fn eq(&self, other: &Self) -> bool {
        (self.zone, &self.formats, &self.pieces) == (other.zone, &other.formats, &other.pieces)
    }
}

impl Eq for TextTimestampParser {}

impl Hash for TextTimestampParser {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.zone.hash(state);
        self.formats.hash(state);
        self.pieces.hash(state);
    }
}

impl ScalarUDFImpl for TextTimestampParser {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(timestamp_type(self.zone))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let columns = (args.args.into_iter())
            .map(|arg| Ok(cast(&arg.into_array(rows)?, &DataType::Utf8)?))
            .collect::<DfResult<Vec<_>>>()?;
        let columns: Vec<_> = columns.iter().map(|column| column.as_string::<i32>()).collect();
        let instants = self.parse_rows(&columns, rows)?.with_timezone(self.zone.name());
        Ok(match is_scalar {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&instants, 0)?),
            false => ColumnarValue::Array(Arc::new(instants)),
        })
    }
}
