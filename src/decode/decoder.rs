//! The decoder: turns the records of a chunk into a record batch and rejected messages.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{self, Schema, SchemaRef};
use chrono_tz::Tz;

use crate::decode::column::ColumnBuilder;
use crate::decode::field::Field;
use crate::decode::key_order::{KeyOrder, ValueTarget};
use crate::decode::reason::Reason;
use crate::decode::rejection::{self, RejectedMessage, Rejection};
use crate::decode::scanner::{ScanResult, Scanner, SyntaxError};
use crate::source::chunk::Chunk;
use crate::{Error, Kind, Result};

/// The result of decoding one chunk.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The valid messages as rows: the payload columns, in declared order.
    pub batch: RecordBatch,
    /// For each row, the index of its record in the chunk. Ascending.
    pub records: Vec<u32>,
    /// For each row, the index of its message within the record, from 0.
    pub positions: Vec<u32>,
    /// The rejected messages, in order.
    pub rejected: Vec<RejectedMessage>,
    /// The number of records without a value.
    pub tombstones: u64,
    /// The number of keys in valid messages that match no column.
    pub unknown_fields: u64,
}

/// The column that rejected a message, if one did, and the reason.
type RowRejection = (Option<usize>, Reason);

/// Decodes chunks of JSON records into batches of one schema.
#[derive(Debug)]
pub struct Decoder {
    schema: SchemaRef,
    /// The declared fields, for error descriptions.
    fields: Vec<Field>,
    names: HashMap<Vec<u8>, usize>,
    row: RowBuilder,
    key_order: KeyOrder,
}

/// The complete rows of the batch, and the row that is being read.
#[derive(Debug)]
struct RowBuilder {
    columns: Vec<ColumnBuilder>,
    /// The number of complete rows.
    rows: usize,
    /// The number of columns that have a value for the row being read.
    filled: usize,
    /// The columns that rejected their value in the row being read.
    rejected: Vec<(usize, Reason)>,
    unknown_fields: u64,
    /// A buffer for unescaped strings.
    scratch: Vec<u8>,
}

impl Decoder {
    /// Creates a decoder for `fields`. Timestamps without an offset are local times in `zone`.
    ///
    /// Fails if a type cannot be decoded from JSON, a format is not supported, or a name is declared
    /// twice.
    pub fn new(fields: Vec<Field>, zone: Tz) -> Result<Self> {
        let mut columns = Vec::with_capacity(fields.len());
        let mut names = HashMap::with_capacity(fields.len());
        let mut declared = Vec::with_capacity(fields.len());
        for (index, Field { name, data_type, nullable, format }) in fields.iter().enumerate() {
            columns.push(ColumnBuilder::new(name, data_type, *nullable, format.as_deref(), zone)?);
            if names.insert(name.clone().into_bytes(), index).is_some() {
                return Err(Error::sql(format!("column '{name}' is declared twice")));
            }
            declared.push(datatypes::Field::new(name, data_type.clone(), *nullable));
        }
        let row = RowBuilder {
            columns,
            rows: 0,
            filled: 0,
            rejected: Vec::new(),
            unknown_fields: 0,
            scratch: Vec::new(),
        };
        let schema = Arc::new(Schema::new(declared));
        Ok(Self { schema, fields, names, row, key_order: KeyOrder::default() })
    }

    /// The schema of the batches: the fields, in order.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Decodes every record of the chunk, in order.
    ///
    /// Fails only if the chunk has 2 GiB or more, or on an internal error.
    pub fn decode(&mut self, chunk: &Chunk) -> Result<Decoded> {
        if i32::try_from(chunk.bytes.len()).is_err() {
            let message =
                format!("a chunk of {} bytes is too large (limit: 2 GiB)", chunk.bytes.len());
            return Err(Error::new(Kind::Data, message));
        }
        let mut out = DecodedRows {
            ascii: ascii_range(chunk),
            records: Vec::with_capacity(chunk.records.len()),
            positions: Vec::with_capacity(chunk.records.len()),
            rejected: Vec::new(),
        };
        let mut tombstones = 0;
        self.row.begin_batch();
        for (index, record) in (0u32..).zip(&chunk.records) {
            match &record.value {
                Some(value) => self.decode_record(&chunk.bytes, value, index, &mut out),
                None => tombstones += 1,
            }
        }
        let DecodedRows { records, positions, rejected, .. } = out;
        let arrays =
            self.row.columns.iter_mut().map(ColumnBuilder::finish).collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(self.row.rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)?;
        let unknown_fields = self.row.unknown_fields;
        Ok(Decoded { batch, records, positions, rejected, tombstones, unknown_fields })
    }

    /// Decodes the messages of one record.
    fn decode_record(
        &mut self,
        bytes: &[u8],
        value: &Range<u32>,
        record: u32,
        out: &mut DecodedRows,
    ) {
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
            let rejection = self.decode_message(&mut scanner, utf8).err();
            match rejection {
                None => {
                    self.row.rows += 1;
                    out.records.push(record);
                    out.positions.push(position);
                }
                Some((column, kind)) => {
                    self.row.roll_back();
                    self.row.unknown_fields = unknown_fields;
                    let field = column.map(|index| &self.fields[index]);
                    let message = begin..scanner.position();
                    let text = rejection::describe(kind, field, bytes, message.clone(), end);
                    let column = field.map(|field| field.name.clone());
                    let (reason, bytes) =
                        (Rejection { kind, text }, message.start as u32..message.end as u32);
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

    /// Decodes one message. The scanner advances past the whole message even if it is rejected.
    #[inline]
    fn decode_message(
        &mut self,
        scanner: &mut Scanner<'_>,
        utf8: bool,
    ) -> Result<(), RowRejection> {
        let begin = scanner.position();
        let is_object = scanner.peek() == Some(b'{');
        let read = if is_object { self.read_object(scanner) } else { scanner.skip_value(0) };
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
            Err(SyntaxError::NotJson) => Err((None, Reason::NotJson)),
            Err(SyntaxError::TooDeep) => Err((None, Reason::TooDeep)),
        };
        if outcome.is_err() {
            scanner.move_to(end);
        }
        outcome
    }

    /// Reads one object into the row being built.
    #[inline]
    fn read_object(&mut self, scanner: &mut Scanner<'_>) -> ScanResult<()> {
        let mut next_segment = 0;
        loop {
            let target = match self.key_order.match_next(&mut next_segment, scanner) {
                Some(target) => target,
                None => {
                    let (names, scratch) = (&self.names, &mut self.row.scratch);
                    let column = |key: &[u8]| names.get(key).copied();
                    self.key_order.read_next(&mut next_segment, scanner, scratch, column)?
                }
            };
            match target {
                ValueTarget::Column(index) => self.row.read(index, scanner)?,
                ValueTarget::Unknown => {
                    self.row.unknown_fields += 1;
                    scanner.skip_value(1)?;
                }
                ValueTarget::End => return Ok(()),
            }
        }
    }
}

/// The outputs of [`Decoder::decode`] besides the columns.
struct DecodedRows {
    /// The range of the chunk's bytes that is known to be ASCII.
    ascii: Range<usize>,
    records: Vec<u32>,
    positions: Vec<u32>,
    rejected: Vec<RejectedMessage>,
}

/// Returns the byte range from the first to the last value if all of it is ASCII, otherwise an
/// empty range. Records in the range need no UTF-8 check.
fn ascii_range(chunk: &Chunk) -> Range<usize> {
    let mut values = chunk.records.iter().filter_map(|record| record.value.clone());
    let Some(first) = values.next() else { return 0..0 };
    let last = values.next_back().unwrap_or_else(|| first.clone());
    let part = first.start as usize..last.end as usize;
    match chunk.bytes.get(part.clone()) {
        Some(bytes) if bytes.is_ascii() => part,
        _ => 0..0,
    }
}

impl RowBuilder {
    /// Resets the state that a failed batch may have left behind.
    fn begin_batch(&mut self) {
        self.rows = 0;
        self.unknown_fields = 0;
        self.roll_back();
    }

    /// Reads the value at the scanner's position into column `index`. If the key occurred before in
    /// this object, the new value replaces the earlier one.
    #[inline]
    fn read(&mut self, index: usize, scanner: &mut Scanner<'_>) -> ScanResult<()> {
        let column = &mut self.columns[index];
        if column.len() > self.rows {
            column.truncate(self.rows);
            self.filled -= 1;
        }
        if !self.rejected.is_empty() {
            self.rejected.retain(|(rejected, _)| *rejected != index);
        }
        match column.read(scanner, 1, &mut self.scratch)? {
            Ok(()) => self.filled += 1,
            Err(reason) => self.rejected.push((index, reason)),
        }
        Ok(())
    }

    /// Completes the row: on success every column has one more value. Missing values become nulls.
    #[inline]
    fn complete(&mut self) -> Result<(), RowRejection> {
        if self.filled != self.columns.len() {
            self.fill_missing()?;
        }
        self.filled = 0;
        Ok(())
    }

    fn fill_missing(&mut self) -> Result<(), RowRejection> {
        if let Some((index, reason)) = self.rejected.first() {
            return Err((Some(*index), *reason));
        }
        for (index, column) in self.columns.iter_mut().enumerate() {
            if column.len() == self.rows {
                column.push_null(Reason::Missing).map_err(|reason| (Some(index), reason))?;
            }
        }
        Ok(())
    }

    /// Removes the values of the row being read from all columns.
    fn roll_back(&mut self) {
        self.columns.iter_mut().for_each(|column| column.truncate(self.rows));
        self.rejected.clear();
        self.filled = 0;
    }
}
