//! What runs beside a pipeline: status, metrics, HTTP.

pub mod status;
