//! What runs beside a pipeline: status, metrics, HTTP.

pub mod http;
pub mod metrics;
pub mod status;

pub use metrics::Metrics;
pub use status::StatusBoard;
