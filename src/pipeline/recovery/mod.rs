//! Recovery: brings a customer's pipeline from its log and its snapshot to the point where the
//! driver takes over.
//!
//! Each phase returns the input of the next one.
//!
//! ```text
//!  connect ─────── plan the queries, connect to Kafka, check topics, list snapshots
//!     │ Connected
//!  inspect ─────── read the log, check it against cluster, plans and offsets, load the snapshot
//!     │ Inspected
//!  fence ───────── end the transactions of other processes of this customer and read the log
//!     │            again; if it has changed, it is inspected again
//!     │ Fenced
//!  restore ─────── put the snapshot's state into the engine
//!     │ Restored
//!  open outputs ── open history tables and the source reader, start the archiver
//!     │ Opened
//!  replay ──────── run the recorded epochs after the snapshot again, without sinks
//!     │
//!     ▼ RunningPipeline
//! ```
//!
//! A failure in any phase ends the start; the next one begins with `connect`.
//!
//! **Promises**
//! - No other process is fenced before inspection has found nothing that forbids a start.
//! - The log is read again after the fence, because another process may have committed until then.
//! - History tables are opened and the archiver starts only after the fence, when no other process
//!   writes to them any more.

mod connect;
mod fence;
mod inspect;
mod missing_offsets;
mod new_queries;
mod open_outputs;
mod plan_compat;
mod replay;
mod replay_check;
mod replay_lag;
mod restore;

use std::sync::Arc;

use crate::Result;
use crate::catalog::{Catalog, Customer};
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::running_pipeline::RunningPipeline;

pub use connect::{StartKind, connect};
pub use fence::fence;
pub use inspect::inspect;
pub use open_outputs::open_outputs;
pub use replay::{finish_recovery, replay};
pub use restore::{discard_state, restore};

/// Starts a customer's pipeline from its log and snapshot.
///
/// # Errors
/// What forbids a start, or an error of Kafka or of the disk.
pub async fn recover(
    catalog: &Catalog,
    customer: &Arc<Customer>,
    config: &PipelineConfig,
) -> Result<RunningPipeline> {
    let connected = connect(catalog, customer, config, StartKind::Resume).await?;
    let inspected = inspect(connected).await?;
    let fenced = fence(inspected).await?;
    let restored = restore(fenced).await?;
    let opened = open_outputs(restored).await?;
    replay(opened).await
}
