//! Reference tables: files that people edit, as versions that epochs can name.
//!
//! Each version is copied, under its content hash, beside the customer's state before the first
//! epoch that uses it, so that recovery can run old epochs with the table as it was.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::{CsvReadOptions, ParquetReadOptions, SessionConfig, SessionContext};
use sha2::{Digest, Sha256};

use crate::catalog::{Table, TableFormat};
use crate::{Error, Kind, Result};

/// A customer's reference tables and where their versions are kept.
pub struct ReferenceTables {
    root: PathBuf,
    versions: PathBuf,
    tables: Vec<Arc<Table>>,
    seen: HashMap<String, (Option<SystemTime>, u64)>,
    /// The version (content hash) of each table that was loaded last.
    pub current: BTreeMap<String, String>,
}

/// A table's new content.
pub struct Version {
    /// The table.
    pub name: String,
    /// Its content hash.
    pub hash: String,
    /// Its rows.
    pub rows: Vec<RecordBatch>,
}

impl ReferenceTables {
    /// `root` is what table locations are relative to; copies go to `versions`.
    pub fn new(root: &Path, versions: PathBuf, tables: Vec<Arc<Table>>) -> Self {
        let (seen, current) = (HashMap::new(), BTreeMap::new());
        Self { root: root.to_owned(), versions, tables, seen, current }
    }

    /// Tables whose file changed since the last call; all of them at first. A file that cannot be
    /// read keeps the version that was, and says so in the log.
    pub async fn changed(&mut self) -> Result<Vec<Version>> {
        let mut changed = Vec::new();
        for table in self.tables.clone() {
            let path = self.root.join(&table.location);
            let mark = std::fs::metadata(&path).map(|m| (m.modified().ok(), m.len()));
            if mark.as_ref().ok().is_some_and(|m| self.seen.get(&table.name) == Some(m)) {
                continue;
            }
            match self.load(&table, &path).await {
                Ok(version) => {
                    if let Ok(mark) = mark {
                        self.seen.insert(table.name.clone(), mark);
                    }
                    if self.current.get(&table.name) != Some(&version.hash) {
                        self.current.insert(table.name.clone(), version.hash.clone());
                        changed.push(version);
                    }
                }
                Err(error) if self.current.contains_key(&table.name) => {
                    tracing::warn!(table = table.name, %error, "the table keeps its last content");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }

    async fn load(&self, table: &Table, path: &Path) -> Result<Version> {
        let bytes = tokio::fs::read(path).await.map_err(|e| unreadable(table, path).because(e))?;
        let digest = Sha256::digest(&bytes);
        let hash: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        let copy = self.copy_path(&table.name, &hash, table.format);
        if !copy.exists() {
            tokio::fs::create_dir_all(&self.versions).await?;
            let draft = copy.with_extension("draft");
            tokio::fs::write(&draft, &bytes).await?;
            tokio::fs::rename(&draft, &copy).await?;
        }
        let rows = read(table, &copy).await?;
        Ok(Version { name: table.name.clone(), hash, rows })
    }

    /// An earlier version, from its copy.
    pub async fn version(&mut self, name: &str, hash: &str) -> Result<Vec<RecordBatch>> {
        let table = self.tables.iter().find(|t| t.name == name).cloned();
        let table = table.ok_or_else(|| {
            Error::new(
                Kind::Recovery,
                format!("the table '{name}' is in the log but in no schema file"),
            )
            .hint("put it back, or start over with --reset")
        })?;
        self.current.insert(name.to_owned(), hash.to_owned());
        read(&table, &self.copy_path(name, hash, table.format)).await
    }

    fn copy_path(&self, name: &str, hash: &str, format: TableFormat) -> PathBuf {
        let extension = match format {
            TableFormat::Csv => "csv",
            TableFormat::Parquet => "parquet",
        };
        self.versions.join(format!("{name}-{hash}.{extension}"))
    }
}

/// The columns of a table, read from its file.
pub async fn schema(root: &Path, table: &Table) -> Result<SchemaRef> {
    let rows = read(table, &root.join(&table.location)).await?;
    Ok(rows.first().map(RecordBatch::schema).unwrap_or_else(|| {
        table.columns.clone().unwrap_or_else(|| Arc::new(arrow::datatypes::Schema::empty()))
    }))
}

/// The rows of a table's file; at least one batch, so that its columns are known.
pub async fn read(table: &Table, path: &Path) -> Result<Vec<RecordBatch>> {
    let fail = |e: datafusion::error::DataFusionError| unreadable(table, path).because(e);
    if !path.exists() {
        return Err(unreadable(table, path).detail("there is no such file"));
    }
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = SessionContext::new_with_config(config);
    let location = path.to_string_lossy();
    let extension =
        path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    let frame = match table.format {
        TableFormat::Csv => {
            let option =
                |name: &str| table.options.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
            let mut options = CsvReadOptions::new()
                .has_header(
                    option("format.has_header").is_none_or(|v| v.eq_ignore_ascii_case("true")),
                )
                .file_extension(&extension);
            if let Some(delimiter) = option("format.delimiter").and_then(|d| d.bytes().next()) {
                options = options.delimiter(delimiter);
            }
            if let Some(schema) = &table.columns {
                options = options.schema(schema);
            }
            context.read_csv(location.as_ref(), options).await.map_err(fail)?
        }
        TableFormat::Parquet => {
            let options = ParquetReadOptions::default().file_extension(&extension);
            context.read_parquet(location.as_ref(), options).await.map_err(fail)?
        }
    };
    let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
    let mut rows = frame.collect().await.map_err(fail)?;
    if rows.is_empty() {
        rows.push(RecordBatch::new_empty(schema));
    }
    Ok(rows)
}

fn unreadable(table: &Table, path: &Path) -> Error {
    Error::config(format!("the table '{}' cannot be read from {}", table.name, path.display()))
        .at(table.place.clone())
        .hint("LOCATION is relative to the project folder")
}
