//! Snapshots of state: Arrow IPC files and a manifest in an object store.
//!
//! Layout under a snapshot's path: `00000.arrow`, `00001.arrow`, ... (one batch each) and
//! `manifest.json`, which lists them with rows, bytes and checksum. The manifest is written last,
//! so a snapshot without a manifest is incomplete.
//!
//! Promises: `write` reads back the manifest and the size of every file before it returns; `read`
//! returns exactly what was written, or an error.
//!
//! Not promised: safety against power loss, because the local object store does not fsync. A killed
//! process loses nothing. The log names a snapshot only after `write`, and the previous snapshot is
//! not deleted before.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::failpoint::reach;
use crate::state::SnapshotManifest;
use crate::storage::with_timeout;
use crate::{Error, Kind, Result};

/// The version of the layout.
const FORMAT: u32 = 1;
/// The number of files that are read concurrently, because a start waits for them.
const CONCURRENT_READS: usize = 8;
/// The file name of the manifest.
const MANIFEST: &str = "manifest.json";

/// The content of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The part of the state that is not batches.
    pub manifest: SnapshotManifest,
    /// The batches with their names, in order. A name can be any text, and can occur twice.
    pub batches: Vec<(String, RecordBatch)>,
}

/// The content of `manifest.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestFile {
    format: u32,
    files: Vec<BatchFile>,
    manifest: SnapshotManifest,
}

/// A file with one batch, as the manifest lists it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BatchFile {
    /// The name of the batch.
    name: String,
    file: String,
    rows: u64,
    bytes: u64,
    sha256: String,
}

/// Writes a snapshot under `path`. Replaces the files that a failed attempt left there.
///
/// # Errors
/// The store fails, or does not contain afterwards what was written.
pub async fn write(store: &Arc<dyn ObjectStore>, path: &Path, snapshot: &Snapshot) -> Result<()> {
    let failed = |error| storage("write", path, error);
    let mut files = Vec::with_capacity(snapshot.batches.len());
    for (index, (name, batch)) in snapshot.batches.iter().enumerate() {
        let (rows, batch) = (batch.num_rows() as u64, batch.clone());
        let (bytes, sha256) = in_background(move || {
            let bytes = encode(&batch)?;
            let sha256 = checksum(&bytes);
            Ok((bytes, sha256))
        })
        .await?;
        let file = BatchFile {
            name: name.clone(),
            file: format!("{index:05}.arrow"),
            rows,
            bytes: bytes.len() as u64,
            sha256,
        };
        let location = path.clone().join(file.file.as_str());
        reach("snapshot.file");
        with_timeout(store.put(&location, PutPayload::from(bytes))).await?.map_err(failed)?;
        reach("snapshot.file.written");
        files.push(file);
    }
    let manifest = ManifestFile { format: FORMAT, files, manifest: snapshot.manifest.clone() };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| {
        Error::internal("cannot serialize the manifest of a snapshot").because(error)
    })?;
    let location = path.clone().join(MANIFEST);
    reach("snapshot.manifest");
    with_timeout(store.put(&location, PutPayload::from(text))).await?.map_err(failed)?;
    reach("snapshot.manifest.written");
    verify(store, path, &manifest).await?;
    reach("snapshot.verified");
    Ok(())
}

/// Reads back the manifest and the size of every file.
async fn verify(store: &Arc<dyn ObjectStore>, path: &Path, written: &ManifestFile) -> Result<()> {
    if read_manifest(store, path).await? != *written {
        return Err(damaged(path, "the manifest differs from what was written"));
    }
    for file in &written.files {
        let location = path.clone().join(file.file.as_str());
        let meta = with_timeout(store.head(&location)).await?;
        let size = meta.map_err(|error| storage("verify", path, error))?.size;
        if size != file.bytes {
            return Err(damaged(
                path,
                &format!("{} has {size} bytes, not {}", file.file, file.bytes),
            ));
        }
    }
    Ok(())
}

/// Reads a snapshot, and checks the size, the checksum and the number of rows of every file.
///
/// # Errors
/// `Recovery`: the snapshot is missing, damaged, or has another format. `Storage`: the store fails.
pub async fn read(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Snapshot> {
    let ManifestFile { files, manifest, .. } = read_manifest(store, path).await?;
    let files = futures::stream::iter(files).map(|file| read_file(store, path, file));
    let batches = files.buffered(CONCURRENT_READS).try_collect().await?;
    Ok(Snapshot { manifest, batches })
}

/// Reads and checks a file. Returns the name of the batch and the batch.
async fn read_file(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    file: BatchFile,
) -> Result<(String, RecordBatch)> {
    let bytes = get(store, path, &file.file).await?;
    let location = path.clone();
    in_background(move || {
        let sha256 = checksum(&bytes);
        if bytes.len() as u64 != file.bytes || sha256 != file.sha256 {
            return Err(damaged(
                &location,
                &format!("{} differs from what was written", file.file),
            ));
        }
        let batch = decode(bytes).map_err(|error| damaged(&location, &file.file).because(error))?;
        if batch.num_rows() as u64 != file.rows {
            let rows = batch.num_rows();
            let detail = format!("{} has {rows} rows, not {}", file.file, file.rows);
            return Err(damaged(&location, &detail));
        }
        Ok((file.name, batch))
    })
    .await
}

/// Deletes a snapshot, its manifest first, so that the remaining files never count as a snapshot.
/// Does nothing if the snapshot does not exist.
///
/// # Errors
/// The store fails.
pub async fn delete(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<()> {
    let failed = |error| storage("delete", path, error);
    reach("snapshot.delete");
    match store.delete(&path.clone().join(MANIFEST)).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => return Err(failed(error)),
    }
    reach("snapshot.delete.manifest");
    let rest = store.list(Some(path)).map_ok(|meta| meta.location).boxed();
    store.delete_stream(rest).try_collect::<Vec<_>>().await.map_err(failed)?;
    reach("snapshot.deleted");
    Ok(())
}

/// Returns the paths of all snapshots in the store, complete or not, in ascending order.
///
/// # Errors
/// The store fails.
pub async fn list(store: &Arc<dyn ObjectStore>) -> Result<Vec<Path>> {
    let found = store.list_with_delimiter(None).await;
    let found = found.map_err(list_failed)?;
    let mut paths = found.common_prefixes;
    paths.sort();
    Ok(paths)
}

async fn read_manifest(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<ManifestFile> {
    let bytes = get(store, path, MANIFEST).await?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| damaged(path, MANIFEST).because(error))?;
    match json.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        format => {
            let found = format.map_or_else(|| "none".to_owned(), |format| format.to_string());
            return Err(Error::new(Kind::Recovery, format!("snapshot {path} has another format"))
                .detail(format!("format {found}; this version reads {FORMAT}"))
                .hint("start the version of Millstream that wrote it, and stop it cleanly"));
        }
    }
    serde_json::from_value(json).map_err(|error| damaged(path, MANIFEST).because(error))
}

async fn get(store: &Arc<dyn ObjectStore>, path: &Path, file: &str) -> Result<Bytes> {
    let failed = |error| match error {
        object_store::Error::NotFound { .. } => damaged(path, &format!("{file} is missing")),
        error => storage("read", path, error),
    };
    let location = path.clone().join(file);
    let read = async { store.get(&location).await?.bytes().await };
    with_timeout(read).await?.map_err(failed)
}

/// Runs blocking work on a thread of its own.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::internal("the background work of a snapshot was interrupted").because(error)
    })?
}

fn encode(batch: &RecordBatch) -> Result<Vec<u8>> {
    let columns = batch.columns().iter().map(compact).collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(batch.schema(), columns, &options)?;
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

/// Copies the values of a view column, because a slice of views contains all buffers of the whole
/// column.
fn compact(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()),
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        _ => Arc::clone(column),
    }
}

fn decode(bytes: Bytes) -> Result<RecordBatch> {
    let mut reader = FileReader::try_new(Cursor::new(bytes), None)?;
    let batch = reader.next().transpose()?;
    batch.ok_or_else(|| Error::new(Kind::Recovery, "the Arrow file contains no batch"))
}

fn checksum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn damaged(path: &Path, detail: &str) -> Error {
    Error::new(Kind::Recovery, format!("snapshot {path} is damaged or incomplete"))
        .detail(detail.to_owned())
        .hint("the previous snapshot may be intact: the log names both")
}

fn list_failed(error: object_store::Error) -> Error {
    Error::new(Kind::Storage, "cannot list the snapshots").because(error)
}

fn storage(action: &str, path: &Path, error: object_store::Error) -> Error {
    Error::new(Kind::Storage, format!("cannot {action} snapshot {path}"))
        .hint("is there room on the disk, and may this user write there?")
        .because(error)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray, Float64Array,
        Int64Array, ListArray, NullArray, StringArray, StringViewArray, StructArray,
        TimestampMicrosecondArray, UInt64Array,
    };
    use arrow::datatypes::{Field, Int32Type, Schema};
    use object_store::local::LocalFileSystem;
    use serde_json::json;

    use super::*;

    /// Types of partial aggregates: lists (ordered aggregates), structs, decimals, binary sketches.
    fn wide() -> RecordBatch {
        let list = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
        ]);
        let nested = StructArray::from(vec![(
            Arc::new(Field::new("x", DataType::Float64, true)),
            Arc::new(Float64Array::from(vec![Some(f64::NAN), None, Some(-0.0)])) as ArrayRef,
        )]);
        let decimals = Decimal128Array::from(vec![Some(i128::MAX / 10), None, Some(-1)]);
        RecordBatch::try_from_iter_with_nullable([
            (
                "time",
                Arc::new(
                    TimestampMicrosecondArray::from(vec![i64::MIN, 0, i64::MAX])
                        .with_timezone("Europe/Helsinki"),
                ) as ArrayRef,
                false,
            ),
            ("text", Arc::new(StringArray::from(vec![Some("å"), None, Some("")])), true),
            (
                "view",
                Arc::new(StringViewArray::from(vec!["longer than twelve bytes", "", "b"])),
                false,
            ),
            (
                "sketch",
                Arc::new(BinaryArray::from(vec![Some(&b"\0\xff"[..]), None, Some(b"")])),
                true,
            ),
            ("list", Arc::new(list), true),
            ("struct", Arc::new(nested), true),
            ("decimal", Arc::new(decimals.with_precision_and_scale(38, 4).unwrap()), true),
            ("seen", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])), true),
            ("count", Arc::new(UInt64Array::from(vec![u64::MAX, 0, 1])), false),
            (
                "room",
                Arc::new(
                    vec!["hall", "kitchen", "hall"]
                        .into_iter()
                        .collect::<DictionaryArray<Int32Type>>(),
                ),
                true,
            ),
            ("nothing", Arc::new(NullArray::new(3)), true),
        ])
        .unwrap()
    }

    fn store() -> (tempfile::TempDir, Arc<dyn ObjectStore>) {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        (folder, Arc::new(store.with_automatic_cleanup(true)))
    }

    fn snapshot() -> Snapshot {
        let wide = wide();
        let no_columns = arrow::array::RecordBatchOptions::new().with_row_count(Some(7));
        let no_columns =
            RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &no_columns)
                .unwrap();
        let batches = vec![
            ("daily_visits/slot 0/[1, 2)".to_owned(), wide.clone()),
            ("a slice".to_owned(), wide.slice(1, 2)),
            ("empty".to_owned(), RecordBatch::new_empty(wide.schema())),
            ("no columns".to_owned(), no_columns),
        ];
        let manifest = json!({
            "streams": { "s": {
                "positions": { "t/0": { "offset": 7, "joined": 0, "decoded": 7, "rejected": 0, "tombstones": 0 } },
                "watermarks": { "drained": false, "partitions": {} },
                "plan": "a Int64",
            } },
            "queries": {},
            "tables": { "rooms": "1a2b" },
        });
        Snapshot { manifest: serde_json::from_value(manifest).unwrap(), batches }
    }

    /// Formats a snapshot for comparison, because NaN is not equal to itself.
    fn debug_text(snapshot: &Snapshot) -> String {
        format!("{snapshot:?}")
    }

    #[tokio::test]
    async fn all_types_empty_batches_and_slices_are_read_back() {
        let (_folder, store) = store();
        let path = Path::from("000000000007-a");
        write(&store, &path, &snapshot()).await.unwrap();
        write(&store, &path, &snapshot()).await.unwrap();
        let back = read(&store, &path).await.unwrap();
        assert_eq!(debug_text(&back), debug_text(&snapshot()));
        for ((_, written), (_, read)) in snapshot().batches.iter().zip(&back.batches) {
            assert_eq!(written.schema(), read.schema());
        }
        assert_eq!(list(&store).await.unwrap(), std::slice::from_ref(&path));
        delete(&store, &path).await.unwrap();
        delete(&store, &path).await.unwrap();
        assert!(list(&store).await.unwrap().is_empty());
        assert_eq!(read(&store, &path).await.unwrap_err().kind, Kind::Recovery);
    }

    #[tokio::test]
    async fn a_damaged_snapshot_is_an_error() {
        let (folder, store) = store();
        let path = Path::from("7");
        write(&store, &path, &snapshot()).await.unwrap();
        let file = folder.path().join("7/00000.arrow");
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(read(&store, &path).await.unwrap_err().kind, Kind::Recovery);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read(&store, &path).await.unwrap_err().kind, Kind::Recovery);
        let manifest = folder.path().join("7/manifest.json");
        let newer =
            std::fs::read_to_string(&manifest).unwrap().replace("\"format\": 1", "\"format\": 2");
        std::fs::write(&manifest, newer).unwrap();
        let error = read(&store, &path).await.unwrap_err();
        assert!(error.message.contains("another format"), "{error}");
    }

    #[test]
    fn a_slice_of_views_does_not_carry_its_whole_buffer() {
        let text: StringViewArray =
            (0..10_000).map(|n| Some(format!("a text that is longer than twelve {n}"))).collect();
        let numbers = Int64Array::from_iter_values(0..10_000);
        let batch = RecordBatch::try_from_iter([
            ("t", Arc::new(text) as ArrayRef),
            ("n", Arc::new(numbers)),
        ])
        .unwrap();
        assert!(encode(&batch.slice(5, 1)).unwrap().len() < 4096);
    }
}
