//! Chunks to record batches: JSON objects, read by the schema, straight into Arrow's buffers.
//!
//! - Every message of a chunk ends in exactly one of three ways: as a row of the batch, as a
//!   [`RejectedMessage`] with its column, reason and bytes, or as a counted tombstone. One bad message
//!   never takes a good one with it, and leaves nothing in the batch.
//! - What RFC 8259 allows is accepted (objects nested up to 128 deep), and nothing else. A record
//!   holds one object or several, separated by white space, newlines among them.
//! - Keys are expected in the order of the message before, and found in any order. A key that
//!   comes twice: the last wins. Unknown keys are checked, skipped and counted.
//! - A declared type takes from other kinds of value what loses nothing: "12", 12.0 and 1e1 are
//!   BIGINTs, 12.5 is none; 12 is the VARCHAR "12"; "true" is a BOOLEAN. BYTEA is hexadecimal.
//!
//! ```text
//!            shape: `, "room": `        column: Utf8
//!  scanner ──────────────────────► key ─────────────► value ──► ... ──► row, or rolled back
//!            (piece by piece if it differs)
//! ```

mod civil_date;
mod column;
mod key_order;
mod local_zone;
mod number;
mod rejection;
mod scanner;
mod text_builder;
pub mod timestamp;
mod timestamp_layout;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{self, DataType, Schema, SchemaRef};
use chrono_tz::Tz;

use crate::source::chunk::Chunk;
use crate::{Error, Kind, Result};
use column::Column;
use key_order::{Shape, Target};
use scanner::{Scan, Scanner, Syntax};
pub use timestamp::TimestampFormat;

/// A payload column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The key in the message, case and all.
    pub name: String,
    /// Its type. Timestamps are in microseconds.
    pub data_type: DataType,
    /// Whether the key may be missing or null.
    pub nullable: bool,
    /// A TIMESTAMP's declared format; without one it is RFC 3339.
    pub format: Option<String>,
}

/// What a chunk held.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The good messages: the payload columns, in order.
    pub batch: RecordBatch,
    /// Of each row: the index of its record in the chunk. Ascending.
    pub records: Vec<u32>,
    /// Of each row: which message of its record it was, from 0.
    pub positions: Vec<u32>,
    /// The bad messages, in order.
    pub rejected: Vec<RejectedMessage>,
    /// Records without a value.
    pub tombstones: u64,
    /// Keys of good messages that are no columns.
    pub unknown_fields: u64,
}

/// A message that is no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedMessage {
    /// The index of its record in the chunk.
    pub record: u32,
    /// Which message of its record it was, from 0.
    pub position: u32,
    /// The column that refused it, if one did.
    pub column: Option<String>,
    /// Rejection.
    pub reason: Rejection,
    /// Where it stands in the chunk's bytes.
    pub bytes: Range<u32>,
}

/// Rejection a message is no row. `Display` says it to people with value and place, [`Rejection::as_str`]
/// is a word for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What kind of fault it is.
    pub kind: Reason,
    text: String,
}

impl Rejection {
    /// A word for metrics: one of few, whatever the message holds.
    pub fn as_str(&self) -> &'static str {
        self.kind.as_str()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The kinds of fault that make a message no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not what RFC 8259 allows, or followed by something else on its line.
    NotJson,
    /// Nested more than 128 deep.
    TooDeep,
    /// JSON, but no object.
    NotAnObject,
    /// A record without a byte but white space.
    Empty,
    /// Not UTF-8.
    InvalidUtf8,
    /// The key of a NOT NULL column is missing.
    Missing,
    /// The value of a NOT NULL column is null.
    Null,
    /// A value of another kind, from which the column's type cannot be had without loss.
    WrongType,
    /// A number beyond the column's type.
    OutOfRange,
    /// A text that is no timestamp in the column's format.
    BadTimestamp,
    /// A text that is no ISO date.
    BadDate,
}

impl Reason {
    /// A word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::NotJson => "not_json",
            Reason::TooDeep => "too_deep",
            Reason::NotAnObject => "not_an_object",
            Reason::Empty => "empty",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::Missing => "missing",
            Reason::Null => "null",
            Reason::WrongType => "wrong_type",
            Reason::OutOfRange => "out_of_range",
            Reason::BadTimestamp => "bad_timestamp",
            Reason::BadDate => "bad_date",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::NotJson => "not valid JSON",
            Reason::TooDeep => "nested more than 128 deep",
            Reason::NotAnObject => "not a JSON object",
            Reason::Empty => "empty",
            Reason::InvalidUtf8 => "not valid UTF-8",
            Reason::Missing => "missing, but the column is NOT NULL",
            Reason::Null => "null, but the column is NOT NULL",
            Reason::WrongType => "not a value of the column's type",
            Reason::OutOfRange => "out of the range of the column's type",
            Reason::BadTimestamp => "not a timestamp in the column's format",
            Reason::BadDate => "not an ISO date (2019-10-30)",
        })
    }
}

/// Rejection a message is refused, and by which column.
type Refusal = (Option<usize>, Reason);

/// Decodes chunks of JSON by a schema.
#[derive(Debug)]
pub struct Decoder {
    schema: SchemaRef,
    /// As declared, to say what was wanted.
    fields: Vec<Field>,
    names: HashMap<Vec<u8>, usize>,
    row: Row,
    shape: Shape,
}

/// The rows so far, and the one that is being read.
#[derive(Debug)]
struct Row {
    columns: Vec<Column>,
    /// Complete rows.
    rows: usize,
    /// Columns that have a value for the next row.
    filled: usize,
    /// Columns that refused theirs.
    refused: Vec<(usize, Reason)>,
    unknown_fields: u64,
    /// Strings without their escapes.
    scratch: Vec<u8>,
}

impl Decoder {
    /// A decoder for `fields`; timestamps without an offset are local times of `zone`.
    ///
    /// Fails for types that JSON cannot be read as, and formats that are not supported.
    pub fn new(fields: Vec<Field>, zone: Tz) -> Result<Self> {
        let mut columns = Vec::with_capacity(fields.len());
        let mut names = HashMap::with_capacity(fields.len());
        let mut declared = Vec::with_capacity(fields.len());
        for (index, Field { name, data_type, nullable, format }) in fields.iter().enumerate() {
            columns.push(Column::new(name, data_type, *nullable, format.as_deref(), zone)?);
            if names.insert(name.clone().into_bytes(), index).is_some() {
                return Err(Error::sql(format!("column '{name}' is declared twice")));
            }
            declared.push(datatypes::Field::new(name, data_type.clone(), *nullable));
        }
        let row = Row {
            columns,
            rows: 0,
            filled: 0,
            refused: Vec::new(),
            unknown_fields: 0,
            scratch: Vec::new(),
        };
        let schema = Arc::new(Schema::new(declared));
        Ok(Self { schema, fields, names, row, shape: Shape::default() })
    }

    /// The schema of the batches: the fields, in order.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Decodes every record of the chunk, in order.
    ///
    /// Fails only for chunks of 2 GiB and more, and for defects of Millstream.
    pub fn decode(&mut self, chunk: &Chunk) -> Result<Decoded> {
        if i32::try_from(chunk.bytes.len()).is_err() {
            let message = format!("a chunk of {} bytes is too large", chunk.bytes.len());
            return Err(Error::new(Kind::Data, message));
        }
        let mut out = Output {
            ascii: ascii_part(chunk),
            records: Vec::with_capacity(chunk.records.len()),
            positions: Vec::with_capacity(chunk.records.len()),
            rejected: Vec::new(),
        };
        let mut tombstones = 0;
        self.row.begin_batch();
        for (index, record) in (0u32..).zip(&chunk.records) {
            match &record.value {
                Some(value) => self.record(&chunk.bytes, value, index, &mut out),
                None => tombstones += 1,
            }
        }
        let Output { records, positions, rejected, .. } = out;
        let arrays = self.row.columns.iter_mut().map(Column::finish).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.row.rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)?;
        let unknown_fields = self.row.unknown_fields;
        Ok(Decoded { batch, records, positions, rejected, tombstones, unknown_fields })
    }

    /// Decodes the messages of one record.
    fn record(&mut self, bytes: &[u8], value: &Range<u32>, record: u32, out: &mut Output) {
        let (start, end) = (value.start as usize, value.end as usize);
        let mut scanner = Scanner::new(bytes, start, end);
        let ascii = out.ascii.start <= start && end <= out.ascii.end;
        let utf8 = ascii || std::str::from_utf8(scanner.rest()).is_ok();
        let mut position = 0;
        loop {
            scanner.skip_white_space();
            if scanner.at_end() {
                break;
            }
            let begin = scanner.position();
            let unknown_fields = self.row.unknown_fields;
            let refusal = self.message(&mut scanner, utf8).err();
            match refusal {
                None => {
                    self.row.rows += 1;
                    out.records.push(record);
                    out.positions.push(position);
                }
                Some((column, kind)) => {
                    self.row.roll_back();
                    self.row.unknown_fields = unknown_fields;
                    let field = column.map(|index| &self.fields[index]);
                    let own = begin..scanner.position();
                    let text = rejection::explain(kind, field, bytes, own.clone(), end);
                    let column = field.map(|field| field.name.clone());
                    let (reason, bytes) =
                        (Rejection { kind, text }, own.start as u32..own.end as u32);
                    out.rejected.push(RejectedMessage { record, position, column, reason, bytes });
                }
            }
            position += 1;
        }
        if position == 0 {
            let kind = Reason::Empty;
            let (column, bytes) = (None, value.clone());
            let reason = Rejection { kind, text: kind.to_string() };
            out.rejected.push(RejectedMessage { record, position, column, reason, bytes });
        }
    }

    /// Reads one message; good or bad, the scanner passes all of it.
    #[inline]
    fn message(&mut self, scanner: &mut Scanner<'_>, utf8: bool) -> Result<(), Refusal> {
        let begin = scanner.position();
        let is_object = scanner.peek() == Some(b'{');
        let read = if is_object { self.object(scanner) } else { scanner.skip_value(0) };
        let mut end = scanner.position();
        let read = read.and_then(|()| scanner.separator());
        if read.is_err() {
            scanner.resynchronise(begin);
            end = scanner.position();
        }
        if !utf8 && std::str::from_utf8(scanner.between(begin, end)).is_err() {
            scanner.move_to(end);
            return Err((None, Reason::InvalidUtf8));
        }
        let outcome = match read {
            Ok(()) if is_object => self.row.complete(),
            Ok(()) => Err((None, Reason::NotAnObject)),
            Err(Syntax::NotJson) => Err((None, Reason::NotJson)),
            Err(Syntax::TooDeep) => Err((None, Reason::TooDeep)),
        };
        if outcome.is_err() {
            scanner.move_to(end);
        }
        outcome
    }

    /// Reads one object into the row.
    #[inline]
    fn object(&mut self, scanner: &mut Scanner<'_>) -> Scan<()> {
        let mut slot = 0;
        loop {
            let target = match self.shape.next(&mut slot, scanner) {
                Some(target) => target,
                None => {
                    let (names, scratch) = (&self.names, &mut self.row.scratch);
                    let column = |key: &[u8]| names.get(key).copied();
                    self.shape.read(&mut slot, scanner, scratch, column)?
                }
            };
            match target {
                Target::Column(index) => self.row.read(index, scanner)?,
                Target::Unknown => {
                    self.row.unknown_fields += 1;
                    scanner.skip_value(1)?;
                }
                Target::End => return Ok(()),
            }
        }
    }
}

/// What [`Decoder::decode`] fills besides the columns.
struct Output {
    /// Where all bytes are known to be ASCII.
    ascii: Range<usize>,
    records: Vec<u32>,
    positions: Vec<u32>,
    rejected: Vec<RejectedMessage>,
}

/// The part of the chunk's bytes from its first value to its last, if it is all ASCII: then no
/// record needs to be checked for UTF-8.
fn ascii_part(chunk: &Chunk) -> Range<usize> {
    let mut values = chunk.records.iter().filter_map(|record| record.value.clone());
    let Some(first) = values.next() else { return 0..0 };
    let last = values.next_back().unwrap_or_else(|| first.clone());
    let part = first.start as usize..last.end as usize;
    match chunk.bytes.get(part.clone()) {
        Some(bytes) if bytes.is_ascii() => part,
        _ => 0..0,
    }
}

impl Row {
    /// Forgets what an earlier batch may have left behind when it failed.
    fn begin_batch(&mut self) {
        self.rows = 0;
        self.unknown_fields = 0;
        self.roll_back();
    }

    /// Reads the value at which the scanner stands into a column.
    #[inline]
    fn read(&mut self, index: usize, scanner: &mut Scanner<'_>) -> Scan<()> {
        let column = &mut self.columns[index];
        if column.len() > self.rows {
            column.truncate(self.rows);
            self.filled -= 1;
        }
        if !self.refused.is_empty() {
            self.refused.retain(|(refused, _)| *refused != index);
        }
        match column.read(scanner, 1, &mut self.scratch)? {
            Ok(()) => self.filled += 1,
            Err(reason) => self.refused.push((index, reason)),
        }
        Ok(())
    }

    /// Ends the row's object: every column has one value more, or the row is refused.
    #[inline]
    fn complete(&mut self) -> Result<(), Refusal> {
        if self.filled != self.columns.len() {
            self.complete_missing()?;
        }
        self.filled = 0;
        Ok(())
    }

    fn complete_missing(&mut self) -> Result<(), Refusal> {
        if let Some((index, reason)) = self.refused.first() {
            return Err((Some(*index), *reason));
        }
        for (index, column) in self.columns.iter_mut().enumerate() {
            if column.len() == self.rows {
                column.null(Reason::Missing).map_err(|reason| (Some(index), reason))?;
            }
        }
        Ok(())
    }

    /// Takes back what the row left in the columns.
    fn roll_back(&mut self) {
        self.columns.iter_mut().for_each(|column| column.truncate(self.rows));
        self.refused.clear();
        self.filled = 0;
    }
}
