//! The object store of snapshots and history: a local folder, with a time limit for each request.
//!
//! Tests replace the store of a folder by one that fails on purpose (`tests::faulty_store`).

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::{Error, Kind, Result};

#[cfg(test)]
pub mod tests;

/// The time limit of one request. The outcome of a request that exceeds it is unknown: the store
/// may or may not have executed it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });

/// Opens the store of `folder`, which must exist.
///
/// # Errors
/// The folder does not exist.
pub fn open_local(folder: &Path) -> object_store::Result<Arc<dyn ObjectStore>> {
    let store = LocalFileSystem::new_with_prefix(folder)?.with_automatic_cleanup(true);
    #[cfg(test)]
    if let Some(faulty) = tests::faulty_store::open_faulty(folder, false) {
        return Ok(faulty);
    }
    Ok(Arc::new(store))
}

/// Waits for the result of `request`, up to a time limit.
///
/// # Errors
/// [`Kind::Storage`] if the limit is exceeded; the outcome of the request is then unknown.
pub async fn with_timeout<T>(request: impl Future<Output = T>) -> Result<T> {
    let result = tokio::time::timeout(REQUEST_TIMEOUT, request).await;
    result.map_err(|_| {
        let seconds = REQUEST_TIMEOUT.as_secs();
        let message = format!("storage request timed out after {seconds} s");
        Error::new(Kind::Storage, message)
            .hint("check the disk or network share that holds --data-dir")
    })
}
