//! A query file over history: the stream's own operators, fed with the rows of a time range.
//!
//! Nothing is late in a replay, every window closes at its end, and the closing plan is the
//! stream's own; so it equals what the stream said, but for rows that the stream refused as late.
//! With [`Replay::as_streamed`] those are refused here too, window by window.

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
use crate::planner::{Input, QueryPlan, Relations};
use crate::time::{Clock, MAX_TIME, MIN_TIME, Micros};
use crate::window::{InputRows, Operator};
use crate::{Error, Result};

/// What to run over which part of history.
#[derive(Debug, Clone)]
pub struct Replay {
    /// The folder of history and state.
    pub data_dir: PathBuf,
    /// The query.
    pub query: String,
    /// Windows from here on (event time).
    pub from: Option<Micros>,
    /// Windows that end by here.
    pub to: Option<Micros>,
    /// Whether rows that the stream refused as late are left out.
    pub as_streamed: bool,
}

/// One query of the chain that leads to the one asked for.
struct Step {
    plan: Arc<QueryPlan>,
    operator: Operator,
    results: Vec<RecordBatch>,
    failed: u64,
}

/// Which rows were refused, by where they came from: the end of the last refused window.
type Refused = HashMap<(String, i32, i64, i32), Micros>;

/// Runs the replay; gives the result's columns and rows, windows in order.
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
    close(&mut steps, &mut relations).await?;
    let Some(last) = steps.pop() else { return Err(Error::internal("a replay of nothing")) };
    if last.failed > 0 {
        tracing::warn!(failed = last.failed, "rows or windows failed and are left out");
    }
    let rows = match last.plan.is_view() {
        true => last.operator.content().into_iter().collect(),
        false => last.results,
    };
    let rows = rows.into_iter().map(|rows| within(&rows, replay)).collect::<Result<Vec<_>>>()?;
    Ok((last.plan.output.clone(), rows))
}

/// The query and those that it reads, each after those that it reads.
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
            let operator = Operator::new(plan.clone(), customer.zone)?;
            Ok(Step { operator, plan: plan.clone(), results: Vec::new(), failed: 0 })
        })
        .collect::<Result<_>>()?;
    match steps.last() {
        Some(last) if last.plan.name == name => Ok(steps),
        _ => Err(Error::config(format!("{} has no query '{name}'", customer.name))),
    }
}

/// Feeds a stream's rows to the steps that read it.
async fn feed(
    stream: &crate::planner::StreamPlan,
    steps: &mut [Step],
    customer: &Customer,
    replay: &Replay,
    relations: &Relations,
) -> Result<()> {
    let root = history_root(&replay.data_dir);
    let name = stream.stream.name.as_str();
    let event_time = stream.schema.index_of(&stream.stream.watermark.column)?;
    let columns = stream.schema.fields().len();
    let mut refused: HashMap<String, Refused> = HashMap::new();
    for step in steps.iter().filter(|_| replay.as_streamed) {
        let rows = history::late_rows(&root, &customer.name, name, &step.plan.name).await?;
        let last = rows.into_iter().map(|(row, windows)| {
            (row, windows.into_iter().map(|(_, to)| to).max().unwrap_or(MIN_TIME))
        });
        refused.insert(step.plan.name.clone(), last.collect());
    }
    let any_order = !replay.as_streamed
        && (steps.iter().filter(|s| s.reads(name))).all(|step| step.plan.takes_any_order());
    let scan = EventScan {
        customer: &customer.name,
        stream: name,
        schema: match any_order {
            true => Arc::new(stream.schema.project(&needed(steps, name, event_time))?),
            false => crate::types::event_schema(&stream.schema),
        },
        time_column: &stream.stream.watermark.column,
        from: replay.from,
        to: replay.to,
        ordered: !any_order,
    };
    let mut rows = history::scan_events(&root, scan).await?;
    let mut ranks: BTreeMap<(String, i32), usize> = BTreeMap::new();
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        if any_order {
            let batch = widened(&batch, &stream.schema)?;
            let before = vec![MIN_TIME; batch.num_rows()];
            for step in steps.iter_mut().filter(|step| step.reads(name)) {
                step.push(&batch, event_time, &before, 0, relations).await?;
            }
            continue;
        }
        for part in by_partition(&batch, columns)? {
            let next = ranks.len();
            let rank = *ranks.entry((part.topic.clone(), part.partition)).or_insert(next);
            for step in steps.iter_mut().filter(|step| step.reads(name)) {
                let before =
                    part.before(refused.get(&step.plan.name), step.plan.query.allowed_lateness_us);
                step.push(&part.rows, event_time, &before, rank, relations).await?;
            }
        }
    }
    Ok(())
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

/// The columns of a stream that its readers need, ascending.
fn needed(steps: &[Step], stream: &str, event_time: usize) -> Vec<usize> {
    let readers = steps.iter().filter(|step| step.reads(stream));
    let columns = readers.flat_map(|step| step.plan.leaf_projection().iter().copied());
    let all: BTreeSet<usize> = columns.chain([event_time]).collect();
    all.into_iter().collect()
}

/// Rows of some columns of `schema` as rows of all: nobody looks at the others, which are null.
fn widened(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
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

/// Rows of one partition, in order.
struct Part {
    topic: String,
    partition: i32,
    rows: RecordBatch,
    offsets: Vec<i64>,
    positions: Vec<i32>,
}

impl Part {
    /// A watermark before each row that refuses just the windows that the stream refused.
    fn before(&self, refused: Option<&Refused>, lateness: Micros) -> Vec<Micros> {
        let Some(refused) = refused.filter(|r| !r.is_empty()) else {
            return vec![MIN_TIME; self.offsets.len()];
        };
        let rows = self.offsets.iter().zip(&self.positions);
        rows.map(|(&offset, &position)| {
            let row = (self.topic.clone(), self.partition, offset, position);
            refused.get(&row).map_or(MIN_TIME, |to| to.saturating_add(lateness))
        })
        .collect()
    }
}

/// Splits rows, ordered by topic and partition, into runs of one partition.
fn by_partition(batch: &RecordBatch, columns: usize) -> Result<Vec<Part>> {
    let topics = batch.column(columns).as_string::<i32>();
    let partitions = batch.column(columns + 1).as_primitive::<Int32Type>();
    let offsets = batch.column(columns + 2).as_primitive::<Int64Type>();
    let positions = batch.column(columns + 3).as_primitive::<Int32Type>();
    let stream: Vec<usize> = (0..columns).collect();
    let rows = batch.project(&stream)?;
    let same = |a: usize, b: usize| {
        topics.value(a) == topics.value(b) && partitions.value(a) == partitions.value(b)
    };
    let mut parts = Vec::new();
    let mut start = 0;
    for end in 1..=batch.num_rows() {
        if end < batch.num_rows() && same(start, end) {
            continue;
        }
        parts.push(Part {
            topic: topics.value(start).to_owned(),
            partition: partitions.value(start),
            rows: rows.slice(start, end - start),
            offsets: offsets.values()[start..end].to_vec(),
            positions: positions.values()[start..end].to_vec(),
        });
        start = end;
    }
    Ok(parts)
}

/// Closes every window, query after query.
async fn close(steps: &mut [Step], relations: &mut Relations) -> Result<()> {
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
        for emission in step.operator.end_epoch(MAX_TIME, false, true, relations).await? {
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

/// Leaves out windows that reach beyond the range, for of those only a part was read.
fn within(rows: &RecordBatch, replay: &Replay) -> Result<RecordBatch> {
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
    let whole = |row: usize| {
        start.is_null(row)
            || replay.from.is_none_or(|from| start.value(row) >= from)
                && replay.to.is_none_or(|to| end.value(row) <= to)
    };
    let mask: arrow::array::BooleanArray =
        (0..rows.num_rows()).map(|row| Some(whole(row))).collect();
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
    async fn unsorted_is_sorted_where_order_does_not_matter() {
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
        let mut answers = Vec::new();
        for (name, _, any_order) in queries {
            let plan = planned.queries.iter().find(|plan| plan.name == name).unwrap();
            assert_eq!(plan.takes_any_order(), any_order, "{name}");
            let wanted = Replay {
                data_dir: folder.path().to_owned(),
                query: name.to_owned(),
                from: Some(HOUR),
                to: None,
                as_streamed: false,
            };
            let (_, rows) = replay(&catalog, &catalog.customers[0], &wanted).await.unwrap();
            let rows = rows.iter().map(|rows| rows.project(&[0, 1, 2, 3, 4, 5]).unwrap());
            answers.push(pretty_format_batches(&rows.collect::<Vec<_>>()).unwrap().to_string());
        }
        assert_eq!(answers[0], answers[1]);
        // Four hours of three rooms, and what is around a table.
        assert_eq!(answers[0].lines().count(), 12 + 4);
    }
}
