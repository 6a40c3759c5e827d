//! SQL sessions over history, with one schema per customer.
//!
//! `<customer>.<stream>`, `<customer>.<query>`, `<customer>.<stream>_late`,
//! `<customer>.dead_letters`, the customer's reference tables, and `millstream.watermarks` and
//! `millstream.windows`. The name of a keyed result selects the latest row of each key;
//! `<name>_changes` selects every change.
//!
//! Each query opens the newest snapshot of its tables, so a session may stay open while a pipeline
//! writes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, SchemaProvider, TableProvider, TableProviderFactory,
};
use datafusion::common::{DFSchema, ToDFSchema};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::listing_table_factory::ListingTableFactory;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{CreateExternalTable, Expr, ExprFunctionExt, TableType, ident, lit};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::catalog::{Catalog, Customer, Emit, QueryKind, Table, TableFormat};
use crate::history::delta_table::{DELETED, OFFSET, PARTITION, POSITION, TOPIC, TableSpec};
use crate::history::status_tables::StatusSchema;
use crate::history::table_provider::{self, HistoryTable};
use crate::history::{table_path, tables};
use crate::{Error, Result};

/// The suffix of the table with every change of a keyed result.
const CHANGES: &str = "_changes";
/// The table of dead letters.
const DEAD_LETTERS: &str = "dead_letters";
/// The memory limit of one session; sorts and joins spill to disk beyond it.
const QUERY_BYTES: usize = 2 << 30;

/// Creates a session over the history under `root` of the customers of `catalog`. With only one
/// customer, its schema is the default schema and its time zone is that of the session.
///
/// # Errors
/// [`crate::Kind::Internal`] only, because tables are opened later.
pub async fn context(root: &Path, catalog: &Catalog) -> Result<SessionContext> {
    let one = match catalog.customers.as_slice() {
        [one] => Some(one),
        _ => None,
    };
    let zone = one.map_or("UTC", |customer| customer.zone.name());
    let default = one.map_or("millstream", |customer| &customer.name);
    let config = SessionConfig::new()
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema("history", default)
        .with_information_schema(true)
        .set_str("datafusion.execution.time_zone", zone)
        .set_bool("datafusion.sql_parser.collect_spans", true);
    let runtime = RuntimeEnvBuilder::new().with_memory_limit(QUERY_BYTES, 1.0).build_arc()?;
    let context = SessionContext::new_with_config_rt(table_provider::settings(config), runtime);
    let schemas = MemoryCatalogProvider::new();
    for customer in &catalog.customers {
        let schema = CustomerSchema {
            root: root.to_owned(),
            project: catalog.root.clone(),
            customer: customer.clone(),
        };
        schemas.register_schema(&customer.name, Arc::new(schema))?;
    }
    let names = catalog.customers.iter().map(|customer| customer.name.clone()).collect();
    let folder = root.parent().unwrap_or(Path::new("")).join("status");
    schemas.register_schema("millstream", Arc::new(StatusSchema::new(&folder, names, zone)))?;
    context.register_catalog("history", Arc::new(schemas));
    Ok(context)
}

/// The schema of one customer.
#[derive(Debug)]
struct CustomerSchema {
    root: PathBuf,
    project: PathBuf,
    customer: Arc<Customer>,
}

impl CustomerSchema {
    async fn history(&self, name: &str) -> Result<Option<HistoryTable>> {
        let path = table_path(&self.root, &self.customer.name, name);
        if !path.join("_delta_log").is_dir() {
            return Ok(None);
        }
        Ok(Some(HistoryTable::open(&path).await?))
    }

    async fn find(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if let Some(table) = self.customer.table(name) {
            return Ok(Some(reference_table(&self.project, table).await?));
        }
        if let Some(found) = self.history(name).await? {
            return match found.key().map(<[String]>::to_vec) {
                Some(key) => Ok(Some(latest(found, &key)?)),
                None if name == DEAD_LETTERS => Ok(Some(reason_first(found)?)),
                None => Ok(Some(Arc::new(found))),
            };
        }
        if let Some(base) = name.strip_suffix(CHANGES)
            && let Some(found) = self.history(base).await?
        {
            return Ok(found.key().is_some().then(|| Arc::new(found) as _));
        }
        if let Some(stream) = self.customer.stream(name) {
            let (time, zone) = (stream.watermark.column.as_str(), self.customer.zone.name());
            let spec = TableSpec::new("", name, &stream.schema(), Some(time), None, zone);
            return Ok(Some(Arc::new(EmptyTable::new(spec.schema))));
        }
        if self.customer.query(name).is_some() {
            return Err(Error::sql(format!("'{name}' has no history yet"))
                .hint("history of a query starts with its first result"));
        }
        Ok(None)
    }
}

#[async_trait]
impl SchemaProvider for CustomerSchema {
    fn table_names(&self) -> Vec<String> {
        let mut names: BTreeSet<String> =
            tables(&self.root, &self.customer.name).into_iter().collect();
        for query in &self.customer.queries {
            let keyed = query.kind != QueryKind::Stream
                || query.emit != Emit::Final
                || query.allowed_lateness_us > 0;
            if keyed && names.contains(&query.name) {
                names.insert(format!("{}{CHANGES}", query.name));
            }
        }
        names.extend(self.customer.streams.iter().map(|stream| stream.name.clone()));
        names.extend(self.customer.tables.iter().map(|table| table.name.clone()));
        names.into_iter().collect()
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        self.find(name).await.map_err(|error| DataFusionError::External(Box::new(error)))
    }

    async fn table_type(&self, name: &str) -> DataFusionResult<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.table_names().iter().any(|known| known == name)
    }
}

/// A view of the dead letters in which the most important columns are the first ones.
fn reason_first(letters: HistoryTable) -> Result<Arc<dyn TableProvider>> {
    let schema = letters.schema();
    let first = ["stage", "reason", "column", "value", "key"];
    let first = first.into_iter().filter(|name| schema.index_of(name).is_ok());
    let rest = (schema.fields().iter().map(|field| field.name().as_str()))
        .filter(|name| !first.clone().any(|early| early == *name));
    let columns: Vec<Expr> = first.clone().chain(rest).map(ident).collect();
    Ok(SessionContext::new().read_table(Arc::new(letters))?.select(columns)?.into_view())
}

/// A view with the latest row of each key, unless it is a tombstone, and without the source columns.
fn latest(changes: HistoryTable, key: &[String]) -> Result<Arc<dyn TableProvider>> {
    const RANK: &str = "_rank";
    let columns: Vec<Expr> = (changes.schema().fields().iter())
        .map(|field| field.name().as_str())
        .filter(|name| ![TOPIC, PARTITION, OFFSET, POSITION, DELETED].contains(name))
        .map(ident)
        .collect();
    let newest_first = [PARTITION, OFFSET, POSITION].map(|name| ident(name).sort(false, false));
    let rank = row_number()
        .partition_by(key.iter().map(ident).collect())
        .order_by(newest_first.to_vec())
        .build()?
        .alias(RANK);
    // Results without tombstones do not have the column.
    let is_live = match changes.schema().index_of(DELETED) {
        Ok(_) => ident(DELETED).is_not_true(),
        Err(_) => lit(true),
    };
    let rows = SessionContext::new()
        .read_table(Arc::new(changes))?
        .window(vec![rank])?
        .filter(ident(RANK).eq(lit(1_u64)))?
        .filter(is_live)?
        .select(columns)?;
    Ok(rows.into_view())
}

/// Opens the current file of a reference table as a DataFusion external table.
async fn reference_table(project: &Path, table: &Table) -> Result<Arc<dyn TableProvider>> {
    let path = project.join(&table.location);
    let mut location = path.to_string_lossy().into_owned();
    if path.is_dir() && !location.ends_with('/') {
        location.push('/');
    }
    let format = match table.format {
        TableFormat::Csv => "CSV",
        TableFormat::Parquet => "PARQUET",
    };
    let schema = match &table.columns {
        Some(columns) => columns.clone().to_dfschema_ref()?,
        None => Arc::new(DFSchema::empty()),
    };
    let create = CreateExternalTable::builder(table.name.as_str(), location, format, schema)
        .with_options(table.options.iter().cloned().collect())
        .build();
    let config = table_provider::settings(SessionConfig::new());
    let session = SessionContext::new_with_config(config).state();
    let created = ListingTableFactory::new().create(&session, &create).await;
    created.map_err(|error| {
        Error::config(format!("cannot read table '{}' from {}", table.name, path.display()))
            .because(error)
    })
}

/// The names of all tables that a query may use, for hints.
pub(super) fn known_tables(context: &SessionContext) -> Vec<String> {
    let Some(catalog) = context.catalog("history") else { return Vec::new() };
    let default = context.copied_config().options().catalog.default_schema.clone();
    let mut names = Vec::new();
    for schema in catalog.schema_names() {
        let Some(tables) = catalog.schema(&schema) else { continue };
        names.extend(tables.table_names().into_iter().map(|table| match schema == default {
            true => table,
            false => format!("{schema}.{table}"),
        }));
    }
    names
}
