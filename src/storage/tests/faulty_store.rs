//! An object store that fails on purpose.
//!
//! [`inject_faults`] registers a folder; [`open_faulty`] then returns a failing store for every
//! folder below it.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path as Folder, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFault {
    /// A write fails without effect.
    ErrorBefore,
    /// A write takes effect but returns an error.
    ErrorAfter,
    /// Every request fails.
    Unavailable,
    /// No request ever completes.
    Hang,
    /// Every request is delayed by this time.
    Slow(Duration),
}

/// The current fault of all stores below a folder.
#[derive(Debug, Default)]
pub struct StoreFaults {
    current: Mutex<Option<StoreFault>>,
    /// The number of snapshot writes while a fault was set.
    pub snapshots: AtomicU64,
    /// The number of history writes while a fault was set.
    pub history: AtomicU64,
}

impl StoreFaults {
    pub fn set(&self, fault: Option<StoreFault>) {
        *self.current.lock().unwrap() = fault;
    }
}

/// The registered folders.
type Registry = Mutex<HashMap<PathBuf, Arc<StoreFaults>>>;

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default)
}

/// Registers `folder`: stores opened below it fail while the returned value has a fault set.
pub fn inject_faults(folder: &Folder) -> Arc<StoreFaults> {
    let faults = Arc::new(StoreFaults::default());
    registry().lock().unwrap().insert(std::fs::canonicalize(folder).unwrap(), faults.clone());
    faults
}

/// Opens the store of a folder below a registered one; `None` for other folders. With `whole_disk`
/// the paths of the store are absolute, as the Delta library requires.
pub fn open_faulty(folder: &Folder, whole_disk: bool) -> Option<Arc<dyn ObjectStore>> {
    let folder = std::fs::canonicalize(folder).ok()?;
    let registry = registry().lock().unwrap();
    let (_, faults) = registry.iter().find(|(root, _)| folder.starts_with(root))?;
    let store = match whole_disk {
        true => LocalFileSystem::new(),
        false => LocalFileSystem::new_with_prefix(&folder).ok()?.with_automatic_cleanup(true),
    };
    let snapshots = folder.components().any(|part| part.as_os_str() == "snapshots");
    Some(Arc::new(FaultyStore { store, faults: faults.clone(), snapshots }))
}

#[derive(Debug)]
struct FaultyStore {
    store: LocalFileSystem,
    faults: Arc<StoreFaults>,
    snapshots: bool,
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.store)
    }
}

fn injected_error(what: &str) -> Error {
    Error::Generic { store: "FaultyStore", source: what.into() }
}

impl FaultyStore {
    /// Applies the current fault before a request. Returns whether the request must fail after it has
    /// taken effect.
    async fn apply_fault(&self, writes: bool) -> Result<bool> {
        let fault = *self.faults.current.lock().unwrap();
        if writes && fault.is_some() {
            let hits = if self.snapshots { &self.faults.snapshots } else { &self.faults.history };
            hits.fetch_add(1, Ordering::Relaxed);
        }
        match fault {
            None => Ok(false),
            Some(StoreFault::ErrorBefore) if writes => Err(injected_error("an error before")),
            Some(StoreFault::ErrorAfter) => Ok(writes),
            Some(StoreFault::ErrorBefore) => Ok(false),
            Some(StoreFault::Unavailable) => Err(injected_error("503 Service Unavailable")),
            Some(StoreFault::Hang) => std::future::pending().await,
            Some(StoreFault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(false)
            }
        }
    }
}

fn fail_if<T>(fails: bool, done: T) -> Result<T> {
    if fails { Err(injected_error("an error after success")) } else { Ok(done) }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let fails = self.apply_fault(true).await?;
        fail_if(fails, self.store.put_opts(location, payload, options).await?)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.apply_fault(true).await?;
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.apply_fault(false).await?;
        self.store.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.store.list(prefix);
        if *self.faults.current.lock().unwrap() == Some(StoreFault::Unavailable) {
            let refused = futures::future::ready(Err(injected_error("503 Service Unavailable")));
            return futures::stream::once(refused).boxed();
        }
        listed.into_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.apply_fault(false).await?;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let fails = self.apply_fault(true).await?;
        self.store.copy_opts(from, to, options).await?;
        fail_if(fails, ())
    }
}
