//! A store that fails on purpose.

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

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFault {
    /// A write fails and has done nothing.
    ErrorBefore,
    /// A write is done, and fails all the same.
    ErrorAfter,
    /// Everything is refused.
    Unavailable,
    /// Nothing is ever answered.
    Hang,
    /// Everything takes so long.
    Slow(Duration),
}

/// The faults of all stores below a folder.
#[derive(Debug, Default)]
pub struct StoreFaults {
    now: Mutex<Option<StoreFault>>,
    /// How many writes of snapshots met one, and how many of history.
    pub snapshots: AtomicU64,
    pub history: AtomicU64,
}

impl StoreFaults {
    pub fn set(&self, fault: Option<StoreFault>) {
        *self.now.lock().unwrap() = fault;
    }
}

type Known = Mutex<HashMap<PathBuf, Arc<StoreFaults>>>;

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default)
}

/// From now on stores below `folder` fail when they are told to.
pub fn inject_faults(folder: &Folder) -> Arc<StoreFaults> {
    let faults = Arc::new(StoreFaults::default());
    known().lock().unwrap().insert(std::fs::canonicalize(folder).unwrap(), faults.clone());
    faults
}

/// The store of a folder below one that was named; with `whole` that of the whole disk, as the
/// Delta library wants it.
pub fn open_faulty(folder: &Folder, whole: bool) -> Option<Arc<dyn ObjectStore>> {
    let folder = std::fs::canonicalize(folder).ok()?;
    let known = known().lock().unwrap();
    let (_, faults) = known.iter().find(|(root, _)| folder.starts_with(root))?;
    let store = match whole {
        true => LocalFileSystem::new(),
        false => LocalFileSystem::new_with_prefix(&folder).ok()?.with_automatic_cleanup(true),
    };
    let snapshots = folder.components().any(|part| part.as_os_str() == "snapshots");
    Some(Arc::new(Faulty { store, faults: faults.clone(), snapshots }))
}

#[derive(Debug)]
struct Faulty {
    store: LocalFileSystem,
    faults: Arc<StoreFaults>,
    snapshots: bool,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.store)
    }
}

fn refused(what: &str) -> Error {
    Error::Generic { store: "Faulty", source: what.into() }
}

impl Faulty {
    /// What befalls a request; true: a write is to fail once it is done.
    async fn befall(&self, writes: bool) -> Result<bool> {
        let fault = *self.faults.now.lock().unwrap();
        if writes && fault.is_some() {
            let hits = if self.snapshots { &self.faults.snapshots } else { &self.faults.history };
            hits.fetch_add(1, Ordering::Relaxed);
        }
        match fault {
            None => Ok(false),
            Some(StoreFault::ErrorBefore) if writes => Err(refused("an error before")),
            Some(StoreFault::ErrorAfter) => Ok(writes),
            Some(StoreFault::ErrorBefore) => Ok(false),
            Some(StoreFault::Unavailable) => Err(refused("503 Service Unavailable")),
            Some(StoreFault::Hang) => std::future::pending().await,
            Some(StoreFault::Slow(by)) => {
                tokio::time::sleep(by).await;
                Ok(false)
            }
        }
    }
}

fn after<T>(fails: bool, done: T) -> Result<T> {
    if fails { Err(refused("an error after success")) } else { Ok(done) }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let fails = self.befall(true).await?;
        after(fails, self.store.put_opts(location, payload, options).await?)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.befall(true).await?;
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.befall(false).await?;
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
        if *self.faults.now.lock().unwrap() == Some(StoreFault::Unavailable) {
            let refused = futures::future::ready(Err(refused("503 Service Unavailable")));
            return futures::stream::once(refused).boxed();
        }
        listed.into_stream().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.befall(false).await?;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let fails = self.befall(true).await?;
        self.store.copy_opts(from, to, options).await?;
        after(fails, ())
    }
}
