//! State that lives longer than an epoch: key sets, and snapshots in the object store.

mod key_interner;
pub(crate) mod key_set;
pub mod manifest;
mod sliding_key_set;
pub mod snapshot_store;

pub(crate) use key_set::KeySet;
pub use manifest::SnapshotManifest;
pub(crate) use sliding_key_set::{NewKeys, SlidingKeySet};
pub use snapshot_store::Snapshot;
