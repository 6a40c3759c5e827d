//! Where snapshots and history lie: folders of this machine. In tests they can fail on purpose.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::{Error, Kind, Result};

#[cfg(test)]
pub mod tests;

/// A store that says nothing for so long is taken for one that failed: what was asked of it may
/// be done or not.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });

/// The store of a folder, which must exist.
///
/// # Errors
/// There is no such folder.
pub fn open_local(folder: &Path) -> object_store::Result<Arc<dyn ObjectStore>> {
    let store = LocalFileSystem::new_with_prefix(folder)?.with_automatic_cleanup(true);
    #[cfg(test)]
    if let Some(faulty) = tests::faulty_store::open_faulty(folder, false) {
        return Ok(faulty);
    }
    Ok(Arc::new(store))
}

/// What `asked` gives, if it comes in time.
///
/// # Errors
/// It does not: the store hangs.
pub async fn with_timeout<T>(asked: impl Future<Output = T>) -> Result<T> {
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer.map_err(|_| {
        let message = format!("the disk has not answered for {} s", PATIENCE.as_secs());
        Error::new(Kind::Storage, message)
            .hint("look at the disk, or the network share, of --data-dir")
    })
}
