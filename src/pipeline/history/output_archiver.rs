//! The archiver of output topics: copies results, late rows and dead letters into history.
//!
//! The table of an output is a copy of its topic. The archiver reads the topic `read_committed`, so
//! the table contains what the topic's readers see, each record once, whichever way the pipeline
//! ended.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::history::{self, TableSpec, Writer};
use crate::pipeline::config::{PipelineConfig, history_root};
use crate::pipeline::engine::Engine;
use crate::pipeline::engine::query_state::publication;
use crate::pipeline::history::output_rows::{OutputKind, dead_letter_schema};
use crate::pipeline::history::table_writers::TableWriters;
use crate::sink::{self, Publication};
use crate::source::{Cluster, Event, Isolation, KafkaConfig, Reader, blocking};
use crate::time::Micros;
use crate::types::TopicPartition;
use crate::{Error, Result};

/// How often the archiver checks whether a commit is due while no records arrive.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The running archiver of a customer. Dropping it aborts the task.
pub struct OutputArchiver {
    task: JoinHandle<Result<()>>,
    finish: watch::Sender<bool>,
    /// See [`TableWriters::pending_since`].
    pub pending_since: watch::Receiver<Option<Micros>>,
}

/// Waits until the archiver fails and returns its error; never returns if there is no archiver.
pub async fn wait_for_failure(archiver: &mut Option<OutputArchiver>) -> Error {
    let Some(archiver) = archiver else { return std::future::pending().await };
    match (&mut archiver.task).await {
        Ok(Err(error)) => error,
        _ => Error::internal("the archiver of outputs ended"),
    }
}

impl Drop for OutputArchiver {
    /// The next pipeline that writes to these tables must be their only writer.
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct ArchiveTask {
    /// By topic, as are the tables.
    kinds: HashMap<Arc<str>, OutputKind>,
    tables: TableWriters<Arc<str>>,
    reader: Reader,
    /// The next offset of each partition.
    positions: HashMap<TopicPartition, i64>,
    kafka: KafkaConfig,
    finish: watch::Receiver<bool>,
}

/// The table of one output topic.
struct OutputTable {
    topic: Arc<str>,
    kind: OutputKind,
    spec: TableSpec,
}

/// The low watermark of each partition, and the id of each topic.
type TopicStarts = (Vec<(TopicPartition, i64)>, Vec<(Arc<str>, String)>);

impl OutputArchiver {
    /// Opens the table of every output and continues to read each topic where its table ends.
    ///
    /// # Errors
    /// No broker answers, or a table cannot be opened.
    pub async fn start(engine: &Engine, config: &PipelineConfig, cluster_id: &str) -> Result<Self> {
        let root = history_root(&config.data_dir);
        let outputs = output_tables(engine);
        let topics: Vec<Arc<str>> = outputs.iter().map(|output| output.topic.clone()).collect();
        let kafka = config.kafka.clone();
        let starts = blocking(move || read_starts(&kafka, topics));
        let tables = open_tables(outputs, &root, cluster_id);
        let ((lows, ids), (kinds, mut writers)) = tokio::try_join!(starts, tables)?;
        for (topic, id) in ids {
            writers.values_mut().for_each(|writer| writer.set_topic_id(&topic, &id));
        }
        let mut positions = HashMap::new();
        for (partition, low) in lows {
            let Some(writer) = writers.get(&partition.topic) else { continue };
            let archived = writer.position(&partition.topic, partition.partition);
            positions.insert(partition, archived.unwrap_or(low).max(low));
        }
        let group = format!("millstream.{}.history", engine.customer.name);
        let reader = Reader::start(&config.kafka, &group, Isolation::Committed)?;
        let assigned: Vec<_> = positions.iter().map(|(p, &at)| (p.clone(), at)).collect();
        reader.assign(&assigned)?;
        let (finish, finish_requested) = watch::channel(false);
        let tables = TableWriters::new(writers, config);
        let pending_since = tables.pending_since();
        let kafka = config.kafka.clone();
        let task =
            ArchiveTask { kinds, tables, reader, positions, kafka, finish: finish_requested };
        Ok(Self { task: tokio::spawn(task.run()), finish, pending_since })
    }

    /// Reads to the end that the topics have now, commits, and stops.
    ///
    /// # Errors
    /// The task failed.
    pub async fn finish(mut self) -> Result<()> {
        self.finish.send_replace(true);
        (&mut self.task)
            .await
            .map_err(|e| Error::internal("the archiver of outputs failed").because(e))?
    }
}

/// Reads where the partitions of `topics` begin. Blocks.
fn read_starts(kafka: &KafkaConfig, topics: Vec<Arc<str>>) -> Result<TopicStarts> {
    let cluster = Cluster::connect(kafka)?;
    let (mut lows, mut ids) = (Vec::new(), Vec::new());
    for topic in topics {
        ids.extend(cluster.topic_id(&topic)?.map(|id| (topic.clone(), id)));
        for partition in cluster.partitions(&topic)? {
            let partition = TopicPartition { topic: topic.clone(), partition };
            lows.push((partition.clone(), cluster.watermarks(&partition)?.0));
        }
    }
    Ok((lows, ids))
}

/// The tables of all output topics of a customer.
fn output_tables(engine: &Engine) -> Vec<OutputTable> {
    let customer = &engine.customer.name;
    let zone = engine.customer.zone.name();
    let mut tables = Vec::new();
    for query in engine.queries() {
        let plan = query.plan();
        let is_keyed = publication(plan) != Publication::Append;
        let key = is_keyed.then(|| {
            query.sink().key().iter().map(|&i| plan.output.field(i).name().clone()).collect()
        });
        let schema = nullable(&query.sink().schema(&plan.output));
        let time = (!is_keyed).then(|| time_column(&plan.output, plan.event_time)).flatten();
        let spec = TableSpec::new(customer, &plan.name, &schema, time.as_deref(), key, zone);
        let kind = if is_keyed { OutputKind::Keyed(schema) } else { OutputKind::Rows(schema) };
        tables.push(OutputTable { topic: query.sink().topic.clone(), kind, spec });
    }
    for (name, stage) in engine.streams() {
        let schema = nullable(&sink::late_schema(&stage.plan().schema, zone));
        let spec = TableSpec::new(
            customer,
            &format!("{name}_late"),
            &history::delta_table::late_schema(&schema),
            Some(&stage.plan().stream.watermark.column),
            None,
            zone,
        );
        let topic = sink::late_topic(customer, name);
        tables.push(OutputTable { topic, kind: OutputKind::Late(schema), spec });
    }
    let spec = TableSpec::new(customer, "dead_letters", &dead_letter_schema(), None, None, zone);
    let topic = sink::dead_letter_topic(customer);
    tables.push(OutputTable { topic, kind: OutputKind::DeadLetters, spec });
    tables
}

/// Opens the tables of output topics concurrently; returns kinds and writers by topic.
async fn open_tables(
    outputs: Vec<OutputTable>,
    root: &Path,
    cluster: &str,
) -> Result<(HashMap<Arc<str>, OutputKind>, HashMap<Arc<str>, Writer>)> {
    let opened = outputs.into_iter().map(|OutputTable { topic, kind, spec }| async move {
        let writer = Writer::open(root, spec, cluster).await?;
        Ok::<_, Error>(((topic.clone(), kind), (topic, writer)))
    });
    Ok(futures::future::try_join_all(opened).await?.into_iter().unzip())
}

/// The output column that gives a result its date: `window_start`, or else the event-time column.
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

impl ArchiveTask {
    async fn run(mut self) -> Result<()> {
        loop {
            tokio::select! {
                event = self.reader.next() => self.handle_event(event?).await?,
                _ = self.finish.changed() => return self.read_to_end().await,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            self.tables.commit_due(false).await?;
        }
    }

    async fn handle_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Chunk(chunk) => {
                let partition =
                    TopicPartition { topic: chunk.topic.clone(), partition: chunk.partition };
                let at = self.positions.entry(partition).or_insert(0);
                let chunk = if chunk.first_offset < *at { chunk.slice(*at) } else { chunk };
                *at = chunk.next_offset.max(*at);
                let Some(kind) = self.kinds.get(&chunk.topic) else { return Ok(()) };
                let Some(writer) = self.tables.writer(&chunk.topic).await? else { return Ok(()) };
                let rows = kind.rows(&chunk, &writer.spec().schema)?;
                writer.append(&chunk.topic, chunk.partition, &rows, chunk.next_offset).await
            }
            Event::End { partition, position } => {
                let at = self.positions.entry(partition).or_insert(0);
                *at = position.max(*at);
                Ok(())
            }
        }
    }

    /// Reads to the end that the topics have now, and commits.
    async fn read_to_end(mut self) -> Result<()> {
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
            self.handle_event(event).await?;
        }
        self.tables.commit_all().await
    }
}
