//! What the stages report about themselves: metrics and status. Serves nothing itself.

pub mod metrics;
pub mod status;

pub use metrics::Metrics;
pub use status::StatusBoard;
