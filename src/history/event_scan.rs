//! Reads the events of a stream from history, for replay, and the rows that were rejected as late.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Int32Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, cast, ident, lit};
use datafusion::physical_plan::EmptyRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt};

use crate::history::delta_table::{OFFSET, PARTITION, POSITION, SOURCE, TOPIC};
use crate::history::table_path;
use crate::history::table_provider::{self, HistoryTable};
use crate::time::Micros;
use crate::{Error, Result};

/// Which events to read.
#[derive(Debug, Clone)]
pub struct EventScan<'a> {
    /// The customer.
    pub customer: &'a str,
    /// The stream.
    pub stream: &'a str,
    /// The columns to return, with their order and types: columns of the stream, and any of
    /// `_topic`, `_partition`, `_offset`, `_position`.
    pub schema: SchemaRef,
    /// The event time column of the stream.
    pub time_column: &'a str,
    /// The lowest event time, inclusive.
    pub from: Option<Micros>,
    /// The highest event time, exclusive.
    pub to: Option<Micros>,
    /// Whether to sort by topic, partition, offset and position. Otherwise rows come in file order
    /// and in larger batches, which is several times as fast.
    pub ordered: bool,
}

/// The number of rows of a batch in file order.
const LARGE_BATCH: usize = 65_536;
/// The number of batches to read ahead.
const AHEAD: usize = 2;

/// Reads events. A stream without history returns no rows.
///
/// # Errors
/// [`crate::Kind::Storage`]; [`crate::Kind::Config`] for a column that history does not have.
pub async fn scan_events(root: &Path, scan: EventScan<'_>) -> Result<SendableRecordBatchStream> {
    let path = table_path(root, scan.customer, scan.stream);
    if !path.join("_delta_log").is_dir() {
        return Ok(Box::pin(EmptyRecordBatchStream::new(scan.schema)));
    }
    let table = HistoryTable::open(&path).await?;
    let known = table.schema();
    let missing = scan.schema.fields().iter().find(|field| known.index_of(field.name()).is_err());
    if let Some(field) = missing {
        let message = format!("the history of '{}' has no column '{}'", scan.stream, field.name());
        return Err(Error::config(message).hint("`millstream run` adds new columns when it starts"));
    }
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let time = || match known.field_with_name(scan.time_column).map(|field| field.data_type()) {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some(_))) | Err(_) => ident(scan.time_column),
        Ok(_) => cast(ident(scan.time_column), utc.clone()),
    };
    let instant = |time| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
    let session = match scan.ordered {
        true => session(),
        false => file_order_session(),
    };
    let mut rows = session.read_table(Arc::new(table))?;
    if let Some(from) = scan.from {
        rows = rows.filter(time().gt_eq(instant(from)))?;
    }
    if let Some(to) = scan.to {
        rows = rows.filter(time().lt(instant(to)))?;
    }
    if scan.ordered {
        let order = [TOPIC, PARTITION, OFFSET, POSITION].map(|name| ident(name).sort(true, false));
        rows = rows.sort(order.to_vec())?;
    }
    let columns: Vec<Expr> = (scan.schema.fields().iter())
        .map(|field| match known.field_with_name(field.name()) {
            Ok(same) if same.data_type() == field.data_type() => ident(field.name()),
            _ => cast(ident(field.name()), field.data_type().clone()).alias(field.name()),
        })
        .collect();
    let stream = read_ahead(rows.select(columns)?.execute_stream().await?);
    // Every column is nullable in history; restore the schema of the stream.
    let schema = scan.schema;
    let batch_schema = schema.clone();
    let batches = stream.and_then(move |batch| {
        let columns = batch.columns().to_vec();
        futures::future::ready(
            RecordBatch::try_new(batch_schema.clone(), columns).map_err(Into::into),
        )
    });
    Ok(Box::pin(datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(schema, batches)))
}

/// The source of a row: topic, partition, offset, position in the record.
pub type LateRow = (String, i32, i64, i32);

/// Reads the rows of `stream` that `query` rejected as late. For each row, and for each time that it was
/// rejected: the start of the first window that rejected it, and the end of the last one.
///
/// # Errors
/// [`crate::Kind::Storage`].
pub async fn late_rows(
    root: &Path,
    customer: &str,
    stream: &str,
    query: &str,
) -> Result<HashMap<LateRow, Vec<(Micros, Micros)>>> {
    let path = table_path(root, customer, &format!("{stream}_late"));
    let mut late = HashMap::<LateRow, Vec<_>>::new();
    if !path.join("_delta_log").is_dir() {
        return Ok(late);
    }
    let instant = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let [topic, partition, offset, position] = SOURCE;
    let rows: DataFrame = session()
        .read_table(Arc::new(HistoryTable::open(&path).await?))?
        .filter(ident("query").eq(lit(query)))?
        .select(vec![
            cast(ident(topic), DataType::Utf8),
            cast(ident(partition), DataType::Int32),
            cast(ident(offset), DataType::Int64),
            cast(ident(position), DataType::Int32),
            cast(ident("refused_from"), instant()),
            cast(ident("refused_to"), instant()),
        ])?;
    let mut batches = rows.execute_stream().await?;
    while let Some(batch) = batches.try_next().await? {
        let topics = batch.column(0).as_string::<i32>();
        let partitions = batch.column(1).as_primitive::<Int32Type>();
        let offsets = batch.column(2).as_primitive::<Int64Type>();
        let positions = batch.column(3).as_primitive::<Int32Type>();
        let from = batch.column(4).as_primitive::<TimestampMicrosecondType>();
        let to = batch.column(5).as_primitive::<TimestampMicrosecondType>();
        for row in 0..batch.num_rows() {
            let late_row = (
                topics.value(row).to_owned(),
                partitions.value(row),
                offsets.value(row),
                positions.value(row),
            );
            late.entry(late_row).or_default().push((from.value(row), to.value(row)));
        }
    }
    Ok(late)
}

/// Reads a few batches ahead on a separate task, so that decoding runs concurrently with the
/// processing of the rows.
fn read_ahead(mut rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let mut builder = RecordBatchReceiverStreamBuilder::new(rows.schema(), AHEAD);
    let sender = builder.tx();
    builder.spawn(async move {
        while let Some(batch) = rows.next().await {
            if sender.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    builder.build()
}

fn session() -> SessionContext {
    SessionContext::new_with_config(table_provider::settings(SessionConfig::new()))
}

/// A session that reads one file after the other, so that the order of rows is deterministic.
fn file_order_session() -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(1).with_batch_size(LARGE_BATCH);
    SessionContext::new_with_config(table_provider::settings(config))
}
