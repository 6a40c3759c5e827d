//! HTTP: metrics, health, readiness and the status page.

pub mod http;
