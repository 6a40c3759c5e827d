//! From the chunks of a stream to rows that passed every rule.
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

/// Rows of one chunk that passed, in offset order.
pub struct Rows {
    /// All columns of the stream.
    pub batch: RecordBatch,
    /// Event time of each row.
    pub event_time: Vec<Micros>,
    /// Per row, the index of its record in the chunk.
    pub records: Vec<u32>,
    /// Per row, its position in the record.
    pub positions: Vec<u32>,
}

/// What became of a chunk.
pub struct Read {
    /// Rows that passed.
    pub rows: Rows,
    /// Dead letters.
    pub dead: Vec<OutRecord>,
    /// Why, for the metrics: label of each dead letter.
    pub reasons: Vec<&'static str>,
    /// Records without a value.
    pub tombstones: u64,
    /// Fields of the messages that the schema does not name.
    pub unknown_fields: u64,
}

/// The decoder of a stream's payload columns.
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

/// Reads a stream's chunks. Each remembers the order of keys, and no more.
pub struct RowReader {
    plan: Arc<StreamPlan>,
    decoder: Decoder,
    event_time: usize,
}

/// Rows on their way: which message each came from.
struct Draft {
    batch: RecordBatch,
    records: Vec<u32>,
    positions: Vec<u32>,
}

impl Draft {
    fn keep(&mut self, kept: &[bool]) -> Result<()> {
        let mask = BooleanArray::from(kept.to_vec());
        self.batch = arrow::compute::filter_record_batch(&self.batch, &mask)?;
        let mut flags = kept.iter();
        self.records.retain(|_| *flags.next().unwrap_or(&false));
        let mut flags = kept.iter();
        self.positions.retain(|_| *flags.next().unwrap_or(&false));
        Ok(())
    }
}

impl RowReader {
    /// A reader of `plan`'s stream.
    pub fn new(plan: Arc<StreamPlan>, zone: Tz) -> Result<Self> {
        let decoder = decoder(&plan.stream, zone)?;
        let event_time = plan.schema.index_of(&plan.stream.watermark.column)?;
        Ok(Self { plan, decoder, event_time })
    }

    /// Decodes a chunk and applies every rule. `now` is the epoch's time, `dead_topic` where dead
    /// letters go.
    pub fn read(&mut self, chunk: &Chunk, now: Micros, dead_topic: &Arc<str>) -> Result<Read> {
        let decoded = self.decoder.decode(chunk)?;
        let mut dead =
            DeadLetters { topic: dead_topic, chunk, records: Vec::new(), reasons: Vec::new() };
        for rejected in &decoded.rejected {
            dead.rejected(rejected);
        }
        let base = self.base(chunk, decoded.batch, &decoded.records)?;
        let mut draft =
            Draft { batch: base, records: decoded.records, positions: decoded.positions };
        self.compute(&mut draft, &mut dead)?;
        let event_time = self.judge(&mut draft, chunk, now, &mut dead)?;
        let Draft { batch, records, positions } = draft;
        Ok(Read {
            rows: Rows { batch, event_time, records, positions },
            dead: dead.records,
            reasons: dead.reasons,
            tombstones: decoded.tombstones,
            unknown_fields: decoded.unknown_fields,
        })
    }

    /// Payload and metadata columns in declared order.
    fn base(&self, chunk: &Chunk, payload: RecordBatch, records: &[u32]) -> Result<RecordBatch> {
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
    fn compute(&self, draft: &mut Draft, dead: &mut DeadLetters<'_>) -> Result<()> {
        match self.plan.compute(&draft.batch) {
            Ok(batch) => draft.batch = batch,
            Err(_) => {
                let mut kept = vec![true; draft.batch.num_rows()];
                let mut good = Vec::new();
                let mut failed = Vec::new();
                self.bisect(&draft.batch, 0, &mut good, &mut failed);
                for (row, reason) in failed {
                    kept[row] = false;
                    let column = self.plan.stream.watermark.column.clone();
                    let letter = DeadLetter {
                        stage: FailureStage::Column,
                        query: None,
                        column: Some(column),
                        reason,
                    };
                    dead.row(&letter, draft.records[row], draft.positions[row], "computed_column");
                }
                draft.keep(&kept)?;
                draft.batch = arrow::compute::concat_batches(&self.plan.schema, &good)?;
            }
        }
        Ok(())
    }

    fn bisect(
        &self,
        base: &RecordBatch,
        first: usize,
        good: &mut Vec<RecordBatch>,
        failed: &mut Vec<(usize, String)>,
    ) {
        if base.num_rows() == 0 {
            return;
        }
        match self.plan.compute(base) {
            Ok(batch) => good.push(batch),
            Err(error) if base.num_rows() == 1 => failed.push((first, error.to_string())),
            Err(_) => {
                let half = base.num_rows() / 2;
                self.bisect(&base.slice(0, half), first, good, failed);
                let rest = base.num_rows() - half;
                self.bisect(&base.slice(half, rest), first + half, good, failed);
            }
        }
    }

    /// Refuses rows without an event time or with one in the future; gives the others' event times.
    fn judge(
        &self,
        draft: &mut Draft,
        chunk: &Chunk,
        now: Micros,
        dead: &mut DeadLetters<'_>,
    ) -> Result<Vec<Micros>> {
        let stream = &self.plan.stream;
        let times = draft.batch.column(self.event_time).clone();
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let mut kept = vec![true; times.len()];
        for (row, kept) in kept.iter_mut().enumerate() {
            let record = &chunk.records[draft.records[row] as usize];
            let append = (chunk.append_time && record.timestamp_ms >= 0)
                .then(|| record.timestamp_ms.saturating_mul(1_000));
            let reason = if times.is_null(row) {
                "the event time is null"
            } else if is_future(times.value(row), append, now, stream.max_future_us) {
                "the event time is further in the future than max_future allows"
            } else {
                continue;
            };
            *kept = false;
            let letter = DeadLetter {
                stage: FailureStage::EventTime,
                query: None,
                column: Some(stream.watermark.column.clone()),
                reason: reason.to_owned(),
            };
            dead.row(&letter, draft.records[row], draft.positions[row], "event_time");
        }
        if kept.contains(&false) {
            draft.keep(&kept)?;
            let times =
                draft.batch.column(self.event_time).as_primitive::<TimestampMicrosecondType>();
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
    fn rejected(&mut self, rejected: &RejectedMessage) {
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

    fn row(&mut self, letter: &DeadLetter, record: u32, position: u32, reason: &'static str) {
        let record = &self.chunk.records[record as usize];
        let origin = SourceMessage { chunk: self.chunk, record, position };
        self.records.push(letter.from_source(self.topic, origin, None));
        self.reasons.push(reason);
    }
}

/// A metadata column for the rows that `records` names.
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

/// A record's headers as a JSON object; of headers with one name the last counts.
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
