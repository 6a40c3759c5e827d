//! The schema and the properties of a history table, and its creation.
//!
//! Columns in file order: the time column, `_topic`, `_partition`, `_offset`, `_position`, then the
//! other columns as declared; and `event_date`, the Delta partition column. The first five columns
//! have statistics, so that queries can skip files by time and by offset.
//!
//! Delta has fewer types than Arrow and no time zones. The table property `millstream.columns` stores
//! the types of the engine, and reading restores them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::{Metadata, StructField};
use deltalake::logstore::LogStoreRef;
use deltalake::protocol::SaveMode;
use deltalake::table::state::DeltaTableState;
use deltalake::{DeltaTable, DeltaTableBuilder};

use crate::history::{delta_error, table_path};
use crate::{Error, Kind, Result};

/// The Delta partition column: the UTC date of the time column, null outside years 1 to 9999.
pub const DATE: &str = "event_date";
/// The source topic of a row.
pub const TOPIC: &str = "_topic";
/// The source partition of a row.
pub const PARTITION: &str = "_partition";
/// The offset of the record of a row.
pub const OFFSET: &str = "_offset";
/// The index of a row in its record, from 0.
pub const POSITION: &str = "_position";
/// The Kafka timestamp of the record of a row: the default time column.
pub const TIMESTAMP: &str = "_timestamp";
/// In keyed tables: whether the record is a tombstone, which contains only a key.
pub const DELETED: &str = "_deleted";

/// The columns of a late row that name its source. [`late_schema`] renames the payload's `_topic`,
/// `_partition`, `_offset` and `_position` to these names.
pub const SOURCE: [&str; 4] =
    ["source_topic", "source_partition", "source_offset", "source_position"];

const COLUMNS: &str = "millstream.columns";
const TIME: &str = "millstream.time";
const KEY: &str = "millstream.key";
const CLUSTER: &str = "millstream.cluster";

/// The number of columns with statistics: the time column and the four source columns.
pub(super) const INDEXED: usize = 5;

/// The specification of a history table.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// The customer that owns the table.
    pub customer: String,
    /// The name: a stream, a query, `<stream>_late` or `dead_letters`.
    pub name: String,
    /// The columns with the types and zones of the engine, including [`TOPIC`], [`PARTITION`],
    /// [`OFFSET`] and [`POSITION`] (see [`TableSpec::new`]).
    pub schema: SchemaRef,
    /// The timestamp column that determines the date of a row; `None` for [`TIMESTAMP`].
    pub time_column: Option<String>,
    /// The key columns of keyed results (views, early or corrected results). In SQL, the table name
    /// then selects the latest row of each key. Such a table has the column [`DELETED`].
    pub key: Option<Vec<String>>,
}

impl Default for TableSpec {
    fn default() -> Self {
        Self {
            customer: String::new(),
            name: String::new(),
            schema: Arc::new(Schema::empty()),
            time_column: None,
            key: None,
        }
    }
}

impl TableSpec {
    /// Creates a specification for rows of `schema`. Adds the source columns that are missing, and
    /// [`TIMESTAMP`] (in `zone`) if there is no other time column.
    pub fn new(
        customer: &str,
        name: &str,
        schema: &SchemaRef,
        time_column: Option<&str>,
        key: Option<Vec<String>>,
        zone: &str,
    ) -> Self {
        let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
        let mut add = |name: &str, data_type: DataType| {
            if !fields.iter().any(|field| field.name() == name) {
                fields.push(Arc::new(Field::new(name, data_type, false)));
            }
        };
        add(TOPIC, DataType::Utf8);
        add(PARTITION, DataType::Int32);
        add(OFFSET, DataType::Int64);
        add(POSITION, DataType::Int32);
        if time_column.is_none() {
            add(TIMESTAMP, DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into())));
        }
        if key.is_some() {
            add(DELETED, DataType::Boolean);
        }
        Self {
            customer: customer.to_owned(),
            name: name.to_owned(),
            schema: Arc::new(Schema::new(fields)),
            time_column: time_column.map(str::to_owned),
            key,
        }
    }

    /// The column that determines the date of a row.
    pub fn time_column(&self) -> &str {
        self.time_column.as_deref().unwrap_or(TIMESTAMP)
    }

    /// The folder of the table under `root`.
    pub fn path(&self, root: &Path) -> PathBuf {
        table_path(root, &self.customer, &self.name)
    }

    /// The columns of its files, in file order; without [`DATE`].
    pub(super) fn stored_schema(&self) -> Result<SchemaRef> {
        let time = self.time_column();
        let first = [time, TOPIC, PARTITION, OFFSET, POSITION];
        let field = |name: &str| -> Result<Field> {
            let field = self.schema.field_with_name(name).map_err(|_| {
                Error::internal(format!("the history table '{}' has no column '{name}'", self.name))
            })?;
            stored_field(field).map_err(|reason| {
                Error::config(format!(
                    "column '{name}' of '{}' cannot be stored in history",
                    self.name
                ))
                .detail(reason)
                .hint("cast it in the query, or disable history for this stream")
            })
        };
        let mut fields = first.iter().map(|name| field(name)).collect::<Result<Vec<_>>>()?;
        if !matches!(fields[0].data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)) {
            return Err(Error::internal(format!(
                "column '{time}' of '{}' is not a timestamp",
                self.name
            )));
        }
        for declared in self.schema.fields() {
            let name = declared.name().as_str();
            if name == DATE {
                return Err(Error::config(format!(
                    "'{}' has a column '{DATE}', a name that history reserves",
                    self.name
                ))
                .hint("rename the column"));
            }
            if !first.contains(&name) {
                fields.push(field(name)?);
            }
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    fn properties(&self, cluster: &str) -> Result<HashMap<String, String>> {
        let columns: Vec<(&str, String)> = (self.schema.fields().iter())
            .map(|field| (field.name().as_str(), field.data_type().to_string()))
            .collect();
        let json = |error| Error::internal("cannot serialize table properties").because(error);
        let mut properties = HashMap::from([
            (COLUMNS.to_owned(), serde_json::to_string(&columns).map_err(json)?),
            (TIME.to_owned(), self.time_column().to_owned()),
            (CLUSTER.to_owned(), cluster.to_owned()),
        ]);
        if let Some(key) = &self.key {
            properties.insert(KEY.to_owned(), serde_json::to_string(key).map_err(json)?);
        }
        Ok(properties)
    }
}

/// The columns of a table of late rows: those of the payload, with the source of the row under the
/// names of [`SOURCE`]. In history `_topic`, `_partition`, `_offset` and `_position` refer to the
/// record in the topic of late rows.
pub fn late_schema(payload: &SchemaRef) -> SchemaRef {
    let fields: Vec<Arc<Field>> = (payload.fields().iter())
        .map(|field| {
            let own = [TOPIC, PARTITION, OFFSET, POSITION];
            match own.iter().position(|name| name == field.name()) {
                Some(index) => Arc::new(field.as_ref().clone().with_name(SOURCE[index])),
                None => field.clone(),
            }
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// The description of a table that its properties store.
#[derive(Debug, Clone)]
pub(super) struct Description {
    /// The columns with the types of the engine, all nullable, without [`DATE`].
    pub schema: SchemaRef,
    /// The column that determines the date of a row.
    pub time: Option<String>,
    /// The key columns of keyed results.
    pub key: Option<Vec<String>>,
}

impl Description {
    pub(super) fn read(state: &DeltaTableState) -> Self {
        let stored = state.snapshot().arrow_schema();
        let properties = state.metadata().configuration();
        let columns: Vec<(String, String)> = (properties.get(COLUMNS))
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let mut fields = Vec::with_capacity(stored.fields().len());
        for (name, engine) in &columns {
            let Ok(field) = stored.field_with_name(name) else { continue };
            let data_type =
                DataType::from_str(engine).unwrap_or_else(|_| field.data_type().clone());
            fields.push(Field::new(name, data_type, true));
        }
        // Columns of an earlier schema remain readable.
        for field in stored.fields() {
            if field.name() != DATE && !columns.iter().any(|(name, _)| name == field.name()) {
                fields.push(Field::new(field.name(), field.data_type().clone(), true));
            }
        }
        Self {
            schema: Arc::new(Schema::new(fields)),
            time: properties.get(TIME).cloned(),
            key: properties.get(KEY).and_then(|text| serde_json::from_str(text).ok()),
        }
    }
}

/// The log store of the table in folder `path`, which must exist.
pub(super) fn log_store(path: &Path) -> Result<LogStoreRef> {
    let fail = |error| delta_error(path, "opening", error);
    let absolute = std::fs::canonicalize(path)?;
    let url = url::Url::from_directory_path(&absolute)
        .map_err(|()| Error::config(format!("{} cannot be used as a path", absolute.display())))?;
    let builder = DeltaTableBuilder::from_url(url.clone()).map_err(fail)?;
    #[cfg(test)]
    let builder = match crate::storage::tests::faulty_store::open_faulty(path, true) {
        Some(store) => builder.with_storage_backend(store, url),
        None => builder,
    };
    let table = builder.build().map_err(fail)?;
    Ok(table.log_store())
}

/// Opens the table of `spec`. Creates it if it is missing, and adds new columns.
///
/// # Errors
/// [`Kind::Config`] for a column whose type changed or another time column, [`Kind::Recovery`] for
/// another Kafka cluster, [`Kind::Storage`].
pub(super) async fn open(
    root: &Path,
    spec: &TableSpec,
    cluster: &str,
) -> Result<(LogStoreRef, DeltaTableState)> {
    let path = spec.path(root);
    std::fs::create_dir_all(&path)?;
    let fail = |error| delta_error(&path, "opening", error);
    let stored = spec.stored_schema()?;
    let store = log_store(&path)?;
    let mut table = DeltaTable::new(store.clone());
    if store.is_delta_table_location().await.map_err(fail)? {
        table.load().await.map_err(fail)?;
        evolve(&path, table, spec, &stored, cluster).await
    } else {
        let table = create(table, spec, &stored, cluster).await?.await.map_err(fail)?;
        let state = table.snapshot().map_err(fail)?.clone();
        Ok((store, state))
    }
}

async fn create(
    table: DeltaTable,
    spec: &TableSpec,
    stored: &SchemaRef,
    cluster: &str,
) -> Result<deltalake::operations::create::CreateBuilder> {
    let mut columns = struct_fields(stored.fields().iter())?;
    let date = Arc::new(Field::new(DATE, DataType::Date32, true));
    columns.extend(struct_fields(std::iter::once(&date))?);
    let fixed = [
        ("delta.dataSkippingNumIndexedCols", INDEXED.to_string()),
        ("delta.checkpointInterval", "50".to_owned()),
        // A commit every 10 s is 8,640 log files a day, and each commit lists them.
        ("delta.logRetentionDuration", "interval 6 hours".to_owned()),
        ("delta.deletedFileRetentionDuration", "interval 1 days".to_owned()),
    ];
    let properties = spec.properties(cluster)?.into_iter();
    let properties = properties.chain(fixed.map(|(name, value)| (name.to_owned(), value)));
    Ok(table
        .create()
        .with_table_name(format!("{}.{}", spec.customer, spec.name))
        .with_columns(columns)
        .with_partition_columns([DATE])
        .with_configuration(properties.map(|(name, value)| (name, Some(value))))
        .with_raise_if_key_not_exists(false)
        .with_save_mode(SaveMode::Ignore))
}

async fn evolve(
    path: &Path,
    mut table: DeltaTable,
    spec: &TableSpec,
    stored: &SchemaRef,
    cluster: &str,
) -> Result<(LogStoreRef, DeltaTableState)> {
    let fail = |error| delta_error(path, "changing the schema", error);
    let store = table.log_store();
    let state = table.snapshot().map_err(fail)?.clone();
    check(path, &state, spec, cluster)?;
    let existing = state.snapshot().arrow_schema();
    let mut added = Vec::new();
    for field in stored.fields() {
        match existing.field_with_name(field.name()) {
            Ok(old) if old.data_type().equals_datatype(field.data_type()) => {}
            Ok(old) => {
                return Err(Error::config(format!(
                    "column '{}' of '{}' has a different type in history",
                    field.name(),
                    spec.name
                ))
                .detail(format!("history: {}, now: {}", old.data_type(), field.data_type()))
                .hint(format!("give the column a new name, or move {} away", path.display())));
            }
            Err(_) => added.push(field),
        }
    }
    if !added.is_empty() {
        let fields = struct_fields(added.into_iter())?;
        table = table.add_columns().with_fields(fields).await.map_err(fail)?;
    }
    let mut changed = spec.properties(cluster)?;
    let old = state.metadata().configuration();
    changed.retain(|name, value| old.get(name) != Some(value));
    if !changed.is_empty() {
        let set = table.set_tbl_properties().with_properties(changed);
        table = set.with_raise_if_not_exists(false).await.map_err(fail)?;
    }
    let state = table.snapshot().map_err(fail)?.clone();
    Ok((store, state))
}

/// Checks that the table belongs to this cluster and has the time column of `spec`.
fn check(path: &Path, state: &DeltaTableState, spec: &TableSpec, cluster: &str) -> Result<()> {
    let metadata: &Metadata = state.metadata();
    let properties = metadata.configuration();
    if let Some(old) = properties.get(CLUSTER).filter(|old| *old != cluster) {
        return Err(Error::new(Kind::Recovery, "this history comes from another Kafka cluster")
            .detail(format!("{}: cluster '{old}', now '{cluster}'", path.display()))
            .hint("use another --data-dir, or move the history away to start a new one"));
    }
    let time = spec.time_column();
    if let Some(old) = properties.get(TIME).filter(|old| *old != time) {
        return Err(Error::config(format!(
            "'{}' has a different time column in history",
            spec.name
        ))
        .detail(format!("history: '{old}', now: '{time}'"))
        .hint(format!("give it a new name, or move {} away", path.display())));
    }
    if metadata.partition_columns().iter().ne([DATE]) {
        return Err(Error::config(format!("{} is not a Millstream history table", path.display()))
            .hint("use another --data-dir"));
    }
    Ok(())
}

fn struct_fields<'a>(fields: impl Iterator<Item = &'a Arc<Field>>) -> Result<Vec<StructField>> {
    fields
        .map(|field| {
            let converted: Result<StructField, _> = field.as_ref().try_into_kernel();
            converted.map_err(|error| {
                Error::internal(format!("Delta cannot store column '{}'", field.name()))
                    .because(error)
            })
        })
        .collect()
}

/// Converts a field. Every stored field is nullable, because a later schema may make a column
/// nullable, and a tombstone contains only a key.
fn stored_field(field: &Field) -> Result<Field, String> {
    Ok(Field::new(field.name(), stored_type(field.data_type())?, true))
}

/// The Delta type for a type of the engine. The cast back is lossless.
fn stored_type(engine: &DataType) -> Result<DataType, String> {
    use DataType::*;
    let fields = |fields: &Fields| -> Result<Fields, String> {
        fields.iter().map(|field| stored_field(field)).collect()
    };
    Ok(match engine {
        Boolean | Int8 | Int16 | Int32 | Int64 | Float32 | Float64 | Date32 => engine.clone(),
        UInt8 => Int16,
        UInt16 => Int32,
        UInt32 => Int64,
        UInt64 => Decimal128(20, 0),
        Float16 => Float32,
        Date64 => Date32,
        Utf8 | LargeUtf8 | Utf8View => Utf8,
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Binary,
        Decimal32(p, s) | Decimal64(p, s) | Decimal128(p, s) if *s >= 0 => Decimal128(*p, *s),
        Timestamp(_, Some(_)) => Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Timestamp(_, None) => Timestamp(TimeUnit::Microsecond, None),
        Dictionary(_, values) => stored_type(values)?,
        RunEndEncoded(_, values) => stored_type(values.data_type())?,
        List(item)
        | LargeList(item)
        | ListView(item)
        | LargeListView(item)
        | FixedSizeList(item, _) => List(Arc::new(stored_field(item)?)),
        Struct(inner) => Struct(fields(inner)?),
        other => return Err(format!("Delta has no type for {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_types_have_a_stored_type_or_a_reason() {
        let zone = DataType::Timestamp(TimeUnit::Nanosecond, Some("Asia/Kathmandu".into()));
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        assert_eq!(stored_type(&zone), Ok(utc));
        let dictionary =
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8View));
        assert_eq!(stored_type(&dictionary), Ok(DataType::Utf8));
        assert_eq!(stored_type(&DataType::UInt64), Ok(DataType::Decimal128(20, 0)));
        assert!(stored_type(&DataType::Duration(TimeUnit::Second)).is_err());
        // Types in table properties are parsed from their text.
        for engine in [zone, DataType::UInt64, DataType::Decimal128(10, 2)] {
            assert_eq!(DataType::from_str(&engine.to_string()).unwrap(), engine);
        }
    }
}
