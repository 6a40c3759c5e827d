//! The history side of a pipeline.
//!
//! - [`event_history`] writes the decoded source events. Its rows come from the pipeline, and only
//!   after their epoch is committed: an event that an uncommitted epoch rejects as too far in the
//!   future may be accepted when the epoch runs again.
//! - [`output_archiver`] copies the output topics, which it reads `read_committed`;
//!   [`output_rows`] converts their records to rows.
//! - [`table_writers`] commits tables and starts the compaction of small files, for both.
//!
//! Both are copies of topics with commit points of their own.

pub mod event_history;
pub mod output_archiver;
mod output_rows;
mod table_writers;
