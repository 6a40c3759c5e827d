//! One column being filled: JSON values in, an Arrow array out.
//!
//! A column holds `len` values. A value that is refused leaves nothing behind; a row that is
//! refused is taken back by [`Column::truncate`]. What a declared type takes from another kind of
//! JSON value is only what loses nothing: see [`Column::text`] and [`Column::number`].

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

use crate::decode::Reason;
use crate::decode::civil_date;
use crate::decode::key_order::{Shape, Target};
use crate::decode::number::Number;
use crate::decode::scanner::{Scan, Scanner};
use crate::decode::text_builder::Runs;
use crate::decode::timestamp::TimestampFormat;
use crate::{Error, Result};

/// What became of a value: taken, or refused for a reason. (That the text is JSON at all is
/// another question: [`Scan`].)
pub(super) type Taken = Result<(), Reason>;

/// The values of one column so far.
#[derive(Debug)]
pub(super) struct Column {
    len: usize,
    nullable: bool,
    /// Used only if `nullable`.
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
    Text(Runs),
    Binary(Runs),
    List { offsets: Vec<i32>, item: FieldRef, values: Box<Column> },
    Struct { fields: Fields, columns: Vec<Column>, shape: Shape },
}

impl Column {
    /// An empty column of `data_type`; `name` is for errors, `format` for timestamps.
    pub fn new(
        name: &str,
        data_type: &DataType,
        nullable: bool,
        format: Option<&str>,
        zone: Tz,
    ) -> Result<Self> {
        if format.is_some() && !matches!(data_type, DataType::Timestamp(..)) {
            let message = format!("column '{name}' has a FORMAT, but is no TIMESTAMP");
            return Err(Error::sql(message));
        }
        let of = |field: &FieldRef| {
            Column::new(field.name(), field.data_type(), field.is_nullable(), None, zone)
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
            DataType::Utf8 => Values::Text(Runs::new()),
            DataType::Binary => Values::Binary(Runs::new()),
            DataType::Decimal128(precision, scale) => {
                validate_decimal_precision_and_scale::<Decimal128Type>(*precision, *scale)?;
                let limit = 10i128.pow(u32::from((*precision).min(DECIMAL128_MAX_PRECISION)));
                Values::Decimal { values: Vec::new(), precision: *precision, scale: *scale, limit }
            }
            DataType::Timestamp(TimeUnit::Microsecond, shown) => {
                let format = match format {
                    Some(format) => TimestampFormat::compile(format, zone)?,
                    None => TimestampFormat::rfc3339(zone),
                };
                Values::Timestamp { values: Vec::new(), format, zone: shown.clone() }
            }
            DataType::List(item) => Values::List {
                offsets: vec![0],
                item: Arc::clone(item),
                values: Box::new(of(item)?),
            },
            DataType::Struct(fields) => Values::Struct {
                fields: fields.clone(),
                columns: fields.iter().map(of).collect::<Result<_>>()?,
                shape: Shape::default(),
            },
            other => {
                let message = format!("column '{name}': JSON cannot be read as {other}");
                return Err(Error::sql(message).hint(
                    "use BOOLEAN, SMALLINT, INT, BIGINT, REAL, DOUBLE, DECIMAL, DATE, TIMESTAMP, \
                     VARCHAR, BYTEA, or arrays and structs of these",
                ));
            }
        };
        Ok(Self { len: 0, nullable, nulls: NullBufferBuilder::new(0), values })
    }

    /// How many values it holds.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reads the value at which the scanner stands, which is inside `depth` objects and arrays.
    /// The scanner passes it, taken or refused, unless it is no JSON.
    #[inline]
    pub fn read(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> Scan<Taken> {
        match scanner.peek() {
            Some(b'"') => {
                let start = scanner.position() + 1;
                let text = scanner.string()?;
                match &mut self.values {
                    Values::Text(runs) if !text.escaped => {
                        runs.push_from(text.raw, scanner.window(start));
                        Ok(self.pushed())
                    }
                    Values::Text(runs) => {
                        runs.push_escaped(text.raw);
                        Ok(self.pushed())
                    }
                    _ => Ok(self.text(text.value(scratch))),
                }
            }
            Some(b'-' | b'0'..=b'9') => {
                let mut number = Number::default();
                scanner.number(&mut number)?;
                Ok(self.number(&number))
            }
            _ => self.read_rare(scanner, depth, scratch),
        }
    }

    fn read_rare(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> Scan<Taken> {
        match (scanner.peek(), &mut self.values) {
            (Some(b't'), _) => scanner.literal(b"true").map(|()| self.boolean(true)),
            (Some(b'f'), _) => scanner.literal(b"false").map(|()| self.boolean(false)),
            (Some(b'n'), _) => scanner.literal(b"null").map(|()| self.null(Reason::Null)),
            (Some(b'['), Values::List { .. }) => self.list(scanner, depth, scratch),
            (Some(b'{'), Values::Struct { .. }) => self.object(scanner, depth, scratch),
            _ => scanner.skip_value(depth).map(|()| Err(Reason::WrongType)),
        }
    }

    /// After a value was pushed.
    #[inline]
    fn pushed(&mut self) -> Taken {
        self.len += 1;
        if self.nullable {
            self.nulls.append_non_null();
        }
        Ok(())
    }

    /// A string: as it is for VARCHAR; otherwise what it spells, if that is all it spells.
    #[inline]
    pub fn text(&mut self, text: &[u8]) -> Taken {
        match &mut self.values {
            Values::Text(runs) => runs.push(text),
            Values::Timestamp { values, format, .. } if !format.is_epoch() => {
                values.push(format.parse(text).ok_or(Reason::BadTimestamp)?);
            }
            Values::Date(values) => values.push(civil_date::parse(text).ok_or(Reason::BadDate)?),
            Values::Binary(runs) => runs.push_hex(text)?,
            Values::Boolean(_) => {
                return match text {
                    b"true" => self.boolean(true),
                    b"false" => self.boolean(false),
                    _ => Err(Reason::WrongType),
                };
            }
            _ => return self.number(&Number::parse(text).ok_or(Reason::WrongType)?),
        }
        self.pushed()
    }

    /// A number: its value if the type has it exactly (DOUBLE and REAL: the nearest); its text
    /// for VARCHAR.
    #[inline]
    pub fn number(&mut self, number: &Number<'_>) -> Taken {
        match &mut self.values {
            Values::Int64(values) => values.push(number.integer()?),
            Values::Int32(values) => values.push(narrow(number)?),
            Values::Int16(values) => values.push(narrow(number)?),
            Values::Int8(values) => values.push(narrow(number)?),
            Values::Float64(values) => values.push(number.double()?),
            Values::Float32(values) => values.push(number.real()?),
            Values::Text(runs) => runs.push(number.text),
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
        self.pushed()
    }

    fn boolean(&mut self, value: bool) -> Taken {
        let Values::Boolean(values) = &mut self.values else { return Err(Reason::WrongType) };
        values.append(value);
        self.pushed()
    }

    /// A null, if the column may hold one; otherwise it is refused because of `reason`.
    pub fn null(&mut self, reason: Reason) -> Taken {
        if !self.nullable {
            return Err(reason);
        }
        self.nulls.append_null();
        self.placeholder();
        Ok(())
    }

    /// Pushes a value that a null, here or in a struct around it, hides.
    fn placeholder(&mut self) {
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
            Values::Text(runs) | Values::Binary(runs) => runs.end(),
            Values::List { offsets, values, .. } => offsets.push(values.len as i32),
            Values::Struct { columns, .. } => {
                for column in columns {
                    if column.null(Reason::Null).is_err() {
                        column.placeholder();
                    }
                }
            }
        }
    }

    fn list(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> Scan<Taken> {
        let Values::List { offsets, values, .. } = &mut self.values else {
            return Ok(Err(Reason::WrongType));
        };
        let before = values.len;
        let (mut taken, mut first) = (Ok(()), true);
        scanner.enter(depth)?;
        while scanner.element(first)? {
            first = false;
            match taken {
                Ok(()) => taken = values.read(scanner, depth + 1, scratch)?,
                Err(_) => scanner.skip_value(depth + 1)?,
            }
        }
        if taken.is_err() {
            values.truncate(before);
            return Ok(taken);
        }
        offsets.push(values.len as i32);
        Ok(self.pushed())
    }

    /// An object as a struct. A key that comes twice: the last wins. Unknown keys are skipped.
    fn object(
        &mut self,
        scanner: &mut Scanner<'_>,
        depth: u32,
        scratch: &mut Vec<u8>,
    ) -> Scan<Taken> {
        let Values::Struct { fields, columns, shape } = &mut self.values else {
            return Ok(Err(Reason::WrongType));
        };
        let row = self.len;
        let mut refused: Vec<(usize, Reason)> = Vec::new();
        let (mut filled, mut slot) = (0, 0);
        scanner.may_enter(depth)?;
        loop {
            let target = match shape.next(&mut slot, scanner) {
                Some(target) => target,
                None => shape.read(&mut slot, scanner, scratch, |key| {
                    fields.iter().position(|field| field.name().as_bytes() == key)
                })?,
            };
            match target {
                Target::Column(index) => {
                    let column = &mut columns[index];
                    if column.len > row {
                        column.truncate(row);
                        filled -= 1;
                    }
                    refused.retain(|(refused, _)| *refused != index);
                    match column.read(scanner, depth + 1, scratch)? {
                        Ok(()) => filled += 1,
                        Err(reason) => refused.push((index, reason)),
                    }
                }
                Target::Unknown => scanner.skip_value(depth + 1)?,
                Target::End => break,
            }
        }
        if filled == columns.len() {
            return Ok(self.pushed());
        }
        let missing = columns.iter_mut().filter(|column| column.len == row);
        let taken = match refused.first() {
            Some((_, reason)) => Err(*reason),
            None => { missing }.try_for_each(|column| column.null(Reason::Missing)),
        };
        if taken.is_err() {
            columns.iter_mut().for_each(|column| column.truncate(row));
            return Ok(taken);
        }
        Ok(self.pushed())
    }

    /// Keeps the first `len` values only.
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
            Values::Text(runs) | Values::Binary(runs) => runs.truncate(len),
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

    /// The values as an array; the column is empty afterwards. Fails if a text is not UTF-8.
    pub fn finish(&mut self) -> Result<ArrayRef> {
        let len = std::mem::take(&mut self.len);
        let nulls = if self.nullable { self.nulls.finish() } else { None };
        Ok(match &mut self.values {
            Values::Boolean(values) => {
                let values = std::mem::replace(values, BooleanBufferBuilder::new(len));
                Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls))
            }
            Values::Int8(values) => Arc::new(Int8Array::try_new(take(values), nulls)?),
            Values::Int16(values) => Arc::new(Int16Array::try_new(take(values), nulls)?),
            Values::Int32(values) => Arc::new(Int32Array::try_new(take(values), nulls)?),
            Values::Int64(values) => Arc::new(Int64Array::try_new(take(values), nulls)?),
            Values::Float32(values) => Arc::new(Float32Array::try_new(take(values), nulls)?),
            Values::Float64(values) => Arc::new(Float64Array::try_new(take(values), nulls)?),
            Values::Date(values) => Arc::new(Date32Array::try_new(take(values), nulls)?),
            Values::Decimal { values, precision, scale, .. } => Arc::new(
                Decimal128Array::try_new(take(values), nulls)?
                    .with_precision_and_scale(*precision, *scale)?,
            ),
            Values::Timestamp { values, zone, .. } => Arc::new(
                TimestampMicrosecondArray::try_new(take(values), nulls)?
                    .with_timezone_opt(zone.clone()),
            ),
            Values::Text(runs) => {
                let (offsets, bytes) = runs.finish();
                debug_assert!(StringArray::try_new(offsets.clone(), bytes.clone(), None).is_ok());
                // SAFETY: the decoder takes back every row of a message that is not UTF-8, and
                // values are whole strings of theirs, or have gone through `unescape`.
                Arc::new(unsafe { StringArray::new_unchecked(offsets, bytes, nulls) })
            }
            Values::Binary(runs) => {
                let (offsets, bytes) = runs.finish();
                Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?)
            }
            Values::List { offsets, item, values } => {
                let offsets =
                    OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
                Arc::new(ListArray::try_new(Arc::clone(item), offsets, values.finish()?, nulls)?)
            }
            Values::Struct { fields, columns, .. } => {
                let arrays = columns.iter_mut().map(Column::finish).collect::<Result<_>>()?;
                Arc::new(StructArray::try_new_with_length(fields.clone(), arrays, nulls, len)?)
            }
        })
    }
}

#[inline]
fn narrow<T: TryFrom<i64>>(number: &Number<'_>) -> Result<T, Reason> {
    T::try_from(number.integer()?).map_err(|_| Reason::OutOfRange)
}

/// Takes the values, leaving room for as many again.
fn take<T: arrow::datatypes::ArrowNativeType>(values: &mut Vec<T>) -> ScalarBuffer<T> {
    let room = Vec::with_capacity(values.len());
    ScalarBuffer::from(std::mem::replace(values, room))
}
