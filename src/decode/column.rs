//! Builds one column: reads JSON values and produces an Arrow array.
//!
//! A column holds `len` values. A rejected value leaves nothing in the column;
//! [`ColumnBuilder::truncate`] removes the values of a rejected row. A declared type accepts another
//! kind of JSON value only if no information is lost: see [`ColumnBuilder::push_text`] and
//! [`ColumnBuilder::push_number`].

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array,
    Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array, ListArray,
    NullBufferBuilder, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{BooleanBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DataType, Decimal128Type, FieldRef, Fields, TimeUnit,
    validate_decimal_precision_and_scale,
};
use chrono_tz::Tz;

use crate::decode::civil_date;
use crate::decode::key_order::{KeyOrder, ValueTarget};
use crate::decode::number::Number;
use crate::decode::reason::Reason;
use crate::decode::scanner::{ScanResult, Scanner};
use crate::decode::text_builder::TextBuilder;
use crate::decode::timestamp::TimestampFormat;
use crate::{Error, Result};

/// Whether a column accepted a value, or the reason why it rejected it. Syntax errors are reported
/// separately, by [`ScanResult`].
pub(super) type ValueResult = Result<(), Reason>;

/// The values of one column read so far.
#[derive(Debug)]
pub(super) struct ColumnBuilder {
    len: usize,
    nullable: bool,
    /// The validity bitmap. Used only if `nullable`.
    nulls: NullBufferBuilder,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Boolean(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal { values: Vec<i128>, precision: u8, scale: i8, limit: i128 },
    Date(Vec<i32>),
    Timestamp { values: Vec<i64>, format: TimestampFormat, zone: Option<Arc<str>> },
    Text(TextBuilder),
    Binary(TextBuilder),
    List { offsets: Vec<i32>, item: FieldRef, values: Box<ColumnBuilder> },
    Struct { fields: Fields, columns: Vec<ColumnBuilder>, key_order: KeyOrder },
}

impl ColumnBuilder {
    /// Creates an empty column of `data_type`. `name` appears in errors; `format` is the declared format
    /// of a TIMESTAMP. Timestamps without an offset are local times in `zone`.
    pub fn new(
        name: &str,
        data_type: &DataType,
        nullable: bool,
        format: Option<&str>,
        zone: Tz,
    ) -> Result<Self> {
        if format.is_some() && !matches!(data_type, DataType::Timestamp(..)) {
            let message = format!("column '{name}' has a FORMAT but is not a TIMESTAMP");
            return Err(Error::sql(message));
        }
        let child = |field: &FieldRef| {
            ColumnBuilder::new(field.name(), field.data_type(), field.is_nullable(), None, zone)
        };
        let values = match data_type {
            DataType::Boolean => Values::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Int8 => Values::Int8(Vec::new()),
            DataType::Int16 => Values::Int16(Vec::new()),
            DataType::Int32 => Values::Int32(Vec::new()),
            DataType::Int64 => Values::Int64(Vec::new()),
            DataType::Float32 => Values::Float32(Vec::new()),
            DataType::Float64 => Values::Float64(Vec::new()),
            DataType::Date32 => Values::Date(Vec::new()),
            DataType::Utf8 => Values::Text(TextBuilder::new()),
            DataType::Binary => Values::Binary(TextBuilder::new()),
            DataType::Decimal128(precision, scale) => {
                validate_decimal_precision_and_scale::<Decimal128Type>(*precision, *scale)?;
                let limit = 10i128.pow(u32::from((*precision).min(DECIMAL128_MAX_PRECISION)));
                Values::Decimal { values: Vec::new(), precision: *precision, scale: *scale, limit }
            }
            DataType::Timestamp(TimeUnit::Microsecond, display_zone) => {
                let format = match format {
                    Some(format) => TimestampFormat::compile(format, zone)?,
                    None => TimestampFormat::rfc3339(zone),
                };
                Values::Timestamp { values: Vec::new(), format, zone: display_zone.clone() }
            }
            DataType::List(item) => Values::List {
                offsets: vec![0],
                item: Arc::clone(item),
                values: Box::new(child(item)?),
            },
            DataType::Struct(fields) => Values::Struct {
                fields: fields.clone(),
                columns: fields.iter().map(child).collect::<Result<_>>()?,
                key_order: KeyOrder::default(),
            },
            other => {
                let message = format!("column '{name}': cannot decode JSON as {other}");
                return Err(Error::sql(message).hint(
                    "use BOOLEAN, SMALLINT, INT, BIGINT, REAL, DOUBLE, DECIMAL, DATE, TIMESTAMP, \
                     VARCHAR, BYTEA, or arrays and structs of these",
                ));
            }
        };
        Ok(Self { len: 0, nullable, nulls: NullBufferBuilder::new(0), values })
    }

    /// The number of values.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads the value at the scanner's position, which is inside `depth` objects and arrays.
    /// The scanner advances past the value, accepted or rejected, unless it is not valid JSON.
    #[inline]
    pub fn read(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> ScanResult<ValueResult> {
        match scanner.peek() {
            Some(b'"') => {
                let start = scanner.position() + 1;
                let text = scanner.string()?;
                match &mut self.values {
                    Values::Text(builder) if !text.escaped => {
                        builder.push_from(text.raw, scanner.window(start));
                        Ok(self.count_value())
                    }
                    Values::Text(builder) => {
                        builder.push_escaped(text.raw);
                        Ok(self.count_value())
                    }
                    _ => Ok(self.push_text(text.value(scratch))),
                }
            }
            Some(b'-' | b'0'..=b'9') => {
                let mut number = Number::default();
                scanner.number(&mut number)?;
                Ok(self.push_number(&number))
            }
            _ => self.read_other(scanner, depth, scratch),
        }
    }

    /// Reads a value that is neither a string nor a number.
    fn read_other(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> ScanResult<ValueResult> {
        match (scanner.peek(), &mut self.values) {
            (Some(b't'), _) => scanner.literal(b"true").map(|()| self.push_boolean(true)),
            (Some(b'f'), _) => scanner.literal(b"false").map(|()| self.push_boolean(false)),
            (Some(b'n'), _) => scanner.literal(b"null").map(|()| self.push_null(Reason::Null)),
            (Some(b'['), Values::List { .. }) => self.read_list(scanner, depth, scratch),
            (Some(b'{'), Values::Struct { .. }) => self.read_object(scanner, depth, scratch),
            _ => scanner.skip_value(depth).map(|()| Err(Reason::WrongType)),
        }
    }

    /// Counts a non-null value after it was pushed.
    #[inline]
    fn count_value(&mut self) -> ValueResult {
        self.len += 1;
        if self.nullable {
            self.nulls.append_non_null();
        }
        Ok(())
    }

    /// Pushes a string: unchanged for VARCHAR, otherwise parsed as a value of the column's type.
    #[inline]
    pub fn push_text(&mut self, text: &[u8]) -> ValueResult {
        match &mut self.values {
            Values::Text(builder) => builder.push(text),
            Values::Timestamp { values, format, .. } if !format.is_epoch() => {
                values.push(format.parse(text).ok_or(Reason::BadTimestamp)?);
            }
            Values::Date(values) => values.push(civil_date::parse(text).ok_or(Reason::BadDate)?),
            Values::Binary(builder) => builder.push_hex(text)?,
            Values::Boolean(_) => {
                return match text {
                    b"true" => self.push_boolean(true),
                    b"false" => self.push_boolean(false),
                    _ => Err(Reason::WrongType),
                };
            }
            _ => return self.push_number(&Number::parse(text).ok_or(Reason::WrongType)?),
        }
        self.count_value()
    }

    /// Pushes a number: its value if the type represents it exactly (DOUBLE and REAL: the nearest
    /// value), or its text for VARCHAR.
    #[inline]
    pub fn push_number(&mut self, number: &Number<'_>) -> ValueResult {
        match &mut self.values {
            Values::Int64(values) => values.push(number.integer()?),
            Values::Int32(values) => values.push(narrow_integer(number)?),
            Values::Int16(values) => values.push(narrow_integer(number)?),
            Values::Int8(values) => values.push(narrow_integer(number)?),
            Values::Float64(values) => values.push(number.double()?),
            Values::Float32(values) => values.push(number.real()?),
            Values::Text(builder) => builder.push(number.text),
            Values::Timestamp { values, format, .. } => values.push(format.number(number)?),
            Values::Decimal { values, scale, limit, .. } => {
                let value = number.scaled(i32::from(*scale))?;
                if value.abs() >= *limit {
                    return Err(Reason::OutOfRange);
                }
                values.push(value);
            }
            _ => return Err(Reason::WrongType),
        }
        self.count_value()
    }

    fn push_boolean(&mut self, value: bool) -> ValueResult {
        let Values::Boolean(values) = &mut self.values else { return Err(Reason::WrongType) };
        values.append(value);
        self.count_value()
    }

    /// Pushes a null; a NOT NULL column rejects it with `reason`.
    pub fn push_null(&mut self, reason: Reason) -> ValueResult {
        if !self.nullable {
            return Err(reason);
        }
        self.nulls.append_null();
        self.push_placeholder();
        Ok(())
    }

    /// Pushes a value below a null of this column or of an enclosing struct.
    fn push_placeholder(&mut self) {
        self.len += 1;
        match &mut self.values {
            Values::Boolean(values) => values.append(false),
            Values::Int8(values) => values.push(0),
            Values::Int16(values) => values.push(0),
            Values::Int32(values) | Values::Date(values) => values.push(0),
            Values::Int64(values) | Values::Timestamp { values, .. } => values.push(0),
            Values::Float32(values) => values.push(0.0),
            Values::Float64(values) => values.push(0.0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Text(builder) | Values::Binary(builder) => builder.end(),
            Values::List { offsets, values, .. } => offsets.push(values.len as i32),
            Values::Struct { columns, .. } => {
                for column in columns {
                    if column.push_null(Reason::Null).is_err() {
                        column.push_placeholder();
                    }
                }
            }
        }
    }

    /// Reads an array as a list. The scanner is at the opening bracket.
    fn read_list(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> ScanResult<ValueResult> {
        let Values::List { offsets, values, .. } = &mut self.values else {
            return Ok(Err(Reason::WrongType));
        };
        let start = values.len;
        let (mut result, mut first) = (Ok(()), true);
        scanner.enter(depth)?;
        while scanner.element(first)? {
            first = false;
            match result {
                Ok(()) => result = values.read(scanner, depth + 1, scratch)?,
                Err(_) => scanner.skip_value(depth + 1)?,
            }
        }
        if result.is_err() {
            values.truncate(start);
            return Ok(result);
        }
        offsets.push(values.len as i32);
        Ok(self.count_value())
    }

    /// Reads an object as a struct. If a key occurs twice, the last value counts. Unknown keys are
    /// skipped.
    fn read_object(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> ScanResult<ValueResult> {
        let Values::Struct { fields, columns, key_order } = &mut self.values else {
            return Ok(Err(Reason::WrongType));
        };
        let row = self.len;
        let mut rejected: Vec<(usize, Reason)> = Vec::new();
        let (mut filled, mut next_segment) = (0, 0);
        scanner.check_depth(depth)?;
        loop {
            let target = match key_order.match_next(&mut next_segment, scanner) {
                Some(target) => target,
                None => key_order.read_next(&mut next_segment, scanner, scratch, |key| {
                    fields.iter().position(|field| field.name().as_bytes() == key)
                })?,
            };
            match target {
                ValueTarget::Column(index) => {
                    let column = &mut columns[index];
                    if column.len > row {
                        column.truncate(row);
                        filled -= 1;
                    }
                    rejected.retain(|(rejected, _)| *rejected != index);
                    match column.read(scanner, depth + 1, scratch)? {
                        Ok(()) => filled += 1,
                        Err(reason) => rejected.push((index, reason)),
                    }
                }
                ValueTarget::Unknown => scanner.skip_value(depth + 1)?,
                ValueTarget::End => break,
            }
        }
        if filled == columns.len() {
            return Ok(self.count_value());
        }
        let missing = columns.iter_mut().filter(|column| column.len == row);
        let result = match rejected.first() {
            Some((_, reason)) => Err(*reason),
            None => { missing }.try_for_each(|column| column.push_null(Reason::Missing)),
        };
        if result.is_err() {
            columns.iter_mut().for_each(|column| column.truncate(row));
            return Ok(result);
        }
        Ok(self.count_value())
    }

    /// Retains only the first `len` values.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.values {
            Values::Boolean(values) => values.truncate(len),
            Values::Int8(values) => values.truncate(len),
            Values::Int16(values) => values.truncate(len),
            Values::Int32(values) | Values::Date(values) => values.truncate(len),
            Values::Int64(values) | Values::Timestamp { values, .. } => values.truncate(len),
            Values::Float32(values) => values.truncate(len),
            Values::Float64(values) => values.truncate(len),
            Values::Decimal { values, .. } => values.truncate(len),
            Values::Text(builder) | Values::Binary(builder) => builder.truncate(len),
            Values::List { offsets, values, .. } => {
                offsets.truncate(len + 1);
                values.truncate(offsets.last().map_or(0, |&end| end as usize));
            }
            Values::Struct { columns, .. } => {
                columns.iter_mut().for_each(|column| column.truncate(len));
            }
        }
        if len < self.len {
            self.len = len;
            if self.nullable {
                self.nulls.truncate(len);
            }
        }
    }

    /// Returns the values as an array and leaves the column empty, with capacity for as many values.
    ///
    /// Text columns are built without validation: the decoder has rolled back rows of messages that
    /// are not valid UTF-8.
    pub fn finish(&mut self) -> Result<ArrayRef> {
        let len = std::mem::take(&mut self.len);
        let nulls = if self.nullable { self.nulls.finish() } else { None };
        Ok(match &mut self.values {
            Values::Boolean(values) => {
                let values = std::mem::replace(values, BooleanBufferBuilder::new(len));
                Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls))
            }
            Values::Int8(values) => Arc::new(Int8Array::try_new(finish_values(values), nulls)?),
            Values::Int16(values) => Arc::new(Int16Array::try_new(finish_values(values), nulls)?),
            Values::Int32(values) => Arc::new(Int32Array::try_new(finish_values(values), nulls)?),
            Values::Int64(values) => Arc::new(Int64Array::try_new(finish_values(values), nulls)?),
            Values::Float32(values) => {
                Arc::new(Float32Array::try_new(finish_values(values), nulls)?)
            }
            Values::Float64(values) => {
                Arc::new(Float64Array::try_new(finish_values(values), nulls)?)
            }
            Values::Date(values) => Arc::new(Date32Array::try_new(finish_values(values), nulls)?),
            Values::Decimal { values, precision, scale, .. } => Arc::new(
                Decimal128Array::try_new(finish_values(values), nulls)?
                    .with_precision_and_scale(*precision, *scale)?,
            ),
            Values::Timestamp { values, zone, .. } => Arc::new(
                TimestampMicrosecondArray::try_new(finish_values(values), nulls)?
                    .with_timezone_opt(zone.clone()),
            ),
            Values::Text(builder) => {
                let (offsets, bytes) = builder.finish();
                debug_assert!(StringArray::try_new(offsets.clone(), bytes.clone(), None).is_ok());
                // SAFETY: the decoder rolls back every row of a message that is not UTF-8. The
                // values are whole strings or numbers of valid messages, or results of `unescape`.
                Arc::new(unsafe { StringArray::new_unchecked(offsets, bytes, nulls) })
            }
            Values::Binary(builder) => {
                let (offsets, bytes) = builder.finish();
                Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?)
            }
            Values::List { offsets, item, values } => {
                let offsets =
                    OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
                Arc::new(ListArray::try_new(Arc::clone(item), offsets, values.finish()?, nulls)?)
            }
            Values::Struct { fields, columns, .. } => {
                let arrays =
                    columns.iter_mut().map(ColumnBuilder::finish).collect::<Result<_>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, nulls, len)?)
            }
        })
    }
}

/// The number as an integer of a type narrower than BIGINT.
#[inline]
fn narrow_integer<T: TryFrom<i64>>(number: &Number<'_>) -> Result<T, Reason> {
    T::try_from(number.integer()?).map_err(|_| Reason::OutOfRange)
}

/// Moves the values into a buffer and leaves an empty vector of the same capacity.
fn finish_values<T: arrow::datatypes::ArrowNativeType>(values: &mut Vec<T>) -> ScalarBuffer<T> {
    let empty = Vec::with_capacity(values.len());
    ScalarBuffer::from(std::mem::replace(values, empty))
}
