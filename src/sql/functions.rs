//! The few functions that mean something else in a stream than in DataFusion.
//!
//! `now()` and its kin read the time of the epoch, which is recorded, so that an epoch that runs
//! again sees the same time. `to_timestamp(text, 'format')` with a constant format reads local
//! time of the stream's zone with a format that is compiled once. `random()` and `uuid()` are
//! refused (see [`volatile`]).

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::{Array, AsArray, TimestampMicrosecondArray};
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
    ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
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
        epoch(Reading::Timestamp),
        epoch(Reading::Date),
        epoch(Reading::Time),
        epoch(Reading::Local),
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
    Reading::ALL.iter().any(|reading| reading.name() == function.name())
}

/// What is read from the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reading {
    /// `now()`, `current_timestamp`: the instant.
    Timestamp,
    /// `current_date`: the date in the stream's zone.
    Date,
    /// `current_time`: the time of day in the stream's zone.
    Time,
    /// `localtimestamp`: date and time of day in the stream's zone.
    Local,
}

impl Reading {
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
    reading: Reading,
    zone: Tz,
    now: EpochNow,
    aliases: Vec<String>,
    signature: Signature,
}

impl Now {
    fn new(reading: Reading, zone: Tz, now: EpochNow) -> Self {
        let signature = Signature::nullary(Volatility::Volatile);
        Self { reading, zone, now, aliases: reading.aliases(), signature }
    }

    fn data_type(&self) -> DataType {
        match self.reading {
            Reading::Timestamp => timestamp_type(self.zone),
            Reading::Date => DataType::Date32,
            Reading::Time => DataType::Time64(TimeUnit::Nanosecond),
            Reading::Local => DataType::Timestamp(TimeUnit::Microsecond, None),
        }
    }

    fn value(&self) -> DfResult<ScalarValue> {
        let micros = self.now.get();
        let Some(instant) = DateTime::from_timestamp_micros(micros) else {
            return exec_err!("the epoch's time {micros} is beyond the calendar");
        };
        let local = instant.with_timezone(&self.zone).naive_local();
        Ok(match self.reading {
            Reading::Timestamp => {
                ScalarValue::TimestampMicrosecond(Some(micros), Some(self.zone.name().into()))
            }
            Reading::Date => {
                let days =
                    local.date().num_days_from_ce() - NaiveDate::default().num_days_from_ce();
                ScalarValue::Date32(Some(days))
            }
            Reading::Time => {
                let seconds = i64::from(local.time().num_seconds_from_midnight());
                let nanos = seconds * 1_000_000_000 + i64::from(local.time().nanosecond());
                ScalarValue::Time64Nanosecond(Some(nanos))
            }
            Reading::Local => {
                let micros = local.and_utc().timestamp_micros();
                ScalarValue::TimestampMicrosecond(Some(micros), None)
            }
        })
    }
}

impl PartialEq for Now {
    fn eq(&self, other: &Self) -> bool {
        self.reading == other.reading && self.zone == other.zone
    }
}

impl Eq for Now {}

impl Hash for Now {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.reading.hash(state);
        self.zone.hash(state);
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        self.reading.name()
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
    fn parser(&self, text: &DataType, formats: &[Option<&ScalarValue>]) -> DfResult<Option<Parse>> {
        let constants: Option<Vec<&str>> = (formats.iter())
            .map(|format| format.and_then(|format| format.try_as_str().flatten()))
            .collect();
        match constants {
            Some(formats) if !formats.is_empty() && is_text(text) => {
                Parse::new(self.zone, &formats).map(Some)
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
                let func = Arc::new(ScalarUDF::from(parser));
                let call = ScalarFunction::new_udf(func, vec![text.clone()]);
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

/// `to_timestamp(text)` with its formats compiled; the first one that fits is taken.
#[derive(Debug)]
struct Parse {
    zone: Tz,
    formats: Vec<String>,
    compiled: Vec<TimestampFormat>,
    signature: Signature,
}

impl Parse {
    fn new(zone: Tz, formats: &[&str]) -> DfResult<Self> {
        let compiled = (formats.iter())
            .map(|format| TimestampFormat::compile(format, zone))
            .collect::<crate::Result<Vec<_>>>();
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => return plan_err!("{}", error.message),
        };
        let formats = formats.iter().map(|&format| format.to_owned()).collect();
        let signature = Signature::any(1, Volatility::Immutable);
        Ok(Self { zone, formats, compiled, signature })
    }

    fn parse(&self, text: &str) -> DfResult<Micros> {
        let mut instants = self.compiled.iter().map(|format| format.parse(text.as_bytes()));
        instants.find_map(|instant| instant).ok_or_else(|| {
            let formats = self.formats.join("' or '");
            DataFusionError::Execution(format!("'{text}' is no time of the form '{formats}'"))
        })
    }
}

impl PartialEq for Parse {
    fn eq(&self, other: &Self) -> bool {
        self.zone == other.zone && self.formats == other.formats
    }
}

impl Eq for Parse {}

impl Hash for Parse {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.zone.hash(state);
        self.formats.hash(state);
    }
}

impl ScalarUDFImpl for Parse {
    fn name(&self) -> &str {
        "to_timestamp"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(timestamp_type(self.zone))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let Some(text) = args.args.first() else {
            return internal_err!("to_timestamp was called without an argument");
        };
        let zone: Arc<str> = self.zone.name().into();
        let array = match text {
            ColumnarValue::Scalar(value) => match value.try_as_str() {
                Some(text) => {
                    let instant = text.map(|text| self.parse(text)).transpose()?;
                    let value = ScalarValue::TimestampMicrosecond(instant, Some(zone));
                    return Ok(ColumnarValue::Scalar(value));
                }
                None => return exec_err!("to_timestamp with a format reads text only"),
            },
            ColumnarValue::Array(array) => cast(array, &DataType::Utf8)?,
        };
        let instants = (array.as_string::<i32>().iter())
            .map(|text| text.map(|text| self.parse(text)).transpose())
            .collect::<DfResult<TimestampMicrosecondArray>>()?;
        debug_assert_eq!(instants.len(), array.len());
        Ok(ColumnarValue::Array(Arc::new(instants.with_timezone(zone))))
    }
}
