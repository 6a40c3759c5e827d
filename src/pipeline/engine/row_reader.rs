//! Turns the chunks of a stream into valid rows and dead letters.
//!
//! ```text
//! chunk ─► decode ─► computed columns ─► event time known and not in the future ─► rows
//!             └───────────┴──────────────────────────┴──────► dead letters
//! ```

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use chrono_tz::Tz;

use crate::catalog::{ColumnSource, Metadata, Stream};
use crate::decode::{Decoder, Field, RejectedMessage};
use crate::planner::StreamPlan;
use crate::sink::{DeadLetter, FailureStage, SourceMessage};
use crate::source::chunk::{Chunk, Record};
use crate::time::Micros;
use crate::types::OutRecord;
use crate::watermark::is_future;
use crate::{Error, Result};

/// The valid rows of one chunk, in offset order.
pub struct ValidRows {
    /// All columns of the stream.
    pub batch: RecordBatch,
    /// Event time of each row.
    pub event_time: Vec<Micros>,
    /// Per row, the index of its record in the chunk.
    pub records: Vec<u32>,
    /// Per row, its position in the record.
    pub positions: Vec<u32>,
}

/// A chunk that was read.
pub struct ReadChunk {
    /// The valid rows.
    pub rows: ValidRows,
    /// Dead letters.
    pub dead_letters: Vec<OutRecord>,
    /// The metrics label of each dead letter.
    pub reasons: Vec<&'static str>,
    /// The number of records without a value.
    pub tombstones: u64,
    /// The number of fields in the messages that the schema does not name.
    pub unknown_fields: u64,
}

/// Creates the decoder of a stream's payload columns.
pub fn decoder(stream: &Stream, zone: Tz) -> Result<Decoder> {
    let fields = stream.columns.iter().filter_map(|column| match &column.source {
        ColumnSource::Payload { format } => Some(Field {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            nullable: column.nullable,
            format: format.clone(),
        }),
        _ => None,
    });
    Decoder::new(fields.collect(), zone)
}

/// Reads a stream's chunks. The decoder remembers the order of JSON keys between chunks; that
/// changes its speed, never its results.
pub struct RowReader {
    plan: Arc<StreamPlan>,
    decoder: Decoder,
    event_time: usize,
}

/// Rows that are still being checked.
struct CandidateRows {
    batch: RecordBatch,
    records: Vec<u32>,
    positions: Vec<u32>,
}

impl CandidateRows {
    /// Drops the rows that are not valid.
    fn retain(&mut self, valid: &[bool]) -> Result<()> {
        let mask = BooleanArray::from(valid.to_vec());
        self.batch = arrow::compute::filter_record_batch(&self.batch, &mask)?;
        let mut flags = valid.iter();
        self.records.retain(|_| *flags.next().unwrap_or(&false));
        let mut flags = valid.iter();
        self.positions.retain(|_| *flags.next().unwrap_or(&false));
        Ok(())
    }
}

impl RowReader {
    /// Creates a reader of `plan`'s stream.
    ///
    /// # Errors
    /// The decoder cannot be made, or the schema lacks the event-time column.
    pub fn new(plan: Arc<StreamPlan>, zone: Tz) -> Result<Self> {
        let decoder = decoder(&plan.stream, zone)?;
        let event_time = plan.schema.index_of(&plan.stream.watermark.column)?;
        Ok(Self { plan, decoder, event_time })
    }

    /// Decodes a chunk, adds computed columns and checks event times. `now` is the epoch's time;
    /// `dead_topic` is the topic of dead letters.
    ///
    /// # Errors
    /// Fails only for what no row causes; rows that fail become dead letters.
    pub fn read(&mut self, chunk: &Chunk, now: Micros, dead_topic: &Arc<str>) -> Result<ReadChunk> {
        let decoded = self.decoder.decode(chunk)?;
        let mut dead =
            DeadLetters { topic: dead_topic, chunk, records: Vec::new(), reasons: Vec::new() };
        for rejected in &decoded.rejected {
            dead.add_rejected(rejected);
        }
        let batch = self.base_columns(chunk, decoded.batch, &decoded.records)?;
        let (records, positions) = (decoded.records, decoded.positions);
        let mut candidates = CandidateRows { batch, records, positions };
        self.add_computed_columns(&mut candidates, &mut dead)?;
        let event_time = self.check_event_times(&mut candidates, chunk, now, &mut dead)?;
        let CandidateRows { batch, records, positions } = candidates;
        Ok(ReadChunk {
            rows: ValidRows { batch, event_time, records, positions },
            dead_letters: dead.records,
            reasons: dead.reasons,
            tombstones: decoded.tombstones,
            unknown_fields: decoded.unknown_fields,
        })
    }

    /// Returns the payload and metadata columns in declared order.
    fn base_columns(
        &self,
        chunk: &Chunk,
        payload: RecordBatch,
        records: &[u32],
    ) -> Result<RecordBatch> {
        let schema = self.plan.base_schema();
        let mut payload = payload.columns().iter().cloned();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
        for column in &self.plan.stream.columns {
            match &column.source {
                ColumnSource::Payload { .. } => {
                    let next = payload.next();
                    columns
                        .push(next.ok_or_else(|| Error::internal("a decoded column is missing"))?);
                }
                ColumnSource::Metadata(kind) => {
                    columns.push(metadata(chunk, records, *kind, &column.data_type)?);
                }
                ColumnSource::Computed(_) => {}
            }
        }
        let options =
            arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(records.len()));
        Ok(RecordBatch::try_new_with_options(schema, columns, &options)?)
    }

    /// Adds the computed columns; rows for which one fails become dead letters.
    fn add_computed_columns(
        &self,
        candidates: &mut CandidateRows,
        dead: &mut DeadLetters<'_>,
    ) -> Result<()> {
        match self.plan.compute(&candidates.batch) {
            Ok(batch) => candidates.batch = batch,
            Err(_) => {
                let mut valid = vec![true; candidates.batch.num_rows()];
                let mut computed = Vec::new();
                let mut failed = Vec::new();
                self.compute_by_bisection(&candidates.batch, 0, &mut computed, &mut failed);
                for (row, reason) in failed {
                    valid[row] = false;
                    let column = self.plan.stream.watermark.column.clone();
                    let letter = DeadLetter {
                        stage: FailureStage::Column,
                        query: None,
                        column: Some(column),
                        reason,
                    };
                    dead.add_row(
                        &letter,
                        candidates.records[row],
                        candidates.positions[row],
                        "computed_column",
                    );
                }
                candidates.retain(&valid)?;
                candidates.batch = arrow::compute::concat_batches(&self.plan.schema, &computed)?;
            }
        }
        Ok(())
    }

    /// Computes the columns of `base`, whose first row has the index `first`. If that fails, halves
    /// the batch until only rows that fail are left out.
    fn compute_by_bisection(
        &self,
        base: &RecordBatch,
        first: usize,
        computed: &mut Vec<RecordBatch>,
        failed: &mut Vec<(usize, String)>,
    ) {
        if base.num_rows() == 0 {
            return;
        }
        match self.plan.compute(base) {
            Ok(batch) => computed.push(batch),
            Err(error) if base.num_rows() == 1 => failed.push((first, error.to_string())),
            Err(_) => {
                let half = base.num_rows() / 2;
                self.compute_by_bisection(&base.slice(0, half), first, computed, failed);
                let rest = base.num_rows() - half;
                self.compute_by_bisection(&base.slice(half, rest), first + half, computed, failed);
            }
        }
    }

    /// Rejects rows without an event time or with one too far in the future. Returns the event
    /// times of the other rows.
    fn check_event_times(
        &self,
        candidates: &mut CandidateRows,
        chunk: &Chunk,
        now: Micros,
        dead: &mut DeadLetters<'_>,
    ) -> Result<Vec<Micros>> {
        let stream = &self.plan.stream;
        let times = candidates.batch.column(self.event_time).clone();
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let mut valid = vec![true; times.len()];
        for (row, is_valid) in valid.iter_mut().enumerate() {
            let record = &chunk.records[candidates.records[row] as usize];
            let append_time = (chunk.append_time && record.timestamp_ms >= 0)
                .then(|| record.timestamp_ms.saturating_mul(1_000));
            let reason = if times.is_null(row) {
                "the event time is null"
            } else if is_future(times.value(row), append_time, now, stream.max_future_us) {
                "the event time is further in the future than max_future allows"
            } else {
                continue;
            };
            *is_valid = false;
            let letter = DeadLetter {
                stage: FailureStage::EventTime,
                query: None,
                column: Some(stream.watermark.column.clone()),
                reason: reason.to_owned(),
            };
            dead.add_row(&letter, candidates.records[row], candidates.positions[row], "event_time");
        }
        if valid.contains(&false) {
            candidates.retain(&valid)?;
            let times =
                candidates.batch.column(self.event_time).as_primitive::<TimestampMicrosecondType>();
            return Ok(times.values().to_vec());
        }
        Ok(times.values().to_vec())
    }
}

/// Collects a chunk's dead letters.
struct DeadLetters<'a> {
    topic: &'a Arc<str>,
    chunk: &'a Chunk,
    records: Vec<OutRecord>,
    reasons: Vec<&'static str>,
}

impl DeadLetters<'_> {
    /// Adds a message, or a part of one, that the decoder rejected.
    fn add_rejected(&mut self, rejected: &RejectedMessage) {
        let record = &self.chunk.records[rejected.record as usize];
        let letter = DeadLetter {
            stage: FailureStage::Decode,
            query: None,
            column: rejected.column.clone(),
            reason: rejected.reason.to_string(),
        };
        let bytes = rejected.bytes.start as usize..rejected.bytes.end as usize;
        let origin = SourceMessage { chunk: self.chunk, record, position: rejected.position };
        let value = Some(self.chunk.bytes.slice(bytes));
        self.records.push(letter.from_source(self.topic, origin, value));
        self.reasons.push(rejected.reason.as_str());
    }

    /// Adds a decoded row.
    fn add_row(&mut self, letter: &DeadLetter, record: u32, position: u32, reason: &'static str) {
        let record = &self.chunk.records[record as usize];
        let origin = SourceMessage { chunk: self.chunk, record, position };
        self.records.push(letter.from_source(self.topic, origin, None));
        self.reasons.push(reason);
    }
}

/// Makes a metadata column for the rows of `records`, which has indices into the chunk.
fn metadata(
    chunk: &Chunk,
    records: &[u32],
    kind: Metadata,
    data_type: &DataType,
) -> Result<ArrayRef> {
    let count = records.len();
    let rows = || records.iter().map(|&index| &chunk.records[index as usize]);
    let array: ArrayRef = match kind {
        Metadata::Topic => Arc::new(StringArray::from(vec![chunk.topic.as_ref(); count])),
        Metadata::Partition => Arc::new(Int32Array::from(vec![chunk.partition; count])),
        Metadata::Offset => Arc::new(Int64Array::from_iter_values(rows().map(|r| r.offset))),
        Metadata::Key => match data_type {
            DataType::Binary => Arc::new(rows().map(|r| chunk.key(r)).collect::<BinaryArray>()),
            _ => Arc::new(rows().map(|r| text(chunk.key(r))).collect::<StringArray>()),
        },
        Metadata::Timestamp => {
            let instants =
                rows().map(|r| (r.timestamp_ms >= 0).then(|| r.timestamp_ms.saturating_mul(1_000)));
            Arc::new(
                TimestampMicrosecondArray::from_iter(instants).with_data_type(data_type.clone()),
            )
        }
        Metadata::Headers => {
            Arc::new(StringArray::from_iter_values(rows().map(|r| headers(chunk, r))))
        }
    };
    if array.data_type() == data_type {
        Ok(array)
    } else {
        Ok(arrow::compute::cast(&array, data_type)?)
    }
}

fn text(bytes: Option<&[u8]>) -> Option<String> {
    bytes.map(|b| String::from_utf8_lossy(b).into_owned())
}

/// Returns a record's headers as a JSON object. Of headers with the same name, the last one counts.
fn headers(chunk: &Chunk, record: &Record) -> String {
    let object: serde_json::Map<_, _> = chunk
        .headers(record)
        .map(|(name, value)| {
            let name = String::from_utf8_lossy(name).into_owned();
            (name, value.map(String::from_utf8_lossy).into())
        })
        .collect();
    serde_json::Value::Object(object).to_string()
}
