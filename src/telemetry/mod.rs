//! The metrics and the status that the stages report. It has no server; see `serve`.

pub mod metrics;
pub mod status;

pub use metrics::Metrics;
pub use status::StatusBoard;
