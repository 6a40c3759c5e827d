//! Answers, written as a table, CSV, JSON lines or Parquet; row by row as they come, for an answer
//! may be larger than memory.
//!
//! A table is for people: bytes that are text are shown as text, and long cells are truncated. The other formats
//! hold every value whole, bytes in CSV and JSON as hexadecimal digits, so that they can be read back.

use std::fs::File;
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::csv::WriterBuilder as CsvBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{LineDelimited, Writer as JsonWriter, WriterBuilder as JsonBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::{Error, Kind, Result, history};

/// Rows whose widths make the columns of a table; a longer answer is several tables.
const TABLE_ROWS: usize = 5_000;
/// Characters of a table's cell at most.
const CELL: usize = 100;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns and lines for people; long cells are truncated
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON object a line.
    Json,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// Returns the requested format, else the one that the extension of the file names.
    ///
    /// # Errors
    /// The extension of the file names no format.
    pub fn wanted(asked: Option<Self>, output: Option<&Path>) -> Result<Self> {
        let (None, Some(path)) = (asked, output) else { return Ok(asked.unwrap_or(Self::Table)) };
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        match ending.to_lowercase().as_str() {
            "csv" => Ok(Self::Csv),
            "json" | "jsonl" | "ndjson" => Ok(Self::Json),
            "parquet" => Ok(Self::Parquet),
            "txt" => Ok(Self::Table),
            _ => Err(Error::config(format!(
                "cannot derive a format from the file name {}",
                path.display()
            ))
            .hint("add --format csv, json, parquet or table")),
        }
    }
}

/// Writes `rows` to the file `output`, or to standard output. Returns how many there were.
///
/// A file appears under its name when it is complete. A reader that stops reading standard output
/// (`| head`) is not an error.
///
/// # Errors
/// Of the query; of the file; [`Kind::Config`] for what a format cannot hold (lists in CSV) and for
/// Parquet on a terminal.
pub async fn write(
    rows: SendableRecordBatchStream,
    format: Format,
    output: Option<&Path>,
) -> Result<usize> {
    let Some(path) = output else {
        let out = std::io::stdout();
        if format == Format::Parquet && out.is_terminal() {
            return Err(Error::config("a Parquet file is nothing for a terminal")
                .hint("name a file with --output, or redirect the output"));
        }
        return write_to(rows, format, BufWriter::new(out)).await;
    };
    let fail = |error| {
        Error::new(Kind::Storage, format!("{} cannot be written", path.display())).because(error)
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let file = File::create(&part).map_err(fail)?;
    match write_to(rows, format, BufWriter::new(file)).await {
        Ok(count) => {
            std::fs::rename(&part, path).map_err(fail)?;
            Ok(count)
        }
        Err(error) => {
            let _ = std::fs::remove_file(&part);
            Err(error)
        }
    }
}

/// Writes `rows` to `out`. Returns how many there were.
///
/// # Errors
/// As [`write()`].
pub async fn write_to<W: Write + Send>(
    mut rows: SendableRecordBatchStream,
    format: Format,
    out: W,
) -> Result<usize> {
    let mut count = 0;
    match copy(&mut rows, format, out, &mut count).await {
        Ok(()) | Err(Stop::Closed) => Ok(count),
        Err(Stop::Failed(error)) => Err(error),
    }
}

async fn copy<W: Write + Send>(
    rows: &mut SendableRecordBatchStream,
    format: Format,
    out: W,
    count: &mut usize,
) -> Result<(), Stop> {
    let mut sink = Sink::new(format, &rows.schema(), out)?;
    let failed = |error| Stop::Failed(history::sql_error(error));
    while let Some(batch) = rows.try_next().await.map_err(failed)? {
        *count += batch.num_rows();
        sink.write(&batch)?;
    }
    sink.finish()
}

/// Why writing stopped.
enum Stop {
    /// The reader has closed the pipe.
    Closed,
    Failed(Error),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(
                Error::new(Kind::Storage, "the answer cannot be written").because(error),
            ),
        }
    }
}

impl From<ArrowError> for Stop {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, error) => error.into(),
            // The CSV writer wraps what its file says in text.
            ArrowError::CsvError(text) if text.to_lowercase().contains("broken pipe") => {
                Self::Closed
            }
            other => Self::Failed(
                Error::config("this format cannot hold the answer")
                    .because(other)
                    .hint("try --format json"),
            ),
        }
    }
}

impl From<ParquetError> for Stop {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
                Ok(error) => (*error).into(),
                Err(other) => Self::Failed(unwritable().because(other)),
            },
            // What its buffer could not write at the end arrives as text.
            ParquetError::General(text) if text.to_lowercase().contains("broken pipe") => {
                Self::Closed
            }
            other => Self::Failed(unwritable().because(other)),
        }
    }
}

fn unwritable() -> Error {
    Error::new(Kind::Storage, "the answer cannot be written as Parquet")
}

enum Sink<W: Write + Send> {
    Table { out: W, schema: SchemaRef, held: Vec<RecordBatch>, rows: usize, shown: bool },
    Csv { out: W, header: bool },
    Json(JsonWriter<W, LineDelimited>),
    Parquet(Box<ArrowWriter<W>>),
}

impl<W: Write + Send> Sink<W> {
    fn new(format: Format, schema: &SchemaRef, out: W) -> Result<Self, Stop> {
        let schema = schema.clone();
        Ok(match format {
            Format::Table => Self::Table { out, schema, held: Vec::new(), rows: 0, shown: false },
            Format::Csv => {
                let mut csv = Self::Csv { out, header: true };
                // The header of an answer without rows.
                csv.write(&RecordBatch::new_empty(schema))?;
                csv
            }
            Format::Json => Self::Json(JsonBuilder::new().with_explicit_nulls(true).build(out)),
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .build();
                Self::Parquet(Box::new(ArrowWriter::try_new(out, schema, Some(properties))?))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), Stop> {
        match self {
            Self::Table { held, rows, .. } => {
                *rows += batch.num_rows();
                held.push(batch.clone());
                if *rows >= TABLE_ROWS { self.show() } else { Ok(()) }
            }
            Self::Csv { out, header } => {
                let builder = CsvBuilder::new().with_header(std::mem::take(header));
                builder.build(&mut *out).write(batch)?;
                Ok(())
            }
            Self::Json(writer) => Ok(writer.write(batch)?),
            Self::Parquet(writer) => Ok(writer.write(batch)?),
        }
    }

    /// Writes the held rows as one table.
    fn show(&mut self) -> Result<(), Stop> {
        let Self::Table { out, schema, held, rows, shown } = self else { return Ok(()) };
        if held.is_empty() {
            held.push(RecordBatch::new_empty(schema.clone()));
        }
        let readable = match is_plan(schema) {
            true => std::mem::take(held),
            false => held.drain(..).map(|rows| texts(&rows)).collect::<Result<_, _>>()?,
        };
        writeln!(out, "{}", pretty_format_batches_with_options(&readable, &options())?)?;
        *rows = 0;
        *shown = true;
        Ok(())
    }

    fn finish(mut self) -> Result<(), Stop> {
        if let Self::Table { rows, shown, .. } = &self
            && (*rows > 0 || !*shown)
        {
            self.show()?;
        }
        match self {
            Self::Table { mut out, .. } | Self::Csv { mut out, .. } => Ok(out.flush()?),
            Self::Json(mut writer) => {
                writer.finish()?;
                Ok(writer.into_inner().flush()?)
            }
            Self::Parquet(writer) => Ok(writer.into_inner()?.flush()?),
        }
    }
}

fn options() -> FormatOptions<'static> {
    FormatOptions::default().with_display_error(true)
}

/// Whether the result is that of EXPLAIN, whose lines must not be truncated.
fn is_plan(schema: &SchemaRef) -> bool {
    schema.fields().iter().any(|field| field.name() == "plan_type")
}

/// The same rows as texts for the cells of a table.
fn texts(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let options = options();
    let (mut fields, mut columns) = (Vec::new(), Vec::<ArrayRef>::new());
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        let texts: StringArray = match column.data_type() {
            DataType::Binary => {
                column.as_binary::<i32>().iter().map(|v| Some(cell(&text_or_hex(v?)))).collect()
            }
            _ => {
                let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
                let text = |row| column.is_valid(row).then(|| formatter.value(row).to_string());
                (0..rows.num_rows()).map(|row| Some(cell(&text(row)?))).collect()
            }
        };
        fields.push(Field::new(field.name(), DataType::Utf8, true));
        columns.push(Arc::new(texts));
    }
    let count = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &count)
}

/// A text on one line, cut where it is too long. Control characters would break the table, or the
/// terminal.
pub fn cell(text: &str) -> String {
    let mut plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut cell: String = plain.by_ref().take(CELL).collect();
    if plain.next().is_some() {
        cell.pop();
        cell.push('…');
    }
    cell
}

/// Bytes as the text that they are, or in hexadecimal digits if they are none.
pub fn text_or_hex(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => hex::encode(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::array::{BinaryArray, Int64Array, TimestampMicrosecondArray};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

    fn rows(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
        let schema = batches[0].schema();
        let stream = futures::stream::iter(batches.into_iter().map(Ok));
        Box::pin(RecordBatchStreamAdapter::new(schema, stream))
    }

    fn batch(numbers: Vec<Option<i64>>) -> RecordBatch {
        let times = TimestampMicrosecondArray::from(vec![1_572_138_000_000_000; numbers.len()]);
        RecordBatch::try_from_iter_with_nullable([
            ("t", Arc::new(times.with_timezone("Europe/Helsinki")) as ArrayRef, true),
            ("n", Arc::new(Int64Array::from(numbers)), true),
        ])
        .unwrap()
    }

    #[tokio::test]
    async fn every_format_holds_every_row() {
        let all = || vec![batch(vec![Some(1)]), batch(vec![None, Some(3)])];
        let text = async |format| {
            let mut out = Vec::new();
            assert_eq!(write_to(rows(all()), format, &mut out).await.unwrap(), 3);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            text(Format::Json).await.lines().nth(1),
            Some(r#"{"t":"2019-10-27T03:00:00+02:00","n":null}"#)
        );
        assert_eq!(text(Format::Csv).await.lines().next(), Some("t,n"));
        assert_eq!(text(Format::Csv).await.lines().count(), 4);
        assert!(text(Format::Table).await.contains("| 2019-10-27T03:00:00+02:00 | 3 |"));
        let mut out = Vec::new();
        write_to(rows(all()), Format::Parquet, &mut out).await.unwrap();
        let read = ParquetRecordBatchReader::try_new(bytes::Bytes::from(out), 10).unwrap();
        assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3);
    }

    #[tokio::test]
    async fn a_table_shows_text_and_cuts_and_the_other_formats_hold_all() {
        let long = "ä".repeat(1000);
        let values =
            [Some("{\"a\":\n1}".as_bytes()), Some(b"\xff\x00"), None, Some(long.as_bytes())];
        let all = RecordBatch::try_from_iter_with_nullable([
            ("value", Arc::new(BinaryArray::from_iter(values)) as ArrayRef, true),
            ("text", Arc::new(StringArray::from(vec![long.as_str(); 4])), true),
        ])
        .unwrap();
        let text = async |format| {
            let mut out = Vec::new();
            write_to(rows(vec![all.clone()]), format, &mut out).await.unwrap();
            String::from_utf8(out).unwrap()
        };
        let table = text(Format::Table).await;
        assert!(table.contains("| {\"a\": 1} "), "{table}");
        assert!(table.contains("| ff00 "), "{table}");
        let cut = format!("{}…", "ä".repeat(99));
        assert_eq!(table.matches(&format!("| {cut} |")).count(), 4, "{table}");
        assert!(table.contains(&format!("| {cut} | {cut} |")), "{table}");
        for format in [Format::Csv, Format::Json] {
            let whole = text(format).await;
            assert_eq!(whole.matches(&long).count(), 4);
            assert!(whole.contains("7b2261223a0a317d") && whole.contains("ff00"), "{whole}");
        }
    }

    #[tokio::test]
    async fn a_plan_is_not_cut() {
        let plan = "x".repeat(200) + "\nsecond line";
        let all = RecordBatch::try_from_iter([
            ("plan_type", Arc::new(StringArray::from(vec!["logical_plan"])) as ArrayRef),
            ("plan", Arc::new(StringArray::from(vec![plan]))),
        ])
        .unwrap();
        let mut out = Vec::new();
        write_to(rows(vec![all]), Format::Table, &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(&"x".repeat(200)) && text.contains("| second line"), "{text}");
    }

    #[tokio::test]
    async fn no_rows_are_a_header_and_a_closed_pipe_is_no_error() {
        let none = || rows(vec![batch(vec![])]);
        let mut out = Vec::new();
        write_to(none(), Format::Csv, &mut out).await.unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "t,n\n");
        let mut out = Vec::new();
        write_to(none(), Format::Table, &mut out).await.unwrap();
        assert!(String::from_utf8(out).unwrap().contains("| t | n |"));

        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        for format in [Format::Table, Format::Csv, Format::Json, Format::Parquet] {
            let many = rows(vec![batch(vec![Some(1); 20_000])]);
            let written = write_to(many, format, Closed).await;
            assert!(written.is_ok(), "{format:?}: {written:?}");
        }
    }
}
