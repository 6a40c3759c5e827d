//! Runs a query file over history: the operators of the stream, fed with the rows of a time range.
//!
//! No row is late in a replay, every window closes at its end, and the final plan is the stream's
//! own. The results therefore equal those of the stream, except for rows that the stream rejected as
//! late. With [`Replay::as_streamed`] these rows are left out here too, window by window.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray, new_null_array};
use arrow::datatypes::{Int32Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use futures::StreamExt;

use crate::catalog::{Catalog, Customer};
use crate::history::{self, EventScan};
use crate::pipeline::{self, history_root, reference_tables};
use crate::planner::{Input, QueryPlan, Relations, StreamPlan};
use crate::time::{Clock, MAX_TIME, MIN_TIME, Micros};
use crate::window::{EpochEnd, InputRows, Operator, operator_for};
use crate::{Error, Result};

/// The query to run, and the part of history to run it over.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The name of the query.
    pub query: String,
    /// Windows that begin at this event time or later.
    pub from: Option<Micros>,
    /// Windows that end at this event time or earlier.
    pub to: Option<Micros>,
    /// Whether rows that the stream rejected as late are left out.
    pub as_streamed: bool,
}

/// One query of the chain that ends with the requested one.
struct Step {
    plan: Arc<QueryPlan>,
    operator: Box<dyn Operator>,
    results: Vec<RecordBatch>,
    /// Rows and windows that failed.
    failed: u64,
}

/// The end of the last window that rejected a row as late, by the row's topic, partition, offset
/// and position in its message.
type LateRows = HashMap<(String, i32, i64, i32), Micros>;

/// Runs the replay. Returns the columns and rows of the result, in the order of the windows.
///
/// # Errors
/// The query does not exist or is invalid, or history cannot be read.
pub async fn replay(
    catalog: &Catalog,
    customer: &Customer,
    replay: &Replay,
) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let planned = pipeline::plan(&catalog.root, customer).await;
    let planned = planned.map_err(|mut errors| errors.swap_remove(0))?;
    planned.now.set(Clock::system().now());
    let mut relations = Relations::new();
    for table in &customer.tables {
        let path = catalog.root.join(&table.location);
        let rows = reference_tables::read(table, &path, planned.tables.get(&table.name)).await?;
        relations.insert(table.name.clone(), Arc::new(rows));
    }
    let mut steps = chain(&planned.queries, &replay.query, customer)?;
    for stream in &planned.streams {
        if steps.iter().any(|step| step.reads(&stream.stream.name)) {
            feed(stream, &mut steps, customer, replay, &relations).await?;
        }
    }
    close_windows(&mut steps, &mut relations).await?;
    let Some(last) = steps.pop() else { return Err(Error::internal("a replay has no query")) };
    if last.failed > 0 {
        tracing::warn!(failed = last.failed, "the result lacks rows or windows that failed");
    }
    let rows = match last.plan.is_view() {
        true => last.operator.content().into_iter().collect(),
        false => last.results,
    };
    let rows =
        rows.into_iter().map(|rows| complete_windows(&rows, replay)).collect::<Result<Vec<_>>>()?;
    Ok((last.plan.output.clone(), rows))
}

/// The query and those that it reads, directly or not, each after those that it reads.
fn chain(queries: &[Arc<QueryPlan>], name: &str, customer: &Customer) -> Result<Vec<Step>> {
    let mut wanted = BTreeSet::from([name.to_owned()]);
    for plan in queries.iter().rev() {
        if wanted.contains(&plan.name) {
            if let Input::Query(input) = &plan.input {
                wanted.insert(input.clone());
            }
            wanted.extend(plan.tables.iter().cloned());
        }
    }
    let steps: Vec<_> = queries
        .iter()
        .filter(|plan| wanted.contains(&plan.name))
        .map(|plan| {
            let operator = operator_for(plan.clone(), customer.zone)?;
            Ok(Step { operator, plan: plan.clone(), results: Vec::new(), failed: 0 })
        })
        .collect::<Result<_>>()?;
    match steps.last() {
        Some(last) if last.plan.name == name => Ok(steps),
        _ => Err(Error::config(format!("{} has no query '{name}'", customer.name))),
    }
}

/// Feeds the rows of a stream to the steps that read it.
async fn feed(
    stream: &StreamPlan,
    steps: &mut [Step],
    customer: &Customer,
    replay: &Replay,
    relations: &Relations,
) -> Result<()> {
    let name = stream.stream.name.as_str();
    let event_time = stream.schema.index_of(&stream.stream.watermark.column)?;
    let is_unordered = !replay.as_streamed
        && (steps.iter().filter(|s| s.reads(name))).all(|step| step.plan.is_order_insensitive());
    let scan = EventScan {
        customer: &customer.name,
        stream: name,
        schema: match is_unordered {
            true => Arc::new(stream.schema.project(&read_columns(steps, name, event_time))?),
            false => crate::types::event_schema(&stream.schema),
        },
        time_column: &stream.stream.watermark.column,
        from: replay.from,
        to: replay.to,
        ordered: !is_unordered,
    };
    let late_rows = read_late_rows(steps, customer, name, replay).await?;
    let mut rows = history::scan_events(&history_root(&replay.data_dir), scan).await?;
    let mut ranks: BTreeMap<(String, i32), usize> = BTreeMap::new();
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        if is_unordered {
            let batch = with_all_columns(&batch, &stream.schema)?;
            let watermarks = vec![MIN_TIME; batch.num_rows()];
            for step in steps.iter_mut().filter(|step| step.reads(name)) {
                step.push(&batch, event_time, &watermarks, 0, relations).await?;
            }
            continue;
        }
        for run in by_partition(&batch, stream.schema.fields().len())? {
            let next = ranks.len();
            let rank = *ranks.entry((run.topic.clone(), run.partition)).or_insert(next);
            for step in steps.iter_mut().filter(|step| step.reads(name)) {
                let late = late_rows.get(&step.plan.name);
                let watermarks = run.watermarks(late, step.plan.query.allowed_lateness_us);
                step.push(&run.rows, event_time, &watermarks, rank, relations).await?;
            }
        }
    }
    Ok(())
}

/// Reads which rows of a stream were rejected as late, by query; empty unless they are to be left
/// out.
async fn read_late_rows(
    steps: &[Step],
    customer: &Customer,
    stream: &str,
    replay: &Replay,
) -> Result<HashMap<String, LateRows>> {
    let root = history_root(&replay.data_dir);
    let mut late_rows = HashMap::new();
    for step in steps.iter().filter(|_| replay.as_streamed) {
        let rows = history::late_rows(&root, &customer.name, stream, &step.plan.name).await?;
        let last_ends = rows.into_iter().map(|(row, windows)| {
            (row, windows.into_iter().map(|(_, to)| to).max().unwrap_or(MIN_TIME))
        });
        late_rows.insert(step.plan.name.clone(), last_ends.collect());
    }
    Ok(late_rows)
}

impl Step {
    fn reads(&self, stream: &str) -> bool {
        matches!(&self.plan.input, Input::Stream(name) if name == stream)
    }

    async fn push(
        &mut self,
        rows: &RecordBatch,
        event_time: usize,
        before: &[Micros],
        partition: usize,
        relations: &Relations,
    ) -> Result<()> {
        let times = rows.column(event_time).as_primitive::<TimestampMicrosecondType>();
        let rows = InputRows { batch: rows, event_time: times.values(), before, partition };
        let pushed = self.operator.push(&rows, relations).await?;
        self.failed += pushed.failed.len() as u64;
        self.results.extend(pushed.output.filter(|o| o.num_rows() > 0));
        Ok(())
    }
}

/// The columns of a stream that the queries over it read, in ascending order.
fn read_columns(steps: &[Step], stream: &str, event_time: usize) -> Vec<usize> {
    let readers = steps.iter().filter(|step| step.reads(stream));
    let columns = readers.flat_map(|step| step.plan.leaf_projection().iter().copied());
    let all: BTreeSet<usize> = columns.chain([event_time]).collect();
    all.into_iter().collect()
}

/// Extends rows with some columns of `schema` to all columns. The added columns are null and not
/// read by any query.
fn with_all_columns(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for field in schema.fields() {
        match rows.column_by_name(field.name()) {
            Some(column) => {
                fields.push(field.clone());
                columns.push(column.clone());
            }
            None => {
                fields.push(Arc::new(field.as_ref().clone().with_nullable(true)));
                columns.push(new_null_array(field.data_type(), rows.num_rows()));
            }
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Consecutive rows of one partition.
struct PartitionRun {
    topic: String,
    partition: i32,
    rows: RecordBatch,
    offsets: Vec<i64>,
    positions: Vec<i32>,
}

impl PartitionRun {
    /// The watermark before each row that makes the row late for exactly the windows for which the
    /// stream rejected it.
    fn watermarks(&self, late: Option<&LateRows>, lateness: Micros) -> Vec<Micros> {
        let Some(late) = late.filter(|r| !r.is_empty()) else {
            return vec![MIN_TIME; self.offsets.len()];
        };
        let rows = self.offsets.iter().zip(&self.positions);
        rows.map(|(&offset, &position)| {
            let row = (self.topic.clone(), self.partition, offset, position);
            late.get(&row).map_or(MIN_TIME, |to| to.saturating_add(lateness))
        })
        .collect()
    }
}

/// Splits rows into runs of one partition. The columns after the first `columns` contain the
/// position of each row.
fn by_partition(batch: &RecordBatch, columns: usize) -> Result<Vec<PartitionRun>> {
    let topics = batch.column(columns).as_string::<i32>();
    let partitions = batch.column(columns + 1).as_primitive::<Int32Type>();
    let offsets = batch.column(columns + 2).as_primitive::<Int64Type>();
    let positions = batch.column(columns + 3).as_primitive::<Int32Type>();
    let stream: Vec<usize> = (0..columns).collect();
    let rows = batch.project(&stream)?;
    let same = |a: usize, b: usize| {
        topics.value(a) == topics.value(b) && partitions.value(a) == partitions.value(b)
    };
    let mut runs = Vec::new();
    let mut start = 0;
    for end in 1..=batch.num_rows() {
        if end < batch.num_rows() && same(start, end) {
            continue;
        }
        runs.push(PartitionRun {
            topic: topics.value(start).to_owned(),
            partition: partitions.value(start),
            rows: rows.slice(start, end - start),
            offsets: offsets.values()[start..end].to_vec(),
            positions: positions.values()[start..end].to_vec(),
        });
        start = end;
    }
    Ok(runs)
}

/// Closes every window, one query after the other, and feeds results to the queries that read them.
async fn close_windows(steps: &mut [Step], relations: &mut Relations) -> Result<()> {
    for index in 0..steps.len() {
        let (before, rest) = steps.split_at_mut(index);
        let Some(step) = rest.first_mut() else { break };
        if let Input::Query(input) = &step.plan.input
            && let Some(upstream) = before.iter().find(|s| s.plan.name == *input)
        {
            for batch in &upstream.results {
                let before = vec![MIN_TIME; batch.num_rows()];
                let times = upstream.plan.event_time.map(|column| {
                    batch
                        .column(column)
                        .as_primitive::<TimestampMicrosecondType>()
                        .values()
                        .to_vec()
                });
                let times = times.unwrap_or_else(|| before.clone());
                let rows = InputRows { batch, event_time: &times, before: &before, partition: 0 };
                let pushed = step.operator.push(&rows, relations).await?;
                step.failed += pushed.failed.len() as u64;
                step.results.extend(pushed.output.filter(|o| o.num_rows() > 0));
            }
        }
        let end = EpochEnd {
            watermark: MAX_TIME,
            is_emission_due: false,
            relations_changed: true,
            relations,
        };
        for emission in step.operator.end_epoch(end).await? {
            match emission.result {
                Ok(changes) => step.results.push(changes.upserts),
                Err(reason) => {
                    step.failed += 1;
                    tracing::warn!(window = ?emission.window, reason, "a window failed");
                }
            }
        }
        if step.plan.is_view() {
            let content = step.operator.content().into_iter().collect();
            relations.insert(step.plan.name.clone(), Arc::new(content));
        }
    }
    Ok(())
}

/// Removes the windows that extend beyond the range, because only a part of their rows was read.
fn complete_windows(rows: &RecordBatch, replay: &Replay) -> Result<RecordBatch> {
    let column = |name: &str| rows.schema().index_of(name).ok().map(|i| rows.column(i).clone());
    let (Some(start), Some(end)) = (column("window_start"), column("window_end")) else {
        return Ok(rows.clone());
    };
    let (Some(start), Some(end)) = (
        start.as_primitive_opt::<TimestampMicrosecondType>(),
        end.as_primitive_opt::<TimestampMicrosecondType>(),
    ) else {
        return Ok(rows.clone());
    };
    let is_complete = |row: usize| {
        start.is_null(row)
            || replay.from.is_none_or(|from| start.value(row) >= from)
                && replay.to.is_none_or(|to| end.value(row) <= to)
    };
    let mask: arrow::array::BooleanArray =
        (0..rows.num_rows()).map(|row| Some(is_complete(row))).collect();
    Ok(arrow::compute::filter_record_batch(rows, &mask)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
    use arrow::util::pretty::pretty_format_batches;

    use super::*;
    use crate::catalog;
    use crate::history::{TableSpec, Writer};
    use crate::time::{HOUR, MINUTE};

    const SCHEMA: &str = "SET millstream.timezone = 'UTC';
        CREATE STREAM events (id BIGINT NOT NULL, room VARCHAR NOT NULL, unread VARCHAR,
          at TIMESTAMP NOT NULL, WATERMARK FOR at AS at) WITH (topics = 'events');";
    const FROM: &str = "FROM TUMBLE(TABLE events, DESCRIPTOR(at), INTERVAL '1' HOUR)
        GROUP BY window_start, window_end, room ORDER BY window_start, room";

    /// Two partitions whose rows alternate in time.
    async fn history(root: &std::path::Path, catalog: &Catalog) {
        let customer = &catalog.customers[0];
        let schema = crate::types::event_schema(&customer.streams[0].schema());
        let spec = TableSpec::new("c", "events", &schema, Some("at"), None, "UTC");
        let mut writer = Writer::open(root, spec, "cluster").await.unwrap();
        for partition in 0..2 {
            let numbers: Vec<i64> = (0..300).collect();
            let times = numbers.iter().map(|n| n * MINUTE + i64::from(partition));
            let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
            let rooms = numbers.iter().map(|n| ["hall", "kitchen", "bath"][(n % 3) as usize]);
            let rows = RecordBatch::try_from_iter([
                (
                    "id",
                    Arc::new(Int64Array::from_iter_values(numbers.iter().map(|n| n % 7)))
                        as ArrayRef,
                ),
                ("room", Arc::new(StringArray::from_iter_values(rooms))),
                ("unread", Arc::new(StringArray::from(vec!["x"; 300]))),
                ("at", Arc::new(times)),
                ("_offset", Arc::new(Int64Array::from(numbers.clone()))),
            ]);
            writer.append("events", partition, &rows.unwrap(), 300).await.unwrap();
        }
        writer.commit(0).await.unwrap();
    }

    #[tokio::test]
    async fn row_order_does_not_change_order_insensitive_results() {
        let folder = tempfile::tempdir().unwrap();
        let queries = [
            ("any_order", "count(*) AS n, count(DISTINCT id) AS ids, sum(id) AS sum", true),
            (
                "in_order",
                "count(*) AS n, count(DISTINCT id) AS ids, sum(id) AS sum, median(id) AS m",
                false,
            ),
        ];
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("schemas/c.sql", SCHEMA);
        for (name, columns, _) in queries {
            let text = format!("SELECT window_start, window_end, room, {columns} {FROM}");
            write(&format!("queries/c/{name}.sql"), &text);
        }
        let catalog = catalog::load(folder.path(), &[]).unwrap();
        history(&history_root(folder.path()), &catalog).await;
        let planned = pipeline::plan(&catalog.root, &catalog.customers[0]).await.unwrap();
        let mut results = Vec::new();
        for (name, _, any_order) in queries {
            let plan = planned.queries.iter().find(|plan| plan.name == name).unwrap();
            assert_eq!(plan.is_order_insensitive(), any_order, "{name}");
            let wanted = Replay {
                data_dir: folder.path().to_owned(),
                query: name.to_owned(),
                from: Some(HOUR),
                to: None,
                as_streamed: false,
            };
            let (_, rows) = replay(&catalog, &catalog.customers[0], &wanted).await.unwrap();
            let rows = rows.iter().map(|rows| rows.project(&[0, 1, 2, 3, 4, 5]).unwrap());
            results.push(pretty_format_batches(&rows.collect::<Vec<_>>()).unwrap().to_string());
        }
        assert_eq!(results[0], results[1]);
        // Four hours of three rooms, and the four lines around the table.
        assert_eq!(results[0].lines().count(), 12 + 4);
    }
}
