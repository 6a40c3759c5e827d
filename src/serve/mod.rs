//! The HTTP server for metrics, liveness, readiness and the status page.

pub mod http;
