//! The tail of the output topics: results, late rows and dead letters, read back into history.
//!
//! An output's table is a copy of its topic, and it is made by reading the topic `read_committed`,
//! so it holds what readers of the topic see, each record once, however the pipeline died.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::history::{self, TableSpec, Writer};
use crate::pipeline::engine::{Engine, publication};
use crate::pipeline::history::Tables;
use crate::pipeline::{PipelineConfig, history_root};
use crate::sink::{self, Publication, headers};
use crate::source::chunk::{Chunk, Record};
use crate::source::{Cluster, Event, Isolation, KafkaConfig, Reader, blocking};
use crate::time::Micros;
use crate::types::TopicPartition;
use crate::{Error, Result};

/// How often commits are looked at when nothing comes.
const LOOK: Duration = Duration::from_millis(500);

/// The running tail of a customer.
pub struct OutputArchiver {
    task: JoinHandle<Result<()>>,
    finish: watch::Sender<bool>,
    /// See [`Tables::waits`].
    pub waits: watch::Receiver<Option<Micros>>,
}

/// Why a tail ended before it was told to; never, where there is none.
pub async fn failure(tail: &mut Option<OutputArchiver>) -> Error {
    let Some(tail) = tail else { return std::future::pending().await };
    match (&mut tail.task).await {
        Ok(Err(error)) => error,
        _ => Error::internal("the history of results ended"),
    }
}

impl Drop for OutputArchiver {
    /// Whoever goes on with the tables must be alone with them.
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How the records of a topic become rows.
enum Shape {
    /// Values are JSON objects of these columns.
    Rows(SchemaRef),
    /// The same, with keys; a null value deletes its key.
    Keyed(SchemaRef),
    /// Late rows: as rows, and where the row came from has names of its own.
    Late(SchemaRef),
    /// Dead letters: bytes, and headers that say what they are.
    DeadLetters,
}

struct Task {
    /// By topic, as are the tables.
    shapes: HashMap<Arc<str>, Shape>,
    tables: Tables<Arc<str>>,
    reader: Reader,
    positions: HashMap<TopicPartition, i64>,
    kafka: KafkaConfig,
    finish: watch::Receiver<bool>,
}

impl OutputArchiver {
    /// Opens the tables of every output and reads each topic on from where its table ends.
    pub async fn start(
        engine: &Engine,
        options: &PipelineConfig,
        cluster_id: &str,
    ) -> Result<Self> {
        let root = history_root(&options.data_dir);
        let wanted = outputs(engine);
        let kafka = options.kafka.clone();
        let topics: Vec<Arc<str>> = wanted.iter().map(|(topic, ..)| topic.clone()).collect();
        let lows = blocking(move || {
            let cluster = Cluster::connect(&kafka)?;
            let (mut lows, mut ids) = (Vec::new(), Vec::new());
            for topic in topics {
                ids.extend(cluster.topic_id(&topic)?.map(|id| (topic.clone(), id)));
                for partition in cluster.partitions(&topic)? {
                    let partition = TopicPartition { topic: topic.clone(), partition };
                    lows.push((partition.clone(), cluster.watermarks(&partition)?.0));
                }
            }
            Ok((lows, ids))
        });
        let tables = open(wanted, &root, cluster_id);
        let ((lows, ids), (shapes, mut writers)) = tokio::try_join!(lows, tables)?;
        for (topic, id) in ids {
            writers.values_mut().for_each(|writer| writer.identify(&topic, &id));
        }
        let mut positions = HashMap::new();
        for (partition, low) in lows {
            let Some(writer) = writers.get(&partition.topic) else { continue };
            let kept = writer.position(&partition.topic, partition.partition);
            positions.insert(partition, kept.unwrap_or(low).max(low));
        }
        let group = format!("millstream.{}.history", engine.customer.name);
        let reader = Reader::start(&options.kafka, &group, Isolation::Committed)?;
        let assigned: Vec<_> = positions.iter().map(|(p, &at)| (p.clone(), at)).collect();
        reader.assign(&assigned)?;
        let (finish, finishing) = watch::channel(false);
        let tables = Tables::new(writers, options);
        let waits = tables.waits();
        let kafka = options.kafka.clone();
        let task = Task { shapes, tables, reader, positions, kafka, finish: finishing };
        Ok(Self { task: tokio::spawn(task.run()), finish, waits })
    }

    /// Reads to the end that the topics have now, commits, and stops.
    pub async fn finish(mut self) -> Result<()> {
        self.finish.send_replace(true);
        (&mut self.task)
            .await
            .map_err(|e| Error::internal("the history of results failed").because(e))?
    }
}

/// By topic, how its records become rows.
type Shapes = HashMap<Arc<str>, Shape>;
/// By topic, who writes its table.
type Writers = HashMap<Arc<str>, Writer>;

/// The table of every output topic of a customer.
fn outputs(engine: &Engine) -> Vec<(Arc<str>, Shape, TableSpec)> {
    let customer = &engine.customer.name;
    let zone = engine.customer.zone.name();
    let mut wanted = Vec::new();
    for query in &engine.queries {
        let plan = &query.plan;
        let keyed = publication(plan) != Publication::Append;
        let key = keyed.then(|| {
            query.sink.key().iter().map(|&i| plan.output.field(i).name().clone()).collect()
        });
        let schema = nullable(&query.sink.schema(&plan.output));
        let time = (!keyed).then(|| time_column(&plan.output, plan.event_time)).flatten();
        let spec = TableSpec::new(customer, &plan.name, &schema, time.as_deref(), key, zone);
        let shape = if keyed { Shape::Keyed(schema) } else { Shape::Rows(schema) };
        wanted.push((query.sink.topic.clone(), shape, spec));
    }
    for (name, stage) in &engine.streams {
        let schema = nullable(&sink::late_schema(&stage.plan.schema, zone));
        let table = format!("{name}_late");
        let time = stage.plan.stream.watermark.column.as_str();
        let spec = TableSpec::new(
            customer,
            &table,
            &history::delta_table::late_schema(&schema),
            Some(time),
            None,
            zone,
        );
        wanted.push((sink::late_topic(customer, name), Shape::Late(schema), spec));
    }
    let spec = TableSpec::new(customer, "dead_letters", &dead_letter_schema(), None, None, zone);
    wanted.push((sink::dead_letter_topic(customer), Shape::DeadLetters, spec));
    wanted
}

/// Opens the tables of output topics, all at once.
async fn open(
    wanted: Vec<(Arc<str>, Shape, TableSpec)>,
    root: &Path,
    cluster: &str,
) -> Result<(Shapes, Writers)> {
    let opened = wanted.into_iter().map(|(topic, shape, spec)| async move {
        let writer = Writer::open(root, spec, cluster).await?;
        Ok::<_, Error>(((topic.clone(), shape), (topic, writer)))
    });
    Ok(futures::future::try_join_all(opened).await?.into_iter().unzip())
}

/// The output column that dates a result: `window_start`, or what carries event time.
fn time_column(output: &SchemaRef, event_time: Option<usize>) -> Option<String> {
    let window = output.index_of("window_start").ok();
    let index = window.or(event_time)?;
    let field = output.field(index);
    matches!(field.data_type(), DataType::Timestamp(..)).then(|| field.name().clone())
}

fn nullable(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

impl Task {
    async fn run(mut self) -> Result<()> {
        loop {
            tokio::select! {
                event = self.reader.next() => self.take(event?).await?,
                _ = self.finish.changed() => return self.finish_reading().await,
                () = tokio::time::sleep(LOOK) => {}
            }
            self.tables.commit_due(false).await?;
        }
    }

    async fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Chunk(chunk) => {
                let partition =
                    TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
                let at = self.positions.entry(partition).or_insert(0);
                let chunk = if chunk.first_offset < *at { chunk.slice(*at) } else { chunk };
                *at = chunk.next_offset.max(*at);
                let Some(shape) = self.shapes.get(&chunk.topic) else { return Ok(()) };
                let Some(writer) = self.tables.writer(&chunk.topic).await? else { return Ok(()) };
                let rows = shape.rows(&chunk, &writer.spec().schema)?;
                writer.append(&chunk.topic, chunk.partition, &rows, chunk.next_offset).await
            }
            Event::End { partition, position } => {
                let at = self.positions.entry(partition).or_insert(0);
                *at = position.max(*at);
                Ok(())
            }
        }
    }

    async fn finish_reading(mut self) -> Result<()> {
        let kafka = self.kafka.clone();
        let partitions: Vec<_> = self.positions.keys().cloned().collect();
        let ends = blocking(move || {
            let cluster = Cluster::connect(&kafka)?;
            let ends =
                partitions.into_iter().map(|p| cluster.watermarks(&p).map(|(_, high)| (p, high)));
            ends.collect::<Result<Vec<_>>>()
        });
        let ends = ends.await?;
        while ends.iter().any(|(p, end)| self.positions.get(p).is_none_or(|at| at < end)) {
            let event = self.reader.next().await?;
            self.take(event).await?;
        }
        self.tables.commit_all().await
    }
}

impl Shape {
    /// The rows of a chunk in the columns of `table`.
    fn rows(&self, chunk: &Chunk, table: &SchemaRef) -> Result<RecordBatch> {
        let (batch, records) = match self {
            Self::Rows(schema) | Self::Late(schema) => {
                let records: Vec<_> = chunk.records.iter().filter(|r| r.value.is_some()).collect();
                (json(schema, records.iter().filter_map(|r| chunk.value(r)))?, records)
            }
            Self::Keyed(schema) => {
                let records: Vec<_> =
                    chunk.records.iter().filter(|r| r.value.is_some() || r.key.is_some()).collect();
                let values = records.iter().filter_map(|r| chunk.value(r).or_else(|| chunk.key(r)));
                (json(schema, values)?, records)
            }
            Self::DeadLetters => {
                let records: Vec<_> = chunk.records.iter().collect();
                (dead_letters(chunk, &records)?, records)
            }
        };
        let own = ["_topic", "_partition", "_offset", "_position", "_timestamp", "_deleted"];
        let mut payload: Box<dyn Iterator<Item = ArrayRef>> = match self {
            // The payload's own `_topic` and so on have other names in the table.
            Self::Late(_) => Box::new(batch.columns().to_vec().into_iter()),
            _ => Box::new(
                (batch.schema().fields().iter().zip(batch.columns()))
                    .filter(|(f, _)| !own.contains(&f.name().as_str()))
                    .map(|(_, c)| c.clone())
                    .collect::<Vec<_>>()
                    .into_iter(),
            ),
        };
        let mut columns = Vec::with_capacity(table.fields().len());
        for field in table.fields() {
            let column = match field.name().as_str() {
                "_topic" => Arc::new(StringArray::from(vec![chunk.topic.as_ref(); records.len()]))
                    as ArrayRef,
                "_partition" => Arc::new(Int32Array::from(vec![chunk.partition; records.len()])),
                "_offset" => {
                    Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.offset)))
                }
                "_position" => Arc::new(Int32Array::from(vec![0; records.len()])),
                "_timestamp" => {
                    let times = records.iter().map(|r| r.timestamp_ms.max(0).saturating_mul(1_000));
                    let array = TimestampMicrosecondArray::from_iter_values(times);
                    Arc::new(array.with_data_type(field.data_type().clone()))
                }
                "_deleted" => Arc::new(
                    records.iter().map(|r| Some(r.value.is_none())).collect::<BooleanArray>(),
                ),
                _ => payload
                    .next()
                    .ok_or_else(|| Error::internal("a column of an output is missing"))?,
            };
            columns.push(column);
        }
        Ok(RecordBatch::try_new(table.clone(), columns)?)
    }
}

/// JSON objects as rows of `schema`.
fn json<'a>(schema: &SchemaRef, values: impl Iterator<Item = &'a [u8]>) -> Result<RecordBatch> {
    let mut lines = Vec::new();
    let mut count = 0;
    for value in values {
        lines.extend_from_slice(value);
        lines.push(b'\n');
        count += 1;
    }
    let builder = ReaderBuilder::new(schema.clone()).with_batch_size(usize::max(count, 1));
    let mut decoder = builder.build_decoder()?;
    let mut fed = 0;
    while fed < lines.len() {
        let read = decoder.decode(&lines[fed..])?;
        if read == 0 {
            break;
        }
        fed += read;
    }
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

/// Columns of the table of dead letters, besides where the dead letter itself lies.
fn dead_letter_schema() -> SchemaRef {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("stage", DataType::Utf8),
        field("query", DataType::Utf8),
        field("topic", DataType::Utf8),
        field("partition", DataType::Int32),
        field("offset", DataType::Int64),
        field("position", DataType::Int32),
        field("column", DataType::Utf8),
        field("reason", DataType::Utf8),
        field("key", DataType::Binary),
        field("value", DataType::Binary),
        field("headers", DataType::Utf8),
    ]))
}

fn dead_letters(chunk: &Chunk, records: &[&Record]) -> Result<RecordBatch> {
    let header = |record: &Record, wanted: &str| chunk.header(record, wanted);
    let text = |name: &str| -> ArrayRef {
        Arc::new(records.iter().map(|r| header(r, name)).collect::<StringArray>())
    };
    let reason = |record: &Record| {
        let reason = header(record, headers::REASON)?;
        Some(match header(record, headers::TRUNCATED) {
            Some(was) => format!("{reason} (this dead letter is cut; it was {was})"),
            None => reason,
        })
    };
    let number =
        |name: &str| records.iter().map(|r| header(r, name)?.parse().ok()).collect::<Int64Array>();
    let small = |name: &str| -> ArrayRef {
        Arc::new(records.iter().map(|r| header(r, name)?.parse().ok()).collect::<Int32Array>())
    };
    let others = records.iter().map(|record| {
        let own = chunk.headers(record).filter(|(name, _)| !headers::is_reserved(name));
        let list: Vec<_> = own
            .map(|(name, value)| {
                let value = value.map(|v| match std::str::from_utf8(v) {
                    Ok(text) => serde_json::json!(text),
                    Err(_) => serde_json::json!({ "hex": hex::encode(v) }),
                });
                serde_json::json!([String::from_utf8_lossy(name), value])
            })
            .collect();
        (!list.is_empty()).then(|| serde_json::Value::from(list).to_string())
    });
    let columns: Vec<ArrayRef> = vec![
        text(headers::STAGE),
        text(headers::QUERY),
        text(headers::TOPIC),
        small(headers::PARTITION),
        Arc::new(number(headers::OFFSET)),
        small(headers::POSITION),
        text(headers::COLUMN),
        Arc::new(records.iter().map(|r| reason(r)).collect::<StringArray>()),
        Arc::new(records.iter().map(|r| chunk.key(r)).collect::<BinaryArray>()),
        Arc::new(records.iter().map(|r| chunk.value(r)).collect::<BinaryArray>()),
        Arc::new(others.collect::<StringArray>()),
    ];
    Ok(RecordBatch::try_new(dead_letter_schema(), columns)?)
}
