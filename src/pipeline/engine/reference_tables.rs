//! Reference tables: files that users edit, loaded as versions that epochs can name.
//!
//! Before the first epoch that uses a version, its file is copied next to the customer's state
//! under its content hash. So recovery can replay old epochs with the table as it was.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use datafusion::common::Column;
use datafusion::error::DataFusionError;
use datafusion::prelude::{
    CsvReadOptions, DataFrame, Expr, ParquetReadOptions, SessionConfig, SessionContext, cast,
};
use sha2::{Digest, Sha256};

use crate::catalog::{Table, TableFormat};
use crate::{Error, Kind, Result};

/// A customer's reference tables and the folder of their versions.
pub struct ReferenceTables {
    root: PathBuf,
    versions: PathBuf,
    tables: Vec<Arc<Table>>,
    /// The columns that the plans expect, whatever types would be inferred from a new file.
    planned: BTreeMap<String, SchemaRef>,
    /// The stamp of each table's file when it was last loaded.
    loaded: HashMap<String, FileStamp>,
    /// The stamp of each file that was refused and logged; `None` for a missing file.
    refused: HashMap<String, Option<FileStamp>>,
    /// The version (content hash) of each table that is in use.
    pub current: BTreeMap<String, String>,
}

/// The modification time of a file and its length in bytes.
type FileStamp = (Option<SystemTime>, u64);

/// A version of a table's content.
pub struct TableVersion {
    /// The name of the table.
    pub name: String,
    /// The hash of the content.
    pub hash: String,
    /// The rows.
    pub rows: Vec<RecordBatch>,
}

impl ReferenceTables {
    /// Table locations are relative to `root`; copies go to the folder `versions`. `planned` has
    /// the columns that the plans expect of each table.
    pub fn new(
        root: &Path,
        versions: PathBuf,
        tables: Vec<Arc<Table>>,
        planned: BTreeMap<String, SchemaRef>,
    ) -> Self {
        let (loaded, refused, current) = Default::default();
        Self { root: root.to_owned(), versions, tables, planned, loaded, refused, current }
    }

    /// Loads the tables whose file changed since the last call; the first call loads all tables. If
    /// a new file cannot be read, or lacks columns that the plans expect, the table keeps its
    /// version, and a warning is logged once for each state of the file.
    ///
    /// # Errors
    /// A table that has no version yet cannot be loaded.
    pub async fn load_changed(&mut self) -> Result<Vec<TableVersion>> {
        let mut changed = Vec::new();
        for table in self.tables.clone() {
            let path = self.root.join(&table.location);
            let stamp = std::fs::metadata(&path).map(|m| (m.modified().ok(), m.len())).ok();
            if stamp.as_ref().is_some_and(|stamp| self.loaded.get(&table.name) == Some(stamp)) {
                continue;
            }
            match self.load(&table, &path).await {
                Ok(version) => {
                    self.refused.remove(&table.name);
                    self.store_columns(&table).await?;
                    if let Some(stamp) = stamp {
                        self.loaded.insert(table.name.clone(), stamp);
                    }
                    if self.current.get(&table.name) != Some(&version.hash) {
                        self.current.insert(table.name.clone(), version.hash.clone());
                        changed.push(version);
                    }
                }
                Err(error) if self.current.contains_key(&table.name) => {
                    if self.refused.get(&table.name) != Some(&stamp) {
                        tracing::warn!(table = table.name, %error, "cannot load the new content of the table; the last content stays in use, with the columns that the state was made with");
                        self.refused.insert(table.name.clone(), stamp);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }

    /// Copies the file of a table to the versions and reads the copy. A new copy that cannot be
    /// read is deleted again.
    async fn load(&self, table: &Table, path: &Path) -> Result<TableVersion> {
        let bytes = tokio::fs::read(path).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => missing(table),
            _ => unreadable(table, path).because(error),
        })?;
        let hash = hex::encode(&Sha256::digest(&bytes)[..16]);
        let copy = self.copy_path(&table.name, &hash, table.format);
        let is_new = !copy.exists();
        if is_new {
            tokio::fs::create_dir_all(&self.versions).await?;
            let draft = copy.with_extension("draft");
            tokio::fs::write(&draft, &bytes).await?;
            tokio::fs::rename(&draft, &copy).await?;
        }
        match read_copy(table, path, &copy, self.planned.get(&table.name)).await {
            Ok(rows) => Ok(TableVersion { name: table.name.clone(), hash, rows }),
            Err(error) => {
                if is_new {
                    tokio::fs::remove_file(&copy).await?;
                }
                Err(error)
            }
        }
    }

    /// Stores the columns of a table that declares none, for the next start.
    async fn store_columns(&self, table: &Table) -> Result<()> {
        let Some(columns) = self.planned.get(&table.name).filter(|_| table.columns.is_none())
        else {
            return Ok(());
        };
        let path = columns_path(&self.versions, &table.name);
        if read_stored_columns(&path).as_ref() == Some(columns) {
            return Ok(());
        }
        let mut writer = StreamWriter::try_new(Vec::new(), columns)?;
        writer.finish()?;
        tokio::fs::write(path, writer.into_inner()?).await?;
        Ok(())
    }

    /// Reads an earlier version from its copy and makes it the current one.
    ///
    /// # Errors
    /// `Recovery`: no schema file declares the table. Or the copy cannot be read.
    pub async fn load_version(&mut self, name: &str, hash: &str) -> Result<Vec<RecordBatch>> {
        let table = self.tables.iter().find(|t| t.name == name).cloned();
        let table = table.ok_or_else(|| {
            Error::new(
                Kind::Recovery,
                format!("the table '{name}' is in the log but in no schema file"),
            )
            .hint("put it back, or start over with --reset")
        })?;
        self.current.insert(name.to_owned(), hash.to_owned());
        let (path, copy) =
            (self.root.join(&table.location), self.copy_path(name, hash, table.format));
        read_copy(&table, &path, &copy, self.planned.get(name)).await
    }

    fn copy_path(&self, name: &str, hash: &str, format: TableFormat) -> PathBuf {
        let extension = match format {
            TableFormat::Csv => "csv",
            TableFormat::Parquet => "parquet",
        };
        self.versions.join(format!("{name}-{hash}.{extension}"))
    }
}

fn columns_path(versions: &Path, table: &str) -> PathBuf {
    versions.join(format!("{table}.columns.arrow"))
}

/// Reads the columns that an earlier run stored; `None` if it stored none that can be read.
fn read_stored_columns(path: &Path) -> Option<SchemaRef> {
    let file = std::fs::File::open(path).ok()?;
    Some(StreamReader::try_new(file, None).ok()?.schema())
}

/// Returns the columns of a table: as declared, or as inferred from its file. Columns that an
/// earlier run stored in the folder `versions` stay unchanged, even if the file cannot be read; new
/// columns of the file come after them.
///
/// # Errors
/// There is no such file, or it cannot be read.
pub async fn schema(root: &Path, table: &Table, versions: Option<&Path>) -> Result<SchemaRef> {
    let path = root.join(&table.location);
    let found = read(table, &path, None).await.map(|rows| match rows.first() {
        Some(rows) => rows.schema(),
        None => table.columns.clone().unwrap_or_else(|| Arc::new(Schema::empty())),
    });
    let versions = versions.filter(|_| table.columns.is_none());
    let stored =
        versions.and_then(|folder| read_stored_columns(&columns_path(folder, &table.name)));
    let Some(stored) = stored else {
        return found;
    };
    let found = found.unwrap_or_else(|_| Arc::new(Schema::empty()));
    let new = found.fields().iter().filter(|field| stored.index_of(field.name()).is_err());
    Ok(Arc::new(Schema::new(stored.fields().iter().chain(new).cloned().collect::<Vec<_>>())))
}

/// Reads the rows of a table's file, as at least one batch, so that the columns are known. If
/// `planned` is given, the rows have these columns, matched by name.
///
/// # Errors
/// There is no such file, it lacks a column, or a value is not of its column's type.
pub async fn read(
    table: &Table,
    path: &Path,
    planned: Option<&SchemaRef>,
) -> Result<Vec<RecordBatch>> {
    read_copy(table, path, path, planned).await
}

/// Does what [`read`] does, with a copy of the file at `path`. Errors name the file, not the copy.
async fn read_copy(
    table: &Table,
    path: &Path,
    copy: &Path,
    planned: Option<&SchemaRef>,
) -> Result<Vec<RecordBatch>> {
    let name_original = |text: String| {
        let (copy, path) = (copy.to_string_lossy(), path.to_string_lossy());
        let text = text.replace(copy.as_ref(), &path);
        text.replace(copy.trim_start_matches('/'), &path)
    };
    let fail = |e: DataFusionError| {
        unreadable(table, path).detail(name_original(e.find_root().strip_backtrace()))
    };
    if !copy.is_file() {
        return Err(missing(table));
    }
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
        .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false);
    let context = SessionContext::new_with_config(config);
    let mut frame = open(&context, table, copy, planned).await.map_err(fail)?;
    if let Some(planned) = planned {
        let schema = frame.schema().as_arrow();
        if let Some(lost) = planned.fields().iter().find(|f| schema.index_of(f.name()).is_err()) {
            let names: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(unreadable(table, path).detail(format!(
                "it lacks the column '{}'; it has: {}",
                lost.name(),
                names.join(", ")
            )));
        }
        let columns = planned.fields().iter().map(|field| {
            let column = Expr::Column(Column::from_name(field.name()));
            cast(column, field.data_type().clone()).alias(field.name())
        });
        frame = frame.select(columns.collect::<Vec<_>>()).map_err(fail)?;
    }
    let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
    let mut rows = frame.collect().await.map_err(fail)?;
    if rows.is_empty() {
        rows.push(RecordBatch::new_empty(schema));
    }
    match planned {
        // The plans decide whether a column is nullable, not this version of the file.
        Some(planned) => (rows.into_iter())
            .map(|rows| RecordBatch::try_new(planned.clone(), rows.columns().to_vec()))
            .collect::<Result<_, _>>()
            .map_err(|e| fail(e.into())),
        None => Ok(rows),
    }
}

/// Opens a file of a table. A CSV file is read with the types of `planned`, or else with the
/// declared ones.
async fn open(
    context: &SessionContext,
    table: &Table,
    file: &Path,
    planned: Option<&SchemaRef>,
) -> Result<DataFrame, DataFusionError> {
    let location = file.to_string_lossy();
    let extension =
        file.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    match table.format {
        TableFormat::Csv => {
            let mut options = csv_options(table, &extension);
            let file_schema;
            if let Some(columns) = planned.or(table.columns.as_ref()) {
                let found = context.read_csv(location.as_ref(), options.clone()).await?;
                file_schema = csv_schema(found.schema().as_arrow(), columns, |has_all| {
                    options.has_header && (has_all || table.columns.is_none())
                });
                options = options.schema(&file_schema);
            }
            context.read_csv(location.as_ref(), options).await
        }
        TableFormat::Parquet => {
            let options = ParquetReadOptions::default().file_extension(&extension);
            context.read_parquet(location.as_ref(), options).await
        }
    }
}

fn csv_options<'a>(table: &'a Table, extension: &'a str) -> CsvReadOptions<'a> {
    let option =
        |name: &str| table.options.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let header = option("format.has_header").is_none_or(|v| v.eq_ignore_ascii_case("true"));
    let options = CsvReadOptions::new().has_header(header).file_extension(extension);
    match option("format.delimiter").and_then(|d| d.bytes().next()) {
        Some(delimiter) => options.delimiter(delimiter),
        None => options,
    }
}

/// Returns the schema by which a CSV file is read whose header has the names of `found`. Columns
/// are matched by name if `by_name` returns true; its argument is whether the file has all columns
/// of `wanted`. Then columns that `wanted` lacks are read as text. Otherwise the columns are those
/// of `wanted`, by position.
fn csv_schema(found: &Schema, wanted: &Schema, by_name: impl Fn(bool) -> bool) -> Schema {
    let has_all = wanted.fields().iter().all(|field| found.index_of(field.name()).is_ok());
    if !by_name(has_all) {
        return wanted.clone();
    }
    let typed = found.fields().iter().map(|field| match wanted.field_with_name(field.name()) {
        Ok(wanted) => wanted.clone(),
        Err(_) => Field::new(field.name(), DataType::Utf8, true),
    });
    Schema::new(typed.collect::<Vec<_>>())
}

fn missing(table: &Table) -> Error {
    Error::sql(format!("there is no file '{}'", table.location.display()))
        .at(table.location_place.clone())
        .hint("the path is relative to the project's folder")
}

fn unreadable(table: &Table, path: &Path) -> Error {
    Error::config(format!("the table '{}' cannot be read from {}", table.name, path.display()))
        .at(table.place.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    struct Rooms {
        folder: tempfile::TempDir,
        tables: ReferenceTables,
    }

    impl Rooms {
        /// A table `rooms` whose plan was made from `content`.
        async fn new(content: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let table = Arc::new(Table {
                name: "rooms".into(),
                format: TableFormat::Csv,
                location: "rooms.csv".into(),
                columns: None,
                options: vec![],
                place: crate::error::Place::new(Path::new("a.sql"), "", 1, 1, 1),
                location_place: crate::error::Place::new(Path::new("a.sql"), "", 1, 1, 1),
            });
            std::fs::write(folder.path().join("rooms.csv"), content).unwrap();
            let planned = schema(folder.path(), &table, None).await.unwrap();
            let planned = BTreeMap::from([("rooms".to_owned(), planned)]);
            let versions = folder.path().join("versions");
            let tables = ReferenceTables::new(folder.path(), versions, vec![table], planned);
            Self { folder, tables }
        }

        /// Writes `content` to the file and returns the sum of `max`; `None` if the table keeps its
        /// version.
        async fn sum(&mut self, content: &str) -> Option<i64> {
            std::fs::write(self.folder.path().join("rooms.csv"), content).unwrap();
            let mut changed = self.tables.load_changed().await.unwrap();
            let rows = changed.pop()?.rows;
            let column = |rows: &RecordBatch| rows.column_by_name("max").unwrap().clone();
            let sum = |rows| arrow::compute::sum(column(rows).as_primitive::<Int64Type>());
            Some(rows.iter().filter_map(sum).sum())
        }
    }

    #[tokio::test]
    async fn a_table_keeps_its_content_if_the_new_file_does_not_fit() {
        let mut rooms = Rooms::new("room,max\nhall,2\n").await;
        assert_eq!(rooms.sum("room,max\nhall,2\nkitchen,3\n").await, Some(5));
        for bad in ["", "room,max\nhall,abc\n", "room,most\nhall,7\n", "room,max\nhall\n"] {
            assert_eq!(rooms.sum(bad).await, None, "{bad}");
            assert_eq!(rooms.tables.refused.len(), 1, "{bad}");
        }
        let files = std::fs::read_dir(rooms.folder.path().join("versions")).unwrap();
        let copies = files.filter(|e| e.as_ref().unwrap().path().extension().unwrap() == "csv");
        assert_eq!(copies.count(), 1, "a refused file leaves no copy");
        // Columns are matched by name and keep their planned types.
        assert_eq!(rooms.sum("max,floor,room\n7,1,hall\n").await, Some(7));
        assert!(rooms.tables.refused.is_empty());
        assert_eq!(rooms.sum("room,max\n").await, Some(0));
    }

    #[tokio::test]
    async fn columns_keep_their_types_if_a_new_file_suggests_others() {
        let mut rooms = Rooms::new("room,max\nhall,2\n").await;
        assert_eq!(rooms.sum("room,max\nhall,2\n").await, Some(2));
        let (table, versions) = (rooms.tables.tables[0].clone(), rooms.tables.versions.clone());
        for content in ["room,max\nhall,2.5\n", "room,max\nhall,abc\n", "room,max\nhall,\n", ""] {
            std::fs::write(rooms.folder.path().join("rooms.csv"), content).unwrap();
            let columns = schema(rooms.folder.path(), &table, Some(&versions)).await.unwrap();
            assert_eq!(columns, rooms.tables.planned["rooms"], "{content}");
        }
        std::fs::write(rooms.folder.path().join("rooms.csv"), "floor,room,max\n1,hall,2.5\n")
            .unwrap();
        let columns = schema(rooms.folder.path(), &table, Some(&versions)).await.unwrap();
        let names: Vec<_> = columns.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["room", "max", "floor"]);
        std::fs::remove_file(rooms.folder.path().join("rooms.csv")).unwrap();
        assert!(schema(rooms.folder.path(), &table, Some(&versions)).await.is_ok());
        let error = schema(rooms.folder.path(), &table, None).await.unwrap_err();
        assert_eq!(error.message, "there is no file 'rooms.csv'");
        std::fs::create_dir(rooms.folder.path().join("rooms.csv")).unwrap();
        assert!(schema(rooms.folder.path(), &table, None).await.is_err(), "a folder is not a file");
    }
}
