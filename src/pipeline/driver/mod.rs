//! The driver of a running pipeline: reads chunks, ends epochs and commits them.
//!
//! ```text
//!  SourceReader ─► Engine (deterministic) ─► Committer (one transaction an epoch)
//!                     │                          │ committed
//!                     └─ snapshot, between       └─► EventHistory, and the archiver of outputs
//!                        two epochs
//! ```
//!
//! An epoch ends when it has output and the commit interval is over, at the latest after a second.
//! It is committed while the next one is read; at most one commit is pending.
//!
//! [`pipeline_driver`] reads and processes, [`epoch_end`] ends and commits epochs and takes
//! snapshots. The other files hold one concern each.

mod commit_schedule;
mod early_emissions;
mod end_targets;
mod epoch_clock;
mod epoch_end;
mod epoch_sink;
mod pending_commit;
mod pipeline_driver;

pub use epoch_sink::EpochSink;
pub use pipeline_driver::PipelineDriver;
