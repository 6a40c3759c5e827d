//! Millstream: SQL files in, Kafka streams through, Parquet out.
//!
//! ```text
//!  schemas/*.sql, queries/*/*.sql ──► catalog ──► sql (front │ kept │ closing plan)
//!                                                      │
//!  Kafka ──► source ──► decode ──► watermark ──► window ──► sink ──► log ──► Kafka
//!            chunks     batches    per partition  state     JSON     one transaction an epoch
//!                          └──────────────────────────────────┴────► history ──► SQL, replay
//! ```
//!
//! The modules stand below in the order in which data meets them. A stage never imports a
//! later stage; only [`pipeline`] joins them all.

pub mod error;
pub mod failpoint;
mod storage;
pub mod time;

pub mod types;

pub mod telemetry;

pub mod catalog;
pub mod commit;
pub mod decode;
pub mod history;
pub mod pipeline;
pub mod planner;
pub mod sink;
pub mod source;
pub mod state;
pub mod watermark;
pub mod window;

pub mod backfill;
pub mod sensors;
pub mod serve;

pub mod cli;

pub use error::{Error, Kind, Place, Result};
